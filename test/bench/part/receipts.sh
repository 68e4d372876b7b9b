# receipts.sh
#	How fast receipts are taken, and how fast the sender applies them.
#
# Each message has three: sent, delivered, read, as Meta writes them. Bodies are
# made and signed before the run, and read from a table by both sides. Taken: with
# delivery off, so this is the caller's half alone. The baseline checks the same
# signature by pgcrypto's hmac and inserts the body as it is; it reads nothing out
# of it.
#
# Applied: the clock runs from switching delivery on until no receipt is queued.
# What they say is forgotten before each run, so that all of it is written again.

part_receipts() {
	local value size round calls count=${quick:+3000}
	local -a otp bare applied sent=()
	count=${count:-36000}
	simulator_use --sink
	sql "GRANT EXECUTE ON FUNCTION otp.receive_meta TO app"
	psql -X -q -v ON_ERROR_STOP=1 -f "$here/script/receive_setup.sql"
	working 'receipts: messages are sent'
	value=$(drain "$count")
	sent+=("$value")
	delivery off
	sql "CALL bench.make_bodies(1, $((count / 3)))" "CALL bench.make_bodies(100, $count)" \
		"VACUUM ANALYZE bench.bodies"

	for size in 1 100; do
		otp=() bare=() applied=()
		calls=$(sql "SELECT count(*) FROM bench.bodies WHERE size = $size")

		# both sides warm
		receive_run receive "$size" $((calls / 4)) >/dev/null
		receive_run receive_bare "$size" $((calls / 4)) >/dev/null
		for ((round = 1; round <= rounds; round++)); do
			working "receipts: calls of $size, round $round"
			value=$(receive_run receive_bare "$size" "$calls")
			bare+=("$value")
			value=$(receive_run receive "$size" "$calls")
			otp+=("$value")
			value=$(receipts_applied "$size" "$calls")
			applied+=("$value")
		done
		result_of_rounds "receipts taken, calls of $size, 8 clients : hmac and an INSERT" /s '' otp bare
		result "receipts applied by the sender, from calls of $size" "$(printf '%.0f/s' "$(median "${applied[@]}")")" '' '' ''
	done
	simulator_stop
	sql "DROP TABLE bench.bodies, bench.taken" "DROP PROCEDURE bench.make_bodies"
	forget
}

# Run one side, and print statuses per second: script, statuses of a call, calls
receive_run() {
	delivery off
	sql "DELETE FROM otp.outbox WHERE kind = 'receipts'" "TRUNCATE bench.taken" "VACUUM ANALYZE otp.outbox"
	pgbench_tps "$here/script/$1.sql" 8 $(($3 / 8)) i=0 "size=$2" | awk -v size="$2" '{ print $1 * size }'
}

# Have the sender apply what was taken, and print statuses per second: statuses of a call, calls
receipts_applied() {
	local first seconds told wanted=$(($2 / 8 * 8))
	sql "UPDATE otp.messages SET delivered_at = NULL, pricing_category = NULL" "VACUUM ANALYZE otp.messages" \
		"VACUUM ANALYZE otp.outbox" CHECKPOINT
	first=$(sql "SELECT min(xid) FROM otp.outbox WHERE kind = 'receipts' HAVING count(*) = $wanted")
	[ -n "$first" ] || fail "Not all of $wanted calls have left a row in the outbox."
	seconds=$(sql "ALTER SYSTEM SET otp.delivery = on" "SET enable_seqscan = off" "SELECT 1 FROM pg_reload_conf()" \
		"CALL bench.wait_receipts($first, NULL)" | tail -n 1)
	told=$(sql "SELECT count(delivered_at) FROM otp.messages")
	[ "$told" -ge $((wanted * $1 / 3 - $1)) ] || fail "Of $((wanted * $1)) receipts, only $told messages were delivered."
	awk -v n=$((wanted * $1)) -v s="$seconds" 'BEGIN { print n / s }'
}
