-- Protects: the policy function. Its three answers and nothing else decide;
-- it runs with its owner's rights, not the caller's nor the extension's;
-- what it writes stays with an answer and goes without one; and whatever it
-- does, the caller's role, settings, prepared statements and transaction are
-- as they were. And the shadow: a send that nobody can tell from a real one
-- by what the verbs answer, and whose code is never right.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET sends_per_second = NULL, sends_per_phone_hour = NULL, resend_cooldown = NULL;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');
CREATE ROLE regress_otp_app;
CREATE ROLE regress_otp_policy;
CREATE ROLE regress_otp_heir;
SELECT otp.grant_workspace('default', 'regress_otp_app');
CREATE SCHEMA pol AUTHORIZATION regress_otp_policy;
GRANT USAGE ON SCHEMA otp TO regress_otp_policy;
GRANT USAGE ON TYPE otp.send_request TO regress_otp_policy;
GRANT CREATE, USAGE ON SCHEMA pol TO regress_otp_heir;
CREATE TABLE public.apps (a int);
ALTER TABLE public.apps OWNER TO regress_otp_app;

SET ROLE regress_otp_policy;
CREATE TABLE pol.seen (n serial, request otp.send_request, who text, session text, path text);
-- Answers what metadata tells it to
CREATE FUNCTION pol.answers(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO pol.seen (request, who, session, path) VALUES (r, current_user, session_user, current_setting('search_path'));
	IF r.metadata ->> 'raise' IS NOT NULL THEN
		RAISE EXCEPTION USING ERRCODE = r.metadata ->> 'raise', MESSAGE = 'phone ' || r.phone;
	END IF;
	RETURN r.metadata ->> 'answer';
END $$;
-- Does what metadata tells it to, and answers allow
CREATE FUNCTION pol.obeys(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE r.metadata ->> 'do';
	RETURN 'allow';
END $$;
-- The same, whatever comes of it
CREATE FUNCTION pol.insists(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE r.metadata ->> 'do';
	EXCEPTION WHEN OTHERS THEN
		RAISE NOTICE '% %', SQLSTATE, SQLERRM;
	END;
	RETURN 'allow';
END $$;
RESET ROLE;

-- A send with a policy function that answers so; or is told to do so
CREATE FUNCTION t.send(phone text, metadata jsonb, workspace text = NULL) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN t.error('SELECT otp_send($1, metadata => $2::jsonb, workspace => $3)', phone, metadata::text, workspace);
END $$;
CREATE FUNCTION t.policy(name text) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
	UPDATE otp.workspaces SET policy_function = $1 WHERE workspace_id = 1
$$;

--
-- Answers
--
SELECT t.policy('pol.answers');
SET ROLE regress_otp_app;
SELECT t.send('+15550120001', '{"answer": "allow"}');
SELECT t.send('+15550120002', '{"answer": "shadow"}');
-- One error for all that is neither, and no word why
SELECT t.send('+15550120003', '{"answer": "deny"}');
SELECT count(*), error FROM (SELECT t.send('+15550120004', metadata::jsonb) AS error FROM unnest(ARRAY['{"answer": "deny"}', '{}', '{"answer": null}', '{"answer": ""}', '{"answer": "Allow"}',
	'{"answer": "allow "}', '{"answer": "allo"}', '{"answer": "true"}', '{"answer": "shadows"}', '{"raise": "P0001"}', '{"raise": "22012"}', '{"raise": "53200"}', '{"raise": "54001"}', '{"raise": "OT429"}']) metadata) e GROUP BY 2;
SELECT t.send('+15550120004', jsonb_build_object('answer', repeat('allow', 1000000 / 5)));
-- The caller's transaction is to be run again, or its statement was canceled: not a matter of policy
SELECT t.send('+15550120005', '{"raise": "40001"}');
SELECT t.send('+15550120005', '{"raise": "40P01"}');
DO $$ BEGIN PERFORM otp_send('+15550120005', metadata => '{"raise": "57014"}'); EXCEPTION WHEN query_canceled THEN RAISE EXCEPTION USING MESSAGE = SQLSTATE || ' ' || SQLERRM; END $$;
RESET ROLE;
SELECT phone, shadowed FROM otp.verifications ORDER BY 1;
SELECT v.phone FROM otp.outbox o JOIN otp.verifications v USING (id) ORDER BY 1;
-- It has run as its owner, and what it wrote has gone with a denial
SELECT n > 2 AS later, (request).phone, who, session = current_user AS session, path FROM pol.seen ORDER BY n;

-- What it is asked
TRUNCATE pol.seen;
INSERT INTO otp.templates (workspace_id, name, language, status) VALUES (1, 'login', 'de', 'approved');
SELECT t.error('SELECT otp_send($1, ''login'', 8, 120, true, ''{"answer": "allow"}'', ''whatsapp'', ''payment 4711'', ''de'', workspace => ''default'')', '+4915112345678');
SELECT t.error('SELECT otp_send($1, channel => ''sms'', metadata => ''{"answer": "allow"}'')', '+9995550120006');
SELECT (request).* FROM pol.seen ORDER BY n \gx
DELETE FROM otp.templates WHERE name = 'login';

-- Test numbers do not ask; nor does a send that is refused for its arguments, its country or its channel
TRUNCATE pol.seen;
SELECT otp.set_test_number('+15550120007', '123456');
SELECT t.send('+15550120007', '{"answer": "deny"}');
SELECT otp.set_test_number('+15550120007', NULL);
UPDATE otp.workspaces SET denied_prefixes = '{+1555012}', whatsapp_enabled = false;
SELECT left(t.send('+15550120008', '{"answer": "allow"}'), 5) IN ('OT400', 'OT403') AS refused;
UPDATE otp.workspaces SET denied_prefixes = NULL, whatsapp_enabled = true;
SELECT t.error('SELECT otp_send($1, length => 5)', '+15550120008');
SELECT count(*) FROM pol.seen;

--
-- Names
--
SET ROLE regress_otp_policy;
CREATE DOMAIN pol.answer AS text;
CREATE FUNCTION pol.other(r otp.send_request, more int DEFAULT 1) RETURNS text LANGUAGE sql AS 'SELECT ''allow''';
CREATE FUNCTION pol.row(r record) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN ''allow''; END';
CREATE FUNCTION pol.poly(r anyelement) RETURNS text LANGUAGE sql AS 'SELECT ''allow''';
CREATE FUNCTION pol.varchar(r otp.send_request) RETURNS varchar LANGUAGE sql AS 'SELECT ''allow''';
CREATE FUNCTION pol.domain(r otp.send_request) RETURNS pol.answer LANGUAGE sql AS 'SELECT ''allow''::pol.answer';
CREATE FUNCTION pol.set(r otp.send_request) RETURNS SETOF text LANGUAGE sql AS 'SELECT ''allow''';
CREATE FUNCTION pol.void(r otp.send_request) RETURNS void LANGUAGE sql AS '';
CREATE PROCEDURE pol.procedure(r otp.send_request) LANGUAGE sql AS '';
CREATE FUNCTION pol.step(s text, r otp.send_request) RETURNS text LANGUAGE sql AS 'SELECT ''allow''';
CREATE AGGREGATE pol.aggregate(r otp.send_request) (SFUNC = pol.step, STYPE = text, INITCOND = 'allow');
CREATE FUNCTION pol."Odd.Name"(r otp.send_request) RETURNS text LANGUAGE sql AS 'SELECT ''allow''';
CREATE FUNCTION pol.stable(r otp.send_request) RETURNS text STABLE STRICT LANGUAGE sql AS 'SELECT CASE WHEN EXISTS (SELECT FROM pol.seen) THEN ''deny'' ELSE ''allow'' END';
CREATE FUNCTION pol.definer(r otp.send_request) RETURNS text SECURITY DEFINER SET search_path = pol, pg_temp LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO seen (who, path) VALUES (current_user, current_setting('search_path'));
	RETURN 'allow';
END $$;
RESET ROLE;
CREATE FUNCTION public.answers(r otp.send_request) RETURNS text LANGUAGE sql AS 'SELECT ''allow''';
SET search_path = public, pol;
SELECT name, left(t.send('+15550120010', '{}'), 5) AS error FROM unnest(ARRAY['pol.stable', 'POL.Stable', ' "pol" . "stable" ', 'pol."Odd.Name"', 'pol.definer', 'public.answers',
	'answers', 'stable', 'postgres.pol.stable', 'pol.', '.stable', '"pol.stable"', 'pol.stable(otp.send_request)', 'pol."stable', 'nowhere.stable', 'pol.nowhere', 'pg_temp.stable',
	'pol.other', 'pol.row', 'pol.poly', 'pol.varchar', 'pol.domain', 'pol.set', 'pol.void', 'pol.procedure', 'pol.aggregate', 'pol."ODD.NAME"', 'pol.odd.name', '''; DROP SCHEMA pol']) name, t.policy(name);
RESET search_path;
SELECT who, path FROM pol.seen;
TRUNCATE pol.seen;
-- Dropped, made again, replaced, given away: known at once
SELECT t.policy('pol.changes');
SELECT left(t.send('+15550120011', '{}'), 5);
SET ROLE regress_otp_policy;
CREATE FUNCTION pol.changes(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO pol.seen (who) VALUES (current_user); RETURN 'allow'; END $$;
RESET ROLE;
SELECT left(t.send('+15550120011', '{}'), 8);
CREATE OR REPLACE FUNCTION pol.changes(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO pol.seen (who) VALUES (upper(current_user)); RETURN 'allow'; END $$;
SELECT left(t.send('+15550120011', '{}'), 8);
ALTER FUNCTION pol.changes OWNER TO regress_otp_heir;
SELECT left(t.send('+15550120011', '{}'), 8);
GRANT INSERT ON pol.seen TO regress_otp_heir;
GRANT USAGE ON SEQUENCE pol.seen_n_seq TO regress_otp_heir;
SELECT left(t.send('+15550120011', '{}'), 8);
BEGIN;
DROP FUNCTION pol.changes;
SELECT left(t.send('+15550120011', '{}'), 5);
ROLLBACK;
SELECT left(t.send('+15550120011', '{}'), 8);
DROP FUNCTION pol.changes;
SELECT left(t.send('+15550120011', '{}'), 5);
SELECT who FROM pol.seen ORDER BY n;
-- A name that leads nowhere denies; to take the name away is to allow
SELECT t.policy(NULL);
SELECT t.send('+15550120012', '{}');
SELECT t.error('UPDATE otp.workspaces SET policy_function = ''''') ~ '^23514' AS empty, t.error('UPDATE otp.workspaces SET policy_timeout = ''10001 ms''') ~ '^23514' AS long,
	t.error('UPDATE otp.workspaces SET policy_timeout = ''0''') ~ '^23514' AS none;

--
-- Rights: its owner's, nobody else's
--
CREATE TABLE t.whose AS SELECT 'the extension''s owner' AS whose;
SELECT t.policy('pol.insists');
SET client_min_messages = notice;
SET ROLE regress_otp_app;
SELECT t.send('+15550120020', '{"do": "SELECT * FROM public.apps"}');
SELECT t.send('+15550120020', '{"do": "SELECT * FROM t.whose"}');
SELECT t.send('+15550120020', '{"do": "SELECT * FROM otp.verifications"}');
SELECT t.send('+15550120020', '{"do": "SELECT * FROM otp.workspaces"}');
SELECT t.send('+15550120020', '{"do": "SELECT public.otp_status(''otp_00000000000000000000000000'')"}');
SELECT t.send('+15550120020', '{"do": "SELECT * FROM pol.seen"}');
RESET ROLE;
SET client_min_messages = error;
DROP TABLE t.whose;

--
-- What a hostile one can do to its caller
--
SET ROLE regress_otp_app;
SET work_mem = '5MB';
SET otp.workspace = 'default';
PREPARE mine AS SELECT 1;
LISTEN mine;
CREATE FUNCTION pg_temp.state() RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', current_user, current_setting('role'), session_user = current_setting('session_authorization'),
		(SELECT md5(string_agg(name || '=' || setting, ',' ORDER BY name)) FROM pg_settings),
		(SELECT string_agg(name, ',' ORDER BY name) FROM pg_prepared_statements), (SELECT string_agg(c, ',') FROM pg_listening_channels() c),
		(SELECT string_agg(name, ',') FROM pg_cursors WHERE name ~ '^c'),
		(SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND objsubid IN (1, 2)))
$$;
RESET ROLE;
CREATE FUNCTION t.commits() RETURNS void LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE PROCEDURE pol.commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE TABLE pol.deferred (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE pol.deferred OWNER TO regress_otp_policy;
CREATE TEMP TABLE hostile (n serial, what text);
INSERT INTO hostile (what) VALUES ('SELECT 1'),
	('SET work_mem = ''6MB'''), ('SET LOCAL work_mem = ''6MB'''), ('SELECT set_config(''work_mem'', ''6MB'', false)'), ('SELECT set_config(''otp.workspace'', ''x'', false)'),
	('SELECT set_config(''made.up'', ''x'', false)'), ('SET search_path = pol'), ('SET TIME ZONE ''Asia/Kolkata'''), ('SET statement_timeout = ''1 ms'''), ('RESET work_mem'), ('RESET ALL'),
	('SET row_security = off'), ('SET ROLE regress_otp_heir'), ('SET LOCAL ROLE none'), ('RESET ROLE'), ('SELECT set_config(''role'', ''regress_otp_app'', false)'), ('SET SESSION AUTHORIZATION DEFAULT'),
	('SET TRANSACTION READ ONLY'), ('SET transaction_read_only = on'), ('SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY'), ('SET TRANSACTION ISOLATION LEVEL SERIALIZABLE'),
	('DISCARD ALL'), ('DISCARD PLANS'), ('PREPARE his AS SELECT 1'), ('DEALLOCATE mine'), ('DEALLOCATE ALL'), ('LISTEN his'), ('UNLISTEN *'), ('CREATE TEMP TABLE his ()'),
	('DECLARE c_hold CURSOR WITH HOLD FOR SELECT 1'), ('CLOSE ALL'), ('COMMIT'), ('ROLLBACK'), ('BEGIN'), ('SAVEPOINT s'), ('RELEASE s'), ('ROLLBACK TO s'), ('PREPARE TRANSACTION ''x'''),
	('DO $x$ BEGIN COMMIT; END $x$'), ('DO $x$ BEGIN ROLLBACK; END $x$'), ('CALL pol.commits()'), ('INSERT INTO pol.deferred VALUES (1)'), ('SELECT public.otp_send(''+15550120030'')'), ('VACUUM pol.seen'),
	('CREATE ROLE regress_otp_his'), ('SELECT pg_reload_conf()'), ('SELECT 1 / 0');
GRANT SELECT ON hostile TO regress_otp_app;
GRANT USAGE ON SCHEMA t TO regress_otp_policy;
-- Whatever it does, and whether it fails of it or goes on, the caller's state is what it was
CREATE FUNCTION t.suffer(policy text) RETURNS TABLE (what text, error text, state text) LANGUAGE plpgsql AS $$
DECLARE
	before text; after text;
BEGIN
	PERFORM t.policy(policy);
	FOR what IN SELECT h.what FROM hostile h ORDER BY n LOOP
		EXECUTE 'SELECT pg_temp.state()' INTO before;
		error := left(t.send('+15550120031', jsonb_build_object('do', what)), 8);
		EXECUTE 'SELECT pg_temp.state()' INTO after;
		state := CASE WHEN before = after THEN 'as before' ELSE after END;
		RETURN NEXT;
	END LOOP;
END $$;
SET ROLE regress_otp_app;
SELECT * FROM t.suffer('pol.obeys');
SET client_min_messages = notice;
SELECT DISTINCT error, state FROM t.suffer('pol.insists');
SET client_min_messages = error;
SELECT current_user, current_setting('work_mem'), current_setting('search_path'), current_setting('transaction_read_only');
EXECUTE mine;
-- In the caller's transaction
BEGIN;
SET LOCAL work_mem = '7MB';
SELECT t.send('+15550120032', '{"do": "SET work_mem = ''6MB''"}');
SHOW work_mem;
SAVEPOINT a;
SELECT left(t.send('+15550120032', '{"do": "RESET ALL"}'), 8);
ROLLBACK TO a;
SHOW work_mem;
COMMIT;
SHOW work_mem;
RESET ROLE;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550120030';
-- What does stay is what a transaction has: notifications, locks to its end; and, the one thing beyond, a session's advisory lock
SELECT t.policy('pol.obeys');
BEGIN;
SELECT t.send('+15550120033', '{"do": "SELECT pg_advisory_xact_lock(4711)"}');
SELECT t.send('+15550120033', '{"do": "SELECT pg_advisory_lock(4712)"}');
SELECT t.send('+15550120033', '{"do": "NOTIFY his"}');
COMMIT;
SELECT objid FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory';
SELECT pg_advisory_unlock(4712);
-- Unqualified names lead to pg_catalog, and to nothing that the caller has put in the way but temporary tables
SET search_path = public, pol;
SELECT left(t.send('+15550120034', '{"do": "SELECT * FROM seen"}'), 5), left(t.send('+15550120034', '{"do": "SELECT answers(NULL)"}'), 5), left(t.send('+15550120034', '{"do": "SELECT upper(''x'')"}'), 8);
RESET search_path;
-- Cursors do not stay: whoever fetches would run what is his with rights of the caller's. The caller's own stay.
SET ROLE regress_otp_policy;
CREATE FUNCTION pol.opens(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	his refcursor := 'c_opened';
	nameless refcursor;
BEGIN
	OPEN nameless FOR SELECT current_user;
	BEGIN
		OPEN his FOR SELECT current_user;
	EXCEPTION WHEN OTHERS THEN
		RETURN 'deny';
	END;
	EXECUTE 'DECLARE c_declared SCROLL CURSOR FOR SELECT current_user FROM generate_series(1, 1000)';
	FETCH his INTO nameless;
	EXECUTE 'MOVE c_mine';
	RETURN r.metadata ->> 'answer';
END $$;
RESET ROLE;
SELECT t.policy('pol.opens');
BEGIN;
DECLARE c_mine CURSOR FOR SELECT generate_series(1, 5);
SAVEPOINT a;
DECLARE c_late CURSOR FOR SELECT 1;
SELECT answer, left(t.send('+15550120035', jsonb_build_object('answer', answer)), 8) FROM unnest(ARRAY['allow', 'shadow', 'deny']) answer;
SELECT name FROM pg_cursors WHERE name !~ '^$' ORDER BY 1;
FETCH c_mine;
FETCH c_late;
COMMIT;

--
-- Subtransactions: writes and errors of all kinds, in a loop, in blocks
--
SET ROLE regress_otp_policy;
CREATE FUNCTION pol.blocks(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 3 LOOP
		BEGIN
			INSERT INTO pol.seen (who) VALUES ('block ' || i);
			IF i = 2 THEN
				RAISE division_by_zero;
			END IF;
		EXCEPTION WHEN division_by_zero THEN
			INSERT INTO pol.seen (who) VALUES ('caught');
		END;
	END LOOP;
	IF r.context = 'fail' THEN
		RAISE division_by_zero;
	END IF;
	RETURN 'allow';
END $$;
RESET ROLE;
TRUNCATE pol.seen;
SELECT t.policy('pol.blocks');
BEGIN;
SAVEPOINT a;
SELECT left(t.error('SELECT otp_send($1)', '+15550120040'), 8), left(t.error('SELECT otp_send($1, context => ''fail'')', '+15550120041'), 5);
SAVEPOINT b;
SELECT left(t.error('SELECT otp_send($1)', '+15550120042'), 8);
ROLLBACK TO b;
COMMIT;
SELECT who FROM pol.seen ORDER BY n;
SELECT phone FROM otp.verifications WHERE phone ~ '^.1555012004' ORDER BY 1;
DO $$
BEGIN
	FOR i IN 1 .. 200 LOOP
		BEGIN
			PERFORM otp_send('+15550120043', context => CASE WHEN i % 2 = 0 THEN 'fail' END);
		EXCEPTION WHEN SQLSTATE 'OT403' THEN NULL;
		END;
	END LOOP;
END $$;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550120043';
-- One that reads the configuration anew, and changes it, under the send that is being asked about
CREATE FUNCTION pol.reads(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	UPDATE otp.workspaces SET app_name = app_name || 'x';
	PERFORM public.otp_status('otp_00000000000000000000000000');
	UPDATE otp.workspaces SET app_name = app_name || 'x';
	PERFORM public.otp_cancel('otp_00000000000000000000000000'), otp.my_workspaces();
	RETURN 'allow';
END $$;
SELECT t.policy('pol.reads');
SELECT channel, phone, expires_in FROM generate_series(1, 3), LATERAL otp_send('+15550120044');
SELECT app_name FROM otp.workspaces;
UPDATE otp.workspaces SET app_name = '';

--
-- No function is asked about what another one sends
--
INSERT INTO otp.workspaces (workspace_id, name, whatsapp_account, policy_function) SELECT 2, 'strict', whatsapp_account, 'pol.answers' FROM otp.workspaces;
INSERT INTO otp.workspaces (workspace_id, name, whatsapp_account) SELECT 3, 'free', whatsapp_account FROM otp.workspaces WHERE workspace_id = 1;
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US'), (3, 'otp_verification', 'en_US');
SELECT otp.grant_workspace(name, 'regress_otp_policy') FROM otp.workspaces;
SELECT t.policy('pol.insists');
SET client_min_messages = notice;
SELECT t.send('+15550120050', '{"do": "SELECT public.otp_send(''+15550120051'', workspace => ''default'')"}', 'default');
SELECT t.send('+15550120050', '{"do": "SELECT public.otp_send(''+15550120052'', workspace => ''strict'', metadata => ''{\"answer\": \"allow\"}'')"}', 'default');
SELECT t.send('+15550120050', '{"do": "SELECT public.otp_send(''+15550120053'', workspace => ''free'')"}', 'default');
SET client_min_messages = error;
-- and after all of that it works as before
SELECT t.send('+15550120054', '{"answer": "allow"}', 'strict'), left(t.send('+15550120054', '{"answer": "deny"}', 'strict'), 5);
SELECT phone, workspace_id FROM otp.verifications WHERE phone ~ '^.1555012005' ORDER BY 1, 2;
DELETE FROM otp.outbox;
DELETE FROM otp.verifications;

--
-- Shadow
--
SELECT otp.revoke_workspace(name, 'regress_otp_policy') FROM otp.workspaces;
DELETE FROM otp.templates WHERE workspace_id > 1;
DELETE FROM otp.workspaces WHERE workspace_id > 1;
SELECT t.policy('pol.answers');
UPDATE otp.workspaces SET max_attempts = 2, sends_per_phone_hour = 4;
SELECT otp.create_webhook_endpoint('https://example.com/hook') IS NOT NULL AS endpoint;
SET ROLE regress_otp_app;
-- The same answer
SELECT otp_id AS real, success, channel, phone, expires_at - clock_timestamp() > '299 s' AS expires, expires_in, coalesce(message_id, '-') AS message_id FROM otp_send('+15550120060', metadata => '{"answer": "allow"}') \gset real_
SELECT otp_id AS shadow, success, channel, phone, expires_at - clock_timestamp() > '299 s' AS expires, expires_in, coalesce(message_id, '-') AS message_id FROM otp_send('+15550120061', metadata => '{"answer": "shadow"}') \gset shadow_
SELECT :'real_success' = :'shadow_success' AS success, :'real_channel' = :'shadow_channel' AS channel, :'shadow_phone' AS phone, :'real_expires' = :'shadow_expires' AS expires_at,
	:'real_expires_in' = :'shadow_expires_in' AS expires_in, :'real_message_id' AS message_id, :'shadow_message_id' AS shadow_message_id;
-- and the same standing, until the real one goes
SELECT (to_jsonb(r) - '{otp_id,phone,created_at,expires_at,metadata}'::text[]) = (to_jsonb(s) - '{otp_id,phone,created_at,expires_at,metadata}'::text[]) AS same, s.status, s.attempts_remaining, s.error
FROM otp_status(:'real_real') r, otp_status(:'shadow_shadow') s;
SELECT status, sent_at FROM otp_wait(:'shadow_shadow', '0.1 s');
-- in its own transaction, too
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550120062', metadata => '{"answer": "shadow"}') \gset
SELECT error FROM otp_verify(:'id', '123456');
SELECT left(t.error('SELECT otp_wait($1)', :'id'), 5);
ROLLBACK;
-- Guesses
SELECT valid, error, attempts_remaining FROM otp_verify(:'shadow_shadow', '000000', phone => '+15550120060');
SELECT valid, error, attempts_remaining FROM otp_verify(:'shadow_shadow', '000000');
SELECT valid, error, attempts_remaining FROM otp_verify(:'shadow_shadow', '111111');
SELECT valid, error, attempts_remaining FROM otp_verify(:'shadow_shadow', '222222');
SELECT status, error, attempts FROM otp_status(:'shadow_shadow');
SELECT t.error('SELECT otp_resend($1)', :'shadow_shadow');
-- Resends and limits: as real ones
SELECT otp_id AS id FROM otp_send('+15550120063', metadata => '{"answer": "shadow"}') \gset
SELECT success, channel, phone, expires_in BETWEEN 298 AND 300 AS expires_in, message_id FROM otp_resend(:'id');
SELECT success, channel FROM otp_resend(:'id', 'sms');
SELECT status, channel FROM otp_status(:'id');
SELECT t.send('+15550120063', '{"answer": "shadow"}');
SELECT t.send('+15550120063', '{"answer": "shadow"}');
SELECT left(t.error('SELECT otp_resend($1)', :'id'), 5);
-- Cancel
SELECT otp_cancel(:'id'), otp_cancel(:'id');
SELECT status FROM otp_status(:'id');
SELECT error FROM otp_verify(:'id', '123456');
-- Forget
SELECT otp_id AS id FROM otp_send('+15550120064', metadata => '{"answer": "shadow"}') \gset
SELECT verifications, canceled FROM otp.forget_phone('+15550120064');
-- The tenant may know
SELECT phone, number, what, why FROM otp.deliveries WHERE created_at > now() - interval '1 hour' AND phone ~ '^.15550120' ORDER BY phone, created_at;
RESET ROLE;
SELECT CASE WHEN phone ~ '^#' THEN '#' ELSE phone END AS phone, shadowed, attempts, resends, canceled_at IS NOT NULL AS canceled FROM otp.verifications ORDER BY 1, created_at;
-- Nothing is owed for it: no message, no end, no webhook; the one row is the real one's
SELECT otp.format_id(id) = :'real_real' AS real, kind, number FROM otp.outbox;
SELECT count(*) FROM otp.webhook_outbox;
-- Nor counted
SELECT count(*), sum(messages) FROM otp.delivery_stats;
SELECT sum(sends), sum(messages) FROM otp.usage;
-- It ends as any other that nobody verified
UPDATE otp.verifications SET expires_at = created_at;
SELECT status, error FROM otp_status(:'real_real');
SELECT otp_id AS id FROM otp.deliveries WHERE phone = '+15550120063' AND canceled_at IS NULL \gset
SELECT status, error FROM otp_status(:'id');
SELECT t.error('SELECT otp_resend($1)', :'id'), otp_cancel(:'id'), (SELECT error FROM otp_verify(:'id', '123456'));

--
-- The example of doc/reference.md
--
CREATE ROLE regress_otp_signup;
CREATE SCHEMA signup AUTHORIZATION regress_otp_signup;
GRANT USAGE ON SCHEMA otp TO regress_otp_signup;
GRANT USAGE ON TYPE otp.send_request TO regress_otp_signup;
SET ROLE regress_otp_signup;
CREATE TABLE signup.disposable_ranges (prefix text PRIMARY KEY);
CREATE TABLE signup.bots (key text PRIMARY KEY);
CREATE TABLE signup.shadowed (at timestamptz NOT NULL DEFAULT clock_timestamp(), key text NOT NULL);
CREATE FUNCTION signup.policy(r otp.send_request) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	bot text;
BEGIN
	-- Numbers that anybody can rent for an hour
	IF EXISTS (SELECT 1 FROM signup.disposable_ranges d WHERE starts_with(r.phone, d.prefix)) THEN
		RETURN 'deny';
	END IF;
	-- Who comes from an address that is known for bots may believe that it works
	SELECT b.key INTO bot FROM signup.bots b WHERE b.key = ANY (r.limit_keys) LIMIT 1;
	IF FOUND THEN
		INSERT INTO signup.shadowed (key) VALUES (bot);
		RETURN 'shadow';
	END IF;
	RETURN 'allow';
END $$;
INSERT INTO signup.disposable_ranges VALUES ('+4477001'), ('+1555013');
INSERT INTO signup.bots VALUES ('ip:203.0.113.7');
SELECT phone, keys, signup.policy(ROW('default', phone, 'US', 'whatsapp', false, 'otp_verification', 'en_US', 6, 300, NULL, NULL, keys)::otp.send_request)
FROM (VALUES ('+15550131234', NULL), ('+15550141234', '{ip:203.0.113.7}'), ('+15550141234', '{ip:203.0.113.8,device:x}'::text[])) v (phone, keys);
RESET ROLE;
UPDATE otp.workspaces SET policy_function = 'signup.policy', policy_timeout = '100 ms' WHERE name = 'default';
SELECT phone, left(t.send(phone, '{}'), 8) FROM unnest(ARRAY['+15550131234', '+15550141234', '+447700123456']) phone;
UPDATE otp.workspaces SET policy_function = NULL, policy_timeout = '250 ms' WHERE name = 'default';
DROP SCHEMA signup CASCADE;
DROP OWNED BY regress_otp_signup;
DROP ROLE regress_otp_signup;

DELETE FROM otp.webhook_endpoints;
ALTER SEQUENCE otp.webhook_endpoints_endpoint_id_seq RESTART;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.phone_failures;
DELETE FROM otp.forgotten_phones;
DROP FUNCTION t.send, t.policy, t.suffer, t.commits, public.answers;
DROP TABLE public.apps, hostile;
DROP SCHEMA pol CASCADE;
SELECT otp.revoke_workspace('default', 'regress_otp_app');
DROP OWNED BY regress_otp_app, regress_otp_policy, regress_otp_heir;
DROP ROLE regress_otp_app, regress_otp_policy, regress_otp_heir;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL, sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s', max_attempts = 3;
DELETE FROM otp.provider_accounts;
