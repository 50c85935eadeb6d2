#!/usr/bin/env bash
# Everything: installs what is missing, builds, checks, and runs all tests with
# the race detector. Tests that need root say so and are skipped without it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

step installing what is missing
scripts/setup.sh --test

make --no-print-directory build
scripts/check.sh

step "go test -race ./... (two packages at a time)"
if [ "$(id -u)" != 0 ]; then
	echo "note: not root: tests that need it are skipped"
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
CGO_ENABLED=1 go test -race -count=1 -p 2 -timeout 12m ./... 2>&1 | tee "$log" || status=$?

step summary
awk '
	/^ok[ \t]/ { ok++ }
	/^(FAIL|panic:)[ \t]/ || /^--- FAIL/ { bad[++n] = $0 }
	END {
		printf "%d packages passed\n", ok
		for (i = 1; i <= n; i++) print bad[i]
	}' "$log"
[ "$status" = 0 ] && echo "all tests passed" || echo "error: tests failed" >&2
exit "$status"
