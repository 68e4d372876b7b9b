/*
 * simulator.h
 *		Shared declarations of the provider simulator.
 *
 * One process that answers as Meta's Cloud API and as Twilio's Messages API,
 * keeps what the phones would show, and misbehaves when told to.
 */
#ifndef SIMULATOR_H
#define SIMULATOR_H

#include <jansson.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PHONE_SIZE 24			/* "+", 15 digits and some room for bad input */

typedef enum Api
{
	API_NONE,
	API_META,
	API_TWILIO
} Api;

typedef enum Outcome
{
	OUTCOME_ACCEPTED,
	OUTCOME_REFUSED,
	OUTCOME_HUNG,
	OUTCOME_RESET
} Outcome;

#define OUTCOMES 4

/* ---------- text.c ---------- */

typedef struct Text
{
	char	   *data;			/* always terminated once anything was added */
	size_t		len;
	size_t		size;
} Text;

typedef struct Field
{
	char	   *name;
	char	   *value;
} Field;

typedef struct Form
{
	Field	   *fields;
	int			count;
} Form;

extern void *must_alloc(size_t size);
extern char *must_copy(const char *s);
extern char *must_copy_n(const char *s, size_t len);
extern void text_add(Text *t, const void *bytes, size_t len);
extern void text_puts(Text *t, const char *s);
extern void text_printf(Text *t, const char *fmt,...) __attribute__((format(printf, 2, 3)));
extern void text_json(Text *t, const char *s);
extern void text_json_n(Text *t, const char *s, size_t len);
extern void text_form(Text *t, const char *name, const char *value);
extern void text_free(Text *t);
extern int64_t wall_us(void);
extern int64_t mono_us(void);
extern void random_hex(char *out, int digits);
extern void random_trace_id(char out[24]);
extern void hex_of(const unsigned char *bytes, size_t len, char *out);
extern char *url_decode(const char *s, size_t len);
extern void form_parse(Form *form, const char *body, size_t len);
extern const char *form_get(const Form *form, const char *name);
extern void form_free(Form *form);
extern int	utf8_length(const char *s);
extern bool is_e164(const char *s);
extern const char *api_name(Api api);
extern const char *outcome_name(Outcome outcome);

/* ---------- http.c ---------- */

typedef enum AnswerKind
{
	ANSWER_SEND,				/* send status, headers and body */
	ANSWER_HANG,				/* never answer */
	ANSWER_RESET,				/* reset the TCP connection */
	ANSWER_WAIT_INBOX			/* ask again when the inbox has changed */
} AnswerKind;

typedef struct Answer
{
	AnswerKind	kind;
	int			status;
	char	   *body;			/* malloc'd */
	size_t		len;
	const char *content_type;	/* must outlive the request */
	char	   *own_content_type;	/* freed with the request */
	json_t	   *headers;		/* extra headers, or NULL */
	int			retry_after;	/* seconds, 0 = no header */
	bool		authenticate;	/* ask for HTTP Basic */
	int			delay_ms;
	bool		truncate;		/* promise more bytes than are sent */
	int			slow_body_ms;	/* spread the body over this long */
	size_t		huge_bytes;		/* send this many bytes in place of body */
	int64_t		wait_until;		/* for ANSWER_WAIT_INBOX, monotonic */
	unsigned	inbox_generation;	/* for ANSWER_WAIT_INBOX */
} Answer;

typedef enum Phase
{
	PHASE_READING,
	PHASE_DELAYED,
	PHASE_HUNG,
	PHASE_READY
} Phase;

typedef struct Request
{
	struct MHD_Connection *connection;
	struct Server *server;		/* whose thread serves it; see http.c */
	char	   *url;
	char		method[8];
	Text		body;
	bool		too_large;
	int64_t		received_us;
	Answer		answer;
	Phase		phase;
	bool		secure;			/* came over TLS */

	/* waiting; all under the timer's lock */
	int64_t		due;
	int			heap_pos;		/* -1 = not in the heap */
	struct Request *prev;
	struct Request *next;
} Request;

extern const char *request_header(Request *req, const char *name);
extern const char *request_arg(Request *req, const char *name);
extern bool request_is(Request *req, const char *method);
extern void answer_text(Request *req, int status, const char *content_type, Text *body);
extern void answer_printf(Request *req, int status, const char *fmt,...) __attribute__((format(printf, 3, 4)));
extern void http_start(int listen_fd);
extern void http_inbox_changed(void);
extern void http_release_hung(void);

/* ---------- settings.c ---------- */

typedef struct MetaAccount
{
	char	   *phone_number_id;
	char	   *waba_id;
	char	   *token;
	char	   *app_secret;
	char	   *display_phone_number;
} MetaAccount;

typedef struct TwilioAccount
{
	char	   *account_sid;
	char	   *auth_token;
	char	   *api_key_sid;
	char	   *api_key_secret;
} TwilioAccount;

typedef struct Template
{
	char	   *name;
	char	   *language;
	char	   *status;
	char	   *category;
	char		id[24];
	json_t	   *components;
} Template;

typedef struct Settings
{
	/* fixed at start */
	int			port;
	const char *port_file;
	const char *tls_cert_file;
	const char *tls_key_file;
	bool		sink;
	int			threads;
	int64_t		inbox_limit;
	int64_t		log_limit;

	/* may change at run time: take the lock */
	MetaAccount *meta;			/* the first is the one of the command line */
	int			meta_count;
	TwilioAccount *twilio;
	int			twilio_count;
	Template   *templates;
	int			template_count;
	char	   *callback_url;
	char	   *rewrite_from;
	char	   *rewrite_to;
	int			callback_retries;
	int			callback_retry_ms;
	_Atomic int latency_ms;
	_Atomic bool down;
} Settings;

extern Settings settings;
extern pthread_rwlock_t settings_lock;

extern void settings_default(void);
extern void settings_set(char **where, const char *value);
extern const char *settings_apply(json_t *config);
extern void settings_describe(Text *out);
extern MetaAccount *settings_meta(const char *phone_number_id);
extern TwilioAccount *settings_twilio(const char *account_sid);
extern Template *settings_template(const char *name, const char *language);
extern Template *settings_add_template(const char *name, const char *language, const char *status,
									   const char *category, json_t *components);
extern bool settings_drop_template(const char *name);

/* ---------- inbox.c ---------- */

/* What a provider accepted. Reference counted: the inbox and callbacks share it. */
typedef struct Message
{
	_Atomic int refs;
	int64_t		seq;
	int64_t		chain;			/* the message before it in the same bucket */
	int64_t		received_us;
	Api			api;
	char		to[PHONE_SIZE]; /* always with the plus */
	char		id[96];			/* wamid... or SM... */
	char	   *account;		/* phone_number_id or account sid */
	char	   *text;
	char	   *code;
	char	   *template_name;
	char	   *language;
	char	   *from;
	char	   *opaque;			/* Meta's biz_opaque_callback_data */
	char	   *otp_id;
	char	   *status_callback;
	char	   *messaging_service_sid;
	char	   *raw;
	size_t		raw_len;
	int			validity_period;
	const char *_Atomic status; /* as the provider would report it now */
	_Atomic int error_code;
} Message;

extern Message *message_new(Api api);
extern Message *message_ref(Message *msg);
extern void message_unref(Message *msg);
extern void message_name(Message *msg, int64_t number);
extern void inbox_start(void);
extern void inbox_add(Message *msg);
extern void inbox_clear(void);
extern unsigned inbox_generation(void);
extern Message *inbox_by_sid(const char *sid);
extern Message *inbox_by_seq(int64_t seq);
extern Message *inbox_newest(const char *phone);
extern int	inbox_describe(Text *out, const char *phone, int64_t since, int limit, bool newest);
extern void inbox_draw(Text *out, const char *phone);

/* ---------- journal.c ---------- */

extern void journal_start(void);
extern void journal_add(Request *req, Api api, const char *operation, Outcome outcome, int status,
						int error_code, bool recorded, const char *to, const char *otp_id);
extern void journal_describe(Text *out, int64_t since, int limit, const char *otp_id);
extern void journal_clear(void);

extern void count_outcome(Api api, Outcome outcome);
extern void count_request_start(void);
extern void count_request_end(void);
extern void count_connection(bool opened);
extern void count_hanging(int change);
extern void count_delayed(int change);
extern void count_callback(bool delivered, bool final);
extern void counters_describe(Text *out);
extern void counters_clear(void);

/* ---------- behaviour.c ---------- */

typedef struct CallbackSpec
{
	const char *status;
	int			after_ms;
	int			code;
	int			times;
	bool		bad_signature;
	bool		no_signature;
	bool		priced;			/* Meta: carries the pricing object */
} CallbackSpec;

typedef struct Rule Rule;

/* How one request is to be treated. */
typedef struct Effect
{
	Rule	   *doing;			/* decides the answer, or NULL */
	Rule	   *calling;		/* decides the callbacks, or NULL */
} Effect;

struct Rule
{
	_Atomic int refs;
	int64_t		id;
	Rule	   *older;
	json_t	   *source;

	/* match */
	Api			api;			/* API_NONE = any */
	const char *phone;
	const char *prefix;
	const char *account;
	int64_t		times;			/* -1 = unlimited */
	double		share;
	int64_t		matched;
	int64_t		applied;

	/* do */
	bool		has_do;
	int			status;
	int			code;
	int			subcode;
	int			retry_after;
	json_t	   *headers;
	int			delay_ms;
	bool		hang;
	bool		reset_before;
	bool		reset_after;
	const char *raw;
	size_t		raw_len;
	const char *content_type;
	size_t		huge_bytes;
	bool		empty_messages;
	bool		truncate;
	int			slow_body_ms;
	int			record;			/* -1 = as the answer suggests */

	/* callbacks */
	bool		has_callbacks;
	CallbackSpec *callbacks;
	int			callback_count;
};

/* How an API words its answers; see send_conclude(). */
typedef struct Wording
{
	void		(*error) (Request *req, int status, int code, int subcode);
	int			(*default_code) (int status);
	int			(*default_status) (int code);
	void		(*success) (Request *req, Message *msg, bool empty);
} Wording;

extern const char *behaviour_add(json_t *spec, int64_t *id);
extern void behaviour_clear(int64_t id);
extern void behaviour_describe(Text *out);
extern void behaviour_pick(Effect *effect, Api api, const char *account, const char *phone);
extern void behaviour_done(Effect *effect);
extern const char *callback_spec_parse(json_t *spec, CallbackSpec *out);
extern void send_conclude(Request *req, Message *msg, const Wording *wording);

/* ---------- meta.c, twilio.c ---------- */

extern bool meta_handle(Request *req);
extern bool twilio_handle(Request *req);
extern const char *meta_error_title(int code);
extern const char *meta_error_details(int code);
extern const char *twilio_error_title(int code);

/* ---------- callback.c ---------- */

extern void callback_start(void);
extern void callback_schedule(Message *msg, const CallbackSpec *spec);
extern void callback_raw(const char *phone_number_id, const char *url, char *body, const CallbackSpec *spec);
extern void callback_describe(Text *out, int64_t since, int limit);
extern void callback_clear(void);

/* ---------- control.c ---------- */

extern void control_handle(Request *req);

#endif							/* SIMULATOR_H */
