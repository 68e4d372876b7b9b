/*-------------------------------------------------------------------------
 *
 * ledger.c
 *	  Guesses, counted where no rollback reaches.
 *
 * Whoever may guess could roll the guess back, and with it the count in the
 * row. So a guess is first counted here, in shared memory, and only then
 * compared. An entry says "at least so many", and goes only when a committed
 * row says the same: a ledger that is full refuses to let anybody guess, it
 * never forgets. The sender writes counts back to their rows within a second
 * (attempts.c in the store), which is all that a crash can lose.
 *
 * One lock guards all of it. It is held for a few dozen instructions, and
 * never across anything that can raise or wait.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/transam.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/ledger.h"

/* Failures per phone are counted over a day from the first one. */
#define PHONE_WINDOW ((int64) 24 * 3600 * USECS_PER_SEC)

/*
 * Entries of a workspace that holds so many times more than what is free must
 * wait: with one of them the ledger fills to 8/9, and however many there are,
 * something is left for those who need little. Otherwise whoever keeps rows
 * locked would stop all databases of the server. Workspaces are told apart by
 * a hash; two that share a counter share its allowance.
 */
#define TENANT_SHARE 8
#define TENANT_COUNTERS 1024

typedef struct Ledger
{
	LWLock	   *lock;
	int			used;
	pg_atomic_uint32 phone_settles;
	int			tenants[TENANT_COUNTERS];	/* entries in use */
} Ledger;

static Ledger *ledger = NULL;
static HTAB *ledger_hash = NULL;

/* Give the shared memory needed */
Size
ledger_shmem_size(void)
{
	return add_size(MAXALIGN(sizeof(Ledger)),
					hash_estimate_size(otp_ledger_size, sizeof(LedgerEntry)));
}

/* Set up or find the shared memory */
void
ledger_shmem_init(void)
{
	HASHCTL		info;
	bool		found;

	ledger = ShmemInitStruct("otp ledger", sizeof(Ledger), &found);
	if (!found)
	{
		ledger->lock = &(GetNamedLWLockTranche("otp_ledger"))->lock;
		ledger->used = 0;
		pg_atomic_init_u32(&ledger->phone_settles, 0);
		memset(ledger->tenants, 0, sizeof(ledger->tenants));
	}

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(LedgerKey);
	info.entrysize = sizeof(LedgerEntry);
	ledger_hash = ShmemInitHash("otp ledger entries", otp_ledger_size, otp_ledger_size,
								&info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/* Make key of a verification */
static void
verification_key(LedgerKey *key, int32 workspace_id, const pg_uuid_t *id)
{
	memset(key, 0, sizeof(LedgerKey));
	key->database = MyDatabaseId;
	key->workspace_id = workspace_id;
	key->kind = LEDGER_VERIFICATION;
	memcpy(key->what, id->data, sizeof(key->what));
}

/* Make key of a phone */
static void
phone_key(LedgerKey *key, int32 workspace_id, const char *phone)
{
	memset(key, 0, sizeof(LedgerKey));
	key->database = MyDatabaseId;
	key->workspace_id = workspace_id;
	key->kind = LEDGER_PHONE;
	memcpy(key->what, phone, Min(strlen(phone), sizeof(key->what)));
}

/* Find the counter of a workspace's entries */
static int *
tenant_counter(const LedgerKey *key)
{
	uint32		hash = hash_combine(murmurhash32(key->database), murmurhash32(key->workspace_id));

	return &ledger->tenants[hash % TENANT_COUNTERS];
}

/* Find an entry, or NULL */
static LedgerEntry *
find_entry(const LedgerKey *key)
{
	return hash_search(ledger_hash, key, HASH_FIND, NULL);
}

/* Add an entry; the caller has made sure of room */
static LedgerEntry *
add_entry(const LedgerKey *key)
{
	bool		found;
	LedgerEntry *entry = hash_search(ledger_hash, key, HASH_ENTER_NULL, &found);

	if (entry != NULL && !found)
	{
		entry->count = 0;
		entry->taken = 0;
		entry->created_xid = InvalidTransactionId;
		entry->since = 0;
		entry->expires_at = 0;
		ledger->used++;
		(*tenant_counter(key))++;
	}
	return entry;
}

/* Remove an entry */
static void
remove_entry(const LedgerKey *key)
{
	int		   *tenant = tenant_counter(key);

	if (hash_search(ledger_hash, key, HASH_REMOVE, NULL) != NULL)
	{
		ledger->used--;
		(*tenant)--;
	}
}

/* Give the count of wrong guesses */
int
ledger_attempts(int32 workspace_id, const pg_uuid_t *id, int attempts)
{
	LedgerKey	key;
	LedgerEntry *entry;

	verification_key(&key, workspace_id, id);
	LWLockAcquire(ledger->lock, LW_SHARED);
	entry = find_entry(&key);
	if (entry != NULL && entry->count > attempts)
		attempts = entry->count;
	LWLockRelease(ledger->lock);
	return attempts;
}

/* Give the count of phones settled */
uint32
ledger_phone_settles(void)
{
	/* No barrier: the snapshot that is taken next is one */
	return pg_atomic_read_u32(&ledger->phone_settles);
}

/* Count a guess */
LedgerAnswer
ledger_take(LedgerGuess *guess, int *attempts, int *retry_after)
{
	LedgerKey	key;
	LedgerKey	phone;
	LedgerEntry *entry;
	LedgerEntry *phone_entry = NULL;
	LedgerAnswer answer = LEDGER_TAKEN;
	int			count;
	int			failures = 0;
	TimestampTz since = 0;
	int			needed;

	verification_key(&key, guess->workspace_id, &guess->id);
	phone_key(&phone, guess->workspace_id, guess->phone);
	guess->entry_made = guess->phone_entry_made = false;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);

	/*
	 * Whoever had to wait for the row of the verification has read the
	 * phone's before that.
	 */
	if (guess->phone_limit > 0 && guess->phone_settles != pg_atomic_read_u32(&ledger->phone_settles))
	{
		LWLockRelease(ledger->lock);
		return LEDGER_STALE;
	}

	entry = find_entry(&key);
	count = Max(guess->attempts, entry != NULL ? entry->count : 0);
	needed = entry == NULL ? 1 : 0;

	if (guess->phone_limit > 0)
	{
		/*
		 * What is committed and what is not yet: the more, of the window that
		 * lasts
		 */
		phone_entry = find_entry(&phone);
		if (guess->phone_since != 0 && guess->now - guess->phone_since < PHONE_WINDOW)
		{
			since = guess->phone_since;
			failures = guess->phone_failures;
		}
		if (phone_entry != NULL && guess->now - phone_entry->since < PHONE_WINDOW &&
			(since == 0 || phone_entry->since >= since))
		{
			failures = phone_entry->since == since ? Max(failures, phone_entry->count) : phone_entry->count;
			since = phone_entry->since;
		}
		if (phone_entry == NULL)
			needed++;
	}

	*attempts = count;
	if (count >= guess->max_attempts)
		answer = LEDGER_USED_UP;
	else if (guess->phone_limit > 0 && failures >= guess->phone_limit)
	{
		answer = LEDGER_COOLING;
		*retry_after = (int) ((since + PHONE_WINDOW - guess->now) / USECS_PER_SEC) + 1;
	}
	else if (ledger->used + needed > otp_ledger_size ||
			 (needed > 0 &&
			  *tenant_counter(&key) + needed > TENANT_SHARE * (otp_ledger_size - ledger->used)))
		answer = LEDGER_FULL;
	else
	{
		if (entry == NULL)
		{
			entry = add_entry(&key);
			guess->entry_made = entry != NULL;
		}
		if (entry != NULL && guess->phone_limit > 0 && phone_entry == NULL)
		{
			phone_entry = add_entry(&phone);
			guess->phone_entry_made = phone_entry != NULL;
		}

		if (entry == NULL || (guess->phone_limit > 0 && phone_entry == NULL))
		{
			/* Out of elements all the same: leave it as it was */
			if (guess->entry_made)
				remove_entry(&key);
			answer = LEDGER_FULL;
		}
		else
		{
			entry->count = count + 1;
			entry->taken++;
			entry->created_xid = guess->created_xid;
			entry->expires_at = guess->expires_at;
			*attempts = entry->count;
			if (phone_entry != NULL)
			{
				phone_entry->count = failures + 1;
				phone_entry->since = since != 0 ? since : guess->now;
				phone_entry->taken++;
			}
		}
	}

	LWLockRelease(ledger->lock);
	return answer;
}

/* Let the count of a wrong guess stand */
void
ledger_wrong(const LedgerGuess *guess)
{
	LedgerKey	key;
	LedgerEntry *entry;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	verification_key(&key, guess->workspace_id, &guess->id);
	if ((entry = find_entry(&key)) != NULL)
		entry->taken--;
	if (guess->phone_limit > 0)
	{
		phone_key(&key, guess->workspace_id, guess->phone);
		if ((entry = find_entry(&key)) != NULL)
			entry->taken--;
	}
	LWLockRelease(ledger->lock);
}

/* Take one guess back from an entry */
static void
give_back(const LedgerKey *key, bool entry_made, int committed)
{
	LedgerEntry *entry = find_entry(key);

	if (entry == NULL)
		return;
	entry->count--;
	entry->taken--;

	/*
	 * Made for this guess, and no other has failed since: it says no more
	 * than the row does
	 */
	if (entry_made && entry->taken == 0 && entry->count <= committed)
		remove_entry(key);
}

/* Give a right guess its attempt back */
void
ledger_right(const LedgerGuess *guess)
{
	LedgerKey	key;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	verification_key(&key, guess->workspace_id, &guess->id);
	give_back(&key, guess->entry_made, guess->attempts);
	if (guess->phone_limit > 0)
	{
		phone_key(&key, guess->workspace_id, guess->phone);
		give_back(&key, guess->phone_entry_made,
				  guess->phone_since != 0 && guess->now - guess->phone_since < PHONE_WINDOW
				  ? guess->phone_failures : 0);
	}
	LWLockRelease(ledger->lock);
}

/* Tell whether there may be entries */
bool
ledger_has_entries(Oid database)
{
	return ledger != NULL && *(volatile int *) &ledger->used > 0;
}

/* Copy the entries of a database */
int
ledger_list(Oid database, LedgerEntry *entries, int max, int skip)
{
	HASH_SEQ_STATUS status;
	LedgerEntry *entry;
	int			n = 0;

	LWLockAcquire(ledger->lock, LW_SHARED);
	hash_seq_init(&status, ledger_hash);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		/* A guess in progress may yet be given back */
		if (entry->key.database != database || entry->taken > 0)
			continue;
		if (skip > 0)
		{
			skip--;
			continue;
		}
		if (n == max)
		{
			hash_seq_term(&status);
			break;
		}
		entries[n++] = *entry;
	}
	LWLockRelease(ledger->lock);
	return n;
}

/* Drop an entry that a row carries */
void
ledger_settle(const LedgerKey *key, int committed, TimestampTz since)
{
	LedgerEntry *entry;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	entry = find_entry(key);
	if (entry != NULL && entry->taken == 0 && entry->count <= committed &&
		(key->kind != LEDGER_PHONE || entry->since == since))
	{
		remove_entry(key);
		if (key->kind == LEDGER_PHONE)
			pg_atomic_fetch_add_u32(&ledger->phone_settles, 1);
	}
	LWLockRelease(ledger->lock);
}

/* Drop the entries of a dropped database */
void
ledger_forget_database(Oid database)
{
	HASH_SEQ_STATUS status;
	LedgerEntry *entry;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	hash_seq_init(&status, ledger_hash);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		/* Removing the entry just returned is allowed during a scan */
		if (entry->key.database == database)
			remove_entry(&entry->key);
	}
	LWLockRelease(ledger->lock);
}

/* Give the usage */
void
ledger_usage(int *used, int *size)
{
	*used = ledger != NULL ? *(volatile int *) &ledger->used : 0;
	*size = otp_ledger_size;
}
