/*-------------------------------------------------------------------------
 *
 * sender_turn.c
 *	  The transactions of a sender: short, one at a time, and none of them
 *	  fatal when it fails.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/owner.h"
#include "store/attempts.h"
#include "worker/sender.h"

/* Look at the queue now and then, should a wake ever be lost. */
#define LOOK_MS 5000

/* The same while a breaker is open: a new configuration closes it. */
#define TROUBLED_LOOK_MS 1000

/* Rows that are nobody's go so long after their end, lest clocks differ. */
#define CLEAR_AFTER_MS 60000

/* Somebody holds a lock on the queue: look again after this long. */
#define LOCKED_LOOK_MS 20

/* After an error: first and longest wait */
#define ERROR_WAIT_MS 1000
#define ERROR_WAIT_MAX_MS 30000

/* So many good turns end the care after an error. */
#define CAREFUL_TURNS 100

/* Begin a transaction */
static TurnStart
begin_turn(OwnerScope *scope)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (!owner_lookup())
	{
		CommitTransactionCommand();
		return TURN_ABSENT;
	}
	if (!outbox_lock())
	{
		CommitTransactionCommand();
		return TURN_LOCKED;
	}
	owner_enter(scope);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	/* SPI wants one even for statements that it gives a newer one */
	PushActiveSnapshot(GetTransactionSnapshot());
	return TURN_STARTED;
}

/* End it */
static void
end_turn(const OwnerScope *scope)
{
	PopActiveSnapshot();
	SPI_finish();
	owner_leave(scope);
	CommitTransactionCommand();
}

/* Clean up after an error; gives its words in the current context */
static char *
abort_turn(int *sqlstate)
{
	MemoryContext context = TopMemoryContext;
	ErrorData  *error;
	char	   *words;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	EmitErrorReport();
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
	*sqlstate = error->sqlerrcode;
	words = psprintf("internal error %s", unpack_sql_state(error->sqlerrcode));
	roster_report_error(error->message != NULL ? error->message : words);
	FreeErrorData(error);
	RESUME_INTERRUPTS();
	return words;
}

/* Is an error of the kind that passes, or could one message be the cause? */
static bool
is_passing_error(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case MAKE_SQLSTATE('4', '0', '0', '0', '0'):	/* transaction rollback */
		case MAKE_SQLSTATE('4', '2', '0', '0', '0'):	/* undefined table, no
														 * privilege */
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):	/* insufficient
														 * resources */
		case MAKE_SQLSTATE('5', '5', '0', '0', '0'):	/* lock not available */
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):	/* operator intervention */
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):	/* system error */
			return true;
		default:
			return false;
	}
}

/* Settle what has finished, and claim what is due */
TurnStart
turn_run(int slots, bool settle)
{
	TimestampTz now = GetCurrentTimestamp();
	OwnerScope	scope;
	volatile int limit = slots;
	volatile TurnStart start = TURN_STARTED;
	volatile bool claiming = false;
	volatile bool settled = false;
	volatile bool failed = false;

	/*
	 * After an error, one transaction for each half, and one message at a
	 * time
	 */
	if (sender.errors > 0 && settle_pending())
		limit = 0;
	else if (sender.careful)
		limit = Min(limit, 1);

	sender.nitems = 0;
	sender.ntaken = 0;
	sender.settling = 0;
	PG_TRY();
	{
		start = begin_turn(&scope);
		if (start == TURN_STARTED)
		{
			if (settle && settle_pending())
			{
				settle_write(false);
				settled = true;
			}
			if (limit > 0)
			{
				claiming = true;
				claim_take(limit, now);
			}
			end_turn(&scope);
		}
	}
	PG_CATCH();
	{
		int			sqlstate;
		char	   *words = abort_turn(&sqlstate);

		settle_undo(!claiming && sender.careful && !is_passing_error(sqlstate));
		claim_undo(claiming && sender.careful && !is_passing_error(sqlstate), words, now);
		pfree(words);
		failed = true;
	}
	PG_END_TRY();

	if (start == TURN_LOCKED)
		sender.no_turn_before = TimestampTzPlusMilliseconds(now, LOCKED_LOOK_MS);
	else if (failed)
	{
		long		delay = ERROR_WAIT_MS;

		for (int i = 0; i < sender.errors && delay < ERROR_WAIT_MAX_MS; i++)
			delay *= 2;
		sender.no_turn_before = TimestampTzPlusMilliseconds(now, Min(delay, ERROR_WAIT_MAX_MS));
		sender.errors++;
		sender.careful = true;
		sender.careful_turns = 0;
	}
	else if (start == TURN_STARTED)
	{
		sender.errors = 0;
		if (sender.careful && ++sender.careful_turns >= CAREFUL_TURNS)
			sender.careful = false;
		if (settled)
			settle_done(now);
		if (claiming)
		{
			sender.look = sender.more;
			sender.next_look = TimestampTzPlusMilliseconds(now, accounts_troubled() ? TROUBLED_LOOK_MS : LOOK_MS);
			claim_done(now);
		}
	}
	MemoryContextReset(sender.turn_context);
	return start;
}

/* Write receipts */
bool
turn_receipts(void)
{
	TimestampTz now = GetCurrentTimestamp();
	volatile TurnStart start = TURN_STARTED;
	volatile bool done = false;
	OwnerScope	scope;

	sender.settling = 0;
	PG_TRY();
	{
		start = begin_turn(&scope);
		if (start == TURN_STARTED)
		{
			settle_write(true);
			end_turn(&scope);
			done = true;
		}
	}
	PG_CATCH();
	{
		int			sqlstate;

		pfree(abort_turn(&sqlstate));
		settle_undo(false);
		receipts_undo(now);
	}
	PG_END_TRY();

	if (done)
	{
		settle_done(now);
		receipts_done(now);
	}
	MemoryContextReset(sender.turn_context);
	return start == TURN_STARTED;
}

/* Run a piece of work in a transaction */
bool
turn_do(void (*work) (void *arg), void *arg, bool *absent)
{
	volatile bool done = false;

	if (absent != NULL)
		*absent = false;
	PG_TRY();
	{
		OwnerScope	scope;

		switch (begin_turn(&scope))
		{
			case TURN_STARTED:
				work(arg);
				end_turn(&scope);
				done = true;
				break;
			case TURN_ABSENT:
				if (absent != NULL)
					*absent = true;
				break;
			case TURN_LOCKED:
				break;
		}
	}
	PG_CATCH();
	{
		int			sqlstate;

		pfree(abort_turn(&sqlstate));
	}
	PG_END_TRY();
	return done;
}

/* Delete rows that are nobody's */
static void
clear_away(void *arg)
{
	TimestampTz now = *(TimestampTz *) arg;

	/* It reads all of the queue: not without need */
	if (otp_delivery && !sender.foreign && !outbox_has_foreign())
		return;
	(void) outbox_delete_expired(TimestampTzPlusMilliseconds(now, -CLEAR_AFTER_MS), !otp_delivery);
}

/* Delete rows that are nobody's */
void
turn_clear_away(TimestampTz now)
{
	owed_forget(now);
	(void) turn_do(clear_away, &now, NULL);
}

/* No attempt is left for a verification */
static void
used_up(const pg_uuid_t *id)
{
	TimestampTz now = GetCurrentTimestamp();

	for (Owed *o = owed_find(id); o != NULL; o = o->same)
	{
		if (!owed_is_newest(o) || (o->place != OWED_FOLLOWED && o->place != OWED_WAITS && o->place != OWED_CROWDED))
			continue;
		owed_take_out(o);
		owed_unhold(o);
		o->asking = false;
		o->tried = false;
		o->record = false;
		owed_finish(o, END_USED_UP, now);
	}
}

/* Write the ledger back */
bool
turn_write_back(void)
{
	volatile bool found = false;

	PG_TRY();
	{
		found = attempts_write_back(used_up);
	}
	PG_CATCH();
	{
		int			sqlstate;

		pfree(abort_turn(&sqlstate));
	}
	PG_END_TRY();
	return found;
}
