-- Protects: test numbers and otp.simulate. Every outcome, their end, their
-- limits, and an application's whole flow in one transaction that is rolled
-- back, with no provider set up and nothing sent.

\set SHOW_CONTEXT never
SET client_min_messages = error;

-- The whole flow, its failures included
BEGIN;
SELECT otp.set_test_number('+15550108001', '123456');
SELECT success, channel FROM otp_send('+15550108001', context => 'signup');
SELECT otp_id AS id FROM otp_send('+15550108001', context => 'signup') \gset
SELECT status, sent_at IS NOT NULL AS sent, delivered_at IS NOT NULL AS delivered, message_id FROM otp_status(:'id');
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '000000', 'signup');
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '123456', 'login');
SELECT valid, phone, channel FROM otp_verify(:'id', '123456', 'signup', '+15550108001');
SELECT status FROM otp_status(:'id');
SELECT outcome, otp.set_test_number('+15550108001', '123456', outcome) FROM unnest(ARRAY['sms_fallback']) outcome;
SELECT otp_id AS id, channel AS sent_by FROM otp_send('+15550108001') \gset
SELECT :'sent_by' AS channel, status, s.channel, fallback_used, message_id FROM otp_status(:'id') s;
SELECT valid, channel FROM otp_verify(:'id', '123456');
SELECT otp.set_test_number('+15550108001', '123456', 'failed');
SELECT otp_id AS id FROM otp_send('+15550108001') \gset
SELECT status, error, ended_at IS NOT NULL AS ended FROM otp_status(:'id');
SELECT valid, error FROM otp_verify(:'id', '123456');
SELECT otp.set_test_number('+15550108001', '123456', 'pending');
SELECT otp_id AS id FROM otp_send('+15550108001') \gset
SELECT status, sent_at FROM otp_status(:'id');
SELECT valid FROM otp_verify(:'id', '123456');
SELECT outcome, t.error('SELECT otp.set_test_number(''+15550108001'', ''123456'', $1)', outcome), t.error('SELECT otp_send(''+15550108001'')')
FROM unnest(ARRAY['rate_limit_exceeded', 'meta_api_unavailable', 'insufficient_credits']) outcome;
SELECT otp.set_test_number('+15550108001', '123456', 'rate_limit_exceeded');
SELECT t.retry_after('SELECT otp_send(''+15550108001'')');
ROLLBACK;
SELECT count(*) FROM otp.test_numbers;
SELECT count(*) FROM otp.verifications;
SELECT count(*) FROM otp.outbox;
SELECT t.error('SELECT otp_send($1)', '+15550108001');

-- It keeps no sender busy
BEGIN;
SELECT otp.set_test_number('+15550108001', '123456');
SELECT count(*) FROM generate_series(1, 50) i, otp_send('+15550108001', fallback_sms => true, context => i::text);
SELECT count(*) FROM otp.verifications;
SELECT count(*) FROM otp.outbox;
ROLLBACK;

-- The code is sealed, and who set it is told
SELECT otp.set_test_number('+15550108001', '87654321', valid_until => '2999-01-01 00:00:00+00');
SELECT workspace_id, phone, position('87654321'::bytea IN code) AS clear, outcome, valid_until = '2999-01-01 00:00:00+00' AS valid_until, set_by = current_user AS set_by,
	set_at BETWEEN clock_timestamp() - interval '5 s' AND clock_timestamp() AS set_at FROM otp.test_numbers;
SELECT test_numbers FROM otp.health;
-- 90 days unless said
SELECT otp.set_test_number('+15550108001', '1234');
SELECT valid_until - clock_timestamp() BETWEEN interval '89 days 23 hours' AND interval '90 days 1 hour' AS valid_until FROM otp.test_numbers;
-- Set again, the codes sent before go on
SELECT otp_id AS id FROM otp_send('+15550108001') \gset
SELECT otp.set_test_number('+15550108001', '4321');
SELECT valid FROM otp_verify(:'id', '1234');
SELECT valid FROM otp_send('+15550108001') s, otp_verify(s.otp_id, '4321');

-- Arguments
SELECT phone, t.error('SELECT otp.set_test_number($1, ''123456'')', phone) FROM unnest(ARRAY[NULL, '', '15550108002', '+1 555 010 8002', '+0123456789']) phone;
SELECT code, t.error('SELECT otp.set_test_number(''+15550108002'', $1)', code) FROM unnest(ARRAY['', '123', '1234', '12345', '123456', '1234567', '12345678', '123456789', '12345x', ' 1234', '٠١٢٣']) code;
SELECT outcome, t.error('SELECT otp.set_test_number(''+15550108002'', ''123456'', $1)', outcome)
FROM unnest(ARRAY[NULL, 'delivered', 'sms_fallback', 'failed', 'pending', 'rate_limit_exceeded', 'meta_api_unavailable', 'insufficient_credits', '', 'Delivered', 'verified']) outcome;
SELECT until, t.error('SELECT otp.set_test_number(''+15550108002'', ''123456'', valid_until => $1::timestamptz)', until)
FROM unnest(ARRAY[NULL, 'yesterday', 'now', 'tomorrow', 'infinity', '-infinity']) until;
SELECT t.error('SELECT otp.set_test_number(''+15550108002'', ''123456'', workspace => ''nowhere'')');

-- Its end
SELECT otp.set_test_number('+15550108003', '123456', valid_until => clock_timestamp() + interval '300 ms');
SELECT otp_id AS id FROM otp_send('+15550108003') \gset
SELECT pg_sleep(0.35);
SELECT t.error('SELECT otp_send($1)', '+15550108003');
SELECT count(*) FROM otp.test_numbers WHERE phone = '+15550108003';
-- a code sent before keeps its own
SELECT valid FROM otp_verify(:'id', '123456');

-- NULL makes it an ordinary number again
SELECT otp.set_test_number('+15550108001', NULL);
SELECT t.error('SELECT otp_send($1)', '+15550108001');
SELECT otp.set_test_number('+15550108009', NULL);

-- Of one workspace only
BEGIN;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other');
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT otp.set_test_number('+15550108004', '123456', workspace => 'other');
SELECT w, t.error('SELECT otp_send($1, workspace => $2)', '+15550108004', w) FROM unnest(ARRAY['default', 'other']) w;
-- A seal of one workspace, phone or key is none of another
SELECT otp.set_test_number('+15550108004', '654321');
UPDATE otp.test_numbers a SET code = b.code FROM otp.test_numbers b WHERE a.workspace_id = 1 AND b.workspace_id = 2 AND a.phone = b.phone AND a.phone = '+15550108004';
SELECT split_part(t.error('SELECT otp_send($1, workspace => ''default'')', '+15550108004'), ' ', 1) <> 'no' AS refused;
ROLLBACK;

--
-- otp.simulate
--
SELECT otp.set_test_number('+15550108001', '123456', 'pending');
SELECT otp_id AS id FROM otp_send('+15550108001') \gset
SELECT otp.simulate(:'id', 'delivered');
SELECT status, sent_at IS NOT NULL AS sent, delivered_at IS NOT NULL AS delivered, message_id FROM otp_status(:'id');
SELECT otp.simulate(:'id', 'delivered');
SELECT status FROM otp_status(:'id');
SELECT otp.simulate(:'id', 'failed');
SELECT status, error, attempts_remaining FROM otp_status(:'id');
SELECT valid, error FROM otp_verify(:'id', '123456');
SELECT otp_id AS id FROM otp_send('+15550108001') \gset
SELECT otp.simulate(:'id', 'failed');
SELECT status, error, sent_at, ended_at IS NOT NULL AS ended FROM otp_status(:'id');
SELECT otp_id AS id FROM otp_send('+15550108001') \gset
SELECT otp.simulate(:'id', 'expired');
SELECT status, ended_at = expires_at AS ended FROM otp_status(:'id');
SELECT valid, error FROM otp_verify(:'id', '123456');
SELECT otp_id AS id FROM otp_send('+15550108001') \gset
SELECT valid FROM otp_verify(:'id', '123456');
SELECT e, otp.simulate(:'id', e), status FROM unnest(ARRAY['delivered', 'failed', 'expired']) e, LATERAL otp_status(:'id');
SELECT status, verified_at IS NOT NULL AS verified FROM otp_status(:'id');
-- Not of a real phone, nor of none
SELECT t.known('+15550108005', '123456') AS real \gset
SELECT e, t.error('SELECT otp.simulate($1, $2)', :'real', e) FROM unnest(ARRAY['delivered', 'failed', 'expired', 'x']) e;
SELECT t.error('SELECT otp.simulate($1, ''delivered'')', id) FROM unnest(ARRAY['otp_00000000000000000000000000', '', NULL]) id;
SELECT t.error('SELECT otp.simulate($1, $2)', :'id', e) FROM unnest(ARRAY['verified', '', NULL]) e;

DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
