/*-------------------------------------------------------------------------
 *
 * queue.h
 *	  Rows of otp.outbox, as backends queue them for the sender.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_QUEUE_H
#define OTP_QUEUE_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* What a row of the outbox is; the names in its column kind are lower case */
typedef enum OutboxKind
{
	OUTBOX_MESSAGE,				/* one to send, then to follow until its end */
	OUTBOX_VERIFIED,			/* a verification has ended thus */
	OUTBOX_CANCELED,
	OUTBOX_RECEIPTS,			/* what a provider has told */
	OUTBOX_JOB					/* anything else */
} OutboxKind;

/* Numbers of rows that are no messages */
#define OUTBOX_NUMBER_OTHER 0
#define OUTBOX_NUMBER_CANCELED (-1)

/* How long receipts and jobs may wait for a sender */
#define OUTBOX_PATIENCE_US (INT64CONST(86400) * 1000000)

/*
 * Queue a row that is no message, due at once; wake_at_commit is to follow.
 * payload: JSON in server encoding, or NULL. Needs SPI_connect and the
 * owner's scope.
 */
extern void queue_row(OutboxKind kind, const pg_uuid_t *id, int32 workspace_id, int slot,
					  int number, TimestampTz expires_at, const char *payload);

/*
 * Seal a code that was given for a verification, for its rows of the outbox;
 * it opens for no other. Open it again, with a NUL added: NULL when it is not
 * what was sealed. The caller wipes it. Both need a transaction, and raise
 * keyring_raise's error.
 */
extern bytea *queue_seal_code(const pg_uuid_t *id, int32 workspace_id, const char *code, int key_id);
extern char *queue_open_code(const pg_uuid_t *id, int32 workspace_id, const bytea *sealed, int key_id);

/* Queue receipts or a job, under an id of its own. */
extern void queue_payload(OutboxKind kind, int32 workspace_id, const char *payload);

#endif							/* OTP_QUEUE_H */
