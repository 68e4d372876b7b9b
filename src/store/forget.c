/*-------------------------------------------------------------------------
 *
 * forget.c
 *	  Phones whose number was taken out of the tables.
 *
 * otp.forget_phone changes what users write: verifications and test numbers.
 * otp.phone_failures and otp.messages are the sender's, which must not wait
 * for a user's transaction: there the sender finishes what otp.forgotten_phones
 * tells it, a moment after the commit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/code.h"
#include "base/keyring.h"
#include "base/phone.h"
#include "base/ulid.h"
#include "store/failures.h"
#include "store/forget.h"
#include "store/key.h"
#include "store/plan.h"

/* Limits look back a day; a note lives a little longer, should clocks differ */
#define COUNTS_FOR USECS_PER_DAY
#define SLACK (3600 * USECS_PER_SEC)

/*
 * What was under way when a phone was forgotten has ended after so long: a
 * code lives 15 minutes at most.
 */
#define FINISH_AGAIN_AFTER (20 * 60 * USECS_PER_SEC)

/* Rows of otp.phone_failures per step */
#define WALK_ROWS 200

/*
 * Failures in a row are kept for as long after the last one, because a right
 * guess may never come. What has closed a phone is kept for good.
 */
#define IN_ROW_COUNTS_FOR (365 * USECS_PER_DAY)

/* Bytes of the hash that are shown, enough to be alone */
#define NAME_BYTES ((FORGOTTEN_LENGTH - 1) / 2)

/* Do limits have to count forgotten phones? Known until something changes */
static bool stale = true;
static TimestampTz counts_until = 0;
static int	name_key = 0;
static bool name_key_known = false;

/* Take in a change */
static void
note_relation_change(Datum arg, Oid relid)
{
	stale = true;
	name_key_known = false;
}

/* Read what is known anew, if it may have changed */
static void
refresh(TimestampTz now)
{
	static bool callback_registered = false;
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(now - COUNTS_FOR - SLACK)};
	bool		isnull;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(note_relation_change, (Datum) 0);
		callback_registered = true;
	}
	AcceptInvalidationMessages();
	if (!stale)
		return;

	/* Before the reading, so that a change during it is not missed */
	stale = false;
	counts_until = 0;
	PG_TRY();
	{
		plan_keep(&plan,
				  "SELECT f.forgotten_at FROM otp.forgotten_phones f WHERE f.counts AND f.forgotten_at > $1"
				  " ORDER BY f.forgotten_at DESC LIMIT 1",
				  lengthof(types), types);
		plan_run_latest(plan, values, NULL, 1);
	}
	PG_CATCH();
	{
		stale = true;
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (SPI_processed > 0)
		counts_until = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)) +
			COUNTS_FOR + SLACK;
}

/* Have limits look? */
bool
forget_counts(TimestampTz now)
{
	refresh(now);
	return now < counts_until;
}

/* Choose the key of names */
static int
choose_key(void)
{
	static SPIPlanPtr plan = NULL;

	if (name_key_known && keyring_has(name_key))
		return name_key;

	plan_keep(&plan, "SELECT k.key_id FROM otp.keys k ORDER BY k.first_used, k.key_id", 0, NULL);
	plan_run_latest(plan, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		name_key = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		if (keyring_has(name_key))
		{
			name_key_known = true;
			return name_key;
		}
	}
	return keyring_current();
}

/* Name a forgotten phone */
void
forget_name(int32 workspace_id, const char *phone, char name[FORGOTTEN_LENGTH + 1])
{
	static const char label[] = "forgotten";
	uint32		workspace = pg_hton32((uint32) workspace_id);
	uint8		hash[HASH_LENGTH];
	char		buffer[PHONE_SIZE];
	const char *folded = phone_fold(phone, buffer);
	HashPart	parts[] = {
		{label, sizeof(label)},
		{&workspace, sizeof(workspace)},
		{folded, strlen(folded)}
	};

	hmac_sha256(keyring_subkey(choose_key(), KEY_PHONE), KEY_LENGTH, parts, lengthof(parts), hash);
	name[0] = '#';
	for (int i = 0; i < NAME_BYTES; i++)
		snprintf(name + 1 + 2 * i, 3, "%02x", hash[i]);
}

/* ---- in the caller's transaction ---- */

/* Make a text[] of all forms of a number; of the digits alone when asked */
static Datum
forms_datum(const char *phone, bool digits)
{
	char		forms[PHONE_MAX_FORMS][PHONE_SIZE];
	int			n = phone_forms(phone, forms);
	Datum		values[PHONE_MAX_FORMS];

	for (int i = 0; i < n; i++)
		values[i] = CStringGetTextDatum(forms[i] + (digits ? 1 : 0));
	return PointerGetDatum(construct_array(values, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* Find a phone's verifications in one leaf, behind the n that are there */
static int
find_in_leaf(int leaf, Datum workspaces, Datum phones, ForgetItem **items, int n)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, TEXTARRAYOID};
	Datum		values[] = {workspaces, phones};

	/* Not the primary key, whatever the planner knows of the leaf */
	plan_run_latest(plan_keep_leaf(plans, leaf,
								   "SELECT v.workspace_id, v.id FROM otp.verifications_%02d v"
								   " WHERE v.phone = ANY ($2) AND v.workspace_id + 0 = ANY ($1) ORDER BY v.id",
								   lengthof(types), types),
					values, NULL, 0);
	if (SPI_processed == 0)
		return n;
	if (*items == NULL)
		*items = palloc(sizeof(ForgetItem) * SPI_processed);
	else
		*items = repalloc(*items, sizeof(ForgetItem) * (n + SPI_processed));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		(*items)[n].workspace_id = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull));
		(*items)[n].id = *DatumGetUUIDP(SPI_getbinval(tuple, desc, 2, &isnull));
		n++;
	}
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* Find a phone's verifications */
int
forget_find(Datum workspaces, const char *phone, ForgetItem **items)
{
	Datum		phones = forms_datum(phone, false);
	int			n = 0;

	*items = NULL;
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
		n = find_in_leaf(leaf, workspaces, phones, items, n);
	return n;
}

/* Blank a verification */
void
forget_verification(const Verification *v, const char *name)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, TEXTOID, TEXTARRAYOID};
	Datum		values[] = {Int32GetDatum(v->workspace_id), UUIDPGetDatum(&v->id), CStringGetTextDatum(name),
	forms_datum(v->phone, true)};

	/* The digits alone: people write numbers with and without the "+" */
	plan_run_latest(plan_keep_leaf(plans, v->slot,
								   "UPDATE otp.verifications_%02d v SET phone = $3,"
								   " metadata = CASE WHEN NOT EXISTS (SELECT 1 FROM pg_catalog.unnest($4) d"
								   " WHERE pg_catalog.strpos(v.metadata::text, d) > 0) THEN v.metadata END,"
								   " context = CASE WHEN NOT EXISTS (SELECT 1 FROM pg_catalog.unnest($4) d"
								   " WHERE pg_catalog.strpos(v.context, d) > 0) THEN v.context END"
								   " WHERE v.workspace_id = $1 AND v.id = $2",
								   lengthof(types), types),
					values, NULL, 0);
}

/* Delete test numbers */
int
forget_test_numbers(int32 workspace_id, const char *phone)
{
	static SPIPlanPtr find_plan = NULL;
	static SPIPlanPtr delete_plan = NULL;
	Oid			types[] = {INT4OID, TEXTARRAYOID};
	Datum		values[] = {Int32GetDatum(workspace_id), forms_datum(phone, false)};

	/*
	 * A DELETE of nothing would have all sessions read the configuration
	 * again
	 */
	plan_keep(&find_plan, "SELECT 1 FROM otp.test_numbers t WHERE t.workspace_id = $1 AND t.phone = ANY ($2)",
			  lengthof(types), types);
	plan_run_latest(find_plan, values, NULL, 1);
	if (SPI_processed == 0)
		return 0;
	plan_keep(&delete_plan, "DELETE FROM otp.test_numbers t WHERE t.workspace_id = $1 AND t.phone = ANY ($2)",
			  lengthof(types), types);
	plan_run_latest(delete_plan, values, NULL, 0);
	return (int) SPI_processed;
}

/* Count failures under the name */
int
forget_failures(int32 workspace_id, const char *phone, const char *name, TimestampTz now)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, INT4OID, INT4OID, INT8OID, TIMESTAMPTZOID};
	Datum		values[lengthof(types)];
	char		nulls[] = "       ";
	char		buffer[PHONE_SIZE];
	PhoneCount	count;
	PhoneCount	named;
	int			in_row;

	failures_read(workspace_id, phone_fold(phone, buffer), false, &count);
	phone_count_trim(&count, now);
	in_row = (int) (count.total - count.forgiven);
	if (count.failures == 0 && in_row == 0)
		return 0;

	/* The name may say so already, from the last time */
	failures_read(workspace_id, name, false, &named);
	phone_count_trim(&named, now);
	if (named.since == count.since && named.failures >= count.failures &&
		named.total >= count.total && named.forgiven >= count.forgiven)
		return 0;

	/*
	 * A row more, and the old one is left alone: a lock on it would hold up
	 * the sender, who writes there, for as long as this transaction lasts.
	 */
	plan_keep(&plan,
			  "INSERT INTO otp.phone_failures (workspace_id, phone, since, failures, in_row, forgiven, last_at)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7)",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(name);
	values[2] = TimestampTzGetDatum(count.since);
	nulls[2] = count.since != 0 ? ' ' : 'n';
	values[3] = Int32GetDatum(count.failures);
	values[4] = Int32GetDatum(in_row);
	values[5] = Int64GetDatum(count.forgiven);
	values[6] = TimestampTzGetDatum(count.last_at);
	nulls[6] = count.last_at != 0 ? ' ' : 'n';
	plan_run_latest(plan, values, nulls, 0);
	return Max(count.failures, in_row);
}

/* Note a forgotten phone */
void
forget_note(int32 workspace_id, const char *name, uint32 slots, bool counts, TimestampTz now)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, INT4OID, BOOLOID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(workspace_id), CStringGetTextDatum(name), Int32GetDatum((int32) slots),
	BoolGetDatum(counts), TimestampTzGetDatum(now)};

	plan_keep(&plan,
			  "INSERT INTO otp.forgotten_phones (workspace_id, phone, slots, counts, forgotten_at, due_at)"
			  " VALUES ($1, $2, $3, $4, $5, $5)",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 0);

	/* All sessions look under names from now on */
	if (counts)
		CacheInvalidateRelcacheByRelid(get_relname_relid("forgotten_phones", get_namespace_oid("otp", false)));
}

/* ---- in the sender ---- */

/*
 * Take the provider's message ids of a phone out of one leaf
 *
 * Meta's have the number in them, in base 64.
 */
static void
finish_messages(int leaf, Datum workspace_id, Datum name)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {workspace_id, name};

	plan_run_latest(plan_keep_leaf(plans, leaf,
								   "UPDATE otp.messages_%02d m SET message_id = NULL"
								   " WHERE m.workspace_id = $1 AND m.verification_id = ANY (ARRAY("
								   "SELECT v.id FROM otp.verifications_%02d v"
								   " WHERE v.phone = $2 AND v.workspace_id + 0 = $1 AND v.test_outcome IS NULL))"
								   " AND m.channel = 'whatsapp' AND m.message_id IS NOT NULL",
								   lengthof(types), types),
					values, NULL, 0);
}

/* Finish what was noted, one phone at a time */
bool
forget_finish(TimestampTz now, bool *found_phones)
{
	static SPIPlanPtr read_plan = NULL;
	static SPIPlanPtr put_off_plan = NULL;
	static SPIPlanPtr delete_plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[4];
	HeapTuple	tuple;
	TupleDesc	desc;
	uint32		slots;
	bool		counts;
	bool		isnull;
	TimestampTz forgotten_at;
	TimestampTz due_at;

	plan_keep(&read_plan,
			  "SELECT f.workspace_id, f.phone, f.forgotten_at, f.due_at, f.slots, f.counts"
			  " FROM otp.forgotten_phones f WHERE f.due_at <= $1 ORDER BY f.due_at LIMIT 1",
			  1, &types[2]);
	values[0] = TimestampTzGetDatum(now);
	plan_run_latest(read_plan, values, NULL, 1);
	if (SPI_processed == 0)
		return false;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	values[0] = SPI_getbinval(tuple, desc, 1, &isnull);
	values[1] = SPI_getbinval(tuple, desc, 2, &isnull);
	values[2] = SPI_getbinval(tuple, desc, 3, &isnull);
	forgotten_at = DatumGetTimestampTz(values[2]);
	due_at = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 4, &isnull));
	slots = (uint32) DatumGetInt32(SPI_getbinval(tuple, desc, 5, &isnull));
	counts = DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull));

	/* Twice: an answer that was under way may have come in since */
	if (due_at <= forgotten_at + FINISH_AGAIN_AFTER)
	{
		for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
			if (slots & (1U << leaf))
				finish_messages(leaf, values[0], values[1]);
		*found_phones = *found_phones || counts;
	}

	if (due_at < forgotten_at + FINISH_AGAIN_AFTER && now < forgotten_at + COUNTS_FOR)
		values[3] = TimestampTzGetDatum(forgotten_at + FINISH_AGAIN_AFTER);
	else if (counts && due_at < forgotten_at + COUNTS_FOR + SLACK)
		values[3] = TimestampTzGetDatum(forgotten_at + COUNTS_FOR + SLACK);
	else
	{
		plan_keep(&delete_plan,
				  "DELETE FROM otp.forgotten_phones f WHERE f.workspace_id = $1 AND f.phone = $2 AND f.forgotten_at = $3",
				  3, types);
		plan_run_latest(delete_plan, values, NULL, 0);
		return true;
	}
	plan_keep(&put_off_plan,
			  "UPDATE otp.forgotten_phones f SET due_at = $4"
			  " WHERE f.workspace_id = $1 AND f.phone = $2 AND f.forgotten_at = $3",
			  4, types);
	plan_run_latest(put_off_plan, values, NULL, 0);
	return true;
}

/* Is a name one of a phone forgotten lately? */
static bool
is_forgotten(int32 workspace_id, const char *name)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(workspace_id), CStringGetTextDatum(name)};

	plan_keep(&plan, "SELECT 1 FROM otp.forgotten_phones f WHERE f.workspace_id = $1 AND f.phone = $2",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 1);
	return SPI_processed > 0;
}

/* A row of otp.phone_failures, as the walk meets it */
typedef struct FailuresRow
{
	int32		workspace_id;
	char	   *phone;
	TimestampTz since;			/* 0: NULL */
	int64		created_xid;	/* 0: NULL, the row is not one that forgives */
	bool		in_row;			/* has failures in a row that still count */
} FailuresRow;

/* Delete a row, or give it another name */
static void
change_failures(const FailuresRow *row, const char *name)
{
	static SPIPlanPtr delete_plan = NULL;
	static SPIPlanPtr rename_plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, INT8OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(row->workspace_id), CStringGetTextDatum(row->phone),
	TimestampTzGetDatum(row->since), Int64GetDatum(row->created_xid), (Datum) 0};
	char		nulls[] = "     ";

	nulls[2] = row->since != 0 ? ' ' : 'n';
	nulls[3] = row->created_xid != 0 ? ' ' : 'n';

	/* Not waiting for an owner who is deleting by hand */
#define ROWS \
	" WHERE f.ctid = ANY (ARRAY(SELECT o.ctid FROM otp.phone_failures o" \
	" WHERE o.workspace_id = $1 AND o.phone = $2 AND o.since IS NOT DISTINCT FROM $3" \
	" AND o.created_xid IS NOT DISTINCT FROM $4 FOR UPDATE SKIP LOCKED))"
	if (name == NULL)
	{
		plan_keep(&delete_plan, "DELETE FROM otp.phone_failures f" ROWS, 4, types);
		plan_run_latest(delete_plan, values, nulls, 0);
		return;
	}
	values[4] = CStringGetTextDatum(name);
	plan_keep(&rename_plan, "UPDATE otp.phone_failures f SET phone = $5" ROWS, 5, types);
	plan_run_latest(rename_plan, values, nulls, 0);
}

/* Do what is to be done about a row */
static void
walk_row(const FailuresRow *row, bool counts, TimestampTz now)
{
	bool		is_over = row->since < now - COUNTS_FOR - SLACK;
	char		name[FORGOTTEN_LENGTH + 1];

	/* What counts under a name goes with the note of it */
	if (row->phone[0] != '+')
	{
		if (is_over && ((!row->in_row && row->created_xid == 0) || !is_forgotten(row->workspace_id, row->phone)))
			change_failures(row, NULL);
		return;
	}
	if (row->created_xid == 0 && is_over && !row->in_row)
	{
		change_failures(row, NULL);
		return;
	}
	if (counts)
	{
		forget_name(row->workspace_id, row->phone, name);
		if (is_forgotten(row->workspace_id, name))
		{
			change_failures(row, name);
			return;
		}
	}

	/*
	 * What forgives failures that are gone, and that the ledger does not have
	 * either
	 */
	if (row->created_xid != 0 && failures_merge(row->workspace_id, row->phone, NULL) && is_over)
	{
		PhoneCount	count = {0};

		(void) ledger_phone(row->workspace_id, row->phone, &count);
		if (count.total == 0)
			change_failures(row, NULL);
	}
}

/* Walk through the failures */
bool
forget_walk_failures(FailuresPosition *position, TimestampTz now)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int32GetDatum(position->workspace_id), CStringGetTextDatum(position->phone),
	Int32GetDatum(WALK_ROWS), TimestampTzGetDatum(now - IN_ROW_COUNTS_FOR)};
	bool		counts = forget_counts(now);
	SPITupleTable *table;
	int			n;

	plan_keep(&plan,
			  "SELECT f.workspace_id, f.phone, f.since, f.created_xid, f.in_row > 0 AND"
			  " (f.last_at > $4 OR f.in_row >= (SELECT w.max_failures_in_row FROM otp.workspaces w"
			  " WHERE w.workspace_id = f.workspace_id)) IS TRUE"
			  " FROM otp.phone_failures f"
			  " WHERE (f.workspace_id, f.phone) > ($1, $2) ORDER BY f.workspace_id, f.phone LIMIT $3",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 0);
	table = SPI_tuptable;
	n = (int) SPI_processed;
	for (int i = 0; i < n; i++)
	{
		HeapTuple	tuple = table->vals[i];
		TupleDesc	desc = table->tupdesc;
		FailuresRow row;
		Datum		value;
		bool		isnull;

		row.workspace_id = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull));
		row.phone = SPI_getvalue(tuple, desc, 2);
		value = SPI_getbinval(tuple, desc, 3, &isnull);
		row.since = isnull ? 0 : DatumGetTimestampTz(value);
		value = SPI_getbinval(tuple, desc, 4, &isnull);
		row.created_xid = isnull ? 0 : DatumGetInt64(value);
		row.in_row = DatumGetBool(SPI_getbinval(tuple, desc, 5, &isnull));

		position->workspace_id = row.workspace_id;
		strlcpy(position->phone, row.phone, sizeof(position->phone));
		walk_row(&row, counts, now);
	}
	return n == WALK_ROWS;
}
