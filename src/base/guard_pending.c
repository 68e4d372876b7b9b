/*-------------------------------------------------------------------------
 *
 * guard_pending.c
 *	  The guard against pumping: what a transaction counts when it commits.
 *
 * A list in the backend's memory, in which each item knows the nesting level
 * of the subtransaction that it belongs to: the levels only rise towards the
 * end, so that a rolled-back savepoint takes its items off the end. The
 * callbacks are registered once for the life of the process, and do next to
 * nothing while the list is empty.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guard.h"

/* Most items, and most workspaces that are remembered when there are more */
#define ITEMS_FIRST 16
#define ITEMS_MAX 4096
#define LOST_MAX 64

typedef struct Item
{
	int32		workspace_id;
	int			level;
	int64		bucket;
	char		country[GUARD_COUNTRY_LENGTH + 1];
	int			sends;
	int			verified;
} Item;

static Item *items = NULL;
static int	nitems = 0;
static int	nallocated = 0;

/* Workspaces for which there was no room: their history is read again */
static int32 lost[LOST_MAX];
static int	nlost = 0;
static bool lost_more = false;

/* Find an item of this kind at a level, at the end of the list */
static Item *
find_item(int level, int32 workspace_id, const char *country, int64 bucket, int end)
{
	for (int i = end - 1; i >= 0 && items[i].level == level; i--)
	{
		if (items[i].bucket == bucket && items[i].workspace_id == workspace_id &&
			strcmp(items[i].country, country) == 0)
			return &items[i];
	}
	return NULL;
}

/* Note that something of a workspace will not be counted */
static void
note_lost(int32 workspace_id)
{
	for (int i = 0; i < nlost; i++)
	{
		if (lost[i] == workspace_id)
			return;
	}
	if (nlost < LOST_MAX)
		lost[nlost++] = workspace_id;
	else
		lost_more = true;
}

/* Count at commit */
void
guard_pending_add(int32 workspace_id, const char *country, TimestampTz sent_at, int sends, int verified)
{
	int			level = GetCurrentTransactionNestLevel();
	int64		bucket = guard_bucket(sent_at);
	Item	   *item = find_item(level, workspace_id, country, bucket, nitems);

	if (item == NULL)
	{
		if (nitems == ITEMS_MAX)
		{
			note_lost(workspace_id);
			return;
		}
		if (nitems == nallocated)
		{
			int			n = Max(nallocated * 2, ITEMS_FIRST);

			items = items == NULL ? MemoryContextAlloc(TopMemoryContext, n * sizeof(Item)) :
				repalloc(items, n * sizeof(Item));
			nallocated = n;
		}
		item = &items[nitems++];
		memset(item, 0, sizeof(Item));
		item->workspace_id = workspace_id;
		item->level = level;
		item->bucket = bucket;
		strlcpy(item->country, country, sizeof(item->country));
	}
	item->sends += sends;
	item->verified += verified;
}

/* Add what is pending */
void
guard_pending_sum(int32 workspace_id, const char *country, TimestampTz now,
				  GuardFigures *figures, GuardCounts *counts)
{
	int64		bucket = guard_bucket(now);

	for (int i = 0; i < nitems; i++)
	{
		const Item *item = &items[i];

		if (item->workspace_id != workspace_id || item->bucket <= bucket - GUARD_BUCKETS ||
			strcmp(item->country, country) != 0)
			continue;
		if (figures != NULL)
		{
			figures->sends_day += item->sends;
			figures->verified_day += item->verified;
			if (item->bucket > bucket - GUARD_BUCKETS_HOUR)
			{
				figures->sends_hour += item->sends;
				figures->verified_hour += item->verified;
			}
		}
		if (counts != NULL && item->bucket <= counts->newest && item->bucket > counts->newest - GUARD_BUCKETS)
		{
			counts->sends[item->bucket % GUARD_BUCKETS] += item->sends;
			counts->verified[item->bucket % GUARD_BUCKETS] += item->verified;
		}
	}
}

/* Count what has committed, or is prepared; nothing in here may raise */
static void
count_all(void)
{
	for (int i = 0; i < nitems; i++)
		guard_count(items[i].workspace_id, items[i].country, items[i].bucket, items[i].sends, items[i].verified);
	for (int i = 0; i < nlost; i++)
		guard_forget(lost[i]);
	if (lost_more)
		guard_forget_database(MyDatabaseId);
}

/* Forget the list */
static void
reset(void)
{
	nitems = nlost = 0;
	lost_more = false;
}

/* Take in the end of a transaction */
static void
note_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:

			/*
			 * Who commits a prepared transaction has no list. Nearly all of
			 * them are committed, and to count one that is not is the safe
			 * side.
			 */
		case XACT_EVENT_PREPARE:
			if (nitems > 0 || nlost > 0)
				count_all();
			reset();
			break;
		case XACT_EVENT_ABORT:
			reset();
			break;
		default:
			break;
	}
}

/* Take in the end of a subtransaction */
static void
note_subtransaction_end(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int			level;
	int			first;
	int			kept;

	if (nitems == 0 || (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
		return;
	level = GetCurrentTransactionNestLevel();
	for (first = nitems; first > 0 && items[first - 1].level >= level; first--)
		;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		nitems = first;
		return;
	}

	/* They are the parent's now, beside what it has already */
	kept = first;
	for (int i = first; i < nitems; i++)
	{
		Item	   *item = find_item(level - 1, items[i].workspace_id, items[i].country, items[i].bucket, kept);

		if (item != NULL)
		{
			item->sends += items[i].sends;
			item->verified += items[i].verified;
			continue;
		}
		items[kept] = items[i];
		items[kept++].level = level - 1;
	}
	nitems = kept;
}

/* Register the callbacks */
void
guard_pending_init(void)
{
	RegisterXactCallback(note_end, NULL);
	RegisterSubXactCallback(note_subtransaction_end, NULL);
}
