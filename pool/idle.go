package pool

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

const (
	// impatience is how soon a group is looked at again that has calls waiting.
	impatience = 50 * time.Millisecond
	// calm is how often a group is looked at that has idle instances.
	calm = time.Second
	// nap is how long tick sleeps at most.
	nap = 10 * time.Second

	// weighAfter is how long an instance is idle before it is weighed, reweigh how
	// long until it is again, and pauseAfter how long it must have been idle to be
	// paused if it used more than pauseCPU of a core since.
	weighAfter = time.Second
	reweigh    = 30 * time.Second
	pauseAfter = 5 * time.Second
	pauseCPU   = 0.01
	// weighTimeout bounds the weighing of one instance, freezeTimeout the pausing
	// and resuming.
	weighTimeout  = 5 * time.Second
	freezeTimeout = 10 * time.Second
)

// lookAt makes tick look at a group at that time, if not before.
func (p *Pool) lookAt(g *group, at time.Time) {
	if g.due.IsZero() || at.Before(g.due) {
		g.due = at
	}
	if at.Before(p.next) {
		p.next = at
		p.wakeUp()
	}
}

// tick does what time brings: more instances for calls that wait for longer than
// was thought, fewer when it is calm, some ahead of calls that are expected.
func (p *Pool) tick() {
	timer := time.NewTimer(nap)
	defer timer.Stop()
	for {
		p.mu.Lock()
		now := time.Now()
		p.next = now.Add(nap)
		p.lookLocked(now)
		wait := p.next.Sub(now)
		p.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-p.wake:
		case <-p.background.Done():
			return
		}
	}
}

func (p *Pool) lookLocked(now time.Time) {
	for _, g := range p.groups {
		if g.due.IsZero() {
			continue
		}
		if now.Before(g.due) {
			if g.due.Before(p.next) {
				p.next = g.due
			}
			continue
		}
		g.due = time.Time{}
		p.scaleLocked(g)
		p.shrinkLocked(g, now)
		p.settleLocked(g)
		p.planLocked(g, now)
	}
	for incarnation, at := range p.retired {
		if at.Before(now.Add(-time.Minute)) {
			delete(p.retired, incarnation)
		}
	}
	p.restockLocked()
}

// shrinkLocked ends idle instances that are too many, the longest unused first.
// What had a call a moment ago is likely to get the next.
func (p *Pool) shrinkLocked(g *group, now time.Time) {
	want := p.wantLocked(g, now)
	for g.total() > want && len(g.idle) > 0 && now.Sub(g.idle[0].since) >= calm {
		p.removeLocked(g.idle[0], "no call came for a while: "+g.keepAlive())
		g.absent = hearth.ColdExpired
	}
}

// planLocked says when the group is to be looked at again.
func (p *Pool) planLocked(g *group, now time.Time) {
	switch {
	case len(g.waiters) > 0:
		p.lookAt(g, now.Add(impatience))
	case len(g.all) > 0:
		p.lookAt(g, now.Add(calm))
	case !g.function.lastEnd.IsZero():
		idle := now.Sub(g.function.lastEnd)
		if next := g.windowsLocked(p).Next(idle); next > 0 {
			p.lookAt(g, g.function.lastEnd.Add(next))
		}
	}
	if g.keep != nil {
		p.lookAt(g, g.keep.next(now))
	}
}

// schedule is when a function is kept warm, whether or not there are calls.
type schedule struct {
	count int
	cron  *hearth.Cron // nil means always
	why   string
}

// newSchedule reads what a function's owner wants. Errors: CodeInvalid.
func newSchedule(w hearth.Warm) (*schedule, error) {
	s := &schedule{count: w.Min, why: "warm.min of the function"}
	var err error
	if s.cron, err = w.Minutes(); err != nil {
		return nil, err
	}
	if s.cron != nil {
		s.why = "warm.schedule of the function: " + w.Schedule
	}
	return s, nil
}

// min is how many instances are kept at that time: in the minutes that the
// expression matches.
func (s *schedule) min(now time.Time) int {
	if s.cron != nil && !s.cron.Matches(now) {
		return 0
	}
	return s.count
}

// next is when min may change.
func (s *schedule) next(now time.Time) time.Time {
	if s.cron == nil {
		return now.Add(nap)
	}
	return now.Truncate(time.Minute).Add(time.Minute)
}

// weigh looks at idle instances: how much memory they use, for the budget, and
// whether they use CPU, in which case they are paused until the next call.
func (p *Pool) weigh() {
	tick := time.NewTicker(weighAfter)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.background.Done():
			return
		}
		for inst, sandbox := range p.unweighed(time.Now()) {
			if p.background.Err() != nil {
				return
			}
			p.weighOne(inst, sandbox)
		}
	}
}

// unweighed returns the instances to be weighed now, and their sandboxes: a stem cell may
// get another.
func (p *Pool) unweighed(now time.Time) map[*instance]driver.Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := map[*instance]driver.Sandbox{}
	for inst := range p.instances {
		if inst.state != hearth.InstanceIdle && inst.state != hearth.InstanceStem || now.Sub(inst.since) < weighAfter {
			continue
		}
		age := now.Sub(inst.weighed)
		if inst.weighed.IsZero() || age >= reweigh || age >= pauseAfter && inst.weighings == 1 {
			list[inst] = inst.sandbox
		}
	}
	return list
}

func (p *Pool) weighOne(inst *instance, sandbox driver.Sandbox) {
	ctx, cancel := context.WithTimeout(p.background, weighTimeout)
	defer cancel()
	stats, err := sandbox.Stats(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	idle := inst.state == hearth.InstanceIdle
	if err != nil || !idle && inst.state != hearth.InstanceStem {
		return // it ended, or has a call
	}
	before, at, known := inst.usage, inst.weighed, !inst.weighed.IsZero()
	inst.usage, inst.weighed = stats, now
	inst.weighings++
	used := max(stats.Memory, stats.MemoryPeak)
	switch g := inst.group; {
	case g == nil:
		inst.stock.memory = max(inst.stock.memory, stats.Memory)
		p.chargeLocked(inst, inst.stock.estimate())
	case used > 0:
		g.function.memory = max(g.function.memory, used)
		for _, other := range g.all {
			p.chargeLocked(other, g.estimate())
		}
	}
	pauser, ok := inst.sandbox.(driver.Pauser)
	if !ok || !idle || !known || stats.CPU-before.CPU < time.Duration(pauseCPU*float64(now.Sub(at))) {
		return
	}
	p.setState(inst, hearth.InstancePaused, "it used CPU without a call")
	inst.frost.chilled.Store(true)
	p.wg.Go(func() { p.pause(inst, pauser) })
}

// frost is whether an instance is frozen.
type frost struct {
	// turn is held by who freezes or thaws it, and guards frozen.
	turn   chan struct{}
	frozen bool
	// chilled is set before it is frozen, and until a call has thawed it, so that
	// calls to others need no turn.
	chilled atomic.Bool
}

func newFrost() *frost { return &frost{turn: make(chan struct{}, 1)} }

// pause freezes an instance that is still paused when its turn comes.
func (p *Pool) pause(inst *instance, pauser driver.Pauser) {
	f := inst.frost
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	p.mu.Lock()
	paused := inst.state == hearth.InstancePaused
	p.mu.Unlock()
	if !paused {
		return
	}
	ctx, cancel := context.WithTimeout(p.background, freezeTimeout)
	defer cancel()
	f.frozen = true // perhaps also after an error
	if err := pauser.Pause(ctx); err != nil && p.background.Err() == nil {
		p.cfg.Logger.Warn("an instance could not be paused", "instance", inst.id, "function", inst.functionName(), "err", err)
	}
}

// awake makes a lent instance ready for its call; false if it is of no use, or not
// before ctx ends.
func (p *Pool) awake(ctx context.Context, l *Lease) bool {
	inst, f := l.inst, l.inst.frost
	if inst.conn.Err() != nil {
		return false
	}
	if !f.chilled.Load() {
		return true
	}
	begin := time.Now()
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return false // what holds the turn is slow; the next call waits for it
	}
	defer func() { <-f.turn }()
	if f.frozen {
		ctx, cancel := context.WithTimeout(p.background, freezeTimeout)
		defer cancel()
		if err := inst.sandbox.(driver.Pauser).Resume(ctx); err != nil {
			p.cfg.Logger.Warn("an instance could not be resumed", "instance", inst.id, "function", inst.functionName(), "err", err)
			inst.conn.Close() //nolint:errcheck // it is given up
			return false
		}
		f.frozen = false
	}
	f.chilled.Store(false)
	l.Timings.Queue += time.Since(begin)
	return true
}
