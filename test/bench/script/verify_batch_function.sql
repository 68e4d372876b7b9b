-- The function behind verify_batch.sql
CREATE OR REPLACE FUNCTION bench.bare_verify(number int8) RETURNS bool LANGUAGE plpgsql AS
$$
DECLARE
	r record;
BEGIN
	SELECT v.workspace_id, v.created_xid, v.created_at, v.expires_at, v.verified_at, v.canceled_at,
		v.resent_at, v.last_attempt_at, v.key_id, v.length, v.attempts, v.max_attempts, v.resends, v.fallback_sms,
		v.test_outcome, v.phone, v.template, v.language, v.channel, v.context, v.salt, v.code_hash, v.metadata,
		l.channel, l.ended_reason, f.since, f.failures, v.id
	INTO r
	FROM otp.verifications_LEAF v
	LEFT JOIN LATERAL (SELECT m.channel, m.ended_reason FROM otp.messages_LEAF m
		WHERE m.workspace_id = v.workspace_id AND m.verification_id = v.id ORDER BY m.number DESC LIMIT 1) l ON true
	LEFT JOIN otp.phone_failures f ON f.workspace_id = v.workspace_id AND f.phone = v.phone
	WHERE v.workspace_id = ANY ('{1}') AND v.id = (SELECT g.id FROM bench.guesses g WHERE g.n = number)
	FOR NO KEY UPDATE OF v;
	UPDATE otp.verifications_LEAF SET verified_at = now(), last_attempt_at = now(), attempts = 1
	WHERE workspace_id = 1 AND id = r.id;
	INSERT INTO otp.outbox (id, xid, origin, due_at, expires_at, workspace_id, slot, number, kind)
	VALUES (r.id, number, 1234567890123456789, now(), now() + interval '1 day', 1, LEAF, 0, 'verified');
	RETURN r.id IS NOT NULL;
END
$$;
