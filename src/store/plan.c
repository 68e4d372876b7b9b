/*-------------------------------------------------------------------------
 *
 * plan.c
 *	  Prepared statements of the store.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "optimizer/cost.h"
#include "utils/snapmgr.h"

#include "store/plan.h"

/* Prepare and keep */
SPIPlanPtr
plan_keep(SPIPlanPtr *slot, const char *sql, int nargs, const Oid *argtypes)
{
	SPIPlanPtr	plan;

	if (*slot != NULL)
		return *slot;

	/* Generic from the first run: all of them are look-ups by key */
	plan = SPI_prepare_cursor(sql, nargs, (Oid *) argtypes, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor returned %s", SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan did not keep a plan");
	*slot = plan;
	return plan;
}

/* Prepare for one leaf */
SPIPlanPtr
plan_keep_leaf(SPIPlanPtr *plans, int leaf, const char *sql, int nargs, const Oid *argtypes)
{
	StringInfoData text;
	const char *rest = sql;
	const char *mark;

	if (leaf < 0 || leaf >= ULID_SLOTS)
		elog(ERROR, "no leaf %d in the ring", leaf);
	if (plans[leaf] != NULL)
		return plans[leaf];

	initStringInfo(&text);
	while ((mark = strstr(rest, "%02d")) != NULL)
	{
		appendBinaryStringInfo(&text, rest, mark - rest);
		appendStringInfo(&text, "%02d", leaf);
		rest = mark + 4;
	}
	appendStringInfoString(&text, rest);
	plan_keep(&plans[leaf], text.data, nargs, argtypes);
	pfree(text.data);
	return plans[leaf];
}

/* Run a kept plan */
int
plan_run(SPIPlanPtr plan, Datum *values, const char *nulls,
		 Snapshot snapshot, bool read_only, long limit)
{
	volatile int rc = 0;
	bool		saved = enable_seqscan;

	/*
	 * It is planned now, if it has not been. A leaf that was analyzed while
	 * empty, as a nightly VACUUM ANALYZE finds tomorrow's, would be read as a
	 * whole, and go on to be until it is analyzed again.
	 */
	PG_TRY();
	{
		enable_seqscan = false;
		if (snapshot == NULL)
			rc = SPI_execute_plan(plan, values, nulls, read_only, limit);
		else
			rc = SPI_execute_snapshot(plan, values, nulls, snapshot,
									  InvalidSnapshot, read_only, true, limit);
	}
	PG_FINALLY();
	{
		enable_seqscan = saved;
	}
	PG_END_TRY();
	if (rc < 0)
		elog(ERROR, "SPI returned %s", SPI_result_code_string(rc));
	return rc;
}

/* Open a cursor */
Portal
plan_open(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	Portal volatile portal = NULL;
	bool		saved = enable_seqscan;

	/* As above: this may be where it is planned */
	PG_TRY();
	{
		enable_seqscan = false;
		portal = SPI_cursor_open(NULL, plan, values, nulls, true);
	}
	PG_FINALLY();
	{
		enable_seqscan = saved;
	}
	PG_END_TRY();
	return portal;
}

/* Run under latest snapshot */
int
plan_run_latest(SPIPlanPtr plan, Datum *values, const char *nulls, long limit)
{
	Snapshot	snapshot;
	int			rc;

	/* Own earlier changes of this transaction must be seen, too */
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	rc = plan_run(plan, values, nulls, snapshot, false, limit);
	UnregisterSnapshot(snapshot);
	return rc;
}

/* Give the schema of the verbs */
const char *
plan_verbs_schema(void)
{
	if (SPI_execute("SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e"
					" JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'otp'",
					true, 1) != SPI_OK_SELECT || SPI_processed == 0)
		elog(ERROR, "could not find the schema of the verbs");
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}
