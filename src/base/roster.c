/*-------------------------------------------------------------------------
 *
 * roster.c
 *	  Who sends for which database: the state that backends, the launcher and
 *	  the senders share.
 *
 * Everything is in fixed arrays, made anew by the postmaster at a start and
 * after a crash; nothing in them outlives the processes it speaks of. The
 * only pointers are to PGPROC entries, which are shared memory themselves.
 *
 * One lock guards the arrays. A sender's figures are under a spinlock of its
 * slot, so that its turns do not meet the verbs at the lock. The wake flag
 * needs neither:
 *
 *		backend						sender
 *		commit (visible to all)		flag := 0
 *		flag := 1					take a snapshot, read the queue
 *		set latch
 *
 * Both exchanges are full barriers. When the backend finds the flag at 1, the
 * sender has yet to set it to 0, and takes its snapshot after that: then
 * there is nothing to do.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/roster.h"
#include "base/roster_shared.h"

Roster	   *roster = NULL;
RosterBreaker *breakers = NULL;

/* ---- the server's start ---- */

/* Give the size of the slots' part */
static Size
slots_size(void)
{
	return MAXALIGN(add_size(offsetof(Roster, slots),
							 mul_size(otp_max_databases, sizeof(DatabaseSlot))));
}

/* Give the size of shared memory */
Size
roster_shmem_size(void)
{
	return add_size(slots_size(),
					mul_size((Size) otp_max_databases * BREAKERS_PER_DATABASE,
							 sizeof(RosterBreaker)));
}

/* Make or find shared memory */
void
roster_shmem_init(void)
{
	bool		found;

	roster = ShmemInitStruct("otp roster", roster_shmem_size(), &found);
	breakers = (RosterBreaker *) ((char *) roster + slots_size());
	if (!found)
	{
		memset(roster, 0, roster_shmem_size());
		LWLockInitialize(&roster->lock, LWLockNewTrancheId());
		ConditionVariableInit(&roster->settled);
		pg_atomic_init_u32(&roster->nbreakers, 0);
		roster->nslots = otp_max_databases;
		roster->nbreakers_max = otp_max_databases * BREAKERS_PER_DATABASE;
		for (int i = 0; i < roster->nslots; i++)
		{
			pg_atomic_init_u32(&roster->slots[i].wake, 0);
			SpinLockInit(&roster->slots[i].mutex);
		}
	}
	LWLockRegisterTranche(roster->lock.tranche, "OtpRoster");
}

/* ---- helpers ---- */

/* Find a database's slot */
DatabaseSlot *
roster_find(Oid database)
{
	static int	last = 0;		/* a backend asks for one database only */

	if (roster->slots[last].database == database)
		return &roster->slots[last];
	for (int i = 0; i < roster->nslots; i++)
	{
		if (roster->slots[i].database == database)
		{
			last = i;
			return &roster->slots[i];
		}
	}
	return NULL;
}

/* Find a slot or take a free one; lock held exclusively */
DatabaseSlot *
roster_find_or_add(Oid database)
{
	DatabaseSlot *slot = roster_find(database);

	if (slot != NULL)
		return slot;
	slot = roster_find(InvalidOid);
	if (slot == NULL)
		return NULL;

	slot->state = ROSTER_UNKNOWN;
	slot->announced = 0;
	slot->sender_pid = 0;
	slot->sender = NULL;
	slot->yield = false;
	slot->starved = false;
	slot->left_clean = true;
	slot->crashes = 0;
	slot->started_at = 0;
	pg_atomic_write_u32(&slot->wake, 0);
	memset(&slot->report, 0, sizeof(slot->report));
	slot->last_error_at = 0;
	slot->last_error[0] = '\0';
	memset(&slot->http, 0, sizeof(slot->http));
	slot->database = database;
	return slot;
}

/* Is a database paused? Lock held */
bool
roster_is_paused(Oid database)
{
	for (int i = 0; i < MAX_PAUSES; i++)
	{
		if (roster->pauses[i].database == database)
			return true;
	}
	return false;
}

/* Set a latch, if its process is there */
void
roster_set_latch(PGPROC *proc)
{
	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

/* ---- backends ---- */

/* Wake the sender */
void
roster_wake(Oid database)
{
	DatabaseSlot *slot;
	PGPROC	   *sender;

	if (roster == NULL)
		return;

	/*
	 * No lock: a slot is given away only when its database is dropped, and
	 * this process is connected to it.
	 */
	slot = roster_find(database);
	if (slot == NULL)
	{
		roster_announce(database);
		return;
	}

	pg_memory_barrier();
	if (pg_atomic_read_u32(&slot->wake) != 0)
		return;
	if (pg_atomic_exchange_u32(&slot->wake, 1) != 0)
		return;

	/*
	 * A sender that leaves just now has its PGPROC reused at worst, and
	 * somebody is woken for nothing; the launcher sees the flag when it hears
	 * of the leaving.
	 */
	sender = slot->sender;
	if (sender != NULL)
		SetLatch(&sender->procLatch);
	else
		roster_set_latch(roster->launcher);
}

/* Tell whether sender will come */
bool
roster_sender_running(Oid database)
{
	bool		running = false;
	DatabaseSlot *slot;

	if (roster == NULL)
		return false;

	LWLockAcquire(&roster->lock, LW_SHARED);
	slot = roster_find(database);
	if (slot != NULL && slot->sender_pid != 0)
		running = true;
	else if (roster->launcher_pid != 0)
		running = slot != NULL ? slot->crashes == 0 : roster_find(InvalidOid) != NULL;
	LWLockRelease(&roster->lock);
	return running;
}

/* Give the settled condition */
ConditionVariable *
roster_settled(void)
{
	return roster != NULL ? &roster->settled : NULL;
}

/* Give this database's origin */
int64
roster_origin(void)
{
	uint64		parts[2] = {GetSystemIdentifier(), MyDatabaseId};

	return (int64) hash_bytes_extended((unsigned char *) parts, sizeof(parts), 0);
}

/* Have a database looked at */
void
roster_announce(Oid database)
{
	DatabaseSlot *slot;

	if (roster == NULL)
		return;
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = roster_find_or_add(database);
	if (slot != NULL)
	{
		slot->announced++;
		if (slot->state == ROSTER_ABSENT)
			slot->state = ROSTER_UNKNOWN;
		pg_atomic_exchange_u32(&slot->wake, 1);
		roster_set_latch(slot->sender);
	}
	else
		roster->overflow = true;
	LWLockRelease(&roster->lock);
	roster_set_latch(roster->launcher);
}

/* Drop a database */
void
roster_forget(Oid database)
{
	DatabaseSlot *slot;

	if (roster == NULL)
		return;
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = roster_find(database);
	if (slot != NULL)
	{
		if (slot->sender_pid == 0)
			slot->database = InvalidOid;
		roster->rescan = true;
	}

	roster_forget_breakers(database);
	LWLockRelease(&roster->lock);
}

/* Copy the slots */
int
roster_snapshot(RosterDatabase *databases, int max)
{
	int			n = 0;

	if (roster == NULL)
		return 0;
	LWLockAcquire(&roster->lock, LW_SHARED);
	for (int i = 0; i < roster->nslots && n < max; i++)
	{
		DatabaseSlot *slot = &roster->slots[i];
		RosterDatabase *d;

		if (slot->database == InvalidOid)
			continue;
		d = &databases[n++];
		d->database = slot->database;
		d->state = slot->state;
		d->sender_pid = slot->sender_pid;
		d->started_at = slot->started_at;
		d->left_clean = slot->left_clean;
		d->woken = pg_atomic_read_u32(&slot->wake) != 0;
		d->yielding = slot->yield;
		d->paused = roster_is_paused(slot->database);
		d->starved = slot->starved;
		d->crashes = slot->crashes;
		SpinLockAcquire(&slot->mutex);
		d->report = slot->report;
		d->last_error_at = slot->last_error_at;
		memcpy(d->last_error, slot->last_error, ROSTER_ERROR_SIZE);
		d->http = slot->http;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(&roster->lock);
	return n;
}

/* Give the launcher's pid */
pid_t
roster_launcher_pid(void)
{
	return roster != NULL ? roster->launcher_pid : 0;
}

/* Give missing worker slots */
int
roster_missing_slots(void)
{
	return roster != NULL ? roster->missing_slots : 0;
}
