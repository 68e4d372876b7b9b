/*
 * text.c
 *		Growing strings, JSON and form encoding, clocks.
 */
#include "simulator.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

/* Allocate zeroed memory or die. */
void *
must_alloc(size_t size)
{
	void	   *p = calloc(1, size);

	if (p == NULL)
	{
		fputs("simulator: out of memory\n", stderr);
		abort();
	}
	return p;
}

/* Copy a string; NULL stays NULL. */
char *
must_copy(const char *s)
{
	return s ? must_copy_n(s, strlen(s)) : NULL;
}

/* Copy and terminate bytes. */
char *
must_copy_n(const char *s, size_t len)
{
	char	   *copy = malloc(len + 1);

	if (copy == NULL)
		abort();
	memcpy(copy, s, len);
	copy[len] = '\0';
	return copy;
}

/* Make room for more bytes and a terminator. */
static void
text_reserve(Text *t, size_t more)
{
	size_t		size = t->size ? t->size : 256;

	if (t->len + more + 1 <= t->size)
		return;
	while (size < t->len + more + 1)
		size *= 2;
	t->data = realloc(t->data, size);
	if (t->data == NULL)
		abort();
	t->size = size;
}

/* Append bytes. */
void
text_add(Text *t, const void *bytes, size_t len)
{
	text_reserve(t, len);
	memcpy(t->data + t->len, bytes, len);
	t->len += len;
	t->data[t->len] = '\0';
}

/* Append a string. */
void
text_puts(Text *t, const char *s)
{
	text_add(t, s, strlen(s));
}

/* Append formatted text. */
void
text_printf(Text *t, const char *fmt,...)
{
	va_list		args;
	int			len;

	text_reserve(t, 128);
	va_start(args, fmt);
	len = vsnprintf(t->data + t->len, t->size - t->len, fmt, args);
	va_end(args);
	if ((size_t) len >= t->size - t->len)
	{
		text_reserve(t, len);
		va_start(args, fmt);
		vsnprintf(t->data + t->len, t->size - t->len, fmt, args);
		va_end(args);
	}
	t->len += len;
}

/* Length of the UTF-8 sequence at s, 0 if it is not valid. */
static int
utf8_sequence(const unsigned char *s, size_t len)
{
	int			n;

	if (s[0] < 0x80)
		return 1;
	if (s[0] >= 0xc2 && s[0] <= 0xdf)
		n = 2;
	else if ((s[0] & 0xf0) == 0xe0)
		n = 3;
	else if (s[0] >= 0xf0 && s[0] <= 0xf4)
		n = 4;
	else
		return 0;
	if (len < (size_t) n)
		return 0;
	for (int i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
		(s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

/* Append a JSON string, or null. */
void
text_json(Text *t, const char *s)
{
	if (s == NULL)
		text_puts(t, "null");
	else
		text_json_n(t, s, strlen(s));
}

/* Append bytes as a JSON string; what is not UTF-8 becomes U+FFFD. */
void
text_json_n(Text *t, const char *s, size_t len)
{
	size_t		plain = 0;
	size_t		i = 0;

	text_add(t, "\"", 1);
	while (i < len)
	{
		unsigned char c = s[i];
		int			n = utf8_sequence((const unsigned char *) s + i, len - i);

		if (n > 0 && c >= 0x20 && c != '"' && c != '\\')
		{
			i += n;
			continue;
		}
		text_add(t, s + plain, i - plain);
		if (n == 0)
			text_puts(t, "\\ufffd");
		else if (c == '"' || c == '\\')
			text_printf(t, "\\%c", c);
		else if (c == '\n')
			text_puts(t, "\\n");
		else
			text_printf(t, "\\u%04x", c);
		plain = ++i;
	}
	text_add(t, s + plain, len - plain);
	text_add(t, "\"", 1);
}

/* Append name=value, percent-encoded, with & before all but the first. */
void
text_form(Text *t, const char *name, const char *value)
{
	text_printf(t, "%s%s=", t->len ? "&" : "", name);
	for (; *value; value++)
	{
		unsigned char c = *value;

		if (isalnum(c) || strchr("-_.~", c))
			text_add(t, value, 1);
		else
			text_printf(t, "%%%02X", c);
	}
}

/* Free the bytes. */
void
text_free(Text *t)
{
	free(t->data);
	memset(t, 0, sizeof(*t));
}

/* Microseconds since 1970. */
int64_t
wall_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* Microseconds of the monotonic clock. */
int64_t
mono_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* Next number of a small generator, one per thread; not for secrets. */
static uint64_t
random_next(void)
{
	static __thread uint64_t state;
	uint64_t	z;

	if (state == 0 && getrandom(&state, sizeof(state), 0) != sizeof(state))
		state = (uint64_t) mono_us();
	z = (state += 0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/* Write hexadecimal digits and a terminator. */
void
random_hex(char *out, int digits)
{
	uint64_t	bits = 0;

	for (int i = 0; i < digits; i++, bits >>= 4)
	{
		if (i % 16 == 0)
			bits = random_next();
		out[i] = "0123456789abcdef"[bits & 15];
	}
	out[digits] = '\0';
}

/* Write a trace id of the form Meta uses. */
void
random_trace_id(char out[24])
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	uint64_t	bits = 0;

	out[0] = 'A';
	for (int i = 1; i < 23; i++, bits >>= 6)
	{
		if (i % 10 == 1)
			bits = random_next();
		out[i] = alphabet[bits & 63];
	}
	out[23] = '\0';
}

/* Write bytes in lower-case hexadecimal. */
void
hex_of(const unsigned char *bytes, size_t len, char *out)
{
	for (size_t i = 0; i < len; i++)
		sprintf(out + 2 * i, "%02x", bytes[i]);
}

/* Undo percent encoding; the result is malloc'd. */
char *
url_decode(const char *s, size_t len)
{
	char	   *out = must_alloc(len + 1);
	size_t		n = 0;

	for (size_t i = 0; i < len; i++)
	{
		if (s[i] == '+')
			out[n++] = ' ';
		else if (s[i] == '%' && i + 2 < len && isxdigit((unsigned char) s[i + 1]) &&
				 isxdigit((unsigned char) s[i + 2]))
		{
			char		hex[3] = {s[i + 1], s[i + 2], 0};

			out[n++] = (char) strtol(hex, NULL, 16);
			i += 2;
		}
		else
			out[n++] = s[i];
	}
	return out;
}

/* Split an application/x-www-form-urlencoded body. */
void
form_parse(Form *form, const char *body, size_t len)
{
	const char *end = body + len;
	int			size = 0;

	memset(form, 0, sizeof(*form));
	while (body < end)
	{
		const char *amp = memchr(body, '&', end - body);
		const char *stop = amp ? amp : end;
		const char *eq = memchr(body, '=', stop - body);
		const char *name_end = eq ? eq : stop;

		if (stop > body)
		{
			if (form->count == size)
			{
				size = size ? size * 2 : 16;
				form->fields = realloc(form->fields, size * sizeof(Field));
				if (form->fields == NULL)
					abort();
			}
			form->fields[form->count].name = url_decode(body, name_end - body);
			form->fields[form->count].value = eq ? url_decode(eq + 1, stop - eq - 1) : must_copy("");
			form->count++;
		}
		body = stop + 1;
	}
}

/* First value of a field, or NULL. */
const char *
form_get(const Form *form, const char *name)
{
	for (int i = 0; i < form->count; i++)
		if (strcmp(form->fields[i].name, name) == 0)
			return form->fields[i].value;
	return NULL;
}

/* Free a form. */
void
form_free(Form *form)
{
	for (int i = 0; i < form->count; i++)
	{
		free(form->fields[i].name);
		free(form->fields[i].value);
	}
	free(form->fields);
	memset(form, 0, sizeof(*form));
}

/* Count the characters of a UTF-8 string. */
int
utf8_length(const char *s)
{
	int			n = 0;

	for (; *s; s++)
		n += (*s & 0xc0) != 0x80;
	return n;
}

/* A plus, no leading zero, 7 to 15 digits? */
bool
is_e164(const char *s)
{
	size_t		digits;

	if (s[0] != '+' || s[1] == '0')
		return false;
	digits = strspn(s + 1, "0123456789");
	return s[1 + digits] == '\0' && digits >= 7 && digits <= 15;
}

/* The API as JSON names it. */
const char *
api_name(Api api)
{
	return api == API_META ? "meta" : api == API_TWILIO ? "twilio" : "none";
}

/* The outcome as JSON names it. */
const char *
outcome_name(Outcome outcome)
{
	static const char *const names[OUTCOMES] = {"accepted", "refused", "hung", "reset"};

	return names[outcome];
}
