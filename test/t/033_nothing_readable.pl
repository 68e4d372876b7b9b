# No code, no secret and no key can be read on disk, and no phone in the log.
#
# 240 codes of eight digits go out over both providers, some of them refused
# with words that quote the phone, some of them made elsewhere and handed in;
# some are guessed right, some wrong; calls
# fail in every way. The server logs all it can: every statement, every nested
# one with its plan, debug messages, pg_stat_statements. Then the whole data
# directory, the log and a dump are searched. Phones are in the tables, that
# is what they are for; they must not be in the log.
#
# What a client writes as a literal is logged by PostgreSQL itself when it is
# told to log statements. So phones come from a table here, secrets and codes
# from files, where a call succeeds; where it fails, they are literals, which
# must not be logged with the error.
use strict;
use warnings;

use File::Find;
use MIME::Base64 qw(encode_base64);
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my %secret = (
	access_token => 'EAAx7Qsecretaccesstoken9aZ',
	app_secret => 'ab12cd34ef56ab78cd90ef12ab34cd56',
	auth_token => 'f0e1d2c3b4a5968778695a4b3c2d1e0f',
	verify_token => 'Vsecretverifytoken-77',
	api_key_secret => 'Ksecretapikeysecret88');

sub write_file
{
	my ($name, $content) = @_;

	unlink "$dir/$name";
	append_to_file("$dir/$name", $content);
	return "$dir/$name";
}

# Initialize a server that logs all it can
my $sim = OTP::Simulator->start(map { $_ => $secret{$_} } qw(app_secret auth_token api_key_secret));
$sim->config({ token => $secret{access_token} });
my $node = OTP::Cluster->start('main', conf => [
		"shared_preload_libraries = 'otp, auto_explain, pg_stat_statements'",
		'log_min_duration_statement = 0', 'log_min_messages = debug1', 'log_error_verbosity = verbose',
		'log_lock_waits = on', 'deadlock_timeout = 10ms', 'log_duration = on',
		'auto_explain.log_min_duration = 0', 'auto_explain.log_nested_statements = on',
		'auto_explain.log_analyze = on', 'auto_explain.log_verbose = on', 'auto_explain.log_triggers = on',
		'pg_stat_statements.track = all', 'track_activity_query_size = 4096' ]);
$node->install;
$node->run('CREATE EXTENSION pg_stat_statements');
write_file($_, "$secret{$_}\n") foreach keys %secret;
$node->call('otp.configure_meta', {
		base_url => $sim->base_url, phone_number_id => $sim->phone_number_id, waba_id => $sim->waba_id,
		map { ("${_}_file" => "$dir/$_") } qw(access_token app_secret verify_token) });
$node->call('otp.configure_twilio', {
		base_url => $sim->base_url, account_sid => $sim->account_sid, api_key_sid => $sim->api_key_sid,
		sender => OTP::Cluster::SMS_SENDER,
		map { ("${_}_file" => "$dir/$_") } qw(auth_token api_key_secret) });
$node->lift_limits;
$node->run('UPDATE otp.workspaces SET default_length = 8');
$node->create_user('app');

# Phones by what will become of them: 1555033nxxx
$node->run(<<'END');
CREATE TABLE people AS
	SELECT '+1555033' || kind || lpad(n::text, 3, '0') AS phone, kind, n, NULL::text AS otp_id
	FROM (VALUES (0, 80), (1, 40), (2, 20), (3, 20), (4, 20), (5, 20), (6, 40)) k (kind, count),
		generate_series(1, k.count) n;
GRANT ALL ON people TO app;
GRANT USAGE ON SCHEMA otp_api TO app;
GRANT EXECUTE ON FUNCTION otp_api.gotrue_send_sms TO app;
CREATE FUNCTION try_code(id text, file text, line int, context text = NULL)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	RETURN (SELECT coalesce(v.error, 'valid')
			FROM otp_verify(id, (string_to_array(pg_read_file(file), E'\n'))[line], context) v);
END $$;
-- Hand a code in, and half of them to send by SMS
CREATE FUNCTION hand_in(line int, file text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
	answer jsonb;
BEGIN
	UPDATE otp.workspaces SET default_channel = CASE WHEN line % 2 = 0 THEN 'sms' ELSE 'whatsapp' END
	WHERE name = 'default';
	answer := otp_api.gotrue_send_sms(jsonb_build_object('sms', jsonb_build_object(
		'phone', (SELECT p.phone FROM people p WHERE p.kind = 6 AND p.n = line),
		'otp', (string_to_array(pg_read_file(file), E'\n'))[line])));
	UPDATE otp.workspaces SET default_channel = 'whatsapp' WHERE name = 'default';
	UPDATE people p SET otp_id = (SELECT otp.format_id(v.id) FROM otp.verifications v WHERE v.phone = p.phone)
	WHERE p.kind = 6 AND p.n = line;
	RETURN answer::text;
END $$;
END

# 1: refused by Meta with words that quote the phone, so it goes out by SMS
# 2: refused by Meta, for good; 3: refused by Twilio, for good
# 4: garbage from Meta that quotes the phone, then by SMS; 5: by SMS
my $quoting = join ' ', map { sprintf '+1555033%1$d%2$03d (1-555-033-%1$d%2$03d, 1 555 033 %1$d%2$03d)', @$_ }
  map { my $kind = $_; map { [ $kind, $_ ] } 1 .. 3 } 1 .. 4;
$sim->behave(
	{ match => { prefix => '+15550331', api => 'meta' }, do => { status => 400, record => \1, content_type => 'application/json',
			raw => qq({"error":{"message":"(#131026) to $quoting","type":"OAuthException","code":131026,)
				. qq("error_data":{"messaging_product":"whatsapp","details":"$quoting"}}}) } },
	{ match => { prefix => '+15550332', api => 'meta' }, do => { status => 400, record => \1, content_type => 'application/json',
			raw => qq({"error":{"message":"(#131026) to $quoting","type":"OAuthException","code":131026}}) } },
	{ match => { prefix => '+15550333', api => 'twilio' }, do => { status => 400, record => \1, content_type => 'application/json',
			raw => qq({"code":21211,"message":"The 'To' number $quoting is not valid","more_info":"https://www.twilio.com/docs/errors/21211","status":400}) } },
	{ match => { prefix => '+15550334', api => 'meta' }, do => { status => 400, record => \1, content_type => 'text/html',
			raw => "<h1>Bad request</h1> $quoting" } });

$node->run(<<'END', user => 'app');
UPDATE people SET otp_id = s.otp_id
FROM (SELECT p.phone, s.otp_id FROM (SELECT * FROM people WHERE kind < 6) p,
		otp_send(p.phone, fallback_sms => kind IN (1, 4), channel => CASE WHEN kind IN (3, 5) THEN 'sms' END) s) s
WHERE s.phone = people.phone
END
my %given;
$given{ sprintf '%08d', rand 100_000_000 } = 1 while keys %given < 40;
my $given_file = write_file('given', join "\n", sort keys %given);
is($node->value("SELECT string_agg(DISTINCT hand_in(n, '$given_file'), ' ') FROM generate_series(1, 40) n"),
	'{}', 'codes are handed in');
is($node->value('SELECT count(*) FROM otp.outbox WHERE octet_length(code) > 8'), 40, 'and sealed');
ok($node->wait_until_sent, 'all is sent or refused');
my %code;
my %count;
foreach my $message ($sim->inbox)
{
	(my $phone = "+$message->{to}") =~ s/^\++/+/;
	$code{$phone} = $message->{code};
	$count{ $message->{channel} }++;
}
my @codes = values %code;
is(scalar @codes, 240, '240 codes are known');
is(scalar(grep { /^\d{8}$/ } @codes), 240, 'of eight digits');
is(scalar(grep { $given{$_} } @codes), 40, 'those that were handed in among them');
note join ', ', map { "$_: $count{$_}" } sort keys %count;
cmp_ok($count{whatsapp}, '>=', 140, 'many over WhatsApp');
cmp_ok($count{sms}, '>=', 100, 'many by SMS');

# Guess: some right, some wrong, some rolled back, some in error
my @rows = $node->rows('SELECT otp_id, phone, kind FROM people ORDER BY phone');
my $file = write_file('codes', join "\n", map { $code{ $_->{phone} } } @rows);
my %outcome = map { $_->{outcome} => $_->{n} } $node->rows(<<"END");
SELECT try_code(otp_id, '$file', CASE WHEN n % 3 = 0 THEN n % 7 + 1 ELSE n END::int,
	CASE WHEN kind = 6 THEN 'gotrue' END) AS outcome, count(*) AS n
FROM (SELECT otp_id, kind, row_number() OVER (ORDER BY phone) AS n FROM people) p GROUP BY 1
END
cmp_ok($outcome{valid}, '>', 80, 'right guesses');
cmp_ok($outcome{invalid_code}, '>', 30, 'wrong ones');
cmp_ok($outcome{otp_failed}, '>', 20, 'and ones of what was not delivered');
$node->run("BEGIN; SELECT try_code(otp_id, '$file', 1) FROM people; ROLLBACK");

# Everything can fail; literals must not be logged with the error
my ($victim) = grep { $node->status($_->{otp_id})->{status} eq 'pending' } @rows;
my ($id, $code) = ($victim->{otp_id}, $code{ $victim->{phone} });
my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; SELECT FROM otp.verifications WHERE id = otp.parse_id('$id') FOR UPDATE");
$node->run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA otp TO app");
my %failing = (
	'a lock that is not to be had' => "SET lock_timeout = 50; SELECT * FROM otp_verify('$id', '$code')",
	'a statement that takes too long' => "SET statement_timeout = 50; SELECT * FROM otp_verify('$id', '$code', phone => '+15550339001')",
	'a read-only transaction' => "BEGIN READ ONLY; SELECT * FROM otp_verify('$id', '$code', phone => '+15550339002')",
	'a send in a read-only transaction' => "BEGIN READ ONLY; SELECT * FROM otp_send('+15550339003')",
	'a phone with blanks' => "SELECT * FROM otp_send('+1 555 033 9004')",
	'a phone without a plus' => "SELECT * FROM otp_send('15550339005')",
	'a phone that is too long' => "SELECT * FROM otp_send('+155503390061555033900615550339006')",
	'a channel that does not exist' => "SELECT * FROM otp_send('+15550339007', channel => '+15550339008')",
	'a template that does not exist' => "SELECT * FROM otp_send('+15550339009', template => '+15550339010')",
	'metadata that is too long' => "SELECT * FROM otp_send('+15550339011', metadata => jsonb_build_object('phone', repeat('+15550339012', 500)))",
	'metadata that is no object' => "SELECT * FROM otp_send('+15550339013', metadata => '[\"+15550339014\"]')",
	'a context that is too long' => "SELECT * FROM otp_send('+15550339015', context => repeat('+15550339016', 50))",
	'a key without a limit' => "SELECT * FROM otp_send('+15550339017', limit_keys => '{phone:+15550339018}')",
	'a key without a prefix' => "SELECT * FROM otp_send('+15550339026', limit_keys => '{+15550339027}')",
	'an idempotency key that is too long' => "SELECT * FROM otp_send('+15550339028', idempotency_key => repeat('+15550339029', 50))",
	'a question with a phone that is none' => "SELECT * FROM otp.rate_limit_status('+1 555 033 9030', '{+15550339031}')",
	'a workspace that is not there' => "SELECT * FROM otp_send('+15550339019', workspace => 'x')",
	'a test number that is none' => "SELECT otp.set_test_number('+1 555 033 9021', '$code')",
	'a code that is handed in read-only' => "BEGIN READ ONLY; SELECT otp_api.gotrue_send_sms('{\"sms\": {\"otp\": \"$code\", \"phone\": \"15550339033\"}}')",
	'a code that is none' => "SELECT otp.set_test_number('+15550339022', 'x${code}x')",
	'a secret with a wrong neighbour' => "SELECT otp.configure_meta(access_token => '$secret{access_token}', base_url => 'ftp://x')",
	'a secret with a blank in it' => "SELECT otp.configure_twilio(auth_token => '$secret{auth_token} ')",
	'a secret from a stranger' => "SET ROLE app; SELECT otp.configure_meta(access_token => '$secret{access_token}')",
	'a test number from a stranger' => "SET ROLE app; SELECT otp.set_test_number('+15550339023', '$code')",
	'a cooldown' => "UPDATE otp.workspaces SET resend_cooldown = '1 h'; SELECT * FROM otp_send('$victim->{phone}')",
	'a limit per phone' => "UPDATE otp.workspaces SET sends_per_phone_hour = 1, resend_cooldown = NULL; SELECT * FROM otp_send('$victim->{phone}')",
	'a resend of nothing' => "SELECT * FROM otp_resend('+15550339024')",
	'a function around it' => "CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE plpgsql AS \$\$ BEGIN PERFORM otp_send('+1 555 033 9025'); END \$\$;\n"
	  . "SELECT pg_temp.f()");
foreach my $name (sort keys %failing)
{
	# what is set up before the call may be logged, and has no secret in it
	my ($setup, $call) = $failing{$name} =~ /^(.*;\s)?(SELECT .*)$/s;
	$setup = '' unless defined $setup && $name ne 'a function around it';
	$setup = "SET log_min_duration_statement = -1; SET auto_explain.log_min_duration = -1; SET log_duration = off;\n"
	  . $failing{$name} =~ s/SELECT pg_temp.f\(\)$//r
	  . "; SET log_min_duration_statement = 0;\n" and $call = 'SELECT pg_temp.f()'
	  if $name eq 'a function around it';
	my $e = $node->error_of(($name =~ /^a (cooldown|limit)/ ? 'BEGIN;' : '') . $setup . $call);
	ok($e, "$name is an error");
	# PL/pgSQL's own context is the client's to see, if not the log's
	(my $text = $e->{text} // '') =~ s/^CONTEXT:.*//ms;
	unlike($text, qr/555\W{0,2}033|\Q$code\E|secret/, 'that quotes nothing back');
}
$holder->query_safe('ROLLBACK');
$holder->quit;

# Two wait for one row, the log tells of it
my $first = $node->background_psql('postgres');
$first->query_safe("BEGIN; SELECT try_code('$id', '$file', 1)");
my $second = $node->background_psql('postgres');
$second->query_until(qr/^$/, "\\echo\nSELECT try_code('$id', '$file', 2);\n");
ok($node->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"),
	'a guess waits for another');
ok($node->wait_for_log(qr/still waiting for/), 'and the log tells');
is($node->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'otp%' AND query ~ '[0-9]{7}'"),
	0, 'no process of ours shows a number');
$first->query_safe('COMMIT');
$first->quit;
$second->quit;

# A dump, the statistics, and the end
command_ok([ 'pg_dump', '-f', "$dir/dump.sql", '-h', $node->host, '-p', $node->port, 'postgres' ], 'dump');
write_file('statements', $node->value('SELECT string_agg(query, E\'\n\') FROM pg_stat_statements'));
$node->stop;

# Everything there is to search
my %found;
find({ no_chdir => 1, wanted => sub { $found{$_} = 1 if -f && !-l && !/otp\.key$/ } }, $node->data_dir);
cmp_ok(scalar keys %found, '>', 500, 'a data directory with many files');
my @text = ($node->logfile, "$dir/dump.sql", "$dir/statements");
my @wal = glob $node->data_dir . '/pg_wal/0*';
my ($wal_text) = run_command([ 'pg_waldump', $wal[0], $wal[-1] ]);
push @text, write_file('waldump', $wal_text);

my %is_code = map { $_ => 1 } @codes;
my ($key) = slurp_file($node->data_dir . '/otp.key') =~ /^([0-9a-fA-F]{64})$/m;
my %forbidden = (%secret, key => $key, raw_key => pack('H*', $key));
my @forms;
foreach my $name (sort keys %forbidden)
{
	my $value = $forbidden{$name};
	push @forms, map { [ $name, lc ] } $value, unpack('H*', $value);

	# in base64 the middle is the same at one of three offsets
	push @forms, map { [ $name, lc substr(encode_base64(('x' x $_) . $value, ''), 4, 20) ] } 0 .. 2;
}
my (%codes_in, @leaks, %numbers);
my $bytes = 0;
foreach my $path (@text, sort keys %found)
{
	my $content = slurp_file($path);
	my %here;

	$bytes += length $content;

	# positions in the WAL have eight hex digits, by chance decimal ones
	$content =~ s{\b[0-9A-F]+/[0-9A-F]{8}\b}{}g unless $found{$path};
	while ($content =~ /(?<![0-9A-Za-z])(\d{8})(?![0-9A-Za-z])/g)
	{
		$numbers{ $found{$path} ? 'binary' : 'text' }{$1} = 1;
		$here{$1} = substr $content, ($-[0] > 40 ? $-[0] - 40 : 0), 90 if $is_code{$1};
	}
	$codes_in{$path} = \%here if %here;
	$content = lc $content;
	push @leaks, map { "$path: $_->[0]" } grep { index($content, $_->[1]) >= 0 } @forms;
}
note sprintf '%d files, %.0f MB, different numbers of eight digits: %d in text, %d elsewhere',
  @text + keys %found, $bytes / 1e6, map { scalar keys %{ $numbers{$_} // {} } } qw(text binary);

# In what is text no code at all; among the numbers that any binary file
# holds, one may be the same by chance (240 in 10^8 each), but hardly two
my %codes_anywhere = map { %{ $codes_in{$_} } } keys %codes_in;
is(scalar(grep { $codes_in{$_} } @text), 0, 'no code in the log, a dump or the statistics');
cmp_ok(scalar keys %codes_anywhere, '<=', 1, 'no codes in the data directory');
foreach my $path (sort keys %codes_in)
{
	diag "$path: " . ($codes_in{$path}{$_} =~ s/[^ -~]/./gr) foreach keys %{ $codes_in{$path} };
}
is(join("\n", @leaks), '', 'no secret and no key anywhere');

# The search would find them: phones are in the heap, on purpose
my $heap = 0;
foreach my $path (keys %found)
{
	$heap++ if slurp_file($path) =~ /\+15550330001(?!\d)/;
}
cmp_ok($heap, '>', 0, 'the search can find: a phone is in the tables');

# ... and not in the log
my $log = slurp_file($node->logfile);
cmp_ok(length $log, '>', 1_000_000, 'the log is long');
like($log, qr/Query Text: INSERT INTO otp\.verifications/, 'and has the nested statements');
my @phones = $log =~ /(.{0,60}555\W{0,3}033\W{0,2}\d{4}.{0,40})/g;
is(scalar @phones, 0, 'no phone is in the log') or diag join "\n", @phones[ 0 .. ($#phones > 9 ? 9 : $#phones) ];

done_testing;
