-- Protects: a request that is repeated makes no second code. The same key and
-- arguments give the same answer for a day, whatever the limits say by then;
-- other arguments are an error; what was rolled back was never asked.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
UPDATE otp.workspaces SET sends_per_second = NULL, sends_per_phone_hour = 2;
INSERT INTO otp.key_limits VALUES (1, 'ip', 1);

SELECT otp_id AS id, expires_at AS at FROM otp_send('+15555010001', idempotency_key => 'a', limit_keys => '{ip:1}', metadata => '{"b": 1, "a": 2}') \gset
-- Again: the same, in the cooldown and beyond the limits; the order of keys in metadata is none
SELECT success, otp_id = :'id' AS same, expires_at = :'at' AS same_time, channel, phone, expires_in, message_id
FROM otp_send('+15555010001', idempotency_key => 'a', limit_keys => '{ip:1}', metadata => '{"a": 2, "b": 1}');
SELECT count(*) FROM otp.verifications;
SELECT count(*) FROM otp.outbox;
SELECT count(*) FROM otp.send_keys;

-- Other arguments, one at a time: NULL is not the default
SELECT args, t.error(format('SELECT otp_send(%s, idempotency_key => ''a'')', args)) FROM unnest(ARRAY[
	'''+15555010002'', limit_keys => ''{ip:1}'', metadata => ''{"a": 2, "b": 1}''', '''+15555010001'', metadata => ''{"a": 2, "b": 1}''', '''+15555010001'', limit_keys => ''{ip:1}''']) args;
SELECT args, left(t.error(format('SELECT otp_send(''+15555010001'', limit_keys => ''{ip:1}'', metadata => ''{"a": 2, "b": 1}'', %s, idempotency_key => ''a'')', args)), 5) FROM unnest(ARRAY[
	'template => ''otp_verification''', 'length => 6', 'expires_in => 300', 'fallback_sms => false', 'channel => ''whatsapp''', 'context => ''''', 'language => ''en_US''',
	-- the workspace is the same, however it is chosen
	'workspace => ''default''']) args;
SELECT left(t.error('SELECT otp_send(''+15555010001'', limit_keys => ''{ip:1}'', metadata => ''{"a": 2, "b": "1"}'', idempotency_key => ''a'')'), 5);
-- No two that differ look the same
INSERT INTO otp.templates (workspace_id, name, language) VALUES (1, 'otp_verification', '1:y');
SELECT otp_id AS one FROM otp_send('+15555010003', context => 'x,1:y', idempotency_key => 'b') \gset
SELECT left(t.error('SELECT otp_send(''+15555010003'', context => ''x'', language => ''1:y'', idempotency_key => ''b'')'), 5);

-- Keys
SELECT t.error('SELECT otp_send(''+15555010001'', idempotency_key => $1)', k) FROM unnest(ARRAY['', repeat('k', 256)]) k;
SELECT t.error('SELECT otp_send(''+15555010004'', idempotency_key => $1)', repeat('k', 255));

-- A refused send has no answer to give again
SELECT t.error('SELECT otp_send(''+15555010003'', context => ''x,1:y'', idempotency_key => ''c'')');
UPDATE otp.workspaces SET resend_cooldown = NULL;
SELECT t.error('SELECT otp_send(''+15555010003'', context => ''x,1:y'', idempotency_key => ''c'')');
SELECT t.error('SELECT otp_send(''+15555010003'', context => ''x,1:y'', idempotency_key => ''d'')');
-- Nor has one that was rolled back; within a transaction there is
BEGIN;
SELECT otp_id AS rolled FROM otp_send('+15555010005', idempotency_key => 'e') \gset
SELECT otp_id = :'rolled' AS same FROM otp_send('+15555010005', idempotency_key => 'e');
SAVEPOINT s;
SELECT otp_id AS deeper FROM otp_send('+15555010006', idempotency_key => 'f') \gset
ROLLBACK TO s;
SELECT otp_id <> :'deeper' AS another FROM otp_send('+15555010006', idempotency_key => 'f');
ROLLBACK;
SELECT otp_id <> :'rolled' AS another FROM otp_send('+15555010005', idempotency_key => 'e');
-- A policy from after the first one does not take its answer away; a suspended workspace gives none
BEGIN;
UPDATE otp.workspaces SET require_context = true, min_code_length = 8, max_expires_in = 60, whatsapp_enabled = false;
UPDATE otp.templates SET status = 'rejected' WHERE language = 'en_US';
SELECT otp_id = :'id' AS same FROM otp_send('+15555010001', idempotency_key => 'a', limit_keys => '{ip:1}', metadata => '{"a": 2, "b": 1}');
SELECT left(t.error('SELECT otp_send(''+15555010001'', idempotency_key => ''new'')'), 5);
UPDATE otp.workspaces SET suspended_at = now();
SELECT left(t.error('SELECT otp_send(''+15555010001'', idempotency_key => ''a'', limit_keys => ''{ip:1}'', metadata => ''{"a": 2, "b": 1}'')'), 5);
ROLLBACK;
-- Under an old snapshot
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) > 0 FROM otp.verifications;
SELECT otp_id AS id FROM otp_send('+15555010007', idempotency_key => 'g') \gset
SELECT otp_id = :'id' AS same FROM otp_send('+15555010007', idempotency_key => 'g');
COMMIT;

-- The answer is of what was sent, even once it was verified, or its phone forgotten
SELECT otp.set_test_number('+15555010008', '123456', 'sms_fallback');
SELECT otp_id AS id, channel FROM otp_send('+15555010008', idempotency_key => 'h') \gset
SELECT valid FROM otp_verify(:'id', '123456');
SELECT otp_id = :'id' AS same, channel, phone FROM otp_send('+15555010008', idempotency_key => 'h');
SELECT verifications FROM otp.forget_phone('+15555010008');
SELECT otp_id = :'id' AS same, phone FROM otp_send('+15555010008', idempotency_key => 'h');
-- Gone for good: it is sent anew
DELETE FROM otp.verifications WHERE id = otp.parse_id(:'id');
SELECT otp_id <> :'id' AS another FROM otp_send('+15555010008', idempotency_key => 'h');
SELECT otp_id AS new FROM otp_send('+15555010008', idempotency_key => 'h') \gset
SELECT otp_id = :'new' AS same FROM otp_send('+15555010008', idempotency_key => 'h');

-- A day later it is a new key
CREATE FUNCTION pg_temp.age(otp_id text, age interval) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	ms int8 := (extract(epoch FROM clock_timestamp() - age) * 1000)::int8;
	new_id uuid := (lpad(to_hex(ms), 12, '0') || lpad(to_hex((ms / 86400000 % 32 * 8)::int), 2, '0') || substr(md5(otp_id), 1, 18))::uuid;
BEGIN
	UPDATE otp.verifications SET id = new_id, slot = ms / 86400000 % 32, created_at = created_at - age, expires_at = expires_at - age WHERE id = otp.parse_id(otp_id);
	UPDATE otp.send_keys SET verification_id = new_id, slot = ms / 86400000 % 32 WHERE verification_id = otp.parse_id(otp_id);
END $$;
SELECT otp_id AS id FROM otp_send('+15555010009', expires_in => 900, idempotency_key => 'i') \gset
SELECT pg_temp.age(:'id', '23 h 59 min');
SELECT expires_in, expires_at < now() AS over FROM otp_send('+15555010009', expires_in => 900, idempotency_key => 'i');
DELETE FROM otp.send_keys;
SELECT otp_id AS id FROM otp_send('+15555010009', idempotency_key => 'j') \gset
SELECT pg_temp.age(:'id', '24 h 1 s');
SELECT t.error('SELECT otp_send(''+15555010010'', idempotency_key => ''j'')');

-- Another workspace knows nothing of it
INSERT INTO otp.workspaces (workspace_id, name, whatsapp_account) SELECT 2, 'other', whatsapp_account FROM otp.workspaces WHERE workspace_id = 1;
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT t.error('SELECT otp_send(''+15555010011'', idempotency_key => ''j'', workspace => ''other'')');
SELECT count(*) FROM otp.send_keys k WHERE k::text LIKE '%"j"%' OR encode(k.arguments, 'escape') LIKE '%555501%';

SELECT otp.set_test_number('+15555010008', NULL);
DELETE FROM otp.key_limits;
DELETE FROM otp.templates WHERE workspace_id = 2 OR language = '1:y';
DELETE FROM otp.workspaces WHERE workspace_id = 2;
DELETE FROM otp.send_keys;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.forgotten_phones;
UPDATE otp.workspaces SET sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s', whatsapp_account = NULL;
DELETE FROM otp.provider_accounts;
