-- The same with keys of the caller's own, and a key for a repeated request
\set phone random(910000000000, 919999999999)
\set tenant 1 + :client_id * 20 + random(0, 19)
\set ip random(1, 100000000)
\set device random(1, 100000000)
\set request random(1, 4000000000000000000)
SELECT * FROM otp_send('+' || :phone::text, workspace => 'tenant_' || :tenant::text,
	limit_keys => ARRAY['ip:' || :ip::text, 'device:' || :device::text], idempotency_key => :request::text);
