/*-------------------------------------------------------------------------
 *
 * ulid.c
 *	  The ids of verifications: ULIDs, kept as uuid, shown as "otp_...".
 *
 * The form is https://github.com/ulid/spec: 128 bits as 26 digits of
 * Crockford's base 32, of which the first can only be 0 to 7.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "port/pg_bswap.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/ulid.h"

#define PREFIX "otp_"
#define PREFIX_LENGTH 4
#define DIGITS (OTP_ID_LENGTH - PREFIX_LENGTH)
#define TIME_BYTES 6			/* 48 bits, by the spec */
#define MAX_MS ((INT64CONST(1) << 48) - 1)

/* Milliseconds from the Unix epoch to PostgreSQL's */
#define EPOCH_SHIFT_MS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000)

/* Crockford's base 32: no I, L, O and U */
static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/* Give the value of a digit, or -1 */
static int
digit_value(char c)
{
	const char *found;

	if (c == '\0')
		return -1;
	found = strchr(alphabet, c);
	return found != NULL ? (int) (found - alphabet) : -1;
}

/* Give the milliseconds since 1970 */
static int64
unix_ms(const pg_uuid_t *id)
{
	int64		ms = 0;

	for (int i = 0; i < TIME_BYTES; i++)
		ms = (ms << 8) | id->data[i];
	return ms;
}

/* Give the lowest id of a moment */
void
ulid_lowest(pg_uuid_t *id, TimestampTz now)
{
	int64		ms;

	/* The two infinities would overflow below */
	if (TIMESTAMP_NOT_FINITE(now))
		ms = TIMESTAMP_IS_NOBEGIN(now) ? 0 : MAX_MS;
	else
	{
		/* Round down before 2000 as well */
		ms = now / 1000;
		if (now % 1000 < 0)
			ms--;
		ms = Min(Max(ms + EPOCH_SHIFT_MS, 0), MAX_MS);
	}

	/* Time, highest byte first */
	memset(id->data, 0, UUID_LEN);
	for (int i = TIME_BYTES - 1; i >= 0; i--)
	{
		id->data[i] = ms & 0xFF;
		ms >>= 8;
	}
}

/* Make an id */
void
ulid_make(pg_uuid_t *id, TimestampTz now)
{
	ulid_lowest(id, now);

	/* The rest is random, and must not be guessable */
	if (!pg_strong_random(id->data + TIME_BYTES, UUID_LEN - TIME_BYTES))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes for an id"),
				 errhidestmt(true),
				 errhidecontext(true)));

	/* Its drawer, so that a change of otp.retention loses no row */
	id->data[TIME_BYTES] = (uint8) ((id->data[TIME_BYTES] & 0x07) | (ulid_slot_at(now) << 3));
}

/* Write an id */
void
ulid_format(const pg_uuid_t *id, char out[OTP_ID_LENGTH + 1])
{
	uint64		high,
				low;

	memcpy(&high, id->data, sizeof(high));
	memcpy(&low, id->data + sizeof(high), sizeof(low));
	high = pg_ntoh64(high);
	low = pg_ntoh64(low);

	/* From the last digit to the first, five bits each */
	memcpy(out, PREFIX, PREFIX_LENGTH);
	out[OTP_ID_LENGTH] = '\0';
	for (int i = OTP_ID_LENGTH - 1; i >= PREFIX_LENGTH; i--)
	{
		out[i] = alphabet[low & 31];
		low = (low >> 5) | (high << 59);
		high >>= 5;
	}
}

/* Read an id */
bool
ulid_parse(const char *text, size_t len, pg_uuid_t *id)
{
	uint64		high = 0,
				low = 0;

	if (len != OTP_ID_LENGTH || memcmp(text, PREFIX, PREFIX_LENGTH) != 0)
		return false;

	/* 26 digits have room for 130 bits: a higher first digit would wrap */
	if (text[PREFIX_LENGTH] > '7')
		return false;

	for (int i = PREFIX_LENGTH; i < OTP_ID_LENGTH; i++)
	{
		int			value = digit_value(text[i]);

		if (value < 0)
			return false;
		high = (high << 5) | (low >> 59);
		low = (low << 5) | (uint64) value;
	}

	high = pg_hton64(high);
	low = pg_hton64(low);
	memcpy(id->data, &high, sizeof(high));
	memcpy(id->data + sizeof(high), &low, sizeof(low));
	return true;
}

/* Give the time of an id */
TimestampTz
ulid_time(const pg_uuid_t *id)
{
	return (unix_ms(id) - EPOCH_SHIFT_MS) * 1000;
}

/* Give the drawer of an id */
int
ulid_slot(const pg_uuid_t *id)
{
	return id->data[TIME_BYTES] >> 3;
}

/* Give the length of a step */
int64
ulid_step(void)
{
	int64		days = (otp_retention + MINUTES_PER_DAY - 1) / MINUTES_PER_DAY;

	return Max((days + ULID_SLOTS_KEPT - 1) / ULID_SLOTS_KEPT, 1) * USECS_PER_DAY;
}

/* Give the drawer of a moment */
int
ulid_slot_at(TimestampTz time)
{
	pg_uuid_t	id;

	ulid_lowest(&id, time);
	return (int) (unix_ms(&id) / (ulid_step() / 1000) % ULID_SLOTS);
}
