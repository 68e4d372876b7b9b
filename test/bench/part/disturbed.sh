# disturbed.sh
#	otp_send, the sender and otp_verify while something else goes on.
#
# Each run makes the same way, first to leave dead rows behind and then against the
# clock: codes are sent, delivered, and verified. In turns, with nothing else
# going on and while
#
#	retention	drawers of old history are emptied, some during each of the three
#	snapshot	a REPEATABLE READ transaction that has begun before all of it
#				stays open, so that no dead row can go
#	lock		a transaction that has verified some codes stays open: it locks their
#				rows while their messages are sent, and until after they have expired
#
# The rate in a run is compared with the mean of the undisturbed runs before and
# after it. Sends: delivery is off, as in the part send. Verifying: the sender
# takes what is verified out of its memory and the outbox meanwhile.

# Codes that the open transaction has verified, and how long they live
locked_codes=20 locked_seconds=15

# Days of history that retention empties
old_days=27

part_disturbed() {
	local codes=${quick:+2000} sends=${quick:+500} old_rows=${quick:+1000} kind round value name emptied=''
	local -A figures=()
	local -a otp bare
	codes=${codes:-24000} sends=${sends:-4000} old_rows=${old_rows:-10000}
	simulator_use --sink
	forget
	sql "TRUNCATE otp.phone_failures"
	fresh_codes $((2 * codes + locked_codes))
	queue 1
	sql "CREATE TABLE bench.origin AS SELECT origin FROM otp.outbox LIMIT 1"
	psql -X -q -v ON_ERROR_STOP=1 -f "$here/script/disturbed_setup.sql"

	# for nobody's benefit
	working 'disturbed: all is warmed up'
	life calm >/dev/null
	for ((round = 1; round <= rounds; round++)); do
		for kind in calm retention snapshot lock; do
			working "disturbed: round $round, $kind"
			value=$(life "$kind")
			figures[$kind $round]=$value
		done
	done
	working 'disturbed: the last calm run'
	value=$(life calm)
	figures[calm $round]=$value

	for kind in retention snapshot lock; do
		for name in send sender verify; do
			otp=() bare=()
			for ((round = 1; round <= rounds; round++)); do
				otp+=("$(field "${figures[$kind $round]}" "$name")")
				bare+=("$(awk -v a="$(field "${figures[calm $round]}" "$name")" \
					-v b="$(field "${figures[calm $((round + 1))]}" "$name")" 'BEGIN { print (a + b) / 2 }')")
			done
			result_of_rounds "$name, $(title "$kind") : calm" /s '>= 0.9' otp bare
		done
		[ "$kind" = retention ] || continue
		for ((round = 1; round <= rounds; round++)); do
			emptied="$emptied $(field "${figures[retention $round]}" emptied)"
		done
		result '  drawers emptied during the three, in each round' "${emptied# }" '' '' ''
	done
	simulator_stop
	sql "DROP PROCEDURE bench.refill, bench.make_history" "DROP TABLE bench.guesses, bench.fresh, bench.origin"
	forget
}

# Name what goes on
title() {
	case $1 in
		retention) echo 'while retention empties drawers' ;;
		snapshot) echo 'with a snapshot held open' ;;
		lock) echo 'with codes locked by an open verify' ;;
	esac
}

# Pick a figure out of a run's: figures, name
field() {
	sed -n "s/.*\<$2=\([^ ]*\).*/\1/p" <<<"$1"
}

# Go the whole way with something else going on, and print the rates: what
life() {
	local kind=$1 send sender verify emptied locked=0
	forget
	sql "TRUNCATE otp.phone_failures" \
		"UPDATE bench.fresh SET expires_at = clock_timestamp() + interval '15 min'" \
		"INSERT INTO otp.verifications SELECT * FROM bench.fresh ORDER BY id"
	[ "$kind" != retention ] || sql "CALL bench.make_history($old_days, $old_rows)"
	sql "VACUUM ANALYZE otp.verifications_$leaf"
	case $kind in
		snapshot) hold "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM otp.outbox;" ;;
		lock)
			# these are sent, too, and expire later on
			locked=$locked_codes
			sql "UPDATE otp.verifications v SET expires_at = clock_timestamp() + interval '$locked_seconds s'
					FROM bench.guesses g WHERE g.n > 2 * $codes AND v.id = g.id" \
				"CALL bench.refill(2 * $codes + 1, $locked_codes, '$leaf', $locked_seconds)"
			hold "BEGIN; SELECT count(*) FROM bench.guesses g, otp_verify(g.otp_id, '123456') v
				WHERE g.n > 2 * $codes AND v.valid;"
			[ "$(head -n 1 "$place/log/held")" = "$locked_codes" ] || fail 'The codes to be locked could not be verified.'
			;;
	esac

	# once for the dead rows
	sql "CALL bench.refill(1, $codes, '$leaf', 900)"
	drain_queue $((codes + locked)) >/dev/null
	life_verify 1 >/dev/null

	# and once for the clock
	delivery off
	[ "$kind" != retention ] || retention_days 20
	send=$(pgbench_tps "$here/script/send.sql" 8 "$sends" i=0)
	emptied=$(drawers_left)
	sql "CALL bench.refill($codes + 1, $codes, '$leaf', 900)" "VACUUM ANALYZE otp.messages_$leaf"
	[ "$kind" != retention ] || retention_days 10
	sender=$(drain_queue $((codes + 8 * sends)))
	emptied=$emptied,$(drawers_left)
	[ "$kind" != retention ] || retention_days 1
	verify=$(life_verify $((codes + 1)))
	emptied=$emptied,$(drawers_left)
	case $kind in
		snapshot | lock) release ;;
	esac
	retention_days 30
	emptied=$(awk -F, -v all="$old_days" '{ print all - $1 "," $1 - $2 "," $2 - $3 }' <<<"$emptied")
	echo "send=$send sender=$sender verify=$verify emptied=$emptied"
}

# Verify codes, and wait until the sender has done with them: number of the first; prints their rate
life_verify() {
	local right wanted=$(($1 - 1 + codes))
	pgbench_tps "$here/script/verify.sql" 8 $((codes / 8)) i=0 "first=$1" clients=8 code=123456
	right=$(sql "SELECT count(verified_at) FROM otp.verifications_$leaf")
	[ "$right" -eq "$wanted" ] || fail "Of $wanted right guesses, $((wanted - right)) were wrong."
	until [ "$(sql "SELECT count(*) FROM otp.outbox WHERE kind = 'verified'")" = 0 ]; do
		sleep 0.1
	done
}

# Set otp.retention: days
retention_days() {
	sql "ALTER SYSTEM SET otp.retention = '$1 d'" "SELECT pg_reload_conf()" >/dev/null
}

# Print how many drawers of old history there are
drawers_left() {
	sql "SELECT count(DISTINCT slot) FROM (SELECT bench.slot(clock_timestamp() - d * interval '1 day') AS slot
			FROM generate_series(1, $old_days + 1) d) s
		WHERE pg_relation_size(format('otp.verifications_%s', lpad(slot::text, 2, '0'))) > 0"
}

# Open a transaction, and leave it open: what it does
hold() {
	: >"$place/log/held"
	coproc HELD { PGUSER=app psql -X -q -A -t -v ON_ERROR_STOP=1 >"$place/log/held" 2>&1; }
	printf '%s\n\\echo held\n' "$1" >&"${HELD[1]}"
	until grep -q held "$place/log/held"; do
		kill -0 "$HELD_PID" 2>/dev/null || fail 'A transaction could not be held open.' "$(cat "$place/log/held")"
		sleep 0.05
	done
}

# Let it go
release() {
	local pid=$HELD_PID
	printf 'SELECT 1; ROLLBACK; \\echo released\n\\q\n' >&"${HELD[1]}"
	wait "$pid"
	grep -q released "$place/log/held" || fail 'The open transaction has ended before its time.' "$(cat "$place/log/held")"
}
