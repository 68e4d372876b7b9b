# 221_http_many.pl
#	Thousands of requests wait at once, and are in nobody's way.
#
# One worker, started under the limit of open files that a service has. Protects:
# 2,000 sends wait while the provider hangs, with no transaction or snapshot
# held; others are answered meanwhile; when the provider answers, all of the
# 2,000 hear of their own message.

use strict;
use warnings;

use OTP::Cluster;
use OTP::Requests;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant {
	MANY => 2000,
	FILES => 1024,		# systemd's DefaultLimitNOFILE=1024:524288, soft
	SEND => '/v1/whatsapp/otp/send',
};

# Set this process's soft limit of open files, which its children get; the hard one stays
sub limit_files
{
	my ($soft) = @_;
	return system('prlimit', "--pid=$$", "--nofile=$soft:") == 0;
}

my ($hard) = slurp_file('/proc/self/limits') =~ /^Max open files\s+\S+\s+(\S+)/m;
plan skip_all => "the hard limit of open files is $hard"
  unless $hard eq 'unlimited' || $hard >= 2 * MANY + 500;

# The simulator takes what it needs
limit_files($hard) or BAIL_OUT('prlimit');
my $sim = OTP::Simulator->start;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $node = OTP::Cluster->make(
	'main',
	conf => [
		"otp.http_port = $port",
		"otp.http_send_wait = '30s'",
		'otp.max_in_flight = 3000' ]);
limit_files(FILES) or BAIL_OUT('prlimit');
$node->start;
limit_files($hard) or BAIL_OUT('prlimit');
like(slurp_file('/proc/' . (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0] . '/limits'),
	qr/^Max open files\s+1024\s/m, 'the server has the limit of a service');

$node->install;
$node->configure($sim);
$node->lift_limits;
my $key = $node->call('otp.create_api_key', { workspace => 'default', name => 'test' })->{api_key};
my $http = OTP::Requests->new(port => $port, key => $key);
poll_until
{
	my $r = $http->request(GET => '/v1/rate-limits');
	$http->until(sub { $r->{done} });
	($r->{status} // 0) == 200;
}
or BAIL_OUT('no listener');

# A code that can be verified
my $other = $http->ask(POST => SEND, { phone => '+15551234567' })->{json}{otp_id};
my $code = $sim->code_for($other);

# The listener's process, as others see it
sub listener
{
	return $node->row("SELECT pid, backend_xmin IS NULL AND backend_xid IS NULL AND xact_start IS NULL AS idle"
		  . " FROM pg_stat_activity WHERE backend_type LIKE 'otp listener%'");
}
my $pid = listener()->{pid};

#
# All wait
#
$sim->behave({ match => { prefix => '+1666', api => 'meta' }, do => { hang => \1 } });
my @sent = map { $http->post(SEND, { phone => '+1666' . (1000000 + $_) }) } 1 .. MANY;
my $answered = sub { scalar grep { $_->{done} } @sent };
$http->until(
	sub {
		$node->value("SELECT count(*) FROM otp.verifications WHERE phone LIKE '+1666%'") == MANY || $answered->();
	});
ok($http->until(sub { $sim->counters->{hanging_now} > 0 }), 'the provider hangs');
is($answered->(), 0, MANY . ' requests wait at one worker');

# No look of one's own in a transaction that goes on
ok(poll_until { listener()->{idle} }, 'without a transaction or a snapshot');
is( $node->value(
		"SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND backend_type LIKE 'otp %'"
		  . " AND xact_start < clock_timestamp() - interval '10 s'"),
	0, 'and no other worker holds one');

#
# Others are served
#
my $verified = $http->ask(POST => '/v1/whatsapp/otp/verify', { otp_id => $other, code => '000000x' });
is($verified->{json}{valid}, 0, 'a code is checked meanwhile');
$verified = $http->ask(POST => '/v1/whatsapp/otp/verify', { otp_id => $other, code => $code });
is($verified->{json}{valid}, 1, 'and the right one found right');
is($http->ask(GET => "/v1/whatsapp/otp/$other")->{json}{status}, 'verified', 'a status is told');
is($http->ask(POST => SEND, { phone => '+1' })->{status}, 400, 'a send is refused');
is($answered->(), 0, 'before any of the others');
is(listener()->{pid}, $pid, 'by the same worker');

#
# The provider comes back
#
$sim->forget_rules;
$sim->release;
ok($http->until(sub { $answered->() == MANY }), 'when the provider comes back, all are answered');
is(scalar(grep { ($_->{status} // 0) == 200 } @sent), MANY, 'with success');
my %message_of = map { split /\|/ } split /\n/,
  $node->value("SELECT otp.format_id(v.id), m.message_id FROM otp.verifications v"
	  . " JOIN otp.messages m ON m.slot = v.slot AND m.workspace_id = v.workspace_id AND m.verification_id = v.id"
	  . " WHERE v.phone LIKE '+1666%' AND m.sent_at IS NOT NULL");
is(scalar(keys %message_of), MANY, 'all are sent');
is( scalar(
		grep { ($_->{json}{message_id} // '') eq ($message_of{ $_->{json}{otp_id} // '' } // 'none') } @sent),
	MANY,
	'each hears of its own message');
is(listener()->{pid}, $pid, 'by the same worker');

$node->stop;
done_testing();
