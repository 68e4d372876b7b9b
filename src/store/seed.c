/*-------------------------------------------------------------------------
 *
 * seed.c
 *	  The rows that CREATE EXTENSION makes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "store/seed.h"

/* The tables that have seeds, and their keys */
static const struct
{
	const char *table;
	const char *sql;
	const char *keys[4];
}			seeds[] = {

	{"workspaces",
		"DELETE FROM otp.workspaces WHERE seeded AND workspace_id = $1::int",
	{"workspace_id"}},
	{"templates",
		"DELETE FROM otp.templates WHERE seeded AND workspace_id = $1::int AND name = $2 AND language = $3",
	{"workspace_id", "name", "language"}},
	{"sms_texts",
		"DELETE FROM otp.sms_texts WHERE seeded AND workspace_id = $1::int AND template = $2"
		" AND language = $3 AND country_prefix = $4",
	{"workspace_id", "template", "language", "country_prefix"}},
};

bool		seed_deleting = false;

/* Delete the seed of a row */
void
seed_delete(Relation rel, HeapTuple row)
{
	Oid			types[4] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[4];
	char		nulls[4];
	int			n = 0;

	for (int i = 0; i < lengthof(seeds); i++)
	{
		if (strcmp(RelationGetRelationName(rel), seeds[i].table) != 0)
			continue;
		for (; n < lengthof(seeds[i].keys) && seeds[i].keys[n] != NULL; n++)
		{
			int			column = SPI_fnumber(RelationGetDescr(rel), seeds[i].keys[n]);
			char	   *value = SPI_getvalue(row, RelationGetDescr(rel), column);

			nulls[n] = value == NULL ? 'n' : ' ';
			values[n] = value == NULL ? (Datum) 0 : CStringGetTextDatum(value);
		}
		PG_TRY();
		{
			seed_deleting = true;
			if (SPI_execute_with_args(seeds[i].sql, n, types, values, nulls, false, 0) != SPI_OK_DELETE)
				elog(ERROR, "could not delete a seed");
		}
		PG_FINALLY();
		{
			seed_deleting = false;
		}
		PG_END_TRY();
		return;
	}
}
