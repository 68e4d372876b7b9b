# The limits of sending hold over sessions, isolation levels and restarts.
#
# This protects the bill, and the phone of whoever is being annoyed: the count
# per phone is read from what is committed, under a lock, so that no snapshot,
# no parallel session and no restart makes room for one more; the rate per
# second is shared by all sessions, and nobody who has waited can refill it.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);

my $phones = 0;

sub new_phone
{
	return sprintf '+1555035%04d', ++$phones;
}

sub set_policy
{
	my (%policy) = @_;
	$node->run('UPDATE otp.workspaces SET ' . join ', ', map { "$_ = " . ($policy{$_} // 'NULL') } sort keys %policy);
	return;
}

sub refused_by
{
	my ($phone, %args) = @_;
	my $before = delete $args{before} // '';
	my $e = $node->error_of("$before SELECT * FROM otp_send('$phone')");

	return '' unless $e;
	die $e->{text} unless $e->{sqlstate} eq 'OT429';
	return "$e->{detail}{limit} $e->{detail}{retry_after}";
}

sub sent
{
	my ($phone) = @_;
	return $node->value("SELECT count(*) FROM otp.verifications WHERE phone = '$phone'");
}

sub pgbench
{
	my ($script, %args) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my ($stdout, $stderr);

	PostgreSQL::Test::Utils::append_to_file("$dir/script.sql", $script);
	ok(IPC::Run::run(
			[   $node->installed_command('pgbench'), '-n', '-c', 8, '-j', 2, '-t', $args{transactions},
				'-h', $node->host, '-p', $node->port, '-f', "$dir/script.sql", 'postgres' ],
			'<', \undef, '>', \$stdout, '2>', \$stderr), 'eight sessions')
	  or diag $stderr;
	return;
}

# Five an hour, whoever asks, and however
set_policy(sends_per_second => undef, resend_cooldown => undef);
my $phone = new_phone();
$node->send($phone) foreach 1 .. 3;
$node->run("BEGIN; SELECT * FROM otp_send('$phone'); ROLLBACK") foreach 1 .. 3;
is(refused_by($phone), '', 'a send that was rolled back does not count');
my $snapshot = $node->background_psql('postgres', on_error_stop => 0);
$snapshot->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM otp.verifications');
is(refused_by($phone), '', 'five are sent within an hour');
my ($limit, $retry_after) = split / /, refused_by($phone);
is($limit, 'sends_per_phone_hour', 'the sixth is not');
cmp_ok($retry_after, '>', 3500, 'for an hour');
cmp_ok($retry_after, '<=', 3600, 'from the first');
$snapshot->query("SELECT * FROM otp_send('$phone')");
like($snapshot->{stderr}, qr/too many codes were sent to this phone within an hour/,
	'a snapshot from before the fifth sees it');
$snapshot->{stderr} = '';
$snapshot->query('ROLLBACK');
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	like(refused_by($phone, before => "BEGIN ISOLATION LEVEL $level;"), qr/^sends_per_phone_hour/, "nor at $level");
}
is(refused_by(new_phone()), '', 'another phone is free');

# A resend is a message, too
my $resent = new_phone();
my $id = $node->send($resent);
$node->resend($id) foreach 1 .. 4;
my $e = $node->error_of("SELECT * FROM otp_resend('$id')");
is($e->{detail}{limit}, 'sends_per_phone_hour', 'resends count');
like(refused_by($resent), qr/^sends_per_phone_hour/, 'for sends as well');

# Over restarts
$node->restart;
like(refused_by($phone), qr/^sends_per_phone_hour/, 'a restart makes no room');
$node->stop('immediate');
$node->start;
like(refused_by($phone), qr/^sends_per_phone_hour/, 'a crash neither');
like(refused_by($resent), qr/^sends_per_phone_hour/, 'for resends neither');
is(sent($phone), 5, 'five were sent');

# Eight at once, under a snapshot each
$phone = new_phone();
$node->run(<<'END');
CREATE SEQUENCE accepted MINVALUE 0 START 0;
CREATE FUNCTION try_send(phone text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM otp_send(phone);
	RETURN true;
EXCEPTION WHEN SQLSTATE 'OT429' OR serialization_failure THEN
	RETURN false;
END $$;
END
pgbench("BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT count(*) FROM otp.workspaces;\n"
	  . "SELECT try_send('$phone');\nCOMMIT;\n", transactions => 10);
is(sent($phone), 5, 'send five to one phone, not one more');

# An open session follows a new policy at once
my $session = $node->background_psql('postgres');
is($session->query_safe("SELECT try_send('$phone')"), 'f', 'a session is refused');
set_policy(sends_per_phone_hour => undef, sends_per_phone_day => 7);
is($session->query_safe("SELECT try_send('$phone'), try_send('$phone'), try_send('$phone')"),
	't|t|f', 'and takes in a new policy');
($limit, $retry_after) = split / /, refused_by($phone);
is($limit, 'sends_per_phone_day', 'seven a day');
cmp_ok($retry_after, '>', 86_000, 'mean a day');
$session->quit;

# Ten a second, over all sessions: in no span of time more than ten and what
# ten a second let in
set_policy(sends_per_phone_day => undef, sends_per_second => 10);
$node->run('CREATE TABLE started AS SELECT clock_timestamp() AS at');
pgbench("\\set n random(1, 9999999)\nSELECT try_send('+1777' || lpad(:n::text, 7, '0'));\n", transactions => 400);
my $row = $node->row(<<'END');
WITH s AS (SELECT created_at, row_number() OVER (ORDER BY created_at) AS n FROM otp.verifications
		WHERE phone LIKE '+1777%')
SELECT count(*) AS sent, extract(epoch FROM max(created_at) - min(created_at)) AS seconds,
	(SELECT max(b.n - a.n + 1 - 10 * extract(epoch FROM b.created_at - a.created_at))
	 FROM s a JOIN s b ON b.n >= a.n) AS most
FROM s
END
note sprintf '%d sent in %.2f s', $row->{sent}, $row->{seconds};
cmp_ok($row->{sent}, '>=', 10, 'eight sessions send');

# a session reads the clock a moment before it is counted
cmp_ok($row->{most}, '<=', 12, 'ten a second, and ten at once');

# Who has waited for a phone comes with an old clock, and must not refill it
set_policy(sends_per_phone_hour => 1000, sends_per_second => 5);
$phone = new_phone();
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN');
ok(poll_until { $holder->query_safe("SELECT try_send('$phone')") eq 't' }, 'one holds a phone');
my @waiting = map { $node->background_psql('postgres') } 1 .. 3;
$_->query_until(qr/asked/, "\\echo asked\nSELECT try_send('$phone');\n") foreach @waiting;
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 3 FROM pg_stat_activity WHERE wait_event = 'advisory' AND clock_timestamp() - query_start > '1.5 s'"),
	'three have waited for it');
$row = $node->row(<<'END');
SELECT count(*) FILTER (WHERE try_send('+1888' || lpad(n::text, 7, '0'))) AS n, clock_timestamp() AS at
FROM generate_series(1, 50) n
END
cmp_ok($row->{n}, '<=', 6, 'the second is used up');
$holder->query_safe('COMMIT');
my $after = 0;
foreach my $waiting (@waiting)
{
	$after++ if $waiting->query_safe('SELECT 1') =~ /^t$/m;
	$after += $node->value("SELECT count(*) FILTER (WHERE try_send('+1999$after' || lpad(n::text, 6, '0'))) FROM generate_series(1, 50) n");
}
my $seconds = $node->value("SELECT extract(epoch FROM clock_timestamp() - '$row->{at}'::timestamptz)");
cmp_ok($after, '<=', 1 + 5 * $seconds, sprintf 'and what follows is no more than %.2f s let in', $seconds);
$_->quit foreach $holder, @waiting, $snapshot;

$node->stop;
done_testing;
