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
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/roster.h"
#include "verb/api_answer.h"
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

/* Answer why it was not */
static void
answer_refusal(ApiAnswer *answer, const Refusal *r, const pg_uuid_t *id, bool envelope, int retry_after)
{
	ApiError	e = API_ERROR(error_code(r->error), r->message, r->hint);

	e.retry_after = retry_after;
	e.id = id;
	api_answer_error(answer, r->status, &e, envelope);
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
	MemoryContext context = CurrentMemoryContext;
	MemoryContext spi;

	memset(answer, 0, sizeof(ApiAnswer));
	answer->retry_after = -1;
	initStringInfo(&out);

	verb_begin(&scope, "api_outcome", VERB_READS);

	/* The answer outlives SPI's memory */
	spi = MemoryContextSwitchTo(context);
	w = workspace_read(workspace_id);
	if (w != NULL)
		api_answer_limits(answer, w);
	workspace = PointerGetDatum(construct_array(&workspace, 1, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	if (w == NULL || !standing_look(id, true, workspace, &s))
	{
		refuse(&refusal, 404, OTP_NOT_FOUND, "there is no such verification", NULL);
		answer_refusal(answer, &refusal, id, envelope, -1);
	}
	else if (find_refusal(&s, &refusal))
	{
		answer_refusal(answer, &refusal, id, envelope, refusal.status == 503 ? retry_after(w, &s) : -1);
	}
	else if (s.outcome == SEND_ACCEPTED || s.life == LIFE_VERIFIED)
	{
		answer->status = 200;
		api_write_sent(&out, &s.v, s.outcome_channel,
					   (int) ((s.v.expires_at - (s.v.resends > 0 ? s.v.resent_at : s.v.created_at)) / USECS_PER_SEC),
					   s.outcome_message_id);
		answer->body = out.data;
		answer->length = out.len;
	}
	MemoryContextSwitchTo(spi);
	verb_end(&scope);
	return answer->status != 0;
}
