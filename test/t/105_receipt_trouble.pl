# 105_receipt_trouble.pl
#	Receipts that come at the wrong moment.
#
# Protects: a late or repeated receipt of a try that has failed does not stop
# the repeat; an error while a receipt is taken in does not lose it; what was
# refused for good is not sent again by the next sender; a receipt that cannot
# be written, now or ever, holds up neither codes nor other receipts.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Receipt;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run('UPDATE otp.workspaces SET fallback_after = NULL');
$node->wait_for_sender;
my $receipts = OTP::Receipt->new($node, $sim);

# How often a message of a verification was sent
sub requests
{
	my ($id) = @_;
	return scalar grep { $_->{operation} eq 'send' } $sim->log(otp_id => $id);
}

# Send, and wait until that is written
sub send_one
{
	my ($phone) = @_;
	my $id = $node->send($phone);

	$node->wait_until_sent;
	return $id;
}

#
# An error in the middle of a receipt
#
{
	my $id = send_one('+15551230001');
	my $session = $node->background_psql('postgres');

	# The first receipt of an account is noted in its row
	$session->query_safe('BEGIN; LOCK TABLE otp.provider_accounts IN SHARE MODE');
	$receipts->meta(delivered => $id);
	ok( poll_until
		{
			$node->value("SELECT last_error LIKE '%lock timeout%' FROM otp.health") eq 't'
		},
		'a receipt cannot be written');
	$session->query_safe('COMMIT');
	$session->quit;
	$receipts->wait_until_taken;
	ok(defined $receipts->message($id, 1)->{delivered_at}, 'it is not lost');
}

#
# A late or repeated receipt of the try that has failed
#
foreach my $late (qw(failed sent))
{
	my $id = send_one($late eq 'sent' ? '+15551230002' : '+15551230003');
	my @failed = (code => 131000, message_id => $receipts->message($id, 1)->{message_id});

	$receipts->meta(failed => $id, @failed);
	$receipts->wait_until_taken;
	$receipts->meta($late => $id, $late eq 'failed' ? @failed : @failed[ 2, 3 ]);
	$receipts->wait_until_taken;
	ok(poll_until { requests($id) == 2 }, "it is sent once more, though '$late' comes late");
	$node->wait_until_sent;
	is($node->status($id)->{status}, 'pending', 'and has not failed');
}

#
# A refused resend, and further senders
#
{
	my $id = send_one('+15551230004');

	$receipts->meta(delivered => $id);
	$receipts->wait_until_taken;
	$sim->behave({ match => { phone => '+15551230004' }, do => { code => 131026 } });
	$node->resend($id);
	ok(poll_until { defined(($receipts->message($id, 3) // {})->{failed_at}) }, 'a resend is refused');
	is($node->status($id)->{status}, 'delivered', 'which ends nothing');
	foreach my $round (1 .. 2)
	{
		my $marker;

		$node->restart;
		$node->wait_for_sender;
		$marker = $node->send('+1555123010' . $round);
		ok(poll_until { requests($marker) }, "sender $round does its work");
		is(requests($id), 2, 'and does not send it again');
	}
}

#
# Neither a receipt that has to wait nor one that cannot be written is in the way of codes
#
{
	my $drawer = ($node->value('SELECT slot FROM otp.messages LIMIT 1') + 5) % 32;
	my $old = $node->value(
		sprintf q{SELECT otp.format_id('01a20000-0000-%02x00-0000-000000000001')}, $drawer * 8);
	my $session = $node->background_psql('postgres');

	$session->query_safe(sprintf 'BEGIN; LOCK TABLE otp.messages_%02d IN ACCESS EXCLUSIVE MODE', $drawer);
	$receipts->meta(read => $old, message_id => 'wamid.of.old');
	foreach my $phone (map { "+1555123020$_" } 1 .. 3)
	{
		$node->send($phone);
		ok(poll_until { scalar $sim->inbox($phone) }, 'a code goes out while a receipt waits for a lock');
	}
	is($node->value("SELECT count(*) FROM otp.outbox WHERE kind = 'receipts'"), 1, 'which is kept');
	$session->query_safe('COMMIT');
	$session->quit;
	$receipts->wait_until_taken;

	$node->run("ALTER TABLE otp.templates ADD CONSTRAINT never CHECK (status <> 'paused')");
	$receipts->meta_change(
		message_template_status_update => {
			event => 'PAUSED',
			message_template_id => 1,
			message_template_name => 'otp_verification',
			message_template_language => 'en_US',
			reason => 'NONE'
		});
	ok(poll_until { $node->value("SELECT last_error LIKE '%never%' FROM otp.health") eq 't' },
		'a receipt cannot be written');
	foreach my $phone (map { "+1555123030$_" } 1 .. 3)
	{
		my $id = $node->send($phone);

		ok(poll_until { scalar $sim->inbox($phone) }, 'a code goes out all the same');
		$receipts->meta(delivered => $id);
		ok(poll_until { $node->status($id)->{status} eq 'delivered' }, 'and its own receipt counts');
	}
	$node->run('ALTER TABLE otp.templates DROP CONSTRAINT never');
	$receipts->wait_until_taken;
	is($node->value("SELECT status FROM otp.templates WHERE name = 'otp_verification'"),
		'paused', 'in the end it can');
}

done_testing();
