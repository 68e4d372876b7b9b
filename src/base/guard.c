/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  The guard against pumping: what was sent and verified, by workspace and
 *	  country, in shared memory.
 *
 * It is a copy of what the history says, kept up to date by whoever commits,
 * so that a send asks memory and not an index. Nothing is lost with it: who
 * asks about a workspace that is not here reads its history and brings it
 * (verb/guard.c). When there is no room, the workspace that was asked about
 * the longest time ago goes, with all its countries: a country that is not
 * here has no sends, and that must be true.
 *
 * One lock guards all of it, held for some hundred instructions at most, and
 * never across anything that can raise or wait.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/ilist.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "base/guard.h"
#include "base/guc.h"

/* How often the most verified in a day is read again: it changes once a day */
#define DAYS_US (10 * USECS_PER_MINUTE)

/*
 * A workspace that nobody has asked about for this long is read again: it may
 * have been counted for a transaction that has switched the guard on and then
 * rolled back, while others went on without it.
 */
#define IDLE_US (10 * USECS_PER_MINUTE)

/* Hashed as bytes: always zeroed first */
typedef struct WorkspaceKey
{
	Oid			database;
	int32		workspace_id;
} WorkspaceKey;

typedef struct CountryKey
{
	Oid			database;
	int32		workspace_id;
	char		country[GUARD_COUNTRY_LENGTH + 1];
} CountryKey;

typedef enum State
{
	STATE_UNKNOWN,				/* its history has to be read; nothing is
								 * counted */
	STATE_LOADING,				/* it is being read; what commits is counted */
	STATE_KNOWN
} State;

typedef struct GuardWorkspace
{
	WorkspaceKey key;
	State		state;
	uint32		load;			/* number of the last reading */
	TimestampTz asked_at;
	TimestampTz days_at;		/* when best_day was read */
	dlist_node	node;			/* of guard->workspaces */
	dlist_head	countries;
} GuardWorkspace;

/* What was decided, and is not written yet */
typedef struct Tally
{
	int32		blocked;
	int32		recorded;
	TimestampTz first_at;
	TimestampTz last_at;
	int32		unverified;
	int32		threshold;
} Tally;

typedef struct GuardCountry
{
	CountryKey	key;
	dlist_node	node;			/* of its workspace's countries */
	dlist_node	undone;			/* of guard->undone, while there is any tally */
	bool		is_undone;
	Tally		tallies[GUARD_REASONS];
	int64		newest;			/* as in GuardCounts */
	int32		best_day;
	int32		sends[GUARD_BUCKETS];
	int32		verified[GUARD_BUCKETS];
} GuardCountry;

typedef struct Guard
{
	LWLock	   *lock;
	uint32		loads;			/* readings so far */
	int			nworkspaces;
	int			nundone;
	dlist_head	workspaces;		/* the one asked about last comes last */
	dlist_head	undone;			/* countries with decisions to be written */
} Guard;

static Guard *guard = NULL;
static HTAB *workspaces = NULL;
static HTAB *countries = NULL;

/* Give the shared memory needed */
Size
guard_shmem_size(void)
{
	Size		size = MAXALIGN(sizeof(Guard));

	size = add_size(size, hash_estimate_size(otp_guard_size, sizeof(GuardWorkspace)));
	return add_size(size, hash_estimate_size(otp_guard_size, sizeof(GuardCountry)));
}

/* Set up or find the shared memory */
void
guard_shmem_init(void)
{
	HASHCTL		info;
	bool		found;

	guard = ShmemInitStruct("otp guard", sizeof(Guard), &found);
	if (!found)
	{
		memset(guard, 0, sizeof(Guard));
		guard->lock = &(GetNamedLWLockTranche("otp_guard"))->lock;
		dlist_init(&guard->workspaces);
		dlist_init(&guard->undone);
	}

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(WorkspaceKey);
	info.entrysize = sizeof(GuardWorkspace);
	workspaces = ShmemInitHash("otp guard workspaces", otp_guard_size, otp_guard_size,
							   &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(CountryKey);
	info.entrysize = sizeof(GuardCountry);
	countries = ShmemInitHash("otp guard countries", otp_guard_size, otp_guard_size,
							  &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/* ---- entries; all with the lock held ---- */

/* Find a workspace */
static GuardWorkspace *
find_workspace(int32 workspace_id)
{
	WorkspaceKey key;

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.workspace_id = workspace_id;
	return hash_search(workspaces, &key, HASH_FIND, NULL);
}

/* Make key of a country */
static void
make_key(CountryKey *key, int32 workspace_id, const char *country)
{
	memset(key, 0, sizeof(CountryKey));
	key->database = MyDatabaseId;
	key->workspace_id = workspace_id;
	strlcpy(key->country, country, sizeof(key->country));
}

/* Find a country */
static GuardCountry *
find_country(int32 workspace_id, const char *country)
{
	CountryKey	key;

	make_key(&key, workspace_id, country);
	return hash_search(countries, &key, HASH_FIND, NULL);
}

/* Nothing is left to be written of a country */
static void
take_off_undone(GuardCountry *c)
{
	if (!c->is_undone)
		return;
	dlist_delete(&c->undone);
	c->is_undone = false;
	guard->nundone--;
}

/* Remove a workspace with its countries */
static void
remove_workspace(GuardWorkspace *w)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &w->countries)
	{
		GuardCountry *c = dlist_container(GuardCountry, node, iter.cur);

		take_off_undone(c);
		dlist_delete(&c->node);
		(void) hash_search(countries, &c->key, HASH_REMOVE, NULL);
	}
	dlist_delete(&w->node);
	guard->nworkspaces--;
	(void) hash_search(workspaces, &w->key, HASH_REMOVE, NULL);
}

/* Make room by removing the workspace asked about the longest time ago, but for one */
static bool
make_room(const GuardWorkspace *but)
{
	dlist_iter	iter;

	dlist_foreach(iter, &guard->workspaces)
	{
		GuardWorkspace *w = dlist_container(GuardWorkspace, node, iter.cur);

		if (w != but)
		{
			remove_workspace(w);
			return true;
		}
	}
	return false;
}

/* Find or make a country of a workspace; NULL when this workspace alone fills the table */
static GuardCountry *
enter_country(GuardWorkspace *w, const char *country, int64 bucket)
{
	CountryKey	key;
	GuardCountry *c;
	bool		found;

	make_key(&key, w->key.workspace_id, country);
	while ((c = hash_search(countries, &key, HASH_ENTER_NULL, &found)) == NULL)
	{
		/* A workspace may have no country at all */
		if (!make_room(w))
			return NULL;
	}
	if (!found)
	{
		memset((char *) c + offsetof(GuardCountry, node), 0, sizeof(GuardCountry) - offsetof(GuardCountry, node));
		c->newest = bucket;
		dlist_push_tail(&w->countries, &c->node);
	}
	return c;
}

/* Let time go on: what is older than a day does not count */
static void
advance(GuardCountry *c, int64 bucket)
{
	if (bucket - c->newest >= GUARD_BUCKETS)
	{
		memset(c->sends, 0, sizeof(c->sends));
		memset(c->verified, 0, sizeof(c->verified));
		c->newest = bucket;
	}
	while (c->newest < bucket)
	{
		c->newest++;
		c->sends[c->newest % GUARD_BUCKETS] = 0;
		c->verified[c->newest % GUARD_BUCKETS] = 0;
	}
}

/* Copy the counts of a country */
static void
copy_counts(const GuardCountry *c, GuardCounts *counts)
{
	memcpy(counts->country, c->key.country, sizeof(counts->country));
	counts->newest = c->newest;
	counts->best_day = c->best_day;
	memcpy(counts->sends, c->sends, sizeof(counts->sends));
	memcpy(counts->verified, c->verified, sizeof(counts->verified));
}

/* Has the history of a workspace been read, and been kept up to date since? */
static bool
is_known(const GuardWorkspace *w, TimestampTz now)
{
	return w != NULL && w->state == STATE_KNOWN && now - w->asked_at < IDLE_US;
}

/* ---- asking ---- */

/* Sum up a country */
bool
guard_look(int32 workspace_id, const char *country, TimestampTz now,
		   GuardFigures *figures, bool *read_days)
{
	int64		bucket = guard_bucket(now);
	GuardWorkspace *w;
	GuardCountry *c;
	bool		known;

	memset(figures, 0, sizeof(GuardFigures));
	*read_days = false;

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	w = find_workspace(workspace_id);
	known = is_known(w, now);
	c = known ? find_country(workspace_id, country) : NULL;

	/* A clock that was far ahead has left nothing to count in */
	if (c != NULL && c->newest > bucket + 1)
	{
		w->state = STATE_UNKNOWN;
		known = false;
	}
	if (known)
	{
		w->asked_at = now;
		dlist_delete(&w->node);
		dlist_push_tail(&guard->workspaces, &w->node);
		if (now - w->days_at >= DAYS_US || w->days_at > now)
		{
			w->days_at = now;
			*read_days = true;
		}
	}
	if (known && c != NULL)
	{
		advance(c, bucket);

		/* All of the ring is of the last day now */
		for (int i = 0; i < GUARD_BUCKETS; i++)
		{
			figures->sends_day += c->sends[i];
			figures->verified_day += c->verified[i];
		}
		for (int64 b = Max(c->newest - GUARD_BUCKETS_HOUR + 1, 0); b <= c->newest; b++)
		{
			figures->sends_hour += c->sends[b % GUARD_BUCKETS];
			figures->verified_hour += c->verified[b % GUARD_BUCKETS];
		}
		figures->best_day = c->best_day;
	}
	LWLockRelease(guard->lock);
	return known;
}

/* Is a workspace known? */
bool
guard_is_known(int32 workspace_id, TimestampTz now, TimestampTz *since)
{
	const GuardWorkspace *w;
	bool		known;

	LWLockAcquire(guard->lock, LW_SHARED);
	w = find_workspace(workspace_id);
	known = is_known(w, now);
	*since = w != NULL && w->state == STATE_LOADING ? w->asked_at : 0;
	LWLockRelease(guard->lock);
	return known;
}

/* List the countries of a workspace; gives their number, which may be more than max */
static int
list_countries(int32 workspace_id, CountryKey *keys, int max)
{
	GuardWorkspace *w;
	int			n = 0;

	LWLockAcquire(guard->lock, LW_SHARED);
	w = find_workspace(workspace_id);
	if (w != NULL)
	{
		dlist_iter	iter;

		dlist_foreach(iter, &w->countries)
		{
			if (n < max)
				keys[n] = dlist_container(GuardCountry, node, iter.cur)->key;
			n++;
		}
	}
	LWLockRelease(guard->lock);
	return n;
}

/* Copy all countries of a workspace */
GuardCounts *
guard_copy_all(int32 workspace_id, int *n)
{
	int			max = 0;
	int			found;
	CountryKey *keys = NULL;
	GuardCounts *copies;

	/* There may be more by the time that there is memory for them */
	while ((found = list_countries(workspace_id, keys, max)) > max)
	{
		if (keys != NULL)
			pfree(keys);
		max = found + 16;
		keys = palloc(max * sizeof(CountryKey));
	}

	/* One by one: whoever sends needs the lock, too */
	copies = palloc(Max(found, 1) * sizeof(GuardCounts));
	*n = 0;
	for (int i = 0; i < found; i++)
	{
		const GuardCountry *c;

		LWLockAcquire(guard->lock, LW_SHARED);
		c = hash_search(countries, &keys[i], HASH_FIND, NULL);
		if (c != NULL)
			copy_counts(c, &copies[(*n)++]);
		LWLockRelease(guard->lock);
	}
	return copies;
}

/* ---- counting ---- */

/* Begin to read a workspace's history */
uint32
guard_load_begin(int32 workspace_id, TimestampTz now)
{
	WorkspaceKey key;
	GuardWorkspace *w;
	dlist_iter	iter;
	bool		found;
	uint32		load;

	memset(&key, 0, sizeof(key));
	key.database = MyDatabaseId;
	key.workspace_id = workspace_id;

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	while ((w = hash_search(workspaces, &key, HASH_ENTER_NULL, &found)) == NULL && make_room(NULL))
		;
	load = ++guard->loads;
	if (w != NULL)
	{
		if (!found)
		{
			guard->nworkspaces++;
			dlist_push_tail(&guard->workspaces, &w->node);
			dlist_init(&w->countries);
		}
		w->state = STATE_LOADING;
		w->load = load;
		w->asked_at = w->days_at = now;
		dlist_foreach(iter, &w->countries)
		{
			GuardCountry *c = dlist_container(GuardCountry, node, iter.cur);

			memset(c->sends, 0, sizeof(c->sends));
			memset(c->verified, 0, sizeof(c->verified));
			c->newest = guard_bucket(now);
			c->best_day = 0;
		}
	}
	LWLockRelease(guard->lock);
	return load;
}

/* Find the workspace that is being read, if it is still that reading */
static GuardWorkspace *
find_loading(int32 workspace_id, uint32 load)
{
	GuardWorkspace *w = find_workspace(workspace_id);

	return w != NULL && w->state == STATE_LOADING && w->load == load ? w : NULL;
}

/* Add what was read of a country */
void
guard_load_add(int32 workspace_id, uint32 load, const GuardCounts *counts)
{
	GuardWorkspace *w;
	GuardCountry *c;

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	w = find_loading(workspace_id, load);
	c = w != NULL ? enter_country(w, counts->country, counts->newest) : NULL;
	if (c != NULL)
	{
		advance(c, counts->newest);
		for (int64 b = Max(c->newest - GUARD_BUCKETS + 1, 0); b <= counts->newest; b++)
		{
			c->sends[b % GUARD_BUCKETS] += counts->sends[b % GUARD_BUCKETS];
			c->verified[b % GUARD_BUCKETS] += counts->verified[b % GUARD_BUCKETS];
		}
		c->best_day = Max(c->best_day, counts->best_day);
	}
	LWLockRelease(guard->lock);
}

/* That was all */
void
guard_load_end(int32 workspace_id, uint32 load)
{
	GuardWorkspace *w;

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	w = find_loading(workspace_id, load);
	if (w != NULL)
		w->state = STATE_KNOWN;
	LWLockRelease(guard->lock);
}

/* Take in the most verified in a day */
void
guard_set_best(int32 workspace_id, const GuardBest *best, int n)
{
	GuardWorkspace *w;

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	w = find_workspace(workspace_id);
	if (w != NULL && w->state != STATE_UNKNOWN)
	{
		dlist_iter	iter;

		dlist_foreach(iter, &w->countries)
			dlist_container(GuardCountry, node, iter.cur)->best_day = 0;
		for (int i = 0; i < n; i++)
		{
			GuardCountry *c = enter_country(w, best[i].country, guard_bucket(w->asked_at));

			if (c != NULL)
				c->best_day = best[i].verified;
		}
	}
	LWLockRelease(guard->lock);
}

/* Count */
void
guard_count(int32 workspace_id, const char *country, int64 bucket, int sends, int verified)
{
	GuardWorkspace *w;
	GuardCountry *c;

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	w = find_workspace(workspace_id);
	if (w != NULL && w->state != STATE_UNKNOWN &&
		(c = enter_country(w, country, bucket)) != NULL)
	{
		advance(c, bucket);
		if (bucket > c->newest - GUARD_BUCKETS)
		{
			c->sends[bucket % GUARD_BUCKETS] += sends;
			c->verified[bucket % GUARD_BUCKETS] += verified;
		}
	}
	LWLockRelease(guard->lock);
}

/* The guard is off for a workspace */
void
guard_forget(int32 workspace_id)
{
	GuardWorkspace *w;

	if (guard == NULL || *(volatile int *) &guard->nworkspaces == 0)
		return;
	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	w = find_workspace(workspace_id);

	/* What was decided is still to be written */
	if (w != NULL)
		w->state = STATE_UNKNOWN;
	LWLockRelease(guard->lock);
}

/* Drop all of a database */
void
guard_forget_database(Oid database)
{
	dlist_mutable_iter iter;

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	dlist_foreach_modify(iter, &guard->workspaces)
	{
		GuardWorkspace *w = dlist_container(GuardWorkspace, node, iter.cur);

		if (w->key.database == database)
			remove_workspace(w);
	}
	LWLockRelease(guard->lock);
}

/* ---- decisions ---- */

/* Note a decision */
void
guard_decide(const GuardDecision *decision, GuardCounts *counts)
{
	GuardWorkspace *w;
	GuardCountry *c = NULL;

	memset(counts, 0, sizeof(GuardCounts));
	strlcpy(counts->country, decision->country, sizeof(counts->country));
	counts->newest = guard_bucket(decision->last_at);

	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	w = find_workspace(decision->workspace_id);
	if (w != NULL)
		c = enter_country(w, decision->country, counts->newest);
	if (c != NULL)
	{
		Tally	   *t = &c->tallies[decision->reason];

		if (t->blocked == 0 && t->recorded == 0)
			t->first_at = decision->first_at;
		t->blocked += decision->blocked;
		t->recorded += decision->recorded;
		t->last_at = decision->last_at;
		t->unverified = decision->unverified;
		t->threshold = decision->threshold;
		if (!c->is_undone)
		{
			c->is_undone = true;
			dlist_push_tail(&guard->undone, &c->undone);
			guard->nundone++;
		}
		advance(c, counts->newest);
		copy_counts(c, counts);
	}
	LWLockRelease(guard->lock);
}

/* May there be decisions to be written? */
bool
guard_has_decisions(void)
{
	return *(volatile int *) &guard->nundone > 0;
}

/* List decisions that are not written */
int
guard_decisions(GuardDecision *decisions, int max)
{
	dlist_iter	iter;
	int			n = 0;

	LWLockAcquire(guard->lock, LW_SHARED);
	dlist_foreach(iter, &guard->undone)
	{
		const GuardCountry *c = dlist_container(GuardCountry, undone, iter.cur);

		if (c->key.database != MyDatabaseId)
			continue;
		if (n + GUARD_REASONS > max)
			break;
		for (int reason = 0; reason < GUARD_REASONS; reason++)
		{
			const Tally *t = &c->tallies[reason];
			GuardDecision *d = &decisions[n];

			if (t->blocked == 0 && t->recorded == 0)
				continue;
			n++;
			d->workspace_id = c->key.workspace_id;
			memcpy(d->country, c->key.country, sizeof(d->country));
			d->reason = reason;
			d->blocked = t->blocked;
			d->recorded = t->recorded;
			d->first_at = t->first_at;
			d->last_at = t->last_at;
			d->unverified = t->unverified;
			d->threshold = t->threshold;
		}
	}
	LWLockRelease(guard->lock);
	return n;
}

/* Take off what is written */
void
guard_decisions_written(const GuardDecision *decisions, int n)
{
	LWLockAcquire(guard->lock, LW_EXCLUSIVE);
	for (int i = 0; i < n; i++)
	{
		GuardCountry *c = find_country(decisions[i].workspace_id, decisions[i].country);
		bool		rest = false;

		if (c == NULL)
			continue;
		for (int reason = 0; reason < GUARD_REASONS; reason++)
		{
			Tally	   *t = &c->tallies[reason];

			if (reason == decisions[i].reason)
			{
				t->blocked = Max(t->blocked - decisions[i].blocked, 0);
				t->recorded = Max(t->recorded - decisions[i].recorded, 0);

				/* What came meanwhile came after it */
				t->first_at = decisions[i].last_at;
			}
			rest = rest || t->blocked > 0 || t->recorded > 0;
		}
		if (!rest)
			take_off_undone(c);
		else if (c->is_undone)
		{
			/* Behind the others, who may be many */
			dlist_delete(&c->undone);
			dlist_push_tail(&guard->undone, &c->undone);
		}
	}
	LWLockRelease(guard->lock);
}
