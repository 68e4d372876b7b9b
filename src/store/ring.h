/*-------------------------------------------------------------------------
 *
 * ring.h
 *	  The drawers of the history, and how they are emptied.
 *
 * All functions need a transaction, SPI_connect and the owner's scope, and
 * are the sender's unless said otherwise. None waits for a lock on a leaf: what is locked by
 * somebody is left for later.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_RING_H
#define OTP_RING_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "base/ulid.h"

/* Tables that have a leaf for each drawer */
#define RING_TABLES 4

/* A row of otp.ring */
typedef struct RingDrawer
{
	bool		noted;			/* there is one */
	TimestampTz since;			/* start of the oldest content */
	TimestampTz until;			/* end of the last step that filled it */
} RingDrawer;

/* What became of a try to empty a leaf */
typedef enum RingTry
{
	RING_DONE,					/* nothing is left to do in it */
	RING_MORE,					/* come back for the rest */
	RING_KEPT,					/* it holds something younger */
	RING_LOCKED					/* somebody uses it: later */
} RingTry;

/* Where the deletion of a leaf's old rows stands */
typedef struct RingPosition
{
	int32		workspace_id;	/* 0: at its start */
	int32		second;			/* the column between, or 0 */
	pg_uuid_t	id;
} RingPosition;

/* Read otp.ring. */
extern void ring_read(RingDrawer drawers[ULID_SLOTS]);

/* Note that a drawer holds what came between two times, and perhaps more. */
extern void ring_widen(int slot, TimestampTz since, TimestampTz until);

/* Note that nothing older is left in it. */
extern void ring_set_since(int slot, TimestampTz since);

/* Note that it is empty. */
extern void ring_forget(int slot);

/* Does the file of any of its leaves hold anything? True when that cannot be seen now. */
extern bool ring_is_filled(int slot);

/*
 * Read from the rows themselves when the oldest and the newest of a drawer
 * were made. RING_DONE when it has no rows.
 */
extern RingTry ring_measure(int slot, TimestampTz *oldest, TimestampTz *newest);

/*
 * Empty one of the drawer's leaves, unless it holds a row from cutoff or
 * later: then *newest is when that was made.
 */
extern RingTry ring_truncate(int table, int slot, TimestampTz cutoff, TimestampTz *newest);

/* Delete some of the leaf's rows from before cutoff, from a position on. */
extern RingTry ring_delete(int table, int slot, TimestampTz cutoff, RingPosition *position);

/*
 * Delete some of a workspace's rows in the leaf, whatever their age, from a
 * position on, whose workspace_id does not matter: all zeroes is the start.
 * RING_MORE when there may be more.
 */
extern RingTry ring_delete_workspace(int table, int slot, int32 workspace_id, RingPosition *position);

/*
 * List the drawers that rows from since to now can be in; gives their number.
 * For everybody.
 */
extern int	ring_recent(TimestampTz since, TimestampTz now, int slots[ULID_SLOTS]);

#endif							/* OTP_RING_H */
