/*-------------------------------------------------------------------------
 *
 * http.h
 *	  Many HTTP requests at once behind one pollable descriptor.
 *
 * Nothing here allocates in a memory context or raises an error: libcurl's
 * callbacks must not be left by longjmp. Memory is malloc's, and failures are
 * return values or responses. One client belongs to one process, which must
 * ignore SIGPIPE (background workers do).
 *
 *-------------------------------------------------------------------------
 */
#ifndef OTP_HTTP_H
#define OTP_HTTP_H

struct sockaddr;

#define HTTP_ERROR_SIZE 128

/* More than this of an answer's body, or of its headers, is not read. */
#define HTTP_MAX_ANSWER (64 * 1024)

/* How long a request may take when its timeout_ms is 0. */
#define HTTP_DEFAULT_TIMEOUT_MS 15000

typedef struct HttpClient HttpClient;

/* Copied by create and configure; NULL or 0 stands for the default. */
typedef struct HttpOptions
{
	const char *https_proxy;	/* for https:// only; NULL or "": direct. The
								 * environment's proxies are never used. */
	const char *ca_file;		/* NULL or "": the system's authorities */
	const char *user_agent;
	long		connect_timeout_ms; /* default 5000; name, TCP and TLS */
	int			max_connections_per_host;	/* 0: no limit; requests beyond it
											 * wait, within their timeout */
	bool		allow_private;	/* see HTTP_ADDRESSES_USUAL */
} HttpOptions;

/* What addresses a request may go to */
typedef enum HttpAddresses
{
	HTTP_ADDRESSES_USUAL,		/* all, if the client's allow_private or the
								 * request's allow_insecure says so; else
								 * public ones */
	HTTP_ADDRESSES_PUBLIC,
	HTTP_ADDRESSES_ALL
} HttpAddresses;

typedef struct HttpRequest
{
	const char *url;
	const char **headers;		/* NULL-terminated "Name: value", or NULL */
	const char *userpwd;		/* "user:password" for Basic, or NULL */
	const char *bearer;			/* token, or NULL */
	const char *body;			/* POSTed; NULL: a GET */
	size_t		body_length;
	long		timeout_ms;		/* from start to the end of the answer */
	bool		allow_insecure; /* http:// for this one */
	HttpAddresses addresses;
	void	   *owner;			/* handed back with the response */
} HttpRequest;

typedef enum HttpOutcome
{
	HTTP_ANSWERED,				/* status and the whole body are there */
	HTTP_NOT_SENT,				/* name, connect, TLS, refused address or bad
								 * request: nothing of it was written */
	HTTP_UNKNOWN				/* timeout, reset, broken or oversized answer
								 * after it may have been written */
} HttpOutcome;

typedef struct HttpResponse
{
	void	   *owner;
	HttpOutcome outcome;
	int			status;			/* 0 when none came; may be set with
								 * HTTP_UNKNOWN when the body broke off */
	const char *body;			/* NUL-terminated, never NULL; may hold NULs */
	size_t		body_length;
	int			retry_after;	/* seconds, from seconds or a date; -1: none */
	double		seconds;		/* from start to now */
	char		error[HTTP_ERROR_SIZE]; /* what went wrong: no URL, digits
										 * masked, ASCII; "" when answered */
} HttpResponse;

/*
 * Make a client. NULL with a reason in error (HTTP_ERROR_SIZE bytes) when
 * memory, descriptors or a feature of libcurl are missing.
 */
extern HttpClient *http_client_create(const HttpOptions *options, char *error);

/*
 * Take over changed options: they hold for requests started from now on.
 * False when out of memory: then the old ones stay.
 */
extern bool http_client_configure(HttpClient *client, const HttpOptions *options);

/*
 * Start a request, everything of which is copied. Nothing is written before
 * the next http_client_run, which the descriptor asks for. False when out of
 * memory: then nothing was started. Whatever else is wrong comes back as a
 * response.
 */
extern bool http_client_start(HttpClient *client, const HttpRequest *request);

/*
 * The descriptor: readable (level-triggered) when http_client_run has
 * something to do. Stays the same for the client's life.
 */
extern int	http_client_fd(HttpClient *client);

/*
 * Do what can be done without waiting. Take what has finished by
 * http_client_next afterwards: the descriptor does not ask for that.
 */
extern void http_client_run(HttpClient *client);

/* Take the next finished request, or NULL. Free it by http_response_free. */
extern HttpResponse *http_client_next(HttpClient *client);
extern void http_response_free(HttpResponse *response);

/* How many were started and not yet taken by http_client_next. */
extern int	http_client_in_flight(HttpClient *client);

/*
 * Free the client, dropping what is under way. Does not wait for anything.
 * NULL is allowed.
 */
extern void http_client_destroy(HttpClient *client);

/*
 * Is this an address that only somebody inside our network can mean:
 * loopback, private, link-local, shared, reserved, multicast, and the IPv6
 * forms of those? Families other than IPv4 and IPv6 count as private.
 */
extern bool http_address_is_private(const struct sockaddr *address);

/*
 * What is wrong with a URL that others hand in: a sentence, or NULL. It has a
 * host and no user, fragment or spaces. A host that is written as a private
 * address is a defect unless allow_private; a name is not looked up. Needs no
 * client.
 */
extern const char *http_url_defect(const char *url, bool allow_insecure, bool allow_private);

#endif							/* OTP_HTTP_H */
