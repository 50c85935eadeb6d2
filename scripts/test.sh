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

log=$(mktemp)
engine=
finish() {
	rm -f "$log"
	[ -z "$engine" ] || scripts/docker.sh stop "$engine"
}
trap finish EXIT

# What isolation other than the built-in needs; tests find it by these names.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	scripts/runsc.sh
	scripts/test-images.sh
	export HEARTH_TEST_IMAGES=$PWD/.cache/images HEARTH_TEST_RUNSC=$PWD/bin/tools/runsc
	PATH=$PWD/bin/tools:$PATH
	step starting Docker Engine for tests
	engine=$(scripts/docker.sh start)
	export HEARTH_TEST_DOCKER=$engine
else
	echo "note: not root on Debian: tests of docker, runc and gvisor are skipped"
fi

step "go test -race ./... (two packages at a time)"
if [ "$(id -u)" != 0 ]; then
	echo "note: not root: tests that need it are skipped"
fi
status=0
CGO_ENABLED=1 go test -race -count=1 -p 2 -timeout 20m ./... 2>&1 | tee "$log" || status=$?

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
