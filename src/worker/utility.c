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
 * has ended: until then the command holds locks that a sender would only wait
 * for. Asking is for those only who may run the command: PostgreSQL refuses
 * the others itself, a little later.
 *
 * CREATE EXTENSION tells the launcher, at its commit. A prepared transaction
 * that queued messages wakes the sender when it is committed, by whomever.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
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
static Oid	paused[MAX_PAUSED];
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
		roster_resume(paused[--npaused]);
	if (committed && announce)
		roster_announce(MyDatabaseId);
	announce = false;
}

/* Have the sender leave until the end of the transaction */
static void
pause_database(Oid database)
{
	for (int i = 0; i < npaused; i++)
	{
		if (paused[i] == database)
			return;
	}
	if (npaused == MAX_PAUSED)
		return;
	paused[npaused++] = database;

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

/* Could a command drop or alter the extension? */
static bool
touches_extension(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_DropStmt:
			{
				DropStmt   *drop = (DropStmt *) stmt;
				ListCell   *cell;

				/* What it needs may take it along */
				if (drop->behavior == DROP_CASCADE &&
					(drop->removeType == OBJECT_EXTENSION || drop->removeType == OBJECT_SCHEMA))
					return true;
				if (drop->removeType != OBJECT_EXTENSION)
					return false;
				foreach(cell, drop->objects)
				{
					if (strcmp(strVal(lfirst(cell)), EXTENSION_NAME) == 0)
						return true;
				}
				return false;
			}
		case T_DropOwnedStmt:
			return true;
		case T_AlterExtensionStmt:
			return strcmp(((AlterExtensionStmt *) stmt)->extname, EXTENSION_NAME) == 0;
		default:
			return false;
	}
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
				Oid			extension = get_extension_oid(EXTENSION_NAME, true);

				if (OidIsValid(extension) && compat_extension_ownercheck(extension, GetUserId()))
				{
					database = MyDatabaseId;
					allowed = true;

					/* It may be gone then: the sender is to find out */
					announce = true;
				}
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
	int			npaused_before = npaused;

	PG_TRY();
	{
		if (IsTransactionState() && !IsA(stmt, TransactionStmt))
			make_way(stmt);

		if (next_hook != NULL)
			next_hook(pstmt, query, read_only_tree, context, params, environment, dest, completion);
		else
			standard_ProcessUtility(pstmt, query, read_only_tree, context, params, environment, dest, completion);
	}
	PG_CATCH();
	{
		/* At once: somebody may catch the error, and the transaction go on */
		while (npaused > npaused_before)
			roster_resume(paused[--npaused]);
		PG_RE_THROW();
	}
	PG_END_TRY();

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
}
