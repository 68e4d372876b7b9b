# 101_receipt_codes.pl
#	A message that fails after it was accepted ends as its code asks for.
#
# Protects: the classification of the codes that receipts bring, which is that
# of answers: SMS once where it is wanted and may help, once more by the same
# way where that may help, else the end with a reason; the account that is not
# used any more. One workspace with accounts of its own for each code.

use strict;
use warnings;

use OTP::Cluster;
use OTP::ProviderCodes;
use OTP::Receipt;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
my $receipts = OTP::Receipt->new($node, $sim);

# A receipt may say nothing, too
my @cases = (
	(grep { !$_->{answer} } OTP::ProviderCodes::cases()),
	{ api => 'meta', name => 'meta_none', outcome => 'give up', sms => 1 },
	{ api => 'twilio', name => 'twilio_none', outcome => 'give up' });
my $secret = OTP::Cluster::quote($sim->app_secret);
$node->make_workspaces($sim, map { $_->{name} } @cases);
$node->run(<<"END");
INSERT INTO otp.sms_texts (workspace_id, template, language, body)
	SELECT workspace_id, 'otp_verification', 'en_US', '{code} it is' FROM otp.workspaces WHERE name <> 'default';
UPDATE otp.workspaces SET fallback_after = NULL;
SELECT otp.configure_meta(account => 'meta_' || name, workspace => name, app_secret => $secret)
	FROM otp.workspaces WHERE name <> 'default';
END
$node->wait_for_sender;

# Send two messages each, one of which may go by SMS instead
my $last_phone = 15551100000;
foreach my $kind (qw(plain fallback))
{
	my $values = join ', ',
	  map { "('$_->{name}', '+" . ++$last_phone . "', '" . ($_->{api} eq 'meta' ? 'whatsapp' : 'sms') . "')" } @cases;
	my $wanted = $kind eq 'fallback' ? 'true' : 'false';
	my %id = map { $_->{name} => $_->{otp_id} } $node->rows(<<"END");
SELECT name, otp_id FROM (VALUES $values) c (name, phone, channel),
	LATERAL otp_send(c.phone, workspace => name, channel => c.channel, fallback_sms => $wanted) s
END
	$_->{$kind} = $id{ $_->{name} } foreach @cases;
}
ok($node->wait_until_sent, 'all messages are accepted');

# Have messages fail: a case and which of its two each
sub have_fail
{
	my (@failing) = @_;
	my %message_id = map { $_->{id} => $_->{message_id} }
	  $node->rows('SELECT otp.format_id(verification_id) AS id, message_id FROM otp.messages WHERE number = 1');
	my $odd = 0;
	my @sql;

	foreach my $pair (@failing)
	{
		my ($case, $kind) = @$pair;
		my %how = (
			account => "$case->{api}_$case->{name}",
			code => $case->{code},
			message_id => $message_id{ $case->{$kind} });

		push @sql, $case->{api} eq 'meta' ? $receipts->meta_sql(failed => $case->{$kind}, %how)
		  : $receipts->twilio_sql($odd++ % 2 ? 'failed' : 'undelivered', $case->{$kind}, %how);
	}
	is($receipts->post(@sql), scalar @sql, 'receipts of ' . @sql . ' failures are taken');
	ok($receipts->wait_until_taken, 'and done with');
	return;
}

# The requests with which a message was sent, by their ways
sub ways
{
	my ($id) = @_;
	return join ' ', map { $_->{api} } grep { $_->{operation} eq 'send' } $sim->log(otp_id => $id);
}

# Before anything that was opened is tried again
have_fail(map { [ $_, 'plain' ], [ $_, 'fallback' ] } @cases);
my %breaker = map { $_->{account} => $_->{breaker} } $node->rows('SELECT account, breaker FROM otp.providers');
my @retried = grep { $_->{outcome} eq 'retry' } @cases;

# What goes once more fails once more
foreach my $case (@retried)
{
	ok( poll_until
		{
			my $m = $receipts->message($case->{plain}, 1);
			defined $m->{sent_at} && $m->{tries} == 2;
		},
		"$case->{name}: is sent once more");
	$case->{between} = $node->status($case->{plain})->{status};
}
have_fail(map { [ $_, 'plain' ] } @retried);

foreach my $case (@cases)
{
	my ($name, $outcome, $api) = @$case{qw(name outcome api)};
	my $code = $case->{code} // '';
	my $reason = $case->{reason} // ($outcome eq 'account' ? 'provider_unavailable' : 'delivery_failed');

	subtest "$name: $outcome" => sub {
		my $m = $receipts->message($case->{plain});
		my $status = $node->status($case->{plain});

		# by itself
		if ($outcome eq 'later')
		{
			is( $node->value("SELECT due_at > clock_timestamp() + interval '10 s' FROM otp.outbox WHERE id = otp.parse_id('$case->{plain}')"),
				't', 'is sent once more, later');
			is($status->{status}, 'pending', 'and pending');
			is(ways($case->{plain}), $api, 'so far one request');
		}
		else
		{
			is($status->{status}, 'failed', 'is failed');
			is($m->{ended_reason}, $reason, 'for that reason');
			ok(defined $m->{failed_at}, 'since then');
			is($m->{provider_code}, $case->{code}, 'with the code');
			like($status->{error_detail}, qr/\b$code\b/, 'for people, too') if $code ne '';
			is($m->{number}, 1, 'as one message');
			is(ways($case->{plain}), $outcome eq 'retry' ? "$api $api" : $api, 'and so many requests');
			is($case->{between}, 'pending', 'pending in between') if $outcome eq 'retry';
			is($node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$case->{plain}')"), 0,
				'nothing is owed any more');
		}

		# the account; a sender of one's own may be to blame for what is said of it
		is($breaker{"${api}_$name"}, $outcome eq 'account' && !$case->{sender} ? 'open' : 'closed',
			'the account is as it should be');

		# with SMS wanted
		if ($api eq 'meta' && $case->{sms})
		{
			my $sms;

			ok(poll_until { $sms = $receipts->message($case->{fallback}, 2); defined $sms && defined $sms->{sent_at} },
				'goes by SMS if it may');
			is(ways($case->{fallback}), 'meta twilio', 'once');
			$status = $node->status($case->{fallback});
			is($status->{status}, 'pending', 'and is alive');
			ok($status->{fallback_used}, 'which the status shows');
			ok(defined $receipts->message($case->{fallback}, 1)->{failed_at}, 'as that WhatsApp has failed');
			is($node->verify($case->{fallback}, $sim->code_for($case->{fallback}))->{valid}, 1, 'the code is good');
		}
		elsif ($outcome eq 'give up' || $outcome eq 'account')
		{
			is($node->status($case->{fallback})->{status}, 'failed', 'SMS would not help');
			is(ways($case->{fallback}), $api, 'and is not tried');
		}
	};
}

# A failed SMS in place of a failed message is the end
my $case = (grep { $_->{name} eq 'meta_131026' } @cases)[0];
$node->call('otp.configure_twilio',
	{ account => 'twilio_meta_131026', workspace => 'meta_131026', auth_token => $sim->auth_token });
foreach my $code (30005, 21610, 30485)
{
	my $id = $node->send('+' . ++$last_phone, workspace => $case->{name}, fallback_sms => 'true');

	$sim->code_for($id);
	$node->wait_until_sent;
	$receipts->meta(failed => $id, code => 131026, account => 'meta_meta_131026');
	poll_until { ($receipts->message($id, 2) // {})->{sent_at} };
	$receipts->twilio(undelivered => $id, number => 2, code => $code, account => 'twilio_meta_131026');
	$receipts->wait_until_taken;
	my $status = $node->status($id);
	is("$status->{status} $status->{error}", 'failed delivery_failed', "$code of the SMS as well: failed");
	like($status->{error_detail}, qr/\b$code\b/, 'with its code');
	is(ways($id), 'meta twilio', 'after two messages');
}

$node->stop;
done_testing();
