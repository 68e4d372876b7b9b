/*
 * twilio.c
 *		Twilio's Messages API.
 */
#include "simulator.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_BODY_CHARS 1600
#define MAX_VALIDITY_SECONDS 36000

typedef struct TwilioError
{
	int			code;
	int			status;
	const char *title;
} TwilioError;

static const TwilioError errors[] = {
	{14107, 429, "SMS send rate limit exceeded"},
	{20001, 400, "Invalid parameter"},
	{20003, 401, "Authenticate"},
	{20404, 404, "The requested resource was not found"},
	{20429, 429, "Too Many Requests"},
	{20500, 500, "An internal server error has occurred"},
	{20503, 503, "Service Unavailable"},
	{21211, 400, "Invalid 'To' Phone Number"},
	{21212, 400, "Invalid 'From' Phone Number"},
	{21408, 400, "Permission to send an SMS has not been enabled for the region indicated by the 'To' number"},
	{21602, 400, "Message body is required."},
	{21603, 400, "A 'From' phone number is required."},
	{21604, 400, "A 'To' phone number is required."},
	{21606, 400, "The 'From' phone number provided is not a valid message-capable Twilio phone number"},
	{21608, 400, "The number is unverified. Trial accounts cannot send messages to unverified numbers"},
	{21609, 400, "Invalid 'StatusCallback' url"},
	{21610, 400, "Attempt to send to unsubscribed recipient"},
	{21611, 400, "This 'From' number has exceeded the maximum number of queued messages"},
	{21612, 400, "Message cannot be sent with the current combination of 'To' and/or 'From' parameters"},
	{21614, 400, "'To' number is not a valid mobile number"},
	{21617, 400, "The concatenated message body exceeds the 1600 character limit"},
	{21635, 400, "'To' number cannot be a Landline"},
	{21703, 400, "The Messaging Service does not have a phone number available to send a message"},
	{21704, 400, "The Messaging Service contains no phone numbers."},
	{21705, 400, "The Messaging Service SID is invalid"},
	{30001, 400, "Queue overflow"},
	{30002, 400, "Account suspended"},
	{30003, 400, "Unreachable destination handset"},
	{30004, 400, "Message blocked"},
	{30005, 400, "Unknown destination handset"},
	{30006, 400, "Landline or unreachable carrier"},
	{30007, 400, "Message filtered"},
	{30008, 400, "Unknown error"},
	{30017, 400, "Carrier network congestion"},
	{30032, 400, "Toll-Free Number Has Not Been Verified"},
	{30034, 400, "Message from an Unregistered Number"},
	{30036, 400, "Validity Period Expired"},
	{30410, 400, "Provider Timeout Error"},
	{30450, 400, "Message delivery blocked by SMS pumping protection"},
	{30485, 400, "Message blocked by risk check"}
};

/* Find an error by code, or NULL. */
static const TwilioError *
find_error(int code)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (errors[i].code == code)
			return &errors[i];
	return NULL;
}

/* Title of an error. */
const char *
twilio_error_title(int code)
{
	const TwilioError *e = find_error(code);

	return e ? e->title : "Unknown error";
}

/* HTTP status of an error. */
static int
error_status(int code)
{
	const TwilioError *e = find_error(code);

	return e ? e->status : 400;
}

/* Error for an HTTP status alone. */
static int
error_for_status(int status)
{
	switch (status)
	{
		case 401:
		case 403:
			return 20003;
		case 404:
			return 20404;
		case 429:
			return 20429;
		case 503:
			return 20503;
	}
	return status >= 500 ? 20500 : 20001;
}

/* Answer with Twilio's error envelope. */
static void
answer_error(Request *req, int status, int code, const char *message)
{
	Text		body = {0};

	text_puts(&body, "{");
	if (code)
		text_printf(&body, "\"code\":%d,", code);
	text_puts(&body, "\"message\":");
	text_json(&body, message);
	if (code)
		text_printf(&body, ",\"more_info\":\"https://www.twilio.com/docs/errors/%d\"", code);
	text_printf(&body, ",\"status\":%d}", status);
	answer_text(req, status, "application/json", &body);
	req->answer.authenticate = status == 401;
}

/* Answer with an error of the table. */
static void
word_error(Request *req, int status, int code, int subcode)
{
	(void) subcode;
	answer_error(req, status, code, twilio_error_title(code));
}

/* Count the segments of an SMS. */
static int
segments_of(const char *body)
{
	int			length = utf8_length(body);
	bool		plain = strlen(body) == (size_t) length;

	if (length <= (plain ? 160 : 70))
		return 1;
	return (length + (plain ? 152 : 66)) / (plain ? 153 : 67);
}

/* Describe a message as the API does. */
static void
describe_message(Text *out, Message *msg)
{
	time_t		seconds = msg->received_us / 1000000;
	const char *status = msg->status;
	int			error_code = msg->error_code;
	char		date[64];
	struct tm	tm;

	gmtime_r(&seconds, &tm);
	strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S +0000", &tm);
	text_printf(out, "{\"sid\":\"%s\",\"account_sid\":\"%s\",\"messaging_service_sid\":", msg->id, msg->account);
	text_json(out, msg->messaging_service_sid);
	text_puts(out, ",\"from\":");
	text_json(out, msg->messaging_service_sid ? NULL : msg->from);
	text_printf(out, ",\"to\":\"%s\",\"body\":", msg->to);
	text_json(out, msg->text);
	text_printf(out, ",\"status\":\"%s\",\"direction\":\"outbound-api\",\"num_segments\":\"%d\",\"num_media\":\"0\","
				"\"price\":null,\"price_unit\":null,", status, segments_of(msg->text));
	if (error_code)
	{
		text_printf(out, "\"error_code\":%d,\"error_message\":", error_code);
		text_json(out, twilio_error_title(error_code));
	}
	else
		text_puts(out, "\"error_code\":null,\"error_message\":null");
	text_printf(out, ",\"api_version\":\"2010-04-01\",\"date_created\":\"%s\",\"date_updated\":\"%s\",", date, date);
	if (strcmp(status, "queued") == 0 || strcmp(status, "accepted") == 0)
		text_puts(out, "\"date_sent\":null");
	else
		text_printf(out, "\"date_sent\":\"%s\"", date);
	text_printf(out, ",\"uri\":\"/2010-04-01/Accounts/%s/Messages/%s.json\",\"subresource_uris\":"
				"{\"media\":\"/2010-04-01/Accounts/%s/Messages/%s/Media.json\"}}",
				msg->account, msg->id, msg->account, msg->id);
}

/* Answer that a message was accepted. */
static void
word_success(Request *req, Message *msg, bool empty)
{
	Text		body = {0};

	if (empty)
		text_puts(&body, "{}");
	else
		describe_message(&body, msg);
	answer_text(req, 201, "application/json", &body);
}

static const Wording twilio_wording = {word_error, error_for_status, error_status, word_success};

/* Is this user and password one of the account's pairs? */
static bool
check_basic(Request *req, const char *account_sid)
{
	const char *authorization = request_header(req, "Authorization");
	unsigned char plain[400];
	const TwilioAccount *account;
	char	   *password;
	size_t		len;
	int			n;
	bool		good = false;

	if (authorization == NULL || strncasecmp(authorization, "Basic ", 6) != 0)
		return false;
	authorization += 6;
	len = strlen(authorization);
	if (len == 0 || len % 4 != 0 || len > 512)
		return false;
	n = EVP_DecodeBlock(plain, (const unsigned char *) authorization, (int) len);
	if (n < 0)
		return false;
	n -= (authorization[len - 1] == '=') + (authorization[len - 2] == '=');
	plain[n] = '\0';
	password = strchr((char *) plain, ':');
	if (password == NULL)
		return false;
	*password++ = '\0';

	pthread_rwlock_rdlock(&settings_lock);
	account = settings_twilio(account_sid);
	if (account)
		good = (strcmp((char *) plain, account->account_sid) == 0 && strcmp(password, account->auth_token) == 0) ||
			(strcmp((char *) plain, account->api_key_sid) == 0 && strcmp(password, account->api_key_secret) == 0);
	pthread_rwlock_unlock(&settings_lock);
	return good;
}

/* A phone number, short code or sender name that may stand in From? */
static bool
is_sender(const char *s)
{
	size_t		len = strlen(s);
	bool		letter = false;

	if (is_e164(s))
		return true;
	if (len >= 3 && len <= 6 && strspn(s, "0123456789") == len)
		return true;
	for (const char *p = s; *p; p++)
	{
		letter = letter || isalpha((unsigned char) *p);
		if (!isalnum((unsigned char) *p) && *p != ' ' && *p != '-' && *p != '_' && *p != '&')
			return false;
	}
	return len >= 1 && len <= 11 && letter;
}

/* A sid with this prefix? */
static bool
is_sid(const char *s, const char *prefix)
{
	return strlen(s) == 34 && strncmp(s, prefix, 2) == 0 && strspn(s + 2, "0123456789abcdefABCDEF") == 32;
}

/* A URL Twilio would call? */
static bool
is_callback_url(const char *s)
{
	size_t		host;

	if (strncmp(s, "https://", 8) == 0)
		s += 8;
	else if (strncmp(s, "http://", 7) == 0)
		s += 7;
	else
		return false;
	host = strcspn(s, "/?#");
	return host > 0 && memchr(s, '_', host) == NULL && strcspn(s, " \t\r\n\"<>") == strlen(s);
}

/* The id of the verification in a callback URL's query, or NULL. */
static char *
otp_id_of(const char *url)
{
	const char *query = url ? strchr(url, '?') : NULL;
	const char *id;
	char	   *copy = NULL;
	Form		form;

	if (query == NULL)
		return NULL;
	form_parse(&form, query + 1, strcspn(query + 1, "#"));
	id = form_get(&form, "otp_id");
	for (int i = 0; id == NULL && i < form.count; i++)
		if (strncmp(form.fields[i].value, "otp_", 4) == 0)
			id = form.fields[i].value;
	copy = must_copy(id);
	form_free(&form);
	return copy;
}

/* The first run of 4 to 10 digits that stands alone, or NULL. */
static char *
code_in(const char *s)
{
	while (*s)
	{
		size_t		digits = strspn(s, "0123456789");

		if (digits >= 4 && digits <= 10)
			return must_copy_n(s, digits);
		s += digits ? digits : 1;
	}
	return NULL;
}

/* Check the fields of a send; returns an error code and its message. */
static int
check_form(const Form *form, Text *message)
{
	const char *to = form_get(form, "To");
	const char *from = form_get(form, "From");
	const char *service = form_get(form, "MessagingServiceSid");
	const char *body = form_get(form, "Body");
	const char *callback = form_get(form, "StatusCallback");
	const char *validity = form_get(form, "ValidityPeriod");

	if (to == NULL || *to == '\0')
		return 21604;
	if (!is_e164(to))
	{
		text_printf(message, "The 'To' number %s is not a valid phone number.", to);
		return 21211;
	}
	if ((from == NULL || *from == '\0') && (service == NULL || *service == '\0'))
		return 21603;
	if (service && *service && !is_sid(service, "MG"))
		return 21705;
	if (from && *from && !is_sender(from))
	{
		text_printf(message, "The 'From' number %s is not a valid phone number, shortcode, or alphanumeric sender ID.",
					from);
		return 21212;
	}
	if (body == NULL || *body == '\0')
		return 21602;
	if (utf8_length(body) > MAX_BODY_CHARS)
		return 21617;
	if (callback && !is_callback_url(callback))
	{
		text_puts(message, "The 'StatusCallback' URL is not a valid URL.");
		return 21609;
	}
	if (validity)
	{
		size_t		digits = strspn(validity, "0123456789");

		if (digits == 0 || digits > 5 || validity[digits] != '\0' || atoi(validity) < 1 ||
			atoi(validity) > MAX_VALIDITY_SECONDS)
		{
			text_puts(message, "The 'ValidityPeriod' must be between 1 and 36000.");
			return 20001;
		}
	}
	return 0;
}

/* Is the body a form? */
static bool
is_form(Request *req)
{
	const char *type = request_header(req, "Content-Type");

	return type && strncasecmp(type, "application/x-www-form-urlencoded", 33) == 0;
}

/* POST .../Messages.json */
static void
handle_send(Request *req, const char *account_sid)
{
	Form		form;
	Text		message = {0};
	const char *service;
	const char *validity;
	Message    *msg;
	int			code;

	form_parse(&form, req->body.data, req->body.len);
	code = check_form(&form, &message);
	if (code)
	{
		char	   *otp_id = otp_id_of(form_get(&form, "StatusCallback"));

		answer_error(req, error_status(code), code, message.data ? message.data : twilio_error_title(code));
		journal_add(req, API_TWILIO, "send", OUTCOME_REFUSED, error_status(code), code, false,
					form_get(&form, "To"), otp_id);
		free(otp_id);
		text_free(&message);
		form_free(&form);
		return;
	}

	msg = message_new(API_TWILIO);
	service = form_get(&form, "MessagingServiceSid");
	validity = form_get(&form, "ValidityPeriod");
	snprintf(msg->to, sizeof(msg->to), "%s", form_get(&form, "To"));
	msg->received_us = req->received_us;
	msg->account = must_copy(account_sid);
	msg->text = must_copy(form_get(&form, "Body"));
	msg->code = code_in(msg->text);
	msg->messaging_service_sid = service && *service ? must_copy(service) : NULL;
	msg->from = must_copy(form_get(&form, "From"));
	if (msg->from == NULL)
		msg->from = must_copy(service);
	msg->status = msg->messaging_service_sid ? "accepted" : "queued";
	msg->status_callback = must_copy(form_get(&form, "StatusCallback"));
	msg->otp_id = otp_id_of(msg->status_callback);
	msg->validity_period = validity ? atoi(validity) : 0;
	msg->raw = must_copy_n(req->body.data, req->body.len);
	msg->raw_len = req->body.len;
	form_free(&form);
	send_conclude(req, msg, &twilio_wording);
}

/* GET .../Messages/{Sid}.json */
static void
handle_read(Request *req, const char *account_sid, const char *sid)
{
	Message    *msg = inbox_by_sid(sid);

	if (msg && strcmp(msg->account, account_sid) == 0)
	{
		Text		body = {0};

		describe_message(&body, msg);
		answer_text(req, 200, "application/json", &body);
		journal_add(req, API_TWILIO, "read", OUTCOME_ACCEPTED, 200, 0, false, msg->to, msg->otp_id);
	}
	else
	{
		char		text[512];

		snprintf(text, sizeof(text), "The requested resource %.400s was not found", req->url);
		answer_error(req, 404, 20404, text);
		journal_add(req, API_TWILIO, "read", OUTCOME_REFUSED, 404, 20404, false, NULL, NULL);
	}
	message_unref(msg);
}

/* Answer a request if its address is one of Twilio's. */
bool
twilio_handle(Request *req)
{
	static const char start[] = "/2010-04-01/Accounts/";
	const char *p = req->url;
	const char *operation = "other";
	char		account_sid[40];
	char		sid[40];
	size_t		len;

	if (strncmp(p, start, sizeof(start) - 1) != 0)
		return false;
	p += sizeof(start) - 1;
	len = strcspn(p, "/");
	if (len == 0 || len >= sizeof(account_sid))
		return false;
	memcpy(account_sid, p, len);
	account_sid[len] = '\0';
	p += len;

	/* which of the two */
	sid[0] = '\0';
	if (strcmp(p, "/Messages.json") == 0 && request_is(req, "POST"))
		operation = "send";
	else if (strncmp(p, "/Messages/", 10) == 0 && request_is(req, "GET"))
	{
		p += 10;
		len = strcspn(p, "./");
		if (len < sizeof(sid) && strcmp(p + len, ".json") == 0)
		{
			memcpy(sid, p, len);
			sid[len] = '\0';
			operation = "read";
		}
	}

	if (settings.down)
	{
		word_error(req, 503, 20503, 0);
		journal_add(req, API_TWILIO, operation, OUTCOME_REFUSED, 503, 20503, false, NULL, NULL);
	}
	else if (!check_basic(req, account_sid))
	{
		word_error(req, 401, 20003, 0);
		journal_add(req, API_TWILIO, operation, OUTCOME_REFUSED, 401, 20003, false, NULL, NULL);
	}
	else if (sid[0])
		handle_read(req, account_sid, sid);
	else if (strcmp(operation, "send") != 0)
	{
		word_error(req, 404, 20404, 0);
		journal_add(req, API_TWILIO, operation, OUTCOME_REFUSED, 404, 20404, false, NULL, NULL);
	}
	else if (!is_form(req))
	{
		answer_error(req, 415, 0, "Unsupported Media Type");
		journal_add(req, API_TWILIO, operation, OUTCOME_REFUSED, 415, 0, false, NULL, NULL);
	}
	else
		handle_send(req, account_sid);
	return true;
}
