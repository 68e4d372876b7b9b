/*-------------------------------------------------------------------------
 *
 * api_key.c
 *	  The functions that make, rotate, revoke and check API keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "executor/spi.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "verb/api_key.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_create_api_key);
EXPORTED_FUNCTION(otp_rotate_api_key);
EXPORTED_FUNCTION(otp_revoke_api_key);
EXPORTED_FUNCTION(otp_authenticate_api_key);
EXPORTED_FUNCTION(otp_recent_key_uses);

/* A key: "oat_" and 32 characters of 62, of which the first four are shown */
#define KEY_MARK "oat_"
#define MARK_LENGTH 4
#define RANDOM_LENGTH 32
#define SHOWN_LENGTH 4
#define API_KEY_LENGTH (MARK_LENGTH + RANDOM_LENGTH)

/* Longest name, in characters */
#define MAX_NAME 100

/* How long a key may go on beside the one that replaces it */
#define DEFAULT_OVERLAP USECS_PER_DAY
#define MAX_OVERLAP (30 * USECS_PER_DAY)

static const char characters[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#define NCHARACTERS 62

/* Make a key: API_KEY_LENGTH characters and a NUL */
static void
make_key(char *key)
{
	uint8		bytes[2 * RANDOM_LENGTH];
	int			used = sizeof(bytes);
	int			n = MARK_LENGTH;

	memcpy(key, KEY_MARK, MARK_LENGTH);
	while (n < API_KEY_LENGTH)
	{
		if (used == sizeof(bytes))
		{
			if (!pg_strong_random(bytes, sizeof(bytes)))
				ereport(ERROR,
						(errcode(ERRCODE_INTERNAL_ERROR),
						 errmsg("could not generate random bytes for an API key")));
			used = 0;
		}

		/* The last few of the 256 values would favour some characters */
		if (bytes[used] < 256 / NCHARACTERS * NCHARACTERS)
			key[n++] = characters[bytes[used] % NCHARACTERS];
		used++;
	}
	key[n] = '\0';
	explicit_bzero(bytes, sizeof(bytes));
}

/* Hash what is, or should be, a key */
static void
hash_key(const char *text, size_t length, uint8 hash[HASH_LENGTH])
{
	HashPart	part = {text, length};

	hash_sha256(&part, 1, hash);
}

/* Make a key and store it; gives id and key as the function's row */
static Datum
add_key(FunctionCallInfo fcinfo, VerbScope *scope, ApiKeyRow *row)
{
	char		key[API_KEY_LENGTH + 1];
	uint8		hash[HASH_LENGTH];
	Datum		values[2];
	bool		nulls[2] = {false, false};

	make_key(key);
	hash_key(key, API_KEY_LENGTH, hash);
	row->prefix = pnstrdup(key, MARK_LENGTH + SHOWN_LENGTH);
	row->created_by = GetUserNameFromId(scope->caller, false);
	values[0] = Int32GetDatum(api_key_insert(row, hash));
	values[1] = SPI_datumTransfer(CStringGetTextDatum(key), false, -1);
	explicit_bzero(key, sizeof(key));
	verb_end(scope);
	return verb_row(fcinfo, values, nulls);
}

/* Make a key */
Datum
otp_create_api_key(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	ApiKeyRow	row = {0};
	char	   *workspace;
	char	   *name;
	int			length;

	owner_require("create_api_key");
	workspace = verb_text(fcinfo, 0, "workspace", NAMEDATALEN);
	name = verb_text(fcinfo, 1, "name", MAX_NAME * MAX_MULTIBYTE_CHAR_LEN);
	if (workspace == NULL)
		error_invalid_argument("argument \"workspace\" is NULL", "Name the workspace that the key is for.");
	length = name == NULL ? 0 : pg_mbstrlen(name);
	if (length < 1 || length > MAX_NAME)
		error_invalid_argument("argument \"name\" is not a name",
							   "It has 1 to 100 characters, and says who or what the key is for.");
	if (!PG_ARGISNULL(2))
	{
		row.expires_at = PG_GETARG_TIMESTAMPTZ(2);
		if (row.expires_at <= GetCurrentTimestamp() || TIMESTAMP_NOT_FINITE(row.expires_at))
			error_invalid_argument("argument \"expires_at\" is not a moment in the future",
								   "NULL is a key that does not expire.");
	}

	verb_begin(&scope, "create_api_key", VERB_WRITES);
	row.workspace_id = workspace_named(workspace)->workspace_id;
	row.name = name;
	row.admin = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	PG_RETURN_DATUM(add_key(fcinfo, &scope, &row));
}

/* Find and lock the key of an argument, or raise */
static void
lock_key(FunctionCallInfo fcinfo, ApiKeyRow *row)
{
	if (PG_ARGISNULL(0))
		error_invalid_argument("argument \"key_id\" is NULL", "SELECT * FROM otp.api_key_list lists what there is.");
	if (!api_key_lock(PG_GETARG_INT32(0), row))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("API key %d does not exist", PG_GETARG_INT32(0)),
				 errhint("SELECT * FROM otp.api_key_list lists those that do.")));
}

/* Replace a key by a new one */
Datum
otp_rotate_api_key(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	ApiKeyRow	old;
	ApiKeyRow	row = {0};
	TimestampTz now;
	TimestampTz until;
	const char *hint = NULL;

	owner_require("rotate_api_key");
	verb_begin(&scope, "rotate_api_key", VERB_WRITES);
	lock_key(fcinfo, &old);

	/* After the lock, which may have taken its time */
	now = GetCurrentTimestamp();
	until = now + DEFAULT_OVERLAP;
	if (!PG_ARGISNULL(1))
		until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now),
														PG_GETARG_DATUM(1)));
	if (until < now || until - now > MAX_OVERLAP)
		error_invalid_argument("argument \"overlap\" is out of range", "It is 0 to 30 days.");

	if (old.revoked_at != 0)
		hint = "It is revoked: make a new one with otp.create_api_key.";
	else if (old.expires_at != 0 && old.expires_at <= now)
		hint = "It has expired: make a new one with otp.create_api_key.";
	else if (old.replaced_by != 0)
		hint = psprintf("It was replaced already: rotate key %d, or make a new one with otp.create_api_key.",
						old.replaced_by);
	if (hint != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("API key %d cannot be rotated", old.key_id),
				 errhint("%s", hint)));

	/* It must not outlive what it was given */
	if (old.expires_at == 0 || old.expires_at > until)
		api_key_set_expiry(&old, until);
	row.workspace_id = old.workspace_id;
	row.name = old.name;
	row.admin = old.admin;
	row.expires_at = old.expires_at;
	row.replaces = old.key_id;
	PG_RETURN_DATUM(add_key(fcinfo, &scope, &row));
}

/* Revoke a key */
Datum
otp_revoke_api_key(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	ApiKeyRow	row;

	owner_require("revoke_api_key");
	verb_begin(&scope, "revoke_api_key", VERB_WRITES);
	lock_key(fcinfo, &row);
	if (row.revoked_at == 0)
		api_key_set_revoked(&row, GetCurrentTimestamp());
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Has it the form of a key? */
static bool
is_well_formed(const char *text, size_t length)
{
	if (length != API_KEY_LENGTH || memcmp(text, KEY_MARK, MARK_LENGTH) != 0)
		return false;
	for (size_t i = MARK_LENGTH; i < length; i++)
		if (text[i] == '\0' || strchr(characters, text[i]) == NULL)
			return false;
	return true;
}

/* Tell whose a key is */
void
api_key_authenticate(const char *text, size_t length, ApiKey *key)
{
	uint8		hash[HASH_LENGTH];
	bool		well_formed = text != NULL && is_well_formed(text, length);
	bool		found;

	/*
	 * What has not the form of a key is looked for all the same: an answer
	 * that came sooner would tell what the form is
	 */
	hash_key(text, text == NULL ? 0 : Min(length, API_KEY_LENGTH), hash);
	if (!well_formed)
		hash[0] ^= 0xff;
	found = api_key_use(hash, GetCurrentTimestamp(), key) && well_formed;
	explicit_bzero(hash, sizeof(hash));
	if (!found)
		error_raise(OTP_INVALID_API_KEY, "the API key is not valid",
					"It is missing, unknown, revoked or has expired. otp.api_key_list has those that there are.", -1, NULL);
}

/* Check a key */
Datum
otp_authenticate_api_key(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	text	   *given = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	ApiKey		key;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};

	verb_begin(&scope, "authenticate_api_key", VERB_READS);
	api_key_authenticate(given == NULL ? NULL : VARDATA_ANY(given),
						 given == NULL ? 0 : VARSIZE_ANY_EXHDR(given), &key);
	verb_end(&scope);
	values[0] = CStringGetTextDatum(key.workspace);
	values[1] = Int32GetDatum(key.key_id);
	values[2] = BoolGetDatum(key.admin);
	PG_RETURN_DATUM(verb_row(fcinfo, values, nulls));
}

/* Give the uses that are in shared memory, of the caller's workspaces */
Datum
otp_recent_key_uses(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	VerbScope	scope;
	KeyUse	   *uses = palloc(sizeof(KeyUse) * KEY_USES);
	ArrayType  *granted;
	const int32 *ids;
	int			nids;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	verb_begin(&scope, "recent_key_uses", VERB_READS);
	granted = DatumGetArrayTypeP(workspace_granted(scope.caller, true));
	ids = (const int32 *) ARR_DATA_PTR(granted);
	nids = ArrayGetNItems(ARR_NDIM(granted), ARR_DIMS(granted));
	n = key_uses(uses);
	for (int i = 0; i < n; i++)
	{
		Datum		values[3];
		bool		nulls[3] = {false, false, false};
		bool		is_granted = false;

		for (int j = 0; j < nids && !is_granted; j++)
			is_granted = ids[j] == uses[i].workspace_id;
		if (!is_granted)
			continue;
		values[0] = Int32GetDatum(uses[i].workspace_id);
		values[1] = Int32GetDatum(uses[i].key_id);
		values[2] = TimestampTzGetDatum(uses[i].used_at);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	verb_end(&scope);
	return (Datum) 0;
}
