/*-------------------------------------------------------------------------
 *
 * api_outcome.c
 *	  The answer to a send whose message has an outcome.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/timestamp.h"

#include "base/json.h"
#include "base/roster.h"
#include "verb/api.h"
#include "verb/standing.h"

/* Who was told that the provider is unavailable may try again after this long, in seconds, if nobody knows better */
#define UNAVAILABLE_RETRY 30

/* Why there is nothing to wait for any more */
typedef struct Refusal
{
	int			status;
	OtpError	error;
	const char *message;
	const char *hint;			/* NULL: none */
} Refusal;

/* Fill in a refusal; true */
static bool
refuse(Refusal *r, int status, OtpError error, const char *message, const char *hint)
{
	r->status = status;
	r->error = error;
	r->message = message;
	r->hint = hint;
	return true;
}

/* Tell how a send has ended without a provider's having taken its message; false when it has not */
static bool
find_refusal(const Standing *s, Refusal *r)
{
	const char *reason = s->life == LIFE_FAILED ? s->v.ended_reason : NULL;

	/*
	 * Delivery has failed, be it that a receipt said so after the provider
	 * had taken the message
	 */
	if (reason != NULL && strcmp(reason, "provider_unavailable") == 0)
		return refuse(r, 503, OTP_META_API_UNAVAILABLE,
					  strcmp(s->outcome_channel, "sms") == 0 ? "the SMS provider is unavailable" :
					  "the WhatsApp API is unavailable",
					  "Try again later, or ask for the fallback: fallback_sms.");
	if (reason != NULL && strcmp(reason, "template_not_found") == 0)
		return refuse(r, 400, OTP_TEMPLATE_NOT_FOUND, "Meta does not know the template, or has not approved it",
					  "Look at its status: GET /v1/templates, or otp.templates.");
	if (reason != NULL)
		return refuse(r, 424, OTP_FAILED, "the code could not be delivered",
					  s->error_detail != NULL ? psprintf("The provider said: %s", s->error_detail) : NULL);

	if (s->outcome == SEND_ACCEPTED)
		return false;
	switch (s->life)
	{
		case LIFE_CANCELED:
			return refuse(r, 409, OTP_CANCELED, "this verification was canceled before its code was sent", NULL);
		case LIFE_EXPIRED:
			return refuse(r, 410, OTP_EXPIRED, "this verification has expired before its code was sent",
						  "Send a new code.");
		case LIFE_FAILED:
			return refuse(r, 424, OTP_FAILED, "no attempt was left before the code was sent",
						  "Send a new code.");
		case LIFE_PENDING:
		case LIFE_DELIVERED:
			if (s->outcome == SEND_FAILED)
				return refuse(r, 424, OTP_FAILED, "the code could not be sent once more",
							  "The message before this one has left: its code can still be verified.");
			return false;
		case LIFE_VERIFIED:
			return false;
	}
	return false;
}

/* Is the account to blame known to be unavailable for longer? */
static int
retry_after(const Workspace *w, const Standing *s)
{
	int			account = strcmp(s->outcome_channel, "sms") == 0 ? w->sms_account : w->whatsapp_account;
	int			seconds;

	if (roster_breaker_open(MyDatabaseId, account, &seconds) && seconds > 0)
		return seconds;
	return UNAVAILABLE_RETRY;
}

/* Write a timestamp */
static void
write_time(StringInfo out, TimestampTz time)
{
	struct pg_tm tm;
	fsec_t		fraction;

	if (timestamp2tm(time, NULL, &tm, &fraction, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	appendStringInfo(out, "\"%04d-%02d-%02dT%02d:%02d:%02dZ\"",
					 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

/* Write what the caller of a send hears when it was accepted */
static void
write_accepted(const Standing *s, StringInfo out)
{
	const Verification *v = &s->v;
	char		id[OTP_ID_LENGTH + 1];
	TimestampTz since = v->resends > 0 ? v->resent_at : v->created_at;

	ulid_format(&v->id, id);
	appendStringInfo(out, "{\"success\":true,\"otp_id\":\"%s\",\"channel\":", id);
	json_quote(out, s->outcome_channel);
	appendStringInfoString(out, ",\"phone\":");
	json_quote(out, v->phone);
	appendStringInfoString(out, ",\"expires_at\":");
	write_time(out, v->expires_at);
	appendStringInfo(out, ",\"expires_in\":%d,\"message_id\":", (int) ((v->expires_at - since) / USECS_PER_SEC));
	if (s->outcome_message_id != NULL)
		json_quote(out, s->outcome_message_id);
	else
		appendStringInfoString(out, "null");
	appendStringInfoChar(out, '}');
}

/* Write why it was not */
static void
write_refusal(const Refusal *r, const pg_uuid_t *id, bool envelope, int retry_after, StringInfo out)
{
	char		text[OTP_ID_LENGTH + 1];

	ulid_format(id, text);
	appendStringInfo(out, "%s{\"code\":\"%s\",\"message\":", envelope ? "{\"error\":" : "", error_code(r->error));
	json_quote(out, r->message);
	if (!envelope)
		appendStringInfoString(out, ",\"details\":null");
	if (r->hint != NULL)
	{
		appendStringInfoString(out, ",\"hint\":");
		json_quote(out, r->hint);
	}
	else if (!envelope)
		appendStringInfoString(out, ",\"hint\":null");
	if (retry_after >= 0)
		appendStringInfo(out, ",\"retry_after\":%d", retry_after);
	appendStringInfo(out, ",\"otp_id\":\"%s\"}%s", text, envelope ? "}" : "");
}

/* Make the answer */
bool
api_outcome(int32 workspace_id, const pg_uuid_t *id, bool envelope, ApiAnswer *answer)
{
	Datum		workspace = Int32GetDatum(workspace_id);
	VerbScope	scope;
	Standing	s;
	Refusal		refusal;
	const Workspace *w;
	StringInfoData out;

	memset(answer, 0, sizeof(ApiAnswer));
	answer->retry_after = -1;
	initStringInfo(&out);

	verb_begin(&scope, "api_outcome", VERB_READS);
	w = workspace_by_id(workspace_id);
	workspace = PointerGetDatum(construct_array(&workspace, 1, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	if (w == NULL || !standing_look(id, true, workspace, &s))
	{
		answer->status = 404;
		refuse(&refusal, 404, OTP_NOT_FOUND, "there is no such verification", NULL);
		write_refusal(&refusal, id, envelope, -1, &out);
	}
	else if (find_refusal(&s, &refusal))
	{
		answer->status = refusal.status;
		if (refusal.status == 503)
			answer->retry_after = retry_after(w, &s);
		write_refusal(&refusal, id, envelope, answer->retry_after, &out);
	}
	else if (s.outcome == SEND_ACCEPTED || s.life == LIFE_VERIFIED)
	{
		answer->status = 200;
		write_accepted(&s, &out);
	}
	verb_end(&scope);

	answer->body = out.data;
	answer->length = out.len;
	return answer->status != 0;
}
