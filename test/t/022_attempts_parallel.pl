# However many guess at once, and whatever becomes of their transactions, the
# third wrong guess is the last.
#
# This protects the count under concurrency: sixteen sessions try all 10,000
# codes of four digits and roll every guess back; eight guess in all isolation
# levels, with commits, rollbacks, savepoints and exceptions mixed; eight know
# the code, and one of them gets in. What happened is counted in sequences,
# which no rollback touches.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['max_connections = 50']);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run(<<'END');
CREATE SEQUENCE guess_number MINVALUE 0;
CREATE SEQUENCE invalid_code; CREATE SEQUENCE valid; CREATE SEQUENCE failed;
CREATE SEQUENCE rate_limit_exceeded; CREATE SEQUENCE otp_already_verified;

-- Guess, and note where no rollback reaches what came of it
CREATE FUNCTION guess(id text, code text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval(coalesce(v.error, 'valid')::regclass) FROM otp_verify(id, code) v;
EXCEPTION WHEN serialization_failure OR deadlock_detected THEN
	PERFORM nextval('failed');
END $$;

-- The same, and throw it away
CREATE FUNCTION guess_and_fail(id text, code text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM guess(id, code);
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
END $$;
END

my $phones = 0;

sub new_code
{
	my (%args) = @_;
	my $id = $node->send(sprintf('+1555022%04d', ++$phones), %args);
	return ($id, $sim->code_for($id));
}

# How often each came out since the last time
my %before;
sub outcomes
{
	my %now = map { $_->{sequencename} => $_->{last_value} // 0 }
	  $node->rows('SELECT sequencename, last_value FROM pg_sequences');
	my %since = map { $_ => $now{$_} - ($before{$_} // 0) } keys %now;
	%before = %now;
	return \%since;
}

sub attempts
{
	my ($id) = @_;
	return $node->value("SELECT attempts FROM otp.verifications WHERE id = otp.parse_id('$id')");
}

# Run scripts by many at once
sub storm
{
	my ($clients, $transactions, %scripts) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my @files;

	foreach my $name (sort keys %scripts)
	{
		push @files, '-f', "$dir/$name.sql";
		PostgreSQL::Test::Utils::append_to_file("$dir/$name.sql", $scripts{$name});
	}
	my ($stdout, $stderr) = ('', '');
	my $ok = IPC::Run::run(
		[   $node->installed_command('pgbench'), '-n', '-c', $clients, '-j', 2,
			'-t', $transactions, '-h', $node->host, '-p', $node->port, @files, 'postgres' ],
		'<', \undef, '>', \$stdout, '2>', \$stderr);
	ok($ok && $stderr !~ /aborted/, "$clients clients run $transactions transactions each")
	  or diag $stderr;
	return;
}

sub wait_for_write_back
{
	return $node->poll_query_until('postgres', 'SELECT ledger_used = 0 FROM otp.worker_status()');
}

# All codes of four digits, in their order, the right one last
my ($id, $code) = new_code(length => 4);
$node->run('SELECT setval(\'guess_number\', ' . ($code + 1) . ', false)');
outcomes();
storm(16, 625, all => <<"END");
BEGIN;
SELECT guess('$id', lpad((nextval('guess_number') % 10000)::text, 4, '0'));
ROLLBACK;
END
my $o = outcomes();
is($o->{guess_number} - $code, 10_000, 'all 10,000 codes are tried and rolled back');
is($o->{invalid_code}, 3, 'three are compared');
is($o->{valid}, 0, 'the right one is not');
is($o->{rate_limit_exceeded}, 9_997, 'all others are refused');
ok(wait_for_write_back(), 'the count is written back');
is(attempts($id), 3, 'and is three');
is($node->verify($id, $code)->{error}, 'rate_limit_exceeded', 'the right code is of no use any more');

# The same with the right code among the first: at most three wrong ones still,
# and a right one that is rolled back costs nothing
($id, $code) = new_code(length => 4);
$node->run("SELECT setval('guess_number', 10000 + $code - 1, false)");
outcomes();
storm(16, 20, first => <<"END");
BEGIN;
SELECT guess('$id', lpad((nextval('guess_number') % 10000)::text, 4, '0'));
ROLLBACK;
END
$o = outcomes();
is($o->{invalid_code}, 3, 'three wrong ones are compared');
cmp_ok($o->{valid}, '<=', 1, 'beside the right one, or not');
ok(wait_for_write_back(), 'the count is written back');
is(attempts($id), 3, 'and is three');

# Every isolation level, every way out, on one verification after the other
my @ids;
foreach my $round (1 .. 4)
{
	($id, $code) = new_code();
	push @ids, $id;
	outcomes();
	storm(8, 12,
		commit => "SELECT guess('$id', 'wrong');\n",
		repeatable => "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT 1 FROM pg_class LIMIT 1;\n"
		  . "SELECT guess('$id', 'wrong');\nCOMMIT;\n",
		serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE;\nSELECT 1 FROM pg_class LIMIT 1;\n"
		  . "SELECT guess('$id', 'wrong');\nROLLBACK;\n",
		savepoint => "BEGIN;\nSAVEPOINT s;\nSELECT guess('$id', 'wrong');\nROLLBACK TO s;\n"
		  . "SELECT guess('$id', 'wrong');\nROLLBACK TO s;\nCOMMIT;\n",
		exception => "SELECT guess_and_fail('$id', 'wrong');\n");
	$o = outcomes();
	cmp_ok($o->{invalid_code}, '<=', 3, 'no more than three wrong guesses are compared');
	is($o->{invalid_code}, 3, 'all three are made, too') if $o->{failed} == 0;
	note "serialization failures: $o->{failed}";
	ok(wait_for_write_back(), 'the count is written back');
	is(attempts($id), 3, 'it is three');
}

# Eight who know the code: one gets in
foreach my $round (1 .. 3)
{
	($id, $code) = new_code();
	outcomes();
	storm(8, 3,
		commit => "SELECT guess('$id', '$code');\n",
		repeatable => "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT guess('$id', '$code');\nCOMMIT;\n");
	$o = outcomes();
	is($o->{valid}, 1, 'of many right guesses one is valid');
	is($o->{otp_already_verified} + $o->{failed}, 23, 'the others come too late');
}

# Twenty wrong guesses over several codes of one phone are enough for a day, when none has to wait
$node->run('UPDATE otp.workspaces SET failure_delay = NULL');
my $phone = '+15550229999';
my @codes = map { [ $node->send($phone), undef ] } 1 .. 10;
outcomes();
storm(8, 20, phone => join('', "\\set n random(0, 9)\n",
	"SELECT guess((ARRAY[" . join(',', map { "'$_->[0]'" } @codes) . "])[:n + 1], 'wrong');\n"));
$o = outcomes();
is($o->{invalid_code}, 20, 'a phone fails twenty times a day, over all its codes');
ok(wait_for_write_back(), 'the count is written back');
is($node->value("SELECT failures FROM otp.phone_failures WHERE phone = '$phone'"), 20, 'and is twenty');
my $fresh = $node->send($phone);
my $v = $node->verify($fresh, $sim->code_for($fresh));
is($v->{error}, 'rate_limit_exceeded', 'a fresh code does not help');
cmp_ok($v->{retry_after}, '>', 23 * 3600, 'until a day has passed');

$node->stop;
done_testing;
