-- Protects: otp.delivery_stats and otp.usage. Their numbers are those of the
-- raw tables, by whatever path: read live, summed up in one go or in small
-- steps, or some of each; percentiles are right to a tenth; who sees what.

\set SHOW_CONTEXT never
SET client_min_messages = error;

-- Whatever other files have left is not to be in the way
INSERT INTO otp.workspaces (name) VALUES ('stats_a'), ('stats_b'), ('stats_c');
SELECT workspace_id AS a FROM otp.workspaces WHERE name = 'stats_a' \gset
SELECT workspace_id AS b FROM otp.workspaces WHERE name = 'stats_b' \gset

-- An id of a time, in the drawer of that time
CREATE FUNCTION t.drawer(at timestamptz) RETURNS int LANGUAGE sql AS $$ SELECT ((extract(epoch FROM at) * 1000)::int8 / 86400000 % 32)::int $$;
CREATE FUNCTION t.id(at timestamptz, n int) RETURNS uuid LANGUAGE sql AS $$
	SELECT (lpad(to_hex((extract(epoch FROM date_trunc('milliseconds', at)) * 1000)::int8), 12, '0') || lpad(to_hex(t.drawer(at) * 8 + n % 8), 2, '0')
		|| left(md5(n::text), 18))::uuid
$$;
CREATE FUNCTION t.sent(n int, workspace int, at timestamptz, phone text = '+15550140001', channel text = 'whatsapp', template text = 'otp_verification',
	resends int = 0, verified_after interval = NULL, test_outcome text = NULL) RETURNS uuid LANGUAGE sql AS $$
	INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, verified_at, key_id, length, max_attempts, resends,
		fallback_sms, test_outcome, phone, template, language, channel, salt, code_hash)
	VALUES (workspace, t.id(at, n), t.drawer(at), 3, at, at + interval '5 min', at + verified_after, 1, 6, 3, resends,
		true, test_outcome, phone, template, 'en_US', channel, '\x00', '\x00')
	RETURNING id
$$;
CREATE FUNCTION t.message(verification uuid, number int, channel text, sent_after interval, delivered_after interval = NULL, failed_after interval = NULL,
	category text = NULL, price numeric = NULL, unit text = NULL) RETURNS int LANGUAGE sql AS $$
	INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, created_at, sent_at, delivered_at, failed_at, channel, pricing_category, price, price_unit)
	SELECT v.workspace_id, v.id, v.slot, number, 1, v.created_at, v.created_at + sent_after, v.created_at + delivered_after, v.created_at + failed_after,
		$3, category, price, unit
	FROM otp.verifications v WHERE v.id = verification
	RETURNING number
$$;

-- What they should be, by plain SQL over the raw tables
CREATE VIEW t.raw AS
SELECT v.*, m.number, m.channel AS by, m.pricing_category, m.price, m.price_unit, m.sent_at, m.delivered_at, m.failed_at,
	coalesce(m.sent_at, m.delivered_at) IS NOT NULL AS sent,
	-- one message stands for the verification: the last sent, else the last
	row_number() OVER (PARTITION BY v.workspace_id, v.id ORDER BY coalesce(m.sent_at, m.delivered_at) IS NOT NULL DESC, m.number DESC) = 1 AS stands,
	m.number % 2 = 1 AND lead(m.number) OVER (PARTITION BY v.workspace_id, v.id ORDER BY m.number) = m.number + 1 AS replaced
FROM otp.verifications v LEFT JOIN otp.messages m ON m.slot = v.slot AND m.workspace_id = v.workspace_id AND m.verification_id = v.id
WHERE v.test_outcome IS NULL AND v.workspace_id IN (SELECT workspace_id FROM otp.workspaces WHERE name LIKE 'stats\_%');
CREATE VIEW t.stats_now AS
SELECT date_trunc('hour', created_at, 'UTC') AS hour, w.name AS workspace, coalesce(by, channel) AS channel, template,
	count(*) AS messages, count(*) FILTER (WHERE sent) AS sent, count(delivered_at) AS delivered,
	count(*) FILTER (WHERE failed_at IS NOT NULL AND delivered_at IS NULL) AS failed, count(*) FILTER (WHERE replaced) AS fallbacks,
	count(*) FILTER (WHERE stands AND sent AND verified_at IS NOT NULL) AS verified,
	percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM sent_at - created_at)::float8)
		FILTER (WHERE number = 1 AND sent_at IS NOT NULL) AS sent_times,
	percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY greatest(extract(epoch FROM delivered_at - created_at)::float8, 0))
		FILTER (WHERE number <= 2 AND delivered_at IS NOT NULL) AS delivered_times,
	percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM verified_at - created_at)::float8)
		FILTER (WHERE stands AND sent AND verified_at IS NOT NULL) AS verified_times
FROM t.raw JOIN otp.workspaces w USING (workspace_id) GROUP BY 1, 2, 3, 4;
CREATE VIEW t.usage_now AS
WITH raw AS MATERIALIZED (SELECT * FROM t.raw),
	places AS (
		SELECT DISTINCT ON (v.phone) v.phone, p.country FROM (SELECT DISTINCT phone FROM otp.verifications) v
		CROSS JOIN generate_series(2, 8) n JOIN otp.countries p ON p.prefix = left(v.phone, n) ORDER BY v.phone, n DESC),
	counted AS (
	-- what is counted, and the message it is counted with
	SELECT v.workspace_id, v.id, v.created_at, v.channel, v.phone, c.what, c.number FROM otp.verifications v,
		LATERAL (SELECT 'send', 1 UNION ALL SELECT 'credit', 1 UNION ALL SELECT 'credit', 2 * r + 1 FROM generate_series(1, v.resends) r) c (what, number)
	WHERE v.test_outcome IS NULL AND v.workspace_id IN (SELECT workspace_id FROM otp.workspaces WHERE name LIKE 'stats\_%')
	UNION ALL
	SELECT workspace_id, id, created_at, channel, phone, c.what, number FROM raw,
		LATERAL (SELECT 'message' UNION ALL SELECT 'sent' WHERE sent UNION ALL SELECT 'delivered' WHERE delivered_at IS NOT NULL
				 UNION ALL SELECT 'verified' WHERE stands AND verified_at IS NOT NULL) c (what)
)
SELECT (c.created_at AT TIME ZONE 'UTC')::date AS day, w.name AS workspace, coalesce(m.by, c.channel) AS channel,
	p.country,
	count(*) FILTER (WHERE what = 'send') AS sends, count(*) FILTER (WHERE what = 'message') AS messages, count(*) FILTER (WHERE what = 'sent') AS sent,
	count(*) FILTER (WHERE what = 'delivered') AS delivered, count(*) FILTER (WHERE what = 'verified') AS verified,
	count(*) FILTER (WHERE what = 'credit') AS credits,
	m.pricing_category, sum(m.price) FILTER (WHERE what = 'message') AS price, m.price_unit
FROM counted c JOIN otp.workspaces w USING (workspace_id) LEFT JOIN raw m USING (workspace_id, id, number)
LEFT JOIN places p ON p.phone = c.phone
GROUP BY 1, 2, 3, 4, m.pricing_category, m.price_unit;
CREATE TABLE t.stats AS SELECT * FROM t.stats_now;
CREATE TABLE t.usage AS SELECT * FROM t.usage_now;
CREATE FUNCTION t.expect() RETURNS void LANGUAGE sql SET enable_nestloop = off SET jit = off AS $$
	DELETE FROM t.stats; INSERT INTO t.stats SELECT * FROM t.stats_now;
	DELETE FROM t.usage; INSERT INTO t.usage SELECT * FROM t.usage_now;
$$;

-- Is an estimate as near as is promised?
CREATE FUNCTION t.near(estimate float8, exact float8) RETURNS bool LANGUAGE sql AS
$$ SELECT estimate IS NOT DISTINCT FROM exact OR abs(estimate - exact) <= greatest(exact * 0.0906, 0.001) $$;
-- Rows in which the views differ from that, and how many there are
CREATE FUNCTION t.compare(OUT stats_rows int8, OUT stats_differ int8, OUT usage_rows int8, OUT usage_differ int8, OUT not_near int8) LANGUAGE sql AS $$
	WITH s AS MATERIALIZED (SELECT * FROM otp.delivery_stats WHERE workspace LIKE 'stats\_%'),
		counts AS MATERIALIZED (SELECT hour, workspace, channel, template, messages, sent, delivered, failed, fallbacks, verified FROM s),
		wanted AS MATERIALIZED (SELECT hour, workspace, channel, template, messages, sent, delivered, failed, fallbacks, verified FROM t.stats),
		u AS MATERIALIZED (SELECT * FROM otp.usage WHERE workspace LIKE 'stats\_%')
	SELECT (SELECT count(*) FROM s),
		(SELECT count(*) FROM ((TABLE counts EXCEPT ALL TABLE wanted) UNION ALL (TABLE wanted EXCEPT ALL TABLE counts)) d),
		(SELECT count(*) FROM u),
		(SELECT count(*) FROM ((TABLE u EXCEPT ALL TABLE t.usage) UNION ALL (TABLE t.usage EXCEPT ALL TABLE u)) d),
		(SELECT count(*) FROM s JOIN t.stats e USING (hour, workspace, channel, template)
		 WHERE NOT (t.near(s.sent_p50, e.sent_times[1]) AND t.near(s.sent_p95, e.sent_times[2]) AND t.near(s.sent_p99, e.sent_times[3])
			AND t.near(s.delivered_p50, e.delivered_times[1]) AND t.near(s.delivered_p95, e.delivered_times[2]) AND t.near(s.delivered_p99, e.delivered_times[3])
			AND t.near(s.verified_p50, e.verified_times[1]) AND t.near(s.verified_p95, e.verified_times[2]) AND t.near(s.verified_p99, e.verified_times[3])))
$$;

--
-- One of each kind, at a moment of the past that is no whole hour anywhere
--
BEGIN;
-- Nobody else sums up until we are done
SELECT otp.roll_up() IS NOT NULL AS rolled;
SELECT date_trunc('day', now(), 'UTC') - interval '2 days' + interval '10:07' AS at \gset
TRUNCATE otp.stats_hours, otp.usage_days;
UPDATE otp.stats_position SET rolled_until = :'at'::timestamptz - interval '1 day';
SELECT count(t.sent(1, :a, :'at', '+15550140001'));		-- queued, or expired unsent
SELECT count(t.message(t.sent(2, :a, :'at', '+4915550140002', verified_after => '60 s'), 1, 'whatsapp', '1 s', '2 s', category => 'authentication', price => 0.02, unit => 'USD'));
SELECT count(t.message(t.sent(3, :a, :'at', '+4915550140003'), 1, 'whatsapp', '4 s', NULL, category => 'authentication', price => 0.03, unit => 'USD'));
-- failed, SMS in its place
SELECT t.sent(4, :a, :'at', '+77055550140', verified_after => '30 s') AS id \gset
SELECT t.message(:'id', 1, 'whatsapp', '1 s', NULL, '3 s'), t.message(:'id', 2, 'sms', '3.5 s', '5 s', price => -0.0075, unit => 'USD');
-- both failed
SELECT t.sent(5, :a, :'at', '+79055550140') AS id \gset
SELECT t.message(:'id', 1, 'whatsapp', NULL, NULL, '3 s'), t.message(:'id', 2, 'sms', '3 s', NULL, '5 s');
-- sent again by SMS, verified by that
SELECT t.sent(6, :a, :'at', '+12425550140', resends => 1, verified_after => '90 s') AS id \gset
SELECT t.message(:'id', 1, 'whatsapp', '1 s', '2 s'), t.message(:'id', 3, 'sms', '61 s', '62 s');
-- the receipt is all that came back; a failure that turned out to be none
SELECT count(t.message(t.sent(7, :a, :'at', '+442055550140'), 1, 'whatsapp', NULL, '2 s'));
SELECT count(t.message(t.sent(8, :a, :'at', '+441534555014'), 1, 'whatsapp', '1 s', '6 s', '3 s'));
-- a number that was forgotten, and begins with digits
SELECT count(t.message(t.sent(12, :b, :'at', '#49f0a1b2c3d4', channel => 'sms'), 1, 'sms', '0.25 s', '3 s'));
-- no known country; another template; the provider's clock is late; a second resend that was never sent
SELECT count(t.message(t.sent(9, :a, :'at', '+88155550140', template => 'login', resends => 2), 1, 'whatsapp', '1 s', '-0.5 s'));
-- a test number, and another workspace
SELECT count(t.message(t.sent(10, :a, :'at', test_outcome => 'delivered', verified_after => '1 s'), 1, 'whatsapp', '0 s', '0 s'));
SELECT count(t.message(t.sent(11, :b, :'at', '+15550140002', channel => 'sms'), 1, 'sms', '0.25 s', '3 s'));

CREATE VIEW pg_temp.numbers AS
SELECT extract(hour FROM hour AT TIME ZONE 'UTC') AS at, workspace, channel, template, messages, sent, delivered, failed, fallbacks, verified,
	delivered_percent, failed_percent, fallback_percent, verified_percent
FROM otp.delivery_stats WHERE workspace LIKE 'stats\_%' ORDER BY workspace, channel, template;
CREATE VIEW pg_temp.times AS
SELECT workspace, channel, template, sent_p50, sent_p95, sent_p99, delivered_p50, delivered_p95, delivered_p99, verified_p50, verified_p95, verified_p99
FROM otp.delivery_stats WHERE workspace LIKE 'stats\_%' ORDER BY workspace, channel, template;
CREATE VIEW pg_temp.used AS
SELECT workspace, channel, country, sends, messages, sent, delivered, verified, credits, pricing_category, price, price_unit
FROM otp.usage WHERE workspace LIKE 'stats\_%' ORDER BY workspace, channel, country, price;
SELECT * FROM numbers;
SELECT * FROM times;
SELECT * FROM used;
SELECT t.expect();
SELECT stats_differ, usage_differ, not_near FROM t.compare();

-- The same when it is summed up
SELECT count(*) FROM otp.stats_hours;
SELECT otp.roll_up() >= 13 AS rows;
SELECT count(*), sum(messages) FROM otp.stats_hours WHERE workspace_id IN (:a, :b);
SELECT stats_differ, usage_differ, not_near FROM t.compare();
-- up to an hour without rows may be left for later
SELECT rolled_until BETWEEN now() - interval '81 min' AND now() - interval '19 min' AS position FROM otp.stats_position;

-- Hours and days are UTC's, wherever one looks from
SET LOCAL timezone = 'Asia/Kolkata';
SELECT DISTINCT extract(minute FROM hour) AS minute FROM otp.delivery_stats WHERE workspace = 'stats_a';
SELECT stats_differ, usage_differ FROM t.compare();
SET LOCAL timezone = 'UTC';
ROLLBACK;

--
-- Thousands, over days until now, from several workspaces: any mixture
--
CREATE FUNCTION t.many(count int, since interval) RETURNS void LANGUAGE sql AS $$
	WITH v AS (
		INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, verified_at, key_id, length, max_attempts, resends,
			fallback_sms, test_outcome, phone, template, language, channel, salt, code_hash)
		SELECT w.workspace_id, t.id(r.at, n), t.drawer(r.at), 3, r.at, r.at + interval '5 min',
			CASE WHEN n % 3 > 0 THEN r.at + interval '1 s' * (3 + 100 * random() ^ 3) END, 1, CASE WHEN n % 17 = 0 THEN 8 ELSE 6 END, 3, CASE WHEN n % 11 = 0 THEN n % 4 ELSE 0 END,
			n % 2 = 0, CASE WHEN n % 13 = 0 THEN 'delivered' END, p.prefix || (5550140000 + n), (ARRAY['otp_verification', 'login', 'pay'])[1 + n % 3], 'en_US',
			CASE WHEN n % 5 = 0 THEN 'sms' ELSE 'whatsapp' END, '\x00', '\x00'
		FROM generate_series(1, count) n,
			LATERAL (SELECT clock_timestamp() - random() * since AS at WHERE n > 0) r,
			LATERAL (SELECT workspace_id FROM otp.workspaces WHERE name LIKE 'stats\_%' ORDER BY (n * workspace_id) % 7, workspace_id LIMIT 1) w,
			LATERAL (SELECT (ARRAY['+1', '+49', '+44', '+91', '+1416', '+7', '+77', '+599', '+5999', '+388'])[1 + n % 10] AS prefix) p
		RETURNING *)
	INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, created_at, sent_at, delivered_at, failed_at, channel, pricing_category, price, price_unit)
	SELECT v.workspace_id, v.id, v.slot, m.number, 1, v.created_at, CASE WHEN r.dice < 0.9 THEN s.sent_at END,
		CASE WHEN r.dice < 0.8 THEN s.sent_at + interval '1 s' * 20 * random() ^ 4 END, CASE WHEN r.dice BETWEEN 0.78 AND 0.98 THEN s.sent_at + interval '2 s' END,
		CASE WHEN m.number % 2 = 0 THEN 'sms' ELSE v.channel END, CASE WHEN r.dice < 0.3 THEN 'authentication' END,
		CASE WHEN r.dice < 0.4 THEN round(r.dice::numeric, 4) END, CASE WHEN r.dice < 0.4 THEN CASE WHEN v.resends > 0 THEN 'EUR' ELSE 'USD' END END
	FROM v, generate_series(1, 2 * (v.resends + 1)) m (number),
		LATERAL (SELECT random() AS dice, random() AS shown WHERE m.number > 0) r,
		LATERAL (SELECT v.created_at + (m.number - 1) * interval '20 s' + interval '1 s' * random() ^ 2 * 3 AS sent_at) s
	WHERE v.length < 8 AND (m.number % 2 = 1 OR v.fallback_sms AND r.shown < 0.4)
$$;
SELECT setseed(0.5);
-- From now on the sender works on it, too, once a minute
BEGIN;
SELECT otp.roll_up() IS NOT NULL AS rolled;
TRUNCATE otp.stats_hours, otp.usage_days;
UPDATE otp.stats_position SET rolled_until = now() - interval '5 days';
SELECT t.many(4000, '3 days');
COMMIT;
SELECT t.expect();

-- Live, in steps, and at once: always the same as the raw tables
SELECT stats_rows > 500 AS stats, stats_differ, usage_rows > 100 AS usage, usage_differ, not_near FROM t.compare();
-- the sender has its part in it: it may take a step at any time
SELECT count(*) > 0 AS steps FROM (SELECT otp.roll_up(200) AS rows FROM generate_series(1, 40)) s WHERE rows > 0;
SELECT stats_differ, usage_differ, not_near FROM t.compare();
SELECT otp.roll_up() IS NOT NULL AS rolled;
SELECT stats_differ, usage_differ, not_near FROM t.compare();
SELECT otp.roll_up() <= 100 AS little;
SELECT stats_differ, usage_differ, not_near FROM t.compare();
SELECT sum(messages) > 3000 AS most FROM otp.stats_hours;
-- A step that is rolled back has not been
BEGIN;
SELECT otp.roll_up() IS NOT NULL AS rolled;
SELECT t.many(50, '10 min');
SELECT t.expect();
UPDATE otp.stats_position SET rolled_until = now() - interval '10 days';
TRUNCATE otp.stats_hours, otp.usage_days;
SELECT otp.roll_up() > 0 AS again;
SELECT stats_differ, usage_differ, not_near FROM t.compare();
ROLLBACK;
SELECT stats_differ, usage_differ, not_near FROM t.compare();
-- A crowd in a second after hours of silence: a step is neither endless nor too big
BEGIN;
SELECT otp.roll_up() IS NOT NULL AS rolled;
TRUNCATE otp.stats_hours, otp.usage_days;
DELETE FROM otp.verifications v USING otp.workspaces w WHERE v.workspace_id = w.workspace_id AND w.name LIKE 'stats\_%';
UPDATE otp.stats_position SET rolled_until = now() - interval '9 days';
SELECT count(t.message(t.sent(n, :a, now() - interval '6 days' + n * interval '1 ms', template => 'crowd'), 1, 'whatsapp', '1 s')) FROM generate_series(1, 1000) n;
SELECT count(t.message(t.sent(n, :a, now() - interval '4 days', template => 'crowd'), 1, 'whatsapp', '1 s')) FROM generate_series(1001, 1200) n;
SET LOCAL statement_timeout = '30 s';
SELECT max(rows) AS most, sum(rows) AS rows, count(*) FILTER (WHERE rows > 0) BETWEEN 20 AND 200 AS steps FROM (SELECT otp.roll_up(50) AS rows FROM generate_series(1, 300)) s;
SELECT sum(sent) FROM otp.delivery_stats WHERE template = 'crowd';
ROLLBACK;
-- Without a position all is read live
BEGIN;
TRUNCATE otp.stats_hours, otp.usage_days, otp.stats_position;
SELECT stats_differ, usage_differ, not_near FROM t.compare();
SELECT otp.roll_up();
ROLLBACK;
-- Two, as after a restore that took long: the earlier one counts
BEGIN;
INSERT INTO otp.stats_position VALUES (now() + interval '1 h', '-infinity', NULL);
SELECT t.many(20, '19 min');
SELECT t.expect();
SELECT stats_differ, usage_differ, not_near FROM t.compare();
ROLLBACK;

--
-- After a change of otp.retention, ids are found in any drawer
--
BEGIN;
SELECT otp.roll_up() IS NOT NULL AS rolled;
UPDATE otp.stats_position SET step_length = 86400000000 * 3, rolled_until = rolled_until - interval '40 days';
SELECT clock_timestamp() - interval '39 days' AS at \gset
WITH v AS (SELECT t.sent(20, :a, :'at', '+15550140003', template => 'stray') AS id)
SELECT count(t.message(id, 1, 'whatsapp', '1 s')) FROM v;
UPDATE otp.messages SET slot = (slot + 7) % 32 WHERE slot = t.drawer(:'at') AND verification_id = t.id(:'at', 20);
UPDATE otp.verifications SET slot = (slot + 7) % 32 WHERE template = 'stray';
SELECT sent FROM otp.delivery_stats WHERE template = 'stray';
TRUNCATE otp.stats_hours, otp.usage_days;
SELECT otp.roll_up() > 1000 AS all_of_them;
SELECT sent FROM otp.delivery_stats WHERE template = 'stray';
SELECT t.expect();
SELECT stats_differ, usage_differ, not_near FROM t.compare();
SELECT any_leaf_until > now() + interval '23 h' AS any_leaf, step_length / 3600000000 AS hours FROM otp.stats_position;
ROLLBACK;

--
-- Histograms
--
SELECT otp.histogram_percentile('{}', 0.5), otp.histogram_percentile('[0:0]={3}', 0.5), otp.histogram_percentile('[81:81]={1}', 0.5),
	otp.histogram_percentile('[160:160]={1}', 1), otp.histogram_percentile('[1:3]={1,0,1}', 0.5), otp.histogram_percentile('[1:3]={1,0,1}', 0.51);
SELECT otp.histogram_add('[3:5]={1,0,2}', '[5:6]={3,4}'), otp.histogram_add('{}', '[0:0]={1}'), otp.histogram_add('{}', '{}'),
	otp.histogram_add('[7:7]={2147483647}', '[7:7]={2147483647}');
SELECT otp.histogram_sum(h) FROM (VALUES ('[3:3]={1}'::int[]), ('{}'), (NULL), ('[1:1]={5}')) v (h);
SELECT t.error($$SELECT otp.histogram_percentile($1::int[], 0.5)$$, h) FROM unnest(ARRAY['[-1:0]={1,2}', '[160:161]={1,2}', '{{1}}', '{NULL}']) h;
SELECT t.error($$SELECT otp.histogram_percentile('{}', $1::float8)$$, f) FROM unnest(ARRAY['1.1', '-0.1', 'NaN']) f;

--
-- Who sees what
--
CREATE ROLE regress_stats_a;
CREATE ROLE regress_stats_none;
CREATE ROLE regress_stats_monitor IN ROLE pg_monitor;
SELECT otp.grant_workspace('stats_a', 'regress_stats_a');
SELECT otp.grant_workspace('stats_c', 'regress_stats_none');
SELECT otp.revoke_workspace('stats_c', 'regress_stats_none');
SELECT t.many(30, '5 min');
SELECT t.expect();
SELECT stats_differ, usage_differ, not_near FROM t.compare();
SET ROLE regress_stats_a;
SELECT array_agg(DISTINCT workspace) FROM otp.delivery_stats;
SELECT array_agg(DISTINCT workspace) FROM otp.usage;
SELECT count(DISTINCT workspace_id) FROM otp.stats_rest();
SELECT count(DISTINCT workspace_id) FROM otp.usage_rest();
SELECT t.error('SELECT * FROM otp.stats_hours');
SELECT t.error('SELECT * FROM otp.usage_days');
SELECT t.error('SELECT otp.roll_up()');
-- the view's filter goes before a function that tells
CREATE FUNCTION pg_temp.tell(text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE NOTICE 'seen: %', $1; RETURN true; END $$;
SET client_min_messages = notice;
SELECT count(*) > 0 AS seen FROM otp.delivery_stats WHERE workspace <> 'stats_a' AND pg_temp.tell(workspace);
SET client_min_messages = error;
DROP FUNCTION pg_temp.tell;
SET ROLE regress_stats_monitor;
SELECT array_agg(DISTINCT workspace) @> '{stats_a,stats_b}' FROM otp.delivery_stats;
SELECT count(DISTINCT workspace_id) > 1 FROM otp.stats_rest();
SELECT t.error('SELECT * FROM otp.usage');
SELECT t.error('SELECT * FROM otp.usage_rest()');
SET ROLE regress_stats_none;
SELECT t.error('SELECT * FROM otp.delivery_stats');
SELECT t.error('SELECT * FROM otp.usage');
SELECT t.error('SELECT * FROM otp.stats_rest()');
RESET ROLE;
GRANT EXECUTE ON FUNCTION otp.roll_up(int) TO regress_stats_a;
SET ROLE regress_stats_a;
SELECT t.error('SELECT otp.roll_up()');
RESET ROLE;
SELECT t.error('SELECT otp.roll_up(0)');
BEGIN READ ONLY;
SELECT t.error('SELECT otp.roll_up()');
SELECT count(*) > 0 AS works FROM otp.delivery_stats;
COMMIT;

-- A workspace that is gone is gone
BEGIN;
DELETE FROM otp.workspaces WHERE name = 'stats_b';
SELECT array_agg(DISTINCT workspace) FILTER (WHERE workspace LIKE 'stats\_%') FROM otp.delivery_stats;
ROLLBACK;

-- A month is read by the index, and hours that are not asked for are not read
SET enable_seqscan = off;
CREATE FUNCTION t.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ DECLARE line text; BEGIN
	FOR line IN EXECUTE 'EXPLAIN (COSTS off) ' || query LOOP
		IF line ~ 'Index Cond' THEN RETURN NEXT regexp_replace(trim(line), '\$\d+|\(InitPlan \d+\)\.col1', 'X', 'g'); END IF;
	END LOOP;
END $$;
SELECT * FROM t.plan($$SELECT * FROM otp.delivery_stats WHERE hour >= now() - interval '30 days'$$);
RESET enable_seqscan;

-- Nothing stays but what others do not see
SELECT otp.revoke_workspace('stats_a', 'regress_stats_a');
REVOKE ALL ON FUNCTION otp.roll_up(int) FROM regress_stats_a;
DROP ROLE regress_stats_a, regress_stats_none, regress_stats_monitor;
DELETE FROM otp.messages m USING otp.workspaces w WHERE m.workspace_id = w.workspace_id AND w.name LIKE 'stats\_%';
DELETE FROM otp.verifications v USING otp.workspaces w WHERE v.workspace_id = w.workspace_id AND w.name LIKE 'stats\_%';
DELETE FROM otp.stats_hours s USING otp.workspaces w WHERE s.workspace_id = w.workspace_id AND w.name LIKE 'stats\_%';
DELETE FROM otp.usage_days u USING otp.workspaces w WHERE u.workspace_id = w.workspace_id AND w.name LIKE 'stats\_%';
DELETE FROM otp.workspaces WHERE name LIKE 'stats\_%';
DROP FUNCTION t.compare, t.expect, t.near, t.many, t.message, t.sent, t.id, t.drawer, t.plan;
DROP TABLE t.stats, t.usage;
DROP VIEW t.usage_now, t.stats_now, t.raw;
