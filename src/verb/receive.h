/*-------------------------------------------------------------------------
 *
 * receive.h
 *	  What takes receipts, for callers in C.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_RECEIVE_H
#define OTP_RECEIVE_H

#include "fmgr.h"

/* The SQL functions of the schema otp, with their arguments and results */
extern Datum otp_receive_meta(PG_FUNCTION_ARGS);
extern Datum otp_receive_meta_handshake(PG_FUNCTION_ARGS);
extern Datum otp_receive_twilio(PG_FUNCTION_ARGS);

#endif							/* OTP_RECEIVE_H */
