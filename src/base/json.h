/*-------------------------------------------------------------------------
 *
 * json.h
 *	  Small helpers for JSON that comes from or goes to other machines.
 *
 * jansson's memory is malloc's, and its errors are return codes: build a
 * value with its own functions without looking (json_object_set_new takes a
 * NULL and says so), then give it to json_to_text, which looks. Text is
 * UTF-8 except where it says server encoding.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_JSON_H
#define OTP_JSON_H

#include "lib/stringinfo.h"

/*
 * Include this header instead of jansson.h, which shares two names with SQL
 * functions of the server. Its macro json_typeof spoils the header that
 * declares them, unless that one has come first. And json_object() is
 * declared differently there, and the dynamic linker would find the server's
 * first: call json_new_object().
 */
#include "utils/fmgrprotos.h"
#define json_object json_object_of_jansson
#include <jansson.h>
#undef json_object

/* Make an empty object; NULL when out of memory. Raises nothing. */
extern json_t *json_new_object(void);

/*
 * Write a value as compact text, palloc'd and NUL-terminated. Leaves the
 * value to the caller, who decrefs it: an error from here leaks it, once,
 * when memory is short anyway. Raises 53200 when the value is NULL (an
 * allocation failed while it was built) or cannot be written.
 */
extern char *json_to_text(const json_t *value);

/*
 * Read an object or an array; NULL when the text is neither, or not valid as a
 * whole. The text needs no NUL. Decref the result.
 * Raises nothing.
 */
extern json_t *json_from_text(const char *text, size_t len);

/*
 * A member that is a string of 1 to max_length bytes without a NUL in it;
 * NULL for anything else, also when object is NULL or no object. It lives as
 * long as the object. Raises nothing.
 */
extern const char *json_member_string(const json_t *object, const char *key, size_t max_length);

/*
 * Copy a member that is a string, cut at the end of a character to what fits
 * in size bytes with its NUL. False, with out "", when there is none. Raises
 * nothing.
 */
extern bool json_member_copy(const json_t *object, const char *key, char *out, size_t size);

/*
 * A member that is an integer from min to max. False, with out untouched,
 * when there is none. Raises nothing.
 */
extern bool json_member_int(const json_t *object, const char *key, int64 min, int64 max, int64 *out);

/* Append text in server encoding as a JSON string, quotes around it. */
extern void json_quote(StringInfo out, const char *text);

#endif							/* OTP_JSON_H */
