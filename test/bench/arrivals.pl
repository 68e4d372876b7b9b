# arrivals.pl
#	Match commits with arrivals: arrivals.pl COMMITS ARRIVALS
#
# Prints p50 and p99 from COMMIT's return, and p50, p99 and the longest from before it was sent.
use strict;
use warnings;

my ($commits, $arrivals) = @ARGV;
my (%arrived, @since_return, @since_sent);

open my $in, '<', $arrivals or die "$arrivals: $!";
while (<$in>)
{
	next unless /"otp_id":"(otp_[0-9A-Z]+)".*"received_us":(\d+)/;
	$arrived{$1} = $2 if !defined $arrived{$1} || $2 < $arrived{$1};
}
open $in, '<', $commits or die "$commits: $!";
while (<$in>)
{
	my ($id, $sent, $returned) = split;
	defined $arrived{$id} or die "one that was committed has not arrived\n";
	push @since_return, $arrived{$id} > $returned ? $arrived{$id} - $returned : 0;
	push @since_sent, $arrived{$id} - $sent;
}
@since_return = sort { $a <=> $b } @since_return;
@since_sent = sort { $a <=> $b } @since_sent;

# Write microseconds
sub ms
{
	my ($us) = @_;
	return sprintf $us < 9950 ? '%.2fms' : '%.0fms', $us / 1000;
}

# Give a percentile
sub percentile
{
	my ($list, $share) = @_;
	return ms($list->[ int($share * $#$list + 0.5) ]);
}

print join(' ', percentile(\@since_return, 0.5), percentile(\@since_return, 0.99),
	percentile(\@since_sent, 0.5), percentile(\@since_sent, 0.99), ms($since_sent[-1])), "\n";
