/*-------------------------------------------------------------------------
 *
 * roster.h
 *	  Who sends for which database: the state that backends, the launcher and
 *	  the senders share.
 *
 * Without shared_preload_libraries there is no roster; every function then
 * answers as for a server on which nothing runs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ROSTER_H
#define OTP_ROSTER_H

#include "datatype/timestamp.h"
#include "storage/condition_variable.h"

#define ROSTER_ERROR_SIZE 128

typedef enum RosterState
{
	ROSTER_UNKNOWN,				/* nobody has looked yet */
	ROSTER_ABSENT,				/* the extension is not there */
	ROSTER_PRESENT				/* it is */
} RosterState;

/* What a sender tells about itself after every turn */
typedef struct RosterReport
{
	TimestampTz last_turn;
	TimestampTz next_due;		/* of what waits in its memory; 0: nothing */
	int			waiting;		/* rows in its memory that are to be sent */
	int			following;		/* rows of messages that were sent */
	TimestampTz oldest_due;		/* of those to be sent; 0: none */
	uint64		read_to;		/* how far it has read the queue: a
								 * transaction */
	int			in_flight;
	bool		backlog;		/* there was more in the queue than it could
								 * take */
	int64		accepted;		/* since it started */
	int64		retried;
	int64		failed;
	int64		fallbacks;
} RosterReport;

/* What is set for the listeners of a database, other than by the server's configuration; see worker/listeners.c */
typedef struct RosterHttp
{
	int			port;			/* -1: not set */
	int			workers;		/* -1: not set */
	uint32		hash;			/* of all that is set; 0: nothing is */
	bool		known;			/* a sender has looked */
} RosterHttp;

/* A copy of one database's slot */
typedef struct RosterDatabase
{
	Oid			database;
	RosterState state;
	pid_t		sender_pid;		/* 0: none */
	TimestampTz started_at;		/* of the sender, or of the one before; also
								 * of one that was turned away by a pause */
	bool		left_clean;		/* the last sender left on its own will */
	bool		woken;			/* somebody has committed since it looked */
	bool		yielding;
	bool		paused;
	bool		starved;		/* has work, but no worker slot was free */
	int			crashes;		/* in a row */
	RosterReport report;
	TimestampTz last_error_at;	/* 0: none */
	char		last_error[ROSTER_ERROR_SIZE];
	RosterHttp	http;
} RosterDatabase;

typedef enum BreakerState
{
	BREAKER_CLOSED,
	BREAKER_OPEN,
	BREAKER_HALF_OPEN			/* one message is under way to find out */
} BreakerState;

/* A provider account's circuit breaker */
typedef struct RosterBreaker
{
	Oid			database;
	int			account_id;
	BreakerState state;
	bool		account_refused;	/* opened by an account error, not by an
									 * outage */
	TimestampTz opened_at;
	TimestampTz retry_at;
	int			failures;		/* in a row */
	int			http_status;	/* of the last failure; 0: none */
	int			provider_code;
	TimestampTz last_error_at;
	char		last_error[ROSTER_ERROR_SIZE];	/* digits masked */
} RosterBreaker;

/* ---- the server's start ---- */

extern Size roster_shmem_size(void);
extern void roster_shmem_init(void);

/* ---- backends ---- */

/*
 * Say that a transaction which queued a message has committed. For commit
 * callbacks: raises nothing, allocates nothing, and costs one read when the
 * sender has yet to look anyway.
 */
extern void roster_wake(Oid database);

/* Is a database without the extension, or paused? For workers that are no senders. */
extern bool roster_is_away(Oid database);

/* Is there a sender, or a launcher that will bring one? */
extern bool roster_sender_running(Oid database);

/* Is the account known to be unusable, and when is the next trial? */
extern bool roster_breaker_open(Oid database, int account_id, int *retry_after_s);

/* Broadcast by senders after each settle. NULL without a roster. */
extern ConditionVariable *roster_settled(void);

/* Which server and database queued a row: never sent by any other. */
extern int64 roster_origin(void);

/*
 * Keep the workers out of a database, until this process resumes it or
 * exits. True once none is left; false when one would not go within the
 * timeout (they are kept out all the same) or when there is no room to note
 * the pause. Interruptible.
 */
extern bool roster_pause(Oid database, int timeout_ms);
extern void roster_resume(Oid database);

/* Have a database looked at again: the extension came, or went. */
extern void roster_announce(Oid database);

/* A database is no more. */
extern void roster_forget(Oid database);

/* Copy what there is, up to max; gives the number. */
extern int	roster_snapshot(RosterDatabase *databases, int max);
extern int	roster_breakers(RosterBreaker *breakers, int max);
extern pid_t roster_launcher_pid(void);

/* Worker slots that were missing when last looked at; 0 is enough. */
extern int	roster_missing_slots(void);

/* ---- the launcher ---- */

/* False when there is another launcher. */
extern bool roster_launcher_enter(void);

/* Give a database a slot; false when there is no room. */
extern bool roster_add(Oid database);

/* Give away the slot of a database that is still known not to have the extension. */
extern bool roster_forget_absent(Oid database);

/*
 * Since the last call: was there no room for an announced database, and has
 * a database gone?
 */
extern void roster_take_news(bool *overflow, bool *rescan);

extern void roster_ask_to_yield(Oid database);
extern void roster_set_starved(Oid database, bool starved);
extern void roster_set_missing_slots(int missing);
extern void roster_set_crashes(Oid database, int crashes);
extern void roster_drop_dead_pauses(void);

/* ---- a sender ---- */

/*
 * Become the sender of a database, with all breakers closed; false when it has
 * one, is paused or unknown.
 */
extern bool roster_enter(Oid database);

/* Note what was found; leave is to follow when the extension is absent. */
extern void roster_set_state(RosterState state);

/* Stop being the sender; the launcher hears of it. Also done at exit. */
extern void roster_leave(bool clean);

typedef enum RosterRequest
{
	ROSTER_STAY,
	ROSTER_YIELD,				/* another database needs the worker slot */
	ROSTER_LEAVE				/* paused: within a second */
} RosterRequest;

extern RosterRequest roster_request(void);

/* Has anybody committed since the last call? Look at the queue after it, not before. */
extern bool roster_take_wake(void);

extern void roster_report(const RosterReport *report);
extern void roster_report_error(const char *message);
extern void roster_report_http(const RosterHttp *http);

/* Publish an account's breaker; database is filled in. */
extern void roster_breaker_set(const RosterBreaker *breaker);

#endif							/* OTP_ROSTER_H */
