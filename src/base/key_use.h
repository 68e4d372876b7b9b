/*-------------------------------------------------------------------------
 *
 * key_use.h
 *	  When API keys were last used, before the sender writes it down.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_KEY_USE_H
#define OTP_KEY_USE_H

#include "datatype/timestamp.h"

/* Keys of all databases that are remembered at most */
#define KEY_USES 4096

typedef struct KeyUse
{
	int32		workspace_id;
	int32		key_id;
	TimestampTz used_at;
} KeyUse;

extern Size key_use_shmem_size(void);
extern void key_use_shmem_init(void);

/*
 * Note a use of a key of this database. Raises nothing; where there is no
 * room, the use that is written down and furthest back makes some, or else
 * the one furthest back.
 */
extern void key_use_note(int32 workspace_id, int32 key_id, TimestampTz now);

/* Copy this database's; uses has room for KEY_USES. */
extern int	key_uses(KeyUse *uses);

/*
 * Copy up to max of this database's that are to be written: used since they
 * were, and not tried within the last minute, unless all is set. Each counts
 * as tried.
 */
extern int	key_uses_due(KeyUse *uses, int max, TimestampTz now, bool all);

/* Note that a use has been written. */
extern void key_use_written(const KeyUse *use);

#endif							/* OTP_KEY_USE_H */
