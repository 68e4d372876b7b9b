/*-------------------------------------------------------------------------
 *
 * ulid.h
 *	  The ids of verifications: ULIDs, kept as uuid, shown as "otp_...".
 *
 * 48 bits of Unix time in milliseconds, then 80 random bits, both with the
 * highest byte first: ids sort by time in every form.
 *
 * Nothing here needs a lock, a transaction or a memory context.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_ULID_H
#define OTP_ULID_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* "otp_" and 26 digits of base 32, without the NUL */
#define OTP_ID_LENGTH 30

/* Drawers of the history: the days of an id go round in a ring of so many. */
#define ULID_SLOTS 32

/*
 * Make an id for a moment; one before 1970 counts as 1970. Raises XX000 when
 * the system has no random bytes to give.
 */
extern void ulid_make(pg_uuid_t *id, TimestampTz now);

/* The lowest id that a moment's millisecond can have: for "since then". */
extern void ulid_lowest(pg_uuid_t *id, TimestampTz time);

/* Write an id as people and programs see it, NUL-terminated. */
extern void ulid_format(const pg_uuid_t *id, char out[OTP_ID_LENGTH + 1]);

/*
 * Read what ulid_format wrote. False, with id untouched, for anything that
 * is not exactly of that form: there is one spelling of an id, so that two
 * texts are never the same verification. The text needs no NUL.
 */
extern bool ulid_parse(const char *text, size_t len, pg_uuid_t *id);

/* The moment an id was made, to the millisecond. */
extern TimestampTz ulid_time(const pg_uuid_t *id);

/* The drawer of the history that holds an id: its UTC day modulo ULID_SLOTS. */
extern int	ulid_slot(const pg_uuid_t *id);

#endif							/* OTP_ULID_H */
