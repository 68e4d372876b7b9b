/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  The guard against pumping.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/verb.h"
#include "verb/send.h"

/* Refuse a send that looks like pumping */
void
guard_require(const Workspace *w, const char *phone, const char *channel, TimestampTz now)
{
}

/* Count a send */
void
guard_note_sent(const Workspace *w, const Verification *v)
{
}

/* Count a success */
void
guard_note_verified(const Workspace *w, const Verification *v)
{
}
