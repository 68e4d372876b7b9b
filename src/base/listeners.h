/*-------------------------------------------------------------------------
 *
 * listeners.h
 *	  Who listens for which database, and what comes of it: the state that
 *	  listeners, the launcher and backends share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_LISTENERS_H
#define OTP_LISTENERS_H

#include "datatype/timestamp.h"

/* Most processes that listen on a server */
#define LISTENERS_MAX 64

#define LISTENER_ADDRESSES_SIZE 256
#define LISTENER_ERROR_SIZE 256

/* Figures: by route, and by class of status, 1xx to 5xx */
#define FIGURE_ROUTES 64
#define FIGURE_CLASSES 5

/* How long answers took: up to 1, 2, 4 ... 32768 ms, and longer */
#define FIGURE_BUCKETS 17

/* What came of requests, since the server's start */
typedef struct ListenerFigures
{
	uint64		requests[FIGURE_ROUTES][FIGURE_CLASSES];
	uint64		buckets[FIGURE_ROUTES][FIGURE_BUCKETS];
	uint64		seconds_sum[FIGURE_ROUTES]; /* in microseconds */
	uint64		accepted;		/* connections */
	uint64		expired;		/* connections that were too slow */
	uint32		connections;	/* open now */
	uint32		waiting;		/* requests that wait for an outcome */
} ListenerFigures;

/* A copy of one place */
typedef struct ListenerState
{
	Oid			database;
	int			number;			/* of its database's, from 0 on */
	pid_t		pid;			/* 0: it is not there */
	bool		listening;
	int			port;
	TimestampTz since;
	char		addresses[LISTENER_ADDRESSES_SIZE];
	TimestampTz last_error_at;	/* 0: none, or it was got over */
	char		last_error[LISTENER_ERROR_SIZE];
} ListenerState;

extern Size listeners_shmem_size(void);
extern void listeners_shmem_init(void);

/* Copy the places of a database, those of processes that are gone included; gives their number. */
extern int	listeners_snapshot(Oid database, ListenerState *states, int max);

/* Sum up the figures of a database. */
extern void listeners_figures(Oid database, ListenerFigures *sum);

/* Wake the listeners of a database; gives their pids, up to max, and their number. */
extern int	listeners_wake(Oid database, pid_t *pids, int max);

/* A database is no more. */
extern void listeners_forget(Oid database);

/* ---- the launcher ---- */

/*
 * Say what the settings of a database's listeners are: those who were started
 * with others leave. 0 has all leave.
 */
extern void listeners_want(Oid database, uint32 settings);

/* ---- a listener ---- */

/* Take a place; false when there is none. Given back at exit. */
extern bool listeners_enter(Oid database, int number, uint32 settings);

/* Are its settings still those that are wanted? */
extern bool listeners_wanted(void);

/*
 * Is the port some other database's? Gives whose, InvalidOid when not; and
 * takes it otherwise.
 */
extern Oid	listeners_claim_port(int port);

/* Does another process of this database listen on the port? */
extern bool listeners_share_port(int port);

/* Tell that it listens, or why it cannot (error not NULL). */
extern void listeners_report(const char *addresses, const char *error);

/* Its figures, which nobody else writes. */
extern ListenerFigures *listeners_mine(void);

#endif							/* OTP_LISTENERS_H */
