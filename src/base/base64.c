/*-------------------------------------------------------------------------
 *
 * base64.c
 *	  Bytes as text.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "common/base64.h"

#include "base/base64.h"

/* Write bytes in base 64 */
char *
base64_text(const void *data, size_t length)
{
	int			size = pg_b64_enc_len((int) length);
	char	   *text = palloc(size + 1);

	/* What it takes, bytes or characters, has changed with 18 */
	size = pg_b64_encode(data, (int) length, text, size);
	if (size < 0)
		elog(ERROR, "base 64 does not fit");
	text[size] = '\0';
	return text;
}
