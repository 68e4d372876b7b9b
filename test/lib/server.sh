# server.sh
#	A throw-away server and a simulator beside it.

server_data='' simulator_pid='' simulator_url=''

# Make a server and start it: its directory; the socket goes into the place
server_start() {
	server_data=$1
	initdb -D "$server_data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync --no-instructions
	{
		cat "$place/source/test/lib/server.conf"
		printf "unix_socket_directories = '%s'\n" "$place"
		[ $# -lt 2 ] || printf '%s\n' "${@:2}"
	} >>"$server_data/postgresql.conf"
	pg_ctl -D "$server_data" -l "$place/log/server.log" -w -s start
}

# Stop the server at once: nobody needs it again
server_stop() {
	if [ -n "$server_data" ] && [ -e "$server_data/postmaster.pid" ]; then
		pg_ctl -D "$server_data" -m immediate -s stop || true
	fi
	server_data=''
}

# Start the simulator: its options
simulator_start() {
	local file=$place/simulator.port
	rm -f "$file"
	setsid "$place/source/test/simulator/simulator" --port-file="$file" "$@" \
		>"$place/log/simulator.log" 2>&1 </dev/null &
	simulator_pid=$!
	while [ ! -s "$file" ]; do
		kill -0 "$simulator_pid" 2>/dev/null ||
			fail 'The simulator does not start.' "$(tail -n 5 "$place/log/simulator.log")"
		sleep 0.02
	done
	simulator_url=http://127.0.0.1:$(cat "$file")
}

# Stop the simulator
simulator_stop() {
	[ -z "$simulator_pid" ] || kill "$simulator_pid" 2>/dev/null || true
	[ -z "$simulator_pid" ] || wait "$simulator_pid" 2>/dev/null || true
	simulator_pid=''
}

# Ask the simulator: path under /_sim/
simulator_get() {
	perl -MHTTP::Tiny -e '
		my $r = HTTP::Tiny->new(timeout => 60, http_proxy => undef, proxy => undef)->get($ARGV[0]);
		die "simulator: $r->{status} $r->{content}\n" unless $r->{success};
		print $r->{content}' "$simulator_url/_sim/$1"
}

# Tell the simulator: path under /_sim/, JSON
simulator_post() {
	perl -MHTTP::Tiny -e '
		my $r = HTTP::Tiny->new(timeout => 60, http_proxy => undef, proxy => undef)->post($ARGV[0],
			{ content => $ARGV[1], headers => { "Content-Type" => "application/json" } });
		die "simulator: $r->{status} $r->{content}\n" unless $r->{success}' "$simulator_url/_sim/$1" "$2"
}

# Wait for a message to a phone and print channel, code and time of arrival
simulator_message() {
	simulator_get "inbox?phone=%2B${1#+}&wait_ms=20000" | perl -MJSON::PP -0777 -ne '
		my $m = decode_json($_)->[-1] or exit 1;
		print join(" ", $m->{channel}, $m->{code}, $m->{received_at}), "\n"'
}

# Count what pg_regress printed into a file: good and bad tests. 16 and later speak TAP.
regress_count() {
	sed -n -e 's/^\(ok\|not ok\) [0-9]* .*/\1/p' \
		-e 's/^\(test\|    \).* \.\.\. \(ok\|FAILED\) .*/\2/p' "$1" | sort | uniq -c |
		awk '$2 == "ok" { good += $1 } $2 != "ok" { bad += $1 } END { print good + 0, bad + 0 }'
}
