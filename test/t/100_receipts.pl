# 100_receipts.pl
#	Whatever providers tell, in whatever order, is true of its message once.
#
# Protects: receipts in every order, twice, a thousand in one body, before the
# answer to their request and before that is written; across a crash and a
# restart; after the end of the verification. None is lost, none repeats a
# message, none touches what another account has sent. What Meta tells of
# templates and of the account itself.

use strict;
use warnings;

use JSON::PP;
use OTP::Cluster;
use OTP::Receipt;
use OTP::Receiver;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['restart_after_crash = on']);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->run("ALTER DATABASE postgres SET otp.workspace = 'default'");
$node->run("UPDATE otp.workspaces SET fallback_after = NULL, notify_channel = 'events'");
$node->wait_for_sender;
my $receipts = OTP::Receipt->new($node, $sim);
my $last_phone = 15551000000;

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Send, and wait until the provider has it and that is written
sub send_one
{
	my (%args) = @_;
	my $id = $node->send(phone, %args);

	$sim->code_for($id);
	$node->wait_until_sent;
	return $id;
}

# Everything that is told, from here on
my $listener;
my %told;

sub listen_anew
{
	$listener = $node->background_psql('postgres');
	$listener->set_query_timer_restart;
	$listener->query_safe('LISTEN events');
	return;
}
listen_anew;

# What was told of a verification so far, in order
sub told
{
	my ($id) = @_;
	my $output = $listener->query_safe('SELECT 1');

	while ($output =~ /with payload "(\{.*?\})" received/g)
	{
		my $event = JSON::PP->new->decode($1);
		(my $name = $event->{event}) =~ s/^otp\.//;
		push @{ $told{ $event->{otp_id} } }, $name;
	}
	return join ' ', @{ $told{$id} // [] };
}

# Wait until this, and only this, was told of it
sub is_told
{
	my ($id, $expected, $what) = @_;

	poll_until { told($id) eq $expected } 10;
	return is(told($id), $expected, $what);
}

# End the sender in bad order, and wait until the server is back
sub crash
{
	my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');

	told('');
	$listener->quit;
	kill 'KILL', $pid or die "kill: $!";
	poll_until
	{
		my $now = eval { $node->value('SELECT sender_pid FROM otp.worker_status()') } // '';
		$now ne '' && $now ne $pid;
	} or die 'the server does not come back';
	listen_anew;
	return;
}

# What a status says besides: why it has failed
sub code_of
{
	my ($word) = @_;
	return $word eq 'failed' ? (code => 131047) : ();
}

# All orders of a list
sub permutations
{
	my (@list) = @_;
	return [] unless @list;
	return map {
		my $first = $_;
		map { [ $list[$first], @$_ ] } permutations(@list[ grep { $_ != $first } 0 .. $#list ])
	} 0 .. $#list;
}

#
# Orders. The first final word of a message holds: no provider has two.
#
my @orders = map { permutations(@$_) }
  [qw(sent delivered read)], [qw(sent failed)], [qw(sent delivered failed)], [qw(sent read failed)];
my @runs;
foreach my $order (@orders)
{
	foreach my $how ('one by one', 'in one body', 'at once')
	{
		push @runs, { order => $order, how => $how, id => $node->send(phone) };
	}
}
ok($node->wait_until_sent, 'all are sent');
foreach my $place (0 .. 2)
{
	$receipts->post(
		map { $receipts->meta_sql($_->{order}[$place], $_->{id}, code_of($_->{order}[$place])) }
		grep { $_->{how} eq 'one by one' && $_->{order}[$place] } @runs);
	$receipts->wait_until_taken;
}
foreach my $run (grep { $_->{how} ne 'one by one' } @runs)
{
	my @statuses =
	  map { $receipts->status($_, $run->{id}, code_of($_)) } @{ $run->{order} };

	$receipts->meta_batch(\@statuses) if $run->{how} eq 'in one body';
	$receipts->post(map { $receipts->meta_batch_sql([$_]) } @statuses) if $run->{how} eq 'at once';
}
ok($receipts->wait_until_taken, 'all receipts are taken');
foreach my $run (@runs)
{
	my ($final) = grep { $_ ne 'sent' } @{ $run->{order} };
	my $expected = $final eq 'failed' ? 'failed' : 'delivered';
	my $status = $node->status($run->{id});
	my $message = $receipts->message($run->{id});

	subtest join(', ', @{ $run->{order} }) . " $run->{how}" => sub {
		is($status->{status}, $expected, "is $expected");
		is($status->{error}, $final eq 'failed' ? 'delivery_failed' : undef, 'for that reason');
		if ($expected eq 'delivered')
		{
			ok(defined $status->{delivered_at}, 'delivered_at says the same');
			ok($message->{delivered_at} ge $message->{sent_at}, 'and is not before it was sent');
		}
		is_told($run->{id}, "sent $expected", 'and told once');
	};
}
is(scalar(grep { $_->{operation} eq 'send' } $sim->log), scalar @runs, 'no message went out twice');
$sim->clear('log');

#
# Duplicates change nothing, not even the row
#
my $id = send_one();
$receipts->meta(delivered => $id, at => time - 3600);
$receipts->wait_until_taken;
my $row = $node->row("SELECT xmin, m.* FROM otp.messages m WHERE verification_id = otp.parse_id('$id')");
is($row->{delivered_at}, $row->{sent_at}, 'a clock that is late delivers nothing before it is sent');
my @again = map { $receipts->meta_sql($_, $id) } qw(delivered read sent delivered failed);
$receipts->post(@again, @again);
$receipts->wait_until_taken;
is_deeply($node->row("SELECT xmin, m.* FROM otp.messages m WHERE verification_id = otp.parse_id('$id')"),
	$row, 'duplicates change nothing');
is_told($id, 'sent delivered', 'and are not told');

$id = send_one();
$receipts->meta(delivered => $id, at => time + 3600,
	pricing => { billable => JSON::PP::true, category => 'authentication' });
$receipts->wait_until_taken;
is($node->value("SELECT delivered_at <= clock_timestamp() AND delivered_at >= sent_at FROM otp.messages WHERE verification_id = otp.parse_id('$id')"),
	't', 'a clock that is early delivers nothing in the future');
is($receipts->message($id)->{pricing_category}, 'authentication', 'the pricing category is kept');

# Meta calls it so
foreach my $name (qw(timestamp string number none))
{
	my $one = send_one();
	my %status = %{ $receipts->status(delivered => $one) };

	$status{timestamp} = $name eq 'number' ? 0 + $status{timestamp} : $name eq 'string' ? 'soon' : $status{timestamp};
	delete $status{timestamp} if $name eq 'none';
	is($receipts->meta_batch([ \%status ]), 1, "time as $name: taken");
	$receipts->wait_until_taken;
	is($node->status($one)->{status}, 'delivered', 'and true');
}

#
# A thousand in one body
#
$node->run("SELECT count(*) FROM generate_series(1, 1000) n, otp_send('+1555101' || lpad(n::text, 4, '0'))");
ok($node->wait_until_sent, 'a thousand are sent');
my @thousand = map { $_->{id} } $node->rows("SELECT otp.format_id(id) AS id FROM otp.verifications WHERE phone LIKE '+1555101%' ORDER BY id");
my %message_of = map { $_->{id} => $_->{message_id} }
  $node->rows('SELECT otp.format_id(verification_id) AS id, message_id FROM otp.messages');
my @words = qw(delivered read failed sent);
my $place = 0;
my @statuses = map {
	my $word = $words[ $place++ % 4 ];
	$receipts->status($word, $_, message_id => $message_of{$_}, $word eq 'failed' ? (code => 131049) : ())
} @thousand;
is($receipts->meta_batch(\@statuses), 1000, 'a thousand statuses in one body are taken');
ok($receipts->wait_until_taken, 'all of them');
is( $node->value(<<'END'), '500 250', 'and each is true of its message');
SELECT count(delivered_at) || ' ' || count(ended_reason)
FROM otp.messages m JOIN otp.verifications v ON id = verification_id WHERE phone LIKE '+1555101%'
END
is( $node->value("SELECT count(*) FROM otp.outbox o JOIN otp.verifications v USING (id) WHERE phone LIKE '+1555101%'"),
	750, 'what has failed is not owed any more');
is($receipts->meta_batch(\@statuses), 1000, 'and once more');
$receipts->wait_until_taken;
is(scalar(grep { /delivered.*delivered|failed.*failed|delivered.*failed/ } map { told($_) } @thousand), 0,
	'tells nothing twice');

#
# Before the answer to the request
#
$sim->behave({ match => { prefix => '+1555102' }, do => { delay_ms => 1500 } });
my $early = $node->send('+15551020001');
my $early_failed = $node->send('+15551020002', fallback_sms => 'true');
my $early_refused = $node->send('+15551020003');
$sim->wait_for_messages(phone => "+1555102000$_") foreach 1 .. 3;
$receipts->meta(read => $early);
$receipts->meta(failed => $early_failed, code => 131026);
$receipts->meta(failed => $early_refused, code => 131026);
is($node->value("SELECT count(*) FROM otp.outbox WHERE kind = 'receipts'"), 3,
	'receipts before the answer wait for it');
ok($receipts->wait_until_taken, 'and are taken after it');
$node->wait_until_sent;
is($node->status($early)->{status}, 'delivered', 'delivered before the answer');
is_told($early, 'sent delivered', 'is told after sent');
is($receipts->message($early_failed, 2)->{channel}, 'sms', 'failed before the answer: SMS');
is_told($early_failed, 'sent sms_fallback', 'is told in order');
is($node->status($early_refused)->{status}, 'failed', 'or the end, where none is wanted');
is(scalar $sim->log(otp_id => $early), 1, 'one request');
$sim->forget_rules;

#
# Before the answer is written: somebody holds otp.messages
#
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE otp.messages IN SHARE MODE');
my ($unwritten, $unwritten_failed) = map { $_->{otp_id} }
  $node->rows("SELECT otp_id FROM generate_series(1, 2) n, otp_send('+1555106000' || n, fallback_sms => n = 2)");
$sim->wait_for_messages(phone => "+1555106000$_") foreach 1, 2;
$receipts->meta(delivered => $unwritten);
$receipts->meta(failed => $unwritten_failed, code => 131026);
is($receipts->message($unwritten), undef, 'the answer cannot be written');
$holder->query_safe('COMMIT');
$holder->quit;
ok($receipts->wait_until_taken, 'receipts before the answer is written are taken after it');
$node->wait_until_sent;
is($node->status($unwritten)->{status}, 'delivered', 'delivered');
is_told($unwritten, 'sent delivered', 'and told in order');
is(scalar $sim->log(otp_id => $unwritten), 1, 'one request');
is(scalar(grep { $_->{channel} eq 'sms' } $sim->inbox('+15551060002')), 1, 'failed: one SMS');

#
# Of a request that was never answered, a receipt proves that it arrived
#
my $hung = '+15551030001';
$sim->behave({ match => { phone => $hung }, do => { hang => \1, record => \1 } });
my $unanswered = $node->send($hung);
$sim->wait_for_messages(phone => $hung);
$receipts->meta(sent => $unanswered);

# While it waits to be repeated: for the breaker, so that we have time
$node->make_workspaces($sim, 'waiting');
$node->call('otp.configure_meta',
	{ account => 'meta_waiting', workspace => 'waiting', app_secret => $sim->app_secret });
my $lost = '+15551030002';
my $refused = '+15551030003';
$sim->behave(
	{ match => { phone => $lost }, do => { reset => 'after', delay_ms => 1500 } },
	{ match => { phone => $refused }, do => { code => 190 } });
my $waiting = $node->send($lost, workspace => 'waiting');
$sim->wait_for_messages(phone => $lost);
$node->send($refused, workspace => 'waiting');
$node->poll_query_until('postgres', "SELECT breaker = 'open' FROM otp.providers WHERE account = 'meta_waiting'");
ok(poll_until { $receipts->message($waiting) }, 'a request whose connection broke');
is($receipts->message($waiting)->{sent_at}, undef, 'may have been sent or not');
$receipts->meta(delivered => $waiting, account => 'meta_waiting');
ok(poll_until { $node->status($waiting)->{status} eq 'delivered' }, 'a receipt tells that it was');
$node->poll_query_until('postgres',
	"SELECT retry_at < clock_timestamp() FROM otp.providers WHERE account = 'meta_waiting'");
my $trial = $node->send('+15551030004', workspace => 'waiting');
$sim->code_for($trial);
is(scalar $sim->log(otp_id => $waiting), 1, 'so it is not repeated');

ok(poll_until { $receipts->message($unanswered) }, 'one that times out');
$node->wait_until_sent;
is($node->status($unanswered)->{status}, 'pending', 'and of which a receipt has told');
ok(defined $receipts->message($unanswered)->{sent_at}, 'counts as accepted');
is_told($unanswered, 'sent', 'is told so');
$node->send(phone);
$node->wait_until_sent;
is(scalar $sim->log(otp_id => $unanswered), 1, 'and is not repeated');
$sim->forget_rules;
$sim->release;

#
# A crash loses no receipt and repeats no message
#
$sim->clear('log');
$node->run("SELECT count(*) FROM generate_series(1, 300) n, otp_send('+1555104' || lpad(n::text, 4, '0'), fallback_sms => n <= 50)");
$node->wait_until_sent;
my @many = $node->rows("SELECT otp.format_id(v.id) AS id, message_id, fallback_sms FROM otp.verifications v JOIN otp.messages m ON m.verification_id = v.id WHERE phone LIKE '+1555104%' ORDER BY v.id");
foreach my $part (0 .. 5)
{
	my @these = @many[ $part * 50 .. $part * 50 + 49 ];

	$receipts->meta_batch([
			map {
				my $word = $_->{fallback_sms} ? 'failed' : 'delivered';
				my $code = $_->{fallback_sms} ? 131026 : undef;
				$receipts->status($word, $_->{id}, message_id => $_->{message_id}, code => $code)
			} @these ]);
	crash if $part == 0 || $part == 3;
}
ok($receipts->wait_until_taken, 'after crashes all receipts are taken');
$node->wait_until_sent;
is($node->value("SELECT count(delivered_at) FROM otp.messages m JOIN otp.verifications v ON v.id = verification_id WHERE phone LIKE '+1555104%'"),
	250, 'all that were delivered are');
is($node->value("SELECT count(*) FROM otp.messages m JOIN otp.verifications v ON v.id = verification_id WHERE phone LIKE '+1555104%' AND m.channel = 'sms' AND sent_at IS NOT NULL"),
	50, 'all that failed went by SMS');
my %requests;
$requests{"$_->{api} $_->{otp_id}"}++ foreach grep { $_->{operation} eq 'send' } $sim->log;
is(scalar(grep { /^meta/ } keys %requests), 300, 'by WhatsApp each');
is(scalar(grep { $requests{$_} > 1 && /^meta/ } keys %requests), 0, 'once');

#
# A receipt that came before the crash, which came before the answer
#
$sim->behave({ match => { phone => '+15551050001' }, do => { delay_ms => 5000 }, times => 1 });
my $crashed = $node->send('+15551050001');
$sim->wait_for_messages(phone => '+15551050001');
$receipts->meta(delivered => $crashed);
is($node->value("SELECT count(*) FROM otp.outbox WHERE kind = 'receipts'"), 1, 'a receipt waits for the answer');
crash;
ok($receipts->wait_until_taken, 'after the crash it is taken');
$node->wait_until_sent;
is($node->status($crashed)->{status}, 'delivered', 'and true');
is(scalar $sim->log(otp_id => $crashed), 1, 'what it proves to have arrived is not repeated');
$sim->forget_rules;

#
# Other accounts, other ids
#
$node->make_workspaces($sim, 'other');
$node->call('otp.configure_meta', { account => 'meta_other', workspace => 'other', app_secret => 'of-another-app' });
my $ours = send_one(fallback_sms => 'true');
my $ours_sms = send_one(channel => 'sms');
is($receipts->meta(failed => $ours, code => 131026, account => 'meta_other', secret => 'of-another-app'), 1,
	"another account's secret signs for its messages only");
is($receipts->meta(delivered => $ours, account => 'meta_other', secret => 'of-another-app'), 1, 'however often');
like($node->error_of($receipts->meta_sql(delivered => $ours, secret => 'of-another-app'))->{message},
	qr/signature/, 'and not for those of ours');
$node->call('otp.configure_twilio',
	{ account => 'twilio_other', workspace => 'other', auth_token => 'of-another-account' });
is($receipts->twilio(delivered => $ours_sms, account => 'twilio_other', secret => 'of-another-account'), 1,
	'the same at Twilio');
$receipts->wait_until_taken;
is($node->status($_)->{status}, 'pending', 'nothing has changed') foreach $ours, $ours_sms;
is($node->value("SELECT receipts_from FROM otp.provider_accounts WHERE name = 'meta_other'"), '',
	'nor have receipts been seen');
is($receipts->meta(delivered => $ours), 1, 'its own account tells');
is($receipts->twilio(delivered => $ours_sms), 1, 'and Twilio');
$receipts->wait_until_taken;
is($node->status($_)->{status}, 'delivered', 'the truth') foreach $ours, $ours_sms;

(my $unknown = $ours) =~ s/(.)$/$1 eq '0' ? '1' : '0'/e;
is($receipts->meta(delivered => $unknown, message_id => 'wamid.x'), 1, 'an unknown id is taken');
is($receipts->meta(failed => $ours, number => $_, message_id => 'wamid.x', code => 190), 1,
	"as is message $_ that there is not")
  foreach 2, 7, 32767;
is($receipts->meta(delivered => $_, message_id => 'wamid.x'), 0, "'$_' is not")
  foreach 'otp_', "$ours/0", "$ours/32768", "$ours/x", substr($ours, 4), 'x' x 600;
$receipts->wait_until_taken;
is($node->status($ours)->{status}, 'delivered', 'without effect');
is($node->value("SELECT count(*) FROM otp.outbox WHERE kind <> 'message'"), 0, 'and leave nothing behind');
is($node->value('SELECT open_breakers FROM otp.health'), 0, 'not even a breaker');

#
# After the end of the verification they still tell what became of the message
#
my %over = map { $_ => send_one(fallback_sms => 'true') } qw(verified canceled failed_later);
$node->verify($over{$_}, $sim->code_for($over{$_})) foreach qw(verified failed_later);
$node->cancel($over{canceled});
$over{expired} = send_one(fallback_sms => 'true');
$node->run("UPDATE otp.$_ SET expires_at = clock_timestamp() WHERE id = otp.parse_id('$over{expired}')")
  foreach qw(verifications outbox);
my $pid = $node->value('SELECT sender_pid FROM otp.worker_status()');
$node->run("SELECT pg_terminate_backend($pid)");
foreach my $end (sort keys %over)
{
	ok(poll_until { $node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$over{$end}')") == 0 },
		"$end: nothing is owed any more");
	$receipts->meta($end eq 'failed_later' ? 'failed' : 'delivered', $over{$end}, code => 131026);
	$receipts->wait_until_taken;
	ok(defined $receipts->message($over{$end})->{ $end eq 'failed_later' ? 'failed_at' : 'delivered_at' },
		'a receipt is noted');
	is($node->status($over{$end})->{status}, $end eq 'failed_later' ? 'verified' : $end, 'and the end stays');
	is($receipts->message($over{$end}, 2), undef, 'without SMS');
}

#
# A restart between receipts
#
my $restarted = send_one(fallback_sms => 'true');
$receipts->meta(sent => $restarted);
$receipts->wait_until_taken;
told('');
$listener->quit;
$node->restart;
$node->wait_for_sender;
$receipts->meta(failed => $restarted, code => 131026);
$receipts->wait_until_taken;
ok(poll_until { ($receipts->message($restarted, 2) // {})->{sent_at} }, 'failed after a restart: SMS');
$receipts->twilio(delivered => $restarted, number => 2);
$receipts->meta(sent => $restarted);
$receipts->wait_until_taken;
is($node->status($restarted)->{status}, 'delivered', 'which is delivered');
my $off = send_one(fallback_sms => 'true');
$node->append_conf('postgresql.conf', 'otp.delivery = off');
$node->reload;
$node->append_conf('postgresql.conf', 'otp.delivery = on');
$receipts->meta(failed => $off, code => 131026);
$node->restart;
listen_anew;
ok(poll_until { ($receipts->message($off, 2) // {})->{sent_at} }, 'failed before a restart: SMS after it');
is(scalar(grep { $_->{operation} eq 'send' } $sim->log(otp_id => $off)), 2, 'once');

#
# The simulator's own, through a web tier; they may come before the answer
#
my $receiver = OTP::Receiver->start($node);
$receiver->attach($sim);
$node->call('otp.configure_twilio', { status_callback => $receiver->twilio_url });
$sim->behave(
	{
		match => { prefix => '+1555107', api => 'meta' },
		callbacks => [
			{ status => 'sent' },
			{ status => 'delivered', times => 2 },
			{ status => 'read', after_ms => 50 } ]
	},
	{
		match => { prefix => '+1555108', api => 'meta' },
		callbacks => [ { status => 'sent' }, { status => 'failed', code => 131026, times => 2 } ]
	},
	{
		match => { prefix => '+1555108', api => 'twilio' },
		callbacks => [ { status => 'sent' }, { status => 'delivered' } ]
	});
my @real = map { $_->{otp_id} } $node->rows(<<'END');
SELECT otp_id FROM generate_series(1, 40) n,
	otp_send('+155510' || 7 + n % 2 || lpad(n::text, 4, '0'), fallback_sms => true)
END
ok(poll_until { !grep { $node->status($_)->{status} ne 'delivered' } @real }, 'by WhatsApp or SMS all are delivered');
$receipts->wait_until_taken;
is_told($_, $node->status($_)->{fallback_used} ? 'sent sms_fallback delivered' : 'sent delivered', 'told in order')
  foreach @real[ 0 .. 3 ];
is(scalar(grep { $node->status($_)->{fallback_used} } @real), 20, 'those by SMS that WhatsApp could not deliver');
is(scalar(grep { $_->{to} =~ /^\+155510[78]/ } $sim->inbox), 60, 'each of them once');
is(scalar(grep { $_->{status} !~ /^20[04]$/ } $receiver->callbacks), 0, 'and all callbacks were taken');
$receiver->stop;
$sim->config({ callback_url => '' });

#
# Templates
#
my %template = (
	message_template_id => 1689556908129832,
	message_template_name => 'otp_verification',
	message_template_language => 'en_US');

sub template_status
{
	my ($event, %more) = @_;
	my %how = map { $_ => delete $more{$_} } grep { exists $more{$_} } qw(waba_id);

	$receipts->meta_change(message_template_status_update => { %template, event => $event, %more }, %how);
	return $receipts->wait_until_taken;
}

template_status('PAUSED', reason => 'NONE', waba_id => '999');
ok($node->send(phone), "another business account's template is not ours");
template_status('PAUSED', reason => 'NONE', other_info => { title => 'FIRST_PAUSE' });
is($node->value("SELECT status FROM otp.templates WHERE workspace_id = 1 AND name = 'otp_verification' AND language = 'en_US'"), 'paused',
	'a template is paused');
my $error = $node->error_of("SELECT * FROM otp_send('+15551069999')");
is($error->{detail}{code}, 'template_not_found', 'then otp_send says so');
ok($node->send(phone, channel => 'sms'), 'but not for SMS');
template_status('APPROVED', message_template_language => 'en-US');
ok($node->send(phone), 'approved, it can be sent');
template_status($_) foreach qw(FLAGGED SOMETHING_NEW);
ok($node->send(phone), 'a warning, and what nobody knows, stop nothing');

#
# The account
#
$receipts->meta_change(account_update => { event => 'ACCOUNT_RESTRICTION',
		restriction_info =>
		  [ { restriction_type => 'RESTRICTED_BIZ_INITIATED_MESSAGING', expiration => time + 86400 } ] });
$receipts->wait_until_taken;
ok($node->poll_query_until('postgres', "SELECT breaker = 'open' FROM otp.providers WHERE account = 'meta'"),
	'a restricted account is not used');
like($node->value("SELECT last_error FROM otp.providers WHERE account = 'meta'"), qr/ACCOUNT_RESTRICTION/,
	'the view says why');
cmp_ok($node->value('SELECT open_breakers FROM otp.health'), '>', 0, 'otp.health says so');
is($node->error_of("SELECT * FROM otp_send('+15551069998')")->{sqlstate}, 'OT503', 'another send is told so');
my $by_sms = $node->send(phone, fallback_sms => 'true');
$sim->code_for($by_sms);
is(join(' ', map { $_->{api} } grep { $_->{operation} eq 'send' } $sim->log(otp_id => $by_sms)), 'twilio',
	'and goes by SMS if it may');
$receipts->meta_change(account_update => { event => 'ACCOUNT_REINSTATED' });
$receipts->wait_until_taken;
ok($node->poll_query_until('postgres', "SELECT breaker = 'closed' FROM otp.providers WHERE account = 'meta'"),
	'restored, it is used again');
$id = send_one();
is($sim->wait_for_messages(phone => '+' . $last_phone) && ($sim->inbox('+' . $last_phone))[0]{channel}, 'whatsapp',
	'for the next message');

is($node->value("SELECT count(*) FROM otp.outbox WHERE kind <> 'message'"), 0, 'nothing is left to do');
$listener->quit;
$node->stop;
done_testing();
