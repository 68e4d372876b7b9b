# 070_manageability.pl
#	Commands that want a database for themselves get it.
#
# Protects: DROP DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, CREATE
# DATABASE from it as a template, DROP EXTENSION, fast and smart shutdown
# while a provider hangs, without waiting for it; delivery goes on afterwards,
# whether the command succeeded or not; only those who may run the command
# can stop a sender.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# It should be a second. A loaded machine gets more; a provider's timeout, which
# is 10 s, would be more than that.
use constant SOON => 5;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['max_prepared_transactions = 5']);
my $last_phone = 15550000000;

# Make a database with the extension
sub make_database
{
	my ($name) = @_;

	$node->install(dbname => $name);
	$node->configure($sim, dbname => $name);
	$node->lift_limits(dbname => $name);
	return;
}

# Have a request under way that will not be answered
sub hang
{
	my ($database) = @_;
	my $phone = '+' . ++$last_phone;

	$sim->behave({ match => { phone => $phone }, do => { hang => \1 } });
	my $id = $node->send($phone, dbname => $database);
	poll_until { scalar $sim->log(otp_id => $id) };
	return $id;
}

# Run a command; gives the seconds it took
sub seconds
{
	my ($sql, %where) = @_;
	my $start = time;

	$node->run($sql, %where);
	return time - $start;
}

# Does a database deliver?
sub delivers
{
	my ($database, $what) = @_;
	my $id = $node->send('+' . ++$last_phone, dbname => $database);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(eval { $sim->code_for($id) }, $what);
	return;
}

# Give the sender's pid of a database
sub sender
{
	my ($database) = @_;
	my $pid;

	poll_until
	{
		$pid = $node->value('SELECT sender_pid FROM otp.worker_status()', dbname => $database);
	};
	return $pid;
}

#
# Commands on a whole database, while a provider hangs
#
make_database('app');
delivers('app', 'a database delivers');

my $hung = hang('app');
my $took = seconds('ALTER DATABASE app RENAME TO renamed');
cmp_ok($took, '<', SOON, 'ALTER DATABASE RENAME');
note "RENAME: $took s";
delivers('renamed', 'and delivers under its new name');

# Once more for one event, and no more than once more
$sim->forget_rules;
$node->wait_until_sent(dbname => 'renamed');
is(scalar $sim->log(otp_id => $hung), 2, 'what was under way then is repeated once');

hang('renamed');
$took = seconds('CREATE DATABASE copy TEMPLATE renamed');
cmp_ok($took, '<', SOON, 'CREATE DATABASE ... TEMPLATE');
note "TEMPLATE: $took s";
delivers('renamed', 'and the template delivers');
delivers('copy', 'and the copy delivers its own');

my $directory = PostgreSQL::Test::Utils::tempdir();
$node->run("CREATE TABLESPACE elsewhere LOCATION '$directory'");
hang('renamed');
$took = seconds('ALTER DATABASE renamed SET TABLESPACE elsewhere');
cmp_ok($took, '<', SOON, 'ALTER DATABASE SET TABLESPACE');
note "SET TABLESPACE: $took s";
delivers('renamed', 'and delivers from there');

hang('copy');
$took = seconds('DROP DATABASE copy');
cmp_ok($took, '<', SOON, 'DROP DATABASE');
note "DROP DATABASE: $took s";

# It comes back under the same name
make_database('copy');
delivers('copy', 'a new database of the same name delivers');
hang('copy');
$took = seconds('DROP DATABASE copy WITH (FORCE)');
cmp_ok($took, '<', SOON, 'DROP DATABASE WITH (FORCE)');

#
# Commands that fail
#
my $guest = $node->background_psql('renamed');
like($node->error_of('DROP DATABASE renamed')->{message},
	qr/being accessed by other users/, 'with a guest, DROP DATABASE fails');
$guest->query_safe('SELECT 1');
delivers('renamed', 'and delivery goes on');
like($node->error_of('ALTER DATABASE renamed RENAME TO postgres')->{text},
	qr/already exists|being accessed/, 'a RENAME that fails');
delivers('renamed', 'and delivery goes on');
$guest->quit;

# Those who may not
$node->run('CREATE ROLE stranger LOGIN; CREATE ROLE creator LOGIN CREATEDB;');
my $before = sender('renamed');
foreach my $command (
	'DROP DATABASE renamed',
	'ALTER DATABASE renamed RENAME TO mine',
	'ALTER DATABASE renamed SET TABLESPACE pg_default',
	'CREATE DATABASE mine TEMPLATE renamed')
{
	foreach my $user (qw(stranger creator))
	{
		is($node->error_of($command, user => $user)->{sqlstate},
			'42501', "$user may not: $command");
	}
}
foreach my $command ('DROP EXTENSION otp', 'DROP EXTENSION otp CASCADE', 'DROP SCHEMA otp CASCADE')
{
	is($node->error_of($command, user => 'stranger', dbname => 'renamed')->{sqlstate},
		'42501', "stranger may not: $command");
}
is(sender('renamed'), $before, 'the sender has not noticed');

#
# DROP EXTENSION
#
hang('renamed');
$took = seconds(
	'BEGIN; DROP EXTENSION otp; ROLLBACK;', dbname => 'renamed');
cmp_ok($took, '<', SOON, 'DROP EXTENSION, rolled back');
delivers('renamed', 'and delivery goes on');

hang('renamed');
$took = seconds('DROP EXTENSION otp', dbname => 'renamed');
cmp_ok($took, '<', SOON, 'DROP EXTENSION');
note "DROP EXTENSION: $took s";
ok( $node->poll_query_until(
		'postgres',
		"SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = 'renamed' AND backend_type = 'otp sender')"
	),
	'the sender is gone');
make_database('renamed');
delivers('renamed', 'and comes back with CREATE EXTENSION');

# Together with what it needs
$took = seconds('DROP EXTENSION pgcrypto CASCADE', dbname => 'renamed');
cmp_ok($took, '<', SOON, 'DROP EXTENSION pgcrypto CASCADE');
make_database('renamed');
delivers('renamed', 'and comes back');

# In a transaction that was prepared, and by an owner's DROP OWNED
$took = seconds("BEGIN; DROP EXTENSION otp; PREPARE TRANSACTION 'drop'; ROLLBACK PREPARED 'drop';",
	dbname => 'renamed');
cmp_ok($took, '<', SOON, 'DROP EXTENSION, prepared and rolled back');
delivers('renamed', 'and delivery goes on');

#
# A transaction that has dropped other things does not hold up the messages
#
$node->run('CREATE SCHEMA old; CREATE TABLE old.t (); CREATE ROLE leaver;', dbname => 'renamed');
my $migration = $node->background_psql('renamed');
$migration->query_safe('BEGIN');
$migration->query_safe('SET client_min_messages = warning');
$migration->query_safe('DROP SCHEMA old CASCADE');
$migration->query_safe('DROP OWNED BY leaver');
delivers('renamed', 'a migration that drops other things does not hold up messages');
$migration->query_safe('ROLLBACK');

$migration->query_safe('BEGIN');
$migration->query_safe('SAVEPOINT s');
$migration->query_safe('DROP EXTENSION otp');
$migration->query_safe('ROLLBACK TO SAVEPOINT s');
delivers('renamed', 'nor does one that has thought better of it');
$migration->query_safe('ROLLBACK');
$migration->quit;

# One that holds a pause, and dies
my $dropper = $node->background_psql('renamed');
$dropper->query_safe('BEGIN');
my $pid = $dropper->query_safe('SELECT pg_backend_pid()');
$dropper->query_safe('DROP EXTENSION otp');
$node->run("SELECT pg_terminate_backend($pid)");
delivers('renamed', 'a transaction that is terminated lets the sender in again');
eval { $dropper->quit };

#
# Upkeep of the tables
#
hang('renamed');
foreach my $command (
	'VACUUM FULL otp.outbox',
	'REINDEX TABLE otp.outbox',
	'CLUSTER otp.outbox USING outbox_position',
	'ALTER EXTENSION otp SET SCHEMA public',
	'ANALYZE')
{
	$node->psql('renamed', $command);
	delivers('renamed', "$command: delivery goes on");
}

#
# Shutdown
#
foreach my $mode (qw(fast smart))
{
	my $id = hang('renamed');
	my $start = time;

	$node->stop($mode);
	$took = time - $start;
	cmp_ok($took, '<', SOON, "shutdown $mode");
	note "$mode: $took s";
	$sim->forget_rules;
	$node->start;
	ok($node->wait_until_sent(dbname => 'renamed'), 'after which all is delivered');
	is(scalar $sim->log(otp_id => $id), 2, 'with one repeat');
}

$node->stop;
done_testing();
