/*
 * http.c
 *		The HTTP server: reading requests, delaying, hanging and answering.
 *
 * A few threads, each with its own libmicrohttpd server on epoll, share the
 * listening socket.  A request that has to wait is suspended, so that it costs
 * a file descriptor and nothing else; one timer thread resumes it.  The timer thread also watches
 * hung connections, because a suspended connection does not notice that its
 * client has gone.
 */
#include "simulator.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_BODY (1024 * 1024)
#define MAX_CONNECTIONS 20000
#define CONNECTION_MEMORY (16 * 1024)
#define SLOW_STEPS 10			/* pieces of a slow body */
#define MAX_SLEEP_MS 1000		/* of a server thread without events */
#define TRUNCATED_BYTES 100		/* promised but never sent */

/* One libmicrohttpd server and the thread that runs it. */
struct Server
{
	struct MHD_Daemon *daemon;
	int			wake_fd;		/* a suspended request was resumed */
};

/* The timer's state; the heap is ordered by due time. */
static pthread_mutex_t timer_lock = PTHREAD_MUTEX_INITIALIZER;
static Request **heap;
static int	heap_count;
static int	heap_size;
static Request *hung;			/* list */
static Request *waiters;		/* list: requests for a change of the inbox */
static _Atomic int waiter_count;
static bool release_wanted;
static int	timer_epoll = -1;
static int	timer_event = -1;

/* ---------- heap ---------- */

/* Put a request at a place of the heap. */
static void
heap_place(int pos, Request *req)
{
	heap[pos] = req;
	req->heap_pos = pos;
}

/* Move a request up or down to where it belongs. */
static void
heap_settle(int pos)
{
	Request    *req = heap[pos];

	while (pos > 0 && heap[(pos - 1) / 2]->due > req->due)
	{
		heap_place(pos, heap[(pos - 1) / 2]);
		pos = (pos - 1) / 2;
	}
	for (;;)
	{
		int			child = 2 * pos + 1;

		if (child + 1 < heap_count && heap[child + 1]->due < heap[child]->due)
			child++;
		if (child >= heap_count || heap[child]->due >= req->due)
			break;
		heap_place(pos, heap[child]);
		pos = child;
	}
	heap_place(pos, req);
}

/* Add a request; the lock is held. */
static void
heap_add(Request *req, int64_t due)
{
	if (heap_count == heap_size)
	{
		heap_size = heap_size ? heap_size * 2 : 1024;
		heap = realloc(heap, heap_size * sizeof(Request *));
		if (heap == NULL)
			abort();
	}
	req->due = due;
	heap_place(heap_count++, req);
	heap_settle(req->heap_pos);
	if (req->heap_pos == 0)
		eventfd_write(timer_event, 1);
}

/* Take a request out; the lock is held. */
static void
heap_remove(Request *req)
{
	int			pos = req->heap_pos;

	heap_count--;
	req->heap_pos = -1;
	if (pos < heap_count)
	{
		heap_place(pos, heap[heap_count]);
		heap_settle(pos);
	}
}

/* ---------- waiting ---------- */

/* Link a request into a list; the lock is held. */
static void
list_add(Request **list, Request *req)
{
	req->prev = NULL;
	req->next = *list;
	if (*list)
		(*list)->prev = req;
	*list = req;
}

/* Unlink a request; the lock is held. */
static void
list_remove(Request **list, Request *req)
{
	if (req->prev)
		req->prev->next = req->next;
	else
		*list = req->next;
	if (req->next)
		req->next->prev = req->prev;
	req->prev = req->next = NULL;
}

/* The socket of a request. */
static int
request_fd(Request *req)
{
	const union MHD_ConnectionInfo *info;

	info = MHD_get_connection_info(req->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	return info ? info->connect_fd : -1;
}

/* Let a suspended request go on; it may be gone before this returns. */
static void
resume(Request *req)
{
	struct Server *server = req->server;

	MHD_resume_connection(req->connection);
	eventfd_write(server->wake_fd, 1);
}

/* Suspend a request until a time. */
static void
wait_until(Request *req, int64_t due)
{
	pthread_mutex_lock(&timer_lock);
	MHD_suspend_connection(req->connection);
	heap_add(req, due);
	pthread_mutex_unlock(&timer_lock);
}

/* Suspend a request until its client goes away. */
static void
wait_for_ever(Request *req)
{
	struct epoll_event event = {.events = EPOLLRDHUP, .data.ptr = req};

	pthread_mutex_lock(&timer_lock);
	MHD_suspend_connection(req->connection);
	list_add(&hung, req);
	count_hanging(1);
	epoll_ctl(timer_epoll, EPOLL_CTL_ADD, request_fd(req), &event);
	pthread_mutex_unlock(&timer_lock);
}

/* Suspend a request until the inbox changes; false if it has already. */
static bool
wait_for_inbox(Request *req)
{
	pthread_mutex_lock(&timer_lock);

	/* count first: who adds a message looks at the count after adding it */
	waiter_count++;
	if (inbox_generation() != req->answer.inbox_generation)
	{
		waiter_count--;
		pthread_mutex_unlock(&timer_lock);
		return false;
	}
	MHD_suspend_connection(req->connection);
	list_add(&waiters, req);
	heap_add(req, req->answer.wait_until);
	pthread_mutex_unlock(&timer_lock);
	return true;
}

/* Resume a request that waits for the inbox; the lock is held. */
static void
resume_waiter(Request *req)
{
	list_remove(&waiters, req);
	waiter_count--;
	resume(req);
}

/* Wake everyone who waits for the inbox. */
void
http_inbox_changed(void)
{
	if (waiter_count == 0)
		return;
	pthread_mutex_lock(&timer_lock);
	while (waiters)
	{
		heap_remove(waiters);
		resume_waiter(waiters);
	}
	pthread_mutex_unlock(&timer_lock);
}

/* Let go of a hung connection; only the timer thread may, the lock is held. */
static void
resume_hung(Request *req)
{
	epoll_ctl(timer_epoll, EPOLL_CTL_DEL, request_fd(req), NULL);
	list_remove(&hung, req);
	count_hanging(-1);
	resume(req);
}

/* Close all hung connections, soon. */
void
http_release_hung(void)
{
	pthread_mutex_lock(&timer_lock);
	release_wanted = true;
	pthread_mutex_unlock(&timer_lock);
	eventfd_write(timer_event, 1);
}

/* Resume what is due, for ever. */
static void *
timer_main(void *arg)
{
	struct epoll_event events[256];

	for (;;)
	{
		int64_t		now = mono_us();
		int			timeout = -1;
		int			n;

		pthread_mutex_lock(&timer_lock);
		while (heap_count > 0 && heap[0]->due <= now)
		{
			Request    *req = heap[0];

			heap_remove(req);
			if (req->answer.kind == ANSWER_WAIT_INBOX)
				resume_waiter(req);
			else
				resume(req);
		}
		if (heap_count > 0)
			timeout = (int) ((heap[0]->due - now + 999) / 1000);
		if (release_wanted)
		{
			while (hung)
				resume_hung(hung);
			release_wanted = false;
		}
		pthread_mutex_unlock(&timer_lock);

		n = epoll_wait(timer_epoll, events, 256, timeout);
		for (int i = 0; i < n; i++)
		{
			eventfd_t	value;

			if (events[i].data.ptr == NULL)
			{
				eventfd_read(timer_event, &value);
				continue;
			}
			pthread_mutex_lock(&timer_lock);
			resume_hung(events[i].data.ptr);
			pthread_mutex_unlock(&timer_lock);
		}
	}
	return arg;
}

/* ---------- requests ---------- */

/* A header of the request, or NULL. */
const char *
request_header(Request *req, const char *name)
{
	return MHD_lookup_connection_value(req->connection, MHD_HEADER_KIND, name);
}

/* An argument of the query string, or NULL. */
const char *
request_arg(Request *req, const char *name)
{
	return MHD_lookup_connection_value(req->connection, MHD_GET_ARGUMENT_KIND, name);
}

/* Is this the method? */
bool
request_is(Request *req, const char *method)
{
	return strcmp(req->method, method) == 0;
}

/* Answer with a body; takes the text's bytes. */
void
answer_text(Request *req, int status, const char *content_type, Text *body)
{
	req->answer.status = status;
	req->answer.content_type = content_type;
	req->answer.body = body->data ? body->data : must_copy("");
	req->answer.len = body->len;
	memset(body, 0, sizeof(*body));
}

/* Answer with formatted JSON. */
void
answer_printf(Request *req, int status, const char *fmt,...)
{
	va_list		args;
	char	   *body;
	int			len;

	va_start(args, fmt);
	len = vasprintf(&body, fmt, args);
	va_end(args);
	if (len < 0)
		abort();
	req->answer.status = status;
	req->answer.content_type = "application/json";
	req->answer.body = body;
	req->answer.len = len;
}

/* ---------- answers ---------- */

typedef struct Body
{
	Request    *req;
	char	   *data;
	size_t		len;			/* of data */
	size_t		total;			/* promised */
	bool		truncate;
	int64_t		start;
	int64_t		slow_us;
} Body;

/* Produce the next piece of an unusual body. */
static ssize_t
body_read(void *cls, uint64_t pos, char *buf, size_t max)
{
	Body	   *body = cls;
	size_t		left;

	if (pos < body->len)
	{
		left = body->len - pos;
		if (body->slow_us > 0)
		{
			uint64_t	step = pos * SLOW_STEPS / body->len;
			int64_t		due = body->start + (int64_t) (step + 1) * body->slow_us / SLOW_STEPS;
			size_t		step_end = ((step + 1) * body->len + SLOW_STEPS - 1) / SLOW_STEPS;

			if (mono_us() < due)
			{
				wait_until(body->req, due);
				return 0;
			}
			if (step_end > pos && step_end - pos < left)
				left = step_end - pos;
		}
		if (left > max)
			left = max;
		memcpy(buf, body->data + pos, left);
		return left;
	}
	if (body->truncate)
		return MHD_CONTENT_READER_END_WITH_ERROR;

	/* a huge body */
	left = body->total - pos < max ? body->total - pos : max;
	memset(buf, 'x', left);
	return left;
}

/* Free an unusual body. */
static void
body_free(void *cls)
{
	Body	   *body = cls;

	free(body->data);
	free(body);
}

/* Turn an answer into a response; takes the answer's body. */
static struct MHD_Response *
make_response(Request *req)
{
	Answer	   *a = &req->answer;
	struct MHD_Response *response;
	const char *key;
	json_t	   *value;

	if (a->truncate || a->slow_body_ms || a->huge_bytes)
	{
		Body	   *body = must_alloc(sizeof(Body));

		body->req = req;
		body->data = a->body;
		body->len = a->len;
		body->total = a->len;
		if (a->huge_bytes > body->total)
			body->total = a->huge_bytes;
		if (a->truncate)
			body->total += TRUNCATED_BYTES;
		body->truncate = a->truncate;
		body->start = mono_us();
		body->slow_us = (int64_t) a->slow_body_ms * 1000;
		response = MHD_create_response_from_callback(body->total, CONNECTION_MEMORY / 4, body_read, body,
													 body_free);
	}
	else
		response = MHD_create_response_from_buffer(a->len, a->body, MHD_RESPMEM_MUST_FREE);
	a->body = NULL;

	if (a->content_type)
		MHD_add_response_header(response, "Content-Type", a->content_type);
	if (a->authenticate)
		MHD_add_response_header(response, "WWW-Authenticate", "Basic realm=\"Twilio API\"");
	if (a->retry_after > 0)
	{
		char		seconds[16];

		snprintf(seconds, sizeof(seconds), "%d", a->retry_after);
		MHD_add_response_header(response, "Retry-After", seconds);
	}
	json_object_foreach(a->headers, key, value)
		if (json_is_string(value))
		MHD_add_response_header(response, key, json_string_value(value));
	return response;
}

/* Send a reset in place of an answer. */
static void
reset_connection(Request *req)
{
	struct sockaddr nowhere = {.sa_family = AF_UNSPEC};

	/* dissolving the association of a connected TCP socket sends RST at once */
	if (connect(request_fd(req), &nowhere, sizeof(nowhere)) != 0)
		perror("simulator: reset");
}

/* Start, hold or finish the answer. */
static enum MHD_Result
give_answer(Request *req)
{
	struct MHD_Response *response;
	enum MHD_Result result;

	if (req->phase == PHASE_READING)
	{
		if (req->answer.kind == ANSWER_HANG)
		{
			req->phase = PHASE_HUNG;
			wait_for_ever(req);
			return MHD_YES;
		}
		if (req->answer.delay_ms > 0)
		{
			req->phase = PHASE_DELAYED;
			count_delayed(1);
			wait_until(req, mono_us() + (int64_t) req->answer.delay_ms * 1000);
			return MHD_YES;
		}
	}
	else if (req->phase == PHASE_HUNG)
		return MHD_NO;			/* the client has gone */
	else if (req->phase == PHASE_DELAYED)
		count_delayed(-1);
	req->phase = PHASE_READY;

	if (req->answer.kind == ANSWER_RESET)
	{
		reset_connection(req);
		return MHD_NO;
	}
	response = make_response(req);
	result = MHD_queue_response(req->connection, req->answer.status, response);
	MHD_destroy_response(response);
	return result;
}

/* ---------- fast mode ---------- */

static _Atomic int64_t sink_number;

/* Find the digits that follow a marker. */
static const char *
find_digits(const Text *body, const char *marker, int *len)
{
	const char *p = body->data ? memmem(body->data, body->len, marker, strlen(marker)) : NULL;

	*len = 0;
	if (p == NULL)
		return "";
	p += strlen(marker);
	p += strspn(p, ": \"+");
	while (*len < 15 && p[*len] >= '0' && p[*len] <= '9')
		(*len)++;
	return p;
}

/* Accept a send without looking at it closely. */
static bool
sink_handle(Request *req)
{
	size_t		len = strlen(req->url);
	long long	number;
	const char *to;
	int			to_len;

	if (!request_is(req, "POST"))
		return false;
	if (len > 14 && strcmp(req->url + len - 14, "/Messages.json") == 0)
	{
		to = find_digits(&req->body, "To=%2B", &to_len);
		number = ++sink_number;
		answer_printf(req, 201, "{\"sid\":\"SM%032llx\",\"status\":\"queued\",\"to\":\"+%.*s\","
					  "\"error_code\":null,\"error_message\":null}", number, to_len, to);
		count_outcome(API_TWILIO, OUTCOME_ACCEPTED);
	}
	else if (len > 9 && strcmp(req->url + len - 9, "/messages") == 0)
	{
		to = find_digits(&req->body, "\"to\"", &to_len);
		number = ++sink_number;
		answer_printf(req, 200, "{\"messaging_product\":\"whatsapp\",\"contacts\":[{\"input\":\"%.*s\","
					  "\"wa_id\":\"%.*s\"}],\"messages\":[{\"id\":\"wamid.%048llX\","
					  "\"message_status\":\"accepted\"}]}", to_len, to, to_len, to, number);
		count_outcome(API_META, OUTCOME_ACCEPTED);
	}
	else
		return false;
	req->answer.delay_ms = settings.latency_ms;
	return true;
}

/* ---------- routing ---------- */

/* Give a complete request to who answers it. */
static void
route(Request *req)
{
	memset(&req->answer, 0, sizeof(req->answer));
	if (req->too_large)
		answer_printf(req, 413, "{\"error\":\"request body too large\"}\n");
	else if (strncmp(req->url, "/_sim/", 6) == 0)
		control_handle(req);
	else if (settings.sink && sink_handle(req))
		return;
	else if (meta_handle(req) || twilio_handle(req))
		req->answer.delay_ms += settings.latency_ms;
	else
		answer_printf(req, 404, "{\"error\":\"no such address\"}\n");
}

/* libmicrohttpd: headers, each piece of the body, the end, each resumption. */
static enum MHD_Result
handle_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
			   const char *version, const char *upload_data, size_t *upload_data_size, void **con_cls)
{
	Request    *req = *con_cls;

	(void) version;
	if (req == NULL)
	{
		req = must_alloc(sizeof(Request));
		req->server = cls;
		req->connection = connection;
		req->url = must_copy(url);
		snprintf(req->method, sizeof(req->method), "%s", method);
		req->heap_pos = -1;
		req->secure = settings.tls_cert_file != NULL;
		count_request_start();
		*con_cls = req;
		return MHD_YES;
	}
	if (*upload_data_size > 0)
	{
		if (req->body.len + *upload_data_size > MAX_BODY)
			req->too_large = true;
		else
			text_add(&req->body, upload_data, *upload_data_size);
		*upload_data_size = 0;
		return MHD_YES;
	}
	if (req->phase == PHASE_READING)
	{
		if (req->received_us == 0)
			req->received_us = wall_us();
		if (req->body.data == NULL)
			text_puts(&req->body, "");
		do
			route(req);
		while (req->answer.kind == ANSWER_WAIT_INBOX && !wait_for_inbox(req));
		if (req->answer.kind == ANSWER_WAIT_INBOX)
			return MHD_YES;
	}
	return give_answer(req);
}

/* libmicrohttpd: a request is over, well or not. */
static void
request_over(void *cls, struct MHD_Connection *connection, void **con_cls,
			 enum MHD_RequestTerminationCode why)
{
	Request    *req = *con_cls;

	(void) cls;
	(void) connection;
	(void) why;
	if (req == NULL)
		return;
	count_request_end();
	text_free(&req->body);
	free(req->url);
	free(req->answer.body);
	free(req->answer.own_content_type);
	json_decref(req->answer.headers);
	free(req);
	*con_cls = NULL;
}

/* libmicrohttpd: a connection was opened or closed. */
static void
connection_event(void *cls, struct MHD_Connection *connection, void **socket_context,
				 enum MHD_ConnectionNotificationCode code)
{
	(void) cls;
	(void) connection;
	(void) socket_context;
	count_connection(code == MHD_CONNECTION_NOTIFY_STARTED);
}

/* Read a PEM file. */
static char *
read_file(const char *path)
{
	FILE	   *f = fopen(path, "r");
	Text		text = {0};
	char		buf[4096];
	size_t		n;

	if (f == NULL)
	{
		fprintf(stderr, "simulator: could not open \"%s\": %s\n", path, strerror(errno));
		exit(1);
	}
	while ((n = fread(buf, 1, sizeof(buf), f)) > 0)
		text_add(&text, buf, n);
	fclose(f);
	return text.data ? text.data : must_copy("");
}

/*
 * Serve one share of the connections, for ever.
 *
 * The loop is ours because that of libmicrohttpd 0.9.75 can stand still: when
 * epoll_wait() gives exactly as many events as fit in its array (128), it
 * calls epoll_wait() again, without a timeout, before it looks at them.
 * MHD_run() never blocks.
 */
static void *
server_main(void *arg)
{
	struct Server *server = arg;
	const union MHD_DaemonInfo *info = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD);
	struct pollfd wait[2] = {{.fd = info->epoll_fd, .events = POLLIN}, {.fd = server->wake_fd, .events = POLLIN}};

	for (;;)
	{
		MHD_UNSIGNED_LONG_LONG timeout_ms;
		eventfd_t	value;

		if (MHD_get_timeout(server->daemon, &timeout_ms) != MHD_YES || timeout_ms > MAX_SLEEP_MS)
			timeout_ms = MAX_SLEEP_MS;
		if (timeout_ms > 0 && poll(wait, 2, (int) timeout_ms) > 0 && wait[1].revents)
			eventfd_read(server->wake_fd, &value);
		MHD_run(server->daemon);
	}
	return NULL;
}

/* Start serving a listening socket. */
void
http_start(int listen_fd)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
	struct MHD_OptionItem options[3];
	int			n = 0;
	unsigned	flags = MHD_USE_EPOLL | MHD_USE_SUSPEND_RESUME;
	pthread_t	thread;

	timer_epoll = epoll_create1(EPOLL_CLOEXEC);
	timer_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	epoll_ctl(timer_epoll, EPOLL_CTL_ADD, timer_event, &event);
	pthread_create(&thread, NULL, timer_main, NULL);
	pthread_detach(thread);

	if (settings.tls_cert_file)
	{
		flags |= MHD_USE_TLS;
		options[n++] = (struct MHD_OptionItem)
		{
			MHD_OPTION_HTTPS_MEM_CERT, 0, read_file(settings.tls_cert_file)
		};
		options[n++] = (struct MHD_OptionItem)
		{
			MHD_OPTION_HTTPS_MEM_KEY, 0, read_file(settings.tls_key_file)
		};
	}
	options[n] = (struct MHD_OptionItem)
	{
		MHD_OPTION_END, 0, NULL
	};

	for (int i = 0; i < settings.threads; i++)
	{
		struct Server *server = must_alloc(sizeof(struct Server));

		server->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		server->daemon =
			MHD_start_daemon(flags, 0, NULL, NULL, handle_request, server,
							 MHD_OPTION_LISTEN_SOCKET, listen_fd,
							 MHD_OPTION_CONNECTION_LIMIT, (unsigned) MAX_CONNECTIONS,
							 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t) CONNECTION_MEMORY,
							 MHD_OPTION_NOTIFY_COMPLETED, request_over, NULL,
							 MHD_OPTION_NOTIFY_CONNECTION, connection_event, NULL,
							 MHD_OPTION_ARRAY, options,
							 MHD_OPTION_END);
		if (server->daemon == NULL)
		{
			fputs("simulator: could not start the HTTP server\n", stderr);
			exit(1);
		}
		pthread_create(&thread, NULL, server_main, server);
		pthread_detach(thread);
	}
}
