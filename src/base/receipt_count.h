/*-------------------------------------------------------------------------
 *
 * receipt_count.h
 *	  How many receipts were taken and refused, per provider account.
 *
 * In shared memory, since the server's start: what is refused rolls back, and
 * is to be seen all the same. Nothing here raises.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_RECEIPT_COUNT_H
#define OTP_RECEIPT_COUNT_H

#include "datatype/timestamp.h"

typedef struct ReceiptCount
{
	Oid			database;
	int			account_id;
	int64		taken;			/* updates of use in what was rightly signed */
	int64		refused;		/* calls with a wrong signature or token */
	TimestampTz last_at;		/* of what was rightly signed; 0: nothing yet */
	TimestampTz used_at;		/* internal */
} ReceiptCount;

extern Size receipt_count_shmem_size(void);
extern void receipt_count_shmem_init(void);

/* Count for an account of this database. */
extern void receipt_count_taken(int account_id, int updates);
extern void receipt_count_refused(int account_id);

/* Forget an account of this database: its id is another's now. */
extern void receipt_count_forget(int account_id);

/* Copy this database's, up to max; gives the number. */
extern int	receipt_counts(ReceiptCount *copies, int max);

#endif							/* OTP_RECEIPT_COUNT_H */
