/*-------------------------------------------------------------------------
 *
 * twilio_receipt.c
 *	  What Twilio tells: the status of one message.
 *
 * A form, whose fields are signed together with the address it was sent to,
 * in the order of their names. The address is ours: its query says which
 * message it is about. Twilio leaves a port out of what it signs or does not,
 * as the mood takes it, so both are right.
 *
 * A body that is no form is hashed, and the hash part of the query.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"

#include "base/signature.h"
#include "channel/receipt.h"

/* Errors of messages have five digits */
#define MAX_ERROR_DIGITS 9

/*
 * Twilio sends some 30 fields. They are sorted before it is known who sends
 * them, and a quick sort has an order that makes it slow.
 */
#define MAX_FIELDS 1000

/*
 * Forms
 */

/* Give the value of a hexadecimal digit, or -1 */
static int
hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Decode a part of a form */
static char *
decode(const char *text, size_t length, size_t *decoded_length)
{
	char	   *out = palloc(length + 1);
	size_t		n = 0;

	for (size_t i = 0; i < length; i++)
	{
		if (text[i] == '+')
			out[n++] = ' ';
		else if (text[i] == '%' && i + 2 < length &&
				 hex_value(text[i + 1]) >= 0 && hex_value(text[i + 2]) >= 0)
		{
			out[n++] = (char) (hex_value(text[i + 1]) << 4 | hex_value(text[i + 2]));
			i += 2;
		}
		else
			out[n++] = text[i];
	}
	out[n] = '\0';
	*decoded_length = n;
	return out;
}

/* Take a form apart; what Twilio has signed ends before MAX_FIELDS */
static void
parse_form(Form *form, const char *text, size_t length)
{
	const char *end = text + length;
	int			n = 1;

	for (const char *p = text; p < end; p++)
		n += *p == '&';
	form->fields = palloc(sizeof(FormField) * Min(n, MAX_FIELDS));
	form->count = 0;
	while (text < end && form->count < MAX_FIELDS)
	{
		const char *next = memchr(text, '&', end - text);
		const char *field_end = next != NULL ? next : end;
		const char *equals = memchr(text, '=', field_end - text);
		FormField  *field;

		if (field_end > text)
		{
			field = &form->fields[form->count++];
			field->name = decode(text, (equals != NULL ? equals : field_end) - text, &field->name_length);
			if (equals == NULL)
				equals = field_end - 1;
			field->value = decode(equals + 1, field_end - equals - 1, &field->value_length);
		}
		text = next != NULL ? next + 1 : end;
	}
}

/* Find the last field of a name; NULL for none, and for what holds a NUL */
static const char *
form_get(const Form *form, const char *name)
{
	for (int i = form->count - 1; i >= 0; i--)
	{
		const FormField *field = &form->fields[i];

		if (field->name_length == strlen(name) && strcmp(field->name, name) == 0)
			return strlen(field->value) == field->value_length ? field->value : NULL;
	}
	return NULL;
}

/* Compare bytes */
static int
compare_bytes(const char *a, size_t a_length, const char *b, size_t b_length)
{
	int			order = memcmp(a, b, Min(a_length, b_length));

	if (order != 0)
		return order;
	return a_length < b_length ? -1 : a_length > b_length;
}

/* Compare fields by name, then by value */
static int
compare_fields(const void *a, const void *b)
{
	const FormField *x = a;
	const FormField *y = b;
	int			order = compare_bytes(x->name, x->name_length, y->name, y->name_length);

	return order != 0 ? order : compare_bytes(x->value, x->value_length, y->value, y->value_length);
}

/* Write a form as it is signed */
static void
write_signed(StringInfo out, Form *form)
{
	qsort(form->fields, form->count, sizeof(FormField), compare_fields);
	for (int i = 0; i < form->count; i++)
	{
		const FormField *field = &form->fields[i];

		/* What is there twice counts once */
		if (i > 0 && compare_fields(field - 1, field) == 0)
			continue;
		appendBinaryStringInfo(out, field->name, field->name_length);
		appendBinaryStringInfo(out, field->value, field->value_length);
	}
}

/*
 * The address
 */

/* Give an address with its port if it has none, and without if it has one */
static char *
other_port(const char *url)
{
	const char *host = strstr(url, "://");
	const char *end;
	const char *colon = NULL;
	const char *preset = strncmp(url, "https:", 6) == 0 ? ":443" : strncmp(url, "http:", 5) == 0 ? ":80" : "";

	if (host == NULL)
		return pstrdup(url);
	host += 3;
	end = host + strcspn(host, "/?");

	/*
	 * A user's name may have a colon behind it, and an address in brackets
	 * some within
	 */
	for (const char *p = host; p < end; p++)
	{
		if (*p == '@' || *p == ']')
			colon = NULL;
		else if (*p == ':')
			colon = p;
	}
	if (colon != NULL)
		return psprintf("%.*s%s", (int) (colon - url), url, end);
	return psprintf("%.*s%s%s", (int) (end - url), url, preset, end);
}

/* Take a request apart */
void
twilio_receipt_parse(TwilioReceipt *request, const char *url, const char *body, size_t length)
{
	const char *query;
	const char *hash;

	/* Twilio does not send what comes after a #, nor sign it */
	request->url = pnstrdup(url, strcspn(url, "#"));
	request->other_url = other_port(request->url);
	query = strchr(request->url, '?');
	query = query != NULL ? query + 1 : "";
	parse_form(&request->query, query, strlen(query));

	request->body = body;
	request->length = length;
	initStringInfo(&request->signed_form);
	hash = form_get(&request->query, "bodySHA256");
	request->hashed = hash != NULL;
	request->hash_differs = false;
	if (request->hashed)
	{
		char		right[SIGNATURE_HEX_LENGTH + 1];

		signature_plain_sha256(body, length, right);
		request->hash_differs = !signature_equal(hash, right);
		length = 0;
	}
	parse_form(&request->form, body, length);
	write_signed(&request->signed_form, &request->form);
}

/* Check a signature */
bool
twilio_receipt_signed(const TwilioReceipt *request, const char *signature, const char *secret)
{
	const char *urls[] = {request->url, request->other_url};
	bool		good = false;

	for (int i = 0; i < lengthof(urls); i++)
	{
		HashPart	parts[] = {
			{urls[i], strlen(urls[i])},
			{request->signed_form.data, request->signed_form.len}
		};
		char		right[SIGNATURE_BASE64_LENGTH + 1];

		signature_sha1(secret, parts, lengthof(parts), right);
		good |= signature_equal(signature, right);
	}
	return good && !request->hash_differs;
}

/*
 * Reading
 */

/* Name a status in our words */
ReceiptStatus
twilio_receipt_status(const char *status)
{
	static const struct
	{
		const char *name;
		ReceiptStatus status;
	}			names[] = {
		{"sent", RECEIPT_SENT},
		{"delivered", RECEIPT_DELIVERED},
		{"read", RECEIPT_DELIVERED},
		{"undelivered", RECEIPT_FAILED},	/* refused by the carrier */
		{"failed", RECEIPT_FAILED}, /* never sent */
		{"canceled", RECEIPT_FAILED}
	};

	for (int i = 0; status != NULL && i < lengthof(names); i++)
	{
		if (strcmp(status, names[i].name) == 0)
			return names[i].status;
	}
	return RECEIPT_NOTHING;
}

/* Give a value of a body */
static const char *
body_get(const TwilioReceipt *request, const json_t *object, const char *name)
{
	if (request->hashed)
		return json_member_string(object, name, CHANNEL_DETAIL_SIZE * 4);
	return form_get(&request->form, name);
}

/* Read an error's code and words */
static void
read_error(const TwilioReceipt *request, const json_t *object, Receipt *receipt)
{
	const char *code = body_get(request, object, "ErrorCode");
	const char *message = body_get(request, object, "ErrorMessage");
	size_t		digits = code != NULL ? strspn(code, "0123456789") : 0;
	json_t	   *words;

	if (digits > 0 && digits <= MAX_ERROR_DIGITS && code[digits] == '\0')
		receipt->code = atoi(code);

	/* NULL when they are not UTF-8: then there are none */
	words = message != NULL ? json_string(message) : NULL;
	receipt_copy_detail(receipt->detail, receipt->code, words, NULL);
	json_decref(words);
}

/* Read what is told of the message that the address names */
static void
read_body(ReceiptDigest *digest, const TwilioReceipt *request, const json_t *object)
{
	const char *id = form_get(&request->query, "otp_id");
	const char *number_text = form_get(&request->query, "number");
	const char *account = body_get(request, object, "AccountSid");
	const char *sid = body_get(request, object, "MessageSid");
	const char *status = body_get(request, object, "MessageStatus");
	pg_uuid_t	uuid;
	int			number;
	Receipt		receipt;

	if (status == NULL)
		status = body_get(request, object, "SmsStatus");
	if (sid == NULL)
		sid = body_get(request, object, "SmsSid");
	memset(&receipt, 0, sizeof(receipt));
	receipt.status = twilio_receipt_status(status);
	if (receipt.status == RECEIPT_NOTHING ||
		id == NULL || !ulid_parse(id, strlen(id), &uuid) ||
		number_text == NULL || !receipt_number(number_text, &number))
		return;

	/* Signed with this account's token, but told of another */
	if (account != NULL && digest->source.sender != NULL && strcmp(account, digest->source.sender) != 0)
		return;

	receipt_copy_word(receipt.message_id, sizeof(receipt.message_id), sid);
	if (receipt.status == RECEIPT_FAILED)
		read_error(request, object, &receipt);
	digest_add_status(digest, id, number, account, &receipt);
}

/* Read a request */
void
twilio_receipt_read(ReceiptDigest *digest, const TwilioReceipt *request)
{
	json_t	   *volatile object = request->hashed ? json_from_text(request->body, request->length) : NULL;

	/* jansson's memory is malloc's: free it on every path */
	PG_TRY();
	{
		read_body(digest, request, object);
	}
	PG_FINALLY();
	{
		json_decref(object);
	}
	PG_END_TRY();
}
