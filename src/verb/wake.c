/*-------------------------------------------------------------------------
 *
 * wake.c
 *	  Have the sender woken when a transaction commits.
 *
 * The callback is registered once for the life of the process; it looks at
 * one flag. A prepared transaction is waked for by whoever commits it, see
 * utility.c in the worker's folder.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "miscadmin.h"

#include "base/roster.h"
#include "verb/verb.h"

static bool wake_wanted = false;

/* Wake the sender */
static void
wake_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (wake_wanted)
				roster_wake(MyDatabaseId);
			wake_wanted = false;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			wake_wanted = false;
			break;
		default:
			break;
	}
}

/* Register the callback */
void
wake_init(void)
{
	RegisterXactCallback(wake_callback, NULL);
}

/* Ask for a wake */
void
wake_at_commit(void)
{
	wake_wanted = true;
}
