/*-------------------------------------------------------------------------
 *
 * webhook_endpoint.c
 *	  Know the webhook endpoints, and what workspaces want to hear.
 *
 * Both are read when they are needed first and kept. Statement triggers on
 * their tables send an invalidation, after which they are read again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/keyring.h"
#include "base/seal.h"
#include "worker/webhook_parts.h"

/* What cannot be opened for want of a key is tried again after this long. */
#define KEY_LOOK_MS 10000

/* What a workspace wants to hear; hash key first */
typedef struct Audience
{
	int32		workspace_id;
	uint32		generation;		/* of the configuration it was read from; 0:
								 * none */
	char	   *channel;		/* of NOTIFY; NULL: none */
	int			nendpoints;
	Endpoint  **endpoints;
} Audience;

static HTAB *endpoints = NULL;
static HTAB *audiences = NULL;
static Oid	endpoints_relid = InvalidOid;
static Oid	workspaces_relid = InvalidOid;
static bool changed = true;		/* since audiences were last looked at */
static bool stale = false;		/* endpoints are to be read again */
static uint32 generation = 1;

/* Take in a change */
static void
note_change(Datum arg, Oid relid)
{
	if (relid == endpoints_relid || relid == workspaces_relid || !OidIsValid(relid) ||
		!OidIsValid(endpoints_relid))
		changed = true;
}

/* Make the tables, and hear of changes */
static void
init(void)
{
	HASHCTL		control;

	if (endpoints != NULL)
		return;
	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(int32);
	control.entrysize = sizeof(Audience);
	audiences = hash_create("otp audiences", 64, &control, HASH_ELEM | HASH_BLOBS);
	control.entrysize = sizeof(Endpoint);
	endpoints = hash_create("otp webhook endpoints", 64, &control, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(note_change, (Datum) 0);
	queue_init();
}

/* Has the configuration changed? */
bool
endpoints_stale(void)
{
	return changed || stale;
}

/* Have it read again */
void
endpoints_distrust(void)
{
	changed = true;
}

/* Take note of changes: what was read is of no use any more */
static void
take_changes(void)
{
	Oid			schema;

	init();
	if (!changed)
		return;

	/* Before the reading, so that a change during it is not missed */
	changed = false;
	stale = true;
	if (++generation == 0)
		generation = 1;
	schema = get_namespace_oid("otp", true);
	endpoints_relid = OidIsValid(schema) ? get_relname_relid("webhook_endpoints", schema) : InvalidOid;
	workspaces_relid = OidIsValid(schema) ? get_relname_relid("workspaces", schema) : InvalidOid;
}

/* ---- endpoints ---- */

/* Make an endpoint known */
Endpoint *
endpoint_meet(int32 workspace_id, int32 endpoint_id)
{
	Endpoint   *e;
	bool		found;

	init();
	e = hash_search(endpoints, &endpoint_id, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) e + sizeof(int32), 0, sizeof(Endpoint) - sizeof(int32));
		e->workspace_id = workspace_id;
		e->limit = ENDPOINT_SLOTS;
		queue_open(e);
		stale = true;
	}
	return e;
}

/* Which events does an endpoint want? */
static uint32
wanted_events(const WebhookEndpointRow *row)
{
	uint32		events = 0;

	if (row->nevents < 0)
		return ~(uint32) 0;
	for (int i = 0; i < row->nevents; i++)
		for (int kind = 0; kind < EVENT_KINDS; kind++)
			if (strcmp(row->events[i], event_name(kind)) == 0)
				events |= (uint32) 1 << kind;
	return events;
}

/* Are two sealed values the same? */
static bool
same_bytes(const bytea *a, const bytea *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return VARSIZE_ANY(a) == VARSIZE_ANY(b) && memcmp(a, b, VARSIZE_ANY(a)) == 0;
}

/* Copy a value into a context; NULL is NULL */
static bytea *
copy_value(MemoryContext context, const bytea *value)
{
	bytea	   *copy;

	if (value == NULL)
		return NULL;
	copy = MemoryContextAlloc(context, VARSIZE_ANY(value));
	memcpy(copy, value, VARSIZE_ANY(value));
	return copy;
}

/* Take a row over */
static Endpoint *
take_row(const WebhookEndpointRow *row, TimestampTz now)
{
	Endpoint   *e = endpoint_meet(row->workspace_id, row->endpoint_id);
	bool		was_usable = endpoint_usable(e);
	MemoryContext context;

	if (!e->opened || !same_bytes(e->secret, row->secret) || !same_bytes(e->previous_secret, row->previous_secret))
	{
		explicit_bzero(e->keys, sizeof(e->keys));
		e->opened = false;
		e->hold_until = 0;
		e->reported = false;
	}

	context = AllocSetContextCreate(TopMemoryContext, "otp webhook endpoint", ALLOCSET_SMALL_SIZES);
	e->workspace = MemoryContextStrdup(context, row->workspace);
	e->url = MemoryContextStrdup(context, row->url);
	e->secret = copy_value(context, row->secret);
	e->previous_secret = copy_value(context, row->previous_secret);
	if (e->context != NULL)
		MemoryContextDelete(e->context);
	e->context = context;
	e->workspace_id = row->workspace_id;
	e->key_id = row->key_id;
	e->previous_key_id = row->previous_key_id;
	e->previous_until = row->previous_until;
	e->events = wanted_events(row);
	e->gone = false;
	e->seen = true;

	/* Somebody else than we has written it: resumed, or restored */
	if (!e->loaded || row->failing_since != e->noted_since)
		e->failing_since = e->noted_since = row->failing_since;

	/* Disabled by us, but that is not written yet */
	if (e->disable_reason == NULL || row->status != WEBHOOK_ENABLED)
	{
		e->disable_reason = NULL;
		e->status = row->status;
	}
	e->loaded = true;

	if (!endpoint_usable(e))
		queue_empty(e);
	else if (!was_usable)
	{
		e->limit = ENDPOINT_SLOTS;
		e->failures = 0;
		e->hold_until = 0;
		e->next_scan = 0;
	}
	queue_update(e, now);
	return e;
}

/* Read all known endpoints again */
void
endpoints_refresh(TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	Endpoint   *e;
	WebhookEndpointRow *rows;
	int32	   *workspace_ids;
	int32	   *endpoint_ids;
	int			n = 0;

	take_changes();
	if (!stale)
		return;

	workspace_ids = palloc((hash_get_num_entries(endpoints) + 1) * sizeof(int32));
	endpoint_ids = palloc((hash_get_num_entries(endpoints) + 1) * sizeof(int32));
	hash_seq_init(&seq, endpoints);
	while ((e = hash_seq_search(&seq)) != NULL)
	{
		e->seen = false;
		workspace_ids[n] = e->workspace_id;
		endpoint_ids[n++] = e->endpoint_id;
	}
	if (n > 0)
	{
		n = webhook_load_endpoints(workspace_ids, endpoint_ids, n, &rows);
		for (int i = 0; i < n; i++)
			(void) take_row(&rows[i], now);
	}

	hash_seq_init(&seq, endpoints);
	while ((e = hash_seq_search(&seq)) != NULL)
	{
		if (e->seen)
			continue;
		e->gone = true;
		e->disable_reason = NULL;
		queue_empty(e);
		queue_update(e, now);
	}
	stale = false;
}

/* Forget an endpoint */
void
endpoint_forget(Endpoint *e)
{
	if (e->context != NULL)
		MemoryContextDelete(e->context);
	explicit_bzero(e->keys, sizeof(e->keys));
	(void) hash_search(endpoints, &e->endpoint_id, HASH_REMOVE, NULL);

	/* An audience may have it */
	if (++generation == 0)
		generation = 1;
}

/* Open a sealed secret; false when it cannot be opened */
static bool
open_secret(const Endpoint *e, const bytea *sealed, int key_id, uint8 out[WEBHOOK_SECRET_LENGTH])
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool good = false;

	/* A forged or damaged value is this endpoint's trouble only */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		size_t		length;
		char	   *plain = unseal(sealed, webhook_purpose(e->endpoint_id), key_id, &length);

		if (length == WEBHOOK_SECRET_LENGTH)
		{
			memcpy(out, plain, length);
			good = true;
		}
		explicit_bzero(plain, length);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return good;
}

/* Open the secrets of an endpoint */
bool
endpoint_open(Endpoint *e, TimestampTz now)
{
	const char *problem = NULL;

	if (e->opened)
		return true;
	if (e->secret == NULL)
		problem = "it has no secret";
	else if (!keyring_has(e->key_id))
		problem = "the key that sealed its secret is not in the key file";
	else if (!open_secret(e, e->secret, e->key_id, e->keys[0]))
		problem = "its secret cannot be opened";
	if (problem == NULL)
	{
		/* Without the one before, it can still be sent to */
		e->has_previous = e->previous_secret != NULL && keyring_has(e->previous_key_id) &&
			open_secret(e, e->previous_secret, e->previous_key_id, e->keys[1]);
		e->opened = true;
		e->reported = false;
		return true;
	}

	e->hold_until = TimestampTzPlusMilliseconds(now, KEY_LOOK_MS);
	if (!e->reported)
		ereport(LOG,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("webhook endpoint %d cannot be sent to: %s", e->endpoint_id, problem)));
	e->reported = true;
	return false;
}

/* ---- audiences ---- */

/* Find out what a workspace wants to hear */
static Audience *
audience_of(int32 workspace_id)
{
	Audience   *a;
	WebhookEndpointRow *rows;
	char	   *channel;
	int			n;
	bool		found;

	take_changes();
	a = hash_search(audiences, &workspace_id, HASH_ENTER, &found);
	if (!found)
		memset((char *) a + sizeof(int32), 0, sizeof(Audience) - sizeof(int32));
	if (a->generation == generation)
		return a;

	channel = webhook_notify_channel(workspace_id);
	n = webhook_load_workspace(workspace_id, &rows);
	if (a->channel != NULL)
		pfree(a->channel);
	a->channel = NULL;
	if (a->endpoints != NULL)
		pfree(a->endpoints);
	a->endpoints = NULL;
	a->nendpoints = 0;
	if (channel != NULL)
		a->channel = MemoryContextStrdup(TopMemoryContext, channel);
	if (n > 0)
		a->endpoints = MemoryContextAlloc(TopMemoryContext, n * sizeof(Endpoint *));
	for (int i = 0; i < n; i++)
		a->endpoints[a->nendpoints++] = take_row(&rows[i], GetCurrentTimestamp());
	a->generation = generation;
	return a;
}

/* Give the endpoints of a workspace */
int
endpoints_of(int32 workspace_id, Endpoint ***list)
{
	Audience   *a = audience_of(workspace_id);

	*list = a->endpoints;
	return a->nendpoints;
}

/* Give the channel of a workspace */
const char *
endpoints_channel(int32 workspace_id)
{
	return audience_of(workspace_id)->channel;
}
