/*-------------------------------------------------------------------------
 *
 * api_functions.c
 *	  What each function of otp_api takes and does.
 *
 * The install script declares them with the same names and arguments.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "base/compat.h"

#include "verb/api.h"

/* ---- parts of statements ---- */

/* A cursor that is a number, and one that is an attempt to deliver a webhook */
#define NUMBER "'^[0-9]{1,18}$'"
#define DELIVERY "'^msg_[0-9A-HJKMNP-TV-Z]{26}[.][0-9]{1,4}$'"

/* The number of a cursor; where a list begins, when there is none */
#define AFTER_NUMBER(after, start) \
	"coalesce(CASE WHEN " after " ~ " NUMBER " THEN " after "::int8 END, " start ")"

/*
 * A page, and one row more if there is one. What is wrong with the arguments
 * is looked for here, because a LIMIT is worked out whatever rows there are.
 */
#define PAGE(limit, after, form) \
	"LIMIT coalesce(otp.api_check(" limit " BETWEEN 1 AND 100, 'limit', 'It is 1 to 100.')," \
	" otp.api_check(" after " ~ " form ", 'after', 'It is what \"next\" of the page before says.')," \
	" coalesce(" limit ", 20) + 1)"

/* Refuse an argument from or to, $1 or $2, that is no moment; to come before RANGE */
#define FINITE \
	"otp.api_check(pg_catalog.isfinite($1), 'from', 'It is a moment.')," \
	" otp.api_check(pg_catalog.isfinite($2), 'to', 'It is a moment.')"

/* Are the arguments from and to, $1 and $2, in order, and not too far apart? */
#define RANGE(usual, most) \
	"coalesce($2, pg_catalog.now()) - coalesce($1, pg_catalog.now() - interval " usual ")" \
	" BETWEEN interval '0' AND interval " most

/* The endpoint of the argument $1, if it is the workspace's own */
#define OWN_ENDPOINT(workspace_id) \
	"(SELECT e.endpoint_id FROM otp.webhook_endpoints e" \
	" WHERE e.workspace_id = " workspace_id " AND e.endpoint_id = $1) own"


static const ApiFunction functions[] = {
	{
		"otp_send", API_ANY_KEY, false, API_SENT, 200, 11,
		{
			{"phone", API_TEXT, true}, {"template", API_TEXT}, {"length", API_INT}, {"expires_in", API_INT},
			{"fallback_sms", API_BOOL}, {"metadata", API_OBJECT}, {"channel", API_TEXT}, {"context", API_TEXT},
			{"language", API_TEXT}, {"limit_keys", API_TEXTS}, {"idempotency_key", API_TEXT}
		},
		NULL, NULL
	},
	{
		"otp_verify", API_ANY_KEY, false, API_VERIFIED, 200, 4,
		{{"otp_id", API_TEXT, true}, {"code", API_TEXT, true}, {"context", API_TEXT}, {"phone", API_TEXT}},
		"SELECT * FROM verbs.otp_verify($1, $2, $3, $4)", NULL
	},
	{
		"otp_status", API_ANY_KEY, true, API_ROW, 200, 1,
		{{"otp_id", API_TEXT, true}},
		"SELECT * FROM verbs.otp_status($1)", "verified_at"
	},
	{
		"otp_resend", API_ANY_KEY, false, API_SENT, 200, 2,
		{{"otp_id", API_TEXT, true}, {"channel", API_TEXT}},
		"SELECT * FROM verbs.otp_resend($1, $2)", "message_id"
	},
	{
		"otp_cancel", API_ANY_KEY, false, API_ROW, 200, 1,
		{{"otp_id", API_TEXT, true}},
		"SELECT $1 AS otp_id, verbs.otp_cancel($1) AS canceled", NULL
	},
	{
		"otp_list", API_ANY_KEY, true, API_PAGE, 200, 4,
		{{"phone", API_TEXT}, {"status", API_TEXT}, {"limit", API_INT}, {"after", API_TEXT}},
		"SELECT * FROM otp.list_verifications($1, $2, $3, $4)", "verified_at"
	},
	{
		"rate_limit_status", API_ANY_KEY, true, API_ROWS, 200, 2,
		{{"phone", API_TEXT}, {"limit_keys", API_TEXTS}},
		"SELECT * FROM otp.rate_limit_status($1, $2)", NULL
	},
	/* ---- for admin keys: keys ---- */
	{
		"api_keys", API_ADMIN_KEY, true, API_PAGE, 200, 2,
		{{"limit", API_INT}, {"after", API_TEXT}},
		"SELECT k.key_id, k.name, k.prefix, k.admin, k.status, k.created_at, k.created_by, k.expires_at, k.revoked_at,"
		" k.last_used_at, k.replaces FROM otp.api_key_list k WHERE k.workspace = $4"
		" AND k.key_id > " AFTER_NUMBER("$2", "0") " ORDER BY k.key_id " PAGE("$1", "$2", NUMBER),
		"expires_at last_used_at"
	},
	{
		"create_api_key", API_ADMIN_KEY, false, API_ROW, 201, 3,
		{{"name", API_TEXT, true}, {"expires_at", API_TIME}, {"admin", API_BOOL}},
		"SELECT k.key_id, k.api_key, $1 AS name, coalesce($3, false) AS admin, $2 AS expires_at"
		" FROM otp.create_api_key($5, $1, $2, $3) k",
		"expires_at"
	},
	{
		"rotate_api_key", API_ADMIN_KEY, false, API_ROW, 200, 2,
		{{"key_id", API_INT, true}, {"overlap", API_INT}},
		"SELECT r.key_id, r.api_key, own.key_id AS replaces"
		" FROM (SELECT k.key_id FROM otp.api_keys k WHERE k.workspace_id = $3 AND k.key_id = $1) own,"
		" otp.rotate_api_key(own.key_id, pg_catalog.make_interval(secs => $2)) r",
		NULL
	},
	{
		"revoke_api_key", API_ADMIN_KEY, false, API_NOTHING, 204, 1,
		{{"key_id", API_INT, true}},
		"SELECT own.key_id FROM (SELECT k.key_id FROM otp.api_keys k WHERE k.workspace_id = $2 AND k.key_id = $1) own,"
		" otp.revoke_api_key(own.key_id) r",
		NULL
	},

	/* ---- templates ---- */
	{
		"templates", API_ADMIN_KEY, true, API_PAGE, 200, 2,
		{{"limit", API_INT}, {"after", API_TEXT}},
		"SELECT t.name || '/' || t.language AS id, t.name, t.language, t.status, t.reason, t.category, t.code_expiration_minutes,"
		" t.variant_of, t.template_id, t.requested_at, t.checked_at, t.updated_at FROM otp.templates t WHERE t.workspace_id = $3"
		" AND (t.name COLLATE \"C\", t.language COLLATE \"C\")"
		" > (coalesce(pg_catalog.split_part($2, '/', 1), ''), coalesce(pg_catalog.split_part($2, '/', 2), ''))"
		" ORDER BY t.name COLLATE \"C\", t.language COLLATE \"C\" " PAGE("$1", "$2", "'^[^/]+/[^/]+$'"),
		"reason"
	},
	{
		"create_template", API_ADMIN_KEY, false, API_ROW, 202, 12,
		{
			{"name", API_TEXT, true}, {"language", API_TEXT}, {"code_expiration_minutes", API_INT},
			{"add_security_recommendation", API_BOOL}, {"button", API_TEXT}, {"button_text", API_TEXT},
			{"autofill_text", API_TEXT}, {"package_name", API_TEXT}, {"signature_hash", API_TEXT},
			{"zero_tap_terms_accepted", API_BOOL}, {"message_send_ttl_seconds", API_INT}, {"variant_of", API_TEXT}
		},
		"SELECT $1 AS name, coalesce($2, w.default_language) AS language, 'requested' AS status"
		" FROM otp.workspaces w, otp.create_template($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $14) c"
		" WHERE w.workspace_id = $13",
		NULL
	},
	{
		"sync_templates", API_ADMIN_KEY, false, API_ROW, 202, 0,
		{{0}},
		"SELECT 'requested' AS status FROM (SELECT w.name FROM otp.workspaces w WHERE w.workspace_id = $1) own,"
		" otp.sync_templates($2) s",
		NULL
	},

	/* ---- webhooks ---- */
	{
		"webhook_endpoints", API_ADMIN_KEY, true, API_ROWS, 200, 0,
		{{0}},
		"SELECT e.endpoint_id, e.url, e.events, e.description, e.status, e.disabled_reason, e.disabled_at, e.failing_since,"
		" e.created_at, e.previous_secret_until, e.waiting FROM otp.webhook_endpoint_list e, otp.webhook_endpoints own"
		" WHERE own.workspace_id = $1 AND own.endpoint_id = e.endpoint_id AND e.workspace = $2 ORDER BY e.endpoint_id",
		"events"
	},
	{
		"create_webhook_endpoint", API_ADMIN_KEY, false, API_ROW, 201, 3,
		{{"url", API_TEXT, true}, {"events", API_TEXTS}, {"description", API_TEXT}},
		"SELECT e.endpoint_id, e.secret, $1 AS url, $2 AS events, $3 AS description"
		" FROM otp.create_webhook_endpoint($1, $2, $3, $5) e",
		"events"
	},
	{
		"pause_webhook_endpoint", API_ADMIN_KEY, false, API_NOTHING, 204, 1,
		{{"endpoint_id", API_INT, true}},
		"SELECT own.endpoint_id FROM " OWN_ENDPOINT("$2") ", otp.pause_webhook_endpoint(own.endpoint_id) p",
		NULL
	},
	{
		"resume_webhook_endpoint", API_ADMIN_KEY, false, API_NOTHING, 204, 1,
		{{"endpoint_id", API_INT, true}},
		"SELECT own.endpoint_id FROM " OWN_ENDPOINT("$2") ", otp.resume_webhook_endpoint(own.endpoint_id) r",
		NULL
	},
	{
		"delete_webhook_endpoint", API_ADMIN_KEY, false, API_NOTHING, 204, 1,
		{{"endpoint_id", API_INT, true}},
		"SELECT own.endpoint_id FROM " OWN_ENDPOINT("$2") ", otp.delete_webhook_endpoint(own.endpoint_id) d",
		NULL
	},
	{
		"rotate_webhook_secret", API_ADMIN_KEY, false, API_ROW, 200, 1,
		{{"endpoint_id", API_INT, true}},
		"SELECT own.endpoint_id, s.secret FROM " OWN_ENDPOINT("$2") ", otp.rotate_webhook_secret(own.endpoint_id) s (secret)",
		NULL
	},
	{
		"send_test_webhook", API_ADMIN_KEY, false, API_ROW, 202, 2,
		{{"endpoint_id", API_INT, true}, {"event", API_TEXT}},
		"SELECT own.endpoint_id, t.webhook_id FROM " OWN_ENDPOINT("$3") ","
		" otp.send_test_webhook(own.endpoint_id, coalesce($2, 'otp.verified')) t (webhook_id)",
		NULL
	},
	{
		"replay_webhooks", API_ADMIN_KEY, false, API_ROW, 202, 3,
		{{"endpoint_id", API_INT, true}, {"since", API_TIME}, {"only_failed", API_BOOL}},
		"SELECT own.endpoint_id, own.since, own.only_failed FROM (SELECT e.endpoint_id,"
		" coalesce($2, pg_catalog.now() - interval '1 day') AS since, coalesce($3, true) AS only_failed"
		" FROM otp.webhook_endpoints e WHERE e.workspace_id = $4 AND e.endpoint_id = $1) own,"
		" otp.replay_webhooks(own.endpoint_id, own.since, own.only_failed) r",
		NULL
	},
	{
		"webhook_deliveries", API_ADMIN_KEY, true, API_PAGE, 200, 3,
		{{"endpoint_id", API_INT, true}, {"limit", API_INT}, {"after", API_TEXT}},
		"SELECT 'msg_' || pg_catalog.substr(otp.format_id(a.webhook_id), 5) || '.' || a.attempt AS id,"
		" 'msg_' || pg_catalog.substr(otp.format_id(a.webhook_id), 5) AS webhook_id, a.event, otp.format_id(a.verification_id) AS otp_id,"
		" a.occurred_at, a.attempt, a.attempted_at, a.duration_ms, a.delivered, a.http_status, a.error, a.next_attempt_at,"
		" NOT a.delivered AND a.next_attempt_at IS NULL AS given_up FROM otp.webhook_attempts a"
		" WHERE a.workspace_id = $4 AND a.endpoint_id = $1 AND ($3 IS NULL OR (a.webhook_id, a.attempt)"
		" < (CASE WHEN $3 ~ " DELIVERY " THEN otp.parse_id('otp_' || pg_catalog.substr($3, 5, 26)) END,"
		" CASE WHEN $3 ~ " DELIVERY " THEN pg_catalog.split_part($3, '.', 2)::int2 END))"
		" ORDER BY a.webhook_id DESC, a.attempt DESC " PAGE("$2", "$3", DELIVERY),
		"http_status"
	},

	/* ---- figures ---- */
	{
		"usage", API_ADMIN_KEY, true, API_ROWS, 200, 3,
		{{"from", API_TIME}, {"to", API_TIME}, {"group", API_TEXT}},
		"SELECT coalesce($3, 'day') AS \"group\","
		" CASE coalesce($3, 'day') WHEN 'day' THEN pg_catalog.to_char(u.day, 'YYYY-MM-DD') WHEN 'month' THEN pg_catalog.to_char(u.day, 'YYYY-MM') END AS period,"
		" CASE $3 WHEN 'channel' THEN u.channel END AS channel, CASE $3 WHEN 'country' THEN u.country END AS country,"
		" pg_catalog.sum(u.sends)::int8 AS sends, pg_catalog.sum(u.messages)::int8 AS messages, pg_catalog.sum(u.sent)::int8 AS sent,"
		" pg_catalog.sum(u.delivered)::int8 AS delivered, pg_catalog.sum(u.verified)::int8 AS verified,"
		" pg_catalog.sum(u.credits)::int8 AS credits, pg_catalog.sum(u.price) AS price, u.price_unit"
		" FROM otp.usage u WHERE u.workspace = $5"
		" AND u.day >= (coalesce($1, pg_catalog.now() - interval '30 days') AT TIME ZONE 'UTC')::date"
		" AND u.day <= (coalesce($2, pg_catalog.now()) AT TIME ZONE 'UTC')::date"
		" GROUP BY 2, 3, 4, u.price_unit ORDER BY 2, 3, 4, u.price_unit"
		" LIMIT coalesce(otp.api_check($3 IN ('day', 'month', 'channel', 'country'), 'group', 'It is day, month, channel or country.'),"
		" " FINITE "," " otp.api_check(" RANGE("'30 days'", "'366 days'") ", 'from', 'From it to the end are 366 days at most.'))",
		NULL
	},
	{
		"delivery_stats", API_ADMIN_KEY, true, API_ROWS, 200, 2,
		{{"from", API_TIME}, {"to", API_TIME}},
		"SELECT s.hour, s.channel, s.template, s.messages, s.sent, s.delivered, s.failed, s.fallbacks, s.verified,"
		" s.delivered_percent, s.failed_percent, s.fallback_percent, s.verified_percent, s.sent_p50, s.sent_p95, s.sent_p99,"
		" s.delivered_p50, s.delivered_p95, s.delivered_p99, s.verified_p50, s.verified_p95, s.verified_p99"
		" FROM otp.delivery_stats s WHERE s.workspace = $4"
		" AND s.hour >= coalesce($1, pg_catalog.now() - interval '1 day') AND s.hour <= coalesce($2, pg_catalog.now())"
		" ORDER BY s.hour DESC, s.channel, s.template"
		" LIMIT coalesce(" FINITE ", otp.api_check(" RANGE("'1 day'", "'31 days'") ","
		" 'from', 'From it to the end are 31 days at most.'))",
		NULL
	},
	{
		"credits", API_ADMIN_KEY, true, API_ROW, 200, 0,
		{{0}},
		"SELECT b.balance, b.metered, b.added, b.spent, b.credits_low FROM otp.credit_balances b WHERE b.workspace = $2",
		"credits_low"
	},
	{
		"credit_history", API_ADMIN_KEY, true, API_PAGE, 200, 2,
		{{"limit", API_INT}, {"after", API_TEXT}},
		"SELECT l.entry_id, l.at, l.kind, l.amount, l.reference, l.otp_id FROM otp.credit_history l WHERE l.workspace = $4"
		" AND l.entry_id < " AFTER_NUMBER("$2", "9223372036854775807")
		" ORDER BY l.entry_id DESC " PAGE("$1", "$2", NUMBER),
		NULL
	},
};

/* Give all */
const ApiFunction *
api_functions(int *n)
{
	*n = lengthof(functions);
	return functions;
}

/* Give the number of one */
int
api_number(const ApiFunction *function)
{
	return function - functions;
}

/* Find one */
const ApiFunction *
api_function(const char *name)
{
	for (int i = 0; i < lengthof(functions); i++)
		if (strcmp(functions[i].name, name) == 0)
			return &functions[i];
	return NULL;
}
