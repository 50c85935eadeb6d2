#!/usr/bin/env bash
# Formatting, lint, import table and cross-build. Needs no root.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

step building the linters
mkdir -p bin/tools
(cd tools && CGO_ENABLED=0 go build -o ../bin/tools/ ./lint mvdan.cc/gofumpt)

step gofumpt
files=$(git ls-files -co --exclude-standard '*.go' | while read -r f; do [ -f "$f" ] && echo "$f"; done)
bad=$(xargs bin/tools/gofumpt -l <<<"$files")
if [ -n "$bad" ]; then
	echo "$bad"
	echo "error: these files are not formatted" >&2
	echo "hint: bin/tools/gofumpt -w FILE" >&2
	exit 1
fi

step go vet
go vet ./...

step "lint (staticcheck, unused, errorlint, errname, bodyclose, noctx)"
go vet -vettool="$PWD/bin/tools/lint" ./...

step import table
go test -count=1 .

step cross-build
for arch in amd64 arm64; do
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -o /dev/null ./cmd/hearth
	echo "linux/$arch builds"
done

step shell scripts
for f in scripts/*.sh .ci/run; do bash -n "$f"; done
echo check passed
