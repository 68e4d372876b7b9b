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
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/roster.h"
#include "verb/standing.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_status);
EXPORTED_FUNCTION(otp_wait);
EXPORTED_FUNCTION(otp_list_verifications);

/* Longest time that otp_wait waits */
#define MAX_WAIT (30 * USECS_PER_SEC)

/* Look again at least this often: a wake can be lost with its sender */
#define WAIT_SLICE_MS 250

#define STATUS_COLUMNS 19

/* Rows of a list, unless said otherwise; most of them; and most that are looked at for them */
#define LIST_DEFAULT 20
#define LIST_MAX 100
#define LIST_LOOKS 2000

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

/* Does a word name a state? */
static bool
is_life_name(const char *word)
{
	for (Life life = LIFE_PENDING; life <= LIFE_CANCELED; life++)
		if (strcmp(life_name(life), word) == 0)
			return true;
	return false;
}

/*
 * Tell where the last ones stand
 *
 * The last row says in next where to go on; it has nothing else in it when so
 * many others were looked at that the caller should ask again. What nobody
 * may act for is not there.
 */
Datum
otp_list_verifications(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	VerbScope	scope;
	char	   *phone = PG_ARGISNULL(0) ? NULL : verb_phone(fcinfo, 0);
	char	   *status = verb_text(fcinfo, 1, "status", NAMEDATALEN);
	int			limit = PG_ARGISNULL(2) ? LIST_DEFAULT : PG_GETARG_INT32(2);
	char	   *after = verb_text(fcinfo, 3, "after", NAMEDATALEN);
	char	   *workspace = verb_text(fcinfo, 4, "workspace", NAMEDATALEN);
	pg_uuid_t	ids[LIST_MAX + 1];
	pg_uuid_t	last;
	int32		workspace_id;
	Datum		workspaces;
	Standing   *found;
	int			rows = 0;
	int			looks = 0;
	int			n;
	bool		more;

	if (status != NULL && !is_life_name(status))
		error_invalid_argument("there is no such status",
							   "It is pending, delivered, verified, expired, failed or canceled.");
	if (limit < 1 || limit > LIST_MAX)
		error_invalid_argument("argument \"limit\" is out of range", "It is 1 to 100.");
	if (after != NULL && !ulid_parse(after, strlen(after), &last))
		error_invalid_argument("argument \"after\" is not an otp_id", "Give the last one of the page before.");
	found = palloc(sizeof(Standing) * limit);

	InitMaterializedSRF(fcinfo, 0);
	verb_begin(&scope, "list_verifications()", VERB_READS);
	workspace_id = workspace_acting(scope.caller, workspace)->workspace_id;
	workspaces = Int32GetDatum(workspace_id);
	workspaces = PointerGetDatum(construct_array(&workspaces, 1, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	do
	{
		n = verification_list(workspace_id, phone, after != NULL || looks > 0 ? &last : NULL, limit + 1, ids);
		more = n > limit;
		for (int i = 0; i < Min(n, limit) && rows < limit; i++)
		{
			looks++;
			last = ids[i];
			more = i < n - 1;
			if (standing_look(&ids[i], false, workspaces, &found[rows]) &&
				(status == NULL || strcmp(status, life_name(found[rows].life)) == 0))
				rows++;
		}
	} while (more && rows < limit && looks < LIST_LOOKS);
	verb_end(&scope);

	for (int i = 0; i < rows + 1; i++)
	{
		Datum		values[STATUS_COLUMNS + 1];
		bool		nulls[STATUS_COLUMNS + 1];
		bool		is_last = rows == 0 || i == rows - 1;

		/* After the last row there is none but for one without a verification */
		if (i == rows && !(rows == 0 && more))
			break;
		memset(nulls, true, sizeof(nulls));
		if (i < rows)
			fill_row(&found[i], values, nulls);
		nulls[STATUS_COLUMNS] = !(is_last && more);
		values[STATUS_COLUMNS] = nulls[STATUS_COLUMNS] ? (Datum) 0 : verb_id(&last);
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
		standing_look(&id, false, workspaces, &s);
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
			standing_look(&id, true, workspaces, &s);
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
