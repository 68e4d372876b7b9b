/*-------------------------------------------------------------------------
 *
 * signature.c
 *	  The signatures by which providers prove that a callback is theirs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "common/base64.h"
#include "common/hmac.h"
#include "common/sha1.h"
#include "utils/resowner.h"

#include "base/signature.h"

StaticAssertDecl(SIGNATURE_BASE64_LENGTH == (SHA1_DIGEST_LENGTH + 2) / 3 * 4, "base 64 of SHA-1");

/* Write bytes as hexadecimal digits */
static void
write_hex(const uint8 hash[HASH_LENGTH], char out[SIGNATURE_HEX_LENGTH + 1])
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < HASH_LENGTH; i++)
	{
		out[2 * i] = digits[hash[i] >> 4];
		out[2 * i + 1] = digits[hash[i] & 15];
	}
	out[SIGNATURE_HEX_LENGTH] = '\0';
}

/* Sign with SHA-256 */
void
signature_sha256(const char *key, const HashPart *parts, int count,
				 char out[SIGNATURE_HEX_LENGTH + 1])
{
	uint8		hash[HASH_LENGTH];

	hmac_sha256((const uint8 *) key, strlen(key), parts, count, hash);
	write_hex(hash, out);
}

/* Hash with SHA-256 */
void
signature_plain_sha256(const void *data, size_t length, char out[SIGNATURE_HEX_LENGTH + 1])
{
	HashPart	part = {data, length};
	uint8		hash[HASH_LENGTH];

	hash_sha256(&part, 1, hash);
	write_hex(hash, out);
}

/* Sign with SHA-1 */
void
signature_sha1(const char *key, const HashPart *parts, int count,
			   char out[SIGNATURE_BASE64_LENGTH + 1])
{
	uint8		hash[SHA1_DIGEST_LENGTH];
	pg_hmac_ctx *context;
	bool		good;

	/* With OpenSSL the server registers each context there without looking */
	if (CurrentResourceOwner == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("a hash was asked for outside a transaction")));

	/* None of these calls raises once the context is there */
	context = pg_hmac_create(PG_SHA1);
	good = context != NULL && pg_hmac_init(context, (const uint8 *) key, strlen(key)) >= 0;
	for (int i = 0; good && i < count; i++)
	{
		if (parts[i].length > 0)
			good = pg_hmac_update(context, parts[i].data, parts[i].length) >= 0;
	}
	good = good && pg_hmac_final(context, hash, sizeof(hash)) >= 0;
	pg_hmac_free(context);

	if (!good || pg_b64_encode((const void *) hash, sizeof(hash), out, SIGNATURE_BASE64_LENGTH) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute %s", "HMAC-SHA-1"),
				 errhidestmt(true),
				 errhidecontext(true)));
	out[SIGNATURE_BASE64_LENGTH] = '\0';
}

/* Compare without telling where */
bool
signature_equal(const char *given, const char *right)
{
	size_t		length = strlen(right);

	/* How long a right one is, everybody knows */
	if (given == NULL || strlen(given) != length)
		return false;
	return code_equal((const uint8 *) given, (const uint8 *) right, length);
}
