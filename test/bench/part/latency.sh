# latency.sh
#	From commit to the provider.
#
# The client notes the time when its COMMIT has returned, the simulator when
# the request has arrived: one machine, one clock. As the sender is woken by
# the commit itself, a request may arrive before the client has its answer;
# that counts as no time at all. The second figure counts from before COMMIT
# was sent, so it holds the commit's own flush, too.

part_latency() {
	local share=1
	[ -z "$quick" ] || share=8
	simulator_use --log-limit=2000000
	latency_run 'a send every 100 ms' aim 1 100000 $((200 / share))
	latency_run 'a send every 5 ms' aim 1 5000 $((4000 / share))
	latency_run '8 clients, 1,000 a second together' '' 8 8000 $((1500 / share))
	latency_run '8 clients flat out' '' 8 0 $((3000 / share))
	simulator_stop
}

# Measure one load: its name, whether the aim is for it, clients, microseconds between sends of each, sends of each
latency_run() {
	local name=$1 aim=$2 base figures
	shift 2
	working "latency: $name"

	# analyzed while all is empty, as a nightly VACUUM ANALYZE finds the next day's drawer: the plans must be
	# good all the same
	forget
	leaf=$(sql "SELECT bench.leaf()")
	sql "VACUUM ANALYZE otp.outbox" "VACUUM ANALYZE otp.verifications_$leaf" "VACUUM ANALYZE otp.messages_$leaf"
	delivery on

	# the sender's first ones, with plans and connections to be made, are not among those that count
	queue 20
	sql "CALL bench.wait_accepted(20, 0, NULL)" CHECKPOINT >/dev/null
	simulator DELETE log >/dev/null
	base=$(sql "SELECT accepted FROM otp.worker_status()")
	PGUSER=app "$place/commit_clock" "$1" "$2" "$3" >"$place/log/commits" 2>"$place/log/rate" ||
		fail 'The client has stopped.' "$(tail -n 5 "$place/log/rate")"
	sql "CALL bench.wait_accepted($(($1 * $3)), $base, NULL)" >/dev/null
	simulator GET log >"$place/log/arrivals"
	figures=$(perl "$here/arrivals.pl" "$place/log/commits" "$place/log/arrivals")
	# shellcheck disable=SC2086
	set -- $figures
	result "commit to arrival, $name: p50" "$1" '' '' "${aim:+<= 1 ms}"
	result "commit to arrival, $name: p99" "$2" '' '' "${aim:+<= 10 ms}"
	result "  from before COMMIT was sent: p50, p99, longest" "$3 $4 $5" '' '' ''
	result "  sends a second meanwhile" "$(cat "$place/log/rate")" '' '' ''
}
