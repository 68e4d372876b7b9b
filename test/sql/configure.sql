-- Protects: otp.configure_meta and otp.configure_twilio. Every check of an
-- argument, NULL and '', secrets that are sealed and shown nowhere, secrets
-- from files, the previous signing secret, and http:// for tests only.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE FUNCTION pg_temp.clear(VARIADIC secrets text[]) RETURNS bigint LANGUAGE sql AS $$
	-- How many of the secrets can be read in the stored rows, as text or as bytes
	SELECT count(*) FROM unnest(secrets) s, otp.provider_accounts a
	WHERE position(convert_to(s, 'UTF8') IN a.secrets) > 0 OR position(s IN (a::text)) > 0 OR position(encode(convert_to(s, 'UTF8'), 'hex') IN (a::text)) > 0
		OR position(s IN (SELECT string_agg(p::text, '') FROM otp.providers p)) > 0
$$;
CREATE VIEW pg_temp.accounts AS
SELECT a.name, a.provider, a.settings, a.secret_names, a.secrets IS NOT NULL AS sealed, a.version, k.fingerprint = s.fingerprint AS current_key,
	array(SELECT w.name FROM otp.workspaces w WHERE w.whatsapp_account = a.account_id) AS whatsapp, array(SELECT w.name FROM otp.workspaces w WHERE w.sms_account = a.account_id) AS sms
FROM otp.provider_accounts a LEFT JOIN otp.keys k USING (key_id), otp.key_status() s ORDER BY a.name;
\x on

-- A new account
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'EAAsecrettoken1', waba_id => '102290129340398',
	app_secret => 'appsecret1', verify_token => 'verify-1', api_version => 'v24.0', base_url => 'https://graph.example.com');
SELECT * FROM accounts;
SELECT pg_temp.clear('EAAsecrettoken1', 'appsecret1', 'verify-1');
SELECT account, provider, settings, secret_names, workspaces, breaker, retry_at, failures, last_error FROM otp.providers;

-- NULL leaves everything as it is; '' takes away; the app secret before stays valid
SELECT otp.configure_meta();
SELECT settings, secret_names FROM accounts;
SELECT otp.configure_meta(waba_id => '', verify_token => '', api_version => '');
SELECT settings, secret_names FROM accounts;
SELECT otp.configure_meta(access_token => 'EAAsecrettoken2');
SELECT secret_names FROM accounts;
SELECT otp.configure_meta(app_secret => 'appsecret1');
SELECT secret_names FROM accounts;
SELECT otp.configure_meta(app_secret => 'appsecret2');
SELECT secret_names FROM accounts;
SELECT pg_temp.clear('EAAsecrettoken2', 'appsecret1', 'appsecret2');
SELECT otp.configure_meta(app_secret => '');
SELECT secret_names FROM accounts;

-- The same words are never sealed into the same bytes
SELECT secrets AS before FROM otp.provider_accounts \gset
SELECT otp.configure_meta();
SELECT secrets <> :'before' AS other_bytes FROM otp.provider_accounts;

-- Another account, for another workspace; one account for two
BEGIN;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other'), (3, 'third');
SELECT otp.configure_meta(phone_number_id => '2', access_token => 'token2', account => 'brand', workspace => 'other');
SELECT otp.configure_meta(account => 'brand', workspace => 'third');
SELECT otp.configure_meta(workspace => 'third');
SELECT name, settings, whatsapp, sms FROM accounts;
ROLLBACK;

-- Twilio
SELECT otp.configure_twilio(account_sid => 'ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', auth_token => 'twiliotoken1', api_key_sid => 'SK0123456789abcdef0123456789ABCDEF',
	api_key_secret => 'keysecret1', sender => '+15550109999', messaging_service_sid => 'MGbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', base_url => 'http://127.0.0.1:1/x',
	status_callback => 'https://example.com/callback?a=b', content_retention => 'discard', risk_check => 'disable');
SELECT * FROM accounts WHERE provider = 'twilio';
SELECT otp.configure_twilio(auth_token => 'twiliotoken2', sender => '');
SELECT secret_names, settings FROM accounts WHERE provider = 'twilio';
SELECT pg_temp.clear('twiliotoken1', 'twiliotoken2', 'keysecret1');
\x off

-- A name belongs to one provider
SELECT t.error('SELECT otp.configure_twilio(account => ''meta'')');
SELECT t.error('SELECT otp.configure_meta(account => ''twilio'')');
SELECT t.error('SELECT otp.configure_meta(workspace => ''nowhere'')');
SELECT t.error('SELECT otp.configure_meta(account => $1)', repeat('x', 65));

-- What an account cannot do without; refused as a whole
SELECT call, t.error('SELECT otp.configure_meta(account => ''new'', ' || call || ')') FROM unnest(ARRAY['phone_number_id => ''1''', 'access_token => ''x''', 'waba_id => ''1''']) call;
SELECT t.error('SELECT otp.configure_meta(access_token => '''')');
SELECT t.error('SELECT otp.configure_meta(phone_number_id => '''', waba_id => ''99'')');
SELECT settings FROM accounts WHERE name = 'meta';
SELECT call, t.error('SELECT otp.configure_twilio(account => ''new'', ' || call || ')') FROM unnest(ARRAY['auth_token => ''x''', 'account_sid => ''AC00000000000000000000000000000000''',
	'account_sid => ''AC00000000000000000000000000000000'', auth_token => ''x''',
	'account_sid => ''AC00000000000000000000000000000000'', api_key_sid => ''SK00000000000000000000000000000000'', sender => ''x''',
	'account_sid => ''AC00000000000000000000000000000000'', api_key_secret => ''x'', sender => ''x''']) call;
SELECT count(*) FROM otp.provider_accounts WHERE name = 'new';
BEGIN;
SELECT otp.configure_twilio(account => 'new', account_sid => 'AC00000000000000000000000000000000', api_key_sid => 'SK00000000000000000000000000000000', api_key_secret => 'x', sender => 'Acme Shop');
SELECT otp.configure_twilio(account => 'new', sender => '', messaging_service_sid => 'MG00000000000000000000000000000000');
SELECT t.error('SELECT otp.configure_twilio(account => ''new'', messaging_service_sid => '''')');
ROLLBACK;

-- Each argument
SELECT argument, value, t.error(format('SELECT otp.configure_meta(%I => $1)', argument), value) FROM (VALUES
	('phone_number_id', '1x'), ('phone_number_id', '+1'), ('phone_number_id', ' 1'), ('phone_number_id', repeat('1', 33)), ('waba_id', '../me'),
	('access_token', 'a b'), ('access_token', E'a\nX-Header: b'), ('access_token', 'tökén'), ('app_secret', E'\t'), ('verify_token', 'a.b'), ('verify_token', 'a b'),
	('api_version', '25.0'), ('api_version', 'v25'), ('api_version', 'v25.1'), ('api_version', 'v.0'), ('api_version', 'v1234.0'), ('api_version', 'v25.0/'), ('api_version', 'v1.0'),
	('base_url', 'graph.facebook.com'), ('base_url', 'ftp://x'), ('base_url', 'https://'), ('base_url', 'https:///x'), ('base_url', 'https://user@host'), ('base_url', 'https://host?x'),
	('base_url', 'https://host#x'), ('base_url', E'https://host\\x'), ('base_url', 'https://ho st'), ('base_url', E'https://host\n'), ('base_url', 'https://hôst'), ('base_url', 'HTTPS://host'),
	('base_url', 'file:///etc/passwd'), ('base_url', 'https://host:8443/path'), ('base_url', 'http://127.0.0.1:1')) v (argument, value);
SELECT t.error('SELECT otp.configure_meta(access_token => $1)', repeat('x', n)) FROM unnest(ARRAY[4096, 4097]) n;
SELECT argument, value, t.error(format('SELECT otp.configure_twilio(%I => $1)', argument), value) FROM (VALUES
	('account_sid', 'AC'), ('account_sid', 'SK00000000000000000000000000000000'), ('account_sid', 'AC0000000000000000000000000000000g'), ('account_sid', 'AC000000000000000000000000000000000'),
	('api_key_sid', 'AC00000000000000000000000000000000'), ('messaging_service_sid', 'AC00000000000000000000000000000000'),
	('sender', '+1555 0109999'), ('sender', '+0'), ('sender', 'TwelveLetter'), ('sender', 'ElevenLette'), ('sender', '12345'), ('sender', 'Ä'), ('sender', E'a\nb'), ('sender', 'a/b'),
	('auth_token', 'a b'), ('api_key_secret', E'\r\n'), ('status_callback', 'example.com'), ('status_callback', 'https://a b'), ('status_callback', 'javascript:alert(1)'),
	('content_retention', 'keep'), ('content_retention', 'retain'), ('risk_check', 'yes'), ('risk_check', 'enable')) v (argument, value);

-- http:// only where the superuser says so
SET otp.allow_insecure_http = off;
SELECT t.error('SELECT otp.configure_meta(base_url => $1)', 'http://127.0.0.1:1');
SELECT t.error('SELECT otp.configure_twilio(base_url => $1)', 'http://127.0.0.1:1');
SELECT t.error('SELECT otp.configure_meta(base_url => $1)', 'https://127.0.0.1:1');
SET otp.allow_insecure_http = on;
SELECT t.error('SELECT otp.configure_meta(base_url => $1)', 'http://127.0.0.1:1');

-- Secrets from files: one line, as editors leave it
SELECT current_setting('data_directory') || '/regress_otp_secret' AS file \gset
COPY (SELECT 'EAAfilesecret') TO :'file';
SELECT otp.configure_meta(access_token_file => :'file');
SELECT pg_temp.clear('EAAfilesecret');
SELECT otp.configure_meta(app_secret_file => :'file');
SELECT secret_names FROM accounts WHERE name = 'meta';
COPY (SELECT 'EAAfilesecret2') TO :'file';
SELECT otp.configure_meta(app_secret_file => :'file', verify_token_file => :'file');
SELECT secret_names FROM accounts WHERE name = 'meta';
SELECT otp.configure_twilio(auth_token_file => :'file', api_key_secret_file => :'file');
SELECT secret_names FROM accounts WHERE name = 'twilio';
SELECT pg_temp.clear('EAAfilesecret2');
-- no secret in them, or not one line
COPY (SELECT '') TO :'file';
SELECT t.error('SELECT otp.configure_meta(access_token_file => $1)', :'file');
COPY (SELECT 'two' UNION ALL SELECT 'lines') TO :'file';
SELECT t.error('SELECT otp.configure_meta(access_token_file => $1)', :'file');
COPY (SELECT repeat('x', 5000)) TO :'file';
SELECT t.error('SELECT otp.configure_meta(access_token_file => $1)', :'file');
COPY (SELECT 1) TO PROGRAM 'rm regress_otp_secret';
SELECT t.error('SELECT otp.configure_meta(access_token_file => $1)', path) FROM unnest(ARRAY['regress_otp_secret', '/nonexistent/regress_otp_secret', '/']) path;
SELECT t.error('SELECT otp.configure_meta(access_token_file => '''')');
-- A file is read with the caller's rights: a member of the owner's role need not read the server's files (see privileges)

-- Rolled back, as if it had not been
BEGIN;
SELECT otp.configure_meta(phone_number_id => '4711');
ROLLBACK;
SELECT settings ->> 'phone_number_id' AS id FROM accounts WHERE name = 'meta';
-- The version counts, so that a sender sees a change
SELECT version AS before FROM otp.provider_accounts WHERE name = 'meta' \gset
SELECT otp.configure_meta(phone_number_id => '4712');
SELECT version - :before AS changes FROM otp.provider_accounts WHERE name = 'meta';

-- A sealed blob of one account is none of another, and a changed one none at all
BEGIN;
UPDATE otp.provider_accounts a SET secrets = b.secrets FROM otp.provider_accounts b WHERE a.name = 'meta' AND b.name = 'twilio';
SELECT t.error('SELECT otp.configure_meta()');
ROLLBACK;
SELECT count(*) AS forged, count(*) FILTER (WHERE refused) AS refused FROM (
	SELECT t.error(format('DO $x$ BEGIN UPDATE otp.provider_accounts SET secrets = set_byte(secrets, %s, get_byte(secrets, %s) # 1) WHERE name = ''meta''; PERFORM otp.configure_meta(); RAISE division_by_zero; END $x$', i, i))
		NOT LIKE '22012%' AS refused
	FROM otp.provider_accounts, generate_series(0, length(secrets) - 1) i WHERE name = 'meta') s;

-- In a read-only transaction
BEGIN READ ONLY;
SELECT otp.configure_meta();
ROLLBACK;

-- A key that is not in the key file: nothing is sealed with another
BEGIN;
UPDATE otp.keys SET key_id = 1, fingerprint = '0123456789abcdef';
UPDATE otp.provider_accounts SET key_id = 1;
SELECT regexp_replace(t.error('SELECT otp.configure_meta()'), '[0-9a-f]{16}', '<fingerprint>', 'g') AS error;
SELECT ok, detail FROM otp.key_status();
ROLLBACK;

UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL;
DELETE FROM otp.provider_accounts;
