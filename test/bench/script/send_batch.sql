-- The same statements in one round trip
\set phone random(910000000000, 919999999999)
\set i :i + 1
\set hi :hi0 + :i * 65536 + random(0, 65535)
\set lo random(0, 4611686018427387903)
SELECT bench.bare_send('+' || :phone::text, :hi, :lo);
