# 095_tls.pl
#	Codes and tokens leave over checked connections only.
#
# Protects: a provider's certificate is checked against otp.ca_file, or the
# system's; not one byte of a request goes to a server that cannot show one
# for its name; http:// and private addresses need the administrator's leave.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

# Make a CA, and certificates by it
my $dir = PostgreSQL::Test::Utils::tempdir();

sub openssl
{
	my $ok = IPC::Run::run([ 'openssl', @_ ], '<', \undef, '>', \my $out, '2>', \my $err);
	$ok or BAIL_OUT("openssl @_: $err");
	return;
}

sub make_ca
{
	my ($name) = @_;
	openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', "/CN=$name",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.crt");
	return;
}

sub make_certificate
{
	my ($name, $ca, $names, @more) = @_;

	append_to_file("$dir/$name.ext", "subjectAltName=$names\n");
	openssl('req', '-newkey', 'rsa:2048', '-nodes', '-subj', "/CN=$name",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	openssl('x509', '-req', '-in', "$dir/$name.csr", '-CA', "$dir/$ca.crt", '-CAkey', "$dir/$ca.key",
		'-CAcreateserial', '-days', '2', '-extfile', "$dir/$name.ext", '-out', "$dir/$name.crt", @more);
	return;
}

make_ca('ours');
make_ca('theirs');
make_certificate('good', 'ours', 'IP:127.0.0.1,DNS:localhost');
make_certificate('foreign', 'theirs', 'IP:127.0.0.1,DNS:localhost');
make_certificate('misnamed', 'ours', 'DNS:graph.facebook.com');
make_certificate('expired', 'ours', 'IP:127.0.0.1,DNS:localhost');

# OpenSSL before 3.4 takes a negative life for an expired one, later ones take dates
my @expired = `openssl x509 -help 2>&1` =~ /-not_after/
  ? ('-not_before', '20200101000000Z', '-not_after', '20200102000000Z') : ('-days', '-1');
openssl('x509', '-req', '-in', "$dir/expired.csr", '-CA', "$dir/ours.crt", '-CAkey', "$dir/ours.key",
	'-CAcreateserial', @expired, '-extfile', "$dir/expired.ext", '-out', "$dir/expired.crt");

# One simulator for each certificate, and a plain one
my %sim = map {
	$_ => OTP::Simulator->start(tls_cert => "$dir/$_.crt", tls_key => "$dir/$_.key")
} qw(good foreign misnamed expired);
$sim{plain} = OTP::Simulator->start;

my $node = OTP::Cluster->start('main',
	conf => [
		"otp.ca_file = '$dir/ours.crt'",
		'otp.allow_private_addresses = on' ]);
$node->install;
my $last_phone = 15550000000;

# Make workspaces: each with WhatsApp at one simulator, and SMS at the good one
foreach my $name (sort keys %sim)
{
	$node->run(<<"END");
INSERT INTO otp.workspaces (name) VALUES ('$name');
INSERT INTO otp.templates (workspace_id, name, language)
	SELECT workspace_id, 'otp_verification', 'en_US' FROM otp.workspaces WHERE name = '$name';
END
	$node->configure(
		$sim{$name},
		meta => { account => "meta_$name", workspace => $name },
		twilio => {
			account => "twilio_$name",
			workspace => $name,
			base_url => $sim{good}->base_url,
			status_callback => 'https://example.com/receipt' });
}
$node->lift_limits;
$node->wait_for_sender;

# The requests that reached one
sub requests
{
	my ($name) = @_;
	return scalar $sim{$name}->log;
}

# Send in a workspace whose breaker is closed, because it was just set up
sub send_to
{
	my ($name, %args) = @_;

	$node->call('otp.configure_meta',
		{ account => "meta_$name", workspace => $name, waba_id => ++$last_phone });

	# The sender closes it when it hears of that, and until then nobody may send
	my $id;
	poll_until { $id = eval { $node->send('+' . ++$last_phone, workspace => $name, %args) } };
	return $id;
}

# Wait until a request was tried, and not sent
sub wait_for_try
{
	my ($id) = @_;
	my $detail;

	poll_until
	{
		$detail = $node->value(
			"SELECT detail FROM otp.messages WHERE tries > 0 AND verification_id = otp.parse_id('$id')");
	};
	return $detail;
}

#
# Certificates
#
my $id = send_to('good');
like($sim{good}->code_for($id), qr/^\d{6}$/, 'a certificate of a CA in otp.ca_file is good');

foreach my $name (qw(foreign misnamed expired))
{
	$id = send_to($name);
	my $detail = wait_for_try($id);
	ok($detail, "$name: a try fails");
	note "$name: $detail";
	is($node->value("SELECT unknown FROM otp.outbox WHERE id = otp.parse_id('$id')"),
		0, 'known not to be sent');
	is($node->status($id)->{status}, 'pending', 'is tried again');
	is(requests($name), 0, 'and not one request arrives');

	$id = send_to($name, fallback_sms => 'true');
	ok(poll_until { scalar $sim{good}->log(otp_id => $id) }, 'goes by SMS if it may');
}

# Two connections that meet: https to a server that does not speak it
(my $odd = $sim{plain}->base_url) =~ s/^http:/https:/;
$node->call('otp.configure_meta',
	{ account => 'meta_plain', workspace => 'plain', base_url => $odd });
$id = send_to('plain');
ok(wait_for_try($id), 'a server that does not speak TLS: a try fails');
is(requests('plain'), 0, 'and nothing arrives');

#
# By the settings, while the sender runs
#
my $before = $node->value('SELECT sender_pid FROM otp.worker_status()');
$node->append_conf('postgresql.conf', "otp.ca_file = '$dir/theirs.crt'");
$node->reload;
ok(poll_until { requests('foreign') > 0 }, 'another otp.ca_file lets in what waited for it');
$id = send_to('good');
ok(wait_for_try($id), 'and shuts out what it does not know');
my $count = requests('good');
$node->append_conf('postgresql.conf', "otp.ca_file = ''");
$node->reload;
$id = send_to('misnamed');
ok(wait_for_try($id), 'the system knows none of them');
is(requests('misnamed'), 0, 'and nothing arrives');

$node->append_conf('postgresql.conf', "otp.ca_file = '$dir/nothing.crt'");
$node->reload;
$id = send_to('expired');
ok(wait_for_try($id), 'a file that is not there lets nothing through');
is(requests('expired'), 0, 'and nothing arrives');

$node->append_conf('postgresql.conf', "otp.ca_file = '$dir/ours.crt'");
$node->reload;
$id = send_to('good');
ok($sim{good}->code_for($id), 'the right one again');

#
# Private addresses
#
$node->append_conf('postgresql.conf', 'otp.allow_private_addresses = off');
$node->reload;
$node->poll_query_until('postgres', "SELECT current_setting('otp.allow_private_addresses') = 'off'");
$node->restart;
$node->wait_for_sender;
$count = requests('good');
$id = send_to('good');
my $detail = wait_for_try($id);
ok($detail, 'a private address without leave: a try fails');
note $detail;
is(requests('good'), $count, 'and nothing arrives');
$node->append_conf('postgresql.conf', 'otp.allow_private_addresses = on');
$node->reload;
ok($sim{good}->code_for($id), 'with leave it goes');

#
# Plain http
#
$node->call('otp.configure_meta',
	{ account => 'meta_plain', workspace => 'plain', base_url => $sim{plain}->base_url });
$id = send_to('plain');
ok($sim{plain}->code_for($id), 'http with leave');
$node->append_conf('postgresql.conf', 'otp.allow_insecure_http = off');
$node->reload;
$node->restart;
$node->wait_for_sender;
$count = requests('plain');
$id = send_to('plain', fallback_sms => 'true');
ok(poll_until { scalar $sim{good}->log(otp_id => $id) }, 'http without leave: SMS, where it is https');
$id = send_to('plain');
ok( poll_until
	{
		$node->value('SELECT count(*) FROM otp.messages WHERE verification_id = '
			  . "otp.parse_id('$id') AND detail IS NOT NULL") > 0
	},
	'and without a fallback: not sent');
is(requests('plain'), $count, 'not one request arrives');
my $e = $node->error_of("SELECT otp.configure_meta(account => 'meta_plain', workspace => 'plain',"
	  . " base_url => 'http://127.0.0.1:1')");
ok($e, 'nor can it be configured');
note $e->{text} // '';

$node->stop;
done_testing();
