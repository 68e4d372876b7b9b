/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  The same key and arguments, the same answer.
 *
 * Who did not hear the answer asks again. The key is locked until the first
 * transaction has ended: only then is it known whether there is an answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/timestamp.h"

#include "store/send_key.h"
#include "verb/send.h"

/* Find an earlier answer */
bool
idempotency_find(SendRequest *r)
{
	Verification *v = &r->v;
	Verification earlier;
	Datum		workspace = Int32GetDatum(r->w->workspace_id);
	uint8		hash[HASH_LENGTH];
	uint8		arguments[HASH_LENGTH];
	pg_uuid_t	id;
	TimestampTz now;

	send_key_hash(r->w->workspace_id, SEND_KEY_IDEMPOTENCY, r->idempotency_key, hash);
	send_key_id(hash, &r->key_id);
	send_key_hash(r->w->workspace_id, SEND_KEY_ARGUMENTS, r->asked, r->arguments);
	send_key_lock(&r->key_id);

	/* A key that was sent with a day ago is a new one */
	now = GetCurrentTimestamp();
	if (!send_key_find(r->w->workspace_id, &r->key_id, now - LIMITS_DAY, now, &id, arguments))
		return false;
	if (memcmp(arguments, r->arguments, HASH_LENGTH) != 0)
		error_raise(OTP_IDEMPOTENCY_KEY_REUSED, "the idempotency key was used with other arguments",
					"Use a new key for a new request; a key is kept for 24 hours.", -1, NULL);

	/* Should the row be gone, nobody can verify it: it is sent anew */
	workspace = PointerGetDatum(construct_array(&workspace, 1, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	if (!verification_find(workspace, &id, true, &earlier))
		return false;

	/* The phone is the one asked for: in the row it may have been forgotten */
	earlier.phone = v->phone;
	r->expires_in = (int) ((earlier.expires_at - earlier.created_at) / USECS_PER_SEC);
	*v = earlier;
	return true;
}

/* Note a key */
void
idempotency_note(const SendRequest *r)
{
	send_key_insert(&r->v, &r->key_id, r->arguments);
}
