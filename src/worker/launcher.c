/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Starts a sender in every database that has the extension.
 *
 * The launcher sees the shared catalogs only, so it cannot tell which
 * databases have the extension: it sends a sender everywhere once, and one
 * that does not find the extension leaves at once. CREATE EXTENSION announces
 * its database; then it is looked at again.
 *
 * The launcher holds no state that a restart of it would lose. What runs is
 * in the roster, written by those who run; here is only what was asked of
 * the postmaster and has not shown up yet.
 *
 * When worker slots are short, senders that have nothing to do are asked to
 * yield to databases that have; when all have something to do, the one that
 * has been at it longest, after a quantum. A database without a sender is
 * brought one when somebody commits a send there, when the sender before it
 * left something due, or now and then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/guard.h"
#include "base/ledger.h"
#include "base/roster.h"
#include "worker/worker.h"

/* How often pg_database is read, when nobody calls. */
#define SCAN_INTERVAL_MS 5000

/* How often to look while databases wait for a worker slot. */
#define SHORTAGE_INTERVAL_MS 200

/* How long a busy sender keeps its worker slot while others wait for one. */
#define QUANTUM_MS 2000

/* How long a database without need goes without a sender looking in. */
#define REST_MS 60000

/* Databases that are looked at for the first time, at once. */
#define MAX_PROBES 4

/* A sender that crashes is brought back after 1 s, 2 s, ... a minute. */
#define CRASH_DELAY_MS 1000
#define CRASH_DELAY_MAX_MS 60000

/* A sender that lived this long has got over its crashes. */
#define CRASH_FORGIVEN_MS 60000

/* One database that could have a sender */
typedef struct Candidate
{
	Oid			database;		/* hash key */
	char		name[NAMEDATALEN];
	bool		exists;			/* seen by the last scan */
	bool		connectable;
	bool		absent;			/* looked at: the extension is not there */
	BackgroundWorkerHandle *handle; /* asked for; NULL when not */
	TimestampTz asked_at;		/* when it was asked for */
	bool		was_running;	/* the worker asked for has shown up */
	TimestampTz not_before;		/* back-off after a crash */
	TimestampTz left_at;		/* when the last one went; 0: none has been */
	bool		needy;			/* in this round: has something to do */
} Candidate;

static HTAB *candidates;
static RosterDatabase *databases;	/* copy of the roster, for one round */
static int	ndatabases;
static int	reported_missing = 0;
static bool reported_no_room = false;

/* Have the postmaster start the launcher */
void
launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, WORKER_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, WORKER_LAUNCHER_MAIN, BGW_MAXLEN);
	strlcpy(worker.bgw_name, "otp launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "otp launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* Find a database's entry in the roster's copy */
static RosterDatabase *
in_roster(Oid database)
{
	for (int i = 0; i < ndatabases; i++)
	{
		if (databases[i].database == database)
			return &databases[i];
	}
	return NULL;
}

/* Read pg_database */
static void
scan_databases(void)
{
	HASH_SEQ_STATUS seq;
	Candidate  *c;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	hash_seq_init(&seq, candidates);
	while ((c = hash_seq_search(&seq)) != NULL)
		c->exists = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		bool		found;

		c = hash_search(candidates, &form->oid, HASH_ENTER, &found);
		if (!found)
		{
			memset((char *) c + sizeof(Oid), 0, sizeof(Candidate) - sizeof(Oid));
			c->database = form->oid;
		}
		strlcpy(c->name, NameStr(form->datname), NAMEDATALEN);
		c->exists = true;
		c->connectable = form->datallowconn && form->datconnlimit != DATCONNLIMIT_INVALID_DB;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/* Forget databases that are gone */
static void
forget_dropped(void)
{
	HASH_SEQ_STATUS seq;
	Candidate  *c;

	hash_seq_init(&seq, candidates);
	while ((c = hash_seq_search(&seq)) != NULL)
	{
		Oid			database = c->database;

		if (c->exists)
			continue;
		if (c->handle != NULL)
			pfree(c->handle);
		roster_forget(database);
		ledger_forget_database(database);
		guard_forget_database(database);
		listeners_drop(database);
		hash_search(candidates, &database, HASH_REMOVE, NULL);
	}

	/* In the roster since before the scan, which did not see it */
	for (int i = 0; i < ndatabases; i++)
	{
		if (hash_search(candidates, &databases[i].database, HASH_FIND, NULL) == NULL)
			roster_forget(databases[i].database);
	}
}

/* Take in what became of the workers asked for */
static void
note_comings_and_goings(TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	Candidate  *c;

	hash_seq_init(&seq, candidates);
	while ((c = hash_seq_search(&seq)) != NULL)
	{
		RosterDatabase *d = in_roster(c->database);
		pid_t		pid;

		/* Announced since: look again */
		if (d != NULL && d->state != ROSTER_ABSENT)
			c->absent = false;

		if (d != NULL && d->sender_pid != 0)
		{
			c->was_running = true;
			if (d->crashes > 0 && now > d->started_at + CRASH_FORGIVEN_MS * INT64CONST(1000))
				roster_set_crashes(c->database, 0);
			continue;
		}
		if (c->handle != NULL && GetBackgroundWorkerPid(c->handle, &pid) != BGWH_STOPPED)
			continue;			/* still starting, or already leaving */
		if (c->handle == NULL && !c->was_running)
			continue;

		/* It may have come and gone since we last looked */
		if (d != NULL && c->handle != NULL && d->started_at >= c->asked_at)
			c->was_running = true;

		/*
		 * One has left. It left clean when it says so; one that never showed
		 * up could not start.
		 */
		if (d != NULL)
		{
			bool		crashed = !c->was_running || !d->left_clean;

			if (crashed)
			{
				int			crashes = d->crashes + 1;
				long		delay = CRASH_DELAY_MS;

				for (int i = 1; i < crashes && delay < CRASH_DELAY_MAX_MS; i++)
					delay *= 2;
				c->not_before = TimestampTzPlusMilliseconds(now, Min(delay, CRASH_DELAY_MAX_MS));
				roster_set_crashes(c->database, crashes);
			}
			else
			{
				c->not_before = 0;
				if (c->was_running && d->crashes > 0)
					roster_set_crashes(c->database, 0);
			}
		}
		if (c->handle != NULL)
			pfree(c->handle);
		c->handle = NULL;
		c->was_running = false;
		c->left_at = now;

		/* It did not find the extension: give the slot to others */
		if (d != NULL && d->state == ROSTER_ABSENT && roster_forget_absent(c->database))
			c->absent = true;
	}
}

/* Ask the postmaster for a sender */
static bool
start_sender(Candidate *c)
{
	BackgroundWorker worker;
	MemoryContext old;
	bool		started;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;

	/* We do it, with a back-off, and never for a database that is gone */
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = ObjectIdGetDatum(c->database);
	strlcpy(worker.bgw_library_name, WORKER_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, WORKER_SENDER_MAIN, BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "otp sender for %s", c->name);
	strlcpy(worker.bgw_type, "otp sender", BGW_MAXLEN);

	c->asked_at = GetCurrentTimestamp();
	old = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&worker, &c->handle);
	MemoryContextSwitchTo(old);
	if (!started)
		c->handle = NULL;
	c->was_running = false;
	return started;
}

/* Does a database need a sender now? */
static bool
is_needy(const Candidate *c, const RosterDatabase *d, TimestampTz now)
{
	if (d == NULL || d->state == ROSTER_UNKNOWN)
		return true;
	if (d->woken || d->report.backlog || ledger_has_entries(d->database))
		return true;
	if (d->report.next_due != 0 && d->report.next_due <= now)
		return true;

	/* What it left in flight when it was hurried away */
	if (d->report.in_flight > 0)
		return true;
	return now >= TimestampTzPlusMilliseconds(c->left_at, REST_MS);
}

/* Pick a sender that should yield */
static RosterDatabase *
pick_victim(TimestampTz now)
{
	RosterDatabase *victim = NULL;
	bool		victim_idle = false;

	for (int i = 0; i < ndatabases; i++)
	{
		RosterDatabase *d = &databases[i];
		bool		idle;

		if (d->sender_pid == 0 || d->yielding || d->state == ROSTER_UNKNOWN)
			continue;
		idle = d->report.last_turn != 0 && d->report.in_flight == 0 && !d->report.backlog && !d->woken &&
			!ledger_has_entries(d->database) &&
			(d->report.next_due == 0 ||
			 d->report.next_due > TimestampTzPlusMilliseconds(now, 1000));
		if (!idle && now < TimestampTzPlusMilliseconds(d->started_at, QUANTUM_MS))
			continue;
		if (victim == NULL || (idle && !victim_idle) ||
			(idle == victim_idle && d->started_at < victim->started_at))
		{
			victim = d;
			victim_idle = idle;
		}
	}
	return victim;
}

/* Order by need, then by how long they have been without a sender */
static int
compare_turns(const void *a, const void *b)
{
	const Candidate *x = *(Candidate *const *) a;
	const Candidate *y = *(Candidate *const *) b;

	if (x->needy != y->needy)
		return x->needy ? -1 : 1;
	return x->left_at < y->left_at ? -1 : x->left_at > y->left_at;
}

/* Start what should run; gives the time to wait */
static long
supply_senders(TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	Candidate  *c;
	long		timeout = SCAN_INTERVAL_MS;
	int			probes = 0;
	int			running = 0;
	int			yielding = 0;
	int			missing = 0;
	int			waiting = 0;
	bool		full = false;
	Candidate **order;
	int			norder = 0;

	hash_seq_init(&seq, candidates);
	while ((c = hash_seq_search(&seq)) != NULL)
	{
		RosterDatabase *d = in_roster(c->database);

		if (c->handle != NULL || (d != NULL && d->sender_pid != 0))
		{
			running++;
			if (d == NULL || d->state == ROSTER_UNKNOWN)
				probes++;
			if (d != NULL && d->yielding)
				yielding++;

			/* Closed to connections: on the way to be dropped, most likely */
			if (!c->connectable && d != NULL && d->sender_pid != 0 && !d->yielding)
				roster_ask_to_yield(c->database);
		}
	}

	/* First those with something to do, then, if there is room, the others */
	order = palloc((hash_get_num_entries(candidates) + 1) * sizeof(Candidate *));
	hash_seq_init(&seq, candidates);
	while ((c = hash_seq_search(&seq)) != NULL)
	{
		RosterDatabase *d = in_roster(c->database);

		if (!c->connectable || c->absent || c->handle != NULL ||
			(d != NULL && (d->sender_pid != 0 || d->paused)))
			continue;
		if (c->not_before > now)
		{
			timeout = Min(timeout, TimestampDifferenceMilliseconds(now, c->not_before) + 1);
			continue;
		}
		c->needy = is_needy(c, d, now);
		if (!c->needy && d->report.next_due > now)
			timeout = Min(timeout, TimestampDifferenceMilliseconds(now, d->report.next_due) + 1);
		order[norder++] = c;
	}
	qsort(order, norder, sizeof(Candidate *), compare_turns);

	for (int i = 0; i < norder; i++)
	{
		RosterDatabase *d = in_roster(order[i]->database);
		bool		probe = d == NULL || d->state == ROSTER_UNKNOWN;

		c = order[i];
		if (probe && probes >= MAX_PROBES)
			continue;			/* a probe that ends wakes us */
		if (d == NULL && !roster_add(c->database))
		{
			if (!reported_no_room)
				ereport(LOG,
						(errmsg("there are more databases that use otp than otp.max_databases (%d)",
								otp_max_databases),
						 errhint("Set otp.max_databases higher, and restart the server.")));
			reported_no_room = true;
			continue;
		}
		if (!full && start_sender(c))
		{
			running++;
			if (probe)
				probes++;
			if (d != NULL && d->starved)
				roster_set_starved(c->database, false);
			continue;
		}
		full = true;
		missing++;
		if (c->needy)
		{
			waiting++;
			if (d != NULL && !d->starved)
				roster_set_starved(c->database, true);
		}
	}
	pfree(order);

	/* As many go as there are waiting */
	for (; yielding < waiting; yielding++)
	{
		RosterDatabase *victim = pick_victim(now);

		if (victim == NULL)
			break;
		roster_ask_to_yield(victim->database);
		victim->yielding = true;
	}
	if (waiting > 0)
		timeout = Min(timeout, SHORTAGE_INTERVAL_MS);

	roster_set_missing_slots(missing);
	if (missing > reported_missing)
	{
		ereport(LOG,
				(errmsg("%d databases use otp, but there are worker slots for %d of them only",
						running + missing, running),
				 errhint("Set max_worker_processes to at least %d, or messages wait for their turn.",
						 max_worker_processes + missing)));
		reported_missing = missing;
	}
	return timeout;
}

/* Start the listeners that should run; gives the time to wait */
static long
supply_listeners(TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	Candidate  *c;
	long		timeout = SCAN_INTERVAL_MS;

	hash_seq_init(&seq, candidates);
	while ((c = hash_seq_search(&seq)) != NULL)
	{
		RosterDatabase *d = in_roster(c->database);

		if (d != NULL && d->state == ROSTER_PRESENT && !d->http.known)
			continue;			/* a sender will tell */
		timeout = Min(timeout, listeners_supply(c->database, c->name,
												d != NULL && d->state == ROSTER_PRESENT && !d->paused &&
												c->connectable ?
												&d->http : NULL, now));
	}
	return timeout;
}

/* The launcher */
void
otp_launcher_main(Datum arg)
{
	HASHCTL		ctl;
	TimestampTz next_scan = 0;
	uint32		wait_event;

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();

	if (!roster_launcher_enter())
	{
		ereport(LOG,
				(errmsg("another otp launcher is running")));
		proc_exit(1);
	}
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_activity(STATE_IDLE, NULL);

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Candidate);
	candidates = hash_create("otp databases", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	databases = MemoryContextAlloc(TopMemoryContext, otp_max_databases * sizeof(RosterDatabase));
	wait_event = compat_wait_event("OtpLauncher");

	for (;;)
	{
		TimestampTz now;
		long		timeout;
		bool		overflow;
		bool		rescan;

		/* Whoever sets the latch from here on has us look again */
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();

		/* Exit code 1 has the postmaster start us again, unless it shuts down */
		if (ShutdownRequestPending)
			proc_exit(1);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			next_scan = 0;
		}

		/* A database had no room to be announced in: look everywhere */
		roster_take_news(&overflow, &rescan);
		if (rescan)
			next_scan = 0;
		if (overflow)
		{
			HASH_SEQ_STATUS seq;
			Candidate  *c;

			hash_seq_init(&seq, candidates);
			while ((c = hash_seq_search(&seq)) != NULL)
				c->absent = false;
		}

		now = GetCurrentTimestamp();
		ndatabases = roster_snapshot(databases, otp_max_databases);
		for (int i = 0; i < ndatabases; i++)
		{
			/* Announced, and unknown to us */
			if (hash_search(candidates, &databases[i].database, HASH_FIND, NULL) == NULL)
				next_scan = 0;
		}
		if (now >= next_scan)
		{
			roster_drop_dead_pauses();
			scan_databases();
			forget_dropped();
			next_scan = TimestampTzPlusMilliseconds(now, SCAN_INTERVAL_MS);
			ndatabases = roster_snapshot(databases, otp_max_databases);
		}
		note_comings_and_goings(now);
		ndatabases = roster_snapshot(databases, otp_max_databases);
		timeout = supply_senders(now);
		timeout = Min(timeout, supply_listeners(now));
		timeout = Min(timeout, TimestampDifferenceMilliseconds(now, next_scan) + 1);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, wait_event);
	}
}
