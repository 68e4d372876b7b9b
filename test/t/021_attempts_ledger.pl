# The ledger of guesses is small, and refuses rather than forgets.
#
# Room for four entries only. This protects: a guess that cannot be counted is
# not made, whoever asks; what is counted stays; room comes back as soon as a
# row carries a count, or as soon as there is nothing left that could.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main',
	conf => [ 'otp.ledger_size = 4', 'max_prepared_transactions = 5' ]);
$node->install;
$node->configure($sim);
$node->lift_limits;

my $phones = 0;

sub new_code
{
	my (%where) = @_;
	my $id = $node->send(sprintf('+1555021%04d', ++$phones), %where);
	return ($id, $sim->code_for($id));
}

sub ledger_used
{
	return $node->value('SELECT ledger_used FROM otp.worker_status()');
}

sub wait_for_ledger
{
	my ($used) = @_;
	return $node->poll_query_until('postgres', "SELECT ledger_used = $used FROM otp.worker_status()");
}

# Two guesses, each with a phone, fill it while their rows are locked
my ($a) = new_code();
my ($b) = new_code();
my ($c, $code) = new_code();
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN');
is($holder->query_safe("SELECT error FROM otp_verify('$a', 'wrong')"), 'invalid_code', 'one guess');

# The phone's entry goes as soon as it is written back; the row's cannot
ok(wait_for_ledger(1), "the phone's count is written back, the locked row's is kept");
my @held;
foreach my $n (1 .. 3)
{
	my ($id) = new_code();
	is($holder->query_safe("SELECT error FROM otp_verify('$id', 'wrong')"),
		'invalid_code', 'another guess');
	ok(wait_for_ledger(1 + $n), 'is kept, too');
	push @held, $id;

	# two entries are needed, for the code and for its phone
	last if $n == 2;
}
my $e = $node->error_of("SELECT * FROM otp_verify('$c', 'wrong')");
is($e->{sqlstate}, '53400', 'without room for both counts a wrong guess is refused');
like($e->{hint}, qr/otp\.ledger_size/, 'with a hint');
unlike($e->{text}, qr/\Q$c\E/, 'that shows nothing of the call');
$e = $node->error_of("SELECT * FROM otp_verify('$c', '$code')");
is($e->{sqlstate}, '53400', 'and so is a right one: it would tell');
is($node->status($c)->{attempts}, 0, 'a refused guess costs nothing');
is(ledger_used(), 3, 'and takes no room');

# Counts of one that is in there already go on
is($holder->query_safe("SELECT attempts_remaining FROM otp_verify('$a', 'wrong')"),
	'1', 'what has its place counts on');
ok(wait_for_ledger(3), "as the phone's count is written back");
is($holder->query_safe("SELECT attempts_remaining FROM otp_verify('$a', 'wrong')"),
	'0', 'up to the last attempt');
is($holder->query_safe("SELECT error FROM otp_verify('$a', 'wrong')"),
	'rate_limit_exceeded', 'and no further');
ok(wait_for_ledger(3), 'nothing was forgotten meanwhile');

# Rolled back, they are written back, and there is room again
$holder->query_safe('ROLLBACK');
ok(wait_for_ledger(0), 'after the rollback all is written back');
is($node->value("SELECT string_agg(attempts::text, ',' ORDER BY id) FROM otp.verifications"
		  . " WHERE id IN (" . join(',', map { "otp.parse_id('$_')" } $a, @held) . ')'),
	'3,1,1', 'every guess');
is($node->verify($c, 'wrong')->{attempts_remaining}, 2, 'and guesses are taken again');
ok($node->verify($c, $code)->{valid}, 'right ones, too');
ok(wait_for_ledger(0), "what was committed is dropped");

# A test number's code that was rolled back has no row to carry anything
$node->run("SELECT otp.set_test_number('+15550219999', '4711')");
$holder->query_safe('BEGIN');
$holder->query_safe("SELECT otp_id FROM otp_send('+15550219999') \\gset");
is($holder->query_safe("SELECT error FROM otp_verify(:'otp_id', '0000')"),
	'invalid_code', "a test number's code can be tried at once");
is(ledger_used(), 1, 'and is counted, without its phone');
$holder->query_safe('SAVEPOINT s');
is($holder->query_safe("SELECT attempts_remaining FROM otp_verify(:'otp_id', '0000')"),
	'1', 'again');
$holder->query_safe('ROLLBACK TO s');
is($holder->query_safe("SELECT attempts_remaining FROM otp_verify(:'otp_id', '0000')"),
	'0', 'a savepoint takes nothing back');
$holder->query_safe('ROLLBACK');
ok(wait_for_ledger(0), 'its entry goes when it is rolled back');

# ... but not while its transaction is prepared
$node->run("BEGIN; SELECT otp_id FROM otp_send('+15550219999') \\gset\n"
	  . "SELECT error FROM otp_verify(:'otp_id', '0000');"
	  . " SAVEPOINT s; SELECT error FROM otp_verify(:'otp_id', '0000'); ROLLBACK TO s;"
	  . " PREPARE TRANSACTION 'test'");
my ($d) = new_code();
$node->verify($d, 'wrong');
ok(wait_for_ledger(1), 'two rounds of write-back later');
is(ledger_used(), 1, "a prepared transaction's entry is still there");
$node->run("COMMIT PREPARED 'test'");
ok(wait_for_ledger(0), 'until it is committed');
is($node->value("SELECT attempts FROM otp.verifications WHERE phone = '+15550219999'"),
	'2', 'and the row has its count');

# A database that is dropped takes its entries along
$node->install(dbname => 'other');
$node->configure($sim, dbname => 'other');
$node->lift_limits(dbname => 'other');
my ($o) = new_code(dbname => 'other');
my $other = $node->background_psql('other');
$other->query_safe("BEGIN; SELECT error FROM otp_verify('$o', 'wrong')");
ok(wait_for_ledger(1), 'an entry of another database');
$other->quit;
$node->run('DROP DATABASE other');
ok(wait_for_ledger(0), 'is gone with it');

# So does an extension that is dropped
$node->install(dbname => 'other');
$node->configure($sim, dbname => 'other');
$node->lift_limits(dbname => 'other');
($o) = new_code(dbname => 'other');
$other = $node->background_psql('other');
$other->query_safe("BEGIN; SELECT error FROM otp_verify('$o', 'wrong')");
ok(wait_for_ledger(1), 'an entry of an extension');
$other->query_safe('DROP EXTENSION otp');
$other->query_safe('COMMIT');
ok(wait_for_ledger(0), 'is gone with it');
$other->quit;

# Many more than fit, one transaction each: refused at worst, never forgotten
my @ids = map { (new_code())[0] } 1 .. 6;
foreach my $id (@ids)
{
	foreach my $n (1 .. 3)
	{
		poll_until
		{
			my $found = $node->error_of("BEGIN; SELECT * FROM otp_verify('$id', 'wrong'); ROLLBACK");
			!defined $found || ($found->{sqlstate} ne '53400' && die $found->{text});
		} or die 'the ledger does not empty';
	}
}
ok(wait_for_ledger(0), 'far more guesses than it has room for');
is($node->value('SELECT count(*) FROM otp.verifications WHERE attempts = 3 AND id IN ('
		  . join(',', map { "otp.parse_id('$_')" } @ids) . ')'),
	6, 'all count');

$holder->quit;
$node->stop;
done_testing;
