/*-------------------------------------------------------------------------
 *
 * key.c
 *	  The keys that this database has used.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "base/keyring.h"
#include "store/key.h"
#include "store/plan.h"

/*
 * Advisory locks of SQL use 1 and 2 in this field of the lock tag: nobody can
 * take one of ours.
 */
#define KEY_LOCK_METHOD 0x4f4b

/* Has a committed row of otp.keys the current key? */
static bool known = false;

/* The oldest of them that the key file has, once it is known */
static int	oldest_key = 0;
static bool oldest_known = false;

/* Forget it: the extension, and otp.keys with it, may have been made anew */
static void
forget_known_key(Datum arg, int cacheid, uint32 hashvalue)
{
	known = false;
	oldest_known = false;
}

/* Register that, once */
static void
register_callback(void)
{
	static bool registered = false;

	if (!registered)
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_known_key, (Datum) 0);
	registered = true;
}

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
	static FullTransactionId inserted_by;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];
	LOCKTAG		tag;
	char		fingerprint[FINGERPRINT_LENGTH + 1];
	bool		current_known;
	int			in_file;
	char	   *missing;
	int			current = keyring_current();

	if (known && known_key == current)
		return current;
	register_callback();

	if (read_keys(current, &current_known, &in_file, &missing) > 0 && in_file == 0)
		keyring_raise(psprintf("Copy the key with the fingerprint %s from the key file of the server that this database came from.", missing));

	if (!current_known)
	{
		/*
		 * A rotation, or the very first use. Somebody else may be at it, in a
		 * transaction that stays open: then the insert would wait for its
		 * end, and all senders with us. The next send will do.
		 */
		SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) current, 0, KEY_LOCK_METHOD);
		if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
			return current;

		plan_keep(&plan,
				  "INSERT INTO otp.keys (key_id, fingerprint) VALUES ($1, $2) ON CONFLICT DO NOTHING",
				  lengthof(types), types);
		keyring_fingerprint(current, fingerprint);
		values[0] = Int32GetDatum(current);
		values[1] = CStringGetTextDatum(fingerprint);
		plan_run_latest(plan, values, NULL, 0);
		inserted_by = GetTopFullTransactionIdIfAny();
		return current;
	}

	/* It may be rolled back: remember only what is committed */
	if (FullTransactionIdIsValid(inserted_by) &&
		FullTransactionIdEquals(inserted_by, GetTopFullTransactionIdIfAny()))
		return current;
	known_key = current;
	known = true;
	return current;
}

/* Give the oldest key */
int
key_oldest(void)
{
	static SPIPlanPtr plan = NULL;

	if (oldest_known && keyring_has(oldest_key))
		return oldest_key;
	register_callback();

	plan_keep(&plan, "SELECT k.key_id FROM otp.keys k ORDER BY k.first_used, k.key_id", 0, NULL);
	plan_run_latest(plan, NULL, NULL, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		oldest_key = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		if (keyring_has(oldest_key))
		{
			oldest_known = true;
			return oldest_key;
		}
	}
	return keyring_current();
}

/* Require a key used before */
void
key_require(int key_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	const char *fingerprint = "that is not in otp.keys";
	char	   *why;

	if (keyring_has(key_id))
		return;

	/* The key file cannot tell what it lacks, the database can */
	plan_keep(&plan, "SELECT k.fingerprint FROM otp.keys k WHERE k.key_id = $1", lengthof(types), types);
	values[0] = Int32GetDatum(key_id);
	plan_run_latest(plan, values, NULL, 1);
	if (SPI_processed > 0)
		fingerprint = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	(void) keyring_available(&why);
	keyring_raise(psprintf("%s%s%sCopy the key with the fingerprint %s"
						   " from the key file of the server that this database came from.",
						   why != NULL ? "The " : "", why != NULL ? why : "", why != NULL ? ". " : "",
						   fingerprint));
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
