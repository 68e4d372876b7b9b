/*
 * control.c
 *		The tester's side: /_sim/...
 */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A numeric argument of the query. */
static int64_t
number_arg(Request *req, const char *name)
{
	const char *value = request_arg(req, name);

	return value ? atoll(value) : 0;
}

/* Read the body as JSON, or answer that it is not. */
static json_t *
read_json(Request *req)
{
	json_error_t error;
	json_t	   *body = json_loadb(req->body.data, req->body.len, JSON_REJECT_DUPLICATES, &error);

	if (body == NULL)
		answer_printf(req, 400, "{\"error\":\"the body is not JSON: line %d, column %d\"}\n", error.line, error.column);
	return body;
}

/* Answer that something is wrong, or that all is well. */
static void
answer_problem(Request *req, const char *problem)
{
	Text		out = {0};

	if (problem == NULL)
		text_puts(&out, "{\"ok\":true}\n");
	else
	{
		text_puts(&out, "{\"error\":");
		text_json(&out, problem);
		text_puts(&out, "}\n");
	}
	answer_text(req, problem ? 400 : 200, "application/json", &out);
}

/* POST /_sim/behave: one rule or an array of rules. */
static void
handle_behave(Request *req)
{
	json_t	   *body = read_json(req);
	const char *problem = NULL;
	int64_t		id = 0;
	json_t	   *entry;
	size_t		i;

	if (body == NULL)
		return;
	if (json_is_array(body))
	{
		json_array_foreach(body, i, entry)
			if (problem == NULL)
			problem = behaviour_add(entry, &id);
	}
	else
		problem = behaviour_add(body, &id);
	json_decref(body);
	if (problem)
		answer_problem(req, problem);
	else
		answer_printf(req, 200, "{\"ok\":true,\"id\":%lld}\n", (long long) id);
}

/* POST /_sim/callback: send one now, for a message or with a body as it is. */
static const char *
make_callback(json_t *body)
{
	json_t	   *raw = json_object_get(body, "raw");
	const char *phone = json_string_value(json_object_get(body, "phone"));
	const char *account = json_string_value(json_object_get(body, "account"));
	json_int_t	seq = json_integer_value(json_object_get(body, "seq"));
	CallbackSpec spec;
	const char *problem;
	Message    *msg;

	if (json_is_string(raw))
	{
		memset(&spec, 0, sizeof(spec));
		spec.status = "raw";
		spec.after_ms = (int) json_integer_value(json_object_get(body, "after_ms"));
		spec.bad_signature = json_is_true(json_object_get(body, "bad_signature"));
		spec.no_signature = json_is_true(json_object_get(body, "no_signature"));
		callback_raw(account ? account : "", json_string_value(json_object_get(body, "url")),
					 must_copy(json_string_value(raw)), &spec);
		return NULL;
	}
	problem = callback_spec_parse(body, &spec);
	if (problem)
		return problem;
	msg = seq > 0 ? inbox_by_seq(seq) : phone ? inbox_newest(phone) : NULL;
	if (msg == NULL)
		return "no such message; name it with \"seq\" or \"phone\"";
	callback_schedule(msg, &spec);
	message_unref(msg);
	return NULL;
}

/* GET /_sim/inbox, with wait_ms until there is something to show. */
static void
handle_inbox(Request *req)
{
	int64_t		wait_ms = number_arg(req, "wait_ms");
	int			wanted = (int) number_arg(req, "count");
	int			limit = (int) number_arg(req, "limit");
	int			newest = (int) number_arg(req, "newest");
	int64_t		now = mono_us();
	Text		out = {0};
	unsigned	generation = inbox_generation();
	int			count;

	count = inbox_describe(&out, request_arg(req, "phone"), number_arg(req, "since"),
						   newest ? newest : limit, newest > 0);
	if (wait_ms > 0 && count < (wanted ? wanted : 1))
	{
		/* the request is routed again each time; its first time sets the end */
		if (req->due == 0)
			req->due = now + wait_ms * 1000;
		if (now < req->due)
		{
			text_free(&out);
			req->answer.kind = ANSWER_WAIT_INBOX;
			req->answer.wait_until = req->due;
			req->answer.inbox_generation = generation;
			return;
		}
	}
	answer_text(req, 200, "application/json", &out);
}

/* Answer a request under /_sim/. */
void
control_handle(Request *req)
{
	const char *what = req->url + strlen("/_sim/");
	bool		get = request_is(req, "GET");
	bool		post = request_is(req, "POST");
	bool		delete = request_is(req, "DELETE");
	int64_t		since = number_arg(req, "since");
	int			limit = (int) number_arg(req, "limit");
	Text		out = {0};
	json_t	   *body;

	if (strcmp(what, "behave") == 0 && post)
		handle_behave(req);
	else if (strcmp(what, "behave") == 0 && delete)
	{
		behaviour_clear(number_arg(req, "id"));
		answer_problem(req, NULL);
	}
	else if (strcmp(what, "behave") == 0 && get)
	{
		behaviour_describe(&out);
		answer_text(req, 200, "application/json", &out);
	}
	else if (strcmp(what, "config") == 0 && post)
	{
		body = read_json(req);
		if (body)
			answer_problem(req, settings_apply(body));
		json_decref(body);
	}
	else if (strcmp(what, "config") == 0 && get)
	{
		settings_describe(&out);
		answer_text(req, 200, "application/json", &out);
	}
	else if (strcmp(what, "inbox") == 0 && get)
		handle_inbox(req);
	else if (strcmp(what, "inbox") == 0 && delete)
	{
		inbox_clear();
		answer_problem(req, NULL);
	}
	else if (strcmp(what, "inbox.txt") == 0 && get)
	{
		inbox_draw(&out, request_arg(req, "phone"));
		answer_text(req, 200, "text/plain; charset=utf-8", &out);
	}
	else if (strcmp(what, "log") == 0 && get)
	{
		journal_describe(&out, since, limit, request_arg(req, "otp_id"));
		answer_text(req, 200, "application/json", &out);
	}
	else if (strcmp(what, "log") == 0 && delete)
	{
		journal_clear();
		answer_problem(req, NULL);
	}
	else if (strcmp(what, "counters") == 0 && get)
	{
		counters_describe(&out);
		answer_text(req, 200, "application/json", &out);
	}
	else if (strcmp(what, "counters") == 0 && delete)
	{
		counters_clear();
		answer_problem(req, NULL);
	}
	else if (strcmp(what, "callback") == 0 && post)
	{
		body = read_json(req);
		if (body)
			answer_problem(req, make_callback(body));
		json_decref(body);
	}
	else if (strcmp(what, "callbacks") == 0 && get)
	{
		callback_describe(&out, since, limit);
		answer_text(req, 200, "application/json", &out);
	}
	else if (strcmp(what, "callbacks") == 0 && delete)
	{
		callback_clear();
		answer_problem(req, NULL);
	}
	else if (strcmp(what, "release") == 0 && post)
	{
		http_release_hung();
		answer_problem(req, NULL);
	}
	else if (strcmp(what, "healthz") == 0 && get)
		answer_problem(req, NULL);
	else
		answer_printf(req, 404, "{\"error\":\"no such control\"}\n");
}
