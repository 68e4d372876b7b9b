# 060_slow_committers.pl
#	Rows that become visible late are neither lost nor read twice.
#
# Ids are made, and transactions begun, long before they commit; the sender,
# which remembers how far it has read, must not pass them by. Protects the
# position in the queue: among slow and fast committers with subtransactions,
# over restarts of the sender, and while VACUUM FULL moves the rows.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	SLOW => 16,
	FAST => 4,
	SLOW_TRANSACTIONS => 12,
	FAST_TRANSACTIONS => 150,
};

my $seed = $ENV{OTP_SEED} // int(rand(1e9));
srand($seed);
note "OTP_SEED=$seed";

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['max_connections = 60']);
$node->install;
$node->configure($sim, twilio => { status_callback => 'https://example.com/receipt' });
$node->lift_limits;
$node->wait_for_sender;

my $last_phone = 15550000000;

# Give a call of otp_send whose id becomes a variable of psql
sub call
{
	my ($variable) = @_;
	return sprintf "SELECT otp_id AS %s FROM otp_send('+%d') \\gset\n", $variable, ++$last_phone;
}

# Sleep up to 150 ms
sub nap
{
	return sprintf "SELECT FROM pg_sleep(%.3f);\n", rand() * 0.15;
}

# A transaction with savepoints, some of them rolled back, open for a while
sub slow_transaction
{
	my $sql = "BEGIN;\n";
	my @kept;

	if (rand() < 0.5)
	{
		$sql .= call('a');
		push @kept, ':a';
	}
	$sql .= nap() . "SAVEPOINT s1;\n" . call('b') . "SAVEPOINT s2;\n" . call('c') . nap();
	if (rand() < 0.3)
	{
		$sql .= "ROLLBACK TO s1;\n";
	}
	elsif (rand() < 0.3)
	{
		$sql .= "ROLLBACK TO s2;\n";
		push @kept, ':b';
	}
	else
	{
		$sql .= "RELEASE s1;\n";
		push @kept, ':b', ':c';
	}
	return $sql . "ROLLBACK;\n" if rand() < 0.2;
	return $sql . "COMMIT;\n" . join('', map { "\\echo $_\n" } @kept);
}

# One that ends at once
sub fast_transaction
{
	return call('a') . "\\echo :a\n";
}

# Run all clients at once; do something meanwhile; gives the ids committed
sub run_clients
{
	my ($meanwhile) = @_;
	my $base = "$PostgreSQL::Test::Utils::tmp_check/client";
	my (%running, @out, @err);

	foreach my $n (1 .. SLOW + FAST)
	{
		my $sql = "\\set ON_ERROR_STOP on\n";

		$sql .= $n <= SLOW ? slow_transaction() : fast_transaction()
		  foreach 1 .. ($n <= SLOW ? SLOW_TRANSACTIONS : FAST_TRANSACTIONS);
		unlink "$base$n.sql";
		append_to_file("$base$n.sql", $sql);
	}
	foreach my $n (1 .. SLOW + FAST)
	{
		my $pid = fork() // BAIL_OUT("fork: $!");

		if ($pid == 0)
		{
			open STDOUT, '>', "$base$n.out";
			open STDERR, '>', "$base$n.err";
			exec 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', "$base$n.sql"
			  or POSIX::_exit(127);
		}
		$running{$pid} = $n;
	}

	poll_until
	{
		foreach my $pid (keys %running)
		{
			delete $running{$pid} if waitpid($pid, WNOHANG) != 0;
		}
		$meanwhile->() if %running;
		!%running;
	};
	is(join('', map { slurp_file("$base$_.err") } 1 .. SLOW + FAST),
		'', 'all clients came to their end');
	return map { split /\n/, slurp_file("$base$_.out") } 1 .. SLOW + FAST;
}

# Compare what arrived with what was committed
sub check_arrivals
{
	my ($what, @committed) = @_;
	my %arrived;

	ok($node->wait_until_sent, "$what: nothing is owed in the end");
	$arrived{ $_->{otp_id} }++ foreach $sim->log;
	is(scalar(grep { !$arrived{$_} } @committed), 0, "$what: none is lost");
	is(scalar(grep { $_ > 1 } values %arrived), 0, "$what: none comes twice");
	is(scalar keys %arrived, scalar @committed, "$what: and nothing else comes");
	note scalar(@committed) . ' sends';
	$sim->clear('log');
	$sim->clear('inbox');
	return;
}

#
# Slow and fast ones
#
my @committed = run_clients(sub { });
check_arrivals('slow committers', @committed);

#
# The same, with the sender asked to go and the rows moved all the time
#
my ($rounds, $restarts, $moves) = (0, 0, 0);
my $admin = $node->background_psql('postgres');
@committed = run_clients(
	sub {
		$moves++ if $admin->query_safe('VACUUM FULL otp.outbox') eq '';
		return if ++$rounds % 3;
		my $gone = $admin->query_safe(<<'END');
SELECT pg_terminate_backend(sender_pid) FROM otp.worker_status()
WHERE sender_pid IS NOT NULL AND last_turn > sender_started_at
END
		$restarts++ if $gone eq 't';
	});
$admin->quit;
check_arrivals("$restarts restarts, $moves moves", @committed);
cmp_ok($restarts, '>', 0, 'the sender was restarted');
cmp_ok($moves, '>', 0, 'the rows were moved');

#
# A transaction that was open when the sender before was there
#
my @open = map { $node->background_psql('postgres') } 1 .. 3;
@committed = ();
foreach my $session (@open)
{
	push @committed,
	  $session->query_safe(sprintf "BEGIN; SELECT otp_id FROM otp_send('+%d')", ++$last_phone);
}
my $marker = $node->send('+' . ++$last_phone);
push @committed, $marker;
$sim->code_for($marker);
my $before = $node->value('SELECT sender_pid FROM otp.worker_status()');
$open[0]->query_safe('COMMIT');
$node->run("SELECT pg_terminate_backend($before)");
$open[1]->query_safe('COMMIT');
$node->poll_query_until('postgres', "SELECT sender_pid <> $before FROM otp.worker_status()");
$marker = $node->send('+' . ++$last_phone);
push @committed, $marker;
$sim->code_for($marker);
$open[2]->query_safe('COMMIT');
check_arrivals('open over a restart', @committed);
$_->quit foreach @open;

#
# A big one that commits late, and is refused by WhatsApp: what is read in
# parts must not be read again when its rows change
#
$sim->behave({ match => { prefix => '+1999', api => 'meta' }, do => { code => 131026 } });
my $big = $node->background_psql('postgres');
$big->query_safe('BEGIN');
my $ids = $big->query_safe(<<'END');
SELECT s.otp_id FROM generate_series(1, 900) i,
	LATERAL otp_send('+1999' || (1000000 + i), fallback_sms => true) s
END
@committed = split /\n/, $ids;
is(scalar @committed, 900, 'a transaction with 900 sends');
$marker = $node->send('+' . ++$last_phone);
$sim->code_for($marker);
$big->query_safe('COMMIT');
$big->quit;
ok($node->wait_until_sent, 'nothing is owed in the end');
my %by_api;
$by_api{ $_->{api} }{ $_->{otp_id} }++ foreach $sim->log;
is(scalar(grep { ($by_api{meta}{$_} // 0) != 1 } @committed), 0, 'all of them tried WhatsApp once');
is(scalar(grep { ($by_api{twilio}{$_} // 0) != 1 } @committed), 0, 'and went by SMS once');
is( $node->value("SELECT count(*) FROM otp.messages WHERE channel = 'sms' AND sent_at IS NOT NULL"),
	900, 'which is what the database says, too');

$node->stop;
done_testing();
