/*-------------------------------------------------------------------------
 *
 * audit.c
 *	  The rows of otp.audit_entries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "store/audit.h"
#include "store/plan.h"

bool		audit_off = false;

/* Leave only the ends of a phone; nothing of what is none */
char *
audit_mask_phone(const char *phone)
{
	char	   *masked = pstrdup(phone);
	int			length = strlen(phone);
	bool		plain = length >= 8 && strspn(phone, "+0123456789") == length;
	int			first = plain ? 3 : 0;
	int			last = plain ? 2 : 0;

	memset(masked + first, '*', length - first - last);
	return masked;
}

/* Add an entry */
void
audit_add(const char *role, const char *action, int32 workspace_id, const char *object, char *details)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TEXTOID, TEXTOID, INT4OID, TEXTOID, JSONBOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)] = {' ', ' ', ' ', ' ', ' '};

	plan_keep(&plan,
			  "INSERT INTO otp.audit_entries (role, action, workspace_id, object, details) VALUES ($1, $2, $3, $4, $5)",
			  lengthof(types), types);
	values[0] = CStringGetTextDatum(role);
	values[1] = CStringGetTextDatum(action);
	values[2] = Int32GetDatum(workspace_id);
	nulls[2] = workspace_id == 0 ? 'n' : ' ';
	values[3] = CStringGetTextDatum(object);
	values[4] = DirectFunctionCall1(jsonb_in, CStringGetDatum(details));
	plan_run(plan, values, nulls, NULL, false, 0);
}
