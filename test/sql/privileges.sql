-- Protects: who may do what. Nobody does anything without a grant, also when
-- EXECUTE was given away; a grant is for the verbs and views of one
-- workspace; monitors see health and statistics and nothing else; a tenant
-- sees, spends, verifies and guesses for no other (promise 7).

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_app;
CREATE ROLE regress_otp_member IN ROLE regress_otp_app;
CREATE ROLE regress_otp_stranger NOINHERIT;
GRANT regress_otp_app TO regress_otp_stranger;
CREATE ROLE regress_otp_other;
CREATE ROLE "Regress otp's ""odd"" role";
CREATE ROLE regress_otp_monitor IN ROLE pg_monitor;
CREATE ROLE regress_otp_nobody;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other');
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT otp.set_test_number('+15550110001', '123456');
SELECT otp.set_test_number('+15550110002', '222222', workspace => 'other');

-- Call every function of the extension with NULLs
CREATE FUNCTION t.call_all() RETURNS TABLE (function text, error text) LANGUAGE plpgsql AS $$
DECLARE
	f record;
BEGIN
	FOR f IN
		SELECT p.oid::regprocedure::text AS name, p.oid::regproc::text AS call, p.proargtypes::oid[] AS types FROM pg_proc p
		JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
		JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'otp'
		ORDER BY p.oid::regprocedure::text COLLATE "C"
	LOOP
		function := regexp_replace(f.name, '\(.*', '');
		error := t.error(format('SELECT %s(%s)', f.call, (SELECT string_agg('NULL::' || format_type(u.type, NULL), ', ' ORDER BY u.n) FROM unnest(f.types) WITH ORDINALITY u (type, n))));
		RETURN NEXT;
	END LOOP;
END $$;
CREATE FUNCTION t.touch_all() RETURNS TABLE (relation text, error text) LANGUAGE plpgsql AS $$
DECLARE
	r record; statement text; answers text[];
BEGIN
	FOR r IN
		SELECT c.oid::regclass::text AS name, c.relkind,
			(SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = c.oid AND attnum = 1) AS col
		FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
		JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'otp'
		WHERE c.relkind IN ('r', 'p', 'v', 'S') AND c.relname !~ '_[0-3][1-9]$' AND c.relname !~ '_[1-3]0$' ORDER BY c.oid::regclass::text COLLATE "C"
	LOOP
		answers := '{}';
		FOREACH statement IN ARRAY CASE r.relkind WHEN 'S' THEN ARRAY['SELECT nextval(''%1$s'')', 'SELECT setval(''%1$s'', 1)', 'SELECT last_value FROM %1$s'] ELSE ARRAY[
			'SELECT FROM %1$s', 'SELECT %2$s FROM %1$s', 'SELECT FROM %1$s FOR UPDATE', 'INSERT INTO %1$s DEFAULT VALUES', 'UPDATE %1$s SET %2$s = NULL', 'DELETE FROM %1$s',
			'TRUNCATE %1$s', 'LOCK %1$s', 'ALTER TABLE %1$s ADD x int', 'CREATE TRIGGER x BEFORE INSERT ON %1$s FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
			'CREATE RULE x AS ON INSERT TO %1$s DO INSTEAD NOTHING', 'ALTER TABLE %1$s DISABLE TRIGGER ALL', 'CREATE POLICY x ON %1$s', 'COMMENT ON TABLE %1$s IS ''x'''] END
		LOOP
			answers := answers || left(t.error(format(statement, r.name, r.col)), 5);
		END LOOP;
		relation := r.name;
		error := array_to_string(answers, ' ');
		RETURN NEXT;
	END LOOP;
END $$;
GRANT CREATE ON SCHEMA public TO regress_otp_nobody, regress_otp_app, regress_otp_monitor;

--
-- Without a grant
--
SET ROLE regress_otp_nobody;
SELECT DISTINCT error FROM t.call_all() ORDER BY 1;
SELECT error, count(*) FROM t.touch_all() GROUP BY 1 ORDER BY 1;
SET otp.workspace = 'default';
SELECT DISTINCT left(error, 5) FROM t.call_all();
RESET otp.workspace;
-- nor anything that changes the extension
SELECT s, left(t.error(s), 5) AS error FROM unnest(ARRAY['DROP EXTENSION otp', 'ALTER EXTENSION otp UPDATE', 'ALTER EXTENSION otp ADD SCHEMA t', 'ALTER EXTENSION otp SET SCHEMA t', 'DROP SCHEMA otp CASCADE',
	'CREATE OR REPLACE FUNCTION otp_cancel(text) RETURNS bool LANGUAGE sql AS ''SELECT true''', 'ALTER FUNCTION otp_verify STABLE', 'ALTER FUNCTION otp_send SECURITY DEFINER',
	'CREATE TABLE otp.x ()', 'SET otp.allow_insecure_http = on', 'SET otp.key_file = ''x''', 'SHOW otp.key_file', 'SET otp.delivery = off',
	'CREATE FUNCTION public.x() RETURNS bool LANGUAGE c AS ''$libdir/otp'', ''otp_cancel''',
	'CREATE PUBLICATION x FOR ALL TABLES']) s;
RESET ROLE;

--
-- EXECUTE and USAGE for all open no door
--
BEGIN;
GRANT USAGE ON SCHEMA otp TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp, public TO PUBLIC;
SET LOCAL ROLE regress_otp_nobody;
-- (what tells of the health is for whoever is given EXECUTE)
SELECT * FROM t.call_all();
SELECT otp.my_workspaces();
SELECT call, t.error('SELECT ' || call) FROM unnest(ARRAY['otp_send(''+15550110001'')', 'otp_send(''+15550110001'', workspace => ''default'')', 'otp_send(''+15550110001'', workspace => ''nowhere'')',
	'otp_verify(''x'', ''1'')', 'otp_status(''otp_00000000000000000000000000'')', 'otp_status(''x'')', 'otp_resend(''otp_00000000000000000000000000'')', 'otp_cancel(''otp_00000000000000000000000000'')', 'otp_wait(''otp_00000000000000000000000000'')',
	'otp.grant_workspace(''default'', ''regress_otp_nobody'')', 'otp.revoke_workspace(''default'', ''regress_otp_app'')', 'otp.configure_meta()', 'otp.configure_meta(access_token_file => ''/etc/passwd'')',
	'otp.configure_twilio()', 'otp.set_test_number(''+15550110001'', ''1234'')', 'otp.simulate(''otp_00000000000000000000000000'', ''failed'')']) call;
-- Our trigger functions on one's own tables of the same names
CREATE TEMP TABLE workspaces (workspace_id int, seeded bool);
CREATE TRIGGER x BEFORE INSERT ON pg_temp.workspaces FOR EACH ROW EXECUTE FUNCTION otp.replace_seed();
CREATE TRIGGER y AFTER INSERT ON pg_temp.workspaces FOR EACH STATEMENT EXECUTE FUNCTION otp.note_change();
SELECT t.error('INSERT INTO pg_temp.workspaces VALUES (1, false)');
CREATE TEMP TABLE templates (nothing text);
CREATE TRIGGER x BEFORE INSERT OR UPDATE ON pg_temp.templates FOR EACH ROW EXECUTE FUNCTION otp.replace_seed();
SELECT t.error('INSERT INTO pg_temp.templates VALUES (1)');
RESET ROLE;
SELECT workspace_id, name FROM otp.workspaces ORDER BY 1;
SELECT count(*) FROM otp.templates;
ROLLBACK;

--
-- With a grant
--
SELECT otp.grant_workspace('default', 'regress_otp_app');
SELECT otp.grant_workspace('default', 'regress_otp_app');
SELECT * FROM otp.workspace_grants;
SELECT otp.grant_workspace('other', 'regress_otp_other');
SELECT otp.grant_workspace('other', 'Regress otp''s "odd" role');
-- What goes with it
SELECT coalesce(p.oid::regprocedure::text, c.oid::regclass::text, n.nspname) AS object, string_agg(x.privilege_type, ', ') AS may
FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'otp'
LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
LEFT JOIN pg_namespace n ON d.classid = 'pg_namespace'::regclass AND n.oid = d.objid, aclexplode(coalesce(p.proacl, c.relacl, n.nspacl)) x
WHERE d.deptype = 'e' AND x.grantee = 'regress_otp_app'::regrole GROUP BY 1 ORDER BY min(coalesce(p.oid::regprocedure::text, c.oid::regclass::text, n.nspname)) COLLATE "C";
SET ROLE regress_otp_app;
SELECT function, split_part(error, E'\n', 1) AS error FROM t.call_all();
SELECT * FROM t.touch_all();
SELECT otp.my_workspaces();
SELECT otp_id AS id, channel AS sent_by FROM otp_send('+15550110001') \gset
SELECT otp_id AS canceled FROM otp_send('+15550110001') \gset
SELECT status FROM otp_status(:'id');
SELECT valid, error FROM otp_verify(:'id', 'x');
SELECT success FROM otp_resend(:'id');
SELECT status FROM otp_wait(:'id');
SELECT otp_cancel(:'canceled');
SELECT count(*) FROM otp.deliveries WHERE phone = '+15550110001';
SELECT count(*) FROM otp.delivery_stats;
SELECT count(*) > 0 FROM otp.provider_errors;
SELECT t.error('SELECT otp_send(''+15550110001'', workspace => $1)', w) FROM unnest(ARRAY['default', 'other', 'nowhere']) w;
-- Members act with their group's grant; whoever does not inherit it does not
SET ROLE regress_otp_member;
SELECT otp.my_workspaces();
SELECT status FROM otp_status(:'id');
SET ROLE regress_otp_stranger;
SELECT t.error('SELECT otp_status($1)', :'id');
SET ROLE regress_otp_app;
-- A wrapper acts as its owner
CREATE FUNCTION public.wrapper(id text, code text) RETURNS bool SECURITY DEFINER SET search_path = public LANGUAGE sql AS $$ SELECT valid FROM otp_verify(id, code) $$;
SET ROLE regress_otp_nobody;
SELECT t.error('SELECT otp_verify($1, ''123456'')', :'id');
SELECT public.wrapper(:'id', '123456');
RESET ROLE;
DROP FUNCTION public.wrapper;
-- Without EXECUTE on a verb, the grant of the workspace is not enough
REVOKE EXECUTE ON FUNCTION otp_cancel FROM regress_otp_app;
SET ROLE regress_otp_app;
SELECT t.error('SELECT otp_cancel(''x'')');
RESET ROLE;

--
-- Tenants
--
SET ROLE regress_otp_other;
SELECT otp.my_workspaces();
SELECT otp_id AS theirs FROM otp_send('+15550110002') \gset
SELECT otp_id AS ours FROM otp_send('+15550110002') \gset
-- Another's id is none
SELECT (SELECT count(*) FROM otp_status(:'canceled')) AS status, (SELECT count(*) FROM otp_wait(:'canceled', '10 s')) AS wait, otp_cancel(:'canceled') AS cancel;
SELECT v.* FROM otp_verify('otp_00000000000000000000000000', '123456') v;
SELECT valid, phone, verified_at, channel, error, attempts_remaining, retry_after FROM otp_verify(:'canceled', '123456');
SELECT t.error('SELECT otp_resend($1)', id) FROM unnest(ARRAY[:'canceled', 'otp_00000000000000000000000000']) id;
RESET ROLE;
SELECT otp_id AS victim FROM otp_send('+15550110001', workspace => 'default') \gset
SET ROLE regress_otp_other;
SELECT DISTINCT error FROM unnest(ARRAY['a', 'b', 'c', 'd', '123456']) g, otp_verify(:'victim', g);
RESET ROLE;
SELECT attempts FROM otp_status(:'victim');
-- A test number of one is none of the other's, nor are limits, templates, policy
SET ROLE regress_otp_other;
SELECT t.error('SELECT otp_send(''+15550110001'')');
SELECT t.error('SELECT otp_send(''+15550110002'', workspace => ''default'')');
SET otp.workspace = 'default';
SELECT t.error('SELECT otp_send(''+15550110002'')');
SET otp.workspace = 'other';
SELECT t.error('SELECT otp_send(''+15550110002'')');
RESET otp.workspace;
RESET ROLE;
-- Made real ones, for the statistics
UPDATE otp.verifications SET test_outcome = NULL WHERE id IN (otp.parse_id(:'ours'), otp.parse_id(:'canceled'));
SET ROLE regress_otp_other;
-- Views show one's own, also to those who look through a hole
CREATE FUNCTION pg_temp.leak(text) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE INFO '%', $1; RETURN true; END $$;
SELECT count(*) FROM otp.deliveries WHERE pg_temp.leak(phone);
SELECT count(*) FROM otp.deliveries d WHERE pg_temp.leak(d.workspace) AND pg_temp.leak(otp_id) IS NULL AND false;
SELECT count(*) FROM otp.delivery_stats WHERE pg_temp.leak(workspace);
SELECT DISTINCT workspace, phone FROM otp.deliveries;
SET ROLE "Regress otp's ""odd"" role";
SELECT otp.my_workspaces();
SELECT status FROM otp_status(:'theirs');
RESET ROLE;
-- The owner finds all of them, and says for whom it sends
SELECT otp.my_workspaces();
SELECT status FROM otp_status(:'theirs');
SELECT status FROM otp_status(:'victim');
SELECT t.error('SELECT otp_send(''+15550110001'')');
SET otp.workspace = 'other';
SELECT t.error('SELECT otp_send(''+15550110002'')');
SELECT t.error('SELECT otp_send(''+15550110001'', workspace => ''default'')');
RESET otp.workspace;
SELECT DISTINCT workspace FROM otp.deliveries ORDER BY 1;

-- Two grants: one has to be chosen
SELECT otp.grant_workspace('other', 'regress_otp_app');
SET ROLE regress_otp_app;
SELECT otp.my_workspaces();
SELECT t.error('SELECT otp_send(''+15550110002'')');
SELECT t.error('SELECT otp_send(''+15550110002'', workspace => ''other'')');
SET otp.workspace = 'other';
SELECT t.error('SELECT otp_send(''+15550110002'')');
SELECT t.error('SELECT otp_send(''+15550110001'')');
RESET otp.workspace;
SELECT status FROM otp_status(:'theirs');
RESET ROLE;

-- Taken back: at once, first the workspace, with the last one the privileges
SELECT otp.revoke_workspace('other', 'regress_otp_app');
SET ROLE regress_otp_app;
SELECT otp.my_workspaces();
SELECT count(*) FROM otp_status(:'theirs');
SELECT t.error('SELECT otp_send(''+15550110001'')');
RESET ROLE;
SELECT otp.revoke_workspace('default', 'regress_otp_app');
SET ROLE regress_otp_app;
SELECT DISTINCT left(error, 5) FROM t.call_all();
SELECT DISTINCT error FROM t.touch_all();
RESET ROLE;
SELECT otp.revoke_workspace('default', 'regress_otp_app');
-- Rolled back, it had never been
BEGIN;
SELECT otp.grant_workspace('default', 'regress_otp_app');
SET LOCAL ROLE regress_otp_app;
SELECT status FROM otp_status(:'victim');
RESET ROLE;
ROLLBACK;
SET ROLE regress_otp_app;
SELECT t.error('SELECT otp_status($1)', :'victim');
RESET ROLE;
-- A membership that ends takes the grant with it
SELECT otp.grant_workspace('default', 'regress_otp_app');
SET ROLE regress_otp_member;
SELECT status FROM otp_status(:'victim');
RESET ROLE;
REVOKE regress_otp_app FROM regress_otp_member;
SET ROLE regress_otp_member;
SELECT t.error('SELECT otp_status($1)', :'victim');
RESET ROLE;
GRANT regress_otp_app TO regress_otp_member;
-- Arguments
SELECT call, t.error('SELECT otp.' || call) FROM unnest(ARRAY['grant_workspace(''nowhere'', ''regress_otp_app'')', 'grant_workspace(''default'', ''regress_otp_unknown'')', 'grant_workspace(NULL, ''regress_otp_app'')',
	'grant_workspace(''default'', NULL)', 'grant_workspace(''default'', ''public'')', 'revoke_workspace(''nowhere'', ''regress_otp_app'')', 'revoke_workspace(''default'', ''regress_otp_unknown'')',
	'grant_workspace(''default'', ''x; DROP TABLE otp.keys'')']) call;
-- The hint is a statement that works
SET ROLE "Regress otp's ""odd"" role";
SELECT t.error('SELECT otp_send(''+15550110001'', workspace => ''default'')') AS refused \gset
RESET ROLE;
SELECT substring(:'refused' FROM 'run (SELECT .*)\.$') AS hint \gset
SELECT :'hint' AS hint;
:hint;
SET ROLE "Regress otp's ""odd"" role";
SELECT status FROM otp_status(:'victim');
RESET ROLE;

--
-- Monitors
--
SET ROLE regress_otp_monitor;
SELECT count(*) FROM otp.health;
SELECT workspace, channel, messages, sent, delivered_percent, verified_percent FROM otp.delivery_stats ORDER BY 1;
SELECT count(*) > 0 FROM otp.provider_errors;
SELECT otp.my_workspaces();
SELECT function, left(error, 8) FROM t.call_all() WHERE error NOT LIKE '42501%';
SELECT relation, error FROM t.touch_all() WHERE error LIKE '%no er%';
RESET ROLE;

--
-- The extension's owner's members may configure, but not read the server's files
--
CREATE ROLE regress_otp_admin;
GRANT postgres TO regress_otp_admin;
SET ROLE regress_otp_admin;
SELECT t.error('SELECT otp.configure_meta(phone_number_id => ''1'', access_token_file => ''/etc/passwd'')') LIKE '42501%' AS refused;
SELECT t.error('SELECT otp.set_test_number(''+15550110003'', ''123456'')');
RESET ROLE;
SELECT set_by FROM otp.test_numbers WHERE phone = '+15550110003';
REVOKE postgres FROM regress_otp_admin;

DROP OWNED BY regress_otp_app, regress_otp_member, regress_otp_stranger, regress_otp_other, regress_otp_monitor, regress_otp_nobody, regress_otp_admin, "Regress otp's ""odd"" role";
DELETE FROM otp.workspace_grants;
DROP ROLE regress_otp_app, regress_otp_member, regress_otp_stranger, regress_otp_other, regress_otp_monitor, regress_otp_nobody, regress_otp_admin, "Regress otp's ""odd"" role";
DROP FUNCTION t.call_all, t.touch_all;
DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.templates WHERE workspace_id = 2;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
