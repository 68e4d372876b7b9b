# 231_http_operations.pl
#	What the providers call, and what those who watch read.
#
# Protects: receipts that the providers post to the listener do what they
# should, and nothing does that they have not signed; figures that Prometheus
# can read, without a phone or a name in them; a document that has all routes
# and arguments, and a dashboard that has only what there is.

use strict;
use warnings;

use Cwd qw(abs_path);
use Digest::SHA qw(hmac_sha1_base64 hmac_sha256_hex);
use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use OTP::Cluster;
use OTP::Requests;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = abs_path(dirname(__FILE__) . '/../..');
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $url = "http://127.0.0.1:$port";
my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'main',
	conf => [ "otp.http_port = $port", "otp.http_listen_addresses = '127.0.0.1'", "otp.http_public_url = '$url/'" ]);
$node->install;
$node->configure(
	$sim,
	meta => { verify_token => 'the-token' },
	twilio => { status_callback => "$url/callbacks/twilio/twilio" });
$node->lift_limits;
$node->run("SELECT otp.create_workspace('secretive'); UPDATE otp.workspaces SET fallback_after = NULL");
my $key = $node->value("SELECT api_key FROM otp.create_api_key('default', 'web')");
my $http = OTP::Requests->new(port => $port, key => $key);
poll_until { HTTP::Tiny->new(timeout => 10)->get("$url/healthz")->{success} } or BAIL_OUT('nobody listens');
$sim->config({ callback_url => "$url/callbacks/meta/meta" });
$sim->behave({ match => {}, callbacks => [ { status => 'sent' }, { status => 'delivered' } ] });

#
# Receipts, from the providers themselves
#
my $sent = $http->ask(POST => '/v1/whatsapp/otp/send', { phone => '+15550231001' })->{json};
like($sent->{message_id}, qr/^wamid\./, 'the provider has taken it');
ok( poll_until { $http->ask(GET => "/v1/whatsapp/otp/$sent->{otp_id}")->{json}{status} eq 'delivered' },
	"Meta's receipt has come");
my $sms = $http->ask(POST => '/v1/whatsapp/otp/send', { phone => '+15550231002', channel => 'sms' })->{json};
is($sms->{channel}, 'sms', 'by SMS');
ok( poll_until { $http->ask(GET => "/v1/whatsapp/otp/$sms->{otp_id}")->{json}{status} eq 'delivered' }, "and Twilio's, at the address that it signs");

# The handshake
my $shake = '/callbacks/meta/meta?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=';
my $r = $http->ask(GET => $shake . 'the%2Dtoken');
is("$r->{status} $r->{body} $r->{headers}{'content-type'}", '200 1158201444 text/plain', 'the handshake gives the bare challenge');
is($http->ask(GET => $shake . 'another')->{status}, 403, 'to who knows the token');
is($http->ask(GET => '/callbacks/meta/nobody?hub.mode=subscribe&hub.challenge=1&hub.verify_token=the%2Dtoken')->{status}, 403, 'of the account');
is($http->ask(GET => $shake . 'the%2Dtoken&hub.verify_token=the%2Dtoken')->{status}, 403, 'and says it once');

# What nobody has signed
my $body = encode_json({
		object => 'whatsapp_business_account',
		entry => [ {
				id => $sim->waba_id,
				changes => [ {
						field => 'messages',
						value => {
							messaging_product => 'whatsapp',
							metadata => { phone_number_id => $sim->phone_number_id },
							statuses => [ { id => 'wamid.x', status => 'delivered', timestamp => time } ] } } ] } ] });
my %signed = (
	'Content-Type' => 'application/json',
	'X-Hub-Signature-256' => 'sha256=' . hmac_sha256_hex($body, $sim->app_secret));
is($http->ask(POST => '/callbacks/meta/meta', $body, %signed)->{status}, 200, 'a body with its signature');
my @wrong = (
	$http->ask(POST => '/callbacks/meta/meta', "$body ", %signed),
	$http->ask(POST => '/callbacks/meta/meta', $body),
	$http->ask(POST => '/callbacks/meta/nobody', $body, %signed),
	$http->ask(POST => '/callbacks/twilio/twilio', 'MessageSid=SM1', 'X-Twilio-Signature' => 'x'),
	$http->ask(POST => '/callbacks/twilio/meta', 'MessageSid=SM1', 'X-Twilio-Signature' => 'x'));
is($_->{status}, 403, 'without it, nothing') foreach @wrong;
is($wrong[0]{body}, $wrong[2]{body}, 'whether or not there is such an account');
my $form = 'MessageSid=SM00000000000000000000000000000001&MessageStatus=delivered&AccountSid=' . $sim->account_sid;
my $signature = hmac_sha1_base64(
	"$url/callbacks/twilio/twilio?x=1AccountSid" . $sim->account_sid . 'MessageSidSM00000000000000000000000000000001MessageStatusdelivered',
	$sim->auth_token);
$signature .= '=' while length($signature) % 4;
my %form = ('Content-Type' => 'application/x-www-form-urlencoded', 'X-Twilio-Signature' => $signature);
is($http->ask(POST => '/callbacks/twilio/twilio?x=1', $form, %form)->{status}, 204, 'Twilio signs the query, too');
my $long = $http->ask(POST => '/callbacks/meta/meta', 'x' x (2 * 1024 * 1024), 'X-Hub-Signature-256' => 'sha256=x');
is($long->{status}, 403, 'receipts may be longer than other bodies');

#
# Figures
#
my $metrics = HTTP::Tiny->new(timeout => 30)->get("$url/metrics");
is($metrics->{status}, 200, 'figures need no key');
is($metrics->{headers}{'content-type'}, 'text/plain; version=0.0.4; charset=utf-8', 'in the format of Prometheus');
my (%type, %value, @wrong_lines);
foreach my $line (split /\n/, $metrics->{content})
{
	if ($line =~ /^# HELP (\w+) \S/) { push @wrong_lines, $line if exists $type{$1} }
	elsif ($line =~ /^# TYPE (\w+) (counter|gauge|histogram)$/) { $type{$1} = $2 }
	elsif ($line =~ /^(\w+?)((?:_bucket|_sum|_count)?)(\{(?:\w+="[^"\\]*",?)+\})? (\d+(?:\.\d+)?(?:e[+-]\d+)?)$/)
	{
		my ($name, $part, $labels, $number) = ($1, $2, $3 // '', $4);
		push @wrong_lines, $line if !$type{$name} || ($type{$name} eq 'histogram') != ($part ne '');
		push @wrong_lines, $line if exists $value{"$name$part$labels"};
		$value{"$name$part$labels"} = $number;
	}
	else { push @wrong_lines, $line }
}
is_deeply(\@wrong_lines, [], 'each line is right');
my $send = 'method="POST",route="/v1/whatsapp/otp/send"';
is($value{"otp_http_requests_total{$send,status=\"2xx\"}"}, 2, 'the sends are counted');
is($value{'otp_http_requests_total{method="POST",route="/callbacks/meta/{account}",status="4xx"}'}, 4, 'and the refusals');
is($value{"otp_http_request_duration_seconds_bucket{$send,le=\"+Inf\"}"}, 2, 'and how long they took');
is($value{"otp_http_request_duration_seconds_count{$send}"}, 2, 'each once');
my @buckets = map { $value{"otp_http_request_duration_seconds_bucket{$send,le=\"$_\"}"} } map { 0.001 * 2**$_ } 0 .. 15;
is_deeply(\@buckets, [ sort { $a <=> $b } @buckets ], 'buckets only grow');
is($value{otp_sender_up}, 1, 'the sender is up');
is($value{otp_messages_accepted_total}, 2, 'what providers have taken');
unlike($metrics->{content}, qr/1555023|otp_01|oat_|secretive|wamid/, 'no phone, no id, no key and no name');
is(HTTP::Tiny->new(timeout => 30)->head("$url/metrics")->{status}, 200, 'HEAD');

# The dashboard has only what there is
my $dashboard = decode_json(slurp_file("$root/doc/grafana.json"));
my %named;
foreach my $target (map { @{ $_->{targets} } } @{ $dashboard->{panels} })
{
	$named{ $1 =~ s/_bucket$//r } = 1 while $target->{expr} =~ /\b(otp_\w+)/g;
}
is_deeply([ grep { !$type{$_} } sort keys %named ], [], 'the dashboard names figures that there are');
cmp_ok(scalar keys %named, '>', 10, 'and most of them');

#
# The document
#
my $document = decode_json(HTTP::Tiny->new(timeout => 30)->get("$url/openapi.json")->{content});
is($document->{openapi}, '3.1.0', 'OpenAPI');
is($document->{info}{version}, $node->value("SELECT extversion FROM pg_extension WHERE extname = 'otp'"), 'of this version');
my (%documented, %routed);
foreach my $path (keys %{ $document->{paths} })
{
	$documented{"$_ $path"} = $document->{paths}{$path}{ lc $_ } foreach map { uc } keys %{ $document->{paths}{$path} };
}
my $table = slurp_file("$root/src/listener/route.c");
$routed{"$1 $2"} = $3 while $table =~ /\{"(\w+)", "(\/[^"]*)", ROUTE_\w+, (?:"(\w+)"|NULL)\}/g;
delete $routed{$_} foreach grep { m!/(rpc|callbacks)/! } keys %routed;
is_deeply([ sort keys %documented ], [ sort keys %routed ], 'it has each route, and no other');
my %arguments = map { $_->{proname} => $_ } $node->rows(
	"SELECT proname, proargnames, pronargs - pronargdefaults AS required FROM pg_proc WHERE pronamespace = 'otp_api'::regnamespace"
	  . " AND prosrc = 'otp_api_call'");
foreach my $route (sort grep { $routed{$_} } keys %routed)
{
	my $operation = $documented{$route};
	my $function = $arguments{ $routed{$route} };
	my $schema = $operation->{requestBody}{content}{'application/json'}{schema};

	$schema = $document->{components}{schemas}{ $1 } if ($schema->{'$ref'} // '') =~ /(\w+)$/;
	my @said = (
		(map { $_->{name} } grep { $_->{in} ne 'header' } @{ $operation->{parameters} // [] }),
		keys %{ $schema->{properties} // {} });
	my $names = $function->{proargnames} // [];
	my @taken = ref $names ? @$names : $names =~ /(\w+)/g;

	is($operation->{operationId}, $routed{$route}, "$route is called by its function");
	is_deeply([ sort @said ], [ sort @taken ], 'and takes its arguments');
}
my @references;
my $text = encode_json($document);
push @references, $1 while $text =~ m!"\\?#\\?/components\\?/([\w\\/]+)"!g;
my @missing;
foreach my $reference (@references)
{
	my $at = $document->{components};
	$at = $at->{$_} foreach split m!\\?/!, $reference;
	push @missing, $reference unless $at;
}
is_deeply(\@missing, [], 'all that it refers to is there');

# Without a sender there is no health
is(HTTP::Tiny->new(timeout => 30)->get("$url/healthz")->{content}, '{"status":"ok"}', 'all is well');
unlike(slurp_file($node->logfile), qr/1555023/, 'no phone is in the log');

$node->stop;
done_testing();
