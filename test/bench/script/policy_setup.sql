-- policy_setup.sql
--	A thousand tenants with a month behind them, for the part policy.

INSERT INTO otp.workspaces (name, whatsapp_account, sms_account)
SELECT 'tenant_' || n, d.whatsapp_account, d.sms_account FROM generate_series(1, 1000) n, otp.workspaces d WHERE d.name = 'default';
INSERT INTO otp.templates (workspace_id, name, language)
SELECT workspace_id, 'otp_verification', 'en_US' FROM otp.workspaces WHERE name LIKE 'tenant\_%';
INSERT INTO otp.workspace_grants (workspace_id, role)
SELECT workspace_id, 'app'::regrole FROM otp.workspaces WHERE name LIKE 'tenant\_%';
INSERT INTO otp.key_limits (workspace_id, prefix, sends_per_hour, sends_per_day)
SELECT workspace_id, prefix, 100, 1000 FROM otp.workspaces, unnest(ARRAY['ip', 'device']) prefix WHERE name LIKE 'tenant\_%';

-- A policy function as one would write it: it looks at the request and at a table
CREATE TABLE bench.denied_ranges (prefix text PRIMARY KEY);
INSERT INTO bench.denied_ranges SELECT '+9999' || lpad(n::text, 4, '0') FROM generate_series(1, 1000) n;
CREATE FUNCTION bench.policy(r otp.send_request) RETURNS text LANGUAGE plpgsql AS
$$
BEGIN
	IF EXISTS (SELECT FROM bench.denied_ranges d WHERE d.prefix = left((r).phone, 9)) THEN
		RETURN 'deny';
	END IF;
	RETURN 'allow';
END
$$;

-- Write the share of a day, so many days ago, of all that a month has
CREATE PROCEDURE bench.write_tenants_day(ago int, count int8) LANGUAGE plpgsql AS
$$
DECLARE
	day timestamptz := date_trunc('day', now(), 'UTC') - ago * interval '1 day';
	day_ms int8 := (extract(epoch FROM day) * 1000)::int8;
	drawer int := day_ms / 86400000 % 32;
	seconds float8 := least(extract(epoch FROM now() - day), 86400);
	n int8 := count * seconds / (30 * 86400);
BEGIN
	EXECUTE format($sql$
		INSERT INTO otp.verifications_%1$s (workspace_id, id, slot, created_xid, created_at, expires_at, verified_at, key_id, length, attempts, max_attempts,
			fallback_sms, phone, template, language, channel, salt, code_hash)
		SELECT w.ids[1 + i %% 1000], (lpad(to_hex(t.ms), 12, '0') || lpad(to_hex(%2$s * 8 + i %% 8), 2, '0') || lpad(to_hex(i), 18, '0'))::uuid,
			%2$s, 3, t.at, t.at + interval '5 min', CASE WHEN i %% 3 < 2 THEN t.at + interval '20 s' END, 1, 6, 1, 3,
			false, '+' || (910000000000 + (random() * 9999999999)::int8), 'otp_verification', 'en_US', 'whatsapp',
			'\x00112233445566778899aabbccddeeff', '\x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff'
		FROM generate_series(1, $1) i,
			(SELECT array_agg(workspace_id ORDER BY workspace_id) AS ids FROM otp.workspaces WHERE name LIKE 'tenant\_%%') w,
			LATERAL (SELECT %3$s + (i * $2 / $1 * 1000)::int8 AS ms) m,
			LATERAL (SELECT m.ms, to_timestamp(m.ms / 1000.0) AS at) t
		$sql$, lpad(drawer::text, 2, '0'), drawer, day_ms) USING n, seconds;
END
$$;

-- Switch parts of the policy of all tenants on
CREATE PROCEDURE bench.tenants_policy(limits bool, credits bool, guard bool, function bool) LANGUAGE sql AS
$$
	UPDATE otp.workspaces SET
		sends_per_second = CASE WHEN limits THEN 1000000 END, sends_burst = CASE WHEN limits THEN 1000000 END,
		sends_per_phone_hour = CASE WHEN limits THEN 5 END, sends_per_phone_day = CASE WHEN limits THEN 20 END,
		resend_cooldown = CASE WHEN limits THEN interval '10 s' END,
		allowed_prefixes = CASE WHEN limits THEN '{+91,+1,+44}'::text[] END, denied_prefixes = CASE WHEN limits THEN '{+1876}'::text[] END,
		credits_metered = credits,
		guard_mode = CASE WHEN guard THEN 'record' ELSE 'off' END,
		policy_function = CASE WHEN function THEN 'bench.policy' END
	WHERE name LIKE 'tenant\_%';
$$;
