-- Protects: receipts through PostgREST. The bytes that were signed reach the
-- check; one address for Meta's GET and POST; what a proxy has to say; every
-- refusal is an answer with a status, and changes nothing.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'token', app_secret => '0123456789abcdef0123456789abcdef', verify_token => 'verify-me_1');
SELECT otp.configure_meta(account => 'brand', phone_number_id => '2', access_token => 'token', app_secret => 'anotherappsecret', verify_token => 'verify-me_2');
SELECT otp.configure_meta(account => 'mute', phone_number_id => '3', access_token => 'token');
SELECT otp.configure_twilio(account_sid => 'AC0123456789abcdef0123456789abcdef', auth_token => '12345678901234567890123456789012', sender => '+15017122661');

-- As the guide has it: whoever PostgREST becomes, and no more
CREATE ROLE regress_otp_anon;
GRANT USAGE ON SCHEMA otp_api TO regress_otp_anon;
GRANT EXECUTE ON FUNCTION otp_api.receive_meta(json), otp_api.receive_meta(text, text, text, text), otp_api.receive_twilio(text) TO regress_otp_anon;

-- A request as PostgREST makes it: headers in, status and headers out
CREATE FUNCTION t.request(call text, headers json, body text = NULL, OUT status text, OUT response_headers text, OUT result text, OUT queued text) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('request.headers', headers::text, true), set_config('response.status', '', true), set_config('response.headers', '', true);
	SET LOCAL ROLE regress_otp_anon;
	EXECUTE call INTO result USING body;
	RESET ROLE;
	status := current_setting('response.status');
	response_headers := current_setting('response.headers');
	WITH gone AS (DELETE FROM otp.outbox WHERE kind = 'receipts' RETURNING payload)
	SELECT string_agg(regexp_replace(payload, '"account":\d+', '"account":0'), E'\n') FROM gone INTO queued;
END $$;
CREATE FUNCTION t.meta(headers json, body text) RETURNS TABLE (status text, result text, queued text) LANGUAGE sql AS $$
	SELECT status, result, queued FROM t.request('SELECT otp_api.receive_meta($1::json)', headers, body)
$$;
CREATE FUNCTION t.twilio(headers json, body text) RETURNS TABLE (status text, result text, queued text) LANGUAGE sql AS $$
	SELECT status, result, queued FROM t.request('SELECT otp_api.receive_twilio($1)', headers, body)
$$;

-- The example of the signatures: blanks, order and all are signed
SELECT '{"object":"whatsapp_business_account","entry":[{"id":"102290129340398","changes":[{"value":{"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"},"statuses":[{"id":"wamid.HBgLMTY1MDM4Nzk0MzkVAgARGBI0QUQ2MjA4NEYyRkExNjMyREUA","status":"delivered","timestamp":"1750030080","recipient_id":"16505551234","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"authentication"}}]},"field":"messages"}]}]}' AS body,
	'sha256=7f22ac2ab47f4598ae7255761fb404550d913896e726d6387c6512c9fee97f06' AS signature \gset
SELECT * FROM t.meta(json_build_object('x-hub-signature-256', :'signature', 'content-type', 'application/json'), :'body');
SELECT * FROM t.meta(json_build_object('x-hub-signature-256', :'signature', 'x-otp-account', 'meta'), :'body');
SELECT * FROM t.meta(json_build_object('x-hub-signature-256', 'sha256=' || encode(hmac(E' {"a" :\t"Jos\u00e9", "a": 1}\n ', 'anotherappsecret', 'sha256'), 'hex'), 'x-otp-account', 'brand'), E' {"a" :\t"Jos\u00e9", "a": 1}\n ');
-- What is not ASCII, unescaped
SELECT * FROM t.meta(json_build_object('x-hub-signature-256', 'sha256=' || encode(hmac(convert_to('{"object":"é😀"}', 'UTF8'), '0123456789abcdef0123456789abcdef', 'sha256'), 'hex')), '{"object":"é😀"}');

-- Refused
SELECT what, r.* FROM (VALUES
	('forged', json_build_object('x-hub-signature-256', 'sha256=' || repeat('0', 64))),
	('of another account', json_build_object('x-hub-signature-256', :'signature', 'x-otp-account', 'brand')),
	('of another account, cut', json_build_object('x-hub-signature-256', left(:'signature', -1), 'x-otp-account', 'brand')),
	('of one that is not there', json_build_object('x-hub-signature-256', :'signature', 'x-otp-account', 'nobody')),
	('of a long name', json_build_object('x-hub-signature-256', :'signature', 'x-otp-account', repeat('x', 100))),
	('without a secret', json_build_object('x-hub-signature-256', :'signature', 'x-otp-account', 'mute')),
	('no header', '{}'), ('no headers', '[]')) v (what, headers), t.meta(headers, :'body') r;
SELECT status, left(result, 60) AS result FROM t.meta('{}', '"' || repeat('x', 4200000) || '"');

-- Outside of PostgREST there are no headers
BEGIN;
SET LOCAL ROLE regress_otp_anon;
RESET request.headers;
SELECT otp_api.receive_meta(:'body'::json)::json ->> 'code';
SELECT current_setting('response.status');
ROLLBACK;

-- The handshake, at the same address, in a read-only transaction; PostgREST takes hub.mode for mode
CREATE FUNCTION t.handshake(mode text, token text, challenge text, headers json = '{}', account text = NULL) RETURNS TABLE (status text, response_headers text, result text) LANGUAGE sql AS $$
	SELECT status, response_headers, result FROM t.request(format('SELECT otp_api.receive_meta(mode => %L, verify_token => %L, challenge => %L%s)', mode, token, challenge, ', account => ' || quote_literal(account)), headers)
$$;
SELECT h.* FROM t.handshake('subscribe', 'verify-me_1', '1158201444') h;
SELECT h.* FROM t.handshake('subscribe', 'verify-me_2', '1158201444', '{"x-otp-account": "brand"}') h;
SELECT h.* FROM t.handshake('subscribe', 'verify-me_2', '1158201444', account => 'brand') h;
SELECT h.* FROM (VALUES ('subscribe', 'verify-me_2', '1'), ('subscribe', NULL, '1'), ('unsubscribe', 'verify-me_1', '1'), ('subscribe', 'verify-me_1', NULL),
	('subscribe', 'verify-me_1', '<script>')) v (mode, token, challenge), t.handshake(mode, token, challenge) h;
SELECT h.status FROM t.handshake('subscribe', 'verify-me_1', '1', account => 'mute') h;
BEGIN READ ONLY;
SET LOCAL ROLE regress_otp_anon;
SELECT otp_api.receive_meta(mode => 'subscribe', verify_token => 'verify-me_1', challenge => '1158201444');
SELECT current_setting('response.headers');
ROLLBACK;
-- What PostgREST looks at: a type named */*, and no overload that a body could be taken for
SELECT p.oid::regprocedure, p.prorettype::regtype, p.provolatile, p.proargnames FROM pg_proc p WHERE p.pronamespace = 'otp_api'::regnamespace AND p.proname LIKE 'receive%' ORDER BY 1;

-- Twilio, behind a proxy that tells the address
SELECT 'AccountSid=AC0123456789abcdef0123456789abcdef&ApiVersion=2010-04-01&From=%2B15017122661&MessageSid=SM1234567890abcdef1234567890abcdef&MessageStatus=delivered&SmsSid=SM1234567890abcdef1234567890abcdef&SmsStatus=delivered&To=%2B919876543210&RawDlrDoneDate=2606021914' AS form \gset
SELECT * FROM t.twilio('{"x-twilio-signature": "PUE4qFICjbHCD/wr0Gt1Qw8wsss=", "x-otp-url": "https://api.example.com/rpc/twilio_status?tenant=a%20b&x=1"}', :'form');
SELECT * FROM t.twilio('{"x-twilio-signature": "OJOWT8xK229amL8EsHXVhuv45Rg=", "x-otp-url": "https://api.example.com/rpc/twilio_status", "x-otp-account": "twilio"}', :'form');
SELECT what, r.* FROM (VALUES
	('another address', '{"x-twilio-signature": "PUE4qFICjbHCD/wr0Gt1Qw8wsss=", "x-otp-url": "https://api.example.com/rpc/twilio_status?tenant=a%20b&x=2"}'),
	('no address', '{"x-twilio-signature": "PUE4qFICjbHCD/wr0Gt1Qw8wsss="}'),
	('no signature', '{"x-otp-url": "https://api.example.com/rpc/twilio_status"}'),
	('an account of Meta''s', '{"x-twilio-signature": "OJOWT8xK229amL8EsHXVhuv45Rg=", "x-otp-url": "https://api.example.com/rpc/twilio_status", "x-otp-account": "meta"}')) v (what, headers), t.twilio(headers::json, :'form') r;
-- One of ours
SELECT r.* FROM (VALUES ('https://example.com/cb?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=2')) u (url),
	t.twilio(json_build_object('x-otp-url', u.url,
			'x-twilio-signature', encode(hmac(u.url || 'MessageSidSM1234567890abcdef1234567890abcdefMessageStatusdelivered', '12345678901234567890123456789012', 'sha1'), 'base64')),
		'MessageSid=SM1234567890abcdef1234567890abcdef&MessageStatus=delivered') r;

-- In a read-only transaction nothing can be taken
BEGIN READ ONLY;
SELECT t.error('SELECT otp_api.receive_meta($1::json)', :'body');
ROLLBACK;
SELECT t.error('SELECT otp_api.receive_meta(NULL)');
SELECT t.error('SELECT otp_api.receive_twilio(NULL)');

DROP FUNCTION t.meta, t.twilio, t.handshake, t.request;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL;
DELETE FROM otp.provider_accounts;
DROP OWNED BY regress_otp_anon;
DROP ROLE regress_otp_anon;
