-- Protects: a database whose tables are all published goes on working. A
-- table without a replica identity would refuse every UPDATE and DELETE.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE PUBLICATION regress_otp FOR ALL TABLES;
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
SELECT otp.set_test_number('+15550112001', '123456');
SELECT otp_id AS id FROM otp_send('+15550112001') \gset
SELECT valid, error FROM unnest(ARRAY['x', '123456']) g, otp_verify(:'id', g);
SELECT success FROM otp_send('+15550112002');
-- as the sender does
UPDATE otp.outbox SET tries = 1;
DELETE FROM otp.outbox;
UPDATE otp.messages SET tries = 2;
DELETE FROM otp.messages;
DELETE FROM otp.verifications;
-- as its owner may
UPDATE otp.workspaces SET whatsapp_account = NULL;
DELETE FROM otp.test_numbers;
DELETE FROM otp.provider_accounts;
-- Every table that is written to has an identity
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'otp' AND c.relkind = 'r' AND c.relreplident = 'd'
AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary);
DROP PUBLICATION regress_otp;
