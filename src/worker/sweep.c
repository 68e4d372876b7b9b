/*-------------------------------------------------------------------------
 *
 * sweep.c
 *	  Delete what deleted workspaces have left.
 *
 * otp.delete_workspace takes away what users write, and notes the rest in
 * otp.deleted_workspaces: we delete it in steps of a few milliseconds, some
 * hundred rows each. Answers that were under way, counts in the ledger, and
 * transactions that were open meanwhile can leave more. So we come again, at
 * twice the age of the deletion each time, for a day.
 *
 * All of it is noted in the table: a successor begins the pass again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/timestamp.h"

#include "store/workspace_change.h"
#include "worker/sender.h"
#include "worker/upkeep.h"

/* How often deleted workspaces are looked for */
#define LOOK_MS 1000

/* A pause between steps, for what else the sender has to do */
#define STEP_MS 5

/* The first time that we come again, and the age from which on we do not */
#define AGAIN_US (2 * USECS_PER_SEC)
#define AGAIN_UNTIL USECS_PER_DAY

/* After an error: first and longest wait */
#define ERROR_WAIT_MS 1000
#define ERROR_WAIT_MAX_MS 60000

/* The pass under way */
typedef struct Pass
{
	int32		workspace_id;	/* 0: none */
	TimestampTz deleted_at;
	LeftoverPosition position;
} Pass;

typedef struct Step
{
	TimestampTz now;
	Pass		pass;
} Step;

static Pass current;
static TimestampTz not_before = 0;
static int	errors = 0;			/* in a row */

/* Take a step; in its transaction */
static void
work(void *arg)
{
	Step	   *step = arg;
	Pass	   *pass = &step->pass;
	int64		age;

	if (pass->workspace_id == 0)
	{
		memset(pass, 0, sizeof(Pass));
		if (!leftover_next(step->now, &pass->workspace_id, &pass->deleted_at))
			pass->workspace_id = 0;
		return;
	}
	if (leftover_delete(pass->workspace_id, &pass->position))
		return;
	age = Max(step->now - pass->deleted_at, 0);
	leftover_put_off(pass->workspace_id, age > AGAIN_UNTIL ? 0 : step->now + Max(age, AGAIN_US));
	pass->workspace_id = 0;
}

/* Sweep */
TimestampTz
sweep_turn(TimestampTz now)
{
	Step		step;
	bool		busy;
	long		wait = ERROR_WAIT_MS;

	/* A clock that was set back must not have us wait for the time it was */
	not_before = Min(not_before, TimestampTzPlusMilliseconds(now, ERROR_WAIT_MAX_MS));
	if (now < not_before)
		return not_before;

	step.now = now;
	step.pass = current;
	busy = current.workspace_id != 0;
	if (turn_do(work, &step, NULL))
	{
		errors = 0;
		current = step.pass;
		busy |= current.workspace_id != 0;
		return TimestampTzPlusMilliseconds(now, busy ? STEP_MS : LOOK_MS);
	}

	/* What failed is in the log, once for each try: so try ever less often */
	for (int i = 0; i < errors && wait < ERROR_WAIT_MAX_MS; i++)
		wait *= 2;
	errors++;
	not_before = TimestampTzPlusMilliseconds(now, Min(wait, ERROR_WAIT_MAX_MS));
	return not_before;
}
