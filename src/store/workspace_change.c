/*-------------------------------------------------------------------------
 *
 * workspace_change.c
 *	  Making, renaming, suspending and deleting workspaces.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/ulid.h"
#include "store/grant.h"
#include "store/plan.h"
#include "store/workspace_change.h"

/* Rows that one step deletes, and leaves or tables that it looks through for some */
#define LEFTOVER_ROWS "500"
#define LEFTOVER_PROBES 32

const char *const workspace_content_names[WORKSPACE_CONTENTS] = {
	"verifications", "grants", "API keys", "webhook endpoints", "test numbers", "provider accounts of its own",
	"credits"
};

/*
 * What is deleted with a workspace, besides its verifications and grants: what
 * is configured, and nobody but users and their functions write.
 */
static const char *const own_tables[] = {
	"templates", "sms_texts", "test_numbers", "key_limits", "api_keys", "webhook_endpoints"
};

/*
 * What the sender looks through for rows that are left, behind the ring: its
 * own tables, and those from above, to which somebody may have added at the
 * same time. Not otp.outbox and otp.webhook_outbox, whose rows it drops
 * when their time comes; nor otp.credit_ledger and otp.audit_entries, which
 * are kept.
 */
static const char *const left_tables[] = {
	"phone_failures", "forgotten_phones", "stats_hours", "usage_days", "guard_log", "credits", "credit_changes",
	"credit_warnings", "api_key_uses", "workspace_grants", "templates", "sms_texts", "test_numbers", "key_limits",
	"api_keys", "webhook_endpoints"
};

/* Run a statement on a workspace; gives the number of rows */
static uint64
run(SPIPlanPtr *plan, const char *sql, int32 workspace_id)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(workspace_id)};

	plan_keep(plan, sql, lengthof(types), types);
	plan_run_latest(*plan, values, NULL, 0);
	return SPI_processed;
}

/* The same with a text, which may be NULL */
static uint64
run_with(SPIPlanPtr *plan, const char *sql, int32 workspace_id, const char *text)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(workspace_id), text != NULL ? CStringGetTextDatum(text) : (Datum) 0};
	char		nulls[] = {' ', text != NULL ? ' ' : 'n'};

	plan_keep(plan, sql, lengthof(types), types);
	plan_run_latest(*plan, values, nulls, 0);
	return SPI_processed;
}

/* ---- making and changing ---- */

/* Give the next id */
static int32
next_id(void)
{
	static SPIPlanPtr plan = NULL;
	bool		isnull;

	plan_keep(&plan, "SELECT pg_catalog.nextval('otp.workspaces_workspace_id_seq')::int4", 0, NULL);
	plan_run(plan, NULL, NULL, NULL, false, 1);
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

/* Make a workspace */
int32
workspace_create(const char *name, const char *app_name)
{
	static SPIPlanPtr insert_plan = NULL;
	static SPIPlanPtr taken_plan = NULL;
	static SPIPlanPtr template_plan = NULL;
	static SPIPlanPtr text_plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {0, CStringGetTextDatum(name), CStringGetTextDatum(app_name)};
	int32		workspace_id;

	plan_keep(&insert_plan,
			  "INSERT INTO otp.workspaces (workspace_id, name, app_name) SELECT $1, $2, $3"
			  " WHERE NOT EXISTS (SELECT 1 FROM otp.deleted_workspaces d WHERE d.workspace_id = $1) ON CONFLICT DO NOTHING",
			  lengthof(types), types);
	do
	{
		if (run_with(&taken_plan, "SELECT 1 FROM otp.workspaces w WHERE w.name = $2 AND $1 IS NOT NULL", 0, name) > 0)
			return 0;

		/* Ids that were given by hand may be ahead of the sequence */
		workspace_id = next_id();
		values[0] = Int32GetDatum(workspace_id);
		plan_run_latest(insert_plan, values, NULL, 0);
	} while (SPI_processed == 0);

	/* As CREATE EXTENSION does it for the default one */
	run(&template_plan,
		"INSERT INTO otp.templates (workspace_id, name, language) VALUES ($1, 'otp_verification', 'en_US')",
		workspace_id);
	run(&text_plan,
		"INSERT INTO otp.sms_texts (workspace_id, template, language, body) VALUES ($1, 'otp_verification', 'en_US',"
		" '{code} is your verification code. It expires in {minutes} minutes.')",
		workspace_id);
	return workspace_id;
}

/* Rename a workspace */
bool
workspace_rename(int32 workspace_id, const char *new_name)
{
	static SPIPlanPtr taken_plan = NULL;
	static SPIPlanPtr plan = NULL;

	if (run_with(&taken_plan, "SELECT 1 FROM otp.workspaces w WHERE w.name = $2 AND w.workspace_id <> $1",
				 workspace_id, new_name) > 0)
		return false;
	run_with(&plan, "UPDATE otp.workspaces SET name = $2 WHERE workspace_id = $1", workspace_id, new_name);
	return true;
}

/* Suspend a workspace */
void
workspace_suspend(int32 workspace_id, const char *reason)
{
	static SPIPlanPtr plan = NULL;

	run_with(&plan,
			 "UPDATE otp.workspaces SET suspended_at = coalesce(suspended_at, pg_catalog.clock_timestamp()),"
			 " suspended_reason = coalesce($2, suspended_reason) WHERE workspace_id = $1",
			 workspace_id, reason);
}

/* End that */
void
workspace_resume(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;

	run(&plan, "UPDATE otp.workspaces SET suspended_at = NULL, suspended_reason = NULL WHERE workspace_id = $1",
		workspace_id);
}

/* ---- deleting ---- */

/* Lock a workspace, and the accounts that are its own */
bool
workspace_lock(int32 workspace_id, const char *name)
{
	static SPIPlanPtr accounts_plan = NULL;
	static SPIPlanPtr plan = NULL;

	/* Accounts first, as those do it who configure them */
	run(&accounts_plan,
		"SELECT 1 FROM otp.provider_accounts a WHERE a.exclusive_to = $1 ORDER BY a.account_id FOR UPDATE",
		workspace_id);
	return run_with(&plan, "SELECT 1 FROM otp.workspaces w WHERE w.workspace_id = $1 AND w.name = $2 FOR UPDATE",
					workspace_id, name) > 0;
}

/* Count what a workspace has */
void
workspace_count(int32 workspace_id, WorkspaceContents *contents)
{
	static SPIPlanPtr plan = NULL;
	HeapTuple	tuple;

	/*
	 * A grant of a role that was dropped, and a key that was revoked, are
	 * none
	 */
	run(&plan,
		"SELECT (SELECT count(*) FROM otp.verifications v WHERE v.workspace_id = $1),"
		" (SELECT count(*) FROM otp.workspace_grants g JOIN pg_catalog.pg_roles r ON r.oid = g.role WHERE g.workspace_id = $1),"
		" (SELECT count(*) FROM otp.api_keys k WHERE k.workspace_id = $1 AND k.revoked_at IS NULL),"
		" (SELECT count(*) FROM otp.webhook_endpoints e WHERE e.workspace_id = $1),"
		" (SELECT count(*) FROM otp.test_numbers t WHERE t.workspace_id = $1),"
		" (SELECT count(*) FROM otp.provider_accounts a WHERE a.exclusive_to = $1),"
		" GREATEST((SELECT coalesce(sum(c.amount), 0) FROM otp.credits c WHERE c.workspace_id = $1)"
		" + (SELECT coalesce(sum(c.amount), 0) FROM otp.credit_changes c WHERE c.workspace_id = $1), 0)::int8",
		workspace_id);
	tuple = SPI_tuptable->vals[0];
	for (int i = 0; i < WORKSPACE_CONTENTS; i++)
	{
		bool		isnull;

		contents->counts[i] = DatumGetInt64(SPI_getbinval(tuple, SPI_tuptable->tupdesc, i + 1, &isnull));
	}
}

/* Never give an id again, be it one that was given by hand */
static void
use_up_id(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;

	run(&plan,
		"SELECT pg_catalog.setval('otp.workspaces_workspace_id_seq', $1) FROM otp.workspaces_workspace_id_seq s"
		" WHERE s.last_value < $1",
		workspace_id);
}

/* Delete a workspace and all it has */
void
workspace_delete(int32 workspace_id, TimestampTz now)
{
	static SPIPlanPtr table_plans[lengthof(own_tables)];
	static SPIPlanPtr leaf_plans[ULID_SLOTS];
	static SPIPlanPtr accounts_plan = NULL;
	static SPIPlanPtr note_plan = NULL;
	static SPIPlanPtr delete_plan = NULL;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(workspace_id), TimestampTzGetDatum(now)};

	use_up_id(workspace_id);
	grant_remove_all(workspace_id);
	for (int i = 0; i < lengthof(own_tables); i++)
		run(&table_plans[i], psprintf("DELETE FROM otp.%s WHERE workspace_id = $1", own_tables[i]), workspace_id);
	run(&accounts_plan, "DELETE FROM otp.provider_accounts WHERE exclusive_to = $1", workspace_id);

	/*
	 * Phones are in here. The sender reads these rows, and writes to none
	 * that somebody has locked.
	 */
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		plan_keep_leaf(leaf_plans, leaf, "DELETE FROM otp.verifications_%02d v WHERE v.workspace_id = $1", 1, types);
		plan_run_latest(leaf_plans[leaf], values, NULL, 0);
	}

	plan_keep(&note_plan,
			  "INSERT INTO otp.deleted_workspaces (workspace_id, deleted_at, due_at) VALUES ($1, $2, $2)"
			  " ON CONFLICT (workspace_id) DO UPDATE SET deleted_at = excluded.deleted_at, due_at = excluded.due_at",
			  lengthof(types), types);
	plan_run_latest(note_plan, values, NULL, 0);
	run(&delete_plan, "DELETE FROM otp.workspaces WHERE workspace_id = $1", workspace_id);
}

/* ---- what the sender deletes later ---- */

/* Find the next one that is due */
bool
leftover_next(TimestampTz now, int32 *workspace_id, TimestampTz *deleted_at)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(now)};
	bool		isnull;

	plan_keep(&plan,
			  "SELECT d.workspace_id, d.deleted_at FROM otp.deleted_workspaces d WHERE d.due_at <= $1"
			  " ORDER BY d.due_at LIMIT 1",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 1);
	if (SPI_processed == 0)
		return false;
	*workspace_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*deleted_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	return true;
}

/* Delete rows of a table that has no leaves; gives their number */
static uint64
delete_from_table(int table, int32 workspace_id)
{
	static SPIPlanPtr look_plans[lengthof(left_tables)];
	static SPIPlanPtr delete_plans[lengthof(left_tables)];
	Oid			relid = get_relname_relid(left_tables[table], get_namespace_oid("otp", false));

	if (!OidIsValid(relid) || !ConditionalLockRelationOid(relid, RowExclusiveLock))
		return 0;

	/*
	 * A DELETE of nothing would have all sessions read the configuration
	 * again
	 */
	if (run(&look_plans[table],
			psprintf("SELECT 1 FROM otp.%s l WHERE l.workspace_id = $1 LIMIT 1", left_tables[table]),
			workspace_id) == 0)
		return 0;
	return run(&delete_plans[table],
			   psprintf("DELETE FROM otp.%s d WHERE d.ctid = ANY (ARRAY(SELECT l.ctid FROM otp.%s l"
						" WHERE l.workspace_id = $1 LIMIT " LEFTOVER_ROWS " FOR UPDATE SKIP LOCKED))",
						left_tables[table], left_tables[table]),
			   workspace_id);
}

/* Delete some of what is left */
bool
leftover_delete(int32 workspace_id, LeftoverPosition *position)
{
	static SPIPlanPtr plan = NULL;

	/* Made again by hand, under the same id? Then it is not for us */
	if (run(&plan, "SELECT 1 FROM otp.workspaces w WHERE w.workspace_id = $1", workspace_id) > 0)
		return false;

	for (int i = 0; i < LEFTOVER_PROBES; i++)
	{
		if (position->table < RING_TABLES)
		{
			if (ring_delete_workspace(position->table, position->slot, workspace_id, &position->ring) == RING_MORE)
				return true;
			memset(&position->ring, 0, sizeof(position->ring));
			if (++position->slot < ULID_SLOTS)
				continue;
			position->slot = 0;
		}
		else if (position->table < RING_TABLES + lengthof(left_tables))
		{
			/*
			 * From the start again: there are few, and dead ones are passed
			 * over quickly
			 */
			if (delete_from_table(position->table - RING_TABLES, workspace_id) > 0)
				return true;
		}
		else
			return false;
		position->table++;
	}
	return true;
}

/* Look at it again, or never */
void
leftover_put_off(int32 workspace_id, TimestampTz due_at)
{
	static SPIPlanPtr put_off_plan = NULL;
	static SPIPlanPtr delete_plan = NULL;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(workspace_id), TimestampTzGetDatum(due_at)};

	if (due_at == 0)
	{
		run(&delete_plan, "DELETE FROM otp.deleted_workspaces d WHERE d.workspace_id = $1", workspace_id);
		return;
	}
	plan_keep(&put_off_plan, "UPDATE otp.deleted_workspaces d SET due_at = $2 WHERE d.workspace_id = $1",
			  lengthof(types), types);
	plan_run_latest(put_off_plan, values, NULL, 0);
}
