package oci

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/driver/egress"
	"github.com/hearthrun/hearth/driver/slots"
)

// freeTimeout bounds how long Destroy waits for the kernel, and freezeTimeout how
// long Pause and Resume do.
const (
	freeTimeout   = 20 * time.Second
	freezeTimeout = 10 * time.Second
)

// Messages of the first process; see init/main.go.
const (
	msgStarted = 'S'
	msgExit    = 'X'
	msgTasks   = 'N'
	msgError   = 'E'
	msgSetup   = 'F'
	askTasks   = 'n'
)

// sandbox is one sandbox of this process, or one that an earlier process left.
type sandbox struct {
	// Constant after Create.
	driver         *Driver
	id             string
	slot           uint32 // which users of the owner's range it has
	argv0          string
	limits         driver.Limits
	group          cgroup.Group
	slots          *slots.Slots
	stdout, stderr io.Writer
	control        *net.UnixConn // nil for one that an earlier process left
	runtime        *command      // what started the sandbox
	image          string        // its root file system
	release        func()        // lets go of the image
	creating       bool          // guarded by driver.mu; nobody else may have it yet

	logs    []*os.File // read ends of the outputs, until copyOutput
	output  output
	started chan error    // one value: nil once the guest runs, or why it does not
	tasks   chan int      // answers to askTasks
	done    chan struct{} // closed when every process is gone and exit is set
	// unmounted is closed when the mounter has let go of the sandbox's mounts.
	unmounted chan struct{}

	asking sync.Mutex // held while an answer to askTasks is awaited

	freeing sync.Mutex // held while freeing; freed is guarded by it
	freed   bool

	mu         sync.Mutex
	stream     *net.UnixConn // guarded by mu; nil once it was dialled
	egress     *egress.Stack // guarded by mu
	exit       driver.Exit   // guarded by mu until done
	destroying bool          // guarded by mu
	unfreeze   func()        // guarded by mu; ends the last freeze, nil before the first
}

var (
	_ driver.Sandbox = (*sandbox)(nil)
	_ driver.Pauser  = (*sandbox)(nil)
	_ driver.Mounter = (*sandbox)(nil)
	_ driver.Resizer = (*sandbox)(nil)
)

func (d *Driver) newSandbox(id string) *sandbox {
	return &sandbox{
		driver: d, id: id, group: cgroup.None{}.Open(id), slots: slots.New(d.slotPath(id), nil), release: func() {},
		started: make(chan error, 1), tasks: make(chan int, 1), done: make(chan struct{}), unmounted: make(chan struct{}),
		output: output{ended: make(chan struct{})},
	}
}

// orphan returns a sandbox of an earlier process, so that it can be destroyed.
func (d *Driver) orphan(id string) *sandbox {
	s := d.newSandbox(id)
	s.group = d.cgroups.Open(id)
	return s
}

// ID returns Spec.ID.
func (s *sandbox) ID() string { return s.id }

// Dial implements driver.Sandbox.
func (s *sandbox) Dial(context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroying {
		return nil, errDestroyed(s.id)
	}
	if s.stream == nil {
		return nil, hearth.Errorf(hearth.CodeConflict, "sandbox %s: its stream is taken", s.id)
	}
	c := s.stream
	s.stream = nil
	return c, nil
}

// Wait implements driver.Sandbox.
func (s *sandbox) Wait(ctx context.Context) (driver.Exit, error) {
	select {
	case <-s.done:
	default:
		select {
		case <-s.done:
		case <-ctx.Done():
			return driver.Exit{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exit, nil
}

// Pause implements driver.Pauser.
func (s *sandbox) Pause(ctx context.Context) error { return s.freeze(ctx, true) }

// Resume implements driver.Pauser.
func (s *sandbox) Resume(ctx context.Context) error { return s.freeze(ctx, false) }

// freeze stops the host's processes of the sandbox, gVisor's kernel among them:
// what the runtime's own command does, without starting a program.
func (s *sandbox) freeze(ctx context.Context, on bool) error {
	s.freeing.Lock() // a sandbox must not be frozen after it was killed
	defer s.freeing.Unlock()
	limited, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	s.mu.Lock()
	destroying := s.destroying
	s.unfreeze = cancel
	s.mu.Unlock()
	if destroying {
		return errDestroyed(s.id)
	}
	err := s.group.Freeze(limited, on)
	switch {
	case err == nil, ctx.Err() != nil:
		return err
	case s.isDestroying():
		return errDestroyed(s.id)
	case limited.Err() != nil: // not the caller's deadline
		return hearth.Errorf(hearth.CodeUnavailable, "sandbox %s is not paused or resumed after %s", s.id, freezeTimeout)
	case errors.Is(err, errors.ErrUnsupported):
		return hearth.Errorf(hearth.CodeUnsupported, "sandbox %s cannot be paused: the host gives no freezer", s.id)
	}
	return hearth.Errorf(hearth.CodeUnavailable, "pause or resume sandbox %s: %w", s.id, err)
}

// Mount implements driver.Mounter.
func (s *sandbox) Mount(ctx context.Context, m driver.Mount) error {
	if s.isDestroying() {
		return errDestroyed(s.id)
	}
	return s.slots.Fill(ctx, m)
}

// Resize implements driver.Resizer. The memory and processors that gVisor's
// kernel tells its guest of are the host's, before and after.
func (s *sandbox) Resize(_ context.Context, to driver.Limits) error {
	to, err := s.limits.Resized(to)
	if err != nil {
		return err
	}
	s.freeing.Lock() // one at a time, and none once the group is removed
	defer s.freeing.Unlock()
	if s.isDestroying() {
		return errDestroyed(s.id)
	}
	return s.group.Resize(to)
}

// CPU implements driver.Meter.
func (s *sandbox) CPU() time.Duration {
	if s.isDestroying() {
		return 0
	}
	return s.group.CPU()
}

// Usage implements driver.Meter.
func (s *sandbox) Usage() (driver.Usage, bool) {
	s.mu.Lock()
	destroying, stack := s.destroying, s.egress
	s.mu.Unlock()
	if destroying {
		return driver.Usage{}, false
	}
	u := s.group.Usage()
	u.NetworkIn, u.NetworkOut = stack.Traffic()
	return u, u.Memory > 0
}

// Stats implements driver.Sandbox.
func (s *sandbox) Stats(ctx context.Context) (driver.Stats, error) {
	if s.isDestroying() {
		return driver.Stats{}, errDestroyed(s.id)
	}
	st := driver.Stats{PIDs: s.group.PIDs()}
	st.Usage, _ = s.Usage()
	for _, pid := range s.group.Procs() {
		st.PSS += cgroup.PSS(pid)
	}
	if n, ok := s.countTasks(ctx); ok {
		st.PIDs = n
	}
	// What is left out are the first process's own threads and, of a paused
	// sandbox of gVisor, those of its kernel.
	st.PIDs = max(min(st.PIDs, s.limits.PIDs), 0)
	return st, nil
}

// countTimeout is for a sandbox that is paused or busy.
const countTimeout = 100 * time.Millisecond

// countTasks asks the first process, who alone knows when the guest's processes
// are not the host's, how many there are.
func (s *sandbox) countTasks(ctx context.Context) (int, bool) {
	if s.control == nil {
		return 0, false
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	select { // an answer that came too late
	case <-s.tasks:
	default:
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(countTimeout))
	if _, err := s.control.Write([]byte{askTasks}); err != nil {
		return 0, false
	}
	timer := time.NewTimer(countTimeout)
	defer timer.Stop()
	select {
	case n := <-s.tasks:
		return n, true
	case <-timer.C:
	case <-s.done:
	case <-ctx.Done():
	}
	return 0, false
}

func (s *sandbox) isDestroying() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.destroying
}

func errDestroyed(id string) error {
	return hearth.Errorf(hearth.CodeNotFound, "sandbox %s was destroyed", id)
}

// watch reads what the first process says until it has ended, and with it all
// of the sandbox; then it tells everyone.
func (s *sandbox) watch() {
	var status syscall.WaitStatus
	var exited bool
	for {
		var b [5]byte
		if _, err := io.ReadFull(s.control, b[:]); err != nil {
			break
		}
		v := binary.LittleEndian.Uint32(b[1:])
		switch b[0] {
		case msgStarted:
			s.copyOutput()
			s.tellStarted(nil)
		case msgError, msgSetup:
			s.tellStarted(s.explain(b[0], syscall.Errno(v)))
		case msgTasks:
			select {
			case s.tasks <- int(v):
			default:
			}
		case msgExit:
			status, exited = syscall.WaitStatus(v), true
		}
	}
	// The runtime may have failed before there was a first process.
	err := s.runtime.wait()
	s.killRest()
	oom := s.group.OOMKilled()
	s.output.drain()
	s.mu.Lock()
	s.exit = driver.Exit{Code: -1, Signal: int(syscall.SIGKILL), OOM: oom, Destroyed: s.destroying && !exited}
	if exited && status.Signaled() {
		s.exit.Signal = int(status.Signal())
	} else if exited {
		s.exit.Code, s.exit.Signal = status.ExitStatus(), 0
	}
	s.mu.Unlock()
	if err == nil {
		err = errors.New("its first process ended early")
		if oom {
			err = errors.New("it ran out of memory")
		}
	}
	s.tellStarted(s.driver.explainRuntime(s, err))
	close(s.done)
}

// tellStarted tells Create that the guest runs, or why it does not. Only the
// first call counts: a first process that was taken over may say what it likes,
// as often as it likes.
func (s *sandbox) tellStarted(err error) {
	select {
	case s.started <- err:
	default:
	}
}

// killPause is the longest pause between two attempts to kill what is left.
const killPause = time.Second

// killRest kills what the first process has left, such as a gofer, until the
// group is empty. A process that waits for a device dies whenever that answers,
// which may be never: so it tries less and less often.
func (s *sandbox) killRest() {
	told := false
	for pause := time.Millisecond; ; pause = min(2*pause, killPause) {
		left := s.group.Procs()
		if len(left) == 0 {
			return
		}
		s.group.Kill()
		if pause == killPause && !told {
			told = true
			s.driver.log.Warn("oci: processes of a sandbox do not die", "sandbox", s.id, "pids", left)
		}
		time.Sleep(pause)
	}
}

// explain makes an error of what the first process could not do.
func (s *sandbox) explain(kind byte, errno syscall.Errno) error {
	if kind == msgError {
		switch errno {
		case syscall.ENOENT, syscall.EACCES, syscall.ENOTDIR, syscall.ENOEXEC, syscall.ELOOP, syscall.EISDIR:
			return hearth.Errorf(hearth.CodeInvalid, "cannot start %q: %w", s.argv0, errno).
				WithHint("the command must be an executable file inside the sandbox, by its absolute path")
		}
		return hearth.Errorf(hearth.CodeUnavailable, "cannot start %q: %w", s.argv0, errno)
	}
	return hearth.Errorf(hearth.CodeUnavailable, "cannot prepare sandbox %s: %w", s.id, errno)
}

// Destroy implements driver.Sandbox.
func (s *sandbox) Destroy(ctx context.Context) error {
	s.mu.Lock()
	s.destroying = true
	if s.unfreeze != nil {
		s.unfreeze()
	}
	s.mu.Unlock()
	s.output.stop() // a writer that blocks must not keep anything alive
	s.freeing.Lock()
	defer s.freeing.Unlock()
	if s.freed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freeTimeout)
	defer cancel()
	if err := s.free(ctx); err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "sandbox %s is not wholly freed: %w", s.id, err).
			WithHint("destroy it again; if that fails too, look at the kernel's log for processes that cannot be killed")
	}
	s.freed = true
	s.release()
	s.driver.release(s)
	s.output.wait(ctx)
	return nil
}

// free kills everything inside and frees what the host holds. It can be
// repeated after an error.
func (s *sandbox) free(ctx context.Context) error {
	if s.runtime != nil {
		s.runtime.kill()
	}
	s.group.Kill()
	if s.control != nil {
		_ = s.control.Close() // a first process outside of any group ends with it
	}
	s.mu.Lock()
	stream, stack := s.stream, s.egress
	s.stream, s.egress = nil, nil
	s.mu.Unlock()
	if stream != nil {
		_ = stream.Close()
	}
	if stack != nil { // before the wait, so that it cannot outlive a failure
		_ = stack.Close()
	}
	if s.runtime != nil {
		for _, gone := range []chan struct{}{s.done, s.unmounted} {
			select {
			case <-gone:
			case <-ctx.Done():
				return errors.New("its processes do not die")
			}
		}
	}
	if err := s.group.Remove(ctx); err != nil {
		return err
	}
	if err := s.driver.freeState(s.id); err != nil {
		return err
	}
	if err := s.slots.Remove(); err != nil {
		return err
	}
	if err := os.RemoveAll(s.driver.bundle(s.id)); err != nil {
		return err
	}
	if s.runtime == nil {
		for _, r := range s.logs {
			_ = r.Close()
		}
		select {
		case <-s.done:
		default:
			s.mu.Lock()
			s.exit = driver.Exit{Code: -1, Signal: int(syscall.SIGKILL), Destroyed: true}
			s.mu.Unlock()
			close(s.done)
		}
	}
	return nil
}
