/*-------------------------------------------------------------------------
 *
 * tally.c
 *	  Sums of verifications and their messages, by hour and by day.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "mb/pg_wchar.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "store/tally.h"

/* Make a hash table */
static HTAB *
make_table(MemoryContext context, const char *name, Size key, Size entry, int flags)
{
	HASHCTL		info = {0};

	info.keysize = key;
	info.entrysize = entry;
	info.hcxt = context;
	return hash_create(name, 64, &info, HASH_ELEM | HASH_CONTEXT | flags);
}

/* Make a tally */
Tally *
tally_create(const Countries *countries)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "otp tally", ALLOCSET_DEFAULT_SIZES);
	Tally	   *t = MemoryContextAllocZero(context, sizeof(Tally));

	t->context = context;
	t->countries = countries;
	t->words = make_table(context, "otp words", TALLY_WORD, TALLY_WORD, HASH_STRINGS);
	t->hours = make_table(context, "otp hours", sizeof(((TallyHour *) 0)->key), sizeof(TallyHour), HASH_BLOBS);
	t->days = make_table(context, "otp days", sizeof(((TallyDay *) 0)->key), sizeof(TallyDay), HASH_BLOBS);
	t->no_word = tally_word(t, "", 0);
	return t;
}

/* Free a tally */
void
tally_free(Tally *t)
{
	MemoryContextDelete(t->context);
}

/* Keep a word */
const char *
tally_word(Tally *t, const char *word, int length)
{
	char		key[TALLY_WORD];

	length = pg_mbcliplen(word, length, TALLY_WORD - 1);
	memcpy(key, word, length);
	key[length] = '\0';
	return hash_search(t->words, key, HASH_ENTER, NULL);
}

/* Give the row of an hour */
static TallyHour *
hour_of(Tally *t, const TallyVerification *v, const char *channel)
{
	TallyHour	wanted;
	TallyHour  *row;
	int64		since = v->created_at % USECS_PER_HOUR;
	bool		found;

	memset(&wanted.key, 0, sizeof(wanted.key));
	wanted.key.hour = v->created_at - (since < 0 ? since + USECS_PER_HOUR : since);
	wanted.key.channel = channel;
	wanted.key.template_name = v->template_name;
	wanted.key.workspace_id = v->workspace_id;
	row = hash_search(t->hours, &wanted.key, HASH_ENTER, &found);
	if (!found)
		memset((char *) row + sizeof(row->key), 0, sizeof(TallyHour) - sizeof(row->key));
	return row;
}

/* Give the row of a day; a message may be NULL */
static TallyDay *
day_of(Tally *t, const TallyVerification *v, const TallyMessage *m)
{
	TallyDay	wanted;
	TallyDay   *row;
	int64		since = v->created_at % USECS_PER_DAY;
	bool		found;

	memset(&wanted.key, 0, sizeof(wanted.key));
	wanted.key.channel = m != NULL ? m->channel : v->channel;
	wanted.key.country = v->country;
	wanted.key.pricing_category = m != NULL ? m->pricing_category : t->no_word;
	wanted.key.price_unit = m != NULL ? m->price_unit : t->no_word;
	wanted.key.workspace_id = v->workspace_id;
	wanted.key.day = (DateADT) ((v->created_at - (since < 0 ? since + USECS_PER_DAY : since)) / USECS_PER_DAY);
	row = hash_search(t->days, &wanted.key, HASH_ENTER, &found);
	if (!found)
		memset((char *) row + sizeof(row->key), 0, sizeof(TallyDay) - sizeof(row->key));
	return row;
}

/* Add a price */
static void
add_price(Tally *t, TallyDay *day, Datum price)
{
	MemoryContext old = MemoryContextSwitchTo(t->context);
	Datum		sum;

	if (day->price == (Datum) 0)
		sum = datumCopy(price, false, -1);
	else
	{
		sum = DirectFunctionCall2(numeric_add, day->price, price);
		pfree(DatumGetPointer(day->price));
	}
	day->price = sum;
	MemoryContextSwitchTo(old);
}

/* Has a provider taken a message? Its receipt can be all that came back. */
static inline bool
is_sent(const TallyMessage *m)
{
	return m->sent_at != 0 || m->delivered_at != 0;
}

/* Find a message by its number; NULL when it is not there */
static const TallyMessage *
find_message(const TallyMessage *messages, int n, int number)
{
	for (int i = 0; i < n; i++)
	{
		if (messages[i].number == number)
			return &messages[i];
	}
	return NULL;
}

/* Add to the hours */
static void
add_to_hours(Tally *t, const TallyVerification *v, const TallyMessage *messages, int n,
			 const TallyMessage *last_sent)
{
	/* What waits to be sent, or has expired unsent, is a message as well */
	if (n == 0)
		hour_of(t, v, v->channel)->messages++;

	for (int i = 0; i < n; i++)
	{
		const TallyMessage *m = &messages[i];
		TallyHour  *hour = hour_of(t, v, m->channel);

		hour->messages++;
		if (is_sent(m))
			hour->sent++;
		if (m->delivered_at != 0)
			hour->delivered++;
		else if (m->failed_at != 0)
			hour->failed++;

		/* Resends start at a time that is not known here */
		if (m->number == 1 && m->sent_at != 0)
			histogram_note(&hour->sent_times, m->sent_at - v->created_at);
		if (m->number <= 2 && m->delivered_at != 0)
			histogram_note(&hour->delivered_times, m->delivered_at - v->created_at);

		/* Counted where it was needed, not where it went */
		if (m->number % 2 == 0)
		{
			const TallyMessage *replaced = find_message(messages, n, m->number - 1);

			hour_of(t, v, replaced != NULL ? replaced->channel : v->channel)->fallbacks++;
		}
	}

	/* Once for each verification, by the message that has most likely done it */
	if (v->verified_at != 0 && last_sent != NULL)
	{
		TallyHour  *hour = hour_of(t, v, last_sent->channel);

		hour->verified++;
		histogram_note(&hour->verified_times, v->verified_at - v->created_at);
	}
}

/* Add to the days */
static void
add_to_days(Tally *t, const TallyVerification *v, const TallyMessage *messages, int n,
			const TallyMessage *last_sent)
{
	TallyDay   *day = day_of(t, v, find_message(messages, n, 1));

	day->sends++;
	day->credits++;
	for (int i = 1; i <= v->resends; i++)
		day_of(t, v, find_message(messages, n, 2 * i + 1))->credits++;

	if (n == 0)
		day->messages++;
	for (int i = 0; i < n; i++)
	{
		const TallyMessage *m = &messages[i];

		day = day_of(t, v, m);
		day->messages++;
		if (is_sent(m))
			day->sent++;
		if (m->delivered_at != 0)
			day->delivered++;
		if (m->price != (Datum) 0)
			add_price(t, day, m->price);
	}

	if (v->verified_at != 0)
		day_of(t, v, last_sent != NULL ? last_sent : n > 0 ? &messages[n - 1] : NULL)->verified++;
}

/* Add a verification */
void
tally_add(Tally *t, const TallyVerification *v, const TallyMessage *messages, int n)
{
	const TallyMessage *last_sent = NULL;

	for (int i = 0; i < n; i++)
	{
		if (is_sent(&messages[i]))
			last_sent = &messages[i];
	}
	add_to_hours(t, v, messages, n, last_sent);
	add_to_days(t, v, messages, n, last_sent);
}
