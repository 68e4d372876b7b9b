/*-------------------------------------------------------------------------
 *
 * webhook.h
 *	  Webhooks by the Standard Webhooks scheme: what is sent, what the answer
 *	  means, and when to try again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_CHANNEL_WEBHOOK_H
#define OTP_CHANNEL_WEBHOOK_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "base/http.h"

/* "msg_" and 26 digits of base 32, without the NUL */
#define WEBHOOK_ID_LENGTH 30

/* How long an endpoint may take to answer */
#define WEBHOOK_TIMEOUT_MS 15000

/* Write an id as receivers see it. */
extern void webhook_format_id(const pg_uuid_t *id, char out[WEBHOOK_ID_LENGTH + 1]);

/* A key that signs */
typedef struct WebhookKey
{
	const uint8 *data;
	size_t		length;
} WebhookKey;

/*
 * The value of webhook-signature: one signature for each key. palloc'd.
 * Needs a resource owner.
 */
extern char *webhook_signature(const WebhookKey *keys, int nkeys, const char *webhook_id, int64 timestamp,
							   const char *body, size_t body_length);

/*
 * Build a request: everything but the owner, palloc'd in the current context.
 * Needs a resource owner.
 */
extern void webhook_build(const char *url, const WebhookKey *keys, int nkeys, const pg_uuid_t *id, TimestampTz now,
						  const char *body, HttpRequest *out);

#define WEBHOOK_ERROR_SIZE 160

typedef struct WebhookVerdict
{
	bool		delivered;
	bool		gone;			/* 410: never again */
	bool		busy;			/* leave the endpoint alone for retry_after */
	int			http_status;	/* 0: none */
	int			retry_after;	/* seconds; 0: as scheduled */
	char		error[WEBHOOK_ERROR_SIZE];	/* ASCII, digits masked; "" when
											 * delivered */
} WebhookVerdict;

/* Judge an answer, or that there was none. */
extern void webhook_judge(const HttpResponse *response, WebhookVerdict *out);

/*
 * The time to wait after so many tries, without jitter, in microseconds; -1:
 * no more tries.
 */
extern int64 webhook_delay(int tries);

#endif							/* OTP_CHANNEL_WEBHOOK_H */
