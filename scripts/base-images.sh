#!/usr/bin/env bash
# Makes root file systems of Debian for the base images, where no registry can
# be reached: DIR/python.tar, DIR/nodejs.tar and DIR/provided.tar, for
# `hearth images build RUNTIME --base DIR/RUNTIME.tar`. Files that exist are
# kept. Needs root, mmdebstrap and a Debian mirror.
#
#	scripts/base-images.sh DIR
set -euo pipefail
dir=${1:?usage: scripts/base-images.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$(dirname "$0")/.."
. scripts/env.sh

suite=bookworm
mirror=http://deb.debian.org/debian
security=http://deb.debian.org/debian-security

# Debian's npm brings hundreds of packages; this is the one that Node's own
# releases carry, as its registry has it.
npm_version=10.9.2
npm_sha512=8ab88f10f224a0c614cb717a7f7c30499014f77134120e9c1f0211ea3cf3397592cbe483feb38e0c4b3be1c54e347292c76a1b5edb94a3289d5448484ab8ac81

if [ "$(id -u)" != 0 ]; then
	echo "error: bootstrapping Debian needs root" >&2
	exit 1
fi
if ! command -v mmdebstrap >/dev/null; then
	echo "error: mmdebstrap is missing" >&2
	echo "hint: apt-get install mmdebstrap" >&2
	exit 1
fi

export SOURCE_DATE_EPOCH=1750000000 DEBIAN_FRONTEND=noninteractive
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bootstrap() { # bootstrap NAME PACKAGES [HOOK…]
	local name=$1 packages=$2 excluded=()
	shift 2
	[ -s "$dir/$name.tar" ] && return
	for path in /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian /usr/share/bash-completion; do
		excluded+=("--dpkgopt=path-exclude=$path/*")
	done
	if ! mmdebstrap --quiet --variant=essential --include="usr-is-merged,$packages" --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr "${excluded[@]}" \
		--aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
		"$@" --customize-hook='rm -rf "$1"/var/log/* "$1"/var/cache/* "$1"/usr/lib/python3*/test' \
		--format=tar "$suite" "$work/$name.tar" \
		"deb $mirror $suite main" "deb $mirror $suite-updates main" "deb $security $suite-security main" \
		>"$work/$name.log" 2>&1; then
		echo "error: bootstrapping $name failed:" >&2
		tail -n 20 "$work/$name.log" >&2
		return 1
	fi
	mv "$work/$name.tar" "$dir/$name.tar"
	echo "$name.tar: $(($(stat -c %s "$dir/$name.tar") >> 20)) MiB"
}

nodejs() {
	[ -s "$dir/nodejs.tar" ] && return
	curl -fsSL --retry 3 -o "$work/npm.tgz" "https://registry.npmjs.org/npm/-/npm-$npm_version.tgz"
	echo "$npm_sha512  $work/npm.tgz" | sha512sum --check --quiet
	bootstrap nodejs nodejs,ca-certificates \
		--customize-hook='mkdir -p "$1/usr/local/lib/node_modules/npm"' \
		--customize-hook="tar -xzf $work/npm.tgz --no-same-owner --strip-components=1 -C \"\$1/usr/local/lib/node_modules/npm\"" \
		--customize-hook='ln -s ../lib/node_modules/npm/bin/npm-cli.js "$1/usr/local/bin/npm"; ln -s ../lib/node_modules/npm/bin/npx-cli.js "$1/usr/local/bin/npx"'
}

step "bootstrapping root file systems of Debian $suite"
jobs=()
# Compiled wheels expect the run-time libraries that PEP 600 names.
bootstrap python python3,python3-pip,ca-certificates,libstdc++6 & jobs+=($!)
nodejs & jobs+=($!)
wait "${jobs[0]}"
wait "${jobs[1]}"
bootstrap provided ca-certificates,tzdata,libstdc++6
