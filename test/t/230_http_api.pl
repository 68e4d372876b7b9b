# 230_http_api.pl
#	The HTTP API to the letter.
#
# Protects: the requests of the service that this one stands in for, as its
# documentation has them, run as they are but for host and key, and get the
# answers that it shows; every error has its status, code and headers; what is
# not understood is refused by name, and never guessed.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use OTP::Cluster;
use OTP::Requests;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $node =
  OTP::Cluster->start('main',
	conf => [ "otp.http_port = $port", "otp.http_listen_addresses = '127.0.0.1'", "otp.http_send_wait = '2s'" ]);
$node->install;
$node->run("SELECT otp.create_workspace('other')");
my $key = $node->value("SELECT api_key FROM otp.create_api_key('default', 'web')");
my $admin = $node->value("SELECT api_key FROM otp.create_api_key('default', 'boss', admin => true)");
my $other = $node->value("SELECT api_key FROM otp.create_api_key('other', 'web')");
my $code = '482915';
my %phone = (delivered => '+919876543210', sms_fallback => '+15550230002', rate_limit_exceeded => '+15550230003',
	meta_api_unavailable => '+15550230004', insufficient_credits => '+15550230005', failed => '+15550230006',
	pending => '+15550230007');
$node->run("SELECT otp.set_test_number('$phone{$_}', '$code', '$_')") foreach sort keys %phone;

my $url = "http://127.0.0.1:$port";
my $http = OTP::Requests->new(port => $port, key => $key);
poll_until { HTTP::Tiny->new(timeout => 10)->get("$url/healthz")->{success} } or BAIL_OUT('nobody listens');

use constant {
	SEND => '/v1/whatsapp/otp/send',
	VERIFY => '/v1/whatsapp/otp/verify',
	OTP => '/v1/whatsapp/otp'
};
my $time = qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/;

# Look at an answer: its status, the code of its error, and the headers that all have
sub answers
{
	my ($r, $status, $error, $name) = @_;
	my $told = ref $r->{json} eq 'HASH' ? ($r->{json}{error} // {}) : {};
	my ($remaining, $reset) = map { $r->{headers}{$_} // '' } qw(x-ratelimit-remaining x-ratelimit-reset);

	is("$r->{status} " . (ref $told ? $told->{code} // '' : $told), "$status $error", $name);
	ok($remaining =~ /^\d+$/ && $reset =~ /^\d{10}$/, "$name: has the headers of limits");
	ok(($r->{headers}{'retry-after'} // '') =~ /^\d+$/, "$name: says when to come again") if $status == 503;
	return $r;
}

#
# The documentation's own lines
#
my @lines = (<<'SEND', <<'VERIFY', <<'STATUS');
curl -X POST https://api.outreachagent.com/v1/whatsapp/otp/send \
  -H "Authorization: Bearer oat_YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "phone": "+919876543210",
    "template": "otp_verification",
    "length": 6,
    "expires_in": 300,
    "fallback_sms": true
  }'
SEND
curl -X POST https://api.outreachagent.com/v1/whatsapp/otp/verify \
  -H "Authorization: Bearer oat_YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "otp_id": "otp_01HXK7QZRN8V4M2P9D3Y5F6G7H",
    "code": "482915"
  }'
VERIFY
curl https://api.outreachagent.com/v1/whatsapp/otp/otp_01HXK7QZRN8V4M2P9D3Y5F6G7H \
  -H "Authorization: Bearer oat_YOUR_API_KEY"
STATUS

# Run one, with our host and key, and the id that there is
sub curl
{
	my ($line, $id) = @_;
	my ($out, $err) = ('', '');

	$line =~ s!https://api\.outreachagent\.com!$url!;
	$line =~ s!oat_YOUR_API_KEY!$key!;
	$line =~ s!otp_01HXK7QZRN8V4M2P9D3Y5F6G7H!$id! if $id;
	$line =~ s!^curl!curl -s --noproxy '*' --max-time 60!;
	IPC::Run::run([ 'sh', '-c', $line ], '<', \undef, '>', \$out, '2>', \$err) or diag($err);
	return $out;
}

# The members of an object, in their order
sub members
{
	my ($text) = @_;
	my @names;

	# all values here are flat
	push @names, $1 while $text =~ /"(\w+)"\s*:/g;
	return join ' ', @names;
}

my $text = curl($lines[0]);
is(members($text), 'success otp_id channel phone expires_at expires_in message_id',
	'send: the fields of the documentation');
my $sent = decode_json($text);
my $id = $sent->{otp_id};
like($id, qr/^otp_[0-9A-HJKMNP-TV-Z]{26}$/, 'otp_id');
ok($sent->{success} && $sent->{expires_in} == 300, 'what was asked for');
is("$sent->{channel} $sent->{phone}", 'whatsapp +919876543210', 'by WhatsApp, to the phone');
like($sent->{expires_at}, $time, 'a time as it is shown');
ok(defined $sent->{message_id}, 'message_id is there');
my $status = decode_json(curl($lines[2], $id));
is($status->{status}, 'delivered', 'status');
$text = curl($lines[1], $id);
is(members($text), 'valid otp_id phone verified_at channel', 'verify: the fields of the documentation');
ok(decode_json($text)->{valid}, 'valid');
$text = curl($lines[2], $id);
like(members($text), qr/^otp_id status phone channel created_at expires_at verified_at attempts fallback_used /,
	'status: the fields of the documentation, then ours');
$status = decode_json($text);
ok($status->{status} eq 'verified' && $status->{attempts} == 1 && !$status->{fallback_used}, 'verified');
like($status->{verified_at}, $time, 'and when');

#
# Every error
#
answers($http->ask(POST => SEND, { phone => $_ }), 400, 'invalid_phone', 'a phone that is none')
  foreach ('12', '0049 30', "+1\x{661}");
answers($http->ask(POST => SEND, { phone => $phone{delivered}, template => 'nope' }), 400, 'template_not_found',
	'a template that is not there');
answers($http->ask(GET => OTP, undef, key => undef), 401, 'invalid_api_key', 'no key');
answers($http->ask(GET => OTP, undef, key => 'oat_' . 'x' x 32), 401, 'invalid_api_key', 'a key that is none');
answers($http->ask(POST => SEND, { phone => $phone{insufficient_credits} }), 402, 'insufficient_credits',
	'no credits');
answers($http->ask(POST => SEND, { phone => '+15550239999' }), 403, 'module_inactive', 'no provider');
answers($http->ask(GET => OTP . '/otp_01HXK7QZRN8V4M2P9D3Y5F6G7H'), 404, 'otp_not_found', 'an id that is not there');
answers($http->ask(GET => OTP . "/$id", undef, key => $other), 404, 'otp_not_found', "another workspace's");
answers($http->ask(POST => VERIFY, { otp_id => $id, code => $code }), 422, 'otp_already_verified', 'used');
my $r = answers($http->ask(POST => SEND, { phone => $phone{rate_limit_exceeded} }), 429, 'rate_limit_exceeded',
	'too many');
is($r->{json}{error}{retry_after}, 42, 'how long to wait');
is($r->{headers}{'retry-after'}, 42, 'as a header, too');
is($r->{headers}{'x-ratelimit-remaining'}, 0, 'nothing is left');
answers($http->ask(POST => SEND, { phone => $phone{meta_api_unavailable} }), 503, 'meta_api_unavailable',
	'Meta is away');
answers($http->ask(POST => SEND, { phone => $phone{failed} }), 424, 'otp_failed', 'delivery has failed');
is($http->ask(POST => SEND, { phone => $phone{sms_fallback}, fallback_sms => JSON::PP::true })->{json}{channel},
	'sms', 'the fallback shows');

# Guesses
my $other_id = $http->ask(POST => SEND, { phone => $phone{pending}, context => 'pay' })->{json}{otp_id};
foreach my $left (2, 1, 0)
{
	$r = $http->ask(POST => VERIFY, { otp_id => $other_id, code => '000000', context => 'pay' });
	is_deeply(
		[ $r->{status}, $r->{json} ],
		[ 200, { valid => JSON::PP::false, otp_id => $other_id, error => 'invalid_code',
			attempts_remaining => $left } ],
		'a wrong code is no error');
}
$r = answers($http->ask(POST => VERIFY, { otp_id => $other_id, code => $code, context => 'pay' }), 429,
	'rate_limit_exceeded', 'no attempt is left');
ok(exists $r->{json}{valid} && !$r->{json}{valid}, 'and it says so');
$other_id = $http->ask(POST => SEND, { phone => $phone{delivered}, context => 'c' })->{json}{otp_id};
is_deeply($http->ask(POST => OTP . "/$other_id/cancel", {})->{json},
	{ otp_id => $other_id, canceled => JSON::PP::true }, 'cancel');
answers($http->ask(POST => VERIFY, { otp_id => $other_id, code => $code, context => 'c' }), 409, 'otp_canceled',
	'canceled');
$other_id = $http->ask(POST => SEND, { phone => $phone{delivered}, context => 'e' })->{json}{otp_id};
$node->run("SELECT otp.simulate('$other_id', 'expired')");
answers($http->ask(POST => VERIFY, { otp_id => $other_id, code => $code, context => 'e' }), 410, 'otp_expired',
	'expired');
answers($http->ask(POST => OTP . "/$other_id/resend", {}), 410, 'otp_expired', 'nor is it sent again');
answers($http->ask(POST => VERIFY, { otp_id => $id, code => $code, phone => $phone{failed} }), 404, 'otp_not_found',
	'for another phone it is not found');

# One key, one code
my %once = ('Idempotency-Key' => 'once');
my $first = $http->ask(POST => SEND, { phone => $phone{delivered} }, %once)->{json};
is_deeply($http->ask(POST => SEND, { phone => $phone{delivered} }, %once)->{json}, $first,
	'the same idempotency key, the same answer');
answers($http->ask(POST => SEND, { phone => $phone{delivered}, length => 4 }, %once), 409, 'idempotency_key_reused',
	'another body');
answers($http->ask(POST => SEND, { phone => $phone{delivered}, idempotency_key => 'twice' }, %once), 400,
	'invalid_request', 'two keys');

#
# What is not understood
#
my $json = 'application/json';
my @refused = (
	[ '{"phone":"+919876543210","digits":6}', 400, 'invalid_request', 'field "digits" is not known' ],
	[ '{"phone":"+919876543210","length":"6"}', 400, 'invalid_request', 'field "length" must be an integer' ],
	[ '{"phone":"+919876543210","length":6.0}', 400, 'invalid_request', 'field "length" must be an integer' ],
	[ '{"phone":"+919876543210","length":5}', 400, 'invalid_request', undef ],
	[ '{"phone":"+919876543210","length":99999999999}', 400, 'invalid_request', 'field "length" is out of range' ],
	[ '{"phone":"+919876543210","expires_in":30}', 400, 'invalid_request', undef ],
	[ '{"phone":"+919876543210","fallback_sms":"yes"}', 400, 'invalid_request',
		'field "fallback_sms" must be true or false' ],
	[ '{"phone":"+919876543210","metadata":[1]}', 400, 'invalid_request', 'field "metadata" must be an object' ],
	[ '{"phone":"+919876543210","metadata":{"n":1e999999}}', 400, 'invalid_json', 'a number is too large' ],
	[ '{"phone":"+919876543210","length":12345678901234567890}', 400, 'invalid_json', 'a number is too large' ],
	[ '{"phone":"+919876543210","limit_keys":"ip:1"}', 400, 'invalid_request',
		'field "limit_keys" must be an array of strings' ],
	[ '{"phone":919876543210}', 400, 'invalid_request', 'field "phone" must be a string' ],
	[ '{"phone":null}', 400, 'invalid_request', 'field "phone" is missing' ],
	[ '{}', 400, 'invalid_request', 'field "phone" is missing' ],
	[ '', 400, 'invalid_request', 'field "phone" is missing' ],
	[ '{"phone":"+919876543210","phone":"+919876543211"}', 400, 'invalid_json', 'a field comes twice' ],
	[ '{"phone":"+919876543210"', 400, 'invalid_json', undef ],
	[ '{"phone":"+919876543210"} x', 400, 'invalid_json', undef ],
	[ '["+919876543210"]', 400, 'invalid_json', 'the body is not a JSON object' ],
	[ '"+919876543210"', 400, 'invalid_json', undef ],
	[ "{\"phone\":\"+9198765\xff\"}", 400, 'invalid_json', undef ],
	[ '{"phone":"+919876543210","context":"a\u0000b"}', 400, 'invalid_json', undef ],
	[ '{"phone":"+919876543210","metadata":' . '{"a":' x 5000 . '1' . '}' x 5000 . '}', 400, undef, undef ],
	[ '{"phone":"+919876543210","context":"' . 'x' x 257 . '"}', 400, 'invalid_request', undef ]);
foreach my $case (@refused)
{
	my ($body, $status, $error, $message) = @$case;
	my $name = length $body > 60 ? substr($body, 0, 57) . '...' : $body;

	$name =~ s/[^ -~]/?/g;
	$r = $http->ask(POST => SEND, $body, 'Content-Type' => $json);
	$error //= $r->{json}{error}{code};
	answers($r, $status, $error, "refused: $name");
	is($r->{json}{error}{message}, $message, 'by name') if defined $message;
	unlike($r->{body}, qr/9198765|99999999/, 'and its value is not repeated');
}
my $least = '{"phone":"+919876543210"}';
answers($http->ask(POST => SEND, $least, 'Content-Type' => $_), 415, 'unsupported_media_type', "type $_")
  foreach ('text/plain', 'application/x-www-form-urlencoded', 'application/jsonx', 'application/json; charset=latin1',
	'application/json; charset=utf-80');
answers($http->ask(POST => SEND, $least, 'Content-Type' => $json, 'Content-Encoding' => 'gzip'),
	415, 'unsupported_media_type', 'a body that says it is compressed');
$r = $http->ask(POST => SEND, '{"phone":"+919876543210","context":"u"}',
	'Content-Type' => 'Application/JSON; charset="UTF-8"');
is($r->{status}, 200, 'one that is ours');
answers($http->ask(POST => SEND . '?x=1', { phone => $phone{delivered} }), 400, 'invalid_request',
	'a query where none belongs');
answers($http->ask(GET => OTP . "?$_"), 400, 'invalid_request', "query $_")
  foreach ('limit=0', 'limit=x', 'limit=1&limit=2', 'nothing=1', 'phone=%00', 'phone=%f', 'status=lost', 'after=x');
answers($http->ask(GET => '/v1/nothing'), 404, 'not_found', 'nothing there');
answers($http->ask(GET => SEND . '/x/y'), 404, 'not_found', 'nor there');
foreach my $case ([ PUT => SEND, 'POST' ], [ GET => SEND, 'POST' ], [ PATCH => OTP . "/$id", 'GET, HEAD' ],
	[ DELETE => '/v1/templates', 'GET, HEAD, POST' ])
{
	my ($method, $path, $allow) = @$case;

	$r = answers($http->ask($method => $path), 405, 'method_not_allowed', "$method $path: a method that it has not");
	is($r->{headers}{allow}, $allow, 'and those that it has');
}

# Metadata is kept as it was written
my $metadata = '{"price": 1.10, "list": [1e2, "\u00e9"], "deep": {"none": null}}';
$r = $http->ask(POST => SEND, '{"phone":"+919876543210","context":"m","metadata":' . $metadata . '}',
	'Content-Type' => $json);
$r = $http->ask(GET => OTP . "/$r->{json}{otp_id}");
is(($r->{body} =~ /"metadata":(\{.*\})\}$/)[0],
	"{\"deep\": {\"none\": null}, \"list\": [100, \"\xc3\xa9\"], \"price\": 1.10}",
	'metadata keeps its numbers');

# Keys
is($http->ask(GET => OTP, undef, key => undef, 'X-API-Key' => $key)->{status}, 200, 'X-API-Key');
is($http->ask(GET => OTP, undef, key => undef, Authorization => "bearer $key")->{status}, 200, 'bearer');
is($http->ask(GET => OTP, undef, 'X-API-Key' => $key)->{status}, 200, 'the same twice');
answers($http->ask(GET => OTP, undef, 'X-API-Key' => $other), 400, 'invalid_request', 'two keys are none');
answers($http->ask(GET => OTP, undef, key => undef, Authorization => "Basic $key"), 401, 'invalid_api_key',
	'another scheme');

# Lists
$r = $http->ask(GET => OTP . '?limit=2&phone=%2B919876543210');
is(scalar @{ $r->{json}{data} }, 2, 'a page');
ok($r->{json}{has_more} && $r->{json}{next} eq $r->{json}{data}[1]{otp_id}, 'and where to go on');
isnt($http->ask(GET => OTP . '?limit=2&after=' . $r->{json}{next})->{json}{data}[0]{otp_id},
	$r->{json}{data}[1]{otp_id}, 'the next one');
is_deeply($http->ask(GET => OTP, undef, key => $other)->{json},
	{ data => [], has_more => JSON::PP::false, next => undef }, "another workspace's are not there");

#
# What admin keys may do
#
my @calls = (
	[ GET => '/v1/api-keys' ], [ POST => '/v1/api-keys', { name => 'new' } ], [ GET => '/v1/templates' ],
	[ POST => '/v1/templates', { name => 'login', code_expiration_minutes => 5 } ],
	[ POST => '/v1/templates/sync', {} ],
	[ GET => '/v1/webhook-endpoints' ], [ POST => '/v1/webhook-endpoints', { url => 'https://hooks.example/x' } ],
	[ GET => '/v1/webhook-deliveries?endpoint_id=ENDPOINT' ], [ POST => '/v1/webhook-endpoints/ENDPOINT/pause' ],
	[ POST => '/v1/webhook-endpoints/ENDPOINT/resume' ],
	[ POST => '/v1/webhook-endpoints/ENDPOINT/rotate-secret', {} ],
	[ POST => '/v1/webhook-endpoints/ENDPOINT/test', { event => 'otp.sent' } ],
	[ POST => '/v1/webhook-endpoints/ENDPOINT/replay', {} ],
	[ DELETE => '/v1/webhook-endpoints/ENDPOINT' ], [ GET => '/v1/usage?group=month' ],
	[ GET => '/v1/delivery-stats' ], [ GET => '/v1/credits' ],
	[ GET => '/v1/credit-history' ], [ POST => '/v1/api-keys/KEY/rotate', { overlap => 60 } ],
	[ POST => '/v1/api-keys/KEY/revoke', {} ]);
my ($endpoint, $new_key) = (0, 0);
foreach my $call (@calls)
{
	my ($method, $path, $body) = @$call;
	my $name = "$method $path";

	$path =~ s/ENDPOINT/$endpoint/;
	$path =~ s/KEY/$new_key/;
	answers($http->ask($method => $path, $body), 403, 'permission_denied', "$name is not for every key");
	$r = $http->ask($method => $path, $body, key => $admin);
	$endpoint = $r->{json}{endpoint_id} if $name eq 'POST /v1/webhook-endpoints';
	$new_key = $r->{json}{key_id} if $name eq 'POST /v1/api-keys';

	# Templates need an account of Meta's
	like($r->{status}, $path =~ /templates/ && $method eq 'POST' ? qr/^(202|403|409)$/ : qr/^20[0124]$/,
		"$name answers") or diag($r->{body});
	ok(defined $r->{headers}{'x-ratelimit-remaining'}, 'with the headers of limits');
}
answers($http->ask(DELETE => '/v1/webhook-endpoints/4711', undef, key => $admin), 404, 'not_found',
	'an endpoint that is not there');

# Times are of one form, and of the calendar
my $named = 'field "from" must be a time such as 2026-06-02T19:17:32Z';
foreach my $case (
	[ '2026-06-02T19:17:32Z' ], [ '2026-06-02t19:17:32.123456z' ], [ '2026-06-02T19:17:32%2B05:30' ],
	[ 'yesterday', $named ], [ 'infinity', $named ], [ '2026-06-02', $named ], [ '2026-06-02T19:17:32', $named ],
	[ '2026-06-02T19:17:32+05:30', $named ], [ '2026-06-02%2019:17:32Z', $named ],
	[ '2026-06-02T19:17:32Zx', $named ],
	[ '2026-02-30T00:00:00Z', 'field "from" has a value that is not valid' ])
{
	my ($time, $message) = @$case;

	$r = $http->ask(GET => "/v1/usage?to=2026-06-03T00:00:00Z&from=$time", undef, key => $admin);
	is("$r->{status} " . ($r->{json}{error}{message} // ''), '400 ' . $message, "$time is refused") if $message;
	is($r->{status}, 200, "$time is taken") unless $message;
}

# Revoked and suspended
$node->run("SELECT otp.suspend_workspace('other')");
answers($http->ask(POST => SEND, { phone => '+15550239998' }, key => $other), 403, 'workspace_suspended',
	'a workspace that is suspended');
$node->run("SELECT otp.revoke_api_key(key_id) FROM otp.api_keys WHERE name = 'web'");
answers($http->ask(GET => OTP), 401, 'invalid_api_key', 'a revocation bites at once');

my $log = slurp_file($node->logfile);
unlike($log, qr/9198765|1555023/, 'no phone is in the log');
unlike($log, qr/oat_[0-9A-Za-z]{20}/, 'and no key');
$node->stop;
done_testing();
