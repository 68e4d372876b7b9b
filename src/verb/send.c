/*-------------------------------------------------------------------------
 *
 * send.c
 *	  otp_send: make a code and owe its delivery.
 *
 * Nothing is sent from here. A row of history and a row of the outbox are
 * written in the caller's transaction; the sender sees them when it commits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/code.h"
#include "base/guc.h"
#include "base/roster.h"
#include "store/credit.h"
#include "store/key.h"
#include "store/queue.h"
#include "store/template.h"
#include "store/test_number.h"
#include "verb/send.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_send);

/* Most templates that a session is warned of: it keeps in mind which */
#define MAX_WARNED 100

/* The arguments of otp_send, in their order */
enum
{
	ARG_PHONE,
	ARG_TEMPLATE,
	ARG_LENGTH,
	ARG_EXPIRES_IN,
	ARG_FALLBACK_SMS,
	ARG_METADATA,
	ARG_CHANNEL,
	ARG_CONTEXT,
	ARG_LANGUAGE,
	ARG_LIMIT_KEYS,
	ARG_IDEMPOTENCY_KEY,
	ARG_WORKSPACE
};

/* Require a usable template */
static void
check_template(const Workspace *w, const char *name, const char *language, const char *channel)
{
	TemplateState state = template_state(w->workspace_id, name, language);

	/* SMS has words of its own: Meta's opinion does not matter there */
	if (strcmp(channel, "sms") == 0 && state != TEMPLATE_ABSENT)
		return;
	switch (state)
	{
		case TEMPLATE_ABSENT:
			error_raise(OTP_TEMPLATE_NOT_FOUND, "there is no such template in this language",
						"Add it to otp.templates, by workspace, name and language.", -1, NULL);
		case TEMPLATE_MISSING:
			error_raise(OTP_TEMPLATE_NOT_FOUND, "Meta does not have the template in this language",
						"Create it by otp.create_template, or by hand and then call otp.sync_templates.", -1, NULL);
		case TEMPLATE_NOT_APPROVED:
			error_raise(OTP_TEMPLATE_NOT_FOUND, "the template is not approved by Meta",
						"Its status is in otp.templates.", -1, NULL);
		case TEMPLATE_USABLE:
			break;
	}
}

/* Is this the first time in this session? */
static bool
first_warning(const char *what)
{
	static List *warned = NIL;
	MemoryContext old;
	ListCell   *cell;

	foreach(cell, warned)
	{
		if (strcmp(lfirst(cell), what) == 0)
			return false;
	}
	if (list_length(warned) >= MAX_WARNED)
		return false;
	old = MemoryContextSwitchTo(TopMemoryContext);
	warned = lappend(warned, pstrdup(what));
	MemoryContextSwitchTo(old);
	return true;
}

/* Warn when the message will tell another life of the code than it has */
static void
warn_of_text(const Verification *v, int expires_in)
{
	int			minutes;
	char	   *name;

	if (strcmp(v->channel, "whatsapp") != 0)
		return;
	name = pstrdup(template_variant(v->workspace_id, v->template_name, v->language, expires_in, &minutes));
	if (minutes == 0 || minutes == TEMPLATE_MINUTES(expires_in))
		return;
	if (!first_warning(psprintf("%d %s %s", v->workspace_id, v->language, v->template_name)))
		return;
	ereport(WARNING,
			(errmsg_plural("the text of template \"%s\" says that the code expires in %d minute, but it lives for %d seconds",
						   "the text of template \"%s\" says that the code expires in %d minutes, but it lives for %d seconds",
						   minutes, name, minutes, expires_in),
			 errhint("Create a variant by otp.create_template(..., code_expiration_minutes => %d, variant_of => %s).",
					 TEMPLATE_MINUTES(expires_in), quote_literal_cstr(v->template_name)),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/* Raise the error that a test number stands for */
static void
raise_test_outcome(const char *outcome)
{
	const char *hint = "This is a test number, whose outcome otp.set_test_number set.";

	if (strcmp(outcome, "rate_limit_exceeded") == 0)
		error_raise(OTP_RATE_LIMIT_EXCEEDED, "too many codes were sent to this phone within an hour",
					hint, 42, "sends_per_phone_hour");
	if (strcmp(outcome, "meta_api_unavailable") == 0)
		error_raise(OTP_META_API_UNAVAILABLE, "the WhatsApp API is unavailable", hint, -1, NULL);
	if (strcmp(outcome, "insufficient_credits") == 0)
		error_raise(OTP_INSUFFICIENT_CREDITS, "the workspace has no credits left", hint, -1, NULL);
}

/* Write the messages that a test number's outcome stands for */
static void
write_test_messages(const Verification *v, TimestampTz now)
{
	MessageState m;
	bool		failed = strcmp(v->test_outcome, "failed") == 0;
	bool		fallback = strcmp(v->test_outcome, "sms_fallback") == 0;

	if (strcmp(v->test_outcome, "pending") == 0)
		return;
	memset(&m, 0, sizeof(m));
	m.number = 2 * v->resends + 1;
	m.channel = v->channel;
	if (failed || fallback)
	{
		m.failed_at = now;
		m.ended_reason = failed ? "delivery_failed" : NULL;
	}
	else
	{
		m.sent_at = m.delivered_at = now;
		m.message_id = psprintf("test.%d", m.number);
	}
	verification_test_message(v, &m, now);

	if (fallback)
	{
		m.number++;
		m.channel = "sms";
		m.failed_at = 0;
		m.sent_at = m.delivered_at = now;
		m.message_id = psprintf("test.%d", m.number);
		verification_test_message(v, &m, now);
	}
}

/* Warn when nobody would deliver */
static void
warn_without_sender(void)
{
	if (otp_delivery && !roster_sender_running(MyDatabaseId))
		ereport(WARNING,
				(errmsg("no sender is running for this database: the code waits in the outbox"),
				 errhint("Look at otp.health; max_worker_processes may be too low."),
				 errhidestmt(true),
				 errhidecontext(true)));
}

/* Take the argument metadata */
static void
take_metadata(FunctionCallInfo fcinfo, Verification *v)
{
	Jsonb	   *metadata;
	char	   *text;

	if (PG_ARGISNULL(ARG_METADATA))
		return;
	metadata = PG_GETARG_JSONB_P(ARG_METADATA);
	if (!JB_ROOT_IS_OBJECT(metadata))
		error_invalid_argument("argument \"metadata\" is not a JSON object",
							   "Give key-value pairs, such as {\"user_id\": 4711}.");
	if (VARSIZE(metadata) > MAX_METADATA)
		error_invalid_argument("argument \"metadata\" is too long", "It may have up to 4096 bytes.");

	/* Webhooks tell it in words, and of 1e131071 they make as many digits */
	text = JsonbToCString(NULL, &metadata->root, VARSIZE(metadata));
	if (strlen(text) > MAX_METADATA_TEXT)
		error_invalid_argument("argument \"metadata\" is too long", "As text it may have up to 24576 bytes.");
	pfree(text);
	v->metadata = JsonbPGetDatum(metadata);
	v->has_metadata = true;
}

/* Write all arguments down as they were given, so that no two calls that differ look the same */
static char *
describe_arguments(FunctionCallInfo fcinfo)
{
	StringInfoData words;

	initStringInfo(&words);
	for (int i = 0; i < PG_NARGS(); i++)
	{
		char	   *value = NULL;

		/* The workspace is in the hash by its id, however it was chosen */
		if (i == ARG_IDEMPOTENCY_KEY || i == ARG_WORKSPACE)
			continue;
		if (PG_ARGISNULL(i))
		{
			appendStringInfoString(&words, "-,");
			continue;
		}
		switch (i)
		{
			case ARG_LENGTH:
			case ARG_EXPIRES_IN:
				value = psprintf("%d", PG_GETARG_INT32(i));
				break;
			case ARG_FALLBACK_SMS:
				value = PG_GETARG_BOOL(i) ? "t" : "f";
				break;
			case ARG_METADATA:
				value = JsonbToCString(NULL, &PG_GETARG_JSONB_P(i)->root, 0);
				break;
			case ARG_LIMIT_KEYS:
				value = OidOutputFunctionCall(F_ARRAY_OUT, PG_GETARG_DATUM(i));
				break;
			default:
				value = text_to_cstring(PG_GETARG_TEXT_PP(i));
		}
		appendStringInfo(&words, "%zu:%s,", strlen(value), value);
	}
	return words.data;
}

/* Require a code that we can send, and compare */
static void
check_given(const char *code)
{
	size_t		length = strlen(code);

	if (length < CODE_MIN_LENGTH || length > CODE_GIVEN_MAX_LENGTH || strspn(code, "0123456789") != length)
		error_invalid_argument(psprintf("the code that was given does not have %d to %d digits",
										CODE_MIN_LENGTH, CODE_GIVEN_MAX_LENGTH),
							   "Set the length of codes where they are made.");
}

/* Let the code's life begin */
static void
settle_times(SendRequest *r)
{
	/* Time is the clock's: a long transaction must not stretch a code's life */
	r->v.created_at = GetCurrentTimestamp();
	r->v.expires_at = r->v.created_at + (int64) r->expires_in * USECS_PER_SEC;
}

/* Fill in what was left out, as the workspace says, and check all */
static void
settle_arguments(SendRequest *r)
{
	const Workspace *w = r->w;
	Verification *v = &r->v;

	v->workspace_id = w->workspace_id;
	if (v->template_name == NULL)
		v->template_name = w->default_template;
	if (v->language == NULL)
		v->language = w->default_language;
	if (v->channel == NULL)
		v->channel = w->default_channel;
	if (r->given_code != NULL)
		v->length = (int) strlen(r->given_code);
	else if (!r->has_length)
		v->length = w->default_length;
	if (!r->has_expires_in)
		r->expires_in = w->default_expires_in;
	if (!r->has_fallback_sms)
		v->fallback_sms = w->default_fallback_sms;
	v->max_attempts = w->max_attempts;

	if (strcmp(v->channel, "whatsapp") != 0 && strcmp(v->channel, "sms") != 0)
		error_invalid_argument("there is no such channel", "It is whatsapp or sms.");
	if (strcmp(v->channel, "sms") == 0)
		v->fallback_sms = false;
	if (r->given_code != NULL)
		check_given(r->given_code);
	else if (v->length != 4 && v->length != 6 && v->length != 8)
		error_invalid_argument("a code cannot have this length", "It has 4, 6 or 8 digits.");
	if (v->length < w->min_code_length)
		error_invalid_argument("the code is shorter than the workspace's policy allows",
							   psprintf("It has at least %d digits.", w->min_code_length));
	if (r->expires_in < 60 || r->expires_in > 900)
		error_invalid_argument("a code cannot live this long", "expires_in is 60 to 900 seconds.");
	if (r->expires_in > w->max_expires_in)
		error_invalid_argument("the code lives longer than the workspace's policy allows",
							   psprintf("expires_in is at most %d seconds.", w->max_expires_in));
	if (w->require_context && v->context == NULL)
		error_invalid_argument("the workspace's policy asks for a context",
							   "Say in the argument \"context\" what the code may be used for.");
	check_template(w, v->template_name, v->language, v->channel);

	settle_times(r);
}

/* Ask everybody who may refuse to send to a real phone */
static void
ask_policy(SendRequest *r)
{
	const Workspace *w = r->w;
	Verification *v = &r->v;

	country_require(w, v, r->has_fallback_sms && v->fallback_sms);
	module_require(w, v->channel, v->fallback_sms);

	/* Before anything is locked: it may take its time */
	if (w->policy_function != NULL)
	{
		v->shadowed = !policy_allows(r);

		/* The code's life begins now */
		settle_times(r);
	}
	guard_require(w, v->phone, v->channel, v->created_at);
	limits_take(w, v->phone, v->template_name, v->context, v->created_at);
	limit_keys_take(w, r->limit_keys);
	limits_take_second(w);
}

/* Make the code: its hash stays, the code itself can be derived again */
static void
make_code(Verification *v, const char *given)
{
	char		code[CODE_SIZE];
	uint8		random[CODE_SALT_LENGTH + HASH_LENGTH];

	v->key_id = key_for_writing();
	ulid_make(&v->id, v->created_at);
	v->slot = ulid_slot(&v->id);
	v->created_xid = U64FromFullTransactionId(GetTopFullTransactionId());
	if (!pg_strong_random(random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));
	memcpy(v->salt, random, CODE_SALT_LENGTH);
	if (given != NULL)
		strlcpy(code, given, sizeof(code));
	else
		code_derive(&v->id, v->salt, v->key_id, v->length, code);
	code_hash(&v->id, v->context, code, v->key_id, v->code_hash);
	explicit_bzero(code, sizeof(code));

	/*
	 * No code has this hash. All that is above was done all the same, lest it
	 * show in the time.
	 */
	if (v->shadowed)
		memcpy(v->code_hash, random + CODE_SALT_LENGTH, HASH_LENGTH);
}

/* Send a code */
void
send_code(SendRequest *r, Oid caller, const char *workspace)
{
	Verification *v = &r->v;
	TestNumber	test = {0};
	bool		is_test = false;
	const char *given = r->given_code;
	bytea	   *sealed = NULL;

	r->w = workspace_acting(caller, workspace);
	workspace_require_active(r->w);

	/* Who asks again gets the answer, even if it could not be sent by now */
	if (r->idempotency_key != NULL && idempotency_find(r))
		return;

	settle_arguments(r);
	if (r->w->has_test_numbers)
		is_test = test_number_find(r->w->workspace_id, v->phone, v->created_at, &test);
	if (is_test)
	{
		raise_test_outcome(test.outcome);
		v->test_outcome = test.outcome;
		if (given == NULL)
			given = test.code;
		v->length = strlen(given);
	}
	else
		ask_policy(r);
	v->code_given = r->given_code != NULL;
	make_code(v, given);

	/* Write it down */
	verification_insert(v);
	if (r->idempotency_key != NULL)
		idempotency_note(r);
	if (is_test)
	{
		explicit_bzero(test.code, strlen(test.code));
		write_test_messages(v, v->created_at);
		return;
	}
	limit_keys_note(v, r->limit_keys);
	guard_note_sent(r->w, v);
	if (!v->shadowed)
	{
		if (v->code_given)
			sealed = queue_seal_code(&v->id, v->workspace_id, given, v->key_id);
		verification_queue(v, 1, v->channel, credit_take(r->w), sealed);
		wake_at_commit();
	}
	warn_without_sender();
	warn_of_text(v, r->expires_in);
}

/* Take the arguments that need no workspace */
static void
take_arguments(FunctionCallInfo fcinfo, SendRequest *r, const char **workspace)
{
	Verification *v = &r->v;

	v->phone = verb_phone(fcinfo, ARG_PHONE);
	v->context = verb_text(fcinfo, ARG_CONTEXT, "context", MAX_CONTEXT);
	take_metadata(fcinfo, v);
	if (!PG_ARGISNULL(ARG_LIMIT_KEYS))
		r->limit_keys = limit_keys_parse(PG_GETARG_ARRAYTYPE_P(ARG_LIMIT_KEYS));
	r->idempotency_key = verb_text(fcinfo, ARG_IDEMPOTENCY_KEY, "idempotency_key", MAX_IDEMPOTENCY_KEY);
	if (r->idempotency_key != NULL && r->idempotency_key[0] == '\0')
		error_invalid_argument("argument \"idempotency_key\" is empty", "It has 1 to 255 bytes, such as a request's id.");
	v->template_name = verb_text(fcinfo, ARG_TEMPLATE, "template", MAX_TEMPLATE);
	v->language = verb_text(fcinfo, ARG_LANGUAGE, "language", MAX_LANGUAGE);
	v->channel = verb_text(fcinfo, ARG_CHANNEL, "channel", 16);
	*workspace = verb_text(fcinfo, ARG_WORKSPACE, "workspace", NAMEDATALEN);

	r->has_length = !PG_ARGISNULL(ARG_LENGTH);
	if (r->has_length)
		v->length = PG_GETARG_INT32(ARG_LENGTH);
	r->has_expires_in = !PG_ARGISNULL(ARG_EXPIRES_IN);
	if (r->has_expires_in)
		r->expires_in = PG_GETARG_INT32(ARG_EXPIRES_IN);
	r->has_fallback_sms = !PG_ARGISNULL(ARG_FALLBACK_SMS);
	if (r->has_fallback_sms)
		v->fallback_sms = PG_GETARG_BOOL(ARG_FALLBACK_SMS);
	if (r->idempotency_key != NULL)
		r->asked = describe_arguments(fcinfo);
}

/* Make a code, and owe its delivery */
bool
send_called(FunctionCallInfo fcinfo, SendRequest *r)
{
	VerbScope	scope;
	const char *workspace;

	memset(r, 0, sizeof(SendRequest));
	take_arguments(fcinfo, r, &workspace);
	verb_begin(&scope, "otp_send()", VERB_WRITES);
	send_code(r, scope.caller, workspace);
	verb_end(&scope);
	return r->v.test_outcome != NULL && strcmp(r->v.test_outcome, "sms_fallback") == 0;
}

/* The same, for SQL */
Datum
otp_send(PG_FUNCTION_ARGS)
{
	SendRequest r;
	bool		fell_back = send_called(fcinfo, &r);
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = BoolGetDatum(true);
	values[1] = verb_id(&r.v.id);
	values[2] = CStringGetTextDatum(fell_back ? "sms" : r.v.channel);
	values[3] = CStringGetTextDatum(r.v.phone);
	values[4] = TimestampTzGetDatum(r.v.expires_at);
	values[5] = Int32GetDatum(r.expires_in);
	values[6] = (Datum) 0;
	nulls[6] = true;
	return verb_row(fcinfo, values, nulls);
}
