/*-------------------------------------------------------------------------
 *
 * http.c
 *	  Many HTTP requests at once behind one pollable descriptor.
 *
 * libcurl's multi interface tells us which sockets and which moment it waits
 * for; we keep them in an epoll set with a timer, whose one descriptor the
 * caller waits for along with everything else. All work is done in
 * http_client_run and none in threads, but for libcurl's name look-ups.
 *
 * What matters most to the caller is whether a request that got no answer
 * may have reached the provider. libcurl calls us back right before it
 * writes the first byte of a request, when name, connection, proxy and TLS
 * are behind it: up to there nothing was sent, after that we do not know.
 *
 * No palloc and no ereport in this file: see the header.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/http.h"
#include "base/phone.h"
#include "lib/ilist.h"

#if LIBCURL_VERSION_NUM < 0x075500
#error "otp needs libcurl 7.85 or later"
#endif

/* Default of HttpOptions.connect_timeout_ms */
#define CONNECT_TIMEOUT_MS 5000L

/*
 * A connection whose peer acknowledges nothing for so long is dead. Without
 * this the kernel goes on for a quarter of an hour, and every HTTP/2 request
 * would be put on the dead connection.
 */
#define UNACKNOWLEDGED_MS 15000

/*
 * Connections kept open, those in use included, and for how long one is used
 * at all. Beyond the first, a connection is closed after each request.
 */
#define MAX_CONNECTIONS 1024L
#define MAX_CONNECTION_LIFE_S 300L

/* Finished handles kept for the next requests */
#define MAX_IDLE_TRANSFERS 256

/* Socket events taken per system call, and such calls per run */
#define EVENTS_PER_CALL 128
#define CALLS_PER_RUN 8

/* First size of an answer's buffer; providers' answers fit */
#define ANSWER_SIZE 2048

/* The longest Retry-After we believe: a day, in seconds */
#define MAX_RETRY_AFTER 86400

/* What next gives out: the response, and what the caller need not see. */
typedef struct Answer
{
	HttpResponse response;		/* first, so that free finds us */
	char	   *buffer;
	size_t		capacity;
	dlist_node	node;
} Answer;

/* One request under way, or an idle handle waiting to be one. */
typedef struct Transfer
{
	HttpClient *client;
	dlist_node	node;
	CURL	   *easy;
	uint32		generation;		/* of the options the handle has; 0: none */
	struct curl_slist *headers;
	char	   *body;			/* libcurl does not copy it */
	size_t		body_length;
	Answer	   *answer;
	int64		started;		/* ns of the monotonic clock */
	size_t		header_bytes;	/* of the answer, so far */
	bool		any_address;	/* no address guard */
	bool		refused;		/* ... which has stopped this one */
	bool		begun;			/* may have been written */
	bool		repeated;		/* begun again, nothing written before */
	bool		lost;			/* connection lost after it was written */
	bool		oversized;
	bool		out_of_memory;
	char		error[CURL_ERROR_SIZE];
} Transfer;

struct HttpClient
{
	CURLM	   *multi;			/* NULL: could not be made again */
	int			epoll_fd;
	int			timer_fd;
	int64		due;			/* when libcurl wants a call, in ns of the
								 * monotonic clock; 0: never */
	int64		armed;			/* what the timer is set to; 0: off */
	bool		broken;			/* libcurl and epoll set have lost touch */
	bool		has_http2;		/* in this build of libcurl */

	uint32		generation;		/* of the options below, never 0 */
	char	   *https_proxy;
	char	   *ca_file;
	char	   *user_agent;
	long		connect_timeout_ms;
	int			max_connections_per_host;
	bool		allow_private;

	dlist_head	running;		/* Transfers */
	dlist_head	finished;		/* Answers */
	dlist_head	idle;			/* Transfers */
	int			nrunning;
	int			nfinished;
	int			nidle;
};

/* Where private and reserved IPv4 networks lie (IANA's special registry) */
static const struct
{
	uint32		network;
	int			bits;
}			private_networks[] =

{
	{0x00000000, 8},			/* this network */
	{0x0A000000, 8},			/* private */
	{0x64400000, 10},			/* shared, behind carriers' NAT */
	{0x7F000000, 8},			/* loopback */
	{0xA9FE0000, 16},			/* link-local, where clouds keep metadata */
	{0xAC100000, 12},			/* private */
	{0xC0000000, 24},			/* protocol assignments */
	{0xC0000200, 24},			/* documentation */
	{0xC0586300, 24},			/* former 6to4 relays */
	{0xC0A80000, 16},			/* private */
	{0xC6120000, 15},			/* benchmarks */
	{0xC6336400, 24},			/* documentation */
	{0xCB007100, 24},			/* documentation */
	{0xE0000000, 4},			/* multicast */
	{0xF0000000, 4}				/* reserved, broadcast */
};

/* Read monotonic clock */
static int64
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * 1000000000 + now.tv_nsec;
}

/*
 * Block all signals
 *
 * libcurl looks up names in threads of its own, which inherit the mask of the
 * thread that makes them. The server's signal handlers must never run in one.
 */
static void
block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

/* Let signals through again */
static void
restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* Free memory that has held a code */
static void
wipe_and_free(char *memory, size_t length)
{
	if (memory == NULL)
		return;
	explicit_bzero(memory, length);
	free(memory);
}

/* Copy optional string */
static bool
copy_string(char **copy, const char *string)
{
	*copy = NULL;
	if (string == NULL || string[0] == '\0')
		return true;
	*copy = strdup(string);
	return *copy != NULL;
}

/*
 * Addresses
 */

/* Check IPv4 address */
static bool
ipv4_is_private(uint32 address)
{
	for (int i = 0; i < lengthof(private_networks); i++)
	{
		if ((address ^ private_networks[i].network) >> (32 - private_networks[i].bits) == 0)
			return true;
	}
	return false;
}

/* Read IPv4 address embedded in IPv6 address */
static uint32
embedded_ipv4(const uint8 *bytes)
{
	return (uint32) bytes[0] << 24 | (uint32) bytes[1] << 16 |
		(uint32) bytes[2] << 8 | (uint32) bytes[3];
}

/* Check IPv6 address */
static bool
ipv6_is_private(const uint8 *bytes)
{
	static const uint8 mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	static const uint8 nat64[12] = {0x00, 0x64, 0xff, 0x9b};

	/* These stand for the IPv4 address at their end */
	if (memcmp(bytes, mapped, 12) == 0 || memcmp(bytes, nat64, 12) == 0)
		return ipv4_is_private(embedded_ipv4(bytes + 12));

	/*
	 * Only 2000::/3 is given out to the public. What lies outside is
	 * loopback, unique local, link-local, multicast, or has no meaning yet.
	 */
	if ((bytes[0] & 0xe0) != 0x20)
		return true;

	/* 2001::/23, protocol assignments, tunnels to any IPv4 address included */
	if (bytes[0] == 0x20 && bytes[1] == 0x01 && (bytes[2] & 0xfe) == 0)
		return true;
	/* 2001:db8::/32, documentation */
	if (bytes[0] == 0x20 && bytes[1] == 0x01 && bytes[2] == 0x0d && bytes[3] == 0xb8)
		return true;
	/* 3fff::/20, documentation */
	if (bytes[0] == 0x3f && bytes[1] == 0xff && (bytes[2] & 0xf0) == 0)
		return true;
	/* 2002::/16, 6to4 */
	if (bytes[0] == 0x20 && bytes[1] == 0x02)
		return ipv4_is_private(embedded_ipv4(bytes + 2));

	return false;
}

/* Check whether address is private */
bool
http_address_is_private(const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
	{
		struct sockaddr_in ipv4;

		/* libcurl's copy may not be aligned for the type */
		memcpy(&ipv4, address, sizeof(ipv4));
		return ipv4_is_private(ntohl(ipv4.sin_addr.s_addr));
	}
	if (address->sa_family == AF_INET6)
	{
		struct sockaddr_in6 ipv6;

		memcpy(&ipv6, address, sizeof(ipv6));
		return ipv6_is_private(ipv6.sin6_addr.s6_addr);
	}
	return true;
}

/* Check written address; what is none counts as private */
static bool
text_is_private(const char *text)
{
	struct in_addr ipv4;
	struct in6_addr ipv6;
	char		plain[INET6_ADDRSTRLEN];
	size_t		length = strcspn(text, "%");	/* no scope */

	if (length >= sizeof(plain))
		return true;
	memcpy(plain, text, length);
	plain[length] = '\0';

	if (inet_pton(AF_INET, plain, &ipv4) == 1)
		return ipv4_is_private(ntohl(ipv4.s_addr));
	if (inet_pton(AF_INET6, plain, &ipv6) == 1)
		return ipv6_is_private(ipv6.s6_addr);
	return true;
}

/*
 * Check whether URL itself names a private address
 *
 * Behind a proxy we never see the address connected to. What can be said
 * without a look-up is still said.
 */
static bool
url_is_private(const char *url)
{
	CURLU	   *parsed = curl_url();
	char	   *host = NULL;
	bool		result = true;

	if (parsed == NULL)
		return true;
	if (curl_url_set(parsed, CURLUPART_URL, url, 0) == CURLUE_OK &&
		curl_url_get(parsed, CURLUPART_HOST, &host, 0) == CURLUE_OK)
	{
		size_t		length = strlen(host);
		struct in_addr ipv4;

		/* libcurl writes odd spellings of IPv4 addresses as four numbers */
		if (host[0] == '[' && host[length - 1] == ']')
		{
			host[length - 1] = '\0';
			result = text_is_private(host + 1);
		}
		else if (inet_pton(AF_INET, host, &ipv4) == 1)
			result = ipv4_is_private(ntohl(ipv4.s_addr));
		else
		{
			/* A name may end with a dot, and .localhost is reserved */
			if (length > 0 && host[length - 1] == '.')
				host[--length] = '\0';
			result = (length >= 9 &&
					  strcasecmp(host + length - 9, "localhost") == 0 &&
					  (length == 9 || host[length - 10] == '.'));
		}
	}
	curl_free(host);
	curl_url_cleanup(parsed);
	return result;
}

/* Say what is wrong with a URL that others hand in; NULL: nothing */
const char *
http_url_defect(const char *url, bool allow_insecure, bool allow_private)
{
	const char *defect = NULL;
	const char *host;
	CURLU	   *parsed;
	char	   *part;

	for (const char *p = url; *p != '\0'; p++)
	{
		if (*p <= ' ' || *p > '~' || *p == '\\')
			return "It may have printable ASCII characters only, and neither spaces nor backslashes.";
	}
	if (strncasecmp(url, "http://", 7) == 0)
	{
		if (!allow_insecure)
			return "It must begin with https://; http:// is for tests, with otp.allow_insecure_http on.";
	}
	else if (strncasecmp(url, "https://", 8) != 0)
		return "It must begin with https://.";
	host = strstr(url, "://") + 3;
	if (strcspn(host, "/?#") == 0)
		return "It has no host.";
	if (memchr(host, '@', strcspn(host, "/?#")) != NULL)
		return "It may not have a user or a password.";
	if (strchr(url, '#') != NULL)
		return "It may not have a fragment.";

	parsed = curl_url();
	if (parsed == NULL)
		return "The server is out of memory.";
	if (curl_url_set(parsed, CURLUPART_URL, url, 0) != CURLUE_OK)
		defect = "It is a scheme, a host, perhaps a port, a path and a query.";
	if (defect == NULL)
	{
		part = NULL;
		if (curl_url_get(parsed, CURLUPART_HOST, &part, 0) != CURLUE_OK || part[0] == '\0')
			defect = "It has no host.";
		curl_free(part);
		part = NULL;
		if (curl_url_get(parsed, CURLUPART_PORT, &part, 0) == CURLUE_OK &&
			(atoi(part) < 1 || atoi(part) > 65535))
			defect = "Its port is not one from 1 to 65535.";
		curl_free(part);
	}
	curl_url_cleanup(parsed);

	if (defect == NULL && !allow_private && url_is_private(url))
		defect = "Its host is a private or reserved address; otp.allow_private_webhooks allows them.";
	return defect;
}

/*
 * Callbacks of the handles
 */

/* Take a piece of the body */
static size_t
receive_body(char *data, size_t size, size_t count, void *arg)
{
	Transfer   *transfer = arg;
	Answer	   *answer = transfer->answer;
	size_t		length = size * count;
	size_t		needed = answer->response.body_length + length;

	if (needed > HTTP_MAX_ANSWER)
	{
		transfer->oversized = true;
		return 0;
	}

	/* One byte more than needed, for the NUL */
	if (needed >= answer->capacity)
	{
		size_t		capacity = Max(answer->capacity * 2, ANSWER_SIZE);
		char	   *buffer;

		while (capacity <= needed)
			capacity *= 2;
		buffer = malloc(capacity);
		if (buffer == NULL)
		{
			transfer->out_of_memory = true;
			return 0;
		}
		/* Not realloc: an answer may quote the message, with the code in it */
		if (answer->buffer != NULL)
			memcpy(buffer, answer->buffer, answer->response.body_length);
		wipe_and_free(answer->buffer, answer->capacity);
		answer->buffer = buffer;
		answer->capacity = capacity;
	}

	memcpy(answer->buffer + answer->response.body_length, data, length);
	answer->response.body_length = needed;
	answer->buffer[needed] = '\0';
	return length;
}

/* Count a header: libcurl keeps them all, and an answer may have no end */
static size_t
receive_header(char *data, size_t size, size_t count, void *arg)
{
	Transfer   *transfer = arg;
	size_t		length = size * count;

	transfer->header_bytes += length;
	if (transfer->header_bytes > HTTP_MAX_ANSWER)
	{
		transfer->oversized = true;
		return 0;
	}
	return length;
}

/*
 * Open a socket, unless the address is refused
 *
 * This is the place for the check: the name has been looked up once, and the
 * address seen here is the one that will be connected to.
 */
static curl_socket_t
open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	Transfer   *transfer = arg;
	int			unacknowledged = UNACKNOWLEDGED_MS;
	int			fd;

	if (!transfer->any_address && http_address_is_private(&address->addr))
	{
		transfer->refused = true;
		return CURL_SOCKET_BAD;
	}

	fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	if (fd < 0)
		return CURL_SOCKET_BAD;
	(void) setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged, sizeof(unacknowledged));
	return fd;
}

/*
 * Take note that the request is about to be written
 *
 * Two things have to be stopped here. A connection may have been opened by a
 * request that was allowed to go to a private address, and be used again by
 * one that is not. And libcurl, when a connection it has used before is lost
 * without an answer, sends the request again by itself, although the
 * provider may have worked on it: whether to repeat is the caller's to say,
 * unless nothing was written at all.
 */
static int
before_request(void *arg, char *remote, char *local, int remote_port, int local_port)
{
	Transfer   *transfer = arg;
	long		written = 0;

	if (!transfer->any_address && text_is_private(remote))
	{
		transfer->refused = true;
		return CURL_PREREQFUNC_ABORT;
	}
	if (transfer->begun)
	{
		if (curl_easy_getinfo(transfer->easy, CURLINFO_REQUEST_SIZE, &written) != CURLE_OK ||
			written != 0)
		{
			transfer->lost = true;
			return CURL_PREREQFUNC_ABORT;
		}
		transfer->repeated = true;
	}
	transfer->begun = true;
	return CURL_PREREQFUNC_OK;
}

/*
 * Callbacks of the multi handle
 */

/* Watch a socket, or stop watching it */
static int
watch_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *watched)
{
	HttpClient *client = arg;
	struct epoll_event event = {0};

	if (what == CURL_POLL_REMOVE)
	{
		/* It may be gone already when libcurl has closed it */
		(void) epoll_ctl(client->epoll_fd, EPOLL_CTL_DEL, fd, &event);
		(void) curl_multi_assign(client->multi, fd, NULL);
		return 0;
	}

	event.data.fd = fd;
	if (what & CURL_POLL_IN)
		event.events |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		event.events |= EPOLLOUT;

	if (watched != NULL)
	{
		if (epoll_ctl(client->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0)
			return 0;
		if (errno != ENOENT)
			goto lost_touch;
	}
	if (epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0 &&
		(errno != EEXIST ||
		 epoll_ctl(client->epoll_fd, EPOLL_CTL_MOD, fd, &event) != 0))
		goto lost_touch;
	if (curl_multi_assign(client->multi, fd, client) != CURLM_OK)
		goto lost_touch;
	return 0;

lost_touch:
	client->broken = true;
	return -1;
}

/* Take note when libcurl wants to be called */
static int
set_timer(CURLM *multi, long timeout_ms, void *arg)
{
	HttpClient *client = arg;

	client->due = timeout_ms < 0 ? 0 : now_ns() + (int64) timeout_ms * 1000000;
	return 0;
}

/*
 * Arm the timer for what is due
 *
 * A timer set too early costs one idle turn, which is cheaper than a system
 * call each time libcurl moves its date.
 */
static void
arm_timer(HttpClient *client, bool fired)
{
	struct itimerspec when = {0};

	/* Try again at once, or in a second when memory is that short */
	if (client->broken)
		client->due = now_ns() + (client->multi == NULL ? 1000000000 : 0);
	if (!fired && (client->due == client->armed ||
				   client->due == 0 ||
				   (client->armed != 0 && client->armed < client->due)))
		return;

	/* Absolute, so that what is past is due at once; all zero is off */
	when.it_value.tv_sec = client->due / 1000000000;
	when.it_value.tv_nsec = client->due % 1000000000;
	if (timerfd_settime(client->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0)
		client->armed = client->due;
}

/*
 * Handles
 */

/* Give a handle the options that all requests share */
static bool
set_common_options(Transfer *transfer)
{
	HttpClient *client = transfer->client;
	CURL	   *easy = transfer->easy;
	const curl_version_info_data *version = curl_version_info(CURLVERSION_NOW);
	bool		ok = true;

#define SET(option, value) \
	(ok = (curl_easy_setopt(easy, (option), (value)) == CURLE_OK) && ok)

	curl_easy_reset(easy);

	SET(CURLOPT_PRIVATE, transfer);
	SET(CURLOPT_ERRORBUFFER, transfer->error);
	SET(CURLOPT_WRITEFUNCTION, receive_body);
	SET(CURLOPT_WRITEDATA, transfer);
	SET(CURLOPT_HEADERFUNCTION, receive_header);
	SET(CURLOPT_HEADERDATA, transfer);
	SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
	SET(CURLOPT_OPENSOCKETDATA, transfer);
	SET(CURLOPT_PREREQFUNCTION, before_request);
	SET(CURLOPT_PREREQDATA, transfer);

	/* Signals are the server's */
	SET(CURLOPT_NOSIGNAL, 1L);

	/* A look-up that hangs must not hold up a timeout or the end */
#if LIBCURL_VERSION_NUM >= 0x075700
	SET(CURLOPT_QUICK_EXIT, 1L);
#endif

	/* No redirects: they would carry the request past every check */
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);

	/* The secret in our headers is not for a proxy's CONNECT */
	SET(CURLOPT_HEADEROPT, (long) CURLHEADER_SEPARATE);
	SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);

	/* Empty, not unset, or libcurl would look into the environment */
	SET(CURLOPT_NOPROXY, "");

	/* TLS: verify, and share the parsed authorities between handshakes */
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_PROXY_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_PROXY_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	if (client->ca_file != NULL)
	{
		SET(CURLOPT_CAINFO, client->ca_file);
		SET(CURLOPT_PROXY_CAINFO, client->ca_file);
	}
	if (client->ca_file != NULL || version->cainfo != NULL)
	{
		/*
		 * With a directory besides the file, libcurl would read them again
		 * for every connection, and a ca_file would not be the last word.
		 */
		SET(CURLOPT_CAPATH, NULL);
		SET(CURLOPT_PROXY_CAPATH, NULL);
	}

	/* Connections */
	SET(CURLOPT_CONNECTTIMEOUT_MS, client->connect_timeout_ms);
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_MAXLIFETIME_CONN, MAX_CONNECTION_LIFE_S);
	SET(CURLOPT_UPLOAD_BUFFERSIZE, 16384L); /* bodies are small */

	if (client->user_agent != NULL)
		SET(CURLOPT_USERAGENT, client->user_agent);

#undef SET

	transfer->generation = ok ? client->generation : 0;
	return ok;
}

/* Free a transfer, taking it out of libcurl's hands first */
static void
free_transfer(Transfer *transfer)
{
	if (transfer->easy != NULL)
		curl_easy_cleanup(transfer->easy);
	curl_slist_free_all(transfer->headers);
	wipe_and_free(transfer->body, transfer->body_length);
	if (transfer->answer != NULL)
		http_response_free(&transfer->answer->response);
	free(transfer);
}

/* Take an idle transfer or make one, ready for the options of a request */
static Transfer *
take_transfer(HttpClient *client)
{
	Transfer   *transfer;

	if (client->nidle > 0)
	{
		transfer = dlist_container(Transfer, node, dlist_pop_head_node(&client->idle));
		client->nidle--;
	}
	else
	{
		transfer = calloc(1, sizeof(Transfer));
		if (transfer == NULL)
			return NULL;
		transfer->client = client;
		transfer->easy = curl_easy_init();
		if (transfer->easy == NULL)
		{
			free(transfer);
			return NULL;
		}
	}

	if (transfer->generation != client->generation && !set_common_options(transfer))
	{
		free_transfer(transfer);
		return NULL;
	}

	/* Made now, so that a finished request always has somewhere to go */
	transfer->answer = calloc(1, sizeof(Answer));
	if (transfer->answer == NULL)
	{
		free_transfer(transfer);
		return NULL;
	}
	transfer->answer->response.retry_after = -1;

	transfer->started = now_ns();
	transfer->header_bytes = 0;
	transfer->any_address = false;
	transfer->refused = false;
	transfer->begun = false;
	transfer->repeated = false;
	transfer->lost = false;
	transfer->oversized = false;
	transfer->out_of_memory = false;
	transfer->error[0] = '\0';
	return transfer;
}

/* Keep a transfer whose request is over for the next one */
static void
keep_transfer(HttpClient *client, Transfer *transfer)
{
	/* The body holds a code */
	wipe_and_free(transfer->body, transfer->body_length);
	transfer->body = NULL;
	transfer->body_length = 0;
	(void) curl_easy_setopt(transfer->easy, CURLOPT_POSTFIELDS, NULL);

	if (client->nidle >= MAX_IDLE_TRANSFERS)
	{
		free_transfer(transfer);
		return;
	}
	dlist_push_head(&client->idle, &transfer->node);
	client->nidle++;
}

/* Give the answer to the finished ones */
static void
push_answer(HttpClient *client, Transfer *transfer)
{
	Answer	   *answer = transfer->answer;

	answer->response.body = answer->buffer != NULL ? answer->buffer : "";
	dlist_push_tail(&client->finished, &answer->node);
	client->nfinished++;
	transfer->answer = NULL;
}

/* Write down what went wrong, in words that may be logged */
static void
describe_error(HttpResponse *response, const char *words)
{
	strlcpy(response->error, words, HTTP_ERROR_SIZE);
	for (char *p = response->error; *p != '\0'; p++)
	{
		/* Some of it may come from the other side */
		if ((unsigned char) *p < ' ' || (unsigned char) *p > '~')
			*p = '?';
	}
	mask_digits(response->error);
}

/* End a request that libcurl is done with */
static void
finish_transfer(HttpClient *client, Transfer *transfer, CURLcode result)
{
	HttpResponse *response = &transfer->answer->response;
	CURL	   *easy = transfer->easy;
	long		status = 0;
	curl_off_t	retry_after = 0;

	(void) curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	(void) curl_easy_getinfo(easy, CURLINFO_RETRY_AFTER, &retry_after);

	response->status = (int) status;
	response->seconds = (double) (now_ns() - transfer->started) / 1e9;
	if (retry_after > 0)
		response->retry_after = (int) Min(retry_after, MAX_RETRY_AFTER);

	if (result == CURLE_OK)
		response->outcome = HTTP_ANSWERED;
	else if (transfer->begun)
		response->outcome = HTTP_UNKNOWN;
	else
		response->outcome = HTTP_NOT_SENT;

	if (result == CURLE_OK)
		response->error[0] = '\0';
	else if (transfer->lost)
		describe_error(response, "connection lost after the request was written");
	else if (transfer->refused)
		describe_error(response, "the address is private or reserved");
	else if (transfer->oversized)
		describe_error(response, "the answer is larger than 64 kB");
	else if (transfer->out_of_memory)
		describe_error(response, "out of memory");
	else if (result == CURLE_OPERATION_TIMEDOUT && transfer->begun)
		describe_error(response, "timed out waiting for the answer");
	else if (result == CURLE_OPERATION_TIMEDOUT)
		describe_error(response, "timed out before the request was written");
	else if (transfer->error[0] != '\0')
		describe_error(response, transfer->error);
	else
		describe_error(response, curl_easy_strerror(result));

	/*
	 * Start afresh after a failure or a repetition: libcurl allows a handle
	 * five of these, and some versions go on counting at its next request.
	 */
	if (result != CURLE_OK || transfer->repeated)
		transfer->generation = 0;

	(void) curl_multi_remove_handle(client->multi, easy);
	dlist_delete(&transfer->node);
	client->nrunning--;
	push_answer(client, transfer);
	keep_transfer(client, transfer);
}

/* Make the multi handle */
static bool
make_multi(HttpClient *client)
{
	CURLM	   *multi = curl_multi_init();
	bool		ok = true;

	if (multi == NULL)
		return false;

#define SET(option, value) \
	(ok = (curl_multi_setopt(multi, (option), (value)) == CURLM_OK) && ok)

	SET(CURLMOPT_SOCKETFUNCTION, watch_socket);
	SET(CURLMOPT_SOCKETDATA, client);
	SET(CURLMOPT_TIMERFUNCTION, set_timer);
	SET(CURLMOPT_TIMERDATA, client);
	SET(CURLMOPT_PIPELINING, (long) CURLPIPE_MULTIPLEX);
	SET(CURLMOPT_MAX_HOST_CONNECTIONS, (long) client->max_connections_per_host);
	/* By default libcurl keeps four per request under way, few after a lull */
	SET(CURLMOPT_MAXCONNECTS, MAX_CONNECTIONS);
#undef SET

#if LIBCURL_VERSION_NUM >= 0x081400
	/* A library older than the headers needs no telling, and may refuse */
	(void) curl_multi_setopt(multi, CURLMOPT_QUICK_EXIT, 1L);
#endif

	if (!ok)
	{
		curl_multi_cleanup(multi);
		return false;
	}
	client->multi = multi;
	client->due = 0;
	return true;
}

/*
 * Begin anew with another multi handle
 *
 * When a socket cannot be watched (out of memory or of epoll watches),
 * libcurl would wait for ever. What was under way is unknown.
 */
static void
replace_multi(HttpClient *client)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &client->running)
	{
		Transfer   *transfer = dlist_container(Transfer, node, iter.cur);

		strlcpy(transfer->error, "out of memory or of socket watches", sizeof(transfer->error));
		finish_transfer(client, transfer, CURLE_RECV_ERROR);
	}
	if (client->multi != NULL)
		(void) curl_multi_cleanup(client->multi);
	client->multi = NULL;
	client->due = 0;
	client->broken = !make_multi(client);
}

/*
 * Requests
 */

/* Check that a header, or what becomes part of one, is one line */
static bool
is_one_line(const char *text)
{
	for (; *text != '\0'; text++)
	{
		if (((unsigned char) *text < ' ' && *text != '\t') || *text == 0x7f)
			return false;
	}
	return true;
}

/* May a request go to private addresses? */
static bool
may_go_anywhere(const HttpClient *client, const HttpRequest *request)
{
	switch (request->addresses)
	{
		case HTTP_ADDRESSES_PUBLIC:
			return false;
		case HTTP_ADDRESSES_ALL:
			return true;
		case HTTP_ADDRESSES_USUAL:
			break;
	}
	return request->allow_insecure || client->allow_private;
}

/* Say what is wrong with a request; NULL: nothing */
static const char *
request_defect(HttpClient *client, const HttpRequest *request, bool *is_https)
{
	*is_https = false;
	if (request->url == NULL || !is_one_line(request->url))
		return "bad URL";
	if (strncasecmp(request->url, "https://", 8) == 0)
		*is_https = true;
	else if (strncasecmp(request->url, "http://", 7) != 0)
		return "the URL is not an https URL";
	else if (!request->allow_insecure)
		return "http is not allowed, only https";

	if (request->bearer != NULL && !is_one_line(request->bearer))
		return "the token has control characters";
	if (request->userpwd != NULL && !is_one_line(request->userpwd))
		return "the password has control characters";
	for (const char **header = request->headers; header != NULL && *header != NULL; header++)
	{
		if (!is_one_line(*header))
			return "a header has control characters";
	}

	if (*is_https && client->https_proxy != NULL &&
		!may_go_anywhere(client, request) && url_is_private(request->url))
		return "the address is private or reserved";
	return NULL;
}

/* Compare header list with what a request wants */
static bool
headers_match(const struct curl_slist *list, const HttpRequest *request)
{
	static const char bearer[] = "Authorization: Bearer ";

	/* The first is ours: see set_headers */
	if (list == NULL)
		return false;
	list = list->next;

	for (const char **header = request->headers; header != NULL && *header != NULL; header++)
	{
		if (list == NULL || strcmp(list->data, *header) != 0)
			return false;
		list = list->next;
	}
	if (request->bearer != NULL)
	{
		if (list == NULL ||
			strncmp(list->data, bearer, sizeof(bearer) - 1) != 0 ||
			strcmp(list->data + sizeof(bearer) - 1, request->bearer) != 0)
			return false;
		list = list->next;
	}
	return list == NULL;
}

/* Add a header to a list */
static bool
add_header(struct curl_slist **list, const char *header)
{
	struct curl_slist *longer = curl_slist_append(*list, header);

	if (longer == NULL)
		return false;
	*list = longer;
	return true;
}

/* Give a transfer its headers, which are often those of its last request */
static bool
set_headers(Transfer *transfer, const HttpRequest *request)
{
	struct curl_slist *list = NULL;
	bool		ok;

	if (headers_match(transfer->headers, request))
		return curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, transfer->headers) == CURLE_OK;

	/* Without this, libcurl may ask for leave and wait before a body */
	ok = add_header(&list, "Expect:");
	for (const char **header = request->headers; ok && header != NULL && *header != NULL; header++)
		ok = add_header(&list, *header);
	if (ok && request->bearer != NULL)
	{
		size_t		size = sizeof("Authorization: Bearer ") + strlen(request->bearer);
		char	   *header = malloc(size);

		ok = (header != NULL);
		if (ok)
		{
			snprintf(header, size, "Authorization: Bearer %s", request->bearer);
			ok = add_header(&list, header);
			wipe_and_free(header, size);
		}
	}
	if (!ok ||
		curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, list) != CURLE_OK)
	{
		/* The old list stays with the handle, so it must stay alive */
		curl_slist_free_all(list);
		return false;
	}
	curl_slist_free_all(transfer->headers);
	transfer->headers = list;
	return true;
}

/* Give a transfer what is its request's own */
static bool
set_request_options(Transfer *transfer, const HttpRequest *request, bool is_https)
{
	HttpClient *client = transfer->client;
	CURL	   *easy = transfer->easy;
	bool		proxied = is_https && client->https_proxy != NULL;
	bool		ok = true;

#define SET(option, value) \
	(ok = (curl_easy_setopt(easy, (option), (value)) == CURLE_OK) && ok)

	transfer->any_address = proxied || may_go_anywhere(client, request);

	SET(CURLOPT_URL, request->url);
	SET(CURLOPT_PROTOCOLS_STR, request->allow_insecure ? "http,https" : "https");
	SET(CURLOPT_PROXY, proxied ? client->https_proxy : "");
	SET(CURLOPT_TIMEOUT_MS, request->timeout_ms > 0 ? request->timeout_ms : HTTP_DEFAULT_TIMEOUT_MS);

	/*
	 * Over TLS, wait for the first connection to a host to say whether it
	 * speaks HTTP/2, instead of opening one per request at once.
	 */
	SET(CURLOPT_HTTP_VERSION, (long) (is_https && client->has_http2 ?
									  CURL_HTTP_VERSION_2TLS : CURL_HTTP_VERSION_1_1));
	SET(CURLOPT_PIPEWAIT, is_https && client->has_http2 ? 1L : 0L);

	SET(CURLOPT_HTTPAUTH, (long) CURLAUTH_BASIC);
	SET(CURLOPT_USERPWD, request->userpwd);

	if (request->body != NULL)
	{
		transfer->body = malloc(request->body_length + 1);
		if (transfer->body == NULL)
			return false;
		memcpy(transfer->body, request->body, request->body_length);
		transfer->body[request->body_length] = '\0';
		transfer->body_length = request->body_length;
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->body_length);
		SET(CURLOPT_POSTFIELDS, transfer->body);
	}
	else
		SET(CURLOPT_HTTPGET, 1L);

#undef SET

	return ok && set_headers(transfer, request);
}

/* Start a request */
bool
http_client_start(HttpClient *client, const HttpRequest *request)
{
	Transfer   *transfer;
	const char *defect;
	bool		is_https;
	sigset_t	signals;

	block_signals(&signals);

	if (client->broken)
		replace_multi(client);
	if (client->multi == NULL)
	{
		restore_signals(&signals);
		return false;
	}

	transfer = take_transfer(client);
	if (transfer == NULL)
	{
		restore_signals(&signals);
		return false;
	}
	transfer->answer->response.owner = request->owner;

	defect = request_defect(client, request, &is_https);
	if (defect != NULL)
	{
		transfer->answer->response.outcome = HTTP_NOT_SENT;
		describe_error(&transfer->answer->response, defect);
		push_answer(client, transfer);
		keep_transfer(client, transfer);

		/* Have the descriptor say that there is something to take */
		client->due = now_ns();
	}
	else
	{
		if (!set_request_options(transfer, request, is_https) ||
			curl_multi_add_handle(client->multi, transfer->easy) != CURLM_OK)
		{
			free_transfer(transfer);
			arm_timer(client, false);
			restore_signals(&signals);
			return false;
		}
		dlist_push_tail(&client->running, &transfer->node);
		client->nrunning++;
	}

	arm_timer(client, false);
	restore_signals(&signals);
	return true;
}

/* Take the finished requests out of libcurl's hands */
static void
collect_finished(HttpClient *client)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(client->multi, &left)) != NULL)
	{
		Transfer   *transfer = NULL;
		CURLcode	result = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		/* The message is gone once the handle is removed */
		if (curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &transfer) == CURLE_OK &&
			transfer != NULL)
			finish_transfer(client, transfer, result);
	}
}

/* Do what can be done without waiting */
void
http_client_run(HttpClient *client)
{
	struct epoll_event events[EVENTS_PER_CALL];
	bool		fired = false;
	sigset_t	signals;
	int			running;
	int			n;

	block_signals(&signals);

	if (client->broken)
		replace_multi(client);

	/*
	 * A busy set is left for the next turn, so that the caller gets a turn
	 * too
	 */
	for (int call = 0; call < CALLS_PER_RUN && client->multi != NULL; call++)
	{
		CURLMcode	code = CURLM_OK;
		bool		due;

		n = epoll_wait(client->epoll_fd, events, EVENTS_PER_CALL, 0);
		for (int i = 0; i < n && code == CURLM_OK; i++)
		{
			int			what = 0;

			if (events[i].data.fd == client->timer_fd)
			{
				fired = true;
				continue;
			}
			if (events[i].events & EPOLLIN)
				what |= CURL_CSELECT_IN;
			if (events[i].events & EPOLLOUT)
				what |= CURL_CSELECT_OUT;
			if (events[i].events & (EPOLLERR | EPOLLHUP))
				what |= CURL_CSELECT_ERR;
			code = curl_multi_socket_action(client->multi, events[i].data.fd, what, &running);
		}

		due = (client->due != 0 && client->due <= now_ns());
		if (due && code == CURLM_OK)
		{
			client->due = 0;
			code = curl_multi_socket_action(client->multi, CURL_SOCKET_TIMEOUT, 0, &running);
		}

		/* Errors of one request are its own; this is about all of them */
		if (code != CURLM_OK)
			client->broken = true;
		if (client->broken)
		{
			replace_multi(client);
			break;
		}
		collect_finished(client);
		if (n < EVENTS_PER_CALL && !due)
			break;
	}

	arm_timer(client, fired);
	restore_signals(&signals);
}

/* Take next finished request */
HttpResponse *
http_client_next(HttpClient *client)
{
	Answer	   *answer;

	if (client->nfinished == 0)
		return NULL;
	answer = dlist_container(Answer, node, dlist_pop_head_node(&client->finished));
	client->nfinished--;
	return &answer->response;
}

/* Free a response */
void
http_response_free(HttpResponse *response)
{
	Answer	   *answer = (Answer *) response;

	if (answer == NULL)
		return;
	wipe_and_free(answer->buffer, answer->capacity);
	free(answer);
}

/* Give the descriptor to wait for */
int
http_client_fd(HttpClient *client)
{
	return client->epoll_fd;
}

/* Count requests that the caller still has to take */
int
http_client_in_flight(HttpClient *client)
{
	return client->nrunning + client->nfinished;
}

/*
 * Clients
 */

/* Take over options */
bool
http_client_configure(HttpClient *client, const HttpOptions *options)
{
	char	   *https_proxy;
	char	   *ca_file;
	char	   *user_agent;
	sigset_t	signals;

	if (!copy_string(&https_proxy, options->https_proxy))
		return false;
	if (!copy_string(&ca_file, options->ca_file))
	{
		free(https_proxy);
		return false;
	}
	if (!copy_string(&user_agent, options->user_agent))
	{
		free(https_proxy);
		free(ca_file);
		return false;
	}

	free(client->https_proxy);
	free(client->ca_file);
	free(client->user_agent);
	client->https_proxy = https_proxy;
	client->ca_file = ca_file;
	client->user_agent = user_agent;
	client->connect_timeout_ms = options->connect_timeout_ms > 0 ?
		options->connect_timeout_ms : CONNECT_TIMEOUT_MS;
	client->max_connections_per_host = Max(options->max_connections_per_host, 0);
	client->allow_private = options->allow_private;

	/* Handles notice by the generation when they are used next */
	if (++client->generation == 0)
		client->generation = 1;

	if (client->multi != NULL)
	{
		block_signals(&signals);
		(void) curl_multi_setopt(client->multi, CURLMOPT_MAX_HOST_CONNECTIONS,
								 (long) client->max_connections_per_host);
		restore_signals(&signals);
	}
	return true;
}

/* Make a client */
HttpClient *
http_client_create(const HttpOptions *options, char *error)
{
	static bool initialized = false;
	HttpClient *client = NULL;
	Transfer   *transfer;
	struct epoll_event event = {0};
	const curl_version_info_data *version;
	const char *const *protocol;
	sigset_t	signals;

	block_signals(&signals);

	if (!initialized)
	{
		if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		{
			strlcpy(error, "libcurl cannot be initialized", HTTP_ERROR_SIZE);
			goto fail;
		}
		initialized = true;
	}

	version = curl_version_info(CURLVERSION_NOW);
	for (protocol = version->protocols; *protocol != NULL; protocol++)
	{
		if (strcmp(*protocol, "https") == 0)
			break;
	}
	if (*protocol == NULL)
	{
		strlcpy(error, "libcurl was built without TLS", HTTP_ERROR_SIZE);
		goto fail;
	}

	client = calloc(1, sizeof(HttpClient));
	if (client == NULL)
	{
		strlcpy(error, "out of memory", HTTP_ERROR_SIZE);
		goto fail;
	}
	client->has_http2 = (version->features & CURL_VERSION_HTTP2) != 0;
	dlist_init(&client->running);
	dlist_init(&client->finished);
	dlist_init(&client->idle);
	client->timer_fd = -1;
	client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (client->epoll_fd >= 0)
		client->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (client->timer_fd < 0)
	{
		strlcpy(error, "out of file descriptors", HTTP_ERROR_SIZE);
		goto fail;
	}
	event.events = EPOLLIN;
	event.data.fd = client->timer_fd;
	if (epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, client->timer_fd, &event) != 0)
	{
		strlcpy(error, "out of epoll watches", HTTP_ERROR_SIZE);
		goto fail;
	}

	if (!http_client_configure(client, options))
	{
		strlcpy(error, "out of memory", HTTP_ERROR_SIZE);
		goto fail;
	}
	if (!make_multi(client))
	{
		strlcpy(error, "libcurl lacks an option, or out of memory", HTTP_ERROR_SIZE);
		goto fail;
	}

	/* Try all common options now: a guard that cannot be set is no guard */
	transfer = take_transfer(client);
	if (transfer == NULL)
	{
		strlcpy(error, "libcurl lacks an option, or out of memory", HTTP_ERROR_SIZE);
		goto fail;
	}
	http_response_free(&transfer->answer->response);
	transfer->answer = NULL;
	keep_transfer(client, transfer);

	restore_signals(&signals);
	return client;

fail:
	restore_signals(&signals);
	http_client_destroy(client);
	return NULL;
}

/* Free a client, dropping what is under way */
void
http_client_destroy(HttpClient *client)
{
	dlist_mutable_iter iter;
	HttpResponse *response;
	sigset_t	signals;

	if (client == NULL)
		return;

	block_signals(&signals);

	dlist_foreach_modify(iter, &client->running)
	{
		Transfer   *transfer = dlist_container(Transfer, node, iter.cur);

		(void) curl_multi_remove_handle(client->multi, transfer->easy);
		free_transfer(transfer);
	}
	dlist_foreach_modify(iter, &client->idle)
		free_transfer(dlist_container(Transfer, node, iter.cur));
	while ((response = http_client_next(client)) != NULL)
		http_response_free(response);

	/* Closes the connections, for which it still tells us about sockets */
	if (client->multi != NULL)
		(void) curl_multi_cleanup(client->multi);
	if (client->timer_fd >= 0)
		close(client->timer_fd);
	if (client->epoll_fd >= 0)
		close(client->epoll_fd);
	free(client->https_proxy);
	free(client->ca_file);
	free(client->user_agent);
	free(client);

	restore_signals(&signals);
}
