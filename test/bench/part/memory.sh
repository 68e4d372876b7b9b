# memory.sh
#	The sender's memory over 200,000 messages.
#
# The first mark is reached from a full queue, so that as many requests as ever have
# been under way at once, and their buffers are there. What grows after that is a leak.
#
# Anonymous pages of the process, so without the shared buffers that it touches,
# and what its memory contexts add up to.

part_memory() {
	local sent=0 mark base pid marks='20000 50000 100000 200000' batch=10000 first=''
	if [ -n "$quick" ]; then
		marks='2000 5000 10000 20000' batch=1000
	fi
	simulator_use --sink
	sql "TRUNCATE otp.verifications, otp.messages, otp.outbox"

	# a new process
	pid=$(sql "SELECT sender_pid FROM otp.worker_status()")
	[ -z "$pid" ] || sql "SELECT pg_terminate_backend($pid)" >/dev/null
	delivery off
	until [ "$(sql "SELECT sender_pid IS NOT NULL AND sender_pid <> ${pid:-0} FROM otp.worker_status()")" = t ]; do
		sleep 0.1
	done
	pid=$(sql "SELECT sender_pid FROM otp.worker_status()")
	base=$(sql "SELECT accepted FROM otp.worker_status()")
	sent=${marks%% *}
	queue "$sent"
	delivery on
	sql "CALL bench.wait_accepted($sent, $base, NULL)" >/dev/null
	for mark in $marks; do
		while [ "$sent" -lt "$mark" ]; do
			working "memory: $sent messages"
			queue "$batch"
			sent=$((sent + batch))
			sql "CALL bench.wait_accepted($sent, $base, NULL)" >/dev/null
		done
		[ "$(sql "SELECT sender_pid FROM otp.worker_status()")" = "$pid" ] || fail 'The sender is another one now.'
		memory_note "$mark" "$pid"
	done
	simulator_stop
}

# Note what the sender has now: messages so far, its process
memory_note() {
	local private contexts lines
	private=$(awk '/^Anonymous:/ { print $2 }' "/proc/$2/smaps_rollup")
	lines=$(wc -l <"$place/log/server.log")
	sql "SELECT pg_log_backend_memory_contexts($2)" >/dev/null
	until contexts=$(tail -n +$((lines + 1)) "$place/log/server.log" | sed -n 's/.*Grand total: \([0-9]*\) bytes in.*/\1/p' | tail -n 1) &&
		[ -n "$contexts" ]; do
		sleep 0.1
	done
	first=${first:-$private}
	result "sender's own memory after $1 messages" "$private kB" "$first kB" "$(ratio "$private" "$first")" 'flat'
	result "  of which in memory contexts" "$((contexts / 1024)) kB" '' '' ''
}
