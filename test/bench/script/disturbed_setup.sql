-- What the part disturbed needs

-- Queue messages of codes that are there already: number of the first, how many, their leaf, seconds to live
CREATE PROCEDURE bench.refill(first int, count int, leaf text, seconds int4) LANGUAGE plpgsql AS
$$
BEGIN
	INSERT INTO otp.outbox (id, xid, origin, due_at, expires_at, workspace_id, slot, number, channel)
	SELECT g.id, pg_current_xact_id()::text::int8, o.origin, now(), now() + seconds * interval '1 s', 1, leaf::int, 1, 'whatsapp'
	FROM bench.guesses g, bench.origin o WHERE g.n BETWEEN first AND first + count - 1
	ORDER BY g.n;
END
$$;

-- Fill the drawers of so many days, the newest being that before yesterday's, with codes that were sent
CREATE PROCEDURE bench.make_history(days int, rows int) LANGUAGE plpgsql AS
$$
DECLARE
	today timestamptz := to_timestamp(floor(extract(epoch FROM clock_timestamp()) / 86400) * 86400);
BEGIN
	FOR day IN 2 .. days + 1 LOOP
		WITH made AS (
			INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, key_id, length,
				max_attempts, fallback_sms, phone, template, language, channel, salt, code_hash)
			SELECT 1, bench.id(at), bench.slot(at), n, at, at + interval '5 min', 1, 6,
				3, false, bench.phone(), 'otp_verification', 'en_US', 'whatsapp', gen_random_bytes(16), gen_random_bytes(32)
			FROM generate_series(1, rows) n,
				LATERAL (SELECT today - day * interval '1 day' + n * interval '23 hours' / rows AS at) t
			RETURNING id, slot, created_at)
		INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, http_status, created_at, sent_at, channel, message_id)
		SELECT 1, id, slot, 1, 1, 200, created_at, created_at, 'whatsapp', 'wamid.0'
		FROM made;
	END LOOP;
END
$$;
