# 113_webhook_limits.pl
#	What one workspace has the sender do beside codes does not hold up the codes of all.
#
# Protects codes from a replay that has to look through a long history, and
# from jobs without number: in one statement, in many calls, or in the queue
# already. Protects what is replayed, whatever the pieces that it is looked
# for in, and the sender's memory.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => [ 'autovacuum = off' ]);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->share_accounts('shop');
$node->run("ALTER ROLE CURRENT_USER SET otp.workspace = 'default'");
$node->wait_for_sender;

# What they are owed stays where it can be counted; the codes sent here add nothing to it
my %endpoint;
foreach my $workspace (qw(default shop))
{
	$endpoint{$workspace} = $node->value("SELECT endpoint_id FROM otp.create_webhook_endpoint("
		  . "'https://example.com/', '{otp.failed}', workspace => '$workspace')");
	$node->run("SELECT otp.pause_webhook_endpoint($endpoint{$workspace})");
}

my $last_phone = 15550113000;

# How long a code takes
sub latency
{
	my $start = time;
	my $phone = '+' . ++$last_phone;

	$node->send($phone);
	$sim->wait_for_messages(phone => $phone);
	return time - $start;
}

# Send codes for as long as there are jobs; how long the slowest takes
sub slowest
{
	my $slowest = latency;

	while ($node->value("SELECT count(*) FROM otp.outbox WHERE kind = 'job'") > 0)
	{
		my $latency = latency;

		$slowest = $latency if $latency > $slowest;
	}
	return $slowest;
}

# What is owed to the endpoint of the default workspace
sub owed
{
	return $node->value(
		"SELECT count(*) || ' ' || count(DISTINCT id) FROM otp.webhook_outbox WHERE endpoint_id = $endpoint{default}");
}

# The sender's memory in kB
sub memory
{
	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');

	return slurp_file("/proc/$pid/status") =~ /^VmRSS:\s+(\d+)/m ? $1 : die;
}

# Put attempts into a drawer: how many webhooks, attempts at each; did the last one succeed?
my $first = 0;

sub fill
{
	my ($drawer, $webhooks, $attempts, $delivered) = @_;

	$node->run(<<"END");
INSERT INTO otp.webhook_attempts (workspace_id, endpoint_id, webhook_id, slot, attempt, number, event, occurred_at,
	attempted_at, duration_ms, http_status, delivered)
SELECT 1, $endpoint{default}, (lpad(to_hex((extract(epoch FROM now()) * 1000)::int8 - 3600000 + $first + g), 12, '0')
	|| lpad(to_hex($drawer * 8), 2, '0') || lpad(to_hex(g), 18, '0'))::uuid, $drawer, a, 0, 'otp.sent', now(),
	now(), 10, CASE WHEN a = $attempts AND $delivered THEN 200 ELSE 500 END, a = $attempts AND $delivered
FROM generate_series(1, $webhooks) g, generate_series(1, $attempts) a
END
	$first += $webhooks;
	return;
}

#
# A replay in a long history
#
fill(3, 101, 7, 'false');
fill(5, 150000, 1, 'true');
fill(5, 301, 3, 'false');
fill(5, 1000, 2, 'true');
fill(31, 1, 1, 'false');
$node->run("SELECT otp.replay_webhooks($endpoint{default}, now() - interval '2 hours')");
my $slowest = slowest;
cmp_ok($slowest, '<', 10, 'codes go on while a replay looks through a long history');
note "the slowest took $slowest s";
is(owed, '403 403', 'which finds what was given up, once each');
$node->run("SELECT otp.replay_webhooks($endpoint{default}, now() - interval '2 hours')");
slowest;
is(owed, '403 403', 'but not what is still owed');

# Again and again: the last one does it all
$node->run("DELETE FROM otp.webhook_outbox");
$node->run("SELECT otp.replay_webhooks($endpoint{default}, now() - interval '2 hours')") foreach 1 .. 5;
$node->run("SELECT otp.replay_webhooks($endpoint{default}, now() - interval '1 second')");
slowest;
is(owed, '403 403', 'one that begins while another is under way does its part as well');
is($node->value("SELECT count(*) FROM otp.outbox WHERE kind = 'job'"), 0, 'and they end');

#
# No more than so many
#
my $error = $node->error_of("SELECT count(otp.send_test_webhook($endpoint{default})) FROM generate_series(1, 5000)");
is($error->{sqlstate}, 'OT429', 'jobs are limited, within a statement as well');
is_deeply(
	$error->{detail},
	{ code => 'rate_limit_exceeded', retry_after => 1, limit => 'jobs_per_second' },
	'which programs can read');
is($node->value("SELECT count(otp.send_test_webhook($endpoint{shop})) FROM generate_series(1, 60)"), 60,
	'each workspace has its own, and 60 at once');
foreach my $call ("otp.replay_webhooks($endpoint{default})", 'otp.sync_templates()', "otp.create_template('t' || n)")
{
	is($node->error_of("SELECT $call FROM generate_series(1, 5000) n")->{sqlstate}, 'OT429', "$call counts, too");
}
ok( poll_until { !defined $node->error_of("SELECT otp.send_test_webhook($endpoint{default})") },
	'a moment later there is one again');
slowest;

#
# Should there be many all the same
#
my $many = 5000;
my $before = memory;
$node->run('DELETE FROM otp.webhook_outbox');
my $jobs = <<"END";
BEGIN;
SELECT otp.send_test_webhook($endpoint{shop});
INSERT INTO otp.outbox (id, xid, origin, due_at, expires_at, workspace_id, slot, number, kind, payload)
SELECT n.id, o.xid, o.origin, o.due_at, o.expires_at, o.workspace_id, o.slot, o.number, o.kind,
	jsonb_set(o.payload::jsonb, '{id}', to_jsonb(otp.format_id(n.id)))::text
FROM otp.outbox o,
	(SELECT otp.parse_id('otp_01HXK7QZRN8V4M2P9D30' || lpad(g::text, 6, '0')) AS id FROM generate_series(1, $many) g) n
WHERE o.xid = pg_current_xact_id()::text::int8;
COMMIT;
END
ok(poll_until { !defined $node->error_of($jobs) }, "$many jobs are queued");
$slowest = slowest;
cmp_ok($slowest, '<', 10, "codes go on with $many jobs");
note "the slowest took $slowest s";
cmp_ok(memory() - $before, '<', 20_000, 'which take little memory');
is($node->value("SELECT count(*) FROM otp.webhook_outbox WHERE endpoint_id = $endpoint{shop}"),
	$many + 1, 'and all are done');
unlike(slurp_file($node->logfile), qr/PANIC|job of the outbox is dropped/, 'nothing bad in the log');

$node->stop;
done_testing();
