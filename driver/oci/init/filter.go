package main

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refused are calls that gVisor's kernel has and that a guest gets in no other
// sandbox either: less of that kernel to attack, and the same answers
// everywhere. What it does not have is refused by itself.
var refused = []uint32{
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_SYSLOG,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
}

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// filter refuses those calls, and new namespaces, to what this thread starts.
func filter() syscall.Errno {
	const (
		load    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		hasBits = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		result  = unix.BPF_RET | unix.BPF_K
	)
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	p := []unix.SockFilter{
		{Code: load, K: 4},
		{Code: equal, K: arch, Jt: 1},
		{Code: result, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: 0},
		// Its flags lie in memory, where a filter cannot look: C libraries fall
		// back to clone.
		{Code: equal, K: unix.SYS_CLONE3, Jf: 1},
		{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	}
	for _, nr := range refused {
		p = append(p, unix.SockFilter{Code: equal, K: nr, Jf: 1},
			unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	}
	p = append(p,
		unix.SockFilter{Code: equal, K: unix.SYS_CLONE, Jt: 2},
		unix.SockFilter{Code: equal, K: unix.SYS_UNSHARE, Jt: 1},
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: load, K: 16},
		unix.SockFilter{Code: hasBits, K: newNamespaces, Jf: 1},
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return 0
}

// confine reads the program of a filter from the driver, four bytes of length
// before it, and installs it on every thread. The runtime has set no_new_privs.
// It is the driver's own program because compiling one from the runtime's
// configuration takes the runtime a quarter of a start.
func confine() syscall.Errno {
	var head [4]byte
	if !readAll(controlFD, head[:]) {
		return unix.EPIPE
	}
	n := int(head[0]) | int(head[1])<<8 | int(head[2])<<16 | int(head[3])<<24
	if n <= 0 || n > 1<<16 || n%8 != 0 {
		return unix.EINVAL
	}
	b := make([]byte, n)
	if !readAll(controlFD, b) {
		return unix.EPIPE
	}
	p := make([]unix.SockFilter, n/8)
	for i := range p {
		c := b[8*i:]
		p[i] = unix.SockFilter{
			Code: uint16(c[0]) | uint16(c[1])<<8, Jt: c[2], Jf: c[3],
			K: uint32(c[4]) | uint32(c[5])<<8 | uint32(c[6])<<16 | uint32(c[7])<<24,
		}
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return e
	}
	if r != 0 {
		return unix.ESRCH // a thread that could not follow
	}
	return 0
}

func readAll(fd int, b []byte) bool {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return false
		}
		b = b[n:]
	}
	return true
}
