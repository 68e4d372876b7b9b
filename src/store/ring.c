/*-------------------------------------------------------------------------
 *
 * ring.c
 *	  The drawers of the history, and how they are emptied.
 *
 * What a drawer holds is read from its rows, under the lock that empties it,
 * and never taken on trust: whoever has inserted into a leaf and not yet
 * committed keeps a lock on it, so a leaf that can be locked and has nothing
 * young in it loses nothing young, whatever clocks, restarts and changes of
 * otp.retention have done. otp.ring only saves looking.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <limits.h>

#include "access/relation.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "store/plan.h"
#include "store/ring.h"

/* Rows that one step deletes, and workspaces that it looks through for some */
#define DELETE_ROWS 500
#define DELETE_WORKSPACES 100

/* Nobody waits longer behind us for what a leaf hangs together with. */
#define LOCK_TIMEOUT "10ms"

/*
 * In the order in which they are emptied. Rows are found and dated by a ULID,
 * which in the primary key follows the workspace, and another column with some.
 */
static const struct
{
	const char *name;
	const char *id;
	const char *second;
}			tables[RING_TABLES] = {
	{"verifications", "id", NULL},
	{"messages", "verification_id", NULL},
	{"webhook_attempts", "webhook_id", "endpoint_id"},
	{"send_keys", "verification_id", NULL}
};

/* Find a leaf; there may be none of that table */
static Oid
leaf_oid(int table, int slot)
{
	Oid			namespace = get_namespace_oid("otp", true);
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "%s_%02d", tables[table].name, slot);
	return OidIsValid(namespace) ? get_relname_relid(name, namespace) : InvalidOid;
}

/* Open a leaf and lock it, if that needs no waiting */
static RingTry
open_leaf(int table, int slot, LOCKMODE mode, Relation *rel)
{
	Oid			oid = leaf_oid(table, slot);

	*rel = NULL;
	if (!OidIsValid(oid))
		return RING_DONE;
	if (!ConditionalLockRelationOid(oid, mode))
		return RING_LOCKED;
	*rel = try_relation_open(oid, NoLock);
	if (*rel != NULL && (*rel)->rd_rel->relkind == RELKIND_RELATION)
		return RING_MORE;
	if (*rel != NULL)
		relation_close(*rel, NoLock);
	*rel = NULL;
	UnlockRelationOid(oid, mode);
	return RING_DONE;
}

/*
 * Prepare a statement on a leaf: in it, {leaf} is its name, {id} the id's
 * column and {second} the one before it; {key} are the columns before it in the key, {l} and {w} the same of
 * l and of w.
 */
static SPIPlanPtr
leaf_plan(SPIPlanPtr *plan, const char *sql, int table, int slot, int nargs, const Oid *types)
{
	const char *second = tables[table].second;
	struct
	{
		const char *mark;
		const char *text;
	}			marks[] = {
		{"{leaf}", psprintf("otp.%s_%02d", tables[table].name, slot)},
		{"{id}", tables[table].id},
		{"{second}", second ? second : "workspace_id"},
		{"{key}", second ? psprintf("workspace_id, %s", second) : "workspace_id"},
		{"{l}", second ? psprintf("l.workspace_id, l.%s", second) : "l.workspace_id"},
		{"{w}", second ? psprintf("w.workspace_id, w.%s", second) : "w.workspace_id"}
	};
	StringInfoData text;

	if (*plan != NULL)
		return *plan;
	initStringInfo(&text);
	while (*sql != '\0')
	{
		size_t		length = 0;

		for (int i = 0; i < lengthof(marks) && length == 0; i++)
		{
			if (strncmp(sql, marks[i].mark, strlen(marks[i].mark)) != 0)
				continue;
			length = strlen(marks[i].mark);
			appendStringInfoString(&text, marks[i].text);
		}
		if (length == 0)
			appendStringInfoChar(&text, *sql);
		sql += Max(length, 1);
	}
	return plan_keep(plan, text.data, nargs, types);
}

/* ---- otp.ring ---- */

/* Read all rows */
void
ring_read(RingDrawer drawers[ULID_SLOTS])
{
	static SPIPlanPtr plan = NULL;

	memset(drawers, 0, sizeof(RingDrawer) * ULID_SLOTS);
	plan_keep(&plan, "SELECT r.slot, r.since, r.until FROM otp.ring r", 0, NULL);
	plan_run_latest(plan, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int			slot = DatumGetInt16(SPI_getbinval(tuple, desc, 1, &isnull));

		if (slot < 0 || slot >= ULID_SLOTS)
			continue;
		drawers[slot].noted = true;
		drawers[slot].since = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
		drawers[slot].until = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 3, &isnull));
	}
}

/* Widen a drawer's row, or make it */
void
ring_widen(int slot, TimestampTz since, TimestampTz until)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT2OID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[] = {Int16GetDatum(slot), TimestampTzGetDatum(since), TimestampTzGetDatum(until)};

	plan_keep(&plan,
			  "INSERT INTO otp.ring AS r (slot, since, until) VALUES ($1, $2, $3)"
			  " ON CONFLICT (slot) DO UPDATE SET since = LEAST(r.since, excluded.since),"
			  " until = GREATEST(r.until, excluded.until)"
			  " WHERE r.since > excluded.since OR r.until < excluded.until",
			  lengthof(types), types);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Set the start of the oldest content */
void
ring_set_since(int slot, TimestampTz since)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT2OID, TIMESTAMPTZOID};
	Datum		values[] = {Int16GetDatum(slot), TimestampTzGetDatum(since)};

	plan_keep(&plan, "UPDATE otp.ring r SET since = $2 WHERE r.slot = $1", lengthof(types), types);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Delete a drawer's row */
void
ring_forget(int slot)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT2OID};
	Datum		values[] = {Int16GetDatum(slot)};

	plan_keep(&plan, "DELETE FROM otp.ring r WHERE r.slot = $1", lengthof(types), types);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* ---- what is in a drawer ---- */

/* Look at the sizes of files */
bool
ring_is_filled(int slot)
{
	bool		filled = false;

	for (int table = 0; table < RING_TABLES && !filled; table++)
	{
		Relation	rel;

		switch (open_leaf(table, slot, AccessShareLock, &rel))
		{
			case RING_MORE:
				filled = RelationGetNumberOfBlocks(rel) > 0;
				relation_close(rel, AccessShareLock);
				break;
			case RING_LOCKED:
				filled = true;
				break;
			default:
				break;
		}
	}
	return filled;
}

/* Find the oldest and the newest row of a leaf that is locked; false when there is none */
static bool
measure_leaf(Relation rel, int table, int slot, TimestampTz *oldest, TimestampTz *newest)
{
	static SPIPlanPtr plans[RING_TABLES][ULID_SLOTS];
	bool		found = false;

	if (RelationGetNumberOfBlocks(rel) == 0)
		return false;

	/* From workspace to workspace: some descents of the primary key for each */
	leaf_plan(&plans[table][slot],
			  "WITH RECURSIVE w ({key}) AS ("
			  "(SELECT {l} FROM {leaf} l ORDER BY {l} LIMIT 1)"
			  " UNION ALL SELECT n.* FROM w, LATERAL ("
			  "SELECT {l} FROM {leaf} l WHERE ({l}) > ({w}) ORDER BY {l} LIMIT 1) n)"
			  " SELECT (SELECT l.{id} FROM {leaf} l WHERE ({l}) = ({w}) ORDER BY l.{id} LIMIT 1),"
			  " (SELECT l.{id} FROM {leaf} l WHERE ({l}) = ({w}) ORDER BY l.{id} DESC LIMIT 1) FROM w",
			  table, slot, 0, NULL);
	plan_run_latest(plans[table][slot], NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		low = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		Datum		high = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);
		TimestampTz low_time;
		TimestampTz high_time;

		if (isnull)
			continue;
		low_time = ulid_time(DatumGetUUIDP(low));
		high_time = ulid_time(DatumGetUUIDP(high));
		if (!found || low_time < *oldest)
			*oldest = low_time;
		if (!found || high_time > *newest)
			*newest = high_time;
		found = true;
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* Measure a drawer */
RingTry
ring_measure(int slot, TimestampTz *oldest, TimestampTz *newest)
{
	bool		found = false;

	for (int table = 0; table < RING_TABLES; table++)
	{
		Relation	rel;
		TimestampTz low;
		TimestampTz high;

		switch (open_leaf(table, slot, AccessShareLock, &rel))
		{
			case RING_LOCKED:
				return RING_LOCKED;
			case RING_MORE:
				break;
			default:
				continue;
		}
		if (measure_leaf(rel, table, slot, &low, &high))
		{
			if (!found || low < *oldest)
				*oldest = low;
			if (!found || high > *newest)
				*newest = high;
			found = true;
		}
		relation_close(rel, AccessShareLock);
	}
	return found ? RING_KEPT : RING_DONE;
}

/* ---- emptying ---- */

/* Does anybody hold a lock that would make us wait? Costs no transaction id, which a try does. */
static bool
is_used(Oid oid)
{
	LOCKTAG		tag;
	int			count;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, oid);
	(void) GetLockConflicts(&tag, AccessExclusiveLock, &count);
	return count > 0;
}

/* Empty a leaf */
RingTry
ring_truncate(int table, int slot, TimestampTz cutoff, TimestampTz *newest)
{
	Oid			oid = leaf_oid(table, slot);
	Relation	rel;
	RingTry		got;
	Oid			toast;
	TimestampTz oldest;

	/* An empty one is left as it is: TRUNCATE would write to the catalog */
	got = open_leaf(table, slot, AccessShareLock, &rel);
	if (got != RING_MORE)
		return got;
	toast = rel->rd_rel->reltoastrelid;
	got = RelationGetNumberOfBlocks(rel) == 0 ? RING_DONE : RING_MORE;
	relation_close(rel, AccessShareLock);
	if (got == RING_DONE)
		return RING_DONE;

	/*
	 * Never in a queue: behind a reader we would stand in front of all who
	 * come later. TRUNCATE takes the toast table as well, which a vacuum of
	 * its own may have.
	 */
	if (is_used(oid) || (OidIsValid(toast) && is_used(toast)))
		return RING_LOCKED;
	got = open_leaf(table, slot, AccessExclusiveLock, &rel);
	if (got != RING_MORE)
		return got;
	if (rel->rd_rel->reltoastrelid != toast ||
		(OidIsValid(toast) && !ConditionalLockRelationOid(toast, AccessExclusiveLock)))
	{
		relation_close(rel, AccessExclusiveLock);
		return RING_LOCKED;
	}

	/* Nobody can add to it now */
	if (measure_leaf(rel, table, slot, &oldest, newest) && *newest >= cutoff)
	{
		relation_close(rel, NoLock);
		return RING_KEPT;
	}
	relation_close(rel, NoLock);

	/* For what else it may lock; ends with the owner's scope */
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_execute(psprintf("TRUNCATE ONLY otp.%s_%02d", tables[table].name, slot), false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not empty a drawer");
	return RING_DONE;
}

/* Delete rows of one workspace from the position on; gives their number */
static int
delete_rows(int table, int slot, const pg_uuid_t *end, RingPosition *position)
{
	static SPIPlanPtr plans[RING_TABLES][ULID_SLOTS];
	Oid			types[] = {INT4OID, INT4OID, UUIDOID, UUIDOID, INT4OID};
	Datum		values[] = {Int32GetDatum(position->workspace_id), Int32GetDatum(position->second),
	UUIDPGetDatum(&position->id), UUIDPGetDatum(end), Int32GetDatum(DELETE_ROWS)};

	leaf_plan(&plans[table][slot],
			  tables[table].second != NULL ?
			  "DELETE FROM {leaf} d WHERE d.ctid = ANY (ARRAY(SELECT l.ctid FROM {leaf} l"
			  " WHERE ({l}) = ($1, $2) AND l.{id} >= $3 AND l.{id} < $4"
			  " ORDER BY l.{id} LIMIT $5 FOR UPDATE SKIP LOCKED)) RETURNING d.{id}" :
			  "DELETE FROM {leaf} d WHERE d.ctid = ANY (ARRAY(SELECT l.ctid FROM {leaf} l"
			  " WHERE ({l}) = ($1) AND $2 = 0 AND l.{id} >= $3 AND l.{id} < $4"
			  " ORDER BY l.{id} LIMIT $5 FOR UPDATE SKIP LOCKED)) RETURNING d.{id}",
			  table, slot, lengthof(types), types);
	plan_run_latest(plans[table][slot], values, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		pg_uuid_t  *id = DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));

		if (memcmp(id, &position->id, UUID_LEN) > 0)
			position->id = *id;
	}
	return (int) SPI_processed;
}

/* Go on to the next workspace in a leaf */
static bool
next_workspace(int table, int slot, RingPosition *position)
{
	static SPIPlanPtr plans[RING_TABLES][ULID_SLOTS];
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(position->workspace_id), Int32GetDatum(position->second)};
	bool		isnull;

	leaf_plan(&plans[table][slot],
			  tables[table].second != NULL ?
			  "SELECT {l} FROM {leaf} l WHERE ({l}) > ($1, $2) ORDER BY {l} LIMIT 1" :
			  "SELECT {l}, 0 FROM {leaf} l WHERE ({l}) > ($1) AND $2 = 0 ORDER BY {l} LIMIT 1",
			  table, slot, lengthof(types), types);
	plan_run_latest(plans[table][slot], values, NULL, 1);
	if (SPI_processed == 0)
		return false;
	position->workspace_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	position->second = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	memset(&position->id, 0, sizeof(position->id));
	return true;
}

/* Delete old rows */
RingTry
ring_delete(int table, int slot, TimestampTz cutoff, RingPosition *position)
{
	Relation	rel;
	RingTry		got = open_leaf(table, slot, RowExclusiveLock, &rel);
	bool		empty;
	pg_uuid_t	end;

	if (got != RING_MORE)
		return got;
	empty = RelationGetNumberOfBlocks(rel) == 0;
	relation_close(rel, NoLock);
	if (empty)
		return RING_DONE;

	/*
	 * By position, not from the start: while an old snapshot is open, what
	 * was deleted stays in the index, and each step would wade through more.
	 * Rows that somebody has locked are passed over; they go with the drawer.
	 */
	ulid_lowest(&end, cutoff);
	for (int i = 0; i < DELETE_WORKSPACES; i++)
	{
		int			n;

		if (position->workspace_id == 0 && !next_workspace(table, slot, position))
			return RING_DONE;
		n = delete_rows(table, slot, &end, position);
		if (n == DELETE_ROWS)
			return RING_MORE;
		if (!next_workspace(table, slot, position))
			return RING_DONE;
		if (n > 0)
			return RING_MORE;
	}
	return RING_MORE;
}

/* Delete rows of a workspace */
RingTry
ring_delete_workspace(int table, int slot, int32 workspace_id, RingPosition *position)
{
	static SPIPlanPtr plans[RING_TABLES][ULID_SLOTS];
	Oid			types[] = {INT4OID, INT4OID, UUIDOID};
	Datum		values[] = {Int32GetDatum(workspace_id), Int32GetDatum(position->second), UUIDPGetDatum(&position->id)};
	Relation	rel;
	RingTry		got = open_leaf(table, slot, RowExclusiveLock, &rel);
	bool		empty;

	if (got != RING_MORE)
		return got;
	empty = RelationGetNumberOfBlocks(rel) == 0;
	relation_close(rel, NoLock);
	if (empty)
		return RING_DONE;

	/* By position, as ring_delete; ids of what stands between are above zero */
	leaf_plan(&plans[table][slot],
			  tables[table].second != NULL ?
			  "DELETE FROM {leaf} d WHERE d.ctid = ANY (ARRAY(SELECT l.ctid FROM {leaf} l"
			  " WHERE l.workspace_id = $1 AND (l.{second}, l.{id}) >= ($2, $3)"
			  " ORDER BY l.{second}, l.{id} LIMIT 500 FOR UPDATE SKIP LOCKED)) RETURNING d.{id}, d.{second}" :
			  "DELETE FROM {leaf} d WHERE d.ctid = ANY (ARRAY(SELECT l.ctid FROM {leaf} l"
			  " WHERE l.workspace_id = $1 AND l.{id} >= $3 AND $2 = 0"
			  " ORDER BY l.{id} LIMIT 500 FOR UPDATE SKIP LOCKED)) RETURNING d.{id}, 0",	/* DELETE_ROWS */
			  table, slot, lengthof(types), types);
	StaticAssertStmt(DELETE_ROWS == 500, "LIMIT above");
	plan_run_latest(plans[table][slot], values, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		HeapTuple	tuple = SPI_tuptable->vals[i];
		pg_uuid_t  *id = DatumGetUUIDP(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull));
		int32		second = DatumGetInt32(SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull));

		if (second < position->second ||
			(second == position->second && memcmp(id, &position->id, UUID_LEN) <= 0))
			continue;
		position->second = second;
		position->id = *id;
	}
	return SPI_processed == DELETE_ROWS ? RING_MORE : RING_DONE;
}

/* ---- for limits ---- */

/* List the drawers of some recent time */
int
ring_recent(TimestampTz since, TimestampTz now, int slots[ULID_SLOTS])
{
	static SPIPlanPtr plan = NULL;
	static int	retention = 0;
	static int64 day = 0;
	static uint32 noted = 0;	/* bits */
	uint32		listed;
	int			n = 0;

	/*
	 * A change of otp.retention may have changed the step, and what was sent
	 * before is where the step of then put it: once a day, or after a change,
	 * ask the ring.
	 */
	if (otp_retention != retention || now / USECS_PER_DAY != day)
	{
		Oid			types[] = {TIMESTAMPTZOID};
		Datum		values[] = {TimestampTzGetDatum(now - USECS_PER_DAY)};

		plan_keep(&plan, "SELECT r.slot FROM otp.ring r WHERE r.until > $1", lengthof(types), types);
		plan_run_latest(plan, values, NULL, 0);
		noted = 0;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;

			noted |= 1U << (DatumGetInt16(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)) &
							(ULID_SLOTS - 1));
		}

		/* Those that the step of now explains are looked at when they matter */
		noted &= ~(1U << ulid_slot_at(now) | 1U << ulid_slot_at(now - USECS_PER_DAY));
		retention = otp_retention;
		day = now / USECS_PER_DAY;
	}

	listed = noted | 1U << ulid_slot_at(now) | 1U << ulid_slot_at(since);
	for (int slot = 0; slot < ULID_SLOTS; slot++)
		if (listed & (1U << slot))
			slots[n++] = slot;
	return n;
}
