/*-------------------------------------------------------------------------
 *
 * otp.c
 *	  Module entry: settings, shared memory, hooks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/guc.h"

#include "base/guard.h"
#include "base/guc.h"
#include "base/key_use.h"
#include "base/keyring.h"
#include "base/ledger.h"
#include "base/limiter.h"
#include "base/receipt_count.h"
#include "base/roster.h"
#include "base/shmem.h"
#include "verb/verb.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

char	   *otp_workspace = NULL;
bool		otp_delivery = true;
char	   *otp_key_file = NULL;
char	   *otp_https_proxy = NULL;
char	   *otp_ca_file = NULL;
bool		otp_allow_insecure_http = false;
bool		otp_allow_private_addresses = false;
int			otp_max_databases = 64;
int			otp_max_in_flight = 1000;
int			otp_ledger_size = 16384;
int			otp_guard_size = 4096;
int			otp_retention = 30 * MINUTES_PER_DAY;
bool		otp_allow_private_webhooks = false;

static shmem_startup_hook_type previous_shmem_startup_hook = NULL;
#ifdef HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type previous_shmem_request_hook = NULL;
#endif

/* Define the settings of a session */
static void
define_session_settings(void)
{
	DefineCustomStringVariable("otp.workspace",
							   "The workspace that this session acts for.",
							   "Empty is the only one granted to the role.",
							   &otp_workspace,
							   "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
}

/* Define the settings of the server */
static void
define_server_settings(void)
{
	DefineCustomBoolVariable("otp.delivery",
							 "Sends what is queued.",
							 "Off silences a server: a copy of another one, say. Codes wait until they expire.",
							 &otp_delivery,
							 true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("otp.key_file",
							   "The file with the keys that codes and secrets are made from.",
							   "A relative path starts at the data directory.",
							   &otp_key_file,
							   "otp.key",
							   PGC_POSTMASTER, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("otp.https_proxy",
							   "The proxy that providers are reached through.",
							   "Such as http://proxy.example:3128. Empty is none; the environment's is not looked at.",
							   &otp_https_proxy,
							   "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("otp.ca_file",
							   "The certificates that providers' are checked against.",
							   "Empty is the system's.",
							   &otp_ca_file,
							   "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomBoolVariable("otp.allow_insecure_http",
							 "Lets providers' base URLs begin with http://.",
							 "For tests on one machine: codes and tokens cross the network in the clear.",
							 &otp_allow_insecure_http,
							 false,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("otp.allow_private_addresses",
							 "Lets providers' base URLs lead to private addresses.",
							 NULL,
							 &otp_allow_private_addresses,
							 false,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("otp.allow_private_webhooks",
							 "Lets webhook endpoints lead to private addresses.",
							 "Whoever may create an endpoint can then reach what the server can reach.",
							 &otp_allow_private_webhooks,
							 false,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.retention",
							"How long verifications, messages and webhook attempts are kept.",
							"They go a day later at most; when this is over 30 days, a thirtieth of it later.",
							&otp_retention,
							30 * MINUTES_PER_DAY, MINUTES_PER_DAY, 960 * MINUTES_PER_DAY,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.max_in_flight",
							"Most requests under way at once in one database.",
							NULL,
							&otp_max_in_flight,
							1000, 1, 10000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.max_databases",
							"Most databases of the server with the extension.",
							NULL,
							&otp_max_databases,
							64, 1, 10000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.ledger_size",
							"Most verifications and phones with wrong codes not yet written back.",
							"When it is full, no code is checked until the sender has caught up.",
							&otp_ledger_size,
							16384, 2, 1000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);

	/* At least: one workspace that sends to every country, and to more */
	DefineCustomIntVariable("otp.guard_size",
							"Most countries of workspaces that the guard against pumping has in memory.",
							"When it is full, the workspace that has not sent for the longest time is read again before its next code.",
							&otp_guard_size,
							4096, 1024, 1000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
}

/* Ask for shared memory */
static void
request_shmem(void)
{
#ifdef HAVE_SHMEM_REQUEST_HOOK
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
#endif
	RequestAddinShmemSpace(key_use_shmem_size());
	RequestAddinShmemSpace(ledger_shmem_size());
	RequestAddinShmemSpace(limiter_shmem_size());
	RequestAddinShmemSpace(guard_shmem_size());
	RequestAddinShmemSpace(roster_shmem_size());
	RequestAddinShmemSpace(receipt_count_shmem_size());
	RequestNamedLWLockTranche("otp_ledger", 1);
	RequestNamedLWLockTranche("otp_limiter", 1);
	RequestNamedLWLockTranche("otp_guard", 1);
}

/* Set up shared memory, and the key file on a server's first start */
static void
startup_shmem(void)
{
	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	key_use_shmem_init();
	ledger_shmem_init();
	limiter_shmem_init();
	guard_shmem_init();
	roster_shmem_init();
	receipt_count_shmem_init();
	LWLockRelease(AddinShmemInitLock);
	shmem_attached = true;

	if (!IsUnderPostmaster && IsPostmasterEnvironment)
		keyring_create_file_if_missing();
}

/* Load the library */
void
_PG_init(void)
{
	define_session_settings();

	/*
	 * Without preload there is no shared memory and no worker. That raises in
	 * the verbs and in CREATE EXTENSION, not here: pg_upgrade and CREATE
	 * FUNCTION load the library, too.
	 */
	if (!process_shared_preload_libraries_in_progress)
		return;

	define_server_settings();
#if PG_VERSION_NUM >= 150000
	MarkGUCPrefixReserved("otp");
#else
	EmitWarningsOnPlaceholders("otp");
#endif

#ifdef HAVE_SHMEM_REQUEST_HOOK
	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
#else
	request_shmem();
#endif
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;

	wake_init();
	guard_pending_init();
	utility_hook_install();
	launcher_register();
}
