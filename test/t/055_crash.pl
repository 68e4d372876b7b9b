# 055_crash.pl
#	No crash loses a message, and none repeats more than was in flight.
#
# Several clients send, a third of it rolled back on purpose, while the sender
# or a backend is killed, or the server stopped in a hurry, at random moments.
# Protects: every committed send arrives, no rolled-back one does, twice only
# what was in flight at a crash, and nothing is left without an end.

use strict;
use warnings;

use File::Spec;
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

use constant {
	CLIENTS => 4,
	SENDS => 500,		# of each client
	BATCH => 20,		# sends of one connection
	IN_FLIGHT => 40,	# otp.max_in_flight
};

my $seed = $ENV{OTP_SEED} // int(rand(1e9));
srand($seed);
note "OTP_SEED=$seed";

# It takes a moment to answer, so that there is something in flight
my $sim = OTP::Simulator->start(latency_ms => 20);

# Refused by WhatsApp: these go on by SMS
$sim->behave({ match => { prefix => '+1999', api => 'meta' }, do => { code => 131026 } });

my $node = OTP::Cluster->start(
	'main',
	conf => [
		'restart_after_crash = on',
		'otp.max_in_flight = ' . IN_FLIGHT ]);
$node->install;
# with the id in the callback, the simulator's log knows it for SMS, too
$node->configure($sim, twilio => { status_callback => 'https://example.com/receipt' });
$node->lift_limits;
$node->wait_for_sender;

# Write one connection's worth of transactions
sub batch
{
	my ($client, $first) = @_;
	my $sql = "\\set ON_ERROR_STOP on\n";

	foreach my $i ($first .. $first + BATCH - 1)
	{
		my $end = $i % 3 == 2 ? 'ROLLBACK' : 'COMMIT';
		my $prefix = $i % 10 == 3 ? '+1999' : '+1555';
		my $phone = sprintf '%s%d%06d', $prefix, $client, $i;
		my $nap = sprintf 'SELECT FROM pg_sleep(%.3f);', rand() * 0.02;

		$sql .= "BEGIN;\n"
		  . "SELECT otp_id AS id FROM otp_send('$phone', fallback_sms => true) \\gset\n"
		  . "$nap\n\\echo sent :id $end\n$end;\n\\echo done :id\n";
	}
	return $sql;
}

# Send until all is sent, whatever happens
sub run_client
{
	my ($client, $file) = @_;
	my @command = ('psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', "$file.sql");

	for (my $first = 0; $first < SENDS; $first += BATCH)
	{
		unlink "$file.sql";
		append_to_file("$file.sql", batch($client, $first));

		# A connection that was refused sends nothing: try again
		for (;;)
		{
			my ($out, $err) = ('', '');

			IPC::Run::run(\@command, '<', File::Spec->devnull, '>', \$out, '2>', \$err);
			append_to_file($file, $out);
			last if $out ne '';
			usleep(20_000);
		}
	}
	return;
}

# Start the clients
my @files = map { "$PostgreSQL::Test::Utils::tmp_check/client_$_" } 1 .. CLIENTS;
my @pids;
foreach my $client (1 .. CLIENTS)
{
	append_to_file($files[ $client - 1 ], '');
	my $pid = fork() // BAIL_OUT("fork: $!");
	if ($pid == 0)
	{
		srand($seed + $client);
		eval { run_client($client, $files[ $client - 1 ]); };
		POSIX::_exit($@ ? 1 : 0);
	}
	push @pids, $pid;
}

# How many sends the clients know the end of
sub progress
{
	return scalar grep { /^done/ } map { split /\n/, slurp_file($_) } @files;
}

# Ask for a number until there is one: the server may be recovering
sub number
{
	my ($query) = @_;
	my ($out, $err);

	poll_until
	{
		($out, $err) = ('', '');

		# psql that is refused may not even read the query
		my $rc =
		  eval { $node->psql('postgres', $query, stdout => \$out, stderr => \$err) };
		defined $rc && $rc == 0 && $out =~ /^\d+$/;
	}
	or BAIL_OUT("no answer to $query");
	return $out;
}

# Crash at random moments
my @crashes;
my $total = CLIENTS * SENDS;
my @ways = qw(sender backend immediate sender backend immediate);

foreach my $n (0 .. $#ways)
{
	my $way = $ways[$n];
	my $moment = ($n + rand()) * 0.8 * $total / @ways;

	poll_until { progress() >= $moment };
	my $victim;
	my $crash = { way => $way, from => time };
	if ($way eq 'immediate')
	{
		$node->stop('immediate');
		$node->start;

		# Not before: the simulator may take in only now what was on its way
		$crash->{to} = time;
	}
	else
	{
		my $launcher = number('SELECT launcher_pid FROM otp.worker_status()');
		my $victims = $way eq 'sender' ? "backend_type = 'otp sender'"
		  : "backend_type = 'client backend' AND pid <> pg_backend_pid()";

		# One that ends by itself just now is none
		poll_until
		{
			my $victim = number(
				"SELECT pid FROM pg_stat_activity WHERE $victims ORDER BY random() LIMIT 1");

			$crash->{from} = time;
			kill('KILL', $victim);
		};

		# The launcher is another one when the server has come back
		poll_until
		{
			number('SELECT launcher_pid FROM otp.worker_status()') != $launcher;
		};
		$crash->{to} = time;
	}
	push @crashes, $crash;
	note sprintf '%s at %d of %d', $way, progress(), $total;
}

my $failures = 0;
foreach my $pid (@pids)
{
	waitpid $pid, 0;
	$failures++ if $? != 0;
}
is($failures, 0, 'all clients came to their end');
cmp_ok(scalar @crashes, '>=', 4, 'there were crashes');
ok($node->wait_until_sent, 'nothing is owed in the end');

#
# What should have happened
#
my (%sent, %acknowledged);
foreach my $line (map { split /\n/, slurp_file($_) } @files)
{
	$sent{$1} = $2 if $line =~ /^sent (\S+) (\S+)/;
	$acknowledged{$1} = 1 if $line =~ /^done (\S+)/;
}
my %committed =
  map { $_ => 1 } split /\n/, $node->value('SELECT otp.format_id(id) FROM otp.verifications');

note sprintf '%d sends, %d committed, %d crashes', scalar keys %sent, scalar keys %committed,
  scalar @crashes;
cmp_ok(scalar keys %committed, '>', $total / 3, 'there were sends');
is(scalar(grep { $sent{$_} eq 'COMMIT' && $acknowledged{$_} && !$committed{$_} } keys %sent),
	0, 'no commit is lost');
is(scalar(grep { $sent{$_} eq 'ROLLBACK' && $committed{$_} } keys %sent),
	0, 'and no rollback kept');

#
# What did
#
my (%requests, %accepted);
foreach my $request ($sim->log)
{
	# what became of an SMS may be asked, too
	next if $request->{operation} eq 'read';
	push @{ $requests{ $request->{otp_id} }{ $request->{api} } }, $request->{received_us} / 1e6;
	$accepted{ $request->{otp_id} }{ $request->{api} } = 1 if $request->{outcome} eq 'accepted';
}
is(scalar(grep { !$accepted{$_} } keys %committed), 0, 'every committed send has arrived');
is(scalar(grep { !$committed{$_} } keys %requests), 0, 'nothing else has');

# Twice only over a crash
my ($repeats, $unexplained) = (0, 0);
foreach my $times (map { values %$_ } values %requests)
{
	my @times = sort { $a <=> $b } @$times;

	foreach my $i (1 .. $#times)
	{
		$repeats++;
		$unexplained++
		  unless grep { $times[ $i - 1 ] <= $_->{to} && $times[$i] >= $_->{from} } @crashes;
	}
}
is($unexplained, 0, 'nothing is sent twice without a crash in between');
cmp_ok($repeats, '<=', @crashes * IN_FLIGHT, 'and twice only what was in flight');
note "$repeats repeats";

# By SMS what WhatsApp refused, and only that
is(scalar(grep { $accepted{$_}{twilio} && $accepted{$_}{meta} } keys %accepted),
	0, 'nothing went both ways');

my %codes;
$codes{ $_->{otp_id} }{ $_->{code} } = 1 foreach $sim->inbox;
is(scalar(grep { keys %{ $codes{$_} } != 1 } keys %codes), 0, 'a repeat has the same code');

# As the database sees it
is( $node->value(<<'END'), 0, 'every verification has an end');
SELECT count(*) FROM otp.verifications v
WHERE NOT EXISTS (SELECT 1 FROM otp.messages m
				  WHERE m.verification_id = v.id AND (m.sent_at IS NOT NULL OR m.ended_reason IS NOT NULL))
END
is( $node->value(
		"SELECT count(*) FROM otp.messages WHERE sent_at IS NULL AND (channel = 'sms' OR provider_code <> 131026)"
	),
	0, 'which is: sent');

$node->stop;
done_testing();
