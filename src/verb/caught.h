/*-------------------------------------------------------------------------
 *
 * caught.h
 *	  Errors that are answers: for functions whose callers want a status
 *	  instead.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_CAUGHT_H
#define OTP_CAUGHT_H

#include "utils/elog.h"

/*
 * Do a piece of work in a subtransaction. NULL when all is well; else it is
 * rolled back, and the error given, in the current memory context, with
 * *status what it is in HTTP. What is nobody's to answer is raised again: a
 * cancel, a serialization failure, whatever is not ours. Needs no scope.
 */
extern ErrorData *caught_work(void (*work) (void *arg), void *arg, int *status);

/* The same, but nothing is raised again: *status is 0 for what is not ours. */
extern ErrorData *caught_any(void (*work) (void *arg), void *arg, int *status);

/* The word for programs in an error's DETAIL; such as invalid_request where it has none. */
extern const char *caught_code(const ErrorData *error);

#endif							/* OTP_CAUGHT_H */
