/*-------------------------------------------------------------------------
 *
 * phone.c
 *	  Phone numbers: which are good, which are the same, and how to keep them
 *	  out of sight.
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

/*
 * Argentine area codes of three digits; 11 is the only one of two, all others
 * have four. Some of these begin one of four: 220, and 2202.
 *
 * Source: google/libphonenumber, resources/PhoneNumberMetadata.xml of 17 July
 * 2026, territory AR, nationalPrefixForParsing.
 */
static const short argentine_areas[] = {
	220, 221, 223, 230, 236, 237, 249, 260, 261, 263, 264, 266, 280, 291, 294, 297, 298, 299,
	336, 341, 342, 343, 345, 348, 351, 353, 358, 362, 364, 370, 376, 379, 380, 381, 383, 385, 387, 388
};

/* Does a national number begin with an Argentine area code of three digits? */
static bool
has_short_area(const char *number)
{
	int			area = (number[0] - '0') * 100 + (number[1] - '0') * 10 + (number[2] - '0');

	for (int i = 0; i < lengthof(argentine_areas); i++)
		if (argentine_areas[i] == area)
			return true;
	return false;
}

/* Does a national number begin with an Argentine area code at all? */
static bool
has_area(const char *number)
{
	return strncmp(number, "11", 2) == 0 || number[0] == '2' || number[0] == '3';
}

/* Is the 15 of mobiles there? */
static bool
has_15(const char *number, int area)
{
	return number[area] == '1' && number[area + 1] == '5';
}

/*
 * Find the 15 of mobiles in an Argentine number of 12 digits; gives the length
 * of the area code before it, or 0
 *
 * It stands behind three digits or behind four, never behind both: there is
 * but one way to read it.
 */
static int
area_before_15(const char *number)
{
	if (!has_area(number))
		return 0;
	if (number[0] == '1')
		return has_15(number, 2) ? 2 : 0;
	if (has_short_area(number) && has_15(number, 3))
		return 3;
	return has_15(number, 4) ? 4 : 0;
}

/*
 * Fold a Brazilian number: the ninth digit is there
 *
 * Since 2016 all mobiles have a 9 before the eight digits that they had,
 * which began with 6 to 9 (Anatel, Resolution 553 of 2010); WhatsApp still
 * knows many of them without it. What begins with 7 may be a trunked radio,
 * which has none (libphonenumber, territory BR): two numbers then count as
 * one. Area codes have no 0 in them.
 */
static const char *
fold_brazilian(const char *phone, const char *number, size_t length, char folded[PHONE_SIZE])
{
	if (length != 10 || number[0] == '0' || number[1] == '0' || number[2] < '6')
		return phone;
	snprintf(folded, PHONE_SIZE, "+55%.2s9%s", number, number + 2);
	return folded;
}

/*
 * Fold a Mexican number: without the 1
 *
 * Until 3 August 2019 it was put before the ten digits of a mobile that was
 * called from abroad (ITU Operational Bulletin 1151: communication of Mexico
 * of 12.VI.2018). National numbers begin with 2 to 9.
 */
static const char *
fold_mexican(const char *phone, const char *number, size_t length, char folded[PHONE_SIZE])
{
	if (length != 11 || number[0] != '1' || number[1] < '2')
		return phone;
	snprintf(folded, PHONE_SIZE, "+52%s", number + 1);
	return folded;
}

/*
 * Fold an Argentine number: with the 9, and without the 15
 *
 * Mobiles have the same ten digits as landlines, with a 9 before them from
 * abroad, and a 15 behind the area code at home (libphonenumber, as above:
 * nationalPrefixTransformRule).
 */
static const char *
fold_argentine(const char *phone, const char *number, size_t length, char folded[PHONE_SIZE])
{
	int			area;

	if (length == 10 && has_area(number))
		snprintf(folded, PHONE_SIZE, "+549%s", number);
	else if (length == 12 && (area = area_before_15(number)) > 0)
		snprintf(folded, PHONE_SIZE, "+549%.*s%s", area, number, number + area + 2);
	else
		return phone;
	return folded;
}

/* Fold a number */
const char *
phone_fold(const char *phone, char folded[PHONE_SIZE])
{
	const char *number;

	/* +52, +54 and +55, and nothing else is looked at */
	if (phone[0] != '+' || phone[1] != '5' || phone[2] == '\0')
		return phone;
	number = phone + 3;
	switch (phone[2])
	{
		case '2':
			return fold_mexican(phone, number, strlen(number), folded);
		case '4':
			return fold_argentine(phone, number, strlen(number), folded);
		case '5':
			return fold_brazilian(phone, number, strlen(number), folded);
		default:
			return phone;
	}
}

/* List all forms of a number */
int
phone_forms(const char *phone, char forms[PHONE_MAX_FORMS][PHONE_SIZE])
{
	char		buffer[PHONE_SIZE];
	const char *folded = phone_fold(phone, buffer);
	const char *number;
	size_t		length;
	int			n = 1;

	strlcpy(forms[0], folded, PHONE_SIZE);
	if (folded[0] != '+' || folded[1] != '5' || folded[2] == '\0')
		return n;
	number = folded + 3;
	length = strlen(number);
	switch (folded[2])
	{
		case '2':
			if (length == 10 && number[0] >= '2')
				snprintf(forms[n++], PHONE_SIZE, "+521%s", number);
			break;
		case '4':
			if (length != 11 || number[0] != '9' || !has_area(++number))
				break;
			snprintf(forms[n++], PHONE_SIZE, "+54%s", number);
			if (number[0] == '1')
				snprintf(forms[n++], PHONE_SIZE, "+54%.2s15%s", number, number + 2);
			else
			{
				if (has_short_area(number))
					snprintf(forms[n++], PHONE_SIZE, "+54%.3s15%s", number, number + 3);
				snprintf(forms[n++], PHONE_SIZE, "+54%.4s15%s", number, number + 4);
			}
			break;
		case '5':
			if (length == 11 && number[0] != '0' && number[1] != '0' && number[2] == '9' && number[3] >= '6')
				snprintf(forms[n++], PHONE_SIZE, "+55%.2s%s", number, number + 3);
			break;
		default:
			break;
	}
	return n;
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
