# The key file: when it is made, what is taken for one, and how keys change.
#
# This protects: a key comes into being exactly once, on the first start of a
# server that is its own master; a file that others could read is not used, in
# clear words; a new key on top leaves everything old working; and a key that
# is gone stops what needs it, names what to copy, and costs no attempt.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

my $phones = 0;

sub new_phone
{
	return sprintf '+1555031%04d', ++$phones;
}

# Replace the file at once, with its mode, as an administrator should
sub write_key_file
{
	my ($node, $content, $mode) = @_;
	my $path = $node->data_dir . '/otp.key';

	unlink "$path.new";
	append_to_file("$path.new", $content);
	chmod $mode // 0600, "$path.new" or die "chmod: $!";
	rename "$path.new", $path or die "rename: $!";
	return;
}

sub key_status
{
	my ($node) = @_;
	return $node->row('SELECT * FROM otp.key_status()');
}

# Initialize a server, and look at what makes no key file
my $node = OTP::Cluster->make('main');
my $path = $node->data_dir . '/otp.key';
command_ok([ 'postgres', '-D', $node->data_dir, '-C', 'shared_buffers' ], 'asking for a setting');
ok(!-e $path, 'makes no key file');
command_ok([ 'postgres', '-D', $node->data_dir, '-C', 'shared_memory_size' ],
	'asking for one that is computed')
  if $node->pg_version >= 15;
ok(!-e $path, 'makes none either');
PostgreSQL::Test::Utils::run_command([ 'sh', '-c', "echo 'SELECT 1' | postgres --single -D "
	  . $node->data_dir . ' postgres' ]);
ok(!-e $path, 'nor does single-user mode');
command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-o', '-b', 'start' ],
	'started as pg_upgrade starts it');
ok(!-e $path, 'it makes none');
command_ok([ 'pg_ctl', '-w', '-D', $node->data_dir, 'stop' ], 'and stops');

# The first start makes it
$node->start;
ok(-e $path, 'the first start makes a key file');
is(sprintf('%04o', (stat $path)[2] & 07777), '0600', 'for its owner only');
my $file = slurp_file($path);
my @keys = grep { !/^#/ } split /\n/, $file;
is(scalar @keys, 1, 'with one key');
like($keys[0], qr/^[0-9a-f]{64}$/, 'of 64 hex digits');
like($file, qr/^# .*otp/, 'and says what it is');
my $log = slurp_file($node->logfile);
like($log, qr/created key file/, 'the log tells');
unlike($log, qr/\Q$keys[0]\E/, 'but not the key');
$node->restart;
is(slurp_file($path), $file, 'the next start leaves it alone');

my $sim = OTP::Simulator->start;
$node->install;
$node->configure($sim);
$node->lift_limits;
is($node->value('SELECT count(*) FROM otp.keys'), 1, 'sealing has noted the key');
my $first = $node->value('SELECT fingerprint FROM otp.keys');
is(key_status($node)->{fingerprint}, $first, 'which is the current one');

# What is not taken for a key file
my $id = $node->send(new_phone());
my $code = $sim->code_for($id);
my $other = 'ab' x 32;
foreach my $case (
	[ 'open to the group', $file, 0640, qr/has group or world access.*0600/ ],
	[ 'open to the world', $file, 0604, qr/has group or world access/ ],
	[ 'empty', '', 0600, qr/has no key/ ],
	[ 'only comments', "# nothing\n\n", 0600, qr/has no key/ ],
	[ 'too short a key', substr($keys[0], 1) . "\n", 0600, qr/64 hex digits in line 1/ ],
	[ 'a second line that is none', "$keys[0]\nnonsense\n", 0600, qr/in line 2/ ],
	[ 'too many keys', join("\n", map { sprintf '%064x', $_ } 1 .. 17), 0600, qr/more than 16 keys/ ],
	[ 'far too long', "$keys[0]\n" . '#' x 20000, 0600, qr/more than 16384 bytes/ ])
{
	my ($name, $content, $mode, $words) = @$case;
	write_key_file($node, $content, $mode);
	my $status = key_status($node);
	ok(!$status->{ok}, "a key file that is $name is not used");
	like($status->{detail}, $words, 'and it says why');
	my $e = $node->error_of("SELECT * FROM otp_verify('$id', 'wrong')");
	is($e->{sqlstate}, 'OT500', 'nothing can be guessed meanwhile');
	unlike($status->{detail} . $e->{text}, qr/\Q$keys[0]\E|nonsense/, 'and nothing of the file is told');
}
unlink $path;
mkdir $path;
like(key_status($node)->{detail}, qr/is not a regular file|could not/, 'a directory is no key file');
rmdir $path;
POSIX::mkfifo($path, 0600);
like(key_status($node)->{detail}, qr/is not a regular file/, 'nor is a pipe, which holds nobody up');
unlink $path;
ok(!key_status($node)->{ok}, 'no file is no key file');
symlink $node->data_dir . '/elsewhere', $path;
ok(!key_status($node)->{ok}, 'nor is a dangling link');
unlink $path;

# Written by hand: blanks, capitals, another system's line ends, no last one
write_key_file($node, "\r\n# mine\r\n  " . uc($keys[0]) . " \t");
ok(key_status($node)->{ok}, 'a key written by hand is taken');
is(key_status($node)->{fingerprint}, $first, 'for what it is');
is($node->status($id)->{attempts}, 0, 'all that cost no attempt');

# A file of root's, which its group may read
SKIP:
{
	skip 'only root can give files away', 2
	  if $> != 0;
	chown 0, -1, $path;
	chmod 0640, $path;
	ok(key_status($node)->{ok}, "root's own file may be open to its group");
	chmod 0644, $path;
	like(key_status($node)->{detail}, qr/group or world/, 'but not to the world');
}
write_key_file($node, $file);

# A session that has read the keys outlives a bad file, and says so once
my $session = $node->background_psql('postgres', on_error_stop => 0);
is($session->query_safe("SELECT error FROM otp_verify('$id', 'wrong')"), 'invalid_code', 'a session with the keys');
write_key_file($node, "nonsense\n");
$session->{stderr} = '';
is($session->query("SELECT error FROM otp_verify('$id', 'wrong')"), 'invalid_code',
	'works on when the file is broken');
like($session->{stderr}, qr/WARNING:.*64 hex digits in line 1/, 'with a warning');
$session->{stderr} = '';
$session->query('SELECT * FROM otp.key_status()');
unlike($session->{stderr}, qr/WARNING/, 'one');
write_key_file($node, $file);
ok($session->query_safe("SELECT valid FROM otp_verify('$id', '$code')"), 'and goes on');
$session->quit;

# Rotation: a new key on top
$id = $node->send(new_phone());
$code = $sim->code_for($id);
$node->run("SELECT otp.set_test_number('+15550319999', '4711')");
$sim->config({ down => \1 });
my $waiting = $node->send(new_phone());
write_key_file($node, "# new\n$other\n$file");
$sim->config({ down => \0 });
ok(key_status($node)->{ok}, 'a key is put on top');
my $second = key_status($node)->{fingerprint};
isnt($second, $first, 'and is the current one, without a reload');

# ... noted by whoever uses it first, and commits
$session = $node->background_psql('postgres');
$session->query_safe("BEGIN; SELECT FROM otp_send('" . new_phone() . "')");
$session->query_safe("SELECT FROM otp_send('" . new_phone() . "'); ROLLBACK");
is($node->value('SELECT count(*) FROM otp.keys'), 1, 'a send that is rolled back notes no key');
$session->query_safe("SELECT FROM otp_send('" . new_phone() . "')");
is($node->value('SELECT count(*) FROM otp.keys'), 2, 'the next one of the same session does');
$session->quit;
my $waiting_code = $sim->code_for($waiting);
ok($node->verify($waiting, $waiting_code)->{valid}, 'what was queued with the old key goes out and verifies');
ok($node->verify($id, $code)->{valid}, 'what was sent with the old key verifies');
ok($node->verify($node->send('+15550319999'), '4711')->{valid}, "a test number's code opens");
$id = $node->send(new_phone());
$code = $sim->code_for($id);
is($node->value("SELECT k.fingerprint FROM otp.verifications v JOIN otp.keys k USING (key_id)"
		  . " WHERE v.id = otp.parse_id('$id')"), $second, 'new codes are made with the new key');
is($node->value("SELECT string_agg(fingerprint, ',' ORDER BY first_used) FROM otp.keys"),
	"$first,$second", 'otp.keys lists both');
is($node->value('SELECT count(DISTINCT key_id) FROM otp.provider_accounts'), 1, 'the secrets have the old one');
$node->run("SELECT otp.configure_meta(verify_token => 'again')");
is($node->value("SELECT k.fingerprint FROM otp.provider_accounts a JOIN otp.keys k USING (key_id) WHERE name = 'meta'"),
	$second, 'until they are set again');
my $other_id = $node->send(new_phone());
ok($node->verify($other_id, $sim->code_for($other_id))->{valid}, 'and work');

# The old key goes: what needs it says so, and which it is
write_key_file($node, "$other\n");
my $status = key_status($node);
ok(!$status->{ok}, 'the old key is missed');
like($status->{detail}, qr/older key.*\Q$first\E/, 'by its fingerprint');
ok($node->verify($id, $code)->{valid}, 'what the new key made works');
my $e = $node->error_of("SELECT * FROM otp.configure_twilio(risk_check => 'enable')");
is($e->{sqlstate}, 'OT500', 'what the old one sealed does not');
like($e->{hint}, qr/\Q$first\E/, 'and the hint names the key to copy');
$e = $node->error_of("SELECT * FROM otp_send('+15550319999')");
is($e->{sqlstate}, 'OT500', "neither does a test number's code");

# Gone both: nothing works, and no key of another server's is used
$id = $node->send(new_phone());
$code = $sim->code_for($id);
write_key_file($node, 'cd' x 32);
$e = $node->error_of("SELECT * FROM otp_verify('$id', 'wrong')");
is($e->{sqlstate}, 'OT500', 'with a foreign key nothing is guessed');
is($e->{detail}{code}, 'key_unavailable', 'as key_unavailable');
like($e->{hint}, qr/\Q$second\E/, 'with the key to copy');
$e = $node->error_of("SELECT * FROM otp_send('" . new_phone() . "')");
is($e->{sqlstate}, 'OT500', 'nothing is sent');
like($e->{hint}, qr/\Q$first\E|\Q$second\E/, 'with a key to copy');
is($node->value('SELECT count(*) FROM otp.keys'), 2, 'and the foreign key leaves no trace');
write_key_file($node, "$other\n$file");
is($node->verify($id, 'wrong')->{attempts_remaining}, 2, 'that cost no attempt');
ok($node->verify($id, $code)->{valid}, 'with the file back all is well');

# An extension that is made anew has a list of its own
$session = $node->background_psql('postgres');
$session->query_safe("SELECT FROM otp_send('" . new_phone() . "')");
$session->query_safe('SET client_min_messages = warning; DROP EXTENSION otp; CREATE EXTENSION otp');
$session->query_safe("SELECT otp.set_test_number('+15550319999', '4711')");
is($session->query_safe('SELECT fingerprint FROM otp.keys'), $second, 'a new extension notes the key, too');
$session->quit;
$node->configure($sim);

# A key file outside of the data directory
my $outside = PostgreSQL::Test::Utils::tempdir() . '/keys';
$node->append_conf('postgresql.conf', "otp.key_file = '$outside'");
$node->restart;
ok(-e $outside, 'one elsewhere is made as well');
ok(!key_status($node)->{ok}, 'and is no help to a database with another key');
like(key_status($node)->{detail}, qr/\Q$first\E|\Q$second\E/, 'which it names');
unlink $outside;
append_to_file($outside, "$other\n$file");
chmod 0600, $outside;
ok(key_status($node)->{ok}, 'until it is filled');
$node->stop;

# A server that starts in recovery makes none: the key must come with the copy
my $origin = OTP::Cluster->start('origin', init => { allows_streaming => 1 });
$origin->backup('backup');
my $copy = OTP::Cluster->new('copy');
$copy->init_from_backup($origin, 'backup', has_streaming => 1);
unlink $copy->data_dir . '/otp.key';
$copy->start;
ok(!-e $copy->data_dir . '/otp.key', 'a standby makes no key file');
$copy->promote;
ok(!-e $copy->data_dir . '/otp.key', 'nor does its promotion');
$copy->stop;
$origin->stop;

done_testing;
