/*-------------------------------------------------------------------------
 *
 * receive_api.c
 *	  otp_api.receive_meta and otp_api.receive_twilio: take what the providers
 *	  tell, through PostgREST.
 *
 * PostgREST hands a body over as it came when the function has one argument
 * without a name, and tells the headers in the setting request.headers. It
 * has no way to say more: which account is meant, and which address was
 * called, come in headers that the proxy in front sets. Neither has to be
 * trusted, for both are covered by the signature.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"

#include "base/json.h"
#include "verb/caught.h"
#include "verb/receive.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_api_receive_meta);
EXPORTED_FUNCTION(otp_api_receive_meta_handshake);
EXPORTED_FUNCTION(otp_api_receive_twilio);

/* Longest value of a header that is of use */
#define MAX_HEADER 8192

/* One call */
typedef struct ReceiveCall
{
	PGFunction	function;		/* of the schema otp */
	int			nargs;
	Datum		args[4];
	bool		nulls[4];
	Datum		result;
} ReceiveCall;

/* ---- what PostgREST tells, and is told ---- */

/* Give a header of the request; NULL: it did not come */
static char *
request_header(const char *name)
{
	const char *headers = GetConfigOption("request.headers", true, false);
	json_t	   *object = headers != NULL ? json_from_text(headers, strlen(headers)) : NULL;
	const char *value = json_member_string(object, name, MAX_HEADER);
	char	   *copy = value != NULL ? pstrdup(value) : NULL;

	json_decref(object);
	return copy;
}

/* Tell PostgREST something for the answer, until the end of the transaction */
static void
set_response(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* ---- the call ---- */

/* Set an argument, or NULL for nothing */
static void
add_text(ReceiveCall *call, const char *value)
{
	call->nulls[call->nargs] = value == NULL;
	call->args[call->nargs] = value != NULL ? CStringGetTextDatum(value) : (Datum) 0;
	call->nargs++;
}

/* Set an argument: a body as it came, which PostgREST has sent in UTF-8 */
static void
add_body(ReceiveCall *call, const text * body)
{
	const char *bytes = VARDATA_ANY(body);
	int			length = VARSIZE_ANY_EXHDR(body);
	char	   *utf8 = pg_server_to_any(bytes, length, PG_UTF8);

	if (utf8 != bytes)
		length = strlen(utf8);
	call->nulls[call->nargs] = false;
	call->args[call->nargs++] = PointerGetDatum(cstring_to_text_with_len(utf8, length));
}

/* Set the argument that says which account is meant */
static void
add_account(ReceiveCall *call, const char *named, const char *provider)
{
	const char *account = named;

	if (account == NULL)
		account = request_header("x-otp-account");
	add_text(call, account != NULL ? account : provider);
}

/* Call the function */
static void
call_function(void *arg)
{
	ReceiveCall *call = arg;

	LOCAL_FCINFO(fcinfo, 4);

	InitFunctionCallInfoData(*fcinfo, NULL, call->nargs, InvalidOid, NULL, NULL);
	for (int i = 0; i < call->nargs; i++)
	{
		fcinfo->args[i].value = call->args[i];
		fcinfo->args[i].isnull = call->nulls[i];
	}
	call->result = call->function(fcinfo);
}

/* Answer with an error in PostgREST's way */
static char *
refuse(int status, const char *code, const char *message, const char *hint)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"code\":");
	json_quote(&body, code);
	appendStringInfoString(&body, ",\"message\":");
	json_quote(&body, message);
	appendStringInfoString(&body, ",\"details\":null,\"hint\":");
	if (hint != NULL)
		json_quote(&body, hint);
	else
		appendStringInfoString(&body, "null");
	appendStringInfoChar(&body, '}');
	set_response("response.status", psprintf("%d", status));
	return body.data;
}

/* Call it, and answer what it raises; NULL: it has given a result */
static char *
answer_of(ReceiveCall *call)
{
	int			status;
	ErrorData  *error = caught_work(call_function, call, &status);

	if (error == NULL)
		return NULL;

	/*
	 * Without a secret to check by, it is as if there were no account:
	 * anybody may ask, and is told no more
	 */
	if (status == 403 || error->sqlerrcode == ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE)
	{
		if (call->function == otp_receive_meta_handshake)
			return refuse(403, "invalid_verify_token", "the handshake is not valid", NULL);
		return refuse(403, "invalid_signature", "the signature of the receipt is not valid", NULL);
	}
	return refuse(status, caught_code(error), error->message, error->hint);
}

/* Answer with the number of updates */
static Datum
answer_updates(ReceiveCall *call)
{
	char	   *refusal = answer_of(call);

	if (refusal == NULL)
		refusal = psprintf("{\"updates\":%d}", DatumGetInt32(call->result));
	return CStringGetTextDatum(refusal);
}

/* ---- the functions ---- */

/* Take what Meta tells */
Datum
otp_api_receive_meta(PG_FUNCTION_ARGS)
{
	ReceiveCall call = {otp_receive_meta};

	if (PG_ARGISNULL(0))
		error_invalid_argument("there is no body", "PostgREST hands it over as it came.");
	add_account(&call, NULL, "meta");
	add_body(&call, PG_GETARG_TEXT_PP(0));
	add_text(&call, request_header("x-hub-signature-256"));
	PG_RETURN_DATUM(answer_updates(&call));
}

/* Take what Twilio tells */
Datum
otp_api_receive_twilio(PG_FUNCTION_ARGS)
{
	ReceiveCall call = {otp_receive_twilio};
	char	   *url = request_header("x-otp-url");

	if (PG_ARGISNULL(0))
		error_invalid_argument("there is no body", "PostgREST hands it over as it came.");
	if (url == NULL)
		PG_RETURN_DATUM(CStringGetTextDatum(refuse(400, "invalid_request", "the header X-OTP-URL did not come",
												   "The proxy has to set it to the address that Twilio has called.")));
	add_account(&call, NULL, "twilio");
	add_text(&call, url);
	add_body(&call, PG_GETARG_TEXT_PP(0));
	add_text(&call, request_header("x-twilio-signature"));
	PG_RETURN_DATUM(answer_updates(&call));
}

/* Answer Meta's handshake: with the bare challenge, whatever type is accepted */
Datum
otp_api_receive_meta_handshake(PG_FUNCTION_ARGS)
{
	ReceiveCall call = {otp_receive_meta_handshake};
	char	   *refusal;

	add_account(&call, verb_text(fcinfo, 3, "account", NAMEDATALEN), "meta");
	for (int i = 0; i < 3; i++)
	{
		call.nulls[call.nargs] = PG_ARGISNULL(i);
		call.args[call.nargs++] = PG_GETARG_DATUM(i);
	}
	refusal = answer_of(&call);
	set_response("response.headers", psprintf("[{\"Content-Type\": \"%s\"}]",
											  refusal != NULL ? "application/json" : "text/plain"));
	PG_RETURN_DATUM(refusal != NULL ? CStringGetTextDatum(refusal) : call.result);
}
