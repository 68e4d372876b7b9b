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
		entry->expires_at = 0;
		memset(&entry->phone, 0, sizeof(entry->phone));
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

/* Merge two counts */
void
phone_count_merge(PhoneCount *count, const PhoneCount *other)
{
	/* Of two windows the younger one counts: it began when the other was over */
	if (other->since > count->since)
	{
		count->since = other->since;
		count->failures = other->failures;
	}
	else if (other->since == count->since)
		count->failures = Max(count->failures, other->failures);
	count->forgiven = Max(count->forgiven, other->forgiven);
	count->total = Max(Max(count->total, other->total), count->forgiven);
	count->last_at = Max(count->last_at, other->last_at);
}

/* Leave out a window that is over */
void
phone_count_trim(PhoneCount *count, TimestampTz now)
{
	if (count->since != 0 && now - count->since >= PHONE_WINDOW)
	{
		count->since = 0;
		count->failures = 0;
	}
}

/* Tell when a phone may be tried again */
TimestampTz
phone_count_free_at(const PhoneCount *count, int taken, const PhonePolicy *policy, TimestampTz now)
{
	int64		in_row = count->total - count->forgiven;
	TimestampTz free_at = 0;

	/* What is being compared just now may be right */
	if (policy->max_in_row > 0 && in_row >= policy->max_in_row)
	{
		if (in_row - taken >= policy->max_in_row)
			return PG_INT64_MAX;
		free_at = now + USECS_PER_SEC;
	}
	if (policy->per_day > 0 && count->failures >= policy->per_day)
		free_at = Max(free_at, count->since + PHONE_WINDOW);
	if (policy->delay > 0 && in_row >= policy->delay_after)
	{
		int64		delay = policy->delay;

		/* or wrong: then this is when the delay begins */
		for (int64 i = policy->delay_after; i < in_row && delay < PHONE_MAX_DELAY; i++)
			delay *= 2;
		free_at = Max(free_at, (taken > 0 ? now : count->last_at) + Min(delay, PHONE_MAX_DELAY));
	}
	return free_at > now ? free_at : 0;
}

/* Give what the ledger knows of a phone */
int
ledger_phone(int32 workspace_id, const char *phone, PhoneCount *count)
{
	LedgerKey	key;
	LedgerEntry *entry;
	int			taken = 0;

	phone_key(&key, workspace_id, phone);
	LWLockAcquire(ledger->lock, LW_SHARED);
	entry = find_entry(&key);
	if (entry != NULL)
	{
		phone_count_merge(count, &entry->phone);
		taken = entry->taken;
	}
	LWLockRelease(ledger->lock);
	return taken;
}

/* Give the seconds until a time */
static int
seconds_until(TimestampTz then, TimestampTz now)
{
	return then == PG_INT64_MAX ? -1 : (int) ((then - now + USECS_PER_SEC - 1) / USECS_PER_SEC);
}

/* Count a guess */
LedgerAnswer
ledger_take(LedgerGuess *guess, int *attempts, int *retry_after)
{
	LedgerKey	key;
	LedgerKey	phone_entry_key;
	LedgerEntry *entry;
	LedgerEntry *phone_entry = NULL;
	LedgerAnswer answer = LEDGER_TAKEN;
	bool		counts_phone = guess->policy.max_in_row > 0;
	PhoneCount	phone = guess->committed;
	TimestampTz free_at = 0;
	int			count;
	int			needed;

	verification_key(&key, guess->workspace_id, &guess->id);
	phone_key(&phone_entry_key, guess->workspace_id, guess->phone);
	guess->entry_made = guess->phone_entry_made = false;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);

	/*
	 * Whoever had to wait for the row of the verification has read the
	 * phone's before that.
	 */
	if (counts_phone && guess->phone_settles != pg_atomic_read_u32(&ledger->phone_settles))
	{
		LWLockRelease(ledger->lock);
		return LEDGER_STALE;
	}

	entry = find_entry(&key);
	count = Max(guess->attempts, entry != NULL ? entry->count : 0);
	needed = entry == NULL ? 1 : 0;

	if (counts_phone)
	{
		/* What is committed and what is not yet: the more */
		phone_entry = find_entry(&phone_entry_key);
		if (phone_entry != NULL)
			phone_count_merge(&phone, &phone_entry->phone);
		else
			needed++;
		phone_count_trim(&phone, guess->now);

		/*
		 * A count that begins anew begins above all that there were before,
		 * by the clock: a right guess that was prepared days ago must not
		 * forgive what it has not seen.
		 */
		if (phone.total == 0)
			phone.total = phone.forgiven = guess->now;
		free_at = phone_count_free_at(&phone, phone_entry != NULL ? phone_entry->taken : 0,
									  &guess->policy, guess->now);
	}

	*attempts = count;
	if (count >= guess->max_attempts)
		answer = LEDGER_USED_UP;
	else if (free_at != 0)
	{
		answer = LEDGER_COOLING;
		*retry_after = seconds_until(free_at, guess->now);
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
		if (entry != NULL && counts_phone && phone_entry == NULL)
		{
			phone_entry = add_entry(&phone_entry_key);
			guess->phone_entry_made = phone_entry != NULL;
		}

		if (entry == NULL || (counts_phone && phone_entry == NULL))
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
				guess->phone_floor = phone.total;
				phone.total++;
				phone.failures++;
				if (phone.since == 0)
					phone.since = guess->now;
				phone_entry->phone = phone;
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
	if (guess->policy.max_in_row > 0)
	{
		phone_key(&key, guess->workspace_id, guess->phone);
		if ((entry = find_entry(&key)) != NULL)
		{
			entry->taken--;
			entry->phone.last_at = Max(entry->phone.last_at, guess->now);
		}
	}
	LWLockRelease(ledger->lock);
}

/* Give the attempt back */
static void
give_back(const LedgerGuess *guess)
{
	LedgerKey	key;
	LedgerEntry *entry;

	verification_key(&key, guess->workspace_id, &guess->id);
	if ((entry = find_entry(&key)) == NULL)
		return;
	entry->count--;
	entry->taken--;

	/*
	 * Made for this guess, and no other has failed since: it says no more
	 * than the row does
	 */
	if (guess->entry_made && entry->taken == 0 && entry->count <= guess->attempts)
		remove_entry(&key);
}

/* Give the phone's count back */
static void
give_back_phone(LedgerGuess *guess)
{
	LedgerKey	key;
	LedgerEntry *entry;
	PhoneCount *phone;

	phone_key(&key, guess->workspace_id, guess->phone);
	if ((entry = find_entry(&key)) == NULL)
		return;
	phone = &entry->phone;
	phone->total--;
	if (--phone->failures <= 0)
	{
		phone->failures = 0;
		phone->since = 0;
	}
	entry->taken--;

	/* Those that are not yet compared may come to be wrong after this one */
	guess->phone_total = phone->total - entry->taken;
	guess->in_row = (int) Max(guess->phone_total - phone->forgiven, 0);
	if (guess->phone_entry_made && entry->taken == 0 && phone->total <= guess->phone_floor)
		remove_entry(&key);
}

/* Give a right guess its attempt back */
void
ledger_right(LedgerGuess *guess)
{
	guess->phone_total = 0;
	guess->in_row = 0;
	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	give_back(guess);
	if (guess->policy.max_in_row > 0)
		give_back_phone(guess);
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
ledger_settle(const LedgerKey *key, int committed)
{
	LedgerEntry *entry;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	entry = find_entry(key);
	if (entry != NULL && entry->taken == 0 && entry->count <= committed)
		remove_entry(key);
	LWLockRelease(ledger->lock);
}

/* Drop an entry that a phone's rows carry */
void
ledger_settle_phone(const LedgerEntry *listed)
{
	LedgerEntry *entry;

	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	entry = find_entry(&listed->key);
	if (entry != NULL && entry->taken == 0 && entry->phone.total == listed->phone.total &&
		entry->phone.since == listed->phone.since && entry->phone.failures == listed->phone.failures)
	{
		remove_entry(&listed->key);
		pg_atomic_fetch_add_u32(&ledger->phone_settles, 1);
	}
	LWLockRelease(ledger->lock);
}

/* Drop an entry and what it says */
void
ledger_forget(const LedgerKey *key)
{
	LWLockAcquire(ledger->lock, LW_EXCLUSIVE);
	remove_entry(key);
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
