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
	bool		fallback_sms;
	TimestampTz expires_at;
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
} MessageRow;

/*
 * Write what came of messages. Those whose row is there already (known) are
 * updated, by one statement per leaf; the others are inserted, and should
 * there be a row all the same, it is updated.
 */
extern void message_write(const MessageRow *rows, const bool *known, int n);

#endif							/* OTP_MESSAGE_H */
