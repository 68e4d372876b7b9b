/*-------------------------------------------------------------------------
 *
 * event.c
 *	  Tell what happens to verifications and workspaces.
 *
 * Webhooks are queued in the transaction that makes an event true, and so are
 * as sure as the event. NOTIFY is not: it comes after the commit, in a
 * transaction of its own, because a session that does not read its
 * notifications fills the server's queue, and a transaction that notifies
 * fails then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "commands/async.h"
#include "lib/stringinfo.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/ulid.h"
#include "worker/event.h"
#include "worker/sender.h"
#include "worker/webhook.h"
#include "worker/webhook_parts.h"

/* The server's queue counts as full from here on: others need some room, too. */
#define QUEUE_FULL 0.9

/* After a failure, notifications are dropped for so long. */
#define PAUSE_MS 10000

/* NOTIFY waits for nobody longer than this. */
#define LOCK_TIMEOUT "50ms"

/* Most that wait to be told */
#define MAX_NOTES 10000

typedef struct Notice
{
	char	   *channel;
	char	   *payload;
} Notice;

/* Those of the first, as many as are to be told, have been committed. */
static MemoryContext note_context = NULL;
static Notice *notes = NULL;
static int	nnotes = 0;
static int	ncommitted = 0;
static int	notes_size = 0;

static TimestampTz paused_until = 0;
static bool full_reported = false;
static bool length_reported = false;

/* Name an event */
const char *
event_name(EventKind kind)
{
	StaticAssertStmt(WEBHOOK_EVENTS == EVENT_KINDS, "names of events");
	return webhook_events[kind];
}

/* Note what a workspace is to hear */
static void
add_note(const char *channel, const Event *event)
{
	MemoryContext old;
	StringInfoData payload;
	char		id[OTP_ID_LENGTH + 1];
	struct pg_tm tm;
	fsec_t		fraction;

	/* Its column counts characters */
	if (strlen(channel) >= NAMEDATALEN)
	{
		if (!length_reported)
			ereport(LOG,
					(errcode(ERRCODE_NAME_TOO_LONG),
					 errmsg("notify_channel of workspace %d is longer than %d bytes: nothing is notified there",
							event->workspace_id, NAMEDATALEN - 1)));
		length_reported = true;
		return;
	}
	if (nnotes >= MAX_NOTES || timestamp2tm(event->at, NULL, &tm, &fraction, NULL, NULL) != 0)
		return;
	if (note_context == NULL)
		note_context = AllocSetContextCreate(TopMemoryContext, "otp notifications", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(note_context);
	if (nnotes >= notes_size)
	{
		notes_size = Max(notes_size * 2, 64);
		notes = notes == NULL ? palloc(notes_size * sizeof(Notice)) : repalloc(notes, notes_size * sizeof(Notice));
	}
	initStringInfo(&payload);
	appendStringInfo(&payload, "{\"event\":\"%s\",", event_name(event->kind));
	if (event->kind == EVENT_CREDITS_LOW)
	{
		/*
		 * Not the balance: anybody may LISTEN. No character of a name needs
		 * escaping.
		 */
		appendStringInfo(&payload, "\"workspace\":\"%s\",", event->workspace);
	}
	else
	{
		ulid_format(&event->id, id);
		appendStringInfo(&payload, "\"otp_id\":\"%s\",", id);
	}
	appendStringInfo(&payload, "\"at\":\"%04d-%02d-%02dT%02d:%02d:%02d.%03dZ\"}",
					 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int) fraction / 1000);
	notes[nnotes].channel = pstrdup(channel);
	notes[nnotes].payload = payload.data;
	nnotes++;
	MemoryContextSwitchTo(old);
}

/* Write what endpoints are owed, and note what is to be notified */
void
events_write(const Event *events, int n)
{
	webhooks_write(events, n);
	for (int i = 0; i < n; i++)
	{
		const char *channel = endpoints_channel(events[i].workspace_id);

		if (channel != NULL)
			add_note(channel, &events[i]);
	}
}

/* It has been committed */
void
events_done(TimestampTz now)
{
	ncommitted = nnotes;
	webhooks_done(now);
}

/* It has not */
void
events_undo(void)
{
	nnotes = ncommitted;
	webhooks_undo();
}

/* Set a setting for this transaction */
static void
set_local(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* Notify, unless the queue is full */
static void
notify(void *arg)
{
	bool	   *full = arg;

	set_local("lock_timeout", LOCK_TIMEOUT);
	set_local("synchronous_commit", "off");
	*full = DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, (Datum) 0)) >= QUEUE_FULL;
	for (int i = 0; i < ncommitted && !*full; i++)
		Async_Notify(notes[i].channel, notes[i].payload);
}

/* Tell what there is to tell */
void
events_notify(void)
{
	TimestampTz now;
	bool		full = false;

	if (ncommitted == 0)
		return;
	now = GetCurrentTimestamp();
	if (now >= paused_until)
	{
		if (!turn_do(notify, &full, NULL))
			paused_until = TimestampTzPlusMilliseconds(now, PAUSE_MS);
		if (full && !full_reported)
			ereport(LOG,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("notifications are dropped: the server's queue is nearly full"),
					 errhint("A session that listens has been in a transaction for long; see pg_stat_activity.")));
		full_reported = full;
	}

	/* Whether or not anybody has heard them */
	MemoryContextReset(note_context);
	notes = NULL;
	notes_size = nnotes = ncommitted = 0;
}
