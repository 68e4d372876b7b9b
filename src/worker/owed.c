/*-------------------------------------------------------------------------
 *
 * owed.c
 *	  The rows of the outbox in a sender's memory: one small entry for each
 *	  message that waits for its time, is in flight, finished, or followed
 *	  until its verification ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "worker/sender.h"

/* The rows of a verification are found by its id: a table of their first ones. */
typedef struct OwedEntry
{
	Owed	   *first;			/* its row.id is the key */
	char		status;
} OwedEntry;

/* The last bytes of an id are random */
static inline uint32
hash_id(const Owed *o)
{
	uint32		hash;

	memcpy(&hash, o->row.id.data + UUID_LEN - sizeof(hash), sizeof(hash));
	return hash;
}

#define SH_PREFIX owed_table
#define SH_ELEMENT_TYPE OwedEntry
#define SH_KEY_TYPE Owed *
#define SH_KEY first
#define SH_HASH_KEY(tb, key) hash_id(key)
#define SH_EQUAL(tb, a, b) (memcmp(&(a)->row.id, &(b)->row.id, UUID_LEN) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static owed_table_hash *table;

/*
 * Receipts still come for rows that are gone: their workspaces are kept in
 * mind for a while, in two tables of which the older one is emptied in turn.
 */
typedef struct GoneEntry
{
	pg_uuid_t	id;
	int32		workspace_id;
	char		status;
} GoneEntry;

/* The last bytes of an id are random */
static inline uint32
hash_uuid(pg_uuid_t id)
{
	uint32		hash;

	memcpy(&hash, id.data + UUID_LEN - sizeof(hash), sizeof(hash));
	return hash;
}

#define SH_PREFIX gone_table
#define SH_ELEMENT_TYPE GoneEntry
#define SH_KEY_TYPE pg_uuid_t
#define SH_KEY id
#define SH_HASH_KEY(tb, key) hash_uuid(key)
#define SH_EQUAL(tb, a, b) (memcmp((a).data, (b).data, UUID_LEN) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* How long at least; codes live 15 minutes at most */
#define GONE_US (10 * 60 * USECS_PER_SEC)

static gone_table_hash *gone[2];
static TimestampTz gone_since;

/* Order by due time */
static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz x = pairingheap_const_container(Owed, waiting, a)->row.due_at;
	TimestampTz y = pairingheap_const_container(Owed, waiting, b)->row.due_at;

	/* the first is the greatest */
	return x < y ? 1 : x > y ? -1 : 0;
}

/* Make the memory and the lists */
void
owed_init(void)
{
	sender.owed_context = SlabContextCreate(TopMemoryContext, "otp messages owed",
											SLAB_DEFAULT_BLOCK_SIZE, sizeof(Owed));
	sender.outcome_context = AllocSetContextCreate(TopMemoryContext, "otp outcomes",
												   ALLOCSET_DEFAULT_SIZES);
	table = owed_table_create(TopMemoryContext, 1024, NULL);
	gone[0] = gone_table_create(TopMemoryContext, 1024, NULL);
	gone[1] = gone_table_create(TopMemoryContext, 1024, NULL);
	gone_since = GetCurrentTimestamp();
	pairingheap_reset(&sender.heap);
	sender.heap.ph_compare = compare_due;
	pairingheap_reset(&sender.followed);
	sender.followed.ph_compare = compare_due;
	dlist_init(&sender.crowded);
	dlist_init(&sender.in_flight);
	dlist_init(&sender.finished);
	dlist_init(&sender.notes);
}

/* Take a row into memory */
Owed *
owed_new(const OutboxRow *row)
{
	Owed	   *o = MemoryContextAllocZero(sender.owed_context, sizeof(Owed));
	OwedEntry  *entry;
	bool		found;

	o->kind = REQUEST_MESSAGE;
	o->row = *row;

	/* Behind the others: the table's key is the first one's */
	entry = owed_table_insert(table, o, &found);
	if (found)
	{
		o->same = entry->first->same;
		entry->first->same = o;
	}
	else
		entry->first = o;
	return o;
}

/* Free what was noted of an outcome */
void
owed_clear_outcome(Owed *o)
{
	if (o->message_id != NULL)
		pfree(o->message_id);
	if (o->detail != NULL)
		pfree(o->detail);
	o->message_id = NULL;
	o->detail = NULL;
	o->end = END_NONE;
	o->again = false;
	o->late = false;
	o->served = false;
}

/* Keep in mind whose a row was */
static void
remember(const Owed *o)
{
	bool		found;

	gone_table_insert(gone[0], o->row.id, &found)->workspace_id = o->row.workspace_id;
}

/* Drop a row from memory */
void
owed_free(Owed *o)
{
	OwedEntry  *entry = owed_table_lookup(table, o);

	if (o->accepted)
		remember(o);
	owed_unhold(o);
	owed_clear_outcome(o);
	receipts_release(o);
	if (entry->first != o)
	{
		Owed	   *before = entry->first;

		while (before->same != o)
			before = before->same;
		before->same = o->same;
	}
	else if (o->same != NULL)
		entry->first = o->same;
	else
		owed_table_delete(table, o);
	pfree(o);
}

/* Find the rows of a verification */
Owed *
owed_find(const pg_uuid_t *id)
{
	Owed		key;
	OwedEntry  *entry;

	key.row.id = *id;
	entry = owed_table_lookup(table, &key);
	return entry != NULL ? entry->first : NULL;
}

/* Tell whose a verification is, or was not long ago */
int32
owed_workspace(const pg_uuid_t *id)
{
	const Owed *o = owed_find(id);

	if (o != NULL)
		return o->row.workspace_id;
	for (int i = 0; i < lengthof(gone); i++)
	{
		GoneEntry  *entry = gone_table_lookup(gone[i], *id);

		if (entry != NULL)
			return entry->workspace_id;
	}
	return 0;
}

/* Forget what was a long time ago */
void
owed_forget(TimestampTz now)
{
	if (now < gone_since + GONE_US)
		return;
	gone_since = now;
	gone_table_destroy(gone[1]);
	gone[1] = gone[0];
	gone[0] = gone_table_create(TopMemoryContext, 1024, NULL);
}

/* Is it the last message of its verification? */
bool
owed_is_newest(const Owed *o)
{
	for (const Owed *other = owed_find(&o->row.id); other != NULL; other = other->same)
	{
		if (other->row.number > o->row.number)
			return false;
	}
	return true;
}

/* Let a row wait */
void
owed_wait(Owed *o, TimestampTz due_at)
{
	/* At the end of its life it is dropped */
	o->row.due_at = Min(due_at, o->row.expires_at);
	o->place = OWED_WAITS;
	pairingheap_add(&sender.heap, &o->waiting);
	sender.waiting++;
}

/* When does the first one's time come? 0: nothing waits */
TimestampTz
owed_next_due(void)
{
	if (pairingheap_is_empty(&sender.heap))
		return 0;
	return pairingheap_container(Owed, waiting, pairingheap_first(&sender.heap))->row.due_at;
}

/* Take a row out of where it waits */
void
owed_take_out(Owed *o)
{
	switch (o->place)
	{
		case OWED_WAITS:
			pairingheap_remove(&sender.heap, &o->waiting);
			sender.waiting--;
			break;
		case OWED_FOLLOWED:
			pairingheap_remove(&sender.followed, &o->waiting);
			sender.following--;
			break;
		case OWED_CROWDED:
			{
				Account    *a = account_known(o->account_id);

				dlist_delete(&o->node);
				if (dlist_is_empty(&a->crowd))
					dlist_delete(&a->crowded);
				sender.waiting--;
				break;
			}
		case OWED_FLIES:
		case OWED_FINISHED:
		case OWED_NOWHERE:
			break;
	}
	o->place = OWED_NOWHERE;
}

/* Take the first row whose time has come */
Owed *
owed_first_due(TimestampTz now)
{
	Owed	   *o;

	if (pairingheap_is_empty(&sender.heap))
		return NULL;
	o = pairingheap_container(Owed, waiting, pairingheap_first(&sender.heap));
	if (o->row.due_at > now)
		return NULL;
	owed_take_out(o);
	return o;
}

/* Note that a row waits for a breaker */
void
owed_hold(Owed *o, Account *a)
{
	owed_unhold(o);
	o->account_id = a->account_id;
	o->held = true;
	a->held++;
}

/* It does not any more */
void
owed_unhold(Owed *o)
{
	if (o->held)
	{
		Account    *a = account_known(o->account_id);

		if (a != NULL)
			a->held--;
		o->held = false;
	}
}

/* Have the rows look that wait for a breaker */
void
owed_release_held(int32 account_id, TimestampTz now)
{
	Account    *a = account_known(account_id);
	dlist_head	all;

	if (a == NULL || a->held == 0)
		return;

	/* Closing is rare: build the heap anew */
	dlist_init(&all);
	while (!pairingheap_is_empty(&sender.heap))
	{
		Owed	   *o = pairingheap_container(Owed, waiting, pairingheap_remove_first(&sender.heap));

		dlist_push_tail(&all, &o->node);
	}
	while (!dlist_is_empty(&all))
	{
		Owed	   *o = dlist_container(Owed, node, dlist_pop_head_node(&all));

		if (o->held && o->account_id == account_id)
			o->row.due_at = Min(o->row.due_at, now);
		pairingheap_add(&sender.heap, &o->waiting);
	}
}

/* Let a row wait until its account has fewer requests in flight */
void
owed_crowd(Owed *o)
{
	Account    *a = account_known(o->account_id);

	if (dlist_is_empty(&a->crowd))
		dlist_push_tail(&sender.crowded, &a->crowded);
	dlist_push_tail(&a->crowd, &o->node);
	o->place = OWED_CROWDED;
	sender.waiting++;
}

/* Have as many rows of the crowds look as there are places now */
void
owed_release_crowds(TimestampTz now)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &sender.crowded)
	{
		Account    *a = dlist_container(Account, crowded, iter.cur);

		for (int places = account_places(a, now); places > 0 && !dlist_is_empty(&a->crowd); places--)
		{
			sender.waiting--;
			owed_wait(dlist_container(Owed, node, dlist_pop_head_node(&a->crowd)), now);
		}
		if (dlist_is_empty(&a->crowd))
			dlist_delete(&a->crowded);
	}
}

/* Note what came of a message */
void
owed_finish(Owed *o, OwedEnd end, TimestampTz now)
{
	o->place = OWED_FINISHED;
	o->end = end;
	o->ended_at = now;
	dlist_push_tail(&sender.finished, &o->node);
	sender.finishing++;
}

/* Drop a row as soon as it can be */
void
owed_drop(Owed *o, TimestampTz now)
{
	o->over = true;
	if (o->place == OWED_WAITS || o->place == OWED_CROWDED || o->place == OWED_FOLLOWED)
	{
		owed_take_out(o);
		owed_unhold(o);
		o->tried = false;
		o->record = false;
		owed_finish(o, END_DROP, now);
	}
}
