/*-------------------------------------------------------------------------
 *
 * guard.h
 *	  The guard against pumping: what it counts, and when it trips.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_GUARD_H
#define OTP_GUARD_H

#include "datatype/timestamp.h"

/* Longest name of what is counted: a country, or a plus and three digits */
#define GUARD_COUNTRY_LENGTH 7

/* A day, in steps of ten minutes; an hour has six */
#define GUARD_BUCKETS 144
#define GUARD_BUCKETS_HOUR 6
#define GUARD_BUCKET_US (600 * USECS_PER_SEC)

/* Why a send is one too many */
typedef enum GuardReason
{
	GUARD_HOUR,
	GUARD_DAY,
	GUARD_REASONS,
	GUARD_FINE = GUARD_REASONS
} GuardReason;

/*
 * What a workspace has sent to a country. Buckets are numbered by time; one
 * is found at its number modulo GUARD_BUCKETS.
 */
typedef struct GuardCounts
{
	char		country[GUARD_COUNTRY_LENGTH + 1];
	int64		newest;			/* bucket; the others are the ones before */
	int32		best_day;		/* most verified in one of the past days */
	int32		sends[GUARD_BUCKETS];
	int32		verified[GUARD_BUCKETS];	/* of those */
} GuardCounts;

/* The same, summed up */
typedef struct GuardFigures
{
	int			sends_hour;
	int			sends_day;
	int			verified_hour;
	int			verified_day;
	int			best_day;
	/* by guard_judge */
	int			unverified_hour;
	int			unverified_day;
	int			threshold_hour; /* so many are fine, the next is not */
	int			threshold_day;
	GuardReason reason;			/* to refuse the next one */
} GuardFigures;

/* The most verified in a day, of one country */
typedef struct GuardBest
{
	char		country[GUARD_COUNTRY_LENGTH + 1];
	int32		verified;
} GuardBest;

/* What was decided, and is not in otp.guard_log yet */
typedef struct GuardDecision
{
	int32		workspace_id;
	char		country[GUARD_COUNTRY_LENGTH + 1];
	GuardReason reason;
	int32		blocked;
	int32		recorded;
	TimestampTz first_at;
	TimestampTz last_at;
	int32		unverified;		/* the last time */
	int32		threshold;
} GuardDecision;

/* ---- the rule (guard_rule.c) ---- */

/* The bucket of a moment. */
extern int64 guard_bucket(TimestampTz time);

/* Sum up, as it is at a bucket: its newest one, or a later one. */
extern void guard_sum(const GuardCounts *counts, int64 bucket, GuardFigures *figures);

/* Work out what is unverified, the thresholds, and whether one more would be too many. */
extern void guard_judge(GuardFigures *figures);

/* The seconds until there is room for one more, if nothing else is sent or verified; at least 1. */
extern int	guard_wait(const GuardCounts *counts, TimestampTz now);

/* ---- shared memory (guard.c) ---- */

extern Size guard_shmem_size(void);
extern void guard_shmem_init(void);

/*
 * Sum up what is known of a workspace and country; false when its history
 * has to be read first. *read_days is set for one caller every ten minutes:
 * the most verified in a day is to be read again.
 */
extern bool guard_look(int32 workspace_id, const char *country, TimestampTz now,
					   GuardFigures *figures, bool *read_days);

/*
 * Is the history of a workspace known? If not, *since is when somebody began
 * to read it, 0 when nobody did.
 */
extern bool guard_is_known(int32 workspace_id, TimestampTz now, TimestampTz *since);

/*
 * Have a workspace counted, from nothing: before the snapshot in which its
 * history is read. Then add what was read, country by country, and say that
 * this was all. One caller at a time: see verb/guard.c. The other two do
 * nothing when somebody has begun anew since, or there is no room.
 */
extern uint32 guard_load_begin(int32 workspace_id, TimestampTz now);
extern void guard_load_add(int32 workspace_id, uint32 load, const GuardCounts *counts);
extern void guard_load_end(int32 workspace_id, uint32 load);

/* Take in the most verified in a day; all other countries have none worth a word. */
extern void guard_set_best(int32 workspace_id, const GuardBest *best, int n);

/*
 * Count sends and successes in the bucket of the sends. Raises nothing, and
 * needs no transaction. Does nothing for a workspace that is not counted.
 */
extern void guard_count(int32 workspace_id, const char *country, int64 bucket, int sends, int verified);

/* Copy what is known of all countries of a workspace; palloc'd. */
extern GuardCounts *guard_copy_all(int32 workspace_id, int *n);

/* Note a decision, for otp.guard_log; counts gets a copy of what it was made on. */
extern void guard_decide(const GuardDecision *decision, GuardCounts *counts);

/* Cheap and without a lock: may there be decisions that are not in otp.guard_log yet? */
extern bool guard_has_decisions(void);

/* Copy up to max of them, of this database; gives their number. */
extern int	guard_decisions(GuardDecision *decisions, int max);

/* They are written now. */
extern void guard_decisions_written(const GuardDecision *decisions, int n);

/* The guard is off for a workspace, whose sends are no longer counted. Cheap where it is off for all. */
extern void guard_forget(int32 workspace_id);

/* Drop all of a database that was dropped, or whose extension was. */
extern void guard_forget_database(Oid database);

/* ---- what this transaction will count (guard_pending.c) ---- */

/* Register the callbacks; once, at load. */
extern void guard_pending_init(void);

/* Count when this transaction commits, unless the current subtransaction is rolled back. */
extern void guard_pending_add(int32 workspace_id, const char *country, TimestampTz sent_at, int sends, int verified);

/* Add what is pending of a country, to sums or to counts; either may be NULL. */
extern void guard_pending_sum(int32 workspace_id, const char *country, TimestampTz now,
							  GuardFigures *figures, GuardCounts *counts);

#endif							/* OTP_GUARD_H */
