#!/bin/sh
# Builds the first processes of the sandboxes of drivers (directory init of each)
# for the machines Hearth supports. The drivers embed the results, so this comes
# before any "go build". Does nothing when they are newer than their sources.
set -eu
cd "$(dirname "$0")/.."
for driver in driver/*/init; do
	driver=${driver%/init}
	mkdir -p $driver/initbin
	for arch in amd64 arm64; do
		out=$driver/initbin/init_linux_$arch
		if [ -f "$out" ] && [ -z "$(find $driver/init scripts/build-init.sh -newer "$out" -not -name '*_test.go' -not -type d)" ]; then
			continue
		fi
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o "$out.tmp" ./$driver/init
		mv "$out.tmp" "$out"
	done
done
