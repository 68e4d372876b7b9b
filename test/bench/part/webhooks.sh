# webhooks.sh
#	Webhooks delivered by the sender, per second.
#
# Endpoints that want otp.sent are paused while codes are sent, so that all
# their webhooks are queued. The clock runs from switching delivery on until
# none is owed: each is read, signed, posted, answered, noted as an attempt and
# deleted. The baseline posts the bytes of one of them, headers and all, over
# as many connections as the sender uses: eight for an endpoint.

# What the sender allows an endpoint
endpoint_connections=8

part_webhooks() {
	local value endpoints name connections round count=${quick:+2000}
	local -a otp bare headers=()
	count=${count:-20000}
	webhook_capture
	while IFS= read -r value; do
		headers+=("--header=$value")
	done <"$place/webhook.headers"
	simulator_use --sink
	for endpoints in 1 8; do
		otp=() bare=()
		connections=$((endpoints * endpoint_connections))
		name="$endpoints endpoint$([ "$endpoints" = 1 ] || echo s)"
		for ((round = 1; round <= rounds; round++)); do
			working "webhooks: $name, round $round"
			value=$(webhooks_run "$endpoints" "$count")
			otp+=("$value")
			value=$("$place/source/test/simulator/load" --url="$simulator_url/hook/messages" \
				--body="$place/webhook.body" "${headers[@]}" --requests="$count" --connections="$connections" |
				sed -n 's/.*"requests_per_second":\([0-9.]*\).*/\1/p')
			bare+=("$value")
		done
		result_of_rounds "webhooks, $name : bare libcurl, $connections connections" /s '' otp bare
	done
	simulator_stop
	forget
}

# Let endpoints have so many webhooks, and deliver them: endpoints, webhooks in all. The sink takes
# what ends in /messages.
webhooks_run() {
	local codes=$(($2 / $1)) seconds delivered
	forget
	sql "SELECT otp.pause_webhook_endpoint((otp.create_webhook_endpoint('$simulator_url/hook' || n || '/messages',
			ARRAY['otp.sent'], workspace => 'default')).endpoint_id) FROM generate_series(1, $1) n" >/dev/null
	queue "$codes"
	drain_queue "$codes" >/dev/null
	delivery off
	[ "$(sql "SELECT count(*) FROM otp.webhook_outbox")" = $((codes * $1)) ] ||
		fail 'Not every event is owed to every endpoint.'
	sql "VACUUM ANALYZE otp.webhook_outbox" "VACUUM ANALYZE otp.messages" "VACUUM ANALYZE otp.verifications" \
		CHECKPOINT \
		"SELECT otp.resume_webhook_endpoint(endpoint_id) FROM otp.webhook_endpoints" >/dev/null
	seconds=$(sql "ALTER SYSTEM SET otp.delivery = on" "SET enable_seqscan = off" "SELECT 1 FROM pg_reload_conf()" \
		"CALL bench.wait_webhooks(NULL)" | tail -n 1)
	delivered=$(sql "SELECT count(*) FILTER (WHERE delivered) || ' of ' || count(*) FROM otp.webhook_attempts")
	[ "$delivered" = "$((codes * $1)) of $((codes * $1))" ] ||
		fail "$delivered attempts were good, not all of $((codes * $1))."
	sql "SELECT otp.delete_webhook_endpoint(endpoint_id) FROM otp.webhook_endpoints" >/dev/null
	awk -v n=$((codes * $1)) -v s="$seconds" 'BEGIN { print n / s }'
}

# Catch the first webhook of a code: its body and headers
webhook_capture() {
	local waited=0
	rm -f "$place"/webhook.{port,body,headers}
	perl "$here/capture.pl" "$place/webhook.port" "$place/webhook.body" "$place/webhook.headers" &
	until [ -s "$place/webhook.port" ]; do sleep 0.02; done
	simulator_use --sink
	forget
	sql "SELECT otp.create_webhook_endpoint('http://127.0.0.1:$(cat "$place/webhook.port")/hook/messages',
			ARRAY['otp.sent'], workspace => 'default')" >/dev/null
	queue 1
	delivery on
	until [ -s "$place/webhook.body" ]; do
		sleep 0.05
		[ $((waited += 1)) -lt 400 ] || fail 'No webhook has come in twenty seconds.'
	done
	sql "SELECT otp.delete_webhook_endpoint(endpoint_id) FROM otp.webhook_endpoints" >/dev/null
}
