# 065_provider_codes.pl
#	Every error code of a provider leads where it should.
#
# Protects the classification by the providers' own codes: what is tried
# again, what is given up, what goes by SMS, what shuts an account. One
# workspace with accounts of its own for each code, so that none meets
# another's breaker or pace.

use strict;
use warnings;

use OTP::Cluster;
use OTP::ProviderCodes;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;

my $last_phone = 15550000000;

# Send, and have the provider answer it so
sub send_refused
{
	my ($case, %args) = @_;
	my $phone = '+' . ++$last_phone;

	$sim->behave({
			match => { phone => $phone, api => $case->{api} },
			times => $args{times} // 1,
			do => {
				code => 0 + $case->{code},
				status => $case->{status},
				$case->{subcode} ? (subcode => $case->{subcode}) : () } });
	delete $args{times};
	return $node->send(
		$phone,
		workspace => $case->{workspace},
		channel => $case->{api} eq 'meta' ? 'whatsapp' : 'sms',
		%args);
}

# Give the last message of an id, once it has got somewhere
sub message
{
	my ($id) = @_;
	my $row;

	poll_until
	{
		$row = $node->row(<<"END");
SELECT m.*, a.name AS account FROM otp.messages m LEFT JOIN otp.provider_accounts a USING (account_id)
WHERE m.verification_id = otp.parse_id('$id') ORDER BY number DESC LIMIT 1
END
		defined $row && (defined $row->{sent_at} || defined $row->{ended_reason});
	};
	return $row // {};
}

# Start everything, so that it waits together
my @cases = grep { !$_->{receipt} } OTP::ProviderCodes::cases();
$_->{workspace} = $_->{name} foreach @cases;
$node->make_workspaces($sim, 'stubborn', map { $_->{name} } @cases);
$node->run(<<'END');
INSERT INTO otp.sms_texts (workspace_id, template, language, body)
	SELECT workspace_id, 'otp_verification', 'en_US', '{code} it is' FROM otp.workspaces WHERE name <> 'default';
END
$node->wait_for_sender;

foreach my $case (@cases)
{
	my $name = $case->{name};

	$case->{plain} = send_refused($case);

	# while the account is shut, which is a few seconds at first
	if ($case->{outcome} eq 'account')
	{
		$case->{open} = $node->poll_query_until('postgres',
			"SELECT breaker = 'open' FROM otp.providers WHERE account = '$case->{api}_$name'");
		if ($case->{api} eq 'meta')
		{
			$case->{error} = $node->error_of(
				"SELECT * FROM otp_send('+15559999999', workspace => '$name')");
			$case->{fallback} = $node->send('+' . ++$last_phone, workspace => $name,
				fallback_sms => 'true');
		}
	}
}

foreach my $case (@cases)
{
	my ($name, $outcome) = @$case{qw(name outcome)};
	my $reason = $case->{reason}
	  // ($outcome eq 'account' ? 'provider_unavailable' : 'delivery_failed');

	subtest "$name: $outcome" => sub {
		if ($outcome eq 'retry')
		{
			my $m = message($case->{plain});

			ok(defined $m->{sent_at}, 'is sent in the end');
			is($m->{tries}, 2, 'at the second try');
			ok(!defined $m->{ended_reason} && !defined $m->{failed_at}, 'and has not failed');
			is(scalar($sim->log(otp_id => $case->{plain})), 2, 'two requests');
		}
		elsif ($outcome eq 'later')
		{
			ok( $node->poll_query_until('postgres', <<"END"), 'is tried again after a minute');
SELECT tries = 1 AND due_at > clock_timestamp() + interval '30 s' FROM otp.outbox
WHERE id = otp.parse_id('$case->{plain}')
END
			is($node->status($case->{plain})->{status}, 'pending', 'and is pending');
		}
		else
		{
			my $m = message($case->{plain});
			my $status = $node->status($case->{plain});

			# 0 stands for none in the table, and is in the words
			is($m->{provider_code}, $case->{code} || undef, 'has the code');
			is($m->{http_status}, $case->{status}, 'and the status');
			is($m->{tries}, 1, 'is tried once');
			is($m->{ended_reason}, $reason, "ends as $reason");
			is($status->{status}, 'failed', 'and is failed');
			like($status->{error_detail}, qr/\b$case->{code}\b/, 'with the code for people');
			unlike($m->{detail}, qr/\d{7}/, 'and without a phone');
			is(scalar($sim->log(otp_id => $case->{plain})), 1, 'one request');
		}

		# The account
		if ($outcome eq 'account')
		{
			ok($case->{open}, 'the account is shut');
		}
		else
		{
			is( $node->value(
					"SELECT breaker FROM otp.providers WHERE account = '$case->{api}_$name'"),
				'closed', 'the account is in use');
		}

		if ($case->{api} eq 'meta' && $outcome eq 'account')
		{
			my $m = message($case->{fallback});

			is($case->{error}{sqlstate}, 'OT503', 'another send is told so');
			cmp_ok($case->{error}{detail}{retry_after}, '>', 0, 'and when to come back');
			ok($m->{channel} eq 'sms' && defined $m->{sent_at}, 'and goes by SMS if it may');
			is(join(',', map { $_->{api} } $sim->log(otp_id => $case->{fallback})),
				'twilio', 'without asking WhatsApp');
			cmp_ok($case->{error}{detail}{retry_after}, '>', 60, 'which is long from now')
			  if $case->{long};
		}
		elsif ($case->{api} eq 'meta' && $outcome eq 'give up')
		{
			my $id = send_refused($case, fallback_sms => 'true');
			my $m = message($id);
			my $status = $node->status($id);

			if ($case->{sms})
			{
				is($m->{channel}, 'sms', 'goes by SMS if it may');
				ok(defined $m->{sent_at}, 'at once');
				is($m->{number}, 2, 'as the second message');
				ok($status->{fallback_used}, 'which the status shows');
				is($status->{status}, 'pending', 'and it is alive');
				is($node->verify($id, $sim->code_for($id))->{valid}, 1, 'the code is good');
			}
			else
			{
				is($m->{ended_reason}, $reason, 'SMS would not help');
				is(scalar($sim->log(otp_id => $id)), 1, 'and is not tried');
			}
		}
	};
}

#
# SMS once trying WhatsApp again has not helped
#
foreach my $code (1, 131016)
{
	my $case = { api => 'meta', code => $code, status => 500, workspace => 'stubborn' };
	my $id = send_refused($case, times => 100, fallback_sms => 'true');
	my $m = message($id);
	my $whatsapp = () = grep { $_->{api} eq 'meta' } $sim->log(otp_id => $id);

	is($m->{channel}, 'sms', "$code again and again: SMS");
	cmp_ok($whatsapp, '>', 1, 'after some tries');
	cmp_ok($whatsapp, '<', 6, 'but not many');
}

$node->stop;
done_testing();
