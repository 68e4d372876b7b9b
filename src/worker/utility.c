/*-------------------------------------------------------------------------
 *
 * utility.c
 *	  Make way for the commands that a sender would be in the way of.
 *
 * DROP DATABASE, ALTER DATABASE ... RENAME and SET TABLESPACE, and CREATE
 * DATABASE with its template, want a database that nobody is connected to;
 * DROP and ALTER EXTENSION lock our tables one after the other, which can
 * deadlock with a sender that locks them in another order. So the sender is
 * asked to leave before the command, and may come back when its transaction
 * or subtransaction has ended: until then the command holds locks that a
 * sender would only wait for. Asking is for those only who may run the command: PostgreSQL refuses
 * the others itself, a little later.
 *
 * CREATE EXTENSION tells the launcher, at its commit. A prepared transaction
 * that queued messages wakes the sender when it is committed, by whomever.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_shdepend.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/roster.h"
#include "worker/worker.h"

/* A sender needs some 300 ms at most; it could be amid a long settle. */
#define PAUSE_TIMEOUT_MS 5000

/* Databases that one transaction can pause; each command takes one. */
#define MAX_PAUSED 8

#define EXTENSION_NAME "otp"

static ProcessUtility_hook_type next_hook = NULL;

/* What the end of this transaction must do */
static struct
{
	Oid			database;
	SubTransactionId subtransaction;	/* whose end may be earlier */
}			paused[MAX_PAUSED];
static int	npaused = 0;
static Oid	dropped = InvalidOid;
static bool announce = false;

/* Let workers in again, and tell the launcher */
static void
end_of_transaction(XactEvent event, void *arg)
{
	bool		committed;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			committed = true;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			committed = false;
			break;
		default:
			return;
	}
	if (committed && OidIsValid(dropped))
		roster_forget(dropped);
	dropped = InvalidOid;
	while (npaused > 0)
		roster_resume(paused[--npaused].database);
	if (committed && announce)
		roster_announce(MyDatabaseId);
	announce = false;
}

/* Let workers in again when the command was undone */
static void
end_of_subtransaction(SubXactEvent event, SubTransactionId mine,
					  SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;

	/* The last ones are the innermost */
	for (int i = npaused - 1; i >= 0 && paused[i].subtransaction == mine; i--)
	{
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			paused[i].subtransaction = parent;
		else
			roster_resume(paused[--npaused].database);
	}
}

/* Have the sender leave until the end of the transaction */
static void
pause_database(Oid database)
{
	for (int i = 0; i < npaused; i++)
	{
		if (paused[i].database == database)
			return;
	}
	if (npaused == MAX_PAUSED)
		return;
	paused[npaused].database = database;
	paused[npaused++].subtransaction = GetCurrentSubTransactionId();

	/* If it does not go, PostgreSQL says what it thinks of that */
	(void) roster_pause(database, PAUSE_TIMEOUT_MS);
}

/* May the current user do things to a database? */
static bool
owns_database(Oid database)
{
	return compat_database_ownercheck(database, GetUserId());
}

/* May the current user create databases? */
static bool
may_create_databases(void)
{
	bool		result = false;
	HeapTuple	tuple;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* May the current user copy a database? */
static bool
may_copy(Oid database)
{
	bool		result;
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return may_create_databases() && (result || owns_database(database));
}

/* Find the database that CREATE DATABASE copies */
static Oid
template_of(CreatedbStmt *stmt)
{
	const char *name = "template1";
	ListCell   *cell;

	foreach(cell, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			name = defGetString(option);
	}
	return get_database_oid(name, true);
}

/* Does ALTER DATABASE move files? */
static bool
sets_tablespace(AlterDatabaseStmt *stmt)
{
	ListCell   *cell;

	foreach(cell, stmt->options)
	{
		if (strcmp(lfirst_node(DefElem, cell)->defname, "tablespace") == 0)
			return true;
	}
	return false;
}

/* Is an object among these? */
static bool
is_listed(List *objects, Oid class, Oid id)
{
	ListCell   *cell;

	foreach(cell, objects)
	{
		ObjectAddress *object = lfirst(cell);

		if (object->classId == class && object->objectId == id)
			return true;
	}
	return false;
}

/* List the extension and, with all, what it depends on, directly or not */
static List *
extension_and_needs(Oid extension, bool all)
{
	ObjectAddress *first = palloc(sizeof(ObjectAddress));
	List	   *found;
	ListCell   *cell;
	Relation	rel;

	ObjectAddressSet(*first, ExtensionRelationId, extension);
	found = list_make1(first);
	if (!all)
		return found;

	/* What is appended meanwhile is visited, too */
	rel = table_open(DependRelationId, AccessShareLock);
	foreach(cell, found)
	{
		ObjectAddress *object = lfirst(cell);
		ScanKeyData keys[2];
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&keys[0], Anum_pg_depend_classid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(object->classId));
		ScanKeyInit(&keys[1], Anum_pg_depend_objid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(object->objectId));
		scan = systable_beginscan(rel, DependDependerIndexId, true, NULL, 2, keys);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

			if (!is_listed(found, form->refclassid, form->refobjid))
			{
				ObjectAddress *needed = palloc(sizeof(ObjectAddress));

				ObjectAddressSet(*needed, form->refclassid, form->refobjid);
				found = lappend(found, needed);
			}
		}
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return found;
}

/* Does a role own one of these objects? */
static bool
owns_one(Oid role, List *objects)
{
	bool		owns = false;
	Relation	rel = table_open(SharedDependRelationId, AccessShareLock);
	ListCell   *cell;

	foreach(cell, objects)
	{
		ObjectAddress *object = lfirst(cell);
		ScanKeyData keys[3];
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&keys[0], Anum_pg_shdepend_dbid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(MyDatabaseId));
		ScanKeyInit(&keys[1], Anum_pg_shdepend_classid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(object->classId));
		ScanKeyInit(&keys[2], Anum_pg_shdepend_objid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(object->objectId));
		scan = systable_beginscan(rel, SharedDependDependerIndexId, true, NULL, 3, keys);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			Form_pg_shdepend form = (Form_pg_shdepend) GETSTRUCT(tuple);

			if (form->deptype == SHARED_DEPENDENCY_OWNER && form->refobjid == role)
				owns = true;
		}
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return owns;
}

/* Does DROP EXTENSION or DROP SCHEMA take the extension along? */
static bool
drop_touches_extension(DropStmt *drop, Oid extension)
{
	bool		extensions = drop->removeType == OBJECT_EXTENSION;
	List	   *objects;
	ListCell   *cell;

	if (!extensions && drop->removeType != OBJECT_SCHEMA)
		return false;
	objects = extension_and_needs(extension, drop->behavior == DROP_CASCADE);
	foreach(cell, drop->objects)
	{
		const char *name = strVal(lfirst(cell));
		Oid			object = extensions ? get_extension_oid(name, true) : get_namespace_oid(name, true);

		if (OidIsValid(object) &&
			is_listed(objects, extensions ? ExtensionRelationId : NamespaceRelationId, object) &&
			(extensions ? compat_extension_ownercheck(object, GetUserId()) :
			 compat_schema_ownercheck(object, GetUserId())))
			return true;
	}
	return false;
}

/* Does DROP OWNED take the extension along? */
static bool
drop_owned_touches_extension(DropOwnedStmt *drop, Oid extension)
{
	List	   *objects = extension_and_needs(extension, drop->behavior == DROP_CASCADE);
	ListCell   *cell;

	foreach(cell, drop->roles)
	{
		Oid			role = get_rolespec_oid(lfirst_node(RoleSpec, cell), true);

		if (OidIsValid(role) && has_privs_of_role(GetUserId(), role) && owns_one(role, objects))
			return true;
	}
	return false;
}

/*
 * Does a command drop or alter the extension, and may the current user run it?
 *
 * Others that drop something must not be taken for it: their transactions may
 * be long, and nothing would be sent meanwhile.
 */
static bool
touches_extension(Node *stmt)
{
	Oid			extension;

	if (!IsA(stmt, DropStmt) && !IsA(stmt, DropOwnedStmt) && !IsA(stmt, AlterExtensionStmt))
		return false;
	extension = get_extension_oid(EXTENSION_NAME, true);
	if (!OidIsValid(extension))
		return false;

	if (IsA(stmt, DropStmt))
		return drop_touches_extension((DropStmt *) stmt, extension);
	if (IsA(stmt, DropOwnedStmt))
		return drop_owned_touches_extension((DropOwnedStmt *) stmt, extension);
	return strcmp(((AlterExtensionStmt *) stmt)->extname, EXTENSION_NAME) == 0 &&
		compat_extension_ownercheck(extension, GetUserId());
}

/* Pause what a command needs paused */
static void
make_way(Node *stmt)
{
	Oid			database = InvalidOid;
	bool		allowed = false;

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			database = get_database_oid(((DropdbStmt *) stmt)->dbname, true);
			allowed = OidIsValid(database) && owns_database(database);
			break;
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
			{
				database = get_database_oid(((RenameStmt *) stmt)->subname, true);
				allowed = OidIsValid(database) && owns_database(database) && may_create_databases();
			}
			break;
		case T_AlterDatabaseStmt:
			if (sets_tablespace((AlterDatabaseStmt *) stmt))
			{
				database = get_database_oid(((AlterDatabaseStmt *) stmt)->dbname, true);
				allowed = OidIsValid(database) && owns_database(database);
			}
			break;
		case T_CreatedbStmt:
			database = template_of((CreatedbStmt *) stmt);
			allowed = OidIsValid(database) && may_copy(database);
			break;
		default:
			if (touches_extension(stmt))
			{
				database = MyDatabaseId;
				allowed = true;

				/* It may be gone then: the sender is to find out */
				announce = true;
			}
			break;
	}
	if (allowed)
		pause_database(database);
	if (allowed && IsA(stmt, DropdbStmt))
		dropped = database;
}

/* Watch utility commands */
static void
watch_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			  ProcessUtilityContext context, ParamListInfo params,
			  QueryEnvironment *environment, DestReceiver *dest,
			  QueryCompletion *completion)
{
	Node	   *stmt = pstmt->utilityStmt;
	bool		commits_prepared = IsA(stmt, TransactionStmt) &&
	((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED;
	bool		creates_extension = IsA(stmt, CreateExtensionStmt);

	if (IsTransactionState() && !IsA(stmt, TransactionStmt))
		make_way(stmt);

	if (next_hook != NULL)
		next_hook(pstmt, query, read_only_tree, context, params, environment, dest, completion);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, environment, dest, completion);

	/* It may have brought ours along: CASCADE */
	if (creates_extension && OidIsValid(get_extension_oid(EXTENSION_NAME, true)))
		announce = true;

	/* What was prepared may have queued messages, or created the extension */
	if (commits_prepared && IsTransactionState() &&
		OidIsValid(get_extension_oid(EXTENSION_NAME, true)))
		roster_wake(MyDatabaseId);
}

/* Install the hook */
void
utility_hook_install(void)
{
	next_hook = ProcessUtility_hook;
	ProcessUtility_hook = watch_utility;
	RegisterXactCallback(end_of_transaction, NULL);
	RegisterSubXactCallback(end_of_subtransaction, NULL);
}
