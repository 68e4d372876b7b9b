# 080_copies.pl
#	A copy of a database sends nothing of the original's.
#
# Protects: databases made from a template, restored clones that are silenced,
# standbys, logical subscribers - none sends what another one is sending; a
# promoted standby sends what was still queued; what is nobody's goes away
# once it has expired.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start(
	'primary',
	init => { allows_streaming => 'logical' },
	conf => ['otp.delivery = off', 'max_logical_replication_workers = 4']);
my $last_phone = 15550000000;

# Queue one that is not sent yet
sub queue
{
	my ($server, %where) = @_;
	return $server->send('+' . ++$last_phone, %where);
}

# Have a server deliver a message of its own
sub check_alive
{
	my ($server, $what, %where) = @_;
	my $id = queue($server, %where);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(eval { $sim->code_for($id) }, $what);
	return;
}

# The requests for an id
sub arrived
{
	my ($id) = @_;
	return scalar $sim->log(otp_id => $id);
}

# Switch delivery
sub set_delivery
{
	my ($server, $value) = @_;

	$server->append_conf('postgresql.conf', "otp.delivery = $value");
	$server->reload;
	$server->poll_query_until('postgres',
		"SELECT delivery = '$value'::bool FROM otp.worker_status()");
	return;
}

$node->install;
$node->configure($sim);
$node->lift_limits;
my $queued = queue($node);
is($node->value('SELECT count(*) FROM otp.outbox'), 1, 'a message is queued');

#
# A template
#
$node->install(dbname => 'original');
$node->configure($sim, dbname => 'original');
$node->lift_limits(dbname => 'original');
my $of_original = queue($node, dbname => 'original');
$node->run('CREATE DATABASE copy TEMPLATE original');
is($node->value('SELECT count(*) FROM otp.outbox', dbname => 'copy'), 1, 'a copy has the row, too');

#
# A standby, and a clone
#
$node->backup('base');
my $standby = OTP::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);

# the copy of the backup has lost its mode, without which a key is not taken
chmod 0600, $standby->data_dir . '/otp.key';
$standby->append_conf('postgresql.conf', 'otp.delivery = on');
$standby->start;
my $clone = OTP::Cluster->new('clone');
$clone->init_from_backup($node, 'base');
chmod 0600, $clone->data_dir . '/otp.key';
$clone->append_conf('postgresql.conf', 'otp.delivery = off');
$clone->start;
$clone->wait_for_sender;
is($clone->value('SELECT count(*) FROM otp.outbox'), 1, 'a clone has the row, too');
is($clone->value('SELECT pg_is_in_recovery()'), 'f', 'and is a server of its own');

#
# A logical subscriber
#
my $subscriber = OTP::Cluster->start('subscriber');
$subscriber->install;
$subscriber->configure($sim);
$subscriber->lift_limits;
my $publisher = $node->connstr('postgres');
$node->run(<<'END');
CREATE PUBLICATION p FOR TABLE otp.outbox, otp.verifications WITH (publish_via_partition_root = true);
ALTER TABLE otp.outbox REPLICA IDENTITY FULL;
END
$subscriber->run(
	'CREATE SUBSCRIPTION s CONNECTION ' . OTP::Cluster::quote($publisher) . ' PUBLICATION p');
$subscriber->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM otp.verifications WHERE id = otp.parse_id('$queued')");
$subscriber->poll_query_until('postgres', 'SELECT count(*) = 1 FROM otp.outbox');
my $streamed = queue($node);
$node->wait_for_catchup('s', 'replay');
is($subscriber->value('SELECT count(*) FROM otp.outbox'), 2, 'a subscriber has the rows, too');
check_alive($subscriber, 'a subscriber delivers its own');
$subscriber->poll_query_until('postgres', 'SELECT count(sent_at) = 1 FROM otp.messages');

# Its sender reads the queue anew
my $pid = $subscriber->value('SELECT sender_pid FROM otp.worker_status()');
$subscriber->run("SELECT pg_terminate_backend($pid)");
$subscriber->poll_query_until('postgres', "SELECT sender_pid <> $pid FROM otp.worker_status()");
check_alive($subscriber, 'and so does its next sender');
is(arrived($queued) + arrived($streamed), 0, 'but nothing of the original');

#
# Delivery on, at the primary only
#
$node->wait_for_catchup($standby, 'replay');
ok($standby->value('SELECT count(*) FROM otp.outbox') == 2, 'the standby has the rows');
is($standby->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'otp %'"),
	0, 'and no workers');
is(arrived($queued) + arrived($of_original), 0, 'otp.delivery = off: nothing is sent');

set_delivery($node, 'on');
$sim->code_for($queued);
$sim->code_for($streamed);
$sim->code_for($of_original);
check_alive($node, 'the copy delivers its own', dbname => 'copy');
check_alive($node, 'and so does the original', dbname => 'original');
$node->wait_until_sent;
$node->wait_until_sent(dbname => 'original');
is(arrived($_), 1, 'one arrival each') foreach $queued, $streamed, $of_original;
is($node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$of_original')", dbname => 'copy'),
	1, 'the row in the copy is left alone');

# What is nobody's goes once it has expired; the sender clears away every minute
$node->run("UPDATE otp.outbox SET expires_at = clock_timestamp() - interval '5 min'",
	dbname => 'copy');
$pid = $node->value('SELECT sender_pid FROM otp.worker_status()', dbname => 'copy');
$node->run("SELECT pg_terminate_backend($pid)", dbname => 'copy');
ok($node->poll_query_until('copy', 'SELECT NOT EXISTS (SELECT 1 FROM otp.outbox)'), 'and cleared away when it has expired');

# The same at the silent clone, for all rows
$clone->run("UPDATE otp.outbox SET expires_at = clock_timestamp() - interval '5 min'");
$pid = $clone->value('SELECT sender_pid FROM otp.worker_status()');
$clone->run("SELECT pg_terminate_backend($pid)");
ok($clone->poll_query_until('postgres', 'SELECT NOT EXISTS (SELECT 1 FROM otp.outbox)'), 'as it is at a silent clone');

#
# Promotion
#
$sim->behave({ do => { hang => \1 } });
my @pending = map { queue($node) } 1 .. 3;
poll_until { 3 == grep { arrived($_) } @pending };
set_delivery($node, 'off');
push @pending, queue($node);
$node->wait_for_catchup($standby, 'replay');
$node->stop('immediate');
$sim->forget_rules;
$sim->release;
$standby->promote;
ok($standby->wait_until_sent, 'a promoted standby sends what was queued');
ok($sim->code_for($_), 'it arrives') foreach @pending;
is(arrived($queued), 1, 'and nothing that was settled');
is(arrived($pending[0]), 2, 'what was under way once more');
check_alive($standby, 'the promoted standby delivers new ones');

$_->stop foreach $subscriber, $clone, $standby;
done_testing();
