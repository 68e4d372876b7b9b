/*-------------------------------------------------------------------------
 *
 * receipt.c
 *	  The small object that what providers tell is boiled down to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"

#include "base/phone.h"
#include "channel/receipt.h"

/* Begin a digest */
void
digest_begin(ReceiptDigest *digest, const ReceiptSource *source)
{
	digest->source = *source;
	digest->updates = 0;
	digest->from[0] = '\0';
	initStringInfo(&digest->statuses);
	initStringInfo(&digest->templates);
	digest->restriction[0] = '\0';
	digest->restored = false;
}

/* Append a member that is a string, unless it is empty */
static void
append_member(StringInfo out, const char *key, const char *value)
{
	if (value == NULL || value[0] == '\0')
		return;
	appendStringInfoString(out, ",\"");
	appendStringInfoString(out, key);
	appendStringInfoString(out, "\":");
	json_quote(out, value);
}

/* Add a message's status */
void
digest_add_status(ReceiptDigest *digest, const char *id, int number, const char *from, const Receipt *receipt)
{
	static const char *const names[] = {"", "sent", "delivered", "failed"};
	StringInfo	out = &digest->statuses;
	char		sender[CHANNEL_MESSAGE_ID_SIZE];

	receipt_copy_word(sender, sizeof(sender), from);
	if (digest->from[0] == '\0')
		strlcpy(digest->from, sender, sizeof(digest->from));
	if (out->len > 0)
		appendStringInfoChar(out, ',');
	appendStringInfo(out, "{\"id\":\"%.*s\",\"status\":\"%s\"", OTP_ID_LENGTH, id, names[receipt->status]);

	/*
	 * Thousands of them wait in a row of the outbox: what is usual is left
	 * out
	 */
	if (number != 1)
		appendStringInfo(out, ",\"number\":%d", number);
	if (receipt->at != 0)
		appendStringInfo(out, ",\"at\":" INT64_FORMAT, receipt->at);
	if (receipt->code != 0)
		appendStringInfo(out, ",\"code\":%d", receipt->code);
	if (strcmp(sender, digest->from) != 0)
		append_member(out, "from", sender);
	append_member(out, "message_id", receipt->message_id);
	append_member(out, "detail", receipt->detail);
	append_member(out, "category", receipt->category);
	append_member(out, "price", receipt->price);
	append_member(out, "price_unit", receipt->price_unit);
	appendStringInfoChar(out, '}');
	digest->updates++;
}

/* Add a template's status */
void
digest_add_template(ReceiptDigest *digest, const char *name, const char *language,
					const char *status, const char *reason, const char *template_id)
{
	StringInfo	out = &digest->templates;

	if (out->len > 0)
		appendStringInfoChar(out, ',');
	appendStringInfoString(out, "{\"name\":");
	json_quote(out, name);
	append_member(out, "language", language);
	append_member(out, "status", status);
	append_member(out, "reason", reason);
	append_member(out, "template_id", template_id);
	appendStringInfoChar(out, '}');
	digest->updates++;
}

/* Set the account's restriction, or lift it */
void
digest_set_restriction(ReceiptDigest *digest, const char *words)
{
	strlcpy(digest->restriction, words, sizeof(digest->restriction));
	digest->restored = words[0] == '\0';
	digest->updates++;
}

/* Write a digest */
char *
digest_write(const ReceiptDigest *digest)
{
	StringInfoData out;

	if (digest->updates == 0)
		return NULL;

	initStringInfo(&out);
	appendStringInfo(&out, "{\"account\":%d,\"from\":", digest->source.account_id);
	if (digest->from[0] != '\0')
		json_quote(&out, digest->from);
	else
		appendStringInfoString(&out, "null");
	appendStringInfoString(&out, ",\"statuses\":[");
	appendBinaryStringInfo(&out, digest->statuses.data, digest->statuses.len);
	appendStringInfoChar(&out, ']');
	if (digest->templates.len > 0)
		appendStringInfo(&out, ",\"templates\":[%s]", digest->templates.data);
	append_member(&out, "restriction", digest->restriction);
	if (digest->restored)
		appendStringInfoString(&out, ",\"restored\":true");
	appendStringInfoChar(&out, '}');
	return out.data;
}

/* Copy printable ASCII */
void
receipt_copy_word(char *out, size_t size, const char *text)
{
	out[0] = '\0';
	if (text == NULL || strlen(text) >= size)
		return;
	for (const char *p = text; *p != '\0'; p++)
	{
		if (*p <= ' ' || *p > '~')
			return;
	}
	strlcpy(out, text, size);
}

/* Copy words */
void
receipt_copy_detail(char out[CHANNEL_DETAIL_SIZE], int code, const json_t *words, const json_t *more)
{
	Judgement	judgement;

	channel_begin(NULL, &judgement);
	judgement.provider_code = code;
	channel_add_detail(&judgement, "", words, "");
	channel_add_detail(&judgement, ": ", more, "");
	mask_digits(judgement.detail);
	strlcpy(out, judgement.detail, CHANNEL_DETAIL_SIZE);
}

/* Read a message's number */
bool
receipt_number(const char *text, int *number)
{
	int			value = 0;
	size_t		length = strlen(text);

	if (length == 0 || length > 5 || strspn(text, "0123456789") != length)
		return false;
	for (; *text != '\0'; text++)
		value = value * 10 + (*text - '0');
	if (value < 1 || value > PG_INT16_MAX)
		return false;
	*number = value;
	return true;
}

/* Check for a decimal number */
bool
receipt_is_decimal(const char *text)
{
	size_t		whole;
	size_t		fraction = 0;

	if (*text == '-')
		text++;
	whole = strspn(text, "0123456789");
	text += whole;
	if (*text == '.')
	{
		fraction = strspn(text + 1, "0123456789");
		if (fraction == 0)
			return false;
		text += fraction + 1;
	}
	return *text == '\0' && whole > 0 && whole + fraction < RECEIPT_WORD_SIZE - 2;
}
