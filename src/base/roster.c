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
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/roster.h"

/* Commands that can hold pauses at a time; each takes one or two. */
#define MAX_PAUSES 64

/* Accounts per database whose breaker is shown, on average */
#define BREAKERS_PER_DATABASE 4

typedef struct DatabaseSlot
{
	Oid			database;		/* InvalidOid: free */
	RosterState state;
	uint32		announced;		/* counts calls of roster_announce */
	pid_t		sender_pid;
	PGPROC	   *volatile sender;
	bool		yield;
	bool		starved;
	bool		left_clean;
	int			crashes;
	TimestampTz started_at;
	pg_atomic_uint32 wake;

	slock_t		mutex;			/* guards what follows */
	RosterReport report;
	TimestampTz last_error_at;
	char		last_error[ROSTER_ERROR_SIZE];
} DatabaseSlot;

typedef struct Pause
{
	Oid			database;		/* InvalidOid: free */
	pid_t		pid;			/* who asked for it */
} Pause;

typedef struct Roster
{
	LWLock		lock;
	pid_t		launcher_pid;
	PGPROC	   *volatile launcher;
	bool		overflow;		/* an announced database found no slot */
	int			missing_slots;
	int			nslots;
	int			nbreakers_max;
	pg_atomic_uint32 nbreakers; /* entries in use, all at the front */
	ConditionVariable settled;
	Pause		pauses[MAX_PAUSES];
	DatabaseSlot slots[FLEXIBLE_ARRAY_MEMBER];	/* then the breakers */
} Roster;

static Roster *roster = NULL;
static RosterBreaker *breakers = NULL;

/* This process as a sender */
static DatabaseSlot *my_slot = NULL;
static uint32 my_announced;

/* Does this process hold pauses that its exit must end? */
static bool exit_callback_registered = false;

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
roster_shmem_init(bool found)
{
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
static DatabaseSlot *
find_slot(Oid database)
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
static DatabaseSlot *
find_or_add_slot(Oid database)
{
	DatabaseSlot *slot = find_slot(database);

	if (slot != NULL)
		return slot;
	slot = find_slot(InvalidOid);
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
	slot->database = database;
	return slot;
}

/* Is a database paused? Lock held */
static bool
is_paused(Oid database)
{
	for (int i = 0; i < MAX_PAUSES; i++)
	{
		if (roster->pauses[i].database == database)
			return true;
	}
	return false;
}

/* Set a latch, if its process is there */
static void
set_latch_of(PGPROC *proc)
{
	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

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
	slot = find_slot(database);
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
		set_latch_of(roster->launcher);
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
	slot = find_slot(database);
	if (slot != NULL && slot->sender_pid != 0)
		running = true;
	else if (roster->launcher_pid != 0)
		running = slot != NULL ? slot->crashes == 0 : find_slot(InvalidOid) != NULL;
	LWLockRelease(&roster->lock);
	return running;
}

/* Tell whether breaker is open */
bool
roster_breaker_open(Oid database, int account_id, int *retry_after_s)
{
	bool		open = false;
	TimestampTz now = 0;
	uint32		n;

	/* Nearly always there is none */
	if (roster == NULL || pg_atomic_read_u32(&roster->nbreakers) == 0)
		return false;

	LWLockAcquire(&roster->lock, LW_SHARED);
	n = pg_atomic_read_u32(&roster->nbreakers);
	for (uint32 i = 0; i < n; i++)
	{
		RosterBreaker *b = &breakers[i];

		if (b->database != database || b->account_id != account_id)
			continue;
		if (b->state == BREAKER_OPEN)
		{
			/*
			 * From retry_at on, the next message is the trial: refusing it
			 * would keep the breaker open for ever.
			 */
			now = GetCurrentTimestamp();
			if (b->retry_at > now)
			{
				open = true;
				*retry_after_s = (int) ((b->retry_at - now + USECS_PER_SEC - 1) / USECS_PER_SEC);
			}
		}
		break;
	}
	LWLockRelease(&roster->lock);
	return open;
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
		set_latch_of(roster->launcher);
}

/* Keep workers out */
bool
roster_pause(Oid database, int timeout_ms)
{
	TimestampTz until;
	Pause	   *pause = NULL;
	pid_t		leaving = 0;

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
		DatabaseSlot *slot = find_slot(database);

		pause->database = database;
		pause->pid = MyProcPid;
		if (slot != NULL && slot->sender_pid != 0)
		{
			leaving = slot->sender_pid;
			set_latch_of(slot->sender);
		}
	}
	LWLockRelease(&roster->lock);
	if (pause == NULL)
		return false;

	/*
	 * Wait for the sender to be gone from the list of backends, which comes
	 * a little after it has left the roster: what follows counts backends,
	 * and would sleep 100 ms for it.
	 */
	until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	while (leaving != 0 && BackendPidGetProc(leaving) != NULL)
	{
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
		set_latch_of(roster->launcher);
}

/* Have a database looked at */
void
roster_announce(Oid database)
{
	DatabaseSlot *slot;

	if (roster == NULL)
		return;
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = find_or_add_slot(database);
	if (slot != NULL)
	{
		slot->announced++;
		if (slot->state == ROSTER_ABSENT)
			slot->state = ROSTER_UNKNOWN;
		pg_atomic_exchange_u32(&slot->wake, 1);
		set_latch_of(slot->sender);
	}
	else
		roster->overflow = true;
	LWLockRelease(&roster->lock);
	set_latch_of(roster->launcher);
}

/* Drop a database */
void
roster_forget(Oid database)
{
	DatabaseSlot *slot;
	uint32		n;

	if (roster == NULL)
		return;
	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot != NULL && slot->sender_pid == 0)
		slot->database = InvalidOid;

	n = pg_atomic_read_u32(&roster->nbreakers);
	for (uint32 i = 0; i < n;)
	{
		if (breakers[i].database == database)
			breakers[i] = breakers[--n];
		else
			i++;
	}
	pg_atomic_write_u32(&roster->nbreakers, n);
	LWLockRelease(&roster->lock);
}

/* Give away the slot of a database without the extension */
bool
roster_forget_absent(Oid database)
{
	DatabaseSlot *slot;
	bool		absent;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	absent = slot != NULL && slot->state == ROSTER_ABSENT && slot->sender_pid == 0;
	if (absent)
		slot->database = InvalidOid;
	LWLockRelease(&roster->lock);
	return absent;
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
		d->paused = is_paused(slot->database);
		d->starved = slot->starved;
		d->crashes = slot->crashes;
		SpinLockAcquire(&slot->mutex);
		d->report = slot->report;
		d->last_error_at = slot->last_error_at;
		memcpy(d->last_error, slot->last_error, ROSTER_ERROR_SIZE);
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(&roster->lock);
	return n;
}

/* Copy the breakers */
int
roster_breakers(RosterBreaker *copies, int max)
{
	int			n;

	if (roster == NULL)
		return 0;
	LWLockAcquire(&roster->lock, LW_SHARED);
	n = Min(max, (int) pg_atomic_read_u32(&roster->nbreakers));
	memcpy(copies, breakers, n * sizeof(RosterBreaker));
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
	added = find_or_add_slot(database) != NULL;
	LWLockRelease(&roster->lock);
	return added;
}

/* Take note of overflow */
bool
roster_take_overflow(void)
{
	bool		overflow;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	overflow = roster->overflow;
	roster->overflow = false;
	LWLockRelease(&roster->lock);
	return overflow;
}

/* Ask a sender to yield */
void
roster_ask_to_yield(Oid database)
{
	DatabaseSlot *slot;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
	if (slot != NULL && slot->sender_pid != 0)
	{
		slot->yield = true;
		set_latch_of(slot->sender);
	}
	LWLockRelease(&roster->lock);
}

/* Note that a database waits for a worker slot */
void
roster_set_starved(Oid database, bool starved)
{
	DatabaseSlot *slot;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	slot = find_slot(database);
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
	slot = find_slot(database);
	if (slot != NULL)
		slot->crashes = crashes;
	LWLockRelease(&roster->lock);
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

/* ---- a sender ---- */

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
	slot = find_slot(database);
	if (slot != NULL && slot->sender_pid == 0 && !is_paused(database))
	{
		slot->sender_pid = MyProcPid;
		slot->sender = MyProc;
		slot->yield = false;
		slot->starved = false;
		slot->left_clean = false;
		slot->started_at = GetCurrentTimestamp();
		my_announced = slot->announced;
		my_slot = slot;
		entered = true;
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
	set_latch_of(roster->launcher);
}

/* Give what is asked of us */
RosterRequest
roster_request(void)
{
	RosterRequest request = ROSTER_STAY;

	LWLockAcquire(&roster->lock, LW_SHARED);
	if (is_paused(my_slot->database))
		request = ROSTER_LEAVE;
	else if (my_slot->yield)
		request = ROSTER_YIELD;
	LWLockRelease(&roster->lock);
	return request;
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

/* Publish a breaker */
void
roster_breaker_set(const RosterBreaker *breaker)
{
	uint32		n;
	RosterBreaker *entry = NULL;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	n = pg_atomic_read_u32(&roster->nbreakers);
	for (uint32 i = 0; i < n; i++)
	{
		if (breakers[i].database == MyDatabaseId && breakers[i].account_id == breaker->account_id)
		{
			entry = &breakers[i];
			break;
		}

		/* Should there be no room: one that is closed is no loss */
		if (entry == NULL && n == (uint32) roster->nbreakers_max &&
			breakers[i].state == BREAKER_CLOSED)
			entry = &breakers[i];
	}
	if (entry == NULL && n < (uint32) roster->nbreakers_max)
	{
		entry = &breakers[n];
		n++;
	}
	if (entry != NULL)
	{
		*entry = *breaker;
		entry->database = MyDatabaseId;
		pg_atomic_write_u32(&roster->nbreakers, n);
	}
	LWLockRelease(&roster->lock);
}
