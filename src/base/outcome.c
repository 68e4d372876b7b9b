/*-------------------------------------------------------------------------
 *
 * outcome.c
 *	  Whose first message has an outcome: news from the senders to the
 *	  listeners, in shared memory.
 *
 * One ring for all databases, and one lock. A sender writes there only while
 * somebody listens in its database, which it reads from a counter:
 *
 *		listener					sender
 *		counter + 1					commit
 *		look at the tables			counter > 0?  write, set latches
 *
 * Both are full barriers: when the sender finds 0, the listener's look has yet
 * to come, and sees what was committed. How far a listener has read is in its
 * own memory. So nothing is left behind by one that dies but its place, and a
 * crash makes all of it anew.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"

#include "base/outcome.h"

/*
 * The last so many are kept: some turns of the busiest sender, and one second
 * of it for those who are not woken, because the news is another database's.
 */
#define RING_SIZE 8192

/* Databases share counters by their hash; a wrong guess costs some writing */
#define COUNTERS 64

typedef struct News
{
	Oid			database;
	pg_uuid_t	id;
} News;

typedef struct Listener
{
	Oid			database;		/* InvalidOid: free */
	PGPROC	   *proc;
} Listener;

typedef struct Outcomes
{
	LWLock		lock;
	pg_atomic_uint32 listening[COUNTERS];
	pg_atomic_uint64 posted;	/* ever; the next goes to this modulo
								 * RING_SIZE */
	News		ring[RING_SIZE];
	int			nlisteners;
	Listener	listeners[FLEXIBLE_ARRAY_MEMBER];
} Outcomes;

/* NULL without shared_preload_libraries */
static Outcomes *outcomes = NULL;

/* This process as a listener: its place, and what it reads next */
static Listener *my_place = NULL;
static uint64 my_next;

/* Give the size of shared memory: a listener is a background worker */
Size
outcome_shmem_size(void)
{
	return add_size(offsetof(Outcomes, listeners),
					mul_size(max_worker_processes, sizeof(Listener)));
}

/* Make or find shared memory */
void
outcome_shmem_init(void)
{
	bool		found;

	outcomes = ShmemInitStruct("otp outcomes", outcome_shmem_size(), &found);
	if (!found)
	{
		memset(outcomes, 0, outcome_shmem_size());
		LWLockInitialize(&outcomes->lock, LWLockNewTrancheId());
		for (int i = 0; i < COUNTERS; i++)
			pg_atomic_init_u32(&outcomes->listening[i], 0);
		pg_atomic_init_u64(&outcomes->posted, 0);
		outcomes->nlisteners = max_worker_processes;
	}
	LWLockRegisterTranche(outcomes->lock.tranche, "OtpOutcomes");
}

/* Give the counter of this database */
static pg_atomic_uint32 *
my_counter(void)
{
	return &outcomes->listening[murmurhash32((uint32) MyDatabaseId) % COUNTERS];
}

/* Tell who listens here */
void
outcome_post(const pg_uuid_t *ids, int n)
{
	bool		heard = false;
	uint64		next;

	if (outcomes == NULL || n == 0)
		return;
	pg_memory_barrier();
	if (pg_atomic_read_u32(my_counter()) == 0)
		return;

	LWLockAcquire(&outcomes->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outcomes->nlisteners; i++)
		heard = heard || outcomes->listeners[i].database == MyDatabaseId;
	if (heard)
	{
		next = pg_atomic_read_u64(&outcomes->posted);
		for (int i = 0; i < n; i++)
		{
			News	   *news = &outcomes->ring[next++ % RING_SIZE];

			news->database = MyDatabaseId;
			news->id = ids[i];
		}
		pg_atomic_write_u64(&outcomes->posted, next);
		for (int i = 0; i < outcomes->nlisteners; i++)
		{
			if (outcomes->listeners[i].database == MyDatabaseId)
				SetLatch(&outcomes->listeners[i].proc->procLatch);
		}
	}
	LWLockRelease(&outcomes->lock);
}

/* Stop at exit */
static void
stop_at_exit(int code, Datum arg)
{
	outcome_listen(false);
}

/* Begin or end to listen */
void
outcome_listen(bool wait)
{
	static bool exit_registered = false;

	if (outcomes == NULL || wait == (my_place != NULL))
		return;
	if (!exit_registered)
	{
		before_shmem_exit(stop_at_exit, (Datum) 0);
		exit_registered = true;
	}

	LWLockAcquire(&outcomes->lock, LW_EXCLUSIVE);
	if (wait)
	{
		for (int i = 0; i < outcomes->nlisteners && my_place == NULL; i++)
		{
			if (outcomes->listeners[i].database == InvalidOid)
				my_place = &outcomes->listeners[i];
		}

		/* There is a place for each process that may be one of us */
		if (my_place != NULL)
		{
			my_place->database = MyDatabaseId;
			my_place->proc = MyProc;
			my_next = pg_atomic_read_u64(&outcomes->posted);
			pg_atomic_fetch_add_u32(my_counter(), 1);
		}
	}
	else
	{
		pg_atomic_fetch_sub_u32(my_counter(), 1);
		my_place->database = InvalidOid;
		my_place->proc = NULL;
		my_place = NULL;
	}
	LWLockRelease(&outcomes->lock);
}

/* Take what is new */
int
outcome_take(pg_uuid_t *ids, int max, bool *missed)
{
	uint64		posted;
	int			n = 0;

	*missed = false;
	if (my_place == NULL || pg_atomic_read_u64(&outcomes->posted) == my_next)
		return 0;

	LWLockAcquire(&outcomes->lock, LW_SHARED);
	posted = pg_atomic_read_u64(&outcomes->posted);
	if (posted - my_next > RING_SIZE)
	{
		*missed = true;
		my_next = posted - RING_SIZE;
	}
	for (; my_next != posted && n < max; my_next++)
	{
		const News *news = &outcomes->ring[my_next % RING_SIZE];

		if (news->database == MyDatabaseId)
			ids[n++] = news->id;
	}
	LWLockRelease(&outcomes->lock);
	return n;
}
