/*-------------------------------------------------------------------------
 *
 * roster_shared.h
 *	  What the roster keeps in shared memory; for roster*.c only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ROSTER_SHARED_H
#define OTP_ROSTER_SHARED_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"

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
	RosterHttp	http;
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
	bool		rescan;			/* a database is no more */
	int			missing_slots;
	int			nslots;
	int			nbreakers_max;
	pg_atomic_uint32 nbreakers; /* entries in use, all at the front */
	ConditionVariable settled;
	Pause		pauses[MAX_PAUSES];
	DatabaseSlot slots[FLEXIBLE_ARRAY_MEMBER];	/* then the breakers */
} Roster;

/* NULL without shared_preload_libraries */
extern Roster *roster;
extern RosterBreaker *breakers;

/* The lock is to be held, for the second exclusively; roster_wake knows better. */
extern DatabaseSlot *roster_find(Oid database);
extern DatabaseSlot *roster_find_or_add(Oid database);
extern bool roster_is_paused(Oid database);

/* Set the latch of a process, if it is there. */
extern void roster_set_latch(PGPROC *proc);

/* Drop the breakers of a database; lock held exclusively. */
extern void roster_forget_breakers(Oid database);

#endif							/* OTP_ROSTER_SHARED_H */
