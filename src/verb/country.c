/*-------------------------------------------------------------------------
 *
 * country.c
 *	  Which countries a workspace sends to.
 *
 * A pair of lists, allowed and denied prefixes, is there for all channels,
 * and one more for each. Of both lists the longest prefix that fits a phone
 * decides: so a country can be denied, and one of its operators allowed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/verb.h"
#include "verb/send.h"

/* The columns, for hints */
static const char *const allowed_columns[PREFIX_SCOPES] = {
	[PREFIXES_ALL] = "allowed_prefixes",
	[PREFIXES_WHATSAPP] = "whatsapp_allowed_prefixes",
	[PREFIXES_SMS] = "sms_allowed_prefixes"
};
static const char *const denied_columns[PREFIX_SCOPES] = {
	[PREFIXES_ALL] = "denied_prefixes",
	[PREFIXES_WHATSAPP] = "whatsapp_denied_prefixes",
	[PREFIXES_SMS] = "sms_denied_prefixes"
};

/* Measure the longest prefix of a list that fits; 0: none does */
static size_t
longest_fit(const PrefixList *list, const char *phone)
{
	size_t		longest = 0;

	for (int i = 0; i < list->count; i++)
	{
		size_t		length = strlen(list->prefixes[i]);

		if (length > longest && strncmp(phone, list->prefixes[i], length) == 0)
			longest = length;
	}
	return longest;
}

/* Name the column that does not let a phone through; NULL when it may pass */
static const char *
refusing_column(const Workspace *w, PrefixScope scope, const char *phone)
{
	size_t		allowed = longest_fit(&w->allowed[scope], phone);
	size_t		denied = longest_fit(&w->denied[scope], phone);

	/* In both lists with the same prefix: denied */
	if (denied > 0)
		return denied >= allowed ? denied_columns[scope] : NULL;
	return allowed > 0 || w->allowed[scope].count < 0 ? NULL : allowed_columns[scope];
}

/* Give the scope of a channel */
static PrefixScope
channel_scope(const char *channel)
{
	return strcmp(channel, "sms") == 0 ? PREFIXES_SMS : PREFIXES_WHATSAPP;
}

/* Require a country that is allowed over a channel */
void
country_require_channel(const Workspace *w, const char *phone, const char *channel)
{
	const char *column = refusing_column(w, PREFIXES_ALL, phone);

	if (column == NULL)
		column = refusing_column(w, channel_scope(channel), phone);
	if (column != NULL)
		error_raise(OTP_INVALID_PHONE, "phone numbers of this country are not allowed",
					psprintf("The workspace's %s in otp.workspaces say which are%s.", column,
							 strstr(column, "denied") != NULL ? " not" : ""), -1, NULL);
}

/* Require a country that is allowed */
void
country_require(const Workspace *w, Verification *v, bool fallback_asked)
{
	const char *column;

	country_require_channel(w, v->phone, v->channel);
	if (!v->fallback_sms)
		return;
	column = refusing_column(w, PREFIXES_SMS, v->phone);
	if (column == NULL)
		return;
	if (fallback_asked)
		error_raise(OTP_INVALID_PHONE, "phone numbers of this country are not allowed for SMS",
					psprintf("The workspace's %s in otp.workspaces say which are%s. Without the fallback it can be sent to: fallback_sms => false.",
							 column, strstr(column, "denied") != NULL ? " not" : ""), -1, NULL);

	/* Nobody has asked for it: WhatsApp alone will do */
	v->fallback_sms = false;
}
