/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The background workers, as the rest of the server sees them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_WORKER_H
#define OTP_WORKER_H

/* Names of the library and its entry points, for the postmaster */
#define WORKER_LIBRARY "otp"
#define WORKER_LAUNCHER_MAIN "otp_launcher_main"
#define WORKER_SENDER_MAIN "otp_sender_main"

/* Have the postmaster start the launcher. From _PG_init, when preloaded. */
extern void launcher_register(void);

/* Watch the commands that workers must make way for. From _PG_init, when preloaded. */
extern void utility_hook_install(void);

extern PGDLLEXPORT void otp_launcher_main(Datum arg);
extern PGDLLEXPORT void otp_sender_main(Datum database);

#endif							/* OTP_WORKER_H */
