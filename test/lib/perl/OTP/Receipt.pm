# Receipt.pm
#	What providers post, made and signed by hand.

=pod

=head1 NAME

OTP::Receipt - hand receipts to the database as a web tier would

=head1 SYNOPSIS

  use OTP::Cluster;
  use OTP::Receipt;
  use OTP::Simulator;

  my $sim = OTP::Simulator->start;
  my $node = OTP::Cluster->start('main');
  $node->install;
  $node->configure($sim);
  my $receipts = OTP::Receipt->new($node, $sim);

  $receipts->meta(delivered => $id);
  $receipts->meta(failed => $id, code => 131026);
  $receipts->twilio(undelivered => $id, number => 2, code => 30005);
  $receipts->wait_until_taken;

  # many in one body, or something about the account
  $receipts->meta_batch([ map { $receipts->status(read => $_) } @ids ]);
  $receipts->meta_change(account_update => { event => 'ACCOUNT_RESTRICTION' });

  # in a session or transaction of one's own
  my $sql = $receipts->meta_sql(delivered => $id);

No simulator's callback is in it: so a test says to the microsecond, and to the transaction,
when which receipt comes.

=cut

package OTP::Receipt;

use strict;
use warnings;

use Carp;
use Digest::SHA qw(hmac_sha1_base64 hmac_sha256_hex);
use JSON::PP;
use OTP::Cluster;
use OTP::Wait;

# Where Twilio would post to; it is signed, and nothing else
use constant TWILIO_URL => 'https://example.com/receipts';

=pod

=head1 METHODS

=over

=item OTP::Receipt->new($node, $sim, dbname => ...)

Makes receipts with the simulator's secrets and numbers, for the accounts C<meta> and C<twilio>.

=cut

sub new
{
	my ($class, $node, $sim, %where) = @_;
	return bless { node => $node, sim => $sim, where => \%where }, $class;
}

=pod

=item $receipts->status($status, $otp_id, number => 1, code => ..., at => ..., message_id => ..., %more)

One status as Meta writes it, as a hash. C<code> makes it an error's; C<message_id> is found
at the simulator unless it is said; C<at> is now; C<%more> are members of the status.

=cut

sub status
{
	my ($self, $status, $otp_id, %more) = @_;
	my $number = delete $more{number} // 1;
	my $code = delete $more{code};
	my $id = exists $more{message_id} ? delete $more{message_id} : $self->message_id($otp_id, $number);

	$more{errors} //= [
		{
			code => 0 + $code,
			title => "Error $code",
			message => "Error $code",
			error_data => { details => "What went wrong with $code" },
		} ] if defined $code;
	$more{timestamp} = '' . (delete $more{at} // time);
	return {
		id => $id // 'wamid.unknown',
		status => $status,
		recipient_id => '15550000000',
		biz_opaque_callback_data => $number == 1 ? $otp_id : "$otp_id/$number",
		%more,
	};
}

# Find what the provider calls a message: the newest of that number
sub message_id
{
	my ($self, $otp_id, $number) = @_;
	my ($entry) = $self->{sim}->log(otp_id => $otp_id);
	return undef unless defined $entry && defined $entry->{to};

	foreach my $message (reverse $self->{sim}->inbox($entry->{to}))
	{
		my $own = 1;
		if ($message->{api} eq 'meta')
		{
			my $opaque = JSON::PP->new->utf8->decode($message->{raw})->{biz_opaque_callback_data} // '';
			next unless index($opaque, $otp_id) == 0;
			$own = $1 if $opaque =~ m{/(\d+)$};
		}
		else
		{
			next unless ($message->{otp_id} // '') eq $otp_id;
			$own = $1 if $message->{status_callback} =~ /number=(\d+)/;
		}
		return $message->{message_id} if $own == $number;
	}
	return undef;
}

=pod

=item $receipts->meta($status, $otp_id, %more)

Posts one status; returns how many updates were taken. Besides what C<status> knows, C<account>
names the account, C<secret> what signs, C<from> the phone_number_id it is about.

=item $receipts->meta_batch(\@statuses, account => ..., secret => ..., from => ...)

Posts many.

=item $receipts->meta_change($field, \%value, account => ..., secret => ..., waba_id => ...)

Posts a change of another kind, such as C<account_update>.

=item $receipts->twilio($status, $otp_id, %more)

Posts a receipt of Twilio's: C<number>, C<code>, C<message_id>, C<account> and C<secret> as above;
C<%more> are fields of its form.

=item $receipts->meta_sql(...), meta_batch_sql(...), meta_change_sql(...), twilio_sql(...)

The same as a call in SQL, for a session of one's own.

=cut

sub meta_sql
{
	my ($self, $status, $otp_id, %more) = @_;
	my %how = map { $_ => delete $more{$_} } grep { exists $more{$_} } qw(account secret from);
	return $self->meta_batch_sql([ $self->status($status, $otp_id, %more) ], %how);
}

sub meta_batch_sql
{
	my ($self, $statuses, %how) = @_;
	my $from = delete $how{from} // $self->{sim}->phone_number_id;
	return $self->meta_change_sql(
		'messages',
		{
			messaging_product => 'whatsapp',
			metadata => { display_phone_number => '15550783881', phone_number_id => $from },
			statuses => $statuses,
		},
		%how);
}

sub meta_change_sql
{
	my ($self, $field, $value, %how) = @_;
	my $body = JSON::PP->new->utf8->encode({
			object => 'whatsapp_business_account',
			entry => [
				{
					id => $how{waba_id} // $self->{sim}->waba_id,
					time => time,
					changes => [ { field => $field, value => $value } ],
				} ] });
	my $signature = 'sha256=' . hmac_sha256_hex($body, $how{secret} // $self->{sim}->app_secret);
	my $account = OTP::Cluster::quote($how{account} // 'meta');

	return sprintf q{SELECT otp.receive_meta(%s, '\x%s', '%s')}, $account, unpack('H*', $body), $signature;
}

sub twilio_sql
{
	my ($self, $status, $otp_id, %more) = @_;
	my $number = delete $more{number} // 1;
	my $code = delete $more{code};
	my $account = OTP::Cluster::quote(delete $more{account} // 'twilio');
	my $secret = delete $more{secret} // $self->{sim}->auth_token;
	my $sid = exists $more{message_id} ? delete $more{message_id} : $self->message_id($otp_id, $number);
	my $url = TWILIO_URL . "?otp_id=$otp_id&number=$number";
	my %form = (
		AccountSid => $self->{sim}->account_sid,
		ApiVersion => '2010-04-01',
		MessageSid => $sid // 'SMunknown',
		MessageStatus => $status,
		SmsSid => $sid // 'SMunknown',
		SmsStatus => $status,
		%more);
	$form{ErrorCode} = $code if defined $code;

	# Twilio signs the address and the fields in the order of their names
	my $signature = hmac_sha1_base64(join('', $url, map { $_ . $form{$_} } sort keys %form), $secret);
	$signature .= '=' while length($signature) % 4;
	my $body = join '&', map { encoded($_) . '=' . encoded($form{$_}) } sort keys %form;

	return sprintf q{SELECT otp.receive_twilio(%s, '%s', '\x%s', '%s')}, $account, $url, unpack('H*', $body),
	  $signature;
}

foreach my $name (qw(meta meta_batch meta_change twilio))
{
	my $sql = $name . '_sql';
	no strict 'refs';
	*{$name} = sub { my ($self, @args) = @_; return $self->post($self->$sql(@args)) };
}

# Write a part of a form
sub encoded
{
	my ($text) = @_;
	$text =~ s/([^A-Za-z0-9_.~-])/sprintf '%%%02X', ord $1/ge;
	return $text;
}

=pod

=item $receipts->post($sql, ...)

Posts what the others give as SQL, several at once in one transaction each; returns the sum of the updates taken.

=cut

sub post
{
	my ($self, @sql) = @_;
	my $sum = 0;

	$sum += $_ foreach split /\n/, $self->{node}->run(join(";\n", @sql), %{ $self->{where} });
	return $sum;
}

=pod

=item $receipts->wait_until_taken

Waits until the sender has done all that follows from what was posted. What came before the answer
to its request waits for that.

=item $receipts->message($otp_id, $number)

The row of C<otp.messages>, or undef; of the last message unless a number is said.

=back

=cut

sub wait_until_taken
{
	my ($self) = @_;
	return poll_until
	{
		$self->{node}->value("SELECT count(*) FROM otp.outbox WHERE kind = 'receipts'", %{ $self->{where} }) == 0;
	};
}

sub message
{
	my ($self, $otp_id, $number) = @_;
	my $id = OTP::Cluster::quote($otp_id);
	my $which = defined $number ? "AND number = $number" : 'ORDER BY number DESC LIMIT 1';

	return $self->{node}->row("SELECT * FROM otp.messages WHERE verification_id = otp.parse_id($id) $which",
		%{ $self->{where} });
}

1;
