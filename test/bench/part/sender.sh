# sender.sh
#	How fast the sender empties the queue.
#
# The codes are queued with delivery off; the clock runs from switching it on
# until the last answer is written down. The baseline posts the same bytes from
# libcurl alone, over 64 connections, to the same sink. Both share the machine
# with the sink.

part_sender() {
	local value count=${quick:+5000} round otp=() bare=()
	count=${count:-50000}
	simulator_use --sink
	for ((round = 1; round <= rounds; round++)); do
		working "sender: round $round"
		value=$(drain "$count")
		otp+=("$value")
		value=$("$place/source/test/simulator/load" --url="$simulator_url" --requests="$count" --connections=64 --vary |
			sed -n 's/.*"requests_per_second":\([0-9.]*\).*/\1/p')
		bare+=("$value")
	done
	simulator_stop
	result_of_rounds "sender, $count queued codes : bare libcurl" /s '>= 0.3' otp bare
}
