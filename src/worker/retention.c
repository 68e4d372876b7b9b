/*-------------------------------------------------------------------------
 *
 * retention.c
 *	  Keep retention: empty drawers of the history that are old enough.
 *
 * At its start a sender measures every drawer that has something in it. Then
 * it looks at otp.ring once a minute, and does what is to be done in steps of
 * a few milliseconds, one for each call:
 *
 *	a drawer whose newest row is too old, and which nobody is about to fill:
 *	its leaves are emptied by TRUNCATE, one by one, tried again every second
 *	as long as somebody uses them;
 *
 *	a drawer that is being filled again and has not been emptied before (the
 *	server was down for a month), or which a change of otp.retention has mixed:
 *	its old rows are deleted, some hundred at a time.
 *
 * Beside that, counts of wrong guesses that are out of date are deleted, and
 * what otp.forget_phone has left to us is finished. All of it is noted in
 * tables: a successor goes on where we were.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/timestamp.h"

#include "base/guc.h"
#include "store/forget.h"
#include "store/ring.h"
#include "worker/sender.h"
#include "worker/upkeep.h"

/* How often otp.ring is looked at, when otp.retention stays as it is */
#define PASS_MS 60000

/* The longest time between calls: otp.retention may have changed */
#define CALL_MS 1000

/* A pause between steps, for what else the sender has to do */
#define STEP_MS 5

/* A drawer that somebody uses is tried again after this long, and told of once after that */
#define LOCKED_MS 1000
#define REPORT_LOCKED_AFTER (10 * 60 * USECS_PER_SEC)

/* After an error: first and longest wait */
#define ERROR_WAIT_MS 1000
#define ERROR_WAIT_MAX_MS 60000

/* How often something forgotten is looked for */
#define FINISH_MS 2000

/* How often counts of wrong guesses are cleared away */
#define WALK_MS (60 * 60 * 1000)

/* How often after a phone was forgotten: a count may be on its way from the ledger */
#define WALKS 5

/* Clocks may differ, or be set back, by so much: nobody fills an older drawer */
#define FILLED_BEFORE USECS_PER_DAY
#define FILLED_AFTER (5 * 60 * USECS_PER_SEC)

/* From the Unix epoch, from which steps of time are counted, to PostgreSQL's */
#define EPOCH_SHIFT ((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

typedef struct Drawer
{
	RingDrawer	ring;
	bool		filled;			/* its files have something in them */
	bool		measure;		/* its rows are to be looked at */
	TimestampTz retry_at;		/* somebody uses it */
	TimestampTz locked_since;
	bool		reported;
} Drawer;

/* What a step does, and what came of it */
typedef struct Step
{
	TimestampTz now;
	TimestampTz cutoff;			/* rows from before it go */
	int			slot;
	RingTry		result;
	TimestampTz oldest;
	TimestampTz newest;
	bool		found;
	bool		found_phones;
} Step;

static Drawer drawers[ULID_SLOTS];
static int	kept_minutes = 0;	/* otp.retention at the last pass */
static int	last_current = -1;	/* and the drawer that was filled */
static TimestampTz next_pass = 0;
static TimestampTz next_finish = 0;
static TimestampTz next_walk = 0;
static TimestampTz not_before = 0;
static int	errors = 0;			/* steps in a row that failed */
static bool measured_all = false;

/* The emptying under way: of one drawer, table after table */
static int	empty_slot = -1;
static int	empty_table = 0;

/* The deletion under way: of one drawer, table after table */
static int	delete_slot = -1;
static int	delete_table = 0;
static TimestampTz delete_cutoff = 0;
static RingPosition delete_position;

/* The walk through otp.phone_failures under way */
static bool walking = false;
static FailuresPosition walk_position;
static int	more_walks = 0;		/* soon */

/* ---- steps: in a transaction ---- */

/* Note the current drawer, and see how things are */
static void
look_at_ring(void *arg)
{
	Step	   *step = arg;
	RingDrawer	ring[ULID_SLOTS];
	int			current = ulid_slot_at(step->now);
	TimestampTz start = step->now - (step->now + EPOCH_SHIFT) % ulid_step();

	ring_read(ring);
	for (int slot = 0; slot < ULID_SLOTS; slot++)
	{
		Drawer	   *d = &drawers[slot];

		d->filled = ring_is_filled(slot);
		if (!d->filled && ring[slot].noted && slot != current)
		{
			ring_forget(slot);
			ring[slot].noted = false;
		}
		d->ring = ring[slot];
		d->measure = d->filled && (d->measure || !measured_all || !d->ring.noted);
	}

	/* What an old row says of since stays, unless there can be no old rows */
	if (!drawers[current].filled && ring[current].noted && ring[current].since < start)
	{
		ring_forget(current);
		ring[current].noted = false;
	}
	if (ring[current].noted && ring[current].until >= start + ulid_step())
		return;
	ring_widen(current, start, start + ulid_step());
	ring_read(ring);
	drawers[current].ring = ring[current];
}

/* Measure a drawer, and note what it has */
static void
measure(void *arg)
{
	Step	   *step = arg;

	step->result = ring_measure(step->slot, &step->oldest, &step->newest);
	if (step->result == RING_KEPT)
		ring_widen(step->slot, step->oldest, step->newest);
}

/* Empty a leaf of a drawer */
static void
empty_leaf(void *arg)
{
	Step	   *step = arg;

	step->result = ring_truncate(empty_table, step->slot, step->cutoff, &step->newest);
	if (step->result == RING_KEPT)
		ring_widen(step->slot, step->newest, step->newest);
}

/* Note that a drawer is empty */
static void
note_empty(void *arg)
{
	ring_forget(((Step *) arg)->slot);
}

/* Delete some rows */
static void
delete_some(void *arg)
{
	Step	   *step = arg;

	step->result = ring_delete(delete_table, step->slot, step->cutoff, &delete_position);
	if (step->result == RING_DONE && delete_table == RING_TABLES - 1)
		ring_set_since(step->slot, step->cutoff);
}

/* Finish what a forgotten phone has left */
static void
finish_forgotten(void *arg)
{
	Step	   *step = arg;

	step->found = forget_finish(step->now, &step->found_phones);
}

/* Clear counts of wrong guesses away */
static void
walk_failures(void *arg)
{
	Step	   *step = arg;

	step->found = forget_walk_failures(&walk_position, step->now);
}

/* ---- what to do next ---- */

/* May somebody fill this drawer now, or with a clock that is a little off? */
static bool
is_being_filled(int slot, TimestampTz now)
{
	return slot == ulid_slot_at(now) || slot == ulid_slot_at(now - FILLED_BEFORE) ||
		slot == ulid_slot_at(now + FILLED_AFTER);
}

/* Somebody uses a drawer: come back to it, and say so when it lasts */
static void
put_off(int slot, TimestampTz now)
{
	Drawer	   *d = &drawers[slot];

	d->retry_at = TimestampTzPlusMilliseconds(now, LOCKED_MS);
	if (d->locked_since == 0)
		d->locked_since = now;
	if (d->reported || now < d->locked_since + REPORT_LOCKED_AFTER)
		return;
	d->reported = true;
	ereport(LOG,
			(errmsg("drawer %d of the history has been in use for %d minutes, and cannot be emptied",
					slot, (int) ((now - d->locked_since) / USECS_PER_SEC / 60)),
			 errhint("pg_locks tells who holds locks on otp.verifications_%02d, otp.messages_%02d and their like.",
					 slot, slot)));
}

/* Nobody uses it any more */
static void
note_free(int slot)
{
	drawers[slot].retry_at = drawers[slot].locked_since = 0;
	drawers[slot].reported = false;
}

/* Run a step */
static bool
run(void (*work) (void *arg), Step *step)
{
	step->result = RING_DONE;
	return turn_do(work, step, NULL);
}

/* Choose a drawer to measure, to empty or to delete from; false when all are as they should be */
static bool
choose(TimestampTz now, TimestampTz cutoff, int *slot, bool *to_measure)
{
	for (int i = 0; i < ULID_SLOTS; i++)
	{
		Drawer	   *d = &drawers[i];

		*slot = i;
		*to_measure = d->measure;
		if (!d->filled || now < d->retry_at)
			continue;
		if (d->measure)
			return true;
		if (d->ring.until < cutoff && !is_being_filled(i, now))
		{
			empty_slot = i;
			empty_table = 0;
			return true;
		}
		if (d->ring.since < cutoff - ulid_step())
		{
			delete_slot = i;
			delete_table = 0;
			delete_cutoff = cutoff;
			memset(&delete_position, 0, sizeof(delete_position));
			return true;
		}
	}
	return false;
}

/* Measure a drawer */
static bool
step_measure(Step *step)
{
	Drawer	   *d = &drawers[step->slot];

	if (!run(measure, step))
		return false;
	if (step->result == RING_LOCKED)
	{
		put_off(step->slot, step->now);
		return true;
	}
	note_free(step->slot);
	d->measure = false;
	if (step->result == RING_DONE)
	{
		/* Only dead rows: let it be emptied when its time comes */
		step->oldest = step->newest = step->now;
		d->filled = d->ring.noted;
		return true;
	}
	d->ring.since = d->ring.noted ? Min(d->ring.since, step->oldest) : step->oldest;
	d->ring.until = d->ring.noted ? Max(d->ring.until, step->newest) : step->newest;
	d->ring.noted = true;
	return true;
}

/* Empty the next leaf */
static bool
step_empty(Step *step)
{
	Drawer	   *d = &drawers[empty_slot];

	step->slot = empty_slot;
	if (!run(empty_leaf, step))
		return false;
	switch (step->result)
	{
		case RING_LOCKED:
			put_off(empty_slot, step->now);
			empty_slot = -1;
			return true;
		case RING_KEPT:
			d->ring.until = Max(d->ring.until, step->newest);
			note_free(empty_slot);
			empty_slot = -1;
			return true;
		default:
			break;
	}
	if (++empty_table < RING_TABLES)
		return true;
	note_free(empty_slot);
	d->filled = d->ring.noted = false;
	empty_slot = -1;
	return run(note_empty, step);
}

/* Delete some rows */
static bool
step_delete(Step *step)
{
	Drawer	   *d = &drawers[delete_slot];

	step->slot = delete_slot;
	step->cutoff = delete_cutoff;
	if (!run(delete_some, step))
		return false;
	switch (step->result)
	{
		case RING_LOCKED:
			put_off(delete_slot, step->now);
			delete_slot = -1;
			return true;
		case RING_DONE:
			break;
		default:
			return true;
	}
	memset(&delete_position, 0, sizeof(delete_position));
	if (++delete_table < RING_TABLES)
		return true;
	note_free(delete_slot);
	d->ring.since = delete_cutoff;
	delete_slot = -1;
	return true;
}

/* Take one step, if there is one to take; false when it failed */
static bool
take_step(Step *step, bool *busy)
{
	int			current = ulid_slot_at(step->now);
	bool		to_measure;

	*busy = true;
	step->cutoff = step->now - (int64) otp_retention * 60 * USECS_PER_SEC;

	/* What was begun under another otp.retention may not go on */
	if (kept_minutes != otp_retention)
		empty_slot = delete_slot = -1;
	if (step->now >= next_pass || kept_minutes != otp_retention || current != last_current)
	{
		if (!run(look_at_ring, step))
			return false;
		measured_all = true;
		kept_minutes = otp_retention;
		last_current = current;
		next_pass = TimestampTzPlusMilliseconds(step->now, PASS_MS);
		return true;
	}

	/* What people have asked for comes first */
	if (step->now >= next_finish)
	{
		if (!run(finish_forgotten, step))
			return false;
		if (!step->found)
			next_finish = TimestampTzPlusMilliseconds(step->now, FINISH_MS);
		if (step->found_phones)
		{
			more_walks = WALKS;
			next_walk = step->now;
		}
		return true;
	}
	if (!walking && step->now >= next_walk)
	{
		walking = true;
		memset(&walk_position, 0, sizeof(walk_position));
		next_walk = TimestampTzPlusMilliseconds(step->now, more_walks > 0 ? FINISH_MS : WALK_MS);
		more_walks = Max(more_walks - 1, 0);
	}
	if (walking)
	{
		if (!run(walk_failures, step))
			return false;
		walking = step->found;
		return true;
	}

	if (empty_slot >= 0)
		return step_empty(step);
	if (delete_slot >= 0)
		return step_delete(step);
	if (choose(step->now, step->cutoff, &step->slot, &to_measure))
		return to_measure ? step_measure(step) : true;
	*busy = false;
	return true;
}

/* Keep retention */
TimestampTz
retention_turn(TimestampTz now)
{
	Step		step;
	bool		busy;
	long		wait = ERROR_WAIT_MS;

	/* A clock that was set back must not have us wait for the time it was */
	not_before = Min(not_before, TimestampTzPlusMilliseconds(now, ERROR_WAIT_MAX_MS));
	next_pass = Min(next_pass, TimestampTzPlusMilliseconds(now, PASS_MS));
	next_finish = Min(next_finish, TimestampTzPlusMilliseconds(now, FINISH_MS));
	next_walk = Min(next_walk, TimestampTzPlusMilliseconds(now, WALK_MS));
	if (now < not_before)
		return Min(not_before, TimestampTzPlusMilliseconds(now, CALL_MS));

	memset(&step, 0, sizeof(step));
	step.now = now;
	if (take_step(&step, &busy))
	{
		errors = 0;
		return TimestampTzPlusMilliseconds(now, busy ? STEP_MS : CALL_MS);
	}

	/* What failed is in the log, once for each try: so try ever less often */
	for (int i = 0; i < errors && wait < ERROR_WAIT_MAX_MS; i++)
		wait *= 2;
	errors++;
	not_before = TimestampTzPlusMilliseconds(now, Min(wait, ERROR_WAIT_MAX_MS));
	return Min(not_before, TimestampTzPlusMilliseconds(now, CALL_MS));
}
