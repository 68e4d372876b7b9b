/*-------------------------------------------------------------------------
 *
 * sender_judge.c
 *	  Decide what follows from what a provider answered.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "worker/sender.h"

/* Between tries: 1 s, 2 s, 4 s, ... a minute, each give or take a quarter. */
#define RETRY_MS 1000
#define RETRY_MAX_MS 60000

/* With SMS to fall back to, this many tries of WhatsApp are enough. */
#define TRIES_BEFORE_FALLBACK 3

/*
 * With SMS to fall back to, nobody waits longer than this for a provider that
 * wants to be left alone: people at a login form are gone by then.
 */
#define PATIENCE_US INT64CONST(15000000)

/* Of one request whose outcome nobody knows, there is one repeat. */
#define MAX_UNKNOWN 2

/* Could it go by SMS instead? */
bool
judge_can_fall_back(const Owed *o, TimestampTz now)
{
	const Route *route;

	if (o->row.sms || !o->fallback_sms || o->row.expires_at - now < MIN_LIFE_US)
		return false;
	route = account_known_route(o->row.workspace_id);
	return route != NULL && route->sms_account != 0;
}

/* How long can it wait? */
TimestampTz
judge_latest(const Owed *o, TimestampTz now)
{
	TimestampTz latest = o->row.expires_at - MIN_LIFE_US;

	return judge_can_fall_back(o, now) ? Min(latest, now + PATIENCE_US) : latest;
}

/* Copy a provider's words, whatever they are, in server encoding */
static char *
copy_words(const char *words)
{
	char	   *copy;

	if (words == NULL || words[0] == '\0')
		return NULL;
	copy = MemoryContextStrdup(sender.outcome_context, words);

	/*
	 * What comes from outside must not make a statement fail. Nothing but
	 * UTF-8 can take all of UTF-8.
	 */
	if (GetDatabaseEncoding() != PG_UTF8 || !pg_verify_mbstr(PG_UTF8, copy, (int) strlen(copy), true))
	{
		for (char *p = copy; *p != '\0'; p++)
		{
			if ((unsigned char) *p >= 0x80)
				*p = '?';
		}
	}
	return copy;
}

/* When to try again */
static TimestampTz
next_try(const Owed *o, int min_delay_ms, TimestampTz now)
{
	long		delay = RETRY_MS;

	for (int i = 0; i < o->row.tries && delay < RETRY_MAX_MS; i++)
		delay *= 2;
	delay = Min(delay, RETRY_MAX_MS);
	delay = (long) (delay * (0.75 + 0.5 * compat_random()));

	/* A provider's own delay is the least; the jitter comes on top */
	if (delay < min_delay_ms)
		delay = min_delay_ms + (long) (compat_random() * Min(min_delay_ms / 4, 1000));
	return TimestampTzPlusMilliseconds(now, delay);
}

/* Try again, or not any more */
static OwedEnd
try_again(Owed *o, const Judgement *j, TimestampTz now)
{
	int			unknown = o->row.unknown + (j->ambiguous ? 1 : 0);
	int			tries = o->row.tries + 1;
	bool		can_fall_back = judge_can_fall_back(o, now);

	if (j->ambiguous && unknown >= MAX_UNKNOWN)
		return can_fall_back ? END_FALLBACK : END_FAILED;
	if (can_fall_back && tries >= TRIES_BEFORE_FALLBACK)
		return END_FALLBACK;

	o->retry_at = next_try(o, j->min_delay_ms, now);
	if (o->retry_at <= judge_latest(o, now))
		return END_RETRY;

	/*
	 * That is too late. If SMS will not do either, the row stays until the
	 * code expires: then it is dropped, and the verification simply has
	 * expired.
	 */
	if (can_fall_back)
		return END_FALLBACK;
	o->retry_at = o->row.expires_at;
	return END_RETRY;
}

/* Note what came of a request */
static void
apply_judgement(Owed *o, const Judgement *j, TimestampTz now)
{
	OwedEnd		end = END_FAILED;

	o->tried = true;
	o->record = true;
	o->unknown = j->ambiguous;
	o->http_status = j->http_status;
	o->provider_code = j->provider_code;
	o->message_id = copy_words(j->message_id);
	o->detail = copy_words(j->detail);
	o->reason = NULL;

	switch (j->verdict)
	{
		case VERDICT_ACCEPTED:
			end = END_SENT;
			o->detail = NULL;
			break;
		case VERDICT_RETRY:

			/* A receipt that has overtaken the answer knows better */
			if (o->early != NULL)
			{
				end = END_SENT;
				o->unknown = false;
				o->detail = NULL;
			}
			else
				end = try_again(o, j, now);
			break;
		case VERDICT_REFUSED:
		case VERDICT_ACCOUNT:
			if (j->fallback && judge_can_fall_back(o, now))
				end = END_FALLBACK;
			break;
	}
	if (end == END_FAILED)
		o->reason = j->reason != NULL ? j->reason : "delivery_failed";
	owed_finish(o, end, now);
}

/* Take in what came of a question */
static void
judge_answer(Owed *o, const HttpResponse *response, const Channel *channel, TimestampTz now)
{
	Receipt		receipt;

	memset(&receipt, 0, sizeof(receipt));
	if (channel != NULL && channel->read_answer != NULL && response != NULL)
		channel->read_answer(response, &receipt);
	account_dismiss(o, now);
	o->asking = false;
	o->asked_at = now;
	if (o->over || o->after != END_NONE)
	{
		OwedEnd		end = o->over ? END_DROP : o->after;

		o->tried = false;
		o->record = end == END_FAILED || end == END_RETRY;
		o->after = END_NONE;
		owed_finish(o, end, now);
		return;
	}
	if (receipt.status == RECEIPT_DELIVERED || receipt.status == RECEIPT_FAILED)
		receipts_answer(o, &receipt);
	follow(o, now);
}

/* Judge a response */
void
judge_response(const HttpResponse *response, TimestampTz now)
{
	Owed	   *o = response->owner;
	Account    *a = account_known(o->account_id);
	const Channel *channel = channel_for(o->row.sms ? "sms" : "whatsapp", a->provider.provider);
	Judgement	j;

	dlist_delete(&o->node);
	sender.flying--;
	o->place = OWED_NOWHERE;
	if (o->asking)
	{
		judge_answer(o, response, channel, now);
		return;
	}

	memset(&j, 0, sizeof(j));
	channel->judge(&a->provider, response, &j);

	/* A sender that the account does not know: its own one may do for others */
	if (j.verdict == VERDICT_ACCOUNT && j.sender_refused && o->own_sender)
	{
		j.verdict = VERDICT_REFUSED;
		j.reason = "delivery_failed";
	}
	account_judged(a, o, &j, now);
	apply_judgement(o, &j, now);
}

/* Judge a request that we leave without waiting for its answer */
void
judge_abandoned(Owed *o, TimestampTz now)
{
	Judgement	j;

	dlist_delete(&o->node);
	sender.flying--;
	o->place = OWED_NOWHERE;
	if (o->asking)
	{
		judge_answer(o, NULL, NULL, now);
		return;
	}

	memset(&j, 0, sizeof(j));
	j.verdict = VERDICT_RETRY;
	j.ambiguous = true;
	j.fallback = true;
	j.reason = "delivery_failed";
	strlcpy(j.detail, "the sender was stopped before the answer came", sizeof(j.detail));
	account_dismiss(o, now);
	apply_judgement(o, &j, now);
}

/* A message that waits has been taken */
void
judge_proven(Owed *o, int32 account_id, const char *message_id, TimestampTz now)
{
	owed_take_out(o);
	owed_unhold(o);
	owed_clear_outcome(o);
	o->account_id = account_id;
	o->tried = true;
	o->record = true;
	o->unknown = false;
	o->http_status = 0;
	o->provider_code = 0;
	o->message_id = copy_words(message_id);
	o->reason = NULL;
	owed_finish(o, END_SENT, now);
}

/* A message that was accepted has failed */
void
judge_failed(Owed *o, const Judgement *j, bool another_stands, TimestampTz now)
{
	OwedEnd		end = END_FAILED;
	bool		flies = o->place == OWED_FLIES && o->asking;

	/* What follows is being written already, or it waits to be sent */
	if (o->place == OWED_WAITS && o->asking)
		o->asking = false;
	else if (o->place != OWED_FOLLOWED && !flies)
		return;

	o->reason = NULL;
	if (j->fallback && judge_can_fall_back(o, now))
		end = END_FALLBACK;
	else if (j->verdict == VERDICT_RETRY && o->row.unknown + 1 < MAX_UNKNOWN)
	{
		/* Once more: it counts as one whose outcome was not known */
		o->retry_at = next_try(o, j->min_delay_ms, now);
		if (o->retry_at <= judge_latest(o, now))
		{
			end = END_RETRY;
			o->again = true;
			o->unknown = true;
		}
	}
	if (end == END_FAILED && another_stands)
	{
		/* It is not to be sent again, should it have waited for a question */
		if (!flies)
		{
			owed_take_out(o);
			follow(o, now);
		}
		return;
	}
	if (end == END_FAILED)
		o->reason = j->reason != NULL ? j->reason : "delivery_failed";

	if (flies)
	{
		o->after = end;
		return;
	}
	owed_take_out(o);
	o->tried = false;
	o->record = end == END_FAILED || end == END_RETRY;
	owed_finish(o, end, now);
}
