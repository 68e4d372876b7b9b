/*-------------------------------------------------------------------------
 *
 * error.c
 *	  The errors that the verbs raise or return.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"

#include "base/error.h"

static const struct
{
	const char *code;
	const char *sqlstate;
}			errors[] = {
	[OTP_OK] = {"", "00000"},
	[OTP_INVALID_API_KEY] = {"invalid_api_key", "OT401"},
	[OTP_INVALID_PHONE] = {"invalid_phone", "OT400"},
	[OTP_TEMPLATE_NOT_FOUND] = {"template_not_found", "OT4T0"},
	[OTP_INSUFFICIENT_CREDITS] = {"insufficient_credits", "OT402"},
	[OTP_MODULE_INACTIVE] = {"module_inactive", "OT403"},
	[OTP_WORKSPACE_SUSPENDED] = {"workspace_suspended", "OT403"},
	[OTP_POLICY_DENIED] = {"policy_denied", "OT403"},
	[OTP_NOT_FOUND] = {"otp_not_found", "OT404"},
	[OTP_CANCELED] = {"otp_canceled", "OT409"},
	[OTP_IDEMPOTENCY_KEY_REUSED] = {"idempotency_key_reused", "OT4I0"},
	[OTP_EXPIRED] = {"otp_expired", "OT410"},
	[OTP_ALREADY_VERIFIED] = {"otp_already_verified", "OT422"},
	[OTP_FAILED] = {"otp_failed", "OT424"},
	[OTP_RATE_LIMIT_EXCEEDED] = {"rate_limit_exceeded", "OT429"},
	[OTP_META_API_UNAVAILABLE] = {"meta_api_unavailable", "OT503"},
	[OTP_KEY_UNAVAILABLE] = {"key_unavailable", "OT500"},
	[OTP_INVALID_CODE] = {"invalid_code", "OT422"},
};

/* Give the name */
const char *
error_code(OtpError error)
{
	return errors[error].code;
}

/* Raise an error of class OT, with one more member in its DETAIL, or none */
static void
pg_attribute_noreturn()
raise_error(OtpError error, const char *message, const char *hint,
			int retry_after, const char *limit, const char *prefix)
{
	const char *s = errors[error].sqlstate;
	StringInfoData detail;

	/* All parts are ours, or words: no character in them needs escaping */
	initStringInfo(&detail);
	appendStringInfo(&detail, "{\"code\":\"%s\"", errors[error].code);
	if (retry_after >= 0)
		appendStringInfo(&detail, ",\"retry_after\":%d", retry_after);
	if (limit != NULL)
		appendStringInfo(&detail, ",\"limit\":\"%s\"", limit);
	if (prefix != NULL)
		appendStringInfo(&detail, ",\"prefix\":\"%s\"", prefix);
	appendStringInfoChar(&detail, '}');

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4])),
			 errmsg_internal("%s", message),
			 errdetail_internal("%s", detail.data),
			 hint != NULL ? errhint("%s", hint) : 0,
			 errhidestmt(true),
			 errhidecontext(true)));
	pg_unreachable();
}

/* Raise an error of class OT */
void
error_raise(OtpError error, const char *message, const char *hint,
			int retry_after, const char *limit)
{
	raise_error(error, message, hint, retry_after, limit, NULL);
}

/* Raise for a key of limit_keys */
void
error_raise_key_limit(const char *message, const char *hint, int retry_after,
					  const char *limit, const char *prefix)
{
	raise_error(OTP_RATE_LIMIT_EXCEEDED, message, hint, retry_after, limit, prefix);
}

/* Raise for a bad argument */
void
error_invalid_argument(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg_internal("%s", message),
			 errdetail_internal("{\"code\":\"invalid_request\"}"),
			 hint != NULL ? errhint("%s", hint) : 0,
			 errhidestmt(true),
			 errhidecontext(true)));
	pg_unreachable();
}
