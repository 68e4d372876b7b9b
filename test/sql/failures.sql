-- Protects: wrong guesses per phone, over all its codes. After five in a row
-- each one has to wait, longer every time; a hundred are the end, until the
-- owner unlocks the phone. Only a right guess that commits ends a row, and it
-- gives nothing of the day back. Every refusal says how long.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET failures_per_phone_day = NULL, max_attempts = 10;

-- Guess, and tell what came of it: error, attempts left, seconds to wait (rounded up to 30: this takes time itself)
CREATE FUNCTION pg_temp.guess(id text, guess text, OUT answer text) LANGUAGE sql AS $$
	SELECT concat_ws(' ', coalesce(v.error, 'valid'), v.attempts_remaining, 'wait ' || ((v.retry_after + 29) / 30) * 30) FROM otp_verify(id, guess) v $$;
-- Wait until the sender has written all counts back
CREATE FUNCTION pg_temp.written() RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 600 LOOP
		IF (SELECT ledger_used = 0 FROM otp.worker_status()) THEN
			RETURN true;
		END IF;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN false;
END $$;
-- Have a phone's row say so
CREATE FUNCTION pg_temp.set_row(phone text, assignment text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	n int;
BEGIN
	EXECUTE format('UPDATE otp.phone_failures f SET %s WHERE f.phone = %L', assignment, phone);
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END $$;

-- What the table takes
SELECT sql, split_part(t.error('UPDATE otp.workspaces SET ' || sql), E'\n', 1) AS error FROM (VALUES
	('failure_delay = ''0'''), ('failure_delay = ''-1 s'''), ('failure_delay = ''61 min'''), ('failure_delay = ''1 hour'''), ('failure_delay_after = 0'),
	('failure_delay_after = 101'), ('failure_delay_after = NULL'), ('max_failures_in_row = 0'), ('max_failures_in_row = 101'), ('max_failures_in_row = NULL')) v (sql);
UPDATE otp.workspaces SET failure_delay = '30 s';

-- Five in a row, over two codes and whatever becomes of them; then 30 seconds, and nothing is compared or counted
SELECT t.known('+15550160001', '111111') AS a, t.known('+15550160001', '222222') AS b \gset
BEGIN;
SELECT answer FROM generate_series(1, 3) i, pg_temp.guess(:'a', 'x' || i);
ROLLBACK;
SELECT answer FROM generate_series(1, 2) i, pg_temp.guess(:'b', 'x' || i);
SELECT answer FROM unnest(ARRAY['x', '222222', '111111']) g, pg_temp.guess(:'b', g);
SELECT answer FROM pg_temp.guess(:'a', '111111');
-- another phone, another workspace and a test number do not wait
SELECT answer FROM pg_temp.guess(t.known('+15550160002', '111111'), '111111');
SELECT otp.set_test_number('+15550160001', '333333');
SELECT otp_id AS test FROM otp_send('+15550160001') \gset
SELECT answer FROM unnest(ARRAY['1', '2', '3', '4', '5', '6', '7', '333333']) g, pg_temp.guess(:'test', g);
SELECT otp.set_test_number('+15550160001', NULL);
-- nor with the row written back
SELECT pg_temp.written();
SELECT failures, in_row, last_at - since < interval '10 s' AS last_at FROM otp.phone_failures WHERE phone = '+15550160001';
SELECT answer FROM pg_temp.guess(:'b', '222222');

-- To the moment: two seconds too early, and just in time
SELECT pg_temp.set_row('+15550160001', $$last_at = clock_timestamp() - interval '28 s'$$);
SELECT error, retry_after BETWEEN 1 AND 2 AS retry_after FROM otp_verify(:'b', '222222');
SELECT pg_temp.set_row('+15550160001', $$last_at = clock_timestamp() - interval '30 s'$$);
-- the sixth: wrong, and from now on it is a minute
SELECT answer FROM unnest(ARRAY['x', 'x']) g, pg_temp.guess(:'b', g);
SELECT pg_temp.written();

-- How it grows: doubled, up to an hour; a hundred are the end
CREATE FUNCTION pg_temp.after(phone text, n int, id text, guess text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_temp.set_row(phone, format('in_row = %s, last_at = clock_timestamp()', n));
	RETURN pg_temp.guess(id, guess);
END $$;
SELECT n, pg_temp.after('+15550160001', n, :'b', '222222') FROM unnest(ARRAY[5, 6, 7, 8, 9, 10, 11, 12, 13, 60, 99, 100, 101]) n;
SELECT in_row FROM otp.phone_failures WHERE phone = '+15550160001';
-- however long ago
SELECT pg_temp.set_row('+15550160001', $$in_row = 100, since = now() - interval '200 days', last_at = now() - interval '200 days'$$);
SELECT answer FROM pg_temp.guess(:'b', '222222');
SELECT pg_temp.set_row('+15550160001', $$in_row = 99$$);
SELECT answer FROM unnest(ARRAY['x', '222222']) g, pg_temp.guess(:'b', g);
SELECT pg_temp.written();

-- Unlocked, when it commits
BEGIN;
SELECT otp.unlock_phone('+15550160001');
SELECT answer FROM pg_temp.guess(:'b', '222222');
ROLLBACK;
SELECT answer FROM pg_temp.guess(:'b', '222222');
SELECT otp.unlock_phone('+15550160001');
SELECT otp.unlock_phone('+15550160001');
SELECT answer FROM pg_temp.guess(:'b', 'x');
SELECT answer FROM pg_temp.guess(:'b', '222222');
SELECT pg_temp.written();

-- Who may, and for what
-- Each that had something to forgive is in the audit, without the phone
SELECT count(*), min(object) AS object FROM otp.audit WHERE action = 'unlock_phone';
SELECT t.error('SELECT otp.unlock_phone($1)', phone) FROM unnest(ARRAY[NULL, '15550160001']) phone;
SELECT t.error('SELECT otp.unlock_phone(''+15550160001'', ''nowhere'')');
SELECT otp.unlock_phone('+15550160099');
CREATE ROLE regress_otp_app;
SELECT otp.grant_workspace('default', 'regress_otp_app');
SET ROLE regress_otp_app;
SELECT t.error('SELECT otp.unlock_phone(''+15550160001'')');
RESET ROLE;
GRANT EXECUTE ON FUNCTION otp.unlock_phone(text, text) TO regress_otp_app;
SET ROLE regress_otp_app;
SELECT t.error('SELECT otp.unlock_phone(''+15550160001'')');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION otp.unlock_phone(text, text) FROM regress_otp_app;
SELECT otp.revoke_workspace('default', 'regress_otp_app');
DROP ROLE regress_otp_app;
BEGIN READ ONLY;
SELECT t.error('SELECT otp.unlock_phone(''+15550160001'')');
ROLLBACK;

-- A right guess ends the row, if it commits; the day's count stays
UPDATE otp.workspaces SET failures_per_phone_day = 12;
SELECT t.known('+15550160003', '111111') AS a, t.known('+15550160003', '222222') AS b, t.known('+15550160003', '333333') AS c, t.known('+15550160003', '444444') AS d \gset
SELECT answer FROM generate_series(1, 4) i, pg_temp.guess(:'a', 'x' || i);
-- rolled back, in three ways
BEGIN;
SELECT answer FROM pg_temp.guess(:'a', '111111');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT answer FROM pg_temp.guess(:'a', '111111');
ROLLBACK TO s;
COMMIT;
BEGIN;
SELECT answer FROM pg_temp.guess(:'a', '111111');
PREPARE TRANSACTION 'regress_otp_right';
SELECT answer FROM pg_temp.guess(:'b', 'x');
ROLLBACK PREPARED 'regress_otp_right';
SELECT answer FROM pg_temp.guess(:'b', 'x');
SELECT pg_temp.written();
SELECT failures, in_row FROM otp.phone_failures WHERE phone = '+15550160003';
SELECT pg_temp.set_row('+15550160003', $$last_at = now() - interval '30 s'$$);
-- In its own transaction it ends nothing: a savepoint could take it back
BEGIN;
SAVEPOINT s;
SELECT answer FROM pg_temp.guess(:'a', '111111');
SELECT answer FROM unnest(ARRAY['x', 'x']) g, pg_temp.guess(:'b', g);
ROLLBACK TO s;
SELECT answer FROM pg_temp.guess(:'b', 'x');
ROLLBACK;
-- Prepared, it does so when it commits; what has failed meanwhile stays
SELECT pg_temp.written();
SELECT pg_temp.set_row('+15550160003', $$last_at = now() - interval '1 min'$$);
BEGIN;
SELECT answer FROM pg_temp.guess(:'a', '111111');
PREPARE TRANSACTION 'regress_otp_right';
SELECT answer FROM unnest(ARRAY['x', 'x']) g, pg_temp.guess(:'b', g);
COMMIT PREPARED 'regress_otp_right';
-- six are forgiven, one is not: four are free
SELECT answer FROM generate_series(1, 5) i, pg_temp.guess(:'c', 'x' || i);
SELECT pg_temp.written();
SELECT failures, in_row, created_xid FROM otp.phone_failures WHERE phone = '+15550160003';
-- The day's twelve are used up, whatever was right
SELECT pg_temp.set_row('+15550160003', $$last_at = now() - interval '1 min'$$);
SELECT answer FROM pg_temp.guess(:'c', '333333');
SELECT answer FROM pg_temp.guess(:'d', 'x');
SELECT valid, error, attempts_remaining, retry_after BETWEEN 86300 AND 86400 AS retry_after FROM otp_verify(:'d', '444444');
SELECT otp.unlock_phone('+15550160003');
SELECT answer FROM unnest(ARRAY['x', '444444']) g, pg_temp.guess(:'d', g);
-- Until the sender has merged them there are rows that forgive: the next wrong guess has it do so
SELECT t.known('+15550160003', '555555') AS e \gset
SELECT answer FROM pg_temp.guess(:'e', 'x');
SELECT pg_temp.written();
SELECT failures, in_row, created_xid FROM otp.phone_failures WHERE phone = '+15550160003';

-- At the edge of the window: the day is over, the row is not
SELECT pg_temp.set_row('+15550160003', $$since = clock_timestamp() - interval '23:59:57', failures = 12, in_row = 4, last_at = now() - interval '1 min'$$);
SELECT error, retry_after BETWEEN 1 AND 3 AS retry_after FROM otp_verify(:'e', '555555');
SELECT pg_temp.set_row('+15550160003', $$since = clock_timestamp() - interval '24:00:00'$$);
SELECT answer FROM unnest(ARRAY['x', '555555']) g, pg_temp.guess(:'e', g);
SELECT pg_temp.written();
SELECT failures, in_row, since > now() - interval '1 min' AS since FROM otp.phone_failures WHERE phone = '+15550160003';
-- What says longest is what is said: the day is over first
SELECT pg_temp.set_row('+15550160003', $$since = clock_timestamp() - interval '23:59:40', failures = 12, in_row = 6, last_at = clock_timestamp()$$);
SELECT answer FROM pg_temp.guess(:'e', '555555');

-- A row that was written by hand, or by an older version
INSERT INTO otp.phone_failures (workspace_id, phone, since, failures) VALUES (1, '+15550160004', now() - interval '1 hour', 11);
SELECT t.known('+15550160004', '111111') AS a \gset
SELECT error, retry_after BETWEEN 82000 AND 83000 AS retry_after FROM unnest(ARRAY['x', '111111']) g, otp_verify(:'a', g);
SELECT pg_temp.written();
SELECT failures, in_row FROM otp.phone_failures WHERE phone = '+15550160004';
-- Deleted by hand, it begins anew
DELETE FROM otp.phone_failures WHERE phone = '+15550160004';
SELECT answer FROM pg_temp.guess(:'a', '111111');

-- The policy of now counts
UPDATE otp.workspaces SET failures_per_phone_day = NULL, failure_delay = '10 min', failure_delay_after = 2, max_failures_in_row = 4;
SELECT t.known('+15550160005', '111111') AS a \gset
SELECT answer FROM generate_series(1, 3) i, pg_temp.guess(:'a', 'x' || i);
UPDATE otp.workspaces SET failure_delay_after = 3;
SELECT answer FROM generate_series(1, 2) i, pg_temp.guess(:'a', 'x' || i);
UPDATE otp.workspaces SET failure_delay = NULL;
SELECT answer FROM generate_series(1, 2) i, pg_temp.guess(:'a', 'x' || i);
UPDATE otp.workspaces SET max_failures_in_row = 5;
SELECT answer FROM unnest(ARRAY['111111', '111111']) g, pg_temp.guess(:'a', g);

-- Not even a thousand exception blocks
UPDATE otp.workspaces SET failure_delay = '30 s', failure_delay_after = 5, max_failures_in_row = 100;
SELECT t.known('+15550160006', '111111') AS a, t.known('+15550160006', '222222') AS b \gset
SELECT set_config('t.id', :'a' || ' ' || :'b', false) = '';
DO $$
DECLARE
	answers jsonb = '{}'; answer text;
BEGIN
	FOR i IN 1 .. 1000 LOOP
		BEGIN
			-- a right guess of one code before a wrong one of the other, and all of it thrown away
			PERFORM otp_verify(split_part(current_setting('t.id'), ' ', 1), '111111');
			SELECT v.error INTO answer FROM otp_verify(split_part(current_setting('t.id'), ' ', 2), 'x') v;
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			answers := answers || jsonb_build_object(answer, coalesce((answers ->> answer)::int, 0) + 1);
		END;
	END LOOP;
	RAISE INFO '%', answers;
END $$;

SELECT pg_temp.written();
DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.phone_failures;
UPDATE otp.workspaces SET failures_per_phone_day = 20, max_attempts = 3;
