/*-------------------------------------------------------------------------
 *
 * xact_wait.h
 *	  Wait for the end of a transaction, but not for ever.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_XACT_WAIT_H
#define OTP_XACT_WAIT_H

#include "datatype/timestamp.h"

/*
 * Wait until a transaction has ended, or for a little longer than
 * deadlock_timeout; false when it has not. Raises what waiting for a row
 * raises: deadlock_detected, query_canceled, and lock_not_available once the
 * caller's lock_timeout is over, which began at a time. Needs a transaction.
 */
extern bool xact_wait(TransactionId xid, TimestampTz since);

#endif							/* OTP_XACT_WAIT_H */
