/*-------------------------------------------------------------------------
 *
 * webhook.c
 *	  Webhooks by the Standard Webhooks scheme: what is sent, what the answer
 *	  means, and when to try again.
 *
 * What is signed is "id.timestamp.body"; the id stays the same over all
 * attempts, the timestamp does not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"
#include "utils/timestamp.h"

#include "base/base64.h"
#include "base/code.h"
#include "base/ulid.h"
#include "channel/webhook.h"

#define ID_PREFIX "msg_"

/* A receiver that asks for more patience than this does not get it. */
#define MAX_RETRY_AFTER_S 3600

/* The waiting times after each try: some three days in all */
static const int delays_s[] = {5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400};

StaticAssertDecl(WEBHOOK_ID_LENGTH == OTP_ID_LENGTH, "prefixes are of one length");

/* Write an id */
void
webhook_format_id(const pg_uuid_t *id, char out[WEBHOOK_ID_LENGTH + 1])
{
	ulid_format(id, out);
	memcpy(out, ID_PREFIX, strlen(ID_PREFIX));
}

/* Sign */
char *
webhook_signature(const WebhookKey *keys, int nkeys, const char *webhook_id, int64 timestamp,
				  const char *body, size_t body_length)
{
	StringInfoData text;
	char		second[32];
	HashPart	parts[5];

	snprintf(second, sizeof(second), INT64_FORMAT, timestamp);
	parts[0].data = webhook_id;
	parts[0].length = strlen(webhook_id);
	parts[1].data = parts[3].data = ".";
	parts[1].length = parts[3].length = 1;
	parts[2].data = second;
	parts[2].length = strlen(second);
	parts[4].data = body;
	parts[4].length = body_length;

	initStringInfo(&text);
	for (int i = 0; i < nkeys; i++)
	{
		uint8		hash[HASH_LENGTH];

		hmac_sha256(keys[i].data, keys[i].length, parts, lengthof(parts), hash);
		appendStringInfo(&text, "%sv1,%s", i > 0 ? " " : "", base64_text(hash, sizeof(hash)));
	}
	return text.data;
}

/* Build a request */
void
webhook_build(const char *url, const WebhookKey *keys, int nkeys, const pg_uuid_t *id, TimestampTz now,
			  const char *body, HttpRequest *out)
{
	char		webhook_id[WEBHOOK_ID_LENGTH + 1];
	int64		timestamp = (int64) timestamptz_to_time_t(now);
	const char **headers = palloc(5 * sizeof(char *));

	webhook_format_id(id, webhook_id);
	memset(out, 0, sizeof(HttpRequest));
	out->url = url;
	out->body = body;
	out->body_length = strlen(body);
	out->timeout_ms = WEBHOOK_TIMEOUT_MS;
	headers[0] = "Content-Type: application/json";
	headers[1] = psprintf("webhook-id: %s", webhook_id);
	headers[2] = psprintf("webhook-timestamp: " INT64_FORMAT, timestamp);
	headers[3] = psprintf("webhook-signature: %s",
						  webhook_signature(keys, nkeys, webhook_id, timestamp, body, out->body_length));
	headers[4] = NULL;
	out->headers = headers;
}

/* Judge an answer */
void
webhook_judge(const HttpResponse *response, WebhookVerdict *out)
{
	int			status = response->outcome == HTTP_NOT_SENT ? 0 : response->status;

	memset(out, 0, sizeof(WebhookVerdict));
	out->http_status = status;

	/* The receiver has said yes; what else it has to say does not matter */
	if (status >= 200 && status < 300)
	{
		out->delivered = true;
		return;
	}

	out->gone = status == 410;
	if (response->retry_after > 0)
	{
		out->retry_after = Min(response->retry_after, MAX_RETRY_AFTER_S);
		out->busy = status == 429 || status == 503;
	}
	if (status >= 300 && status < 400)
		snprintf(out->error, sizeof(out->error), "HTTP status %d: redirects are not followed", status);
	else if (status != 0)
		snprintf(out->error, sizeof(out->error), "HTTP status %d", status);
	else
		strlcpy(out->error, response->error, sizeof(out->error));
}

/* Give the time to wait */
int64
webhook_delay(int tries)
{
	if (tries < 1)
		return 0;
	if (tries > lengthof(delays_s))
		return -1;
	return delays_s[tries - 1] * USECS_PER_SEC;
}
