# 050_delivery.pl
#	What is committed is delivered at once, what is rolled back never.
#
# Protects: no message for a send that was rolled back, whichever way; a wake
# at every kind of commit; nothing leaves before it is safe on disk, whatever
# the caller's synchronous_commit.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Arrival after the commit: the sender looks by itself every 5 s only, so a
# dozen arrivals in a row within a fifth of that are no accident.
use constant AT_ONCE => 1.0;

my $sim = OTP::Simulator->start;

# Initialize the server. The WAL writer must not flush in our place.
my $node = OTP::Cluster->start(
	'main',
	conf => [
		'max_prepared_transactions = 10',
		'wal_writer_delay = 10s',
		'autovacuum = off' ]);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->wait_for_sender;

my $last_phone = 15550000000;

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Send one that arrives: what was committed before it has been looked at then
sub send_marker
{
	my $id = $node->send(phone);
	$sim->code_for($id);
	$node->wait_until_sent;
	return $id;
}

# The requests for some ids
sub arrived
{
	my %wanted = map { $_ => 1 } @_;
	return scalar grep { defined $_->{otp_id} && $wanted{ $_->{otp_id} } } $sim->log;
}

# How long after an instant an id arrived
sub seconds_until_arrival
{
	my ($id, $start) = @_;
	my @log;

	poll_until { @log = $sim->log(otp_id => $id) } or return 'never';
	return $log[0]{received_us} / 1e6 - $start;
}

#
# Rolled back: nothing is sent
#
my @rolled_back;
my $phone;

$phone = phone;
push @rolled_back, $node->run("BEGIN; SELECT otp_id FROM otp_send('$phone'); ROLLBACK;");

$phone = phone;
my $other = phone;
my ($kept, $dropped) = split /\n/, $node->run(<<"END");
BEGIN;
SELECT otp_id FROM otp_send('$phone');
SAVEPOINT s;
SELECT otp_id FROM otp_send('$other');
ROLLBACK TO SAVEPOINT s;
COMMIT;
END
push @rolled_back, $dropped;

$phone = phone;
push @rolled_back, $node->run(<<"END");
CREATE TABLE ids (id text);
DO \$\$
DECLARE
	id text;
BEGIN
	BEGIN
		SELECT otp_id INTO id FROM otp_send('$phone');
		PERFORM 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		INSERT INTO ids VALUES (id);
	END;
END \$\$;
SELECT id FROM ids;
END

$phone = phone;
push @rolled_back, $node->run(<<"END");
BEGIN;
SELECT otp_id FROM otp_send('$phone');
PREPARE TRANSACTION 'given up';
ROLLBACK PREPARED 'given up';
END

# A client that goes away without a word
$phone = phone;
push @rolled_back, $node->run("BEGIN; SELECT otp_id FROM otp_send('$phone');");

# One that a constraint refuses at the very last
$phone = phone;
my ($refused) = split /\n/, $node->run(<<"END");
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (id int REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
\\set ON_ERROR_STOP off
BEGIN;
INSERT INTO children VALUES (1);
SELECT otp_id FROM otp_send('$phone');
COMMIT;
END
push @rolled_back, $refused;

send_marker;
is(scalar(grep { defined && /^otp_/ } @rolled_back), 6, 'all of the sends were made');
is(arrived(@rolled_back), 0, 'nothing that was rolled back is sent');
is(arrived($kept), 1, 'what was sent before a savepoint that is rolled back arrives');
is($node->value('SELECT count(*) FROM otp.verifications'), 2, 'nothing of them is left');

#
# Prepared: sent when it is committed, by another session
#
my @delays;
foreach my $i (1 .. 4)
{
	$phone = phone;
	my $id = $node->run(
		"BEGIN; SELECT otp_id FROM otp_send('$phone'); PREPARE TRANSACTION 'p$i';");

	send_marker if $i == 1;
	is(arrived($id), 0, 'what is prepared waits') if $i == 1;

	my $start = time;
	$node->run("COMMIT PREPARED 'p$i'");
	push @delays, seconds_until_arrival($id, $start);
}
cmp_ok($_, '<', AT_ONCE, 'COMMIT PREPARED of another session wakes the sender') foreach @delays;
note "COMMIT PREPARED to arrival: @delays";

# Over a restart, too
$phone = phone;
my $prepared = $node->run(
	"BEGIN; SELECT otp_id FROM otp_send('$phone'); PREPARE TRANSACTION 'restart';");
$node->restart;
send_marker;
is(arrived($prepared), 0, 'what is prepared waits over a restart');
$node->run("COMMIT PREPARED 'restart'");
ok($sim->code_for($prepared), 'and is sent then');

#
# Wake at commit
#
@delays = ();
foreach my $i (1 .. 8)
{
	my $start = time;
	my $id = $node->send(phone);
	push @delays, seconds_until_arrival($id, $start);
}
cmp_ok((sort { $b <=> $a } @delays)[0], '<', AT_ONCE, 'a commit wakes the sender');
note "commit to arrival: @delays";

# Of a procedure, in its middle
$phone = phone;
$node->run(<<"END");
TRUNCATE ids;
CREATE PROCEDURE send_and_stay() LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO ids SELECT otp_id FROM otp_send('$phone');
	COMMIT;
	PERFORM pg_advisory_lock(1);
END \$\$;
END
my $holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(1)');
my $caller = $node->background_psql('postgres');
my $start = time;
$caller->query_until(qr/calling/, "\\echo calling\nCALL send_and_stay();\n");
poll_until { $node->value('SELECT count(*) FROM ids') eq '1' };
my $id = $node->value('SELECT id FROM ids');
cmp_ok(seconds_until_arrival($id, $start), '<', AT_ONCE,
	'a commit inside a procedure wakes the sender');
$holder->query_safe('SELECT pg_advisory_unlock(1)');
$holder->quit;
$caller->quit;

# Of one that has written before in subtransactions and aborted some
$phone = phone;
$start = time;
($id) = split /\n/, $node->run(<<"END");
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT otp_id FROM otp_send('$phone');
RELEASE b;
SAVEPOINT c;
DELETE FROM ids;
ROLLBACK TO c;
RELEASE a;
COMMIT;
END
cmp_ok(seconds_until_arrival($id, $start), '<', AT_ONCE,
	'a send in a subtransaction wakes the sender');

# By an ordinary user
$node->create_user('app');
$start = time;
$id = $node->send(phone, user => 'app');
cmp_ok(seconds_until_arrival($id, $start), '<', AT_ONCE, 'an ordinary user wakes it, too');

#
# Nothing leaves before it is on disk: the server dies at the very arrival
#
$sim->behave({ do => { hang => \1, record => \1 } });
foreach my $round (1 .. 3)
{
	my $since = ($sim->inbox)[-1]{seq};
	my $session = $node->background_psql('postgres');

	$phone = phone;
	$session->query_safe('SET synchronous_commit = off');
	my $id = $session->query_safe("SELECT otp_id FROM otp_send('$phone')");
	poll_until { grep { $_->{otp_id} eq $id } $sim->inbox };
	$node->stop('immediate');
	eval { $session->quit };
	$node->start;

	is($node->value("SELECT count(*) FROM otp.verifications WHERE phone = '$phone'"),
		1, "round $round: what arrived is still there after a crash");
	ok( poll_until { $sim->log(otp_id => $id) == 2 },
		'and is sent again, because nobody knows that it arrived');
	is(scalar(grep { defined && $_ ne ($sim->inbox($phone))[0]{code} }
			map { $_->{code} } $sim->inbox($phone)),
		0, 'with the same code');
}

# The same for what was queued before the sender came
$node->append_conf('postgresql.conf', 'otp.delivery = off');
$node->stop('immediate');
$sim->release;
$node->start;
$node->wait_for_sender;
my $session = $node->background_psql('postgres');
$session->query_safe('SET synchronous_commit = off');
$phone = phone;
$id = $session->query_safe("SELECT otp_id FROM otp_send('$phone')");
is(arrived($id), 0, 'otp.delivery = off keeps it');
$node->append_conf('postgresql.conf', 'otp.delivery = on');
$node->reload;
poll_until { grep { $_->{otp_id} eq $id } $sim->inbox };
$node->stop('immediate');
eval { $session->quit };
$node->start;
is($node->value("SELECT count(*) FROM otp.verifications WHERE phone = '$phone'"),
	1, 'what was queued before the sender came is on disk before it is sent');

# In the end all is well
$sim->forget_rules;
$sim->release;
ok($node->wait_until_sent, 'nothing is owed in the end');
is($node->status($id)->{status}, 'pending', 'and it waits for its user');
ok(defined $node->status($id)->{sent_at}, 'sent');
is(arrived(@rolled_back), 0, 'still nothing of what was rolled back');

$node->stop;
done_testing();
