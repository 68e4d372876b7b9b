/*-------------------------------------------------------------------------
 *
 * api_functions.c
 *	  What each function of otp_api takes and does.
 *
 * The install script declares them with the same names and arguments.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/api.h"

static const ApiFunction functions[] = {
	{
		"otp_send", API_ANY_KEY, false, API_SENT, 200, 11,
		{
			{"phone", API_TEXT, true}, {"template", API_TEXT}, {"length", API_INT}, {"expires_in", API_INT},
			{"fallback_sms", API_BOOL}, {"metadata", API_OBJECT}, {"channel", API_TEXT}, {"context", API_TEXT},
			{"language", API_TEXT}, {"limit_keys", API_TEXTS}, {"idempotency_key", API_TEXT}
		},
		NULL, NULL
	},
	{
		"otp_verify", API_ANY_KEY, false, API_VERIFIED, 200, 4,
		{{"otp_id", API_TEXT, true}, {"code", API_TEXT, true}, {"context", API_TEXT}, {"phone", API_TEXT}},
		"SELECT * FROM verbs.otp_verify($1, $2, $3, $4)", NULL
	},
	{
		"otp_status", API_ANY_KEY, true, API_ROW, 200, 1,
		{{"otp_id", API_TEXT, true}},
		"SELECT * FROM verbs.otp_status($1)", "verified_at"
	},
	{
		"otp_resend", API_ANY_KEY, false, API_SENT, 200, 2,
		{{"otp_id", API_TEXT, true}, {"channel", API_TEXT}},
		"SELECT * FROM verbs.otp_resend($1, $2)", "message_id"
	},
	{
		"otp_cancel", API_ANY_KEY, false, API_ROW, 200, 1,
		{{"otp_id", API_TEXT, true}},
		"SELECT $1 AS otp_id, verbs.otp_cancel($1) AS canceled", NULL
	},
	{
		"otp_list", API_ANY_KEY, true, API_PAGE, 200, 4,
		{{"phone", API_TEXT}, {"status", API_TEXT}, {"limit", API_INT}, {"after", API_TEXT}},
		"SELECT * FROM otp.list_verifications($1, $2, $3, $4)", "verified_at"
	},
	{
		"rate_limit_status", API_ANY_KEY, true, API_ROWS, 200, 2,
		{{"phone", API_TEXT}, {"limit_keys", API_TEXTS}},
		"SELECT * FROM otp.rate_limit_status($1, $2)", NULL
	},
};

/* Give all */
const ApiFunction *
api_functions(int *n)
{
	*n = lengthof(functions);
	return functions;
}

/* Give the number of one */
int
api_number(const ApiFunction *function)
{
	return function - functions;
}

/* Find one */
const ApiFunction *
api_function(const char *name)
{
	for (int i = 0; i < lengthof(functions); i++)
		if (strcmp(functions[i].name, name) == 0)
			return &functions[i];
	return NULL;
}
