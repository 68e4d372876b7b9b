/*-------------------------------------------------------------------------
 *
 * receipt_count.c
 *	  How many receipts were taken and refused, per provider account.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/receipt_count.h"

/* Accounts per database that are counted, on average */
#define COUNTS_PER_DATABASE 4

typedef struct ReceiptCounts
{
	LWLock		lock;
	int			used;			/* entries in use, all at the front */
	int			max;
	ReceiptCount entries[FLEXIBLE_ARRAY_MEMBER];
} ReceiptCounts;

/* NULL without shared_preload_libraries */
static ReceiptCounts *counts = NULL;

/* Give the size of shared memory */
Size
receipt_count_shmem_size(void)
{
	return add_size(offsetof(ReceiptCounts, entries),
					mul_size((Size) otp_max_databases * COUNTS_PER_DATABASE, sizeof(ReceiptCount)));
}

/* Make or find shared memory */
void
receipt_count_shmem_init(void)
{
	bool		found;

	counts = ShmemInitStruct("otp receipt counts", receipt_count_shmem_size(), &found);
	if (!found)
	{
		memset(counts, 0, receipt_count_shmem_size());
		LWLockInitialize(&counts->lock, LWLockNewTrancheId());
		counts->max = otp_max_databases * COUNTS_PER_DATABASE;
	}
	LWLockRegisterTranche(counts->lock.tranche, "OtpReceiptCounts");
}

/* Find an account's entry; lock held */
static ReceiptCount *
find(int account_id)
{
	for (int i = 0; i < counts->used; i++)
	{
		if (counts->entries[i].account_id == account_id && counts->entries[i].database == MyDatabaseId)
			return &counts->entries[i];
	}
	return NULL;
}

/* Find an account's entry, or make one in place of the one unused for longest */
static ReceiptCount *
find_or_make(int account_id)
{
	ReceiptCount *entry = find(account_id);

	if (entry != NULL)
		return entry;
	if (counts->used < counts->max)
		entry = &counts->entries[counts->used++];
	else
	{
		/* Dropped databases leave theirs behind */
		entry = &counts->entries[0];
		for (int i = 1; i < counts->used; i++)
		{
			if (counts->entries[i].used_at < entry->used_at)
				entry = &counts->entries[i];
		}
	}
	memset(entry, 0, sizeof(*entry));
	entry->database = MyDatabaseId;
	entry->account_id = account_id;
	return entry;
}

/* Count what was taken */
void
receipt_count_taken(int account_id, int updates)
{
	TimestampTz now = GetCurrentTimestamp();
	ReceiptCount *entry;

	if (counts == NULL)
		return;
	LWLockAcquire(&counts->lock, LW_EXCLUSIVE);
	entry = find_or_make(account_id);
	entry->taken += updates;
	entry->last_at = entry->used_at = now;
	LWLockRelease(&counts->lock);
}

/* Count what was refused */
void
receipt_count_refused(int account_id)
{
	TimestampTz now = GetCurrentTimestamp();
	ReceiptCount *entry;

	if (counts == NULL)
		return;
	LWLockAcquire(&counts->lock, LW_EXCLUSIVE);
	entry = find_or_make(account_id);
	entry->refused++;
	entry->used_at = now;
	LWLockRelease(&counts->lock);
}

/* Forget an account */
void
receipt_count_forget(int account_id)
{
	ReceiptCount *entry;

	if (counts == NULL)
		return;
	LWLockAcquire(&counts->lock, LW_EXCLUSIVE);
	entry = find(account_id);
	if (entry != NULL)
		*entry = counts->entries[--counts->used];
	LWLockRelease(&counts->lock);
}

/* Copy this database's */
int
receipt_counts(ReceiptCount *copies, int max)
{
	int			n = 0;

	if (counts == NULL)
		return 0;
	LWLockAcquire(&counts->lock, LW_SHARED);
	for (int i = 0; i < counts->used && n < max; i++)
	{
		if (counts->entries[i].database == MyDatabaseId)
			copies[n++] = counts->entries[i];
	}
	LWLockRelease(&counts->lock);
	return n;
}
