#!/usr/bin/env bash
# What `make run` does: installs what is missing, builds, serves on
# 127.0.0.1:8080, deploys and calls an example in each language, and goes on
# serving until Ctrl-C, which drains.
#
# HEARTH_LISTEN, HEARTH_DATA_DIR and the other variables of `hearth serve` apply.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
SECONDS=0

# On a terminal Ctrl-C goes to every process in the foreground, also to make,
# which would then report a failure. So the rest runs as a job of its own.
if [ -t 0 ] && [ -z "${HEARTH_RUN_JOB:-}" ]; then
	set -m
	HEARTH_RUN_JOB=1 scripts/run.sh && exit 0 || exit $?
fi

step installing what is missing
scripts/setup.sh
make --no-print-directory build

listen=${HEARTH_LISTEN:-127.0.0.1:8080}
export HEARTH_LISTEN=$listen
export HEARTH_URL="http://$listen"

if (exec 3<>"/dev/tcp/${listen%:*}/${listen##*:}") 2>/dev/null; then
	echo "error: something listens on $listen already" >&2
	echo "hint: stop it, or choose another address: HEARTH_LISTEN=127.0.0.1:8081 make run" >&2
	exit 1
fi

step "starting the server on $listen"
# A process group of its own: Ctrl-C reaches this script, which then ends the server.
set -m
bin/hearth serve &
server=$!
set +m
stop() {
	trap '' INT TERM
	kill -TERM "$server" 2>/dev/null || true
	wait "$server" && status=0 || status=$?
	exit "${1:-$status}"
}
trap 'echo; echo "draining…"; stop' INT TERM
for _ in $(seq 300); do
	curl -fs -o /dev/null "$HEARTH_URL/readyz" && break
	kill -0 "$server" 2>/dev/null || { wait "$server" || exit $?; exit 1; }
	sleep 0.1
done

call() { # call URL: prints the answer and what Hearth says about the call
	echo "\$ curl $1"
	headers=$(mktemp)
	if ! curl -sS --fail-with-body --max-time 60 -D "$headers" "$1"; then
		rm -f "$headers"
		echo
		echo "error: the example did not answer" >&2
		stop 1
	fi
	echo
	tr -d '\r' <"$headers" | grep -iE '^(hearth-start|server-timing):' | sed 's/^/  /'
	rm -f "$headers"
}

python=
node=
for example in python node; do
	step "deploying examples/hello-$example"
	url=$(bin/hearth deploy "examples/hello-$example") || stop $?
	declare "$example=$url"
	call "${url}hello/you?from=$example"
	call "${url}hello/you?from=$example"
done

cat <<END

Hearth serves on $HEARTH_URL
  Python      ${python}hello/you
  JavaScript  ${node}hello/you
  API         $HEARTH_URL/docs
In another terminal:  bin/hearth list;  bin/hearth logs hello-python;  bin/hearth init my-function
END
[ "$listen" = 127.0.0.1:8080 ] || echo "First: export HEARTH_URL=$HEARTH_URL"
echo "Ctrl-C stops it."
wait "$server" && status=0 || status=$?
exit "$status"
