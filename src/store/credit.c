/*-------------------------------------------------------------------------
 *
 * credit.c
 *	  What metered workspaces have left.
 *
 * A balance lies in 64 stripes, so that senders do not queue behind one row:
 * each takes from the stripe of its process first. Whoever takes or adds
 * holds row locks until the end of its transaction, which may be long. So
 * stripes that somebody holds are passed over, and only what is held by all
 * that have anything is waited for: the holder may roll back. A send is
 * refused when one snapshot, newer than anything it has waited for, shows
 * nothing at all.
 *
 * What cannot be put into a stripe at once is a row of otp.credit_changes:
 * the sender's refunds and prices, which must not wait for anybody, and
 * top-ups that find all stripes held. The sender puts it into the stripes. A
 * send that finds nothing else takes from there itself.
 *
 * All statements run under the latest snapshot: under a transaction's own, a
 * stripe that anybody has used since would be a serialization failure.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/error.h"
#include "base/xact_wait.h"
#include "store/credit.h"
#include "store/outbox.h"
#include "store/plan.h"

/* The number stands in the statements below, too */
#define STRIPES 64

/* Stripes that hold less than this part of their share are uneven, if the share is worth it. */
#define UNEVEN_PART 4
#define UNEVEN_SHARE 16

/* A change of so much goes into one stripe, however little the others have. */
#define SMALL_CHANGE 16

/*
 * Advisory locks of SQL use 1 and 2 in this field of the lock tag. One
 * transaction at a time makes the stripes of a workspace.
 */
#define STRIPES_LOCK_METHOD 0x4352

/* Nobody is to be waited for, and yet there was nothing: look again after this long. */
#define LOOK_US 1000L

/* Give a column of the first row, an int8; NULL is 0 */
static int64
first_int8(int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/* ---- take one ---- */

/* Take a credit by a statement on (workspace_id, stripe) */
static bool
take_one(SPIPlanPtr *plan, const char *sql, int32 workspace_id)
{
	Oid			types[] = {INT4OID, INT2OID};
	Datum		values[2];

	plan_keep(plan, sql, lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int16GetDatum(compat_process_number() % STRIPES);
	plan_run_latest(*plan, values, NULL, 0);
	return SPI_processed > 0;
}

/* Take one from the stripe of this process, unless somebody holds it */
static bool
take_from_own(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;

	/*
	 * By the key, not by ctid: what is locked may be a newer version than the
	 * snapshot shows
	 */
	return take_one(&plan,
					"UPDATE otp.credits c SET amount = c.amount - 1 WHERE c.workspace_id = $1 AND c.amount > 0"
					" AND c.stripe = (SELECT s.stripe FROM otp.credits s WHERE s.workspace_id = $1 AND s.stripe = $2"
					" AND s.amount > 0 FOR NO KEY UPDATE SKIP LOCKED)",
					workspace_id);
}

/* Take one from any stripe that nobody holds; every process begins with another one */
static bool
take_from_any(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;

	return take_one(&plan,
					"UPDATE otp.credits c SET amount = c.amount - 1 WHERE c.workspace_id = $1 AND c.amount > 0"
					" AND c.stripe = (SELECT s.stripe FROM otp.credits s WHERE s.workspace_id = $1 AND s.amount > 0"
					" ORDER BY (s.stripe - $2 + 64) % 64 LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)",
					workspace_id);
}

/*
 * Wait for a transaction that holds something which may come back; false when
 * one snapshot shows that there is nothing. *since is when waiting began, 0
 * the first time.
 *
 * Not by a statement that waits for the row: it would follow one holder after
 * the other, however old its snapshot is by then, and end in a serialization
 * failure in the stricter isolation levels.
 */
static bool
wait_for_holder(int32 workspace_id, TimestampTz *since)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	TransactionId youngest = InvalidTransactionId;

	plan_keep(&plan,
			  "SELECT s.xmax FROM otp.credits s WHERE s.workspace_id = $1 AND s.amount > 0"
			  " UNION ALL SELECT c.xmax FROM otp.credit_changes c WHERE c.workspace_id = $1 AND c.amount > 0"
			  " AND (SELECT sum(d.amount) FROM otp.credit_changes d WHERE d.workspace_id = $1) > 0",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run_latest(plan, values, NULL, 0);
	if (SPI_processed == 0)
		return false;

	/*
	 * The youngest is least likely to be an idle one. Should it be, the
	 * others are looked at again before long.
	 */
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		TransactionId xmax = DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
																 1, &isnull));

		if (!TransactionIdIsNormal(xmax) || TransactionIdIsCurrentTransactionId(xmax) ||
			!TransactionIdIsInProgress(xmax))
			continue;
		if (!TransactionIdIsValid(youngest) || TransactionIdFollows(xmax, youngest))
			youngest = xmax;
	}
	SPI_freetuptable(SPI_tuptable);

	if (*since == 0)
		*since = GetCurrentTimestamp();
	if (TransactionIdIsValid(youngest))
		(void) xact_wait(youngest, *since);
	else
	{
		CHECK_FOR_INTERRUPTS();
		pg_usleep(LOOK_US);
	}
	return true;
}

/* ---- what is not in the stripes ---- */

/* Add a change */
static void
insert_change(int32 workspace_id, int64 amount)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[2];

	plan_keep(&plan, "INSERT INTO otp.credit_changes (workspace_id, amount) VALUES ($1, $2)", lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int64GetDatum(amount);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Remove changes that nobody holds; gives their sum */
static int64
take_changes(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	int64		sum = 0;

	plan_keep(&plan,
			  "DELETE FROM otp.credit_changes c WHERE c.ctid = ANY (ARRAY(SELECT d.ctid FROM otp.credit_changes d"
			  " WHERE d.workspace_id = $1 LIMIT 1000 FOR UPDATE SKIP LOCKED)) RETURNING c.amount",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run_latest(plan, values, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		sum += DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	return sum;
}

/* Sum the changes up */
static int64
sum_changes(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];

	plan_keep(&plan, "SELECT sum(c.amount)::int8 FROM otp.credit_changes c WHERE c.workspace_id = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run_latest(plan, values, NULL, 0);
	return first_int8(1);
}

/* Take one from the changes, if they are more than debts */
static bool
take_from_changes(int32 workspace_id)
{
	int64		sum;

	if (sum_changes(workspace_id) <= 0)
		return false;
	sum = take_changes(workspace_id);

	/* Somebody else may hold the rest of them, debts or not */
	if (sum != 0)
		insert_change(workspace_id, sum > 0 ? sum - 1 : sum);
	return sum > 0;
}

/* Pay for a message */
int
credit_take(const Workspace *w)
{
	TimestampTz since = 0;

	if (!w->credits_metered)
		return 0;
	while (!take_from_own(w->workspace_id) && !take_from_any(w->workspace_id) && !take_from_changes(w->workspace_id))
	{
		if (!wait_for_holder(w->workspace_id, &since))
			error_raise(OTP_INSUFFICIENT_CREDITS, "the workspace has no credits left",
						"The owner of the extension can add some by otp.add_credits.", -1, NULL);
	}
	return 1;
}

/* ---- stripes ---- */

/* Which stripes are to be held */
typedef enum Hold
{
	HOLD_ALL,
	HOLD_HALF,					/* the even ones */
	HOLD_LEAST,					/* one, with the least in it */
	HOLD_MOST
} Hold;

/* Stripes that this transaction holds */
typedef struct Held
{
	int			n;
	int16		stripes[STRIPES];
	int64		amounts[STRIPES];
	int64		sum;
} Held;

/* Hold stripes that nobody else does */
static void
hold_stripes(int32 workspace_id, Hold hold, Held *held)
{
	static SPIPlanPtr many_plan = NULL;
	static SPIPlanPtr one_plan = NULL;
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[2];

	values[0] = Int32GetDatum(workspace_id);
	if (hold == HOLD_ALL || hold == HOLD_HALF)
	{
		plan_keep(&many_plan,
				  "SELECT s.stripe, s.amount FROM otp.credits s WHERE s.workspace_id = $1 AND s.stripe % $2 = 0"
				  " ORDER BY s.stripe FOR NO KEY UPDATE SKIP LOCKED",
				  lengthof(types), types);
		values[1] = Int32GetDatum(hold == HOLD_ALL ? 1 : 2);
		plan_run_latest(many_plan, values, NULL, STRIPES);
	}
	else
	{
		plan_keep(&one_plan,
				  "SELECT s.stripe, s.amount FROM otp.credits s WHERE s.workspace_id = $1"
				  " ORDER BY s.amount * $2 LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED",
				  lengthof(types), types);
		values[1] = Int32GetDatum(hold == HOLD_LEAST ? 1 : -1);
		plan_run_latest(one_plan, values, NULL, 1);
	}
	held->n = (int) SPI_processed;
	held->sum = 0;
	for (int i = 0; i < held->n; i++)
	{
		bool		isnull;

		held->stripes[i] = DatumGetInt16(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		held->amounts[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
		held->sum += held->amounts[i];
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Have the held stripes share a sum */
static void
share_out(int32 workspace_id, const Held *held, int64 sum)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT2ARRAYOID, INT8ARRAYOID};
	Datum		stripes[STRIPES];
	Datum		amounts[STRIPES];
	Datum		values[3];
	int			n = 0;

	for (int i = 0; i < held->n; i++)
	{
		int64		amount = sum / held->n + (i < sum % held->n ? 1 : 0);

		if (amount == held->amounts[i])
			continue;
		stripes[n] = Int16GetDatum(held->stripes[i]);
		amounts[n++] = Int64GetDatum(amount);
	}
	if (n == 0)
		return;
	plan_keep(&plan,
			  "UPDATE otp.credits c SET amount = k.amount FROM unnest($2, $3) k (stripe, amount)"
			  " WHERE c.workspace_id = $1 AND c.stripe = k.stripe",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = store_array(stripes, NULL, n, INT2OID);
	values[2] = store_array(amounts, NULL, n, INT8OID);
	plan_run_latest(plan, values, NULL, 0);
	if (SPI_processed != (uint64) n)
		elog(ERROR, "%d stripes of workspace %d are gone", n - (int) SPI_processed, workspace_id);
}

/* Count the stripes */
static int
count_stripes(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];

	plan_keep(&plan, "SELECT count(*) FROM otp.credits c WHERE c.workspace_id = $1", lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run_latest(plan, values, NULL, 0);
	return (int) first_int8(1);
}

/* Make the stripes that are missing, unless somebody is just doing that; true when there were any */
static bool
make_stripes(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	LOCKTAG		tag;

	if (count_stripes(workspace_id) == STRIPES)
		return false;
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, workspace_id, 0, STRIPES_LOCK_METHOD);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	plan_keep(&plan,
			  "INSERT INTO otp.credits (workspace_id, stripe, amount) SELECT $1, g.stripe, 0"
			  " FROM generate_series(0, 63) g (stripe) ON CONFLICT DO NOTHING",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run_latest(plan, values, NULL, 0);
	return true;
}

/* Add to, or take from, the stripes that are free; a debt remains for what they do not have */
static void
add_to_stripes(int32 workspace_id, int64 amount, Hold hold)
{
	Held		held;

	/* New ones are in nobody's way */
	if (make_stripes(workspace_id))
		hold = HOLD_ALL;
	hold_stripes(workspace_id, hold, &held);
	if (held.n == 0)
	{
		if (amount != 0)
			insert_change(workspace_id, amount);
		return;
	}
	amount += held.sum + take_changes(workspace_id);
	if (amount < 0)
		insert_change(workspace_id, amount);
	share_out(workspace_id, &held, Max(amount, 0));
}

/* Note a change of the balance in the ledger */
bool
credit_enter(int32 workspace_id, int64 amount, const char *reference, const char *role, int64 *known)
{
	static SPIPlanPtr insert_plan = NULL;
	static SPIPlanPtr find_plan = NULL;
	Oid			insert_types[] = {INT4OID, INT8OID, TEXTOID, TEXTOID, TEXTOID};
	Oid			find_types[] = {INT4OID, TEXTOID};
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};

	plan_keep(&insert_plan,
			  "INSERT INTO otp.credit_ledger (workspace_id, amount, kind, reference, role) VALUES ($1, $2, $3, $4, $5)"
			  " ON CONFLICT DO NOTHING",
			  lengthof(insert_types), insert_types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int64GetDatum(amount);
	values[2] = CStringGetTextDatum(amount > 0 ? "top_up" : "correction");
	values[3] = reference != NULL ? CStringGetTextDatum(reference) : (Datum) 0;
	nulls[3] = reference == NULL ? 'n' : ' ';
	values[4] = CStringGetTextDatum(role);
	plan_run_latest(insert_plan, values, nulls, 0);
	if (SPI_processed > 0)
		return true;

	plan_keep(&find_plan, "SELECT l.amount FROM otp.credit_ledger l WHERE l.workspace_id = $1 AND l.reference = $2",
			  lengthof(find_types), find_types);
	values[1] = values[3];
	plan_run_latest(find_plan, values, NULL, 1);
	if (SPI_processed == 0)
		elog(ERROR, "an entry of the credit ledger is gone");
	*known = first_int8(1);
	return false;
}

/* Give a workspace credits */
void
credit_add(int32 workspace_id, int64 amount)
{
	/*
	 * Half of the stripes stay free: sends need not wait for the end of this
	 * transaction
	 */
	add_to_stripes(workspace_id, amount, HOLD_HALF);

	/* It may be above credits_low now */
	insert_change(workspace_id, 0);
}

/* Take credits from a workspace */
bool
credit_remove(int32 workspace_id, int64 amount)
{
	int64		changes = 0;
	TimestampTz since = 0;
	Held		held;

	for (;;)
	{
		changes += take_changes(workspace_id);
		hold_stripes(workspace_id, HOLD_ALL, &held);
		if (held.sum + changes >= amount)
			break;
		if (credit_balance(workspace_id) + changes < amount)
			return false;
		(void) wait_for_holder(workspace_id, &since);
	}
	if (held.n > 0)
		share_out(workspace_id, &held, held.sum + changes - amount);
	else if (changes != amount)
		insert_change(workspace_id, changes - amount);
	insert_change(workspace_id, 0);
	return true;
}

/* Give the balance */
int64
credit_balance(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];

	plan_keep(&plan,
			  "SELECT (coalesce((SELECT sum(c.amount) FROM otp.credits c WHERE c.workspace_id = $1), 0)"
			  " + coalesce((SELECT sum(c.amount) FROM otp.credit_changes c WHERE c.workspace_id = $1), 0))::int8",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run_latest(plan, values, NULL, 0);
	return first_int8(1);
}

/* ---- for the sender ---- */

/* Run a statement on (workspace_id[], id[], number[], credits[]) */
static void
run_notes(SPIPlanPtr *plan, const char *sql, const CreditNote *notes, int n)
{
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID, INT2ARRAYOID, INT4ARRAYOID};
	Oid			elements[] = {INT4OID, UUIDOID, INT2OID, INT4OID};
	Datum	   *columns[lengthof(types)];
	Datum		values[lengthof(types)];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(plan, sql, lengthof(types), types);
	for (int c = 0; c < lengthof(types); c++)
		columns[c] = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		columns[0][i] = Int32GetDatum(notes[i].workspace_id);
		columns[1][i] = UUIDPGetDatum(&notes[i].id);
		columns[2][i] = Int16GetDatum(notes[i].number);
		columns[3][i] = Int32GetDatum(notes[i].credits);
	}
	for (int c = 0; c < lengthof(types); c++)
		values[c] = store_array(columns[c], NULL, n, elements[c]);
	plan_run(*plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
}

/*
 * What both statements begin and end with: the ledger's index on the message
 * says what is there already, and only the rest changes the balance
 */
#define NOTES_START "WITH added AS (INSERT INTO otp.credit_ledger (workspace_id, amount, kind, verification_id, number) "
#define NOTES_FROM " FROM unnest($1, $2, $3, $4) k (workspace_id, id, number, credits)" \
	" CROSS JOIN LATERAL (SELECT * FROM otp.workspaces i WHERE i.workspace_id = k.workspace_id OFFSET 0) w "
#define NOTES_END " ON CONFLICT (verification_id, kind, number) WHERE verification_id IS NOT NULL DO NOTHING" \
	" RETURNING workspace_id, amount)" \
	" INSERT INTO otp.credit_changes (workspace_id, amount)" \
	" SELECT a.workspace_id, sum(a.amount) FROM added a GROUP BY a.workspace_id"

/* Charge fallbacks */
void
credit_charge_fallbacks(const CreditNote *notes, int n)
{
	static SPIPlanPtr plan = NULL;

	run_notes(&plan,
			  NOTES_START "SELECT w.workspace_id, -w.fallback_credits, 'fallback', k.id, k.number" NOTES_FROM
			  "WHERE w.credits_metered AND w.fallback_credits > 0" NOTES_END,
			  notes, n);
}

/* Give back what was paid */
void
credit_refund(const CreditNote *notes, int n)
{
	static SPIPlanPtr plan = NULL;

	run_notes(&plan,
			  NOTES_START "SELECT w.workspace_id, p.amount, 'refund', k.id, k.number" NOTES_FROM
			  "CROSS JOIN LATERAL (SELECT k.credits - coalesce(sum(l.amount), 0) AS amount FROM otp.credit_ledger l"
			  " WHERE l.verification_id = k.id AND l.kind = 'fallback' AND l.number = k.number) p"
			  " WHERE w.refund_failed AND p.amount > 0" NOTES_END,
			  notes, n);
}

/* Find the next workspace with changes */
bool
credit_next_changed(int32 *after)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	bool		found;

	plan_keep(&plan,
			  "SELECT c.workspace_id FROM otp.credit_changes c WHERE c.workspace_id > $1 ORDER BY c.workspace_id LIMIT 1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(*after);
	plan_run(plan, values, NULL, NULL, true, 1);
	found = SPI_processed > 0;
	if (found)
	{
		bool		isnull;

		*after = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(context);
	return found;
}

/* Find the next metered workspaces */
int
credit_next_metered(int32 after, int32 ids[CREDIT_BATCH])
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	int			n;

	StaticAssertStmt(CREDIT_BATCH == 100, "LIMIT below");
	plan_keep(&plan,
			  "SELECT w.workspace_id FROM otp.workspaces w WHERE w.workspace_id > $1 AND w.credits_metered"
			  " ORDER BY w.workspace_id LIMIT 100",
			  lengthof(types), types);
	values[0] = Int32GetDatum(after);
	plan_run(plan, values, NULL, NULL, true, 0);
	n = (int) SPI_processed;
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		ids[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(context);
	return n;
}

/* Read how a workspace stands */
bool
credit_load(int32 workspace_id, CreditState *state)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		v[8];
	bool		nulls[8];
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	int64		sum;
	int64		share;
	int64		least;
	int64		changes;
	int64		change;

	plan_keep(&plan,
			  "SELECT w.name, w.credits_metered, coalesce(w.credits_low, 0), s.sum, s.min, c.count, c.sum,"
			  " EXISTS (SELECT 1 FROM otp.credit_warnings t WHERE t.workspace_id = $1 AND t.over_at IS NULL)"
			  " FROM otp.workspaces w"
			  " CROSS JOIN LATERAL (SELECT coalesce(sum(i.amount), 0)::int8 AS sum, coalesce(min(i.amount), 0) AS min"
			  " FROM otp.credits i WHERE i.workspace_id = $1) s"
			  " CROSS JOIN LATERAL (SELECT count(*) AS count, coalesce(sum(i.amount), 0)::int8 AS sum"
			  " FROM otp.credit_changes i WHERE i.workspace_id = $1) c"
			  " WHERE w.workspace_id = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run(plan, values, NULL, NULL, false, 1);
	MemoryContextSwitchTo(context);
	if (SPI_processed == 0)
		return false;
	heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, v, nulls);
	state->workspace = store_text(v[0], nulls[0], context);
	state->metered = DatumGetBool(v[1]);
	state->low = DatumGetInt64(v[2]);
	sum = DatumGetInt64(v[3]);
	share = sum / STRIPES;
	least = DatumGetInt64(v[4]);
	changes = DatumGetInt64(v[5]);
	change = DatumGetInt64(v[6]);
	state->balance = sum + change;
	state->told = DatumGetBool(v[7]);

	/* A debt that nothing is there for is left as it is */
	if (state->metered && share >= UNEVEN_SHARE && least < share / UNEVEN_PART)
		state->chore = CREDIT_CHORE_LEVEL;
	else if (changes == 0 || (changes == 1 && change < 0 && sum == 0))
		state->chore = CREDIT_CHORE_NONE;
	else if (change >= 0 && change <= Max(share, SMALL_CHANGE))
		state->chore = CREDIT_CHORE_ADD;
	else if (change < 0 && change >= -share)
		state->chore = CREDIT_CHORE_TAKE;
	else
		state->chore = CREDIT_CHORE_LEVEL;
	SPI_freetuptable(SPI_tuptable);
	return true;
}

/* Do what is to be done with the stripes */
void
credit_do_chore(int32 workspace_id, CreditChore chore)
{
	MemoryContext context = CurrentMemoryContext;

	if (chore != CREDIT_CHORE_NONE)
		add_to_stripes(workspace_id, 0, chore == CREDIT_CHORE_ADD ? HOLD_LEAST :
					   chore == CREDIT_CHORE_TAKE ? HOLD_MOST : HOLD_ALL);
	MemoryContextSwitchTo(context);
}

/* Note that credits are low */
void
credit_warn(int32 workspace_id, TimestampTz at, int64 balance, int64 low)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID, INT8OID, INT8OID};
	Datum		values[4];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan,
			  "INSERT INTO otp.credit_warnings (workspace_id, told_at, balance, credits_low) VALUES ($1, $2, $3, $4)"
			  " ON CONFLICT DO NOTHING",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = TimestampTzGetDatum(at);
	values[2] = Int64GetDatum(balance);
	values[3] = Int64GetDatum(low);
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
}

/* Note that they are so no more */
void
credit_end_warning(int32 workspace_id, TimestampTz at)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID};
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan, "UPDATE otp.credit_warnings SET over_at = $2 WHERE workspace_id = $1 AND over_at IS NULL",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = TimestampTzGetDatum(at);
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
}

/* Forget old warnings */
void
credit_delete_warnings(TimestampTz before)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan, "DELETE FROM otp.credit_warnings WHERE over_at < $1", lengthof(types), types);
	values[0] = TimestampTzGetDatum(before);
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
}
