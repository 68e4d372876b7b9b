-- Protects: the spelling of ids. They are ULIDs in Crockford's base 32, upper
-- case, ordered by time, and nothing else is taken for one.

\set SHOW_CONTEXT never
SET client_min_messages = error;

SELECT otp.format_id('00000000-0000-0000-0000-000000000000');
SELECT otp.format_id('ffffffff-ffff-ffff-ffff-ffffffffffff');
SELECT otp.format_id('0192f5a8-7b3c-1234-5678-9abcdef01234');
SELECT otp.parse_id('otp_00000000000000000000000000');
SELECT otp.parse_id('otp_7ZZZZZZZZZZZZZZZZZZZZZZZZZ');
SELECT otp.format_id(NULL), otp.parse_id(NULL);

-- There and back, of any bytes
SELECT count(*) FROM (SELECT md5(i::text)::uuid AS id FROM generate_series(1, 10000) i) s
WHERE otp.parse_id(otp.format_id(id)) IS DISTINCT FROM id OR otp.format_id(id) !~ '^otp_[0-7][0-9A-HJKMNP-TV-Z]{25}$';

-- The text sorts as the key does
SELECT count(*) FROM (SELECT row_number() OVER (ORDER BY id) a, row_number() OVER (ORDER BY otp.format_id(id) COLLATE "C") b
	FROM (SELECT md5(i::text)::uuid AS id FROM generate_series(1, 10000) i) s) s
WHERE a <> b;

-- Whatever is not exactly of this form is no id
SELECT id, t.error('SELECT otp.parse_id($1)', id) FROM (VALUES
	(''), ('otp_'), ('otp'), ('00000000000000000000000000'),
	('otp_0000000000000000000000000'), ('otp_000000000000000000000000000'),
	('otp_8ZZZZZZZZZZZZZZZZZZZZZZZZZ'), ('otp_7zzzzzzzzzzzzzzzzzzzzzzzzz'), ('OTP_7ZZZZZZZZZZZZZZZZZZZZZZZZZ'),
	('otp_7IZZZZZZZZZZZZZZZZZZZZZZZZ'), ('otp_7LZZZZZZZZZZZZZZZZZZZZZZZZ'),
	('otp_7OZZZZZZZZZZZZZZZZZZZZZZZZ'), ('otp_7UZZZZZZZZZZZZZZZZZZZZZZZZ'),
	(' otp_7ZZZZZZZZZZZZZZZZZZZZZZZZZ'), ('otp_7ZZZZZZZZZZZZZZZZZZZZZZZZZ '), (E'otp_7ZZZZZZZZZZZZZZZZZZZZZZZZ\n'),
	('otp-7ZZZZZZZZZZZZZZZZZZZZZZZZZ'), (E'otp_7ZZZZZZZZZZZZZZZZZZZZZZZ\u00e9')) v (id);

-- Ids of otp_send: parse, are of now, grow, and tell the drawer
SELECT otp.set_test_number('+15550101001', '123456');
CREATE TEMP TABLE sent AS SELECT i, s.* FROM generate_series(1, 500) i, LATERAL (SELECT * FROM otp_send(format('+1555010%s', 1001 + 0 * i))) s;
SELECT count(*), count(DISTINCT otp_id), bool_and(otp_id ~ '^otp_[0-7][0-9A-HJKMNP-TV-Z]{25}$') AS spelled FROM sent;
SELECT count(*) FROM sent s JOIN otp.verifications v ON v.id = otp.parse_id(s.otp_id) AND otp.format_id(v.id) = s.otp_id;

-- The first 48 bits are milliseconds of the creation; the next five name the drawer, the day modulo 32
CREATE TEMP VIEW times AS
SELECT v.*, v.tableoid::regclass::text AS leaf, ('x' || substr(replace(v.id::text, '-', ''), 1, 12))::bit(48)::bigint AS ms FROM otp.verifications v WHERE phone = '+15550101001';
SELECT count(*) FROM times WHERE ms <> floor(extract(epoch FROM created_at) * 1000);
SELECT count(*) FROM times WHERE slot <> ms / 86400000 % 32 OR leaf <> 'otp.verifications_' || lpad(slot::text, 2, '0');
SELECT count(*) FROM (SELECT ms, lag(ms) OVER (ORDER BY i) AS before FROM sent JOIN times ON id = otp.parse_id(otp_id)) s WHERE ms < before;

SELECT count(*) FROM times WHERE slot <> position(substr(otp.format_id(id), 15, 1) IN '0123456789ABCDEFGHJKMNPQRSTVWXYZ') - 1;

-- The other 75 are random
SELECT count(DISTINCT substr(otp_id, 16)) FROM sent;
DROP VIEW times;
SELECT otp.set_test_number('+15550101001', NULL);
DELETE FROM otp.verifications WHERE phone = '+15550101001';
DELETE FROM otp.messages;
