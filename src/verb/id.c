/*-------------------------------------------------------------------------
 *
 * id.c
 *	  otp.format_id and otp.parse_id: the two spellings of an id.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "base/error.h"
#include "base/ulid.h"

EXPORTED_FUNCTION(otp_format_id);
EXPORTED_FUNCTION(otp_parse_id);

/* Give the otp_id of a key */
Datum
otp_format_id(PG_FUNCTION_ARGS)
{
	char		text[OTP_ID_LENGTH + 1];

	ulid_format(PG_GETARG_UUID_P(0), text);
	PG_RETURN_TEXT_P(cstring_to_text(text));
}

/* Give the key of an otp_id */
Datum
otp_parse_id(PG_FUNCTION_ARGS)
{
	text	   *value = PG_GETARG_TEXT_PP(0);
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	if (!ulid_parse(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), id))
		error_invalid_argument("this is not an otp_id", "It is otp_ and 26 letters and digits.");
	PG_RETURN_UUID_P(id);
}
