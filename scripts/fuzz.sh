#!/usr/bin/env bash
# Runs every fuzz target for the given time (default 10s) each.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
time=${1:-10s}
grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -r -n1 dirname | sort -u | while read -r dir; do
	grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | awk '{print $2}' | while read -r target; do
		step "$dir $target"
		go test "$dir" -run '^$' -fuzz "^$target\$" -fuzzminimizetime 1x -fuzztime "$time" </dev/null
	done
done
