-- Protects: which provider account a workspace sends through, and with what
-- sender. otp.use_provider checks what the configure functions check; an
-- account that is one workspace's own is used by no other, by whatever way;
-- receipts of a workspace's own number find the account it is used through.

\set SHOW_CONTEXT never
SET client_min_messages = error;
SELECT otp.create_workspace('shop') AS shop \gset
SELECT otp.create_workspace('bank') AS bank \gset
SELECT otp.configure_meta(phone_number_id => '100', access_token => 'token', app_secret => 'app', base_url => 'http://127.0.0.1:1');
SELECT otp.configure_twilio(account_sid => 'AC00000000000000000000000000000000', auth_token => 'token', sender => '+15550109999', base_url => 'http://127.0.0.1:1');
SELECT otp.configure_meta(account => 'brand', phone_number_id => '200', access_token => 'token', app_secret => 'app', base_url => 'http://127.0.0.1:1', workspace => 'bank');
CREATE VIEW pg_temp.uses AS
SELECT w.name, a.name AS whatsapp, w.whatsapp_sender, s.name AS sms, w.sms_sender FROM otp.workspaces w
LEFT JOIN otp.provider_accounts a ON a.account_id = w.whatsapp_account LEFT JOIN otp.provider_accounts s ON s.account_id = w.sms_account ORDER BY 1;

--
-- Use
--
SELECT otp.use_provider('shop', 'meta'), otp.use_provider('shop', 'twilio');
SELECT * FROM uses;
SELECT otp.use_provider('shop', 'meta', '101'), otp.use_provider('bank', 'meta', '102'), otp.use_provider('bank', 'twilio', 'Bank');
SELECT * FROM uses;
SELECT account, workspaces, exclusive_to, senders FROM otp.providers ORDER BY 1;
-- without one, the account's
SELECT otp.use_provider('bank', 'meta');
SELECT * FROM uses WHERE name = 'bank';
-- Senders
SELECT account, sender, t.error('SELECT otp.use_provider(''shop'', $1, $2)', account, sender) FROM (VALUES
	('meta', '0'), ('meta', repeat('1', 32)), ('meta', repeat('1', 33)), ('meta', repeat('1', 65)), ('meta', ''), ('meta', '+1'), ('meta', '1a'), ('meta', '../1'), ('meta', 'Shop'),
	('twilio', '+15550109998'), ('twilio', '12345'), ('twilio', 'My Shop'), ('twilio', 'MG0123456789'), ('twilio', 'MG0123456789abcdefABCDEF0123456789'), ('twilio', 'MG0123456789abcdefABCDEF012345678x'),
	('twilio', 'MGMT'), ('twilio', ''), ('twilio', '+0'), ('twilio', '+1555010999x'), ('twilio', 'Twelve chars'), ('twilio', 'a@b'), ('twilio', 'shöp'), ('twilio', E'a\nb')) v (account, sender);
SELECT * FROM uses WHERE name = 'shop';
SELECT call, t.error('SELECT otp.' || call) FROM unnest(ARRAY['use_provider(''nowhere'', ''meta'')', 'use_provider(''shop'', ''nothing'')', 'use_provider(NULL, ''meta'')', 'use_provider(''shop'', NULL)']) call;
-- The same account configured anew keeps the sender; another one does not
SELECT otp.use_provider('shop', 'meta', '101'), otp.use_provider('shop', 'twilio', 'Shop');
SELECT otp.configure_meta(access_token => 'token2', workspace => 'shop'), otp.configure_twilio(auth_token => 'token2', workspace => 'shop');
SELECT * FROM uses WHERE name = 'shop';
SELECT otp.configure_meta(account => 'new', phone_number_id => '300', access_token => 'token', workspace => 'shop');
SELECT * FROM uses WHERE name = 'shop';
SELECT otp.use_provider('shop', 'meta', '101');
-- Detached, and attached again
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL WHERE name = 'shop';
SELECT t.error('SELECT otp_send($1, workspace => ''shop'')', '+15550121001');
SELECT otp.configure_meta(workspace => 'shop');
SELECT * FROM uses WHERE name = 'shop';
SELECT t.error('SELECT otp_send($1, workspace => ''shop'')', '+15550121001');
-- An account that was deleted is none
BEGIN;
SELECT otp.use_provider('shop', 'new');
DELETE FROM otp.provider_accounts WHERE name = 'new';
SELECT t.error('SELECT otp_send($1, workspace => ''shop'')', '+15550121002');
ROLLBACK;

--
-- One's own
--
SELECT t.error('SELECT otp.use_provider(''shop'', ''meta'', exclusive => true)');
SELECT otp.use_provider('bank', 'brand', exclusive => true);
SELECT account, workspaces, exclusive_to FROM otp.providers ORDER BY 1;
SELECT call, t.error('SELECT otp.' || call) FROM unnest(ARRAY['use_provider(''shop'', ''brand'')', 'use_provider(''shop'', ''brand'', exclusive => true)', 'configure_meta(account => ''brand'')', 'configure_meta(account => ''brand'', workspace => ''shop'')',
	'configure_meta(account => ''brand'', access_token => ''stolen'', workspace => ''shop'')']) call;
SELECT version FROM otp.provider_accounts WHERE name = 'brand';
SELECT otp.configure_meta(account => 'brand', access_token => 'rotated', workspace => 'bank');
SELECT exclusive_to = :bank AS still_its_own FROM otp.provider_accounts WHERE name = 'brand';
SELECT otp.use_provider('bank', 'brand', '201', exclusive => true);
SELECT t.error('SELECT otp_send($1, workspace => ''bank'')', '+15550121003');
-- Whoever may UPDATE the policy still cannot take it
BEGIN;
UPDATE otp.workspaces SET whatsapp_account = (SELECT account_id FROM otp.provider_accounts WHERE name = 'brand') WHERE name = 'shop';
SELECT t.error('SELECT otp_send($1, workspace => ''shop'')', '+15550121004');
SELECT part, ok, detail FROM otp.check_setup('shop') WHERE part = 'whatsapp_provider';
UPDATE otp.provider_accounts SET settings = settings || '{"waba_id": "1"}' WHERE name = 'brand';
SELECT split_part(t.error('SELECT otp.sync_templates(''shop'')'), E'\n', 1);
SELECT otp.sync_templates('bank');
ROLLBACK;
-- Shared again, it is for all
SELECT otp.use_provider('bank', 'brand');
SELECT otp.use_provider('shop', 'brand');
SELECT account, workspaces, exclusive_to FROM otp.providers WHERE account = 'brand';
SELECT split_part(t.error('SELECT otp.use_provider(''bank'', ''brand'', exclusive => true)'), E'\n', 2);
SELECT otp.use_provider('shop', 'meta', '101');
SELECT otp.use_provider('bank', 'brand', exclusive => true);
-- Its own also while it uses another one
SELECT otp.use_provider('bank', 'meta');
SELECT split_part(t.error('SELECT otp.use_provider(''shop'', ''brand'')'), E'\n', 1);
SELECT otp.use_provider('bank', 'brand', exclusive => NULL);
SELECT exclusive_to FROM otp.provider_accounts WHERE name = 'brand';

--
-- check_setup: of the sender that is used
--
SELECT part, ok, detail FROM otp.check_setup('shop') WHERE part LIKE 'whatsapp%' AND part <> 'whatsapp_token';
UPDATE otp.provider_accounts SET receipts_from = '{100,200}' WHERE name = 'meta';
SELECT w, ok, detail FROM unnest(ARRAY['shop', 'default']) w, otp.check_setup(w) WHERE part = 'whatsapp_receipts';
UPDATE otp.provider_accounts SET receipts_from = '{100,101}' WHERE name = 'meta';
SELECT w, ok, detail FROM unnest(ARRAY['shop', 'default']) w, otp.check_setup(w) WHERE part = 'whatsapp_receipts';

--
-- Receipts of one app: each number's to the accounts that it is used through
--
CREATE FUNCTION pg_temp.takes(named text, VARIADIC numbers text[]) RETURNS TABLE (account text, "from" text, statuses text) LANGUAGE plpgsql AS $$
DECLARE
	body text := format('{"object":"whatsapp_business_account","entry":[{"id":"1","changes":[%s]}]}', (SELECT string_agg(format(
		'{"field":"messages","value":{"metadata":{"phone_number_id":"%s"},"statuses":[{"status":"sent","biz_opaque_callback_data":"otp_01HXK7QZRN8V4M2P9D3Y5F6G7H/%s"}]}}', n, n), ',' ORDER BY ord) FROM unnest(numbers) WITH ORDINALITY u (n, ord)));
BEGIN
	PERFORM otp.receive_meta(named, convert_to(body, 'UTF8'), 'sha256=' || encode(public.hmac(convert_to(body, 'UTF8'), 'app', 'sha256'), 'hex'));
	RETURN QUERY WITH gone AS (DELETE FROM otp.outbox WHERE kind = 'receipts' RETURNING payload::jsonb AS p)
		SELECT a.name, p ->> 'from', (SELECT string_agg(concat_ws(' of ', s ->> 'number', s ->> 'from'), ', ') FROM jsonb_array_elements(p -> 'statuses') s) FROM gone JOIN otp.provider_accounts a ON a.account_id = (p ->> 'account')::int ORDER BY 1;
END $$;
-- 100 is meta's, 101 shop's through meta, 200 brand's; 102 nobody's
SELECT * FROM pg_temp.takes('meta', '100', '101', '102');
SELECT * FROM pg_temp.takes('meta', '101', '101', '200', '100');
SELECT * FROM pg_temp.takes('brand', '200', '101', '100', '102');
-- a number that is an account's own and a workspace's through another one: to both, who sent it decides
SELECT otp.use_provider('bank', 'brand', '100');
SELECT * FROM pg_temp.takes('meta', '100');
SELECT * FROM pg_temp.takes('brand', '100', '200');
-- nothing for an account of another app
SELECT otp.configure_meta(account => 'brand', app_secret => 'another', workspace => 'bank'), otp.configure_meta(account => 'brand', app_secret => 'yetanother', workspace => 'bank');
SELECT * FROM pg_temp.takes('meta', '100', '200');

SELECT otp.delete_workspace('shop', true), otp.delete_workspace('bank', true);
DELETE FROM otp.verifications;
DELETE FROM otp.outbox;
UPDATE otp.workspaces SET whatsapp_account = NULL, sms_account = NULL;
DELETE FROM otp.provider_accounts;
TRUNCATE otp.deleted_workspaces;
SELECT setval('otp.workspaces_workspace_id_seq', 1);
