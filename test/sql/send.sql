-- Protects: otp_send's arguments. Every default and bound, what is written,
-- and every error with its SQLSTATE, its JSON detail and its hint, none of
-- which holds a digit of the phone. Test numbers keep the network out; the
-- workspace's policy is in send_policy.

\set SHOW_CONTEXT never
SET client_min_messages = error;
UPDATE otp.workspaces SET sends_per_second = NULL;
SELECT otp.set_test_number('+15550102001', '123456');

-- Everything left out: the workspace decides
SELECT success, otp_id LIKE 'otp\_%' AS otp_id, channel, phone, expires_in, message_id,
	expires_at BETWEEN clock_timestamp() + interval '295 s' AND clock_timestamp() + interval '300 s' AS expires_at
FROM otp_send('+15550102001');

-- Everything NULL is the same as left out
SELECT success, channel, phone, expires_in FROM otp_send('+15550102001', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Everything given
INSERT INTO otp.templates (workspace_id, name, language, status) VALUES
	(1, 'login', 'de', 'approved'), (1, 'slow', 'en_US', 'pending'), (1, 'bad', 'en_US', 'rejected'), (1, 'odd', 'en_US', 'paused');
SELECT otp_id AS id, channel, phone, expires_in FROM otp_send(phone => '+15550102001', template => 'login', length => 8, expires_in => 60,
	fallback_sms => true, metadata => '{"user": 4711}', channel => 'whatsapp', context => 'payment 12 of 99.00 EUR', language => 'de',
	limit_keys => NULL, idempotency_key => NULL, workspace => 'default') \gset
SELECT :'channel', :'phone', :'expires_in';
SELECT workspace_id, expires_at - created_at AS life, verified_at, canceled_at, resent_at, last_attempt_at, length, attempts, max_attempts,
	resends, fallback_sms, test_outcome, phone, template, language, channel, context, octet_length(salt) AS salt,
	octet_length(code_hash) AS code_hash, metadata
FROM otp.verifications WHERE id = otp.parse_id(:'id');

-- A test number's code has the length it has; salts and hashes are never the same
SELECT length, count(*), count(DISTINCT salt), count(DISTINCT code_hash) FROM otp.verifications WHERE phone = '+15550102001' GROUP BY 1;

-- The clock's time, not the transaction's
BEGIN;
SELECT pg_sleep(0.05);
SELECT expires_at - interval '60 s' > now() + interval '50 ms' AS clock FROM otp_send('+15550102001', expires_in => 60);
COMMIT;

-- Phones: each defect named, without the digits
SELECT phone, t.error('SELECT otp_send($1)', phone) FROM (VALUES
	(NULL), (''), ('+'), (' '), ('15550102001'), ('0015550102001'), ('+05550102001'), ('+1 555 010 2001'), ('+1-555-010-2001'),
	('+1(555)0102001'), ('+1555CALLNOW'), ('tel:+15550102001'), ('++15550102001'), ('+155501'), ('+1555010'), ('+123456789012345'),
	('+1234567890123456'), ('+15550102001 '), (E'+15550102001\n'), (E'+1\t5550102001'), ('+١٢٣٤٥٦٧٨'), ('+15550102001'';--')) v (phone);

-- length
SELECT n AS length, t.error('SELECT otp_send(''+15550102001'', length => $1::int)', n::text)
FROM unnest(ARRAY[-2147483648, -1, 0, 1, 3, 4, 5, 6, 7, 8, 9, 2147483647]) n;

-- expires_in
SELECT n AS expires_in, t.error('SELECT otp_send(''+15550102001'', expires_in => $1::int)', n::text)
FROM unnest(ARRAY[-2147483648, -1, 0, 59, 60, 900, 901, 2147483647]) n;

-- metadata
SELECT t.error('SELECT otp_send(''+15550102001'', metadata => $1::jsonb)', m), left(m, 20) FROM (VALUES
	('{}'), ('{"a": {"b": [1, null]}}'), ('[]'), ('"text"'), ('1'), ('true'), ('null'),
	(json_build_object('a', repeat('x', 4000))::text), (json_build_object('a', repeat('x', 4096))::text),
	(json_build_object('a', repeat('x', 1000000))::text),
	-- as text, too: numbers can be short in the row only
	(json_build_object('b', repeat(E'\x01', 4000))::text), ('{"c": 1e20000}'), ('{"d": 1e131071}'), ('{"e": 1e-16383}')) v (m);

-- context, in bytes
SELECT octet_length(c) AS bytes, t.error('SELECT otp_send(''+15550102001'', context => $1)', c)
FROM (VALUES (''), ('x'), (repeat('x', 256)), (repeat('x', 257)), (repeat(U&'\00e9', 128)), (repeat(U&'\00e9', 128) || 'x')) v (c);

-- template and language
SELECT template, language, t.error('SELECT otp_send(''+15550102001'', template => $1, language => $2)', template, language) FROM (VALUES
	('login', 'de'), ('login', NULL), ('login', 'en_US'), ('nowhere', NULL), ('otp_verification', 'de'), ('', NULL), (NULL, ''),
	('slow', NULL), ('bad', NULL), ('odd', NULL), ('Login', 'de'), ('login', 'DE'), (NULL, 'a_language_too_long')) v (template, language);
SELECT t.error('SELECT otp_send(''+15550102001'', template => $1)', repeat('x', n)) FROM unnest(ARRAY[512, 513]) n;

-- channel
SELECT channel, t.error('SELECT otp_send(''+15550102001'', channel => $1)', channel)
FROM unnest(ARRAY['whatsapp', 'sms', '', 'SMS', 'email', 'a_channel_too_long']) channel;

-- With SMS asked for there is nothing to fall back to
SELECT otp_id AS id FROM otp_send('+15550102001', channel => 'sms', fallback_sms => true) \gset
SELECT channel, fallback_sms FROM otp.verifications WHERE id = otp.parse_id(:'id');

-- workspace
SELECT workspace, replace(t.error('SELECT otp_send(''+15550102001'', workspace => $1)', workspace), current_user, 'owner') AS error
FROM unnest(ARRAY['default', '', 'Default', 'other', 'it''s']) workspace;

-- What is to come is refused, not ignored

-- Nothing set up: the hints say what to call
SELECT t.error('SELECT otp_send(''+15550102002'')');
SELECT t.error('SELECT otp_send(''+15550102002'', channel => ''sms'')');
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT t.error('SELECT otp_send(''+15550102002'', channel => ''sms'')');
SELECT t.error('SELECT otp_send(''+15550102002'', fallback_sms => true)');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');

-- A real number: a row of history and one of the outbox, both of this transaction, no message
SELECT success, channel, phone, expires_in, message_id FROM otp_send('+15550102002', fallback_sms => true);
BEGIN;
SELECT otp_id AS id FROM otp_send('+15550102003', channel => 'sms', context => 'login') \gset
SELECT v.length, v.test_outcome, v.fallback_sms, v.channel, v.context, v.created_xid = o.xid AS same_transaction,
	o.xid = pg_current_xact_id()::text::bigint AS this_transaction, o.number, o.tries, o.unknown, o.channel, o.slot = v.slot AS slot,
	o.workspace_id = v.workspace_id AS workspace, o.expires_at = v.expires_at AS expires_at, o.due_at <= clock_timestamp() AS due
FROM otp.verifications v JOIN otp.outbox o USING (id) WHERE v.id = otp.parse_id(:'id');
SELECT count(*) FROM otp.messages WHERE verification_id = otp.parse_id(:'id');
ROLLBACK;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550102003';
SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id(:'id');

-- In a subtransaction: the top-level transaction's number
BEGIN;
SAVEPOINT a;
SELECT otp_id AS id FROM otp_send('+15550102003') \gset
SELECT created_xid = pg_current_xact_id()::text::bigint AS top FROM otp.verifications WHERE id = otp.parse_id(:'id');
ROLLBACK TO a;
SELECT count(*) FROM otp.verifications WHERE id = otp.parse_id(:'id');
SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id(:'id');
COMMIT;

-- Called once per column, the second one is stopped, and told why
SELECT t.error('SELECT (otp_send(''+15550102004'')).*');
SELECT count(*) FROM otp.verifications WHERE phone = '+15550102004';

-- Not in a read-only transaction
BEGIN READ ONLY;
SELECT otp_send('+15550102001');
ROLLBACK;

-- No code anywhere in the row
SELECT count(*) FROM otp.verifications v WHERE v::text LIKE '%123456%';

-- Left as it was found
SELECT otp.set_test_number('+15550102001', NULL);
DELETE FROM otp.templates WHERE NOT seeded AND name <> 'otp_verification';
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL, sends_per_second = 10;
DELETE FROM otp.provider_accounts;
