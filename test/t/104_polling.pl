# 104_polling.pl
#	A provider that tells nothing is asked what became of an SMS.
#
# Protects: what Twilio knows of a message becomes true here without its
# callback, be that lost or never asked for: delivered, and failed with what
# follows from its code. It is asked a few times in a code's life, and one
# last time before its end; not after it, nor what is known, and its silence
# hurts nothing.

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
$node->configure($sim, twilio => { status_callback => undef });
$node->lift_limits;
$node->run("ALTER DATABASE postgres SET otp.workspace = 'default'");
$node->run("UPDATE otp.workspaces SET fallback_after = NULL");
$node->wait_for_sender;
my $receipts = OTP::Receipt->new($node, $sim);
my $last_phone = 15551400000;

# Twilio learns this of messages to numbers of the next thousand. What has failed at once, the answer tells.
sub learns
{
	my (@callbacks) = @_;
	$last_phone += 1000 - $last_phone % 1000;
	$sim->behave({ match => { prefix => '+' . $last_phone / 1000, api => 'twilio' }, callbacks => \@callbacks });
	return;
}

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Send an SMS; gives its id
sub send_sms
{
	my (%args) = @_;
	return $node->send(phone, channel => 'sms', %args);
}

# The questions about a message
sub questions
{
	my ($id) = @_;
	return grep { $_->{operation} eq 'read' } $sim->log(otp_id => $id);
}

# Without status_callback the simulator does not know an id: by the phone then
sub questions_to
{
	my ($phone) = @_;
	return grep { $_->{operation} eq 'read' && ($_->{to} // '') eq $phone } $sim->log;
}

sub sends_to
{
	my ($phone) = @_;
	return grep { $_->{operation} eq 'send' && ($_->{to} // '') eq $phone } $sim->log;
}

#
# Without status_callback
#
my %case;
learns({ status => 'delivered' });
$case{delivered} = { id => send_sms(), status => 'delivered', phone => "+$last_phone" };
learns({ status => 'sent' }, { status => 'delivered', after_ms => 8000 });
$case{later} = { id => send_sms(), status => 'delivered', phone => "+$last_phone", questions => 2 };
learns({ status => 'undelivered', after_ms => 500, code => 30005 });
$case{undelivered} = { id => send_sms(), status => 'failed', phone => "+$last_phone" };
learns({ status => 'failed', after_ms => 500, code => 21610 });
$case{failed} = { id => send_sms(), status => 'failed', phone => "+$last_phone" };
learns({ status => 'undelivered', after_ms => 500, code => 30003 });
$case{again} = { id => send_sms(), status => 'failed', phone => "+$last_phone", sends => 2, questions => 2 };
learns({ status => 'undelivered', after_ms => 500, code => 30002 });
$node->make_workspaces($sim, 'suspended');
$node->run(<<'END');
INSERT INTO otp.sms_texts (workspace_id, template, language, body)
	SELECT workspace_id, 'otp_verification', 'en_US', '{code} it is' FROM otp.workspaces WHERE name = 'suspended';
END
$node->call('otp.configure_twilio', { account => 'twilio_suspended', workspace => 'suspended', status_callback => '' });
$case{suspended} = {
	id => send_sms(workspace => 'suspended'),
	status => 'failed',
	phone => "+$last_phone",
	reason => 'provider_unavailable' };

# An SMS in place of a message that has failed
learns({ status => 'undelivered', after_ms => 500, code => 30006 });
$case{fallback} = {
	id => $node->send(phone, fallback_sms => 'true'),
	status => 'failed',
	phone => "+$last_phone",
	sends => 2 };
$sim->code_for("+$last_phone");
$node->wait_until_sent;
$receipts->meta(failed => $case{fallback}{id}, code => 131026);

foreach my $name (sort keys %case)
{
	my $case = $case{$name};

	ok(poll_until { $node->status($case->{id})->{status} eq $case->{status} }, "$name: is $case->{status}");
	my $reason = $case->{status} eq 'failed' ? $case->{reason} // 'delivery_failed' : undef;
	is($node->status($case->{id})->{error}, $reason,
		'for that reason');
	my @questions = questions_to($case->{phone});
	is(scalar @questions, $case->{questions} // 1, 'after so many questions');
	is(scalar sends_to($case->{phone}), $case->{sends} // 1, 'and requests to send');
	is($node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$case->{id}')"), $case->{status} eq 'failed' ? 0 : 1,
		'owed until the end');
}
is($node->value("SELECT breaker FROM otp.providers WHERE account = 'twilio_suspended'"), 'open',
	'an account that is suspended is not used any more');
is($node->value("SELECT breaker FROM otp.providers WHERE account = 'twilio'"), 'closed', 'the others are');
like($node->status($case{undelivered}{id})->{error_detail}, qr/^30005\b/, 'the code is known, too');
is($receipts->message($case{delivered}{id})->{provider_code}, undef, 'where there is one');

# Not asked too early
my ($sent) = sends_to($case{delivered}{phone});
my ($asked) = questions_to($case{delivered}{phone});
cmp_ok($asked->{received_us} - $sent->{received_us}, '>=', 4.9e6, 'the first question comes after some seconds');

#
# With status_callback, and a callback that was lost: nobody listens there
#
$node->configure($sim, meta => undef, twilio => { status_callback => 'http://127.0.0.1:9/receipts' });
learns({ status => 'delivered' });
my $lost = send_sms(expires_in => 60);
my $lost_phone = "+$last_phone";
learns();
my $silent = send_sms(expires_in => 60);
my $silent_phone = "+$last_phone";
my $over = send_sms(expires_in => 60);
$sim->code_for($over);
$node->wait_until_sent;
$node->verify($over, $sim->code_for($over));

# Twilio tells about this one, and so it is not asked
my $told = send_sms(expires_in => 60);
$sim->code_for($told);
$node->wait_until_sent;
$receipts->twilio(delivered => $told);

ok(poll_until { $node->status($lost)->{status} eq 'delivered' },
	'a lost callback: delivered, as Twilio says when asked');
my ($lost_sent) = sends_to($lost_phone);
my ($lost_asked) = questions_to($lost_phone);
cmp_ok($lost_asked->{received_us} - $lost_sent->{received_us}, '>=', 29e6,
	'which is later, as its callback might come');

#
# Twilio is down while it is asked: no failure, no breaker, another question
#
$node->call('otp.configure_twilio', { status_callback => '' });
learns({ status => 'delivered' });
my $down = send_sms(expires_in => 60);
my $down_phone = "+$last_phone";
$sim->code_for($down_phone);
$node->wait_until_sent;
$sim->config({ down => \1 });
ok(poll_until { grep { $_->{operation} eq 'read' && $_->{status} == 503 } $sim->log } , 'Twilio is asked, and down');
is($node->status($down)->{status}, 'pending', 'the message is as it was');
is($node->value("SELECT breaker || ' ' || failures FROM otp.providers WHERE account = 'twilio'"), 'closed 0',
	'and the account');
$sim->config({ down => \0 });
ok(poll_until { $node->status($down)->{status} eq 'delivered' }, 'up again, it is asked once more');

# The ends
ok(poll_until { $node->status($silent)->{status} eq 'expired' }, 'what never becomes known expires');
ok(poll_until { $node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$silent')") == 0 },
	'and is not owed any more');
my @silent = questions_to($silent_phone);
my ($silent_sent) = sends_to($silent_phone);
is(scalar @silent, 2, 'it was asked for twice');
cmp_ok($silent[-1]{received_us} - $silent_sent->{received_us}, '<', 60e6, 'the last time before its end');
cmp_ok($silent[-1]{received_us} - $silent_sent->{received_us}, '>', 50e6, 'and not long before');
is(scalar questions($over), 0, 'one that was verified is not asked for');
is(scalar questions($told), 0, 'nor one that is known');

$node->stop;
done_testing();
