package pool

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/pool/policy"
)

// What a sandbox is expected to use before one of its kind was weighed, and the
// least that is counted for one, in bytes.
const (
	unknownMemory = 64 << 20
	leastMemory   = 8 << 20
	// reserve is the part of the places and of the memory that only groups without
	// an instance may take: calls can last for an hour, and until then a function
	// that has all the rest gives nothing back.
	reserve = 16
)

// deployKept is how long the instance that a deploy was verified with is kept for
// the version's first call, whatever was learnt of the function.
const deployKept = 10 * time.Minute

// wantLocked is how many instances the group should have now.
func (p *Pool) wantLocked(g *group, now time.Time) int {
	if p.closed || g.retired { // whoever waits is still served
		return min((len(g.waiters)+g.per-1)/g.per+g.total()-g.starting, g.max())
	}
	average, peak, idleSince := g.load.At(now)
	if idleSince.IsZero() || g.function.lastEnd.After(idleSince) {
		idleSince = g.function.lastEnd
	}
	if idleSince.IsZero() { // it was started ahead of its first call
		idleSince = g.readyAt
	}
	limits := p.limitsLocked(g, now)
	n := policy.Decide(now, limits, policy.Observed{
		InFlight: g.inFlight, Held: g.held, Queued: len(g.waiters), Instances: g.total(),
		Service: g.service.Value(), Cold: g.cold.Value(),
		Average: average, Peak: peak, IdleSince: idleSince, Windows: g.windowsLocked(p),
	})
	if len(g.waiters) > 0 && g.starting == 0 && now.Sub(g.waiters[0].asked) > g.cold.Value() {
		// It has waited for longer than a start takes: what the calls took until now
		// does not tell how long they take.
		n = max(n, min(g.total()+1, limits.Max))
	}
	if now.Sub(g.verifiedAt) < deployKept && !g.function.lastEnd.After(g.verifiedAt) {
		n = max(n, min(g.total(), 1)) // whoever deploys is about to call
	}
	return n
}

func (p *Pool) limitsLocked(g *group, now time.Time) policy.Limits {
	l := policy.Limits{Min: p.minLocked(g, now), Max: g.max(), PerInstance: g.per}
	if g.parallel > 0 { // more would have nothing to do
		l.Max = min(l.Max, max(l.Min, g.total(), g.parallel+g.connected()))
	}
	if len(g.waiters) > 0 {
		l.Max = min(l.Max, max(l.Min, g.total(), g.spurt, p.cfg.MaxStarts))
	}
	return l
}

// minLocked is how many instances are kept ready whether or not there are calls.
func (p *Pool) minLocked(g *group, now time.Time) int {
	if _, live := p.live[g.version.Incarnation]; !live || g.keep == nil {
		return 0
	}
	return min(g.keep.min(now), g.max())
}

// windowsLocked are when the group is kept warm after its last call.
func (g *group) windowsLocked(p *Pool) policy.Windows {
	if !g.known {
		if g.function.learner == nil {
			g.function.learner = p.cfg.Learner()
		}
		g.windows, g.known = g.function.learner.Windows(), true
	}
	return g.windows
}

// scaleLocked starts the instances that the group lacks, as far as there is room
// for them.
func (p *Pool) scaleLocked(g *group) {
	now := time.Now()
	want := p.wantLocked(g, now)
	for g.total() < want {
		if len(g.waiters) <= g.starting*g.per && now.Before(g.retryAt) {
			p.lookAt(g, g.retryAt)
			break // nobody waits, and the last ones failed
		}
		if !p.growLocked(g, now) {
			p.hungry[g] = struct{}{}
			p.lookAt(g, now.Add(impatience))
			return
		}
	}
	delete(p.hungry, g)
	if len(g.waiters) > 0 {
		p.lookAt(g, now.Add(impatience))
	}
}

// growLocked starts one instance; false means that there is no room now.
func (p *Pool) growLocked(g *group, now time.Time) bool {
	// Loading takes as long as the function's code likes: so each group waits for
	// its own starts, and only for the sandboxes of others.
	if g.starting >= p.cfg.MaxStarts {
		return false
	}
	why, ahead := forCall, true
	if n := g.starting * g.per; n < len(g.waiters) { // those before have theirs on the way
		why, ahead = g.waiters[n].purpose, false
	}
	inst := p.stemForLocked(g, why)
	if inst == nil && p.starts >= p.cfg.MaxStarts || !p.roomLocked(g, inst) {
		return false
	}
	if inst == nil {
		inst = p.newInstanceLocked(now)
		p.holdLocked(inst)
	} else {
		p.takeLocked(inst)
	}
	p.stockLocked(&g.version).demand.add(now)
	if g.ctx == nil || g.ctx.Err() != nil {
		g.ctx, g.cancel = context.WithCancel(p.background)
	}
	ctx := g.ctx
	inst.group, inst.asked, inst.fresh, inst.purpose, inst.ahead = g, now, true, why, ahead
	inst.version.Store(&g.version)
	p.chargeLocked(inst, g.estimate())
	g.all = append(g.all, inst)
	g.starting++
	p.setState(inst, hearth.InstanceStarting, p.whyStarted(g, inst, now))
	p.wg.Go(func() { p.start(ctx, inst) })
	return true
}

// whyStarted says in words what an instance is started for.
func (p *Pool) whyStarted(g *group, inst *instance, now time.Time) string {
	switch {
	case inst.purpose == forVerification:
		return "its version was deployed"
	case !inst.ahead:
		if len(g.waiters) == 1 {
			return "a call waited"
		}
		return fmt.Sprintf("%d calls waited", len(g.waiters))
	case g.total() <= p.minLocked(g, now): // with this one
		return g.keep.why
	case g.active():
		return "all others were busy"
	}
	return "a call is expected: " + g.keepAlive()
}

// start makes an instance and offers it to those who wait.
func (p *Pool) start(ctx context.Context, inst *instance) {
	err := inst.start(ctx)
	spared := false // calls that came meanwhile have no part in its failure
	if err == nil && (inst.ahead || inst.purpose == forVerification) {
		if warmErr := inst.warmUp(ctx); warmErr != nil {
			inst.append("hearth", hearth.LevelError, "", hearth.AsError(warmErr).Message)
			if inst.purpose == forVerification || inst.conn.Err() != nil {
				err, spared = warmErr, inst.purpose != forVerification
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	g := inst.group
	g.starting--
	p.letGoLocked(inst)
	defer p.feedLocked()
	if err != nil {
		g.failed(time.Now())
		givenUp := ctx.Err() != nil && p.background.Err() == nil
		p.removeLocked(inst, "it did not start: "+hearth.AsError(err).Message)
		g.absent = hearth.ColdDied
		if len(g.waiters) > 0 && !givenUp && !spared { // who came after it was given up gets another
			w := g.waiters[0]
			g.waiters = g.waiters[1:]
			p.queued--
			p.loadLocked(g, time.Now())
			w.fail(err)
		} else if !givenUp {
			p.cfg.Logger.Info("instance did not start", "function", g.version.Function, "version", g.version.Number, "instance", inst.id, "err", err)
		}
		p.scaleLocked(g)
		p.settleLocked(g)
		return
	}
	g.readyAt = time.Now()
	if inst.purpose == forVerification {
		g.verifiedAt = g.readyAt
	}
	if !inst.ready.Concurrent {
		g.per = 1
	}
	inst.slots = g.per
	if inst.stock != nil && inst.started.Sub(inst.asked) > inst.creation {
		g.stemless = true // its files take longer to reach a stem cell than a sandbox with them to start
	}
	g.cold.Add(max(inst.inited.Sub(inst.asked), 1))
	p.watchLocked(inst)
	p.offerLocked(inst)
}

// holdLocked takes one of the places of sandboxes that are being created, and
// letGoLocked gives it back, if it was not yet.
func (p *Pool) holdLocked(inst *instance) {
	inst.creating = true
	p.starts++
}

func (p *Pool) letGoLocked(inst *instance) {
	if inst.creating {
		inst.creating = false
		p.starts--
	}
}

// created lets others start when the instance's sandbox is there.
func (p *Pool) created(inst *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if inst.creating {
		p.letGoLocked(inst)
		p.feedLocked()
	}
}

// failed keeps starts ahead of calls back for a while, after one failed or an
// instance died as soon as it was there.
func (g *group) failed(now time.Time) {
	g.failures++
	g.retryAt = now.Add(backoff(g.failures))
}

// backoff is how long nothing is started ahead of calls after so many failures.
func backoff(failures int) time.Duration {
	return min(time.Second<<min(failures-1, 10), time.Minute)
}

// watchLocked notices when an instance dies that no call would notice.
func (p *Pool) watchLocked(inst *instance) {
	conn := inst.conn
	if inst.watched == conn {
		return // it was a stem cell
	}
	inst.watched = conn
	p.wg.Go(func() {
		<-conn.Done()
		p.mu.Lock()
		defer p.mu.Unlock()
		if inst.watched != conn || inst.calls > 0 || inst.state == hearth.InstanceStarting || inst.gone() {
			return
		}
		lived := time.Since(inst.started)
		p.removeLocked(inst, "its process ended")
		if g := inst.group; g != nil {
			g.absent = hearth.ColdDied
			if lived < calm {
				g.failed(time.Now())
			}
			p.scaleLocked(g)
			p.settleLocked(g)
		} else if lived < calm {
			inst.stock.failed(time.Now())
		}
		p.feedLocked()
	})
}

// removeLocked takes an instance out of the pool and destroys it. Its place is
// free only when the sandbox is gone, so limits hold on the host too.
func (p *Pool) removeLocked(inst *instance, why string) {
	if inst.gone() {
		return
	}
	if g := inst.group; g != nil {
		p.unidleLocked(inst)
		g.all = slices.DeleteFunc(g.all, func(i *instance) bool { return i == inst })
		if inst.draining {
			g.draining--
		}
	} else if s := inst.stock; s != nil {
		s.cells = slices.DeleteFunc(s.cells, func(i *instance) bool { return i == inst })
	}
	p.setState(inst, hearth.InstanceStopping, why)
	p.leaving.instances++
	p.leaving.bytes += inst.charge
	p.wg.Go(func() {
		inst.destroy()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.instances, inst)
		p.leaving.instances--
		p.leaving.bytes -= inst.charge
		p.used -= inst.charge
		p.setState(inst, hearth.InstanceStopped, inst.why)
		p.quietLocked()
		p.feedLocked()
	})
}

// settleLocked drops a group that has nothing left, and gives up starts that
// nobody can need any more.
func (p *Pool) settleLocked(g *group) {
	if len(g.waiters) == 0 && (g.retired || len(g.all) == 0) && g.cancel != nil {
		g.cancel() // nobody needs what is still starting
	}
	if len(g.all) == 0 && !g.active() && p.groups[g.version.Incarnation] == g && !p.expectsLocked(g) {
		delete(p.groups, g.version.Incarnation)
		delete(p.hungry, g)
		f := g.function
		f.incarnation, f.absent, f.number, f.max = g.version.Incarnation, g.absent, g.version.Number, g.max()
		if f.groups--; f.groups == 0 && !p.names[g.version.Function] {
			delete(p.functions, g.version.Function) // it was deleted
		}
	}
	p.quietLocked()
}

// expectsLocked tells whether the group is to get instances without any call.
func (p *Pool) expectsLocked(g *group) bool {
	if _, live := p.live[g.version.Incarnation]; !live || p.closed {
		return false
	}
	if g.keep != nil {
		return true
	}
	end := g.function.lastEnd
	return !end.IsZero() && g.windowsLocked(p).Next(time.Since(end)) != 0
}

// estimate is what an instance of the group is expected to use, in bytes: a
// quarter more than the most that one was seen to.
func (g *group) estimate() int64 {
	limit := int64(g.version.Config.Memory)
	if g.function.memory == 0 {
		return min(limit, unknownMemory)
	}
	return min(limit, max(leastMemory, g.function.memory*5/4))
}

// chargeLocked counts bytes for the instance, instead of what was before.
func (p *Pool) chargeLocked(inst *instance, bytes int64) {
	if inst.state == hearth.InstanceStopped {
		return
	}
	p.used += bytes - inst.charge
	if inst.state == hearth.InstanceStopping {
		p.leaving.bytes += bytes - inst.charge
	}
	inst.charge = bytes
}

// roomLocked tells whether there is room for another instance of the group, or
// for stem to become one. If not it makes room, as far as what is there is worth
// less; that takes a moment, after which feedLocked tries again.
func (p *Pool) roomLocked(g *group, stem *instance) bool {
	places, bytes := 1, g.estimate()
	if stem != nil {
		places, bytes = 0, max(0, bytes-stem.charge)
	}
	if len(p.hungry) > 0 && g.total() > 0 && p.owedLocked(g) > 0 {
		return false // what there is, is being saved up for those
	}
	maxInstances, memory := p.limitsOfLocked(g)
	if len(p.instances)+places <= maxInstances && (p.used+bytes <= memory || p.used == 0) {
		return true // even one that is larger than the budget, if it is alone
	}
	for len(p.instances)-p.leaving.instances+places > maxInstances || p.used-p.leaving.bytes+bytes > memory {
		victim := p.victimLocked(g, stem)
		if victim == nil {
			return false
		}
		owner := victim.group
		p.removeLocked(victim, "its memory was needed for "+g.version.Function)
		if owner != nil {
			owner.absent = hearth.ColdEvicted
			p.settleLocked(owner)
		}
	}
	return false
}

// victimLocked returns the instance that is worth least and may end for another
// one of g: a stem cell, else an idle instance that was not used for long, takes
// much memory and is quick to start again. Who has more than a fair share takes
// nothing from those who have not, and who has no call waiting takes nothing at
// all. What is to be kept ready ends only for a call that would else never start.
func (p *Pool) victimLocked(g *group, stem *instance) *instance {
	for _, s := range p.stocks {
		for _, cell := range s.cells {
			if cell != stem {
				return cell
			}
		}
	}
	if len(g.waiters) == 0 {
		return nil
	}
	now, share := time.Now(), p.shareLocked()
	greedy := g.total() > 0 && p.shareOfLocked(g) >= share
	var victim, kept *instance
	var worst float64
	for other := range p.resting {
		if other == g || greedy && p.shareOfLocked(other) <= share {
			continue
		}
		inst := other.idle[0]
		if other.total() <= p.minLocked(other, now) {
			kept = inst
			continue
		}
		cold := max(other.cold.Value(), time.Millisecond)
		burden := now.Sub(inst.since).Seconds() * float64(inst.charge) / cold.Seconds()
		if victim == nil || burden > worst {
			victim, worst = inst, burden
		}
	}
	if victim == nil && g.total() == 0 {
		return kept
	}
	return victim
}

// shareOfLocked is the part of the pool that a group has: of the places or of
// the memory, whichever is more.
func (p *Pool) shareOfLocked(g *group) float64 {
	var bytes int64
	for _, inst := range g.all {
		bytes += inst.charge
	}
	return max(float64(len(g.all))/float64(p.cfg.MaxInstances), float64(bytes)/float64(p.cfg.Memory))
}

// shareLocked is the fair share of each group that has calls.
func (p *Pool) shareLocked() float64 {
	return 1 / float64(max(1, p.active))
}

// owesLocked tells whether g has to give the place of an instance to another
// group, which found the pool full: to one that has none, or to one that has
// less than its share if g has more. Else functions whose queues never end would
// keep all places.
func (p *Pool) owesLocked(g *group) bool {
	return len(p.hungry) > 0 && p.owedLocked(g) > p.leaving.instances // their places are on the way
}

// owedLocked is to how many groups g has to give one.
func (p *Pool) owedLocked(g *group) (owed int) {
	share := p.shareLocked()
	greedy := p.shareOfLocked(g) > share
	for h := range p.hungry {
		if h != g && len(h.waiters) > 0 && !p.fitsLocked(h) && (h.total() == 0 || greedy && p.shareOfLocked(h) < share) {
			owed++
		}
	}
	return owed
}

// fitsLocked tells whether another instance of the group has room.
func (p *Pool) fitsLocked(g *group) bool {
	maxInstances, memory := p.limitsOfLocked(g)
	return len(p.instances) < maxInstances && (p.used+g.estimate() <= memory || p.used == 0)
}

// limitsOfLocked are the places and the memory that instances of all groups may
// have together when the group starts another. Pools that are too small for it have
// no reserve.
func (p *Pool) limitsOfLocked(g *group) (instances int, bytes int64) {
	instances, bytes = p.cfg.MaxInstances, p.cfg.Memory
	if g.total() > 0 {
		instances -= instances / reserve
		bytes -= bytes / reserve / unknownMemory * unknownMemory
	}
	return instances, bytes
}

// feedLocked lets those try again who found no room: first those whose calls
// wait, who has the least before the others; and then fills the stocks.
func (p *Pool) feedLocked() {
	if len(p.hungry) > 0 {
		groups := slices.SortedFunc(maps.Keys(p.hungry), func(a, b *group) int {
			return cmp.Or(cmp.Compare(min(len(b.waiters), 1), min(len(a.waiters), 1)), cmp.Compare(p.shareOfLocked(a), p.shareOfLocked(b)), a.longest().Compare(b.longest()))
		})
		for _, g := range groups {
			if _, ok := p.hungry[g]; ok { // it was not dropped meanwhile
				p.scaleLocked(g)
			}
		}
	}
	p.restockLocked()
}

// longest is when the first waiter came; far in the future if there is none.
func (g *group) longest() time.Time {
	if len(g.waiters) == 0 {
		return time.Unix(1<<40, 0)
	}
	return g.waiters[0].asked
}
