/*-------------------------------------------------------------------------
 *
 * signature.h
 *	  The signatures by which providers prove that a callback is theirs.
 *
 * The functions that compute need a current resource owner (a transaction).
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SIGNATURE_H
#define OTP_SIGNATURE_H

#include "base/code.h"

/* Characters of what is written below, without the NUL */
#define SIGNATURE_HEX_LENGTH (2 * HASH_LENGTH)
#define SIGNATURE_BASE64_LENGTH 28	/* of the 20 bytes of SHA-1 */

/* HMAC-SHA-256 in lower-case hexadecimal digits. */
extern void signature_sha256(const char *key, const HashPart *parts, int count,
							 char out[SIGNATURE_HEX_LENGTH + 1]);

/* HMAC-SHA-1 in base 64. */
extern void signature_sha1(const char *key, const HashPart *parts, int count,
						   char out[SIGNATURE_BASE64_LENGTH + 1]);

/* SHA-256, without a key, in lower-case hexadecimal digits. */
extern void signature_plain_sha256(const void *data, size_t length, char out[SIGNATURE_HEX_LENGTH + 1]);

/*
 * Is what was given the right one? Takes as long wherever the two differ.
 * given may be NULL. Needs nothing.
 */
extern bool signature_equal(const char *given, const char *right);

#endif							/* OTP_SIGNATURE_H */
