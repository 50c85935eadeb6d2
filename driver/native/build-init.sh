#!/bin/sh
# Builds the sandbox's pid 1 for the machines Hearth supports. Package native
# embeds the results, so this comes before any "go build". Does nothing when
# they are newer than their sources.
set -eu
cd "$(dirname "$0")"
mkdir -p initbin
for arch in amd64 arm64; do
	out=initbin/init_linux_$arch
	if [ -f "$out" ] && [ -z "$(find init build-init.sh -newer "$out" -not -name '*_test.go' -not -type d)" ]; then
		continue
	fi
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o "$out.tmp" ./init
	mv "$out.tmp" "$out"
done
