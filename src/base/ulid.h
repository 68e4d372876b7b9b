/*-------------------------------------------------------------------------
 *
 * ulid.h
 *	  The ids of verifications: ULIDs, kept as uuid, shown as "otp_...".
 *
 * 48 bits of Unix time in milliseconds, 5 bits that name the drawer of the
 * history which holds the row, then 75 random bits, all with the highest byte
 * first: ids sort by time in every form.
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

/* Drawers of the history: days, or longer steps of time, go round in a ring of so many. */
#define ULID_SLOTS 32

/* So many steps of time are kept whole; two drawers are being filled and emptied. */
#define ULID_SLOTS_KEPT 30

/*
 * Make an id for a moment, in the drawer of that moment; one before 1970
 * counts as 1970. Raises XX000 when the system has no random bytes to give.
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

/* The drawer of the history that holds an id. */
extern int	ulid_slot(const pg_uuid_t *id);

/*
 * The drawer that is filled at a moment: steps of time since 1970 modulo
 * ULID_SLOTS. A step is a day, or more when otp.retention is over 30 days.
 */
extern int	ulid_slot_at(TimestampTz time);

/* The length of a step, in microseconds: at least a day. */
extern int64 ulid_step(void);

#endif							/* OTP_ULID_H */
