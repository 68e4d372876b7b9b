/*
 * simulator.c
 *		Meta's Cloud API and Twilio's Messages API on a loopback port.
 */
#include "simulator.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096

enum
{
	OPT_PORT = 256,
	OPT_PORT_FILE,
	OPT_TLS_CERT,
	OPT_TLS_KEY,
	OPT_TOKEN,
	OPT_PHONE_NUMBER_ID,
	OPT_WABA_ID,
	OPT_APP_SECRET,
	OPT_ACCOUNT_SID,
	OPT_AUTH_TOKEN,
	OPT_API_KEY_SID,
	OPT_API_KEY_SECRET,
	OPT_CALLBACK_URL,
	OPT_SINK,
	OPT_LATENCY_MS,
	OPT_THREADS,
	OPT_INBOX_LIMIT,
	OPT_LOG_LIMIT,
	OPT_DIE_WITH_PARENT,
	OPT_HELP
};

static const struct option long_options[] = {
	{"port", required_argument, NULL, OPT_PORT},
	{"port-file", required_argument, NULL, OPT_PORT_FILE},
	{"tls-cert", required_argument, NULL, OPT_TLS_CERT},
	{"tls-key", required_argument, NULL, OPT_TLS_KEY},
	{"token", required_argument, NULL, OPT_TOKEN},
	{"phone-number-id", required_argument, NULL, OPT_PHONE_NUMBER_ID},
	{"waba-id", required_argument, NULL, OPT_WABA_ID},
	{"app-secret", required_argument, NULL, OPT_APP_SECRET},
	{"account-sid", required_argument, NULL, OPT_ACCOUNT_SID},
	{"auth-token", required_argument, NULL, OPT_AUTH_TOKEN},
	{"api-key-sid", required_argument, NULL, OPT_API_KEY_SID},
	{"api-key-secret", required_argument, NULL, OPT_API_KEY_SECRET},
	{"callback-url", required_argument, NULL, OPT_CALLBACK_URL},
	{"sink", no_argument, NULL, OPT_SINK},
	{"latency-ms", required_argument, NULL, OPT_LATENCY_MS},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"inbox-limit", required_argument, NULL, OPT_INBOX_LIMIT},
	{"log-limit", required_argument, NULL, OPT_LOG_LIMIT},
	{"die-with-parent", no_argument, NULL, OPT_DIE_WITH_PARENT},
	{"help", no_argument, NULL, OPT_HELP},
	{NULL, 0, NULL, 0}
};

static const char help[] =
"simulator answers as Meta's Cloud API and as Twilio's Messages API on 127.0.0.1.\n"
"\n"
"Usage: simulator [OPTION]...\n"
"\n"
"  --port=N               port to listen on (default 0: any free port)\n"
"  --port-file=PATH       write the port here once listening\n"
"  --tls-cert=FILE        speak HTTPS with this certificate (PEM)\n"
"  --tls-key=FILE         and this key (PEM)\n"
"  --token=TOKEN          Meta access token (default EAAtest-token)\n"
"  --phone-number-id=ID   Meta phone number id (default 106540352242922)\n"
"  --waba-id=ID           WhatsApp Business Account id (default 102290129340398)\n"
"  --app-secret=SECRET    key of X-Hub-Signature-256\n"
"                         (default 0123456789abcdef0123456789abcdef)\n"
"  --account-sid=SID      Twilio account (default AC0123456789abcdef0123456789abcdef)\n"
"  --auth-token=TOKEN     its auth token, key of X-Twilio-Signature\n"
"                         (default 12345678901234567890123456789012)\n"
"  --api-key-sid=SID      its API key (default SK0123456789abcdef0123456789abcdef)\n"
"  --api-key-secret=S     and the key's secret (default api-key-secret)\n"
"  --callback-url=URL     where Meta's webhooks go (default nowhere)\n"
"  --sink                 accept every send unseen; keep counters only\n"
"  --latency-ms=N         answer sends this much later\n"
"  --threads=N            threads that serve connections (default 2)\n"
"  --inbox-limit=N        messages kept, newest first to stay (default 200000)\n"
"  --log-limit=N          requests kept in the log (default 2000000)\n"
"  --die-with-parent      exit when the process that started this one exits\n"
"  --help                 show this help\n";

/* Read a number of the command line. */
static long
number_option(const char *name, long min, long max)
{
	char	   *end;
	long		n = strtol(optarg, &end, 10);

	if (*optarg == '\0' || *end != '\0' || n < min || n > max)
	{
		fprintf(stderr, "simulator: --%s must be a number from %ld to %ld\n", name, min, max);
		exit(2);
	}
	return n;
}

/* Read the command line. */
static void
read_options(int argc, char **argv)
{
	int			opt;

	while ((opt = getopt_long(argc, argv, "", long_options, NULL)) != -1)
	{
		switch (opt)
		{
			case OPT_PORT:
				settings.port = (int) number_option("port", 0, 65535);
				break;
			case OPT_PORT_FILE:
				settings.port_file = optarg;
				break;
			case OPT_TLS_CERT:
				settings.tls_cert_file = optarg;
				break;
			case OPT_TLS_KEY:
				settings.tls_key_file = optarg;
				break;
			case OPT_TOKEN:
				settings_set(&settings.meta[0].token, optarg);
				break;
			case OPT_PHONE_NUMBER_ID:
				settings_set(&settings.meta[0].phone_number_id, optarg);
				break;
			case OPT_WABA_ID:
				settings_set(&settings.meta[0].waba_id, optarg);
				break;
			case OPT_APP_SECRET:
				settings_set(&settings.meta[0].app_secret, optarg);
				break;
			case OPT_ACCOUNT_SID:
				settings_set(&settings.twilio[0].account_sid, optarg);
				break;
			case OPT_AUTH_TOKEN:
				settings_set(&settings.twilio[0].auth_token, optarg);
				break;
			case OPT_API_KEY_SID:
				settings_set(&settings.twilio[0].api_key_sid, optarg);
				break;
			case OPT_API_KEY_SECRET:
				settings_set(&settings.twilio[0].api_key_secret, optarg);
				break;
			case OPT_CALLBACK_URL:
				settings_set(&settings.callback_url, optarg);
				break;
			case OPT_SINK:
				settings.sink = true;
				break;
			case OPT_LATENCY_MS:
				settings.latency_ms = (int) number_option("latency-ms", 0, 3600000);
				break;
			case OPT_THREADS:
				settings.threads = (int) number_option("threads", 1, 64);
				break;
			case OPT_INBOX_LIMIT:
				settings.inbox_limit = number_option("inbox-limit", 1, 100000000);
				break;
			case OPT_LOG_LIMIT:
				settings.log_limit = number_option("log-limit", 1, 100000000);
				break;
			case OPT_DIE_WITH_PARENT:
				prctl(PR_SET_PDEATHSIG, SIGTERM);
				break;
			case OPT_HELP:
				fputs(help, stdout);
				exit(0);
			default:
				fputs("simulator: see --help\n", stderr);
				exit(2);
		}
	}
	if (optind < argc || (settings.tls_cert_file == NULL) != (settings.tls_key_file == NULL))
	{
		fputs("simulator: wrong arguments; see --help\n", stderr);
		exit(2);
	}
}

/* Listen on loopback; tells the port. */
static int
listen_loopback(int *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(*port)};
	socklen_t	len = sizeof(address);
	int			on = 1;
	int			fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *) &address, len) != 0 || listen(fd, BACKLOG) != 0 ||
		getsockname(fd, (struct sockaddr *) &address, &len) != 0)
	{
		fprintf(stderr, "simulator: could not listen on 127.0.0.1:%d: %s\n", *port, strerror(errno));
		exit(1);
	}
	*port = ntohs(address.sin_port);
	return fd;
}

/* Write the port so that a reader never sees half of it. */
static void
write_port_file(int port)
{
	char		path[4096];
	FILE	   *f;

	snprintf(path, sizeof(path), "%s.%d", settings.port_file, (int) getpid());
	f = fopen(path, "w");
	if (f == NULL || fprintf(f, "%d\n", port) < 0 || fclose(f) != 0 || rename(path, settings.port_file) != 0)
	{
		fprintf(stderr, "simulator: could not write \"%s\": %s\n", settings.port_file, strerror(errno));
		exit(1);
	}
}

/* Use as many file descriptors as we may. */
static void
raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
	{
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

int
main(int argc, char **argv)
{
	pid_t		parent = getppid();
	bool		watched;
	int			death_signal = 0;
	sigset_t	signals;
	int			fd;
	int			got;

	/* blocked in all threads, taken by sigwait() below */
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);

	settings_default();
	read_options(argc, argv);
	prctl(PR_GET_PDEATHSIG, &death_signal);
	watched = death_signal != 0;
	raise_file_limit();
	inbox_start();
	journal_start();
	callback_start();
	fd = listen_loopback(&settings.port);
	http_start(fd);

	printf("listening on %s://127.0.0.1:%d\n", settings.tls_cert_file ? "https" : "http", settings.port);
	fflush(stdout);
	if (settings.port_file)
		write_port_file(settings.port);

	/* the parent may have gone before we asked to be told */
	if (watched && getppid() != parent)
		return 0;
	sigwait(&signals, &got);

	/* libmicrohttpd does not stop with suspended connections: just leave */
	if (settings.port_file)
		unlink(settings.port_file);
	_exit(0);
}
