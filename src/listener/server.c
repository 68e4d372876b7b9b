/*-------------------------------------------------------------------------
 *
 * server.c
 *	  libmicrohttpd: connections, limits, deadlines.
 *
 * One daemon of the library for each address, without threads: the loop waits
 * for their epoll descriptors and has them run. The library calls back for
 * each connection and each piece of a request; what is here then copies bytes
 * into malloc's memory and touches nothing of PostgreSQL's, because neither
 * an error nor an interrupt may jump out of the library. A request that is
 * there in whole is queued, and its connection suspended until it has an
 * answer.
 *
 * The library's own time-out begins anew with every byte. So each connection
 * has a deadline here: to bring a request in whole, then to take its answer.
 * One that is late is shut down at the socket, and the library finds it dead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include <fcntl.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/ip.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/guc.h"
#include "base/listeners.h"
#include "listener/server.h"

/* Before 0.9.71, callbacks gave an int. */
#if MHD_VERSION < 0x00097002
#define MHD_Result int
#else
#define MHD_Result enum MHD_Result
#endif

/* What a connection's buffers take: a request's line and headers have to fit */
#define CONNECTION_MEMORY (24 * 1024)

/* Longest target, and most bytes of headers that are copied */
#define MAX_TARGET 8192

/* Bodies: of callbacks, of all requests together, and what is read and thrown away before a connection is cut */
#define CALLBACK_BODY (4 * 1024 * 1024)
#define BODIES_MAX ((size_t) 64 * 1024 * 1024)
#define DISCARD_MAX ((size_t) 1024 * 1024)

/* The first piece of memory for a body */
#define BODY_FIRST 1024

#define CALLBACK_PATH "/callbacks/"

/* What a header's name is made of: RFC 9110, 5.6.2 */
#define TOKEN "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

/* Connections that wait to be taken */
#define BACKLOG 4096

/*
 * File descriptors that are not for connections: besides those that
 * PostgreSQL may have open for files of its own.
 */
#define FILES_RESERVED 64

/* Longest certificate file */
#define MAX_PEM (256 * 1024)

/* One connection */
typedef struct Connection
{
	dlist_node	node;			/* of connections */
	struct MHD_Connection *mhd;
	int			fd;
	TimestampTz deadline;
	Request    *request;		/* that has begun; NULL: none */
	bool		suspended;
	bool		cut;			/* shut down already */
} Connection;

/* What a request is to the library's side */
typedef struct Incoming
{
	Request		r;				/* first: they are one */
	size_t		size;			/* of the body's memory */
	size_t		limit;
	size_t		discarded;
	int			refused;		/* status for what cannot be taken; 0: none */
	bool		begun;
	bool		queued;
	bool		answered;
} Incoming;

typedef struct Daemon
{
	struct MHD_Daemon *mhd;
	int			listen_fd;
	int			epoll_fd;
} Daemon;

static Daemon daemons[SERVER_ADDRESSES];
static int	ndaemons = 0;
static dlist_head connections = DLIST_STATIC_INIT(connections);
static dlist_head whole = DLIST_STATIC_INIT(whole);
static int	nconnections = 0;
static int	nbusy = 0;
static size_t bodies = 0;		/* bytes in memory */
static bool quiet = false;

/* ---- requests ---- */

/* Free a request */
static void
free_request(Request *r)
{
	waits_remove(r);
	free(r->method);
	free(r->target);
	free(r->path);
	for (int i = 0; i < r->nheaders; i++)
	{
		free(r->headers[i].name);
		free(r->headers[i].value);
	}
	bodies -= ((Incoming *) r)->size;
	free(r->body);
	free(r->answer);
	for (int i = 0; i < r->nanswer_headers; i++)
	{
		free(r->answer_headers[i].name);
		free(r->answer_headers[i].value);
	}
	free(r);
}

/* Begin a request: its line has come */
static void *
begin_request(void *arg, const char *target, struct MHD_Connection *mhd)
{
	Incoming   *in = calloc(1, sizeof(Incoming));
	Request    *r = (Request *) in;
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	Connection *c = info != NULL ? info->socket_context : NULL;

	if (in == NULL || c == NULL)
	{
		free(in);
		return NULL;
	}
	r->connection = c;

	/* Until it is known, it is one of the others */
	r->route = route_count() - 1;
	in->limit = (size_t) otp_http_max_body * 1024;
	if (strlen(target) > MAX_TARGET)
		in->refused = 414;
	else
	{
		size_t		path = strcspn(target, "?");

		r->target = strdup(target);
		r->path = strndup(target, path);
		if (r->target == NULL || r->path == NULL)
			in->refused = 503;
		else if (target[path] == '?')
			r->query = r->target + path + 1;
		if (strncmp(target, CALLBACK_PATH, strlen(CALLBACK_PATH)) == 0)
			in->limit = CALLBACK_BODY;
	}
	c->request = r;
	nbusy++;
	return r;
}

/*
 * Could a header be another one to a proxy in front?
 *
 * The library takes names with blanks, and values with what is no text. A
 * line that goes on in the next one becomes a part of the name before it; of
 * names that say how long a body is we would miss what they say.
 */
static bool
is_unclear(const char *name, const char *value)
{
	static const char *const lengths[] = {"content-length", "transfer-encoding"};

	if (name[0] == '\0' || name[strspn(name, TOKEN)] != '\0')
		return true;
	for (int i = 0; i < lengthof(lengths); i++)
		if (pg_strncasecmp(name, lengths[i], strlen(lengths[i])) == 0 && name[strlen(lengths[i])] != '\0')
			return true;
	for (const char *p = value; p != NULL && *p != '\0'; p++)
		if (((unsigned char) *p < ' ' && *p != '\t') || *p == 0x7f)
			return true;
	return false;
}

/* Copy a header */
static MHD_Result
copy_header(void *arg, enum MHD_ValueKind kind, const char *name, const char *value)
{
	Incoming   *in = arg;
	Request    *r = &in->r;
	HttpHeader *h;

	if (is_unclear(name, value))
	{
		in->refused = 400;
		return MHD_NO;
	}
	if (r->nheaders == REQUEST_MAX_HEADERS)
	{
		in->refused = 431;
		return MHD_NO;
	}
	h = &r->headers[r->nheaders++];
	h->name = strdup(name);
	h->value = strdup(value != NULL ? value : "");
	if (h->name == NULL || h->value == NULL)
	{
		in->refused = 503;
		return MHD_NO;
	}
	for (char *p = h->name; *p != '\0'; p++)
		*p = pg_ascii_tolower((unsigned char) *p);
	return MHD_YES;
}

/* Give a header */
const char *
request_header(const Request *r, const char *name)
{
	for (int i = 0; i < r->nheaders; i++)
		if (strcmp(r->headers[i].name, name) == 0)
			return r->headers[i].value;
	return NULL;
}

/* Count a header */
int
request_header_count(const Request *r, const char *name)
{
	int			n = 0;

	for (int i = 0; i < r->nheaders; i++)
		if (strcmp(r->headers[i].name, name) == 0)
			n++;
	return n;
}

/* Take a piece of a body */
static void
take_body(Incoming *in, const char *data, size_t length)
{
	Request    *r = &in->r;

	if (in->refused == 0 && r->length + length > in->limit)
		in->refused = 413;
	if (in->refused == 0 && r->length + length + 1 > in->size)
	{
		size_t		size = Max(in->size, BODY_FIRST);
		char	   *body;

		while (size < r->length + length + 1)
			size *= 2;
		size = Min(size, in->limit + 1);
		body = bodies + size - in->size <= BODIES_MAX ? realloc(r->body, size) : NULL;
		if (body == NULL)
			in->refused = 503;
		else
		{
			bodies += size - in->size;
			in->size = size;
			r->body = body;
		}
	}
	if (in->refused != 0)
	{
		in->discarded += length;
		return;
	}
	memcpy(r->body + r->length, data, length);
	r->length += length;
	r->body[r->length] = '\0';
}

/* ---- answers ---- */

/* Answer */
void
request_answer(Request *r, int status, const char *type, const char *body, size_t length)
{
	if (r->status != 0)
		return;
	r->status = status;
	if (type == NULL)
		return;
	r->answer = malloc(length + 1);
	if (r->answer == NULL)
	{
		r->status = 500;
		return;
	}
	memcpy(r->answer, body, length);
	r->answer[length] = '\0';
	r->answer_length = length;
	request_answer_header(r, "Content-Type", type);
}

/* Add a header to the answer */
void
request_answer_header(Request *r, const char *name, const char *value)
{
	HttpHeader *h = &r->answer_headers[r->nanswer_headers];

	if (r->nanswer_headers == ANSWER_MAX_HEADERS || strpbrk(value, "\r\n") != NULL)
		return;
	h->name = strdup(name);
	h->value = strdup(value);
	if (h->name == NULL || h->value == NULL)
	{
		free(h->name);
		free(h->value);
		return;
	}
	r->nanswer_headers++;
}

/* Answer with what a function has answered */
void
request_answer_api(Request *r, const ApiAnswer *answer)
{
	char		number[32];

	if (r->status != 0)
		return;
	snprintf(number, sizeof(number), "%d", answer->remaining);
	request_answer_header(r, "X-RateLimit-Remaining", number);
	snprintf(number, sizeof(number), INT64_FORMAT, answer->reset_at);
	request_answer_header(r, "X-RateLimit-Reset", number);
	if (answer->status == 429 || answer->status == 503)
	{
		if (answer->retry_after >= 0)
		{
			snprintf(number, sizeof(number), "%d", answer->retry_after);
			request_answer_header(r, "Retry-After", number);
		}
	}
	else if (answer->status == 401)
		request_answer_header(r, "WWW-Authenticate", "Bearer");
	request_answer(r, answer->status, answer->body != NULL ? "application/json" : NULL, answer->body, answer->length);
}

/* Note how it went */
static void
count_answer(const Request *r, TimestampTz now)
{
	ListenerFigures *f = listeners_mine();
	int			class = Min(Max(r->status / 100, 1), FIGURE_CLASSES) - 1;
	int64		us = Max(now - r->arrived_at, 0);
	int			bucket = 0;

	if (r->route < 0 || r->route >= FIGURE_ROUTES)
		return;
	while (bucket < FIGURE_BUCKETS - 1 && us > INT64CONST(1000) << bucket)
		bucket++;
	f->requests[r->route][class]++;
	f->buckets[r->route][bucket]++;
	f->seconds_sum[r->route] += us;
}

/* Hand an answer to the library */
static MHD_Result
queue_answer(Request *r, struct MHD_Connection *mhd)
{
	Connection *c = r->connection;
	TimestampTz now = GetCurrentTimestamp();
	struct MHD_Response *response;
	MHD_Result	result;

	response = MHD_create_response_from_buffer(r->answer_length, r->answer,
											   r->answer != NULL ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
	if (response == NULL)
		return MHD_NO;
	r->answer = NULL;
	for (int i = 0; i < r->nanswer_headers; i++)
		(void) MHD_add_response_header(response, r->answer_headers[i].name, r->answer_headers[i].value);
	(void) MHD_add_response_header(response, "Cache-Control", "no-store");
	if (quiet)
		(void) MHD_add_response_header(response, "Connection", "close");
	result = MHD_queue_response(mhd, r->status, response);
	MHD_destroy_response(response);
	((Incoming *) r)->answered = true;
	c->deadline = TimestampTzPlusMilliseconds(now, otp_http_timeout);
	count_answer(r, now);
	return result;
}

/* Refuse what was not taken */
static void
refuse(Incoming *in)
{
	static const struct
	{
		int			status;
		const char *code;
		const char *message;
	}			refusals[] =
	{
		{400, "invalid_request", "it is not clear where the request ends"},
		{413, "payload_too_large", "the body is too long"},
		{414, "uri_too_long", "the address is too long"},
		{431, "headers_too_large", "there are too many headers"},
		{503, "unavailable", "the server is short of memory"}
	};
	const char *rpc = in->r.path != NULL && strncmp(in->r.path, "/rpc/", 5) == 0 ? NULL : "{\"error\":";
	char		body[256];
	char		now[32];

	for (int i = 0; i < lengthof(refusals); i++)
	{
		if (refusals[i].status != in->refused)
			continue;
		snprintf(body, sizeof(body), "%s{\"code\":\"%s\",\"message\":\"%s\"%s}%s", rpc != NULL ? rpc : "",
				 refusals[i].code, refusals[i].message, rpc != NULL ? "" : ",\"details\":null,\"hint\":null",
				 rpc != NULL ? "}" : "");
		request_answer_header(&in->r, "X-RateLimit-Remaining", "0");
		snprintf(now, sizeof(now), INT64_FORMAT, (int64) time(NULL));
		request_answer_header(&in->r, "X-RateLimit-Reset", now);
		if (in->refused == 503)
			request_answer_header(&in->r, "Retry-After", "1");
		request_answer_header(&in->r, "Connection", "close");
		request_answer(&in->r, in->refused, "application/json", body, strlen(body));
	}
}

/* ---- the library's callbacks ---- */

/* Work on a request as far as it has come */
static MHD_Result
handle(void *arg, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
	   const char *data, size_t *length, void **context)
{
	Incoming   *in = *context;
	Request    *r = (Request *) in;
	Connection *c;

	if (in == NULL)
		return MHD_NO;
	c = r->connection;
	if (!in->begun)
	{
		const char *declared;
		const char *encoding;

		/* The headers are there */
		in->begun = true;
		r->method = strdup(method);
		if (r->method == NULL)
			in->refused = 503;
		(void) MHD_get_connection_values(mhd, MHD_HEADER_KIND, copy_header, in);

		/*
		 * What a proxy in front could take for another length would be a
		 * request in a request
		 */
		declared = request_header(r, "content-length");
		encoding = request_header(r, "transfer-encoding");
		if (in->refused == 0 &&
			(request_header_count(r, "content-length") + request_header_count(r, "transfer-encoding") > 1 ||
			 request_header_count(r, "host") > 1 ||
			 (encoding != NULL && (pg_strcasecmp(encoding, "chunked") != 0 || strcmp(version, "HTTP/1.1") != 0))))
			in->refused = 400;

		/* Who says that he will send too much need not begin */
		if (in->refused == 0 && declared != NULL && strtoull(declared, NULL, 10) > in->limit)
			in->refused = 413;
		if (in->refused != 0)
		{
			refuse(in);
			r->arrived_at = GetCurrentTimestamp();
			return queue_answer(r, mhd);
		}
		return MHD_YES;
	}
	if (*length > 0)
	{
		take_body(in, data, *length);
		*length = 0;
		return in->discarded > DISCARD_MAX ? MHD_NO : MHD_YES;
	}
	if (in->answered)
		return MHD_YES;
	if (r->status == 0 && in->refused != 0)
	{
		r->arrived_at = GetCurrentTimestamp();
		refuse(in);
	}
	if (r->status != 0)
		return queue_answer(r, mhd);
	if (in->queued)
		return MHD_YES;

	/* It is whole: the loop takes it from here */
	in->queued = true;
	r->arrived_at = GetCurrentTimestamp();
	r->deadline = TimestampTzPlusMilliseconds(r->arrived_at, otp_http_timeout);
	if (r->body == NULL)
	{
		r->body = calloc(1, 1);
		if (r->body == NULL)
			return MHD_NO;
	}
	dlist_push_tail(&whole, &r->node);
	MHD_suspend_connection(mhd);
	c->suspended = true;
	return MHD_YES;
}

/* A request is over, however */
static void
completed(void *arg, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode code)
{
	Request    *r = *context;
	Connection *c;

	if (r == NULL)
		return;
	c = r->connection;
	c->request = NULL;
	c->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), otp_http_timeout);
	if (((Incoming *) r)->queued && r->status == 0)
		dlist_delete(&r->node);
	nbusy--;
	free_request(r);
	*context = NULL;
}

/* A connection comes or goes */
static void
connection_changed(void *arg, struct MHD_Connection *mhd, void **context, enum MHD_ConnectionNotificationCode code)
{
	ListenerFigures *f = listeners_mine();
	Connection *c = *context;

	if (code == MHD_CONNECTION_NOTIFY_STARTED)
	{
		const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);

		c = calloc(1, sizeof(Connection));
		*context = c;
		if (c == NULL)
			return;
		c->mhd = mhd;
		c->fd = info != NULL ? info->connect_fd : -1;
		c->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), otp_http_timeout);
		dlist_push_tail(&connections, &c->node);
		nconnections++;
		f->accepted++;
	}
	else if (c != NULL)
	{
		dlist_delete(&c->node);
		nconnections--;
		free(c);
		*context = NULL;
	}
	f->connections = nconnections;
}

/*
 * The library has found itself in a state that it cannot go on from
 *
 * It would abort, and the postmaster would restart the whole server. This
 * process has nothing that others need; it leaves in an orderly way, and the
 * launcher starts another. The library is left behind as it is: we do not
 * come back to it.
 */
static void
panic(void *arg, const char *file, unsigned int line, const char *reason)
{
	ereport(LOG,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("the HTTP library cannot go on: %s", reason != NULL ? reason : "no reason given"),
			 errdetail("It is at line %u of %s.", line, file != NULL ? file : "?"),
			 errhint("Its process ends, and another is started.")));
	proc_exit(1);
}

/* ---- start ---- */

/* Read a file of the settings; NULL with an error when it cannot be */
static char *
read_pem(const char *name, char *error, size_t size)
{
	FILE	   *file = AllocateFile(name, "r");
	char	   *text;
	size_t		length;

	if (file == NULL)
	{
		snprintf(error, size, "could not open \"%s\": %s", name, strerror(errno));
		return NULL;
	}
	text = palloc(MAX_PEM + 1);
	length = fread(text, 1, MAX_PEM, file);
	if (ferror(file) || length == MAX_PEM)
	{
		snprintf(error, size, "could not read \"%s\"", name);
		FreeFile(file);
		return NULL;
	}
	FreeFile(file);
	text[length] = '\0';
	return text;
}

/* Is a key file for nobody else to read? The rules are those of ssl_key_file */
static bool
check_key_file(const char *name, char *error, size_t size)
{
	struct stat st;

	if (stat(name, &st) != 0)
	{
		snprintf(error, size, "could not look at \"%s\": %s", name, strerror(errno));
		return false;
	}
	if (!S_ISREG(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != 0))
	{
		snprintf(error, size, "private key file \"%s\" must be a file of the database user or root", name);
		return false;
	}
	if ((st.st_uid == geteuid() && st.st_mode & (S_IRWXG | S_IRWXO)) ||
		(st.st_uid == 0 && st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)))
	{
		snprintf(error, size, "private key file \"%s\" has group or world access", name);
		return false;
	}
	return true;
}

/*
 * How many connections there can be
 *
 * Each takes a descriptor. Only the hard limit is meant to bind; the soft one
 * is low for the sake of programs that use select(). What PostgreSQL's own
 * files may take is left to them.
 */
static int
connection_limit(void)
{
	struct rlimit files;
	int			limit = otp_http_max_connections;
	rlim_t		reserved = max_files_per_process + FILES_RESERVED;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		rlim_t		soft = files.rlim_cur;

		files.rlim_cur = files.rlim_max;
		if (soft != files.rlim_max && setrlimit(RLIMIT_NOFILE, &files) != 0)
			files.rlim_cur = soft;
		if (files.rlim_cur < reserved + limit)
			limit = files.rlim_cur > 2 * FILES_RESERVED + reserved ? (int) (files.rlim_cur - reserved) :
				(int) Max(files.rlim_cur / 4, 1);
	}
	if (limit < otp_http_max_connections)
		ereport(LOG,
				(errmsg("only %d HTTP connections can be open at once, not otp.http_max_connections (%d)",
						limit, otp_http_max_connections),
				 errhint("Raise the server's limit on open files.")));
	return limit;
}

/* Bind to one address; -1 with errno set when it cannot be */
static int
bind_to(const struct addrinfo *address, bool share)
{
	int			on = 1;
	int			fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int			saved;

	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
		(!share || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == 0) &&
		(address->ai_family != AF_INET6 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) == 0) &&
		bind(fd, address->ai_addr, address->ai_addrlen) == 0 &&
		(!share || listen(fd, BACKLOG) == 0))
		return fd;
	saved = errno;
	close(fd);
	errno = saved;
	return -1;
}

/* Start the library at a socket */
static bool
start_daemon(int fd, int limit, const char *certificate, const char *key)
{
	struct MHD_OptionItem tls[] = {
		{MHD_OPTION_HTTPS_MEM_CERT, 0, unconstify(char *, certificate)},
		{MHD_OPTION_HTTPS_MEM_KEY, 0, unconstify(char *, key)},
		{MHD_OPTION_HTTPS_PRIORITIES, 0, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"},
		{MHD_OPTION_END, 0, NULL}
	};
	Daemon	   *d = &daemons[ndaemons];
	const union MHD_DaemonInfo *info;

	if (certificate == NULL)
		tls[0].option = MHD_OPTION_END;
	d->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | (certificate != NULL ? MHD_USE_TLS : 0),
							  0, NULL, NULL, handle, NULL,
							  MHD_OPTION_LISTEN_SOCKET, fd,
							  MHD_OPTION_CONNECTION_LIMIT, (unsigned int) limit,
							  MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t) CONNECTION_MEMORY,
							  MHD_OPTION_CONNECTION_TIMEOUT, (unsigned int) 0,
							  MHD_OPTION_STRICT_FOR_CLIENT, 1,
							  MHD_OPTION_URI_LOG_CALLBACK, begin_request, NULL,
							  MHD_OPTION_NOTIFY_COMPLETED, completed, NULL,
							  MHD_OPTION_NOTIFY_CONNECTION, connection_changed, NULL,
							  MHD_OPTION_ARRAY, tls,
							  MHD_OPTION_END);
	if (d->mhd == NULL)
		return false;
	info = MHD_get_daemon_info(d->mhd, MHD_DAEMON_INFO_EPOLL_FD);
	d->listen_fd = fd;
	d->epoll_fd = info != NULL ? info->epoll_fd : -1;
	ndaemons++;
	return true;
}

/* Add an address to the list of those that are listened on */
static void
tell_address(const struct addrinfo *address, char *addresses, size_t size)
{
	char		host[NI_MAXHOST];
	size_t		length = strlen(addresses);

	if (pg_getnameinfo_all((struct sockaddr_storage *) address->ai_addr, address->ai_addrlen,
						   host, sizeof(host), NULL, 0, NI_NUMERICHOST) == 0)
		snprintf(addresses + length, size - length, "%s%s", length > 0 ? ", " : "", host);
}

/* Listen on all addresses of a name; false when on none */
static bool
listen_on(const char *name, bool share, int limit, const char *certificate, const char *key,
		  char *addresses, size_t addresses_size, char *error, size_t size)
{
	struct addrinfo hint = {0};
	struct addrinfo *found = NULL;
	char		port[16];
	bool		any = false;
	int			rc;

	hint.ai_family = AF_UNSPEC;
	hint.ai_flags = AI_PASSIVE;
	hint.ai_socktype = SOCK_STREAM;
	snprintf(port, sizeof(port), "%d", otp_http_port);
	rc = getaddrinfo(strcmp(name, "*") == 0 ? NULL : name, port, &hint, &found);
	if (rc != 0)
	{
		snprintf(error, size, "could not find address \"%s\" of otp.http_listen_addresses: %s", name, gai_strerror(rc));
		return false;
	}
	for (struct addrinfo *a = found; a != NULL; a = a->ai_next)
	{
		int			fd = -1;

		if ((a->ai_family != AF_INET && a->ai_family != AF_INET6) || ndaemons == SERVER_ADDRESSES)
			continue;

		/*
		 * With SO_REUSEPORT the kernel lets everybody in who sets it, too,
		 * and shares out the connections. So the first of ours looks without.
		 */
		if (!share)
			fd = bind_to(a, false);
		if (share || fd >= 0)
		{
			if (fd >= 0)
				close(fd);
			fd = bind_to(a, true);
		}
		if (fd < 0)
		{
			char		host[NI_MAXHOST] = "?";

			(void) pg_getnameinfo_all((struct sockaddr_storage *) a->ai_addr, a->ai_addrlen, host,
									  sizeof(host), NULL, 0, NI_NUMERICHOST);
			snprintf(error, size, "could not listen on address %s, port %d: %s", host, otp_http_port, strerror(errno));

			/* Somebody else's port is nobody's in half */
			if (errno == EADDRINUSE)
			{
				any = false;
				break;
			}
			continue;
		}
		if (!start_daemon(fd, limit, certificate, key))
		{
			snprintf(error, size, certificate != NULL ?
					 "could not start the HTTP server: certificate or key are not usable, or memory is short" :
					 "could not start the HTTP server: memory or descriptors are short");
			close(fd);
			any = false;
			break;
		}
		tell_address(a, addresses, addresses_size);
		any = true;
	}
	freeaddrinfo(found);
	return any;
}

/* Listen */
bool
server_start(bool share, char *addresses, size_t addresses_size, char *error, size_t size)
{
	char	   *certificate = NULL;
	char	   *key = NULL;
	List	   *names;
	ListCell   *cell;
	bool		started = true;
	int			limit;

	MHD_set_panic_func(panic, NULL);
	addresses[0] = error[0] = '\0';
	if (otp_http_cert_file[0] != '\0')
	{
		if (otp_http_key_file[0] == '\0')
		{
			snprintf(error, size, "otp.http_cert_file is set, but otp.http_key_file is not");
			return false;
		}
		if (!check_key_file(otp_http_key_file, error, size) ||
			(certificate = read_pem(otp_http_cert_file, error, size)) == NULL ||
			(key = read_pem(otp_http_key_file, error, size)) == NULL)
			return false;
	}
	if (!SplitGUCList(pstrdup(otp_http_listen_addresses), ',', &names) || names == NIL)
	{
		snprintf(error, size, "otp.http_listen_addresses is not a list of addresses");
		return false;
	}
	limit = Max(connection_limit() / list_length(names), 1);
	foreach(cell, names)
	{
		started = listen_on(lfirst(cell), share, limit, certificate, key, addresses, addresses_size, error, size);
		if (!started)
			break;
	}
	if (key != NULL)
		explicit_bzero(key, strlen(key));
	if (!started)
		server_stop();
	return started;
}

/* ---- work ---- */

/* Give the descriptors */
int
server_descriptors(int fds[SERVER_ADDRESSES])
{
	for (int i = 0; i < ndaemons; i++)
		fds[i] = daemons[i].epoll_fd;
	return ndaemons;
}

/* Work on the network */
void
server_run(void)
{
	for (int i = 0; i < ndaemons; i++)
		(void) MHD_run(daemons[i].mhd);
}

/* How long can the library wait? */
long
server_timeout(void)
{
	long		timeout = -1;

	for (int i = 0; i < ndaemons; i++)
	{
		MHD_UNSIGNED_LONG_LONG ms;

		if (MHD_get_timeout(daemons[i].mhd, &ms) == MHD_YES && (timeout < 0 || (long) ms < timeout))
			timeout = (long) Min(ms, 60000);
	}
	return timeout;
}

/* Take a request */
Request *
server_next(void)
{
	Request    *r;

	if (dlist_is_empty(&whole))
		return NULL;
	r = dlist_container(Request, node, dlist_pop_head_node(&whole));

	/* In no list, it may be taken out of one again */
	r->node.prev = r->node.next = &r->node;
	return r;
}

/* Is there one to take? */
bool
server_has_next(void)
{
	return !dlist_is_empty(&whole);
}

/* Let an answer go */
void
server_finish(Request *r)
{
	Connection *c = r->connection;

	if (!c->suspended)
		return;
	c->suspended = false;
	MHD_resume_connection(c->mhd);
}

/* End connections that are too slow */
void
server_expire(TimestampTz now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &connections)
	{
		Connection *c = dlist_container(Connection, node, iter.cur);

		/*
		 * Those that are being worked on have their own time; and so have
		 * those without a request, once we leave
		 */
		if (c->suspended || c->cut)
			continue;
		if (c->deadline <= now || (quiet && c->request == NULL))
		{
			c->cut = true;
			if (c->deadline <= now && c->request != NULL)
				listeners_mine()->expired++;
			(void) shutdown(c->fd, SHUT_RDWR);
		}
	}
}

/* Count connections */
int
server_connections(void)
{
	return nconnections;
}

/* Count requests */
int
server_busy(void)
{
	return nbusy;
}

/* Take no more connections */
void
server_quiesce(void)
{
	if (quiet)
		return;
	quiet = true;
	for (int i = 0; i < ndaemons; i++)
	{
		/* Those who have been let in by the kernel are still served */
		(void) MHD_run(daemons[i].mhd);
		if (MHD_quiesce_daemon(daemons[i].mhd) != MHD_INVALID_SOCKET)
			close(daemons[i].listen_fd);
	}
}

/* End it all */
void
server_stop(void)
{
	for (int i = 0; i < ndaemons; i++)
		MHD_stop_daemon(daemons[i].mhd);
	ndaemons = 0;
}

/* ---- settings ---- */

/* Append what tells one state of a file from another */
static void
append_file(StringInfo text, const char *name)
{
	struct stat st;

	if (name[0] != '\0' && stat(name, &st) == 0)
		appendStringInfo(text, "%s %lld %lld %lld %u,", name, (long long) st.st_mtime, (long long) st.st_size,
						 (long long) st.st_ino, (unsigned int) st.st_mode);
	else
		appendStringInfo(text, "%s,", name);
}

/* Describe the settings */
char *
server_fingerprint(void)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "%d %s %d %d %d %d %d %s ", otp_http_port, otp_http_listen_addresses,
					 otp_http_workers,
					 otp_http_max_connections, otp_http_max_body, otp_http_timeout, otp_http_send_wait,
					 otp_http_public_url);
	append_file(&text, otp_http_cert_file);
	append_file(&text, otp_http_key_file);
	return text.data;
}
