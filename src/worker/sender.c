/*-------------------------------------------------------------------------
 *
 * sender.c
 *	  Hands the messages of one database to the providers.
 *
 * One loop, one wait for everything: the latch, which commits set, and the
 * HTTP client's descriptor. Each turn of the loop is one short transaction
 * that writes down what has finished and takes what is due; the network is
 * worked on between transactions only.
 *
 * Nothing is in memory that a successor would miss. What is in flight when
 * we die is sent again by the next sender; when we are asked to go, we wait
 * a moment for the answers, and note the rest as unknown, so that there is
 * one repeat and no more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/ledger.h"
#include "base/owner.h"
#include "store/attempts.h"
#include "worker/sender.h"
#include "worker/worker.h"

/* No new requests while so many are unfinished that are younger than this. */
#define YOUNG_MAX 128
#define YOUNG_US INT64CONST(100000)

/* Look at the queue now and then, should a wake ever be lost. */
#define LOOK_MS 5000

/* The same while a breaker is open: a new configuration closes it. */
#define TROUBLED_LOOK_MS 1000

/* How often the ledger is written back, and looked at for that. */
#define WRITE_BACK_MS 500

/* How often rows that are nobody's are cleared away. */
#define CLEAR_MS 60000

/* Somebody holds a lock on the queue: look again after this long. */
#define LOCKED_LOOK_MS 20

/* After an error: first and longest wait */
#define ERROR_WAIT_MS 1000
#define ERROR_WAIT_MAX_MS 30000

/* So many good turns end the care after an error. */
#define CAREFUL_TURNS 100

/* Asked to go: how long to wait for answers, and for a lock to settle */
#define LEAVE_MS 300

/* No statement of ours waits longer for a lock. */
#define LOCK_TIMEOUT "1s"

/* How long to establish a connection to a provider */
#define CONNECT_TIMEOUT_MS 5000

Sender		sender;

static bool look;				/* there may be something to claim */
static TimestampTz next_look;
static TimestampTz no_turn_before;
static TimestampTz next_write_back;
static TimestampTz next_clear;
static int	errors;				/* turns in a row that failed */
static int	careful_turns;
static WaitEventSet *wait_set;
static uint32 wait_event;

/* ---- what waits ---- */

/* Order by due time */
static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz x = pairingheap_const_container(Owed, waiting, a)->row.due_at;
	TimestampTz y = pairingheap_const_container(Owed, waiting, b)->row.due_at;

	/* the first is the greatest */
	return x < y ? 1 : x > y ? -1 : 0;
}

/* Take a row into memory */
Owed *
owed_new(const OutboxRow *row)
{
	Owed	   *o = MemoryContextAllocZero(sender.owed_context, sizeof(Owed));

	o->row = *row;
	return o;
}

/* Drop a row from memory */
void
owed_free(Owed *o)
{
	owed_unhold(o);
	pfree(o);
}

/* Let a row wait */
void
owed_wait(Owed *o, TimestampTz due_at)
{
	/* At the end of its life it is dropped */
	o->row.due_at = Min(due_at, o->row.expires_at);
	pairingheap_add(&sender.heap, &o->waiting);
	sender.waiting++;
}

/* Take the first row whose time has come */
Owed *
owed_first_due(TimestampTz now)
{
	Owed	   *o;

	if (pairingheap_is_empty(&sender.heap))
		return NULL;
	o = pairingheap_container(Owed, waiting, pairingheap_first(&sender.heap));
	if (o->row.due_at > now)
		return NULL;
	(void) pairingheap_remove_first(&sender.heap);
	sender.waiting--;
	return o;
}

/* Note that a row waits for a breaker */
void
owed_hold(Owed *o, Account *a)
{
	owed_unhold(o);
	o->account_id = a->account_id;
	o->held = true;
	a->held++;
}

/* It does not any more */
void
owed_unhold(Owed *o)
{
	if (o->held)
	{
		Account    *a = account_known(o->account_id);

		if (a != NULL)
			a->held--;
		o->held = false;
	}
}

/* Have the rows look that wait for a breaker */
void
owed_release_held(int32 account_id, TimestampTz now)
{
	Account    *a = account_known(account_id);
	dlist_head	all;

	if (a == NULL || a->held == 0)
		return;

	/* Closing is rare: build the heap anew */
	dlist_init(&all);
	while (!pairingheap_is_empty(&sender.heap))
	{
		Owed	   *o = pairingheap_container(Owed, waiting, pairingheap_remove_first(&sender.heap));

		dlist_push_tail(&all, &o->node);
	}
	while (!dlist_is_empty(&all))
	{
		Owed	   *o = dlist_container(Owed, node, dlist_pop_head_node(&all));

		if (o->held && o->account_id == account_id)
			o->row.due_at = Min(o->row.due_at, now);
		pairingheap_add(&sender.heap, &o->waiting);
	}
}

/* Note what came of a message */
void
owed_finish(Owed *o, OwedEnd end, TimestampTz now)
{
	o->end = end;
	o->ended_at = now;
	dlist_push_tail(&sender.finished, &o->node);
	sender.finishing++;
}

/* ---- transactions ---- */

typedef enum TurnStart
{
	TURN_STARTED,
	TURN_LOCKED,				/* somebody is about to drop or move the queue */
	TURN_ABSENT					/* the extension is not there */
} TurnStart;

/* Begin a transaction */
static TurnStart
begin_turn(OwnerScope *scope)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!owner_lookup())
	{
		CommitTransactionCommand();
		return TURN_ABSENT;
	}
	if (!outbox_lock())
	{
		CommitTransactionCommand();
		return TURN_LOCKED;
	}
	owner_enter(scope);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	/* SPI wants one even for statements that it gives a newer one */
	PushActiveSnapshot(GetTransactionSnapshot());
	return TURN_STARTED;
}

/* End it */
static void
end_turn(const OwnerScope *scope)
{
	PopActiveSnapshot();
	SPI_finish();
	owner_leave(scope);
	CommitTransactionCommand();
}

/* Clean up after an error; gives its words in the current context */
static char *
abort_turn(int *sqlstate)
{
	MemoryContext context = TopMemoryContext;
	ErrorData  *error;
	char	   *words;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	EmitErrorReport();
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
	*sqlstate = error->sqlerrcode;
	words = psprintf("internal error %s", unpack_sql_state(error->sqlerrcode));
	roster_report_error(error->message != NULL ? error->message : words);
	FreeErrorData(error);
	RESUME_INTERRUPTS();
	return words;
}

/* Is an error of the kind that passes, or could one message be the cause? */
static bool
is_passing_error(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case MAKE_SQLSTATE('4', '0', '0', '0', '0'):	/* transaction rollback */
		case MAKE_SQLSTATE('4', '2', '0', '0', '0'):	/* undefined table, no privilege */
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* insufficient resources */
		case MAKE_SQLSTATE('5', '5', '0', '0', '0'):	/* lock not available */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* operator intervention */
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):	/* system error */
			return true;
		default:
			return false;
	}
}

/* Settle what has finished and claim what is due */
static TurnStart
turn(int slots)
{
	TimestampTz now = GetCurrentTimestamp();
	OwnerScope	scope;
	volatile int limit = slots;
	volatile TurnStart start = TURN_STARTED;
	volatile bool claiming = false;
	volatile bool failed = false;

	/* After an error, one transaction for each half, and one message at a time */
	if (errors > 0 && sender.finishing > 0)
		limit = 0;
	else if (sender.careful)
		limit = Min(limit, 1);

	sender.nitems = 0;
	sender.settling = 0;
	PG_TRY();
	{
		start = begin_turn(&scope);
		if (start == TURN_STARTED)
		{
			if (sender.finishing > 0)
				settle_write();
			if (limit > 0)
			{
				claiming = true;
				claim_take(limit, now);
			}
			end_turn(&scope);
		}
	}
	PG_CATCH();
	{
		int			sqlstate;
		char	   *words = abort_turn(&sqlstate);

		settle_undo();
		claim_undo(claiming && sender.careful && !is_passing_error(sqlstate), words, now);
		pfree(words);
		failed = true;
	}
	PG_END_TRY();

	if (start == TURN_LOCKED)
		no_turn_before = TimestampTzPlusMilliseconds(now, LOCKED_LOOK_MS);
	else if (failed)
	{
		long		delay = ERROR_WAIT_MS;

		for (int i = 0; i < errors && delay < ERROR_WAIT_MAX_MS; i++)
			delay *= 2;
		no_turn_before = TimestampTzPlusMilliseconds(now, Min(delay, ERROR_WAIT_MAX_MS));
		errors++;
		sender.careful = true;
		careful_turns = 0;
	}
	else if (start == TURN_STARTED)
	{
		errors = 0;
		if (sender.careful && ++careful_turns >= CAREFUL_TURNS)
			sender.careful = false;
		if (sender.settling > 0)
			settle_done(now);
		if (claiming)
		{
			look = sender.more;
			next_look = TimestampTzPlusMilliseconds(now, accounts_troubled() ? TROUBLED_LOOK_MS : LOOK_MS);
			claim_done(now);
		}
	}
	MemoryContextReset(sender.turn_context);
	return start;
}

/* Delete rows that are nobody's */
static void
clear_away(TimestampTz now)
{
	PG_TRY();
	{
		OwnerScope	scope;

		if (begin_turn(&scope) == TURN_STARTED)
		{
			/* A minute later than ours, lest two servers' clocks differ */
			(void) outbox_delete_expired(TimestampTzPlusMilliseconds(now, -CLEAR_MS), !otp_delivery);
			end_turn(&scope);
		}
	}
	PG_CATCH();
	{
		int			sqlstate;

		pfree(abort_turn(&sqlstate));
	}
	PG_END_TRY();
}

/* Write the ledger back */
static void
write_back(void)
{
	PG_TRY();
	{
		attempts_write_back();
	}
	PG_CATCH();
	{
		int			sqlstate;

		pfree(abort_turn(&sqlstate));
	}
	PG_END_TRY();
}

/* ---- the network ---- */

/* Fill in the client's options */
static void
http_options(HttpOptions *options)
{
	memset(options, 0, sizeof(HttpOptions));
	options->https_proxy = otp_https_proxy;
	options->ca_file = otp_ca_file;
	options->user_agent = "otp/1.0";
	options->connect_timeout_ms = CONNECT_TIMEOUT_MS;
	options->allow_private = otp_allow_private_addresses;
}

/* Work on the network and judge what has come */
static void
work_on_network(void)
{
	HttpResponse *response;
	TimestampTz now = 0;

	http_client_run(sender.client);
	while ((response = http_client_next(sender.client)) != NULL)
	{
		if (now == 0)
			now = GetCurrentTimestamp();
		judge_response(response, now);
		http_response_free(response);
	}
}

/* How many requests may be started now; until when if none */
static int
free_slots(TimestampTz now, TimestampTz *until)
{
	int			young = 0;
	dlist_iter	iter;

	/*
	 * Young ones hold the others back, old ones do not: a provider that
	 * hangs on some of its answers keeps its own messages waiting only.
	 */
	*until = 0;
	dlist_reverse_foreach(iter, &sender.in_flight)
	{
		Owed	   *o = dlist_container(Owed, node, iter.cur);

		if (o->started_at + YOUNG_US <= now || young == YOUNG_MAX)
			break;
		*until = o->started_at + YOUNG_US;
		young++;
	}
	return Max(0, Min(YOUNG_MAX - young, otp_max_in_flight - sender.flying));
}

/* ---- start and end ---- */

/* Override what ALTER DATABASE or ALTER ROLE may impose */
static void
impose_settings(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"role", "none"},
		{"session_replication_role", "origin"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"lock_timeout", LOCK_TIMEOUT},
		{"row_security", "off"},
		{"transform_null_equals", "off"},
		{"default_toast_compression", "pglz"},

		/*
		 * Flushed here before we go on. Not "on": should a synchronous
		 * standby be away, callers wait for it at their commits; what they
		 * have committed must be delivered, and we must be able to stop.
		 */
		{"synchronous_commit", "local"},

		/* All look-ups by key: the one plan that stays good whatever the statistics */
		{"plan_cache_mode", "force_generic_plan"},
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"enable_hashjoin", "off"},
		{"enable_mergejoin", "off"},
		{"enable_sort", "off"},
		{"enable_material", "off"},
		{"enable_memoize", "off"},
		{"enable_nestloop", "on"},
		{"enable_indexscan", "on"},
		{"enable_tidscan", "on"},
		{"jit", "off"},
		{"max_parallel_workers_per_gather", "0"},
		{"debug_print_parse", "off"},
		{"debug_print_rewritten", "off"},
		{"debug_print_plan", "off"}
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		/* Not all are there in all versions */
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
}

/* Make memory and client */
static void
init_sender(Oid database)
{
	HttpOptions options;
	char		error[HTTP_ERROR_SIZE];

	memset(&sender, 0, sizeof(sender));
	sender.database = database;
	sender.owed_context = SlabContextCreate(TopMemoryContext, "otp messages owed",
											SLAB_DEFAULT_BLOCK_SIZE, sizeof(Owed));
	sender.outcome_context = AllocSetContextCreate(TopMemoryContext, "otp outcomes",
												   ALLOCSET_DEFAULT_SIZES);
	sender.turn_context = AllocSetContextCreate(TopMemoryContext, "otp turn",
												ALLOCSET_DEFAULT_SIZES);
	pairingheap_reset(&sender.heap);
	sender.heap.ph_compare = compare_due;
	dlist_init(&sender.in_flight);
	dlist_init(&sender.finished);
	accounts_init();

	http_options(&options);
	sender.client = http_client_create(&options, error);
	if (sender.client == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg("could not create an HTTP client: %s", error)));

	wait_set = compat_wait_event_set(3);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, http_client_fd(sender.client), NULL, NULL);
	wait_event = compat_wait_event("OtpSender");
}

/* Wait for something to happen */
static void
wait_for_events(TimestampTz until)
{
	WaitEvent	events[3];
	TimestampTz now = GetCurrentTimestamp();
	long		timeout = until <= now ? 0 : (long) ((until - now + 999) / 1000);

	(void) WaitEventSetWait(wait_set, timeout, events, lengthof(events), wait_event);
}

/* Tell the roster */
static void
report_figures(void)
{
	RosterReport report;

	report.last_turn = GetCurrentTimestamp();
	report.waiting = sender.waiting;
	report.next_due = pairingheap_is_empty(&sender.heap) ? 0 :
		pairingheap_container(Owed, waiting, pairingheap_first(&sender.heap))->row.due_at;
	report.in_flight = sender.flying;
	report.backlog = look || sender.finishing > 0;
	report.accepted = sender.accepted;
	report.retried = sender.retried;
	report.failed = sender.failed;
	report.fallbacks = sender.fallbacks;
	roster_report(&report);
}

/* Do what interrupts ask for, between transactions */
static void
take_interrupts(void)
{
	/* There is no statement to cancel */
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		HttpOptions options;

		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		http_options(&options);
		if (!http_client_configure(sender.client, &options))
			ereport(LOG,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory")));
		look = true;
	}
}

/* Asked to go: settle what can be settled, and note the rest as unknown */
static void
leave(bool yield)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS);

	for (;;)
	{
		ResetLatch(MyLatch);
		take_interrupts();

		/* One who yields has time, unless somebody loses patience */
		if (yield && (ShutdownRequestPending || roster_request() == ROSTER_LEAVE))
		{
			yield = false;
			until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS);
		}
		work_on_network();
		if (sender.finishing > 0 && GetCurrentTimestamp() >= no_turn_before)
		{
			(void) turn(0);
			continue;
		}
		if (sender.flying == 0 && sender.finishing == 0)
			break;
		if (!yield && GetCurrentTimestamp() >= until)
			break;
		report_figures();
		wait_for_events(yield ? TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS) :
						sender.finishing > 0 ? Min(until, no_turn_before) : until);
	}

	/*
	 * What is still unanswered counts as one try of unknown outcome. Should
	 * this not be written, the next sender just sends it again.
	 */
	while (!dlist_is_empty(&sender.in_flight))
		judge_abandoned(dlist_container(Owed, node, dlist_head_node(&sender.in_flight)),
						GetCurrentTimestamp());
	http_client_destroy(sender.client);
	sender.client = NULL;
	until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS);
	while (sender.finishing > 0 && GetCurrentTimestamp() < until)
	{
		TurnStart	start = turn(0);

		if (start == TURN_ABSENT)
			break;
		if (start == TURN_LOCKED || errors > 0)
			pg_usleep(LOCKED_LOOK_MS * 1000L);
	}
	report_figures();
}

/* The sender */
void
otp_sender_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();

	/*
	 * Before the connection: whoever pauses a database must not find one of
	 * us in it that it knows nothing of.
	 */
	if (!roster_enter(database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	impose_settings();

	/* Is there anything to do here? */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!owner_lookup())
	{
		CommitTransactionCommand();
		roster_set_state(ROSTER_ABSENT);
		proc_exit(0);
	}
	CommitTransactionCommand();
	roster_set_state(ROSTER_PRESENT);

	init_sender(database);
	pgstat_report_activity(STATE_IDLE, NULL);
	look = true;

	for (;;)
	{
		TimestampTz now;
		TimestampTz wait_until;
		TimestampTz slots_free_at;
		RosterRequest request;
		int			slots;
		bool		claim;

		/* Whoever sets the latch from here on makes the wait below end at once */
		ResetLatch(MyLatch);
		take_interrupts();

		work_on_network();

		request = roster_request();
		if (ShutdownRequestPending || request != ROSTER_STAY)
		{
			leave(!ShutdownRequestPending && request == ROSTER_YIELD);
			proc_exit(0);
		}

		/* The flag first, then the queue: see roster.c */
		if (roster_take_wake())
			look = true;
		now = GetCurrentTimestamp();
		if (now >= next_look ||
			(!pairingheap_is_empty(&sender.heap) &&
			 pairingheap_container(Owed, waiting, pairingheap_first(&sender.heap))->row.due_at <= now))
			look = true;

		slots = otp_delivery ? free_slots(now, &slots_free_at) : 0;
		claim = look && slots > 0;
		if ((claim || sender.finishing > 0) && now >= no_turn_before)
		{
			pgstat_report_activity(STATE_RUNNING, "sending");
			if (turn(claim ? slots : 0) == TURN_ABSENT)
			{
				/* Dropped; what is in flight has nowhere to be noted */
				http_client_destroy(sender.client);
				roster_set_state(ROSTER_ABSENT);
				proc_exit(0);
			}
			pgstat_report_activity(STATE_IDLE, NULL);
			pgstat_report_stat(false);

			/* What was started goes out now */
			work_on_network();
			now = GetCurrentTimestamp();
		}

		if (now >= next_write_back)
		{
			next_write_back = TimestampTzPlusMilliseconds(now, WRITE_BACK_MS);
			if (ledger_has_entries(database))
				write_back();
		}
		if (now >= next_clear)
		{
			next_clear = TimestampTzPlusMilliseconds(now, CLEAR_MS);
			clear_away(now);
			pgstat_report_stat(true);
		}
		report_figures();

		/* How long may we sleep? */
		wait_until = Min(next_write_back, next_clear);
		if (otp_delivery)
		{
			slots = free_slots(now, &slots_free_at);
			if (slots > 0)
			{
				wait_until = Min(wait_until, next_look);
				if (look)
					wait_until = Min(wait_until, no_turn_before);
				if (!pairingheap_is_empty(&sender.heap))
					wait_until = Min(wait_until,
									 Max(no_turn_before,
										 pairingheap_container(Owed, waiting,
															   pairingheap_first(&sender.heap))->row.due_at));
			}
			else if (slots_free_at != 0 && sender.flying < otp_max_in_flight)
				wait_until = Min(wait_until, slots_free_at);
		}
		if (sender.finishing > 0)
			wait_until = Min(wait_until, no_turn_before);
		if (wait_until > now)
			wait_for_events(wait_until);
	}
}
