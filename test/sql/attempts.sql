-- Protects: promise 3, attempts cannot be rolled back. Whatever the caller
-- does with the transaction around it, the third wrong guess is the last; an
-- error before the comparison costs nothing; a right guess that is rolled
-- back can be used again.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET failures_per_phone_day = NULL, failure_delay = NULL;
SELECT otp.set_test_number('+15550105001', '123456');
-- All of it is for real phones, whose code this knows; test numbers come last
CREATE FUNCTION pg_temp.guess(id text, guess text, OUT answer text) LANGUAGE sql AS $$
	SELECT coalesce(v.error, 'valid') || coalesce(' ' || v.attempts_remaining, '') FROM otp_verify(id, guess) v $$;
SELECT t.known('+15550105001', '123456') AS id \gset

-- ROLLBACK
BEGIN;
SELECT * FROM pg_temp.guess(:'id', 'a');
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.guess(:'id', 'b');
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.guess(:'id', 'c');
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
SELECT * FROM pg_temp.guess(:'id', '123456');
SELECT status, attempts, attempts_remaining, error FROM otp_status(:'id');

-- A statement that fails
SELECT t.known('+15550105001', '123456') AS id \gset
SELECT answer, 1 / 0 FROM pg_temp.guess(:'id', 'a');
SELECT 1 / length(answer) - 1 / (length(answer) - length(answer)) FROM pg_temp.guess(:'id', 'b');
SELECT * FROM pg_temp.guess(:'id', 'c');
SELECT * FROM pg_temp.guess(:'id', '123456');

-- SAVEPOINT
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN;
SAVEPOINT a;
SELECT * FROM pg_temp.guess(:'id', 'a');
ROLLBACK TO a;
SELECT * FROM pg_temp.guess(:'id', 'b');
SAVEPOINT b;
ROLLBACK TO a;
SELECT * FROM pg_temp.guess(:'id', 'c');
ROLLBACK TO a;
SELECT * FROM pg_temp.guess(:'id', '123456');
RELEASE a;
SELECT * FROM pg_temp.guess(:'id', '123456');
COMMIT;
SELECT * FROM pg_temp.guess(:'id', '123456');

-- A deep nest of them, with the row locked outside
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN;
SELECT 1 FROM otp.verifications WHERE id = otp.parse_id(:'id') FOR UPDATE;
SAVEPOINT a;
SAVEPOINT b;
SAVEPOINT c;
SELECT * FROM pg_temp.guess(:'id', 'a');
ROLLBACK TO b;
SELECT * FROM pg_temp.guess(:'id', 'b');
ROLLBACK TO a;
COMMIT;
SELECT * FROM pg_temp.guess(:'id', 'c');
SELECT * FROM pg_temp.guess(:'id', '123456');

-- Exception blocks: of a thousand guesses, three are compared
SELECT t.known('+15550105001', '123456') AS id \gset
SELECT set_config('t.id', :'id', false) = :'id';
DO $$
DECLARE
	answers jsonb = '{}'; answer text;
BEGIN
	FOR i IN 1 .. 1000 LOOP
		BEGIN
			SELECT g.answer INTO answer FROM pg_temp.guess(current_setting('t.id'), CASE WHEN i > 3 THEN '123456' ELSE i::text END) g;
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			answers := answers || jsonb_build_object(answer, coalesce((answers ->> answer)::int, 0) + 1);
		END;
	END LOOP;
	RAISE INFO '%', answers;
	RAISE 'and all of it rolled back';
END $$;
SELECT * FROM pg_temp.guess(:'id', '123456');

-- Transactions of a procedure
SELECT t.known('+15550105001', '123456') AS id \gset
SELECT set_config('t.id', :'id', false) = :'id';
DO $$
DECLARE
	answer text;
BEGIN
	FOR i IN 1 .. 5 LOOP
		SELECT g.answer INTO answer FROM pg_temp.guess(current_setting('t.id'), 'x') g;
		RAISE INFO '%', answer;
		ROLLBACK;
	END LOOP;
END $$;

-- A cursor, a function in the middle of a query, a subquery: all the same
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN;
DECLARE c CURSOR FOR SELECT g, answer FROM generate_series(1, 10) g, pg_temp.guess(:'id', g::text);
FETCH 5 FROM c;
ROLLBACK;
SELECT * FROM pg_temp.guess(:'id', '123456');

-- REPEATABLE READ, SERIALIZABLE: an old snapshot sees the new count
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT attempts FROM otp.verifications WHERE id = otp.parse_id(:'id');
SELECT * FROM pg_temp.guess(:'id', 'a');
SAVEPOINT a;
SELECT * FROM pg_temp.guess(:'id', 'b');
ROLLBACK TO a;
SELECT * FROM pg_temp.guess(:'id', 'c');
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT attempts FROM otp.verifications WHERE id = otp.parse_id(:'id');
SELECT * FROM pg_temp.guess(:'id', 'a');
ROLLBACK;
-- (once the count is in the row: its writing could come in between)
SELECT pg_sleep(1.2);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM pg_temp.guess(:'id', 'b');
SELECT * FROM pg_temp.guess(:'id', 'c');
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT * FROM pg_temp.guess(:'id', '123456');
COMMIT;

-- Two-phase commit
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN;
SELECT * FROM pg_temp.guess(:'id', 'a');
PREPARE TRANSACTION 'regress_otp_a';
ROLLBACK PREPARED 'regress_otp_a';
BEGIN;
SELECT * FROM pg_temp.guess(:'id', 'b');
PREPARE TRANSACTION 'regress_otp_b';
COMMIT PREPARED 'regress_otp_b';
BEGIN;
SELECT * FROM pg_temp.guess(:'id', 'c');
PREPARE TRANSACTION 'regress_otp_c';
ROLLBACK PREPARED 'regress_otp_c';
SELECT * FROM pg_temp.guess(:'id', '123456');
-- and a right one, prepared and rolled back
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN;
SELECT * FROM pg_temp.guess(:'id', '123456');
PREPARE TRANSACTION 'regress_otp_d';
ROLLBACK PREPARED 'regress_otp_d';
SELECT * FROM pg_temp.guess(:'id', '123456');

-- The counts reach the rows that were rolled back, too, or stay in the ledger
SELECT t.known('+15550105001', '123456') AS id \gset
BEGIN;
SELECT * FROM pg_temp.guess(:'id', 'a');
SELECT * FROM pg_temp.guess(:'id', 'b');
ROLLBACK;
SELECT attempts, attempts_remaining FROM otp_status(:'id');
SELECT pg_sleep(1.5);
SELECT attempts, attempts_remaining FROM otp_status(:'id');
SELECT * FROM pg_temp.guess(:'id', 'c');
SELECT * FROM pg_temp.guess(:'id', '123456');

-- Read-only transactions are refused and cost nothing
SELECT t.known('+15550105001', '123456') AS id \gset
\set VERBOSITY sqlstate
BEGIN READ ONLY;
SELECT * FROM pg_temp.guess(:'id', 'a');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
SET default_transaction_read_only = on;
SELECT * FROM pg_temp.guess(:'id', 'a');
RESET default_transaction_read_only;
BEGIN;
SET TRANSACTION READ ONLY;
SELECT * FROM pg_temp.guess(:'id', 'a');
ROLLBACK;
-- nor do bad arguments
SELECT * FROM otp_verify(:'id', NULL);
SELECT * FROM otp_verify(:'id', '123456', repeat('x', 257));
\set VERBOSITY default
SELECT attempts FROM otp_status(:'id');

-- Nor does a lock that is not given in time
BEGIN;
SELECT * FROM pg_temp.guess(:'id', '123456');
PREPARE TRANSACTION 'regress_otp_e';
SET lock_timeout = '50 ms';
\set VERBOSITY sqlstate
SELECT * FROM pg_temp.guess(:'id', 'a');
SELECT * FROM pg_temp.guess(:'id', '123456');
\set VERBOSITY default
RESET lock_timeout;
ROLLBACK PREPARED 'regress_otp_e';
SELECT attempts, status FROM otp_status(:'id');

-- A right guess, rolled back, gives its attempt back, as often as one likes
BEGIN;
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK TO a;
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK TO a;
SELECT * FROM pg_temp.guess(:'id', 'a');
ROLLBACK TO a;
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
SELECT set_config('t.id', :'id', false) = :'id';
DO $$
BEGIN
	FOR i IN 1 .. 20 LOOP
		BEGIN
			ASSERT (SELECT valid FROM otp_verify(current_setting('t.id'), '123456'));
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN NULL;
		END;
	END LOOP;
END $$;
SELECT attempts, attempts_remaining, status FROM otp_status(:'id');
BEGIN;
SELECT * FROM pg_temp.guess(:'id', '123456');
SELECT * FROM pg_temp.guess(:'id', '123456');
ROLLBACK;
SELECT * FROM pg_temp.guess(:'id', '123456');
SELECT attempts, attempts_remaining, status FROM otp_status(:'id');

-- Failures per phone are not rolled back, either
UPDATE otp.workspaces SET failures_per_phone_day = 4;
SELECT t.known('+15550105002', '111111') AS a, t.known('+15550105002', '222222') AS b \gset
BEGIN;
SELECT answer FROM unnest(ARRAY['x', 'y', 'z']) g, pg_temp.guess(:'a', g);
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.guess(:'b', '222222');
ROLLBACK;
BEGIN;
SELECT * FROM pg_temp.guess(:'b', 'x');
ROLLBACK;
SELECT valid, error, attempts_remaining, retry_after BETWEEN 86390 AND 86401 AS retry_after FROM otp_verify(:'b', '222222');
SELECT pg_sleep(1.5);
SELECT valid, error, attempts_remaining, retry_after BETWEEN 86390 AND 86401 AS retry_after FROM otp_verify(:'b', '222222');
-- Counted from the first one on, for a day
UPDATE otp.workspaces SET failures_per_phone_day = NULL;
SELECT * FROM pg_temp.guess(:'b', '222222');

-- Test numbers: their attempts are limited in the same way
SELECT otp_id AS id FROM otp.set_test_number('+15550105001', '123456') x, otp_send('+15550105001') \gset
BEGIN;
SELECT answer FROM unnest(ARRAY['x', 'y']) g, pg_temp.guess(:'id', g);
ROLLBACK;
SELECT answer FROM unnest(ARRAY['z', '123456']) g, pg_temp.guess(:'id', g);
-- Also in the transaction that sends
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550105001') \gset
SAVEPOINT a;
SELECT answer FROM unnest(ARRAY['x', 'y']) g, pg_temp.guess(:'id', g);
ROLLBACK TO a;
SELECT answer FROM unnest(ARRAY['z', '123456']) g, pg_temp.guess(:'id', g);
ROLLBACK;

-- The ledger empties itself
SELECT pg_sleep(2.5);
DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.phone_failures;
UPDATE otp.workspaces SET failures_per_phone_day = 20, failure_delay = '30 s';
