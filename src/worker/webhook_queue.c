/*-------------------------------------------------------------------------
 *
 * webhook_queue.c
 *	  Hold, for every endpoint, a window of what it is owed in memory.
 *
 * A dead endpoint may be owed millions of webhooks, so only those whose time
 * is near are in memory, and not too many of them. The others stay in the
 * table alone, and are found again in rounds through it, a piece at a time,
 * once there is room and their time comes near.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/ulid.h"
#include "worker/webhook_parts.h"

/* A window with fewer than this takes any; a fuller one, what is due within HORIZON_US. */
#define WINDOW_HALF (WINDOW / 2)
#define HORIZON_US (120 * USECS_PER_SEC)

/* The table is not read while fewer places than this are free. */
#define WINDOW_ROOM (WINDOW / 4)

/* The pieces of a round come this far apart, and rounds that found nothing to do. */
#define PIECE_US INT64CONST(20000)
#define ROUND_US USECS_PER_SEC

/* A failing endpoint with more to come is tried this often at least. */
#define PROBE_US (300 * USECS_PER_SEC)

/* What has waited for an endpoint to recover is due within this time. */
#define HURRY_US (10 * USECS_PER_SEC)

/* Webhooks in memory, by id */
typedef struct QueueEntry
{
	pg_uuid_t	id;
	Webhook    *webhook;
} QueueEntry;

static HTAB *table = NULL;
static MemoryContext context = NULL;
static pairingheap ready_heap;
static pairingheap chore_heap;
static pg_uuid_t last_id;

/* Order endpoints by their next attempt, and by their next chore */
static int
compare_ready(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz left = pairingheap_const_container(Endpoint, ready, a)->ready_at;
	TimestampTz right = pairingheap_const_container(Endpoint, ready, b)->ready_at;

	return left < right ? 1 : left > right ? -1 : 0;
}

/* The same for chores */
static int
compare_chore(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz left = pairingheap_const_container(Endpoint, chore, a)->chore_at;
	TimestampTz right = pairingheap_const_container(Endpoint, chore, b)->chore_at;

	return left < right ? 1 : left > right ? -1 : 0;
}

/* Order webhooks of one endpoint by time, then by age */
static int
compare_waiting(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Webhook *left = pairingheap_const_container(Webhook, waiting, a);
	const Webhook *right = pairingheap_const_container(Webhook, waiting, b);

	if (left->try_at != right->try_at)
		return left->try_at < right->try_at ? 1 : -1;
	return memcmp(&right->row.id, &left->row.id, UUID_LEN);
}

/* Prepare */
void
queue_init(void)
{
	HASHCTL		control;

	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(pg_uuid_t);
	control.entrysize = sizeof(QueueEntry);
	table = hash_create("otp webhooks", 1024, &control, HASH_ELEM | HASH_BLOBS);
	context = SlabContextCreate(TopMemoryContext, "otp webhooks", SLAB_DEFAULT_BLOCK_SIZE, sizeof(Webhook));
	pairingheap_reset(&ready_heap);
	ready_heap.ph_compare = compare_ready;
	pairingheap_reset(&chore_heap);
	chore_heap.ph_compare = compare_chore;
}

/* Give an endpoint its window */
void
queue_open(Endpoint *e)
{
	dlist_init(&e->webhooks);
	pairingheap_reset(&e->waiting);
	e->waiting.ph_compare = compare_waiting;
	e->outside_due = NEVER;
	e->next_scan = NEVER;
}

/* Make an id that is higher than all before it */
void
queue_new_id(pg_uuid_t *id, TimestampTz now)
{
	ulid_make(id, now);
	if (memcmp(id, &last_id, UUID_LEN) <= 0)
	{
		*id = last_id;
		for (int i = UUID_LEN - 1; i >= 0 && ++id->data[i] == 0; i--)
			;
	}
	last_id = *id;
}

/* ---- when there is something to do ---- */

/* When can the next attempt at an endpoint start? */
static TimestampTz
next_attempt(Endpoint *e)
{
	TimestampTz at;

	if (!endpoint_usable(e) || e->flying >= e->limit || pairingheap_is_empty(&e->waiting))
		return NEVER;
	at = pairingheap_container(Webhook, waiting, pairingheap_first(&e->waiting))->try_at;

	/*
	 * Has it recovered? Those that nobody has tried yet should not wait for
	 * hours to see.
	 */
	if (e->failing_since != 0 && e->outside && e->flying == 0)
		at = Min(at, e->last_failure + PROBE_US);
	return Max(at, e->hold_until);
}

/* When is there something to do in the tables? */
static TimestampTz
next_chore(const Endpoint *e)
{
	TimestampTz at = NEVER;

	if (e->loaded && !e->gone && (e->disable_reason != NULL || e->failing_since != e->noted_since))
		at = e->note_at;
	if (endpoint_over(e) && e->disable_reason == NULL)
	{
		/* Give up what is left; an endpoint that is gone is forgotten then */
		if (e->busy == 0 && (e->outside || e->gone))
			at = Min(at, e->next_scan);
	}
	else if (e->loaded && e->status == WEBHOOK_PAUSED && e->outside)
		at = Min(at, e->next_scan);
	else if (endpoint_usable(e) && (e->outside || e->scanning) && e->count <= WINDOW - WINDOW_ROOM)
		at = Min(at, e->next_scan);
	return at;
}

/* Take in that something of an endpoint has changed */
void
queue_update(Endpoint *e, TimestampTz now)
{
	TimestampTz ready_at;
	TimestampTz chore_at;

	ready_at = next_attempt(e);
	chore_at = next_chore(e);

	if (e->is_ready && e->ready_at != ready_at)
	{
		pairingheap_remove(&ready_heap, &e->ready);
		e->is_ready = false;
	}
	e->ready_at = ready_at;
	if (!e->is_ready && ready_at != NEVER)
	{
		pairingheap_add(&ready_heap, &e->ready);
		e->is_ready = true;
	}

	if (e->has_chore && e->chore_at != chore_at)
	{
		pairingheap_remove(&chore_heap, &e->chore);
		e->has_chore = false;
	}
	e->chore_at = chore_at;
	if (!e->has_chore && chore_at != NEVER)
	{
		pairingheap_add(&chore_heap, &e->chore);
		e->has_chore = true;
	}
}

/* When is the next attempt? */
TimestampTz
queue_next_ready(void)
{
	if (table == NULL || pairingheap_is_empty(&ready_heap))
		return NEVER;
	return pairingheap_container(Endpoint, ready, pairingheap_first(&ready_heap))->ready_at;
}

/* When is the next chore? */
TimestampTz
queue_next_chore(void)
{
	if (table == NULL || pairingheap_is_empty(&chore_heap))
		return NEVER;
	return pairingheap_container(Endpoint, chore, pairingheap_first(&chore_heap))->chore_at;
}

/* Find the endpoint of the next chore */
Endpoint *
queue_first_chore(TimestampTz now)
{
	if (queue_next_chore() > now)
		return NULL;
	return pairingheap_container(Endpoint, chore, pairingheap_first(&chore_heap));
}

/* ---- the window ---- */

/* Make one that is in no window yet */
Webhook *
queue_make(Endpoint *e, const WebhookRow *row)
{
	Webhook    *w = MemoryContextAllocZero(context, sizeof(Webhook));

	w->kind = REQUEST_WEBHOOK;
	w->endpoint = e;
	w->row = *row;
	w->try_at = row->due_at;
	return w;
}

/* Note that something is in the table only */
static void
stays_outside(Endpoint *e, TimestampTz due_at, TimestampTz now)
{
	e->outside = true;
	e->outside_due = Min(e->outside_due, due_at);

	/* Of a paused one, what is too old is looked for, now and then */
	if (e->loaded && e->status == WEBHOOK_PAUSED && e->next_scan > now && e->next_scan != NEVER)
		return;
	if (!e->scanning)
		e->next_scan = Min(e->next_scan, Max(now, due_at - HORIZON_US));
}

/* Is its time near enough? */
static bool
belongs_inside(const Endpoint *e, TimestampTz try_at, TimestampTz now)
{
	return e->count < WINDOW_HALF || (e->count < WINDOW && try_at <= now + HORIZON_US);
}

/* Add to the window */
static void
add(Webhook *w)
{
	Endpoint   *e = w->endpoint;
	QueueEntry *entry;
	bool		found;

	entry = hash_search(table, &w->row.id, HASH_ENTER, &found);
	entry->webhook = w;
	dlist_push_tail(&e->webhooks, &w->node);
	e->count++;
	w->place = WEBHOOK_WAITS;
	pairingheap_add(&e->waiting, &w->waiting);
}

/* Drop from the window */
static void
drop(Webhook *w)
{
	Endpoint   *e = w->endpoint;

	(void) hash_search(table, &w->row.id, HASH_REMOVE, NULL);
	dlist_delete(&w->node);
	e->count--;
	pfree(w);
}

/* Is it in memory? */
bool
queue_has(const pg_uuid_t *id)
{
	return hash_search(table, id, HASH_FIND, NULL) != NULL;
}

/* Take a new one in */
void
queue_enter(Webhook *w, TimestampTz now)
{
	Endpoint   *e = w->endpoint;

	if (endpoint_usable(e) && belongs_inside(e, w->try_at, now) && !queue_has(&w->row.id))
		add(w);
	else
	{
		stays_outside(e, w->row.due_at, now);
		pfree(w);
	}
	queue_update(e, now);
}

/* Choose the next one */
Webhook *
queue_choose(TimestampTz now)
{
	Endpoint   *e;
	Webhook    *w;

	if (queue_next_ready() > now)
		return NULL;
	e = pairingheap_container(Endpoint, ready, pairingheap_first(&ready_heap));
	w = pairingheap_container(Webhook, waiting, pairingheap_remove_first(&e->waiting));
	w->place = WEBHOOK_CHOSEN;
	e->busy++;
	e->flying++;
	queue_update(e, now);
	return w;
}

/* Take one back that was busy */
void
queue_return(Webhook *w, bool over, TimestampTz now)
{
	Endpoint   *e = w->endpoint;

	if (w->place == WEBHOOK_CHOSEN || w->place == WEBHOOK_FLIES)
		e->flying--;
	e->busy--;
	if (w->outcome != NULL)
		pfree(w->outcome);
	w->outcome = NULL;
	if (over)
		drop(w);
	else if (endpoint_usable(e) && (w->place == WEBHOOK_CHOSEN || belongs_inside(e, w->try_at, now)))
	{
		w->place = WEBHOOK_WAITS;
		pairingheap_add(&e->waiting, &w->waiting);
	}
	else
	{
		stays_outside(e, w->row.due_at, now);
		drop(w);
	}
	queue_update(e, now);
}

/* Keep none that waits */
void
queue_empty(Endpoint *e)
{
	while (!pairingheap_is_empty(&e->waiting))
	{
		drop(pairingheap_container(Webhook, waiting, pairingheap_remove_first(&e->waiting)));
		e->outside = true;
	}
	e->scanning = false;
	if (e->outside)
	{
		e->outside_due = 0;
		e->next_scan = 0;
	}
}

/* Have what has waited tried soon */
void
queue_hurry(Endpoint *e, TimestampTz now)
{
	dlist_iter	iter;

	/* All out, and in again with their new times */
	while (!pairingheap_is_empty(&e->waiting))
		(void) pairingheap_remove_first(&e->waiting);
	dlist_foreach(iter, &e->webhooks)
	{
		Webhook    *w = dlist_container(Webhook, node, iter.cur);

		if (w->place != WEBHOOK_WAITS)
			continue;
		w->try_at = Min(w->try_at, now + (int64) (compat_random() * Min(HURRY_US, e->count * (HURRY_US / 100))));
		pairingheap_add(&e->waiting, &w->waiting);
	}
	if (e->outside)
	{
		e->rush = true;
		e->scanning = false;
		e->next_scan = now;
	}
	queue_update(e, now);
}

/* Read the next piece of an endpoint's rows */
void
queue_scan(Endpoint *e, TimestampTz now)
{
	WebhookRow *rows = palloc(WEBHOOK_BATCH * sizeof(WebhookRow));
	bool		full = false;
	int			n;

	if (!e->scanning)
	{
		e->scanning = true;
		e->rushing = e->rush;
		e->rush = false;
		e->outside = false;
		e->outside_due = NEVER;
		memset(&e->cursor, 0, sizeof(e->cursor));
	}
	n = webhook_read(e->endpoint_id, &e->cursor, rows);
	for (int i = 0; i < n; i++)
	{
		const WebhookRow *row = &rows[i];

		if (queue_has(&row->id))
			;
		else if (e->count >= WINDOW)
		{
			full = true;
			break;
		}
		else if (e->rushing || belongs_inside(e, row->due_at, now))
		{
			Webhook    *w = queue_make(e, row);

			if (e->rushing)
				w->try_at = Min(w->try_at, now + (int64) (compat_random() * HURRY_US));
			add(w);
		}
		else
		{
			e->outside = true;
			e->outside_due = Min(e->outside_due, row->due_at);
		}
		e->cursor = row->id;
	}

	if (full || n == WEBHOOK_BATCH)
		e->next_scan = now + PIECE_US;
	else
	{
		e->scanning = false;
		e->next_scan = e->outside ? Max(now + ROUND_US, e->outside_due - HORIZON_US) : NEVER;
	}
	pfree(rows);
	queue_update(e, now);
}
