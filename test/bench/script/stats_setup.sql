-- stats_setup.sql
--	A month of history, and the clocks of the part stats.

-- Four workspaces, of which the application has one
INSERT INTO otp.workspaces (name) VALUES ('bench_2'), ('bench_3'), ('bench_4');

-- Write the share of a day, so many days ago, of all that a month has; nothing of the future
CREATE OR REPLACE PROCEDURE bench.write_day(ago int, count int8) LANGUAGE plpgsql AS
$$
DECLARE
	day timestamptz := date_trunc('day', now(), 'UTC') - ago * interval '1 day';
	day_ms int8 := (extract(epoch FROM day) * 1000)::int8;
	drawer int := day_ms / 86400000 % 32;
	leaf text := lpad(drawer::text, 2, '0');
	since float8 := greatest(extract(epoch FROM now() - interval '30 days' - day), 0);
	seconds float8 := least(extract(epoch FROM now() - day), 86400) - since;
	n int8 := count * seconds / (30 * 86400);
BEGIN
	-- 2 of 3 are verified; 1 of 12 goes on by SMS
	EXECUTE format($sql$
		INSERT INTO otp.verifications_%1$s (workspace_id, id, slot, created_xid, created_at, expires_at, verified_at, key_id, length, attempts, max_attempts,
			fallback_sms, phone, template, language, channel, salt, code_hash)
		SELECT w.ids[1 + i %% 4],
			(lpad(to_hex(t.ms), 12, '0') || lpad(to_hex(%2$s * 8 + i %% 8), 2, '0') || lpad(to_hex(i), 18, '0'))::uuid,
			%2$s, 3, t.at, t.at + interval '5 min', CASE WHEN i %% 3 < 2 THEN t.at + interval '1 s' * (6 + 60 * random() ^ 3) END, 1, 6, 1, 3,
			true, '+' || (CASE WHEN i %% 2 = 0 THEN 910000000000 ELSE 441500000000 END + (random() * 9999999999)::int8),
			CASE WHEN i %% 7 = 0 THEN 'login' ELSE 'otp_verification' END, 'en_US', 'whatsapp', '\x00112233445566778899aabbccddeeff',
			'\x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff'
		FROM generate_series(1, $1) i,
			(SELECT array_agg(workspace_id ORDER BY workspace_id) AS ids FROM otp.workspaces) w,
			LATERAL (SELECT %3$s + (i * $2 / $1 * 1000)::int8 AS ms) m,
			LATERAL (SELECT m.ms, to_timestamp(m.ms / 1000.0) AS at) t
		$sql$, leaf, drawer, day_ms + (since * 1000)::int8) USING n, seconds;
	EXECUTE format($sql$
		INSERT INTO otp.messages_%1$s (workspace_id, verification_id, slot, number, tries, account_id, http_status, created_at, sent_at, delivered_at, failed_at,
			channel, message_id, pricing_category, price, price_unit)
		SELECT v.workspace_id, v.id, v.slot, m.number, 1, m.number, 200, v.created_at, t.sent_at,
			CASE WHEN m.last THEN t.sent_at + interval '1 s' * (0.5 + 8 * random() ^ 4) END,
			CASE WHEN NOT m.last THEN t.sent_at + interval '3 s' END, m.channel, 'wamid.HBgLMTU1NTAxNDAwMDEVAgARGBI5QTNDQTVCM0Q0Q0Q2RTY3RTcA',
			CASE WHEN m.number = 1 THEN 'authentication' END, CASE WHEN m.number = 2 THEN -0.0075 END, CASE WHEN m.number = 2 THEN 'USD' END
		FROM otp.verifications_%1$s v,
			LATERAL (VALUES (1, 'whatsapp', v.created_at::time::interval > interval '2 h'), (2, 'sms', true)) m (number, channel, last),
			LATERAL (SELECT v.created_at + (m.number - 1) * interval '4 s' + interval '1 s' * (0.2 + random() ^ 2) AS sent_at) t
		WHERE m.number = 1 OR v.created_at::time::interval <= interval '2 h'
		$sql$, leaf);
END
$$;

-- Take steps of so many rows: percentiles in words, rows a second of them alone
CREATE OR REPLACE PROCEDURE bench.steps(steps int, step_rows int, OUT words text, OUT rate text, OUT rows int8) LANGUAGE plpgsql AS
$$
DECLARE
	began timestamptz;
	times float8[];
BEGIN
	-- the first one makes the plans, and finds out how long a span is
	FOR i IN 1 .. 20 LOOP
		PERFORM otp.roll_up(step_rows);
		COMMIT;
	END LOOP;
	rows := 0;
	FOR i IN 1 .. steps LOOP
		began := clock_timestamp();
		rows := rows + otp.roll_up(step_rows);
		COMMIT;
		times := times || (extract(epoch FROM clock_timestamp() - began) * 1000)::float8;
	END LOOP;
	SELECT format('%s, %s ms', round(percentile_cont(0.5) WITHIN GROUP (ORDER BY t)::numeric, 1), round(percentile_cont(0.99) WITHIN GROUP (ORDER BY t)::numeric, 1)),
		round(rows * 1000 / sum(t)) || '/s'
	INTO words, rate FROM unnest(times) t;
END
$$;

-- Take the rest in one step
CREATE OR REPLACE PROCEDURE bench.rest(OUT rate text) LANGUAGE plpgsql AS
$$
DECLARE
	began timestamptz := clock_timestamp();
	rows int8 := otp.roll_up();
BEGIN
	rate := round(rows / extract(epoch FROM clock_timestamp() - began)) || '/s';
END
$$;

-- The same numbers without any sums
CREATE OR REPLACE VIEW bench.raw_stats AS
SELECT date_trunc('hour', v.created_at) AS hour, v.workspace_id, coalesce(m.channel, v.channel) AS channel, v.template,
	count(*) AS messages, count(m.sent_at) AS sent, count(m.delivered_at) AS delivered, count(m.failed_at) AS failed,
	count(*) FILTER (WHERE m.number % 2 = 0) AS fallbacks, count(v.verified_at) AS verified,
	percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM m.sent_at - v.created_at)::float8) AS sent_times,
	percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM m.delivered_at - v.created_at)::float8) AS delivered_times,
	percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM v.verified_at - v.created_at)::float8) AS verified_times
FROM otp.verifications v
LEFT JOIN otp.messages m ON m.slot = v.slot AND m.workspace_id = v.workspace_id AND m.verification_id = v.id
WHERE v.test_outcome IS NULL AND v.created_at >= now() - interval '30 days'
GROUP BY 1, 2, 3, 4;
