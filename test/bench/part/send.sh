# send.sh
#	otp_send, in transactions per second.
#
# Delivery is off: this is the caller's half alone. Both sides write the same
# tables, which begin with a day's history, and both have an empty outbox and a
# checkpoint behind them at the start of each run.

part_send() {
	local value clients round history transactions
	history=${quick:+20000}
	history=${history:-200000}

	leaf=$(sql "SELECT bench.leaf()")
	lowest=$(sql "SELECT overlay(bench.id(now() - interval '1 hour')::text PLACING '0000-0000-000000000000' FROM 15)")
	local name
	for name in send_bare send_batch_function; do
		sed "s/LEAF/$leaf/g; s/LOWEST/$lowest/g" "$here/script/$name.sql" >"$place/$name.sql"
	done
	psql -X -q -v ON_ERROR_STOP=1 -f "$place/send_batch_function.sql"
	forget
	sql "INSERT INTO otp.verifications (workspace_id, id, slot, created_xid, created_at, expires_at, key_id, length,
			max_attempts, fallback_sms, phone, template, language, channel, salt, code_hash)
		SELECT 1, bench.id(now() - interval '3 hours' + n * interval '3 hours' / $history), $leaf, n,
			now(), now(), 1, 6,
			3, false, bench.phone(), 'otp_verification', 'en_US', 'whatsapp', gen_random_bytes(16), gen_random_bytes(32)
		FROM generate_series(1, $history) n" \
		"VACUUM ANALYZE otp.verifications_$leaf"

	for clients in 1 8; do
		transactions=$((clients == 1 ? 8000 : 3000))
		[ -z "$quick" ] || transactions=$((transactions / 8))
		local otp=() bare=() batch=()

		# warm caches and files, for nobody's benefit
		send_run send "$clients" $((transactions / 4)) >/dev/null
		send_run send_bare "$clients" $((transactions / 4)) >/dev/null
		for ((round = 1; round <= rounds; round++)); do
			working "send: $clients clients, round $round"
			value=$(send_run send "$clients" "$transactions")
			otp+=("$value")
			value=$(send_run send_bare "$clients" "$transactions")
			bare+=("$value")
			value=$(send_run send_batch "$clients" "$transactions")
			batch+=("$value")
		done
		result_of_rounds "otp_send : bare statements, $clients client$([ "$clients" = 1 ] || echo s)" /s '>= 0.7' otp bare
		result_of_rounds "otp_send : the same in one round trip, $clients client$([ "$clients" = 1 ] || echo s)" /s '' otp batch
	done
}

# Run one side: script, clients, transactions of each
send_run() {
	local file=$here/script/$1.sql
	[ ! -e "$place/$1.sql" ] || file=$place/$1.sql
	sql "TRUNCATE otp.outbox"
	pgbench_tps "$file" "$2" "$3" i=0 "hi0=$(($(now_ms) << 16))"
}
