/*-------------------------------------------------------------------------
 *
 * health.c
 *	  What shared memory and the key file say, as rows for the views.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/keyring.h"
#include "base/receipt_count.h"
#include "base/listeners.h"
#include "base/roster.h"
#include "base/shmem.h"
#include "store/key.h"
#include "verb/verb.h"

EXPORTED_FUNCTION(otp_worker_status);
EXPORTED_FUNCTION(otp_breaker_status);
EXPORTED_FUNCTION(otp_key_status);

/* Accounts that can have a breaker in one answer */
#define MAX_BREAKERS 1024

/* Set a timestamp column; 0 is NULL */
static void
put_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	values[column] = TimestampTzGetDatum(time);
	nulls[column] = time == 0;
}

/* Set the columns of the listeners: how many there are, on which port, and what is in the way of another */
static void
put_listeners(Datum *values, bool *nulls, int column)
{
	ListenerState *states = palloc(sizeof(ListenerState) * LISTENERS_MAX);
	int			n = listeners_snapshot(MyDatabaseId, states, LISTENERS_MAX);
	int			listening = 0;

	for (int i = 0; i < n; i++)
	{
		if (states[i].listening)
		{
			listening++;
			values[column + 1] = Int32GetDatum(states[i].port);
			nulls[column + 1] = false;
		}
		if (states[i].last_error_at != 0)
		{
			values[column + 2] = CStringGetTextDatum(states[i].last_error);
			nulls[column + 2] = false;
		}
	}
	values[column] = Int32GetDatum(listening);
	nulls[column] = false;
}

/* Tell about the workers of this database */
Datum
otp_worker_status(PG_FUNCTION_ARGS)
{
	RosterDatabase *databases;
	RosterDatabase *mine = NULL;
	int			n;
	int			used;
	int			size;
	pid_t		launcher;
	Datum		values[23];
	bool		nulls[23];

	shmem_require();
	databases = palloc(sizeof(RosterDatabase) * otp_max_databases);
	n = roster_snapshot(databases, otp_max_databases);
	for (int i = 0; i < n; i++)
		if (databases[i].database == MyDatabaseId)
			mine = &databases[i];
	launcher = roster_launcher_pid();
	ledger_usage(&used, &size);

	memset(nulls, true, sizeof(nulls));
	values[0] = Int32GetDatum(launcher);
	nulls[0] = launcher == 0;
	values[1] = Int32GetDatum(roster_missing_slots());
	values[2] = BoolGetDatum(otp_delivery);
	values[3] = Int32GetDatum(used);
	values[4] = Int32GetDatum(size);
	nulls[1] = nulls[2] = nulls[3] = nulls[4] = false;
	if (mine != NULL)
	{
		values[5] = Int32GetDatum(mine->sender_pid);
		nulls[5] = mine->sender_pid == 0;
		put_time(values, nulls, 6, mine->started_at);
		put_time(values, nulls, 7, mine->report.last_turn);
		put_time(values, nulls, 8, mine->report.next_due);
		values[9] = Int32GetDatum(mine->report.in_flight);
		values[10] = Int32GetDatum(mine->report.waiting);
		values[11] = Int64GetDatum(mine->report.accepted);
		values[12] = Int64GetDatum(mine->report.retried);
		values[13] = Int64GetDatum(mine->report.failed);
		values[14] = Int64GetDatum(mine->report.fallbacks);
		nulls[9] = nulls[10] = nulls[11] = nulls[12] = nulls[13] = nulls[14] = false;
		put_time(values, nulls, 15, mine->last_error_at);
		if (mine->last_error_at != 0)
		{
			values[16] = CStringGetTextDatum(mine->last_error);
			nulls[16] = false;
		}

		/* These are of memory that goes with the sender */
		values[17] = Int32GetDatum(mine->report.following);
		values[18] = Int64GetDatum((int64) mine->report.read_to);
		nulls[17] = nulls[18] = mine->sender_pid == 0;
		put_time(values, nulls, 19, mine->sender_pid != 0 ? mine->report.oldest_due : 0);
	}
	put_listeners(values, nulls, 20);
	return verb_row(fcinfo, values, nulls);
}

/* Find an account's breaker of this database */
static const RosterBreaker *
find_breaker(const RosterBreaker *breakers, int n, int account_id)
{
	for (int i = 0; i < n; i++)
	{
		if (breakers[i].database == MyDatabaseId && breakers[i].account_id == account_id)
			return &breakers[i];
	}
	return NULL;
}

/* Tell about the breakers of this database, and its receipts */
Datum
otp_breaker_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	static const char *const names[] = {"closed", "open", "half_open"};
	RosterBreaker *breakers;
	ReceiptCount *counts;
	int			n;
	int			ncounts;

	shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	breakers = palloc(sizeof(RosterBreaker) * MAX_BREAKERS * 2);
	n = roster_breakers(breakers, MAX_BREAKERS);
	counts = palloc(sizeof(ReceiptCount) * MAX_BREAKERS);
	ncounts = receipt_counts(counts, MAX_BREAKERS);

	/* An account whose receipts were counted, and no breaker: it is closed */
	for (int i = 0; i < ncounts; i++)
	{
		if (find_breaker(breakers, n, counts[i].account_id) == NULL)
		{
			memset(&breakers[n], 0, sizeof(RosterBreaker));
			breakers[n].database = MyDatabaseId;
			breakers[n++].account_id = counts[i].account_id;
		}
	}

	for (int i = 0; i < n; i++)
	{
		Datum		values[12];
		bool		nulls[12] = {false};
		ReceiptCount none = {0};
		const ReceiptCount *count = &none;

		if (breakers[i].database != MyDatabaseId)
			continue;
		values[0] = Int32GetDatum(breakers[i].account_id);
		values[1] = CStringGetTextDatum(names[breakers[i].state]);
		values[2] = BoolGetDatum(breakers[i].account_refused);
		put_time(values, nulls, 3, breakers[i].state == BREAKER_CLOSED ? 0 : breakers[i].retry_at);
		values[4] = Int32GetDatum(breakers[i].failures);
		values[5] = Int32GetDatum(breakers[i].http_status);
		nulls[5] = breakers[i].http_status == 0;
		values[6] = Int32GetDatum(breakers[i].provider_code);
		nulls[6] = breakers[i].provider_code == 0;
		put_time(values, nulls, 7, breakers[i].last_error_at);
		values[8] = CStringGetTextDatum(breakers[i].last_error);
		nulls[8] = breakers[i].last_error_at == 0;
		for (int k = 0; k < ncounts; k++)
		{
			if (counts[k].account_id == breakers[i].account_id)
				count = &counts[k];
		}
		values[9] = Int64GetDatum(count->taken);
		values[10] = Int64GetDatum(count->refused);
		put_time(values, nulls, 11, count->last_at);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Tell about the keys, on a standby as well */
Datum
otp_key_status(PG_FUNCTION_ARGS)
{
	VerbScope	scope;
	char	   *trouble;
	char	   *why;
	Datum		values[3];
	bool		nulls[3] = {false};

	verb_begin(&scope, "key_status", VERB_READS);
	trouble = key_trouble();
	values[1] = trouble != NULL ? SPI_datumTransfer(CStringGetTextDatum(trouble), false, -1) : (Datum) 0;
	verb_end(&scope);

	values[0] = BoolGetDatum(trouble == NULL);
	nulls[1] = trouble == NULL;
	if (keyring_available(&why))
	{
		char		fingerprint[FINGERPRINT_LENGTH + 1];

		keyring_fingerprint(keyring_current(), fingerprint);
		values[2] = CStringGetTextDatum(fingerprint);
	}
	else
		nulls[2] = true;
	return verb_row(fcinfo, values, nulls);
}
