/*-------------------------------------------------------------------------
 *
 * forget.h
 *	  Phones whose number was taken out of the tables.
 *
 * In place of the number, in all its forms, stands "#" and a keyed hash, of
 * the workspace and the number's folded form: what was sent to the phone, and
 * guessed, still counts against it for a day. All functions need a
 * transaction, SPI_connect and the owner's scope.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_FORGET_H
#define OTP_FORGET_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "store/verification.h"

/* "#" and 32 hexadecimal digits, without the NUL */
#define FORGOTTEN_LENGTH 33

/*
 * Write what stands in place of a number (any form of it), NUL-terminated. The key is the
 * oldest that the database has used and the key file still has: so a phone
 * is the same after a rotation, until its old key is taken out of the file.
 */
extern void forget_name(int32 workspace_id, const char *phone, char name[FORGOTTEN_LENGTH + 1]);

/*
 * May limits have to count what was done under the name of a forgotten
 * phone? Mostly not; costs nothing then. Call it with the phone locked.
 */
extern bool forget_counts(TimestampTz now);

/* A verification of a phone */
typedef struct ForgetItem
{
	int32		workspace_id;
	pg_uuid_t	id;
} ForgetItem;

/* Find a phone's verifications, in all its forms, in the given workspaces (an int4[]); gives their number. */
extern int	forget_find(Datum workspaces, const char *phone, ForgetItem **items);

/*
 * Put the name in place of the number in a row that verification_lock has
 * locked, and take out metadata and context when the number is in them.
 */
extern void forget_verification(const Verification *v, const char *name);

/* Delete test numbers, all forms of one; gives their number. */
extern int	forget_test_numbers(int32 workspace_id, const char *phone);

/*
 * Count the phone's wrong guesses, of the last day or in a row, under its
 * name; gives how many that were not yet.
 */
extern int	forget_failures(int32 workspace_id, const char *phone, const char *name, TimestampTz now);

/*
 * Note that a phone was forgotten: slots are the drawers where it was, as
 * bits; counts tells whether the limits of the next day are concerned.
 */
extern void forget_note(int32 workspace_id, const char *name, uint32 slots, bool counts, TimestampTz now);

/*
 * What only the sender may write: finish some of what was noted, and clear
 * away notes that have served. True when there was something; *found_phones
 * is set when rows of otp.phone_failures may be of forgotten phones.
 */
extern bool forget_finish(TimestampTz now, bool *found_phones);

/* Where a walk through otp.phone_failures stands */
typedef struct FailuresPosition
{
	int32		workspace_id;
	char		phone[64];
} FailuresPosition;

/*
 * Walk through some rows of otp.phone_failures: merge what only forgives,
 * delete what is out of date, and put names in place of forgotten numbers.
 * False at the end.
 */
extern bool forget_walk_failures(FailuresPosition *position, TimestampTz now);

#endif							/* OTP_FORGET_H */
