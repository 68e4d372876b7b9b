# What works behind pgbouncer in transaction mode, with the real pgbouncer.
#
# This protects what the README's table says: all verbs work when each
# transaction may run in another server connection, and how a workspace is
# chosen there without the choice leaking to the next client. All clients of
# a role share one server connection here, so what leaks is seen to leak.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = OTP::Cluster->start('main');
$node->install;
$node->run(<<'END');
INSERT INTO otp.workspaces (name) VALUES ('other');
INSERT INTO otp.templates (workspace_id, name, language)
	SELECT workspace_id, 'otp_verification', 'en_US' FROM otp.workspaces WHERE name = 'other';
SELECT otp.set_test_number('+15551910001', '111111');
SELECT otp.set_test_number('+15551910001', '222222', workspace => 'other');
END
$node->create_user('app');
$node->run("SELECT otp.grant_workspace('other', 'app')");
$node->create_user('tenant', workspace => 'other');
$node->create_user('broad');
$node->run("SELECT otp.grant_workspace('other', 'broad'); ALTER ROLE broad SET otp.workspace = 'other'");

# pgbouncer, with a server connection for each role
my $pgbouncer = $ENV{OTP_PGBOUNCER} or die 'OTP_PGBOUNCER does not name pgbouncer';
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();
append_to_file("$dir/users.txt", '');
append_to_file("$dir/pgbouncer.ini", <<"END");
[databases]
postgres = host=@{[$node->host]} port=@{[$node->port]} dbname=postgres
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = trust
auth_file = $dir/users.txt
pool_mode = transaction
default_pool_size = 1
logfile = $dir/pgbouncer.log
ignore_startup_parameters = extra_float_digits
END
append_to_file("$dir/users.txt", qq("app" ""\n"tenant" ""\n"broad" ""\n));
my $bouncer = IPC::Run::start([ $pgbouncer, '-q', "$dir/pgbouncer.ini" ], '<', \undef, '>', \my $out, '2>', \my $err);
END { $bouncer->kill_kill if defined $bouncer }

# Run SQL through it, a transaction for each statement
sub via
{
	my ($user, @statements) = @_;
	my ($stdout, $stderr);
	IPC::Run::run([ $node->installed_command('psql'), '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', "host=$dir port=$port dbname=postgres user=$user",
			map { ('-c', $_) } @statements ], '<', \undef, '>', \$stdout, '2>', \$stderr);
	chomp $stdout;
	return $stderr ne '' ? $stderr : $stdout;
}
ok(poll_until { via('app', 'SELECT 1') eq '1' }, 'pgbouncer works') or BAIL_OUT($err);
is(via('app', 'SELECT pg_backend_pid()'), via('app', 'SELECT pg_backend_pid()'), 'all clients of a role share a server connection');

# The whole way, each step perhaps in another connection
my $id = via('app', "SELECT otp_id FROM otp_send('+15551910001', context => 'x', workspace => 'default')");
like($id, qr/^otp_/, 'the argument workspace chooses');
is(via('app', "SELECT status FROM otp_status('$id')"), 'delivered', 'status');
is(via('app', "SELECT valid, error, attempts_remaining FROM otp_verify('$id', '000000', 'x')"), 'f|invalid_code|2', 'a wrong guess');
like(via('app', "SELECT otp_id FROM otp_resend('$id')"), qr/^otp_/, 'resend');
is(via('app', "SELECT status FROM otp_wait('$id', '1 s')"), 'delivered', 'wait');
is(via('app', 'BEGIN', "SELECT valid FROM otp_verify('$id', '111111', 'x')", 'ROLLBACK'), 't', 'a right one that is rolled back');
is(via('app', "SELECT valid FROM otp_verify('$id', '111111', 'x')"), 't', 'and again');

# Choosing a workspace
like(via('app', "SELECT otp_send('+15551910001')"), qr/several workspaces are granted and none is chosen/, 'with two, one has to be chosen');
$id = via('app', 'BEGIN', "SET LOCAL otp.workspace = 'other'", "SELECT otp_id FROM otp_send('+15551910001')", 'COMMIT');
is(via('app', "SELECT valid FROM otp_verify('$id', '222222')"), 't', 'SET LOCAL chooses for its transaction');
like(via('app', "SELECT otp_send('+15551910001')"), qr/none is chosen/, 'and for no other');
$id = via('broad', "SELECT otp_id FROM otp_send('+15551910001')");
is(via('broad', "SELECT valid FROM otp_verify('$id', '222222')"), 't', 'ALTER ROLE ... SET chooses');
$id = via('tenant', "SELECT otp_id FROM otp_send('+15551910001')");
is(via('tenant', "SELECT valid FROM otp_verify('$id', '222222')"), 't', 'the only one granted is chosen');
like(via('tenant', "SELECT otp_send('+15551910001', workspace => 'default')"), qr/permission denied for workspace/, 'and no other one');

# What leaks, as anything that is SET does
is(via('app', "SET otp.workspace = 'other'"), '', 'a plain SET');
is(via('app', 'SHOW otp.workspace'), 'other', 'leaks to the next client');
is(via('app', 'DISCARD ALL'), '', 'until the session is discarded');

# A grant that is taken back holds for connections that have cached it
$node->run("SELECT otp.revoke_workspace('other', 'tenant')");
like(via('tenant', "SELECT otp_send('+15551910001')"), qr/permission denied|no workspace is granted/, 'a revoked grant ends at once');

$bouncer->kill_kill;
undef $bouncer;
$node->stop;
done_testing;
