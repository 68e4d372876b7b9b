# 066_provider_trouble.pl
#	A provider in trouble delays its own messages only.
#
# Slow, hanging, lying, overloaded, garbage-speaking: protects at most one
# repeat where nobody knows whether a message was sent, the provider's word on
# when to come back, the end of trying at the end of a code's life, the
# breaker and its closing, and everybody else's messages meanwhile.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant IN_FLIGHT => 100;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => [ 'otp.max_in_flight = ' . IN_FLIGHT ]);
$node->install;
$node->configure($sim, twilio => { status_callback => 'https://example.com/receipt' });

my $last_phone = 15550000000;

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Send in a workspace; WhatsApp does this with it, so often
sub send_to
{
	my ($workspace, $do, $times, %args) = @_;
	my $phone = phone;

	$sim->behave({
			match => { phone => $phone, api => 'meta' },
			times => $times,
			do => $do })
	  if $do;
	return $node->send($phone, workspace => $workspace, %args);
}

# Give the last message of an id, once it has got somewhere
sub message
{
	my ($id) = @_;
	my $row;

	poll_until
	{
		$row = $node->row(<<"END");
SELECT * FROM otp.messages WHERE verification_id = otp.parse_id('$id') ORDER BY number DESC LIMIT 1
END
		defined $row && (defined $row->{sent_at} || defined $row->{ended_reason});
	};
	return $row // {};
}

# The requests for an id at one API, as times
sub asked
{
	my ($id, $api) = @_;
	return map { $_->{received_us} / 1e6 } grep { $_->{api} eq $api } $sim->log(otp_id => $id);
}

# The breaker of a workspace's WhatsApp
sub breaker
{
	my ($workspace) = @_;
	return $node->value("SELECT breaker FROM otp.providers WHERE account = 'meta_$workspace'");
}

# What a provider can do, always or once
my %troubles = (
	hang => { hang => \1 },
	reset => { reset => 'before' },
	reset_after => { reset => 'after' },
	garbage => { raw => '<html>It works!</html>', status => 200, content_type => 'text/html' },
	huge => { huge_bytes => 4_000_000 },
	empty => { empty_messages => \1 },
	truncated => { truncate => \1 },
	gateway => { raw => '<html>504</html>', status => 504, content_type => 'text/html' });

my @once = map { "once_$_" } grep { $_ ne 'hang' } keys %troubles;
my @always = map { "always_$_" } keys %troubles;
my @fallback = map { "fallback_$_" } keys %troubles;
$node->make_workspaces($sim, @once, @always, @fallback,
	qw(bad_gateway retry_after pair outage expiry hold token slow hanging busy));
$node->wait_for_sender;

#
# Start what takes long first
#
my %id;
foreach my $name (sort keys %troubles)
{
	my $do = $troubles{$name};

	$id{"always_$name"} = send_to("always_$name", $do, 100);
	$id{"fallback_$name"} = send_to("fallback_$name", $do, 100, fallback_sms => 'true');
	$id{"once_$name"} = send_to("once_$name", $do, 1) unless $name eq 'hang';
}
$id{retry_after} = send_to('retry_after', { status => 429, code => 130429, retry_after => 3 }, 1);
$id{pair} = send_to('pair', { code => 131056 }, 1);
$id{bad_gateway} =
  send_to('bad_gateway', { raw => '<html>502</html>', status => 502, content_type => 'text/html' }, 2);

# Pair rate: others at the same account do not wait
poll_until { scalar asked($id{pair}, 'meta') };
my $start = time;
my $other = send_to('pair');
ok(poll_until { scalar asked($other, 'meta') }, 'pair rate limit of a phone: another one is served');
cmp_ok((asked($other, 'meta'))[0] - $start, '<', 3, 'at once');

#
# A user's transaction that holds a verification
#
my $slow = send_to('slow', { delay_ms => 1000 }, 1);
my $user = $node->background_psql('postgres');
$user->query_safe('BEGIN');
$user->query_safe("SELECT * FROM otp_verify('$slow', '000000')");
ok(defined message($slow)->{sent_at}, 'an open transaction with otp_verify holds up no settling');
my $next = send_to('slow');
ok(defined message($next)->{sent_at}, 'nor other messages');
$user->query_safe("SELECT * FROM otp_resend('$slow', 'sms')");
ok(defined message(send_to('slow'))->{sent_at}, 'nor does one with otp_resend');
is(scalar asked($slow, 'twilio'), 0, 'which is not sent before it commits');
$user->query_safe('COMMIT');
$user->quit;
ok(poll_until { asked($slow, 'twilio') == 1 }, 'but then');
is(join(',', map { $_->{code} } grep { $_->{otp_id} eq $slow } $sim->inbox) =~ /^(\d+),\1$/ ? 1 : 0,
	1, 'the same code on the other channel');

#
# A new token
#
$node->call('otp.configure_meta',
	{ account => 'meta_token', workspace => 'token', access_token => 'EAAwrong' });
my $waiting = $node->background_psql('postgres');
$waiting->query_safe('BEGIN');
my @waiting = map {
	$waiting->query_safe("SELECT otp_id FROM otp_send('" . phone . "', workspace => 'token')")
} 1 .. 3;
my $refused = send_to('token');
is(message($refused)->{provider_code}, 190, 'a wrong token is refused');
is(breaker('token'), 'open', 'which shuts the account');
is( $node->error_of("SELECT * FROM otp_send('+15559999999', workspace => 'token')")->{sqlstate},
	'OT503', 'senders are told so');
$waiting->query_safe('COMMIT');
$waiting->quit;
is(message(send_to('token', undef, 0, fallback_sms => 'true'))->{channel},
	'sms', 'and who may use SMS does');
$node->run("SELECT otp_cancel('$waiting[2]')");
$start = time;
$node->call('otp.configure_meta',
	{ account => 'meta_token', workspace => 'token', access_token => $sim->token });
ok(defined message($waiting[0])->{sent_at}, 'with a new token, what waited goes');
ok(defined message($waiting[1])->{sent_at}, 'all of it');
cmp_ok(time - $start, '<', 4, 'at once');
is(breaker('token'), 'closed', 'and the account is in use');
is(scalar asked($waiting[2], 'meta'), 0, 'what was canceled meanwhile does not go');

#
# The end of a code's life
#
$id{expiry} = send_to('expiry', { status => 503, code => 131000 }, 100);
poll_until { scalar asked($id{expiry}, 'meta') };
$node->run(<<"END");
UPDATE otp.verifications SET expires_at = clock_timestamp() WHERE id = otp.parse_id('$id{expiry}');
END
ok( $node->poll_query_until('postgres',
		"SELECT NOT EXISTS (SELECT 1 FROM otp.outbox WHERE id = otp.parse_id('$id{expiry}'))"),
	'nothing is owed any more when a code has expired');
is($node->status($id{expiry})->{status}, 'expired', 'it is expired');
my $tries = asked($id{expiry}, 'meta');

#
# An outage opens the breaker, and its end closes it
#
$sim->behave({ match => { prefix => '+1666', api => 'meta' }, times => 6,
		do => { status => 503, code => 131016 } });
my @outage = split /\n/, $node->run(<<'END');
SELECT s.otp_id FROM generate_series(1, 6) i,
	LATERAL otp_send('+1666' || (1000000 + i), workspace => 'outage') s
END
ok(poll_until { breaker('outage') ne 'closed' }, 'failures in a row open the breaker');
is(scalar(grep { !defined message($_)->{sent_at} } @outage), 0, 'all is sent when it is over');
is(breaker('outage'), 'closed', 'and the breaker closed');

#
# "Come back in an hour"
#
my $hold = { status => 429, code => 130429, retry_after => 3600 };
my $first = send_to('hold', $hold, 1, fallback_sms => 'true');
is(message($first)->{channel}, 'sms', 'who is told to come back in an hour goes by SMS');
my $second = send_to('hold', undef, 0, fallback_sms => 'true');
is(message($second)->{channel}, 'sms', 'and so does the next one');

#
# One request in a hundred hangs: the others do not notice
#
my $since = ($sim->log)[-1]{seq};
$sim->behave({ match => { prefix => '+1777', api => 'meta' }, share => 0.01, do => { hang => \1 } });
$node->run(<<"END");
DO \$\$
BEGIN
	FOR i IN 1 .. 1000 LOOP
		PERFORM otp_send('+1777' || (1000000 + i), workspace => 'hanging');
		IF i % 100 = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
END \$\$;
END
my @log;
poll_until
{
	@log = grep { ($_->{to} // '') =~ /^\+?1777/ } $sim->log(since => $since);
	(grep { $_->{outcome} eq 'accepted' } @log) >= 990;
};
my @arrivals = sort { $a <=> $b } map { $_->{received_us} / 1e6 }
  grep { $_->{outcome} eq 'accepted' } @log;
cmp_ok($arrivals[989] - $arrivals[0], '<', 8,
	'with 1% hanging, the others arrive before the first of these has given up');
note sprintf '990 messages in %.2f s', $arrivals[989] - $arrivals[0];

#
# What was started first
#
foreach my $name (sort keys %troubles)
{
	unless ($name eq 'hang')
	{
		my $m = message($id{"once_$name"});

		ok(defined $m->{sent_at}, "$name, once: is sent");
		is($m->{tries}, 2, 'at the second try');
	}

	my $m = message($id{"always_$name"});
	is(scalar asked($id{"always_$name"}, 'meta'), 2, "$name, always: one repeat, no more");
	is($m->{ended_reason}, 'delivery_failed', 'and it has failed');
	is($m->{tries}, 2, 'after two tries');

	$m = message($id{"fallback_$name"});
	is(scalar asked($id{"fallback_$name"}, 'meta'), 2, "$name, with a fallback: one repeat");
	is($m->{channel}, 'sms', 'then it goes by SMS');
	is(scalar asked($id{"fallback_$name"}, 'twilio'), 1, 'once');
}

ok(defined message($id{bad_gateway})->{sent_at}, '502: is sent');
is(scalar asked($id{bad_gateway}, 'meta'), 3, 'at the third try');
ok(defined message($id{retry_after})->{sent_at}, 'Retry-After: is sent');
my @times = asked($id{retry_after}, 'meta');
cmp_ok($times[1] - $times[0], '>=', 3, 'after that time');
ok(defined message($id{pair})->{sent_at}, 'pair rate: is sent');
@times = asked($id{pair}, 'meta');
cmp_ok($times[1] - $times[0], '>=', 6, 'six seconds later');
is(scalar asked($id{expiry}, 'meta'), $tries, 'expired: no try since');

#
# When all of WhatsApp hangs, SMS does not, nor does another account
#
$node->poll_query_until('postgres', 'SELECT in_flight = 0 FROM otp.worker_status()');
$sim->behave({ match => { prefix => '+1888', api => 'meta' }, do => { hang => \1 } });
my $many = 2 * IN_FLIGHT;
$node->run(<<"END");
SELECT count(s.otp_id) FROM generate_series(1, $many) i,
	LATERAL otp_send('+1888' || (1000000 + i), workspace => 'busy') s
END
poll_until { $sim->counters->{hanging_now} // $sim->counters->{hanging} // 0 };
$start = time;
my $sms = $node->send(phone, workspace => 'busy', channel => 'sms');
my $neighbour = send_to('slow');
poll_until { scalar asked($sms, 'twilio') };
cmp_ok((asked($sms, 'twilio'))[0] - $start, '<', 5, 'when WhatsApp hangs, SMS does not');
poll_until { scalar asked($neighbour, 'meta') };
cmp_ok((asked($neighbour, 'meta'))[0] - $start, '<', 5, 'nor does another account');
$sim->forget_rules;
$sim->release;

#
# What is over before it is sent is not sent
#
my $verified = send_to('slow');
my $code = $sim->code_for($verified);
$node->append_conf('postgresql.conf', 'otp.delivery = off');
$node->reload;
$node->poll_query_until('postgres', 'SELECT NOT delivery FROM otp.worker_status()');
$node->poll_query_until('postgres', 'SELECT in_flight = 0 FROM otp.worker_status()');
my $canceled = send_to('slow');
my $guessed = send_to('slow');
my $fine = send_to('slow');
$node->resend($verified);
is($node->verify($verified, $code)->{valid}, 1, 'verified with another message queued');
$node->cancel($canceled);
$node->verify($guessed, 'x' . $_) foreach 1 .. 3;
$node->poll_query_until('postgres',
	"SELECT attempts = 3 FROM otp.verifications WHERE id = otp.parse_id('$guessed')");
$node->append_conf('postgresql.conf', 'otp.delivery = on');
$node->reload;
ok(defined message($fine)->{sent_at}, 'what is alive is sent');
$node->wait_until_sent;
is(scalar asked($verified, 'meta'), 1, 'verified before the resend: not sent');
is(scalar asked($canceled, 'meta'), 0, 'canceled before: not sent');
is(scalar asked($guessed, 'meta'), 0, 'out of attempts before: not sent');

$node->stop;
done_testing();
