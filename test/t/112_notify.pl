# 112_notify.pl
#	Who LISTENs hears what happens, and what goes wrong with that undoes nothing.
#
# LISTEN has no access control: protects that nothing is notified unless a
# workspace names a channel, and then only what happened to which id, and when.
# It is the sender that notifies, in a transaction of its own: protects users'
# two-phase commits, and codes and webhooks from a queue that is full, a lock
# that is not to be had, or a name that is no channel's.

use strict;
use warnings;

use JSON::PP;
use OTP::Cluster;
use OTP::Receiver;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'main',
	init => { allows_streaming => 1 },
	conf => [
		'otp.allow_private_webhooks = on', 'max_prepared_transactions = 10',

		# a session that asks for more can be made to wait in its commit
		'synchronous_commit = local', "synchronous_standby_names = 'nobody'" ]);
$node->append_conf('postgresql.conf', 'max_notify_queue_pages = 64') if $node->pg_version >= 17;
$node->restart if $node->pg_version >= 17;
$node->install;
my $receiver = OTP::Receiver->start($node);
$receiver->attach($sim);
$node->configure($sim, twilio => { status_callback => $receiver->twilio_url });
$node->share_accounts('shop', 'silent');
$node->run("ALTER ROLE CURRENT_USER SET otp.workspace = 'default'");
$node->wait_for_sender;
$sim->behave({ match => {}, callbacks => [ { status => 'delivered' } ] });
$receiver->endpoint('all');

my $last_phone = 15550112000;

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Send one and verify it; by when that is told by webhook, it has been notified as well
sub verified
{
	my (%args) = @_;
	my $id = $node->send(phone, metadata => '{"secret": "metadata"}', %args);

	$node->verify($id, $sim->code_for($id));
	$receiver->hooks(name => 'all', otp_id => $id, count => 3) unless $args{workspace};
	return $id;
}

my %listener;
my %heard;

# What a session has heard so far, once there is something for this id and event
sub heard
{
	my ($who, $id, $event) = @_;
	my @heard;

	poll_until
	{
		my $said = $listener{$who}->query('SELECT');

		push @{ $heard{$who} }, $1 while $said =~ /notification "[^"]*" with payload "(.*)" received/g;
		@heard = grep { index($_, $id) >= 0 } @{ $heard{$who} // [] };
		!defined $event || grep { index($_, "\"$event\"") >= 0 } @heard;
	}
	or diag "$who has not heard of $event";
	return map { decode_json($_) } @heard;
}

foreach my $who (qw(default shop))
{
	$listener{$who} = $node->background_psql('postgres');
	$listener{$who}->query_safe(qq(LISTEN "$who"));
}

#
# Off unless asked for
#
my $off = verified;
my $id;

#
# On
#
$node->run("UPDATE otp.workspaces SET notify_channel = name WHERE name IN ('default', 'shop')");
$id = verified;
my $theirs = verified(workspace => 'shop');
verified(workspace => 'silent');
my @heard = heard('default', $id, 'otp.verified');
is(join(' ', sort map { $_->{event} } @heard), 'otp.delivered otp.sent otp.verified', 'a channel hears what happens');
is(join(' ', map { join ',', sort keys %$_ } @heard), 'at,event,otp_id at,event,otp_id at,event,otp_id',
	'event, id and time, and no more');
is(scalar heard('default', $off), 0, 'nothing of the time before there was one');
is(scalar(grep { $_->{at} !~ /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/ } @heard), 0, 'in the form of webhooks');
@heard = heard('shop', $theirs, 'otp.verified');
is(scalar @heard, 3, 'another workspace has another channel');
is(scalar(grep { index($_, $id) >= 0 } @{ $heard{shop} }), 0, 'which hears of its own');
is(scalar(grep { index($_, $theirs) >= 0 } @{ $heard{default} }), 0, 'and nothing else');
is(scalar(grep { /\d{10}|metadata/ } map { @$_ } values %heard), 0, 'no phone, no metadata');

#
# What is rolled back is not told; two-phase commit stays possible
#
my $undone = $node->send(phone);
my $code = $sim->code_for($undone);
$node->run("BEGIN; SELECT FROM otp_verify('$undone', '$code'); ROLLBACK");
my $phone = phone;
my ($sent) = $node->run("BEGIN; SELECT otp_id FROM otp_send('$phone'); PREPARE TRANSACTION 'send'");
like($sent, qr/^otp_/, 'a send can be prepared');
is($node->run("BEGIN; SELECT valid FROM otp_verify('$undone', '$code'); PREPARE TRANSACTION 'verify'"),
	't', 'and so can a verify');
$id = verified;
heard('default', $id, 'otp.verified');
is(scalar(grep { $_->{event} eq 'otp.verified' } heard('default', $undone, 'otp.sent')), 0, 'nobody hears of them');
is(scalar heard('default', $sent), 0, 'at all');
$node->run("COMMIT PREPARED 'send'");
$node->run("COMMIT PREPARED 'verify'");
ok(scalar heard('default', $undone, 'otp.verified'), 'before they are committed');
ok(scalar heard('default', $sent, 'otp.sent'), 'both');

#
# A commit of somebody else's NOTIFY that takes its time
#
my $slow = $node->background_psql('postgres');
$slow->query_until(qr/on its way/, <<'END');
SET synchronous_commit = on;
BEGIN;
CREATE TABLE slow ();
NOTIFY "default", 'slow';
\echo on its way
COMMIT;
END
ok( $node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'}),
	'somebody\'s NOTIFY waits in its commit');
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'object' AND database = 0 AND mode = 'AccessExclusiveLock' AND granted"),
	'with the lock that every NOTIFY needs');
$id = verified;
ok($receiver->hooks(name => 'all', otp_id => $id) == 3, 'codes and webhooks go on meanwhile');
is($node->status($id)->{status}, 'verified', 'with all that is settled');
$node->run("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
$slow->quit;

# Give a sender that has not seen anything fail
sub new_sender
{
	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');

	$node->run("SELECT pg_terminate_backend($pid)");
	$node->poll_query_until('postgres',
		"SELECT sender_pid IS NOT NULL AND sender_pid <> $pid FROM otp.worker_status()");
	return;
}

#
# A channel that cannot be: it is refused, and were it not, would do no harm
#
is($node->error_of("UPDATE otp.workspaces SET notify_channel = repeat(chr(233), 32)")->{sqlstate},
	'23514', 'a name that is too long for NOTIFY is refused');
is($node->error_of("UPDATE otp.workspaces SET notify_channel = ''")->{sqlstate}, '23514', 'and an empty one');
new_sender;
$node->run('ALTER TABLE otp.workspaces DROP CONSTRAINT workspaces_notify_channel_check');
$node->run("UPDATE otp.workspaces SET notify_channel = repeat(chr(233), 60) WHERE name = 'default'");
$id = verified;
ok($receiver->hooks(name => 'all', otp_id => $id) == 3, 'a channel that cannot be undoes nothing');
is($node->status($id)->{status}, 'verified', 'what is settled is');
is(scalar(grep { !$_->{valid} } $receiver->hooks), 0, 'and told by webhook');
$node->run("UPDATE otp.workspaces SET notify_channel = 'default' WHERE name = 'default'");
new_sender;
$id = verified;
ok(scalar heard('default', $id, 'otp.verified'), 'a good one is notified again');

#
# A queue that is full
#
SKIP:
{
	skip 'the queue has eight gigabytes before 17', 3 if $node->pg_version < 17;

	# one that listens but never gets to hear: what is notified stays in the queue
	my $deaf = $node->background_psql('postgres');
	$deaf->query_safe('LISTEN whatever');
	$deaf->query_safe('BEGIN; SELECT 1');
	$node->run(<<'END');
DO $$
BEGIN
	FOR i IN 1 .. 100000 LOOP
		PERFORM pg_notify('whatever', i || repeat('x', 7000));
		EXIT WHEN pg_notification_queue_usage() > 0.95;
		COMMIT;
	END LOOP;
END $$;
END
	cmp_ok($node->value('SELECT pg_notification_queue_usage()'), '>', 0.9, 'the queue is full');
	$id = verified;
	ok($receiver->hooks(name => 'all', otp_id => $id) == 3, 'which undoes nothing');
	ok($node->wait_for_log(qr/notifications are dropped/), 'and is in the log');
	$deaf->quit;
}

$_->quit foreach values %listener;
$node->stop;
done_testing();
