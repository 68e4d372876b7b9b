/*-------------------------------------------------------------------------
 *
 * workspace.c
 *	  Workspaces, their policy, and who may act for them.
 *
 * Policy changes rarely and is needed at every send, so a session keeps what
 * it has read. Statement triggers on the tables of the configuration send a
 * relcache invalidation, which every session has taken in before its next
 * statement: an UPDATE of a policy holds from its commit on, everywhere.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/error.h"
#include "base/guard.h"
#include "base/guc.h"
#include "base/owner.h"
#include "store/outbox.h"
#include "store/plan.h"
#include "store/workspace.h"

/* A workspace's account, unless it is another one's own, or gone */
#define ACCOUNT_OF(channel) "(SELECT a.account_id FROM otp.provider_accounts a" \
	" WHERE a.account_id = w." channel "_account AND coalesce(a.exclusive_to, w.workspace_id) = w.workspace_id)"

/* What this session has read; all of it lives in cache_context */
static MemoryContext cache_context = NULL;
static bool cache_stale = true;
static bool cache_held = false; /* somebody may still use it after a change */
static List *workspaces = NIL;	/* Workspace */
static Oid	granted_caller = InvalidOid;
static int32 granted_key = 0;	/* the workspace of the key that was granted
								 * it; 0: by its role */
static MemoryContext granted_context = NULL;	/* of what follows; in
												 * cache_context */
static Datum granted_ids;		/* int4[] */
static int	granted_count;

/* A granted workspace by its name */
typedef struct GrantedName
{
	char	   *name;
	int32		workspace_id;
} GrantedName;

static GrantedName *granted_names;	/* granted_count of them, in the order of
									 * names */

/* Take in a change of the configuration */
static void
note_relation_change(Datum arg, Oid relid)
{
	/*
	 * Any relation will do: telling ours apart would need their OIDs, and
	 * other relations change their definitions rarely enough.
	 */
	cache_stale = true;
}

/* Take in a change of memberships or roles */
static void
note_role_change(Datum arg, int cacheid, uint32 hashvalue)
{
	cache_stale = true;
}

/* Start from nothing after a change */
static void
refresh_cache(void)
{
	static bool callbacks_registered = false;

	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(note_relation_change, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, note_role_change, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHOID, note_role_change, (Datum) 0);
		callbacks_registered = true;
	}

	/*
	 * Not every statement of a transaction takes in what others have
	 * committed
	 */
	AcceptInvalidationMessages();
	if (!cache_stale)
		return;

	/*
	 * Whoever holds what it was given does so in this transaction, or has
	 * ended
	 */
	if (cache_held && cache_context != NULL)
	{
		MemoryContextSetParent(cache_context, TopTransactionContext);
		cache_context = NULL;
	}
	cache_held = false;

	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "otp configuration",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(cache_context);
	workspaces = NIL;
	granted_caller = InvalidOid;
	granted_key = 0;
	granted_context = NULL;

	/* Before the reading, so that a change during it is not missed */
	cache_stale = false;
}

/* Keep what was given */
void
workspace_hold(void)
{
	cache_held = true;
}

/* Have all sessions read again */
void
workspace_invalidate(Oid relid)
{
	CacheInvalidateRelcacheByRelid(relid);
}

/* Give a text column, copied, or NULL */
static char *
column_text(int column)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);
}

/* Give an integer column; NULL is 0 */
static int64
column_int(int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull);

	if (isnull)
		return 0;
	return SPI_gettypeid(SPI_tuptable->tupdesc, column) == INT8OID ? DatumGetInt64(value) : DatumGetInt32(value);
}

/* Give an interval column in microseconds; NULL is 0 */
static int64
column_interval(int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? 0 : store_interval(value);
}

/* Give a boolean column */
static bool
column_bool(int column)
{
	bool		isnull;

	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull));
}

/* Take a list of prefixes over, in the current context */
static void
column_prefixes(int column, PrefixList *list)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, &isnull);
	Datum	   *elements;
	int			n;

	list->count = -1;
	list->prefixes = NULL;
	if (isnull)
		return;

	/* The table's own check says that there are no NULLs */
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
	list->prefixes = palloc(sizeof(char *) * Max(n, 1));
	list->count = n;
	for (int i = 0; i < n; i++)
		list->prefixes[i] = TextDatumGetCString(elements[i]);
}

/* Read the limits of a workspace's keys into the cache */
static void
load_key_limits(Workspace *w)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(w->workspace_id)};

	plan_keep(&plan,
			  "SELECT k.prefix, coalesce(k.sends_per_hour, 0), coalesce(k.sends_per_day, 0)"
			  " FROM otp.key_limits k WHERE k.workspace_id = $1",
			  lengthof(types), types);
	plan_run_latest(plan, values, NULL, 0);
	w->key_limits = MemoryContextAlloc(cache_context, sizeof(KeyLimit) * Max(SPI_processed, 1));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		KeyLimit   *limit = &w->key_limits[i];
		bool		isnull;

		limit->prefix = MemoryContextStrdup(cache_context, SPI_getvalue(row, SPI_tuptable->tupdesc, 1));
		limit->sends_per_hour = DatumGetInt32(SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull));
		limit->sends_per_day = DatumGetInt32(SPI_getbinval(row, SPI_tuptable->tupdesc, 3, &isnull));
	}
	w->key_limit_count = (int) SPI_processed;
}

/* Read a workspace by id or by name into the cache */
static const Workspace *
load_workspace(int32 workspace_id, const char *name)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[2] = {INT4OID, TEXTOID};
	Datum		values[2];
	char		nulls[2];
	MemoryContext old;
	Workspace  *w;
	char	   *mode;
	char	   *function;
	bool		has_key_limits;

	plan_keep(&plan,
			  "SELECT w.workspace_id, w.name, w.default_template, w.default_channel, w.default_language,"
			  " w.default_length, w.default_expires_in, w.default_fallback_sms, w.whatsapp_enabled, w.sms_enabled,"
			  " " ACCOUNT_OF("whatsapp") ", " ACCOUNT_OF("sms") ", w.sends_per_second, w.sends_per_phone_hour, w.sends_per_phone_day,"
			  " w.resend_cooldown, w.max_attempts, w.failures_per_phone_day,"
			  " w.min_code_length, w.max_expires_in, w.require_context,"
			  " w.suspended_at IS NOT NULL, w.sends_burst, w.failure_delay,"
			  " w.failure_delay_after, w.max_failures_in_row, w.credits_metered, w.fallback_credits, w.guard_mode,"
			  " w.policy_function, w.policy_timeout,"
			  " w.allowed_prefixes, w.whatsapp_allowed_prefixes, w.sms_allowed_prefixes,"
			  " w.denied_prefixes, w.whatsapp_denied_prefixes, w.sms_denied_prefixes, w.guard_exempt_prefixes,"
			  " EXISTS (SELECT 1 FROM otp.test_numbers t WHERE t.workspace_id = w.workspace_id),"
			  " EXISTS (SELECT 1 FROM otp.key_limits k WHERE k.workspace_id = w.workspace_id)"
			  " FROM otp.workspaces w WHERE w.workspace_id = $1 OR w.name = $2",
			  2, types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = name != NULL ? CStringGetTextDatum(name) : (Datum) 0;
	nulls[0] = name != NULL ? 'n' : ' ';
	nulls[1] = name != NULL ? ' ' : 'n';
	plan_run_latest(plan, values, nulls, 1);
	if (SPI_processed == 0)
		return NULL;

	old = MemoryContextSwitchTo(cache_context);
	w = palloc0(sizeof(Workspace));
	w->workspace_id = column_int(1);
	w->name = MemoryContextStrdup(cache_context, column_text(2));
	w->default_template = MemoryContextStrdup(cache_context, column_text(3));
	w->default_channel = MemoryContextStrdup(cache_context, column_text(4));
	w->default_language = MemoryContextStrdup(cache_context, column_text(5));
	w->default_length = column_int(6);
	w->default_expires_in = column_int(7);
	w->default_fallback_sms = column_bool(8);
	w->whatsapp_enabled = column_bool(9);
	w->sms_enabled = column_bool(10);
	w->whatsapp_account = column_int(11);
	w->sms_account = column_int(12);
	w->sends_per_second = column_int(13);
	w->sends_per_phone_hour = column_int(14);
	w->sends_per_phone_day = column_int(15);
	w->resend_cooldown = column_interval(16);
	w->max_attempts = column_int(17);
	w->failures_per_phone_day = column_int(18);
	w->min_code_length = column_int(19);
	w->max_expires_in = column_int(20);
	w->require_context = column_bool(21);
	w->suspended = column_bool(22);
	w->sends_burst = column_int(23);
	w->failure_delay = column_interval(24);
	w->failure_delay_after = column_int(25);
	w->max_failures_in_row = column_int(26);
	w->credits_metered = column_bool(27);
	w->fallback_credits = column_int(28);
	mode = column_text(29);
	w->guard_mode = strcmp(mode, "block") == 0 ? GUARD_BLOCK : strcmp(mode, "record") == 0 ? GUARD_RECORD : GUARD_OFF;
	function = column_text(30);
	w->policy_function = function != NULL ? MemoryContextStrdup(cache_context, function) : NULL;
	w->policy_timeout_ms = (int) (column_interval(31) / 1000);
	for (int scope = 0; scope < PREFIX_SCOPES; scope++)
	{
		column_prefixes(32 + scope, &w->allowed[scope]);
		column_prefixes(32 + PREFIX_SCOPES + scope, &w->denied[scope]);
	}
	column_prefixes(38, &w->guard_exempt);
	w->has_test_numbers = column_bool(39);
	has_key_limits = column_bool(40);

	/* Whoever reads this goes on to send without being counted */
	if (w->guard_mode == GUARD_OFF)
		guard_forget(w->workspace_id);
	MemoryContextSwitchTo(old);
	if (has_key_limits)
		load_key_limits(w);

	/* Whole: an error in between leaves it unused */
	old = MemoryContextSwitchTo(cache_context);
	workspaces = lcons(w, workspaces);
	MemoryContextSwitchTo(old);
	return w;
}

/* Find a workspace by name */
static const Workspace *
find_workspace(const char *name)
{
	ListCell   *cell;

	foreach(cell, workspaces)
	{
		const Workspace *w = lfirst(cell);

		if (strcmp(w->name, name) == 0)
			return w;
	}
	return load_workspace(0, name);
}

/* Find a workspace by id */
const Workspace *
workspace_by_id(int32 workspace_id)
{
	ListCell   *cell;

	foreach(cell, workspaces)
	{
		const Workspace *w = lfirst(cell);

		if (w->workspace_id == workspace_id)
			return w;
	}
	return load_workspace(workspace_id, NULL);
}

/* Give a workspace, as it is now */
const Workspace *
workspace_read(int32 workspace_id)
{
	refresh_cache();
	return workspace_by_id(workspace_id);
}

/* Raise for a caller without a grant */
static void
refuse_caller(Oid caller, const char *workspace)
{
	const char *role = GetUserNameFromId(caller, false);

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 workspace != NULL
			 ? errmsg("permission denied for workspace \"%s\"", workspace)
			 : errmsg("no workspace is granted to role \"%s\"", role),
			 errhint("Let the owner of the extension run SELECT otp.grant_workspace(%s, %s).",
					 quote_literal_cstr(workspace != NULL ? workspace : "default"), quote_literal_cstr(role)),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/* Order granted workspaces by name */
static int
compare_names(const void *a, const void *b)
{
	return strcmp(((const GrantedName *) a)->name, ((const GrantedName *) b)->name);
}

/* The API key that acts */
static struct
{
	int32		workspace_id;	/* 0: none does */
	int32		key_id;
	LocalTransactionId lxid;
	SubTransactionId subid;
} acting_key;

/* Let a key act */
void
workspace_enter_key(int32 workspace_id, int32 key_id)
{
	acting_key. workspace_id = workspace_id;
	acting_key. key_id = key_id;
	acting_key. lxid = compat_lxid();
	acting_key. subid = GetCurrentSubTransactionId();
}

/* No key acts any more */
void
workspace_leave_key(void)
{
	acting_key. workspace_id = 0;
}

/*
 * Give the key that acts for a caller
 *
 * An error leaves it here; that its subtransaction is over shows it. Code of
 * others, called from within, runs as somebody else.
 */
int32
workspace_acting_key(Oid caller)
{
	if (acting_key.workspace_id == 0 || acting_key.lxid != compat_lxid() ||
		!SubTransactionIsActive(acting_key.subid) || caller != owner_id())
		return 0;
	return acting_key.key_id;
}

/* Grant the one workspace of the key that acts */
static void
load_key(int32 workspace_id)
{
	const Workspace *w;
	Datum		id = Int32GetDatum(workspace_id);
	MemoryContext old;

	if (granted_key == workspace_id)
		return;
	w = workspace_by_id(workspace_id);
	granted_key = 0;
	granted_caller = InvalidOid;
	if (granted_context == NULL)
		granted_context = AllocSetContextCreate(cache_context, "otp grants", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(granted_context);
	old = MemoryContextSwitchTo(granted_context);
	granted_count = w != NULL ? 1 : 0;
	granted_names = palloc(sizeof(GrantedName));
	granted_names[0].name = pstrdup(w != NULL ? w->name : "");
	granted_names[0].workspace_id = workspace_id;
	granted_ids = PointerGetDatum(construct_array(&id, granted_count, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	granted_key = workspace_id;
	MemoryContextSwitchTo(old);
}

/* Read the workspaces granted to a caller */
static void
load_granted(Oid caller)
{
	static SPIPlanPtr all_plan = NULL;
	static SPIPlanPtr grants_plan = NULL;
	MemoryContext old;
	Datum	   *ids;
	int			n = 0;
	bool		all;

	if (workspace_acting_key(caller) != 0)
	{
		load_key(acting_key.workspace_id);
		return;
	}
	if (granted_caller == caller && OidIsValid(caller))
		return;
	all = has_privs_of_role(caller, owner_id());

	if (all)
	{
		plan_keep(&all_plan, "SELECT w.workspace_id, NULL::oid, w.name FROM otp.workspaces w ORDER BY 1", 0, NULL);
		plan_run_latest(all_plan, NULL, NULL, 0);
	}
	else
	{
		plan_keep(&grants_plan,
				  "SELECT g.workspace_id, g.role::oid, w.name FROM otp.workspace_grants g"
				  " JOIN otp.workspaces w ON w.workspace_id = g.workspace_id ORDER BY 1", 0, NULL);
		plan_run_latest(grants_plan, NULL, NULL, 0);
	}

	/* A pool's session may change its role millions of times */
	granted_caller = InvalidOid;
	granted_key = 0;
	if (granted_context == NULL)
		granted_context = AllocSetContextCreate(cache_context, "otp grants", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(granted_context);

	ids = palloc(sizeof(Datum) * Max(SPI_processed, 1));
	old = MemoryContextSwitchTo(granted_context);
	granted_names = palloc(sizeof(GrantedName) * Max(SPI_processed, 1));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		id = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		Datum		role = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);
		Datum		name = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3, &isnull);

		if (!all && !has_privs_of_role(caller, DatumGetObjectId(role)))
			continue;
		if (n > 0 && ids[n - 1] == id)
			continue;
		granted_names[n].name = TextDatumGetCString(name);
		granted_names[n].workspace_id = DatumGetInt32(id);
		ids[n++] = id;
	}
	qsort(granted_names, n, sizeof(GrantedName), compare_names);
	granted_ids = PointerGetDatum(construct_array(ids, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	granted_count = n;
	granted_caller = caller;
	MemoryContextSwitchTo(old);
}

/*
 * Find a granted workspace by name
 *
 * Among the granted ones only: whether there is one of this name that is not
 * must not show in the time that the refusal takes either.
 */
static const Workspace *
find_granted(const char *name)
{
	GrantedName key = {(char *) name, 0};
	const GrantedName *found = bsearch(&key, granted_names, granted_count, sizeof(GrantedName), compare_names);

	return found != NULL ? workspace_by_id(found->workspace_id) : NULL;
}

/* Resolve the acting workspace */
const Workspace *
workspace_acting(Oid caller, const char *name)
{
	const Workspace *w;

	refresh_cache();
	load_granted(caller);

	/* The session's setting is nothing to a key */
	if (name == NULL && otp_workspace != NULL && otp_workspace[0] != '\0' && workspace_acting_key(caller) == 0)
		name = otp_workspace;

	if (name != NULL)
	{
		/* One answer for a workspace that is not there and one not granted */
		w = find_granted(name);
		if (w == NULL)
			refuse_caller(caller, name);
		return w;
	}

	if (granted_count == 0)
		refuse_caller(caller, NULL);
	if (granted_count > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("several workspaces are granted and none is chosen"),
				 errdetail_internal("{\"code\":\"invalid_request\"}"),
				 errhint("Name one in the argument \"workspace\" or in the setting otp.workspace."),
				 errhidestmt(true),
				 errhidecontext(true)));
	w = workspace_by_id(*(const int32 *) ARR_DATA_PTR(DatumGetArrayTypeP(granted_ids)));
	if (w == NULL)
		refuse_caller(caller, NULL);
	return w;
}

/* Require a workspace that may send */
void
workspace_require_active(const Workspace *w)
{
	if (w->suspended)
		error_raise(OTP_WORKSPACE_SUSPENDED, "the workspace is suspended",
					"The owner of the extension can end that by otp.resume_workspace.", -1, NULL);
}

/* Give all granted workspaces */
Datum
workspace_granted(Oid caller, bool none_ok)
{
	refresh_cache();
	load_granted(caller);
	if (granted_count == 0 && !none_ok)
		refuse_caller(caller, NULL);
	return granted_ids;
}

/* Find the workspace to configure */
const Workspace *
workspace_named(const char *name)
{
	const Workspace *w;

	refresh_cache();
	w = find_workspace(name != NULL ? name : "default");
	if (w == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("workspace \"%s\" does not exist", name != NULL ? name : "default"),
				 errhint("SELECT name FROM otp.workspaces lists those that do.")));
	return w;
}
