# credits.sh
#	otp_send with credits, in transactions per second.
#
# Delivery is off: this is the caller's half alone. Eight senders of one metered
# workspace against the same eight of one that is not, in turns; then the same
# while eight idle transactions each hold a stripe.

part_credits() {
	local value round transactions=3000 clients=8
	[ -z "$quick" ] || transactions=1000
	local metered=() free=() held=()

	forget
	sql "SELECT otp.add_credits('default', 1000000000)" >/dev/null
	credits_run true $((transactions / 4)) >/dev/null
	credits_run false $((transactions / 4)) >/dev/null
	for ((round = 1; round <= rounds; round++)); do
		working "credits: round $round"
		value=$(credits_run true "$transactions")
		metered+=("$value")
		value=$(credits_run false "$transactions")
		free+=("$value")
		credits_empty true
		credits_hold
		value=$(pgbench_tps "$here/script/send.sql" "$clients" "$transactions")
		held+=("$value")
		credits_release
	done
	sql "UPDATE otp.workspaces SET credits_metered = false"
	result_of_rounds "otp_send, metered : not metered, $clients clients" /s '>= 0.8' metered free
	result_of_rounds "otp_send, metered, 8 stripes held : not metered, $clients clients" /s '' held free
}

# Prepare one side: metered or not
credits_empty() {
	sql "UPDATE otp.workspaces SET credits_metered = $1" "TRUNCATE otp.outbox, otp.verifications"
}

# Run one side: metered or not, transactions of each client
credits_run() {
	credits_empty "$1"
	pgbench_tps "$here/script/send.sql" "$clients" "$2"
}

# Have eight transactions hold a stripe each, and do nothing
credits_hold() {
	local i
	holders=()
	for i in 1 2 3 4 5 6 7 8; do
		psql -X -q -o /dev/null -c 'BEGIN' -c "SELECT otp_send('+1555016000$i')" -c 'SELECT pg_sleep(600)' &
		holders+=($!)
	done
	until [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%'")" = 8 ]; do
		sleep 0.05
	done
}

# Let them go
credits_release() {
	sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%'" >/dev/null
	wait "${holders[@]}" 2>/dev/null || true
}
