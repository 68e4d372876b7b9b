-- Protects: otp_verify's answers. What each column says, the fixed order of
-- the reasons, attempts, context and phone binding, ids that are none or
-- another's, and that a code of the own transaction cannot be right
-- (promise 4). How attempts survive a rollback is in attempts.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.set_test_number('+15550104001', '123456');
SELECT otp.set_test_number('+15550104002', '0042');
SELECT otp.set_test_number('+15550104003', '00000000');
SELECT otp.set_test_number('+15550104004', '654321', 'failed');
SELECT otp.set_test_number('+15550104005', '777777', 'sms_fallback');
CREATE FUNCTION pg_temp.send(phone text, context text = NULL) RETURNS text LANGUAGE sql AS $$ SELECT otp_id FROM otp_send(phone, context => context) $$;
CREATE FUNCTION pg_temp.set(id text, assignment text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	EXECUTE format('UPDATE otp.verifications SET %s WHERE id = otp.parse_id(%L)', assignment, id);
END $$;

-- Right
SELECT pg_temp.send('+15550104001') AS id \gset
SELECT valid, otp_id = :'id' AS otp_id, phone, verified_at BETWEEN clock_timestamp() - interval '1 s' AND clock_timestamp() AS verified_at,
	channel, error, attempts_remaining, retry_after FROM otp_verify(:'id', '123456');
-- Once
SELECT valid, otp_id = :'id' AS otp_id, phone, verified_at, channel, error, attempts_remaining, retry_after FROM otp_verify(:'id', '123456');
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '000000');
SELECT attempts, verified_at IS NOT NULL AS verified, last_attempt_at = verified_at AS last FROM otp.verifications WHERE id = otp.parse_id(:'id');

-- Wrong, three times; then even the right one is too late
SELECT pg_temp.send('+15550104001') AS id \gset
SELECT valid, otp_id = :'id' AS otp_id, phone, verified_at, channel, error, attempts_remaining, retry_after FROM otp_verify(:'id', '123457');
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '12345');
SELECT valid, error, attempts_remaining, retry_after FROM otp_verify(:'id', '1234567');
SELECT valid, error, attempts_remaining, retry_after FROM otp_verify(:'id', '123456');
SELECT valid, error, attempts_remaining, retry_after FROM otp_verify(:'id', '123456');

-- The third one may be right
SELECT pg_temp.send('+15550104001') AS id \gset
SELECT valid, error, attempts_remaining FROM unnest(ARRAY['1', '2']) g, otp_verify(:'id', g);
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '123456');

-- max_attempts is what it was at the send
BEGIN;
UPDATE otp.workspaces SET max_attempts = 1;
SELECT pg_temp.send('+15550104001') AS id \gset
UPDATE otp.workspaces SET max_attempts = 10;
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', 'x');
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '123456');
ROLLBACK;

-- A code is text: leading zeros count, nothing is trimmed, no other digits are taken for ours
SELECT pg_temp.send('+15550104002') AS id \gset
SELECT g, valid, error FROM unnest(ARRAY['42', '042', '0042']) g, otp_verify(:'id', g);
SELECT g, valid, error FROM unnest(ARRAY['00042', ' 0042', '0042 ']) g, otp_verify(pg_temp.send('+15550104002'), g);
SELECT g, valid, error FROM unnest(ARRAY['', E'0042\n', '٠٠٤٢', '42.0', '+042', '0x2a']) g, otp_verify(pg_temp.send('+15550104002'), g);
SELECT length(g), valid, error, attempts_remaining FROM unnest(ARRAY['00000000', '000000000', '0000000', '000000', repeat('0', 64), repeat('0', 65), repeat('0', 1000000)]) g,
	otp_verify(pg_temp.send('+15550104003'), g);

-- Context: the same, or the code is wrong; and it counts
SELECT pg_temp.send('+15550104001', 'payment 12') AS id \gset
SELECT context, valid, error, attempts_remaining FROM unnest(ARRAY[NULL, 'payment 13', 'payment 12']) context, otp_verify(:'id', '123456', context);
SELECT context, valid, error, attempts_remaining FROM unnest(ARRAY['payment 1', 'Payment 12', ' payment 12']) context, otp_verify(pg_temp.send('+15550104001', 'payment 12'), '123456', context);
SELECT sent, given, valid, error FROM unnest(ARRAY[NULL, '', 'a', NULL], ARRAY['', NULL, NULL, 'a']) c (sent, given), otp_verify(pg_temp.send('+15550104001', sent), '123456', given);
SELECT valid FROM otp_verify(pg_temp.send('+15550104001', ''), '123456', '');
SELECT valid FROM otp_verify(pg_temp.send('+15550104001', repeat('x', 256)), '123456', repeat('x', 256));
-- What is context and what is code cannot be moved between the two
SELECT valid, error FROM otp_verify(pg_temp.send('+15550104001', 'a1'), '23456', 'a11');
SELECT valid, error FROM otp_verify(pg_temp.send('+15550104001'), '', '123456');

-- Phone: another one's is not found, and that costs nothing
SELECT pg_temp.send('+15550104001') AS id \gset
SELECT phone, valid, error, attempts_remaining FROM unnest(ARRAY['+15550104002', '15550104001', '', '+15550104001 ', repeat('1', 100000)]) phone,
	LATERAL (SELECT valid, error, attempts_remaining FROM otp_verify(:'id', '123456', NULL, phone)) v WHERE length(phone) < 100 OR valid;
SELECT valid, phone, attempts_remaining FROM otp_verify(:'id', '123456', phone => '+15550104001');
-- before any other reason
SELECT valid, error FROM otp_verify(:'id', '123456', phone => '+15550104002');

-- Ids that are none, unknown, or only look alike
SELECT pg_temp.send('+15550104001') AS id \gset
SELECT what, valid, otp_id = id AS otp_id, phone, verified_at, channel, error, attempts_remaining, retry_after FROM (VALUES
	('unknown', 'otp_00000000000000000000000000'), ('empty', ''), ('lower', lower(:'id')), ('space', :'id' || ' '), ('cut', left(:'id', 29)),
	('no prefix', substr(:'id', 5)), ('quote', 'otp_'' OR true --'), ('uuid', otp.parse_id(:'id')::text), ('too large', 'otp_8' || substr(:'id', 6)),
	('long', repeat('otp_', 100000))) v (what, id), LATERAL (SELECT * FROM otp_verify(id, '123456')) r;

-- Arguments
SELECT t.error('SELECT otp_verify(NULL, ''123456'')');
SELECT t.error('SELECT otp_verify($1, NULL)', :'id');
SELECT t.error('SELECT otp_verify($1, ''123456'', $2)', :'id', repeat('x', 257));
SELECT attempts FROM otp_status(:'id');

-- The order of the reasons: every combination of verified, canceled, expired, used up, failed
CREATE TEMP TABLE combination AS
SELECT b AS n, b & 16 > 0 AS verified, b & 8 > 0 AS canceled, b & 4 > 0 AS expired, b & 2 > 0 AS used_up, b & 1 > 0 AS failed,
	pg_temp.send(CASE WHEN b & 1 > 0 THEN '+15550104004' ELSE '+15550104001' END) AS id
FROM generate_series(0, 31) b;
SELECT count(pg_temp.set(id, concat_ws(', ', 'resends = resends',
	CASE WHEN verified THEN 'verified_at = created_at' END, CASE WHEN canceled THEN 'canceled_at = created_at' END,
	CASE WHEN expired THEN 'expires_at = created_at' END, CASE WHEN used_up THEN 'attempts = 3' END))) FROM combination;
SELECT verified, canceled, expired, used_up, failed, v.valid, v.error, v.attempts_remaining
FROM combination, LATERAL (SELECT * FROM otp_verify(id, CASE WHEN combination.failed THEN '654321' ELSE '123456' END)) v ORDER BY n DESC;
-- None of which counted
SELECT count(*) FROM combination c JOIN otp.verifications v ON v.id = otp.parse_id(c.id) WHERE v.attempts <> CASE WHEN used_up THEN 3 WHEN n = 0 THEN 1 ELSE 0 END;
-- Wrong codes get the same answers
SELECT count(*) FROM combination, LATERAL (SELECT * FROM otp_verify(id, 'x')) v WHERE n BETWEEN 1 AND 31 AND (v.valid OR v.error = 'invalid_code');

-- Expiry is the clock's, to the moment
SELECT pg_temp.send('+15550104001') AS id \gset
SELECT pg_temp.set(:'id', 'expires_at = clock_timestamp() + interval ''300 ms''');
BEGIN;
SELECT valid, error FROM otp_verify(:'id', 'x');
SELECT pg_sleep(0.35);
SELECT valid, error FROM otp_verify(:'id', '123456');
COMMIT;

-- The channel is that of the last message
SELECT pg_temp.send('+15550104005') AS id \gset
SELECT valid, channel FROM otp_verify(:'id', '777777');
SELECT otp_id AS id FROM otp_send('+15550104001', channel => 'sms') \gset
SELECT valid, channel FROM otp_verify(:'id', '123456');

-- Verify and act are one statement
CREATE TEMP TABLE users (phone text, verified bool DEFAULT false);
INSERT INTO users (phone) VALUES ('+15550104001'), ('+15550104002');
SELECT pg_temp.send('+15550104001') AS id \gset
UPDATE users u SET verified = true FROM otp_verify(:'id', '123456') v WHERE v.valid AND u.phone = v.phone;
UPDATE users u SET verified = true FROM otp_verify(:'id', '123456') v WHERE v.valid AND u.phone = v.phone RETURNING 1;
SELECT * FROM users ORDER BY 1;

--
-- Failures per phone and day
--
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_phone_hour = NULL, sends_per_second = NULL, failures_per_phone_day = 5;
SELECT t.known('+15550104010', '111111') AS a, t.known('+15550104010', '222222') AS b, t.known('+15550104010', '333333') AS c, t.known('+15550104011', '444444') AS d \gset
SELECT valid, error, attempts_remaining, retry_after FROM unnest(ARRAY['1', '2', '3']) g, otp_verify(:'a', g);
-- A right one counts nothing
SELECT valid, error, attempts_remaining, retry_after FROM unnest(ARRAY['1', '222222']) g, otp_verify(:'b', g);
SELECT valid, error, attempts_remaining, retry_after FROM otp_verify(:'c', '1');
-- Five failures: not even the right one is looked at, and that costs no attempt
SELECT valid, error, attempts_remaining, retry_after BETWEEN 86390 AND 86401 AS retry_after FROM unnest(ARRAY['1', '333333']) g, otp_verify(:'c', g);
-- Used up is said first
SELECT valid, error, attempts_remaining, retry_after FROM otp_verify(:'a', '111111');
-- Other phones, other workspaces, and test numbers go on
SELECT valid FROM otp_verify(:'d', '444444');
SELECT otp.set_test_number('+15550104010', '555555');
SELECT valid FROM otp_verify(pg_temp.send('+15550104010'), '555555');
-- The policy of now counts
UPDATE otp.workspaces SET failures_per_phone_day = 6;
SELECT valid, error, attempts_remaining FROM otp_verify(:'c', '1');
UPDATE otp.workspaces SET failures_per_phone_day = NULL;
SELECT valid, error, attempts_remaining FROM otp_verify(:'c', '333333');

--
-- A code that cannot have left cannot be right (promise 4)
--
-- For real phones: not found, right or wrong, and no attempt counted
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550104020') \gset
SELECT g, valid, error, attempts_remaining FROM unnest(ARRAY['000000', '111111', '222222', '333333']) g, otp_verify(:'id', g);
SAVEPOINT a;
SELECT valid, error FROM otp_verify(:'id', '000000');
SAVEPOINT b;
SELECT otp_id AS inner_id FROM otp_send('+15550104021') \gset
SELECT valid, error FROM otp_verify(:'inner_id', '000000');
RELEASE b;
SELECT valid, error FROM otp_verify(:'inner_id', '000000');
RELEASE a;
SELECT valid, error FROM otp_verify(:'inner_id', '000000');
DO $$ BEGIN
	BEGIN
		PERFORM otp_verify(otp_id, '1') FROM otp_send('+15550104022');
	EXCEPTION WHEN OTHERS THEN RAISE;
	END;
END $$;
SELECT valid, error FROM otp.verifications v, otp_verify(otp.format_id(v.id), '1') WHERE v.phone = '+15550104022';
-- In one statement, too
SELECT v.valid, v.error FROM otp_send('+15550104023') s, otp_verify(s.otp_id, '1') v;
COMMIT;
-- After the commit it is found, with all its attempts
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', 'x');
SELECT valid, error, attempts_remaining FROM otp_verify(:'inner_id', 'x');
-- After a rollback it is not
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550104024') \gset
ROLLBACK;
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', 'x');
-- Nor after a prepare, until somebody commits
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550104025') \gset
SELECT valid, error FROM otp_verify(:'id', 'x');
PREPARE TRANSACTION 'regress_otp_send';
SELECT valid, error FROM otp_verify(:'id', 'x');
COMMIT PREPARED 'regress_otp_send';
SELECT valid, error, attempts_remaining FROM otp_verify(:'id', 'x');
-- A procedure's COMMIT is a commit
CREATE PROCEDURE pg_temp.send_and_verify() LANGUAGE plpgsql AS $$
DECLARE
	id text; answer record;
BEGIN
	SELECT otp_id INTO id FROM otp_send('+15550104026');
	SELECT * INTO answer FROM otp_verify(id, 'x');
	RAISE INFO '% %', answer.error, answer.attempts_remaining;
	COMMIT;
	SELECT * INTO answer FROM otp_verify(id, 'x');
	RAISE INFO '% %', answer.error, answer.attempts_remaining;
END $$;
CALL pg_temp.send_and_verify();
-- Test numbers are exempt
BEGIN;
SELECT valid, error FROM otp_verify(pg_temp.send('+15550104001'), '123456');
ROLLBACK;
-- A phone made a test number after the send is none for that code
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550104027') \gset
SELECT otp.set_test_number('+15550104027', '123456');
SELECT valid, error FROM otp_verify(:'id', '123456');
ROLLBACK;

-- Found nowhere in clear
SELECT count(*) FROM otp.test_numbers WHERE position('123456'::bytea IN code) > 0;

DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.phone_failures;
UPDATE otp.workspaces SET whatsapp_account = NULL, resend_cooldown = '10 s', sends_per_phone_hour = 5, sends_per_second = 10, failures_per_phone_day = 20;
DELETE FROM otp.provider_accounts;
