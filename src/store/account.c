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
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "base/json.h"
#include "base/receipt_count.h"
#include "base/seal.h"
#include "base/signature.h"
#include "store/account.h"
#include "store/key.h"
#include "store/plan.h"

/* Most accounts of Meta among which others of the same app are looked for */
#define MAX_LISTED 1000

/* An account of Meta; its secrets are opened when it comes into question */
typedef struct ListedAccount
{
	char	   *name;
	char	   *sender;			/* NULL: none, as below */
	List	   *senders;		/* char *: of workspaces that use it */
	char	   *waba_id;
	bool		opened;
	const ReceiptAccount *account;	/* once opened; NULL: it is gone */
} ListedAccount;

/* What this session has read for receipts; all of it lives in cache_context */
static MemoryContext cache_context = NULL;
static bool cache_stale = true;
static List *cached = NIL;		/* ReceiptAccount */
static List *listed = NIL;		/* ListedAccount */
static bool listed_all = false;

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
			  "SELECT a.account_id, a.provider, a.settings::text, a.secrets, a.key_id, a.exclusive_to"
			  " FROM otp.provider_accounts a WHERE a.name = $1 FOR UPDATE",
			  lengthof(types), types);
	values[0] = CStringGetTextDatum(name);
	plan_run(plan, values, NULL, NULL, false, 1);

	account->account_id = 0;
	account->settings = pstrdup("{}");
	account->secrets = pstrdup("{}");
	account->exclusive_to = 0;
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
	account->exclusive_to = DatumGetInt32(SPI_getbinval(tuple, desc, 6, &isnull));
	if (isnull)
		account->exclusive_to = 0;
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
		receipt_count_forget(account_id);
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
			  " whatsapp_sender = CASE WHEN $2 = 'whatsapp' AND whatsapp_account IS DISTINCT FROM $3 THEN NULL"
			  " ELSE whatsapp_sender END,"
			  " sms_account = CASE WHEN $2 = 'sms' THEN $3 ELSE sms_account END,"
			  " sms_sender = CASE WHEN $2 = 'sms' AND sms_account IS DISTINCT FROM $3 THEN NULL ELSE sms_sender END"
			  " WHERE workspace_id = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(channel);
	values[2] = Int32GetDatum(account_id);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Find an account and lock it */
bool
account_lock_use(const char *name, AccountUse *use)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;

	plan_keep(&plan,
			  "SELECT a.account_id, a.provider, a.exclusive_to FROM otp.provider_accounts a WHERE a.name = $1 FOR UPDATE",
			  lengthof(types), types);
	plan_run(plan, values, NULL, NULL, false, 1);
	if (SPI_processed == 0)
		return false;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	use->account_id = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull));
	use->provider = SPI_getvalue(tuple, desc, 2);
	use->exclusive_to = DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull));
	if (isnull)
		use->exclusive_to = 0;
	return true;
}

/* Count the other workspaces that use an account */
int
account_count_others(int account_id, int workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(account_id), Int32GetDatum(workspace_id)};
	bool		isnull;

	plan_keep(&plan,
			  "SELECT count(*)::int4 FROM otp.workspaces w"
			  " WHERE $1 IN (w.whatsapp_account, w.sms_account) AND w.workspace_id <> $2",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 1);
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

/* Set a workspace's own sender */
void
account_set_sender(int workspace_id, const char *channel, const char *sender)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(workspace_id), CStringGetTextDatum(channel),
	sender != NULL ? CStringGetTextDatum(sender) : (Datum) 0};
	char		nulls[] = {' ', ' ', sender != NULL ? ' ' : 'n'};

	plan_keep(&plan,
			  "UPDATE otp.workspaces SET"
			  " whatsapp_sender = CASE WHEN $2 = 'whatsapp' THEN $3 ELSE whatsapp_sender END,"
			  " sms_sender = CASE WHEN $2 = 'sms' THEN $3 ELSE sms_sender END"
			  " WHERE workspace_id = $1",
			  lengthof(types), types);
	plan_run(plan, values, nulls, NULL, false, 0);
}

/* Make an account a workspace's own, or shared */
void
account_set_exclusive(int account_id, int workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(account_id), Int32GetDatum(workspace_id)};

	plan_keep(&plan,
			  "UPDATE otp.provider_accounts a SET exclusive_to = NULLIF($2, 0) WHERE a.account_id = $1",
			  lengthof(types), types);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Require an account that a workspace may use */
void
account_require_free(const char *name, int exclusive_to, int workspace_id)
{
	if (exclusive_to == 0 || exclusive_to == workspace_id)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("provider account \"%s\" is another workspace's own", name),
			 errhint("otp.providers tells whose; otp.use_provider with that workspace and exclusive => false shares it."),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/*
 * For receipts
 */

/* Take in a change of the configuration; any relation will do, see workspace.c */
static void
note_relation_change(Datum arg, Oid relid)
{
	cache_stale = true;
}

/* Wipe a secret */
static void
wipe(char *secret)
{
	if (secret != NULL)
		explicit_bzero(secret, strlen(secret));
}

/* Start from nothing after a change */
static void
refresh_cache(void)
{
	static bool callback_registered = false;
	ListCell   *cell;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(note_relation_change, (Datum) 0);
		callback_registered = true;
	}

	/*
	 * Not every statement of a transaction takes in what others have
	 * committed
	 */
	AcceptInvalidationMessages();
	if (!cache_stale)
		return;

	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "otp receipt accounts",
											  ALLOCSET_SMALL_SIZES);
	foreach(cell, cached)
	{
		ReceiptAccount *account = lfirst(cell);

		wipe(account->secret);
		wipe(account->previous_secret);
		wipe(account->verify_token);
	}
	cached = NIL;
	listed = NIL;
	listed_all = false;
	MemoryContextReset(cache_context);

	/* Before the reading, so that a change during it is not missed */
	cache_stale = false;
}

/* Copy a member into the cache; NULL when it is not there */
static char *
keep_member(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value != NULL && value[0] != '\0' ? MemoryContextStrdup(cache_context, value) : NULL;
}

/* Put an account into the cache */
static const ReceiptAccount *
keep_account(int account_id, const char *name, const char *provider, const char *settings_text,
			 const char *secrets_text)
{
	bool		meta = strcmp(provider, "meta") == 0;
	json_t	   *volatile settings = NULL;
	json_t	   *volatile secrets = NULL;
	ReceiptAccount *account;
	MemoryContext old;

	/* jansson's memory is malloc's: free it on every path */
	PG_TRY();
	{
		char	   *utf8 = pg_server_to_any(settings_text, strlen(settings_text), PG_UTF8);

		settings = json_from_text(utf8, strlen(utf8));
		secrets = json_from_text(secrets_text, strlen(secrets_text));

		/*
		 * Or memory is short: then it must not be kept as one without a
		 * secret
		 */
		if (!json_is_object(settings) || !json_is_object(secrets))
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not read the settings of provider account \"%s\"", name),
					 errhidestmt(true),
					 errhidecontext(true)));
		account = MemoryContextAllocZero(cache_context, sizeof(ReceiptAccount));
		account->account_id = account_id;
		account->name = MemoryContextStrdup(cache_context, name);
		account->provider = MemoryContextStrdup(cache_context, provider);
		account->sender = keep_member(settings, meta ? "phone_number_id" : "account_sid");
		account->waba_id = keep_member(settings, "waba_id");
		account->verify_token = keep_member(secrets, "verify_token");
		account->secret = keep_member(secrets, meta ? "app_secret" : "auth_token");
		account->previous_secret = keep_member(secrets, meta ? "app_secret_previous" : "auth_token_previous");
	}
	PG_FINALLY();
	{
		json_decref(settings);
		json_decref(secrets);
	}
	PG_END_TRY();

	old = MemoryContextSwitchTo(cache_context);
	cached = lappend(cached, account);
	MemoryContextSwitchTo(old);
	return account;
}

/* Read an account by name and provider */
static void
read_by_name(const char *name, const char *provider)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[2];

	plan_keep(&plan,
			  "SELECT a.account_id, a.settings::text, a.secrets, a.key_id"
			  " FROM otp.provider_accounts a WHERE a.name = $1 AND a.provider = $2",
			  lengthof(types), types);
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(provider);
	plan_run_latest(plan, values, NULL, 1);
}

/* Read as for an account that is not there */
void
account_read_in_vain(const char *name, const char *provider)
{
	read_by_name(name, provider);
}

/* Find an account in the cache, or read it */
static const ReceiptAccount *
find_account(const char *name, const char *provider)
{
	ListCell   *cell;
	HeapTuple	tuple;
	TupleDesc	desc;
	Datum		sealed;
	bool		isnull;
	int			account_id;
	char	   *settings;
	char	   *secrets;
	const ReceiptAccount *account;

	foreach(cell, cached)
	{
		account = lfirst(cell);
		if (strcmp(account->name, name) == 0 && strcmp(account->provider, provider) == 0)
			return account;
	}
	read_by_name(name, provider);

	/* A name that is not there is not kept: anybody could fill our memory */
	if (SPI_processed == 0)
		return NULL;

	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	account_id = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull));
	settings = SPI_getvalue(tuple, desc, 2);
	secrets = pstrdup("{}");
	sealed = SPI_getbinval(tuple, desc, 3, &isnull);
	if (!isnull)
	{
		bytea	   *copy = DatumGetByteaPCopy(sealed);
		int			key_id = DatumGetInt32(SPI_getbinval(tuple, desc, 4, &isnull));

		key_require(key_id);
		secrets = unseal(copy, account_purpose(account_id), key_id, NULL);
	}
	account = keep_account(account_id, name, provider, settings, secrets);
	wipe(secrets);
	SPI_freetuptable(SPI_tuptable);
	return account;
}

/* Find an account for its receipts */
const ReceiptAccount *
account_for_receipts(const char *name, const char *provider)
{
	refresh_cache();
	return find_account(name, provider);
}

/* Make a list of an array's texts, in the current context */
static List *
list_texts(ArrayType *array)
{
	Datum	   *elements;
	int			n;
	List	   *list = NIL;

	/* Those that the statement gives are not NULL */
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	for (int i = 0; i < n; i++)
		list = lappend(list, TextDatumGetCString(elements[i]));
	pfree(elements);
	return list;
}

/* Copy a column into the cache; NULL when it is not there */
static char *
keep_column(int row, int column)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value != NULL ? MemoryContextStrdup(cache_context, value) : NULL;
}

/* List the accounts of Meta, with what a body can name them by */
static void
list_accounts(void)
{
	static SPIPlanPtr plan = NULL;

	plan_keep(&plan,
			  "SELECT a.name, a.settings ->> 'phone_number_id', a.settings ->> 'waba_id', s.senders"
			  " FROM otp.provider_accounts a"
			  " LEFT JOIN (SELECT w.whatsapp_account AS account_id, pg_catalog.array_agg(DISTINCT w.whatsapp_sender) AS senders"
			  " FROM otp.workspaces w WHERE w.whatsapp_sender IS NOT NULL GROUP BY w.whatsapp_account) s USING (account_id)"
			  " WHERE a.provider = 'meta' ORDER BY a.account_id",
			  0, NULL);
	plan_run_latest(plan, NULL, NULL, MAX_LISTED);

	listed = NIL;
	for (int i = 0; i < (int) SPI_processed; i++)
	{
		ListedAccount *l = MemoryContextAllocZero(cache_context, sizeof(ListedAccount));
		MemoryContext old;
		Datum		senders;
		bool		isnull;

		l->name = keep_column(i, 1);
		l->sender = keep_column(i, 2);
		l->waba_id = keep_column(i, 3);
		senders = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 4, &isnull);
		old = MemoryContextSwitchTo(cache_context);
		if (!isnull)
			l->senders = list_texts(DatumGetArrayTypeP(senders));
		listed = lappend(listed, l);
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	listed_all = true;
}

/* Compare what may not be there */
static bool
is_id(const char *value, const char *id)
{
	return value != NULL && strcmp(value, id) == 0;
}

/* Is it one of these? */
static bool
is_among(const List *values, const char *id)
{
	ListCell   *cell;

	foreach(cell, values)
	{
		if (strcmp(lfirst(cell), id) == 0)
			return true;
	}
	return false;
}

/* Find other accounts of the same app */
int
account_siblings(const ReceiptAccount *account, const char *secret, bool waba, const char *id,
				 const ReceiptAccount **siblings, int max)
{
	int			n = 0;
	ListCell   *cell;

	if (!listed_all)
		list_accounts();
	foreach(cell, listed)
	{
		ListedAccount *l = lfirst(cell);
		const ReceiptAccount *other;
		bool		own = is_id(waba ? l->waba_id : l->sender, id);
		bool		used = !waba && is_among(l->senders, id);

		/* Of accounts with the same number, the one that was named will do */
		if (!used && (!own || (!waba && is_id(account->sender, id))))
			continue;
		if (!l->opened)
			l->account = find_account(l->name, "meta");
		l->opened = true;

		/* It may have changed since the listing */
		other = l->account;
		if (other == NULL || (waba && other->account_id == account->account_id) ||
			(!used && !is_id(waba ? other->waba_id : other->sender, id)))
			continue;

		/*
		 * That both have the secret says no more than that both verify what
		 * it signed
		 */
		if (!signature_equal(other->secret, secret) && !signature_equal(other->previous_secret, secret))
			continue;
		if (n == max)
			break;
		siblings[n++] = other;
	}
	return n;
}
