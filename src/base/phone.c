/*-------------------------------------------------------------------------
 *
 * phone.c
 *	  Phone numbers: which are good, and how to keep them out of sight.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "base/phone.h"

/* The shortest code has four digits: a run as long may be one */
#define MASK_MIN_DIGITS 4

/*
 * Bytes between two digits of one run: room for ") - ", and for a no-break
 * hyphen of UTF-8 with a space.
 */
#define MASK_MAX_SEPARATORS 4

/*
 * ctype.h depends on the locale, so these look at ASCII only.
 */
static inline bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Is it a letter? */
static inline bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Is it white space? */
static inline bool
is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Can stand between the digits of one number */
static inline bool
is_separator(char c)
{
	return is_space(c) || IS_HIGHBIT_SET(c) ||
		(c != '\0' && strchr("-.()/", c) != NULL);
}

/* Find a defect */
const char *
phone_defect(const char *phone, size_t len)
{
	bool		spaces = false;
	bool		letters = false;
	bool		others = false;

	if (len == 0)
		return "is empty";

	/* See what else is in it than digits, a + in front set aside */
	for (size_t i = (phone[0] == '+') ? 1 : 0; i < len; i++)
	{
		if (is_space(phone[i]))
			spaces = true;
		else if (is_letter(phone[i]))
			letters = true;
		else if (!is_digit(phone[i]))
			others = true;
	}

	/* Name the one that explains most to who typed it */
	if (letters)
		return "has letters";
	if (spaces)
		return "has spaces";
	if (others)
		return "has characters that are not digits";
	if (phone[0] != '+')
		return "has no leading +";
	if (len > 1 && phone[1] == '0')
		return "starts with 0";
	if (len - 1 < PHONE_MIN_DIGITS)
		return "is too short";
	if (len - 1 > PHONE_MAX_DIGITS)
		return "is too long";
	return NULL;
}

/* Mask codes and phone numbers */
void
mask_digits(char *text)
{
	char	   *p = text;

	while (*p != '\0')
	{
		char	   *last = p;	/* the run's last digit so far */
		int			digits = 1;

		if (!is_digit(*p))
		{
			p++;
			continue;
		}

		/* Follow the run over separators */
		for (char *q = p + 1; q - last <= MASK_MAX_SEPARATORS + 1; q++)
		{
			if (is_digit(*q))
			{
				digits++;
				last = q;
			}
			else if (!is_separator(*q))
				break;
		}

		/* Mask it when it is long enough */
		for (; p <= last; p++)
		{
			if (digits >= MASK_MIN_DIGITS && is_digit(*p))
				*p = '*';
		}
	}
}
