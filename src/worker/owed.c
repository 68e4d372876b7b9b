/*-------------------------------------------------------------------------
 *
 * owed.c
 *	  The rows of the outbox in a sender's memory: one small entry for each
 *	  message that is in flight, finished, or waits for its time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "worker/sender.h"

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
	pairingheap_reset(&sender.heap);
	sender.heap.ph_compare = compare_due;
	dlist_init(&sender.crowded);
	dlist_init(&sender.in_flight);
	dlist_init(&sender.finished);
}

/* Take a row into memory */
Owed *
owed_new(const OutboxRow *row)
{
	Owed	   *o = MemoryContextAllocZero(sender.owed_context, sizeof(Owed));

	o->row = *row;
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
}

/* Drop a row from memory */
void
owed_free(Owed *o)
{
	owed_unhold(o);
	owed_clear_outcome(o);
	pfree(o);
}

/* Let a row wait */
void
owed_wait(Owed *o, TimestampTz due_at)
{
	/* At the end of its life it is dropped */
	o->row.due_at = Min(due_at, o->row.expires_at);
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
	(void) pairingheap_remove_first(&sender.heap);
	sender.waiting--;
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
	o->end = end;
	o->ended_at = now;
	dlist_push_tail(&sender.finished, &o->node);
	sender.finishing++;
}
