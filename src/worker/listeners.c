/*-------------------------------------------------------------------------
 *
 * listeners.c
 *	  Who should listen where.
 *
 * The port and the number of processes can be set for the server or for one
 * database. A process does not see that ALTER DATABASE has changed what it was
 * started with. So the sender looks into the catalog now and then, and tells
 * the launcher, who makes a number of all that concerns a database's
 * listeners; those who were started with another one leave, and are started
 * anew.
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
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/listeners.h"
#include "base/roster.h"
#include "worker/sender.h"
#include "worker/upkeep.h"
#include "worker/worker.h"

#define SETTINGS_PREFIX "otp.http_"

/* How often the sender looks */
#define LOOK_MS 2000

/* Most listeners of one database, as otp.http_workers says */
#define WORKERS_MAX 32

/* One that leaves sooner than this has not got far: the next comes after 1 s, 2 s, 4 s ... a minute. */
#define SHORT_LIFE_MS 5000
#define CRASH_DELAY_MS 1000
#define CRASH_DELAY_MAX_MS 60000

/* How often to look while one is starting or leaving */
#define BUSY_INTERVAL_MS 200

/* One process that should listen */
typedef struct Wanted
{
	BackgroundWorkerHandle *handle; /* NULL: not there */
	TimestampTz asked_at;
	TimestampTz not_before;
	int			crashes;		/* in a row */
	uint32		settings;		/* that it was started with */
} Wanted;

/* What runs for a database */
typedef struct DatabaseListeners
{
	Oid			database;		/* hash key */
	Wanted		wanted[WORKERS_MAX];
} DatabaseListeners;

static HTAB *table = NULL;
static bool told_no_slot = false;
#ifndef OTP_WITH_HTTP
static bool told_no_library = false;
#endif

/* ---- the sender's part ---- */

/* Take in what is set for all databases, or for this one, which goes before */
static void
take_settings(RosterHttp *http, ArrayType *settings, bool own)
{
	Datum	   *items;
	bool	   *nulls;
	int			n;

	deconstruct_array(settings, TEXTOID, -1, false, TYPALIGN_INT, &items, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *item = nulls[i] ? NULL : TextDatumGetCString(items[i]);

		if (item == NULL || pg_strncasecmp(item, SETTINGS_PREFIX, strlen(SETTINGS_PREFIX)) != 0)
			continue;
		http->hash = http->hash * 31 + hash_bytes((unsigned char *) item, strlen(item)) + own;
		if (pg_strncasecmp(item, SETTINGS_PREFIX "port=", strlen(SETTINGS_PREFIX "port=")) == 0 && (own ||
																									http->port < 0))
			http->port = atoi(strchr(item,
									 '=') + 1);
		if (pg_strncasecmp(item, SETTINGS_PREFIX "workers=", strlen(SETTINGS_PREFIX "workers=")) == 0 &&
			(own || http->workers < 0))
			http->workers = atoi(strchr(item, '=') + 1);
	}
}

/* Read the catalog; in a transaction */
static void
read_settings(void *arg)
{
	RosterHttp *http = arg;
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	HeapTuple	tuple;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_db_role_setting form = (Form_pg_db_role_setting) GETSTRUCT(tuple);
		bool		isnull;
		Datum		settings;

		if (OidIsValid(form->setrole) || (OidIsValid(form->setdatabase) && form->setdatabase != MyDatabaseId))
			continue;
		settings = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig, RelationGetDescr(rel), &isnull);
		if (!isnull)
			take_settings(http, DatumGetArrayTypeP(settings), OidIsValid(form->setdatabase));
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
}

/*
 * Look what ALTER DATABASE and ALTER ROLE ALL have set
 *
 * The launcher would be the one to do it, but is in no database, and this
 * shared catalog is none of those that can be read from there.
 */
TimestampTz
listeners_turn(TimestampTz now)
{
	RosterHttp	http;

	memset(&http, 0, sizeof(http));
	http.port = http.workers = -1;
	http.known = true;
	if (turn_do(read_settings, &http, NULL))
		roster_report_http(&http);
	return TimestampTzPlusMilliseconds(now, LOOK_MS);
}

/* ---- the launcher's part ---- */

/* Find or make a database's entry */
static DatabaseListeners *
entry_of(Oid database)
{
	DatabaseListeners *d;
	bool		found;

	if (table == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(DatabaseListeners);
		table = hash_create("otp listeners", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	d = hash_search(table, &database, HASH_ENTER, &found);
	if (!found)
		memset((char *) d + sizeof(Oid), 0, sizeof(DatabaseListeners) - sizeof(Oid));
	return d;
}

/* Ask the postmaster for a listener */
static bool
start_listener(Oid database, const char *name, int number, uint32 settings, Wanted *w)
{
	BackgroundWorker worker;
	ListenerStart start;
	MemoryContext old;
	bool		started;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	memset(&start, 0, sizeof(start));
	start.database = database;
	start.number = number;
	start.settings = settings;
	memcpy(worker.bgw_extra, &start, sizeof(start));
	strlcpy(worker.bgw_extra + sizeof(start), name, BGW_EXTRALEN - sizeof(start));
	strlcpy(worker.bgw_library_name, WORKER_LIBRARY, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, WORKER_LISTENER_MAIN, BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "otp listener %d for %s", number + 1, name);
	strlcpy(worker.bgw_type, "otp listener", BGW_MAXLEN);

	old = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&worker, &w->handle);
	MemoryContextSwitchTo(old);
	if (!started)
		w->handle = NULL;
	w->asked_at = GetCurrentTimestamp();
	w->settings = settings;
	return started;
}

/* Has it gone? Then say when another may come */
static bool
has_gone(Wanted *w, TimestampTz now)
{
	pid_t		pid;
	long		delay = CRASH_DELAY_MS;

	if (GetBackgroundWorkerPid(w->handle, &pid) != BGWH_STOPPED)
		return false;
	pfree(w->handle);
	w->handle = NULL;
	if (now - w->asked_at >= SHORT_LIFE_MS * INT64CONST(1000))
	{
		w->crashes = 0;
		w->not_before = 0;
		return true;
	}

	/* The first time may have been the settings that have changed */
	if (w->crashes++ == 0)
		return true;
	for (int i = 2; i < w->crashes && delay < CRASH_DELAY_MAX_MS; i++)
		delay *= 2;
	w->not_before = TimestampTzPlusMilliseconds(now, Min(delay, CRASH_DELAY_MAX_MS));
	return true;
}

/* Start what should listen for a database */
long
listeners_supply(Oid database, const char *name, const RosterHttp *http, TimestampTz now)
{
	DatabaseListeners *d = table != NULL ? hash_search(table, &database, HASH_FIND, NULL) : NULL;
	int			port = http != NULL ? (http->port >= 0 ? http->port : otp_http_port) : 0;
	int			workers = http != NULL && http->workers > 0 ? http->workers : otp_http_workers;
	uint32		settings = 0;
	long		timeout = PG_INT32_MAX;

	workers = Min(workers, WORKERS_MAX);
	if (port > 0)
		settings = (http->hash ^ murmurhash32(port * 64 + workers)) | 1;
	if (settings == 0 && d == NULL)
		return timeout;

#ifndef OTP_WITH_HTTP
	if (!told_no_library)
		ereport(LOG,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("otp.http_port is set, but otp was built without its HTTP listener"),
				 errhint("Build it with libmicrohttpd, without WITH_HTTP=no.")));
	told_no_library = true;
	return timeout;
#endif

	d = entry_of(database);
	listeners_want(database, settings);
	for (int i = 0; i < WORKERS_MAX; i++)
	{
		Wanted	   *w = &d->wanted[i];

		if (w->handle != NULL && !has_gone(w, now))
		{
			/* It leaves by itself, if it has to */
			if (w->settings != settings || i >= workers)
				timeout = Min(timeout, BUSY_INTERVAL_MS);
			continue;
		}
		if (settings == 0 || i >= workers)
		{
			w->crashes = 0;
			w->not_before = 0;
			continue;
		}
		if (w->settings != settings)
			w->not_before = 0;
		if (w->not_before > now)
		{
			timeout = Min(timeout, TimestampDifferenceMilliseconds(now, w->not_before) + 1);
			continue;
		}
		if (!start_listener(database, name, i, settings, w))
		{
			if (!told_no_slot)
				ereport(LOG,
						(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						 errmsg("there is no worker slot for a listener of database \"%s\"", name),
						 errhint("Set max_worker_processes higher.")));
			told_no_slot = true;
			break;
		}
	}
	return timeout;
}

/* A database is no more */
void
listeners_drop(Oid database)
{
	DatabaseListeners *d = table != NULL ? hash_search(table, &database, HASH_FIND, NULL) : NULL;

	listeners_forget(database);
	if (d == NULL)
		return;
	for (int i = 0; i < WORKERS_MAX; i++)
		if (d->wanted[i].handle != NULL)
			pfree(d->wanted[i].handle);
	hash_search(table, &database, HASH_REMOVE, NULL);
}
