/*-------------------------------------------------------------------------
 *
 * guard.h
 *	  What the guard against pumping reads from the history, and its log.
 *
 * All functions need SPI_connect and the owner's scope; what they give is
 * palloc'd.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_STORE_GUARD_H
#define OTP_STORE_GUARD_H

#include "base/guard.h"

/*
 * Name what the guard counts a phone under: its country, or else a plus and
 * its first three digits; false for one that was forgotten.
 */
extern bool guard_country(const char *phone, char country[GUARD_COUNTRY_LENGTH + 1]);

/*
 * Read what a workspace has sent and verified within the last day, and the
 * most it has verified in a day, by what is committed now. What this
 * transaction has sent is left out: it is counted when it commits.
 */
extern GuardCounts *guard_read_history(int32 workspace_id, TimestampTz now, int *n);

/*
 * Read the most that a workspace has verified in one of the past 14 days (of
 * UTC), where that is enough to change a threshold.
 */
extern GuardBest *guard_read_best(int32 workspace_id, TimestampTz now, int *n);

/* Add decisions to otp.guard_log. The sender's only. */
extern void guard_log_add(const GuardDecision *decisions, int n);

/* Delete rows of it from before a time, some at a time; gives how many. */
extern int64 guard_log_delete(TimestampTz before);

#endif							/* OTP_STORE_GUARD_H */
