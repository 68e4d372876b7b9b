-- The function behind send_batch.sql
CREATE OR REPLACE FUNCTION bench.bare_send(p text, hi int8, lo int8) RETURNS uuid LANGUAGE plpgsql AS
$$
DECLARE
	new_id uuid := lpad(to_hex(hi), 16, '0') || lpad(to_hex(lo), 16, '0');
BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(p, 1));
	PERFORM v.created_at, v.resent_at, v.resends, v.template, v.context FROM otp.verifications_LEAF v
	WHERE v.phone = p AND v.id >= 'LOWEST' AND v.workspace_id + 0 = 1 AND v.test_outcome IS NULL
	ORDER BY v.id DESC;
	INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at,
		key_id, length, max_attempts, fallback_sms, test_outcome, phone, template, language, channel,
		context, salt, code_hash, metadata)
	VALUES (1, new_id, LEAF, hi, now(), now() + interval '300 s',
		1234567890, 6, 3, false, NULL, p, 'otp_verification', 'en_US', 'whatsapp',
		NULL, '\x000102030405060708090a0b0c0d0e0f', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', NULL);
	INSERT INTO otp.outbox (id, xid, origin, due_at, expires_at, workspace_id, slot, number, channel)
	VALUES (new_id, hi, 1234567890123456789, now(), now() + interval '300 s', 1, LEAF, 1, 'whatsapp');
	RETURN new_id;
END
$$;
