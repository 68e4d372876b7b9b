/*-------------------------------------------------------------------------
 *
 * outcome.h
 *	  Whose first message has an outcome: news from the senders to the
 *	  listeners, in shared memory.
 *
 * A ring of the last ids. Who does not come by in time misses some, hears so,
 * and looks for himself. News may also be early or wrong: the tables tell.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_OUTCOME_H
#define OTP_OUTCOME_H

#include "utils/uuid.h"

extern Size outcome_shmem_size(void);
extern void outcome_shmem_init(void);

/*
 * Post ids of the current database after the transaction that tells their
 * outcome has committed. Costs one read while nobody waits in this database.
 * Raises nothing.
 */
extern void outcome_post(const pg_uuid_t *ids, int n);

/*
 * Begin or end to wait for news of the current database: those who wait have
 * their latch set. Ended at exit, too. Waiting begins with the news from then
 * on.
 */
extern void outcome_listen(bool wait);

/*
 * Take up to max ids that were posted in the current database since the last
 * call; gives their number. *missed says that some were lost.
 */
extern int	outcome_take(pg_uuid_t *ids, int max, bool *missed);

#endif							/* OTP_OUTCOME_H */
