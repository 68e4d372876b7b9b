# 240_http_clients.pl
#	Programs that speak REST find what they expect.
#
# Our clients for Node and Python, @supabase/postgrest-js, and a client that
# openapi-typescript generates from /openapi.json, all against the live
# listener. Protects the shapes of requests and answers from drifting away
# from those who use them, and the clients' own promises: codes of errors,
# repeats that send no second code, webhooks that are checked.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use HTTP::Tiny;
use OTP::Cluster;
use OTP::Wait;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = abs_path(dirname(__FILE__) . '/../clients');
my $fetched = $ENV{OTP_CLIENTS} or BAIL_OUT('OTP_CLIENTS is the folder with the libraries that npm has fetched');

my $port = PostgreSQL::Test::Cluster::get_free_port();
my $node = OTP::Cluster->start(
	'main',
	conf => [ 'otp.allow_private_webhooks = on', "otp.http_port = $port", "otp.http_listen_addresses = '127.0.0.1'" ]);
$node->install;
$node->lift_limits;

my $code = '482915';
my %outcomes = (
	delivered => 1,
	sms_fallback => 2,
	rate_limit_exceeded => 3,
	meta_api_unavailable => 4,
	insufficient_credits => 5,
	failed => 6,
	pending => 7);
$node->run("SELECT otp.set_test_number('+1555012400$outcomes{$_}', '$code', '$_')") foreach sort keys %outcomes;

my $url = "http://127.0.0.1:$port";
poll_until { HTTP::Tiny->new(timeout => 10)->get("$url/healthz")->{success} };
my %environment = (
	%ENV,
	OTP_URL => $url,
	OTP_CODE => $code,
	OTP_API_KEY => $node->value("SELECT api_key FROM otp.create_api_key('default', 'clients')"),
	OTP_ADMIN_KEY => $node->value("SELECT api_key FROM otp.create_api_key('default', 'admin', admin => true)"),
	NODE_PATH => "$fetched/node_modules",
	LC_ALL => 'C.UTF-8');

# Run a program, and make its lines ours
sub tells
{
	my ($name, @command) = @_;
	my ($out, $err) = ('', '');
	local %ENV = %environment;

	my $fine = IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(300));
	my $lines = 0;
	while ($out =~ /^(not )?ok - (.*)$/mg)
	{
		ok(!$1, "$name: $2");
		$lines++;
	}
	ok($fine && $lines > 0 && $out =~ /^done$/m, "$name went through") or diag("$out\n$err");
	diag($out) if $out =~ /^not ok/m;
	return;
}

tells('Node', 'node', "$clients/node.mjs");
tells('Python', 'python3', "$clients/python.py");
tells('signatures', 'node', "$clients/signatures.mjs");
tells('postgrest-js', 'node', "$clients/postgrest.mjs");

# Generate, compile strictly, run
my $dir = PostgreSQL::Test::Utils::tempdir();
my $document = HTTP::Tiny->new(timeout => 60)->get("$url/openapi.json");
is($document->{status}, 200, 'the document is there');
append_to_file("$dir/openapi.json", $document->{content});
symlink("$fetched/node_modules", "$dir/node_modules") or BAIL_OUT("symlink: $!");
append_to_file("$dir/package.json", '{"type": "module"}');
foreach my $file (qw(generated.ts types.ts say.mjs))
{
	my $text = slurp_file("$clients/$file");

	# They move, and find each other all the same
	$text =~ s{'\.\./\.\./clients/node/index\.js'}{'$clients/../../clients/node/index.js'}g;
	append_to_file("$dir/$file", $text);
}

# Are these commands fine?
sub runs
{
	my ($name, @command) = @_;
	my ($out, $err) = ('', '');
	local %ENV = %environment;

	ok(IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(300)), $name)
	  or diag("$out\n$err");
	return;
}

my $bin = "$fetched/node_modules";
runs('a client is generated', 'node', "$bin/openapi-typescript/bin/cli.js", "$dir/openapi.json",
	'-o', "$dir/schema.d.ts");
append_to_file("$dir/say.d.mts", <<'END');
export function assert(value: unknown, message?: string): asserts value;
export namespace assert { function equal(a: unknown, b: unknown, message?: string): void; }
export function test(name: string, body: () => unknown): Promise<void>;
export function done(): void;
export const env: { url?: string; key?: string; admin?: string; code?: string };
export const phones: Record<'delivered' | 'sms_fallback' | 'rate_limit_exceeded' | 'pending', string>;
END
my @compile = (
	'node', "$bin/typescript/lib/tsc.js",
	qw(--strict --target es2022 --module nodenext --moduleResolution nodenext --lib),
	'es2022,dom,dom.iterable', '--skipLibCheck', 'false', '--outDir', "$dir/out");
runs('it compiles, strictly', @compile, "$dir/generated.ts");
runs('and the types of our own client keep what they promise', @compile, '--noEmit', "$dir/types.ts");
append_to_file("$dir/out/say.mjs", slurp_file("$clients/say.mjs"));
symlink("$fetched/node_modules", "$dir/out/node_modules");
tells('generated', 'node', "$dir/out/generated.js");

# Nobody has told the log a phone, a code or a key
my $log = slurp_file($node->logfile);
unlike($log, qr/\+?1555012400/, 'no phone is in the log');
unlike($log, qr/$code/, 'no code is in the log');
unlike($log, qr/oat_[0-9A-Za-z]{32}/, 'no key is in the log');

$node->stop;
done_testing();
