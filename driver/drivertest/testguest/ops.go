package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ops are the operations by name.
var ops = map[string]func(request) (answer, error){
	"echo":      func(r request) (answer, error) { return answer{Text: r.Text}, nil },
	"read":      readFile,
	"list":      listDir,
	"write":     writeFile,
	"stat":      stat,
	"readlink":  func(r request) (answer, error) { to, err := os.Readlink(r.Path); return answer{Text: to}, err },
	"env":       func(request) (answer, error) { return answer{List: os.Environ()}, nil },
	"cwd":       func(request) (answer, error) { d, err := os.Getwd(); return answer{Text: d}, err },
	"processes": processes,
	"fds":       fds,
	"status":    status,
	"connect":   connect,
	"download":  download,
	"send":      send,
	"resolve":   resolve,
	"abstract":  abstract,
	"listen":    listen,
	"allocate":  allocate,
	"spin":      spin,
	"count":     count,
	"spawn":     spawn,
	"threads":   threads,
	"orphan":    orphan,
	"exit":      func(r request) (answer, error) { os.Exit(int(r.N)); return answer{}, nil },
	"kill":      kill,
	"print":     print,
	"flood":     flood,
	"hang":      func(request) (answer, error) { silent(); return answer{}, nil },
	"deaf":      deaf,
	"syscalls":  func(request) (answer, error) { return answer{Map: trySyscalls()}, nil },
	"shm":       shm,
	"mounts":    mounts,
	"run":       run,
	"clock":     func(request) (answer, error) { return answer{N: time.Now().UnixNano()}, nil },
	"chroot":    func(r request) (answer, error) { return answer{}, syscall.Chroot(r.Path) },
}

func errno(err error) (syscall.Errno, bool) {
	var e syscall.Errno
	ok := errors.As(err, &e)
	return e, ok
}

func readFile(r request) (answer, error) {
	f, err := os.Open(r.Path)
	if err != nil {
		return answer{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return answer{Text: string(b), N: int64(len(b))}, err
}

func listDir(r request) (answer, error) {
	entries, err := os.ReadDir(r.Path)
	var a answer
	for _, e := range entries {
		a.List = append(a.List, e.Name())
	}
	return a, err
}

// writeFile writes Text, or N bytes, and says how many were written.
func writeFile(r request) (answer, error) {
	f, err := os.OpenFile(r.Path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return answer{}, err
	}
	defer f.Close()
	if r.Text != "" {
		n, err := f.WriteString(r.Text)
		return answer{N: int64(n)}, err
	}
	var a answer
	for chunk := make([]byte, 1<<20); a.N < r.N; {
		n, err := f.Write(chunk[:min(int64(len(chunk)), r.N-a.N)])
		a.N += int64(n)
		if err != nil {
			return a, err
		}
	}
	return a, nil
}

func stat(r request) (answer, error) {
	var s syscall.Stat_t
	err := syscall.Lstat(r.Path, &s)
	return answer{N: s.Size, Text: fmt.Sprintf("%o %d %d", s.Mode, s.Uid, s.Gid)}, err
}

// processes lists the command lines of all processes in sight, by process id.
func processes(request) (answer, error) {
	a := answer{Map: map[string]string{}}
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		b, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		a.Map[e.Name()] = string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
	}
	return a, err
}

// fds lists the open descriptors: what each refers to by its number, without
// those of the Go runtime's poller and of the listing itself.
func fds(request) (answer, error) {
	a := answer{Map: map[string]string{}}
	for fd := range 1024 {
		link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err == nil && link != "anon_inode:[eventpoll]" && link != "anon_inode:[eventfd]" {
			a.Map[strconv.Itoa(fd)] = link
		}
	}
	return a, nil
}

// status returns the fields of /proc/self/status.
func status(request) (answer, error) {
	a := answer{Map: map[string]string{}}
	f, err := os.Open("/proc/thread-self/status")
	if err != nil {
		return a, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		k, v, _ := strings.Cut(sc.Text(), ":")
		a.Map[k] = strings.Join(strings.Fields(v), " ")
	}
	return a, nil
}

// connect opens a TCP connection to Path, writes Text and reads what comes back.
func connect(r request) (answer, error) {
	start := time.Now()
	c, err := net.DialTimeout("tcp", r.Path, r.Timeout)
	a := answer{N: int64(time.Since(start))}
	if err != nil {
		return a, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(r.Timeout))
	if r.Text == "" {
		return a, nil
	}
	if _, err := io.WriteString(c, r.Text); err != nil {
		return a, err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	a.Text = string(buf[:n])
	return a, err
}

// download reads from Path until its end, more slowly than it is sent, and
// counts the bytes that are not as they were sent: each is its place modulo 251.
func download(r request) (answer, error) {
	c, err := net.DialTimeout("tcp", r.Path, r.Timeout)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(r.Timeout))
	buf := make([]byte, 10<<10)
	wrong := 0
	for at := int64(0); ; {
		n, err := c.Read(buf)
		for i, b := range buf[:n] {
			if b != byte((at+int64(i))%251) {
				wrong++
			}
		}
		at += int64(n)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return answer{N: at, Text: strconv.Itoa(wrong)}, err
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// send sends Text to Path by UDP and waits for an answer.
func send(r request) (answer, error) {
	c, err := net.Dial("udp", r.Path)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(r.Timeout))
	if _, err := io.WriteString(c, r.Text); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	return answer{Text: string(buf[:n])}, err
}

// resolve asks the name server Path for a transfer of the zone Text, which no
// relay passes on, and says with what code it answered.
func resolve(r request) (answer, error) {
	c, err := net.Dial("udp", r.Path)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(r.Timeout))
	msg := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(r.Text))}
	msg = append(append(msg, r.Text...), 0, 0, 252, 0, 1)
	if _, err := c.Write(msg); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err == nil && (n < 12 || buf[0] != 0x12 || buf[1] != 0x34) {
		err = errors.New("the answer is not for this question")
	}
	return answer{N: int64(buf[3] & 15)}, err
}

// abstract connects to a unix socket in the abstract namespace.
func abstract(r request) (answer, error) {
	c, err := net.DialTimeout("unix", "@"+r.Path, r.Timeout)
	if err == nil {
		c.Close()
	}
	return answer{}, err
}

// listen serves an echo on a port of the sandbox's own loopback, as functions
// that test themselves do.
func listen(request) (answer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return answer{}, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	return answer{Text: l.Addr().String()}, nil
}

// held keeps what allocate took.
var held [][]byte

// allocate takes N bytes of memory and touches each page.
func allocate(r request) (answer, error) {
	for taken := int64(0); taken < r.N; taken += 1 << 20 {
		b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return answer{N: taken}, err
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	return answer{N: r.N}, nil
}

// spin burns CPU on N threads for Timeout and says how much it got.
func spin(r request) (answer, error) {
	runtime.GOMAXPROCS(max(int(r.N), 1))
	end := time.Now().Add(r.Timeout)
	done := make(chan struct{})
	for range max(int(r.N), 1) {
		go func() {
			for time.Now().Before(end) {
			}
			done <- struct{}{}
		}()
	}
	for range max(int(r.N), 1) {
		<-done
	}
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return answer{N: u.Utime.Nano() + u.Stime.Nano()}, err
}

var counter = make(chan int64, 1)

// count starts, the first time, a goroutine that counts up every millisecond,
// and says how far it is.
func count(request) (answer, error) {
	var n int64
	select {
	case n = <-counter:
	default:
		go func() {
			for i := int64(1); ; i++ {
				select {
				case <-counter:
				default:
				}
				counter <- i
				time.Sleep(time.Millisecond)
			}
		}()
	}
	return answer{N: n}, nil
}

// spawn starts up to N copies of the guest that sleep and says how many.
func spawn(r request) (answer, error) {
	for n := range r.N {
		attr := &syscall.ProcAttr{Env: os.Environ()}
		if _, err := syscall.ForkExec("/proc/self/exe", []string{"testguest", "sleep"}, attr); err != nil {
			return answer{N: n}, err
		}
	}
	return answer{N: r.N}, nil
}

// threads makes up to N threads with clone, which a limit of processes counts
// as well. Threads of Go's own cannot be used: when it cannot start one it dies.
func threads(r request) (answer, error) {
	for n := range r.N {
		pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if e != 0 {
			return answer{N: n}, e
		}
		if pid == 0 {
			for {
				_, _, _ = syscall.RawSyscall(syscall.SYS_PPOLL, 0, 0, 0)
			}
		}
	}
	return answer{N: r.N}, nil
}

// orphan leaves a sleeping process behind that has another session and parent.
func orphan(request) (answer, error) {
	return answer{}, exec.Command("/proc/self/exe", "orphan").Run()
}

func kill(r request) (answer, error) {
	signal.Reset()
	err := syscall.Kill(os.Getpid(), syscall.Signal(r.N))
	if err == nil {
		silent() // until it arrives
	}
	return answer{}, err
}

// print writes N numbered lines to stdout (Text "1") or stderr ("2").
func print(r request) (answer, error) {
	f := os.Stdout
	if r.Text == "2" {
		f = os.Stderr
	}
	w := bufio.NewWriter(f)
	for i := range r.N {
		fmt.Fprintf(w, "line %d\n", i)
	}
	return answer{}, w.Flush()
}

// flood writes to stdout and stderr without end, from now on.
func flood(request) (answer, error) {
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		go func() {
			for b := bytes.Repeat([]byte("flood "), 10000); ; {
				_, _ = f.Write(b)
			}
		}()
	}
	return answer{}, nil
}

// deaf ignores every signal that can be ignored, and then hangs.
func deaf(request) (answer, error) {
	signal.Ignore()
	silent()
	return answer{}, nil
}

// shm lists the System V shared memory segments in sight and tries to make one.
func shm(request) (answer, error) {
	var a answer
	b, err := os.ReadFile("/proc/sysvipc/shm")
	if err == nil {
		a.List = strings.Split(strings.TrimSpace(string(b)), "\n")[1:]
	}
	return a, nil
}

// mounts returns the options of every mount by its target.
func mounts(request) (answer, error) {
	a := answer{Map: map[string]string{}}
	b, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if w := strings.Fields(line); len(w) > 5 {
			a.Map[w[4]] = w[5]
		}
	}
	return a, err
}

// run starts the program Path with Text as its argument and returns its output.
func run(r request) (answer, error) {
	out, err := exec.Command(r.Path, r.Text).CombinedOutput()
	return answer{Text: string(out)}, err
}
