-- Protects: webhook endpoints as those who make them see them. Every check of
-- an argument, whose endpoints one finds, secrets that are shown once and
-- sealed, what each function changes, and that callers who prepare the ground
-- do not get at another workspace's. What is sent is for the TAP tests.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_hooks;
CREATE ROLE regress_otp_other_hooks;
CREATE ROLE regress_otp_no_hooks;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other');
SELECT otp.grant_workspace('default', 'regress_otp_hooks');
SELECT otp.grant_workspace('other', 'regress_otp_other_hooks');
CREATE VIEW t.endpoints AS
SELECT workspace_id, url, events, description, status, disabled_reason, disabled_at IS NOT NULL AS disabled, failing_since IS NOT NULL AS failing,
	secret IS NOT NULL AS sealed, previous_secret IS NOT NULL AS previous, previous_until - clock_timestamp() BETWEEN interval '23:59' AND interval '24:00' AS for_a_day
FROM otp.webhook_endpoints ORDER BY endpoint_id;

-- A secret, once
SET ROLE regress_otp_hooks;
SELECT endpoint_id AS mine, secret AS first_secret FROM otp.create_webhook_endpoint('https://example.com/hooks?a=b', description => 'mine') \gset
SELECT :'first_secret' ~ '^whsec_[A-Za-z0-9+/]{43}=$' AS secret;
SELECT endpoint_id AS some FROM otp.create_webhook_endpoint('https://example.com:8443', ARRAY['otp.verified', 'otp.failed'], workspace => 'default') \gset
RESET ROLE;
SET ROLE regress_otp_other_hooks;
SELECT endpoint_id AS theirs FROM otp.create_webhook_endpoint('https://example.org/', '{otp.sent,otp.delivered,otp.verified,otp.expired,otp.failed,otp.sms_fallback}') \gset
RESET ROLE;
SELECT * FROM t.endpoints;

-- and to be read nowhere
CREATE FUNCTION t.readable(secret text) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM otp.webhook_endpoints e, (SELECT substr(secret, 7) AS text, decode(substr(secret, 7), 'base64') AS bytes) s
	WHERE position(s.bytes IN e.secret) > 0 OR position(s.bytes IN e.previous_secret) > 0 OR position(s.text IN e::text) > 0
		OR position(s.text IN (SELECT string_agg(l::text, '') FROM otp.webhook_endpoint_list l)) > 0
		OR position(convert_to(s.text, 'UTF8') IN e.secret) > 0
$$;
SELECT t.readable(:'first_secret');

-- What one sees
SET ROLE regress_otp_hooks;
SELECT workspace, url, events, description, status, disabled_reason, disabled_at, failing_since, previous_secret_until, waiting FROM otp.webhook_endpoint_list ORDER BY endpoint_id;
SELECT count(*) FROM otp.webhook_deliveries;
SELECT t.error('SELECT FROM otp.' || name) FROM unnest(ARRAY['webhook_endpoints', 'webhook_outbox', 'webhook_attempts']) name;
SELECT a.attname FROM pg_attribute a WHERE a.attrelid = 'otp.webhook_endpoint_list'::regclass AND a.attname ~ 'secret|key';

-- URLs
BEGIN;
SELECT url, t.error('SELECT otp.create_webhook_endpoint($1)', url) FROM unnest(ARRAY[NULL, '', 'x', 'example.com', 'http://example.com', 'ftp://example.com/', 'file:///etc/passwd', 'https:', 'https://', 'https:///x',
	'https://user@example.com/', 'https://user:password@example.com/', 'https://@example.com/', 'https://example.com/#top', 'https://example.com/a b', E'https://example.com/a\nb', E'https://example.com/a\\b', 'https://bücher.example/', 'https://example.com:0/', 'https://example.com:65536/', 'https://example.com:x/']) url;
SELECT t.error('SELECT otp.create_webhook_endpoint($1)', 'https://example.com/' || repeat('x', 1980)) ~ '^no error' AS long, t.error('SELECT otp.create_webhook_endpoint($1)', 'https://example.com/' || repeat('x', 1981)) AS longer;
ROLLBACK;
-- Addresses that only somebody inside can mean, however they are written
SELECT host, left(t.error('SELECT otp.create_webhook_endpoint($1)', 'https://' || host || '/'), 5) AS error FROM unnest(ARRAY['localhost', 'localhost.', 'a.localhost', 'LOCALHOST:8080', '0.0.0.0', '0.1.2.3', '127.0.0.1', '127.255.255.254', '127.1', '2130706433', '0x7f.1', '0177.0.0.1', '10.0.0.1', '100.64.0.1', '100.127.255.255', '169.254.169.254',
	'172.16.0.1', '172.31.255.255', '192.168.1.1', '192.0.0.1', '198.18.0.1', '224.0.0.1', '240.0.0.1', '255.255.255.255', '[::]', '[::1]', '[::ffff:127.0.0.1]', '[::ffff:a9fe:a9fe]', '[::127.0.0.1]', '[64:ff9b::7f00:1]', '[64:ff9b:1::1]', '[2002:7f00:1::1]', '[2002:a00:1::]',
	'[fc00::1]', '[fdff::1]', '[fe80::1]', '[fec0::1]', '[ff02::1]', '[2001::1]', '[2001:db8::1]', '[100::1]']) host;
BEGIN;
SELECT host, left(t.error('SELECT otp.create_webhook_endpoint($1)', 'https://' || host || '/'), 8) AS error FROM unnest(ARRAY['8.8.8.8', '100.63.255.255', '100.128.0.1', '172.15.0.1', '172.32.0.1', '[2606:4700::1]', '[::ffff:8.8.8.8]', '[64:ff9b::808:808]', '[2002:808:808::1]', 'localhost.example.com', 'notlocalhost', 'metadata.google.internal']) host;
ROLLBACK;

-- Events, descriptions, workspaces
SELECT events, t.error('SELECT otp.create_webhook_endpoint(''https://example.com'', $1::text[])', events) FROM unnest(ARRAY['{}', '{otp.read}', '{OTP.SENT}', '{otp.sent,NULL}', '{NULL}', '{{otp.sent},{otp.failed}}', '{otp.sent,otp.sent,otp.sent,otp.sent,otp.sent,otp.sent,otp.sent,otp.sent}']) events;
SELECT t.error('SELECT otp.create_webhook_endpoint(''https://example.com'', description => repeat(''x'', 1001))');
SELECT t.error('SELECT otp.create_webhook_endpoint(''https://example.com'', workspace => ''other'')'), t.error('SELECT otp.create_webhook_endpoint(''http://127.0.0.1'', workspace => ''nowhere'')');
RESET ROLE;
-- http:// is for tests, which a superuser's setting says; addresses have a setting of their own
BEGIN;
SELECT t.error('SELECT otp.create_webhook_endpoint(''http://example.com'', workspace => ''default'')');
ROLLBACK;
SET otp.allow_insecure_http = off;
SELECT t.error('SELECT otp.create_webhook_endpoint(''http://example.com'', workspace => ''default'')');
RESET otp.allow_insecure_http;
SELECT t.error('SELECT otp.create_webhook_endpoint(''http://127.0.0.1:9/'', workspace => ''default'')');

-- There is an end to them
BEGIN;
DO $$ BEGIN FOR i IN 1 .. 16 - (SELECT count(*) FROM otp.webhook_endpoints WHERE workspace_id = 1) LOOP PERFORM otp.create_webhook_endpoint('https://example.com', workspace => 'default'); END LOOP; END $$;
SELECT t.error('SELECT otp.create_webhook_endpoint(''https://example.com'', workspace => ''default'')');
SELECT t.error('SELECT otp.create_webhook_endpoint(''https://example.com'', workspace => ''other'')');
ROLLBACK;

-- Another workspace's endpoint is an unknown one
SET ROLE regress_otp_other_hooks;
SELECT call, replace(t.error(format('SELECT otp.%s', format(call, :mine))), ' ' || :mine || ' ', ' N ') = replace(t.error(format('SELECT otp.%s', format(call, 2000000000))), ' 2000000000 ', ' N ') AS same, left(t.error(format('SELECT otp.%s', format(call, :mine))), 5) AS error
FROM unnest(ARRAY['pause_webhook_endpoint(%s)', 'resume_webhook_endpoint(%s)', 'rotate_webhook_secret(%s)', 'delete_webhook_endpoint(%s)', 'send_test_webhook(%s)', 'replay_webhooks(%s)']) call;
SELECT url FROM otp.webhook_endpoint_list;
SELECT t.error('SELECT otp.pause_webhook_endpoint(2000000000)');
-- and whoever has no grant has none
SET ROLE regress_otp_no_hooks;
SELECT DISTINCT left(t.error('SELECT otp.' || call), 5) FROM unnest(ARRAY['create_webhook_endpoint(''https://example.com'')', 'pause_webhook_endpoint(1)', 'replay_webhooks(1)', 'send_test_webhook(1)']) call;
RESET ROLE;
BEGIN;
GRANT USAGE ON SCHEMA otp TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp TO PUBLIC;
SET LOCAL ROLE regress_otp_no_hooks;
SELECT call, t.error(format('SELECT otp.%s', format(call, :mine))) FROM unnest(ARRAY['create_webhook_endpoint(''https://example.com'')', 'create_webhook_endpoint(''x'', workspace => ''default'')', 'pause_webhook_endpoint(%s)', 'resume_webhook_endpoint(%s)', 'rotate_webhook_secret(%s)', 'delete_webhook_endpoint(%s)', 'send_test_webhook(%s)', 'replay_webhooks(%s)']) call;
ROLLBACK;
SELECT status, count(*) FROM t.endpoints GROUP BY 1;

-- Rotate: the one before lives for a day
SET ROLE regress_otp_hooks;
SELECT otp.rotate_webhook_secret(:mine) AS second_secret \gset
SELECT :'second_secret' ~ '^whsec_[A-Za-z0-9+/]{43}=$' AS secret, :'second_secret' <> :'first_secret' AS other;
SELECT previous_secret_until > now() AS until FROM otp.webhook_endpoint_list WHERE endpoint_id = :mine;
RESET ROLE;
SELECT t.readable(:'first_secret'), t.readable(:'second_secret');
SELECT sealed, previous, for_a_day FROM t.endpoints WHERE description = 'mine';

-- Pause, resume; what is disabled can only be resumed
SET ROLE regress_otp_hooks;
SELECT otp.pause_webhook_endpoint(:mine);
SELECT otp.pause_webhook_endpoint(:mine);
SELECT status FROM otp.webhook_endpoint_list WHERE endpoint_id = :mine;
SELECT otp.resume_webhook_endpoint(:mine);
SELECT status FROM otp.webhook_endpoint_list WHERE endpoint_id = :mine;
RESET ROLE;
UPDATE otp.webhook_endpoints SET status = 'disabled', disabled_reason = 'it answered 410: gone', disabled_at = now(), failing_since = now() WHERE endpoint_id = :mine;
SET ROLE regress_otp_hooks;
SELECT regexp_replace(t.error('SELECT otp.' || format(call, :mine)), '\d\d+|endpoint \d+', 'N', 'g') FROM unnest(ARRAY['pause_webhook_endpoint(%s)', 'send_test_webhook(%s)', 'replay_webhooks(%s)']) call;
SELECT otp.resume_webhook_endpoint(:mine);
SELECT status, disabled_reason, disabled_at, failing_since FROM otp.webhook_endpoint_list WHERE endpoint_id = :mine;

-- What is to be sent goes through the outbox
SELECT otp.send_test_webhook(:mine) AS test \gset
SELECT :'test' ~ '^msg_[0-7][0-9A-HJKMNP-TV-Z]{25}$' AS id;
SELECT otp.send_test_webhook(:mine, 'otp.sms_fallback') IS NOT NULL AS id;
SELECT t.error('SELECT otp.send_test_webhook($1::int, $2)', :'mine', event) FROM unnest(ARRAY['', 'otp.read']) event;
SELECT otp.replay_webhooks(:mine);
SELECT otp.replay_webhooks(:mine, now() - interval '1 hour', false);
SELECT t.error('SELECT otp.replay_webhooks($1::int, $2::timestamptz)', :'mine', since) FROM unnest(ARRAY['infinity', '-infinity', 'tomorrow']) since;
RESET ROLE;
SELECT o.kind, o.workspace_id, p ->> 'do' AS what, (p ->> 'endpoint_id')::int = :mine AS endpoint, p ->> 'event' AS event, substr(p ->> 'id', 5) = substr(:'test', 5) AS id, p ->> 'only_failed' AS only_failed
FROM otp.outbox o, CAST(o.payload AS json) p WHERE o.kind = 'job' AND p ->> 'do' IN ('test_webhook', 'replay_webhooks') ORDER BY 3, 5, 7;
DELETE FROM otp.outbox WHERE kind = 'job';

-- and there is an end to that, in one statement as well, for each workspace; what is refused otherwise counts for nothing
SET ROLE regress_otp_other_hooks;
BEGIN;
DO $$ BEGIN FOR i IN 1 .. 1000 LOOP BEGIN PERFORM otp.send_test_webhook(2000000000); EXCEPTION WHEN undefined_object THEN NULL; END; END LOOP; END $$;
SELECT count(otp.send_test_webhook(:theirs)) FROM generate_series(1, 10);
SELECT t.error(format('SELECT otp.send_test_webhook(%s) FROM generate_series(1, 2000)', :theirs));
SELECT t.error(format('SELECT otp.replay_webhooks(%s) FROM generate_series(1, 2000)', :theirs));
-- nor can the audit be filled with changes
SELECT left(t.error(format('SELECT ' || call || ' FROM generate_series(1, 2000)', :theirs)), 5) AS error FROM unnest(ARRAY['(otp.pause_webhook_endpoint(%1$s), otp.resume_webhook_endpoint(%1$s))', 'otp.rotate_webhook_secret(%s)', 'otp.delete_webhook_endpoint((otp.create_webhook_endpoint(''https://8.8.8.8/%s'')).endpoint_id)']) call;
ROLLBACK;
RESET ROLE;
SELECT otp.send_test_webhook(:mine) IS NOT NULL AS others;
DELETE FROM otp.outbox WHERE kind = 'job';

-- NULL is not an endpoint
SELECT DISTINCT t.error('SELECT otp.' || call) FROM unnest(ARRAY['pause_webhook_endpoint(NULL)', 'resume_webhook_endpoint(NULL)', 'rotate_webhook_secret(NULL)', 'delete_webhook_endpoint(NULL)', 'send_test_webhook(NULL)', 'replay_webhooks(NULL)']) call;

-- Delete
SET ROLE regress_otp_hooks;
SELECT otp.delete_webhook_endpoint(:some);
SELECT left(t.error(format('SELECT otp.delete_webhook_endpoint(%s)', :some)), 5);
RESET ROLE;
-- and roll it back
BEGIN;
SELECT otp.delete_webhook_endpoint(:theirs);
ROLLBACK;
SELECT workspace_id, url FROM t.endpoints;

-- Attempts: one's own, without the phone
INSERT INTO otp.webhook_attempts (workspace_id, endpoint_id, webhook_id, slot, attempt, number, event, verification_id, occurred_at, attempted_at, duration_ms, http_status, error, delivered, next_attempt_at)
SELECT w, e, otp.parse_id('otp_01HXK7QZRN8V4M2P9D3Y5F6G7H'), 0, 1, 0, 'otp.verified', otp.parse_id('otp_01HXK7QZRN8V4M2P9D3Y5F6G7J'), '2026-06-02 19:14:18Z', '2026-06-02 19:14:19Z', 12, 503, 'HTTP status 503', false, NULL
FROM (VALUES (1, :mine), (2, :theirs)) v (w, e);
SET ROLE regress_otp_hooks;
SELECT workspace, url, webhook_id, event, otp_id, attempt, duration_ms, delivered, http_status, error, next_attempt_at, given_up FROM otp.webhook_deliveries;
-- not to be looked through by functions of one's own
CREATE FUNCTION pg_temp.peek(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN IF $1 = 'other' THEN RAISE 'seen'; END IF; RETURN true; END $$;
SELECT t.error('SELECT FROM otp.webhook_deliveries WHERE pg_temp.peek(workspace)');
SELECT t.error('SELECT FROM otp.webhook_endpoint_list WHERE pg_temp.peek(workspace)');
RESET ROLE;
TRUNCATE otp.webhook_attempts;

-- Callers who prepare the ground
SET ROLE regress_otp_other_hooks;
CREATE TEMP TABLE webhook_endpoints (workspace_id int, endpoint_id int, status text);
INSERT INTO webhook_endpoints VALUES (2, :mine, 'enabled');
CREATE TEMP TABLE outbox (id uuid);
SET search_path = pg_temp, public, pg_catalog;
SELECT left(t.error(format('SELECT otp.delete_webhook_endpoint(%s)', :mine)), 5), left(t.error(format('SELECT otp.send_test_webhook(%s)', :mine)), 5);
SELECT url FROM otp.webhook_endpoint_list;
RESET search_path;
RESET ROLE;

-- A grant that is gone takes the rest along
SELECT otp.revoke_workspace('default', 'regress_otp_hooks');
SELECT DISTINCT p.proname FROM pg_proc p, aclexplode(p.proacl) x WHERE p.pronamespace = 'otp'::regnamespace AND x.grantee = 'regress_otp_hooks'::regrole;
SELECT otp.revoke_workspace('other', 'regress_otp_other_hooks');
DELETE FROM otp.webhook_endpoints;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
DROP VIEW t.endpoints;
DROP FUNCTION t.readable;
DROP OWNED BY regress_otp_hooks, regress_otp_other_hooks, regress_otp_no_hooks;
DROP ROLE regress_otp_hooks, regress_otp_other_hooks, regress_otp_no_hooks;
