/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  What the views on statistics are made from, beside their tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_authid.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "store/stats.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_stats_rest);
EXPORTED_FUNCTION(otp_usage_rest);
EXPORTED_FUNCTION(otp_roll_up);

/* Rows of a step when the caller wants all at once */
#define ROLL_UP_ROWS 20000

/* Give the hours that are not summed up yet */
Datum
otp_stats_rest(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	VerbScope	scope;
	HASH_SEQ_STATUS scan;
	TallyHour  *row;
	Tally	   *t;

	InitMaterializedSRF(fcinfo, 0);
	verb_begin(&scope, "stats_rest", VERB_READS);

	/* The same who may see the view's other rows */
	t = stats_rest(has_privs_of_role(scope.caller, ROLE_PG_MONITOR) ? stats_all_workspaces() :
				   workspace_granted(scope.caller, true));
	hash_seq_init(&scan, t->hours);
	while ((row = hash_seq_search(&scan)) != NULL)
	{
		Datum		values[13];
		bool		nulls[13] = {false};

		stats_hour_values(row, values);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	verb_end(&scope);
	return (Datum) 0;
}

/* Give the days that are not summed up yet */
Datum
otp_usage_rest(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	VerbScope	scope;
	HASH_SEQ_STATUS scan;
	TallyDay   *row;
	Tally	   *t;

	InitMaterializedSRF(fcinfo, 0);
	verb_begin(&scope, "usage_rest", VERB_READS);
	t = stats_rest(workspace_granted(scope.caller, true));
	hash_seq_init(&scan, t->days);
	while ((row = hash_seq_search(&scan)) != NULL)
	{
		Datum		values[13];
		bool		nulls[13] = {false};

		stats_day_values(row, values);
		nulls[12] = row->price == (Datum) 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	verb_end(&scope);
	return (Datum) 0;
}

/* Sum up now */
Datum
otp_roll_up(PG_FUNCTION_ARGS)
{
	/* What the last call suggests for the next one */
	static int64 window = 0;
	VerbScope	scope;
	StatsStep	step = {0};
	int64		rows = 0;
	bool		all = PG_ARGISNULL(0);

	owner_require("roll_up");
	if (!all && PG_GETARG_INT32(0) < 1)
		error_invalid_argument("argument \"max_rows\" is less than 1", "NULL is all that is old enough.");
	verb_begin(&scope, "otp.roll_up()", VERB_WRITES);
	step.limit = all ? ROLL_UP_ROWS : PG_GETARG_INT32(0);
	step.patient = true;
	step.window = window;
	do
	{
		(void) stats_step(GetCurrentTimestamp(), &step);
		rows += step.rows;
	} while (all && step.more);
	window = step.window;
	verb_end(&scope);
	PG_RETURN_INT64(rows);
}
