/*-------------------------------------------------------------------------
 *
 * meta_template.c
 *	  Authentication templates at Meta: create one, read the list.
 *
 * Their words are Meta's own, in every language; what can be chosen is a
 * button, a recommendation not to share the code, and a line that tells how
 * long it lives. Creating one that is there already is refused, which makes
 * a repeat harmless.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"

#include "base/json.h"
#include "channel/meta_template.h"

#define META_BASE_URL "https://graph.facebook.com"
#define META_API_VERSION "v25.0"

/* Of error 100: this name has a text in this language already */
#define SUBCODE_EXISTS 2388024

/* Limits of management calls are by the hour */
#define THROTTLED_MS 60000

/* What a list is to tell of each template */
#define FIELDS "id,name,status,category,language,components,rejected_reason"

/* Most templates of one page, whatever the other side sends */
#define PAGE_MAX 1000

/* What the table for messages does not have: Graph API's limits of calls */
static const int throttles[] = {17, 32, 613, 80008};

/* ---- requests ---- */

/* Begin a request at the account's templates; gives their address */
static char *
begin_request(const ProviderAccount *account, HttpRequest *out, char *error, size_t error_size)
{
	const char *waba = channel_string(account->settings, "waba_id");
	const char *version = channel_string(account->settings, "api_version");
	const char *token = channel_string(account->secrets, "access_token");
	char	   *base_url = channel_base_url(account, META_BASE_URL);

	memset(out, 0, sizeof(*out));
	if (version == NULL)
		version = META_API_VERSION;

	/* Settings become part of an address: nothing in them may redirect it */
	if (base_url == NULL)
	{
		strlcpy(error, "base_url is not a URL", error_size);
		return NULL;
	}
	if (version[0] != 'v' || !channel_is_word(version + 1, ".", 12))
	{
		strlcpy(error, "api_version does not look like v25.0", error_size);
		return NULL;
	}
	if (!channel_is_word(waba, "_-", 64))
	{
		strlcpy(error, "waba_id is missing or malformed", error_size);
		return NULL;
	}
	if (token == NULL)
	{
		strlcpy(error, "access_token is missing", error_size);
		return NULL;
	}
	out->bearer = pstrdup(token);
	return psprintf("%s/%s/%s/message_templates", base_url, version, waba);
}

/* Set a string, unless it is left to Meta */
static int
set_string(json_t *object, const char *key, const char *value)
{
	return value == NULL ? 0 : json_object_set_new(object, key, json_string(value));
}

/* Make the button; NULL when out of memory */
static json_t *
make_button(const MetaTemplateWish *wish)
{
	json_t	   *button = json_pack("{s:s}", "type", "OTP");
	bool		zero_tap = strcmp(wish->button, "zero_tap") == 0;
	int			rc = 0;

	if (strcmp(wish->button, "copy_code") == 0)
		rc |= set_string(button, "otp_type", "COPY_CODE");
	else
	{
		rc |= set_string(button, "otp_type", zero_tap ? "ZERO_TAP" : "ONE_TAP");
		rc |= set_string(button, "autofill_text", wish->autofill_text);
		rc |= json_object_set_new(button, "supported_apps",
								  json_pack("[{s:s,s:s}]", "package_name", wish->package_name,
											"signature_hash", wish->signature_hash));
		if (zero_tap)
			rc |= json_object_set_new(button, "zero_tap_terms_accepted",
									  json_boolean(wish->zero_tap_terms_accepted));
	}
	rc |= set_string(button, "text", wish->button_text);
	if (rc == 0)
		return button;
	json_decref(button);
	return NULL;
}

/* Make the body of a creation; NULL when out of memory */
static json_t *
make_body(const MetaTemplateWish *wish)
{
	json_t	   *body = json_pack("{s:s,s:s,s:s}", "name", wish->name, "language", wish->language,
								 "category", "AUTHENTICATION");
	json_t	   *components = json_array();
	int			rc = 0;

	if (wish->ttl != 0)
		rc |= json_object_set_new(body, "message_send_ttl_seconds", json_integer(wish->ttl));
	rc |= json_array_append_new(components,
								json_pack("{s:s,s:b}", "type", "BODY", "add_security_recommendation",
										  (int) wish->add_security_recommendation));
	if (wish->minutes != 0)
		rc |= json_array_append_new(components,
									json_pack("{s:s,s:i}", "type", "FOOTER",
											  "code_expiration_minutes", wish->minutes));
	rc |= json_array_append_new(components,
								json_pack("{s:s,s:[o]}", "type", "BUTTONS", "buttons", make_button(wish)));
	rc |= json_object_set_new(body, "components", components);
	if (rc == 0)
		return body;
	json_decref(body);
	return NULL;
}

/* Build the request that creates a template */
bool
meta_template_build_create(const ProviderAccount *account, const MetaTemplateWish *wish,
						   HttpRequest *out, char *error, size_t error_size)
{
	static const char *headers[] = {"Content-Type: application/json", NULL};
	char	   *url = begin_request(account, out, error, error_size);
	json_t	   *body;

	if (url == NULL)
		return false;
	body = make_body(wish);
	out->url = url;
	out->headers = headers;
	out->body = json_to_text(body);
	out->body_length = strlen(out->body);
	json_decref(body);
	return true;
}

/* Append a value to an address */
static void
append_escaped(StringInfo out, const char *value)
{
	for (; *value != '\0'; value++)
	{
		if (strchr("-._~", *value) != NULL || (*value >= '0' && *value <= '9') ||
			(*value >= 'A' && *value <= 'Z') || (*value >= 'a' && *value <= 'z'))
			appendStringInfoChar(out, *value);
		else
			appendStringInfo(out, "%%%02X", (unsigned char) *value);
	}
}

/* Build the request that reads a page */
bool
meta_template_build_list(const ProviderAccount *account, const char *name,
						 const char *after, int limit,
						 HttpRequest *out, char *error, size_t error_size)
{
	char	   *url = begin_request(account, out, error, error_size);
	StringInfoData address;

	if (url == NULL)
		return false;
	initStringInfo(&address);
	appendStringInfo(&address, "%s?fields=" FIELDS "&limit=%d", url, limit);
	if (name != NULL)
	{
		appendStringInfoString(&address, "&name=");
		append_escaped(&address, name);
	}
	if (after[0] != '\0')
	{
		appendStringInfoString(&address, "&after=");
		append_escaped(&address, after);
	}
	out->url = address.data;
	return true;
}

/* ---- answers ---- */

/* Judge an error, which may come with any status */
static void
judge_error(const HttpResponse *response, const json_t *problem, MetaTemplateAnswer *out)
{
	Judgement  *j = &out->judgement;
	const json_t *more = json_object_get(problem, "error_data");
	int			code;
	int			subcode = 0;

	(void) channel_json_code(json_object_get(problem, "error_subcode"), &subcode);
	if (channel_json_code(json_object_get(problem, "code"), &code))
	{
		channel_judge_answer(&channel_meta, response, code,
							 json_is_true(json_object_get(problem, "is_transient")), j);
		for (int i = 0; i < lengthof(throttles); i++)
		{
			if (code == throttles[i])
			{
				j->verdict = VERDICT_RETRY;
				j->overloaded = true;
				j->min_delay_ms = THROTTLED_MS;
			}
		}
		out->exists = code == 100 && subcode == SUBCODE_EXISTS;
	}
	else
		channel_judge_status(&channel_meta, response, j);

	/* Its words; those for people say most about a template */
	channel_add_detail(j, "", json_object_get(problem, "message"), "");
	channel_add_detail(j, ": ", json_object_get(problem, "error_user_title"), "");
	channel_add_detail(j, ": ", json_object_get(problem, "error_user_msg"), "");
	channel_add_detail(j, ": ", json_is_string(more) ? more : json_object_get(more, "details"), "");
	channel_add_detail(j, " (fbtrace_id ", json_object_get(problem, "fbtrace_id"), ")");
}

/* Begin to judge; gives the answer if it is a success, to be decref'd */
static json_t *
begin_answer(const HttpResponse *response, MetaTemplateAnswer *out)
{
	Judgement  *j = &out->judgement;
	json_t	   *answer;
	const json_t *problem;

	memset(out, 0, sizeof(*out));
	channel_begin(response, j);
	if (channel_judge_silence(&channel_meta, response, j))
	{
		/* A success whose body was cut off by us */
		out->too_large = response->status == 200 && response->body_length > HTTP_MAX_ANSWER / 2;
		channel_finish(response, j);
		return NULL;
	}

	answer = json_from_text(response->body, response->body_length);
	problem = json_object_get(answer, "error");
	if (json_is_object(problem))
		judge_error(response, problem, out);
	else if (answer != NULL && response->status >= 200 && response->status < 300)
	{
		j->verdict = VERDICT_ACCEPTED;
		return answer;
	}
	else
		channel_judge_status(&channel_meta, response, j);
	channel_finish(response, j);
	json_decref(answer);
	return NULL;
}

/* Take a success back that is none of what was asked for */
static void
refuse_answer(const HttpResponse *response, const char *why, MetaTemplateAnswer *out)
{
	Judgement  *j = &out->judgement;

	channel_judge_status(&channel_meta, response, j);
	strlcpy(j->detail, why, sizeof(j->detail));
	channel_finish(response, j);
}

/* Copy a word; false, with "", when there is none that fits */
static bool
take_word(const json_t *object, const char *key, bool lower, char *out, size_t size)
{
	const char *word = channel_string(object, key);

	out[0] = '\0';
	if (!channel_is_word(word, "_-.", size - 1))
		return false;
	strlcpy(out, word, size);
	for (char *p = out; lower && *p != '\0'; p++)
		*p = (char) pg_tolower((unsigned char) *p);
	return true;
}

/* Copy what creations and lists have in common; false without a status */
static bool
take_state(const json_t *object, MetaTemplate *t)
{
	json_int_t	number = json_integer_value(json_object_get(object, "id"));

	(void) take_word(object, "category", true, t->category, sizeof(t->category));
	if (!take_word(object, "id", false, t->template_id, sizeof(t->template_id)) && number > 0)
		snprintf(t->template_id, sizeof(t->template_id), "%lld", (long long) number);
	if (take_word(object, "rejected_reason", false, t->reason, sizeof(t->reason)) &&
		strcmp(t->reason, "NONE") == 0)
		t->reason[0] = '\0';
	return take_word(object, "status", true, t->status, sizeof(t->status));
}

/* Read how long a code lives, as the text tells it */
static int
take_minutes(const json_t *object, const char *category)
{
	const json_t *components = json_object_get(object, "components");
	const json_t *component;
	size_t		i;

	if (!json_is_array(components))
		return -1;
	json_array_foreach(components, i, component)
	{
		const char *type = channel_string(component, "type");
		int64		minutes;

		if (type == NULL || pg_strcasecmp(type, "footer") != 0)
			continue;
		return json_member_int(component, "code_expiration_minutes", 1, 90, &minutes) ? (int) minutes : -1;
	}

	/* Only of Meta's own words do we know that they say nothing elsewhere */
	return strcmp(category, "authentication") == 0 ? 0 : -1;
}

/* Judge a creation */
void
meta_template_judge_create(const HttpResponse *response, MetaTemplateAnswer *out)
{
	json_t	   *answer = begin_answer(response, out);

	if (answer == NULL)
		return;
	out->templates = palloc0(sizeof(MetaTemplate));
	out->templates[0].minutes = -1;
	if (take_state(answer, &out->templates[0]))
		out->ntemplates = 1;
	else
		refuse_answer(response, "a success without a status", out);
	json_decref(answer);
}

/* Judge a page */
void
meta_template_judge_list(const HttpResponse *response, MetaTemplateAnswer *out)
{
	json_t	   *answer = begin_answer(response, out);
	const json_t *data = json_object_get(answer, "data");
	const json_t *paging = json_object_get(answer, "paging");
	const json_t *item;
	size_t		i;

	if (answer == NULL)
		return;
	if (!json_is_array(data))
	{
		refuse_answer(response, "a list without data", out);
		json_decref(answer);
		return;
	}

	out->templates = palloc0((Min(json_array_size(data), PAGE_MAX) + 1) * sizeof(MetaTemplate));
	json_array_foreach(data, i, item)
	{
		MetaTemplate *t = &out->templates[out->ntemplates];

		/* What we cannot read, we could not send either */
		if (i < PAGE_MAX &&
			take_word(item, "name", false, t->name, sizeof(t->name)) &&
			take_word(item, "language", false, t->language, sizeof(t->language)) &&
			take_state(item, t))
		{
			t->minutes = take_minutes(item, t->category);
			out->ntemplates++;
		}
	}

	/* The last page has a cursor, too, but no address of a next one */
	if (channel_string(paging, "next") != NULL)
	{
		const char *cursor = json_member_string(json_object_get(paging, "cursors"), "after",
												sizeof(out->next) - 1);

		if (cursor != NULL)
			strlcpy(out->next, cursor, sizeof(out->next));
		else
			refuse_answer(response, "a page without a cursor for the next one", out);
	}
	json_decref(answer);
}
