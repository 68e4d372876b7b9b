-- setup.sql
--	What the benchmarks need in the database.

-- The application is an ordinary role; the baselines write the same tables
CREATE ROLE app LOGIN;
SELECT otp.grant_workspace('default', 'app');
GRANT USAGE ON SCHEMA otp TO app;
GRANT ALL ON ALL TABLES IN SCHEMA otp TO app;

-- All limits on, none low enough to fire; and no code ends by itself while it is measured
UPDATE otp.workspaces SET sends_per_second = 10000000, sends_per_phone_hour = 1000000,
	sends_per_phone_day = NULL, resend_cooldown = '1 ms', default_expires_in = 900;

CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO app;

-- The drawer of a time, and the leaf of today's ids
CREATE FUNCTION bench.slot(at timestamptz) RETURNS int LANGUAGE sql AS
$$ SELECT (floor(extract(epoch FROM at))::int8 / 86400 % 32)::int $$;
CREATE FUNCTION bench.leaf() RETURNS text LANGUAGE sql AS
$$ SELECT lpad(bench.slot(clock_timestamp())::text, 2, '0') $$;

-- A phone that hardly comes twice
CREATE FUNCTION bench.phone() RETURNS text LANGUAGE sql VOLATILE AS
$$ SELECT '+' || (910000000000 + (random() * 9999999999)::int8) $$;

-- An id of a time, as otp_send makes it: the first five of its random bits name the drawer
CREATE FUNCTION bench.id(at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS
$$
	SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::int8), 12, '0') ||
		lpad(to_hex(bench.slot(at) * 8 + floor(random() * 8)::int), 2, '0') || encode(gen_random_bytes(9), 'hex'))::uuid
$$;

-- Wait until the sender's count of accepted messages is there; the seconds since its first go with it.
-- It asks shared memory, not the tables, and holds no snapshot while it sleeps.
CREATE PROCEDURE bench.wait_accepted(wanted int8, base int8, OUT seconds float8) LANGUAGE plpgsql AS
$$
DECLARE
	count int8;
	started timestamptz := clock_timestamp();
BEGIN
	LOOP
		count := (SELECT accepted FROM otp.worker_status());
		COMMIT;
		EXIT WHEN count - base >= wanted;
		IF clock_timestamp() > started + interval '5 min' THEN
			RAISE 'only % of % messages were accepted in five minutes', count - base, wanted;
		END IF;
		PERFORM pg_sleep(0.002);
	END LOOP;
	seconds := extract(epoch FROM clock_timestamp() - started);
END
$$;

-- Wait until no receipts are queued; they begin at a transaction. The clock is as above.
CREATE PROCEDURE bench.wait_receipts(first int8, OUT seconds float8) LANGUAGE plpgsql AS
$$
DECLARE
	started timestamptz := clock_timestamp();
BEGIN
	WHILE EXISTS (SELECT FROM otp.outbox WHERE xid >= first AND kind = 'receipts') LOOP
		COMMIT;
		IF clock_timestamp() > started + interval '5 min' THEN
			RAISE 'not all receipts were applied in five minutes';
		END IF;
		PERFORM pg_sleep(0.005);
	END LOOP;
	seconds := extract(epoch FROM clock_timestamp() - started);
END
$$;

-- Wait until no webhook is owed
CREATE PROCEDURE bench.wait_webhooks(OUT seconds float8) LANGUAGE plpgsql AS
$$
DECLARE
	started timestamptz := clock_timestamp();
BEGIN
	WHILE (SELECT endpoint_id FROM otp.webhook_outbox ORDER BY endpoint_id, id LIMIT 1) IS NOT NULL LOOP
		COMMIT;
		IF clock_timestamp() > started + interval '5 min' THEN
			RAISE 'not all webhooks were delivered in five minutes';
		END IF;
		PERFORM pg_sleep(0.005);
	END LOOP;
	seconds := extract(epoch FROM clock_timestamp() - started);
END
$$;

-- Nobody is there yet: parts that deliver start a simulator and say where it is
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'EAAtest-token',
	app_secret => '0123456789abcdef0123456789abcdef', base_url => 'http://127.0.0.1:9');

-- Queue codes. Not all in one transaction: each holds a lock on its phone to the end.
CREATE PROCEDURE bench.queue(count int) LANGUAGE plpgsql AS
$$
BEGIN
	FOR done IN 0 .. count - 1 BY 500 LOOP
		PERFORM s.otp_id FROM generate_series(1, least(500, count - done)) n, otp_send(bench.phone() || left('', n)) s;
		COMMIT;
	END LOOP;
END
$$;

-- End all codes
CREATE PROCEDURE bench.end_all() LANGUAGE plpgsql AS
$$
DECLARE
	ids uuid[];
BEGIN
	LOOP
		ids := ARRAY (SELECT v.id FROM otp.verifications v WHERE v.canceled_at IS NULL LIMIT 5000);
		EXIT WHEN ids = '{}';
		PERFORM otp_cancel(otp.format_id(id)) FROM unnest(ids) id;
		COMMIT;
	END LOOP;
END
$$;
