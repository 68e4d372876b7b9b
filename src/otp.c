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
#include "base/listeners.h"
#include "base/outcome.h"
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
int			otp_http_port = 0;
char	   *otp_http_listen_addresses = NULL;
int			otp_http_workers = 1;
char	   *otp_http_cert_file = NULL;
char	   *otp_http_key_file = NULL;
int			otp_http_max_connections = 4096;
int			otp_http_max_body = 64;
int			otp_http_timeout = 15000;
int			otp_http_send_wait = 5000;
char	   *otp_http_public_url = NULL;

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

/* Define the settings of the HTTP listener, which may differ by database */
static void
define_http_settings(void)
{
	DefineCustomIntVariable("otp.http_port",
							"The port on which the HTTP API listens.",
							"0 is off. Databases that have the extension need ports of their own: ALTER DATABASE ... SET.",
							&otp_http_port,
							0, 0, 65535,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("otp.http_listen_addresses",
							   "The addresses on which the HTTP API listens.",
							   "A list with commas; * is all.",
							   &otp_http_listen_addresses,
							   "localhost",
							   PGC_SUSET, GUC_LIST_INPUT, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.http_workers",
							"How many processes serve the HTTP API of a database.",
							NULL,
							&otp_http_workers,
							1, 1, 32,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("otp.http_cert_file",
							   "The certificate of the HTTP API, with those that lead to its root.",
							   "Empty is no TLS. A relative path starts at the data directory.",
							   &otp_http_cert_file,
							   "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomStringVariable("otp.http_key_file",
							   "The private key of the certificate.",
							   "Read under the rules of ssl_key_file.",
							   &otp_http_key_file,
							   "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.http_max_connections",
							"Most connections to one process of the HTTP API.",
							NULL,
							&otp_http_max_connections,
							4096, 1, 100000,
							PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.http_max_body",
							"The longest body that the HTTP API takes.",
							"Callbacks of the providers may have up to 4 MB.",
							&otp_http_max_body,
							64, 1, 1024,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.http_timeout",
							"How long a request may take to come, and its answer to go.",
							"A connection that has nothing under way is closed after it, too.",
							&otp_http_timeout,
							15000, 100, 600000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("otp.http_send_wait",
							"How long a send waits for the provider to take the message, before it is answered.",
							"0 answers at once, without message_id.",
							&otp_http_send_wait,
							5000, 0, 30000,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomStringVariable("otp.http_public_url",
							   "Where the world finds the HTTP API, such as https://otp.example.com.",
							   "Twilio signs the address that it calls, so it cannot be told from the request.",
							   &otp_http_public_url,
							   "",
							   PGC_SUSET, 0, NULL, NULL, NULL);
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
	RequestAddinShmemSpace(outcome_shmem_size());
	RequestAddinShmemSpace(listeners_shmem_size());
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
	outcome_shmem_init();
	listeners_shmem_init();
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
	define_http_settings();
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
