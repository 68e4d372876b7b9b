/*-------------------------------------------------------------------------
 *
 * configure.c
 *	  otp.configure_meta and otp.configure_twilio: set provider accounts up.
 *
 * Both are one table of arguments each. NULL leaves a value as it is, an
 * empty string takes it away. A signing secret that is replaced stays valid
 * as the previous one, because the provider goes on using it for a while.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <ctype.h>

#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "base/guc.h"
#include "base/json.h"
#include "base/phone.h"
#include "store/account.h"
#include "verb/configure.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_configure_meta);
EXPORTED_FUNCTION(otp_configure_twilio);

/* Longest value of a setting or secret; Meta's tokens have some 200 to 300 bytes */
#define MAX_VALUE 4096

typedef enum ArgumentKind
{
	SETTING,
	SECRET,
	SECRET_FILE					/* the secret of the same key, from a file */
} ArgumentKind;

typedef struct Argument
{
	const char *name;			/* as in SQL */
	const char *key;			/* in settings or secrets */
	ArgumentKind kind;
	bool		keep_previous;	/* as key + "_previous" */
	const char *(*defect) (const char *value);	/* what is wrong with it, or
												 * NULL */
} Argument;

/* Check a number of digits only */
static const char *
digits_defect(const char *value)
{
	if (strspn(value, "0123456789") != strlen(value) || strlen(value) > 32)
		return "It is a number of up to 32 digits.";
	return NULL;
}

/* Check an API version */
static const char *
version_defect(const char *value)
{
	size_t		n = strspn(value + 1, "0123456789");

	if (value[0] != 'v' || n == 0 || n > 3 || strcmp(value + 1 + n, ".0") != 0)
		return "It looks like v25.0.";
	return NULL;
}

/* Check the base of a URL */
static const char *
url_defect(const char *value)
{
	const char *rest;

	if (strncmp(value, "https://", 8) == 0)
		rest = value + 8;
	else if (strncmp(value, "http://", 7) == 0)
	{
		if (!otp_allow_insecure_http)
			return "It must begin with https://; http:// is for tests, with otp.allow_insecure_http on.";
		rest = value + 7;
	}
	else
		return "It must begin with https://.";
	if (*rest == '\0' || *rest == '/' || strpbrk(rest, "@?#\\ \t\r\n") != NULL)
		return "It is a scheme, a host, perhaps a port and a path; no user, query or fragment.";
	for (const char *p = rest; *p; p++)
		if ((unsigned char) *p < 0x21 || (unsigned char) *p > 0x7e)
			return "It may have printable ASCII characters only.";
	return NULL;
}

/* Check the URL of callbacks, which may have a query */
static const char *
callback_defect(const char *value)
{
	if (strncmp(value, "https://", 8) != 0 && strncmp(value, "http://", 7) != 0)
		return "It is the public URL of the receiver, https://...";
	for (const char *p = value; *p; p++)
		if ((unsigned char) *p < 0x21 || (unsigned char) *p > 0x7e)
			return "It may have printable ASCII characters only.";
	return NULL;
}

/* Check a secret: it goes into a header */
static const char *
secret_defect(const char *value)
{
	for (const char *p = value; *p; p++)
		if ((unsigned char) *p < 0x21 || (unsigned char) *p > 0x7e)
			return "It may have printable ASCII characters only, without spaces.";
	return NULL;
}

/* Check a verify token: a dot would be lost behind PostgREST */
static const char *
verify_token_defect(const char *value)
{
	if (strchr(value, '.') != NULL)
		return "It may not have a dot.";
	return secret_defect(value);
}

/* Check a Twilio SID */
static const char *
sid_defect(const char *value, const char *prefix)
{
	if (strncmp(value, prefix, 2) != 0 || strlen(value) != 34 ||
		strspn(value + 2, "0123456789abcdefABCDEF") != 32)
		return psprintf("It is %s and 32 hexadecimal digits.", prefix);
	return NULL;
}

/* Check an account's SID */
static const char *
account_sid_defect(const char *value)
{
	return sid_defect(value, "AC");
}

/* Check an API key's SID */
static const char *
api_key_sid_defect(const char *value)
{
	return sid_defect(value, "SK");
}

/* Check a messaging service's SID */
static const char *
service_sid_defect(const char *value)
{
	return sid_defect(value, "MG");
}

/* Check a sender: a number, a short code, or a name */
static const char *
sender_defect(const char *value)
{
	size_t		length = strlen(value);

	if (value[0] == '+')
		return phone_defect(value, length) != NULL ? "It is a phone number in E.164 format, a short code, or a name." : NULL;

	/* Alphanumeric sender ids: GSM 03.40 gives them 11 characters */
	if (length > 11)
		return "A sender's name has up to 11 characters.";
	for (const char *p = value; *p; p++)
		if (!isalnum((unsigned char) *p) && *p != ' ' && *p != '-' && *p != '_' && *p != '&' && *p != '+')
			return "A sender's name has letters, digits and spaces.";
	return NULL;
}

/* Check a sender in place of the account's own */
const char *
configure_sender_defect(const char *provider, const char *value)
{
	if (value[0] == '\0')
		return "NULL stands for the account's own.";
	if (strcmp(provider, "meta") == 0)
		return digits_defect(value);

	/* A name is shorter than a SID */
	if (strncmp(value, "MG", 2) == 0 && strlen(value) > 11)
		return service_sid_defect(value);
	return sender_defect(value);
}

/* Check whether Twilio keeps the words */
static const char *
retention_defect(const char *value)
{
	return strcmp(value, "retain") == 0 || strcmp(value, "discard") == 0 ? NULL : "It is retain or discard.";
}

/* Check Twilio's guard against pumping */
static const char *
risk_check_defect(const char *value)
{
	return strcmp(value, "enable") == 0 || strcmp(value, "disable") == 0 ? NULL : "It is enable or disable.";
}

static const Argument meta_arguments[] = {
	{"phone_number_id", "phone_number_id", SETTING, false, digits_defect},
	{"access_token", "access_token", SECRET, false, secret_defect},
	{"waba_id", "waba_id", SETTING, false, digits_defect},
	{"app_secret", "app_secret", SECRET, true, secret_defect},
	{"verify_token", "verify_token", SECRET, false, verify_token_defect},
	{"api_version", "api_version", SETTING, false, version_defect},
	{"base_url", "base_url", SETTING, false, url_defect},
	{"access_token_file", "access_token", SECRET_FILE, false, secret_defect},
	{"app_secret_file", "app_secret", SECRET_FILE, true, secret_defect},
	{"verify_token_file", "verify_token", SECRET_FILE, false, verify_token_defect},
};

static const Argument twilio_arguments[] = {
	{"account_sid", "account_sid", SETTING, false, account_sid_defect},
	{"auth_token", "auth_token", SECRET, true, secret_defect},
	{"api_key_sid", "api_key_sid", SETTING, false, api_key_sid_defect},
	{"api_key_secret", "api_key_secret", SECRET, false, secret_defect},
	{"sender", "sender", SETTING, false, sender_defect},
	{"messaging_service_sid", "messaging_service_sid", SETTING, false, service_sid_defect},
	{"base_url", "base_url", SETTING, false, url_defect},
	{"status_callback", "status_callback", SETTING, false, callback_defect},
	{"content_retention", "content_retention", SETTING, false, retention_defect},
	{"risk_check", "risk_check", SETTING, false, risk_check_defect},
	{"auth_token_file", "auth_token", SECRET_FILE, true, secret_defect},
	{"api_key_secret_file", "api_key_secret", SECRET_FILE, false, secret_defect},
};

/* Read a secret from a file of the server */
static char *
read_secret_file(const char *name, const char *path)
{
	char		buffer[MAX_VALUE + 2];
	char	   *secret;
	size_t		length;
	FILE	   *file;

	if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to read a file of the server"),
				 errhint("Only members of pg_read_server_files may give argument \"%s\".", name),
				 errhidestmt(true),
				 errhidecontext(true)));
	if (!is_absolute_path(path))
		error_invalid_argument(psprintf("argument \"%s\" is not an absolute path", name),
							   "Give the path of a file on the server, beginning with \"/\".");
	file = AllocateFile(path, "r");
	if (file == NULL)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path),
				 errhidestmt(true),
				 errhidecontext(true)));
	length = fread(buffer, 1, sizeof(buffer) - 1, file);
	FreeFile(file);
	buffer[length] = '\0';

	/* Editors end a file with a line feed */
	while (length > 0 && isspace((unsigned char) buffer[length - 1]))
		buffer[--length] = '\0';
	if (length == 0 || length > MAX_VALUE || strlen(buffer) != length)
		error_invalid_argument(psprintf("the file of argument \"%s\" holds no secret", name),
							   "It is one line of up to 4096 bytes.");
	secret = pstrdup(buffer);
	explicit_bzero(buffer, sizeof(buffer));
	return secret;
}

/* Parse an object that we once wrote */
static json_t *
parse_object(const char *text)
{
	json_t	   *object = json_from_text(text, strlen(text));

	if (!json_is_object(object))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a provider account does not hold a JSON object")));
	return object;
}

/* Write one argument into the account */
static void
apply_argument(const Argument *argument, const char *value, json_t *settings, json_t *secrets)
{
	json_t	   *object = argument->kind == SETTING ? settings : secrets;
	const char *hint;
	int			rc = 0;

	if (value[0] == '\0')
	{
		(void) json_object_del(object, argument->key);
		if (argument->keep_previous)
			(void) json_object_del(object, psprintf("%s_previous", argument->key));
		return;
	}
	hint = argument->defect(value);
	if (hint != NULL)
		error_invalid_argument(psprintf("argument \"%s\" is not valid", argument->name), hint);

	if (argument->keep_previous)
	{
		json_t	   *old = json_object_get(object, argument->key);

		if (old != NULL && strcmp(json_string_value(old), value) != 0)
			rc |= json_object_set(object, psprintf("%s_previous", argument->key), old);
	}
	rc |= json_object_set_new(object, argument->key, json_string(value));
	if (rc != 0)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

/* Does an object have a member? */
static bool
has(const json_t *object, const char *key)
{
	return json_object_get(object, key) != NULL;
}

/* Require what a provider cannot do without */
static void
require_complete(const char *provider, const json_t *settings, const json_t *secrets)
{
	if (strcmp(provider, "meta") == 0)
	{
		if (!has(settings, "phone_number_id") || !has(secrets, "access_token"))
			error_invalid_argument("a Meta account needs phone_number_id and access_token",
								   "Both are on the app's page WhatsApp > API Setup.");
		return;
	}
	if (!has(settings, "account_sid"))
		error_invalid_argument("a Twilio account needs account_sid", "It is on the console's first page.");
	if (!has(secrets, "auth_token") && !(has(settings, "api_key_sid") && has(secrets, "api_key_secret")))
		error_invalid_argument("a Twilio account needs auth_token, or api_key_sid and api_key_secret",
							   "Receipts are signed with auth_token, so give it, too, when receipts are wanted.");
	if (!has(settings, "sender") && !has(settings, "messaging_service_sid"))
		error_invalid_argument("a Twilio account needs sender or messaging_service_sid",
							   "The sender is one of your Twilio numbers, such as +14155552671.");
}

/* Set an account up */
static Datum
configure(FunctionCallInfo fcinfo, const char *function, const char *provider, const char *channel,
		  const Argument *arguments, int n)
{
	VerbScope	scope;
	AccountRow	account;
	json_t	   *volatile settings = NULL;
	json_t	   *volatile secrets = NULL;
	const char *key;
	json_t	   *member;
	char	  **given = palloc0(sizeof(char *) * n);
	char	   *name;
	char	   *workspace;
	int			workspace_id;
	int			account_id;

	/* Whoever got EXECUTE in some way is still not the owner */
	owner_require(function);

	/* Take the arguments while the caller is the caller */
	for (int i = 0; i < n; i++)
	{
		given[i] = verb_text(fcinfo, i, arguments[i].name, MAX_VALUE);
		if (given[i] != NULL && arguments[i].kind == SECRET_FILE)
			given[i] = read_secret_file(arguments[i].name, given[i]);
	}
	name = verb_text(fcinfo, n, "account", NAMEDATALEN);
	if (name == NULL)
		name = pstrdup(provider);
	workspace = verb_text(fcinfo, n + 1, "workspace", NAMEDATALEN);

	verb_begin(&scope, function, VERB_WRITES);
	account_lock(name, provider, &account);

	/* jansson's memory is malloc's: free it on every path */
	PG_TRY();
	{
		settings = parse_object(account.settings);
		secrets = parse_object(account.secrets);
		for (int i = 0; i < n; i++)
			if (given[i] != NULL)
				apply_argument(&arguments[i], given[i], settings, secrets);
		require_complete(provider, settings, secrets);
		account.settings = json_to_text(settings);
		account.secrets = json_to_text(secrets);
		account.secret_names = NIL;
		json_object_foreach(secrets, key, member)
		{
			account.secret_names = lappend(account.secret_names, pstrdup(key));
		}
	}
	PG_FINALLY();
	{
		json_decref(settings);
		json_decref(secrets);
	}
	PG_END_TRY();

	workspace_id = workspace_named(workspace)->workspace_id;
	account_require_free(name, account.exclusive_to, workspace_id);
	account_id = account_store(name, provider, &account);
	explicit_bzero(account.secrets, strlen(account.secrets));
	account_use(workspace_id, channel, account_id);

	/* What waited for a working account can go now */
	wake_at_commit();
	verb_end(&scope);

	PG_RETURN_TEXT_P(cstring_to_text(name));
}

/* Set a Meta account up */
Datum
otp_configure_meta(PG_FUNCTION_ARGS)
{
	return configure(fcinfo, "configure_meta", "meta", "whatsapp",
					 meta_arguments, lengthof(meta_arguments));
}

/* Set a Twilio account up */
Datum
otp_configure_twilio(PG_FUNCTION_ARGS)
{
	return configure(fcinfo, "configure_twilio", "twilio", "sms",
					 twilio_arguments, lengthof(twilio_arguments));
}
