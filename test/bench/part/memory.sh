# memory.sh
#	The sender's memory: bytes for each live code, and what remains of them.
#
# A sender remembers each code until its verification ends. The first mark is
# reached from a full queue, so that as many requests as ever have been under
# way at once, and their buffers are there: what grows from there to the second
# mark, divided by their number, is the price of a live code. Then all end, and as
# many live again: the third figure is what is given back, and the fourth
# whether what was kept is used again. What grows there is a leak.
#
# Anonymous pages of the process, so without the shared buffers that it touches,
# and what its memory contexts add up to.

part_memory() {
	local few=20000 many=200000 batch=10000 pid live=0 sent=0
	local kilobytes contexts first_kilobytes first_contexts most_kilobytes most_contexts
	if [ -n "$quick" ]; then
		few=2000 many=20000 batch=2000
	fi
	simulator_use --sink

	# a new process
	forget
	pid=$(sql "SELECT sender_pid FROM otp.worker_status()")
	queue "$few"
	delivery on
	sent=$few live=$few
	sql "CALL bench.wait_accepted($sent, 0, NULL)" >/dev/null
	memory_note "$live"
	first_kilobytes=$kilobytes first_contexts=$contexts
	memory_fill
	most_kilobytes=$kilobytes most_contexts=$contexts
	result "  for each live code between the two: bytes, of which in contexts" \
		"$(((most_kilobytes - first_kilobytes) * 1024 / (many - few))), $(((most_contexts - first_contexts) / (many - few)))" '' '' '<= 300'

	# all of them end
	working "memory: $live codes end"
	sql "CALL bench.end_all()"
	until [ "$(sql "SELECT following + waiting + in_flight FROM otp.worker_status()")" = 0 ]; do
		sleep 0.2
	done
	live=0
	sleep 1
	memory_note 0

	# and others live
	memory_fill
	result "sender's own memory, $many live codes again : the first time" "$kilobytes kB" "$most_kilobytes kB" \
		"$(ratio "$kilobytes" "$most_kilobytes")" flat
	[ "$(sql "SELECT sender_pid FROM otp.worker_status()")" = "$pid" ] || fail 'The sender is another one now.'
	simulator_stop
	forget
}

# Send codes until so many live
memory_fill() {
	while [ "$live" -lt "$many" ]; do
		working "memory: $live live codes"
		queue "$batch"
		live=$((live + batch)) sent=$((sent + batch))
		sql "CALL bench.wait_accepted($sent, 0, NULL)" >/dev/null
	done
	[ "$(sql "SELECT following FROM otp.worker_status()")" = "$live" ] ||
		fail "Codes have ended that should live: the run took too long." "$(sql "SELECT following, waiting, in_flight, accepted, failed, retried FROM otp.worker_status()")"
	memory_note "$live"
}

# Note what the sender has now: live codes
memory_note() {
	local lines
	kilobytes=$(awk '/^Anonymous:/ { print $2 }' "/proc/$pid/smaps_rollup")
	lines=$(wc -l <"$place/log/server.log")
	sql "SELECT pg_log_backend_memory_contexts($pid)" >/dev/null
	until contexts=$(tail -n +$((lines + 1)) "$place/log/server.log" | sed -n 's/.*Grand total: \([0-9]*\) bytes in.*/\1/p' | tail -n 1) &&
		[ -n "$contexts" ]; do
		sleep 0.1
	done
	result "sender's own memory, $1 live codes: all, in memory contexts" "$kilobytes kB, $((contexts / 1024)) kB" '' '' ''
}
