/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  What the guard against pumping reads from the history, and its log.
 *
 * A span of time is a range of the primary key in the leaves that were filled
 * then. The last day is read from its end, in spans that grow longer, all by
 * one snapshot; and only for so long: whoever sends is waiting for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/ulid.h"
#include "store/country.h"
#include "store/guard.h"
#include "store/plan.h"
#include "store/ring.h"

/* Rows fetched at a time */
#define FETCH_ROWS 1000

/*
 * The longest time to read for, a million rows or so. Who has sent more than
 * that in a day is judged by the newest of it: the last hour comes first, and
 * the thresholds of such a workspace come from the sums of its days.
 */
#define READ_MS 1000

/* The spans of the last day that are read, by their ends, in hours from now */
static const int spans[] = {1, 2, 4, 8, 16, 24};

/* A plus and three digits */
#define PREFIX_LENGTH 4

/* Below this, a day's successes leave the thresholds at their least: see guard_rule.c */
#define BEST_LEAST 100

/* Rows of the log deleted at a time */
#define DELETE_ROWS_SQL "1000"

/* Name what a phone is counted under, by a reading of otp.countries */
static bool
name_country(const Countries *countries, const char *phone, char country[GUARD_COUNTRY_LENGTH + 1])
{
	const char *found;

	if (phone[0] != '+')
		return false;

	/* A copy: the next statement may be to read otp.countries anew */
	found = country_find(countries, phone, strlen(phone));
	if (found[0] != '\0')
		strlcpy(country, found, GUARD_COUNTRY_LENGTH + 1);
	else
		strlcpy(country, phone, PREFIX_LENGTH + 1);
	return true;
}

/* Name what a phone is counted under */
bool
guard_country(const char *phone, char country[GUARD_COUNTRY_LENGTH + 1])
{
	return name_country(country_kept(), phone, country);
}

/* Find or make the counts of a country */
static GuardCounts *
enter(HTAB *hash, const char *country, int64 newest)
{
	char		key[GUARD_COUNTRY_LENGTH + 1] = {0};
	GuardCounts *counts;
	bool		found;

	strlcpy(key, country, sizeof(key));
	counts = hash_search(hash, key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) counts + sizeof(key), 0, sizeof(GuardCounts) - sizeof(key));
		counts->newest = newest;
	}
	return counts;
}

/* Count some rows that were read */
static void
count_rows(HTAB *hash, const Countries *countries, int64 newest)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		bool		isnull;
		text	   *phone = DatumGetTextPP(SPI_getbinval(tuple, desc, 1, &isnull));
		int64		bucket = guard_bucket(DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull)));
		char		number[32];
		char		country[GUARD_COUNTRY_LENGTH + 1];
		GuardCounts *counts;

		if (bucket <= newest - GUARD_BUCKETS)
			continue;
		text_to_cstring_buffer(phone, number, sizeof(number));
		if (!name_country(countries, number, country))
			continue;

		/* Another machine's clock may be a little ahead */
		bucket = Min(bucket, newest) % GUARD_BUCKETS;
		counts = enter(hash, country, newest);
		counts->sends[bucket]++;
		if (DatumGetBool(SPI_getbinval(tuple, desc, 3, &isnull)))
			counts->verified[bucket]++;
	}
}

/* Count what one leaf has of a span of time; false when that took too long */
static bool
count_leaf(HTAB *hash, const Countries *countries, int leaf, int32 workspace_id, const pg_uuid_t *from,
		   const pg_uuid_t *before, int64 newest, TimestampTz until)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, UUIDOID, INT8OID};
	Datum		values[4];
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	Portal		portal;
	bool		in_time = true;
	uint64		fetched;

	plan_keep_leaf(plans, leaf,
				   "SELECT v.phone, v.created_at, v.verified_at IS NOT NULL FROM otp.verifications_%02d v"
				   " WHERE v.workspace_id = $1 AND v.id >= $2 AND v.id < $3 AND v.created_xid <> $4"
				   " AND v.test_outcome IS NULL AND NOT v.shadowed",
				   lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = UUIDPGetDatum(from);
	values[2] = UUIDPGetDatum(before);
	values[3] = Int64GetDatum(FullTransactionIdIsValid(own) ? (int64) U64FromFullTransactionId(own) : 0);
	portal = plan_open(plans[leaf], values, NULL);
	do
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		fetched = SPI_processed;
		count_rows(hash, countries, newest);
		SPI_freetuptable(SPI_tuptable);
		in_time = GetCurrentTimestamp() < until;
	} while (fetched == FETCH_ROWS && in_time);
	SPI_cursor_close(portal);
	return in_time;
}

/* Count what was sent within the last day, as long as there is time */
static void
count_day(HTAB *hash, int32 workspace_id, TimestampTz now)
{
	int64		newest = guard_bucket(now);
	const Countries *countries;
	int			leaves[ULID_SLOTS];
	int			nleaves;
	pg_uuid_t	from;
	pg_uuid_t	before;
	int			ms = StatementTimeout > 0 ? Min(READ_MS, StatementTimeout / 2) : READ_MS;
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);

	/*
	 * Before the snapshot: these read tables, too. The countries once for
	 * all: should they change, reading them anew between two rows would take
	 * the place of the rows.
	 */
	nleaves = ring_recent(now - USECS_PER_DAY, now, leaves);
	countries = country_kept();

	/* The one that is being filled comes first */
	for (int i = 1; i < nleaves; i++)
	{
		if (leaves[i] == ulid_slot_at(now))
		{
			leaves[i] = leaves[0];
			leaves[0] = ulid_slot_at(now);
		}
	}

	PushActiveSnapshot(GetLatestSnapshot());
	ulid_lowest(&before, DT_NOEND);
	for (int span = 0; span < lengthof(spans); span++)
	{
		ulid_lowest(&from, now - spans[span] * USECS_PER_HOUR);
		for (int i = 0; i < nleaves; i++)
		{
			if (!count_leaf(hash, countries, leaves[i], workspace_id, &from, &before, newest, until))
			{
				PopActiveSnapshot();
				return;
			}
		}
		before = from;
	}
	PopActiveSnapshot();
}

/* Read a workspace's history */
GuardCounts *
guard_read_history(int32 workspace_id, TimestampTz now, int *n)
{
	HASHCTL		info;
	HTAB	   *hash;
	HASH_SEQ_STATUS scan;
	GuardCounts *counts;
	GuardCounts *list;
	GuardBest  *best;
	int			nbest;
	int64		newest = guard_bucket(now);

	memset(&info, 0, sizeof(info));
	info.keysize = GUARD_COUNTRY_LENGTH + 1;
	info.entrysize = sizeof(GuardCounts);
	info.hcxt = CurrentMemoryContext;
	hash = hash_create("otp guard history", 64, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	count_day(hash, workspace_id, now);
	best = guard_read_best(workspace_id, now, &nbest);
	for (int i = 0; i < nbest; i++)
		enter(hash, best[i].country, newest)->best_day = best[i].verified;

	*n = 0;
	list = palloc(sizeof(GuardCounts) * Max(hash_get_num_entries(hash), 1));
	hash_seq_init(&scan, hash);
	while ((counts = hash_seq_search(&scan)) != NULL)
		list[(*n)++] = *counts;
	hash_destroy(hash);
	return list;
}

/* Read the most verified in a day */
GuardBest *
guard_read_best(int32 workspace_id, TimestampTz now, int *n)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID, INT4OID};
	Datum		values[3];
	GuardBest  *best;

	plan_keep(&plan,
			  "SELECT d.country, least(max(d.verified), 2147483647)::int4 FROM"
			  " (SELECT u.country, u.day, sum(u.verified) AS verified FROM otp.usage_days u"
			  " WHERE u.workspace_id = $1 AND u.day >= ($2 AT TIME ZONE 'UTC')::date - 14 AND u.country <> ''"
			  " GROUP BY u.country, u.day) d WHERE d.verified > $3 GROUP BY d.country",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = TimestampTzGetDatum(now);
	values[2] = Int32GetDatum(BEST_LEAST);
	plan_run_latest(plan, values, NULL, 0);
	*n = SPI_processed;
	best = palloc0(sizeof(GuardBest) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		bool		isnull;

		text_to_cstring_buffer(DatumGetTextPP(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull)),
							   best[i].country, sizeof(best[i].country));
		best[i].verified = DatumGetInt32(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	return best;
}

/* Add decisions to the log */
void
guard_log_add(const GuardDecision *decisions, int n)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, INT4OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	INT4OID, INT4OID};

	plan_keep(&plan,
			  "INSERT INTO otp.guard_log AS g"
			  " (workspace_id, hour, country, reason, blocked, recorded, first_at, last_at, unverified, threshold)"
			  " VALUES ($1, date_trunc('hour', $7, 'UTC'), $2, $3, $4, $5, $6, $7, $8, $9)"
			  " ON CONFLICT (workspace_id, hour, country, reason) DO UPDATE SET"
			  " blocked = g.blocked + excluded.blocked, recorded = g.recorded + excluded.recorded,"
			  " first_at = least(g.first_at, excluded.first_at), last_at = greatest(g.last_at, excluded.last_at),"
			  " unverified = excluded.unverified, threshold = excluded.threshold",
			  lengthof(types), types);
	for (int i = 0; i < n; i++)
	{
		const GuardDecision *d = &decisions[i];
		Datum		values[lengthof(types)];

		values[0] = Int32GetDatum(d->workspace_id);
		values[1] = CStringGetTextDatum(d->country);
		values[2] = CStringGetTextDatum(d->reason == GUARD_DAY ? "day" : "hour");
		values[3] = Int32GetDatum(d->blocked);
		values[4] = Int32GetDatum(d->recorded);
		values[5] = TimestampTzGetDatum(d->first_at);
		values[6] = TimestampTzGetDatum(d->last_at);
		values[7] = Int32GetDatum(d->unverified);
		values[8] = Int32GetDatum(d->threshold);
		plan_run(plan, values, NULL, NULL, false, 0);
	}
}

/* Delete old rows of the log */
int64
guard_log_delete(TimestampTz before)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(before)};

	plan_keep(&plan,
			  "DELETE FROM otp.guard_log WHERE ctid = ANY (ARRAY (SELECT g.ctid FROM otp.guard_log g"
			  " WHERE g.hour < $1 ORDER BY g.hour LIMIT " DELETE_ROWS_SQL "))",
			  lengthof(types), types);
	plan_run(plan, values, NULL, NULL, false, 0);
	return SPI_processed;
}
