-- Protects: what CREATE EXTENSION makes and whom it lets at it. Every object
-- with its privileges, a comment on everything public, the refusal of a
-- schema in which anybody could overload the verbs, drop and make again.
-- Leaves the extension installed, and the helpers of the other files.

\set SHOW_CONTEXT never
SET client_min_messages = error;

-- Refused where PUBLIC may create
GRANT CREATE ON SCHEMA public TO PUBLIC;
CREATE EXTENSION otp CASCADE;
SELECT count(*) FROM pg_extension WHERE extname IN ('otp', 'pgcrypto');
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- Refused with a schema named otp in the way
CREATE SCHEMA otp;
CREATE EXTENSION otp CASCADE;
DROP SCHEMA otp;

-- Default privileges open no door, whomever they are for
CREATE ROLE regress_otp_reader;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_otp_reader;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_otp_reader;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO regress_otp_reader;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO regress_otp_reader;

-- In a schema of one's own
CREATE SCHEMA auth;
REVOKE ALL ON SCHEMA auth FROM PUBLIC, regress_otp_reader;
CREATE EXTENSION otp SCHEMA auth CASCADE;
SELECT n.nspname, count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname IN ('auth', 'public') AND p.proname LIKE 'otp\_%' GROUP BY 1;
DROP EXTENSION otp;
SELECT count(*) FROM pg_namespace WHERE nspname = 'otp';
DROP EXTENSION pgcrypto;
DROP SCHEMA auth;

-- And in public, which other files use
CREATE EXTENSION otp CASCADE;

-- The objects, and what others than the owner may do with them
CREATE TEMP VIEW members AS
SELECT d.classid, d.objid, d.classid::regclass::text AS class, pg_describe_object(d.classid, d.objid, 0) AS object
FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE d.deptype = 'e' AND e.extname = 'otp';

CREATE TEMP VIEW privileges AS
WITH acls AS (
	SELECT m.object, c.relowner AS owner, c.relacl AS acl FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
	UNION ALL
	SELECT 'column ' || a.attname || ' of ' || m.object, c.relowner, a.attacl
	FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attacl IS NOT NULL
	UNION ALL
	SELECT m.object, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)) FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	UNION ALL
	SELECT m.object, n.nspowner, n.nspacl FROM members m JOIN pg_namespace n ON m.classid = 'pg_namespace'::regclass AND n.oid = m.objid
)
SELECT object, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END AS grantee,
	string_agg(x.privilege_type || CASE WHEN x.is_grantable THEN '*' ELSE '' END, ', ' ORDER BY x.privilege_type) AS may
FROM acls, aclexplode(acl) x WHERE x.grantee <> owner GROUP BY 1, 2;

SELECT regexp_replace(object, '_\d\d( |$)', '_nn\1') AS object, count(*) FROM members
WHERE class <> 'pg_type'
GROUP BY 1 ORDER BY min(object) COLLATE "C";
SELECT * FROM privileges ORDER BY object COLLATE "C", grantee;

-- The owner is who ran CREATE EXTENSION
SELECT extowner = (SELECT oid FROM pg_roles WHERE rolname = current_user) AS owner, extnamespace::regnamespace, extrelocatable
FROM pg_extension WHERE extname = 'otp';
SELECT DISTINCT relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user) AS owner
FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid;

ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC, regress_otp_reader;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM PUBLIC, regress_otp_reader;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM regress_otp_reader;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM PUBLIC, regress_otp_reader;
DROP OWNED BY regress_otp_reader;
DROP ROLE regress_otp_reader;

-- Everything logged: a crash loses none of it
SELECT count(*) FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
WHERE c.relpersistence <> 'p';

-- No foreign key to or from anything
SELECT count(*) FROM pg_constraint c JOIN members m ON m.classid = 'pg_class'::regclass AND m.objid IN (c.conrelid, c.confrelid)
WHERE c.contype = 'f';

-- 32 drawers of history each
SELECT inhparent::regclass AS parent, count(*) FROM pg_inherits WHERE inhparent::regclass::text LIKE 'otp.%'
AND inhparent IN (SELECT objid FROM members) AND inhrelid IN (SELECT objid FROM members WHERE class = 'pg_class') GROUP BY 1 ORDER BY 1;

-- A comment on every function and view
SELECT object FROM members
WHERE (class = 'pg_proc' OR object LIKE 'view %') AND obj_description(objid, class) IS NULL;

-- The verbs: how they are called and how they may be planned
SELECT p.oid::regprocedure AS verb, pg_get_function_result(p.oid) AS result
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
WHERE p.pronamespace = 'public'::regnamespace ORDER BY p.proname;
SELECT p.proname, p.pronargdefaults AS defaults, p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict,
	p.prosecdef AS definer, p.proleakproof AS leakproof
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
ORDER BY p.pronamespace::regnamespace::text, p.proname;
SELECT p.proname, count(*) FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
GROUP BY 1 HAVING count(*) > 1;

-- What the owner starts with
SELECT * FROM otp.workspaces;
SELECT workspace_id, name, language, status FROM otp.templates;
SELECT workspace_id, template, language, country_prefix, body FROM otp.sms_texts;
SELECT count(*) FROM otp.workspace_grants;
SELECT count(*) > 50 AS filled, count(*) FILTER (WHERE meaning = '' OR action = '') AS empty FROM otp.provider_errors;

-- Dropped, nothing stays; made again, the session goes on with it
SELECT otp.set_test_number('+15550100001', '111111');
SELECT success, channel, phone FROM otp_send('+15550100001');
DROP EXTENSION otp;
SELECT otp_send('+15550100001');
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'otp';
CREATE EXTENSION otp;
SELECT count(*) FROM otp.verifications;
SELECT count(*) FROM otp.test_numbers;
SELECT otp.set_test_number('+15550100001', '111111');
SELECT success, channel, phone FROM otp_send('+15550100001');

-- A rolled-back CREATE or DROP leaves nothing behind in the session
BEGIN;
DROP EXTENSION otp;
ROLLBACK;
SELECT success, channel, phone FROM otp_send('+15550100001');
DROP EXTENSION otp;
BEGIN;
CREATE EXTENSION otp;
SELECT otp.set_test_number('+15550100001', '111111');
ROLLBACK;
SELECT otp_send('+15550100001');
CREATE EXTENSION otp;

-- The setting that says who acts, and those of the server
SELECT name, context, vartype, boot_val FROM pg_settings WHERE name LIKE 'otp.%' ORDER BY name COLLATE "C";

--
-- What the other files use
--
CREATE SCHEMA t;
GRANT USAGE ON SCHEMA t TO PUBLIC;

-- Run a statement: what it raises, with the seconds of retry_after made N
CREATE FUNCTION t.error(statement text, VARIADIC args text[] DEFAULT '{}') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	state text; message text; detail text; hint text;
BEGIN
	EXECUTE statement USING args[1], args[2], args[3], args[4];
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', state || ' ' || message,
		nullif(regexp_replace(detail, '"retry_after":\d+', '"retry_after":N'), ''), nullif(hint, ''));
END $$;

-- The seconds of retry_after in what a statement raises
CREATE FUNCTION t.retry_after(statement text, VARIADIC args text[] DEFAULT '{}') RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE statement USING args[1], args[2], args[3], args[4];
	RETURN NULL;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN (detail::json ->> 'retry_after')::int;
END $$;

-- A verification of a real phone whose code is known: a test number's, made real
CREATE FUNCTION t.known(phone text, code text, context text = NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	sent text;
BEGIN
	PERFORM otp.set_test_number($1, $2, 'pending');
	SELECT s.otp_id INTO sent FROM otp_send($1, context => $3) s;
	PERFORM otp.set_test_number($1, NULL);
	UPDATE otp.verifications v SET test_outcome = NULL, created_xid = 3 WHERE v.id = otp.parse_id(sent);
	RETURN sent;
END $$;

-- What is queued carries another server's mark, so that no sender touches it
CREATE FUNCTION t.hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.origin := 0;
	RETURN NEW;
END $$;
CREATE TRIGGER hold BEFORE INSERT ON otp.outbox FOR EACH ROW EXECUTE FUNCTION t.hold();
