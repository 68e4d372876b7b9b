# 250_http_edges.pl
#	HTTP as it really comes.
#
# Protects: bodies in pieces, several requests on a connection, clients that
# half close, leave or never read, and bytes that are no HTTP at all are
# answered or cut; requests cannot be smuggled; and the process goes on.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use OTP::Cluster;
use OTP::Requests;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'main',
	conf => [
		"otp.http_port = $port", "otp.http_listen_addresses = '127.0.0.1'",
		"otp.http_timeout = '5s'", "otp.http_send_wait = '30s'" ]);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run("SELECT otp.set_test_number('+15550250001', '123456')");
my $key = $node->value("SELECT api_key FROM otp.create_api_key('default', 'test')");
my $http = OTP::Requests->new(port => $port, key => $key);
ok( poll_until { my $r = $http->request(GET => '/healthz'); $http->until(sub { $r->{done} }); ($r->{status} // 0) == 200 }, 'somebody listens');
my $pid = $node->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'otp listener'");

# Open a connection
sub connected
{
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or BAIL_OUT("connect: $!");

	$socket->autoflush(1);
	return $socket;
}

# Read until the other side closes, or what was said is enough
sub said
{
	my ($socket, $enough) = @_;
	my $said = '';

	poll_until
	{
		my $closed = 0;
		if (IO::Select->new($socket)->can_read(0.05))
		{
			my $got = sysread $socket, my $more, 65536;
			$said .= $more if $got;
			$closed = !$got;
		}
		$closed || (defined $enough && $said =~ $enough);
	};
	return $said;
}

# Say something on a connection of its own, and hear what comes of it
sub asked
{
	my ($text, $enough) = @_;
	my $socket = connected();
	local $SIG{PIPE} = 'IGNORE';

	syswrite $socket, $text;
	return said($socket, $enough);
}

my $send = '{"phone":"+15550250001"}';
my $head = "POST /v1/whatsapp/otp/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer $key\r\nContent-Type: application/json\r\n";
my $close = "Connection: close\r\n";
my $ok = qr/^HTTP\/1\.1 200 .*"success":true/s;

# Bodies in pieces
my $chunked = $head . $close . "Transfer-Encoding: chunked\r\n\r\n";
like(asked($chunked . sprintf("%x\r\n%s\r\n0\r\n\r\n", length $send, $send)), $ok, 'one chunk');
like(asked($chunked . join('', map { "1\r\n$_\r\n" } split //, $send) . "0\r\n\r\n"), $ok,
	'a chunk for each byte');
like(asked($chunked . sprintf("%X;a=b\r\n%s\r\n0\r\nX-Trailer: y\r\n\r\n", length $send, $send)),
	$ok, 'an extension and a trailer');
my $socket = connected();
my $text = $head . $close . 'Content-Length: ' . length($send) . "\r\n\r\n$send";
foreach my $byte (split //, $text)
{
	syswrite $socket, $byte;
}
like(said($socket), $ok, 'byte by byte');
foreach my $size ('x', '-1', 'FFFFFFFFFFFFFFFFF', '0x5', '')
{
	unlike(asked($head . "Transfer-Encoding: chunked\r\n\r\n$size\r\n$send\r\n0\r\n\r\n"), qr/^HTTP\/1\.1 2/, "a chunk of size \"$size\"");
}

# Several requests on a connection
$socket = connected();
foreach my $n (1 .. 3)
{
	syswrite $socket, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
	like(said($socket, qr/"ok"/), qr/^HTTP\/1\.1 200 /, "request $n of a connection");
}
my $five = asked(join('', map { "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" } 1 .. 4) . "GET /metrics HTTP/1.1\r\nHost: x\r\n$close\r\n");
is(() = $five =~ /HTTP\/1\.1 200 /g, 5, 'five at once are five answers');
like($five, qr/otp_http_listeners 1\n/, 'in their order');

# One that waits, others behind it
$sim->behave({ match => { phone => '+15550250002', api => 'meta' }, do => { hang => \1 }, times => 1 });
$socket = connected();
my $real = '{"phone":"+15550250002"}';
syswrite $socket, $head . 'Content-Length: ' . length($real) . "\r\n\r\n$real" . "GET /healthz HTTP/1.1\r\nHost: x\r\n$close\r\n";
ok( poll_until { $sim->counters->{hanging_now} == 1 }, 'the provider is being asked');
is($http->ask(GET => '/healthz')->{status}, 200, 'others are served');
$sim->release;
like(said($socket), qr/^HTTP\/1\.1 200 .*"message_id":"wamid\..*HTTP\/1\.1 200 .*"ok"/s, 'then it is answered, and the one behind it');

# Clients that half close, leave, or never read
$socket = connected();
syswrite $socket, $head . 'Content-Length: ' . length($send) . "\r\n\r\n$send";
shutdown $socket, 1;
like(said($socket), $ok, 'half closed');
$sim->behave({ match => { phone => '+15550250003', api => 'meta' }, do => { hang => \1 }, times => 1 });
$socket = connected();
$real =~ s/0002/0003/;
syswrite $socket, $head . 'Content-Length: ' . length($real) . "\r\n\r\n$real";
ok( poll_until { $sim->counters->{hanging_now} == 1 }, 'one that waits');
close $socket;
$sim->release;
ok( poll_until { $sim->inbox('+15550250003') == 1 }, 'and leaves: its code is sent all the same');
my @deaf = map { my $s = connected(); syswrite $s, "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" x 50; $s } 1 .. 5;
is($http->ask(GET => '/healthz')->{status}, 200, 'those who never read are in nobody\'s way');

# Versions and methods
like(asked("GET /healthz HTTP/1.0\r\n\r\n"), qr/^HTTP\/1\.[01] 200 .*"ok"/s, 'HTTP/1.0');
my $answer = asked("HEAD /healthz HTTP/1.1\r\nHost: x\r\n$close\r\n");
like($answer, qr/^HTTP\/1\.1 200 .*Content-Length: 15\r\n/s, 'HEAD');
like($answer, qr/\r\n\r\n$/, 'without a body');
like(asked("$head${close}Expect: 100-continue\r\nContent-Length: " . length($send) . "\r\n\r\n$send"),
	qr/^HTTP\/1\.1 100 .*HTTP\/1\.1 200 /s,
	'100-continue');
like(asked("get /healthz HTTP/1.1\r\nHost: x\r\n$close\r\n"), qr/^HTTP\/1\.1 405 /, 'methods have capitals');
like(asked("BREW /healthz HTTP/1.1\r\nHost: x\r\n$close\r\n"), qr/^HTTP\/1\.1 405 .*Allow: GET, HEAD\r\n/s, 'a method that nobody knows');
unlike(asked("GET http://127.0.0.1:$port/healthz HTTP/1.1\r\nHost: x\r\n$close\r\n"), qr/^HTTP\/1\.1 5/, 'a whole address');
unlike(asked("GET /healthz HTTP/1.1\r\n$close\r\n"), qr/^HTTP\/1\.1 [25]/, 'no Host');

# What could be two requests to two parties
foreach my $case (
	[ 'both lengths', "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" ],
	[ 'two lengths', "Content-Length: 24\r\nContent-Length: 5\r\n\r\n${send}GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" ],
	[ 'a length below nothing', "Content-Length: -5\r\n\r\n$send" ],
	[ 'a length without end', "Content-Length: 99999999999999999999999\r\n\r\n$send" ],
	[ 'a length with words', "Content-Length: 24 bytes\r\n\r\n$send" ],
	[ 'an encoding that nobody knows', "Transfer-Encoding: gzip, chunked\r\n\r\n$send" ],
	[ 'a blank before the colon', "Content-Length : 24\r\n\r\n$send" ])
{
	my $said = asked($head . $case->[1], qr/otp_http_listeners/);

	unlike($said, qr/otp_http_listeners/, "$case->[0]: nothing is smuggled");
}

# No HTTP at all
my $nul = "\0";
foreach my $bytes (
	"\0\0\0\0\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "GET /health${nul}z HTTP/1.1\r\nHost: x\r\n\r\n",
	"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Nul: a${nul}b\r\n$close\r\n", "GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", "\r\n\r\n\r\nGET",
	"GET  /healthz  HTTP/1.1\r\nHost: x\r\n\r\n", "GET /%zz HTTP/1.1\r\nHost: x\r\n$close\r\n", "GET /v1/whatsapp/otp/%00 HTTP/1.1\r\nHost: x\r\n$close\r\n",
	"GET /v1/whatsapp/otp/%ff%fe HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer $key\r\n$close\r\n",
	"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Fold: a\r\n  b\r\n$close\r\n",
	"GET /healthz HTTP/1.1\nHost: x\nConnection: close\n\n", 'A' x 100_000)
{
	my $socket = connected();
	local $SIG{PIPE} = 'IGNORE';

	syswrite $socket, $bytes;
	shutdown $socket, 1;
	my $said = said($socket);
	(my $name = substr $bytes, 0, 40) =~ s/[^ -~]/?/g;
	unlike($said, qr/^HTTP\/1\.1 5(?!05)/, "no fault of ours: $name");
}

is($node->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'otp listener'"), $pid, 'all of that did not end the process');
is($http->ask(GET => '/healthz')->{status}, 200, 'nor stop it');
unlike(slurp_file($node->logfile), qr/1555025|oat_[0-9A-Za-z]{20}|ERROR/, 'and left nothing in the log');

$node->stop;
done_testing();
