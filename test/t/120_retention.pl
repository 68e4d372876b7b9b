# 120_retention.pl
#	What is older than otp.retention goes, and nothing else does.
#
# Protects: old drawers are emptied after a start, after otp.retention is
# lowered, and after a long stop, when the drawer that is being filled has old
# rows in it; a longer otp.retention loses nothing; a reader, or a backup, is
# waited for, with no send and no verify behind it; a drawer that ends up
# mixed loses its old rows only; a restored history is measured anew; out of
# date counts of wrong guesses go; the log is silent about all that.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);
$node->lift_limits;
my $last_phone = 15550000000;

# Ids as otp_send makes them, at another time: milliseconds, drawer, random
$node->run(<<'END');
CREATE SCHEMA t;
CREATE FUNCTION t.id(at timestamptz, step int = 1) RETURNS uuid LANGUAGE sql VOLATILE AS $$
	SELECT (lpad(to_hex(ms), 12, '0') || lpad(to_hex((ms / 86400000 / step % 32)::int * 2048 + floor(random() * 2048)::int), 4, '0')
		|| substr(md5(random()::text), 1, 16))::uuid FROM (SELECT floor(extract(epoch FROM at) * 1000)::int8 AS ms) s
$$;
CREATE FUNCTION t.slot(id uuid) RETURNS int LANGUAGE sql IMMUTABLE AS $$
	SELECT ('x' || substr(id::text, 15, 2))::bit(8)::int / 8
$$;
CREATE FUNCTION t.age(id uuid) RETURNS interval LANGUAGE sql AS $$
	SELECT clock_timestamp() - to_timestamp(('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::int8 / 1000.0)
$$;
-- Make verifications of some time, with a message and a webhook's attempt each
CREATE FUNCTION t.fill(at timestamptz, n int, step int = 1, workspace int = 1) RETURNS int LANGUAGE sql AS $$
	WITH ids AS MATERIALIZED (SELECT t.id(at + i * interval '1 ms', step) AS id, i FROM generate_series(1, n) i),
	v AS (INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, key_id, length,
			max_attempts, fallback_sms, phone, template, language, channel, salt, code_hash, metadata)
		SELECT workspace, id, t.slot(id), 3, at, at, 1, 6,
			3, false, '+1555' || lpad(i::text, 7, '0'), 'otp_verification', 'en_US', 'whatsapp',
			decode(repeat('00', 16), 'hex'), decode(repeat('00', 32), 'hex'), '{"a": 1}' FROM ids),
	a AS (INSERT INTO otp.webhook_attempts (workspace_id, endpoint_id, webhook_id, slot, attempt, number, event,
			occurred_at, attempted_at, delivered)
		SELECT workspace, i % 3, id, t.slot(id), 1, 1, 'otp.sent', at, at, true FROM ids),
	m AS (INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, created_at, channel)
		SELECT workspace, id, t.slot(id), 1, 1, at, 'whatsapp' FROM ids RETURNING slot),
	k AS (INSERT INTO otp.send_keys (workspace_id, hash, verification_id, slot)
		SELECT workspace, gen_random_uuid(), id, t.slot(id) FROM ids)
	SELECT min(slot) FROM m
$$;
CREATE VIEW t.counts AS
SELECT (SELECT count(*) FROM otp.verifications) || ' ' || (SELECT count(*) FROM otp.messages) || ' ' || (SELECT count(*) FROM otp.webhook_attempts)
	|| ' ' || (SELECT count(*) FROM otp.send_keys) AS counts;
END

# Make verifications so many days old
sub fill
{
	my ($days, $n, $step, $workspace) = @_;
	$step //= 1;
	$workspace //= 1;
	return $node->value("SELECT t.fill(clock_timestamp() - interval '$days days', $n, $step, $workspace)");
}

# Whole days of age that are there, and how many rows of each table
sub ages
{
	return $node->value("SELECT string_agg(days || ':' || n, ' ' ORDER BY days) FROM ("
		  . 'SELECT extract(day FROM justify_hours(t.age(id)))::int + extract(month FROM t.age(id))::int * 30 AS days, count(*) AS n'
		  . ' FROM otp.verifications GROUP BY 1) s');
}

# Wait until all three tables have so many rows
sub wait_for_rows
{
	my ($n) = @_;
	return $node->poll_query_until('postgres', "SELECT counts = '$n $n $n $n' FROM t.counts");
}

# Have the settings read
sub set_retention
{
	my ($value) = @_;
	$node->append_conf('postgresql.conf', "otp.retention = '$value'");
	$node->reload;
	$node->poll_query_until('postgres',
		"SELECT setting::int * interval '1 min' = interval '$value' FROM pg_settings WHERE name = 'otp.retention'");
	return;
}

#
# Old drawers go after a start, in each table; young ones stay
#
$node->wait_for_sender;
$node->stop;
$node->append_conf('postgresql.conf', 'otp.delivery = off');
$node->start;
$node->wait_for_sender;
$node->stop;
$node->start;
fill($_, 10) foreach 0, 1, 5, 29;
fill($_, 10) foreach 33, 40, 45;
fill(45, 10, 1, 2);
$node->run('DELETE FROM otp.ring');
is($node->value('SELECT counts FROM t.counts'), '80 80 80 80', 'a history of 45 days');
$node->restart;
ok(wait_for_rows(40), 'after a start, what is older than 30 days goes, also when delivery is off');
is(ages(), '0:10 1:10 5:10 29:10', 'and nothing else');
is( $node->value('SELECT count(*) FROM otp.ring r WHERE r.since > r.until'),
	0, 'the ring says from when to when');
ok( $node->poll_query_until('postgres', 'SELECT count(*) = 4 FROM otp.history WHERE until IS NOT NULL'),
	'of each drawer that holds something');
is( $node->value("SELECT bool_and(pg_relation_size(c.oid) = 0) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
		  . " WHERE n.nspname = 'otp' AND c.relname ~ '^(verifications|messages|webhook_attempts|send_keys)_\\d\\d\$' AND c.relkind = 'r'"
		  . ' AND right(c.relname, 2)::int NOT IN (SELECT slot FROM otp.ring)'),
	't', 'the others take no room');

#
# A lower otp.retention holds at once, up to a day
#
my $sender = $node->value('SELECT sender_pid FROM otp.worker_status()');
set_retention('3d');
ok(wait_for_rows(20), 'a lower otp.retention');
is(ages(), '0:10 1:10', 'leaves the last days');
is($node->value('SELECT sender_pid FROM otp.worker_status()'), $sender, 'without a restart');

#
# Somebody reads an old drawer: it waits, and nobody waits behind it
#
my $reader = $node->background_psql('postgres');
my $slot = sprintf '%02d', fill(10, 10);
$reader->query_safe("BEGIN; SELECT count(*) FROM otp.verifications_$slot");
set_retention('4d');
my $waiting = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
  . " WHERE c.relname LIKE '%_$slot' AND NOT l.granted";
foreach my $round (1 .. 20)
{
	my $id = $node->send('+' . ++$last_phone);
	my $v = $node->verify($id, 'wrong');
	last if !ok($v->{error} eq 'invalid_code', 'a send and a verify go on')
	  || !is($node->value($waiting), 0, 'and nobody waits for a lock');
	$node->run("SET statement_timeout = '5 s'; SELECT count(*) FROM otp.verifications_$slot; SELECT count(*) FROM otp.deliveries");
}
is($node->value("SELECT count(*) FROM otp.verifications_$slot"), 10, 'what is read stays');
$reader->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.verifications_$slot"), 'until the reader has gone');

#
# A backup that runs: one snapshot, and a lock on everything
#
$node->run('TRUNCATE otp.verifications, otp.messages, otp.webhook_attempts, otp.send_keys');
fill($_, 10) foreach 0, 8, 9;
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE otp.verifications, otp.messages, otp.webhook_attempts, otp.send_keys IN ACCESS SHARE MODE');
is($reader->query_safe('SELECT count(*) FROM otp.verifications'), 30, 'a backup');
set_retention('2d');
my $id = $node->send('+' . ++$last_phone);
is($node->verify($id, 'wrong')->{error}, 'invalid_code', 'holds up no send');
is($reader->query_safe('SELECT count(*) FROM otp.verifications'), 30, 'sees all there was');
$reader->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT counts = '11 10 10 10' FROM t.counts"), 'and what is old goes after it');

#
# A transaction that has inserted into an old drawer and is not over
#
$reader->query_safe("BEGIN; SELECT t.fill(clock_timestamp() - interval '12 days', 5)");
fill(12, 5);
set_retention('1d');
is($reader->query_safe("SELECT count(*) FROM otp.verifications WHERE t.age(id) > interval '11 days'"), 10, 'an open transaction keeps its drawer');
$reader->query_safe('ROLLBACK');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.verifications WHERE t.age(id) > interval '11 days'"),
	'until it ends');

$reader->quit;

#
# After a long stop: old and new rows in one drawer, the one that is being filled
#
set_retention('30d');
$node->stop;
$node->start;
$node->wait_for_sender;
$node->run('TRUNCATE otp.verifications, otp.messages, otp.webhook_attempts, otp.send_keys');
$node->run('DELETE FROM otp.ring');
is(fill(64, 1300), fill(0, 100), 'two months later the same drawer is filled');
fill(32, 700, 1, 2);
fill(40, 10);
$node->run("INSERT INTO otp.ring SELECT t.slot(t.id(clock_timestamp())), now() - interval '64 days', now() - interval '63 days' ON CONFLICT (slot) DO NOTHING");
my $fresh = $node->value('SELECT relfilenode FROM pg_class WHERE relname = '
	  . "'verifications_' || lpad(t.slot(t.id(clock_timestamp()))::text, 2, '0')");
$node->restart;
ok(wait_for_rows(100), 'only what is new stays');
is(ages(), '0:100', 'all of it');
is( $node->value('SELECT relfilenode FROM pg_class WHERE relname = '
		  . "'verifications_' || lpad(t.slot(t.id(clock_timestamp()))::text, 2, '0')"),
	$fresh, 'and the drawer was not emptied at a stroke');

#
# A longer otp.retention: wider steps, nothing lost
#
$node->run('TRUNCATE otp.verifications, otp.messages, otp.webhook_attempts, otp.send_keys');
fill($_, 10) foreach 1 .. 29;
set_retention('90d');
$id = $node->send('+' . ++$last_phone);
is( $node->value("SELECT t.slot(otp.parse_id('$id')) = floor(extract(epoch FROM t.age('00000000-0000-0000-0000-000000000000')) / 86400 / 3)::int % 32"),
	't', 'a step of three days');
$node->restart;
$node->wait_for_sender;
ok( $node->poll_query_until('postgres', 'SELECT count(*) >= 29 FROM otp.ring'), 'all drawers are noted');
fill($_, 10, 3) foreach 40, 60, 85;
is(fill(200, 10, 3) >= 0, 1, 'and something really old');

# a sender finds at its start what was put behind its back
set_retention('91d');
$node->restart;
$node->wait_for_sender;
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.verifications WHERE t.age(id) > interval '100 days'"),
	'what is older than that goes');
is($node->value('SELECT count(*) FROM otp.verifications'), 29 * 10 + 1 + 30, 'nothing else does');
is($node->status($id)->{status}, 'pending', 'the verification is found by its id');
$node->restart;
$node->wait_for_sender;
set_retention('30d');
is($node->status($id)->{status}, 'pending', 'and after a change back as well');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.verifications WHERE t.age(id) > interval '32 days'"),
	'which lets the old ones go');
is($node->value("SELECT count(*) FROM otp.verifications WHERE t.age(id) < interval '29 days 12 hours'"), 291, 'and no other');

# The limits look where it was sent under the other step
$node->run('UPDATE otp.workspaces SET sends_per_phone_hour = 1');
my $phone = '+' . ++$last_phone;
$node->send($phone);
set_retention('90d');
is($node->error_of("SELECT otp_send('$phone')")->{sqlstate}, 'OT429', 'a change of otp.retention lifts no limit');
$node->run('UPDATE otp.workspaces SET sends_per_phone_hour = NULL');
set_retention('30d');

#
# Counts of wrong guesses
#
$node->run("INSERT INTO otp.phone_failures SELECT 7, '+1555' || lpad(i::text, 7, '0'), now() - i * interval '6 min', 3 FROM generate_series(1, 500) i");
$node->restart;
ok($node->poll_query_until('postgres', "SELECT max(now() - since) < interval '25 hours 1 min' FROM otp.phone_failures"),
	'counts that are out of date go');
is($node->value("SELECT count(*) BETWEEN 248 AND 250 FROM otp.phone_failures WHERE workspace_id = 7"), 't', 'the others stay');

#
# What the log has to say of all that: nothing
#
$node->stop;
my $log = slurp_file($node->logfile);
is_deeply([ grep { !/too many codes were sent/ } $log =~ /(?:ERROR|FATAL|PANIC|WARNING):  (.*)/g ], [], 'no error');
unlike($log, qr/lock timeout|canceling statement|deadlock/, 'no lock that was waited for');
unlike($log, qr/drawer/, 'no word of drawers');
done_testing();
