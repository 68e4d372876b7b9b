/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  The same key and arguments, the same answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/verb.h"
#include "verb/send.h"

/* Find an earlier answer */
bool
idempotency_find(SendRequest *r)
{
	return false;
}

/* Note a key */
void
idempotency_note(const SendRequest *r)
{
}
