/*-------------------------------------------------------------------------
 *
 * unlock.c
 *	  otp.unlock_phone: let a phone guess again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/phone.h"
#include "store/audit.h"
#include "store/failures.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_unlock_phone);

/* Forgive a phone all its wrong guesses */
Datum
otp_unlock_phone(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char		buffer[PHONE_SIZE];
	const char *folded;
	char	   *name;
	const Workspace *w;
	TimestampTz now = GetCurrentTimestamp();
	PhoneCount	count;
	bool		failed;

	owner_require("unlock_phone");
	folded = phone_fold(verb_phone(fcinfo, 0), buffer);
	name = verb_text(fcinfo, 1, "workspace", NAMEDATALEN);
	verb_begin(&scope, "otp.unlock_phone()", VERB_WRITES);
	w = workspace_named(name);

	/* What fails from here on is not forgiven */
	(void) failures_of(w->workspace_id, folded, now, &count);
	failed = count.failures > 0 || count.total > count.forgiven;
	if (failed)
	{
		failures_forgive(w->workspace_id, folded, now, count.total);
		audit_add(GetUserNameFromId(scope.caller, false), "unlock_phone", w->workspace_id,
				  audit_mask_phone(folded), "{}");
	}
	verb_end(&scope);
	PG_RETURN_BOOL(failed);
}
