-- Protects: API keys. What a key looks like and that it is kept as a hash
-- only, every check of an argument, one answer for whatever is no valid key,
-- rotation and revocation, who may do what, and that a look at a key works in
-- a read-only transaction and notes the use.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_keys;
CREATE ROLE regress_otp_key_web;
CREATE ROLE regress_otp_key_owner SUPERUSER;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other');
SELECT otp.grant_workspace('default', 'regress_otp_keys');
-- what an HTTP front end needs, and no more
GRANT USAGE ON SCHEMA otp TO regress_otp_key_web;
GRANT EXECUTE ON FUNCTION otp.authenticate_api_key(text) TO regress_otp_key_web;
CREATE VIEW t.keys AS
SELECT workspace, name, admin, status, created_by = session_user AS mine, expires_at IS NOT NULL AS expires, revoked_at IS NOT NULL AS revoked, last_used_at IS NOT NULL AS used,
	(SELECT o.name || CASE WHEN o.workspace = l.workspace THEN '' ELSE ' of another workspace' END FROM otp.api_key_list o WHERE o.key_id = l.replaces) AS replaces
FROM otp.api_key_list l ORDER BY key_id;

-- A key, shown once
SELECT key_id AS web, api_key AS web_key FROM otp.create_api_key('default', 'web shop') \gset
SELECT key_id AS boss, api_key AS boss_key FROM otp.create_api_key('other', 'back office', clock_timestamp() + interval '1 year', admin => true) \gset
SET ROLE regress_otp_key_owner;
SELECT key_id AS third, api_key AS third_key FROM otp.create_api_key('default', repeat('ü', 100), admin => NULL) \gset
RESET ROLE;
SELECT :'web_key' ~ '^oat_[0-9A-Za-z]{32}$' AS web, :'boss_key' ~ '^oat_[0-9A-Za-z]{32}$' AS boss, :'web_key' <> :'boss_key' AS differ;
SELECT workspace, left(name, 11) AS name, admin, status, created_by = current_user AS mine, created_at > now() - interval '1 min' AS now, expires_at - created_at > interval '364 days' AS a_year,
	prefix = left(CASE key_id WHEN :web THEN :'web_key' WHEN :boss THEN :'boss_key' ELSE :'third_key' END, 8) AS prefix, last_used_at, replaces
FROM otp.api_key_list ORDER BY key_id;

-- What is kept of it: a hash
SELECT hash = sha256(convert_to(:'web_key', 'UTF8')) AS hash FROM otp.api_keys WHERE key_id = :web;
SELECT count(*) FROM otp.api_keys k, (VALUES (:'web_key'), (:'boss_key')) v (key) WHERE position(substr(v.key, 9) IN k::text) > 0;
SELECT count(*) FROM otp.audit_entries a, (VALUES (:'web_key'), (:'boss_key')) v (key)
WHERE position(substr(v.key, 5) IN a::text) > 0 OR position(encode(sha256(convert_to(v.key, 'UTF8')), 'hex') IN a::text) > 0;
SELECT attname FROM pg_attribute WHERE attrelid = 'otp.api_key_list'::regclass AND attname ~ 'hash';

-- Every character comes, at every place: of 200 keys, each of 62 some 103 times
BEGIN;
CREATE TEMP TABLE made AS SELECT k.api_key FROM generate_series(1, 200) n, otp.create_api_key('default', 'n' || n) k;
SELECT count(DISTINCT c) AS characters, min(n) > 50 AS no_rare_one, max(n) < 160 AS no_frequent_one, sum(n) AS all
FROM (SELECT c, count(*) AS n FROM made, regexp_split_to_table(substr(api_key, 5), '') c GROUP BY 1) s;
SELECT count(DISTINCT api_key), count(DISTINCT substr(api_key, 5, 4)) > 190 AS prefixes FROM made;
ROLLBACK;

-- Arguments
SELECT call, t.error('SELECT otp.create_api_key(' || call || ')') FROM unnest(ARRAY['NULL, ''x''', '''nowhere'', ''x''', '''default'', NULL', '''default'', ''''',
	'''default'', repeat(''ü'', 101)', '''default'', repeat(''x'', 500)', 'repeat(''x'', 65), ''x''',
	'''default'', ''x'', now() - interval ''1 s''', '''default'', ''x'', ''infinity''', '''default'', ''x'', ''-infinity''']) call;
SELECT id, t.error('SELECT otp.rotate_api_key(' || id || ')') FROM unnest(ARRAY['NULL', '0', '-1']) id;
SELECT overlap, t.error('SELECT otp.rotate_api_key($1::int, $2::interval)', :'web', overlap) FROM unnest(ARRAY['-1 s', '30 days 1 s', '1 year', '1000000 years']) overlap;
SELECT call, t.error('SELECT otp.revoke_api_key(' || call || ')') FROM unnest(ARRAY['NULL', '0']) call;
BEGIN READ ONLY;
SELECT t.error('SELECT otp.create_api_key(''default'', ''x'')');
ROLLBACK;

-- Whose is it?
SET ROLE regress_otp_key_web;
SELECT workspace, key_id = :web AS web, admin FROM otp.authenticate_api_key(:'web_key');
SELECT workspace, key_id = :boss AS boss, admin FROM otp.authenticate_api_key(:'boss_key');
SELECT workspace, admin FROM otp.authenticate_api_key(:'web_key');
-- a suspended workspace can still verify
RESET ROLE;
UPDATE otp.workspaces SET suspended_at = now() WHERE name = 'other';
SELECT workspace FROM otp.authenticate_api_key(:'boss_key');
-- under its new name
UPDATE otp.workspaces SET name = 'renamed', suspended_at = NULL WHERE name = 'other';
SELECT workspace FROM otp.authenticate_api_key(:'boss_key');
-- in a read-only transaction, in any isolation
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT workspace FROM otp.authenticate_api_key(:'web_key');
COMMIT;
-- the use shows
SELECT * FROM t.keys WHERE name !~ 'ü';
SELECT last_used_at BETWEEN now() - interval '1 min' AND clock_timestamp() AS now FROM otp.api_key_list WHERE key_id = :web;

-- One answer for whatever is no valid key
SELECT what, t.error('SELECT otp.authenticate_api_key($1)', key) FROM (VALUES
	('missing', NULL), ('empty', ''), ('unknown', 'oat_0000000000000000000000000000000X')) v (what, key);
SELECT count(*) AS tried, count(DISTINCT t.error('SELECT otp.authenticate_api_key($1)', key)) AS answers
FROM unnest(ARRAY[NULL, '', 'x', 'oat_', 'oat_0000000000000000000000000000000X', :'web_key' || 'x', :'web_key' || ' ', ' ' || :'web_key', left(:'web_key', 35), upper(:'web_key'),
	'Bearer ' || :'web_key', replace(:'web_key', 'oat_', 'OAT_'), replace(:'web_key', 'oat_', 'oat-'), substr(:'web_key', 5), 'oat_' || repeat('é', 16), 'oat_' || repeat('-', 32),
	encode(sha256(convert_to(:'web_key', 'UTF8')), 'hex'), repeat('x', 1000000), overlay(:'web_key' PLACING '!' FROM 20)]) key;

-- Expired, without anybody's doing
UPDATE otp.api_keys SET expires_at = clock_timestamp() + interval '2 s' WHERE key_id = :third RETURNING expires_at AS soon \gset
SELECT workspace FROM otp.authenticate_api_key(:'third_key');
SELECT pg_sleep_until(:'soon');
SELECT left(t.error('SELECT otp.authenticate_api_key($1)', :'third_key'), 5);
SELECT status FROM otp.api_key_list WHERE key_id = :third;
SELECT t.error('SELECT otp.rotate_api_key($1::int)', :'third') ~ '55000.*has expired' AS refused;

-- Revoked
BEGIN;
SELECT otp.revoke_api_key(:web);
SELECT left(t.error('SELECT otp.authenticate_api_key($1)', :'web_key'), 5);
ROLLBACK;
SELECT workspace FROM otp.authenticate_api_key(:'web_key');
SELECT otp.revoke_api_key(:web);
SELECT revoked_at AS first FROM otp.api_keys WHERE key_id = :web \gset
SELECT otp.revoke_api_key(:web);
SELECT revoked_at = :'first' AS as_before FROM otp.api_keys WHERE key_id = :web;
SELECT left(t.error('SELECT otp.authenticate_api_key($1)', :'web_key'), 5);
SELECT replace(t.error('SELECT otp.rotate_api_key($1::int)', :'web'), 'key ' || :web, 'key N');

-- One that is made and rolled back was never there
BEGIN;
SELECT api_key AS never FROM otp.create_api_key('default', 'never') \gset
SELECT workspace FROM otp.authenticate_api_key(:'never');
ROLLBACK;
SELECT left(t.error('SELECT otp.authenticate_api_key($1)', :'never'), 5);
BEGIN;
SAVEPOINT s;
SELECT api_key AS never FROM otp.create_api_key('default', 'never') \gset
SELECT workspace FROM otp.authenticate_api_key(:'never');
ROLLBACK TO s;
SELECT left(t.error('SELECT otp.authenticate_api_key($1)', :'never'), 5);
COMMIT;

-- Rotated: both are good for a while
SELECT expires_at AS year FROM otp.api_keys WHERE key_id = :boss \gset
SELECT key_id AS boss2, api_key AS boss2_key FROM otp.rotate_api_key(:boss) \gset
SELECT key_id = :boss AS old, workspace, admin FROM otp.authenticate_api_key(:'boss_key');
SELECT key_id = :boss2 AS new, workspace, admin FROM otp.authenticate_api_key(:'boss2_key');
SELECT name, status, expires_at - clock_timestamp() BETWEEN interval '23:59' AND interval '24:00' AS a_day, expires_at = :'year' AS as_before FROM otp.api_key_list WHERE key_id IN (:boss, :boss2) ORDER BY key_id;
SELECT * FROM t.keys WHERE name = 'back office';
-- not twice
SELECT t.error('SELECT otp.rotate_api_key($1::int)', :'boss') ~ ('^55000 .*It was replaced already: rotate key ' || :boss2) AS refused;
-- at once
SELECT key_id AS boss3, api_key AS boss3_key FROM otp.rotate_api_key(:boss2, '0') \gset
SELECT left(t.error('SELECT otp.authenticate_api_key($1)', :'boss2_key'), 5) AS old;
SELECT workspace FROM otp.authenticate_api_key(:'boss3_key');
-- not longer than it would have been good for, nor the new one
UPDATE otp.api_keys SET expires_at = clock_timestamp() + interval '1 h' WHERE key_id = :boss3 RETURNING expires_at AS hour \gset
SELECT key_id AS boss4 FROM otp.rotate_api_key(:boss3, '30 days') \gset
SELECT expires_at = :'hour' AS same FROM otp.api_keys WHERE key_id IN (:boss3, :boss4);
SELECT key_id AS plain FROM otp.create_api_key('default', 'plain') \gset
SELECT key_id AS plain2 FROM otp.rotate_api_key(:plain, NULL) \gset
SELECT key_id = :plain2 AS new, expires_at IS NULL AS never, expires_at - clock_timestamp() BETWEEN interval '23:59' AND interval '24:00' AS a_day FROM otp.api_keys WHERE key_id IN (:plain, :plain2) ORDER BY key_id;

-- A key without its workspace is good for nothing
BEGIN;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
SELECT left(t.error('SELECT otp.authenticate_api_key($1)', :'boss3_key'), 5);
ROLLBACK;

-- Who may what: a tenant sees the keys of its workspace, when they were used, and makes none
SET ROLE regress_otp_keys;
SELECT DISTINCT workspace FROM otp.api_key_list;
SELECT count(*) > 0 AS some, count(*) FILTER (WHERE workspace_id <> 1) AS others FROM otp.recent_key_uses();
SELECT t.error('SELECT FROM otp.' || name) FROM unnest(ARRAY['api_keys', 'api_key_uses']) name;
SELECT call, left(t.error('SELECT otp.' || call), 5) AS error FROM unnest(ARRAY['create_api_key(''default'', ''x'')', 'rotate_api_key(1)', 'revoke_api_key(1)', 'authenticate_api_key(''x'')']) call;
-- and functions that look on see no others
CREATE FUNCTION pg_temp.leak(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE EXCEPTION 'seen: %', $1; END $$;
SELECT t.error('SELECT FROM otp.api_key_list WHERE workspace <> ''default'' AND pg_temp.leak(name)');
DROP FUNCTION pg_temp.leak(text);
RESET ROLE;
-- EXECUTE alone makes no owner
GRANT EXECUTE ON FUNCTION otp.create_api_key(text, text, timestamptz, bool), otp.rotate_api_key(int, interval), otp.revoke_api_key(int) TO regress_otp_keys;
SET ROLE regress_otp_keys;
SELECT call, left(t.error('SELECT otp.' || call), 5) AS error FROM unnest(ARRAY['create_api_key(''default'', ''x'')', 'rotate_api_key(1)', 'revoke_api_key(1)']) call;
RESET ROLE;
-- a front end sees nothing but whose a key is
SET ROLE regress_otp_key_web;
SELECT left(t.error('SELECT FROM otp.' || name), 5) AS error FROM unnest(ARRAY['api_key_list', 'recent_key_uses()', 'api_keys']) name;
RESET ROLE;

-- Nothing raised quotes a key
SELECT count(*) FROM unnest(ARRAY['authenticate_api_key($1)', 'create_api_key(''default'', repeat($1, 20))']) call
WHERE t.error('SELECT otp.' || call, 'oat_secretsecretsecretsecretsecretsec') ~ 'secret';

REVOKE ALL ON FUNCTION otp.create_api_key(text, text, timestamptz, bool), otp.rotate_api_key(int, interval), otp.revoke_api_key(int) FROM regress_otp_keys;
SELECT otp.revoke_workspace('default', 'regress_otp_keys');
DELETE FROM otp.api_keys;
DELETE FROM otp.api_key_uses;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
DROP OWNED BY regress_otp_key_web;
DROP VIEW t.keys;
DROP ROLE regress_otp_keys, regress_otp_key_web, regress_otp_key_owner;
