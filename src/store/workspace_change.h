/*-------------------------------------------------------------------------
 *
 * workspace_change.h
 *	  Making, renaming, suspending and deleting workspaces.
 *
 * What users write goes with the workspace, in the caller's transaction. The
 * rest is the sender's, which must not wait for a lock of that transaction:
 * it finds in otp.deleted_workspaces what it has to delete, and does so bit by
 * bit (worker/sweep.c). An id is never used again.
 *
 * All functions need SPI_connect and the owner's scope.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_WORKSPACE_CHANGE_H
#define OTP_WORKSPACE_CHANGE_H

#include "datatype/timestamp.h"

#include "store/ring.h"

/* Make a workspace with its first template; gives its id, or 0 when the name is taken. */
extern int32 workspace_create(const char *name, const char *app_name);

/* Rename it; false when the name is taken. */
extern bool workspace_rename(int32 workspace_id, const char *new_name);

/* Suspend it, since when it has been; or end that. A reason of NULL leaves the one that is there. */
extern void workspace_suspend(int32 workspace_id, const char *reason);
extern void workspace_resume(int32 workspace_id);

/* Lock it for its deletion; false when it is gone, or has another name. */
extern bool workspace_lock(int32 workspace_id, const char *name);

/* What keeps a workspace from being deleted just so */
#define WORKSPACE_CONTENTS 7

typedef struct WorkspaceContents
{
	int64		counts[WORKSPACE_CONTENTS];
} WorkspaceContents;

extern const char *const workspace_content_names[WORKSPACE_CONTENTS];

/* Count what a workspace has. */
extern void workspace_count(int32 workspace_id, WorkspaceContents *contents);

/* Delete a workspace that is locked, and all it has. Waits for who is verifying its codes. */
extern void workspace_delete(int32 workspace_id, TimestampTz now);

/* ---- for the sender ---- */

/* Where the sender stands with what a deleted workspace has left */
typedef struct LeftoverPosition
{
	int			table;
	int			slot;			/* of tables with a leaf for each drawer */
	RingPosition ring;
} LeftoverPosition;

/* Find a deleted workspace that is to be looked at; false when there is none. */
extern bool leftover_next(TimestampTz now, int32 *workspace_id, TimestampTz *deleted_at);

/*
 * Delete some of what it has left, from a position on; false at the end. Waits
 * for nobody: what is locked is for the next time.
 */
extern bool leftover_delete(int32 workspace_id, LeftoverPosition *position);

/* Look at it again at a time; 0: never. */
extern void leftover_put_off(int32 workspace_id, TimestampTz due_at);

#endif							/* OTP_WORKSPACE_CHANGE_H */
