/*-------------------------------------------------------------------------
 *
 * listeners.c
 *	  Who listens for which database, and what comes of it.
 *
 * A place is a database's listener with its number. It outlives the process,
 * so that figures go on where the one before has left off; it goes with the
 * database. Figures are written by the place's process alone, and read as
 * they come.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/listeners.h"

typedef struct Place
{
	ListenerState state;
	PGPROC	   *proc;
	uint32		settings;		/* that it was started with */
	uint32		wanted;			/* that it should have been */
	ListenerFigures figures;
} Place;

typedef struct Places
{
	LWLock		lock;
	Place		places[LISTENERS_MAX];
} Places;

/* NULL without shared_preload_libraries */
static Places *places = NULL;

/* This process as a listener */
static Place *mine = NULL;

/* Give the size of shared memory */
Size
listeners_shmem_size(void)
{
	return sizeof(Places);
}

/* Make or find shared memory */
void
listeners_shmem_init(void)
{
	bool		found;

	places = ShmemInitStruct("otp listeners", sizeof(Places), &found);
	if (!found)
	{
		memset(places, 0, sizeof(Places));
		LWLockInitialize(&places->lock, LWLockNewTrancheId());
	}
	LWLockRegisterTranche(places->lock.tranche, "OtpListeners");
}

/* Copy the places of a database */
int
listeners_snapshot(Oid database, ListenerState *states, int max)
{
	int			n = 0;

	if (places == NULL)
		return 0;
	LWLockAcquire(&places->lock, LW_SHARED);
	for (int i = 0; i < LISTENERS_MAX && n < max; i++)
		if (places->places[i].state.database == database)
			states[n++] = places->places[i].state;
	LWLockRelease(&places->lock);
	return n;
}

/* Sum up figures */
void
listeners_figures(Oid database, ListenerFigures *sum)
{
	memset(sum, 0, sizeof(ListenerFigures));
	if (places == NULL)
		return;
	LWLockAcquire(&places->lock, LW_SHARED);
	for (int i = 0; i < LISTENERS_MAX; i++)
	{
		const ListenerFigures *f = &places->places[i].figures;

		if (places->places[i].state.database != database)
			continue;
		for (int route = 0; route < FIGURE_ROUTES; route++)
		{
			for (int class = 0; class < FIGURE_CLASSES; class++)
				sum->requests[route][class] += f->requests[route][class];
			for (int bucket = 0; bucket < FIGURE_BUCKETS; bucket++)
				sum->buckets[route][bucket] += f->buckets[route][bucket];
			sum->seconds_sum[route] += f->seconds_sum[route];
		}
		sum->accepted += f->accepted;
		sum->expired += f->expired;
		sum->connections += f->connections;
		sum->waiting += f->waiting;
	}
	LWLockRelease(&places->lock);
}

/* Wake listeners */
int
listeners_wake(Oid database, pid_t *pids, int max)
{
	int			n = 0;

	if (places == NULL)
		return 0;
	LWLockAcquire(&places->lock, LW_SHARED);
	for (int i = 0; i < LISTENERS_MAX; i++)
	{
		Place	   *p = &places->places[i];

		if (p->state.database != database || p->state.pid == 0)
			continue;
		if (n < max)
			pids[n++] = p->state.pid;
		SetLatch(&p->proc->procLatch);
	}
	LWLockRelease(&places->lock);
	return n;
}

/* A database is no more */
void
listeners_forget(Oid database)
{
	LWLockAcquire(&places->lock, LW_EXCLUSIVE);
	for (int i = 0; i < LISTENERS_MAX; i++)
	{
		Place	   *p = &places->places[i];

		if (p->state.database == database && p->state.pid == 0)
			memset(p, 0, sizeof(Place));
	}
	LWLockRelease(&places->lock);
}

/* Say what is wanted */
void
listeners_want(Oid database, uint32 settings)
{
	LWLockAcquire(&places->lock, LW_EXCLUSIVE);
	for (int i = 0; i < LISTENERS_MAX; i++)
	{
		Place	   *p = &places->places[i];

		if (p->state.database != database)
			continue;
		if (p->wanted != settings && p->state.pid != 0)
			SetLatch(&p->proc->procLatch);
		p->wanted = settings;

		/* Of what nobody wants, there is nothing to complain about */
		if (settings == 0 && p->state.pid == 0)
			p->state.last_error_at = 0;
	}
	LWLockRelease(&places->lock);
}

/* ---- a listener ---- */

/* Give the place back */
static void
leave(int code, Datum arg)
{
	LWLockAcquire(&places->lock, LW_EXCLUSIVE);
	mine->state.pid = 0;
	mine->state.listening = false;
	mine->proc = NULL;
	mine->figures.connections = 0;
	mine->figures.waiting = 0;
	LWLockRelease(&places->lock);
}

/* Take a place */
bool
listeners_enter(Oid database, int number, uint32 settings)
{
	Place	   *place = NULL;

	LWLockAcquire(&places->lock, LW_EXCLUSIVE);
	for (int i = 0; i < LISTENERS_MAX; i++)
	{
		Place	   *p = &places->places[i];

		if (p->state.database == database && p->state.number == number)
		{
			place = p;
			break;
		}
		if (p->state.database == InvalidOid && place == NULL)
			place = p;
	}
	if (place != NULL && place->state.pid != 0)
		place = NULL;
	if (place != NULL)
	{
		place->state.database = database;
		place->state.number = number;
		place->state.pid = MyProcPid;
		place->state.listening = false;
		place->state.port = 0;
		place->state.since = GetCurrentTimestamp();
		place->proc = MyProc;
		place->settings = place->wanted = settings;
	}
	LWLockRelease(&places->lock);
	mine = place;
	if (mine != NULL)
		before_shmem_exit(leave, (Datum) 0);
	return mine != NULL;
}

/* Are we still wanted? */
bool
listeners_wanted(void)
{
	return mine->settings == mine->wanted;
}

/* Claim a port */
Oid
listeners_claim_port(int port)
{
	Oid			whose = InvalidOid;

	LWLockAcquire(&places->lock, LW_EXCLUSIVE);
	for (int i = 0; i < LISTENERS_MAX; i++)
	{
		const ListenerState *s = &places->places[i].state;

		if (s->pid != 0 && s->port == port && s->database != mine->state.database)
			whose = s->database;
	}
	if (whose == InvalidOid)
		mine->state.port = port;
	LWLockRelease(&places->lock);
	return whose;
}

/* Does another process of ours listen there? */
bool
listeners_share_port(int port)
{
	bool		share = false;

	LWLockAcquire(&places->lock, LW_SHARED);
	for (int i = 0; i < LISTENERS_MAX; i++)
	{
		const Place *p = &places->places[i];

		if (p != mine && p->state.pid != 0 && p->state.port == port && p->state.listening &&
			p->state.database == mine->state.database)
			share = true;
	}
	LWLockRelease(&places->lock);
	return share;
}

/* Tell how it goes */
void
listeners_report(const char *addresses, const char *error)
{
	LWLockAcquire(&places->lock, LW_EXCLUSIVE);
	mine->state.listening = error == NULL;
	strlcpy(mine->state.addresses, addresses, LISTENER_ADDRESSES_SIZE);
	mine->state.last_error_at = error != NULL ? GetCurrentTimestamp() : 0;
	strlcpy(mine->state.last_error, error != NULL ? error : "", LISTENER_ERROR_SIZE);
	if (error != NULL)
		mine->state.port = 0;
	LWLockRelease(&places->lock);
}

/* Give the figures */
ListenerFigures *
listeners_mine(void)
{
	return &mine->figures;
}
