#!/usr/bin/env bash
# Installs what building, running and testing Hearth needs and this machine
# lacks: from the package manager on Debian and Ubuntu (as root or with sudo);
# elsewhere it says what is missing. Go's own toolchain of the version that
# go.mod asks for comes through the Go module proxy. With --test also what only
# the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

missing=()   # Debian packages
names=()     # the same for people
need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 && return
	missing+=("$2")
	names+=("$1")
}
need go golang-go
need git git
need python3 python3
need node nodejs
need curl curl
need ip iproute2
if ! [ -e /etc/ssl/certs/ca-certificates.crt ] && ! [ -e /etc/pki/tls/certs/ca-bundle.crt ] && ! [ -e /etc/ssl/ca-bundle.pem ] && ! [ -e /etc/ssl/cert.pem ]; then
	missing+=(ca-certificates)
	names+=("CA certificates")
fi
# The race detector needs a C compiler; building and running do not.
if [ "${1:-}" = --test ]; then
	need gcc gcc
	if ! echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1; then
		missing+=(libc6-dev)
		names+=("the C library's headers")
	fi
	# Other isolation than the built-in, and dependency builds. Only root can use
	# the former, so others need not have it.
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		need dockerd docker.io
		need runc runc
		need mmdebstrap mmdebstrap
		need npm npm
		if ! python3 -m pip --version >/dev/null 2>&1; then
			missing+=(python3-pip)
			names+=(pip)
		fi
	fi
fi

if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "error: missing: ${names[*]}" >&2
		echo "hint: install them with your package manager and try again" >&2
		exit 1
	fi
	root=()
	if [ "$(id -u)" != 0 ]; then
		if ! command -v sudo >/dev/null 2>&1; then
			echo "error: missing: ${names[*]}" >&2
			echo "hint: as root: apt-get install ${missing[*]}" >&2
			exit 1
		fi
		root=(sudo)
	fi
	echo "==> installing ${missing[*]}"
	apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120)
	"${apt[@]}" update -q >/dev/null || echo "warning: the package lists could not be refreshed" >&2
	"${apt[@]}" install -q -y --no-install-recommends "${missing[@]}"
fi

# A Go of at least 1.21 fetches the version go.mod asks for by itself.
want=$(awk '$1 == "go" {print $2; exit}' go.mod)
out=$(GOTOOLCHAIN=auto go version 2>&1) && [[ $out == "go version "* ]] && version=${out#go version go} && version=${version%% *} || version=
if [ -n "$version" ] && [ "$(printf '%s\n' "$want" "$version" | sort -V | head -1)" = "$want" ]; then
	exit 0
fi

# Older ones, such as Debian 12's, get it as the module that newer ones would
# fetch; Go checks it against the public checksum database.
echo "==> fetching Go $want with ${version:+Go $version}"
have=$(cd / && GOTOOLCHAIN=local go version 2>/dev/null | awk '{print $3}') || true
module="golang.org/toolchain@v0.0.1-go$want.$(go env GOOS)-$(go env GOARCH)"
if dir=$(cd / && GOTOOLCHAIN=local GO111MODULE=on GOFLAGS=-modcacherw go mod download -json "$module" | awk -F'"' '$2 == "Dir" {print $4}') && [ -n "$dir" ]; then
	rm -rf .cache/go.new
	mkdir -p .cache
	cp -R "$dir" .cache/go.new
	chmod -R u+w .cache/go.new
	chmod +x .cache/go.new/bin/* .cache/go.new/pkg/tool/*/* 2>/dev/null || true
	if .cache/go.new/bin/go version >/dev/null; then
		rm -rf .cache/go
		mv .cache/go.new .cache/go
		exit 0
	fi
fi
echo "error: Hearth needs Go $want; the one here (${have:-unknown}) could not fetch it through the Go module proxy" >&2
echo "hint: install Go $want or newer from https://go.dev/dl/ and put it on PATH" >&2
exit 1
