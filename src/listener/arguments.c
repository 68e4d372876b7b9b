/*-------------------------------------------------------------------------
 *
 * arguments.c
 *	  JSON, query and path to the arguments of a function.
 *
 * Types are taken as they are declared, and nothing is guessed: "6" is no
 * integer and 6.0 is none either, a field that is not known is an error, and
 * so is one that comes twice. What is wrong is said by the field's name; its
 * value is not repeated, for it may be a phone or a code.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <ctype.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "listener/route.h"

/* Most parts of a query, and most elements of an array */
#define MAX_PARAMETERS 32
#define MAX_ELEMENTS 64

/* Fill in a complaint; false */
static bool
complain(Complaint *complaint, int status, const char *code, const char *message, const char *hint)
{
	complaint->status = status;
	complaint->code = code;
	complaint->message = message;
	complaint->hint = hint;
	return false;
}

/* Complain about a field; false. Its name is ours, or cut to what fits into a sentence */
static bool
complain_field(Complaint *complaint, const char *field, const char *what)
{
	char		name[NAMEDATALEN];

	strlcpy(name, field, sizeof(name));
	if (strlen(field) >= sizeof(name))
		name[pg_encoding_mbcliplen(PG_UTF8, field, strlen(field), sizeof(name) - 1)] = '\0';
	return complain(complaint, 400, "invalid_request", psprintf("field \"%s\" %s", name, what), NULL);
}

/* Complain that these are the arguments of no such function; false */
static bool
complain_signature(Complaint *complaint, const char *field, const char *what)
{
	complaint->signature = true;
	return complain_field(complaint, field, what);
}

/* ---- text ---- */

/* Give the value of a digit */
static int
hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Decode */
bool
arguments_decode(const char *text, size_t length, bool plus, char **decoded)
{
	char	   *out = palloc(length + 1);
	size_t		n = 0;

	for (size_t i = 0; i < length; i++)
	{
		char		c = text[i];

		if (c == '%')
		{
			if (i + 2 >= length || hex_value(text[i + 1]) < 0 || hex_value(text[i + 2]) < 0)
				return false;
			c = (char) (hex_value(text[i + 1]) * 16 + hex_value(text[i + 2]));
			i += 2;
		}
		else if (c == '+' && plus)
			c = ' ';
		if (c == '\0')
			return false;
		out[n++] = c;
	}
	out[n] = '\0';
	*decoded = out;
	return pg_verify_mbstr(PG_UTF8, out, n, true);
}

/* Make a text of the server's encoding of one in UTF-8 */
static Datum
text_datum(const char *utf8, size_t length)
{
	char	   *converted = pg_any_to_server(utf8, length, PG_UTF8);

	if (converted != utf8)
		length = strlen(converted);
	return PointerGetDatum(cstring_to_text_with_len(converted, length));
}

/* ---- one value ---- */

/* Read an integer that is written as one */
static bool
read_integer(const char *text, int64 min, int64 max, int64 *value)
{
	char	   *end;
	const char *digits = text + (text[0] == '-');
	size_t		length = strlen(digits);

	if (length == 0 || length > 19 || strspn(digits, "0123456789") != length)
		return false;
	errno = 0;
	*value = strtoll(text, &end, 10);
	return errno == 0 && end > text && *end == '\0' && *value >= min && *value <= max;
}

/* Is a text a moment, as RFC 3339 has it? Whether the calendar has it as well is not looked at. */
static bool
is_time(const char *text)
{
	static const char form[] = "0000-00-00T00:00:00";
	size_t		n;

	for (n = 0; form[n] != '\0'; n++)
		if (form[n] == '0' ? !isdigit((unsigned char) text[n]) : pg_toupper((unsigned char) text[n]) != form[n])
			return false;
	text += n;
	if (text[0] == '.')
	{
		n = strspn(text + 1, "0123456789");
		if (n == 0 || n > 9)
			return false;
		text += n + 1;
	}
	if (pg_toupper((unsigned char) text[0]) == 'Z')
		return text[1] == '\0';
	return (text[0] == '+' || text[0] == '-') && strlen(text) == 6 && text[3] == ':' &&
		strspn(text + 1, "0123456789") == 2 && strspn(text + 4, "0123456789") == 2;
}

/* Take a moment; raises */
static bool
take_time(const ApiArgument *a, const char *text, Datum *datum, Complaint *complaint)
{
	/*
	 * What PostgreSQL takes besides, "yesterday" and times of no zone,
	 * depends on where and when it is read
	 */
	if (!is_time(text))
		return complain_field(complaint, a->name, "must be a time such as 2026-06-02T19:17:32Z");
	*datum = DirectFunctionCall3(timestamptz_in, CStringGetDatum(text), ObjectIdGetDatum(InvalidOid),
								 Int32GetDatum(-1));
	return true;
}

/*
 * Make a jsonb of an object that is a member of a request's body
 *
 * PostgreSQL reads it once more, because it keeps numbers as they were
 * written: jansson makes doubles of them.
 */
static Datum
object_datum(const Request *r, const char *name)
{
	Datum		body = DirectFunctionCall1(jsonb_in, CStringGetDatum(pg_any_to_server(r->body, r->length, PG_UTF8)));

	return DirectFunctionCall2(jsonb_object_field, body, CStringGetTextDatum(name));
}

/* Make an array of texts */
static Datum
texts_datum(Datum *elements, int n)
{
	return PointerGetDatum(construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* Take a value of a JSON object */
static bool
take_json(const Request *r, const ApiArgument *a, json_t *value, Datum *datum, Complaint *complaint)
{
	int64		integer;
	Datum		elements[MAX_ELEMENTS];

	switch (a->type)
	{
		case API_TEXT:
			if (!json_is_string(value))
				return complain_field(complaint, a->name, "must be a string");
			*datum = text_datum(json_string_value(value), json_string_length(value));
			return true;
		case API_INT:
		case API_INT8:
			if (!json_is_integer(value))
				return complain_field(complaint, a->name, "must be an integer");
			integer = json_integer_value(value);
			if (a->type == API_INT8)
				*datum = Int64GetDatum(integer);
			else if (integer < PG_INT32_MIN || integer > PG_INT32_MAX)
				return complain_field(complaint, a->name, "is out of range");
			else
				*datum = Int32GetDatum((int32) integer);
			return true;
		case API_BOOL:
			if (!json_is_boolean(value))
				return complain_field(complaint, a->name, "must be true or false");
			*datum = BoolGetDatum(json_is_true(value));
			return true;
		case API_OBJECT:
			if (!json_is_object(value))
				return complain_field(complaint, a->name, "must be an object");
			*datum = object_datum(r, a->name);
			return true;
		case API_TEXTS:
			if (!json_is_array(value) || json_array_size(value) > MAX_ELEMENTS)
				return complain_field(complaint, a->name, "must be an array of strings");
			for (size_t i = 0; i < json_array_size(value); i++)
			{
				const json_t *element = json_array_get(value, i);

				if (!json_is_string(element))
					return complain_field(complaint, a->name, "must be an array of strings");
				elements[i] = text_datum(json_string_value(element), json_string_length(element));
			}
			*datum = texts_datum(elements, json_array_size(value));
			return true;
		case API_TIME:
			if (!json_is_string(value))
				return complain_field(complaint, a->name, "must be a string");
			return take_time(a, json_string_value(value), datum, complaint);
	}
	return false;
}

/* Take a value of a query or a path */
static bool
take_text(const ApiArgument *a, char *value, Datum *datum, Complaint *complaint)
{
	int64		integer;
	Datum		elements[MAX_ELEMENTS];
	int			n = 0;

	switch (a->type)
	{
		case API_TEXT:
			*datum = text_datum(value, strlen(value));
			return true;
		case API_INT:
			if (!read_integer(value, PG_INT32_MIN, PG_INT32_MAX, &integer))
				return complain_field(complaint, a->name, "must be an integer");
			*datum = Int32GetDatum((int32) integer);
			return true;
		case API_INT8:
			if (!read_integer(value, PG_INT64_MIN, PG_INT64_MAX, &integer))
				return complain_field(complaint, a->name, "must be an integer");
			*datum = Int64GetDatum(integer);
			return true;
		case API_BOOL:
			if (strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
				return complain_field(complaint, a->name, "must be true or false");
			*datum = BoolGetDatum(value[0] == 't');
			return true;
		case API_OBJECT:
			*datum = DirectFunctionCall1(jsonb_in, CStringGetDatum(pg_any_to_server(value, strlen(value), PG_UTF8)));
			return true;
		case API_TEXTS:

			/* {a,b}, as PostgREST has it, without quotes; or a,b */
			if (value[0] == '{')
			{
				size_t		length = strlen(value);

				if (value[length - 1] != '}' || strchr(value, '"') != NULL || strchr(value, '\\') != NULL)
					return complain_field(complaint, a->name, "must be a list such as {a,b}");
				value[length - 1] = '\0';
				value++;
			}
			while (value[0] != '\0')
			{
				size_t		length = strcspn(value, ",");

				if (n == MAX_ELEMENTS)
					return complain_field(complaint, a->name, "is too long");
				elements[n++] = text_datum(pnstrdup(value, length), length);
				value += length + (value[length] == ',');
			}
			*datum = texts_datum(elements, n);
			return true;
		case API_TIME:
			return take_time(a, value, datum, complaint);
	}
	return false;
}

/* Find an argument by name; -1: there is none */
static int
find_argument(const ApiFunction *f, const char *name)
{
	for (int i = 0; i < f->nargs; i++)
		if (strcmp(f->args[i].name, name) == 0)
			return i;
	return -1;
}

/* ---- the query ---- */

/* Take one parameter of a query; true, with *query behind it, as long as there is one */
static bool
next_parameter(const char **query, char **name, char **value, bool *valid)
{
	const char *part = *query;
	size_t		length;
	size_t		equals;

	while (*part == '&')
		part++;
	if (*part == '\0')
		return false;
	length = strcspn(part, "&");
	equals = Min(strcspn(part, "="), length);
	*query = part + length;
	*valid = arguments_decode(part, equals, true, name) &&
		arguments_decode(equals < length ? part + equals + 1 : "", equals < length ? length - equals - 1 : 0,
						 true, value);
	return true;
}

/* Give a parameter */
char *
arguments_query(const char *query, const char *name)
{
	char	   *found = NULL;
	char	   *this_name;
	char	   *value;
	bool		valid;

	if (query == NULL)
		return NULL;
	for (int i = 0; i < MAX_PARAMETERS && next_parameter(&query, &this_name, &value, &valid); i++)
	{
		if (!valid || strcmp(this_name, name) != 0)
			continue;
		if (found != NULL)
			return NULL;
		found = value;
	}
	return found;
}

/* Take the arguments of a query; those of a body come elsewhere */
static bool
take_query(const char *query, bool selects, bool has_body, ApiCall *call, Complaint *complaint)
{
	const ApiFunction *f = call->function;
	int			n = 0;
	char	   *name;
	char	   *value;
	bool		valid;

	while (query != NULL && next_parameter(&query, &name, &value, &valid))
	{
		int			i;

		if (!valid || n++ == MAX_PARAMETERS)
			return complain(complaint, 400, "invalid_request", "the query is not valid",
							"Percent-encode its values, in UTF-8.");
		if (selects && strcmp(name, "select") == 0)
			continue;
		if (has_body)
			return complain(complaint, 400, "invalid_request", "this request takes no query",
							"Put its fields into the body.");
		i = find_argument(f, name);
		if (i < 0)
			return complain_signature(complaint, name, "is not known");
		if (!call->nulls[i])
			return complain_field(complaint, name, "comes twice");
		complaint->field = f->args[i].name;
		if (!take_text(&f->args[i], value, &call->values[i], complaint))
			return false;
		call->nulls[i] = false;
	}
	return true;
}

/* ---- the body ---- */

/* Is the body of a type? */
bool
arguments_content_type(const Request *r, const char *type)
{
	const char *given = request_header(r, "content-type");
	size_t		length = strlen(type);

	return given != NULL && request_header_count(r, "content-type") == 1 &&
		pg_strncasecmp(given, type, length) == 0 && (given[length] == '\0' || given[length] == ';' ||
													 given[length] == ' ');
}

/* Is a charset said that is none of ours? */
static bool
is_other_charset(const char *type)
{
	const char *charset = strcasestr(type, "charset=");

	if (charset == NULL)
		return false;
	charset += strlen("charset=");
	charset += *charset == '"';
	return pg_strncasecmp(charset, "utf-8", 5) != 0 || strchr("\"; \t", charset[5]) == NULL;
}

/* Is a body packed in a way that we do not unpack? */
static bool
is_encoded(const Request *r)
{
	const char *encoding = request_header(r, "content-encoding");

	return encoding != NULL && pg_strcasecmp(encoding, "identity") != 0;
}

/* Say why a body is no JSON */
static bool
complain_json(Complaint *complaint, const json_error_t *error)
{
	if (json_error_code(error) == json_error_duplicate_key)
		return complain(complaint, 400, "invalid_json", "a field comes twice", NULL);
	if (json_error_code(error) == json_error_numeric_overflow)
		return complain(complaint, 400, "invalid_json", "a number is too large", NULL);
	return complain(complaint, 400, "invalid_json",
					psprintf("the body is not valid JSON: see line %d, column %d", error->line, error->column), NULL);
}

/* Take the members of an object */
static bool
take_members(const Request *r, json_t *object, ApiCall *call, Complaint *complaint)
{
	const ApiFunction *f = call->function;
	const char *name;
	json_t	   *value;

	json_object_foreach(object, name, value)
	{
		int			i = find_argument(f, name);

		if (i < 0)
			return complain_signature(complaint, name, "is not known");
		if (!call->nulls[i])
			return complain_field(complaint, name, "is in the path already");
		if (json_is_null(value))
			continue;
		complaint->field = f->args[i].name;
		if (!take_json(r, &f->args[i], value, &call->values[i], complaint))
			return false;
		call->nulls[i] = false;
	}
	return true;
}

/* Take the arguments of a body */
static bool
take_body(const Request *r, ApiCall *call, Complaint *complaint)
{
	json_error_t error;
	json_t	   *volatile object = NULL;
	volatile bool taken = false;

	if (r->length == 0)
		return true;
	if (!arguments_content_type(r, "application/json") || is_other_charset(request_header(r, "content-type")))
		return complain(complaint, 415, "unsupported_media_type", "the body is not application/json in UTF-8",
						"Set the header Content-Type.");
	if (is_encoded(r))
		return complain(complaint, 415, "unsupported_media_type", "the body is compressed",
						"Leave the header Content-Encoding out.");
	object = json_loadb(r->body, r->length, JSON_REJECT_DUPLICATES, &error);
	if (object == NULL)
		return complain_json(complaint, &error);
	if (!json_is_object(object))
	{
		json_decref(object);
		return complain(complaint, 400, "invalid_json", "the body is not a JSON object", NULL);
	}
	PG_TRY();
	{
		taken = take_members(r, object, call, complaint);
	}
	PG_FINALLY();
	{
		json_decref(object);
	}
	PG_END_TRY();
	return taken;
}

/* Take all arguments */
bool
arguments_take(const Request *r, bool from_query, bool selects, const PathArgument *path, int npath,
			   ApiCall *call, Complaint *complaint)
{
	const ApiFunction *f = call->function;

	for (int i = 0; i < f->nargs; i++)
		call->nulls[i] = true;
	for (int i = 0; i < npath; i++)
	{
		int			argument = find_argument(f, path[i].name);

		if (argument < 0)
			elog(ERROR, "function %s has no argument %s", f->name, path[i].name);
		complaint->field = f->args[argument].name;
		if (!take_text(&f->args[argument], path[i].value, &call->values[argument], complaint))
			return false;
		call->nulls[argument] = false;
	}
	if (!take_query(r->query, selects, !from_query, call, complaint))
		return false;
	if (!from_query && !take_body(r, call, complaint))
		return false;
	complaint->field = NULL;
	for (int i = 0; i < f->nargs; i++)
		if (f->args[i].required && call->nulls[i])
			return complain_signature(complaint, f->args[i].name, "is missing");
	return true;
}
