/*-------------------------------------------------------------------------
 *
 * webhook.c
 *	  Webhook endpoints, what is owed to them, and what came of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/roster.h"
#include "base/seal.h"
#include "base/ulid.h"
#include "store/key.h"
#include "store/outbox.h"
#include "store/plan.h"
#include "store/webhook.h"

const char *const webhook_events[WEBHOOK_EVENTS] = {
	"otp.sent", "otp.delivered", "otp.verified", "otp.expired", "otp.failed", "otp.sms_fallback", "credits.low"
};

static const char *const status_names[] = {"enabled", "paused", "disabled"};

/*
 * As with the lock on a phone: SQL's advisory locks have other numbers here.
 * Not the workspace's row: nobody's transaction should hold up a change of
 * policy.
 */
#define ENDPOINTS_LOCK_METHOD 0x4550

/* By the index, whatever the statistics: see message.c */
#define ROW_OF_KEY \
	" CROSS JOIN LATERAL (SELECT i.ctid AS place FROM otp.webhook_outbox i" \
	" WHERE i.endpoint_id = k.endpoint_id AND i.id = k.id OFFSET 0) l WHERE o.ctid = l.place"

/* ---- for the verbs ---- */

/* Name what secrets are sealed for */
char *
webhook_purpose(int32 endpoint_id)
{
	return psprintf("webhook_endpoints:%d", endpoint_id);
}

/* Lock the making of a workspace's endpoints */
static void
lock_endpoints(int32 workspace_id)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) workspace_id, 0, ENDPOINTS_LOCK_METHOD);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* Count the endpoints of a workspace */
int
webhook_count_endpoints(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	bool		isnull;

	lock_endpoints(workspace_id);
	plan_keep(&plan, "SELECT count(*)::int4 FROM otp.webhook_endpoints e WHERE e.workspace_id = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run_latest(plan, values, NULL, 1);
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

/* Seal a secret */
static Datum
sealed_secret(int32 endpoint_id, const uint8 *secret, int key_id)
{
	return PointerGetDatum(seal((const char *) secret, WEBHOOK_SECRET_LENGTH, webhook_purpose(endpoint_id), key_id));
}

/* Insert an endpoint */
int32
webhook_create_endpoint(int32 workspace_id, const char *url, Datum events, const char *description,
						const uint8 secret[WEBHOOK_SECRET_LENGTH])
{
	static SPIPlanPtr insert_plan = NULL;
	static SPIPlanPtr update_plan = NULL;
	Oid			insert_types[] = {INT4OID, TEXTOID, TEXTARRAYOID, TEXTOID};
	Oid			update_types[] = {INT4OID, INT4OID, BYTEAOID, INT4OID};
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', ' '};
	int			key_id = key_for_writing();
	int32		endpoint_id;
	bool		isnull;

	plan_keep(&insert_plan,
			  "INSERT INTO otp.webhook_endpoints (workspace_id, url, events, description) VALUES ($1, $2, $3, $4)"
			  " RETURNING endpoint_id",
			  lengthof(insert_types), insert_types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = CStringGetTextDatum(url);
	values[2] = events;
	nulls[2] = events == (Datum) 0 ? 'n' : ' ';
	values[3] = description != NULL ? CStringGetTextDatum(description) : (Datum) 0;
	nulls[3] = description == NULL ? 'n' : ' ';
	plan_run(insert_plan, values, nulls, NULL, false, 0);
	endpoint_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));

	/* The id is needed to seal: it says which row the secret belongs to */
	plan_keep(&update_plan,
			  "UPDATE otp.webhook_endpoints SET secret = $3, key_id = $4 WHERE workspace_id = $1 AND endpoint_id = $2",
			  lengthof(update_types), update_types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int32GetDatum(endpoint_id);
	values[2] = sealed_secret(endpoint_id, secret, key_id);
	values[3] = Int32GetDatum(key_id);
	plan_run(update_plan, values, NULL, NULL, false, 0);
	return endpoint_id;
}

/* Read a status */
static WebhookStatus
status_from_name(const char *name)
{
	for (int i = 0; i < lengthof(status_names); i++)
		if (strcmp(name, status_names[i]) == 0)
			return (WebhookStatus) i;
	return WEBHOOK_DISABLED;
}

/* Find and lock an endpoint */
bool
webhook_lock_endpoint(Datum workspaces, int32 endpoint_id, int32 *workspace_id, WebhookStatus *status)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4ARRAYOID, INT4OID};
	Datum		values[2];
	bool		isnull;

	plan_keep(&plan,
			  "SELECT e.workspace_id, e.status FROM otp.webhook_endpoints e"
			  " WHERE e.workspace_id = ANY ($1) AND e.endpoint_id = $2 FOR UPDATE",
			  lengthof(types), types);
	values[0] = workspaces;
	values[1] = Int32GetDatum(endpoint_id);
	plan_run(plan, values, NULL, NULL, false, 1);
	if (SPI_processed == 0)
		return false;
	*workspace_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*status = status_from_name(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2));
	return true;
}

/* Enable or pause an endpoint */
void
webhook_set_status(int32 workspace_id, int32 endpoint_id, WebhookStatus status)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, TEXTOID};
	Datum		values[3];

	plan_keep(&plan,
			  "UPDATE otp.webhook_endpoints SET status = $3, disabled_reason = NULL, disabled_at = NULL,"
			  " failing_since = CASE WHEN $3 = 'enabled' THEN NULL ELSE failing_since END"
			  " WHERE workspace_id = $1 AND endpoint_id = $2",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int32GetDatum(endpoint_id);
	values[2] = CStringGetTextDatum(status_names[status]);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Replace the secret of an endpoint */
void
webhook_rotate_secret(int32 workspace_id, int32 endpoint_id, TimestampTz previous_until,
					  const uint8 secret[WEBHOOK_SECRET_LENGTH])
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, BYTEAOID, INT4OID, TIMESTAMPTZOID};
	Datum		values[5];
	int			key_id = key_for_writing();

	plan_keep(&plan,
			  "UPDATE otp.webhook_endpoints SET secret = $3, key_id = $4, previous_secret = secret,"
			  " previous_key_id = key_id, previous_until = $5 WHERE workspace_id = $1 AND endpoint_id = $2",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int32GetDatum(endpoint_id);
	values[2] = sealed_secret(endpoint_id, secret, key_id);
	values[3] = Int32GetDatum(key_id);
	values[4] = TimestampTzGetDatum(previous_until);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Delete an endpoint */
void
webhook_delete_endpoint(int32 workspace_id, int32 endpoint_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[2];

	plan_keep(&plan, "DELETE FROM otp.webhook_endpoints WHERE workspace_id = $1 AND endpoint_id = $2",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int32GetDatum(endpoint_id);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* ---- endpoints, for the sender ---- */

/* Copy a bytea; NULL is NULL */
static bytea *
copy_bytea(Datum value, bool isnull, MemoryContext context)
{
	MemoryContext old;
	bytea	   *copy;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(context);
	copy = DatumGetByteaPCopy(value);
	MemoryContextSwitchTo(old);
	return copy;
}

/* Copy the names of events */
static void
copy_events(WebhookEndpointRow *row, Datum value, bool isnull, MemoryContext context)
{
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	row->nevents = -1;
	row->events = NULL;
	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &n);
	row->events = MemoryContextAlloc(context, Max(n, 1) * sizeof(char *));
	row->nevents = 0;
	for (int i = 0; i < n; i++)
		if (!nulls[i])
			row->events[row->nevents++] = store_text(elements[i], false, context);
}

#define ENDPOINT_COLUMNS "SELECT e.workspace_id, e.endpoint_id, w.name, e.url, e.events, e.status, e.secret," \
	" e.key_id, e.previous_secret, e.previous_key_id, e.previous_until, e.failing_since"
#define ENDPOINT_NCOLUMNS 12

/* Take the rows of a statement over */
static int
take_endpoints(WebhookEndpointRow **rows, MemoryContext context)
{
	int			n = (int) SPI_processed;

	*rows = MemoryContextAllocZero(context, Max(n, 1) * sizeof(WebhookEndpointRow));
	for (int i = 0; i < n; i++)
	{
		Datum		v[ENDPOINT_NCOLUMNS];
		bool		nulls[ENDPOINT_NCOLUMNS];
		WebhookEndpointRow *row = &(*rows)[i];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, v, nulls);
		row->workspace_id = DatumGetInt32(v[0]);
		row->endpoint_id = DatumGetInt32(v[1]);
		row->workspace = store_text(v[2], nulls[2], context);
		row->url = store_text(v[3], nulls[3], context);
		copy_events(row, v[4], nulls[4], context);
		row->status = status_from_name(TextDatumGetCString(v[5]));
		row->secret = copy_bytea(v[6], nulls[6], context);
		row->key_id = nulls[7] ? 0 : DatumGetInt32(v[7]);
		row->previous_secret = copy_bytea(v[8], nulls[8], context);
		row->previous_key_id = nulls[9] ? 0 : DatumGetInt32(v[9]);
		row->previous_until = store_time(v[10], nulls[10]);
		row->failing_since = store_time(v[11], nulls[11]);
	}
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* Read the endpoints of a workspace */
int
webhook_load_workspace(int32 workspace_id, WebhookEndpointRow **rows)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	int			n;

	plan_keep(&plan,
			  ENDPOINT_COLUMNS
			  " FROM otp.webhook_endpoints e JOIN otp.workspaces w ON w.workspace_id = e.workspace_id"
			  " WHERE e.workspace_id = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run(plan, values, NULL, NULL, true, 0);
	n = take_endpoints(rows, context);
	MemoryContextSwitchTo(context);
	return n;
}

/* Read some endpoints */
int
webhook_load_endpoints(const int32 *workspace_ids, const int32 *endpoint_ids, int n, WebhookEndpointRow **rows)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4ARRAYOID, INT4ARRAYOID};
	Datum	   *ids[2];
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;
	int			found;

	plan_keep(&plan,
			  ENDPOINT_COLUMNS
			  " FROM unnest($1, $2) k (workspace_id, endpoint_id)"
			  " JOIN otp.webhook_endpoints e ON e.workspace_id = k.workspace_id AND e.endpoint_id = k.endpoint_id"
			  " JOIN otp.workspaces w ON w.workspace_id = e.workspace_id",
			  lengthof(types), types);
	for (int c = 0; c < 2; c++)
		ids[c] = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		ids[0][i] = Int32GetDatum(workspace_ids[i]);
		ids[1][i] = Int32GetDatum(endpoint_ids[i]);
	}
	for (int c = 0; c < 2; c++)
		values[c] = store_array(ids[c], NULL, n, INT4OID);
	plan_run(plan, values, NULL, NULL, true, 0);
	found = take_endpoints(rows, context);
	MemoryContextSwitchTo(context);
	return found;
}

/* Read a workspace's channel of NOTIFY */
char *
webhook_notify_channel(int32 workspace_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	char	   *channel = NULL;

	plan_keep(&plan, "SELECT w.notify_channel FROM otp.workspaces w WHERE w.workspace_id = $1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	plan_run(plan, values, NULL, NULL, true, 1);
	if (SPI_processed > 0)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		channel = store_text(value, isnull, context);
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(context);
	return channel;
}

/* What UPDATEs of an endpoint end with: a row that somebody has is left alone */
#define IF_FREE " WHERE e.workspace_id = $1 AND e.endpoint_id = $2" \
	" AND EXISTS (SELECT 1 FROM otp.webhook_endpoints l" \
	" WHERE l.workspace_id = $1 AND l.endpoint_id = $2 FOR NO KEY UPDATE SKIP LOCKED)"

/* Note since when an endpoint fails */
bool
webhook_note_failing(int32 workspace_id, int32 endpoint_id, TimestampTz since)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, TIMESTAMPTZOID};
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan, "UPDATE otp.webhook_endpoints e SET failing_since = $3" IF_FREE, lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int32GetDatum(endpoint_id);
	values[2] = TimestampTzGetDatum(since);
	nulls[2] = since == 0 ? 'n' : ' ';
	plan_run(plan, values, nulls, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return SPI_processed > 0;
}

/* Disable an endpoint */
bool
webhook_disable(int32 workspace_id, int32 endpoint_id, const char *reason, TimestampTz now)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[4];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan,
			  "UPDATE otp.webhook_endpoints e SET status = 'disabled', disabled_reason = $3, disabled_at = $4" IF_FREE,
			  lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int32GetDatum(endpoint_id);
	values[2] = CStringGetTextDatum(reason);
	values[3] = TimestampTzGetDatum(now);
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
	return SPI_processed > 0;
}

/* ---- what is owed ---- */

/* The columns of a row, as arrays */
#define ROW_NCOLUMNS 11

static const Oid row_elements[ROW_NCOLUMNS] = {
	UUIDOID, INT4OID, INT4OID, UUIDOID, INT2OID, INT2OID, TEXTOID, TIMESTAMPTZOID, INT2OID, INT2OID, TIMESTAMPTZOID
};

/* Make one column's array of some rows */
static Datum
row_column(const WebhookRow *rows, size_t stride, const int *members, int n, int column)
{
	Datum	   *values = palloc(Max(n, 1) * sizeof(Datum));
	bool	   *nulls = palloc0(Max(n, 1) * sizeof(bool));

	for (int i = 0; i < n; i++)
	{
		const WebhookRow *r;

		r = (const WebhookRow *) ((const char *) rows + (members != NULL ? members[i] : i) * stride);
		switch (column)
		{
			case 0:
				values[i] = UUIDPGetDatum(&r->id);
				break;
			case 1:
				values[i] = Int32GetDatum(r->workspace_id);
				break;
			case 2:
				values[i] = Int32GetDatum(r->endpoint_id);
				break;
			case 3:
				values[i] = UUIDPGetDatum(&r->verification_id);
				nulls[i] = r->test || r->of_workspace;
				break;
			case 4:
				values[i] = Int16GetDatum(r->slot);
				break;
			case 5:
				values[i] = Int16GetDatum(r->number);
				break;
			case 6:
				values[i] = CStringGetTextDatum(r->event);
				break;
			case 7:
				values[i] = TimestampTzGetDatum(r->occurred_at);
				break;
			case 8:
				values[i] = Int16GetDatum(r->tries);
				break;
			case 9:
				values[i] = Int16GetDatum(r->attempts);
				break;
			case 10:
				values[i] = TimestampTzGetDatum(r->due_at);
				break;
		}
	}
	return store_array(values, nulls, n, row_elements[column]);
}

/* Insert rows */
void
webhook_insert(const WebhookRow *rows, int n)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[ROW_NCOLUMNS + 1] = {
		UUIDARRAYOID, INT4ARRAYOID, INT4ARRAYOID, UUIDARRAYOID, INT2ARRAYOID, INT2ARRAYOID, TEXTARRAYOID,
		TIMESTAMPTZARRAYOID, INT2ARRAYOID, INT2ARRAYOID, TIMESTAMPTZARRAYOID, INT8OID
	};
	Datum		values[ROW_NCOLUMNS + 1];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan,
			  "INSERT INTO otp.webhook_outbox (id, workspace_id, endpoint_id, verification_id, slot, number, event,"
			  " occurred_at, tries, attempts, due_at, origin)"
			  " SELECT k.*, $12 FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) k",
			  lengthof(types), types);
	for (int c = 0; c < ROW_NCOLUMNS; c++)
		values[c] = row_column(rows, sizeof(WebhookRow), NULL, n, c);
	values[ROW_NCOLUMNS] = Int64GetDatum(roster_origin());
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
}

/*
 * Take over the rows of a statement; columns as row_elements, and one more
 * that says which are wanted, unless that is NULL
 */
static int
take_rows(WebhookRow *rows, bool *wanted)
{
	int			n = (int) SPI_processed;

	for (int i = 0; i < n; i++)
	{
		Datum		v[ROW_NCOLUMNS + 1];
		bool		nulls[ROW_NCOLUMNS + 1];
		WebhookRow *row = &rows[i];

		memset(row, 0, sizeof(WebhookRow));
		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, v, nulls);
		row->id = *DatumGetUUIDP(v[0]);
		row->workspace_id = DatumGetInt32(v[1]);
		row->endpoint_id = DatumGetInt32(v[2]);
		row->slot = DatumGetInt16(v[4]);
		row->number = DatumGetInt16(v[5]);
		row->of_workspace = nulls[3] && row->number == WEBHOOK_NUMBER_WORKSPACE;
		row->test = nulls[3] && !row->of_workspace;
		if (!nulls[3])
			row->verification_id = *DatumGetUUIDP(v[3]);
		strlcpy(row->event, TextDatumGetCString(v[6]), sizeof(row->event));
		row->occurred_at = DatumGetTimestampTz(v[7]);
		row->tries = DatumGetInt16(v[8]);
		row->attempts = DatumGetInt16(v[9]);
		row->due_at = DatumGetTimestampTz(v[10]);
		if (wanted != NULL)
			wanted[i] = DatumGetBool(v[ROW_NCOLUMNS]);
	}
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* Read an endpoint's next rows */
int
webhook_read(int32 endpoint_id, const pg_uuid_t *after, WebhookRow *rows)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, UUIDOID, INT8OID};
	Datum		values[3];
	MemoryContext context = CurrentMemoryContext;
	int			n;

	StaticAssertStmt(WEBHOOK_BATCH == 500, "LIMIT below");
	plan_keep(&plan,
			  "SELECT o.id, o.workspace_id, o.endpoint_id, o.verification_id, o.slot, o.number, o.event,"
			  " o.occurred_at, o.tries, o.attempts, o.due_at FROM otp.webhook_outbox o"
			  " WHERE o.endpoint_id = $1 AND o.id > $2 AND o.origin = $3 ORDER BY o.id LIMIT 500",
			  lengthof(types), types);
	values[0] = Int32GetDatum(endpoint_id);
	values[1] = UUIDPGetDatum(after);
	values[2] = Int64GetDatum(roster_origin());
	plan_run(plan, values, NULL, NULL, true, 0);
	n = take_rows(rows, NULL);
	MemoryContextSwitchTo(context);
	return n;
}

/* Find the next endpoint that is owed something */
bool
webhook_next_owed(int32 after, int32 *workspace_id, int32 *endpoint_id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4OID, INT8OID};
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;
	bool		found;

	plan_keep(&plan,
			  "SELECT o.workspace_id, o.endpoint_id FROM otp.webhook_outbox o"
			  " WHERE o.endpoint_id > $1 AND o.origin = $2 ORDER BY o.endpoint_id LIMIT 1",
			  lengthof(types), types);
	values[0] = Int32GetDatum(after);
	values[1] = Int64GetDatum(roster_origin());
	plan_run(plan, values, NULL, NULL, true, 1);
	found = SPI_processed > 0;
	if (found)
	{
		bool		isnull;

		*workspace_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		*endpoint_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(context);
	return found;
}

/* Delete rows that are nobody's */
void
webhook_delete_foreign(TimestampTz before)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;

	plan_keep(&plan, "DELETE FROM otp.webhook_outbox WHERE origin <> $1 AND due_at < $2", lengthof(types), types);
	values[0] = Int64GetDatum(roster_origin());
	values[1] = TimestampTzGetDatum(before);
	plan_run(plan, values, NULL, NULL, false, 0);
	MemoryContextSwitchTo(context);
}

/* ---- attempts ---- */

/* Write attempts down */
static void
insert_attempts(const WebhookAttempt *attempts, int n)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {
		UUIDARRAYOID, INT4ARRAYOID, INT4ARRAYOID, UUIDARRAYOID, INT2ARRAYOID, INT2ARRAYOID, TEXTARRAYOID,
		TIMESTAMPTZARRAYOID, INT2ARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, INT2ARRAYOID, TEXTARRAYOID,
		BOOLARRAYOID, TIMESTAMPTZARRAYOID
	};
	Datum		values[lengthof(types)];
	Datum	   *v[7];
	bool	   *nulls[7];

	plan_keep(&plan,
			  "INSERT INTO otp.webhook_attempts (webhook_id, workspace_id, endpoint_id, verification_id, slot, number,"
			  " event, occurred_at, attempt, attempted_at, duration_ms, http_status, error, delivered, next_attempt_at)"
			  " SELECT k.* FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) k"
			  " ON CONFLICT DO NOTHING",
			  lengthof(types), types);
	for (int c = 0; c < 7; c++)
	{
		v[c] = palloc(n * sizeof(Datum));
		nulls[c] = palloc0(n * sizeof(bool));
	}
	for (int i = 0; i < n; i++)
	{
		const WebhookAttempt *a = &attempts[i];

		v[0][i] = Int16GetDatum(ulid_slot(&a->row.id));
		v[1][i] = TimestampTzGetDatum(a->attempted_at);
		v[2][i] = Int32GetDatum(a->duration_ms);
		nulls[2][i] = a->duration_ms < 0;
		v[3][i] = Int16GetDatum(a->http_status);
		nulls[3][i] = a->http_status == 0;
		v[4][i] = a->error != NULL ? CStringGetTextDatum(a->error) : (Datum) 0;
		nulls[4][i] = a->error == NULL;
		v[5][i] = BoolGetDatum(a->delivered);
		v[6][i] = TimestampTzGetDatum(a->row.due_at);
		nulls[6][i] = a->over;
	}
	values[0] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 0);
	values[1] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 1);
	values[2] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 2);
	values[3] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 3);
	values[4] = store_array(v[0], NULL, n, INT2OID);
	values[5] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 5);
	values[6] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 6);
	values[7] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 7);
	values[8] = row_column(&attempts->row, sizeof(WebhookAttempt), NULL, n, 9);
	values[9] = store_array(v[1], NULL, n, TIMESTAMPTZOID);
	values[10] = store_array(v[2], nulls[2], n, INT4OID);
	values[11] = store_array(v[3], nulls[3], n, INT2OID);
	values[12] = store_array(v[4], nulls[4], n, TEXTOID);
	values[13] = store_array(v[5], NULL, n, BOOLOID);
	values[14] = store_array(v[6], nulls[6], n, TIMESTAMPTZOID);
	plan_run(plan, values, NULL, NULL, false, 0);
}

/* Write attempts and their rows */
void
webhook_write_attempts(const WebhookAttempt *attempts, int n)
{
	static SPIPlanPtr delete_plan = NULL;
	static SPIPlanPtr update_plan = NULL;
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID, INT2ARRAYOID, INT2ARRAYOID, TIMESTAMPTZARRAYOID};
	Datum		values[5];
	MemoryContext context = CurrentMemoryContext;
	int		   *members = palloc(n * sizeof(int));

	insert_attempts(attempts, n);
	for (int over = 0; over < 2; over++)
	{
		SPIPlanPtr	plan;
		int			count = 0;

		for (int i = 0; i < n; i++)
			if (attempts[i].over == (over == 1))
				members[count++] = i;
		if (count == 0)
			continue;
		if (over == 1)
			plan = plan_keep(&delete_plan,
							 "DELETE FROM otp.webhook_outbox o USING unnest($1, $2) k (endpoint_id, id)" ROW_OF_KEY,
							 2, types);
		else
			plan = plan_keep(&update_plan,
							 "UPDATE otp.webhook_outbox o SET tries = k.tries, attempts = k.attempts, due_at = k.due_at"
							 " FROM unnest($1, $2, $3, $4, $5) k (endpoint_id, id, tries, attempts, due_at)" ROW_OF_KEY,
							 lengthof(types), types);
		values[0] = row_column(&attempts->row, sizeof(WebhookAttempt), members, count, 2);
		values[1] = row_column(&attempts->row, sizeof(WebhookAttempt), members, count, 0);
		values[2] = row_column(&attempts->row, sizeof(WebhookAttempt), members, count, 8);
		values[3] = row_column(&attempts->row, sizeof(WebhookAttempt), members, count, 9);
		values[4] = row_column(&attempts->row, sizeof(WebhookAttempt), members, count, 10);
		plan_run(plan, values, NULL, NULL, false, 0);
	}
	MemoryContextSwitchTo(context);
}

/* Look for webhooks in one leaf that are to be replayed */
int
webhook_read_attempts(int leaf, int32 workspace_id, int32 endpoint_id, WebhookPosition *position,
					  const pg_uuid_t *until, bool only_failed, WebhookRow *rows, int *looked_at)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4OID, INT4OID, UUIDOID, UUIDOID, BOOLOID, INT2OID};
	Datum		values[6];
	MemoryContext context = CurrentMemoryContext;
	bool		wanted[WEBHOOK_BATCH];
	int			n = 0;

	/*
	 * The last attempt of each: where it is not the end, the row is still
	 * owed. LIMIT is on what is looked at, and the questions about each are
	 * asked one by one, in this order, of an index: OFFSET 0 keeps the
	 * planner from making joins of them, which might read it all.
	 */
	StaticAssertStmt(WEBHOOK_BATCH == 500, "LIMIT below");
	plan_keep_leaf(plans, leaf,
				   "SELECT a.webhook_id, a.workspace_id, a.endpoint_id, a.verification_id, a.slot, a.number, a.event,"
				   " a.occurred_at, 0::int2, a.attempt, a.attempted_at, CASE"
				   " WHEN EXISTS (SELECT 1 FROM otp.webhook_attempts_%02d b WHERE b.workspace_id = $1"
				   " AND b.endpoint_id = $2 AND b.webhook_id = a.webhook_id AND b.attempt > a.attempt OFFSET 0) THEN false"
				   " WHEN EXISTS (SELECT 1 FROM otp.webhook_outbox o"
				   " WHERE o.endpoint_id = $2 AND o.id = a.webhook_id OFFSET 0) THEN false"
				   " WHEN $5 THEN NOT EXISTS (SELECT 1 FROM otp.webhook_attempts_%02d b WHERE b.workspace_id = $1"
				   " AND b.endpoint_id = $2 AND b.webhook_id = a.webhook_id AND b.delivered OFFSET 0)"
				   " ELSE true END"
				   " FROM (SELECT * FROM otp.webhook_attempts_%02d l WHERE l.workspace_id = $1 AND l.endpoint_id = $2"
				   " AND (l.webhook_id, l.attempt) > ($3, $6) AND l.webhook_id <= $4"
				   " ORDER BY l.webhook_id, l.attempt LIMIT 500) a ORDER BY a.webhook_id, a.attempt",
				   lengthof(types), types);
	values[0] = Int32GetDatum(workspace_id);
	values[1] = Int32GetDatum(endpoint_id);
	values[2] = UUIDPGetDatum(&position->id);
	values[3] = UUIDPGetDatum(until);
	values[4] = BoolGetDatum(only_failed);
	values[5] = Int16GetDatum(position->attempt);
	plan_run(plans[leaf], values, NULL, NULL, true, 0);
	*looked_at = take_rows(rows, wanted);
	if (*looked_at > 0)
	{
		position->id = rows[*looked_at - 1].id;
		position->attempt = rows[*looked_at - 1].attempts;
	}
	for (int i = 0; i < *looked_at; i++)
	{
		if (!wanted[i])
			continue;
		rows[n] = rows[i];
		rows[n].slot = rows[n].test || rows[n].of_workspace ? 0 : ulid_slot(&rows[n].verification_id);
		n++;
	}
	MemoryContextSwitchTo(context);
	return n;
}

/* ---- what webhooks tell of ---- */

#define SOURCE_NCOLUMNS 22

/* Read what the rows of one leaf tell of */
static void
load_sources_leaf(int leaf, const WebhookRow *rows, WebhookSource *sources, const int *members, int count,
				  MemoryContext context)
{
	static SPIPlanPtr plans[ULID_SLOTS];
	Oid			types[] = {INT4ARRAYOID, UUIDARRAYOID, INT2ARRAYOID};
	Datum		values[3];

	/*
	 * An event is about a message, or about what became of them all: then the
	 * last one is of interest.
	 */
	plan_keep_leaf(plans, leaf,
				   "SELECT k.n, v.created_at, v.expires_at, v.verified_at, v.phone, v.template, v.language,"
				   " coalesce(m.channel, v.channel), v.context, v.metadata::text,"
				   " m.sent_at, m.delivered_at, m.failed_at, m.message_id, m.ended_reason, m.detail, m.provider_code,"
				   " f.channel, f.ended_reason, f.detail, f.provider_code,"
				   " f.sent_at IS NOT NULL AND f.failed_at IS NULL"
				   " FROM unnest($1, $2, $3) WITH ORDINALITY k (workspace_id, id, number, n)"
				   " CROSS JOIN LATERAL (SELECT * FROM otp.verifications_%02d w"
				   " WHERE w.workspace_id = k.workspace_id AND w.id = k.id OFFSET 0) v"
				   " LEFT JOIN LATERAL (SELECT * FROM otp.messages_%02d l WHERE l.workspace_id = k.workspace_id"
				   " AND l.verification_id = k.id AND (k.number = 0 OR l.number = k.number)"
				   " ORDER BY l.number DESC LIMIT 1) m ON true"
				   " LEFT JOIN LATERAL (SELECT * FROM otp.messages_%02d p WHERE k.number > 0 AND k.number % 2 = 0"
				   " AND p.workspace_id = k.workspace_id AND p.verification_id = k.id"
				   " AND p.number = k.number - 1 OFFSET 0) f ON true",
				   lengthof(types), types);
	values[0] = row_column(rows, sizeof(WebhookRow), members, count, 1);
	values[1] = row_column(rows, sizeof(WebhookRow), members, count, 3);
	values[2] = row_column(rows, sizeof(WebhookRow), members, count, 5);
	plan_run(plans[leaf], values, NULL, NULL, true, 0);

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		v[SOURCE_NCOLUMNS];
		bool		nulls[SOURCE_NCOLUMNS];
		WebhookSource *s;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, v, nulls);
		s = &sources[members[DatumGetInt64(v[0]) - 1]];
		s->found = true;
		s->created_at = DatumGetTimestampTz(v[1]);
		s->expires_at = DatumGetTimestampTz(v[2]);
		s->verified_at = store_time(v[3], nulls[3]);
		s->phone = store_text(v[4], nulls[4], context);
		s->template_name = store_text(v[5], nulls[5], context);
		s->language = store_text(v[6], nulls[6], context);
		s->channel = store_text(v[7], nulls[7], context);
		s->context = store_text(v[8], nulls[8], context);
		s->metadata = store_text(v[9], nulls[9], context);
		s->sent_at = store_time(v[10], nulls[10]);
		s->delivered_at = store_time(v[11], nulls[11]);
		s->failed_at = store_time(v[12], nulls[12]);
		s->message_id = store_text(v[13], nulls[13], context);
		s->reason = store_text(v[14], nulls[14], context);
		s->detail = store_text(v[15], nulls[15], context);
		s->provider_code = nulls[16] ? 0 : DatumGetInt32(v[16]);
		s->first_channel = store_text(v[17], nulls[17], context);
		s->first_reason = store_text(v[18], nulls[18], context);
		s->first_detail = store_text(v[19], nulls[19], context);
		s->first_code = nulls[20] ? 0 : DatumGetInt32(v[20]);
		s->first_silent = !nulls[21] && DatumGetBool(v[21]);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Read what rows about workspaces tell of */
static void
load_sources_workspaces(const WebhookRow *rows, WebhookSource *sources, const int *members, int count)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT4ARRAYOID, TIMESTAMPTZARRAYOID};
	Datum		values[2];

	plan_keep(&plan,
			  "SELECT k.n, c.balance, c.credits_low FROM unnest($1, $2) WITH ORDINALITY k (workspace_id, told_at, n)"
			  " JOIN otp.credit_warnings c ON c.workspace_id = k.workspace_id AND c.told_at = k.told_at",
			  lengthof(types), types);
	values[0] = row_column(rows, sizeof(WebhookRow), members, count, 1);
	values[1] = row_column(rows, sizeof(WebhookRow), members, count, 7);
	plan_run(plan, values, NULL, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum		v[3];
		bool		nulls[3];
		WebhookSource *s;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, v, nulls);
		s = &sources[members[DatumGetInt64(v[0]) - 1]];
		s->found = true;
		s->balance = DatumGetInt64(v[1]);
		s->credits_low = DatumGetInt64(v[2]);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Read what rows tell of */
void
webhook_load_sources(const WebhookRow *rows, WebhookSource *sources, int n)
{
	MemoryContext context = CurrentMemoryContext;
	int		   *members = palloc(n * sizeof(int));
	int			nworkspaces = 0;

	memset(sources, 0, n * sizeof(WebhookSource));
	for (int i = 0; i < n; i++)
		if (rows[i].of_workspace)
			members[nworkspaces++] = i;
	if (nworkspaces > 0)
		load_sources_workspaces(rows, sources, members, nworkspaces);
	for (int leaf = 0; leaf < ULID_SLOTS; leaf++)
	{
		int			count = 0;

		for (int i = 0; i < n; i++)
			if (!rows[i].test && !rows[i].of_workspace && rows[i].slot == leaf)
				members[count++] = i;
		if (count > 0)
			load_sources_leaf(leaf, rows, sources, members, count, context);
	}
	MemoryContextSwitchTo(context);
}
