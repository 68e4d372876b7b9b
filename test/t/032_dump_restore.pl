# A dump carries the configuration and the history to another server, and
# nothing that would make that server send.
#
# This protects: a policy that was changed survives pg_dump and pg_restore -e
# -1 to the last column, the rows that CREATE EXTENSION makes included; sealed
# secrets and codes work with the same key file and with no other; what was
# queued on the one server is not sent by the other.
use strict;
use warnings;

use File::Copy qw(copy);
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;

my @tables = qw(workspaces workspace_grants templates sms_texts provider_accounts test_numbers
  keys phone_failures verifications messages key_limits api_keys api_key_uses credits credit_changes
  credit_ledger send_keys guard_log);

# All that a dump must carry, as text
sub contents
{
	my ($node, $dbname, @names) = @_;
	my %contents;

	foreach my $table (@names ? @names : @tables)
	{
		$contents{$table} = $node->value(
			"SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM otp.$table t", dbname => $dbname);
	}
	return \%contents;
}

sub tool
{
	my ($node, @command) = @_;
	my ($stdout, $stderr) = ('', '');
	local %ENV = $node->_get_env();

	my $ok = IPC::Run::run(\@command, '<', \undef, '>', \$stdout, '2>', \$stderr);
	diag $stderr unless $ok;
	return $ok && $stderr eq '';
}

# A server with a policy of its own
my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install(dbname => 'app_db');
$node->configure($sim, dbname => 'app_db');
$node->create_user('app', dbname => 'app_db');
$node->run(<<'END', dbname => 'app_db');
UPDATE otp.workspaces SET app_name = 'Shop', default_length = 8, default_expires_in = 600,
	default_fallback_sms = true, default_template = 'login', sends_per_second = 500,
	sends_per_phone_hour = 50, sends_per_phone_day = 99, resend_cooldown = NULL, max_attempts = 4,
	failures_per_phone_day = 7, min_code_length = 6, max_expires_in = 700, require_context = true,
	allowed_prefixes = '{+1,+44}', fallback_after = '12 s', sends_burst = 1000, failure_delay = '40 s',
	failure_delay_after = 6, max_failures_in_row = 50, denied_prefixes = '{+1876}', sms_allowed_prefixes = '{+1}',
	whatsapp_denied_prefixes = '{+447}',
	credits_metered = true, fallback_credits = 2, refund_failed = true, credits_low = 5, guard_mode = 'record',
	guard_exempt_prefixes = '{+1555}', policy_function = 'public.my_policy', policy_timeout = '2 s';
CREATE FUNCTION public.my_policy(r otp.send_request) RETURNS text LANGUAGE sql
	AS $$ SELECT CASE r.phone WHEN '+15550320666' THEN 'deny' ELSE 'allow' END $$;
SELECT otp.create_workspace('second', 'Second');
UPDATE otp.workspaces SET max_attempts = 5 WHERE name = 'second';
SELECT otp.use_provider('second', 'twilio', '+15550320999', exclusive => false);
SELECT otp.create_workspace('third');
SELECT otp.suspend_workspace('third', 'unpaid');
INSERT INTO otp.key_limits VALUES (1, 'ip', 1, 9);
SELECT otp.add_credits('default', 500, 'invoice 1');
SELECT otp.create_webhook_endpoint('https://example.com/hook', workspace => 'default');
INSERT INTO otp.templates (workspace_id, name, language, status)
VALUES (1, 'login', 'en_US', 'approved'), (1, 'login', 'de', 'paused');
UPDATE otp.templates SET status = 'approved' WHERE name = 'otp_verification';
UPDATE otp.sms_texts SET body = '{code} for {app}', last_line = '@shop.example #{code}';
INSERT INTO otp.sms_texts (workspace_id, template, language, country_prefix, body, dlt_template_id)
	VALUES (1, 'login', 'en_US', '+44', 'Code: {code}', '110');
SELECT otp.set_test_number('+15550320001', '471147');
SELECT otp.grant_workspace('second', 'app');
END
my $api_key = $node->value("SELECT api_key FROM otp.create_api_key('second', 'of the dump')", dbname => 'app_db');
$node->value("SELECT workspace FROM otp.authenticate_api_key('$api_key')", dbname => 'app_db');
$sim->config({ templates => [ { name => 'login', language => 'en_US' } ] });
my @where = (dbname => 'app_db', workspace => 'default', context => 'login');
my $id = $node->send('+15550320002', @where, limit_keys => '{ip:192.0.2.1}', idempotency_key => 'before the dump');
my $code = $sim->code_for($id);
my $used = $node->send('+15550320003', @where);
ok($node->verify($used, $sim->code_for($used), context => 'login', dbname => 'app_db')->{valid}, 'a used code');
$node->verify($id, 'wrong', context => 'login', dbname => 'app_db');
$node->wait_until_sent(dbname => 'app_db');

# ... with something still owed
$node->append_conf('postgresql.conf', 'otp.delivery = off');
$node->reload;
$node->poll_query_until('postgres', "SELECT current_setting('otp.delivery') = 'off'");
my $queued = $node->send('+15550320004', @where);
$node->poll_query_until('app_db', 'SELECT ledger_used = 0 FROM otp.worker_status()');
is($node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$queued')", dbname => 'app_db'), 1, 'one message is owed');
$node->poll_query_until('app_db', 'SELECT count(*) = 1 FROM otp.api_key_uses');
my $balance = $node->value("SELECT balance FROM otp.credit_balances WHERE workspace = 'default'", dbname => 'app_db');
is($balance, 497, 'three sends were paid for');
my $before = contents($node, 'app_db');
my $audit = $node->value('SELECT string_agg(a::text, $$ $$ ORDER BY entry_id) FROM otp.audit_entries a', dbname => 'app_db');
my $dir = PostgreSQL::Test::Utils::tempdir();
ok(tool($node, 'pg_dump', '-Fc', '-f', "$dir/dump", 'app_db'), 'it is dumped');

# Restore it beside the original, into a database with another name
$sim->clear('inbox');
$node->run('CREATE DATABASE app_copy');
ok(tool($node, 'pg_restore', '-e', '-1', '-d', 'app_copy', "$dir/dump"), 'and restored in one transaction');
my $after = contents($node, 'app_copy');
is($after->{$_}, $before->{$_}, "$_ are the same") foreach @tables;
ok(index($node->value('SELECT string_agg(a::text, $$ $$ ORDER BY entry_id, at) FROM otp.audit_entries a WHERE at <= '
			. "(SELECT max(at) FROM otp.audit_entries WHERE action = 'create_webhook_endpoint' AND entry_id <= "
			. '(SELECT count(*) FROM otp.audit_entries))', dbname => 'app_copy'), 'suspend_workspace') >= 0,
	'the audit is carried');
is($node->value("SELECT count(*) FROM otp.audit_entries a WHERE position(a::text in \$audit\$$audit\$audit\$) > 0", dbname => 'app_copy'),
	$node->value('SELECT count(*) FROM otp.audit_entries', dbname => 'app_db'), 'entry by entry');
is($node->value('SELECT count(*) FROM otp.outbox', dbname => 'app_copy'), 0, 'nothing is owed by the copy');
ok($node->value("SELECT nextval('otp.workspaces_workspace_id_seq') > max(workspace_id) FROM otp.workspaces",
		dbname => 'app_copy') eq 't', 'new workspaces get new ids');
ok($node->value("SELECT nextval('otp.provider_accounts_account_id_seq') > max(account_id) FROM otp.provider_accounts",
		dbname => 'app_copy') eq 't', 'and new accounts');

# And into another server with the same key file
my $clone = OTP::Cluster->make('clone');
copy($node->data_dir . '/otp.key', $clone->data_dir . '/otp.key') or die "copy: $!";
chmod 0600, $clone->data_dir . '/otp.key';
$clone->start;
$clone->run('CREATE ROLE app LOGIN');
$clone->run('CREATE DATABASE app_db');
ok(tool($clone, 'pg_restore', '-e', '-1', '-d', 'app_db', "$dir/dump"), 'another server takes it, too');
$after = contents($clone, 'app_db', grep { $_ ne 'workspace_grants' } @tables);
is_deeply($after, { map { $_ => $before->{$_} } keys %$after }, 'with everything in it');
is($clone->value('SELECT string_agg(workspace_id || role::text, $$,$$ ORDER BY 1) FROM otp.workspace_grants',
		dbname => 'app_db'),
	$node->value('SELECT string_agg(workspace_id || role::text, $$,$$ ORDER BY 1) FROM otp.workspace_grants',
		dbname => 'app_db'),
	'grants by name');
ok($clone->wait_for_sender(dbname => 'app_db'), 'it has a sender');
is($clone->value('SELECT count(*) FROM otp.outbox', dbname => 'app_db'), 0, 'and owes nothing');

# The policy is in force
my %as_app = (dbname => 'app_db', user => 'app');
my $e = $clone->error_of("SELECT * FROM otp_send('+4915550320005', context => 'x', workspace => 'default')", %as_app);
is($e->{sqlstate}, 'OT400', 'a country that is not allowed');
$e = $clone->error_of("SELECT * FROM otp_send('+15550320005', workspace => 'default')", %as_app);
is($e->{sqlstate}, '22023', 'a context that is required');
$e = $clone->error_of("SELECT * FROM otp_send('+15550320005', context => 'x', length => 4, workspace => 'default')", %as_app);
is($e->{sqlstate}, '22023', 'a length that is too short');

$e = $clone->error_of("SELECT * FROM otp_send('+18765550320', context => 'x', workspace => 'default')", %as_app);
is($e->{sqlstate}, 'OT400', 'a country that is denied');
$e = $clone->error_of("SELECT * FROM otp_send('+15550320666', context => 'x', workspace => 'default')", %as_app);
is($e->{detail}{code}, 'policy_denied', 'the policy function is asked');
$e = $clone->error_of("SELECT * FROM otp_send('+15550320005', context => 'x', limit_keys => '{ip:192.0.2.1}', workspace => 'default')", %as_app);
is($e->{detail}{limit}, 'sends_per_key_hour', 'what was sent for a key counts');
is($clone->send('+15550320002', @where, limit_keys => '{ip:192.0.2.1}', idempotency_key => 'before the dump'), $id,
	'a request from before the dump is answered');
$e = $clone->error_of("SELECT * FROM otp_send('+15550320005', workspace => 'third')", dbname => 'app_db');
is($e->{detail}{code}, 'workspace_suspended', 'what was suspended is');
is($clone->value("SELECT workspace FROM otp.authenticate_api_key('$api_key')", dbname => 'app_db'), 'second', 'an API key is good');
is($clone->value("SELECT balance FROM otp.credit_balances WHERE workspace = 'default'", dbname => 'app_db'), $balance, 'credits are there');
is($clone->value("SELECT otp.add_credits('default', 500, 'invoice 1')", dbname => 'app_db'), $balance, 'and no invoice counts twice');
ok($clone->value("SELECT nextval('otp.api_keys_key_id_seq') > max(key_id) FROM otp.api_keys", dbname => 'app_db') eq 't',
	'new keys get new ids');

# What was sent there can be verified here; attempts count on
my $v = $clone->verify($id, 'wrong', context => 'login', dbname => 'app_db');
is($v->{attempts_remaining}, 2, 'attempts count on: one of four before, one now');
ok($clone->verify($id, $code, context => 'login', dbname => 'app_db')->{valid}, 'a code sent before the dump is right');
is($clone->verify($used, 'wrong', dbname => 'app_db')->{error}, 'otp_already_verified', 'a used one stays used');
is($clone->status($queued, dbname => 'app_db')->{status}, 'pending', 'what was owed is known');

# The sealed secrets open: it delivers with them
my $new = $clone->send('+15550320006', @where);
like($sim->code_for($new), qr/^\d{8}$/, 'a new code arrives, in the length of the policy');
is($sim->wait_for_messages(phone => '+15550320006') + 0, 1, 'once');
ok($clone->verify($clone->send('+15550320001', @where), '471147', context => 'login', dbname => 'app_db')->{valid},
	'and test numbers work');
is(scalar(grep { $_->{to} =~ /15550320004$/ } $sim->inbox), 0, 'what the first server owed was not sent');
$clone->stop;

# The first server sends it when it may
$node->append_conf('postgresql.conf', 'otp.delivery = on');
$node->reload;
ok($sim->code_for($queued), 'the first server sends what it owes');
ok($node->wait_until_sent(dbname => 'app_db'), 'once');
is(scalar(grep { $_->{to} =~ /15550320004$/ } $sim->inbox), 1, 'and nobody else');

# Another server with a key of its own: nothing opens, nothing is sealed anew
my $stranger = OTP::Cluster->start('stranger');
$stranger->run('CREATE ROLE app LOGIN');
$stranger->run('CREATE DATABASE app_db');
ok(tool($stranger, 'pg_restore', '-e', '-1', '-d', 'app_db', "$dir/dump"), 'a server with another key takes it');
my $fingerprint = $node->value('SELECT fingerprint FROM otp.keys', dbname => 'app_db');
my $key = $stranger->row('SELECT * FROM otp.key_status()', dbname => 'app_db');
ok(!$key->{ok}, 'and finds that its key does not fit');
like($key->{detail}, qr/\Q$fingerprint\E/, 'and which would');
foreach my $call ("otp_verify('$queued', 'wrong', context => 'login')",
	"otp_send('+15550320007', context => 'x', workspace => 'default')",
	"otp_send('+15550320001', context => 'x', workspace => 'default')",
	"otp.configure_meta(access_token => 'x')", "otp.set_test_number('+15550320001', '4711')")
{
	$e = $stranger->error_of("SELECT * FROM $call", dbname => 'app_db');
	(my $name = $call) =~ s/\(.*//;
	is($e->{sqlstate}, 'OT500', "$name: key_unavailable");
	like($e->{hint}, qr/\Q$fingerprint\E/, 'with the key to copy');
}
is($stranger->value('SELECT count(*) FROM otp.keys', dbname => 'app_db'), 1, 'nothing was sealed with it');
$stranger->stop;

# A configuration that was never changed restores, too
$node->install(dbname => 'plain');
ok(tool($node, 'pg_dump', '-Fc', '-f', "$dir/plain", 'plain'), 'a database as installed is dumped');
$node->run('CREATE DATABASE plain_copy');
ok(tool($node, 'pg_restore', '-e', '-1', '-d', 'plain_copy', "$dir/plain"), 'and restored');
is_deeply(contents($node, 'plain_copy', 'workspaces', 'sms_texts'), contents($node, 'plain', 'workspaces', 'sms_texts'),
	'the same');
is($node->value('SELECT count(*) FROM otp.templates', dbname => 'plain_copy'), 1, 'with one template');

# Plain SQL with --inserts, as people keep it in files
ok(tool($node, 'pg_dump', '--inserts', '-f', "$dir/plain.sql", 'app_db'), 'a dump as INSERTs');
$node->run('CREATE DATABASE app_inserts');
ok(tool($node, 'psql', '-qXo', "$dir/out", '-v', 'ON_ERROR_STOP=1', '-1',
		'-f', "$dir/plain.sql", 'app_inserts'), 'is read back');
is($node->value('SELECT w::text FROM otp.workspaces w WHERE workspace_id = 1', dbname => 'app_inserts'),
	$node->value('SELECT w::text FROM otp.workspaces w WHERE workspace_id = 1', dbname => 'app_db'), 'with the policy');

$node->stop;
done_testing;
