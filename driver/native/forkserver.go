package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
)

// A fork server is a warm interpreter from which guests are forked instead of
// being executed (guest/python/hearth_zygote.py). It is an optimisation only:
// whatever goes wrong with one, pid 1 executes the guest as it does without.

const (
	// Siblings of one fork server share the layout of their memory and the seed
	// of their hashes. So none gets more than these, nor much older than that.
	// A new one costs a third of a second of CPU in the background: 3 ms a fork.
	forksEach   = 100
	forkMaxAge  = 10 * time.Minute
	forkMaxIdle = 15 * time.Minute // then its memory is worth more than its speed

	// With less memory a guest may be killed before it is one, which would look as
	// if the fork server had failed; with less CPU it would keep it from others.
	forkMinMemory = 32 << 20
	forkMinCPU    = 0.2

	forkMaxWaiting = 32              // guests; more are executed
	forkTimeout    = 5 * time.Second // of each step; they take a few milliseconds
	warmTimeout    = 20 * time.Second
	firstBackoff   = time.Second
	lastBackoff    = 10 * time.Minute
)

// forkServers are the fork servers of a driver, one for each interpreter.
type forkServers struct {
	driver *Driver

	mu      sync.Mutex
	closed  bool                   // guarded by mu
	servers map[string]*forkServer // guarded by mu; by the interpreter's path
	wg      sync.WaitGroup         // its goroutines
}

// forkServer is the place of an interpreter's fork server. Its fields are
// guarded by forkServers.mu.
type forkServer struct {
	current  *zygote // nil while there is none
	starting bool
	failures int       // one after another
	retry    time.Time // no start before
}

// zygote is one process that forks guests.
type zygote struct {
	// Constant after its start.
	server  *forkServer
	runtime string
	process *os.Process
	conn    *net.UnixConn
	began   time.Time
	errors  lockedBuffer
	gone    chan struct{} // closed when its process is
	waiting atomic.Int32  // guests on their way

	forks int         // guarded by forkServers.mu
	idle  *time.Timer // retires it; guarded by forkServers.mu
}

// warm returns the process to fork the spec's guest from, nil for none. It never
// waits: a missing or an old one is started for those who come later.
func (f *forkServers) warm(ctx context.Context, spec driver.Spec) *zygote {
	if spec.Runtime == "" || spec.Runtime == driver.Provided || spec.Build || len(spec.Command) > 0 ||
		spec.Limits.Memory < forkMinMemory || spec.Limits.CPU < forkMinCPU || f.driver.landlock == 0 {
		return nil
	}
	it, ok := f.driver.interpreterFor(ctx, spec.Runtime)
	if !ok || guest.ForkCommand(it.Language, it.Exe, driver.GuestDir) == nil || !f.driver.forkable(it.Exe) {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	s := f.servers[it.Exe]
	if s == nil {
		s = &forkServer{}
		f.servers[it.Exe] = s
	}
	z := s.current
	if z != nil && z.waiting.Load() >= forkMaxWaiting {
		return nil
	}
	if z != nil {
		z.forks++
		z.idle.Reset(forkMaxIdle)
	}
	if (z == nil || z.forks >= forksEach || time.Since(z.began) > forkMaxAge) && !s.starting && !time.Now().Before(s.retry) {
		s.starting = true
		f.wg.Go(func() { f.start(s, it) })
	}
	return z
}

// forkable tells whether guests may have the program as their own although it
// was started outside of their sandbox: through /proc/self/exe they reach the
// file in the host's mounts, which are not read-only, so it must not belong to
// their user.
func (d *Driver) forkable(exe string) bool {
	info, err := os.Stat(exe)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (d.root || int(st.Uid) != os.Geteuid()) && info.Mode()&0o022 == 0
}

// start brings up a fork server and puts it in the place of the one before.
func (f *forkServers) start(s *forkServer, it interpreter) {
	z, err := f.launch(s, it)
	f.mu.Lock()
	defer f.mu.Unlock()
	s.starting = false
	if err != nil {
		f.failedLocked(s, it.Name, err)
		return
	}
	if f.closed {
		z.retire()
		return
	}
	if s.current != nil {
		s.current.idle.Stop()
		s.current.retire()
	}
	z.idle = time.AfterFunc(forkMaxIdle, func() { f.drop(z) })
	s.current = z
	f.wg.Go(func() {
		<-z.gone
		f.failed(z, fmt.Errorf("the fork server has ended: %s", lastLine(z.errors.String())))
	})
}

// launch starts the process and waits until it is warm.
func (f *forkServers) launch(s *forkServer, it interpreter) (*zygote, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	inside := os.NewFile(uintptr(fds[1]), "fork server")
	defer inside.Close()
	conn, err := fileConn(os.NewFile(uintptr(fds[0]), "fork server"))
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	defer w.Close()
	z := &zygote{server: s, runtime: it.Name, conn: conn, began: time.Now(), gone: make(chan struct{})}
	argv := guest.ForkCommand(it.Language, it.Exe, driver.GuestDir)
	z.process, err = os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir:   f.driver.shims,
		Env:   []string{},
		Files: []*os.File{null, null, w, inside},
		Sys:   &syscall.SysProcAttr{Setsid: true}, // a terminal's ^C is not for it
	})
	if err != nil {
		_ = r.Close()
		_ = conn.Close()
		return nil, err
	}
	_ = inside.Close()
	_ = w.Close()
	// Like sandboxes: the host's own programs outlive it.
	_ = os.WriteFile("/proc/"+strconv.Itoa(z.process.Pid)+"/oom_score_adj", []byte(oomScore), 0)
	f.wg.Go(func() {
		_, _ = io.Copy(&z.errors, r)
		_ = r.Close()
	})
	f.wg.Go(func() {
		_, _ = z.process.Wait()
		close(z.gone)
	})
	_ = conn.SetReadDeadline(time.Now().Add(warmTimeout))
	var b [1]byte
	if n, err := conn.Read(b[:]); err != nil || n != 1 || b[0] != 'R' {
		z.kill()
		<-z.gone
		return nil, fmt.Errorf("it did not get warm (%w): %s", err, lastLine(z.errors.String()))
	}
	return z, nil
}

// retire lets the process end when it has done what it was asked for.
func (z *zygote) retire() { _ = z.conn.Close() }

func (z *zygote) kill() {
	_ = z.conn.Close()
	_ = z.process.Kill()
}

// drop forgets a process and lets it end.
func (f *forkServers) drop(z *zygote) {
	f.mu.Lock()
	defer f.mu.Unlock()
	z.idle.Stop()
	z.retire()
	if z.server.current == z {
		z.server.current = nil
	}
}

// failed ends a process that has died, or from which no guest came. Many may find
// that out; it counts once, and not if the process was to end.
func (f *forkServers) failed(z *zygote, err error) {
	z.kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	z.idle.Stop()
	if z.server.current == z {
		z.server.current = nil
		f.failedLocked(z.server, z.runtime, err)
	}
}

func (f *forkServers) failedLocked(s *forkServer, runtime string, err error) {
	if f.closed {
		return
	}
	wait := min(firstBackoff<<min(s.failures, 16), lastBackoff)
	s.failures++
	s.retry = time.Now().Add(wait)
	f.driver.log.Warn("native: guests are executed, which takes longer, and not forked for now",
		"runtime", runtime, "again_in", wait, "err", err)
}

// worked notes that a guest came from z.
func (f *forkServers) worked(z *zygote) {
	f.mu.Lock()
	defer f.mu.Unlock()
	z.server.failures = 0
}

// close ends all fork servers and waits until they are gone.
func (f *forkServers) close() {
	f.mu.Lock()
	f.closed = true
	for _, s := range f.servers {
		if s.current != nil {
			s.current.idle.Stop()
			s.current.kill()
		}
	}
	f.mu.Unlock()
	f.wg.Wait()
}

// forked is a guest on its way from a fork server.
type forked struct {
	zygote *zygote
	conn   *net.UnixConn // to the guest's process until it is the function's
	pid    int           // inside of the sandbox, 0 until it has come there
}

// fork asks for a guest in the sandbox, of which pid 1 exists and nothing else
// need yet. inside are the guest's descriptors from 0.
func (z *zygote) fork(s *sandbox, inside []*os.File, steps []byte) (*forked, error) {
	host, guest, err := socketPair("fork")
	if err != nil {
		return nil, err
	}
	defer guest.Close()
	conn, err := fileConn(host)
	if err != nil {
		return nil, err
	}
	give := func() error {
		pidfd, err := unix.PidfdOpen(s.process.Pid, 0)
		if err != nil {
			return err
		}
		files := append([]*os.File{os.NewFile(uintptr(pidfd), "pid 1"), guest}, inside...)
		defer files[0].Close()
		groups, born, err := s.group.Enter()
		if err != nil {
			return err
		}
		defer func() {
			for _, g := range groups {
				_ = g.Close()
			}
		}()
		kind := byte('f')
		if born {
			kind = 'c'
		}
		var fds []int
		for _, f := range append(files, groups...) {
			fds = append(fds, int(f.Fd()))
		}
		_ = z.conn.SetWriteDeadline(time.Now().Add(forkTimeout))
		_, _, err = z.conn.WriteMsgUnix([]byte{kind}, unix.UnixRights(fds...), nil)
		return err
	}
	if err := give(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	f := &forked{zygote: z, conn: conn}
	_ = conn.SetDeadline(time.Now().Add(forkTimeout))
	if _, err := conn.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(steps))), steps...)); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return f, nil
}

// finish has the guest enter the assembled sandbox. Afterwards it runs and f.pid
// is its number inside; after an error it must be killed if it has one.
func (f *forked) finish(ctx context.Context) error {
	defer f.conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.conn.SetDeadline(time.Now()) })
	defer stop()
	b, err := f.hear('P', 4)
	if err != nil {
		return err
	}
	f.pid = int(binary.LittleEndian.Uint32(b))
	_ = f.conn.SetDeadline(time.Now().Add(forkTimeout))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, err := f.conn.Write([]byte{'G'}); err != nil {
		return err
	}
	_, err = f.hear('S', 0)
	return err
}

// hear reads one message with n bytes after its kind, or an error of the guest's.
func (f *forked) hear(kind byte, n int) ([]byte, error) {
	b := make([]byte, 1+n)
	if _, err := io.ReadFull(f.conn, b[:1]); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the fork server has ended")
		}
		return nil, err
	}
	if b[0] == 'E' {
		text, _ := io.ReadAll(io.LimitReader(f.conn, 600))
		return nil, errors.New(string(text))
	}
	if b[0] != kind {
		return nil, fmt.Errorf("message %q instead of %q", b[0], kind)
	}
	_, err := io.ReadFull(f.conn, b[1:])
	return b[1:], err
}

// startForked is start for a sandbox whose guest comes from a fork server: while
// pid 1 assembles the sandbox, the guest is forked.
func (s *sandbox) startForked(ctx context.Context, p *plan) error {
	assemble, launch := p.parts()
	s.zygote.waiting.Add(1)
	defer s.zygote.waiting.Add(-1)
	f, ferr := s.zygote.fork(s, s.inside, p.guestSteps())
	s.closeInside()
	if f != nil {
		defer f.conn.Close()
	}
	go s.watch()
	if err := s.send(ctx, assemble); err != nil {
		return err
	}
	select {
	case <-s.assembled:
	case err := <-s.started:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if ferr == nil {
		ferr = f.finish(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	servers := s.driver.forks
	if ferr == nil {
		servers.worked(s.zygote)
		launch = &plan{}
		launch.step('g', strconv.Itoa(f.pid))
		_, _ = s.control.Write(launch.message()) // if it has ended, watch says so
		return nil
	}
	if !errors.Is(ferr, net.ErrClosed) { // it was retired meanwhile
		servers.failed(s.zygote, ferr)
	}
	if f != nil && f.pid > 0 {
		kill := &plan{}
		kill.step('K', strconv.Itoa(f.pid))
		launch.b = append(kill.b, launch.b...)
	}
	if err := s.send(ctx, launch); err != nil {
		return err
	}
	return s.wait(ctx)
}

// closeInside lets go of the guest's descriptors.
func (s *sandbox) closeInside() {
	for _, f := range s.inside {
		_ = f.Close()
	}
	s.inside = nil
}

// parts divides a plan into what assembles the sandbox, up to a step m, and
// what starts the guest.
func (p *plan) parts() (assemble, launch *plan) {
	assemble = &plan{b: append([]byte(nil), p.b[:p.guest]...)}
	assemble.step('m')
	return assemble, &plan{b: append([]byte(nil), p.b[p.guest:]...)}
}

// guestSteps are those that concern the guest's process itself and not the
// sandbox around it, for a process that pid 1 does not start. From step m on they
// need the sandbox's root file system, and the privileges to go there end.
func (p *plan) guestSteps() []byte {
	var outside, inside plan
	inside.step('m')
	for b := p.b; len(b) > 0; {
		op, n := b[0], 2
		for range b[1] {
			n += 4 + int(binary.LittleEndian.Uint32(b[n:]))
		}
		switch op {
		case 'k', 'S', 'i', 'u', 'e', 'a':
			outside.b = append(outside.b, b[:n]...)
		case 'c', 'L', 's', 'w':
			inside.b = append(inside.b, b[:n]...)
		}
		b = b[n:]
	}
	return append(outside.b, inside.b...)
}

// lastLine is where a traceback names the error.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// oomScore makes the kernel take sandboxes before the host's own programs.
const oomScore = "500"
