# 036_given_code.pl
#	A code that was made elsewhere is the one that arrives, whatever comes between.
#
# Protects: GoTrue's Send SMS hook, called as GoTrue calls it: the code that
# it hands in arrives over WhatsApp and by SMS, after tries that failed, after
# a fallback, a restart, a crash and a change of keys, and with a resend; it
# is gone with its verification. A seal that was moved or changed opens for
# nobody, and holds up nobody.

use strict;
use warnings;

use JSON::PP;
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['fsync = on']);
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->create_user('supabase_auth_admin');
$node->run('GRANT USAGE ON SCHEMA otp_api TO supabase_auth_admin;'
	  . 'GRANT EXECUTE ON FUNCTION otp_api.gotrue_send_sms TO supabase_auth_admin');
$node->wait_for_sender;

my $last_phone = 15550360000;

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Call the hook as GoTrue does, in its transaction; gives what the hook answers
sub hook
{
	my ($phone, $code, %args) = @_;
	my $event = JSON::PP->new->encode({
		metadata => {
			uuid => 'd37a3d5a-3a3c-4c61-a9a5-9d2b0f5ab3c1',
			time => '2026-06-02T19:17:32Z',
			name => 'send-sms' },
		user => { id => '6481a5c1-3d37-4a56-9f6a-bee08c554965', phone => substr($phone, 1) },
		sms => { otp => $code, phone => substr($phone, 1) } });
	my $end = $args{end} // 'COMMIT';
	my $settings = $args{settings} // '';

	return $node->run(<<"END", user => 'supabase_auth_admin');
BEGIN;
$settings
SET LOCAL statement_timeout TO '2000';
PREPARE hook (jsonb) AS SELECT "otp_api"."gotrue_send_sms"(\$1);
EXECUTE hook (@{[ OTP::Cluster::quote($event) ]});
SET LOCAL statement_timeout TO DEFAULT;
$end;
END
}

# The id of the last code of a phone
sub id_of
{
	my ($phone) = @_;
	return $node->value(
		"SELECT otp.format_id(id) FROM otp.verifications WHERE phone = '$phone' ORDER BY id DESC LIMIT 1");
}

# Hand a code in, and give its phone and id
sub give
{
	my ($code, %args) = @_;
	my $phone = $args{phone} // phone;

	is(hook($phone, $code, %args), '{}', "a code of @{[ length $code ]} digits is taken");
	return ($phone, id_of($phone));
}

# The messages that a phone has got, as "channel code"
sub got
{
	my ($phone) = @_;
	return map { "$_->{channel} $_->{code}" } $sim->inbox($phone);
}

# What is left of a verification's rows in the outbox
sub rows
{
	my ($id) = @_;
	return $node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$id')");
}

# The last message of a verification has failed for good: give its words
sub failed
{
	my ($id) = @_;
	my $row;

	poll_until
	{
		$row = $node->row("SELECT status, error, error_detail FROM otp_status('$id')");
		$row->{status} eq 'failed';
	} or return $row->{status};
	return "$row->{error}: $row->{error_detail}";
}

#
# It arrives
#
my ($phone, $id) = give('4829151');
is($sim->code_for($id), '4829151', 'it arrives over WhatsApp');
my $verified = $node->verify($id, '4829151', context => 'gotrue', user => 'supabase_auth_admin');
ok($verified->{valid}, 'otp_verify takes it');
ok(poll_until { rows($id) == 0 }, 'and with the end, the sealed code is gone');

$node->run("UPDATE otp.workspaces SET default_channel = 'sms'");
($phone, $id) = give('0048291516');
is($sim->code_for($id), '0048291516', 'by SMS, ten digits, with the zeros in front');
is_deeply([ map { (split)[0] } got($phone) ], ['sms'], 'by SMS alone');
$node->run("UPDATE otp.workspaces SET default_channel = 'whatsapp'");

$phone = phone;
hook($phone, '482915', end => 'ROLLBACK');
my (undef, $marker) = give('111111');
$sim->code_for($marker);
is(scalar got($phone), 0, 'rolled back with the transaction of GoTrue, it is not sent');

#
# Tries that fail, and the fallback
#
$phone = phone;
$sim->behave({ match => { phone => $phone, api => 'meta' }, times => 2, do => { status => 500, code => 131000 } });
(undef, $id) = give('482916', phone => $phone);
is($sim->code_for($id), '482916', 'the same code with another try');
is(scalar $sim->log(otp_id => $id), 3, 'the third one');

$node->run('UPDATE otp.workspaces SET default_fallback_sms = true');
$phone = phone;
$sim->behave({ match => { phone => $phone, api => 'meta' }, do => { code => 131026 } });
(undef, $id) = give('482917', phone => $phone);
ok(poll_until { scalar got($phone) }, 'refused by Meta, it comes by SMS');
is(join(', ', got($phone)), 'sms 482917', 'with the same code');
is($node->resend($id, channel => 'sms', user => 'supabase_auth_admin')->{channel}, 'sms', 'sent again');
ok(poll_until { got($phone) == 2 }, 'it comes again');
is($node->resend($id, channel => 'sms', user => 'supabase_auth_admin')->{channel},
	'sms', 'and once more, when the first row is gone');
ok(poll_until { got($phone) == 3 }, 'it comes once more');
is(join(', ', got($phone)), 'sms 482917, sms 482917, sms 482917', 'always the same');
is($node->value("SELECT count(*) FROM otp.outbox WHERE id = otp.parse_id('$id') AND kind = 'message'"),
	1, 'with one row left');
$node->run('UPDATE otp.workspaces SET default_fallback_sms = false');

#
# Restart, crash, and a change of keys, while it waits
#
foreach my $how ('restart', 'crash', 'new key')
{
	my $code = 482920 + length $how;

	$phone = phone;
	$sim->behave({ match => { phone => $phone, api => 'meta' }, times => 1,
			do => { status => 429, code => 130429, retry_after => 4 } });
	(undef, $id) = give("$code", phone => $phone);
	ok(poll_until { scalar $sim->log(otp_id => $id) }, "$how: it waits for its second try");
	if ($how eq 'restart')
	{
		$node->restart;
	}
	elsif ($how eq 'crash')
	{
		$node->stop('immediate');
		$node->start;
	}
	else
	{
		my $file = $node->data_dir . '/otp.key';
		my $keys = slurp_file($file);

		unlink $file;
		append_to_file($file, join('', map { sprintf '%02x', $_ * 7 % 256 } 1 .. 32) . "\n$keys");
		chmod 0600, $file;
		$node->reload;
	}
	is($sim->code_for($id), "$code", "$how: it arrives");
	ok($node->verify($id, "$code", context => 'gotrue')->{valid}, "$how: and is right");
}
($phone, $id) = give('482931');
is($sim->code_for($id), '482931', 'one that is sealed with the new key arrives');
is($node->value('SELECT count(DISTINCT key_id) FROM otp.verifications WHERE code_given'), 2, 'two keys were used');

#
# A seal that is not the row's
#
my %id;
my %phone;
$node->run(<<'END');
CREATE TABLE stolen (code bytea);
-- As if somebody who can write tables had written there, before the sender reads the row
CREATE FUNCTION tamper() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	CASE current_setting('test.tamper', true)
		WHEN 'steal' THEN INSERT INTO public.stolen VALUES (NEW.code);
		WHEN 'moved' THEN NEW.code := (SELECT code FROM public.stolen);
		WHEN 'changed' THEN NEW.code := set_byte(NEW.code, 20, get_byte(NEW.code, 20) # 1);
		WHEN 'short' THEN NEW.code := substring(NEW.code FOR 20);
		WHEN 'empty' THEN NEW.code := '';
		WHEN 'gone' THEN NEW.code := NULL;
		ELSE NULL;
	END CASE;
	RETURN NEW;
END $$;
CREATE TRIGGER tamper BEFORE INSERT ON otp.outbox FOR EACH ROW EXECUTE FUNCTION tamper();
END
foreach my $how (qw(steal moved changed short empty gone))
{
	($phone{$how}, $id{$how}) = give('482940', settings => "SET LOCAL test.tamper = '$how';");
}
is($sim->code_for($id{steal}), '482940', 'a seal that was only read opens');
foreach my $how (qw(moved changed short empty gone))
{
	is(failed($id{$how}),
		'delivery_failed: the code that was given is not in the outbox any more',
		"$how: it fails, with a word on why");
	is(scalar $sim->log(otp_id => $id{$how}), 0, "$how: nothing is sent");
}
$node->run('DROP TRIGGER tamper ON otp.outbox');
($phone, $id) = give('482941');
is($sim->code_for($id), '482941', 'and the next one arrives');
done_testing;
