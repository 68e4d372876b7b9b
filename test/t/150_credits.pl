# 150_credits.pl
#	Credits are never oversold, and never withheld.
#
# Protects: exactly as many sends as there are credits, whoever sends at once,
# in every isolation level, whatever is rolled back, and nobody refused before;
# credits through two-phase commit and restarts, and through a crash; a sender
# that waits for the last credit gets the first that comes free, is told of
# deadlocks and obeys lock_timeout; stripes that are levelled.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

use constant CREDITS => 1000;
use constant CLIENTS => 64;

my $node = OTP::Cluster->start(
	'main',
	conf => [
		'max_connections = 100', 'max_prepared_transactions = 5', 'otp.delivery = off',
		'restart_after_crash = on', 'autovacuum = off' ]);
$node->install;
$node->run(<<'END');
SELECT otp.configure_meta(phone_number_id => '1', access_token => 'token', base_url => 'http://127.0.0.1:9');
UPDATE otp.workspaces SET credits_metered = true;
CREATE SEQUENCE phone;
CREATE SEQUENCE refused; CREATE SEQUENCE refused_early; CREATE SEQUENCE failed;

-- Send, and note where no rollback reaches what came of it
CREATE FUNCTION try_send(credits int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM otp_send('+1556' || lpad(nextval('phone')::text, 7, '0'));
EXCEPTION
	WHEN SQLSTATE 'OT402' THEN
		PERFORM nextval('refused');
		IF current_setting('transaction_isolation') = 'read committed'
			AND (SELECT count(*) FROM otp.verifications) < credits THEN
			PERFORM nextval('refused_early');
		END IF;
	WHEN serialization_failure OR deadlock_detected THEN
		PERFORM nextval('failed');
END $$;
END
$node->lift_limits;

my $dir = PostgreSQL::Test::Utils::tempdir();

sub balance
{
	return $node->value('SELECT balance FROM otp.credit_balances');
}

sub sent
{
	return $node->value('SELECT count(*) FROM otp.verifications');
}

# Begin anew, with so many credits
sub renew
{
	my ($credits) = @_;
	my $rest = balance();

	$node->run('TRUNCATE otp.verifications, otp.outbox;'
		  . 'SELECT setval(s, 1, false) FROM unnest(ARRAY[\'refused\', \'refused_early\', \'failed\']) s');
	$node->run("SELECT otp.add_credits('default', -$rest)") if $rest > 0;
	$node->run("SELECT otp.add_credits('default', $credits)") if $credits > 0;
	return;
}

sub counted
{
	my ($what) = @_;
	return $node->value("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM $what");
}

# Have many sessions run transactions at once, so many each; some errors are of the game
sub storm
{
	my ($isolation, $count, @ends) = @_;
	my $script = "$dir/storm.sql";
	my @runs;

	unlink $script;
	append_to_file($script,
		join '', map { "BEGIN ISOLATION LEVEL $isolation; SELECT try_send(@{[CREDITS]}); $ends[ $_ % @ends ];\n" } 1 .. $count);
	foreach my $client (1 .. CLIENTS)
	{
		push @runs,
		  IPC::Run::start(
			[ $node->installed_command('psql'), '-X', '-q', '-f', $script, $node->connstr('postgres') ],
			'<', \undef, '>', "$dir/out.$client", '2>', "$dir/err.$client");
	}
	foreach my $run (@runs)
	{
		$run->finish or return 0;
	}
	my $errors = join '', map { slurp_file("$dir/err.$_") } 1 .. CLIENTS;
	my @others = grep { /ERROR|FATAL|PANIC/ && !/could not serialize|deadlock detected/ } split /\n/, $errors;
	is("@others[0 .. ($#others < 2 ? $#others : 2)]", '', "no other errors at $isolation");
	return 1;
}

#
# All at once
#
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $half (0, 1)
	{
		my $name = "$isolation, " . ($half ? 'half of them rolled back' : 'all committed');

		renew(CREDITS);
		for my $round (1 .. 10)
		{
			ok(storm($isolation, $half ? 40 : 20, 'COMMIT', $half ? 'ROLLBACK' : ()), "$name: round $round");
			last if balance() <= 0;
		}
		is(sent(), CREDITS, "$name: as many sends as credits");
		is(balance(), 0, "$name: none is left");
		is(counted('refused_early'), 0, "$name: nobody was refused before");
		cmp_ok(counted('refused'), '>', 0, "$name: but then");
		note "$name: " . counted('failed') . ' serialization failures and deadlocks';
	}
}

#
# Two-phase commit, across restarts
#
renew(1);
$node->run("BEGIN; SELECT * FROM otp_send('+15550150001'); PREPARE TRANSACTION 'last credit'");
my $e = $node->error_of("SET lock_timeout = '200ms'; SELECT * FROM otp_send('+15550150002')");
is($e->{sqlstate}, '55P03', 'a prepared transaction has the last credit');
$node->restart;
$e = $node->error_of("SET lock_timeout = '200ms'; SELECT * FROM otp_send('+15550150002')");
is($e->{sqlstate}, '55P03', 'after a restart, too');
is(balance(), 1, 'it is not gone yet');
$node->run("ROLLBACK PREPARED 'last credit'");
$node->send('+15550150002');
is(balance(), 0, 'it comes back with a rollback');
renew(1);
$node->run("BEGIN; SELECT * FROM otp_send('+15550150003'); PREPARE TRANSACTION 'last credit'");
$node->stop('immediate');
$node->start;
$node->run("COMMIT PREPARED 'last credit'");
is(balance(), 0, 'and is gone with a commit after a crash');
is($node->error_of("SELECT * FROM otp_send('+15550150004')")->{sqlstate}, 'OT402', 'which is told');

#
# Who waits for the last credit gets the first that comes free
#
renew(2);
my @idle = map { $node->background_psql('postgres') } 1 .. 3;
$_->query_safe('BEGIN') foreach @idle[ 0, 1 ];
$idle[0]->query_safe("SELECT otp_send('+15550150005')");
$idle[1]->query_safe("SELECT otp_send('+15550150006')");
$idle[2]->query_until(qr/started/, "\\echo started\nSELECT success FROM otp_send('+15550150007');\n");
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%15550150007%' AND wait_event_type = 'Lock'");
$idle[0]->query_safe('ROLLBACK');
is($idle[2]->query_safe("SELECT 'after it'"), "t\nafter it", 'whichever it is: the other one stays idle');
is($node->value("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"), 1, 'and still is');
$idle[1]->query_safe('COMMIT');
is(balance(), 0, 'both are spent');
$_->quit foreach @idle;

#
# Uneven stripes are levelled, also while somebody holds one
#
renew(64 * 100);
$node->run(<<'END');
UPDATE otp.credits SET amount = CASE stripe WHEN 3 THEN 6400 ELSE 0 END;
END
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; SELECT 1 FROM otp.credits WHERE stripe = 5 FOR UPDATE');

# What makes the sender look, without a claim
$node->run('UPDATE otp.workspaces SET credits_low = NULL');
ok($node->poll_query_until('postgres',
		'SELECT min(amount) = 101 AND max(amount) = 102 FROM otp.credits WHERE stripe <> 5'),
	'stripes that are free are levelled');
$holder->query_safe('ROLLBACK');
$holder->quit;
is($node->value('SELECT count(*) || \' \' || sum(amount) FROM otp.credits'), '64 6400', 'and nothing is lost');
$node->run("SELECT otp.add_credits('default', 1)");
ok($node->poll_query_until('postgres', 'SELECT min(amount) = 100 FROM otp.credits'), 'the other one later');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM otp.credit_changes'), 'changes are put there');
is(balance(), 6401, 'and none is lost either');

#
# Top-ups at once: told twice, counted once; a correction meanwhile
#
renew(0);
my $topup = "$dir/topup.sql";
append_to_file($topup, "\\set n random(1, 50)\nSELECT otp.add_credits('default', 100, 'payment ' || :n);\n");
my $take = "$dir/take.sql";
append_to_file($take, "SELECT take();\n");
$node->run(<<'END');
CREATE SEQUENCE taken MINVALUE 0 START 0;
SELECT nextval('taken');
CREATE FUNCTION take() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM otp.add_credits('default', -30), nextval('taken');
EXCEPTION WHEN SQLSTATE 'OT402' OR deadlock_detected THEN
END $$;
END
my ($stdout, $stderr);
ok(IPC::Run::run(
		[   $node->installed_command('pgbench'), '-n', '-c', 8, '-j', 2, '-t', 100, '-h', $node->host,
			'-p', $node->port, '-f', $topup, '-f', $take, 'postgres' ],
		'<', \undef, '>', \$stdout, '2>', \$stderr), 'top-ups and corrections') or diag $stderr;
my $references = $node->value("SELECT count(*) FROM otp.credit_ledger WHERE reference LIKE 'payment %'");
my $corrections = $node->value("SELECT count(*) FROM otp.credit_ledger WHERE amount = -30");
is($references, $node->value("SELECT count(DISTINCT reference) FROM otp.credit_ledger WHERE reference LIKE 'payment %'"),
	'each payment is there once');
is(balance(), 100 * $references - 30 * $corrections, 'and the balance is what the ledger says');

#
# A crash in the middle of it
#
renew(100_000);
$node->run('UPDATE otp.workspaces SET credits_low = NULL');
my $script = "$dir/send.sql";
append_to_file($script, "SELECT try_send(100000);\n");
my $run = IPC::Run::start(
	[   $node->installed_command('pgbench'), '-n', '-c', 16, '-j', 2, '-T', 60, '-h', $node->host, '-p', $node->port,
		'-f', $script, 'postgres' ],
	'<', \undef, '>', \$stdout, '2>', \$stderr);
$node->poll_query_until('postgres', 'SELECT count(*) > 500 FROM otp.verifications');
$node->run("SELECT otp.add_credits('default', 10)") foreach 1 .. 5;
$node->stop('immediate');
eval { $run->finish };
$node->start;
is(balance() + sent(), 100_050, 'after a crash, what was not spent is there');
my ($spent, $added) = split /\|/, $node->value(<<'END');
SELECT spent, (SELECT sum(amount) FROM otp.credit_ledger) - added FROM otp.credit_balances
END
is($added, 0, 'and the ledger is whole');

$node->stop;
done_testing;
