/*-------------------------------------------------------------------------
 *
 * json.c
 *	  Small helpers for JSON that comes from or goes to other machines.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

/* Leave the name json_object to the function below */
#define json_object json_object_of_server
#include "utils/fmgrprotos.h"
#undef json_object

#include "mb/pg_wchar.h"
#include "utils/json.h"

#include "base/json.h"

/* Most requests to a provider fit at the first try */
#define FIRST_SIZE 1024

/* A decimal fraction that was read is written as it was: with all 17 digits, 1.1 would be 1.1000000000000001 */
#define FORMAT (JSON_COMPACT | JSON_REAL_PRECISION(15))

/*
 * Should a file call json_object() after all, having included jansson.h by
 * itself: this one is in our own library and hidden, so that it gets this
 * and not the server's function of that name, which takes other arguments.
 */
extern json_t *json_object(void);

/* Stand in for jansson's function of this name */
json_t *
json_object(void)
{
	return json_new_object();
}

/* Make an empty object */
json_t *
json_new_object(void)
{
	return json_pack("{}");
}

/* Write a value as text */
char *
json_to_text(const json_t *value)
{
	char	   *text;
	size_t		needed = 0;

	/*
	 * json_dumpb writes to our memory: json_dumps would give malloc'd text
	 * that an error while copying it leaks, and a callback that allocates
	 * could leave jansson by longjmp.
	 */
	text = palloc(FIRST_SIZE);
	if (value != NULL)
		needed = json_dumpb(value, text, FIRST_SIZE - 1, FORMAT);
	if (needed > FIRST_SIZE - 1)
	{
		size_t		size = needed;

		/* What was written so far may hold secrets */
		explicit_bzero(text, FIRST_SIZE);
		text = repalloc(text, size + 1);
		needed = json_dumpb(value, text, size, FORMAT);
		if (needed != size)
			needed = 0;
	}
	if (needed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("A JSON text could not be built."),
				 errhidestmt(true),
				 errhidecontext(true)));

	text[needed] = '\0';
	return text;
}

/* Read an object or an array */
json_t *
json_from_text(const char *text, size_t len)
{
	return json_loadb(text, len, 0, NULL);
}

/* Give a member that is a string */
const char *
json_member_string(const json_t *object, const char *key, size_t max_length)
{
	const json_t *member = json_object_get(object, key);
	size_t		len;

	if (!json_is_string(member))
		return NULL;
	len = json_string_length(member);
	if (len == 0 || len > max_length || strlen(json_string_value(member)) != len)
		return NULL;
	return json_string_value(member);
}

/* Copy a member that is a string */
bool
json_member_copy(const json_t *object, const char *key, char *out, size_t size)
{
	const json_t *member = json_object_get(object, key);
	const char *text;
	int			len;

	out[0] = '\0';
	if (!json_is_string(member))
		return false;

	/* jansson lets only valid UTF-8 in */
	text = json_string_value(member);
	len = pg_encoding_mbcliplen(PG_UTF8, text, (int) Min(strlen(text), size), (int) size - 1);
	memcpy(out, text, len);
	out[len] = '\0';
	return true;
}

/* Give a member that is an integer */
bool
json_member_int(const json_t *object, const char *key, int64 min, int64 max, int64 *out)
{
	const json_t *member = json_object_get(object, key);
	int64		value;

	if (!json_is_integer(member))
		return false;
	value = (int64) json_integer_value(member);
	if (value < min || value > max)
		return false;
	*out = value;
	return true;
}

/* Append a JSON string */
void
json_quote(StringInfo out, const char *text)
{
	escape_json(out, text);
}
