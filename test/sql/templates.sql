-- Protects: otp.create_template and otp.sync_templates as far as SQL can
-- show: who may call them, every check of an argument, what is queued and
-- what rollback leaves of it; sends with a template that is not approved, and
-- the warning for a text that tells another life than the code has.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE TEMP VIEW mine AS
SELECT name, language, status, code_expiration_minutes AS minutes, variant_of, reason, template_id, requested_at IS NOT NULL AS requested, checked_at IS NOT NULL AS checked, seeded
FROM otp.templates ORDER BY workspace_id, name, language;
CREATE TEMP VIEW jobs AS
SELECT kind, workspace_id, slot, number, channel, expires_at - due_at BETWEEN '23:59' AND '24:01' AS lives_a_day, payload::jsonb FROM otp.outbox WHERE kind = 'job' ORDER BY payload COLLATE "C";

-- Without an account, or one that says which business it is of
SELECT t.error('SELECT otp.create_template(''login'')');
SELECT t.error('SELECT otp.sync_templates()');
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'EAAtoken');
SELECT t.error('SELECT otp.create_template(''login'')');
SELECT t.error('SELECT otp.sync_templates()');
SELECT t.error('SELECT otp.create_template(''login'', workspace => ''nowhere'')');
SELECT t.error('SELECT otp.sync_templates(''nowhere'')');
SELECT otp.configure_meta(waba_id => '102290129340398');

-- For the owner only, whoever has EXECUTE
CREATE ROLE regress_otp_app;
SELECT otp.grant_workspace('default', 'regress_otp_app');
GRANT EXECUTE ON FUNCTION otp.create_template, otp.sync_templates TO regress_otp_app;
SET ROLE regress_otp_app;
SELECT t.error('SELECT otp.create_template(''login'')');
SELECT t.error('SELECT otp.sync_templates()');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION otp.create_template, otp.sync_templates FROM regress_otp_app;
BEGIN READ ONLY;
SELECT t.error('SELECT otp.create_template(''login'')');
SELECT t.error('SELECT otp.sync_templates()');
COMMIT;

-- What is queued: nothing at Meta before the commit, nothing at all without
BEGIN;
SELECT otp.create_template('login');
SELECT otp.create_template('login_10', 'de', 10, false, button_text => 'Code "kopieren"');
SELECT otp.create_template('tap', NULL, 15, button => 'one_tap', autofill_text => 'Fill in', package_name => 'com.example.app', signature_hash => 'K8a/AINcGX7', message_send_ttl_seconds => 30);
SELECT otp.create_template('zero', 'zh_Hant_TW', 90, NULL, 'zero_tap', package_name => 'com.example.app', signature_hash => 'K8a/AINcGX7', zero_tap_terms_accepted => true);
SELECT otp.create_template('otp_verification_10', code_expiration_minutes => 10, variant_of => 'otp_verification');
SELECT otp.sync_templates();
SELECT * FROM mine;
SELECT * FROM jobs;
ROLLBACK;
SELECT * FROM mine;
SELECT * FROM jobs;

-- Asked for again, with another text; the seed becomes a row like any other; what is approved stays
BEGIN;
SELECT otp.create_template('login', code_expiration_minutes => 5);
UPDATE otp.templates SET status = 'rejected', reason = 'INVALID_FORMAT', template_id = '1', checked_at = now() WHERE name = 'login';
SELECT otp.create_template('login', code_expiration_minutes => 7);
SELECT otp.create_template('otp_verification');
SELECT * FROM mine;
SELECT payload -> 'name' AS name, payload -> 'code_expiration_minutes' AS minutes, payload -> 'message_send_ttl_seconds' AS ttl FROM jobs;
UPDATE otp.templates SET status = 'approved' WHERE name = 'login';
SELECT t.error('SELECT otp.create_template(''login'')');
SELECT t.error('SELECT otp.create_template(''login'', ''de'')');
ROLLBACK;

-- Arguments
BEGIN;
SELECT call, t.error('SELECT otp.create_template(' || call || ')') FROM unnest(ARRAY[
	'NULL', '''''', '''Login''', '''log in''', '''log-in''', 'U&''l\00f6gin''', '''x'', ''''', '''x'', ''english''', '''x'', ''EN''', '''x'', ''en-US''', '''x'', ''en_''', '''x'', ''en_US_''', '''x'', ''fil''', '''x'', ''pt_BR''',
	'''x'', NULL, 0', '''x'', NULL, 91', '''x'', NULL, 1', '''x'', NULL, 90', '''x'', button => ''link''', '''x'', button => NULL',
	'''x'', button_text => ''''', '''x'', button_text => repeat(U&''\00e4'', 25)', '''x'', button_text => repeat(U&''\00e4'', 26)', '''x'', button_text => E''a\nb''', '''x'', autofill_text => ''Fill''',
	'''x'', package_name => ''com.example''', '''x'', signature_hash => ''K8a/AINcGX7''', '''x'', zero_tap_terms_accepted => true', '''x'', button => ''one_tap''',
	'''x'', button => ''one_tap'', package_name => ''com.example''', '''x'', button => ''one_tap'', package_name => ''com.example'', signature_hash => ''K8a/AINcGX7''',
	'''x'', button => ''one_tap'', package_name => ''com.example'', signature_hash => ''K8a/AINcGX''', '''x'', button => ''one_tap'', package_name => ''com.example'', signature_hash => ''K8a/AINcG 7''',
	'''x'', button => ''one_tap'', package_name => ''example'', signature_hash => ''K8a/AINcGX7''', '''x'', button => ''one_tap'', package_name => ''com.1x'', signature_hash => ''K8a/AINcGX7''',
	'''x'', button => ''one_tap'', package_name => ''com..x'', signature_hash => ''K8a/AINcGX7''', '''x'', button => ''one_tap'', package_name => ''com.x.'', signature_hash => ''K8a/AINcGX7''',
	'''x'', button => ''one_tap'', package_name => ''com.x y'', signature_hash => ''K8a/AINcGX7''', '''x'', button => ''one_tap'', package_name => ''c.'' || repeat(''x'', 223), signature_hash => ''K8a/AINcGX7''',
	'''x'', button => ''one_tap'', package_name => ''com.example'', signature_hash => ''K8a/AINcGX7'', zero_tap_terms_accepted => true',
	'''x'', button => ''zero_tap'', package_name => ''com.example'', signature_hash => ''K8a/AINcGX7''',
	'''x'', message_send_ttl_seconds => 29', '''x'', message_send_ttl_seconds => 901', '''x'', message_send_ttl_seconds => -1', '''x'', message_send_ttl_seconds => 900',
	'''x'', variant_of => ''otp_verification''', '''x'', NULL, 5, variant_of => ''x''', '''x'', NULL, 5, variant_of => ''X''', '''x'', NULL, 5, variant_of => ''nowhere''', '''x'', ''de'', 5, variant_of => ''otp_verification''']) call;
SELECT n, t.error('SELECT otp.create_template($1)', repeat('x', n)) FROM unnest(ARRAY[512, 513]) n;
-- a variant of a variant
SELECT otp.create_template('v5', code_expiration_minutes => 5, variant_of => 'otp_verification');
SELECT t.error('SELECT otp.create_template(''v6'', code_expiration_minutes => 6, variant_of => ''v5'')');
ROLLBACK;

-- What Meta has said decides whether it can be sent; SMS has words of its own
BEGIN;
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_phone_hour = NULL, sends_per_second = NULL;
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'x', sender => 'Acme');
CREATE FUNCTION pg_temp.send(status text, channel text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	UPDATE otp.templates t SET status = $1;
	RETURN t.error('SELECT otp_send(''+15550112001'', channel => $1)', $2);
END $$;
SELECT status, channel, pg_temp.send(status, channel) FROM unnest(ARRAY['unchecked', 'approved', 'requested', 'pending', 'rejected', 'paused', 'error', 'missing']) status, unnest(ARRAY['whatsapp', 'sms']) channel;
SELECT t.error('SELECT otp_send(''+15550112001'', template => ''nowhere'', channel => ''sms'')');
-- a test number's, too
SELECT otp.set_test_number('+15550112002', '123456');
SELECT t.error('SELECT otp_send(''+15550112002'')');
ROLLBACK;

-- A text that tells another life than the code has: one warning for a template and session
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_phone_hour = NULL, sends_per_second = NULL;
INSERT INTO otp.templates (workspace_id, name, language, status, code_expiration_minutes) VALUES (1, 'five', 'en_US', 'approved', 5), (1, 'one', 'en_US', 'approved', 1), (1, 'two', 'en_US', 'approved', 2);
SELECT otp.set_test_number('+15550112002', '123456');
-- there is another warning while no sender runs
DO $$
BEGIN
	WHILE NOT EXISTS (SELECT 1 FROM otp.worker_status() WHERE sender_pid IS NOT NULL) LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;
SET client_min_messages = warning;
BEGIN;
SELECT expires_in FROM otp_send('+15550112001', template => 'five', expires_in => 300);
SELECT expires_in FROM otp_send('+15550112001', template => 'five', expires_in => 241);
SELECT expires_in FROM otp_send('+15550112002', template => 'five', expires_in => 600);
SELECT expires_in FROM otp_send('+15550112001', template => 'five', expires_in => 600);
SELECT expires_in FROM otp_send('+15550112001', template => 'five', expires_in => 900);
SELECT expires_in FROM otp_send('+15550112001', template => 'one', expires_in => 61);
SELECT expires_in FROM otp_send('+15550112001', template => 'otp_verification', expires_in => 900);
ROLLBACK;
SELECT expires_in FROM otp_send('+15550112001', template => 'five', expires_in => 900);
-- no word of it with a variant that fits; only of approved ones, of this template and language
INSERT INTO otp.templates (workspace_id, name, language, status, code_expiration_minutes, variant_of) VALUES
	(1, 'two_10', 'en_US', 'approved', 10, 'two'), (1, 'two_15', 'en_US', 'pending', 15, 'two'), (1, 'two_14', 'de', 'approved', 14, 'two'), (1, 'two_13', 'en_US', 'approved', 13, 'five'), (1, 'two_12', 'en_US', 'approved', NULL, 'two');
SELECT expires_in FROM otp_send('+15550112001', template => 'two', expires_in => 600);
SELECT expires_in FROM otp_send('+15550112001', template => 'two', expires_in => 120);
-- the nearest is what is told; of two as near, the shorter
BEGIN;
UPDATE otp.templates SET code_expiration_minutes = 12 WHERE name = 'two_10';
SELECT expires_in FROM otp_send('+15550112001', template => 'two', expires_in => 420);
ROLLBACK;
SELECT expires_in FROM otp_send('+15550112001', template => 'two', expires_in => 900);
\c -
\set SHOW_CONTEXT never
SELECT expires_in FROM otp_send('+15550112001', template => 'two', expires_in => 900);
SELECT expires_in FROM otp_send('+15550112001', template => 'five', expires_in => 600, workspace => 'default');

-- check_setup tells
SET client_min_messages = error;
CREATE FUNCTION pg_temp.setup(status text) RETURNS record LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	UPDATE otp.templates t SET status = setup.status, reason = CASE setup.status WHEN 'error' THEN 'Invalid parameter' END WHERE name = 'otp_verification';
	SELECT c.ok, c.detail, c.hint INTO r FROM otp.check_setup() c WHERE c.part = 'template';
	RETURN r;
END $$;
BEGIN;
SELECT c.* FROM unnest(ARRAY['unchecked', 'approved', 'requested', 'pending', 'rejected', 'paused', 'error', 'missing']) status, LATERAL pg_temp.setup(status) c (ok bool, detail text, hint text);
DELETE FROM otp.templates WHERE name = 'otp_verification';
SELECT ok, detail, hint FROM otp.check_setup() WHERE part = 'template';
ROLLBACK;

SELECT otp.set_test_number('+15550112002', NULL);
SELECT otp.revoke_workspace('default', 'regress_otp_app');
DROP ROLE regress_otp_app;
DELETE FROM otp.verifications;
DELETE FROM otp.outbox;
DELETE FROM otp.templates WHERE name <> 'otp_verification';
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL, resend_cooldown = '10 s', sends_per_phone_hour = 5, sends_per_second = 10;
DELETE FROM otp.provider_accounts;
