/*-------------------------------------------------------------------------
 *
 * api_check.c
 *	  otp.api_check: what the statements of otp_api refuse an argument by.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "base/error.h"

EXPORTED_FUNCTION(otp_api_check);

/* Refuse an argument when something is false; NULL is as good as true */
Datum
otp_api_check(PG_FUNCTION_ARGS)
{
	if (!PG_ARGISNULL(0) && !PG_GETARG_BOOL(0))
		error_invalid_argument(psprintf("argument \"%s\" is not valid", text_to_cstring(PG_GETARG_TEXT_PP(1))),
							   text_to_cstring(PG_GETARG_TEXT_PP(2)));
	PG_RETURN_NULL();
}
