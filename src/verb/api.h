/*-------------------------------------------------------------------------
 *
 * api.h
 *	  The functions of the schema otp_api, which answer programs that speak
 *	  REST.
 *
 * Each is an entry of one table: what it takes, who may call it, and the
 * statement that does it. It is called in two ways, which end in the same
 * code. As an SQL function it follows PostgREST's contract: the key comes in
 * the setting request.headers, and the answer's status and headers go into
 * response.status and response.headers. The listener calls api_call.
 *
 * What goes wrong is an answer with a status, not an error: attempts that
 * were counted stay so, and headers arrive.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_API_H
#define OTP_API_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* Most arguments of one function */
#define API_MAX_ARGUMENTS 12

/* Rows of a page, unless the argument limit says otherwise, and most of them */
#define API_PAGE_DEFAULT 20
#define API_PAGE_MAX 100

typedef enum ApiType
{
	API_TEXT,
	API_INT,
	API_INT8,
	API_BOOL,
	API_OBJECT,					/* jsonb that is an object */
	API_TEXTS,					/* text[] */
	API_TIME					/* timestamptz, RFC 3339 in JSON */
} ApiType;

typedef struct ApiArgument
{
	const char *name;
	ApiType		type;
	bool		required;
} ApiArgument;

typedef enum ApiAccess
{
	API_ANY_KEY,
	API_ADMIN_KEY
} ApiAccess;

/* What becomes of the rows of its statement */
typedef enum ApiResult
{
	API_ROW,					/* an object; 404 when there is no row */
	API_ROWS,					/* an array of objects */
	API_PAGE,					/* an object with data, has_more and next */
	API_NOTHING,				/* 204; 404 when there is no row */
	API_VERIFIED,				/* of a guess */
	API_SENT					/* of a resend; a send has no statement */
} ApiResult;

typedef struct ApiFunction
{
	const char *name;			/* in schema otp_api */
	ApiAccess	access;
	bool		reads;			/* STABLE: runs in a read-only transaction and
								 * on a standby */
	ApiResult	result;
	int			status;			/* HTTP, when all is well */
	int			nargs;
	ApiArgument args[API_MAX_ARGUMENTS];

	/*
	 * Its statement, with the arguments as $1, $2 ...; then, for admin keys
	 * only, the workspace's id and name. verbs. is the schema of the verbs.
	 * NULL: otp_send, which is called directly.
	 */
	const char *sql;
	const char *shown;			/* columns that are shown as null, with blanks
								 * between; others are left out */
} ApiFunction;

/* Find a function by name; NULL when there is none. Raises nothing. */
extern const ApiFunction *api_function(const char *name);

/* All of them, in order: for tests and documents. */
extern const ApiFunction *api_functions(int *n);

/* One call */
typedef struct ApiCall
{
	const ApiFunction *function;
	const char *api_key;		/* as it came, maybe no key at all; NULL: none */
	size_t		api_key_length;
	bool		envelope;		/* errors as {"error": {...}}, as below /v1;
								 * else as PostgREST has them */
	Datum		values[API_MAX_ARGUMENTS];
	bool		nulls[API_MAX_ARGUMENTS];
} ApiCall;

typedef struct ApiAnswer
{
	int			status;			/* HTTP */
	char	   *body;			/* JSON, UTF-8, NUL-terminated; NULL: none */
	size_t		length;
	int			remaining;		/* X-RateLimit-Remaining */
	int64		reset_at;		/* X-RateLimit-Reset: Unix time in seconds */
	int			retry_after;	/* seconds; -1: no such header */
	bool		lock_timeout;	/* nothing was done, because somebody has a
								 * row locked: the same call may be made again */

	/* A code is on its way: see api_outcome */
	bool		sending;
	pg_uuid_t	id;
	int32		workspace_id;
} ApiAnswer;

/* Give the number of a function in api_functions. */
extern int	api_number(const ApiFunction *function);

/*
 * Call a function, with the key alone deciding for whom. Needs a transaction,
 * at its top level, and no snapshot; the caller commits it, whatever the
 * answer, before the answer leaves. What is palloc'd is in the current memory
 * context. Raises only what cannot be answered: a FATAL, an interrupt that is
 * none of the statement's.
 */
extern void api_call(const ApiCall *call, ApiAnswer *answer);

/*
 * Make the answer of a call by the outcome of what was on its way: accepted by
 * the provider, or failed for good. False when there is none yet: then the
 * call's own answer is the one to give, as soon as nobody wants to wait any
 * longer. Needs a transaction and an active snapshot; reads only. The answer's
 * envelope is that of /v1 when envelope is true.
 */
extern bool api_outcome(int32 workspace_id, const pg_uuid_t *id, bool envelope, ApiAnswer *answer);

/* Make an answer to what never became a call, such as 400 or 404. Needs no transaction. */
extern void api_refuse(ApiAnswer *answer, bool envelope, int status, const char *code,
					   const char *message, const char *hint, int retry_after);

#endif							/* OTP_API_H */
