/*-------------------------------------------------------------------------
 *
 * send_key.h
 *	  What else a send can be found by: keys of the caller's own.
 *
 * Only keyed hashes of them are stored, in otp.send_keys, whose drawers are
 * those of the verifications. All functions need a transaction, SPI_connect
 * and the owner's scope.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SEND_KEY_H
#define OTP_SEND_KEY_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "base/code.h"
#include "store/verification.h"

/* What a key is for; the numbers are part of every hash made. */
typedef enum SendKeyKind
{
	SEND_KEY_LIMIT = 1,
	SEND_KEY_IDEMPOTENCY = 2,
	SEND_KEY_ARGUMENTS = 3
} SendKeyKind;

/*
 * Hash a key, or what was asked for. The hash is of the workspace as well:
 * nobody can tell whether two workspaces know the same. Raises
 * key_unavailable.
 */
extern void send_key_hash(int32 workspace_id, SendKeyKind kind, const char *key, uint8 hash[HASH_LENGTH]);

/* The part of a hash that is stored, and found by. */
extern void send_key_id(const uint8 hash[HASH_LENGTH], pg_uuid_t *id);

/* Have all sends with a key wait for each other until the end of the transaction. */
extern void send_key_lock(const pg_uuid_t *key);

/* Note a key of a send; arguments NULL: none. */
extern void send_key_insert(const Verification *v, const pg_uuid_t *key, const uint8 *arguments);

/*
 * When sends with a key were made, newest first: those since a time, at most
 * limit. In SPI's upper memory; gives their number.
 */
extern int	send_key_times(int32 workspace_id, const pg_uuid_t *key, TimestampTz since, TimestampTz now,
						   int limit, TimestampTz **times);

/* Find the newest send with a key since a time, and the hash of what it asked for. */
extern bool send_key_find(int32 workspace_id, const pg_uuid_t *key, TimestampTz since, TimestampTz now,
						  pg_uuid_t *verification_id, uint8 arguments[HASH_LENGTH]);

#endif							/* OTP_SEND_KEY_H */
