package native

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
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

// sandbox is one sandbox of this process, or one that an earlier process left.
type sandbox struct {
	// Constant after Create.
	driver         *Driver
	id             string
	user           uint32 // offset in the owner's range
	argv0          string
	allow          []string // endpoints besides public addresses
	limits         driver.Limits
	group          cgroup.Group
	slots          *slots.Slots
	stdout, stderr io.Writer
	process        *os.Process
	control        *net.UnixConn
	phases         [3]time.Duration // monotonic clock: helper began, assembled, guest started
	orphan         *record          // set for one that an earlier process left
	zygote         *zygote          // whom to fork the guest from, or nil
	inside         []*os.File       // the guest's descriptors, until it was forked
	creating       bool             // guarded by driver.mu; nobody else may have it yet

	output    output
	started   chan error    // one value: nil once the guest runs, or why it does not
	assembled chan struct{} // one value, once a guest can be forked
	done      chan struct{} // closed when every process is gone and exit is set

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

// Resize implements driver.Resizer.
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
func (s *sandbox) Stats(context.Context) (driver.Stats, error) {
	if s.isDestroying() {
		return driver.Stats{}, errDestroyed(s.id)
	}
	pids := s.group.Procs()
	if len(pids) == 0 && s.process != nil {
		select {
		case <-s.done:
		default:
			pids = descendants(s.process.Pid)
		}
	}
	st := driver.Stats{PIDs: s.group.PIDs()}
	st.Usage, _ = s.Usage()
	if s.process != nil { // its own threads are not the guest's
		_, helper := processStats(s.process.Pid)
		st.PIDs = min(max(st.PIDs-helper, 0), s.limits.PIDs)
	}
	var cpu time.Duration
	var threads int
	began, known := time.Now(), true
	for _, pid := range pids {
		t, n := processStats(pid)
		cpu, threads = cpu+t, threads+n
		if known = known && (st.Memory == 0 || time.Since(began) < pssTime); known {
			st.PSS += cgroup.PSS(pid)
		}
	}
	if !known {
		st.PSS = 0
	}
	if st.CPU == 0 {
		st.CPU = cpu
	}
	if st.PIDs == 0 {
		st.PIDs = threads
	}
	if st.Memory == 0 {
		st.Memory = st.PSS
	}
	return st, nil
}

// pssTime is how long adding up the PSS of a sandbox may take where something else
// tells its memory. The kernel looks at each mapping, of which a function can have
// tens of thousands in each of hundreds of processes, on the server's account.
const pssTime = 50 * time.Millisecond

func (s *sandbox) isDestroying() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.destroying
}

func errDestroyed(id string) error {
	return hearth.Errorf(hearth.CodeNotFound, "sandbox %s was destroyed", id)
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
	s.driver.release(s)
	s.output.wait(ctx)
	return nil
}

// free kills everything inside and frees what the host holds. It can be
// repeated after an error.
func (s *sandbox) free(ctx context.Context) error {
	if s.process != nil {
		_ = s.process.Kill() // the rest dies with pid 1
	}
	s.group.Kill()
	if s.orphan != nil {
		s.orphan.kill()
	}
	if s.control != nil {
		_ = s.control.Close()
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
	if s.process != nil {
		select {
		case <-s.done:
		case <-ctx.Done():
			return errors.New("its processes do not die")
		}
	} else if s.orphan != nil && !s.orphan.gone(ctx) {
		return errors.New("its processes do not die")
	}
	if err := s.group.Remove(ctx); err != nil {
		return err
	}
	if err := s.slots.Remove(); err != nil {
		return err
	}
	if s.orphan != nil && s.process == nil {
		select {
		case <-s.done:
		default:
			s.exit = driver.Exit{Code: -1, Signal: 9, Destroyed: true}
			close(s.done)
		}
	}
	return s.driver.forget(s.id)
}

// output copies what the guest's processes write to the caller's writers.
type output struct {
	mu      sync.Mutex
	stopped bool // guarded by mu
	readers []*os.File
	wg      sync.WaitGroup
	ended   chan struct{} // closed by stop
}

// add copies r to w until every process has closed its end, or stop.
func (o *output) add(r *os.File, w io.Writer) {
	o.readers = append(o.readers, r)
	o.wg.Go(func() {
		defer r.Close()
		buf := make([]byte, 16<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				o.mu.Lock()
				stopped := o.stopped
				o.mu.Unlock()
				if stopped {
					return
				}
				if _, werr := w.Write(buf[:n]); werr != nil {
					w = io.Discard // the sandbox must not stop for that
				}
			}
			if err != nil {
				return
			}
		}
	})
}

// stop ends the copying; a Write under way is left to return.
func (o *output) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return
	}
	o.stopped = true
	close(o.ended)
	for _, r := range o.readers {
		_ = r.Close()
	}
}

// drain waits, though not long, until what the dead processes wrote last has
// been delivered.
func (o *output) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	go func() {
		select {
		case <-o.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	o.wait(ctx)
}

// drainTimeout is how long a slow writer can delay Wait.
const drainTimeout = 500 * time.Millisecond

// wait returns when no Write is under way any more, or ctx ends: a writer that
// never returns holds up its own goroutine only.
func (o *output) wait(ctx context.Context) {
	all := make(chan struct{})
	go func() {
		o.wg.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-ctx.Done():
	}
}

// descendants lists a process and everything that descends from it.
func descendants(pid int) []int {
	pids := []int{pid}
	for i := 0; i < len(pids) && i < 100_000; i++ {
		tasks, _ := os.ReadDir("/proc/" + strconv.Itoa(pids[i]) + "/task")
		for _, t := range tasks {
			b, _ := os.ReadFile("/proc/" + strconv.Itoa(pids[i]) + "/task/" + t.Name() + "/children")
			for f := range strings.FieldsSeq(string(b)) {
				if n, err := strconv.Atoi(f); err == nil {
					pids = append(pids, n)
				}
			}
		}
	}
	return pids
}

// processStats reads one process's CPU time and its number of threads.
func processStats(pid int) (cpu time.Duration, threads int) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	// The command may contain anything; what follows it does not.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) > 17 {
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		cpu = time.Duration(user+system) * time.Second / ticksPerSecond
		threads, _ = strconv.Atoi(f[17])
	}
	return cpu, threads
}

// ticksPerSecond is the unit of CPU times in /proc, the same everywhere Go runs.
const ticksPerSecond = 100
