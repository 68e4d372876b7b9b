# The sender sums statistics up a little at a time, and whatever happens to it,
# each message counts once.
#
# Protects: otp.delivery_stats and otp.usage show what was sent a moment ago;
# their numbers stay those of the raw tables while the sender sums up, over
# stops and crashes in the middle, on a standby, and through pg_dump; after a
# change of otp.retention nothing is missed; neither a lock on a leaf nor
# somebody who sums up by hand holds a code up; sums older than thirteen months
# go.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', init => { allows_streaming => 1 });
$node->install;
$node->configure($sim);
$node->lift_limits;

# A history, made in SQL, and what the views should say of it: one message each, or none, or two
$node->run(<<'END');
INSERT INTO otp.workspaces (name) VALUES ('second');
CREATE SCHEMA t;
CREATE FUNCTION t.fill(n int, since interval) RETURNS void LANGUAGE sql AS $$
	WITH v AS (
		INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, verified_at,
			key_id, length, max_attempts, fallback_sms, phone, template, language, channel, salt, code_hash)
		SELECT 1 + i % 2,
			(lpad(to_hex(m.ms), 12, '0') || lpad(to_hex(d.drawer * 8), 2, '0') || lpad(to_hex(i), 18, '0'))::uuid,
			d.drawer, 3, a.at, a.at, CASE WHEN i % 3 > 0 THEN a.at + interval '10 s' END,
			1, 6, 3, true, '+4915' || (550000000 + i), 'otp_verification', 'en_US', 'whatsapp', '\x00', '\x00'
		FROM generate_series(1, n) i, LATERAL (SELECT clock_timestamp() - since * i / n AS at) a,
			LATERAL (SELECT floor(extract(epoch FROM a.at) * 1000)::int8 AS ms) m,
			LATERAL (SELECT (m.ms / 86400000 % 32)::int AS drawer) d
		RETURNING *)
	INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, created_at, channel, sent_at,
		delivered_at)
	SELECT workspace_id, id, slot, number, 1, created_at, CASE number WHEN 1 THEN 'whatsapp' ELSE 'sms' END,
		created_at + interval '1 s', CASE WHEN right(phone, 1) < '7' THEN created_at + interval '2 s' END
	FROM v, generate_series(1, CASE right(phone, 1) WHEN '0' THEN 0 WHEN '9' THEN 2 ELSE 1 END) number
$$;
CREATE VIEW t.raw AS
SELECT v.*, m.number, coalesce(m.channel, v.channel) AS by, m.sent_at, m.delivered_at,
	row_number() OVER (PARTITION BY v.workspace_id, v.id ORDER BY m.number DESC) = 1 AS last
FROM otp.verifications v
LEFT JOIN otp.messages m ON m.slot = v.slot AND m.workspace_id = v.workspace_id AND m.verification_id = v.id;
CREATE VIEW t.stats AS
SELECT date_trunc('hour', created_at, 'UTC') AS hour, w.name AS workspace, by AS channel, count(*) AS messages,
	count(sent_at) AS sent, count(delivered_at) AS delivered,
	count(verified_at) FILTER (WHERE last AND sent_at IS NOT NULL) AS verified
FROM t.raw JOIN otp.workspaces w USING (workspace_id) GROUP BY 1, 2, 3;
CREATE VIEW t.usage AS
SELECT (created_at AT TIME ZONE 'UTC')::date AS day, w.name AS workspace, by AS channel,
	count(*) FILTER (WHERE coalesce(number, 1) = 1) AS sends, count(*) AS messages,
	count(verified_at) FILTER (WHERE last) AS verified
FROM t.raw JOIN otp.workspaces w USING (workspace_id) GROUP BY 1, 2, 3;
CREATE FUNCTION t.differ() RETURNS text LANGUAGE sql AS $$
	WITH s AS MATERIALIZED (
			SELECT hour, workspace, channel, messages, sent, delivered, verified FROM otp.delivery_stats),
		u AS MATERIALIZED (
			SELECT day, workspace, channel, sum(sends)::int8, sum(messages)::int8, sum(verified)::int8
			FROM otp.usage GROUP BY 1, 2, 3),
		stats AS (SELECT count(*) AS n FROM (
			(TABLE s EXCEPT ALL TABLE t.stats) UNION ALL (TABLE t.stats EXCEPT ALL TABLE s)) d),
		usage AS (SELECT count(*) AS n FROM (
			(TABLE u EXCEPT ALL TABLE t.usage) UNION ALL (TABLE t.usage EXCEPT ALL TABLE u)) d)
	SELECT stats.n || ' ' || usage.n FROM stats, usage
$$;
END

# Run a program; did it say nothing and end well?
sub tool
{
	my (@command) = @_;
	my ($stdout, $stderr) = ('', '');
	local %ENV = $node->_get_env();

	my $ok = IPC::Run::run(\@command, '<', \undef, '>', \$stdout, '2>', \$stderr);
	diag $stderr unless $ok;
	return $ok && $stderr eq '';
}

# How many messages are summed up
sub summed
{
	return $node->value('SELECT coalesce(sum(messages), 0) FROM otp.stats_hours');
}

# Wait until nothing is left that is old enough
sub wait_for_end
{
	return $node->poll_query_until('postgres',
		q(SELECT rolled_until > clock_timestamp() - interval '22 min' FROM otp.stats_position));
}

# What was sent a moment ago is there
my $id = $node->send('+15550400001', workspace => 'default');
my $code = $sim->code_for($id);
$node->wait_until_sent;
ok($node->verify($id, $code)->{valid}, 'a code is sent and verified');
my $row = $node->row('SELECT * FROM otp.delivery_stats');
is_deeply([ @$row{qw(workspace channel template messages sent verified failed fallbacks)} ],
	[ 'default', 'whatsapp', 'otp_verification', 1, 1, 1, 0, 0 ], 'and counts at once');
cmp_ok($row->{sent_p50}, '>', 0, 'with the time to the provider');
cmp_ok($row->{sent_p50}, '<=', $row->{verified_p99} * 1.2, 'which is shorter than that to success');
$row = $node->row('SELECT * FROM otp.usage');
is_deeply([ @$row{qw(workspace channel country sends messages sent verified credits)} ],
	[ 'default', 'whatsapp', 'US', 1, 1, 1, 1, 1 ], 'and as usage of a country');

# While the sender sums up, it is killed again and again
$node->stop;
$node->append_conf('postgresql.conf', 'otp.delivery = off');
$node->start;
$node->run(<<'END');
BEGIN;
SELECT otp.roll_up();
UPDATE otp.stats_position SET rolled_until = now() - interval '6 days';
SELECT t.fill(40000, '5 days');
COMMIT;
ANALYZE otp.verifications;
ANALYZE otp.messages;
END
is($node->value('SELECT t.differ()'), '0 0', 'live, the numbers are right');
foreach my $goal (2000, 10000, 20000)
{
	$node->restart;    # the sender looks at once when it starts
	ok($node->poll_query_until('postgres', "SELECT sum(messages) >= $goal FROM otp.stats_hours"), "$goal are summed up");
	is($node->value('SELECT t.differ()'), '0 0', 'in the middle, the numbers are right');
	$node->stop('immediate');
	$node->start;
	is($node->value('SELECT t.differ()'), '0 0', 'and after a crash');
}
ok(wait_for_end(), 'it comes to an end');
cmp_ok(summed(), '>', 40000, 'everything is summed up');
is($node->value('SELECT t.differ()'), '0 0', 'and right');
is($node->value(q(SELECT count(*) FROM otp.stats_rest() WHERE hour < date_trunc('hour', now() - interval '22 min'))),
	0, 'what is read live is recent');

# On a standby
$node->backup('backup');
my $standby = OTP::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is($standby->value('SELECT t.differ()'), '0 0', 'a standby shows the same');
$standby->stop;

# A dump has the sums, and where they end
my $dir = PostgreSQL::Test::Utils::tempdir();
ok(tool('pg_dump', '-Fc', '-f', "$dir/dump", 'postgres'), 'a dump is made');
foreach my $how ([ 'one transaction', '-1' ], [ 'several', '-j2' ])
{
	my ($transactions, $option) = @$how;
	(my $dbname = "copy_$transactions") =~ s/ .*//;
	$node->run("CREATE DATABASE $dbname");
	ok(tool('pg_restore', '-e', $option, '-d', $dbname, "$dir/dump"), "and restored in $transactions");
	$node->restart;
	ok($node->wait_for_sender(dbname => $dbname), 'it has a sender');
	ok($node->poll_query_until($dbname,
			q(SELECT bool_and(rolled_until > clock_timestamp() - interval '22 min') FROM otp.stats_position)),
		'which sums up');
	is($node->value('SELECT t.differ()', dbname => $dbname), '0 0', 'nothing is lost and nothing doubled');
	$node->stop;
	$node->start;
	$node->run("DROP DATABASE $dbname");
}

# Others do not hold it up, nor does it hold a code up
$node->append_conf('postgresql.conf', 'otp.delivery = on');
$node->run(<<'END');
BEGIN;
SELECT otp.roll_up();
UPDATE otp.stats_position SET rolled_until = now() - interval '6 days';
TRUNCATE otp.stats_hours, otp.usage_days;
COMMIT;
END
my $leaf = $node->value(q(SELECT 'otp.messages_' || lpad(slot::text, 2, '0') FROM otp.verifications
	WHERE created_at < now() - interval '2 days' ORDER BY created_at DESC LIMIT 1));
my $other = $node->background_psql('postgres');
$other->query_safe('BEGIN; SELECT otp.roll_up(1);');
$node->reload;
my $log = -s $node->logfile;
$node->value('SELECT pg_terminate_backend(sender_pid) FROM otp.worker_status()');
$id = $node->send('+15550400002', workspace => 'default');
ok($sim->code_for($id), 'a code arrives while somebody sums up by hand');
is(summed(), 0, 'who is alone with it');
$other->query_safe('ROLLBACK');
$other->query_safe("BEGIN; LOCK TABLE $leaf;");
$node->value('SELECT pg_terminate_backend(sender_pid) FROM otp.worker_status()');
ok($node->poll_query_until('postgres', 'SELECT sum(messages) > 0 FROM otp.stats_hours'), 'up to a leaf that is locked');
my $summed = summed();
foreach my $n (3 .. 12)
{
	my $phone = sprintf '+155504000%02d', $n;
	ok($sim->code_for($node->send($phone, workspace => 'default')), 'a code arrives while a leaf is locked');
}
cmp_ok(summed(), '<', 35000, 'which is not passed over');
$other->query_safe('ROLLBACK');
$other->quit;
$node->restart;
ok(wait_for_end(), 'then it goes on');
is($node->value('SELECT t.differ()'), '0 0', 'with everything');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $log), qr/lock timeout|ERROR/, 'and no word in the log');

# Ids of another step of time lie in other drawers
my ($old_slot) = $node->value('SELECT slot FROM otp.verifications ORDER BY id DESC LIMIT 1');
$node->append_conf('postgresql.conf', "otp.retention = '300 d'");
$node->reload;
$node->poll_query_until('postgres', q(SELECT current_setting('otp.retention') = '300d'));
$id = $node->send('+15550400020', workspace => 'default');
isnt($node->value('SELECT slot FROM otp.verifications ORDER BY id DESC LIMIT 1'),
	$old_slot, 'a longer retention fills another drawer');
is($node->value('SELECT t.differ()'), '0 0', 'the numbers have what is in either');
$sim->code_for($id);
$node->wait_until_sent;
$node->run(<<'END');
BEGIN;
SELECT otp.roll_up();
UPDATE otp.stats_position SET rolled_until = now() - interval '6 days';
TRUNCATE otp.stats_hours, otp.usage_days;
COMMIT;
END
$node->restart;
ok(wait_for_end(), 'all is summed up anew');
is($node->value('SELECT t.differ()'), '0 0', 'out of all drawers');
is($node->value('SELECT step_length / 86400000000 FROM otp.stats_position'), 10, 'the step is written down');

# Old sums go, others stay
$node->run(<<'END');
INSERT INTO otp.stats_hours
	SELECT 1, now() - n * interval '1 day', 'sms', 'old', 1, 1, 1, 0, 0, 1, '{}', '{}', '{}'
	FROM generate_series(380, 1879) n;
INSERT INTO otp.usage_days
	SELECT 1, (now() - n * interval '1 day')::date, 'sms', 'DE', '', '', 1, 1, 1, 1, 1, 1, NULL
	FROM unnest(ARRAY[380, 400]) n;
END
$node->restart;
ok($node->poll_query_until('postgres', q(SELECT count(*) < 600 FROM otp.stats_hours WHERE template = 'old')),
	'old sums go, some at a time');
$node->restart;
ok($node->poll_query_until('postgres', q(SELECT min(hour) BETWEEN now() - interval '397 d' AND now() - interval '394 d'
	FROM otp.stats_hours WHERE template = 'old')), 'all that are older than thirteen months');
is($node->value(q(SELECT count(*) FROM otp.usage_days WHERE country = 'DE' AND day < now() - interval '100 d')),
	1, 'of usage as well');

$node->stop;
done_testing;
