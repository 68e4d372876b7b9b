-- Protects: the functions that make, rename, suspend and delete workspaces;
-- for which workspace a call acts; and that a deletion takes what it should
-- and nothing else. Modules that are switched off are refused by every verb.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_shop;
CREATE ROLE regress_otp_both;
CREATE ROLE regress_otp_clerk IN ROLE regress_otp_shop;
CREATE ROLE regress_otp_gone;

--
-- Create
--
SELECT otp.create_workspace('shop', 'The Shop') AS shop \gset
SELECT otp.create_workspace('bank') = :shop + 1 AS next;
SELECT w.name, w.app_name, w.seeded, t.name AS template, t.language, t.status, s.template AS of_text, s.language, s.country_prefix, s.body
FROM otp.workspaces w LEFT JOIN otp.templates t USING (workspace_id) LEFT JOIN otp.sms_texts s USING (workspace_id)
WHERE w.name <> 'default' ORDER BY 1;
-- The policy of a new one is that of CREATE EXTENSION
SELECT to_jsonb(w) - '{workspace_id,name,app_name,seeded}'::text[] = to_jsonb(d) - '{workspace_id,name,app_name,seeded}'::text[] AS as_default
FROM otp.workspaces w, (SELECT (jsonb_populate_record(NULL::otp.workspaces, to_jsonb(o))).* FROM otp.workspaces o WHERE o.name = 'bank') d WHERE w.name = 'shop';
-- Names
SELECT name, t.error('SELECT otp.create_workspace($1)', name) FROM unnest(ARRAY['shop', 'default', NULL, '', 'Shop', ' shop', '-shop', '.shop', '_shop', 'sh op', 'shöp', 'shop''', repeat('x', 64), repeat('x', 63), 'a', '0', 'a_b.c-d']) name;
SELECT t.error('SELECT otp.create_workspace($1, $2)', 'long', repeat('x', 257));
SELECT otp.create_workspace('nameless', NULL) > 0 AS made;
SELECT app_name FROM otp.workspaces WHERE name = 'nameless';
SELECT otp.delete_workspace(name) FROM otp.workspaces WHERE name IN (repeat('x', 63), 'a', '0', 'a_b.c-d', 'nameless');
-- Rolled back, it never was
BEGIN;
SELECT otp.create_workspace('never') > 0 AS made;
ROLLBACK;
SELECT count(*) FROM otp.workspaces WHERE name = 'never';
-- An id that was given by hand is in nobody's way
SELECT last_value + 1 AS ahead FROM otp.workspaces_workspace_id_seq \gset
INSERT INTO otp.workspaces (workspace_id, name) VALUES (:ahead, 'byhand');
SELECT otp.create_workspace('behind') = :ahead + 1 AS passed_over;

--
-- Who acts
--
SELECT otp.set_test_number('+15550120001', '111111');
SELECT otp.set_test_number('+15550120001', '222222', workspace => 'shop');
SELECT otp.set_test_number('+15550120001', '333333', workspace => 'bank');
SELECT otp.grant_workspace('shop', 'regress_otp_shop');
SELECT otp.grant_workspace('shop', 'regress_otp_both'), otp.grant_workspace('bank', 'regress_otp_both');
-- Which workspace a send was for, or why not
CREATE FUNCTION pg_temp.acts(workspace text = NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	id text;
BEGIN
	SELECT s.otp_id INTO id FROM otp_send('+15550120001', workspace => $1) s;
	RETURN (SELECT d.workspace FROM otp.deliveries d WHERE d.otp_id = id);
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
-- only one is granted; by membership as well
SET ROLE regress_otp_shop;
SELECT argument, pg_temp.acts(argument) FROM unnest(ARRAY[NULL, 'shop', 'bank']) argument;
SET otp.workspace = 'bank';
SELECT pg_temp.acts(), pg_temp.acts('shop');
RESET otp.workspace;
SET ROLE regress_otp_clerk;
SELECT pg_temp.acts();
-- several: the argument, else the setting, else an error
SET ROLE regress_otp_both;
SELECT setting, argument, CASE WHEN set_config('otp.workspace', setting, true) IS NOT NULL THEN pg_temp.acts(argument) END AS acts_for
FROM unnest(ARRAY['', 'shop', 'bank', 'default', 'nowhere']) setting, unnest(ARRAY[NULL, 'shop', 'bank', 'default', 'nowhere', '']) argument;
BEGIN;
SET LOCAL otp.workspace = 'bank';
SELECT pg_temp.acts();
COMMIT;
SELECT pg_temp.acts();
RESET ROLE;
-- the owner acts for all
SELECT pg_temp.acts(), pg_temp.acts('bank');
-- the other verbs find the id among all that are granted
SELECT otp_id AS of_shop FROM otp_send('+15550120001', workspace => 'shop') \gset
SELECT otp_id AS of_bank FROM otp_send('+15550120001', workspace => 'bank') \gset
SET ROLE regress_otp_both;
SET otp.workspace = 'bank';
SELECT valid FROM otp_verify(:'of_shop', '222222');
SELECT status FROM otp_status(:'of_bank');
RESET otp.workspace;
SET ROLE regress_otp_shop;
SELECT error FROM otp_verify(:'of_bank', '333333');
SELECT count(*) FROM otp_status(:'of_bank');
SELECT otp_cancel(:'of_bank');
RESET ROLE;

--
-- Rename
--
SELECT call, t.error('SELECT otp.' || call) FROM unnest(ARRAY['rename_workspace(''nowhere'', ''x'')', 'rename_workspace(''shop'', ''bank'')', 'rename_workspace(''shop'', ''Shop'')', 'rename_workspace(''shop'', NULL)',
	'rename_workspace(NULL, ''x'')', 'rename_workspace(''default'', ''x'')', 'rename_workspace(''shop'', ''default'')', 'rename_workspace(''shop'', ''shop'')']) call;
BEGIN;
SELECT otp.rename_workspace('shop', 'store');
SET LOCAL ROLE regress_otp_shop;
SELECT pg_temp.acts(), pg_temp.acts('store'), pg_temp.acts('shop');
SELECT DISTINCT workspace FROM otp.deliveries;
ROLLBACK;
SELECT otp.rename_workspace('shop', 'store');
SELECT workspace_id = :shop AS same FROM otp.workspaces WHERE name = 'store';
SELECT otp.rename_workspace('store', 'shop');

--
-- Suspend
--
SELECT otp.suspend_workspace('shop', 'pumping');
SELECT suspended_at > clock_timestamp() - interval '1 min' AS lately, suspended_reason FROM otp.workspaces WHERE name = 'shop';
SELECT part, ok, regexp_replace(detail, 'since .* P[DS]T', 'since T') AS detail, hint FROM otp.check_setup('shop') WHERE part = 'workspace';
SELECT suspended_at AS since FROM otp.workspaces WHERE name = 'shop' \gset
SELECT t.error('SELECT otp_send($1, workspace => ''shop'')', '+15550120001');
SELECT t.error('SELECT otp_send($1, workspace => ''shop'')', '+15550120002');
SELECT count(*) FROM otp_send('+15550120001', workspace => 'bank');
-- again: since then, and with the reason that is given
SELECT otp.suspend_workspace('shop');
SELECT suspended_at = :'since' AS since, suspended_reason FROM otp.workspaces WHERE name = 'shop';
SELECT otp.suspend_workspace('shop', 'unpaid');
SELECT suspended_at = :'since' AS since, suspended_reason FROM otp.workspaces WHERE name = 'shop';
SELECT otp.resume_workspace('shop');
SELECT otp.resume_workspace('shop');
SELECT suspended_at, suspended_reason FROM otp.workspaces WHERE name = 'shop';
SELECT part, ok, detail, hint FROM otp.check_setup('shop') WHERE part = 'workspace';
-- What was sent before can be verified, not sent again
SELECT otp_id AS id FROM otp_send('+15550120001', workspace => 'shop') \gset
SELECT otp.suspend_workspace('shop');
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT status FROM otp_status(:'id');
SELECT error FROM otp_verify(:'id', '000000');
SELECT valid FROM otp_verify(:'id', '222222');
BEGIN;
SELECT otp.resume_workspace('shop');
SELECT count(*) FROM otp_send('+15550120001', workspace => 'shop');
ROLLBACK;
SELECT t.error('SELECT otp_send($1, workspace => ''shop'')', '+15550120001');
SELECT otp.resume_workspace('shop');
SELECT call, t.error('SELECT otp.' || call) FROM unnest(ARRAY['suspend_workspace(''nowhere'')', 'suspend_workspace(NULL)', 'resume_workspace(''nowhere'')', 'resume_workspace(NULL)', 'suspend_workspace(''shop'', repeat(''x'', 1001))']) call;

--
-- Modules: switched off, and without a provider
--
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1', workspace => 'shop');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1', workspace => 'shop');
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_second = NULL, sends_per_phone_hour = NULL WHERE name = 'shop';
SELECT otp_id AS whatsapp FROM otp_send('+15550120010', workspace => 'shop') \gset
SELECT otp_id AS fallback FROM otp_send('+15550120011', fallback_sms => true, workspace => 'shop') \gset
SELECT otp_id AS sms FROM otp_send('+15550120012', channel => 'sms', workspace => 'shop') \gset
CREATE FUNCTION pg_temp.modules(setup text, whatsapp text, fallback text, sms text) RETURNS TABLE (what text, error text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('UPDATE otp.workspaces SET %s WHERE name = ''shop''', setup);
	RETURN QUERY SELECT c[1], split_part(t.error(c[2]), E'\n', 1) FROM (VALUES
		(ARRAY['send', 'SELECT otp_send(''+15550120013'', workspace => ''shop'')']),
		(ARRAY['send with fallback', 'SELECT otp_send(''+15550120014'', fallback_sms => true, workspace => ''shop'')']),
		(ARRAY['send by SMS', 'SELECT otp_send(''+15550120015'', channel => ''sms'', workspace => ''shop'')']),
		(ARRAY['resend', format('SELECT otp_resend(%L)', $2)]),
		(ARRAY['resend with fallback', format('SELECT otp_resend(%L)', $3)]),
		(ARRAY['resend that by SMS', format('SELECT otp_resend(%L, ''sms'')', $3)]),
		(ARRAY['resend an SMS', format('SELECT otp_resend(%L)', $4)]),
		(ARRAY['resend it by WhatsApp', format('SELECT otp_resend(%L, ''whatsapp'')', $4)])) v (c);
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN NULL;
END $$;
BEGIN;
SELECT s.setup, m.* FROM unnest(ARRAY['whatsapp_enabled = false', 'sms_enabled = false', 'whatsapp_account = NULL', 'sms_account = NULL', 'default_channel = ''sms'', sms_enabled = false', 'default_fallback_sms = true, sms_enabled = false',
	'whatsapp_enabled = false, sms_enabled = false', 'default_channel = ''sms'', whatsapp_enabled = false', 'sends_burst = 10']) s (setup), LATERAL pg_temp.modules(s.setup, :'whatsapp', :'fallback', :'sms') m;
ROLLBACK;
-- A test number needs none
BEGIN;
UPDATE otp.workspaces SET whatsapp_enabled = false, sms_enabled = false WHERE name = 'shop';
SELECT count(*) FROM otp_send('+15550120001', workspace => 'shop');
ROLLBACK;

--
-- Delete
--
SELECT call, t.error('SELECT otp.' || call) FROM unnest(ARRAY['delete_workspace(''default'')', 'delete_workspace(''default'', true)', 'delete_workspace(''nowhere'')', 'delete_workspace(''nowhere'', true)', 'delete_workspace(NULL)']) call;
-- An empty one
SELECT otp.delete_workspace('behind');
SELECT count(*) FROM otp.templates WHERE workspace_id = :ahead + 1;
-- One with everything
SELECT otp.grant_workspace('shop', 'regress_otp_gone');
DROP OWNED BY regress_otp_gone;
DROP ROLE regress_otp_gone;
SELECT endpoint_id > 0 AS made FROM otp.create_webhook_endpoint('https://example.com/otp', workspace => 'shop');
INSERT INTO otp.api_keys (workspace_id, name, prefix, hash, created_by, revoked_at) VALUES (:shop, 'k', 'oat_0001', '\x01', 'x', NULL), (:shop, 'k', 'oat_0002', '\x02', 'x', now());
INSERT INTO otp.api_key_uses SELECT workspace_id, key_id, now() FROM otp.api_keys;
INSERT INTO otp.key_limits (workspace_id, prefix, sends_per_hour) VALUES (:shop, 'ip', 5);
INSERT INTO otp.credits VALUES (:shop, 0, 7), (:shop, 1, 5);
INSERT INTO otp.credit_changes VALUES (:shop, -2);
INSERT INTO otp.credit_ledger (workspace_id, amount, kind) VALUES (:shop, 10, 'top_up');
INSERT INTO otp.audit_entries (role, action, workspace_id) VALUES ('x', 'create_workspace', :shop);
INSERT INTO otp.phone_failures (workspace_id, phone, since, failures) VALUES (:shop, '+15550120003', now(), 1);
INSERT INTO otp.sms_texts (workspace_id, template, language, body) VALUES (:shop, 'login', 'de', 'x');
SELECT otp.configure_meta(account => 'own', phone_number_id => '2', access_token => 'token', base_url => 'http://127.0.0.1:1', workspace => 'shop');
SELECT otp.use_provider('shop', 'own', exclusive => true);
SELECT regexp_replace(t.error('SELECT otp.delete_workspace($1)', 'shop'), 'verifications: \d+', 'verifications: N');
SELECT t.error('SELECT otp.delete_workspace($1, NULL)', 'shop') LIKE '2BP01%' AS refused;
-- Each of them alone
BEGIN;
SELECT what, split_part(t.error(format('DO $do$ BEGIN PERFORM otp.create_workspace(''one''); %s; PERFORM otp.delete_workspace(''one''); END $do$', sql)), E'\n', 2) AS has FROM (VALUES
	('nothing', 'NULL'),
	('verification', 'PERFORM otp.set_test_number(''+15550120004'', ''123456'', workspace => ''one''); PERFORM otp_send(''+15550120004'', workspace => ''one''); PERFORM otp.set_test_number(''+15550120004'', NULL, workspace => ''one'')'),
	('grant', 'PERFORM otp.grant_workspace(''one'', ''regress_otp_both'')'),
	('test number', 'PERFORM otp.set_test_number(''+15550120004'', ''123456'', workspace => ''one'')'),
	('endpoint', 'PERFORM otp.create_webhook_endpoint(''https://example.com'', workspace => ''one'')'),
	('key', 'INSERT INTO otp.api_keys (workspace_id, name, prefix, hash, created_by) SELECT workspace_id, ''k'', ''oat_'', ''\x03'', ''x'' FROM otp.workspaces WHERE name = ''one'''),
	('revoked key', 'INSERT INTO otp.api_keys (workspace_id, name, prefix, hash, created_by, revoked_at) SELECT workspace_id, ''k'', ''oat_'', ''\x03'', ''x'', now() FROM otp.workspaces WHERE name = ''one'''),
	('credits', 'INSERT INTO otp.credits SELECT workspace_id, 0, 1 FROM otp.workspaces WHERE name = ''one'''),
	('spent credits', 'INSERT INTO otp.credits SELECT workspace_id, 0, 1 FROM otp.workspaces WHERE name = ''one''; INSERT INTO otp.credit_changes SELECT workspace_id, -1 FROM otp.workspaces WHERE name = ''one'''),
	('account', 'PERFORM otp.configure_meta(account => ''ones'', phone_number_id => ''3'', access_token => ''token'', workspace => ''one''); PERFORM otp.use_provider(''one'', ''ones'', exclusive => true)'),
	('shared account', 'PERFORM otp.use_provider(''one'', ''twilio'')')) v (what, sql);
ROLLBACK;
-- Rolled back, all is there
CREATE TEMP VIEW left_over AS
SELECT c.relname, (xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM otp.%I WHERE workspace_id = %s', c.relname, current_setting('t.shop')), false, true, '')))[1]::text::int AS rows
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
WHERE n.nspname = 'otp' AND c.relkind IN ('r', 'p') AND NOT c.relispartition;
SET t.shop = :shop;
SELECT count(*) FROM otp.verifications WHERE workspace_id = :shop \gset before_
BEGIN;
SELECT otp.delete_workspace('shop', true);
ROLLBACK;
SELECT count(*) = :before_count AS same FROM otp.verifications WHERE workspace_id = :shop;
SELECT pg_temp.acts('shop');
-- Deleted: what users write is gone, the rest is the sender's; the ledger and the audit stay
SELECT otp.delete_workspace('shop', cascade => true);
SELECT count(*) FROM left_over WHERE relname IN ('workspaces', 'verifications', 'templates', 'sms_texts', 'test_numbers', 'workspace_grants', 'api_keys', 'key_limits', 'webhook_endpoints') AND rows > 0;
SELECT name FROM otp.provider_accounts ORDER BY 1;
SELECT pg_temp.acts('shop'), split_part(t.error('SELECT otp.delete_workspace(''shop'')'), E'\n', 1);
SET ROLE regress_otp_both;
SELECT pg_temp.acts(), otp.my_workspaces() = ARRAY[:shop + 1] AS only_bank;
RESET ROLE;
-- with the last grant, the privileges went; regress_otp_both still has one
SELECT r, has_schema_privilege(r, 'otp', 'USAGE'), has_function_privilege(r, 'otp_cancel(text)', 'EXECUTE'), has_table_privilege(r, 'otp.deliveries', 'SELECT')
FROM unnest(ARRAY['regress_otp_shop', 'regress_otp_both']) r;
-- another one of the name has nothing of it, and another id
SELECT otp.create_workspace('shop') > :ahead AS new_id;
SELECT count(*) FROM otp.deliveries WHERE workspace = 'shop';
SELECT otp.delete_workspace('shop');
-- nor is an id used again that was given by hand
SELECT last_value + 100 AS far FROM otp.workspaces_workspace_id_seq \gset
INSERT INTO otp.workspaces (workspace_id, name) VALUES (:far, 'far');
SELECT otp.delete_workspace('far');
SELECT otp.create_workspace('near') > :far AS new_id;
-- The sender does the rest, and stops at what is kept
DO $$
BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN NOT EXISTS (SELECT 1 FROM left_over WHERE rows > 0 AND relname NOT IN ('credit_ledger', 'audit_entries', 'outbox', 'deleted_workspaces'));
		PERFORM pg_sleep(0.1);
	END LOOP;
END $$;
SELECT relname FROM left_over WHERE rows > 0 ORDER BY relname;
-- One that is made again by hand keeps what it has
INSERT INTO otp.workspaces (workspace_id, name) VALUES (:far, 'far');
INSERT INTO otp.templates (workspace_id, name, language) VALUES (:far, 'otp_verification', 'en_US');
DO $$
BEGIN
	FOR i IN 1 .. 600 LOOP
		EXIT WHEN NOT EXISTS (SELECT 1 FROM otp.deleted_workspaces WHERE deleted_at = due_at);
		PERFORM pg_sleep(0.1);
	END LOOP;
END $$;
SELECT count(*) FROM otp.templates WHERE workspace_id = :far;

--
-- For the owner only, whatever EXECUTE says
--
GRANT USAGE ON SCHEMA otp TO regress_otp_both;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp TO regress_otp_both;
SET ROLE regress_otp_both;
SELECT call, split_part(t.error('SELECT otp.' || call), E'\n', 1) FROM unnest(ARRAY['create_workspace(''x'')', 'rename_workspace(''bank'', ''x'')', 'suspend_workspace(''bank'')', 'resume_workspace(''bank'')', 'delete_workspace(''bank'')',
	'delete_workspace(''bank'', true)', 'use_provider(''bank'', ''meta'')', 'create_workspace(NULL)', 'use_provider(NULL, NULL)']) call;
RESET ROLE;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA otp FROM regress_otp_both;
BEGIN READ ONLY;
SELECT call, split_part(t.error('SELECT otp.' || call), E'\n', 1) FROM unnest(ARRAY['create_workspace(''x'')', 'rename_workspace(''bank'', ''x'')', 'suspend_workspace(''bank'')', 'resume_workspace(''bank'')', 'delete_workspace(''bank'')', 'use_provider(''bank'', ''meta'')']) call;
ROLLBACK;

SELECT otp.delete_workspace(name, true) FROM otp.workspaces WHERE name <> 'default';
SELECT otp.set_test_number('+15550120001', NULL);
DROP OWNED BY regress_otp_shop, regress_otp_both, regress_otp_clerk;
DROP ROLE regress_otp_shop, regress_otp_both, regress_otp_clerk;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.provider_accounts;
TRUNCATE otp.deleted_workspaces, otp.phone_failures, otp.credits, otp.credit_changes, otp.api_key_uses;
SELECT setval('otp.workspaces_workspace_id_seq', 1);
