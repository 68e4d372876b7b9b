-- Protects: to which countries a workspace sends. Of allowed and denied
-- prefixes the longest that fits decides, a tie denies; the pair of all
-- channels and that of the channel must both let a phone through, and that of
-- SMS as well where a fallback is asked for; resends are asked, too.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET sends_per_second = NULL, resend_cooldown = NULL, sends_per_phone_hour = NULL;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');
SELECT otp.set_test_number('+4915550109001', '123456');

-- What a pair of lists says of some phones
CREATE FUNCTION pg_temp.passes(allowed text[], denied text[], VARIADIC phones text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text := ''; phone text; error text;
BEGIN
	UPDATE otp.workspaces SET allowed_prefixes = allowed, denied_prefixes = denied;
	FOREACH phone IN ARRAY phones LOOP
		error := t.error('SELECT otp_send($1)', phone);
		answer := answer || CASE split_part(error, E'\n', 1) WHEN 'no error' THEN 'y' WHEN 'OT400 phone numbers of this country are not allowed' THEN
			CASE WHEN error LIKE '%workspace''s allowed_prefixes%' THEN 'a' WHEN error LIKE '%workspace''s denied_prefixes%' THEN 'd' END ELSE error END;
	END LOOP;
	RETURN answer;
END $$;

-- One pair: y passes; a, d the list that refuses. Phones of +49 15, +49 30, +44 7, +1 555
BEGIN;
SELECT allowed, denied, pg_temp.passes(allowed, denied, '+4915112345678', '+493012345678', '+447911123456', '+15550100100') AS passes FROM (VALUES
	(NULL::text[], NULL::text[]), ('{}', NULL), (NULL, '{}'), ('{}', '{}'),
	('{+49}', NULL), ('{+49,+1}', '{}'), (NULL, '{+49}'), (NULL, '{+49,+1}'),
	-- the longest of both
	('{+49}', '{+4930}'), ('{+4915}', '{+49}'), ('{+49,+4930}', '{+493}'), ('{+4}', '{+49,+44}'), ('{+49151}', '{+4915,+1}'), ('{+49,+1,+447}', '{+491,+44}'),
	-- a tie
	('{+49}', '{+49}'), ('{+49,+4915}', '{+4915}'), ('{+1,+49}', '{+49,+1,+44}'),
	-- whatever their order, and however often
	('{+4930,+49,+49}', '{+493,+493,+4915}'), ('{+49,+4930,+1}', '{+493,+15550100100}'),
	-- to the last digit, and not beyond
	('{+15550100100}', '{+1555010010}'), ('{+155501001001}', '{}'), (NULL, '{+155501001000}')) v (allowed, denied);
ROLLBACK;

-- The hint names the column; neither message nor hint has the phone
BEGIN;
UPDATE otp.workspaces SET allowed_prefixes = '{+49}', denied_prefixes = '{+4930}';
SELECT t.error('SELECT otp_send($1)', '+15550100101');
SELECT t.error('SELECT otp_send($1)', '+493012345678');
UPDATE otp.workspaces SET allowed_prefixes = NULL, denied_prefixes = NULL, whatsapp_allowed_prefixes = '{+49}', whatsapp_denied_prefixes = '{+4930}',
	sms_allowed_prefixes = '{+1}', sms_denied_prefixes = '{+1555}';
SELECT c, p, t.error('SELECT otp_send($1, channel => $2)', p, c) FROM unnest(ARRAY['whatsapp', 'sms']) c, unnest(ARRAY['+4915112345678', '+493012345678', '+16465550100', '+15550100101']) p;

-- Both pairs must let it through
UPDATE otp.workspaces SET allowed_prefixes = '{+49,+1}', denied_prefixes = '{+49151}';
SELECT c, p, split_part(t.error('SELECT otp_send($1, channel => $2)', p, c), E'\n', 3) AS hint FROM unnest(ARRAY['whatsapp', 'sms']) c, unnest(ARRAY['+4915112345679', '+4915212345678', '+16465550101', '+447911123456']) p;
ROLLBACK;

-- A fallback that was asked for must be allowed; one by default is left out
BEGIN;
UPDATE otp.workspaces SET sms_denied_prefixes = '{+49}';
SELECT t.error('SELECT otp_send($1, fallback_sms => true)', '+4915112345670');
SELECT otp_id AS id FROM otp_send('+4915112345671', fallback_sms => false) \gset
SELECT fallback_sms FROM otp.verifications WHERE id = otp.parse_id(:'id');
UPDATE otp.workspaces SET sms_denied_prefixes = NULL, sms_allowed_prefixes = '{+44}';
SELECT t.error('SELECT otp_send($1, fallback_sms => true)', '+4915112345672');
UPDATE otp.workspaces SET default_fallback_sms = true;
SELECT otp_id AS id FROM otp_send('+4915112345673') \gset
SELECT fallback_sms FROM otp.verifications WHERE id = otp.parse_id(:'id');
SELECT otp_id AS id FROM otp_send('+447911123457') \gset
SELECT fallback_sms FROM otp.verifications WHERE id = otp.parse_id(:'id');
SELECT t.error('SELECT otp_send($1, fallback_sms => true)', '+4915112345674');
-- without it, the module of SMS does not matter, nor does an open breaker go round it
UPDATE otp.workspaces SET sms_enabled = false;
SELECT t.error('SELECT otp_send($1)', '+4915112345675');
SELECT t.error('SELECT otp_send($1)', '+447911123458');
-- the list of all channels is for the fallback as well
UPDATE otp.workspaces SET sms_enabled = true, sms_allowed_prefixes = NULL, denied_prefixes = '{+49}';
SELECT t.error('SELECT otp_send($1)', '+4915112345676');
-- over SMS there is none
UPDATE otp.workspaces SET denied_prefixes = NULL, sms_denied_prefixes = '{+44}', whatsapp_denied_prefixes = '{+49}';
SELECT t.error('SELECT otp_send($1, channel => ''sms'', fallback_sms => true)', '+4915112345677');
ROLLBACK;

-- Resends: of the channel that is asked for now
BEGIN;
SELECT otp_id AS id FROM otp_send('+4915112345680', fallback_sms => true) \gset
UPDATE otp.workspaces SET sms_denied_prefixes = '{+49}';
SELECT t.error('SELECT otp_resend($1, ''sms'')', :'id');
SELECT t.error('SELECT otp_resend($1)', :'id');
UPDATE otp.workspaces SET whatsapp_denied_prefixes = '{+4915112345680}', sms_denied_prefixes = NULL;
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT t.error('SELECT otp_resend($1, ''sms'')', :'id');
UPDATE otp.workspaces SET allowed_prefixes = '{}';
SELECT t.error('SELECT otp_resend($1, ''sms'')', :'id');
SELECT resends FROM otp.verifications WHERE id = otp.parse_id(:'id');
-- A code that is there can still be verified
SELECT error FROM otp_verify(:'id', 'x');
ROLLBACK;

-- Test numbers are of no country
BEGIN;
UPDATE otp.workspaces SET allowed_prefixes = '{}', denied_prefixes = '{+49}', sms_allowed_prefixes = '{}';
SELECT otp_id AS id FROM otp_send('+4915550109001', fallback_sms => true) \gset
SELECT success FROM otp_resend(:'id', 'sms');
ROLLBACK;

-- What the columns take
SELECT c, p, left(t.error(format('UPDATE otp.workspaces SET %I = %L WHERE false OR name = ''default''', c, p)), 5) AS error
FROM unnest(ARRAY['denied_prefixes', 'whatsapp_allowed_prefixes', 'whatsapp_denied_prefixes', 'sms_allowed_prefixes', 'sms_denied_prefixes', 'guard_exempt_prefixes']) c,
	unnest(ARRAY['{NULL}', '{""}', '{+49,""}', '{49}', '{+0}', '{"+49 "}', '{+}', '{+1234567890123456}', '{+49}', '{}', NULL]) p;

UPDATE otp.workspaces SET denied_prefixes = NULL, whatsapp_allowed_prefixes = NULL, whatsapp_denied_prefixes = NULL, sms_allowed_prefixes = NULL, sms_denied_prefixes = NULL, guard_exempt_prefixes = NULL;
DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL, sends_per_second = 10, resend_cooldown = '10 s', sends_per_phone_hour = 5;
DELETE FROM otp.provider_accounts;
