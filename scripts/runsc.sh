#!/usr/bin/env bash
# Builds gVisor's runsc, of the release that tools/runsc pins, into
# bin/tools/runsc. It must be static: it starts itself again inside an empty
# root file system.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

mkdir -p bin/tools
version=$(awk '$1 == "require" && $2 == "gvisor.dev/gvisor" {print $3}' tools/runsc/go.mod)
if [ "$(bin/tools/runsc --version 2>/dev/null | awk '/^runsc version/ {print $3}')" = "$version" ]; then
	exit 0
fi
step building runsc "$version"
(cd tools/runsc && CGO_ENABLED=0 go build -trimpath \
	-ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" \
	-o ../../bin/tools/runsc gvisor.dev/gvisor/runsc)
