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

#include <sys/resource.h>

#include "access/xact.h"
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
#include "utils/timestamp.h"

#include "base/guard.h"
#include "base/guc.h"
#include "base/ledger.h"
#include "base/owner.h"
#include "worker/job.h"
#include "store/audit.h"
#include "worker/sender.h"
#include "worker/settings.h"
#include "worker/upkeep.h"
#include "worker/webhook.h"
#include "worker/worker.h"

/*
 * A turn that claims puts off settling for so long, up to so many: a claim
 * writes nothing, and its messages should not wait for a disk.
 */
#define SETTLE_DELAY_US INT64CONST(5000)
#define SETTLE_WITH 32

/* No new requests while so many are unfinished that are younger than this. */
#define YOUNG_MAX 128
#define YOUNG_US INT64CONST(100000)

/* How often the ledger is written back, and looked at for that. */
#define WRITE_BACK_MS 500

/* The same when the server stops */
#define WRITE_BACK_LEAVE_MS 10

/* How often rows that are nobody's are cleared away. */
#define CLEAR_MS 60000

/* Somebody holds a lock on the queue: look again after this long. */
#define LOCKED_LOOK_MS 20

/* Asked to go: how long to wait for answers, and for a lock to settle */
#define LEAVE_MS 300

/* The same, to write down what is known while somebody locks the queue */
#define LEAVE_SETTLE_MS 1500

/* No statement of ours waits longer for a lock. */
#define LOCK_TIMEOUT "1s"

/*
 * File descriptors that are not for requests: the server's own files, of
 * which it closes some when it has none left; pools, pipes and name servers.
 */
#define FILES_RESERVED 128

/* How long to establish a connection to a provider */
#define CONNECT_TIMEOUT_MS 5000

Sender		sender;

/* Of otp.max_in_flight, this part may be webhooks and jobs. */
#define ASIDE_SHARE 4

static TimestampTz next_write_back;
static TimestampTz next_clear;
static TimestampTz next_webhooks;
static TimestampTz next_jobs;

/* What is kept up beside all that, and when each is to be called next */
static TimestampTz (*const upkeep[]) (TimestampTz now) =
{
	retention_turn, rollup_turn, sweep_turn, guard_turn, key_use_turn, credits_turn, listeners_turn
};
static TimestampTz next_upkeep[lengthof(upkeep)];
static WaitEventSet *wait_set;
static uint32 wait_event;

/* Can settling not wait for another turn? */
static bool
must_settle(TimestampTz now)
{
	if (!settle_pending())
		return false;
	if (sender.errors > 0 || sender.finishing + sender.nnotes >= SETTLE_WITH)
		return true;
	if (sender.finishing > 0 &&
		dlist_container(Owed, node, dlist_head_node(&sender.finished))->ended_at + SETTLE_DELAY_US <= now)
		return true;
	return sender.nnotes > 0 &&
		dlist_container(OtherRow, node, dlist_head_node(&sender.notes))->row.due_at + SETTLE_DELAY_US <= now;
}

/* ---- the network ---- */

/* Fill in the client's options */
static void
http_options(HttpOptions *options)
{
	memset(options, 0, sizeof(HttpOptions));
	options->https_proxy = otp_https_proxy;
	options->ca_file = otp_ca_file;
	options->user_agent = "otp/" OTP_VERSION;
	options->connect_timeout_ms = CONNECT_TIMEOUT_MS;
	options->allow_private = otp_allow_private_addresses;
}

/*
 * Set how many requests may be in flight
 *
 * Each may take a descriptor of its own. Only the hard limit is meant to
 * bind; the soft one is low for the sake of programs that use select().
 */
static void
limit_in_flight(void)
{
	struct rlimit files;
	int			limit = otp_max_in_flight;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		rlim_t		soft = files.rlim_cur;

		files.rlim_cur = files.rlim_max;
		if (soft != files.rlim_max && setrlimit(RLIMIT_NOFILE, &files) != 0)
			files.rlim_cur = soft;
		if (files.rlim_cur < (rlim_t) (limit + limit / ASIDE_SHARE) + FILES_RESERVED)
			limit = files.rlim_cur <= FILES_RESERVED ? 1 :
				(int) ((files.rlim_cur - FILES_RESERVED) * ASIDE_SHARE / (ASIDE_SHARE + 1));
	}
	if (limit < otp_max_in_flight && limit != sender.max_in_flight)
		ereport(LOG,
				(errmsg("only %d requests can be in flight at once, not otp.max_in_flight (%d)",
						limit, otp_max_in_flight),
				 errhint("Raise the server's limit on open files.")));
	sender.max_in_flight = limit;
}

/* Work on the network and judge what has come */
static void
work_on_network(void)
{
	MemoryContext old = MemoryContextSwitchTo(sender.turn_context);
	HttpResponse *response;
	TimestampTz now = 0;

	http_client_run(sender.client);
	while ((response = http_client_next(sender.client)) != NULL)
	{
		if (now == 0)
			now = GetCurrentTimestamp();
		switch (*(RequestKind *) response->owner)
		{
			case REQUEST_MESSAGE:
				judge_response(response, now);
				break;
			case REQUEST_WEBHOOK:
				webhooks_judge(response, now);
				break;
			case REQUEST_JOB:
				jobs_judge(response, now);
				break;
		}
		http_response_free(response);
	}
	MemoryContextSwitchTo(old);
	if (now != 0)
		MemoryContextReset(sender.turn_context);
}

/* How many requests may be started now; until when if none */
static int
free_slots(TimestampTz now, TimestampTz *until)
{
	int			young = 0;
	dlist_iter	iter;

	/*
	 * Young ones hold the others back, old ones do not: a provider that hangs
	 * on some of its answers keeps its own messages waiting only.
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
	return Max(0, Min(YOUNG_MAX - young, sender.max_in_flight - sender.flying));
}

/* Do what comes behind the codes; gives when there is more to do */
static TimestampTz
work_aside(TimestampTz now)
{
	int			slots = Min(sender.max_in_flight - sender.flying, sender.max_in_flight / ASIDE_SHARE + 1) -
	webhooks_in_flight() - jobs_in_flight();
	TimestampTz next;

	if (otp_delivery)
	{
		if (now >= next_webhooks || webhooks_pending(now))
			next_webhooks = webhooks_turn(Max(slots, 0), now);
		if (now >= next_jobs || jobs_pending(now))
			next_jobs = jobs_turn(Max(slots, 0), now);
		next = Min(next_webhooks, next_jobs);
	}
	else
		next = DT_NOEND;
	for (int i = 0; i < lengthof(upkeep); i++)
	{
		if (now >= next_upkeep[i])
			next_upkeep[i] = upkeep[i] (now);
		next = Min(next, next_upkeep[i]);
	}
	return next;
}

/* ---- start and end ---- */

/* Make memory and client */
static void
init_sender(Oid database)
{
	HttpOptions options;
	char		error[HTTP_ERROR_SIZE];

	memset(&sender, 0, sizeof(sender));
	sender.database = database;
	owed_init();
	sender.turn_context = AllocSetContextCreate(TopMemoryContext, "otp turn",
												ALLOCSET_DEFAULT_SIZES);
	accounts_init();
	receipts_init();
	limit_in_flight();

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
	report.following = sender.following;
	report.oldest_due = owed_next_due();
	report.read_to = sender.position.xid;
	report.next_due = follow_next_due();
	if (report.next_due == 0 || (report.oldest_due != 0 && report.oldest_due < report.next_due))
		report.next_due = report.oldest_due;
	report.in_flight = sender.flying;
	report.backlog = sender.look || settle_pending() || !dlist_is_empty(&sender.crowded);
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
		limit_in_flight();
		sender.look = true;
	}
}

/*
 * Write the ledger back for the last time
 *
 * Shared memory may go with the server: an orderly stop forgets no wrong
 * guess. When the extension is gone, this drops what is there of it.
 */
static void
write_back_at_exit(void)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS);

	if (!ledger_has_entries(MyDatabaseId))
		return;

	/*
	 * The others are rolling back just now what they had open: their rows get
	 * free
	 */
	while (turn_write_back() && ShutdownRequestPending && GetCurrentTimestamp() < until)
		pg_usleep(WRITE_BACK_LEAVE_MS * 1000L);
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
		if (sender.finishing > 0 && GetCurrentTimestamp() >= sender.no_turn_before)
		{
			if (turn_run(0, true) == TURN_ABSENT)
				break;
			continue;
		}
		if (sender.flying == 0 && sender.finishing == 0)
			break;
		if (!yield && GetCurrentTimestamp() >= until)
			break;
		report_figures();
		wait_for_events(yield ? TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_MS) :
						sender.finishing > 0 ? Min(until, sender.no_turn_before) : until);
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

	/*
	 * What is known and not written goes out twice. Only a lock on the queue
	 * can be in the way, and whoever waits for one lets us wait, too.
	 */
	until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LEAVE_SETTLE_MS);
	while (sender.finishing > 0 && GetCurrentTimestamp() < until)
	{
		TurnStart	start = turn_run(0, true);

		if (start == TURN_ABSENT)
			break;
		if (start == TURN_LOCKED || sender.errors > 0)
			pg_usleep(LOCKED_LOOK_MS * 1000L);
	}

	webhooks_leave();
	write_back_at_exit();
	key_use_leave(GetCurrentTimestamp());
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
	settings_impose(LOCK_TIMEOUT);
	audit_off = true;

	/* Is there anything to do here? */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!owner_lookup())
	{
		CommitTransactionCommand();
		write_back_at_exit();
		guard_forget_database(database);
		roster_set_state(ROSTER_ABSENT);
		proc_exit(0);
	}
	CommitTransactionCommand();
	roster_set_state(ROSTER_PRESENT);

	init_sender(database);
	pgstat_report_activity(STATE_IDLE, NULL);
	sender.look = true;

	for (;;)
	{
		TimestampTz now;
		TimestampTz wait_until;
		TimestampTz slots_free_at;
		TimestampTz aside_at;
		RosterRequest request;
		int			slots;
		TimestampTz next_due;
		bool		claim;
		bool		settle;

		/*
		 * Whoever sets the latch from here on makes the wait below end at
		 * once
		 */
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
			sender.look = true;
		now = GetCurrentTimestamp();
		if (otp_delivery)
			follow_due(now);
		slots = otp_delivery ? free_slots(now, &slots_free_at) : 0;
		if (slots > 0 && now >= sender.no_turn_before)
			owed_release_crowds(now);
		next_due = owed_next_due();
		if (now >= sender.next_look || (next_due != 0 && next_due <= now))
			sender.look = true;
		claim = sender.look && slots > 0;
		settle = !claim || must_settle(now);
		if ((claim || settle_pending()) && now >= sender.no_turn_before)
		{
			pgstat_report_activity(STATE_RUNNING, "sending");
			if (turn_run(claim ? slots : 0, settle) == TURN_ABSENT)
			{
				/* Dropped; what is in flight has nowhere to be noted */
				http_client_destroy(sender.client);
				write_back_at_exit();
				guard_forget_database(database);
				roster_set_state(ROSTER_ABSENT);
				proc_exit(0);
			}
			pgstat_report_activity(STATE_IDLE, NULL);
			pgstat_report_stat(false);

			/* What was started goes out now */
			work_on_network();
			events_notify();
			now = GetCurrentTimestamp();
		}

		/* Receipts, in a transaction of their own */
		if (otp_delivery && now >= sender.no_turn_before && !settle_pending() && receipts_pending())
		{
			if (!turn_receipts())
				sender.no_turn_before = TimestampTzPlusMilliseconds(now, LOCKED_LOOK_MS);
			events_notify();
			now = GetCurrentTimestamp();
		}
		aside_at = now >= sender.no_turn_before ? work_aside(now) : sender.no_turn_before;

		if (now >= next_write_back)
		{
			next_write_back = TimestampTzPlusMilliseconds(now, WRITE_BACK_MS);
			pgstat_report_stat(false);
			if (ledger_has_entries(database))
				(void) turn_write_back();
		}
		if (now >= next_clear)
		{
			next_clear = TimestampTzPlusMilliseconds(now, CLEAR_MS);
			turn_clear_away(now);
		}
		report_figures();

		/* How long may we sleep? */
		wait_until = Min(Min(next_write_back, next_clear), aside_at);
		if (otp_delivery)
		{
			next_due = follow_next_due();
			if (next_due != 0 && sender.caught_up)
				wait_until = Min(wait_until, next_due);
			next_due = receipts_next(now);
			if (next_due != 0)
				wait_until = Min(wait_until, Max(sender.no_turn_before, next_due));
			slots = free_slots(now, &slots_free_at);
			if (slots > 0)
			{
				wait_until = Min(wait_until, Max(sender.no_turn_before, sender.next_look));
				if (sender.look)
					wait_until = Min(wait_until, sender.no_turn_before);
				next_due = owed_next_due();
				if (next_due != 0)
					wait_until = Min(wait_until, Max(sender.no_turn_before, next_due));
			}
			else if (slots_free_at != 0 && sender.flying < sender.max_in_flight)
				wait_until = Min(wait_until, slots_free_at);
		}
		if (settle_pending())
			wait_until = Min(wait_until, sender.no_turn_before);
		if (otp_delivery && (webhooks_pending(now) || jobs_pending(now)))
			wait_until = Min(wait_until, sender.no_turn_before);
		if (wait_until > now)
			wait_for_events(wait_until);
	}
}
