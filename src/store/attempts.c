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

#include <limits.h>

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/procarray.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/ledger.h"
#include "base/owner.h"
#include "store/attempts.h"
#include "store/plan.h"

/* Entries per round: bounds the transaction */
#define ROUND_SIZE 512

/* No new round after this long: the caller has messages to send, too */
#define WRITE_BACK_MS 100

/* How long an entry outlives its code: room for a clock that is set back a little */
#define EXPIRED_GRACE (60 * USECS_PER_SEC)

/* Write back the count of one verification; true when its entry may go */
static bool
write_verification(const LedgerEntry *entry, bool creator_running, int *committed, bool *is_used_up)
{
	static SPIPlanPtr read_plans[ULID_SLOTS];
	static SPIPlanPtr write_plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, INT2OID};
	Datum		values[3];
	pg_uuid_t	id;
	int			leaf;
	bool		isnull;

	/*
	 * No guess is right any more. Else whoever keeps rows locked, in a
	 * prepared transaction even, would keep the ledger full for everybody.
	 */
	if (entry->expires_at + EXPIRED_GRACE < GetCurrentTimestamp())
	{
		*committed = INT_MAX;
		return true;
	}

	memcpy(id.data, entry->key.what, UUID_LEN);
	leaf = ulid_slot(&id);
	values[0] = Int32GetDatum(entry->key.workspace_id);
	values[1] = UUIDPGetDatum(&id);
	values[2] = Int16GetDatum(entry->count);

	plan_keep_leaf(read_plans, leaf,
				   "SELECT v.attempts, v.attempts >= v.max_attempts AND v.verified_at IS NULL AND v.canceled_at IS NULL"
				   " FROM otp.verifications_%02d v WHERE v.workspace_id = $1 AND v.id = $2",
				   2, types);
	plan_run(read_plans[leaf], values, NULL, NULL, true, 1);
	if (SPI_processed == 0)
	{
		/* Gone for good, unless its sender has yet to commit */
		*committed = INT_MAX;
		return !creator_running;
	}
	*committed = DatumGetInt16(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*is_used_up = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
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
write_phone(const LedgerEntry *entry)
{
	char		phone[LEDGER_PHONE_LENGTH + 1] = {0};

	memcpy(phone, entry->key.what, LEDGER_PHONE_LENGTH);
	return failures_merge(entry->key.workspace_id, phone, &entry->phone);
}

/* Drop an entry that may go */
static void
settle(const LedgerEntry *entry, int committed)
{
	if (entry->key.kind == LEDGER_VERIFICATION)
		ledger_settle(&entry->key, committed);
	else if (committed == INT_MAX)
		ledger_forget(&entry->key);
	else
		ledger_settle_phone(entry);
}

/* Write some counts back; gives how many entries may go */
static int
write_round(LedgerEntry *entries, int n, void (*used_up) (const pg_uuid_t *id))
{
	bool		ended[ROUND_SIZE] = {false};
	bool		running[ROUND_SIZE];
	bool		done[ROUND_SIZE];
	int			committed[ROUND_SIZE];
	int			ndone = 0;
	OwnerScope	owner;

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
			committed[i] = 0;
			if (entries[i].key.kind == LEDGER_VERIFICATION)
				done[i] = write_verification(&entries[i], running[i], &committed[i], &ended[i]);
			else
				done[i] = write_phone(&entries[i]);
		}
		SPI_finish();
		owner_leave(&owner);
	}
	else
	{
		/* The extension was dropped, and all rows with it */
		for (int i = 0; i < n; i++)
		{
			committed[i] = INT_MAX;
			done[i] = !running[i];
		}
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);

	for (int i = 0; i < n; i++)
	{
		if (!done[i])
			continue;
		settle(&entries[i], committed[i]);
		ndone++;
		if (ended[i] && used_up != NULL)
		{
			pg_uuid_t	id;

			memcpy(id.data, entries[i].key.what, UUID_LEN);
			used_up(&id);
		}
	}
	return ndone;
}

/* Write the counts back */
bool
attempts_write_back(void (*used_up) (const pg_uuid_t *id))
{
	static LedgerEntry entries[ROUND_SIZE];

	/*
	 * Where the next round begins: entries whose rows somebody keeps locked
	 * must not hold up those behind them.
	 */
	static int	skip = 0;
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WRITE_BACK_MS);
	bool		found = skip > 0;
	int			n;

	do
	{
		n = ledger_list(MyDatabaseId, entries, ROUND_SIZE, skip);
		if (n > 0)
		{
			found = true;
			skip += n - write_round(entries, n, used_up);
		}
	} while (n == ROUND_SIZE && GetCurrentTimestamp() < until);
	if (n < ROUND_SIZE)
		skip = 0;
	return found;
}
