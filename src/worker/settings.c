/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  The settings that our workers run with.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "utils/guc.h"

#include "worker/settings.h"

/* Override what ALTER DATABASE or ALTER ROLE may impose */
void
settings_impose(const char *lock_timeout)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"role", "none"},
		{"session_replication_role", "origin"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"exit_on_error", "off"},
		{"row_security", "off"},
		{"transform_null_equals", "off"},
		{"default_toast_compression", "pglz"},

		/*
		 * Flushed here before we go on. Not "on": should a synchronous
		 * standby be away, callers wait for it at their commits; what they
		 * have committed must be delivered, and we must be able to stop.
		 */
		{"synchronous_commit", "local"},

		/*
		 * All look-ups by key: the one plan that stays good whatever the
		 * statistics
		 */
		{"plan_cache_mode", "force_generic_plan"},
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"enable_hashjoin", "off"},
		{"enable_mergejoin", "off"},
		{"enable_sort", "off"},
		{"enable_material", "off"},
		{"enable_memoize", "off"},
		{"enable_nestloop", "on"},
		{"enable_indexscan", "on"},
		{"enable_tidscan", "on"},
		{"jit", "off"},
		{"max_parallel_workers_per_gather", "0"},
		{"debug_print_parse", "off"},
		{"debug_print_rewritten", "off"},
		{"debug_print_plan", "off"}
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		/* Not all are there in all versions */
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
	SetConfigOption("lock_timeout", lock_timeout, PGC_SUSET, PGC_S_OVERRIDE);
}
