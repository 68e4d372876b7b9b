# 110_webhooks.pl
#	What happens to a verification is told, signed, at least once.
#
# Protects: all six events with what a receiver needs; no word of what was
# rolled back; the same id and a fresh signature at every attempt; endpoints
# that are paused, resumed, rotated, deleted, disabled, played to again;
# nothing lost by a killed sender or a hurried stop; no other workspace's
# events; no code, phone or secret in the log or the statistics.
#
# The receiver checks signatures with the official library. What providers
# tell comes by the same web tier, over the functions for receipts.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Receiver;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'main',
	conf => [
		'otp.allow_private_webhooks = on', 'restart_after_crash = on',
		'max_prepared_transactions = 10', 'log_min_messages = debug1' ]);
$node->install;
my $receiver = OTP::Receiver->start($node);
$receiver->attach($sim);
$node->configure($sim, twilio => { status_callback => $receiver->twilio_url });
$node->share_accounts('neighbour');
$node->create_user('app');
$node->create_user('stranger', workspace => 'neighbour');
$node->run("ALTER ROLE CURRENT_USER SET otp.workspace = 'default'");
$node->wait_for_sender;

# Who gets a message tells so, unless a test says otherwise
$sim->behave({ match => {}, callbacks => [ { status => 'sent' }, { status => 'delivered' } ] });

my $last_phone = 15550110000;
my (@phones, @codes);

# Give a phone that was not used before
sub phone
{
	push @phones, '+' . ++$last_phone;
	return $phones[-1];
}

# Give the code of an id
sub code
{
	push @codes, $sim->code_for($_[0]);
	return $codes[-1];
}

# Send one and verify it
sub verified
{
	my (%args) = @_;
	my $id = $node->send(phone, %args);

	$node->verify($id, code($id));
	return $id;
}

# The webhooks for an id at an endpoint, by event, once there are so many
sub told
{
	my ($name, $id, $count) = @_;
	my %told = map { $_->{event} => $_ } $receiver->hooks(name => $name, otp_id => $id, count => $count);
	return \%told;
}

# Nothing more comes: what is queued later has come
sub quiet
{
	my ($endpoint, $name) = @_;
	my $test = $node->value("SELECT otp.send_test_webhook($endpoint)");

	poll_until
	{
		grep { $_->{headers}{'webhook-id'} eq $test } $receiver->hooks(name => $name);
	}
	or BAIL_OUT("no test webhook arrives at $name");
	return;
}

# The attempts to tell of an id, as the view has them
sub attempts
{
	my ($endpoint, $id) = @_;
	return $node->rows(<<"END");
SELECT * FROM otp.webhook_deliveries WHERE endpoint_id = $endpoint AND otp_id = '$id' ORDER BY attempted_at, attempt
END
}

# Have what waits for its next attempt tried now: the sender that comes finds it due
sub try_now
{
	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');

	$node->run("UPDATE otp.webhook_outbox SET due_at = clock_timestamp(); SELECT pg_terminate_backend($pid)");
	$node->poll_query_until('postgres',
		"SELECT sender_pid IS NOT NULL AND sender_pid <> $pid FROM otp.worker_status()");
	return;
}

#
# Endpoints are made by those who act for the workspace
#
my $all = $receiver->endpoint('all', user => 'app', description => 'everything');
like($receiver->secret_of('all'), qr/^whsec_[A-Za-z0-9+\/]{43}=$/, 'a secret of 32 bytes');
my $neighbour = $receiver->endpoint('neighbour', user => 'stranger');
my $some = $receiver->endpoint('some', events => [ 'otp.verified', 'otp.failed' ]);
my $listed = $node->row("SELECT * FROM otp.webhook_endpoint_list WHERE endpoint_id = $all", user => 'app');
is("$listed->{status} $listed->{url} $listed->{description}",
	'enabled ' . $receiver->url('all') . ' everything', 'an endpoint is listed');
is($node->value("SELECT count(*) FROM otp.webhook_endpoint_list WHERE endpoint_id = $all", user => 'stranger'),
	0, 'but not for others');
foreach my $call ("otp.pause_webhook_endpoint($all)", "otp.resume_webhook_endpoint($all)",
	"otp.rotate_webhook_secret($all)", "otp.delete_webhook_endpoint($all)",
	"otp.send_test_webhook($all)", "otp.replay_webhooks($all, now())")
{
	is($node->error_of("SELECT $call", user => 'stranger')->{sqlstate}, '42704', "$call is not for others");
}

#
# A test webhook
#
my $test = $node->value("SELECT otp.send_test_webhook($all)", user => 'app');
my ($hook) = $receiver->hooks(name => 'all', count => 1);
ok($hook->{valid}, 'the official library finds a test webhook well signed') or diag $hook->{error};
is($hook->{headers}{'webhook-id'}, $test, 'under the id that was told');
like($test, qr/^msg_[0-9A-HJKMNP-TV-Z]{26}$/, 'of the usual form');
is($hook->{headers}{'content-type'}, 'application/json', 'as JSON');
is($hook->{parsed}{event}, 'otp.verified', 'it looks like the real thing');
ok($hook->{parsed}{test}, 'and says that it is not');

#
# Six events
#
my $metadata = '{"user": 42, "name": "Zoë \"Z\" \\\\ \u2028"}';
my $happy = $node->send(phone, metadata => $metadata, context => 'signup', fallback_sms => 'true');
my $told = told('all', $happy, 2);
$node->verify($happy, code($happy), context => 'signup');
$told = told('all', $happy, 3);
my $status = $node->status($happy);
is(join(' ', sort keys %$told), 'otp.delivered otp.sent otp.verified', 'sent, delivered, verified are told');
foreach my $event (sort keys %$told)
{
	my $h = $told->{$event};
	my $p = $h->{parsed};

	subtest $event => sub {
		ok($h->{valid}, 'is signed') or diag $h->{error};
		is($h->{method}, 'POST', 'is posted');
		is($p->{event}, $event, 'says what it is');
		is($p->{type}, $event, 'in the standard\'s own way as well');
		like($p->{timestamp}, qr/^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/, 'and when');
		is($p->{data}{phone}, $phones[-1], 'has the phone');
		is($p->{data}{channel}, 'whatsapp', 'the channel');
		is($p->{data}{message_id}, $status->{message_id}, 'the provider\'s id of the message');
		is_deeply($p->{data}{metadata}, $status->{metadata}, 'the metadata, whatever is in it');
		is($p->{data}{context}, 'signup', 'the context');
		is($p->{data}{workspace}, 'default', 'the workspace');
		unlike($h->{body}, qr/$codes[-1]/, 'and not the code');
	};
}

# a time of PostgreSQL's JSON, which has no zeros at its end, to the millisecond
sub milliseconds
{
	my ($time) = @_;
	my ($seconds, $fraction) = $time =~ /^([^.+]+)(?:\.(\d+))?/;
	return "$seconds." . substr(($fraction // '') . '000', 0, 3) . 'Z';
}
is($told->{'otp.verified'}{parsed}{data}{verified_at}, milliseconds($status->{verified_at}), 'verified: when');
is($told->{'otp.delivered'}{parsed}{data}{delivered_at}, milliseconds($status->{delivered_at}), 'delivered: when');
my %different = map { $_->{headers}{'webhook-id'} => 1 } values %$told;
is(scalar keys %different, 3, 'each has an id of its own');

# Refused by Meta, and no SMS wanted
$sim->behave({ match => { phone => my $refused_phone = phone, api => 'meta' }, do => { code => 131026 } });
my $refused = $node->send($refused_phone);
$told = told('all', $refused, 1);
is(join(' ', sort keys %$told), 'otp.failed', 'failed is told');
my $data = $told->{'otp.failed'}{parsed}{data};
is("$data->{error} $data->{error_code}", 'delivery_failed 131026', 'with the reason and the provider\'s code');
ok(defined $data->{failed_at} && exists $data->{error_detail}, 'when, and in words');

# Refused afterwards, and sent by SMS
$sim->behave({ match => { phone => my $fallen_phone = phone, api => 'meta' },
		callbacks => [ { status => 'failed', code => 131026 } ] });
my $fallen = $node->send($fallen_phone, fallback_sms => 'true');
$told = told('all', $fallen, 3);
is(join(' ', sort keys %$told), 'otp.delivered otp.sent otp.sms_fallback', 'sms_fallback is told');
$data = $told->{'otp.sms_fallback'}{parsed}{data};
is("$data->{channel} $data->{from_channel} $data->{error_code}", 'sms whatsapp 131026', 'from where, to where, and why');
like($data->{message_id}, qr/^SM/, 'with the id of the SMS');
is($told->{'otp.sent'}{parsed}{data}{channel}, 'whatsapp', 'sent was the first message');
is($told->{'otp.delivered'}{parsed}{data}{channel}, 'sms', 'delivered the second');

# Expired while nobody looked: the sender that comes next tells
my $expired = $node->send(phone, expires_in => 60);
told('all', $expired, 2);
$node->run(<<"END");
UPDATE otp.verifications SET expires_at = clock_timestamp() WHERE id = otp.parse_id('$expired');
UPDATE otp.outbox SET expires_at = clock_timestamp() WHERE id = otp.parse_id('$expired');
END
try_now;
$told = told('all', $expired, 3);
ok($told->{'otp.expired'}{valid}, 'expired is told');
ok(defined $told->{'otp.expired'}{parsed}{data}{expired_at}, 'with when');

# One at Twilio that fails for good
$sim->behave({ match => { phone => my $landline = phone, api => 'twilio' },
		callbacks => [ { status => 'undelivered', code => 30006, after_ms => 200 } ] });
my $undelivered = $node->send($landline, channel => 'sms');
$told = told('all', $undelivered, 2);
is($told->{'otp.failed'}{parsed}{data}{error_code}, 30006, 'failed by SMS is told');

#
# Only what was asked for, and only to whom it is for
#
told('some', $happy, 1);
quiet($some, 'some');
is(join(' ', map { "$_->{event} " . ($_->{parsed}{test} // '') } $receiver->hooks(name => 'some', otp_id => $happy)),
	'otp.verified ', 'an endpoint hears of the events that it asked for');
is(scalar $receiver->hooks(name => 'neighbour'), 0, 'another workspace\'s endpoint hears nothing');
my $theirs = $node->send(phone, workspace => 'neighbour');
is(told('neighbour', $theirs, 1)->{'otp.sent'}{parsed}{data}{workspace}, 'neighbour', 'but of its own');
is(scalar $receiver->hooks(name => 'all', otp_id => $theirs), 0, 'and nobody else does');
is($node->value('SELECT count(*) FROM otp.webhook_deliveries', user => 'app') > 0, 1, 'attempts are visible to their own');
is($node->value("SELECT count(DISTINCT workspace) FROM otp.webhook_deliveries WHERE workspace <> 'neighbour'",
		user => 'stranger'), 0, 'and to nobody else');

#
# What is rolled back is not told
#
my $undone = $node->send(phone);
my $code = code($undone);
told('all', $undone, 2);
$node->run("BEGIN; SELECT valid FROM otp_verify('$undone', '$code'); ROLLBACK");
$node->run("BEGIN; SAVEPOINT s; SELECT valid FROM otp_verify('$undone', '$code'); ROLLBACK TO s; COMMIT");
my $unsent = $node->run('BEGIN; SELECT otp_id FROM otp_send(\'' . phone . '\'); ROLLBACK');
quiet($all, 'all');
is(scalar $receiver->hooks(name => 'all', otp_id => $undone, event => 'otp.verified'), 0,
	'a verify that is rolled back is not told');
is(scalar $receiver->hooks(name => 'all', otp_id => $unsent), 0, 'nor a send');

# While a transaction holds it, others go on
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
like($session->query_safe("SELECT valid FROM otp_verify('$undone', '$code')"), qr/^t/, 'a transaction verifies, and idles');
my $busy = verified;
is(join(' ', sort keys %{ told('all', $busy, 3) }), 'otp.delivered otp.sent otp.verified',
	'others are told of meanwhile');
is(scalar $receiver->hooks(name => 'all', otp_id => $undone, event => 'otp.verified'), 0, 'it is not');
$session->query_safe('COMMIT');
$session->quit;
ok(told('all', $undone, 3)->{'otp.verified'}{valid}, 'until it commits');

# Two-phase commit
my $prepared = $node->send(phone);
$code = code($prepared);
told('all', $prepared, 2);
$node->run("BEGIN; SELECT valid FROM otp_verify('$prepared', '$code'); PREPARE TRANSACTION 'verify'");
quiet($all, 'all');
is(scalar $receiver->hooks(name => 'all', otp_id => $prepared, event => 'otp.verified'), 0,
	'a prepared verify is not told');
$node->run("COMMIT PREPARED 'verify'");
ok(told('all', $prepared, 3)->{'otp.verified'}{valid}, 'until it is committed');

#
# Again, when the receiver did not say yes
#
my $retry = $receiver->endpoint('retry', events => ['otp.verified']);
$receiver->behave('retry', status => 503, times => 1);
my $id = verified;
my @hooks = $receiver->hooks(name => 'retry', otp_id => $id, count => 2);
is($hooks[0]{headers}{'webhook-id'}, $hooks[1]{headers}{'webhook-id'}, 'the second attempt has the same id');
cmp_ok($hooks[1]{headers}{'webhook-timestamp'}, '>', $hooks[0]{headers}{'webhook-timestamp'}, 'a new timestamp');
isnt($hooks[0]{headers}{'webhook-signature'}, $hooks[1]{headers}{'webhook-signature'}, 'and a new signature');
ok($hooks[0]{valid} && $hooks[1]{valid}, 'both good');
is($hooks[0]{body}, $hooks[1]{body}, 'for the same body');
my $wait = $hooks[1]{at} - $hooks[0]{at};
ok($wait > 2 && $wait < 10, 'some five seconds later') or diag $wait;
my @attempts;
poll_until { (@attempts = attempts($retry, $id)) == 2 };
is_deeply([ map { [ @$_{qw(attempt http_status delivered given_up)}, defined $_->{next_attempt_at} ] } @attempts ],
	[ [ 1, 503, JSON::PP::false, JSON::PP::false, 1 ], [ 2, 200, JSON::PP::true, JSON::PP::false, '' ] ],
	'both attempts are on record');

#
# Rotation: for a day, both secrets sign
#
$receiver->secret('retry', $node->value("SELECT otp.rotate_webhook_secret($retry)", user => 'app'));
isnt($receiver->{secrets}{retry}[0], $receiver->{secrets}{retry}[1], 'a new secret');
$id = verified;
($hook) = $receiver->hooks(name => 'retry', otp_id => $id, count => 1);
is_deeply($hook->{signed_by}, [ 0, 1 ], 'the old one and the new one sign');
ok(defined $node->value("SELECT previous_secret_until FROM otp.webhook_endpoint_list WHERE endpoint_id = $retry"),
	'which the list shows');
$node->run("UPDATE otp.webhook_endpoints SET previous_until = clock_timestamp() WHERE endpoint_id = $retry");
$id = verified;
($hook) = $receiver->hooks(name => 'retry', otp_id => $id, count => 1);
is_deeply($hook->{signed_by}, [1], 'a day later the new one alone');

#
# Paused, resumed
#
$node->run("SELECT otp.pause_webhook_endpoint($retry)", user => 'app');
my @paused = map { verified } 1 .. 3;
told('all', $paused[2], 3);
is(scalar(grep { my $p = $_; $receiver->hooks(name => 'retry', otp_id => $p) } @paused), 0,
	'a paused endpoint hears nothing');
is($node->value("SELECT waiting FROM otp.webhook_endpoint_list WHERE endpoint_id = $retry"), 3, 'what it is owed waits');
is(scalar $node->rows('SELECT * FROM otp.webhook_deliveries WHERE NOT delivered AND otp_id = ANY (\'{'
		. join(',', @paused) . '}\')'), 0, 'without attempts');
$node->run("SELECT otp.resume_webhook_endpoint($retry)", user => 'app');
ok((told('retry', $_, 1))->{'otp.verified'}{valid}, 'resumed, it hears of all') foreach @paused;

#
# 410: do not come again
#
$receiver->behave('retry', status => 410, times => 1);
$id = verified;
$receiver->hooks(name => 'retry', otp_id => $id, count => 1);
ok( $node->poll_query_until('postgres',
		"SELECT status = 'disabled' FROM otp.webhook_endpoint_list WHERE endpoint_id = $retry"),
	'an endpoint that answers 410 is disabled');
$listed = $node->row("SELECT * FROM otp.webhook_endpoint_list WHERE endpoint_id = $retry");
like($listed->{disabled_reason}, qr/410/, 'which the list explains');
ok(defined $listed->{disabled_at}, 'and dates');
@attempts = attempts($retry, $id);
is("$#attempts $attempts[0]{http_status} $attempts[0]{given_up}", '0 410 1', 'the attempt is the last');
my $missed = verified;
told('all', $missed, 3);
is(scalar $receiver->hooks(name => 'retry', otp_id => $missed), 0, 'it hears nothing');
is($node->error_of("SELECT otp.send_test_webhook($retry)")->{sqlstate}, '55000', 'not even tests');
is($node->value("SELECT waiting FROM otp.webhook_endpoint_list WHERE endpoint_id = $retry"), 0, 'and is owed nothing');
$node->run("SELECT otp.resume_webhook_endpoint($retry)");
my $since = $receiver->last;
my $next = verified;
ok(told('retry', $next, 1)->{'otp.verified'}{valid}, 'enabled again, it hears what happens');

#
# Played again
#
$node->run("SELECT otp.replay_webhooks($retry, now() - interval '1 hour')", user => 'app');
my ($replayed) = $receiver->hooks(name => 'retry', otp_id => $id, since => $since, count => 1);
is($replayed->{headers}{'webhook-id'}, $attempts[0]{webhook_id}, 'what was given up comes again, under its id');
ok($replayed->{valid}, 'well signed');
quiet($retry, 'retry');
is(scalar $receiver->hooks(name => 'retry', otp_id => $paused[0]), 1, 'and only that');
poll_until { (@attempts = attempts($retry, $id)) == 2 };
is("$attempts[1]{attempt} $attempts[1]{delivered}", '2 1', 'as its next attempt');

# All of it
my $before = $receiver->last;
$node->run("SELECT otp.replay_webhooks($retry, now() - interval '1 hour', only_failed => false)");
ok( poll_until {
		my %again = map { $_->{otp_id} => 1 } $receiver->hooks(name => 'retry', since => $before);
		!grep { !$again{$_} } @paused, $id, $next;
	},
	'or everything, when asked for');

#
# Deleted
#
$receiver->behave('some', status => 500);
$id = verified;
$receiver->hooks(name => 'some', otp_id => $id, count => 1);
$node->run("SELECT otp.delete_webhook_endpoint($some)");
ok( $node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.webhook_outbox WHERE endpoint_id = $some"),
	'a deleted endpoint is owed nothing');
$id = verified;
told('all', $id, 3);
is(scalar $receiver->hooks(name => 'some', otp_id => $id), 0, 'and hears nothing');
ok(scalar(attempts($some, $happy)), 'what it was told stays on record');

#
# However the sender ends, what is owed is told, under the same id
#
my %ends = (
	'a killed sender' => sub { kill 'KILL', $_[0] },
	'a terminated sender' => sub { kill 'TERM', $_[0] },
	'an immediate stop' => sub { $node->stop('immediate'); $node->start },
	'a fast stop' => sub { $node->stop('fast'); $node->start });
$receiver->behave('retry', status => 500);
foreach my $end (sort keys %ends)
{
	my $from = $receiver->last;
	my @pending = map { verified } 1 .. 3;
	my %id_of;

	# tried in vain, and once more as the end comes
	$id_of{$_} = ($receiver->hooks(name => 'retry', otp_id => $_, count => 1))[0]{headers}{'webhook-id'} foreach @pending;
	$receiver->behave_well('retry');
	$receiver->behave('retry', hang => \1, times => 1);
	push @pending, verified;
	my ($hung) = $receiver->hooks(name => 'retry', otp_id => $pending[-1], count => 1);
	$id_of{ $pending[-1] } = $hung->{headers}{'webhook-id'};

	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');
	$node->run('UPDATE otp.webhook_outbox SET due_at = clock_timestamp()');
	$ends{$end}->($pid);
	ok( $node->poll_query_until('postgres',
			"SELECT sender_pid IS NOT NULL AND sender_pid <> $pid FROM otp.worker_status()"),
		"after $end another one comes");
	poll_until
	{
		!grep { my $p = $_; 2 > (() = $receiver->hooks(name => 'retry', otp_id => $p, since => $from)) } @pending;
	};
	foreach my $p (@pending)
	{
		my @came = $receiver->hooks(name => 'retry', otp_id => $p, since => $from);
		my %came = map { $_->{headers}{'webhook-id'} => 1 } @came;

		cmp_ok(scalar @came, '>=', 2, 'what was pending is told again');
		is(join(' ', keys %came), $id_of{$p}, 'under the same id');
	}
	ok( $node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM otp.webhook_outbox'), 'and nothing is left');
	$receiver->behave_well('retry');
	$receiver->behave('retry', status => 500);
}
$receiver->behave_well('retry');

#
# Nothing of it is for everybody to read
#
my @secrets = map { @$_ } values %{ $receiver->{secrets} };
my $activity = $node->value('SELECT string_agg(query, E\'\n\') FROM pg_stat_activity');
my $dump = $node->value('SELECT string_agg(e::text, E\'\n\') FROM otp.webhook_endpoints e')
  . $node->value('SELECT string_agg(o::text, E\'\n\') FROM otp.webhook_attempts o');
$node->stop;
my $log = slurp_file($node->logfile);
foreach my $secret (@secrets)
{
	my $raw = $secret =~ s/^whsec_//r;

	ok(index($log, $raw) < 0 && index($activity, $raw) < 0 && index($dump, $raw) < 0, 'no secret is readable');
}
is(scalar(grep { index($log, substr $_, 1) >= 0 } @phones), 0, 'no phone is in the log');
is(scalar(grep { index($dump, substr $_, 1) >= 0 } @phones), 0, 'nor in the tables of webhooks');
is(scalar(grep { $log =~ /(?<![0-9A-Za-z.:-])$_(?![0-9A-Za-z.:-])/ } @codes), 0, 'no code is in the log');
is(scalar(grep { !$_->{valid} } $receiver->hooks), 0, 'every signature was good');

done_testing();
