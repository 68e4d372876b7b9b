-- Protects: otp.forget_phone. The number is in no table any more, and what it
-- did is told; live codes are canceled; the limits of the last day go on
-- counting; other workspaces, phones and roles are left alone.

\set SHOW_CONTEXT never
SET client_min_messages = error;

CREATE ROLE regress_otp_app;
CREATE ROLE regress_otp_other;
CREATE ROLE regress_otp_nobody;
INSERT INTO otp.workspaces (workspace_id, name) VALUES (2, 'other');
INSERT INTO otp.templates (workspace_id, name, language) VALUES (2, 'otp_verification', 'en_US');
SELECT otp.grant_workspace('default', 'regress_otp_app'), otp.grant_workspace('other', 'regress_otp_other');
GRANT USAGE ON SCHEMA otp TO regress_otp_nobody;
GRANT EXECUTE ON FUNCTION otp.forget_phone(text, text) TO regress_otp_app, regress_otp_other, regress_otp_nobody;
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'x', workspace => w) IS NOT NULL AS configured FROM unnest(ARRAY['default', 'other']) w;

-- A verification of an older time, as SQL makes its id: milliseconds, the drawer, and zeros
CREATE FUNCTION t.old_verification(phone text, at timestamptz, workspace_id int = 1, metadata jsonb = NULL, context text = NULL) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	ms int8 := extract(epoch FROM at) * 1000;
	slot int := ms / 86400000 % 32;
	new_id uuid := (lpad(to_hex(ms), 12, '0') || lpad(to_hex(slot * 2048 + (random() * 2047)::int), 4, '0') || substr(md5(random()::text), 1, 16))::uuid;
BEGIN
	INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, key_id, length, max_attempts, fallback_sms, phone, template, language, channel, salt, code_hash, metadata, context)
	SELECT $3, new_id, slot, 3, at, at + interval '5 min', k.key_id, 6, 3, false, $1, 'otp_verification', 'en_US', 'whatsapp',
		decode(repeat('00', 16), 'hex'), decode(repeat('00', 32), 'hex'), $4, $5 FROM otp.keys k LIMIT 1;
	RETURN otp.format_id(new_id);
END $$;

-- Wait for the sender
CREATE FUNCTION t.wait_for(query text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
	found bool;
BEGIN
	FOR i IN 1 .. 600 LOOP
		EXECUTE query INTO found;
		IF found THEN
			RETURN true;
		END IF;
		PERFORM pg_sleep(0.05);
	END LOOP;
	RETURN false;
END $$;

-- In how many places a text stands
CREATE FUNCTION t.places(digits text) RETURNS TABLE (place text, rows bigint) LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT c.oid::regclass AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'otp' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relname
	LOOP
		EXECUTE format('SELECT %L, count(*) FROM %s x WHERE strpos(x::text, $1) > 0', r.name, r.name) INTO place, rows USING digits;
		IF rows > 0 THEN
			RETURN NEXT;
		END IF;
	END LOOP;
END $$;

-- What there is of a phone: live, ended and old codes, a test number, wrong guesses; and others
SELECT otp.set_test_number('+15550140001', '123456');
SELECT otp_id AS test FROM otp_send('+15550140001', context => 'test', workspace => 'default') \gset
SELECT otp.set_test_number('+15550140001', NULL);
UPDATE otp.workspaces SET resend_cooldown = NULL, sends_per_phone_hour = 3, sends_per_phone_day = 4, failures_per_phone_day = 5;
SELECT otp_id AS live FROM otp_send('+15550140001', metadata => '{"user": 7, "tel": "15550140001"}', context => 'call +15550140001', workspace => 'default') \gset
SELECT otp_id AS canceled FROM otp_send('+15550140001', metadata => '{"user": 7}', context => 'login', workspace => 'default') \gset
SELECT otp_cancel(:'canceled');
SELECT t.old_verification('+15550140001', now() - interval '20 days', 1, '{"phone": "+15550140001"}', 'login') AS old \gset
SELECT otp_id AS of_other FROM otp_send('+15550140001', workspace => 'other') \gset
SELECT otp_id AS of_another_phone FROM otp_send('+15550140002', metadata => '{"friend": "+15550140001"}', workspace => 'default') \gset
SELECT otp.set_test_number('+15550140001', '654321', workspace => w) FROM unnest(ARRAY['default', 'other']) w;
INSERT INTO otp.phone_failures VALUES (1, '+15550140001', now() - interval '1 hour', 4), (2, '+15550140001', now() - interval '1 hour', 5);
SELECT * FROM t.places('15550140001');

-- Arguments
SELECT phone, t.error('SELECT otp.forget_phone($1)', phone) FROM unnest(ARRAY[NULL, '', '15550140001', '+1 555 014 0001', '+0123456789']) phone;
SELECT t.error('SELECT otp.forget_phone(''+15550140001'', ''nowhere'')');
BEGIN READ ONLY;
SELECT otp.forget_phone('+15550140001');
ROLLBACK;

-- Who may
SET ROLE regress_otp_nobody;
SELECT t.error('SELECT otp.forget_phone(''+15550140001'')');
SET ROLE regress_otp_app;
SELECT t.error('SELECT otp.forget_phone(''+15550140001'', ''other'')');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION otp.forget_phone(text, text) FROM regress_otp_nobody;
SET ROLE regress_otp_nobody;
SELECT t.error('SELECT otp.forget_phone(''+15550140001'')');
RESET ROLE;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550140001';

-- Rolled back, nothing was done
BEGIN;
SELECT * FROM otp.forget_phone('+15550140001', 'default');
ROLLBACK;
SELECT count(*) FROM otp.verifications WHERE phone = '+15550140001';

-- One workspace's role forgets in its own
SET ROLE regress_otp_app;
SELECT * FROM otp.forget_phone('+15550140001');
SELECT * FROM otp.forget_phone('+15550140001');
RESET ROLE;
SELECT s.status, s.phone ~ '^#[0-9a-f]{32}$' AS named, s.metadata, v.context FROM unnest(ARRAY[:'live', :'canceled', :'old', :'test']) WITH ORDINALITY i (id, n),
	LATERAL otp_status(i.id) s, otp.verifications v WHERE v.id = otp.parse_id(i.id) ORDER BY i.n;
SELECT count(DISTINCT phone) FROM otp.verifications WHERE phone LIKE '#%';
SELECT count(*) FROM otp.outbox WHERE kind = 'canceled' AND id = otp.parse_id(:'live') AND number = -1;
SELECT valid, error FROM otp_verify(:'live', '000000', 'call +15550140001');
SELECT error FROM otp_verify(:'live', '000000', phone => '+15550140001');
SELECT t.error('SELECT otp_resend($1)', :'live');

-- The other workspace has it still, and so has what others wrote about it
SELECT phone FROM otp.verifications WHERE id = otp.parse_id(:'of_other');
SELECT status, phone FROM otp_status(:'of_other');
SELECT status, metadata FROM otp_status(:'of_another_phone');
SELECT workspace_id, phone FROM otp.test_numbers WHERE phone = '+15550140001';

-- Its limits hold: two of three within an hour, three of four within a day
SET otp.workspace = 'default';
SELECT otp_id AS again FROM otp_send('+15550140001') \gset
SELECT t.error('SELECT otp_send($1)', '+15550140001');
UPDATE otp.workspaces SET sends_per_phone_hour = NULL;
SELECT success FROM otp_send('+15550140001');
SELECT t.error('SELECT otp_send($1)', '+15550140001');
-- another phone has its own
SELECT success FROM otp_send('+15550140002');

-- Wrong guesses, too: the fifth of the day is the last
SELECT t.wait_for('SELECT NOT EXISTS (SELECT 1 FROM otp.phone_failures WHERE phone = ''+15550140001'' AND workspace_id = 1)') AS named_by_the_sender;
UPDATE otp.verifications SET created_xid = 3 WHERE id = otp.parse_id(:'again');
SELECT error, attempts_remaining FROM otp_verify(:'again', 'wrong');
SELECT error, attempts_remaining, retry_after > 80000 AS retry_after FROM otp_verify(:'again', 'wrong');
SELECT t.wait_for('SELECT EXISTS (SELECT 1 FROM otp.phone_failures WHERE phone = ''+15550140001'' AND workspace_id = 1 AND failures = 5)') AS written_back;

-- Forgotten again, it has the same name, and still its limits
SELECT * FROM otp.forget_phone('+15550140001');
SELECT count(DISTINCT phone) FROM otp.verifications WHERE phone LIKE '#%' AND workspace_id = 1;
SELECT count(DISTINCT phone) FROM otp.verifications WHERE phone LIKE '#%';
SELECT t.error('SELECT otp_send($1, workspace => ''default'')', '+15550140001');
UPDATE otp.workspaces SET sends_per_phone_day = NULL;
SELECT t.known('+15550140001', '123456') AS known \gset
SELECT error, retry_after > 80000 AS retry_after FROM otp_verify(:'known', 'wrong');
SELECT * FROM otp.forget_phone('+15550140001');

-- What only the sender may write, it finishes
SELECT t.wait_for('SELECT NOT EXISTS (SELECT 1 FROM otp.phone_failures WHERE phone = ''+15550140001'')') AS named_by_the_sender;
SELECT * FROM t.places('15550140001');
SELECT count(*) > 0 AS noted, bool_and(counts) AS counts FROM otp.forgotten_phones;

-- Of nothing, nothing
SELECT * FROM otp.forget_phone('+15550140099');
SELECT count(*) FROM otp.forgotten_phones WHERE forgotten_at > clock_timestamp() - interval '1 s' AND slots = 0;

RESET otp.workspace;
SELECT otp.revoke_workspace('default', 'regress_otp_app'), otp.revoke_workspace('other', 'regress_otp_other');
REVOKE EXECUTE ON FUNCTION otp.forget_phone(text, text) FROM regress_otp_app, regress_otp_other;
REVOKE USAGE ON SCHEMA otp FROM regress_otp_nobody;
DROP ROLE regress_otp_app, regress_otp_other, regress_otp_nobody;
DROP FUNCTION t.old_verification, t.places, t.wait_for;
DELETE FROM otp.workspaces WHERE workspace_id = 2;
DELETE FROM otp.templates WHERE workspace_id = 2;
UPDATE otp.workspaces SET sends_per_phone_hour = 5, sends_per_phone_day = NULL, failures_per_phone_day = 20, resend_cooldown = '10 s', whatsapp_account = NULL;
DELETE FROM otp.provider_accounts;
DELETE FROM otp.forgotten_phones;
DELETE FROM otp.phone_failures;
DELETE FROM otp.outbox;
DELETE FROM otp.messages;
DELETE FROM otp.verifications;
