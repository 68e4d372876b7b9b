/*-------------------------------------------------------------------------
 *
 * upkeep.h
 *	  What a sender does beside sending: retention, statistics and credits.
 *
 * Each call is one small step in a transaction of its own, some milliseconds
 * long, raises nothing, and gives the time of the next call.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_UPKEEP_H
#define OTP_UPKEEP_H

#include "datatype/timestamp.h"

/* Empty drawers of the history that are older than otp.retention (retention.c). */
extern TimestampTz retention_turn(TimestampTz now);

/* Sum up what has ended into otp.stats_hours and otp.usage_days (rollup.c). */
extern TimestampTz rollup_turn(TimestampTz now);

/* Put what has changed into the stripes of balances, level them, and tell who has little left (credit.c). */
extern TimestampTz credits_turn(TimestampTz now);

#endif							/* OTP_UPKEEP_H */
