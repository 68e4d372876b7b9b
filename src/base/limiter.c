/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  Sends per second, across all backends.
 *
 * A token bucket per workspace in shared memory. What a bucket knows is less
 * than two seconds old, so nothing is lost when a restart empties them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "base/limiter.h"

/* Workspaces that can send at the same moment; a full bucket makes room. */
#define LIMITER_BUCKETS 4096

typedef struct BucketKey
{
	Oid			database;
	int32		workspace_id;
} BucketKey;

typedef struct Bucket
{
	BucketKey	key;
	double		tokens;
	TimestampTz filled_at;
} Bucket;

static LWLock **limiter_lock = NULL;
static HTAB *limiter_hash = NULL;

/* Give the shared memory needed */
Size
limiter_shmem_size(void)
{
	return add_size(MAXALIGN(sizeof(LWLock *)),
					hash_estimate_size(LIMITER_BUCKETS, sizeof(Bucket)));
}

/* Set up or find the shared memory */
void
limiter_shmem_init(void)
{
	HASHCTL		info;
	bool		found;

	limiter_lock = ShmemInitStruct("otp limiter", sizeof(LWLock *), &found);
	if (!found)
		*limiter_lock = &(GetNamedLWLockTranche("otp_limiter"))->lock;

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(BucketKey);
	info.entrysize = sizeof(Bucket);
	limiter_hash = ShmemInitHash("otp limiter buckets", LIMITER_BUCKETS, LIMITER_BUCKETS,
								 &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/* Drop buckets that a second has refilled: a new one says the same */
static void
drop_full_buckets(TimestampTz now)
{
	HASH_SEQ_STATUS status;
	Bucket	   *bucket;

	hash_seq_init(&status, limiter_hash);
	while ((bucket = hash_seq_search(&status)) != NULL)
	{
		if (now - bucket->filled_at > USECS_PER_SEC)
			(void) hash_search(limiter_hash, &bucket->key, HASH_REMOVE, NULL);
	}
}

/* Take one send */
bool
limiter_take(int32 workspace_id, int per_second, int *retry_after)
{
	BucketKey	key;
	Bucket	   *bucket;
	TimestampTz now;
	bool		found;
	bool		taken = false;

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.workspace_id = workspace_id;

	LWLockAcquire(*limiter_lock, LW_EXCLUSIVE);

	/*
	 * Read under the lock: with the time of a caller who has waited for
	 * something the bucket would fill again from then on.
	 */
	now = GetCurrentTimestamp();
	bucket = hash_search(limiter_hash, &key, HASH_ENTER_NULL, &found);
	if (bucket == NULL)
	{
		drop_full_buckets(now);
		bucket = hash_search(limiter_hash, &key, HASH_ENTER_NULL, &found);
	}
	if (bucket != NULL)
	{
		if (!found)
			bucket->tokens = per_second;
		else if (now > bucket->filled_at)
			bucket->tokens = Min((double) per_second,
								 bucket->tokens + (double) (now - bucket->filled_at) * per_second / USECS_PER_SEC);

		/*
		 * A clock that was set back refills nothing, but must not stop it for
		 * long
		 */
		bucket->filled_at = now;
		if (bucket->tokens >= 1.0)
		{
			bucket->tokens -= 1.0;
			taken = true;
		}
	}
	LWLockRelease(*limiter_lock);

	/* One second refills a bucket whole, whatever its size */
	*retry_after = 1;
	return taken;
}
