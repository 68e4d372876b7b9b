# API keys and the audit, where one session is not enough.
#
# This protects: a revocation bites at the very next call of every session, on
# standbys as well, whatever they have kept; a call with a key writes nothing,
# the sender writes its time down, once a minute for each key, and what is left
# before it stops; a key can be read nowhere, on disk, in the log, in a dump;
# keys and audit survive a dump, restored in one transaction; what the sender
# writes into tables of the configuration is not taken for somebody's doing.
use strict;
use warnings;

use File::Find;
use MIME::Base64 qw(encode_base64);
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $sim = OTP::Simulator->start;

# Initialize a server that logs all it can, and a standby
my $node = OTP::Cluster->start('main', init => { allows_streaming => 1 }, conf => [
		"shared_preload_libraries = 'otp, auto_explain, pg_stat_statements'",
		'log_min_messages = debug1', 'log_error_verbosity = verbose',
		'auto_explain.log_min_duration = 0', 'auto_explain.log_nested_statements = on',
		'auto_explain.log_verbose = on', 'pg_stat_statements.track = all', 'max_prepared_transactions = 5' ]);
$node->install;
$node->configure($sim);
$node->run(<<'END');
CREATE EXTENSION pg_stat_statements;
CREATE ROLE web LOGIN;
GRANT USAGE ON SCHEMA otp TO web;
GRANT EXECUTE ON FUNCTION otp.authenticate_api_key(text) TO web;
-- auto_explain logs the statements of clients as they are, with their literals: keys are only looked at by this role
ALTER ROLE web SET auto_explain.log_min_duration = -1;
CREATE FUNCTION try_key(key text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT workspace || CASE WHEN admin THEN ' admin' ELSE '' END FROM otp.authenticate_api_key(key));
EXCEPTION WHEN SQLSTATE 'OT401' THEN
	RETURN SQLSTATE;
END $$;
END
$node->backup('backup');
my $standby = OTP::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;

my @keys;

sub remember
{
	my ($row) = @_;

	push @keys, $row->{api_key};
	return $row;
}

sub create
{
	my ($name, %args) = @_;
	my ($where, $arguments) = ({ dbname => delete $args{dbname} // 'postgres' }, \%args);

	return remember($node->call('otp.create_api_key', { workspace => 'default', name => $name, %$arguments }, %$where));
}

sub shown
{
	my ($server, $key, $column, %where) = @_;
	return $server->value("SELECT $column FROM otp.api_key_list WHERE key_id = $key->{key_id}", %where);
}

# A key that open sessions have used: revoked, it is of no use to any of them
$node->wait_for_catchup($standby, 'replay');
my @sessions = map { $node->background_psql('postgres', extra_params => [ '-U', 'web' ]) } 1 .. 3;
$sessions[1]->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$sessions[2]->query_safe('BEGIN READ ONLY');
my $abroad = $standby->background_psql('postgres', extra_params => [ '-U', 'web' ]);
foreach my $round (1 .. 10)
{
	my $key = create("round $round");
	my $query = "SELECT try_key('$key->{api_key}')";

	is(join(' ', map { $_->query_safe($query) } @sessions, @sessions), join(' ', ('default') x 6),
		"key $round is valid everywhere");
	$node->wait_for_catchup($standby, 'replay');
	is($abroad->query_safe($query), 'default', 'on the standby as well');
	$node->run("SELECT otp.revoke_api_key($key->{key_id})");
	is(join(' ', map { $_->query_safe($query) } @sessions), join(' ', ('OT401') x 3),
		'revoked, it is not at the next call');
	$node->wait_for_catchup($standby, 'replay');
	is($abroad->query_safe($query), 'OT401', 'nor on the standby');
}

# Prepared, a revocation waits for its commit
my $two_phase = create('two-phase');
is($sessions[0]->query_safe("SELECT try_key('$two_phase->{api_key}')"), 'default', 'a key that is used');
$node->run("BEGIN; SELECT otp.revoke_api_key($two_phase->{key_id}); PREPARE TRANSACTION 'revoke'");
is($sessions[0]->query_safe("SELECT try_key('$two_phase->{api_key}')"), 'default',
	'is valid while its revocation is prepared');
$node->run("COMMIT PREPARED 'revoke'");
is($sessions[0]->query_safe("SELECT try_key('$two_phase->{api_key}')"), 'OT401', 'and not when it is committed');

# A standby looks at keys and notes uses; nothing is made there
my $key = create('in use', admin => 'true');
$node->wait_for_catchup($standby, 'replay');
is($abroad->query_safe("SELECT try_key('$key->{api_key}')"), 'default admin', 'an admin key on the standby');
isnt(shown($standby, $key, 'last_used_at'), '', 'which remembers the use');
is(shown($node, $key, 'last_used_at'), '', 'by itself');
foreach my $call ("create_api_key('default', 'x')", "rotate_api_key($key->{key_id})", "revoke_api_key($key->{key_id})")
{
	is($standby->error_of("SELECT otp.$call")->{sqlstate}, '25006', "$call is for the primary");
}
$abroad->quit;
$standby->stop;

# A call writes nothing, and the sender little
my $began = time;
is($sessions[0]->query_safe(<<"END"), '1000 ', '1000 calls take no transaction id');
BEGIN;
SELECT count(try_key('$key->{api_key}')) || ' ' || coalesce(pg_current_xact_id_if_assigned()::text, '')
FROM generate_series(1, 1000);
COMMIT;
END
isnt(shown($node, $key, 'last_used_at'), '', 'the use shows at once');
my $uses = "FROM otp.api_key_uses WHERE key_id = $key->{key_id}";
ok($node->poll_query_until('postgres', "SELECT EXISTS (SELECT $uses)"), 'and is soon written down');
is($node->value("SELECT last_used_at > clock_timestamp() - interval '1 min' $uses"), 't', 'with its time');

# ... and again when a minute is over, however often the key is used
my $first = $node->value("SELECT last_used_at $uses");
ok( poll_until(
		sub {
			$sessions[0]->query_safe("SELECT count(try_key('$key->{api_key}')) FROM generate_series(1, 100)");
			return $node->value("SELECT last_used_at > '$first' $uses") eq 't';
		}),
	'later uses are as well');
my $minutes = int((time - $began) / 60) + 1;
$_->quit foreach @sessions;
my $counts = "FROM pg_stat_user_tables WHERE relname = 'api_key_uses'";
ok($node->poll_query_until('postgres', "SELECT n_tup_upd > 0 $counts"), 'counted');
my $written = $node->value("SELECT n_tup_ins + n_tup_upd $counts");
cmp_ok($written, '<=', $minutes + 2 * @keys, "$written writes in $minutes minutes: one a minute, and the other keys'");
is($node->value("SELECT last_used_at - '$first' > interval '55 s' $uses"), 't', 'not before a minute is over');

# What is not written yet is when the server stops; a locked row is nobody's hindrance
$first = $node->value("SELECT last_used_at $uses");
my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; LOCK otp.api_key_uses");
my $second = create('used once');
is($node->value("SELECT try_key('$second->{api_key}')", user => 'web'), 'default', 'a key that is used once');
my $id = $node->send('+15551750001');
ok($sim->code_for($id), 'codes are sent while the table is locked');
$holder->query_safe('ROLLBACK');
$holder->quit;
is($node->value("SELECT try_key('$key->{api_key}')", user => 'web'), 'default admin', 'and one more use of the other');
$node->restart;
is($node->value("SELECT count(*) FROM otp.recent_key_uses()"), 0, 'after a restart shared memory is empty');
isnt(shown($node, $second, 'last_used_at'), '', 'the use is not forgotten');
is($node->value("SELECT last_used_at > '$first' $uses"), 't', 'nor that of the other key');

# More keys in use than there is room for: the last ones are known, and nothing fails
is( $node->run(<<'END'), 6000, 'thousands of keys are used');
CREATE TEMP TABLE many AS
	SELECT k.api_key FROM generate_series(1, 6000) n, otp.create_api_key('default', 'many ' || n) k;
SELECT count(*) FROM many WHERE try_key(api_key) = 'default';
END
cmp_ok($node->value('SELECT count(*) FROM otp.recent_key_uses()'), '>', 3500, 'most of them are remembered');
ok( $node->poll_query_until('postgres',
		"SELECT count(*) > 3500 FROM otp.api_key_uses WHERE last_used_at > now() - interval '5 min'"),
	'and written');
$node->run('DELETE FROM otp.api_keys WHERE name LIKE $$many%$$; DELETE FROM otp.api_key_uses');

# The sender writes into the configuration, which is nobody's doing
$sim->config({ templates => [ map { { name => $_, language => 'en_US' } } qw(otp_verification login) ] });
$node->run('SELECT otp.sync_templates()');
ok($node->poll_query_until('postgres', "SELECT count(*) = 2 FROM otp.templates WHERE status = 'approved'"),
	'the sender adds a template, and changes another');
is($node->value("SELECT count(*) FROM otp.audit WHERE action LIKE '%template%'"), 0, 'neither is in the audit');
$node->run("UPDATE otp.templates SET status = 'paused' WHERE name = 'login'");
is($node->value("SELECT action || ' ' || object || ' ' || role FROM otp.audit WHERE action LIKE '%template%'"),
	'change_template login/en_US ' . $node->value('SELECT current_user'), "somebody's change is");

# A crash takes an entry away only with what it tells of
$node->run("BEGIN; SELECT otp.create_api_key('default', 'rolled back'); ROLLBACK");
$node->stop('immediate');
$node->start;
is($node->value("SELECT count(*) FROM otp.audit WHERE details::text LIKE '%rolled back%'"), 0,
	'what was rolled back is not told');
is($node->value("SELECT action FROM otp.audit WHERE action LIKE '%_api_key' AND object = '$second->{key_id}'"),
	'create_api_key', 'what was committed is');

# To another database by dump: keys, their uses and the audit
$node->run(<<'END');
INSERT INTO otp.workspaces (name) VALUES ('tenant');
SELECT otp.grant_workspace('tenant', 'web');
UPDATE otp.templates SET status = 'approved' WHERE name = 'otp_verification';
SELECT otp.set_test_number('+15551750002', '175175', workspace => 'tenant');
SELECT otp.create_webhook_endpoint('https://example.com/x', workspace => 'tenant');
INSERT INTO otp.key_limits VALUES (1, 'ip', 10, 100);
UPDATE otp.sms_texts SET body = '{code}' WHERE workspace_id = 1;
DELETE FROM otp.workspaces WHERE name = 'tenant';
END
my $third = remember($node->call('otp.rotate_api_key', { key_id => $second->{key_id} }));
my %list = map { $_ => "SELECT string_agg(l::text, E'\\n' ORDER BY l::text) FROM otp.$_ l" } qw(api_keys api_key_uses);
my $audit = "SELECT string_agg(a::text, E'\\n' ORDER BY a::text) FROM otp.audit_entries a WHERE at <= ";
my $until = $node->value('SELECT max(at) FROM otp.audit_entries');
my %before = map { $_ => $node->value($list{$_}) } keys %list;
my $before = $node->value("$audit '$until'");
cmp_ok(scalar(split /\n/, $before), '>', 6000, 'a long audit');
my %tools = (
	custom => [ [ 'pg_dump', '-Fc', '-f', "$dir/custom", 'postgres' ],
		[ 'pg_restore', '-e', '-1', '-d', 'custom', "$dir/custom" ] ],
	inserts => [ [ 'pg_dump', '--inserts', '-f', "$dir/inserts", 'postgres' ],
		[ 'psql', '-qXo', "$dir/out", '-v', 'ON_ERROR_STOP=1', '-1', '-f', "$dir/inserts", 'inserts' ] ]);
foreach my $name (sort keys %tools)
{
	my ($dump, $restore) = @{ $tools{$name} };

	$node->run("CREATE DATABASE $name");
	{
		local %ENV = $node->_get_env();
		command_ok($dump, "$name: a dump");
		command_ok($restore, 'is restored');
	}
	is($node->value($list{$_}, dbname => $name), $before{$_}, "$_ are the same") foreach sort keys %list;
	is($node->value("$audit '$until'", dbname => $name), $before, 'the audit has all its entries');
	cmp_ok($node->value("SELECT count(*) FROM otp.audit_entries WHERE at > '$until'", dbname => $name), '>', 5,
		'and those of the restore');
	is($node->value("SELECT try_key('$third->{api_key}')", dbname => $name, user => 'web'), 'default',
		'a key is valid there');
	is(create('new', dbname => $name)->{key_id} > $third->{key_id}, 1, 'a new one gets a new id');
	is($node->error_of('DELETE FROM otp.audit_entries', dbname => $name)->{sqlstate}, '55000',
		'nothing can be taken away');
}
$node->run("DROP DATABASE $_") foreach keys %tools;

# Errors quote no key
foreach my $call ("otp.authenticate_api_key('oat_XsecretXsecretXsecretXsecretXsec')",
	"otp.create_api_key('default', repeat('oat_XsecretXsecretXsecretXsecretXsec', 20))")
{
	my $e = $node->error_of("SET auto_explain.log_min_duration = -1; SELECT * FROM $call");
	ok($e, 'an error');
	unlike($e->{text}, qr/XsecretX/, 'that quotes no key back');
}

# Everything there is to search
append_to_file("$dir/statements", $node->value('SELECT string_agg(query, E\'\n\') FROM pg_stat_statements'));
$node->stop;
my @files = ("$dir/custom", "$dir/inserts", "$dir/statements");
find({ no_chdir => 1, wanted => sub { push @files, $_ if -f && !-l } }, $node->data_dir);
cmp_ok(scalar @files, '>', 500, 'many files to search');
my @forms = ([ 'wrong', 'XsecretX' ]);
foreach my $number (0 .. $#keys)
{
	# from behind the prefix that shows
	my $secret = substr $keys[$number], 8;
	push @forms, map { [ "key $number", $_ ] } $secret, unpack('H*', $secret);

	# in base64 the middle is the same at one of three offsets
	push @forms, map { [ "key $number", substr(encode_base64(('x' x $_) . $secret, ''), 4, 20) ] } 0 .. 2;
}
my ($leaks, $found) = ('', 0);
foreach my $path (@files)
{
	my $content = slurp_file($path);
	$leaks .= "$path: $_->[0]\n" foreach grep { index($content, $_->[1]) >= 0 } @forms;
	$found++ if index($content, substr($third->{api_key}, 0, 8)) >= 0;
}
is($leaks, '', 'no key in any of them');
cmp_ok($found, '>', 1, 'the search can find: prefixes are there');

# In the log, where clients' own literals are not logged
my $log = slurp_file($node->logfile);
like($log, qr/Query Text: INSERT INTO otp\.api_keys/, 'the log has nested statements');
is(scalar(grep { index($log, $_->[1]) >= 0 } @forms), 0, 'and no key');

done_testing;
