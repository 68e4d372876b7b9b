-- Protects: the workspace's policy. Every column of otp.workspaces that
-- otp_send obeys, from the statement after its UPDATE on, and the limits with
-- a retry_after that tells the truth.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET sends_per_second = NULL;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');
SELECT otp.set_test_number('+15550103001', '123456');

-- What the table takes
SELECT sql, split_part(t.error('UPDATE otp.workspaces SET ' || sql), E'\n', 1) AS error FROM (VALUES
	('default_length = 5'), ('default_length = NULL'), ('default_expires_in = 59'), ('default_expires_in = 901'), ('default_channel = ''email'''),
	('max_attempts = 0'), ('max_attempts = 11'), ('min_code_length = 5'), ('max_expires_in = 59'), ('max_expires_in = 901'),
	('sends_per_second = 0'), ('sends_per_phone_hour = 0'), ('sends_per_phone_day = -1'), ('failures_per_phone_day = 0'),
	('require_context = NULL'), ('name = ''Upper'''), ('name = NULL')) v (sql);

-- The defaults
BEGIN;
INSERT INTO otp.templates (workspace_id, name, language, status) VALUES (1, 'login', 'de', 'approved');
UPDATE otp.workspaces SET default_template = 'login', default_language = 'de', default_length = 8, default_expires_in = 120,
	default_fallback_sms = true, max_attempts = 7;
SELECT otp_id AS id, expires_in AS life FROM otp_send('+15550103002') \gset
SELECT :life AS expires_in, length, expires_at - created_at AS life, max_attempts, fallback_sms, template, language, channel
FROM otp.verifications WHERE id = otp.parse_id(:'id');
-- All codes by SMS while Meta is down
UPDATE otp.workspaces SET default_channel = 'sms';
SELECT otp_id AS id, channel AS sent_by FROM otp_send('+15550103003') \gset
SELECT :'sent_by' AS sent_by, v.channel, o.channel AS queued, v.fallback_sms FROM otp.verifications v JOIN otp.outbox o USING (id) WHERE id = otp.parse_id(:'id');
-- An argument still wins
SELECT otp_id AS id FROM otp_send('+15550103004', 'otp_verification', 6, 60, false, NULL, 'whatsapp', NULL, 'en_US') \gset
SELECT length, expires_at - created_at AS life, fallback_sms, template, language, channel FROM otp.verifications WHERE id = otp.parse_id(:'id');
ROLLBACK;

-- No interval is too long or too short for a send
BEGIN;
SELECT i, left(t.error('UPDATE otp.workspaces SET resend_cooldown = $1::interval, fallback_after = $1::interval', i), 5) AS set,
	left(t.error('SELECT otp_send($1)', '+1555010301' || n), 8) AS sent, left(t.error('SELECT otp_send($1)', '+1555010301' || n), 5) AS again
FROM unnest(ARRAY['178000000 years', '2147483647 days', '-178000000 years', '0', '1 year -360 days']) WITH ORDINALITY v (i, n);
ROLLBACK;

-- Taken back with the transaction
SELECT otp_id AS id FROM otp_send('+15550103001') \gset
SELECT template, language, max_attempts FROM otp.verifications WHERE id = otp.parse_id(:'id');
BEGIN;
SAVEPOINT a;
UPDATE otp.workspaces SET max_attempts = 9;
SELECT otp_id AS id FROM otp_send('+15550103001') \gset
SELECT max_attempts FROM otp.verifications WHERE id = otp.parse_id(:'id');
ROLLBACK TO a;
SELECT otp_id AS id FROM otp_send('+15550103001') \gset
SELECT max_attempts FROM otp.verifications WHERE id = otp.parse_id(:'id');
COMMIT;

-- min_code_length, max_expires_in, require_context: the strict profile, for test numbers, too
BEGIN;
UPDATE otp.workspaces SET min_code_length = 6, max_expires_in = 600, require_context = true;
SELECT t.error('SELECT otp_send($1, length => 4, context => ''x'')', '+15550103001');
SELECT t.error('SELECT otp_send($1, expires_in => 601, context => ''x'')', '+15550103001');
SELECT t.error('SELECT otp_send($1)', '+15550103001');
SELECT t.error('SELECT otp_send($1, length => 6, expires_in => 600, context => ''x'')', '+15550103001');
SELECT t.error('SELECT otp_send($1, length => 8, expires_in => 60, context => '''')', '+15550103001');
-- A default cannot get round it
UPDATE otp.workspaces SET default_length = 4;
SELECT t.error('SELECT otp_send($1, context => ''x'')', '+15550103001');
UPDATE otp.workspaces SET default_length = 6, default_expires_in = 900;
SELECT t.error('SELECT otp_send($1, context => ''x'')', '+15550103001');
ROLLBACK;

-- allowed_prefixes
BEGIN;
UPDATE otp.workspaces SET allowed_prefixes = '{+1,+91}';
SELECT phone, t.error('SELECT otp_send($1)', phone) FROM unnest(ARRAY['+15550103005', '+919876543210', '+4915112345678', '+19', '+92300123456']) phone;
UPDATE otp.workspaces SET allowed_prefixes = '{}';
SELECT t.error('SELECT otp_send($1)', '+15550103006');
SELECT t.error('SELECT otp_send($1)', '+15550103001');
SELECT p AS prefixes, left(t.error('UPDATE otp.workspaces SET allowed_prefixes = $1::text[]', p), 5) AS error
FROM unnest(ARRAY['{NULL,+49}', '{""}', '{+49,""}', '{49}', '{+0}', '{+49 30}', '{++49}', '{+1234567890123456}', '{+49,+491}', '{}']) p;
ROLLBACK;

-- Modules
BEGIN;
UPDATE otp.workspaces SET whatsapp_enabled = false;
SELECT t.error('SELECT otp_send($1)', '+15550103007');
SELECT t.error('SELECT otp_send($1, channel => ''sms'')', '+15550103007');
UPDATE otp.workspaces SET whatsapp_enabled = true, sms_enabled = false;
SELECT t.error('SELECT otp_send($1)', '+15550103008');
SELECT t.error('SELECT otp_send($1, fallback_sms => true)', '+15550103009');
SELECT t.error('SELECT otp_send($1, channel => ''sms'')', '+15550103009');
ROLLBACK;

-- resend_cooldown: per phone, template and context; NULL is none of them
BEGIN;
INSERT INTO otp.templates (workspace_id, name, language, status) VALUES (1, 'login', 'en_US', 'approved');
UPDATE otp.workspaces SET sends_per_phone_hour = NULL, sends_per_second = NULL;
SELECT t.error('SELECT otp_send($1)', '+15550103010');
SELECT t.error('SELECT otp_send($1)', '+15550103010');
SELECT t.retry_after('SELECT otp_send($1)', '+15550103010') IN (9, 10) AS retry_after;
SELECT t.error('SELECT otp_send($1, context => ''a'')', '+15550103010');
SELECT t.error('SELECT otp_send($1, context => ''a'')', '+15550103010');
SELECT t.error('SELECT otp_send($1, context => ''b'')', '+15550103010');
SELECT t.error('SELECT otp_send($1, context => '''')', '+15550103010');
SELECT t.error('SELECT otp_send($1, template => ''login'')', '+15550103010');
SELECT t.error('SELECT otp_send($1, template => ''login'', context => ''a'')', '+15550103010');
SELECT t.error('SELECT otp_send($1, template => ''login'', context => ''a'', channel => ''sms'')', '+15550103010');
SELECT t.error('SELECT otp_send($1)', '+15550103011');
-- Refused sends leave nothing
SELECT count(*) FROM otp.verifications WHERE phone = '+15550103010';
-- Once it is over
UPDATE otp.verifications SET created_at = created_at - interval '9 s' WHERE phone = '+15550103010' AND template = 'otp_verification' AND context IS NULL;
SELECT t.retry_after('SELECT otp_send($1)', '+15550103010') = 1 AS retry_after;
UPDATE otp.verifications SET created_at = created_at - interval '1 s' WHERE phone = '+15550103010';
SELECT t.error('SELECT otp_send($1)', '+15550103010');
-- Another one
UPDATE otp.workspaces SET resend_cooldown = '5 min';
SELECT t.retry_after('SELECT otp_send($1)', '+15550103010') BETWEEN 299 AND 300 AS retry_after;
UPDATE otp.workspaces SET resend_cooldown = NULL;
SELECT t.error('SELECT otp_send($1)', '+15550103010');
UPDATE otp.workspaces SET resend_cooldown = '0';
SELECT t.error('SELECT otp_send($1)', '+15550103010');
-- Test numbers have none
SELECT t.error('SELECT otp_send($1)', '+15550103001') FROM generate_series(1, 20) GROUP BY 1;
ROLLBACK;

-- sends_per_phone_hour: whatever the template and the context
BEGIN;
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_second = NULL;
SELECT i, t.error('SELECT otp_send($1, context => $2)', '+15550103020', i::text) FROM generate_series(1, 6) i;
SELECT t.retry_after('SELECT otp_send($1)', '+15550103020') BETWEEN 3599 AND 3600 AS retry_after;
SELECT t.error('SELECT otp_send($1)', '+15550103021');
ROLLBACK;

-- The window moves: ids of an hour ago
CREATE FUNCTION pg_temp.age(verification text, by interval) RETURNS void LANGUAGE sql AS $$
	WITH old AS (DELETE FROM otp.verifications WHERE id = otp.parse_id(verification) RETURNING *),
	moved AS (SELECT old.*, lpad(to_hex((extract(epoch FROM created_at - by) * 1000)::bigint), 12, '0') AS ms FROM old)
	INSERT INTO otp.verifications
	SELECT workspace_id, (ms || substr(replace(id::text, '-', ''), 13))::uuid, ('x' || ms)::bit(48)::bigint / 86400000 % 32,
		created_xid, created_at - by, expires_at - by, verified_at, canceled_at, resent_at - by, last_attempt_at, key_id, length,
		attempts, max_attempts, resends, fallback_sms, test_outcome, phone, template, language, channel, context, salt, code_hash, metadata
	FROM moved
$$;
BEGIN;
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_second = NULL;
CREATE TEMP TABLE sent ON COMMIT DROP AS SELECT i, otp_id FROM generate_series(1, 5) i, LATERAL (SELECT * FROM otp_send(format('+15550103%s', 22 + 0 * i), context => i::text)) s;
SELECT pg_temp.age(otp_id, make_interval(mins => 10 * (6 - i))) FROM sent;
SELECT t.error('SELECT otp_send($1)', '+1555010322');
SELECT t.retry_after('SELECT otp_send($1)', '+1555010322') BETWEEN 595 AND 600 AS retry_after;
SELECT pg_temp.age(otp.format_id(id), '10 min 1 s') FROM otp.verifications WHERE phone = '+1555010322' AND context = '1';
SELECT t.error('SELECT otp_send($1)', '+1555010322');
SELECT t.error('SELECT otp_send($1)', '+1555010322');
-- sends_per_phone_day: across midnight and two drawers
UPDATE otp.workspaces SET sends_per_phone_hour = NULL, sends_per_phone_day = 6;
SELECT t.error('SELECT otp_send($1)', '+1555010322');
SELECT t.retry_after('SELECT otp_send($1)', '+1555010322') BETWEEN 86400 - 3605 AND 86400 - 3595 AS retry_after;
SELECT pg_temp.age(otp.format_id(id), '23 h') FROM otp.verifications WHERE phone = '+1555010322' AND context IN ('1', '2', '3', '4', '5');
SELECT t.retry_after('SELECT otp_send($1)', '+1555010322') IS NULL AS room;
UPDATE otp.workspaces SET sends_per_phone_hour = 2, sends_per_phone_day = NULL;
SELECT t.error('SELECT otp_send($1)', '+1555010322');
UPDATE otp.workspaces SET sends_per_phone_hour = NULL;
SELECT t.error('SELECT otp_send($1)', '+1555010322');
ROLLBACK;

-- Repeatable read and serializable count their own
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550103023';
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_second = NULL;
SELECT i, t.error('SELECT otp_send($1, context => $2)', '+15550103023', i::text) FROM generate_series(4, 9) i;
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_second = NULL;
SELECT i, t.error('SELECT otp_send($1, context => $2)', '+15550103023', i::text) FROM generate_series(4, 9) i;
ROLLBACK;

-- A rolled-back send does not count
DO $$
BEGIN
	FOR i IN 1 .. 20 LOOP
		BEGIN
			PERFORM otp_send('+15550103024');
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
		PERFORM pg_sleep(0.12);
	END LOOP;
END $$;

-- sends_per_second: of the whole workspace, and rolled-back ones, too
BEGIN;
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_second = 2, sends_per_phone_hour = NULL;
SELECT pg_sleep(1.1);
SELECT i, t.error('SELECT otp_send($1)', format('+1555010303%s', i)) FROM generate_series(0, 4) i;
SELECT t.retry_after('SELECT otp_send($1)', '+15550103030') = 1 AS retry_after;
SELECT t.error('SELECT otp_send($1)', '+15550103001');
SELECT pg_sleep(1.1);
SELECT t.error('SELECT otp_send($1)', '+15550103030');
UPDATE otp.workspaces SET sends_per_second = NULL;
SELECT t.error('SELECT otp_send($1)', format('+155501030%s', 40 + i)) FROM generate_series(0, 30) i GROUP BY 1;
ROLLBACK;

-- Of another workspace nothing counts here
BEGIN;
INSERT INTO otp.workspaces (workspace_id, name, whatsapp_account) SELECT 2, 'other', whatsapp_account FROM otp.workspaces;
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT t.error('SELECT otp_send($1)', '+15550103080');
SELECT t.error('SELECT otp_send($1, workspace => $2)', '+15550103080', w), w FROM unnest(ARRAY['default', 'other', 'default', 'other']) w;
SELECT workspace_id, count(*) FROM otp.verifications WHERE phone = '+15550103080' GROUP BY 1 ORDER BY 1;
ROLLBACK;

SELECT otp.set_test_number('+15550103001', NULL);
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL, sends_per_second = 10;
DELETE FROM otp.provider_accounts;
