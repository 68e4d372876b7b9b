# Cluster.pm
#	A PostgreSQL server with otp, as a test sees it.

=pod

=head1 NAME

OTP::Cluster - a PostgreSQL::Test::Cluster with otp in it

=head1 SYNOPSIS

  use OTP::Cluster;
  use OTP::Simulator;

  my $sim = OTP::Simulator->start;
  my $node = OTP::Cluster->start('main', conf => ['otp.max_in_flight = 10']);

  $node->install;                          # CREATE EXTENSION otp CASCADE
  $node->configure($sim);                  # both providers
  my $id = $node->send('+15551234567', fallback_sms => 'true');
  my $code = $sim->code_for($id);
  my $v = $node->verify($id, $code);       # { valid => true, phone => ... }
  is($node->status($id)->{status}, 'verified');

  my $e = $node->error_of("SELECT * FROM otp_send('12')");
  is($e->{sqlstate}, 'OT400');
  is($e->{detail}{code}, 'invalid_phone');

Whatever a L<PostgreSQL::Test::Cluster> can do, this can do, too: C<psql>,
C<safe_psql>, C<background_psql>, C<poll_query_until>, C<stop>, C<restart>,
C<append_conf>, C<backup>, C<slurp_log> ...

Every method takes C<< dbname => >> (postgres unless said) and C<< user => >>
(the superuser unless said) at the end of its arguments.

=cut

package OTP::Cluster;

use strict;
use warnings;

use parent -norequire, 'PostgreSQL::Test::Cluster';

use Carp;
use JSON::PP;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# One that both providers of the simulator take for a number of ours
use constant SMS_SENDER => '+15017122661';

=pod

=head1 METHODS

=over

=item OTP::Cluster->start($name, conf => [...], init => {...})

Makes a cluster and starts it. C<conf> are lines of postgresql.conf, the last
word on everything; C<init> goes to PostgreSQL::Test::Cluster's C<init>, such as
C<< { allows_streaming => 1 } >> for a primary of standbys. As there, fsync is off
unless C<conf> says otherwise.

=item OTP::Cluster->make($name, conf => [...], init => {...})

The same, but does not start it.

For a standby: C<< my $standby = OTP::Cluster->new('standby') >>, then
C<init_from_backup> and C<start> as usual.

=cut

sub make
{
	my ($class, $name, %params) = @_;
	my $self = $class->new($name);

	$self->init(%{ $params{init} // {} });

	# log_statement: clients' literals in the log are the clients' own doing,
	# and would hide ours
	$self->append_conf('postgresql.conf', <<"END");
shared_preload_libraries = 'otp'
otp.allow_insecure_http = on
max_worker_processes = 16
log_statement = none
log_min_messages = info
END
	$self->append_conf('postgresql.conf', "$_\n") foreach @{ $params{conf} // [] };
	return $self;
}

sub start
{
	my ($self, @args) = @_;

	# an object of this class: PostgreSQL::Test::Cluster's
	return $self->SUPER::start(@args) if ref $self;

	my $node = $self->make(@args);
	$node->start;
	return $node;
}

=pod

=item $node->install(dbname => ...)

Creates the extension, and before that the database unless it is there.

=cut

sub install
{
	my ($self, %where) = @_;
	my $dbname = $where{dbname} // 'postgres';

	$self->safe_psql('postgres', 'CREATE DATABASE ' . quote_ident($dbname))
	  if $self->safe_psql('postgres',
		'SELECT count(*) FROM pg_database WHERE datname = ' . quote($dbname)) eq
	  '0';

	# PostgreSQL 14 still lets everybody create in public
	$self->run('REVOKE CREATE ON SCHEMA public FROM PUBLIC;'
		  . 'SET client_min_messages = warning;'
		  . 'CREATE EXTENSION otp CASCADE;', %where);
	return;
}

=pod

=item $node->configure($sim, ...)

Sets both providers up to be the simulator. C<< meta => {...} >> and
C<< twilio => {...} >> change or add arguments of C<otp.configure_meta> and
C<otp.configure_twilio>; C<< meta => undef >> leaves one out.

=cut

sub configure
{
	my ($self, $sim, %args) = @_;
	my %meta = (
		base_url => $sim->base_url,
		phone_number_id => $sim->phone_number_id,
		waba_id => $sim->waba_id,
		access_token => $sim->token,
		app_secret => $sim->app_secret);
	my %twilio = (
		base_url => $sim->base_url,
		account_sid => $sim->account_sid,
		auth_token => $sim->auth_token,
		sender => SMS_SENDER,

		# nobody is there; but it tells the simulator whose message it is
		status_callback => 'http://127.0.0.1:9/receipts');
	my $meta = exists $args{meta} ? delete $args{meta} : {};
	my $twilio = exists $args{twilio} ? delete $args{twilio} : {};

	$self->call('otp.configure_meta', { %meta, %$meta }, %args) if $meta;
	$self->call('otp.configure_twilio', { %twilio, %$twilio }, %args) if $twilio;
	return;
}

=pod

=item $node->make_workspaces($sim, @names)

Makes workspaces with accounts of their own at both providers, C<meta_NAME> and C<twilio_NAME>,
so that none meets another's breaker; lifts all limits.

=item $node->share_accounts(@names)

Makes workspaces that use the accounts of C<default>.

=cut

sub make_workspaces
{
	my ($self, $sim, @names) = @_;
	my $names = join ', ', map { quote($_) } @names;
	my %sim = map { $_ => quote($sim->$_) } qw(base_url phone_number_id token account_sid auth_token);
	my $sender = quote(SMS_SENDER);

	$self->run(<<"END");
INSERT INTO otp.workspaces (name) SELECT unnest(ARRAY[$names]);
INSERT INTO otp.templates (workspace_id, name, language)
	SELECT workspace_id, 'otp_verification', 'en_US' FROM otp.workspaces WHERE name IN ($names);
SELECT otp.configure_meta(account => 'meta_' || name, workspace => name, base_url => $sim{base_url},
		phone_number_id => $sim{phone_number_id}, access_token => $sim{token}),
	otp.configure_twilio(account => 'twilio_' || name, workspace => name, base_url => $sim{base_url},
		account_sid => $sim{account_sid}, auth_token => $sim{auth_token}, sender => $sender,
		status_callback => 'https://example.com/receipt')
FROM unnest(ARRAY[$names]) name;
END
	$self->lift_limits;
	return;
}

sub share_accounts
{
	my ($self, @names) = @_;
	my $names = join ', ', map { quote($_) } @names;

	$self->run(<<"END");
INSERT INTO otp.workspaces (name, whatsapp_account, sms_account)
	SELECT unnest(ARRAY[$names]), whatsapp_account, sms_account FROM otp.workspaces WHERE name = 'default';
INSERT INTO otp.templates (workspace_id, name, language)
	SELECT workspace_id, 'otp_verification', 'en_US' FROM otp.workspaces WHERE name IN ($names);
END
	$self->lift_limits;
	return;
}

=pod

=item $node->lift_limits(...)

Takes every limit of sending off all workspaces: for tests that send much.
Limits of guessing stay.

=cut

sub lift_limits
{
	my ($self, %where) = @_;
	$self->run(
		'UPDATE otp.workspaces SET sends_per_second = NULL,'
		  . ' sends_per_phone_hour = NULL, sends_per_phone_day = NULL,'
		  . ' resend_cooldown = NULL', %where);
	return;
}

=pod

=item $node->create_user($name, workspace => 'default', ...)

Makes an ordinary role that may act for the workspace.

=cut

sub create_user
{
	my ($self, $name, %where) = @_;
	my $workspace = delete $where{workspace} // 'default';

	$self->run('CREATE ROLE ' . quote_ident($name) . ' LOGIN', %where);
	$self->row('SELECT otp.grant_workspace(' . quote($workspace) . ', '
		  . quote($name) . ')', %where);
	return;
}

=pod

=item $node->send($phone, template => ..., fallback_sms => 'true', ...)

Calls C<otp_send> with these arguments by name; returns the otp_id. Dies on an
error. C<< row => 1 >> returns the whole row as a hash.

=item $node->verify($otp_id, $code, context => ..., phone => ...)

Calls C<otp_verify>; returns the row as a hash.

=item $node->status($otp_id), $node->wait($otp_id, timeout => '10 s')

Call C<otp_status> and C<otp_wait>; return the row as a hash, or undef.

=item $node->resend($otp_id, channel => ...), $node->cancel($otp_id)

Call C<otp_resend> (the row) and C<otp_cancel> (true or false).

=cut

sub send
{
	my ($self, $phone, %args) = @_;
	my $whole = delete $args{row};
	my ($where, $arguments) = split_args(phone => $phone, %args);
	my $row = $self->call('otp_send', $arguments, %$where);

	return $whole ? $row : $row->{otp_id};
}

sub verify
{
	my ($self, $otp_id, $code, %args) = @_;
	my ($where, $arguments) = split_args(otp_id => $otp_id, code => $code, %args);
	return $self->call('otp_verify', $arguments, %$where);
}

sub status
{
	my ($self, $otp_id, %where) = @_;
	return $self->call('otp_status', { otp_id => $otp_id }, %where);
}

sub wait
{
	my ($self, $otp_id, %args) = @_;
	my ($where, $arguments) = split_args(otp_id => $otp_id, %args);
	return $self->call('otp_wait', $arguments, %$where);
}

sub resend
{
	my ($self, $otp_id, %args) = @_;
	my ($where, $arguments) = split_args(otp_id => $otp_id, %args);
	return $self->call('otp_resend', $arguments, %$where);
}

sub cancel
{
	my ($self, $otp_id, %where) = @_;
	return $self->call('otp_cancel', { otp_id => $otp_id }, %where)->{otp_cancel};
}

=pod

=item $node->call($function, \%arguments, ...)

Calls a function with arguments by name; returns its row as a hash. A result
that is not a row comes under the function's name.

=cut

sub call
{
	my ($self, $function, $arguments, %where) = @_;
	my $list = join ', ',
	  map { "$_ => " . quote($arguments->{$_}) } sort keys %$arguments;

	return $self->row("SELECT * FROM $function($list)", %where);
}

=pod

=item $node->row($query, ...), $node->rows($query, ...)

The first row of a query as a hash, or undef; all of them as a list of hashes. The
query may be a C<SELECT>, or an C<UPDATE> and the like with C<RETURNING>.
Numbers are numbers, booleans are true or false, NULL is undef.

=item $node->value($query, ...)

The single column of the single row, as text.

=cut

sub rows
{
	my ($self, $query, %where) = @_;
	my $json = $self->run("WITH r AS ($query) SELECT pg_catalog.row_to_json(r) FROM r", %where);
	return map { JSON::PP->new->utf8->decode($_) } split /\n/, $json;
}

sub row
{
	my ($self, $query, %where) = @_;
	return ($self->rows($query, %where))[0];
}

sub value
{
	my ($self, $query, %where) = @_;
	return $self->run($query, %where);
}

=pod

=item $node->run($sql, ...)

Runs SQL, several statements if need be; returns what it prints, unaligned and
without heads. Dies on an error.

=cut

sub run
{
	my ($self, $sql, %where) = @_;
	my ($stdout, $stderr, $error);
	my $rc = $self->psql(
		$where{dbname} // 'postgres', $sql,
		stdout => \$stdout,
		stderr => \$stderr,
		on_error_stop => 1,
		connection($self, %where));

	croak "SQL failed: $stderr\nSQL: $sql" if $rc != 0;
	return $stdout;
}

=pod

=item $node->error_of($sql, ...)

Runs SQL that should fail; returns the error as a hash with C<severity>, C<sqlstate>,
C<message>, C<detail> (a hash when it is a JSON object), C<hint>, C<context>,
C<statement>, C<text> (all of it) - or undef when there was none. C<< warning => 1 >>
returns a WARNING the same way.

=cut

sub error_of
{
	my ($self, $sql, %where) = @_;
	my $severity = delete $where{warning} ? 'WARNING' : 'ERROR|FATAL|PANIC';
	my ($stdout, $stderr);

	$self->psql(
		$where{dbname} // 'postgres', "\\set VERBOSITY verbose\n$sql",
		stdout => \$stdout,
		stderr => \$stderr,
		on_error_stop => 1,
		connection($self, %where));
	return undef unless $stderr =~ /(?:^|: )($severity):  ([0-9A-Z]{5}): (.*)$/m;

	my %error = (severity => $1, sqlstate => $2, message => $3, text => $stderr);
	my $rest = substr $stderr, $+[0];
	foreach my $field (qw(DETAIL HINT CONTEXT STATEMENT))
	{
		$error{ lc $field } = $1
		  if $rest =~ /^$field:  (.*(?:\n(?![A-Z]+:  |LINE \d|psql:).*)*)/m;
	}
	my $detail = eval { JSON::PP->new->utf8->decode($error{detail}) }
	  if defined $error{detail};
	$error{detail} = $detail if ref $detail;
	chomp(%error);
	return \%error;
}

=pod

=item $node->wait_for_sender(...)

Waits until the database has a sender at work.

=item $node->wait_until_sent(...)

Waits until a provider has taken every message, or its verification has ended, and nothing else is queued.

=cut

sub wait_for_sender
{
	my ($self, %where) = @_;
	return $self->poll_query_until($where{dbname} // 'postgres',
		'SELECT sender_pid IS NOT NULL FROM otp.worker_status()');
}

sub wait_until_sent
{
	my ($self, %where) = @_;
	my $query = <<'END';
SELECT NOT EXISTS (
	SELECT 1 FROM otp.outbox o
	WHERE o.kind <> 'message' OR NOT EXISTS (
		SELECT 1 FROM otp.messages m
		WHERE m.slot = o.slot AND m.workspace_id = o.workspace_id AND m.verification_id = o.id
			AND m.number = o.number AND m.sent_at IS NOT NULL))
END
	return poll_until { $self->value($query, %where) eq 't' };
}

=pod

=back

=head1 FUNCTIONS

C<OTP::Cluster::quote($text)> makes an SQL literal (NULL of undef), and
C<OTP::Cluster::quote_ident($name)> an identifier.

=cut

sub quote
{
	my ($text) = @_;
	return 'NULL' unless defined $text;
	$text =~ s/'/''/g;
	return "'$text'";
}

sub quote_ident
{
	my ($name) = @_;
	$name =~ s/"/""/g;
	return qq("$name");
}

# Tell where to connect from what to say
sub split_args
{
	my (%args) = @_;
	my %where = map { $_ => delete $args{$_} }
	  grep { exists $args{$_} } qw(dbname user options);
	return (\%where, \%args);
}

# How psql() is told of another user
sub connection
{
	my ($self, %where) = @_;
	return () unless defined $where{user} || defined $where{options};
	my $connstr = $self->connstr($where{dbname} // 'postgres');
	$connstr .= " user=$where{user}" if defined $where{user};
	$connstr .= " options='$where{options}'" if defined $where{options};
	return (connstr => $connstr);
}

1;
