# 130_templates.pl
#	Templates are made at Meta, and what Meta says of them is known here.
#
# Protects: each kind of button as Meta wants it, nothing asked before the
# commit or after a rollback, statuses from the list, page by page, whatever
# its size; one repeat of everything that fails and may be repeated, and words
# for what may not; jobs that outlive a stop; the template of a message that
# says how long its code lives; a sender that waits for no lock on a template.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256_hex);
use HTTP::Tiny;
use JSON::PP;
use OTP::Cluster;
use OTP::Simulator;
use OTP::Wait;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $sim = OTP::Simulator->start;
my $node = OTP::Cluster->start('main');
$node->install;
$node->configure($sim);
$node->lift_limits;
$node->wait_for_sender;

my $waba = $sim->waba_id;
my $last_phone = 15551300000;

# Give a phone that was not used before
sub phone
{
	return '+' . ++$last_phone;
}

# Call otp.create_template
sub create
{
	my ($name, %args) = @_;
	$node->call('otp.create_template', { name => $name, %args });
	return;
}

# Read a row of otp.templates
sub template
{
	my ($name, %args) = @_;
	my $language = OTP::Cluster::quote($args{language} // 'en_US');
	my $workspace = OTP::Cluster::quote($args{workspace} // 'default');
	return $node->row(<<"END") // {};
SELECT t.*, t.checked_at IS NOT NULL AS checked FROM otp.templates t JOIN otp.workspaces w USING (workspace_id)
WHERE t.name = '$name' AND t.language = $language AND w.name = $workspace
END
}

# Wait until a template has a status, and give its row
sub wait_for_status
{
	my ($name, $status, %args) = @_;
	my $row;
	poll_until
	{
		$row = template($name, %args);
		($row->{status} // '') eq $status;
	}
	or die "$name does not become $status";
	return $row;
}

# Wait until no job is owed any more
sub wait_for_jobs
{
	$node->poll_query_until('postgres',
		"SELECT NOT EXISTS (SELECT 1 FROM otp.outbox WHERE kind = 'job')") or die;
	return;
}

# Have the list read
sub sync_templates
{
	$node->run('SELECT otp.sync_templates()');
	wait_for_jobs;
	return;
}

# Let templates have a status at Meta
sub decide
{
	my ($status, @names) = @_;
	return $sim->config({
			templates =>
			  [ map { { name => $_, language => 'en_US', status => $status } } @names ] });
}

# What Meta has of a template, by name
sub at_meta
{
	my ($name) = @_;
	my $response = HTTP::Tiny->new(no_proxy => '127.0.0.1')->get(
		$sim->base_url . "/v25.0/$waba/message_templates?name=$name",
		{ headers => { Authorization => 'Bearer ' . $sim->token } });
	return JSON::PP->new->utf8->decode($response->{content})->{data}[0];
}

# How often something was asked
sub asked
{
	my ($operation, %args) = @_;
	return scalar grep { $_->{operation} eq $operation } $sim->log(%args);
}

# The sequence number of the last request
sub last_request
{
	my @log = $sim->log;
	return @log ? $log[-1]{seq} : 0;
}

#
# Each kind of button; nothing before the commit, nothing after a rollback
#
my %app = (package_name => 'com.example.app', signature_hash => 'K8a/AINcGX7');
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe("SELECT otp.create_template('rolled_back')");
$session->query_safe('SELECT otp.sync_templates()');
create('copy', code_expiration_minutes => 5);
is(wait_for_status('copy', 'pending')->{reason}, undef, 'a template is created');
is(at_meta('rolled_back'), undef, 'not so one whose transaction is open');
$session->query_safe('ROLLBACK');
$session->quit;
create('one', button => 'one_tap', autofill_text => 'Übernehmen', button_text => 'Kopieren',
	add_security_recommendation => 'false', code_expiration_minutes => 20, %app);
create('zero', button => 'zero_tap', zero_tap_terms_accepted => 'true', language => 'de',
	message_send_ttl_seconds => 60, %app);
my $row = wait_for_status('one', 'pending');
is($row->{template_id}, at_meta('one')->{id}, "with Meta's id");
is($row->{category}, 'authentication', 'and category');
is($row->{code_expiration_minutes}, 20, 'and minutes as asked for');
wait_for_status('zero', 'pending', language => 'de');
wait_for_jobs;
is(at_meta('rolled_back'), undef, 'none whose transaction was rolled back');
is(template('rolled_back')->{status}, undef, 'nor a row');
is(asked('list_templates'), 3, 'and no list was read but by this test');

is_deeply(
	at_meta('copy')->{components},
	[   { type => 'BODY', add_security_recommendation => JSON::PP::true },
		{ type => 'FOOTER', code_expiration_minutes => 5 },
		{ type => 'BUTTONS', buttons => [ { type => 'OTP', otp_type => 'COPY_CODE' } ] } ],
	'a button that copies the code');
is_deeply(
	at_meta('one')->{components},
	[   { type => 'BODY', add_security_recommendation => JSON::PP::false },
		{ type => 'FOOTER', code_expiration_minutes => 20 },
		{   type => 'BUTTONS',
			buttons => [ {
					type => 'OTP',
					otp_type => 'ONE_TAP',
					text => 'Kopieren',
					autofill_text => "\x{dc}bernehmen",
					supported_apps => [ \%app ] } ] } ],
	'one that fills it in');
is_deeply(
	at_meta('zero')->{components},
	[   { type => 'BODY', add_security_recommendation => JSON::PP::true },
		{   type => 'BUTTONS',
			buttons => [ {
					type => 'OTP',
					otp_type => 'ZERO_TAP',
					zero_tap_terms_accepted => JSON::PP::true,
					supported_apps => [ \%app ] } ] } ],
	'none that has to be touched');

#
# What Meta decides comes with the list
#
my $error = $node->error_of("SELECT * FROM otp_send('" . phone . "', template => 'copy')");
is($error->{sqlstate}, 'OT4T0', 'what is pending cannot be sent');
is($error->{detail}{code}, 'template_not_found', 'template_not_found');
decide('APPROVED', 'copy');
decide('REJECTED', 'one');
sync_templates;
is(template('copy')->{status}, 'approved', 'the list says approved');
is(template('one')->{status}, 'rejected', 'and rejected');
is(template('otp_verification')->{status}, 'approved', 'what was not checked is now');
is(template('copy')->{code_expiration_minutes}, 5, 'minutes are as the text tells');
my $otp_id = $node->send(phone, template => 'copy');
is((poll_until { ($sim->log(otp_id => $otp_id))[0] })->{outcome}, 'accepted', 'what is approved can be sent');
decide('PAUSED', 'copy');
sync_templates;
$error = $node->error_of("SELECT * FROM otp_send('" . phone . "', template => 'copy')");
is($error->{sqlstate}, 'OT4T0', 'what is paused cannot');
decide('APPROVED', 'copy');

#
# More than fits on a page, and pages that are too large for one answer
#
my @many = map { "many_$_" } 1 .. 230;
decide('APPROVED', @many);
$sim->config({
		templates => [
			{ name => 'news', language => 'en_US', category => 'MARKETING' },
			{ name => 'otp_verification', language => 'de' } ] });
$node->run("INSERT INTO otp.workspaces (name) VALUES ('other'); ALTER DATABASE postgres SET otp.workspace = 'default';"
	  . "UPDATE otp.workspaces SET whatsapp_account = (SELECT account_id FROM otp.provider_accounts WHERE name = 'meta');"
	  . "INSERT INTO otp.templates (workspace_id, name, language) SELECT workspace_id, 'many_200', 'en_US'"
	  . " FROM otp.workspaces WHERE name = 'other'; INSERT INTO otp.templates (workspace_id, name, language)"
	  . " VALUES (1, 'never_there', 'en_US')");
my $since = last_request;
sync_templates;
is($node->value("SELECT count(*) FROM otp.templates WHERE status = 'approved' AND name LIKE 'many%' AND workspace_id = 1"),
	230, 'the whole list is read');
cmp_ok(asked('list_templates', since => $since), '>=', 3, 'in pages');
is(template('news')->{status}, undef, 'only authentication templates are added');
is(template('otp_verification', language => 'de')->{status}, 'approved', 'in every language');
is(template('many_200', workspace => 'other')->{status},
	'approved', 'another workspace with the same account hears of its own');
is(template('many_1', workspace => 'other')->{status}, undef, 'and gets no others');
is(template('never_there')->{status}, 'missing', 'what Meta does not have is missing');
$error = $node->error_of("SELECT * FROM otp_send('" . phone . "', template => 'never_there')");
is($error->{sqlstate}, 'OT4T0', 'and cannot be sent');
like($error->{hint}, qr/otp\.create_template/, 'the hint says what to do');
is(template('one')->{status}, 'rejected', 'nothing else has changed');
create('never_there');
wait_for_status('never_there', 'pending');
pass('it can be created');

#
# There already: its status is looked up. A repeat does no harm, so none is avoided
#
$sim->config({
		templates => [ {
				name => 'there',
				language => 'en_US',
				components => [ { type => 'BODY' }, { type => 'FOOTER', code_expiration_minutes => 7 } ] } ] });
create('there', code_expiration_minutes => 9);
$row = wait_for_status('there', 'approved');
is($row->{code_expiration_minutes}, 7, 'one that is there already keeps its text, which the row tells');
$error = $node->error_of("SELECT otp.create_template('there')");
is($error->{sqlstate}, '42710', 'what is approved is not created again');
foreach my $do ({ reset => 'after' }, { reset => 'before' }, { truncate => \1 }, { raw => '<html>', status => 502 })
{
	my ($kind) = keys %$do;
	(my $name = "again_$kind" . ($do->{$kind} =~ /^\w+$/ ? "_$do->{$kind}" : '')) =~ s/\W//g;
	$sim->behave({ match => { account => $waba }, do => $do, times => 1 });
	create($name, code_expiration_minutes => 3);
	is(wait_for_status($name, 'pending')->{reason}, undef, "$name: created");
	is(at_meta($name)->{status}, 'PENDING', 'at Meta, too');
}
wait_for_jobs;
$sim->forget_rules;

#
# Errors: final ones are told, throttles and outages waited for
#
$sim->behave({ match => { account => $waba }, do => { code => 100, subcode => 2388039 }, times => 1 });
create('refused');
$row = wait_for_status('refused', 'error');
like($row->{reason}, qr/^Invalid parameter.*fbtrace_id/, "what Meta refuses has Meta's words");
$sim->behave({ match => { account => $waba }, do => { code => 190 }, times => 1 });
create('expired_token');
like(wait_for_status('expired_token', 'error')->{reason}, qr/access token/, 'an expired token is told');
is($node->value('SELECT open_breakers FROM otp.health'), 0, 'codes are not held up by that');
$sim->behave({ match => { account => $waba }, do => { code => 130429 }, times => 2 });
$since = last_request;
create('throttled');
poll_until { defined template('throttled')->{reason} } or die;
like(template('throttled')->{reason}, qr/Rate limit/, 'a throttle is told while it lasts');
is(template('throttled')->{status}, 'requested', 'and the request stands');
is(wait_for_status('throttled', 'pending')->{reason}, undef, 'until it is over');
is(asked('create_template', since => $since), 3, 'after two repeats');

$sim->config({ down => JSON::PP::true });
create('meanwhile');
$node->run('SELECT otp.sync_templates()');
poll_until { defined template('meanwhile')->{reason} } or die;
$node->restart;
create('later');
poll_until { defined template('later')->{reason} } or die;
is($node->value("SELECT count(*) FROM otp.outbox WHERE kind = 'job'"), 3, 'what Meta could not take is kept, through a restart');
$sim->config({ down => JSON::PP::false });
wait_for_status('meanwhile', 'pending');
wait_for_status('later', 'pending');
wait_for_jobs;
pass('and done when Meta is back');

# A crash between request and answer
$sim->behave({ match => { account => $waba }, do => { delay_ms => 2000 }, times => 1 });
$since = last_request;
create('crashed');
poll_until { $sim->counters->{delayed_now} } or die;
$node->stop('immediate');
$node->start;
is(wait_for_status('crashed', 'pending')->{reason}, undef, 'a crash during a request: done again');
wait_for_jobs;

# An account that cannot be used any more
$node->run("BEGIN; SELECT otp.create_template('without'); SELECT otp.sync_templates();"
	  . "UPDATE otp.workspaces SET whatsapp_account = NULL WHERE workspace_id = 1; COMMIT");
like(wait_for_status('without', 'error')->{reason}, qr/no Meta account/, 'without an account, nothing can be asked');
wait_for_jobs;
pass('and no job stays');
$node->run("UPDATE otp.workspaces SET whatsapp_account = (SELECT account_id FROM otp.provider_accounts WHERE name = 'meta')");

#
# The text of a message fits the life of its code
#
create('login', code_expiration_minutes => 5);
create('login_10', code_expiration_minutes => 10, variant_of => 'login');
create('login_15', code_expiration_minutes => 15, variant_of => 'login');
wait_for_status($_, 'pending') foreach qw(login login_10 login_15);
decide('APPROVED', qw(login login_10));
sync_templates;

# Which template does the phone see?
sub seen
{
	my (%args) = @_;
	my $phone = phone;
	my $id = $node->send($phone, template => 'login', %args);
	my ($message) = $sim->wait_for_messages(phone => $phone);

	is($node->status($id)->{template}, 'login', 'the one that was asked for is kept');
	return JSON::PP->new->utf8->decode($message->{raw})->{template}{name};
}

is(seen(expires_in => 300), 'login', 'five minutes: as asked for');
is(seen(expires_in => 600), 'login_10', 'ten minutes: the variant that says so');
is(seen(expires_in => 900), 'login_10', 'fifteen: the nearest that is approved');
is(seen(expires_in => 450), 'login', 'as near to both: the shorter one');
my $warning = $node->error_of("SELECT * FROM otp_send('" . phone . "', template => 'login', expires_in => 900)", warning => 1);
like($warning->{message}, qr/"login_10".* 10 minutes.* 900 seconds/, 'which a warning tells');
is($node->error_of("SELECT * FROM otp_send('" . phone . "', template => 'login', expires_in => 600)", warning => 1),
	undef, 'there is none when it fits');
decide('APPROVED', 'login_15');
sync_templates;
is(seen(expires_in => 900), 'login_15', 'approved, it is used at once');
decide('PAUSED', 'login_15');
sync_templates;
is(seen(expires_in => 900), 'login_10', 'and not when it is not any more');

#
# The sender waits for nobody who holds a template
#
$session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe("UPDATE otp.templates SET variant_of = NULL WHERE name = 'login_15'");
$since = last_request;
$node->run("SELECT otp.sync_templates()");
create('while_locked');
poll_until { asked('list_templates', since => $since) && asked('create_template', since => $since) } or die;
my $start = time;
my @sent = map { seen(expires_in => 300) } 1 .. 5;
cmp_ok(time - $start, '<', 3, 'codes go on while a template is locked');
is(template('login_15')->{status}, 'paused', 'what is locked is not written');
wait_for_status('while_locked', 'pending');
is($node->value("SELECT payload FROM otp.outbox WHERE kind = 'job'"),
	'{"do":"sync_templates"}', 'other templates are not held up');
my $checked_at = template('login_15')->{checked_at};
$session->query_safe('COMMIT');
wait_for_jobs;
isnt(template('login_15')->{checked_at}, $checked_at, 'and it is written as soon as it is free');
decide('APPROVED', 'login_15');
sync_templates;

#
# What a webhook tells, for those who hold no template and those who do
#
sub post_status
{
	my ($name, $event) = @_;
	my $body = JSON::PP->new->encode({
			object => 'whatsapp_business_account',
			entry => [ {
					id => $waba,
					changes => [ {
							field => 'message_template_status_update',
							value => {
								event => $event,
								message_template_id => 1689556908129832,
								message_template_name => $name,
								message_template_language => 'en-US',
								reason => 'INCORRECT_CATEGORY' } } ] } ] });
	my $signature = 'sha256=' . hmac_sha256_hex($body, $sim->app_secret);

	return $node->value("SELECT otp.receive_meta('meta', convert_to('$body', 'UTF8'), '$signature')");
}

is(post_status('login_10', 'PAUSED'), 1, 'Meta says that a template is paused');
$row = wait_for_status('login_10', 'paused');
is($row->{template_id}, '1689556908129832', 'which the row tells');
is($row->{reason}, 'INCORRECT_CATEGORY', 'and why');
is(seen(expires_in => 600), 'login', 'it is used no more');
post_status('login_10', 'REINSTATED');
wait_for_status('login_10', 'approved');
is(seen(expires_in => 600), 'login_10', 'until Meta says so');
$session->query_safe('BEGIN');
$session->query_safe("SELECT 1 FROM otp.templates WHERE name = 'login_10' FOR UPDATE");
post_status('login_10', 'DISABLED');
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM otp.outbox WHERE kind = 'job'") or die;
post_status('login', 'PENDING');
wait_for_status('login', 'pending');
pass('one that is locked keeps no other waiting');
is(template('login_10')->{status}, 'approved', 'it is not written');
$session->query_safe('COMMIT');
wait_for_status('login_10', 'disabled');
pass('but when it is free');
wait_for_jobs;
$session->quit;

# What is of no kind is dropped
my $log = -s $node->logfile;
$node->run(<<'END');
CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.payload := '{"do":"nothing"}';
	RETURN NEW;
END $$;
CREATE TRIGGER other BEFORE INSERT ON otp.outbox FOR EACH ROW EXECUTE FUNCTION other();
SELECT otp.sync_templates();
DROP TRIGGER other ON otp.outbox;
END
wait_for_jobs;
like(slurp_file($node->logfile, $log), qr/job of the outbox is dropped/, 'a job of no known kind is dropped, and logged');
unlike(slurp_file($node->logfile), qr/(PANIC|FATAL.*otp|EAAtest)/, 'nothing bad in the log');

$node->stop;
done_testing();
