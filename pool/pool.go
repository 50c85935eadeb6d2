// Package pool owns the instances: sandboxes bound to one version of a
// function. It starts them when calls need them, lends them to one call at a
// time, keeps them warm for a while, and replaces those that die.
package pool

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
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

	// MaxQueue is how many calls of one function may wait; default 1000.
	MaxQueue int
	// MaxInstances bounds the instances of all functions together; default 500.
	MaxInstances int
	// IdleTimeout is how long an unused instance is kept; default 10 min.
	IdleTimeout time.Duration
	// StartTimeout bounds the start of a sandbox and its runtime; default 30 s.
	StartTimeout time.Duration
	// InitTimeout bounds the loading of a function's code; default 60 s.
	InitTimeout time.Duration
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
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.MaxQueue == 0 {
		c.MaxQueue = 1000
	}
	if c.MaxInstances == 0 {
		c.MaxInstances = 500
	}
	if c.MaxSnapshotBytes == 0 {
		c.MaxSnapshotBytes = 4 << 30
	}
	set(&c.IdleTimeout, 10*time.Minute)
	set(&c.StartTimeout, 30*time.Second)
	set(&c.InitTimeout, 60*time.Second)
	set(&c.Grace, 500*time.Millisecond)
	return c
}

// Pool lends instances to calls. Its methods may be called from many
// goroutines.
type Pool struct {
	cfg Config
	// background is the parent of work that outlives the call that caused it.
	background context.Context
	cancel     context.CancelFunc
	wg         sync.WaitGroup // every goroutine of the pool

	mu     sync.Mutex
	groups map[string]*group // guarded by mu; by Version.Incarnation
	closed bool              // guarded by mu
	quiet  chan struct{}     // guarded by mu; closed when closed and nothing is left
	// retired has the incarnations that Retire was called for lately, and when: a
	// call that found its version just before may still come.
	retired map[string]time.Time // guarded by mu
	// snapshots are what new instances are restored from.
	snapshots map[string]*snapshot // guarded by mu; by Version.Incarnation
	// promised is the room on disk, in bytes, of snapshots that are being written.
	promised int64 // guarded by mu
	// instances is every instance whose sandbox may still exist.
	instances map[*instance]struct{} // guarded by mu
}

// group is the instances and waiting calls of one version. Guarded by Pool.mu.
type group struct {
	version hearth.Version
	// ctx bounds the starts of instances; cancel ends it when nobody can need
	// them any more. nil before the first start.
	ctx      context.Context
	cancel   context.CancelFunc
	idle     []*instance // the most recently used last
	waiters  []*waiter   // first come, first served
	starting int
	total    int // instances in any state but dead
	retired  bool
}

// waiter is a call that waits for an instance.
type waiter struct {
	ready chan struct{} // closed when inst or err is set
	inst  *instance
	err   error
}

// Lease is an instance lent to one call.
type Lease struct {
	// Conn is the stream to the instance's guest.
	Conn *guest.Conn
	// Instance is the id of the sandbox.
	Instance string
	// Ready is what the function said when it was loaded.
	Ready guest.Ready
	// Cold is true if the call waited for this instance to be made.
	Cold bool
	// Timings has Queue, Start and Init of this call.
	Timings hearth.Timings

	inst *instance
}

// New returns an empty pool. Close it.
func New(cfg Config) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{
		cfg:        cfg.withDefaults(),
		background: ctx,
		cancel:     cancel,
		groups:     map[string]*group{},
		quiet:      make(chan struct{}),
		retired:    map[string]time.Time{},
		snapshots:  map[string]*snapshot{},
		instances:  map[*instance]struct{}{},
	}
	p.clearSnapshots()
	p.wg.Go(p.reap)
	return p
}

// Do lends an instance of v to fn and takes it back when fn returns. If none
// is idle, one is started, as far as the version's concurrency and the pool's
// limits allow; else the call waits until ctx ends. If fn's call failed because
// the instance died, the returned error says why it died. Errors besides fn's:
// CodeExhausted when too many calls wait, CodeTimeout and CodeCanceled after
// ctx, CodeFunction if the code cannot be loaded, CodeUnavailable if the host
// cannot start it or the pool is closing.
func (p *Pool) Do(ctx context.Context, v *hearth.Version, fn func(context.Context, *Lease) error) error {
	for {
		inst, lease, err := p.acquire(ctx, v)
		if err != nil {
			return err
		}
		if inst.conn.Err() != nil {
			// It died while idle, and nothing was sent: take another.
			p.release(ctx, inst)
			continue
		}
		err = fn(ctx, lease)
		err = inst.explain(err)
		p.release(ctx, inst)
		return err
	}
}

// Verify starts an instance of v to see whether its code loads, and keeps it
// for the version's first call. Where it pays it saves the loaded function, so
// that later instances are restored. Errors: as Do.
func (p *Pool) Verify(ctx context.Context, v *hearth.Version) error {
	var cold time.Duration
	ended := false
	err := p.Do(ctx, v, func(ctx context.Context, l *Lease) error {
		v.RequestStream = l.Ready.RequestStream
		if l.Cold && l.inst.restored == nil { // no call has left anything in its memory
			cold = l.inst.inited.Sub(l.inst.begun)
			ended = p.save(ctx, l.inst)
		}
		return nil
	})
	if err != nil || !ended {
		return err
	}
	// What was saved has ended; the next instance shows what that was good for.
	return p.Do(ctx, v, func(_ context.Context, l *Lease) error {
		p.judge(l.inst, cold)
		return nil
	})
}

// Retire lets the instances of an incarnation finish their calls, and those
// already waiting, and then destroys them.
func (p *Pool) Retire(incarnation string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired[incarnation] = time.Now()
	p.dropLocked(incarnation)
	if g := p.groups[incarnation]; g != nil {
		g.retired = true
		p.evictLocked(g)
	}
}

// Evict destroys the idle instances of a version and returns their number.
func (p *Pool) Evict(incarnation string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.groups[incarnation]; g != nil {
		return p.evictLocked(g)
	}
	return 0
}

func (p *Pool) evictLocked(g *group) int {
	idle := slices.Clone(g.idle)
	for _, inst := range idle {
		p.removeLocked(inst)
	}
	p.forgetLocked(g)
	return len(idle)
}

// Close lets running calls end until ctx ends, then destroys every instance.
// New calls fail with CodeUnavailable from the start.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		for _, g := range p.groups {
			g.retired = true
			p.evictLocked(g) // also ends starts that no call waits for
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
	return err
}

// abort fails every waiter and destroys every instance, lent or not.
func (p *Pool) abort() {
	p.cancel() // ends what is starting
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.groups {
		for _, w := range g.waiters {
			w.fail(errClosing())
		}
		g.waiters = nil
	}
	for inst := range p.instances {
		if inst.state != stateStarting {
			p.removeLocked(inst)
		}
	}
	p.quietLocked()
}

func errClosing() error {
	return hearth.Errorf(hearth.CodeUnavailable, "the server is shutting down").WithHint("try again in a moment")
}

// acquire returns an instance in state lent.
func (p *Pool) acquire(ctx context.Context, v *hearth.Version) (*instance, *Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, waitError(ctx, nil)
	}
	asked := time.Now()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, nil, errClosing()
	}
	g := p.groups[v.Incarnation]
	if g == nil {
		_, retired := p.retired[v.Incarnation]
		g = &group{version: *v, retired: retired}
		p.groups[v.Incarnation] = g
	}
	if n := len(g.idle); n > 0 {
		inst := g.idle[n-1]
		g.idle = g.idle[:n-1]
		inst.setState(stateLent)
		p.mu.Unlock()
		return inst, &Lease{Conn: inst.conn, Instance: inst.id, Ready: inst.ready, inst: inst}, nil
	}
	if len(g.waiters) >= p.cfg.MaxQueue {
		p.mu.Unlock()
		return nil, nil, hearth.Errorf(hearth.CodeExhausted, "%d calls of %s wait already", p.cfg.MaxQueue, v.Function).
			WithHint("try again later, or raise the function's concurrency (now %d)", v.Config.Concurrency)
	}
	w := &waiter{ready: make(chan struct{})}
	g.waiters = append(g.waiters, w)
	p.growLocked(g)
	p.mu.Unlock()

	select {
	case <-w.ready:
	case <-ctx.Done():
		p.mu.Lock()
		if i := slices.Index(g.waiters, w); i >= 0 {
			g.waiters = slices.Delete(g.waiters, i, i+1)
			err := waitError(ctx, g)
			p.forgetLocked(g)
			p.mu.Unlock()
			return nil, nil, err
		}
		p.mu.Unlock()
		// It was served at the same moment: hand it on.
		if w.inst != nil {
			p.release(p.background, w.inst)
		}
		return nil, nil, waitError(ctx, nil)
	}
	if w.err != nil {
		return nil, nil, w.err
	}
	lease := w.inst.lease(asked, time.Now())
	w.inst.fresh = false
	return w.inst, lease, nil
}

// waitError tells why a call that waited was not served.
func waitError(ctx context.Context, g *group) error {
	if ctx.Err() == context.Canceled { //nolint:errorlint // Err returns it bare
		return &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away", Err: context.Cause(ctx)}
	}
	msg, hint := "the deadline passed while the call waited for an instance", "raise the function's timeout or concurrency"
	if g != nil && g.starting > 0 && g.starting == g.total {
		msg, hint = "the deadline passed while the function was starting", "raise its timeout, or make its imports faster; the start goes on for the next call"
	}
	return &hearth.Error{Code: hearth.CodeTimeout, Message: msg, Hint: hint, Err: context.Cause(ctx)}
}

// growLocked starts instances for the waiters that have none coming.
func (p *Pool) growLocked(g *group) {
	for g.starting < len(g.waiters) && g.total < g.version.Config.Concurrency {
		if len(p.instances) >= p.cfg.MaxInstances {
			p.evictOldestLocked()
			return // whatever ends next makes room
		}
		inst := &instance{
			pool: p, group: g, id: newID(),
			asked: time.Now(), fresh: true,
		}
		if g.ctx == nil || g.ctx.Err() != nil {
			g.ctx, g.cancel = context.WithCancel(p.background)
		}
		startCtx := g.ctx
		inst.setState(stateStarting)
		g.starting++
		g.total++
		p.instances[inst] = struct{}{}
		p.wg.Go(func() { p.start(startCtx, inst) })
	}
}

// evictOldestLocked makes room by destroying the instance idle the longest.
func (p *Pool) evictOldestLocked() {
	var oldest *instance
	for _, g := range p.groups {
		if len(g.idle) > 0 && (oldest == nil || g.idle[0].idleSince.Before(oldest.idleSince)) {
			oldest = g.idle[0]
		}
	}
	if oldest != nil {
		p.removeLocked(oldest)
	}
}

// start makes an instance and gives it to the first waiter.
func (p *Pool) start(ctx context.Context, inst *instance) {
	err := inst.start(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	g := inst.group
	g.starting--
	if err != nil {
		p.removeLocked(inst)
		givenUp := ctx.Err() != nil && p.background.Err() == nil
		if len(g.waiters) > 0 && !givenUp { // who came after it was given up gets another
			w := g.waiters[0]
			g.waiters = g.waiters[1:]
			w.fail(err)
		} else if !givenUp {
			p.cfg.Logger.Info("instance did not start", "function", g.version.Function, "version", g.version.Number, "instance", inst.id, "err", err)
		}
		p.growLocked(g)
		p.forgetLocked(g)
		return
	}
	p.wg.Go(func() { p.watch(inst) })
	p.offerLocked(inst)
}

func (w *waiter) fail(err error) {
	w.err = err
	close(w.ready)
}

// owesLocked tells whether a full pool needs a place for a version that has
// calls and no instance. Else versions whose queues never end would keep all
// places.
func (p *Pool) owesLocked() bool {
	if len(p.instances) < p.cfg.MaxInstances {
		return false
	}
	owed := 0
	for _, g := range p.groups {
		if g.starved() {
			owed++
		}
	}
	if owed == 0 {
		return false
	}
	for inst := range p.instances {
		if inst.state == stateDead {
			owed-- // its place is on the way
		}
	}
	return owed > 0
}

func (g *group) starved() bool { return g.total == 0 && len(g.waiters) > 0 }

// offerLocked gives a free instance to the first waiter, or makes it idle. One
// that has served a call may have to give its place to another version instead.
func (p *Pool) offerLocked(inst *instance) {
	g := inst.group
	switch {
	case !inst.fresh && p.owesLocked():
		p.removeLocked(inst)
		p.forgetLocked(g)
	case len(g.waiters) > 0:
		w := g.waiters[0]
		g.waiters = g.waiters[1:]
		inst.setState(stateLent)
		w.inst = inst
		close(w.ready)
	case g.retired:
		p.removeLocked(inst)
		p.forgetLocked(g)
	default:
		inst.fresh = false
		inst.setState(stateIdle)
		inst.idleSince = time.Now()
		g.idle = append(g.idle, inst)
		if len(p.instances) >= p.cfg.MaxInstances {
			p.makeRoomLocked()
		}
	}
}

// release takes back an instance after its call. ctx is the call's.
func (p *Pool) release(ctx context.Context, inst *instance) {
	settled := inst.conn.Settled()
	p.mu.Lock()
	defer p.mu.Unlock()
	if inst.conn.Err() != nil || inst.state == stateDead {
		p.removeLocked(inst)
		p.growLocked(inst.group)
		p.forgetLocked(inst.group)
		return
	}
	if settled {
		p.offerLocked(inst)
		return
	}
	// The caller has left before the function ended its call: that may go on
	// to the deadline, and then has a little time to notice that it is over.
	inst.setState(stateSettling)
	end := time.Now().Add(p.cfg.Grace)
	if d, ok := ctx.Deadline(); ok && time.Now().Before(d) {
		end = d.Add(p.cfg.Grace)
	}
	p.wg.Go(func() {
		ctx, cancel := context.WithDeadline(p.background, end)
		defer cancel()
		inst.conn.Settle(ctx) //nolint:errcheck // an error shows as conn.Err in release
		p.release(ctx, inst)
	})
}

// watch notices an idle instance that dies.
func (p *Pool) watch(inst *instance) {
	<-inst.conn.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	if inst.state == stateIdle {
		p.removeLocked(inst)
		p.forgetLocked(inst.group)
	}
}

// removeLocked takes an instance out of the pool and destroys it. Its place is
// free only when the sandbox is gone, so limits hold on the host too.
func (p *Pool) removeLocked(inst *instance) {
	if inst.state == stateDead {
		return
	}
	g := inst.group
	if i := slices.Index(g.idle, inst); i >= 0 {
		g.idle = slices.Delete(g.idle, i, i+1)
	}
	inst.setState(stateDead)
	g.total--
	p.wg.Go(func() {
		inst.destroy()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.instances, inst)
		p.quietLocked()
		p.makeRoomLocked()
	})
}

// makeRoomLocked lets groups that found the pool full try again, those that
// have no instance first.
func (p *Pool) makeRoomLocked() {
	for _, g := range p.groups {
		if g.starved() && len(p.instances) < p.cfg.MaxInstances {
			p.growLocked(g)
		}
	}
	for _, g := range p.groups {
		if len(g.waiters) > g.starting {
			p.growLocked(g)
		}
	}
}

// forgetLocked drops a group that has nothing left, and gives up starts that
// nobody can need any more.
func (p *Pool) forgetLocked(g *group) {
	if len(g.waiters) == 0 && (g.retired || g.total == 0) && g.cancel != nil {
		g.cancel() // nobody needs what is still starting
	}
	if g.total == 0 && len(g.waiters) == 0 && p.groups[g.version.Incarnation] == g {
		delete(p.groups, g.version.Incarnation)
	}
	p.quietLocked()
}

func (p *Pool) quietLocked() {
	if !p.closed || len(p.instances) > 0 {
		return
	}
	for _, g := range p.groups {
		if len(g.waiters) > 0 {
			return
		}
	}
	select {
	case <-p.quiet:
	default:
		close(p.quiet)
	}
}

// reap destroys instances that were idle for too long.
func (p *Pool) reap() {
	tick := time.NewTicker(max(p.cfg.IdleTimeout/10, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.background.Done():
			return
		}
		p.mu.Lock()
		old := time.Now().Add(-p.cfg.IdleTimeout)
		for _, g := range p.groups {
			for len(g.idle) > 0 && g.idle[0].idleSince.Before(old) {
				p.removeLocked(g.idle[0])
			}
			p.forgetLocked(g)
		}
		for incarnation, at := range p.retired {
			if at.Before(time.Now().Add(-time.Minute)) {
				delete(p.retired, incarnation)
			}
		}
		p.mu.Unlock()
	}
}
