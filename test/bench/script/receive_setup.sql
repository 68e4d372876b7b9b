-- What the part receipts needs: bodies to be taken, and where the baseline puts them
CREATE TABLE bench.taken (body bytea NOT NULL, at timestamptz NOT NULL DEFAULT now());
CREATE TABLE bench.bodies (size int, n int, body bytea NOT NULL, signature text NOT NULL, PRIMARY KEY (size, n));
-- As it would come from a client: nothing to decompress
ALTER TABLE bench.bodies ALTER body SET STORAGE EXTERNAL;
GRANT SELECT ON bench.bodies TO app;
GRANT INSERT ON bench.taken TO app;

-- Three statuses of each message, so many of different messages in a body
CREATE PROCEDURE bench.make_bodies(new_size int, messages int) LANGUAGE sql AS
$$
INSERT INTO bench.bodies (size, n, body, signature)
SELECT new_size, row_number() OVER (ORDER BY w.place, w.kind), w.body,
	'sha256=' || encode(hmac(w.body, '0123456789abcdef0123456789abcdef', 'sha256'), 'hex')
FROM (
	SELECT s.place, k.kind, convert_to(format(
		'{"object":"whatsapp_business_account","entry":[{"id":"102290129340398","changes":[{"field":"messages","value":'
		'{"messaging_product":"whatsapp","metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"},'
		'"statuses":[%s]}}]}]}',
		string_agg(format('{"id":"%s","status":"%s","timestamp":"%s","recipient_id":"919876543210",'
			'"biz_opaque_callback_data":"%s"%s}', s.message_id, k.status, floor(extract(epoch FROM now())), s.otp_id,
			CASE WHEN k.kind < 3 THEN ',"pricing":{"billable":true,"pricing_model":"PMP","type":"regular","category":"authentication"}' END),
			',')), 'UTF8') AS body
	FROM (
		SELECT (row_number() OVER (ORDER BY m.verification_id) - 1) / new_size AS place,
			otp.format_id(m.verification_id) AS otp_id, m.message_id
		FROM otp.messages m ORDER BY m.verification_id LIMIT messages) s,
		(VALUES (1, 'sent'), (2, 'delivered'), (3, 'read')) k (kind, status)
	GROUP BY s.place, k.kind) w;
$$;
