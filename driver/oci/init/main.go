// Command init is the first process of a sandbox of runc or gVisor: pid 1 of its
// pid namespace. It starts the guest, tells the driver about its start and its
// end, reaps processes, and exits when the guest has, which ends whatever else
// is inside. The end of the control socket means that the server is gone, and
// the sandbox ends with it.
//
// Its first argument says how its descriptors lie:
//
//	direct  0, 1 and 2 are the guest's, 3 is its stream, 4 the control socket
//	packed  0 is the guest's stream, 1 the control socket, 2 takes what the guest
//	        writes to 1 and 2, in records: gVisor can give a restored sandbox new
//	        files for 0 to 2 only
//
// A packed sandbox starts as root of its own kernel. Then come the size in bytes
// of what can be written to, which init mounts, the number of the caller's
// mounts and their targets, which init makes stricter than gVisor does, before
// it becomes user 1000, without capabilities. Of a direct one the runtime has
// done all that, but for the filter of system calls: its program is the first
// that comes over the control socket. The rest of the arguments is the guest's
// command.
//
// It avoids fmt, encoding/json and net because its start is on the path of
// each cold call.
package main

import (
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	streamFD  = 3
	controlFD = 4
	recordFD  = 5
	user      = 1000
)

// Messages to the driver: one byte of type, four of payload, little-endian.
const (
	msgStarted = 'S' // the guest's process was started
	msgExit    = 'X' // the guest's wait status
	msgTasks   = 'N' // how many processes and threads there are
	msgError   = 'E' // errno of the start of the guest
	msgSetup   = 'F' // errno of what comes before it
)

// askTasks asks for msgTasks.
const askTasks = 'n'

// drain is how long, in milliseconds, the end of the guest waits for the driver
// to take what was written last.
const drain = 500

func main() {
	runtime.LockOSThread()                          // capabilities belong to a thread
	if len(os.Args) == 2 && os.Args[1] == "probe" { // it has shown that programs run
		unix.Exit(0)
	}
	if len(os.Args) < 3 {
		unix.Exit(125)
	}
	argv := os.Args[2:]
	packed := os.Args[1] == "packed"
	files := []uintptr{0, 1, 2, streamFD}
	var outputs [2]int
	if packed {
		if !unpack() {
			unix.Exit(125)
		}
		n := 0
		if len(argv) > 1 {
			n = atoi(argv[1])
		}
		if len(argv) < 3+n {
			unix.Exit(125)
		}
		if errno := mounts(argv[0], argv[2:2+n]); errno != 0 {
			fail(msgSetup, errno)
		}
		argv = argv[2+n:]
		var errno syscall.Errno
		if files, outputs, errno = pipes(); errno != 0 {
			fail(msgSetup, errno)
		}
		if errno := drop(); errno != 0 {
			fail(msgSetup, errno)
		}
	}
	if unix.CloseRange(controlFD, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) != nil {
		for fd := controlFD; fd < 64; fd++ {
			unix.CloseOnExec(fd)
		}
	}
	if !packed {
		if errno := confine(); errno != 0 {
			fail(msgSetup, errno)
		}
		// A batch task does not preempt whoever wakes it; package native says why.
		param := int32(0)
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_BATCH, uintptr(unsafe.Pointer(&param)))
	}
	// Nothing inside may look at this process or attach to it, from the guest's
	// first moment on: its exec makes the guest itself dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fail(msgSetup, errno(err))
	}
	unix.Umask(0o022)
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: "/tmp", Env: syscall.Environ(), Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		errno, _ := err.(syscall.Errno) //nolint:errorlint // ForkExec returns bare errnos
		fail(msgError, errno)
	}
	send(msgStarted, 0)
	for fd := range streamFD + 1 { // only the guest holds its own descriptors
		_ = unix.Close(fd)
	}
	copied := make(chan struct{})
	if packed {
		for _, fd := range files[1:3] {
			_ = unix.Close(int(fd))
		}
		go func() {
			record(outputs)
			close(copied)
		}()
	}
	go serve()
	status := reap(pid)
	if packed {
		_ = unix.Kill(-1, unix.SIGKILL) // whoever else holds the outputs
		go func() {
			pause(drain)
			end(status)
		}()
		<-copied
	}
	end(status)
}

func end(status uint32) {
	send(msgExit, status)
	unix.Exit(0)
}

// unpack moves the descriptors of a packed sandbox to where they are in others.
func unpack() bool {
	for from, to := range []int{streamFD, controlFD, recordFD} {
		if unix.Dup3(from, to, 0) != nil {
			return false
		}
	}
	return true // the duplicates follow when a restored sandbox gets new files
}

// mounts mounts one file system for all that can be written to, so that one
// size bounds it, and takes devices from what the caller has mounted: gVisor
// does not heed that option in its configuration.
func mounts(size string, targets []string) syscall.Errno {
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	for _, target := range targets {
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
			return errno(err)
		}
	}
	unix.Umask(0)
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", flags, "mode=0755,size="+size); err != nil {
		return errno(err)
	}
	for _, d := range []struct{ dir, on string }{{"/tmp/shm", "/dev/shm"}, {"/tmp/vartmp", "/var/tmp"}, {"/tmp/tmp", "/tmp"}} {
		if err := unix.Mkdir(d.dir, 0o1777); err != nil {
			return errno(err)
		}
		if err := unix.Mount(d.dir, d.on, "", unix.MS_BIND, ""); err != nil {
			return errno(err)
		}
	}
	return 0
}

// pipes makes the guest's first descriptors, and returns the ends from which
// its outputs can be read.
func pipes() (files []uintptr, outputs [2]int, e syscall.Errno) {
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, outputs, errno(err)
	}
	files = []uintptr{uintptr(null)}
	for i := range outputs {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, outputs, errno(err)
		}
		outputs[i] = p[0]
		files = append(files, uintptr(p[1]))
	}
	return append(files, streamFD), outputs, 0
}

// drop gives up every privilege.
func drop() syscall.Errno {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			break // past the last one
		}
		if err != nil {
			return errno(err)
		}
	}
	if err := syscall.Setgroups(nil); err != nil {
		return errno(err)
	}
	if err := syscall.Setresgid(user, user, user); err != nil {
		return errno(err)
	}
	if err := syscall.Setresuid(user, user, user); err != nil {
		return errno(err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&caps[0])), 0); e != 0 {
		return e
	}
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		return e
	}
	return filter()
}

// record copies what the guest writes: one byte for the descriptor, four for
// the length, the bytes. It returns when every process has closed its end.
func record(outputs [2]int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, fd := range outputs {
		wg.Go(func() {
			buf := make([]byte, 5+16<<10)
			for {
				n, err := unix.Read(fd, buf[5:])
				if err == unix.EINTR {
					continue
				}
				if n <= 0 {
					return
				}
				buf[0] = byte(i + 1)
				putUint32(buf[1:], uint32(n))
				mu.Lock()
				writeAll(recordFD, buf[:5+n])
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// serve answers the driver, and ends the sandbox when it closes the control
// socket or dies.
func serve() {
	var b [1]byte
	for {
		n, err := unix.Read(controlFD, b[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			unix.Exit(126)
		}
		if b[0] == askTasks {
			send(msgTasks, tasks())
		}
	}
}

// tasks counts processes and threads, without those of this process.
func tasks() uint32 {
	var n uint32
	each("/proc", func(pid string) {
		if pid != "1" {
			each("/proc/"+pid+"/task", func(string) { n++ })
		}
	})
	return n
}

// each calls fn for the entries of a directory that are numbers.
func each(dir string, fn func(name string)) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 4<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil || n <= 0 {
			return
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if name[0] >= '0' && name[0] <= '9' {
				fn(name)
			}
		}
	}
}

// reap collects every process that ends, until the guest has.
func reap(guest int) uint32 {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Exit(125)
		}
		if pid == guest && (status.Exited() || status.Signaled()) {
			return uint32(status)
		}
	}
}

// fail reports why the guest does not run.
func fail(kind byte, errno syscall.Errno) {
	send(kind, uint32(errno))
	unix.Exit(125)
}

// send writes one message. An error means that the server is gone, which serve
// notices.
func send(kind byte, v uint32) {
	var b [5]byte
	b[0] = kind
	putUint32(b[1:], v)
	writeAll(controlFD, b[:])
}

func writeAll(fd int, b []byte) {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		b = b[n:]
	}
}

func pause(ms int64) {
	t := unix.NsecToTimespec(ms * 1e6)
	for unix.Nanosleep(&t, &t) == unix.EINTR { //nolint:errorlint // a bare errno
		continue
	}
}

func errno(err error) syscall.Errno {
	e, ok := err.(syscall.Errno) //nolint:errorlint // the system call package returns bare errnos
	if !ok {
		return unix.EIO
	}
	return e
}

// atoi reads a decimal number; the driver writes no other.
func atoi(s string) int {
	n := 0
	for i := range len(s) {
		n = n*10 + int(s[i]-'0')
	}
	return n
}

func putUint32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}
