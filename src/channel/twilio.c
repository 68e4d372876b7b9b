/*-------------------------------------------------------------------------
 *
 * twilio.c
 *	  SMS by Twilio's Messages API.
 *
 * The verification's id and the message's number go into the query of the
 * callback's address, which Twilio signs and hands back with every receipt.
 * There is no key that would make a repeat harmless.
 *
 * India's DLT ids have no place in this API: Twilio keeps them with the
 * registered sender and finds the template by the text.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "base/json.h"
#include "base/phone.h"
#include "channel/channel.h"
#include "channel/receipt.h"

#define TWILIO_BASE_URL "https://api.twilio.com"

/* Range of ValidityPeriod, in seconds */
#define TWILIO_MIN_VALIDITY 1
#define TWILIO_MAX_VALIDITY 36000

/* The queue of a sending number is full, or a limit of its rate reached */
#define TWILIO_QUEUE_MS 5000
#define TWILIO_RATE_MS 1000

/*
 * What Twilio's codes mean (twilio.com/docs/api/errors). From 30001 on they
 * usually come with receipts, from 63001 on from channels other than SMS.
 */
static const ChannelCode codes[] = {
	/* The account, its credentials and senders */
	{20003, 20003, VERDICT_ACCOUNT, 0, 0},	/* authentication */
	{20404, 20404, VERDICT_ACCOUNT, 0, 0},	/* no such account */
	{21212, 21212, VERDICT_ACCOUNT, CODE_SENDER, 0},	/* From invalid */
	{21606, 21606, VERDICT_ACCOUNT, CODE_SENDER, 0},	/* From cannot send SMS */
	{21608, 21608, VERDICT_ACCOUNT, 0, 0},	/* trial account */
	{21609, 21609, VERDICT_ACCOUNT, 0, 0},	/* StatusCallback invalid */
	{21703, 21705, VERDICT_ACCOUNT, CODE_SENDER, 0},	/* messaging service */
	{30002, 30002, VERDICT_ACCOUNT, 0, 0},	/* suspended */
	{30032, 30032, VERDICT_ACCOUNT, CODE_SENDER, 0},	/* toll-free: unverified */
	{30034, 30034, VERDICT_ACCOUNT, CODE_SENDER, 0},	/* 10DLC: unregistered */
	{63001, 63001, VERDICT_ACCOUNT, 0, 0},	/* authentication */
	{63007, 63007, VERDICT_ACCOUNT, CODE_SENDER, 0},	/* no such From */

	/* Too fast */
	{20429, 20429, VERDICT_RETRY, CODE_OVERLOADED, 0},	/* never processed */
	{14107, 14107, VERDICT_RETRY, CODE_OVERLOADED, TWILIO_RATE_MS},
	{21611, 21611, VERDICT_RETRY, CODE_OVERLOADED, TWILIO_QUEUE_MS},
	{30001, 30001, VERDICT_RETRY, CODE_OVERLOADED, TWILIO_QUEUE_MS},
	{30017, 30017, VERDICT_RETRY, CODE_OVERLOADED, TWILIO_QUEUE_MS},
	{63018, 63018, VERDICT_RETRY, CODE_OVERLOADED, TWILIO_RATE_MS},

	/* Twilio's or a carrier's trouble */
	{20500, 20500, VERDICT_RETRY, CODE_DOWN | CODE_AMBIGUOUS, 0},
	{20503, 20503, VERDICT_RETRY, CODE_DOWN, 0},
	{30003, 30003, VERDICT_RETRY, CODE_AMBIGUOUS, 0},	/* unreachable: again */
	{30008, 30008, VERDICT_RETRY, CODE_AMBIGUOUS, 0},	/* unknown: again */
	{30036, 30036, VERDICT_RETRY, 0, 0},	/* expired in Twilio's queue */
	{30410, 30410, VERDICT_RETRY, 0, 0},	/* carrier timed out */

	/* This recipient */
	{21211, 21211, VERDICT_REFUSED, 0, 0},	/* invalid To */
	{21408, 21408, VERDICT_REFUSED, 0, 0},	/* country not enabled */
	{21610, 21610, VERDICT_REFUSED, 0, 0},	/* has said STOP */
	{21612, 21612, VERDICT_REFUSED, 0, 0},	/* not reachable from From */
	{21614, 21614, VERDICT_REFUSED, 0, 0},	/* not a mobile number */
	{21635, 21635, VERDICT_REFUSED, 0, 0},	/* landline */
	{30004, 30006, VERDICT_REFUSED, 0, 0},	/* blocked, unknown, landline */
	{30450, 30450, VERDICT_REFUSED, 0, 0},	/* SMS pumping */
	{30485, 30485, VERDICT_REFUSED, 0, 0},
	{63003, 63003, VERDICT_REFUSED, 0, 0},
	{63024, 63024, VERDICT_REFUSED, 0, 0},
	{63032, 63032, VERDICT_REFUSED, 0, 0},
	{63049, 63049, VERDICT_REFUSED, 0, 0},

	/* This request */
	{21602, 21604, VERDICT_REFUSED, 0, 0},	/* missing Body, From, To */
	{21617, 21617, VERDICT_REFUSED, 0, 0},	/* Body too long */
	{30007, 30007, VERDICT_REFUSED, 0, 0},	/* filtered as spam */
	{63016, 63016, VERDICT_REFUSED, 0, 0},	/* window closed */
	{63027, 63028, VERDICT_REFUSED, 0, 0}	/* template */
};

/* Append a value in form encoding */
static void
append_encoded(StringInfo form, const char *value)
{
	static const char hex[] = "0123456789ABCDEF";

	for (; *value != '\0'; value++)
	{
		unsigned char c = (unsigned char) *value;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			(c >= '0' && c <= '9') || strchr("-._~", c) != NULL)
			appendStringInfoChar(form, c);
		else
		{
			appendStringInfoChar(form, '%');
			appendStringInfoChar(form, hex[c >> 4]);
			appendStringInfoChar(form, hex[c & 15]);
		}
	}
}

/* Append a parameter */
static void
append_parameter(StringInfo form, const char *name, const char *value)
{
	if (form->len > 0)
		appendStringInfoChar(form, '&');
	appendStringInfoString(form, name);
	appendStringInfoChar(form, '=');
	append_encoded(form, value);
}

/* Give text as UTF-8; NULL when it cannot be */
static const char *
to_utf8(const char *text)
{
	int			length = strlen(text);

	/* Nobody knows what this is; do not raise if it is not UTF-8 */
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return pg_verify_mbstr(PG_UTF8, text, length, true) ? text : NULL;
	return pg_server_to_any(text, length, PG_UTF8);
}

/* Tell a messaging service from a number or a name, which has up to 11 characters */
bool
twilio_is_service(const char *sender)
{
	return strncmp(sender, "MG", 2) == 0 && strlen(sender) == 34 &&
		strspn(sender + 2, "0123456789abcdefABCDEF") == 32;
}

/* Add the verification's id and the message's number to the callback's query */
static char *
callback_url(const char *configured, const ChannelMessage *message)
{
	/* A fragment tells Twilio how to retry, and must stay last */
	int			length = strcspn(configured, "#");
	bool		has_query = memchr(configured, '?', length) != NULL;

	return psprintf("%.*s%cotp_id=%s&number=%d%s", length, configured,
					has_query ? '&' : '?', message->otp_id, message->number,
					configured + length);
}

/* Check for one of two values */
static bool
is_one_of(const char *value, const char *one, const char *other)
{
	return strcmp(value, one) == 0 || strcmp(value, other) == 0;
}

/*
 * Begin a request: its address up to the account, and who signs in. Settings
 * become part of an address: nothing in them may redirect it.
 */
static bool
begin_request(const ProviderAccount *account, const char *rest, HttpRequest *out, char *error, size_t error_size)
{
	const char *account_sid = channel_string(account->settings, "account_sid");
	const char *key_sid = channel_string(account->settings, "api_key_sid");
	const char *key_secret = channel_string(account->secrets, "api_key_secret");
	const char *auth_token = channel_string(account->secrets, "auth_token");
	char	   *base_url = channel_base_url(account, TWILIO_BASE_URL);

	memset(out, 0, sizeof(*out));
	if (base_url == NULL)
	{
		strlcpy(error, "base_url is not a URL", error_size);
		return false;
	}
	if (!channel_is_word(account_sid, "_-", 64))
	{
		strlcpy(error, "account_sid is missing or malformed", error_size);
		return false;
	}
	if (key_sid != NULL && !channel_is_word(key_sid, "_-", 64))
	{
		strlcpy(error, "api_key_sid is malformed", error_size);
		return false;
	}
	if ((key_sid == NULL || key_secret == NULL) && auth_token == NULL)
	{
		strlcpy(error, "neither an API key with its secret nor auth_token is set", error_size);
		return false;
	}

	out->url = psprintf("%s/2010-04-01/Accounts/%s/%s", base_url, account_sid, rest);
	if (key_sid != NULL && key_secret != NULL)
		out->userpwd = psprintf("%s:%s", key_sid, key_secret);
	else
		out->userpwd = psprintf("%s:%s", account_sid, auth_token);
	return true;
}

/* Build the request */
static bool
twilio_build(const ProviderAccount *account, const ChannelMessage *message,
			 HttpRequest *out, char *error, size_t error_size)
{
	static const char *headers[] = {
		"Content-Type: application/x-www-form-urlencoded",
		"Accept: application/json",
		NULL
	};
	const char *service = channel_string(account->settings, "messaging_service_sid");
	const char *sender = channel_string(account->settings, "sender");
	const char *callback = channel_string(account->settings, "status_callback");
	const char *retention = channel_string(account->settings, "content_retention");
	const char *risk_check = channel_string(account->settings, "risk_check");
	const char *text;
	StringInfoData form;

	if (!begin_request(account, "Messages.json", out, error, error_size))
		return false;
	if (retention != NULL && !is_one_of(retention, "retain", "discard"))
	{
		strlcpy(error, "content_retention is neither retain nor discard", error_size);
		return false;
	}
	if (risk_check != NULL && !is_one_of(risk_check, "enable", "disable"))
	{
		strlcpy(error, "risk_check is neither enable nor disable", error_size);
		return false;
	}
	if (phone_defect(message->phone, strlen(message->phone)) != NULL)
	{
		strlcpy(error, "the phone number is malformed", error_size);
		return false;
	}
	if (message->text == NULL || message->text[0] == '\0')
	{
		strlcpy(error, "there is no text for the SMS", error_size);
		return false;
	}
	text = to_utf8(message->text);
	if (text == NULL)
	{
		strlcpy(error, "the text of the SMS is not UTF-8", error_size);
		return false;
	}

	/* The text's or the workspace's own sender goes before the account's */
	if (message->sender != NULL && message->sender[0] != '\0')
	{
		bool		is_service = twilio_is_service(message->sender);

		sender = is_service ? NULL : to_utf8(message->sender);
		service = is_service ? message->sender : NULL;
	}
	if (service == NULL && sender == NULL)
	{
		strlcpy(error, "neither sender nor messaging_service_sid is set", error_size);
		return false;
	}

	initStringInfo(&form);
	append_parameter(&form, "To", message->phone);
	if (service != NULL)
		append_parameter(&form, "MessagingServiceSid", service);
	else
		append_parameter(&form, "From", sender);
	append_parameter(&form, "Body", text);

	/* What is still queued there when the code expires is of no use */
	append_parameter(&form, "ValidityPeriod",
					 psprintf("%d", Min(Max(message->expires_in, TWILIO_MIN_VALIDITY), TWILIO_MAX_VALIDITY)));
	if (callback != NULL)
		append_parameter(&form, "StatusCallback", callback_url(callback, message));
	if (retention != NULL)
		append_parameter(&form, "ContentRetention", retention);
	if (risk_check != NULL)
		append_parameter(&form, "RiskCheck", risk_check);

	out->headers = headers;
	out->body = form.data;
	out->body_length = form.len;
	return true;
}

/* Judge what came of a request */
static void
twilio_judge(const ProviderAccount *account, const HttpResponse *response, Judgement *out)
{
	json_t	   *answer;
	bool		success;
	const char *sid;
	int			code = 0;

	channel_begin(response, out);
	if (!channel_judge_silence(&channel_twilio, response, out))
	{
		answer = json_from_text(response->body, response->body_length);
		success = (response->status >= 200 && response->status < 300);
		sid = channel_string(answer, "sid");

		/* A message can be there and have failed already */
		if (channel_json_code(json_object_get(answer, success ? "error_code" : "code"), &code) &&
			code != 0)
		{
			channel_judge_answer(&channel_twilio, response, code, false, out);
			channel_add_detail(out, "", json_object_get(answer, success ? "error_message" : "message"), "");
		}
		else if (success && sid != NULL)
			channel_accept(sid, out);
		else
		{
			channel_judge_status(&channel_twilio, response, out);
			if (success)
				strlcpy(out->detail, "a success without a message id", sizeof(out->detail));
			else
				channel_add_detail(out, "", json_object_get(answer, "message"), "");
		}
		json_decref(answer);
	}
	channel_finish(response, out);
}

/* Build the question what became of a message */
static bool
twilio_ask(const ProviderAccount *account, const char *message_id,
		   HttpRequest *out, char *error, size_t error_size)
{
	static const char *headers[] = {"Accept: application/json", NULL};

	if (!channel_is_word(message_id, "", CHANNEL_MESSAGE_ID_SIZE - 1))
	{
		memset(out, 0, sizeof(*out));
		strlcpy(error, "the message's SID is missing or malformed", error_size);
		return false;
	}
	if (!begin_request(account, psprintf("Messages/%s.json", message_id), out, error, error_size))
		return false;
	out->headers = headers;
	return true;
}

/* Read the answer */
static void
twilio_read_answer(const HttpResponse *response, Receipt *out)
{
	json_t	   *answer;
	const char *price;

	memset(out, 0, sizeof(*out));
	if (response->outcome != HTTP_ANSWERED || response->status != 200)
		return;
	answer = json_from_text(response->body, response->body_length);
	out->status = twilio_receipt_status(channel_string(answer, "status"));
	if (out->status != RECEIPT_NOTHING)
	{
		receipt_copy_word(out->message_id, sizeof(out->message_id), channel_string(answer, "sid"));
		if (out->status == RECEIPT_FAILED)
		{
			(void) channel_json_code(json_object_get(answer, "error_code"), &out->code);
			receipt_copy_detail(out->detail, out->code, json_object_get(answer, "error_message"), NULL);
		}

		/* "-0.00750", once it is known */
		price = channel_string(answer, "price");
		if (price != NULL && receipt_is_decimal(price))
		{
			receipt_copy_word(out->price, sizeof(out->price), price);
			receipt_copy_word(out->price_unit, sizeof(out->price_unit), channel_string(answer, "price_unit"));
		}
	}
	json_decref(answer);
}

const Channel channel_twilio = {
	.name = "sms",
	.provider = "twilio",
	.build = twilio_build,
	.judge = twilio_judge,
	.ask = twilio_ask,
	.read_answer = twilio_read_answer,
	.codes = codes,
	.ncodes = lengthof(codes)
};
