/*-------------------------------------------------------------------------
 *
 * seal.c
 *	  Secrets that must be read again: encrypted, then authenticated.
 *
 * A sealed value is a version byte, the initialization vector, the encrypted
 * bytes, and a MAC over all of these and the purpose.
 *
 * pgcrypto does the encryption, called in its library by name: by its SQL
 * functions, the key would be a parameter, which auto_explain and others
 * write to the log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "fmgr.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/code.h"
#include "base/keyring.h"
#include "base/seal.h"

#define SEAL_VERSION 1
#define CIPHER "aes-cbc/pad:pkcs"	/* AES-256, by the length of the key */
#define BLOCK_LENGTH 16			/* AES: of a block, and of the vector */

/* Where the parts of a sealed value begin */
#define VECTOR_OFFSET 1
#define CIPHERTEXT_OFFSET (VECTOR_OFFSET + BLOCK_LENGTH)
#define MIN_SEALED_LENGTH (CIPHERTEXT_OFFSET + BLOCK_LENGTH + HASH_LENGTH)

/* pgcrypto's functions, once its library is loaded */
static PGFunction encrypt_function = NULL;
static PGFunction decrypt_function = NULL;

/* Copy bytes into a bytea */
static bytea *
make_bytea(const void *data, size_t len)
{
	bytea	   *result = palloc(VARHDRSZ + len);

	SET_VARSIZE(result, VARHDRSZ + len);
	memcpy(VARDATA(result), data, len);
	return result;
}

/* Wipe and free a bytea of ours */
static void
free_bytea(bytea *value)
{
	explicit_bzero(VARDATA(value), VARSIZE(value) - VARHDRSZ);
	pfree(value);
}

/* Encrypt or decrypt */
static bytea *
call_pgcrypto(PGFunction *function, const char *name,
			  const void *data, size_t len, const uint8 *key, const uint8 *vector)
{
	LOCAL_FCINFO(fcinfo, 4);
	FmgrInfo	flinfo;
	bytea	   *data_arg;
	bytea	   *key_arg;
	bytea	   *volatile result;

	/* pgcrypto registers its handles there without looking */
	if (CurrentResourceOwner == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("a value was sealed or opened outside a transaction")));

	if (*function == NULL)
		*function = (PGFunction) load_external_function("$libdir/pgcrypto", name, true, NULL);

	/* No catalog row stands behind the call */
	memset(&flinfo, 0, sizeof(flinfo));
	flinfo.fn_addr = *function;
	flinfo.fn_oid = InvalidOid;
	flinfo.fn_nargs = 4;
	flinfo.fn_strict = true;
	flinfo.fn_mcxt = CurrentMemoryContext;

	InitFunctionCallInfoData(*fcinfo, &flinfo, 4, InvalidOid, NULL, NULL);
	data_arg = make_bytea(data, len);
	key_arg = make_bytea(key, KEY_LENGTH);
	fcinfo->args[0].value = PointerGetDatum(data_arg);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = PointerGetDatum(key_arg);
	fcinfo->args[1].isnull = false;
	fcinfo->args[2].value = PointerGetDatum(make_bytea(vector, BLOCK_LENGTH));
	fcinfo->args[2].isnull = false;
	fcinfo->args[3].value = PointerGetDatum(cstring_to_text(CIPHER));
	fcinfo->args[3].isnull = false;

	/* Wipe the copies whatever comes */
	PG_TRY();
	{
		result = DatumGetByteaP(FunctionCallInvoke(fcinfo));
	}
	PG_FINALLY();
	{
		free_bytea(data_arg);
		free_bytea(key_arg);
	}
	PG_END_TRY();

	pfree(DatumGetPointer(fcinfo->args[2].value));
	pfree(DatumGetPointer(fcinfo->args[3].value));
	return result;
}

/* Compute the MAC of a sealed value */
static void
compute_mac(const uint8 *sealed, size_t len, const char *purpose,
			int key_id, uint8 mac[HASH_LENGTH])
{
	size_t		purpose_length = strlen(purpose);
	uint32		length_bytes = pg_hton32((uint32) purpose_length);
	HashPart	parts[] = {
		{&length_bytes, sizeof(length_bytes)},
		{purpose, purpose_length},
		{sealed, len}
	};

	hmac_sha256(keyring_subkey(key_id, KEY_SEAL_MAC), KEY_LENGTH,
				parts, lengthof(parts), mac);
}

/* Seal a value */
bytea *
seal(const char *plain, size_t len, const char *purpose, int key_id)
{
	const uint8 *key = keyring_subkey(key_id, KEY_SEAL);
	uint8		vector[BLOCK_LENGTH];
	bytea	   *ciphertext;
	size_t		ciphertext_length;
	size_t		mac_offset;
	bytea	   *result;
	uint8	   *p;

	if (!pg_strong_random(vector, sizeof(vector)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes for sealing"),
				 errhidestmt(true),
				 errhidecontext(true)));

	ciphertext = call_pgcrypto(&encrypt_function, "pg_encrypt_iv", plain, len, key, vector);
	ciphertext_length = VARSIZE_ANY_EXHDR(ciphertext);
	mac_offset = CIPHERTEXT_OFFSET + ciphertext_length;

	result = palloc(VARHDRSZ + mac_offset + HASH_LENGTH);
	SET_VARSIZE(result, VARHDRSZ + mac_offset + HASH_LENGTH);
	p = (uint8 *) VARDATA(result);
	p[0] = SEAL_VERSION;
	memcpy(p + VECTOR_OFFSET, vector, BLOCK_LENGTH);
	memcpy(p + CIPHERTEXT_OFFSET, VARDATA_ANY(ciphertext), ciphertext_length);
	compute_mac(p, mac_offset, purpose, key_id, p + mac_offset);

	pfree(ciphertext);
	return result;
}

/* Open a sealed value, if it is what it should be */
char *
unseal_or_null(const bytea *sealed, const char *purpose, int key_id, size_t *len)
{
	const uint8 *key = keyring_subkey(key_id, KEY_SEAL);
	bytea	   *value = (bytea *) PG_DETOAST_DATUM_PACKED(PointerGetDatum(sealed));
	const uint8 *p = (const uint8 *) VARDATA_ANY(value);
	size_t		sealed_length = VARSIZE_ANY_EXHDR(value);
	size_t		mac_offset;
	uint8		mac[HASH_LENGTH];
	bytea	   *opened;
	size_t		opened_length;
	char	   *result;

	/* Nothing is decrypted before the MAC has proved it ours */
	if (sealed_length < MIN_SEALED_LENGTH || p[0] != SEAL_VERSION)
		return NULL;
	mac_offset = sealed_length - HASH_LENGTH;
	compute_mac(p, mac_offset, purpose, key_id, mac);
	if (!code_equal(mac, p + mac_offset, HASH_LENGTH))
		return NULL;

	opened = call_pgcrypto(&decrypt_function, "pg_decrypt_iv",
						   p + CIPHERTEXT_OFFSET, mac_offset - CIPHERTEXT_OFFSET,
						   key, p + VECTOR_OFFSET);
	opened_length = VARSIZE(opened) - VARHDRSZ;
	result = palloc(opened_length + 1);
	memcpy(result, VARDATA(opened), opened_length);
	result[opened_length] = '\0';
	if (len != NULL)
		*len = opened_length;

	free_bytea(opened);
	if (value != sealed)
		pfree(value);
	return result;
}

/* Open a sealed value */
char *
unseal(const bytea *sealed, const char *purpose, int key_id, size_t *len)
{
	char	   *result = unseal_or_null(sealed, purpose, key_id, len);

	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a sealed value does not open with its key"),
				 errhint("It was changed, or moved from the row for which it was sealed. Set the secret again."),
				 errhidestmt(true),
				 errhidecontext(true)));
	return result;
}
