# 103_ends.pl
#	Nothing is owed any more when a verification has ended, and it is told why.
#
# Protects: the row of the queue, and with it a message that could still be
# sent, goes at every end: verified, canceled, failed, expired, used up by
# wrong guesses, rolled back ones too; the end is told once, and not before it
# is true: not when it is rolled back, not while somebody is about to verify;
# that transaction holds up nobody else. After a restart, and when the sender
# was down at the moment, too.

use strict;
use warnings;

use JSON::PP;
use OTP::Cluster;
use OTP::Receipt;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run("UPDATE otp.workspaces SET fallback_after = NULL, notify_channel = 'events', failures_per_phone_day = NULL");
$node->wait_for_sender;
my $receipts = OTP::Receipt->new($node, $sim);
my $last_phone = 15551300000;

# Send a message whose code lives so long, before the sender has seen it; the least that otp_send takes is a minute
sub send_for
{
	my ($seconds, %args) = @_;
	my $phone = '+' . ++$last_phone;
	my $list = join ', ', "'$phone'", map { "$_ => " . OTP::Cluster::quote($args{$_}) } sort keys %args;

	my ($id) = split /\n/, $node->run(<<"END");
BEGIN;
CREATE TEMPORARY TABLE sent ON COMMIT DROP AS SELECT otp_id, otp.parse_id(otp_id) AS id FROM otp_send($list);
UPDATE otp.verifications v SET expires_at = clock_timestamp() + $seconds * interval '1 s'
	FROM sent WHERE v.id = sent.id;
UPDATE otp.outbox o SET expires_at = v.expires_at FROM sent, otp.verifications v
	WHERE o.id = sent.id AND v.id = sent.id;
SELECT otp_id FROM sent;
COMMIT;
END
	return $id;
}

# How many rows are owed for it
sub owed
{
	my ($id) = @_;
	return $node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$id')");
}

# Wait until nothing is owed for it, and give the seconds since its code expired, by the server's clock
sub seconds_until_gone
{
	my ($id) = @_;
	my $seconds;
	poll_until
	{
		$seconds = $node->value(<<"END");
SELECT extract(epoch FROM clock_timestamp() - v.expires_at) FROM otp.verifications v
WHERE id = otp.parse_id('$id') AND NOT EXISTS (SELECT 1 FROM otp.outbox o WHERE o.id = v.id)
END
		$seconds ne '';
	};
	return $seconds;
}

# Everything that is told, from here on
my $listener;
my %told;

sub listen_anew
{
	$listener = $node->background_psql('postgres');
	$listener->set_query_timer_restart;
	$listener->query_safe('LISTEN events');
	return;
}

# What was told of a verification so far, in order
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

# Wait until this, and only this, was told of it
sub is_told
{
	my ($id, $expected, $what) = @_;

	poll_until { told($id) eq $expected } 10;
	return is(told($id), $expected, $what);
}

# It is as it should be, in every respect
sub is_over
{
	my ($id, $status, $told, $what) = @_;
	return subtest $what => sub {
		ok(poll_until { owed($id) == 0 }, 'nothing is owed any more');
		is($node->status($id)->{status}, $status, "it is $status");
		is_told($id, $told, "told: $told");
	};
}

listen_anew;

#
# Expired
#
my @short = map { send_for(3, %$_) } {}, { channel => 'sms' }, { fallback_sms => 'true' };
my $delivered = send_for(3);
$sim->code_for($delivered);
$node->wait_until_sent;
$receipts->meta(delivered => $delivered);
foreach my $id (@short, $delivered)
{
	my $late = seconds_until_gone($id);

	cmp_ok($late, '>=', 0, 'nothing goes before it has expired');
	cmp_ok($late, '<', 2, 'but within two seconds');
	is_over($id, 'expired', $id eq $delivered ? 'sent delivered expired' : 'sent expired', 'expired');
}

# Never sent: the provider was down all the time; and one that was in flight
$sim->config({ down => \1 });
my $unsent = send_for(3);
cmp_ok(seconds_until_gone($unsent), '<', 2, 'one that nobody has taken goes as well');
is_over($unsent, 'expired', 'expired', 'expired unsent');
$sim->config({ down => \0 });
my $phone = '+' . ($last_phone + 1);
$sim->behave({ match => { phone => $phone }, do => { hang => \1 } });
my $hung = send_for(3);
cmp_ok(seconds_until_gone($hung), '<', 2, 'and one in flight');
is_over($hung, 'expired', 'expired', 'expired in flight');
$sim->forget_rules;
$sim->release;
$node->run("SELECT otp.configure_meta()");

#
# Expired across a restart, and while no sender was there
#
my $before = send_for(60);
my $across = send_for(8);
$sim->code_for($across);
$node->wait_until_sent;
is_told($across, 'sent', 'sent');
$listener->quit;
$node->restart;
$node->wait_for_sender;
listen_anew;
is($node->status($across)->{status}, 'pending', 'a restart before the end');
my $late = seconds_until_gone($across);
cmp_ok($late, '>=', 0, 'does not hasten it');
cmp_ok($late, '<', 2, 'nor delay it');
is_over($across, 'expired', 'sent expired', 'expired after a restart');

$node->append_conf('postgresql.conf', 'otp.delivery = off');
$node->reload;
$node->poll_query_until('postgres', 'SELECT NOT delivery FROM otp.worker_status()');
my $down = send_for(1);
my $moved = $node->value("SELECT otp_id FROM otp_send('+15551309999')");
$node->append_conf('postgresql.conf', 'otp.delivery = on');
$node->poll_query_until('postgres',
	"SELECT expires_at < clock_timestamp() FROM otp.verifications WHERE id = otp.parse_id('$down')");
is(owed($down), 1, 'without a sender it stays');
$node->reload;
is_over($down, 'expired', 'expired', 'and is over as soon as there is one');
is(scalar $sim->log(otp_id => $down), 0, 'without having been sent');
ok($sim->code_for($moved), 'unlike what is alive');

my $stopped = send_for(3);
$sim->code_for($stopped);
$node->wait_until_sent;
is_told($stopped, 'sent', 'sent');
$listener->quit;
my $end = $node->value("SELECT ceil(extract(epoch FROM expires_at)) FROM otp.verifications WHERE id = otp.parse_id('$stopped')");
$node->stop('immediate');
poll_until { time > $end };
$node->start;
$node->wait_for_sender;
listen_anew;
ok(poll_until { owed($stopped) == 0 }, 'the server was down at its end: nothing is owed any more');
is($node->status($stopped)->{status}, 'expired', 'it is expired');

#
# Verified, canceled: rolled back, they are not
#
my $verified = $node->send('+' . ++$last_phone);
my $canceled = $node->send('+' . ++$last_phone);
my $code = $sim->code_for($verified);
my $canceled_code = $sim->code_for($canceled);
$node->wait_until_sent;
$node->run("BEGIN; SELECT otp_verify('$verified', '$code'); SELECT otp_cancel('$canceled'); ROLLBACK");
my $marker = $node->send('+' . ++$last_phone);
$sim->code_for($marker);
$node->wait_until_sent;
is(owed($_), 1, 'rolled back: it is owed on') foreach $verified, $canceled;
is(told($verified) . ', ' . told($canceled), 'sent, sent', 'and nothing is told');
$node->run("BEGIN; SAVEPOINT s; SELECT otp_verify('$verified', '$code'); ROLLBACK TO s; COMMIT");
is($node->verify($verified, $code)->{valid}, 1, 'it is verified');
is($node->cancel($canceled), 1, 'the other one canceled');
is_over($verified, 'verified', 'sent verified', 'verified');
is_over($canceled, 'canceled', 'sent', 'canceled');
is($node->verify($verified, $code)->{valid}, JSON::PP::false, 'once');
is(told($verified), 'sent verified', 'and told once');

# Before it was sent at all, and while it is in flight
$phone = '+' . ($last_phone + 1);
$sim->behave({ match => { phone => $phone }, do => { delay_ms => 1500 } });
my $flying = $node->send('+' . ++$last_phone);
$node->verify($flying, $sim->code_for($flying));
ok(poll_until { owed($flying) == 0 }, 'verified in flight: nothing is owed any more');
is($node->status($flying)->{status}, 'verified', 'it is verified');
ok(poll_until { defined $receipts->message($flying) }, 'and what came of the message is noted');
$sim->forget_rules;

#
# Failed, and its verification's other messages
#
my $failed = $node->send('+' . ++$last_phone);
$sim->code_for($failed);
$node->wait_until_sent;
$receipts->meta(failed => $failed, code => 131047);
is_over($failed, 'failed', 'sent failed', 'failed');
my $resent = $node->send('+' . ++$last_phone);
$sim->code_for($resent);
$node->wait_until_sent;
$node->resend($resent);
$sim->wait_for_messages(phone => '+' . $last_phone, count => 2);
$node->wait_until_sent;
ok(poll_until { owed($resent) == 1 }, 'a resend takes the place of the message before');
$receipts->meta(failed => $resent, code => 131047, number => 3);
$receipts->wait_until_taken;
is($node->status($resent)->{status}, 'pending',
	'its failure is not the end where another one stands') or diag $node->status($resent)->{error};
$node->verify($resent, $sim->code_for($resent));
is_over($resent, 'verified', 'sent sent verified', 'that one is verified');

#
# Used up
#
my %used = map { $_ => $node->send('+' . ++$last_phone) } qw(committed rolled_back mixed);
$sim->code_for($_) foreach values %used;
$node->wait_until_sent;
$node->verify($used{committed}, 'wrong') foreach 1 .. 3;
$node->run("BEGIN; SELECT otp_verify('$used{rolled_back}', 'wrong') FROM generate_series(1, 3); ROLLBACK");
$node->verify($used{mixed}, 'wrong') foreach 1 .. 2;
$node->run("BEGIN; SELECT otp_verify('$used{mixed}', 'wrong'); ROLLBACK");
foreach my $kind (sort keys %used)
{
	is_over($used{$kind}, 'failed', 'sent failed', "used up, $kind");
	is($node->status($used{$kind})->{error}, 'too_many_attempts', 'for that reason');
}

# The last guess may be the right one
my $last_guess = $node->send('+' . ++$last_phone);
$code = $sim->code_for($last_guess);
$node->wait_until_sent;
$node->verify($last_guess, 'wrong') foreach 1 .. 2;
is($node->verify($last_guess, $code)->{valid}, 1, 'right with the last attempt');
is_over($last_guess, 'verified', 'sent verified', 'verified at last');

#
# Somebody is about to verify: then nobody else says that it has expired
#
my $held = send_for(6);
my $held_canceled = send_for(6);
my $held_used = $node->send('+' . ++$last_phone);
my $held_rolled_back = send_for(6);
my $other = send_for(6);
$sim->code_for($held_used);
my %session = map { $_ => $node->background_psql('postgres') } qw(verify cancel use roll_back);
$code = $sim->code_for($held);
$session{verify}->query_safe("BEGIN; SELECT otp_verify('$held', '$code')");
$session{cancel}->query_safe("BEGIN; SELECT otp_cancel('$held_canceled')");
my $held_code = $sim->code_for($held_rolled_back);
$session{roll_back}->query_safe("BEGIN; SELECT otp_verify('$held_rolled_back', '$held_code')");
$session{use}->query_safe("BEGIN; SELECT otp_verify('$held_used', 'wrong')");
cmp_ok(seconds_until_gone($other), '<', 2, 'while a verification is locked at its end, the others expire');
is(owed($_), 1, 'it stays') foreach $held, $held_canceled, $held_rolled_back;
is(told($held), 'sent', 'and nothing is told of it');
$marker = $node->send('+' . ++$last_phone);
my $start = time;
$sim->code_for($marker);
$node->wait_until_sent;
note sprintf 'a send beside it took %.2f s', time - $start;
$session{$_}->query_safe('COMMIT') foreach qw(verify cancel use);
$session{roll_back}->query_safe('ROLLBACK');
is_over($held, 'verified', 'sent verified', 'the transaction that verified it wins');
is_over($held_canceled, 'canceled', 'sent', 'as does the one that canceled it');
is_over($held_rolled_back, 'expired', 'sent expired', 'and one that rolls back has it expire');
is($node->status($held_used)->{status}, 'pending', 'a wrong guess ends nothing');
$session{$_}->quit foreach keys %session;

#
# Nothing is left
#
is($node->verify($_, $sim->code_for($_))->{valid}, 1,
	'what is alive is verified') foreach $before, $moved, $marker, $held_used;
ok(poll_until { $node->value(q{SELECT count(*) FROM otp.outbox}) <= 1 }, 'and next to nothing is owed');
$listener->quit;
$node->stop;
done_testing();
