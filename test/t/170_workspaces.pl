# 170_workspaces.pl
#	Workspaces that share an account, and what is left of one that is deleted.
#
# Protects: each workspace sends with its own number or name through an account
# that others use as well; receipts of one number say nothing of another, across
# restarts; trouble with one's own number is nobody else's. What is queued for a
# suspended workspace goes out, for a deleted one nothing does: neither codes,
# nor webhooks, nor jobs, whatever was under way. A deletion that is not
# committed holds up no sender, and afterwards nothing is left but the ledger
# and the audit. Open sessions follow a new name.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use OTP::Cluster;
use OTP::Receipt;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

# The timer of the fallback, in seconds
use constant PATIENCE => 1;

my %number = (shop => '200000000000001', bank => '200000000000002');
my $service = 'MG0123456789abcdef0123456789abcdef';

my $sim = OTP::Simulator->start;
$sim->config({ meta_accounts => [ map { { phone_number_id => $_ } } sort values %number ] });
my $node = OTP::Cluster->start('main', conf => ['otp.allow_private_webhooks = on']);
$node->install;
$node->configure($sim);
$node->run("ALTER DATABASE postgres SET otp.workspace = 'default'");
$node->wait_for_sender;
my $receipts = OTP::Receipt->new($node, $sim);
my $last_phone = 15551700000;
my %id;

# Make a workspace with the accounts of default, and without limits; gives its id
sub make_workspace
{
	my ($name, $sender, $sms_sender) = @_;
	my $made = $node->call('otp.create_workspace', { name => $name })->{create_workspace};

	$node->call('otp.use_provider', { workspace => $name, account => 'meta', sender => $sender });
	$node->call('otp.use_provider', { workspace => $name, account => 'twilio', sender => $sms_sender });
	$node->lift_limits;
	$node->run('UPDATE otp.workspaces SET fallback_after = ' . PATIENCE . " * interval '1 s'");
	$node->run("INSERT INTO otp.sms_texts (workspace_id, template, language, country_prefix, body, sender)"
		  . " VALUES ($made, 'otp_verification', 'en_US', '+4915', '{code}', 'Text')");
	return $made;
}

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Send, and wait until the provider has it and that is written; gives id and phone
sub send_one
{
	my ($workspace, %args) = @_;
	my $phone = delete $args{phone} // phone;
	my $sent = $node->send($phone, workspace => $workspace, %args);

	poll_until { ($receipts->message($sent, 1) // {})->{sent_at} } or die 'it is not sent';
	return ($sent, $phone);
}

# What a phone has got over a channel
sub got
{
	my ($phone, $channel) = @_;
	return grep { $_->{channel} eq $channel } $sim->inbox($phone);
}

# The numbers whose receipts have been seen
sub seen
{
	return $node->value("SELECT array_to_string(array(SELECT unnest(receipts_from) ORDER BY 1), ' ') FROM otp.provider_accounts WHERE name = 'meta'");
}

sub set_delivery
{
	my ($value) = @_;
	$node->append_conf('postgresql.conf', "otp.delivery = $value");
	$node->reload;
	return $node->poll_query_until('postgres', "SELECT delivery = '$value'::bool FROM otp.health");
}

# Wait until the sender has gone through all that was queued before
sub wait_for_turn
{
	my ($marker) = send_one('default');
	return $marker;
}

# What tables still have of a workspace. A message that was accepted is in the outbox until its code expires.
sub left_of
{
	my ($workspace_id) = @_;
	return $node->value(<<"END");
SELECT coalesce(string_agg(relname || ' ' || n, ', ' ORDER BY relname), '') FROM (
	SELECT c.relname, (xpath('/row/n/text()', query_to_xml(format(
		'SELECT count(*) AS n FROM otp.%I WHERE workspace_id = $workspace_id', c.relname), false, true, '')))[1]::text::int AS n
	FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
	WHERE s.nspname = 'otp' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
		AND c.relname NOT IN ('outbox', 'deleted_workspaces', 'credit_ledger', 'audit_entries')) r WHERE n > 0
END
}

#
# One account, several senders
#
$id{shop} = make_workspace('shop', $number{shop}, 'Shop');
$id{bank} = make_workspace('bank', $number{bank}, $service);
my %sent;
foreach my $workspace (qw(default shop bank))
{
	my (undef, $phone) = send_one($workspace);
	my ($message) = got($phone, 'whatsapp');
	is($message->{from}, $number{$workspace} // $sim->phone_number_id, "WhatsApp of $workspace: its number");
	(undef, $phone) = send_one($workspace, channel => 'sms');
	($message) = got($phone, 'sms');
	is( $message->{from},
		{ default => OTP::Cluster::SMS_SENDER, shop => 'Shop', bank => $service }->{$workspace},
		"SMS of $workspace: its sender");
	next if $workspace eq 'default';
	my $german = $workspace eq 'shop' ? '+4915112345678' : '+4915212345678';
	(undef, $phone) = send_one($workspace, channel => 'sms', phone => $german);
	($message) = got($phone, 'sms');
	is($message->{from}, 'Text', "SMS of $workspace with a sender of the text's: that");
}
is($node->value("SELECT count(DISTINCT account_id) FROM otp.messages WHERE channel = 'whatsapp'"), 1, 'all through one account');

#
# Receipts: silence of a number means something once that number was heard of
#
my %phone;
sub send_each
{
	foreach my $workspace (qw(default shop bank))
	{
		($sent{$workspace}, $phone{$workspace}) = send_one($workspace, fallback_sms => 'true');
	}
	return;
}

# After the time of all that were sent: those that got an SMS
sub fallen_back
{
	my $last = $node->value('SELECT max(sent_at) FROM otp.messages');
	$node->poll_query_until('postgres', "SELECT clock_timestamp() > '$last'::timestamptz + " . PATIENCE . " * interval '1 s' + interval '0.3 s'");
	wait_for_turn;
	return join ' ', grep { got($phone{$_}, 'sms') } qw(default shop bank);
}
send_each;
is(fallen_back, '', 'before any receipt silence means nothing');
is(seen, '', 'none is noted');
$receipts->meta(sent => $sent{shop}, from => $number{shop});
$receipts->wait_until_taken;
is(seen, $number{shop}, "a receipt of shop's number is noted");
send_each;
is(fallen_back, 'shop', 'its silence means something, that of the others does not');

# Who may set the patience of one workspace stops no other, and none of its own codes either
$node->run("UPDATE otp.workspaces SET fallback_after = '178000000 years' WHERE name = 'bank'");
send_each;
is(fallen_back, 'shop', 'patience without end is no error');
is($node->value('SELECT last_error FROM otp.health'), '', 'to the sender neither');
$node->run('UPDATE otp.workspaces SET fallback_after = ' . PATIENCE . " * interval '1 s' WHERE name = 'bank'");

# News of a number that the message was not sent from
$receipts->meta(sent => $sent{bank}, from => $number{shop});
$receipts->meta(sent => $sent{default}, from => '999');
$receipts->wait_until_taken;
is(seen, $number{shop}, 'a receipt with another number says nothing');

# Two numbers in one body
my %status = map { $_ => $receipts->status(sent => $sent{$_}) } qw(default bank);
$receipts->post($receipts->meta_change_sql('messages', { messaging_product => 'whatsapp',
		metadata => { phone_number_id => $number{bank} }, statuses => [ $status{bank} ] }));
$receipts->wait_until_taken;
is(seen, "$number{shop} $number{bank}", "then one of bank's");
send_each;
is(fallen_back, 'shop bank', 'now silence of both does');

# After a restart
$node->restart;
$node->wait_for_sender;
send_each;
is(fallen_back, 'shop bank', 'a restart forgets none of it');
$receipts->meta(delivered => $sent{bank}, from => $number{bank});
$receipts->wait_until_taken;
is($node->status($sent{bank})->{status}, 'delivered', 'receipts of an own number are true of its messages');
$receipts->meta(sent => $sent{default});
$receipts->wait_until_taken;
send_each;
is(fallen_back, 'default shop bank', "the account's own number is one of them");

# With another number, all begins anew
$node->call('otp.use_provider', { workspace => 'bank', account => 'meta', sender => '200000000000003' });
$sim->config({ meta_accounts => [ { phone_number_id => '200000000000003' } ] });
send_each;
is(fallen_back, 'default shop', 'of a new number nothing is known');
$node->call('otp.use_provider', { workspace => 'bank', account => 'meta', sender => $number{bank} });

# A receipt, while somebody has the account's row: the next one is noted
$node->run("UPDATE otp.provider_accounts SET receipts_from = NULL WHERE name = 'meta'");
$node->call('otp.configure_meta', { access_token => $sim->token });
my $other = $node->background_psql('postgres');
$other->query_safe("BEGIN; SELECT otp.use_provider('bank', 'meta', '$number{bank}')");
$receipts->meta(sent => $sent{shop}, from => $number{shop});
$receipts->wait_until_taken;
is(seen, '', 'nobody waits for a transaction that has the account');
$other->query_safe('COMMIT');
$receipts->meta(delivered => $sent{shop}, from => $number{shop});
$receipts->wait_until_taken;
is(seen, $number{shop}, 'the next receipt is noted');

#
# Trouble with one's own number is one's own
#
$node->call('otp.use_provider', { workspace => 'bank', account => 'meta', sender => '999' });
my $refused = $node->send(phone, workspace => 'bank');
ok(poll_until { $node->status($refused)->{status} eq 'failed' }, 'a number that Meta does not know');
like($node->status($refused)->{error_detail}, qr/^100: /, 'is told');
my $by_sms = $node->send(phone, workspace => 'bank', fallback_sms => 'true');
ok(poll_until { ($receipts->message($by_sms, 2) // {})->{sent_at} }, 'SMS does in its place');
is($node->value("SELECT breaker FROM otp.providers WHERE account = 'meta'"), 'closed', 'the account is good for others');
send_one('shop');
$node->call('otp.use_provider', { workspace => 'bank', account => 'meta', sender => $number{bank} });
my ($spam) = send_one('bank');
$receipts->meta(failed => $spam, from => $number{bank}, code => 131048);
$receipts->wait_until_taken;
is($node->value("SELECT breaker FROM otp.providers WHERE account = 'meta'"), 'closed', 'as it is after a receipt of such a trouble');
($spam) = send_one('default');
$receipts->meta(failed => $spam, code => 131048);
$receipts->wait_until_taken;
is($node->value("SELECT breaker FROM otp.providers WHERE account = 'meta'"), 'open', "but not when it is the account's own number");
$node->call('otp.configure_meta', { access_token => $sim->token });
ok($node->poll_query_until('postgres', "SELECT breaker = 'closed' FROM otp.providers WHERE account = 'meta'"), 'which was mended');

#
# What is queued when a module is switched off, or the workspace suspended
#
set_delivery('off');
my @modules = map { $node->send(phone, workspace => 'shop', @$_) }
  [], [ fallback_sms => 'true' ], [ channel => 'sms' ];
$node->run("UPDATE otp.workspaces SET whatsapp_enabled = false WHERE name = 'shop'");
set_delivery('on');
ok(poll_until { $node->status($modules[0])->{status} eq 'failed' }, 'switched off while it is queued: failed');
is($node->status($modules[0])->{error}, 'provider_unavailable', 'for that reason');
ok(poll_until { ($receipts->message($modules[1], 2) // {})->{sent_at} }, 'with a fallback: SMS');
ok(poll_until { ($receipts->message($modules[2], 1) // {})->{sent_at} }, 'SMS itself goes');
set_delivery('off');
$node->run("UPDATE otp.workspaces SET whatsapp_enabled = true WHERE name = 'shop'");
@modules = map { $node->send(phone, workspace => 'shop', @$_) } [ fallback_sms => 'true' ], [ channel => 'sms' ];
$node->run("UPDATE otp.workspaces SET sms_enabled = false WHERE name = 'shop'");
set_delivery('on');
ok(poll_until { $node->status($modules[1])->{status} eq 'failed' }, 'the same for SMS');
ok(poll_until { ($receipts->message($modules[0], 1) // {})->{sent_at} }, 'WhatsApp goes');
$node->poll_query_until('postgres', "SELECT clock_timestamp() > (SELECT max(sent_at) FROM otp.messages) + " . PATIENCE . " * interval '1 s' + interval '0.3 s'");
wait_for_turn;
is($receipts->message($modules[0], 2), undef, 'without its fallback');
$node->run("UPDATE otp.workspaces SET sms_enabled = true WHERE name = 'shop'");

set_delivery('off');
my $phone = phone;
my $suspended = $node->send($phone, workspace => 'shop');
$node->call('otp.suspend_workspace', { workspace => 'shop', reason => 'unpaid' });
is($node->error_of("SELECT * FROM otp_send('+15551709999', workspace => 'shop')")->{detail}{code}, 'workspace_suspended', 'suspended');
set_delivery('on');
is($node->verify($suspended, $sim->code_for($phone))->{valid}, 1, 'what was queued goes out, and is good');
$node->call('otp.resume_workspace', { workspace => 'shop' });

#
# Rename, with sessions open
#
$other->query_safe("SET otp.workspace = 'shop'");
$other->query_safe('SELECT otp_id FROM otp_send(' . OTP::Cluster::quote(phone) . ')');
$node->call('otp.rename_workspace', { workspace => 'shop', new_name => 'store' });
$phone = phone;
is($other->query_safe("SELECT count(*) FROM otp_send('$phone', workspace => 'store')"), 1, 'an open session knows the new name');
ok($sim->code_for($phone), 'and so does the sender');
like($node->error_of("SELECT * FROM otp_send('+15551709999', workspace => 'shop')")->{message}, qr/permission denied/, 'the old one is none');
$node->call('otp.rename_workspace', { workspace => 'store', new_name => 'shop' });

#
# Delete what is queued: nothing of it goes out
#
my $listener = IO::Socket::INET->new(Listen => 10, LocalAddr => '127.0.0.1') or die "listen: $!";
my $url = 'http://127.0.0.1:' . $listener->sockport . '/';
set_delivery('off');
$sim->clear('inbox');
$sim->clear('log');
$node->run("CREATE TABLE sent AS SELECT id, number FROM otp.outbox WHERE workspace_id = $id{shop}");
my $first_phone = $last_phone + 1;
my @dead = map { $node->send(phone, workspace => 'shop', @$_) }
  ([], [ fallback_sms => 'true' ], [ channel => 'sms' ]) x 5;
my $living = $node->send(my $living_phone = phone, workspace => 'bank');
my $endpoint = $node->call('otp.create_webhook_endpoint', { url => $url, workspace => 'shop' })->{endpoint_id};
$node->run("SELECT otp.send_test_webhook($endpoint), otp.replay_webhooks($endpoint)");
$node->call('otp.create_template', { name => 'another', workspace => 'shop' });
$node->call('otp.sync_templates', { workspace => 'shop' });
$node->run('SELECT ' . $receipts->meta_sql(delivered => $dead[0], message_id => 'wamid.x') =~ s/^SELECT//r);
$node->verify($suspended, 'again');
is($node->error_of("SELECT otp.delete_workspace('shop')")->{sqlstate}, '2BP01', 'it is not empty');
is($node->run("SELECT otp.delete_workspace('shop', cascade => true)"), '', 'deleted with all it has');
my $sender = $node->value('SELECT sender_pid FROM otp.worker_status()');
set_delivery('on');
ok($sim->code_for($living_phone), 'the sender gets over it');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.outbox o WHERE workspace_id = $id{shop} AND NOT EXISTS (SELECT 1 FROM sent s WHERE s.id = o.id AND s.number = o.number)"),
	'nothing of what was queued is owed any more');
ok(poll_until { left_of($id{shop}) eq '' }, 'and nothing is left') or diag left_of($id{shop});
is(scalar(grep { $_->{to} ge "+$first_phone" && $_->{to} ne $living_phone } $sim->inbox), 0, 'no code has gone out');
is(scalar(grep { $_->{operation} eq 'other' } $sim->log), 0, 'nor any other request');
is(scalar(() = IO::Select->new($listener)->can_read(0)), 0, 'nor a webhook');
is($node->value('SELECT sender_pid FROM otp.worker_status()'), $sender, 'the sender has gone on working');
is($node->status($dead[0]), undef, 'its ids are unknown');

# The same, queued before a sender starts
$id{shop} = make_workspace('shop', $number{shop}, 'Shop');
set_delivery('off');
$first_phone = $last_phone + 1;
$node->send(phone, workspace => 'shop') foreach 1 .. 3;
$endpoint = $node->call('otp.create_webhook_endpoint', { url => $url, workspace => 'shop' })->{endpoint_id};
$node->run("INSERT INTO otp.webhook_outbox (id, origin, workspace_id, endpoint_id, slot, number, event, occurred_at, due_at)"
	  . " SELECT gen_random_uuid(), o.origin, $id{shop}, $endpoint, 0, 0, 'otp.sent', now(), now() FROM generate_series(1, 700), (SELECT origin FROM otp.outbox LIMIT 1) o");
$node->run("SELECT otp.delete_workspace('shop', cascade => true)");
$other->quit;
$node->append_conf('postgresql.conf', 'otp.delivery = on');
$node->restart;
$node->wait_for_sender;
$sim->clear('inbox');
wait_for_turn;
is(scalar(grep { $_->{to} ge "+$first_phone" && $_->{to} ne "+$last_phone" } $sim->inbox),
	0, 'nor does one that starts send anything');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM otp.outbox WHERE workspace_id = $id{shop}"), 'and owe anything');
ok(poll_until { left_of($id{shop}) eq '' }, 'nor keep anything') or diag left_of($id{shop});
is(scalar(() = IO::Select->new($listener)->can_read(0)), 0, 'nor deliver a webhook');
$other = $node->background_psql('postgres');

#
# Delete what is under way: requests, timers, open transactions
#
$id{shop} = make_workspace('shop', $number{shop}, 'Shop');
($sent{shop}) = send_one('shop');
$receipts->meta(sent => $sent{shop}, from => $number{shop});
$receipts->wait_until_taken;
$sim->behave({ match => { prefix => '+1555179' }, do => { delay_ms => 1500 } });
my ($waiting, $waiting_phone) = send_one('shop', fallback_sms => 'true');
$node->send('+15551790001', workspace => 'shop', fallback_sms => 'true');
$sim->behave({ match => { phone => '+15551780001' }, do => { code => 131000 } });
$node->send('+15551780001', workspace => 'shop', fallback_sms => 'true');
poll_until { scalar(grep { ($_->{to} // '') eq '+15551780001' } $sim->log) } or die 'not tried';
my $late_session = $node->background_psql('postgres');
$late_session->query_safe("BEGIN; SELECT otp_id FROM otp_send('+15551770001', workspace => 'shop')");
$node->run("SELECT otp.delete_workspace('shop', cascade => true)");
is($node->value("SELECT count(*) FROM otp.verifications WHERE workspace_id = $id{shop}"), 0, 'deleted while much is under way');
$late_session->query_safe('COMMIT');
is($node->value("SELECT count(*) FROM otp.verifications WHERE workspace_id = $id{shop}"), 1, 'one is sent by a transaction that was open');
$node->poll_query_until('postgres', "SELECT clock_timestamp() > (SELECT deleted_at FROM otp.deleted_workspaces WHERE workspace_id = $id{shop}) + interval '4 s'");
ok(poll_until { left_of($id{shop}) eq '' }, 'what comes in late goes as well') or diag left_of($id{shop});
wait_for_turn;
is(scalar(got($waiting_phone, 'sms')), 0, 'no SMS for a message that was sent before');
is(scalar(got('+15551780001', 'sms')), 0, 'nor for one that was to be tried again');
is(scalar($sim->inbox('+15551770001')), 0, 'nor for one that came late');
$sim->forget_rules;

#
# A big history: while it is deleted, and that is not committed, all goes on
#
$id{shop} = make_workspace('shop', $number{shop}, 'Shop');
$node->run(<<"END");
CREATE TABLE ids AS
SELECT (lpad(to_hex(ms), 12, '0') || lpad(to_hex(((ms / 86400000) % 32)::int * 2048 + n % 2048), 4, '0')
	|| substr(md5(n::text), 1, 16))::uuid AS id, ((ms / 86400000) % 32)::int AS slot, n
FROM (SELECT n, floor(extract(epoch FROM now() - n % 20 * interval '1 day') * 1000)::int8 AS ms
	FROM generate_series(1, 30000) n) s;
INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, key_id, length,
	max_attempts, fallback_sms, phone, template, language, channel, salt, code_hash)
SELECT $id{shop}, id, slot, 3, now(), now(), 1, 6,
	3, false, '+1555' || lpad(n::text, 7, '0'), 'otp_verification', 'en_US', 'whatsapp', '\\x00', '\\x00' FROM ids;
INSERT INTO otp.messages (workspace_id, verification_id, slot, number, tries, created_at, channel)
SELECT $id{shop}, id, slot, 1, 1, now(), 'whatsapp' FROM ids;
INSERT INTO otp.webhook_attempts (workspace_id, endpoint_id, webhook_id, slot, attempt, number, event, occurred_at,
	attempted_at, delivered)
SELECT $id{shop}, n % 3, id, slot, a, 1, 'otp.sent', now(), now(), true
FROM ids, generate_series(1, 2) a WHERE n <= 10000;
INSERT INTO otp.send_keys (workspace_id, hash, verification_id, slot)
SELECT $id{shop}, md5(n::text)::uuid, id, slot FROM ids WHERE n <= 5000;
INSERT INTO otp.phone_failures (workspace_id, phone, since, failures)
SELECT $id{shop}, '+1555' || lpad(n::text, 7, '0'), now(), 1 FROM ids WHERE n <= 3000;
INSERT INTO otp.stats_hours (workspace_id, hour, channel, template, messages, sent, delivered, failed, fallbacks,
	verified, sent_times, delivered_times, verified_times)
SELECT $id{shop}, date_trunc('hour', now()) - n * interval '1 hour', 'sms', 'x', 1, 1, 1, 0, 0, 0, '{}', '{}', '{}'
FROM generate_series(1, 2000) n;
INSERT INTO otp.usage_days (workspace_id, day, channel, country, pricing_category, price_unit, sends, messages, sent,
	delivered, verified, credits)
SELECT $id{shop}, current_date - n, 'sms', 'US', '', '', 1, 1, 1, 1, 1, 1 FROM generate_series(1, 300) n;
INSERT INTO otp.forgotten_phones
SELECT $id{shop}, '#' || md5(n::text), 0, false, now(), now() + interval '1 day' FROM generate_series(1, 700) n;
INSERT INTO otp.api_key_uses SELECT $id{shop}, n, now() FROM generate_series(1, 10) n;
INSERT INTO otp.credits SELECT $id{shop}, n, 100 FROM generate_series(0, 63) n;
INSERT INTO otp.credit_changes SELECT $id{shop}, 1 FROM generate_series(1, 10) n;
INSERT INTO otp.credit_ledger (workspace_id, amount, kind) VALUES ($id{shop}, 6400, 'top_up');
ANALYZE;
END
my ($guessed, $guessed_phone) = send_one('shop');
my ($followed, $followed_phone) = send_one('shop', fallback_sms => 'true');
is($node->verify($guessed, 'wrong')->{error}, 'invalid_code', 'a wrong guess, in the ledger');
$other->query_safe("BEGIN; SELECT otp.delete_workspace('shop', cascade => true)");
for my $n (1 .. 5)
{
	my ($meanwhile) = send_one('default');
	is($node->verify($meanwhile, 'wrong')->{error}, 'invalid_code', 'meanwhile others are sent to, and guess');
}
$receipts->meta(delivered => $followed, from => $number{shop});
ok($receipts->wait_until_taken, 'receipts are taken');
ok( $node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM otp.phone_failures f WHERE workspace_id = 1 AND since > now() - interval '1 hour'"),
	'counts are written back');
is($node->value('SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)'
		  . " WHERE NOT l.granted AND a.backend_type = 'otp sender'"), 0, 'the sender waits for nobody');
$node->run("UPDATE otp.workspaces SET app_name = 'x' WHERE name = 'bank'");
$other->query_safe('COMMIT');
is($node->value("SELECT count(*) FROM otp.verifications WHERE workspace_id = $id{shop}"), 0, 'committed, the phones are gone');
my ($while) = send_one('default');
ok(poll_until { left_of($id{shop}) eq '' }, 'then the rest goes bit by bit') or diag left_of($id{shop});
is($node->value("SELECT count(*) FROM otp.credit_ledger WHERE workspace_id = $id{shop}"), 1, 'but for the ledger of credits');
is($node->value("SELECT count(*) FROM otp.verifications WHERE workspace_id <> $id{shop}")
	  == $node->value('SELECT count(*) FROM otp.verifications'), 1, 'nothing of others is');
cmp_ok($node->value('SELECT count(*) FROM otp.messages WHERE workspace_id = 1'), '>', 10, 'is touched');

# Rolled back, nothing has happened
my $before = left_of($id{bank});
$other->query_safe("BEGIN; SELECT otp.delete_workspace('bank', cascade => true); ROLLBACK");
is(left_of($id{bank}), $before, 'rolled back, all is there');
send_one('bank');

#
# A dump has what is still to be done
#
$node->stop;
$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->start;
$node->run("INSERT INTO otp.phone_failures (workspace_id, phone, since, failures) VALUES ($id{bank}, '+15551760001', now(), 1)");
$node->run("SELECT otp.delete_workspace('bank', cascade => true)");
$node->run('CREATE DATABASE copy');
my $dump = $PostgreSQL::Test::Utils::tmp_check . '/workspaces.dump';
run_command([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ]);
$node->run('REVOKE CREATE ON SCHEMA public FROM PUBLIC', dbname => 'copy');
my ($out, $err) = run_command([ 'pg_restore', '-e', '-1', '-d', $node->connstr('copy'), $dump ]);
is($err, '', 'a dump is restored');
$node->stop;
$node->append_conf('postgresql.conf', 'max_worker_processes = 16');
$node->start;
ok($node->poll_query_until('copy', "SELECT count(*) = 0 FROM otp.phone_failures WHERE workspace_id = $id{bank}"),
	'and its sender finishes the deletion');
cmp_ok($node->value("SELECT otp.create_workspace('new')", dbname => 'copy'), '>', $id{shop},
	'no id is used again there');

$other->quit;
$late_session->quit;
$node->stop;
my $log = slurp_file($node->logfile);
my @trouble = grep { /PANIC|could not|ERROR: / } split /\n/, $log;
@trouble = grep { !/is not empty|permission denied|is suspended|could not read the templates/ } @trouble;
is(join("\n", @trouble), '', 'the log has no trouble');
done_testing();
