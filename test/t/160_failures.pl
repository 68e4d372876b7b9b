# However many guess for a phone at once, and whatever becomes of their
# transactions, the delay after failures in a row lets one guess through, and a
# hundred are the end.
#
# This protects the count of failures in a row under concurrency and over the
# life of a server: it is exact in parallel, survives rollback, restart, crash
# and the lack of a sender; only a right guess that has committed ends a row,
# over a restart and as a prepared transaction as well; it is kept for long
# enough, and under the name of a forgotten phone. What happened is counted in
# sequences, which no rollback touches.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = OTP::Cluster->start('main',
	conf => [
		'max_connections = 50', 'restart_after_crash = on', 'max_prepared_transactions = 5', 'otp.delivery = off' ]);
$node->install;
$node->lift_limits;
$node->run(<<'END');
UPDATE otp.workspaces SET failures_per_phone_day = NULL, max_attempts = 10;
CREATE SEQUENCE invalid_code; CREATE SEQUENCE valid; CREATE SEQUENCE failed;
CREATE SEQUENCE rate_limit_exceeded; CREATE SEQUENCE otp_already_verified;

-- Guess, and note where no rollback reaches what came of it
CREATE FUNCTION guess(id text, code text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval(coalesce(v.error, 'valid')::regclass) FROM otp_verify(id, code) v;
EXCEPTION WHEN serialization_failure OR deadlock_detected THEN
	PERFORM nextval('failed');
END $$;

-- The same, and throw it away
CREATE FUNCTION guess_and_fail(id text, code text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM guess(id, code);
	RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
END $$;

-- Verifications of a real phone whose code is 123456
CREATE FUNCTION known(phone text, n int = 1) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
	ids text[];
BEGIN
	PERFORM otp.set_test_number($1, '123456', 'pending');
	FOR i IN 1 .. n LOOP
		ids[i] := (otp_send($1)).otp_id;
	END LOOP;
	PERFORM otp.set_test_number($1, NULL);
	UPDATE otp.verifications v SET test_outcome = NULL, created_xid = 3
	WHERE v.id IN (SELECT otp.parse_id(i) FROM unnest(ids) i);
	RETURN ids;
END $$;
END

my $phones = 0;

sub new_phone
{
	return sprintf '+1555160%04d', ++$phones;
}

# Codes of a phone
sub codes
{
	my ($phone, $n) = @_;
	return split /,/, $node->value("SELECT array_to_string(known('$phone', " . ($n // 1) . "), ',')");
}

# How often each came out since the last time
my %before;

sub outcomes
{
	my %now = map { $_->{sequencename} => $_->{last_value} // 0 }
	  $node->rows('SELECT sequencename, last_value FROM pg_sequences');
	my %since = map { $_ => $now{$_} - ($before{$_} // 0) } keys %now;
	%before = %now;
	return \%since;
}

# Guesses by many at once
sub storm
{
	my ($clients, $transactions, %scripts) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my @files;

	outcomes();
	foreach my $name (sort keys %scripts)
	{
		push @files, '-f', "$dir/$name.sql";
		PostgreSQL::Test::Utils::append_to_file("$dir/$name.sql", $scripts{$name});
	}
	my ($stdout, $stderr) = ('', '');
	my $ok = IPC::Run::run(
		[   $node->installed_command('pgbench'), '-n', '-c', $clients, '-j', 2,
			'-t', $transactions, '-h', $node->host, '-p', $node->port, @files, 'postgres' ],
		'<', \undef, '>', \$stdout, '2>', \$stderr);
	ok($ok && $stderr !~ /aborted/, "$clients clients run $transactions transactions each")
	  or diag $stderr;
	return outcomes();
}

# Every way to guess wrong at one of these codes
sub wrong
{
	my (@ids) = @_;
	my $id = '(ARRAY[' . join(',', map { "'$_'" } @ids) . '])[:n + 1]';
	my $set = "\\set n random(0, $#ids)\n";

	return (
		commit => "${set}SELECT guess($id, 'wrong');\n",
		rollback => "${set}BEGIN;\nSELECT guess($id, 'wrong');\nROLLBACK;\n",
		serializable => "${set}BEGIN ISOLATION LEVEL SERIALIZABLE;\nSELECT 1 FROM pg_class LIMIT 1;\n"
		  . "SELECT guess($id, 'wrong');\nROLLBACK;\n",
		savepoint => "${set}BEGIN;\nSAVEPOINT s;\nSELECT guess($id, 'wrong');\nROLLBACK TO s;\nCOMMIT;\n",
		exception => "${set}SELECT guess_and_fail($id, 'wrong');\n");
}

sub wait_for_write_back
{
	return $node->poll_query_until('postgres', 'SELECT ledger_used = 0 FROM otp.worker_status()');
}

# The phone's row, which the sender writes
sub row
{
	my ($phone) = @_;
	return $node->row("SELECT failures, in_row, forgiven + in_row AS total FROM otp.phone_failures"
		  . " WHERE phone = '$phone' AND created_xid IS NULL");
}

sub set_row
{
	my ($phone, $assignment) = @_;
	return $node->run("UPDATE otp.phone_failures SET $assignment WHERE phone = '$phone' AND created_xid IS NULL");
}

sub policy
{
	my ($assignment) = @_;
	return $node->run("UPDATE otp.workspaces SET $assignment");
}

#
# The delay
#
my $phone = new_phone();
my @ids = codes($phone, 20);
my $o = storm(16, 10, wrong(@ids));
is($o->{invalid_code}, 5, 'of many at once, over twenty codes, five are compared');
is($o->{rate_limit_exceeded} + $o->{failed}, 155, 'no other');
ok(wait_for_write_back(), 'all is written back');
is(row($phone)->{in_row}, 5, 'five in a row');
foreach my $n (5 .. 8)
{
	my $delay = 30 * 2**($n - 5);

	set_row($phone, "last_at = clock_timestamp() - interval '$delay s' + interval '20 s'");
	$o = storm(8, 2, wrong(@ids));
	is($o->{invalid_code}, 0, "after $n in a row, none is compared before $delay seconds");
	set_row($phone, "last_at = clock_timestamp() - interval '$delay s'");
	$o = storm(8, 4, wrong(@ids));
	is($o->{invalid_code}, 1, 'then one is, and none of the others');
	ok(wait_for_write_back(), 'written back');
	is(row($phone)->{in_row}, $n + 1, 'one more');
}
my $v = $node->verify($ids[0], '123456');
is($v->{error}, 'rate_limit_exceeded', 'the right one is not looked at');
cmp_ok($v->{retry_after}, '>', 400, 'for more than');
cmp_ok($v->{retry_after}, '<=', 480, 'eight minutes at most');

# Over a restart, and a crash
$node->restart;
$node->wait_for_sender;
$v = $node->verify($ids[0], '123456');
is($v->{error}, 'rate_limit_exceeded', 'a restart does not help');
cmp_ok($v->{retry_after}, '>', 300, 'nor make it shorter');
$node->stop('immediate');
$node->start;
$node->wait_for_sender;
is($node->verify($ids[0], '123456')->{error}, 'rate_limit_exceeded', 'nor does a crash');

# What comes in time and is right
set_row($phone, "last_at = now() - interval '8 min'");
ok($node->verify($ids[0], '123456')->{valid}, 'it is compared, and right');
$node->stop('immediate');
$node->start;
$o = storm(8, 4, wrong(@ids));
is($o->{invalid_code}, 5, 'which a crash at once does not take back: five are free again');
ok(wait_for_write_back(), 'written back');
is(row($phone)->{in_row}, 5, 'as the row says, which has been merged');
is($node->value("SELECT count(*) FROM otp.phone_failures WHERE phone = '$phone'"), 1, 'into one');

#
# A hundred
#
policy('failure_delay = NULL');
$phone = new_phone();
@ids = codes($phone, 20);
$o = storm(16, 20, wrong(@ids));
is($o->{invalid_code}, 100, 'without a delay, a hundred are compared, and no more');
$v = $node->verify($ids[0], '123456');
is($v->{error}, 'rate_limit_exceeded', 'then the right one is not looked at');
is($v->{retry_after}, undef, 'however long one waits');
ok(wait_for_write_back(), 'written back');
is(row($phone)->{in_row}, 100, 'a hundred');
$node->restart;
$node->wait_for_sender;
set_row($phone, "since = now() - interval '2 years', last_at = now() - interval '2 years'");
is($node->verify($ids[0], '123456')->{error}, 'rate_limit_exceeded', 'after a restart and two years neither');
is($node->value("SELECT otp.unlock_phone('$phone')"), 't', 'until it is unlocked');
my @fresh = codes($phone, 20);
$o = storm(8, 20, wrong(@fresh));
is($o->{invalid_code}, 100, 'then it is a hundred again');

#
# Right and wrong ones at once: every failure is counted once, none is lost
#
policy('max_failures_in_row = 100');
foreach my $round (1 .. 3)
{
	$phone = new_phone();
	@ids = codes($phone, 60);
	$node->verify($ids[0], 'wrong');
	ok(wait_for_write_back(), 'one wrong guess');
	my $start = row($phone)->{total};
	my $id = '(ARRAY[' . join(',', map { "'$_'" } @ids) . '])[:n + 1]';
	my $set = "\\set n random(0, $#ids)\n";
	$o = storm(8, 40, wrong(@ids),
		right => "${set}SELECT guess($id, '123456');\n",
		right_rollback => "${set}BEGIN;\nSELECT guess($id, '123456');\nROLLBACK;\n",
		right_exception => "${set}SELECT guess_and_fail($id, '123456');\n",
		right_and_wrong => "${set}BEGIN;\nSAVEPOINT s;\nSELECT guess($id, '123456');\nSELECT guess($id, 'wrong');\n"
		  . "ROLLBACK TO s;\nSELECT guess($id, 'wrong');\nCOMMIT;\n");
	note "$o->{valid} right, $o->{invalid_code} wrong, $o->{failed} failed";
	cmp_ok($o->{valid}, '>', 10, 'right ones');

	# the last word: which has the sender merge what forgives
	my ($last) = codes($phone);
	my $before = $node->row("SELECT max(forgiven) AS forgiven FROM otp.phone_failures WHERE phone = '$phone'");
	is($node->verify($last, 'wrong')->{error}, 'invalid_code', 'and a wrong one');
	ok(wait_for_write_back(), 'written back');
	my $row = row($phone);
	is($row->{total} - $start, $o->{invalid_code} + 1, 'every wrong guess is counted, and once');
	is($row->{total} - $row->{in_row}, $before->{forgiven}, 'what has committed is forgiven, and no more');
	is($node->value("SELECT count(*) FROM otp.phone_failures WHERE phone = '$phone'"), 1, 'in one row');
}

#
# Without a sender
#
policy("failure_delay = '30 s'");
$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
is($node->value('SELECT sender_pid IS NULL FROM otp.worker_status()'), 't', 'no sender');
$phone = new_phone();
@ids = codes($phone, 3);
$o = storm(8, 4, wrong(@ids));
is($o->{invalid_code}, 5, 'five are free');
is($node->value("SELECT otp.unlock_phone('$phone')"), 't', 'unlocked');
$o = storm(2, 2, wrong($ids[0]));
is($o->{invalid_code}, 4, 'four more');
is($node->run("BEGIN; SELECT valid FROM otp_verify('$ids[1]', '123456'); ROLLBACK"), 't', 'a right one, rolled back');
is($node->verify($ids[1], 'wrong')->{error}, 'invalid_code', 'is none: the fifth');
is($node->verify($ids[1], '123456')->{error}, 'rate_limit_exceeded', 'the sixth is refused');
is($node->value("SELECT otp.unlock_phone('$phone')"), 't', 'unlocked again');
is($node->verify($ids[1], 'wrong')->{error}, 'invalid_code', 'one wrong');
is($node->verify($ids[1], '123456')->{valid}, JSON::PP::true, 'and a right one');
$o = storm(8, 4, wrong($ids[2]));
is($o->{invalid_code}, 5, 'has given five');
$node->append_conf('postgresql.conf', 'max_worker_processes = 16');
# an orderly stop without a sender forgets what is in no row
$node->restart;
$node->wait_for_sender;

#
# Two-phase commit, over a restart
#
policy('failure_delay = NULL');
$phone = new_phone();
@ids = codes($phone, 3);
$node->verify($ids[0], 'wrong') foreach 1 .. 3;
$node->run("BEGIN; SELECT valid FROM otp_verify('$ids[1]', '123456'); PREPARE TRANSACTION 'right'");
$node->verify($ids[0], 'wrong') foreach 1 .. 2;
ok(wait_for_write_back(), 'written back');
is(row($phone)->{in_row}, 5, 'a prepared right guess forgives nothing');
$node->restart;
$node->wait_for_sender;
$node->verify($ids[0], 'wrong');
ok(wait_for_write_back(), 'written back');
is(row($phone)->{in_row}, 6, 'after a restart neither');
$node->run("COMMIT PREPARED 'right'");
$node->verify($ids[0], 'wrong');
ok(wait_for_write_back(), 'written back');
is(row($phone)->{in_row}, 4, 'committed, it forgives the three before it, and none since');

# The phone's count is gone meanwhile, and has begun anew: that is none of what it has seen
$node->run("BEGIN; SELECT valid FROM otp_verify('$ids[2]', '123456'); PREPARE TRANSACTION 'right'");
$node->run("DELETE FROM otp.phone_failures WHERE phone = '$phone'");
$node->verify($ids[0], 'wrong') foreach 1 .. 2;
ok(wait_for_write_back(), 'written back');
$node->run("COMMIT PREPARED 'right'");
my ($late) = codes($phone);
$node->verify($late, 'wrong');
ok(wait_for_write_back(), 'written back');
is(row($phone)->{in_row}, 3, 'one that was prepared before the count began forgives nothing of it');

#
# What is in memory only
#
policy("failure_delay = '30 s'");
$phone = new_phone();
@ids = codes($phone, 2);
my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');
kill 'STOP', $pid;
$node->run("BEGIN; SELECT error FROM otp_verify('$ids[0]', 'wrong'); ROLLBACK") foreach 1 .. 5;
is($node->verify($ids[0], '123456')->{error}, 'rate_limit_exceeded', 'five, rolled back and not yet written');
kill 'KILL', $pid;
ok($node->wait_for_log(qr/terminated by signal 9/), 'the sender is killed');
ok(poll_until { $node->psql('postgres', 'SELECT 1') == 0 }, 'the server starts again');
$node->wait_for_sender;
is($node->verify($ids[0], 'wrong')->{error}, 'invalid_code',
	'THE BOUND: a crash forgets what was rolled back and not yet written back, and no more');

#
# How long it is kept
#
$node->run(<<'END');
INSERT INTO otp.phone_failures (workspace_id, phone, since, failures, in_row, last_at, forgiven, created_xid) VALUES
	(1, '+15551609001', now() - interval '2 days', 3, 3, now() - interval '2 days', 0, NULL),
	(1, '+15551609002', now() - interval '2 days', 3, 0, now() - interval '2 days', 7, NULL),
	(1, '+15551609003', now() - interval '364 days', 3, 3, now() - interval '364 days', 0, NULL),
	(1, '+15551609004', now() - interval '366 days', 3, 99, now() - interval '366 days', 0, NULL),
	(1, '+15551609005', now() - interval '9 years', 3, 100, now() - interval '9 years', 0, NULL),
	(1, '+15551609006', now() - interval '2 days', 3, 5, now() - interval '2 days', 100, NULL),
	(1, '+15551609006', NULL, 0, 0, NULL, 103, 3),
	(1, '+15551609006', NULL, 0, 0, NULL, 102, 4),
	(1, '+15551609007', NULL, 0, 0, NULL, 103, 3),
	(1, '+15551609008', NULL, 0, 1, now() - interval '2 days', 100, NULL),
	(2, '+15551609001', now() - interval '366 days', 3, 100, now() - interval '366 days', 0, NULL)
END
$node->restart;
$node->wait_for_sender;
my $kept = "FROM otp.phone_failures WHERE phone LIKE '+1555160900%'";
ok($node->poll_query_until('postgres', "SELECT count(*) = 5 $kept"), 'what is of no use goes');
is($node->value("SELECT string_agg(right(phone, 1) || ':' || in_row || '+' || forgiven, ' ' ORDER BY phone) $kept"),
	'1:3+0 3:3+0 5:100+0 6:2+103 8:1+100', 'what is in a row stays for a year, and a closed phone for good');

#
# Forgotten, it counts for a day more
#
$phone = '+5511987651601';
my ($id) = codes($phone);
$node->run("INSERT INTO otp.phone_failures (workspace_id, phone, since, failures, in_row, last_at)"
	  . " VALUES (1, '$phone', now() - interval '3 days', 9, 100, now() - interval '3 days')");
is($node->verify($id, '123456')->{error}, 'rate_limit_exceeded', 'closed since days ago');
is($node->value("SELECT f.verifications || ' ' || f.failures FROM otp.forget_phone('+551187651601') f"),
	'1 100', 'and forgotten, by its other form');
($id) = codes('+551187651601');
is($node->verify($id, '123456')->{error}, 'rate_limit_exceeded', 'it is closed still');
ok( $node->poll_query_until('postgres',
		"SELECT NOT EXISTS (SELECT 1 FROM otp.phone_failures WHERE phone LIKE '%8765160%')"),
	'its number goes');
is($node->verify($id, '123456')->{error}, 'rate_limit_exceeded', 'it is closed');
is($node->value("SELECT otp.unlock_phone('$phone')"), 't', 'until it is unlocked');
ok($node->verify($id, '123456')->{valid}, 'by its number');

$node->stop;
my $log = slurp_file($node->logfile);
unlike($log, qr/\+?1555160\d{4}|8765160/, 'no number is in the log');
done_testing;
