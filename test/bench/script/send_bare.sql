-- The statements that a send cannot do without, one by one
\set phone random(910000000000, 919999999999)
\set i :i + 1
\set hi :hi0 + :i * 65536 + random(0, 65535)
\set lo random(0, 4611686018427387903)
BEGIN;
SELECT pg_advisory_xact_lock(hashtextextended('+' || :phone::text, 1));
SELECT v.created_at, v.resent_at, v.resends, v.template, v.context FROM otp.verifications_LEAF v
WHERE v.phone = '+' || :phone::text AND v.id >= 'LOWEST' AND v.workspace_id + 0 = 1 AND v.test_outcome IS NULL
ORDER BY v.id DESC;
INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at,
	key_id, length, max_attempts, fallback_sms, test_outcome, phone, template, language, channel,
	context, salt, code_hash, metadata)
VALUES (1, (lpad(to_hex(:hi::int8), 16, '0') || lpad(to_hex(:lo::int8), 16, '0'))::uuid, LEAF, :hi, now(), now() + interval '300 s',
	1234567890, 6, 3, false, NULL, '+' || :phone::text, 'otp_verification', 'en_US', 'whatsapp',
	NULL, '\x000102030405060708090a0b0c0d0e0f', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f', NULL);
INSERT INTO otp.outbox (id, xid, origin, due_at, expires_at, workspace_id, slot, number, channel)
VALUES ((lpad(to_hex(:hi::int8), 16, '0') || lpad(to_hex(:lo::int8), 16, '0'))::uuid, :hi, 1234567890123456789,
	now(), now() + interval '300 s', 1, LEAF, 1, 'whatsapp');
COMMIT;
