# Simulator.pm
#	The provider simulator, as a test sees it.

=pod

=head1 NAME

OTP::Simulator - run the provider simulator and look into it

=head1 SYNOPSIS

  use OTP::Simulator;

  my $sim = OTP::Simulator->start;
  my $sim = OTP::Simulator->start(sink => 1, latency_ms => 20);

  # misbehave; see ../../../simulator/README.md for all a rule can say
  $sim->behave({ match => { phone => $phone }, do => { code => 131026 } });
  $sim->behave({ match => { api => 'meta' }, do => { hang => \1 }, times => 1 });

  # what the phones show
  my $code = $sim->code_for($otp_id);      # waits; newest message of this id
  my $code = $sim->code_for('+15551234567');
  my @messages = $sim->inbox($phone);      # now
  my @messages = $sim->wait_for_messages(count => 3, phone => $phone);

  # what came in
  my @requests = $sim->log;                # each a hash
  my $count = $sim->counters->{meta}{accepted};

A simulator ends with the test that started it, however that ends.

=cut

package OTP::Simulator;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;

# What the simulator takes for good unless told otherwise
my %default = (
	token => 'EAAtest-token',
	phone_number_id => '106540352242922',
	waba_id => '102290129340398',
	app_secret => '0123456789abcdef0123456789abcdef',
	account_sid => 'AC0123456789abcdef0123456789abcdef',
	auth_token => '12345678901234567890123456789012',
	api_key_sid => 'SK0123456789abcdef0123456789abcdef',
	api_key_secret => 'api-key-secret');

my $started = 0;

=pod

=head1 METHODS

=over

=item OTP::Simulator->start(%options)

Starts one and waits until it listens. Options are the program's own, with
underscores: C<sink>, C<latency_ms>, C<token>, C<tls_cert>, C<tls_key>, C<port> ...
The credentials, default or not, are then at hand as C<< $sim->token >>,
C<phone_number_id>, C<waba_id>, C<app_secret>, C<account_sid>, C<auth_token>,
C<api_key_sid> and C<api_key_secret>.

=cut

sub start
{
	my ($class, %options) = @_;
	my $program = $ENV{OTP_SIMULATOR}
	  // abs_path(dirname(__FILE__) . '/../../../simulator/simulator')
	  // 'simulator';
	my $base =
	  $PostgreSQL::Test::Utils::tmp_check . "/simulator_$$" . '_' . ++$started;
	my @arguments = ("--port-file=$base.port", '--die-with-parent');

	-x $program or BAIL_OUT("there is no simulator at $program: make simulator");
	foreach my $name (sort keys %options)
	{
		(my $option = $name) =~ tr/_/-/;
		my $bare = $name eq 'sink' || !defined $options{$name};
		push @arguments, $bare ? "--$option" : "--$option=$options{$name}";
	}

	unlink "$base.port";
	my $pid = fork() // BAIL_OUT("fork: $!");
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', "$base.log";
		open STDERR, '>&', \*STDOUT;
		exec $program, @arguments or POSIX::_exit(127);
	}

	my $self = bless {
		%default,
		(map { $_ => $options{$_} } grep { exists $default{$_} } keys %options),
		pid => $pid,
		owner => $$,
		scheme => $options{tls_cert} ? 'https' : 'http',

		# never through a proxy of the environment
		http => HTTP::Tiny->new(
			timeout => 2 * $PostgreSQL::Test::Utils::timeout_default,
			verify_SSL => 0,
			proxy => undef,
			http_proxy => undef,
			https_proxy => undef)
	  },
	  $class;

	poll_until { -s "$base.port" || waitpid($pid, 1) != 0 };
	-s "$base.port"
	  or BAIL_OUT('the simulator does not start: ' . slurp_file("$base.log"));
	$self->{port} = 0 + slurp_file("$base.port");
	note "simulator at " . $self->base_url . ", process $pid";
	return $self;
}

# The credentials, and where it is
foreach my $name (keys %default, 'port', 'pid')
{
	no strict 'refs';
	*{$name} = sub { return $_[0]->{$name} };
}

=pod

=item $sim->base_url

For C<otp.configure_meta> and C<otp.configure_twilio>.

=cut

sub base_url
{
	my ($self) = @_;
	return "$self->{scheme}://127.0.0.1:$self->{port}";
}

=pod

=item $sim->control($method, $what, $body)

Speaks to C</_sim/$what>; $body and the result are Perl data. Dies when the
simulator finds the request wrong.

=cut

sub control
{
	my ($self, $method, $what, $body) = @_;
	my %request;

	if (defined $body)
	{
		$request{content} = JSON::PP->new->utf8->encode($body);
		$request{headers} = { 'Content-Type' => 'application/json' };
	}
	my $response =
	  $self->{http}->request($method, $self->base_url . "/_sim/$what", \%request);
	croak "simulator: $method $what: $response->{status} $response->{content}"
	  unless $response->{success};
	return $what =~ /^inbox\.txt/ ? $response->{content}
	  : JSON::PP->new->utf8->decode($response->{content});
}

=pod

=item $sim->behave(\%rule, ...)

Adds rules; the newest that matches decides. C<\1> and C<\0> are JSON's true
and false. C<behave()> without any returns the rules with how often they
C<matched> and were C<applied>; C<forget_rules> removes them all.

=cut

sub behave
{
	my ($self, @rules) = @_;
	return @{ $self->control('GET', 'behave') } unless @rules;
	return $self->control('POST', 'behave', \@rules)->{id};
}

sub forget_rules
{
	my ($self) = @_;
	return $self->control('DELETE', 'behave');
}

=pod

=item $sim->config({ down => \1 })

Changes its settings while it runs: credentials, templates, C<down>,
C<latency_ms>, C<callback_url> and so on. Without an argument, returns them.

=cut

sub config
{
	my ($self, $changes) = @_;
	return $self->control('GET', 'config') unless $changes;

	my $result = $self->control('POST', 'config', $changes);
	foreach my $name (keys %default)
	{
		$self->{$name} = $changes->{$name} if exists $changes->{$name};
	}
	return $result;
}

=pod

=item $sim->inbox($phone)

The messages that arrived, as hashes, oldest first: C<seq>, C<to>, C<channel>
("whatsapp" or "sms"), C<text>, C<code>, C<otp_id>, C<received_at>, C<raw> and
more. Of all phones without an argument.

=cut

sub inbox
{
	my ($self, $phone) = @_;
	return @{ $self->control('GET', 'inbox' . query(phone => $phone)) };
}

=pod

=item $sim->inbox_text($phone)

The same, drawn as the phone would show it.

=cut

sub inbox_text
{
	my ($self, $phone) = @_;
	return $self->control('GET', 'inbox.txt' . query(phone => $phone));
}

=pod

=item $sim->wait_for_messages(count => 1, phone => $phone, since => $seq)

Waits until that many have arrived, and returns them. Dies when they don't.

=cut

sub wait_for_messages
{
	my ($self, %args) = @_;
	my $count = delete $args{count} // 1;
	my $timeout = $PostgreSQL::Test::Utils::timeout_default;
	my @messages = @{
		$self->control(
			'GET',
			'inbox'
			  . query(%args, count => $count, wait_ms => 1000 * $timeout)) };

	croak 'wanted ' . $count . ' messages, got ' . @messages
	  if @messages < $count;
	return @messages;
}

=pod

=item $sim->code_for($otp_id or $phone)

Waits for a message and returns the code in it; in the newest, when there are
several. Give a phone with its C<+>.

=cut

sub code_for
{
	my ($self, $what) = @_;
	return ($self->wait_for_messages(phone => $what))[-1]{code}
	  if $what =~ /^\+/;

	# The log finds the phone, so that a full inbox need not be read again and again
	my @messages;
	poll_until
	{
		my ($entry) = reverse grep { $_->{recorded} } $self->log(otp_id => $what);
		@messages = grep { ($_->{otp_id} // '') eq $what } $self->inbox($entry->{to})
		  if $entry;
		@messages;
	}
	or croak "no message for $what";
	return $messages[-1]{code};
}

=pod

=item $sim->log(since => $seq, otp_id => $id)

The requests that came in, oldest first: C<api>, C<outcome> ("accepted",
"refused", "hung", "reset"), C<status>, C<code>, C<recorded>, C<to>, C<otp_id>, C<at>.

=cut

sub log
{
	my ($self, %args) = @_;
	return @{ $self->control('GET', 'log' . query(%args)) };
}

=pod

=item $sim->counters

Counts since the start or C<< $sim->clear('counters') >>.

=item $sim->clear('inbox' | 'log' | 'counters' | 'behave' | 'callbacks')

=item $sim->callbacks

The status callbacks it sent.

=item $sim->callback({ phone => ..., status => 'delivered' })

Sends one now.

=item $sim->release

Ends the requests that hang.

=cut

sub counters
{
	my ($self) = @_;
	return $self->control('GET', 'counters');
}

sub clear
{
	my ($self, $what) = @_;
	return $self->control('DELETE', $what);
}

sub callbacks
{
	my ($self, %args) = @_;
	return @{ $self->control('GET', 'callbacks' . query(%args)) };
}

sub callback
{
	my ($self, $callback) = @_;
	return $self->control('POST', 'callback', $callback);
}

sub release
{
	my ($self) = @_;
	return $self->control('POST', 'release', {});
}

=pod

=item $sim->stop, $sim->kill9

End it in good order, or at once. An orderly end also comes by itself.

=back

=cut

sub stop
{
	my ($self, $signal) = @_;
	my $pid = delete $self->{pid} // return;
	local $? = 0;

	# a child of the test that was forked has the object, too
	return if $self->{owner} != $$;
	kill $signal // 'TERM', $pid;
	waitpid $pid, 0;
	return;
}

sub kill9
{
	my ($self) = @_;
	return $self->stop('KILL');
}

sub DESTROY
{
	my ($self) = @_;
	return $self->stop;
}

# Write the query of a URL
sub query
{
	my (%args) = @_;
	my @parts;

	foreach my $name (sort keys %args)
	{
		next unless defined $args{$name};
		(my $value = $args{$name}) =~ s/([^A-Za-z0-9_.-])/sprintf '%%%02X', ord $1/ge;
		push @parts, "$name=$value";
	}
	return @parts ? '?' . join('&', @parts) : '';
}

1;
