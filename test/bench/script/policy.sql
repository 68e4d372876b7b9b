-- otp_send of one of many tenants; each client has twenty of them
\set phone random(910000000000, 919999999999)
\set tenant 1 + :client_id * 20 + random(0, 19)
SELECT * FROM otp_send('+' || :phone::text, workspace => 'tenant_' || :tenant::text);
