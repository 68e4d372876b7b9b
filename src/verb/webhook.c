/*-------------------------------------------------------------------------
 *
 * webhook.c
 *	  The functions that make, change and try webhook endpoints.
 *
 * They are for the roles that the endpoint's workspace is granted to. What is
 * owed to an endpoint is the sender's alone: it hears of changes as of any
 * other of the configuration, and of what is to be sent through the outbox.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/base64.h"
#include "base/guc.h"
#include "base/http.h"
#include "base/limiter.h"
#include "store/queue.h"
#include "store/webhook.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_create_webhook_endpoint);
EXPORTED_FUNCTION(otp_pause_webhook_endpoint);
EXPORTED_FUNCTION(otp_resume_webhook_endpoint);
EXPORTED_FUNCTION(otp_rotate_webhook_secret);
EXPORTED_FUNCTION(otp_delete_webhook_endpoint);
EXPORTED_FUNCTION(otp_send_test_webhook);
EXPORTED_FUNCTION(otp_replay_webhooks);

#define SECRET_PREFIX "whsec_"

/* Longest URL and description, in bytes */
#define MAX_URL 2000
#define MAX_DESCRIPTION 1000

/* Endpoints that a workspace may have: every event has a row for each. */
#define MAX_ENDPOINTS 16

/* How long the secret before the last rotation signs, too */
#define PREVIOUS_SECRET_LIFE USECS_PER_DAY

/* Check the name of an event */
static void
check_event(const char *event)
{
	for (int i = 0; i < WEBHOOK_EVENTS; i++)
		if (strcmp(event, webhook_events[i]) == 0)
			return;
	error_invalid_argument("there is no such event",
						   "It is otp.sent, otp.delivered, otp.verified, otp.expired, otp.failed, otp.sms_fallback or credits.low.");
}

/* Check an array of events */
static void
check_events(ArrayType *events)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(events) > 1 || ArrayGetNItems(ARR_NDIM(events), ARR_DIMS(events)) > WEBHOOK_EVENTS)
		error_invalid_argument("argument \"events\" has too many elements", "Name each event once.");
	deconstruct_array(events, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &n);
	if (n == 0)
		error_invalid_argument("argument \"events\" is empty", "NULL stands for all events.");
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			error_invalid_argument("argument \"events\" has a NULL in it", "NULL in place of the array stands for all events.");
		check_event(TextDatumGetCString(elements[i]));
	}
}

/* Make a secret */
static void
make_secret(uint8 secret[WEBHOOK_SECRET_LENGTH])
{
	if (!pg_strong_random(secret, WEBHOOK_SECRET_LENGTH))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes for a secret")));
}

/* Write a secret as people and programs see it, in the caller's memory; wipes it */
static Datum
secret_text(uint8 secret[WEBHOOK_SECRET_LENGTH])
{
	char	   *encoded = base64_text(secret, WEBHOOK_SECRET_LENGTH);
	Datum		result = SPI_datumTransfer(CStringGetTextDatum(psprintf(SECRET_PREFIX "%s", encoded)), false, -1);

	explicit_bzero(secret, WEBHOOK_SECRET_LENGTH);
	return result;
}

/* Make an endpoint */
Datum
otp_create_webhook_endpoint(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *url = verb_text(fcinfo, 0, "url", MAX_URL);
	ArrayType  *events = PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1);
	char	   *description = verb_text(fcinfo, 2, "description", MAX_DESCRIPTION);
	char	   *workspace = verb_text(fcinfo, 3, "workspace", NAMEDATALEN);
	uint8		secret[WEBHOOK_SECRET_LENGTH];
	Datum		values[2];
	bool		nulls[2] = {false, false};
	const char *defect;
	int32		workspace_id;

	verb_begin(&scope, "create_webhook_endpoint", VERB_WRITES);
	workspace_id = workspace_acting(scope.caller, workspace)->workspace_id;

	/* Only now: whoever has no grant learns nothing from the checks */
	if (url == NULL)
		error_invalid_argument("argument \"url\" is NULL", "Give the URL that webhooks are to be posted to.");
	defect = http_url_defect(url, otp_allow_insecure_http, otp_allow_private_webhooks);
	if (defect != NULL)
		error_invalid_argument("argument \"url\" cannot be used", defect);
	if (events != NULL)
		check_events(events);
	if (webhook_count_endpoints(workspace_id) >= MAX_ENDPOINTS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the workspace has %d webhook endpoints, which is the most", MAX_ENDPOINTS),
				 errhint("Delete one that is not used any more with otp.delete_webhook_endpoint.")));
	limiter_take_job(workspace_id);

	make_secret(secret);
	values[0] = Int32GetDatum(webhook_create_endpoint(workspace_id, url, PointerGetDatum(events), description, secret));
	values[1] = secret_text(secret);
	verb_end(&scope);
	PG_RETURN_DATUM(verb_row(fcinfo, values, nulls));
}

/* Begin what is done with an endpoint: find and lock it */
static int32
begin_endpoint(FunctionCallInfo fcinfo, VerbScope *scope, const char *function,
			   int32 *workspace_id, WebhookStatus *status)
{
	int32		endpoint_id = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT32(0);
	Datum		workspaces;

	verb_begin(scope, function, VERB_WRITES);
	workspaces = workspace_granted(scope->caller, false);
	if (PG_ARGISNULL(0))
		error_invalid_argument("argument \"endpoint_id\" is NULL", "SELECT * FROM otp.webhook_endpoint_list lists what there is.");
	if (!webhook_lock_endpoint(workspaces, endpoint_id, workspace_id, status))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("webhook endpoint %d does not exist", endpoint_id),
				 errhint("SELECT * FROM otp.webhook_endpoint_list lists those that do.")));
	return endpoint_id;
}

/* Raise for an endpoint that is disabled */
static void
refuse_disabled(WebhookStatus status, int32 endpoint_id)
{
	if (status == WEBHOOK_DISABLED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("webhook endpoint %d is disabled", endpoint_id),
				 errhint("otp.webhook_endpoint_list tells why; otp.resume_webhook_endpoint enables it again.")));
}

/* Pause an endpoint */
Datum
otp_pause_webhook_endpoint(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	WebhookStatus status;
	int32		workspace_id;
	int32		endpoint_id = begin_endpoint(fcinfo, &scope, "pause_webhook_endpoint", &workspace_id, &status);

	refuse_disabled(status, endpoint_id);
	if (status != WEBHOOK_PAUSED)
	{
		limiter_take_job(workspace_id);
		webhook_set_status(workspace_id, endpoint_id, WEBHOOK_PAUSED);
	}
	wake_at_commit();
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Resume an endpoint */
Datum
otp_resume_webhook_endpoint(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	WebhookStatus status;
	int32		workspace_id;
	int32		endpoint_id = begin_endpoint(fcinfo, &scope, "resume_webhook_endpoint", &workspace_id, &status);

	if (status != WEBHOOK_ENABLED)
	{
		limiter_take_job(workspace_id);
		webhook_set_status(workspace_id, endpoint_id, WEBHOOK_ENABLED);
	}
	wake_at_commit();
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Replace the secret of an endpoint */
Datum
otp_rotate_webhook_secret(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	WebhookStatus status;
	int32		workspace_id;
	int32		endpoint_id = begin_endpoint(fcinfo, &scope, "rotate_webhook_secret", &workspace_id, &status);
	uint8		secret[WEBHOOK_SECRET_LENGTH];
	Datum		result;

	limiter_take_job(workspace_id);
	make_secret(secret);
	webhook_rotate_secret(workspace_id, endpoint_id, GetCurrentTimestamp() + PREVIOUS_SECRET_LIFE, secret);
	result = secret_text(secret);
	verb_end(&scope);
	PG_RETURN_DATUM(result);
}

/* Delete an endpoint */
Datum
otp_delete_webhook_endpoint(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	WebhookStatus status;
	int32		workspace_id;
	int32		endpoint_id = begin_endpoint(fcinfo, &scope, "delete_webhook_endpoint", &workspace_id, &status);

	webhook_delete_endpoint(workspace_id, endpoint_id);
	wake_at_commit();
	verb_end(&scope);
	PG_RETURN_VOID();
}

/* Queue a test webhook */
Datum
otp_send_test_webhook(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	WebhookStatus status;
	int32		workspace_id;
	int32		endpoint_id = begin_endpoint(fcinfo, &scope, "send_test_webhook", &workspace_id, &status);
	char	   *event = verb_text(fcinfo, 1, "event", NAMEDATALEN);
	char		text[OTP_ID_LENGTH + 1];
	pg_uuid_t	id;
	Datum		result;

	if (event == NULL)
		event = "otp.verified";
	check_event(event);
	refuse_disabled(status, endpoint_id);

	/* Last, so that a refused call takes nothing from it */
	limiter_take_job(workspace_id);

	ulid_make(&id, GetCurrentTimestamp());
	ulid_format(&id, text);
	queue_payload(OUTBOX_JOB, workspace_id,
				  psprintf("{\"do\":\"test_webhook\",\"endpoint_id\":%d,\"event\":\"%s\",\"id\":\"%s\"}",
						   endpoint_id, event, text));
	wake_at_commit();

	/* As receivers see it */
	result = SPI_datumTransfer(CStringGetTextDatum(psprintf("msg_%s", text + strlen("otp_"))), false, -1);
	verb_end(&scope);
	PG_RETURN_DATUM(result);
}

/* Queue a replay */
Datum
otp_replay_webhooks(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	WebhookStatus status;
	int32		workspace_id;
	int32		endpoint_id = begin_endpoint(fcinfo, &scope, "replay_webhooks", &workspace_id, &status);
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz since = PG_ARGISNULL(1) ? now - USECS_PER_DAY : PG_GETARG_TIMESTAMPTZ(1);
	bool		only_failed = PG_ARGISNULL(2) || PG_GETARG_BOOL(2);
	char		after[OTP_ID_LENGTH + 1];
	char		until[OTP_ID_LENGTH + 1];
	pg_uuid_t	id;

	if (TIMESTAMP_NOT_FINITE(since) || since > now)
		error_invalid_argument("argument \"since\" is not a moment in the past", "Nothing is kept longer than otp.retention says.");
	refuse_disabled(status, endpoint_id);
	limiter_take_job(workspace_id);

	ulid_lowest(&id, since);
	ulid_format(&id, after);
	ulid_lowest(&id, now + USECS_PER_SEC / 1000);
	ulid_format(&id, until);
	queue_payload(OUTBOX_JOB, workspace_id,
				  psprintf("{\"do\":\"replay_webhooks\",\"endpoint_id\":%d,\"leaf\":0,\"after\":\"%s\",\"since\":\"%s\","
						   "\"until\":\"%s\",\"only_failed\":%s}",
						   endpoint_id, after, after, until, only_failed ? "true" : "false"));
	wake_at_commit();
	verb_end(&scope);
	PG_RETURN_VOID();
}
