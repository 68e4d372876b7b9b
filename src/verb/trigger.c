/*-------------------------------------------------------------------------
 *
 * trigger.c
 *	  The triggers on the tables of the configuration.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/owner.h"
#include "store/seed.h"
#include "store/workspace.h"

EXPORTED_FUNCTION(otp_note_change);
EXPORTED_FUNCTION(otp_replace_seed);
EXPORTED_FUNCTION(otp_refuse_change);

/* Have all sessions read the configuration again */
Datum
otp_note_change(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by a trigger")));
	workspace_invalidate(RelationGetRelid(((TriggerData *) fcinfo->context)->tg_relation));
	return PointerGetDatum(NULL);
}

/*
 * Let a row take the place of the one that CREATE EXTENSION made.
 *
 * pg_dump dumps a row that CREATE EXTENSION made only when it has been
 * changed since; restoring it must not fail because the new extension has
 * made the same one again.
 */
Datum
otp_replace_seed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Relation	rel;
	HeapTuple	tuple;
	int			column;
	OwnerScope	scope;
	bool		isnull;
	char	   *schema;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by a trigger before a row")));
	rel = trigger->tg_relation;

	/*
	 * Whoever got EXECUTE in some way has tables of these names and other
	 * columns
	 */
	schema = get_namespace_name(RelationGetNamespace(rel));
	if (schema == NULL || strcmp(schema, "otp") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function is only for the tables of extension \"otp\"")));
	column = SPI_fnumber(RelationGetDescr(rel), "seeded");

	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		/* A changed seed is a row like any other */
		Datum		no = BoolGetDatum(false);
		bool		no_null = false;

		return PointerGetDatum(heap_modify_tuple_by_cols(trigger->tg_newtuple, RelationGetDescr(rel),
														 1, &column, &no, &no_null));
	}

	tuple = trigger->tg_trigtuple;
	if (!DatumGetBool(heap_getattr(tuple, column, RelationGetDescr(rel), &isnull)))
	{
		owner_enter(&scope);
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect did not connect");
		seed_delete(rel, tuple);
		SPI_finish();
		owner_leave(&scope);
	}
	return PointerGetDatum(tuple);
}

/* Let rows be added, and nothing else */
Datum
otp_refuse_change(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by a trigger")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("rows of table \"%s\" cannot be changed or deleted",
					RelationGetRelationName(((TriggerData *) fcinfo->context)->tg_relation)),
			 errhint("They are a record: what is wrong is put right by a row that is added."),
			 errhidestmt(true),
			 errhidecontext(true)));
	return PointerGetDatum(NULL);
}
