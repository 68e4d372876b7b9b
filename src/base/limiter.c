/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  Sends and jobs per second, across all backends.
 *
 * Token buckets per workspace in shared memory. What a bucket knows is some
 * seconds old at most, so nothing is lost when a restart empties them.
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

#include "base/error.h"
#include "base/limiter.h"

/*
 * Whatever a workspace queues beside codes, the one sender of the database
 * has to do between the codes of all: a step of a job takes it up to some
 * milliseconds. And what it changes of its endpoints stays in the audit for
 * ever. So many per second are little of either, and more than people and
 * schedules need; so many at once let a script set up a
 * workspace with all its templates and endpoints.
 */
#define JOBS_PER_SECOND 2
#define JOBS_AT_ONCE 60

/* What is limited: each has buckets of its own, lest one take the other's room. */
typedef enum LimiterKind
{
	LIMITER_SENDS,
	LIMITER_JOBS,
	LIMITER_KINDS
} LimiterKind;

static const struct
{
	const char *name;
	int			buckets;		/* workspaces at the same moment; a full
								 * bucket makes room, or the fullest */
}			kinds[LIMITER_KINDS] = {
	[LIMITER_SENDS] = {"otp limiter buckets", 4096},
	[LIMITER_JOBS] = {"otp limiter job buckets", 1024}
};

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
	int32		per_second;		/* as of then */
	int32		size;
} Bucket;

static LWLock **limiter_lock = NULL;
static HTAB *limiter_hashes[LIMITER_KINDS];

/* Give the shared memory needed */
Size
limiter_shmem_size(void)
{
	Size		size = MAXALIGN(sizeof(LWLock *));

	for (int i = 0; i < LIMITER_KINDS; i++)
		size = add_size(size, hash_estimate_size(kinds[i].buckets, sizeof(Bucket)));
	return size;
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
	for (int i = 0; i < LIMITER_KINDS; i++)
		limiter_hashes[i] = ShmemInitHash(kinds[i].name, kinds[i].buckets, kinds[i].buckets,
										  &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/* How much is in a bucket by now? */
static double
filled(const Bucket *bucket, int per_second, int size, TimestampTz now)
{
	double		tokens = Min(bucket->tokens, (double) size);

	if (now > bucket->filled_at)
		tokens = Min((double) size,
					 tokens + (double) (now - bucket->filled_at) * per_second / USECS_PER_SEC);
	return tokens;
}

/*
 * Make room for a bucket
 *
 * One that time has refilled says no more than a new one. When there is none,
 * the one that will be full first goes: its workspace gets a little too much,
 * while a bucket that takes hours to fill would else keep another workspace
 * from sending at all.
 */
static void
make_room(LimiterKind kind, TimestampTz now)
{
	HASH_SEQ_STATUS status;
	Bucket	   *bucket;
	Bucket	   *first = NULL;
	double		least = 0;
	bool		dropped = false;

	hash_seq_init(&status, limiter_hashes[kind]);
	while ((bucket = hash_seq_search(&status)) != NULL)
	{
		double		tokens = filled(bucket, bucket->per_second, bucket->size, now);
		double		seconds = (bucket->size - tokens) / bucket->per_second;

		if (seconds <= 0)
		{
			(void) hash_search(limiter_hashes[kind], &bucket->key, HASH_REMOVE, NULL);
			dropped = true;
		}
		else if (first == NULL || seconds < least)
		{
			first = bucket;
			least = seconds;
		}
	}
	if (!dropped && first != NULL)
		(void) hash_search(limiter_hashes[kind], &first->key, HASH_REMOVE, NULL);
}

/* Take one from a bucket that refills so fast, and holds so many */
static bool
take(LimiterKind kind, int32 workspace_id, int per_second, int size)
{
	HTAB	   *hash = limiter_hashes[kind];
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
	bucket = hash_search(hash, &key, HASH_ENTER_NULL, &found);
	if (bucket == NULL)
	{
		make_room(kind, now);
		bucket = hash_search(hash, &key, HASH_ENTER_NULL, &found);
	}
	if (bucket != NULL)
	{
		bucket->tokens = found ? filled(bucket, per_second, size, now) : size;

		/*
		 * A clock that was set back refills nothing, but must not stop it for
		 * long
		 */
		bucket->filled_at = now;
		bucket->per_second = per_second;
		bucket->size = size;
		if (bucket->tokens >= 1.0)
		{
			bucket->tokens -= 1.0;
			taken = true;
		}
	}
	LWLockRelease(*limiter_lock);
	return taken;
}

/* Take one send */
bool
limiter_take(int32 workspace_id, int per_second, int burst, int *retry_after)
{
	/* An empty bucket has one again after 1 / per_second of a second */
	*retry_after = 1;
	return take(LIMITER_SENDS, workspace_id, per_second, burst);
}

/* Look into a bucket */
void
limiter_look(int32 workspace_id, int per_second, int burst, int *left, double *full_after)
{
	BucketKey	key;
	Bucket	   *bucket;
	double		tokens = burst;

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.workspace_id = workspace_id;

	LWLockAcquire(*limiter_lock, LW_SHARED);
	bucket = hash_search(limiter_hashes[LIMITER_SENDS], &key, HASH_FIND, NULL);
	if (bucket != NULL)
		tokens = filled(bucket, per_second, burst, GetCurrentTimestamp());
	LWLockRelease(*limiter_lock);
	*left = (int) tokens;
	*full_after = (burst - tokens) / per_second;
}

/* Take one job, or raise */
void
limiter_take_job(int32 workspace_id)
{
	if (!take(LIMITER_JOBS, workspace_id, JOBS_PER_SECOND, JOBS_AT_ONCE))
		error_raise(OTP_RATE_LIMIT_EXCEEDED, "too many test webhooks, replays, changes of endpoints and requests about templates",
					"Wait for the seconds of retry_after. A workspace may have 60 at once, and 2 per second.",
					1, "jobs_per_second");
}
