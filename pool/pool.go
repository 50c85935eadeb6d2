// Package pool owns the instances: sandboxes bound to one version of a
// function. It starts them when calls need them or before, lends them to calls,
// keeps them warm for as long as that is worth it, and replaces those that die.
//
// Everything is decided under one lock by code that only looks at the state
// (scale.go: how many instances, and for whom there is room; queue.go: who
// waits; crowd.go: how many run at once; stem.go: what is started before anyone knows for whom; idle.go: what
// time brings). What takes time runs in goroutines that come back with the
// result. An instance changes its state in one place, setState.
package pool

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
	"github.com/hearthrun/hearth/pool/policy"
	"github.com/hearthrun/hearth/telemetry"
)

// Artifacts finds a version's code.
type Artifacts interface {
	// ArtifactDir returns the directory with the files of an artifact.
	ArtifactDir(digest string) (string, error)
}

// Logs takes what functions print; it must not block.
type Logs interface {
	Append(hearth.LogLine)
}

// Config of a Pool. Drivers, Artifacts, Logs and Logger are required; zero
// durations and numbers mean the default.
type Config struct {
	Drivers   map[string]driver.Driver
	Artifacts Artifacts
	Logs      Logs
	Logger    *slog.Logger
	// Secrets opens the secrets of functions; with nil those that have any do not
	// start.
	Secrets Secrets

	// MaxQueue is how many calls of one version may wait; default 1000.
	MaxQueue int
	// MaxQueued is how many calls of all versions together may wait; default
	// 10,000.
	MaxQueued int
	// MaxInstances bounds the sandboxes of all functions together; default 1000.
	MaxInstances int
	// MaxStarts is how many sandboxes are created at the same time, and how many
	// instances of one version are started; default twice the number of cores, at
	// least 4. More would only make each of them slower.
	MaxStarts int
	// Memory is how many bytes all sandboxes together are expected to use at most,
	// by what they were seen to use; default is no limit.
	Memory int64
	// MaxStems is how many stem cells of one kind there are at most; default 8.
	// Negative means none.
	MaxStems int
	// Learner returns what decides how long a function is kept warm without calls;
	// default is a policy.History for each.
	Learner func() policy.Learner
	// StartTimeout bounds the start of a sandbox and its runtime; default 30 s.
	StartTimeout time.Duration
	// InitTimeout bounds the loading of a function's code; default 60 s.
	InitTimeout time.Duration
	// Used is told what the instances of a version used since it was told last: at
	// least every restEvery once they are ready, and at their end; for stem cells the function is empty and
	// the version 0. It must not block, nor call the pool. Default is nobody.
	Used func(function string, version int, isolation string, u hearth.Usage)
	// SnapshotDir is where functions are saved with their memory once they are
	// loaded, to start faster where a driver and a guest can. It belongs to the
	// pool, which removes all that is in it at New and at the end of Close. Empty
	// means that nothing is saved.
	SnapshotDir string
	// MaxSnapshotBytes bounds what all snapshots take on disk; default 4 GiB.
	MaxSnapshotBytes int64
	// Grace is how long a function has to end a call that was cancelled before
	// its instance is killed; default 500 ms.
	Grace time.Duration
}

func (c Config) withDefaults() Config {
	number := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	duration := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	number(&c.MaxQueue, 1000)
	number(&c.MaxQueued, 10_000)
	number(&c.MaxInstances, 1000)
	number(&c.MaxStarts, max(4, 2*runtime.NumCPU()))
	number(&c.MaxStems, 8)
	if c.Memory == 0 {
		c.Memory = math.MaxInt64
	}
	if c.MaxSnapshotBytes == 0 {
		c.MaxSnapshotBytes = 4 << 30
	}
	if c.Used == nil {
		c.Used = func(string, int, string, hearth.Usage) {}
	}
	if c.Learner == nil {
		c.Learner = func() policy.Learner { return new(policy.History) }
	}
	duration(&c.StartTimeout, 30*time.Second)
	duration(&c.InitTimeout, 60*time.Second)
	duration(&c.Grace, 500*time.Millisecond)
	return c
}

// Pool lends instances to calls. Its methods may be called from many
// goroutines.
type Pool struct {
	cfg Config
	// background is the parent of work that outlives the call that caused it.
	background context.Context
	cancel     context.CancelFunc
	wg         sync.WaitGroup               // every goroutine of the pool
	wake       chan struct{}                // asks tick to look at once; capacity 1
	crowded    chan struct{}                // tells watchCrowds that a call waits; capacity 1
	cpuTimes   func() (busy, total float64) // telemetry.CPUTimes
	cores      int                          // of the machine
	// stems ends, by endStems, when no more stem cells are to be started.
	stems    context.Context
	endStems context.CancelFunc

	mu     sync.Mutex
	groups map[string]*group // guarded by mu; by Version.Incarnation
	// functions is what is remembered of functions by their names, whether or not
	// they have instances: of those that had a call or are to be kept warm.
	functions map[string]*function // guarded by mu
	// live has the incarnations that SetLive told, with their functions.
	live map[string]string // guarded by mu
	// names are the functions in live.
	names map[string]bool // guarded by mu
	// retired has the incarnations that Retire was called for lately, and when: a
	// call that found its version just before may still come.
	retired map[string]time.Time // guarded by mu
	// instances is every instance whose sandbox may still exist.
	instances map[*instance]struct{} // guarded by mu
	stocks    map[class]*stock       // guarded by mu
	// rigid are drivers whose sandboxes cannot be resized.
	rigid map[string]bool // guarded by mu
	// resting are groups with idle instances, active counts those with calls.
	resting map[*group]struct{} // guarded by mu
	active  int                 // guarded by mu
	// hungry are groups that want an instance and found no room for one.
	hungry  map[*group]struct{} // guarded by mu
	queued  int                 // guarded by mu; waiting calls of all groups
	starts  int                 // guarded by mu; sandboxes being created
	used    int64               // guarded by mu; bytes, the charges of all instances
	leaving struct {            // guarded by mu; what is being destroyed, of the above
		instances int
		bytes     int64
	}
	// snapshots are what new instances are restored from.
	snapshots map[string]*snapshot // guarded by mu; by Version.Incarnation
	// promised is the room on disk, in bytes, of snapshots that are being written.
	promised int64                 // guarded by mu
	watchers map[*watcher]struct{} // guarded by mu
	next     time.Time             // guarded by mu; when tick looks at the groups
	closed   bool                  // guarded by mu
	quiet    chan struct{}         // guarded by mu; closed when closed and nothing is left
}

// Lease is an instance lent to one call.
type Lease struct {
	// Conn is the stream to the instance's guest.
	Conn *guest.Conn
	// Instance is the id of the sandbox.
	Instance string
	// Ready is what the function said when it was loaded.
	Ready guest.Ready
	// Cold is true if the call waited for this instance to be made, ColdReason why
	// there was none.
	Cold       bool
	ColdReason hearth.ColdReason
	// Timings has Queue, Start and Init of this call.
	Timings hearth.Timings

	inst    *instance
	lent    time.Time
	purpose purpose
}

// New returns an empty pool. Close it.
func New(cfg Config) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{
		cfg:        cfg.withDefaults(),
		background: ctx,
		cancel:     cancel,
		wake:       make(chan struct{}, 1),
		groups:     map[string]*group{},
		functions:  map[string]*function{},
		live:       map[string]string{},
		retired:    map[string]time.Time{},
		instances:  map[*instance]struct{}{},
		stocks:     map[class]*stock{},
		rigid:      map[string]bool{},
		resting:    map[*group]struct{}{},
		hungry:     map[*group]struct{}{},
		snapshots:  map[string]*snapshot{},
		watchers:   map[*watcher]struct{}{},
		crowded:    make(chan struct{}, 1),
		cpuTimes:   telemetry.CPUTimes,
		cores:      runtime.NumCPU(),
		quiet:      make(chan struct{}),
	}
	p.stems, p.endStems = context.WithCancel(ctx)
	p.clearSnapshots()
	p.wg.Go(p.tick)
	p.wg.Go(p.weigh)
	p.wg.Go(p.meterAll)
	p.wg.Go(p.watchCrowds)
	return p
}

// Do lends an instance of v to fn and takes it back when fn returns. If none
// has a place, one is started, as far as the version's concurrency and the pool's
// limits allow; else the call waits until ctx ends. If fn returns an error with
// guest.ErrUnread it is called again with another instance, at most twice. If its call failed
// because the instance died, the returned error says why it died. Errors besides fn's:
// CodeExhausted when too many calls wait or the call could not start before its
// deadline (then with RetryAfter), CodeTimeout and CodeCanceled after ctx,
// CodeFunction if the code cannot be loaded, CodeUnavailable if the host cannot
// start it or the pool is closing.
func (p *Pool) Do(ctx context.Context, v *hearth.Version, fn func(context.Context, *Lease) error) error {
	return p.do(ctx, v, forCall, fn)
}

// Hold is Do for a call that lasts for as long as somebody stays connected. It has
// its place for that time, but nothing is learnt from how long that is: neither how
// long calls take, nor how many are under way at once.
func (p *Pool) Hold(ctx context.Context, v *hearth.Version, fn func(context.Context, *Lease) error) error {
	return p.do(ctx, v, forConnection, fn)
}

func (p *Pool) do(ctx context.Context, v *hearth.Version, why purpose, fn func(context.Context, *Lease) error) error {
	for unread := 0; ; {
		lease, err := p.acquire(ctx, v, why)
		if err != nil {
			return err
		}
		if !p.awake(ctx, lease) {
			// Nothing was sent: take another, unless the call's time is over.
			p.release(&Lease{inst: lease.inst, purpose: why})
			continue
		}
		err = fn(ctx, lease)
		if errors.Is(err, guest.ErrUnread) && unread < maxUnread {
			unread++ // its death was not noticed in time
			p.release(&Lease{inst: lease.inst, purpose: why})
			continue
		}
		err = lease.inst.explain(err)
		p.release(lease)
		return err
	}
}

// maxUnread is how often a call goes to another instance because one had ended
// before it read the call: a function may have a habit of ending like that.
const maxUnread = 2

// purpose is what an instance is asked for.
type purpose int

const (
	forCall purpose = iota
	// forConnection is a call whose length tells nothing; see Pool.Hold.
	forConnection
	// forVerification starts the instance in such a way that it can be saved, and
	// runs the function's warm-up.
	forVerification
)

// Verify starts an instance of v to see whether its code loads and its warm-up
// works, and keeps it for the version's first call. Where it pays it saves the
// loaded function, so that later instances are restored. It tells in v what the
// handler is like. Errors: as Do.
func (p *Pool) Verify(ctx context.Context, v *hearth.Version) error {
	if _, err := newSchedule(v.Config.Warm); err != nil {
		return err
	}
	var cold, init time.Duration
	ended := false
	err := p.do(ctx, v, forVerification, func(ctx context.Context, l *Lease) error {
		v.RequestStream, v.Websocket = l.Ready.RequestStream, l.Ready.Websocket
		if n := v.Config.InstanceConcurrency; n > 1 && !l.Ready.Concurrent {
			v.Warnings = append(v.Warnings, "instance_concurrency has no effect: the handler is not async, so each instance runs one call at a time")
		}
		if l.Cold && l.inst.restored == nil { // no call has left anything in its memory
			cold, init = l.inst.inited.Sub(l.inst.begun), l.inst.inited.Sub(l.inst.started)
			ended = p.save(ctx, l.inst)
		}
		return nil
	})
	if err != nil || !ended {
		return err
	}
	// What was saved has ended; the next instance shows what that was good for.
	return p.do(ctx, v, forVerification, func(_ context.Context, l *Lease) error {
		p.judge(l.inst, cold, init)
		return nil
	})
}

// SetLive tells which versions answer calls now. Those that did and do no more
// are retired; those that follow them take over what is known of their load, and
// what is to be kept warm is started. A version may be live again.
func (p *Pool) SetLive(versions []hearth.Version) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := time.Now()
	live := make(map[string]string, len(versions))
	for i := range versions {
		live[versions[i].Incarnation] = versions[i].Function
	}
	replaced := map[string]*group{} // by function
	var starting []*group
	for incarnation, name := range p.live {
		if _, ok := live[incarnation]; ok {
			continue
		}
		if g := p.groups[incarnation]; g != nil {
			replaced[name] = g
		}
	}
	for i := range versions {
		v := &versions[i]
		if _, ok := p.live[v.Incarnation]; ok {
			continue
		}
		p.readmitLocked(v.Incarnation) // it may have been live before
		p.stockLocked(v).demand.touch(now)
		old := replaced[v.Function]
		if v.Config.Warm.Min == 0 && old == nil {
			continue
		}
		g := p.groupLocked(v)
		if old != nil { // callers do not notice that the code changed
			g.load, g.service = old.load, old.service
			g.load.Set(now, len(g.waiters)+g.inFlight-g.held)
		}
		starting = append(starting, g)
	}
	old := p.live
	p.live, p.names = live, make(map[string]bool, len(live))
	for _, name := range live {
		p.names[name] = true
	}
	for _, g := range starting {
		if p.groups[g.version.Incarnation] == g { // it did not end for another
			p.scaleLocked(g)
			p.planLocked(g, now)
		}
	}
	for incarnation := range old {
		if _, ok := live[incarnation]; !ok {
			p.retireLocked(incarnation)
		}
	}
	for name, f := range p.functions {
		if f.groups == 0 && !p.names[name] {
			delete(p.functions, name)
		}
	}
	p.wakeUp()
}

// Admit lets a version that was retired have instances again, as one that is
// called by its number.
func (p *Pool) Admit(incarnation string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readmitLocked(incarnation)
}

func (p *Pool) readmitLocked(incarnation string) {
	delete(p.retired, incarnation)
	if g := p.groups[incarnation]; g != nil && !p.closed {
		g.retired = false
	}
}

// Retire lets the instances of an incarnation finish their calls, and those
// already waiting, and then destroys them.
func (p *Pool) Retire(incarnation string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retireLocked(incarnation)
}

func (p *Pool) retireLocked(incarnation string) {
	p.retired[incarnation] = time.Now()
	delete(p.live, incarnation)
	p.dropLocked(incarnation)
	if g := p.groups[incarnation]; g != nil {
		p.retireGroupLocked(g, "its version was replaced or deleted")
	}
}

// retireGroupLocked ends what is idle once those who wait have what there is.
func (p *Pool) retireGroupLocked(g *group, why string) {
	g.retired, g.parallel = true, 0
	p.serveLocked(g, time.Now())
	p.evictLocked(g, why)
}

// Evict destroys the idle instances of a version and returns their number.
func (p *Pool) Evict(incarnation string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.groups[incarnation]; g != nil {
		g.absent = hearth.ColdEvicted
		return p.evictLocked(g, "somebody asked for it")
	}
	return 0
}

func (p *Pool) evictLocked(g *group, why string) int {
	idle := slices.Clone(g.idle)
	for _, inst := range idle {
		p.removeLocked(inst, why)
	}
	p.settleLocked(g)
	return len(idle)
}

// Close lets running calls end until ctx ends, then destroys every instance.
// New calls fail with CodeUnavailable from the start.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		for _, g := range p.groups {
			p.retireGroupLocked(g, whyClosing) // also ends starts that no call waits for
		}
		p.endStems()
		for _, s := range p.stocks {
			p.emptyLocked(s, whyClosing)
		}
		p.quietLocked()
	}
	p.mu.Unlock()
	var err error
	select {
	case <-p.quiet:
	case <-ctx.Done():
		err = hearth.Errorf(hearth.CodeTimeout, "calls were still running at the end of the drain: %w", ctx.Err())
		p.abort()
		<-p.quiet
	}
	p.cancel()
	p.wg.Wait()
	p.clearSnapshots()
	p.unwatch()
	return err
}

const whyClosing = "the server is shutting down"

// abort fails every waiter and destroys every instance, lent or not.
func (p *Pool) abort() {
	p.cancel() // ends what is starting
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.groups {
		p.failLocked(g, errClosing())
	}
	for inst := range p.instances {
		if inst.state != hearth.InstanceStarting {
			p.removeLocked(inst, whyClosing)
		}
	}
	p.quietLocked()
}

func errClosing() error {
	return hearth.Errorf(hearth.CodeUnavailable, whyClosing).WithHint("try again in a moment")
}

func (p *Pool) quietLocked() {
	if !p.closed || len(p.instances) > 0 || p.queued > 0 {
		return
	}
	select {
	case <-p.quiet:
	default:
		close(p.quiet)
	}
}

// wakeUp makes tick look at once.
func (p *Pool) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
