-- The least: check the signature, and keep the body
\set i :i + 1
\set n (:i - 1) * 8 + :client_id + 1
INSERT INTO bench.taken (body)
SELECT b.body FROM bench.bodies b
WHERE b.size = :size AND b.n = :n
	AND b.signature = 'sha256=' || encode(hmac(b.body, '0123456789abcdef0123456789abcdef', 'sha256'), 'hex');
