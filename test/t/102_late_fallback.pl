# 102_late_fallback.pl
#	SMS instead, when WhatsApp keeps silent: once, and only when silence means something.
#
# Protects: fallback_after, which runs only where receipts have been seen from
# the sending number, and not after delivery, or the end; across restarts; an
# SMS that is not needed any more is not sent. However a failed receipt, the
# timer, an open breaker and a resend race, no phone gets two SMS for one
# message.

use strict;
use warnings;

use JSON::PP;
use OTP::Cluster;
use OTP::Receipt;
use OTP::Simulator;
use OTP::Wait;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

# The timer, in seconds
use constant PATIENCE => 2;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);
$node->share_accounts('never', 'patient');
$node->run('UPDATE otp.workspaces SET fallback_after = ' . PATIENCE . " * interval '1 s', notify_channel = 'events'");
$node->run("UPDATE otp.workspaces SET fallback_after = NULL WHERE name = 'never'");
$node->run("UPDATE otp.workspaces SET fallback_after = '10 s' WHERE name = 'patient'");
$node->run(<<'END');
INSERT INTO otp.sms_texts (workspace_id, template, language, body)
	SELECT workspace_id, 'otp_verification', 'en_US', '{code} it is' FROM otp.workspaces WHERE name <> 'default';
ALTER DATABASE postgres SET otp.workspace = 'default';
END
$node->wait_for_sender;
my $receipts = OTP::Receipt->new($node, $sim);
my $last_phone = 15551200000;

# Send, wait until that is written, and give id and phone
sub send_one
{
	my (%args) = @_;
	my $phone = '+' . ++$last_phone;
	my $id = $node->send($phone, fallback_sms => 'true', %args);

	poll_until { ($receipts->message($id, 1) // {})->{sent_at} } or die 'it is not sent';
	return ($id, $phone);
}

# The SMS that a phone has got
sub sms
{
	my ($phone) = @_;
	return grep { $_->{channel} eq 'sms' } $sim->inbox($phone);
}

# Wait until the time is up of all messages that were sent so far: of one sent after them
sub wait_for_patience
{
	my $last = $node->value('SELECT max(sent_at) FROM otp.messages WHERE number % 2 = 1');
	my $until = "'$last'::timestamptz + " . PATIENCE . " * interval '1 s' + interval '0.3 s'";

	$node->poll_query_until('postgres', "SELECT clock_timestamp() > $until");

	# What had to be done by then is done when the sender has gone through another turn
	my $marker = $node->send('+' . ++$last_phone);
	return poll_until { ($receipts->message($marker, 1) // {})->{sent_at} };
}

# Has the sending number been heard of?
sub seen
{
	return $node->value("SELECT settings ->> 'phone_number_id' = ANY (receipts_from) FROM otp.providers WHERE account = 'meta'") eq 't';
}

# Restart the sender
sub restart_sender
{
	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');

	$node->run("SELECT pg_terminate_backend($pid)");
	return $node->poll_query_until('postgres', "SELECT sender_pid <> $pid FROM otp.worker_status()");
}

# Everything that is told
my $listener = $node->background_psql('postgres');
$listener->set_query_timer_restart;
$listener->query_safe('LISTEN events');
my %told;

sub told
{
	my ($id) = @_;
	my $output = $listener->query_safe('SELECT 1');

	while ($output =~ /with payload "(\{.*?\})" received/g)
	{
		my $event = JSON::PP->new->decode($1);
		(my $name = $event->{event}) =~ s/^otp\.//;
		push @{ $told{ $event->{otp_id} } }, $name;
	}
	return join ' ', @{ $told{$id} // [] };
}

sub is_told
{
	my ($id, $expected, $what) = @_;

	poll_until { told($id) eq $expected } 10;
	return is(told($id), $expected, $what);
}

#
# Where receipts have never come, silence means nothing
#
my ($id, $phone) = send_one();
wait_for_patience;
is(scalar sms($phone), 0, 'without receipts silence means nothing');
ok(!seen, 'none was seen');
$receipts->meta(sent => $id, from => '999');
$receipts->wait_until_taken;
ok(!seen, 'nor from this sending number');
wait_for_patience;
is(scalar sms($phone), 0, 'so it still means nothing');
$receipts->meta(sent => $id);
$receipts->wait_until_taken;
ok(seen, 'one is seen');

#
# Where they come, it does
#
($id, $phone) = send_one();
my ($sms) = $sim->wait_for_messages(phone => $phone, count => 2, since => 0) && sms($phone);
ok($sms, 'now silence brings an SMS');
$node->wait_until_sent;
is($sms->{code}, ($sim->inbox($phone))[0]{code}, 'with the same code');
is($node->value(<<"END"), 't', 'when it has lasted long enough');
SELECT b.sent_at - a.sent_at >= @{[PATIENCE]} * interval '1 s'
FROM otp.messages a JOIN otp.messages b USING (verification_id)
WHERE verification_id = otp.parse_id('$id') AND a.number = 1 AND b.number = 2
END
like($receipts->message($id, 1)->{detail}, qr/no receipt/, 'the first message says why');
is($receipts->message($id, 1)->{failed_at}, undef, 'without having failed');
ok($node->status($id)->{fallback_used}, 'the status shows it');
is_told($id, 'sent sms_fallback', 'and it is told');

# Late news of the first message
$receipts->meta(delivered => $id);
$receipts->wait_until_taken;
is($node->status($id)->{status}, 'delivered', 'delivered late');
$receipts->twilio(delivered => $id, number => 2);
$receipts->meta(failed => $id, code => 131026);
$receipts->wait_until_taken;
is($node->status($id)->{status}, 'delivered', 'delivered twice');
wait_for_patience;
is(scalar sms($phone), 1, 'is no reason for another SMS');
is_told($id, 'sent sms_fallback delivered', 'and told once');

# The first fails late: the SMS stands
($id, $phone) = send_one();
poll_until { ($receipts->message($id, 2) // {})->{sent_at} };
$receipts->meta(failed => $id, code => 131026);
$receipts->wait_until_taken;
is($node->status($id)->{status}, 'pending', 'failed late: the SMS stands');
$receipts->twilio(delivered => $id, number => 2);
$receipts->wait_until_taken;
is($node->status($id)->{status}, 'delivered', 'and is delivered');
wait_for_patience;
is(scalar sms($phone), 1, 'one SMS');

# SMS fails for good
($id, $phone) = send_one();
poll_until { ($receipts->message($id, 2) // {})->{sent_at} };
$receipts->twilio(undelivered => $id, number => 2, code => 30005);
$receipts->wait_until_taken;
is($node->status($id)->{status}, 'failed', 'an SMS that fails for good is the end');
is_told($id, 'sent sms_fallback failed', 'which is told');
($id, $phone) = send_one();
$sim->behave({ match => { api => 'twilio', phone => $phone }, do => { code => 21610 } });
ok(poll_until { $node->status($id)->{status} eq 'failed' }, 'as is one that is refused');
is($node->status($id)->{error}, 'delivery_failed', 'for that reason');
($id, $phone) = send_one();
poll_until { ($receipts->message($id, 2) // {})->{sent_at} };
$receipts->meta(delivered => $id);
$receipts->twilio(undelivered => $id, number => 2, code => 30005);
$receipts->wait_until_taken;
is($node->status($id)->{status}, 'delivered', 'but not where WhatsApp has delivered');
$sim->forget_rules;

#
# Not then
#
my %none;
@{ $none{'delivered in time'} } = send_one();
$receipts->meta(delivered => $none{'delivered in time'}[0]);
@{ $none{'read in time'} } = send_one();
$receipts->meta(read => $none{'read in time'}[0]);
@{ $none{'verified'} } = send_one();
$node->verify($none{verified}[0], $sim->code_for($none{verified}[1]));
@{ $none{'canceled'} } = send_one();
$node->cancel($none{canceled}[0]);
@{ $none{'never wanted'} } = send_one(fallback_sms => 'false');
@{ $none{'fallback_after is NULL'} } = send_one(workspace => 'never');
@{ $none{'it is too early'} } = send_one(workspace => 'patient');
$phone = '+' . ++$last_phone;
$none{'expired'} = [ (split /\n/, $node->run(<<"END"))[0], $phone ];
BEGIN;
CREATE TEMPORARY TABLE sent ON COMMIT DROP AS
	SELECT otp_id, otp.parse_id(otp_id) AS id FROM otp_send('$phone', workspace => 'patient', fallback_sms => true);
UPDATE otp.verifications v SET expires_at = clock_timestamp() + interval '3 s' FROM sent WHERE v.id = sent.id;
UPDATE otp.outbox o SET expires_at = v.expires_at FROM sent, otp.verifications v
	WHERE o.id = sent.id AND v.id = sent.id;
SELECT otp_id FROM sent;
COMMIT;
END
wait_for_patience;
foreach my $why (sort keys %none)
{
	is(scalar sms($none{$why}[1]), 0, "no SMS: $why");
}
ok(poll_until { $node->status($none{expired}[0])->{status} eq 'expired' }, 'expired before its time was up');

#
# Across restarts of the sender
#
($id, $phone) = send_one();
my ($delivered, $delivered_phone) = send_one();
$receipts->meta(delivered => $delivered);
$receipts->wait_until_taken;
restart_sender;
ok(poll_until { scalar sms($phone) }, 'a restart forgets no timer');
$node->wait_until_sent;
is($node->value(<<"END"), 't', 'nor hastens it');
SELECT b.sent_at - a.sent_at >= @{[PATIENCE]} * interval '1 s'
FROM otp.messages a JOIN otp.messages b USING (verification_id)
WHERE verification_id = otp.parse_id('$id') AND a.number = 1 AND b.number = 2
END
restart_sender;
($id) = send_one();
my $down_phone = '+' . $last_phone;
$listener->quit;
$node->stop;
my $up_at = time + PATIENCE;
poll_until { time > $up_at };
$node->start;
$listener = $node->background_psql('postgres');
$listener->set_query_timer_restart;
$listener->query_safe('LISTEN events');
ok(poll_until { scalar sms($down_phone) }, 'nor one that has run out while the server was down');
wait_for_patience;
is(scalar sms($_), 1, 'one SMS') foreach $phone, $down_phone;
is(scalar sms($delivered_phone), 0, 'none where WhatsApp has delivered');

#
# The SMS is held back: delivered in the meantime, it is not needed any more
#
foreach my $restart (0, 1)
{
	my $what = $restart ? 'over a restart' : 'in memory';
	my $busy = '+' . ++$last_phone;

	$sim->behave({
			match => { api => 'twilio', phone => $busy },
			times => 1,
			do => { code => 20429, retry_after => 60 } });
	my $throttled = $node->send($busy, channel => 'sms');
	poll_until { grep { ($_->{to} // '') eq $busy } $sim->log };
	($id, $phone) = send_one();
	ok( $node->poll_query_until('postgres', "SELECT number = 2 AND channel = 'sms' FROM otp.outbox WHERE id = otp.parse_id('$id')"),
		"$what: an SMS waits for its turn");
	$receipts->meta(delivered => $id);
	$receipts->wait_until_taken;
	restart_sender if $restart;

	# which comes with a new configuration, or in a successor that knows of no throttling
	$node->call('otp.configure_twilio', { risk_check => $restart ? 'enable' : 'disable' });
	$node->cancel($throttled);
	my $next = '+' . ++$last_phone;
	$node->send($next, channel => 'sms');
	ok(poll_until { scalar sms($next) }, 'when Twilio takes messages again');
	wait_for_patience;
	is(scalar sms($phone), 0, 'it is not sent, as WhatsApp has delivered');
	is($node->status($id)->{status}, 'delivered', 'the status says so');
	is_told($id, $restart ? told($id) : 'sent delivered', 'and so it is told');
	is($node->verify($id, $sim->code_for($phone))->{valid}, 1, 'the code is good');
	ok(poll_until { $node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$id')") == 0 },
		'and nothing is owed in the end');
}

#
# Races
#

# Run SQL in a session of its own each, all at once, after so many seconds
sub at_once
{
	my (@work) = @_;
	my @pids;

	foreach my $work (@work)
	{
		my ($delay, @sql) = @$work;
		my $pid = fork // die "fork: $!";

		if ($pid == 0)
		{
			sleep $delay;
			my $ok = eval { $node->run(join(";\n", @sql)); 1 };
			print STDERR $@ unless $ok;
			POSIX::_exit($ok ? 0 : 1);
		}
		push @pids, $pid;
	}
	my $bad = 0;
	foreach my $pid (@pids)
	{
		waitpid $pid, 0;
		$bad++ if $?;
	}
	return $bad;
}

foreach my $round (1 .. 6)
{
	my $resends = $round > 4;
	my $first = 1000 * $round + 1;
	my $list = "generate_series($first, " . ($first + 49) . ') n';
	my $prefix = '+1555121';
	my $culprit = "${prefix}9" . sprintf '%03d', $round;

	$sim->behave({ match => { phone => $culprit, api => 'meta' }, do => { code => 190 } });
	my @ids = map { $_->{otp_id} } $node->rows("SELECT otp_id FROM $list, otp_send('$prefix' || n, fallback_sms => true)");
	my @phones = map { $prefix . $_ } $first .. $first + 49;
	$node->wait_until_sent;
	my $left = PATIENCE - $node->value("SELECT extract(epoch FROM clock_timestamp() - max(sent_at)) FROM otp.messages WHERE number = 1");
	my %message_id = map { $_->{id} => $_->{message_id} }
	  $node->rows('SELECT otp.format_id(verification_id) AS id, message_id FROM otp.messages WHERE number = 1');

	# Each in a transaction of its own, some before the timers, some after; twice
	my @failed = map { $receipts->meta_sql(failed => $_, code => 131026, message_id => $message_id{$_}) } @ids;
	my $middle = $left > 0.2 ? $left - 0.1 : 0.1;
	my @work = (
		[ $middle * 0.9, @failed[ 0 .. 24 ] ],
		[ $middle, reverse @failed ],
		[ $middle, "SELECT otp_send('$culprit')" ]);
	push @work, [ $middle, map { "SELECT otp_resend('$_')" } @ids ] if $resends;
	is(at_once(@work), 0, "round $round: receipts, timers, a breaker" . ($resends ? ', resends' : ''));
	$receipts->wait_until_taken;
	$receipts->meta_change(account_update => { event => 'ACCOUNT_REINSTATED' });
	$receipts->wait_until_taken;
	wait_for_patience;
	wait_for_patience if $resends;
	ok($node->wait_until_sent, 'all is sent');

	my %count;
	$count{$_} = scalar sms($_) foreach @phones;
	if (!$resends)
	{
		is(scalar(grep { $count{$_} == 1 } @phones), 50, 'exactly one SMS each');
	}
	else
	{
		is(scalar(grep { $count{$_} < 1 } @phones), 0, 'at least one SMS each');
	}

	# Whatever was resent, each message has been replaced by one SMS at most
	my %twice;
	foreach my $message (map { sms($_) } @phones)
	{
		$message->{status_callback} =~ /number=(\d+)/;
		$twice{"$message->{otp_id} $1"}++;
	}
	is(scalar(grep { $_ > 1 } values %twice), 0, 'none twice for one message');
	is(scalar(grep { ($_->{error} // '') ne '' } map { $node->status($_) } @ids), 0, 'nothing has failed');
	is(scalar(grep { told($_) !~ /sms_fallback/ } @ids), 0, 'the fallback is told');
	is(scalar(grep { told($_) =~ /sms_fallback.*sms_fallback/ } @ids), 0, 'once') unless $resends;
	$node->run("SELECT count(otp_cancel(id)) FROM unnest('{" . join(',', @ids) . "}'::text[]) id");
}

# While a message waits to be tried again, a receipt, a breaker and its time race for it
$sim->forget_rules;
$sim->behave(
	{ match => { prefix => '+155512200', api => 'meta' }, do => { code => 131056, record => \1 } },
	{ match => { phone => '+15551220999', api => 'meta' }, do => { code => 190 } });
my @ids = map { $_->{otp_id} } $node->rows("SELECT otp_id FROM generate_series(10, 39) n, otp_send('+15551220' || '0' || n, fallback_sms => true)");
poll_until { $node->value("SELECT count(*) FROM otp.messages m JOIN otp.verifications v ON id = verification_id WHERE phone LIKE '+155512200%'") == 30 };
is( at_once(
		[ 0, map { $receipts->meta_sql(failed => $_, code => 131026, message_id => 'wamid.x') } @ids ],
		[ 0, "SELECT otp_send('+15551220999')" ],
		[ 0.05, map { $receipts->meta_sql(failed => $_, code => 131026, message_id => 'wamid.x') } reverse @ids ]),
	0, 'receipts and a breaker race for messages that wait');
ok( poll_until
	{
		my %got = map { $_->{to} => 1 } grep { $_->{channel} eq 'sms' } $sim->inbox;
		30 == grep { $got{"+155512200$_"} } 10 .. 39;
	},
	'all phones get an SMS');
$receipts->meta_change(account_update => { event => 'ACCOUNT_REINSTATED' });
$receipts->wait_until_taken;
wait_for_patience;
is(scalar(grep { sms("+155512200$_") != 1 } 10 .. 39), 0, 'exactly one');

#
# Another sending number has to be heard of anew
#
$sim->forget_rules;
$sim->config({
		meta_accounts =>
		  [ { phone_number_id => '555', waba_id => '556', token => $sim->token, app_secret => $sim->app_secret } ] });
$node->call('otp.configure_meta', { phone_number_id => '555' });
ok(!seen, 'another sending number has not been heard of');
($id, $phone) = send_one();
wait_for_patience;
is(scalar sms($phone), 0, 'so its silence means nothing');
$receipts->meta(sent => $id, from => '555');
$receipts->wait_until_taken;
ok(seen, 'until a receipt comes');
($id, $phone) = send_one();
ok(poll_until { scalar sms($phone) }, 'then it does');

$listener->quit;
$node->stop;
done_testing();
