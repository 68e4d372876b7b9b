# A policy function that is late, stubborn, loud or in the way.
#
# This protects the callers of otp_send: the function's own time limit holds
# whatever it does, and nothing of it is left behind to strike a later
# statement; a cancel, a time-out or the end of the session that is the
# caller's own is no matter of policy; and the log tells what went wrong
# without the phone. And it protects the shadow: not even the code that could
# be derived for it is right.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;
use Time::HiRes qw(time);

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['max_prepared_transactions = 5']);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->create_user('app');
$node->run(<<'END');
CREATE ROLE policy;
CREATE SCHEMA pol AUTHORIZATION policy;
GRANT USAGE ON SCHEMA otp TO policy;
GRANT USAGE ON TYPE otp.send_request TO policy;
SET ROLE policy;
CREATE TABLE pol.asked (phone text, answer text);
CREATE TABLE pol.counter AS SELECT 0 AS n;
CREATE FUNCTION pol.sleeps(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO pol.asked VALUES (r.phone, 'late');
	PERFORM pg_sleep((r.metadata ->> 'seconds')::float8);
	RETURN 'allow';
END $$;
CREATE FUNCTION pol.spins(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		NULL;
	END LOOP;
END $$;
CREATE FUNCTION pol.waits(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	UPDATE pol.counter SET n = n + 1;
	RETURN 'allow';
END $$;
-- Catches the cancel so often as metadata says
CREATE FUNCTION pol.stubborn(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. (r.metadata ->> 'times')::int LOOP
		BEGIN
			PERFORM pg_sleep(60);
		EXCEPTION WHEN query_canceled THEN NULL;
		END;
	END LOOP;
	RETURN 'allow';
END $$;
CREATE FUNCTION pol.fails(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'no code for %', r.phone USING DETAIL = r.phone, HINT = r.phone;
END $$;
CREATE FUNCTION pol.babbles(r otp.send_request) RETURNS text LANGUAGE sql AS $$ SELECT r.phone $$;
CREATE FUNCTION pol.judges(r otp.send_request) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text := CASE WHEN r.phone ~ '[78]$' THEN 'shadow' WHEN r.phone ~ '9$' THEN 'deny' ELSE 'allow' END;
BEGIN
	INSERT INTO pol.asked VALUES (r.phone, answer);
	RETURN answer;
END $$;
END

my $phones = 0;

sub new_phone
{
	return sprintf '+1555018%04d', ++$phones;
}

sub set_policy
{
	my ($function, $timeout) = @_;
	$node->run("UPDATE otp.workspaces SET policy_function = '$function', policy_timeout = '$timeout'");
	return;
}

# What a send comes to: ok, or the SQLSTATE and message of its error
sub outcome
{
	my ($metadata, %args) = @_;
	my $before = $args{before} // '';
	my $phone = $args{phone} // new_phone();
	my $e = $node->error_of("$before SELECT * FROM otp_send('$phone', metadata => '$metadata')", user => 'app');
	return $e ? "$e->{sqlstate} $e->{message}" : 'ok';
}

my $denied = "OT403 the workspace's policy denies this send";

# Late: in a sleep, in a loop, in a wait for a lock, and behind the time without noticing
set_policy('pol.sleeps', '100 ms');
my $start = time;
is(outcome('{"seconds": 60}'), $denied, 'one that sleeps is late');
set_policy('pol.spins', '100 ms');
is(outcome('{}'), $denied, 'one that spins');
set_policy('pol.waits', '100 ms');
my $holder = $node->background_psql('postgres', on_error_stop => 0);
$holder->query_safe('BEGIN; UPDATE pol.counter SET n = n');
is(outcome('{}'), $denied, 'one that waits for a lock');
$holder->query_safe('ROLLBACK');
is(outcome('{}'), 'ok', 'and is in time when the lock is free');
set_policy('pol.stubborn', '100 ms');
is(outcome('{"times": 1}'), $denied, 'one that catches the cancel, and answers');
is(outcome('{"times": 4}'), $denied, 'one that catches it four times');
cmp_ok(time - $start, '<', 30, 'nobody had to wait for that');
is($node->value("SELECT count(*) FROM pol.asked"), 0, 'what a late one wrote is gone');
set_policy('pol.sleeps', '10 s');
is(outcome('{"seconds": 0.3}'), 'ok', 'in time is in time');

# Who does not stop loses the session, and nobody else does
set_policy('pol.stubborn', '50 ms');
my $e = $node->error_of(q(SELECT * FROM otp_send('+15550180900', metadata => '{"times": 1000000}')), user => 'app');
is($e->{severity}, 'FATAL', 'one that never stops ends the session');
is($e->{sqlstate}, '57P01', 'as an administrator would');
is($e->{detail}, undef, 'the client does not hear why');
like(PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/DETAIL:  Policy function "pol\.stubborn" went on after its time was over, and caught 10 cancels/,
	'the log does');
is($node->value('SELECT 1'), 1, 'the server goes on');

# Nothing is left armed in a session that goes on
my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe(<<'END');
CREATE FUNCTION try_send(phone text, metadata text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM otp_send(phone, metadata => metadata::jsonb);
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
END
set_policy('pol.sleeps', '300 ms');
foreach my $case ([ 'in time', '{"seconds": 0}', 'ok' ], [ 'failed', '{"seconds": "x"}', 'OT403' ],
	[ 'late', '{"seconds": 60}', 'OT403' ])
{
	my ($what, $metadata, $expected) = @$case;
	my $phone = new_phone();
	is($session->query_safe("BEGIN; SELECT try_send('$phone', '$metadata')"), $expected, $what);
	is($session->query_safe("SELECT pg_sleep(0.8)::text || 'slept'"), 'slept', 'and what follows is not cut short');
	is($session->query_safe("SELECT 'still' FROM pg_sleep(0.1); COMMIT"), 'still', 'nor later');
}
my $late = new_phone();
is($session->query_safe("SET statement_timeout = '1 h'; SELECT try_send('$late', '{\"seconds\": 60}'); RESET statement_timeout"),
	'OT403', 'the limit is the nearer one beside a statement_timeout that is far');

# The caller's own: a cancel, statement_timeout, the end of the session
set_policy('pol.sleeps', '10 s');
is(outcome('{"seconds": 60}', before => "SET statement_timeout = '300 ms';"),
	'57014 canceling statement due to statement timeout', 'statement_timeout is the caller\'s');

sub start_sleeping
{
	my $sleeper = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $sleeper->query_safe('SELECT pg_backend_pid()');
	my $phone = new_phone();
	$sleeper->query_until(qr/asked/,
		qq(\\set VERBOSITY verbose\n\\echo asked\nSELECT try_send('$phone', '{"seconds": 60}');\n\\echo over\n));
	ok($node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $pid"),
		'a function sleeps');
	return ($sleeper, $pid);
}
my ($sleeper, $pid) = start_sleeping();
$node->run("SELECT pg_cancel_backend($pid)");
ok(poll_until { $sleeper->{run}->pump_nb; $sleeper->{stdout} =~ /over/ }, 'a cancel ends it');
like($sleeper->{stderr}, qr/57014: canceling statement due to user request/,
	'as the caller\'s: WHEN OTHERS does not catch it');
$sleeper->{stderr} = '';
is($sleeper->query_safe("SELECT pg_sleep(0.3)::text || 'slept'") =~ s/.*over\n//sr, 'slept', 'the session goes on');
$sleeper->quit;
($sleeper, $pid) = start_sleeping();
$node->run("SELECT pg_terminate_backend($pid)");
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid"),
	'the end of the session is heeded');

# What the log says, and what not
set_policy('pol.fails', '1 s');
is(outcome('{}'), $denied, 'one that fails');
set_policy('pol.babbles', '1 s');
is(outcome('{}'), $denied, 'one that answers something else');
set_policy('nowhere', '1 s');
is(outcome('{}'), $denied, 'one without a schema');
set_policy('pol.nowhere', '1 s');
is(outcome('{}'), $denied, 'one that is not there');
my $text = PostgreSQL::Test::Utils::slurp_file($node->logfile);
like($text, qr/LOG:  policy function "pol\.\w+" of workspace "default" \Q$_\E: the send is denied/, "the log: $_")
  foreach 'did not answer within 100 ms', 'raised SQLSTATE P0001', 'gave an answer that is not allow, deny or shadow',
  'is not there as a function (otp.send_request) that returns text';
like($text, qr/policy function "nowhere" of workspace "default" is not named with its schema/, 'the log: no schema');
unlike($text, qr/555018/, 'no phone is in it');
is($node->error_of(
		"SET client_min_messages = log; SELECT * FROM otp_send('+15550180901')", user => 'app')->{text} =~ /nowhere/,
	'', 'nor does a client hear of it that listens');

# An older snapshot: what would succeed when run again says so
set_policy('pol.waits', '5 s');
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	my $phone = new_phone();
	$holder->query_safe("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM pol.asked");
	$node->run('UPDATE pol.counter SET n = n + 1');
	is($holder->query_safe("SELECT try_send('$phone', '{}')"), '40001', "at $level a conflict is the caller's to run again");
	$holder->query_safe('ROLLBACK');
	is($holder->query_safe("BEGIN ISOLATION LEVEL $level; SELECT try_send('$phone', '{}'); COMMIT"), 'ok', 'and then it succeeds');
}

# Two-phase commit
set_policy('pol.judges', '5 s');
my $two_phase = $node->run(q(BEGIN; SELECT otp_id FROM otp_send('+15550180910'); PREPARE TRANSACTION 'send'));
is($node->value("SELECT count(*) FROM pol.asked WHERE phone = '+15550180910'"), 0, 'what it wrote is prepared');
$node->run(q(COMMIT PREPARED 'send'));
is($node->value("SELECT answer FROM pol.asked WHERE phone = '+15550180910'"), 'allow', 'and committed with the send');
my $code = $sim->code_for($two_phase);
ok($node->verify($two_phase, $code)->{valid}, 'which goes out');

# The shadow's code: what could be derived for it is not right either
my $shadow = $node->send('+15550180917');
my $row = $node->row("SELECT shadowed FROM otp.verifications WHERE id = otp.parse_id('$shadow')");
ok($row->{shadowed}, 'a send is shadowed');
$node->run("UPDATE otp.verifications SET shadowed = false WHERE id = otp.parse_id('$shadow')");
$node->resend($shadow);
$code = $sim->code_for($shadow);
is($node->verify($shadow, $code)->{error}, 'invalid_code', 'even its own code is wrong');

# Eight at once, in every isolation level: each as it was judged, and only what was allowed goes out
$node->run('TRUNCATE pol.asked');
my $from = $node->value('SELECT clock_timestamp()');
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my ($stdout, $stderr);
	PostgreSQL::Test::Utils::append_to_file("$dir/script.sql",
		"\\set n random(1, 9999999)\nBEGIN ISOLATION LEVEL $level;\nSELECT try_send('+1444' || lpad(:n::text, 7, '0'), '{}');\nCOMMIT;\n");
	ok(IPC::Run::run(
			[   $node->installed_command('pgbench'), '-n', '-c', 8, '-j', 2, '-t', 100, '--max-tries=10',
				'-h', $node->host, '-p', $node->port, '-f', "$dir/script.sql", 'postgres' ],
			'<', \undef, '>', \$stdout, '2>', \$stderr), "eight sessions at $level")
	  or diag $stderr;
}
is($node->value(<<"END"), 't', 'every send was judged, and is what its judgement says');
SELECT count(*) > 1000 AND count(*) = count(*) FILTER (WHERE v.shadowed = (a.answer = 'shadow'))
FROM pol.asked a FULL JOIN otp.verifications v ON v.phone = a.phone
WHERE coalesce(a.phone, v.phone) LIKE '+1444%'
END
ok($node->wait_until_sent, 'what is owed goes out');
is($node->value(<<'END'), 't', 'to whom was allowed, and nobody else');
SELECT count(*) = count(*) FILTER (WHERE v.shadowed = (m.verification_id IS NULL))
	AND count(*) FILTER (WHERE v.shadowed) > 100
FROM otp.verifications v LEFT JOIN otp.messages m ON m.verification_id = v.id
WHERE v.phone LIKE '+1444%'
END

$_->quit foreach $holder, $session;
$node->stop;
done_testing;
