/*-------------------------------------------------------------------------
 *
 * meta_receipt.c
 *	  What Meta tells: statuses of messages, of templates, of the account.
 *
 * One body can have up to 1000 updates and 3 MB, of several kinds and for
 * several numbers. Everything but what is needed is optional, and whatever is
 * not known is passed over: Meta adds fields, statuses and events at will.
 * Messages are recognised by biz_opaque_callback_data alone; phone numbers
 * can be missing, or differ from those sent to.
 *
 * Meta calls one address for all numbers and business accounts that an app
 * serves. Each may be an account of its own here: then it gets what is its,
 * whichever of them was named.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "base/signature.h"
#include "channel/receipt.h"

#define SIGNATURE_PREFIX "sha256="

/* A moment later than 9999 is no time in seconds */
#define MAX_UNIX_TIME INT64CONST(253402300799)

/* Longest name and language of a template, of Meta */
#define MAX_TEMPLATE_NAME 512
#define MAX_LANGUAGE_SIZE 25

/* Meta puts up to 1000 updates into a body; the sender writes each of a template by itself */
#define MAX_TEMPLATES 1000

/* Values in a body: 1000 updates have some 50,000, and each can take 250 bytes of memory */
#define MAX_VALUES 250000

/* Check a signature */
bool
meta_receipt_signed(const char *signature, const char *secret, const char *body, size_t length)
{
	HashPart	part = {body, length};
	char		right[sizeof(SIGNATURE_PREFIX) + SIGNATURE_HEX_LENGTH] = SIGNATURE_PREFIX;

	signature_sha256(secret, &part, 1, right + strlen(SIGNATURE_PREFIX));
	return signature_equal(signature, right);
}

/*
 * Reading the text
 */

/* Read four hexadecimal digits */
static bool
read_hex(const char *text, unsigned int *value)
{
	*value = 0;
	for (int i = 0; i < 4; i++)
	{
		char		c = text[i];

		*value <<= 4;
		if (c >= '0' && c <= '9')
			*value += c - '0';
		else if (c >= 'a' && c <= 'f')
			*value += c - 'a' + 10;
		else if (c >= 'A' && c <= 'F')
			*value += c - 'A' + 10;
		else
			return false;
	}
	return true;
}

/* Read \uXXXX, if it is all there */
static bool
read_escape(const char *text, const char *end, unsigned int *value)
{
	return end - text >= 6 && text[0] == '\\' && text[1] == 'u' && read_hex(text + 2, value);
}

/*
 * Mend a text that is not strictly JSON
 *
 * Somebody's name that was cut within a character must not cost us the other
 * updates of the body. So what a strict parser does not take becomes a
 * stand-in of the same length: half characters, NULs, control characters.
 */
static void
mend(char *text, size_t length)
{
	char	   *end = text + length;

	while (text < end)
	{
		unsigned char c = (unsigned char) *text;
		unsigned int value;
		unsigned int other;
		int			size = 1;

		if (read_escape(text, end, &value))
		{
			size = 6;
			if (value >= 0xd800 && value <= 0xdbff &&
				read_escape(text + 6, end, &other) && other >= 0xdc00 && other <= 0xdfff)
				size = 12;
			else if (value == 0 || (value >= 0xd800 && value <= 0xdfff))
				memcpy(text + 2, "fffd", 4);
		}
		else if (c == '\\')
			size = 2;
		else if (c < ' ')
			*text = ' ';
		else if (c >= 0x80)
		{
			size = pg_encoding_verifymbchar(PG_UTF8, text, (int) (end - text));
			if (size < 1)
			{
				*text = '?';
				size = 1;
			}
		}
		text += Min(size, end - text);
	}
}

/* Has a body no more values than memory can bear? */
static bool
is_bearable(const char *body, size_t length)
{
	bool		quoted = false;
	int			values = 0;

	for (size_t i = 0; i < length; i++)
	{
		char		c = body[i];

		if (c == '"')
			quoted = !quoted;
		else if (quoted)
			i += c == '\\';		/* with what it escapes */
		else if (c == '{' || c == '[' || c == ',')
			values++;
	}
	return values <= MAX_VALUES;
}

/* Parse a text; NULL when it is not valid */
static json_t *
parse_strictly(const char *text, size_t length)
{
	json_error_t error;
	json_t	   *root;

	memset(&error, 0, sizeof(error));
	root = json_loadb(text, length, 0, &error);

	/*
	 * A lack of memory, of which jansson often has no words, is no fault of
	 * the text: let the provider come again
	 */
	if (root == NULL && (error.text[0] == '\0' || json_error_code(&error) == json_error_out_of_memory))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("A receipt could not be read."),
				 errhidestmt(true),
				 errhidecontext(true)));
	return root;
}

/* Parse a body */
static json_t *
parse(const char *body, size_t length)
{
	json_t	   *root;
	char	   *copy;

	if (length == 0 || !is_bearable(body, length))
		return NULL;
	root = parse_strictly(body, length);
	if (root != NULL)
		return root;
	copy = palloc(length);
	memcpy(copy, body, length);
	mend(copy, length);
	root = parse_strictly(copy, length);
	pfree(copy);
	return root;
}

/* Give a string without a NUL in it; anything else is NULL */
static const char *
word_of(const json_t *object, const char *key)
{
	return json_member_string(object, key, CHANNEL_DETAIL_SIZE * 4);
}

/* Is a member that string? */
static bool
member_is(const json_t *object, const char *key, const char *value)
{
	const char *text = word_of(object, key);

	return text != NULL && strcmp(text, value) == 0;
}

/* Read a time in seconds, as number or string; 0 when it is none */
static int64
read_time(const json_t *value)
{
	int64		time = 0;

	if (json_is_integer(value))
		time = json_integer_value(value);
	else if (json_is_real(value) && json_real_value(value) > 0 && json_real_value(value) < MAX_UNIX_TIME)
		time = (int64) json_real_value(value);
	else if (json_is_string(value))
	{
		const char *text = json_string_value(value);
		size_t		digits = strspn(text, "0123456789");

		if (digits == 0 || digits > 12 || (text[digits] != '\0' && text[digits] != '.'))
			return 0;
		for (size_t i = 0; i < digits; i++)
			time = time * 10 + (text[i] - '0');
	}
	return time > 0 && time <= MAX_UNIX_TIME ? time : 0;
}

/*
 * Whose it is
 */

/* The digests that an update goes to */
typedef struct Owners
{
	ReceiptDigest *digests[RECEIPT_SIBLINGS_MAX + 1];
	int			count;
} Owners;

/* Give the digest of the account named */
static ReceiptDigest *
named_digest(const MetaReceipt *receipt)
{
	return linitial(receipt->digests);
}

/* Begin an account's digest */
static ReceiptDigest *
add_digest(MetaReceipt *receipt, const ReceiptSource *source)
{
	ReceiptDigest *digest = palloc(sizeof(ReceiptDigest));

	digest_begin(digest, source);
	receipt->digests = lappend(receipt->digests, digest);
	return digest;
}

/* Find an account's digest, or begin it */
static ReceiptDigest *
digest_of(MetaReceipt *receipt, const ReceiptSource *source)
{
	ListCell   *cell;

	foreach(cell, receipt->digests)
	{
		ReceiptDigest *digest = lfirst(cell);

		if (digest->source.account_id == source->account_id)
			return digest;
	}
	return add_digest(receipt, source);
}

/* Add the other accounts that a number or a business account is of */
static void
add_siblings(MetaReceipt *receipt, bool waba, const char *id, Owners *owners)
{
	ReceiptSource siblings[RECEIPT_SIBLINGS_MAX];
	int			n = receipt->find_siblings(receipt->arg, waba, id, siblings);

	for (int i = 0; i < n; i++)
	{
		ReceiptDigest *digest = digest_of(receipt, &siblings[i]);
		bool		known = false;

		for (int k = 0; k < owners->count; k++)
			known |= owners->digests[k] == digest;
		if (!known)
			owners->digests[owners->count++] = digest;
	}
}

/*
 * Find whose messages go through a number: without anybody else, the named
 * account's. A workspace can send with a number of its own through an account
 * that has another: so there may be several.
 */
static void
find_owners_of_number(MetaReceipt *receipt, const char *number, Owners *owners)
{
	ReceiptDigest *named = named_digest(receipt);

	owners->count = 0;
	if (number != NULL && named->source.sender != NULL && strcmp(number, named->source.sender) == 0)
		owners->digests[owners->count++] = named;
	if (number != NULL)
		add_siblings(receipt, false, number, owners);
	if (owners->count == 0)
		owners->digests[owners->count++] = named;
}

/*
 * Find whose templates and troubles those of a business account are
 *
 * All of its numbers share them. They are rare enough to look for those every
 * time.
 */
static void
find_owners_of_waba(MetaReceipt *receipt, const char *waba_id, Owners *owners)
{
	ReceiptDigest *named = named_digest(receipt);

	owners->count = 0;
	if (waba_id == NULL || named->source.waba_id == NULL || strcmp(waba_id, named->source.waba_id) == 0)
		owners->digests[owners->count++] = named;
	if (waba_id != NULL)
		add_siblings(receipt, true, waba_id, owners);
}

/*
 * Statuses of messages
 */

/* Read the number of our message out of what we gave along: "otp_...", "otp_.../3" */
static bool
read_opaque(const char *opaque, int *number)
{
	pg_uuid_t	id;
	size_t		length;

	if (opaque == NULL)
		return false;
	length = strlen(opaque);
	if (length < OTP_ID_LENGTH || !ulid_parse(opaque, OTP_ID_LENGTH, &id))
		return false;
	*number = 1;
	if (length == OTP_ID_LENGTH)
		return true;
	return opaque[OTP_ID_LENGTH] == '/' && receipt_number(opaque + OTP_ID_LENGTH + 1, number);
}

/* Read why a message failed: the first error that has a code */
static void
read_errors(const json_t *errors, Receipt *receipt)
{
	const json_t *chosen = NULL;
	const json_t *error;
	const json_t *more;
	const json_t *words;
	size_t		i;

	json_array_foreach(errors, i, error)
	{
		if (channel_json_code(json_object_get(error, "code"), &receipt->code))
		{
			chosen = error;
			break;
		}
		if (chosen == NULL)
			chosen = error;
	}
	words = json_object_get(chosen, "message");
	if (!json_is_string(words))
		words = json_object_get(chosen, "title");
	more = json_object_get(chosen, "error_data");
	if (!json_is_string(more))
		more = json_object_get(more, "details");
	receipt_copy_detail(receipt->detail, receipt->code, words, more);
}

/* Read a message's status: its id in ours, its number, and what is told; false when it is of no use */
static bool
read_status(const json_t *status, const char **id, int *number, Receipt *receipt)
{
	static const struct
	{
		const char *name;
		ReceiptStatus status;
	}			names[] = {
		{"sent", RECEIPT_SENT},
		{"delivered", RECEIPT_DELIVERED},
		{"read", RECEIPT_DELIVERED},	/* when both coincide, this is all */
		{"played", RECEIPT_DELIVERED},
		{"failed", RECEIPT_FAILED}
	};
	const char *name = word_of(status, "status");

	*id = word_of(status, "biz_opaque_callback_data");
	if (name == NULL || !read_opaque(*id, number))
		return false;
	memset(receipt, 0, sizeof(*receipt));
	for (int i = 0; i < lengthof(names); i++)
	{
		if (strcmp(name, names[i].name) == 0)
			receipt->status = names[i].status;
	}
	if (receipt->status == RECEIPT_NOTHING)
		return false;

	receipt->at = read_time(json_object_get(status, "timestamp"));
	receipt_copy_word(receipt->message_id, sizeof(receipt->message_id), word_of(status, "id"));
	receipt_copy_word(receipt->category, sizeof(receipt->category),
					  word_of(json_object_get(status, "pricing"), "category"));
	if (receipt->status == RECEIPT_FAILED)
		read_errors(json_object_get(status, "errors"), receipt);
	return true;
}

/* Read a change of messages */
static void
read_messages(MetaReceipt *receipt, const json_t *value)
{
	const char *sender = word_of(json_object_get(value, "metadata"), "phone_number_id");
	const json_t *statuses = json_object_get(value, "statuses");
	const json_t *status;
	size_t		i;
	Owners		owners = {.count = 0};

	json_array_foreach(statuses, i, status)
	{
		const char *id;
		int			number;
		Receipt		told;

		if (!read_status(status, &id, &number, &told))
			continue;
		if (owners.count == 0)
			find_owners_of_number(receipt, sender, &owners);
		for (int n = 0; n < owners.count; n++)
			digest_add_status(owners.digests[n], id, number, sender, &told);
		receipt->updates++;
	}
}

/*
 * Statuses of templates
 */

/* Name a status by its event, in our words; NULL when it says nothing of it */
static const char *
template_status(const json_t *value)
{
	static const struct
	{
		const char *event;
		const char *status;
	}			events[] = {
		{"APPROVED", "approved"},
		{"REINSTATED", "approved"},
		{"UNARCHIVED", "approved"},
		{"ARCHIVED", "archived"},
		{"DELETED", "deleted"},
		{"DISABLED", "disabled"},
		{"IN_APPEAL", "in_appeal"},
		{"LIMIT_EXCEEDED", "limit_exceeded"},
		{"LOCKED", "locked"},
		{"PAUSED", "paused"},
		{"PENDING", "pending"},
		{"PENDING_DELETION", "pending_deletion"},
		{"REJECTED", "rejected"}
	};

	/* FLAGGED is a warning: it can still be sent */
	if (member_is(value, "event", "PAUSED") && member_is(json_object_get(value, "other_info"), "title", "UNPAUSE"))
		return "approved";
	for (int i = 0; i < lengthof(events); i++)
	{
		if (member_is(value, "event", events[i].event))
			return events[i].status;
	}
	return NULL;
}

/* Read a change of a template */
static void
read_template(MetaReceipt *receipt, const char *waba_id, const json_t *value)
{
	Owners		owners;
	const char *name = json_member_string(value, "message_template_name", MAX_TEMPLATE_NAME);
	const char *language = word_of(value, "message_template_language");
	const char *status = template_status(value);
	const json_t *id = json_object_get(value, "message_template_id");
	const json_t *reason = json_object_get(value, "reason");
	char		language_code[MAX_LANGUAGE_SIZE];
	char		detail[CHANNEL_DETAIL_SIZE];
	char		id_text[CHANNEL_MESSAGE_ID_SIZE] = "";

	/* Others of the account's may have names that no row of ours can have */
	if (status == NULL || name == NULL || receipt->templates == MAX_TEMPLATES ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name) ||
		!channel_is_word(language, "_-", sizeof(language_code) - 1))
		return;

	/* "en-US" in some, "en_US" in others */
	strlcpy(language_code, language, sizeof(language_code));
	for (char *p = language_code; *p != '\0'; p++)
	{
		if (*p == '-')
			*p = '_';
	}
	if (json_is_integer(id))
		snprintf(id_text, sizeof(id_text), INT64_FORMAT, (int64) json_integer_value(id));
	else
		receipt_copy_word(id_text, sizeof(id_text), word_of(value, "message_template_id"));

	if (!json_is_string(reason) || strcmp(json_string_value(reason), "NONE") == 0)
		reason = json_object_get(json_object_get(value, "rejection_info"), "reason");
	receipt_copy_detail(detail, 0, reason, NULL);

	find_owners_of_waba(receipt, waba_id, &owners);
	for (int n = 0; n < owners.count; n++)
		digest_add_template(owners.digests[n], name, language_code, status, detail, id_text);
	receipt->updates += owners.count > 0;
	receipt->templates += owners.count > 0;
}

/*
 * The account
 */

/* Does Meta not let the account send what codes come in? Names what it says. */
static const char *
restriction_of(const json_t *value)
{
	const json_t *restrictions = json_object_get(value, "restriction_info");
	const json_t *restriction;
	size_t		i;

	/* Of calls, of answers to customers, of new numbers: none of our business */
	json_array_foreach(restrictions, i, restriction)
	{
		if (member_is(restriction, "restriction_type", "RESTRICTED_BIZ_INITIATED_MESSAGING"))
			return "may not start conversations";
	}
	return json_array_size(restrictions) == 0 ? "restricted" : NULL;
}

/* Read a change of the account */
static void
read_account(MetaReceipt *receipt, const char *waba_id, const json_t *value)
{
	Owners		owners;
	char		words[CHANNEL_DETAIL_SIZE] = "";
	const json_t *ban = json_object_get(value, "ban_info");
	const json_t *violation = json_object_get(value, "violation_info");
	const char *event = word_of(value, "event");
	const char *restriction = NULL;
	bool		restored = false;

	if (event == NULL)
		return;
	if (strcmp(event, "DISABLED_UPDATE") == 0)
	{
		/* One that is only announced, SCHEDULE_FOR_DISABLE, stops nothing yet */
		if (member_is(ban, "waba_ban_state", "DISABLE"))
			restriction = "disabled";
		restored = member_is(ban, "waba_ban_state", "REINSTATE");
	}
	else if (strcmp(event, "ACCOUNT_RESTRICTION") == 0)
		restriction = restriction_of(value);
	else if (strcmp(event, "ACCOUNT_VIOLATION") == 0)
	{
		/* A warning, unless something follows from it */
		if (json_is_array(json_object_get(value, "restriction_info")))
			restriction = restriction_of(value);
	}
	else if (strcmp(event, "ACCOUNT_DELETED") == 0)
		restriction = "deleted";
	else if (strcmp(event, "ACCOUNT_OFFBOARDED") == 0)
		restriction = "offboarded";
	else if (strcmp(event, "ACCOUNT_RECONNECTED") == 0 || strcmp(event, "ACCOUNT_REINSTATED") == 0)
		restored = true;

	if (restriction == NULL && !restored)
		return;
	if (restriction != NULL)
	{
		char		why[CHANNEL_DETAIL_SIZE];

		receipt_copy_detail(why, 0, json_object_get(violation, "violation_type"), NULL);
		snprintf(words, sizeof(words), "WhatsApp Business Account: %s (%s%s%.100s)",
				 restriction, event, why[0] != '\0' ? ", " : "", why);
	}

	find_owners_of_waba(receipt, waba_id, &owners);
	for (int n = 0; n < owners.count; n++)
		digest_set_restriction(owners.digests[n], words);
	receipt->updates += owners.count > 0;
}

/* Read a change */
static void
read_change(MetaReceipt *receipt, const char *waba_id, const json_t *change)
{
	const json_t *value = json_object_get(change, "value");

	if (member_is(change, "field", "messages"))
		read_messages(receipt, value);
	else if (member_is(change, "field", "message_template_status_update"))
		read_template(receipt, waba_id, value);
	else if (member_is(change, "field", "account_update"))
		read_account(receipt, waba_id, value);
}

/* Read a body */
void
meta_receipt_read(MetaReceipt *receipt, const ReceiptSource *named,
				  ReceiptSiblings find_siblings, void *arg,
				  const char *body, size_t length)
{
	json_t	   *volatile root = parse(body, length);

	memset(receipt, 0, sizeof(*receipt));
	receipt->find_siblings = find_siblings;
	receipt->arg = arg;

	/* jansson's memory is malloc's: free it on every path */
	PG_TRY();
	{
		const json_t *entries = NULL;
		const json_t *entry;
		const json_t *change;
		size_t		i;
		size_t		j;

		(void) add_digest(receipt, named);
		if (member_is(root, "object", "whatsapp_business_account"))
			entries = json_object_get(root, "entry");
		json_array_foreach(entries, i, entry)
		{
			const char *waba_id = word_of(entry, "id");
			const json_t *changes = json_object_get(entry, "changes");

			json_array_foreach(changes, j, change)
			{
				CHECK_FOR_INTERRUPTS();
				read_change(receipt, waba_id, change);
			}
		}
	}
	PG_FINALLY();
	{
		json_decref(root);
	}
	PG_END_TRY();
}
