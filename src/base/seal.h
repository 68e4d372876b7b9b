/*-------------------------------------------------------------------------
 *
 * seal.h
 *	  Secrets that must be read again: encrypted, then authenticated.
 *
 * AES-256 in CBC mode under one sub-key, HMAC-SHA-256 over everything under
 * another. All functions need a transaction and give memory of the current
 * context; keyring_raise when the key is not in the key file. The caller
 * wipes what is secret with explicit_bzero.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SEAL_H
#define OTP_SEAL_H

/*
 * Seal len bytes. The purpose tells what the value is and where it belongs
 * ("provider_accounts:1"): it opens under no other, so a sealed value that
 * is copied to another row is refused there. Raises 58P01 where pgcrypto's
 * library is missing.
 */
extern bytea *seal(const char *plain, size_t len, const char *purpose, int key_id);

/*
 * Open a sealed value, toasted or not. Gives its bytes with a NUL added, and
 * their number when len is not NULL. Raises XX001 when the value was not
 * sealed under this key and purpose, or changed since.
 */
extern char *unseal(const bytea *sealed, const char *purpose, int key_id, size_t *len);

/* The same, but NULL where unseal would raise XX001. */
extern char *unseal_or_null(const bytea *sealed, const char *purpose, int key_id, size_t *len);

#endif							/* OTP_SEAL_H */
