/*-------------------------------------------------------------------------
 *
 * sender_settle.c
 *	  Write down what came of messages.
 *
 * One transaction writes otp.messages and deletes or updates the row of the
 * outbox, so that a crash finds both or none. What is finished stays in
 * memory until that transaction has committed: when it fails, it is tried
 * again, and nothing is sent twice for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "store/message.h"
#include "worker/sender.h"

/* Most messages that one transaction settles */
#define SETTLE_BATCH 512

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
	if (o->end == END_SENT)
		m->sent_at = o->ended_at;
	if (o->end == END_FAILED || o->end == END_FALLBACK)
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

/* Write what is finished; in a transaction */
void
settle_write(void)
{
	MemoryContext old = MemoryContextSwitchTo(sender.turn_context);
	int			n = Min(sender.finishing, SETTLE_BATCH);
	MessageRow *messages = palloc(n * sizeof(MessageRow));
	bool	   *known = palloc(n * sizeof(bool));
	OutboxRow **deleted = palloc(n * sizeof(OutboxRow *));
	OutboxRow **updated = palloc(n * sizeof(OutboxRow *));
	int16	   *old_numbers = palloc(n * sizeof(int16));
	int			nmessages = 0;
	int			ndeleted = 0;
	int			nupdated = 0;
	int			i = 0;
	dlist_iter	iter;

	sender.updated = palloc(n * sizeof(OutboxRow));
	sender.settling = n;
	dlist_foreach(iter, &sender.finished)
	{
		Owed	   *o = dlist_container(Owed, node, iter.cur);

		if (i++ == n)
			break;
		if (o->record)
		{
			known[nmessages] = o->row.tries > 0;
			fill_message(&messages[nmessages++], o);
		}
		if (o->end == END_RETRY || o->end == END_FALLBACK)
		{
			fill_update(&sender.updated[nupdated], o);
			updated[nupdated] = &sender.updated[nupdated];
			old_numbers[nupdated] = o->row.number;
			nupdated++;
		}
		else
			deleted[ndeleted++] = &o->row;
	}
	MemoryContextSwitchTo(old);

	if (nmessages > 0)
		message_write(messages, known, nmessages);
	outbox_delete(deleted, ndeleted);
	outbox_update(updated, old_numbers, nupdated);

	/*
	 * A new number may put a row behind the position, from where the claim of
	 * this very transaction would read it again. Should we fail, there is no
	 * row of that number.
	 */
	for (i = 0; i < nupdated; i++)
	{
		if (updated[i]->number != old_numbers[i])
			outbox_keep_behind(&sender.position, updated[i]);
	}
}

/* Forget what is written */
void
settle_done(TimestampTz now)
{
	int			nupdated = 0;

	for (int i = 0; i < sender.settling; i++)
	{
		Owed	   *o = dlist_container(Owed, node, dlist_pop_head_node(&sender.finished));
		OwedEnd		end = o->end;

		sender.finishing--;
		owed_clear_outcome(o);
		switch (end)
		{
			case END_SENT:
				sender.accepted++;
				break;
			case END_FAILED:
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
		if (end != END_RETRY && end != END_FALLBACK)
		{
			owed_free(o);
			continue;
		}

		o->row = sender.updated[nupdated++];
		o->reserved = false;

		/* Somebody has deleted the row: then nothing is owed */
		if (!ItemPointerIsValid(&o->row.ctid))
			owed_free(o);
		else
			owed_wait(o, o->row.due_at);
	}
	sender.settling = 0;
	sender.updated = NULL;
	if (roster_settled() != NULL)
		ConditionVariableBroadcast(roster_settled());
}

/* Keep what could not be written */
void
settle_undo(void)
{
	sender.settling = 0;
	sender.updated = NULL;
}
