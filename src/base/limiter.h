/*-------------------------------------------------------------------------
 *
 * limiter.h
 *	  Sends per second, across all backends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_LIMITER_H
#define OTP_LIMITER_H

#include "datatype/timestamp.h"

extern Size limiter_shmem_size(void);
extern void limiter_shmem_init(void);

/*
 * Take one send from a workspace's bucket, which holds one second's worth
 * and refills evenly. False when it is empty; *retry_after is then the
 * seconds, at least 1, after which there is one again.
 */
extern bool limiter_take(int32 workspace_id, int per_second, int *retry_after);

#endif							/* OTP_LIMITER_H */
