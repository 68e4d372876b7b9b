# stats.sh
#	Statistics over a month: what a look at them costs, and what keeps them.
#
# Ten million verifications with their messages, spread over thirty days, four
# workspaces, two templates and two channels, are written straight into the
# leaves. Then the history is summed up, as the sender does it all the time: first some
# hundred steps of their own, each with its commit, then the rest at once.
#
# The clock of a look is psql's: query sent to last row received, 10,000 rows
# or so. The last 20 minutes are always read live. The baseline asks the raw
# tables for the same numbers, once.

part_stats() {
	local count=${quick:+300000} steps=400 step_rows=500 rows ms raw_ms figures
	count=${count:-10000000}
	[ -z "$quick" ] || steps=40
	delivery off
	sql "TRUNCATE otp.verifications, otp.messages, otp.outbox, otp.stats_hours, otp.usage_days"
	psql -X -q -v ON_ERROR_STOP=1 -f "$here/script/stats_setup.sql"

	# Two at a time, a day each
	working "stats: $count verifications are written"
	seq 0 30 | PGOPTIONS='-c synchronous_commit=off' xargs -P 2 -I DAY \
		psql -X -q -v ON_ERROR_STOP=1 -c "CALL bench.write_day(DAY, $count)"
	sql "VACUUM ANALYZE otp.verifications" "VACUUM ANALYZE otp.messages" CHECKPOINT \
		"UPDATE otp.stats_position SET rolled_until = date_trunc('day', now() - interval '31 days')"

	working "stats: it is summed up"
	figures=$(sql "CALL bench.steps($steps, $step_rows, NULL, NULL, NULL)")
	IFS='|' read -r ms rows _ <<<"$figures"
	result "a step of the roll-up ($step_rows rows, commit included): p50, p99" "$ms" '' '' '< 10 ms'
	result "rows that steps of their own sum up" "$rows" '' '' ''
	rows=$(sql "CALL bench.rest(NULL)")
	result "rows that one long step sums up" "$rows" '' '' ''
	sql "VACUUM ANALYZE otp.stats_hours" "VACUUM ANALYZE otp.usage_days"

	for role in app postgres; do
		working "stats: a look as $role"
		figures=$(stats_look "$role" delivery_stats "hour >= now() - interval '30 days'")
		ms=${figures#* }
		if [ "$role" = postgres ]; then
			raw_ms=$(PGUSER=postgres stats_time "SELECT * FROM bench.raw_stats")
			result "otp.delivery_stats, a month of $count : raw tables, all workspaces" "$ms ms" "$raw_ms ms" "$(ratio "$ms" "$raw_ms")" '< 100 ms'
		else
			result "otp.delivery_stats, a month, own workspace" "$ms ms" '' '' '< 100 ms'
		fi
		result "  the first one of a session" "${figures% *} ms" '' '' '< 100 ms'
		figures=$(stats_look "$role" usage "day >= (now() - interval '30 days')::date")
		result "otp.usage, a month, $([ $role = app ] && echo own workspace || echo all workspaces)" "${figures#* } ms" '' '' '< 100 ms'
	done
	sql "TRUNCATE otp.verifications, otp.messages, otp.stats_hours, otp.usage_days" \
		"UPDATE otp.stats_position SET rolled_until = now()" "DELETE FROM otp.workspaces WHERE name LIKE 'bench%'"
}

# Milliseconds of a query in a session of its own
stats_time() {
	psql -X -q -A -t -o /dev/null -v ON_ERROR_STOP=1 -c '\timing on' -c "$1" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p'
}

# Milliseconds of a look at a view, in a session's beginning and later: medians. Role, view, condition
stats_look() {
	local i first=() later=() times query="SELECT * FROM otp.$2 WHERE $3"
	for i in 1 2 3 4 5; do
		mapfile -t times < <(PGUSER=$1 psql -X -q -A -t -v ON_ERROR_STOP=1 -c '\o /dev/null' -c '\timing on' \
			-c "$query" -c "$query" -c "$query" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p')
		first+=("${times[0]}")
		later+=("${times[@]:1}")
	done
	echo "$(median "${first[@]}") $(median "${later[@]}")"
}
