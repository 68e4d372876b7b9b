/*-------------------------------------------------------------------------
 *
 * verification.h
 *	  The rows of otp.verifications, as the verbs read and write them.
 *
 * All functions need SPI_connect and the owner's scope.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_VERIFICATION_H
#define OTP_VERIFICATION_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "base/code.h"
#include "base/ledger.h"

typedef struct Verification
{
	int32		workspace_id;
	pg_uuid_t	id;
	int			slot;
	uint64		created_xid;
	TimestampTz created_at;
	TimestampTz expires_at;
	TimestampTz verified_at;	/* 0: not */
	TimestampTz canceled_at;
	TimestampTz resent_at;
	TimestampTz last_attempt_at;
	int			key_id;
	int			length;
	int			attempts;		/* the row's: the ledger may know of more */
	int			max_attempts;
	int			resends;
	bool		fallback_sms;
	const char *test_outcome;	/* NULL: a real phone */
	bool		shadowed;		/* nothing is sent, no code is right */
	bool		code_given;		/* from outside: it cannot be derived, and is
								 * sealed in the outbox */
	const char *phone;
	const char *template_name;
	const char *language;
	const char *channel;		/* as asked for */
	const char *context;		/* NULL: none */
	uint8		salt[CODE_SALT_LENGTH];
	uint8		code_hash[HASH_LENGTH];
	Datum		metadata;		/* jsonb; see has_metadata */
	bool		has_metadata;

	/* of its messages and its phone, as far as a lock and look needs them */
	const char *last_channel;	/* NULL: no message yet */
	const char *ended_reason;	/* NULL: delivery has not failed for good */
	PhoneCount	failures;		/* verification_lock only */
} Verification;

/* Insert a row. */
extern void verification_insert(const Verification *v);

/*
 * Queue message number of a verification for the sender, due at once;
 * credits is what was paid for it, code what queue_seal_code has made of a code
 * that was given, else NULL.
 */
extern void verification_queue(const Verification *v, int number, const char *channel, int credits,
							   const bytea *code);

/*
 * The sealed code that is queued with a message of a verification; NULL when
 * none is left.
 */
extern bytea *verification_queued_code(const Verification *v);

/*
 * Find a verification in the given workspaces (an int4[]) and lock its row
 * until the end of the (sub)transaction. False when there is none. Strings
 * are palloc'd in the caller's context of before SPI_connect's procedure.
 */
extern bool verification_lock(Datum workspaces, const pg_uuid_t *id, Verification *v);

/* Find without a lock; latest true reads what is committed now, whatever the transaction's snapshot. */
extern bool verification_find(Datum workspaces, const pg_uuid_t *id, bool latest, Verification *v);

/*
 * The ids of a workspace's verifications, newest first, at most limit; of a
 * phone (NULL: of all), and older than after. (list.c)
 */
extern int	verification_list(int32 workspace_id, const char *phone, const pg_uuid_t *after,
							  int limit, pg_uuid_t *ids);

/* Read the failures of a phone anew, as verification_lock reads them. */
extern void verification_phone_failures(Verification *v);

/* Write to a row that verification_lock has locked. */
extern void verification_set_verified(const Verification *v, int attempts, TimestampTz now);
extern void verification_set_attempts(const Verification *v, int attempts, TimestampTz now);
extern void verification_set_canceled(const Verification *v, TimestampTz now);
extern void verification_set_resent(const Verification *v, TimestampTz now);
extern void verification_set_expired(const Verification *v, TimestampTz now);

/*
 * What was sent to a phone, in any of its forms, since a time, newest first,
 * at most limit rows: for the limits per phone. Call with the phone locked
 * (verification_lock_phone).
 */
typedef struct PhoneSend
{
	TimestampTz created_at;
	TimestampTz last_sent_at;
	int			messages;		/* 1 + resends */
	const char *template_name;
	const char *context;
} PhoneSend;

extern int	verification_phone_sends(int32 workspace_id, const char *phone,
									 TimestampTz since, TimestampTz now,
									 int limit, PhoneSend **sends);

/* Have all sends to a phone, in any of its forms, wait for each other until the end of the transaction. */
extern void verification_lock_phone(int32 workspace_id, const char *phone);

/* A message of a verification, as otp_status shows it */
typedef struct MessageState
{
	int			number;
	const char *channel;
	TimestampTz sent_at;
	TimestampTz delivered_at;
	TimestampTz failed_at;
	const char *message_id;
	const char *detail;
	const char *ended_reason;
	int			provider_code;
} MessageState;

/* Read the messages of a verification, oldest first; gives their number. */
extern int	verification_messages(const Verification *v, bool latest, MessageState **messages);

/* Write a message of a test number's verification. */
extern void verification_test_message(const Verification *v, const MessageState *message, TimestampTz now);

#endif							/* OTP_VERIFICATION_H */
