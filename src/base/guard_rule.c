/*-------------------------------------------------------------------------
 *
 * guard_rule.c
 *	  The guard against pumping: when it trips.
 *
 * The thresholds are those that authgear publishes (authgear-server,
 * docs/specs/fraud-protection.md, "SMS pumping", by phone country):
 *
 *	day  = max(20, 0.2 * most verified in a day, 0.2 * verified in 24 hours)
 *	hour = max(3, day / 6, 0.2 * verified in the last hour)
 *
 * The send with which the unverified ones would exceed a threshold is the
 * first to be refused: so a threshold is rounded down, and that many pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/timestamp.h"

#include "base/guard.h"

#define DAY_LEAST 20
#define HOUR_LEAST 3
#define VERIFIED_PER_UNVERIFIED 5	/* 0.2 */
#define HOURS 6					/* a day's share in one hour: day / 6 */

/* Give the bucket of a moment */
int64
guard_bucket(TimestampTz time)
{
	return Max(time, 0) / GUARD_BUCKET_US;
}

/* Sum up */
void
guard_sum(const GuardCounts *counts, int64 bucket, GuardFigures *figures)
{
	memset(figures, 0, sizeof(GuardFigures));
	figures->best_day = counts->best_day;
	bucket = Max(bucket, counts->newest);
	for (int64 b = Max(bucket - GUARD_BUCKETS + 1, 0); b <= counts->newest; b++)
	{
		int			sends = counts->sends[b % GUARD_BUCKETS];
		int			verified = counts->verified[b % GUARD_BUCKETS];

		figures->sends_day += sends;
		figures->verified_day += verified;
		if (b > bucket - GUARD_BUCKETS_HOUR)
		{
			figures->sends_hour += sends;
			figures->verified_hour += verified;
		}
	}
}

/* Judge */
void
guard_judge(GuardFigures *f)
{
	f->unverified_hour = Max(f->sends_hour - f->verified_hour, 0);
	f->unverified_day = Max(f->sends_day - f->verified_day, 0);

	/* Rounded down each, which is the same as rounding the greatest */
	f->threshold_day = Max(DAY_LEAST, Max(f->best_day, f->verified_day) / VERIFIED_PER_UNVERIFIED);
	f->threshold_hour = Max(Max(HOUR_LEAST, DAY_LEAST / HOURS),
							Max(Max(f->best_day, f->verified_day) / (VERIFIED_PER_UNVERIFIED * HOURS),
								f->verified_hour / VERIFIED_PER_UNVERIFIED));
	if (f->unverified_day >= f->threshold_day)
		f->reason = GUARD_DAY;
	else if (f->unverified_hour >= f->threshold_hour)
		f->reason = GUARD_HOUR;
	else
		f->reason = GUARD_FINE;
}

/* Tell when there is room again */
int
guard_wait(const GuardCounts *counts, TimestampTz now)
{
	int64		bucket = Max(guard_bucket(now), counts->newest);
	int64		until;

	/* Successes leave with their sends, so thresholds may fall on the way */
	for (int k = 1; k < GUARD_BUCKETS; k++)
	{
		GuardFigures f;

		guard_sum(counts, bucket + k, &f);
		guard_judge(&f);
		if (f.reason == GUARD_FINE)
		{
			bucket += k;
			break;
		}
		if (k == GUARD_BUCKETS - 1)
			bucket += GUARD_BUCKETS;
	}
	until = bucket * GUARD_BUCKET_US;
	return (int) Max((until - now + USECS_PER_SEC - 1) / USECS_PER_SEC, 1);
}
