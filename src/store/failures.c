/*-------------------------------------------------------------------------
 *
 * failures.c
 *	  The rows of otp.phone_failures: wrong guesses per phone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/phone.h"
#include "store/failures.h"
#include "store/forget.h"
#include "store/outbox.h"
#include "store/plan.h"

/* What the rows of a phone say */
typedef struct PhoneRows
{
	int			n;
	bool		has_main;		/* the row that the sender writes */
	PhoneCount	main;
	PhoneCount	all;
} PhoneRows;

/* Translate the policy */
void
failures_policy(const Workspace *w, PhonePolicy *policy)
{
	memset(policy, 0, sizeof(PhonePolicy));
	if (w == NULL)
		return;
	policy->per_day = w->failures_per_phone_day;
	policy->delay = w->failure_delay;
	policy->delay_after = w->failure_delay_after;
	policy->max_in_row = w->max_failures_in_row;
}

/* Read the rows under one phone, or name, into what is known of it */
static void
read_rows(int32 workspace_id, const char *phone, PhoneRows *rows)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, INT8OID};
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	Datum		values[] = {Int32GetDatum(workspace_id), CStringGetTextDatum(phone),
	Int64GetDatum((int64) U64FromFullTransactionId(own))};

	/*
	 * Not what this transaction forgives: it may yet be rolled back. Else one
	 * right guess, rolled back each time, would be good for any number of
	 * wrong ones.
	 */
	plan_keep(&plan,
			  "SELECT f.since, f.failures, f.in_row, f.forgiven, f.last_at, f.created_xid FROM otp.phone_failures f"
			  " WHERE f.workspace_id = $1 AND f.phone = $2 AND f.created_xid IS DISTINCT FROM $3",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		PhoneCount	row;
		Datum		value;
		bool		isnull;

		value = SPI_getbinval(tuple, desc, 1, &isnull);
		row.since = store_time(value, isnull);
		row.failures = DatumGetInt32(SPI_getbinval(tuple, desc, 2, &isnull));
		row.forgiven = DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));
		row.total = row.forgiven + DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull));
		value = SPI_getbinval(tuple, desc, 5, &isnull);
		row.last_at = store_time(value, isnull);
		(void) SPI_getbinval(tuple, desc, 6, &isnull);
		if (isnull)
		{
			rows->has_main = true;
			phone_count_merge(&rows->main, &row);
		}
		phone_count_merge(&rows->all, &row);
		rows->n++;
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Read a phone's count */
void
failures_read(int32 workspace_id, const char *phone, bool names, PhoneCount *count)
{
	PhoneRows	rows;
	char		name[FORGOTTEN_LENGTH + 1];

	memset(&rows, 0, sizeof(rows));
	read_rows(workspace_id, phone, &rows);
	if (names && phone[0] == '+' && forget_counts(GetCurrentTimestamp()))
	{
		forget_name(workspace_id, phone, name);
		read_rows(workspace_id, name, &rows);
	}
	*count = rows.all;
}

/* Forgive failures */
void
failures_forgive(int32 workspace_id, const char *phone, TimestampTz since, int64 forgiven)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT8OID};
	Datum		values[] = {Int32GetDatum(workspace_id), CStringGetTextDatum(phone), TimestampTzGetDatum(since),
	Int64GetDatum(forgiven), Int64GetDatum((int64) U64FromFullTransactionId(GetTopFullTransactionId()))};
	const char *nulls = since != 0 ? "     " : "  n  ";

	/*
	 * A row more: the other one is the sender's, and a lock on it would hold
	 * up the sender for as long as this transaction lasts.
	 */
	plan_keep(&plan,
			  "INSERT INTO otp.phone_failures (workspace_id, phone, since, failures, in_row, forgiven, created_xid)"
			  " VALUES ($1, $2, $3, 0, 0, $4, $5)",
			  lengthof(types), types);
	plan_run(plan, values, nulls, NULL, false, 0);
}

/* Write the row that says all, in place of the one that is there */
static void
write_main(int32 workspace_id, const char *phone, const PhoneCount *count, bool has_main)
{
	static SPIPlanPtr update_plan = NULL;
	static SPIPlanPtr insert_plan = NULL;
	static SPIPlanPtr delete_plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, INT4OID, INT4OID, INT8OID, TIMESTAMPTZOID};
	Datum		values[lengthof(types)];
	char		nulls[] = "       ";

	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(phone);
	values[2] = TimestampTzGetDatum(count->since);
	nulls[2] = count->since != 0 ? ' ' : 'n';
	values[3] = Int32GetDatum(count->failures);
	values[4] = Int32GetDatum((int32) (count->total - count->forgiven));
	values[5] = Int64GetDatum(count->forgiven);
	values[6] = TimestampTzGetDatum(count->last_at);
	nulls[6] = count->last_at != 0 ? ' ' : 'n';

	/*
	 * Without a unique index, whose violation would show the phone; we are
	 * the only ones who write. Not waiting for an owner who is at it by hand.
	 */
	plan_keep(&update_plan,
			  "UPDATE otp.phone_failures f SET since = $3, failures = $4, in_row = $5, forgiven = $6, last_at = $7"
			  " WHERE f.ctid = ANY (ARRAY(SELECT o.ctid FROM otp.phone_failures o"
			  " WHERE o.workspace_id = $1 AND o.phone = $2 AND o.created_xid IS NULL FOR UPDATE SKIP LOCKED))",
			  lengthof(types), types);
	plan_keep(&insert_plan,
			  "INSERT INTO otp.phone_failures (workspace_id, phone, since, failures, in_row, forgiven, last_at)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7)",
			  lengthof(types), types);
	plan_run_latest(has_main ? update_plan : insert_plan, values, nulls, 0);
	if (SPI_processed == 0)
		return;

	/*
	 * By what they say, because there may be one that was not yet to be seen
	 * above
	 */
	plan_keep(&delete_plan,
			  "DELETE FROM otp.phone_failures f WHERE f.ctid = ANY (ARRAY(SELECT o.ctid FROM otp.phone_failures o"
			  " WHERE o.workspace_id = $1 AND o.phone = $2 AND o.created_xid IS NOT NULL AND o.forgiven <= $6"
			  " AND (o.since IS NULL OR o.since <= $3) FOR UPDATE SKIP LOCKED))",
			  lengthof(types), types);
	plan_run_latest(delete_plan, values, nulls, 0);
}

/* Are two counts the same? */
static bool
same_count(const PhoneCount *a, const PhoneCount *b)
{
	return a->since == b->since && a->failures == b->failures && a->total == b->total &&
		a->forgiven == b->forgiven && a->last_at == b->last_at;
}

/* Merge a phone's rows, and what the ledger says */
bool
failures_merge(int32 workspace_id, const char *phone, const PhoneCount *ledger)
{
	PhoneRows	rows;
	PhoneCount	count;

	memset(&rows, 0, sizeof(rows));
	read_rows(workspace_id, phone, &rows);
	count = rows.all;
	if (ledger != NULL)
		phone_count_merge(&count, ledger);

	/* Guesses that were given back have left nothing */
	if (!rows.has_main && (ledger == NULL || (count.failures == 0 && count.total == count.forgiven)))
		return true;
	if (rows.n == 1 && same_count(&count, &rows.main))
		return true;
	write_main(workspace_id, phone, &count, rows.has_main);
	return false;
}

/* Read the rows and the ledger */
int
failures_of(int32 workspace_id, const char *phone, TimestampTz now, PhoneCount *count)
{
	PhoneCount	rows;
	int			taken;

	/* The ledger first: what it lets go of meanwhile is in the rows by then */
	memset(count, 0, sizeof(PhoneCount));
	taken = ledger_phone(workspace_id, phone, count);
	failures_read(workspace_id, phone, true, &rows);
	phone_count_merge(count, &rows);
	phone_count_trim(count, now);
	return taken;
}

/* Tell how a phone stands */
void
phone_failures_now(const Workspace *w, const char *phone, PhoneFailures *f)
{
	char		buffer[PHONE_SIZE];
	TimestampTz now = GetCurrentTimestamp();
	PhonePolicy policy;
	PhoneCount	count;
	int			taken = failures_of(w->workspace_id, phone_fold(phone, buffer), now, &count);

	failures_policy(w, &policy);
	f->failures = count.failures;
	f->since = count.since;
	f->in_row = (int) (count.total - count.forgiven);
	f->last_at = count.last_at;
	f->free_at = phone_count_free_at(&count, taken, &policy, now);
}
