/*-------------------------------------------------------------------------
 *
 * key_use.c
 *	  When API keys were last used, before the sender writes it down.
 *
 * A call with a key must not cost a write. So a use is noted in a table of a
 * fixed size in shared memory, in one of the few places that a key may have;
 * the sender writes down what is new there, once a minute for each key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/key_use.h"

/* Places that a key may have */
#define PLACES 8
#define SETS (KEY_USES / PLACES)

/* Sets that are read under one hold of the lock */
#define SETS_AT_ONCE 16

/* A key in use is written once in this time */
#define WRITE_EVERY USECS_PER_MINUTE

typedef struct Place
{
	Oid			database;		/* InvalidOid: free */
	KeyUse		use;
	TimestampTz written;		/* the use that was written last */
	TimestampTz tried_at;
} Place;

typedef struct KeyUses
{
	LWLock		lock;
	Place		places[KEY_USES];	/* set after set */
} KeyUses;

/* NULL without shared_preload_libraries */
static KeyUses *table = NULL;

/* Give the size of shared memory */
Size
key_use_shmem_size(void)
{
	return sizeof(KeyUses);
}

/* Make or find shared memory */
void
key_use_shmem_init(void)
{
	bool		found;

	table = ShmemInitStruct("otp key uses", sizeof(KeyUses), &found);
	if (!found)
	{
		memset(table, 0, sizeof(KeyUses));
		LWLockInitialize(&table->lock, LWLockNewTrancheId());
	}
	LWLockRegisterTranche(table->lock.tranche, "OtpKeyUses");
}

/* Give the places of a key */
static Place *
places_of(int32 workspace_id, int32 key_id)
{
	uint32		hash = hash_combine(murmurhash32((uint32) MyDatabaseId), murmurhash32((uint32) workspace_id));

	hash = hash_combine(hash, murmurhash32((uint32) key_id));
	return &table->places[hash % SETS * PLACES];
}

/* Find a key among its places; lock held */
static Place *
find(Place *places, int32 workspace_id, int32 key_id)
{
	for (int i = 0; i < PLACES; i++)
	{
		Place	   *p = &places[i];

		if (p->database == MyDatabaseId && p->use.key_id == key_id && p->use.workspace_id == workspace_id)
			return p;
	}
	return NULL;
}

/* Choose a place for a new key: a free one, else of the written ones that unused for longest; lock held */
static Place *
choose(Place *places)
{
	Place	   *best = &places[0];

	for (int i = 0; i < PLACES; i++)
	{
		Place	   *p = &places[i];
		bool		written = p->written >= p->use.used_at;
		bool		best_written = best->written >= best->use.used_at;

		if (p->database == InvalidOid)
			return p;

		/* Dropped databases leave theirs behind, which nobody writes */
		if (written != best_written ? written : p->use.used_at < best->use.used_at)
			best = p;
	}
	return best;
}

/* Note a use */
void
key_use_note(int32 workspace_id, int32 key_id, TimestampTz now)
{
	Place	   *places;
	Place	   *p;

	if (table == NULL)
		return;
	places = places_of(workspace_id, key_id);
	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	p = find(places, workspace_id, key_id);
	if (p == NULL)
	{
		p = choose(places);
		memset(p, 0, sizeof(*p));
		p->database = MyDatabaseId;
		p->use.workspace_id = workspace_id;
		p->use.key_id = key_id;
		p->use.used_at = now;

		/* 0 is a moment like any other */
		p->written = p->tried_at = PG_INT64_MIN;
	}
	else if (now > p->use.used_at)
		p->use.used_at = now;
	LWLockRelease(&table->lock);
}

/* Copy this database's */
int
key_uses(KeyUse *uses)
{
	int			n = 0;

	if (table == NULL)
		return 0;
	for (int first = 0; first < SETS; first += SETS_AT_ONCE)
	{
		const Place *p = &table->places[first * PLACES];

		LWLockAcquire(&table->lock, LW_SHARED);
		for (int i = 0; i < SETS_AT_ONCE * PLACES; i++)
			if (p[i].database == MyDatabaseId)
				uses[n++] = p[i].use;
		LWLockRelease(&table->lock);
	}
	return n;
}

/* Copy those to be written */
int
key_uses_due(KeyUse *uses, int max, TimestampTz now, bool all)
{
	int			n = 0;

	if (table == NULL)
		return 0;
	for (int first = 0; first < SETS && n < max; first += SETS_AT_ONCE)
	{
		Place	   *places = &table->places[first * PLACES];

		/*
		 * Only the one sender of a database changes the fields that it writes
		 * here
		 */
		LWLockAcquire(&table->lock, LW_EXCLUSIVE);
		for (int i = 0; i < SETS_AT_ONCE * PLACES && n < max; i++)
		{
			Place	   *p = &places[i];

			if (p->database != MyDatabaseId || p->written >= p->use.used_at)
				continue;

			/* A clock that was set back must not stop it for long */
			if (!all && p->tried_at <= now && p->tried_at > now - WRITE_EVERY)
				continue;
			p->tried_at = now;
			uses[n++] = p->use;
		}
		LWLockRelease(&table->lock);
	}
	return n;
}

/* Note that a use has been written */
void
key_use_written(const KeyUse *use)
{
	Place	   *places = places_of(use->workspace_id, use->key_id);
	Place	   *p;

	LWLockAcquire(&table->lock, LW_EXCLUSIVE);
	p = find(places, use->workspace_id, use->key_id);
	if (p != NULL && p->written < use->used_at)
		p->written = use->used_at;
	LWLockRelease(&table->lock);
}
