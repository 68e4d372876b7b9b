# 200_listener.pl
#	Where the HTTP API listens, and for how long.
#
# Protects: it is off unless a port is set, for the server or for a database; a
# port that is somebody else's is said and tried again; no two databases share
# one; a listener makes way for DROP, RENAME and the extension's end; what dies
# comes back, and no answered send is lost with it.

use strict;
use warnings;

use IO::Socket::INET;
use OTP::Cluster;
use OTP::Requests;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = OTP::Cluster->start(
	'main',
	conf => [ 'restart_after_crash = on', "otp.http_listen_addresses = '127.0.0.1'", 'max_worker_processes = 16' ]);
my ($port, $other_port) = map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 2;
my $phone = '+15550200001';
my %key;

# Make a database with the extension, a test number and a key
sub database
{
	my ($dbname) = @_;

	$node->run("CREATE DATABASE $dbname") if $dbname ne 'postgres';
	$node->install(dbname => $dbname);
	$node->run("SELECT otp.set_test_number('$phone', '123456')", dbname => $dbname);
	$key{$dbname} = $node->value("SELECT api_key FROM otp.create_api_key('default', 'test')", dbname => $dbname);
	return;
}

# The pids of a database's listeners
sub listeners
{
	my ($dbname) = @_;

	return split ' ', $node->value("SELECT coalesce(string_agg(pid::text, ' ' ORDER BY pid), '') FROM pg_stat_activity"
		  . " WHERE backend_type = 'otp listener' AND datname = '$dbname'");
}

# Ask for a status at a port; 0 when nobody listens
sub status_at
{
	my ($at, $dbname) = @_;
	my $http = OTP::Requests->new(port => $at, key => $key{$dbname});
	my $r = $http->request(GET => '/v1/rate-limits');

	$http->until(sub { $r->{done} });
	return $r->{status} // 0;
}

# Wait for a line of the log behind a place; gives the new end
sub logged
{
	my ($pattern, $from) = @_;
	my $log;

	ok( poll_until { $log = slurp_file($node->logfile, $from); $log =~ $pattern }, "the log says $pattern");
	return;
}

# Off and on
database('postgres');
$node->wait_for_sender;
is(scalar listeners('postgres'), 0, 'nobody listens unless told to');
$node->run("ALTER DATABASE postgres SET otp.http_port = $port");
ok( poll_until { status_at($port, 'postgres') == 200 }, 'ALTER DATABASE switches it on');
$node->run('ALTER DATABASE postgres RESET otp.http_port');
ok( poll_until { listeners('postgres') == 0 && status_at($port, 'postgres') == 0 }, 'and off');
$node->run("ALTER SYSTEM SET otp.http_port = $port");
$node->reload;
ok( poll_until { status_at($port, 'postgres') == 200 }, 'the configuration switches it on, too');
$node->run('ALTER DATABASE postgres SET otp.http_workers = 2');
ok( poll_until { listeners('postgres') == 2 && status_at($port, 'postgres') == 200 }, 'two may share the port');

# Another database: the same port is not to be had, one of its own is
my $end = -s $node->logfile;
database('second');
logged(qr/cannot serve HTTP for database "second": port $port is the one of database "postgres"/, $end);
like($node->value('SELECT http_error FROM otp.health', dbname => 'second'), qr/port $port is the one of/,
	'and otp.health');
is($node->value("SELECT ok FROM otp.check_setup() WHERE part = 'http'", dbname => 'second'), 'f', 'and otp.check_setup');
is($node->value('SELECT http_listeners || \' \' || http_port FROM otp.health'), "2 $port", 'which knows who listens');
is(status_at($port, 'second'), 401, 'who has the port keeps it: the key is none of its own');
$node->run("ALTER DATABASE second SET otp.http_port = $other_port");
ok( poll_until { status_at($other_port, 'second') == 200 }, 'a port of its own');

# A port of somebody else
my $foreign = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1, ReuseAddr => 1) or BAIL_OUT("socket: $!");
my $taken = $foreign->sockport;
$end = -s $node->logfile;
$node->run("ALTER DATABASE second SET otp.http_port = $taken");
logged(qr/cannot serve HTTP for database "second": could not listen on address 127\.0\.0\.1, port $taken/, $end);
close $foreign;
ok( poll_until { status_at($taken, 'second') == 200 }, 'is taken once it is free');
is($node->value('SELECT http_error IS NULL FROM otp.health', dbname => 'second'), 't', 'and that is got over');

# It makes way
my $idle = OTP::Requests->new(port => $taken, key => $key{second});
is($idle->ask(GET => '/v1/rate-limits')->{status}, 200, 'a client');
$node->run('ALTER DATABASE second RENAME TO third');
pass('RENAME goes through');
$key{third} = $key{second};
ok( poll_until { status_at($taken, 'third') == 200 }, 'and it listens again');
$node->run('DROP EXTENSION otp CASCADE', dbname => 'third');
ok( poll_until { listeners('third') == 0 }, 'without the extension nobody listens');
$node->run('CREATE EXTENSION otp CASCADE', dbname => 'third');
ok( poll_until { status_at($taken, 'third') == 401 }, 'with a new one somebody does');
$node->run('DROP DATABASE third');
ok( poll_until { status_at($taken, 'third') == 0 }, 'DROP DATABASE goes through, and the port is free');

# What ends comes back
my @pids = listeners('postgres');
$node->run('SELECT pg_terminate_backend(' . $pids[0] . ')');
ok( poll_until { my @now = listeners('postgres'); @now == 2 && !grep { $_ == $pids[0] } @now }, 'one that was ended is replaced');

# kill -9 under load
my $http = OTP::Requests->new(port => $port, key => $key{postgres});
my @sends;
for my $n (1 .. 300)
{
	push @sends, $http->post('/v1/whatsapp/otp/send', { phone => $phone, context => "n$n" });
	$http->look;
	kill 'KILL', (listeners('postgres'))[0] if $n == 150;
}
$http->until(sub { !grep { !$_->{done} } @sends });
ok( poll_until { eval { status_at($port, 'postgres') == 200 } }, 'after kill -9 the port is back');
my @answered = map { $_->{json}{otp_id} } grep { ($_->{status} // 0) == 200 } @sends;
cmp_ok(scalar @answered, '>', 0, 'some sends were answered');
is( $node->value("SELECT count(*) FROM unnest('{" . join(',', @answered) . "}'::text[]) id, otp_status(id)"),
	scalar @answered,
	'and none of them is lost');

# A restart
$node->restart;
ok( poll_until { status_at($port, 'postgres') == 200 }, 'after a restart it listens again');
unlike(slurp_file($node->logfile), qr/oat_[0-9A-Za-z]{20}|15550200001/, 'no key and no phone is in the log');

$node->stop;
done_testing();
