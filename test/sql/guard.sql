-- Protects: the bill, from who is paid for messages to a country. How many
-- codes to a country may be unverified, by hour and day and by what the
-- workspace itself has verified there; that only what commits counts, and all
-- of it; what is refused, what only recorded, what exempt; who sees it.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');

-- A workspace with no other limit; nobody has asked about it, so its history is read at its first send
CREATE FUNCTION t.guarded(name text, mode text = 'block') RETURNS int LANGUAGE sql AS $$
	WITH w AS (
		INSERT INTO otp.workspaces (workspace_id, name, whatsapp_account, sms_account, guard_mode, sends_per_second, sends_per_phone_hour, resend_cooldown)
		SELECT 1001 + (SELECT count(*) FROM otp.workspaces o WHERE o.workspace_id > 1000), $1, d.whatsapp_account, d.sms_account, $2, NULL, NULL, NULL
		FROM otp.workspaces d WHERE d.name = 'default' RETURNING workspace_id)
	INSERT INTO otp.templates (workspace_id, name, language) SELECT w.workspace_id, 'otp_verification', 'en_US' FROM w RETURNING workspace_id
$$;
-- What it has sent at a time, of which some were verified
CREATE FUNCTION t.history(workspace int, prefix text, at timestamptz, n int, verified int = 0, outcome text = NULL, shadow bool = false) RETURNS void LANGUAGE sql AS $$
	WITH d AS (SELECT (extract(epoch FROM date_trunc('milliseconds', at)) * 1000)::int8 AS ms)
	INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, verified_at, key_id, length, max_attempts,
		fallback_sms, test_outcome, phone, template, language, channel, salt, code_hash, shadowed)
	SELECT workspace, (lpad(to_hex(d.ms), 12, '0') || lpad(to_hex(d.ms / 86400000 % 32 * 8), 2, '0') || left(md5(random()::text), 18))::uuid,
		d.ms / 86400000 % 32, 3, at, at + interval '5 min', CASE WHEN i <= verified THEN at + interval '9 s' END, 1, 6, 3,
		false, outcome, prefix || lpad(i::text, 5, '0'), 'otp_verification', 'en_US', CASE WHEN i % 2 = 0 THEN 'sms' ELSE 'whatsapp' END, '\x00', '\x00', shadow
	FROM d, generate_series(1, n) i
$$;
-- Try to send so many codes, in one transaction; how many are sent?
CREATE FUNCTION t.try(workspace text, prefix text, n int = 1000) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		BEGIN
			PERFORM FROM otp_send(prefix || '9' || lpad(i::text, 4, '0'), workspace => $1);
		EXCEPTION WHEN SQLSTATE 'OT429' THEN
			RETURN i - 1;
		END;
	END LOOP;
	RETURN n;
END $$;
-- A code that is known, of a phone that is real: a test number's until then
CREATE FUNCTION t.known_to(workspace text, phone text, code text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	sent text;
BEGIN
	PERFORM otp.set_test_number($2, $3, 'pending', workspace => $1);
	SELECT s.otp_id INTO sent FROM otp_send($2, workspace => $1) s;
	PERFORM otp.set_test_number($2, NULL, workspace => $1);
	UPDATE otp.verifications v SET test_outcome = NULL, created_xid = 3 WHERE v.id = otp.parse_id(sent);
	RETURN sent;
END $$;
-- The decisions, once the sender has written all of them
CREATE FUNCTION t.decisions() RETURNS TABLE (workspace text, country text, decision text, reason text, count int8, unverified int, threshold int, at_once bool) LANGUAGE plpgsql AS $$
BEGIN
	WHILE EXISTS (SELECT FROM otp.guard_unwritten()) LOOP
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN QUERY SELECT d.workspace, d.country, d.decision, d.reason, sum(d.count)::int8, max(d.unverified), max(d.threshold),
		bool_and(d.since <= d.at AND d.at BETWEEN clock_timestamp() - interval '1 h' AND clock_timestamp())
	FROM otp.guard_decisions d GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;
END $$;

-- Off, as everybody begins: nothing is refused, nothing decided; but one may see how it would be
SELECT t.guarded('guard_off', 'off') AS off \gset
SELECT t.try('guard_off', '+35691', 30);
SELECT * FROM otp.guard_status('guard_off');
SELECT count(*) FROM otp.guard_unwritten();

-- Three an hour where there is no history; another country is free, as is another workspace
SELECT t.guarded('guard_new') AS new \gset
SELECT t.guarded('guard_other') AS other \gset
SELECT i, t.error('SELECT otp_send($1, workspace => $2)', '+3569100000' || i, 'guard_new') FROM generate_series(1, 2) i;
SELECT i, t.error('SELECT otp_send($1, workspace => $2)', '+3569100001' || i, 'guard_new') FROM generate_series(1, 3) i;
SELECT t.error('SELECT otp_send($1, workspace => $2, channel => $3)', '+35691000099', 'guard_new', 'sms');
SELECT t.try('guard_new', '+41791', 2);
SELECT t.try('guard_other', '+35691', 1);
SELECT * FROM otp.guard_status('guard_new') ORDER BY country;

-- In one statement, too
SELECT t.error('SELECT otp_send(''+3582000000'' || i, workspace => ''guard_new'') FROM generate_series(1, 4) i');
SELECT t.error('SELECT otp_send(''+3582000000'' || i, workspace => ''guard_new'') FROM generate_series(1, 3) i');
SELECT t.try('guard_new', '+35820');

-- A prefix that no country has; countries that share one
SELECT t.try('guard_new', '+9991'), t.try('guard_new', '+9992'), t.try('guard_new', '+9981');
SELECT t.try('guard_new', '+4420'), t.try('guard_new', '+44153'), t.try('guard_new', '+441534');
SELECT t.try('guard_new', '+1212'), t.try('guard_new', '+1415'), t.try('guard_new', '+1416');
SELECT country, unverified_hour, tripped FROM otp.guard_status('guard_new') ORDER BY country;

-- Prefixes that no country has are told apart in a history as well
SELECT t.guarded('guard_unknown') AS workspace \gset
SELECT t.history(:workspace, '+9991', now() - interval '2 min', 3), t.history(:workspace, '+9981', now() - interval '1 min', 1);
SELECT t.try('guard_unknown', '+9991'), t.try('guard_unknown', '+9981');

-- Only what commits counts
SELECT t.guarded('guard_rollback') AS workspace \gset
BEGIN;
SELECT t.try('guard_rollback', '+35621');
ROLLBACK;
SELECT unverified_hour FROM otp.guard_status('guard_rollback');
BEGIN;
SELECT t.try('guard_rollback', '+35621', 1);
SAVEPOINT a;
SELECT t.try('guard_rollback', '+35621', 1);
SAVEPOINT b;
SELECT t.try('guard_rollback', '+35622');
ROLLBACK TO b;
SELECT t.try('guard_rollback', '+35622');
ROLLBACK TO a;
SELECT t.try('guard_rollback', '+35622', 1);
SAVEPOINT c;
SELECT t.try('guard_rollback', '+35623', 1);
SAVEPOINT d;
SELECT t.try('guard_rollback', '+4930', 1);
RELEASE c;
SELECT t.try('guard_rollback', '+35624');
SAVEPOINT e;
SELECT t.try('guard_rollback', '+4930', 1);
ROLLBACK TO e;
COMMIT;
SELECT country, unverified_hour FROM otp.guard_status('guard_rollback') ORDER BY country;
SELECT t.try('guard_rollback', '+35624'), t.try('guard_rollback', '+4930');

-- A code that is verified makes room, whenever the transaction commits that did it
SELECT t.guarded('guard_verify') AS workspace \gset
SELECT t.known_to('guard_verify', '+35691000001', '111111') AS first, t.known_to('guard_verify', '+35691000002', '222222') AS second,
	t.known_to('guard_verify', '+35691000003', '333333') AS third \gset
SELECT t.try('guard_verify', '+35691');
BEGIN;
SELECT valid FROM otp_verify(:'first', '111111');
SELECT t.try('guard_verify', '+35691');
ROLLBACK;
SELECT t.try('guard_verify', '+35691');
SELECT valid FROM otp_verify(:'second', '999999');
SELECT t.try('guard_verify', '+35691');
SELECT valid FROM otp_verify(:'first', '111111');
SELECT unverified_hour, verified_hour, unverified_day, verified_day FROM otp.guard_status('guard_verify');
SELECT t.try('guard_verify', '+35691');

-- Test numbers do not count, nor do shadowed sends, of which nobody has got a code
SELECT t.guarded('guard_shadow') AS workspace \gset
SELECT t.history(:workspace, '+35691', now() - interval '1 min', 10, outcome => 'delivered'), t.history(:workspace, '+35691', now() - interval '1 min', 2, shadow => true);
SELECT otp.set_test_number('+35692000001', '123456', workspace => 'guard_shadow');
SELECT t.error('SELECT otp_send($1, workspace => $2)', '+35692000001', 'guard_shadow') FROM generate_series(1, 10) GROUP BY 1;
SELECT unverified_hour FROM otp.guard_status('guard_shadow');
SELECT t.try('guard_shadow', '+35691');
SELECT t.error('SELECT otp_send($1, workspace => $2)', '+35692000001', 'guard_shadow');
SELECT otp.set_test_number('+35692000001', NULL, workspace => 'guard_shadow');

-- Twenty a day, whatever the hour says, and what is older does not count; the hour moves by ten minutes
SELECT t.guarded('guard_day') AS workspace \gset
SELECT now() - interval '5 h' AS at, now() - interval '30 min' AS half \gset
SELECT t.history(:workspace, '+35691', :'at', 19), t.history(:workspace, '+35691', now() - interval '25 h', 100), t.history(:workspace, '+4930', now() - interval '61 min', 3),
	t.history(:workspace, '+4179', :'half', 3);
SELECT country, unverified_hour, threshold_hour, unverified_day, threshold_day, tripped FROM otp.guard_status('guard_day') ORDER BY country;
SELECT t.error('SELECT otp_send($1, workspace => $2)', '+35691200001', 'guard_day');
SELECT t.error('SELECT otp_send($1, workspace => $2)', '+35691200002', 'guard_day');
SELECT t.try('guard_day', '+4930'), t.try('guard_day', '+4179');
-- retry_after: until those of the step leave the window
SELECT abs(t.retry_after('SELECT otp_send($1, workspace => $2)', '+35691200002', 'guard_day')
	- extract(epoch FROM date_bin('10 min', :'at', '2000-01-01 00:00+00') + interval '24 h' - clock_timestamp())) < 5 AS day,
	abs(t.retry_after('SELECT otp_send($1, workspace => $2)', '+4179200002', 'guard_day')
	- extract(epoch FROM date_bin('10 min', :'half', '2000-01-01 00:00+00') + interval '1 h' - clock_timestamp())) < 5 AS hour;

-- A fifth of what was verified in 24 hours, a sixth of that in an hour, or a fifth of what was verified in the hour
SELECT t.guarded('guard_verified') AS workspace \gset
SELECT t.history(:workspace, '+35691', now() - interval '5 h', 600, 600), t.history(:workspace, '+4930', now() - interval '10 min', 54, 54),
	t.history(:workspace, '+4179', now() - interval '10 min', 1000, 900);
SELECT * FROM otp.guard_status('guard_verified') ORDER BY country;
SELECT t.try('guard_verified', '+35691'), t.try('guard_verified', '+4930'), t.try('guard_verified', '+4179');

-- A fifth of the best of the last fourteen days, over its channels and categories; no other workspace's
SELECT t.guarded('guard_best') AS workspace \gset
INSERT INTO otp.usage_days SELECT w, (now() AT TIME ZONE 'UTC')::date - ago, channel, country, '', '', n, n, n, n, n, n, NULL
FROM (VALUES (:workspace, 10, 'sms', 'MT', 1200), (:workspace, 10, 'whatsapp', 'MT', 300), (:workspace, 9, 'sms', 'MT', 1400), (:workspace, 14, 'sms', 'DE', 500),
	(:workspace, 15, 'sms', 'CH', 5000), (:other, 2, 'sms', 'CH', 5000), (:workspace, 3, 'sms', 'FR', 104), (:workspace, 3, 'sms', '', 9000)) v (w, ago, channel, country, n);
SELECT t.history(:workspace, prefix, now() - interval '2 h', 1) FROM unnest(ARRAY['+35691', '+4930', '+4179', '+331', '+9991']) prefix;
SELECT country, threshold_hour, threshold_day FROM otp.guard_status('guard_best') ORDER BY country;
SELECT t.try('guard_best', '+35691'), t.try('guard_best', '+4930'), t.try('guard_best', '+4179'), t.try('guard_best', '+9991');
SELECT country, unverified_hour, threshold_hour, unverified_day, threshold_day, tripped FROM otp.guard_status('guard_best') ORDER BY country;

-- What is sent while the guard is off counts once it is on again
SELECT t.guarded('guard_switched') AS workspace \gset
SELECT t.try('guard_switched', '+35691', 1);
UPDATE otp.workspaces SET guard_mode = 'off' WHERE name = 'guard_switched';
SELECT t.try('guard_switched', '+35691', 10);
UPDATE otp.workspaces SET guard_mode = 'block' WHERE name = 'guard_switched';
SELECT t.try('guard_switched', '+35691');
SELECT unverified_hour FROM otp.guard_status('guard_switched');
-- And while it is on in a transaction that ends in nothing, nothing is lost
UPDATE otp.workspaces SET guard_mode = 'off' WHERE name = 'guard_switched';
BEGIN;
UPDATE otp.workspaces SET guard_mode = 'block' WHERE name = 'guard_switched';
SELECT t.try('guard_switched', '+4930');
ROLLBACK;
SELECT t.try('guard_switched', '+4930', 5);
UPDATE otp.workspaces SET guard_mode = 'block' WHERE name = 'guard_switched';
SELECT t.try('guard_switched', '+4930');

-- Exempt prefixes: they pass, and are counted; in the eyes of the others, too
SELECT t.guarded('guard_exempt') AS workspace \gset
UPDATE otp.workspaces SET guard_exempt_prefixes = '{+356,+4179,+12,+99912}' WHERE name = 'guard_exempt';
SELECT t.try('guard_exempt', '+35691', 30), t.try('guard_exempt', '+4179', 30), t.try('guard_exempt', '+4178'), t.try('guard_exempt', '+1246', 5), t.try('guard_exempt', '+99912', 5);
SELECT country, unverified_hour, exempt, tripped FROM otp.guard_status('guard_exempt') ORDER BY country;
UPDATE otp.workspaces SET guard_exempt_prefixes = NULL WHERE name = 'guard_exempt';
SELECT t.try('guard_exempt', '+35691');
SELECT country, exempt, tripped FROM otp.guard_status('guard_exempt') ORDER BY country;
UPDATE otp.workspaces SET guard_exempt_prefixes = '{+1,+4,+999}' WHERE name = 'guard_exempt';
SELECT country, exempt, tripped FROM otp.guard_status('guard_exempt') ORDER BY country;

-- otp.countries may be changed
BEGIN;
INSERT INTO otp.countries VALUES ('+999', 'ZZ');
SELECT t.try('guard_new', '+9991'), t.try('guard_new', '+9991');
ROLLBACK;
SELECT t.try('guard_new', '+9991');

-- record: all pass
SELECT t.guarded('guard_record', 'record') AS workspace \gset
SELECT t.try('guard_record', '+35691', 25), t.try('guard_record', '+4930', 3);
BEGIN;
SELECT t.try('guard_record', '+4930', 2);
ROLLBACK;
SELECT * FROM otp.guard_status('guard_record') ORDER BY country;

-- What was decided, for those who may act for the workspace
SELECT * FROM t.decisions() WHERE workspace IN ('guard_off', 'guard_record', 'guard_day', 'guard_verify', 'guard_exempt');
SELECT l.country, l.reason, sum(l.blocked) AS blocked, sum(l.recorded) AS recorded FROM otp.guard_log l JOIN otp.workspaces w USING (workspace_id)
WHERE w.name = 'guard_record' GROUP BY 1, 2 ORDER BY 1, 2;
CREATE ROLE regress_otp_guard;
SELECT otp.grant_workspace('guard_record', 'regress_otp_guard');
SET ROLE regress_otp_guard;
SELECT workspace, country, decision, reason, sum(count) AS count FROM otp.guard_decisions GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;
SELECT count(*) FROM otp.guard_status();
SELECT t.error('SELECT otp.guard_status($1)', 'guard_day');
SELECT t.error('SELECT otp.guard_status($1)', 'nobody');
SELECT t.error('SELECT * FROM otp.guard_log');
SELECT count(*) FROM otp.guard_unwritten() u;
BEGIN READ ONLY;
SELECT count(*) FROM otp.guard_status();
SELECT count(*) > 0 AS seen FROM otp.guard_decisions;
ROLLBACK;
RESET ROLE;
SELECT otp.revoke_workspace('guard_record', 'regress_otp_guard');
SET ROLE regress_otp_guard;
SELECT t.error('SELECT * FROM otp.guard_decisions');
SELECT t.error('SELECT otp.guard_status()');
RESET ROLE;
DROP ROLE regress_otp_guard;

DELETE FROM otp.verifications;
DELETE FROM otp.outbox;
DELETE FROM otp.usage_days WHERE workspace_id >= :off;
DELETE FROM otp.guard_log;
DELETE FROM otp.templates WHERE workspace_id >= :off;
DELETE FROM otp.workspaces WHERE workspace_id >= :off;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL;
DELETE FROM otp.provider_accounts;
DROP FUNCTION t.guarded, t.history, t.try, t.known_to, t.decisions;
