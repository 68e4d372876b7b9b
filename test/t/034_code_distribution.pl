# Every code is as likely as every other.
#
# This protects against a code that is cut from its hash with a bias, loses
# its leading zeros, or has digits that tell of one another. 24,000 codes go
# the whole way to the phones, and are counted there: by value, by digit and
# place, and by neighbouring digits. Each figure may be off as far as chance
# allows once in a million runs.
use strict;
use warnings;

use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use Test::More;

# Bounds of chi-square with p < 1e-6 at either end (Wilson and Hilferty)
sub chi_square_bound
{
	my ($freedom, $z) = @_;
	my $root = 1 - 2 / (9 * $freedom) + $z * sqrt(2 / (9 * $freedom));

	return $root > 0 ? $freedom * $root**3 : 0;
}

sub is_even
{
	my ($counts, $cells, $name) = @_;
	my $total = 0;
	my $chi_square = 0;

	$total += $_ foreach values %$counts;
	my $expected = $total / $cells;
	$chi_square += ($_ - $expected)**2 / $expected foreach values %$counts;
	$chi_square += $expected * ($cells - keys %$counts);

	my ($low, $high) = map { chi_square_bound($cells - 1, $_) } -4.75, 4.75;
	ok($chi_square > $low && $chi_square < $high, $name)
	  or diag sprintf 'chi-square %.1f is not within %.1f and %.1f', $chi_square, $low, $high;
	return;
}

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main', conf => ['synchronous_commit = off']);
$node->install;
$node->configure($sim);
$node->lift_limits;

my %wanted = (4 => 20_000, 6 => 2_000, 8 => 2_000);
foreach my $length (sort keys %wanted)
{
	$node->run("SELECT count(*) FROM generate_series(1, $wanted{$length}) n,"
		  . " otp_send('+1555' || $length || lpad(n::text, 6, '0'), length => $length, expires_in => 900)");
}
ok($node->wait_until_sent, 'all codes are sent');

# Too many for a patient JSON parser
my $inbox = $sim->{http}->get($sim->base_url . '/_sim/inbox')->{content};
my %codes;
push @{ $codes{ length $2 } }, $2
  while $inbox =~ /"to":"\+?1555([468])\d{6}",.*?"code":"(\d+)"/g;

foreach my $length (sort keys %wanted)
{
	my @codes = @{ $codes{$length} // [] };
	is(scalar @codes, $wanted{$length}, "$wanted{$length} codes of $length digits arrive");

	my $zeros = grep { /^0/ } @codes;
	cmp_ok($zeros, '>', 0, 'some begin with 0');
	foreach my $place (0 .. $length - 1)
	{
		my %digits;
		$digits{ substr $_, $place, 1 }++ foreach @codes;
		is_even(\%digits, 10, "of $length digits, all are as likely at place " . ($place + 1));
	}
	foreach my $place (0 .. $length - 2)
	{
		my %pairs;
		$pairs{ substr $_, $place, 2 }++ foreach @codes;
		is_even(\%pairs, 100, 'whatever its neighbour is, at place ' . ($place + 1));
	}
}

# Of four digits, all values
my %values;
$values{$_}++ foreach @{ $codes{4} };
is_even(\%values, 10_000, 'all codes of four digits are as likely');
cmp_ok(scalar keys %values, '>', 8_400, 'most of them occur');

# One after the other, in the order they were made
my %steps;
my @in_order = @{ $codes{4} };
$steps{ ($in_order[$_] - $in_order[ $_ - 1 ]) % 100 }++ foreach 1 .. $#in_order;
is_even(\%steps, 100, 'a code tells nothing of the next');

# The same phone gets another one each time
my %same;
$node->send('+15554999999', length => 8) foreach 1 .. 3;
$same{ $_->{code} }++ foreach $sim->wait_for_messages(phone => '+15554999999', count => 3);
is(scalar keys %same, 3, 'nor of the next to the same phone');

$node->stop;
done_testing;
