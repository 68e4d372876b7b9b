/*-------------------------------------------------------------------------
 *
 * listener.h
 *	  The parts of the HTTP listener.
 *
 *	  listener.c	the process: its life, its loop, its settings
 *	  server.c		libmicrohttpd: connections, limits, deadlines
 *	  waits.c		requests that wait for a message's outcome
 *	  route.c		which request is whose
 *	  arguments.c	JSON, query and form to the arguments of a function
 *	  callback.c	what the providers call
 *	  monitor.c		/healthz and /metrics
 *
 * libmicrohttpd's callbacks only copy bytes, by malloc. A request that is
 * there in whole is queued; the loop takes it, with the connection suspended,
 * has it answered in one transaction, and lets the connection go on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_LISTENER_H
#define OTP_LISTENER_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"

#include "verb/api.h"

/* Most headers that are looked at, and that an answer may have of its own */
#define REQUEST_MAX_HEADERS 64
#define ANSWER_MAX_HEADERS 12

typedef struct HttpHeader
{
	char	   *name;			/* lower case */
	char	   *value;			/* bytes as they came, without a NUL */
} HttpHeader;

/* A request and its answer; memory is malloc's, and server.c's */
typedef struct Request
{
	dlist_node	node;			/* in the queue of those to be answered */
	void	   *connection;		/* server.c's */

	/* The request, whole */
	char	   *method;			/* "GET" ... */
	char	   *target;			/* as it came: path and query, undecoded */
	char	   *path;			/* the target up to "?", undecoded */
	char	   *query;			/* behind "?"; NULL: none */
	HttpHeader	headers[REQUEST_MAX_HEADERS];
	int			nheaders;
	char	   *body;			/* NUL behind it; NULs may be in it */
	size_t		length;
	TimestampTz arrived_at;
	TimestampTz deadline;		/* when an answer must have left */

	/* While it waits: waits.c's */
	bool		waiting;
	struct Wait *wait;
	bool		envelope;		/* of errors; is set before it waits */

	/* Is tried again then, because somebody had a row locked; 0: not */
	TimestampTz again_at;

	/* The answer */
	int			status;			/* 0: none yet */
	char	   *answer;			/* malloc'd; NULL: no body */
	size_t		answer_length;
	HttpHeader	answer_headers[ANSWER_MAX_HEADERS];
	int			nanswer_headers;
	int			route;			/* for the figures; see route.c */
} Request;

/* A header's value; NULL when it did not come. The name in lower case. */
extern const char *request_header(const Request *r, const char *name);

/* How often a header came. */
extern int	request_header_count(const Request *r, const char *name);

/* ---- server.c: what the others may do with a request ---- */

/*
 * Answer it; the body is copied. type is the Content-Type, NULL for no body.
 * Raises nothing: out of memory becomes a bare 500. The first answer counts.
 */
extern void request_answer(Request *r, int status, const char *type, const char *body, size_t length);

/* Add a header to the answer, before request_answer. Both are copied; a value with a line break is left out. */
extern void request_answer_header(Request *r, const char *name, const char *value);

/* Answer with what a function of otp_api has answered. */
extern void request_answer_api(Request *r, const ApiAnswer *answer);

/* ---- listener.c ---- */

/* The answer of a request that has waited is there. */
extern void request_answered(Request *r);

/* ---- route.c ---- */

/*
 * Work on a request that is there in whole. On return it has an answer, or
 * waits (waits_add), or has again_at set. Called by the loop, outside of libmicrohttpd and of any
 * transaction, in a memory context that is reset afterwards; begins and ends
 * transactions as it needs them. An error from here aborts the transaction,
 * is logged, and becomes a 500.
 */
extern void route_request(Request *r);

/* The routes' names, for the figures. The last one is that of requests without a route. */
extern const char *route_name(int route);
extern int	route_count(void);

/* ---- waits.c ---- */

/*
 * Have a request wait for the outcome of what api_call has put on its way; or
 * answer it, when that is not to be waited for. Its deadline is put off by the
 * time of the wait. Raises nothing.
 */
extern void waits_add(Request *r, const ApiAnswer *answer);

/*
 * Answer those whose outcome has come, or whose time is up; gives when to call
 * again at the latest. Outside of any transaction.
 */
extern TimestampTz waits_turn(TimestampTz now);

/* The connection is gone; for callbacks, too: raises nothing, and allocates nothing. */
extern void waits_remove(Request *r);

extern int	waits_count(void);

/* We are to leave: have all that wait answered at the next turn, as if their time were up. */
extern void waits_hurry(void);

#endif							/* OTP_LISTENER_H */
