-- Protects: receipts in. Signatures by known-good examples, current and
-- previous secret; forged, missing, stale, another account's: refused,
-- counted, nothing changed. What is taken of a body and in which words it is
-- queued, however the provider spells it; several accounts of one app, each
-- of which gets its own and no other; garbage, and who may call.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'token', app_secret => '0123456789abcdef0123456789abcdef', verify_token => 'verify-me_1');
SELECT otp.configure_meta(account => 'brand', phone_number_id => '2', access_token => 'token', app_secret => 'anotherappsecret');
SELECT otp.configure_meta(account => 'mute', phone_number_id => '3', access_token => 'token');
SELECT otp.configure_meta();
SELECT otp.configure_twilio(account_sid => 'AC0123456789abcdef0123456789abcdef', auth_token => '12345678901234567890123456789012', sender => '+15017122661');
SELECT otp.configure_twilio(account => 'docs', account_sid => 'AC00000000000000000000000000000000', auth_token => '12345', sender => '+15017122661');
SELECT otp.configure_twilio(account => 'keyed', account_sid => 'AC00000000000000000000000000000000', api_key_sid => 'SK00000000000000000000000000000000', api_key_secret => 'x', sender => '+15017122661');
SELECT otp.configure_twilio();

CREATE FUNCTION pg_temp.bytes(body text) RETURNS bytea LANGUAGE sql AS $$ SELECT convert_to(body, 'UTF8') $$;
CREATE FUNCTION pg_temp.sign_meta(body bytea, secret text = '0123456789abcdef0123456789abcdef') RETURNS text LANGUAGE sql AS $$
	SELECT 'sha256=' || encode(hmac(body, pg_temp.bytes(secret), 'sha256'), 'hex')
$$;
CREATE FUNCTION pg_temp.sign_twilio(signed text, secret text = '12345678901234567890123456789012') RETURNS text LANGUAGE sql AS $$
	SELECT encode(hmac(pg_temp.bytes(signed), pg_temp.bytes(secret), 'sha1'), 'base64')
$$;
-- What is queued, and away with it
CREATE FUNCTION pg_temp.queued() RETURNS text LANGUAGE sql AS $$
	WITH gone AS (DELETE FROM otp.outbox WHERE kind = 'receipts' RETURNING payload)
	SELECT string_agg(regexp_replace(payload, '"account":\d+', '"account":0'), E'\n') FROM gone
$$;
-- Take a body of Meta's, a list of changes, or a list of statuses
CREATE FUNCTION pg_temp.body(body bytea) RETURNS TABLE (taken int, queued text) LANGUAGE plpgsql AS $$ BEGIN
	taken := otp.receive_meta('meta', body, pg_temp.sign_meta(body));
	queued := pg_temp.queued();
	RETURN NEXT;
END $$;
CREATE FUNCTION pg_temp.body(body text) RETURNS TABLE (taken int, queued text) LANGUAGE sql AS $$ SELECT * FROM pg_temp.body(pg_temp.bytes(body)) $$;
CREATE FUNCTION pg_temp.changes(changes text, waba text = '102290129340398') RETURNS TABLE (taken int, queued text) LANGUAGE sql AS $$
	SELECT * FROM pg_temp.body('{"object":"whatsapp_business_account","entry":[{"id":"' || waba || '","time":1751247548,"changes":[' || changes || ']}]}')
$$;
CREATE FUNCTION pg_temp.statuses(statuses text) RETURNS TABLE (taken int, queued text) LANGUAGE sql AS $$
	SELECT * FROM pg_temp.changes('{"field":"messages","value":{"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"},"statuses":[' || statuses || ']}}')
$$;
-- Take a form of Twilio's: the address that is signed, the one that is given
CREATE FUNCTION pg_temp.form(form text, signed text, url text = 'https://example.com/cb?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=2', signed_url text = NULL) RETURNS TABLE (taken int, queued text) LANGUAGE plpgsql AS $$ BEGIN
	taken := otp.receive_twilio('twilio', url, pg_temp.bytes(form), pg_temp.sign_twilio(coalesce(signed_url, url) || signed));
	queued := pg_temp.queued();
	RETURN NEXT;
END $$;

--
-- Known-good examples, made with openssl and Twilio's own library
--
BEGIN;
SELECT '{"object":"whatsapp_business_account","entry":[{"id":"102290129340398","changes":[{"value":{"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"},"statuses":[{"id":"wamid.HBgLMTY1MDM4Nzk0MzkVAgARGBI0QUQ2MjA4NEYyRkExNjMyREUA","status":"delivered","timestamp":"1750030080","recipient_id":"16505551234","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"authentication"}}]},"field":"messages"}]}]}' AS body,
	'sha256=7f22ac2ab47f4598ae7255761fb404550d913896e726d6387c6512c9fee97f06' AS signature \gset
SELECT otp.receive_meta('meta', pg_temp.bytes(:'body'), :'signature');
SELECT id > otp.parse_id('otp_01HXK7QZRN8V4M2P9D3Y5F6G7H') AS new_id, workspace_id, slot, number, kind, channel, tries, expires_at > clock_timestamp() + interval '23 h' AS day,
	(payload::json ->> 'account')::int = (SELECT account_id FROM otp.provider_accounts WHERE name = 'meta') AS account FROM otp.outbox;
SELECT pg_temp.queued();
-- Meta escapes what is not ASCII, and slashes; these bytes are signed
SELECT otp.receive_meta('meta', pg_temp.bytes('{"object":"whatsapp_business_account","entry":[{"id":"1","changes":[{"field":"messages","value":{"contacts":[{"profile":{"name":"Jos\u00e9 \ud83d\ude00"}}],"href":"https:\/\/x.test\/a"}}]}]}'),
	'sha256=d65ee8fe8ce51c97d8b32b166c3787b6c065ad13987627c522e974ed1910eb23');
-- Twilio's documentation; a status callback; one with a query; JSON
SELECT otp.receive_twilio('docs', 'https://example.com/myapp.php?foo=1&bar=2', pg_temp.bytes('CallSid=CA1234567890ABCDE&Caller=%2B14158675310&Digits=1234&From=%2B14158675310&To=%2B18005551212'), 'L/OH5YylLD5NRKLltdqwSvS0BnU=');
SELECT 'AccountSid=AC0123456789abcdef0123456789abcdef&ApiVersion=2010-04-01&From=%2B15017122661&MessageSid=SM1234567890abcdef1234567890abcdef&MessageStatus=delivered&SmsSid=SM1234567890abcdef1234567890abcdef&SmsStatus=delivered&To=%2B919876543210&RawDlrDoneDate=2606021914' AS form,
	'AccountSidAC0123456789abcdef0123456789abcdefApiVersion2010-04-01From+15017122661MessageSidSM1234567890abcdef1234567890abcdefMessageStatusdeliveredRawDlrDoneDate2606021914SmsSidSM1234567890abcdef1234567890abcdefSmsStatusdeliveredTo+919876543210' AS signed \gset
SELECT otp.receive_twilio('twilio', 'https://api.example.com/rpc/twilio_status', pg_temp.bytes(:'form'), 'OJOWT8xK229amL8EsHXVhuv45Rg=');
SELECT otp.receive_twilio('twilio', 'https://api.example.com/rpc/twilio_status?tenant=a%20b&x=1', pg_temp.bytes(:'form'), 'PUE4qFICjbHCD/wr0Gt1Qw8wsss=');
SELECT otp.receive_twilio('twilio', 'https://example.com/myapp.php?bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620', pg_temp.bytes('{"property": "value", "boolean": true}'), 'Ktm98NY+dpFJmS42mCfNdioaS6s=');
-- One of ours
SELECT * FROM pg_temp.form(:'form', :'signed');
ROLLBACK;

--
-- Refused: counted, nothing queued
--
SELECT t.error('SELECT otp.receive_meta($1, pg_temp.bytes($2), $3)', account, body, signature) AS error, string_agg(what, E'\n' ORDER BY what COLLATE "C") AS what FROM (VALUES
	('forged', 'meta', :'body', 'sha256=7f22ac2ab47f4598ae7255761fb404550d913896e726d6387c6512c9fee97f07'),
	('missing', 'meta', :'body', NULL), ('empty', 'meta', :'body', ''), ('cut', 'meta', :'body', left(:'signature', -1)), ('longer', 'meta', :'body', :'signature' || '0'),
	('very long', 'meta', :'body', repeat('x', 100000)), ('upper case', 'meta', :'body', upper(:'signature')), ('without its name', 'meta', :'body', substr(:'signature', 8)),
	('another body', 'meta', :'body' || ' ', :'signature'), ('of an empty body', 'meta', '', :'signature'),
	('another account''s', 'brand', :'body', :'signature'), ('no such account', 'nobody', :'body', :'signature'), ('another provider''s', 'twilio', :'body', :'signature'),
	('the stand-in for no secret', 'meta', :'body', pg_temp.sign_meta(pg_temp.bytes(:'body'), repeat('0', 32))),
	('the same, no such account', 'nobody', :'body', pg_temp.sign_meta(pg_temp.bytes(:'body'), repeat('0', 32))),
	('an empty secret', 'meta', :'body', pg_temp.sign_meta(pg_temp.bytes(:'body'), ''))) v (what, account, body, signature) GROUP BY 1;
SELECT t.error('SELECT otp.receive_twilio($1, $2, pg_temp.bytes($3), $4)', account, url, form, signature) AS error, string_agg(what, E'\n' ORDER BY what COLLATE "C") AS what FROM (VALUES
	('forged', 'twilio', 'https://api.example.com/rpc/twilio_status', :'form', 'OJOWT8xK229amL8EsHXVhuv45Rh='),
	('missing', 'twilio', 'https://api.example.com/rpc/twilio_status', :'form', NULL),
	('another query', 'twilio', 'https://api.example.com/rpc/twilio_status?x=1', :'form', 'OJOWT8xK229amL8EsHXVhuv45Rg='),
	('another host', 'twilio', 'https://api.example.org/rpc/twilio_status', :'form', 'OJOWT8xK229amL8EsHXVhuv45Rg='),
	('another form', 'twilio', 'https://api.example.com/rpc/twilio_status', replace(:'form', 'delivered', 'undelivered'), 'OJOWT8xK229amL8EsHXVhuv45Rg='),
	('another account''s', 'docs', 'https://api.example.com/rpc/twilio_status', :'form', 'OJOWT8xK229amL8EsHXVhuv45Rg='),
	('no such account', 'nobody', 'https://api.example.com/rpc/twilio_status', :'form', 'OJOWT8xK229amL8EsHXVhuv45Rg='),
	('JSON of another hash', 'twilio', 'https://example.com/myapp.php?bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620', '{"property": "value", "boolean": false}', 'Ktm98NY+dpFJmS42mCfNdioaS6s=')) v (what, account, url, form, signature) GROUP BY 1;
-- Nothing to check against; arguments; nothing is written where nothing may be
SELECT t.error('SELECT otp.receive_meta(''mute'', $1::bytea, '''')', 'x');
SELECT t.error('SELECT otp.receive_twilio(''keyed'', ''https://x'', $1::bytea, '''')', 'x');
SELECT t.error('SELECT otp.receive_meta_handshake(''mute'', ''subscribe'', ''x'', ''1'')');
SELECT call, t.error('SELECT otp.' || call) FROM unnest(ARRAY['receive_meta(NULL, '''', '''')', 'receive_meta(''meta'', NULL, '''')', 'receive_twilio(NULL, '''', '''', '''')', 'receive_twilio(''twilio'', NULL, '''', '''')',
	'receive_twilio(''twilio'', '''', NULL, '''')', 'receive_meta_handshake(NULL, ''subscribe'', '''', '''')', 'receive_meta(repeat(''x'', 65), '''', '''')', 'receive_twilio(''twilio'', repeat(''x'', 8193), '''', '''')']) call;
SELECT t.error('SELECT otp.receive_meta(''meta'', convert_to(repeat(''x'', 4194305), ''UTF8''), '''')');
SELECT t.error('SELECT otp.receive_twilio(''twilio'', '''', convert_to(repeat(''x'', 262145), ''UTF8''), '''')');
BEGIN READ ONLY;
SELECT t.error('SELECT otp.receive_meta(''meta'', pg_temp.bytes($1), $2)', :'body', :'signature');
SELECT t.error('SELECT otp.receive_twilio(''twilio'', '''', '''', '''')');
SELECT otp.receive_meta_handshake('meta', 'subscribe', 'verify-me_1', '1158201444');
COMMIT;
SELECT count(*) FROM otp.outbox WHERE kind = 'receipts';
SELECT account, provider, receipts_from, receipts_taken, receipts_refused, last_receipt_at > clock_timestamp() - interval '1 min' AS lately, breaker FROM otp.providers ORDER BY account;
SELECT count(*), min(state), max(state) FROM otp.breaker_status() b JOIN otp.provider_accounts a USING (account_id) WHERE receipts_refused > 0;

--
-- The secret before stays valid, the one before that does not
--
BEGIN;
SELECT otp.configure_meta(app_secret => 'second');
SELECT otp.receive_meta('meta', pg_temp.bytes(:'body'), :'signature');
SELECT otp.receive_meta('meta', pg_temp.bytes(:'body'), pg_temp.sign_meta(pg_temp.bytes(:'body'), 'second'));
SELECT otp.configure_meta(app_secret => 'third');
SELECT otp.receive_meta('meta', pg_temp.bytes(:'body'), pg_temp.sign_meta(pg_temp.bytes(:'body'), 'second'));
SELECT otp.receive_meta('meta', pg_temp.bytes(:'body'), pg_temp.sign_meta(pg_temp.bytes(:'body'), 'third'));
SELECT left(t.error('SELECT otp.receive_meta(''meta'', pg_temp.bytes($1), $2)', :'body', :'signature'), 5);
-- Taken away with its previous one
SELECT otp.configure_meta(app_secret => '');
SELECT left(t.error('SELECT otp.receive_meta(''meta'', pg_temp.bytes($1), $2)', :'body', pg_temp.sign_meta(pg_temp.bytes(:'body'), 'third')), 5);
SELECT otp.configure_twilio(auth_token => 'second');
SELECT otp.receive_twilio('twilio', 'https://api.example.com/rpc/twilio_status', pg_temp.bytes(:'form'), 'OJOWT8xK229amL8EsHXVhuv45Rg=');
SELECT otp.receive_twilio('twilio', 'https://x', '', pg_temp.sign_twilio('https://x', 'second'));
ROLLBACK;
-- Rolled back, it had never been
BEGIN;
SELECT otp.receive_meta('meta', pg_temp.bytes(:'body'), :'signature');
SELECT left(t.error('SELECT otp.receive_meta(''meta'', pg_temp.bytes($1), $2)', :'body', pg_temp.sign_meta(pg_temp.bytes(:'body'), 'third')), 5);
ROLLBACK;
-- A sealed secret that was moved from another row does not open
BEGIN;
UPDATE otp.provider_accounts a SET secrets = b.secrets FROM otp.provider_accounts b WHERE a.name = 'meta' AND b.name = 'brand';
SELECT t.error('SELECT otp.receive_meta(''meta'', pg_temp.bytes($1), $2)', :'body', :'signature');
ROLLBACK;

--
-- Meta: statuses of messages
--
BEGIN;
-- All that are known, and one that is not; with and without a number
SELECT * FROM pg_temp.statuses('{"id":"wamid.1","status":"sent","timestamp":"1750030073","recipient_id":"16505551234","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","conversation":{"id":"72","expiration_timestamp":1750116480,"origin":{"type":"authentication"}},"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"authentication-international"}}');
SELECT status, s.* FROM unnest(ARRAY['sent', 'delivered', 'read', 'played', 'failed', 'deleted', 'warning', 'SENT', '', 'pending']) status,
	pg_temp.statuses('{"id":"wamid.1","status":"' || status || '","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/3"}') s;
-- Nothing but what is ours
SELECT opaque, s.* FROM unnest(ARRAY['"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/1"', '"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/32767"', '"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/32768"', '"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/0"', '"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/"',
	'"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/-1"', '"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/2x"', '"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H3"', '"otp_01hxk7qzrn8v4m2p9d3y5f6g7h"', '"some data"', '""', 'null', '1', '{}', '"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H\u0000"']) opaque,
	pg_temp.statuses('{"id":"wamid.1","status":"sent","timestamp":1,"biz_opaque_callback_data":' || opaque || '}') s;
SELECT * FROM pg_temp.statuses('{"id":"wamid.1","status":"sent","timestamp":"1750030073"}');
-- Times, as numbers and strings
SELECT at, (s.queued::json #>> '{statuses,0,at}') AS taken_as FROM unnest(ARRAY['1750030073', '"1750030073"', '1750030073.5', '"1750030073.5"', '0', '-1', '"-1"', '"x"', '""', 'null', '{}', '1e300', '99999999999999', '"99999999999999"', '253402300799']) at,
	pg_temp.statuses('{"status":"sent","timestamp":' || at || ',"biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}') s;
-- Why it failed: codes as numbers and strings, explanations as objects and strings, no phone and no code in the words
SELECT s.queued::json #>> '{statuses,0,code}' AS code, s.queued::json #>> '{statuses,0,detail}' AS detail FROM unnest(ARRAY[
	'[{"code":131026,"title":"Message undeliverable","message":"(#131026) Message undeliverable","error_data":{"details":"Message Undeliverable."},"href":"/x"}]',
	'[{"code":"131049","title":"Healthy","error_data":"plain words"}]', '[{"title":"no code"},{"code":131047,"title":"the second has one"}]', '[]', 'null', '{}', '[1,"x",null]', '[{"code":99999999999,"title":"no such code"}]',
	'[{"code":131026,"title":"x","error_data":{"details":"to +1 650 555 1234, the code 123456; Jos\u00e9 \ud83d\ude00 \"quoted\" back\\slash\nline"}}]', '[{"code":1,"title":"' || repeat('long ', 200) || '"}]', '[{"code":0,"message":"(#0) AuthException"}]', '[{"code":131000,"message":{"x":1},"title":["y"],"error_data":7}]']) errors,
	pg_temp.statuses('{"status":"failed","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","errors":' || errors || '}') s;
-- An error's code on a status that is none is not looked at
SELECT * FROM pg_temp.statuses('{"status":"delivered","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","errors":[{"code":131026}]}');
-- Ids and categories that are none
SELECT * FROM pg_temp.statuses('{"id":"wamid 1","status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","pricing":{"category":7}},{"id":"' || repeat('x', 160) || '","status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","pricing":[]},{"id":"\u0000","status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H","pricing":{"category":"' || repeat('x', 40) || '"}}');
-- Errors without a status, users without a phone, other fields, all entries and changes
SELECT * FROM pg_temp.changes('{"field":"messages","value":{"messaging_product":"whatsapp","metadata":{"phone_number_id":"106540352242922"},"errors":[{"code":130501,"title":"Unsupported"}]}}');
SELECT * FROM pg_temp.body('{"object":"whatsapp_business_account","entry":[
	{"id":"1","changes":[{"field":"messages","value":{"contacts":[{"user_id":"US.1"}],"statuses":[{"recipient_user_id":"US.1","status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}},
		{"field":"messages","value":{"metadata":{"phone_number_id":"999"},"statuses":[{"status":"delivered","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}},
		{"field":"flows","value":{"statuses":[{"status":"failed","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}}]},
	{"id":"2","messaging":[]}, 7, null, [], {"changes":[7, null, {"field":"messages"}, {"field":"messages","value":[]}, {"field":"messages","value":{"statuses":{"status":"sent"}}}, {"field":"messages","value":{"statuses":[7, null, []]}}]},
	{"id":"1","changes":[{"field":"messages","value":{"metadata":{"phone_number_id":"106540352242922"},"statuses":[{"status":"read","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}},
		{"field":"messages","value":{"metadata":{"phone_number_id":"998"},"statuses":[{"status":"failed","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}}]}]}');
SELECT * FROM pg_temp.changes('{"field":"messages","value":{"metadata":{"phone_number_id":"998"},"statuses":[{"status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}}');

-- Bytes that are not ASCII, not UTF-8, not JSON: somebody's name costs nobody a receipt
SELECT name, s.* FROM (VALUES
	('UTF-8', convert_to('José 😀', 'UTF8')), ('Latin 1', '\x4a6f73e9'), ('cut within a character', '\xf09f98'), ('cut within a pair', '\x5c7564383364'), ('the other half', '\x5c7564653030'), ('both halves', '\x5c75643833645c7564653030'),
	('NUL', '\x5c7530303030'), ('a byte of 0', '\x4100'), ('a line feed', '\x410a42'), ('backslashes', '\x5c5c5c5c'), ('an escaped quote', '\x5c22')) v (name, bytes),
	pg_temp.body('\x'::bytea || pg_temp.bytes('{"object":"whatsapp_business_account","entry":[{"changes":[{"field":"messages","value":{"contacts":[{"profile":{"name":"') || bytes ||
		pg_temp.bytes('"}}],"statuses":[{"status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}}]}]}')) s;

-- Rightly signed, and of no use
SELECT left(encode(body, 'escape'), 60) AS body, s.* FROM unnest(ARRAY[''::bytea, '\x00', '\xff', ' ', '{', '{}', '[]', 'null', '7', '"x"', '{"object":"page","entry":[]}', '{"object":"whatsapp_business_account"}', '{"object":"whatsapp_business_account","entry":{}}',
	'{"object":"whatsapp_business_account","entry":[]} x', '\x5c', '\x7b225c75', pg_temp.bytes(repeat('[', 1000000)), pg_temp.bytes(repeat('{"a":', 800000)), pg_temp.bytes('{"object":"whatsapp_business_account","entry":' || repeat('[', 2000) || repeat(']', 2000) || '}'),
	pg_temp.bytes(repeat(chr(92), 999999)), pg_temp.bytes('"' || repeat('\ud83d', 100000))]) body, pg_temp.body(body) s;

-- A thousand updates, three megabytes
SELECT s.taken, s.queued::json ->> 'from' AS "from", json_array_length(s.queued::json -> 'statuses') AS statuses, s.queued::json #> '{statuses,999}' AS last,
	(SELECT bool_and(e.value ->> 'id' = otp.format_id(('0190000000000000' || lpad(to_hex(e.ordinality), 16, '0'))::uuid) AND (e.value ->> 'number')::int = e.ordinality) FROM json_array_elements(s.queued::json -> 'statuses') WITH ORDINALITY e) AS in_order
FROM (SELECT string_agg(format('{"id":"wamid.%s","status":"delivered","timestamp":"%s","recipient_id":"16505551234","biz_opaque_callback_data":"%s/%s","pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"authentication"},"more":"%s"}',
	i, 1750030000 + i, otp.format_id(('0190000000000000' || lpad(to_hex(i), 16, '0'))::uuid), i, repeat('x', 2850)), ',' ORDER BY i) AS statuses FROM generate_series(1, 1000) i) b, pg_temp.statuses(b.statuses) s;
SELECT s.taken FROM (SELECT string_agg('{"status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}', ',') AS statuses FROM generate_series(1, 5000)) b, pg_temp.statuses(b.statuses) s;

--
-- Meta: templates
--
SELECT event, (s.queued::json #>> '{templates,0,status}') AS status, s.taken FROM unnest(ARRAY['APPROVED', 'ARCHIVED', 'UNARCHIVED', 'DELETED', 'DISABLED', 'FLAGGED', 'IN_APPEAL', 'LIMIT_EXCEEDED', 'LOCKED', 'PAUSED', 'PENDING', 'REINSTATED', 'PENDING_DELETION', 'REJECTED', 'NEW_ONE', '']) event,
	pg_temp.changes('{"field":"message_template_status_update","value":{"event":"' || event || '","message_template_name":"order_confirmation","message_template_language":"en_US"}}') s;
SELECT * FROM pg_temp.changes('{"value":{"event":"APPROVED","message_template_id":1689556908129832,"message_template_name":"order_confirmation","message_template_language":"en-US","reason":"NONE","message_template_category":"UTILITY"},"field":"message_template_status_update"}');
SELECT * FROM pg_temp.changes('{"value":{"event":"REJECTED","message_template_id":"1689556908129832","message_template_name":"a","message_template_language":"zh_Hant_TW","reason":"INVALID_FORMAT"},"field":"message_template_status_update"},
	{"value":{"event":"REJECTED","message_template_name":"b","message_template_language":"de","reason":null,"rejection_info":{"reason":"Call +1 650 555 1234"}},"field":"message_template_status_update"},
	{"value":{"event":"PAUSED","message_template_name":"c","message_template_language":"de","other_info":{"title":"FIRST_PAUSE"}},"field":"message_template_status_update"},
	{"value":{"event":"PAUSED","message_template_name":"d","message_template_language":"de","other_info":{"title":"UNPAUSE"}},"field":"message_template_status_update"},
	{"value":{"event":"APPROVED","message_template_name":"Other People''s","message_template_language":"de"},"field":"message_template_status_update"},
	{"value":{"event":"APPROVED","message_template_name":"e"},"field":"message_template_status_update"}, {"value":{"event":"APPROVED","message_template_language":"de"},"field":"message_template_status_update"},
	{"value":{"event":"APPROVED","message_template_name":"f","message_template_language":"d''e"},"field":"message_template_status_update"}, {"value":7,"field":"message_template_status_update"}, {"field":"message_template_status_update"}');

--
-- Meta: the account
--
SELECT value, s.taken, (s.queued::json ->> 'restriction') AS restriction, (s.queued::json ->> 'restored') AS restored FROM unnest(ARRAY[
	'{"event":"DISABLED_UPDATE","ban_info":{"waba_ban_state":"DISABLE","waba_ban_date":"October 9, 2026"}}', '{"event":"DISABLED_UPDATE","ban_info":{"waba_ban_state":"SCHEDULE_FOR_DISABLE"}}', '{"event":"DISABLED_UPDATE","ban_info":{"waba_ban_state":"REINSTATE"}}', '{"event":"DISABLED_UPDATE"}',
	'{"event":"ACCOUNT_RESTRICTION","restriction_info":[{"restriction_type":"RESTRICTED_ADD_PHONE_NUMBER_ACTION"},{"restriction_type":"RESTRICTED_BIZ_INITIATED_MESSAGING","expiration":"2026-12-12T07:09:27+0000"}]}', '{"event":"ACCOUNT_RESTRICTION","restriction_info":[{"restriction_type":"RESTRICTED_CUSTOMER_INITIATED_MESSAGING"}]}',
	'{"event":"ACCOUNT_RESTRICTION"}', '{"event":"ACCOUNT_VIOLATION","violation_info":{"violation_type":"SCAM"}}', '{"event":"ACCOUNT_VIOLATION","violation_info":{"violation_type":"SCAM"},"restriction_info":[{"restriction_type":"RESTRICTED_BIZ_INITIATED_MESSAGING"}]}',
	'{"event":"ACCOUNT_DELETED"}', '{"event":"ACCOUNT_OFFBOARDED"}', '{"event":"ACCOUNT_RECONNECTED"}', '{"event":"VERIFIED_ACCOUNT","phone_number":"16505551234"}', '{"event":"PARTNER_ADDED"}', '{"event":7}', '7', '{}']) value, pg_temp.changes('{"field":"account_update","value":' || value || '}') s;
SELECT * FROM pg_temp.changes('{"field":"account_update","value":{"event":"ACCOUNT_RESTRICTION"}},{"field":"account_update","value":{"event":"DISABLED_UPDATE","ban_info":{"waba_ban_state":"REINSTATE"}}}');
-- Another business account's troubles and templates are not ours; its messages may be
SELECT otp.configure_meta(waba_id => '102290129340398');
SELECT waba, s.* FROM unnest(ARRAY['102290129340398', '5467539754836534']) waba, pg_temp.changes('{"field":"account_update","value":{"event":"ACCOUNT_DELETED"}},{"field":"message_template_status_update","value":{"event":"PAUSED","message_template_name":"a","message_template_language":"de"}},
	{"field":"messages","value":{"statuses":[{"status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}]}}', waba) s;
ROLLBACK;

--
-- Meta: several accounts
--
-- A body, signed with an account's secret and taken in its name: who gets what
CREATE FUNCTION pg_temp.shared(account text, body text, secret text = '0123456789abcdef0123456789abcdef') RETURNS TABLE (taken int, gets text, "from" text, statuses text, templates text, restriction text, restored bool) LANGUAGE plpgsql AS $$ BEGIN
	taken := otp.receive_meta(account, pg_temp.bytes(body), pg_temp.sign_meta(pg_temp.bytes(body), secret));
	FOR gets, "from", statuses, templates, restriction, restored IN
		WITH gone AS (DELETE FROM otp.outbox WHERE kind = 'receipts' RETURNING payload::jsonb AS payload)
		SELECT a.name, payload ->> 'from', (SELECT string_agg(s ->> 'number', ',') FROM jsonb_array_elements(payload -> 'statuses') s), (SELECT string_agg(t ->> 'name', ',') FROM jsonb_array_elements(payload -> 'templates') t),
			payload ->> 'restriction', (payload ->> 'restored')::bool FROM gone LEFT JOIN otp.provider_accounts a ON a.account_id = (payload ->> 'account')::int ORDER BY a.name
	LOOP
		RETURN NEXT;
		taken := NULL;
	END LOOP;
	IF taken IS NOT NULL THEN RETURN NEXT; END IF;
END $$;
CREATE FUNCTION pg_temp.statuses(phone_number_id text, numbers int[]) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"field":"messages","value":{"metadata":{"phone_number_id":"%s"},"statuses":[%s]}}', phone_number_id,
		(SELECT string_agg(format('{"status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/%s"}', n), ',') FROM unnest(numbers) n))
$$;
CREATE FUNCTION pg_temp.template(name text) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"field":"message_template_status_update","value":{"event":"PAUSED","message_template_name":"%s","message_template_language":"de"}}', name)
$$;
CREATE FUNCTION pg_temp.entry(waba text, VARIADIC changes text[]) RETURNS text LANGUAGE sql AS $$ SELECT format('{"id":"%s","changes":[%s]}', waba, array_to_string(changes, ',')) $$;
CREATE FUNCTION pg_temp.entries(VARIADIC entries text[]) RETURNS text LANGUAGE sql AS $$ SELECT format('{"object":"whatsapp_business_account","entry":[%s]}', array_to_string(entries, ',')) $$;
BEGIN;
SELECT otp.configure_meta(waba_id => '102290129340398');
SELECT otp.configure_meta(account => 'second', phone_number_id => '777', waba_id => '9001', access_token => 'token', app_secret => '0123456789abcdef0123456789abcdef');
SELECT otp.configure_meta(account => 'brand', waba_id => '9002');
SELECT otp.configure_meta(account => 'mute', waba_id => '9003');
SELECT pg_temp.entries(
	pg_temp.entry('102290129340398', pg_temp.statuses('106540352242922', '{1,2}'), pg_temp.statuses('999', '{9}'), pg_temp.statuses('2', '{22}'), pg_temp.statuses('3', '{33}'), pg_temp.template('a')),
	pg_temp.entry('9001', pg_temp.statuses('777', '{7,8}'), pg_temp.template('b'), '{"field":"account_update","value":{"event":"ACCOUNT_DELETED"}}'),
	pg_temp.entry('9002', pg_temp.template('c'), '{"field":"account_update","value":{"event":"ACCOUNT_DELETED"}}'), pg_temp.entry('9003', pg_temp.template('d')), pg_temp.entry('555', pg_temp.template('e'))) AS mixed \gset
-- With the same secret: each its own, whoever is named; with another or none: nothing
SELECT * FROM pg_temp.shared('meta', :'mixed');
SELECT * FROM pg_temp.shared('second', :'mixed');
SELECT * FROM pg_temp.shared('brand', :'mixed', 'anotherappsecret');
SELECT * FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('777', '{1}')), pg_temp.entry('9001', pg_temp.statuses('777', '{2}'))));
SELECT * FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('777', '{}'), '{"field":"account_update","value":{"event":"PARTNER_ADDED"}}')));
SELECT account, receipts_taken > 0 AS taken, last_receipt_at IS NOT NULL AS last FROM otp.providers WHERE account IN ('second', 'mute') ORDER BY 1;
-- Two numbers of one business account share its templates and troubles, which count once; the last trouble holds
SELECT otp.configure_meta(account => 'third', phone_number_id => '778', waba_id => '9001', access_token => 'token', app_secret => '0123456789abcdef0123456789abcdef');
SELECT * FROM pg_temp.shared('second', pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('778', '{1}'), pg_temp.template('a'), '{"field":"account_update","value":{"event":"ACCOUNT_RESTRICTION"}}', '{"field":"account_update","value":{"event":"ACCOUNT_RECONNECTED"}}')));
SELECT * FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('778', '{1}'), pg_temp.statuses('777', '{2}'), '{"field":"account_update","value":{"event":"ACCOUNT_RECONNECTED"}}', '{"field":"account_update","value":{"event":"ACCOUNT_RESTRICTION"}}')));
-- Two accounts of one number: whose message it was, the sender knows
SELECT otp.configure_meta(account => 'third', phone_number_id => '777', waba_id => '');
SELECT * FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('777', '{1}'), pg_temp.template('a'))));
UPDATE otp.provider_accounts SET name = 'renamed' WHERE name = 'third';
SELECT * FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('777', '{1}'))));
DELETE FROM otp.provider_accounts WHERE name = 'renamed';
SELECT * FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('777', '{1}'))));
-- The secret that has signed counts, be it here the one before and there the one now
SELECT * FROM (SELECT pg_temp.entries(pg_temp.entry('9001', pg_temp.statuses('777', '{1}'), pg_temp.template('a')))) b (own) \gset
SELECT otp.configure_meta(app_secret => 'rotated');
SELECT * FROM pg_temp.shared('meta', :'own');
SELECT * FROM pg_temp.shared('meta', :'own', 'rotated');
SELECT * FROM pg_temp.shared('second', :'own');
SELECT otp.configure_meta(account => 'second', app_secret => 'rotated');
SELECT * FROM pg_temp.shared('meta', :'own', 'rotated');
SELECT * FROM pg_temp.shared('meta', :'own');
SELECT otp.configure_meta(account => 'second', app_secret => 'rotated_again');
SELECT otp.configure_meta(account => 'second', app_secret => 'and_again');
SELECT * FROM pg_temp.shared('meta', :'own');
SELECT otp.configure_meta(account => 'second', app_secret => '');
SELECT * FROM pg_temp.shared('meta', :'own', 'rotated');
-- A secret that does not open: nothing is lost, for the provider comes again; others have no trouble
SAVEPOINT before;
UPDATE otp.provider_accounts a SET secrets = b.secrets, key_id = b.key_id FROM otp.provider_accounts b WHERE a.name = 'second' AND b.name = 'brand';
SELECT t.error('SELECT * FROM pg_temp.shared(''meta'', $1)', :'own');
SELECT * FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('102290129340398', pg_temp.statuses('106540352242922', '{1}'), pg_temp.statuses('999', '{2}'))));
ROLLBACK TO before;
-- No more than 64 for one number
SELECT count(otp.configure_meta(account => 'many' || i, phone_number_id => '4', access_token => 'token', app_secret => 'rotated')) FROM generate_series(1, 66) i;
SELECT min(taken), count(*), count(DISTINCT gets), min(statuses), max(statuses) FROM pg_temp.shared('meta', pg_temp.entries(pg_temp.entry('1', pg_temp.statuses('4', '{1,2}'))), 'rotated');
SELECT min(taken), count(*), count(DISTINCT gets), min(statuses), max(statuses) FROM pg_temp.shared('many7', pg_temp.entries(pg_temp.entry('1', pg_temp.statuses('4', '{1,2}'))), 'rotated');
ROLLBACK;

BEGIN;
-- More values than any body of Meta's has are not read; what is only said counts nothing
SELECT s.taken FROM pg_temp.body('{"object":"whatsapp_business_account","entry":[' || pg_temp.entry('1', pg_temp.statuses('1', '{1}')) || repeat(',{}', 130000) || ']}') s;
SELECT s.taken FROM pg_temp.body('{"object":"whatsapp_business_account","entry":[' || pg_temp.entry('1', pg_temp.statuses('1', '{1}')) || ',{"\"said\\":"' || repeat(',{[\"', 300000) || '"}]}') s;
-- One at a time is what the sender does of templates
SELECT s.taken, json_array_length(s.queued::json -> 'templates') AS templates FROM (SELECT array_agg(pg_temp.template('t' || i)) AS t FROM generate_series(1, 1001) i) t, pg_temp.body(pg_temp.entries(pg_temp.entry('1', VARIADIC t))) s;
-- A member that is there twice: the last one counts
SELECT * FROM pg_temp.statuses('{"status":"sent","status":"failed","biz_opaque_callback_data":"x","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"}');
-- More fields than any form of Twilio's has are not even sorted, though they be signed
SELECT left(t.error('SELECT pg_temp.form($1, $2)', string_agg('f' || lpad(i::text, 5, '0'), '&' ORDER BY i), string_agg('f' || lpad(i::text, 5, '0'), '' ORDER BY i)), 5) FROM generate_series(1, 37000) i;
ROLLBACK;

--
-- Twilio
--
BEGIN;
SELECT status, s.* FROM unnest(ARRAY['accepted', 'scheduled', 'queued', 'sending', 'sent', 'delivered', 'undelivered', 'failed', 'canceled', 'read', 'receiving', '', 'SENT']) status, pg_temp.form('MessageStatus=' || status, 'MessageStatus' || status) s;
-- As older ones have it; unknown fields; a code and its words
SELECT * FROM pg_temp.form('SmsStatus=sent&SmsSid=SM1', 'SmsSidSM1SmsStatussent');
SELECT * FROM pg_temp.form('ErrorCode=30005&ErrorMessage=Unknown+destination+handset+%2B16505551234&MessageStatus=undelivered&NewOne=%C3%A9', 'ErrorCode30005ErrorMessageUnknown destination handset +16505551234MessageStatusundeliveredNewOneé');
SELECT code, s.* FROM unnest(ARRAY['', '0', 'x', '1e5', '30003 ', '9999999999']) code, pg_temp.form('ErrorCode=' || replace(code, ' ', '%20') || '&MessageStatus=failed', 'ErrorCode' || code || 'MessageStatusfailed') s;
-- Words that are not UTF-8, or hold a NUL, are none
SELECT message, otp.receive_twilio('twilio', u.url, pg_temp.bytes('ErrorMessage=' || message || '&MessageStatus=failed'), encode(hmac(pg_temp.bytes(u.url || 'ErrorMessage') || bytes || 'MessageStatusfailed', '12345678901234567890123456789012', 'sha1'), 'base64')), pg_temp.queued()
FROM (VALUES ('caf%E9', '\x636166e9'::bytea), ('a%00b', '\x610062')) v (message, bytes), (VALUES ('https://example.com/cb?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=2')) u (url);
-- Order of fields, fields that are there twice, without a value, without a name, half escapes
SELECT * FROM pg_temp.form('b=2&a=1&B=3&MessageStatus=sent&b=1&b=2&c&=d&&e=%zz%4', 'dB3MessageStatussenta1b1b2ce%zz%4');
SELECT * FROM pg_temp.form('MessageStatus=s%65nt&x=a+b%2Bc&y=a%3Db%26', 'MessageStatussentxa b+cya=b&');
-- Told of another account; told of none of ours
SELECT * FROM pg_temp.form('AccountSid=AC00000000000000000000000000000000&MessageStatus=sent', 'AccountSidAC00000000000000000000000000000000MessageStatussent');
SELECT query, s.* FROM unnest(ARRAY['', '?', '?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H', '?number=1', '?otp_id=&number=', '?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=0', '?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=x', '?otp_id=x&number=1', '?otp_id=otp_01hxk7qzrn8v4m2p9d3y5f6g7h&number=1',
	'?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H%00&number=1', '?tenant=a%20b&otp_id=x&number=7&otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=3', '?otp%5Fid=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=%32']) query, pg_temp.form('MessageStatus=sent', 'MessageStatussent', 'https://example.com/cb' || query) s;
-- Ports: Twilio signs with or without
SELECT signed, given, s.taken FROM (VALUES ('https://example.com/cb', 'https://example.com:443/cb'), ('https://example.com:443/cb', 'https://example.com/cb'), ('http://example.com/cb', 'http://example.com:80/cb'), ('http://example.com:80/cb', 'http://example.com/cb'),
	('https://example.com:8443/cb', 'https://example.com:8443/cb'), ('https://example.com/cb', 'https://example.com:8443/cb'), ('https://u:p@example.com/cb', 'https://u:p@example.com:443/cb'), ('https://u:p@example.com:443/cb', 'https://u:p@example.com/cb'),
	('https://[::1]/cb', 'https://[::1]:443/cb'), ('https://[::1]:443/cb', 'https://[::1]/cb'), ('https://example.com:443', 'https://example.com'), ('https://example.com/cb:1', 'https://example.com:443/cb:1')) v (signed, given),
	pg_temp.form('MessageStatus=sent', 'MessageStatussent', given || '?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=1', signed || '?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=1') s;
SELECT left(t.error('SELECT pg_temp.form(''MessageStatus=sent'', ''MessageStatussent'', $1, $2)', given, signed), 5) FROM (VALUES ('https://example.com:8443/cb', 'https://example.com:443/cb'), ('https://example.com/cb', 'https://example.com:80/cb'), ('http://example.com/cb', 'https://example.com/cb')) v (given, signed);
-- What follows a # is for Twilio's own use
SELECT taken FROM pg_temp.form('MessageStatus=sent', 'MessageStatussent', 'https://example.com/cb?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=1#rc=3', 'https://example.com/cb?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=1');
-- A status as JSON, should it come
SELECT body, s.* FROM unnest(ARRAY['{"MessageStatus":"delivered","MessageSid":"SM1","AccountSid":"AC0123456789abcdef0123456789abcdef"}', '{"MessageStatus":7}', '[]', 'x', '']) body,
	pg_temp.form(body, '', 'https://example.com/cb?otp_id=otp_01HXK7QZRN8V4M2P9D3Y5F6G7H&number=1&bodySHA256=' || encode(sha256(pg_temp.bytes(body)), 'hex')) s;
-- Garbage
SELECT left(form, 20), s.* FROM unnest(ARRAY['', '&', '=', '%', '&&&===', repeat('a', 262144), repeat('&', 262144), repeat('=', 262144)]) form, LATERAL (SELECT CASE WHEN form ~ '^&*$' THEN '' WHEN form ~ '^=+$' THEN substr(form, 2) WHEN form = '&&&===' THEN '==' ELSE form END AS signed) x, pg_temp.form(form, x.signed) s;
ROLLBACK;

--
-- The handshake
--
SELECT otp.receive_meta_handshake('meta', 'subscribe', 'verify-me_1', '1158201444');
SELECT otp.receive_meta_handshake('meta', 'subscribe', 'verify-me_1', repeat('x', 128)) = repeat('x', 128) AS long;
SELECT t.error('SELECT otp.receive_meta_handshake($1, $2, $3, $4)', account, mode, token, challenge) AS error, string_agg(what, E'\n' ORDER BY what COLLATE "C") AS what FROM (VALUES
	('wrong', 'meta', 'subscribe', 'verify-me_2', '1'), ('begun', 'meta', 'subscribe', 'verify-me_', '1'), ('longer', 'meta', 'subscribe', 'verify-me_11', '1'), ('empty', 'meta', 'subscribe', '', '1'), ('missing', 'meta', 'subscribe', NULL, '1'), ('very long', 'meta', 'subscribe', repeat('x', 100000), '1'),
	('another mode', 'meta', 'unsubscribe', 'verify-me_1', '1'), ('no mode', 'meta', NULL, 'verify-me_1', '1'), ('no such account', 'nobody', 'subscribe', 'verify-me_1', '1'), ('the stand-in', 'nobody', 'subscribe', repeat('0', 32), '1'), ('another provider''s', 'twilio', 'subscribe', 'verify-me_1', '1'),
	('a page', 'meta', 'subscribe', 'verify-me_1', '<script>'), ('no challenge', 'meta', 'subscribe', 'verify-me_1', NULL), ('empty challenge', 'meta', 'subscribe', 'verify-me_1', ''), ('long challenge', 'meta', 'subscribe', 'verify-me_1', repeat('1', 129)), ('two lines', 'meta', 'subscribe', 'verify-me_1', E'1\r\n2')) v (what, account, mode, token, challenge) GROUP BY 1 ORDER BY 1;

--
-- Who may call: whoever was let, and no workspace is needed
--
CREATE ROLE regress_otp_web;
GRANT USAGE ON SCHEMA otp TO regress_otp_web;
SET ROLE regress_otp_web;
SELECT call, left(t.error('SELECT otp.' || call), 5) FROM unnest(ARRAY['receive_meta('''', '''', '''')', 'receive_twilio('''', '''', '''', '''')', 'receive_meta_handshake('''', '''', '''', '''')']) call;
RESET ROLE;
GRANT EXECUTE ON FUNCTION otp.receive_meta, otp.receive_twilio, otp.receive_meta_handshake TO regress_otp_web;
BEGIN;
SET LOCAL ROLE regress_otp_web;
SELECT otp.receive_meta('meta', pg_temp.bytes(:'body'), :'signature');
SELECT otp.receive_meta_handshake('meta', 'subscribe', 'verify-me_1', '1158201444');
SELECT otp.receive_twilio('twilio', 'https://api.example.com/rpc/twilio_status', pg_temp.bytes(:'form'), 'OJOWT8xK229amL8EsHXVhuv45Rg=');
SELECT t.error('SELECT FROM otp.outbox');
SELECT t.error('SELECT otp_send(''+15550120001'')') LIKE '42501%' AS no_send;
SELECT current_user = 'regress_otp_web' AS still_the_caller, current_setting('search_path') AS path;
RESET ROLE;
SELECT pg_temp.queued() IS NOT NULL AS queued;
ROLLBACK;

-- Whatever they put first in the path, nothing of theirs is run
CREATE SCHEMA evil AUTHORIZATION regress_otp_web;
GRANT TEMPORARY ON DATABASE :DBNAME TO regress_otp_web;
\c -
\set SHOW_CONTEXT never
SET client_min_messages = error;
SET ROLE regress_otp_web;
CREATE TABLE evil.log (who text, what text);
GRANT ALL ON evil.log TO PUBLIC;
DO $$
DECLARE
	t text;
BEGIN
	FOREACH t IN ARRAY ARRAY['text', 'uuid', 'int4', 'int8', 'timestamptz', 'bytea', 'jsonb'] LOOP
		EXECUTE format('CREATE FUNCTION evil.op(a %1$s, b %1$s) RETURNS bool LANGUAGE plpgsql AS $x$ BEGIN INSERT INTO evil.log VALUES (current_user, ''operator %1$s''); RETURN true; END $x$', t);
		EXECUTE format('CREATE OPERATOR evil.= (FUNCTION = evil.op, LEFTARG = %1$s, RIGHTARG = %1$s)', t);
	END LOOP;
	CREATE DOMAIN evil.jsonb AS text;
	CREATE TABLE evil.provider_accounts (name text, provider text);
	CREATE TABLE evil.outbox (id int);
	CREATE TEMP TABLE provider_accounts (name text, provider text);
	CREATE TEMP TABLE outbox (id int);
END $$;
SET search_path = evil, pg_temp, pg_catalog, public;
BEGIN;
SELECT otp.receive_meta('meta', convert_to(:'body', 'UTF8'), :'signature');
SELECT otp.receive_meta_handshake('meta', 'subscribe', 'verify-me_1', '1158201444');
SELECT otp.receive_twilio('twilio', 'https://api.example.com/rpc/twilio_status', convert_to(:'form', 'UTF8'), 'OJOWT8xK229amL8EsHXVhuv45Rg=');
SELECT * FROM evil.log;
SELECT * FROM evil.outbox;
ROLLBACK;
SELECT otp.receive_meta('meta', '', 'x');
RESET search_path;
RESET ROLE;
SELECT * FROM evil.log;
SELECT account, receipts_taken, receipts_refused FROM otp.providers ORDER BY account;

-- An account that is made anew begins at nothing
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL;
DELETE FROM otp.provider_accounts WHERE name = 'brand';
SELECT setval('otp.provider_accounts_account_id_seq', account_id, false) IS NOT NULL AS again FROM otp.breaker_status() WHERE receipts_refused = 1 AND account_id NOT IN (SELECT account_id FROM otp.provider_accounts);
SELECT otp.configure_meta(account => 'anew', phone_number_id => '2', access_token => 'token', app_secret => 'x');
SELECT account, receipts_taken, receipts_refused, last_receipt_at FROM otp.providers WHERE account = 'anew';

DROP SCHEMA evil CASCADE;
DROP OWNED BY regress_otp_web;
DROP ROLE regress_otp_web;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL;
DELETE FROM otp.provider_accounts;
