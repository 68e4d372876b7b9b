/*-------------------------------------------------------------------------
 *
 * country.c
 *	  Which countries a workspace sends to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/verb.h"
#include "verb/send.h"

/* Require a country that is allowed */
void
country_require(const Workspace *w, Verification *v, bool fallback_asked)
{
	const PrefixList *list = &w->allowed[PREFIXES_ALL];

	if (list->count < 0)
		return;
	for (int i = 0; i < list->count; i++)
		if (strncmp(v->phone, list->prefixes[i], strlen(list->prefixes[i])) == 0)
			return;
	error_raise(OTP_INVALID_PHONE, "phone numbers of this country are not allowed",
				"The workspace's allowed_prefixes in otp.workspaces say which are.", -1, NULL);
}
