/*-------------------------------------------------------------------------
 *
 * code.c
 *	  Codes: derived from a key and never stored; compared as keyed hashes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "port/pg_bswap.h"
#include "utils/resowner.h"

#include "base/code.h"
#include "base/keyring.h"

StaticAssertDecl(HASH_LENGTH == PG_SHA256_DIGEST_LENGTH, "SHA-256 has 32 bytes");

/* Raise that a hash failed */
static void
raise_hash_failure(const char *algorithm)
{
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("could not compute %s", algorithm),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/*
 * Ensure that hash contexts have an owner
 *
 * With OpenSSL the server registers each context there without looking
 * whether there is one.
 */
static void
require_resource_owner(void)
{
	if (CurrentResourceOwner == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("a hash was asked for outside a transaction")));
}

/* Compute HMAC-SHA-256 */
void
hmac_sha256(const uint8 *key, size_t key_length,
			const HashPart *parts, int count, uint8 out[HASH_LENGTH])
{
	pg_hmac_ctx *context;
	bool		good;

	require_resource_owner();

	/* None of these calls raises once the context is there */
	context = pg_hmac_create(PG_SHA256);
	good = context != NULL && pg_hmac_init(context, key, key_length) >= 0;
	for (int i = 0; good && i < count; i++)
	{
		if (parts[i].length > 0)
			good = pg_hmac_update(context, parts[i].data, parts[i].length) >= 0;
	}
	good = good && pg_hmac_final(context, out, HASH_LENGTH) >= 0;
	pg_hmac_free(context);

	if (!good)
		raise_hash_failure("HMAC-SHA-256");
}

/* Compute SHA-256 */
void
hash_sha256(const HashPart *parts, int count, uint8 out[HASH_LENGTH])
{
	pg_cryptohash_ctx *context;
	bool		good;

	require_resource_owner();

	context = pg_cryptohash_create(PG_SHA256);
	good = context != NULL && pg_cryptohash_init(context) >= 0;
	for (int i = 0; good && i < count; i++)
	{
		if (parts[i].length > 0)
			good = pg_cryptohash_update(context, parts[i].data, parts[i].length) >= 0;
	}
	good = good && pg_cryptohash_final(context, out, HASH_LENGTH) >= 0;
	pg_cryptohash_free(context);

	if (!good)
		raise_hash_failure("SHA-256");
}

/* Derive a code */
void
code_derive(const pg_uuid_t *id, const uint8 salt[CODE_SALT_LENGTH],
			int key_id, int length, char *out)
{
	const uint8 *key = keyring_subkey(key_id, KEY_CODE);
	uint8		hash[HASH_LENGTH];
	uint32		modulus = 1;
	uint64		usable;
	uint32		value = 0;
	bool		found = false;

	if (length < CODE_MIN_LENGTH || length > CODE_MAX_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("code length %d is out of range", length)));

	for (int i = 0; i < length; i++)
		modulus *= 10;

	/*
	 * Words from here on belong to an incomplete last round of all values,
	 * and would make the lower codes likelier.
	 */
	usable = (UINT64CONST(1) << 32) - (UINT64CONST(1) << 32) % modulus;

	/* Take the first usable word; at eight digits, one in 46 is not */
	for (uint32 counter = 0; !found; counter++)
	{
		uint32		counter_bytes = pg_hton32(counter);
		HashPart	parts[] = {
			{id->data, UUID_LEN},
			{salt, CODE_SALT_LENGTH},
			{&counter_bytes, sizeof(counter_bytes)}
		};

		hmac_sha256(key, KEY_LENGTH, parts, lengthof(parts), hash);
		for (int i = 0; !found && i < HASH_LENGTH; i += sizeof(uint32))
		{
			uint32		word;

			memcpy(&word, hash + i, sizeof(word));
			word = pg_ntoh32(word);
			if (word < usable)
			{
				value = word % modulus;
				found = true;
			}
		}
	}

	/* Write all digits, zeros in front as well */
	out[length] = '\0';
	for (int i = length - 1; i >= 0; i--)
	{
		out[i] = '0' + value % 10;
		value /= 10;
	}
	explicit_bzero(hash, sizeof(hash));
}

/* Hash a code */
void
code_hash(const pg_uuid_t *id, const char *context, const char *code,
		  int key_id, uint8 out[HASH_LENGTH])
{
	const uint8 *key = keyring_subkey(key_id, KEY_HASH);
	size_t		context_length = context != NULL ? strlen(context) : 0;
	uint8		has_context = context != NULL;
	uint32		length_bytes = pg_hton32((uint32) context_length);

	/* Fixed lengths first, so that nothing can slide over a boundary */
	HashPart	parts[] = {
		{id->data, UUID_LEN},
		{&has_context, sizeof(has_context)},
		{&length_bytes, sizeof(length_bytes)},
		{context, context_length},
		{code, strlen(code)}
	};

	hmac_sha256(key, KEY_LENGTH, parts, lengthof(parts), out);
}

/* Compare without telling where */
bool
code_equal(const uint8 *a, const uint8 *b, size_t len)
{
	/* volatile, or a compiler may stop at the first difference */
	volatile uint8 difference = 0;

	for (size_t i = 0; i < len; i++)
		difference |= a[i] ^ b[i];
	return difference == 0;
}
