/*
 * callback.c
 *		Status callbacks: Meta's signed webhooks, Twilio's signed forms.
 *
 * One thread waits for what is due and sends it with libcurl.  It connects to
 * loopback addresses only, whatever the URL says.
 */
#include "simulator.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_FLYING 64			/* callbacks under way at once */
#define HISTORY 100000			/* attempts remembered */
#define TIMEOUT_MS 15000		/* a receiver has this long to answer */

typedef struct Job
{
	int64_t		due;
	int64_t		order;			/* keeps equal times in order */
	Message    *msg;			/* NULL for a raw body */
	CallbackSpec spec;
	char	   *account;		/* phone_number_id of a raw body */
	char	   *raw;
	char	   *url;			/* as the account's owner gave it, without
								 * fragment */
	int			attempt;
	char		idempotency[33];

	/* while under way */
	CURL	   *easy;
	struct curl_slist *headers;
	Text		body;
} Job;

typedef struct Attempt
{
	int64_t		at_us;
	char	   *url;
	char	   *message_id;
	char	   *otp_id;
	const char *status;
	Api			api;
	int			attempt;
	int			http_status;
} Attempt;

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static Job **queue;				/* heap by due time */
static int	queue_count;
static int	queue_size;
static int64_t last_order;
static CURLM *multi;

static pthread_mutex_t history_lock = PTHREAD_MUTEX_INITIALIZER;
static Attempt *history;
static int64_t last_attempt;

/* ---------- queue ---------- */

/* Does a come before b? */
static bool
job_before(const Job *a, const Job *b)
{
	return a->due < b->due || (a->due == b->due && a->order < b->order);
}

/* Add a job and wake the thread. */
static void
queue_add(Job *job)
{
	int			pos;

	pthread_mutex_lock(&queue_lock);
	if (queue_count == queue_size)
	{
		queue_size = queue_size ? queue_size * 2 : 256;
		queue = realloc(queue, queue_size * sizeof(Job *));
		if (queue == NULL)
			abort();
	}
	job->order = ++last_order;
	for (pos = queue_count++; pos > 0 && job_before(job, queue[(pos - 1) / 2]); pos = (pos - 1) / 2)
		queue[pos] = queue[(pos - 1) / 2];
	queue[pos] = job;
	pthread_mutex_unlock(&queue_lock);
	if (pos == 0)
		curl_multi_wakeup(multi);
}

/* Take the first job if it is due, else tell how long to wait. */
static Job *
queue_take(int64_t now, int *wait_ms)
{
	Job		   *job = NULL;

	pthread_mutex_lock(&queue_lock);
	if (queue_count > 0 && queue[0]->due <= now)
	{
		Job		   *last = queue[--queue_count];
		int			pos = 0;

		job = queue[0];
		for (;;)
		{
			int			child = 2 * pos + 1;

			if (child + 1 < queue_count && job_before(queue[child + 1], queue[child]))
				child++;
			if (child >= queue_count || !job_before(queue[child], last))
				break;
			queue[pos] = queue[child];
			pos = child;
		}
		queue[pos] = last;
	}
	else if (queue_count > 0)
		*wait_ms = (int) ((queue[0]->due - now + 999) / 1000);
	pthread_mutex_unlock(&queue_lock);
	return job;
}

/* Free a job. */
static void
job_free(Job *job)
{
	message_unref(job->msg);
	text_free(&job->body);
	free(job->account);
	free(job->raw);
	free(job->url);
	free(job);
}

/* ---------- bodies and signatures ---------- */

/* Compose the body of Meta's status webhook. */
static void
compose_meta(Job *job)
{
	Message    *msg = job->msg;
	const CallbackSpec *spec = &job->spec;
	const MetaAccount *account;
	char		timestamp[24];
	json_t	   *status;
	json_t	   *value;
	json_t	   *root;
	char	   *dump;

	snprintf(timestamp, sizeof(timestamp), "%lld", (long long) time(NULL));
	status = json_pack("{s:s,s:s,s:s,s:s}", "id", msg->id, "status", spec->status,
					   "timestamp", timestamp, "recipient_id", msg->to + 1);
	if (msg->opaque)
		json_object_set_new(status, "biz_opaque_callback_data", json_string(msg->opaque));
	if (strcmp(spec->status, "failed") == 0)
	{
		int			code = spec->code ? spec->code : 131026;

		json_object_set_new(status, "errors",
							json_pack("[{s:i,s:s,s:s,s:{s:s},s:s}]", "code", code,
									  "title", meta_error_title(code), "message", meta_error_title(code),
									  "error_data", "details", meta_error_details(code),
									  "href", "/documentation/business-messaging/whatsapp/support/error-codes"));
	}
	else if (spec->priced)
		json_object_set_new(status, "pricing",
							json_pack("{s:b,s:s,s:s,s:s}", "billable", 1, "pricing_model", "PMP",
									  "type", "regular", "category", "authentication"));

	pthread_rwlock_rdlock(&settings_lock);
	account = settings_meta(msg->account);
	if (account == NULL)
		account = &settings.meta[0];

	/* the name is not ASCII, so that only a check of the raw bytes succeeds */
	value = json_pack("{s:s,s:{s:s,s:s},s:[{s:{s:s},s:s}],s:[o]}", "messaging_product", "whatsapp",
					  "metadata", "display_phone_number", account->display_phone_number,
					  "phone_number_id", msg->account,
					  "contacts", "profile", "name", "José 😀", "wa_id", msg->to + 1,
					  "statuses", status);
	root = json_pack("{s:s,s:[{s:s,s:[{s:o,s:s}]}]}", "object", "whatsapp_business_account",
					 "entry", "id", account->waba_id, "changes", "value", value, "field", "messages");
	pthread_rwlock_unlock(&settings_lock);

	dump = json_dumps(root, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_ESCAPE_SLASH);
	text_puts(&job->body, dump);
	free(dump);
	json_decref(root);
}

/* Sign a body as Meta does. */
static void
sign_meta(Job *job)
{
	const char *phone_number_id = job->msg ? job->msg->account : job->account;
	const MetaAccount *account;
	unsigned char mac[EVP_MAX_MD_SIZE];
	unsigned	len = 0;
	char		header[128] = "X-Hub-Signature-256: sha256=";

	pthread_rwlock_rdlock(&settings_lock);
	account = settings_meta(phone_number_id);
	if (account == NULL)
		account = &settings.meta[0];
	HMAC(EVP_sha256(), account->app_secret, (int) strlen(account->app_secret),
		 (unsigned char *) job->body.data, job->body.len, mac, &len);
	pthread_rwlock_unlock(&settings_lock);
	if (job->spec.bad_signature)
		mac[0] ^= 1;
	hex_of(mac, len, header + strlen(header));
	job->headers = curl_slist_append(job->headers, header);
}

/* Order fields by name, bytewise. */
static int
field_compare(const void *a, const void *b)
{
	return strcmp(((const Field *) a)->name, ((const Field *) b)->name);
}

/* Compose and sign Twilio's status callback. */
static void
compose_twilio(Job *job)
{
	Message    *msg = job->msg;
	Field		fields[16];
	Text		signed_text = {0};
	const TwilioAccount *account;
	unsigned char mac[EVP_MAX_MD_SIZE];
	unsigned char base64[64];
	unsigned	mac_len = 0;
	char		error_code[16];
	char		done_date[16];
	char		header[128];
	time_t		now = time(NULL);
	struct tm	tm;
	int			n = 0;

	fields[n++] = (Field)
	{
		"AccountSid", msg->account
	};
	fields[n++] = (Field)
	{
		"ApiVersion", "2010-04-01"
	};
	if (msg->messaging_service_sid)
		fields[n++] = (Field)
	{
		"MessagingServiceSid", msg->messaging_service_sid
	};
	fields[n++] = (Field)
	{
		"From", msg->messaging_service_sid ? "+15017122661" : msg->from
	};
	fields[n++] = (Field)
	{
		"To", msg->to
	};
	fields[n++] = (Field)
	{
		"MessageSid", msg->id
	};
	fields[n++] = (Field)
	{
		"SmsSid", msg->id
	};
	fields[n++] = (Field)
	{
		"MessageStatus", (char *) job->spec.status
	};
	fields[n++] = (Field)
	{
		"SmsStatus", (char *) job->spec.status
	};
	if (job->spec.code)
	{
		snprintf(error_code, sizeof(error_code), "%d", job->spec.code);
		fields[n++] = (Field)
		{
			"ErrorCode", error_code
		};
		fields[n++] = (Field)
		{
			"ErrorMessage", (char *) twilio_error_title(job->spec.code)
		};
	}
	if (strcmp(job->spec.status, "delivered") == 0 || strcmp(job->spec.status, "undelivered") == 0)
	{
		gmtime_r(&now, &tm);
		strftime(done_date, sizeof(done_date), "%y%m%d%H%M", &tm);
		fields[n++] = (Field)
		{
			"RawDlrDoneDate", done_date
		};
	}
	for (int i = 0; i < n; i++)
		text_form(&job->body, fields[i].name, fields[i].value);

	/* the URL, then each field's name and decoded value, sorted by name */
	qsort(fields, n, sizeof(Field), field_compare);
	text_puts(&signed_text, job->url);
	for (int i = 0; i < n; i++)
	{
		text_puts(&signed_text, fields[i].name);
		text_puts(&signed_text, fields[i].value);
	}
	pthread_rwlock_rdlock(&settings_lock);
	account = settings_twilio(msg->account);
	if (account == NULL)
		account = &settings.twilio[0];
	HMAC(EVP_sha1(), account->auth_token, (int) strlen(account->auth_token),
		 (unsigned char *) signed_text.data, signed_text.len, mac, &mac_len);
	pthread_rwlock_unlock(&settings_lock);
	text_free(&signed_text);
	if (job->spec.bad_signature)
		mac[0] ^= 1;
	EVP_EncodeBlock(base64, mac, (int) mac_len);
	snprintf(header, sizeof(header), "X-Twilio-Signature: %s", base64);
	if (!job->spec.no_signature)
		job->headers = curl_slist_append(job->headers, header);
	snprintf(header, sizeof(header), "I-Twilio-Idempotency-Token: %s", job->idempotency);
	job->headers = curl_slist_append(job->headers, header);
}

/* ---------- sending ---------- */

/* libcurl: open a socket, but only to loopback. */
static curl_socket_t
open_socket(void *cls, curlsocktype purpose, struct curl_sockaddr *address)
{
	const struct sockaddr *sa = &address->addr;
	bool		loopback = false;

	(void) cls;
	(void) purpose;
	if (sa->sa_family == AF_INET)
		loopback = ntohl(((const struct sockaddr_in *) sa)->sin_addr.s_addr) >> 24 == 127;
	else if (sa->sa_family == AF_INET6)
		loopback = IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *) sa)->sin6_addr);
	if (!loopback)
		return CURL_SOCKET_BAD;
	return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

/* libcurl: drop the answer's body. */
static size_t
drop_body(char *data, size_t size, size_t count, void *cls)
{
	(void) data;
	(void) cls;
	return size * count;
}

/* The URL to connect to: the one signed, or where it is rewritten to. */
static char *
delivery_url(const char *url)
{
	Text		out = {0};

	pthread_rwlock_rdlock(&settings_lock);
	if (settings.rewrite_from && settings.rewrite_to &&
		strncmp(url, settings.rewrite_from, strlen(settings.rewrite_from)) == 0)
	{
		text_puts(&out, settings.rewrite_to);
		url += strlen(settings.rewrite_from);
	}
	text_puts(&out, url);
	pthread_rwlock_unlock(&settings_lock);
	return out.data;
}

/* Remember an attempt. */
static void
remember(Job *job, int http_status)
{
	Attempt    *a;

	pthread_mutex_lock(&history_lock);
	a = &history[last_attempt++ % HISTORY];
	free(a->url);
	free(a->message_id);
	free(a->otp_id);
	a->at_us = wall_us();
	a->url = must_copy(job->url);
	a->message_id = job->msg ? must_copy(job->msg->id) : NULL;
	a->otp_id = job->msg ? must_copy(job->msg->otp_id) : NULL;
	a->status = job->spec.status;
	a->api = job->msg ? job->msg->api : API_META;
	a->attempt = job->attempt;
	a->http_status = http_status;
	pthread_mutex_unlock(&history_lock);
}

/* Begin one attempt. */
static void
job_begin(Job *job)
{
	Api			api = job->msg ? job->msg->api : API_META;
	char	   *url;

	/* the provider knows the new status whether or not anybody listens */
	if (job->msg && job->attempt == 0)
	{
		job->msg->error_code = job->spec.code;
		job->msg->status = job->spec.status;
	}
	if (job->url == NULL && api == API_TWILIO && job->msg->status_callback)
		job->url = must_copy_n(job->msg->status_callback, strcspn(job->msg->status_callback, "#"));
	if (job->url == NULL && api == API_META)
	{
		pthread_rwlock_rdlock(&settings_lock);
		job->url = must_copy(settings.callback_url);
		pthread_rwlock_unlock(&settings_lock);
	}
	if (job->url == NULL)
	{
		job_free(job);
		return;
	}

	job->attempt++;
	if (job->raw)
		text_puts(&job->body, job->raw);
	else if (api == API_META)
		compose_meta(job);
	if (api == API_TWILIO)
	{
		job->headers = curl_slist_append(NULL, "Content-Type: application/x-www-form-urlencoded");
		compose_twilio(job);
	}
	else
	{
		job->headers = curl_slist_append(NULL, "Content-Type: application/json");
		if (!job->spec.no_signature)
			sign_meta(job);
	}
	job->headers = curl_slist_append(job->headers, "Expect:");

	url = delivery_url(job->url);
	job->easy = curl_easy_init();
	curl_easy_setopt(job->easy, CURLOPT_URL, url);
	curl_easy_setopt(job->easy, CURLOPT_PRIVATE, job);
	curl_easy_setopt(job->easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(job->easy, CURLOPT_PROXY, "");
	curl_easy_setopt(job->easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(job->easy, CURLOPT_SSL_VERIFYPEER, 0L);
	curl_easy_setopt(job->easy, CURLOPT_SSL_VERIFYHOST, 0L);
	curl_easy_setopt(job->easy, CURLOPT_TIMEOUT_MS, (long) TIMEOUT_MS);
	curl_easy_setopt(job->easy, CURLOPT_CONNECTTIMEOUT_MS, 5000L);
	curl_easy_setopt(job->easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	curl_easy_setopt(job->easy, CURLOPT_WRITEFUNCTION, drop_body);
	curl_easy_setopt(job->easy, CURLOPT_USERAGENT, api == API_META ? "facebookexternalua" : "TwilioProxy/1.1");
	curl_easy_setopt(job->easy, CURLOPT_HTTPHEADER, job->headers);
	curl_easy_setopt(job->easy, CURLOPT_POSTFIELDSIZE, (long) job->body.len);
	curl_easy_setopt(job->easy, CURLOPT_POSTFIELDS, job->body.data);
	curl_multi_add_handle(multi, job->easy);
	free(url);
}

/* End one attempt; queue the next if there is to be one. */
static void
job_end(Job *job, CURLcode result)
{
	Api			api = job->msg ? job->msg->api : API_META;
	long		http_status = 0;
	bool		delivered;
	bool		again;
	int			retries;
	int			retry_ms;

	curl_easy_getinfo(job->easy, CURLINFO_RESPONSE_CODE, &http_status);
	if (result != CURLE_OK)
		http_status = 0;
	remember(job, (int) http_status);
	curl_multi_remove_handle(multi, job->easy);
	curl_easy_cleanup(job->easy);
	curl_slist_free_all(job->headers);
	text_free(&job->body);
	job->easy = NULL;
	job->headers = NULL;

	pthread_rwlock_rdlock(&settings_lock);
	retries = settings.callback_retries;
	retry_ms = settings.callback_retry_ms;
	pthread_rwlock_unlock(&settings_lock);

	/* Meta wants 200 and comes back; Twilio retries once, a lost connect only */
	if (api == API_META)
	{
		delivered = http_status == 200;
		again = !delivered && job->attempt <= retries;
	}
	else
	{
		delivered = http_status >= 200 && http_status < 300;
		again = result == CURLE_COULDNT_CONNECT && job->attempt == 1;
	}
	count_callback(delivered, !again);
	if (again)
	{
		job->due = mono_us() + ((int64_t) retry_ms * 1000 << (job->attempt - 1 < 10 ? job->attempt - 1 : 10));
		queue_add(job);
	}
	else
		job_free(job);
}

/* Send what is due, for ever. */
static void *
callback_main(void *arg)
{
	int			flying = 0;

	for (;;)
	{
		int			wait_ms = 60000;
		CURLMsg    *done;
		Job		   *job;
		int			left;

		while (flying < MAX_FLYING && (job = queue_take(mono_us(), &wait_ms)) != NULL)
			job_begin(job);
		curl_multi_perform(multi, &flying);
		while ((done = curl_multi_info_read(multi, &left)) != NULL)
		{
			CURLcode	result = done->data.result;

			curl_easy_getinfo(done->easy_handle, CURLINFO_PRIVATE, &job);
			job_end(job, result);
			wait_ms = 0;		/* look at the queue again */
		}
		if (flying >= MAX_FLYING && wait_ms > 1000)
			wait_ms = 1000;
		curl_multi_poll(multi, NULL, 0, wait_ms, NULL);
	}
	return arg;
}

/* Start the callback thread. */
void
callback_start(void)
{
	pthread_t	thread;

	history = must_alloc(HISTORY * sizeof(Attempt));
	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) MAX_FLYING);
	pthread_create(&thread, NULL, callback_main, NULL);
	pthread_detach(thread);
}

/* Schedule the callbacks of one status of a message. */
void
callback_schedule(Message *msg, const CallbackSpec *spec)
{
	for (int i = 0; i < spec->times; i++)
	{
		Job		   *job = must_alloc(sizeof(Job));

		job->msg = message_ref(msg);
		job->spec = *spec;
		job->due = mono_us() + (int64_t) spec->after_ms * 1000;
		random_hex(job->idempotency, 32);
		queue_add(job);
	}
}

/* Schedule a body as it is, signed as Meta does; takes the body. */
void
callback_raw(const char *phone_number_id, const char *url, char *body, const CallbackSpec *spec)
{
	Job		   *job = must_alloc(sizeof(Job));

	job->account = must_copy(phone_number_id);
	job->url = must_copy(url);
	job->raw = body;
	job->spec = *spec;
	job->due = mono_us() + (int64_t) spec->after_ms * 1000;
	queue_add(job);
}

/* Describe the attempts after a sequence number. */
void
callback_describe(Text *out, int64_t since, int limit)
{
	int			n = 0;

	text_puts(out, "[");
	pthread_mutex_lock(&history_lock);
	if (since < last_attempt - HISTORY)
		since = last_attempt - HISTORY;
	for (int64_t seq = since + 1; seq <= last_attempt && (limit <= 0 || n < limit); seq++)
	{
		const Attempt *a = &history[(seq - 1) % HISTORY];

		text_printf(out, "%s\n{\"seq\":%lld,\"api\":\"%s\",\"status\":\"%s\",\"attempt\":%d,\"http_status\":%d,"
					"\"at_us\":%lld,\"message_id\":", n++ ? "," : "", (long long) seq, api_name(a->api), a->status,
					a->attempt, a->http_status, (long long) a->at_us);
		text_json(out, a->message_id);
		text_puts(out, ",\"otp_id\":");
		text_json(out, a->otp_id);
		text_puts(out, ",\"url\":");
		text_json(out, a->url);
		text_puts(out, "}");
	}
	pthread_mutex_unlock(&history_lock);
	text_puts(out, "]\n");
}

/* Forget the callbacks that have not begun. */
void
callback_clear(void)
{
	pthread_mutex_lock(&queue_lock);
	while (queue_count > 0)
		job_free(queue[--queue_count]);
	pthread_mutex_unlock(&queue_lock);
}
