/*-------------------------------------------------------------------------
 *
 * test_number.c
 *	  otp.set_test_number and otp.simulate: try everything, send nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/phone.h"
#include "store/key.h"
#include "store/test_number.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_set_test_number);
EXPORTED_FUNCTION(otp_simulate);

/* How long a test number is valid when nothing else is said */
#define DEFAULT_VALIDITY (90 * USECS_PER_DAY)

static const char *const outcomes[] = {
	"delivered", "sms_fallback", "failed", "pending",
	"rate_limit_exceeded", "meta_api_unavailable", "insufficient_credits"
};

/* Set, change or remove a test number */
Datum
otp_set_test_number(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *phone = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *code = verb_text(fcinfo, 1, "code", 8);
	char	   *outcome = verb_text(fcinfo, 2, "outcome", NAMEDATALEN);
	char	   *workspace = verb_text(fcinfo, 4, "workspace", NAMEDATALEN);
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz valid_until = PG_ARGISNULL(3) ? now + DEFAULT_VALIDITY : PG_GETARG_TIMESTAMPTZ(3);
	const char *defect;
	bool		known = false;

	owner_require("set_test_number");

	/* Check the arguments; code NULL removes the number */
	if (phone == NULL)
		error_raise(OTP_INVALID_PHONE, "the phone number is not in E.164 format", "It is NULL.", -1, NULL);
	defect = phone_defect(phone, strlen(phone));
	if (defect != NULL)
		error_raise(OTP_INVALID_PHONE, "the phone number is not in E.164 format",
					psprintf("It %s.", defect), -1, NULL);
	if (code != NULL)
	{
		size_t		length = strlen(code);

		if (strspn(code, "0123456789") != length || (length != 4 && length != 6 && length != 8))
			error_invalid_argument("argument \"code\" is not a code", "It has 4, 6 or 8 digits.");
	}
	if (outcome == NULL)
		outcome = "delivered";
	for (int i = 0; i < lengthof(outcomes); i++)
		known = known || strcmp(outcome, outcomes[i]) == 0;
	if (!known)
		error_invalid_argument("there is no such outcome",
							   "It is delivered, sms_fallback, failed, pending, rate_limit_exceeded, meta_api_unavailable or insufficient_credits.");
	if (code != NULL && (valid_until <= now || TIMESTAMP_NOT_FINITE(valid_until)))
		error_invalid_argument("argument \"valid_until\" is not a moment in the future",
							   "A test number is a way in: let it end.");

	verb_begin(&scope, "set_test_number", VERB_WRITES);
	(void) key_for_writing();
	test_number_set(workspace_named(workspace)->workspace_id, phone, code, outcome, valid_until,
					GetUserNameFromId(scope.caller, false));
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Move the OTP of a test number on */
Datum
otp_simulate(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	Verification v;
	MessageState *messages;
	MessageState m = {0};
	pg_uuid_t	id;
	char	   *id_text;
	char	   *event;
	TimestampTz now;
	int			n;

	owner_require("simulate");
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		error_invalid_argument("an argument is NULL", "Give the otp_id and delivered, failed or expired.");
	id_text = text_to_cstring(PG_GETARG_TEXT_PP(0));
	event = verb_text(fcinfo, 1, "event", NAMEDATALEN);

	verb_begin(&scope, "simulate", VERB_WRITES);
	if (!ulid_parse(id_text, strlen(id_text), &id) ||
		!verification_lock(workspace_granted(scope.caller, false), &id, &v))
		verb_raise_end(OTP_NOT_FOUND);
	if (v.test_outcome == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this verification is of a real phone"),
				 errhint("Only those of a test number, see otp.set_test_number, can be simulated.")));

	now = GetCurrentTimestamp();
	n = verification_messages(&v, true, &messages);
	m.number = n > 0 ? messages[n - 1].number : 2 * v.resends + 1;
	m.channel = n > 0 ? messages[n - 1].channel : v.channel;
	if (strcmp(event, "delivered") == 0)
	{
		m.sent_at = m.delivered_at = now;
		m.message_id = psprintf("test.%d", m.number);
		verification_test_message(&v, &m, now);
	}
	else if (strcmp(event, "failed") == 0)
	{
		m.failed_at = now;
		m.ended_reason = "delivery_failed";
		verification_test_message(&v, &m, now);
	}
	else if (strcmp(event, "expired") == 0)
		verification_set_expired(&v, now);
	else
		error_invalid_argument("there is no such event", "It is delivered, failed or expired.");
	verb_end(&scope);
	PG_RETURN_VOID();
}
