-- Protects: the audit. Every action with its role, workspace, object and
-- details, whether by a function or by SQL; the caller, not the owner that
-- the functions run as, also after errors; nothing secret in it; nothing
-- taken away from it; a tenant sees its own workspace's entries only.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_audit;
CREATE ROLE regress_otp_audit_admin;
SELECT pg_get_userbyid(extowner) AS owner FROM pg_extension WHERE extname = 'otp' \gset
GRANT :"owner" TO regress_otp_audit_admin;
GRANT SELECT, UPDATE ON otp.workspaces TO regress_otp_audit_admin;

-- What was added since the last look; names of roles and ids made equal
CREATE TABLE t.seen (last int8);
INSERT INTO t.seen SELECT coalesce(max(entry_id), 0) FROM otp.audit_entries;
SELECT last AS first FROM t.seen \gset
CREATE FUNCTION t.look() RETURNS TABLE (role text, action text, workspace text, object text, details text) LANGUAGE sql AS $$
	WITH new AS (
		SELECT a.* FROM otp.audit a, t.seen WHERE a.entry_id > seen.last
	), mark AS (
		UPDATE t.seen SET last = (SELECT max(entry_id) FROM otp.audit_entries)
	)
	SELECT CASE WHEN role = session_user THEN 'the session''s' ELSE role END, action, workspace, CASE WHEN object ~ '^\d+$' THEN 'N' ELSE object END,
		regexp_replace(regexp_replace((details - 'session_user')::text, '"20\d\d-[^"]*"', '"T"', 'g'), '"(replaces|whatsapp_account|sms_account)": \[(null, )?\d+', '"\1": [\2N', 'g')
		|| CASE WHEN details ? 'session_user' AND details ->> 'session_user' = session_user THEN ' of the session''s' ELSE '' END
	FROM new ORDER BY entry_id
$$;

-- Workspaces, by SQL
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'audited');
SELECT role, action, workspace, object, details::jsonb -> 'name' AS name, details::jsonb -> 'max_attempts' AS max_attempts, details::jsonb ? 'suspended_at' AS suspended FROM t.look();
UPDATE otp.workspaces SET max_attempts = 5, resend_cooldown = '1 min', allowed_prefixes = '{+1,+44}', require_context = true, sends_per_phone_day = 7 WHERE workspace_id = 2;
UPDATE otp.workspaces SET max_attempts = 5 WHERE workspace_id = 2;
SET ROLE regress_otp_audit_admin;
UPDATE otp.workspaces SET suspended_at = now(), suspended_reason = 'unpaid', app_name = 'X "quoted" \ ü' WHERE workspace_id = 2;
UPDATE otp.workspaces SET suspended_at = NULL, suspended_reason = NULL WHERE workspace_id = 2;
RESET ROLE;
UPDATE otp.workspaces SET name = 'renamed', sms_sender = '+15550119876', whatsapp_sender = '1234567' WHERE workspace_id = 2;
UPDATE otp.workspaces SET sms_sender = 'Acme' WHERE workspace_id = 2;
-- values look the same whatever the session's settings
BEGIN;
SET LOCAL IntervalStyle = 'iso_8601';
SET LOCAL DateStyle = 'German';
UPDATE otp.workspaces SET resend_cooldown = '2 days 3 min', suspended_at = '2031-02-03 04:05:06+00' WHERE workspace_id = 2;
SELECT details #>> '{resend_cooldown,1}' AS cooldown, (details #>> '{suspended_at,1}')::timestamptz = '2031-02-03 04:05:06+00' AS same, details #>> '{suspended_at,1}' ~ '^2031-02-0' AS iso FROM otp.audit ORDER BY entry_id DESC LIMIT 2;
ROLLBACK;
-- rolled back with what it tells of
SELECT * FROM t.look();

-- Grants
SELECT otp.grant_workspace('renamed', 'regress_otp_audit');
SELECT otp.grant_workspace('renamed', 'regress_otp_audit');
SELECT otp.grant_workspace('default', 'regress_otp_audit');
SELECT otp.revoke_workspace('default', 'regress_otp_audit');
UPDATE otp.workspace_grants SET role = 'regress_otp_audit_admin' WHERE workspace_id = 2;
UPDATE otp.workspace_grants SET role = 'regress_otp_audit' WHERE workspace_id = 2;
UPDATE otp.workspace_grants SET role = role;
SELECT * FROM t.look();

-- Providers: no secret, of URLs and phones what does no harm
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'EAAhushtoken', app_secret => 'appsechush',
	base_url => 'http://127.0.0.1:1/hushpath', account => 'audited', workspace => 'renamed');
SELECT otp.configure_meta(access_token => 'EAAotherhush', account => 'audited', workspace => 'renamed');
SELECT otp.configure_meta(phone_number_id => '2', verify_token => 'hushverify', base_url => '', account => 'audited', workspace => 'renamed');
SELECT otp.configure_twilio(account_sid => 'ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', auth_token => 'hushauth', sender => '+15550119876', base_url => 'http://127.0.0.1:1',
	status_callback => 'https://example.com:8443/hook?token=hushquery', account => 'audited_sms', workspace => 'renamed');
UPDATE otp.provider_accounts SET settings = settings || '{"something": "hushnew"}', version = version + 1 WHERE name = 'audited_sms';
UPDATE otp.provider_accounts SET settings = '["hushnew", "api_version"]' WHERE name = 'audited_sms';
UPDATE otp.provider_accounts SET settings = '{"api_version": {"hush": 1}, "sender": 15550119876}' WHERE name = 'audited_sms';
-- the sender's own columns are none of it
UPDATE otp.provider_accounts SET receipts_from = '{2}', updated_at = now(), version = version + 1 WHERE name = 'audited';
DELETE FROM otp.provider_accounts WHERE name = 'audited_sms';
DELETE FROM otp.provider_accounts WHERE name = 'audited';
SELECT * FROM t.look();

-- API keys
SET ROLE regress_otp_audit_admin;
SELECT key_id AS key, api_key AS secret_key FROM otp.create_api_key('renamed', 'shop', admin => true) \gset
SELECT key_id AS key2, api_key AS secret_key2 FROM otp.rotate_api_key(:key) \gset
SELECT otp.revoke_api_key(:key2);
SELECT otp.revoke_api_key(:key2);
RESET ROLE;
UPDATE otp.api_keys SET name = 'shops', hash = '\x00' WHERE key_id = :key;
DELETE FROM otp.api_keys WHERE key_id = :key;
SELECT * FROM t.look();

-- Webhook endpoints: the tenant's own doing
SET ROLE regress_otp_audit;
SELECT endpoint_id AS hook, secret AS hook_secret FROM otp.create_webhook_endpoint('https://example.com/hushpath?hush=1', '{otp.sent}', 'ours') \gset
SELECT otp.pause_webhook_endpoint(:hook);
SELECT otp.pause_webhook_endpoint(:hook);
SELECT otp.resume_webhook_endpoint(:hook);
SELECT otp.rotate_webhook_secret(:hook) AS hook_secret2 \gset
RESET ROLE;
UPDATE otp.webhook_endpoints SET url = 'https://user:hush@b.example:99?hush', events = NULL, failing_since = now() WHERE endpoint_id = :hook;
UPDATE otp.webhook_endpoints SET failing_since = NULL WHERE endpoint_id = :hook;
UPDATE otp.webhook_endpoints SET status = 'disabled', disabled_reason = 'by hand', disabled_at = now() WHERE endpoint_id = :hook;
SET ROLE regress_otp_audit;
SELECT otp.delete_webhook_endpoint(:hook);
RESET ROLE;
SELECT * FROM t.look();

-- Test numbers: neither phone nor code
SELECT otp.set_test_number('+15550119876', '83918391', workspace => 'renamed');
SELECT otp.set_test_number('+15550119876', '83928392', 'failed', '2040-01-01', workspace => 'renamed');
SELECT otp.set_test_number('+15550119876', NULL, workspace => 'renamed');
SELECT otp.set_test_number('+15550119876', NULL, workspace => 'renamed');
SELECT otp.set_test_number('+1555011', '8391', workspace => 'renamed');
SET ROLE regress_otp_audit;
SELECT test_numbers FROM otp.forget_phone('+1555011');
RESET ROLE;
SELECT * FROM t.look();

-- Limits, texts, templates
INSERT INTO otp.key_limits VALUES (2, 'ip', 10, NULL);
UPDATE otp.key_limits SET sends_per_day = 20 WHERE workspace_id = 2;
DELETE FROM otp.key_limits WHERE workspace_id = 2;
INSERT INTO otp.sms_texts (workspace_id, template, language, country_prefix, body, sender) VALUES (2, 'login', 'de', '+49', 'Code: {code}', '+15550119876');
UPDATE otp.sms_texts SET body = '{code}' WHERE workspace_id = 2;
DELETE FROM otp.sms_texts WHERE workspace_id = 2;
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'login', 'de');
UPDATE otp.templates SET status = 'approved', checked_at = now(), reason = 'x' WHERE workspace_id = 2;
UPDATE otp.templates SET checked_at = now(), updated_at = now() WHERE workspace_id = 2;
DELETE FROM otp.templates WHERE workspace_id = 2;
SELECT * FROM t.look();

-- A row that moves to another workspace: both are told
BEGIN;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (3, 'taker');
SELECT endpoint_id AS hook FROM otp.create_webhook_endpoint('https://example.com/', workspace => 'renamed') \gset
SELECT key_id AS key FROM otp.create_api_key('renamed', 'moved') \gset
INSERT INTO otp.key_limits VALUES (2, 'ip', 10, NULL);
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'login', 'de');
SELECT otp.set_test_number('+15550119876', '83918391', workspace => 'renamed');
SELECT count(*) FROM t.look();
UPDATE otp.webhook_endpoints SET workspace_id = 3 WHERE endpoint_id = :hook;
UPDATE otp.webhook_endpoints SET endpoint_id = 1000000 WHERE endpoint_id = :hook;
UPDATE otp.api_keys SET workspace_id = 3 WHERE key_id = :key;
UPDATE otp.key_limits SET workspace_id = 3 WHERE workspace_id = 2;
UPDATE otp.templates SET workspace_id = 3 WHERE workspace_id = 2;
UPDATE otp.test_numbers SET workspace_id = 3 WHERE workspace_id = 2;
SELECT role, action, workspace, object FROM t.look();
SET LOCAL ROLE regress_otp_audit_admin;
UPDATE otp.workspaces SET workspace_id = 4 WHERE workspace_id = 3;
RESET ROLE;
SELECT role, action, workspace_id, object, details ->> 'name' AS name FROM otp.audit ORDER BY entry_id DESC LIMIT 2;
ROLLBACK;

-- Credits: what people add, not what the sender does
BEGIN;
INSERT INTO otp.credit_ledger (workspace_id, amount, kind, reference) VALUES (2, 1000, 'top_up', 'invoice 1'), (2, -10, 'correction', NULL), (2, -1, 'fallback', NULL), (2, 1, 'refund', NULL);
SELECT * FROM t.look();
ROLLBACK;

-- A seed is a row like any other, but for the one that a restored row replaces
BEGIN;
UPDATE otp.sms_texts SET seeded = true WHERE workspace_id = 1;
UPDATE otp.templates SET seeded = true WHERE workspace_id = 1;
ROLLBACK;
SELECT count(*) FROM t.look();
BEGIN;
ALTER TABLE otp.templates DISABLE TRIGGER replace_seed;
UPDATE otp.templates SET seeded = true WHERE workspace_id = 1 AND name = 'otp_verification' AND language = 'en_US';
ALTER TABLE otp.templates ENABLE ALWAYS TRIGGER replace_seed;
INSERT INTO otp.templates (workspace_id, name, language, status) VALUES (1, 'otp_verification', 'en_US', 'approved');
SELECT * FROM t.look();
ROLLBACK;

-- Tables as a whole
BEGIN;
TRUNCATE otp.key_limits, otp.test_numbers;
SELECT * FROM t.look();
ROLLBACK;

-- The caller: after errors, in blocks, in others' functions
CREATE FUNCTION t.fail() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM otp.create_webhook_endpoint('https://example.com/', '{no.such.event}', workspace => 'renamed');
EXCEPTION WHEN OTHERS THEN
	NULL;
END $$;
CREATE FUNCTION t.as_owner() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	UPDATE otp.workspaces SET max_attempts = max_attempts % 10 + 1 WHERE workspace_id = 2;
END $$;
CREATE FUNCTION t.fail_then_change() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM t.fail();
	PERFORM t.as_owner();
END $$;
-- an error in a tenant's call, then the owner's own statement
SET ROLE regress_otp_audit;
SELECT t.fail();
RESET ROLE;
UPDATE otp.workspaces SET max_attempts = 6 WHERE workspace_id = 2;
-- in one transaction, and in one call: a definer's function runs as its owner
SET ROLE regress_otp_audit;
BEGIN;
SELECT t.fail();
SELECT t.as_owner();
COMMIT;
SELECT t.fail_then_change();
-- a call that fails for good
SELECT otp.create_webhook_endpoint('x', workspace => 'renamed');
SELECT t.as_owner();
RESET ROLE;
-- of two callers in one transaction each its own
BEGIN;
SET LOCAL ROLE regress_otp_audit;
SELECT endpoint_id AS hook FROM otp.create_webhook_endpoint('https://example.com/', workspace => 'renamed') \gset
RESET ROLE;
SELECT otp.delete_webhook_endpoint(:hook);
COMMIT;
SELECT * FROM t.look();
-- a trigger of somebody's that calls functions of ours, one of which fails, while another is at work
CREATE FUNCTION t.meddle() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	PERFORM t.fail();
	PERFORM otp.set_test_number('+15550119876', NULL, workspace => 'renamed');
	UPDATE otp.workspaces SET max_attempts = 7 WHERE workspace_id = 2;
	RETURN NEW;
END $$;
ALTER FUNCTION t.meddle() OWNER TO regress_otp_audit_admin;
CREATE TRIGGER a_meddle AFTER INSERT ON otp.webhook_endpoints FOR EACH ROW EXECUTE FUNCTION t.meddle();
SET ROLE regress_otp_audit;
SELECT endpoint_id AS hook FROM otp.create_webhook_endpoint('https://example.com/') \gset
RESET ROLE;
DROP TRIGGER a_meddle ON otp.webhook_endpoints;
DELETE FROM otp.webhook_endpoints;
SELECT * FROM t.look();

-- Only added to
SELECT what, t.error(what) FROM unnest(ARRAY['UPDATE otp.audit_entries SET role = ''x''', 'DELETE FROM otp.audit_entries', 'DELETE FROM otp.audit_entries WHERE false', 'TRUNCATE otp.audit_entries']) what;
SET session_replication_role = replica;
SELECT left(t.error('DELETE FROM otp.audit_entries'), 5);
RESET session_replication_role;
-- nobody has entries of another table written
CREATE TABLE t.workspaces (workspace_id int, name text);
CREATE TRIGGER x AFTER INSERT ON t.workspaces FOR EACH ROW EXECUTE FUNCTION otp.audit_change();
SELECT t.error('INSERT INTO t.workspaces VALUES (1, ''x'')');
BEGIN;
CREATE TRIGGER x BEFORE INSERT ON otp.key_limits FOR EACH ROW EXECUTE FUNCTION otp.audit_change();
SELECT t.error('INSERT INTO otp.key_limits VALUES (1, ''x'')');
ROLLBACK;
DROP TABLE t.workspaces;

-- Who sees what: a tenant its workspaces', by their names
SET ROLE regress_otp_audit;
SELECT workspace, count(*) FROM otp.audit WHERE entry_id > :first GROUP BY 1;
SELECT t.error('SELECT FROM otp.audit_entries');
CREATE FUNCTION pg_temp.leak(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE EXCEPTION 'seen: %', $1; END $$;
SELECT t.error('SELECT FROM otp.audit WHERE workspace_id IS DISTINCT FROM 2 AND pg_temp.leak(object)');
DROP FUNCTION pg_temp.leak(text);
RESET ROLE;
-- the owner, and its members, all, of workspaces that are gone as well
DELETE FROM otp.workspace_grants WHERE workspace_id = 2;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
SET ROLE regress_otp_audit_admin;
SELECT action, workspace, object FROM otp.audit WHERE workspace_id = 2 AND action IN ('delete_workspace', 'rename_workspace') AND entry_id > :first ORDER BY entry_id;
SELECT count(*) > 0 AS of_no_workspace FROM otp.audit WHERE workspace_id IS NULL AND entry_id > :first;
RESET ROLE;
-- who has no grant any more, nothing
SET ROLE regress_otp_audit;
SELECT count(*) FROM otp.audit;
RESET ROLE;

-- Nothing secret anywhere in it
SELECT entry_id, object, details FROM otp.audit_entries e, concat_ws(' ', e.role, e.object, e.details) a WHERE a ~ 'hush|8391|8392|5550119876|\+\d{8}|whsec_|\\x'
	OR position(substr(:'secret_key', 9) IN a) > 0 OR position(substr(:'secret_key2', 9) IN a) > 0 OR position(substr(:'hook_secret', 7) IN a) > 0 OR position(substr(:'hook_secret2', 7) IN a) > 0;

-- Every action there is has been seen above, and is one of the list
SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM otp.audit_entries WHERE entry_id > :first;

DELETE FROM otp.api_keys;
DROP OWNED BY regress_otp_audit, regress_otp_audit_admin;
DROP TABLE t.seen;
DROP FUNCTION t.look(), t.fail(), t.as_owner(), t.fail_then_change();
REVOKE :"owner" FROM regress_otp_audit_admin;
DROP ROLE regress_otp_audit, regress_otp_audit_admin;
