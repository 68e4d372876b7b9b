/*-------------------------------------------------------------------------
 *
 * roster_breaker.c
 *	  Circuit breakers of provider accounts, for all to see.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/roster.h"
#include "base/roster_shared.h"

/* Tell whether breaker is open */
bool
roster_breaker_open(Oid database, int account_id, int *retry_after_s)
{
	bool		open = false;
	TimestampTz now = 0;
	uint32		n;

	/* Nearly always there is none */
	if (roster == NULL || pg_atomic_read_u32(&roster->nbreakers) == 0)
		return false;

	LWLockAcquire(&roster->lock, LW_SHARED);
	n = pg_atomic_read_u32(&roster->nbreakers);
	for (uint32 i = 0; i < n; i++)
	{
		RosterBreaker *b = &breakers[i];

		if (b->database != database || b->account_id != account_id)
			continue;
		if (b->state == BREAKER_OPEN)
		{
			/*
			 * From retry_at on, the next message is the trial: refusing it
			 * would keep the breaker open for ever.
			 */
			now = GetCurrentTimestamp();
			if (b->retry_at > now)
			{
				open = true;
				*retry_after_s = (int) ((b->retry_at - now + USECS_PER_SEC - 1) / USECS_PER_SEC);
			}
		}
		break;
	}
	LWLockRelease(&roster->lock);
	return open;
}

/* Copy the breakers */
int
roster_breakers(RosterBreaker *copies, int max)
{
	int			n;

	if (roster == NULL)
		return 0;
	LWLockAcquire(&roster->lock, LW_SHARED);
	n = Min(max, (int) pg_atomic_read_u32(&roster->nbreakers));
	memcpy(copies, breakers, n * sizeof(RosterBreaker));
	LWLockRelease(&roster->lock);
	return n;
}

/* Drop a database's breakers */
void
roster_forget_breakers(Oid database)
{
	uint32		n;

	n = pg_atomic_read_u32(&roster->nbreakers);
	for (uint32 i = 0; i < n;)
	{
		if (breakers[i].database == database)
			breakers[i] = breakers[--n];
		else
			i++;
	}
	pg_atomic_write_u32(&roster->nbreakers, n);
}

/* Publish a breaker */
void
roster_breaker_set(const RosterBreaker *breaker)
{
	uint32		n;
	RosterBreaker *entry = NULL;

	LWLockAcquire(&roster->lock, LW_EXCLUSIVE);
	n = pg_atomic_read_u32(&roster->nbreakers);
	for (uint32 i = 0; i < n; i++)
	{
		if (breakers[i].database == MyDatabaseId && breakers[i].account_id == breaker->account_id)
		{
			entry = &breakers[i];
			break;
		}

		/* Should there be no room: one that is closed is no loss */
		if (entry == NULL && n == (uint32) roster->nbreakers_max &&
			breakers[i].state == BREAKER_CLOSED)
			entry = &breakers[i];
	}
	if (entry == NULL && n < (uint32) roster->nbreakers_max)
	{
		entry = &breakers[n];
		n++;
	}
	if (entry != NULL)
	{
		*entry = *breaker;
		entry->database = MyDatabaseId;
		pg_atomic_write_u32(&roster->nbreakers, n);
	}
	LWLockRelease(&roster->lock);
}
