/*-------------------------------------------------------------------------
 *
 * message.c
 *	  Messages: what the sender needs to make one, and what came of it.
 *
 * Rows are read and updated by the name of their leaf, one prepared plan for
 * each; inserts go through the parent, which costs nothing extra.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/ulid.h"
#include "store/message.h"
#include "store/outbox.h"
#include "store/plan.h"

/*
 * A leaf is joined to the keys by the index, whatever the statistics. Of one
 * that was empty when it was last analyzed, as tomorrow's mostly is, a plain
 * join looks as cheap the other way round, through the whole leaf: OFFSET 0
 * keeps the planner from that.
 */
#define VERIFICATION_OF_KEY \
	" CROSS JOIN LATERAL (SELECT * FROM otp.verifications_%02d v" \
	" WHERE v.workspace_id = k.workspace_id AND v.id = k.id OFFSET 0) v"
#define MESSAGE_OF_KEY \
	" CROSS JOIN LATERAL (SELECT i.ctid AS place FROM otp.messages_%02d i" \
	" WHERE i.workspace_id = k.workspace_id AND i.verification_id = k.id AND i.number = k.number OFFSET 0) l" \
	" WHERE m.ctid = l.place"

/* Collect the indexes of a leaf's keys among those wanted */
static int
keys_of_leaf(const MessageKey *keys, const bool *wanted, int n, int leaf, int *members)
{
	int			count = 0;

	for (int i = 0; i < n; i++)
	{
		if (keys[i].slot == leaf && (wanted == NULL || wanted[i]))
			members[count++] = i;
	}
	return count;
}

/* Make the two arrays that name verifications */
static void
key_arrays(const MessageKey *keys, const int *members, int count, Datum *values)
{
	Datum	   *workspaces = palloc(count * sizeof(Datum));
	Datum	   *ids = palloc(count * sizeof(Datum));

	for (int i = 0; i < count; i++)
	{
		workspaces[i] = Int32GetDatum(keys[members[i]].workspace_id);
		ids[i] = UUIDPGetDatum(&keys[members[i]].id);
	}
	values[0] = store_array(workspaces, NULL, count, INT4OID);
	values[1] = store_array(ids, NULL, count, UUIDOID);
}

/* ---- read ---- */

/* Read the verifications of one leaf */
static void
load_leaf(int leaf, const MessageKey *keys, MessageSource *sources,
		  const int *members, int count, MemoryContext context)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID};
	Datum		values[2];

	plan_keep_leaf(plans, leaf,
				   "SELECT k.n, v.expires_at,"
				   " v.verified_at IS NOT NULL OR v.canceled_at IS NOT NULL, v.attempts >= v.max_attempts,"
				   " v.fallback_sms, v.key_id, v.length, v.salt, v.phone, v.template, v.language, v.created_at,"
				   " v.code_given"
				   " FROM unnest($1, $2) WITH ORDINALITY k (workspace_id, id, n)"
				   VERIFICATION_OF_KEY,
				   2, types);
	key_arrays(keys, members, count, values);
	plan_run(plans[leaf], values, NULL, NULL, true, 0);

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		row[13];
		bool		nulls[13];
		MessageSource *source;
		bytea	   *salt;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, row, nulls);
		source = &sources[members[DatumGetInt64(row[0]) - 1]];
		salt = DatumGetByteaPP(row[7]);
		if (VARSIZE_ANY_EXHDR(salt) != MESSAGE_SALT_LENGTH)
			elog(ERROR, "salt of a verification has a wrong length");
		source->found = true;
		source->expires_at = DatumGetTimestampTz(row[1]);
		source->used_up = !DatumGetBool(row[2]) && DatumGetBool(row[3]);
		source->ended = DatumGetBool(row[2]) || DatumGetBool(row[3]);
		source->fallback_sms = DatumGetBool(row[4]);
		source->key_id = DatumGetInt32(row[5]);
		source->length = DatumGetInt16(row[6]);
		memcpy(source->salt, VARDATA_ANY(salt), MESSAGE_SALT_LENGTH);
		source->phone = store_text(row[8], false, context);
		source->template_name = store_text(row[9], false, context);
		source->language = store_text(row[10], false, context);
		source->created_at = DatumGetTimestampTz(row[11]);
		source->code_given = DatumGetBool(row[12]);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Read verifications */
void
message_load(const MessageKey *keys, MessageSource *sources, int n)
{
	MemoryContext context = CurrentMemoryContext;
	int		   *members = palloc(n * sizeof(int));
	uint32		leaves = 0;

	memset(sources, 0, n * sizeof(MessageSource));
	for (int i = 0; i < n; i++)
	{
		if (keys[i].slot >= 0 && keys[i].slot < ULID_SLOTS)
			leaves |= (uint32) 1 << keys[i].slot;
	}
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		if (leaves & ((uint32) 1 << leaf))
		{
			int			count = keys_of_leaf(keys, NULL, n, leaf, members);

			load_leaf(leaf, keys, sources, members, count, context);
		}
	}
	pfree(members);
	MemoryContextSwitchTo(context);
}

/*
 * Read the words of one leaf's messages. The phone stays inside the
 * statement: as a parameter, auto_explain could log it.
 */
static void
load_texts_leaf(int leaf, const MessageKey *keys, MessageSource *sources,
				const int *members, int count, MemoryContext context)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID};
	Datum		values[2];

	plan_keep_leaf(plans, leaf,
				   "SELECT k.n, t.body, t.last_line, t.sender, t.dlt_entity_id, t.dlt_template_id"
				   " FROM unnest($1, $2) WITH ORDINALITY k (workspace_id, id, n)"
				   VERIFICATION_OF_KEY
				   " CROSS JOIN LATERAL (SELECT s.* FROM otp.sms_texts s"
				   " WHERE s.workspace_id = v.workspace_id"
				   " AND s.template IN (v.template, 'otp_verification')"
				   " AND starts_with(v.phone, s.country_prefix)"
				   " ORDER BY s.template = v.template DESC,"
				   " CASE WHEN lower(s.language) = lower(v.language) THEN 0"
				   " WHEN lower(substring(s.language FROM '^[A-Za-z]+')) = lower(substring(v.language FROM '^[A-Za-z]+')) THEN 1"
				   " WHEN s.language = 'en_US' THEN 2 ELSE 3 END,"
				   " length(s.country_prefix) DESC, s.language LIMIT 1) t",
				   2, types);
	key_arrays(keys, members, count, values);
	plan_run(plans[leaf], values, NULL, NULL, true, 0);

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		row[6];
		bool		nulls[6];
		MessageSource *source;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, row, nulls);
		source = &sources[members[DatumGetInt64(row[0]) - 1]];
		source->body = store_text(row[1], nulls[1], context);
		source->last_line = store_text(row[2], nulls[2], context);
		source->sender = store_text(row[3], nulls[3], context);
		source->dlt_entity_id = store_text(row[4], nulls[4], context);
		source->dlt_template_id = store_text(row[5], nulls[5], context);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Read the words of SMS */
void
message_load_texts(const MessageKey *keys, MessageSource *sources,
				   const bool *wanted, int n)
{
	MemoryContext context = CurrentMemoryContext;
	int		   *members = palloc(n * sizeof(int));

	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		int			count = keys_of_leaf(keys, wanted, n, leaf, members);

		if (count > 0)
			load_texts_leaf(leaf, keys, sources, members, count, context);
	}
	pfree(members);
	MemoryContextSwitchTo(context);
}

/* ---- write ---- */

/* The columns that both statements take, as arrays */
#define MESSAGE_NCOLUMNS 15

static const Oid message_elements[MESSAGE_NCOLUMNS] = {
	INT4OID, UUIDOID, INT2OID, INT2OID, INT2OID, INT4OID, INT2OID, INT4OID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID
};

static const Oid message_arrays[MESSAGE_NCOLUMNS] = {
	INT4ARRAYOID, UUIDARRAYOID, INT2ARRAYOID, INT2ARRAYOID, INT2ARRAYOID, INT4ARRAYOID, INT2ARRAYOID, INT4ARRAYOID,
	TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID
};

#define MESSAGE_UNNEST \
	" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)" \
	" k (workspace_id, id, slot, number, tries, account_id, http_status, provider_code," \
	" sent_at, failed_at, channel, message_id, detail, ended_reason, again)"

/* Set a value, or NULL for nothing */
static inline void
put(Datum *values, bool *nulls, int i, bool is_null, Datum value)
{
	values[i] = value;
	nulls[i] = is_null;
}

/* Make the arrays of some rows */
static void
message_values(const MessageRow *rows, const int *members, int count, Datum *values)
{
	Datum	   *v[MESSAGE_NCOLUMNS];
	bool	   *nulls[MESSAGE_NCOLUMNS];
	Datum		sms = CStringGetTextDatum("sms");
	Datum		whatsapp = CStringGetTextDatum("whatsapp");

	for (int c = 0; c < MESSAGE_NCOLUMNS; c++)
	{
		v[c] = palloc(count * sizeof(Datum));
		nulls[c] = palloc0(count * sizeof(bool));
	}
	for (int i = 0; i < count; i++)
	{
		const MessageRow *r = &rows[members[i]];

		v[0][i] = Int32GetDatum(r->key.workspace_id);
		v[1][i] = UUIDPGetDatum(&r->key.id);
		v[2][i] = Int16GetDatum(r->key.slot);
		v[3][i] = Int16GetDatum(r->number);
		v[4][i] = Int16GetDatum(r->tries);
		put(v[5], nulls[5], i, r->account_id == 0, Int32GetDatum(r->account_id));
		put(v[6], nulls[6], i, r->http_status == 0, Int16GetDatum(r->http_status));
		put(v[7], nulls[7], i, r->provider_code == 0, Int32GetDatum(r->provider_code));
		put(v[8], nulls[8], i, r->sent_at == 0, TimestampTzGetDatum(r->sent_at));
		put(v[9], nulls[9], i, r->failed_at == 0, TimestampTzGetDatum(r->failed_at));
		v[10][i] = r->sms ? sms : whatsapp;
		put(v[11], nulls[11], i, r->message_id == NULL,
			r->message_id ? CStringGetTextDatum(r->message_id) : (Datum) 0);
		put(v[12], nulls[12], i, r->detail == NULL,
			r->detail ? CStringGetTextDatum(r->detail) : (Datum) 0);
		put(v[13], nulls[13], i, r->ended_reason == NULL,
			r->ended_reason ? CStringGetTextDatum(r->ended_reason) : (Datum) 0);
		v[14][i] = BoolGetDatum(r->again);
	}
	for (int c = 0; c < MESSAGE_NCOLUMNS; c++)
		values[c] = store_array(v[c], nulls[c], count, message_elements[c]);
}

/* Insert rows; gives how many were not there */
static uint64
insert_rows(const MessageRow *rows, const int *members, int count)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[MESSAGE_NCOLUMNS + 1];
	Datum		values[MESSAGE_NCOLUMNS + 1];
	Datum	   *ended = palloc(count * sizeof(Datum));

	memcpy(types, message_arrays, sizeof(message_arrays));
	types[MESSAGE_NCOLUMNS] = TIMESTAMPTZARRAYOID;
	plan_keep(&plan,
			  "INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, account_id,"
			  " http_status, provider_code, sent_at, failed_at, channel, message_id, detail, ended_reason, created_at)"
			  " SELECT k.workspace_id, k.id, k.slot, k.number, k.tries, k.account_id, k.http_status, k.provider_code,"
			  " k.sent_at, k.failed_at, k.channel, k.message_id, k.detail, k.ended_reason, k.created_at"
			  " FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
			  " k (workspace_id, id, slot, number, tries, account_id, http_status, provider_code,"
			  " sent_at, failed_at, channel, message_id, detail, ended_reason, again, created_at)"
			  " ON CONFLICT DO NOTHING",
			  MESSAGE_NCOLUMNS + 1, types);
	message_values(rows, members, count, values);
	for (int i = 0; i < count; i++)
		ended[i] = TimestampTzGetDatum(rows[members[i]].ended_at);
	values[MESSAGE_NCOLUMNS] = store_array(ended, NULL, count, TIMESTAMPTZOID);
	plan_run(plan, values, NULL, NULL, false, 0);
	return SPI_processed;
}

/* Update the rows of one leaf */
static void
update_leaf(int leaf, const MessageRow *rows, const int *members, int count)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Datum		values[MESSAGE_NCOLUMNS];

	/* Given up without another try, the words of the last one say more */
	plan_keep_leaf(plans, leaf,
				   "UPDATE otp.messages_%02d m SET tries = k.tries,"
				   " account_id = coalesce(k.account_id, m.account_id),"
				   " http_status = CASE WHEN k.tries > m.tries THEN k.http_status ELSE m.http_status END,"
				   " provider_code = CASE WHEN k.tries > m.tries THEN k.provider_code ELSE m.provider_code END,"
				   " detail = CASE WHEN k.tries > m.tries THEN k.detail ELSE coalesce(m.detail, k.detail) END,"
				   " sent_at = CASE WHEN k.again THEN NULL ELSE coalesce(m.sent_at, k.sent_at) END,"
				   " failed_at = CASE WHEN k.again THEN NULL ELSE coalesce(k.failed_at, m.failed_at) END,"
				   " message_id = coalesce(k.message_id, m.message_id), ended_reason = k.ended_reason"
				   MESSAGE_UNNEST MESSAGE_OF_KEY,
				   MESSAGE_NCOLUMNS, message_arrays);
	message_values(rows, members, count, values);
	plan_run(plans[leaf], values, NULL, NULL, false, 0);
}

/* Write what came of messages */
void
message_write(const MessageRow *rows, const bool *known, int n)
{
	int		   *members = palloc(n * sizeof(int));
	int			count = 0;
	int			nknown = 0;
	bool		all = false;
	MemoryContext context = CurrentMemoryContext;

	for (int i = 0; i < n; i++)
	{
		if (!known[i])
			members[count++] = i;
		else
			nknown++;
	}

	/*
	 * A row that should not be there must not stop the sender: it would send
	 * the same messages again and again. So write over it.
	 */
	if (count > 0 && insert_rows(rows, members, count) < (uint64) count)
		all = true;

	for (int leaf = 0; leaf < ULID_SLOTS && (nknown > 0 || all); leaf++)
	{
		count = 0;
		for (int i = 0; i < n; i++)
		{
			if (rows[i].key.slot == leaf && (all || known[i]))
				members[count++] = i;
		}
		if (count > 0)
			update_leaf(leaf, rows, members, count);
	}
	pfree(members);
	MemoryContextSwitchTo(context);
}

/* ---- receipts and ends ---- */

/* Collect the leaves of some keys */
static uint32
leaves_of(const MessageKey *keys, int n)
{
	uint32		leaves = 0;

	for (int i = 0; i < n; i++)
	{
		if (keys[i].slot >= 0 && keys[i].slot < ULID_SLOTS)
			leaves |= (uint32) 1 << keys[i].slot;
	}
	return leaves;
}

/* Read the messages of one leaf's verifications */
static void
load_states_leaf(int leaf, const MessageKey *keys, const int *members, int count, Datum workspaces,
				 MemoryContext context, MessageRecord **states, int *n)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	static SPIPlanPtr any_plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID, INT4ARRAYOID};
	Datum		values[3];
	bool		any = workspaces != (Datum) 0;

#define STATE_COLUMNS "SELECT k.n, m.workspace_id, m.number, coalesce(m.account_id, 0), m.channel = 'sms'," \
	" m.sent_at, m.delivered_at, m.failed_at, m.message_id, m.ended_reason IS NOT NULL" \
	" FROM unnest($1, $2) WITH ORDINALITY k (workspace_id, id, n)"

	if (any)
		plan_keep_leaf(any_plans, leaf,
					   STATE_COLUMNS
					   " CROSS JOIN unnest($3) w (id)"
					   " CROSS JOIN LATERAL (SELECT * FROM otp.messages_%02d m"
					   " WHERE m.workspace_id = w.id AND m.verification_id = k.id OFFSET 0) m",
					   3, types);
	else
		plan_keep_leaf(plans, leaf,
					   STATE_COLUMNS
					   " CROSS JOIN LATERAL (SELECT * FROM otp.messages_%02d m"
					   " WHERE m.workspace_id = k.workspace_id AND m.verification_id = k.id OFFSET 0) m",
					   2, types);
	key_arrays(keys, members, count, values);
	values[2] = workspaces;
	plan_run(any ? any_plans[leaf] : plans[leaf], values, NULL, NULL, true, 0);

	if (SPI_processed > 0)
	{
		if (*states == NULL)
			*states = MemoryContextAlloc(context, SPI_processed * sizeof(MessageRecord));
		else
			*states = repalloc(*states, (*n + SPI_processed) * sizeof(MessageRecord));
	}
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		row[10];
		bool		nulls[10];
		MessageRecord *state = &(*states)[(*n)++];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, row, nulls);
		state->key = members[DatumGetInt64(row[0]) - 1];
		state->workspace_id = DatumGetInt32(row[1]);
		state->number = DatumGetInt16(row[2]);
		state->account_id = DatumGetInt32(row[3]);
		state->sms = DatumGetBool(row[4]);
		state->sent_at = store_time(row[5], nulls[5]);
		state->delivered_at = store_time(row[6], nulls[6]);
		state->failed_at = store_time(row[7], nulls[7]);
		state->message_id = store_text(row[8], nulls[8], context);
		state->ended = DatumGetBool(row[9]);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Read the messages of verifications */
int
message_load_states(const MessageKey *keys, int n, Datum workspaces, MessageRecord **states)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		leaves = leaves_of(keys, n);
	int		   *members = palloc(n * sizeof(int));
	bool	   *wanted = palloc(n * sizeof(bool));
	int			found = 0;

	*states = NULL;
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		if ((leaves & ((uint32) 1 << leaf)) == 0)
			continue;

		/* First those whose workspace is known, then the others */
		for (int any = 0; any < 2; any++)
		{
			int			count;

			for (int i = 0; i < n; i++)
				wanted[i] = (keys[i].workspace_id == 0) == (any == 1);
			count = keys_of_leaf(keys, wanted, n, leaf, members);
			if (count > 0 && (any == 0 || workspaces != (Datum) 0))
				load_states_leaf(leaf, keys, members, count, any == 1 ? workspaces : (Datum) 0,
								 context, states, &found);
		}
	}
	pfree(members);
	pfree(wanted);
	MemoryContextSwitchTo(context);
	return found;
}

/* Read how verifications stand */
void
message_load_ends(const MessageKey *keys, MessageEnd *ends, int n)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID};
	MemoryContext context = CurrentMemoryContext;
	uint32		leaves = leaves_of(keys, n);
	int		   *members = palloc(n * sizeof(int));

	memset(ends, 0, n * sizeof(MessageEnd));
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		Datum		values[2];
		int			count;

		if ((leaves & ((uint32) 1 << leaf)) == 0)
			continue;
		plan_keep_leaf(plans, leaf,
					   "SELECT k.n, v.verified_at IS NOT NULL OR v.canceled_at IS NOT NULL,"
					   " v.attempts >= v.max_attempts,"
					   " EXISTS (SELECT 1 FROM otp.verifications_%02d l"
					   " WHERE l.workspace_id = k.workspace_id AND l.id = k.id FOR SHARE SKIP LOCKED)"
					   " FROM unnest($1, $2) WITH ORDINALITY k (workspace_id, id, n)"
					   VERIFICATION_OF_KEY,
					   2, types);
		count = keys_of_leaf(keys, NULL, n, leaf, members);
		key_arrays(keys, members, count, values);

		/* Not read-only: it locks, and so takes a snapshot of its own */
		plan_run(plans[leaf], values, NULL, NULL, false, 0);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			Datum		row[4];
			bool		nulls[4];
			MessageEnd *end;

			heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, row, nulls);
			end = &ends[members[DatumGetInt64(row[0]) - 1]];
			end->found = true;
			end->ended = DatumGetBool(row[1]);
			end->used_up = DatumGetBool(row[2]);
			end->locked = !DatumGetBool(row[3]);
		}
		SPI_freetuptable(SPI_tuptable);
	}
	pfree(members);
	MemoryContextSwitchTo(context);
}

/* Put a text, or NULL */
static void
put_text(Datum *values, bool *nulls, int i, const char *text)
{
	put(values, nulls, i, text == NULL, text != NULL ? CStringGetTextDatum(text) : (Datum) 0);
}

/* The columns of a receipt, as arrays */
#define RECEIPT_NCOLUMNS 10

/* Write receipts of one leaf */
static void
write_receipts_leaf(int leaf, const MessageReceipt *receipts, const int *members, int count)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	static const Oid elements[RECEIPT_NCOLUMNS] = {
		INT4OID, UUIDOID, INT2OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID
	};
	static const Oid arrays[RECEIPT_NCOLUMNS] = {
		INT4ARRAYOID, UUIDARRAYOID, INT2ARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID,
		TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID
	};
	Datum	   *v[RECEIPT_NCOLUMNS];
	bool	   *nulls[RECEIPT_NCOLUMNS];
	Datum		values[RECEIPT_NCOLUMNS];

	plan_keep_leaf(plans, leaf,
				   "UPDATE otp.messages_%02d m SET delivered_at = coalesce(m.delivered_at, k.delivered_at),"
				   " failed_at = coalesce(m.failed_at, k.failed_at),"
				   " provider_code = coalesce(k.provider_code, m.provider_code),"
				   " detail = coalesce(k.detail, m.detail),"
				   " pricing_category = coalesce(k.category, m.pricing_category),"
				   " price = coalesce(k.price::numeric, m.price), price_unit = coalesce(k.price_unit, m.price_unit)"
				   " FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
				   " k (workspace_id, id, number, delivered_at, failed_at, provider_code,"
				   " detail, category, price, price_unit)"
				   MESSAGE_OF_KEY,
				   RECEIPT_NCOLUMNS, arrays);
	for (int c = 0; c < RECEIPT_NCOLUMNS; c++)
	{
		v[c] = palloc(count * sizeof(Datum));
		nulls[c] = palloc0(count * sizeof(bool));
	}
	for (int i = 0; i < count; i++)
	{
		const MessageReceipt *r = &receipts[members[i]];

		v[0][i] = Int32GetDatum(r->key.workspace_id);
		v[1][i] = UUIDPGetDatum(&r->key.id);
		v[2][i] = Int16GetDatum(r->number);
		put(v[3], nulls[3], i, r->delivered_at == 0, TimestampTzGetDatum(r->delivered_at));
		put(v[4], nulls[4], i, r->failed_at == 0, TimestampTzGetDatum(r->failed_at));
		put(v[5], nulls[5], i, r->provider_code == 0, Int32GetDatum(r->provider_code));
		put_text(v[6], nulls[6], i, r->detail);
		put_text(v[7], nulls[7], i, r->category);
		put_text(v[8], nulls[8], i, r->price);
		put_text(v[9], nulls[9], i, r->price_unit);
	}
	for (int c = 0; c < RECEIPT_NCOLUMNS; c++)
		values[c] = store_array(v[c], nulls[c], count, elements[c]);
	plan_run(plans[leaf], values, NULL, NULL, false, 0);
}

/* Write receipts */
void
message_write_receipts(const MessageReceipt *receipts, int n)
{
	MemoryContext context = CurrentMemoryContext;
	int		   *members = palloc(n * sizeof(int));

	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		int			count = 0;

		for (int i = 0; i < n; i++)
		{
			if (receipts[i].key.slot == leaf)
				members[count++] = i;
		}
		if (count > 0)
			write_receipts_leaf(leaf, receipts, members, count);
	}
	pfree(members);
	MemoryContextSwitchTo(context);
}
