/*-------------------------------------------------------------------------
 *
 * status.c
 *	  otp_status and otp_wait: tell where a verification stands.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/roster.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_status);
EXPORTED_FUNCTION(otp_wait);

/* Longest time that otp_wait waits */
#define MAX_WAIT (30 * USECS_PER_SEC)

/* Look again at least this often: a wake can be lost with its sender */
#define WAIT_SLICE_MS 250

#define STATUS_COLUMNS 19

/* A verification and what became of its messages */
typedef struct Standing
{
	Verification v;
	int			attempts;
	Life		life;
	TimestampTz ended_at;
	const char *error;
	char	   *error_detail;
	const char *channel;
	const char *message_id;
	TimestampTz sent_at;
	TimestampTz delivered_at;
	bool		fallback_used;
	bool		has_outcome;	/* its first message was accepted, or all is
								 * over */
} Standing;

/* Work out the standing */
static void
judge(Standing *s, const MessageState *messages, int n, TimestampTz now)
{
	Verification *v = &s->v;
	TimestampTz failed_at = 0;

	/* What became of the messages: the last one speaks for all */
	s->channel = v->channel;
	for (int i = 0; i < n; i++)
	{
		const MessageState *m = &messages[i];

		s->channel = m->channel;
		if (m->message_id != NULL)
			s->message_id = m->message_id;
		if (m->sent_at != 0)
			s->sent_at = m->sent_at;
		if (m->delivered_at != 0 && s->delivered_at == 0)
			s->delivered_at = m->delivered_at;
		if (m->number % 2 == 0)
			s->fallback_used = true;
		if (m->sent_at != 0 || m->delivered_at != 0)
			s->has_outcome = true;
	}
	v->ended_reason = NULL;
	if (n > 0 && messages[n - 1].ended_reason != NULL)
	{
		v->ended_reason = messages[n - 1].ended_reason;
		failed_at = messages[n - 1].failed_at;
		if (messages[n - 1].provider_code != 0)
			s->error_detail = psprintf("%d%s%s", messages[n - 1].provider_code,
									   messages[n - 1].detail != NULL ? ": " : "",
									   messages[n - 1].detail != NULL ? messages[n - 1].detail : "");
		else if (messages[n - 1].detail != NULL)
			s->error_detail = pstrdup(messages[n - 1].detail);
	}

	/* What became of the verification */
	s->attempts = verb_attempts(v);
	if (v->verified_at != 0)
	{
		s->life = LIFE_VERIFIED;
		s->ended_at = v->verified_at;
	}
	else if (v->canceled_at != 0)
	{
		s->life = LIFE_CANCELED;
		s->ended_at = v->canceled_at;
	}
	else if (v->ended_reason != NULL)
	{
		s->life = LIFE_FAILED;
		s->ended_at = failed_at;
		s->error = v->ended_reason;
	}
	else if (s->attempts >= v->max_attempts)
	{
		s->life = LIFE_FAILED;
		s->ended_at = v->last_attempt_at;
		s->error = "too_many_attempts";
	}
	else if (v->expires_at <= now)
	{
		s->life = LIFE_EXPIRED;
		s->ended_at = v->expires_at;
	}
	else
		s->life = s->delivered_at != 0 ? LIFE_DELIVERED : LIFE_PENDING;
	if (s->life != LIFE_PENDING)
		s->has_outcome = true;
}

/* Look a verification up */
static bool
look(const pg_uuid_t *id, bool latest, Datum workspaces, Standing *s)
{
	MessageState *messages;
	int			n;
	char	   *detail;

	memset(s, 0, sizeof(Standing));
	if (!verification_find(workspaces, id, latest, &s->v))
		return false;
	n = verification_messages(&s->v, latest, &messages);
	judge(s, messages, n, GetCurrentTimestamp());

	/* Made in SPI's memory, which does not outlive the look-up */
	if (s->error_detail != NULL)
	{
		size_t		size = strlen(s->error_detail) + 1;

		detail = SPI_palloc(size);
		memcpy(detail, s->error_detail, size);
		s->error_detail = detail;
	}
	return true;
}

/* Set a text column */
static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
	else
		nulls[column] = true;
}

/* Set a timestamp column */
static void
set_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	if (time != 0)
		values[column] = TimestampTzGetDatum(time);
	else
		nulls[column] = true;
}

/* Fill in the row */
static void
fill_row(const Standing *s, Datum *values, bool *nulls)
{
	memset(nulls, 0, sizeof(bool) * STATUS_COLUMNS);
	values[0] = verb_id(&s->v.id);
	values[1] = CStringGetTextDatum(life_name(s->life));
	values[2] = CStringGetTextDatum(s->v.phone);
	values[3] = CStringGetTextDatum(s->channel);
	values[4] = TimestampTzGetDatum(s->v.created_at);
	values[5] = TimestampTzGetDatum(s->v.expires_at);
	set_time(values, nulls, 6, s->v.verified_at);
	values[7] = Int32GetDatum(s->attempts);
	values[8] = BoolGetDatum(s->fallback_used);
	values[9] = CStringGetTextDatum(s->v.template_name);
	values[10] = CStringGetTextDatum(s->v.language);
	set_text(values, nulls, 11, s->message_id);
	set_time(values, nulls, 12, s->sent_at);
	set_time(values, nulls, 13, s->delivered_at);
	set_time(values, nulls, 14, s->ended_at);
	values[15] = Int32GetDatum(Max(0, s->v.max_attempts - s->attempts));
	set_text(values, nulls, 16, s->error);
	set_text(values, nulls, 17, s->error_detail);
	values[18] = s->v.metadata;
	nulls[18] = !s->v.has_metadata;
}

/* Give one row, or none, of a set-returning function */
static Datum
return_row(FunctionCallInfo fcinfo, bool found, const Standing *s)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[STATUS_COLUMNS];
	bool		nulls[STATUS_COLUMNS];

	InitMaterializedSRF(fcinfo, 0);
	if (found)
	{
		fill_row(s, values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Tell where it stands */
Datum
otp_status(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	Standing	s;
	pg_uuid_t	id;
	char	   *id_text;
	bool		found;
	Datum		workspaces;

	if (PG_ARGISNULL(0))
		error_invalid_argument("argument \"otp_id\" is NULL", "Give the otp_id that otp_send returned.");
	id_text = text_to_cstring(PG_GETARG_TEXT_PP(0));

	verb_begin(&scope, "otp_status()", VERB_READS);
	workspaces = workspace_granted(scope.caller, false);
	found = ulid_parse(id_text, strlen(id_text), &id) &&
		look(&id, false, workspaces, &s);
	verb_end(&scope);

	return return_row(fcinfo, found, &s);
}

/* Wait for the first message's outcome */
Datum
otp_wait(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	Standing	s;
	pg_uuid_t	id;
	char	   *id_text;
	bool		found = false;
	TimestampTz until = GetCurrentTimestamp();
	FullTransactionId xid = GetTopFullTransactionIdIfAny();
	bool		first = true;

	if (PG_ARGISNULL(0))
		error_invalid_argument("argument \"otp_id\" is NULL", "Give the otp_id that otp_send returned.");
	id_text = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!PG_ARGISNULL(1))
	{
		Interval   *timeout = PG_GETARG_INTERVAL_P(1);
		int64		us = timeout->time + (int64) (timeout->day + 30 * timeout->month) * USECS_PER_DAY;

		if (us < 0 || us > MAX_WAIT)
			error_invalid_argument("the timeout is out of range", "It is 0 to 30 seconds.");
		until += us;
	}

	/*
	 * Prepared first, so that an outcome between a look and the wait is not
	 * missed
	 */
	ConditionVariablePrepareToSleep(roster_settled());
	for (;;)
	{
		TimestampTz now;
		Datum		workspaces;

		verb_begin(&scope, "otp_wait()", VERB_READS);
		workspaces = workspace_granted(scope.caller, false);
		found = ulid_parse(id_text, strlen(id_text), &id) &&
			look(&id, true, workspaces, &s);
		verb_end(&scope);

		if (first && found && s.v.test_outcome == NULL && FullTransactionIdIsValid(xid) &&
			s.v.created_xid == U64FromFullTransactionId(xid))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("this verification was sent by the current transaction"),
					 errhint("Commit first: nothing leaves before."),
					 errhidestmt(true),
					 errhidecontext(true)));
		first = false;

		now = GetCurrentTimestamp();
		if (!found || s.has_outcome || now >= until)
			break;
		CHECK_FOR_INTERRUPTS();
		(void) ConditionVariableTimedSleep(roster_settled(),
										   Min(WAIT_SLICE_MS, (long) ((until - now) / 1000) + 1),
										   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();

	return return_row(fcinfo, found, &s);
}
