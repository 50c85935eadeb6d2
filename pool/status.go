package pool

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/hearthrun/hearth"
)

// transitions are the states that may follow each.
var transitions = map[hearth.InstanceState][]hearth.InstanceState{
	"":                      {hearth.InstanceStarting},
	hearth.InstanceStarting: {hearth.InstanceStem, hearth.InstanceIdle, hearth.InstanceBusy, hearth.InstanceSettling, hearth.InstanceStopping},
	hearth.InstanceStem:     {hearth.InstanceStarting, hearth.InstanceStopping},
	hearth.InstanceIdle:     {hearth.InstanceBusy, hearth.InstancePaused, hearth.InstanceStopping},
	hearth.InstancePaused:   {hearth.InstanceBusy, hearth.InstanceStopping},
	hearth.InstanceBusy:     {hearth.InstanceIdle, hearth.InstanceSettling, hearth.InstanceDraining, hearth.InstanceStopping},
	hearth.InstanceSettling: {hearth.InstanceIdle, hearth.InstanceBusy, hearth.InstanceStopping},
	hearth.InstanceDraining: {hearth.InstanceSettling, hearth.InstanceStopping},
	hearth.InstanceStopping: {hearth.InstanceStopped},
	hearth.InstanceStopped:  {},
}

// setState is the one place where an instance changes its state. An empty why
// means that for which it was started. Pool.mu is held.
func (p *Pool) setState(inst *instance, to hearth.InstanceState, why string) {
	from := inst.state
	if from == to {
		return
	}
	if !slices.Contains(transitions[from], to) {
		panic("pool: an instance cannot become " + string(to) + " when it is " + string(from))
	}
	if to == hearth.InstanceStarting {
		inst.reason = why
	}
	inst.state, inst.why, inst.since = to, cmp.Or(why, inst.reason), time.Now()
	inst.meter.pass(from, inst.since)
	if len(p.watchers) > 0 {
		p.tellLocked(hearth.InstanceEvent{Time: inst.since, From: from, Instance: inst.statusLocked()})
	}
}

// watcher is somebody who watches events.
type watcher struct {
	events chan hearth.InstanceEvent
}

// watcherBuffer is how many events a slow watcher may be behind.
const watcherBuffer = 1024

// Watch returns the state of the pool and then every change to it. The channel
// is closed when ctx ends, when the pool closes, or when the watcher is too slow:
// it then watches anew.
func (p *Pool) Watch(ctx context.Context) (hearth.PoolStatus, <-chan hearth.InstanceEvent) {
	w := &watcher{events: make(chan hearth.InstanceEvent, watcherBuffer)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		close(w.events)
		return p.statusLocked(), w.events
	}
	p.watchers[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dismissLocked(w)
	})
	return p.statusLocked(), w.events
}

func (p *Pool) tellLocked(e hearth.InstanceEvent) {
	for w := range p.watchers {
		select {
		case w.events <- e:
		default:
			p.dismissLocked(w)
		}
	}
}

func (p *Pool) dismissLocked(w *watcher) {
	if _, ok := p.watchers[w]; ok {
		delete(p.watchers, w)
		close(w.events)
	}
}

// unwatch ends all watching.
func (p *Pool) unwatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.watchers {
		p.dismissLocked(w)
	}
}

// Status tells what the pool has and why.
func (p *Pool) Status() hearth.PoolStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.statusLocked()
}

func (p *Pool) statusLocked() hearth.PoolStatus {
	now := time.Now()
	st := hearth.PoolStatus{
		Time: now, MemoryUsed: p.used, MaxInstances: p.cfg.MaxInstances, Queued: p.queued,
		Instances: []hearth.Instance{}, Functions: []hearth.PoolFunction{}, Stems: []hearth.StemStock{},
	}
	if p.cfg.Memory != math.MaxInt64 {
		st.MemoryBudget = p.cfg.Memory
	}
	for inst := range p.instances {
		st.Instances = append(st.Instances, inst.statusLocked())
	}
	slices.SortFunc(st.Instances, func(a, b hearth.Instance) int {
		stem := func(i hearth.Instance) int {
			if i.Function == "" {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(stem(a), stem(b)), cmp.Compare(a.Function, b.Function), cmp.Compare(a.Version, b.Version),
			a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.ID, b.ID))
	})
	for _, g := range p.groups {
		st.Functions = append(st.Functions, p.functionLocked(g, now))
	}
	for name, f := range p.functions {
		if f.groups == 0 && f.calls > 0 { // its instances have ended
			st.Functions = append(st.Functions, f.status(name))
		}
	}
	slices.SortFunc(st.Functions, func(a, b hearth.PoolFunction) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Version, b.Version))
	})
	for c, s := range p.stocks {
		n := s.demand.want(now, max(0, p.cfg.MaxStems))
		st.Stems = append(st.Stems, hearth.StemStock{
			Isolation: c.isolation, Runtime: c.runtime, Memory: hearth.Bytes(c.memory), Egress: c.egress,
			Ready: len(s.cells), Starting: s.starting, Target: n, Why: s.demand.why(n),
		})
	}
	slices.SortFunc(st.Stems, func(a, b hearth.StemStock) int {
		return cmp.Or(cmp.Compare(a.Isolation, b.Isolation), cmp.Compare(a.Runtime, b.Runtime), cmp.Compare(a.Memory, b.Memory), cmp.Compare(a.Egress, b.Egress))
	})
	return st
}

// status describes a function that has no instances and no calls.
func (f *function) status(name string) hearth.PoolFunction {
	st := hearth.PoolFunction{
		Function: name, Version: f.number, Max: f.max,
		Calls: f.calls, ColdStarts: maps.Clone(f.colds), LastCold: f.last,
	}
	if f.learner != nil {
		st.KeepAlive = f.learner.Windows().Reason
	}
	if st.ColdStarts == nil {
		st.ColdStarts = map[hearth.ColdReason]int64{}
	}
	if !f.lastEnd.IsZero() {
		end := f.lastEnd
		st.IdleSince = &end
	}
	return st
}

func (p *Pool) functionLocked(g *group, now time.Time) hearth.PoolFunction {
	st := g.function.status(g.version.Function)
	st.Version, st.Retired = g.version.Number, g.retired
	st.InFlight, st.Queued = g.inFlight, len(g.waiters)
	st.Instances, st.Target, st.Min, st.Max = g.total(), p.wantLocked(g, now), p.minLocked(g, now), g.max()
	st.Service, st.Cold = g.service.Value(), g.cold.Value()
	if g.active() {
		st.IdleSince = nil
	}
	return st
}

// statusLocked describes an instance.
func (i *instance) statusLocked() hearth.Instance {
	st := hearth.Instance{
		ID: i.id, State: i.state, Why: i.why, Since: i.since, StartedAt: i.born,
		InFlight: i.calls, Served: i.served, Memory: i.meter.reading.Memory, PSS: i.usage.PSS, MemoryPeak: i.meter.reading.MemoryPeak, CPU: i.meter.reading.CPU,
		Isolation: i.isolation(), Charge: i.charge,
	}
	if v := i.version.Load(); v != nil {
		st.Function, st.Version, st.Runtime = v.Function, v.Number, v.Config.Runtime
	} else if i.stock != nil {
		st.Runtime = i.stock.class.runtime
	}
	return st
}
