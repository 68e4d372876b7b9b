-- Protects: promise 7 between two tenants that have everything. Each view, each
-- function that a tenant may call and each id, tried by the other one: nothing
-- of it is seen, spent, verified, guessed or changed, and no function in a
-- condition is shown what a view's filter has not let through.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_alpha;
CREATE ROLE regress_otp_beta;
CREATE ROLE regress_otp_both IN ROLE regress_otp_alpha, regress_otp_beta;
-- Ids that nobody had before: the ledger and the audit outlive their workspaces
SELECT setval('otp.workspaces_workspace_id_seq', 10000) IS NOT NULL AS set;
SELECT otp.create_workspace('alpha', 'Alpha') > 1 AS made;
SELECT otp.create_workspace('beta', 'Beta') > 1 AS made;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1', workspace => 'alpha', account => 'shared');
SELECT otp.use_provider('beta', 'shared');
SELECT otp.grant_workspace('alpha', 'regress_otp_alpha');
SELECT otp.grant_workspace('beta', 'regress_otp_beta');
UPDATE otp.workspaces SET credits_metered = true, credits_low = 3, guard_mode = 'record', resend_cooldown = NULL WHERE name IN ('alpha', 'beta');
SELECT otp.add_credits('alpha', 1000, 'alpha-reference');
SELECT otp.add_credits('beta', 5);
INSERT INTO otp.key_limits (workspace_id, prefix, sends_per_hour) SELECT workspace_id, 'ip', 2 FROM otp.workspaces WHERE name IN ('alpha', 'beta');
SELECT otp.set_test_number('+15554840001', '111111', workspace => 'alpha');
SELECT otp.set_test_number('+15554840002', '222222', 'pending', workspace => 'beta');

-- What alpha has: codes, an endpoint, a key, an audit
SELECT otp_id AS a_test FROM otp_send('+15554840001', context => 'secret-alpha', metadata => '{"who": "alpha"}', workspace => 'alpha') \gset
SELECT otp_id AS a_real FROM otp_send('+15554840003', limit_keys => ARRAY['ip:203.0.113.7'], idempotency_key => 'once', workspace => 'alpha') \gset
SELECT otp_id AS b_test FROM otp_send('+15554840002', workspace => 'beta') \gset
SELECT endpoint_id AS a_endpoint FROM otp.create_webhook_endpoint('https://alpha.example/hook', description => 'of alpha', workspace => 'alpha') \gset
SELECT key_id AS a_key FROM otp.create_api_key('alpha', 'key of alpha') \gset
INSERT INTO otp.webhook_attempts (workspace_id, endpoint_id, webhook_id, slot, attempt, number, event, verification_id, occurred_at, attempted_at, delivered)
SELECT v.workspace_id, :a_endpoint, v.id, v.slot, 1, 1, 'otp.sent', v.id, now(), now(), false FROM otp.verifications v WHERE v.id = otp.parse_id(:'a_test');
INSERT INTO otp.usage_days SELECT workspace_id, now()::date, 'sms', 'US', '', '', 1, 1, 1, 1, 1, 1 FROM otp.workspaces WHERE name = 'alpha';
INSERT INTO otp.stats_hours SELECT workspace_id, now(), 'sms', 'of alpha', 1, 1, 1, 1, 1, 1, '{}', '{}', '{}' FROM otp.workspaces WHERE name = 'alpha';
INSERT INTO otp.guard_log SELECT workspace_id, date_trunc('hour', now()), 'US', 'hour', 1, 0, now(), now(), 4, 3 FROM otp.workspaces WHERE name = 'alpha';

-- Every view that a tenant may read has rows of alpha for alpha, none of alpha for beta, and those of both for who acts for both
CREATE FUNCTION t.rows_of(tenant text) RETURNS TABLE (view text, rows int8, of_alpha int8) LANGUAGE plpgsql AS $$
BEGIN
	FOR view IN
		SELECT c.oid::regclass::text FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
		JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'otp'
		WHERE c.relkind = 'v' AND has_table_privilege('regress_otp_alpha', c.oid, 'SELECT') ORDER BY c.relname COLLATE "C"
	LOOP
		EXECUTE format('SELECT count(*), count(*) FILTER (WHERE v::text LIKE ''%%alpha%%'') FROM %s v', view) INTO rows, of_alpha;
		RETURN NEXT;
	END LOOP;
END $$;
GRANT USAGE ON SCHEMA t TO PUBLIC;
SET ROLE regress_otp_alpha;
SELECT view, of_alpha > 0 AND rows = of_alpha AS own_alone FROM t.rows_of('alpha');
RESET ROLE;
SET ROLE regress_otp_beta;
SELECT view, of_alpha FROM t.rows_of('beta') WHERE of_alpha > 0;
RESET ROLE;
SET ROLE regress_otp_both;
SELECT count(*) AS views, bool_and(of_alpha > 0) AS all_of_alpha FROM t.rows_of('both');
RESET ROLE;

-- A function that costs nothing is asked before the filter, if it is let: in each view it must see the own rows alone
CREATE SCHEMA leak AUTHORIZATION regress_otp_beta;
CREATE TABLE leak.seen (what text);
GRANT ALL ON leak.seen TO regress_otp_beta;
SET ROLE regress_otp_beta;
CREATE FUNCTION leak.tell(anyelement) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN
	INSERT INTO leak.seen VALUES ($1::text);
	RETURN true;
END $$;
CREATE FUNCTION leak.compare(text, text) RETURNS bool LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN
	INSERT INTO leak.seen VALUES ($1);
	RETURN true;
END $$;
CREATE OPERATOR leak.= (FUNCTION = leak.compare, LEFTARG = text, RIGHTARG = text, RESTRICT = eqsel);
DO $$
DECLARE
	v record; c record;
BEGIN
	FOR v IN SELECT * FROM t.rows_of('beta') LOOP
		FOR c IN SELECT attname, atttypid::regtype AS type FROM pg_attribute WHERE attrelid = v.view::regclass AND attnum > 0 LOOP
			EXECUTE format('SELECT count(*) FROM %s v WHERE leak.tell(v.%I)', v.view, c.attname);
			EXECUTE format('SELECT count(*) FROM %s v WHERE v.%I::text OPERATOR(leak.=) ''x''', v.view, c.attname);
		END LOOP;
		EXECUTE format('SELECT count(*) FROM %s v WHERE leak.tell(v::text) OFFSET 0', v.view);
	END LOOP;
END $$;
RESET ROLE;
SELECT count(*) > 0 AS asked, count(*) FILTER (WHERE what LIKE '%alpha%' OR what LIKE '%4840001%' OR what LIKE '%4840003%') AS leaked FROM leak.seen;

-- The verbs, with ids of alpha
SET ROLE regress_otp_beta;
SELECT v.valid, v.phone, v.verified_at, v.channel, v.error, v.attempts_remaining, v.retry_after FROM unnest(ARRAY[:'a_test', :'a_real']) id, otp_verify(id, '111111', 'secret-alpha') v;
SELECT count(*), count(s.status) FROM unnest(ARRAY[:'a_test', :'a_real']) id LEFT JOIN LATERAL otp_status(id) s ON true;
SELECT otp_cancel(id) FROM unnest(ARRAY[:'a_test', :'a_real']) id;
SELECT t.error('SELECT otp_resend($1)', id) FROM unnest(ARRAY[:'a_test', :'a_real']) id;
SELECT count(*) FROM otp_wait(:'a_real', '0 s');
SELECT t.error('SELECT otp_send(''+15554840001'', workspace => $1)', w) FROM unnest(ARRAY['alpha', 'default', 'nowhere']) w;
SET otp.workspace = 'alpha';
SELECT t.error('SELECT otp_send(''+15554840001'')');
SELECT t.error('SELECT * FROM otp.rate_limit_status(''+15554840003'', ARRAY[''ip:203.0.113.7''])');
RESET otp.workspace;
-- What alpha has sent to a phone, for a key, or under a key for repeats, is nothing to beta
SELECT name, max, used, remaining FROM otp.rate_limit_status('+15554840003', ARRAY['ip:203.0.113.7']) WHERE name NOT LIKE 'fail%' AND name <> 'sends_per_second' ORDER BY 1;
SELECT otp_id <> :'a_real' AS another FROM otp_send('+15554840003', limit_keys => ARRAY['ip:203.0.113.7'], idempotency_key => 'once');
-- nor is alpha's test number a test number here
SELECT t.error('SELECT otp_send(''+15554840001'')');
SELECT otp_id AS b_real FROM otp_send('+15554840001', context => '2') \gset
SELECT status FROM otp_status(:'b_real');

-- Endpoints, phones, numbers of all kinds
SELECT replace(f, '%s', 'N') AS call, regexp_replace(t.error(format(f, :a_endpoint)), 'endpoint \d+', 'endpoint N') AS error FROM unnest(ARRAY['SELECT otp.pause_webhook_endpoint(%s)', 'SELECT otp.resume_webhook_endpoint(%s)', 'SELECT otp.rotate_webhook_secret(%s)',
	'SELECT otp.delete_webhook_endpoint(%s)', 'SELECT otp.send_test_webhook(%s)', 'SELECT otp.replay_webhooks(%s, now() - interval ''1 d'')']) f;
SELECT t.error('SELECT otp.create_webhook_endpoint(''https://evil.example/'', workspace => ''alpha'')');
SELECT t.error('SELECT otp.forget_phone(''+15554840001'', ''alpha'')');
SELECT verifications, test_numbers FROM otp.forget_phone('+15554840003');
-- What is the owner's alone
SELECT left(t.error(s), 5) AS error, regexp_replace(s, '\d+', 'N') AS statement FROM unnest(ARRAY['SELECT otp.create_api_key(''beta'', ''x'')', format('SELECT otp.revoke_api_key(%s)', :a_key), format('SELECT otp.rotate_api_key(%s)', :a_key),
	'SELECT otp.authenticate_api_key(''oat_'')', 'SELECT otp.add_credits(''beta'', 1000000)', 'SELECT otp.create_workspace(''gamma'')', 'SELECT otp.rename_workspace(''beta'', ''alpha2'')',
	'SELECT otp.suspend_workspace(''alpha'')', 'SELECT otp.resume_workspace(''beta'')', 'SELECT otp.delete_workspace(''alpha'', true)', 'SELECT otp.use_provider(''beta'', ''shared'')',
	'SELECT otp.unlock_phone(''+15554840003'')', 'SELECT otp.set_test_number(''+15554840003'', ''123456'', workspace => ''beta'')', 'UPDATE otp.workspaces SET credits_metered = false',
	'UPDATE otp.credits SET amount = 1000000', 'INSERT INTO otp.key_limits VALUES (1, ''ip'')', 'DELETE FROM otp.audit_entries', 'DELETE FROM otp.credit_ledger']) s;
RESET ROLE;

-- Alpha has lost nothing: not an attempt, not a credit, not an endpoint
SELECT attempts, canceled_at, resends, verified_at FROM otp.verifications WHERE id IN (otp.parse_id(:'a_test'), otp.parse_id(:'a_real')) ORDER BY id;
SELECT workspace, balance, spent FROM otp.credit_balances WHERE workspace IN ('alpha', 'beta') ORDER BY 1;
SELECT status, url FROM otp.webhook_endpoint_list WHERE endpoint_id = :a_endpoint;
SELECT count(*) FROM otp.verifications WHERE phone = '+15554840003' AND workspace_id = (SELECT workspace_id FROM otp.workspaces WHERE name = 'alpha');

-- Beta spends its own to the end, and no further
SET ROLE regress_otp_beta;
SELECT t.error('SELECT otp_send($1)', '+1555484010' || n) AS error, count(*) FROM generate_series(1, 6) n GROUP BY 1 ORDER BY 1;
RESET ROLE;
SELECT workspace, balance, spent FROM otp.credit_balances WHERE workspace IN ('alpha', 'beta') ORDER BY 1;

DROP SCHEMA leak CASCADE;
DROP FUNCTION t.rows_of;
SELECT otp.delete_workspace('alpha', true), otp.delete_workspace('beta', true);
DROP OWNED BY regress_otp_alpha, regress_otp_beta, regress_otp_both;
DROP ROLE regress_otp_both, regress_otp_alpha, regress_otp_beta;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.webhook_attempts;
DELETE FROM otp.send_keys;
DELETE FROM otp.usage_days;
DELETE FROM otp.stats_hours;
DELETE FROM otp.forgotten_phones;
DELETE FROM otp.guard_log;
DELETE FROM otp.provider_accounts;
