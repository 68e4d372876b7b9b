# http.sh
#	The HTTP API, in requests per second, and how long they take.
#
# wrk posts over kept-alive connections to the listener; the baselines are
# the same verb by pgbench, as many clients as wrk has connections, and a web
# tier of one's own in front of ten backends, as pg has them. All on the same
# cores: wrk, pgbench and the servers take from each other.
#
# A guess is right, at a code of its own, as in the part verify. A send is
# answered once it is queued (otp.http_send_wait = 0), for so does the verb;
# that delivery is off makes both sides the caller's half. The last rows are
# sends that wait until the provider, the simulator, has taken the message.

http_connections=32
http_threads=2
http_pool=10

part_http() {
	local count round value name verb
	count=${quick:+4000}
	count=${count:-24000}
	forget
	sql "TRUNCATE otp.phone_failures"
	fresh_codes "$count"
	psql -X -q -A -t -c "SELECT otp_id FROM bench.guesses ORDER BY n" >"$place/ids"
	key=$(sql "SELECT api_key FROM otp.create_api_key('default', 'bench')")
	sql "SET client_min_messages = error; ALTER DATABASE bench SET otp.http_listen_addresses = '127.0.0.1'" \
		"ALTER DATABASE bench SET otp.http_workers = 2" "ALTER DATABASE bench SET otp.http_send_wait = 0"
	http_on
	http_web_start

	for verb in verify send; do
		local otp=() otp50=() otp99=() libpq=() libpq50=() libpq99=() web=() web50=() web99=()
		http_run "$verb" "$http_url" >/dev/null
		for ((round = 1; round <= rounds; round++)); do
			working "http: $verb, round $round"
			read -r -a value <<<"$(http_run "$verb" "$http_url")"
			otp+=("${value[0]}") otp50+=("${value[1]}") otp99+=("${value[2]}")
			read -r -a value <<<"$(http_pgbench "$verb")"
			libpq+=("${value[0]}") libpq50+=("${value[1]}") libpq99+=("${value[2]}")
			read -r -a value <<<"$(http_run "$verb" "$http_web_url")"
			web+=("${value[0]}") web50+=("${value[1]}") web99+=("${value[2]}")
		done
		result_of_rounds "HTTP, $verb : pgbench" /s '>= 0.6' otp libpq
		result_of_rounds "HTTP, $verb : http and pg in Node" /s '>= 2' otp web
		result_of_rounds "HTTP, $verb, p50 : pgbench" ' us' '' otp50 libpq50
		result_of_rounds "HTTP, $verb, p99 : pgbench" ' us' '' otp99 libpq99
		result_of_rounds "HTTP, $verb, p50 : http and pg in Node" ' us' '' otp50 web50
		result_of_rounds "HTTP, $verb, p99 : http and pg in Node" ' us' '' otp99 web99
	done
	http_web_stop

	# Until the provider has it
	forget
	sql "SET client_min_messages = error; ALTER DATABASE bench RESET otp.http_send_wait"
	http_off
	simulator_use
	http_on
	delivery on
	local waited=() waited50=() waited99=()
	for ((round = 1; round <= rounds; round++)); do
		working "http: send and wait, round $round"
		read -r -a value <<<"$(http_run send_wait "$http_url")"
		waited+=("${value[0]}") waited50+=("${value[1]}") waited99+=("${value[2]}")
	done
	result 'HTTP, send, answered when the provider has taken it' "$(printf '%.0f/s' "$(median "${waited[@]}")")" '' '' ''
	result 'the same, p50 and p99' "$(median "${waited50[@]}") us" "$(median "${waited99[@]}") us" '' ''
	http_off
	simulator_stop
	sql "DROP TABLE bench.guesses, bench.fresh" "TRUNCATE otp.phone_failures"
	forget
}

# Have the listener listen, and wait for it
http_on() {
	http_port=$(perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 1)->sockport')
	http_url=http://127.0.0.1:$http_port
	sql "ALTER DATABASE bench SET otp.http_port = $http_port"
	http_wait "$http_url/healthz"
}

http_off() {
	sql "ALTER DATABASE bench RESET otp.http_port"
	while perl -MIO::Socket::INET -e 'exit(IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $ARGV[0]) ? 0 : 1)' "$http_port"; do
		sleep 0.05
	done
}

# Wait until an address answers at all
http_wait() {
	perl -MHTTP::Tiny -MTime::HiRes=sleep -e '
		my $http = HTTP::Tiny->new(timeout => 5, proxy => undef, http_proxy => undef);
		for (1 .. 1200) { exit 0 if $http->get($ARGV[0])->{status} != 599; sleep 0.05 }
		exit 1' "$1" || fail "Nobody listens at $1."
}

# The web tier of one's own
http_web_start() {
	rm -f "$place/web.port"
	NODE_PATH=$place/node/node_modules node "$here/server.js" "$place" bench app "$http_pool" \
		"$place/web.port" >"$place/log/web" 2>&1 &
	http_web_pid=$!
	trap 'kill "$http_web_pid" 2>/dev/null; simulator_stop; server_stop' EXIT
	until [ -s "$place/web.port" ]; do
		kill -0 "$http_web_pid" 2>/dev/null || fail 'The web tier does not start.' "$(tail -n 5 "$place/log/web")"
		sleep 0.05
	done
	http_web_url=http://127.0.0.1:$(cat "$place/web.port")
}

http_web_stop() {
	kill "$http_web_pid" 2>/dev/null || true
	wait "$http_web_pid" 2>/dev/null || true
}

# Make the rows be as at first
http_rows() {
	until [ "$(sql "SELECT ledger_used FROM otp.worker_status()")" = 0 ]; do
		sleep 0.1
	done
	sql "TRUNCATE otp.outbox, otp.phone_failures"
	[ "$1" = verify ] || return 0
	sql "TRUNCATE otp.verifications_$leaf" \
		"UPDATE bench.fresh SET expires_at = now() + interval '15 min' WHERE expires_at < now() + interval '5 min'" \
		"INSERT INTO otp.verifications SELECT * FROM bench.fresh ORDER BY id" \
		"VACUUM ANALYZE otp.verifications_$leaf"
}

# Run wrk; prints requests per second, p50 and p99 in microseconds: verb, URL
http_run() {
	local path=verify requests seconds p50 p99 refused broken arguments=()
	case $1 in
		verify) arguments=("$place/ids" "$http_threads") seconds=$((count / 2000 + 2)) ;;	# until all are used up
		send*) path=send seconds=$([ -n "$quick" ] && echo 2 || echo 6) ;;
	esac
	http_rows "$1"
	sql CHECKPOINT
	wrk -t "$http_threads" -c "$http_connections" -d "${seconds}s" --timeout 60s \
		-s "$here/script/http.lua" "$2/v1/whatsapp/otp/$path" -- "$key" "$path" "${arguments[@]}" \
		>"$place/log/wrk" 2>&1 ||
		fail 'wrk has stopped.' "$(tail -n 20 "$place/log/wrk")"
	read -r requests seconds p50 p99 refused broken <<<"$(sed -n 's/^result //p' "$place/log/wrk")"
	[ "$1" != verify ] || [ "$requests" = "$count" ] || fail "Of $count codes, $requests were asked for."
	[ "$refused" -le "$http_connections" ] && [ "$broken" = 0 ] || fail "Of $requests requests, $refused were refused and $broken broke."
	awk -v n="$requests" -v s="$seconds" -v a="$p50" -v b="$p99" 'BEGIN { print n / s, a, b }'
}

# Run pgbench with as many clients; prints the same: verb
http_pgbench() {
	local transactions=$((count / http_connections)) tps
	http_rows "$1"
	sql CHECKPOINT
	rm -f "$place"/latency.*
	PGUSER=app PGOPTIONS='-c plan_cache_mode=force_generic_plan' \
		pgbench -n -M prepared -c "$http_connections" -j "$http_threads" -t "$transactions" -f "$here/script/$1.sql" \
		-D i=0 -D first=1 -D "clients=$http_connections" -D code=123456 -D "hi0=$(($(now_ms) << 16))" \
		-l --log-prefix="$place/latency" >"$place/log/pgbench" 2>&1 ||
		fail 'pgbench has stopped.' "$(tail -n 20 "$place/log/pgbench")"
	tps=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$place/log/pgbench")
	cat "$place"/latency.* | awk '{ print $3 }' | sort -n |
		awk -v tps="$tps" '{ v[NR] = $1 } END { print tps, v[int(NR * 0.5) + 1], v[int(NR * 0.99) + 1] }'
}
