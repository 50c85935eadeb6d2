package main

import (
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// helper is the state that the steps of a plan build up.
type helper struct {
	began     int64
	trees     []int // detached mounts, in the order of the 'o' steps
	tun       int   // /dev/net/tun, opened by 'O'
	uid, gid  int   // of the guest; -1 before 'u'
	argv      []string
	env       []string
	dir       string
	guest     int   // pid
	bare      bool  // shed was called
	assembled int64 // when meet began
}

// run executes a plan: records of one byte of operation, one byte with the
// number of arguments, and the arguments, each with four bytes of length.
func (h *helper) run(plan []byte) error {
	for len(plan) > 0 {
		if len(plan) < 2 {
			return &stepError{op: '?', what: "short plan", errno: unix.EINVAL}
		}
		op, n := plan[0], int(plan[1])
		plan = plan[2:]
		args := make([]string, n)
		for i := range args {
			if len(plan) < 4 || uint64(len(plan)-4) < uint64(getUint32(plan)) {
				return &stepError{op: op, what: "short plan", errno: unix.EINVAL}
			}
			l := int(getUint32(plan))
			args[i] = string(plan[4 : 4+l])
			plan = plan[4+l:]
		}
		want, ok := arity[op]
		if !ok || n < want {
			return &stepError{op: op, what: "unknown step", errno: unix.EINVAL}
		}
		if err := h.step(op, args); err != nil {
			what := ""
			if n > 0 && op != 's' && op != 'e' {
				what = strings.Join(args[:min(n, 2)], " ")
			}
			errno, _ := err.(syscall.Errno) //nolint:errorlint // steps return bare errnos
			return &stepError{op: op, what: what, errno: errno}
		}
	}
	return nil
}

// arity is the least number of arguments of each step.
var arity = map[byte]int{
	'o': 2, 'O': 1, 'r': 2, 'u': 2, 'd': 2, 'l': 2, 'f': 3, 'b': 2, 't': 2, 'p': 1,
	'P': 0, 'W': 2, 'U': 1, 'B': 3, 'R': 1, 'h': 1, 'n': 0, 'T': 4, 'i': 3, 'k': 0, 'S': 1, 'c': 0,
	'L': 1, 's': 1, 'm': 0, 'g': 1, 'K': 1, 'e': 1, 'a': 1, 'w': 1, 'x': 0,
}

func (h *helper) step(op byte, a []string) error {
	switch op {
	case 'o': // open: a detached copy of a host's mount: path, flags
		return h.openTree(a[0], a[1])
	case 'O': // open the host's TUN device
		fd, err := unix.Open(a[0], unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		h.tun = fd
		return err
	case 'r': // new root: directory to mount it on, tmpfs options
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", a[0], "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, a[1]); err != nil {
			return err
		}
		return unix.Chdir(a[0])
	case 'u': // user and group, keeping the capabilities
		return h.setUser(atoi(a[0]), atoi(a[1]))
	case 'd': // directory: path, mode
		if err := unix.Mkdir(a[0], uint32(atoi(a[1]))); err != unix.EEXIST {
			return err
		}
		return nil
	case 'l': // symbolic link: target, path
		return unix.Symlink(a[0], a[1])
	case 'f': // file: path, mode, content
		return writeFile(a[0], uint32(atoi(a[1])), a[2])
	case 'b': // bind: number of the open mount, path
		return unix.MoveMount(h.trees[atoi(a[0])], "", unix.AT_FDCWD, a[1], unix.MOVE_MOUNT_F_EMPTY_PATH)
	case 't': // tmpfs: path, options
		return unix.Mount("tmpfs", a[0], "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, a[1])
	case 'p': // proc: path
		return unix.Mount("proc", a[0], "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	case 'P': // pivot into the new root and let go of the old one
		if err := unix.PivotRoot(".", "."); err != nil {
			return err
		}
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return err
		}
		return unix.Chdir("/")
	case 'W': // write to an existing file of the host's, if it can be: path, content
		if fd, err := unix.Open(a[0], unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			_, _ = unix.Write(fd, []byte(a[1]))
			_ = unix.Close(fd)
		}
		return nil
	case 'U': // unmount and remove: path
		if err := unix.Unmount(a[0], unix.MNT_DETACH); err != nil {
			return err
		}
		return unix.Rmdir(a[0])
	case 'B': // bind inside of the new root: from, to, flags
		fd, err := openTree(a[0], a[2])
		if err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return err
		}
		err = unix.MoveMount(fd, "", unix.AT_FDCWD, a[1], unix.MOVE_MOUNT_F_EMPTY_PATH)
		_ = unix.Close(fd)
		if err == unix.ENOENT {
			return nil
		}
		return err
	case 'R': // make one mount read-only
		return unix.MountSetattr(unix.AT_FDCWD, a[0], 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	case 'h': // host name
		return unix.Sethostname([]byte(a[0]))
	case 'n': // loopback
		return linkUp("lo")
	case 'T': // TUN: name, IPv4 address, prefix, MTU, IPv6 address in 16 bytes, prefix
		return h.makeTUN(a)
	case 'i': // resource limit: number, soft, hard
		l := unix.Rlimit{Cur: uint64(atoi(a[1])), Max: uint64(atoi(a[2]))}
		return unix.Setrlimit(atoi(a[0]), &l)
	case 'S': // scheduling policy of this thread and what it starts
		param := int32(0)
		if _, _, e := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(atoi(a[0])), uintptr(unsafe.Pointer(&param))); e != 0 {
			return e
		}
		return nil
	case 'k': // leave the host's session keyring; without the system call there is none to reach
		if _, _, e := unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); e != 0 && e != unix.ENOSYS && e != unix.EPERM {
			return e
		}
		return nil
	case 'c':
		return dropCapabilities()
	case 'L': // Landlock: handled rights, then pairs of rights and path
		return landlock(a)
	case 's': // seccomp: the filter's program
		return seccomp(a[0])
	case 'm':
		return h.meet()
	case 'g': // the guest came from a fork server: pid
		h.guest = atoi(a[0])
		h.started(h.assembled)
	case 'K': // a guest that a fork server could not finish: pid
		_ = unix.Kill(atoi(a[0]), unix.SIGKILL)
	case 'e':
		h.env = append(h.env, a...)
	case 'a':
		h.argv = append(h.argv, a...)
	case 'w':
		h.dir = a[0]
	case 'x':
		return h.start()
	}
	return nil
}

func (h *helper) openTree(path, flags string) error {
	fd, err := openTree(path, flags)
	if err == nil {
		h.trees = append(h.trees, fd)
	}
	return err
}

// openTree detaches a copy of the mounts at path. Flags: w leaves it writable,
// v leaves devices usable, x forbids execution.
func openTree(path, flags string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if !strings.Contains(flags, "w") {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !strings.Contains(flags, "v") {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	}
	if strings.Contains(flags, "x") {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setUser becomes the guest's user on this thread. Capabilities stay: no user
// id here is that of the namespace's root.
func (h *helper) setUser(uid, gid int) error {
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 && e != unix.EPERM {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return e
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return e
	}
	h.uid, h.gid = uid, gid
	return nil
}

func writeFile(path string, mode uint32, content string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	b := []byte(content)
	for len(b) > 0 && err == nil {
		var n int
		n, err = unix.Write(fd, b)
		b = b[max(n, 0):]
	}
	_ = unix.Close(fd)
	return err
}

// dropCapabilities empties every capability set of this thread, for good.
func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			break // past the last one
		}
		if err != nil {
			return err
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// landlock restricts this thread to the given rights below the given paths.
func landlock(a []string) error {
	handled := struct{ fs, net, scoped uint64 }{fs: uint64(atoi(a[0]))}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&handled)), 8, 0)
	if e != 0 {
		return e
	}
	defer func() { _ = unix.Close(int(fd)) }()
	for i := 1; i+1 < len(a); i += 2 {
		parent, err := unix.Open(a[i+1], unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return err
		}
		rule := unix.LandlockPathBeneathAttr{Allowed_access: uint64(atoi(a[i])), Parent_fd: int32(parent)}
		_, _, e = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH,
			uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
		_ = unix.Close(parent)
		if e != 0 {
			return e
		}
	}
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return e
	}
	return nil
}

// seccomp installs the filter on every thread of the helper; the guest
// inherits it.
func seccomp(program string) error {
	b := []byte(program)
	if len(b) == 0 || len(b)%8 != 0 {
		return unix.EINVAL
	}
	f := make([]unix.SockFilter, len(b)/8)
	for i := range f {
		p := b[i*8:]
		f[i] = unix.SockFilter{Code: uint16(p[0]) | uint16(p[1])<<8, Jt: p[2], Jf: p[3], K: getUint32(p[4:])}
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	if r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	} else if r != 0 {
		return unix.ESRCH // a thread that could not follow
	}
	return nil
}

// meet tells that the sandbox is ready for a guest, and goes on with the plan
// that the driver sends when it knows where the guest comes from.
func (h *helper) meet() error {
	h.assembled = now()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	h.shed() // that guest may run before this thread does
	send(msgAssembled, nil, -1)
	plan, err := readPlan()
	if err != nil {
		unix.Exit(125)
	}
	return h.run(plan)
}

// start runs the guest.
func (h *helper) start() error {
	if len(h.argv) == 0 {
		return unix.EINVAL
	}
	assembled := now()
	// Nothing inside may look at the helper or attach to it, from the guest's first
	// moment on: its exec makes the guest itself dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	unix.Umask(0o022)
	pid, err := syscall.ForkExec(h.argv[0], h.argv, &syscall.ProcAttr{
		Dir:   h.dir,
		Env:   h.env,
		Files: []uintptr{0, 1, 2, streamFD},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	h.guest = pid
	h.started(assembled)
	return nil
}

// started tells when the guest was.
func (h *helper) started(assembled int64) {
	var b [24]byte
	putInt64(b[:], h.began)
	putInt64(b[8:], assembled)
	putInt64(b[16:], now())
	send(msgStarted, b[:], -1)
}

// atoi reads a decimal number; the driver writes no other.
func atoi(s string) int {
	n := 0
	for i := range len(s) {
		n = n*10 + int(s[i]-'0')
	}
	return n
}
