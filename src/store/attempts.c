/*-------------------------------------------------------------------------
 *
 * attempts.c
 *	  Writing the ledger's counts back to their rows.
 *
 * A round has two halves, because an entry may go only when a committed row
 * carries its count: one transaction reads what is committed and writes what
 * is missing; the next round, which reads again, drops the entries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/ledger.h"
#include "base/owner.h"
#include "store/attempts.h"
#include "store/plan.h"

/* Entries per round: bounds the transaction */
#define ROUND_SIZE 512

/* Write back the count of one verification; true when its entry may go */
static bool
write_verification(const LedgerEntry *entry, bool creator_running, int *committed)
{
	static SPIPlanPtr read_plans[ULID_SLOTS];
	static SPIPlanPtr write_plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, INT2OID};
	Datum		values[3];
	pg_uuid_t	id;
	int			leaf;
	bool		isnull;

	memcpy(id.data, entry->key.what, UUID_LEN);
	leaf = ulid_slot(&id);
	values[0] = Int32GetDatum(entry->key.workspace_id);
	values[1] = UUIDPGetDatum(&id);
	values[2] = Int16GetDatum(entry->count);

	plan_keep_leaf(read_plans, leaf,
				   "SELECT v.attempts FROM otp.verifications_%02d v WHERE v.workspace_id = $1 AND v.id = $2",
				   2, types);
	plan_run(read_plans[leaf], values, NULL, NULL, true, 1);
	if (SPI_processed == 0)
	{
		/* Gone for good, unless its sender has yet to commit */
		*committed = INT_MAX;
		return !creator_running;
	}
	*committed = DatumGetInt16(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (*committed >= entry->count)
		return true;

	plan_keep_leaf(write_plans, leaf,
				   "UPDATE otp.verifications_%02d v SET attempts = $3, last_attempt_at = pg_catalog.clock_timestamp()"
				   " WHERE v.workspace_id = $1 AND v.id = $2 AND v.attempts < $3"
				   " AND EXISTS (SELECT 1 FROM otp.verifications_%02d l WHERE l.workspace_id = $1 AND l.id = $2"
				   " FOR NO KEY UPDATE SKIP LOCKED)",
				   3, types);
	plan_run(write_plans[leaf], values, NULL, NULL, false, 0);
	return false;
}

/* Write back the count of one phone; true when its entry may go */
static bool
write_phone(const LedgerEntry *entry, int *committed)
{
	static SPIPlanPtr read_plan = NULL;
	static SPIPlanPtr write_plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, INT4OID};
	Datum		values[4];
	char		phone[LEDGER_PHONE_LENGTH + 1] = {0};
	bool		isnull;

	memcpy(phone, entry->key.what, LEDGER_PHONE_LENGTH);
	values[0] = Int32GetDatum(entry->key.workspace_id);
	values[1] = CStringGetTextDatum(phone);
	values[2] = TimestampTzGetDatum(entry->since);
	values[3] = Int32GetDatum(entry->count);

	*committed = 0;
	plan_keep(&read_plan,
			  "SELECT f.failures FROM otp.phone_failures f"
			  " WHERE f.workspace_id = $1 AND f.phone = $2 AND f.since = $3",
			  3, types);
	plan_run(read_plan, values, NULL, NULL, true, 1);
	if (SPI_processed > 0)
		*committed = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (*committed >= entry->count)
		return true;

	plan_keep(&write_plan,
			  "INSERT INTO otp.phone_failures AS f (workspace_id, phone, since, failures) VALUES ($1, $2, $3, $4)"
			  " ON CONFLICT (workspace_id, phone) DO UPDATE SET since = excluded.since, failures = excluded.failures"
			  " WHERE f.since < excluded.since OR f.failures < excluded.failures",
			  4, types);
	plan_run(write_plan, values, NULL, NULL, false, 0);
	return false;
}

/* Write the counts back */
void
attempts_write_back(void)
{
	LedgerEntry *entries;
	bool	   *running;
	bool	   *done;
	int		   *committed;
	int			n;
	OwnerScope	owner;

	/* Allocated here and not in the transaction, which ends before they are used last */
	entries = palloc(sizeof(LedgerEntry) * ROUND_SIZE);
	n = ledger_list(MyDatabaseId, entries, ROUND_SIZE);
	if (n == 0)
	{
		pfree(entries);
		return;
	}
	running = palloc0(sizeof(bool) * n);
	done = palloc0(sizeof(bool) * n);
	committed = palloc0(sizeof(int) * n);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/*
	 * Asked before the snapshot is taken: a creator that has ended by now has
	 * its row in the snapshot, or none ever.
	 */
	for (int i = 0; i < n; i++)
		running[i] = TransactionIdIsValid(entries[i].created_xid) &&
			TransactionIdIsInProgress(entries[i].created_xid);

	PushActiveSnapshot(GetTransactionSnapshot());
	if (owner_lookup())
	{
		owner_enter(&owner);
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect did not connect");
		for (int i = 0; i < n; i++)
		{
			if (entries[i].key.kind == LEDGER_VERIFICATION)
				done[i] = write_verification(&entries[i], running[i], &committed[i]);
			else
				done[i] = write_phone(&entries[i], &committed[i]);
		}
		SPI_finish();
		owner_leave(&owner);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);

	for (int i = 0; i < n; i++)
		if (done[i])
			ledger_settle(&entries[i].key, committed[i], entries[i].since);

	pfree(entries);
	pfree(running);
	pfree(done);
	pfree(committed);
}
