/*-------------------------------------------------------------------------
 *
 * tally.h
 *	  Sums of verifications and their messages, by hour and by day.
 *
 * Nothing here reads or writes a table. Hours and days are UTC's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_TALLY_H
#define OTP_TALLY_H

#include "datatype/timestamp.h"
#include "utils/date.h"
#include "utils/hsearch.h"

#include "base/histogram.h"
#include "store/country.h"

/* Words of the tally are told apart by their first so many bytes. */
#define TALLY_WORD 512

/* A row of otp.stats_hours; no padding in the key */
typedef struct TallyHour
{
	struct
	{
		TimestampTz hour;
		const char *channel;
		const char *template_name;
		int64		workspace_id;
	}			key;
	int			messages;
	int			sent;
	int			delivered;
	int			failed;
	int			fallbacks;
	int			verified;
	Histogram	sent_times;
	Histogram	delivered_times;
	Histogram	verified_times;
} TallyHour;

/* A row of otp.usage_days; no padding in the key */
typedef struct TallyDay
{
	struct
	{
		const char *channel;
		const char *country;
		const char *pricing_category;
		const char *price_unit;
		int32		workspace_id;
		DateADT		day;
	}			key;
	int			sends;
	int			messages;
	int			sent;
	int			delivered;
	int			verified;
	int			credits;
	Datum		price;			/* numeric; 0: none told */
} TallyDay;

typedef struct Tally
{
	MemoryContext context;
	HTAB	   *words;
	HTAB	   *hours;			/* TallyHour */
	HTAB	   *days;			/* TallyDay */
	const char *no_word;		/* the empty one */
	const Countries *countries;
} Tally;

/* A verification, and its messages in the order of their numbers */
typedef struct TallyVerification
{
	int32		workspace_id;
	int			resends;
	TimestampTz created_at;
	TimestampTz verified_at;	/* 0: not */
	const char *channel;		/* words, by tally_word */
	const char *template_name;
	const char *country;
} TallyVerification;

typedef struct TallyMessage
{
	int			number;
	TimestampTz sent_at;		/* 0: not */
	TimestampTz delivered_at;
	TimestampTz failed_at;
	const char *channel;		/* words, by tally_word */
	const char *pricing_category;
	const char *price_unit;
	Datum		price;			/* numeric; 0: none */
} TallyMessage;

/* Make an empty tally, with a memory context of its own under the current one. */
extern Tally *tally_create(const Countries *countries);
extern void tally_free(Tally *t);

/* The same pointer for the same word, as long as the tally lives. */
extern const char *tally_word(Tally *t, const char *word, int length);

/* Add a verification. */
extern void tally_add(Tally *t, const TallyVerification *v, const TallyMessage *messages, int n);

#endif							/* OTP_TALLY_H */
