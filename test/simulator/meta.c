/*
 * meta.c
 *		Meta's Cloud API: template sends, templates, the phone number.
 */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CODE_CHARS 15		/* of an authentication template's parameter */
#define MAX_OPAQUE_CHARS 512	/* biz_opaque_callback_data */

typedef struct MetaError
{
	int			code;
	int			status;
	const char *title;
	const char *details;
} MetaError;

/* HTTP statuses as Meta's table had them; 400 where it had none. */
static const MetaError errors[] = {
	{0, 401, "AuthException", "We were unable to authenticate the app user."},
	{1, 400, "API Unknown", "Invalid request or possible server error."},
	{2, 503, "API Service", "Temporary due to downtime or due to being overloaded."},
	{3, 500, "API Method", "Capability or permissions issue."},
	{4, 400, "Application request limit reached", "The app has reached its API call rate limit."},
	{10, 403, "Permission Denied", "Permission is either not granted or has been removed."},
	{33, 400, "Parameter value is not valid", "The business phone number has been deleted."},
	{100, 400, "Invalid parameter", "The request included one or more unsupported or misspelled parameters."},
	{190, 401, "Error validating access token: Session has expired.", NULL},
	{200, 403, "API Permission", "Permission is either not granted or has been removed."},
	{368, 403, "Temporarily blocked for policies violations",
	"The WhatsApp Business Account has been restricted or disabled for violating a platform policy."},
	{80007, 400, "Rate limit issues", "The WhatsApp Business Account has reached its rate limit."},
	{130403, 400, "Business has blocked the user", "The business has blocked this user."},
	{130429, 400, "Rate limit hit", "Cloud API message throughput has been reached."},
	{130472, 400, "User's number is part of an experiment", "Message was not sent as part of an experiment."},
	{130497, 403, "Business account is restricted from messaging users in this country.",
	"The WhatsApp Business Account is restricted from messaging to users in certain countries."},
	{131000, 500, "Something went wrong", "Message failed to send due to an unknown error."},
	{131005, 403, "Access denied", "Permission is either not granted or has been removed."},
	{131008, 400, "Required parameter is missing", "The request is missing a required parameter."},
	{131009, 400, "Parameter value is not valid", "One or more parameter values are invalid."},
	{131016, 500, "Service unavailable", "A service is temporarily unavailable."},
	{131021, 400, "Recipient cannot be sender", "Sender and recipient phone number is the same."},
	{131026, 400, "Message undeliverable", "Unable to deliver message."},
	{131030, 400, "Recipient phone number not in allowed list", "Recipient phone number not in allowed list."},
	{131031, 403, "Business Account locked", "Business Account has been locked."},
	{131037, 400, "WhatsApp provided number needs display name approval before message can be sent.",
	"The 555 number does not have an approved display name."},
	{131042, 400, "Business eligibility payment issue", "There was an error related to your payment method."},
	{131045, 500, "Incorrect certificate", "Message failed to send due to a phone number registration error."},
	{131047, 400, "Re-engagement message",
	"Message failed to send because more than 24 hours have passed since the customer last replied to this number."},
	{131048, 400, "Spam rate limit hit",
	"Message failed to send because there are restrictions on how many messages can be sent from this phone number."},
	{131049, 400, "This message was not delivered to maintain healthy ecosystem engagement.",
	"In order to maintain a healthy ecosystem engagement, the message failed to be delivered."},
	{131050, 400, "User has stopped marketing messages", "The recipient stopped marketing messages from this business."},
	{131051, 400, "Unsupported message type", "Message type is currently not supported."},
	{131052, 400, "Media download error", "Unable to download the media sent by the user."},
	{131053, 400, "Media upload error", "Unable to upload the media used in the message."},
	{131056, 400, "(Business Account, Consumer Account) pair rate limit hit",
	"Message failed to send because there were too many messages sent from the sender phone number to the same recipient."},
	{131057, 500, "Account in maintenance mode", "Business Account is in maintenance mode."},
	{131062, 400, "Business-scoped user id recipients are not supported", "This message needs a phone number."},
	{131063, 400, "Marketing templates are disabled on Cloud API", "Use the Marketing Messages API."},
	{131064, 400, "Messaging limit reached", "Messaging is limited after template misclassification."},
	{132000, 400, "Number of parameters does not match the expected number of params",
	"The number of variable parameter values included in the request did not match the template."},
	{132001, 404, "Template name does not exist in the translation",
	"The template does not exist in the specified language or the template has not been approved."},
	{132005, 400, "Translated text too long", "Translated text is too long."},
	{132007, 400, "Template format character policy violated", "Template content violates a WhatsApp policy."},
	{132012, 400, "Parameter format does not match format in the created template",
	"Variable parameter values formatted incorrectly."},
	{132015, 400, "Template is Paused", "Template is paused due to low quality so it cannot be sent."},
	{132016, 400, "Template is Disabled", "Template has been paused too many times and is now permanently disabled."},
	{132018, 400, "There was an error validating template parameters", "Validation of the template parameters failed."},
	{132068, 400, "Flow is blocked", "Flow is in blocked state."},
	{132069, 400, "Flow is throttled", "Flow is in throttled state."},
	{133004, 503, "Server Temporarily Unavailable", "Server is temporarily unavailable."},
	{133010, 400, "Phone number Not Registered", "Phone number not registered on the Whatsapp Business Platform."},
	{133016, 400, "Account register deregister rate limit exceeded", "Too many attempts for this phone number."},
	{134011, 400, "Payments terms of service pending", "Accept the payments terms of service."},
	{135000, 400, "Generic user error", "Message failed to send because of an unknown error with your request parameters."},
	{137000, 400, "Identity key hash mismatch", "The identity key hash of the recipient does not match."}
};

/* Find an error by code, or NULL. */
static const MetaError *
find_error(int code)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (errors[i].code == code)
			return &errors[i];
	return NULL;
}

/* Title of an error. */
const char *
meta_error_title(int code)
{
	const MetaError *e = find_error(code);

	return e ? e->title : "Unknown error";
}

/* Details of an error. */
const char *
meta_error_details(int code)
{
	const MetaError *e = find_error(code);

	return e && e->details ? e->details : "Unknown error.";
}

/* HTTP status of an error. */
static int
error_status(int code)
{
	const MetaError *e = find_error(code);

	return e ? e->status : 400;
}

/* Error for an HTTP status alone. */
static int
error_for_status(int status)
{
	switch (status)
	{
		case 401:
			return 190;
		case 403:
			return 10;
		case 404:
			return 132001;
		case 429:
			return 130429;
		case 503:
			return 2;
	}
	return status >= 500 ? 131000 : 100;
}

/* Answer with Meta's error envelope. */
static void
answer_error(Request *req, int status, int code, int subcode, const char *message, const char *details)
{
	Text		body = {0};
	Text		full = {0};
	char		trace[24];

	random_trace_id(trace);
	if (message)
		text_puts(&full, message);
	else
		text_printf(&full, "(#%d) %s", code, meta_error_title(code));
	text_puts(&body, "{\"error\":{\"message\":");
	text_json(&body, full.data);
	text_printf(&body, ",\"type\":\"%s\",\"code\":%d", subcode == 33 ? "GraphMethodException" : "OAuthException", code);
	if (details)
	{
		text_puts(&body, ",\"error_data\":{\"messaging_product\":\"whatsapp\",\"details\":");
		text_json(&body, details);
		text_puts(&body, "}");
	}
	if (subcode)
		text_printf(&body, ",\"error_subcode\":%d", subcode);
	text_printf(&body, ",\"fbtrace_id\":\"%s\"}}", trace);
	text_free(&full);
	answer_text(req, status, "application/json; charset=UTF-8", &body);
	req->answer.headers = json_pack("{s:s}", "x-fb-trace-id", trace);
	if (status == 401)
		json_object_set_new(req->answer.headers, "WWW-Authenticate",
							json_string("OAuth \"Facebook Platform\" \"invalid_token\""));
}

/* Answer with an error of the table. */
static void
word_error(Request *req, int status, int code, int subcode)
{
	const MetaError *e = find_error(code);

	answer_error(req, status, code, subcode, code == 190 ? meta_error_title(190) : NULL, e ? e->details : NULL);
}

/* Answer that a message was accepted. */
static void
word_success(Request *req, Message *msg, bool empty)
{
	Text		body = {0};

	text_printf(&body, "{\"messaging_product\":\"whatsapp\",\"contacts\":[{\"input\":\"%s\",\"wa_id\":\"%s\"}],"
				"\"messages\":[", msg->to + 1, msg->to + 1);
	if (!empty)
		text_printf(&body, "{\"id\":\"%s\",\"message_status\":\"accepted\"}", msg->id);
	text_puts(&body, "]}");
	answer_text(req, 200, "application/json; charset=UTF-8", &body);
	req->answer.headers = json_object();
	json_object_set_new(req->answer.headers, "facebook-api-version", json_string("v25.0"));
}

static const Wording meta_wording = {word_error, error_for_status, error_status, word_success};

/* ---------- sending ---------- */

/* One send while it is checked. */
typedef struct Send
{
	Request    *req;
	Message    *msg;
	const char *to;
	const char *opaque;
	int			code;			/* of the refusal */
} Send;

/* Refuse a send; for use as "return refuse(...)". */
static bool
refuse(Send *s, int code, int subcode, const char *message, const char *details)
{
	if (message == NULL && details == NULL)
		details = meta_error_details(code);
	answer_error(s->req, subcode == 33 ? 400 : error_status(code), code, subcode, message, details);
	s->code = code;
	return false;
}

/* Check the bearer token; the settings are locked. */
static bool
check_token(Send *s, const MetaAccount *account)
{
	const char *authorization = request_header(s->req, "Authorization");
	const char *token = NULL;
	bool		known = false;

	if (authorization && strncmp(authorization, "Bearer ", 7) == 0)
		token = authorization + 7;
	for (int i = 0; token && i < settings.meta_count; i++)
		known = known || strcmp(token, settings.meta[i].token) == 0;
	if (!known)
		return refuse(s, 190, 0, token ? "Invalid OAuth access token - Cannot parse access token" :
					  "An access token is required to request this resource.", NULL);
	if (account == NULL || strcmp(token, account->token) != 0)
	{
		char		message[512];

		snprintf(message, sizeof(message), "Unsupported %s request. Object with ID '%.64s' does not exist, "
				 "cannot be loaded due to missing permissions, or does not support this operation. "
				 "Please read the Graph API documentation at https://developers.facebook.com/docs/graph-api",
				 request_is(s->req, "GET") ? "get" : "post", s->msg ? s->msg->account : "");
		return refuse(s, 100, 33, message, NULL);
	}
	return true;
}

/* The text of the only parameter of a component, or NULL after a refusal. */
static const char *
only_parameter(Send *s, json_t *component, const char *where)
{
	json_t	   *parameters = json_object_get(component, "parameters");
	json_t	   *parameter = json_array_get(parameters, 0);
	const char *type = json_string_value(json_object_get(parameter, "type"));
	const char *text = json_string_value(json_object_get(parameter, "text"));
	char		details[256];

	if (json_array_size(parameters) != 1)
	{
		snprintf(details, sizeof(details), "%s: number of localizable_params (%d) does not match the expected "
				 "number of params (1)", where, (int) json_array_size(parameters));
		refuse(s, 132000, 0, NULL, details);
		return NULL;
	}
	if (type == NULL || strcmp(type, "text") != 0 || text == NULL)
	{
		snprintf(details, sizeof(details), "%s: Parameter type text is expected", where);
		refuse(s, 132012, 0, NULL, details);
		return NULL;
	}
	if (*text == '\0' || utf8_length(text) > MAX_CODE_CHARS)
	{
		snprintf(details, sizeof(details), "%s: Param text must have 1 to %d characters", where, MAX_CODE_CHARS);
		refuse(s, 132018, 0, NULL, details);
		return NULL;
	}
	return text;
}

/* Check the components of an authentication template. */
static bool
check_components(Send *s, json_t *components)
{
	const char *body_code = NULL;
	const char *button_code = NULL;
	json_t	   *component;
	size_t		i;

	if (components && !json_is_array(components))
		return refuse(s, 100, 0, "(#100) Param template['components'] must be an array.", NULL);
	json_array_foreach(components, i, component)
	{
		const char *type = json_string_value(json_object_get(component, "type"));

		if (type && strcmp(type, "body") == 0 && body_code == NULL)
		{
			body_code = only_parameter(s, component, "body");
			if (body_code == NULL)
				return false;
		}
		else if (type && strcmp(type, "button") == 0 && button_code == NULL)
		{
			const char *sub_type = json_string_value(json_object_get(component, "sub_type"));
			const char *index = json_string_value(json_object_get(component, "index"));

			if (sub_type == NULL || strcmp(sub_type, "url") != 0)
				return refuse(s, 132018, 0, NULL, "buttons: sub_type must be url");
			if (index == NULL || strcmp(index, "0") != 0)
				return refuse(s, 132018, 0, NULL, "buttons: index must be the string \"0\"");
			button_code = only_parameter(s, component, "button at index 0");
			if (button_code == NULL)
				return false;
		}
		else
			return refuse(s, 132018, 0, NULL, "components: one body and one button are expected");
	}
	if (body_code == NULL)
		return refuse(s, 132000, 0, NULL,
					  "body: number of localizable_params (0) does not match the expected number of params (1)");
	if (button_code == NULL)
		return refuse(s, 132000, 0, NULL,
					  "buttons: Button at index 0 of type Url requires a parameter");
	if (strcmp(body_code, button_code) != 0)
		return refuse(s, 132018, 0, NULL, "the body and the button must carry the same code");
	s->msg->code = must_copy(body_code);
	return true;
}

/* Check the template is one that may be sent; the settings are locked. */
static bool
check_template(Send *s, const char *name, const char *language)
{
	const Template *t = settings_template(name, language);
	char		details[256];

	if (t && strcmp(t->status, "PAUSED") == 0)
		return refuse(s, 132015, 0, NULL, NULL);
	if (t && strcmp(t->status, "DISABLED") == 0)
		return refuse(s, 132016, 0, NULL, NULL);
	if (t && strcmp(t->status, "APPROVED") == 0)
		return true;
	snprintf(details, sizeof(details), "template name (%.64s) does not exist in %.16s", name, language);
	return refuse(s, 132001, 0, NULL, details);
}

/* Check the body of a send. */
static bool
check_body(Send *s, json_t *body)
{
	static const char *const known[] = {
		"messaging_product", "recipient_type", "to", "type", "template", "biz_opaque_callback_data", "context", NULL
	};
	json_t	   *template = json_object_get(body, "template");
	json_t	   *opaque = json_object_get(body, "biz_opaque_callback_data");
	const char *product = json_string_value(json_object_get(body, "messaging_product"));
	const char *recipient_type = json_string_value(json_object_get(body, "recipient_type"));
	const char *type = json_string_value(json_object_get(body, "type"));
	const char *name = json_string_value(json_object_get(template, "name"));
	const char *language = json_string_value(json_object_get(json_object_get(template, "language"), "code"));
	const char *digits;
	const char *key;
	json_t	   *value;
	bool		good;

	/*
	 * who it is for comes first, so that even a refused request is logged
	 * well
	 */
	s->to = json_string_value(json_object_get(body, "to"));
	s->opaque = json_string_value(opaque);

	/* a message that is not the first has its number behind the id */
	s->msg->opaque = must_copy(s->opaque);
	s->msg->otp_id = s->opaque ? must_copy_n(s->opaque, strcspn(s->opaque, "/")) : NULL;

	if (!json_is_object(body))
		return refuse(s, 100, 0, "(#100) Invalid parameter", NULL);
	json_object_foreach(body, key, value)
	{
		int			k = 0;

		while (known[k] && strcmp(known[k], key) != 0)
			k++;
		if (known[k] == NULL)
		{
			char		message[128];

			snprintf(message, sizeof(message), "(#100) Unexpected key \"%.64s\" on param", key);
			return refuse(s, 100, 0, message, NULL);
		}
	}
	if (product == NULL)
		return refuse(s, 100, 0, "(#100) The parameter messaging_product is required.", NULL);
	if (strcmp(product, "whatsapp") != 0)
		return refuse(s, 100, 0, "(#100) Param messaging_product must be one of {WHATSAPP} - got something else.", NULL);
	if (recipient_type && strcmp(recipient_type, "individual") != 0)
		return refuse(s, 100, 0, "(#100) Param recipient_type must be one of {individual, group}.", NULL);
	if (s->to == NULL)
		return refuse(s, 100, 0, "(#100) The parameter to is required.", NULL);
	digits = s->to + (*s->to == '+');
	if (strspn(digits, "0123456789") != strlen(digits) || strlen(digits) < 7 || strlen(digits) > 15)
		return refuse(s, 131009, 0, NULL, "Parameter 'to' is not a valid phone number.");
	snprintf(s->msg->to, sizeof(s->msg->to), "+%s", digits);
	if (type == NULL)
		return refuse(s, 100, 0, "(#100) The parameter type is required.", NULL);
	if (strcmp(type, "template") != 0)
		return refuse(s, 131047, 0, NULL, NULL);	/* nobody wrote to us:
													 * templates only */
	if (name == NULL)
		return refuse(s, 131008, 0, NULL, "Parameter 'template[name]' is mandatory for type 'template'");
	if (language == NULL)
		return refuse(s, 131008, 0, NULL, "Parameter 'template[language][code]' is mandatory for type 'template'");
	if (opaque && (s->opaque == NULL || utf8_length(s->opaque) > MAX_OPAQUE_CHARS))
		return refuse(s, 100, 0, "(#100) Param biz_opaque_callback_data must be a string of at most 512 characters.", NULL);

	pthread_rwlock_rdlock(&settings_lock);
	good = check_template(s, name, language);
	pthread_rwlock_unlock(&settings_lock);
	if (!good || !check_components(s, json_object_get(template, "components")))
		return false;

	s->msg->template_name = must_copy(name);
	s->msg->language = must_copy(language);
	return true;
}

/* The text a phone shows for an authentication template. */
static char *
shown_text(const char *code, const char *language)
{
	static const struct
	{
		const char *language;
		const char *format;
	}			texts[] = {
		{"es", "*%s* es tu código de verificación. Por tu seguridad, no lo compartas."},
		{"pt", "Seu código de verificação é *%s*. Para sua segurança, não o compartilhe."},
		{"fr", "Votre code de vérification est *%s*. Pour votre sécurité, ne le partagez pas."},
		{"de", "*%s* ist dein Verifizierungscode. Teile diesen Code zu deiner Sicherheit nicht."}
	};
	const char *format = "*%s* is your verification code. For your security, do not share this code.";
	const char *mark;
	Text		text = {0};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (strncmp(language, texts[i].language, 2) == 0)
			format = texts[i].format;
	mark = strstr(format, "%s");
	text_add(&text, format, mark - format);
	text_puts(&text, code);
	text_puts(&text, mark + 2);
	return text.data;
}

/* Is the content type JSON? */
static bool
is_json(Request *req)
{
	const char *type = request_header(req, "Content-Type");

	return type && strncasecmp(type, "application/json", 16) == 0 &&
		(type[16] == '\0' || type[16] == ';' || type[16] == ' ');
}

/* POST /vNN.N/{phone_number_id}/messages */
static void
handle_send(Request *req, const char *phone_number_id)
{
	Send		s = {.req = req};
	json_t	   *body = NULL;
	json_error_t error;
	bool		good;

	s.msg = message_new(API_META);
	s.msg->account = must_copy(phone_number_id);
	s.msg->from = must_copy(phone_number_id);
	s.msg->received_us = req->received_us;
	s.msg->status = "accepted";

	pthread_rwlock_rdlock(&settings_lock);
	good = check_token(&s, settings_meta(phone_number_id));
	pthread_rwlock_unlock(&settings_lock);
	if (good && !is_json(req))
		good = refuse(&s, 100, 0, "(#100) The parameter messaging_product is required.", NULL);
	if (good)
	{
		body = json_loadb(req->body.data, req->body.len, JSON_REJECT_DUPLICATES, &error);
		if (body == NULL)
			good = refuse(&s, 100, 0, "(#100) Invalid parameter", "The request body is not valid JSON.");
		else
			good = check_body(&s, body);
	}
	if (good)
	{
		s.msg->text = shown_text(s.msg->code, s.msg->language);
		s.msg->raw = must_copy_n(req->body.data, req->body.len);
		s.msg->raw_len = req->body.len;
		send_conclude(req, s.msg, &meta_wording);
	}
	else
	{
		journal_add(req, API_META, "send", OUTCOME_REFUSED, req->answer.status, s.code, false,
					s.msg->to[0] ? s.msg->to : s.to, s.msg->otp_id);
		message_unref(s.msg);
	}
	json_decref(body);
}

/* ---------- templates ---------- */

/* Describe a template as a list shows it; the settings are locked. */
static void
describe_template(Text *out, const Template *t)
{
	char	   *components = t->components ? json_dumps(t->components, JSON_COMPACT) : NULL;

	text_puts(out, "{\"name\":");
	text_json(out, t->name);
	text_puts(out, ",\"status\":");
	text_json(out, t->status);
	text_puts(out, ",\"category\":");
	text_json(out, t->category);
	text_puts(out, ",\"language\":");
	text_json(out, t->language);
	text_printf(out, ",\"id\":\"%s\",\"components\":%s}", t->id, components ? components :
				"[{\"type\":\"BODY\",\"text\":\"*{{1}}* is your verification code. For your security, do not share "
				"this code.\",\"add_security_recommendation\":true,\"example\":{\"body_text\":[[\"123456\"]]}},"
				"{\"type\":\"BUTTONS\",\"buttons\":[{\"type\":\"URL\",\"text\":\"Copy code\",\"url\":"
				"\"https://www.whatsapp.com/otp/code/?otp_type=COPY_CODE&code=otp{{1}}\",\"example\":"
				"[\"https://www.whatsapp.com/otp/code/?otp_type=COPY_CODE&code=otp123456\"]}]}]");
	free(components);
}

/* GET .../message_templates; the settings are locked. */
static void
list_templates(Request *req)
{
	const char *name = request_arg(req, "name");
	const char *limit_arg = request_arg(req, "limit");
	const char *after_arg = request_arg(req, "after");
	const char *host = request_header(req, "Host");
	int			limit = limit_arg ? atoi(limit_arg) : 25;
	int			skip = after_arg && strncmp(after_arg, "MTk", 3) == 0 ? atoi(after_arg + 3) : 0;
	int			n = 0;
	int			shown = 0;
	Text		body = {0};

	if (limit <= 0)
		limit = 25;
	text_puts(&body, "{\"data\":[");
	for (int i = 0; i < settings.template_count; i++)
	{
		if (name && strcmp(name, settings.templates[i].name) != 0)
			continue;
		n++;
		if (n <= skip || shown == limit)
			continue;
		text_puts(&body, shown++ ? "," : "");
		describe_template(&body, &settings.templates[i]);
	}
	text_puts(&body, "]");
	if (shown > 0)
	{
		text_printf(&body, ",\"paging\":{\"cursors\":{\"before\":\"MTk%d\",\"after\":\"MTk%d\"}", skip, skip + shown);
		if (n > skip + shown)
		{
			text_printf(&body, ",\"next\":\"%s://%s%s?limit=%d", req->secure ? "https" : "http",
						host ? host : "127.0.0.1", req->url, limit);
			if (name)
				text_printf(&body, "&name=%s", name);
			text_printf(&body, "&after=MTk%d\"", skip + shown);
		}
		text_puts(&body, "}");
	}
	text_puts(&body, "}");
	answer_text(req, 200, "application/json; charset=UTF-8", &body);
}

/* Is a string of a JSON object this one? */
static bool
member_is(json_t *object, const char *key, const char *value)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text && strcmp(text, value) == 0;
}

/* Check the one-time password button; what is wrong with it, or NULL. */
static const char *
check_otp_button(json_t *button)
{
	json_t	   *app = json_array_get(json_object_get(button, "supported_apps"), 0);
	bool		copy_code = member_is(button, "otp_type", "COPY_CODE");
	bool		zero_tap = member_is(button, "otp_type", "ZERO_TAP");

	if (!member_is(button, "type", "OTP"))
		return "the button must be of type OTP";
	if (!copy_code && !zero_tap && !member_is(button, "otp_type", "ONE_TAP"))
		return "otp_type must be COPY_CODE, ONE_TAP or ZERO_TAP";
	if (!copy_code && (!json_is_string(json_object_get(app, "package_name")) ||
					   json_string_length(json_object_get(app, "signature_hash")) != 11))
		return "supported_apps needs package_name and signature_hash";
	if (zero_tap && !json_is_true(json_object_get(button, "zero_tap_terms_accepted")))
		return "zero_tap_terms_accepted is required";
	return NULL;
}

/* Check an authentication template; what is wrong with it, or NULL. */
static const char *
check_authentication(json_t *body)
{
	json_t	   *ttl = json_object_get(body, "message_send_ttl_seconds");
	json_t	   *component;
	bool		has_body = false;
	bool		has_button = false;
	size_t		i;

	if (ttl && json_integer_value(ttl) != -1 &&
		(json_integer_value(ttl) < 30 || json_integer_value(ttl) > 900))
		return "message_send_ttl_seconds must be 30 to 900";
	json_array_foreach(json_object_get(body, "components"), i, component)
	{
		json_t	   *minutes = json_object_get(component, "code_expiration_minutes");
		json_t	   *buttons = json_object_get(component, "buttons");

		if (json_object_get(component, "text"))
			return "the text of an authentication template cannot be chosen";
		if (member_is(component, "type", "BODY"))
			has_body = true;
		else if (member_is(component, "type", "FOOTER"))
		{
			if (json_integer_value(minutes) < 1 || json_integer_value(minutes) > 90)
				return "code_expiration_minutes must be 1 to 90";
		}
		else if (member_is(component, "type", "BUTTONS") && json_array_size(buttons) == 1)
		{
			const char *wrong = check_otp_button(json_array_get(buttons, 0));

			if (wrong)
				return wrong;
			has_button = true;
		}
		else
			return "a component is not of an authentication template";
	}
	return has_body && has_button ? NULL : "a body and a button are required";
}

/* POST .../message_templates; the settings are locked exclusively. */
static bool
create_template(Send *s)
{
	Request    *req = s->req;
	json_t	   *body = json_loadb(req->body.data, req->body.len, 0, NULL);
	const char *name = json_string_value(json_object_get(body, "name"));
	const char *language = json_string_value(json_object_get(body, "language"));
	const char *category = json_string_value(json_object_get(body, "category"));
	json_t	   *components = json_object_get(body, "components");
	bool		good = false;

	if (name == NULL || *name == '\0' || strlen(name) > 512 ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name))
		refuse(s, 100, 0, "Invalid parameter", "name must be 1 to 512 of a-z, 0-9 and _");
	else if (language == NULL || category == NULL || !json_is_array(components))
		refuse(s, 100, 0, "Invalid parameter", "language, category and components are required");
	else if (settings_template(name, language))
		refuse(s, 100, 2388024, "Invalid parameter", "Content in this language already exists");
	else if (strcmp(category, "AUTHENTICATION") == 0 && check_authentication(body))
		refuse(s, 100, 2388042, "Invalid parameter", check_authentication(body));
	else
	{
		Template   *t = settings_add_template(name, language, "PENDING", category, components);

		answer_printf(req, 200, "{\"id\":\"%s\",\"status\":\"PENDING\",\"category\":\"%.32s\"}", t->id, category);
		good = true;
	}
	json_decref(body);
	return good;
}

/* Do what a request at the templates asks for; the settings are locked. */
static bool
serve_templates(Send *s)
{
	Request    *req = s->req;
	const char *name = request_arg(req, "name");

	if (request_is(req, "GET"))
		list_templates(req);
	else if (request_is(req, "POST"))
		return create_template(s);
	else if (!request_is(req, "DELETE") || name == NULL)
		return refuse(s, 100, 0, NULL, NULL);
	else if (!settings_drop_template(name))
		return refuse(s, 100, 0, "Invalid parameter", "The template does not exist");
	else
		answer_printf(req, 200, "{\"success\":true}");
	return true;
}

/* Answer at the templates as the rules say; the settings are locked. */
static Outcome
behave_at_templates(Send *s, const Rule *rule)
{
	Request    *req = s->req;
	Answer	   *a = &req->answer;
	Outcome		outcome = OUTCOME_REFUSED;

	if (rule->hang)
	{
		a->kind = ANSWER_HANG;
		return OUTCOME_HUNG;
	}
	if (rule->reset_before || rule->reset_after)
	{
		if (rule->reset_after)
			serve_templates(s);
		a->kind = ANSWER_RESET;
		return OUTCOME_RESET;
	}
	if (rule->raw)
	{
		Text		raw = {0};

		text_add(&raw, rule->raw, rule->raw_len);
		answer_text(req, rule->status ? rule->status : 200, "text/plain", &raw);
		outcome = OUTCOME_ACCEPTED;
	}
	else if (rule->code >= 0 || rule->status >= 300)
	{
		s->code = rule->code >= 0 ? rule->code : error_for_status(rule->status);
		word_error(req, rule->status ? rule->status : error_status(s->code), s->code, rule->subcode);
	}
	else if (serve_templates(s))
		outcome = OUTCOME_ACCEPTED;
	a->delay_ms = rule->delay_ms;
	a->retry_after = rule->retry_after;
	a->truncate = rule->truncate;
	a->slow_body_ms = rule->slow_body_ms;
	a->huge_bytes = rule->huge_bytes;
	return outcome;
}

/* /vNN.N/{waba_id}/message_templates */
static void
handle_templates(Request *req, const char *waba_id)
{
	Send		s = {.req = req};
	MetaAccount *account = NULL;
	Effect		effect = {0};
	Outcome		outcome = OUTCOME_REFUSED;
	const char *operation = request_is(req, "GET") ? "list_templates" :
	request_is(req, "POST") ? "create_template" : "templates";

	s.msg = message_new(API_META);
	s.msg->account = must_copy(waba_id);
	pthread_rwlock_wrlock(&settings_lock);
	for (int i = 0; i < settings.meta_count && account == NULL; i++)
		if (strcmp(settings.meta[i].waba_id, waba_id) == 0)
			account = &settings.meta[i];
	if (check_token(&s, account))
	{
		behaviour_pick(&effect, API_META, waba_id, "");
		if (effect.doing)
			outcome = behave_at_templates(&s, effect.doing);
		else if (serve_templates(&s))
			outcome = OUTCOME_ACCEPTED;
		behaviour_done(&effect);
	}
	pthread_rwlock_unlock(&settings_lock);
	journal_add(req, API_META, operation, outcome, req->answer.status, s.code, false, NULL, NULL);
	message_unref(s.msg);
}

/* GET /vNN.N/{phone_number_id}?fields=... */
static void
handle_phone_number(Request *req, const char *phone_number_id)
{
	Send		s = {.req = req};
	const char *fields = request_arg(req, "fields");
	MetaAccount *account;
	bool		good;

	s.msg = message_new(API_META);
	s.msg->account = must_copy(phone_number_id);
	pthread_rwlock_rdlock(&settings_lock);
	account = settings_meta(phone_number_id);
	good = check_token(&s, account);
	if (good)
	{
		Text		body = {0};

		text_puts(&body, "{");
		if (fields == NULL || strstr(fields, "verified_name"))
			text_puts(&body, "\"verified_name\":\"Simulated Business\",");
		if (fields == NULL || strstr(fields, "display_phone_number"))
		{
			text_puts(&body, "\"display_phone_number\":");
			text_json(&body, account->display_phone_number);
			text_puts(&body, ",");
		}
		if (fields == NULL || strstr(fields, "quality_rating"))
			text_puts(&body, "\"quality_rating\":\"GREEN\",");
		text_printf(&body, "\"id\":\"%s\"}", phone_number_id);
		answer_text(req, 200, "application/json; charset=UTF-8", &body);
	}
	pthread_rwlock_unlock(&settings_lock);
	journal_add(req, API_META, "phone_number", good ? OUTCOME_ACCEPTED : OUTCOME_REFUSED, req->answer.status,
				s.code, false, NULL, NULL);
	message_unref(s.msg);
}

/* Answer a request if its address is one of Meta's. */
bool
meta_handle(Request *req)
{
	const char *p = req->url;
	char		id[32];
	size_t		len;

	/* /vNN.N/{id} */
	if (strncmp(p, "/v", 2) != 0)
		return false;
	p += 2;
	len = strspn(p, "0123456789");
	if (len == 0 || p[len] != '.')
		return false;
	p += len + 1;
	len = strspn(p, "0123456789");
	if (len == 0 || p[len] != '/')
		return false;
	p += len + 1;
	len = strspn(p, "0123456789");
	if (len == 0 || len >= sizeof(id))
		return false;
	memcpy(id, p, len);
	id[len] = '\0';
	p += len;

	if (settings.down)
	{
		word_error(req, 503, 2, 0);
		journal_add(req, API_META, strcmp(p, "/messages") == 0 ? "send" : "other", OUTCOME_REFUSED, 503, 2,
					false, NULL, NULL);
	}
	else if (strcmp(p, "/messages") == 0 && request_is(req, "POST"))
		handle_send(req, id);
	else if (strcmp(p, "/message_templates") == 0)
		handle_templates(req, id);
	else if (*p == '\0' && request_is(req, "GET"))
		handle_phone_number(req, id);
	else
	{
		answer_error(req, 400, 2500, 0, "Unknown path components", NULL);
		journal_add(req, API_META, "other", OUTCOME_REFUSED, 400, 2500, false, NULL, NULL);
	}
	return true;
}
