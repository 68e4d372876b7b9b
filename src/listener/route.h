/*-------------------------------------------------------------------------
 *
 * route.h
 *	  What the parts that answer requests share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ROUTE_H
#define OTP_ROUTE_H

#include "base/json.h"
#include "listener/listener.h"

/* Most parts of a path that are arguments */
#define PATH_ARGUMENTS 2

/* A part of the path that has a name; decoded */
typedef struct PathArgument
{
	char		name[NAMEDATALEN];
	char	   *value;
} PathArgument;

/* Why arguments were not taken */
typedef struct Complaint
{
	int			status;			/* HTTP */
	const char *code;
	const char *message;
	const char *hint;
	bool		signature;		/* a field that is not known, or missing */
	const char *field;			/* that is being looked at; NULL: none */
} Complaint;

/*
 * Take the arguments of a call out of a request: those of the path, and those
 * of the query or of the body, which is JSON. False with a complaint, which
 * never quotes a value. Needs a transaction, at whose level it may raise, with
 * the field in complaint->field. selects allows a parameter "select", which is
 * not looked at. (arguments.c)
 */
extern bool arguments_take(const Request *r, bool from_query, bool selects, const PathArgument *path, int npath,
						   ApiCall *call, Complaint *complaint);

/*
 * Decode what is percent-encoded, palloc'd; false for what is not valid: a
 * NUL, half a code, no UTF-8. plus says that + is a blank. (arguments.c)
 */
extern bool arguments_decode(const char *text, size_t length, bool plus, char **decoded);

/*
 * The value of a name in a query, decoded; NULL when it is not there, or not
 * there once. (arguments.c)
 */
extern char *arguments_query(const char *query, const char *name);

/* Has a request a body of this type, whatever its parameters? (arguments.c) */
extern bool arguments_content_type(const Request *r, const char *type);

/* Refuse a request that did not become a call. */
extern void route_refuse(Request *r, int status, const char *code, const char *message, const char *hint,
						 int retry_after);

/* Answer what the providers call, each by the account's name. (callback.c) */
extern void callback_meta(Request *r, const char *account);
extern void callback_twilio(Request *r, const char *account);

/* Answer those who watch. (monitor.c) */
extern void monitor_health(Request *r);
extern void monitor_metrics(Request *r);
extern void monitor_openapi(Request *r);

#endif							/* OTP_ROUTE_H */
