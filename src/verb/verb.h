/*-------------------------------------------------------------------------
 *
 * verb.h
 *	  What the verbs share: their scope, their arguments, their results.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_VERB_H
#define OTP_VERB_H

#include "fmgr.h"

#include "base/error.h"
#include "base/ledger.h"
#include "base/owner.h"
#include "base/ulid.h"
#include "store/verification.h"
#include "store/workspace.h"

/* Longest strings taken from outside, in bytes */
#define MAX_CONTEXT 256
#define MAX_METADATA 4096
#define MAX_METADATA_TEXT (6 * MAX_METADATA)	/* strings may be all escapes */
#define MAX_TEMPLATE 512		/* Meta's own limit for a template's name */
#define MAX_IDEMPOTENCY_KEY 255
#define MAX_LANGUAGE 16			/* "zh_Hant_TW" and room */

/* A verb at work: the caller's identity, the owner's scope, SPI */
typedef struct VerbScope
{
	Oid			caller;
	OwnerScope	owner;
	ErrorContextCallback hide;
} VerbScope;

typedef enum VerbAccess
{
	VERB_READS,					/* runs on a standby and in a read-only
								 * transaction */
	VERB_WRITES
} VerbAccess;

/*
 * Begin and end a verb. Begin raises 55000 without preload, 25006 for a
 * writing verb during recovery or in a read-only transaction. An error in
 * between needs no end, and hides the caller's statement from the log. The
 * scope must live until the end.
 */
extern void verb_begin(VerbScope *scope, const char *name, VerbAccess access);
extern void verb_end(VerbScope *scope);

/* A phone argument; raises invalid_phone unless it is an E.164 number. */
extern char *verb_phone(FunctionCallInfo fcinfo, int argument);

/* A text argument, or NULL; raises 22023 when longer than max bytes. */
extern char *verb_text(FunctionCallInfo fcinfo, int argument, const char *name, int max);

/* The one-row result by the function's OUT columns. */
extern Datum verb_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls);

/* The text of an otp_id. */
extern Datum verb_id(const pg_uuid_t *id);

/* Where a verification stands */
typedef enum Life
{
	LIFE_PENDING,
	LIFE_DELIVERED,
	LIFE_VERIFIED,
	LIFE_EXPIRED,
	LIFE_FAILED,
	LIFE_CANCELED
} Life;

extern const char *life_name(Life life);

/* Wrong guesses so far, by the row and by the ledger. */
extern int	verb_attempts(const Verification *v);

/*
 * Why a verification can no longer be verified or sent again; OTP_OK when it
 * can. The order is the documented one: already verified, canceled, expired,
 * attempts used up (rate_limit_exceeded), failed.
 */
extern OtpError verb_end_of_life(const Verification *v, int attempts, TimestampTz now);

/* Raise what verb_end_of_life found. */
extern void verb_raise_end(OtpError error) pg_attribute_noreturn();

/* The windows that limits look back */
#define LIMITS_HOUR ((int64) 3600 * USECS_PER_SEC)
#define LIMITS_DAY (24 * LIMITS_HOUR)

/* How far a limit is used */
typedef struct LimitUse
{
	const char *name;
	const char *prefix;			/* of a key, or NULL */
	int			max;
	int			used;
	TimestampTz resets_at;		/* when nothing of it is used any more; 0: now */
	TimestampTz free_at;		/* when there is room for one more; 0: now,
								 * PG_INT64_MAX: waiting does not help */
} LimitUse;

/*
 * Check the limits per phone of a send or resend: per hour and day, and the
 * cooldown for the same template and context. Locks the phone until the end
 * of the transaction. Raises rate_limit_exceeded. (limits.c)
 */
extern void limits_take(const Workspace *w, const char *phone, const char *template_name,
						const char *context, TimestampTz now);

/*
 * Take a send from those of this second. Comes last of all limits, so that a
 * refused send takes nothing from it. Raises rate_limit_exceeded.
 */
extern void limits_take_second(const Workspace *w);

/* Tell of each limit per phone (NULL: of none) and per second how far it is used. Locks nothing. */
extern void limits_tell(const Workspace *w, const char *phone, TimestampTz now,
						void (*tell) (void *arg, const LimitUse *use), void *arg);

/* The seconds until a time, at least 1. */
extern int	limits_seconds_until(TimestampTz then, TimestampTz now);

/* Have the sender woken when this transaction commits. (wake.c) */
extern void wake_at_commit(void);
extern void wake_init(void);

/*
 * Raise module_inactive unless a workspace can use a channel, and
 * meta_api_unavailable while its breaker is open and there is no fallback.
 * (module.c)
 */
extern void module_require(const Workspace *w, const char *channel, bool fallback_sms);

#endif							/* OTP_VERB_H */
