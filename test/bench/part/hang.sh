# hang.sh
#	What 1% of requests that hang for 5 s cost the others.
#
# The clock stops when 98% are accepted: those that hang have no part in it,
# unless the run is longer than they hang.

part_hang() {
	local value count=${quick:+10000} round calm=() hanging=()
	count=${count:-60000}
	simulator_use
	drain 2000 >/dev/null
	for ((round = 1; round <= rounds; round++)); do
		working "hang: round $round"
		simulator DELETE behave >/dev/null
		value=$(drain "$count" $((count / 100 * 98)))
		calm+=("$value")
		simulator POST behave '{"share": 0.01, "do": {"delay_ms": 5000}}' >/dev/null
		value=$(drain "$count" $((count / 100 * 98)))
		hanging+=("$value")
	done
	simulator_stop
	result_of_rounds "sender, 1% of requests hanging 5 s : none" /s '>= 0.9' hanging calm
}
