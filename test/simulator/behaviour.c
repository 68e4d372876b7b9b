/*
 * behaviour.c
 *		Rules that tell the simulator how to treat a send.
 *
 * Rules stand in a list, newest first.  The newest matching rule with a "do"
 * decides the answer; the newest matching rule with "callbacks" decides the
 * callbacks.  They apply only to requests that pass all checks of the API.
 */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t rules_lock = PTHREAD_MUTEX_INITIALIZER;
static Rule *newest;
static int64_t last_id;
static _Atomic int rule_count;

/* Give a rule back. */
static void
rule_unref(Rule *rule)
{
	if (rule == NULL || --rule->refs > 0)
		return;
	json_decref(rule->source);
	free(rule->callbacks);
	free(rule);
}

/* Read a number that may be absent. */
static int64_t
number_of(json_t *object, const char *key, int64_t otherwise)
{
	json_t	   *value = json_object_get(object, key);

	return json_is_number(value) ? (int64_t) json_number_value(value) : otherwise;
}

/* Is every key of an object one of these (separated by blanks)? */
static bool
only_keys(json_t *object, const char *allowed)
{
	const char *key;
	json_t	   *value;

	json_object_foreach(object, key, value)
	{
		const char *p = strstr(allowed, key);
		size_t		len = strlen(key);

		while (p && ((p > allowed && p[-1] != ' ') || (p[len] != '\0' && p[len] != ' ')))
			p = strstr(p + 1, key);
		if (p == NULL)
			return false;
	}
	return true;
}

/* Read one callback of a rule; returns what is wrong with it, or NULL. */
const char *
callback_spec_parse(json_t *spec, CallbackSpec *out)
{
	static const char *const statuses[] = {
		"accepted", "queued", "sending", "sent", "delivered", "read", "failed", "undelivered", NULL
	};
	const char *status = json_string_value(json_object_get(spec, "status"));

	memset(out, 0, sizeof(*out));
	for (int i = 0; status && statuses[i]; i++)
		if (strcmp(status, statuses[i]) == 0)
			out->status = statuses[i];
	if (out->status == NULL)
		return "a callback needs a status: sent, delivered, read, failed, undelivered, ...";
	out->after_ms = (int) number_of(spec, "after_ms", 0);
	out->code = (int) number_of(spec, "code", 0);
	out->times = (int) number_of(spec, "times", 1);
	out->bad_signature = json_is_true(json_object_get(spec, "bad_signature"));
	out->no_signature = json_is_true(json_object_get(spec, "no_signature"));
	out->priced = strcmp(out->status, "sent") == 0 || strcmp(out->status, "delivered") == 0;
	return NULL;
}

/* Read the "do" of a rule. */
static const char *
parse_do(Rule *rule, json_t *doing)
{
	json_t	   *raw = json_object_get(doing, "raw");
	json_t	   *record = json_object_get(doing, "record");
	const char *reset = json_string_value(json_object_get(doing, "reset"));

	if (!json_is_object(doing))
		return "\"do\" must be an object";
	if (!only_keys(doing, "status code subcode retry_after headers delay_ms hang reset raw content_type "
				   "huge_bytes empty_messages truncate slow_body_ms record"))
		return "unknown key in \"do\"";
	rule->has_do = true;
	rule->status = (int) number_of(doing, "status", 0);
	rule->code = (int) number_of(doing, "code", -1);
	rule->subcode = (int) number_of(doing, "subcode", 0);
	rule->retry_after = (int) number_of(doing, "retry_after", 0);
	rule->headers = json_object_get(doing, "headers");
	rule->delay_ms = (int) number_of(doing, "delay_ms", 0);
	rule->hang = json_is_true(json_object_get(doing, "hang"));
	rule->raw = json_string_value(raw);
	rule->raw_len = json_string_length(raw);
	rule->content_type = json_string_value(json_object_get(doing, "content_type"));
	rule->huge_bytes = (size_t) number_of(doing, "huge_bytes", 0);
	rule->empty_messages = json_is_true(json_object_get(doing, "empty_messages"));
	rule->truncate = json_is_true(json_object_get(doing, "truncate"));
	rule->slow_body_ms = (int) number_of(doing, "slow_body_ms", 0);
	rule->record = json_is_boolean(record) ? json_is_true(record) : -1;
	if (reset)
	{
		rule->reset_before = strcmp(reset, "before") == 0;
		rule->reset_after = strcmp(reset, "after") == 0;
		if (!rule->reset_before && !rule->reset_after)
			return "\"reset\" must be \"before\" or \"after\"";
	}
	if (rule->status && (rule->status < 200 || rule->status > 599))
		return "\"status\" must be from 200 to 599";
	return NULL;
}

/* Read a rule. */
static const char *
parse_rule(Rule *rule, json_t *spec)
{
	json_t	   *match = json_object_get(spec, "match");
	json_t	   *doing = json_object_get(spec, "do");
	json_t	   *callbacks = json_object_get(spec, "callbacks");
	json_t	   *share = json_object_get(spec, "share");
	const char *api = json_string_value(json_object_get(match, "api"));
	const char *problem = NULL;
	json_t	   *entry;
	size_t		i;

	if (!json_is_object(spec) || !only_keys(spec, "match times share do callbacks"))
		return "a rule has match, times, share, do and callbacks, nothing else";
	if (match && (!json_is_object(match) || !only_keys(match, "phone prefix api account")))
		return "\"match\" has phone, prefix, api and account, nothing else";
	if (api && strcmp(api, "meta") != 0 && strcmp(api, "twilio") != 0)
		return "\"api\" must be \"meta\" or \"twilio\"";
	if (doing == NULL && callbacks == NULL)
		return "a rule needs \"do\" or \"callbacks\"";

	rule->api = api == NULL ? API_NONE : *api == 'm' ? API_META : API_TWILIO;
	rule->phone = json_string_value(json_object_get(match, "phone"));
	rule->prefix = json_string_value(json_object_get(match, "prefix"));
	rule->account = json_string_value(json_object_get(match, "account"));
	rule->times = number_of(spec, "times", -1);
	rule->share = json_is_number(share) ? json_number_value(share) : 1.0;
	if (doing)
		problem = parse_do(rule, doing);
	if (callbacks && problem == NULL)
	{
		bool		delivered = false;

		rule->has_callbacks = true;
		rule->callback_count = (int) json_array_size(callbacks);
		rule->callbacks = must_alloc((rule->callback_count + 1) * sizeof(CallbackSpec));
		json_array_foreach(callbacks, i, entry)
		{
			if (problem == NULL)
				problem = callback_spec_parse(entry, &rule->callbacks[i]);
			delivered = delivered || (problem == NULL && strcmp(rule->callbacks[i].status, "delivered") == 0);
		}
		/* the price stands on "sent" and on one of "delivered" and "read" */
		for (int k = 0; problem == NULL && k < rule->callback_count; k++)
			if (!delivered && strcmp(rule->callbacks[k].status, "read") == 0)
				rule->callbacks[k].priced = true;
	}
	return problem;
}

/* Add a rule; returns what is wrong with it, or NULL. */
const char *
behaviour_add(json_t *spec, int64_t *id)
{
	Rule	   *rule = must_alloc(sizeof(Rule));
	const char *problem;

	rule->refs = 1;
	rule->source = json_deep_copy(spec);
	problem = parse_rule(rule, rule->source);
	if (problem)
	{
		rule_unref(rule);
		return problem;
	}
	pthread_mutex_lock(&rules_lock);
	*id = rule->id = ++last_id;
	rule->older = newest;
	newest = rule;
	rule_count++;
	pthread_mutex_unlock(&rules_lock);
	return NULL;
}

/* Drop one rule, or all with id 0. */
void
behaviour_clear(int64_t id)
{
	Rule	  **link = &newest;

	pthread_mutex_lock(&rules_lock);
	while (*link)
	{
		Rule	   *rule = *link;

		if (id != 0 && rule->id != id)
		{
			link = &rule->older;
			continue;
		}
		*link = rule->older;
		rule_count--;
		rule_unref(rule);
	}
	pthread_mutex_unlock(&rules_lock);
}

/* Describe the rules, newest first. */
void
behaviour_describe(Text *out)
{
	bool		first = true;

	text_puts(out, "[");
	pthread_mutex_lock(&rules_lock);
	for (Rule *rule = newest; rule; rule = rule->older)
	{
		char	   *source = json_dumps(rule->source, JSON_COMPACT);

		text_printf(out, "%s\n{\"id\":%lld,\"matched\":%lld,\"applied\":%lld,\"rule\":%s}",
					first ? "" : ",", (long long) rule->id, (long long) rule->matched,
					(long long) rule->applied, source);
		free(source);
		first = false;
	}
	pthread_mutex_unlock(&rules_lock);
	text_puts(out, "]\n");
}

/* Does a rule match, and is it this request's turn? The lock is held. */
static bool
rule_fires(Rule *rule, Api api, const char *account, const char *phone)
{
	double		before;

	if ((rule->api != API_NONE && rule->api != api) ||
		(rule->phone && strcmp(rule->phone, phone) != 0) ||
		(rule->prefix && strncmp(rule->prefix, phone, strlen(rule->prefix)) != 0) ||
		(rule->account && strcmp(rule->account, account) != 0) ||
		(rule->times >= 0 && rule->applied >= rule->times))
		return false;

	/* every 1/share-th request, counted and not drawn: tests can repeat it */
	before = (double) rule->matched * rule->share;
	rule->matched++;
	if ((int64_t) ((double) rule->matched * rule->share + 1e-9) == (int64_t) (before + 1e-9))
		return false;
	return true;
}

/* Choose the rules for a request. */
void
behaviour_pick(Effect *effect, Api api, const char *account, const char *phone)
{
	memset(effect, 0, sizeof(*effect));
	if (rule_count == 0)
		return;
	pthread_mutex_lock(&rules_lock);
	for (Rule *rule = newest; rule; rule = rule->older)
	{
		bool		useful = ((rule->has_do && effect->doing == NULL) ||
							  (rule->has_callbacks && effect->calling == NULL));

		if (!useful || !rule_fires(rule, api, account, phone))
			continue;
		rule->applied++;
		if (rule->has_do && effect->doing == NULL)
		{
			rule->refs++;
			effect->doing = rule;
		}
		if (rule->has_callbacks && effect->calling == NULL)
		{
			rule->refs++;
			effect->calling = rule;
		}
		if (effect->doing && effect->calling)
			break;
	}
	pthread_mutex_unlock(&rules_lock);
}

/* Give the rules of a request back. */
void
behaviour_done(Effect *effect)
{
	rule_unref(effect->doing);
	rule_unref(effect->calling);
}

/*
 * Answer a send that passed all checks: as the rules say, or with success.
 * Takes the reference on the message.
 */
void
send_conclude(Request *req, Message *msg, const Wording *wording)
{
	Answer	   *a = &req->answer;
	Effect		effect;
	Rule	   *rule;
	Outcome		outcome = OUTCOME_ACCEPTED;
	bool		record = true;
	int			code = 0;

	behaviour_pick(&effect, msg->api, msg->account, msg->to);
	rule = effect.doing;

	/* what will the sender see? */
	if (rule)
	{
		a->delay_ms = rule->delay_ms;
		if (rule->hang)
		{
			outcome = OUTCOME_HUNG;
			record = false;
		}
		else if (rule->reset_before || rule->reset_after)
		{
			outcome = OUTCOME_RESET;
			record = rule->reset_after;
		}
		else if (rule->code >= 0 || rule->status >= 300)
		{
			if (rule->raw == NULL)
			{
				code = rule->code >= 0 ? rule->code : wording->default_code(rule->status);
				a->status = rule->status ? rule->status : wording->default_status(code);
			}
			outcome = OUTCOME_REFUSED;
			record = false;
		}
		else if (rule->empty_messages)
			record = false;
		if (rule->record >= 0)
			record = rule->record;
	}

	/* the message goes on its way before the answer does */
	if (record)
	{
		inbox_add(msg);
		for (int i = 0; effect.calling && i < effect.calling->callback_count; i++)
			callback_schedule(msg, &effect.calling->callbacks[i]);
	}
	else
		message_name(msg, req->received_us);

	if (outcome == OUTCOME_HUNG)
		a->kind = ANSWER_HANG;
	else if (outcome == OUTCOME_RESET)
		a->kind = ANSWER_RESET;
	else if (rule && rule->raw)
	{
		Text		raw = {0};

		text_add(&raw, rule->raw, rule->raw_len);
		answer_text(req, rule->status ? rule->status : 200, "text/plain", &raw);
	}
	else if (outcome == OUTCOME_REFUSED)
		wording->error(req, a->status, code, rule->subcode);
	else
		wording->success(req, msg, rule && rule->empty_messages);

	if (rule)
	{
		const char *key;
		json_t	   *value;

		a->retry_after = rule->retry_after;
		a->truncate = rule->truncate;
		a->slow_body_ms = rule->slow_body_ms;
		a->huge_bytes = rule->huge_bytes;
		if (rule->content_type)
			a->content_type = a->own_content_type = must_copy(rule->content_type);
		if (rule->headers && a->headers == NULL)
			a->headers = json_object();
		json_object_foreach(rule->headers, key, value)
		{
			json_object_set(a->headers, key, value);
		}
	}
	journal_add(req, msg->api, "send", outcome, a->kind == ANSWER_SEND ? a->status : 0, code, record,
				msg->to, msg->otp_id);
	behaviour_done(&effect);
	message_unref(msg);
}
