/*-------------------------------------------------------------------------
 *
 * outcome.c
 *	  Which of many verifications have an outcome: a look that costs little.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "store/outbox.h"
#include "store/outcome.h"
#include "store/plan.h"

/* Look into one leaf */
static void
find_in_leaf(int leaf, const MessageKey *keys, bool *found, const int *members, int count)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID, TIMESTAMPTZOID};
	Datum		values[lengthof(types)];
	Datum	   *workspaces = palloc(count * sizeof(Datum));
	Datum	   *ids = palloc(count * sizeof(Datum));

	/* A resend has the numbers behind those of the sends before it */
	plan_keep_leaf(plans, leaf,
				   "SELECT k.n FROM unnest($1, $2) WITH ORDINALITY k (workspace_id, id, n)"
				   " LEFT JOIN LATERAL (SELECT v.workspace_id, v.id, v.resends,"
				   " v.verified_at IS NOT NULL OR v.canceled_at IS NOT NULL OR v.expires_at <= $3"
				   " OR v.attempts >= v.max_attempts AS over"
				   " FROM otp.verifications_%02d v"
				   " WHERE v.workspace_id = k.workspace_id AND v.id = k.id OFFSET 0) v ON true"
				   " WHERE v.id IS NULL OR v.over OR EXISTS (SELECT 1 FROM otp.messages_%02d m"
				   " WHERE m.workspace_id = v.workspace_id AND m.verification_id = v.id"
				   " AND (m.ended_reason IS NOT NULL OR (m.number > 2 * v.resends"
				   " AND (m.sent_at IS NOT NULL OR m.delivered_at IS NOT NULL OR m.failed_at IS NOT NULL))))",
				   lengthof(types), types);
	for (int i = 0; i < count; i++)
	{
		workspaces[i] = Int32GetDatum(keys[members[i]].workspace_id);
		ids[i] = UUIDPGetDatum(&keys[members[i]].id);
	}
	values[0] = store_array(workspaces, NULL, count, INT4OID);
	values[1] = store_array(ids, NULL, count, UUIDOID);
	values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
	plan_run_latest(plans[leaf], values, NULL, 0);

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		n = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		found[members[DatumGetInt64(n) - 1]] = true;
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Look at many */
void
outcome_find(const MessageKey *keys, bool *found, int n)
{
	MemoryContext context = CurrentMemoryContext;
	int		   *members = palloc(n * sizeof(int));
	uint32		leaves = 0;

	memset(found, 0, n * sizeof(bool));
	for (int i = 0; i < n; i++)
		leaves |= (uint32) 1 << (keys[i].slot % ULID_SLOTS);
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		int			count = 0;

		if ((leaves & ((uint32) 1 << leaf)) == 0)
			continue;
		for (int i = 0; i < n; i++)
		{
			if (keys[i].slot == leaf)
				members[count++] = i;
		}
		find_in_leaf(leaf, keys, found, members, count);
	}
	pfree(members);
	MemoryContextSwitchTo(context);
}
