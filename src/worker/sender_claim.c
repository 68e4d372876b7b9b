/*-------------------------------------------------------------------------
 *
 * sender_claim.c
 *	  Take what is due, and make requests of it.
 *
 * A claim reads and decides inside a transaction, and writes nothing. What it
 * has decided is carried out when the transaction has ended: no request is
 * started before, so that no transaction is open during HTTP, and none that
 * fails leaves a request behind.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/code.h"
#include "base/guc.h"
#include "base/keyring.h"
#include "base/ulid.h"
#include "store/message.h"
#include "store/queue.h"
#include "store/template.h"
#include "worker/job.h"
#include "worker/sender.h"

/* How long a provider may take to answer: people wait for the code. */
#define REQUEST_TIMEOUT_MS 10000

/* A message whose key is missing is tried again after this long. */
#define KEY_LOOK_MS 5000

/* Out of memory in the HTTP client: try again after this long. */
#define MEMORY_LOOK_MS 1000

/* Waiting ones of an account come back within this of each other, not at once. */
#define SPREAD_MS 200

/* Add an item */
static ClaimItem *
add_item(Owed *o)
{
	ClaimItem  *item = &sender.items[sender.nitems++];

	item->owed = o;
	item->decision = CLAIM_UNDECIDED;
	return item;
}

/* Decide: not now */
static void
decide_wait(ClaimItem *item, TimestampTz until)
{
	item->decision = CLAIM_WAIT;
	item->until = until;
}

/* Decide: this is the end of it */
static void
decide_end(ClaimItem *item, OwedEnd end)
{
	item->decision = CLAIM_END;
	item->owed->end = end;
	item->owed->tried = false;
	item->owed->record = end == END_FAILED || end == END_FALLBACK;
}

/* Decide: this is the end of it, because the account cannot take it */
static void
decide_without(ClaimItem *item, OwedEnd end, const char *why)
{
	Owed	   *o = item->owed;

	decide_end(item, end);
	o->http_status = 0;
	o->provider_code = 0;
	o->detail = MemoryContextStrdup(sender.outcome_context, why);
	o->reason = end == END_FAILED ? "provider_unavailable" : NULL;
}

/* Decide: the account cannot take it */
static void
decide_unavailable(ClaimItem *item, Account *a, const char *why,
				   TimestampTz until, bool final, TimestampTz now)
{
	Owed	   *o = item->owed;

	o->account_id = a != NULL ? a->account_id : 0;
	if (judge_can_fall_back(o, now))
		decide_without(item, END_FALLBACK, why);
	else if (final)
		decide_without(item, END_FAILED, why);
	else
	{
		decide_wait(item, until + (int64) (compat_random() * SPREAD_MS * 1000));
		if (a != NULL)
			owed_hold(o, a);
	}
}

/* Decide: its verification has ended, or will before it can be sent */
static void
decide_over(ClaimItem *item, const MessageSource *source)
{
	/* Should somebody have shortened its life */
	if (source->found)
		item->owed->row.expires_at = Min(item->owed->row.expires_at, source->expires_at);
	if (source->found && source->used_up && owed_is_newest(item->owed))
		decide_end(item, END_USED_UP);
	else if (!source->found || source->ended)
		decide_end(item, END_DROP);
	else
		item->decision = CLAIM_FOLLOW;
}

/* Take rows whose time has come out of memory */
static void
take_waiting(int limit, TimestampTz now)
{
	Owed	   *o;

	while (sender.nitems < limit && (o = owed_first_due(now)) != NULL)
	{
		ClaimItem  *item = add_item(o);

		bool		held = o->held;

		owed_unhold(o);
		if (o->row.expires_at - now < MIN_LIFE_US)
			item->decision = CLAIM_FOLLOW;
		else if (held)
		{
			Account    *a = account_get(o->account_id, now);
			TimestampTz until;

			/* Nothing is read again for those that go on waiting */
			if (a != NULL && account_blocked(a, now, &until))
			{
				decide_wait(item, until + (int64) (compat_random() * SPREAD_MS * 1000));
				owed_hold(o, a);
			}
		}
	}
}

/* Take over a row that is no message */
static void
take_other(const OutboxRow *row)
{
	OtherRow   *note = palloc0(sizeof(OtherRow));

	note->row = *row;
	sender.taken[sender.ntaken++] = note;
}

/* Read new rows of the queue */
static void
take_new(int limit)
{
	OutboxRow  *rows = palloc(OUTBOX_BATCH * sizeof(OutboxRow));
	int64		origin = roster_origin();
	int			n;

	n = outbox_read(&sender.next_position, rows, limit - sender.nitems, &sender.more);

	for (int i = 0; i < n; i++)
	{
		Owed	   *o;
		ClaimItem  *item;

		if (rows[i].kind != OUTBOX_MESSAGE)
		{
			if (rows[i].origin == origin)
				take_other(&rows[i]);
			else
				sender.foreign = true;
			continue;
		}

		o = owed_new(&rows[i]);
		item = add_item(o);
		o->fresh = true;
		if (o->row.credits > 0)
			credits_touch(o->row.workspace_id);
		if (o->row.origin != origin)
		{
			item->decision = CLAIM_IGNORE;
			sender.foreign = true;
		}
		else
		{
			/*
			 * Queued with synchronous_commit off, it may be gone after a
			 * crash: it must be on disk before anybody hears of it. Zero for
			 * what is there already.
			 */
			if (sender.caught_up)
			{
				XLogRecPtr	lsn = TransactionIdGetCommitLSN((TransactionId) o->row.xid);

				sender.flush_lsn = Max(sender.flush_lsn, lsn);
			}
		}
	}

	/*
	 * What was queued before we came may be so old that nobody knows its
	 * commit's place in the log any more: a commit of our own comes after it,
	 * and is flushed.
	 */
	if (!sender.caught_up && n > 0)
	{
		(void) GetTopTransactionId();

		/* A transaction that has logged nothing else would not be flushed */
		ForceSyncCommit();
	}
}

/* Choose the account; true when the message may go */
static bool
choose_account(ClaimItem *item, const MessageSource *source, TimestampTz now, Account **account)
{
	Owed	   *o = item->owed;
	const Route *route;
	Account    *a;
	int32		account_id;
	TimestampTz until;
	TimestampTz latest;

	o->fallback_sms = source->fallback_sms;
	if (!source->found || source->ended || source->expires_at - now < MIN_LIFE_US)
	{
		decide_over(item, source);
		return false;
	}

	/* An SMS in place of what was delivered after all */
	if (o->delivered && o->row.number % 2 == 0)
	{
		item->decision = CLAIM_FOLLOW;
		return false;
	}

	/* Its phone was forgotten: what is there is no number any more */
	if (source->phone[0] != '+')
	{
		decide_end(item, END_DROP);
		return false;
	}

	/* The workspace was deleted: so will be what it has left */
	route = account_route(o->row.workspace_id);
	if (route == NULL)
	{
		decide_end(item, END_DROP);
		return false;
	}
	account_id = o->row.sms ? route->sms_account : route->whatsapp_account;
	a = account_id != 0 ? account_get(account_id, now) : NULL;
	if (a == NULL)
	{
		decide_unavailable(item, NULL, "the workspace has no provider account for this channel",
						   0, true, now);
		return false;
	}

	/* The key may come back; until then nobody can tell the code */
	if (!keyring_has(source->key_id))
	{
		roster_report_error("the key of a code is not in the key file");
		decide_wait(item, TimestampTzPlusMilliseconds(now, KEY_LOOK_MS));
		return false;
	}

	o->account_id = account_id;
	latest = judge_latest(o, now);
	switch (account_admit(a, o, now, latest, &until))
	{
		case ADMIT_START:
			break;
		case ADMIT_WAIT:
			if (until > latest && judge_can_fall_back(o, now))
				decide_without(item, END_FALLBACK, "not tried: the account is throttled");
			else
				decide_wait(item, until);
			return false;
		case ADMIT_CROWDED:
			item->decision = CLAIM_CROWD;
			return false;
		case ADMIT_UNAVAILABLE:
			decide_unavailable(item, a, a->problem != NULL ? a->problem : "not tried: the account's breaker is open",
							   until, false, now);
			return false;
	}
	*account = a;
	return true;
}

/* Make a request ready to start */
static void
finish_request(ClaimItem *item, TimestampTz now)
{
	Owed	   *o = item->owed;

	item->request.timeout_ms = Min(REQUEST_TIMEOUT_MS, (o->row.expires_at - now) / 1000 + 1);
	item->request.owner = o;

	/* Plain http is for tests, and whoever allows it means this one address */
	item->request.allow_insecure = otp_allow_insecure_http &&
		strncmp(item->request.url, "http://", 7) == 0;
	item->decision = CLAIM_START;
}

/* Make the question what became of a message */
static void
build_question(ClaimItem *item, const char *message_id, TimestampTz now)
{
	Owed	   *o = item->owed;
	Account    *a = account_get(o->account_id, now);
	const Channel *channel = a != NULL ? channel_for(o->row.sms ? "sms" : "whatsapp", a->provider.provider) : NULL;
	char		error[HTTP_ERROR_SIZE];
	TimestampTz until;

	/* Not now is soon enough: it is asked again */
	item->decision = CLAIM_FOLLOW;
	if (message_id == NULL || channel == NULL || channel->ask == NULL || a->breaker.state != BREAKER_CLOSED ||
		account_admit(a, o, now, now, &until) != ADMIT_START)
		return;
	memset(&item->request, 0, sizeof(item->request));
	if (channel->ask(&a->provider, message_id, &item->request, error, sizeof(error)))
		finish_request(item, now);
	else
		account_dismiss(o, now);
}

/* Derive the code, or open the one that was given; false when there is none */
static bool
find_code(const Owed *o, const MessageSource *source, char code[CODE_SIZE])
{
	bytea	   *sealed;
	char	   *given;
	bool		fits;

	if (!source->code_given)
	{
		code_derive(&o->row.id, source->salt, source->key_id, source->length, code);
		return true;
	}
	sealed = outbox_code(&o->row);
	given = sealed != NULL ? queue_open_code(&o->row.id, o->row.workspace_id, sealed, source->key_id) : NULL;
	if (given == NULL)
		return false;
	fits = strlcpy(code, given, CODE_SIZE) < CODE_SIZE;
	explicit_bzero(given, strlen(given));
	pfree(given);
	return fits;
}

/* Make the request */
static void
build_request(ClaimItem *item, const MessageSource *source, Account *a, TimestampTz now)
{
	Owed	   *o = item->owed;
	const Channel *channel = channel_for(o->row.sms ? "sms" : "whatsapp", a->provider.provider);
	const Route *route = account_route(o->row.workspace_id);
	ChannelMessage message;
	char		otp_id[OTP_ID_LENGTH + 1];
	char		code[CODE_SIZE];
	char		error[HTTP_ERROR_SIZE] = "the provider does not carry this channel";
	char	   *text = NULL;
	bool		built = false;

	ulid_format(&o->row.id, otp_id);
	if (!find_code(o, source, code))
	{
		account_dismiss(o, now);
		decide_without(item, END_FAILED, "the code that was given is not in the outbox any more");
		o->reason = "delivery_failed";
		return;
	}

	memset(&message, 0, sizeof(message));
	message.otp_id = otp_id;
	message.number = o->row.number;
	message.phone = source->phone;
	message.code = code;
	message.template = source->template_name;
	message.language = source->language;
	message.expires_in = (int) ((source->expires_at - now) / USECS_PER_SEC);
	if (!o->row.sms)
	{
		int64		life = source->expires_at - source->created_at + USECS_PER_SEC / 2;

		message.template = template_variant(o->row.workspace_id, source->template_name, source->language,
											(int) (life / USECS_PER_SEC), NULL);
	}
	o->number = account_number(a, o->row.workspace_id, o->row.sms);
	if (route != NULL)
		message.sender = o->row.sms ? route->sms_sender : route->whatsapp_sender;
	if (o->row.sms)
	{
		text = sms_text_fill(source->body, source->last_line, code, message.expires_in,
							 route != NULL ? route->app_name : NULL);
		message.text = text;
		if (source->sender != NULL && source->sender[0] != '\0')
			message.sender = source->sender;
		message.dlt_entity_id = source->dlt_entity_id;
		message.dlt_template_id = source->dlt_template_id;
	}

	o->own_sender = message.sender != NULL;

	memset(&item->request, 0, sizeof(item->request));
	if (channel != NULL)
		built = channel->build(&a->provider, &message, &item->request, error, sizeof(error));
	explicit_bzero(code, sizeof(code));
	if (text != NULL)
		explicit_bzero(text, strlen(text));

	if (!built)
	{
		char		why[HTTP_ERROR_SIZE + ROSTER_ERROR_SIZE];

		account_dismiss(o, now);
		snprintf(why, sizeof(why), "no request could be made: %s", error);
		roster_report_error(why);
		decide_unavailable(item, a, why, 0, true, now);
		return;
	}
	finish_request(item, now);
}

/* Take up messages where the sender before has left them */
static void
take_up(ClaimItem **items, const MessageKey *keys, const MessageSource *sources, int n, TimestampTz now)
{
	MessageRecord *records;
	int			nrecords = message_load_states(keys, n, (Datum) 0, &records);
	bool	   *over = palloc0(n * sizeof(bool));

	for (int i = 0; i < nrecords; i++)
	{
		const MessageRecord *m = &records[i];
		ClaimItem  *item = items[m->key];
		Owed	   *o = item->owed;

		if (m->delivered_at != 0)
			o->delivered = true;

		/* Taken by the provider, or refused for good while another one stands */
		if (m->number == o->row.number && (m->sent_at != 0 || m->failed_at != 0))
		{
			over[m->key] = true;
			o->accepted = m->sent_at != 0;
			o->accepted_at = m->sent_at;
			o->account_id = m->account_id;
			o->told = m->delivered_at != 0 || m->failed_at != 0;
			o->row.tries++;
		}

		/* The SMS in place of what was delivered after all */
		if (m->delivered_at != 0 && m->number + 1 == o->row.number && m->number % 2 == 1 &&
			item->decision == CLAIM_UNDECIDED)
			item->decision = CLAIM_FOLLOW;
	}
	for (int i = 0; i < n; i++)
	{
		Owed	   *o = items[i]->owed;

		o->fallback_sms = sources[i].fallback_sms;
		(void) account_route(o->row.workspace_id);
		if (!over[i])
			continue;
		if (o->account_id != 0)
			(void) account_get(o->account_id, now);
		if (!sources[i].found || sources[i].ended)
			decide_over(items[i], &sources[i]);
		else
			items[i]->decision = CLAIM_FOLLOW;
	}
}

/* Decide on the questions */
static void
decide_questions(TimestampTz now)
{
	ClaimItem **items = palloc(sender.nitems * sizeof(ClaimItem *));
	MessageKey *keys = palloc(sender.nitems * sizeof(MessageKey));
	char	  **message_ids = palloc0(sender.nitems * sizeof(char *));
	MessageRecord *records;
	int			nrecords;
	int			n = 0;

	for (int i = 0; i < sender.nitems; i++)
	{
		Owed	   *o = sender.items[i].owed;

		if (sender.items[i].decision != CLAIM_UNDECIDED || !o->asking)
			continue;
		items[n] = &sender.items[i];
		keys[n].workspace_id = o->row.workspace_id;
		keys[n].slot = o->row.slot;
		keys[n].id = o->row.id;
		n++;
	}
	if (n == 0)
		return;
	nrecords = message_load_states(keys, n, (Datum) 0, &records);
	for (int i = 0; i < nrecords; i++)
	{
		if (records[i].number == items[records[i].key]->owed->row.number)
			message_ids[records[i].key] = records[i].message_id;
	}
	for (int i = 0; i < n; i++)
		build_question(items[i], message_ids[i], now);
}

/* Decide what to do with what was taken */
static void
decide_items(TimestampTz now)
{
	ClaimItem **items = palloc(sender.nitems * sizeof(ClaimItem *));
	MessageKey *keys = palloc(sender.nitems * sizeof(MessageKey));
	MessageSource *sources;
	Account   **accounts;
	bool	   *texts;
	int			n = 0;
	int			ntexts = 0;

	for (int i = 0; i < sender.nitems; i++)
	{
		Owed	   *o = sender.items[i].owed;

		if (sender.items[i].decision != CLAIM_UNDECIDED || o->asking)
			continue;
		items[n] = &sender.items[i];
		keys[n].workspace_id = o->row.workspace_id;
		keys[n].slot = o->row.slot;
		keys[n].id = o->row.id;
		n++;
	}
	if (n == 0)
		return;

	sources = palloc(n * sizeof(MessageSource));
	accounts = palloc0(n * sizeof(Account *));
	texts = palloc0(n * sizeof(bool));
	message_load(keys, sources, n);

	/* What was queued since we came has been handed to nobody */
	if (!sender.caught_up)
		take_up(items, keys, sources, n, now);
	for (int i = 0; i < n; i++)
	{
		if (items[i]->decision != CLAIM_UNDECIDED)
			continue;

		/* The sender before may have set a time */
		if (items[i]->owed->fresh && items[i]->owed->row.due_at > now)
			decide_wait(items[i], items[i]->owed->row.due_at);

		/*
		 * Or sent it, and died: a receipt that stands behind it in the queue
		 * says so. The queue is read to its end first.
		 */
		else if (!sender.caught_up)
			decide_wait(items[i], now);
		else if (choose_account(items[i], &sources[i], now, &accounts[i]) && items[i]->owed->row.sms)
		{
			texts[i] = true;
			ntexts++;
		}
	}
	if (ntexts > 0)
		message_load_texts(keys, sources, texts, n);
	for (int i = 0; i < n; i++)
	{
		if (items[i]->decision == CLAIM_UNDECIDED)
			build_request(items[i], &sources[i], accounts[i], now);
	}
}

/* Take what is due */
void
claim_take(int limit, TimestampTz now)
{
	MemoryContext old = MemoryContextSwitchTo(sender.turn_context);

	/* The first reading starts nothing */
	limit = sender.caught_up || sender.careful ? Min(limit, OUTBOX_BATCH) : OUTBOX_BATCH;
	sender.items = palloc(limit * sizeof(ClaimItem));
	sender.nitems = 0;
	sender.taken = palloc(OUTBOX_BATCH * sizeof(OtherRow *));
	sender.ntaken = 0;
	sender.more = false;
	sender.flush_lsn = InvalidXLogRecPtr;
	outbox_copy_position(&sender.next_position, &sender.position);

	/* The position and the rows must be of one snapshot */
	PushActiveSnapshot(GetTransactionSnapshot());
	accounts_refresh();
	if (sender.caught_up)
		take_waiting(limit, now);
	if (sender.nitems < limit)
		take_new(limit);
	else
		sender.more = true;
	decide_questions(now);
	decide_items(now);
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
}

/* Hand over the rows that are no messages */
static void
hand_over(TimestampTz now)
{
	for (int i = 0; i < sender.ntaken; i++)
	{
		const OutboxRow *row = &sender.taken[i]->row;
		OtherRow   *note;

		switch (row->kind)
		{
			case OUTBOX_VERIFIED:
			case OUTBOX_CANCELED:
				note = MemoryContextAlloc(TopMemoryContext, sizeof(OtherRow));
				note->row = *row;
				dlist_push_tail(&sender.notes, &note->node);
				sender.nnotes++;
				for (Owed *o = owed_find(&row->id); o != NULL; o = o->same)
					owed_drop(o, now);
				break;
			case OUTBOX_RECEIPTS:
				receipts_take(row);
				break;
			case OUTBOX_JOB:
				jobs_take(row);
				break;
			case OUTBOX_MESSAGE:
				break;
		}
	}
	sender.ntaken = 0;
	sender.taken = NULL;
}

/* A resend takes the place of the messages before it that are followed */
static void
supersede(const Owed *newer, TimestampTz now)
{
	for (Owed *o = owed_find(&newer->row.id); o != NULL; o = o->same)
	{
		if (o->row.number < newer->row.number && o->place == OWED_FOLLOWED)
			owed_drop(o, now);
	}
}

/* Carry out what was decided */
void
claim_done(TimestampTz now)
{
	if (sender.flush_lsn != InvalidXLogRecPtr)
		XLogFlush(sender.flush_lsn);

	outbox_copy_position(&sender.position, &sender.next_position);
	if (!sender.more)
		sender.caught_up = true;

	for (int i = 0; i < sender.nitems; i++)
	{
		ClaimItem  *item = &sender.items[i];
		Owed	   *o = item->owed;

		if (o->fresh && o->row.number > 2 && item->decision != CLAIM_IGNORE)
			supersede(o, now);
		o->fresh = false;
		switch (item->decision)
		{
			case CLAIM_FOLLOW:
				if (o->asking)
				{
					o->asking = false;
					o->asked_at = now;
				}
				follow(o, now);
				break;
			case CLAIM_IGNORE:
				owed_free(o);
				break;
			case CLAIM_UNDECIDED:
			case CLAIM_WAIT:
				owed_wait(o, item->until);
				break;
			case CLAIM_CROWD:
				owed_crowd(o);
				break;
			case CLAIM_END:
				owed_finish(o, o->end, now);
				break;
			case CLAIM_START:
				if (!http_client_start(sender.client, &item->request))
				{
					account_dismiss(o, now);
					owed_wait(o, TimestampTzPlusMilliseconds(now, MEMORY_LOOK_MS));
					break;
				}
				o->started_at = now;
				o->place = OWED_FLIES;
				dlist_push_tail(&sender.in_flight, &o->node);
				sender.flying++;
				break;
		}
	}
	sender.nitems = 0;
	sender.items = NULL;
	hand_over(now);
}

/*
 * Undo a claim whose transaction failed. With blame, the one message that was
 * taken is what makes it fail: then it is given up.
 */
void
claim_undo(bool blame, const char *why, TimestampTz now)
{
	blame = blame && sender.nitems + sender.ntaken == 1;
	if (blame)
		outbox_copy_position(&sender.position, &sender.next_position);

	for (int i = 0; i < sender.nitems; i++)
	{
		Owed	   *o = sender.items[i].owed;

		account_dismiss(o, now);
		owed_clear_outcome(o);
		if (blame && o->asking)
		{
			o->asking = false;
			o->asked_at = now;
			follow(o, now);
		}
		else if (blame)
		{
			o->fresh = false;
			o->tried = false;
			o->record = true;
			o->http_status = 0;
			o->provider_code = 0;
			o->detail = MemoryContextStrdup(sender.outcome_context, why);
			o->reason = "delivery_failed";
			owed_finish(o, END_FAILED, now);
		}
		else if (o->fresh)
			owed_free(o);
		else
			owed_wait(o, o->row.due_at);
	}
	sender.nitems = 0;
	sender.items = NULL;
	sender.ntaken = 0;
	sender.taken = NULL;
}
