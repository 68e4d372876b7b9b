/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  otp.grant_workspace and otp.revoke_workspace: say who may act for whom.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "store/grant.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_grant_workspace);
EXPORTED_FUNCTION(otp_revoke_workspace);
EXPORTED_FUNCTION(otp_my_workspaces);

/* Take the two arguments and do it */
static void
change_grant(FunctionCallInfo fcinfo, const char *function, bool grant)
{
	VerbScope	scope;
	char	   *workspace;
	char	   *role_name;
	Oid			role;
	int			workspace_id;

	owner_require(function);
	workspace = verb_text(fcinfo, 0, "workspace", NAMEDATALEN);
	role_name = verb_text(fcinfo, 1, "role", NAMEDATALEN);
	if (workspace == NULL || role_name == NULL)
		error_invalid_argument("an argument is NULL", "Give the workspace's name and the role's name.");
	role = get_role_oid(role_name, false);

	verb_begin(&scope, function, VERB_WRITES);
	workspace_id = workspace_named(workspace)->workspace_id;
	if (grant)
		grant_add(workspace_id, role);
	else
		grant_remove(workspace_id, role);
	verb_end(&scope);
}

/* Let a role act for a workspace */
Datum
otp_grant_workspace(PG_FUNCTION_ARGS)
{
	change_grant(fcinfo, "grant_workspace", true);
	PG_RETURN_VOID();
}

/* No longer let a role act for a workspace */
Datum
otp_revoke_workspace(PG_FUNCTION_ARGS)
{
	change_grant(fcinfo, "revoke_workspace", false);
	PG_RETURN_VOID();
}

/* Give the ids of the caller's workspaces: the filter of the views */
Datum
otp_my_workspaces(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	Datum		ids;

	verb_begin(&scope, "my_workspaces", VERB_READS);
	ids = SPI_datumTransfer(workspace_granted(scope.caller, true), false, -1);
	verb_end(&scope);
	PG_RETURN_DATUM(ids);
}
