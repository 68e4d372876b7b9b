/*-------------------------------------------------------------------------
 *
 * upkeep.h
 *	  What a sender keeps up beside sending; sender.c has the list.
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

/* Delete what deleted workspaces have left (sweep.c). */
extern TimestampTz sweep_turn(TimestampTz now);

/* Sum up what has ended into otp.stats_hours and otp.usage_days (rollup.c). */
extern TimestampTz rollup_turn(TimestampTz now);

/* Write what the guard against pumping has decided into otp.guard_log (guard.c). */
extern TimestampTz guard_turn(TimestampTz now);

/* Write down when API keys were last used; and all that is left (key_use.c). */
extern TimestampTz key_use_turn(TimestampTz now);
extern void key_use_leave(TimestampTz now);

/* Put what has changed into the stripes of balances, level them, and tell who has little left (credit.c). */
extern TimestampTz credits_turn(TimestampTz now);

/* Look what is set for listeners. (listeners.c) */
extern TimestampTz listeners_turn(TimestampTz now);

#endif							/* OTP_UPKEEP_H */
