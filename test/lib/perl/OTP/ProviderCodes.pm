# ProviderCodes.pm
#	What the providers' error codes ask for.

=pod

=head1 NAME

OTP::ProviderCodes - the error codes that tests go through

=head1 SYNOPSIS

  use OTP::ProviderCodes;

  foreach my $case (OTP::ProviderCodes::cases())
  {
      # { api => 'meta', code => 131026, status => 400, outcome => 'give up', sms => 1, name => 'meta_131026' }
  }

=head1 DESCRIPTION

C<cases()> lists all codes of both providers that are known to mean something, and some that
nobody knows, as hashes: C<api>, C<code>, C<status> and C<subcode> as the provider sends them,
C<name>, and C<outcome>:

  retry     is tried again
  later     is tried again, but not within a minute
  give up   final for this message
  account   final for this message, and the account is not used any more

With C<sms>, a message that wants a fallback gets it: at once, or, of an answer that asks for a
retry, when trying does not help. C<reason> is that of the end, where it is a special one. C<slow>
is the least time in seconds before a retry, C<sender> marks trouble of the sender that was named,
C<answer> and C<receipt> codes that only come with the one or the other.

=cut

package OTP::ProviderCodes;

use strict;
use warnings;

my @meta = (
	# the token, its permissions, the account
	(map { { code => $_->[0], status => $_->[1], outcome => 'account', sms => 1 } }
		[ 190, 401 ], [ 3, 500 ], [ 10, 403 ], [ 200, 403 ], [ 219, 403 ],
		[ 299, 403 ], [ 131005, 403 ], [ 33, 400 ], [ 368, 403 ], [ 131031, 403 ],
		[ 131064, 400 ], [ 131042, 400 ], [ 131045, 500 ], [ 133010, 400 ],
		[ 131037, 400 ], [ 134011, 400 ], [ 133000, 500 ], [ 133005, 400 ], [ 133006, 400 ],
		[ 133008, 400 ], [ 133009, 400 ], [ 133015, 400 ]),

	# a receipt's 0 is the same as none
	{ code => 0, status => 401, outcome => 'account', sms => 1, answer => 1 },
	{ code => 131048, status => 400, outcome => 'account', sms => 1, long => 1 },
	{ code => 100, status => 400, subcode => 33, outcome => 'account', sms => 1, answer => 1 },

	# too fast; all with 400, not 429
	(map { { code => $_, status => 400, outcome => 'later', sms => 1 } } 4, 80007, 133016),
	{ code => 130429, status => 400, outcome => 'retry', sms => 1, reason => 'provider_unavailable' },
	{ code => 131056, status => 400, outcome => 'retry', sms => 1, slow => 6 },

	# Meta's own trouble
	{ code => 1, status => 400, outcome => 'retry', sms => 1 },
	{ code => 2, status => 503, outcome => 'retry', sms => 1, reason => 'provider_unavailable' },
	{ code => 131000, status => 500, outcome => 'retry', sms => 1, reason => 'provider_unavailable' },
	{ code => 131016, status => 500, outcome => 'retry', sms => 1, reason => 'provider_unavailable' },
	{ code => 131057, status => 500, outcome => 'retry', sms => 1, slow => 10, reason => 'provider_unavailable' },
	{ code => 133004, status => 503, outcome => 'retry', sms => 1, reason => 'provider_unavailable' },

	# this recipient
	(map { { code => $_, status => 400, outcome => 'give up', sms => 1 } }
		131026, 131030, 131049, 131050, 130472, 131062, 137000),
	{ code => 130497, status => 403, outcome => 'give up', sms => 1 },
	{ code => 131021, status => 400, outcome => 'give up' },
	{ code => 130403, status => 400, outcome => 'give up' },

	# this request
	(map { { code => $_, status => 400, outcome => 'give up', sms => 1 } }
		100, 131008, 131009, 132068, 132069, 135000),
	(map { { code => $_, status => 400, outcome => 'give up' } } 131047, 131051, 131052, 131053),

	# this template
	{ code => 132001, status => 404, outcome => 'give up', sms => 1,
		reason => 'template_not_found' },
	(map { { code => $_, status => 400, outcome => 'give up', sms => 1,
				reason => 'template_not_found' } } 132015, 132016),
	(map { { code => $_, status => 400, outcome => 'give up', sms => 1 } }
		131063, 132000, 132005, 132007, 132012, 132018),

	# one that nobody knows: by its status
	{ code => 987001, status => 400, outcome => 'give up', sms => 1 },
	{ code => 987002, status => 500, outcome => 'retry', sms => 1, answer => 1 });

my @twilio = (
	(map { { code => $_->[0], status => $_->[1], outcome => 'account' } }
		[ 20003, 401 ], [ 20404, 404 ], [ 21608, 400 ], [ 21609, 400 ],
		[ 30002, 400 ], [ 63001, 401 ]),
	(map { { code => $_, status => 400, outcome => 'account', sender => 1 } }
		21212, 21606, 21703, 21704, 21705, 30032, 30034, 63007),
	{ code => 20429, status => 429, outcome => 'retry', reason => 'provider_unavailable' },
	{ code => 14107, status => 400, outcome => 'retry', reason => 'provider_unavailable' },
	{ code => 20503, status => 503, outcome => 'retry', reason => 'provider_unavailable' },
	{ code => 20500, status => 500, outcome => 'retry' },
	{ code => 63018, status => 429, outcome => 'retry', reason => 'provider_unavailable' },
	(map { { code => $_, status => 400, outcome => 'retry', slow => 5, reason => 'provider_unavailable' } }
		21611, 30001, 30017),
	(map { { code => $_, status => 400, outcome => 'retry', receipt => 1 } } 30003, 30008, 30036, 30410),
	(map { { code => $_, status => 400, outcome => 'give up' } }
		21211, 21408, 21610, 21612, 21614, 21635, 21617, 21602, 21603, 21604,
		30004, 30005, 30006, 30007, 30450, 30485,
		63003, 63016, 63024, 63027, 63028, 63032, 63049),
	{ code => 98701, status => 400, outcome => 'give up' },
	{ code => 98702, status => 503, outcome => 'retry', answer => 1 });

# List all codes
sub cases
{
	my @cases = ((map { { %$_, api => 'meta' } } @meta), (map { { %$_, api => 'twilio' } } @twilio));

	foreach my $case (@cases)
	{
		$case->{name} = "$case->{api}_$case->{code}";
		$case->{name} .= "_$case->{subcode}" if $case->{subcode};
	}
	return @cases;
}

1;
