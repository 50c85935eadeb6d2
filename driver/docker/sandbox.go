package docker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/driver/egress"
	"github.com/hearthrun/hearth/driver/slots"
)

// freeTimeout bounds how long Destroy waits for the engine, and absentTimeout
// how long for one that cannot be reached: after that the driver goes on in the
// background.
const (
	freeTimeout   = 30 * time.Second
	absentTimeout = 2 * time.Second
)

// unclearTime is how long an engine that was asked for a container and has not
// answered may still make it.
const unclearTime = 15 * time.Second

// sandbox is one sandbox of this process, or one that an earlier process left.
type sandbox struct {
	// Constant after Create.
	driver         *Driver
	id             string
	dir            string // its directory on the host
	slots          *slots.Slots
	user           uint32   // offset in the owner's range
	argv0          string   // of the guest
	allow          []string // endpoints besides public addresses
	limits         driver.Limits
	stdout, stderr io.Writer
	orphan         bool // an earlier process left it
	control        *net.UnixConn
	pid            int // of the container's first process
	group          cgroup.Group
	grouped        bool // group is the container's own
	creating       bool // guarded by driver.mu; nobody else may have it yet

	container string        // its id in the engine; constant once made is closed
	made      chan struct{} // closed when the engine has made the container
	taken     bool          // the engine has another container of that name; constant once settled
	refused   bool          // the engine has made no container; likewise
	unclear   time.Time     // when the request to make it ended without an answer, if it did; likewise
	settled   chan struct{} // closed when the engine is asked for nothing any more

	output  output
	started chan error    // one value: nil once the guest runs, or why it does not
	done    chan struct{} // closed when the guest has ended and exit is set
	givenUp atomic.Bool   // Destroy has failed; the driver goes on

	freeing sync.Mutex // held while freeing; freed is guarded by it
	freed   bool

	mu         sync.Mutex
	watched    bool          // guarded by mu; watch runs and closes done
	stream     *net.UnixConn // guarded by mu; nil once it was dialled
	egress     *egress.Stack // guarded by mu
	exit       driver.Exit   // guarded by mu until done
	destroying bool          // guarded by mu
}

var (
	_ driver.Sandbox = (*sandbox)(nil)
	_ driver.Pauser  = (*sandbox)(nil)
	_ driver.Mounter = (*sandbox)(nil)
	_ driver.Resizer = (*sandbox)(nil)
)

// orphan returns a sandbox of an earlier process, so that it can be destroyed.
func (d *Driver) orphan(id string) *sandbox {
	s := &sandbox{
		driver: d, id: id, dir: d.runPath(id), slots: slots.New(d.slotPath(id), nil), orphan: true, container: d.name(id),
		settled: make(chan struct{}), done: make(chan struct{}), output: output{ended: make(chan struct{})},
	}
	close(s.settled)
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
		if s.orphan {
			return s.waitOrphan(ctx)
		}
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

// waitOrphan asks the engine, which is the only one who knows.
func (s *sandbox) waitOrphan(ctx context.Context) (driver.Exit, error) {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.driver.stopped, cancel)
	defer stop()
	result := s.driver.client.ContainerWait(asking, s.container, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.exit, nil
	case r := <-result.Result:
		return exitOf(int(r.StatusCode)), nil
	case err := <-result.Error:
		if ctx.Err() != nil {
			return driver.Exit{}, ctx.Err()
		}
		return driver.Exit{}, s.driver.explain("wait for sandbox "+s.id, err)
	}
}

// exitOf reads an exit status as engines report it: a signal is 128 and its
// number.
func exitOf(code int) driver.Exit {
	if code > 128 && code < 128+65 {
		return driver.Exit{Code: -1, Signal: code - 128}
	}
	return driver.Exit{Code: code}
}

// watch reads the helper's messages until the guest has ended, then tells
// everyone.
func (s *sandbox) watch() {
	status, exited := s.messages()
	var x driver.Exit
	if exited {
		// The helper waits: the container's counters are still there.
		x.OOM = s.group.OOMKilled()
		if status.Signaled() {
			x.Code, x.Signal = -1, int(status.Signal())
		} else {
			x.Code = status.ExitStatus()
		}
	} else {
		oom := s.group.OOMKilled()
		x = s.lost()
		x.OOM = x.OOM || oom
	}
	_ = s.control.Close() // which ends the container
	select {
	case s.started <- hearth.Errorf(hearth.CodeUnavailable, "the first process of sandbox %s ended early", s.id):
	default: // it had started, or failed with a reason
	}
	s.output.drain()
	s.mu.Lock()
	x.Destroyed = s.destroying && !exited
	if x.Destroyed {
		x.OOM = false
	}
	s.exit = x
	s.mu.Unlock()
	close(s.done)
}

// lost tells how a container ended whose helper did not say: something killed
// it, or the engine went away with everything.
func (s *sandbox) lost() driver.Exit {
	killed := driver.Exit{Code: -1, Signal: 9}
	if s.isDestroying() {
		return killed
	}
	ctx, cancel := context.WithTimeout(s.driver.stopped, absentTimeout)
	defer cancel()
	select {
	case <-s.settled:
	case <-ctx.Done():
		return killed
	}
	result := s.driver.client.ContainerWait(ctx, s.container, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case r := <-result.Result:
		killed = exitOf(int(r.StatusCode))
		if state, err := s.driver.client.ContainerInspect(ctx, s.container, client.ContainerInspectOptions{}); err == nil && state.Container.State != nil {
			killed.OOM = state.Container.State.OOMKilled
		}
	case <-result.Error:
	}
	return killed
}

// Pause implements driver.Pauser.
func (s *sandbox) Pause(ctx context.Context) error { return s.freeze(ctx, true) }

// Resume implements driver.Pauser.
func (s *sandbox) Resume(ctx context.Context) error { return s.freeze(ctx, false) }

func (s *sandbox) freeze(ctx context.Context, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout) // Destroy waits for it
	defer cancel()
	s.freeing.Lock() // a sandbox must not be frozen after it was killed
	defer s.freeing.Unlock()
	if s.isDestroying() {
		return errDestroyed(s.id)
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
		return ctx.Err()
	}
	api := s.driver.client
	state, err := api.ContainerInspect(ctx, s.container, client.ContainerInspectOptions{})
	if err == nil && state.Container.State != nil && state.Container.State.Paused == on {
		return nil
	}
	if err == nil && on {
		_, err = api.ContainerPause(ctx, s.container, client.ContainerPauseOptions{})
	} else if err == nil {
		_, err = api.ContainerUnpause(ctx, s.container, client.ContainerUnpauseOptions{})
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return s.driver.explain("pause or resume sandbox "+s.id, err)
	}
	return nil
}

// Mount implements driver.Mounter.
func (s *sandbox) Mount(ctx context.Context, m driver.Mount) error {
	if s.isDestroying() {
		return errDestroyed(s.id)
	}
	return s.slots.Fill(ctx, m)
}

// Resize implements driver.Resizer.
func (s *sandbox) Resize(ctx context.Context, to driver.Limits) error {
	to, err := s.limits.Resized(to)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	// The engine finishes what it was asked for, whether anybody waits or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	s.freeing.Lock() // one at a time, and none once the container is removed
	defer s.freeing.Unlock()
	if s.isDestroying() {
		return errDestroyed(s.id)
	}
	f, err := s.driver.ask(ctx, false)
	if err != nil {
		return err
	}
	// Kernels refuse a limit below what is in use in groups of version 1. In those
	// of version 2 they would kill, and OCI runtimes let them.
	if f.cgroups != "1" {
		if st, err := s.Stats(ctx); err != nil {
			return err
		} else if st.Memory > to.Memory {
			return hearth.Errorf(hearth.CodeUnavailable, "sandbox %s uses %d KiB of memory, more than the new limit of %d KiB", s.id, st.Memory>>10, to.Memory>>10).
				WithHint("choose a higher limit")
		}
	}
	r := resources(to)
	if _, err := s.driver.client.ContainerUpdate(ctx, s.container, client.ContainerUpdateOptions{Resources: &r}); err != nil {
		return s.driver.explain("change the limits of sandbox "+s.id, err)
	}
	return nil
}

// CPU implements driver.Meter.
func (s *sandbox) CPU() time.Duration {
	if !s.grouped || s.isDestroying() {
		return 0
	}
	return s.group.CPU()
}

// Usage implements driver.Meter.
func (s *sandbox) Usage() (driver.Usage, bool) {
	s.mu.Lock()
	destroying, stack := s.destroying, s.egress
	s.mu.Unlock()
	if destroying || !s.grouped {
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
	if !s.grouped {
		return s.engineStats(ctx)
	}
	st := driver.Stats{PIDs: s.group.PIDs()}
	st.Usage, _ = s.Usage()
	tasks, _ := os.ReadDir("/proc/" + strconv.Itoa(s.pid) + "/task")
	st.PIDs = min(max(st.PIDs-len(tasks), 0), s.limits.PIDs) // the helper's threads are not the guest's
	for _, pid := range s.group.Procs() {
		if pid != s.pid {
			st.PSS += cgroup.PSS(pid)
		}
	}
	return st, nil
}

// engineStats asks the engine: where the container's control group cannot be
// seen.
func (s *sandbox) engineStats(ctx context.Context) (driver.Stats, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case <-s.settled:
	case <-ctx.Done():
		return driver.Stats{}, ctx.Err()
	}
	r, err := s.driver.client.ContainerStats(ctx, s.container, client.ContainerStatsOptions{})
	if err != nil {
		return driver.Stats{}, s.driver.explain("ask what sandbox "+s.id+" uses", err)
	}
	defer r.Body.Close()
	var v container.StatsResponse
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		return driver.Stats{}, s.driver.explain("ask what sandbox "+s.id+" uses", err)
	}
	u := driver.Usage{
		CPU: time.Duration(v.CPUStats.CPUUsage.TotalUsage), Memory: int64(v.MemoryStats.Usage), MemoryPeak: int64(v.MemoryStats.MaxUsage),
	}
	s.mu.Lock()
	stack := s.egress
	s.mu.Unlock()
	u.NetworkIn, u.NetworkOut = stack.Traffic()
	for _, e := range v.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			u.DiskRead += int64(e.Value)
		case "write":
			u.DiskWritten += int64(e.Value)
		}
	}
	return driver.Stats{Usage: u, PIDs: int(v.PidsStats.Current)}, nil
}

func (s *sandbox) isDestroying() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.destroying
}

func errDestroyed(id string) error {
	return hearth.Errorf(hearth.CodeNotFound, "sandbox %s was destroyed", id)
}

// Destroy implements driver.Sandbox. When the engine cannot be reached it
// returns an error, and the driver frees what remains once the engine is back.
// The guest has ended in any case.
func (s *sandbox) Destroy(ctx context.Context) error {
	s.mu.Lock()
	s.destroying = true
	s.mu.Unlock()
	s.output.stop() // a writer that blocks must not keep anything alive
	s.freeing.Lock()
	defer s.freeing.Unlock()
	if s.freed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freeTimeout)
	defer cancel()
	err := s.free(ctx)
	if s.driver.stopped.Err() != nil {
		_ = s.driver.client.Close() // Close was before, and this has connected again
	}
	if err != nil {
		s.givenUp.Store(true)
		s.driver.sweep()
		return hearth.Errorf(hearth.CodeUnavailable, "sandbox %s is not wholly freed: %w", s.id, err).
			WithHint("hearth goes on trying; if it stays: docker rm -f %s", s.driver.name(s.id))
	}
	s.freed = true
	s.driver.release(s)
	return nil
}

// free ends the container and frees everything, once.
func (s *sandbox) free(ctx context.Context) error {
	s.mu.Lock()
	stream, stack := s.stream, s.egress
	s.stream, s.egress = nil, nil
	s.mu.Unlock()
	if stream != nil {
		_ = stream.Close()
	}
	if s.control != nil {
		_ = s.control.Close() // ends the guest, even if there is no engine
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
		return errors.New("the engine does not answer")
	}
	var err error
	if !s.refused {
		err = s.remove(ctx)
	}
	if stack != nil {
		_ = stack.Close()
	}
	s.mu.Lock()
	watched := s.watched
	s.mu.Unlock()
	if watched {
		select {
		case <-s.done:
		case <-ctx.Done():
			return errors.Join(err, errors.New("its processes do not end"))
		}
	}
	s.output.wait(ctx)
	if err != nil {
		return err
	}
	if !watched {
		s.mu.Lock()
		select {
		case <-s.done:
		default:
			s.exit = driver.Exit{Code: -1, Signal: 9, Destroyed: true}
			close(s.done)
		}
		s.mu.Unlock()
	}
	if err := s.slots.Remove(); err != nil {
		return err
	}
	return os.RemoveAll(s.dir)
}

// remove has the engine kill and remove the container. One that cannot be
// reached gets a moment to come back. One that has no such container may yet
// make it, if it did not answer when it was asked to.
func (s *sandbox) remove(ctx context.Context) error {
	absent := time.Now().Add(absentTimeout)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		_, err := s.driver.client.ContainerRemove(ctx, s.driver.name(s.id), client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case cerrdefs.IsNotFound(err) && !s.unclear.IsZero() && time.Since(s.unclear) < s.driver.unclearTime:
			return errors.New("the engine may still make its container")
		case err == nil, cerrdefs.IsNotFound(err):
			return nil
		case isAbsent(err) && time.Now().After(absent), isDenied(err), ctx.Err() != nil:
			return s.driver.explain("remove the container", err)
		}
		select {
		case <-ctx.Done():
			return s.driver.explain("remove the container", err)
		case <-time.After(wait):
		}
	}
}
