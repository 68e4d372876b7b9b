# say.sh
#	How the commands speak: plain lines, a little colour on a terminal.

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
	bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m' clear_line=$'\r\e[K'
else
	bold='' dim='' red='' green='' plain='' clear_line=''
fi

# Tell the time in milliseconds
now_ms() {
	local now=${EPOCHREALTIME/[.,]/}
	echo $((now / 1000))
}

# Write milliseconds as seconds
seconds() {
	printf '%d.%d s' $(($1 / 1000)) $(($1 % 1000 / 100))
}

# Say that something is wrong, and go
fail() {
	printf '%s%s%s\n' "$clear_line$red" "$1" "$plain" >&2
	shift
	[ $# -eq 0 ] || printf '%s\n' "$@" >&2
	exit 1
}

# Show what is being done, where the line will be written over
working() {
	[ -z "$clear_line" ] || printf '%s  %s%.100s%s' "$clear_line" "$dim" "$1" "$plain"
}

# Write a line of what was done, and how long it took
done_line() {
	printf '%s  %-58s %s%8s%s\n' "$clear_line" "$1" "$dim" "$2" "$plain"
}

# Do a step whose output nobody wants to see unless it fails: title, log, command
quietly() {
	local title=$1 log=$2 start
	shift 2
	start=$(now_ms)
	working "$title"
	if ! "$@" >"$log" 2>&1 </dev/null; then
		printf '%s' "$clear_line"
		tail -n 40 "$log" >&2
		fail "Could not do this: $title"
	fi
	done_line "$title" "$(seconds $(($(now_ms) - start)))"
}
