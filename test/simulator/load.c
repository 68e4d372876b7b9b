/*
 * load.c
 *		A bare libcurl-multi program that posts the same bytes again and again.
 *
 * It is the yardstick: nothing but libcurl, epoll and kept-alive connections.
 * One easy handle per connection is filled again as soon as it is done.
 */
#include <curl/curl.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_EVENTS 512
#define VARIED_DIGITS 8			/* of the phone number, with --vary */

typedef struct Slot
{
	CURL	   *easy;
	char	   *body;
	char	   *varied;			/* digits in body to change, or NULL */
	int64_t		start;
} Slot;

static const char meta_body[] =
"{\"messaging_product\":\"whatsapp\",\"recipient_type\":\"individual\",\"to\":\"919876543210\","
"\"type\":\"template\",\"template\":{\"name\":\"otp_verification\",\"language\":{\"code\":\"en_US\"},"
"\"components\":[{\"type\":\"body\",\"parameters\":[{\"type\":\"text\",\"text\":\"482915\"}]},"
"{\"type\":\"button\",\"sub_type\":\"url\",\"index\":\"0\",\"parameters\":[{\"type\":\"text\",\"text\":\"482915\"}]}]},"
"\"biz_opaque_callback_data\":\"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H\"}";

static const char twilio_body[] =
"To=%2B919876543210&From=%2B15017122661&Body=482915%20is%20your%20verification%20code.&ValidityPeriod=300"
"&StatusCallback=http%3A%2F%2F127.0.0.1%3A9%2Fstatus%3Fotp_id%3Dotp_01HXK7QZRN8V4M2P9D3Y5F6G7H";

static CURLM *multi;
static int	epoll_fd;
static int	running;
static int64_t timer_due = -1;
static long wanted = 10000;
static long started;
static long ended;
static long failed;
static uint32_t *latencies;
static double seconds_limit;
static int64_t stop_at = INT64_MAX;

/* Microseconds of the monotonic clock. */
static int64_t
mono_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* libcurl: watch a socket. */
static int
socket_changed(CURL *easy, curl_socket_t fd, int what, void *cls, void *known)
{
	struct epoll_event event = {.data.fd = fd};

	(void) easy;
	(void) cls;
	if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return 0;
	}
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) != 0)
		epoll_ctl(epoll_fd, known ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
	if (known == NULL)
		curl_multi_assign(multi, fd, &epoll_fd);
	return 0;
}

/* libcurl: call back at a time. */
static int
timer_changed(CURLM *m, long timeout_ms, void *cls)
{
	(void) m;
	(void) cls;
	timer_due = timeout_ms < 0 ? -1 : mono_us() + (int64_t) timeout_ms * 1000;
	return 0;
}

/* libcurl: drop the answer's body. */
static size_t
drop_body(char *data, size_t size, size_t count, void *cls)
{
	(void) data;
	(void) cls;
	return size * count;
}

/* Start the next request on a connection. */
static void
slot_start(Slot *slot)
{
	if (slot->varied)
	{
		long		n = started;

		for (int i = VARIED_DIGITS - 1; i >= 0; i--, n /= 10)
			slot->varied[i] = (char) ('0' + n % 10);
	}
	started++;
	slot->start = mono_us();
	curl_multi_add_handle(multi, slot->easy);
}

/* Take finished requests and start new ones. */
static void
take_finished(void)
{
	CURLMsg    *done;
	int			left;

	while ((done = curl_multi_info_read(multi, &left)) != NULL)
	{
		CURL	   *easy = done->easy_handle;
		CURLcode	result = done->data.result;
		Slot	   *slot;
		long		status = 0;
		int64_t		now = mono_us();

		curl_easy_getinfo(easy, CURLINFO_PRIVATE, &slot);
		curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
		if (result != CURLE_OK || status < 200 || status > 299)
		{
			if (failed++ == 0)
				fprintf(stderr, "load: first failure: %s, HTTP status %ld\n", curl_easy_strerror(result), status);
		}
		latencies[ended++] = (uint32_t) (now - slot->start);
		curl_multi_remove_handle(multi, easy);
		if (started < wanted && now < stop_at)
			slot_start(slot);
	}
}

/* Order numbers. */
static int
compare(const void *a, const void *b)
{
	uint32_t	x = *(const uint32_t *) a;
	uint32_t	y = *(const uint32_t *) b;

	return (x > y) - (x < y);
}

/* Read a whole file. */
static char *
read_file(const char *path, long *len)
{
	FILE	   *f = fopen(path, "r");
	char	   *data = NULL;

	*len = 0;
	if (f == NULL)
	{
		perror(path);
		exit(2);
	}
	do
	{
		data = realloc(data, *len + 65536);
		*len += (long) fread(data + *len, 1, 65535, f);
	} while (!feof(f) && !ferror(f));
	fclose(f);
	data[*len] = '\0';
	return data;
}

/* Explain the options. */
static void
usage(FILE *f)
{
	fputs("load posts the same bytes again and again and prints what it measured as JSON.\n"
		  "\n"
		  "Usage: load --url=URL [OPTION]...\n"
		  "\n"
		  "  --url=URL          the server, or with --body the whole address\n"
		  "  --meta             post a Meta template send (default)\n"
		  "  --twilio           post a Twilio send\n"
		  "  --body=FILE        post this file to --url as it is\n"
		  "  --header=LINE      add a header; may be repeated\n"
		  "  --version=vNN.N    Graph API version (default v25.0)\n"
		  "  --account=ID       phone number id or account SID in the address\n"
		  "  --token=TOKEN      bearer token, or USER:PASSWORD with --twilio\n"
		  "  --connections=N    connections kept busy (default 64)\n"
		  "  --requests=N       requests in all (default 10000)\n"
		  "  --seconds=S        stop earlier, after this long\n"
		  "  --vary             another phone number each time\n"
		  "  --insecure         do not check the server's certificate\n", f);
}

int
main(int argc, char **argv)
{
	enum
	{
		OPT_URL = 256, OPT_META, OPT_TWILIO, OPT_BODY, OPT_HEADER, OPT_VERSION, OPT_ACCOUNT, OPT_TOKEN,
		OPT_CONNECTIONS, OPT_REQUESTS, OPT_SECONDS, OPT_VARY, OPT_INSECURE, OPT_HELP
	};
	static const struct option options[] = {
		{"url", required_argument, NULL, OPT_URL},
		{"meta", no_argument, NULL, OPT_META},
		{"twilio", no_argument, NULL, OPT_TWILIO},
		{"body", required_argument, NULL, OPT_BODY},
		{"header", required_argument, NULL, OPT_HEADER},
		{"version", required_argument, NULL, OPT_VERSION},
		{"account", required_argument, NULL, OPT_ACCOUNT},
		{"token", required_argument, NULL, OPT_TOKEN},
		{"connections", required_argument, NULL, OPT_CONNECTIONS},
		{"requests", required_argument, NULL, OPT_REQUESTS},
		{"seconds", required_argument, NULL, OPT_SECONDS},
		{"vary", no_argument, NULL, OPT_VARY},
		{"insecure", no_argument, NULL, OPT_INSECURE},
		{"help", no_argument, NULL, OPT_HELP},
		{NULL, 0, NULL, 0}
	};
	const char *url = NULL;
	const char *body_file = NULL;
	const char *version = "v25.0";
	const char *account = NULL;
	const char *token = NULL;
	struct curl_slist *headers = NULL;
	struct epoll_event events[MAX_EVENTS];
	struct rusage usage_at_end;
	struct rlimit files;
	int			twilio = 0;
	int			vary = 0;
	int			insecure = 0;
	int			connections = 64;
	char		address[1024];
	char		line[1024];
	char	   *body;
	long		body_len;
	Slot	   *slots;
	int64_t		start;
	double		seconds;
	int			opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (opt)
		{
			case OPT_URL:
				url = optarg;
				break;
			case OPT_META:
				twilio = 0;
				break;
			case OPT_TWILIO:
				twilio = 1;
				break;
			case OPT_BODY:
				body_file = optarg;
				break;
			case OPT_HEADER:
				headers = curl_slist_append(headers, optarg);
				break;
			case OPT_VERSION:
				version = optarg;
				break;
			case OPT_ACCOUNT:
				account = optarg;
				break;
			case OPT_TOKEN:
				token = optarg;
				break;
			case OPT_CONNECTIONS:
				connections = atoi(optarg);
				break;
			case OPT_REQUESTS:
				wanted = atol(optarg);
				break;
			case OPT_SECONDS:
				seconds_limit = atof(optarg);
				break;
			case OPT_VARY:
				vary = 1;
				break;
			case OPT_INSECURE:
				insecure = 1;
				break;
			case OPT_HELP:
				usage(stdout);
				return 0;
			default:
				usage(stderr);
				return 2;
		}
	}
	if (url == NULL || connections < 1 || wanted < 1)
	{
		usage(stderr);
		return 2;
	}
	if (connections > wanted)
		connections = (int) wanted;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}

	/* what to post, and where */
	if (body_file)
	{
		body = read_file(body_file, &body_len);
		snprintf(address, sizeof(address), "%s", url);
	}
	else if (twilio)
	{
		body = strdup(twilio_body);
		snprintf(address, sizeof(address), "%s/2010-04-01/Accounts/%s/Messages.json", url,
				 account ? account : "AC0123456789abcdef0123456789abcdef");
		headers = curl_slist_append(headers, "Content-Type: application/x-www-form-urlencoded");
	}
	else
	{
		body = strdup(meta_body);
		snprintf(address, sizeof(address), "%s/%s/%s/messages", url, version,
				 account ? account : "106540352242922");
		snprintf(line, sizeof(line), "Authorization: Bearer %s", token ? token : "EAAtest-token");
		headers = curl_slist_append(headers, line);
		headers = curl_slist_append(headers, "Content-Type: application/json");
	}
	if (!body_file)
		body_len = (long) strlen(body);
	headers = curl_slist_append(headers, "Expect:");

	/* one handle per connection */
	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_changed);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timer_changed);
	curl_multi_setopt(multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) connections);
	latencies = calloc(wanted, sizeof(uint32_t));
	slots = calloc(connections, sizeof(Slot));
	for (int i = 0; i < connections; i++)
	{
		Slot	   *slot = &slots[i];

		slot->easy = curl_easy_init();
		slot->body = malloc(body_len + 1);
		memcpy(slot->body, body, body_len + 1);
		if (vary)
		{
			char	   *to = strstr(slot->body, twilio ? "To=%2B91" : "\"to\":\"91");

			if (to)
				slot->varied = to + 10;
		}
		curl_easy_setopt(slot->easy, CURLOPT_URL, address);
		curl_easy_setopt(slot->easy, CURLOPT_PRIVATE, slot);
		curl_easy_setopt(slot->easy, CURLOPT_NOSIGNAL, 1L);
		curl_easy_setopt(slot->easy, CURLOPT_PROXY, "");
		curl_easy_setopt(slot->easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
		curl_easy_setopt(slot->easy, CURLOPT_HTTPHEADER, headers);
		curl_easy_setopt(slot->easy, CURLOPT_POSTFIELDSIZE, body_len);
		curl_easy_setopt(slot->easy, CURLOPT_POSTFIELDS, slot->body);
		curl_easy_setopt(slot->easy, CURLOPT_WRITEFUNCTION, drop_body);
		if (twilio && !body_file)
			curl_easy_setopt(slot->easy, CURLOPT_USERPWD, token ? token :
							 "AC0123456789abcdef0123456789abcdef:12345678901234567890123456789012");
		if (insecure)
		{
			curl_easy_setopt(slot->easy, CURLOPT_SSL_VERIFYPEER, 0L);
			curl_easy_setopt(slot->easy, CURLOPT_SSL_VERIFYHOST, 0L);
		}
	}

	start = mono_us();
	if (seconds_limit > 0)
		stop_at = start + (int64_t) (seconds_limit * 1e6);
	for (int i = 0; i < connections; i++)
		slot_start(&slots[i]);
	while (ended < started)
	{
		int			timeout = 1000;
		int			n;

		if (timer_due >= 0)
		{
			int64_t		wait = timer_due - mono_us();

			timeout = wait <= 0 ? 0 : wait > 1000000 ? 1000 : (int) ((wait + 999) / 1000);
		}
		n = epoll_wait(epoll_fd, events, MAX_EVENTS, timeout);
		for (int i = 0; i < n; i++)
		{
			int			what = 0;

			if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
				what |= CURL_CSELECT_IN;
			if (events[i].events & EPOLLOUT)
				what |= CURL_CSELECT_OUT;
			if (events[i].events & EPOLLERR)
				what |= CURL_CSELECT_ERR;
			curl_multi_socket_action(multi, events[i].data.fd, what, &running);
		}
		if (timer_due >= 0 && mono_us() >= timer_due)
		{
			timer_due = -1;
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
		}
		take_finished();
	}
	seconds = (double) (mono_us() - start) / 1e6;

	getrusage(RUSAGE_SELF, &usage_at_end);
	qsort(latencies, ended, sizeof(uint32_t), compare);
	printf("{\"requests\":%ld,\"failed\":%ld,\"connections\":%d,\"seconds\":%.3f,\"requests_per_second\":%.0f,"
		   "\"latency_us\":{\"p50\":%u,\"p95\":%u,\"p99\":%u,\"max\":%u},\"cpu_seconds\":%.3f}\n",
		   ended, failed, connections, seconds, (double) ended / seconds,
		   latencies[ended / 2], latencies[ended * 95 / 100], latencies[ended * 99 / 100], latencies[ended - 1],
		   (double) usage_at_end.ru_utime.tv_sec + (double) usage_at_end.ru_utime.tv_usec / 1e6 +
		   (double) usage_at_end.ru_stime.tv_sec + (double) usage_at_end.ru_stime.tv_usec / 1e6);
	return failed > 0;
}
