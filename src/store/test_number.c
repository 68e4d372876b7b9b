/*-------------------------------------------------------------------------
 *
 * test_number.c
 *	  The rows of otp.test_numbers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/keyring.h"
#include "base/seal.h"
#include "store/key.h"
#include "store/plan.h"
#include "store/test_number.h"
#include "store/verification.h"

/* Name what a code is sealed for */
static char *
seal_purpose(int32 workspace_id, const char *phone)
{
	return psprintf("test_number:%d:%s", workspace_id, phone);
}

/* Find a test number */
bool
test_number_find(int32 workspace_id, const char *phone, TimestampTz now, TestNumber *number)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[3];
	bool		isnull;
	bytea	   *sealed;
	int			key_id;
	size_t		length;
	char	   *outcome;

	plan_keep(&plan,
			  "SELECT t.code, t.key_id, t.outcome FROM otp.test_numbers t"
			  " WHERE t.workspace_id = $1 AND t.phone = $2 AND t.valid_until > $3",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(phone);
	values[2] = TimestampTzGetDatum(now);
	plan_run_latest(plan, values, NULL, 1);
	if (SPI_processed == 0)
		return false;

	sealed = DatumGetByteaPCopy(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	key_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	outcome = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3);
	number->outcome = outcome;
	key_require(key_id);
	number->code = unseal(sealed, seal_purpose(workspace_id, phone), key_id, &length);
	return true;
}

/* Store a test number */
void
test_number_set(int32 workspace_id, const char *phone, const char *code,
				const char *outcome, TimestampTz valid_until, const char *set_by)
{
	static SPIPlanPtr change_plan = NULL;
	static SPIPlanPtr set_plan = NULL;
	static SPIPlanPtr remove_plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, BYTEAOID, INT4OID, TEXTOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[lengthof(types)];
	int			key_id;

	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(phone);
	/* One row per phone without a unique index, whose violation would show it */
	verification_lock_phone(workspace_id, phone);
	if (code == NULL)
	{
		plan_keep(&remove_plan,
				  "DELETE FROM otp.test_numbers WHERE workspace_id = $1 AND phone = $2", 2, types);
		plan_run_latest(remove_plan, values, NULL, 0);
		return;
	}

	key_id = keyring_current();
	values[2] = PointerGetDatum(seal(code, strlen(code), seal_purpose(workspace_id, phone), key_id));
	values[3] = Int32GetDatum(key_id);
	values[4] = CStringGetTextDatum(outcome);
	values[5] = TimestampTzGetDatum(valid_until);
	values[6] = CStringGetTextDatum(set_by);

	/* A change is one, in otp.audit as well */
	plan_keep(&change_plan,
			  "UPDATE otp.test_numbers SET code = $3, key_id = $4, outcome = $5, valid_until = $6, set_by = $7,"
			  " set_at = pg_catalog.clock_timestamp() WHERE workspace_id = $1 AND phone = $2",
			  lengthof(types), types);
	plan_run_latest(change_plan, values, NULL, 0);
	if (SPI_processed > 0)
		return;

	plan_keep(&set_plan,
			  "INSERT INTO otp.test_numbers (workspace_id, phone, code, key_id, outcome, valid_until, set_by)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7)",
			  lengthof(types), types);
	plan_run_latest(set_plan, values, NULL, 0);
}
