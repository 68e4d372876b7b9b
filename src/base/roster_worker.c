/*-------------------------------------------------------------------------
 *
 * roster_worker.c
 *	  The roster as the launcher and the senders use it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "base/roster.h"
#include "base/roster_shared.h"

/* This process as a sender */
static DatabaseSlot *my_slot = NULL;
static uint32 my_announced;

/* ---- the launcher ---- */

/* Stop being the launcher */
static void
launcher_leave(int code, Datum arg)
{
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	roster->launcher_pid = 0;
	roster->launcher = NULL;
	LWLockRelease(&roster->lock);
}

/* Become the launcher */
bool
roster_launcher_enter(void)
{
	bool		alone;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	alone = roster->launcher_pid == 0;
	if (alone)
	{
		roster->launcher_pid = MyProcPid;
		roster->launcher = MyProc;
	}
	LWLockRelease(&roster->lock);
	if (alone)
		before_shmem_exit(launcher_leave, (Datum) 0);
	return alone;
}

/* Give a database a slot */
bool
roster_add(Oid database)
{
	bool		added;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	added = roster_find_or_add(database) != NULL;
	LWLockRelease(&roster->lock);
	return added;
}

/* Take note of what the launcher must look at */
void
roster_take_news(bool *overflow, bool *rescan)
{
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	*overflow = roster->overflow;
	*rescan = roster->rescan;
	roster->overflow = false;
	roster->rescan = false;
	LWLockRelease(&roster->lock);
}

/* Ask a sender to yield */
void
roster_ask_to_yield(Oid database)
{
	DatabaseSlot *slot;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = roster_find(database);
	if (slot != NULL && slot->sender_pid != 0)
	{
		slot->yield = true;
		roster_set_latch(slot->sender);
	}
	LWLockRelease(&roster->lock);
}

/* Note that a database waits for a worker slot */
void
roster_set_starved(Oid database, bool starved)
{
	DatabaseSlot *slot;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = roster_find(database);
	if (slot != NULL)
		slot->starved = starved;
	LWLockRelease(&roster->lock);
}

/* Note missing worker slots */
void
roster_set_missing_slots(int missing)
{
	roster->missing_slots = missing;
}

/* Note crashes of a sender */
void
roster_set_crashes(Oid database, int crashes)
{
	DatabaseSlot *slot;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = roster_find(database);
	if (slot != NULL)
		slot->crashes = crashes;
	LWLockRelease(&roster->lock);
}

/* Give away the slot of a database without the extension */
bool
roster_forget_absent(Oid database)
{
	DatabaseSlot *slot;
	bool		absent;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = roster_find(database);
	absent = slot != NULL && slot->state == ROSTER_ABSENT && slot->sender_pid == 0;
	if (absent)
		slot->database = InvalidOid;
	LWLockRelease(&roster->lock);
	return absent;
}

/* ---- a sender ---- */

/* Copy a text, cut to fit */
static void
copy_text(char *to, const char *from)
{
	size_t		length = strlen(from);

	length = Min(length, ROSTER_ERROR_SIZE - 1);
	/* never half a character */
	while (length > 0 && from[length] != '\0' && ((unsigned char) from[length] & 0xC0) == 0x80)
		length--;
	memcpy(to, from, length);
	to[length] = '\0';
}

/* Leave at exit */
static void
leave_at_exit(int code, Datum arg)
{
	roster_leave(code == 0);
}

/* Become the sender */
bool
roster_enter(Oid database)
{
	DatabaseSlot *slot;
	bool		entered = false;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = roster_find(database);
	if (slot != NULL && slot->sender_pid == 0)
	{
		slot->started_at = GetCurrentTimestamp();
		entered = !roster_is_paused(database);

		/* Turned away by a pause, it has not crashed, though it never ran */
		slot->left_clean = !entered;
	}
	if (entered)
	{
		slot->sender_pid = MyProcPid;
		slot->sender = MyProc;
		slot->yield = false;
		slot->starved = false;
		my_announced = slot->announced;
		my_slot = slot;

		/* What the one before thought of its accounts went with it */
		roster_forget_breakers(database);
	}
	LWLockRelease(&roster->lock);
	if (entered)
		before_shmem_exit(leave_at_exit, (Datum) 0);
	return entered;
}

/* Note what was found */
void
roster_set_state(RosterState state)
{
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);

	/* Announced while we looked: what we saw may be out of date */
	if (state != ROSTER_PRESENT && my_slot->announced != my_announced)
		state = ROSTER_UNKNOWN;
	my_slot->state = state;
	LWLockRelease(&roster->lock);
}

/* Stop being the sender */
void
roster_leave(bool clean)
{
	if (my_slot == NULL)
		return;
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	my_slot->sender_pid = 0;
	my_slot->sender = NULL;
	my_slot->yield = false;
	my_slot->left_clean = clean;
	LWLockRelease(&roster->lock);
	my_slot = NULL;
	roster_set_latch(roster->launcher);
}

/* Give what is asked of us */
RosterRequest
roster_request(void)
{
	RosterRequest request = ROSTER_STAY;

	LWLockAcquire(&roster->lock, LW_SHARED);
	if (roster_is_paused(my_slot->database))
		request = ROSTER_LEAVE;
	else if (my_slot->yield)
		request = ROSTER_YIELD;
	LWLockRelease(&roster->lock);
	return request;
}

/* Must other workers keep out of a database? */
bool
roster_is_away(Oid database)
{
	const DatabaseSlot *slot;
	bool		away;

	LWLockAcquire(&roster->lock, LW_SHARED);
	slot = roster_find(database);
	away = slot == NULL || slot->state == ROSTER_ABSENT || roster_is_paused(database);
	LWLockRelease(&roster->lock);
	return away;
}

/* Take the wake flag */
bool
roster_take_wake(void)
{
	return pg_atomic_exchange_u32(&my_slot->wake, 0) != 0;
}

/* Tell figures */
void
roster_report(const RosterReport *report)
{
	SpinLockAcquire(&my_slot->mutex);
	my_slot->report = *report;
	SpinLockRelease(&my_slot->mutex);
}

/* Tell the last error */
void
roster_report_error(const char *message)
{
	TimestampTz now = GetCurrentTimestamp();

	if (my_slot == NULL)
		return;
	SpinLockAcquire(&my_slot->mutex);
	my_slot->last_error_at = now;
	copy_text(my_slot->last_error, message);
	SpinLockRelease(&my_slot->mutex);
}

/* Tell what is set for listeners; the launcher is called when it has changed */
void
roster_report_http(const RosterHttp *http)
{
	bool		changed;

	if (my_slot == NULL)
		return;
	SpinLockAcquire(&my_slot->mutex);
	changed = memcmp(&my_slot->http, http, sizeof(RosterHttp)) != 0;
	my_slot->http = *http;
	SpinLockRelease(&my_slot->mutex);
	if (changed)
		roster_set_latch(roster->launcher);
}
