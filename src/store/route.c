/*-------------------------------------------------------------------------
 *
 * route.c
 *	  Which provider account carries a workspace's messages.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "store/outbox.h"
#include "store/plan.h"
#include "store/route.h"

/* A workspace's account, unless it is another one's own, or gone */
#define ACCOUNT_OF(channel) "SELECT a.account_id FROM otp.provider_accounts a" \
	" WHERE a.account_id = w." channel "_account AND coalesce(a.exclusive_to, w.workspace_id) = w.workspace_id"

static bool changed = true;

/* Take in a change */
static void
note_change(Datum arg, Oid relid)
{
	/*
	 * Statement triggers on the tables of the configuration send an
	 * invalidation. Other relations are changed rarely enough that we need
	 * not tell them apart.
	 */
	changed = true;
}

/* Tell whether configuration may have changed */
bool
route_changed(void)
{
	static bool registered = false;
	bool		result = changed;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(note_change, (Datum) 0);
		registered = true;
	}
	changed = false;
	return result;
}

/* Copy a text out of SPI's memory; NULL is NULL */
static char *
column_text(int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);

	return value != NULL ? MemoryContextStrdup(context, value) : NULL;
}

/* Give an integer; NULL is 0 */
static Datum
column_datum(int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, isnull);
}

/* Read a workspace's route */
bool
route_load(int32 workspace_id, Route *route)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	Datum		fallback_after;
	bool		isnull;

	plan_keep(&plan,
			  "SELECT w.app_name,"
			  " CASE WHEN w.whatsapp_enabled THEN coalesce((" ACCOUNT_OF("whatsapp") "), 0) ELSE 0 END,"
			  " CASE WHEN w.sms_enabled THEN coalesce((" ACCOUNT_OF("sms") "), 0) ELSE 0 END,"
			  " w.fallback_after, w.whatsapp_sender, w.sms_sender,"
			  " w.credits_metered AND w.fallback_credits > 0, w.refund_failed"
			  " FROM otp.workspaces w WHERE w.workspace_id = $1",
			  1, types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run(plan, values, NULL, NULL, true, 1);
	MemoryContextSwitchTo(context);
	if (SPI_processed == 0)
		return false;
	route->workspace_id = workspace_id;
	route->app_name = column_text(1, context);
	route->whatsapp_account = DatumGetInt32(column_datum(2, &isnull));
	route->sms_account = DatumGetInt32(column_datum(3, &isnull));
	fallback_after = column_datum(4, &isnull);
	route->fallback_us = isnull ? 0 : store_interval(fallback_after);
	route->whatsapp_sender = column_text(5, context);
	route->sms_sender = column_text(6, context);
	route->prices_fallback = DatumGetBool(column_datum(7, &isnull));
	route->refunds = DatumGetBool(column_datum(8, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return true;
}

/* Copy an array's texts into the current context; NULLs are left out */
static char **
copy_texts(ArrayType *array, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;
	char	  **texts;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &n);
	texts = palloc(Max(n, 1) * sizeof(char *));
	*count = 0;
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			texts[(*count)++] = TextDatumGetCString(elements[i]);
	}
	return texts;
}

/* Read an account */
bool
route_load_account(int32 account_id, int64 known_version,
				   RouteAccount *account, bool *account_changed)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;
	Datum		secrets;
	Datum		numbers;
	bool		isnull;

	plan_keep(&plan,
			  "SELECT a.version, a.name, a.provider, a.settings::text, a.secrets, a.key_id, a.version <> $2, a.receipts_from"
			  " FROM otp.provider_accounts a WHERE a.account_id = $1",
			  2, types);
	values[0] = Int32GetDatum(account_id);
	values[1] = Int64GetDatum(known_version);
	plan_run(plan, values, NULL, NULL, true, 1);
	MemoryContextSwitchTo(context);
	if (SPI_processed == 0)
		return false;

	*account_changed = DatumGetBool(column_datum(7, &isnull));
	if (*account_changed)
	{
		account->account_id = account_id;
		account->version = DatumGetInt64(column_datum(1, &isnull));
		account->name = column_text(2, context);
		account->provider = column_text(3, context);
		account->settings = column_text(4, context);
		secrets = column_datum(5, &isnull);
		account->secrets = NULL;
		if (!isnull)
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			account->secrets = DatumGetByteaPCopy(secrets);
			MemoryContextSwitchTo(old);
		}
		account->key_id = DatumGetInt32(column_datum(6, &isnull));
		account->receipts_from = NULL;
		account->nreceipts_from = 0;
		numbers = column_datum(8, &isnull);
		if (!isnull)
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			account->receipts_from = copy_texts(DatumGetArrayTypeP(numbers), &account->nreceipts_from);
			MemoryContextSwitchTo(old);
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return true;
}

/* Note receipts */
bool
route_note_receipts(int32 account_id, const char *from)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;

	/*
	 * Not while somebody has the row: it would be waited for, and another
	 * receipt will come
	 */
	plan_keep(&plan,
			  "UPDATE otp.provider_accounts a SET receipts_from = CASE WHEN $2 = ANY (a.receipts_from) THEN a.receipts_from"
			  " ELSE pg_catalog.array_append(a.receipts_from, $2) END WHERE a.account_id = $1"
			  " AND EXISTS (SELECT 1 FROM otp.provider_accounts l WHERE l.account_id = $1 FOR NO KEY UPDATE SKIP LOCKED)",
			  2, types);
	values[0] = Int32GetDatum(account_id);
	values[1] = CStringGetTextDatum(from);
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return SPI_processed > 0;
}

/* Give an account's workspaces */
Datum
route_workspaces(int32 account_id, int *count)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(account_id)};
	MemoryContext context = CurrentMemoryContext;
	ArrayType  *ids;
	bool		isnull;

	plan_keep(&plan,
			  "SELECT array(SELECT w.workspace_id FROM otp.workspaces w"
			  " WHERE $1 IN (w.whatsapp_account, w.sms_account))",
			  lengthof(types), types);
	plan_run(plan, values, NULL, NULL, true, 1);
	MemoryContextSwitchTo(context);
	ids = DatumGetArrayTypePCopy(column_datum(1, &isnull));
	*count = ArrayGetNItems(ARR_NDIM(ids), ARR_DIMS(ids));
	SPI_freetuptable(SPI_tuptable);
	return PointerGetDatum(ids);
}
