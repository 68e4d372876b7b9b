-- otp_send as an application calls it
\set phone random(910000000000, 919999999999)
SELECT * FROM otp_send('+' || :phone::text);
