/*-------------------------------------------------------------------------
 *
 * event.h
 *	  What happens to verifications and workspaces, told to webhook endpoints
 *	  and by NOTIFY.
 *
 * Events are noted in the transaction that makes them true: there, each
 * endpoint that wants one gets its row of otp.webhook_outbox.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_EVENT_H
#define OTP_EVENT_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

typedef enum EventKind
{
	EVENT_SENT,
	EVENT_DELIVERED,
	EVENT_VERIFIED,
	EVENT_EXPIRED,
	EVENT_FAILED,
	EVENT_SMS_FALLBACK,
	EVENT_CREDITS_LOW			/* about a workspace; the others, about a
								 * verification */
} EventKind;

#define EVENT_KINDS (EVENT_CREDITS_LOW + 1)

typedef struct Event
{
	EventKind	kind;
	int32		workspace_id;
	int16		slot;
	int16		number;			/* the message that it is about; 0: none */
	pg_uuid_t	id;				/* of the verification */
	TimestampTz at;

	/* of one about a workspace, in place of slot, number and id: its name */
	const char *workspace;
} Event;

/* The name of an event, such as "otp.sent". */
extern const char *event_name(EventKind kind);

/*
 * Write what endpoints are owed for events, and note those for NOTIFY. Needs
 * a transaction, SPI and the owner's scope. One of the other two is to
 * follow: done after its commit, undo after its abort. Raises what SQL raises.
 */
extern void events_write(const Event *events, int n);
extern void events_done(TimestampTz now);
extern void events_undo(void);

/*
 * NOTIFY what workspaces with a notify_channel are to hear, in a transaction
 * of its own: a full queue undoes nothing. Raises nothing, and costs nothing
 * when there is nothing to tell.
 */
extern void events_notify(void);

#endif							/* OTP_EVENT_H */
