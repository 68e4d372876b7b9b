# 121_forget_phone.pl
#	A phone that is forgotten is nowhere, and still has its limits.
#
# Protects: after otp.forget_phone the number is in no table and no dump, what
# workers write included: the provider's message ids, and counts of wrong
# guesses that were still in shared memory. It waits for who is just sending
# to the phone or verifying, and holds up nobody else, nor the sender. Codes
# under way are canceled. Neither the log at its most talkative, nor
# pg_stat_activity, nor pg_locks shows a number. A restart changes nothing.

use strict;
use warnings;

use MIME::Base64 qw(decode_base64 encode_base64);
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => [
		"shared_preload_libraries = 'otp, auto_explain'",
		'log_min_duration_statement = 0', 'log_min_messages = debug1', 'log_error_verbosity = verbose',
		'log_lock_waits = on', 'deadlock_timeout = 10ms',
		'auto_explain.log_min_duration = 0', 'auto_explain.log_nested_statements = on',
		'auto_explain.log_analyze = on', 'auto_explain.log_verbose = on', 'auto_explain.log_triggers = on' ]);
$node->install;
$node->configure($sim);
$node->lift_limits;

# Phones come from a table: what a client writes as literals is its own
$node->run(<<'END');
CREATE TABLE people AS
	SELECT n, '+1555121' || lpad(n::text, 4, '0') AS phone, NULL::text AS otp_id FROM generate_series(1, 40) n;
CREATE FUNCTION places(person int) RETURNS text LANGUAGE plpgsql SET auto_explain.log_min_duration = -1 AS $$
DECLARE
	r record; n int; answer text := ''; digits text;
BEGIN
	SELECT substr(p.phone, 2) INTO digits FROM people p WHERE p.n = person;
	FOR r IN SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'otp' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relname
	LOOP
		EXECUTE format('SELECT count(*) FROM %s x WHERE strpos(x::text, $1) > 0', r.name) INTO n USING digits;
		IF n > 0 THEN
			answer := answer || r.name || ' ';
		END IF;
	END LOOP;
	RETURN answer;
END $$;
END

# Send to a person
sub send_to
{
	my ($n, $metadata) = @_;
	$metadata = defined $metadata ? "metadata => $metadata, " : '';
	my $sent = $node->value("SELECT s.otp_id FROM people p, otp_send(p.phone, ${metadata}context => p.n::text || clock_timestamp()) s WHERE p.n = $n");
	$node->run("UPDATE people SET otp_id = '$sent' WHERE n = $n");
	return $sent;
}

sub forget
{
	my ($n, $session) = @_;
	my $sql = "SELECT f.verifications || ' ' || f.canceled || ' ' || f.test_numbers || ' ' || f.failures FROM people p, otp.forget_phone(p.phone) f WHERE p.n = $n";
	return $session ? $session->query_safe($sql) : $node->value($sql);
}

#
# What has been sent, guessed and answered
#
my @ids = map { send_to($_, q(jsonb_build_object('tel', p.phone))) } 1 .. 10;
ok($node->poll_query_until('postgres', 'SELECT count(*) = 10 FROM otp.messages WHERE sent_at IS NOT NULL'), 'ten are sent');

# As Meta writes its ids: with the number in them
$node->run(<<'END');
UPDATE otp.messages m SET message_id = 'wamid.' || encode(convert_to('HBgL' || p.phone || 'x', 'UTF8'), 'base64')
FROM people p WHERE m.verification_id = otp.parse_id(p.otp_id)
END
ok($node->verify($ids[0], $sim->code_for($ids[0]), context => $node->value("SELECT context FROM otp.verifications WHERE id = otp.parse_id('$ids[0]')"))->{valid},
	'one is verified');
is($node->verify($ids[1], 'wrong')->{error}, 'invalid_code', 'one is guessed wrong');
like(forget(2), qr/^1 1 0 [01]$/, 'and forgotten, while its count may still be in shared memory');
is(forget(1), '1 0 0 0', 'a verified one is not canceled');
is($node->status($ids[0])->{status}, 'verified', 'and stays as it is');
like($node->status($ids[0])->{phone}, qr/^#[0-9a-f]{32}$/, 'but for its phone');
is($node->value("SELECT places(1)"), '', 'it is in no table');
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 2 FROM otp.messages m JOIN people p ON m.verification_id = otp.parse_id(p.otp_id) WHERE p.n <= 2 AND m.message_id IS NULL"),
	"nor in the provider's message ids");
ok( $node->poll_query_until('postgres',
		"SELECT count(*) > 0 AND bool_and(phone LIKE '#%' AND failures = 1) FROM otp.phone_failures"),
	'the wrong guess is counted under the name');
ok($node->poll_query_until('postgres', "SELECT places(1) || places(2) = ''"), 'and nowhere else');

#
# A code that is under way
#
$sim->behave({ match => { api => 'meta' }, do => { delay_ms => 300 }, times => 1 });
my $id = send_to(11);
is(forget(11), '1 1 0 0', 'a code that is under way is canceled');
is($node->status($id)->{status}, 'canceled', 'and stays so');
is($node->verify($id, '000000')->{error}, 'otp_canceled', 'whatever is guessed');
ok( $node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT 1 FROM otp.outbox WHERE id = otp.parse_id('$id'))"),
	'nothing of it is owed');

#
# It waits for who is just verifying, and for who is sending
#
my $other = $node->background_psql('postgres');
my $forgetter = $node->background_psql('postgres');
my $waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%forget\\_phone%' AND pid <> pg_backend_pid()";

$other->query_safe('BEGIN');
$other->query_safe("SELECT error FROM otp_verify('$ids[2]', 'wrong')");
$forgetter->query_until(qr/asked/, "\\echo asked\nSELECT f.verifications || ' done' FROM people p, otp.forget_phone(p.phone) f WHERE p.n = 3;\n");
ok($node->poll_query_until('postgres', $waits), 'an open verify is waited for');
my @numbers = map { sprintf '1555121%04d', $_ } 1 .. 40;
my $numbers = join '|', @numbers;
unlike($node->value('SELECT json_agg(l) FROM pg_locks l'), qr/$numbers/, 'pg_locks shows no number');
unlike($node->value('SELECT json_agg(a) FROM pg_stat_activity a'), qr/$numbers/, 'nor does pg_stat_activity');
$id = send_to(12);
ok($node->poll_query_until('postgres', "SELECT sent_at IS NOT NULL FROM otp_status('$id')"), 'meanwhile others are sent to');
$other->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT phone LIKE '#%' FROM otp_status('$ids[2]')"), 'then it is forgotten');

$other->query_safe('BEGIN');
my $late = $other->query_safe("SELECT s.otp_id FROM people p, otp_send(p.phone) s WHERE p.n = 13");
$node->run('UPDATE otp.workspaces SET sends_per_phone_hour = 3');
$other->query_safe('COMMIT');
$other->query_safe('BEGIN');
$late = $other->query_safe("SELECT s.otp_id FROM people p, otp_send(p.phone) s WHERE p.n = 13");
$forgetter->query_until(qr/asked/, "\\echo asked\nSELECT f.verifications || ' done' FROM people p, otp.forget_phone(p.phone) f WHERE p.n = 13;\n");
ok($node->poll_query_until('postgres', $waits), 'an open send is waited for');
$other->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT phone LIKE '#%' AND status = 'canceled' FROM otp_status('$late')"), 'and forgotten, too');

#
# While it is not committed, it holds up no other phone and no sender
#
$forgetter->query_safe('BEGIN');
$node->run("INSERT INTO otp.phone_failures SELECT 1, p.phone, now(), 5 FROM people p WHERE p.n = 4");
is(forget(4, $forgetter), '1 1 0 5', 'one is forgotten in a transaction that stays open');
my $id5 = send_to(5);
is($node->verify($id5, 'wrong', context => 'x')->{error}, 'invalid_code', 'another one is guessed');
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM otp.phone_failures f JOIN people p USING (phone) WHERE p.n = 5"),
	'the sender counts it');
ok($node->poll_query_until('postgres', "SELECT sent_at IS NOT NULL FROM otp_status('$id5')"), 'and sends');
is($node->value('SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)'
		. " WHERE NOT l.granted AND a.backend_type = 'otp sender'"), 0, 'and waits for nobody');
$forgetter->query_safe('COMMIT');

# A rolled-back one never was
$forgetter->query_safe('BEGIN');
is(forget(6, $forgetter), '1 1 0 0', 'one is forgotten');
$forgetter->query_safe('ROLLBACK');
isnt($node->value('SELECT places(6)'), '', 'and was not');

#
# Limits
#
$node->run('UPDATE otp.workspaces SET sends_per_phone_hour = 2');
my $limited = "SELECT s.otp_id FROM people p, otp_send(p.phone) s WHERE p.n = 14";
$node->value($limited);
forget(14);
$node->value($limited);
is($node->error_of($limited)->{sqlstate}, 'OT429', 'the limits of the hour hold');
forget(14);
$node->restart;
is($node->error_of($limited)->{sqlstate}, 'OT429', 'after a restart as well');
is(forget(14), '0 0 0 0', 'there is nothing more to forget');
$node->wait_for_sender;
$node->run('UPDATE otp.workspaces SET sends_per_phone_hour = NULL');

#
# Errors keep the call out of the log
#
$node->wait_for_sender;
$id = send_to(15);
$other = $node->background_psql('postgres');
$other->query_safe("BEGIN; SELECT error FROM otp_verify('$id', 'wrong')");
foreach my $try ([ 'SET lock_timeout = 50' => '55P03' ], [ 'SET statement_timeout = 50' => '57014' ],
	[ 'BEGIN READ ONLY' => '25006' ])
{
	my $e = $node->error_of("$try->[0]; SELECT otp.forget_phone('+15551210015')");
	is($e->{sqlstate}, $try->[1], "refused after $try->[0]");
	unlike($e->{text}, qr/15551210015/, 'without a word of the number') if $try->[1] ne '57014';
}
$other->query_safe('COMMIT');
is($node->error_of("SELECT otp.forget_phone('15551210016')")->{sqlstate}, 'OT400', 'no number');
$other->quit;

#
# Nowhere
#
forget($_) foreach 1 .. 40;
ok($node->poll_query_until('postgres', "SELECT string_agg(places(n), '') = '' FROM people"), 'all forgotten, none is in a table');
$node->run('DROP TABLE people');
my ($dump) = run_command([ 'pg_dump', '-d', $node->connstr('postgres') ]);
like($dump, qr/COPY otp\.verifications_/, 'a dump');
unlike($dump, qr/$numbers/, 'has no number');
foreach my $number (@numbers[0 .. 9])
{
	my @encoded = map { my $c = encode_base64(('x' x $_) . $number, ''); substr($c, 4, 12) } 0 .. 2;
	unlike($dump, qr/\Q$encoded[0]\E/, 'nor one in base 64');
}

$node->stop;
my $log = slurp_file($node->logfile);
my @lines = grep { /$numbers/ } split /\n/, $log;
is(scalar @lines, 0, 'nor has the log') or diag join "\n", @lines[0 .. ($#lines > 5 ? 5 : $#lines)];
done_testing();
