# 150_credits_sender.pl
#	What the sender gives back, what it charges, and when it warns.
#
# Protects: a refund of what could not be delivered, once, where a workspace
# wants it, whichever way it has failed; the price of a fallback, once it has
# been accepted, be there credits left or not, and its return with the rest; a
# debt that the next top-up pays; credits.low, once, until there were enough
# again, by webhook and by NOTIFY; no step of these waits for a transaction
# that holds credits; all of it through restarts of the sender, and in a dump.
use strict;
use warnings;

use JSON::PP;
use OTP::Cluster;
use OTP::Receipt;
use OTP::Receiver;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['otp.allow_private_webhooks = on']);
$node->install;
my $receiver = OTP::Receiver->start($node);
$node->configure($sim);
$node->share_accounts('strict', 'free');
$node->run("ALTER ROLE CURRENT_USER SET otp.workspace = 'default'");
$node->run("UPDATE otp.workspaces SET credits_metered = name <> 'free', refund_failed = name <> 'strict', fallback_after = NULL");
$node->run("INSERT INTO otp.sms_texts (workspace_id, template, language, body)"
	  . " SELECT workspace_id, 'otp_verification', 'en_US', '{code} it is' FROM otp.workspaces WHERE name <> 'default'");
$node->run("SELECT otp.add_credits(name, 100) FROM otp.workspaces");
$node->wait_for_sender;
my $receipts = OTP::Receipt->new($node, $sim);
my $last_phone = 15550151000;

# Give a phone that was not used before; WhatsApp and SMS do this with it
sub phone
{
	my (%do) = @_;
	my $phone = '+' . ++$last_phone;

	$sim->behave({ match => { phone => $phone, api => $_ }, do => $do{$_} }) foreach keys %do;
	return $phone;
}

sub balance
{
	my ($workspace) = @_;
	return $node->value('SELECT balance FROM otp.credit_balances WHERE workspace = ' . OTP::Cluster::quote($workspace // 'default'));
}

# What an id has in the ledger
sub entries
{
	my ($id) = @_;
	return $node->value("SELECT coalesce(string_agg(kind || ' ' || amount, ', ' ORDER BY entry_id), '')"
		  . " FROM otp.credit_history WHERE otp_id = '$id'");
}

sub ends_with
{
	my ($id, $expected, $what) = @_;

	poll_until { entries($id) eq $expected } 30;
	return is(entries($id), $expected, $what);
}

sub wait_for_status
{
	my ($id, $status) = @_;
	return poll_until { $node->status($id)->{status} eq $status };
}

# A sender that comes anew has read the whole queue
sub restart_sender
{
	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');

	$node->run("SELECT pg_terminate_backend($pid)");
	return $node->poll_query_until('postgres', "SELECT sender_pid <> $pid FROM otp.worker_status()");
}

#
# Refunds
#
my $refused = { code => 131026 };
my $id = $node->send(phone(meta => $refused));
ends_with($id, 'refund 1', 'what WhatsApp refuses is given back');
is($node->status($id)->{status}, 'failed', 'when it has failed');
is(balance(), 100, 'to the balance');
my $strict = $node->send(phone(meta => $refused), workspace => 'strict');
my $free = $node->send(phone(meta => $refused), workspace => 'free');
wait_for_status($strict, 'failed');
wait_for_status($free, 'failed');

# By receipt
$id = $node->send(phone());
$node->wait_until_sent;
is(balance(), 99, 'what was accepted has its price');
$receipts->meta(failed => $id, code => 131026);
ends_with($id, 'refund 1', 'until a receipt says that it failed');
$receipts->meta(failed => $id, code => 131026);
$receipts->wait_until_taken;
is(entries($id), 'refund 1', 'once');
is(balance(), 100, 'and it is back');

# A send and its resend; a test number
$id = $node->send(phone());
$node->wait_until_sent;
$node->resend($id);
$node->wait_until_sent;
is(balance(), 98, 'a resend costs one as well');
$receipts->meta(delivered => $id);
$receipts->wait_until_taken;
$receipts->meta(failed => $id, number => 3, code => 131026);
ends_with($id, 'refund 1', 'a resend that fails is given back, though the first one has arrived');
is(balance(), 99, 'the first one is not');
$node->run("SELECT otp.set_test_number('+15550151999', '123456', 'failed')");
$id = $node->send('+15550151999');
is($node->status($id)->{status}, 'failed', 'a test number fails');
is(balance(), 99, 'for nothing');

# Never taken by anybody until its time was up
$id = $node->send(phone(meta => { status => 503, raw => 'x' }), expires_in => 60);
poll_until { $node->value("SELECT count(*) FROM otp.messages WHERE verification_id = otp.parse_id('$id')") eq '1' };
$node->run("UPDATE otp.verifications SET expires_at = clock_timestamp() + interval '1 s' WHERE id = otp.parse_id('$id')");
ends_with($id, 'refund 1', 'what no provider has taken in time is given back');
is($node->status($id)->{status}, 'expired', 'when it has expired');
$id = $node->send(phone(), expires_in => 60);
$node->wait_until_sent;
$node->run("UPDATE otp.$_ SET expires_at = clock_timestamp() + interval '1 s' WHERE id = otp.parse_id('$id')")
  foreach qw(verifications outbox);
restart_sender;
wait_for_status($id, 'expired');
poll_until { $node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$id')") eq '0' };
is(entries($id), '', 'what has expired at the user is not');
is(entries($strict) . entries($free), '', 'nor is anything where it was not asked for, or not paid');
is(balance('strict'), 99, 'one is lost there');
is(balance('free'), 100, 'and none here');
is(balance(), 98, 'and the rest is as before');

#
# Fallbacks
#
$node->run('UPDATE otp.workspaces SET fallback_credits = 2');
$id = $node->send(phone(meta => $refused), fallback_sms => 'true');
ends_with($id, 'fallback -2', 'a fallback has a price');
is(balance(), 95, 'besides that of the send');
$receipts->twilio(undelivered => $id, number => 2, code => 30005);
ends_with($id, 'fallback -2, refund 3', 'which is given back with it, when both have failed');
is(balance(), 98, 'in all');
restart_sender;

# An SMS that is not accepted has no price
$id = $node->send(phone(meta => $refused, twilio => { code => 21610 }), fallback_sms => 'true');
ends_with($id, 'refund 1', 'an SMS that is refused has no price');
is(balance(), 98, 'and the send is given back');
$id = $node->send(phone(meta => $refused), fallback_sms => 'true', workspace => 'free');
wait_for_status($id, 'pending');
$node->wait_until_sent;
is(entries($id), '', 'nor has one in a workspace that is not metered');

# WhatsApp has delivered late: the SMS alone has failed
$node->run("UPDATE otp.workspaces SET fallback_after = '1 s'");
$id = $node->send(phone(), fallback_sms => 'true');
ends_with($id, 'fallback -2', 'silence makes a fallback');
$receipts->meta(delivered => $id);
$receipts->wait_until_taken;
$receipts->twilio(undelivered => $id, number => 2, code => 30005);
$receipts->wait_until_taken;
poll_until { $node->value("SELECT failed_at IS NOT NULL FROM otp.messages WHERE verification_id = otp.parse_id('$id') AND number = 2") eq 't' };
is($node->status($id)->{status}, 'delivered', 'WhatsApp has arrived, though late');
is(entries($id), 'fallback -2', 'so an SMS that has failed is not given back');
$node->run('UPDATE otp.workspaces SET fallback_after = NULL');

# With nothing left: the code goes out, and the next top-up pays
$node->run("SELECT otp.add_credits('default', 1 - balance) FROM otp.credit_balances WHERE workspace = 'default'");
is(balance(), 1, 'one is left');
my $phone = phone(meta => $refused);
$id = $node->send($phone, fallback_sms => 'true');
ends_with($id, 'fallback -2', 'a fallback is not refused');
is(scalar(grep { $_->{channel} eq 'sms' } $sim->inbox($phone)), 1, 'it goes out');
is(balance(), -2, 'the balance is a debt');
is($node->error_of("SELECT * FROM otp_send('" . phone() . "')")->{sqlstate}, 'OT402', 'and the next send refused');
is($node->value("SELECT otp.add_credits('default', 2)"), 0, 'a top-up pays it');
is($node->error_of("SELECT * FROM otp_send('" . phone() . "')")->{sqlstate}, 'OT402', 'first');
is($node->value("SELECT otp.add_credits('default', 1)"), 1, 'and the next one is for sends');
$node->send(phone());
is(balance(), 0, 'one of them');

# Nothing of this waits for a transaction that holds credits
$node->run("SELECT otp.add_credits('default', 64)");
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN; SELECT count(*) FROM (SELECT 1 FROM otp.credits FOR UPDATE) s');
$id = $node->send(phone(meta => $refused), fallback_sms => 'true', workspace => 'free');
ok(poll_until { $node->value("SELECT count(*) FROM otp.messages WHERE verification_id = otp.parse_id('$id') AND number = 2") },
	'others are served');
$session->query_safe('ROLLBACK');
$session->query_safe("BEGIN; SELECT otp_send('" . phone() . "')");
my @ids = map { $node->send(phone(meta => $refused), fallback_sms => 'true') } 1 .. 10;
ends_with($ids[$_], 'fallback -2', "fallback $_ beside an open send") foreach 0 .. 9;
$session->query_safe('COMMIT');
is(balance(), 64 - 1 - 30, 'all are counted');
$session->quit;

# A sender that dies in between counts nothing twice
@ids = map { $node->send(phone(meta => $refused)) } 1 .. 20;
restart_sender foreach 1 .. 3;
ends_with($_, 'refund 1', 'a refund over restarts') foreach @ids;
is(balance(), 33, 'and the sum');

#
# credits.low
#
$receiver->endpoint('all');
$receiver->endpoint('low', events => ['credits.low']);
$receiver->endpoint('other', events => ['otp.sent']);
my $listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN credits');
$node->run("UPDATE otp.workspaces SET notify_channel = 'credits', fallback_credits = 0, credits_low = 31 WHERE name = 'default'");
$node->send(phone()) foreach 1 .. 2;
$node->wait_until_sent;
is(balance(), 31, 'as many as credits_low');
my $test = $node->value("SELECT otp.send_test_webhook(endpoint_id, 'credits.low') FROM otp.webhook_endpoints WHERE events = '{credits.low}'");
my ($hook) = $receiver->hooks(name => 'low', count => 1);
is($hook->{headers}{'webhook-id'}, $test, 'a test of it can be asked for');
ok($hook->{parsed}{test}, 'and is told to be one');
is_deeply($hook->{parsed}{data}, { workspace => 'default', balance => 99, credits_low => 100 }, 'of the same shape');

$node->send(phone());
($hook) = ($receiver->hooks(name => 'low', count => 2))[1];
ok($hook->{valid}, 'one below that is told');
is($hook->{parsed}{event}, 'credits.low', 'by its name');
is($hook->{parsed}{type}, 'credits.low', 'which is its type');
like($hook->{parsed}{timestamp}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/, 'with its time');
is_deeply($hook->{parsed}{data}, { workspace => 'default', balance => 30, credits_low => 31 }, 'and what is left');
ok(!exists $hook->{parsed}{test}, 'in earnest');
my @low;
poll_until
{
	@low = $listener->query_safe('SELECT 1') =~ /payload "(\{"event":"credits\.low".*?\})" received/ ? $1 : ();
};
my $note = decode_json($low[0] // '{}');
is(join(' ', sort keys %$note), 'at event workspace', 'NOTIFY tells it, too, but not how many there are');
is($note->{workspace}, 'default', 'of which workspace');
like($note->{at}, qr/Z$/, 'with its time');

# Once
$node->send(phone()) foreach 1 .. 3;
restart_sender;
$node->wait_until_sent;
sub warnings_told
{
	return $node->value('SELECT count(*) FROM otp.credit_warnings');
}
my $look = sub {
	# A change of the workspaces has the sender look at all of them
	$node->run("UPDATE otp.workspaces SET credits_metered = true, credits_low = 100 WHERE name = 'strict'");
	$node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM otp.credit_warnings JOIN otp.workspaces USING (workspace_id)'
		  . " WHERE name = 'strict' AND over_at IS NULL");
};
$look->();
is(warnings_told() - 1, 1, 'it is told once');
$node->run("SELECT otp.add_credits('default', 4)");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM otp.credit_warnings WHERE workspace_id = 1 AND over_at IS NOT NULL");
$node->send(phone());
($hook) = ($receiver->hooks(name => 'low', count => 3))[2];
is($hook->{parsed}{data}{balance}, 30, 'and again, once there were enough in between');
is((grep { $_->{event} eq 'credits.low' } $receiver->hooks(name => 'all')), 2, 'an endpoint of all events hears it');
is((grep { $_->{event} eq 'credits.low' } $receiver->hooks(name => 'other')), 0, 'one of others does not');
$receiver->behave('low', status => 503, times => 1);
$node->run('SELECT otp.replay_webhooks(endpoint_id, only_failed => false) FROM otp.webhook_endpoints WHERE events = \'{credits.low}\'');
my @replayed = ($receiver->hooks(name => 'low', count => 6))[ 3 .. 5 ];
is(join(' ', sort map { $_->{parsed}{data}{balance} } @replayed), '30 30 99', 'replayed, it says what it said');
is($node->value("SELECT count(*) FROM otp.webhook_deliveries WHERE event = 'credits.low' AND otp_id IS NOT NULL"), 0,
	'and is about no verification');

#
# In a dump
#
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
my $before = $node->run('SELECT * FROM otp.credit_balances ORDER BY workspace; SELECT * FROM otp.credit_ledger ORDER BY entry_id');
command_ok([ $node->installed_command('pg_dump'), '-Fc', '-f', $dump, $node->connstr('postgres') ], 'a dump');
$node->run('CREATE DATABASE copy');
$node->run('REVOKE CREATE ON SCHEMA public FROM PUBLIC', dbname => 'copy');
command_ok([ $node->installed_command('pg_restore'), '-e', '-1', '-d', $node->connstr('copy'), $dump ], 'is restored');
is($node->run('SELECT * FROM otp.credit_balances ORDER BY workspace; SELECT * FROM otp.credit_ledger ORDER BY entry_id', dbname => 'copy'),
	$before, 'with balances and ledger');
is($node->error_of('DELETE FROM otp.credit_ledger', dbname => 'copy')->{sqlstate}, '55000', 'that nobody changes');

$node->stop;
done_testing;
