# policy.sh
#	What policy costs the caller of otp_send.
#
# A thousand workspaces share ten million verifications of a month. Both sides
# call otp_send; the baseline has every limit, check and count switched off.
# Each client has twenty workspaces of its own, whose policy its session has
# read, and which the guard has counted, before the clock starts to matter.
# Delivery is off; codes are for phones that hardly come twice.

part_policy() {
	local count=${quick:+300000} clients round value name transactions
	local names='limits keys credits guard function all'
	count=${count:-10000000}
	delivery off
	forget
	psql -X -q -v ON_ERROR_STOP=1 -f "$here/script/policy_setup.sql"
	working "policy: $count verifications are written"
	seq 0 29 | PGOPTIONS='-c synchronous_commit=off' xargs -P 2 -I DAY \
		psql -X -q -v ON_ERROR_STOP=1 -c "CALL bench.write_tenants_day(DAY, $count)"
	sql "SELECT otp.add_credits(name, 1000000000) FROM otp.workspaces WHERE name LIKE 'tenant\_%'" >/dev/null
	sql "VACUUM ANALYZE otp.verifications" "VACUUM ANALYZE otp.workspaces" "VACUUM ANALYZE otp.credits" CHECKPOINT

	for clients in 1 8; do
		transactions=$((clients == 1 ? 6000 : 3000))
		[ -z "$quick" ] || transactions=$((transactions / 4))
		declare -A figures=() baselines=()
		policy_run all "$clients" $((transactions / 4)) >/dev/null
		for ((round = 1; round <= rounds; round++)); do
			for name in $names; do
				working "policy: $clients clients, round $round, $name"
				value=$(policy_run none "$clients" "$transactions")
				baselines[$name]="${baselines[$name]:-} $value"
				value=$(policy_run "$name" "$clients" "$transactions")
				figures[$name]="${figures[$name]:-} $value"
			done
		done
		for name in $names; do
			# shellcheck disable=SC2206
			local with=(${figures[$name]}) without=(${baselines[$name]})
			result_of_rounds \
				"otp_send, $(policy_words "$name") : no policy, $clients client$([ "$clients" = 1 ] || echo s)" \
				/s "$([ "$name" = all ] && echo '>= 0.85')" with without
		done
	done
	sql "TRUNCATE otp.verifications, otp.messages, otp.outbox, otp.send_keys" "DELETE FROM otp.workspaces WHERE name LIKE 'tenant\_%'"
}

# What is switched on
policy_words() {
	case $1 in
		limits) echo 'limits per second, phone, country' ;;
		keys) echo 'two limit_keys, an idempotency_key' ;;
		credits) echo 'credits' ;;
		guard) echo 'the guard' ;;
		function) echo 'a policy function' ;;
		all) echo 'all policy' ;;
	esac
}

# Run one side: what is on, clients, transactions of each
policy_run() {
	local limits=false credits=false guard=false function=false script=policy
	case $1 in
		limits) limits=true ;;
		keys) script=policy_keys ;;
		credits) credits=true ;;
		guard) guard=true ;;
		function) function=true ;;
		all) limits=true credits=true guard=true function=true script=policy_keys ;;
	esac
	sql "CALL bench.tenants_policy($limits, $credits, $guard, $function)" "VACUUM otp.workspaces" "TRUNCATE otp.outbox"
	pgbench_tps "$here/script/$script.sql" "$2" "$3"
}
