/*-------------------------------------------------------------------------
 *
 * xact_wait.c
 *	  Wait for the end of a transaction, but not for ever.
 *
 * The server waits for a transaction until it ends. One who could do with any
 * of several has to look at the others now and then; but a wait that is cut
 * short must have lasted long enough for a deadlock to be found. So it is cut
 * short by lock_timeout, inside a subtransaction, which has nothing else in
 * it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/xact_wait.h"

/* The check for deadlocks, once it is due, takes no longer than this */
#define CHECK_MS 100

/* Wait for the end of a transaction */
bool
xact_wait(TransactionId xid, TimestampTz since)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			limit = DeadlockTimeout + CHECK_MS;
	bool		last = false;
	volatile bool ended = true;

	if (LockTimeout > 0)
	{
		int64		rest = LockTimeout - (GetCurrentTimestamp() - since) / 1000;

		if (rest <= limit)
		{
			limit = (int) Max(rest, 1);
			last = true;
		}
	}

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int			level = NewGUCNestLevel();
		char		value[16];

		snprintf(value, sizeof(value), "%d", limit);
		(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
		XactLockTableWait(xid, NULL, NULL, XLTW_None);
		AtEOXact_GUC(true, level);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (last || error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(error);
		FreeErrorData(error);
		ended = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ended;
}
