/*-------------------------------------------------------------------------
 *
 * key_use.c
 *	  Write down when API keys were last used.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/guc.h"
#include "utils/timestamp.h"

#include "store/api_key.h"
#include "worker/sender.h"
#include "worker/upkeep.h"

/* How often uses are looked for; of each key, one is written in a minute */
#define LOOK_MS 5000

/* With more to write at once */
#define PAUSE_MS 50

/* Somebody locks the table, or something went wrong */
#define TROUBLE_MS 60000

typedef struct Batch
{
	int			n;
	bool		locked;
	KeyUse		uses[KEY_USES_BATCH];
	bool		written[KEY_USES_BATCH];
} Batch;

static Batch batch;

/* Write a batch; in a transaction */
static void
write_batch(void *arg)
{
	/* A crash may forget the last minute's: no flush */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	batch.locked = !api_key_write_uses(batch.uses, batch.written, batch.n);
}

/* Write what is due, up to a batch; false when it cannot be done now */
static bool
write_due(TimestampTz now, bool all)
{
	batch.n = key_uses_due(batch.uses, KEY_USES_BATCH, now, all);
	if (batch.n == 0)
		return true;
	if (!turn_do(write_batch, NULL, NULL) || batch.locked)
		return false;
	for (int i = 0; i < batch.n; i++)
		if (batch.written[i])
			key_use_written(&batch.uses[i]);
	return true;
}

/* Write down when keys were used */
TimestampTz
key_use_turn(TimestampTz now)
{
	if (!write_due(now, false))
		return TimestampTzPlusMilliseconds(now, TROUBLE_MS);
	return TimestampTzPlusMilliseconds(now, batch.n == KEY_USES_BATCH ? PAUSE_MS : LOOK_MS);
}

/* Write down what is left: shared memory may go with the server */
void
key_use_leave(TimestampTz now)
{
	/* As many batches as there can be; what cannot be written is tried once */
	for (int i = 0; i < KEY_USES / KEY_USES_BATCH; i++)
		if (!write_due(now, true) || batch.n < KEY_USES_BATCH)
			break;
}
