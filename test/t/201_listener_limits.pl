# 201_listener_limits.pl
#	What a client may take of the listener.
#
# Protects: bytes that drip buy no time; connections, headers and bodies have
# limits that are said; those who misbehave are cut, and others are served
# meanwhile by the same process. And TLS, with a certificate that is renewed.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use IO::Socket::SSL;
use OTP::Cluster;
use OTP::Requests;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $node = OTP::Cluster->start(
	'main',
	conf => [
		"otp.http_port = $port", "otp.http_listen_addresses = '127.0.0.1'",
		"otp.http_timeout = '1s'", 'otp.http_max_connections = 40' ]);
$node->install;
my $key = $node->value("SELECT api_key FROM otp.create_api_key('default', 'test')");
my $http = OTP::Requests->new(port => $port, key => $key);

# Does it answer?
sub answers
{
	my $r = $http->request(GET => '/v1/rate-limits');

	$http->until(sub { $r->{done} });
	return ($r->{status} // 0) == 200;
}

ok( poll_until { answers() }, 'somebody listens');
my $pid = $node->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'otp listener'");

# Open a connection and say something
sub opened
{
	my ($text) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or BAIL_OUT("connect: $!");

	$socket->autoflush(1);
	print $socket $text;
	return $socket;
}

# Drip bytes until the other side has had enough; what it said
sub dripped
{
	my ($socket, $byte) = @_;
	my $said = '';
	local $SIG{PIPE} = 'IGNORE';

	poll_until
	{
		my $closed = 0;
		if (IO::Select->new($socket)->can_read(0.05))
		{
			my $got = sysread $socket, my $more, 65536;
			$said .= $more if $got;
			$closed = !$got;
		}
		syswrite $socket, $byte if length $byte && !$closed;
		$closed;
	}
	or return;
	return $said;
}

# Slowly: each is cut, however often it says something
my %slow = (
	'a header that drips' => [ "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", 'a' ],
	'a body that drips' => [
		"POST /v1/whatsapp/otp/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n", ' ' ],
	'a chunked body that drips' => [
		"POST /v1/whatsapp/otp/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
		"1\r\n \r\n" ],
	'a client that says nothing' => [ '', '' ],
	'an empty line now and then' => [ '', "\r\n" ]);
foreach my $what (sort keys %slow)
{
	my $socket = opened($slow{$what}[0]);

	ok(defined dripped($socket, $slow{$what}[1]), "$what is cut");
}
my $socket = opened("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
like(dripped($socket, ''), qr/^HTTP\/1\.1 200 /, 'one that goes on saying nothing after its answer is cut, too');

# Many halves do not stop others
my @halves = map { opened("GET /healthz HTTP/1.1\r\nHost: ") } 1 .. 30;
ok(answers(), 'thirty half requests do not stop a whole one');
push @halves, map { opened("GET /healthz HTTP/1.1\r\nHost: ") } 1 .. 30;
ok( poll_until { answers() }, 'nor do more than there may be connections, for long');
close $_ foreach @halves;

# Too much
my $long = 'x' x 70_000;
my $r = $http->ask(POST => '/v1/whatsapp/otp/send', { phone => '+15550201001', context => $long });
is($r->{status}, 413, 'a body that is too long');
is($r->{json}{error}{code}, 'payload_too_large', 'is said so');
$socket = opened("POST /v1/whatsapp/otp/send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	  . join('', map { sprintf "%x\r\n%s\r\n", 10_000, 'y' x 10_000 } 1 .. 9) . "0\r\n\r\n");
like(dripped($socket, ''), qr/^HTTP\/1\.1 413 .*payload_too_large/s, 'in chunks, too');
$socket = opened("POST /v1/whatsapp/otp/send HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n");
like(dripped($socket, ''), qr/^HTTP\/1\.1 413 /, 'who asks first is told first');
$socket = opened('GET /' . 'a' x 9_000 . " HTTP/1.1\r\nHost: x\r\n\r\n");
like(dripped($socket, ''), qr/^HTTP\/1\.1 414 /, 'an address that is too long');
$socket = opened("GET /healthz HTTP/1.1\r\nHost: x\r\n" . join('', map { "X-$_: y\r\n" } 1 .. 100) . "\r\n");
like(dripped($socket, ''), qr/^HTTP\/1\.1 431 /, 'too many headers');
$socket = opened("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " . 'z' x 40_000 . "\r\n\r\n");
like(dripped($socket, '') // '', qr/^HTTP\/1\.1 (413|431) |^$/, 'a header that is too long');
is($node->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'otp listener'"), $pid, 'all that did not end the process');
ok( poll_until { answers() }, 'nor stop it');

# TLS
my $dir = PostgreSQL::Test::Utils::tempdir();
foreach my $name (qw(first second))
{
	my ($out, $said);

	IPC::Run::run(
		[   qw(openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj), "/CN=$name",
			'-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', "$dir/$name.key", '-out', "$dir/$name.crt" ],
		'<', \undef, '>', \$out, '2>', \$said)
	  or BAIL_OUT("openssl: $said");
}

# Put a certificate where the settings look
sub install_certificate
{
	my ($name) = @_;

	foreach my $kind (qw(crt key))
	{
		unlink "$dir/server.$kind";
		append_to_file("$dir/server.$kind", slurp_file("$dir/$name.$kind"));
		chmod 0600, "$dir/server.$kind";
	}
	return;
}

# Ask over TLS, trusting one certificate only
sub answers_tls
{
	my ($name) = @_;
	my $tls = IO::Socket::SSL->new(
		PeerAddr => '127.0.0.1',
		PeerPort => $port,
		SSL_ca_file => "$dir/$name.crt",
		SSL_verifycn_scheme => 'none') or return '';

	print $tls "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	local $/;
	return <$tls> // '';
}

my $end = -s $node->logfile;
install_certificate('first');
chmod 0644, "$dir/server.key";
$node->append_conf('postgresql.conf', "otp.http_cert_file = '$dir/server.crt'\notp.http_key_file = '$dir/server.key'\notp.http_timeout = '10s'");
$node->reload;
ok( poll_until { slurp_file($node->logfile, $end) =~ /private key file ".*" has group or world access/ },
	'a key that others could read is refused');
chmod 0600, "$dir/server.key";
ok( poll_until { answers_tls('first') =~ /^HTTP\/1\.1 200 / }, 'with one that they cannot, there is TLS');
ok(!answers(), 'and nothing else');
install_certificate('second');
$node->reload;
ok( poll_until { answers_tls('second') =~ /^HTTP\/1\.1 200 / }, 'a renewed certificate is taken');

$node->stop;
done_testing();
