/*-------------------------------------------------------------------------
 *
 * webhook.h
 *	  Webhook endpoints, what is owed to them, and what came of it.
 *
 * All functions need a transaction, SPI_connect and the owner's scope; those
 * that read for the sender, an active snapshot. Those for the sender leave
 * the current memory context as it is, which SPI itself does not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_STORE_WEBHOOK_H
#define OTP_STORE_WEBHOOK_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* Bytes of a secret, before it becomes text */
#define WEBHOOK_SECRET_LENGTH 32

/* The events that there are, in the order of EventKind */
#define WEBHOOK_EVENTS 7

/* In place of a message's number: the event is about the workspace */
#define WEBHOOK_NUMBER_WORKSPACE (-1)

extern const char *const webhook_events[WEBHOOK_EVENTS];

typedef enum WebhookStatus
{
	WEBHOOK_ENABLED,
	WEBHOOK_PAUSED,
	WEBHOOK_DISABLED
} WebhookStatus;

/* ---- for the verbs ---- */

/*
 * How many endpoints a workspace has; nobody makes another one before the end
 * of this transaction
 */
extern int	webhook_count_endpoints(int32 workspace_id);

/* Insert an endpoint; gives its id. events: a text[], or (Datum) 0 for all. */
extern int32 webhook_create_endpoint(int32 workspace_id, const char *url, Datum events, const char *description,
									 const uint8 secret[WEBHOOK_SECRET_LENGTH]);

/*
 * Find an endpoint in the given workspaces (an int4[]) and lock its row;
 * false when there is none.
 */
extern bool webhook_lock_endpoint(Datum workspaces, int32 endpoint_id, int32 *workspace_id, WebhookStatus *status);

/* Change an endpoint that is locked. Enabled, it is as good as new. */
extern void webhook_set_status(int32 workspace_id, int32 endpoint_id, WebhookStatus status);
extern void webhook_rotate_secret(int32 workspace_id, int32 endpoint_id, TimestampTz previous_until,
								  const uint8 secret[WEBHOOK_SECRET_LENGTH]);
extern void webhook_delete_endpoint(int32 workspace_id, int32 endpoint_id);

/* What the secrets of an endpoint are sealed for */
extern char *webhook_purpose(int32 endpoint_id);

/* ---- for the sender ---- */

/* A row of otp.webhook_endpoints; strings in the current context */
typedef struct WebhookEndpointRow
{
	int32		workspace_id;
	int32		endpoint_id;
	char	   *workspace;		/* its name */
	char	   *url;
	char	  **events;
	int			nevents;		/* -1: all */
	WebhookStatus status;
	bytea	   *secret;			/* sealed; NULL: none */
	int			key_id;
	bytea	   *previous_secret;	/* sealed; NULL: none */
	int			previous_key_id;
	TimestampTz previous_until; /* 0: no previous one */
	TimestampTz failing_since;	/* 0: it is not */
} WebhookEndpointRow;

/*
 * Read the endpoints of a workspace, or only those named; gives their number.
 */
extern int	webhook_load_workspace(int32 workspace_id, WebhookEndpointRow **rows);
extern int	webhook_load_endpoints(const int32 *workspace_ids, const int32 *endpoint_ids, int n,
								   WebhookEndpointRow **rows);

/* The notify_channel of a workspace, in the current context; NULL: none */
extern char *webhook_notify_channel(int32 workspace_id);

/*
 * Note since when an endpoint has been failing (0: it is not), or disable it.
 * Waits for nobody: false when somebody has the row, or it is gone.
 */
extern bool webhook_note_failing(int32 workspace_id, int32 endpoint_id, TimestampTz since);
extern bool webhook_disable(int32 workspace_id, int32 endpoint_id, const char *reason, TimestampTz now);

/* A row of otp.webhook_outbox, of this server and database */
typedef struct WebhookRow
{
	pg_uuid_t	id;
	int32		workspace_id;
	int32		endpoint_id;
	bool		test;			/* made up: no verification */
	bool		of_workspace;	/* about that: likewise */
	pg_uuid_t	verification_id;
	int16		slot;
	int16		number;
	char		event[24];
	TimestampTz occurred_at;
	int16		tries;
	int16		attempts;
	TimestampTz due_at;
} WebhookRow;

/* Most rows that one call of webhook_read or webhook_read_attempts reads */
#define WEBHOOK_BATCH 500

/* Insert rows. */
extern void webhook_insert(const WebhookRow *rows, int n);

/* Read an endpoint's next rows behind an id, in order; gives their number. */
extern int	webhook_read(int32 endpoint_id, const pg_uuid_t *after, WebhookRow *rows);

/* The next endpoint behind an id that has rows; false when there is none. */
extern bool webhook_next_owed(int32 after, int32 *workspace_id, int32 *endpoint_id);

/* What came of an attempt */
typedef struct WebhookAttempt
{
	WebhookRow	row;			/* as it is to be from now on */
	bool		over;			/* delivered, or given up: the row goes */
	bool		delivered;
	TimestampTz attempted_at;
	int			duration_ms;	/* -1: no request was made */
	int			http_status;	/* 0: none */
	const char *error;			/* NULL: none; ASCII */
} WebhookAttempt;

/* Write attempts down, and their rows as they are now. */
extern void webhook_write_attempts(const WebhookAttempt *attempts, int n);

/* How far the attempts of a leaf have been looked at: up to this one */
typedef struct WebhookPosition
{
	pg_uuid_t	id;
	int16		attempt;
} WebhookPosition;

/*
 * Look at the next attempts of an endpoint in one leaf, behind a position and
 * up to an id, and move the position on; gives the webhooks among them that
 * are to be replayed. Those that are still owed are left out. *looked_at is
 * WEBHOOK_BATCH at most, however few are to be replayed; fewer: that was all.
 */
extern int	webhook_read_attempts(int leaf, int32 workspace_id, int32 endpoint_id, WebhookPosition *position,
								  const pg_uuid_t *until, bool only_failed, WebhookRow *rows, int *looked_at);

/* Delete rows of other servers and databases that are from before a time. */
extern void webhook_delete_foreign(TimestampTz before);

/* What a webhook tells of; strings in the current context */
typedef struct WebhookSource
{
	bool		found;			/* else the verification is gone */
	TimestampTz created_at;
	TimestampTz expires_at;
	TimestampTz verified_at;	/* 0: not */
	char	   *phone;
	char	   *template_name;
	char	   *language;
	char	   *channel;
	char	   *context;		/* NULL: none */
	char	   *metadata;		/* JSON; NULL: none */

	/* of its message; channel is that of the verification when there is none */
	TimestampTz sent_at;		/* 0: not */
	TimestampTz delivered_at;
	TimestampTz failed_at;
	char	   *message_id;
	char	   *reason;
	char	   *detail;
	int			provider_code;	/* 0: none */

	/* of the message that an SMS stands in for */
	char	   *first_channel;	/* NULL: there is none */
	char	   *first_reason;
	char	   *first_detail;
	int			first_code;
	bool		first_silent;	/* accepted, but nothing was heard of it */

	/* of a workspace, in place of all this */
	int64		balance;
	int64		credits_low;
} WebhookSource;

/* Read what rows tell of, by one statement per leaf. */
extern void webhook_load_sources(const WebhookRow *rows, WebhookSource *sources, int n);

#endif							/* OTP_STORE_WEBHOOK_H */
