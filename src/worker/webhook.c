/*-------------------------------------------------------------------------
 *
 * webhook.c
 *	  Deliver webhooks.
 *
 * Each turn is one transaction, which writes down what came of attempts and
 * reads what the next ones need; they start after its commit. It does not
 * wait for the disk: what a crash forgets of it is attempts that succeeded,
 * and those webhooks are sent once more, with the same id.
 *
 * Nothing is in memory that a successor would miss, see webhook_queue.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/ulid.h"
#include "store/queue.h"
#include "worker/sender.h"
#include "worker/webhook.h"
#include "worker/webhook_parts.h"

/* Most that one turn does of each kind */
#define START_WITH 128
#define SETTLE_WITH 500
#define CHORES_WITH 8
#define MEET_WITH 20

/* Waiting times are longer than scheduled by up to this part. */
#define JITTER 0.2

/* An endpoint that does nothing but fail for so long is disabled. */
#define FAILING_LIFE (5 * USECS_PER_DAY)

/* One that has been failing for so long, and recovers, gets at once what has waited. */
#define RECOVERY_US (60 * USECS_PER_SEC)

/* That an endpoint fails, or does so no more, is noted this often at most. */
#define NOTE_MS 10000

/* After so many failures in a row, the endpoint is left alone for a moment, first and at most. */
#define HOLD_AFTER 5
#define HOLD_MS 100
#define HOLD_MAX_MS 10000

/* Endpoints that fail like this may take half of the slots: look again after this long. */
#define STRAINED_MS 250

/* With all slots taken by others, look again after this long. */
#define CROWDED_MS 10

/* After an error: first and longest wait */
#define ERROR_WAIT_MS 1000
#define ERROR_WAIT_MAX_MS 30000

/* How often what is nobody's is cleared away, and what has been paused for too long. */
#define CLEAR_MS 3600000

/* Rows of other servers and databases go so long after their time. */
#define FOREIGN_LIFE (4 * USECS_PER_DAY)

/* Turns are at most this far apart. */
#define LOOK_MS 60000

/* A step of a replay reads one leaf, and passes so many others that have nothing. */
#define EMPTY_LEAVES 8

/* The highest number of an attempt that its column holds */
#define MAX_ATTEMPT PG_INT16_MAX

/*
 * After an error, one kind of work at a time, and one piece of each: so what
 * makes the transaction fail is found, and does not stop the rest.
 */
typedef enum Care
{
	CARE_NONE,
	CARE_SETTLE,
	CARE_CHORES,
	CARE_START
} Care;

/* Those that are in a transaction which has not committed */
static dlist_head fresh = DLIST_STATIC_INIT(fresh);
static bool wake_after = false; /* a job has queued its continuation */
static List *hurried = NIL;		/* endpoints, in hurry_context */

static dlist_head finished = DLIST_STATIC_INIT(finished);
static int	nfinished = 0;
static int	in_flight = 0;
static int	strained = 0;		/* of those, attempts at endpoints that fail */

/* At the start, the endpoints that are owed something are looked for. */
static bool meeting = true;
static int32 met = PG_INT32_MIN;

static TimestampTz no_turn_before = 0;
static TimestampTz crowded_until = 0;
static TimestampTz next_clear = 0;
static int	errors = 0;			/* in a row */
static int	start_failures = 0; /* of single attempts to be started */
static Care care = CARE_NONE;
static bool leaving = false;

/* An endpoint whose state a turn writes */
typedef struct StateNote
{
	Endpoint   *endpoint;
	bool		written;
	bool		disabled;
	TimestampTz since;
} StateNote;

/* The turn that is under way */
typedef struct Turn
{
	TimestampTz now;
	int			slots;
	MemoryContext context;		/* lives until the requests have started */
	int			settling;		/* of finished, from its head */
	StateNote	notes[CHORES_WITH];
	int			nnotes;
	Endpoint   *emptied[CHORES_WITH];	/* nothing of theirs is in the table
										 * any more */
	int			nemptied;
	Webhook    *chosen[START_WITH];
	HttpRequest requests[START_WITH];
	int			nchosen;
} Turn;

/* ---- what is owed ---- */

/* Take note of a new row, until its transaction has ended */
static void
add_fresh(Endpoint *e, const WebhookRow *row)
{
	Webhook    *w = queue_make(e, row);

	dlist_push_tail(&fresh, &w->link);
}

/* Write what endpoints are owed for events */
void
webhooks_write(const Event *events, int n)
{
	WebhookRow *rows = NULL;
	int			nrows = 0;
	int			size = 0;
	TimestampTz now = 0;

	for (int i = 0; i < n; i++)
	{
		const Event *event = &events[i];
		Endpoint  **endpoints;
		int			nendpoints = endpoints_of(event->workspace_id, &endpoints);

		for (int j = 0; j < nendpoints; j++)
		{
			Endpoint   *e = endpoints[j];
			WebhookRow *row;

			if (endpoint_over(e) || (e->events & ((uint32) 1 << event->kind)) == 0)
				continue;
			if (now == 0)
				now = GetCurrentTimestamp();
			if (nrows >= size)
			{
				size = Max(size * 2, 32);
				rows = rows == NULL ? palloc(size * sizeof(WebhookRow)) : repalloc(rows, size * sizeof(WebhookRow));
			}
			row = &rows[nrows++];
			memset(row, 0, sizeof(WebhookRow));
			queue_new_id(&row->id, now);
			row->workspace_id = event->workspace_id;
			row->endpoint_id = e->endpoint_id;
			row->verification_id = event->id;
			row->slot = event->slot;
			row->number = event->number;
			if (event->kind == EVENT_CREDITS_LOW)
			{
				row->of_workspace = true;
				row->number = WEBHOOK_NUMBER_WORKSPACE;
			}
			strlcpy(row->event, event_name(event->kind), sizeof(row->event));
			row->occurred_at = event->at;
			row->due_at = now;
			add_fresh(e, row);
		}
	}
	if (nrows > 0)
	{
		webhook_insert(rows, nrows);
		pfree(rows);
	}
}

/* They have been committed */
void
webhooks_done(TimestampTz now)
{
	ListCell   *cell;

	while (!dlist_is_empty(&fresh))
		queue_enter(dlist_container(Webhook, link, dlist_pop_head_node(&fresh)), now);
	foreach(cell, hurried)
		queue_hurry(lfirst(cell), now);
	list_free(hurried);
	hurried = NIL;
	if (wake_after)
		roster_wake(MyDatabaseId);
	wake_after = false;
}

/* They have not */
void
webhooks_undo(void)
{
	while (!dlist_is_empty(&fresh))
		pfree(dlist_container(Webhook, link, dlist_pop_head_node(&fresh)));
	list_free(hurried);
	hurried = NIL;
	wake_after = false;
	endpoints_distrust();
}

/* ---- jobs ---- */

/* Find the endpoint of a job; NULL when it is sent nothing any more */
static Endpoint *
job_endpoint(int32 workspace_id, const json_t *payload)
{
	Endpoint  **endpoints;
	int			n = endpoints_of(workspace_id, &endpoints);
	int64		endpoint_id;

	if (!json_member_int(payload, "endpoint_id", PG_INT32_MIN, PG_INT32_MAX, &endpoint_id))
		return NULL;
	for (int i = 0; i < n; i++)
		if (endpoints[i]->endpoint_id == endpoint_id && !endpoint_over(endpoints[i]))
			return endpoints[i];
	return NULL;
}

/* Read an id of a job */
static bool
job_id(const json_t *payload, const char *key, pg_uuid_t *id)
{
	const char *text = json_member_string(payload, key, OTP_ID_LENGTH);

	return text != NULL && ulid_parse(text, strlen(text), id);
}

/* Queue a test webhook */
static void
do_test(int32 workspace_id, const json_t *payload)
{
	Endpoint   *e = job_endpoint(workspace_id, payload);
	const char *event = json_member_string(payload, "event", sizeof(((WebhookRow *) NULL)->event) - 1);
	WebhookRow	row;

	memset(&row, 0, sizeof(row));
	if (e == NULL || event == NULL || !job_id(payload, "id", &row.id) || queue_has(&row.id))
		return;
	row.workspace_id = workspace_id;
	row.endpoint_id = e->endpoint_id;
	row.test = true;
	strlcpy(row.event, event, sizeof(row.event));
	row.occurred_at = row.due_at = GetCurrentTimestamp();
	webhook_insert(&row, 1);
	add_fresh(e, &row);
}

/* A replay, as its job says it */
typedef struct Replay
{
	int32		endpoint_id;
	bool		only_failed;
	pg_uuid_t	since;
	pg_uuid_t	until;
	int64		leaf;
	WebhookPosition position;	/* in it */
	dlist_node	node;			/* of replays, without a position */
} Replay;

static dlist_head replays = DLIST_STATIC_INIT(replays);

/* Read a replay; false when it makes no sense */
static bool
read_replay(Replay *r, int32 endpoint_id, const json_t *payload)
{
	int64		attempt = MAX_ATTEMPT;

	memset(r, 0, sizeof(Replay));
	r->endpoint_id = endpoint_id;
	r->only_failed = !json_is_false(json_object_get(payload, "only_failed"));
	(void) json_member_int(payload, "attempt", 0, MAX_ATTEMPT, &attempt);
	r->position.attempt = (int16) attempt;
	return json_member_int(payload, "leaf", 0, ULID_SLOTS - 1, &r->leaf) &&
		job_id(payload, "since", &r->since) && job_id(payload, "until", &r->until) &&
		job_id(payload, "after", &r->position.id);
}

/* Go to the beginning of a leaf */
static void
enter_leaf(Replay *r, int leaf)
{
	r->leaf = leaf;
	r->position.id = r->since;
	r->position.attempt = MAX_ATTEMPT;
}

/*
 * Find out whether another replay has taken the place of this one
 *
 * There is one at a time of each kind and endpoint: a new one goes back as far
 * as the one that it finds under way, which ends. So calls cannot pile up.
 */
static bool
is_replaced(Replay *r, bool begins)
{
	Replay	   *known = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &replays)
	{
		Replay	   *other = dlist_container(Replay, node, iter.cur);

		if (other->endpoint_id == r->endpoint_id && other->only_failed == r->only_failed)
			known = other;
	}
	if (known == NULL)
	{
		known = MemoryContextAllocZero(TopMemoryContext, sizeof(Replay));
		known->endpoint_id = r->endpoint_id;
		known->only_failed = r->only_failed;
		known->since = r->since;
		dlist_push_tail(&replays, &known->node);
	}
	else if (memcmp(&known->until, &r->until, UUID_LEN) > 0)
		return true;
	else if (begins && memcmp(&known->since, &r->since, UUID_LEN) < 0)
		r->since = known->since;
	known->since = r->since;
	known->until = r->until;
	return false;
}

/* Forget a replay that has come to its end; NULL: all of an endpoint */
static void
forget_replay(int32 endpoint_id, const Replay *ended)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &replays)
	{
		Replay	   *other = dlist_container(Replay, node, iter.cur);

		if (other->endpoint_id != endpoint_id ||
			(ended != NULL && (other->only_failed != ended->only_failed ||
							   memcmp(&other->until, &ended->until, UUID_LEN) != 0)))
			continue;
		dlist_delete(&other->node);
		pfree(other);
	}
}

/* Queue the rest of a replay */
static void
queue_rest(int32 workspace_id, const Replay *r)
{
	char		since[OTP_ID_LENGTH + 1];
	char		after[OTP_ID_LENGTH + 1];
	char		until[OTP_ID_LENGTH + 1];

	ulid_format(&r->since, since);
	ulid_format(&r->position.id, after);
	ulid_format(&r->until, until);
	queue_payload(OUTBOX_JOB, workspace_id,
				  psprintf("{\"do\":\"replay_webhooks\",\"endpoint_id\":%d,\"leaf\":%d,\"since\":\"%s\","
						   "\"after\":\"%s\",\"attempt\":%d,\"until\":\"%s\",\"only_failed\":%s}",
						   r->endpoint_id, (int) r->leaf, since, after, r->position.attempt, until,
						   r->only_failed ? "true" : "false"));
	wake_after = true;
}

/*
 * Queue webhooks again, and the rest of the job
 *
 * Codes wait for this step: it looks at no more attempts than one turn may
 * have, be it that none of them is to be replayed.
 */
static void
do_replay(int32 workspace_id, const json_t *payload)
{
	Endpoint   *e = job_endpoint(workspace_id, payload);
	TimestampTz now = GetCurrentTimestamp();
	WebhookRow *rows;
	Replay		r;
	bool		begins;
	int64		endpoint_id;
	int			n = 0;

	if (e == NULL && json_member_int(payload, "endpoint_id", PG_INT32_MIN, PG_INT32_MAX, &endpoint_id))
		forget_replay((int32) endpoint_id, NULL);
	if (e == NULL || !read_replay(&r, e->endpoint_id, payload))
		return;
	begins = r.leaf == 0 && r.position.attempt == MAX_ATTEMPT && memcmp(&r.since, &r.position.id, UUID_LEN) == 0;
	if (is_replaced(&r, begins))
		return;

	/* First those that are still being tried */
	if (begins)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		hurried = lappend(hurried, e);
		MemoryContextSwitchTo(old);
		enter_leaf(&r, 0);
	}

	rows = palloc(WEBHOOK_BATCH * sizeof(WebhookRow));
	for (int i = 0; i < EMPTY_LEAVES && r.leaf < ULID_SLOTS; i++)
	{
		int			looked_at;

		n = webhook_read_attempts((int) r.leaf, workspace_id, e->endpoint_id, &r.position, &r.until, r.only_failed,
								  rows, &looked_at);
		if (looked_at < WEBHOOK_BATCH)
			enter_leaf(&r, (int) r.leaf + 1);
		if (looked_at > 0)
			break;
	}
	for (int i = 0; i < n; i++)
	{
		rows[i].due_at = now;
		add_fresh(e, &rows[i]);
	}
	if (n > 0)
		webhook_insert(rows, n);
	if (r.leaf < ULID_SLOTS)
		queue_rest(workspace_id, &r);
	else
		forget_replay(e->endpoint_id, &r);
	pfree(rows);
}

/* Do a job */
bool
webhooks_job(int32 workspace_id, const json_t *payload)
{
	const char *what = json_member_string(payload, "do", NAMEDATALEN);

	if (what != NULL && strcmp(what, "test_webhook") == 0)
		do_test(workspace_id, payload);
	else if (what != NULL && strcmp(what, "replay_webhooks") == 0)
		do_replay(workspace_id, payload);
	else
		return false;
	return true;
}

/* ---- what came of attempts ---- */

/* Note what came of an attempt, to be written by the next turn */
static Outcome *
finish(Webhook *w, TimestampTz now)
{
	Outcome    *outcome = MemoryContextAllocZero(TopMemoryContext, sizeof(Outcome));

	w->endpoint->flying--;
	w->place = WEBHOOK_FINISHED;
	w->outcome = outcome;
	if (w->row.attempts < MAX_ATTEMPT)
		w->row.attempts++;
	outcome->attempt.attempted_at = w->started_at;
	outcome->attempt.duration_ms = (int) Min((now - w->started_at) / 1000, PG_INT32_MAX);
	dlist_push_tail(&finished, &w->link);
	nfinished++;
	return outcome;
}

/* Decide when to try again; at least so many seconds from now */
static void
reschedule(Webhook *w, int retry_after, TimestampTz now)
{
	Outcome    *outcome = w->outcome;
	int64		delay;

	if (endpoint_over(w->endpoint) || w->row.attempts >= MAX_ATTEMPT)
	{
		outcome->attempt.over = true;
		return;
	}

	/* One that came before its time changes nothing in the schedule */
	if (w->started_at < w->row.due_at)
	{
		w->row.due_at = Max(w->row.due_at, now + retry_after * USECS_PER_SEC);
		w->try_at = w->row.due_at;
		return;
	}

	w->row.tries++;
	delay = webhook_delay(w->row.tries);
	if (delay < 0)
		outcome->attempt.over = true;
	else
	{
		delay += (int64) (compat_random() * JITTER * (double) delay);
		w->row.due_at = now + Max(delay, retry_after * USECS_PER_SEC);
		w->try_at = w->row.due_at;
	}
}

/* An attempt has succeeded */
static void
note_success(Endpoint *e, TimestampTz now)
{
	bool		recovered = e->failing_since != 0 && now - e->failing_since >= RECOVERY_US;

	e->failing_since = 0;
	e->failures = 0;
	e->hold_until = 0;
	e->limit = Min(e->limit + 1, ENDPOINT_SLOTS);
	if (recovered)
		queue_hurry(e, now);
}

/* An attempt has failed */
static void
note_failure(Endpoint *e, const WebhookVerdict *verdict, TimestampTz now)
{
	e->last_failure = now;
	e->failures++;
	e->limit = Max(e->limit / 2, 1);
	if (e->failing_since == 0)
		e->failing_since = now;
	if (verdict->busy)
		e->hold_until = Max(e->hold_until, now + verdict->retry_after * USECS_PER_SEC);
	else if (e->failures > HOLD_AFTER)
	{
		int			delay = HOLD_MS << Min(e->failures - HOLD_AFTER - 1, 10);

		e->hold_until = Max(e->hold_until, TimestampTzPlusMilliseconds(now, Min(delay, HOLD_MAX_MS)));
	}

	if (!endpoint_usable(e))
		return;
	if (verdict->gone)
		e->disable_reason = "it answered 410: gone";
	else if (now - e->failing_since >= FAILING_LIFE)
		e->disable_reason = "every attempt has failed for five days";
	if (e->disable_reason != NULL)
	{
		e->note_at = 0;
		queue_empty(e);
	}
}

/* Take in an answer */
void
webhooks_judge(const HttpResponse *response, TimestampTz now)
{
	Webhook    *w = response->owner;
	Endpoint   *e = w->endpoint;
	WebhookVerdict verdict;
	Outcome    *outcome;

	in_flight--;
	strained -= w->strains;
	webhook_judge(response, &verdict);
	outcome = finish(w, now);
	outcome->attempt.http_status = verdict.http_status;
	outcome->attempt.delivered = verdict.delivered;
	if (verdict.delivered)
	{
		outcome->attempt.over = true;
		note_success(e, now);
	}
	else
	{
		strlcpy(outcome->error, verdict.error, sizeof(outcome->error));
		outcome->attempt.error = outcome->error;
		note_failure(e, &verdict, now);
		reschedule(w, verdict.retry_after, now);
	}
	queue_update(e, now);
}

/* ---- a turn, in its transaction ---- */

/* Write what came of attempts */
static void
settle(Turn *turn, int limit)
{
	WebhookAttempt *attempts;
	dlist_iter	iter;
	int			n = 0;

	if (nfinished == 0)
		return;
	attempts = palloc(Min(nfinished, limit) * sizeof(WebhookAttempt));
	dlist_foreach(iter, &finished)
	{
		Webhook    *w = dlist_container(Webhook, link, iter.cur);

		if (n >= limit)
			break;
		attempts[n] = w->outcome->attempt;
		attempts[n++].row = w->row;
	}
	webhook_write_attempts(attempts, n);
	turn->settling = n;
}

/*
 * Give up the first rows of an endpoint, or those of them from before a time
 * (0: any); true when there may be more of them.
 */
static bool
give_up(Endpoint *e, const char *why, TimestampTz before, TimestampTz now)
{
	WebhookRow *rows = palloc(WEBHOOK_BATCH * sizeof(WebhookRow));
	WebhookAttempt *attempts = palloc0(WEBHOOK_BATCH * sizeof(WebhookAttempt));
	pg_uuid_t	first;
	int			n;
	int			count = 0;

	memset(&first, 0, sizeof(first));
	n = webhook_read(e->endpoint_id, &first, rows);
	for (int i = 0; i < n; i++)
	{
		WebhookAttempt *a = &attempts[count];

		if (before != 0 && rows[i].occurred_at >= before)
			continue;
		a->row = rows[i];
		a->row.attempts = Min(a->row.attempts + 1, MAX_ATTEMPT);
		a->over = true;
		a->attempted_at = now;
		a->duration_ms = -1;
		a->error = why;
		count++;
	}
	if (count > 0)
		webhook_write_attempts(attempts, count);
	return count == WEBHOOK_BATCH;
}

/* Write how an endpoint fares */
static void
write_state(Turn *turn, Endpoint *e)
{
	StateNote  *note = &turn->notes[turn->nnotes++];

	note->endpoint = e;
	note->since = e->failing_since;
	note->disabled = e->disable_reason != NULL;
	if (note->disabled)
		note->written = webhook_disable(e->workspace_id, e->endpoint_id, e->disable_reason, turn->now);
	else
		note->written = webhook_note_failing(e->workspace_id, e->endpoint_id, e->failing_since);

	/*
	 * Not again at once, be it that somebody has the row or that it fails all
	 * the time
	 */
	e->note_at = TimestampTzPlusMilliseconds(turn->now, NOTE_MS);
}

/* Do what is to be done in the tables */
static void
do_chores(Turn *turn, int limit)
{
	TimestampTz now = turn->now;
	Endpoint   *e;

	for (int i = 0; i < limit && (e = queue_first_chore(now)) != NULL; i++)
	{
		if (e->loaded && !e->gone && e->note_at <= now &&
			(e->disable_reason != NULL || e->failing_since != e->noted_since))
			write_state(turn, e);
		else if (endpoint_usable(e))
			queue_scan(e, now);
		else
		{
			bool		over = endpoint_over(e);
			bool		more;

			if (over)
				more = give_up(e, e->gone ? "the endpoint was deleted" : "the endpoint is disabled", 0, now);
			else
				more = give_up(e, "the endpoint is paused, and the webhook older than otp.retention",
							   now - otp_retention * USECS_PER_MINUTE, now);
			if (more)
				limit = 0;		/* that was enough for one turn */
			else if (over)
				turn->emptied[turn->nemptied++] = e;
			e->next_scan = TimestampTzPlusMilliseconds(now, more ? 1 : over ? NOTE_MS : CLEAR_MS);
		}
		queue_update(e, now);
	}
}

/* Look for endpoints that are owed something */
static void
meet_endpoints(Turn *turn)
{
	for (int i = 0; i < MEET_WITH && meeting; i++)
	{
		int32		workspace_id;
		Endpoint   *e;

		if (!webhook_next_owed(met, &workspace_id, &met))
		{
			meeting = false;
			return;
		}
		e = endpoint_meet(workspace_id, met);
		e->outside = true;
		e->outside_due = e->next_scan = 0;
		queue_update(e, turn->now);
	}
}

/* Choose whose attempts start, and make their requests */
static void
prepare_attempts(Turn *turn, int limit)
{
	MemoryContext old = MemoryContextSwitchTo(turn->context);
	WebhookRow *rows = palloc(START_WITH * sizeof(WebhookRow));
	WebhookSource *sources = palloc(START_WITH * sizeof(WebhookSource));
	Webhook    *w;
	int			nstrained = 0;

	while (turn->nchosen < limit && (w = queue_choose(turn->now)) != NULL)
	{
		w->strains = w->endpoint->failures > HOLD_AFTER;
		if (w->strains && 2 * (strained + nstrained) >= turn->slots + in_flight)
		{
			w->endpoint->hold_until = TimestampTzPlusMilliseconds(turn->now, STRAINED_MS);
			queue_return(w, false, turn->now);
		}
		else if (endpoint_open(w->endpoint, turn->now))
		{
			nstrained += w->strains;
			rows[turn->nchosen] = w->row;
			turn->chosen[turn->nchosen++] = w;
		}
		else
			queue_return(w, false, turn->now);
	}

	if (turn->nchosen > 0)
		webhook_load_sources(rows, sources, turn->nchosen);
	for (int i = 0; i < turn->nchosen; i++)
	{
		Endpoint   *e = turn->chosen[i]->endpoint;
		WebhookKey	keys[ENDPOINT_KEYS];
		int			nkeys = e->has_previous && e->previous_until > turn->now ? 2 : 1;
		HttpRequest *request = &turn->requests[i];

		for (int k = 0; k < nkeys; k++)
		{
			keys[k].data = e->keys[k];
			keys[k].length = WEBHOOK_SECRET_LENGTH;
		}
		webhook_build(e->url, keys, nkeys, &rows[i].id, turn->now,
					  webhook_body(&rows[i], &sources[i], e->workspace), request);
		request->allow_insecure = otp_allow_insecure_http;
		request->addresses = otp_allow_private_webhooks ? HTTP_ADDRESSES_ALL : HTTP_ADDRESSES_PUBLIC;
		request->owner = turn->chosen[i];
	}
	MemoryContextSwitchTo(old);
}

/* The work of a turn */
static void
work(void *arg)
{
	Turn	   *turn = arg;
	bool		all = care == CARE_NONE;

	/* See the head of this file */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);

	endpoints_refresh(turn->now);
	if (all || care == CARE_SETTLE)
		settle(turn, all ? SETTLE_WITH : 1);
	if (leaving)
		return;
	if (all || care == CARE_CHORES)
	{
		meet_endpoints(turn);
		endpoints_refresh(turn->now);
		do_chores(turn, all ? CHORES_WITH : 1);
		if (turn->now >= next_clear)
			webhook_delete_foreign(turn->now - FOREIGN_LIFE);
	}
	if (all || care == CARE_START)
		prepare_attempts(turn, all ? Min(turn->slots, START_WITH) : Min(turn->slots, 1));
}

/* ---- after it ---- */

/* Carry out what was written */
static void
turn_done(Turn *turn)
{
	TimestampTz now = turn->now;

	for (int i = 0; i < turn->settling; i++)
	{
		Webhook    *w = dlist_container(Webhook, link, dlist_pop_head_node(&finished));

		nfinished--;
		queue_return(w, w->outcome->attempt.over, now);
	}

	for (int i = 0; i < turn->nnotes; i++)
	{
		StateNote  *note = &turn->notes[i];
		Endpoint   *e = note->endpoint;

		if (note->written && note->disabled)
		{
			ereport(LOG,
					(errmsg("webhook endpoint %d is disabled: %s", e->endpoint_id, e->disable_reason),
					 errhint("otp.resume_webhook_endpoint enables it again.")));
			e->status = WEBHOOK_DISABLED;
			e->disable_reason = NULL;
			queue_empty(e);
		}
		else if (note->written)
			e->noted_since = note->since;
		queue_update(e, now);
	}

	for (int i = 0; i < turn->nemptied; i++)
	{
		Endpoint   *e = turn->emptied[i];

		if (e->count > 0)
			continue;
		e->outside = false;
		e->next_scan = NEVER;
		queue_update(e, now);
		if (e->gone)
			endpoint_forget(e);
	}

	for (int i = 0; i < turn->nchosen; i++)
	{
		Webhook    *w = turn->chosen[i];

		if (http_client_start(sender.client, &turn->requests[i]))
		{
			w->place = WEBHOOK_FLIES;
			w->started_at = GetCurrentTimestamp();
			in_flight++;
			strained += w->strains;
		}
		else
		{
			w->endpoint->hold_until = TimestampTzPlusMilliseconds(now, ERROR_WAIT_MS);
			queue_return(w, false, now);
		}
	}

	if (turn->now >= next_clear && (care == CARE_NONE || care == CARE_CHORES))
		next_clear = TimestampTzPlusMilliseconds(now, CLEAR_MS);

	/* With care, all kinds of work have to succeed once */
	if (care == CARE_START)
	{
		care = CARE_NONE;
		start_failures = 0;
	}
	else if (care != CARE_NONE)
		care++;
	errors = 0;
}

/* Make undone what was not committed */
static void
turn_undone(Turn *turn)
{
	TimestampTz now = turn->now;
	long		delay = ERROR_WAIT_MS;

	for (int i = 0; i < turn->nchosen; i++)
	{
		Webhook    *w = turn->chosen[i];

		/* The one that makes it fail: another time */
		if (care == CARE_START && start_failures > 0)
		{
			w->started_at = now;
			(void) finish(w, now);
			w->outcome->attempt.duration_ms = -1;
			strlcpy(w->outcome->error, "internal error: see the server log", sizeof(w->outcome->error));
			w->outcome->attempt.error = w->outcome->error;
			reschedule(w, 0, now);
			queue_update(w->endpoint, now);
		}
		else
			queue_return(w, false, now);
	}
	if (care == CARE_START)
		start_failures++;
	if (care == CARE_SETTLE && nfinished > 1)
		dlist_push_tail(&finished, dlist_pop_head_node(&finished));
	if (care == CARE_CHORES)
	{
		Endpoint   *e = queue_first_chore(now);

		if (e != NULL)
		{
			e->next_scan = e->note_at = TimestampTzPlusMilliseconds(now, LOOK_MS);
			queue_update(e, now);
		}
		if (now >= next_clear)
			next_clear = TimestampTzPlusMilliseconds(now, LOOK_MS);
	}

	/* The next kind, so that one that fails does not stop the others */
	care = care == CARE_NONE || care == CARE_START ? CARE_SETTLE : care + 1;
	for (int i = 0; i < errors && delay < ERROR_WAIT_MAX_MS; i++)
		delay *= 2;
	no_turn_before = TimestampTzPlusMilliseconds(now, Min(delay, ERROR_WAIT_MAX_MS));
	errors++;
	endpoints_distrust();
}

/* When is there something to do? */
static TimestampTz
next_time(void)
{
	TimestampTz at = Min(queue_next_chore(), next_clear);

	if (nfinished > 0 || meeting || endpoints_stale())
		return no_turn_before;
	at = Min(at, Max(queue_next_ready(), crowded_until));
	return Max(at, no_turn_before);
}

/* Write, read, start */
TimestampTz
webhooks_turn(int slots, TimestampTz now)
{
	static MemoryContext context = NULL;
	int			started = 0;

	if (!otp_delivery)
		slots = 0;
	if (next_time() <= now)
	{
		MemoryContext old;
		Turn	   *turn;

		if (context == NULL)
			context = AllocSetContextCreate(TopMemoryContext, "otp webhook turn", ALLOCSET_DEFAULT_SIZES);
		old = MemoryContextSwitchTo(context);
		turn = palloc0(sizeof(Turn));
		turn->now = now;
		turn->slots = slots;
		turn->context = context;
		if (turn_do(work, turn, NULL))
		{
			turn_done(turn);
			started = turn->nchosen;
		}
		else
			turn_undone(turn);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}

	/* More are due than there are slots: others hold them */
	crowded_until = started >= slots && queue_next_ready() <= now ? TimestampTzPlusMilliseconds(now, CROWDED_MS) : 0;
	return Min(next_time(), TimestampTzPlusMilliseconds(now, LOOK_MS));
}

/* Is there something to do? */
bool
webhooks_pending(TimestampTz now)
{
	return next_time() <= now;
}

/* Count attempts in flight */
int
webhooks_in_flight(void)
{
	return in_flight;
}

/* Write what is known, and go */
void
webhooks_leave(void)
{
	leaving = true;
	no_turn_before = 0;
	while (nfinished > 0 && errors == 0)
	{
		int			before = nfinished;

		(void) webhooks_turn(0, GetCurrentTimestamp());
		if (nfinished >= before)
			break;
	}
}
