/*-------------------------------------------------------------------------
 *
 * verb.c
 *	  What the verbs share: their scope, their arguments, their results.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/phone.h"
#include "base/shmem.h"
#include "verb/verb.h"

/* Keep the caller's literals out of the log */
static void
hide_statement(void *arg)
{
	/* PostgreSQL's own errors, too: a time-out, a read-only transaction */
	errhidestmt(true);
	errhidecontext(true);
}

/* Begin a verb */
void
verb_begin(VerbScope *scope, const char *name, VerbAccess access)
{
	shmem_require();

	scope->hide.callback = hide_statement;
	scope->hide.arg = NULL;
	scope->hide.previous = error_context_stack;
	error_context_stack = &scope->hide;

	if (access == VERB_WRITES)
	{
		PreventCommandDuringRecovery(name);
		PreventCommandIfReadOnly(name);
		PreventCommandIfParallelMode(name);
	}

	scope->caller = GetUserId();
	owner_enter(&scope->owner);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect did not connect");
}

/* End a verb */
void
verb_end(VerbScope *scope)
{
	SPI_finish();
	owner_leave(&scope->owner);
	error_context_stack = scope->hide.previous;
}

/* Require an E.164 number */
char *
verb_phone(FunctionCallInfo fcinfo, int argument)
{
	text	   *phone;
	const char *defect;

	if (PG_ARGISNULL(argument))
		error_raise(OTP_INVALID_PHONE, "the phone number is not in E.164 format",
					"It is NULL; it should look like +14155552671.", -1, NULL);
	phone = PG_GETARG_TEXT_PP(argument);
	defect = phone_defect(VARDATA_ANY(phone), VARSIZE_ANY_EXHDR(phone));
	if (defect != NULL)
		error_raise(OTP_INVALID_PHONE, "the phone number is not in E.164 format",
					psprintf("It %s; it should be \"+\" and 7 to 15 digits, the country's first.", defect), -1, NULL);
	return text_to_cstring(phone);
}

/* Take a text argument */
char *
verb_text(FunctionCallInfo fcinfo, int argument, const char *name, int max)
{
	text	   *value;

	if (PG_ARGISNULL(argument))
		return NULL;
	value = PG_GETARG_TEXT_PP(argument);
	if (VARSIZE_ANY_EXHDR(value) > max)
		error_invalid_argument(psprintf("argument \"%s\" is too long", name),
							   psprintf("It may have up to %d bytes.", max));
	return text_to_cstring(value);
}

/* Build the result */
Datum
verb_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	desc = fcinfo->flinfo->fn_extra;

	if (desc == NULL)
	{
		MemoryContext old;

		if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
		desc = BlessTupleDesc(CreateTupleDescCopy(desc));
		MemoryContextSwitchTo(old);
		fcinfo->flinfo->fn_extra = desc;
	}
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

/* Give the text of an id */
Datum
verb_id(const pg_uuid_t *id)
{
	char		text[OTP_ID_LENGTH + 1];

	ulid_format(id, text);
	return CStringGetTextDatum(text);
}

/* Name a state */
const char *
life_name(Life life)
{
	switch (life)
	{
		case LIFE_PENDING:
			return "pending";
		case LIFE_DELIVERED:
			return "delivered";
		case LIFE_VERIFIED:
			return "verified";
		case LIFE_EXPIRED:
			return "expired";
		case LIFE_FAILED:
			return "failed";
		case LIFE_CANCELED:
			return "canceled";
	}
	return NULL;
}

/* Count the wrong guesses */
int
verb_attempts(const Verification *v)
{
	/* A verified row counts the right guess, too, and no more are to come */
	if (v->verified_at != 0)
		return v->attempts;
	return ledger_attempts(v->workspace_id, &v->id, v->attempts);
}

/* Tell why it has ended */
OtpError
verb_end_of_life(const Verification *v, int attempts, TimestampTz now)
{
	if (v->verified_at != 0)
		return OTP_ALREADY_VERIFIED;
	if (v->canceled_at != 0)
		return OTP_CANCELED;
	if (v->expires_at <= now)
		return OTP_EXPIRED;
	if (attempts >= v->max_attempts)
		return OTP_RATE_LIMIT_EXCEEDED;
	if (v->ended_reason != NULL)
		return OTP_FAILED;
	return OTP_OK;
}

/* Raise the end of a life */
void
verb_raise_end(OtpError error)
{
	const char *hint = "Send a new code with otp_send.";

	switch (error)
	{
		case OTP_NOT_FOUND:
			error_raise(error, "there is no such verification", "Check the otp_id; another workspace's is not found either.", -1, NULL);
		case OTP_ALREADY_VERIFIED:
			error_raise(error, "this verification has already succeeded", hint, -1, NULL);
		case OTP_CANCELED:
			error_raise(error, "this verification was canceled", hint, -1, NULL);
		case OTP_EXPIRED:
			error_raise(error, "this verification has expired", hint, -1, NULL);
		case OTP_RATE_LIMIT_EXCEEDED:
			error_raise(error, "no attempt is left for this verification", hint, -1, "max_attempts");
		case OTP_FAILED:
			error_raise(error, "the code could not be delivered", "Ask otp_status for the reason, then send a new code.", -1, NULL);
		default:
			elog(ERROR, "no end of life: %d", (int) error);
	}
}
