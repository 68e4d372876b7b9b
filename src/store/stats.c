/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Statistics: otp.stats_hours and otp.usage_days, summed up from
 *	  otp.verifications and otp.messages.
 *
 * Ids begin with their time, and each leaf has an index on workspace and id:
 * so a span of time is a range of that index, in the leaf that was filled
 * then. A step reads the range that begins at the position, adds it to the
 * sums, and moves the position to its end, all in one transaction: so
 * whatever happens in between, nothing counts twice and nothing is missed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "base/ulid.h"
#include "store/plan.h"
#include "store/stats.h"

/* The shortest span of time that ids tell apart */
#define SPAN_MIN_US INT64CONST(1000)

/* The longest span that a step looks at, and the first one it tries */
#define SPAN_MAX_US USECS_PER_DAY
#define SPAN_FIRST_US (10 * USECS_PER_SEC)

/* As long as nothing comes, the position is moved so seldom. */
#define STILL_US USECS_PER_HOUR

/*
 * After a change of otp.retention, sessions go on filling the drawers of the
 * old one until they have taken it in.
 */
#define CHANGE_US USECS_PER_DAY

/* Rows fetched at a time */
#define FETCH_ROWS 1000
#define NO_LIMIT (PG_INT64_MAX - 1)

/* Most sums deleted at a time */
#define DELETE_ROWS "1000"

/*
 * Advisory locks of SQL use 1 and 2 in this field of the lock tag. A lock on a
 * table would be in the way of autovacuum.
 */
#define STATS_LOCK_METHOD 0x5354

/* ---- where we are ---- */

typedef struct Position
{
	TimestampTz rolled_until;
	bool		fresh;			/* as CREATE EXTENSION made it */
	bool		changed;		/* otp.retention, since it was written down */
	TimestampTz any_leaf_until; /* ids before this can be in any leaf */
} Position;

/* Read the position; false when there is none, so that nothing is summed up */
static bool
read_position(bool read_only, Position *p)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID};
	Datum		values[1];
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;

	/* A restored row stands beside the one of CREATE EXTENSION, and is older */
	plan_keep(&plan,
			  "SELECT min(p.rolled_until), max(p.any_leaf_until), bool_or(p.step_length <> $1), bool_and(p.step_length IS NULL)"
			  " FROM otp.stats_position p",
			  lengthof(types), types);
	values[0] = Int64GetDatum(ulid_step());
	plan_run(plan, values, NULL, NULL, read_only, 0);
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	p->rolled_until = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 1, &isnull));
	if (isnull)
		return false;
	p->any_leaf_until = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
	p->changed = DatumGetBool(SPI_getbinval(tuple, desc, 3, &isnull)) && !isnull;
	p->fresh = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
	return true;
}

/* Write the position */
static void
write_position(const Position *p)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID};
	Datum		values[3];

	plan_keep(&plan,
			  "UPDATE otp.stats_position SET rolled_until = $1, any_leaf_until = $2, step_length = $3",
			  lengthof(types), types);
	values[0] = TimestampTzGetDatum(p->rolled_until);
	values[1] = TimestampTzGetDatum(p->any_leaf_until);
	values[2] = Int64GetDatum(ulid_step());
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Tell which leaves can hold ids of a span of time */
static uint32
leaves_between(const Position *p, TimestampTz from, TimestampTz until)
{
	uint32		leaves = 0;

	if (p->changed || from < p->any_leaf_until || (until - from) / ulid_step() >= ULID_SLOTS)
		return ~leaves;
	for (TimestampTz time = from; time < until; time += ulid_step())
		leaves |= (uint32) 1 << ulid_slot_at(time);
	return leaves | (uint32) 1 << ulid_slot_at(until - SPAN_MIN_US);
}

/* Round down to what ids tell apart */
static TimestampTz
round_down(TimestampTz time)
{
	int64		over = time % SPAN_MIN_US;

	return time - (over < 0 ? over + SPAN_MIN_US : over);
}

/* ---- read ---- */

#define READ_NCOLUMNS 16

/*
 * Nested loops whatever the statistics say: the rows of a verification come
 * one after the other, in the order of their numbers, and nothing is read
 * that is not asked for.
 */
#define READ_SQL \
	"SELECT v.workspace_id, v.id, v.created_at, v.template, v.channel, v.phone, v.resends, v.verified_at," \
	" m.number, m.channel, m.sent_at, m.delivered_at, m.failed_at, m.pricing_category, m.price, m.price_unit" \
	" FROM unnest($1) w (id)" \
	" CROSS JOIN LATERAL (SELECT * FROM otp.verifications_%02d r" \
	" WHERE r.workspace_id = w.id AND r.id >= $2 AND r.id < $3 AND r.test_outcome IS NULL AND NOT r.shadowed ORDER BY r.id OFFSET 0) v" \
	" LEFT JOIN LATERAL (SELECT * FROM otp.messages_%02d r" \
	" WHERE r.workspace_id = v.workspace_id AND r.verification_id = v.id ORDER BY r.number OFFSET 0) m ON true"

/* The verification whose rows are being read */
typedef struct Reader
{
	Tally	   *tally;
	bool		reading;
	pg_uuid_t	id;
	TallyVerification v;
	TallyMessage *messages;
	int			n;
	int			size;
} Reader;

/* Take the word of a column */
static const char *
take_word(Reader *r, Datum value, bool isnull)
{
	text	   *t;

	if (isnull)
		return r->tally->no_word;
	t = DatumGetTextPP(value);
	return tally_word(r->tally, VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t));
}

/* Take the time of a column; NULL is 0 */
static inline TimestampTz
take_time(Datum value, bool isnull)
{
	return isnull ? 0 : DatumGetTimestampTz(value);
}

/* Add the verification that has been read */
static void
finish_verification(Reader *r)
{
	if (r->reading)
		tally_add(r->tally, &r->v, r->messages, r->n);
	for (int i = 0; i < r->n; i++)
	{
		if (r->messages[i].price != (Datum) 0)
			pfree(DatumGetPointer(r->messages[i].price));
	}
	r->reading = false;
	r->n = 0;
}

/* Begin another verification */
static void
begin_verification(Reader *r, Datum *values, bool *nulls)
{
	text	   *phone = DatumGetTextPP(values[5]);
	const char *country = country_find(r->tally->countries, VARDATA_ANY(phone), VARSIZE_ANY_EXHDR(phone));

	finish_verification(r);
	r->reading = true;
	r->id = *DatumGetUUIDP(values[1]);
	r->v.workspace_id = DatumGetInt32(values[0]);
	r->v.created_at = DatumGetTimestampTz(values[2]);
	r->v.template_name = take_word(r, values[3], nulls[3]);
	r->v.channel = take_word(r, values[4], nulls[4]);
	r->v.country = tally_word(r->tally, country, strlen(country));
	r->v.resends = DatumGetInt16(values[6]);
	r->v.verified_at = take_time(values[7], nulls[7]);
}

/* Take a row in */
static void
take_row(Reader *r, HeapTuple tuple, TupleDesc desc)
{
	Datum		values[READ_NCOLUMNS];
	bool		nulls[READ_NCOLUMNS];
	TallyMessage *m;

	heap_deform_tuple(tuple, desc, values, nulls);
	if (!r->reading || DatumGetInt32(values[0]) != r->v.workspace_id ||
		memcmp(DatumGetUUIDP(values[1]), &r->id, UUID_LEN) != 0)
		begin_verification(r, values, nulls);
	if (nulls[8])
		return;

	if (r->n == r->size)
	{
		r->size *= 2;
		r->messages = repalloc(r->messages, r->size * sizeof(TallyMessage));
	}
	m = &r->messages[r->n++];
	m->number = DatumGetInt16(values[8]);
	m->channel = take_word(r, values[9], nulls[9]);
	m->sent_at = take_time(values[10], nulls[10]);
	m->delivered_at = take_time(values[11], nulls[11]);
	m->failed_at = take_time(values[12], nulls[12]);
	m->pricing_category = take_word(r, values[13], nulls[13]);
	m->price_unit = take_word(r, values[15], nulls[15]);
	m->price = (Datum) 0;
	if (!nulls[14] && !numeric_is_nan(DatumGetNumeric(values[14])) && !numeric_is_inf(DatumGetNumeric(values[14])))
	{
		MemoryContext old = MemoryContextSwitchTo(r->tally->context);

		m->price = datumCopy(values[14], false, -1);
		MemoryContextSwitchTo(old);
	}
}

/* Sum up a span of time in one leaf; gives the rows, which are more than limit when that was too much */
static int64
read_leaf(Reader *r, int leaf, Datum workspaces, TimestampTz from, TimestampTz until, bool read_only, int64 limit)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDOID, UUIDOID};
	Datum		values[3];
	pg_uuid_t	first;
	pg_uuid_t	end;
	Portal		portal;
	int64		rows = 0;
	uint64		fetched;

	plan_keep_leaf(plans, leaf, READ_SQL, lengthof(types), types);
	ulid_lowest(&first, from);
	ulid_lowest(&end, until);
	values[0] = workspaces;
	values[1] = UUIDPGetDatum(&first);
	values[2] = UUIDPGetDatum(&end);
	portal = SPI_cursor_open(NULL, plans[leaf], values, NULL, read_only);
	do
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, Min(FETCH_ROWS, limit - rows + 1));
		fetched = SPI_processed;
		for (uint64 i = 0; i < fetched; i++)
			take_row(r, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		SPI_freetuptable(SPI_tuptable);
		rows += fetched;
	} while (fetched > 0 && rows <= limit);
	SPI_cursor_close(portal);
	finish_verification(r);
	return rows;
}

/* Sum up a span of time; gives the rows, which are more than limit when that was too much */
static int64
read_span(Tally *t, const Position *p, Datum workspaces, TimestampTz from, TimestampTz until,
		  bool read_only, int64 limit)
{
	uint32		leaves = leaves_between(p, from, TIMESTAMP_IS_NOEND(until) ?
										GetCurrentTimestamp() + USECS_PER_MINUTE : until);
	Reader		reader = {0};
	int64		rows = 0;

	reader.tally = t;
	reader.size = 16;
	reader.messages = MemoryContextAlloc(t->context, reader.size * sizeof(TallyMessage));
	for (int leaf = 0; leaf < ULID_SLOTS && rows <= limit; leaf++)
	{
		if (leaves & ((uint32) 1 << leaf))
			rows += read_leaf(&reader, leaf, workspaces, from, until, read_only, limit - rows);
	}
	return rows;
}

/* Give the ids of all workspaces */
Datum
stats_all_workspaces(void)
{
	static SPIPlanPtr plan = NULL;
	bool		isnull;
	Datum		ids;

	plan_keep(&plan, "SELECT coalesce(array_agg(w.workspace_id), '{}') FROM otp.workspaces w", 0, NULL);
	plan_run(plan, NULL, NULL, NULL, true, 0);
	ids = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return PointerGetDatum(DatumGetArrayTypePCopy(ids));
}

/* Sum up what is still to be read */
Tally *
stats_rest(Datum workspaces)
{
	MemoryContext context = CurrentMemoryContext;
	Tally	   *t = tally_create(country_load());
	Position	p;

	/* Without a position, nothing was ever summed up */
	if (!read_position(true, &p))
	{
		p.rolled_until = 0;
		p.any_leaf_until = DT_NOEND;
		p.changed = true;
	}
	read_span(t, &p, workspaces, p.rolled_until, DT_NOEND, true, NO_LIMIT);
	MemoryContextSwitchTo(context);
	return t;
}

/* ---- write ---- */

/* Give the columns of otp.stats_hours */
void
stats_hour_values(const TallyHour *row, Datum *values)
{
	values[0] = Int32GetDatum((int32) row->key.workspace_id);
	values[1] = TimestampTzGetDatum(row->key.hour);
	values[2] = CStringGetTextDatum(row->key.channel);
	values[3] = CStringGetTextDatum(row->key.template_name);
	values[4] = Int32GetDatum(row->messages);
	values[5] = Int32GetDatum(row->sent);
	values[6] = Int32GetDatum(row->delivered);
	values[7] = Int32GetDatum(row->failed);
	values[8] = Int32GetDatum(row->fallbacks);
	values[9] = Int32GetDatum(row->verified);
	values[10] = PointerGetDatum(histogram_store(&row->sent_times));
	values[11] = PointerGetDatum(histogram_store(&row->delivered_times));
	values[12] = PointerGetDatum(histogram_store(&row->verified_times));
}

/* Add the sums of hours to what is there */
static void
write_hours(Tally *t)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, INT4OID, INT4OID, INT4OID,
	INT4OID, INT4OID, INT4OID, INT4ARRAYOID, INT4ARRAYOID, INT4ARRAYOID};
	HASH_SEQ_STATUS scan;
	TallyHour  *row;

	plan_keep(&plan,
			  "INSERT INTO otp.stats_hours AS s (workspace_id, hour, channel, template,"
			  " messages, sent, delivered, failed, fallbacks, verified, sent_times, delivered_times, verified_times)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
			  " ON CONFLICT (workspace_id, hour, channel, template) DO UPDATE SET messages = s.messages + excluded.messages,"
			  " sent = s.sent + excluded.sent, delivered = s.delivered + excluded.delivered,"
			  " failed = s.failed + excluded.failed, fallbacks = s.fallbacks + excluded.fallbacks,"
			  " verified = s.verified + excluded.verified,"
			  " sent_times = otp.histogram_add(s.sent_times, excluded.sent_times),"
			  " delivered_times = otp.histogram_add(s.delivered_times, excluded.delivered_times),"
			  " verified_times = otp.histogram_add(s.verified_times, excluded.verified_times)",
			  lengthof(types), types);
	hash_seq_init(&scan, t->hours);
	while ((row = hash_seq_search(&scan)) != NULL)
	{
		Datum		values[lengthof(types)];

		stats_hour_values(row, values);
		plan_run(plan, values, NULL, NULL, false, 0);
	}
}

/* Give the columns of otp.usage_days */
void
stats_day_values(const TallyDay *row, Datum *values)
{
	values[0] = Int32GetDatum(row->key.workspace_id);
	values[1] = DateADTGetDatum(row->key.day);
	values[2] = CStringGetTextDatum(row->key.channel);
	values[3] = CStringGetTextDatum(row->key.country);
	values[4] = CStringGetTextDatum(row->key.pricing_category);
	values[5] = CStringGetTextDatum(row->key.price_unit);
	values[6] = Int32GetDatum(row->sends);
	values[7] = Int32GetDatum(row->messages);
	values[8] = Int32GetDatum(row->sent);
	values[9] = Int32GetDatum(row->delivered);
	values[10] = Int32GetDatum(row->verified);
	values[11] = Int32GetDatum(row->credits);
	values[12] = row->price;
}

/* Add the sums of days to what is there */
static void
write_days(Tally *t)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, DATEOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	INT4OID, INT4OID, INT4OID, INT4OID, INT4OID, INT4OID, NUMERICOID};
	HASH_SEQ_STATUS scan;
	TallyDay   *row;

	plan_keep(&plan,
			  "INSERT INTO otp.usage_days AS u (workspace_id, day, channel, country, pricing_category, price_unit,"
			  " sends, messages, sent, delivered, verified, credits, price)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
			  " ON CONFLICT (workspace_id, day, channel, country, pricing_category, price_unit) DO UPDATE"
			  " SET sends = u.sends + excluded.sends, messages = u.messages + excluded.messages,"
			  " sent = u.sent + excluded.sent, delivered = u.delivered + excluded.delivered,"
			  " verified = u.verified + excluded.verified, credits = u.credits + excluded.credits,"
			  " price = coalesce(u.price + excluded.price, u.price, excluded.price)",
			  lengthof(types), types);
	hash_seq_init(&scan, t->days);
	while ((row = hash_seq_search(&scan)) != NULL)
	{
		Datum		values[lengthof(types)];
		char		nulls[lengthof(types)];

		memset(nulls, ' ', sizeof(nulls));
		stats_day_values(row, values);
		if (row->price == (Datum) 0)
			nulls[12] = 'n';
		plan_run(plan, values, nulls, NULL, false, 0);
	}
}

/* ---- a step ---- */

/* Be the only one that sums up, until the end of the transaction */
static bool
lock_position(bool patient)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, 0, STATS_LOCK_METHOD);
	return LockAcquire(&tag, ExclusiveLock, false, !patient) != LOCKACQUIRE_NOT_AVAIL;
}

/* Lock a leaf against being emptied or rewritten */
static bool
lock_leaf(const char *name, Oid namespace, bool patient)
{
	Oid			relid = get_relname_relid(name, namespace);

	if (!OidIsValid(relid))
		elog(ERROR, "table otp.%s does not exist", name);
	if (!patient)
		return ConditionalLockRelationOid(relid, AccessShareLock);
	LockRelationOid(relid, AccessShareLock);
	return true;
}

/* Lock the leaves of a span, lest a statement waits for one */
static bool
lock_leaves(uint32 leaves, bool patient)
{
	Oid			namespace = get_namespace_oid("otp", false);

	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		if ((leaves & ((uint32) 1 << leaf)) != 0 &&
			(!lock_leaf(psprintf("verifications_%02d", leaf), namespace, patient) ||
			 !lock_leaf(psprintf("messages_%02d", leaf), namespace, patient)))
			return false;
	}
	return true;
}

/* Sum up what comes next */
bool
stats_step(TimestampTz now, StatsStep *step)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz horizon = round_down(now - STATS_AGE_US);
	TimestampTz until;
	Position	p;
	Tally	   *t;
	Datum		workspaces;
	Countries  *countries;
	int64		window = step->window > 0 ? step->window : SPAN_FIRST_US;
	bool		shrunk = false;

	step->rows = 0;
	step->more = false;

	/*
	 * One at a time. The position is read by a snapshot that is younger than
	 * the lock; should that be impossible, in a transaction at a higher
	 * level, then writing it fails.
	 */
	if (!lock_position(step->patient))
		return false;
	if (!read_position(false, &p))
		return true;
	if (p.fresh)
		write_position(&p);
	if (p.rolled_until >= horizon)
		return true;
	if (p.changed)
		p.any_leaf_until = now + CHANGE_US;
	workspaces = stats_all_workspaces();
	countries = country_load();

	/* As long a span as the limit allows */
	for (;;)
	{
		int64		limit = step->limit;

		window = Min(Max(window / SPAN_MIN_US, 1) * SPAN_MIN_US, SPAN_MAX_US);
		until = Min(horizon, p.rolled_until + window);
		if (!lock_leaves(leaves_between(&p, p.rolled_until, until), step->patient))
			return false;

		/* What came in the same millisecond cannot be told apart */
		if (window == SPAN_MIN_US)
			limit = NO_LIMIT;
		t = tally_create(countries);
		step->rows = read_span(t, &p, workspaces, p.rolled_until, until, false, limit);
		if (step->rows > limit)
		{
			window /= 4;
			shrunk = true;
		}
		else if (step->rows == 0 && until < horizon && window < SPAN_MAX_US && !shrunk)
			window *= 8;
		else
			break;
		tally_free(t);
	}

	/* As long as nothing comes, nothing is written */
	step->more = until < horizon;
	if (step->rows > 0 || step->more || p.changed || until - p.rolled_until >= STILL_US)
	{
		write_hours(t);
		write_days(t);
		p.rolled_until = until;
		write_position(&p);
	}

	/* The next one as long as this one, or as its rows suggest */
	if (step->rows < step->limit / 2)
		window *= 2;
	else if (step->rows > step->limit * INT64CONST(7) / 8)
		window -= window / 4;
	step->window = window;
	tally_free(t);
	country_free(countries);
	MemoryContextSwitchTo(context);
	return true;
}

/* Delete sums that are too old */
int64
stats_delete_old(TimestampTz now)
{
	static SPIPlanPtr hours = NULL;
	static SPIPlanPtr days = NULL;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[1];
	int64		deleted;

	plan_keep(&hours,
			  "DELETE FROM otp.stats_hours WHERE ctid = ANY (ARRAY (SELECT o.row FROM otp.workspaces w"
			  " CROSS JOIN LATERAL (SELECT s.ctid AS row FROM otp.stats_hours s"
			  " WHERE s.workspace_id = w.workspace_id AND s.hour < $1 LIMIT " DELETE_ROWS ") o LIMIT " DELETE_ROWS "))",
			  lengthof(types), types);
	plan_keep(&days,
			  "DELETE FROM otp.usage_days WHERE ctid = ANY (ARRAY (SELECT o.row FROM otp.workspaces w"
			  " CROSS JOIN LATERAL (SELECT u.ctid AS row FROM otp.usage_days u"
			  " WHERE u.workspace_id = w.workspace_id AND u.day < (($1 AT TIME ZONE 'UTC')::date)"
			  " LIMIT " DELETE_ROWS ") o LIMIT " DELETE_ROWS "))",
			  lengthof(types), types);
	values[0] = TimestampTzGetDatum(now - STATS_KEPT_US);
	plan_run(hours, values, NULL, NULL, false, 0);
	deleted = SPI_processed;
	plan_run(days, values, NULL, NULL, false, 0);
	return deleted + SPI_processed;
}
