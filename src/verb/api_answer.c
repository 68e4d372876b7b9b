/*-------------------------------------------------------------------------
 *
 * api_answer.c
 *	  The JSON of answers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <math.h>
#include <time.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/json.h"
#include "base/limiter.h"
#include "base/ulid.h"
#include "verb/api_answer.h"

/* What is left of what is not limited */
#define UNLIMITED 1000000

/* Append a moment */
void
api_write_time(StringInfo out, TimestampTz time)
{
	struct pg_tm tm;
	fsec_t		fraction;

	if (TIMESTAMP_NOT_FINITE(time) || timestamp2tm(time, NULL, &tm, &fraction, NULL, NULL) != 0)
		appendStringInfoString(out, "null");
	else
		appendStringInfo(out, "\"%04d-%02d-%02dT%02d:%02d:%02dZ\"",
						 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

/* Is a name among words? */
static bool
is_among(const char *name, const char *words)
{
	size_t		length = strlen(name);

	for (const char *at = words; at != NULL && (at = strstr(at, name)) != NULL; at += length)
		if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
			return true;
	return false;
}

/* Append an array of texts */
static void
write_texts(StringInfo out, Datum value)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &n);
	appendStringInfoChar(out, '[');
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoChar(out, ',');
		if (nulls[i])
			appendStringInfoString(out, "null");
		else
			json_quote(out, TextDatumGetCString(elements[i]));
	}
	appendStringInfoChar(out, ']');
}

/* Append a value of a column */
static void
write_value(StringInfo out, Datum value, Oid type)
{
	Oid			function;
	bool		varlena;
	char	   *written;

	switch (type)
	{
		case BOOLOID:
			appendStringInfoString(out, DatumGetBool(value) ? "true" : "false");
			return;
		case INT4OID:
			appendStringInfo(out, "%d", DatumGetInt32(value));
			return;
		case TIMESTAMPTZOID:
			api_write_time(out, DatumGetTimestampTz(value));
			return;
		case TEXTOID:
			json_quote(out, TextDatumGetCString(value));
			return;
		case TEXTARRAYOID:
			write_texts(out, value);
			return;
		case JSONBOID:
			(void) JsonbToCString(out, &DatumGetJsonbP(value)->root, VARSIZE(DatumGetJsonbP(value)));
			return;
		default:
			getTypeOutputInfo(type, &function, &varlena);
			written = OidOutputFunctionCall(function, value);
	}

	/* Numbers are numbers, but for those that JSON does not have */
	if ((type == INT2OID || type == INT8OID || type == FLOAT4OID || type == FLOAT8OID || type == NUMERICOID) &&
		strchr("-0123456789", written[0]) != NULL && strchr(written, 'f') == NULL)
		appendStringInfoString(out, written);
	else
		json_quote(out, written);
}

/* Append a row */
void
api_write_row(StringInfo out, HeapTuple tuple, TupleDesc desc, const char *shown)
{
	bool		first = true;

	appendStringInfoChar(out, '{');
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		const char *name = NameStr(attribute->attname);
		bool		isnull;
		Datum		value = heap_getattr(tuple, i + 1, desc, &isnull);

		/* Where a list goes on is said once, beside its rows */
		if ((isnull && !is_among(name, shown)) || strcmp(name, "next") == 0)
			continue;
		if (!first)
			appendStringInfoChar(out, ',');
		first = false;
		json_quote(out, name);
		appendStringInfoChar(out, ':');
		if (isnull)
			appendStringInfoString(out, "null");
		else
			write_value(out, value, attribute->atttypid);
	}
	appendStringInfoChar(out, '}');
}

/* Append what the caller of a send hears */
void
api_write_sent(StringInfo out, const Verification *v, const char *channel, int expires_in, const char *message_id)
{
	char		id[OTP_ID_LENGTH + 1];

	ulid_format(&v->id, id);
	appendStringInfo(out, "{\"success\":true,\"otp_id\":\"%s\",\"channel\":", id);
	json_quote(out, channel);
	appendStringInfoString(out, ",\"phone\":");
	json_quote(out, v->phone);
	appendStringInfoString(out, ",\"expires_at\":");
	api_write_time(out, v->expires_at);
	appendStringInfo(out, ",\"expires_in\":%d,\"message_id\":", expires_in);
	if (message_id != NULL)
		json_quote(out, message_id);
	else
		appendStringInfoString(out, "null");
	appendStringInfoChar(out, '}');
}

/* Append a member that is a string, or leave it out */
static void
write_member(StringInfo out, const char *name, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(out, ",\"%s\":", name);
	json_quote(out, value);
}

/* Append an error */
void
api_write_error(StringInfo out, const ApiError *error, bool envelope)
{
	appendStringInfoString(out, envelope ? "{\"error\":{\"code\":" : "{\"code\":");
	json_quote(out, error->code);
	write_member(out, "message", error->message);
	if (!envelope)
		appendStringInfoString(out, ",\"details\":null");
	if (!envelope && error->hint == NULL)
		appendStringInfoString(out, ",\"hint\":null");
	write_member(out, "hint", error->hint);
	if (error->retry_after >= 0)
		appendStringInfo(out, ",\"retry_after\":%d", error->retry_after);
	write_member(out, "limit", error->limit);
	write_member(out, "prefix", error->prefix);
	if (error->id != NULL)
	{
		char		id[OTP_ID_LENGTH + 1];

		ulid_format(error->id, id);
		write_member(out, "otp_id", id);
	}
	if (error->attempts_remaining >= 0)
		appendStringInfo(out, ",\"attempts_remaining\":%d", error->attempts_remaining);
	if (envelope)
		appendStringInfoChar(out, '}');
	if (error->invalid)
		appendStringInfoString(out, ",\"valid\":false");
	appendStringInfoChar(out, '}');
}

/* Answer with an error */
void
api_answer_error(ApiAnswer *answer, int status, const ApiError *error, bool envelope)
{
	StringInfoData out;

	initStringInfo(&out);
	api_write_error(&out, error, envelope);
	answer->status = status;
	answer->body = out.data;
	answer->length = out.len;
	answer->retry_after = error->retry_after;

	/* Who is to come again later has nothing left until then */
	if (status == 429 || answer->reset_at == 0)
	{
		answer->remaining = 0;
		answer->reset_at = (int64) time(NULL) + Max(error->retry_after, 0);
	}
}

/* Tell how many sends are left */
void
api_answer_limits(ApiAnswer *answer, const Workspace *w)
{
	double		full_after = 0;

	answer->remaining = UNLIMITED;
	if (w->sends_per_second > 0)
		limiter_look(w->workspace_id, w->sends_per_second, w->sends_burst > 0 ? w->sends_burst : w->sends_per_second,
					 &answer->remaining, &full_after);
	answer->reset_at = (int64) time(NULL) + (int64) ceil(full_after);
}

/* Answer what never became a call */
void
api_refuse(ApiAnswer *answer, bool envelope, int status, const char *code, const char *message,
		   const char *hint, int retry_after)
{
	ApiError	error = API_ERROR(code, message, hint);

	memset(answer, 0, sizeof(ApiAnswer));
	error.retry_after = retry_after;
	api_answer_error(answer, status, &error, envelope);
}
