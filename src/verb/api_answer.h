/*-------------------------------------------------------------------------
 *
 * api_answer.h
 *	  The JSON of answers, for api*.c only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_API_ANSWER_H
#define OTP_API_ANSWER_H

#include "access/tupdesc.h"
#include "lib/stringinfo.h"

#include "store/verification.h"
#include "store/workspace.h"
#include "verb/api.h"

/* Append a moment as 2026-06-02T19:17:32Z, with quotes. */
extern void api_write_time(StringInfo out, TimestampTz time);

/* Append a row as an object: NULLs are left out, unless their column's name is a word of shown. */
extern void api_write_row(StringInfo out, HeapTuple tuple, TupleDesc desc, const char *shown);

/* Append what the caller of a send hears. message_id NULL is null. */
extern void api_write_sent(StringInfo out, const Verification *v, const char *channel, int expires_in,
						   const char *message_id);

/* What an error says; only the first two must be there */
typedef struct ApiError
{
	const char *code;
	const char *message;
	const char *hint;
	int			retry_after;	/* seconds; -1: not said */
	const char *limit;
	const char *prefix;
	const pg_uuid_t *id;		/* of the verification that it is about */
	int			attempts_remaining; /* -1: not said */
	bool		invalid;		/* of a verify: say so */
} ApiError;

#define API_ERROR(code, message, hint) {code, message, hint, -1, NULL, NULL, NULL, -1, false}

/* Append an error. */
extern void api_write_error(StringInfo out, const ApiError *error, bool envelope);

/* Make an error the answer. */
extern void api_answer_error(ApiAnswer *answer, int status, const ApiError *error, bool envelope);

/* Tell how many sends a workspace has left: the figures of the headers. */
extern void api_answer_limits(ApiAnswer *answer, const Workspace *w);

#endif							/* OTP_API_ANSWER_H */
