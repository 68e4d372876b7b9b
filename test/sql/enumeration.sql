-- Protects: nobody learns what is not his. Whatever a tenant's role may call
-- answers the same for an id, an endpoint, a workspace or a phone that there
-- is not and for one that is another tenant's: in the answer, in the error,
-- its detail and its hint, and in the work that it takes, counted as scans
-- and rows of our tables.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_app;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other');
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1', workspace => w) FROM unnest(ARRAY['default', 'other']) w;
UPDATE otp.workspaces SET sends_per_second = NULL, sends_per_phone_hour = 100, resend_cooldown = NULL;
SELECT otp.grant_workspace('default', 'regress_otp_app');
SELECT otp.create_webhook_endpoint('https://example.com/mine', workspace => 'default') IS NOT NULL AS mine;
SELECT endpoint_id AS foreign_endpoint FROM otp.create_webhook_endpoint('https://example.com/foreign', workspace => 'other') \gset

-- The other tenant's verifications, in all states; for each an id that there is not, in the same leaf
CREATE TABLE t.ids (state text, id text, unknown text);
DO $$
DECLARE
	sent text; s text;
BEGIN
	FOREACH s IN ARRAY ARRAY['pending', 'verified', 'canceled', 'expired', 'used up', 'failed', 'delivered', 'shadowed', 'real'] LOOP
		IF s IN ('real', 'shadowed') THEN
			SELECT otp_id INTO sent FROM otp_send('+15550130002', workspace => 'other');
			UPDATE otp.verifications SET created_xid = 3, shadowed = s = 'shadowed' WHERE id = otp.parse_id(sent);
		ELSE
			PERFORM otp.set_test_number('+15550130001', '123456', CASE WHEN s IN ('failed', 'delivered') THEN s ELSE 'pending' END, workspace => 'other');
			SELECT otp_id INTO sent FROM otp_send('+15550130001', context => 'login', workspace => 'other');
			CASE s WHEN 'verified' THEN PERFORM otp_verify(sent, '123456', 'login'); WHEN 'canceled' THEN PERFORM otp_cancel(sent);
				WHEN 'expired' THEN PERFORM otp.simulate(sent, 'expired'); WHEN 'used up' THEN PERFORM otp_verify(sent, '000000', 'login') FROM generate_series(1, 3); ELSE NULL; END CASE;
		END IF;
		INSERT INTO t.ids VALUES (s, sent, left(sent, -1) || CASE right(sent, 1) WHEN '7' THEN '5' ELSE '7' END);
	END LOOP;
END $$;
SELECT i.state, s.status FROM t.ids i, otp_status(i.id) s ORDER BY i.ctid;
GRANT SELECT ON t.ids TO regress_otp_app;

-- What our tables have had to do in this transaction
CREATE FUNCTION t.work() RETURNS bigint[] LANGUAGE sql AS $$
	SELECT ARRAY[sum(seq_scan), sum(seq_tup_read), sum(idx_scan), sum(idx_tup_fetch), sum(n_tup_ins + n_tup_upd + n_tup_del)]::bigint[] FROM pg_stat_xact_user_tables WHERE schemaname = 'otp'
$$;
-- Run a query: all that it answers, without what the caller has put in; and the work
CREATE FUNCTION t.run(query text, arg text, OUT answer text, OUT work bigint[]) LANGUAGE plpgsql AS $$
DECLARE
	state text; message text; detail text; hint text; before bigint[] := t.work();
BEGIN
	BEGIN
		EXECUTE 'SELECT coalesce(json_agg(q)::text, ''no row'') FROM (' || query || ') q' INTO answer USING arg;
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		answer := concat_ws(E'\n', state || ' ' || message, nullif(detail, ''), nullif(hint, ''));
	END;
	answer := regexp_replace(answer, E'\\m' || regexp_replace(arg, '[^a-zA-Z0-9]', E'\\\\\\&', 'g') || E'\\M', '$1', 'g');
	SELECT array_agg(a - b ORDER BY n) INTO work FROM unnest(t.work(), before) WITH ORDINALITY u (a, b, n);
END $$;
-- The same for two arguments, when all that is kept has been read
CREATE FUNCTION t.compare(query text, theirs text, nobodys text, OUT answer text, OUT same_answer bool, OUT same_work bool, OUT works text) LANGUAGE plpgsql AS $$
DECLARE
	a record; b record;
BEGIN
	FOR i IN 1 .. 3 LOOP
		PERFORM t.run(query, theirs), t.run(query, nobodys);
	END LOOP;
	a := t.run(query, theirs);
	b := t.run(query, nobodys);
	answer := b.answer;
	same_answer := a.answer = b.answer;
	same_work := a.work = b.work;
	works := CASE WHEN NOT same_work THEN concat(a.work, ' ', b.work) END;
END $$;

--
-- Ids of verifications
--
SET ROLE regress_otp_app;
SELECT q.query, c.answer, count(*) AS states, bool_and(c.same_answer) AS same_answer, bool_and(c.same_work) AS same_work, min(c.works) AS works
FROM unnest(ARRAY['SELECT * FROM otp_verify($1, ''123456'')', 'SELECT * FROM otp_verify($1, ''123456'', ''login'')', 'SELECT * FROM otp_verify($1, ''000000'', phone => ''+15550130001'')',
	'SELECT * FROM otp_verify($1, '''')', 'SELECT * FROM otp_status($1)', 'SELECT * FROM otp_resend($1)', 'SELECT * FROM otp_resend($1, ''sms'')', 'SELECT otp_cancel($1)', 'SELECT * FROM otp_wait($1, ''0 s'')',
	'SELECT * FROM otp.deliveries WHERE otp_id = $1', 'SELECT * FROM otp.webhook_deliveries WHERE otp_id = $1']) WITH ORDINALITY q (query, n),
	t.ids i, t.compare(q.query, i.id, i.unknown) c
GROUP BY q.n, q.query, c.answer ORDER BY q.n, c.answer;
-- One that is none, beside
SELECT query, c.answer, c.same_answer FROM unnest(ARRAY['SELECT * FROM otp_verify($1, ''123456'')', 'SELECT * FROM otp_status($1)', 'SELECT * FROM otp_resend($1)', 'SELECT otp_cancel($1)', 'SELECT * FROM otp_wait($1, ''0 s'')']) query,
	(SELECT id FROM t.ids LIMIT 1) i, t.compare(query, i.id, 'nonsense') c;
-- No guess was counted
RESET ROLE;
SELECT i.state, s.status, s.attempts FROM t.ids i, otp_status(i.id) s ORDER BY i.ctid;

--
-- Webhook endpoints
--
SET ROLE regress_otp_app;
SELECT query, c.* FROM unnest(ARRAY['SELECT otp.pause_webhook_endpoint($1::int)', 'SELECT otp.resume_webhook_endpoint($1::int)', 'SELECT otp.rotate_webhook_secret($1::int)', 'SELECT otp.delete_webhook_endpoint($1::int)',
	'SELECT otp.send_test_webhook($1::int)', 'SELECT otp.send_test_webhook($1::int, ''otp.nothing'')', 'SELECT otp.replay_webhooks($1::int)', 'SELECT * FROM otp.webhook_endpoint_list WHERE endpoint_id = $1::int',
	'SELECT * FROM otp.webhook_deliveries WHERE endpoint_id = $1::int']) query,
	t.compare(query, :'foreign_endpoint', '99') c;

--
-- Workspaces
--
SELECT query, c.* FROM unnest(ARRAY['SELECT * FROM otp_send(''+15550130001'', workspace => $1)', 'SELECT * FROM otp_send(''+15550130099'', workspace => $1)', 'SELECT * FROM otp.create_webhook_endpoint(''https://example.com/'', workspace => $1)',
	'SELECT * FROM otp.create_webhook_endpoint(''nonsense'', workspace => $1)', 'SELECT * FROM otp.forget_phone(''+15550130001'', $1)', 'SELECT * FROM otp.deliveries WHERE workspace = $1', 'SELECT * FROM otp.usage WHERE workspace = $1',
	'SELECT * FROM otp.delivery_stats WHERE workspace = $1', 'SELECT * FROM otp.webhook_endpoint_list WHERE workspace = $1', 'SELECT * FROM otp.webhook_deliveries WHERE workspace = $1',
	'SELECT * FROM otp.guard_decisions WHERE workspace = $1', 'SELECT * FROM otp.guard_status($1)']) query,
	t.compare(query, 'other', 'nowhere') c;
SET otp.workspace = 'other';
SELECT t.error('SELECT otp_send(''+15550130001'')') AS other \gset
SET otp.workspace = 'nowhere';
SELECT t.error('SELECT otp_send(''+15550130001'')') AS nowhere \gset
RESET otp.workspace;
SELECT replace(:'other', 'other', 'nowhere') = :'nowhere' AS same;
-- In a session in which somebody else acts for it, too
RESET ROLE;
SELECT success FROM otp_send('+15550130003', workspace => 'other');
SET ROLE regress_otp_app;
SELECT c.same_answer, c.same_work, c.works FROM t.compare('SELECT * FROM otp_send(''+15550130001'', workspace => $1)', 'other', 'nowhere') c;

--
-- Phones that only the other tenant has sent to, failed for, or made test numbers
--
SELECT query, c.same_answer, c.same_work, c.works FROM unnest(ARRAY['SELECT success, channel, expires_in, message_id FROM otp_send($1)', 'SELECT * FROM otp.forget_phone($1)', 'SELECT * FROM otp.forget_phone($1, ''default'')',
	'SELECT * FROM otp.deliveries WHERE phone = $1']) query,
	(VALUES ('+15550130001', '+15550130091'), ('+15550130002', '+15550130092')) p (theirs, nobodys), t.compare(query, theirs, nobodys) c;
RESET ROLE;
SELECT phone, count(*) FROM otp.verifications WHERE workspace_id = 2 GROUP BY 1 ORDER BY 1;

DROP FUNCTION t.compare, t.run, t.work;
DROP TABLE t.ids;
DELETE FROM otp.webhook_endpoints;
ALTER SEQUENCE otp.webhook_endpoints_endpoint_id_seq RESTART;
SELECT otp.revoke_workspace('default', 'regress_otp_app');
DROP OWNED BY regress_otp_app;
DROP ROLE regress_otp_app;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
DELETE FROM otp.templates WHERE workspace_id = 2;
DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.phone_failures;
DELETE FROM otp.forgotten_phones;
UPDATE otp.workspaces SET whatsapp_account = NULL, sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s';
DELETE FROM otp.provider_accounts;
