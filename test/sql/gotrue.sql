-- Protects: the Send SMS hook of GoTrue. The code that it hands in is the one
-- that is sent, and that otp_verify takes; whatever otp_send would refuse, the
-- hook answers as GoTrue reads it, and writes nothing; what is no refusal is
-- raised; the code is nowhere in the clear.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET sends_per_second = NULL, sends_per_phone_hour = NULL, resend_cooldown = NULL;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');

-- As the guide has it
CREATE ROLE regress_otp_auth;
SELECT otp.grant_workspace('default', 'regress_otp_auth');
GRANT USAGE ON SCHEMA otp_api TO regress_otp_auth;
GRANT EXECUTE ON FUNCTION otp_api.gotrue_send_sms TO regress_otp_auth;

-- An event as GoTrue writes it
CREATE FUNCTION t.event(phone text, otp text, more jsonb = '{}') RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object(
		'metadata', jsonb_build_object('uuid', '8a9f8bd1-3d9e-4a1e-8f4a-6f2f3c1b1f11', 'time', '2026-06-02T19:17:32Z', 'name', 'send-sms', 'ip_address', '203.0.113.7') || coalesce(more -> 'metadata', '{}'),
		'user', jsonb_build_object('id', '6481a5c1-3d37-4a56-9f6a-bee08c554965', 'aud', 'authenticated', 'role', 'authenticated', 'email', '', 'phone', phone,
			'app_metadata', '{"provider": "phone"}'::jsonb, 'user_metadata', '{}'::jsonb, 'identities', '[]'::jsonb, 'is_anonymous', false) || coalesce(more -> 'user', '{}'),
		'sms', jsonb_build_object('otp', otp, 'phone', phone) || coalesce(more -> 'sms', '{}'))
$$;
CREATE FUNCTION t.hook(phone text, otp text, more jsonb = '{}') RETURNS jsonb LANGUAGE sql AS $$
	SELECT otp_api.gotrue_send_sms(t.event(phone, otp, more))
$$;
CREATE FUNCTION t.last() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$
	SELECT otp.format_id(id) FROM otp.verifications ORDER BY id DESC LIMIT 1
$$;
GRANT USAGE ON SCHEMA t TO regress_otp_auth;

-- It is on its way, without the plus as GoTrue has it
SET ROLE regress_otp_auth;
SELECT t.hook('15550140001', '4829151');
RESET ROLE;
SELECT t.last() AS id \gset
SELECT v.phone, v.length, v.channel, v.template, v.context, v.metadata, v.code_given, v.expires_at - v.created_at AS life FROM otp.verifications v WHERE id = otp.parse_id(:'id');
SELECT kind, number, channel, octet_length(code) AS sealed, position('\x34383239313531'::bytea IN code) AS readable FROM otp.outbox WHERE id = otp.parse_id(:'id');
-- The code of another verification seals to something else, and so does the same
SET ROLE regress_otp_auth;
SELECT t.hook('+15550140002', '4829151');
RESET ROLE;
SELECT count(DISTINCT code) AS different FROM otp.outbox WHERE code IS NOT NULL;

-- otp_verify takes it, with the context
SET ROLE regress_otp_auth;
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '4829151');
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '4829152', 'gotrue');
SELECT valid, error, phone FROM otp_verify(:'id', '4829151', 'gotrue');
RESET ROLE;

-- In GoTrue's transaction: rolled back with it
BEGIN;
SELECT t.hook('+15550140003', '482915');
ROLLBACK;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550140003';
SELECT count(*) FROM otp.outbox o WHERE NOT EXISTS (SELECT FROM otp.verifications v WHERE v.id = o.id);

-- Of every length that GoTrue may be set to, leading zeros and all
SELECT n, t.hook('+1555014002' || n % 10, lpad('7', n, '0')) FROM generate_series(4, 10) n;
SELECT v.length, x.valid FROM otp.verifications v, otp_verify(otp.format_id(v.id), lpad('7', v.length, '0'), 'gotrue') x WHERE v.phone LIKE '+1555014002_' ORDER BY 1;

-- What is no code, no phone and no event
SELECT left(code, 12) AS code, t.hook('+15550140040', code) FROM (VALUES ('482'), ('48291548291'), ('48291a'), (' 482915'), ('-48291'), ('٤٨٢٩'), (''), (NULL), (repeat('1', 1000))) v (code);
SELECT left(phone, 16) AS phone, t.hook(phone, '482915') FROM (VALUES ('1 555 014 0041'), ('++15550140041'), ('0155501400'), ('+'), ('x'), (repeat('1', 1000))) v (phone);
SELECT event, otp_api.gotrue_send_sms(event::jsonb) FROM (VALUES (NULL), ('null'), ('1'), ('"x"'), ('[]'), ('{}'), ('[{"sms": {"otp": "482915", "phone": "15550140042"}}]'),
	('{"sms": []}'), ('{"sms": "482915"}'), ('{"sms": {"otp": 482915, "phone": "15550140042"}}'), ('{"sms": {"otp": "482915", "phone": 15550140042}}'),
	('{"sms": {"otp": "482915"}}'), ('{"sms": {"otp": "482915"}, "user": {"phone": ""}}'), ('{"sms": {"otp": "482915"}, "user": "15550140042"}')) v (event);
SELECT count(*) FROM otp.verifications WHERE phone LIKE '+155501400__' AND phone > '+15550140039';

-- Which phone: sms.phone; older versions of GoTrue do not have it, and while a phone is being changed nobody can tell
SELECT otp_api.gotrue_send_sms('{"sms": {"otp": "482915", "phone": "15550140051"}, "user": {"phone": "15550140052", "new_phone": "15550140053"}}');
SELECT phone FROM otp.verifications WHERE id = otp.parse_id(t.last());
SELECT otp_api.gotrue_send_sms('{"sms": {"otp": "482915"}, "user": {"phone": "15550140054"}}');
SELECT phone, metadata FROM otp.verifications WHERE id = otp.parse_id(t.last());
SELECT otp_api.gotrue_send_sms('{"sms": {"otp": "482915"}, "user": {"phone": "", "new_phone": "15550140055"}}');
SELECT phone FROM otp.verifications WHERE id = otp.parse_id(t.last());
SELECT otp_api.gotrue_send_sms('{"sms": {"otp": "482915"}, "user": {"phone": "15550140056", "new_phone": "15550140057"}}');

-- A second factor is another context
SELECT t.hook('+15550140058', '482915', '{"sms": {"sms_type": "mfa"}}');
SELECT context FROM otp.verifications WHERE id = otp.parse_id(t.last());

-- What otp_send refuses, each with its status
CREATE FUNCTION t.refused(setup text, phone text, otp text = '482915', more jsonb = '{}') RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answer jsonb;
	before bigint := (SELECT count(*) FROM otp.verifications);
BEGIN
	BEGIN
		EXECUTE setup;
		answer := t.hook(phone, otp, more);
		IF answer <> '{}' AND (SELECT count(*) FROM otp.verifications) <> before THEN
			RAISE EXCEPTION 'it was refused, and written';
		END IF;
		RAISE EXCEPTION 'undo';
	EXCEPTION WHEN raise_exception THEN
		IF SQLERRM <> 'undo' THEN
			RAISE;
		END IF;
	END;
	RETURN answer;
END $$;
SELECT o.outcome, t.refused(format('SELECT otp.set_test_number(''+15550140060'', ''123456'', %L)', o.outcome), '+15550140060')
FROM (VALUES ('delivered'), ('failed'), ('pending'), ('rate_limit_exceeded'), ('meta_api_unavailable'), ('insufficient_credits')) o (outcome);
SELECT setup, t.refused('UPDATE otp.workspaces SET ' || setup, '+15550140061') FROM (VALUES
	('credits_metered = true'), ('whatsapp_enabled = false'), ('default_template = ''nothing'''), ('denied_prefixes = ''{+1555}'''), ('min_code_length = 8'),
	('suspended_at = now()'), ('require_context = true'), ('default_channel = ''sms'''), ('default_fallback_sms = true'), ('default_length = 4'),
	('policy_function = ''t.nothing''')) v (setup);
SELECT t.hook('+15550140062', '482915');
SELECT t.refused('UPDATE otp.workspaces SET sends_per_phone_hour = 1', '+15550140062');
SELECT t.refused('UPDATE otp.workspaces SET resend_cooldown = ''1 h''', '+15550140062');
-- The address of who asks, where the workspace limits it
SELECT t.refused('INSERT INTO otp.key_limits (workspace_id, prefix, sends_per_hour) VALUES (1, ''ip'', 1)', '+15550140063');
BEGIN;
INSERT INTO otp.key_limits (workspace_id, prefix, sends_per_hour) VALUES (1, 'device', 1);
SELECT t.hook('+15550140064', '482915');
INSERT INTO otp.key_limits (workspace_id, prefix, sends_per_hour) VALUES (1, 'ip', 1);
SELECT t.hook('+15550140064', '482915');
SELECT t.hook('+15550140065', '482915');
SELECT t.hook('+15550140065', '482915', '{"metadata": {"ip_address": "203.0.113.8"}}');
SELECT t.hook('+15550140066', '482915', '{"metadata": {"ip_address": null}}');
ROLLBACK;
-- Credits are taken, and given back with the transaction
BEGIN;
UPDATE otp.workspaces SET credits_metered = true WHERE workspace_id = 1;
SELECT otp.add_credits('default', 2);
SELECT t.hook('+15550140067', '482915'), t.hook('+15550140068', '482915'), t.hook('+15550140069', '482915');
SELECT balance FROM otp.credit_balances;
ROLLBACK;

-- A policy function decides as for otp_send; a shadow's code is never right, nor queued
CREATE FUNCTION t.shadows(r otp.send_request) RETURNS text LANGUAGE sql AS $$
	SELECT CASE WHEN r.phone LIKE '%1' THEN 'shadow' WHEN r.phone LIKE '%2' THEN 'deny'
		WHEN (r.length, r.context, r.metadata ->> 'user_id') = (7, 'gotrue', '6481a5c1-3d37-4a56-9f6a-bee08c554965') THEN 'allow' END
$$;
UPDATE otp.workspaces SET policy_function = 't.shadows';
SELECT t.hook('+15550140071', '4829151');
SELECT t.last() AS shadow \gset
SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id(:'shadow');
SELECT valid, error FROM otp_verify(:'shadow', '4829151', 'gotrue');
SELECT success FROM otp_resend(:'shadow');
SELECT t.hook('+15550140072', '4829151');
SELECT t.hook('+15550140073', '4829151');
UPDATE otp.workspaces SET policy_function = NULL;
DROP FUNCTION t.shadows;

-- A test number: nothing is sent, and GoTrue's code is the code
BEGIN;
SELECT otp.set_test_number('+15550140080', '123456');
SELECT t.hook('+15550140080', '4829151');
SELECT t.last() AS test \gset
SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id(:'test');
SELECT valid, error FROM otp_verify(:'test', '123456', 'gotrue');
SELECT valid FROM otp_verify(:'test', '4829151', 'gotrue');
SELECT t.hook('+15550140080', '4829151');
SELECT success FROM otp_resend(t.last());
ROLLBACK;

-- Again, as long as its row is there: the sealed code is copied
SELECT t.hook('+15550140090', '4829151');
SELECT t.last() AS id \gset
SELECT success, channel FROM otp_resend(:'id', 'sms');
SELECT success FROM otp_resend(:'id');
SELECT number, channel, code = first_value(code) OVER (ORDER BY number) AS same FROM otp.outbox WHERE id = otp.parse_id(:'id') ORDER BY number;
-- the first is gone, but not the last
DELETE FROM otp.outbox WHERE id = otp.parse_id(:'id') AND number < 5;
SELECT success FROM otp_resend(:'id');
DELETE FROM otp.outbox WHERE id = otp.parse_id(:'id');
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT resends FROM otp.verifications WHERE id = otp.parse_id(:'id');
-- It can still be verified
SELECT valid FROM otp_verify(:'id', '4829151', 'gotrue');
-- One of ours needs no row
SELECT otp_id AS id FROM otp_send('+15550140091') \gset
DELETE FROM otp.outbox WHERE id = otp.parse_id(:'id');
SELECT success FROM otp_resend(:'id');

-- Who may
CREATE ROLE regress_otp_nobody;
GRANT USAGE ON SCHEMA t TO regress_otp_nobody;
SET ROLE regress_otp_nobody;
SELECT t.error('SELECT otp_api.gotrue_send_sms($1::jsonb)', '{}');
RESET ROLE;
GRANT USAGE ON SCHEMA otp_api TO regress_otp_nobody;
SET ROLE regress_otp_nobody;
SELECT t.error('SELECT otp_api.gotrue_send_sms($1::jsonb)', '{}');
RESET ROLE;
GRANT EXECUTE ON FUNCTION otp_api.gotrue_send_sms TO regress_otp_nobody;
SET ROLE regress_otp_nobody;
SELECT t.hook('+15550140092', '482915');
RESET ROLE;
-- With several workspaces, one has to be chosen
SELECT otp.create_workspace('gotrue');
SELECT otp.grant_workspace('gotrue', 'regress_otp_auth');
SET ROLE regress_otp_auth;
SELECT t.hook('+15550140093', '482915');
SET otp.workspace = 'default';
SELECT t.hook('+15550140093', '482915');
RESET otp.workspace;
RESET ROLE;
SELECT otp.delete_workspace('gotrue', cascade => true);

-- What GoTrue could do nothing about is raised, and says nothing
BEGIN READ ONLY;
SELECT t.error('SELECT otp_api.gotrue_send_sms($1::jsonb)', t.event('+15550140094', '482915')::text);
ROLLBACK;
BEGIN;
SET LOCAL statement_timeout = 300;
CREATE FUNCTION t.sleeps(r otp.send_request) RETURNS text LANGUAGE sql AS $$ SELECT 'allow' FROM pg_sleep(60) $$;
UPDATE otp.workspaces SET policy_function = 't.sleeps', policy_timeout = '10 s';
SELECT t.hook('+15550140095', '482915');
ROLLBACK;
-- ... from within somebody's exception block, too, which goes on
BEGIN;
CREATE FUNCTION t.conflicts(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '40001'; END $$;
UPDATE otp.workspaces SET policy_function = 't.conflicts';
DO $$
BEGIN
	BEGIN
		PERFORM t.hook('+15550140096', '482915');
	EXCEPTION WHEN serialization_failure THEN
		RAISE WARNING 'caught: %', SQLERRM;
	END;
	UPDATE otp.workspaces SET policy_function = NULL;
	IF t.hook('+15550140096', '482915') <> '{}' THEN
		RAISE EXCEPTION 'no';
	END IF;
END $$;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550140096';
ROLLBACK;

DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL, sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s';
DELETE FROM otp.provider_accounts;
DROP FUNCTION t.refused, t.hook, t.event, t.last;
REVOKE ALL ON SCHEMA t FROM regress_otp_auth, regress_otp_nobody;
SELECT otp.revoke_workspace('default', 'regress_otp_auth');
DROP OWNED BY regress_otp_auth, regress_otp_nobody;
DROP ROLE regress_otp_auth, regress_otp_nobody;
