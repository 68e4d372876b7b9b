/*-------------------------------------------------------------------------
 *
 * owner.c
 *	  Running as the owner of the extension, whoever calls.
 *
 * The verbs are not SECURITY DEFINER, because they must see who calls. So C
 * makes the switch, the way fmgr.c does it for SECURITY DEFINER functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/owner.h"

/* Of auto_explain, where it is loaded; since 16 */
#define PARAMETER_LOGGING "auto_explain.log_parameter_max_length"

/*
 * pg_extension has no syscache, so what was found is dropped whenever a
 * schema changes: the extension's own schema comes and goes with it.
 */
static bool looked_up = false;
static bool callback_registered = false;
static Oid	extension_owner = InvalidOid;

/*
 * The callers of the scopes that we are in, outermost first. An error leaves
 * its scopes here; that their transaction or subtransaction is over shows it.
 * Deeper ones count as the last that has room.
 */
#define CALLERS 16

static struct
{
	Oid			role;
	LocalTransactionId lxid;
	SubTransactionId subid;
}			callers[CALLERS];
static int	ncallers = 0;

/* Forget what was found */
static void
forget_owner(Datum arg, int cacheid, uint32 hashvalue)
{
	looked_up = false;
}

/* Find the extension's owner */
bool
owner_lookup(void)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key[1];
	HeapTuple	tuple;

	if (looked_up)
		return OidIsValid(extension_owner);

	if (!callback_registered)
	{
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_owner, (Datum) 0);
		callback_registered = true;
	}

	/* Set before the scan, so that a change during it is not missed */
	looked_up = true;
	extension_owner = InvalidOid;

	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("otp"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		extension_owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	return OidIsValid(extension_owner);
}

/* Give the extension's owner */
Oid
owner_id(void)
{
	if (!owner_lookup())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"otp\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION otp CASCADE.")));
	return extension_owner;
}

/* Forget scopes that an error has left */
static void
drop_dead_callers(void)
{
	while (ncallers > 0 && (callers[ncallers - 1].lxid != compat_lxid() ||
							!SubTransactionIsActive(callers[ncallers - 1].subid)))
		ncallers--;
}

/* Tell on whose behalf we are working */
Oid
owner_caller(void)
{
	Oid			user = GetUserId();

	drop_dead_callers();

	/* Somebody else's function may have been called from within a scope */
	return ncallers > 0 && user == extension_owner ? callers[ncallers - 1].role : user;
}

/* Become the owner */
void
owner_enter(OwnerScope *scope)
{
	Oid			owner = owner_id();

	GetUserIdAndSecContext(&scope->userid, &scope->sec_context);
	drop_dead_callers();
	scope->depth = ncallers;
	if (ncallers < CALLERS)
	{
		/* Within a scope the user is the owner: the caller stays who it was */
		callers[ncallers].role = ncallers > 0 && scope->userid == owner ? callers[ncallers - 1].role : scope->userid;
		callers[ncallers].lxid = compat_lxid();
		callers[ncallers].subid = GetCurrentSubTransactionId();
		ncallers++;
	}
	scope->guc_level = NewGUCNestLevel();
	SetUserIdAndSecContext(owner, scope->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);

	/* Phones are parameters of our statements, and auto_explain may log those */
	if (GetConfigOption(PARAMETER_LOGGING, true, false) != NULL)
		(void) set_config_option(PARAMETER_LOGGING, "0",
								 PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

/* Be the caller again */
void
owner_leave(const OwnerScope *scope)
{
	AtEOXact_GUC(true, scope->guc_level);
	ncallers = scope->depth;
	SetUserIdAndSecContext(scope->userid, scope->sec_context);
}

/* Ensure caller is owner */
void
owner_require(const char *function)
{
	Oid			owner = owner_id();

	/* The call may hold a secret: it stays out of the log */
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", function),
				 errhint("Only the owner of extension \"otp\" and members of that role may call it."),
				 errhidestmt(true),
				 errhidecontext(true)));
}
