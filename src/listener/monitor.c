/*-------------------------------------------------------------------------
 *
 * monitor.c
 *	  /healthz, /metrics and /openapi.json.
 *
 * None of them needs an API key or a table: what they tell is in shared
 * memory, and has no phone, no name and no secret in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/keyring.h"
#include "base/ledger.h"
#include "base/listeners.h"
#include "base/roster.h"
#include "listener/openapi_json.inc"
#include "listener/route.h"

/* Accounts whose breakers are shown */
#define MAX_BREAKERS 1024

/* A sender that has not had a turn for so long is ill */
#define TURN_US (60 * USECS_PER_SEC)

/* Prometheus' text format */
#define METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* Find this database in the roster; false when it is not there */
static bool
find_sender(RosterDatabase *sender)
{
	RosterDatabase *databases = palloc(sizeof(RosterDatabase) * otp_max_databases);
	int			n = roster_snapshot(databases, otp_max_databases);

	for (int i = 0; i < n; i++)
	{
		if (databases[i].database != MyDatabaseId)
			continue;
		*sender = databases[i];
		return true;
	}
	return false;
}

/* Tell whether codes can be taken and delivered */
void
monitor_health(Request *r)
{
	MemoryContext context = CurrentMemoryContext;
	RosterDatabase sender;
	const char *status = "ok";
	char	   *body;
	char	   *why;
	bool		has_key;

	/* Reading the file anew takes hashes, which want a transaction */
	StartTransactionCommand();
	has_key = keyring_available(&why);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	if (!has_key)
		status = "the key file cannot be read";
	else if (otp_delivery && !roster_sender_running(MyDatabaseId))
		status = "no sender is running";
	else if (otp_delivery && find_sender(&sender) && sender.sender_pid != 0 && sender.report.last_turn != 0 &&
			 sender.report.last_turn < GetCurrentTimestamp() - TURN_US)
		status = "the sender does not get on";
	body = psprintf("{\"status\":\"%s\"}", status);
	request_answer(r, strcmp(status, "ok") == 0 ? 200 : 503, "application/json", body, strlen(body));
}

/* ---- figures ---- */

/* Begin a metric */
static void
begin_metric(StringInfo out, const char *name, const char *type, const char *help)
{
	appendStringInfo(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Write a metric that is one number */
static void
write_number(StringInfo out, const char *name, const char *type, const char *help, double value)
{
	begin_metric(out, name, type, help);
	appendStringInfo(out, "%s %.15g\n", name, value);
}

/* Write the labels of a route: method and path */
static void
write_route(StringInfo out, int route)
{
	const char *name = route_name(route);
	const char *path = strchr(name, ' ');

	if (path != NULL)
		appendStringInfo(out, "method=\"%.*s\",route=\"%s\"", (int) (path - name), name, path + 1);
	else
		appendStringInfo(out, "method=\"\",route=\"%s\"", name);
}

/* Count the requests of a route */
static uint64
route_total(const ListenerFigures *f, int route)
{
	uint64		total = 0;

	for (int class = 0; class < FIGURE_CLASSES; class++)
		total += f->requests[route][class];
	return total;
}

/* Write what came of requests */
static void
write_requests(StringInfo out, const ListenerFigures *f)
{
	int			routes = Min(route_count(), FIGURE_ROUTES);

	begin_metric(out, "otp_http_requests_total", "counter", "Requests that were answered, by the class of their status.");
	for (int route = 0; route < routes; route++)
	{
		for (int class = 0; class < FIGURE_CLASSES; class++)
		{
			if (f->requests[route][class] == 0)
				continue;
			appendStringInfoString(out, "otp_http_requests_total{");
			write_route(out, route);
			appendStringInfo(out, ",status=\"%dxx\"} " UINT64_FORMAT "\n", class + 1, f->requests[route][class]);
		}
	}

	begin_metric(out, "otp_http_request_duration_seconds", "histogram",
				 "From a request's last byte to its answer, waits for the provider included.");
	for (int route = 0; route < routes; route++)
	{
		uint64		below = 0;

		if (route_total(f, route) == 0)
			continue;
		for (int bucket = 0; bucket < FIGURE_BUCKETS; bucket++)
		{
			below += f->buckets[route][bucket];
			appendStringInfoString(out, "otp_http_request_duration_seconds_bucket{");
			write_route(out, route);
			if (bucket < FIGURE_BUCKETS - 1)
				appendStringInfo(out, ",le=\"%g\"} " UINT64_FORMAT "\n", 0.001 * (1 << bucket), below);
			else
				appendStringInfo(out, ",le=\"+Inf\"} " UINT64_FORMAT "\n", below);
		}
		appendStringInfoString(out, "otp_http_request_duration_seconds_sum{");
		write_route(out, route);
		appendStringInfo(out, "} %.6f\n", (double) f->seconds_sum[route] / USECS_PER_SEC);
		appendStringInfoString(out, "otp_http_request_duration_seconds_count{");
		write_route(out, route);
		appendStringInfo(out, "} " UINT64_FORMAT "\n", below);
	}
}

/* Write what the sender has told */
static void
write_sender(StringInfo out, const RosterDatabase *s)
{
	const RosterReport *report = &s->report;
	TimestampTz now = GetCurrentTimestamp();

	write_number(out, "otp_sender_up", "gauge", "Whether a sender runs.", s->sender_pid != 0);
	write_number(out, "otp_sender_last_turn_seconds", "gauge", "How long ago the sender's last turn was.",
				 report->last_turn != 0 ? (double) Max(now - report->last_turn, 0) / USECS_PER_SEC : 0);
	write_number(out, "otp_outbox_waiting", "gauge", "Messages that are to be sent.", report->waiting);
	write_number(out, "otp_outbox_following", "gauge", "Messages that were sent and whose verification has not ended.",
				 report->following);
	write_number(out, "otp_outbox_oldest_due_seconds", "gauge", "How long the oldest message that is due has waited.",
				 report->oldest_due != 0 ? (double) Max(now - report->oldest_due, 0) / USECS_PER_SEC : 0);
	write_number(out, "otp_messages_in_flight", "gauge", "Requests to providers that are under way.", report->in_flight);
	write_number(out, "otp_messages_accepted_total", "counter", "Messages that a provider has taken, since the sender's start.",
				 report->accepted);
	write_number(out, "otp_messages_retried_total", "counter", "Tries that are to be repeated, since the sender's start.",
				 report->retried);
	write_number(out, "otp_messages_failed_total", "counter", "Messages that have failed for good, since the sender's start.",
				 report->failed);
	write_number(out, "otp_messages_fallbacks_total", "counter", "Messages that SMS took over, since the sender's start.",
				 report->fallbacks);
}

/* Write the breakers */
static void
write_breakers(StringInfo out)
{
	RosterBreaker *breakers = palloc(sizeof(RosterBreaker) * MAX_BREAKERS);
	int			n = roster_breakers(breakers, MAX_BREAKERS);

	begin_metric(out, "otp_breaker_state", "gauge",
				 "Of each provider account, by its account_id: 0 closed, 1 half open, 2 open. One that was never open is not there.");
	for (int i = 0; i < n; i++)
	{
		static const int values[] = {[BREAKER_CLOSED] = 0,[BREAKER_HALF_OPEN] = 1,[BREAKER_OPEN] = 2};

		if (breakers[i].database == MyDatabaseId)
			appendStringInfo(out, "otp_breaker_state{account=\"%d\"} %d\n", breakers[i].account_id,
							 values[breakers[i].state]);
	}
}

/* Tell figures */
void
monitor_metrics(Request *r)
{
	ListenerFigures *f = palloc(sizeof(ListenerFigures));
	ListenerState states[LISTENERS_MAX];
	RosterDatabase sender;
	StringInfoData out;
	int			listening = 0;
	int			n = listeners_snapshot(MyDatabaseId, states, LISTENERS_MAX);
	int			used;
	int			size;

	for (int i = 0; i < n; i++)
		listening += states[i].listening;
	listeners_figures(MyDatabaseId, f);
	initStringInfo(&out);
	write_number(&out, "otp_http_listeners", "gauge", "Processes that listen.", listening);
	write_number(&out, "otp_http_connections", "gauge", "Connections that are open.", f->connections);
	write_number(&out, "otp_http_waiting", "gauge", "Requests that wait for the provider.", f->waiting);
	write_number(&out, "otp_http_connections_total", "counter", "Connections that were taken.", f->accepted);
	write_number(&out, "otp_http_timeouts_total", "counter", "Connections that were cut because they were too slow.", f->expired);
	write_requests(&out, f);

	memset(&sender, 0, sizeof(sender));
	(void) find_sender(&sender);
	write_sender(&out, &sender);
	write_breakers(&out);
	ledger_usage(&used, &size);
	write_number(&out, "otp_ledger_used", "gauge", "Entries of wrong codes that are not yet written back.", used);
	write_number(&out, "otp_ledger_size", "gauge", "Entries that there is room for.", size);
	request_answer(r, 200, METRICS_TYPE, out.data, out.len);
}

/* Tell what there is */
void
monitor_openapi(Request *r)
{
	request_answer(r, 200, "application/json", openapi_json, sizeof(openapi_json) - 1);
}
