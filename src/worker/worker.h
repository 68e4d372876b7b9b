/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The background workers, as the rest of the server sees them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_WORKER_H
#define OTP_WORKER_H

#include "datatype/timestamp.h"

/* Names of the library and its entry points, for the postmaster */
#define WORKER_LIBRARY "otp"
#define WORKER_LAUNCHER_MAIN "otp_launcher_main"
#define WORKER_SENDER_MAIN "otp_sender_main"
#define WORKER_LISTENER_MAIN "otp_listener_main"

/* What the launcher tells a listener, in bgw_extra; the database's name is behind it */
typedef struct ListenerStart
{
	Oid			database;
	int			number;			/* of this database's listeners, from 0 on */
	uint32		settings;		/* a hash of those it is started for */
} ListenerStart;

/* Have the postmaster start the launcher. From _PG_init, when preloaded. */
extern void launcher_register(void);

/* Watch the commands that workers must make way for. From _PG_init, when preloaded. */
extern void utility_hook_install(void);

extern PGDLLEXPORT void otp_launcher_main(Datum arg);
extern PGDLLEXPORT void otp_sender_main(Datum database);
extern PGDLLEXPORT void otp_listener_main(Datum arg);

/*
 * The launcher's part that is about listeners: start those of a database that
 * are wanted and not there; http NULL has all leave. Gives the time to wait at
 * most, in ms. (listeners.c)
 */
struct RosterHttp;
extern long listeners_supply(Oid database, const char *name, const struct RosterHttp *http, TimestampTz now);

/* A database is no more. */
extern void listeners_drop(Oid database);

#endif							/* OTP_WORKER_H */
