/*-------------------------------------------------------------------------
 *
 * waits.c
 *	  Requests that wait for a message's outcome.
 *
 * Who waits costs some memory and nothing else: no transaction, no snapshot,
 * no timer and no look of its own. The senders post what has an outcome (see
 * outcome.c), and only those requests are looked at, some dozens to a short
 * transaction, so that the loop gets on with others in between.
 *
 * News can be lost: with a sender that dies between its commit and its post,
 * in a ring that has gone round, or because nobody posts that no attempt is
 * left. So each second one statement asks for many at once whether there is
 * an outcome that was missed.
 *
 * Whose time is up gets the answer that its call has given, which is what
 * is known while the message is on its way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/outcome.h"
#include "base/owner.h"
#include "base/ulid.h"
#include "listener/listener.h"
#include "store/outcome.h"

/* Most answers that one transaction makes, most waits that it asks for, and most that are answered without one */
#define ANSWER_BATCH 64
#define ASK_BATCH 512
#define DUE_BATCH 512

/* Most news that one turn takes; more is taken by the next */
#define NEWS_BATCH 1024

/* How often each wait is looked at without news */
#define SAFETY_US USECS_PER_SEC

/* While nobody waits, news is listened to for so long */
#define LINGER_US USECS_PER_SEC

/* Lists that waits are found in by their id */
#define BUCKETS 4096

/* A request that waits. malloc's memory: it also goes from callbacks */
typedef struct Wait
{
	Request    *request;
	pg_uuid_t	id;
	int32		workspace_id;
	TimestampTz until;
	TimestampTz asked_at;		/* when it was last known to have no outcome */
	dlist_node	bucket_node;
	dlist_node	until_node;		/* in order of until */
	dlist_node	look_node;		/* of hopeful, or, in order of asked_at, of
								 * quiet */
	bool		hopeful;
	bool		given_up;		/* it cannot be looked at */
	ApiAnswer	own;			/* the call's own answer, with its body behind
								 * this struct */
} Wait;

static bool initialized = false;
static int	nwaits = 0;
static dlist_head buckets[BUCKETS];
static dlist_head by_until;
static dlist_head hopeful;		/* there may be an outcome */
static dlist_head quiet;		/* there was none when last asked */

static bool listening = false;
static TimestampTz nobody_since;

/* Nothing was taken from the news after this moment */
static TimestampTz taken_at;

static bool hurry = false;

/* So many looks are to be taken one by one, because one of them has failed */
static int	careful = 0;

static MemoryContext turn_context = NULL;

/* Prepare the lists */
static void
initialize(void)
{
	for (int i = 0; i < BUCKETS; i++)
		dlist_init(&buckets[i]);
	dlist_init(&by_until);
	dlist_init(&hopeful);
	dlist_init(&quiet);
	initialized = true;
}

/* Give the list that an id is in */
static dlist_head *
bucket_of(const pg_uuid_t *id)
{
	return &buckets[hash_bytes(id->data, UUID_LEN) % BUCKETS];
}

/* Put a wait among those that may have an outcome */
static void
become_hopeful(Wait *w)
{
	if (w->hopeful || w->given_up)
		return;
	w->hopeful = true;
	dlist_delete(&w->look_node);
	dlist_push_tail(&hopeful, &w->look_node);
}

/* Put a wait among those that had no outcome */
static void
become_quiet(Wait *w, TimestampTz asked_at)
{
	w->asked_at = asked_at;
	w->hopeful = false;
	dlist_delete(&w->look_node);
	dlist_push_tail(&quiet, &w->look_node);
}

/* Is it a while since it was asked for? The clock may have been set back */
static bool
is_stale(const Wait *w, TimestampTz now)
{
	return w->asked_at <= now - SAFETY_US || w->asked_at > now + SAFETY_US;
}

/* Is its time up? */
static bool
is_due(const Wait *w, TimestampTz now)
{
	return hurry || w->until <= now || w->until > TimestampTzPlusMilliseconds(now, otp_http_send_wait) + SAFETY_US;
}

/* End a wait, with an answer or without */
static void
end_wait(Wait *w, const ApiAnswer *answer)
{
	Request    *r = w->request;

	r->waiting = false;
	r->wait = NULL;
	dlist_delete(&w->bucket_node);
	dlist_delete(&w->until_node);
	dlist_delete(&w->look_node);
	nwaits--;
	if (answer != NULL)
	{
		request_answer_api(r, answer);
		request_answered(r);
	}
	free(w);
}

/* Have a request wait */
void
waits_add(Request *r, const ApiAnswer *answer)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		fresh;
	dlist_node *before;
	Wait	   *w = NULL;

	if (!initialized)
		initialize();
	if (otp_http_send_wait > 0 && !hurry)
		w = malloc(sizeof(Wait) + answer->length + 1);
	if (w == NULL)
	{
		request_answer_api(r, answer);
		return;
	}

	/*
	 * News of what was sent after we have taken some is yet to be taken. Of
	 * what was sent earlier, and is asked for again or sent again, it may
	 * have come and gone.
	 */
	fresh = listening && ulid_time(&answer->id) > taken_at;
	if (!listening)
	{
		outcome_listen(true);
		listening = true;
		taken_at = now;
	}

	w->request = r;
	w->id = answer->id;
	w->workspace_id = answer->workspace_id;
	w->until = TimestampTzPlusMilliseconds(now, otp_http_send_wait);
	w->asked_at = now;
	w->hopeful = !fresh;
	w->given_up = false;
	w->own = *answer;
	w->own.body = NULL;
	if (answer->body != NULL)
	{
		w->own.body = (char *) (w + 1);
		memcpy(w->own.body, answer->body, answer->length);
		w->own.body[answer->length] = '\0';
	}

	r->waiting = true;
	r->wait = w;
	r->deadline = TimestampTzPlusMilliseconds(w->until, otp_http_timeout);

	/* The last one's time is mostly the last to be up */
	before = dlist_is_empty(&by_until) ? NULL : dlist_tail_node(&by_until);
	while (before != NULL && dlist_container(Wait, until_node, before)->until > w->until)
		before = dlist_has_prev(&by_until, before) ? dlist_prev_node(&by_until, before) : NULL;
	if (before != NULL)
		dlist_insert_after(before, &w->until_node);
	else
		dlist_push_head(&by_until, &w->until_node);
	dlist_push_tail(bucket_of(&w->id), &w->bucket_node);
	dlist_push_tail(fresh ? &quiet : &hopeful, &w->look_node);
	nwaits++;
}

/* The connection is gone */
void
waits_remove(Request *r)
{
	if (r->wait != NULL)
		end_wait(r->wait, NULL);
}

/* Give the number of waits */
int
waits_count(void)
{
	return nwaits;
}

/* Have all end */
void
waits_hurry(void)
{
	hurry = true;
}

/* Take in what the senders have posted */
static void
take_news(TimestampTz now)
{
	static pg_uuid_t ids[NEWS_BATCH];
	bool		missed;
	int			n = outcome_take(ids, NEWS_BATCH, &missed);

	if (n > 0 || missed)
		taken_at = GetCurrentTimestamp();
	for (int i = 0; i < n; i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, bucket_of(&ids[i]))
		{
			Wait	   *w = dlist_container(Wait, bucket_node, iter.cur);

			if (memcmp(&w->id, &ids[i], UUID_LEN) == 0)
				become_hopeful(w);
		}
	}

	/* Then it could be any of them: ask for all */
	if (missed)
	{
		dlist_iter	iter;

		dlist_foreach(iter, &quiet)
			dlist_container(Wait, look_node, iter.cur)->asked_at = now - SAFETY_US;
	}
}

/* Answer those whose time is up, unless there may be an outcome; true when there are more */
static bool
answer_due(TimestampTz now)
{
	int			n = 0;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &by_until)
	{
		Wait	   *w = dlist_container(Wait, until_node, iter.cur);

		if (!is_due(w, now))
			break;
		if (n++ == DUE_BATCH)
			return true;
		if (!w->hopeful)
			end_wait(w, &w->own);
	}
	return false;
}

/* ---- looks ---- */

/* One transaction's look for outcomes */
typedef struct Look
{
	pg_uuid_t	id;
	int32		workspace_id;
	bool		envelope;
	bool		known;
	ApiAnswer	answer;
} Look;

static Look looks[ANSWER_BATCH];
static int	nlooks;

/* And for which of many it is worth one */
static MessageKey keys[ASK_BATCH];
static bool found[ASK_BATCH];
static int	nkeys;

/* Make the answers there are; in a transaction */
static void
make_answers(void)
{
	for (int i = 0; i < nlooks; i++)
	{
		MemoryContextSwitchTo(turn_context);
		looks[i].known = api_outcome(looks[i].workspace_id, &looks[i].id, looks[i].envelope, &looks[i].answer);
	}
}

/* Ask which have an outcome; in a transaction */
static void
ask(void)
{
	OwnerScope	scope;

	owner_enter(&scope);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect did not connect");
	outcome_find(keys, found, nkeys);
	SPI_finish();
	owner_leave(&scope);
}

/* Run one of these in a transaction; false when it failed, by an error that passes or not */
static bool
in_transaction(void (*work) (void), bool *passes)
{
	MemoryContext old = CurrentMemoryContext;
	volatile bool done = false;

	*passes = false;
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();

		/* SPI wants one even for statements that it gives a newer one */
		PushActiveSnapshot(GetTransactionSnapshot());
		work();
		PopActiveSnapshot();
		CommitTransactionCommand();
		done = true;
	}
	PG_CATCH();
	{
		int			sqlstate = geterrcode();

		/* Somebody has a table locked: no news for the log */
		HOLD_INTERRUPTS();
		*passes = sqlstate == ERRCODE_LOCK_NOT_AVAILABLE || sqlstate == ERRCODE_QUERY_CANCELED;
		MemoryContextSwitchTo(turn_context);
		if (!*passes)
			EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return done;
}

/* Choose among the hopeful ones; those that wait for the same are one */
static void
choose_looks(void)
{
	int			most = careful > 0 ? 1 : ANSWER_BATCH;
	dlist_iter	iter;

	nlooks = 0;
	dlist_foreach(iter, &hopeful)
	{
		const Wait *w = dlist_container(Wait, look_node, iter.cur);
		int			i = 0;

		while (i < nlooks && (looks[i].envelope != w->request->envelope ||
							  memcmp(&looks[i].id, &w->id, UUID_LEN) != 0))
			i++;
		if (i < nlooks)
			continue;
		if (nlooks == most)
			break;
		looks[nlooks].id = w->id;
		looks[nlooks].workspace_id = w->workspace_id;
		looks[nlooks].envelope = w->request->envelope;
		looks[nlooks].known = false;
		nlooks++;
	}
}

/* Answer all that a look was for, or have them wait on */
static void
end_look(const Look *look, bool give_up, TimestampTz now)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, bucket_of(&look->id))
	{
		Wait	   *w = dlist_container(Wait, bucket_node, iter.cur);

		if (memcmp(&w->id, &look->id, UUID_LEN) != 0 || w->request->envelope != look->envelope)
			continue;
		if (look->known)
			end_wait(w, &look->answer);
		else
		{
			w->given_up |= give_up;
			become_quiet(w, now);
		}
	}
}

/* Look at some that may have an outcome */
static void
look_at_hopeful(TimestampTz now)
{
	bool		passes;
	bool		done;

	choose_looks();
	if (nlooks == 0)
		return;
	done = in_transaction(make_answers, &passes);
	if (done || passes || careful > 0)
	{
		/*
		 * What fails alone is not tried again: it is answered when its time
		 * is up
		 */
		for (int i = 0; i < nlooks; i++)
		{
			looks[i].known &= done;
			end_look(&looks[i], !done && !passes, now);
		}
		careful = Max(careful - 1, 0);
	}
	else
		careful = nlooks;
}

/* Ask for some that have waited for long without news */
static void
ask_for_quiet(TimestampTz now)
{
	bool		passes;
	dlist_iter	iter;

	nkeys = 0;
	dlist_foreach(iter, &quiet)
	{
		const Wait *w = dlist_container(Wait, look_node, iter.cur);

		if (nkeys == ASK_BATCH || !is_stale(w, now))
			break;
		keys[nkeys].workspace_id = w->workspace_id;
		keys[nkeys].slot = ulid_slot(&w->id);
		keys[nkeys].id = w->id;
		nkeys++;
	}
	if (nkeys == 0)
		return;
	if (!in_transaction(ask, &passes))
		memset(found, 0, sizeof(found));

	/* They are the first of the list still: nobody has been here since */
	for (int i = 0; i < nkeys; i++)
	{
		Wait	   *w = dlist_container(Wait, look_node, dlist_head_node(&quiet));

		if (found[i] && !w->given_up)
			become_hopeful(w);
		else
			become_quiet(w, now);
	}
}

/* Do what there is to do */
TimestampTz
waits_turn(TimestampTz now)
{
	TimestampTz next = DT_NOEND;
	bool		more;

	if (nwaits == 0)
	{
		/* Who sends one after the other need not begin anew each time */
		if (!listening)
			return DT_NOEND;
		if (nobody_since == 0 || nobody_since > now)
			nobody_since = now;
		if (now < nobody_since + LINGER_US)
			return nobody_since + LINGER_US;
		outcome_listen(false);
		listening = false;
		return DT_NOEND;
	}
	nobody_since = 0;
	if (turn_context == NULL)
		turn_context = AllocSetContextCreate(TopMemoryContext, "otp waits", ALLOCSET_DEFAULT_SIZES);

	take_news(now);
	look_at_hopeful(now);
	ask_for_quiet(now);
	more = answer_due(now);
	MemoryContextReset(turn_context);

	if (more || !dlist_is_empty(&hopeful))
		return now;
	if (!dlist_is_empty(&by_until))
		next = Min(next, dlist_container(Wait, until_node, dlist_head_node(&by_until))->until);
	if (!dlist_is_empty(&quiet))
		next = Min(next, dlist_container(Wait, look_node, dlist_head_node(&quiet))->asked_at + SAFETY_US);
	return nwaits > 0 ? next : now + LINGER_US;
}
