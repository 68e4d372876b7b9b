/*-------------------------------------------------------------------------
 *
 * plan.h
 *	  Prepared statements of the store.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_PLAN_H
#define OTP_PLAN_H

#include "executor/spi.h"
#include "utils/snapshot.h"

#include "base/ulid.h"

/*
 * Prepare a statement once and keep it for the life of the session. Needs
 * SPI_connect and the owner's scope; gives *slot.
 */
extern SPIPlanPtr plan_keep(SPIPlanPtr *slot, const char *sql, int nargs, const Oid *argtypes);

/*
 * The same for one leaf of the ring: every %02d in sql becomes the slot's
 * number. plans is an array of RING_SLOTS.
 */
extern SPIPlanPtr plan_keep_leaf(SPIPlanPtr *plans, int leaf, const char *sql, int nargs, const Oid *argtypes);

/*
 * Run a kept plan; gives SPI's result code and raises on a failure of it.
 * snapshot NULL is SPI's usual choice; read_only true runs under the active
 * snapshot. limit 0 is all rows. Rows are in SPI_tuptable.
 */
extern int	plan_run(SPIPlanPtr plan, Datum *values, const char *nulls,
					 Snapshot snapshot, bool read_only, long limit);

/*
 * Open a cursor for a kept plan, under the active snapshot. For SPI_cursor_fetch
 * and SPI_cursor_close.
 */
extern Portal plan_open(SPIPlanPtr plan, Datum *values, const char *nulls);

/*
 * Run a kept plan under the latest snapshot, whatever the isolation level:
 * what limits and attempts are decided on must not be a transaction's age.
 */
extern int	plan_run_latest(SPIPlanPtr plan, Datum *values, const char *nulls, long limit);

/* The schema that the verbs are in, quoted. palloc'd by SPI. */
extern const char *plan_verbs_schema(void);

#endif							/* OTP_PLAN_H */
