/*-------------------------------------------------------------------------
 *
 * error.h
 *	  The errors that the verbs raise or return.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ERROR_H
#define OTP_ERROR_H

typedef enum OtpError
{
	OTP_OK = 0,
	OTP_INVALID_API_KEY,
	OTP_INVALID_PHONE,
	OTP_TEMPLATE_NOT_FOUND,
	OTP_INSUFFICIENT_CREDITS,
	OTP_MODULE_INACTIVE,
	OTP_WORKSPACE_SUSPENDED,
	OTP_POLICY_DENIED,
	OTP_NOT_FOUND,
	OTP_CANCELED,
	OTP_IDEMPOTENCY_KEY_REUSED,
	OTP_EXPIRED,
	OTP_ALREADY_VERIFIED,
	OTP_FAILED,
	OTP_RATE_LIMIT_EXCEEDED,
	OTP_META_API_UNAVAILABLE,
	OTP_KEY_UNAVAILABLE,
	OTP_INVALID_CODE			/* returned by verify, never raised */
} OtpError;

/* The name that programs see, such as "rate_limit_exceeded" */
extern const char *error_code(OtpError error);

/*
 * Raise an error of class OT: SQLSTATE by the table in error.c, message and
 * hint for people, and a DETAIL that is one JSON object for programs, with
 * retry_after (seconds; left out when negative) and limit (left out when
 * NULL). The statement and its context stay out of the log, because they
 * hold what the client wrote as literals.
 */
extern void error_raise(OtpError error, const char *message, const char *hint,
						int retry_after, const char *limit) pg_attribute_noreturn();

/*
 * Raise rate_limit_exceeded for a key of limit_keys: DETAIL has the key's
 * prefix as well, which has been checked to be a word.
 */
extern void error_raise_key_limit(const char *message, const char *hint, int retry_after,
								  const char *limit, const char *prefix) pg_attribute_noreturn();

/* Raise 22023 for any other bad argument. */
extern void error_invalid_argument(const char *message, const char *hint) pg_attribute_noreturn();

#endif							/* OTP_ERROR_H */
