# place.sh
#	A place of our own: a copy of the sources, and of PostgreSQL.
#
# Both commands work in a directory of their own, as an ordinary user, for
# PostgreSQL does not run as root. Nothing is installed into the system: the
# extension goes into a tree that looks like the system's PostgreSQL. Its
# programs find their files relative to where they are themselves, so that a
# tree with copied programs and linked files is an installation of its own.
#
#	place/source	the repository without its history
#	place/server	the PostgreSQL tree
#	place/node		libraries of the webhook receiver
#	place/clients	libraries of other people's clients of the HTTP API
#	place/pgbouncer	pgbouncer, unless the system has it
#	place/log		what the steps printed

place=${OTP_PLACE:-}

# Make a place, or use the one that is kept, and go on there as an ordinary
# user: name of the command, kept directory or '', arguments
place_enter() {
	local name=$1 kept=$2 repo user variable base=${TMPDIR:-/tmp}
	shift 2
	repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

	# a socket's path may have 107 bytes
	[ ${#base} -lt 50 ] || base=/tmp
	if [ -n "$kept" ]; then
		mkdir -p "$kept"
		place=$(cd "$kept" && pwd)
	else
		place=$(mktemp -d "$base/otp-$name.XXXXXX")
		trap 'rm -rf "$place"' EXIT
	fi
	trap 'exit 130' INT TERM HUP
	chmod 755 "$place"
	mkdir -p "$place/source" "$place/log" "$place/home"

	# What was built here stays out of a copy, what was built there stays in it
	tar -C "$repo" --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude='*.bc' --exclude=./tmp_check \
		--exclude=./results --exclude=./test/output --exclude=./test/simulator/simulator \
		--exclude=./test/simulator/load --exclude=node_modules -cf - . |
		tar -C "$place/source" --no-same-owner -xf -
	if [ -n "$kept" ]; then
		(cd "$place/source" && find . -type f ! -name '*.o' ! -name '*.so' -print) | while IFS= read -r file; do
			[ -e "$repo/$file" ] || rm -f "$place/source/$file"
		done
	fi

	# Libraries, if it needs them
	[ -z "${place_wants_receiver:-}" ] || node_fetch "$repo/test/receiver" "$place/node" 'the webhook receiver'
	[ -z "${place_wants_clients:-}" ] || node_fetch "$repo/test/clients" "$place/clients" "the clients' tests"
	[ -z "${place_wants_pgbouncer:-}" ] || pgbouncer_fetch "$place/pgbouncer"

	# Only what the commands listen to goes along
	set -- env -i HOME="$place/home" LANG=C.UTF-8 OTP_PLACE="$place" OTP_KEPT="$kept" \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		OTP_PG_CONFIG="$(pg_find)" "$place/source/test/$name" "$@"
	shift 2
	for variable in TERM NO_COLOR CI OTP_PG_CONFIGS PG_TEST_TIMEOUT_DEFAULT PG_TEST_NOCLEAN PG_TEST_EXTRA; do
		[ -z "${!variable:-}" ] || set -- "$variable=${!variable}" "$@"
	done
	set -- env -i "$@"

	if [ "$(id -u)" -eq 0 ]; then
		user=postgres
		id "$user" >/dev/null 2>&1 || user=nobody
		chown -R "$user:$(id -g "$user")" "$place"
		set -- setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups "$@"
	fi
	cd "$place"
	exec "$@"
}

# What the programs leave in /tmp goes with the place, if the paths of sockets allow
if [ -n "$place" ] && [ ${#place} -lt 50 ]; then
	export TMPDIR=$place/tmp
	mkdir -p "$TMPDIR"
fi

# Make the PostgreSQL tree: pg_config, where
place_server() {
	local pg_config=$1 tree=$2 bindir pkglibdir sharedir dir file
	bindir=$("$pg_config" --bindir)
	pkglibdir=$("$pg_config" --pkglibdir)
	sharedir=$("$pg_config" --sharedir)

	mkdir -p "$tree$bindir" "$tree$pkglibdir" "$tree$sharedir/extension"
	[ -e "$tree$bindir/postgres" ] || cp -L "$bindir"/* "$tree$bindir/"
	for file in "$pkglibdir"/*; do
		case ${file##*/} in
			otp.so | bitcode) ;;
			*) ln -sfn "$file" "$tree$pkglibdir/" ;;
		esac
	done
	for file in "$sharedir"/* "$sharedir"/extension/*; do
		case ${file#"$sharedir/"} in
			extension | extension/otp.control | extension/otp--*) ;;
			extension/*) ln -sfn "$file" "$tree$sharedir/extension/" ;;
			*) ln -sfn "$file" "$tree$sharedir/" ;;
		esac
	done

	# Where headers and libraries are found; the folders above may be among them
	for dir in $("$pg_config" --includedir) $("$pg_config" --pkgincludedir) $("$pg_config" --includedir-server) \
		$("$pg_config" --libdir); do
		if [ ! -e "$tree$dir" ]; then
			mkdir -p "$(dirname "$tree$dir")"
			ln -s "$dir" "$tree$dir"
		fi
	done
}

# Use a tree: its pg_config, programs and test driver
place_use_server() {
	local pg_config=$1 tree=$2
	PG_CONFIG=$tree$("$pg_config" --bindir)/pg_config
	bindir=${PG_CONFIG%/*}
	pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")/../..
	pg_version=$("$PG_CONFIG" --version)
	pg_version=${pg_version#PostgreSQL }
	pg_version=${pg_version%% *}
	PATH=$bindir:$PATH
	export PG_CONFIG PATH
}

# Build the extension and install it into the tree: more make arguments
place_build() {
	make -C "$place/source" -s -j "$(nproc)" PG_CONFIG="$PG_CONFIG" "$@" all &&
		make -C "$place/source" -s PG_CONFIG="$PG_CONFIG" install
}

# Build the simulator
place_build_simulator() {
	make -C "$place/source/test/simulator" -s -j "$(nproc)" "$@" simulator
}

# Remove the place. Programs that were stopped a moment ago may still write.
place_remove() {
	cd /
	rm -rf "$place" 2>/dev/null || { sleep 0.5 && rm -rf "$place"; }
}

# Stop servers that tests have left behind. A server's current directory is that of its data.
place_stop_servers() {
	local file pid
	find "$place" -name postmaster.pid -print 2>/dev/null | while IFS= read -r file; do
		read -r pid <"$file" || continue
		[ "$(readlink "/proc/$pid/cwd")" = "${file%/*}" ] || continue
		kill -QUIT "$pid" 2>/dev/null || continue
		while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
	done
}
