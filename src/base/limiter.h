/*-------------------------------------------------------------------------
 *
 * limiter.h
 *	  Sends and jobs per second, across all backends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_LIMITER_H
#define OTP_LIMITER_H

#include "datatype/timestamp.h"

extern Size limiter_shmem_size(void);
extern void limiter_shmem_init(void);

/*
 * Take one send from a workspace's bucket, which holds burst of them and gets
 * per_second new ones evenly. False when it is empty; *retry_after is then
 * the seconds, at least 1, after which there is one again.
 */
extern bool limiter_take(int32 workspace_id, int per_second, int burst, int *retry_after);

/* How many sends are in the bucket now, and when (seconds from now) it will be full. Takes none. */
extern void limiter_look(int32 workspace_id, int per_second, int burst, int *left, double *full_after);

/*
 * The same for what a workspace has the sender do beside codes: test
 * webhooks, replays, requests about templates; and for what it changes of its
 * endpoints. Raises rate_limit_exceeded
 * when there is none; what is taken is not given back by a rollback.
 */
extern void limiter_take_job(int32 workspace_id);

#endif							/* OTP_LIMITER_H */
