/*-------------------------------------------------------------------------
 *
 * audit.c
 *	  Write down who changes the configuration.
 *
 * One trigger on its tables, whatever changes them: a function of ours, or an
 * UPDATE by their owner. Of a column that is not listed below, an entry tells
 * that it was changed, and not from what to what. So what is new in a table
 * is neither missed nor shown before somebody has thought about it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/owner.h"
#include "store/audit.h"
#include "store/workspace.h"
#include "store/seed.h"

EXPORTED_FUNCTION(otp_audit_change);

/* How a column is dealt with */
typedef enum Treatment
{
	NAMED,						/* only that it was changed */
	SHOWN,						/* from what to what */
	MASKED,						/* the same, but of a phone only the ends */
	ORIGIN,						/* the same, but of a URL only scheme and host */
	SETTINGS,					/* an object of such values, see settings[] */
	KEY,						/* a change is a deletion and a creation */
	IGNORED						/* no configuration */
} Treatment;

/* What is told by entries of their own */
typedef enum Topic
{
	TOPIC_REST,
	TOPIC_NAME,
	TOPIC_STATE,
	TOPIC_PROVIDER,
	TOPIC_SECRET,
	TOPICS
} Topic;

typedef struct Column
{
	const char *name;
	Treatment	treatment;
	Topic		topic;
} Column;

/* A row before and after; one of the two may be NULL */
typedef struct Change
{
	Relation	rel;
	TupleDesc	desc;
	HeapTuple	before;
	HeapTuple	after;
} Change;

/*
 * A table, and the actions that its changes are: created, changed, deleted. Where action is
 * there, it names those that are NULL; it gives NULL for what is not told.
 */
typedef struct Table
{
	const char *name;
	const char *created;
	const char *changed;
	const char *deleted;
	const char *(*action) (const Change *change, Topic topic);
	char	   *(*object) (const Change *change, HeapTuple row);
	const char *workspace;		/* column of the workspace's id */
	const Column *columns;
} Table;

/* Give a column of a row as text, or NULL */
static char *
text_of(const Change *change, HeapTuple row, const char *column)
{
	return row == NULL ? NULL : SPI_getvalue(row, change->desc, SPI_fnumber(change->desc, column));
}

/* Is a column NULL? */
static bool
is_null(const Change *change, HeapTuple row, const char *column)
{
	bool		isnull;

	(void) SPI_getbinval(row, change->desc, SPI_fnumber(change->desc, column), &isnull);
	return isnull;
}

/* Leave only scheme, host and port of a URL */
static char *
origin_of(const char *url)
{
	const char *host = strstr(url, "://");
	const char *at;
	size_t		length;

	if (host == NULL)
		return pstrdup("?");
	host += strlen("://");
	length = strcspn(host, "/?#");

	/* A password in it is refused by the functions, but not by the table */
	while ((at = memchr(host, '@', length)) != NULL)
	{
		length -= at + 1 - host;
		host = at + 1;
	}
	return psprintf("%.*s://%.*s", (int) (strstr(url, "://") - url), url, (int) length, host);
}

/* ---- the tables ---- */

static const Column workspace_columns[] = {
	{"workspace_id", KEY},
	{"seeded", IGNORED},
	{"name", SHOWN, TOPIC_NAME},
	{"suspended_at", SHOWN, TOPIC_STATE},
	{"suspended_reason", SHOWN, TOPIC_STATE},
	{"whatsapp_account", SHOWN, TOPIC_PROVIDER},
	{"sms_account", SHOWN, TOPIC_PROVIDER},
	{"whatsapp_sender", SHOWN, TOPIC_PROVIDER},
	{"sms_sender", MASKED, TOPIC_PROVIDER},
	{"app_name", SHOWN},
	{"default_template", SHOWN},
	{"default_length", SHOWN},
	{"default_expires_in", SHOWN},
	{"default_fallback_sms", SHOWN},
	{"default_channel", SHOWN},
	{"default_language", SHOWN},
	{"whatsapp_enabled", SHOWN},
	{"sms_enabled", SHOWN},
	{"sends_per_second", SHOWN},
	{"sends_burst", SHOWN},
	{"sends_per_phone_hour", SHOWN},
	{"sends_per_phone_day", SHOWN},
	{"resend_cooldown", SHOWN},
	{"max_attempts", SHOWN},
	{"failures_per_phone_day", SHOWN},
	{"failure_delay", SHOWN},
	{"failure_delay_after", SHOWN},
	{"max_failures_in_row", SHOWN},
	{"min_code_length", SHOWN},
	{"max_expires_in", SHOWN},
	{"require_context", SHOWN},
	{"allowed_prefixes", SHOWN},
	{"denied_prefixes", SHOWN},
	{"whatsapp_allowed_prefixes", SHOWN},
	{"whatsapp_denied_prefixes", SHOWN},
	{"sms_allowed_prefixes", SHOWN},
	{"sms_denied_prefixes", SHOWN},
	{"fallback_after", SHOWN},
	{"notify_channel", SHOWN},
	{"credits_metered", SHOWN},
	{"fallback_credits", SHOWN},
	{"refund_failed", SHOWN},
	{"credits_low", SHOWN},
	{"guard_mode", SHOWN},
	{"guard_exempt_prefixes", SHOWN},
	{"policy_function", SHOWN},
	{"policy_timeout", SHOWN},
	{NULL}
};

static const Column grant_columns[] = {
	{"workspace_id", KEY},
	{"role", KEY},
	{NULL}
};

static const Column api_key_columns[] = {
	{"workspace_id", KEY},
	{"key_id", KEY},
	{"name", SHOWN},
	{"admin", SHOWN},
	{"expires_at", SHOWN},
	{"revoked_at", SHOWN, TOPIC_STATE},
	{"replaces", SHOWN},
	{NULL}
};

static const Column account_columns[] = {
	{"account_id", KEY},
	{"key_id", IGNORED},
	{"version", IGNORED},
	{"receipts_from", IGNORED},
	{"updated_at", IGNORED},
	{"name", SHOWN},
	{"provider", SHOWN},
	{"settings", SETTINGS},
	{"secret_names", SHOWN},
	{"exclusive_to", SHOWN},
	{NULL}
};

/* The members of otp.provider_accounts.settings */
static const Column settings[] = {
	{"phone_number_id", SHOWN},
	{"waba_id", SHOWN},
	{"api_version", SHOWN},
	{"base_url", ORIGIN},
	{"account_sid", SHOWN},
	{"api_key_sid", SHOWN},
	{"sender", MASKED},
	{"messaging_service_sid", SHOWN},
	{"status_callback", ORIGIN},
	{"content_retention", SHOWN},
	{"risk_check", SHOWN},
	{NULL}
};

static const Column endpoint_columns[] = {
	{"workspace_id", KEY},
	{"endpoint_id", KEY},
	{"key_id", IGNORED},
	{"previous_secret", IGNORED},
	{"previous_key_id", IGNORED},
	{"previous_until", IGNORED},
	{"disabled_at", IGNORED},
	{"failing_since", IGNORED},
	{"created_at", IGNORED},
	{"url", ORIGIN},
	{"events", SHOWN},
	{"description", SHOWN},
	{"status", SHOWN, TOPIC_STATE},
	{"disabled_reason", SHOWN, TOPIC_STATE},
	{"secret", NAMED, TOPIC_SECRET},
	{NULL}
};

static const Column test_number_columns[] = {
	{"workspace_id", KEY},
	{"key_id", IGNORED},
	{"set_by", IGNORED},
	{"set_at", IGNORED},
	{"outcome", SHOWN},
	{"valid_until", SHOWN},
	{NULL}
};

static const Column key_limit_columns[] = {
	{"workspace_id", KEY},
	{"prefix", SHOWN},
	{"sends_per_hour", SHOWN},
	{"sends_per_day", SHOWN},
	{NULL}
};

static const Column sms_text_columns[] = {
	{"workspace_id", KEY},
	{"seeded", IGNORED},
	{"template", SHOWN},
	{"language", SHOWN},
	{"country_prefix", SHOWN},
	{"body", SHOWN},
	{"last_line", SHOWN},
	{"sender", MASKED},
	{"dlt_entity_id", SHOWN},
	{"dlt_template_id", SHOWN},
	{NULL}
};

static const Column template_columns[] = {
	{"workspace_id", KEY},
	{"seeded", IGNORED},
	{"template_id", IGNORED},
	{"reason", IGNORED},
	{"requested_at", IGNORED},
	{"checked_at", IGNORED},
	{"updated_at", IGNORED},
	{"name", SHOWN},
	{"language", SHOWN},
	{"status", SHOWN},
	{"category", SHOWN},
	{"code_expiration_minutes", SHOWN},
	{"variant_of", SHOWN},
	{NULL}
};

static const Column ledger_columns[] = {
	{"workspace_id", KEY},
	{"entry_id", IGNORED},
	{"at", IGNORED},
	{"role", IGNORED},
	{"amount", SHOWN},
	{"kind", SHOWN},
	{"reference", SHOWN},
	{NULL}
};

/* Name what was done with a workspace */
static const char *
workspace_action(const Change *change, Topic topic)
{
	bool		was;
	bool		is;

	switch (topic)
	{
		case TOPIC_NAME:
			return "rename_workspace";
		case TOPIC_PROVIDER:
			return "use_provider";
		case TOPIC_STATE:
			was = !is_null(change, change->before, "suspended_at");
			is = !is_null(change, change->after, "suspended_at");
			if (was != is)
				return is ? "suspend_workspace" : "resume_workspace";
			break;
		default:
			break;
	}
	return "change_workspace";
}

/* Name what was done with an API key */
static const char *
api_key_action(const Change *change, Topic topic)
{
	if (change->before == NULL)
		return is_null(change, change->after, "replaces") ? "create_api_key" : "rotate_api_key";
	return topic == TOPIC_STATE && !is_null(change, change->after, "revoked_at") ? "revoke_api_key" : "change_api_key";
}

/* Name what was done with an endpoint */
static const char *
endpoint_action(const Change *change, Topic topic)
{
	char	   *status;

	switch (topic)
	{
		case TOPIC_SECRET:

			/* One that is being made gets its secret after its id */
			return is_null(change, change->before, "secret") ? NULL : "rotate_webhook_secret";
		case TOPIC_STATE:
			status = text_of(change, change->after, "status");
			if (strcmp(status, "paused") == 0)
				return "pause_webhook_endpoint";
			if (strcmp(status, "enabled") == 0)
				return "resume_webhook_endpoint";
			break;
		default:
			break;
	}
	return "change_webhook_endpoint";
}

/* Name what was done with an account */
static const char *
account_action(const Change *change, Topic topic)
{
	/* The one that is being made has nothing in it yet: its values follow */
	if (change->before == NULL && is_null(change, change->after, "secrets"))
		return NULL;
	return "configure_provider";
}

/* Give the name of a thing */
static char *
name_of(const Change *change, HeapTuple row)
{
	return text_of(change, row, "name");
}

/* Give the id of an API key */
static char *
key_id_of(const Change *change, HeapTuple row)
{
	return text_of(change, row, "key_id");
}

/* Give the id of an endpoint */
static char *
endpoint_id_of(const Change *change, HeapTuple row)
{
	return text_of(change, row, "endpoint_id");
}

/* Give the prefix of a limit */
static char *
prefix_of(const Change *change, HeapTuple row)
{
	return text_of(change, row, "prefix");
}

/* Give the id of a row of the ledger */
static char *
entry_id_of(const Change *change, HeapTuple row)
{
	return text_of(change, row, "entry_id");
}

/* Give the name of a role, or its number when it is gone */
static char *
role_name(Oid role)
{
	char	   *name = GetUserNameFromId(role, true);

	return name != NULL ? name : psprintf("%u", role);
}

/* Give the role of a grant */
static char *
role_of(const Change *change, HeapTuple row)
{
	bool		isnull;

	return role_name(DatumGetObjectId(SPI_getbinval(row, change->desc, SPI_fnumber(change->desc, "role"), &isnull)));
}

/* Give what may be told of a phone */
static char *
phone_of(const Change *change, HeapTuple row)
{
	return audit_mask_phone(text_of(change, row, "phone"));
}

/* Give name and language of a template */
static char *
template_of(const Change *change, HeapTuple row)
{
	return psprintf("%s/%s", text_of(change, row, "name"), text_of(change, row, "language"));
}

/* Give the key of a text */
static char *
sms_text_of(const Change *change, HeapTuple row)
{
	char	   *prefix = text_of(change, row, "country_prefix");

	return psprintf("%s/%s%s%s", text_of(change, row, "template"), text_of(change, row, "language"),
					prefix[0] != '\0' ? "/" : "", prefix);
}

static const Table tables[] = {
	{"workspaces", "create_workspace", NULL, "delete_workspace",
	workspace_action, name_of, "workspace_id", workspace_columns},
	{"workspace_grants", "grant_workspace", NULL, "revoke_workspace",
	NULL, role_of, "workspace_id", grant_columns},
	{"api_keys", NULL, NULL, "delete_api_key",
	api_key_action, key_id_of, "workspace_id", api_key_columns},
	{"provider_accounts", NULL, NULL, "delete_provider",
	account_action, name_of, "exclusive_to", account_columns},
	{"webhook_endpoints", "create_webhook_endpoint", NULL, "delete_webhook_endpoint",
	endpoint_action, endpoint_id_of, "workspace_id", endpoint_columns},
	{"test_numbers", "set_test_number", "set_test_number", "remove_test_number",
	NULL, phone_of, "workspace_id", test_number_columns},
	{"key_limits", "set_key_limit", "set_key_limit", "remove_key_limit",
	NULL, prefix_of, "workspace_id", key_limit_columns},
	{"sms_texts", "set_sms_text", "set_sms_text", "remove_sms_text",
	NULL, sms_text_of, "workspace_id", sms_text_columns},
	{"templates", "create_template", "change_template", "delete_template",
	NULL, template_of, "workspace_id", template_columns},
	{"credit_ledger", "add_credits", "add_credits", "add_credits",
	NULL, entry_id_of, "workspace_id", ledger_columns},
};

/* ---- what has changed ---- */

/* Find how a column is dealt with */
static Column
column_rule(const Column *columns, const char *name)
{
	for (; columns->name != NULL; columns++)
		if (strcmp(columns->name, name) == 0)
			return *columns;
	return *columns;			/* its zeros are NAMED, TOPIC_REST */
}

/* Append a string, as it may be shown */
static void
append_text(StringInfo json, char *value, Treatment treatment)
{
	if (treatment == ORIGIN)
		value = origin_of(value);
	else if (treatment == MASKED && (value[0] == '+' || (strlen(value) >= 8 && value[strspn(value, "0123456789")] == '\0')))
		value = audit_mask_phone(value);
	escape_json(json, value);
}

/* Append a value as JSON */
static void
append_value(StringInfo json, Datum value, bool isnull, Oid type, Treatment treatment)
{
	char		buffer[MAXDATELEN + 1];
	Oid			output;
	bool		varlena;

	if (isnull)
	{
		appendStringInfoString(json, "null");
		return;
	}
	switch (type)
	{
		case BOOLOID:
			appendStringInfoString(json, DatumGetBool(value) ? "true" : "false");
			break;
		case INT2OID:
		case INT4OID:
		case INT8OID:
			getTypeOutputInfo(type, &output, &varlena);
			appendStringInfoString(json, OidOutputFunctionCall(output, value));
			break;
		case TIMESTAMPTZOID:
			escape_json(json, JsonEncodeDateTime(buffer, value, type, NULL));
			break;
		default:
			getTypeOutputInfo(type, &output, &varlena);
			append_text(json, OidOutputFunctionCall(output, value), treatment);
			break;
	}
}

/* Append a comma, unless it is the first */
static void
append_comma(StringInfo json)
{
	if (json->len > 0)
		appendStringInfoString(json, ", ");
}

/* Give a member of an object of strings, or NULL */
static char *
member_of(Datum object, bool isnull, const char *name)
{
	JsonbValue	value;

	/* Its owner can store what he likes */
	if (isnull || !JB_ROOT_IS_OBJECT(DatumGetJsonbP(object)) ||
		getKeyJsonValueFromContainer(&DatumGetJsonbP(object)->root, name, strlen(name), &value) == NULL)
		return NULL;
	return value.type == jbvString ? pnstrdup(value.val.string.val, value.val.string.len) : pstrdup("?");
}

/* Append the members of settings that differ; false when it is others that do */
static bool
append_settings(StringInfo json, Datum before, bool before_null, Datum after, bool after_null)
{
	bool		found = false;

	for (const Column *s = settings; s->name != NULL; s++)
	{
		char	   *old = member_of(before, before_null, s->name);
		char	   *new = member_of(after, after_null, s->name);

		if (old == NULL ? new == NULL : new != NULL && strcmp(old, new) == 0)
			continue;
		found = true;
		append_comma(json);
		escape_json(json, s->name);
		appendStringInfoString(json, ": [");
		if (old != NULL)
			append_text(json, old, s->treatment);
		else
			appendStringInfoString(json, "null");
		appendStringInfoString(json, ", ");
		if (new != NULL)
			append_text(json, new, s->treatment);
		else
			appendStringInfoString(json, "null");
		appendStringInfoChar(json, ']');
	}
	return found;
}

/* Describe what has changed in the columns of a topic, of TOPICS in all; false for nothing */
static bool
describe(const Change *change, const Column *columns, Topic topic, StringInfo json)
{
	StringInfoData named;

	initStringInfo(&named);
	for (int i = 0; i < change->desc->natts; i++)
	{
		Form_pg_attribute a = TupleDescAttr(change->desc, i);
		Column		rule = column_rule(columns, NameStr(a->attname));
		Datum		before = (Datum) 0;
		Datum		after = (Datum) 0;
		bool		before_null = true;
		bool		after_null = true;

		if (a->attisdropped || rule.treatment == KEY || rule.treatment == IGNORED ||
			(topic != TOPICS && rule.topic != topic))
			continue;
		if (change->before != NULL)
			before = heap_getattr(change->before, i + 1, change->desc, &before_null);
		if (change->after != NULL)
			after = heap_getattr(change->after, i + 1, change->desc, &after_null);
		if (before_null ? after_null : !after_null && datum_image_eq(before, after, a->attbyval, a->attlen))
			continue;

		if (rule.treatment == SETTINGS && append_settings(json, before, before_null, after, after_null))
			continue;
		if (rule.treatment == NAMED || rule.treatment == SETTINGS)
		{
			/* That a new row has such values goes without saying */
			if (change->before == NULL || change->after == NULL)
				continue;
			append_comma(&named);
			escape_json(&named, NameStr(a->attname));
			continue;
		}
		append_comma(json);
		escape_json(json, NameStr(a->attname));
		appendStringInfoString(json, ": [");
		append_value(json, before, before_null, a->atttypid, rule.treatment);
		appendStringInfoString(json, ", ");
		append_value(json, after, after_null, a->atttypid, rule.treatment);
		appendStringInfoChar(json, ']');
	}
	if (named.len > 0)
	{
		append_comma(json);
		appendStringInfo(json, "\"not_shown\": [%s]", named.data);
	}
	return json->len > 0;
}

/* ---- entries ---- */

/* Write an entry; members are of its details */
static void
write_entry(const char *action, int32 workspace_id, const char *object, StringInfo members)
{
	Oid			caller = owner_caller();
	int32		key_id = workspace_acting_key(owner_id());

	if (key_id != 0)
	{
		append_comma(members);
		appendStringInfo(members, "\"api_key\": %d", key_id);
	}
	if (caller != GetSessionUserId())
	{
		append_comma(members);
		appendStringInfoString(members, "\"session_user\": ");
		escape_json(members, role_name(GetSessionUserId()));
	}
	audit_add(role_name(caller), action, workspace_id, object, psprintf("{%s}", members->data));
}

/* Write the entry of a change, as far as it is of a topic */
static void
write_change(const Change *change, const Table *table, const char *action, Topic topic)
{
	HeapTuple	row = change->after != NULL ? change->after : change->before;
	StringInfoData members;
	bool		isnull;
	Datum		workspace;

	initStringInfo(&members);
	if (!describe(change, table->columns, topic, &members) && change->before != NULL && change->after != NULL)
		return;
	if (action == NULL)
		action = table->action(change, topic);
	if (action == NULL)
		return;
	workspace = SPI_getbinval(row, change->desc, SPI_fnumber(change->desc, table->workspace), &isnull);
	write_entry(action, isnull ? 0 : DatumGetInt32(workspace), table->object(change, row), &members);
}

/* Has a row become another one? Then its new workspace, too, is to be told. */
static bool
key_differs(const Change *change, const Column *columns)
{
	for (; columns->name != NULL; columns++)
	{
		int			column = SPI_fnumber(change->desc, columns->name);
		Form_pg_attribute a;
		Datum		before;
		Datum		after;
		bool		isnull;

		if (columns->treatment != KEY)
			continue;
		a = TupleDescAttr(change->desc, column - 1);
		before = heap_getattr(change->before, column, change->desc, &isnull);
		after = heap_getattr(change->after, column, change->desc, &isnull);
		if (!datum_image_eq(before, after, a->attbyval, a->attlen))
			return true;
	}
	return false;
}

/* Write the entries of a change */
static void
write_changes(Change *change, const Table *table)
{
	HeapTuple	after = change->after;

	if (change->before == NULL)
		write_change(change, table, table->created, TOPICS);
	else if (change->after == NULL)
		write_change(change, table, table->deleted, TOPICS);
	else if (key_differs(change, table->columns))
	{
		change->after = NULL;
		write_change(change, table, table->deleted, TOPICS);
		change->before = NULL;
		change->after = after;
		write_change(change, table, table->created, TOPICS);
	}
	else if (table->changed != NULL || table->action != NULL)
	{
		for (Topic topic = 0; topic < TOPICS; topic++)
			write_change(change, table, table->changed, topic);
	}
}

/* Write down a change of the configuration */
Datum
otp_audit_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	OwnerScope	scope;
	Change		change = {0};
	const Table *table = NULL;
	const char *name;
	char	   *schema;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by a trigger after a change")));
	name = RelationGetRelationName(trigger->tg_relation);
	schema = get_namespace_name(RelationGetNamespace(trigger->tg_relation));
	for (int i = 0; i < lengthof(tables); i++)
		if (strcmp(name, tables[i].name) == 0)
			table = &tables[i];

	/*
	 * Whoever got EXECUTE in some way would write entries with a table of his
	 * own
	 */
	if (schema == NULL || strcmp(schema, "otp") != 0 || table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function is only for the tables of extension \"otp\"")));
	if (audit_off || seed_deleting)
		return PointerGetDatum(NULL);

	change.rel = trigger->tg_relation;
	change.desc = RelationGetDescr(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		change.after = trigger->tg_trigtuple;
	else if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		change.before = trigger->tg_trigtuple;
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		change.before = trigger->tg_trigtuple;
		change.after = trigger->tg_newtuple;
	}

	owner_enter(&scope);
	(void) set_config_option("IntervalStyle", "postgres", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect did not connect");
	if (change.before == NULL && change.after == NULL)
	{
		StringInfoData members;

		initStringInfo(&members);
		write_entry(psprintf("truncate_%s", name), 0, name, &members);
	}
	else
		write_changes(&change, table);
	SPI_finish();
	owner_leave(&scope);
	return PointerGetDatum(NULL);
}
