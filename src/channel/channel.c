/*-------------------------------------------------------------------------
 *
 * channel.c
 *	  What the channels have in common: finding one, and judging answers.
 *
 * A provider's error code decides, by the channel's table. Where there is
 * none (gateways in between answer in HTML), the HTTP status does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "base/phone.h"
#include "channel/channel.h"

static const Channel *const channels[] = {&channel_meta, &channel_twilio};

/*
 * What an HTTP status means when the answer has no code that we can read.
 * A redirect is never followed: the account's base_url is wrong, or somebody
 * stands in between.
 */
static const ChannelCode statuses[] = {
	{300, 399, VERDICT_ACCOUNT, 0, 0},
	{401, 401, VERDICT_ACCOUNT, 0, 0},
	{403, 403, VERDICT_ACCOUNT, 0, 0},
	{408, 408, VERDICT_RETRY, 0, 0},	/* did not get all of the request */
	{425, 425, VERDICT_RETRY, 0, 0},	/* too early */
	{429, 429, VERDICT_RETRY, CODE_OVERLOADED, 0},
	{400, 499, VERDICT_REFUSED, 0, 0},
	/* The gateway gave up waiting: what is behind it may have worked on */
	{504, 504, VERDICT_RETRY, CODE_DOWN | CODE_AMBIGUOUS, 0},
	{500, 599, VERDICT_RETRY, CODE_DOWN, 0}
};

/* Find the channel */
const Channel *
channel_for(const char *channel_name, const char *provider)
{
	for (int i = 0; i < lengthof(channels); i++)
	{
		if (strcmp(channels[i]->name, channel_name) == 0 &&
			strcmp(channels[i]->provider, provider) == 0)
			return channels[i];
	}
	return NULL;
}

/*
 * Settings
 */

/* Read a string */
const char *
channel_string(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text != NULL && text[0] != '\0' ? text : NULL;
}

/* Check for word */
bool
channel_is_word(const char *text, const char *extra, size_t max)
{
	size_t		length = 0;

	if (text == NULL)
		return false;
	for (; text[length] != '\0'; length++)
	{
		char		c = text[length];

		if (length == max)
			return false;
		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			  (c >= '0' && c <= '9') || strchr(extra, c) != NULL))
			return false;
	}
	return length > 0;
}

/* Give the base of the account's addresses */
char *
channel_base_url(const ProviderAccount *account, const char *preset)
{
	const char *configured = channel_string(account->settings, "base_url");
	char	   *url = pstrdup(configured != NULL ? configured : preset);
	size_t		length = strlen(url);

	if (strncmp(url, "https://", 8) != 0 && strncmp(url, "http://", 7) != 0)
		return NULL;
	/* A path will follow, so nothing may come before it that ends paths */
	for (size_t i = 0; i < length; i++)
	{
		if (url[i] <= ' ' || url[i] > '~' || strchr("?#\\\"<>", url[i]) != NULL)
			return NULL;
	}
	while (length > 0 && url[length - 1] == '/')
		url[--length] = '\0';
	return url;
}

/*
 * Judgements
 */

/* Read an error code */
bool
channel_json_code(const json_t *value, int *code)
{
	if (json_is_integer(value))
	{
		json_int_t	number = json_integer_value(value);

		if (number < PG_INT32_MIN || number > PG_INT32_MAX)
			return false;
		*code = (int) number;
		return true;
	}
	if (json_is_string(value))
	{
		const char *text = json_string_value(value);
		size_t		length = json_string_length(value);
		int64		number = 0;

		/* Nine digits fit; providers' codes have at most seven */
		if (length == 0 || length > 9)
			return false;
		for (size_t i = 0; i < length; i++)
		{
			if (text[i] < '0' || text[i] > '9')
				return false;
			number = number * 10 + (text[i] - '0');
		}
		*code = (int) number;
		return true;
	}
	return false;
}

/* Find a number's row */
static const ChannelCode *
find_code(const ChannelCode *codes, int ncodes, int code)
{
	for (int i = 0; i < ncodes; i++)
	{
		if (code >= codes[i].first && code <= codes[i].last)
			return &codes[i];
	}
	return NULL;
}

/* Take over what a row says */
static void
apply_code(const ChannelCode *row, Judgement *out)
{
	out->verdict = row->verdict;
	out->ambiguous = (row->flags & CODE_AMBIGUOUS) != 0;
	out->overloaded = (row->flags & CODE_OVERLOADED) != 0;
	out->down = (row->flags & CODE_DOWN) != 0;
	out->fallback = (row->flags & CODE_FALLBACK) != 0;
	out->sender_refused = (row->flags & CODE_SENDER) != 0;
	out->min_delay_ms = row->min_delay_ms;
	if (row->flags & CODE_TEMPLATE)
		out->reason = "template_not_found";
}

/* Say whether another channel is left that could make up for this one */
static bool
has_fallback(const Channel *channel)
{
	return strcmp(channel->name, "whatsapp") == 0;
}

/* Begin a judgement */
void
channel_begin(const HttpResponse *response, Judgement *out)
{
	memset(out, 0, sizeof(*out));
	out->verdict = VERDICT_REFUSED;
	if (response != NULL)
		out->http_status = response->status;
}

/* Judge a request without an answer */
bool
channel_judge_silence(const Channel *channel, const HttpResponse *response, Judgement *out)
{
	if (response->outcome == HTTP_ANSWERED)
		return false;

	strlcpy(out->detail, response->error, sizeof(out->detail));

	/* The body broke off, but its status had said that it is a refusal */
	if (response->outcome == HTTP_UNKNOWN && response->status >= 300)
	{
		channel_judge_status(channel, response, out);
		return true;
	}

	out->verdict = VERDICT_RETRY;
	out->fallback = has_fallback(channel);
	out->down = true;
	out->ambiguous = (response->outcome == HTTP_UNKNOWN);
	return true;
}

/* Judge by status */
void
channel_judge_status(const Channel *channel, const HttpResponse *response, Judgement *out)
{
	const ChannelCode *row = find_code(statuses, lengthof(statuses), response->status);

	if (row != NULL)
		apply_code(row, out);
	else
	{
		/* A success that we cannot read: it may well have been sent */
		out->verdict = VERDICT_RETRY;
		out->ambiguous = true;
	}
	out->fallback = has_fallback(channel);
}

/* Judge by code */
void
channel_judge_answer(const Channel *channel, const HttpResponse *response,
					 int code, bool transient, Judgement *out)
{
	const ChannelCode *row = find_code(channel->codes, channel->ncodes, code);

	out->provider_code = code;
	if (row != NULL)
	{
		apply_code(row, out);
		return;
	}

	/* The provider did answer in its own words, so only these two say more */
	if (response->status == 429 || response->status >= 500)
		channel_judge_status(channel, response, out);
	else
	{
		out->verdict = transient ? VERDICT_RETRY : VERDICT_REFUSED;
		out->down = transient;
		out->fallback = has_fallback(channel);
	}
}

/* Judge a code from a receipt */
bool
channel_judge_code(const Channel *channel, int code, Judgement *out)
{
	const ChannelCode *row = find_code(channel->codes, channel->ncodes, code);

	channel_begin(NULL, out);
	out->provider_code = code;
	if (row != NULL)
		apply_code(row, out);
	else
		out->fallback = has_fallback(channel);
	channel_finish(NULL, out);
	return row != NULL;
}

/* Accept */
void
channel_accept(const char *message_id, Judgement *out)
{
	out->verdict = VERDICT_ACCEPTED;

	/* Kept whole or not at all: half an id would name another message */
	if (strlen(message_id) >= sizeof(out->message_id))
		return;
	for (const char *p = message_id; *p != '\0'; p++)
	{
		if (*p <= ' ' || *p > '~')
			return;
	}
	strlcpy(out->message_id, message_id, sizeof(out->message_id));
}

/* Append a character while there is room */
static void
append_char(Judgement *out, size_t *length, char c)
{
	if (*length < sizeof(out->detail) - 1)
	{
		out->detail[(*length)++] = c;
		out->detail[*length] = '\0';
	}
}

/*
 * Add words to detail
 *
 * As ASCII, because what is not may have no place in the database's encoding.
 */
void
channel_add_detail(Judgement *out, const char *before, const json_t *words, const char *after)
{
	const char *text = json_string_value(words);
	size_t		length = strlen(out->detail);

	if (text == NULL || text[0] == '\0')
		return;

	/*
	 * "(#131026) Message undeliverable": the code has its own place, and
	 * would be masked here. Not so 0, which stands for none there.
	 */
	if (out->provider_code != 0 && strncmp(text, "(#", 2) == 0 && strstr(text, ") ") != NULL)
		text = strstr(text, ") ") + 2;

	if (length > 0)
	{
		for (; *before != '\0'; before++)
			append_char(out, &length, *before);
	}
	for (; *text != '\0'; text++)
	{
		unsigned char c = (unsigned char) *text;

		if ((c & 0xc0) == 0x80)
			continue;			/* inside a character */
		append_char(out, &length, c >= 0x80 ? '?' : (c < ' ' || c == 0x7f) ? ' ' : (char) c);
	}
	for (; *after != '\0'; after++)
		append_char(out, &length, *after);
}

/* End a judgement */
void
channel_finish(const HttpResponse *response, Judgement *out)
{
	/* Providers quote the number, and could quote the code */
	mask_digits(out->detail);

	if (out->verdict == VERDICT_ACCEPTED)
	{
		out->reason = NULL;
		return;
	}

	if (out->detail[0] == '\0' && out->http_status != 0)
		snprintf(out->detail, sizeof(out->detail), "HTTP status %d", out->http_status);

	if (out->reason == NULL)
	{
		if (out->verdict == VERDICT_ACCOUNT ||
			((out->down || out->overloaded) && !out->ambiguous))
			out->reason = "provider_unavailable";
		else
			out->reason = "delivery_failed";
	}

	/* Who says when to come back is listened to */
	if (out->verdict != VERDICT_REFUSED && response != NULL && response->retry_after > 0)
		out->min_delay_ms = Max(out->min_delay_ms, response->retry_after * 1000);
}
