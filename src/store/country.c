/*-------------------------------------------------------------------------
 *
 * country.c
 *	  Which country a phone is of, by otp.countries.
 *
 * The prefixes become a tree with a branch for each digit, so that a look-up
 * takes as many steps as the longest prefix that fits has digits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "executor/spi.h"
#include "utils/builtins.h"

#include "store/country.h"
#include "store/plan.h"

typedef struct CountryNode
{
	int			next[10];		/* 0: none, for the root is nobody's branch */
	char		country[COUNTRY_LENGTH + 1];
} CountryNode;

struct Countries
{
	int			used;
	int			size;
	CountryNode *nodes;
};

/* Add a prefix */
static void
add_prefix(Countries *c, const text *prefix, const text *country)
{
	const char *digits = VARDATA_ANY(prefix);
	int			length = VARSIZE_ANY_EXHDR(prefix);
	int			node = 0;

	/* The table's own check says that these are a plus and digits */
	for (int i = 1; i < length; i++)
	{
		int			digit = digits[i] - '0';

		if (digit < 0 || digit > 9)
			return;
		if (c->nodes[node].next[digit] == 0)
		{
			if (c->used == c->size)
			{
				c->size *= 2;
				c->nodes = repalloc(c->nodes, c->size * sizeof(CountryNode));
			}
			memset(&c->nodes[c->used], 0, sizeof(CountryNode));
			c->nodes[node].next[digit] = c->used++;
		}
		node = c->nodes[node].next[digit];
	}
	text_to_cstring_buffer(country, c->nodes[node].country, sizeof(c->nodes[node].country));
}

/* Read the table */
Countries *
country_load(void)
{
	static SPIPlanPtr plan = NULL;
	Countries  *c = palloc(sizeof(Countries));

	c->used = 1;
	c->size = 1024;
	c->nodes = palloc(c->size * sizeof(CountryNode));
	memset(c->nodes, 0, sizeof(CountryNode));

	plan_keep(&plan, "SELECT c.prefix, c.country FROM otp.countries c", 0, NULL);
	plan_run(plan, NULL, NULL, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		prefix = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		Datum		country = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);

		add_prefix(c, DatumGetTextPP(prefix), DatumGetTextPP(country));
	}
	SPI_freetuptable(SPI_tuptable);
	return c;
}

/* Forget the table */
void
country_free(Countries *c)
{
	pfree(c->nodes);
	pfree(c);
}

/* Find a country */
const char *
country_find(const Countries *c, const char *phone, int length)
{
	const char *found = "";
	int			node = 0;

	/* A number that was forgotten is something else */
	if (length == 0 || phone[0] != '+')
		return found;
	for (int i = 1; i < length; i++)
	{
		int			digit = phone[i] - '0';

		if (digit < 0 || digit > 9 || (node = c->nodes[node].next[digit]) == 0)
			break;
		if (c->nodes[node].country[0] != '\0')
			found = c->nodes[node].country;
	}
	return found;
}
