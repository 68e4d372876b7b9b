# A standby looks on, and takes over where the primary has stopped.
#
# This protects: nothing is sent, guessed or counted on a standby; one without
# the key file says so before it is needed; promoted with the key it delivers
# what was queued and lets users in; promoted without it, it refuses to guess
# at anything, seals nothing with a key of its own, and comes to life when the
# file is copied, without a restart.
use strict;
use warnings;

use File::Copy qw(copy);
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;

my $phones = 0;

sub new_phone
{
	return sprintf '+1555030%04d', ++$phones;
}

# The key file, as the guide says: with its mode
sub copy_key
{
	my ($from, $to) = @_;
	my $path = $to->data_dir . '/otp.key';

	copy($from->data_dir . '/otp.key', "$path.new") or die "copy: $!";
	chmod 0600, "$path.new" or die "chmod: $!";
	rename "$path.new", $path or die "rename: $!";
	return;
}

# Count the messages that no provider has taken
sub unsent
{
	my ($node) = @_;
	return $node->value(<<'END');
SELECT count(*) FROM otp.outbox o
WHERE NOT EXISTS (SELECT 1 FROM otp.messages m
	WHERE m.workspace_id = o.workspace_id AND m.verification_id = o.id AND m.number = o.number
		AND m.sent_at IS NOT NULL)
END
}

# Initialize a primary and two standbys, one without the key file
my $sim = OTP::Simulator->start;
my $primary = OTP::Cluster->start('primary', init => { allows_streaming => 1 });
$primary->install;
$primary->configure($sim);
$primary->lift_limits;
$primary->create_user('app');
$primary->backup('backup');

my $standby = OTP::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
unlink $standby->data_dir . '/otp.key';
copy_key($primary, $standby);
$standby->start;

my $bare = OTP::Cluster->new('bare');
$bare->init_from_backup($primary, 'backup', has_streaming => 1);
unlink $bare->data_dir . '/otp.key';
$bare->start;
ok(!-e $bare->data_dir . '/otp.key', 'a standby makes no key file of its own');

# Life on the primary, seen from the standby
my $id = $primary->send(new_phone());
my $code = $sim->code_for($id);
$primary->wait_until_sent;
$primary->verify($id, 'wrong');
$primary->wait_for_catchup($standby, 'replay');
$primary->wait_for_catchup($bare, 'replay');

my $status = $standby->status($id, user => 'app');
is($status->{status}, 'pending', 'a standby tells the status');
ok($status->{sent_at}, 'with what the provider said');
is($status->{attempts}, 1, 'and the attempts');
is($bare->status($id)->{status}, 'pending', 'without the key file, too');
is($standby->status('otp_01ARZ3NDEKTSV4RRFFQ69G5FAV'), undef, 'an unknown id has none');

foreach my $call ("otp_send('+15550309999')", "otp_verify('$id', '$code')",
	"otp_verify('otp_01ARZ3NDEKTSV4RRFFQ69G5FAV', '$code')", "otp_resend('$id')",
	"otp_cancel('$id')")
{
	my $e = $standby->error_of("SELECT * FROM $call", user => 'app');
	(my $name = $call) =~ s/\(.*//;
	is($e->{sqlstate}, '25006', "$name is refused on a standby");
}
is($standby->status($id)->{attempts}, 1, 'and counts nothing');

# The same in a read-only transaction of the primary
foreach my $call ("otp_send('+15550309999')", "otp_verify('$id', '$code')")
{
	my $e = $primary->error_of("BEGIN READ ONLY; SELECT * FROM $call", user => 'app');
	(my $name = $call) =~ s/\(.*//;
	is($e->{sqlstate}, '25006', "$name is refused in a read-only transaction");
}
is($primary->status($id)->{attempts}, 1, 'which counts nothing either');

# What is wrong shows before it matters
my $key = $standby->row('SELECT * FROM otp.key_status()');
ok($key->{ok}, 'the standby with the key file is well');
is($key->{fingerprint}, $primary->value('SELECT fingerprint FROM otp.keys'), 'and has the right key');
$key = $bare->row('SELECT key_ok, key_detail, key_fingerprint, sender_pid, launcher_pid FROM otp.health');
ok(!$key->{key_ok}, 'the one without is not');
like($key->{key_detail}, qr/otp\.key.*does not exist/, 'and says why');
is($key->{key_fingerprint}, undef, 'it has no key at all');
is($key->{sender_pid}, undef, 'no standby has a sender');
my ($check) = grep { $_->{part} eq 'key' } $bare->rows('SELECT * FROM otp.check_setup()');
ok(!$check->{ok}, 'otp.check_setup() finds it, too');
like($check->{hint}, qr/Copy the key file/, 'with what to do');

# Copied, it is there at once; taken away, it is missed at once
copy_key($primary, $bare);
ok($bare->row('SELECT * FROM otp.key_status()')->{ok}, 'a copied key file is found');
unlink $bare->data_dir . '/otp.key';
ok(!$bare->row('SELECT * FROM otp.key_status()')->{ok}, 'a removed one is missed');

# The primary goes down with one code not delivered, and one not guessed yet
$sim->config({ down => \1 });
my $queued = $primary->send(new_phone());
my $open = $primary->send(my $open_phone = new_phone());
$sim->config({ down => \0 });
my $open_code = $sim->code_for($open);
$primary->wait_until_sent;
$primary->append_conf('postgresql.conf', 'otp.delivery = off');
$primary->reload;
ok($primary->poll_query_until('postgres', 'SELECT NOT delivery FROM otp.worker_status()'), 'delivery is off');
$queued = $primary->send(my $queued_phone = new_phone());
$primary->verify($open, 'wrong');
$primary->run("BEGIN; SELECT * FROM otp_verify('$open', 'wrong'); ROLLBACK");
ok($primary->poll_query_until('postgres', 'SELECT ledger_used = 0 FROM otp.worker_status()'),
	'the ledger is written back with delivery off');
$primary->wait_for_catchup($standby, 'replay');
$primary->wait_for_catchup($bare, 'replay');
my $fingerprint = $primary->value('SELECT fingerprint FROM otp.keys');
$primary->stop('immediate');
is(unsent($standby), 1, 'one message is still owed');

# Promotion without the key: nothing happens that could do harm
$sim->clear('log');
$bare->promote;
ok($bare->wait_for_sender, 'a promoted server has a sender');
foreach my $call ("otp_verify('$open', '$open_code')", "otp_verify('$open', 'wrong')",
	"otp_verify('otp_01ARZ3NDEKTSV4RRFFQ69G5FAV', '1234')", "otp_send('+15550309999')",
	"otp.set_test_number('+15550309998', '1234')", "otp.configure_meta(access_token => 'new')")
{
	my $e = $bare->error_of("SELECT * FROM $call");
	(my $name = $call) =~ s/\(.*//;
	is($e->{sqlstate}, 'OT500', "$name without the key file is refused");
	is(ref $e->{detail} && $e->{detail}{code}, 'key_unavailable', 'as key_unavailable');
}
is($bare->status($open)->{attempts}, 2, 'which counts as no attempt');
is($bare->value('SELECT ledger_used FROM otp.worker_status()'), 0, 'in the ledger neither');

# A restart as primary makes a key file of its own: nothing is done with it
$bare->restart;
ok($bare->wait_for_sender, 'restarted without the key file');
foreach my $call ("otp_verify('$open', '$open_code')", "otp_send('+15550309999')",
	"otp.set_test_number('+15550309998', '1234')", "otp.configure_meta(access_token => 'new')")
{
	my $e = $bare->error_of("SELECT * FROM $call");
	(my $name = $call) =~ s/\(.*//;
	is($e->{sqlstate}, 'OT500', "$name with a foreign key is refused");
	like($e->{hint}, qr/\Q$fingerprint\E/, 'and says which key to copy');
}
is($bare->value('SELECT string_agg(fingerprint, $$,$$) FROM otp.keys'), $fingerprint,
	'nothing was made with the foreign key');
ok(!$bare->row('SELECT * FROM otp.key_status()')->{ok}, 'the trouble shows');
like($bare->row('SELECT * FROM otp.key_status()')->{detail}, qr/\Q$fingerprint\E/, 'with the missing key');
is(unsent($bare), 1, 'the message still waits');
is(scalar $sim->log, 0, 'nothing was asked of the provider');

# ... until the file is copied
copy_key($primary, $bare);
ok($bare->row('SELECT * FROM otp.key_status()')->{ok}, 'the key file is copied');
my $v = $bare->verify($open, 'wrong');
is($v->{attempts_remaining}, 0, 'then it counts on, where the old primary stopped');
my $bare_code = $sim->code_for($queued);
ok($bare->wait_until_sent, 'and delivers what was queued');
ok($bare->verify($queued, $bare_code)->{valid}, 'whose code is right');
is(scalar(grep { $_->{to} eq $queued_phone || "+$_->{to}" eq $queued_phone } $sim->inbox), 1, 'once');
my $new = $bare->send(new_phone());
ok($bare->verify($new, $sim->code_for($new))->{valid}, 'and new ones are sent and verified');
$bare->stop;

# Promotion with the key: as if nothing had happened
$sim->clear('inbox');
$standby->promote;
my $standby_code = $sim->code_for($queued);
is($standby_code, $bare_code, 'promoted with the key file, it delivers what was queued: the same code');
ok($standby->wait_until_sent, 'and is done with it');
is($standby->verify($open, 'wrong')->{attempts_remaining}, 0, 'attempts are known');
is($standby->verify($open, $open_code)->{error}, 'rate_limit_exceeded', 'and over');
ok($standby->verify($queued, $standby_code)->{valid}, 'the code is right');
is(scalar $sim->inbox, 1, 'one message went out');
$standby->stop;

done_testing;
