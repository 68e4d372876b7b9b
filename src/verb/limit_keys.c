/*-------------------------------------------------------------------------
 *
 * limit_keys.c
 *	  Limits by keys of the caller's own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/verb.h"
#include "verb/send.h"

/* Take the argument apart */
LimitKeys *
limit_keys_parse(ArrayType *keys)
{
	return NULL;
}

/* Refuse when a key has been sent for too often */
void
limit_keys_take(const Workspace *w, const LimitKeys *keys, TimestampTz now)
{
}

/* Count a send */
void
limit_keys_note(const Verification *v, const LimitKeys *keys)
{
}

/* Give the argument again */
Datum
limit_keys_datum(const LimitKeys *keys)
{
	return (Datum) 0;
}
