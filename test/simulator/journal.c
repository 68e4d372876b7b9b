/*
 * journal.c
 *		Counters, and one line for every request to a provider's API.
 *
 * The log is a ring, so that a long load run does not eat the memory.  Its
 * pages are touched only when used.
 */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Entry
{
	int64_t		received_us;
	char	   *otp_id;
	const char *operation;
	int			error_code;
	short		status;
	unsigned char api;
	unsigned char outcome;
	bool		recorded;
	char		to[PHONE_SIZE];
} Entry;

static pthread_mutex_t journal_lock = PTHREAD_MUTEX_INITIALIZER;
static Entry *entries;
static int64_t last_seq;
static int64_t cleared_seq;

static _Atomic int64_t outcomes[API_TWILIO + 1][OUTCOMES];
static _Atomic int64_t requests;
static _Atomic int64_t connections;
static _Atomic int64_t callbacks_delivered;
static _Atomic int64_t callbacks_refused;
static _Atomic int64_t callbacks_lost;
static _Atomic int concurrent;
static _Atomic int max_concurrent;
static _Atomic int connections_now;
static _Atomic int hanging_now;
static _Atomic int delayed_now;

/* Allocate the ring. */
void
journal_start(void)
{
	entries = must_alloc(settings.log_limit * sizeof(Entry));
}

/* Write down a request and count it. */
void
journal_add(Request *req, Api api, const char *operation, Outcome outcome, int status,
			int error_code, bool recorded, const char *to, const char *otp_id)
{
	char	   *copy = otp_id ? must_copy(otp_id) : NULL;
	char	   *old;
	Entry	   *e;

	count_outcome(api, outcome);

	pthread_mutex_lock(&journal_lock);
	e = &entries[last_seq++ % settings.log_limit];
	old = e->otp_id;
	e->received_us = req->received_us;
	e->otp_id = copy;
	e->operation = operation;
	e->error_code = error_code;
	e->status = (short) status;
	e->api = api;
	e->outcome = outcome;
	e->recorded = recorded;
	snprintf(e->to, sizeof(e->to), "%s", to ? to : "");
	pthread_mutex_unlock(&journal_lock);
	free(old);
}

/* Describe the requests after a sequence number. */
void
journal_describe(Text *out, int64_t since, int limit, const char *otp_id)
{
	int64_t		first;
	int			n = 0;

	text_puts(out, "[");
	pthread_mutex_lock(&journal_lock);
	first = since > cleared_seq ? since : cleared_seq;
	if (first < last_seq - settings.log_limit)
		first = last_seq - settings.log_limit;
	for (int64_t seq = first + 1; seq <= last_seq && (limit <= 0 || n < limit); seq++)
	{
		const Entry *e = &entries[(seq - 1) % settings.log_limit];

		if (otp_id && (e->otp_id == NULL || strcmp(otp_id, e->otp_id) != 0))
			continue;
		text_printf(out, "%s\n{\"seq\":%lld,\"api\":\"%s\",\"operation\":\"%s\",\"status\":%d,\"to\":",
					n++ ? "," : "", (long long) seq, api_name(e->api), e->operation, e->status);
		text_json(out, e->to[0] ? e->to : NULL);
		text_puts(out, ",\"otp_id\":");
		text_json(out, e->otp_id);
		text_printf(out, ",\"outcome\":\"%s\",\"error_code\":%d,\"recorded\":%s,\"received_us\":%lld}",
					outcome_name(e->outcome), e->error_code, e->recorded ? "true" : "false",
					(long long) e->received_us);
	}
	pthread_mutex_unlock(&journal_lock);
	text_puts(out, "]\n");
}

/* Forget the requests so far; numbers go on. */
void
journal_clear(void)
{
	pthread_mutex_lock(&journal_lock);
	cleared_seq = last_seq;
	pthread_mutex_unlock(&journal_lock);
}

/* Count what became of a request. */
void
count_outcome(Api api, Outcome outcome)
{
	outcomes[api][outcome]++;
}

/* Count a request that begins. */
void
count_request_start(void)
{
	int			now = ++concurrent;
	int			max = max_concurrent;

	requests++;
	while (now > max && !atomic_compare_exchange_weak(&max_concurrent, &max, now))
		;
}

/* Count a request that ends. */
void
count_request_end(void)
{
	concurrent--;
}

/* Count a connection that opens or closes. */
void
count_connection(bool opened)
{
	if (opened)
	{
		connections++;
		connections_now++;
	}
	else
		connections_now--;
}

/* Count hung requests. */
void
count_hanging(int change)
{
	hanging_now += change;
}

/* Count delayed requests. */
void
count_delayed(int change)
{
	delayed_now += change;
}

/* Count an attempt to deliver a callback. */
void
count_callback(bool delivered, bool final)
{
	if (delivered)
		callbacks_delivered++;
	else
	{
		callbacks_refused++;
		if (final)
			callbacks_lost++;
	}
}

/* Describe the counters. */
void
counters_describe(Text *out)
{
	text_puts(out, "{");
	for (Api api = API_META; api <= API_TWILIO; api++)
	{
		int64_t		total = 0;

		text_printf(out, "\"%s\":{", api_name(api));
		for (int i = 0; i < OUTCOMES; i++)
		{
			total += outcomes[api][i];
			text_printf(out, "\"%s\":%lld,", outcome_name(i), (long long) outcomes[api][i]);
		}
		text_printf(out, "\"total\":%lld},", (long long) total);
	}
	text_printf(out, "\"requests\":%lld,\"connections_now\":%d,\"connections_total\":%lld,"
				"\"concurrent_requests\":%d,\"max_concurrent_requests\":%d,\"hanging_now\":%d,"
				"\"delayed_now\":%d,\"callbacks\":{\"delivered\":%lld,\"refused\":%lld,\"lost\":%lld}}\n",
				(long long) requests, connections_now, (long long) connections, concurrent,
				max_concurrent, hanging_now, delayed_now, (long long) callbacks_delivered,
				(long long) callbacks_refused, (long long) callbacks_lost);
}

/* Set the totals to zero; what is happening now stays. */
void
counters_clear(void)
{
	memset((void *) outcomes, 0, sizeof(outcomes));
	requests = 0;
	connections = 0;
	max_concurrent = concurrent;
	callbacks_delivered = callbacks_refused = callbacks_lost = 0;
}
