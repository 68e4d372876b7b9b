# measure.sh
#	What the parts have in common: SQL, pgbench, medians, the table.

results=()

# Run SQL as superuser; prints bare values
sql() {
	local statement statements=()
	for statement in "$@"; do
		statements+=(-c "$statement")
	done
	psql -X -q -A -t -v ON_ERROR_STOP=1 "${statements[@]}"
}

# Ask the simulator: method, path, body
simulator() {
	perl -MHTTP::Tiny -e '
		my ($method, $url, $body) = @ARGV;
		my $http = HTTP::Tiny->new(timeout => 120, proxy => undef, http_proxy => undef, https_proxy => undef);
		my $r = $http->request($method, $url, defined $body ? { content => $body } : {});
		$r->{success} or die "simulator: $method $url: $r->{status} $r->{content}\n";
		print $r->{content};' "$1" "$simulator_url/_sim/$2" "${@:3}"
}

# Start a simulator, and have the database send to it: its options
simulator_use() {
	simulator_stop
	simulator_start "$@"
	sql "SELECT otp.configure_meta(phone_number_id => '106540352242922', access_token => 'EAAtest-token',
			base_url => '$simulator_url')" >/dev/null
}

# Switch delivery: on or off
delivery() {
	sql "ALTER SYSTEM SET otp.delivery = $1" "SELECT pg_reload_conf()" >/dev/null
}

# Queue codes: how many
queue() {
	sql "CALL bench.queue($1)"
}

# Begin anew: no code, and a sender that remembers none. Delivery is off then.
forget() {
	local pid
	delivery off
	sql "TRUNCATE otp.verifications, otp.messages, otp.outbox, otp.webhook_outbox, otp.webhook_attempts"
	pid=$(sql "SELECT sender_pid FROM otp.worker_status()")
	[ -z "$pid" ] || sql "SELECT pg_terminate_backend($pid)" >/dev/null
	until [ "$(sql "SELECT sender_pid IS NOT NULL AND sender_pid <> ${pid:-0} FROM otp.worker_status()")" = t ]; do
		sleep 0.05
	done
}

# Make codes that are known to be 123456, an ordinary phone each, in bench.fresh and numbered in
# bench.guesses; leaf is where they are: count
fresh_codes() {
	sql "SELECT otp.set_test_number('+919999999999', '123456')" \
		"CREATE TABLE bench.guesses AS
			SELECT row_number() OVER (ORDER BY s.otp_id) AS n, s.otp_id, otp.parse_id(s.otp_id) AS id
			FROM generate_series(1, $1) c, otp_send('+919999999999' || left('', c)) s" \
		"SELECT otp.set_test_number('+919999999999', NULL)" \
		"ALTER TABLE bench.guesses ADD PRIMARY KEY (n)" \
		"GRANT SELECT ON bench.guesses TO app" \
		"CREATE TABLE bench.fresh AS SELECT v.* FROM otp.verifications v ORDER BY v.id" \
		"UPDATE bench.fresh SET phone = bench.phone(), test_outcome = NULL" \
		"VACUUM ANALYZE bench.guesses" >/dev/null
	leaf=$(sql "SELECT lpad(min(slot)::text, 2, '0') FROM bench.fresh HAVING min(slot) = max(slot)")
	[ -n "$leaf" ] || fail 'Midnight (UTC) has passed just now: start again.'
}

# Run pgbench as the application's role; prints transactions per second:
# script, clients, transactions of each, variables
pgbench_tps() {
	local script=$1 clients=$2 transactions=$3 log=$place/log/pgbench
	shift 3
	local variable variables=()
	for variable in "$@"; do
		variables+=(-D "$variable")
	done
	sql CHECKPOINT
	if ! PGUSER=app PGOPTIONS='-c plan_cache_mode=force_generic_plan' \
		pgbench -n -M prepared -c "$clients" -j "$((clients < 2 ? clients : 2))" -t "$transactions" \
		-f "$script" "${variables[@]}" >"$log" 2>&1 || grep -q 'aborted' "$log"; then
		fail 'pgbench has stopped.' "$(tail -n 20 "$log")"
	fi
	sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$log"
}

# Print the median of numbers
median() {
	printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# Print a over b
ratio() {
	awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", b == 0 ? 0 : a / b }'
}

# Keep a line of the table: what, figure, baseline, ratio, aim
result() {
	results+=("$(printf '%s\t%s\t%s\t%s\t%s' "$1" "$2" "$3" "$4" "$5")")
	done_line "$1: $2${3:+ : $3}" "$4"
}

# Keep a line from rounds measured in turns: what, unit, aim, names of the two arrays
result_of_rounds() {
	local -n figures=$4 baselines=$5
	local i ratios=()
	for i in "${!figures[@]}"; do
		ratios+=("$(ratio "${figures[i]}" "${baselines[i]}")")
	done
	result "$1" "$(printf '%.0f%s' "$(median "${figures[@]}")" "$2")" "$(printf '%.0f%s' "$(median "${baselines[@]}")" "$2")" \
		"$(median "${ratios[@]}")" "$3"
}

# Print the table
table() {
	local line what figure baseline share aim
	printf '\n%s%-62s %14s %14s %7s  %s%s\n' "$bold" 'what' 'otp' 'baseline' 'ratio' 'aim' "$plain"
	for line in "${results[@]}"; do
		# a tab is white space to read: two of them in a row would count as one
		IFS=$'\x1f' read -r what figure baseline share aim <<<"${line//$'\t'/$'\x1f'}"
		printf '%-62s %14s %14s %7s  %s\n' "$what" "$figure" "$baseline" "$share" "$aim"
	done
	printf '\n%s cores, PostgreSQL %s, fsync on; median of %s rounds in turns, each ratio of neighbours; %s in all\n' \
		"$(nproc)" "$pg_version" "$rounds" "$(seconds $(($(now_ms) - $1)))"
}

# Send what is queued, and print messages per second: count, count to stop the clock at
drain_queue() {
	local base seconds wanted=${2:-$1}
	sql "VACUUM ANALYZE otp.outbox" CHECKPOINT
	until [ "$(sql "SELECT sender_pid IS NOT NULL AND in_flight = 0 FROM otp.worker_status()")" = t ]; do
		sleep 0.05
	done
	base=$(sql "SELECT accepted FROM otp.worker_status()")
	seconds=$(sql "ALTER SYSTEM SET otp.delivery = on" "SELECT 1 FROM pg_reload_conf()" "CALL bench.wait_accepted($wanted, $base, NULL)" | tail -n 1)
	awk -v n="$wanted" -v s="$seconds" 'BEGIN { print n / s }'
	sql "CALL bench.wait_accepted($1, $base, NULL)" >/dev/null
}

# Queue so many, and send them; prints messages per second: count, count to stop the clock at
drain() {
	forget
	queue "$1"
	drain_queue "$@"
}
