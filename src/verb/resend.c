/*-------------------------------------------------------------------------
 *
 * resend.c
 *	  otp_resend and otp_cancel: the same code again, or never again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "store/credit.h"
#include "store/queue.h"
#include "verb/send.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_resend);
EXPORTED_FUNCTION(otp_cancel);

/* Most resends of one code: a message's number is 2 * resends + 2 at most, an int2 */
#define MAX_RESENDS 1000

/* Send the same code again */
Datum
otp_resend(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	Verification v;
	const Workspace *w;
	pg_uuid_t	id;
	char	   *id_text;
	char	   *channel;
	OtpError	error;
	TimestampTz now;
	Datum		workspaces;
	bool		fallback_sms;
	bytea	   *code = NULL;
	Datum		values[7];
	bool		nulls[7] = {false};

	if (PG_ARGISNULL(0))
		error_invalid_argument("argument \"otp_id\" is NULL", "Give the otp_id that otp_send returned.");
	id_text = text_to_cstring(PG_GETARG_TEXT_PP(0));
	channel = verb_text(fcinfo, 1, "channel", 16);
	if (channel != NULL && strcmp(channel, "whatsapp") != 0 && strcmp(channel, "sms") != 0)
		error_invalid_argument("there is no such channel", "It is whatsapp or sms.");

	verb_begin(&scope, "otp_resend()", VERB_WRITES);
	workspaces = workspace_granted(scope.caller, false);
	if (!ulid_parse(id_text, strlen(id_text), &id) || !verification_find(workspaces, &id, true, &v))
		verb_raise_end(OTP_NOT_FOUND);

	/*
	 * The phone before the row, as in a transaction that sends and then
	 * verifies: the other way round, the two could wait for each other.
	 */
	if (v.test_outcome == NULL)
		verification_lock_phone(v.workspace_id, v.phone);
	if (!verification_lock(workspaces, &id, &v))
		verb_raise_end(OTP_NOT_FOUND);

	/* Only a code that can still be verified */
	now = GetCurrentTimestamp();
	error = verb_end_of_life(&v, verb_attempts(&v), now);
	if (error != OTP_OK)
		verb_raise_end(error);
	w = workspace_by_id(v.workspace_id);
	if (w == NULL)
		verb_raise_end(OTP_NOT_FOUND);
	workspace_require_active(w);
	if (v.resends >= MAX_RESENDS)
		error_raise(OTP_RATE_LIMIT_EXCEEDED, "this code was sent too often",
					"Send a new code with otp_send.", -1, "resends");
	if (v.code_given && v.test_outcome == NULL && !v.shadowed)
	{
		code = verification_queued_code(&v);
		if (code == NULL)
			error_raise(OTP_FAILED, "the code of this verification came from outside, and is kept no longer",
						"Have whoever has made the code make a new one.", -1, NULL);
	}
	if (channel == NULL)
		channel = pstrdup(v.channel);
	fallback_sms = v.fallback_sms && strcmp(channel, "whatsapp") == 0;
	if (v.test_outcome == NULL)
	{
		country_require_channel(w, v.phone, channel);
		module_require(w, channel, fallback_sms);
		limits_take(w, v.phone, v.template_name, v.context, now);
		limits_take_second(w);
	}

	/* Write it down */
	v.resends++;
	verification_set_resent(&v, now);
	if (v.test_outcome == NULL)
	{
		if (!v.shadowed)
		{
			verification_queue(&v, 2 * v.resends + 1, channel, credit_take(w), code);
			wake_at_commit();
		}
	}
	else if (strcmp(v.test_outcome, "pending") != 0)
	{
		MessageState m = {0};

		m.number = 2 * v.resends + 1;
		m.channel = channel;
		m.sent_at = m.delivered_at = now;
		m.message_id = psprintf("test.%d", m.number);
		verification_test_message(&v, &m, now);
	}

	values[2] = SPI_datumTransfer(CStringGetTextDatum(channel), false, -1);
	values[3] = SPI_datumTransfer(CStringGetTextDatum(v.phone), false, -1);
	verb_end(&scope);

	values[0] = BoolGetDatum(true);
	values[1] = verb_id(&v.id);
	values[4] = TimestampTzGetDatum(v.expires_at);
	values[5] = Int32GetDatum((int) ((v.expires_at - now) / USECS_PER_SEC));
	nulls[6] = true;
	return verb_row(fcinfo, values, nulls);
}

/* Let a code never be right again */
Datum
otp_cancel(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	Verification v;
	pg_uuid_t	id;
	char	   *id_text;
	bool		canceled = false;
	TimestampTz now;
	Datum		workspaces;

	if (PG_ARGISNULL(0))
		error_invalid_argument("argument \"otp_id\" is NULL", "Give the otp_id that otp_send returned.");
	id_text = text_to_cstring(PG_GETARG_TEXT_PP(0));

	verb_begin(&scope, "otp_cancel()", VERB_WRITES);
	workspaces = workspace_granted(scope.caller, false);
	now = GetCurrentTimestamp();
	if (ulid_parse(id_text, strlen(id_text), &id) &&
		verification_lock(workspaces, &id, &v) &&
		verb_end_of_life(&v, verb_attempts(&v), now) == OTP_OK)
	{
		verification_set_canceled(&v, now);
		canceled = true;
		if (v.test_outcome == NULL && !v.shadowed)
		{
			queue_row(OUTBOX_CANCELED, &v.id, v.workspace_id, v.slot, OUTBOX_NUMBER_CANCELED,
					  now + OUTBOX_PATIENCE_US, NULL);
			wake_at_commit();
		}
	}
	verb_end(&scope);

	PG_RETURN_BOOL(canceled);
}
