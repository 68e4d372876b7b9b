/*-------------------------------------------------------------------------
 *
 * api_key.h
 *	  The rows of otp.api_keys, and when they were last used.
 *
 * All functions need SPI_connect and the owner's scope.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_STORE_API_KEY_H
#define OTP_STORE_API_KEY_H

#include "datatype/timestamp.h"

#include "base/code.h"
#include "base/key_use.h"

/* A row of otp.api_keys; a time of 0 is NULL */
typedef struct ApiKeyRow
{
	int32		workspace_id;
	int32		key_id;
	const char *name;
	const char *prefix;
	const char *created_by;
	bool		admin;
	TimestampTz expires_at;
	TimestampTz revoked_at;
	int32		replaces;		/* 0: none */
	int32		replaced_by;	/* 0: none; only read */
} ApiKeyRow;

/* Whose a key is */
typedef struct ApiKey
{
	int32		workspace_id;
	int32		key_id;
	bool		admin;
	char		workspace[NAMEDATALEN];
} ApiKey;

/* Add a row, whose key_id does not count; gives the new one. */
extern int32 api_key_insert(const ApiKeyRow *row, const uint8 hash[HASH_LENGTH]);

/* Read and lock a row; false when there is none. The texts are in the current context. */
extern bool api_key_lock(int32 key_id, ApiKeyRow *row);

/* Let a key end, or revoke it. */
extern void api_key_set_expiry(const ApiKeyRow *row, TimestampTz expires_at);
extern void api_key_set_revoked(const ApiKeyRow *row, TimestampTz now);

/*
 * Find the key with a hash, and note its use; false for one that is not
 * there, has expired or is revoked. What is found is kept for the session,
 * until anything of the configuration changes: a revocation holds from its
 * commit on.
 */
extern bool api_key_use(const uint8 hash[HASH_LENGTH], TimestampTz now, ApiKey *key);

/* Uses that are written at once, at most */
#define KEY_USES_BATCH 256

/*
 * Write uses down, and tell which are; false when somebody locks a table. Rows
 * that somebody has locked are left alone, and keys that are gone passed over.
 */
extern bool api_key_write_uses(const KeyUse *uses, bool *written, int n);

#endif							/* OTP_STORE_API_KEY_H */
