/*-------------------------------------------------------------------------
 *
 * webhook_body.c
 *	  Write what a webhook says.
 *
 * It is written for every attempt from the rows of the verification and its
 * message, or of a warning about the workspace: no copy of a phone waits
 * anywhere for a receiver to come back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/timestamp.h"

#include "base/json.h"
#include "base/ulid.h"
#include "channel/channel.h"
#include "worker/webhook_parts.h"

/* A number of the range that is kept for fiction */
#define TEST_PHONE "+12025550143"

/* What a test webhook's verification would have lived */
#define TEST_LIFE (300 * USECS_PER_SEC)

/* How few credits it tells of, and below what */
#define TEST_BALANCE 99
#define TEST_CREDITS_LOW 100

/* Append the name of a member */
static void
add_key(StringInfo out, const char *key)
{
	if (out->data[out->len - 1] != '{')
		appendStringInfoChar(out, ',');
	json_quote(out, key);
	appendStringInfoChar(out, ':');
}

/* Append a text, or null */
static void
add_text(StringInfo out, const char *key, const char *value)
{
	add_key(out, key);
	if (value != NULL)
		json_quote(out, value);
	else
		appendStringInfoString(out, "null");
}

/* Append a moment, in UTC and to the millisecond, or null */
static void
add_time(StringInfo out, const char *key, TimestampTz value)
{
	struct pg_tm tm;
	fsec_t		fraction;

	add_key(out, key);
	if (value == 0 || timestamp2tm(value, NULL, &tm, &fraction, NULL, NULL) != 0)
		appendStringInfoString(out, "null");
	else
		appendStringInfo(out, "\"%04d-%02d-%02dT%02d:%02d:%02d.%03dZ\"",
						 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int) fraction / 1000);
}

/* Append why a message has failed */
static void
add_error(StringInfo out, const char *reason, int code, const char *detail)
{
	add_text(out, "error", reason);
	add_key(out, "error_code");
	if (code != 0)
		appendStringInfo(out, "%d", code);
	else
		appendStringInfoString(out, "null");
	add_text(out, "error_detail", detail);
}

/* Append what an SMS stands in for, and why */
static void
add_first(StringInfo out, const WebhookSource *s)
{
	const char *reason = s->first_reason;
	const char *detail = s->first_detail;

	if (reason == NULL && s->first_code != 0)
	{
		Judgement	j;

		(void) channel_judge_code(channel_for("whatsapp", "meta"), s->first_code, &j);
		reason = j.reason;
	}
	else if (reason == NULL && s->first_silent)
	{
		reason = "delivery_failed";
		detail = "no receipt told in time that it was delivered";
	}
	else if (reason == NULL)
		reason = "provider_unavailable";
	add_text(out, "from_channel", s->first_channel != NULL ? s->first_channel : "whatsapp");
	add_error(out, reason, s->first_code, detail);
}

/* Make up what a test webhook tells of */
static void
make_up(const WebhookRow *row, WebhookSource *s)
{
	bool		sms = strcmp(row->event, webhook_events[EVENT_SMS_FALLBACK]) == 0;

	memset(s, 0, sizeof(WebhookSource));
	s->found = true;
	s->created_at = row->occurred_at - TEST_LIFE;
	s->expires_at = row->occurred_at;
	if (strcmp(row->event, webhook_events[EVENT_EXPIRED]) != 0)
	{
		s->created_at = row->occurred_at - 10 * USECS_PER_SEC;
		s->expires_at = s->created_at + TEST_LIFE;
	}
	s->verified_at = s->sent_at = s->delivered_at = s->failed_at = row->occurred_at;
	s->phone = TEST_PHONE;
	s->template_name = "otp_verification";
	s->language = "en_US";
	s->channel = sms ? "sms" : "whatsapp";
	s->balance = TEST_BALANCE;
	s->credits_low = TEST_CREDITS_LOW;
	s->message_id = sms ? "SM00000000000000000000000000000000" : "wamid.TEST";
	s->metadata = "{}";
	if (strcmp(row->event, webhook_events[EVENT_FAILED]) == 0)
	{
		s->reason = "delivery_failed";
		s->provider_code = 131026;
		s->detail = "Message undeliverable";
	}
	if (sms)
	{
		s->first_channel = "whatsapp";
		s->first_code = 131026;
		s->first_detail = "Message undeliverable";
	}
}

/* Convert to UTF-8; in SQL_ASCII, what is not UTF-8 is masked */
static char *
to_utf8(char *text, int length)
{
	if (GetDatabaseEncoding() == PG_SQL_ASCII && !pg_verify_mbstr(PG_UTF8, text, length, true))
	{
		for (char *p = text; *p != '\0'; p++)
			if ((unsigned char) *p >= 0x80)
				*p = '?';
	}
	return pg_server_to_any(text, length, PG_UTF8);
}

/* Append a number, or null */
static void
add_number(StringInfo out, const char *key, int64 value, bool known)
{
	add_key(out, key);
	if (known)
		appendStringInfo(out, INT64_FORMAT, value);
	else
		appendStringInfoString(out, "null");
}

/* Append what a workspace is told of its credits */
static void
add_credits(StringInfo out, const WebhookSource *s, const char *workspace)
{
	add_text(out, "workspace", workspace);
	add_number(out, "balance", s->balance, s->found);
	add_number(out, "credits_low", s->credits_low, s->found);
}

/* Write a body */
char *
webhook_body(const WebhookRow *row, const WebhookSource *source, const char *workspace)
{
	WebhookSource made_up;
	StringInfoData out;
	char		id[OTP_ID_LENGTH + 1];
	TimestampTz at = row->occurred_at;

	if (row->test)
	{
		make_up(row, &made_up);
		source = &made_up;
	}
	initStringInfo(&out);
	appendStringInfoChar(&out, '{');
	add_text(&out, "event", row->event);
	add_text(&out, "type", row->event);
	add_time(&out, "timestamp", at);
	if (row->test)
	{
		add_key(&out, "test");
		appendStringInfoString(&out, "true");
	}
	add_key(&out, "data");
	appendStringInfoChar(&out, '{');
	if (strcmp(row->event, webhook_events[EVENT_CREDITS_LOW]) == 0)
	{
		add_credits(&out, source, workspace);
		appendStringInfoString(&out, "}}");
		return to_utf8(out.data, out.len);
	}
	ulid_format(row->test ? &row->id : &row->verification_id, id);
	add_text(&out, "otp_id", id);
	add_text(&out, "phone", source->phone);
	add_text(&out, "channel", source->channel);
	add_text(&out, "workspace", workspace);
	add_text(&out, "message_id", source->message_id);
	if (source->found)
	{
		add_text(&out, "template", source->template_name);
		add_text(&out, "language", source->language);
		add_time(&out, "created_at", source->created_at);
		add_time(&out, "expires_at", source->expires_at);
		add_key(&out, "metadata");
		appendStringInfoString(&out, source->metadata != NULL ? source->metadata : "null");
		if (source->context != NULL)
			add_text(&out, "context", source->context);
	}

	if (strcmp(row->event, webhook_events[EVENT_SENT]) == 0)
		add_time(&out, "sent_at", source->sent_at != 0 ? source->sent_at : at);
	else if (strcmp(row->event, webhook_events[EVENT_DELIVERED]) == 0)
	{
		add_time(&out, "sent_at", source->sent_at);
		add_time(&out, "delivered_at", source->delivered_at != 0 ? source->delivered_at : at);
	}
	else if (strcmp(row->event, webhook_events[EVENT_VERIFIED]) == 0)
		add_time(&out, "verified_at", source->verified_at != 0 ? source->verified_at : at);
	else if (strcmp(row->event, webhook_events[EVENT_EXPIRED]) == 0)
		add_time(&out, "expired_at", source->expires_at != 0 ? source->expires_at : at);
	else if (strcmp(row->event, webhook_events[EVENT_FAILED]) == 0)
	{
		add_time(&out, "failed_at", source->failed_at != 0 ? source->failed_at : at);
		add_error(&out, source->reason, source->provider_code, source->detail);
	}
	else if (strcmp(row->event, webhook_events[EVENT_SMS_FALLBACK]) == 0)
	{
		add_time(&out, "sent_at", source->sent_at);
		add_first(&out, source);
	}
	appendStringInfoString(&out, "}}");
	return to_utf8(out.data, out.len);
}
