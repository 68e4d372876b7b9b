-- Protects: otp.rate_limit_status tells what the next send will meet: as long
-- as it says that something remains, a send passes, and when it says how long
-- to wait, a refusal says the same. It takes and writes nothing, and tells a
-- tenant of its own workspaces alone.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
CREATE ROLE regress_otp_app;
CREATE ROLE regress_otp_stranger;
SELECT otp.grant_workspace('default', 'regress_otp_app');
UPDATE otp.workspaces SET sends_per_second = 1000000, failures_per_phone_day = NULL;	-- a bucket that is full again at once
INSERT INTO otp.key_limits VALUES (1, 'ip', 2, 3), (1, 'device', NULL, 4), (1, 'free', NULL, NULL);
CREATE FUNCTION pg_temp.left(phone text = NULL, keys text[] = NULL)
RETURNS TABLE (name text, prefix text, max int, used int, remaining int, wait text, resets_in interval) LANGUAGE sql AS $$
	SELECT name, prefix, max, used, remaining, CASE WHEN retry_after = 0 THEN 'no' WHEN retry_after <= 10 THEN 'seconds' WHEN retry_after <= 3600 THEN 'an hour' ELSE 'a day' END,
		date_trunc('hour', resets_at - clock_timestamp() + interval '30 min')
	FROM otp.rate_limit_status(phone, keys) WHERE name NOT LIKE 'failures%'
$$;

-- Nothing is used, once the second of other tests is over
DO $$ BEGIN
	WHILE EXISTS (SELECT FROM otp.rate_limit_status() WHERE name = 'sends_per_second' AND used > 0) LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;
SELECT * FROM pg_temp.left();
SELECT * FROM pg_temp.left('+15555020001', '{device:a,ip:203.0.113.20,free:x,device:a}');
-- Each send takes one of each
SELECT success FROM otp_send('+15555020001', limit_keys => '{ip:203.0.113.20,device:a}');
SELECT * FROM pg_temp.left('+15555020001', '{ip:203.0.113.20,device:a}') WHERE name <> 'sends_per_second';
-- Asking takes none, however often, and another phone and other keys have all theirs
SELECT count(*) FROM generate_series(1, 20), otp.rate_limit_status('+15555020001', '{ip:203.0.113.20}');
SELECT * FROM pg_temp.left('+15555020001', '{ip:203.0.113.20}') WHERE name <> 'sends_per_second';
SELECT DISTINCT used FROM pg_temp.left('+15555020002', '{ip:203.0.113.21,device:b}') WHERE name <> 'sends_per_second';

-- Until it says that there is no more: then a send says the same
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_second = NULL, sends_per_phone_day = 4;
SELECT success FROM otp_send('+15555020001', limit_keys => '{ip:203.0.113.20}');
SELECT * FROM pg_temp.left('+15555020001', '{ip:203.0.113.20}');
SELECT abs(t.retry_after('SELECT otp_send(''+15555020001'', limit_keys => ''{ip:203.0.113.20}'')') - retry_after) <= 1 AS same
FROM otp.rate_limit_status(limit_keys => '{ip:203.0.113.20}') WHERE name = 'sends_per_key_hour';
-- a resend is a message of the phone, and none of the key
SELECT success FROM (SELECT otp.format_id(id) AS id FROM otp.verifications WHERE phone = '+15555020001' ORDER BY id DESC LIMIT 1) v, otp_resend(v.id);
SELECT success FROM (SELECT otp.format_id(id) AS id FROM otp.verifications WHERE phone = '+15555020001' ORDER BY id LIMIT 1) v, otp_resend(v.id);
SELECT * FROM pg_temp.left('+15555020001', '{ip:203.0.113.20}');
SELECT abs(t.retry_after('SELECT otp_send(''+15555020001'')') - retry_after) <= 1 AS same
FROM otp.rate_limit_status('+15555020001') WHERE name = 'sends_per_phone_day';
-- a limit that was lowered since
UPDATE otp.workspaces SET sends_per_phone_hour = 2, sends_per_phone_day = NULL;
UPDATE otp.key_limits SET sends_per_hour = 1, sends_per_day = NULL WHERE prefix = 'ip';
SELECT name, max, used >= max AS all, remaining, wait FROM pg_temp.left('+15555020001', '{ip:203.0.113.20}');
-- what was rolled back is not used
BEGIN;
SELECT success FROM otp_send('+15555020003', limit_keys => '{device:c}');
SELECT name, used FROM pg_temp.left('+15555020003', '{device:c}');
ROLLBACK;
SELECT name, used FROM pg_temp.left('+15555020003', '{device:c}');

-- The bucket: of one a second and five at once
UPDATE otp.workspaces SET sends_per_second = 1, sends_burst = 5;
SELECT max(t.retry_after('SELECT otp_send($1)', '+1555502' || n)) AS retry_after FROM generate_series(1001, 1020) n;
SELECT name, max, used > 0 AS used, resets_at - clock_timestamp() BETWEEN '0 s' AND '5 s' AS full_in_five FROM otp.rate_limit_status();
-- a smaller one holds no more than it can; without a limit there is no row
UPDATE otp.workspaces SET sends_per_second = 3, sends_burst = NULL;
SELECT name, max FROM otp.rate_limit_status();
UPDATE otp.workspaces SET sends_per_second = NULL;
SELECT count(*) FROM otp.rate_limit_status();
SELECT left(t.error('UPDATE otp.workspaces SET sends_burst = 0'), 5);

-- Wrong guesses of the phone: a right one ends the row, not the day
UPDATE otp.workspaces SET failures_per_phone_day = 3, max_failures_in_row = 4, failure_delay = '1 min', failure_delay_after = 2;
SELECT * FROM otp.rate_limit_status('+15555020020') WHERE name LIKE 'fail%';
SELECT t.known('+15555020020', '123456') AS id \gset
SELECT valid FROM otp_verify(:'id', '000000');
SELECT name, max, used, remaining, resets_at - clock_timestamp() BETWEEN '23 h 59 min' AND '24 h' AS a_day, retry_after FROM otp.rate_limit_status('+15555020020') WHERE name LIKE 'fail%';
SELECT valid FROM otp_verify(:'id', '000000');
SELECT name, max, used, remaining, retry_after BETWEEN 50 AND 60 AS a_minute FROM otp.rate_limit_status('+15555020020') WHERE name LIKE 'fail%';
SELECT error, v.retry_after - s.retry_after BETWEEN -1 AND 1 AS same FROM otp_verify(:'id', '123456') v, otp.rate_limit_status('+15555020020') s WHERE s.name = 'failures_in_row';
UPDATE otp.workspaces SET failure_delay = NULL, max_failures_in_row = 2;
SELECT name, used, remaining, retry_after FROM otp.rate_limit_status('+15555020020') WHERE name LIKE 'fail%';
UPDATE otp.workspaces SET max_failures_in_row = 3;
SELECT valid FROM otp_verify(:'id', '123456');
SELECT name, used, remaining FROM otp.rate_limit_status('+15555020020') WHERE name LIKE 'fail%';
SELECT otp.unlock_phone('+15555020020');
SELECT name, used, resets_at FROM otp.rate_limit_status('+15555020020') WHERE name LIKE 'fail%';
UPDATE otp.workspaces SET failures_per_phone_day = NULL, max_failures_in_row = 100, failure_delay = '30 s', failure_delay_after = 5;

-- Where nothing may be written, and under any snapshot
BEGIN READ ONLY;
SELECT count(*) > 0 FROM otp.rate_limit_status('+15555020001', '{device:a}');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT name, used FROM pg_temp.left('+15555020001', '{device:a}');
COMMIT;

-- What is no phone, no key, no workspace
SELECT t.error('SELECT otp.rate_limit_status(''12'')');
SELECT t.error('SELECT otp.rate_limit_status(limit_keys => ''{203.0.113.20}'')');
SELECT t.error('SELECT otp.rate_limit_status(limit_keys => ''{nolimit:203.0.113.20}'')');
SELECT t.error('SELECT otp.rate_limit_status(workspace => ''nowhere'')');
-- Who may ask
SET ROLE regress_otp_app;
SELECT name, used FROM otp.rate_limit_status('+15555020001', '{device:a}') WHERE name LIKE 'sends%' ORDER BY 1;
SET ROLE regress_otp_stranger;
SELECT * FROM otp.rate_limit_status();
RESET ROLE;
GRANT USAGE ON SCHEMA otp TO regress_otp_stranger;
GRANT EXECUTE ON FUNCTION otp.rate_limit_status TO regress_otp_stranger;
SET ROLE regress_otp_stranger;
SELECT * FROM otp.rate_limit_status();
SELECT * FROM otp.rate_limit_status(workspace => 'default');
RESET ROLE;

REVOKE ALL ON FUNCTION otp.rate_limit_status FROM regress_otp_stranger;
REVOKE ALL ON SCHEMA otp FROM regress_otp_stranger;
SELECT otp.revoke_workspace('default', 'regress_otp_app');
DROP ROLE regress_otp_app, regress_otp_stranger;
DELETE FROM otp.key_limits;
DELETE FROM otp.send_keys;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.phone_failures;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s', failures_per_phone_day = 20, whatsapp_account = NULL;
DELETE FROM otp.provider_accounts;
