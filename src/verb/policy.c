/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  Ask a workspace's policy function.
 *
 * The function is somebody else's code. It runs as its owner, in a
 * security-restricted operation, so that it cannot change the role; at a
 * level of settings of its own, which is always rolled back; in a
 * subtransaction, so that a failure costs nothing but the send; and with a
 * timer of its own, because a statement_timeout that is set within a running
 * statement has no effect. Whatever is not one of its three answers denies.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/memnodes.h"
#include "nodes/pg_list.h"
#include "nodes/value.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/typcache.h"
#include "utils/varlena.h"

#include "store/country.h"
#include "verb/send.h"
#include "verb/verb.h"

/*
 * A function may catch query_canceled: it is canceled again and again while
 * it lasts, and when it has caught so many the session ends.
 */
#define CANCEL_MS 100
#define MAX_CANCELS 10

/* The columns of otp.send_request, in their order */
enum
{
	REQUEST_WORKSPACE,
	REQUEST_PHONE,
	REQUEST_COUNTRY,
	REQUEST_CHANNEL,
	REQUEST_FALLBACK_SMS,
	REQUEST_TEMPLATE,
	REQUEST_LANGUAGE,
	REQUEST_LENGTH,
	REQUEST_EXPIRES_IN,
	REQUEST_CONTEXT,
	REQUEST_METADATA,
	REQUEST_LIMIT_KEYS,
	REQUEST_COLUMNS
};

/* What came of asking; only the first three are answers */
typedef enum PolicyAnswer
{
	POLICY_ALLOW,
	POLICY_SHADOW,
	POLICY_DENY,
	POLICY_UNKNOWN,				/* another answer */
	POLICY_NULL,
	POLICY_UNQUALIFIED,			/* its name has no schema */
	POLICY_MISSING,
	POLICY_LATE,
	POLICY_FAILED,				/* it raised an error */
	POLICY_CANCELED,			/* the caller's statement is canceled */
	POLICY_TIMED_OUT,			/* by the caller's statement_timeout */
	POLICY_TRY_AGAIN			/* the caller's transaction is to be run again */
} PolicyAnswer;

/* A policy function is running in this session */
static bool asking = false;

/* The timer, registered once for each process */
static TimeoutId timer;
static bool timer_registered = false;

/* Set by the signal handler: the time is up, and how often the function was canceled for that */
static volatile sig_atomic_t late;
static volatile sig_atomic_t cancels;

/* The time is up; in a signal handler */
static void
time_is_up(void)
{
	late = true;

	/* A cancel that still stands was not caught: it may be in a system call */
	if (!QueryCancelPending)
	{
		if (cancels >= MAX_CANCELS)
			ProcDiePending = true;
		else
		{
			cancels++;
			QueryCancelPending = true;
		}
	}
	InterruptPending = true;
	enable_timeout_after(timer, CANCEL_MS);
}

/* Start the timer */
static void
start_timer(int ms)
{
	if (!timer_registered)
	{
		timer = RegisterTimeout(USER_TIMEOUT, time_is_up);
		timer_registered = true;
	}
	enable_timeout_after(timer, Max(ms, 1));
}

/* Stop the timer, and take back a cancel of its that was not heeded yet */
static void
stop_timer(void)
{
	if (!timer_registered)
		return;
	disable_timeout(timer, false);
	if (cancels > 0)
		QueryCancelPending = false;
}

/* Say why a session ends that its owner has not ended */
static void
explain_end(void *arg)
{
	if (cancels >= MAX_CANCELS && geterrcode() == ERRCODE_ADMIN_SHUTDOWN)
		errdetail_log("Policy function \"%s\" went on after its time was over, and caught %d cancels.",
					  (const char *) arg, MAX_CANCELS);
}

/* Find the function; gives its owner */
static PolicyAnswer
find_function(const char *name, Oid request_type, Oid *function, Oid *owner)
{
	List	   *names = textToQualifiedNameList(cstring_to_text(name));
	Oid			schema;
	HeapTuple	tuple;
	Form_pg_proc form;
	bool		fits;

	if (list_length(names) != 2)
		return POLICY_UNQUALIFIED;
	schema = get_namespace_oid(strVal(linitial(names)), true);
	if (!OidIsValid(schema))
		return POLICY_MISSING;
	tuple = SearchSysCache3(PROCNAMEARGSNSP, CStringGetDatum(strVal(lsecond(names))),
							PointerGetDatum(buildoidvector(&request_type, 1)), ObjectIdGetDatum(schema));
	if (!HeapTupleIsValid(tuple))
		return POLICY_MISSING;
	form = (Form_pg_proc) GETSTRUCT(tuple);
	fits = form->prokind == PROKIND_FUNCTION && form->prorettype == TEXTOID && !form->proretset;
	*function = form->oid;
	*owner = form->proowner;
	ReleaseSysCache(tuple);
	return fits ? POLICY_ALLOW : POLICY_MISSING;
}

/* Set a column of the request */
static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
	else
		nulls[column] = true;
}

/* Make the argument */
static Datum
make_request(const SendRequest *r, const char *country, Oid type)
{
	const Verification *v = &r->v;
	TupleDesc	desc = lookup_rowtype_tupdesc(type, -1);
	Datum		values[REQUEST_COLUMNS];
	bool		nulls[REQUEST_COLUMNS] = {false};
	HeapTuple	tuple;

	if (desc->natts != REQUEST_COLUMNS)
		elog(ERROR, "type otp.send_request has %d columns", desc->natts);
	set_text(values, nulls, REQUEST_WORKSPACE, r->w->name);
	set_text(values, nulls, REQUEST_PHONE, v->phone);
	set_text(values, nulls, REQUEST_COUNTRY, country);
	set_text(values, nulls, REQUEST_CHANNEL, v->channel);
	values[REQUEST_FALLBACK_SMS] = BoolGetDatum(v->fallback_sms);
	set_text(values, nulls, REQUEST_TEMPLATE, v->template_name);
	set_text(values, nulls, REQUEST_LANGUAGE, v->language);
	values[REQUEST_LENGTH] = Int32GetDatum(v->length);
	values[REQUEST_EXPIRES_IN] = Int32GetDatum(r->expires_in);
	set_text(values, nulls, REQUEST_CONTEXT, v->context);
	values[REQUEST_METADATA] = v->metadata;
	nulls[REQUEST_METADATA] = !v->has_metadata;
	values[REQUEST_LIMIT_KEYS] = r->limit_keys != NULL ? limit_keys_datum(r->limit_keys) : (Datum) 0;
	nulls[REQUEST_LIMIT_KEYS] = values[REQUEST_LIMIT_KEYS] == (Datum) 0;
	tuple = heap_form_tuple(desc, values, nulls);
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}

/* Understand what the function gave */
static PolicyAnswer
read_answer(Datum value)
{
	static const char *const names[] = {
		[POLICY_ALLOW] = "allow",
		[POLICY_SHADOW] = "shadow",
		[POLICY_DENY] = "deny"
	};
	text	   *answer = DatumGetTextPP(value);

	for (int i = 0; i < lengthof(names); i++)
		if (VARSIZE_ANY_EXHDR(answer) == strlen(names[i]) &&
			memcmp(VARDATA_ANY(answer), names[i], strlen(names[i])) == 0)
			return (PolicyAnswer) i;
	return POLICY_UNKNOWN;
}

/* Find the memory context whose children are the portals' */
static MemoryContext
portals_context(void)
{
	static MemoryContext found = NULL;

	for (MemoryContext context = TopMemoryContext->firstchild; found == NULL && context != NULL;
		 context = context->nextchild)
		if (strcmp(context->name, "TopPortalContext") == 0)
			found = context;
	if (found == NULL)
		elog(ERROR, "there is no memory context of portals");
	return found;
}

/* Find a cursor that was opened in this subtransaction */
static Portal
find_cursor(void)
{
	SubTransactionId mine = GetCurrentSubTransactionId();

	/*
	 * Each portal has a context there that is called as it is. pg_cursors
	 * lists them, too, but takes longer than most policy functions.
	 */
	for (MemoryContext context = portals_context()->firstchild; context != NULL; context = context->nextchild)
	{
		Portal		portal = context->ident != NULL ? GetPortalByName(context->ident) : NULL;

		if (portal != NULL && portal->createSubid == mine)
			return portal;
	}
	return NULL;
}

/*
 * Close the cursors that the function has left open
 *
 * Whoever fetches from one runs its functions, with rights of his own: that
 * would be the caller, should he use cursors of the same name.
 */
static void
close_cursors(void)
{
	Portal		portal;

	while ((portal = find_cursor()) != NULL)
	{
		if (portal->portalPinned)
			UnpinPortal(portal);
		PortalDrop(portal, false);
	}
}

/* Call the function, inside of the subtransaction */
static PolicyAnswer
call_function(const SendRequest *r, const char *country)
{
	LOCAL_FCINFO(fcinfo, 1);
	FmgrInfo	flinfo;
	PgStat_FunctionCallUsage usage;
	Oid			type;
	Oid			function;
	Oid			owner;
	Oid			userid;
	int			sec_context;
	int			guc_level;
	Datum		request;
	Datum		value;
	PolicyAnswer answer;

	type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("send_request"),
						   ObjectIdGetDatum(get_namespace_oid("otp", false)));
	if (!OidIsValid(type))
		elog(ERROR, "there is no type otp.send_request");
	answer = find_function(r->w->policy_function, type, &function, &owner);
	if (answer != POLICY_ALLOW)
		return answer;
	request = make_request(r, country, type);

	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(owner, sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	guc_level = NewGUCNestLevel();

	/*
	 * Looked up afresh each time: what a language keeps in an FmgrInfo is not
	 * made to outlive a transaction.
	 */
	InvokeFunctionExecuteHook(function);
	fmgr_info(function, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = request;
	fcinfo->args[0].isnull = false;
	pgstat_init_function_usage(fcinfo, &usage);
	start_timer(r->w->policy_timeout_ms);
	value = FunctionCallInvoke(fcinfo);
	stop_timer();
	pgstat_end_function_usage(&usage, true);
	close_cursors();

	/*
	 * An answer that comes too late is none, even where nobody could cut it
	 * short
	 */
	if (late)
		answer = POLICY_LATE;
	else
		answer = fcinfo->isnull ? POLICY_NULL : read_answer(value);

	/* Whatever it has set, for the session or not */
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(userid, sec_context);
	return answer;
}

/* Understand an error */
static PolicyAnswer
judge_error(int sqlstate, bool had_statement_timeout)
{
	if (sqlstate == ERRCODE_QUERY_CANCELED)
	{
		if (had_statement_timeout && !get_timeout_active(STATEMENT_TIMEOUT))
			return POLICY_TIMED_OUT;
		return cancels > 0 ? POLICY_LATE : POLICY_CANCELED;
	}

	/* The caller's transaction cannot succeed, but another one can */
	if (sqlstate == ERRCODE_T_R_SERIALIZATION_FAILURE || sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED)
		return POLICY_TRY_AGAIN;
	return late ? POLICY_LATE : POLICY_FAILED;
}

/* Ask the function in a subtransaction; gives the SQLSTATE of an error */
static PolicyAnswer
ask(const SendRequest *r, const char *country, int *sqlstate)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	bool		had_statement_timeout = get_timeout_active(STATEMENT_TIMEOUT);
	ErrorContextCallback explain;
	volatile PolicyAnswer answer = POLICY_FAILED;

	late = false;
	cancels = 0;
	explain.callback = explain_end;
	explain.arg = r->w->policy_function;
	explain.previous = error_context_stack;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		error_context_stack = &explain;
		answer = call_function(r, country);
		error_context_stack = explain.previous;

		/* What it has written stays with an answer, and goes without one */
		if (answer == POLICY_ALLOW || answer == POLICY_SHADOW)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(old);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		stop_timer();
		MemoryContextSwitchTo(old);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(old);
		CurrentResourceOwner = owner;
		*sqlstate = error->sqlerrcode;
		answer = judge_error(error->sqlerrcode, had_statement_timeout);

		/* Its text is the function's, and may hold the phone */
		FreeErrorData(error);
	}
	PG_END_TRY();
	return answer;
}

/* Tell whoever runs the server why a send is denied; never the client */
static void
log_failure(const Workspace *w, PolicyAnswer answer, int sqlstate)
{
	const char *why = NULL;

	switch (answer)
	{
		case POLICY_UNKNOWN:
			why = "gave an answer that is not allow, deny or shadow";
			break;
		case POLICY_NULL:
			why = "gave NULL";
			break;
		case POLICY_UNQUALIFIED:
			why = "is not named with its schema";
			break;
		case POLICY_MISSING:
			why = "is not there as a function (otp.send_request) that returns text";
			break;
		case POLICY_LATE:
			why = psprintf("did not answer within %d ms", w->policy_timeout_ms);
			break;
		case POLICY_FAILED:
			why = psprintf("raised SQLSTATE %s", unpack_sql_state(sqlstate));
			break;
		default:
			return;
	}
	ereport(LOG_SERVER_ONLY,
			(errmsg_internal("policy function \"%s\" of workspace \"%s\" %s: the send is denied",
							 w->policy_function, w->name, why),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/* Raise what ends the caller's statement whatever the policy */
static void
raise_callers(PolicyAnswer answer, int sqlstate)
{
	const char *message;

	switch (answer)
	{
		case POLICY_CANCELED:
			message = "canceling statement due to user request";
			break;
		case POLICY_TIMED_OUT:
			message = "canceling statement due to statement timeout";
			break;
		case POLICY_TRY_AGAIN:
			message = sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED ? "deadlock detected in the policy function"
				: "could not serialize access in the policy function";
			break;
		default:
			return;
	}
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg_internal("%s", message),
			 answer == POLICY_TRY_AGAIN ? errhint("The transaction might succeed if retried.") : 0,
			 errhidestmt(true),
			 errhidecontext(true)));
}

/* Ask the policy function */
bool
policy_allows(const SendRequest *r)
{
	const char *country;
	PolicyAnswer answer = POLICY_FAILED;
	int			sqlstate = 0;

	if (r->w->policy_function == NULL)
		return true;
	if (asking)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a policy function cannot send for a workspace that has one"),
				 errhidestmt(true),
				 errhidecontext(true)));

	country = country_find(country_kept(), r->v.phone, strlen(r->v.phone));
	if (country[0] == '\0')
		country = NULL;

	/* The function may call verbs, and those may read the configuration anew */
	workspace_hold();
	PG_TRY();
	{
		asking = true;
		answer = ask(r, country, &sqlstate);
	}
	PG_FINALLY();
	{
		asking = false;
	}
	PG_END_TRY();

	if (answer == POLICY_ALLOW || answer == POLICY_SHADOW)
		return answer == POLICY_ALLOW;
	raise_callers(answer, sqlstate);
	log_failure(r->w, answer, sqlstate);

	/* One answer for all: why is the server log's */
	error_raise(OTP_POLICY_DENIED, "the workspace's policy denies this send",
				"The workspace's policy_function in otp.workspaces decides; where it fails, the server log says so.",
				-1, NULL);
	return false;
}
