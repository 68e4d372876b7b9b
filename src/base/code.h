/*-------------------------------------------------------------------------
 *
 * code.h
 *	  Codes: derived from a key and never stored; compared as keyed hashes.
 *
 * All but code_equal need a current resource owner (a transaction), and raise
 * XX000 without one: the server's hash functions would crash. What they give
 * goes to memory of the caller, who wipes codes with explicit_bzero.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_CODE_H
#define OTP_CODE_H

#include "utils/uuid.h"

#define CODE_SALT_LENGTH 16
#define CODE_MIN_LENGTH 4
#define CODE_MAX_LENGTH 8		/* of those that are derived */
#define CODE_GIVEN_MAX_LENGTH 10	/* of those that come from outside */
#define CODE_SIZE (CODE_GIVEN_MAX_LENGTH + 1)
#define HASH_LENGTH 32			/* of SHA-256 and HMAC-SHA-256 */

/* A piece of what is hashed; pieces are joined with nothing between them. */
typedef struct HashPart
{
	const void *data;			/* may be NULL when length is 0 */
	size_t		length;
} HashPart;

/*
 * Derive the code of a verification: length digits and a NUL. Every value is
 * equally likely, leading zeros included; the same arguments give the same
 * code. keyring_raise when the key is not in the key file.
 */
extern void code_derive(const pg_uuid_t *id, const uint8 salt[CODE_SALT_LENGTH],
						int key_id, int length, char *out);

/*
 * Hash a code, or what a user takes for one, for the comparison. No two sets
 * of id, context and code share an input; context NULL is not context "".
 * keyring_raise when the key is not in the key file.
 */
extern void code_hash(const pg_uuid_t *id, const char *context, const char *code,
					  int key_id, uint8 out[HASH_LENGTH]);

/* Compare in a time that tells nothing of where the two differ. */
extern bool code_equal(const uint8 *a, const uint8 *b, size_t len);

/* HMAC-SHA-256 and SHA-256 over the joined parts. */
extern void hmac_sha256(const uint8 *key, size_t key_length,
						const HashPart *parts, int count, uint8 out[HASH_LENGTH]);
extern void hash_sha256(const HashPart *parts, int count, uint8 out[HASH_LENGTH]);

#endif							/* OTP_CODE_H */
