/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Write down what the guard against pumping has decided.
 *
 * A refused send rolls back whatever it could write. So decisions are counted
 * in shared memory, and written from there: a row for each hour, country and
 * reason, however many sends an attack tries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/guc.h"
#include "utils/timestamp.h"

#include "base/guard.h"
#include "base/guc.h"
#include "store/guard.h"
#include "worker/sender.h"
#include "worker/upkeep.h"

/* How often decisions are written, and the pause when there are more than fit in a step */
#define WRITE_MS 1000
#define MORE_MS 20

/* Decisions of a step: some milliseconds */
#define BATCH 64

/* How often old rows are looked for, and the wait after an error */
#define DELETE_MS (60 * 60 * 1000)
#define ERROR_WAIT_MS 10000

typedef struct Turn
{
	TimestampTz now;
	GuardDecision decisions[BATCH];
	int			n;
	bool		deletes;
	bool		more;			/* old rows */
} Turn;

static TimestampTz next_delete = 0;

/* Take a step; in a transaction */
static void
take_step(void *arg)
{
	Turn	   *turn = arg;

	/* A crash loses what is in shared memory anyway: no flush */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	if (turn->n > 0)
		guard_log_add(turn->decisions, turn->n);
	if (turn->deletes)
		turn->more = guard_log_delete(turn->now - (int64) otp_retention * 60 * USECS_PER_SEC) > 0;
}

/* Write decisions down */
TimestampTz
guard_turn(TimestampTz now)
{
	static Turn turn;

	turn.now = now;
	turn.n = guard_has_decisions() ? guard_decisions(turn.decisions, BATCH) : 0;
	turn.deletes = now >= next_delete;
	turn.more = false;
	if (turn.n == 0 && !turn.deletes)
		return TimestampTzPlusMilliseconds(now, WRITE_MS);
	if (!turn_do(take_step, &turn, NULL))
		return TimestampTzPlusMilliseconds(now, ERROR_WAIT_MS);

	guard_decisions_written(turn.decisions, turn.n);
	if (turn.deletes && !turn.more)
		next_delete = TimestampTzPlusMilliseconds(now, DELETE_MS);
	return TimestampTzPlusMilliseconds(now, turn.n > BATCH / 2 || turn.more ? MORE_MS : WRITE_MS);
}
