/*-------------------------------------------------------------------------
 *
 * key.c
 *	  The keys that this database has used.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "base/keyring.h"
#include "store/key.h"
#include "store/plan.h"

/* Read the keys of the database; tells how many there are and how many the file has */
static int
read_keys(int current, bool *current_known, int *in_file, char **first_missing)
{
	static SPIPlanPtr plan = NULL;
	int			n;

	plan_keep(&plan, "SELECT k.key_id, k.fingerprint FROM otp.keys k ORDER BY k.first_used DESC", 0, NULL);
	plan_run_latest(plan, NULL, NULL, 0);
	n = (int) SPI_processed;
	*in_file = 0;
	*current_known = false;
	*first_missing = NULL;
	for (int i = 0; i < n; i++)
	{
		bool		isnull;
		int			key_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));

		if (key_id == current)
			*current_known = true;
		if (keyring_has(key_id))
			(*in_file)++;
		else if (*first_missing == NULL)
			*first_missing = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2);
	}
	return n;
}

/* Give the key to write with */
int
key_for_writing(void)
{
	static SPIPlanPtr plan = NULL;
	static int	known_key;
	static bool known = false;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];
	char		fingerprint[17];
	bool		current_known;
	int			in_file;
	char	   *missing;
	int			current = keyring_current();

	if (known && known_key == current)
		return current;

	if (read_keys(current, &current_known, &in_file, &missing) > 0 && in_file == 0)
		keyring_raise(psprintf("Copy the key with the fingerprint %s from the key file of the server that this database came from.", missing));

	if (!current_known)
	{
		/* A rotation, or the very first use */
		plan_keep(&plan,
				  "INSERT INTO otp.keys (key_id, fingerprint) VALUES ($1, $2) ON CONFLICT DO NOTHING",
				  lengthof(types), types);
		keyring_fingerprint(current, fingerprint);
		values[0] = Int32GetDatum(current);
		values[1] = CStringGetTextDatum(fingerprint);
		plan_run(plan, values, NULL, NULL, false, 0);

		/* It may be rolled back: remember only what is committed */
		return current;
	}

	known_key = current;
	known = true;
	return current;
}

/* Describe what is missing */
char *
key_trouble(void)
{
	char	   *why = NULL;
	bool		current_known;
	int			in_file;
	char	   *missing;

	if (!keyring_available(&why))
		return why;
	if (read_keys(keyring_current(), &current_known, &in_file, &missing) == 0)
		return NULL;
	if (in_file == 0)
		return psprintf("the key file has none of this database's keys; it lacks the one with the fingerprint %s", missing);
	if (missing != NULL)
		return psprintf("the key file lacks an older key of this database, with the fingerprint %s", missing);
	return NULL;
}
