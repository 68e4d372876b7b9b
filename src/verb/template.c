/*-------------------------------------------------------------------------
 *
 * template.c
 *	  otp.create_template and otp.sync_templates: manage templates at Meta.
 *
 * Nothing is asked from here: a job is queued in the caller's transaction,
 * which the sender does after the commit. What came of it is in
 * otp.templates.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "base/json.h"
#include "base/limiter.h"
#include "store/queue.h"
#include "store/template.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_create_template);
EXPORTED_FUNCTION(otp_sync_templates);

/* Meta's limits */
#define MAX_MINUTES 90
#define MIN_TTL 30
#define MAX_TTL 900
#define MAX_BUTTON_CHARACTERS 25
#define MAX_PACKAGE_NAME 224
#define SIGNATURE_HASH_LENGTH 11

/* The arguments of otp.create_template, in their order */
enum
{
	ARG_NAME,
	ARG_LANGUAGE,
	ARG_MINUTES,
	ARG_RECOMMENDATION,
	ARG_BUTTON,
	ARG_BUTTON_TEXT,
	ARG_AUTOFILL_TEXT,
	ARG_PACKAGE_NAME,
	ARG_SIGNATURE_HASH,
	ARG_TERMS,
	ARG_TTL,
	ARG_VARIANT_OF,
	ARG_WORKSPACE
};

/* What is asked for; 0 and NULL: not given */
typedef struct Wish
{
	char	   *name;
	char	   *language;
	int			minutes;
	int			ttl;
	bool		recommendation;
	bool		terms;
	char	   *button;
	char	   *button_text;
	char	   *autofill_text;
	char	   *package_name;
	char	   *signature_hash;
	char	   *variant_of;
} Wish;

/* ---- the arguments ---- */

/* Raise for an argument */
static void
refuse(const char *argument, const char *hint)
{
	error_invalid_argument(psprintf("argument \"%s\" is not valid", argument), hint);
}

/* Check the name of a template */
static void
check_name(const char *argument, const char *name)
{
	if (name == NULL || name[0] == '\0' || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name))
		refuse(argument, "The name of a template has lower-case letters a to z, digits and underscores.");
}

/* Check a language: "en", "fil", "en_US", "zh_Hant_TW" */
static void
check_language(const char *language)
{
	size_t		n = strspn(language, "abcdefghijklmnopqrstuvwxyz");
	const char *rest = language + n;

	while (n == 2 || n == 3)
	{
		size_t		part;

		if (*rest == '\0')
			return;
		if (*rest != '_')
			break;
		part = strspn(rest + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789");
		if (part < 2 || part > 4)
			break;
		rest += 1 + part;
	}
	refuse("language", "It looks like en or en_US, as in Meta's list of languages.");
}

/* Check the words on a button */
static void
check_words(const char *argument, const char *words)
{
	if (words == NULL)
		return;
	for (const char *p = words; *p != '\0'; p++)
	{
		if ((unsigned char) *p < ' ' || *p == 0x7f)
			refuse(argument, "It is one line of text.");
	}
	if (words[0] == '\0' || pg_mbstrlen(words) > MAX_BUTTON_CHARACTERS)
		refuse(argument, "It has 1 to 25 characters.");
}

/* Check the name of an Android app: two or more words with dots between them */
static void
check_package_name(const char *name)
{
	int			words = 0;

	for (const char *p = name;; p++)
	{
		size_t		n = strspn(p, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");

		if (n == 0 || strchr("0123456789_", *p) != NULL)
			break;
		words++;
		p += n;
		if (*p == '\0' && words >= 2 && strlen(name) <= MAX_PACKAGE_NAME)
			return;
		if (*p != '.')
			break;
	}
	refuse("package_name", "It is the id of your Android app, such as com.example.app.");
}

/* Check what belongs to a button */
static void
check_button(const Wish *wish)
{
	bool		copy_code = strcmp(wish->button, "copy_code") == 0;
	bool		zero_tap = strcmp(wish->button, "zero_tap") == 0;

	if (!copy_code && !zero_tap && strcmp(wish->button, "one_tap") != 0)
		refuse("button", "It is copy_code, one_tap or zero_tap.");
	check_words("button_text", wish->button_text);
	check_words("autofill_text", wish->autofill_text);
	if (copy_code)
	{
		const char *given = wish->autofill_text != NULL ? "autofill_text" :
		wish->package_name != NULL ? "package_name" :
		wish->signature_hash != NULL ? "signature_hash" : NULL;

		if (given != NULL)
			error_invalid_argument(psprintf("argument \"%s\" does not go with button copy_code", given),
								   "It is for one_tap and zero_tap, which hand the code to an Android app.");
	}
	else
	{
		if (wish->package_name == NULL || wish->signature_hash == NULL)
			error_invalid_argument("this button needs package_name and signature_hash",
								   "They name the Android app that the code is handed to.");
		check_package_name(wish->package_name);
		if (strlen(wish->signature_hash) != SIGNATURE_HASH_LENGTH ||
			strspn(wish->signature_hash,
				   "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=") != SIGNATURE_HASH_LENGTH)
			refuse("signature_hash", "It is the app's signing key hash of 11 characters.");
	}
	if (zero_tap && !wish->terms)
		error_invalid_argument("button zero_tap needs zero_tap_terms_accepted",
							   "Read Meta's terms for zero-tap authentication, then give zero_tap_terms_accepted => true.");
	if (!zero_tap && wish->terms)
		error_invalid_argument("argument \"zero_tap_terms_accepted\" is for button zero_tap only", "Leave it out.");
}

/* Take the arguments that need no workspace */
static void
take_wish(FunctionCallInfo fcinfo, Wish *wish)
{
	memset(wish, 0, sizeof(*wish));
	wish->name = verb_text(fcinfo, ARG_NAME, "name", MAX_TEMPLATE);
	check_name("name", wish->name);
	wish->language = verb_text(fcinfo, ARG_LANGUAGE, "language", MAX_LANGUAGE);
	if (wish->language != NULL)
		check_language(wish->language);
	if (!PG_ARGISNULL(ARG_MINUTES))
	{
		wish->minutes = PG_GETARG_INT32(ARG_MINUTES);
		if (wish->minutes < 1 || wish->minutes > MAX_MINUTES)
			refuse("code_expiration_minutes", "It is 1 to 90, or NULL for a text that does not tell.");
	}
	wish->recommendation = PG_ARGISNULL(ARG_RECOMMENDATION) || PG_GETARG_BOOL(ARG_RECOMMENDATION);
	wish->button = verb_text(fcinfo, ARG_BUTTON, "button", NAMEDATALEN);
	if (wish->button == NULL)
		wish->button = pstrdup("copy_code");
	wish->button_text = verb_text(fcinfo, ARG_BUTTON_TEXT, "button_text", MAX_CONTEXT);
	wish->autofill_text = verb_text(fcinfo, ARG_AUTOFILL_TEXT, "autofill_text", MAX_CONTEXT);
	wish->package_name = verb_text(fcinfo, ARG_PACKAGE_NAME, "package_name", MAX_CONTEXT);
	wish->signature_hash = verb_text(fcinfo, ARG_SIGNATURE_HASH, "signature_hash", MAX_CONTEXT);
	wish->terms = !PG_ARGISNULL(ARG_TERMS) && PG_GETARG_BOOL(ARG_TERMS);
	check_button(wish);

	/* A message that comes when the code is over is no use to anybody */
	if (!PG_ARGISNULL(ARG_TTL))
	{
		wish->ttl = PG_GETARG_INT32(ARG_TTL);
		if (wish->ttl < MIN_TTL || wish->ttl > MAX_TTL)
			refuse("message_send_ttl_seconds", "It is 30 to 900 seconds.");
	}
	else if (wish->minutes > 0)
		wish->ttl = Min(wish->minutes * 60, MAX_TTL);

	wish->variant_of = verb_text(fcinfo, ARG_VARIANT_OF, "variant_of", MAX_TEMPLATE);
	if (wish->variant_of != NULL)
	{
		check_name("variant_of", wish->variant_of);
		if (strcmp(wish->variant_of, wish->name) == 0)
			refuse("variant_of", "A template cannot stand in for itself.");
		if (wish->minutes == 0)
			error_invalid_argument("a variant needs code_expiration_minutes",
								   "It is chosen in place of the other one by the minutes that its text tells.");
	}
}

/* ---- against what is there ---- */

/* Require an account whose templates can be managed */
static void
require_account(const Workspace *w)
{
	bool		has_waba;
	int32		account_id = template_account(w->workspace_id, &has_waba);

	if (account_id == 0 || !has_waba)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 account_id == 0
				 ? errmsg("workspace \"%s\" has no Meta account", w->name)
				 : errmsg("the Meta account of workspace \"%s\" has no waba_id", w->name),
				 errhint("Templates belong to a WhatsApp Business Account: call otp.configure_meta with its waba_id."),
				 errhidestmt(true),
				 errhidecontext(true)));
}

/* Require that it can be created, as far as we know */
static void
require_creatable(const Workspace *w, const Wish *wish)
{
	bool		is_variant;
	char	   *status;

	if (wish->variant_of != NULL)
	{
		status = template_lock(w->workspace_id, wish->variant_of, wish->language, &is_variant);
		if (status == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("there is no template \"%s\" in language \"%s\"", wish->variant_of, wish->language),
					 errhint("A variant stands in for a template of its workspace and language, which must be in otp.templates."),
					 errhidestmt(true),
					 errhidecontext(true)));
		if (is_variant)
			refuse("variant_of", "That template is a variant itself: name the one that is asked for.");
	}

	/* What is in use stays so: creating it again would not change it, either */
	status = template_lock(w->workspace_id, wish->name, wish->language, &is_variant);
	if (status != NULL && strcmp(status, "approved") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("template \"%s\" in language \"%s\" is there, and approved", wish->name, wish->language),
				 errhint("Choose another name. If it was deleted at Meta, otp.sync_templates finds that out."),
				 errhidestmt(true),
				 errhidecontext(true)));
}

/* ---- the jobs ---- */

/* Append a member that is a string, if it is given */
static void
append_text(StringInfo out, const char *key, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(out, ",\"%s\":", key);
	json_quote(out, value);
}

/* Append a member that is a number, if it is given */
static void
append_number(StringInfo out, const char *key, int value)
{
	if (value != 0)
		appendStringInfo(out, ",\"%s\":%d", key, value);
}

/* Have the sender create it */
static void
queue_creation(const Workspace *w, const Wish *wish)
{
	StringInfoData payload;

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"do\":\"create_template\"");
	append_text(&payload, "name", wish->name);
	append_text(&payload, "language", wish->language);
	append_number(&payload, "code_expiration_minutes", wish->minutes);
	appendStringInfo(&payload, ",\"add_security_recommendation\":%s", wish->recommendation ? "true" : "false");
	append_text(&payload, "button", wish->button);
	append_text(&payload, "button_text", wish->button_text);
	append_text(&payload, "autofill_text", wish->autofill_text);
	append_text(&payload, "package_name", wish->package_name);
	append_text(&payload, "signature_hash", wish->signature_hash);
	if (wish->terms)
		appendStringInfoString(&payload, ",\"zero_tap_terms_accepted\":true");
	append_number(&payload, "message_send_ttl_seconds", wish->ttl);
	appendStringInfoChar(&payload, '}');
	queue_payload(OUTBOX_JOB, w->workspace_id, payload.data);
	pfree(payload.data);
}

/* Create a template */
Datum
otp_create_template(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	const Workspace *w;
	Wish		wish;
	char	   *workspace;

	owner_require("create_template");
	take_wish(fcinfo, &wish);
	workspace = verb_text(fcinfo, ARG_WORKSPACE, "workspace", NAMEDATALEN);

	verb_begin(&scope, "create_template", VERB_WRITES);
	w = workspace_named(workspace);
	if (wish.language == NULL)
	{
		wish.language = pstrdup(w->default_language);
		check_language(wish.language);
	}
	require_account(w);
	require_creatable(w, &wish);

	/* Last, so that a refused call takes nothing from it */
	limiter_take_job(w->workspace_id);
	template_request(w->workspace_id, wish.name, wish.language, wish.minutes, wish.variant_of);
	queue_creation(w, &wish);
	wake_at_commit();
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Read the statuses of templates */
Datum
otp_sync_templates(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	const Workspace *w;
	char	   *workspace;

	owner_require("sync_templates");
	workspace = verb_text(fcinfo, 0, "workspace", NAMEDATALEN);

	verb_begin(&scope, "sync_templates", VERB_WRITES);
	w = workspace_named(workspace);
	require_account(w);
	limiter_take_job(w->workspace_id);
	queue_payload(OUTBOX_JOB, w->workspace_id, "{\"do\":\"sync_templates\"}");
	wake_at_commit();
	verb_end(&scope);
	PG_RETURN_VOID();
}
