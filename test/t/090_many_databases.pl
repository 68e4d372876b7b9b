# 090_many_databases.pl
#	All databases of a server deliver, however few the worker slots.
#
# Protects: twelve databases on eight worker slots, one LOG line that says what
# is missing, databases found by themselves, and senders that no setting and
# no object of a database's owner can stop or lead astray.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant DATABASES => 12;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['max_worker_processes = 8']);
my $last_phone = 15550000000;

# Send in a database
sub send_in
{
	my ($database) = @_;
	return $node->send('+' . ++$last_phone, dbname => $database);
}

# Have a database deliver; gives the seconds it took
sub seconds_until_arrival
{
	my ($id, $start) = @_;
	my @log;

	poll_until { @log = $sim->log(otp_id => $id) } or return 'never';
	return $log[0]{received_us} / 1e6 - $start;
}

# The first is made the usual way, the others are copies, which is faster;
# the providers come with them
$node->install(dbname => 'db1');
$node->configure($sim, dbname => 'db1');
$node->lift_limits(dbname => 'db1');
foreach my $n (2 .. DATABASES)
{
	$node->run("CREATE DATABASE db$n TEMPLATE db1");
}
my @databases = map { "db$_" } 1 .. DATABASES;

#
# Several rounds, all at once
#
foreach my $round (1 .. 3)
{
	my $start = time;
	my %id = map { $_ => send_in($_) } @databases;
	my @seconds = sort { $b <=> $a } map { seconds_until_arrival($id{$_}, $start) } @databases;

	ok($seconds[0] ne 'never', "round $round: all databases deliver");
	cmp_ok($seconds[0], '<', 30, 'before their codes are of no use');
	note sprintf 'slowest %.2f s, median %.2f s', $seconds[0], $seconds[ @seconds / 2 ];
}

# Under load in more databases than there are slots for
my $start = time;
foreach my $database (@databases[ 0 .. 9 ])
{
	$node->run("SELECT count(s.otp_id) FROM generate_series(1, 50) i,"
		  . ' LATERAL otp_send(\'+1777\' || (1000000 + i)) s', dbname => $database);
}
my $late = send_in($databases[11]);
cmp_ok(seconds_until_arrival($late, $start), '<', 30, 'none starves while the others are busy');
ok($node->wait_until_sent(dbname => $_), "$_ owes nothing") foreach @databases;

# Nor when the provider hangs for those that have the slots: a sender that is
# asked to yield waits for its answers, which end after 10 s at the latest
$sim->behave({ match => { prefix => '+1888' }, do => { hang => \1 } });
my @waits;
foreach my $database (@databases[ 0 .. 8 ])
{
	$start = time;
	my $id = $node->send(sprintf('+1888%07d', ++$last_phone % 10_000_000), dbname => $database);
	push @waits, seconds_until_arrival($id, $start);
}
$start = time;
push @waits, seconds_until_arrival(send_in('db11'), $start);
cmp_ok((sort { $b <=> $a } @waits)[0], '<', 20, 'nor while a provider hangs for the others');
note 'with hanging ones: ' . join ' ', map { sprintf '%.2f', $_ } @waits;
$sim->forget_rules;
$sim->release;
ok($node->wait_until_sent(dbname => $_), "$_ owes nothing") foreach @databases;

# One LOG line says what is missing
my @lines = grep { /worker slots for/ } split /\n/, slurp_file($node->logfile);
cmp_ok(scalar @lines, '>=', 1, 'the log says that worker slots are missing');
cmp_ok(scalar @lines, '<=', DATABASES, 'and does not go on about it');
like(slurp_file($node->logfile), qr/Set max_worker_processes to at least \d+/, 'and how many are needed');
my $missing = $node->value('SELECT missing_worker_slots FROM otp.health', dbname => 'db1');
cmp_ok($missing, '>', 0, 'otp.health knows it, too');
note "missing: $missing; lines: " . scalar @lines;

# With as many as it says, all have one
my ($needed) = $lines[-1] =~ /(\d+) databases/;
my ($advised) = (slurp_file($node->logfile) =~ /.*at least (\d+)/s);
$node->append_conf('postgresql.conf', "max_worker_processes = $advised");
$node->restart;
foreach my $database (@databases)
{
	$node->wait_for_sender(dbname => $database);
}
ok( poll_until
	{
		$node->value('SELECT missing_worker_slots FROM otp.health', dbname => 'db1') == 0;
	},
	'with as many as it says, none is missing');
is( $node->value(
		"SELECT count(*) >= 12 FROM pg_stat_activity WHERE backend_type = 'otp sender'"),
	't', 'and all have a sender');
foreach my $n (4 .. DATABASES)
{
	$node->run("DROP DATABASE db$n");
}

#
# Found by itself
#
$node->run('CREATE DATABASE later');
$node->install(dbname => 'later');
$node->configure($sim, dbname => 'later');
$start = time;
cmp_ok(seconds_until_arrival(send_in('later'), $start), '<', 5, 'a database that came later delivers');

# One that was looked at before the extension came
$node->run('CREATE DATABASE latest');
$node->poll_query_until('postgres',
	"SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = 'latest')");
$node->run('BEGIN; CREATE EXTENSION otp CASCADE; ROLLBACK;', dbname => 'latest');
$node->install(dbname => 'latest');
$node->configure($sim, dbname => 'latest');
$start = time;
cmp_ok(seconds_until_arrival(send_in('latest'), $start), '<', 5, 'and one that was empty first');

# The extension in another schema
$node->run('CREATE DATABASE elsewhere');
$node->run('CREATE SCHEMA verbs; CREATE EXTENSION pgcrypto SCHEMA verbs;'
	  . 'CREATE EXTENSION otp SCHEMA verbs', dbname => 'elsewhere');
$node->run('ALTER DATABASE elsewhere SET search_path = verbs');
$node->configure($sim, dbname => 'elsewhere');
ok($sim->code_for(send_in('elsewhere')), 'in a schema of its own');

#
# Settings of a database, and of the role that workers have, which is the
# bootstrap superuser's
#
my @settings = (
	'search_path = hostile, pg_catalog',
	'default_transaction_read_only = on',
	'default_transaction_isolation = serializable',
	'default_transaction_deferrable = on',
	'statement_timeout = 1',
	'lock_timeout = 1',
	'idle_in_transaction_session_timeout = 1',
	'session_replication_role = replica',
	'role = nobody',
	'row_security = on',
	'exit_on_error = on',
	'standard_conforming_strings = off',
	'transform_null_equals = on',
	"datestyle = 'SQL, DMY'",
	"timezone = 'Asia/Kathmandu'",
	'bytea_output = escape',
	'enable_indexscan = off',
	'enable_tidscan = off',
	'plan_cache_mode = force_custom_plan',
	'work_mem = 64',
	'from_collapse_limit = 1',
	'join_collapse_limit = 1',
	'force_parallel_mode = on',
	'debug_parallel_query = on',
	'client_encoding = LATIN1',
	'synchronous_commit = off');
$node->run('CREATE ROLE nobody');

# Something by every name that could be meant, in front of pg_catalog
$node->run(<<'END', dbname => 'later');
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.unnest(anyarray) RETURNS SETOF anyelement
LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$hostile$$; END';
CREATE FUNCTION hostile.starts_with(text, text) RETURNS bool
LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$hostile$$; END';
CREATE FUNCTION hostile.lower(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$hostile$$; END';
CREATE FUNCTION hostile.equal(uuid, uuid) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$hostile$$; END';
CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.equal(int, int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$hostile$$; END';
CREATE OPERATOR hostile.= (LEFTARG = int, RIGHTARG = int, FUNCTION = hostile.equal);
END
my %sane = (
	dbname => 'later',
	options => join ' ',
	map { "-c $_" } (
		'role=none', 'search_path=public', 'default_transaction_read_only=off',
		'default_transaction_deferrable=off',
		'default_transaction_isolation=read\\\\ committed',
		'statement_timeout=0', 'lock_timeout=0', 'idle_in_transaction_session_timeout=0',
		'session_replication_role=origin', 'exit_on_error=off', 'client_encoding=UTF8'));

# Apply some settings in both ways; a sender that begins with them must do its work
sub check_settings
{
	my ($what, @some) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $setting (@some)
	{
		my ($name) = split / /, $setting;

		# not all are there in all versions
		next
		  if $node->value("SELECT count(*) FROM pg_settings WHERE name = '$name'") == 0
		  && $name ne 'role';
		$node->run("ALTER DATABASE later SET $setting");
		$node->run("ALTER ROLE CURRENT_USER IN DATABASE later SET $setting") unless $name eq 'role';
	}

	my $before;
	poll_until { $before = $node->value('SELECT sender_pid FROM otp.worker_status()', %sane) };
	$node->run("SELECT pg_terminate_backend($before)", %sane);
	poll_until
	{
		my $now = $node->value('SELECT sender_pid FROM otp.worker_status()', %sane);
		$now && $now != $before;
	};
	my $id = $node->send('+' . ++$last_phone, %sane);
	my $sms = '+' . ++$last_phone;
	$node->send($sms, channel => 'sms', %sane);
	ok(poll_until { scalar $sim->log(otp_id => $id) }, "$what: WhatsApp");
	ok(poll_until { scalar $sim->inbox($sms) }, "$what: SMS");
	ok($node->wait_until_sent(%sane), "$what: settled");
	is( $node->value('SELECT last_error FROM otp.health WHERE last_error_at > sender_started_at', %sane),
		'', "$what: no error");
	return;
}
check_settings('search_path', $settings[0]);
check_settings('read-only', $settings[1]);
check_settings('isolation', @settings[ 2 .. 3 ]);
check_settings('timeouts', @settings[ 4 .. 6 ]);
check_settings('replication role and role', @settings[ 7 .. 8 ]);
check_settings('all others, too', @settings[ 9 .. $#settings ]);

#
# An ordinary owner of a database
#
$node->run('CREATE ROLE owner LOGIN; CREATE DATABASE owned OWNER owner;');
$node->install(dbname => 'owned');
$node->configure($sim, dbname => 'owned');
$node->lift_limits(dbname => 'owned');
$node->run("SELECT otp.grant_workspace('default', 'owner')", dbname => 'owned');
$node->run(<<'END', dbname => 'owned', user => 'owner');
CREATE SCHEMA hostile;
CREATE TABLE hostile.loot (who text, super text);
CREATE FUNCTION hostile.steal() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO hostile.loot VALUES (current_user, current_setting('is_superuser'));
END $$;
CREATE FUNCTION hostile.equal(uuid, uuid) RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN true; END';
CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.equal(int, int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN true; END';
CREATE OPERATOR hostile.= (LEFTARG = int, RIGHTARG = int, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.equal(int8, int8) RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN true; END';
CREATE OPERATOR hostile.= (LEFTARG = int8, RIGHTARG = int8, FUNCTION = hostile.equal);
CREATE FUNCTION hostile.lower(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN $1; END';
CREATE FUNCTION hostile.length(text) RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN 1; END';
CREATE FUNCTION hostile.starts_with(text, text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN true; END';
CREATE FUNCTION hostile."coalesce"(text, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN $1; END';
CREATE FUNCTION hostile.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS 'BEGIN PERFORM hostile.steal(); RETURN; END';
CREATE TABLE hostile.outbox ();
CREATE TABLE hostile.pg_extension ();
ALTER DATABASE owned SET search_path = hostile, pg_catalog, public;
ALTER DATABASE owned SET default_transaction_read_only = on;
ALTER DATABASE owned SET exit_on_error = on;
ALTER DATABASE owned SET statement_timeout = 1;
END
foreach my $attempt (
	'CREATE EVENT TRIGGER t ON ddl_command_end EXECUTE FUNCTION hostile.steal()',
	'CREATE TRIGGER t BEFORE DELETE ON otp.outbox EXECUTE FUNCTION hostile.steal()',
	'CREATE RULE r AS ON DELETE TO otp.outbox DO ALSO SELECT hostile.steal()',
	'CREATE POLICY p ON otp.outbox',
	'ALTER TABLE otp.outbox ADD x int',
	'ALTER SCHEMA otp RENAME TO other',
	'SELECT * FROM otp.outbox',
	'BEGIN; LOCK TABLE otp.outbox',
	'DROP EXTENSION otp',
	'ALTER DATABASE owned SET session_replication_role = replica',
	'ALTER DATABASE owned SET session_preload_libraries = otp')
{
	my $e = $node->error_of(
		$attempt,
		dbname => 'owned',
		user => 'owner',
		options => '-c search_path=public -c default_transaction_read_only=off -c statement_timeout=0');
	is($e ? $e->{sqlstate} : 'no error', '42501', "a database's owner may not: $attempt");
}
my $pid = $node->value(
	"SELECT pid FROM pg_stat_activity WHERE datname = 'owned' AND backend_type = 'otp sender'");
$node->run("SELECT pg_terminate_backend($pid)") if $pid;
my @ids = map {
	$node->value(
		"SELECT otp_id FROM otp_send('+" . ++$last_phone . "', channel => '$_')",
		dbname => 'owned',
		user => 'owner',
		options => '-c search_path=public -c default_transaction_read_only=off -c statement_timeout=0')
} qw(whatsapp sms);
ok(poll_until { scalar $sim->log(otp_id => $ids[0]) }, 'in his database, too, WhatsApp');
ok(poll_until { $sim->inbox('+' . $last_phone) }, 'and SMS are sent');
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'owned' AND backend_type = 'otp sender'"),
	'by a sender that stays');
my %as_admin = (options => '-c search_path=public -c statement_timeout=0');
ok($node->wait_until_sent(dbname => 'owned', %as_admin), 'and settled');
is($node->value('SELECT count(*) FROM hostile.loot', dbname => 'owned', %as_admin),
	0, 'and he has gained nothing');
is($node->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'otp sender' AND usename = 'owner'"),
	0, 'nor runs it under his name');

$node->stop;
done_testing();
