/*-------------------------------------------------------------------------
 *
 * server.h
 *	  The HTTP server, as the listener's loop sees it.
 *
 * None of these raises, but for what says so.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SERVER_H
#define OTP_SERVER_H

#include "listener/listener.h"

/* Most addresses that one process listens on */
#define SERVER_ADDRESSES 16

/*
 * Listen, by the settings. share says that others of ours listen on the same
 * port. False with a text of what is wrong, at most size bytes. addresses is
 * filled with where it listens. May raise for a key file that must not be
 * used.
 */
extern bool server_start(bool share, char *addresses, size_t addresses_size, char *error, size_t size);

/* The descriptors that tell of work; gives their number. */
extern int	server_descriptors(int fds[SERVER_ADDRESSES]);

/* Work on the network. */
extern void server_run(void);

/* How long the library can wait, in ms; -1: for ever. */
extern long server_timeout(void);

/* Take a request that has come in whole; NULL when there is none. */
extern Request *server_next(void);
extern bool server_has_next(void);

/* Let an answer go. */
extern void server_finish(Request *r);

/* Go through the connections: end those that are too slow. */
extern void server_expire(TimestampTz now);

/* Open connections, and those with a request that has begun and is not answered in whole. */
extern int	server_connections(void);
extern int	server_busy(void);

/* Take no more connections, and end those that have nothing under way, from now on when they have not. */
extern void server_quiesce(void);

/* End it all; no request may be suspended. */
extern void server_stop(void);

/* ---- settings ---- */

/* A text that changes whenever the server has to be started anew. palloc'd. */
extern char *server_fingerprint(void);

#endif							/* OTP_SERVER_H */
