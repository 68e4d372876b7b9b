-- Protects: credits as callers see them. What a send and a resend cost, and
-- what costs nothing; that a rollback gives back, a savepoint's, too; the
-- refusal, in every isolation level; top-ups that come twice, corrections,
-- debts; the ledger, to which rows can only be added; whose balance one sees.

\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE ROLE regress_otp_payer;
CREATE ROLE regress_otp_other_payer;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other');
SELECT otp.grant_workspace('default', 'regress_otp_payer');
SELECT otp.grant_workspace('other', 'regress_otp_other_payer');
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:1');
UPDATE otp.workspaces SET sends_per_second = NULL, resend_cooldown = NULL, sends_per_phone_hour = NULL;
UPDATE otp.workspaces SET whatsapp_account = (SELECT whatsapp_account FROM otp.workspaces WHERE workspace_id = 1);
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
CREATE VIEW t.balance AS SELECT workspace, metered, balance, added, spent, credits_low FROM otp.credit_balances ORDER BY workspace;

-- Off: nothing is counted, nothing is refused
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550190001');
SELECT o.credits FROM otp.outbox o JOIN otp.verifications v USING (id) WHERE v.phone = '+15550190001';
SELECT * FROM t.balance;

-- Metered, and nothing there
UPDATE otp.workspaces SET credits_metered = true WHERE workspace_id = 1;
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550190002');
SELECT count(*) FROM otp.verifications WHERE phone = '+15550190002';
SELECT t.error('SELECT otp_send($1, workspace => ''other'')', '+15550190002');

-- Arguments
SELECT name, amount, reference, t.error('SELECT otp.add_credits($1, $2::int8, $3)', name, amount, reference) FROM (VALUES
	(NULL, '1', NULL), ('default', NULL, NULL), ('default', '0', NULL), ('default', '1000000000001', NULL), ('default', '-1000000000001', NULL),
	('default', '-9223372036854775808', NULL), ('nowhere', '1', NULL), ('default', '1', '')) v (name, amount, reference);
SELECT t.error('SELECT otp.add_credits(''default'', 1, repeat(''x'', 256))');
-- For the owner only, whoever has EXECUTE
BEGIN;
GRANT EXECUTE ON FUNCTION otp.add_credits TO PUBLIC;
SET LOCAL ROLE regress_otp_payer;
SELECT t.error('SELECT otp.add_credits(''default'', 1)'), t.error('SELECT otp.add_credits(''nowhere'', NULL)');
ROLLBACK;
SET ROLE regress_otp_payer;
SELECT t.error('SELECT otp.add_credits(''default'', 1)');
RESET ROLE;
BEGIN READ ONLY;
SELECT t.error('SELECT otp.add_credits(''default'', 1)');
ROLLBACK;

-- A top-up, spread over all stripes; taken back with its transaction
BEGIN;
SELECT otp.add_credits('default', 1000, 'payment 1');
SELECT count(*), sum(amount), max(amount) - min(amount) AS difference FROM otp.credits WHERE workspace_id = 1;
ROLLBACK;
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550190002');
SELECT otp.add_credits('default', 5, 'payment 1');
SELECT * FROM t.balance;

-- The same payment told twice counts once, and is told from another one
SELECT otp.add_credits('default', 5, 'payment 1');
SELECT t.error('SELECT otp.add_credits(''default'', 6, ''payment 1'')');
SELECT otp.add_credits('other', 7, 'payment 1');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT otp.add_credits('default', 5, 'payment 1'), otp.add_credits('default', 1, 'payment 2'), otp.add_credits('default', 1, 'payment 2');
ROLLBACK;
SELECT * FROM t.balance;

-- Too many
BEGIN;
SELECT count(otp.add_credits('default', 1000000000000)) FROM generate_series(1, 999);
SELECT t.error('SELECT otp.add_credits(''default'', 1000000000000)');
ROLLBACK;

-- A send and a resend cost one each
SELECT otp_id AS id FROM otp_send('+15550190003', workspace => 'default') \gset
SELECT balance FROM t.balance WHERE workspace = 'default';
SELECT success FROM otp_resend(:'id');
SELECT number, credits FROM otp.outbox WHERE id = otp.parse_id(:'id') ORDER BY 1;
SELECT balance, added, spent FROM t.balance WHERE workspace = 'default';
-- A rollback gives back, and so does a savepoint's
BEGIN;
SELECT success FROM otp_send('+15550190004', workspace => 'default');
SAVEPOINT a;
SELECT success FROM otp_send('+15550190005', workspace => 'default');
SELECT balance FROM t.balance WHERE workspace = 'default';
ROLLBACK TO a;
SELECT balance FROM t.balance WHERE workspace = 'default';
SELECT success FROM otp_send('+15550190005', workspace => 'default');
SELECT success FROM otp_send('+15550190006', workspace => 'default');
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550190007');
SELECT t.error(format('SELECT otp_resend(%L)', :'id'));
ROLLBACK;
SELECT balance FROM t.balance WHERE workspace = 'default';
-- A refused send costs nothing, and what is verified, canceled or asked for costs nothing
SELECT t.error('SELECT otp_send($1, template => ''nope'', workspace => ''default'')', '+15550190008');
SELECT otp_cancel(:'id');
SELECT balance FROM t.balance WHERE workspace = 'default';
-- Test numbers cost nothing, be there nothing left
SELECT otp.set_test_number('+15550190009', '123456');
BEGIN;
SELECT success FROM generate_series(1, 3) i, otp_send('+1555019001' || i, workspace => 'default');
SELECT balance FROM t.balance WHERE workspace = 'default';
SELECT otp_id AS test_id FROM otp_send('+15550190009', workspace => 'default') \gset
SELECT success FROM otp_resend(:'test_id');
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550190014');
SELECT balance FROM t.balance WHERE workspace = 'default';
ROLLBACK;

-- In every isolation level
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM otp.workspaces;
SELECT i, t.error('SELECT otp_send($1, workspace => ''default'')', '+1555019002' || i) FROM generate_series(1, 4) i;
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM otp.workspaces;
SELECT i, t.error('SELECT otp_send($1, workspace => ''default'')', '+1555019003' || i) FROM generate_series(1, 4) i;
ROLLBACK;

-- A correction takes what is there, wherever it is, and not more
SELECT t.error('SELECT otp.add_credits(''default'', -4)');
SELECT otp.add_credits('default', -1, 'mistake');
BEGIN;
SELECT otp.add_credits('default', -2);
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550190040');
SELECT t.error('SELECT otp.add_credits(''default'', -1)');
ROLLBACK;
SELECT balance, added, spent FROM t.balance WHERE workspace = 'default';

-- What the sender has added can be spent before it has put it into the stripes
BEGIN;
SELECT otp.add_credits('default', -2);
INSERT INTO otp.credit_changes (workspace_id, amount) VALUES (1, 1), (1, 2), (1, -1);
SELECT balance FROM t.balance WHERE workspace = 'default';
SELECT i, t.error('SELECT otp_send($1, workspace => ''default'')', '+1555019005' || i) FROM generate_series(1, 3) i;
SELECT balance FROM t.balance WHERE workspace = 'default';
ROLLBACK;
-- A debt is paid first
BEGIN;
SELECT otp.add_credits('default', -2);
INSERT INTO otp.credit_changes (workspace_id, amount) VALUES (1, -3);
SELECT balance FROM t.balance WHERE workspace = 'default';
SELECT otp.add_credits('default', 2);
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550190060');
SELECT otp.add_credits('default', 2);
SELECT i, t.error('SELECT otp_send($1, workspace => ''default'')', '+1555019006' || i) FROM generate_series(1, 2) i;
SELECT balance FROM t.balance WHERE workspace = 'default';
ROLLBACK;

-- What one sees
SET ROLE regress_otp_payer;
SELECT * FROM otp.credit_balances;
SELECT workspace, kind, amount, reference, otp_id, role = session_user AS mine FROM otp.credit_history ORDER BY entry_id;
SELECT t.error('SELECT FROM otp.' || name) FROM unnest(ARRAY['credits', 'credit_changes', 'credit_ledger', 'credit_warnings']) name;
CREATE FUNCTION pg_temp.peek(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN IF $1 = 'other' THEN RAISE 'seen'; END IF; RETURN true; END $$;
SELECT t.error('SELECT FROM otp.credit_balances WHERE pg_temp.peek(workspace)');
SELECT t.error('SELECT FROM otp.credit_history WHERE pg_temp.peek(workspace)');
SET ROLE regress_otp_other_payer;
SELECT workspace, balance FROM otp.credit_balances;
SELECT workspace, kind, amount FROM otp.credit_history;
RESET ROLE;

-- The ledger
SELECT sql, t.error(sql) FROM unnest(ARRAY['UPDATE otp.credit_ledger SET amount = 1', 'DELETE FROM otp.credit_ledger', 'DELETE FROM otp.credit_ledger WHERE false', 'TRUNCATE otp.credit_ledger']) sql;
SET session_replication_role = replica;
SELECT t.error('DELETE FROM otp.credit_ledger');
RESET session_replication_role;
SELECT t.error('SELECT otp.refuse_change()');
SELECT workspace_id, kind, amount, reference FROM otp.credit_ledger ORDER BY entry_id;
-- What the sender meets twice counts once
INSERT INTO otp.credit_ledger (workspace_id, kind, amount, verification_id, number) VALUES (1, 'refund', 1, otp.parse_id(:'id'), 1);
SELECT split_part(t.error(format('INSERT INTO otp.credit_ledger (workspace_id, kind, amount, verification_id, number) VALUES (1, ''refund'', 1, otp.parse_id(%L), 1)', :'id')), E'\n', 1);

SELECT otp.set_test_number('+15550190009', NULL);
ALTER TABLE otp.credit_ledger DISABLE TRIGGER refuse_change;
DELETE FROM otp.credit_ledger;
ALTER TABLE otp.credit_ledger ENABLE ALWAYS TRIGGER refuse_change;
UPDATE otp.workspaces SET credits_metered = false, sends_per_second = 10, resend_cooldown = '10 s', sends_per_phone_hour = 5, whatsapp_account = NULL;
DELETE FROM otp.credits;
DELETE FROM otp.credit_changes;
DELETE FROM otp.verifications;
DELETE FROM otp.messages;
DELETE FROM otp.outbox;
DELETE FROM otp.provider_accounts;
DELETE FROM otp.templates WHERE workspace_id = 2;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
DROP VIEW t.balance;
SELECT otp.revoke_workspace('default', 'regress_otp_payer');
DROP OWNED BY regress_otp_payer, regress_otp_other_payer;
DROP ROLE regress_otp_payer, regress_otp_other_payer;
