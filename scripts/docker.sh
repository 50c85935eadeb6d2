#!/usr/bin/env bash
# Docker Engine for tests: one of the project's own, with its own data, socket
# and containerd, beside whatever the machine runs. Root only.
#
#   scripts/docker.sh start [DIR]   installs docker.io if there is no dockerd,
#                                   starts an engine that keeps everything in
#                                   DIR (default: a new temporary directory) and
#                                   prints its DOCKER_HOST
#   scripts/docker.sh stop DIR|DOCKER_HOST
#                                   stops it and removes DIR with everything in it
#   scripts/docker.sh halt DIR      stops it and leaves DIR for another start
#
# HEARTH_TEST_RUNSC, a path to runsc, adds it to the engine as the runtime runsc.
# The engine has no bridge and changes no firewall rule. It works without
# systemd, with control groups v1 and v2, and where overlay file systems are
# not possible.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

fail() { # fail MESSAGE HINT
	echo "error: $1" >&2
	echo "hint: $2" >&2
	exit 1
}

install_engine() {
	command -v dockerd >/dev/null && command -v containerd >/dev/null && command -v runc >/dev/null && return
	command -v apt-get >/dev/null || fail "there is no dockerd" "install Docker Engine with your package manager"
	local policy=/usr/sbin/policy-rc.d made=
	# The package would start an engine of the machine's.
	if ! [ -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
		made=$policy
	fi
	local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
	"${apt[@]}" update -q >/dev/null || echo "warning: the package lists could not be refreshed" >&2
	"${apt[@]}" install -q -y --no-install-recommends docker.io >&2 || { rm -f "$made"; fail "docker.io cannot be installed" "install Docker Engine by hand"; }
	rm -f "$made"
}

# mount_cgroups mounts what a container without systemd lacks: as v1 where the
# controllers are there, otherwise v2.
mount_cgroups() {
	mountpoint -q /sys/fs/cgroup && return
	mount -t cgroup2 none /sys/fs/cgroup && return
	fail "there are no control groups at /sys/fs/cgroup" "mount them, or run in a privileged container"
}

# overlay tells whether an overlay file system can be mounted in $1.
overlay() {
	local t=$1/overlay-test ok=1
	mkdir -p "$t"/{lower,upper,work,merged}
	if mount -t overlay overlay -o "lowerdir=$t/lower,upperdir=$t/upper,workdir=$t/work" "$t/merged" 2>/dev/null; then
		touch "$t/merged/x" 2>/dev/null && ok=0
		umount "$t/merged"
	fi
	rm -rf "$t"
	return $ok
}

alive() { # alive PIDFILE PROGRAM: prints the process id
	local pid
	pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] || return 1
	[ "$(basename "$(readlink "/proc/$pid/exe" 2>/dev/null)")" = "$2" ] || return 1
	echo "$pid"
}

start() {
	local dir=${1:-}
	[ "$(id -u)" = 0 ] || fail "starting Docker Engine needs root" "run the script as root"
	install_engine
	mount_cgroups
	[ -n "$dir" ] || dir=$(mktemp -d "${TMPDIR:-/tmp}/hearth-docker-XXXXXX")
	mkdir -p "$dir"
	dir=$(cd "$dir" && pwd -P)
	touch "$dir/hearth-test-engine"
	if alive "$dir/docker.pid" dockerd >/dev/null; then
		echo "unix://$dir/docker.sock"
		return
	fi
	local driver=vfs
	overlay "$dir" && driver=overlay2
	local runsc=() # as JSON
	if [ -n "${HEARTH_TEST_RUNSC:-}" ]; then
		printf '{"runtimes": {"runsc": {"path": "%s", "runtimeArgs": ["--platform=systrap", "--host-uds=open", "--ignore-cgroups"]}}}\n' "$HEARTH_TEST_RUNSC" >"$dir/daemon.json"
	else
		echo '{}' >"$dir/daemon.json"
	fi
	rm -f "$dir/docker.sock" "$dir/docker.pid"
	# A session of its own: Ctrl-C in a test run does not reach it, stop does.
	setsid env -u DOCKER_HOST dockerd --config-file "$dir/daemon.json" \
		--data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" \
		--host "unix://$dir/docker.sock" --group root --storage-driver "$driver" \
		--bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
		--userland-proxy=false --log-level warn >"$dir/docker.log" 2>&1 </dev/null &
	local child=$!
	for _ in $(seq 600); do
		if curl -fs -o /dev/null --unix-socket "$dir/docker.sock" http://docker/_ping; then
			echo "unix://$dir/docker.sock"
			return
		fi
		if ! kill -0 "$child" 2>/dev/null; then
			tail -n 20 "$dir/docker.log" >&2
			halt "$dir"
			fail "dockerd did not start" "its last words are above; its log is $dir/docker.log"
		fi
		sleep 0.1
	done
	halt "$dir"
	fail "dockerd did not answer within a minute" "its log is $dir/docker.log"
}

# end PIDFILE PROGRAM stops a program and waits for its end.
end() {
	local pid
	pid=$(alive "$1" "$2") || return 0
	kill "$pid" 2>/dev/null || true
	for i in $(seq 300); do
		kill -0 "$pid" 2>/dev/null || return 0
		[ "$i" = 200 ] && kill -KILL "$pid" 2>/dev/null
		sleep 0.1
	done
}

halt() {
	local dir=$1 pid args target
	end "$dir/docker.pid" dockerd
	# One that was killed leaves its containerd.
	end "$dir/exec/containerd/containerd.pid" containerd
	# And that its shims, which know the engine by the address of its containerd.
	for pid in $(ls /proc | grep -E '^[0-9]+$'); do
		args=$({ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null) || continue
		case $args in
		*containerd-shim*"$dir/exec/"*)
			for child in $(cat "/proc/$pid/task/"*/children 2>/dev/null); do kill -KILL "$child" 2>/dev/null || true; done
			kill -KILL "$pid" 2>/dev/null || true
			;;
		esac
	done
	# The last mounted first.
	awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | tac | while read -r target; do
		umount -l "$(printf '%b' "$target")" 2>/dev/null || true
	done
}

stop() {
	local dir=${1#unix://}
	dir=${dir%/docker.sock}
	[ -n "$dir" ] && [ -e "$dir/hearth-test-engine" ] || fail "$dir is no directory of an engine that this script started" "scripts/docker.sh stop DIR"
	halt "$dir"
	rm -rf "$dir" || { sleep 1; rm -rf "$dir"; }
}

case ${1:-} in
start) start "${2:-}" ;;
stop) stop "${2:-}" ;;
halt) halt "${2:?directory}" ;;
*)
	sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
	exit 2
	;;
esac
