/*-------------------------------------------------------------------------
 *
 * phone.h
 *	  Phone numbers: which are good, which are the same, and how to keep them
 *	  out of sight.
 *
 * Nothing here needs a lock, a transaction or a memory context, or raises.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_PHONE_H
#define OTP_PHONE_H

/* E.164 has at most 15 digits; less than 7 is no number one can dial from abroad. */
#define PHONE_MIN_DIGITS 7
#define PHONE_MAX_DIGITS 15

/* Room for the "+", the digits and a NUL */
#define PHONE_SIZE (PHONE_MAX_DIGITS + 2)

/* Most forms of one number */
#define PHONE_MAX_FORMS 4

/*
 * Look for what is wrong with a phone number: NULL when it is good ("+" and
 * 7 to 15 digits, no leading 0). Else a constant phrase for a hint, such as
 * "has spaces" or "has no leading +", with nothing of the number in it. The text
 * needs no NUL.
 */
extern const char *phone_defect(const char *phone, size_t len);

/*
 * The one form that stands for all forms of a number, by which limits count:
 * Brazilian mobiles with and without their ninth digit, Mexican numbers with
 * and without the 1 of mobiles, Argentine ones with and without the 9 or the
 * 15 of mobiles. Gives phone itself when that is the form, or when it is
 * no number (a name in place of one); else folded, which it has written.
 */
extern const char *phone_fold(const char *phone, char folded[PHONE_SIZE]);

/*
 * All forms of a number, the folded one first: exactly those that
 * phone_fold makes the same. Gives how many; for all other countries it is 1.
 */
extern int	phone_forms(const char *phone, char forms[PHONE_MAX_FORMS][PHONE_SIZE]);

/*
 * Replace the digits of every run of four or more by as many '*', in place:
 * codes and phone numbers in the words of others, before these are stored or
 * logged. What people put between digits (spaces, hyphens, dots, slashes,
 * brackets, any character that is not ASCII) does not end a run and is kept.
 */
extern void mask_digits(char *text);

#endif							/* OTP_PHONE_H */
