--
-- The functions of otp_api, as PostgREST calls them
--
\set VERBOSITY terse
SELECT otp.create_workspace('api') IS NOT NULL AS created;
SELECT otp.set_test_number('+15550121001', '123456', workspace => 'api');
SELECT otp.set_test_number('+1555012100' || n, '123456', o, workspace => 'api') FROM unnest(ARRAY['rate_limit_exceeded', 'meta_api_unavailable', 'insufficient_credits', 'sms_fallback', 'pending']) WITH ORDINALITY u (o, m), LATERAL (SELECT m + 1 AS n) x;
SELECT otp.create_workspace('tenant') IS NOT NULL AS created;
SELECT otp.set_test_number('+15550121001', '654321', workspace => 'tenant');
SELECT api_key AS key FROM otp.create_api_key('api', 'web') \gset
SELECT api_key AS other_key, key_id AS other_id FROM otp.create_api_key('tenant', 'web') \gset

-- PostgREST's anonymous role
CREATE ROLE regress_web_anon;
GRANT USAGE ON SCHEMA otp_api TO regress_web_anon;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp_api TO regress_web_anon;
CREATE FUNCTION pg_temp.as_key(key text, more text = '{}') RETURNS text LANGUAGE sql AS
$$ SELECT set_config('request.headers', (more::jsonb || CASE WHEN key IS NULL THEN '{}' ELSE jsonb_build_object('x-api-key', key) END)::text, true) IS NOT NULL $$;
CREATE FUNCTION pg_temp.told(OUT status text, OUT remaining text, OUT reset bool, OUT retry text) LANGUAGE sql AS
$$
	SELECT nullif(current_setting('response.status', true), ''), h->0->>'X-RateLimit-Remaining',
		(h->1->>'X-RateLimit-Reset')::numeric - extract(epoch FROM clock_timestamp()) BETWEEN -2 AND 100000, h->2->>'Retry-After'
	FROM (SELECT nullif(current_setting('response.headers', true), '')::jsonb AS h) x
$$;
-- what differs from run to run
CREATE FUNCTION pg_temp.plain(answer json) RETURNS text LANGUAGE sql AS
$$ SELECT regexp_replace(regexp_replace(answer::text, 'otp_[0-9A-Z]{26}', 'otp_ID', 'g'), '"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"', '"TIME"', 'g') $$;
GRANT regress_web_anon TO CURRENT_USER;
SET ROLE regress_web_anon;

-- Send, wrong, right, used, status
BEGIN;
SELECT pg_temp.as_key(:'key');
SELECT otp_api.otp_send('+15550121001', length => 6, metadata => '{"a": "ä"}', context => 'login') AS answer \gset
SELECT pg_temp.plain(:'answer'), (:'answer'::json->>'expires_at')::timestamptz - clock_timestamp() BETWEEN interval '298 s' AND interval '300 s' AS until;
SELECT * FROM pg_temp.told();
SELECT :'answer'::json->>'otp_id' AS id \gset
SELECT pg_temp.plain(otp_api.otp_verify(:'id', '000000', 'login'));
SELECT status FROM pg_temp.told();
SELECT pg_temp.plain(otp_api.otp_verify(:'id', '123456', 'login', '+15550121002'));
SELECT status FROM pg_temp.told();
SELECT pg_temp.plain(otp_api.otp_status(:'id'));
COMMIT;
BEGIN;
SELECT pg_temp.as_key(:'key');
SELECT pg_temp.plain(otp_api.otp_verify(:'id', '123456', 'login'));
SELECT status FROM pg_temp.told();
SELECT pg_temp.plain(otp_api.otp_verify(:'id', '123456', 'login'));
SELECT status FROM pg_temp.told();
SELECT pg_temp.plain(otp_api.otp_status(:'id'));
COMMIT;

-- An error is a body, and counts what was counted
BEGIN;
SELECT pg_temp.as_key(:'key');
SELECT otp_api.otp_send('+15550121006')->>'otp_id' AS id \gset
SELECT pg_temp.plain(otp_api.otp_verify(:'id', c)) FROM unnest(ARRAY['1', '2', '3', '123456']) c;
SELECT * FROM pg_temp.told();
SELECT pg_temp.plain(otp_api.otp_verify('otp_01HXK7QZRN8V4M2P9D3Y5F6G7H', '1'));
SELECT status FROM pg_temp.told();
SELECT pg_temp.plain(otp_api.otp_status('nonsense'));
SELECT pg_temp.plain(otp_api.otp_cancel('nonsense'));
SELECT pg_temp.plain(otp_api.otp_resend('nonsense'));
SELECT status FROM pg_temp.told();
COMMIT;

-- Each error with its status
CREATE FUNCTION pg_temp.send(VARIADIC args text[]) RETURNS TABLE (status text, retry text, answer text) LANGUAGE plpgsql AS
$$
DECLARE
	body json;
BEGIN
	PERFORM set_config('response.status', '', true);
	EXECUTE format('SELECT otp_api.otp_send(%s)', array_to_string(args, ', ')) INTO body;
	RETURN QUERY SELECT t.status, t.retry, pg_temp.plain(body) FROM pg_temp.told() t;
END
$$;
BEGIN;
SELECT pg_temp.as_key(:'key');
SELECT * FROM pg_temp.send($$'12'$$);
SELECT * FROM pg_temp.send($$'+15550121001'$$, $$template => 'nope'$$);
SELECT * FROM pg_temp.send($$'+15550121001'$$, $$length => 5$$);
SELECT * FROM pg_temp.send($$'+15550121001'$$, $$expires_in => 1000$$);
SELECT * FROM pg_temp.send($$'+15550121001'$$, $$channel => 'pigeon'$$);
SELECT * FROM pg_temp.send($$'+15550121001'$$, $$metadata => '[]'$$);
SELECT * FROM pg_temp.send($$'+15550121002'$$);
SELECT * FROM pg_temp.send($$'+15550121003'$$);
SELECT * FROM pg_temp.send($$'+15550121004'$$);
SELECT * FROM pg_temp.send($$'+15550121005'$$, $$fallback_sms => true$$);
SELECT * FROM pg_temp.send($$'+15550129999'$$);
SELECT * FROM pg_temp.send($$'+15550121001'$$, $$idempotency_key => 'k'$$);
SELECT * FROM pg_temp.send($$'+15550121001'$$, $$idempotency_key => 'k'$$, $$length => 4$$);
SELECT pg_temp.as_key(NULL);
SELECT * FROM pg_temp.send($$'+15550121001'$$);
SELECT pg_temp.as_key('oat_00000000000000000000000000000000');
SELECT * FROM pg_temp.send($$'+15550121001'$$);
SELECT pg_temp.as_key(NULL, '{"authorization": "Bearer ' || :'key' || '"}');
SELECT status, answer FROM pg_temp.send($$'+15550121001'$$);
ROLLBACK;

-- Another workspace's key: its number, its codes, nobody else's
BEGIN;
SELECT pg_temp.as_key(:'other_key');
SELECT otp_api.otp_send('+15550121001')->>'otp_id' AS other \gset
SELECT otp_api.otp_verify(:'other', '654321')->>'valid' AS valid;
SELECT pg_temp.plain(otp_api.otp_status(:'id'));
SELECT pg_temp.plain(otp_api.otp_verify(:'id', '123456'));
SELECT pg_temp.plain(otp_api.otp_resend(:'id'));
SELECT pg_temp.plain(otp_api.otp_cancel(:'id'));
SELECT json_array_length(otp_api.otp_list()->'data') AS mine;
SET LOCAL otp.workspace = 'api';
SELECT otp_api.otp_status(:'other')->>'status' AS status, otp_api.otp_status(:'id')->>'code' AS code;
SELECT otp_api.otp_list()->'data'->0->>'otp_id' = :'other' AS mine;
COMMIT;
RESET ROLE;

-- A workspace that is suspended, a key that is revoked
BEGIN;
SELECT otp.suspend_workspace('tenant');
SELECT pg_temp.as_key(:'other_key');
SELECT * FROM pg_temp.send($$'+15550121001'$$);
SELECT otp.resume_workspace('tenant');
SELECT otp.revoke_api_key(:other_id);
SELECT * FROM pg_temp.send($$'+15550121001'$$);
ROLLBACK;

-- Pages
SET ROLE regress_web_anon;
BEGIN;
SELECT pg_temp.as_key(:'other_key');
SELECT count(otp_api.otp_send('+15550121001', context => n::text)) FROM generate_series(1, 6) n;
CREATE TEMP TABLE pages (n serial, page json) ON COMMIT DROP;
DO $$
DECLARE
	page json := otp_api.otp_list("limit" => 3);
BEGIN
	LOOP
		INSERT INTO pages (page) VALUES (page);
		EXIT WHEN NOT (page->>'has_more')::bool;
		page := otp_api.otp_list("limit" => 3, after => page->>'next');
	END LOOP;
END $$;
SELECT n, json_array_length(page->'data') AS rows, page->>'has_more' AS more, page->>'next' = page->'data'->-1->>'otp_id' AS next FROM pages;
SELECT count(*), count(DISTINCT d->>'otp_id'), bool_and(coalesce(d->>'otp_id' < before, true)) AS newest_first
FROM (SELECT d, lag(d->>'otp_id') OVER (ORDER BY n, o) AS before FROM pages, json_array_elements(page->'data') WITH ORDINALITY e (d, o)) x;
SELECT json_array_length(otp_api.otp_list(status => 'verified')->'data') AS verified, json_array_length(otp_api.otp_list(status => 'failed')->'data') AS failed,
	json_array_length(otp_api.otp_list(phone => '+15550121001')->'data') AS phone, json_array_length(otp_api.otp_list(phone => '+15550121002')->'data') AS other;
SELECT otp_api.otp_list(status => 'lost')->>'code' AS code, otp_api.otp_list("limit" => 0)->>'code' AS code, otp_api.otp_list("limit" => 101)->>'code' AS code,
	otp_api.otp_list(after => 'x')->>'code' AS code, otp_api.otp_list(phone => '1')->>'code' AS code;
SELECT json_array_length(otp_api.rate_limit_status()) AS limits, otp_api.rate_limit_status()->0->>'limit' AS first;
ROLLBACK;

-- Nothing is won by a rollback that the client asks for
BEGIN;
SELECT pg_temp.as_key(:'key', '{"prefer": "count=exact, tx=rollback"}');
SELECT pg_temp.plain(otp_api.otp_verify(:'id', '123456'));
SELECT * FROM pg_temp.told();
SELECT otp_api.otp_status(:'id')->>'status' AS status;
ROLLBACK;
-- and wrong guesses count in one that comes all the same
BEGIN;
SELECT pg_temp.as_key(:'key');
SELECT otp_api.otp_send('+15550121001', context => 'rolled')->>'otp_id' AS rolled \gset
COMMIT;
BEGIN;
SELECT pg_temp.as_key(:'key');
SELECT count(otp_api.otp_verify(:'rolled', '0', 'rolled')) FROM generate_series(1, 3);
ROLLBACK;
BEGIN;
SELECT pg_temp.as_key(:'key');
SELECT otp_api.otp_verify(:'rolled', '123456', 'rolled')->>'code' AS code;
COMMIT;

-- Read-only: what reads, reads; what writes says so
BEGIN TRANSACTION READ ONLY;
SELECT pg_temp.as_key(:'key');
SELECT otp_api.otp_status(:'id')->>'status' AS status;
SELECT pg_temp.plain(otp_api.otp_verify(:'id', '1'));
SELECT status, retry FROM pg_temp.told();
ROLLBACK;
RESET ROLE;

-- A role with a grant needs no key; one without has nothing to say
CREATE ROLE regress_web_user;
GRANT USAGE ON SCHEMA otp_api TO regress_web_user;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp_api TO regress_web_user;
SELECT otp.grant_workspace('tenant', 'regress_web_user');
GRANT regress_web_user TO CURRENT_USER;
SET ROLE regress_web_user;
BEGIN;
SELECT pg_temp.as_key(NULL);
SELECT otp_api.otp_send('+15550121001')->>'success' AS success, otp_api.otp_status(:'other')->>'status' AS mine, otp_api.otp_status(:'id')->>'code' AS foreign;
-- with a key it is the key's
SELECT pg_temp.as_key(:'key');
SELECT otp_api.otp_status(:'other')->>'code' AS foreign, otp_api.otp_status(:'id')->>'status' AS mine;
ROLLBACK;
RESET ROLE;

-- Code that is called from within has nothing of the key
CREATE ROLE regress_web_policy;
GRANT regress_web_policy TO CURRENT_USER;
CREATE SCHEMA regress_policy AUTHORIZATION regress_web_policy;
GRANT USAGE ON SCHEMA otp, otp_api TO regress_web_policy;
GRANT USAGE ON TYPE otp.send_request TO regress_web_policy;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp_api TO regress_web_policy;
GRANT EXECUTE ON FUNCTION otp_status(text), otp.my_workspaces() TO regress_web_policy;
SET ROLE regress_web_policy;
CREATE TABLE regress_policy.seen (what text);
CREATE FUNCTION regress_policy.decide(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_policy.seen VALUES (current_user || ' ' || otp.my_workspaces()::text);
	BEGIN
		INSERT INTO regress_policy.seen SELECT count(*) || ' rows' FROM otp_status(current_setting('regress.id'));
	EXCEPTION WHEN OTHERS THEN
		INSERT INTO regress_policy.seen VALUES (SQLSTATE);
	END;
	PERFORM set_config('request.headers', '{}', true);
	INSERT INTO regress_policy.seen VALUES (otp_api.otp_status(current_setting('regress.id'))->>'code');
	RETURN 'allow';
END $$;
RESET ROLE;
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'EAAregress', account => 'api', workspace => 'tenant') IS NOT NULL AS configured;
UPDATE otp.workspaces SET policy_function = 'regress_policy.decide' WHERE name = 'tenant';
SELECT set_config('regress.id', :'other', false) IS NOT NULL AS set;
SET ROLE regress_web_anon;
BEGIN;
SELECT pg_temp.as_key(:'other_key');
SELECT otp_api.otp_send('+15550128888')->>'success' AS success;
RESET ROLE;
SELECT * FROM regress_policy.seen;
ROLLBACK;
RESET ROLE;

-- Who has no EXECUTE has nothing
CREATE ROLE regress_web_nobody;
GRANT regress_web_nobody TO CURRENT_USER;
SET ROLE regress_web_nobody;
SELECT otp_api.otp_status('x');
RESET ROLE;

-- What the table of the functions says is what the install script says
SELECT p.proname, p.provolatile AS volatile, pg_get_function_arguments(p.oid) AS arguments
FROM pg_proc p WHERE p.pronamespace = 'otp_api'::regnamespace AND p.prosrc = 'otp_api_call' ORDER BY 1;

SELECT otp.delete_workspace(w, cascade => true) FROM unnest(ARRAY['api', 'tenant']) w;
DELETE FROM otp.provider_accounts WHERE name = 'api';
DROP SCHEMA regress_policy CASCADE;
REVOKE ALL ON SCHEMA otp, otp_api FROM regress_web_policy;
REVOKE ALL ON TYPE otp.send_request FROM regress_web_policy;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA otp, otp_api, public FROM regress_web_policy;
REVOKE ALL ON SCHEMA otp_api FROM regress_web_anon, regress_web_user;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA otp_api FROM regress_web_anon, regress_web_user;
DROP ROLE regress_web_anon, regress_web_user, regress_web_policy, regress_web_nobody;
