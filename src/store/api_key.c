/*-------------------------------------------------------------------------
 *
 * api_key.c
 *	  The rows of otp.api_keys, and when they were last used.
 *
 * A key is known by its SHA-256 alone. It is random enough, some 190 bits, to
 * need neither salt nor stretching; and what an index tells by its timing is
 * about hashes, which nobody can choose the beginning of.
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
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "store/api_key.h"
#include "store/outbox.h"
#include "store/plan.h"

/* Keys that a session keeps; with more, it starts anew */
#define CACHE_SIZE 1024

/* A session notes the uses of a key once in this time */
#define NOTE_EVERY USECS_PER_SEC

typedef struct CachedKey
{
	uint8		hash[HASH_LENGTH];
	ApiKey		key;
	TimestampTz expires_at;		/* 0: never */
	TimestampTz noted_at;
} CachedKey;

static HTAB *cache = NULL;
static bool cache_stale = true;

/* Give a time as a parameter */
static Datum
time_or_null(TimestampTz value, char *null)
{
	*null = value == 0 ? 'n' : ' ';
	return TimestampTzGetDatum(value);
}

/* Give bytes as a parameter */
static Datum
hash_datum(const uint8 hash[HASH_LENGTH])
{
	bytea	   *result = palloc(VARHDRSZ + HASH_LENGTH);

	SET_VARSIZE(result, VARHDRSZ + HASH_LENGTH);
	memcpy(VARDATA(result), hash, HASH_LENGTH);
	return PointerGetDatum(result);
}

/* Add a key */
int32
api_key_insert(const ApiKeyRow *row, const uint8 hash[HASH_LENGTH])
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, BYTEAOID, BOOLOID, TEXTOID, TIMESTAMPTZOID, INT4OID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	bool		isnull;

	plan_keep(&plan,
			  "INSERT INTO otp.api_keys (workspace_id, name, prefix, hash, admin, created_by, expires_at, replaces)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING key_id",
			  lengthof(types), types);
	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(row->workspace_id);
	values[1] = CStringGetTextDatum(row->name);
	values[2] = CStringGetTextDatum(row->prefix);
	values[3] = hash_datum(hash);
	values[4] = BoolGetDatum(row->admin);
	values[5] = CStringGetTextDatum(row->created_by);
	values[6] = time_or_null(row->expires_at, &nulls[6]);
	values[7] = Int32GetDatum(row->replaces);
	nulls[7] = row->replaces == 0 ? 'n' : ' ';
	plan_run(plan, values, nulls, NULL, false, 0);
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

/* Read and lock a key */
bool
api_key_lock(int32 key_id, ApiKeyRow *row)
{
	static SPIPlanPtr lock_plan = NULL;
	static SPIPlanPtr next_plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(key_id)};
	Datum		columns[6];
	bool		nulls[6];

	plan_keep(&lock_plan,
			  "SELECT k.workspace_id, k.name, k.created_by, k.admin, k.expires_at, k.revoked_at"
			  " FROM otp.api_keys k WHERE k.key_id = $1 FOR UPDATE",
			  lengthof(types), types);
	plan_run_latest(lock_plan, values, NULL, 1);
	if (SPI_processed == 0)
		return false;
	for (int i = 0; i < lengthof(columns); i++)
		columns[i] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1, &nulls[i]);
	memset(row, 0, sizeof(*row));
	row->key_id = key_id;
	row->workspace_id = DatumGetInt32(columns[0]);
	row->name = TextDatumGetCString(columns[1]);
	row->created_by = TextDatumGetCString(columns[2]);
	row->admin = DatumGetBool(columns[3]);
	row->expires_at = store_time(columns[4], nulls[4]);
	row->revoked_at = store_time(columns[5], nulls[5]);

	/* Only now: with the lock, nobody else is replacing it */
	plan_keep(&next_plan, "SELECT k.key_id FROM otp.api_keys k WHERE k.replaces = $1", lengthof(types), types);
	plan_run_latest(next_plan, values, NULL, 1);
	if (SPI_processed > 0)
		row->replaced_by = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &nulls[0]));
	return true;
}

/* Run a statement that sets a time of a row */
static void
set_time(SPIPlanPtr *plan, const char *sql, const ApiKeyRow *row, TimestampTz at)
{
	Oid			types[] = {INT4OID, INT4OID, TIMESTAMPTZOID};
	Datum		values[3];

	plan_keep(plan, sql, lengthof(types), types);
	values[0] = Int32GetDatum(row->workspace_id);
	values[1] = Int32GetDatum(row->key_id);
	values[2] = TimestampTzGetDatum(at);
	plan_run_latest(*plan, values, NULL, 0);
}

/* Let a key end */
void
api_key_set_expiry(const ApiKeyRow *row, TimestampTz expires_at)
{
	static SPIPlanPtr plan = NULL;

	set_time(&plan, "UPDATE otp.api_keys SET expires_at = $3 WHERE workspace_id = $1 AND key_id = $2", row, expires_at);
}

/* Revoke a key */
void
api_key_set_revoked(const ApiKeyRow *row, TimestampTz now)
{
	static SPIPlanPtr plan = NULL;

	set_time(&plan, "UPDATE otp.api_keys SET revoked_at = $3 WHERE workspace_id = $1 AND key_id = $2", row, now);
}

/* ---- whose is it? ---- */

/* Take in a change of the configuration; any relation will do, see workspace.c */
static void
note_relation_change(Datum arg, Oid relid)
{
	cache_stale = true;
}

/* Start from nothing after a change, or when there is too much */
static void
refresh_cache(void)
{
	static bool callback_registered = false;
	HASHCTL		info;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(note_relation_change, (Datum) 0);
		callback_registered = true;
	}

	/*
	 * Not every statement of a transaction takes in what others have
	 * committed
	 */
	AcceptInvalidationMessages();
	if (!cache_stale && cache != NULL && hash_get_num_entries(cache) < CACHE_SIZE)
		return;

	if (cache != NULL)
	{
		hash_destroy(cache);
		cache = NULL;
	}
	memset(&info, 0, sizeof(info));
	info.keysize = HASH_LENGTH;
	info.entrysize = sizeof(CachedKey);
	cache = hash_create("otp API keys", 64, &info, HASH_ELEM | HASH_BLOBS);

	/* Before the reading, so that a change during it is not missed */
	cache_stale = false;
}

/* Read a key that is neither revoked nor over; false when there is none */
static bool
load(const uint8 hash[HASH_LENGTH], TimestampTz now, CachedKey *loaded)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {BYTEAOID, TIMESTAMPTZOID};
	Datum		values[2] = {hash_datum(hash), TimestampTzGetDatum(now)};
	Datum		columns[5];
	bool		nulls[5];
	char	   *name;

	plan_keep(&plan,
			  "SELECT k.workspace_id, k.key_id, k.admin, k.expires_at, w.name"
			  " FROM otp.api_keys k JOIN otp.workspaces w ON w.workspace_id = k.workspace_id"
			  " WHERE k.hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 1);
	if (SPI_processed == 0)
		return false;
	for (int i = 0; i < lengthof(columns); i++)
		columns[i] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1, &nulls[i]);
	memset(loaded, 0, sizeof(*loaded));
	memcpy(loaded->hash, hash, HASH_LENGTH);
	loaded->key.workspace_id = DatumGetInt32(columns[0]);
	loaded->key.key_id = DatumGetInt32(columns[1]);
	loaded->key.admin = DatumGetBool(columns[2]);
	loaded->expires_at = store_time(columns[3], nulls[3]);
	name = TextDatumGetCString(columns[4]);
	strlcpy(loaded->key.workspace, name, sizeof(loaded->key.workspace));
	loaded->noted_at = PG_INT64_MIN;
	return true;
}

/* Find a key, and note its use */
bool
api_key_use(const uint8 hash[HASH_LENGTH], TimestampTz now, ApiKey *key)
{
	CachedKey  *cached;
	CachedKey	loaded;

	refresh_cache();
	cached = hash_search(cache, hash, HASH_FIND, NULL);
	if (cached != NULL && cached->expires_at != 0 && cached->expires_at <= now)
	{
		/* Looked for like any other that is none */
		(void) hash_search(cache, hash, HASH_REMOVE, NULL);
		cached = NULL;
	}
	if (cached == NULL)
	{
		if (!load(hash, now, &loaded))
			return false;
		cached = hash_search(cache, hash, HASH_ENTER, NULL);
		*cached = loaded;
	}

	*key = cached->key;
	if (cached->noted_at <= now - NOTE_EVERY || cached->noted_at > now)
	{
		key_use_note(key->workspace_id, key->key_id, now);
		cached->noted_at = now;
	}
	return true;
}

/* ---- when was it used? ---- */

/* Note which uses the last statement has written: its rows have the key's id */
static void
note_written(const KeyUse *uses, bool *written, int n)
{
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		bool		isnull;
		int32		key_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, 1, &isnull));

		for (int i = 0; i < n; i++)
			if (uses[i].key_id == key_id)
				written[i] = true;
	}
}

/* Lock a table, if that needs no waiting: codes would wait as well */
static bool
lock_table(const char *name, LOCKMODE mode)
{
	Oid			relid = get_relname_relid(name, get_namespace_oid("otp", false));

	return OidIsValid(relid) && ConditionalLockRelationOid(relid, mode);
}

/* Write uses down */
bool
api_key_write_uses(const KeyUse *uses, bool *written, int n)
{
	static SPIPlanPtr update_plan = NULL;
	static SPIPlanPtr insert_plan = NULL;
	Oid			types[] = {INT4ARRAYOID, INT4ARRAYOID, TIMESTAMPTZARRAYOID};
	Datum		columns[3][KEY_USES_BATCH];
	Datum		values[3];

	memset(written, 0, sizeof(bool) * n);
	if (!lock_table("api_key_uses", RowExclusiveLock) || !lock_table("api_keys", AccessShareLock))
		return false;

	for (int i = 0; i < n; i++)
	{
		columns[0][i] = Int32GetDatum(uses[i].workspace_id);
		columns[1][i] = Int32GetDatum(uses[i].key_id);
		columns[2][i] = TimestampTzGetDatum(uses[i].used_at);
	}
	values[0] = store_array(columns[0], NULL, n, INT4OID);
	values[1] = store_array(columns[1], NULL, n, INT4OID);
	values[2] = store_array(columns[2], NULL, n, TIMESTAMPTZOID);

	plan_keep(&update_plan,
			  "UPDATE otp.api_key_uses u SET last_used_at = GREATEST(u.last_used_at, k.at)"
			  " FROM unnest($1, $2, $3) k (workspace_id, key_id, at)"
			  " WHERE u.workspace_id = k.workspace_id AND u.key_id = k.key_id"
			  " AND EXISTS (SELECT 1 FROM otp.api_key_uses l WHERE l.workspace_id = k.workspace_id AND l.key_id = k.key_id"
			  " FOR NO KEY UPDATE SKIP LOCKED) RETURNING u.key_id",
			  lengthof(types), types);
	plan_run(update_plan, values, NULL, NULL, false, 0);
	note_written(uses, written, n);
	if (SPI_processed == (uint64) n)
		return true;

	plan_keep(&insert_plan,
			  "INSERT INTO otp.api_key_uses (workspace_id, key_id, last_used_at)"
			  " SELECT k.workspace_id, k.key_id, k.at FROM unnest($1, $2, $3) k (workspace_id, key_id, at)"
			  " JOIN otp.api_keys a ON a.workspace_id = k.workspace_id AND a.key_id = k.key_id"
			  " WHERE NOT EXISTS (SELECT 1 FROM otp.api_key_uses u"
			  " WHERE u.workspace_id = k.workspace_id AND u.key_id = k.key_id)"
			  " ON CONFLICT DO NOTHING RETURNING key_id",
			  lengthof(types), types);
	plan_run(insert_plan, values, NULL, NULL, false, 0);
	note_written(uses, written, n);
	return true;
}
