/*-------------------------------------------------------------------------
 *
 * meta.c
 *	  WhatsApp by Meta's Cloud API.
 *
 * Messages are sent from an approved authentication template, in which the
 * code stands twice: in the text, and behind the button that copies it. The
 * verification's id goes along as biz_opaque_callback_data, and comes back
 * with every receipt; so does the number of any message but the first. There
 * is no key that would make a repeat harmless.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "lib/stringinfo.h"

#include "base/json.h"
#include "base/phone.h"
#include "channel/channel.h"

#define META_BASE_URL "https://graph.facebook.com"
#define META_API_VERSION "v25.0"

/* Longest code an authentication template takes */
#define META_MAX_CODE 15
/* Longest template name */
#define META_MAX_TEMPLATE 512
/* "zh_Hant_TW" and its like */
#define META_MAX_LANGUAGE 24

/* A minute is what is left of patience when an hourly limit is reached */
#define META_SLOW_MS 60000
/* Limit of messages per second: the next second is another */
#define META_THROUGHPUT_MS 1000
/* One message in 6 s to the same recipient */
#define META_PAIR_MS 6000
/* An upgrade of the throughput takes up to a minute */
#define META_MAINTENANCE_MS 10000
/* Too many recipients complained: nothing will change within a code's life */
#define META_SPAM_MS 300000

#define F CODE_FALLBACK

/* What Meta's codes mean (support/error-codes in Meta's documentation) */
static const ChannelCode codes[] = {
	/* The token, its permissions, the account: nothing will get through */
	{0, 0, VERDICT_ACCOUNT, F, 0},	/* could not authenticate */
	{190, 190, VERDICT_ACCOUNT, F, 0},	/* token expired or invalid */
	{3, 3, VERDICT_ACCOUNT, F, 0},	/* capability or permission */
	{10, 10, VERDICT_ACCOUNT, F, 0},	/* permission not granted */
	{200, 299, VERDICT_ACCOUNT, F, 0},	/* API permission */
	{131005, 131005, VERDICT_ACCOUNT, F, 0},	/* access denied */
	{33, 33, VERDICT_ACCOUNT, F | CODE_SENDER, 0},	/* phone number deleted */
	{368, 368, VERDICT_ACCOUNT, F, 0},	/* blocked for policy violations */
	{131031, 131031, VERDICT_ACCOUNT, F, 0},	/* locked */
	{131064, 131064, VERDICT_ACCOUNT, F, 0},	/* limited, wrong category */
	{131048, 131048, VERDICT_ACCOUNT, F | CODE_SENDER, META_SPAM_MS},	/* spam rate limit */
	{131042, 131042, VERDICT_ACCOUNT, F, 0},	/* payment */
	{131045, 131045, VERDICT_ACCOUNT, F | CODE_SENDER, 0},	/* number's certificate */
	{133010, 133010, VERDICT_ACCOUNT, F | CODE_SENDER, 0},	/* number not registered */
	{133000, 133000, VERDICT_ACCOUNT, F | CODE_SENDER, 0},	/* registration and PIN
															 * ... */
	{133005, 133006, VERDICT_ACCOUNT, F | CODE_SENDER, 0},
	{133008, 133009, VERDICT_ACCOUNT, F | CODE_SENDER, 0},
	{133015, 133015, VERDICT_ACCOUNT, F | CODE_SENDER, 0},
	{131037, 131037, VERDICT_ACCOUNT, F | CODE_SENDER, 0},	/* display name not
															 * approved */
	{134011, 134011, VERDICT_ACCOUNT, F, 0},	/* terms not accepted */

	/* Too fast */
	{4, 4, VERDICT_RETRY, F | CODE_OVERLOADED, META_SLOW_MS},	/* app */
	{80007, 80007, VERDICT_RETRY, F | CODE_OVERLOADED, META_SLOW_MS},	/* WABA */
	{133016, 133016, VERDICT_RETRY, F | CODE_OVERLOADED, META_SLOW_MS}, /* registration */
	{130429, 130429, VERDICT_RETRY, F | CODE_OVERLOADED, META_THROUGHPUT_MS},
	{131056, 131056, VERDICT_RETRY, F, META_PAIR_MS},	/* this recipient only */

	/* Meta's own trouble */
	{1, 1, VERDICT_RETRY, F, 0},	/* unknown error, often of one request */
	{2, 2, VERDICT_RETRY, F | CODE_DOWN, 0},
	{131000, 131000, VERDICT_RETRY, F | CODE_DOWN, 0},
	{131016, 131016, VERDICT_RETRY, F | CODE_DOWN, 0},
	{131057, 131057, VERDICT_RETRY, F | CODE_DOWN, META_MAINTENANCE_MS},
	{133004, 133004, VERDICT_RETRY, F | CODE_DOWN, 0},

	/* This recipient */
	{131026, 131026, VERDICT_REFUSED, F, 0},	/* not on WhatsApp */
	{131021, 131021, VERDICT_REFUSED, 0, 0},	/* recipient is the sender */
	{131030, 131030, VERDICT_REFUSED, F, 0},	/* not in a test number's list */
	{130497, 130497, VERDICT_REFUSED, F, 0},	/* country not allowed */
	{131047, 131047, VERDICT_REFUSED, 0, 0},	/* window closed; no template? */
	{131049, 131049, VERDICT_REFUSED, F, 0},	/* healthy ecosystem */
	{131050, 131050, VERDICT_REFUSED, F, 0},	/* stopped marketing */
	{130472, 130472, VERDICT_REFUSED, F, 0},	/* in an experiment */
	{130403, 130403, VERDICT_REFUSED, 0, 0},	/* has blocked the business */
	{131062, 131062, VERDICT_REFUSED, F, 0},	/* no phone number */
	{137000, 137000, VERDICT_REFUSED, F, 0},	/* identity key */

	/* This request; 100 with subcode 33 is about the account, see judge */
	{100, 100, VERDICT_REFUSED, F, 0},
	{131008, 131009, VERDICT_REFUSED, F, 0},
	{131051, 131053, VERDICT_REFUSED, 0, 0},	/* media, which we never send */
	{132068, 132069, VERDICT_REFUSED, F, 0},	/* flows, neither */
	{135000, 135000, VERDICT_REFUSED, F, 0},

	/* This template */
	{132001, 132001, VERDICT_REFUSED, F | CODE_TEMPLATE, 0},	/* missing, not approved */
	{132015, 132016, VERDICT_REFUSED, F | CODE_TEMPLATE, 0},	/* paused, disabled */
	{132000, 132000, VERDICT_REFUSED, F, 0},	/* number of parameters */
	{132005, 132005, VERDICT_REFUSED, F, 0},	/* text too long */
	{132007, 132007, VERDICT_REFUSED, F, 0},	/* policy */
	{132012, 132012, VERDICT_REFUSED, F, 0},	/* format of parameters */
	{132018, 132018, VERDICT_REFUSED, F, 0},	/* validation */
	{131063, 131063, VERDICT_REFUSED, F, 0} /* marketing templates disabled */
};

#undef F

/* Check "v25.0" */
static bool
is_api_version(const char *version)
{
	return version[0] == 'v' && channel_is_word(version, ".", 12) &&
		strspn(version + 1, "0123456789.") == strlen(version + 1);
}

/* Build the request */
static bool
meta_build(const ProviderAccount *account, const ChannelMessage *message,
		   HttpRequest *out, char *error, size_t error_size)
{
	static const char *headers[] = {"Content-Type: application/json", NULL};
	const char *sending_number = message->sender != NULL ? message->sender :
	channel_string(account->settings, "phone_number_id");
	const char *version = channel_string(account->settings, "api_version");
	const char *token = channel_string(account->secrets, "access_token");
	char	   *base_url = channel_base_url(account, META_BASE_URL);
	StringInfoData body;

	memset(out, 0, sizeof(*out));
	if (version == NULL)
		version = META_API_VERSION;

	/* Settings become part of an address: nothing in them may redirect it */
	if (base_url == NULL)
	{
		strlcpy(error, "base_url is not a URL", error_size);
		return false;
	}
	if (!is_api_version(version))
	{
		strlcpy(error, "api_version does not look like v25.0", error_size);
		return false;
	}
	if (!channel_is_word(sending_number, "_-", 64))
	{
		strlcpy(error, "phone_number_id is missing or malformed", error_size);
		return false;
	}
	if (token == NULL)
	{
		strlcpy(error, "access_token is missing", error_size);
		return false;
	}
	if (!channel_is_word(message->template, "_-.", META_MAX_TEMPLATE))
	{
		strlcpy(error, "the template's name has characters that Meta does not allow", error_size);
		return false;
	}
	if (!channel_is_word(message->language, "_-", META_MAX_LANGUAGE))
	{
		strlcpy(error, "the language does not look like en_US", error_size);
		return false;
	}
	if (!channel_is_word(message->code, "", META_MAX_CODE))
	{
		strlcpy(error, "the code is not 1 to 15 letters and digits", error_size);
		return false;
	}
	if (phone_defect(message->phone, strlen(message->phone)) != NULL)
	{
		strlcpy(error, "the phone number is malformed", error_size);
		return false;
	}

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"messaging_product\":\"whatsapp\",\"recipient_type\":\"individual\",\"to\":");
	json_quote(&body, message->phone + 1);
	appendStringInfoString(&body, ",\"type\":\"template\",\"template\":{\"name\":");
	json_quote(&body, message->template);
	appendStringInfoString(&body, ",\"language\":{\"code\":");
	json_quote(&body, message->language);
	appendStringInfoString(&body, "},\"components\":[{\"type\":\"body\",\"parameters\":[{\"type\":\"text\",\"text\":");
	json_quote(&body, message->code);
	appendStringInfoString(&body, "}]},{\"type\":\"button\",\"sub_type\":\"url\",\"index\":\"0\",\"parameters\":[{\"type\":\"text\",\"text\":");
	json_quote(&body, message->code);
	appendStringInfoString(&body, "}]}]},\"biz_opaque_callback_data\":");
	json_quote(&body, message->number > 1 ? psprintf("%s/%d", message->otp_id, message->number) : message->otp_id);
	appendStringInfoChar(&body, '}');

	out->url = psprintf("%s/%s/%s/messages", base_url, version, sending_number);
	out->headers = headers;
	out->bearer = pstrdup(token);
	out->body = body.data;
	out->body_length = body.len;
	return true;
}

/* Judge a success */
static void
judge_success(const HttpResponse *response, const json_t *answer, Judgement *out)
{
	const json_t *message = json_array_get(json_object_get(answer, "messages"), 0);
	const char *id = channel_string(message, "id");
	const json_t *status = json_object_get(message, "message_status");

	if (id == NULL)
	{
		channel_judge_status(&channel_meta, response, out);
		strlcpy(out->detail, "a success without a message id", sizeof(out->detail));
		return;
	}
	channel_accept(id, out);
	/* Held for a check of its quality, or paused: receipts will tell */
	if (json_is_string(status) && strcmp(json_string_value(status), "accepted") != 0)
		channel_add_detail(out, "", status, "");
}

/* Judge an error, which may come with any status */
static void
judge_error(const HttpResponse *response, const json_t *problem, Judgement *out)
{
	const json_t *more = json_object_get(problem, "error_data");
	int			code;
	int			subcode = 0;

	if (channel_json_code(json_object_get(problem, "code"), &code))
	{
		channel_judge_answer(&channel_meta, response, code,
							 json_is_true(json_object_get(problem, "is_transient")), out);

		/* Invalid parameter: here the phone number id, not the message's */
		if (code == 100 &&
			channel_json_code(json_object_get(problem, "error_subcode"), &subcode) &&
			subcode == 33)
		{
			out->verdict = VERDICT_ACCOUNT;
			out->sender_refused = true;
		}
	}
	else
		channel_judge_status(&channel_meta, response, out);

	/*
	 * Its words, the explanation (an object or a string), what to tell
	 * support
	 */
	if (json_is_string(problem))
		channel_add_detail(out, "", problem, "");
	channel_add_detail(out, "", json_object_get(problem, "message"), "");
	channel_add_detail(out, ": ", json_is_string(more) ? more : json_object_get(more, "details"), "");
	channel_add_detail(out, " (fbtrace_id ", json_object_get(problem, "fbtrace_id"), ")");
}

/* Judge what came of a request */
static void
meta_judge(const ProviderAccount *account, const HttpResponse *response, Judgement *out)
{
	json_t	   *answer;
	const json_t *problem;

	channel_begin(response, out);
	if (!channel_judge_silence(&channel_meta, response, out))
	{
		answer = json_from_text(response->body, response->body_length);
		problem = json_object_get(answer, "error");

		if (problem != NULL && !json_is_null(problem))
			judge_error(response, problem, out);
		else if (response->status >= 200 && response->status < 300)
			judge_success(response, answer, out);
		else
			channel_judge_status(&channel_meta, response, out);
		json_decref(answer);
	}
	channel_finish(response, out);
}

const Channel channel_meta = {
	.name = "whatsapp",
	.provider = "meta",
	.build = meta_build,
	.judge = meta_judge,
	.codes = codes,
	.ncodes = lengthof(codes)
};
