/*-------------------------------------------------------------------------
 *
 * callback.c
 *	  What the providers call: their receipts, and Meta's handshake.
 *
 * The address says whose account it is; the signature proves it. Meta repeats
 * what is not answered with 200 for days, Twilio hardly at all; so what they
 * could do nothing about is answered in a way that has them repeat it, and
 * the rest in one that has not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/guc.h"
#include "listener/route.h"
#include "verb/caught.h"
#include "verb/receive.h"

/* Longest address that is signed */
#define MAX_URL 8192

/* A provider that is to repeat it waits so many seconds */
#define RETRY_SOON 1

/* A call of a function that takes receipts */
typedef struct Taking
{
	PGFunction	function;
	int			nargs;
	const char *args[4];		/* UTF-8 or bytes; NULL: NULL */
	int			body;			/* the argument that is the body; -1: none */
	const Request *request;
	char	   *result;			/* a text, if it gives one */
	MemoryContext context;
} Taking;

/* Call it; raises */
static void
take(void *arg)
{
	Taking	   *t = arg;
	Datum		result;

	LOCAL_FCINFO(fcinfo, 4);

	MemoryContextSwitchTo(t->context);

	/* The account's name; all else is only compared, byte by byte */
	t->args[0] = pg_any_to_server(t->args[0], strlen(t->args[0]), PG_UTF8);
	InitFunctionCallInfoData(*fcinfo, NULL, t->nargs, InvalidOid, NULL, NULL);
	for (int i = 0; i < t->nargs; i++)
	{
		fcinfo->args[i].isnull = i != t->body && t->args[i] == NULL;
		if (i == t->body)
			fcinfo->args[i].value = PointerGetDatum(cstring_to_text_with_len(t->request->body, t->request->length));
		else if (t->args[i] != NULL)
			fcinfo->args[i].value = CStringGetTextDatum(t->args[i]);
		else
			fcinfo->args[i].value = (Datum) 0;
	}
	result = t->function(fcinfo);
	if (t->body < 0)
		t->result = TextDatumGetCString(result);
}

/* Have receipts taken in a transaction; false when the request was refused */
static bool
taken(Request *r, Taking *t)
{
	ErrorData  *error;
	int			status;

	t->context = CurrentMemoryContext;
	t->request = r;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(t->context);
	error = caught_any(take, t, &status);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(t->context);
	if (error == NULL)
		return true;

	/*
	 * Without a secret to check by, it is as if there were no account; and
	 * there is none whose name the database cannot have
	 */
	if (status == 403 || error->sqlerrcode == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE ||
		(status == 0 && ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_DATA_EXCEPTION))
	{
		if (t->body < 0)
			route_refuse(r, 403, "invalid_verify_token", "the handshake is not valid", NULL, -1);
		else
			route_refuse(r, 403, "invalid_signature", "the signature of the receipt is not valid", NULL, -1);
	}
	else if (status == 0 || status >= 500)
	{
		/* The provider repeats it; here somebody has to mend it */
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("a receipt could not be taken: error %s", unpack_sql_state(error->sqlerrcode)),
				 errhidestmt(true),
				 errhidecontext(true)));
		route_refuse(r, 503, "unavailable", "the receipt could not be taken", NULL, RETRY_SOON);
	}
	else
		route_refuse(r, status, caught_code(error), error->message, NULL, -1);
	return false;
}

/* Answer Meta */
void
callback_meta(Request *r, const char *account)
{
	Taking		t;

	memset(&t, 0, sizeof(t));
	t.args[0] = account;
	if (strcmp(r->method, "POST") == 0)
	{
		t.function = otp_receive_meta;
		t.nargs = 3;
		t.body = 1;
		if (request_header_count(r, "x-hub-signature-256") == 1)
			t.args[2] = request_header(r, "x-hub-signature-256");
		if (taken(r, &t))
			request_answer(r, 200, "text/plain", "", 0);
		return;
	}
	t.function = otp_receive_meta_handshake;
	t.nargs = 4;
	t.body = -1;
	t.args[1] = arguments_query(r->query, "hub.mode");
	t.args[2] = arguments_query(r->query, "hub.verify_token");
	t.args[3] = arguments_query(r->query, "hub.challenge");
	if (taken(r, &t))
		request_answer(r, 200, "text/plain", t.result, strlen(t.result));
}

/* Answer Twilio */
void
callback_twilio(Request *r, const char *account)
{
	size_t		length = strlen(otp_http_public_url);
	Taking		t;

	/*
	 * It has signed the address that it knows, which is not the one that a
	 * proxy calls
	 */
	while (length > 0 && otp_http_public_url[length - 1] == '/')
		length--;
	if (length + strlen(r->target) > MAX_URL)
	{
		route_refuse(r, 414, "uri_too_long", "the address is too long", NULL, -1);
		return;
	}
	memset(&t, 0, sizeof(t));
	t.function = otp_receive_twilio;
	t.nargs = 4;
	t.body = 2;
	t.args[0] = account;
	t.args[1] = psprintf("%.*s%s", (int) length, otp_http_public_url, r->target);
	if (request_header_count(r, "x-twilio-signature") == 1)
		t.args[3] = request_header(r, "x-twilio-signature");
	if (taken(r, &t))
		request_answer(r, 204, NULL, NULL, 0);
}
