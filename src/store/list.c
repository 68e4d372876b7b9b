/*-------------------------------------------------------------------------
 *
 * list.c
 *	  The last verifications of a workspace.
 *
 * Any leaf may have any time, after a change of otp.retention; but each gives
 * its youngest by an index, and those are merged.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

#include "base/ulid.h"
#include "store/plan.h"
#include "store/verification.h"

/* Order ids, newest first */
static int
compare_ids(const void *a, const void *b)
{
	return memcmp(b, a, sizeof(pg_uuid_t));
}

/* List verifications */
int
verification_list(int32 workspace_id, const char *phone, const pg_uuid_t *after, int limit, pg_uuid_t *ids)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	static SPIPlanPtr phone_plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, INT4OID, TEXTOID};
	Datum		values[4];
	pg_uuid_t	last;
	pg_uuid_t  *found = palloc(sizeof(pg_uuid_t) * limit * 2);
	int			n = 0;

	memset(&last, 0xff, sizeof(last));
	if (after != NULL)
		last = *after;
	values[0] = Int32GetDatum(workspace_id);
	values[1] = UUIDPGetDatum(&last);
	values[2] = Int32GetDatum(limit);
	values[3] = phone != NULL ? CStringGetTextDatum(phone) : (Datum) 0;
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		SPIPlanPtr	plan;

		if (phone == NULL)
			plan = plan_keep_leaf(plans, leaf,
								  "SELECT v.id FROM otp.verifications_%02d v WHERE v.workspace_id = $1 AND v.id < $2"
								  " ORDER BY v.id DESC LIMIT $3", 3, types);
		else
			plan = plan_keep_leaf(phone_plans, leaf,
								  "SELECT v.id FROM otp.verifications_%02d v WHERE v.workspace_id + 0 = $1 AND v.phone = $4"
								  " AND v.id < $2 ORDER BY v.id DESC LIMIT $3", lengthof(types), types);
		plan_run(plan, values, NULL, NULL, true, 0);

		/* Of what there is so far, the newest are kept */
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;

			found[n++] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		}
		SPI_freetuptable(SPI_tuptable);
		qsort(found, n, sizeof(pg_uuid_t), compare_ids);
		n = Min(n, limit);
	}
	memcpy(ids, found, sizeof(pg_uuid_t) * n);
	pfree(found);
	return n;
}
