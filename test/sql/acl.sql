-- Protects: the whole matrix of privileges. Every schema, function, table,
-- view, sequence and type of the extension, and what each kind of role may do
-- with it: nobody in particular, a role that a workspace is granted to, a
-- monitor, a member of the extension's owner. A new object shows here, and so
-- does a privilege that slipped in.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_nobody;
CREATE ROLE regress_otp_app;
CREATE ROLE regress_otp_monitor IN ROLE pg_monitor;
SELECT otp.grant_workspace('default', 'regress_otp_app');

-- Privileges of a role on an object, as the letters of psql's \dp: r SELECT, a INSERT, w UPDATE, d DELETE, D TRUNCATE,
-- x REFERENCES, t TRIGGER, X EXECUTE, U USAGE, C CREATE; a star: with the right to grant
CREATE FUNCTION t.may(role name, classid oid, objid oid) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	kind text; letter text; privilege text; suffix text; yes bool; answer text := '';
BEGIN
	kind := CASE WHEN classid = 'pg_class'::regclass
			THEN (SELECT CASE relkind WHEN 'S' THEN 'sequence' ELSE 'table' END FROM pg_class WHERE oid = objid)
		WHEN classid = 'pg_proc'::regclass THEN 'function'
		WHEN classid = 'pg_type'::regclass THEN 'type'
		WHEN classid = 'pg_namespace'::regclass THEN 'schema' END;
	FOR letter, privilege IN SELECT l, p FROM (VALUES ('table', 'r', 'SELECT'), ('table', 'a', 'INSERT'), ('table', 'w', 'UPDATE'), ('table', 'd', 'DELETE'),
			('table', 'D', 'TRUNCATE'), ('table', 'x', 'REFERENCES'), ('table', 't', 'TRIGGER'), ('sequence', 'U', 'USAGE'), ('sequence', 'r', 'SELECT'),
			('sequence', 'w', 'UPDATE'), ('function', 'X', 'EXECUTE'), ('type', 'U', 'USAGE'), ('schema', 'U', 'USAGE'), ('schema', 'C', 'CREATE')) v (k, l, p)
		WHERE k = kind
	LOOP
		FOREACH suffix IN ARRAY ARRAY['', ' WITH GRANT OPTION'] LOOP
			EXECUTE format('SELECT has_%s_privilege($1, $2, $3)', kind) INTO yes USING role, objid, privilege || suffix;
			IF yes THEN
				answer := answer || CASE suffix WHEN '' THEN letter ELSE '*' END;
			END IF;
		END LOOP;
	END LOOP;
	RETURN answer;
END $$;

CREATE TEMP TABLE objects AS
SELECT o.classid, o.objid, o.object COLLATE "C" AS object, t.may('regress_otp_nobody', o.classid, o.objid) AS nobody,
	t.may('regress_otp_app', o.classid, o.objid) AS app, t.may('regress_otp_monitor', o.classid, o.objid) AS monitor
FROM (
	SELECT d.classid, d.objid, regexp_replace(pg_describe_object(d.classid, d.objid, 0), '_\d\d$', '_NN') AS object
	FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
	WHERE d.deptype = 'e' AND e.extname = 'otp') o
WHERE o.classid IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_namespace'::regclass)
	-- types that are not those of tables, nor arrays
	OR o.classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type y LEFT JOIN pg_class c ON c.oid = y.typrelid
		WHERE y.oid = o.objid AND y.typelem = 0 AND (c.relkind IS NULL OR c.relkind = 'c'));

-- What others than the owner may do
SELECT DISTINCT object, nobody, app, monitor FROM objects WHERE nobody || app || monitor <> '' ORDER BY object;
-- And what is the owner's alone
SELECT object, count(*) FROM objects WHERE nobody || app || monitor = '' GROUP BY 1 ORDER BY 1;
-- Nothing of another kind is in the extension, but rules of views, row types and defaults
SELECT DISTINCT d.classid::regclass FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE d.deptype = 'e' AND e.extname = 'otp' ORDER BY 1;

-- Views that a tenant reads are barriers, and run with their owner's rights; no function of ours is leakproof
SELECT c.oid::regclass AS view, coalesce('security_barrier=true' = ANY (c.reloptions) OR 'security_barrier' = ANY (c.reloptions), false) AS barrier
FROM objects o JOIN pg_class c ON o.classid = 'pg_class'::regclass AND c.oid = o.objid AND c.relkind = 'v'
WHERE has_table_privilege('regress_otp_app', c.oid, 'SELECT') ORDER BY 1;
SELECT count(*) FROM objects o JOIN pg_proc p ON o.classid = 'pg_proc'::regclass AND p.oid = o.objid WHERE p.proleakproof;

-- What is SECURITY DEFINER has its path pinned
SELECT p.oid::regprocedure AS definer, p.proconfig FROM objects o JOIN pg_proc p ON o.classid = 'pg_proc'::regclass AND p.oid = o.objid
WHERE p.prosecdef ORDER BY 1;

-- With the grant, all of it goes
SELECT otp.revoke_workspace('default', 'regress_otp_app');
SELECT object FROM objects WHERE t.may('regress_otp_app', classid, objid) <> nobody;

DROP FUNCTION t.may;
DROP OWNED BY regress_otp_nobody, regress_otp_app, regress_otp_monitor;
DROP ROLE regress_otp_nobody, regress_otp_app, regress_otp_monitor;
