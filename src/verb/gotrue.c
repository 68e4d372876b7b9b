/*-------------------------------------------------------------------------
 *
 * gotrue.c
 *	  otp_api.gotrue_send_sms: the Send SMS hook of GoTrue (Supabase Auth).
 *
 * GoTrue makes a code, keeps its hash, and calls us in its own transaction,
 * as the role supabase_auth_admin, with a statement_timeout of two seconds.
 * {} says that the code is on its way; {"error": {...}} has GoTrue answer its
 * client so, and roll back. What it could only log is raised: a cancel, a
 * serialization failure, a fault of ours.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "base/json.h"
#include "base/phone.h"
#include "verb/caught.h"
#include "verb/send.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_gotrue_send_sms);

/* Longest strings of the event that are of use; longer ones are as if they were missing */
#define MAX_USER_ID 64
#define MAX_ADDRESS 64
#define MAX_TYPE 32
#define MAX_GIVEN 64

/* So many bytes of a phone are enough to say what is wrong with it */
#define MAX_PHONE 64

/* What the codes are for, as the other verbs see it */
#define CONTEXT "gotrue"
#define CONTEXT_MFA "gotrue mfa"

/* The limit by address, where the workspace has one */
#define ADDRESS_PREFIX "ip"

/* Find a member that is an object */
static JsonbContainer *
find_object(JsonbContainer *container, const char *key)
{
	JsonbValue	found;

	if (container == NULL || !JsonContainerIsObject(container) ||
		getKeyJsonValueFromContainer(container, key, (int) strlen(key), &found) == NULL ||
		found.type != jbvBinary || !JsonContainerIsObject(found.val.binary.data))
		return NULL;
	return found.val.binary.data;
}

/* Copy a member that is a string, and not empty or too long; NULL for anything else */
static char *
find_text(JsonbContainer *container, const char *key, int max)
{
	JsonbValue	found;

	if (container == NULL ||
		getKeyJsonValueFromContainer(container, key, (int) strlen(key), &found) == NULL ||
		found.type != jbvString || found.val.string.len == 0 || found.val.string.len > max)
		return NULL;
	return pnstrdup(found.val.string.val, found.val.string.len);
}

/*
 * Find the phone. sms.phone is the one that is meant. Older versions of
 * GoTrue do not say it, and a user has two while the phone is being changed:
 * a code that went to the wrong one would prove that it is the other's owner.
 */
static char *
find_phone(JsonbContainer *user, JsonbContainer *sms)
{
	char	   *phone = find_text(sms, "phone", MAX_PHONE);
	const char *defect;

	if (phone == NULL)
	{
		char	   *changed = find_text(user, "new_phone", MAX_PHONE);

		phone = find_text(user, "phone", MAX_PHONE);
		if (phone == NULL)
			phone = changed;
		else if (changed != NULL && strcmp(changed, phone) != 0)
			error_invalid_argument("the event does not say which of the user's two phones is meant",
								   "GoTrue has to say it in sms.phone; older versions do not.");
	}
	if (phone == NULL)
		error_raise(OTP_INVALID_PHONE, "the phone number is not in E.164 format",
					"The event has none in sms.phone and user.phone.", -1, NULL);

	/* GoTrue keeps phones without the plus */
	if (phone[0] != '+')
		phone = psprintf("+%s", phone);
	defect = phone_defect(phone, strlen(phone));
	if (defect != NULL)
		error_raise(OTP_INVALID_PHONE, "the phone number is not in E.164 format",
					psprintf("It %s; it should be \"+\" and 7 to 15 digits, the country's first.", defect), -1, NULL);
	return phone;
}

/* Say whose code it is */
static Datum
make_metadata(const char *user_id)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "{\"user_id\": ");
	json_quote(&text, user_id);
	appendStringInfoChar(&text, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(text.data));
}

/* Take the event apart */
static void
read_event(Jsonb *event, SendRequest *r, char **address)
{
	JsonbContainer *root = &event->root;
	JsonbContainer *user = find_object(root, "user");
	JsonbContainer *sms = find_object(root, "sms");
	char	   *user_id = find_text(user, "id", MAX_USER_ID);
	char	   *type = find_text(sms, "sms_type", MAX_TYPE);

	r->given_code = find_text(sms, "otp", MAX_GIVEN);
	if (r->given_code == NULL)
		error_invalid_argument("the event has no code", "GoTrue's Send SMS hook has it in sms.otp.");
	r->v.phone = find_phone(user, sms);
	r->v.context = type != NULL && strcmp(type, "mfa") == 0 ? CONTEXT_MFA : CONTEXT;
	if (user_id != NULL)
	{
		r->v.metadata = make_metadata(user_id);
		r->v.has_metadata = true;
	}
	*address = find_text(find_object(root, "metadata"), "ip_address", MAX_ADDRESS);
}

/* Limit by the address of who asks, if the workspace wants that */
static void
add_address(SendRequest *r, const Workspace *w, const char *address)
{
	for (int i = 0; i < w->key_limit_count && address != NULL; i++)
	{
		Datum		key;

		if (strcmp(w->key_limits[i].prefix, ADDRESS_PREFIX) != 0)
			continue;
		key = CStringGetTextDatum(psprintf("%s:%s", ADDRESS_PREFIX, address));
		r->limit_keys = limit_keys_parse(construct_array(&key, 1, TEXTOID, -1, false, TYPALIGN_INT));
		return;
	}
}

/* Send what GoTrue has made; raises */
static void
send_given(void *arg)
{
	Jsonb	   *event = arg;
	VerbScope	scope;
	SendRequest r;
	char	   *address;

	if (event == NULL)
		error_invalid_argument("argument \"event\" is NULL", "GoTrue's Send SMS hook gives it.");
	memset(&r, 0, sizeof(r));
	verb_begin(&scope, "gotrue_send_sms()", VERB_WRITES);
	read_event(event, &r, &address);
	add_address(&r, workspace_acting(scope.caller, NULL), address);
	send_code(&r, scope.caller, NULL);
	explicit_bzero(unconstify(char *, r.given_code), strlen(r.given_code));
	verb_end(&scope);
}

/* Answer GoTrue's hook */
Datum
otp_gotrue_send_sms(PG_FUNCTION_ARGS)
{
	Jsonb	   *event = PG_ARGISNULL(0) ? NULL : PG_GETARG_JSONB_P(0);
	StringInfoData answer;
	int			status;
	ErrorData  *error = caught_work(send_given, event, &status);

	initStringInfo(&answer);
	if (error == NULL)
		appendStringInfoString(&answer, "{}");
	else
	{
		/* To GoTrue it is an error by its message, which is never empty */
		appendStringInfo(&answer, "{\"error\": {\"http_code\": %d, \"message\": ", status);
		json_quote(&answer, error->message);
		appendStringInfoString(&answer, "}}");
	}
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(answer.data)));
}
