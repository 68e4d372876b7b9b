/*
 * settings.c
 *		Accounts, credentials and templates the simulator knows.
 *
 * Readers hold settings_lock shared; only /_sim/config and the template API
 * hold it exclusively.
 */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

Settings	settings;
pthread_rwlock_t settings_lock = PTHREAD_RWLOCK_INITIALIZER;

/* Replace one malloc'd setting. */
void
settings_set(char **where, const char *value)
{
	free(*where);
	*where = must_copy(value);
}

/* Add a Meta account with the defaults of the first. */
static MetaAccount *
add_meta(const char *phone_number_id)
{
	MetaAccount *account;

	settings.meta = realloc(settings.meta, (settings.meta_count + 1) * sizeof(MetaAccount));
	account = memset(&settings.meta[settings.meta_count], 0, sizeof(MetaAccount));
	account->phone_number_id = must_copy(phone_number_id);
	account->waba_id = must_copy(settings.meta_count ? settings.meta[0].waba_id : "102290129340398");
	account->token = must_copy(settings.meta_count ? settings.meta[0].token : "EAAtest-token");
	account->app_secret = must_copy(settings.meta_count ? settings.meta[0].app_secret :
									"0123456789abcdef0123456789abcdef");
	account->display_phone_number = must_copy("15550783881");
	settings.meta_count++;
	return account;
}

/* Add a Twilio account with the defaults of the first. */
static TwilioAccount *
add_twilio(const char *account_sid)
{
	TwilioAccount *account;

	settings.twilio = realloc(settings.twilio, (settings.twilio_count + 1) * sizeof(TwilioAccount));
	account = memset(&settings.twilio[settings.twilio_count], 0, sizeof(TwilioAccount));
	account->account_sid = must_copy(account_sid);
	account->auth_token = must_copy(settings.twilio_count ? settings.twilio[0].auth_token :
									"12345678901234567890123456789012");
	account->api_key_sid = must_copy(settings.twilio_count ? settings.twilio[0].api_key_sid :
									 "SK0123456789abcdef0123456789abcdef");
	account->api_key_secret = must_copy(settings.twilio_count ? settings.twilio[0].api_key_secret :
										"api-key-secret");
	settings.twilio_count++;
	return account;
}

/* Set what the command line may override. */
void
settings_default(void)
{
	settings.threads = 2;
	settings.inbox_limit = 200000;
	settings.log_limit = 2000000;
	settings.callback_retries = 5;
	settings.callback_retry_ms = 200;
	add_meta("106540352242922");
	add_twilio("AC0123456789abcdef0123456789abcdef");
	settings_add_template("otp_verification", "en_US", "APPROVED", "AUTHENTICATION", NULL);
}

/* Find a Meta account; the lock is held. */
MetaAccount *
settings_meta(const char *phone_number_id)
{
	for (int i = 0; i < settings.meta_count; i++)
		if (strcmp(settings.meta[i].phone_number_id, phone_number_id) == 0)
			return &settings.meta[i];
	return NULL;
}

/* Find a Twilio account; the lock is held. */
TwilioAccount *
settings_twilio(const char *account_sid)
{
	for (int i = 0; i < settings.twilio_count; i++)
		if (strcmp(settings.twilio[i].account_sid, account_sid) == 0)
			return &settings.twilio[i];
	return NULL;
}

/* Find a template; the lock is held. */
Template *
settings_template(const char *name, const char *language)
{
	for (int i = 0; i < settings.template_count; i++)
		if (strcmp(settings.templates[i].name, name) == 0 &&
			strcmp(settings.templates[i].language, language) == 0)
			return &settings.templates[i];
	return NULL;
}

/* Add or change a template; the lock is held exclusively. */
Template *
settings_add_template(const char *name, const char *language, const char *status,
					  const char *category, json_t *components)
{
	Template   *t = settings_template(name, language);

	if (t == NULL)
	{
		settings.templates = realloc(settings.templates,
									 (settings.template_count + 1) * sizeof(Template));
		t = memset(&settings.templates[settings.template_count], 0, sizeof(Template));
		t->name = must_copy(name);
		t->language = must_copy(language);
		snprintf(t->id, sizeof(t->id), "57227919845%04d", 2421 + settings.template_count);
		settings.template_count++;
	}
	settings_set(&t->status, status);
	settings_set(&t->category, category);
	if (components)
	{
		json_decref(t->components);
		t->components = json_incref(components);
	}
	return t;
}

/* Drop a template in all its languages; the lock is held exclusively. */
bool
settings_drop_template(const char *name)
{
	int			kept = 0;
	int			before = settings.template_count;

	for (int i = 0; i < before; i++)
	{
		Template   *t = &settings.templates[i];

		if (strcmp(t->name, name) != 0)
		{
			settings.templates[kept++] = *t;
			continue;
		}
		free(t->name);
		free(t->language);
		free(t->status);
		free(t->category);
		json_decref(t->components);
	}
	settings.template_count = kept;
	return kept < before;
}

/* Tell the callback URL that a template changed its status. */
static void
notify_template(const Template *t)
{
	CallbackSpec spec = {.status = "template", .times = 1};
	Text		body = {0};

	text_printf(&body, "{\"object\":\"whatsapp_business_account\",\"entry\":[{\"id\":\"%s\",\"time\":%lld,"
				"\"changes\":[{\"value\":{\"event\":\"%s\",\"message_template_id\":%s,"
				"\"message_template_name\":\"%s\",\"message_template_language\":\"%s\","
				"\"reason\":\"NONE\",\"message_template_category\":\"%s\"},"
				"\"field\":\"message_template_status_update\"}]}]}",
				settings.meta[0].waba_id, (long long) time(NULL), t->status, t->id, t->name,
				t->language, t->category);
	callback_raw(settings.meta[0].phone_number_id, NULL, body.data, &spec);
}

/* Take a string member if it is there. */
static void
take_string(json_t *object, const char *key, char **where)
{
	json_t	   *value = json_object_get(object, key);

	if (json_is_string(value))
		settings_set(where, json_string_value(value));
	else if (json_is_null(value))
		settings_set(where, NULL);
}

/*
 * Apply the body of POST /_sim/config.  Returns what is wrong with it, or
 * NULL.
 */
const char *
settings_apply(json_t *config)
{
	static const char *const known[] = {
		"token", "phone_number_id", "waba_id", "app_secret", "account_sid", "auth_token",
		"api_key_sid", "api_key_secret", "callback_url", "callback_rewrite", "callback_retries",
		"callback_retry_ms", "templates", "down", "latency_ms", "meta_accounts",
		"twilio_accounts", NULL
	};
	const char *key;
	json_t	   *value;
	json_t	   *entry;
	size_t		i;

	if (!json_is_object(config))
		return "a JSON object is expected";
	json_object_foreach(config, key, value)
	{
		int			k = 0;

		while (known[k] && strcmp(known[k], key) != 0)
			k++;
		if (known[k] == NULL)
			return "unknown key";
	}

	json_array_foreach(json_object_get(config, "templates"), i, entry)
	{
		if (!json_is_string(json_object_get(entry, "name")) ||
			!json_is_string(json_object_get(entry, "language")))
			return "a template needs name and language";
	}
	json_array_foreach(json_object_get(config, "meta_accounts"), i, entry)
	{
		if (!json_is_string(json_object_get(entry, "phone_number_id")))
			return "a Meta account needs phone_number_id";
	}
	json_array_foreach(json_object_get(config, "twilio_accounts"), i, entry)
	{
		if (!json_is_string(json_object_get(entry, "account_sid")))
			return "a Twilio account needs account_sid";
	}

	pthread_rwlock_wrlock(&settings_lock);
	take_string(config, "token", &settings.meta[0].token);
	take_string(config, "phone_number_id", &settings.meta[0].phone_number_id);
	take_string(config, "waba_id", &settings.meta[0].waba_id);
	take_string(config, "app_secret", &settings.meta[0].app_secret);
	take_string(config, "account_sid", &settings.twilio[0].account_sid);
	take_string(config, "auth_token", &settings.twilio[0].auth_token);
	take_string(config, "api_key_sid", &settings.twilio[0].api_key_sid);
	take_string(config, "api_key_secret", &settings.twilio[0].api_key_secret);
	take_string(config, "callback_url", &settings.callback_url);

	value = json_object_get(config, "callback_rewrite");
	if (value)
	{
		settings_set(&settings.rewrite_from, json_string_value(json_object_get(value, "from")));
		settings_set(&settings.rewrite_to, json_string_value(json_object_get(value, "to")));
	}
	value = json_object_get(config, "callback_retries");
	if (value)
		settings.callback_retries = (int) json_integer_value(value);
	value = json_object_get(config, "callback_retry_ms");
	if (value)
		settings.callback_retry_ms = (int) json_integer_value(value);
	value = json_object_get(config, "latency_ms");
	if (value)
		settings.latency_ms = (int) json_integer_value(value);
	value = json_object_get(config, "down");
	if (value)
		settings.down = json_is_true(value);

	json_array_foreach(json_object_get(config, "meta_accounts"), i, entry)
	{
		const char *id = json_string_value(json_object_get(entry, "phone_number_id"));
		MetaAccount *account = settings_meta(id);

		if (account == NULL)
			account = add_meta(id);
		take_string(entry, "waba_id", &account->waba_id);
		take_string(entry, "token", &account->token);
		take_string(entry, "app_secret", &account->app_secret);
		take_string(entry, "display_phone_number", &account->display_phone_number);
	}
	json_array_foreach(json_object_get(config, "twilio_accounts"), i, entry)
	{
		const char *sid = json_string_value(json_object_get(entry, "account_sid"));
		TwilioAccount *account = settings_twilio(sid);

		if (account == NULL)
			account = add_twilio(sid);
		take_string(entry, "auth_token", &account->auth_token);
		take_string(entry, "api_key_sid", &account->api_key_sid);
		take_string(entry, "api_key_secret", &account->api_key_secret);
	}
	json_array_foreach(json_object_get(config, "templates"), i, entry)
	{
		const char *status = json_string_value(json_object_get(entry, "status"));
		const char *category = json_string_value(json_object_get(entry, "category"));
		Template   *t = settings_add_template(json_string_value(json_object_get(entry, "name")),
											  json_string_value(json_object_get(entry, "language")),
											  status ? status : "APPROVED",
											  category ? category : "AUTHENTICATION",
											  json_object_get(entry, "components"));

		if (json_is_true(json_object_get(entry, "notify")))
			notify_template(t);
	}
	pthread_rwlock_unlock(&settings_lock);
	return NULL;
}

/* Describe what may be told without secrets. */
void
settings_describe(Text *out)
{
	pthread_rwlock_rdlock(&settings_lock);
	text_puts(out, "{\"phone_number_ids\":[");
	for (int i = 0; i < settings.meta_count; i++)
	{
		text_puts(out, i ? "," : "");
		text_json(out, settings.meta[i].phone_number_id);
	}
	text_puts(out, "],\"account_sids\":[");
	for (int i = 0; i < settings.twilio_count; i++)
	{
		text_puts(out, i ? "," : "");
		text_json(out, settings.twilio[i].account_sid);
	}
	text_puts(out, "],\"templates\":[");
	for (int i = 0; i < settings.template_count; i++)
	{
		text_puts(out, i ? ",{\"name\":" : "{\"name\":");
		text_json(out, settings.templates[i].name);
		text_puts(out, ",\"language\":");
		text_json(out, settings.templates[i].language);
		text_puts(out, ",\"status\":");
		text_json(out, settings.templates[i].status);
		text_puts(out, "}");
	}
	text_puts(out, "],\"callback_url\":");
	text_json(out, settings.callback_url);
	text_printf(out, ",\"down\":%s,\"latency_ms\":%d,\"sink\":%s}\n", settings.down ? "true" : "false",
				(int) settings.latency_ms, settings.sink ? "true" : "false");
	pthread_rwlock_unlock(&settings_lock);
}
