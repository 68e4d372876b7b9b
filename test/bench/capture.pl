# capture.pl
#	Take one HTTP request: capture.pl PORTFILE BODY HEADERS
#
# Writes the port that it listens to, then the body and those headers of the first
# request that a client sets itself, one a line.
use strict;
use warnings;

use IO::Socket::INET;

my ($port_file, $body_file, $header_file) = @ARGV;
my $server = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1') or die "listen: $!";

# Write a file
sub spill
{
	my ($path, $text) = @_;
	open my $out, '>', "$path.new" or die "$path: $!";
	print $out $text;
	close $out or die "$path: $!";
	rename "$path.new", $path or die "$path: $!";
	return;
}

spill($port_file, $server->sockport);
my $client = $server->accept or die "accept: $!";
my ($headers, $length, $body) = ('', 0, '');
while (defined(my $line = <$client>))
{
	$line =~ s/\r?\n\z//;
	last if $line eq '';
	$length = $1 if $line =~ /^Content-Length: *(\d+)/i;
	$headers .= "$line\n"
	  if $line =~ /^[\w-]+:/ && $line !~ /^(Host|Content-Length|Accept|Accept-Encoding|Connection):/i;
}
read $client, $body, $length;
print $client "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
close $client;
spill($header_file, $headers);
spill($body_file, $body);
