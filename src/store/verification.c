/*-------------------------------------------------------------------------
 *
 * verification.c
 *	  The rows of otp.verifications, as the verbs read and write them.
 *
 * Rows are inserted through the parent. Everything else names the leaf, which
 * the id tells: a generic plan through the parent would lock all 32 leaves.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/keyring.h"
#include "base/phone.h"
#include "base/roster.h"
#include "base/ulid.h"
#include "store/failures.h"
#include "store/forget.h"
#include "store/plan.h"
#include "store/ring.h"
#include "store/verification.h"

/*
 * Advisory locks of SQL use 1 and 2 in this field of the lock tag: with a
 * number of our own, nobody can hold up a phone by guessing its key.
 */
#define PHONE_LOCK_METHOD 0x4f54

/* Make a bytea */
static Datum
bytes_datum(const uint8 *bytes, int length)
{
	bytea	   *value = palloc(VARHDRSZ + length);

	SET_VARSIZE(value, VARHDRSZ + length);
	memcpy(VARDATA(value), bytes, length);
	return PointerGetDatum(value);
}

/* Insert a row */
void
verification_insert(const Verification *v)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, UUIDOID, INT2OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		INT4OID, INT2OID, INT2OID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	BYTEAOID, BYTEAOID, JSONBOID, BOOLOID, BOOLOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];

	plan_keep(&plan,
			  "INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at,"
			  " key_id, length, max_attempts, fallback_sms, test_outcome, phone, template, language, channel,"
			  " context, salt, code_hash, metadata, shadowed, code_given)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)",
			  lengthof(types), types);
	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(v->workspace_id);
	values[1] = UUIDPGetDatum(&v->id);
	values[2] = Int16GetDatum(v->slot);
	values[3] = Int64GetDatum((int64) v->created_xid);
	values[4] = TimestampTzGetDatum(v->created_at);
	values[5] = TimestampTzGetDatum(v->expires_at);
	values[6] = Int32GetDatum(v->key_id);
	values[7] = Int16GetDatum(v->length);
	values[8] = Int16GetDatum(v->max_attempts);
	values[9] = BoolGetDatum(v->fallback_sms);
	if (v->test_outcome != NULL)
		values[10] = CStringGetTextDatum(v->test_outcome);
	else
		nulls[10] = 'n';
	values[11] = CStringGetTextDatum(v->phone);
	values[12] = CStringGetTextDatum(v->template_name);
	values[13] = CStringGetTextDatum(v->language);
	values[14] = CStringGetTextDatum(v->channel);
	if (v->context != NULL)
		values[15] = CStringGetTextDatum(v->context);
	else
		nulls[15] = 'n';
	values[16] = bytes_datum(v->salt, CODE_SALT_LENGTH);
	values[17] = bytes_datum(v->code_hash, HASH_LENGTH);
	if (v->has_metadata)
		values[18] = v->metadata;
	else
		nulls[18] = 'n';
	values[19] = BoolGetDatum(v->shadowed);
	values[20] = BoolGetDatum(v->code_given);
	plan_run(plan, values, nulls, NULL, false, 0);
}

/* Queue a message */
void
verification_queue(const Verification *v, int number, const char *channel, int credits, const bytea *code)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID,
	INT2OID, INT2OID, TEXTOID, INT2OID, BYTEAOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];

	plan_keep(&plan,
			  "INSERT INTO otp.outbox (id, xid, origin, due_at, expires_at, workspace_id, slot, number, channel,"
			  " credits, code)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
			  lengthof(types), types);
	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(&v->id);
	values[1] = Int64GetDatum((int64) U64FromFullTransactionId(GetTopFullTransactionId()));
	values[2] = Int64GetDatum(roster_origin());
	values[3] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[4] = TimestampTzGetDatum(v->expires_at);
	values[5] = Int32GetDatum(v->workspace_id);
	values[6] = Int16GetDatum(v->slot);
	values[7] = Int16GetDatum(number);
	values[8] = CStringGetTextDatum(channel);
	values[9] = Int16GetDatum(credits);
	if (code != NULL)
		values[10] = PointerGetDatum(code);
	else
		nulls[10] = 'n';
	plan_run(plan, values, nulls, NULL, false, 0);
}

/* Read a sealed code by one of two statements */
static bytea *
queued_code(SPIPlanPtr plan, Datum *values)
{
	bytea	   *code = NULL;

	plan_run_latest(plan, values, NULL, 1);
	if (SPI_processed > 0)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			code = (bytea *) DatumGetPointer(SPI_datumTransfer(value, false, -1));
	}
	SPI_freetuptable(SPI_tuptable);
	return code;
}

/* Find the sealed code */
bytea *
verification_queued_code(const Verification *v)
{
	static SPIPlanPtr first = NULL;
	static SPIPlanPtr any = NULL;
	Oid			types[] = {UUIDOID, INT8OID};
	Datum		values[2];
	bytea	   *code;

	plan_keep(&first, "SELECT code FROM otp.outbox WHERE xid = $2 AND id = $1 AND code IS NOT NULL", 2, types);
	values[0] = UUIDPGetDatum(&v->id);
	values[1] = Int64GetDatum((int64) v->created_xid);
	code = queued_code(first, values);
	if (code != NULL || v->resends == 0)
		return code;

	/*
	 * The row of a resend is another transaction's, which nobody knows: read
	 * the queue for it. That is rare, and bounded by the limits of resends.
	 */
	plan_keep(&any, "SELECT code FROM otp.outbox WHERE id = $1 AND code IS NOT NULL", 1, types);
	return queued_code(any, values);
}

/* What the two look-ups read; the order of the columns is take_row's */
#define ROW_COLUMNS \
	"SELECT v.workspace_id, v.created_xid, v.created_at, v.expires_at, v.verified_at, v.canceled_at," \
	" v.resent_at, v.last_attempt_at, v.key_id, v.length, v.attempts, v.max_attempts, v.resends, v.fallback_sms," \
	" v.test_outcome, v.phone, v.template, v.language, v.channel, v.context, v.salt, v.code_hash, v.metadata," \
	" l.channel, l.ended_reason, f.since, f.failures, v.shadowed, f.in_row, f.forgiven, f.last_at, f.created_xid," \
	" v.code_given" \
	" FROM otp.verifications_%02d v" \
	" LEFT JOIN LATERAL (SELECT m.channel, m.ended_reason FROM otp.messages_%02d m" \
	" WHERE m.workspace_id = v.workspace_id AND m.verification_id = v.id" \
	" ORDER BY m.number DESC LIMIT 1) l ON true" \
	" LEFT JOIN otp.phone_failures f ON f.workspace_id = v.workspace_id AND f.phone = v.phone" \
	" WHERE v.workspace_id = ANY ($1) AND v.id = $2"

/* Copy a text column out of SPI's memory */
static const char *
copy_text(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, desc, column, &isnull);
	text	   *t;
	char	   *copy;
	int			length;

	if (isnull)
		return NULL;
	t = DatumGetTextPP(value);
	length = VARSIZE_ANY_EXHDR(t);
	copy = SPI_palloc(length + 1);
	memcpy(copy, VARDATA_ANY(t), length);
	copy[length] = '\0';
	return copy;
}

/* Give a timestamp column; NULL is 0 */
static TimestampTz
get_time(HeapTuple tuple, TupleDesc desc, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, desc, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/* Copy a bytea column of known length */
static void
get_bytes(HeapTuple tuple, TupleDesc desc, int column, uint8 *out, int length)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, desc, column, &isnull);
	bytea	   *bytes = isnull ? NULL : DatumGetByteaPP(value);

	if (bytes == NULL || VARSIZE_ANY_EXHDR(bytes) != length)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a verification has a salt or hash of the wrong length")));
	memcpy(out, VARDATA_ANY(bytes), length);
}

#define GET_INT(n, type) DatumGet##type(SPI_getbinval(tuple, desc, n, &isnull))

/* Take over the row that was read */
static bool
take_row(const pg_uuid_t *id, Verification *v)
{
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;
	Datum		value;

	if (SPI_processed == 0)
		return false;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;

	memset(v, 0, sizeof(Verification));
	v->id = *id;
	v->slot = ulid_slot(id);
	v->workspace_id = GET_INT(1, Int32);
	v->created_xid = (uint64) GET_INT(2, Int64);
	v->created_at = get_time(tuple, desc, 3);
	v->expires_at = get_time(tuple, desc, 4);
	v->verified_at = get_time(tuple, desc, 5);
	v->canceled_at = get_time(tuple, desc, 6);
	v->resent_at = get_time(tuple, desc, 7);
	v->last_attempt_at = get_time(tuple, desc, 8);
	v->key_id = GET_INT(9, Int32);
	v->length = GET_INT(10, Int16);
	v->attempts = GET_INT(11, Int16);
	v->max_attempts = GET_INT(12, Int16);
	v->resends = GET_INT(13, Int16);
	v->fallback_sms = GET_INT(14, Bool);
	v->test_outcome = copy_text(tuple, desc, 15);
	v->phone = copy_text(tuple, desc, 16);
	v->template_name = copy_text(tuple, desc, 17);
	v->language = copy_text(tuple, desc, 18);
	v->channel = copy_text(tuple, desc, 19);
	v->context = copy_text(tuple, desc, 20);
	get_bytes(tuple, desc, 21, v->salt, CODE_SALT_LENGTH);
	get_bytes(tuple, desc, 22, v->code_hash, HASH_LENGTH);
	value = SPI_getbinval(tuple, desc, 23, &isnull);
	if (!isnull)
	{
		v->metadata = SPI_datumTransfer(value, false, -1);
		v->has_metadata = true;
	}
	v->last_channel = copy_text(tuple, desc, 24);
	v->ended_reason = copy_text(tuple, desc, 25);
	v->shadowed = GET_INT(28, Bool);
	v->code_given = GET_INT(33, Bool);
	return true;
}

/* Take over the phone's failures that the row came with; false when that is not all there is of them */
static bool
take_failures(Verification *v)
{
	HeapTuple	tuple = SPI_tuptable->vals[0];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	char		buffer[PHONE_SIZE];
	bool		isnull;
	bool		is_main;

	/* Several rows of the phone, or one that forgives: see failures.c */
	(void) SPI_getbinval(tuple, desc, 32, &isnull);
	is_main = isnull;
	if (SPI_processed > 1 || !is_main || phone_fold(v->phone, buffer) != v->phone)
		return false;

	(void) SPI_getbinval(tuple, desc, 27, &isnull);
	if (isnull)
		return true;
	v->failures.since = get_time(tuple, desc, 26);
	v->failures.failures = GET_INT(27, Int32);
	v->failures.forgiven = GET_INT(30, Int64);
	v->failures.total = v->failures.forgiven + GET_INT(29, Int32);
	v->failures.last_at = get_time(tuple, desc, 31);
	return true;
}

/* Find and lock */
bool
verification_lock(Datum workspaces, const pg_uuid_t *id, Verification *v)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDOID};
	Datum		values[2];
	SPIPlanPtr	plan;

	plan = plan_keep_leaf(plans, ulid_slot(id), ROW_COLUMNS " FOR NO KEY UPDATE OF v",
						  lengthof(types), types);
	values[0] = workspaces;
	values[1] = UUIDPGetDatum(id);

	/* Two rows when the phone has more than one of failures */
	plan_run_latest(plan, values, NULL, 2);
	if (!take_row(id, v))
		return false;

	/* The join has not looked under the name of a forgotten phone */
	if (!take_failures(v) || (v->phone[0] == '+' && forget_counts(GetCurrentTimestamp())))
		verification_phone_failures(v);
	return true;
}

/* Find without a lock */
bool
verification_find(Datum workspaces, const pg_uuid_t *id, bool latest, Verification *v)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDOID};
	Datum		values[2];
	SPIPlanPtr	plan;

	plan = plan_keep_leaf(plans, ulid_slot(id), ROW_COLUMNS, lengthof(types), types);
	values[0] = workspaces;
	values[1] = UUIDPGetDatum(id);
	if (latest)
		plan_run_latest(plan, values, NULL, 1);
	else
		plan_run(plan, values, NULL, NULL, true, 1);
	return take_row(id, v);
}

/* Read a phone's failures */
void
verification_phone_failures(Verification *v)
{
	char		buffer[PHONE_SIZE];

	failures_read(v->workspace_id, phone_fold(v->phone, buffer), true, &v->failures);
}

/* Run an update of one locked row */
static void
update_row(SPIPlanPtr plan, const Verification *v, Datum third, Datum fourth)
{
	Datum		values[4];

	values[0] = Int32GetDatum(v->workspace_id);
	values[1] = UUIDPGetDatum(&v->id);
	values[2] = third;
	values[3] = fourth;
	plan_run_latest(plan, values, NULL, 0);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("a verification has gone while it was locked")));
}

/* Mark verified */
void
verification_set_verified(const Verification *v, int attempts, TimestampTz now)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, TIMESTAMPTZOID, INT2OID};

	update_row(plan_keep_leaf(plans, v->slot,
							  "UPDATE otp.verifications_%02d SET verified_at = $3, last_attempt_at = $3, attempts = $4"
							  " WHERE workspace_id = $1 AND id = $2",
							  lengthof(types), types),
			   v, TimestampTzGetDatum(now), Int16GetDatum(attempts));
}

/* Store the count of wrong guesses */
void
verification_set_attempts(const Verification *v, int attempts, TimestampTz now)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, TIMESTAMPTZOID, INT2OID};

	update_row(plan_keep_leaf(plans, v->slot,
							  "UPDATE otp.verifications_%02d SET last_attempt_at = $3, attempts = $4"
							  " WHERE workspace_id = $1 AND id = $2",
							  lengthof(types), types),
			   v, TimestampTzGetDatum(now), Int16GetDatum(attempts));
}

/* Mark canceled */
void
verification_set_canceled(const Verification *v, TimestampTz now)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, TIMESTAMPTZOID};

	update_row(plan_keep_leaf(plans, v->slot,
							  "UPDATE otp.verifications_%02d SET canceled_at = $3"
							  " WHERE workspace_id = $1 AND id = $2",
							  lengthof(types), types),
			   v, TimestampTzGetDatum(now), (Datum) 0);
}

/* Count a resend */
void
verification_set_resent(const Verification *v, TimestampTz now)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, TIMESTAMPTZOID, INT2OID};

	update_row(plan_keep_leaf(plans, v->slot,
							  "UPDATE otp.verifications_%02d SET resent_at = $3, resends = $4"
							  " WHERE workspace_id = $1 AND id = $2",
							  lengthof(types), types),
			   v, TimestampTzGetDatum(now), Int16GetDatum(v->resends));
}

/* Let a test number's code expire */
void
verification_set_expired(const Verification *v, TimestampTz now)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, TIMESTAMPTZOID};

	update_row(plan_keep_leaf(plans, v->slot,
							  "UPDATE otp.verifications_%02d SET expires_at = $3"
							  " WHERE workspace_id = $1 AND id = $2",
							  lengthof(types), types),
			   v, TimestampTzGetDatum(now), (Datum) 0);
}

/* Lock a phone */
void
verification_lock_phone(int32 workspace_id, const char *phone)
{
	LOCKTAG		tag;
	uint8		hash[HASH_LENGTH];
	uint32		words[2];
	char		buffer[PHONE_SIZE];
	const char *folded = phone_fold(phone, buffer);
	HashPart	parts[] = {
		{&workspace_id, sizeof(workspace_id)},
		{folded, strlen(folded)}
	};

	/*
	 * Keyed: everybody can read pg_locks, and there are not that many numbers
	 * to try
	 */
	hmac_sha256(keyring_subkey(keyring_current(), KEY_PHONE), KEY_LENGTH, parts, lengthof(parts), hash);
	memcpy(words, hash, sizeof(words));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, words[0], words[1], PHONE_LOCK_METHOD);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* Read the sends to a phone from one leaf, behind the n that are there */
static int
phone_sends_of_leaf(int leaf, int32 workspace_id, const char *phone, TimestampTz since,
					int limit, PhoneSend **sends, int n)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, TEXTOID, UUIDOID};
	Datum		values[3];
	pg_uuid_t	lowest;
	SPIPlanPtr	plan;

	/*
	 * "+ 0" keeps the planner from walking the primary key backwards, which
	 * looks as cheap to it as long as the leaf has no statistics.
	 */
	plan = plan_keep_leaf(plans, leaf,
						  "SELECT v.created_at, v.resent_at, v.resends, v.template, v.context"
						  " FROM otp.verifications_%02d v"
						  " WHERE v.phone = $2 AND v.id >= $3 AND v.workspace_id + 0 = $1 AND v.test_outcome IS NULL"
						  " ORDER BY v.id DESC",
						  lengthof(types), types);
	ulid_lowest(&lowest, since);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(phone);
	values[2] = UUIDPGetDatum(&lowest);
	plan_run_latest(plan, values, NULL, limit);
	if (SPI_processed == 0)
		return n;

	if (*sends == NULL)
		*sends = SPI_palloc(sizeof(PhoneSend) * SPI_processed);
	else
		*sends = SPI_repalloc(*sends, sizeof(PhoneSend) * (n + SPI_processed));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		PhoneSend  *sent = &(*sends)[n++];
		bool		isnull;

		sent->created_at = get_time(tuple, desc, 1);
		sent->last_sent_at = get_time(tuple, desc, 2);
		if (sent->last_sent_at == 0)
			sent->last_sent_at = sent->created_at;
		sent->messages = 1 + GET_INT(3, Int16);
		sent->template_name = copy_text(tuple, desc, 4);
		sent->context = copy_text(tuple, desc, 5);
	}
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* Order sends, newest first */
static int
compare_sends(const void *a, const void *b)
{
	TimestampTz x = ((const PhoneSend *) a)->created_at;
	TimestampTz y = ((const PhoneSend *) b)->created_at;

	return x > y ? -1 : x < y ? 1 : 0;
}

/* Read the sends to a phone */
int
verification_phone_sends(int32 workspace_id, const char *phone, TimestampTz since, TimestampTz now,
						 int limit, PhoneSend **sends)
{
	int			leaves[ULID_SLOTS];
	int			nleaves = ring_recent(since, now, leaves);
	char		forms[PHONE_MAX_FORMS][PHONE_SIZE];
	int			nforms = phone_forms(phone, forms);
	char		name[FORGOTTEN_LENGTH + 1];
	int			n = 0;

	/*
	 * A day spans two leaves, an hour mostly one; few numbers have more than
	 * one form
	 */
	*sends = NULL;
	for (int form = 0; form < nforms; form++)
		for (int i = 0; i < nleaves; i++)
			n = phone_sends_of_leaf(leaves[i], workspace_id, forms[form], since, limit, sends, n);

	/* It may have been sent to before it was forgotten */
	if (forget_counts(now))
	{
		forget_name(workspace_id, phone, name);
		for (int i = 0; i < nleaves; i++)
			n = phone_sends_of_leaf(leaves[i], workspace_id, name, since, limit, sends, n);
	}
	if (n > 1)
		qsort(*sends, n, sizeof(PhoneSend), compare_sends);
	return Min(n, limit);
}

/* Read the messages of a verification */
int
verification_messages(const Verification *v, bool latest, MessageState **messages)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID};
	Datum		values[2];
	SPIPlanPtr	plan;
	int			n;

	plan = plan_keep_leaf(plans, v->slot,
						  "SELECT m.number, m.channel, m.sent_at, m.delivered_at, m.failed_at, m.message_id,"
						  " m.detail, m.ended_reason, m.provider_code"
						  " FROM otp.messages_%02d m WHERE m.workspace_id = $1 AND m.verification_id = $2"
						  " ORDER BY m.number",
						  lengthof(types), types);
	values[0] = Int32GetDatum(v->workspace_id);
	values[1] = UUIDPGetDatum(&v->id);
	if (latest)
		plan_run_latest(plan, values, NULL, 0);
	else
		plan_run(plan, values, NULL, NULL, true, 0);

	n = (int) SPI_processed;
	*messages = SPI_palloc(sizeof(MessageState) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MessageState *m = &(*messages)[i];
		bool		isnull;

		m->number = GET_INT(1, Int16);
		m->channel = copy_text(tuple, desc, 2);
		m->sent_at = get_time(tuple, desc, 3);
		m->delivered_at = get_time(tuple, desc, 4);
		m->failed_at = get_time(tuple, desc, 5);
		m->message_id = copy_text(tuple, desc, 6);
		m->detail = copy_text(tuple, desc, 7);
		m->ended_reason = copy_text(tuple, desc, 8);
		m->provider_code = GET_INT(9, Int32);
		if (isnull)
			m->provider_code = 0;
	}
	return n;
}

/* Write a message of a test number */
void
verification_test_message(const Verification *v, const MessageState *message, TimestampTz now)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, INT2OID, INT2OID, TIMESTAMPTZOID, TEXTOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	SPIPlanPtr	plan;

	plan = plan_keep_leaf(plans, v->slot,
						  "INSERT INTO otp.messages_%02d AS m (workspace_id, verification_id, slot, number, tries,"
						  " created_at, channel, sent_at, delivered_at, failed_at, message_id, ended_reason)"
						  " VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9, $10, $11)"
						  " ON CONFLICT (workspace_id, verification_id, number) DO UPDATE SET"
						  " sent_at = coalesce(m.sent_at, excluded.sent_at),"
						  " delivered_at = coalesce(m.delivered_at, excluded.delivered_at),"
						  " failed_at = coalesce(m.failed_at, excluded.failed_at),"
						  " ended_reason = coalesce(m.ended_reason, excluded.ended_reason)",
						  lengthof(types), types);
	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(v->workspace_id);
	values[1] = UUIDPGetDatum(&v->id);
	values[2] = Int16GetDatum(v->slot);
	values[3] = Int16GetDatum(message->number);
	values[4] = TimestampTzGetDatum(now);
	values[5] = CStringGetTextDatum(message->channel);
	values[6] = TimestampTzGetDatum(message->sent_at);
	nulls[6] = message->sent_at != 0 ? ' ' : 'n';
	values[7] = TimestampTzGetDatum(message->delivered_at);
	nulls[7] = message->delivered_at != 0 ? ' ' : 'n';
	values[8] = TimestampTzGetDatum(message->failed_at);
	nulls[8] = message->failed_at != 0 ? ' ' : 'n';
	if (message->message_id != NULL)
		values[9] = CStringGetTextDatum(message->message_id);
	else
		nulls[9] = 'n';
	if (message->ended_reason != NULL)
		values[10] = CStringGetTextDatum(message->ended_reason);
	else
		nulls[10] = 'n';
	plan_run(plan, values, nulls, NULL, false, 0);
}
