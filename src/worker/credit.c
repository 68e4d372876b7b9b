/*-------------------------------------------------------------------------
 *
 * credit.c
 *	  Credits: what messages give back or cost besides, and the balances'
 *	  upkeep.
 *
 * What follows from a message is written with it, by inserts only: into the
 * ledger, whose index on the message has it count once, and into
 * otp.credit_changes. The upkeep puts changes into the stripes, levels those
 * that have become uneven, and tells when credits are low. It looks every
 * second at workspaces that have sent something or have changes, and every
 * minute, and after a change of otp.workspaces, at all that are metered.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/namespace.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "store/credit.h"
#include "worker/sender.h"
#include "worker/upkeep.h"

/* How often workspaces are looked for that want something done; and all that are metered */
#define LOOK_MS 1000
#define ROUND_MS 60000

/* Workspaces that a step looks at, and how long it may take for more than one; how many times as long the pause is */
#define STEP_WITH 8
#define STEP_US 3000
#define PAUSE_TIMES 4
#define PAUSE_MIN_MS 10
#define PAUSE_MAX_MS 1000

/* So many with changes are looked for at a time, and so many hundreds of metered ones */
#define CHANGED_WITH 100
#define METERED_WITH 5

/* After an error: the next try, and so many steps with one workspace each */
#define ERROR_WAIT_MS 5000
#define CAREFUL_STEPS 100

/* ---- what follows from messages ---- */

static CreditNote *fallbacks = NULL;	/* in sender.turn_context, as failures */
static CreditNote *failures = NULL;
static int	nfallbacks = 0;
static int	nfailures = 0;

/* Forget what was noted */
void
credits_begin(void)
{
	fallbacks = failures = NULL;
	nfallbacks = nfailures = 0;
}

/* Add a note; the array grows by powers of two */
static void
add_note(CreditNote **notes, int *n, const Owed *o)
{
	CreditNote *note;

	if (*notes == NULL)
		*notes = MemoryContextAlloc(sender.turn_context, sizeof(CreditNote));
	else if ((*n & (*n - 1)) == 0)
		*notes = repalloc(*notes, 2 * *n * sizeof(CreditNote));
	note = &(*notes)[(*n)++];
	note->workspace_id = o->row.workspace_id;
	note->id = o->row.id;
	note->number = o->row.number - (o->row.number % 2 == 0 ? 1 : 0);
	note->credits = o->row.credits;
}

/* Note an accepted fallback */
void
credits_note_fallback(const Owed *o)
{
	const Route *route = account_known_route(o->row.workspace_id);

	/* The statement looks again, should it not be known */
	if (route == NULL || route->prices_fallback)
		add_note(&fallbacks, &nfallbacks, o);
}

/* Would it be given back? */
bool
credits_returnable(const Owed *o)
{
	const Route *route = account_known_route(o->row.workspace_id);

	return (route == NULL || route->refunds) && (o->row.credits > 0 || o->row.number % 2 == 0);
}

/* Note a failed message */
void
credits_note_failed(const Owed *o)
{
	if (credits_returnable(o))
		add_note(&failures, &nfailures, o);
}

/* Write what was noted */
void
credits_write(void)
{
	/* Prices first: of the same message, they are given back as well */
	if (nfallbacks > 0)
		credit_charge_fallbacks(fallbacks, nfallbacks);
	if (nfailures > 0)
		credit_refund(failures, nfailures);
	for (int i = 0; i < nfallbacks; i++)
		credits_touch(fallbacks[i].workspace_id);
	for (int i = 0; i < nfailures; i++)
		credits_touch(failures[i].workspace_id);
	credits_begin();
}

/* ---- upkeep ---- */

/* Workspaces that are to be looked at next time: a set of int32 */
static HTAB *touched = NULL;

/* Those of this time */
static int32 *batch = NULL;
static int	batch_size = 0;
static int	batch_done = 0;

static TimestampTz next_look = 0;
static TimestampTz next_round = 0;
static int32 changed_after = PG_INT32_MIN;
static int32 metered_after = PG_INT32_MAX;	/* the round has ended */
static int	careful = 0;

/* Has otp.workspaces changed? */
static bool workspaces_changed = false;
static Oid	workspaces_relid = InvalidOid;

/* Have a workspace looked at */
void
credits_touch(int32 workspace_id)
{
	if (touched == NULL)
	{
		HASHCTL		control;

		memset(&control, 0, sizeof(control));
		control.keysize = control.entrysize = sizeof(int32);
		touched = hash_create("otp workspaces with credits", 64, &control, HASH_ELEM | HASH_BLOBS);
	}
	(void) hash_search(touched, &workspace_id, HASH_ENTER, NULL);
}

/* Take in a change */
static void
note_change(Datum arg, Oid relid)
{
	if (relid == workspaces_relid || !OidIsValid(relid))
		workspaces_changed = true;
}

/* Hear of changes of otp.workspaces; in a transaction */
static void
watch_workspaces(void)
{
	static bool registered = false;
	Oid			schema = get_namespace_oid("otp", true);

	workspaces_relid = OidIsValid(schema) ? get_relname_relid("workspaces", schema) : InvalidOid;
	if (!registered)
		CacheRegisterRelcacheCallback(note_change, (Datum) 0);
	registered = true;
}

/* What a step does, and what comes after its commit */
typedef struct Step
{
	TimestampTz now;
	bool		looks;
	int32		changed;		/* how far changes were looked for */
	int32		metered;		/* likewise, metered workspaces */
	int			most;			/* workspaces */
	int			done;
} Step;

/* Find workspaces that want to be looked at */
static void
find_workspaces(Step *step)
{
	int32		ids[CREDIT_BATCH];

	for (int i = 0; i < CHANGED_WITH; i++)
	{
		if (!credit_next_changed(&step->changed))
		{
			step->changed = PG_INT32_MIN;
			break;
		}
		credits_touch(step->changed);
	}

	if (step->metered == PG_INT32_MIN)
		credit_delete_warnings(step->now - otp_retention * USECS_PER_MINUTE);
	for (int i = 0; i < METERED_WITH && step->metered != PG_INT32_MAX; i++)
	{
		int			n = credit_next_metered(step->metered, ids);

		for (int j = 0; j < n; j++)
			credits_touch(ids[j]);
		step->metered = n == CREDIT_BATCH ? ids[n - 1] : PG_INT32_MAX;
	}
}

/* Tell that credits are low, once, until they have been enough again */
static void
tell(int32 workspace_id, const CreditState *state, TimestampTz now)
{
	bool		low = state->metered && state->low > 0 && state->balance < state->low;
	Event		event;

	if (low == state->told)
		return;
	if (!low)
	{
		credit_end_warning(workspace_id, now);
		return;
	}
	credit_warn(workspace_id, now, state->balance, state->low);
	memset(&event, 0, sizeof(event));
	event.kind = EVENT_CREDITS_LOW;
	event.workspace_id = workspace_id;
	event.at = now;
	event.workspace = state->workspace;
	events_write(&event, 1);
}

/* Take a step; in a transaction */
static void
take_step(void *arg)
{
	Step	   *step = arg;
	TimestampTz start = GetCurrentTimestamp();
	MemoryContext old = MemoryContextSwitchTo(sender.turn_context);

	/*
	 * A crash forgets changes together with what has become of them, and
	 * warnings together with their webhooks: no flush
	 */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	if (step->looks)
	{
		watch_workspaces();
		find_workspaces(step);
	}
	for (int i = batch_done; i < batch_size && step->done < step->most; i++)
	{
		CreditState state;

		if (step->done > 0 && GetCurrentTimestamp() > start + STEP_US)
			break;
		step->done++;
		if (!credit_load(batch[i], &state))
			continue;
		credit_do_chore(batch[i], state.chore);

		/* A copy of another server has nothing to tell */
		if (otp_delivery)
			tell(batch[i], &state, step->now);
	}
	MemoryContextSwitchTo(old);
}

/* Have those that were touched be this time's */
static void
begin_batch(void)
{
	HASH_SEQ_STATUS seq;
	int32	   *id;
	long		n = touched != NULL ? hash_get_num_entries(touched) : 0;

	batch_size = batch_done = 0;
	if (batch != NULL)
		pfree(batch);
	batch = NULL;
	if (n == 0)
		return;
	batch = MemoryContextAlloc(TopMemoryContext, n * sizeof(int32));
	hash_seq_init(&seq, touched);
	while ((id = hash_seq_search(&seq)) != NULL)
		batch[batch_size++] = *id;
	hash_destroy(touched);
	touched = NULL;
}

/* Keep balances in order */
TimestampTz
credits_turn(TimestampTz now)
{
	Step		step = {0};
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz end;
	int64		pause;

	step.now = now;
	step.most = careful > 0 ? 1 : STEP_WITH;
	if (batch_done == batch_size && now >= next_look)
	{
		step.looks = true;
		if (now >= next_round || workspaces_changed)
		{
			metered_after = PG_INT32_MIN;
			next_round = TimestampTzPlusMilliseconds(now, ROUND_MS);
		}
		workspaces_changed = false;
		step.changed = changed_after;
		step.metered = metered_after;
	}
	else if (batch_done == batch_size)
		return next_look;

	if (turn_do(take_step, &step, NULL))
	{
		events_done(now);
		events_notify();
		batch_done += step.done;
		careful = Max(careful - 1, 0);
		if (step.looks)
		{
			changed_after = step.changed;
			metered_after = step.metered;
		}
	}
	else
	{
		events_undo();

		/* The one that makes it fail has to wait for the next round */
		if (careful > 0)
			batch_done += step.done;
		careful = CAREFUL_STEPS;
		if (step.looks)
			next_look = TimestampTzPlusMilliseconds(now, ERROR_WAIT_MS);
		MemoryContextReset(sender.turn_context);
		return TimestampTzPlusMilliseconds(now, ERROR_WAIT_MS);
	}
	MemoryContextReset(sender.turn_context);
	if (step.looks)
	{
		begin_batch();
		next_look = TimestampTzPlusMilliseconds(now, LOOK_MS);
	}
	end = GetCurrentTimestamp();
	if (batch_done == batch_size)
		return Max(next_look, end);
	if (step.looks)
		return end;
	pause = (end - start) * PAUSE_TIMES / 1000;
	return TimestampTzPlusMilliseconds(end, Min(Max(pause, PAUSE_MIN_MS), PAUSE_MAX_MS));
}
