/*-------------------------------------------------------------------------
 *
 * message.h
 *	  Messages: what the sender needs to make one, and what came of it.
 *
 * All functions need a transaction, SPI_connect and the owner's scope; those
 * that read, an active snapshot. They leave the current memory context as it
 * is, which SPI itself does not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_MESSAGE_H
#define OTP_MESSAGE_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#define MESSAGE_SALT_LENGTH 16

/* Which verification, and where it lies */
typedef struct MessageKey
{
	int32		workspace_id;
	int16		slot;
	pg_uuid_t	id;
} MessageKey;

/* What a message is made from */
typedef struct MessageSource
{
	bool		found;			/* else the verification is gone */
	bool		ended;			/* verified, canceled, or no attempt left */
	bool		used_up;		/* ended because no attempt is left */
	bool		fallback_sms;
	bool		code_given;		/* it is in the outbox, and cannot be derived */
	TimestampTz expires_at;
	TimestampTz created_at;
	int			key_id;
	int			length;
	uint8		salt[MESSAGE_SALT_LENGTH];
	char	   *phone;
	char	   *template_name;
	char	   *language;

	/* of an SMS, by message_load_texts; NULL when there is none */
	char	   *body;
	char	   *last_line;
	char	   *sender;
	char	   *dlt_entity_id;
	char	   *dlt_template_id;
} MessageSource;

/* Read verifications, by one statement per leaf; strings in the current context. */
extern void message_load(const MessageKey *keys, MessageSource *sources, int n);

/* Read the words of those that go out as SMS, by one statement per leaf. */
extern void message_load_texts(const MessageKey *keys, MessageSource *sources,
							   const bool *wanted, int n);

/* A row of otp.messages, as far as a sender writes it */
typedef struct MessageRow
{
	MessageKey	key;
	int16		number;
	int16		tries;
	bool		sms;
	int			account_id;		/* 0: none */
	int			http_status;	/* 0: none */
	int			provider_code;	/* 0: none */
	TimestampTz ended_at;		/* of the last try */
	TimestampTz sent_at;		/* 0: not */
	TimestampTz failed_at;		/* 0: not */
	const char *message_id;		/* NULL: none; server encoding */
	const char *detail;			/* NULL: none; server encoding */
	const char *ended_reason;	/* NULL: not the end */
	bool		again;			/* accepted once, it failed later, and is sent
								 * once more */
} MessageRow;

/*
 * Write what came of messages. Those whose row is there already (known) are
 * updated, by one statement per leaf; the others are inserted, and should
 * there be a row all the same, it is updated.
 */
extern void message_write(const MessageRow *rows, const bool *known, int n);

/* What is known of a message already */
typedef struct MessageRecord
{
	int			key;			/* index of the key that was asked for */
	int32		workspace_id;
	int16		number;
	int			account_id;		/* 0: none */
	bool		sms;
	TimestampTz sent_at;		/* 0: not */
	TimestampTz delivered_at;
	TimestampTz failed_at;
	bool		ended;			/* with it, the verification has failed */
	char	   *message_id;		/* NULL: none */
} MessageRecord;

/*
 * Read all messages of some verifications, by one statement per leaf; gives
 * their number. Strings in the current context. A key's workspace_id of 0
 * stands for any in workspaces, an int4[], which is (Datum) 0 when there is
 * no such key.
 */
extern int	message_load_states(const MessageKey *keys, int n, Datum workspaces, MessageRecord **states);

/* How a verification stands when its time is up */
typedef struct MessageEnd
{
	bool		found;
	bool		locked;			/* by somebody who may be verifying it */
	bool		ended;			/* verified or canceled */
	bool		used_up;		/* no attempt is left */
} MessageEnd;

/*
 * Read how verifications stand, by one statement per leaf. Waits for nobody,
 * and locks the rows that nobody else has locked.
 */
extern void message_load_ends(const MessageKey *keys, MessageEnd *ends, int n);

/* What a delivery receipt changes */
typedef struct MessageReceipt
{
	MessageKey	key;
	int16		number;
	TimestampTz delivered_at;	/* 0: as it was; the rest likewise */
	TimestampTz failed_at;
	int			provider_code;
	const char *detail;
	const char *category;
	const char *price;			/* a decimal number */
	const char *price_unit;
} MessageReceipt;

/* Write receipts, each for another message, by one statement per leaf. */
extern void message_write_receipts(const MessageReceipt *receipts, int n);

#endif							/* OTP_MESSAGE_H */
