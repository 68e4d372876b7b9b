-- Protects: promise 7 against callers who prepare the ground. Operators,
-- functions and casts first in search_path, temporary tables named like ours,
-- settings, a role that owns the database but is no superuser: nothing of
-- theirs is run with the extension's rights, and nothing of ours is fooled.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_evil;
SELECT otp.grant_workspace('default', 'regress_otp_evil');
SELECT otp.set_test_number('+15550111001', '123456');
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
CREATE SCHEMA evil AUTHORIZATION regress_otp_evil;
GRANT TEMPORARY ON DATABASE :DBNAME TO regress_otp_evil;

-- All plans are made afresh under the hostile path
\c -
\set SHOW_CONTEXT never
SET client_min_messages = error;
SET ROLE regress_otp_evil;
CREATE TABLE evil.log (who text, what text);
GRANT ALL ON evil.log TO PUBLIC;
CREATE FUNCTION evil.note(what text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO evil.log VALUES (current_user, what);
END $$;
-- Every binary operator that our statements may use, for every type they have
DO $$
DECLARE
	o text; t text;
BEGIN
	FOREACH t IN ARRAY ARRAY['text', 'uuid', 'int4', 'int2', 'int8', 'timestamptz', 'bool', 'oid', 'int4[]', 'interval', 'regrole', 'name', 'bytea', 'jsonb', 'float8', 'numeric'] LOOP
		EXECUTE format('CREATE FUNCTION evil.op(a %1$s, b %1$s) RETURNS bool LANGUAGE plpgsql AS $x$ BEGIN PERFORM evil.note(''operator %1$s''); RETURN true; END $x$', t);
		EXECUTE format('CREATE FUNCTION evil.same(a %1$s, b %1$s) RETURNS %1$s LANGUAGE plpgsql AS $x$ BEGIN PERFORM evil.note(''operator %1$s''); RETURN a; END $x$', t);
		FOREACH o IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>=', '~', '~~'] LOOP
			EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.op, LEFTARG = %s, RIGHTARG = %s)', o, t, t);
		END LOOP;
		FOREACH o IN ARRAY ARRAY['+', '-', '*', '/', '%', '||', '->', '->>'] LOOP
			EXECUTE format('CREATE OPERATOR evil.%s (FUNCTION = evil.same, LEFTARG = %s, RIGHTARG = %s)', o, t, t);
		END LOOP;
	END LOOP;
	CREATE FUNCTION evil.mixed(a int4, b int4[]) RETURNS bool LANGUAGE plpgsql AS $x$ BEGIN PERFORM evil.note('operator mixed'); RETURN true; END $x$;
	CREATE OPERATOR evil.= (FUNCTION = evil.mixed, LEFTARG = int4, RIGHTARG = int4[]);
	CREATE FUNCTION evil.mixed(a int2, b int4) RETURNS bool LANGUAGE plpgsql AS $x$ BEGIN PERFORM evil.note('operator mixed'); RETURN true; END $x$;
	CREATE OPERATOR evil.= (FUNCTION = evil.mixed, LEFTARG = int2, RIGHTARG = int4);
	CREATE OPERATOR evil.< (FUNCTION = evil.mixed, LEFTARG = int2, RIGHTARG = int4);
END $$;
-- Functions and types of the same names
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('now'); RETURN 'epoch'; END $$;
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('clock_timestamp'); RETURN 'epoch'; END $$;
CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('lower'); RETURN $1; END $$;
CREATE FUNCTION evil.date_part(text, interval) RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('date_part'); RETURN 0; END $$;
CREATE FUNCTION evil.extract(text, interval) RETURNS numeric LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('extract'); RETURN 0; END $$;
CREATE FUNCTION evil.format(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('format'); RETURN $1; END $$;
CREATE FUNCTION evil.encrypt_iv(bytea, bytea, bytea, text) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('encrypt_iv'); RETURN $1; END $$;
CREATE FUNCTION evil.my_workspaces() RETURNS int[] LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.note('my_workspaces'); RETURN '{1,2,3}'; END $$;
CREATE DOMAIN evil.int8 AS text;
CREATE DOMAIN evil.regrole AS text;
CREATE DOMAIN evil.jsonb AS text;
CREATE TYPE evil.uuid AS (a text);
-- Tables of the same names, first in the path and temporary
DO $$
DECLARE
	name text;
BEGIN
	FOREACH name IN ARRAY ARRAY['verifications', 'messages', 'outbox', 'workspaces', 'workspace_grants', 'templates', 'test_numbers', 'keys', 'provider_accounts', 'phone_failures',
		'pg_proc', 'pg_depend', 'pg_extension', 'pg_class', 'pg_namespace'] LOOP
		EXECUTE format('CREATE TEMP TABLE %I (workspace_id int, oid oid, name text, role text, extname text, extowner oid)', name);
		EXECUTE format('CREATE TABLE evil.%I (workspace_id int, oid oid, name text)', name);
	END LOOP;
	INSERT INTO pg_temp.workspace_grants VALUES (1), (2), (3);
	INSERT INTO pg_temp.pg_extension (extname, extowner) VALUES ('otp', 'regress_otp_evil'::regrole);
END $$;
SET search_path = evil, pg_temp, pg_catalog, public;
SET default_table_access_method = heap;
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'sql_standard';
SET bytea_output = 'escape';
SET transform_null_equals = on;
SET quote_all_identifiers = on;
SET plan_cache_mode = force_custom_plan;
SET enable_indexscan = off;
SET row_security = off;
SET check_function_bodies = off;

-- All verbs and views. (\gset: no operator of ours in these statements)
SELECT otp_id AS id, otp_id AS sent FROM otp_send('+15550111001', context => 'x', metadata => '{}') \gset
SELECT status, attempts FROM otp_status(:'id');
SELECT valid, error FROM otp_verify(:'id', 'wrong', 'x');
SELECT channel FROM otp_resend(:'id', 'sms');
SELECT status FROM otp_wait(:'id');
SELECT valid, error FROM otp_verify(:'id', '123456', 'x', '+15550111001');
SELECT otp_cancel(:'id');
SELECT otp_id AS id FROM otp_send('+15550111001') \gset
SELECT otp_cancel(:'id');
SELECT otp_cancel('otp_00000000000000000000000000');
-- A real phone, its limits counted
SELECT success FROM otp_send('+15550111002');
\set VERBOSITY sqlstate
SELECT otp_send('+15550111002');
\set VERBOSITY default
SELECT valid, error FROM otp_verify(:'sent', 'wrong', 'x');
SELECT phone, what FROM otp.deliveries ORDER BY phone, what;
SELECT workspace, messages FROM otp.delivery_stats;
SELECT otp.my_workspaces();
SELECT otp.format_id(otp.parse_id('otp_00000000000000000000000001'));
-- What the owner calls, with such a path
RESET ROLE;
SELECT otp.set_test_number('+15550111003', '123456');
SELECT otp.configure_meta(access_token => 'other');
SELECT otp.grant_workspace('default', 'regress_otp_evil');
SELECT otp_id AS id FROM otp_send('+15550111003') \gset
SELECT otp.simulate(:'id', 'failed');
SELECT status FROM otp_status(:'id');
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 5 FROM otp.check_setup();
SELECT test_numbers FROM otp.health;
SELECT account FROM otp.providers;
UPDATE otp.workspaces SET app_name = 'x';
SELECT otp.revoke_workspace('default', 'regress_otp_evil');
SELECT otp.grant_workspace('default', 'regress_otp_evil');
-- Nothing of theirs was run, by nobody
RESET search_path;
SELECT DISTINCT who, what FROM evil.log;
SELECT count(*) FROM pg_temp.verifications;
\c -
\set SHOW_CONTEXT never
SET client_min_messages = error;

-- And the operators do work: else the above would tell nothing
SET ROLE regress_otp_evil;
SET search_path = evil, pg_catalog, public;
SELECT 'a'::text = 'b'::text;
RESET search_path;
SELECT DISTINCT who, what FROM evil.log;
RESET ROLE;

-- Settings that would change what our statements do
SET ROLE regress_otp_evil;
SELECT t.error('SET session_replication_role = replica');
RESET ROLE;

-- A cursor's and a function's rights are the caller's at the call
SET ROLE regress_otp_evil;
CREATE FUNCTION evil.definer() RETURNS text SECURITY DEFINER SET search_path = evil, public LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT channel FROM otp_send('+15550111001'));
END $$;
RESET ROLE;
SELECT otp.revoke_workspace('default', 'regress_otp_evil');
SELECT t.error('SELECT evil.definer()');
SELECT otp.grant_workspace('default', 'regress_otp_evil');
SELECT t.error('SELECT evil.definer()');
-- In the owner's scope the role cannot be changed, and after it the caller is the caller again
SET ROLE regress_otp_evil;
SELECT current_user, channel, current_user FROM otp_send('+15550111001');
SELECT t.error('SELECT otp_send(''x'')') IS NOT NULL, current_user, current_setting('search_path');
SELECT t.error('SELECT * FROM otp.workspaces');
RESET ROLE;

--
-- The owner of the database, who is no superuser
--
SELECT pg_get_userbyid(datdba) AS dba FROM pg_database WHERE datname = current_database() \gset
CREATE ROLE regress_otp_dba CREATEROLE;
ALTER DATABASE :DBNAME OWNER TO regress_otp_dba;
SELECT t.error('SELECT 1');
SET ROLE regress_otp_dba;
SELECT s, left(t.error(s), 5) AS error FROM unnest(ARRAY['SELECT * FROM otp.verifications', 'SELECT * FROM otp.provider_accounts', 'SELECT otp_send(''+15550111001'')', 'SELECT otp.grant_workspace(''default'', ''regress_otp_dba'')',
	'INSERT INTO otp.workspace_grants VALUES (1, ''regress_otp_dba'')', 'GRANT EXECUTE ON FUNCTION otp_send TO regress_otp_dba', 'GRANT SELECT ON otp.verifications TO regress_otp_dba', 'GRANT USAGE ON SCHEMA otp TO regress_otp_dba',
	'ALTER SCHEMA otp OWNER TO regress_otp_dba', 'ALTER SCHEMA otp RENAME TO otp2', 'DROP SCHEMA otp CASCADE', 'ALTER EXTENSION otp DROP FUNCTION otp_send(text,text,int,int,bool,jsonb,text,text,text,text[],text,text)', 'DROP EXTENSION otp',
	'DROP EXTENSION pgcrypto CASCADE', 'CREATE OR REPLACE FUNCTION otp_cancel(text) RETURNS bool LANGUAGE sql AS ''SELECT true''', 'ALTER FUNCTION otp_verify RENAME TO otp_verify2',
	'CREATE TRIGGER x BEFORE INSERT ON otp.verifications FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()', 'CREATE TABLE public.x PARTITION OF otp.verifications FOR VALUES IN (99)', 'REASSIGN OWNED BY postgres TO regress_otp_dba',
	'ALTER DEFAULT PRIVILEGES FOR ROLE postgres GRANT ALL ON TABLES TO regress_otp_dba', 'ALTER ROLE postgres SET search_path = evil']) s;
\set VERBOSITY sqlstate
ALTER DATABASE :DBNAME SET otp.allow_insecure_http = on;
\set VERBOSITY default
-- What is his, the path of everybody in the database, changes nothing
ALTER DATABASE :DBNAME SET search_path = evil, pg_temp, pg_catalog, public;
ALTER DATABASE :DBNAME SET otp.workspace = 'default';
RESET ROLE;
\c -
\set SHOW_CONTEXT never
SET client_min_messages = error;
SET ROLE regress_otp_evil;
SELECT otp_id AS id FROM otp_send('+15550111001') \gset
SELECT valid FROM otp_verify(:'id', '123456');
RESET ROLE;
ALTER DATABASE :DBNAME RESET search_path;
ALTER DATABASE :DBNAME RESET otp.workspace;
ALTER DATABASE :DBNAME OWNER TO :dba;
\c -
\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT DISTINCT who FROM evil.log;

DROP SCHEMA evil CASCADE;
DROP OWNED BY regress_otp_evil, regress_otp_dba;
DELETE FROM otp.workspace_grants;
DROP ROLE regress_otp_evil, regress_otp_dba;
DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, app_name = '';
DELETE FROM otp.provider_accounts;
