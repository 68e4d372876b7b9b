# Receiver.pm
#	The web tier of an application, as a test sees it.

=pod

=head1 NAME

OTP::Receiver - run the web tier that takes receipts and webhooks

=head1 SYNOPSIS

  use OTP::Cluster;
  use OTP::Receiver;
  use OTP::Simulator;

  my $sim = OTP::Simulator->start;
  my $node = OTP::Cluster->start('main', conf => ['otp.allow_private_webhooks = on']);
  $node->install;
  my $receiver = OTP::Receiver->start($node);

  # what providers post goes to the database
  $receiver->attach($sim);
  $node->configure($sim, twilio => { status_callback => $receiver->twilio_url });
  my @callbacks = $receiver->callbacks(count => 2);

  # an endpoint of the default workspace, whose signatures are checked
  my $id = $receiver->endpoint('mine', events => ['otp.verified']);
  my ($hook) = $receiver->hooks(name => 'mine', count => 1);     # waits
  ok($hook->{valid});
  is($hook->{parsed}{event}, 'otp.verified');

  # misbehave
  $receiver->behave('mine', status => 503, times => 1);

A receiver ends with the test that started it, however that ends.
test/receiver/README.md tells what it understands.

=cut

package OTP::Receiver;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use OTP::Simulator;
use OTP::Wait;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

use constant ROLE => 'web';

my $started = 0;

=pod

=head1 METHODS

=over

=item OTP::Receiver->start($node, %options)

Starts one and waits until it listens. With a node, the role C<web> is made there,
which may hand in receipts and nothing else; without one, it takes webhooks only. Options
are the program's own, with underscores: C<tls_cert>, C<tls_key>, C<public_url>, C<port> ...,
and C<dbname>.

=cut

sub start
{
	my ($class, $node, %options) = @_;
	my $program = $ENV{OTP_RECEIVER}
	  // abs_path(dirname(__FILE__) . '/../../../receiver/receiver.js');
	my $base = "$PostgreSQL::Test::Utils::tmp_check/receiver_$$" . '_' . ++$started;
	my $dbname = delete $options{dbname} // 'postgres';
	my $self = bless {
		node => $node,
		dbname => $dbname,
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

	if ($node)
	{
		$self->grant;
		$options{socket} = $node->host;
		$options{pg_port} = $node->port;
		$options{user} = ROLE;
		$options{database} = $dbname;
	}
	my @arguments = ("--port-file=$base.port", '--die-with-parent');
	foreach my $name (sort keys %options)
	{
		(my $option = $name) =~ tr/_/-/;
		push @arguments, "--$option=$options{$name}";
	}

	# it ends when this pipe does, whatever becomes of us
	unlink "$base.port";
	pipe(my $reader, $self->{leash}) or BAIL_OUT("pipe: $!");
	$self->{pid} = fork() // BAIL_OUT("fork: $!");
	if ($self->{pid} == 0)
	{
		open STDIN, '<&', $reader;
		open STDOUT, '>>', "$base.log";
		open STDERR, '>&', \*STDOUT;
		exec 'node', $program, @arguments or POSIX::_exit(127);
	}
	close $reader;

	poll_until { -s "$base.port" || waitpid($self->{pid}, 1) != 0 };
	-s "$base.port"
	  or BAIL_OUT('the receiver does not start: ' . slurp_file("$base.log"));
	$self->{port} = 0 + slurp_file("$base.port");
	note 'receiver at ' . $self->base_url . ", process $self->{pid}";
	return $self;
}

=pod

=item $receiver->grant

Makes the role C<web> and gives it what the documentation says; C<start> has done so.

=cut

sub grant
{
	my ($self) = @_;
	my ($node, %where) = ($self->{node}, dbname => $self->{dbname});

	$node->run('CREATE ROLE ' . ROLE . ' LOGIN', %where)
	  if $node->value(q(SELECT count(*) FROM pg_roles WHERE rolname = ') . ROLE . q('), %where) eq '0';
	$node->run('GRANT USAGE ON SCHEMA otp TO ' . ROLE
		  . '; GRANT EXECUTE ON FUNCTION otp.receive_meta, otp.receive_meta_handshake, otp.receive_twilio TO ' . ROLE,
		%where);
	return;
}

=pod

=item $receiver->base_url, $receiver->port, $receiver->pid

=item $receiver->url($name), $receiver->meta_url($account), $receiver->twilio_url($account)

Where webhooks of that name, and the receipts of a provider account go. Accounts are called
"meta" and "twilio" unless said.

=cut

sub base_url
{
	my ($self) = @_;
	return "$self->{scheme}://127.0.0.1:$self->{port}";
}

sub port
{
	return $_[0]->{port};
}

sub pid
{
	return $_[0]->{pid};
}

sub url
{
	my ($self, $name) = @_;
	return $self->base_url . "/hook/$name";
}

sub meta_url
{
	my ($self, $account) = @_;
	return $self->base_url . '/meta/' . ($account // 'meta');
}

sub twilio_url
{
	my ($self, $account) = @_;
	return $self->base_url . '/twilio/' . ($account // 'twilio');
}

=pod

=item $receiver->attach($sim, $account)

Has the simulator send Meta's callbacks here. Twilio's go where C<status_callback> of
C<otp.configure_twilio> says.

=cut

sub attach
{
	my ($self, $sim, $account) = @_;
	return $sim->config({ callback_url => $self->meta_url($account) });
}

=pod

=item $receiver->endpoint($name, url => ..., events => [...], workspace => ..., user => ...)

Creates a webhook endpoint that leads here, or to another C<url>, and registers its secret;
returns its id. Its secret is then C<< $receiver->secret_of($name) >>.

=cut

sub endpoint
{
	my ($self, $name, %args) = @_;
	my %where = map { $_ => delete $args{$_} } grep { exists $args{$_} } qw(dbname user);

	$args{url} //= $self->url($name);
	$args{events} = '{' . join(',', @{ $args{events} }) . '}' if ref $args{events};
	my $row = $self->{node}->call('otp.create_webhook_endpoint', \%args, dbname => $self->{dbname}, %where);
	$self->secret($name, $row->{secret});
	return $row->{endpoint_id};
}

=pod

=item $receiver->secret($name, $secret)

Registers one more secret for webhooks of that name; C<signed_by> of a webhook lists
the places, from 0, of those that have signed it.

=cut

sub secret
{
	my ($self, $name, $secret) = @_;

	push @{ $self->{secrets}{$name} }, $secret;
	$self->control('POST', 'secret', { name => $name, secret => $secret });
	return;
}

sub secret_of
{
	my ($self, $name) = @_;
	return $self->{secrets}{$name}[-1];
}

=pod

=item $receiver->behave($name, status => 503, times => 1, ...)

How to answer webhooks of that name: C<status>, C<headers>, C<body>, C<times>, C<delay_ms>, C<hang>,
C<reset>, C<redirect_to>, C<huge_bytes>, C<retry_after>. The newest that is not used up decides.
C<< $receiver->behave_well($name) >> forgets them all.

=cut

sub behave
{
	my ($self, $name, %how) = @_;
	$self->control('POST', 'behave', { name => $name, %how });
	return;
}

sub behave_well
{
	my ($self, $name) = @_;
	$self->control('DELETE', 'behave' . OTP::Simulator::query(name => $name));
	return;
}

=pod

=item $receiver->hooks(name => ..., event => ..., otp_id => ..., since => $n, count => ...)

The webhooks that came, oldest first, as hashes: C<n>, C<at>, C<headers>, C<body>, C<parsed>, C<event>,
C<otp_id>, C<valid>, C<error>, C<signed_by> and more. With C<count>, waits for that many, and dies when they
don't come.

=item $receiver->callbacks(account => ..., since => $n, count => ...)

What providers posted, and what the database said: C<kind>, C<status>, C<result>, C<error>.

=item $receiver->last

The number of the newest: a C<since> for what will come.

=item $receiver->clear('hooks' | 'callbacks')

=cut

sub hooks
{
	my ($self, %args) = @_;
	return $self->kept('hooks', %args);
}

sub callbacks
{
	my ($self, %args) = @_;
	return $self->kept('callbacks', %args);
}

sub last
{
	my ($self) = @_;
	my ($last) = sort { $b <=> $a } map { $_->{n} } $self->hooks, $self->callbacks;
	return $last // 0;
}

sub clear
{
	my ($self, $what) = @_;
	$self->control('DELETE', $what);
	return;
}

# Ask for what was kept
sub kept
{
	my ($self, $kind, %args) = @_;

	$args{wait_ms} //= 1000 * $PostgreSQL::Test::Utils::timeout_default if $args{count};
	my @found = @{ $self->control('GET', $kind . OTP::Simulator::query(%args)) };
	croak "wanted $args{count} $kind (" . join(', ', map { "$_ $args{$_}" } sort keys %args) . '), got ' . @found
	  if $args{count} && @found < $args{count};
	return @found;
}

=pod

=item $receiver->control($method, $what, $body)

Speaks to C</_rx/$what>; $body and the result are Perl data.

=cut

sub control
{
	my ($self, $method, $what, $body) = @_;
	my %request;

	$request{content} = JSON::PP->new->utf8->encode($body) if defined $body;
	my $response = $self->{http}->request($method, $self->base_url . "/_rx/$what", \%request);
	croak "receiver: $method $what: $response->{status} $response->{content}" unless $response->{success};
	return JSON::PP->new->utf8->decode($response->{content});
}

=pod

=item $receiver->stop

Ends it, which also comes by itself.

=back

=cut

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} // return;
	local $? = 0;

	# a child of the test that was forked has the object, too
	return if $self->{owner} != $$;
	kill 'TERM', $pid;
	waitpid $pid, 0;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	return $self->stop;
}

1;
