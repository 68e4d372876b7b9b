/*-------------------------------------------------------------------------
 *
 * outbox.h
 *	  The queue of messages owed, as the sender reads and writes it.
 *
 * All functions need a transaction, SPI_connect, the owner's scope and an
 * active snapshot, unless they say otherwise. They leave the current memory
 * context as it is, which SPI itself does not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_OUTBOX_H
#define OTP_OUTBOX_H

#include "datatype/timestamp.h"
#include "storage/itemptr.h"
#include "utils/uuid.h"

#include "store/queue.h"

/* A row of otp.outbox, but for its payload */
typedef struct OutboxRow
{
	pg_uuid_t	id;
	uint64		xid;
	int64		origin;
	TimestampTz due_at;
	TimestampTz expires_at;
	ItemPointerData ctid;
	int32		workspace_id;
	int16		slot;
	int16		number;
	int16		tries;
	int16		unknown;
	OutboxKind	kind;
	bool		sms;			/* channel of a message, which is whatsapp
								 * otherwise */
	int16		credits;		/* paid for a message, without its fallback */
} OutboxRow;

/* A transaction that was open when the position passed it */
typedef struct OutboxLate
{
	uint64		xid;
	bool		partly;			/* has ended, and been read up to here */
	pg_uuid_t	id;
	int16		number;
} OutboxLate;

/* How far the queue has been read. All zeroes is the beginning. */
typedef struct OutboxPosition
{
	uint64		xid;
	pg_uuid_t	id;
	int16		number;
	int			nlate;
	int			late_size;
	OutboxLate *late;			/* in TopMemoryContext */
} OutboxPosition;

/* Most rows that one call of outbox_read gives */
#define OUTBOX_BATCH 256

/*
 * Take a share lock on the queue. Does not wait: false when somebody is
 * about to drop, move or empty it, or when it is not there. Needs only a
 * transaction.
 */
extern bool outbox_lock(void);

/*
 * Read the next rows and move the position on; gives their number. *more is
 * set when there may be further rows already. Writes nothing.
 */
extern int	outbox_read(OutboxPosition *position, OutboxRow *rows, int limit, bool *more);

/*
 * Read the payload of a row, in the current context; NULL when it has none,
 * or the row is gone.
 */
extern char *outbox_payload(const OutboxRow *row);

/* Likewise the sealed code of a message, if one was given. */
extern bytea *outbox_code(const OutboxRow *row);

/* Make one position equal to another. Needs no transaction. */
extern void outbox_copy_position(OutboxPosition *to, const OutboxPosition *from);

/*
 * Keep the position behind a row that has been read and has a new number now.
 * Needs no transaction.
 */
extern void outbox_keep_behind(OutboxPosition *position, const OutboxRow *row);

/*
 * Delete rows, wherever they are by now. Rows that are gone already are no
 * error.
 */
extern void outbox_delete(OutboxRow **rows, int n);

/*
 * Write due_at, tries, unknown, number and channel of rows that were under
 * old_numbers; sets their new ctid, which is invalid for rows that are gone.
 */
extern void outbox_update(OutboxRow **rows, const int16 *old_numbers, int n);

/*
 * Are there rows of transactions that this server has yet to begin? Another
 * one has queued them, and outbox_read does not see them.
 */
extern bool outbox_has_foreign(void);

/*
 * Delete rows that expired before a time and that no sender will delete:
 * those of other servers and databases, and all when all is set.
 */
extern uint64 outbox_delete_expired(TimestampTz before, bool all);

/* For the store: make an array of n values; nulls may be NULL. */
extern Datum store_array(Datum *values, bool *nulls, int n, Oid element_type);

/* Likewise: copy a text column into a context; NULL is NULL. */
extern char *store_text(Datum value, bool isnull, MemoryContext context);

/* Likewise: give a timestamp column; NULL is 0. */
extern TimestampTz store_time(Datum value, bool isnull);

/*
 * Likewise: give an interval in microseconds, as those who compare intervals
 * see it: a month has 30 days. None is too long: ten years stand for more, 0
 * for less than nothing.
 */
extern int64 store_interval(Datum value);

#endif							/* OTP_OUTBOX_H */
