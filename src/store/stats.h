/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  Statistics: otp.stats_hours and otp.usage_days, summed up from
 *	  otp.verifications and otp.messages.
 *
 * Everything sent before a position in time has been summed up, once; what
 * came later is still to be read. All functions need a transaction,
 * SPI_connect and the owner's scope, and leave the current memory context as
 * it is, which SPI itself does not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_STATS_H
#define OTP_STATS_H

#include "datatype/timestamp.h"

#include "store/tally.h"

/*
 * A verification is summed up when it is so old: no code lives longer than
 * 15 minutes, so its life is over, and most of its receipts are there.
 */
#define STATS_AGE_US (INT64CONST(20) * 60 * 1000000)

/* Sums are kept for thirteen months. */
#define STATS_KEPT_US (INT64CONST(396) * 86400 * 1000000)

/* A step of the roll-up */
typedef struct StatsStep
{
	int			limit;			/* most rows that it may read */
	bool		patient;		/* waits for locks, rather than do nothing */
	int64		window;			/* length of time to try, microseconds; then
								 * that of the next step. 0: any */

	/* what came of it */
	int64		rows;			/* read */
	bool		more;			/* there is more that is old enough */
} StatsStep;

/* Sum up what comes next; false when somebody's lock is in the way. */
extern bool stats_step(TimestampTz now, StatsStep *step);

/* Delete sums that are too old, some at a time; gives how many. */
extern int64 stats_delete_old(TimestampTz now);

/*
 * Sum up what is still to be read, of some workspaces (an int4[]), as the
 * active snapshot sees it. Writes nothing.
 */
extern Tally *stats_rest(Datum workspaces);

/* The ids of all workspaces, as an int4[]. */
extern Datum stats_all_workspaces(void);

/* The columns of otp.stats_hours, in their order: 13 values, none NULL; palloc'd. */
extern void stats_hour_values(const TallyHour *row, Datum *values);

/* The same of otp.usage_days; a price of 0 is NULL. */
extern void stats_day_values(const TallyDay *row, Datum *values);

#endif							/* OTP_STATS_H */
