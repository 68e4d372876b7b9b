/*-------------------------------------------------------------------------
 *
 * send.h
 *	  The parts of otp_send, in the order in which they are asked.
 *
 * All need the owner's scope and SPI_connect, unless said otherwise.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_SEND_H
#define OTP_SEND_H

#include "utils/array.h"

#include "base/code.h"
#include "store/verification.h"
#include "store/workspace.h"
#include "verb/verb.h"

typedef struct LimitKeys LimitKeys;

/* What otp_send was asked for */
typedef struct SendRequest
{
	const Workspace *w;			/* set by send_code */
	Verification v;				/* what is to be written */
	int			expires_in;		/* seconds */
	bool		has_length;		/* these were asked for; the workspace decides
								 * on the others */
	bool		has_expires_in;
	bool		has_fallback_sms;
	const char *given_code;		/* from outside; NULL: one is made */
	LimitKeys  *limit_keys;		/* NULL: none */
	char	   *idempotency_key;	/* NULL: none */
	char	   *asked;			/* with a key: all arguments as they were
								 * given */
	pg_uuid_t	key_id;			/* set by idempotency_find: what it is stored
								 * as, */
	uint8		arguments[HASH_LENGTH]; /* and the hash of what was asked for */
} SendRequest;

/*
 * Send what was asked for: the one way for all. workspace NULL is the
 * caller's. Of v, what was asked for is to be set, the rest zeroed; all of
 * it is set then. Strings come from the caller or the workspace, and hold
 * until the end of the scope. Raises what otp_send raises. (send.c)
 */
extern void send_code(SendRequest *r, Oid caller, const char *workspace);

/*
 * Send what otp_send was called with, a scope and all. True when a test
 * number has it fall back. Strings of r hold until anything else is called.
 * (send.c)
 */
extern bool send_called(FunctionCallInfo fcinfo, SendRequest *r);

/*
 * Refuse a phone of a country that the workspace does not send to over the
 * channel (invalid_phone). A fallback that was asked for is refused as well;
 * one that only the workspace's default wants is left out. (country.c)
 */
extern void country_require(const Workspace *w, Verification *v, bool fallback_asked);

/* The same for one channel alone, as a resend needs it. */
extern void country_require_channel(const Workspace *w, const char *phone, const char *channel);

/*
 * Find what the same key was answered within the last 24 hours. True when
 * there is such a send, which r->v and r->expires_in are then filled from.
 * Locks the key until the end of the transaction, before any other lock.
 * Raises idempotency_key_reused when something else was asked for.
 * (idempotency.c)
 */
extern bool idempotency_find(SendRequest *r);

/* Note the key of a send that was made. */
extern void idempotency_note(const SendRequest *r);

/*
 * Take the argument limit_keys apart; raises 22023 for malformed ones. NULL
 * for an empty array. Needs no scope. (limit_keys.c)
 */
extern LimitKeys *limit_keys_parse(ArrayType *keys);

/*
 * Refuse when a key has been sent for too often (rate_limit_exceeded), or
 * there is no limit for its prefix (22023). Locks the keys until the end of
 * the transaction. Comes behind the lock on the phone.
 */
extern void limit_keys_take(const Workspace *w, LimitKeys *keys);

/* Tell of each limit of the keys how far it is used. Locks nothing. */
extern void limit_keys_tell(const Workspace *w, LimitKeys *keys, TimestampTz now,
							void (*tell) (void *arg, const LimitUse *use), void *arg);

/* Count a send for its keys. */
extern void limit_keys_note(const Verification *v, const LimitKeys *keys);

/* The argument as it was, as an array of texts. */
extern Datum limit_keys_datum(const LimitKeys *keys);

/*
 * The guard against pumping: refuse when too many codes to the phone's
 * country were not verified (rate_limit_exceeded), or record that it would
 * have. (guard.c)
 */
extern void guard_require(const Workspace *w, const char *phone, const char *channel, TimestampTz now);

/* Count a send, or that one was verified, when this transaction commits. */
extern void guard_note_sent(const Workspace *w, const Verification *v);
extern void guard_note_verified(const Workspace *w, const Verification *v);

/*
 * Ask the workspace's policy function, if it has one: true when it may be
 * sent, false when it is to be shadowed. Raises policy_denied. (policy.c)
 */
extern bool policy_allows(const SendRequest *r);

#endif							/* OTP_SEND_H */
