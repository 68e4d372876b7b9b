/*-------------------------------------------------------------------------
 *
 * listener.c
 *	  Serves the HTTP API of one database.
 *
 * One loop, one wait for everything: the latch and the library's descriptors.
 * Each turn works on the network, then on the requests that have come in
 * whole, each in a short transaction of its own, then lets their answers go.
 * The network is never worked on inside a transaction.
 *
 * The transactions of a turn are flushed to disk together, before any of
 * their answers leaves.
 *
 * A process that has to change its settings leaves: it takes no more
 * connections, answers what is under way, and the launcher starts another.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <time.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/syncrep.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/listeners.h"
#include "base/owner.h"
#include "base/roster.h"
#include "listener/server.h"
#include "worker/settings.h"
#include "worker/worker.h"

/* Most requests that are worked on before the network is again */
#define TURN_REQUESTS 64

/* No request waits longer for a lock; then it is tried again, while others are served. */
#define LOCK_TIMEOUT "50ms"

/* How often connections are looked through, and whether we are still wanted */
#define LOOK_US (200 * INT64CONST(1000))

/* The port is not to be had: try again after 1 s, 2 s, 4 s ... half a minute */
#define RETRY_MS 1000
#define RETRY_MAX_MS 30000

/* Asked to go: how long answers may take to be read when the server stops or the database is paused, and else */
#define LEAVE_MS 300
#define LEAVE_CALMLY_MS 2000

/* The files of a certificate are looked at this often */
#define FILES_US (5 * USECS_PER_SEC)

static WaitEventSet *wait_set = NULL;
static uint32 wait_event;
static MemoryContext request_context;
static char *fingerprint;

/* Requests that are to be tried again */
static dlist_head again = DLIST_STATIC_INIT(again);

/* What the last commits need to be on disk for */
static XLogRecPtr unflushed = InvalidXLogRecPtr;

/* Those that have an answer which waits for that */
static dlist_head answered = DLIST_STATIC_INIT(answered);

/* Do what interrupts ask for, between transactions */
static void
take_interrupts(void)
{
	/* There is no statement to cancel */
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Must we go? */
static bool
must_leave(void)
{
	return ShutdownRequestPending || roster_is_away(MyDatabaseId);
}

/* Have our settings changed? */
static bool
is_outdated(TimestampTz now)
{
	static TimestampTz next_look = 0;
	MemoryContext old;
	char	   *current;
	bool		same;

	if (!listeners_wanted())
		return true;
	if (now < next_look)
		return false;
	next_look = now + FILES_US;
	old = MemoryContextSwitchTo(request_context);
	current = server_fingerprint();
	same = strcmp(current, fingerprint) == 0;
	MemoryContextSwitchTo(old);
	MemoryContextReset(request_context);
	return !same;
}

/* ---- requests ---- */

/* Answer that something went wrong; raises nothing */
static void
answer_failure(Request *r)
{
	static char enveloped[] = "{\"error\":{\"code\":\"internal_error\",\"message\":\"something went wrong\"}}";
	static char bare[] = "{\"code\":\"internal_error\",\"message\":\"something went wrong\",\"details\":null,\"hint\":null}";
	ApiAnswer	answer = {0};

	answer.status = 500;
	answer.body = r->envelope ? enveloped : bare;
	answer.length = strlen(answer.body);
	answer.reset_at = (int64) time(NULL);
	answer.retry_after = -1;
	request_answer_api(r, &answer);
}

/*
 * Work on a request
 *
 * Whatever goes wrong, it gets an answer: a 500 at the worst.
 */
static void
work_on(Request *r)
{
	int			configured = synchronous_commit;
	bool		together = configured > SYNCHRONOUS_COMMIT_OFF && SyncRepStandbyNames[0] == '\0';
	MemoryContext old = MemoryContextSwitchTo(request_context);

	r->again_at = 0;
	if (together)
		synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
	enable_timeout_after(STATEMENT_TIMEOUT, otp_http_timeout);
	PG_TRY();
	{
		route_request(r);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		disable_timeout(STATEMENT_TIMEOUT, false);
		QueryCancelPending = false;
		MemoryContextSwitchTo(request_context);
		errhidestmt(true);
		errhidecontext(true);
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		waits_remove(r);
		r->again_at = 0;
		answer_failure(r);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	disable_timeout(STATEMENT_TIMEOUT, false);
	synchronous_commit = configured;
	if (together && XactLastCommitEnd > unflushed)
		unflushed = XactLastCommitEnd;
	MemoryContextSwitchTo(old);
	MemoryContextReset(request_context);
}

/* Put a request where it belongs after it was worked on */
static void
file_request(Request *r)
{
	if (r->status != 0)
		dlist_push_tail(&answered, &r->node);
	else if (r->again_at != 0)
		dlist_push_tail(&again, &r->node);
	else if (!r->waiting)
	{
		answer_failure(r);
		dlist_push_tail(&answered, &r->node);
	}
}

/* Work on those that are there; true when there may be more */
static bool
work_on_requests(TimestampTz now)
{
	Request    *r;
	int			n = 0;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &again)
	{
		r = dlist_container(Request, node, iter.cur);
		if (r->again_at > now)
			continue;
		dlist_delete(&r->node);
		work_on(r);
		file_request(r);
		if (++n == TURN_REQUESTS)
			return true;
	}
	while (n++ < TURN_REQUESTS && (r = server_next()) != NULL)
	{
		work_on(r);
		file_request(r);
	}
	return n > TURN_REQUESTS;
}

/* When is the next one to be tried again? */
static TimestampTz
next_again(void)
{
	TimestampTz next = DT_NOEND;
	dlist_iter	iter;

	dlist_foreach(iter, &again)
		next = Min(next, dlist_container(Request, node, iter.cur)->again_at);
	return next;
}

/* Let answers go, once what they tell is on disk */
static void
let_go(void)
{
	if (unflushed != InvalidXLogRecPtr)
	{
		XLogFlush(unflushed);
		unflushed = InvalidXLogRecPtr;
	}
	while (!dlist_is_empty(&answered))
		server_finish(dlist_container(Request, node, dlist_pop_head_node(&answered)));
}

/* The answer of a request that has waited is there: see waits.c */
void
request_answered(Request *r)
{
	r->node.prev = r->node.next = &r->node;
	dlist_push_tail(&answered, &r->node);
}

/* One turn; gives when the next is due at the latest */
static TimestampTz
turn(void)
{
	static TimestampTz next_look = 0;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next;
	bool		more;

	server_run();
	pgstat_report_activity(STATE_RUNNING, "serving HTTP");
	more = work_on_requests(now);
	next = waits_turn(now);
	listeners_mine()->waiting = waits_count();
	pgstat_report_activity(STATE_IDLE, NULL);
	let_go();
	server_run();

	if (now >= next_look || now < next_look - LOOK_US)
	{
		server_expire(now);
		pgstat_report_stat(false);
		next_look = now + LOOK_US;
	}

	/* The library may have had a whole request while it let answers go */
	if (more || server_has_next())
		return now;
	return Min(next, next_again());
}

/* Wait for something to happen */
static void
wait_for_events(TimestampTz until)
{
	WaitEvent	events[SERVER_ADDRESSES + 2];
	TimestampTz now = GetCurrentTimestamp();
	long		timeout = until <= now ? 0 : (long) Min((until - now + 999) / 1000, LOOK_US / 1000);
	long		library = server_timeout();

	if (library >= 0)
		timeout = Min(timeout, library);
	(void) WaitEventSetWait(wait_set, timeout, events, lengthof(events), wait_event);
}

/* ---- start and end ---- */

/* Leave: answer what is under way, and no more */
static void
leave(bool hurry)
{
	TimestampTz until;

	/*
	 * As long as we are here, no other listens in our place: who waits hears
	 * what is known
	 */
	until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), hurry ? LEAVE_MS : LEAVE_CALMLY_MS);
	server_quiesce();
	waits_hurry();
	for (;;)
	{
		TimestampTz next;

		ResetLatch(MyLatch);
		take_interrupts();
		if (!hurry && must_leave())
		{
			hurry = true;
			until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS);
		}
		next = turn();
		server_expire(GetCurrentTimestamp());
		server_run();
		if (server_connections() == 0)
			break;
		if (GetCurrentTimestamp() >= until)
			break;
		wait_for_events(Min(next, Min(until, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 20))));
	}

	/*
	 * What is left is cut off: the sockets go with the process, and the
	 * library need not tidy up
	 */
	proc_exit(0);
}

/* Listen, however long it takes until the port is to be had */
static void
start_listening(void)
{
	long		delay = RETRY_MS;
	bool		told = false;

	for (;;)
	{
		char		addresses[LISTENER_ADDRESSES_SIZE];
		char		error[LISTENER_ERROR_SIZE] = "";
		MemoryContext old;
		Oid			whose;
		bool		started = false;

		ResetLatch(MyLatch);
		take_interrupts();
		if (must_leave() || is_outdated(GetCurrentTimestamp()))
			proc_exit(0);

		whose = listeners_claim_port(otp_http_port);
		if (whose != InvalidOid)
		{
			char	   *name;

			addresses[0] = '\0';
			StartTransactionCommand();
			name = get_database_name(whose);
			snprintf(error, sizeof(error), "port %d is the one of database \"%s\"", otp_http_port,
					 name != NULL ? name : "?");
			CommitTransactionCommand();
		}
		else
		{
			old = MemoryContextSwitchTo(request_context);
			started = server_start(listeners_share_port(otp_http_port), addresses, sizeof(addresses), error,
								   sizeof(error));
			MemoryContextSwitchTo(old);
			MemoryContextReset(request_context);
		}
		listeners_report(addresses, started ? NULL : error);
		if (started)
		{
			ereport(LOG,
					(errmsg("otp listens on port %d of %s for database \"%s\"", otp_http_port, addresses,
							MyBgworkerEntry->bgw_extra + sizeof(ListenerStart))));
			return;
		}
		if (!told)
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("otp cannot serve HTTP for database \"%s\": %s",
							MyBgworkerEntry->bgw_extra + sizeof(ListenerStart), error),
					 errhint(whose != InvalidOid ?
							 "Give each database a port of its own: ALTER DATABASE ... SET otp.http_port = ..." :
							 "It is tried again, ever less often; otp.health shows it.")));
		told = true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, delay, wait_event);
		delay = Min(delay * 2, RETRY_MAX_MS);
	}
}

/* Prepare to wait */
static void
make_wait_set(void)
{
	int			fds[SERVER_ADDRESSES];
	int			n = server_descriptors(fds);

	wait_set = compat_wait_event_set(n + 2);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < n; i++)
		AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, fds[i], NULL, NULL);
}

/* The listener */
void
otp_listener_main(Datum arg)
{
	ListenerStart start;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();

	/*
	 * Before the connection: whoever pauses a database must not find one of
	 * us in it that it knows nothing of.
	 */
	if (!listeners_enter(start.database, start.number, start.settings) || roster_is_away(start.database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(start.database, InvalidOid, 0);
	settings_impose(LOCK_TIMEOUT);
	wait_event = compat_wait_event("OtpListener");
	request_context = AllocSetContextCreate(TopMemoryContext, "otp request", ALLOCSET_DEFAULT_SIZES);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!owner_lookup())
		proc_exit(0);
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);
	fingerprint = MemoryContextStrdup(TopMemoryContext, server_fingerprint());

	/* The number may be too high by now */
	if (otp_http_port == 0 || start.number >= otp_http_workers)
		proc_exit(0);
	start_listening();
	make_wait_set();

	for (;;)
	{
		TimestampTz next;

		ResetLatch(MyLatch);
		take_interrupts();
		if (must_leave())
			leave(true);
		if (is_outdated(GetCurrentTimestamp()))
			leave(false);
		next = turn();
		wait_for_events(next);
	}
}
