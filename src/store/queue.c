/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  Rows of otp.outbox, as backends queue them for the sender.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/roster.h"
#include "base/seal.h"
#include "base/ulid.h"
#include "store/plan.h"
#include "store/queue.h"

static const char *const kind_names[] = {"message", "verified", "canceled", "receipts", "job"};

/* Queue a row */
void
queue_row(OutboxKind kind, const pg_uuid_t *id, int32 workspace_id, int slot,
		  int number, TimestampTz expires_at, const char *payload)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {UUIDOID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID,
	INT2OID, INT2OID, TEXTOID, TEXTOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];

	plan_keep(&plan,
			  "INSERT INTO otp.outbox (id, xid, origin, due_at, expires_at, workspace_id, slot, number, kind, payload)"
			  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
			  lengthof(types), types);
	memset(nulls, ' ', sizeof(nulls));
	values[0] = UUIDPGetDatum(id);
	values[1] = Int64GetDatum((int64) U64FromFullTransactionId(GetTopFullTransactionId()));
	values[2] = Int64GetDatum(roster_origin());
	values[3] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[4] = TimestampTzGetDatum(expires_at);
	values[5] = Int32GetDatum(workspace_id);
	values[6] = Int16GetDatum(slot);
	values[7] = Int16GetDatum(number);
	values[8] = CStringGetTextDatum(kind_names[kind]);
	if (payload != NULL)
		values[9] = CStringGetTextDatum(payload);
	else
		nulls[9] = 'n';
	plan_run(plan, values, nulls, NULL, false, 0);
}

/* Say where a sealed code belongs */
static const char *
code_purpose(const pg_uuid_t *id, int32 workspace_id)
{
	char		text[OTP_ID_LENGTH + 1];

	ulid_format(id, text);
	return psprintf("outbox:%d:%s", workspace_id, text);
}

/* Seal a code that was given */
bytea *
queue_seal_code(const pg_uuid_t *id, int32 workspace_id, const char *code, int key_id)
{
	return seal(code, strlen(code), code_purpose(id, workspace_id), key_id);
}

/* Open it again */
char *
queue_open_code(const pg_uuid_t *id, int32 workspace_id, const bytea *sealed, int key_id)
{
	return unseal_or_null(sealed, code_purpose(id, workspace_id), key_id, NULL);
}

/* Queue a payload */
void
queue_payload(OutboxKind kind, int32 workspace_id, const char *payload)
{
	TimestampTz now = GetCurrentTimestamp();
	pg_uuid_t	id;

	ulid_make(&id, now);
	queue_row(kind, &id, workspace_id, 0, OUTBOX_NUMBER_OTHER, now + OUTBOX_PATIENCE_US, payload);
}
