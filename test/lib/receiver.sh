# receiver.sh
#	The web tier of test/receiver: its libraries, and one that runs.

receiver_pid='' receiver_url='' receiver_input=''

# Start the receiver and wait for its port: more options. It ends with us when they have --die-with-parent.
receiver_start() {
	local file=$place/receiver.port
	rm -f "$file"
	exec {receiver_input}> >(NODE_PATH=$place/node/node_modules exec setsid \
		node "$place/source/test/receiver/receiver.js" --port-file="$file" "$@" >"$place/log/receiver.log" 2>&1)
	receiver_pid=$!
	while [ ! -s "$file" ]; do
		kill -0 "$receiver_pid" 2>/dev/null ||
			fail 'The receiver does not start.' "$(tail -n 5 "$place/log/receiver.log")"
		sleep 0.02
	done
	receiver_url=http://127.0.0.1:$(cat "$file")
}

# Stop the receiver
receiver_stop() {
	[ -z "$receiver_pid" ] || kill "$receiver_pid" 2>/dev/null || true
	receiver_pid=''
}

# Ask the receiver: path under /_rx/
receiver_get() {
	perl -MHTTP::Tiny -e '
		my $r = HTTP::Tiny->new(timeout => 120, http_proxy => undef, proxy => undef)->get($ARGV[0]);
		die "receiver: $r->{status} $r->{content}\n" unless $r->{success};
		print $r->{content}' "$receiver_url/_rx/$1"
}

# Tell the receiver: path under /_rx/, JSON
receiver_post() {
	perl -MHTTP::Tiny -e '
		my $r = HTTP::Tiny->new(timeout => 120, http_proxy => undef, proxy => undef)->post($ARGV[0],
			{ content => $ARGV[1], headers => { "Content-Type" => "application/json" } });
		die "receiver: $r->{status} $r->{content}\n" unless $r->{success}' "$receiver_url/_rx/$1" "$2"
}
