-- Protects: the administration by API. Every function answers an admin key,
-- for its own workspace, and no other key; what is another workspace's is not
-- found, not changed, not counted; what is shown once is shown, and no more;
-- lists page by page, and refuse what is no page of theirs.

\set SHOW_CONTEXT never
SET client_min_messages = error;
DELETE FROM otp.api_keys;
CREATE ROLE regress_otp_anon;
GRANT USAGE ON SCHEMA otp_api TO regress_otp_anon;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp_api TO regress_otp_anon;
SELECT otp.create_workspace('other') > 1 AS made;
SELECT workspace_id AS other_id FROM otp.workspaces WHERE name = 'other' \gset

SELECT key_id AS admin_id, api_key AS admin FROM otp.create_api_key('default', 'the admin', admin => true) \gset
SELECT key_id AS plain_id, api_key AS plain FROM otp.create_api_key('default', 'an application') \gset
SELECT key_id AS foreign_id, api_key AS foreign FROM otp.create_api_key('other', 'the other admin', admin => true) \gset

-- A call as PostgREST makes it for nobody in particular; NULL is no key
CREATE FUNCTION t.api(key text, call text, VARIADIC args text[] = '{}', OUT status int, OUT answer json) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('request.headers', json_strip_nulls(json_build_object('x-api-key', key))::text, true), set_config('response.status', '', true);
	SET LOCAL ROLE regress_otp_anon;
	EXECUTE 'SELECT otp_api.' || call INTO answer USING args[1], args[2], args[3], args[4];
	RESET ROLE;
	status := coalesce(nullif(current_setting('response.status', true), ''), '200')::int;
END $$;
-- Its answer in short: an error's code and message, else what it is
CREATE FUNCTION t.short(status int, answer json) RETURNS text LANGUAGE sql AS $$
	SELECT CASE WHEN json_typeof($2) = 'object' AND $2 ->> 'code' IS NOT NULL THEN concat_ws(' ', $1, $2 ->> 'code', '-', regexp_replace($2 ->> 'message', '\d{1,9}', 'N'), '(' || ($2 ->> 'hint') || ')')
		ELSE concat_ws(' ', $1, $2) END
$$;

-- Every one of them, with every kind of key; the arguments are what the function must have
CREATE TEMP TABLE administration AS
SELECT p.proname AS name, p.provolatile = 's' AS reads,
	format('%I(%s)', p.proname, (SELECT string_agg(format('%I => %s', a.name, CASE a.type WHEN 'integer'::regtype THEN '-1' WHEN 'text'::regtype THEN '''x''' END), ', ')
		FROM unnest(p.proargnames, p.proargtypes::oid[]) WITH ORDINALITY a (name, type, n) WHERE n <= p.pronargs - p.pronargdefaults)) AS call
FROM pg_proc p WHERE p.pronamespace = 'otp_api'::regnamespace AND p.prosrc = 'otp_api_call' AND p.proname NOT LIKE 'otp\_%' AND p.proname <> 'rate_limit_status';
SELECT a.name, a.reads, a.call, (t.api(NULL, a.call)).status AS nobody, (t.api('oat_00000000000000000000000000000000', a.call)).status AS unknown, (t.api(:'plain', a.call)).status AS plain
FROM administration a ORDER BY 1;
SELECT t.short(r.status, r.answer) FROM t.api(:'plain', 'api_keys()') r;
SELECT t.short(r.status, r.answer) FROM t.api(NULL, 'api_keys()') r;
-- Not even for whoever owns all: without a key it is nobody's workspace
SELECT t.error('SELECT otp_api.api_keys()'), current_setting('response.status');
RESET response.status;

--
-- Keys
--
SELECT r.status, r.answer -> 'has_more' AS more, d.value ->> 'key_id' = :'admin_id' AS me, d.value ->> 'name' AS name, d.value ->> 'admin' AS admin, d.value ->> 'status' AS status,
	d.value ->> 'prefix' = left(:'admin', 8) AS prefix, (SELECT string_agg(k, ' ') FROM json_object_keys(d.value) k) AS shown
FROM t.api(:'admin', 'api_keys()') r, json_array_elements(r.answer -> 'data') d;
SELECT r.status, d.value ->> 'name' AS name FROM t.api(:'foreign', 'api_keys()') r, json_array_elements(r.answer -> 'data') d;
-- Made: shown once, of its own workspace, an admin's or not
SELECT r.status, r.answer ->> 'key_id' AS made_id, r.answer ->> 'api_key' AS made, (SELECT string_agg(k, ' ') FROM json_object_keys(r.answer) k) AS shown
FROM t.api(:'admin', 'create_api_key(name => $1, expires_at => ''2100-01-01T00:00:00Z'')', 'shop') r \gset
SELECT :'status' AS status, :'shown' AS shown, :'made' ~ '^oat_[0-9A-Za-z]{32}$' AS key;
SELECT workspace, name, admin, expires_at = '2100-01-01 00:00:00+00' AS expires FROM otp.api_key_list WHERE key_id = :made_id;
SELECT r.answer ->> 'key_id' AS second_id, r.answer ->> 'api_key' AS second FROM t.api(:'admin', 'create_api_key(name => $1, admin => true)', 'second') r \gset
SELECT (t.api(:'made', 'otp_list()')).status AS made, (t.api(:'made', 'api_keys()')).status AS made_administers, (t.api(:'second', 'api_keys()')).status AS second_administers;
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('create_api_key(name => '''')'), ('create_api_key(name => NULL)'), ('create_api_key(name => ''x'', expires_at => ''2000-01-01'')')) v (call), t.api(:'admin', call) r;
-- Who made it: the key is in the audit, and nothing of a key but its number
SELECT a.action, a.workspace, a.details ->> 'api_key' = :'admin_id' AS by_admin, a.object = :'made_id' AS object FROM otp.audit a WHERE a.action = 'create_api_key' AND a.object = :'made_id';

-- Rotated: another one, the one that calls, another workspace's
SELECT r.status, r.answer ->> 'api_key' AS rotated, r.answer ->> 'key_id' AS rotated_id, r.answer ->> 'replaces' = :'made_id' AS replaces FROM t.api(:'admin', 'rotate_api_key(key_id => $1::int, overlap => 0)', :'made_id') r \gset
SELECT :'status' AS status, :'replaces' AS replaces, (t.api(:'made', 'otp_list()')).status AS old, (t.api(:'rotated', 'otp_list()')).status AS new;
SELECT t.short(r.status, r.answer) FROM t.api(:'admin', 'rotate_api_key(key_id => $1::int)', :'made_id') r;
SELECT r.status, r.answer ->> 'api_key' AS third FROM t.api(:'second', 'rotate_api_key(key_id => $1::int, overlap => 60)', :'second_id') r \gset
SELECT :'status' AS status, (t.api(:'second', 'credits()')).status AS old, (t.api(:'third', 'credits()')).status AS new;
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('rotate_api_key(key_id => $1::int, overlap => -1)'), ('rotate_api_key(key_id => $1::int, overlap => 2592001)'), ('rotate_api_key(key_id => NULL)'),
	('rotate_api_key(key_id => 2147483647)')) v (call), t.api(:'admin', call, :'plain_id') r;
SELECT t.short(r.status, r.answer) FROM t.api(:'foreign', 'rotate_api_key(key_id => $1::int)', :'admin_id') r;
-- Revoked: likewise
SELECT t.short(r.status, r.answer) FROM t.api(:'foreign', 'revoke_api_key(key_id => $1::int)', :'plain_id') r;
SELECT (t.api(:'plain', 'otp_list()')).status AS untouched;
SELECT t.short(r.status, r.answer) FROM t.api(:'admin', 'revoke_api_key(key_id => $1::int)', :'rotated_id') r;
SELECT (t.api(:'rotated', 'otp_list()')).status AS revoked;
SELECT t.short(r.status, r.answer) FROM t.api(:'third', 'revoke_api_key(key_id => $1::int)', :'second_id') r;
SELECT r.answer -> 'data' -> -1 ->> 'key_id' AS third_id FROM t.api(:'third', 'api_keys()') r \gset
SELECT t.short(r.status, r.answer) FROM t.api(:'third', 'revoke_api_key(key_id => $1::int)', :'third_id') r;
SELECT t.short(r.status, r.answer) FROM t.api(:'third', 'api_keys()') r;
SELECT (t.api(:'foreign', 'api_keys()')).status AS other_workspace;

-- Page by page
SELECT r.answer ->> 'next' AS next, json_array_length(r.answer -> 'data') AS rows FROM t.api(:'admin', 'api_keys("limit" => 2)') r \gset
SELECT :rows AS rows, :'next' = :'plain_id' AS next;
SELECT json_array_length(r.answer -> 'data') AS rows, (r.answer -> 'data' -> 0 ->> 'key_id')::int > :plain_id AS goes_on, r.answer ->> 'has_more' AS more FROM t.api(:'admin', 'api_keys("limit" => 100, after => $1)', :'next') r;
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('api_keys("limit" => 0)'), ('api_keys("limit" => 101)'), ('api_keys(after => '''')'), ('api_keys(after => ''x'')'), ('api_keys(after => ''1 OR true'')'),
	('api_keys(after => ''9999999999999999999'')'), ('templates(after => ''x'')'), ('templates("limit" => -1)'), ('credit_history(after => ''-1'')'), ('webhook_deliveries(endpoint_id => 1, after => ''msg_x.1'')'),
	('webhook_deliveries(endpoint_id => 1, "limit" => 1000)')) v (call), t.api(:'admin', call) r;
SELECT r.answer FROM t.api(:'admin', 'api_keys(after => ''999999999999999999'')') r;

--
-- Templates
--
INSERT INTO otp.templates (workspace_id, name, language, status, reason) VALUES (1, 'login', 'de', 'rejected', 'ABUSIVE_CONTENT'), (1, 'login', 'en_US', 'approved', NULL), (:other_id, 'secret', 'en_US', 'approved', NULL);
SELECT r.status, d.value ->> 'id' AS id, d.value ->> 'status' AS status, d.value ->> 'reason' AS reason FROM t.api(:'admin', 'templates()') r, json_array_elements(r.answer -> 'data') d;
SELECT d.value ->> 'id' AS id, r.answer ->> 'has_more' AS more FROM t.api(:'admin', 'templates("limit" => 1, after => ''login/de'')') r, json_array_elements(r.answer -> 'data') d;
SELECT d.value ->> 'id' AS id FROM t.api(:'foreign', 'templates()') r, json_array_elements(r.answer -> 'data') d WHERE d.value ->> 'name' <> 'otp_verification';
-- To Meta: there has to be an account
SELECT t.short(r.status, r.answer) FROM t.api(:'admin', 'create_template(name => ''welcome'')') r;
SELECT t.short(r.status, r.answer) FROM t.api(:'admin', 'sync_templates()') r;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', waba_id => '102290129340398', base_url => 'http://127.0.0.1:1');
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('create_template(name => ''welcome'')'), ('create_template(name => ''welcome_5'', language => ''de'', code_expiration_minutes => 5, variant_of => ''login'')'), ('sync_templates()'),
	('create_template(name => ''Bad Name'')'), ('create_template(name => ''login'', language => ''en_US'')'), ('create_template(name => ''w'', code_expiration_minutes => 5, variant_of => ''nothing'')'),
	('create_template(name => ''w'', button => ''one_tap'')'), ('create_template(name => NULL)')) v (call), t.api(:'admin', call) r;
SELECT workspace_id, payload::json ->> 'do' AS do, payload::json ->> 'name' AS name FROM otp.outbox WHERE kind = 'job' ORDER BY payload COLLATE "C";
DELETE FROM otp.outbox;
-- Another workspace's account is not used
SELECT t.short(r.status, r.answer) FROM t.api(:'foreign', 'create_template(name => ''welcome'')') r;
SELECT count(*) FROM otp.templates WHERE workspace_id = :other_id AND name = 'welcome';

--
-- Webhooks
--
SELECT r.status, r.answer ->> 'endpoint_id' AS endpoint, r.answer ->> 'secret' AS secret, r.answer - 'x' AS rest FROM (SELECT status, answer::jsonb AS answer FROM t.api(:'admin', 'create_webhook_endpoint(url => ''https://example.com/hook'', events => ''{otp.verified}'', description => ''mine'')')) r \gset
SELECT :'status' AS status, :'secret' ~ '^whsec_[A-Za-z0-9+/]{43}=$' AS secret, :'rest'::jsonb - 'secret' - 'endpoint_id' AS rest;
SELECT (r.answer ->> 'endpoint_id')::int AS foreign_endpoint FROM t.api(:'foreign', 'create_webhook_endpoint(url => ''https://example.org/theirs'')') r \gset
SELECT r.status, e.value ->> 'url' AS url, e.value ->> 'status' AS status, e.value -> 'events' AS events, (SELECT string_agg(k, ' ') FROM json_object_keys(e.value) k) AS shown FROM t.api(:'admin', 'webhook_endpoints()') r, json_array_elements(r.answer) e;
SELECT e.value ->> 'url' AS url FROM t.api(:'foreign', 'webhook_endpoints()') r, json_array_elements(r.answer) e;
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('create_webhook_endpoint(url => ''ftp://example.com'')'), ('create_webhook_endpoint(url => NULL)'), ('create_webhook_endpoint(url => ''https://example.com'', events => ''{nothing}'')')) v (call), t.api(:'admin', call) r;
-- One's own; another's is not there, for each of them
SELECT call, t.short(own.status, own.answer) AS own, t.short(theirs.status, theirs.answer) AS theirs FROM (VALUES
	('pause_webhook_endpoint(endpoint_id => $1::int)'), ('resume_webhook_endpoint(endpoint_id => $1::int)'), ('replay_webhooks(endpoint_id => $1::int, since => ''2100-01-01T00:00:00Z'')')) v (call),
	t.api(:'admin', call, :'endpoint') own, t.api(:'foreign', call, :'endpoint') theirs;
SELECT r.status, r.answer ->> 'secret' ~ '^whsec_' AND r.answer ->> 'secret' <> :'secret' AS another FROM t.api(:'admin', 'rotate_webhook_secret(endpoint_id => $1::int)', :'endpoint') r;
SELECT r.status, r.answer ->> 'webhook_id' ~ '^msg_' AS webhook_id FROM t.api(:'admin', 'send_test_webhook(endpoint_id => $1::int)', :'endpoint') r;
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('rotate_webhook_secret(endpoint_id => $1::int)'), ('send_test_webhook(endpoint_id => $1::int)'), ('delete_webhook_endpoint(endpoint_id => $1::int)'),
	('webhook_deliveries(endpoint_id => $1::int)')) v (call), t.api(:'foreign', call, :'endpoint') r;
SELECT t.short(r.status, r.answer) FROM t.api(:'admin', 'send_test_webhook(endpoint_id => $1::int, event => ''nothing'')', :'endpoint') r;
SELECT status FROM otp.webhook_endpoints WHERE endpoint_id = :endpoint;
UPDATE otp.webhook_endpoints SET status = 'disabled' WHERE endpoint_id = :endpoint;
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('pause_webhook_endpoint(endpoint_id => $1::int)'), ('send_test_webhook(endpoint_id => $1::int)')) v (call), t.api(:'admin', call, :'endpoint') r;
-- What became of them: the newest webhook first
INSERT INTO otp.webhook_attempts (workspace_id, endpoint_id, webhook_id, slot, attempt, number, event, occurred_at, attempted_at, http_status, delivered)
SELECT w.id, e.id, otp.parse_id('otp_01HXK7QZRN8V4M2P9D3Y5F6G7' || n), n, a, 1, 'otp.sent', '2026-06-02 19:17:32+00', '2026-06-02 19:17:33+00', 200, true
FROM (VALUES (1, :endpoint), (:other_id, :foreign_endpoint)) e (w, id), LATERAL (SELECT e.w AS id) w, generate_series(1, 3) n, generate_series(1, 2) a;
SELECT d.value FROM t.api(:'admin', 'webhook_deliveries(endpoint_id => $1::int, "limit" => 1)', :'endpoint') r, json_array_elements(r.answer -> 'data') d;
SELECT d.value ->> 'id' AS id, r.answer ->> 'next' AS next FROM t.api(:'admin', 'webhook_deliveries(endpoint_id => $1::int, "limit" => 3)', :'endpoint') r, json_array_elements(r.answer -> 'data') d;
SELECT d.value ->> 'id' AS id, r.answer ->> 'next' AS next FROM t.api(:'admin', 'webhook_deliveries(endpoint_id => $1::int, "limit" => 3, after => ''msg_01HXK7QZRN8V4M2P9D3Y5F6G72.1'')', :'endpoint') r, json_array_elements(r.answer -> 'data') d;
SELECT r.answer FROM t.api(:'admin', 'webhook_deliveries(endpoint_id => $1::int)', :'foreign_endpoint') r;
SELECT (t.api(:'admin', 'delete_webhook_endpoint(endpoint_id => $1::int)', :'endpoint')).status, (t.api(:'admin', 'delete_webhook_endpoint(endpoint_id => $1::int)', :'endpoint')).status AS again;
SELECT url FROM otp.webhook_endpoint_list;
-- 16 are the most
SELECT r.status, r.answer ->> 'code' AS code, count(*) FROM generate_series(1, 17) n, t.api(:'admin', 'create_webhook_endpoint(url => ''https://example.com/'' || ' || n || ')') r GROUP BY 1, 2 ORDER BY 1;

--
-- Figures
--
INSERT INTO otp.usage_days (workspace_id, day, channel, country, pricing_category, price_unit, sends, messages, sent, delivered, verified, credits, price)
SELECT w, d::date, c, l, '', 'USD', 1, 2, 2, 1, 1, 1, 0.05 FROM unnest(ARRAY[1, :other_id]) w, unnest('{2026-05-31,2026-06-01,2026-06-02}'::text[]) d, unnest('{sms,whatsapp}'::text[]) c, unnest('{DE,US}'::text[]) l;
SELECT g, u.value FROM unnest('{NULL,day,month,channel,country}'::text[]) g, t.api(:'admin', format('usage("from" => ''2026-05-31'', "to" => ''2026-06-01T23:59:59Z'', "group" => %L)', g)) r, json_array_elements(r.answer) u;
SELECT r.status, r.answer FROM t.api(:'foreign', 'usage("from" => ''2026-06-02'', "to" => ''2026-06-02'', "group" => ''month'')') r;
SELECT r.status, r.answer FROM t.api(:'admin', 'usage("from" => ''2020-01-01'', "to" => ''2020-02-01'')') r;
SELECT call, t.short(r.status, r.answer) FROM (VALUES ('usage("group" => ''phone'')'), ('usage("from" => ''2026-06-02'', "to" => ''2026-06-01'')'), ('usage("from" => ''2020-01-01'', "to" => ''2026-06-01'')'),
	('delivery_stats("from" => ''2026-05-01'', "to" => ''2026-06-02'')'), ('delivery_stats("from" => ''2026-06-02'', "to" => ''2026-06-01'')'), ('usage("from" => ''infinity'')'), ('usage("from" => ''-infinity'')')) v (call), t.api(:'admin', call) r;
INSERT INTO otp.stats_hours (workspace_id, hour, channel, template, messages, sent, delivered, failed, fallbacks, verified, sent_times, delivered_times, verified_times)
SELECT w, h, 'whatsapp', 'login', 10, 8, 4, 2, 1, w, '{}', '{}', '{}' FROM unnest(ARRAY[1, :other_id]) w, generate_series('2026-06-01 10:00+00'::timestamptz, '2026-06-01 12:00+00', '1 h') h;
SELECT s.value FROM t.api(:'admin', 'delivery_stats("from" => ''2026-06-01T11:00:00Z'', "to" => ''2026-06-02T00:00:00Z'')') r, json_array_elements(r.answer) s;
SELECT r.status, json_array_length(r.answer) AS rows FROM t.api(:'foreign', 'delivery_stats("from" => ''2026-06-01T11:00:00Z'', "to" => ''2026-06-02T00:00:00Z'')') r;
SELECT r.answer FROM t.api(:'admin', 'delivery_stats()') r;
-- Credits
SELECT otp.add_credits('default', 100, reference => 'invoice 1'), otp.add_credits('default', -10, reference => 'correction'), otp.add_credits('other', 7, reference => 'theirs');
SELECT r.status, r.answer FROM t.api(:'admin', 'credits()') r;
SELECT r.status, r.answer FROM t.api(:'foreign', 'credits()') r;
SELECT r.status, d.value ->> 'amount' AS amount, d.value ->> 'reference' AS reference, r.answer ->> 'has_more' AS more, d.value ->> 'entry_id' = r.answer ->> 'next' AS next FROM t.api(:'admin', 'credit_history("limit" => 1)') r, json_array_elements(r.answer -> 'data') d;
SELECT d.value ->> 'reference' AS reference, r.answer ->> 'has_more' AS more FROM t.api(:'admin', 'credit_history(after => $1)', (SELECT r.answer ->> 'next' FROM t.api(:'admin', 'credit_history("limit" => 1)') r)) r, json_array_elements(r.answer -> 'data') d;
SELECT d.value ->> 'reference' AS reference FROM t.api(:'foreign', 'credit_history()') r, json_array_elements(r.answer -> 'data') d;

-- A suspended workspace is administered all the same; a deleted one's keys are none
UPDATE otp.workspaces SET suspended_at = now() WHERE name = 'other';
SELECT (t.api(:'foreign', 'api_keys()')).status;
SELECT otp.delete_workspace('other', cascade => true);
SELECT (t.api(:'foreign', 'api_keys()')).status;

-- Reading ones in a read-only transaction, writing ones not: an answer, too
BEGIN READ ONLY;
SELECT a.name, a.reads, (t.api(:'admin', a.call)).status FROM administration a WHERE a.name IN ('api_keys', 'templates', 'webhook_endpoints', 'webhook_deliveries', 'usage', 'delivery_stats', 'credits', 'credit_history', 'create_api_key', 'sync_templates') ORDER BY 1;
ROLLBACK;
-- Nothing is won by a rollback
SELECT set_config('request.headers', json_build_object('x-api-key', :'admin', 'prefer', 'tx=rollback')::text, false) <> '' AS set;
SELECT otp_api.create_api_key(name => 'x') ->> 'code' AS writes, json_typeof(otp_api.api_keys() -> 'data') AS reads;
RESET request.headers;

-- What is not its own, behind it
SELECT workspace, count(*) FROM otp.api_key_list WHERE name = 'x' GROUP BY 1;
DELETE FROM otp.outbox;
DELETE FROM otp.usage_days;
DELETE FROM otp.stats_hours;
DELETE FROM otp.webhook_attempts;
DELETE FROM otp.webhook_outbox;
DELETE FROM otp.webhook_endpoints;
DELETE FROM otp.templates WHERE NOT seeded;
UPDATE otp.workspaces SET whatsapp_account = NULL;
DELETE FROM otp.provider_accounts;
DELETE FROM otp.api_keys;
DELETE FROM otp.api_key_uses;
DROP FUNCTION t.api, t.short;
DROP OWNED BY regress_otp_anon;
DROP ROLE regress_otp_anon;
