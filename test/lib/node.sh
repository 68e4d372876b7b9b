# node.sh
#	Libraries that npm fetches, for programs of the tests.

# Fetch the libraries that a package-lock.json names, unless they are there: the folder with it, where to,
# what it is for. This is done by whoever called, who knows the way to the registry; nothing of what is
# fetched is run now.
node_fetch() {
	local from=$1 to=$2 what=$3 log=$2/npm.log start
	local certificates=/etc/ssl/certs/ca-certificates.crt
	! cmp -s "$from/package-lock.json" "$to/fetched" || return 0
	start=$(now_ms)
	working 'npm ci'
	mkdir -p "$to"
	cp "$from/package.json" "$from/package-lock.json" "$to/"

	# npm brings certificates of its own; whom the system trusts, is trusted as well
	[ ! -e "$certificates" ] || export NODE_EXTRA_CA_CERTS=${NODE_EXTRA_CA_CERTS:-$certificates}
	(cd "$to" && npm ci --omit=dev --omit=optional --ignore-scripts --no-audit --no-fund --no-update-notifier \
		--fetch-retries=2 --fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=5000 --cache="$to/cache") \
		</dev/null >"$log" 2>&1 ||
		fail "npm cannot fetch the libraries of $what." "$(tail -n 10 "$log")" \
			'Without a network, only the parts of test/check that need none of them can run: all but tap.'
	rm -rf "$to/cache"
	cp "$from/package-lock.json" "$to/fetched"
	done_line "libraries of $what are fetched by npm" "$(seconds $(($(now_ms) - start)))"
}
