-- Protects: one phone, one limit. Brazilian, Mexican and Argentine numbers
-- count together in their old and new forms: for sends, the cooldown, wrong
-- guesses and otp.forget_phone. Numbers that only look like it do not. What
-- is stored and returned stays as the caller gave it.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
UPDATE otp.workspaces SET sends_per_second = NULL, sends_per_phone_hour = 1, resend_cooldown = NULL, failure_delay = NULL;

-- Is a phone refused after one was sent to? All of it is rolled back.
CREATE FUNCTION pg_temp.same(a text, b text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
	refused bool := false;
BEGIN
	PERFORM otp_send(a);
	BEGIN
		PERFORM otp_send(b);
	EXCEPTION WHEN SQLSTATE 'OT429' THEN
		refused := true;
	END;
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
	RETURN refused;
END $$;

-- The same, both ways round
CREATE TEMP TABLE pair (what text, a text, b text);
INSERT INTO pair VALUES
	('itself', '+14155552671', '+14155552671'),
	('Brazil, 9', '+5511987654321', '+551187654321'),
	('Brazil, 9 9', '+5521991234567', '+552191234567'),
	('Brazil, 9 6', '+5585961234567', '+558561234567'),
	('Brazil, 9 7', '+5511971234567', '+551171234567'),
	('Mexico', '+5215512345678', '+525512345678'),
	('Mexico, 998', '+5219981234567', '+529981234567'),
	('Argentina, 9', '+5491123456789', '+541123456789'),
	('Argentina, 11 15', '+5491123456789', '+54111523456789'),
	('Argentina, 11 15 and neither', '+541123456789', '+54111523456789'),
	('Argentina, 11 15 15', '+5491115156789', '+54111515156789'),
	('Argentina, 351 15', '+5493511234567', '+54351151234567'),
	('Argentina, 351 and neither', '+543511234567', '+5493511234567'),
	('Argentina, 2966 15', '+5492966123456', '+54296615123456'),
	('Argentina, 2202 15', '+5492202123456', '+54220215123456'),
	('Argentina, 220 15 of the same digits', '+5492202123456', '+54220152123456'),
	('Argentina, 220 15 and 2202 15', '+54220152123456', '+54220215123456');
SELECT what, pg_temp.same(a, b), pg_temp.same(b, a) FROM pair;

-- Others
SELECT what, pg_temp.same(a, b) FROM (VALUES
	('Brazil, landlines have no 9', '+5511931234567', '+551131234567'),
	('Brazil, 9 5 never had eight digits', '+5511951234567', '+551151234567'),
	('Brazil, another area', '+5511987654321', '+552187654321'),
	('Brazil, another number', '+5511987654321', '+551187654322'),
	('Brazil, no such area', '+5510987654321', '+551087654321'),
	('Brazil, one more 9', '+5511987654321', '+55119987654321'),
	('Mexico, another number', '+5215512345678', '+525512345679'),
	('Mexico, no number begins with 1', '+5211512345678', '+521512345678'),
	('Mexico, too long', '+52155123456789', '+5255123456789'),
	('Argentina, another number', '+5491123456789', '+541123456788'),
	('Argentina, 15 in another place', '+5491123456789', '+54112153456789'),
	('Argentina, 15 behind no area', '+5493511234567', '+54153511234567'),
	('Argentina, no area code begins with 4', '+5494511234567', '+544511234567'),
	('Argentina, both 9 and 15', '+5491123456789', '+549111523456789'),
	('Brazil is not Argentina', '+5511987654321', '+5411987654321'),
	('Peru', '+51987654321', '+5187654321'),
	('Cuba', '+5359876543', '+53159876543'),
	('one digit more', '+14155552671', '+141555526711')) v (what, a, b);

-- Counted together, whichever comes when; resends, too; and as they were given
UPDATE otp.workspaces SET sends_per_phone_hour = 4;
SELECT phone FROM otp_send('+5511987650001');
SELECT phone, otp_id AS id FROM otp_send('+551187650001') \gset
SELECT phone FROM otp_resend(:'id');
SELECT phone FROM otp_send('+5511987650001');
SELECT phone, t.error('SELECT otp_send($1)', phone) FROM unnest(ARRAY['+551187650001', '+5511987650001']) phone;
SELECT t.retry_after('SELECT otp_send($1)', '+551187650001') BETWEEN 3590 AND 3600 AS retry_after;
SELECT t.error('SELECT otp_resend($1)', :'id');
SELECT phone, count(*) FROM otp.verifications WHERE phone LIKE '+55%' GROUP BY 1 ORDER BY 1;
SELECT phone FROM otp_status(:'id');
-- In another workspace they begin anew
BEGIN;
INSERT INTO otp.workspaces (workspace_id, name, whatsapp_account) SELECT 2, 'other', whatsapp_account FROM otp.workspaces;
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT success FROM otp_send('+551187650001', workspace => 'other');
ROLLBACK;

-- The cooldown
UPDATE otp.workspaces SET sends_per_phone_hour = NULL, resend_cooldown = '10 s';
SELECT success FROM otp_send('+5215512345001');
SELECT t.error('SELECT otp_send($1)', '+525512345001');
SELECT t.error('SELECT otp_send($1, context => ''another'')', '+525512345001');
UPDATE otp.workspaces SET resend_cooldown = NULL;

-- The lock is on the phone, too: otp_send of one form waits for another's (as few locks as phones)
BEGIN;
SELECT success FROM unnest(ARRAY['+5491123450001', '+541123450001', '+54111523450001', '+14155550001']) phone, otp_send(phone);
UPDATE otp.workspaces SET sends_per_phone_hour = 100;
SELECT success FROM unnest(ARRAY['+5491123450001', '+541123450001', '+54111523450001', '+14155550001']) phone, otp_send(phone);
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory';
ROLLBACK;

-- Wrong guesses: three of four forms, and then the code of none is looked at
UPDATE otp.workspaces SET failures_per_phone_day = 3;
SELECT t.known('+5492202123001', '111111') AS a, t.known('+542202123001', '222222') AS b, t.known('+54220215123001', '333333') AS c, t.known('+54220152123001', '444444') AS d \gset
SELECT error, attempts_remaining FROM unnest(ARRAY[:'a', :'b', :'c']) id, otp_verify(id, 'wrong');
SELECT error, attempts_remaining, retry_after > 86000 AS retry_after FROM unnest(ARRAY[:'a', :'b', :'c', :'d']) id, otp_verify(id, '444444');
-- A test number is one in its exact form alone
SELECT otp.set_test_number('+5492202123001', '555555');
SELECT phone, valid FROM otp_verify((SELECT otp_id FROM otp_send('+5492202123001')), '555555');
SELECT otp_id AS real FROM otp_send('+542202123001') \gset
SELECT phone, test_outcome FROM otp.verifications WHERE id = otp.parse_id(:'real');
SELECT otp.set_test_number('+5492202123001', NULL);
-- Unlocked by any form
SELECT otp.unlock_phone('+54220215123001');
SELECT valid, phone FROM otp_verify(:'d', '444444');
UPDATE otp.workspaces SET failures_per_phone_day = 20;

-- Forgotten by any form: verifications, test numbers, and the number in any form in what was kept with the code
SELECT otp.set_test_number('+551187650001', '123456'), otp.set_test_number('+5511987650001', '123456'), otp.set_test_number('+5511987650002', '123456');
SELECT count(*) FROM (SELECT otp_send('+5511987650003', metadata => m) FROM unnest(ARRAY['{"tel": "551187650003"}', '{"tel": "+5511987650003"}', '{"tel": "551187650004"}']::jsonb[]) m) s;
SELECT success FROM otp_send('+551187650003', context => 'call 5511987650003');
SELECT f.verifications, f.canceled, f.test_numbers FROM otp.forget_phone('+551187650001') f;
SELECT f.verifications, f.canceled, f.test_numbers FROM otp.forget_phone('+5511987650003') f;
SELECT left(phone, 1) AS phone, metadata, context FROM otp.verifications WHERE phone LIKE '+55%' OR metadata IS NOT NULL OR context IS NOT NULL;
SELECT phone FROM otp.test_numbers;
SELECT count(DISTINCT phone), count(*) FROM otp.verifications WHERE phone LIKE '#%';
-- It counts on
UPDATE otp.workspaces SET sends_per_phone_hour = 5;
SELECT success FROM otp_send('+551187650003');
SELECT t.error('SELECT otp_send($1)', '+5511987650003');

DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.forgotten_phones;
DELETE FROM otp.phone_failures;
UPDATE otp.workspaces SET whatsapp_account = NULL, sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s', failure_delay = '30 s';
DELETE FROM otp.provider_accounts;
