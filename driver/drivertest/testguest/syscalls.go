package main

import (
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trySyscalls tries calls that a function does not need and an attacker does.
// The arguments are such that a kernel refuses the caller first, and otherwise
// finds them wrong: so a call that is allowed shows, and still does no harm. It
// returns the error's number by the call's name; "ok" where the call succeeded.
func trySyscalls() map[string]string {
	runtime.LockOSThread()
	dot, empty := cstr("."), cstr("")
	params := make([]byte, 256)
	p := uintptr(unsafe.Pointer(&params[0]))
	// Eight bytes, to be copied onto themselves.
	vector := unix.Iovec{Base: &params[128], Len: 8}
	iov := uintptr(unsafe.Pointer(&vector))
	// A change of the clock by nothing (ADJ_SETOFFSET).
	change := unix.Timex{Modes: 0x0100}
	timex := uintptr(unsafe.Pointer(&change))
	calls := []struct {
		name string
		nr   uintptr
		args [6]uintptr
	}{
		{"mount", unix.SYS_MOUNT, [6]uintptr{dot, dot, cstr("no-such-fs")}},
		{"umount2", unix.SYS_UMOUNT2, [6]uintptr{dot, 0}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{dot, dot}},
		{"unshare-user", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER}},
		{"unshare-mount", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNS}},
		{"unshare-net", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNET}},
		{"ptrace", unix.SYS_PTRACE, [6]uintptr{unix.PTRACE_ATTACH, 1}},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [6]uintptr{1, iov, 1, iov, 1, 0}},
		{"bpf", unix.SYS_BPF, [6]uintptr{0, p, 72}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{p, 0, ^uintptr(0), ^uintptr(0), 0}},
		{"keyctl", unix.SYS_KEYCTL, [6]uintptr{unix.KEYCTL_GET_KEYRING_ID, ^uintptr(2), 1}},
		{"add_key", unix.SYS_ADD_KEY, [6]uintptr{cstr("user"), cstr("k"), cstr("v"), 1, ^uintptr(2)}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{4, p}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{1}},
		{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{p, 16, empty}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{0, 0, 0, 0xffff}},
		{"reboot", unix.SYS_REBOOT, [6]uintptr{1, 2, 3}},
		{"swapon", unix.SYS_SWAPON, [6]uintptr{dot, 0}},
		{"clock_adjtime", unix.SYS_CLOCK_ADJTIME, [6]uintptr{unix.CLOCK_REALTIME, timex}},
		{"sethostname", unix.SYS_SETHOSTNAME, [6]uintptr{dot, ^uintptr(0)}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{^uintptr(99), p, 0}},
		{"acct", unix.SYS_ACCT, [6]uintptr{cstr("/no-such-file")}},
		{"quotactl", unix.SYS_QUOTACTL, [6]uintptr{0, 0, 0, 0}},
		{"fsopen", unix.SYS_FSOPEN, [6]uintptr{cstr("tmpfs"), 0}},
		{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{^uintptr(99), dot, ^uintptr(99), dot, 0}},
		{"syslog", unix.SYS_SYSLOG, [6]uintptr{3, p, 200}},
		{"mknod-device", unix.SYS_MKNODAT, [6]uintptr{^uintptr(99), cstr("/tmp/kmsg"), unix.S_IFCHR | 0o666, 1<<8 | 11}},
		{"raw-socket", unix.SYS_SOCKET, [6]uintptr{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}},
		{"packet-socket", unix.SYS_SOCKET, [6]uintptr{unix.AF_PACKET, unix.SOCK_RAW, 0}},
		{"vsock-socket", unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
		{"setuid-0", unix.SYS_SETRESUID, [6]uintptr{0, 0, 0}},
	}
	out := map[string]string{}
	for _, c := range calls {
		if c.name == "setuid-0" && syscall.Getuid() == 0 {
			continue // no change
		}
		r, _, e := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		out[c.name] = "ok"
		if e != 0 {
			out[c.name] = strconv.Itoa(int(e))
		} else if fdCalls[c.name] {
			syscall.Close(int(r))
		}
	}
	out["setns"] = trySetns()
	out["clone-newuser"] = tryClone(unix.CLONE_NEWUSER)
	runtime.KeepAlive(params)
	runtime.KeepAlive(&vector)
	runtime.KeepAlive(&change)
	return out
}

// fdCalls return a descriptor when they succeed.
var fdCalls = map[string]bool{
	"io_uring_setup": true, "userfaultfd": true, "fsopen": true, "perf_event_open": true,
	"raw-socket": true, "packet-socket": true, "vsock-socket": true,
}

// kept keeps C strings from the collector.
var kept [][]byte

func cstr(s string) uintptr {
	b := append([]byte(s), 0)
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

func trySetns() string {
	fd, err := syscall.Open("/proc/1/ns/mnt", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		e, _ := errno(err)
		return strconv.Itoa(int(e))
	}
	defer syscall.Close(fd)
	if err := unix.Setns(fd, 0); err != nil {
		e, _ := errno(err)
		return strconv.Itoa(int(e))
	}
	return "ok"
}

func tryClone(flags uintptr) string {
	pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, flags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		return strconv.Itoa(int(e))
	}
	if pid == 0 {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
	_, _ = syscall.Wait4(int(pid), nil, 0, nil)
	return "ok"
}
