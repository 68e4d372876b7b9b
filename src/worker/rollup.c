/*-------------------------------------------------------------------------
 *
 * rollup.c
 *	  Sum statistics up, a little at a time.
 *
 * A step takes some milliseconds, in which no code is sent. So it reads few
 * rows, adapts that to how long they took, and pauses for some times as long.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/guc.h"
#include "utils/timestamp.h"

#include "store/stats.h"
#include "worker/sender.h"
#include "worker/upkeep.h"

/* Rows that a step reads: at first, at least, at most */
#define ROWS_FIRST 500
#define ROWS_MIN 200
#define ROWS_MAX 1000

/* How long a step should take, and may; how many times as long the pause is */
#define STEP_US 5000
#define STEP_MAX_US 20000
#define PAUSE_TIMES 4
#define PAUSE_MIN_MS 20
#define PAUSE_MAX_MS 1000

/* With nothing to do */
#define IDLE_MS 60000

/* How often sums that are too old are looked for */
#define DELETE_MS 3600000

typedef struct Turn
{
	TimestampTz now;
	StatsStep	step;
	bool		busy;			/* somebody's lock is in the way */
	bool		deletes;
} Turn;

/* What the last step suggests for the next one */
static int	limit = ROWS_FIRST;
static int64 window = 0;
static TimestampTz next_delete = 0;

/* Take a step; in a transaction */
static void
take_step(void *arg)
{
	Turn	   *turn = arg;

	/*
	 * Sums and position are lost together in a crash, and made again: no
	 * flush
	 */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	turn->busy = !stats_step(turn->now, &turn->step);
	if (turn->deletes)
		(void) stats_delete_old(turn->now);
}

/* Sum up what has ended */
TimestampTz
rollup_turn(TimestampTz now)
{
	Turn		turn = {0};
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz end;
	int64		pause;

	turn.now = now;
	turn.step.limit = limit;
	turn.step.window = window;
	turn.deletes = now >= next_delete;
	if (!turn_do(take_step, &turn, NULL))
	{
		/* Perhaps it was too much at once */
		limit = ROWS_MIN;
		window = 0;
		return TimestampTzPlusMilliseconds(now, IDLE_MS);
	}
	if (turn.deletes)
		next_delete = TimestampTzPlusMilliseconds(now, DELETE_MS);
	end = GetCurrentTimestamp();
	if (turn.busy)
		return TimestampTzPlusMilliseconds(end, PAUSE_MAX_MS);

	/*
	 * A step that took too long was one of too many rows, or of a busy
	 * machine
	 */
	window = turn.step.window;
	if (end - start > STEP_MAX_US)
		limit = Max(limit / 2, ROWS_MIN);
	else if (end - start < STEP_US && turn.step.rows > limit / 2)
		limit = Min(limit + limit / 4, ROWS_MAX);

	if (!turn.step.more)
		return TimestampTzPlusMilliseconds(end, IDLE_MS);
	pause = (end - start) * PAUSE_TIMES / 1000;
	return TimestampTzPlusMilliseconds(end, Min(Max(pause, PAUSE_MIN_MS), PAUSE_MAX_MS));
}
