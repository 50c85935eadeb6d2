// Command init is the first process of a docker sandbox: pid 1 of its
// container. It connects to the socket that the driver has mounted beside it,
// gets a plan and the guest's descriptors, starts the guest, and reports how it
// ended. Until the plan comes nothing of the user's runs, so the driver can
// finish the container's network and file systems first.
//
// It decides nothing: package docker does, where it can be tested. It avoids
// fmt, encoding/json, net and os because its start is on the path of each cold
// call.
//
// The end of the connection means that the server is gone or has seen enough:
// the container ends with it.
package main

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	socketPath = "/hearth/run/socket"
	controlFD  = 10 // far from the guest's descriptors
	maxPlan    = 8 << 20
	maxFiles   = 4
)

// Messages to the driver: one byte of type, four of length, the payload.
const (
	msgStarted = 'S' // the guest runs
	msgExit    = 'X' // the guest's wait status
	msgError   = 'E' // step, errno and argument of what failed
)

// helper is the state that the steps of a plan build up.
type helper struct {
	files []int // received, in the order they were sent
	guest [4]int
	argv  []string
	env   []string
	dir   string
	pid   int // of the guest
}

func main() {
	runtime.LockOSThread() // filters and scheduling belong to a thread
	if unix.Getpid() != 1 {
		unix.Exit(0) // the driver's probe runs the helper as a guest
	}
	_ = unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("hearth-init\x00")[0])), 0, 0, 0)
	if connect() != nil {
		unix.Exit(124)
	}
	h := helper{guest: [4]int{-1, -1, -1, -1}}
	plan, err := h.receive()
	if err != nil {
		unix.Exit(125)
	}
	if op, what, err := h.run(plan); err != nil {
		fail(op, what, err)
	}
	// Only the guest holds its own descriptors.
	for _, fd := range append(h.files, 0, 1, 2) {
		_ = unix.Close(fd)
	}
	send(msgStarted, nil)
	go lifeline()
	h.reap()
}

func connect() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socketPath}); err != nil {
		return err
	}
	if err := unix.Dup3(fd, controlFD, unix.O_CLOEXEC); err != nil {
		return err
	}
	return unix.Close(fd)
}

// receive reads the length and the bytes of the plan; the descriptors come with
// the first of them.
func (h *helper) receive() ([]byte, error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	for got := 0; got < len(head); {
		n, oobn, _, _, err := unix.Recvmsg(controlFD, head[got:], oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, unix.EPIPE
		}
		got += n
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for i := range messages {
				if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
					h.files = append(h.files, fds...)
				}
			}
		}
	}
	n := getUint32(head[:])
	if n > maxPlan {
		return nil, unix.E2BIG
	}
	plan := make([]byte, n)
	for b := plan; len(b) > 0; {
		n, err := unix.Read(controlFD, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, unix.EPIPE
		}
		b = b[n:]
	}
	return plan, nil
}

// run executes a plan: records of one byte of operation, one byte with the
// number of arguments, and the arguments, each with four bytes of length.
func (h *helper) run(plan []byte) (op byte, what string, err error) {
	for len(plan) > 0 {
		if len(plan) < 2 {
			return '?', "short plan", unix.EINVAL
		}
		op, args := plan[0], make([]string, plan[1])
		plan = plan[2:]
		for i := range args {
			if len(plan) < 4 || uint64(len(plan)-4) < uint64(getUint32(plan)) {
				return op, "short plan", unix.EINVAL
			}
			l := int(getUint32(plan))
			args[i] = string(plan[4 : 4+l])
			plan = plan[4+l:]
		}
		if err := h.step(op, args); err != nil {
			if len(args) > 0 && op != 's' && op != 'e' {
				what = args[0]
			}
			return op, what, err
		}
	}
	return 0, "", nil
}

func (h *helper) step(op byte, a []string) error {
	switch op {
	case 'f': // the guest's descriptors that the received files become, in order
		for i := range a {
			if i >= len(h.files) {
				return unix.EBADF
			}
			h.guest[atoi(a[i])&3] = h.files[i]
		}
	case 'S': // scheduling policy of this thread and what it starts
		param := int32(0)
		if _, _, e := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(atoi(a[0])), uintptr(unsafe.Pointer(&param))); e != 0 && e != unix.EPERM && e != unix.EINVAL {
			return e
		}
	case 'i': // resource limit, never above what there is: number, soft, hard
		var now unix.Rlimit
		if err := unix.Getrlimit(atoi(a[0]), &now); err != nil {
			return err
		}
		l := unix.Rlimit{Cur: min(uint64(atoi(a[1])), now.Max), Max: min(uint64(atoi(a[2])), now.Max)}
		if err := unix.Setrlimit(atoi(a[0]), &l); err != unix.EPERM { // other kernels, such as gVisor's, know fewer
			return err
		}
	case 's': // seccomp: the filter's program
		return seccomp(a[0])
	case 'e':
		h.env = append(h.env, a...)
	case 'a':
		h.argv = append(h.argv, a...)
	case 'w':
		h.dir = a[0]
	case 'x':
		return h.start()
	default:
		return unix.EINVAL
	}
	return nil
}

// seccomp installs the filter on every thread of the helper; the guest inherits
// it.
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
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
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

// start runs the guest.
func (h *helper) start() error {
	if len(h.argv) == 0 || h.guest[3] < 0 {
		return unix.EINVAL
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	h.files = append(h.files, null)
	files := make([]uintptr, len(h.guest))
	for i, fd := range h.guest {
		if fd < 0 {
			fd = null
		}
		files[i] = uintptr(fd)
	}
	// Nothing inside may look at the helper or attach to it, from the guest's first
	// moment on: its exec makes the guest itself dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	unix.Umask(0o022)
	h.pid, err = syscall.ForkExec(h.argv[0], h.argv, &syscall.ProcAttr{
		Dir: h.dir, Env: h.env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	return err
}

// lifeline ends the container when the server closes the connection or dies.
func lifeline() {
	var b [1]byte
	for {
		n, err := unix.Read(controlFD, b[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			unix.Exit(126)
		}
	}
}

// reap collects every process that ends. When it was the guest, the server is
// told; it looks at the container's counters and then closes the connection.
func (h *helper) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // no process is left but this one
			select {}
		}
		if pid == h.pid && (status.Exited() || status.Signaled()) {
			var b [4]byte
			putUint32(b[:], uint32(status))
			send(msgExit, b[:])
		}
	}
}

// fail reports what failed and ends the container.
func fail(op byte, what string, err error) {
	errno, _ := err.(syscall.Errno) //nolint:errorlint // steps return bare errnos
	b := []byte{op, 0, 0, 0, 0}
	putUint32(b[1:], uint32(errno))
	send(msgError, append(b, what...))
	unix.Exit(125)
}

// send writes one message. An error means that the server is gone, which
// lifeline notices.
func send(kind byte, payload []byte) {
	b := make([]byte, 5, 5+len(payload))
	b[0] = kind
	putUint32(b[1:], uint32(len(payload)))
	b = append(b, payload...)
	for {
		if err := unix.Sendmsg(controlFD, b, nil, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return
		}
	}
}

func putUint32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

func getUint32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// atoi reads a decimal number; the driver writes no other.
func atoi(s string) int {
	n := 0
	for i := range len(s) {
		n = n*10 + int(s[i]-'0')
	}
	return n
}
