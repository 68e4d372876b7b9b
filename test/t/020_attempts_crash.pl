# A wrong guess outlives its rollback, a crash and a restart.
#
# Guesses are counted in shared memory first and written back to their rows by
# the sender. This protects the way from there to the disk: nothing that was
# written back is ever lost, an orderly stop loses nothing at all, and a crash
# loses exactly the guesses that no row carried yet. The last is marked here,
# so that it cannot grow unnoticed.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main',
	conf => [ 'restart_after_crash = on', 'max_prepared_transactions = 5' ]);
$node->install;
$node->configure($sim);
$node->lift_limits;

my $phones = 0;

# Send to a phone of its own; a wrong code, and what goes with it
sub new_code
{
	my $phone = sprintf '+1555020%04d', ++$phones;
	my $id = $node->send($phone);
	my $code = $sim->code_for($id);

	return {
		id => $id,
		phone => $phone,
		code => $code,
		guess => sprintf("SELECT error FROM otp_verify('%s', '%06d')", $id, (1 + $code) % 1_000_000) };
}

# What the row carries
sub attempts
{
	my ($c) = @_;
	return $node->value(
		"SELECT attempts FROM otp.verifications WHERE id = otp.parse_id('$c->{id}')");
}

sub phone_failures
{
	my ($c) = @_;
	return $node->value(
		"SELECT coalesce(sum(failures), 0) FROM otp.phone_failures WHERE phone = '$c->{phone}'");
}

sub wait_for_write_back
{
	return $node->poll_query_until('postgres', 'SELECT ledger_used = 0 FROM otp.worker_status()');
}

# Guess in a transaction that stays open
sub open_guess
{
	my ($c) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_safe('BEGIN');
	is($session->query_safe($c->{guess}), 'invalid_code', 'a wrong guess in an open transaction');
	return $session;
}

# The other end is gone
sub end_session
{
	my ($session) = @_;
	local $SIG{PIPE} = 'IGNORE';

	eval { $session->quit };
	return;
}

sub wait_until_up
{
	return poll_until
	{
		$node->psql('postgres', 'SELECT 1') == 0;
	};
}

# Rolled back, in four ways, and still written to the row
my $c = new_code();
is($node->run("BEGIN; $c->{guess}; ROLLBACK"), 'invalid_code', 'a wrong guess is told');
ok(wait_for_write_back(), 'the ledger is written back');
is(attempts($c), 1, 'to the row, although its transaction was rolled back');
$node->run("BEGIN; SAVEPOINT s; $c->{guess}; ROLLBACK TO s; COMMIT");
ok(wait_for_write_back(), 'a savepoint');
is(attempts($c), 2, 'takes nothing back either');
$node->run("DO \$\$ BEGIN PERFORM * FROM otp_verify('$c->{id}', 'x'); RAISE division_by_zero;"
	  . " EXCEPTION WHEN division_by_zero THEN END \$\$");
ok(wait_for_write_back(), 'nor does an exception block');
is(attempts($c), 3, 'take one back');
is(phone_failures($c), 3, 'the phone carries all three');
is($node->verify($c->{id}, $c->{code})->{error}, 'rate_limit_exceeded', 'the third was the last');
is($node->status($c->{id})->{attempts}, 3, 'and status knows it');

# A right guess that is rolled back costs nothing, on disk neither
$c = new_code();
is($node->run("BEGIN; SELECT valid FROM otp_verify('$c->{id}', '$c->{code}'); ROLLBACK"),
	't', 'a right guess');
ok(wait_for_write_back(), 'leaves nothing in the ledger');
is(attempts($c), 0, 'and no attempt in the row when it is rolled back');

# Power fails after the write-back
$c = new_code();
$node->run("BEGIN; $c->{guess}; ROLLBACK");
$node->run("BEGIN; $c->{guess}; ROLLBACK");
wait_for_write_back();
$node->stop('immediate');
$node->start;
is(attempts($c), 2, 'an immediate stop takes back nothing that was written back');
is(phone_failures($c), 2, "nor of the phone's");
my $v = $node->verify($c->{id}, 'wrong');
is($v->{attempts_remaining}, 0, 'so the next wrong guess is the last');
is($node->verify($c->{id}, $c->{code})->{error}, 'rate_limit_exceeded', 'and the right one comes too late');

# A backend dies between the count and the commit
$c = new_code();
$node->run($c->{guess});
my $session = open_guess($c);
ok($node->poll_query_until('postgres',
		"SELECT failures = 2 FROM otp.phone_failures WHERE phone = '$c->{phone}'"),
	'the phone carries a guess whose row is still locked');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
kill 'KILL', $pid;
ok($node->wait_for_log(qr/terminated by signal 9/), 'a backend is killed');
end_session($session);
ok(wait_until_up(), 'the server starts again');
is(attempts($c), 1,
	'THE BOUND: a crash forgets guesses of transactions that were open, and no committed one');
is(phone_failures($c), 2, 'the phone does not forget even those');
is($node->verify($c->{id}, 'wrong')->{attempts_remaining}, 1, 'counting goes on from there');

# Nothing is forgotten by a stop in good order: rolled back the moment before ...
$c = new_code();
my $d = new_code();
wait_for_write_back();
$session = open_guess($d);
$node->run("BEGIN; $c->{guess}; ROLLBACK");
$node->stop('fast');
end_session($session);
$node->start;
is(attempts($c), 1, 'a fast stop forgets nothing that was rolled back before');
is(attempts($d), 1, 'nor what it rolls back itself');
is(phone_failures($c) + phone_failures($d), 2, 'nor do the phones');

# Two-phase commit: the guess waits, over restarts, for its transaction's end
$c = new_code();
$node->run("BEGIN; $c->{guess}; PREPARE TRANSACTION 'guess'");
is($node->status($c->{id})->{attempts}, 1, 'a prepared guess counts');
my $e = $node->error_of("SET lock_timeout = 100; $c->{guess}");
is($e->{sqlstate}, '55P03', 'and no other comes in between');
$node->restart;
is($node->value('SELECT gid FROM pg_prepared_xacts'), 'guess', 'prepared over a restart');
$e = $node->error_of("SET lock_timeout = 100; $c->{guess}");
is($e->{sqlstate}, '55P03', 'the row is still closed to others');
$node->stop('immediate');
$node->start;
$node->run("COMMIT PREPARED 'guess'");
is(attempts($c), 1, 'and its guess is in the row when it commits');
is($node->verify($c->{id}, 'wrong')->{attempts_remaining}, 1, 'where the next ones count on');

# ... and rolled back without a restart between, it counts as well
$c = new_code();
$node->run("BEGIN; $c->{guess}; PREPARE TRANSACTION 'guess'");
$node->run("ROLLBACK PREPARED 'guess'");
ok(wait_for_write_back(), 'a prepared guess, rolled back');
is(attempts($c), 1, 'is written back');

# ... rolled back after a restart, the phone alone remembers
$c = new_code();
$node->run("BEGIN; $c->{guess}; PREPARE TRANSACTION 'guess'");
ok($node->poll_query_until('postgres',
		"SELECT failures = 1 FROM otp.phone_failures WHERE phone = '$c->{phone}'"),
	'the phone carries a prepared guess');
$node->restart;
$node->run("ROLLBACK PREPARED 'guess'");
is(phone_failures($c), 1, 'THE BOUND: of a guess prepared before a restart and rolled back after it, the phone knows');

$node->stop;
done_testing;
