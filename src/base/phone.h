/*-------------------------------------------------------------------------
 *
 * phone.h
 *	  Phone numbers: which are good, and how to keep them out of sight.
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

/*
 * Look for what is wrong with a phone number: NULL when it is good ("+" and
 * 7 to 15 digits, no leading 0). Else a constant phrase for a hint, such as
 * "has spaces" or "has no leading +", with nothing of the number in it. The text
 * needs no NUL.
 */
extern const char *phone_defect(const char *phone, size_t len);

/*
 * Replace the digits of every run of four or more by as many '*', in place:
 * codes and phone numbers in the words of others, before these are stored or
 * logged. What people put between digits (spaces, hyphens, dots, slashes,
 * brackets, any character that is not ASCII) does not end a run and is kept.
 */
extern void mask_digits(char *text);

#endif							/* OTP_PHONE_H */
