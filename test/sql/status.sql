-- Protects: otp_status and otp_wait. Every column in every state, what the
-- last message says, use inside of queries, and when otp_wait returns.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET sends_per_second = NULL, resend_cooldown = NULL;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.set_test_number('+15550106001', '123456');
SELECT otp.set_test_number('+15550106002', '123456', 'pending');
SELECT otp.set_test_number('+15550106003', '123456', 'failed');
SELECT otp.set_test_number('+15550106004', '123456', 'sms_fallback');
-- All columns, moments as "how they stand to others"
CREATE FUNCTION t.status(id text) RETURNS TABLE (status text, phone text, channel text, life interval, verified bool, attempts int, fallback_used bool,
	template text, language text, message_id text, sent bool, delivered bool, ended text, attempts_remaining int, error text, error_detail text, metadata jsonb)
LANGUAGE sql AS $$
	SELECT s.status, s.phone, s.channel, s.expires_at - s.created_at, s.verified_at IS NOT NULL, s.attempts, s.fallback_used, s.template, s.language, s.message_id,
		s.sent_at IS NOT NULL, s.delivered_at IS NOT NULL,
		CASE WHEN s.ended_at IS NULL THEN '-' WHEN s.ended_at = s.verified_at THEN 'verified_at' WHEN s.ended_at = s.expires_at THEN 'expires_at'
			WHEN s.ended_at BETWEEN clock_timestamp() - interval '5 s' AND clock_timestamp() THEN 'now' ELSE s.ended_at::text END,
		s.attempts_remaining, s.error, s.error_detail, s.metadata
	FROM otp_status(id) s WHERE s.otp_id = id
$$;
\x on

-- Of test numbers
SELECT otp_id AS id FROM otp_send('+15550106001', metadata => '{"user": 4711}', language => 'en_US', context => 'x') \gset
SELECT * FROM t.status(:'id');
SELECT otp_id AS id FROM otp_send('+15550106002', expires_in => 60, channel => 'sms') \gset
SELECT * FROM t.status(:'id');
SELECT otp_id AS id FROM otp_send('+15550106003') \gset
SELECT * FROM t.status(:'id');
SELECT otp_id AS id FROM otp_send('+15550106004') \gset
SELECT * FROM t.status(:'id');

-- Of a real phone: queued
SELECT otp_id AS id FROM otp_send('+15550106010') \gset
SELECT * FROM t.status(:'id');
\x off

-- What messages make of it
CREATE FUNCTION pg_temp.message(id text, number int, assignment text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, channel, created_at)
	SELECT v.workspace_id, v.id, v.slot, $2, 1, CASE WHEN $2 % 2 = 0 THEN 'sms' ELSE 'whatsapp' END, clock_timestamp() FROM otp.verifications v WHERE v.id = otp.parse_id($1);
	EXECUTE format('UPDATE otp.messages SET %s WHERE verification_id = otp.parse_id(%L) AND number = %s', $3, $1, $2);
END $$;
CREATE VIEW pg_temp.short AS SELECT v.phone AS number, s.status, s.channel, s.fallback_used, s.message_id, s.sent_at IS NOT NULL AS sent, s.delivered_at IS NOT NULL AS delivered,
	s.ended_at IS NOT NULL AS ended, s.error, s.error_detail
FROM otp.verifications v, otp_status(otp.format_id(v.id)) s;
-- tried, not accepted
SELECT pg_temp.message(:'id', 1, 'http_status = 503, detail = ''overloaded''');
SELECT * FROM short WHERE number = '+15550106010';
-- accepted
UPDATE otp.messages SET sent_at = clock_timestamp(), message_id = 'wamid.1' WHERE verification_id = otp.parse_id(:'id');
SELECT * FROM short WHERE number = '+15550106010';
-- refused later, with a fallback that is accepted, then delivered
UPDATE otp.messages SET failed_at = clock_timestamp(), provider_code = 131026, detail = 'undeliverable' WHERE verification_id = otp.parse_id(:'id');
SELECT * FROM short WHERE number = '+15550106010';
SELECT pg_temp.message(:'id', 2, 'sent_at = clock_timestamp(), message_id = ''SM2''');
SELECT * FROM short WHERE number = '+15550106010';
UPDATE otp.messages SET delivered_at = clock_timestamp() WHERE verification_id = otp.parse_id(:'id') AND number = 2;
SELECT * FROM short WHERE number = '+15550106010';
-- failed for good: the provider's code and words
SELECT otp_id AS id FROM otp_send('+15550106011') \gset
SELECT pg_temp.message(:'id', 1, 'failed_at = clock_timestamp(), provider_code = 131026, detail = ''Message undeliverable'', ended_reason = ''delivery_failed''');
SELECT * FROM short WHERE number = '+15550106011';
UPDATE otp.messages SET provider_code = NULL WHERE verification_id = otp.parse_id(:'id');
SELECT * FROM short WHERE number = '+15550106011';
UPDATE otp.messages SET provider_code = 132001, detail = NULL, ended_reason = 'template_not_found' WHERE verification_id = otp.parse_id(:'id');
SELECT * FROM short WHERE number = '+15550106011';
UPDATE otp.messages SET provider_code = NULL, detail = NULL, ended_reason = 'provider_unavailable' WHERE verification_id = otp.parse_id(:'id');
SELECT * FROM short WHERE number = '+15550106011';
SELECT valid, error FROM otp_verify(:'id', 'x');

-- What the verification itself makes of it
SELECT otp_id AS id FROM otp_send('+15550106001') \gset
SELECT valid FROM otp_verify(:'id', 'x');
SELECT status, attempts, attempts_remaining, verified, ended FROM t.status(:'id');
SELECT valid FROM otp_verify(:'id', '123456');
SELECT status, attempts, attempts_remaining, verified, ended FROM t.status(:'id');
SELECT otp_id AS id FROM otp_send('+15550106001') \gset
SELECT error FROM unnest(ARRAY['x', 'y', 'z']) g, otp_verify(:'id', g);
SELECT status, attempts, attempts_remaining, error, ended FROM t.status(:'id');
SELECT otp_id AS id FROM otp_send('+15550106001') \gset
SELECT otp_cancel(:'id');
SELECT status, attempts, attempts_remaining, error, ended FROM t.status(:'id');
-- expired at once, whether or not anybody has come by; what had failed before stays so
UPDATE otp.verifications SET expires_at = clock_timestamp();
SELECT number, status, error, ended FROM short ORDER BY number, status;

-- Inside of queries
SELECT status, count(*) FROM otp.verifications v, LATERAL otp_status(otp.format_id(v.id)) GROUP BY 1 ORDER BY 1;
SELECT provolatile FROM pg_proc WHERE oid = 'otp_status(text)'::regprocedure;
BEGIN READ ONLY;
SELECT status FROM otp_status(:'id');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT status FROM otp_status(:'id');
SELECT status FROM otp_wait(:'id');
ROLLBACK;
-- It sees what the query sees
BEGIN;
SELECT count(s.status) FROM otp_send('+15550106001') o LEFT JOIN LATERAL otp_status(o.otp_id) s ON true;
SELECT otp_id AS id FROM otp_send('+15550106001') \gset
SELECT status FROM otp_status(:'id');
SELECT otp_cancel(:'id');
SELECT status FROM otp_status(:'id');
ROLLBACK;
SELECT count(*) FROM otp_status(:'id');

-- Ids that are none
SELECT id, (SELECT count(*) FROM otp_status(id)) AS status, (SELECT count(*) FROM otp_wait(id, '10 s')) AS wait
FROM unnest(ARRAY['', 'otp_', 'otp_00000000000000000000000000', 'otp_7ZZZZZZZZZZZZZZZZZZZZZZZZZ', 'x'' OR true']) id;
SELECT t.error('SELECT otp_status(NULL)');
SELECT t.error('SELECT otp_wait(NULL)');

--
-- otp_wait
--
SELECT wait_for, t.error('SELECT otp_wait(''otp_00000000000000000000000000'', $1::interval)', wait_for) FROM unnest(ARRAY['0', '1 ms', '30 s', '30.000001 s', '-1 us',
	'-1 day', '1 min', '1 day', '1 mon', '-1 mon', '178000000 years', '-178000000 years', '2147483647 days']) wait_for;

-- A code of the current transaction: commit first
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550106012') \gset
SELECT otp_wait(:'id');
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT otp_id AS id FROM otp_send('+15550106012') \gset
RELEASE a;
SAVEPOINT b;
SELECT t.error('SELECT otp_wait($1, ''30 s'')', :'id');
SELECT t.error('SELECT otp_wait($1, ''0'')', :'id');
COMMIT;
-- Afterwards the time runs
CREATE FUNCTION pg_temp.timed(id text, wait_for interval, OUT status text, OUT waited bool, OUT overslept bool) LANGUAGE plpgsql AS $$
DECLARE
	since timestamptz = clock_timestamp();
BEGIN
	SELECT w.status INTO status FROM otp_wait(id, wait_for) w;
	waited := clock_timestamp() - since >= wait_for;
	overslept := clock_timestamp() - since > wait_for + interval '2 s';
END $$;
SELECT * FROM pg_temp.timed(:'id', '0.4 s');
SELECT * FROM pg_temp.timed(:'id', '0');
-- An outcome that is there already: no wait
SELECT pg_temp.message(:'id', 1, 'sent_at = clock_timestamp()');
SELECT * FROM pg_temp.timed(:'id', '30 s');
SELECT otp_id AS id FROM otp_send('+15550106001') \gset
SELECT * FROM pg_temp.timed(:'id', '30 s');
SELECT otp_id AS id FROM otp_send('+15550106003') \gset
SELECT * FROM pg_temp.timed(:'id', '30 s');
SELECT otp_id AS id FROM otp_send('+15550106002') \gset
SELECT * FROM pg_temp.timed(:'id', '0.3 s');
SELECT otp_cancel(:'id');
SELECT * FROM pg_temp.timed(:'id', '30 s');
-- A test number's in its own transaction, too
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550106001') \gset
SELECT * FROM pg_temp.timed(:'id', '30 s');
ROLLBACK;
-- Expiry ends it
SELECT otp_id AS id FROM otp_send('+15550106002') \gset
UPDATE otp.verifications SET expires_at = clock_timestamp() + interval '0.5 s' WHERE id = otp.parse_id(:'id');
SELECT * FROM pg_temp.timed(:'id', '20 s');
-- A timeout of the statement's is heard
SELECT otp_id AS id FROM otp_send('+15550106002') \gset
SET statement_timeout = '200 ms';
SELECT otp_wait(:'id', '30 s');
RESET statement_timeout;
-- The same columns as otp_status
SELECT s = w AS same FROM otp_status(:'id') s, otp_wait(:'id', '0') w;

DROP FUNCTION t.status;
DELETE FROM otp.test_numbers;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, sends_per_second = 10, resend_cooldown = '10 s';
DELETE FROM otp.provider_accounts;
