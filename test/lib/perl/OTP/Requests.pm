# Requests.pm
#	Many HTTP requests at a time.

=pod

=head1 NAME

OTP::Requests - HTTP requests that a test need not wait for

=head1 SYNOPSIS

  use OTP::Requests;

  my $http = OTP::Requests->new(port => $port, key => $api_key);
  my $sent = $http->post('/v1/whatsapp/otp/send', { phone => '+15551234567' });
  my $status = $http->ask(GET => "/v1/whatsapp/otp/$id");     # waits for this one

  ok(!$sent->{done}, 'it is not answered yet');
  ok($http->until(sub { $sent->{done} }), 'now it is');
  is($sent->{status}, 200);
  is($sent->{json}{channel}, 'whatsapp');
  is($sent->{headers}{'retry-after'}, undef);

Each request has a connection of its own, and there may be thousands; all of them are worked on
whenever C<ask> or C<until> is called, and by C<look>. A request is a hash: C<done> when there is
an answer, or there will be none, because the connection is C<closed>; C<status>, C<headers>
(names in lower case), C<body>, C<json> (undef when the body is none).

=cut

package OTP::Requests;

use strict;
use warnings;

use Carp;
use Errno qw(EAGAIN EINPROGRESS EINTR);
use IO::Poll qw(POLLERR POLLHUP POLLIN POLLOUT);
use JSON::PP;
use PostgreSQL::Test::Utils;
use Socket;
use Time::HiRes qw(time);

# So many are opened and written at a time: a queue of connections is short
use constant OPENING => 64;

=pod

=head1 METHODS

=over

=item OTP::Requests->new(port => $port, key => $api_key)

Speaks to this port of 127.0.0.1, with this key unless a request has another one, or C<< key => undef >>.

=cut

sub new
{
	my ($class, %args) = @_;
	return bless { %args, poll => IO::Poll->new, queue => [], opening => 0, by_fd => {} }, $class;
}

=pod

=item $http->request($method, $path, $body, %headers)

Queues a request and returns it. The body is a hash or an array, which become JSON, or text, or undef.

=item $http->post($path, $body, %headers)

The same with POST.

=item $http->ask($method, $path, $body, %headers)

Waits for the answer, too.

=cut

sub request
{
	my ($self, $method, $path, $body, %headers) = @_;
	my $key = exists $headers{key} ? delete $headers{key} : $self->{key};
	my @lines = ("$method $path HTTP/1.1", 'Host: 127.0.0.1', 'Connection: close');

	if (ref $body)
	{
		$body = JSON::PP->new->utf8->encode($body);
		$headers{'Content-Type'} //= 'application/json';
	}
	push @lines, "Authorization: Bearer $key" if defined $key;
	push @lines, map { "$_: $headers{$_}" } sort keys %headers;
	push @lines, 'Content-Length: ' . length $body if defined $body;

	my $r = { method => $method, out => join("\r\n", @lines, '', '') . ($body // ''), in => '' };
	push @{ $self->{queue} }, $r;
	return $r;
}

sub post
{
	my ($self, $path, $body, %headers) = @_;
	return $self->request(POST => $path, $body, %headers);
}

sub ask
{
	my ($self, @args) = @_;
	my $r = $self->request(@args);

	# it overtakes what has not been begun
	unshift @{ $self->{queue} }, pop @{ $self->{queue} };
	$self->until(sub { $r->{done} }) or croak "no answer to $args[0] $args[1]";
	return $r;
}

=pod

=item $http->until(sub { ... })

Works on all requests until the condition is true, and returns that; false after the time that
PG_TEST_TIMEOUT_DEFAULT says.

=item $http->look($seconds)

Works on what there is to do, waiting for it that long at most (0 unless said).

=item $http->close($r)

Leaves before the answer is there.

=cut

sub until
{
	my ($self, $condition) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;

	while (1)
	{
		my $result = $condition->();
		return $result if $result;
		return 0 if time > $end;
		$self->look(0.05);
	}
}

sub look
{
	my ($self, $seconds) = @_;
	my $poll = $self->{poll};

	$self->open_some;
	return if $poll->poll($seconds // 0) <= 0;
	foreach my $handle ($poll->handles(POLLIN | POLLOUT | POLLHUP | POLLERR))
	{
		my $r = $self->{by_fd}{ fileno $handle };

		$self->write_some($r) if defined $r->{out};
		$self->read_some($r) if !defined $r->{out} && !$r->{done};
	}
	$self->open_some;
	return;
}

sub close
{
	my ($self, $r) = @_;
	$self->end($r) if defined $r->{socket};
	$r->{done} = $r->{closed} = 1;
	return;
}

# Open connections, as many as may be opening
sub open_some
{
	my ($self) = @_;

	while ($self->{opening} < OPENING && (my $r = shift @{ $self->{queue} }))
	{
		next if $r->{done};
		socket(my $socket, PF_INET, SOCK_STREAM, 0) or croak "socket: $!";
		$socket->blocking(0);
		connect($socket, pack_sockaddr_in($self->{port}, INADDR_LOOPBACK)) || $!{EINPROGRESS}
		  or croak "connect: $!";
		$r->{socket} = $socket;
		$self->{by_fd}{ fileno $socket } = $r;
		$self->{poll}->mask($socket => POLLOUT);
		$self->{opening}++;
	}
	return;
}

# Write a part of a request
sub write_some
{
	my ($self, $r) = @_;
	my $n = syswrite $r->{socket}, $r->{out};

	return if !defined $n && ($!{EAGAIN} || $!{EINTR});
	return $self->fail($r) unless defined $n;
	substr $r->{out}, 0, $n, '';
	return if length $r->{out};
	delete $r->{out};
	$self->{opening}--;
	$self->{poll}->mask($r->{socket} => POLLIN);
	return;
}

# Read a part of an answer
sub read_some
{
	my ($self, $r) = @_;
	my $n = sysread $r->{socket}, $r->{in}, 65536, length $r->{in};

	return if !defined $n && ($!{EAGAIN} || $!{EINTR});
	return if $n && !$self->parse($r, 0);
	return $self->fail($r) unless $self->parse($r, 1);
	$self->end($r);
	$r->{done} = 1;
	return;
}

# Take an answer apart, if it is there
sub parse
{
	my ($self, $r, $at_end) = @_;
	my $in = $r->{in};

	# one that says "go on" comes before it
	$in =~ s{\AHTTP/1\.1 1\d\d .*?\r\n\r\n}{}s;
	$in =~ m{\AHTTP/1\.[01] (\d{3}) .*?\r\n(.*?)\r\n\r\n(.*)\z}s or return 0;
	my ($status, $head, $body) = ($1, $2, $3);
	my %headers = map { /^([^:]+):\s*(.*)$/ ? (lc $1 => $2) : () } split /\r\n/, $head;
	my $length = $r->{method} eq 'HEAD' || $status == 204 ? 0 : $headers{'content-length'};

	return 0 if defined $length ? length $body < $length : !$at_end;
	@$r{qw(status headers body)} = ($status, \%headers, $body);
	$r->{json} = eval { JSON::PP->new->utf8->decode($body) };
	return 1;
}

# There will be no answer
sub fail
{
	my ($self, $r) = @_;
	$self->end($r);
	$r->{done} = $r->{closed} = 1;
	return;
}

# Close a connection
sub end
{
	my ($self, $r) = @_;
	my $socket = delete $r->{socket};

	$self->{opening}-- if defined delete $r->{out};
	$self->{poll}->remove($socket);
	delete $self->{by_fd}{ fileno $socket };
	CORE::close($socket);
	return;
}

=pod

=back

=cut

1;
