# A code travels the whole way: from a user's transaction to the phone and back
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use Test::More;

my $phone = '+919876543210';

# Initialize a server and the providers
my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);
$node->create_user('app');
$node->run('CREATE TABLE users (phone text PRIMARY KEY, otp_id text, verified bool NOT NULL DEFAULT false);'
	  . 'GRANT ALL ON users TO app');

# Send in a transaction that does something else, too
my $otp_id = $node->value(<<"END", user => 'app');
BEGIN;
INSERT INTO users (phone) VALUES ('$phone');
UPDATE users SET otp_id = s.otp_id FROM otp_send('$phone') s WHERE users.phone = s.phone
RETURNING s.otp_id;
COMMIT;
END
like($otp_id, qr/^otp_[0-7][0-9A-HJKMNP-TV-Z]{25}$/, 'the id has its form');

# It arrives, once, with what the provider needs to know
my @messages = $sim->wait_for_messages(phone => $phone);
is(scalar @messages, 1, 'one message arrives');
is($messages[0]{channel}, 'whatsapp', 'over WhatsApp');
is($messages[0]{otp_id}, $otp_id, 'with the id for receipts');
like($messages[0]{code}, qr/^\d{6}$/, 'with a code of six digits');

# The sender writes down what the provider answered
ok($node->poll_query_until('postgres', "SELECT sent_at IS NOT NULL FROM otp_status('$otp_id')"),
	'the provider has accepted it');
my $status = $node->status($otp_id, user => 'app');
is($status->{status}, 'pending', 'no receipt has come, so it is pending');
is($status->{message_id}, $messages[0]{id}, "with the provider's id") if defined $messages[0]{id};
$node->wait_until_sent;

# A wrong guess counts, a right one succeeds once
my $wrong = sprintf '%06d', (1 + $messages[0]{code}) % 1_000_000;
my $v = $node->verify($otp_id, $wrong, user => 'app');
ok(!$v->{valid}, 'a wrong code is not valid');
is($v->{error}, 'invalid_code', 'and said to be wrong');
is($v->{attempts_remaining}, 2, 'two attempts are left');
is($v->{phone}, undef, 'and the phone stays unnamed');

my $row = $node->row(<<"END", user => 'app');
UPDATE users u SET verified = true
FROM otp_verify('$otp_id', '$messages[0]{code}') v WHERE v.valid AND u.phone = v.phone
RETURNING u.phone, v.channel
END
is($row->{phone}, $phone, 'the right code is valid, for this phone');
is($row->{channel}, 'whatsapp', 'and this channel');

$v = $node->verify($otp_id, $messages[0]{code}, user => 'app');
ok(!$v->{valid}, 'the same code again is not valid');
is($v->{error}, 'otp_already_verified', 'because it was used');
is($node->status($otp_id)->{status}, 'verified', 'the verification has ended');

# Nothing went out twice
is(scalar $sim->inbox, 1, 'still one message');
is(scalar $sim->log, 1, 'and one request');

$node->stop;
done_testing;
