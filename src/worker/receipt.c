/*-------------------------------------------------------------------------
 *
 * receipt.c
 *	  Take in what providers tell of messages, and what follows from it.
 *
 * Whoever receives a receipt has checked and queued it; the sender alone
 * decides, so that a failure, a timer and an open breaker cannot make three
 * fallbacks of one message. Receipts come in any order, twice, and before
 * the answer to the request that caused them: those of a message that is
 * still in flight wait for it, and a row of the outbox stays until all in it
 * are done with, so that a crash forgets none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "mb/pg_wchar.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/json.h"
#include "base/ulid.h"
#include "store/template.h"
#include "worker/sender.h"

/* In no provider's table; 0 is in Meta's */
#define CODE_UNTOLD (-1)

/* From the Unix epoch to PostgreSQL's */
#define EPOCH_SHIFT_S ((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY)

/* Half a second: providers tell whole ones */
#define HALF_SECOND_US INT64CONST(500000)

/*
 * Most index look-ups in one transaction for messages that memory knows
 * nothing of: their workspace has to be found among the account's.
 */
#define LOOKUPS_MAX 4000

/* What cannot be written is tried again after this long, then twice as long and so on, so often */
#define FAILURE_WAIT_MS 1000
#define FAILURES_MAX 8

/* A receipt waits no longer than this for a lock: codes have to wait with it. */
#define RECEIPT_LOCK_TIMEOUT "50ms"

/* A row of the outbox, and how many of its receipts are not done with */
typedef struct ReceiptBatch
{
	dlist_node	node;			/* of unread */
	OutboxRow	row;
	int			failures;		/* to read it, or to write what is about no
								 * message */
	TimestampTz retry_at;
	int			open;
	int			finished;		/* of those, in this turn */
	int32		account_id;
	char		from[RECEIPT_WORD_SIZE];
	json_t	   *json;			/* for what is about no message */
} ReceiptBatch;

struct ReceiptItem
{
	dlist_node	node;			/* of ready */
	ReceiptItem *next;			/* with an Owed */
	ReceiptBatch *batch;		/* NULL: an answer to a question */
	int32		account_id;
	pg_uuid_t	id;
	int16		number;
	bool		finished;		/* in this turn */
	int			failures;		/* to write it, alone */
	TimestampTz retry_at;
	char		from[RECEIPT_WORD_SIZE];	/* the sending number or account;
											 * "" not told */
	Receipt		receipt;
};

static MemoryContext context;
static dlist_head unread;		/* batches */
static dlist_head ready;		/* items that can be looked at */
static int	nready;
static dlist_head written;		/* items of this turn */
static dlist_head completed;	/* batches of this turn */
static int	singly = 0;			/* so many turns take one thing only */
static bool alone_next;			/* the next turn is to be one of those */
static ReceiptBatch *reading;	/* the one that is being read */

/* Make the lists */
void
receipts_init(void)
{
	context = AllocSetContextCreate(TopMemoryContext, "otp receipts", ALLOCSET_DEFAULT_SIZES);
	dlist_init(&unread);
	dlist_init(&ready);
	dlist_init(&written);
	dlist_init(&completed);
}

/* Take a row over */
void
receipts_take(const OutboxRow *row)
{
	ReceiptBatch *batch = MemoryContextAllocZero(context, sizeof(ReceiptBatch));

	batch->row = *row;
	dlist_push_tail(&unread, &batch->node);
}

/* When is there something to do? 0: nothing is left */
TimestampTz
receipts_next(TimestampTz now)
{
	TimestampTz next = 0;
	dlist_iter	iter;

	/* Those that have failed are few; any other one is due now */
	dlist_foreach(iter, &unread)
	{
		ReceiptBatch *batch = dlist_container(ReceiptBatch, node, iter.cur);

		if (batch->retry_at <= now)
			return now;
		next = next == 0 ? batch->retry_at : Min(next, batch->retry_at);
	}
	dlist_foreach(iter, &ready)
	{
		ReceiptItem *item = dlist_container(ReceiptItem, node, iter.cur);

		if (item->retry_at <= now)
			return now;
		next = next == 0 ? item->retry_at : Min(next, item->retry_at);
	}
	return next;
}

/* Is there something to do now? */
bool
receipts_pending(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = receipts_next(now);

	return next != 0 && next <= now;
}

/* Have an item looked at */
static void
push_ready(ReceiptItem *item)
{
	dlist_push_tail(&ready, &item->node);
	nready++;
}

/* Have the early ones of a message looked at */
void
receipts_release(Owed *o)
{
	while (o->early != NULL)
	{
		ReceiptItem *item = o->early;

		o->early = item->next;
		push_ready(item);
	}
}

/* Attach an item of this turn to its message */
static void
attach(ReceiptItem *item, Owed *o)
{
	dlist_delete(&item->node);
	item->next = o->early;
	o->early = item;
}

/* Take an answer in as if it were a receipt */
void
receipts_answer(Owed *o, const Receipt *receipt)
{
	ReceiptItem *item = MemoryContextAllocZero(context, sizeof(ReceiptItem));

	item->account_id = o->account_id;
	item->id = o->row.id;
	item->number = o->row.number;
	item->receipt = *receipt;
	push_ready(item);
}

/* ---- read ---- */

/* Is this a decimal number that fits everywhere? */
static bool
is_decimal(const char *text)
{
	const char *p = text + (*text == '-');
	size_t		digits = strspn(p, "0123456789");

	if (digits == 0 || digits > 9)
		return false;
	p += digits;
	if (*p == '.')
	{
		digits = strspn(++p, "0123456789");
		if (digits == 0 || digits > 9)
			return false;
		p += digits;
	}
	return *p == '\0';
}

/* Copy a member that is plain ASCII; "" when it is not */
static void
copy_plain(const json_t *object, const char *key, char *out, size_t size)
{
	(void) json_member_copy(object, key, out, size);
	for (const char *p = out; *p != '\0'; p++)
	{
		if ((unsigned char) *p < 0x20 || (unsigned char) *p > 0x7e)
		{
			out[0] = '\0';
			return;
		}
	}
}

/* Read one status; NULL when it is of no use */
static ReceiptItem *
read_status(ReceiptBatch *batch, const json_t *status)
{
	const char *id = json_member_string(status, "id", OTP_ID_LENGTH);
	const char *word = json_member_string(status, "status", RECEIPT_WORD_SIZE);
	int64		number = 1;
	int64		code = 0;
	ReceiptItem *item;
	ReceiptStatus what;
	pg_uuid_t	uuid;

	if (id == NULL || word == NULL || !ulid_parse(id, strlen(id), &uuid))
		return NULL;
	if (strcmp(word, "sent") == 0)
		what = RECEIPT_SENT;
	else if (strcmp(word, "delivered") == 0)
		what = RECEIPT_DELIVERED;
	else if (strcmp(word, "failed") == 0)
		what = RECEIPT_FAILED;
	else
		return NULL;

	item = MemoryContextAllocZero(context, sizeof(ReceiptItem));
	item->batch = batch;
	item->account_id = batch->account_id;
	item->id = uuid;
	(void) json_member_int(status, "number", 1, PG_INT16_MAX, &number);
	item->number = (int16) number;
	item->receipt.status = what;
	(void) json_member_int(status, "at", 1, INT64CONST(32503680000), &item->receipt.at);
	(void) json_member_int(status, "code", 0, PG_INT32_MAX, &code);
	item->receipt.code = (int) code;
	copy_plain(status, "from", item->from, sizeof(item->from));
	if (item->from[0] == '\0')
		strlcpy(item->from, batch->from, sizeof(item->from));
	copy_plain(status, "message_id", item->receipt.message_id, sizeof(item->receipt.message_id));
	copy_plain(status, "detail", item->receipt.detail, sizeof(item->receipt.detail));
	copy_plain(status, "category", item->receipt.category, sizeof(item->receipt.category));
	copy_plain(status, "price", item->receipt.price, sizeof(item->receipt.price));
	if (!is_decimal(item->receipt.price))
		item->receipt.price[0] = '\0';
	copy_plain(status, "price_unit", item->receipt.price_unit, sizeof(item->receipt.price_unit));
	return item;
}

/* Read a batch; in a transaction, but what it does outlives that */
static void
read_batch(ReceiptBatch *batch)
{
	char	   *payload = outbox_payload(&batch->row);
	int64		account_id = 0;
	json_t	   *statuses;

	batch->json = NULL;
	if (payload != NULL)
	{
		char	   *utf8 = pg_server_to_any(payload, strlen(payload), PG_UTF8);

		batch->json = json_from_text(utf8, strlen(utf8));
	}
	(void) json_member_int(batch->json, "account", 1, PG_INT32_MAX, &account_id);
	batch->account_id = (int32) account_id;
	copy_plain(batch->json, "from", batch->from, sizeof(batch->from));

	statuses = json_object_get(batch->json, "statuses");
	for (size_t i = 0; i < json_array_size(statuses); i++)
	{
		ReceiptItem *item = read_status(batch, json_array_get(statuses, i));

		if (item != NULL)
		{
			push_ready(item);
			batch->open++;
		}
	}

	/* The rest is short; the messages need not be there twice */
	if (batch->json != NULL)
		(void) json_object_del(batch->json, "statuses");
}

/* ---- write ---- */

/* A verification that receipts of this turn are about */
typedef struct Subject
{
	MessageKey	key;
	bool		any_delivered;
	bool		failed;			/* for good: nothing is told after that */
} Subject;

/* What is to be written of a message */
typedef struct Change
{
	MessageRecord *record;
	MessageReceipt receipt;
	bool		changed;
} Change;

/* Give the message with this number in memory, or NULL */
static Owed *
find_owed(const pg_uuid_t *id, int number)
{
	Owed	   *o = owed_find(id);

	while (o != NULL && o->row.number != number)
		o = o->same;
	return o;
}

/* Would this message go, or has it gone, through the account? */
static bool
is_of_account(const Owed *o, int32 account_id)
{
	const Route *route;

	if (o->place == OWED_FLIES || o->place == OWED_FINISHED)
		return o->account_id == account_id;
	route = account_known_route(o->row.workspace_id);
	return route != NULL && account_id == (o->row.sms ? route->sms_account : route->whatsapp_account);
}

/* When did it happen, to the second, by a clock that may not be ours? */
static TimestampTz
moment(const Receipt *receipt, TimestampTz least, TimestampTz now)
{
	TimestampTz at = now;

	if (receipt->at > 0)
		at = (TimestampTz) (receipt->at - EPOCH_SHIFT_S) * USECS_PER_SEC + HALF_SECOND_US;
	return Min(Max(at, least), now);
}

/* Take in that a message was delivered */
static void
take_delivered(ReceiptItem *item, Subject *subject, Change *change, Event *events, int *nevents, TimestampTz now)
{
	MessageRecord *m = change->record;

	if (m->delivered_at != 0)
		return;
	m->delivered_at = moment(&item->receipt, m->sent_at, now);
	change->receipt.delivered_at = m->delivered_at;
	change->changed = true;
	for (Owed *o = owed_find(&item->id); o != NULL; o = o->same)
	{
		if (o->place == OWED_FINISHED && o->end == END_FAILED)
			subject->failed = true;
	}
	if (!subject->any_delivered && !subject->failed)
	{
		Event	   *event = &events[(*nevents)++];

		subject->any_delivered = true;
		event->kind = EVENT_DELIVERED;
		event->workspace_id = m->workspace_id;
		event->slot = subject->key.slot;
		event->number = m->number;
		event->id = subject->key.id;
		event->at = m->delivered_at;
	}
	for (Owed *o = owed_find(&item->id); o != NULL; o = o->same)
	{
		o->delivered = true;
		if (o->row.number == m->number)
			o->told = o->arrived = true;

		/* The SMS in place of this one is not needed any more */
		if (o->row.number == m->number + 1 && m->number % 2 == 1 && !o->accepted &&
			(o->place == OWED_WAITS || o->place == OWED_CROWDED))
		{
			owed_take_out(o);
			owed_unhold(o);
			follow(o, now);
		}
	}
}

/* Take in that a message has failed */
static void
take_failed(ReceiptItem *item, Change *change, const MessageRecord *records, int nrecords, TimestampTz now)
{
	MessageRecord *m = change->record;
	const Receipt *r = &item->receipt;
	Account    *a = account_known(item->account_id);
	const Channel *channel;
	Owed	   *o;
	Judgement	j;
	bool		another_stands = false;
	bool		chain_delivered = false;

	if (m->delivered_at != 0 || m->failed_at != 0)
		return;

	/* Of the try before this one? */
	if (r->message_id[0] != '\0' && m->message_id != NULL && strcmp(r->message_id, m->message_id) != 0)
		return;

	memset(&j, 0, sizeof(j));
	channel = channel_for(m->sms ? "sms" : "whatsapp", m->sms ? "twilio" : "meta");
	if (a != NULL)
		channel = channel_for(m->sms ? "sms" : "whatsapp", a->provider.provider);
	if (channel != NULL)
		(void) channel_judge_code(channel, r->code != 0 ? r->code : CODE_UNTOLD, &j);
	j.provider_code = r->code;
	strlcpy(j.detail, r->detail, sizeof(j.detail));

	/* Trouble of the account's own number is the account's */
	if (a != NULL && !m->sms && (item->from[0] == '\0' || strcmp(item->from, account_own_number(a)) == 0))
		j.sender_refused = false;
	if (a != NULL && !a->gone)
		account_receipt_judged(a, &j, now);

	m->failed_at = moment(r, m->sent_at, now);
	change->receipt.failed_at = m->failed_at;
	change->receipt.provider_code = r->code;
	change->receipt.detail = r->detail[0] != '\0' ? r->detail : NULL;
	change->changed = true;

	/* What follows, if anything is still owed for it? */
	o = find_owed(&item->id, item->number);
	if (o == NULL || !o->accepted || o->over)
		return;
	o->told = true;
	for (int i = 0; i < nrecords; i++)
	{
		const MessageRecord *other = &records[i];

		if (other == m || other->key != m->key || other->workspace_id != m->workspace_id)
			continue;
		if (other->delivered_at != 0 ||
			(m->number > 2 && other->sent_at != 0 && other->failed_at == 0))
			another_stands = true;
		if (other->delivered_at != 0 && (other->number + 1) / 2 == (m->number + 1) / 2)
			chain_delivered = true;
	}
	judge_failed(o, &j, another_stands, now);

	/*
	 * Nothing follows, because another one stands: this one has failed all
	 * the same
	 */
	if (another_stands && !chain_delivered &&
		(o->place == OWED_FOLLOWED || (o->place == OWED_FLIES && o->after == END_NONE)))
		credits_note_failed(o);
}

/* Note that receipts come from the number that a message was sent from */
static void
note_number(const ReceiptItem *item, const Account *a, const MessageRecord *m)
{
	SendingNumber *number;

	(void) account_route(m->workspace_id);
	number = account_number(a, m->workspace_id, m->sms);
	if (number == NULL || number->armed || number->arming)
		return;

	/* It may have had another one when it sent this */
	if (item->from[0] != '\0' && strcmp(item->from, number->key.number) != 0)
		return;
	if (route_note_receipts(a->account_id, number->key.number))
		account_arm(number);
}

/* Take one item in; true when it is done with */
static bool
take_item(ReceiptItem *item, Subject *subject, Change *changes, const MessageRecord *records, int nrecords,
		  int key, Event *events, int *nevents, TimestampTz now)
{
	Account    *a = account_get(item->account_id, now);
	Change	   *change = NULL;
	Owed	   *o;
	const Receipt *r = &item->receipt;

	for (int i = 0; i < nrecords; i++)
	{
		if (records[i].key == key && records[i].number == item->number)
			change = &changes[i];
	}

	if (change == NULL || change->record->sent_at == 0)
	{
		/* Of a try that has failed, and is repeated? */
		if (change != NULL && change->record->message_id != NULL &&
			(r->message_id[0] == '\0' || strcmp(r->message_id, change->record->message_id) == 0))
			return true;

		/* Early, unless it is about nothing of this account's */
		o = find_owed(&item->id, item->number);
		if (o == NULL || o->accepted || o->over || !is_of_account(o, item->account_id))
			return true;
		attach(item, o);
		if (o->place == OWED_WAITS || o->place == OWED_CROWDED)
			judge_proven(o, item->account_id, r->message_id, now);
		return false;
	}
	if (change->record->account_id != item->account_id)
		return true;

	/* Where its receipts come from, silence means something from now on */
	if (a != NULL && !a->gone && item->batch != NULL)
		note_number(item, a, change->record);

	if (r->category[0] != '\0' || r->price[0] != '\0')
	{
		change->receipt.category = r->category[0] != '\0' ? r->category : NULL;
		change->receipt.price = r->price[0] != '\0' ? r->price : NULL;
		change->receipt.price_unit = r->price_unit[0] != '\0' ? r->price_unit : NULL;
		change->changed = true;
	}
	if (r->status == RECEIPT_DELIVERED)
		take_delivered(item, subject, change, events, nevents, now);
	else if (r->status == RECEIPT_FAILED)
		take_failed(item, change, records, nrecords, now);
	return true;
}

/* Count an item as done with */
static void
finish_item(ReceiptItem *item)
{
	ReceiptBatch *batch = item->batch;

	item->finished = true;
	if (batch != NULL && ++batch->finished == batch->open)
		dlist_push_tail(&completed, &batch->node);
}

/* Write some */
void
receipts_write(Event *events, int *nevents, OutboxRow **deleted, int *ndeleted)
{
	bool		careful = singly > 0;
	MemoryContext old = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	int			limit = careful ? 1 : RECEIPT_BATCH;
	ReceiptItem **items = palloc(RECEIPT_BATCH * sizeof(ReceiptItem *));
	Subject    *subjects = palloc0(RECEIPT_BATCH * sizeof(Subject));
	int		   *subject_of = palloc(RECEIPT_BATCH * sizeof(int));
	MessageKey *keys = palloc(RECEIPT_BATCH * sizeof(MessageKey));
	MessageRecord *records = NULL;
	Change	   *changes;
	MessageReceipt *receipts;
	Datum		workspaces = (Datum) 0;
	int			nworkspaces = 0;
	int			nunknown = 0;
	int32		unknown_account = 0;
	int			nitems = 0;
	int			nsubjects = 0;
	int			nrecords = 0;
	int			nreceipts = 0;
	int			nread = 0;
	dlist_mutable_iter iter;

	(void) set_config_option("lock_timeout", RECEIPT_LOCK_TIMEOUT, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);

	/*
	 * Read rows until there is enough to do; those with nothing in them are
	 * done
	 */
	dlist_foreach_modify(iter, &unread)
	{
		ReceiptBatch *batch = dlist_container(ReceiptBatch, node, iter.cur);

		if (nready >= limit || nread++ >= limit || (careful && !dlist_is_empty(&completed)))
			break;

		/* What has failed is taken alone */
		if (batch->retry_at > now || (batch->failures > 0 && !careful))
		{
			alone_next |= batch->retry_at <= now;
			continue;
		}
		reading = batch;
		if (batch->json == NULL && batch->failures < FAILURES_MAX)
			read_batch(batch);
		reading = NULL;
		dlist_delete(&batch->node);
		if (batch->open == 0)
			dlist_push_tail(&completed, &batch->node);
	}

	/* Which verifications are they about? */
	dlist_foreach_modify(iter, &ready)
	{
		ReceiptItem *item = dlist_container(ReceiptItem, node, iter.cur);
		int			s = 0;

		if (item->retry_at > now || (item->failures > 0 && !careful))
		{
			alone_next |= item->retry_at <= now;
			continue;
		}
		if (careful && !dlist_is_empty(&completed))
			break;
		while (s < nsubjects && memcmp(&keys[s].id, &item->id, UUID_LEN) != 0)
			s++;
		if (s == nsubjects)
		{
			int32		workspace_id = owed_workspace(&item->id);

			if (workspace_id == 0 && workspaces == (Datum) 0)
				workspaces = route_workspaces(item->account_id, &nworkspaces);
			if (workspace_id == 0 && ++nunknown > 1 &&
				(nunknown * nworkspaces > LOOKUPS_MAX || item->account_id != unknown_account))
				break;
			if (workspace_id == 0)
				unknown_account = item->account_id;
			keys[s].workspace_id = workspace_id;
			keys[s].slot = ulid_slot(&item->id);
			keys[s].id = item->id;
			nsubjects++;
		}
		subject_of[nitems] = s;
		items[nitems++] = item;
		dlist_delete(&item->node);
		nready--;
		dlist_push_tail(&written, &item->node);
		item->finished = false;
		if (nitems == limit)
			break;
	}

	/* What is known of their messages? */
	if (nsubjects > 0)
		nrecords = message_load_states(keys, nsubjects, workspaces, &records);
	changes = palloc0((nrecords + 1) * sizeof(Change));
	receipts = palloc((nrecords + 1) * sizeof(MessageReceipt));
	for (int s = 0; s < nsubjects; s++)
		subjects[s].key = keys[s];
	for (int i = 0; i < nrecords; i++)
	{
		changes[i].record = &records[i];
		changes[i].receipt.key = keys[records[i].key];
		changes[i].receipt.key.workspace_id = records[i].workspace_id;
		changes[i].receipt.number = records[i].number;
		if (records[i].delivered_at != 0)
			subjects[records[i].key].any_delivered = true;
		if (records[i].ended)
			subjects[records[i].key].failed = true;
	}

	for (int i = 0; i < nitems; i++)
	{
		int			s = subject_of[i];

		/* One that is attached to its message leaves the list */
		if (take_item(items[i], &subjects[s], changes, records, nrecords, s, events, nevents, now))
			finish_item(items[i]);
	}

	for (int i = 0; i < nrecords; i++)
	{
		if (changes[i].changed)
			receipts[nreceipts++] = changes[i].receipt;
	}
	if (nreceipts > 0)
		message_write_receipts(receipts, nreceipts);

	/* What has been told in whole */
	dlist_foreach_modify(iter, &completed)
	{
		ReceiptBatch *batch = dlist_container(ReceiptBatch, node, iter.cur);
		json_t	   *templates = batch->failures < FAILURES_MAX ? json_object_get(batch->json, "templates") : NULL;

		if (json_object_get(batch->json, "restriction") != NULL)
			(void) account_get(batch->account_id, now);

		for (size_t i = 0; i < json_array_size(templates); i++)
		{
			json_t	   *t = json_array_get(templates, i);
			const char *name = json_member_string(t, "name", 512);
			const char *language = json_member_string(t, "language", 16);
			const char *status = json_member_string(t, "status", RECEIPT_WORD_SIZE);
			char		reason[CHANNEL_DETAIL_SIZE];
			char		template_id[RECEIPT_WORD_SIZE];

			copy_plain(t, "reason", reason, sizeof(reason));
			copy_plain(t, "template_id", template_id, sizeof(template_id));
			if (name != NULL && language != NULL && status != NULL)
				template_note_status(batch->account_id, name, language, status,
									 reason[0] != '\0' ? reason : NULL,
									 template_id[0] != '\0' ? template_id : NULL);
		}
		deleted[(*ndeleted)++] = &batch->row;
	}
	MemoryContextSwitchTo(old);
}

/* Take in what a batch says of its account */
static void
take_account_news(ReceiptBatch *batch, TimestampTz now)
{
	Account    *a = account_known(batch->account_id);
	const char *restriction = json_member_string(batch->json, "restriction", CHANNEL_DETAIL_SIZE);

	if (a == NULL || a->gone)
		return;
	if (restriction != NULL)
	{
		char		words[ROSTER_ERROR_SIZE];

		copy_plain(batch->json, "restriction", words, sizeof(words));
		account_restrict(a, words[0] != '\0' ? words : "restricted by the provider", now);
	}
	else if (json_is_true(json_object_get(batch->json, "restored")))
		account_restrict(a, NULL, now);
}

/* Forget an item */
static void
free_item(ReceiptItem *item)
{
	if (item->batch != NULL)
	{
		item->batch->open--;
		if (item->finished)
			item->batch->finished--;
	}
	pfree(item);
}

/* Forget what is written */
void
receipts_done(TimestampTz now)
{
	singly = alone_next ? 1 : Max(singly - 1, 0);
	alone_next = false;
	while (!dlist_is_empty(&written))
	{
		free_item(dlist_container(ReceiptItem, node, dlist_pop_head_node(&written)));
	}
	accounts_armed(true);
	while (!dlist_is_empty(&completed))
	{
		ReceiptBatch *batch = dlist_container(ReceiptBatch, node, dlist_pop_head_node(&completed));

		take_account_news(batch, now);
		json_decref(batch->json);
		pfree(batch);
	}
}

/* When to try again what has failed so often */
static TimestampTz
retry_time(int failures, TimestampTz now)
{
	return TimestampTzPlusMilliseconds(now, (int64) FAILURE_WAIT_MS << Min(failures - 1, FAILURES_MAX));
}

/*
 * Keep what could not be written: after a failure of many, each is tried for
 * itself; after one of its own, later. What fails again and again is given
 * up, lest it stands in everybody's way.
 */
void
receipts_undo(TimestampTz now)
{
	dlist_head	again;
	int			n = 0;

	accounts_armed(false);
	dlist_init(&again);
	if (reading != NULL)
	{
		reading->failures++;
		reading->retry_at = retry_time(reading->failures, now);
		reading = NULL;
		n++;
	}
	while (!dlist_is_empty(&written))
	{
		ReceiptItem *item = dlist_container(ReceiptItem, node, dlist_pop_head_node(&written));

		if (item->batch != NULL && item->finished)
			item->batch->finished--;
		item->finished = false;
		if (singly > 0 && n == 0)
		{
			item->failures++;
			item->retry_at = retry_time(item->failures, now);
		}
		dlist_push_head(&again, &item->node);
		n++;
	}

	/* Those with nothing (more) in them are looked at once more */
	while (!dlist_is_empty(&completed))
	{
		ReceiptBatch *batch = dlist_container(ReceiptBatch, node, dlist_pop_head_node(&completed));

		if (batch->open > 0)
			continue;
		if (singly > 0 && n == 0)
		{
			batch->failures++;
			batch->retry_at = retry_time(batch->failures, now);
		}
		dlist_push_head(&unread, &batch->node);
	}

	while (!dlist_is_empty(&again))
	{
		ReceiptItem *item = dlist_container(ReceiptItem, node, dlist_pop_head_node(&again));
		ReceiptBatch *batch = item->batch;

		if (item->failures < FAILURES_MAX)
		{
			dlist_push_head(&ready, &item->node);
			nready++;
			continue;
		}
		ereport(LOG,
				(errmsg("a delivery receipt could not be written, and is given up")));
		free_item(item);
		if (batch != NULL && batch->open == 0)
			dlist_push_head(&unread, &batch->node);
	}
	singly = singly > 0 ? singly - 1 : RECEIPT_BATCH;
}
