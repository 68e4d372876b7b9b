/*-------------------------------------------------------------------------
 *
 * forget.c
 *	  otp.forget_phone: take a number out of the tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/phone.h"
#include "store/forget.h"
#include "store/key.h"
#include "store/queue.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_forget_phone);

/*
 * A lock for each workspace: so many at most, because the lock table is the
 * server's. Beyond, only where the phone is known.
 */
#define MAX_LOCKS 256

/* What was done */
typedef struct Forgotten
{
	int			verifications;
	int			canceled;
	int			test_numbers;
	int			failures;
} Forgotten;

/* Forget one verification; gives false when it has gone */
static bool
forget_one(Datum workspaces, const ForgetItem *item, const char *phone, const char *name, Forgotten *done)
{
	Verification v;
	TimestampTz now;
	char		buffer[PHONE_SIZE];
	char		asked[PHONE_SIZE];

	/* Waits for whoever is verifying it, as any UPDATE would */
	if (!verification_lock(workspaces, &item->id, &v) ||
		strcmp(phone_fold(v.phone, buffer), phone_fold(phone, asked)) != 0)
		return false;

	/* Its code must not go out any more, nor be right */
	now = GetCurrentTimestamp();
	if (verb_end_of_life(&v, verb_attempts(&v), now) == OTP_OK)
	{
		verification_set_canceled(&v, now);
		done->canceled++;
	}

	/* The sender may hold a message even when no attempt is left */
	if (v.verified_at == 0 && v.canceled_at == 0 && v.expires_at > now && v.test_outcome == NULL)
	{
		queue_row(OUTBOX_CANCELED, &v.id, v.workspace_id, v.slot, OUTBOX_NUMBER_CANCELED, v.expires_at, NULL);
		wake_at_commit();
	}
	forget_verification(&v, name);
	done->verifications++;
	return true;
}

/* Forget a phone in one workspace; items are all its verifications */
static void
forget_in_workspace(Datum workspaces, int32 workspace_id, const char *phone,
					const ForgetItem *items, int n, Forgotten *done)
{
	TimestampTz now = GetCurrentTimestamp();
	char		name[FORGOTTEN_LENGTH + 1];
	uint32		slots = 0;
	bool		counts = false;
	int			failures;

	forget_name(workspace_id, phone, name);
	for (int i = 0; i < n; i++)
	{
		if (items[i].workspace_id != workspace_id ||
			!forget_one(workspaces, &items[i], phone, name, done))
			continue;
		slots |= 1U << ulid_slot(&items[i].id);
		if (ulid_time(&items[i].id) > now - USECS_PER_DAY)
			counts = true;
	}
	done->test_numbers += forget_test_numbers(workspace_id, phone);
	failures = forget_failures(workspace_id, phone, name, now);
	done->failures += failures;
	if (slots != 0 || failures > 0)
		forget_note(workspace_id, name, slots, counts || failures > 0, now);
}

/* Is a workspace among those of the items? */
static bool
has_items(int32 workspace_id, const ForgetItem *items, int n)
{
	for (int i = 0; i < n; i++)
		if (items[i].workspace_id == workspace_id)
			return true;
	return false;
}

/* Forget a phone */
Datum
otp_forget_phone(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *phone = verb_phone(fcinfo, 0);
	char	   *workspace = verb_text(fcinfo, 1, "workspace", NAMEDATALEN);
	Forgotten	done = {0};
	Datum		workspaces;
	const int32 *ids;
	int			nids;
	ForgetItem *items = NULL;
	int			n = 0;
	Datum		values[4];
	bool		nulls[4] = {false};

	verb_begin(&scope, "otp.forget_phone()", VERB_WRITES);

	/* A copy: the cache may be made anew while we wait for a lock */
	if (workspace != NULL)
	{
		Datum		id = Int32GetDatum(workspace_acting(scope.caller, workspace)->workspace_id);

		workspaces = PointerGetDatum(construct_array(&id, 1, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	}
	else
		workspaces = PointerGetDatum(DatumGetArrayTypePCopy(workspace_granted(scope.caller, false)));
	ids = (const int32 *) ARR_DATA_PTR(DatumGetArrayTypeP(workspaces));
	nids = ArrayGetNItems(ARR_NDIM(DatumGetArrayTypeP(workspaces)), ARR_DIMS(DatumGetArrayTypeP(workspaces)));
	(void) key_for_writing();

	/*
	 * The phone before its rows, as in a transaction that sends and then
	 * verifies
	 */
	if (nids > MAX_LOCKS)
		n = forget_find(workspaces, phone, &items);
	for (int i = 0; i < nids; i++)
		if (nids <= MAX_LOCKS || has_items(ids[i], items, n))
			verification_lock_phone(ids[i], phone);

	/* Whoever held it has committed rows since */
	n = forget_find(workspaces, phone, &items);
	for (int i = 0; i < nids; i++)
		forget_in_workspace(workspaces, ids[i], phone, items, n, &done);
	verb_end(&scope);

	values[0] = Int32GetDatum(done.verifications);
	values[1] = Int32GetDatum(done.canceled);
	values[2] = Int32GetDatum(done.test_numbers);
	values[3] = Int32GetDatum(done.failures);
	return verb_row(fcinfo, values, nulls);
}
