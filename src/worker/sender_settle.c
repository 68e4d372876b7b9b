/*-------------------------------------------------------------------------
 *
 * sender_settle.c
 *	  Write down what came of messages, and of their verifications.
 *
 * One transaction writes otp.messages, deletes or updates the rows of the
 * outbox, and queues what webhook endpoints are to hear, so that a crash
 * finds all of it or nothing. What is finished stays in memory until that
 * transaction has committed: when it fails, it is tried again, and nothing is
 * sent or told twice for it.
 *
 * A message that the provider has taken keeps its row, unchanged, until its
 * verification ends: that otp.messages has it is what tells a successor.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/outcome.h"
#include "store/message.h"
#include "worker/sender.h"

/* Most messages that one transaction settles, and most ends that it tells */
#define SETTLE_BATCH 512

/* Somebody has a verification locked whose time is up: look again */
#define LOCKED_LOOK_MS 300

/* What one turn writes */
typedef struct Settle
{
	MessageRow *messages;
	bool	   *known;
	int			nmessages;
	OutboxRow **deleted;
	int			ndeleted;
	OutboxRow **updated;
	int16	   *old_numbers;
	int			nupdated;
	MessageReceipt *late;
	int			nlate;
	Event	   *events;
	int			nevents;
} Settle;

/* Make a row for otp.messages */
static void
fill_message(MessageRow *m, const Owed *o)
{
	memset(m, 0, sizeof(MessageRow));
	m->key.workspace_id = o->row.workspace_id;
	m->key.slot = o->row.slot;
	m->key.id = o->row.id;
	m->number = o->row.number;
	m->tries = o->row.tries + (o->tried ? 1 : 0);
	m->sms = o->row.sms;
	m->account_id = o->account_id;
	m->http_status = o->http_status;
	m->provider_code = o->provider_code;
	m->ended_at = o->ended_at;
	m->message_id = o->message_id;
	m->detail = o->detail;
	m->again = o->again;
	if (o->end == END_SENT)
		m->sent_at = o->ended_at;
	if (o->end == END_FAILED || o->end == END_KEEP || o->end == END_FALLBACK)
		m->failed_at = o->ended_at;
	if (o->end == END_FAILED)
		m->ended_reason = o->reason;
}

/* Make the new row of the outbox */
static void
fill_update(OutboxRow *row, const Owed *o)
{
	*row = o->row;
	if (o->end == END_RETRY)
	{
		if (o->tried)
			row->tries++;
		if (o->unknown)
			row->unknown++;
		row->due_at = o->retry_at;
	}
	else
	{
		/* The same code by SMS, at once */
		row->number++;
		row->tries = 0;
		row->unknown = 0;
		row->sms = true;
		row->due_at = o->ended_at;
	}
}

/* Note an event */
static void
add_event(Settle *settle, EventKind kind, const OutboxRow *row, TimestampTz at)
{
	Event	   *event = &settle->events[settle->nevents++];

	event->kind = kind;
	event->workspace_id = row->workspace_id;
	event->slot = row->slot;
	event->number = Max(row->number, 0);
	event->id = row->id;
	event->at = at;
}

/* Look after those that have failed while another message stands, and those whose time is up */
static void
check_ends(int n)
{
	MessageKey *keys = palloc(n * sizeof(MessageKey));
	Owed	  **owed = palloc(n * sizeof(Owed *));
	MessageRecord *records;
	int			nrecords;
	int			nkeys = 0;
	int			i = 0;
	dlist_iter	iter;

	/*
	 * A failed resend or fallback is not the end of what another message has
	 * delivered
	 */
	dlist_foreach(iter, &sender.finished)
	{
		Owed	   *o = dlist_container(Owed, node, iter.cur);

		if (i++ == n)
			break;
		if (o->end != END_FAILED)
			continue;
		if (!owed_is_newest(o) || (o->delivered && !o->arrived))
			o->end = END_KEEP;
		for (Owed *other = owed_find(&o->row.id); other != NULL && o->row.number > 2; other = other->same)
		{
			if (other != o && (other->accepted || (other->place == OWED_FINISHED && other->end == END_SENT)))
				o->end = END_KEEP;
		}
		if (o->end == END_KEEP || o->row.number == 1)
			continue;
		keys[nkeys].workspace_id = o->row.workspace_id;
		keys[nkeys].slot = o->row.slot;
		keys[nkeys].id = o->row.id;
		owed[nkeys++] = o;
	}
	if (nkeys > 0)
	{
		nrecords = message_load_states(keys, nkeys, (Datum) 0, &records);
		for (int r = 0; r < nrecords; r++)
		{
			Owed	   *o = owed[records[r].key];

			if (records[r].number != o->row.number &&
				(records[r].delivered_at != 0 ||
				 (o->row.number > 2 && records[r].sent_at != 0 && records[r].failed_at == 0)))
				o->end = END_KEEP;
		}
	}

	/* Has anybody verified it, or is just about to? */
	i = nkeys = 0;
	dlist_foreach(iter, &sender.finished)
	{
		Owed	   *o = dlist_container(Owed, node, iter.cur);

		if (i++ == n)
			break;
		if (o->end != END_EXPIRED && o->end != END_USED_UP)
			continue;
		keys[nkeys].workspace_id = o->row.workspace_id;
		keys[nkeys].slot = o->row.slot;
		keys[nkeys].id = o->row.id;
		nkeys++;
	}
	sender.ends = palloc0((nkeys + 1) * sizeof(MessageEnd));
	if (nkeys > 0)
		message_load_ends(keys, sender.ends, nkeys);
}

/*
 * Look after those that may be given back: whether any message of the two
 * that share a price was delivered, or, when the code has expired, taken by a
 * provider
 */
static void
check_served(int n)
{
	MessageKey *keys = palloc(n * sizeof(MessageKey));
	Owed	  **owed = palloc(n * sizeof(Owed *));
	MessageRecord *records;
	int			nrecords;
	int			nkeys = 0;
	int			i = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &sender.finished)
	{
		Owed	   *o = dlist_container(Owed, node, iter.cur);

		if (i++ == n)
			break;
		if ((o->end != END_KEEP && (o->end != END_EXPIRED || o->accepted)) || !credits_returnable(o))
			continue;
		keys[nkeys].workspace_id = o->row.workspace_id;
		keys[nkeys].slot = o->row.slot;
		keys[nkeys].id = o->row.id;
		owed[nkeys++] = o;
	}
	if (nkeys == 0)
		return;
	nrecords = message_load_states(keys, nkeys, (Datum) 0, &records);
	for (int r = 0; r < nrecords; r++)
	{
		Owed	   *o = owed[records[r].key];

		if ((records[r].number + 1) / 2 == (o->row.number + 1) / 2 &&
			(records[r].delivered_at != 0 || (o->end == END_EXPIRED && records[r].sent_at != 0)))
			o->served = true;
	}
}

/* Tell the end of a verification whose row is deleted; false when it is not over yet */
static bool
tell_end(Settle *settle, const Owed *o, const MessageEnd *end)
{
	/* Verified and canceled ones have rows of their own that say so */
	if (!end->found || end->ended)
		return true;
	if (end->used_up)
	{
		add_event(settle, EVENT_FAILED, &o->row, o->ended_at);
		return true;
	}

	/* It may be verified just now: wait for that, but not here */
	if (end->locked || o->end == END_USED_UP)
		return false;
	add_event(settle, EVENT_EXPIRED, &o->row, o->row.expires_at);
	return true;
}

/* Write what a finished message asks for */
static void
settle_owed(Settle *settle, Owed *o, int *ends)
{
	bool		stays = false;
	const MessageEnd *end;

	if (o->record)
	{
		settle->known[settle->nmessages] = o->row.tries > 0;
		fill_message(&settle->messages[settle->nmessages++], o);
	}
	if (o->late)
	{
		MessageReceipt *late = &settle->late[settle->nlate++];

		memset(late, 0, sizeof(MessageReceipt));
		late->key.workspace_id = o->row.workspace_id;
		late->key.slot = o->row.slot;
		late->key.id = o->row.id;
		late->number = o->row.number;
		late->detail = "no receipt of its delivery came in time";
	}

	switch (o->end)
	{
		case END_NONE:
		case END_DROP:
			break;
		case END_SENT:
			if (o->row.number % 2 == 0)
				credits_note_fallback(o);
			add_event(settle, o->row.number % 2 == 0 ? EVENT_SMS_FALLBACK : EVENT_SENT, &o->row, o->ended_at);
			stays = true;
			break;
		case END_KEEP:
			if (!o->served)
				credits_note_failed(o);
			stays = true;
			break;
		case END_FAILED:
			credits_note_failed(o);
			add_event(settle, EVENT_FAILED, &o->row, o->ended_at);
			break;
		case END_RETRY:
		case END_FALLBACK:
			stays = true;
			if (o->over)
				break;
			fill_update(&sender.updated[settle->nupdated], o);
			settle->updated[settle->nupdated] = &sender.updated[settle->nupdated];
			settle->old_numbers[settle->nupdated] = o->row.number;
			settle->nupdated++;
			break;
		case END_EXPIRED:
		case END_USED_UP:
			end = &sender.ends[(*ends)++];
			stays = !tell_end(settle, o, end);

			/* No provider has ever taken it */
			if (!stays && o->end == END_EXPIRED && !o->accepted && !o->served &&
				end->found && !end->ended && !end->used_up)
				credits_note_failed(o);
			break;
	}

	/* Another message of the verification may speak for it from now on */
	o->gone = !stays || o->over || ((o->end == END_SENT || o->end == END_KEEP) && !owed_is_newest(o));
	if (o->gone)
	{
		settle->deleted[settle->ndeleted++] = &o->row;
		if (o->forsaken && !o->accepted && o->end != END_SENT)
			credits_note_failed(o);
	}
}

/* Write what is finished; in a transaction */
void
settle_write(bool receipts)
{
	MemoryContext old = MemoryContextSwitchTo(sender.turn_context);
	bool		careful = sender.careful;
	int			most = SETTLE_BATCH + 3 * RECEIPT_BATCH;
	Settle		settle = {0};
	int			ends = 0;
	int			n;
	int			i = 0;
	dlist_iter	iter;

	settle.messages = palloc(SETTLE_BATCH * sizeof(MessageRow));
	settle.known = palloc(SETTLE_BATCH * sizeof(bool));
	settle.updated = palloc(SETTLE_BATCH * sizeof(OutboxRow *));
	settle.old_numbers = palloc(SETTLE_BATCH * sizeof(int16));
	settle.late = palloc(SETTLE_BATCH * sizeof(MessageReceipt));
	settle.deleted = palloc((most + SETTLE_BATCH) * sizeof(OutboxRow *));
	settle.events = palloc((most + SETTLE_BATCH) * sizeof(Event));
	sender.updated = palloc(SETTLE_BATCH * sizeof(OutboxRow));

	credits_begin();

	/* Receipts first: what follows from them is written with them */
	if (receipts)
		receipts_write(settle.events, &settle.nevents, settle.deleted, &settle.ndeleted);

	n = Min(sender.finishing, SETTLE_BATCH);
	sender.settling = n;
	check_ends(n);
	check_served(n);
	dlist_foreach(iter, &sender.finished)
	{
		if (i++ == n)
			break;
		settle_owed(&settle, dlist_container(Owed, node, iter.cur), &ends);
	}

	/* Ends that others have brought about */
	sender.noting = 0;
	if (!careful || sender.finishing == 0)
	{
		dlist_foreach(iter, &sender.notes)
		{
			OtherRow   *note = dlist_container(OtherRow, node, iter.cur);

			if (sender.noting == SETTLE_BATCH || (careful && sender.noting == 1))
				break;
			sender.noting++;
			if (note->row.kind == OUTBOX_VERIFIED)
				add_event(&settle, EVENT_VERIFIED, &note->row, note->row.due_at);
			settle.deleted[settle.ndeleted++] = &note->row;
		}
	}
	MemoryContextSwitchTo(old);

	if (settle.nmessages > 0)
		message_write(settle.messages, settle.known, settle.nmessages);
	if (settle.nlate > 0)
		message_write_receipts(settle.late, settle.nlate);
	outbox_delete(settle.deleted, settle.ndeleted);
	outbox_update(settle.updated, settle.old_numbers, settle.nupdated);
	if (settle.nevents > 0)
		events_write(settle.events, settle.nevents);
	credits_write();

	/*
	 * A new number may put a row behind the position, from where the claim of
	 * this very transaction would read it again. Should we fail, there is no
	 * row of that number.
	 */
	for (i = 0; i < settle.nupdated; i++)
	{
		if (settle.updated[i]->number != settle.old_numbers[i])
			outbox_keep_behind(&sender.position, settle.updated[i]);
	}
}

/* Is there anything to write? */
bool
settle_pending(void)
{
	return sender.finishing > 0 || sender.nnotes > 0;
}

/* Go on with a message, now that it is written what came of it */
static void
go_on(Owed *o, OwedEnd end, int *nupdated, TimestampTz now)
{
	if (end == END_RETRY || end == END_FALLBACK)
	{
		if (!o->gone)
		{
			o->row = sender.updated[(*nupdated)++];
			o->reserved = false;
			o->accepted = o->told = o->waited = false;
			o->asked_at = 0;

			/* Somebody has deleted the row: then nothing is owed */
			if (!ItemPointerIsValid(&o->row.ctid))
				o->gone = true;
			else
				owed_wait(o, o->row.due_at);
		}
	}
	else if (end == END_SENT || end == END_KEEP)
	{
		o->accepted = end == END_SENT;
		o->accepted_at = o->ended_at;
		o->row.tries++;
		if (!o->gone)
			follow(o, now);
	}
	else if (!o->gone)
		follow_until(o, TimestampTzPlusMilliseconds(now, LOCKED_LOOK_MS));

	/* Its verification has ended in this very turn */
	if (o->over && !o->gone && (o->place == OWED_WAITS || o->place == OWED_FOLLOWED))
		owed_drop(o, now);

	/* With the verification, all its messages have failed */
	if (end == END_FAILED)
	{
		for (Owed *other = owed_find(&o->row.id); other != NULL; other = other->same)
		{
			if (other == o)
				continue;
			other->forsaken = true;
			owed_drop(other, now);
		}
	}

	/* What has overtaken the answer finds it written now */
	receipts_release(o);
	if (o->gone)
		owed_free(o);
}

/* Is what came of a message the outcome of its send? Then somebody may wait for it */
static bool
is_outcome(const Owed *o)
{
	switch (o->end)
	{
		case END_RETRY:
		case END_FALLBACK:
			/* Goes on, unless its verification has ended meanwhile */
			return o->over;
		case END_EXPIRED:
		case END_USED_UP:
			return !o->accepted;
		default:
			return true;
	}
}

/* Forget what is written */
void
settle_done(TimestampTz now)
{
	static pg_uuid_t outcomes[2 * SETTLE_BATCH];
	int			noutcomes = 0;
	int			nupdated = 0;

	for (int i = 0; i < sender.settling; i++)
	{
		Owed	   *o = dlist_container(Owed, node, dlist_pop_head_node(&sender.finished));
		OwedEnd		end = o->end;

		sender.finishing--;
		o->place = OWED_NOWHERE;
		if (is_outcome(o))
			outcomes[noutcomes++] = o->row.id;
		owed_clear_outcome(o);
		switch (end)
		{
			case END_SENT:
				sender.accepted++;
				break;
			case END_FAILED:
			case END_KEEP:
				sender.failed++;
				break;
			case END_RETRY:
				sender.retried++;
				break;
			case END_FALLBACK:
				sender.fallbacks++;
				break;
			default:
				break;
		}
		go_on(o, end, &nupdated, now);
	}
	for (int i = 0; i < sender.noting; i++)
	{
		OtherRow   *note = dlist_container(OtherRow, node, dlist_pop_head_node(&sender.notes));

		outcomes[noutcomes++] = note->row.id;
		pfree(note);
	}
	sender.nnotes -= sender.noting;
	sender.settling = 0;
	sender.noting = 0;
	sender.updated = NULL;
	events_done(now);
	outcome_post(outcomes, noutcomes);
	if (roster_settled() != NULL)
		ConditionVariableBroadcast(roster_settled());
}

/* Keep what could not be written; with blame, the one end that was, cannot be */
void
settle_undo(bool blame)
{
	/* Only what comes from outside can be to blame */
	blame = blame && sender.settling == 0;
	events_undo();
	if (blame && sender.noting == 1)
	{
		pfree(dlist_container(OtherRow, node, dlist_pop_head_node(&sender.notes)));
		sender.nnotes--;
	}
	sender.settling = 0;
	sender.noting = 0;
	sender.updated = NULL;
}
