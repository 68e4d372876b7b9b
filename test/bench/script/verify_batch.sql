-- The same statements in one round trip
\set i :i + 1
\set n (:i - 1) * :clients + :client_id + :first
SELECT bench.bare_verify(:n);
