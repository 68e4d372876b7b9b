# Wait.pm
#	Wait for a condition, never for a time.

=pod

=head1 NAME

OTP::Wait - poll_until

=head1 SYNOPSIS

  use OTP::Wait;

  poll_until { $sim->counters->{hanging} == 3 } or die;

Calls the block every 10 ms until it returns something true, and returns that;
false after the time that PG_TEST_TIMEOUT_DEFAULT says (180 s when unset).

=cut

package OTP::Wait;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(poll_until);

sub poll_until(&;$)
{
	my ($condition, $timeout) = @_;
	my $end = time + ($timeout // $PostgreSQL::Test::Utils::timeout_default);

	while (1)
	{
		my $result = $condition->();
		return $result if $result;
		return 0 if time > $end;
		sleep 0.01;
	}
}

1;
