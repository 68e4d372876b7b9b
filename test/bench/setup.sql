-- setup.sql
--	What the benchmarks need in the database.

-- The application is an ordinary role; the baselines write the same tables
CREATE ROLE app LOGIN;
SELECT otp.grant_workspace('default', 'app');
GRANT USAGE ON SCHEMA otp TO app;
GRANT ALL ON ALL TABLES IN SCHEMA otp TO app;

-- All limits on, none low enough to fire
UPDATE otp.workspaces SET sends_per_second = 10000000, sends_per_phone_hour = 1000000,
	sends_per_phone_day = NULL, resend_cooldown = '1 ms';

CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO app;

-- The leaf of today's ids
CREATE FUNCTION bench.leaf() RETURNS text LANGUAGE sql AS
$$ SELECT lpad(((extract(epoch FROM clock_timestamp()) * 1000)::int8 / 86400000 % 32)::text, 2, '0') $$;

-- A phone that hardly comes twice
CREATE FUNCTION bench.phone() RETURNS text LANGUAGE sql VOLATILE AS
$$ SELECT '+' || (910000000000 + (random() * 9999999999)::int8) $$;

-- An id of a time, as otp_send makes it
CREATE FUNCTION bench.id(at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS
$$ SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::int8), 12, '0') || encode(gen_random_bytes(10), 'hex'))::uuid $$;

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

-- Nobody is there yet: parts that deliver start a simulator and say where it is
SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'EAAtest-token', base_url => 'http://127.0.0.1:9');

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
