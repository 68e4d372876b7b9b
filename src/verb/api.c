/*-------------------------------------------------------------------------
 *
 * api.c
 *	  Calls of the functions of otp_api.
 *
 * A call runs in a subtransaction of its own, so that what goes wrong is an
 * answer while the transaction, and what others have done in it, stands. With
 * an API key it runs as the extension's owner, acting for the key's workspace
 * and no other; without one, which only SQL can do, as whoever calls.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <time.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/json.h"
#include "base/shmem.h"
#include "base/ulid.h"
#include "store/plan.h"
#include "store/workspace.h"
#include "verb/api_answer.h"
#include "verb/api_key.h"
#include "verb/caught.h"
#include "verb/send.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_api_call);

/* Longest header that is looked at */
#define MAX_HEADER 8192

/* Most functions; there is a plan for each */
#define MAX_FUNCTIONS 64

/* Who is told to come again, when nobody knows better, waits so many seconds */
#define RETRY_SOON 1

/* A call at work */
typedef struct Work
{
	const ApiCall *call;
	ApiAnswer  *answer;
	bool		key_required;
	Oid			caller;
	MemoryContext context;		/* of the answer */
} Work;

/* ---- errors ---- */

/* What PostgreSQL's own errors are to whoever speaks HTTP; the message is ours, for theirs may quote what was given */
static const struct
{
	int			sqlstate;
	int			status;
	const char *code;
	const char *message;
	int			retry_after;
}			others[] = {
	{ERRCODE_READ_ONLY_SQL_TRANSACTION, 503, "unavailable", "the database is read-only", RETRY_SOON},
	{ERRCODE_T_R_SERIALIZATION_FAILURE, 503, "unavailable", "the request was in the way of another one", RETRY_SOON},
	{ERRCODE_T_R_DEADLOCK_DETECTED, 503, "unavailable", "the request was in the way of another one", RETRY_SOON},
	{ERRCODE_LOCK_NOT_AVAILABLE, 503, "unavailable", "what the request needs is being used", RETRY_SOON},
	{ERRCODE_QUERY_CANCELED, 503, "unavailable", "the request has taken too long", RETRY_SOON},
	{ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, 503, "unavailable", "the server is at one of its limits", RETRY_SOON},
	{ERRCODE_OUT_OF_MEMORY, 503, "unavailable", "the server is short of memory", RETRY_SOON},
	{ERRCODE_DISK_FULL, 503, "unavailable", "the server's disk is full", RETRY_SOON},
	{ERRCODE_INSUFFICIENT_RESOURCES, 503, "unavailable", "the server is at one of its limits", RETRY_SOON},
	{ERRCODE_UNDEFINED_OBJECT, 404, "not_found", "there is no such object", -1},
	{ERRCODE_DUPLICATE_OBJECT, 409, "conflict", "there is one already", -1},
	{ERRCODE_UNIQUE_VIOLATION, 409, "conflict", "there is one already", -1},
};

/* Is its text ours, and fit for everybody? */
static bool
is_for_all(const ErrorData *error)
{
	/*
	 * All that verbs raise for their callers has a DETAIL for programs, or is
	 * hidden from the log for what it is about
	 */
	return error->detail != NULL && error->detail[0] == '{';
}

/* Make an error the answer */
static void
answer_error_data(Work *work, const ErrorData *error, int status)
{
	ApiError	e = API_ERROR("internal_error", "something went wrong", NULL);
	bool		envelope = work->call->envelope;
	json_t	   *detail = NULL;
	int64		seconds;

	if (status != 0)
	{
		e.code = caught_code(error);
		e.message = error->message;
		e.hint = error->hint;
		detail = is_for_all(error) ? json_from_text(error->detail, strlen(error->detail)) : NULL;
		if (json_member_int(detail, "retry_after", 0, PG_INT32_MAX, &seconds))
			e.retry_after = (int) seconds;
		e.limit = json_member_string(detail, "limit", NAMEDATALEN);
		e.prefix = json_member_string(detail, "prefix", NAMEDATALEN);
		if (status == 503 && e.retry_after < 0)
			e.retry_after = RETRY_SOON;

		/* A privilege that is missing is no news to whoever has shown no key */
		if (status == 403 && strcmp(e.code, "permission_denied") == 0)
		{
			e.message = "permission denied";
			e.hint = NULL;
			if (work->call->api_key == NULL)
			{
				status = 401;
				e.code = "invalid_api_key";
				e.message = "the API key is not valid";
				e.hint = "Give one in the header X-API-Key.";
			}
		}
	}
	else
	{
		status = 500;
		for (int i = 0; i < lengthof(others); i++)
		{
			if (others[i].sqlstate != error->sqlerrcode)
				continue;
			status = others[i].status;
			e.code = others[i].code;
			e.message = others[i].message;
			e.retry_after = others[i].retry_after;
		}
	}
	work->answer->lock_timeout = error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;

	/*
	 * Whoever can mend it reads the log; the statement and what it is about
	 * are not in it
	 */
	if (status == 500)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("otp_api.%s: error %s", work->call->function->name, unpack_sql_state(error->sqlerrcode)),
				 error->filename != NULL ? errdetail_internal("%s, line %d", error->filename, error->lineno) : 0,
				 errhidestmt(true),
				 errhidecontext(true)));
	api_answer_error(work->answer, status, &e, envelope);
	json_decref(detail);
}

/* ---- what a statement has given ---- */

/* How a guess can end, other than by being right or wrong */
static const struct
{
	const char *code;
	int			status;
	const char *message;
}			ends[] = {
	{"otp_not_found", 404, "there is no such verification"},
	{"otp_already_verified", 422, "this verification has already succeeded"},
	{"otp_canceled", 409, "this verification was canceled"},
	{"otp_expired", 410, "this verification has expired"},
	{"otp_failed", 424, "the code could not be delivered"},
	{"rate_limit_exceeded", 429, "no attempt is left, or the phone has to cool down"},
};

/* Give a column's text; NULL: none */
static char *
column_text(HeapTuple row, const char *name)
{
	int			column = SPI_fnumber(SPI_tuptable->tupdesc, name);

	return column > 0 ? SPI_getvalue(row, SPI_tuptable->tupdesc, column) : NULL;
}

/* Give a column that is a number; -1: none */
static int
column_int(HeapTuple row, const char *name)
{
	char	   *text = column_text(row, name);

	return text != NULL ? atoi(text) : -1;
}

/* Answer a guess */
static void
answer_guess(Work *work, HeapTuple row, StringInfo out)
{
	char	   *code = column_text(row, "error");
	char	   *id = column_text(row, "otp_id");
	ApiError	e = API_ERROR(code, "the code could not be checked", NULL);
	int			status = 500;
	Datum		verified_at;
	bool		isnull;

	if (code == NULL)
	{
		appendStringInfoString(out, "{\"valid\":true,\"otp_id\":");
		json_quote(out, id);
		appendStringInfoString(out, ",\"phone\":");
		json_quote(out, column_text(row, "phone"));
		appendStringInfoString(out, ",\"verified_at\":");
		verified_at = SPI_getbinval(row, SPI_tuptable->tupdesc, SPI_fnumber(SPI_tuptable->tupdesc,
																			"verified_at"), &isnull);
		api_write_time(out, DatumGetTimestampTz(verified_at));
		appendStringInfoString(out, ",\"channel\":");
		json_quote(out, column_text(row, "channel"));
		appendStringInfoChar(out, '}');
		return;
	}
	if (strcmp(code, "invalid_code") == 0)
	{
		appendStringInfoString(out, "{\"valid\":false,\"otp_id\":");
		json_quote(out,
				   id);
		appendStringInfo(out, ",\"error\":\"%s\",\"attempts_remaining\":%d}", code, column_int(row,
																							   "attempts_remaining"));
		return;
	}

	for (int i = 0; i < lengthof(ends); i++)
	{
		if (strcmp(ends[i].code, code) != 0)
			continue;
		status = ends[i].status;
		e.message = ends[i].message;
	}
	e.invalid = true;
	e.attempts_remaining = column_int(row, "attempts_remaining");
	e.retry_after = column_int(row, "retry_after");
	if (status == 429)
		e.hint = e.retry_after >= 0 ? "Wait for the seconds of retry_after." : "Send a new code.";
	else if (status != 404)
		e.hint = "Send a new code.";
	api_answer_error(work->answer, status, &e, work->call->envelope);
	resetStringInfo(out);
}

/* Answer that there is no row */
static void
answer_missing(Work *work)
{
	ApiError	e = API_ERROR("not_found", "there is no such object", NULL);

	if (strncmp(work->call->function->name, "otp_", 4) == 0)
	{
		e.code = error_code(OTP_NOT_FOUND);
		e.message = "there is no such verification";
	}
	api_answer_error(work->answer, 404, &e, work->call->envelope);
}

/* Write rows; those without a first column only say where to go on */
static void
write_rows(const ApiFunction *f, uint64 n, StringInfo out)
{
	bool		first = true;

	appendStringInfoChar(out, '[');
	for (uint64 i = 0; i < n; i++)
	{
		if (SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1) == NULL)
			continue;
		if (!first)
			appendStringInfoChar(out, ',');
		first = false;
		api_write_row(out, SPI_tuptable->vals[i], SPI_tuptable->tupdesc, f->shown);
	}
	appendStringInfoChar(out, ']');
}

/*
 * Write a page. Where to go on is in the last row's column next; a statement
 * without one gives one row more than fit into its argument limit, and its
 * first column is it.
 */
static void
write_page(Work *work, StringInfo out)
{
	const ApiFunction *f = work->call->function;
	uint64		limit = API_PAGE_DEFAULT;
	uint64		n = SPI_processed;
	char	   *next = NULL;

	for (int i = 0; i < f->nargs; i++)
		if (strcmp(f->args[i].name, "limit") == 0 && !work->call->nulls[i])
			limit = DatumGetInt32(work->call->values[i]);
	if (SPI_fnumber(SPI_tuptable->tupdesc, "next") <= 0)
	{
		if (n > limit)
		{
			n = limit;
			next = SPI_getvalue(SPI_tuptable->vals[n - 1], SPI_tuptable->tupdesc, 1);
		}
	}
	else if (n > 0)
		next = column_text(SPI_tuptable->vals[n - 1], "next");

	appendStringInfoString(out, "{\"data\":");
	write_rows(f, n, out);
	appendStringInfo(out, ",\"has_more\":%s,\"next\":", next != NULL ? "true" : "false");
	if (next != NULL)
		json_quote(out, next);
	else
		appendStringInfoString(out, "null");
	appendStringInfoChar(out, '}');
}

/* Make the answer of what a statement has given */
static void
answer_rows(Work *work, StringInfo out)
{
	const ApiFunction *f = work->call->function;
	ApiAnswer  *answer = work->answer;
	HeapTuple	row = SPI_processed > 0 ? SPI_tuptable->vals[0] : NULL;
	char	   *id;

	answer->status = f->status;
	if (row == NULL && f->result != API_ROWS && f->result != API_PAGE)
	{
		answer_missing(work);
		return;
	}
	switch (f->result)
	{
		case API_ROW:
			api_write_row(out, row, SPI_tuptable->tupdesc, f->shown);
			break;
		case API_ROWS:
			write_rows(f, SPI_processed, out);
			break;
		case API_PAGE:
			write_page(work, out);
			break;
		case API_NOTHING:
			break;
		case API_VERIFIED:
			answer_guess(work, row, out);
			break;
		case API_SENT:
			api_write_row(out, row, SPI_tuptable->tupdesc, f->shown);
			id = column_text(row, "otp_id");
			answer->sending = ulid_parse(id, strlen(id), &answer->id);
			break;
	}
}

/* ---- the call ---- */

/* Give the type of an argument */
static Oid
type_of(ApiType type)
{
	switch (type)
	{
		case API_TEXT:
			return TEXTOID;
		case API_INT:
			return INT4OID;
		case API_INT8:
			return INT8OID;
		case API_BOOL:
			return BOOLOID;
		case API_OBJECT:
			return JSONBOID;
		case API_TEXTS:
			return TEXTARRAYOID;
		case API_TIME:
			return TIMESTAMPTZOID;
	}
	return InvalidOid;
}

/* Prepare a function's statement */
static SPIPlanPtr
plan_of(const ApiFunction *f)
{
	static SPIPlanPtr plans[MAX_FUNCTIONS];
	Oid			types[API_MAX_ARGUMENTS + 2];
	int			ntypes = f->nargs;
	StringInfoData sql;
	const char *rest = f->sql;
	const char *mark;
	int			number = api_number(f);

	if (number >= MAX_FUNCTIONS)
		elog(ERROR, "there are more functions than plans");
	if (plans[number] != NULL)
		return plans[number];
	for (int i = 0; i < f->nargs; i++)
		types[i] = type_of(f->args[i].type);
	if (f->access == API_ADMIN_KEY)
	{
		types[ntypes++] = INT4OID;
		types[ntypes++] = TEXTOID;
	}
	initStringInfo(&sql);
	while ((mark = strstr(rest, "verbs.")) != NULL)
	{
		appendBinaryStringInfo(&sql, rest, mark - rest);
		appendStringInfo(&sql, "%s.", plan_verbs_schema());
		rest = mark + strlen("verbs.");
	}
	appendStringInfoString(&sql, rest);
	return plan_keep(&plans[number], sql.data, ntypes, types);
}

/* Run a function's statement */
static void
run_statement(Work *work, const ApiKey *key, StringInfo out)
{
	const ApiCall *call = work->call;
	const ApiFunction *f = call->function;
	Datum		values[API_MAX_ARGUMENTS + 2];
	char		nulls[API_MAX_ARGUMENTS + 2];
	int			n = f->nargs;

	for (int i = 0; i < f->nargs; i++)
	{
		values[i] = call->values[i];
		nulls[i] = call->nulls[i] ? 'n' : ' ';
	}
	if (f->access == API_ADMIN_KEY)
	{
		values[n] = Int32GetDatum(key->workspace_id);
		nulls[n++] = ' ';
		values[n] = CStringGetTextDatum(key->workspace);
		nulls[n++] = ' ';
	}
	plan_run(plan_of(f), values, nulls, NULL, f->reads, 0);
	answer_rows(work, out);
}

/* Send, without a statement */
static void
run_send(Work *work, StringInfo out)
{
	SendRequest r;
	bool		fell_back;

	LOCAL_FCINFO(fcinfo, API_MAX_ARGUMENTS);

	/* The verb has one argument more: the workspace */
	InitFunctionCallInfoData(*fcinfo, NULL, work->call->function->nargs + 1, InvalidOid, NULL, NULL);
	for (int i = 0; i < fcinfo->nargs; i++)
	{
		fcinfo->args[i].isnull = i == work->call->function->nargs || work->call->nulls[i];
		fcinfo->args[i].value = fcinfo->args[i].isnull ? (Datum) 0 : work->call->values[i];
	}
	fell_back = send_called(fcinfo, &r);
	api_write_sent(out, &r.v, fell_back ? "sms" : r.v.channel, r.expires_in, NULL);
	work->answer->status = work->call->function->status;

	/* What is only pretended to be on its way never comes to an end */
	work->answer->sending = !r.v.shadowed && (r.v.test_outcome == NULL || strcmp(r.v.test_outcome, "pending") != 0);
	work->answer->id = r.v.id;
}

/* Do all of it; raises */
static void
do_call(void *arg)
{
	Work	   *work = arg;
	const ApiCall *call = work->call;
	const ApiFunction *f = call->function;
	VerbScope	scope;
	ApiKey		key;
	const Workspace *w;
	StringInfoData out;
	int			guc_level;

	MemoryContextSwitchTo(work->context);
	initStringInfo(&out);
	if (call->api_key == NULL && !work->key_required && f->access == API_ANY_KEY)
	{
		/* As whoever calls, but for the search_path: the statement is ours */
		guc_level = NewGUCNestLevel();
		(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect did not connect");
		MemoryContextSwitchTo(work->context);
		if (f->sql != NULL)
			run_statement(work, NULL, &out);
		else
			run_send(work, &out);
		SPI_finish();
		AtEOXact_GUC(true, guc_level);
	}
	else
	{
		verb_begin(&scope, f->name, f->reads ? VERB_READS : VERB_WRITES);
		api_key_authenticate(call->api_key, call->api_key_length, &key);

		/* Known from here on, whatever comes */
		w = workspace_read(key.workspace_id);
		if (w == NULL)
			api_key_authenticate(NULL, 0, &key);
		api_answer_limits(work->answer, w);
		work->answer->workspace_id = key.workspace_id;
		if (f->access == API_ADMIN_KEY && !key.admin)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("this needs an admin key"),
					 errhidestmt(true),
					 errhidecontext(true)));
		workspace_enter_key(key.workspace_id, key.key_id);
		MemoryContextSwitchTo(work->context);
		if (f->sql != NULL)
			run_statement(work, &key, &out);
		else
			run_send(work, &out);
		workspace_leave_key();

		/* What is left now */
		w = workspace_by_id(key.workspace_id);
		if (w != NULL && work->answer->status != 429)
			api_answer_limits(work->answer, w);
		verb_end(&scope);
	}
	MemoryContextSwitchTo(work->context);
	if (out.len > 0)
	{
		work->answer->body = out.data;
		work->answer->length = out.len;
	}
}

/* Call a function */
static void
call_function(Work *work)
{
	ErrorData  *error;
	int			status;

	memset(work->answer, 0, sizeof(ApiAnswer));
	work->answer->retry_after = -1;
	error = caught_any(do_call, work, &status);
	if (error != NULL)
	{
		work->answer->sending = false;
		answer_error_data(work, error, status);
		FreeErrorData(error);
	}
	if (work->answer->reset_at == 0)
		work->answer->reset_at = (int64) time(NULL);
}

/* Call a function with a key */
void
api_call(const ApiCall *call, ApiAnswer *answer)
{
	Work		work = {call, answer, true, GetUserId(), CurrentMemoryContext};

	PushActiveSnapshot(GetTransactionSnapshot());
	call_function(&work);
	PopActiveSnapshot();
}

/* ---- PostgREST ---- */

/* Give a header that PostgREST has passed on; NULL: it did not come */
static char *
passed_header(json_t *headers, const char *name)
{
	const char *value = json_member_string(headers, name, MAX_HEADER);

	return value != NULL ? pstrdup(value) : NULL;
}

/* Tell PostgREST something for its answer, until the end of the transaction */
static void
set_response(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* Is the request's transaction to be rolled back? Whoever asks for that would be told of what then has not been. */
static bool
wants_rollback(const char *prefer)
{
	return prefer != NULL && strstr(prefer, "tx=rollback") != NULL;
}

/* Make a call of the arguments */
static const ApiFunction *
take_call(FunctionCallInfo fcinfo, ApiCall *call, json_t *headers)
{
	const ApiFunction *f = fcinfo->flinfo->fn_extra;
	char	   *bearer;

	if (f == NULL)
	{
		char	   *name = get_func_name(fcinfo->flinfo->fn_oid);

		f = name != NULL ? api_function(name) : NULL;
		if (f == NULL || f->nargs != PG_NARGS())
			elog(ERROR, "function \"%s\" is not one of otp_api", name != NULL ? name : "");
		fcinfo->flinfo->fn_extra = unconstify(ApiFunction *, f);
	}
	call->function = f;
	for (int i = 0; i < f->nargs; i++)
	{
		call->nulls[i] = PG_ARGISNULL(i);
		call->values[i] = call->nulls[i] ? (Datum) 0 : PG_GETARG_DATUM(i);
	}
	call->api_key = passed_header(headers, "x-api-key");
	bearer = passed_header(headers, "authorization");

	/* A JWT is PostgREST's own business */
	if (call->api_key == NULL && bearer != NULL && strncmp(bearer, "Bearer oat_", 11) == 0)
		call->api_key = bearer + 7;
	call->api_key_length = call->api_key != NULL ? strlen(call->api_key) : 0;
	return f;
}

/* Answer PostgREST */
Datum
otp_api_call(PG_FUNCTION_ARGS)
{
	const char *passed = GetConfigOption("request.headers", true, false);
	json_t	   *headers = passed != NULL && passed[0] != '\0' ? json_from_text(passed, strlen(passed)) : NULL;
	char	   *prefer = passed_header(headers, "prefer");
	ApiCall		call = {0};
	ApiAnswer	answer;
	Work		work = {&call, &answer, false, GetUserId(), CurrentMemoryContext};
	const ApiFunction *f = take_call(fcinfo, &call, headers);
	StringInfoData told;

	json_decref(headers);
	shmem_require();
	if (!f->reads && wants_rollback(prefer))
		api_refuse(&answer, false, 400, "invalid_request", "this transaction must not be rolled back",
				   "Leave tx=rollback out of the header Prefer.", -1);
	else
		call_function(&work);

	initStringInfo(&told);
	appendStringInfo(&told, "[{\"X-RateLimit-Remaining\": \"%d\"}, {\"X-RateLimit-Reset\": \"" INT64_FORMAT "\"}",
					 answer.remaining, answer.reset_at);
	if (answer.retry_after >= 0 && (answer.status == 429 || answer.status == 503))
		appendStringInfo(&told, ", {\"Retry-After\": \"%d\"}", answer.retry_after);
	appendStringInfoChar(&told, ']');
	set_response("response.headers", told.data);
	if (answer.status != 200)
		set_response("response.status", psprintf("%d", answer.status));
	if (answer.body == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text_with_len(answer.body, answer.length));
}
