/*-------------------------------------------------------------------------
 *
 * webhook_parts.h
 *	  The parts of the delivery of webhooks.
 *
 * webhook.c turns its wheel: one transaction writes down what came of
 * attempts and reads what is owed, then the next attempts start.
 * webhook_endpoint.c knows the endpoints; webhook_queue.c holds, for each, a
 * window of what it is owed in memory, while the rest stays in
 * otp.webhook_outbox; webhook_body.c writes what is sent.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_WEBHOOK_PARTS_H
#define OTP_WEBHOOK_PARTS_H

#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "channel/webhook.h"
#include "store/webhook.h"
#include "worker/event.h"
#include "worker/sender.h"

/* Most webhooks of an endpoint that are in memory */
#define WINDOW 1000

/* Most attempts at an endpoint that are under way at once */
#define ENDPOINT_SLOTS 8

/* How many of an endpoint's secrets sign at once */
#define ENDPOINT_KEYS 2

typedef struct Endpoint
{
	int32		endpoint_id;	/* hash key */
	int32		workspace_id;

	/* as configured */
	bool		loaded;
	bool		seen;			/* by the reading that is under way */
	bool		gone;			/* deleted */
	MemoryContext context;		/* of the following strings */
	char	   *workspace;
	char	   *url;
	bytea	   *secret;			/* sealed; NULL: none */
	bytea	   *previous_secret;
	int			key_id;
	int			previous_key_id;
	TimestampTz previous_until;
	uint32		events;			/* 1 << EventKind */
	WebhookStatus status;

	/* what signs */
	bool		opened;
	uint8		keys[ENDPOINT_KEYS][WEBHOOK_SECRET_LENGTH];
	bool		has_previous;
	bool		reported;		/* that it cannot be opened */

	/* its window */
	dlist_head	webhooks;		/* all in memory */
	int			count;
	pairingheap waiting;		/* those that wait, by try_at */
	int			busy;			/* those that do not */
	int			flying;			/* chosen, or in flight */

	/* what is in the table only */
	bool		outside;		/* there may be something */
	TimestampTz outside_due;	/* the first of it */
	bool		scanning;		/* a round through the table has begun */
	bool		rushing;		/* it takes everything, due or not */
	bool		rush;			/* so shall the next one */
	pg_uuid_t	cursor;
	TimestampTz next_scan;

	/* how it fares */
	int			limit;			/* attempts at once, at present */
	int			failures;		/* in a row */
	TimestampTz failing_since;	/* 0: it is not */
	TimestampTz noted_since;	/* the same, as the table has it */
	TimestampTz note_at;		/* not before this */
	TimestampTz hold_until;
	TimestampTz last_failure;
	const char *disable_reason; /* to be disabled for it */
	bool		hurry;			/* once the transaction has committed */

	/* when there is something to do */
	pairingheap_node ready;		/* an attempt to start */
	TimestampTz ready_at;
	bool		is_ready;
	pairingheap_node chore;		/* something in the tables */
	TimestampTz chore_at;
	bool		has_chore;
} Endpoint;

typedef struct Outcome
{
	WebhookAttempt attempt;
	char		error[WEBHOOK_ERROR_SIZE];
} Outcome;

typedef enum WebhookPlace
{
	WEBHOOK_WAITS,
	WEBHOOK_CHOSEN,				/* its attempt starts after the commit */
	WEBHOOK_FLIES,
	WEBHOOK_FINISHED			/* its outcome is to be written */
} WebhookPlace;

/* A row of otp.webhook_outbox in memory */
typedef struct Webhook
{
	RequestKind kind;			/* first: see there */
	WebhookPlace place;
	pairingheap_node waiting;	/* by try_at */
	dlist_node	node;			/* of the endpoint's webhooks */
	dlist_node	link;			/* of fresh, chosen or finished ones */
	Endpoint   *endpoint;
	WebhookRow	row;
	TimestampTz try_at;			/* row.due_at, or earlier */
	bool		strains;		/* chosen although its endpoint fails */
	TimestampTz started_at;
	Outcome    *outcome;		/* when finished */
} Webhook;

/* ---- endpoints (webhook_endpoint.c) ---- */

/* Has the configuration changed, as far as it is of interest? */
extern bool endpoints_stale(void);

/* Read again what may have changed; in a transaction. */
extern void endpoints_refresh(TimestampTz now);

/* Have it read again, after all. */
extern void endpoints_distrust(void);

/* The endpoints of a workspace; in a transaction. Good until the next refresh. */
extern int	endpoints_of(int32 workspace_id, Endpoint ***endpoints);

/* Where a workspace wants to be notified, or NULL; likewise. */
extern const char *endpoints_channel(int32 workspace_id);

/* Make an endpoint known that the next refresh is to read. */
extern Endpoint *endpoint_meet(int32 workspace_id, int32 endpoint_id);

/* Open its secrets; in a transaction. False when that cannot be done now. */
extern bool endpoint_open(Endpoint *e, TimestampTz now);

/* Forget one that is gone and has nothing any more. */
extern void endpoint_forget(Endpoint *e);

/* May it be sent something? */
#define endpoint_usable(e) \
	((e)->loaded && !(e)->gone && (e)->status == WEBHOOK_ENABLED && (e)->disable_reason == NULL)

/* Will nothing be sent to it any more? */
#define endpoint_over(e) \
	((e)->gone || (e)->disable_reason != NULL || ((e)->loaded && (e)->status == WEBHOOK_DISABLED))

/* ---- windows (webhook_queue.c) ---- */

/* When there is an attempt to start, and something to do in the tables */
extern TimestampTz queue_next_ready(void);
extern TimestampTz queue_next_chore(void);
extern Endpoint *queue_first_chore(TimestampTz now);

/* Take in that something of an endpoint has changed. */
extern void queue_update(Endpoint *e, TimestampTz now);

/* Make one that is in no window yet. */
extern Webhook *queue_make(Endpoint *e, const WebhookRow *row);

/* Into the window, if there is room and its time is near; else it is freed, and stays in the table. */
extern void queue_enter(Webhook *w, TimestampTz now);

/* Take the next one whose time has come: it is chosen. NULL: none. */
extern Webhook *queue_choose(TimestampTz now);

/* One that was busy waits again, or stays in the table only, or is over. */
extern void queue_return(Webhook *w, bool over, TimestampTz now);

/* Keep none in memory that waits: the endpoint is not to be sent anything now. */
extern void queue_empty(Endpoint *e);

/* What has waited for an endpoint to recover is due soon. */
extern void queue_hurry(Endpoint *e, TimestampTz now);

/* Read the next rows of an endpoint from the table; in a transaction. */
extern void queue_scan(Endpoint *e, TimestampTz now);

/* Is it in memory? */
extern bool queue_has(const pg_uuid_t *id);

/* An id that is higher than all before it */
extern void queue_new_id(pg_uuid_t *id, TimestampTz now);

/* Prepare; give an endpoint its window. */
extern void queue_init(void);
extern void queue_open(Endpoint *e);

/* ---- what is sent (webhook_body.c) ---- */

/* The body of a webhook: UTF-8, palloc'd */
extern char *webhook_body(const WebhookRow *row, const WebhookSource *source, const char *workspace);

#define NEVER PG_INT64_MAX

#endif							/* OTP_WEBHOOK_PARTS_H */
