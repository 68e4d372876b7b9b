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

#include "catalog/namespace.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "store/country.h"
#include "store/plan.h"

/* A plus and the digits of the longest prefix, which the table's check allows */
#define MAX_PREFIX 16

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

	/* An older snapshot would have the session keep what is no longer there */
	plan_run_latest(plan, NULL, NULL, 0);
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

/* What the session has read */
static MemoryContext kept_context = NULL;
static Countries *kept = NULL;
static Oid	kept_table = InvalidOid;
static bool kept_stale = true;

/* Take in a change of the table */
static void
note_relation_change(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == kept_table)
		kept_stale = true;
}

/* Give the session's copy */
const Countries *
country_kept(void)
{
	MemoryContext old;

	if (kept != NULL && !kept_stale)
		return kept;
	if (kept_context == NULL)
	{
		CacheRegisterRelcacheCallback(note_relation_change, (Datum) 0);
		kept_context = AllocSetContextCreate(TopMemoryContext, "otp countries", ALLOCSET_DEFAULT_SIZES);
	}
	kept = NULL;
	MemoryContextReset(kept_context);

	/* Before the reading, so that a change during it is not missed */
	kept_table = get_relname_relid("countries", get_namespace_oid("otp", false));
	kept_stale = false;
	old = MemoryContextSwitchTo(kept_context);
	kept = country_load();
	MemoryContextSwitchTo(old);
	return kept;
}

/* Is one of the prefixes the start of another one? */
static bool
is_covered(const char *prefix, char **prefixes, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (strncmp(prefix, prefixes[i], strlen(prefixes[i])) == 0)
			return true;
	}
	return false;
}

/* Are all prefixes of a country, from a node on, covered? */
static bool
are_covered(const Countries *c, int node, char *prefix, int length, const char *country,
			char **prefixes, int n, bool *found)
{
	if (strcmp(c->nodes[node].country, country) == 0)
	{
		*found = true;
		if (!is_covered(prefix, prefixes, n))
			return false;
	}
	for (int digit = 0; digit < 10 && length < MAX_PREFIX; digit++)
	{
		if (c->nodes[node].next[digit] == 0)
			continue;
		prefix[length] = '0' + digit;
		prefix[length + 1] = '\0';
		if (!are_covered(c, c->nodes[node].next[digit], prefix, length + 1, country, prefixes, n, found))
			return false;
		prefix[length] = '\0';
	}
	return true;
}

/* Do the prefixes have all numbers of a country? */
bool
country_covered(const Countries *c, const char *country, char **prefixes, int n)
{
	char		prefix[MAX_PREFIX + 1] = "+";
	bool		found = false;

	if (n <= 0)
		return false;
	if (country[0] == '+')
		return is_covered(country, prefixes, n);
	return are_covered(c, 0, prefix, 1, country, prefixes, n, &found) && found;
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
