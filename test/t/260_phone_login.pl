# 260_phone_login.pl
#	The guide to PostgREST works as it stands: set-up, phone login, GoTrue.
#
# Protects: the SQL of doc/postgrest.md, run word by word. A code becomes a
# token that PostgREST would take, and one only, whatever is rolled back;
# wrong codes count; nobody but the owner of the functions can read the secret
# or sign.

use strict;
use warnings;

use Cwd qw(abs_path);
use Digest::SHA qw(hmac_sha256);
use File::Basename qw(dirname);
use JSON::PP;
use MIME::Base64 qw(decode_base64url encode_base64url);
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $guide = slurp_file(dirname(abs_path(__FILE__)) . '/../../doc/postgrest.md');

# The SQL under a heading of the guide
sub sql_of
{
	my ($heading) = @_;
	my ($section) = $guide =~ /^## \Q$heading\E\n(.*?)(?=^## |\z)/ms or die "no section $heading";
	my @blocks = $section =~ /^```sql\n(.*?)^```$/msg;

	return join "\n", @blocks;
}

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run('CREATE ROLE supabase_auth_admin LOGIN');
foreach my $heading ('Set-up', 'Phone login', 'GoTrue')
{
	$node->run(sql_of($heading));
	pass("the SQL of \"$heading\" runs");
}
$node->wait_for_sender;

# Call a function as PostgREST does for somebody without a token; gives status and answer
sub request
{
	my ($function, $args, %options) = @_;
	my $headers = JSON::PP->new->canonical->encode({ host => 'localhost', %{ $options{headers} // {} } });
	my $call = join ', ', map { "$_ => " . OTP::Cluster::quote($args->{$_}) } sort keys %$args;
	my $end = $options{end} // 'COMMIT';
	my $role = $options{role} // 'anon';
	my $out = $node->run(<<"END", user => 'authenticator');
BEGIN;
SELECT set_config('role', '$role', true), set_config('request.headers', @{[ OTP::Cluster::quote($headers) ]}, true)
\\g /dev/null
SELECT $function($call);
SELECT coalesce(nullif(current_setting('response.status', true), ''), '200');
$end;
END
	my ($body, $status) = $out =~ /\A(.*)\n(\d+)\z/s or die "not an answer: $out";

	return ($status, JSON::PP->new->utf8->decode($body));
}

# Take a token apart, if it is signed by the secret
sub claims_of
{
	my ($token) = @_;
	my $secret = $node->value('SELECT jwt_secret FROM login.secret');
	my ($head, $body, $signature) = split /\./, $token;

	return undef unless $signature eq encode_base64url(hmac_sha256("$head.$body", $secret));
	is_deeply(JSON::PP->new->decode(decode_base64url($head)), { alg => 'HS256', typ => 'JWT' }, 'the head of a JWT');
	return JSON::PP->new->utf8->decode(decode_base64url($body));
}

#
# A code, and a token for it
#
my $phone = '+15550260001';
my ($status, $answer) = request('api.request_login', { phone => $phone });
is($status, 200, 'a code is asked for');
my $id = $answer->{otp_id};
my $code = $sim->code_for($id);
my $wrong = sprintf '%06d', ($code + 1) % 1_000_000;

($status, $answer) = request('api.login', { otp_id => $id, code => $wrong });
is($status, 401, 'a wrong code');
is_deeply($answer,
	{ code => 'invalid_code', message => 'the code is not valid', attempts_remaining => 2, retry_after => undef },
	'says how many attempts remain');
($status, $answer) = request('api.login', { otp_id => $id, code => $wrong }, end => 'ROLLBACK');
is($answer->{attempts_remaining}, 1, 'rolled back, it counts all the same');

($status, $answer) = request('api.login', { otp_id => $id, code => $code }, headers => { prefer => 'tx=rollback' });
is($status, 400, 'who asks for a rollback');
is($answer->{token}, undef, 'gets no token');

($status, my $first) = request('api.login', { otp_id => $id, code => $code }, end => 'ROLLBACK');
is($status, 200, 'a right code, rolled back by other means');
($status, my $second) = request('api.login', { otp_id => $id, code => $code });
is($status, 200, 'can be used again');
is($second->{token}, $first->{token}, 'and makes the same token');
($status, $answer) = request('api.login', { otp_id => $id, code => $code });
is("$status $answer->{code}", '401 otp_already_verified', 'but not a third time');

my $claims = claims_of($second->{token});
my $user = $node->row("SELECT user_id, phone_verified_at IS NOT NULL AS verified FROM login.users WHERE phone = '$phone'");
ok($user->{verified}, 'the user is there, and verified');
my $sent = $node->value("SELECT extract(epoch FROM created_at)::bigint FROM otp_status('$id')");
is_deeply($claims,
	{ role => 'member', sub => $user->{user_id}, phone => $phone, jti => $id, iat => $sent + 0, exp => $sent + 86400 },
	'what the token says');

#
# What is no login
#
($status, $answer) = request('api.request_login', { phone => '15550260002' });
is("$status $answer->{code}", '400 invalid_phone', 'no phone');
is($node->value('SELECT count(*) FROM login.users'), 1, 'makes no user');
my $other = $node->send('+15550260003', context => 'payment 4711');
($status, $answer) = request('api.login', { otp_id => $other, code => $sim->code_for($other) });
is("$status $answer->{code}", '401 invalid_code', 'a code for something else');
$other = $node->send('+15550260004', context => 'login');
($status, $answer) = request('api.login', { otp_id => $other, code => $sim->code_for($other) });
is("$status $answer->{code}", '401 otp_not_found', 'one of somebody who has not asked for a login');
($status, $answer) = request('api.login', { otp_id => 'otp_01HXK7QZRN8V4M2P9D3Y5F6G7H', code => '482915' });
is("$status $answer->{code}", '401 otp_not_found', 'one that is not there');
($status, $answer) = request('api.request_login', { phone => '+15550260005' });
($id, $code) = ($answer->{otp_id}, $sim->code_for($answer->{otp_id}));
$wrong = sprintf '%06d', ($code + 1) % 1_000_000;
request('api.login', { otp_id => $id, code => $wrong }, end => 'ROLLBACK') foreach 1 .. 3;
($status, $answer) = request('api.login', { otp_id => $id, code => $code });
is("$status $answer->{code}", '429 rate_limit_exceeded', 'and after three wrong ones the right one is none');

#
# Who cannot read or sign
#
foreach my $role (qw(anon member))
{
	foreach my $what ('jwt_secret FROM login.secret', "login.sign('{}')", 'phone FROM login.users')
	{
		my $e = $node->error_of("SET ROLE $role; SELECT $what", user => 'authenticator');
		is($e->{sqlstate}, '42501', "$role may not: $what");
	}
}
is($node->error_of('SET ROLE phone_login', user => 'authenticator')->{sqlstate}, '42501', 'nor become the owner');
is($node->error_of("SET ROLE member; SELECT api.login('x', 'x')", user => 'authenticator')->{sqlstate},
	'42501', 'a member need not log in');

#
# GoTrue
#
$node->run("SELECT otp_api.gotrue_send_sms('{\"sms\": {\"otp\": \"482915\", \"phone\": \"15550260006\"}}')",
	user => 'supabase_auth_admin');
is($sim->code_for('+15550260006'), '482915', 'its code arrives');

done_testing;
