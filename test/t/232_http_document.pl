# 232_http_document.pl
#	What /openapi.json promises is what comes.
#
# Every operation of the document is called, so that each answer that it has
# comes once: well, with an argument that is wrong, without a key. Protects
# those who generate clients from it: each answer has its schema, no field that
# the document does not know, no status and no code that it does not tell of.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use OTP::Cluster;
use OTP::Requests;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $url = "http://127.0.0.1:$port";
my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'main',
	conf => [
		'otp.allow_private_webhooks = on', "otp.http_port = $port", "otp.http_listen_addresses = '127.0.0.1'",
		'otp.http_max_body = 16', "otp.http_public_url = '$url'" ]);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run(<<'END');
UPDATE otp.workspaces SET credits_metered = true, credits_low = 5, fallback_credits = 2;
SELECT otp.add_credits('default', 1000, 'first order');
SELECT otp.set_test_number('+15550232' || to_char(i, 'FM000'), '482915', outcome)
FROM unnest('{delivered,sms_fallback,rate_limit_exceeded,meta_api_unavailable,insufficient_credits,failed,pending}'::text[])
	WITH ORDINALITY t (outcome, i);
END
$node->run("SELECT otp.create_workspace('bare')");
my $key = $node->value("SELECT api_key FROM otp.create_api_key('default', 'web')");
my $admin = $node->value("SELECT api_key FROM otp.create_api_key('default', 'boss', admin => true)");
my $bare = $node->value("SELECT api_key FROM otp.create_api_key('bare', 'boss', admin => true)");
my $http = OTP::Requests->new(port => $port, key => $admin);
poll_until { HTTP::Tiny->new(timeout => 10)->get("$url/healthz")->{success} } or BAIL_OUT('nobody listens');
$sim->config({ callback_url => "$url/callbacks/meta/meta" });

my $document = $http->ask(GET => '/openapi.json', undef, key => undef)->{json};
my $schemas = $document->{components}{schemas};
my @codes = $schemas->{Error}{properties}{error}{properties}{code}{description} =~ /\b([a-z]+(?:_[a-z]+)+|unavailable|conflict)\b/g;

#
# A judge of schemas: as much of JSON Schema as the document needs, and no more
#
my %known = map { $_ => 1 } qw($ref type required properties additionalProperties items enum const format pattern minimum
  maximum minLength maxLength maxItems description example default);
my (%seen, %declared);

# Follow references
sub resolved
{
	my ($of) = @_;

	while (my $reference = $of->{'$ref'})
	{
		my @path = $reference =~ m!^#/(\w+)/(\w+)/(\w+)$! or die "reference $reference";
		$of = $document->{ $path[0] }{ $path[1] }{ $path[2] } or die "nothing at $reference";
	}
	return $of;
}

# Is a value of this type?
sub has_type
{
	my ($value, $type) = @_;
	my $text = JSON::PP->new->allow_nonref->canonical->encode($value);

	return $text eq 'null' if $type eq 'null';
	return $text =~ /^(true|false)$/ if $type eq 'boolean';
	return $text =~ /^-?\d+$/ if $type eq 'integer';
	return $text =~ /^-?\d/ if $type eq 'number';
	return $text =~ /^"/ if $type eq 'string';
	return ref $value eq 'ARRAY' if $type eq 'array';
	return ref $value eq 'HASH' if $type eq 'object';
	die "type $type";
}

# Tell what is wrong with a value
sub complaints
{
	my ($value, $schema, $at) = @_;
	my $s = resolved($schema);
	my @types = ref $s->{type} ? @{ $s->{type} } : ($s->{type} // ());
	my @wrong = map { "$at: the document has a word that is not looked at: $_" } grep { !$known{$_} } keys %$s;

	return (@wrong, "$at is no " . join ' or ', @types) if @types && !grep { has_type($value, $_) } @types;
	push @wrong, "$at is none of its values" if $s->{enum} && !grep { $_ eq ($value // '') } @{ $s->{enum} };
	push @wrong, "$at is not what it always is" if exists $s->{const} && $s->{const} ne $value;
	push @wrong, "$at does not look like it" if $s->{pattern} && $value !~ /$s->{pattern}/;
	push @wrong, "$at is no time"
	  if ($s->{format} // '') eq 'date-time' && defined $value && $value !~ /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/;
	if (ref $value eq 'ARRAY')
	{
		push @wrong, map { complaints($value->[$_], $s->{items}, "$at\[]") } 0 .. $#$value;
	}
	elsif (ref $value eq 'HASH')
	{
		my ($name) = ($schema->{'$ref'} // "/$at") =~ m!/([^/]*)$!;

		push @wrong, map { "$at has no $_" } grep { !exists $value->{$_} } @{ $s->{required} // [] };
		foreach my $member (sort keys %$value)
		{
			my $member_schema = $s->{properties}{$member};

			$seen{"$name.$member"} = 1;
			if ($member_schema) { push @wrong, complaints($value->{$member}, $member_schema, "$at.$member") }
			elsif (!$s->{additionalProperties}) { push @wrong, "$at has $member, which the document does not know" }
		}
	}
	return @wrong;
}

# The operation behind a request
sub operation
{
	my ($method, $target) = @_;
	my ($path) = $target =~ /^([^?]*)/;
	my @matching = sort { ($a =~ tr/{//) <=> ($b =~ tr/{//) }
	  grep { my $pattern = s/\{\w+\}/[^\/]+/gr; $path =~ /^$pattern$/ } keys %{ $document->{paths} };

	return $document->{paths}{ $matching[0] }{ lc $method } // die "the document has no $method $target";
}

# Ask, and compare with the document
my %answered;

sub check
{
	my ($wanted, $method, $target, $body, %headers) = @_;
	my $r = $http->ask($method => $target, $body, %headers);
	my $operation = operation($method, $target);
	my $answer = $operation->{responses}{ $r->{status} };
	my $name = "$operation->{operationId} $r->{status}";
	my @wrong;

	$answered{$name} = 1;
	is($r->{status}, $wanted, "$method $target: $wanted") or diag($r->{body});
	ok($answer, "$name is in the document") or return $r;
	$answer = resolved($answer);
	push @wrong, "header $_ is missing"
	  foreach grep { $_ ne 'Retry-After' && !exists $r->{headers}{ lc $_ } } keys %{ $answer->{headers} // {} };
	push @wrong, "header $_ is no number"
	  foreach grep { ($r->{headers}{ lc $_ } // 0) !~ /^\d+$/ } keys %{ $answer->{headers} // {} };
	push @wrong, 'header Retry-After is missing' if $r->{status} == 503 && !exists $r->{headers}{'retry-after'};
	if (my $content = $answer->{content})
	{
		my ($type) = keys %$content;

		push @wrong, "type $r->{headers}{'content-type'}" if $r->{headers}{'content-type'} !~ /^\Q$type\E(?:$|;)/;
		push @wrong, complaints($r->{json}, $content->{$type}{schema}, 'answer') if $type eq 'application/json';
	}
	elsif (length $r->{body}) { push @wrong, 'there is a body' }
	if ($r->{status} >= 400 && ref $r->{json}{error})
	{
		my $code = $r->{json}{error}{code};

		push @wrong, "code $code" unless grep { $_ eq $code } @codes;
		push @wrong, "code $code is not told of beside $r->{status}" unless $answer->{description} =~ /\b$code\b/;
	}
	is_deeply(\@wrong, [], "$name is as the document says") or diag($r->{body});
	return $r;
}

#
# Codes
#
use constant {
	OTP => '/v1/whatsapp/otp',
	NO_ID => 'otp_01HXK7QZRN8V4M2P9D3Y5F6G7H'
};
my %phone;
@phone{qw(delivered sms_fallback rate_limit_exceeded meta_api_unavailable insufficient_credits failed pending)} =
  map { sprintf '+15550232%03d', $_ } 1 .. 7;

my $hook = check(
	201,
	POST => '/v1/webhook-endpoints',
	{ url => $sim->base_url . '/hook', events => [ 'otp.sent', 'otp.verified' ], description => 'a hook' })
  ->{json}{endpoint_id};
my %send = (phone => '+15550232100', template => 'otp_verification', length => 6, expires_in => 300, language => 'en_US');
my %more = (fallback_sms => JSON::PP::false, metadata => { user => { id => 7 } });
my $id = check(200, POST => OTP . '/send', { %send, %more })->{json}{otp_id};
$node->run("UPDATE otp.workspaces SET sends_per_phone_hour = 100");
ok( poll_until { $http->ask(GET => OTP . "/$id")->{json}{delivered_at} }, 'it was delivered');
check(200, POST => OTP . "/$id/resend", {});
check(200, POST => OTP . "/$id/resend", { channel => 'sms' });
check(200, GET => OTP . "/$id");
check(429, POST => OTP . "/$id/resend", {});
my $code = ($sim->inbox('+15550232100'))[0]{code};
check(200, POST => OTP . '/verify', { otp_id => $id, code => $code eq '000000' ? '000001' : '000000' });
check(200, POST => OTP . '/verify', { otp_id => $id, code => $code });
check(422, POST => OTP . '/verify', { otp_id => $id, code => $code });
check(422, POST => OTP . "/$id/resend", {});
check(200, GET => OTP . "/$id");
check(200, POST => OTP . '/send', { phone => $phone{sms_fallback}, fallback_sms => JSON::PP::true });
$sim->behave({ match => { phone => '+15550232101', api => 'meta' }, do => { code => 131026 } });
check(200, POST => OTP . '/send', { phone => '+15550232101', fallback_sms => JSON::PP::true });
my $failed = check(424, POST => OTP . '/send', { phone => '+15550232101' })->{json}{error}{otp_id};
like(check(200, GET => OTP . "/$failed")->{json}{error_detail}, qr/131|\w/, "the provider's words");
check(200, GET => OTP . '?limit=2');
check(200, GET => OTP . '?phone=%2B15550232100&status=verified');
check(200, GET => OTP . '?phone=%2B15550232999');
my $other = check(200, POST => OTP . '/send', { phone => $phone{pending}, context => 'c' })->{json}{otp_id};
check(200, POST => OTP . "/$other/cancel", {});
check(200, POST => OTP . "/$other/cancel", {});
check(409, POST => OTP . '/verify', { otp_id => $other, code => '482915', context => 'c' });
check(409, POST => OTP . "/$other/resend", {});
$other = check(200, POST => OTP . '/send', { phone => $phone{pending}, context => 'e' })->{json}{otp_id};
$node->run("SELECT otp.simulate('$other', 'expired')");
check(410, POST => OTP . '/verify', { otp_id => $other, code => '482915', context => 'e' });
check(410, POST => OTP . "/$other/resend", {});
$other = check(424, POST => OTP . '/send', { phone => $phone{failed} })->{json}{error}{otp_id};
check(424, POST => OTP . '/verify', { otp_id => $other, code => '482915' });
check(424, POST => OTP . "/$other/resend", {});
check(200, GET => OTP . "/$other");
check(429, POST => OTP . '/send', { phone => $phone{rate_limit_exceeded} });
check(503, POST => OTP . '/send', { phone => $phone{meta_api_unavailable} });
check(402, POST => OTP . '/send', { phone => $phone{insufficient_credits} });
check(400, POST => OTP . '/send', { phone => '12' });
check(400, POST => OTP . '/send', { %send, template => 'nope' });
my $keep = check(200, POST => OTP . '/send', { %send, context => 'once' }, 'Idempotency-Key' => 'once')->{json}{otp_id};
check(409, POST => OTP . '/send', { %send, context => 'twice' }, 'Idempotency-Key' => 'once');
$other = check(200, POST => OTP . '/send', { phone => $phone{pending}, context => 'three' })->{json}{otp_id};
check($_ == 4 ? 429 : 200, POST => OTP . '/verify', { otp_id => $other, code => '000000', context => 'three' }) foreach 1 .. 4;
check(200, GET => '/v1/rate-limits');
check(400, GET => '/v1/rate-limits?phone=%2B15550232100&limit_keys=ip:192.0.2.1');
$node->run("INSERT INTO otp.key_limits SELECT workspace_id, 'ip', 5, 20 FROM otp.workspaces WHERE name = 'default'");
check(200, POST => OTP . '/send', { phone => $phone{delivered}, context => 'key', limit_keys => ['ip:192.0.2.1'] });
check(200, GET => '/v1/rate-limits?phone=%2B15550232100&limit_keys=ip:192.0.2.1');

#
# Keys, templates, webhooks
#
my $new = check(201, POST => '/v1/api-keys', { name => 'new', expires_at => '2099-01-01T00:00:00Z' })->{json};
my $next = check(200, POST => "/v1/api-keys/$new->{key_id}/rotate", { overlap => 60 })->{json};
check(409, POST => "/v1/api-keys/$new->{key_id}/rotate", {});
check(204, POST => "/v1/api-keys/$next->{key_id}/revoke");
check(404, POST => "/v1/api-keys/4711/revoke");
check(404, POST => "/v1/api-keys/4711/rotate");
check(200, GET => '/v1/api-keys');
check(200, GET => '/v1/api-keys?limit=1');
my %template = (name => 'login', code_expiration_minutes => 5, button => 'copy_code');
check(202, POST => '/v1/templates', { %template, variant_of => 'otp_verification' });
check(202, POST => '/v1/templates/sync', {});
ok( poll_until { $node->value("SELECT count(*) FROM otp.templates WHERE name = 'login' AND checked_at IS NOT NULL") > 0 },
	'Meta has it');
check(409, POST => '/v1/templates', { %template, name => 'otp_verification' });
check(409, POST => '/v1/templates/sync', {}, key => $bare);
check(200, GET => '/v1/templates');
check(200, GET => '/v1/templates?limit=1');
check(201, POST => '/v1/webhook-endpoints', { url => $sim->base_url . '/all' });
my $hooks = "/v1/webhook-endpoints/$hook";
check(202, POST => "$hooks/test", { event => 'otp.sent' });
check(202, POST => "$hooks/test");
check(202, POST => "$hooks/replay", { since => '2026-01-01T00:00:00Z', only_failed => JSON::PP::false });
check(200, POST => "$hooks/rotate-secret");
ok( poll_until { @{ $http->ask(GET => "/v1/webhook-deliveries?endpoint_id=$hook")->{json}{data} } > 1 }, 'it was tried');
check(200, GET => "/v1/webhook-deliveries?endpoint_id=$hook");
check(200, GET => "/v1/webhook-deliveries?endpoint_id=$hook&limit=1");
check(204, POST => "$hooks/pause");
check(200, GET => '/v1/webhook-endpoints');
check(204, POST => "$hooks/resume");
$node->run("UPDATE otp.webhook_endpoints SET status = 'disabled', disabled_reason = 'gone', disabled_at = now()"
	  . " WHERE endpoint_id = $hook");
check(200, GET => '/v1/webhook-endpoints');
check(409, POST => "$hooks/$_") foreach qw(pause test replay);
check(204, DELETE => $hooks);
check(404, $_->[0] => $_->[1]) foreach ([ DELETE => $hooks ], map { [ POST => "$hooks/$_" ] } qw(pause resume rotate-secret test replay));

$http->ask(POST => '/v1/webhook-endpoints', { url => $sim->base_url . "/$_" }, key => $bare) foreach 1 .. 16;
check(409, POST => '/v1/webhook-endpoints', { url => $sim->base_url . '/17' }, key => $bare);
my ($bare_hook) = map { $_->{endpoint_id} } @{ $http->ask(GET => '/v1/webhook-endpoints', undef, key => $bare)->{json} };
$node->run("UPDATE otp.webhook_endpoints SET url = 'http://192.0.2.1/' WHERE endpoint_id = $bare_hook");

#
# Figures
#
$node->run("INSERT INTO otp.usage_days SELECT workspace_id, current_date, 'sms', 'US', '', 'USD', 1, 1, 1, 1, 1, 1, 0.0075"
	  . " FROM otp.workspaces WHERE name = 'default'");
check(200, GET => "/v1/usage?group=$_") foreach qw(day month channel country);
check(200, GET => '/v1/usage');
check(200, GET => '/v1/delivery-stats');
check(200, GET => '/v1/credits');
check(200, GET => '/v1/credit-history');
check(200, GET => $_, undef, key => undef) foreach qw(/healthz /metrics /openapi.json);

#
# What each operation answers to what is wrong
#
foreach my $path (sort keys %{ $document->{paths} })
{
	foreach my $method (map { uc } sort keys %{ $document->{paths}{$path} })
	{
		my $operation = $document->{paths}{$path}{ lc $method };
		my $target = $path =~ s/\{otp_id\}/NO_ID/er;
		my %any = (otp_id => NO_ID, code => '000000', phone => '+15550232100', name => 'x', url => 'https://x.example');
		my $properties = resolved($operation->{requestBody}{content}{'application/json'}{schema} // {})->{properties};
		my $body = $method eq 'POST' ? { map { $_ => $any{$_} } grep { $properties->{$_} } keys %any } : undef;
		my $query = $path eq '/v1/webhook-deliveries' ? '?endpoint_id=1' : '';

		$target =~ s/\{\w+\}/4711/;
		next if ref $operation->{security} && !@{ $operation->{security} };
		check(401, $method => $target . $query, $body, key => undef);
		check(403, $method => $target . $query, $body, key => $key) if $path !~ /whatsapp|rate-limits/;
		check(400, $method => "$target?no_such=1");
		next unless $method eq 'POST';
		check(400, $method => $target, { no_such => 1 });
		check(400, $method => $target, '{', 'Content-Type' => 'application/json');
		check(413, $method => $target, '{' . ' ' x 20_000 . '}', 'Content-Type' => 'application/json');
		check(415, $method => $target, '{}', 'Content-Type' => 'text/plain');
	}
}
check(404, GET => OTP . '/' . NO_ID);
check(404, POST => OTP . '/' . NO_ID . '/resend', {});
check(404, POST => OTP . '/verify', { otp_id => NO_ID, code => '000000' });
$node->run("UPDATE otp.workspaces SET whatsapp_enabled = false");
check(403, POST => OTP . '/send', { %send, context => 'off' });
$node->run("UPDATE otp.workspaces SET whatsapp_enabled = true; SELECT otp.suspend_workspace('default')");
check(403, POST => OTP . '/send', { %send, context => 'suspended' });
check(403, POST => OTP . "/$keep/resend", {});
check(403, GET => OTP);
$node->run("SELECT otp.resume_workspace('default'), otp.add_credits('default', -balance) FROM otp.credit_balances"
	  . " WHERE workspace = 'default'");
check(402, POST => OTP . "/$keep/resend", {});

# So many jobs at a time, and no more
foreach my $case ([ '/v1/templates/sync' ], [ '/v1/templates', { name => 'x' } ], [ '/v1/webhook-endpoints', { url => 'https://x.example' } ],
	map { ["/v1/webhook-endpoints/$bare_hook/$_"] } qw(pause resume rotate-secret test replay))
{
	my ($path, $body) = @$case;
	my @key = (key => $path =~ /templates/ ? $admin : $bare);

	ok( poll_until { $http->ask(POST => $path, $body // {}, @key)->{status} == 429 }, "$path: there is a limit");
	check(429, POST => $path, $body // {}, @key);
}

# No promise that is never kept
my @unseen;
foreach my $name (sort keys %$schemas)
{
	next if $name =~ /Request$/;
	push @unseen, map { "$name.$_" } grep { !$seen{"$name.$_"} } sort keys %{ $schemas->{$name}{properties} // {} };
}
is_deeply(\@unseen, [], 'each field that is promised was seen');
my @unanswered;
foreach my $operations (values %{ $document->{paths} })
{
	foreach my $operation (values %$operations)
	{
		push @unanswered, grep { !$answered{$_} } map { "$operation->{operationId} $_" } keys %{ $operation->{responses} };
	}
}


# But for what has to break first, and a code that expires before it is sent
is_deeply([ sort grep { !/ 50[03]$/ } @unanswered ], ['otp_send 410'], 'and each status');

$node->stop;
done_testing();
