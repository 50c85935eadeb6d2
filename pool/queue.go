package pool

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/pool/policy"
)

// group is the instances and waiting calls of one version. Guarded by Pool.mu.
type group struct {
	version  hearth.Version
	function *function
	// ctx bounds the starts of instances; cancel ends it when nobody can need
	// them any more. nil before the first start.
	ctx    context.Context
	cancel context.CancelFunc

	idle     []*instance // the most recently used last
	waiters  []*waiter   // first come, first served
	all      []*instance // in any state but stopping
	starting int         // of all
	draining int         // of all
	inFlight int         // calls that have an instance
	held     int         // of inFlight, those of Pool.Hold
	per      int         // calls of one instance
	parallel int         // instances that may have calls at once, 0 if any number; see Pool.watchCrowds
	spurt    int         // instances it may have, if more than Config.MaxStarts, until the cores are looked at again, while calls wait
	retired  bool
	counted  bool // it is one of Pool.active
	// stemless: it starts faster without a stem cell.
	stemless bool

	load    policy.Load
	service policy.Mean // how long an instance has a call
	cold    policy.Mean // how long a start takes

	windows    policy.Windows // after the last call; see known
	known      bool           // windows are those of the last call
	due        time.Time      // when tick is to look again
	readyAt    time.Time      // when the latest start was done
	verifiedAt time.Time      // when that of Verify was
	failures   int            // starts that failed, or instances that died at once, since the last call
	retryAt    time.Time      // no start ahead of calls before
	absent     hearth.ColdReason
	keep       *schedule // while it is live; nil if nothing is kept ready
}

// function is what is remembered of a function across its versions and the times
// when it has no instances. Guarded by Pool.mu.
type function struct {
	groups  int            // that refer to it
	learner policy.Learner // nil before the first call
	lastEnd time.Time      // of its last call
	memory  int64          // the most an instance was seen to use, in bytes
	calls   int64
	colds   map[hearth.ColdReason]int64
	last    *hearth.ColdStart
	// Of the group that was dropped last: absent tells why it has no instances.
	incarnation string
	number, max int
	absent      hearth.ColdReason
}

// waiter is a call that waits for an instance.
type waiter struct {
	ready  chan struct{} // closed when inst or err is set
	inst   *instance
	cold   bool // it waited for inst to be made
	err    error
	asked  time.Time
	reason hearth.ColdReason // if it is cold
	// purpose is what it wants an instance for.
	purpose purpose
}

// groupLocked returns the group of a version, made if there is none.
func (p *Pool) groupLocked(v *hearth.Version) *group {
	if g := p.groups[v.Incarnation]; g != nil {
		return g
	}
	_, retired := p.retired[v.Incarnation]
	f := p.functions[v.Function]
	if f == nil {
		f = &function{}
		p.functions[v.Function] = f
	}
	g := &group{version: *v, function: f, retired: retired, per: max(1, v.Config.InstanceConcurrency), absent: hearth.ColdFirst}
	if v.Config.Warm.Min > 0 {
		var err error
		if g.keep, err = newSchedule(v.Config.Warm); err != nil { // Verify has refused it, unless an older Hearth deployed it
			p.cfg.Logger.Warn("nothing is kept warm", "function", v.Function, "version", v.Number, "err", err)
		}
	}
	if f.incarnation == v.Incarnation && f.absent != "" {
		g.absent = f.absent
	}
	if g.load.Set(time.Now(), 0); !f.lastEnd.IsZero() {
		g.idleAt(f.lastEnd)
	}
	p.groups[v.Incarnation] = g
	f.groups++
	return g
}

// idleAt tells the group when the function's last call ended.
func (g *group) idleAt(end time.Time) { g.function.lastEnd, g.known = end, false }

// total is the instances that take calls or will.
func (g *group) total() int { return len(g.all) - g.draining }

// max is how many instances there may be.
func (g *group) max() int {
	return max(1, (g.version.Config.Concurrency+g.per-1)/g.per)
}

// places is how many calls there may be at once. Connections that are held do
// little, so they take no part in how many instances may be busy.
func (g *group) places() int {
	if g.parallel > 0 {
		return min(g.version.Config.Concurrency, g.parallel*g.per+g.held)
	}
	return g.version.Config.Concurrency
}

// connected is how many instances are full of held connections, if they are
// spread as closely as can be.
func (g *group) connected() int { return (g.held + g.per - 1) / g.per }

// active tells whether there are calls.
func (g *group) active() bool { return g.inFlight+len(g.waiters) > 0 }

// pick returns an instance that can have a call now, nil if there is none: the
// most recently used idle one, else the one with the fewest calls. Where few are to
// have calls at once it is the other way round.
func (g *group) pick() *instance {
	if g.inFlight >= g.places() {
		return nil
	}
	if n := len(g.idle); n > 0 && (g.per == 1 || g.parallel == 0) {
		return g.idle[n-1]
	}
	if g.per == 1 {
		return nil
	}
	var best *instance
	for _, inst := range g.all {
		if (inst.state == hearth.InstanceBusy || inst.state == hearth.InstanceSettling) && inst.free() > 0 && (best == nil || inst.calls < best.calls) {
			best = inst
		}
	}
	if n := len(g.idle); best == nil && n > 0 {
		return g.idle[n-1]
	}
	return best
}

// acquire returns an instance for one call.
func (p *Pool) acquire(ctx context.Context, v *hearth.Version, why purpose) (*Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, waitError(ctx, nil)
	}
	now := time.Now()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosing()
	}
	g := p.groupLocked(v)
	f := g.function
	if why != forVerification {
		if f.learner == nil {
			f.learner = p.cfg.Learner()
		} else if !g.active() && !f.lastEnd.IsZero() {
			f.learner.Observe(now.Sub(f.lastEnd))
		}
		f.calls++
	}
	if inst := g.pick(); inst != nil && len(g.waiters) == 0 {
		p.lendLocked(inst, now, why)
		p.mu.Unlock()
		return &Lease{Conn: inst.conn, Instance: inst.id, Ready: inst.ready, inst: inst, lent: now, purpose: why}, nil
	}
	if err := p.admitLocked(ctx, g, now); err != nil {
		p.settleLocked(g)
		p.mu.Unlock()
		return nil, err
	}
	w := &waiter{ready: make(chan struct{}), asked: now, reason: hearth.ColdScale, purpose: why}
	if len(g.all) == g.starting {
		w.reason = g.absent
	}
	if len(g.waiters) == 0 {
		g.double()
	}
	g.waiters = append(g.waiters, w)
	p.queued++
	p.loadLocked(g, now)
	p.serveLocked(g, now)
	p.scaleLocked(g)
	select {
	case p.crowded <- struct{}{}:
	default:
	}
	p.mu.Unlock()

	select {
	case <-w.ready:
	case <-ctx.Done():
		p.mu.Lock()
		if i := slices.Index(g.waiters, w); i >= 0 {
			g.waiters = slices.Delete(g.waiters, i, i+1)
			p.queued--
			err := waitError(ctx, g)
			p.loadLocked(g, time.Now())
			p.settleLocked(g)
			p.mu.Unlock()
			return nil, err
		}
		p.mu.Unlock()
		// It was served at the same moment: hand it on.
		if w.inst != nil {
			p.release(&Lease{inst: w.inst, purpose: why})
		}
		return nil, waitError(ctx, nil)
	}
	if w.err != nil {
		return nil, w.err
	}
	l := p.leaseFor(w)
	l.purpose = why
	return l, nil
}

// leaseFor makes the lease of a call that waited.
func (p *Pool) leaseFor(w *waiter) *Lease {
	inst, now := w.inst, time.Now()
	l := &Lease{Conn: inst.conn, Instance: inst.id, Ready: inst.ready, inst: inst, lent: now}
	if !w.cold {
		l.Timings.Queue = now.Sub(w.asked)
		return l
	}
	l.Cold, l.ColdReason, l.Timings = true, w.reason, inst.timings(w.asked, now)
	p.mu.Lock()
	defer p.mu.Unlock()
	inst.fresh = false
	if inst.purpose == forVerification {
		return l // no call
	}
	f := inst.group.function
	if f.colds == nil {
		f.colds = map[hearth.ColdReason]int64{}
	}
	f.colds[w.reason]++
	f.last = &hearth.ColdStart{Time: now, Reason: w.reason, Explanation: inst.group.explainCold(w.reason), Timings: l.Timings}
	return l
}

// explainCold says in words why a call found no instance.
func (g *group) explainCold(r hearth.ColdReason) string {
	switch r {
	case hearth.ColdFirst:
		return "version " + strconv.Itoa(g.version.Number) + " had no instance since it was deployed or the server started"
	case hearth.ColdExpired:
		return "no call had come for a while: " + g.keepAlive()
	case hearth.ColdScale:
		return "all instances were busy: more calls came at once than lately"
	case hearth.ColdEvicted:
		return "its instances were ended because others needed the memory, or somebody asked for it"
	case hearth.ColdDied:
		return "the last instance ended by itself or did not start; its log says why"
	}
	return string(r)
}

// keepAlive says in words how long the function is kept warm.
func (g *group) keepAlive() string {
	if g.function.learner == nil {
		return ""
	}
	return g.function.learner.Windows().Reason
}

// waitError tells why a call that waited was not served.
func waitError(ctx context.Context, g *group) error {
	if ctx.Err() == context.Canceled { //nolint:errorlint // Err returns it bare
		return &hearth.Error{Code: hearth.CodeCanceled, Message: "the caller went away", Err: context.Cause(ctx)}
	}
	msg, hint := "the deadline passed while the call waited for an instance", "raise the function's timeout or concurrency"
	if g != nil && g.starting > 0 && g.starting == g.total() {
		msg, hint = "the deadline passed while the function was starting", "raise its timeout, or make its imports faster; the start goes on for the next call"
	}
	return &hearth.Error{Code: hearth.CodeTimeout, Message: msg, Hint: hint, Err: context.Cause(ctx)}
}

// admitLocked tells whether another call may wait.
func (p *Pool) admitLocked(ctx context.Context, g *group, now time.Time) error {
	wait := p.waitLocked(g, now)
	refuse := func(e *hearth.Error) error {
		e.RetryAfter = max(wait, time.Second)
		return e
	}
	if n := len(g.waiters); n >= p.cfg.MaxQueue {
		return refuse(hearth.Errorf(hearth.CodeExhausted, "%d calls of %s wait already", n, g.version.Function).
			WithHint("try again later, or raise the function's concurrency (now %d)", g.version.Config.Concurrency))
	}
	if deadline, ok := ctx.Deadline(); ok && len(g.waiters) > 0 && now.Add(wait).After(deadline) {
		return refuse(hearth.Errorf(hearth.CodeExhausted, "the call could not start before its deadline: %d calls of %s wait already", len(g.waiters), g.version.Function).
			WithHint("try again later, or raise the function's concurrency (now %d) or timeout (now %s)", g.version.Config.Concurrency, g.version.Config.Timeout))
	}
	if p.queued < p.cfg.MaxQueued {
		return nil
	}
	// The place is that of the function which takes the most: a flood of calls to
	// one function must not keep out those of the others.
	longest := g
	for _, other := range p.groups {
		if len(other.waiters) > len(longest.waiters) {
			longest = other
		}
	}
	err := refuse(hearth.Errorf(hearth.CodeExhausted, "%d calls wait already", p.queued).WithHint("try again later"))
	if longest == g || len(longest.waiters) <= len(g.waiters)+1 {
		return err
	}
	last := len(longest.waiters) - 1
	longest.waiters[last].fail(err)
	longest.waiters = longest.waiters[:last]
	p.queued--
	p.loadLocked(longest, now)
	return nil
}

// waitLocked is how long another call of the group would wait at least, as far
// as that is known: what is before it takes the time it took lately, with all
// the instances there may ever be.
func (p *Pool) waitLocked(g *group, now time.Time) time.Duration {
	var wait time.Duration
	// The calls in flight are those that service is of, for a start.
	places := max(1, max(min(g.max()*g.per, g.places()), g.inFlight)-g.held)
	if g.total() == g.starting && len(g.waiters) > 0 {
		// The start may be faster than usual.
		wait = max(0, g.cold.Value()/2-now.Sub(g.waiters[0].asked))
	}
	return wait + g.service.Value()*time.Duration(len(g.waiters))/time.Duration(places)
}

func (w *waiter) fail(err error) {
	w.err = err
	close(w.ready)
}

// failLocked fails all waiters of a group.
func (p *Pool) failLocked(g *group, err error) {
	for _, w := range g.waiters {
		w.fail(err)
	}
	p.queued -= len(g.waiters)
	g.waiters = nil
	p.loadLocked(g, time.Now())
}

// loadLocked is called when the number of the group's calls has changed.
func (p *Pool) loadLocked(g *group, now time.Time) {
	g.load.Set(now, g.inFlight-g.held+len(g.waiters))
	if active := g.active(); active != g.counted {
		g.counted = active
		if active {
			p.active++
		} else {
			p.active--
		}
	}
}

// lendLocked gives one place of the instance to a call.
func (p *Pool) lendLocked(inst *instance, now time.Time, why purpose) {
	g := inst.group
	if inst.calls == 0 {
		p.unidleLocked(inst)
		p.setState(inst, hearth.InstanceBusy, "")
	}
	inst.calls++
	inst.weighed, inst.weighings = time.Time{}, 0
	g.inFlight++
	if why == forConnection {
		inst.held++
		g.held++
	}
	g.failures = 0
	p.loadLocked(g, now)
}

func (p *Pool) unidleLocked(inst *instance) {
	g := inst.group
	if n := len(g.idle); n > 0 && g.idle[n-1] == inst {
		g.idle = g.idle[:n-1]
	} else if i := slices.Index(g.idle, inst); i >= 0 {
		g.idle = slices.Delete(g.idle, i, i+1)
	}
	if len(g.idle) == 0 {
		delete(p.resting, g)
	}
}

// release takes back an instance after a call.
func (p *Pool) release(l *Lease) {
	inst, now := l.inst, time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	g := inst.group
	inst.calls--
	g.inFlight--
	if l.purpose == forConnection {
		inst.held--
		g.held--
	}
	if l.purpose != forVerification && !l.lent.IsZero() { // a call that it had
		inst.served++
		if l.purpose == forCall {
			g.service.Add(max(now.Sub(l.lent), 1))
		}
	}
	p.loadLocked(g, now)
	if l.purpose != forVerification && !g.active() {
		g.idleAt(now)
	}
	p.offerLocked(inst)
}

// settled is called when a call that its caller left has ended.
func (p *Pool) settled(inst *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if inst.group != nil && inst.state != hearth.InstanceStarting {
		p.offerLocked(inst)
	}
}

// serveFirstLocked lends an instance to who has waited longest in its group.
func (p *Pool) serveFirstLocked(inst *instance, now time.Time) {
	g := inst.group
	w := g.waiters[0]
	g.waiters = g.waiters[1:]
	p.queued--
	w.inst, w.cold = inst, inst.fresh
	p.lendLocked(inst, now, w.purpose)
	close(w.ready)
}

// serveLocked gives what is free in a group to those who wait, after the end of a
// call that was on an instance which is no more: it counts for the function's
// concurrency all the same.
func (p *Pool) serveLocked(g *group, now time.Time) {
	for len(g.waiters) > 0 {
		inst := g.pick()
		if inst == nil {
			return
		}
		p.serveFirstLocked(inst, now)
	}
}

// offerLocked gives the free places of an instance to those who wait; without
// any call it becomes idle or, if nobody needs it any more, ends.
func (p *Pool) offerLocked(inst *instance) {
	g := inst.group
	now := time.Now()
	if inst.gone() {
		p.serveLocked(g, now)
		p.settleLocked(g)
		return
	}
	if inst.conn.Err() != nil {
		p.removeLocked(inst, "its process ended")
		g.absent = hearth.ColdDied
		p.serveLocked(g, now)
		p.scaleLocked(g)
		p.settleLocked(g)
		return
	}
	if !inst.fresh && !inst.draining && p.owesLocked(g) {
		inst.draining = true
		g.draining++
	}
	for len(g.waiters) > 0 && inst.free() > 0 && g.inFlight < g.places() {
		p.serveFirstLocked(inst, now)
	}
	p.serveLocked(g, now) // if this one can have none
	switch left := inst.conn.Abandoned(); {
	case inst.calls > 0 && inst.draining:
		p.setState(inst, hearth.InstanceDraining, "another function is owed its place")
	case inst.calls > 0:
		p.setState(inst, hearth.InstanceBusy, "")
	case left > 0:
		p.setState(inst, hearth.InstanceSettling, "its caller left before the call had ended")
	case inst.draining:
		p.removeLocked(inst, "another function was owed its place")
		p.settleLocked(g)
	case g.retired:
		p.removeLocked(inst, "its version was replaced or deleted")
		p.settleLocked(g)
	case inst.state != hearth.InstanceIdle:
		inst.fresh = false
		p.setState(inst, hearth.InstanceIdle, "")
		g.idle = append(g.idle, inst)
		p.resting[g] = struct{}{}
		p.lookAt(g, now.Add(calm))
		if len(p.hungry) > 0 { // it may have to give its place
			p.feedLocked()
		}
	}
}
