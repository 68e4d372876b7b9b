-- Protects: limits by keys of the caller's own. What is no key is refused
-- without being shown; a prefix without a limit is an error, not a key without
-- one; each limit lets in as many as it says, to the second, and nothing of
-- another key, prefix or workspace counts. Only hashes are stored.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
UPDATE otp.workspaces SET sends_per_second = NULL, sends_per_phone_hour = NULL, resend_cooldown = NULL;
CREATE FUNCTION t.send(n int, VARIADIC keys text[]) RETURNS text LANGUAGE sql AS $$
	SELECT t.error('SELECT otp_send($1, limit_keys => $2::text[])', format('+1555500%s', lpad(n::text, 4, '0')), keys::text)
$$;

-- What is no key
SELECT keys, t.error('SELECT otp_send(''+15555000000'', limit_keys => $1::text[])', keys) FROM unnest(ARRAY['{ip}', '{:x}', '{ip:}', '{"IP:x"}', '{"1p:x"}', '{"i-p:x"}',
	'{NULL}', '{{ip:x},{ip:y}}', '{ip:1,ip:2,ip:3,ip:4,ip:5,ip:6,ip:7,ip:8,ip:9}', '{}', NULL]) keys;
SELECT t.error('SELECT otp_send(''+15555000000'', limit_keys => ARRAY[$1])', 'ip:' || repeat('x', 254));
SELECT t.error('SELECT otp_send(''+15555000000'', limit_keys => ARRAY[$1])', repeat('i', 33) || ':x');
-- A prefix without a limit: the hint is a statement that works
SELECT t.send(1, 'ip:203.0.113.7');
SELECT substring(t.send(1, 'ip:203.0.113.7') FROM 'INSERT.*\)') AS hint \gset
:hint;
SELECT t.send(1, 'ip:203.0.113.7');
SELECT t.send(2, 'ip:203.0.113.7', 'device:a');
DELETE FROM otp.key_limits;
SELECT * FROM otp.key_limits;
SELECT left(t.error('INSERT INTO otp.key_limits VALUES (1, $1, 1, 1)', p), 5), p FROM unnest(ARRAY['Ip', '', 'i:p', 'ip ', repeat('i', 33)]) p;
SELECT left(t.error('INSERT INTO otp.key_limits VALUES (1, ''ip'', 0)'), 5);

-- An hour's limit
DELETE FROM otp.send_keys;
INSERT INTO otp.key_limits VALUES (1, 'ip', 3, NULL), (1, 'device', NULL, 2), (1, 'free', NULL, NULL);
SELECT n, t.send(n, 'ip:203.0.113.7') FROM generate_series(1, 4) n;
SELECT t.retry_after('SELECT otp_send(''+15555000009'', limit_keys => ''{ip:203.0.113.7}'')') BETWEEN 3590 AND 3600 AS an_hour;
-- another value is free, and so is no key at all
SELECT t.send(5, 'ip:203.0.113.8'), t.error('SELECT otp_send(''+15555000006'')');
-- values are compared to the byte
SELECT t.send(7, 'ip:203.0.113.7 ');

-- A day's limit, and two keys in one send: each refuses for itself
SELECT n, t.send(n, 'device:a', 'ip:203.0.113.9') FROM generate_series(11, 13) n;
SELECT t.send(14, 'ip:203.0.113.9', 'device:b');
SELECT t.send(15, 'ip:203.0.113.9', 'device:c');
-- the same key twice counts once
SELECT n, t.send(n, 'ip:203.0.113.10', 'ip:203.0.113.10') FROM generate_series(21, 24) n;
-- without limits nothing is counted
SELECT t.send(31, 'free:x'), t.send(32, 'free:x');
-- A refused send counts for none of its keys
SELECT name, prefix, used, remaining, retry_after > 0 AS wait FROM otp.rate_limit_status(limit_keys => '{device:c,ip:203.0.113.9,device:a,free:x}') ORDER BY 1, 2, 3;

-- Rolled back, nothing was sent
BEGIN;
SELECT t.send(41, 'ip:203.0.113.11'), t.send(42, 'ip:203.0.113.11'), t.send(43, 'ip:203.0.113.11'), t.send(44, 'ip:203.0.113.11') LIKE 'OT429%';
ROLLBACK;
SELECT t.send(41, 'ip:203.0.113.11');

-- To the second: what was sent a moment less than an hour ago counts, what was sent an hour ago does not
CREATE FUNCTION pg_temp.age(ages interval[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	row otp.send_keys; i int := 0; at int8;
BEGIN
	FOR row IN DELETE FROM otp.send_keys WHERE hash = (SELECT hash FROM otp.send_keys GROUP BY hash HAVING count(*) = array_length(ages, 1) LIMIT 1) RETURNING * LOOP
		i := i + 1;
		at := floor(extract(epoch FROM clock_timestamp() - ages[i]) * 1000)::int8;	-- as an id does
		row.verification_id := (lpad(to_hex(at), 12, '0') || lpad(to_hex((at / 86400000 % 32 * 8)::int), 2, '0') || lpad(i::text, 18, '0'))::uuid;
		row.slot := at / 86400000 % 32;
		INSERT INTO otp.send_keys SELECT row.*;
	END LOOP;
END $$;
DELETE FROM otp.send_keys;
SELECT t.send(51, 'ip:203.0.113.12'), t.send(52, 'ip:203.0.113.12'), t.send(53, 'ip:203.0.113.12');
SELECT pg_temp.age(ARRAY['59 min 57 s', '10 min', '5 min']::interval[]);
SELECT t.send(54, 'ip:203.0.113.12');
SELECT t.retry_after('SELECT otp_send(''+15555000054'', limit_keys => ''{ip:203.0.113.12}'')') BETWEEN 1 AND 3 AS a_moment;
SELECT pg_temp.age(ARRAY['60 min', '59 min 50 s', '5 min']::interval[]);
SELECT t.send(54, 'ip:203.0.113.12');
SELECT t.retry_after('SELECT otp_send(''+15555000055'', limit_keys => ''{ip:203.0.113.12}'')') BETWEEN 1 AND 10 AS the_next_one;
DELETE FROM otp.send_keys;
SELECT t.send(61, 'device:d'), t.send(62, 'device:d');
SELECT pg_temp.age(ARRAY['23 h 59 min 55 s', '2 h']::interval[]);
SELECT t.send(63, 'device:d');
SELECT pg_temp.age(ARRAY['24 h', '2 h']::interval[]);
SELECT t.send(63, 'device:d');

-- In every isolation level, under a snapshot from before
DELETE FROM otp.send_keys;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM otp.send_keys;
SELECT n, left(t.send(n, 'ip:203.0.113.13'), 8) FROM generate_series(71, 74) n;
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT n, left(t.send(n, 'ip:203.0.113.13'), 8) FROM generate_series(71, 74) n;
ROLLBACK;

-- Another workspace has limits of its own, and counts for itself
INSERT INTO otp.workspaces (workspace_id, name, whatsapp_account) SELECT 2, 'other', whatsapp_account FROM otp.workspaces WHERE workspace_id = 1;
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT t.error('SELECT otp_send(''+15555000081'', limit_keys => ''{ip:203.0.113.14}'', workspace => ''other'')');
INSERT INTO otp.key_limits VALUES (2, 'ip', 1);
SELECT t.error('SELECT otp_send(''+15555000081'', limit_keys => ''{ip:203.0.113.14}'', workspace => ''other'')');
SELECT t.error('SELECT otp_send(''+15555000082'', limit_keys => ''{ip:203.0.113.14}'', workspace => ''other'')');
SELECT t.error('SELECT otp_send(''+15555000083'', limit_keys => ''{ip:203.0.113.14}'', workspace => ''default'')');
SELECT count(DISTINCT hash) FROM otp.send_keys;
-- A new limit holds at once
UPDATE otp.key_limits SET sends_per_hour = 2 WHERE workspace_id = 2;
SELECT t.error('SELECT otp_send(''+15555000082'', limit_keys => ''{ip:203.0.113.14}'', workspace => ''other'')');
-- A test number is free of them
SELECT otp.set_test_number('+15555000090', '123456');
SELECT count(*) FROM generate_series(1, 5) n, otp_send('+15555000090', limit_keys => '{ip:203.0.113.15}', workspace => 'default');
SELECT otp.set_test_number('+15555000090', NULL);
-- Nothing of a key is stored as it was
SELECT count(*) FROM otp.send_keys k WHERE k::text LIKE '%203%0%113%';

DROP FUNCTION t.send;
DELETE FROM otp.key_limits;
DELETE FROM otp.templates WHERE workspace_id = 2;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
DELETE FROM otp.send_keys;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET sends_per_second = 10, sends_per_phone_hour = 5, resend_cooldown = '10 s', whatsapp_account = NULL;
DELETE FROM otp.provider_accounts;
