/*-------------------------------------------------------------------------
 *
 * credit.c
 *	  What metered workspaces have left.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "store/credit.h"

/* Pay for a message */
int
credit_take(const Workspace *w)
{
	return w->credits_metered ? 1 : 0;
}
