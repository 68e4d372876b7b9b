/*-------------------------------------------------------------------------
 *
 * account.c
 *	  The rows of otp.provider_accounts, as they are configured.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "base/seal.h"
#include "store/account.h"
#include "store/key.h"
#include "store/plan.h"

/* Name what secrets are sealed for */
char *
account_purpose(int account_id)
{
	return psprintf("provider_accounts:%d", account_id);
}

/* Read and lock an account */
void
account_lock(const char *name, const char *provider, AccountRow *account)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TEXTOID};
	Datum		values[1];
	bool		isnull;
	Datum		sealed;
	HeapTuple	tuple;
	TupleDesc	desc;

	plan_keep(&plan,
			  "SELECT a.account_id, a.provider, a.settings::text, a.secrets, a.key_id"
			  " FROM otp.provider_accounts a WHERE a.name = $1 FOR UPDATE",
			  lengthof(types), types);
	values[0] = CStringGetTextDatum(name);
	plan_run(plan, values, NULL, NULL, false, 1);

	account->account_id = 0;
	account->settings = pstrdup("{}");
	account->secrets = pstrdup("{}");
	if (SPI_processed == 0)
		return;

	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	if (strcmp(SPI_getvalue(tuple, desc, 2), provider) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("provider account \"%s\" is another provider's", name),
				 errhint("Choose another name in the argument \"account\".")));
	account->account_id = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull));
	account->settings = SPI_getvalue(tuple, desc, 3);
	sealed = SPI_getbinval(tuple, desc, 4, &isnull);
	if (!isnull)
	{
		bytea	   *secrets = DatumGetByteaPCopy(sealed);
		int			key_id = DatumGetInt32(SPI_getbinval(tuple, desc, 5, &isnull));
		size_t		length;

		key_require(key_id);
		account->secrets = unseal(secrets, account_purpose(account->account_id), key_id, &length);
	}
}

/* Write an account */
int
account_store(const char *name, const char *provider, const AccountRow *account)
{
	static SPIPlanPtr insert_plan = NULL;
	static SPIPlanPtr update_plan = NULL;
	Oid			insert_types[] = {TEXTOID, TEXTOID};
	Oid			update_types[] = {INT4OID, TEXTOID, BYTEAOID, INT4OID, TEXTARRAYOID};
	Datum		values[5];
	Datum	   *names;
	int			n = 0;
	ListCell   *cell;
	int			account_id = account->account_id;
	int			key_id = key_for_writing();

	/* The id is needed to seal: it says which row the secrets belong to */
	if (account_id == 0)
	{
		bool		isnull;

		plan_keep(&insert_plan,
				  "INSERT INTO otp.provider_accounts (name, provider) VALUES ($1, $2) RETURNING account_id",
				  lengthof(insert_types), insert_types);
		values[0] = CStringGetTextDatum(name);
		values[1] = CStringGetTextDatum(provider);
		plan_run(insert_plan, values, NULL, NULL, false, 0);
		account_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}

	plan_keep(&update_plan,
			  "UPDATE otp.provider_accounts SET settings = $2::jsonb, secrets = $3, key_id = $4, secret_names = $5,"
			  " version = version + 1, updated_at = pg_catalog.clock_timestamp() WHERE account_id = $1",
			  lengthof(update_types), update_types);
	values[0] = Int32GetDatum(account_id);
	values[1] = CStringGetTextDatum(account->settings);
	values[2] = PointerGetDatum(seal(account->secrets, strlen(account->secrets), account_purpose(account_id), key_id));
	values[3] = Int32GetDatum(key_id);
	names = palloc(sizeof(Datum) * Max(list_length(account->secret_names), 1));
	foreach(cell, account->secret_names)
		names[n++] = CStringGetTextDatum(lfirst(cell));
	values[4] = PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
	plan_run(update_plan, values, NULL, NULL, false, 0);
	return account_id;
}

/* Have a workspace use an account */
void
account_use(int workspace_id, const char *channel, int account_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, INT4OID};
	Datum		values[3];

	plan_keep(&plan,
			  "UPDATE otp.workspaces SET"
			  " whatsapp_account = CASE WHEN $2 = 'whatsapp' THEN $3 ELSE whatsapp_account END,"
			  " sms_account = CASE WHEN $2 = 'sms' THEN $3 ELSE sms_account END"
			  " WHERE workspace_id = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(channel);
	values[2] = Int32GetDatum(account_id);
	plan_run(plan, values, NULL, NULL, false, 0);
}
