# verify.sh
#	otp_verify, in transactions per second.
#
# Each run guesses once at each of a set of fresh codes. They are made by
# otp_send for a test number, so that the right code is known; then they are
# turned into ordinary ones: an own phone each, and no test_outcome. Every run
# begins with the same rows, an empty outbox and a checkpoint. A right guess
# queues a row there that tells the sender, and so does the baseline's.
#
# Delivery is off, but the sender writes the counts of wrong guesses back all
# the while: that belongs to the price of a wrong guess.

part_verify() {
	local value clients round transactions count name
	count=${quick:+3000}
	count=${count:-24000}
	forget
	sql "TRUNCATE otp.phone_failures"
	fresh_codes "$count"
	for name in verify_bare verify_bare_wrong verify_batch_function; do
		sed "s/LEAF/$leaf/g" "$here/script/$name.sql" >"$place/$name.sql"
	done
	psql -X -q -v ON_ERROR_STOP=1 -f "$place/verify_batch_function.sql"
	sql "VACUUM ANALYZE otp.messages_$leaf" "VACUUM ANALYZE otp.phone_failures"

	for clients in 1 8; do
		transactions=$((count / (clients == 1 ? 3 : 8)))
		local right=() wrong=() bare=() bare_wrong=() batch=()
		verify_run verify "$clients" $((transactions / 4)) 123456 >/dev/null
		verify_run verify_bare "$clients" $((transactions / 4)) 123456 >/dev/null
		for ((round = 1; round <= rounds; round++)); do
			working "verify: $clients clients, round $round"
			value=$(verify_run verify "$clients" "$transactions" 123456)
			right+=("$value")
			value=$(verify_run verify_bare "$clients" "$transactions" 123456)
			bare+=("$value")
			value=$(verify_run verify_batch "$clients" "$transactions" 123456)
			batch+=("$value")
			value=$(verify_run verify "$clients" "$transactions" 654321)
			wrong+=("$value")
			value=$(verify_run verify_bare_wrong "$clients" "$transactions" 654321)
			bare_wrong+=("$value")
		done
		name="$clients client$([ "$clients" = 1 ] || echo s)"
		result_of_rounds "otp_verify, right code : bare statements, $name" /s '>= 0.8' right bare
		result_of_rounds "otp_verify, wrong code : bare statements, $name" /s '>= 0.8' wrong bare_wrong
		result_of_rounds "otp_verify, right code : the same in one round trip, $name" /s '' right batch
	done
	sql "DROP FUNCTION bench.bare_verify" "DROP TABLE bench.guesses, bench.fresh" \
		"TRUNCATE otp.phone_failures"
	forget
}

# Run one side on fresh rows, and look whether it did what it should: script, clients, transactions of each, code
verify_run() {
	local file=$here/script/$1.sql right=0 wrong=0 expected=$(($2 * $3))
	[ ! -e "$place/$1.sql" ] || file=$place/$1.sql
	until [ "$(sql "SELECT ledger_used FROM otp.worker_status()")" = 0 ]; do
		sleep 0.1
	done
	sql "TRUNCATE otp.verifications_$leaf, otp.phone_failures, otp.outbox" \
		"UPDATE bench.fresh SET expires_at = now() + interval '15 min' WHERE expires_at < now() + interval '5 min'" \
		"INSERT INTO otp.verifications SELECT * FROM bench.fresh ORDER BY id" \
		"VACUUM ANALYZE otp.verifications_$leaf"
	pgbench_tps "$file" "$2" "$3" i=0 first=1 "clients=$2" "code=$4"
	read -r right wrong <<<"$(sql "SELECT count(verified_at), count(last_attempt_at) - count(verified_at) FROM otp.verifications_$leaf" | tr '|' ' ')"
	[ $((right + wrong)) -eq $expected ] || fail "Of $expected guesses, $right were right and $wrong wrong."
	[ "$4" != 123456 ] || [ "$right" -eq $expected ] || fail "Of $expected right guesses, $wrong were wrong."
}
