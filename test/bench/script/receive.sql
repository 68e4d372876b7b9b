-- otp.receive_meta as a web tier calls it; the body is read from a table, for pgbench has none
\set i :i + 1
\set n (:i - 1) * 8 + :client_id + 1
SELECT otp.receive_meta('meta', b.body, b.signature) FROM bench.bodies b WHERE b.size = :size AND b.n = :n;
