/*-------------------------------------------------------------------------
 *
 * route.c
 *	  Which request is whose.
 *
 * Most routes are a function of otp_api with its arguments in other places.
 * /rpc/ has all of them under their own names, in PostgREST's style.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "listener/route.h"
#include "verb/caught.h"

/* A request that could not have a lock is tried again after this long, and up to twice as long */
#define AGAIN_US (50 * INT64CONST(1000))

#define SCHEMA "otp_api"
#define RPC_PATH "/rpc/"

typedef enum RouteKind
{
	ROUTE_FUNCTION,
	ROUTE_RPC,
	ROUTE_META,
	ROUTE_TWILIO,
	ROUTE_HEALTH,
	ROUTE_METRICS,
	ROUTE_OPENAPI,
	ROUTE_NONE
} RouteKind;

typedef struct Route
{
	const char *method;			/* GET is HEAD, too */
	const char *pattern;		/* {name} is an argument */
	RouteKind	kind;
	const char *function;		/* of otp_api */
} Route;

static const Route routes[] = {
	{"POST", "/v1/whatsapp/otp/send", ROUTE_FUNCTION, "otp_send"},
	{"POST", "/v1/whatsapp/otp/verify", ROUTE_FUNCTION, "otp_verify"},
	{"GET", "/v1/whatsapp/otp", ROUTE_FUNCTION, "otp_list"},
	{"GET", "/v1/whatsapp/otp/{otp_id}", ROUTE_FUNCTION, "otp_status"},
	{"POST", "/v1/whatsapp/otp/{otp_id}/resend", ROUTE_FUNCTION, "otp_resend"},
	{"POST", "/v1/whatsapp/otp/{otp_id}/cancel", ROUTE_FUNCTION, "otp_cancel"},
	{"GET", "/v1/rate-limits", ROUTE_FUNCTION, "rate_limit_status"},
	{"GET", "/v1/api-keys", ROUTE_FUNCTION, "api_keys"},
	{"POST", "/v1/api-keys", ROUTE_FUNCTION, "create_api_key"},
	{"POST", "/v1/api-keys/{key_id}/rotate", ROUTE_FUNCTION, "rotate_api_key"},
	{"POST", "/v1/api-keys/{key_id}/revoke", ROUTE_FUNCTION, "revoke_api_key"},
	{"GET", "/v1/templates", ROUTE_FUNCTION, "templates"},
	{"POST", "/v1/templates", ROUTE_FUNCTION, "create_template"},
	{"POST", "/v1/templates/sync", ROUTE_FUNCTION, "sync_templates"},
	{"GET", "/v1/webhook-endpoints", ROUTE_FUNCTION, "webhook_endpoints"},
	{"POST", "/v1/webhook-endpoints", ROUTE_FUNCTION, "create_webhook_endpoint"},
	{"DELETE", "/v1/webhook-endpoints/{endpoint_id}", ROUTE_FUNCTION, "delete_webhook_endpoint"},
	{"POST", "/v1/webhook-endpoints/{endpoint_id}/pause", ROUTE_FUNCTION, "pause_webhook_endpoint"},
	{"POST", "/v1/webhook-endpoints/{endpoint_id}/resume", ROUTE_FUNCTION, "resume_webhook_endpoint"},
	{"POST", "/v1/webhook-endpoints/{endpoint_id}/rotate-secret", ROUTE_FUNCTION, "rotate_webhook_secret"},
	{"POST", "/v1/webhook-endpoints/{endpoint_id}/test", ROUTE_FUNCTION, "send_test_webhook"},
	{"POST", "/v1/webhook-endpoints/{endpoint_id}/replay", ROUTE_FUNCTION, "replay_webhooks"},
	{"GET", "/v1/webhook-deliveries", ROUTE_FUNCTION, "webhook_deliveries"},
	{"GET", "/v1/usage", ROUTE_FUNCTION, "usage"},
	{"GET", "/v1/delivery-stats", ROUTE_FUNCTION, "delivery_stats"},
	{"GET", "/v1/credits", ROUTE_FUNCTION, "credits"},
	{"GET", "/v1/credit-history", ROUTE_FUNCTION, "credit_history"},
	{"GET", "/rpc/{function}", ROUTE_RPC, NULL},
	{"POST", "/rpc/{function}", ROUTE_RPC, NULL},
	{"GET", "/callbacks/meta/{account}", ROUTE_META, NULL},
	{"POST", "/callbacks/meta/{account}", ROUTE_META, NULL},
	{"POST", "/callbacks/twilio/{account}", ROUTE_TWILIO, NULL},
	{"GET", "/healthz", ROUTE_HEALTH, NULL},
	{"GET", "/metrics", ROUTE_METRICS, NULL},
	{"GET", "/openapi.json", ROUTE_OPENAPI, NULL},

	/* The last one: whatever is none of these */
	{"", "", ROUTE_NONE, NULL},
};

#define NO_ROUTE (lengthof(routes) - 1)

/* Give the number of routes */
int
route_count(void)
{
	return lengthof(routes);
}

/* Name a route, as the figures do */
const char *
route_name(int route)
{
	static char name[NAMEDATALEN * 2];

	if (routes[route].kind == ROUTE_NONE)
		return "other";
	snprintf(name, sizeof(name), "%s %s", routes[route].method, routes[route].pattern);
	return name;
}

/* Is a request in PostgREST's style? */
static bool
is_rpc(const Request *r)
{
	return strncmp(r->path, RPC_PATH, strlen(RPC_PATH)) == 0;
}

/* Refuse */
void
route_refuse(Request *r, int status, const char *code, const char *message, const char *hint, int retry_after)
{
	ApiAnswer	answer;

	api_refuse(&answer, !is_rpc(r), status, code, message, hint, retry_after);
	request_answer_api(r, &answer);
}

/* ---- which one ---- */

/* Does a path match a pattern? Its arguments are palloc'd */
static bool
matches(const char *pattern, const char *path, PathArgument *arguments, int *n)
{
	*n = 0;
	while (*pattern != '\0')
	{
		size_t		length;

		if (*pattern != '{')
		{
			if (*pattern++ != *path++)
				return false;
			continue;
		}
		length = strcspn(++pattern, "}");
		strlcpy(arguments[*n].name, pattern, Min(length + 1, NAMEDATALEN));
		pattern += length + 1;
		length = strcspn(path, "/");
		if (length == 0 || !arguments_decode(path, length, false, &arguments[*n].value))
			return false;
		path += length;
		(*n)++;
	}
	return *path == '\0';
}

/* Find the route of a request; NO_ROUTE when it was refused */
static int
find_route(Request *r, PathArgument *arguments, int *n)
{
	const char *method = strcmp(r->method, "HEAD") == 0 ? "GET" : r->method;
	const char *pattern = NULL;
	char		allowed[64] = "";

	for (int i = 0; i < NO_ROUTE; i++)
	{
		if (!matches(routes[i].pattern, r->path, arguments, n))
			continue;

		/*
		 * Patterns come before those that they are a case of: "send" is no
		 * id, whatever the method
		 */
		if (pattern != NULL && strcmp(routes[i].pattern, pattern) != 0)
			continue;
		pattern = routes[i].pattern;
		if (strcmp(routes[i].method, method) == 0)
			return i;
		if (strstr(allowed, routes[i].method) == NULL)
			snprintf(allowed + strlen(allowed), sizeof(allowed) - strlen(allowed), "%s%s%s",
					 allowed[0] != '\0' ? ", " : "",
					 routes[i].method, strcmp(routes[i].method, "GET") == 0 ? ", HEAD" : "");
	}
	if (allowed[0] == '\0')
		route_refuse(r, 404, "not_found", "there is nothing at this address",
					 "GET /openapi.json lists what there is.", -1);
	else
	{
		request_answer_header(r, "Allow", allowed);
		route_refuse(r, 405, is_rpc(r) ? "PGRST101" : "method_not_allowed",
					 "this address does not know the method", NULL, -1);
	}
	return NO_ROUTE;
}

/* ---- functions ---- */

/* One call under way */
typedef struct Calling
{
	Request    *request;
	bool		from_query;
	bool		selects;		/* the query may have a list of columns */
	const PathArgument *path;
	int			npath;
	ApiCall		call;
	Complaint	complaint;
	bool		taken;
	MemoryContext context;
} Calling;

/* Find the key; false when it is not clear which */
static bool
find_key(Request *r, ApiCall *call)
{
	const char *bearer = request_header(r, "authorization");
	const char *key = request_header(r, "x-api-key");

	if (request_header_count(r, "authorization") > 1 || request_header_count(r, "x-api-key") > 1)
		return false;
	if (bearer != NULL)
	{
		if (pg_strncasecmp(bearer, "Bearer ", strlen("Bearer ")) != 0)
			bearer = "";
		else
			bearer += strlen("Bearer ");
		while (*bearer == ' ')
			bearer++;
		if (key != NULL && strcmp(key, bearer) != 0)
			return false;
		key = bearer;
	}
	call->api_key = key;
	call->api_key_length = key != NULL ? strlen(key) : 0;
	return true;
}

/* Take the header that stands for an argument */
static bool
take_idempotency_key(const Request *r, ApiCall *call, Complaint *complaint)
{
	const ApiFunction *f = call->function;
	const char *key = request_header(r, "idempotency-key");

	if (key == NULL)
		return true;
	complaint->field = "idempotency_key";
	for (int i = 0; i < f->nargs; i++)
	{
		if (strcmp(f->args[i].name, "idempotency_key") != 0)
			continue;

		/* Raises where it is no UTF-8 */
		key = pg_any_to_server(key, strlen(key), PG_UTF8);
		if (request_header_count(r, "idempotency-key") > 1 ||
			(!call->nulls[i] && strcmp(TextDatumGetCString(call->values[i]), key) != 0))
		{
			complaint->status = 400;
			complaint->code = "invalid_request";
			complaint->message = "it is not clear which idempotency key is meant";
			complaint->hint = "Give one, in the header Idempotency-Key or in the body.";
			return false;
		}
		call->values[i] = CStringGetTextDatum(key);
		call->nulls[i] = false;
	}
	return true;
}

/* Take the arguments; may raise */
static void
take_arguments(void *arg)
{
	Calling    *c = arg;

	MemoryContextSwitchTo(c->context);
	c->taken = arguments_take(c->request, c->from_query, c->selects, c->path, c->npath, &c->call, &c->complaint) &&
		take_idempotency_key(c->request, &c->call, &c->complaint);
}

/* Complain about an error that came while arguments were taken; false when it was none of theirs */
static bool
complain_error(Complaint *complaint, const ErrorData *error)
{
	int			category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

	complaint->hint = NULL;
	if (category == ERRCODE_DATA_EXCEPTION || category == ERRCODE_PROGRAM_LIMIT_EXCEEDED)
	{
		/* A time that is none, a character that the database does not have */
		complaint->status = 400;
		complaint->code = "invalid_request";
		complaint->message = complaint->field == NULL ? "a field has a value that is not valid" :
			psprintf("field \"%s\" has a value that is not valid", complaint->field);
		return true;
	}
	if (category == ERRCODE_INSUFFICIENT_RESOURCES || error->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		complaint->status = 503;
		complaint->code = "unavailable";
		complaint->message = "the server is at one of its limits";
		return true;
	}
	return false;
}

/* Give an answer in UTF-8, which is what HTTP speaks */
static void
make_utf8(ApiAnswer *answer)
{
	char	   *utf8;

	if (answer->body == NULL)
		return;
	utf8 = pg_server_to_any(answer->body, answer->length, PG_UTF8);
	if (utf8 != answer->body)
	{
		answer->body = utf8;
		answer->length = strlen(utf8);
	}
}

/*
 * Call a function; false when the request was refused, or is to be tried
 * again. The answer is in the current memory context.
 */
static bool
call_function(Calling *c, ApiAnswer *answer)
{
	Request    *r = c->request;
	ErrorData  *error;
	TimestampTz now;
	int			status;

	c->context = CurrentMemoryContext;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(c->context);
	error = caught_any(take_arguments, c, &status);
	if (error != NULL)
	{
		c->taken = false;
		if (!complain_error(&c->complaint, error))
			ReThrowError(error);
	}
	if (c->taken)
	{
		api_call(&c->call, answer);
		make_utf8(answer);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(c->context);

	if (!c->taken)
	{
		const Complaint *why = &c->complaint;

		/* To PostgREST, a function with other arguments is another function */
		if (!c->call.envelope && why->signature)
			route_refuse(r, 404, "PGRST202", why->message, why->hint, -1);
		else
			route_refuse(r, why->status, why->code, why->message, why->hint, why->status == 503 ? 1 : -1);
		return false;
	}

	/* Nothing was done: others are served meanwhile */
	now = GetCurrentTimestamp();
	if (answer->lock_timeout && now + 4 * AGAIN_US < r->deadline)
	{
		r->again_at = now + AGAIN_US + (int64) (compat_random() * AGAIN_US);
		return false;
	}
	return true;
}

/* Answer by a function */
static void
answer_by_function(Request *r, const Route *route, const PathArgument *path, int npath)
{
	Calling		c;
	ApiAnswer	answer;

	memset(&c, 0, sizeof(c));
	c.request = r;
	c.from_query = strcmp(route->method, "GET") == 0;
	c.path = path;
	c.npath = npath;
	c.call.function = api_function(route->function);
	c.call.envelope = r->envelope = true;
	if (c.call.function == NULL)
	{
		route_refuse(r, 404, "not_found", "there is nothing at this address", NULL, -1);
		return;
	}
	if (!find_key(r, &c.call))
	{
		route_refuse(r, 400, "invalid_request", "it is not clear which API key is meant",
					 "Give one, in the header Authorization.", -1);
		return;
	}
	if (!call_function(&c, &answer))
		return;
	if (answer.sending)
		waits_add(r, &answer);
	else
		request_answer_api(r, &answer);
}

/* ---- PostgREST's style ---- */

/* What an answer is to be like */
typedef struct Wish
{
	bool		object;			/* a single one */
	bool		stripped;		/* without nulls */
	bool		csv;
	bool		count;
	char	   *select;			/* columns, with commas; NULL: all */
} Wish;

/* Read what is accepted; false when it is nothing that there is */
static bool
read_accept(const Request *r, Wish *wish)
{
	const char *accept = request_header(r, "accept");

	if (accept == NULL || strstr(accept, "*/*") != NULL || strstr(accept, "application/*") != NULL)
		return true;
	if (strstr(accept, "application/vnd.pgrst.object") != NULL)
	{
		wish->object = true;
		wish->stripped = strstr(accept, "nulls=stripped") != NULL;
		return true;
	}
	if (strstr(accept, "application/vnd.pgrst.array") != NULL)
	{
		wish->stripped = strstr(accept, "nulls=stripped") != NULL;
		return true;
	}
	if (strstr(accept, "application/json") != NULL)
		return true;
	wish->csv = strstr(accept, "text/csv") != NULL;
	return wish->csv;
}

/* Leave nulls out */
static void
strip_nulls(json_t *value)
{
	const char *name;
	json_t	   *member;
	void	   *next;
	size_t		i;

	if (json_is_array(value))
	{
		json_array_foreach(value, i, member)
			strip_nulls(member);
		return;
	}
	json_object_foreach_safe(value, next, name, member)
	{
		if (json_is_null(member))
			json_object_del(value, name);
		else
			strip_nulls(member);
	}
}

/* Read which columns are wanted; false when that is not said by their names */
static bool
read_select(const Request *r, Wish *wish)
{
	char	   *select = r->query != NULL ? arguments_query(r->query, "select") : NULL;

	if (select == NULL || strcmp(select, "*") == 0)
		return true;
	if (select[0] == '\0' || strspn(select, "abcdefghijklmnopqrstuvwxyz0123456789_,") != strlen(select))
		return false;
	wish->select = select;
	return true;
}

/* Give a row with the columns that are wanted; what it does not have is null */
static json_t *
select_columns(json_t *row, const char *select)
{
	json_t	   *chosen = json_new_object();

	while (*select != '\0')
	{
		size_t		length = strcspn(select, ",");
		char	   *name = pnstrdup(select, length);
		json_t	   *value = json_object_get(row, name);

		if (length > 0)
			(void) json_object_set_new(chosen, name, value != NULL ? json_incref(value) : json_null());
		select += length + (select[length] == ',');
	}
	return chosen;
}

/* Leave all columns out but those that are wanted; gives the body, which may be another one */
static json_t *
select_from(json_t *body, const char *select)
{
	json_t	   *rows = json_is_array(body) ? body : json_object_get(body, "data");
	json_t	   *chosen;

	if (!json_is_array(rows))
	{
		chosen = select_columns(body, select);
		json_decref(body);
		return chosen;
	}
	for (size_t i = 0; i < json_array_size(rows); i++)
		(void) json_array_set_new(rows, i, select_columns(json_array_get(rows, i), select));
	return body;
}

/* Append a field of CSV */
static void
append_field(StringInfo out, json_t *value)
{
	char	   *text;

	if (value == NULL || json_is_null(value))
		return;
	if (json_is_string(value))
		text = unconstify(char *, json_string_value(value));
	else if (json_is_object(value) || json_is_array(value))
		text = json_to_text(value);
	else
	{
		/* Written as an element, for what stands alone is not JSON to all */
		json_t	   *list = json_pack("[O]", value);

		text = json_to_text(list);
		json_decref(list);
		text[strlen(text) - 1] = '\0';
		text++;
	}
	if (strpbrk(text, ",\"\r\n") == NULL)
	{
		appendStringInfoString(out, text);
		return;
	}
	appendStringInfoChar(out, '"');
	for (const char *p = text; *p != '\0'; p++)
	{
		if (*p == '"')
			appendStringInfoChar(out, '"');
		appendStringInfoChar(out, *p);
	}
	appendStringInfoChar(out, '"');
}

/* Write rows as CSV: the columns are those that any row has */
static void
write_csv(StringInfo out, json_t *rows)
{
	json_t	   *columns = json_new_object();
	json_t	   *row;
	json_t	   *value;
	const char *name;
	size_t		i;

	json_array_foreach(rows, i, row)
		json_object_update_missing(columns, row);
	json_object_foreach(columns, name, value)
	{
		json_t	   *text = json_string(name);

		if (out->len > 0)
			appendStringInfoChar(out, ',');
		append_field(out, text);
		json_decref(text);
	}
	json_array_foreach(rows, i, row)
	{
		bool		first = true;

		appendStringInfoChar(out, '\n');
		json_object_foreach(columns, name, value)
		{
			if (!first)
				appendStringInfoChar(out, ',');
			first = false;
			append_field(out, json_object_get(row, name));
		}
	}
	json_decref(columns);
}

/* Give an answer as it was wished for */
static void
answer_as_wished(Request *r, const Wish *wish, ApiAnswer *answer)
{
	json_t	   *body = json_from_text(answer->body, answer->length);
	json_t	   *rows;
	size_t		n;
	char		range[64];

	/*
	 * A number that is too large for a double stays as it is, and so does all
	 * else
	 */
	if (body == NULL)
	{
		request_answer_api(r, answer);
		return;
	}
	if (wish->select != NULL)
		body = select_from(body, wish->select);
	rows = json_is_array(body) ? body : json_object_get(body, "data");
	n = json_is_array(rows) ? json_array_size(rows) : 1;
	if (n > 0)
		snprintf(range, sizeof(range), "0-%zu/%s", n - 1, wish->count ? psprintf("%zu", n) : "*");
	else
		snprintf(range, sizeof(range), "*/%s", wish->count ? "0" : "*");
	request_answer_header(r, "Content-Range", range);
	if (wish->object && json_is_array(body) && n != 1)
	{
		ApiAnswer	refusal;

		api_refuse(&refusal, false, 406, "PGRST116", "Cannot coerce the result to a single JSON object",
				   psprintf("The result contains %zu rows", n), -1);
		refusal.remaining = answer->remaining;
		refusal.reset_at = answer->reset_at;
		request_answer_api(r, &refusal);
	}
	else if (wish->csv)
	{
		StringInfoData csv;
		json_t	   *alone = json_is_array(rows) ? json_incref(rows) : json_pack("[O]", body);
		char		number[32];

		initStringInfo(&csv);
		write_csv(&csv, alone);
		json_decref(alone);
		snprintf(number, sizeof(number), "%d", answer->remaining);
		request_answer_header(r, "X-RateLimit-Remaining", number);
		snprintf(number, sizeof(number), INT64_FORMAT, answer->reset_at);
		request_answer_header(r, "X-RateLimit-Reset", number);
		request_answer(r, answer->status, "text/csv; charset=utf-8", csv.data, csv.len);
	}
	else
	{
		if (wish->stripped)
			strip_nulls(body);
		if (wish->object && json_is_array(body))
			answer->body = json_to_text(json_array_get(body, 0));
		else if (wish->stripped || wish->select != NULL)
			answer->body = json_to_text(body);
		answer->length = strlen(answer->body);
		request_answer_api(r, answer);
	}
	json_decref(body);
}

/* Is the schema that a request names another one? */
static bool
is_other_schema(const Request *r, const char *header)
{
	const char *schema = request_header(r, header);

	return schema != NULL && strcmp(schema, SCHEMA) != 0;
}

/* Answer a call in PostgREST's style */
static void
answer_rpc(Request *r, const Route *route, const PathArgument *path)
{
	const char *prefer = request_header(r, "prefer");
	Calling		c;
	Wish		wish = {0};
	ApiAnswer	answer;

	memset(&c, 0, sizeof(c));
	c.request = r;
	c.from_query = strcmp(route->method, "GET") == 0;
	c.selects = true;
	c.call.function = api_function(path->value);
	if (is_other_schema(r, "accept-profile") || is_other_schema(r, "content-profile"))
	{
		route_refuse(r, 406, "PGRST106", "The schema must be one of the following: " SCHEMA, NULL, -1);
		return;
	}
	if (c.call.function == NULL)
	{
		route_refuse(r, 404, "PGRST202", "Could not find the function in the schema cache", NULL, -1);
		return;
	}
	if (c.from_query && !c.call.function->reads)
	{
		request_answer_header(r, "Allow", "POST");
		route_refuse(r, 405, "25006", "this function writes: it cannot be called by GET", NULL, -1);
		return;
	}
	if (!read_accept(r, &wish))
	{
		route_refuse(r, 406, "PGRST107", "None of these media types are available", NULL, -1);
		return;
	}
	if (prefer != NULL && strstr(prefer, "tx=rollback") != NULL && !c.call.function->reads)
	{
		route_refuse(r, 400, "invalid_request", "this transaction must not be rolled back",
					 "Leave tx=rollback out of the header Prefer.", -1);
		return;
	}
	if (!read_select(r, &wish))
	{
		route_refuse(r, 400, "PGRST100", "\"select\" is not a list of columns",
					 "Give their names with commas in between.", -1);
		return;
	}
	wish.count = prefer != NULL && strstr(prefer, "count=") != NULL;
	if (!find_key(r, &c.call))
	{
		route_refuse(r, 400, "invalid_request", "it is not clear which API key is meant",
					 "Give one, in the header X-API-Key.", -1);
		return;
	}
	if (!call_function(&c, &answer))
		return;
	if (answer.sending)
		waits_add(r, &answer);
	else if (answer.status < 200 || answer.status > 299 || answer.body == NULL)
		request_answer_api(r, &answer);
	else
		answer_as_wished(r, &wish, &answer);
}

/* ---- all ---- */

/* Answer a request */
void
route_request(Request *r)
{
	PathArgument path[PATH_ARGUMENTS];
	int			npath;
	int			route = find_route(r, path, &npath);

	r->route = route;
	r->envelope = !is_rpc(r);
	switch (routes[route].kind)
	{
		case ROUTE_FUNCTION:
			answer_by_function(r, &routes[route], path, npath);
			break;
		case ROUTE_RPC:
			answer_rpc(r, &routes[route], path);
			break;
		case ROUTE_META:
			callback_meta(r, path[0].value);
			break;
		case ROUTE_TWILIO:
			callback_twilio(r, path[0].value);
			break;
		case ROUTE_HEALTH:
			monitor_health(r);
			break;
		case ROUTE_METRICS:
			monitor_metrics(r);
			break;
		case ROUTE_OPENAPI:
			monitor_openapi(r);
			break;
		case ROUTE_NONE:
			break;
	}
}
