/*-------------------------------------------------------------------------
 *
 * webhook.h
 *	  Delivers webhooks: a queue and slots for every endpoint.
 *
 * Lives in the sender's loop, behind the codes: it has transactions of its
 * own, and what goes wrong here stays here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_WEBHOOK_H
#define OTP_WEBHOOK_H

#include "base/http.h"
#include "base/json.h"
#include "worker/event.h"

/*
 * Write what endpoints are owed for events, into otp.webhook_outbox, and into
 * memory by done; see event.h, which calls them.
 */
extern void webhooks_write(const Event *events, int n);
extern void webhooks_done(TimestampTz now);
extern void webhooks_undo(void);

/*
 * Do a job of otp.send_test_webhook or otp.replay_webhooks, as queued in the
 * outbox; false when it is neither. In a transaction, as webhooks_write, and
 * followed by done or undo as well.
 */
extern bool webhooks_job(int32 workspace_id, const json_t *payload);

/*
 * Write down what came of attempts, and start those that are due, up to so
 * many. Gives the time of the next call at the latest. Raises nothing.
 */
extern TimestampTz webhooks_turn(int slots, TimestampTz now);

/* Does it want to be called now: have attempts finished, is any due? */
extern bool webhooks_pending(TimestampTz now);

/* Take in an answer; the response's owner is a request of REQUEST_WEBHOOK. */
extern void webhooks_judge(const HttpResponse *response, TimestampTz now);

/* How many attempts are in flight */
extern int	webhooks_in_flight(void);

/* Asked to go: write what is known; the rest is tried again by the next sender. */
extern void webhooks_leave(void);

#endif							/* OTP_WEBHOOK_H */
