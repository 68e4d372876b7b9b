/*-------------------------------------------------------------------------
 *
 * limit_keys.c
 *	  Limits by keys of the caller's own.
 *
 * A key is such as "ip:203.0.113.7"; how often it may be sent for, the row of
 * its prefix in otp.key_limits says. As with phones, the sends are counted
 * under a lock and the latest snapshot, here by keyed hashes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "store/send_key.h"
#include "verb/send.h"
#include "verb/verb.h"

/* So many say all there is to say of a caller */
#define MAX_KEYS 8

/* An IPv6 address, a fingerprint, a session's id: all fit */
#define MAX_KEY 256

/* As otp.key_limits checks it */
#define MAX_PREFIX 32

typedef struct Key
{
	char	   *text;			/* "prefix:value" */
	char	   *prefix;
	const KeyLimit *limit;		/* NULL: nothing is counted */
	pg_uuid_t	id;
} Key;

struct LimitKeys
{
	Datum		given;
	int			count;
	Key			keys[MAX_KEYS];
};

/* Take the prefix of a key; NULL when it has none */
static char *
take_prefix(const char *text)
{
	const char *colon = strchr(text, ':');
	size_t		length = colon != NULL ? colon - text : 0;

	if (length == 0 || length > MAX_PREFIX || colon[1] == '\0' || text[0] < 'a' || text[0] > 'z' ||
		strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_") != length)
		return NULL;
	return pnstrdup(text, length);
}

/* Take the argument apart */
LimitKeys *
limit_keys_parse(ArrayType *array)
{
	const char *hint = "It is an array such as ARRAY['ip:203.0.113.7', 'device:4711']: a prefix of letters, a colon, a value.";
	LimitKeys  *keys;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(array) > 1)
		error_invalid_argument("argument \"limit_keys\" has more than one dimension", hint);
	n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	if (n == 0)
		return NULL;
	if (n > MAX_KEYS)
		error_invalid_argument("argument \"limit_keys\" has too many keys",
							   psprintf("It may have up to %d.", MAX_KEYS));

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &n);
	keys = palloc0(sizeof(LimitKeys));
	keys->given = PointerGetDatum(array);
	for (int i = 0; i < n; i++)
	{
		Key		   *key = &keys->keys[keys->count];
		bool		again = false;

		if (nulls[i])
			error_invalid_argument("argument \"limit_keys\" has a NULL in it", hint);
		if (VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) > MAX_KEY)
			error_invalid_argument("a key of \"limit_keys\" is too long",
								   psprintf("It may have up to %d bytes.", MAX_KEY));
		key->text = TextDatumGetCString(elements[i]);
		key->prefix = take_prefix(key->text);
		if (key->prefix == NULL)
			error_invalid_argument("a key of \"limit_keys\" is not a prefix, a colon and a value", hint);

		/* The same one twice counts once */
		for (int j = 0; j < keys->count; j++)
			again = again || strcmp(keys->keys[j].text, key->text) == 0;
		if (!again)
			keys->count++;
	}
	return keys;
}

/* Give the argument again */
Datum
limit_keys_datum(const LimitKeys *keys)
{
	return keys != NULL ? keys->given : (Datum) 0;
}

/* Find the limits of a key */
static void
find_limit(const Workspace *w, Key *key)
{
	for (int i = 0; i < w->key_limit_count; i++)
	{
		const KeyLimit *limit = &w->key_limits[i];

		if (strcmp(limit->prefix, key->prefix) != 0)
			continue;
		if (limit->sends_per_hour > 0 || limit->sends_per_day > 0)
			key->limit = limit;
		return;
	}

	/* A typing error must not be a key without a limit */
	error_invalid_argument(psprintf("there is no limit for keys with the prefix \"%s\"", key->prefix),
						   psprintf("Let the owner of the extension run INSERT INTO otp.key_limits"
									" (workspace_id, prefix, sends_per_hour, sends_per_day) VALUES (%d, '%s', 20, 100).",
									w->workspace_id, key->prefix));
}

/* Find all limits, and what the keys are stored as */
static void
resolve(const Workspace *w, LimitKeys *keys)
{
	for (int i = 0; keys != NULL && i < keys->count; i++)
	{
		Key		   *key = &keys->keys[i];
		uint8		hash[HASH_LENGTH];

		find_limit(w, key);
		if (key->limit == NULL)
			continue;
		send_key_hash(w->workspace_id, SEND_KEY_LIMIT, key->text, hash);
		send_key_id(hash, &key->id);
	}
}

/* Order keys by what they are stored as */
static int
compare_keys(const void *a, const void *b)
{
	return memcmp(((const Key *) a)->id.data, ((const Key *) b)->id.data, UUID_LEN);
}

/* Refuse when the sends within a window fill the limit */
static void
check_window(const Key *key, const TimestampTz *times, int n, TimestampTz now, int64 window, int limit,
			 const char *name, const char *message)
{
	/* The one that has to leave the window before there is room */
	if (limit == 0 || n < limit || times[limit - 1] <= now - window)
		return;
	error_raise_key_limit(message,
						  "Wait for the seconds of retry_after, or raise the limit of the prefix in otp.key_limits.",
						  limits_seconds_until(times[limit - 1] + window, now), name, key->prefix);
}

/* Read when a key was sent for */
static int
read_times(const Workspace *w, const Key *key, TimestampTz now, TimestampTz **times)
{
	return send_key_times(w->workspace_id, &key->id,
						  now - (key->limit->sends_per_day > 0 ? LIMITS_DAY : LIMITS_HOUR), now,
						  Max(key->limit->sends_per_day, key->limit->sends_per_hour), times);
}

/* Refuse when a key has been sent for too often */
void
limit_keys_take(const Workspace *w, LimitKeys *keys)
{
	TimestampTz now;

	if (keys == NULL)
		return;
	resolve(w, keys);

	/* All in one order, so that no two sends wait for each other */
	qsort(keys->keys, keys->count, sizeof(Key), compare_keys);
	for (int i = 0; i < keys->count; i++)
		if (keys->keys[i].limit != NULL)
			send_key_lock(&keys->keys[i].id);

	/* Whoever held them has sent since */
	now = GetCurrentTimestamp();
	for (int i = 0; i < keys->count; i++)
	{
		const Key  *key = &keys->keys[i];
		TimestampTz *times;
		int			n;

		if (key->limit == NULL)
			continue;
		n = read_times(w, key, now, &times);
		check_window(key, times, n, now, LIMITS_HOUR, key->limit->sends_per_hour, "sends_per_key_hour",
					 "too many codes were sent for a key of limit_keys within an hour");
		check_window(key, times, n, now, LIMITS_DAY, key->limit->sends_per_day, "sends_per_key_day",
					 "too many codes were sent for a key of limit_keys within a day");
	}
}

/* Count a send */
void
limit_keys_note(const Verification *v, const LimitKeys *keys)
{
	for (int i = 0; keys != NULL && i < keys->count; i++)
		if (keys->keys[i].limit != NULL)
			send_key_insert(v, &keys->keys[i].id, NULL);
}

/* Tell what is left of the limits */
void
limit_keys_tell(const Workspace *w, LimitKeys *keys, TimestampTz now,
				void (*tell) (void *arg, const LimitUse *use), void *arg)
{
	if (keys == NULL)
		return;
	resolve(w, keys);
	for (int i = 0; i < keys->count; i++)
	{
		const Key  *key = &keys->keys[i];
		TimestampTz *times;
		int			n;

		if (key->limit == NULL)
			continue;
		n = read_times(w, key, now, &times);
		for (int day = 0; day < 2; day++)
		{
			int			limit = day ? key->limit->sends_per_day : key->limit->sends_per_hour;
			int64		window = day ? LIMITS_DAY : LIMITS_HOUR;
			LimitUse	use = {day ? "sends_per_key_day" : "sends_per_key_hour", key->prefix, limit};

			if (limit == 0)
				continue;
			while (use.used < n && times[use.used] > now - window)
				use.used++;

			if (use.used > 0)
				use.resets_at = times[0] + window;
			if (use.used >= limit)
				use.free_at = times[limit - 1] + window;
			tell(arg, &use);
		}
	}
}
