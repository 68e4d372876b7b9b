/*-------------------------------------------------------------------------
 *
 * outbox.c
 *	  The queue of messages owed, as the sender reads and writes it.
 *
 * Claiming writes nothing. There is one sender, and it remembers how far it
 * has read: a position (xid, id, number) in the queue's only index, where xid
 * is the transaction that queued the row. Rows do not become visible in this
 * order, so the position may pass transactions that are still open: they are
 * remembered one by one, and their rows read once they have ended. Both reads
 * and the list of open transactions must come from one snapshot; that is why
 * the statements are run read-only, which has SPI use the active snapshot
 * instead of taking one for each.
 *
 * With s the snapshot, the position moves like this:
 *	1. read the rows of the remembered transactions that are no longer open
 *	   in s, and forget those transactions;
 *	2. read on from the position; if that was all there is, the new position
 *	   is behind everything before s.xmax, else at the last row read;
 *	3. remember the transactions open in s between the old position and the
 *	   new one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/roster.h"
#include "store/outbox.h"
#include "store/plan.h"

/* What is read of a row; the order is take_row's */
#define ROW_COLUMNS "SELECT id, ctid, xid, origin, due_at, expires_at, workspace_id, slot, number, tries, unknown," \
	" kind, channel, credits FROM otp.outbox "
#define ROW_NCOLUMNS 14

/* Ten years, which is longer than anything here lasts; in seconds it is an int4 */
#define LONGEST_INTERVAL (INT64CONST(3650) * USECS_PER_DAY)

/* ---- helpers ---- */

/* Make an array */
Datum
store_array(Datum *values, bool *nulls, int n, Oid element_type)
{
	int16		length;
	bool		by_value;
	char		align;
	int			dims[1];
	int			bounds[1] = {1};

	get_typlenbyvalalign(element_type, &length, &by_value, &align);
	if (n == 0)
		return PointerGetDatum(construct_empty_array(element_type));
	dims[0] = n;
	return PointerGetDatum(construct_md_array(values, nulls, 1, dims, bounds,
											  element_type, length, by_value, align));
}

/* Copy a text into a context; NULL is NULL */
char *
store_text(Datum value, bool isnull, MemoryContext context)
{
	text	   *t;
	char	   *copy;
	size_t		length;

	if (isnull)
		return NULL;
	t = DatumGetTextPP(value);
	length = VARSIZE_ANY_EXHDR(t);
	copy = MemoryContextAlloc(context, length + 1);
	memcpy(copy, VARDATA_ANY(t), length);
	copy[length] = '\0';
	return copy;
}

/* Give a timestamp; NULL is 0 */
TimestampTz
store_time(Datum value, bool isnull)
{
	return isnull ? 0 : DatumGetTimestampTz(value);
}

/* Give an interval in microseconds */
int64
store_interval(Datum value)
{
	const Interval *interval = DatumGetIntervalP(value);

	/* In floating point, where infinity has its place, too */
	double		us = ((double) interval->month * DAYS_PER_MONTH + interval->day) * USECS_PER_DAY + interval->time;

	return (int64) Max(Min(us, (double) LONGEST_INTERVAL), 0.0);
}

/* Make a transaction id of a snapshot 64 bits wide */
static uint64
widen_xid(TransactionId xid, FullTransactionId next)
{
	/* xid is at most next, and less than 2^31 before it */
	return U64FromFullTransactionId(next) - (uint32) (XidFromFullTransactionId(next) - xid);
}

/* Compare for qsort and bsearch */
static int
compare_xids(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

/* Remember an open transaction */
static void
add_late(OutboxPosition *position, uint64 xid)
{
	OutboxLate *late;

	if (position->nlate == position->late_size)
	{
		int			size = Max(64, position->late_size * 2);

		if (position->late == NULL)
			position->late = MemoryContextAlloc(TopMemoryContext, size * sizeof(OutboxLate));
		else
			position->late = repalloc(position->late, size * sizeof(OutboxLate));
		position->late_size = size;
	}
	late = &position->late[position->nlate++];
	memset(late, 0, sizeof(OutboxLate));
	late->xid = xid;
}

/* Copy a position */
void
outbox_copy_position(OutboxPosition *to, const OutboxPosition *from)
{
	to->xid = from->xid;
	to->id = from->id;
	to->number = from->number;
	if (to->late_size < from->nlate)
	{
		if (to->late != NULL)
			pfree(to->late);
		to->late_size = 0;
		to->late = MemoryContextAlloc(TopMemoryContext, from->late_size * sizeof(OutboxLate));
		to->late_size = from->late_size;
	}
	if (from->nlate > 0)
		memcpy(to->late, from->late, from->nlate * sizeof(OutboxLate));
	to->nlate = from->nlate;
}

/* Keep the position behind a row */
void
outbox_keep_behind(OutboxPosition *position, const OutboxRow *row)
{
	if (row->xid == position->xid && memcmp(&row->id, &position->id, UUID_LEN) == 0)
		position->number = Max(position->number, row->number);

	/* The same within a late transaction that has been read in part */
	for (int i = 0; i < position->nlate; i++)
	{
		OutboxLate *late = &position->late[i];

		if (late->partly && row->xid == late->xid && memcmp(&row->id, &late->id, UUID_LEN) == 0)
			late->number = Max(late->number, row->number);
	}
}

/* Is this text that? */
static bool
text_is(Datum value, const char *what)
{
	text	   *t = DatumGetTextPP(value);
	size_t		length = strlen(what);

	return VARSIZE_ANY_EXHDR(t) == length && memcmp(VARDATA_ANY(t), what, length) == 0;
}

/* Read a row's columns */
static void
take_row(HeapTuple tuple, TupleDesc desc, OutboxRow *row)
{
	Datum		values[ROW_NCOLUMNS];
	bool		nulls[ROW_NCOLUMNS];

	heap_deform_tuple(tuple, desc, values, nulls);
	row->id = *DatumGetUUIDP(values[0]);
	row->ctid = *(ItemPointer) DatumGetPointer(values[1]);
	row->xid = (uint64) DatumGetInt64(values[2]);
	row->origin = DatumGetInt64(values[3]);
	row->due_at = DatumGetTimestampTz(values[4]);
	row->expires_at = DatumGetTimestampTz(values[5]);
	row->workspace_id = DatumGetInt32(values[6]);
	row->slot = DatumGetInt16(values[7]);
	row->number = DatumGetInt16(values[8]);
	row->tries = DatumGetInt16(values[9]);
	row->unknown = DatumGetInt16(values[10]);
	row->kind = text_is(values[11], "message") ? OUTBOX_MESSAGE :
		text_is(values[11], "verified") ? OUTBOX_VERIFIED :
		text_is(values[11], "canceled") ? OUTBOX_CANCELED :
		text_is(values[11], "receipts") ? OUTBOX_RECEIPTS : OUTBOX_JOB;
	row->sms = !nulls[12] && text_is(values[12], "sms");
	row->credits = DatumGetInt16(values[13]);
}

/* Copy SPI's rows */
static int
take_rows(OutboxRow *rows)
{
	int			n = (int) SPI_processed;

	for (int i = 0; i < n; i++)
		take_row(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, &rows[i]);
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* ---- lock ---- */

/* Lock the queue */
bool
outbox_lock(void)
{
	Oid			namespace = get_namespace_oid("otp", true);
	Oid			relid;

	if (!OidIsValid(namespace))
		return false;
	relid = get_relname_relid("outbox", namespace);
	if (!OidIsValid(relid) || !ConditionalLockRelationOid(relid, AccessShareLock))
		return false;

	/* Dropped while we looked? */
	return get_relname_relid("outbox", namespace) == relid;
}

/* ---- read ---- */

/* Read rows of one late transaction; gives false when there may be more */
static bool
read_late_one(OutboxLate *late, OutboxRow *rows, int limit, int *n)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, UUIDOID, INT2OID};
	Datum		values[3];

	plan_keep(&plan,
			  ROW_COLUMNS "WHERE xid = $1 AND (id, number) > ($2, $3) ORDER BY id, number",
			  3, types);
	values[0] = Int64GetDatum((int64) late->xid);
	values[1] = UUIDPGetDatum(&late->id);
	values[2] = Int16GetDatum(late->number);
	plan_run(plan, values, NULL, NULL, true, limit);
	*n = take_rows(rows);
	if (*n < limit)
		return true;
	late->partly = true;
	late->id = rows[*n - 1].id;
	late->number = rows[*n - 1].number;
	return false;
}

/* Read rows of late transactions that have ended */
static int
read_late(OutboxPosition *position, const uint64 *open, int nopen,
		  OutboxRow *rows, int limit, bool *more)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8ARRAYOID};
	Datum	   *ended;
	int			nended = 0;
	bool		partly = false;
	int			kept = 0;
	int			n = 0;

	if (position->nlate == 0)
		return 0;

	/* Which have ended? */
	ended = palloc(position->nlate * sizeof(Datum));
	for (int i = 0; i < position->nlate; i++)
	{
		OutboxLate *late = &position->late[i];

		if (bsearch(&late->xid, open, nopen, sizeof(uint64), compare_xids) == NULL)
		{
			ended[nended++] = Int64GetDatum((int64) late->xid);
			partly |= late->partly;
		}
	}
	if (nended == 0)
		return 0;

	/*
	 * All of them at once, if their rows fit: most are transactions that have
	 * nothing to do with us. One row more than fits tells that they do not.
	 */
	if (!partly)
	{
		Datum		values[1];

		plan_keep(&plan, ROW_COLUMNS "WHERE xid = ANY ($1)", 1, types);
		values[0] = store_array(ended, NULL, nended, INT8OID);
		plan_run(plan, values, NULL, NULL, true, limit + 1);
		if (SPI_processed <= (uint64) limit)
		{
			n = take_rows(rows);
			for (int i = 0; i < position->nlate; i++)
			{
				OutboxLate *late = &position->late[i];

				if (bsearch(&late->xid, open, nopen, sizeof(uint64), compare_xids) != NULL)
					position->late[kept++] = *late;
			}
			position->nlate = kept;
			return n;
		}
		SPI_freetuptable(SPI_tuptable);
	}

	/* Else one by one, remembering where each was left */
	for (int i = 0; i < position->nlate; i++)
	{
		OutboxLate *late = &position->late[i];
		bool		done = false;

		if (bsearch(&late->xid, open, nopen, sizeof(uint64), compare_xids) == NULL)
		{
			if (n < limit)
			{
				int			got;

				done = read_late_one(late, rows + n, limit - n, &got);
				n += got;
			}
			if (!done)
				*more = true;
		}
		if (!done)
			position->late[kept++] = *late;
	}
	position->nlate = kept;
	return n;
}

/* Read the next rows */
int
outbox_read(OutboxPosition *position, OutboxRow *rows, int limit, bool *more)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, UUIDOID, INT2OID, INT8OID};
	Datum		values[4];
	MemoryContext context = CurrentMemoryContext;
	Snapshot	snapshot = GetActiveSnapshot();
	FullTransactionId next = ReadNextFullTransactionId();
	uint64		xmax = widen_xid(snapshot->xmax, next);
	uint64		old_xid = position->xid;
	int			nopen = (int) snapshot->xcnt;
	uint64	   *open;
	int			n;
	int			got;

	*more = false;
	limit = Min(limit, OUTBOX_BATCH);

	/* Top-level transactions open in the snapshot; prepared ones are, too */
	open = palloc((nopen + 1) * sizeof(uint64));
	for (int i = 0; i < nopen; i++)
		open[i] = widen_xid(snapshot->xip[i], next);
	qsort(open, nopen, sizeof(uint64), compare_xids);

	n = read_late(position, open, nopen, rows, limit, more);
	if (n >= limit)
	{
		*more = true;
		MemoryContextSwitchTo(context);
		return n;
	}

	/*
	 * Rows from xmax on can only have come from another server, whose
	 * transaction ids mean nothing here; they must not carry the position
	 * away.
	 */
	plan_keep(&plan,
			  ROW_COLUMNS "WHERE (xid, id, number) > ($1, $2, $3) AND xid < $4"
			  " ORDER BY xid, id, number LIMIT 256",	/* OUTBOX_BATCH */
			  4, types);
	values[0] = Int64GetDatum((int64) position->xid);
	values[1] = UUIDPGetDatum(&position->id);
	values[2] = Int16GetDatum(position->number);
	values[3] = Int64GetDatum((int64) xmax);
	plan_run(plan, values, NULL, NULL, true, limit - n);
	got = take_rows(rows + n);

	if (got < limit - n)
	{
		if (position->xid < xmax)
		{
			position->xid = xmax - 1;
			memset(&position->id, 0xFF, sizeof(pg_uuid_t));
			position->number = PG_INT16_MAX;
		}
	}
	else
	{
		OutboxRow  *last = &rows[n + got - 1];

		position->xid = last->xid;
		position->id = last->id;
		position->number = last->number;
		*more = true;
	}

	for (int i = 0; i < nopen; i++)
	{
		if (open[i] > old_xid && open[i] <= position->xid)
			add_late(position, open[i]);
	}
	MemoryContextSwitchTo(context);
	return n + got;
}

/* Read a payload */
char *
outbox_payload(const OutboxRow *row)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, UUIDOID, INT2OID};
	Datum		values[3];
	MemoryContext context = CurrentMemoryContext;
	char	   *payload = NULL;

	plan_keep(&plan, "SELECT payload FROM otp.outbox WHERE xid = $1 AND id = $2 AND number = $3", 3, types);
	values[0] = Int64GetDatum((int64) row->xid);
	values[1] = UUIDPGetDatum(&row->id);
	values[2] = Int16GetDatum(row->number);
	plan_run(plan, values, NULL, NULL, true, 1);
	MemoryContextSwitchTo(context);
	if (SPI_processed > 0)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			payload = TextDatumGetCString(value);
	}
	SPI_freetuptable(SPI_tuptable);
	return payload;
}

/* Read a sealed code */
bytea *
outbox_code(const OutboxRow *row)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, UUIDOID, INT2OID};
	Datum		values[3];
	MemoryContext context = CurrentMemoryContext;
	bytea	   *code = NULL;

	plan_keep(&plan, "SELECT code FROM otp.outbox WHERE xid = $1 AND id = $2 AND number = $3", 3, types);
	values[0] = Int64GetDatum((int64) row->xid);
	values[1] = UUIDPGetDatum(&row->id);
	values[2] = Int16GetDatum(row->number);
	plan_run(plan, values, NULL, NULL, true, 1);
	MemoryContextSwitchTo(context);
	if (SPI_processed > 0)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			code = DatumGetByteaPCopy(value);
	}
	SPI_freetuptable(SPI_tuptable);
	return code;
}

/* ---- settle ---- */

/* Delete rows */
void
outbox_delete(OutboxRow **rows, int n)
{
	static SPIPlanPtr by_ctid = NULL;
	static SPIPlanPtr by_key = NULL;
	Oid			ctid_types[] = {TIDARRAYOID, UUIDARRAYOID, INT2ARRAYOID};
	Oid			key_types[] = {INT8ARRAYOID, UUIDARRAYOID, INT2ARRAYOID};
	MemoryContext context = CurrentMemoryContext;
	Datum	   *first;
	Datum	   *ids;
	Datum	   *numbers;
	Datum		values[3];

	if (n == 0)
		return;

	/*
	 * None is NULL: IS NOT DISTINCT FROM is here what no index can serve.
	 * With "=", a queue that was empty when it was last analyzed, as it
	 * mostly is, makes a walk through the whole index look cheaper than the
	 * ctid.
	 */
	plan_keep(&by_ctid,
			  "DELETE FROM otp.outbox o USING unnest($1, $2, $3) k (ctid, id, number)"
			  " WHERE o.ctid = k.ctid AND o.id IS NOT DISTINCT FROM k.id AND o.number IS NOT DISTINCT FROM k.number",
			  3, ctid_types);

	first = palloc(n * sizeof(Datum));
	ids = palloc(n * sizeof(Datum));
	numbers = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		first[i] = PointerGetDatum(&rows[i]->ctid);
		ids[i] = UUIDPGetDatum(&rows[i]->id);
		numbers[i] = Int16GetDatum(rows[i]->number);
	}
	values[0] = store_array(first, NULL, n, TIDOID);
	values[1] = store_array(ids, NULL, n, UUIDOID);
	values[2] = store_array(numbers, NULL, n, INT2OID);
	plan_run(by_ctid, values, NULL, NULL, false, 0);
	if (SPI_processed == (uint64) n)
	{
		MemoryContextSwitchTo(context);
		return;
	}

	/*
	 * VACUUM FULL or CLUSTER has moved rows, or somebody has deleted them.
	 * The index finds what is left.
	 */
	plan_keep(&by_key,
			  "DELETE FROM otp.outbox o USING unnest($1, $2, $3) k (xid, id, number)"
			  " WHERE o.xid = k.xid AND o.id = k.id AND o.number = k.number",
			  3, key_types);
	for (int i = 0; i < n; i++)
		first[i] = Int64GetDatum((int64) rows[i]->xid);
	values[0] = store_array(first, NULL, n, INT8OID);
	plan_run(by_key, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
}

/* Take the new places of updated rows */
static void
take_ctids(OutboxRow **rows)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		int64		k = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));

		rows[k - 1]->ctid = *(ItemPointer) DatumGetPointer(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
																		 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Update rows */
void
outbox_update(OutboxRow **rows, const int16 *old_numbers, int n)
{
	static SPIPlanPtr by_ctid = NULL;
	static SPIPlanPtr by_key = NULL;
	Oid			types[] = {TIDARRAYOID, UUIDARRAYOID, INT2ARRAYOID, TIMESTAMPTZARRAYOID,
	INT2ARRAYOID, INT2ARRAYOID, INT2ARRAYOID, TEXTARRAYOID};
	Datum	   *columns[lengthof(types)];
	Oid			elements[] = {TIDOID, UUIDOID, INT2OID, TIMESTAMPTZOID, INT2OID, INT2OID, INT2OID, TEXTOID};
	Datum		values[lengthof(types)];
	Datum		sms = CStringGetTextDatum("sms");
	Datum		whatsapp = CStringGetTextDatum("whatsapp");
	MemoryContext context = CurrentMemoryContext;

	if (n == 0)
		return;

#define UPDATE_START "UPDATE otp.outbox o SET due_at = k.due_at, number = k.number, tries = k.tries," \
	" unknown = k.unknown, channel = k.channel FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) WITH ORDINALITY k "
#define UPDATE_END " RETURNING k.n, o.ctid"

	/* Not "=": see outbox_delete */
	plan_keep(&by_ctid,
			  UPDATE_START "(ctid, id, was, due_at, number, tries, unknown, channel, n)"
			  " WHERE o.ctid = k.ctid AND o.id IS NOT DISTINCT FROM k.id"
			  " AND o.number IS NOT DISTINCT FROM k.was" UPDATE_END,
			  lengthof(types), types);

	for (int c = 0; c < lengthof(types); c++)
		columns[c] = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		/* A copy: the new place is written over the old one */
		ItemPointer ctid = palloc(sizeof(ItemPointerData));

		*ctid = rows[i]->ctid;
		columns[0][i] = PointerGetDatum(ctid);
		columns[1][i] = UUIDPGetDatum(&rows[i]->id);
		columns[2][i] = Int16GetDatum(old_numbers[i]);
		columns[3][i] = TimestampTzGetDatum(rows[i]->due_at);
		columns[4][i] = Int16GetDatum(rows[i]->number);
		columns[5][i] = Int16GetDatum(rows[i]->tries);
		columns[6][i] = Int16GetDatum(rows[i]->unknown);
		columns[7][i] = rows[i]->sms ? sms : whatsapp;
	}
	for (int c = 0; c < lengthof(types); c++)
		values[c] = store_array(columns[c], NULL, n, elements[c]);
	for (int i = 0; i < n; i++)
		ItemPointerSetInvalid(&rows[i]->ctid);
	plan_run(by_ctid, values, NULL, NULL, false, 0);
	if (SPI_processed == (uint64) n)
	{
		take_ctids(rows);
		MemoryContextSwitchTo(context);
		return;
	}
	take_ctids(rows);

	/*
	 * The moved ones; those that the first statement found have a new number
	 * or the same values
	 */
	types[0] = INT8ARRAYOID;
	plan_keep(&by_key,
			  UPDATE_START "(xid, id, was, due_at, number, tries, unknown, channel, n)"
			  " WHERE o.xid = k.xid AND o.id = k.id AND o.number = k.was" UPDATE_END,
			  lengthof(types), types);
	for (int i = 0; i < n; i++)
		columns[0][i] = Int64GetDatum((int64) rows[i]->xid);
	values[0] = store_array(columns[0], NULL, n, INT8OID);
	plan_run(by_key, values, NULL, NULL, false, 0);
	take_ctids(rows);
	MemoryContextSwitchTo(context);
}

/* Look for rows from the future */
bool
outbox_has_foreign(void)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	bool		found;

	plan_keep(&plan, "SELECT 1 FROM otp.outbox WHERE xid >= $1 ORDER BY xid LIMIT 1", 1, types);
	values[0] = Int64GetDatum((int64) U64FromFullTransactionId(ReadNextFullTransactionId()));
	plan_run(plan, values, NULL, NULL, true, 1);
	found = SPI_processed > 0;
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(context);
	return found;
}

/* Delete expired rows that nobody owns */
uint64
outbox_delete_expired(TimestampTz before, bool all)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TIMESTAMPTZOID, INT8OID, BOOLOID};
	Datum		values[3];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan,
			  "DELETE FROM otp.outbox WHERE expires_at < $1 AND (origin <> $2 OR $3)",
			  3, types);
	values[0] = TimestampTzGetDatum(before);
	values[1] = Int64GetDatum(roster_origin());
	values[2] = BoolGetDatum(all);
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return SPI_processed;
}
