-- Protects: promise 7 at CREATE EXTENSION. Whoever owns the database may fill
-- the target schema with operators and functions that fit better than
-- pg_catalog's: none of them may run as the superuser who creates the
-- extension, nor get into a view.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT current_user AS superuser, :'DBNAME' AS main \gset
CREATE ROLE regress_otp_owner;
CREATE DATABASE regress_otp_owned OWNER regress_otp_owner;
\c regress_otp_owned
\set SHOW_CONTEXT never
SET client_min_messages = error;

-- Every pair of types that the script compares or computes with
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT CREATE ON SCHEMA public TO regress_otp_owner;
SET ROLE regress_otp_owner;
SET search_path = pg_catalog;
CREATE TABLE public.log (who text, what text);
GRANT ALL ON public.log TO PUBLIC;
DO $$
DECLARE
	types text[] = ARRAY['oid', 'regclass', 'regnamespace', 'regproc', 'name', 'text', '"char"', 'int2', 'int4', 'int8',
		'numeric', 'float8', 'bool', 'timestamptz', 'interval', 'regrole', 'int4[]'];
	l text; r text; o text; f text; n int = 0;
BEGIN
	FOREACH l IN ARRAY types LOOP
		FOREACH r IN ARRAY types LOOP
			n := n + 1;
			f := format('evil_%s', n);
			EXECUTE format('CREATE FUNCTION public.%I(%s, %s) RETURNS bool LANGUAGE plpgsql AS
				$f$ BEGIN INSERT INTO public.log VALUES (current_user, %L); RETURN true; END $f$', f, l, r, l || ', ' || r);
			FOREACH o IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '||', '~'] LOOP
				EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.%I)', o, l, r, f);
			END LOOP;
		END LOOP;
	END LOOP;
END $$;
RESET search_path;
RESET ROLE;

CREATE EXTENSION otp CASCADE;
SET search_path = pg_catalog;
SELECT count(*) > 0 AS there FROM pg_extension WHERE extname = 'otp';
SELECT ok FROM otp.check_setup() WHERE part = 'preload';
SELECT count(*) FROM otp.delivery_stats;
SELECT count(*) FROM otp.deliveries;
SELECT count(*) FROM otp.health;
SELECT count(*) FROM otp.providers;
SELECT DISTINCT who = :'superuser' AS superuser, what FROM public.log ORDER BY 2;
-- In no view either
SELECT DISTINCT r.ev_class::regclass FROM pg_depend d
JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND d.refobjid = o.oid
WHERE o.oprnamespace = 'public'::regnamespace;
DROP EXTENSION otp;
RESET search_path;

-- A schema whose name has to be quoted is looked at, too
CREATE SCHEMA "Open to all";
GRANT CREATE ON SCHEMA "Open to all" TO PUBLIC;
\set VERBOSITY terse
CREATE EXTENSION otp SCHEMA "Open to all";
\set VERBOSITY default

\c :main
DROP DATABASE regress_otp_owned;
DROP ROLE regress_otp_owner;
