# 220_http_send.pl
#	A send over HTTP is answered when it is known what has come of it.
#
# Protects: message_id, channel and the errors tell what the provider has said;
# otp.http_send_wait is the longest wait; a wait outlives its sender; many wait
# for one code; what ends a verification ends the waits for it, whether or not
# somebody tells of it; a reload and a stop have who waits answered at once;
# after kill -9 of the listener nothing is lost, and the code goes out once.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Requests;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant SEND => '/v1/whatsapp/otp/send';

# Waits that are to end by themselves have a database of their own
my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } qw(postgres short none);
my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'main',
	conf => [
		'restart_after_crash = on',
		"otp.http_port = $port{postgres}",
		"otp.http_send_wait = '30s'" ]);

my (%key, %http);
foreach my $dbname (qw(postgres short none))
{
	if ($dbname ne 'postgres')
	{
		my $wait = $dbname eq 'short' ? '300ms' : '0';

		$node->run("CREATE DATABASE $dbname");
		$node->run("ALTER DATABASE $dbname SET otp.http_port = $port{$dbname};"
			  . "ALTER DATABASE $dbname SET otp.http_send_wait = '$wait'");
	}
	$node->install(dbname => $dbname);
	$node->configure($sim, dbname => $dbname, twilio => { status_callback => 'https://example.com/receipt' });
	$node->lift_limits(dbname => $dbname);
	$key{$dbname} =
	  $node->call('otp.create_api_key', { workspace => 'default', name => 'test' }, dbname => $dbname)->{api_key};
	$http{$dbname} = OTP::Requests->new(port => $port{$dbname}, key => $key{$dbname});
	wait_for_listener($dbname);
}
my $http = $http{postgres};

my $last_phone = 15550000000;

# Wait until somebody answers
sub wait_for_listener
{
	my ($dbname) = @_;
	my $r;

	return poll_until
	{
		$r = $http{$dbname}->request(GET => '/v1/rate-limits');
		$http{$dbname}->until(sub { $r->{done} });
		($r->{status} // 0) == 200;
	}
	|| BAIL_OUT("no listener in $dbname");
}

# Give a phone that was not used before, with which WhatsApp does this, so often
sub phone
{
	my ($do, %rule) = @_;
	my $phone = '+' . ++$last_phone;

	$sim->behave({ match => { phone => $phone, api => 'meta' }, do => $do, %rule }) if $do;
	return $phone;
}

# Begin to send; give the request, and its id as soon as the code is written down
sub begin_send
{
	my ($phone, $args, %headers) = @_;
	my $r = $http->post(SEND, { phone => $phone, %{ $args // {} } }, %headers);
	my $id;

	$http->until(sub { ($id) = ids_of($phone) }) or BAIL_OUT('nothing was sent');
	return ($r, $id);
}

# The ids of a phone
sub ids_of
{
	my ($phone, %where) = @_;
	return split /\n/,
	  $node->value("SELECT otp.format_id(id) FROM otp.verifications WHERE phone = '$phone' ORDER BY id", %where);
}

# Wait for the answer
sub answer
{
	my ($r, $from) = @_;
	($from // $http)->until(sub { $r->{done} }) or BAIL_OUT('no answer');
	return $r->{json} // {};
}

# How many hang at the provider
sub wait_for_hanging
{
	my ($count) = @_;
	return $http->until(sub { $sim->counters->{hanging_now} == $count });
}

# How many wait; the work goes on meanwhile
sub not_answered
{
	my ($name, @requests) = @_;

	$http->look(0.05) foreach 1 .. 4;
	is(scalar(grep { $_->{done} } @requests), 0, $name);
	return;
}

#
# Taken by the provider
#
my $phone = phone({ delay_ms => 300 });
my $r = $http->ask(POST => SEND, { phone => $phone, expires_in => 120 });
is($r->{status}, 200, 'sent');
my ($message) = $sim->inbox($phone);
ok(defined $message, 'it is there when the answer is');
is_deeply(
	[ sort keys %{ $r->{json} } ],
	[ sort qw(success otp_id channel phone expires_at expires_in message_id) ],
	'the fields of the reference');
is($r->{json}{otp_id}, $message->{otp_id}, 'its id');
is($r->{json}{message_id}, $node->status($message->{otp_id})->{message_id}, 'message_id is what the provider has given');
like($r->{json}{message_id}, qr/^wamid\./, 'and no made-up one');
is($r->{json}{channel}, 'whatsapp', 'channel');
is($r->{json}{phone}, $phone, 'phone');
is($r->{json}{expires_in}, 120, 'expires_in');
like($r->{json}{expires_at}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/, 'expires_at');
ok($r->{json}{success}, 'success');
like($r->{headers}{'x-ratelimit-remaining'} // '', qr/^\d+$/, 'X-RateLimit-Remaining is with an answer that came late');
like($r->{headers}{'x-ratelimit-reset'} // '', qr/^\d+$/, 'and X-RateLimit-Reset');

#
# By SMS, after WhatsApp has refused
#
$phone = phone({ code => 131026 });
$r = $http->ask(POST => SEND, { phone => $phone, fallback_sms => \1 });
is($r->{status}, 200, 'with a fallback: sent');
is($r->{json}{channel}, 'sms', 'the fallback was used');
is($r->{json}{message_id}, $node->status($r->{json}{otp_id})->{message_id}, 'message_id is that of the SMS');
like($r->{json}{message_id}, qr/^SM/, 'a Twilio one');

#
# Failed for good
#
$r = $http->ask(POST => SEND, { phone => phone({ code => 131026 }) });
is($r->{status}, 424, 'not on WhatsApp: 424');
is($r->{json}{error}{code}, 'otp_failed', 'otp_failed');
is($node->status($r->{json}{error}{otp_id})->{status}, 'failed', 'its otp_id is told');
like($r->{json}{error}{hint}, qr/131026/, 'and what the provider has said');
is($r->{headers}{'retry-after'}, undef, 'trying again is of no use');

$r = $http->ask(POST => SEND, { phone => phone({ code => 132001, status => 404 }) });
is($r->{status}, 400, 'no such template: 400');
is($r->{json}{error}{code}, 'template_not_found', 'template_not_found');
like($r->{json}{error}{otp_id}, qr/^otp_/, 'its otp_id is told');

$node->make_workspaces($sim, 'shut');
my $shut = $node->call('otp.create_api_key', { workspace => 'shut', name => 'test' })->{api_key};
$phone = phone({ code => 190, status => 401 });
$r = $http->ask(POST => SEND, { phone => $phone }, key => $shut);
is($r->{status}, 503, 'the account is refused: 503');
is($r->{json}{error}{code}, 'meta_api_unavailable', 'meta_api_unavailable');
is($node->status($r->{json}{error}{otp_id})->{error}, 'provider_unavailable', 'its otp_id is told');
cmp_ok($r->{headers}{'retry-after'} // 0, '>', 0, 'with Retry-After');
is($r->{headers}{'retry-after'}, $r->{json}{error}{retry_after}, 'the same in the body');
$phone = phone();
$r = $http->ask(POST => SEND, { phone => $phone }, key => $shut);
is($r->{status}, 503, 'who sends next is told at once');
is(scalar(grep { ($_->{to} // '') =~ /^\Q$phone\E$/ || "+$_->{to}" eq $phone } $sim->log), 0, 'without asking the provider');

#
# Nobody looks again and again: news comes. A look that needs no news comes a second after the last one
#
my $start = time;
my $count = 30;
my @row = map { $http->ask(POST => SEND, { phone => phone() }) } 1 .. $count;
is(scalar(grep { ($_->{json}{message_id} // '') =~ /^wamid/ } @row), $count, 'one after the other');
cmp_ok(time - $start, '<', $count / 2, 'none waits for the look that is there in case that news was lost');

#
# PostgREST's way waits, too
#
$r = $http->ask(POST => '/rpc/otp_send', { phone => phone({ delay_ms => 200 }) });
is($r->{status}, 200, '/rpc: sent');
like($r->{json}{message_id}, qr/^wamid\./, 'with message_id');
$r = $http->ask(POST => '/rpc/otp_send', { phone => phone({ code => 131026 }) });
is($r->{status}, 424, '/rpc: failed');
is($r->{json}{code}, 'otp_failed', 'an error as PostgREST has them');
ok(exists $r->{json}{details} && !defined $r->{json}{details}, 'with details');
like($r->{json}{otp_id}, qr/^otp_/, 'and the otp_id');

#
# Sent once more
#
$phone = phone();
my $first = $http->ask(POST => SEND, { phone => $phone })->{json};
$sim->behave({ match => { phone => $phone }, do => { delay_ms => 300 } });
$r = $http->ask(POST => "/v1/whatsapp/otp/$first->{otp_id}/resend", { channel => 'sms' });
is($r->{status}, 200, 'resend: sent');
like($r->{json}{message_id}, qr/^SM/, 'message_id is that of the second message');
is($r->{json}{channel}, 'sms', 'and so is the channel');
is($r->{json}{expires_at}, $first->{expires_at}, 'it expires when it would have');
$sim->behave({ match => { phone => $phone, api => 'meta' }, do => { code => 131026 } });
$r = $http->ask(POST => "/v1/whatsapp/otp/$first->{otp_id}/resend", { channel => 'whatsapp' });
is($r->{status}, 424, 'a resend that fails while the first message stands: 424');
is($node->status($first->{otp_id})->{status}, 'pending', 'the code is still good');

#
# Many wait for one
#
$phone = phone({ hang => \1 }, times => 1);
my %same = ('Idempotency-Key' => 'one for all');
my @many = map { $http->post(SEND, { phone => $phone }, %same) } 1 .. 50;
$http->until(sub { ids_of($phone) });
wait_for_hanging(1);
not_answered('many requests with one Idempotency-Key wait', @many);
my $rpc = $http->post('/rpc/otp_send', { phone => $phone }, %same);
$http->look(0.05) foreach 1 .. 4;
$sim->release;
my %seen;
$seen{ answer($_)->{message_id} }++ foreach @many;
is(scalar(keys %seen), 1, 'they hear of the same message');
is((values %seen)[0], 50, 'all of them');
like((keys %seen)[0], qr/^wamid\./, 'which is there');
is_deeply([ ids_of($phone) ], [ $many[0]{json}{otp_id} ], 'of the one code');
is(answer($rpc)->{message_id}, (keys %seen)[0], 'so does one of another form');
$r = $http->ask(POST => SEND, { phone => $phone }, %same);
is($r->{json}{message_id}, (keys %seen)[0], 'who asks afterwards is told what came of it');
is(scalar $sim->inbox($phone), 1, 'it was sent once');

#
# What ends a verification ends the wait
#
my %waiting;
$phone = phone({ hang => \1 });
@{ $waiting{canceled} } = begin_send($phone);
@{ $waiting{expired} } = begin_send(phone({ hang => \1 }));
@{ $waiting{guessed} } = begin_send(phone({ hang => \1 }));
@{ $waiting{left} } = begin_send(phone({ hang => \1 }, times => 1));
wait_for_hanging(4);
not_answered('while the provider hangs, the requests wait', map { $_->[0] } values %waiting);
is($node->cancel($waiting{canceled}[1]), 1, 'canceled');
$r = $waiting{canceled}[0];
is(answer($r)->{error}{code}, 'otp_canceled', 'its wait is over');
is($r->{status}, 409, 'with 409');
is($r->{json}{error}{otp_id}, $waiting{canceled}[1], 'its otp_id is told');

# Nobody tells of that before the sender gives up waiting: it has to be looked for
$node->run("UPDATE otp.verifications SET expires_at = clock_timestamp()"
	  . " WHERE id = otp.parse_id('$waiting{expired}[1]')");
$r = $waiting{expired}[0];
is(answer($r)->{error}{code}, 'otp_expired', 'expired: its wait is over');
is($r->{status}, 410, 'with 410');
is($sim->counters->{hanging_now}, 4, 'while the provider hangs still');
$http->ask(POST => '/v1/whatsapp/otp/verify', { otp_id => $waiting{guessed}[1], code => $_ }) foreach qw(1 2 3);
$r = $waiting{guessed}[0];
is(answer($r)->{error}{code}, 'otp_failed', 'no attempt left: its wait is over');
is($r->{status}, 424, 'with 424');

#
# Who leaves
#
$http->close($waiting{left}[0]);
$sim->release;
poll_until { defined $node->status($waiting{left}[1])->{message_id} };
is(scalar(grep { ($_->{otp_id} // '') eq $waiting{left}[1] } $sim->inbox), 1,
	'a request whose client has gone is sent all the same');
$sim->forget_rules;

#
# The longest wait
#
$phone = phone({ hang => \1 }, times => 1);
$r = $http{short}->ask(POST => SEND, { phone => $phone });
is($r->{status}, 200, 'a provider that hangs for longer than otp.http_send_wait: 200');
ok(exists $r->{json}{message_id} && !defined $r->{json}{message_id}, 'without message_id');
is($r->{json}{channel}, 'whatsapp', 'and with the channel that was asked for');
is($sim->counters->{hanging_now}, 1, 'it hangs still');
is($node->status($r->{json}{otp_id}, dbname => 'short')->{status}, 'pending', 'it is on its way');
$sim->release;
ok( poll_until { defined $node->status($r->{json}{otp_id}, dbname => 'short')->{message_id} },
	'and is sent later');
$phone = phone({ hang => \1 }, times => 1);
$r = $http{none}->ask(POST => SEND, { phone => $phone });
is($r->{status}, 200, 'with otp.http_send_wait = 0: 200');
ok(exists $r->{json}{message_id} && !defined $r->{json}{message_id}, 'without message_id');
ok( poll_until { $sim->counters->{hanging_now} == 1 }, 'the provider is only being asked');
$sim->release;

#
# Senders come and go
#
my ($wait, $id) = begin_send(phone({ hang => \1 }, times => 1));
wait_for_hanging(1);
my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');
$node->run("SELECT pg_terminate_backend($pid)");
$node->poll_query_until('postgres', "SELECT sender_pid <> $pid FROM otp.worker_status()");
like(answer($wait)->{message_id}, qr/^wamid\./, 'a wait outlives its sender: the next one tells');
is(scalar(grep { ($_->{otp_id} // '') eq $id } $sim->inbox), 1, 'it was sent once');

#
# A reload
#
my @requests = map { [ begin_send(phone({ hang => \1 }, times => 1)) ] } 1 .. 3;
wait_for_hanging(3);
$node->append_conf('postgresql.conf', 'otp.http_max_body = 32');
$node->reload;
foreach my $request (@requests)
{
	$r = $request->[0];
	is(answer($r)->{otp_id}, $request->[1], 'a reload that changes the listener: who waits is answered');
	ok($r->{status} == 200 && !defined $r->{json}{message_id}, 'by what is known');
}
is($sim->counters->{hanging_now}, 3, 'before the provider says anything');
$sim->release;
wait_for_listener('postgres');
foreach my $request (@requests)
{
	poll_until { defined $node->status($request->[1])->{message_id} };
	is(scalar(grep { ($_->{otp_id} // '') eq $request->[1] } $sim->inbox), 1, 'the code goes out once');
}

#
# kill -9
#
%same = ('Idempotency-Key' => 'before and after');
$phone = phone({ hang => \1 }, times => 1);
($wait, $id) = begin_send($phone, {}, %same);
wait_for_hanging(1);
$pid = $node->value("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'otp listener%' AND datname = 'postgres'");
kill 'KILL', $pid;
$http->until(sub { $wait->{done} });
ok($wait->{closed}, 'kill -9 of the listener: the connection is closed');
# psql may go before it has read what it is to do
ok( poll_until { eval { ($node->psql('postgres', 'SELECT'))[0] == 0 } }, 'the server comes back');
wait_for_listener('postgres');
$r = $http->ask(POST => SEND, { phone => $phone }, %same);
is($r->{json}{otp_id}, $id, 'who asks again with the same Idempotency-Key gets the same code');
like($r->{json}{message_id}, qr/^wamid\./, 'which is sent');
is(scalar $sim->inbox($phone), 1, 'once');

#
# A stop
#
@requests = map { [ begin_send(phone({ hang => \1 }, times => 1)) ] } 1 .. 3;
wait_for_hanging(3);
my $stop = fork() // die "fork: $!";
if ($stop == 0)
{
	local $SIG{__DIE__} = 'DEFAULT';
	exec 'pg_ctl', '-D', $node->data_dir, '-m', 'fast', '-W', '-s', 'stop' or POSIX::_exit(1);
}
waitpid $stop, 0;
foreach my $request (@requests)
{
	$r = $request->[0];
	is(answer($r)->{otp_id}, $request->[1], 'a stop: who waits is answered');
}
$sim->release;
$node->stop;
done_testing();
