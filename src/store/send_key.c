/*-------------------------------------------------------------------------
 *
 * send_key.c
 *	  What else a send can be found by: keys of the caller's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/keyring.h"
#include "base/ulid.h"
#include "store/key.h"
#include "store/plan.h"
#include "store/ring.h"
#include "store/send_key.h"

/* As with the lock on a phone: SQL's advisory locks have other numbers here */
#define SEND_KEY_LOCK_METHOD 0x4f53

/* Hash a key */
void
send_key_hash(int32 workspace_id, SendKeyKind kind, const char *key, uint8 hash[HASH_LENGTH])
{
	uint32		workspace = pg_hton32((uint32) workspace_id);
	uint8		kind_byte = (uint8) kind;
	HashPart	parts[] = {
		{&workspace, sizeof(workspace)},
		{&kind_byte, sizeof(kind_byte)},
		{key, strlen(key)}
	};

	/* The oldest key: else a rotation would let everybody send anew */
	hmac_sha256(keyring_subkey(key_oldest(), KEY_SEND_KEY), KEY_LENGTH, parts, lengthof(parts), hash);
}

/* Give the stored part of a hash */
void
send_key_id(const uint8 hash[HASH_LENGTH], pg_uuid_t *id)
{
	memcpy(id->data, hash, UUID_LEN);
}

/* Lock a key */
void
send_key_lock(const pg_uuid_t *key)
{
	LOCKTAG		tag;
	uint32		words[2];

	memcpy(words, key->data, sizeof(words));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, words[0], words[1], SEND_KEY_LOCK_METHOD);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* Insert a row */
void
send_key_insert(const Verification *v, const pg_uuid_t *key, const uint8 *arguments)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, UUIDOID, UUIDOID, INT2OID, BYTEAOID};
	Datum		values[lengthof(types)];
	char		nulls[] = "     ";
	bytea	   *bytes;

	plan_keep(&plan,
			  "INSERT INTO otp.send_keys (workspace_id, hash, verification_id, slot, arguments)"
			  " VALUES ($1, $2, $3, $4, $5)",
			  lengthof(types), types);
	values[0] = Int32GetDatum(v->workspace_id);
	values[1] = UUIDPGetDatum(key);
	values[2] = UUIDPGetDatum(&v->id);
	values[3] = Int16GetDatum(v->slot);
	if (arguments != NULL)
	{
		bytes = palloc(VARHDRSZ + HASH_LENGTH);
		SET_VARSIZE(bytes, VARHDRSZ + HASH_LENGTH);
		memcpy(VARDATA(bytes), arguments, HASH_LENGTH);
		values[4] = PointerGetDatum(bytes);
	}
	else
		nulls[4] = 'n';
	plan_run(plan, values, nulls, NULL, false, 0);
}

/* Look into one leaf for sends with a key, newest first */
static void
run_find(int leaf, int32 workspace_id, const pg_uuid_t *key, TimestampTz since, int limit)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, UUIDOID, UUIDOID};
	Datum		values[lengthof(types)];
	pg_uuid_t	lowest;

	/* "+ 0" keeps the planner off the primary key: see verification.c */
	plan_keep_leaf(plans, leaf,
				   "SELECT k.verification_id, k.arguments FROM otp.send_keys_%02d k"
				   " WHERE k.hash = $2 AND k.verification_id >= $3 AND k.workspace_id + 0 = $1"
				   " ORDER BY k.verification_id DESC",
				   lengthof(types), types);
	ulid_lowest(&lowest, since);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = UUIDPGetDatum(key);
	values[2] = UUIDPGetDatum(&lowest);
	plan_run_latest(plans[leaf], values, NULL, limit);
}

/* Order times, newest first */
static int
compare_times(const void *a, const void *b)
{
	TimestampTz x = *(const TimestampTz *) a;
	TimestampTz y = *(const TimestampTz *) b;

	return x > y ? -1 : x < y ? 1 : 0;
}

/* Give the times of sends */
int
send_key_times(int32 workspace_id, const pg_uuid_t *key, TimestampTz since, TimestampTz now,
			   int limit, TimestampTz **times)
{
	int			leaves[ULID_SLOTS];
	int			nleaves = ring_recent(since, now, leaves);
	int			n = 0;

	*times = NULL;
	for (int i = 0; i < nleaves; i++)
	{
		run_find(leaves[i], workspace_id, key, since, limit);
		if (SPI_processed == 0)
			continue;
		if (*times == NULL)
			*times = SPI_palloc(sizeof(TimestampTz) * SPI_processed);
		else
			*times = SPI_repalloc(*times, sizeof(TimestampTz) * (n + SPI_processed));
		for (uint64 row = 0; row < SPI_processed; row++)
		{
			bool		isnull;
			Datum		id = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, 1, &isnull);

			(*times)[n++] = ulid_time(DatumGetUUIDP(id));
		}
		SPI_freetuptable(SPI_tuptable);
	}
	if (n > 1)
		qsort(*times, n, sizeof(TimestampTz), compare_times);
	return Min(n, limit);
}

/* Find the newest send */
bool
send_key_find(int32 workspace_id, const pg_uuid_t *key, TimestampTz since, TimestampTz now,
			  pg_uuid_t *verification_id, uint8 arguments[HASH_LENGTH])
{
	int			leaves[ULID_SLOTS];
	int			nleaves = ring_recent(since, now, leaves);
	bool		found = false;

	for (int i = 0; i < nleaves; i++)
	{
		bool		isnull;
		pg_uuid_t  *id;
		bytea	   *bytes;

		run_find(leaves[i], workspace_id, key, since, 1);
		if (SPI_processed == 0)
			continue;
		id = DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		bytes = (bytea *) DatumGetPointer(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		if (isnull || (found && ulid_time(id) <= ulid_time(verification_id)))
			continue;
		bytes = DatumGetByteaPP(PointerGetDatum(bytes));
		if (VARSIZE_ANY_EXHDR(bytes) != HASH_LENGTH)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("a row of otp.send_keys has a hash of the wrong length")));
		memcpy(arguments, VARDATA_ANY(bytes), HASH_LENGTH);
		*verification_id = *id;
		found = true;
		SPI_freetuptable(SPI_tuptable);
	}
	return found;
}
