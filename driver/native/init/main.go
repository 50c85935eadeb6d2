// Command init is the first process of a native sandbox: pid 1 of its pid
// namespace. The driver starts it in the sandbox's control group; it clones
// itself into new namespaces, and there gets a plan from the driver: steps that assemble the root file system, give up every privilege and start
// the guest. Afterwards it reaps processes, and exits when the guest has, which
// makes the kernel kill whatever else is inside.
//
// It decides nothing: package native does, where it can be tested. It avoids
// fmt, encoding/json, net and os because its start is on the path of each cold
// call.
//
// Descriptors at its start: 0, 1 and 2 are the guest's, 3 is the guest's stream,
// 4 the control socket. The end of the control socket means that the server is
// gone, and the sandbox ends with it.
package main

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	streamFD  = 3
	controlFD = 4
	maxPlan   = 8 << 20
)

// Messages to the driver: one byte of type, four of length, the payload.
const (
	msgCloned    = 'P' // the process id of pid 1, as the server sees it
	msgAssembled = 'A' // the plan has come to its step m
	msgStarted   = 'S' // three monotonic times in ns: main, assembled, started
	msgExit      = 'X' // the guest's wait status
	msgTUN       = 'T' // with the descriptor of the TUN device attached
	msgError     = 'E' // step, errno and argument of what failed
)

func main() {
	runtime.LockOSThread() // capabilities, filters and rules belong to a thread
	h := helper{began: now(), uid: -1, gid: -1, tun: -1}
	// Nothing but 0 to 3 reaches the guest: not the control socket, and not what
	// the server's own parent may have left open in it.
	if unix.CloseRange(controlFD, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) != nil {
		unix.Exit(125)
	}
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("hearth-init\x00")[0])), 0, 0, 0)
	unix.Umask(0) // the plan gives exact modes
	if unix.Getpid() != 1 {
		clone()
	}
	plan, err := readPlan()
	if err != nil {
		unix.Exit(125)
	}
	if err := h.run(plan); err != nil {
		h.fail(err)
	}
	go lifeline()
	h.shed()
	for fd := range streamFD + 1 { // only the guest holds its own descriptors
		_ = unix.Close(fd)
	}
	h.reap()
}

// clone starts this program once more, as pid 1 of new namespaces and as a
// child of the server, and ends. The server could do that itself, but a process
// that is made in a new user namespace starts with a copy of its parent's page
// tables: little here, milliseconds in the server.
func clone() {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"init"}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   syscall.Environ(),
		Files: []uintptr{0, 1, 2, streamFD, controlFD},
		Sys:   &syscall.SysProcAttr{Cloneflags: namespaces | unix.CLONE_PARENT, AmbientCaps: capabilities, Setsid: true},
	})
	if err != nil {
		errno, _ := err.(syscall.Errno) //nolint:errorlint // ForkExec returns bare errnos
		(&helper{}).fail(&stepError{op: 'N', errno: errno})
	}
	var b [4]byte
	putUint32(b[:], uint32(pid))
	send(msgCloned, b[:], -1)
	unix.Exit(0)
}

const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// capabilities are what the steps of a plan need, in the new namespaces only.
var capabilities = []uintptr{
	unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP,
}

// stepError is a step of the plan that failed.
type stepError struct {
	op    byte
	what  string
	errno syscall.Errno
}

func (e *stepError) Error() string { return e.what }

// fail reports err and ends the sandbox.
func (h *helper) fail(err error) {
	b := []byte{'?', 0, 0, 0, 0}
	if e, ok := err.(*stepError); ok { //nolint:errorlint // run wraps nothing
		b[0] = e.op
		putUint32(b[1:], uint32(e.errno))
		b = append(b, e.what...)
	}
	send(msgError, b, -1)
	unix.Exit(125)
}

// lifeline ends the sandbox when the server closes the control socket or dies.
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

// shed gives up the privileges of the helper's other threads. The guest has
// none of them anyway: it descends from the thread that gave them up before.
func (h *helper) shed() {
	if h.bare {
		return
	}
	h.bare = true
	if h.gid >= 0 {
		_ = syscall.Setresgid(h.gid, h.gid, h.gid)
		_ = syscall.Setresuid(h.uid, h.uid, h.uid)
	}
	var caps [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&caps[0])), 0); e != 0 {
		h.fail(&stepError{op: 'c', what: "capset on all threads", errno: e})
	}
	// A change of user may have undone what start did.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// reap collects every process that ends, and ends with the guest.
func (h *helper) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Exit(125)
		}
		if pid == h.guest && (status.Exited() || status.Signaled()) {
			var b [4]byte
			putUint32(b[:], uint32(status))
			send(msgExit, b[:], -1)
			unix.Exit(0)
		}
	}
}

// send writes one message; fd travels with it unless it is negative. An error
// means that the server is gone, which lifeline notices.
func send(kind byte, payload []byte, fd int) {
	b := make([]byte, 5, 5+len(payload))
	b[0] = kind
	putUint32(b[1:], uint32(len(payload)))
	b = append(b, payload...)
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	for {
		if err := unix.Sendmsg(controlFD, b, oob, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return
		}
	}
}

// readPlan reads the length and the bytes of the plan.
func readPlan() ([]byte, error) {
	var head [4]byte
	if err := readFull(head[:]); err != nil {
		return nil, err
	}
	n := getUint32(head[:])
	if n > maxPlan {
		return nil, unix.E2BIG
	}
	plan := make([]byte, n)
	return plan, readFull(plan)
}

func readFull(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(controlFD, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EPIPE
		}
		b = b[n:]
	}
	return nil
}

// now is the monotonic clock in nanoseconds, the same in every process.
func now() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

func putUint32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

func getUint32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func putInt64(b []byte, v int64) {
	putUint32(b, uint32(v))
	putUint32(b[4:], uint32(v>>32))
}
