-- otp_verify as an application calls it; the otp_id is read from a table, for pgbench has none
\set i :i + 1
\set n (:i - 1) * :clients + :client_id + :first
SELECT * FROM otp_verify((SELECT g.otp_id FROM bench.guesses g WHERE g.n = :n), :code::text);
