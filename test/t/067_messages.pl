# 067_messages.pl
#	What is said to the provider, and what the phone shows.
#
# Protects: the words of an SMS by template, language and country, with its
# marks filled and its last line last; what a provider needs to tell us about
# a message later; the life of a message no longer than that of its code.

use strict;
use warnings;

use JSON::PP;
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim,
	twilio => { status_callback => 'https://example.com/otp?key=a%20b#rc=3' });
$node->lift_limits;

$node->run(<<'END');
UPDATE otp.workspaces SET app_name = 'Café {code} %s';
DELETE FROM otp.sms_texts;
INSERT INTO otp.sms_texts (workspace_id, template, language, country_prefix, body, last_line, sender) VALUES
	(1, 'otp_verification', 'en_US', '', '{code}: {app}, {minutes} min, {unknown}', NULL, NULL),
	(1, 'otp_verification', 'en_US', '+91', 'India {code}', NULL, '+15017122661'),
	(1, 'otp_verification', 'en_US', '+9198', 'India 98 {code}', NULL, NULL),
	(1, 'otp_verification', 'de', '', 'Ihr Code: {code}', '@example.com #{code}', NULL),
	(1, 'otp_verification', 'pt_BR', '', 'Código {code}', E'FA+9qCX9VSu', NULL),
	(1, 'login', 'en_US', '', 'Log in with {code}', NULL, NULL);
INSERT INTO otp.templates (workspace_id, name, language) VALUES
	(1, 'otp_verification', 'de'), (1, 'otp_verification', 'de_AT'), (1, 'otp_verification', 'pt_BR'),
	(1, 'otp_verification', 'fr'), (1, 'login', 'en_US'), (1, 'payment', 'en_US');
END

my $last = 0;

# Send an SMS; gives the message that arrived
sub sms
{
	my ($prefix, %args) = @_;
	my $phone = sprintf '%s%07d', $prefix, ++$last;
	my $id = $node->send($phone, channel => 'sms', %args);
	my $code = $sim->code_for($phone);
	my ($message) = $sim->inbox($phone);

	$message->{id} = $id;
	$message->{right} = $node->verify($id, $code)->{valid};
	return $message;
}

# Compare the words of an SMS; CODE stands for the code
sub is_text
{
	my ($message, $expected, $what) = @_;
	my $code = $message->{code};

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$expected =~ s/CODE/$code/g;
	is($message->{text}, $expected, $what);
	ok($message->{right}, 'with the code that is right');
	return;
}

my $app = "Caf\x{e9} {code} %s";
is_text(sms('+1555', expires_in => 600), "CODE: $app, 10 min, {unknown}", 'the words for all');
is_text(sms('+1555', expires_in => 90), "CODE: $app, 2 min, {unknown}",
	'minutes are not rounded down');
is_text(sms('+9180'), 'India CODE', 'the words for a country');
is_text(sms('+9198'), 'India 98 CODE', 'the longest prefix wins');
is_text(sms('+4980', language => 'de'),
	"Ihr Code: CODE\n\@example.com #CODE", 'by language, with a last line for browsers');
is_text(sms('+4380', language => 'de_AT'),
	"Ihr Code: CODE\n\@example.com #CODE", 'by the base of the language');
is_text(sms('+5580', language => 'pt_BR', length => 8),
	"C\x{f3}digo CODE\nFA+9qCX9VSu", 'beyond ASCII, with an application\'s hash');
is_text(sms('+3380', language => 'fr'), "CODE: $app, 5 min, {unknown}",
	'a language without words of its own');
is_text(sms('+1555', template => 'login'), 'Log in with CODE', 'by template');
is_text(sms('+1555', template => 'payment'), "CODE: $app, 5 min, {unknown}",
	'a template without words of its own');

#
# What goes along
#
my $message = sms('+1555', expires_in => 120, length => 4);
like($message->{code}, qr/^\d{4}$/, 'four digits');
cmp_ok($message->{validity_period}, '<=', 120, 'Twilio keeps it no longer than the code lives');
cmp_ok($message->{validity_period}, '>', 100, 'but as long');
is( $message->{status_callback},
	"https://example.com/otp?key=a%20b&otp_id=$message->{id}&number=1#rc=3",
	'receipts bring the id and the number back');
is($message->{from}, OTP::Cluster::SMS_SENDER, 'from the account\'s sender');

my $phone = '+15557654321';
my $id = $node->send($phone);
$sim->code_for($id);
my ($whatsapp) = $sim->inbox($phone);
my $raw = decode_json($whatsapp->{raw});
is($raw->{biz_opaque_callback_data}, $id, 'WhatsApp\'s receipts bring the id back');
like($raw->{to}, qr{^\+?15557654321$}, 'to the phone');
is($raw->{template}{name}, 'otp_verification', 'by template');
is_deeply($raw->{template}{language}, { code => 'en_US' }, 'and language');
is(scalar @{ $raw->{template}{components} }, 2, 'with text and button');
is($raw->{type}, 'template', 'as a template');

# What is known of it afterwards
my $status;
poll_until { $status = $node->status($id); defined $status->{sent_at} };
is($status->{message_id}, $whatsapp->{message_id}, 'the provider\'s id is kept');
is($status->{channel}, 'whatsapp', 'and the channel');

# By a fallback: the second message
$phone = '+15557654322';
$sim->behave({ match => { phone => $phone, api => 'meta' }, do => { code => 131026 } });
$id = $node->send($phone, fallback_sms => 'true', language => 'de', expires_in => 90);
my ($fallback) = $sim->wait_for_messages(phone => $phone);
like($fallback->{status_callback}, qr/otp_id=$id&number=2/, 'a fallback is number 2');
cmp_ok($fallback->{validity_period}, '<=', 90, 'with what is left of the code\'s life');
is($fallback->{text}, "Ihr Code: $fallback->{code}\n\@example.com #$fallback->{code}",
	'in its language');
is($node->verify($id, $fallback->{code})->{channel}, 'sms', 'verified by SMS');

# Again, on another channel, and again
$phone = '+15557654323';
$id = $node->send($phone);
my $code = $sim->code_for($id);
foreach my $channel ('sms', 'whatsapp', 'sms')
{
	$node->resend($id, channel => $channel);
}
my @messages = $sim->wait_for_messages(phone => $phone, count => 4);
is(join(' ', sort map { $_->{channel} } @messages), 'sms sms whatsapp whatsapp',
	'resent over the channels asked for');
is(scalar(grep { $_->{code} ne $code } @messages), 0, 'with the same code');
is( join(' ', sort map { /number=(\d+)/ } map { $_->{status_callback} // '' } @messages),
	'3 7', 'and numbers of their own');
$node->wait_until_sent;
is($node->value("SELECT string_agg(number::text, ' ' ORDER BY number) FROM otp.messages"
		  . " WHERE verification_id = otp.parse_id('$id')"), '1 3 5 7', 'which the table has, too');

#
# By messaging service, and signed in with an API key
#
my $service = 'MG0123456789abcdef0123456789abcdef';
$node->call('otp.configure_twilio',
	{ messaging_service_sid => $service, sender => '',
		api_key_sid => $sim->api_key_sid, api_key_secret => $sim->api_key_secret,
		content_retention => 'discard' });
$message = sms('+1555', template => 'login');
like($message->{raw}, qr/MessagingServiceSid=$service/, 'by messaging service');
unlike($message->{raw}, qr/From=/, 'and no sender');
like($message->{raw}, qr/ContentRetention=discard/, 'not to be kept there');
$message = sms('+9180');
is($message->{from}, '+15017122661', 'a text with a sender of its own uses that');

# No words at all: not a dead end
$node->run('DELETE FROM otp.sms_texts');
like(sms('+1555')->{text}, qr/\d{6}/, 'without any words there is still the code');

$node->stop;
done_testing();
