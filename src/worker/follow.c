/*-------------------------------------------------------------------------
 *
 * follow.c
 *	  Follow messages that were accepted until their verifications end.
 *
 * A message that the provider has taken is still owed three things: SMS
 * instead, if nothing tells in time that it was delivered; a question to a
 * provider whose receipt may have been lost; and that somebody hears of it
 * when the code expires. Messages that it is too late to send are followed,
 * too, for the last of these.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/timestamp.h"

#include "worker/sender.h"

/*
 * Without a receipt, the provider is asked for the first time after this
 * long, when it knows where to send receipts and when not; then after twice
 * as long, and so on.
 */
#define ASK_FIRST_US INT64CONST(30000000)
#define ASK_FIRST_ALONE_US INT64CONST(5000000)

/*
 * What the queue holds may be the receipt that is missed: it is read first,
 * if that does not take longer than this.
 */
#define QUEUE_FIRST_US INT64CONST(1000000)
#define QUEUE_LOOK_MS 20

/* And for the last time so long before the code expires. */
#define ASK_LAST_US INT64CONST(5000000)

/* When will SMS be better? 0: never */
static TimestampTz
fallback_at(const Owed *o)
{
	const Route *route = account_known_route(o->row.workspace_id);

	if (!o->accepted || o->delivered || o->waited || o->row.sms || !o->fallback_sms ||
		route == NULL || route->fallback_us <= 0)
		return 0;
	return o->accepted_at + route->fallback_us;
}

/* When is the provider to be asked? 0: never (again) */
static TimestampTz
ask_at(const Owed *o)
{
	Account    *a = account_known(o->account_id);
	const Channel *channel;
	TimestampTz last = o->row.expires_at - ASK_LAST_US;
	TimestampTz at;

	if (!o->accepted || o->told || a == NULL || a->gone || a->problem != NULL || o->asked_at >= last)
		return 0;
	channel = channel_for(o->row.sms ? "sms" : "whatsapp", a->provider.provider);
	if (channel == NULL || channel->ask == NULL)
		return 0;
	if (o->asked_at == 0)
		at = o->accepted_at + (channel_string(a->provider.settings, "status_callback") != NULL ?
							   ASK_FIRST_US : ASK_FIRST_ALONE_US);
	else
		at = o->asked_at + (o->asked_at - o->accepted_at);
	return Min(at, last);
}

/* Follow it until a time at most */
void
follow_until(Owed *o, TimestampTz due_at)
{
	o->row.due_at = due_at;
	o->place = OWED_FOLLOWED;
	pairingheap_add(&sender.followed, &o->waiting);
	sender.following++;
}

/* Follow it until there is something to do */
void
follow(Owed *o, TimestampTz now)
{
	TimestampTz due = o->row.expires_at;
	TimestampTz at;

	if ((at = fallback_at(o)) != 0)
		due = Min(due, at);
	if ((at = ask_at(o)) != 0)
		due = Min(due, at);
	follow_until(o, due);
}

/* When does the first one's time come? 0: none is followed */
TimestampTz
follow_next_due(void)
{
	if (pairingheap_is_empty(&sender.followed))
		return 0;
	return pairingheap_container(Owed, waiting, pairingheap_first(&sender.followed))->row.due_at;
}

/* Its code has expired, as far as one can tell without looking */
static void
expire(Owed *o, TimestampTz now)
{
	o->tried = false;
	o->record = false;

	/* The last message's row speaks for all */
	owed_finish(o, owed_is_newest(o) ? END_EXPIRED : END_DROP, now);
}

/* Do what is due */
void
follow_due(TimestampTz now)
{
	/* What the sender before has left unread may say that all is well */
	if (!sender.caught_up)
		return;
	while (!pairingheap_is_empty(&sender.followed))
	{
		Owed	   *o = pairingheap_container(Owed, waiting, pairingheap_first(&sender.followed));
		TimestampTz at;

		if (o->row.due_at > now)
			break;
		owed_take_out(o);
		if (o->row.expires_at <= now)
			expire(o, now);
		else if ((at = fallback_at(o)) != 0 && at <= now)
		{
			Account    *a = account_known(o->account_id);
			SendingNumber *number = o->number;

			if ((sender.look || receipts_pending()) && now < at + QUEUE_FIRST_US)
			{
				follow_until(o, TimestampTzPlusMilliseconds(now, QUEUE_LOOK_MS));
				continue;
			}

			/*
			 * Only where receipts have ever come does their absence tell
			 * something
			 */
			o->waited = true;
			if (number == NULL && a != NULL)
				number = account_number(a, o->row.workspace_id, o->row.sms);
			if (number != NULL && number->armed && judge_can_fall_back(o, now))
			{
				o->tried = false;
				o->record = false;
				o->late = true;
				owed_finish(o, END_FALLBACK, now);
			}
			else
				follow(o, now);
		}
		else if ((at = ask_at(o)) != 0 && at <= now)
		{
			o->asking = true;
			owed_wait(o, now);
		}
		else
			follow(o, now);
	}
}
