# 111_webhook_receivers.pl
#	A receiver in trouble delays its own webhooks only, and none can lead us astray.
#
# Slow, hanging, dead, flapping, redirecting, answering without end, asking
# for patience, at private addresses, without a good certificate: protects
# codes and other endpoints from each of them, and everybody's network from
# whoever may create an endpoint. Protects as well the end of trying, and that
# an expiry is told within two seconds.

use strict;
use warnings;

use IO::Socket::INET;
use OTP::Cluster;
use OTP::Receiver;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Certificates: of an authority that we know, and of one that we don't
my $dir = PostgreSQL::Test::Utils::tempdir();
foreach my $name (qw(ours theirs))
{
	my @command = (qw(openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj), "/CN=$name",
		'-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', "$dir/$name.key", '-out', "$dir/$name.crt");
	my ($out, $said);

	IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$said) or BAIL_OUT("openssl: $said");
}

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'main',
	conf => [ 'otp.allow_private_webhooks = on', "otp.ca_file = '$dir/ours.crt'" ]);
$node->install;
my $receiver = OTP::Receiver->start($node);
$receiver->attach($sim);
$node->configure($sim, twilio => { status_callback => $receiver->twilio_url });
$node->share_accounts('tls', 'private', 'deadline');
$node->run("ALTER ROLE CURRENT_USER SET otp.workspace = 'default'");
$node->lift_limits;
$node->wait_for_sender;

my $last_phone = 15550111000;

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Send one and verify it
sub verified
{
	my (%args) = @_;
	my $id = $node->send(phone, %args);

	$node->verify($id, $sim->code_for($id));
	return $id;
}

# The attempts at an endpoint, once there are so many
sub attempts
{
	my ($endpoint, $count) = @_;
	my @attempts;

	poll_until
	{
		@attempts = $node->rows(
			"SELECT * FROM otp.webhook_deliveries WHERE endpoint_id = $endpoint ORDER BY attempted_at, attempt");
		@attempts >= $count;
	};
	return @attempts;
}

# Wait for a new sender
sub new_sender
{
	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');

	$node->run("SELECT pg_terminate_backend($pid)");
	$node->poll_query_until('postgres',
		"SELECT sender_pid IS NOT NULL AND sender_pid <> $pid FROM otp.worker_status()");
	return;
}

# Set a parameter of the server
sub set
{
	my ($name, $value) = @_;

	$node->append_conf('postgresql.conf', "$name = $value");
	$node->reload;
	$node->poll_query_until('postgres', "SELECT current_setting('$name') = '$value'");
	return;
}

# A code that will expire in a minute, while all this goes on
$receiver->endpoint('deadline', workspace => 'deadline', events => ['otp.expired']);
my $expiring = $node->send(phone, workspace => 'deadline', expires_in => 60, row => 1);

#
# Endpoints of all kinds hear of the same events
#
my $closed = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1');
my $dead_url = 'http://127.0.0.1:' . $closed->sockport . '/';
close $closed;
my %endpoint;
foreach my $name (qw(good slow hanging dead flapping resetting redirecting huge patient))
{
	$endpoint{$name} = $receiver->endpoint($name, events => ['otp.verified'],
		$name eq 'dead' ? (url => $dead_url) : ());
}
$receiver->behave('slow', delay_ms => 3000);
$receiver->behave('hanging', hang => \1);
$receiver->behave('flapping', status => 500, times => 2);
$receiver->behave('resetting', reset => \1);
$receiver->behave('redirecting', redirect_to => $receiver->url('elsewhere'));
$receiver->behave('huge', huge_bytes => 10_000_000);
$receiver->behave('patient', status => 429, retry_after => 3600);

my $since = ($sim->log)[-1]{seq};
my @verified = map { verified } 1 .. 20;
my %told = map { $_->{otp_id} => $_ } $receiver->hooks(name => 'good', count => 20);
is(scalar(grep { $told{$_} && $told{$_}{valid} } @verified), 20, 'a good endpoint hears of everything');

# How long after it was verified a webhook came, at worst
sub worst
{
	my ($name, @ids) = @_;
	my %when = map { $_->{otp_id} => $_->{epoch} } $node->rows(<<'END');
SELECT otp.format_id(id) AS otp_id, extract(epoch FROM verified_at)::float8 AS epoch
FROM otp.verifications WHERE verified_at IS NOT NULL
END
	my %at = map { $_->{otp_id} => $_->{at} } reverse $receiver->hooks(name => $name);
	my ($worst) = sort { $b <=> $a } map { $at{$_} - $when{$_} } @ids;
	return $worst;
}
cmp_ok(worst('good', @verified), '<', 2, 'at once');
note sprintf 'at worst after %.0f ms', 1000 * worst('good', @verified);

# A whole crowd of events, with eight requests at each of the bad ones
$node->run('ALTER ROLE CURRENT_USER RESET otp.workspace');
$node->run(<<'END');
CREATE FUNCTION send_many(n int, base bigint, workspace text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT s.otp_id FROM generate_series(1, n) i,
		LATERAL otp_send('+' || (base + i), workspace => send_many.workspace) s;
END $$;
END
$node->run("ALTER ROLE CURRENT_USER SET otp.workspace = 'default'");
my @many = split /\n/, $node->run("SELECT send_many(200, 15551110000, 'default')");
my %code;
poll_until
{
	%code = map { $_->{otp_id} => $_->{code} } $sim->inbox;
	!grep { !$code{$_} } @many;
};
$node->run(join "\n", map { "SELECT FROM otp_verify('$_', '$code{$_}');" } @many);
my $marker = verified;
$receiver->hooks(name => 'good', otp_id => $marker, count => 1);
poll_until { 221 <= (() = $receiver->hooks(name => 'good')) };
cmp_ok(worst('good', @many, $marker), '<', 5, 'a crowd of events goes to the good one while the others fail');
note sprintf 'at worst after %.0f ms', 1000 * worst('good', @many, $marker);

# Codes meanwhile
my @send = $node->rows(<<"END");
SELECT s.otp_id, extract(epoch FROM clock_timestamp())::float8 AS epoch
FROM generate_series(1, 20) i, LATERAL otp_send('+' || (15551120000 + i)) s
END
my %arrived;
poll_until
{
	%arrived = map { $_->{otp_id} => $_->{received_us} / 1e6 } grep { defined $_->{otp_id} } $sim->log;
	!grep { !$arrived{ $_->{otp_id} } } @send;
};
my ($latest) = sort { $b <=> $a } map { $arrived{ $_->{otp_id} } - $_->{epoch} } @send;
cmp_ok($latest, '<', 2, 'and codes arrive at once');

# What came of them
my @attempts = attempts($endpoint{redirecting}, 1);
is("$attempts[0]{http_status} $attempts[0]{error}", '302 HTTP status 302: redirects are not followed',
	'a redirect is a failure');
is(scalar $receiver->hooks(name => 'elsewhere'), 0, 'and not followed');

@attempts = attempts($endpoint{huge}, 10);
is(scalar(grep { !$_->{delivered} } @attempts), 0, 'an answer of 10 MB is a yes');
my ($huge) = $receiver->hooks(name => 'huge');
ok(!$huge->{answered}, 'which we do not listen to to the end');
my $rss = $node->value('SELECT sender_pid FROM otp.worker_status()');
($rss) = slurp_file("/proc/$rss/status") =~ /^RssAnon:\s+(\d+) kB/m;
cmp_ok($rss, '<', 60_000, 'nor keep');

@attempts = attempts($endpoint{dead}, 1);
ok(!defined $attempts[0]{http_status} && defined $attempts[0]{error}, 'nobody at home is a failure');
note $attempts[0]{error};
@attempts = attempts($endpoint{resetting}, 1);
ok(!defined $attempts[0]{http_status} && defined $attempts[0]{error}, 'a reset is one, too');
note $attempts[0]{error};
ok( $node->value(
		"SELECT failing_since IS NOT NULL FROM otp.webhook_endpoint_list WHERE endpoint_id = $endpoint{dead}") eq 't'
	  || $node->poll_query_until('postgres',
		"SELECT failing_since IS NOT NULL FROM otp.webhook_endpoint_list WHERE endpoint_id = $endpoint{dead}"),
	'the list shows since when');

# Busy for an hour: nothing comes before
@attempts = attempts($endpoint{patient}, 1);
ok( $node->value(
		"SELECT min(next_attempt_at - attempted_at) > interval '59 min' FROM otp.webhook_deliveries"
		  . " WHERE endpoint_id = $endpoint{patient}") eq 't',
	'Retry-After is heeded');
cmp_ok(scalar $receiver->hooks(name => 'patient'), '<=', 8, 'by what was not tried yet as well');

# A hanging one has eight of ours at most
my $hanging = () = $receiver->hooks(name => 'hanging');
cmp_ok($hanging, '<=', 8, 'a hanging endpoint holds up eight requests at most');
cmp_ok($hanging, '>', 0, 'but some');

# Has one said yes to all of these?
sub has_all
{
	my ($name, @ids) = @_;
	my %yes = map { $_->{otp_id} => 1 } grep { ($_->{status} // 0) == 200 } $receiver->hooks(name => $name);
	return !grep { !$yes{$_} } @ids;
}

# The slow and the flapping one get everything in the end
ok(poll_until { has_all('flapping', @verified, @many) }, 'a flapping endpoint gets everything in the end');
$receiver->behave_well('slow');
$receiver->behave('slow', delay_ms => 300);
ok(poll_until { has_all('slow', @verified, @many) }, 'and so does a slow one');

# Deleted in the middle of it all
$node->run("SELECT otp.delete_webhook_endpoint($endpoint{$_})")
  foreach qw(resetting redirecting huge slow flapping);

# A stop waits for nobody
my $start = time;
$node->restart;
cmp_ok(time - $start, '<', 12, 'a stop does not wait for a hanging endpoint');
$node->wait_for_sender;

#
# The end of trying
#
$node->run("SELECT otp.delete_webhook_endpoint($endpoint{$_})") foreach qw(hanging patient);
ok( $node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.webhook_outbox WHERE endpoint_id <> $endpoint{dead}"),
	'nothing is left but for the dead one');
my ($last) = $node->rows("SELECT otp.format_id(verification_id) AS otp_id FROM otp.webhook_outbox ORDER BY id LIMIT 1");
$node->run(<<"END");
DELETE FROM otp.webhook_outbox WHERE verification_id <> otp.parse_id('$last->{otp_id}');
UPDATE otp.webhook_outbox SET tries = 9, due_at = clock_timestamp();
END
new_sender;
ok( $node->poll_query_until('postgres',
		"SELECT bool_or(given_up) FROM otp.webhook_deliveries WHERE endpoint_id = $endpoint{dead} AND otp_id = '$last->{otp_id}'"),
	'after three days, a webhook is given up');
is($node->value('SELECT count(*) FROM otp.webhook_outbox'), 0, 'and is not owed any more');
$node->run("SELECT otp.replay_webhooks($endpoint{dead}, now() - interval '1 hour')");
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM otp.webhook_outbox WHERE verification_id = otp.parse_id('$last->{otp_id}')"),
	'until it is played again');

# Five days without a yes
$node->run(<<"END");
UPDATE otp.webhook_endpoints SET failing_since = clock_timestamp() - interval '6 days'
	WHERE endpoint_id = $endpoint{dead};
UPDATE otp.webhook_outbox SET due_at = clock_timestamp();
END
new_sender;
ok( $node->poll_query_until('postgres',
		"SELECT status = 'disabled' FROM otp.webhook_endpoint_list WHERE endpoint_id = $endpoint{dead}"),
	'after five days, an endpoint is disabled');
like( $node->value("SELECT disabled_reason FROM otp.webhook_endpoint_list WHERE endpoint_id = $endpoint{dead}"),
	qr/five days/, 'which the list explains');
ok( $node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM otp.webhook_outbox'), 'and is owed nothing');

# One in good health again is not disabled for what was long ago
$receiver->behave('good', status => 500, times => 1);
$node->run(<<"END");
UPDATE otp.webhook_endpoints SET failing_since = clock_timestamp() - interval '4 days'
	WHERE endpoint_id = $endpoint{good};
END
my $recovered = verified;
$receiver->hooks(name => 'good', otp_id => $recovered, count => 2);
ok( $node->poll_query_until('postgres',
		"SELECT failing_since IS NULL FROM otp.webhook_endpoint_list WHERE endpoint_id = $endpoint{good}"),
	'one yes, and an endpoint is in good health');

#
# TLS
#
my %tls = map {
	$_ => OTP::Receiver->start($node, tls_cert => "$dir/$_.crt", tls_key => "$dir/$_.key")
} qw(ours theirs);
my $trusted = $tls{ours}->endpoint('tls', workspace => 'tls', events => ['otp.verified']);
my $untrusted = $tls{theirs}->endpoint('tls', workspace => 'tls', events => ['otp.verified']);
my $id = verified(workspace => 'tls');
my ($hook) = $tls{ours}->hooks(name => 'tls', otp_id => $id, count => 1);
ok($hook->{valid}, 'webhooks go over TLS');
@attempts = attempts($untrusted, 1);
ok(!$attempts[0]{delivered} && !defined $attempts[0]{http_status}, 'but not to whom nobody vouches for');
note $attempts[0]{error};
is(scalar $tls{theirs}->hooks, 0, 'who does not get one byte');

#
# Private addresses
#
my $port = $receiver->port;
my %early = map {
	$_ => $receiver->endpoint("private_$_", workspace => 'private', url => "http://$_:$port/hook/private")
} qw(127.0.0.1 localhost);
set('otp.allow_private_webhooks', 'off');
foreach my $host (
	qw(localhost 127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 198.18.0.1
	224.0.0.1 255.255.255.255 127.1 2130706433 0x7f000001 0177.0.0.1 [::1] [::] [::ffff:127.0.0.1] [::ffff:a00:1]
	[fd00::1] [fe80::1] [ff02::1] [64:ff9b::7f00:1] [2002:7f00:1::]))
{
	my $e = $node->error_of(
		"SELECT * FROM otp.create_webhook_endpoint('http://$host:$port/hook/private', workspace => 'private')");
	is($e->{sqlstate} // 'created', '22023', "$host is refused") or next;
	like($e->{hint}, qr/private or reserved/, 'with the reason');
}
foreach my $url ("ftp://example.com/", "file:///etc/passwd", "http://user:secret\@example.com/", 'example.com', '',
	"https://example.com/#x", "https://?x", "https://exa mple.com/", "http://example.com:70000/")
{
	my $e = $node->error_of(
		'SELECT * FROM otp.create_webhook_endpoint(' . OTP::Cluster::quote($url) . ", workspace => 'private')");
	is($e->{sqlstate} // 'created', '22023', "\"$url\" is refused");
}
is( $node->error_of("SELECT * FROM otp.create_webhook_endpoint('https://example.com/', '{otp.sent,otp.read}', workspace => 'private')")
	  ->{sqlstate}, '22023', 'and an event that there is not');

# What a name leads to can change: what counts is the address that is connected to
foreach my $host (sort keys %early)
{
	$node->run("SELECT otp.send_test_webhook($early{$host})");
	@attempts = attempts($early{$host}, 1);
	ok(!defined $attempts[0]{http_status}, "$host: no request is made");
	like($attempts[0]{error}, qr/private or reserved/, 'to a private address');
}
is(scalar $receiver->hooks(name => 'private'), 0, 'and nothing arrives');
set('otp.allow_private_webhooks', 'on');
my $test = $node->value("SELECT otp.send_test_webhook($early{localhost})");
$receiver->hooks(name => 'private', count => 1);
ok((grep { $_->{headers}{'webhook-id'} eq $test } $receiver->hooks(name => 'private')), 'until it is allowed');

#
# A code that has expired meanwhile
#
my ($expired) = $receiver->hooks(name => 'deadline', count => 1);
is($expired->{otp_id}, $expiring->{otp_id}, 'an expiry is told');
my $late = $expired->{at} - $node->value("SELECT extract(epoch FROM '$expiring->{expires_at}'::timestamptz)");
ok($late >= 0 && $late < 2, 'within two seconds') or diag $late;

$node->stop;
done_testing();
