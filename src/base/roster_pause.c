/*-------------------------------------------------------------------------
 *
 * roster_pause.c
 *	  Keep the workers out of a database for a while.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"

#include "base/listeners.h"
#include "base/roster.h"
#include "base/roster_shared.h"

/* Does this process hold pauses that its exit must end? */
static bool exit_callback_registered = false;

/* End pauses of this process */
static void
end_own_pauses(int code, Datum arg)
{
	bool		found = false;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_PAUSES; i++)
	{
		if (roster->pauses[i].database != InvalidOid && roster->pauses[i].pid == MyProcPid)
		{
			roster->pauses[i].database = InvalidOid;
			found = true;
		}
	}
	LWLockRelease(&roster->lock);
	if (found)
		roster_set_latch(roster->launcher);
}

/* Keep workers out */
bool
roster_pause(Oid database, int timeout_ms)
{
	TimestampTz until;
	Pause	   *pause = NULL;
	pid_t		leaving[LISTENERS_MAX + 1];
	int			nleaving = 0;

	if (roster == NULL)
		return true;

	if (!exit_callback_registered)
	{
		before_shmem_exit(end_own_pauses, (Datum) 0);
		exit_callback_registered = true;
	}

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_PAUSES; i++)
	{
		Pause	   *p = &roster->pauses[i];

		if (p->database == database && p->pid == MyProcPid)
		{
			pause = p;
			break;
		}
		if (p->database == InvalidOid && pause == NULL)
			pause = p;
	}
	if (pause != NULL)
	{
		DatabaseSlot *slot = roster_find(database);

		pause->database = database;
		pause->pid = MyProcPid;
		if (slot != NULL && slot->sender_pid != 0)
		{
			leaving[nleaving++] = slot->sender_pid;
			roster_set_latch(slot->sender);
		}
	}
	LWLockRelease(&roster->lock);
	if (pause == NULL)
		return false;

	/* One that starts now sees the pause */
	nleaving += listeners_wake(database, leaving + nleaving, LISTENERS_MAX);

	/*
	 * Wait for them to be gone from the list of backends, which comes a
	 * little after it has left the roster: what follows counts backends, and
	 * would sleep 100 ms for it.
	 */
	until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	while (nleaving > 0)
	{
		if (BackendPidGetProc(leaving[nleaving - 1]) == NULL)
		{
			nleaving--;
			continue;
		}
		if (GetCurrentTimestamp() >= until)
			return false;
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 2, compat_wait_event("OtpPause"));
		ResetLatch(MyLatch);
	}
	return true;
}

/* Let workers in again */
void
roster_resume(Oid database)
{
	bool		found = false;

	if (roster == NULL)
		return;
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_PAUSES; i++)
	{
		if (roster->pauses[i].database == database && roster->pauses[i].pid == MyProcPid)
		{
			roster->pauses[i].database = InvalidOid;
			found = true;
		}
	}
	LWLockRelease(&roster->lock);
	if (found)
		roster_set_latch(roster->launcher);
}

/* End pauses of processes that are gone */
void
roster_drop_dead_pauses(void)
{
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_PAUSES; i++)
	{
		Pause	   *p = &roster->pauses[i];

		if (p->database != InvalidOid && BackendPidGetProc(p->pid) == NULL)
			p->database = InvalidOid;
	}
	LWLockRelease(&roster->lock);
}
