package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is a list of what is allowed: calls that a later kernel adds are
// refused until somebody has thought about them. What it does not know answers
// ENOSYS, for which C libraries have a fall-back; what programs are likely to
// ask for and must not have answers EPERM.

// allowedCalls may be called with any argument. Names that an architecture
// lacks are skipped for it.
var allowedCalls = []string{
	// files
	"access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat",
	"dup", "dup2", "dup3", "faccessat", "faccessat2", "fallocate", "fchdir", "fchmod",
	"fstatat", // what the table for arm64 calls newfstatat
	"fchmodat", "fchown", "fchownat", "fdatasync", "fgetxattr", "flistxattr", "flock",
	"fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd",
	"getdents", "getdents64", "getxattr", "inotify_init", "inotify_init1",
	"inotify_rm_watch", "lchown", "lgetxattr", "link", "linkat", "listxattr", "llistxattr",
	"lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir", "mkdirat", "mknod", "mknodat",
	"newfstatat", "open", "openat", "openat2", "pipe", "pipe2", "pread64", "preadv", "preadv2",
	"pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv",
	"removexattr", "rename", "renameat", "renameat2", "rmdir", "sendfile", "setxattr", "splice",
	"stat", "statfs", "statx", "symlink", "symlinkat", "sync_file_range", "tee", "truncate",
	"umask", "unlink", "unlinkat", "utime", "utimensat", "utimes", "write", "writev",
	// waiting
	"epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait",
	"eventfd", "eventfd2", "poll", "ppoll", "pselect6", "select", "signalfd", "signalfd4",
	"timerfd_create", "timerfd_gettime", "timerfd_settime",
	// memory
	"brk", "madvise", "membarrier", "memfd_create", "mincore", "mlock", "mlock2", "mlockall", "mmap",
	"mprotect", "mremap", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free",
	"pkey_mprotect", "shmat", "shmctl", "shmdt", "shmget", "semctl", "semget", "semop", "semtimedop",
	"msgctl", "msgget", "msgrcv", "msgsnd",
	// processes and threads; clone and unshare are below
	"arch_prctl", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_waitv",
	"get_robust_list", "getcpu", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
	"getrlimit", "getrusage", "getsid", "gettid", "kill", "pause", "pidfd_open",
	"pidfd_send_signal", "prctl", "prlimit64", "restart_syscall", "rseq", "sched_get_priority_max",
	"sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
	"sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr",
	"sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list",
	"set_tid_address", "set_thread_area", "get_thread_area", "setpgid", "setpriority", "setrlimit",
	"setsid", "tgkill", "times", "tkill", "vfork", "wait4", "waitid", "landlock_create_ruleset",
	"landlock_add_rule", "landlock_restrict_self", "ioprio_get", "ioprio_set",
	// users; without a capability they only confirm what is
	"capget", "capset", "getegid", "geteuid", "getgid", "getgroups", "getresgid", "getresuid",
	"getuid", "setfsgid", "setfsuid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid",
	// signals and time
	"alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday",
	"nanosleep", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
	"rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "setitimer",
	"sigaltstack", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
	"timer_settime",
	// sockets; socket and socketpair are below
	"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen",
	"recvfrom", "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
	// the system
	"getrandom", "sysinfo", "uname",
}

// deniedCalls answer EPERM. Some would need a capability that nothing in a
// sandbox has; they are listed so that one mistake is not enough.
var deniedCalls = []string{
	// namespaces and mounts
	"setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen",
	"fsconfig", "fsmount", "fspick", "mount_setattr",
	// The host's programs and those of other sandboxes are the same files here: a
	// watch would tell who starts what, and when. Runtimes that only make an
	// inotify instance still start.
	"inotify_add_watch",
	// other processes and the kernel's inner life
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd",
	"bpf", "perf_event_open", "userfaultfd", "lookup_dcookie", "syslog", "vmsplice",
	"add_key", "request_key", "keyctl", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark", "quotactl",
	"quotactl_fd", "modify_ldt", "mbind", "set_mempolicy", "get_mempolicy", "migrate_pages",
	"move_pages", "remap_file_pages",
	// the machine as a whole: also sync, which makes the host write out everything
	"sync", "syncfs", "reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module",
	"delete_module", "swapon", "swapoff", "acct", "iopl", "ioperm", "settimeofday",
	"clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "vhangup", "nfsservctl",
}

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

func allow() bpf.Instruction { return bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW} }

func refuse(e unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(e)}
}

// argument loads the low half of a call's argument: all these are ints for the
// kernel, which ignores the high half.
func argument(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: 16 + 8*n, Size: 4} }

// oneOf continues with then for one of the values.
func oneOf(then bpf.Instruction, values ...uint32) []bpf.Instruction {
	var p []bpf.Instruction
	for _, v := range values {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipFalse: 1}, then)
	}
	return p
}

// checkedCalls are the calls that depend on their arguments. Each program ends
// with a verdict.
func checkedCalls() map[string][]bpf.Instruction {
	program := func(parts ...[]bpf.Instruction) []bpf.Instruction { return slices.Concat(parts...) }
	one := func(i ...bpf.Instruction) []bpf.Instruction { return i }
	noNamespaces := func(more uint32) []bpf.Instruction {
		return one(argument(0), bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: newNamespaces | more, SkipFalse: 1},
			refuse(unix.EPERM), allow())
	}
	internet := program(
		one(argument(1), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf}),
		one(bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_STREAM, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_DGRAM, SkipTrue: 1}, refuse(unix.EPERM)),
		one(argument(2)),
		oneOf(allow(), 0, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6),
		one(refuse(unix.EPROTONOSUPPORT)))
	route := program(one(argument(2)), oneOf(allow(), unix.NETLINK_ROUTE), one(refuse(unix.EPROTONOSUPPORT)))
	jumpOver := func(family uint32, body []bpf.Instruction) []bpf.Instruction {
		return append(one(bpf.JumpIf{Cond: bpf.JumpEqual, Val: family, SkipFalse: uint8(len(body))}), body...)
	}
	const cloneNewTime = 0x80 // in clone, these bits are the signal at exit
	return map[string][]bpf.Instruction{
		"clone":   noNamespaces(0),
		"unshare": noNamespaces(cloneNewTime),
		// Its flags lie in memory, where a filter cannot look: C libraries fall
		// back to clone.
		"clone3": one(refuse(unix.ENOSYS)),
		"socket": program(one(argument(0)),
			oneOf(allow(), unix.AF_UNIX),
			jumpOver(unix.AF_INET, internet), jumpOver(unix.AF_INET6, internet), jumpOver(unix.AF_NETLINK, route),
			one(refuse(unix.EAFNOSUPPORT))),
		"socketpair": program(one(argument(0)), oneOf(allow(), unix.AF_UNIX), one(refuse(unix.EAFNOSUPPORT))),
		// Typing into a terminal, and changing what drives it.
		"ioctl": program(one(argument(1)), oneOf(refuse(unix.EPERM), unix.TIOCSTI, unix.TIOCSETD, 0x541c), one(allow())),
		// In a user namespace without root this would say EINVAL, which no program
		// expects.
		"setuid": program(one(argument(0)), oneOf(refuse(unix.EPERM), 0), one(allow())),
		"setgid": program(one(argument(0)), oneOf(refuse(unix.EPERM), 0), one(allow())),
		// Being told of what others do with the files that are the host's, or making
		// them wait for a lease.
		"fcntl": program(one(argument(1)), oneOf(refuse(unix.EPERM), unix.F_NOTIFY, unix.F_SETLEASE), one(allow())),
		// Throwing the host's files out of its page cache slows everybody down. It
		// is only advice: say that it was taken.
		"fadvise64":   program(one(argument(3)), oneOf(refuse(0), unix.FADV_DONTNEED), one(allow())),
		"personality": program(one(argument(0)), oneOf(allow(), 0, 0xffffffff), one(refuse(unix.EPERM))),
	}
}

// seccompFilter compiles the filter for this machine, in the form the kernel
// takes: eight bytes an instruction.
func seccompFilter() ([]byte, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("compile the system call filter: %w", err)
	}
	return compileFilter(info)
}

func compileFilter(info *arch.Info) ([]byte, error) {
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 4}, // architecture
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.LoadAbsolute{Off: 0, Size: 4}, // number
	}
	// Also refuses the x32 numbers of amd64, which begin at 1<<30.
	checked := checkedCalls()
	for _, name := range []string{"fcntl", "ioctl", "socket", "clone", "socketpair", "clone3", "unshare", "personality", "setuid", "setgid", "fadvise64"} {
		if n, ok := info.SyscallNames[name]; ok {
			body := checked[name]
			program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(n), SkipFalse: uint8(len(body))})
			program = append(program, body...)
		}
	}
	var numbers []uint32
	for _, name := range allowedCalls {
		if n, ok := info.SyscallNames[name]; ok {
			numbers = append(numbers, uint32(n))
		}
	}
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	if len(numbers) < 150 {
		return nil, errors.New("the table of system calls is incomplete")
	}
	for i := 0; i < len(numbers); { // neighbours share one comparison
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: numbers[i], SkipFalse: 2},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: numbers[j], SkipTrue: 1}, allow())
		i = j + 1
	}
	for _, name := range deniedCalls {
		if n, ok := info.SyscallNames[name]; ok {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(n), SkipFalse: 1}, refuse(unix.EPERM))
		}
	}
	program = append(program, refuse(unix.ENOSYS))
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("compile the system call filter: %w", err)
	}
	var b []byte
	for _, r := range raw {
		b = binary.LittleEndian.AppendUint16(b, r.Op)
		b = append(b, r.Jt, r.Jf)
		b = binary.LittleEndian.AppendUint32(b, r.K)
	}
	return b, nil
}
