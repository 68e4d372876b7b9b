/*-------------------------------------------------------------------------
 *
 * rate_limit.c
 *	  otp.rate_limit_status: what is left of the limits, without taking any.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "verb/send.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_rate_limit_status);

/* Where the rows go, and the time they are of */
typedef struct Telling
{
	ReturnSetInfo *rsinfo;
	TimestampTz now;
} Telling;

/* Give a row */
static void
tell(void *arg, const LimitUse *use)
{
	Telling    *t = arg;
	Datum		values[7];
	bool		nulls[7] = {false};

	values[0] = CStringGetTextDatum(use->name);
	nulls[1] = use->prefix == NULL;
	values[1] = use->prefix != NULL ? CStringGetTextDatum(use->prefix) : (Datum) 0;
	values[2] = Int32GetDatum(use->max);
	values[3] = Int32GetDatum(use->used);
	values[4] = Int32GetDatum(Max(use->max - use->used, 0));
	nulls[5] = use->resets_at == 0;
	values[5] = TimestampTzGetDatum(use->resets_at);
	nulls[6] = use->free_at == PG_INT64_MAX;
	values[6] = Int32GetDatum(use->free_at > t->now && !nulls[6] ? limits_seconds_until(use->free_at, t->now) : 0);
	tuplestore_putvalues(t->rsinfo->setResult, t->rsinfo->setDesc, values, nulls);
}

/* Tell what is left */
Datum
otp_rate_limit_status(PG_FUNCTION_ARGS)
{
	Telling		telling = {(ReturnSetInfo *) fcinfo->resultinfo};
	VerbScope	scope;
	const Workspace *w;
	char	   *phone = NULL;
	char	   *workspace;
	LimitKeys  *keys = NULL;

	if (!PG_ARGISNULL(0))
		phone = verb_phone(fcinfo, 0);
	if (!PG_ARGISNULL(1))
		keys = limit_keys_parse(PG_GETARG_ARRAYTYPE_P(1));
	workspace = verb_text(fcinfo, 2, "workspace", NAMEDATALEN);

	InitMaterializedSRF(fcinfo, 0);
	verb_begin(&scope, "rate_limit_status", VERB_READS);
	w = workspace_acting(scope.caller, workspace);
	telling.now = GetCurrentTimestamp();
	limits_tell(w, phone, telling.now, tell, &telling);
	limit_keys_tell(w, keys, telling.now, tell, &telling);
	verb_end(&scope);
	return (Datum) 0;
}
