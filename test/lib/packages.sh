# packages.sh
#	Find what the commands need, and have apt install what is missing.
#
# Nothing is asked of apt when nothing is missing.

# What a build of the extension and the simulator needs, besides PostgreSQL
build_packages='gcc libc6-dev libcurl4-openssl-dev libjansson-dev libmicrohttpd-dev libssl-dev make perl'

# What only the check needs: TAP tests, the simulator's own test, pgindent
check_packages='curl libio-socket-ssl-perl libipc-run-perl openssl pg-bsd-indent python3'

# What pgbouncer links to, for the TAP tests
pgbouncer_packages='libc-ares2 libevent-2.1-7'

# What the webhook receiver needs, where it is wanted
node_packages='nodejs npm'

# Print node_packages unless both programs are there: other ways to install Node bring npm along
node_packages_missing() {
	local PATH=/usr/local/bin:/usr/bin
	command -v node >/dev/null && command -v npm >/dev/null || echo "$node_packages"
}

# Run a command as root
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	else
		sudo "$@"
	fi
}

# Is this pg_config's PostgreSQL whole: server, headers, build rules, pgcrypto?
pg_is_whole() {
	local pg_config=$1
	[ -x "$pg_config" ] &&
		[ -x "$("$pg_config" --bindir)/postgres" ] &&
		[ -e "$("$pg_config" --includedir-server)/postgres.h" ] &&
		[ -e "$("$pg_config" --pgxs)" ] &&
		[ -e "$("$pg_config" --sharedir)/extension/pgcrypto.control" ]
}

# Print the pg_config to use: PG_CONFIG, else the newest that is whole
pg_find() {
	local pg_config
	if [ -n "${PG_CONFIG:-}" ]; then
		pg_config=$(command -v "$PG_CONFIG") && pg_is_whole "$pg_config" && echo "$pg_config"
		return
	fi
	for pg_config in $(printf '%s\n' /usr/lib/postgresql/*/bin/pg_config | sort -t/ -k5,5nr) $(command -v pg_config); do
		if pg_is_whole "$pg_config"; then
			echo "$pg_config"
			return
		fi
	done
	return 1
}

# Print those of the given packages that are not installed
packages_missing() {
	local package
	for package in "$@"; do
		case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true) in
			ii*) ;;
			*) echo "$package" ;;
		esac
	done
}

# Run apt-get, showing how it gets on
apt_get() {
	local log=$1 line count=0 total='' status
	shift
	set +e
	as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 LC_ALL=C \
		apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null 2>&1 | tee "$log" | while IFS= read -r line; do
		line=${line%$'\r'}
		case $line in
			*' newly installed'*)
				total=${line#*, }
				total=${total%% *}
				;;
			'Need to get '*) printf '%s  %s\n' "$clear_line" "${line%% of archives.}" ;;
			'Setting up '*)
				count=$((count + 1))
				working "$count of $total: ${line%% (*}"
				# someone reads a file: say something now and then
				[ -n "$clear_line" ] || [ $((count % 40)) -ne 0 ] || echo "  $count of $total packages are set up"
				;;
			'Get:'* | 'Unpacking '*) working "$line" ;;
		esac
	done
	status=${PIPESTATUS[0]}
	set -e
	return "$status"
}

# Install the given packages and, unless there is one, a PostgreSQL
packages_install() {
	local missing log start version='' quiet_conf='' pg_missing=''
	command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || {
		pg_find >/dev/null || fail 'This system has no apt-get.' \
			"Install PostgreSQL with its headers and contrib modules, and what these Debian packages hold: $*"
		return 0
	}
	missing=$(packages_missing "$@")
	pg_find >/dev/null || pg_missing=yes
	[ -n "$missing$pg_missing" ] || return 0

	start=$(now_ms)
	[ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
		fail 'Some packages are missing, and there is no sudo to install them with.' \
			"As root: apt-get install $(echo $missing)${pg_missing:+ postgresql postgresql-server-dev-all}"
	log=$(mktemp)
	# shellcheck disable=SC2064
	trap "rm -f '$log'" EXIT
	echo "Installing what is missing: $(echo $missing)${pg_missing:+ postgresql}"
	working 'apt-get update'
	apt_get "$log" update || fail "apt-get update does not work" "$(tail -n 10 "$log")"

	if [ -n "$pg_missing" ]; then
		# The distribution's own version, unless a server is here already and only its headers are missing
		version=$({ dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' 'postgresql-[0-9]*' 2>/dev/null || true; } |
			sed -n 's/^ii  *postgresql-\([0-9]*\)$/\1/p' | sort -n | tail -n 1)
		if [ -z "$version" ]; then
			version=$(LC_ALL=C apt-cache depends postgresql | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p')
			[ -n "$version" ] || fail 'apt does not know PostgreSQL.'

			# The package would create a cluster and start it: not on our account
			quiet_conf=/etc/postgresql-common/createcluster.d/otp-no-main-cluster.conf
			# shellcheck disable=SC2064
			trap "rm -f '$log'; as_root rm -f '$quiet_conf'" EXIT
			as_root mkdir -p "${quiet_conf%/*}"
			echo 'create_main_cluster = false' | as_root tee "$quiet_conf" >/dev/null
		fi
		missing="$missing postgresql-$version postgresql-server-dev-$version"
	fi

	# shellcheck disable=SC2086
	apt_get "$log" install -y --no-install-recommends $missing ||
		fail 'apt-get install does not work' "$(tail -n 20 "$log")"
	[ -z "$quiet_conf" ] || as_root rm -f "$quiet_conf"
	rm -f "$log"
	trap - EXIT
	pg_find >/dev/null || fail 'There is still no PostgreSQL to be found in /usr/lib/postgresql.'
	done_line 'packages are installed' "$(seconds $(($(now_ms) - start)))"
}

# Fetch pgbouncer into a folder, unless the system has it: where to. The package is not
# installed, because it would start a service, now and at each boot; only what the program
# links to is.
pgbouncer_fetch() {
	local to=$1 log=$1.log start
	! command -v pgbouncer >/dev/null && [ ! -x "$to/usr/sbin/pgbouncer" ] || return 0
	start=$(now_ms)
	working 'apt-get download pgbouncer'
	mkdir -p "$to"
	(
		cd "$to"
		apt-get -q download pgbouncer || { as_root apt-get -q update && apt-get -q download pgbouncer; }
		dpkg-deb -x pgbouncer_*.deb . && rm pgbouncer_*.deb
	) </dev/null >"$log" 2>&1 || fail 'pgbouncer cannot be fetched.' "$(tail -n 10 "$log")"
	done_line 'pgbouncer is fetched, not installed' "$(seconds $(($(now_ms) - start)))"
}
