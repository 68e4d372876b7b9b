# Keys of the caller's own and keys for repeated requests hold under load, over restarts and crashes, and show nowhere.
#
# This protects: of 64 sessions that send for one address at once, exactly as
# many get through as the limit says, in every isolation level, however many
# roll back; a restart or a crash makes no room; a request repeated by 64
# sessions makes one code; both go on in a restored copy; a burst lets in what it
# holds and no more; no key is found in any file of the server.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use PostgreSQL::Test::Utils;
use Test::More;

my $ip = '203.0.113.77';
my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['max_connections = 100']);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run(<<'END');
INSERT INTO otp.key_limits VALUES (1, 'ip', 50), (1, 'device', 1000);
CREATE SEQUENCE phones;
CREATE TABLE asked (otp_id text);
CREATE FUNCTION try_send(keys text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	id text;
BEGIN
	SELECT otp_id INTO id
	FROM otp_send('+1555161' || lpad(nextval('phones')::text, 4, '0'), limit_keys => keys);
	RETURN id;
EXCEPTION WHEN SQLSTATE 'OT429' THEN
	RETURN NULL;
WHEN serialization_failure THEN
	RETURN NULL;
END $$;
END

# 64 sessions, each running a script so many times
sub pgbench
{
	my ($script, $transactions) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my ($stdout, $stderr);

	append_to_file("$dir/script.sql", $script);
	ok(IPC::Run::run(
			[   $node->installed_command('pgbench'), '-n', '-c', 64, '-j', 2, '-t', $transactions, '--max-tries=1',
				'-h', $node->host, '-p', $node->port, '-f', "$dir/script.sql", 'postgres' ],
			'<', \undef, '>', \$stdout, '2>', \$stderr), '64 sessions')
	  or diag $stderr;
	return;
}

sub sent
{
	return $node->value('SELECT count(*) FROM otp.verifications');
}

sub start_anew
{
	$node->run('TRUNCATE otp.verifications, otp.messages, otp.send_keys, otp.outbox');
	return;
}

# Fifty an hour for an address, whatever the isolation level, half of the tries rolled back
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	start_anew();
	pgbench("\\set end random(0, 1)\nBEGIN ISOLATION LEVEL $level;\nSELECT count(*) FROM otp.send_keys;\n"
		  . "SELECT try_send('{ip:$ip}');\n\\if :end\nCOMMIT;\n\\else\nROLLBACK;\n\\endif\n", 6);

	# who was rolled back, or met a serialization failure, has left room
	$node->run("SELECT try_send('{ip:$ip}') FROM generate_series(1, 50)");
	is(sent(), 50, "exactly fifty at $level");
}
my $e = $node->error_of("SELECT otp_send('+15551619999', limit_keys => '{ip:$ip}')");
is($e->{detail}{limit}, 'sends_per_key_hour', 'and then none');
is($e->{detail}{prefix}, 'ip', 'of that prefix');

# Keys in another order wait for each other, not for ever
start_anew();
pgbench("\\set turn random(0, 1)\n\\if :turn\nSELECT try_send('{device:a,device:b,device:c}');\n\\else\n"
	  . "SELECT try_send('{device:c,device:a,device:b}');\n\\endif\n", 4);
is(sent(), 256, 'no deadlock');

# Over a restart and a crash
start_anew();
$node->run("SELECT try_send('{ip:$ip}') FROM generate_series(1, 60)");
is(sent(), 50, 'fifty are sent');
$node->restart;
is($node->value("SELECT try_send('{ip:$ip}') IS NULL"), 't', 'a restart makes no room');
$node->stop('immediate');
$node->start;
is($node->value("SELECT try_send('{ip:$ip}') IS NULL"), 't', 'a crash neither');
my $s = $node->row("SELECT used, remaining, retry_after FROM otp.rate_limit_status(limit_keys => '{ip:$ip}') WHERE prefix = 'ip'");
is("$s->{used} $s->{remaining}", '50 0', 'all of it is used');
cmp_ok($s->{retry_after}, '>', 3000, 'for an hour');

# A rotation of keys makes no room either
my $file = $node->data_dir . '/otp.key';
my $old = slurp_file($file);
open my $out, '>', $file or die;
print $out 'ab' x 32 . "\n$old";
close $out;
is($node->value("SELECT try_send('{ip:$ip}') IS NULL"), 't', 'nor does a new key');

# A request that everybody repeats
start_anew();
pgbench("INSERT INTO asked SELECT otp_id FROM otp_send('+15551610001', idempotency_key => 'request-4711');\n", 4);
is(sent(), 1, 'one request, one code') or diag $node->value('SELECT count(*) FROM asked');
is($node->value('SELECT count(*) || $$ $$ || count(DISTINCT otp_id) FROM asked'), '256 1', 'and one answer for all');

# What is restored beside it goes on where it was, with the same key file
$node->run("SELECT try_send('{ip:$ip}') FROM generate_series(1, 60)");
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
my @to = ('-h', $node->host, '-p', $node->port);
command_ok([ 'pg_dump', '-Fc', '-f', $dump, @to, 'postgres' ], 'a dump');
$node->run('CREATE DATABASE copy');
command_ok([ 'pg_restore', '-e', '-1', '-d', 'copy', @to, $dump ], 'is restored');
is($node->value("SELECT try_send('{ip:$ip}') IS NULL", dbname => 'copy'), 't', 'there is no room in it either');
is($node->value("SELECT try_send('{ip:$ip.1}') IS NULL", dbname => 'copy'), 'f', 'but for others');
is($node->value("SELECT otp_id = (SELECT DISTINCT otp_id FROM asked) FROM otp_send('+15551610001', idempotency_key => 'request-4711')",
		dbname => 'copy'), 't', 'and it knows the request');

# A burst holds what it says; then they come one by one
$node->run('UPDATE otp.workspaces SET sends_per_second = 2, sends_burst = 40');
start_anew();
my $began = $node->value('SELECT extract(epoch FROM clock_timestamp())');
pgbench("SELECT try_send(NULL);\n", 4);
my $seconds = $node->value("SELECT extract(epoch FROM clock_timestamp()) - $began");
cmp_ok(sent(), '>=', 40, 'a burst is let in');
cmp_ok(sent(), '<=', 41 + 2 * $seconds, sprintf 'and what two a second make of %.1f s', $seconds);
is($node->error_of("SELECT otp_send('+15551619998')")->{detail}{limit}, 'sends_per_second', 'no more than that');

# More workspaces than there are buckets, none of which is full again before long: nobody is kept from sending
$node->run(<<'END');
INSERT INTO otp.workspaces (name, whatsapp_account, sends_per_second, sends_burst)
	SELECT 'w' || n, w.whatsapp_account, 1, 1000 FROM otp.workspaces w, generate_series(1, 4200) n WHERE w.name = 'default';
INSERT INTO otp.templates (workspace_id, name, language)
	SELECT workspace_id, 'otp_verification', 'en_US' FROM otp.workspaces WHERE name LIKE 'w%';
END
is($node->value("SELECT count(s) FROM otp.workspaces w, otp_send('+15551619995', workspace => w.name) s"
		  . " WHERE w.name LIKE 'w%'"),
	4200, '4200 workspaces send');

# Nowhere in the clear
$node->run("INSERT INTO otp.key_limits VALUES (1, 'session', 1); UPDATE otp.workspaces SET sends_per_second = NULL");
$node->error_of("SELECT otp_send('+15551619997', limit_keys => '{session:$ip-in-the-clear}', "
	  . "idempotency_key => 'idem-in-the-clear')") foreach 1, 2;
$node->error_of("SELECT otp_send('+15551619996', limit_keys => '{nolimit:$ip-in-the-clear}')");
$node->error_of("SELECT otp_send('+15551619996', limit_keys => '{$ip-in-the-clear}')");
$node->stop;
my @places = ($node->data_dir, $node->logfile);
is_deeply([ split /\n/, `grep -rlaE 'in-the-clear|203\\.0\\.113\\.77' @places` ],
	[], 'no key in any file of the server');
done_testing;
