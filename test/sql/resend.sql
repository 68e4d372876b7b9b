-- Protects: otp_resend and otp_cancel. The same code again with its expiry
-- and attempts kept, the limits of sending, numbering, every refusal; a
-- cancel that is as transactional as any UPDATE.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET sends_per_second = NULL, failures_per_phone_day = NULL;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.set_test_number('+15550107001', '123456');
SELECT otp.set_test_number('+15550107002', '123456', 'pending');
SELECT otp.set_test_number('+15550107003', '123456', 'failed');
SELECT otp.set_test_number('+15550107004', '123456', 'sms_fallback');
CREATE FUNCTION pg_temp.queue(id text) RETURNS TABLE (number int2, channel text, tries int2) LANGUAGE sql AS $$
	SELECT o.number, o.channel, o.tries FROM otp.outbox o WHERE o.id = otp.parse_id($1) ORDER BY 1 $$;
CREATE FUNCTION pg_temp.messages(id text) RETURNS TABLE (number int2, channel text, message_id text) LANGUAGE sql AS $$
	SELECT m.number, m.channel, m.message_id FROM otp.messages m WHERE m.verification_id = otp.parse_id($1) ORDER BY 1 $$;

-- Of a real phone: the cooldown first
SELECT t.known('+15550107010', '123456') AS id \gset
DELETE FROM otp.messages;
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT t.retry_after('SELECT otp_resend($1)', :'id') IN (9, 10) AS retry_after;
UPDATE otp.verifications SET created_at = created_at - interval '11 s', expires_at = expires_at - interval '11 s' WHERE id = otp.parse_id(:'id');
SELECT attempts_remaining FROM otp_verify(:'id', 'x');
SELECT expires_at AS before FROM otp.verifications WHERE id = otp.parse_id(:'id') \gset
SELECT success, otp_id = :'id' AS otp_id, channel, phone, expires_at = :'before' AS expires_at, expires_in BETWEEN 280 AND 289 AS expires_in, message_id FROM otp_resend(:'id');
SELECT resends, attempts, resent_at > created_at AS resent, expires_at = :'before' AS expires_at FROM otp.verifications WHERE id = otp.parse_id(:'id');
SELECT * FROM pg_temp.queue(:'id');
-- and again for the next one, of otp_send, too
SELECT t.retry_after('SELECT otp_resend($1)', :'id') IN (9, 10) AS retry_after;
SELECT t.error('SELECT otp_send($1)', '+15550107010');
SELECT t.error('SELECT otp_send($1, context => ''other'')', '+15550107010');
UPDATE otp.workspaces SET resend_cooldown = NULL;
-- Over another channel
SELECT t.error('SELECT otp_resend($1, ''sms'')', :'id');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');
SELECT channel FROM otp_resend(:'id', 'sms');
SELECT * FROM pg_temp.queue(:'id');
SELECT channel, resends FROM otp.verifications WHERE id = otp.parse_id(:'id');
-- 4 messages of this code and one other make 5 in the hour
SELECT channel FROM otp_resend(:'id', 'whatsapp');
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT t.error('SELECT otp_send($1)', '+15550107010');
SELECT t.retry_after('SELECT otp_resend($1)', :'id') BETWEEN 3580 AND 3600 AS retry_after;
UPDATE otp.workspaces SET sends_per_phone_hour = NULL;
SELECT channel FROM otp_resend(:'id', NULL);
SELECT * FROM pg_temp.queue(:'id');
-- The code is still the same one, and its attempts were kept
SELECT valid, attempts_remaining FROM otp_verify(:'id', '123456');

-- Rolled back, nothing is queued
SELECT t.known('+15550107011', '123456') AS id \gset
BEGIN;
SELECT success FROM otp_resend(:'id');
SELECT * FROM pg_temp.queue(:'id');
ROLLBACK;
SELECT count(*) FROM pg_temp.queue(:'id');
SELECT resends, resent_at FROM otp.verifications WHERE id = otp.parse_id(:'id');

-- In the transaction that sends
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550107012') \gset
SELECT success FROM otp_resend(:'id', 'sms');
SELECT * FROM pg_temp.queue(:'id');
SELECT error FROM otp_verify(:'id', 'x');
ROLLBACK;

-- The second per all, and the modules
BEGIN;
UPDATE otp.workspaces SET whatsapp_enabled = false;
SELECT t.error('SELECT otp_resend($1)', :'id');
ROLLBACK;
SELECT t.known('+15550107013', '123456') AS id \gset
BEGIN;
UPDATE otp.workspaces SET whatsapp_enabled = false;
SELECT t.error('SELECT otp_resend($1)', :'id');
UPDATE otp.workspaces SET whatsapp_enabled = true, whatsapp_account = NULL;
SELECT t.error('SELECT otp_resend($1)', :'id');
UPDATE otp.workspaces SET sms_enabled = false;
SELECT t.error('SELECT otp_resend($1, ''sms'')', :'id');
ROLLBACK;

-- Test numbers: no limits, messages at once
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
SELECT count(*) FROM generate_series(1, 10) i, otp_resend(left(:'id' || i, 30));
SELECT channel FROM otp_resend(:'id', 'sms');
SELECT min(number), max(number), count(*) FROM pg_temp.messages(:'id');
SELECT status, channel, message_id, fallback_used FROM otp_status(:'id');
SELECT otp_id AS id FROM otp_send('+15550107002') \gset
SELECT success FROM otp_resend(:'id');
SELECT count(*) FROM pg_temp.messages(:'id');
SELECT status FROM otp_status(:'id');
SELECT otp_id AS id FROM otp_send('+15550107004') \gset
SELECT success FROM otp_resend(:'id');
SELECT * FROM pg_temp.messages(:'id');
SELECT count(*) FROM otp.outbox o JOIN otp.verifications v USING (id) WHERE v.test_outcome IS NOT NULL;

-- A thousand times is enough
UPDATE otp.verifications SET resends = 999 WHERE id = otp.parse_id(:'id');
SELECT success FROM otp_resend(:'id');
SELECT t.error('SELECT otp_resend($1)', :'id');

-- What has ended is not sent again
SELECT t.error('SELECT otp_resend($1)', 'otp_00000000000000000000000000');
SELECT t.error('SELECT otp_resend($1)', 'otp_');
SELECT t.error('SELECT otp_resend(NULL)');
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
SELECT t.error('SELECT otp_resend($1, $2)', :'id', c) FROM unnest(ARRAY['email', '', 'SMS', 'a_channel_too_long']) c;
SELECT valid FROM otp_verify(:'id', '123456');
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
SELECT otp_cancel(:'id');
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
SELECT otp.simulate(:'id', 'expired');
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
SELECT count(*) FROM unnest(ARRAY['x', 'y', 'z']) g, otp_verify(:'id', g);
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT otp_id AS id FROM otp_send('+15550107003') \gset
SELECT t.error('SELECT otp_resend($1)', :'id');
BEGIN READ ONLY;
SELECT otp_resend(:'id');
ROLLBACK;
BEGIN READ ONLY;
SELECT otp_cancel(:'id');
ROLLBACK;

--
-- otp_cancel
--
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
BEGIN;
SELECT otp_cancel(:'id');
SELECT otp_cancel(:'id');
SELECT valid, error FROM otp_verify(:'id', '123456');
SELECT status, ended_at IS NOT NULL AS ended FROM otp_status(:'id');
ROLLBACK;
SELECT status, ended_at FROM otp_status(:'id');
BEGIN;
SAVEPOINT a;
SELECT otp_cancel(:'id');
ROLLBACK TO a;
SELECT valid FROM otp_verify(:'id', '123456');
SELECT otp_cancel(:'id');
COMMIT;
-- False for whatever has ended or never was
SELECT otp_cancel('otp_00000000000000000000000000'), otp_cancel(''), otp_cancel('x');
SELECT otp_id AS id FROM otp_send('+15550107003') \gset
SELECT otp_cancel(:'id');
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
SELECT otp.simulate(:'id', 'expired');
SELECT otp_cancel(:'id');
SELECT otp_id AS id FROM otp_send('+15550107001') \gset
SELECT count(*) FROM unnest(ARRAY['x', 'y', 'z']) g, otp_verify(:'id', g);
SELECT otp_cancel(:'id');
SELECT t.error('SELECT otp_cancel(NULL)');
-- One's own, in the transaction that sends
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550107014') \gset
SELECT otp_cancel(:'id');
SELECT status FROM otp_status(:'id');
COMMIT;
SELECT valid, error FROM otp_verify(:'id', 'x');

DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL, sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s', failures_per_phone_day = 20;
DELETE FROM otp.provider_accounts;
