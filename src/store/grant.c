/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  The rows of otp.workspace_grants, and the privileges that go with them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "store/grant.h"
#include "store/plan.h"

/* What a tenant's role may call and read; %s is the role, or its absence */
static const char *const privileges[] = {
	"USAGE ON SCHEMA otp",
	"USAGE ON TYPE otp.send_request",
	"SELECT ON otp.deliveries, otp.delivery_stats, otp.provider_errors",
	"SELECT ON otp.webhook_endpoint_list, otp.webhook_deliveries",
	"EXECUTE ON FUNCTION otp.my_workspaces(), otp.format_id(uuid), otp.parse_id(text)",
	"EXECUTE ON FUNCTION otp.create_webhook_endpoint(text, text[], text, text), otp.pause_webhook_endpoint(int),"
	" otp.resume_webhook_endpoint(int), otp.rotate_webhook_secret(int), otp.delete_webhook_endpoint(int),"
	" otp.send_test_webhook(int, text), otp.replay_webhooks(int, timestamptz, bool)",
	"EXECUTE ON FUNCTION otp.forget_phone(text, text)",
	"EXECUTE ON FUNCTION otp.rate_limit_status(text, text[], text)",
	"EXECUTE ON FUNCTION otp.list_verifications(text, text, int, text, text)",
	"SELECT ON otp.usage",
	"SELECT ON otp.guard_decisions",
	"EXECUTE ON FUNCTION otp.guard_status(text), otp.guard_unwritten()",
	"SELECT ON otp.api_key_list, otp.audit",
	"EXECUTE ON FUNCTION otp.recent_key_uses()",
	"SELECT ON otp.credit_balances, otp.credit_history",
	"EXECUTE ON FUNCTION otp.stats_rest(), otp.usage_rest(), otp.histogram_sum(int[]), otp.histogram_percentile(int[], float8)",
};

/* Change the privileges of a role */
static void
change_privileges(Oid role, bool grant)
{
	const char *name = quote_identifier(GetUserNameFromId(role, false));
	uint64		n;
	char	  **verbs;
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(role)};

	for (int i = 0; i < lengthof(privileges); i++)
		if (SPI_execute(psprintf(grant ? "GRANT %s TO %s" : "REVOKE %s FROM %s", privileges[i], name),
						false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not change privileges");

	/*
	 * It may be a schema of its own; what else is in it is not ours to take
	 * back
	 */
	if (SPI_execute_with_args("SELECT e.extnamespace::regnamespace::text FROM pg_extension e"
							  " WHERE e.extname = 'otp' AND NOT has_schema_privilege($1, e.extnamespace, 'USAGE')",
							  lengthof(types), types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not find the schema of the verbs");
	if (grant && SPI_processed > 0 &&
		SPI_execute(psprintf("GRANT USAGE ON SCHEMA %s TO %s",
							 SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1), name),
					false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not change privileges");

	/* The verbs live in whatever schema the extension was created in */
	if (SPI_execute("SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass"
					" AND d.objid = p.oid AND d.deptype = 'e' JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass"
					" AND d.refobjid = e.oid WHERE e.extname = 'otp' AND p.pronamespace = e.extnamespace",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not list the verbs");
	n = SPI_processed;
	verbs = palloc(sizeof(char *) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
		verbs[i] = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
	for (uint64 i = 0; i < n; i++)
		if (SPI_execute(psprintf(grant ? "GRANT EXECUTE ON FUNCTION %s TO %s" : "REVOKE EXECUTE ON FUNCTION %s FROM %s",
								 verbs[i], name), false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not change privileges");
}

/* Run a statement on (workspace_id, role); gives the number of rows */
static uint64
run(SPIPlanPtr *plan, const char *sql, int workspace_id, Oid role)
{
	Oid			types[] = {INT4OID, OIDOID};
	Datum		values[2];

	plan_keep(plan, sql, lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = ObjectIdGetDatum(role);
	plan_run(*plan, values, NULL, NULL, false, 0);
	return SPI_processed;
}

/* Add a grant */
void
grant_add(int workspace_id, Oid role)
{
	static SPIPlanPtr plan = NULL;

	run(&plan, "INSERT INTO otp.workspace_grants (workspace_id, role) VALUES ($1, $2::regrole) ON CONFLICT DO NOTHING",
		workspace_id, role);
	change_privileges(role, true);
}

/* Remove a grant */
void
grant_remove(int workspace_id, Oid role)
{
	static SPIPlanPtr remove_plan = NULL;
	static SPIPlanPtr others_plan = NULL;

	run(&remove_plan, "DELETE FROM otp.workspace_grants WHERE workspace_id = $1 AND role = $2::regrole",
		workspace_id, role);
	if (run(&others_plan, "SELECT 1 FROM otp.workspace_grants WHERE role = $2::regrole AND $1 IS NOT NULL",
			workspace_id, role) == 0)
		change_privileges(role, false);
}

/* Remove all grants of a workspace */
void
grant_remove_all(int workspace_id)
{
	static SPIPlanPtr list_plan = NULL;
	static SPIPlanPtr rest_plan = NULL;
	uint64		n;
	Oid		   *roles;

	n = run(&list_plan,
			"SELECT r.oid FROM otp.workspace_grants g JOIN pg_catalog.pg_roles r ON r.oid = g.role"
			" WHERE g.workspace_id = $1 AND $2 IS NOT NULL",
			workspace_id, InvalidOid);
	roles = palloc(sizeof(Oid) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;

		roles[i] = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	for (uint64 i = 0; i < n; i++)
		grant_remove(workspace_id, roles[i]);

	/* Those of roles that were dropped */
	run(&rest_plan, "DELETE FROM otp.workspace_grants WHERE workspace_id = $1 AND $2 IS NOT NULL",
		workspace_id, InvalidOid);
}
