# However many pump one country at once, what passes is bounded; and what the
# guard has counted is what the history says, whatever happens to the server.
#
# This protects the bill under concurrency and over crashes: sixty-four
# clients, all countries but theirs going on; open, prepared, rolled-back and
# old transactions; a history that takes long to read, and one whose reading
# is cut off; a server stopped, killed, short of memory for the guard, and a
# database dropped. Decisions of refused sends outlive them in otp.guard_log.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

use constant CLIENTS => 64;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main',
	init => { allows_streaming => 1 },
	conf => [ 'max_connections = 100', 'max_prepared_transactions = 5', 'restart_after_crash = on',
		'otp.guard_size = 1024' ]);

# A workspace of its own for each story; the guard has not heard of any
my $functions = <<'END';
CREATE FUNCTION guarded(name text, mode text = 'block') RETURNS void LANGUAGE sql AS $$
	INSERT INTO otp.workspaces (name, whatsapp_account, sms_account, guard_mode, sends_per_second, sends_per_phone_hour,
			resend_cooldown)
		SELECT $1, whatsapp_account, sms_account, $2, NULL, NULL, NULL FROM otp.workspaces WHERE name = 'default';
	INSERT INTO otp.templates (workspace_id, name, language)
		SELECT workspace_id, 'otp_verification', 'en_US' FROM otp.workspaces WHERE name = $1;
$$;
CREATE FUNCTION history(workspace text, prefix text, at timestamptz, n int) RETURNS void LANGUAGE sql AS $$
	WITH d AS (SELECT (extract(epoch FROM date_trunc('milliseconds', at)) * 1000)::int8 AS ms)
	INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, key_id, length,
		max_attempts, fallback_sms, phone, template, language, channel, salt, code_hash)
	SELECT w.workspace_id, (lpad(to_hex(d.ms), 12, '0') || lpad(to_hex(d.ms / 86400000 % 32 * 8), 2, '0')
			|| left(md5(random()::text), 18))::uuid,
		d.ms / 86400000 % 32, 3, at, at + interval '5 min', 1, 6, 3, false, prefix || lpad(i::text, 6, '0'), 'otp_verification', 'en_US', 'whatsapp', '\x00', '\x00'
	FROM d, generate_series(1, n) i, otp.workspaces w WHERE w.name = $1
$$;
CREATE SEQUENCE refused;
CREATE SEQUENCE number;
CREATE FUNCTION try(workspace text, prefix text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM otp_send(prefix || lpad(nextval('number')::text, 6, '0'), workspace => $1);
	RETURN true;
EXCEPTION WHEN SQLSTATE 'OT429' THEN
	PERFORM nextval('refused');
	RETURN false;
END $$;

-- What the history says, beside what the guard says
CREATE FUNCTION differ(workspace text) RETURNS text LANGUAGE sql AS $$
	WITH h AS (
		SELECT c.country, count(*) FILTER (WHERE v.verified_at IS NULL) AS unverified, count(v.verified_at) AS verified
		FROM otp.verifications v JOIN otp.workspaces w USING (workspace_id),
			LATERAL (SELECT p.country FROM otp.countries p WHERE starts_with(v.phone, p.prefix)
				ORDER BY length(p.prefix) DESC LIMIT 1) c
		WHERE w.name = $1 AND v.created_at > clock_timestamp() - interval '23 h' GROUP BY 1)
	SELECT string_agg(format('%s: %s/%s is %s/%s', country, h.unverified, h.verified, s.unverified_day, s.verified_day),
		', ' ORDER BY country)
	FROM h FULL JOIN otp.guard_status($1) s USING (country)
	WHERE (h.unverified, h.verified) IS DISTINCT FROM (s.unverified_day::int8, s.verified_day::int8)
$$;
END
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run($functions);

sub try
{
	my ($workspace, $prefix, $n) = @_;
	return $node->value("SELECT count(*) FILTER (WHERE try('$workspace', '$prefix')) FROM generate_series(1, $n)");
}

sub unverified
{
	my ($workspace, $country) = @_;
	return $node->value("SELECT unverified_day FROM otp.guard_status('$workspace') WHERE country = '$country'");
}

sub sent
{
	my ($workspace, $prefix) = @_;
	return $node->value('SELECT count(*) FROM otp.verifications v JOIN otp.workspaces w USING (workspace_id) '
		  . "WHERE w.name = '$workspace' AND starts_with(v.phone, '$prefix')");
}

# Begin a pgbench of some scripts
sub storm
{
	my ($clients, $how, @scripts) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my @files;

	foreach my $i (0 .. $#scripts)
	{
		push @files, '-f', "$dir/$i.sql";
		append_to_file("$dir/$i.sql", $scripts[$i]);
	}
	my $output = '';
	return (IPC::Run::start(
			[   $node->installed_command('pgbench'), '-n', '-c', $clients, '-j', 2, @$how,
				'-h', $node->host, '-p', $node->port, @files, 'postgres' ],
			'<', \undef, '>', \$output, '2>&1'));
}

# Sixty-four pump one country; customers in another one go on
$node->run(<<'END');
SELECT guarded('pumped');
INSERT INTO otp.usage_days SELECT workspace_id, current_date - 5, 'sms', 'DE', '', '', 1, 1, 1, 1, 40000, 1, NULL
FROM otp.workspaces WHERE name = 'pumped';
END
ok(storm(CLIENTS, [ '-t', 25 ], "SELECT try('pumped', '+35691');\n", "SELECT try('pumped', '+4930');\n")->finish,
	'sixty-four clients send');
my $passed = sent('pumped', '+35691');
note "$passed codes have passed";
cmp_ok($passed, '>=', 3, 'what the guard allows passes');
cmp_ok($passed, '<=', 3 + CLIENTS, 'and no more than were open at that moment');
my $customers = sent('pumped', '+4930');
my $refused = $node->value('SELECT last_value FROM refused');
is($passed + $customers + $refused, CLIENTS * 25, 'each send has passed or was refused');
is($node->value(q{SELECT tripped FROM otp.guard_status('pumped') WHERE country = 'DE'}), 'f',
	'customers elsewhere were not');
is($node->value(q{SELECT differ('pumped')}), '', 'the guard has counted what was sent');

# What a refused send has left is written by the sender: one row, however many
ok($node->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT FROM otp.guard_unwritten())'), 'decisions are written');
is($node->value('SELECT sum(blocked) FROM otp.guard_log'), $refused, 'all of them');
cmp_ok($node->value('SELECT count(*) FROM otp.guard_log'), '<=', 4, 'in a row for an hour and a reason');
is($node->value(q{SELECT sum(count) FROM otp.guard_decisions WHERE decision = 'blocked'}), $refused,
	'which the view shows');

# Codes that are verified make room
$node->run(q{SELECT guarded('users')});
my @ids = map { $node->send("+3562100000$_", workspace => 'users') } 1 .. 3;
is(try('users', '+35691', 2), 0, 'three are out, a fourth has to wait');
$node->verify($_, $sim->code_for($_)) foreach @ids[ 0, 1 ];
is(try('users', '+35691', 5), 2, 'two are verified, two more may go');
is($node->value(q{SELECT differ('users')}), '', 'and the guard knows of all');

# Open transactions: they know of themselves, the others of what is committed
$node->run(q{SELECT guarded('open')});
my $open = $node->background_psql('postgres');
$open->query_safe('BEGIN');
is($open->query_safe(q{SELECT count(*) FILTER (WHERE try('open', '+35691')) FROM generate_series(1, 10)}), '3',
	'a transaction sends three');
is(try('open', '+35691', 2), 2, 'another one does not see them');
$open->query_safe('COMMIT');
is(try('open', '+35691', 1), 0, 'until it commits');
$open->query_safe('BEGIN');
is($open->query_safe(q{SELECT count(*) FILTER (WHERE try('open', '+4930')) FROM generate_series(1, 10)}), '3',
	'three more');
$open->query_safe('ROLLBACK');
is(try('open', '+4930', 10), 3, 'are gone with their transaction');
is($node->value(q{SELECT differ('open')}), '', 'the history says the same');

# A snapshot from before the history was made
$node->run(q{SELECT guarded('old')});
$open->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM otp.workspaces');
$node->run(q{SELECT history('old', '+35691', now() - interval '1 min', 3)});
is($open->query_safe(q{SELECT try('old', '+35691')}), 'f', 'an old snapshot does not hide what is committed');
$open->query_safe('ROLLBACK');

# A prepared transaction counts from PREPARE on
$node->run(q{SELECT guarded('prepared')});
$node->run(<<'END');
BEGIN;
SELECT try('prepared', '+35691') FROM generate_series(1, 3);
PREPARE TRANSACTION 'send';
END
is(try('prepared', '+35691', 2), 0, 'what is prepared counts');
$node->run(q{COMMIT PREPARED 'send'});
is(try('prepared', '+35691', 2), 0, 'and goes on to');
is($node->value(q{SELECT differ('prepared')}), '', 'once');

# More codes, countries and savepoints than a transaction has room for
$node->run(q{SELECT guarded('many', 'record')});
$node->run(<<'END');
CREATE FUNCTION nest(depth int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM otp_send(p.prefix || '5550100', workspace => 'many')
	FROM (SELECT min(prefix) AS prefix FROM otp.countries WHERE length(prefix) < 8 GROUP BY country) p;
	IF depth > 1 THEN
		PERFORM nest(depth - 1);
	END IF;
EXCEPTION WHEN division_by_zero THEN
END $$;
SELECT nest(25);
END
cmp_ok(sent('many', '+'), '>', 5000, 'thousands in one transaction');
is($node->value(q{SELECT differ('many')}), '', 'are all counted');

# The history takes long to read: others wait for a moment, and then for no longer
$node->run(q{SELECT guarded('slow'); SELECT history('slow', '+35691', now() - interval '1 min', 1)});
my $lock = $node->background_psql('postgres');
sub lock_yesterday
{
	$lock->query_safe(<<'END');
BEGIN;
DO $$ BEGIN EXECUTE format('LOCK TABLE otp.verifications_%s IN ACCESS EXCLUSIVE MODE',
	lpad(((floor(extract(epoch FROM now()) / 86400)::int8 - 1) % 32)::text, 2, '0')); END $$;
END
	return;
}
lock_yesterday();
$open->query_until(qr/begun/, "\\echo begun\nSELECT 'first ' || try('slow', '+35691')::text;\n");
ok($node->poll_query_until('postgres', <<'END'), 'one reads, and is held up');
SELECT count(*) = 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.objsubid = x'4755'::int AND a.wait_event_type = 'Lock'
END
is($node->value(q{SELECT try('slow', '+35691')}), 't', 'another send passes unchecked');
$lock->query_safe('ROLLBACK');
like($open->query_safe('SELECT 1'), qr/first true/, 'the one that reads goes on');
is(try('slow', '+35691', 3), 0, 'all of them are counted');
is($node->value(q{SELECT differ('slow')}), '', 'as in the history');

# Its reading is cut off: the next one reads
$node->run(q{SELECT guarded('cut'); SELECT history('cut', '+35691', now() - interval '1 min', 2)});
lock_yesterday();
my $e = $node->error_of(q{SET statement_timeout = 500; SELECT try('cut', '+35691')});
is($e->{sqlstate}, '57014', 'a reading is canceled');
$lock->query_safe('ROLLBACK');
is(try('cut', '+35691', 3), 1, 'the next one reads in its place');
is($node->value(q{SELECT differ('cut')}), '', 'all there is');
$_->quit foreach $open, $lock;

# A history that is too long for who sends: the newest of it has to do
$node->run(<<'END');
SELECT guarded('long');
SELECT history('long', '+4179', now() - interval '20 h' + interval '1 ms' * i, 1000) FROM generate_series(1, 300) i;
SELECT history('long', '+35691', now() - interval '5 min', 3);
END
is($node->value(q{SET statement_timeout = 250; SELECT try('long', '+35691')}), 'f',
	'a long history is read as long as there is time');
cmp_ok($node->value(q{SELECT unverified_day FROM otp.guard_status('long') WHERE country = 'CH'}) // 0, '<', 300_000,
	'and no longer');

# Stopped, and killed in the middle: what is counted comes back from the history
$node->restart;
is(try('users', '+35691', 3), 0, 'a restart makes no room');
is(try('pumped', '+4930', 3), 3, 'and takes none');
foreach my $workspace (qw(pumped users open prepared many))
{
	is($node->value("SELECT differ('$workspace')"), '', "the guard knows what $workspace has sent");
}
$node->run(q{SELECT guarded('crash', 'record')});

foreach my $way ('backend', 'immediate')
{
	my $before = sent('crash', '+');
	my $storm = storm(16, [ '-T', 60 ], "SELECT try('crash', '+35691');\n",
		"BEGIN;\nSELECT try('crash', '+4930');\nSAVEPOINT a;\nSELECT try('crash', '+4930');\nROLLBACK TO a;\nCOMMIT;\n");

	ok(poll_until { sent('crash', '+') >= $before + 200 }, 'codes are being sent');
	if ($way eq 'immediate')
	{
		$node->stop('immediate');
		$node->start;
	}
	else
	{
		my $log = -s $node->logfile;
		my $pid = $node->value(
			"SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");

		kill 'KILL', $pid;
		poll_until { slurp_file($node->logfile, $log) =~ /database system is ready to accept connections/ };
	}
	$storm->finish;
	is($node->value(q{SELECT differ('crash')}), '', "after a crash ($way) the guard counts what has committed");
	cmp_ok(unverified('crash', 'MT'), '>', 50, 'which is much');
}

# On a standby one may look
$node->backup('backup');
my $standby = OTP::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is($standby->value(q{SELECT differ('crash')}), '', 'a standby says what the history says');
is($standby->value('SELECT count(*) > 0 FROM otp.guard_decisions'), 't', 'and what was decided');
$standby->stop;

# More workspaces and countries than there is room for
$node->run('SELECT guarded(format($$full_%s$$, i), $$record$$) FROM generate_series(1, 6) i');
$node->run(q{SELECT guarded('small')});
is(try('small', '+35691', 5), 3, 'a small workspace has sent its share');
foreach my $round (1 .. 2)
{
	foreach my $i (1 .. 6)
	{
		$node->run(<<"END");
SELECT otp_send(p.prefix || lpad(nextval('number')::text, 7, '0'), workspace => 'full_$i')
FROM (SELECT min(prefix) AS prefix FROM otp.countries WHERE length(prefix) < 8 GROUP BY country) p
END
	}
	is(try('small', '+35691', 2), 0, 'others push it out, not its history');
}
is($node->value("SELECT differ('full_$_')"), '', "and each knows its own: $_") foreach 1 .. 6;
is($node->value(q{SELECT differ('small')}), '', 'the small one as well');

# A database that is dropped, an extension that is made anew
$node->install(dbname => 'dropped');
$node->run($functions, dbname => 'dropped');
my $guard_on = q{UPDATE otp.workspaces SET guard_mode = 'block', sends_per_second = NULL, sends_per_phone_hour = NULL,
	resend_cooldown = NULL};
my $three = q{SELECT count(*) FILTER (WHERE try('default', '+35691')) FROM generate_series(1, 5)};
$node->configure($sim, dbname => 'dropped');
$node->run($guard_on, dbname => 'dropped');
is($node->value($three, dbname => 'dropped'), 3, 'another database counts for itself');
$node->run('DROP EXTENSION otp', dbname => 'dropped');
$node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'dropped')});
$node->install(dbname => 'dropped');
$node->configure($sim, dbname => 'dropped');
$node->run($guard_on, dbname => 'dropped');
is($node->value($three, dbname => 'dropped'), 3, 'a new extension begins with nothing');
$node->run('DROP DATABASE dropped');
is(try('small', '+35691', 2), 0, 'what others have counted stays');
is($node->value(q{SELECT differ('crash')}), '', 'all of it');

# The log is kept for otp.retention
$node->run(<<'END');
INSERT INTO otp.guard_log SELECT 1, now() - i * interval '1 day', 'MT', 'hour', 1, 0, now(), now(), 3, 3
FROM generate_series(20, 40, 4) i
END
$node->restart;
ok($node->poll_query_until('postgres', q{SELECT count(*) = 3 FROM otp.guard_log WHERE workspace_id = 1}), 'old decisions go');

unlike(slurp_file($node->logfile), qr/\+356\d{5}/, 'no phone is in the log');
$node->stop;
done_testing;
