// Package seccomp is the list of system calls that guests need, for every driver
// whose sandboxes share the host's kernel. What is on neither list answers
// ENOSYS; calls that depend on their arguments are in neither, and Filter checks
// them.
package seccomp

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
	// processes and threads; clone and unshare are for each driver to check
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
	// sockets; socket and socketpair are for each driver to check
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
