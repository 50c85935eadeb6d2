package pool

import (
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/pool/policy"
)

const (
	// crowdWindow is how long the cores are watched before the next decision about
	// how many calls run at once: long enough for five of the kernel's ticks.
	crowdWindow = 50 * time.Millisecond
	// crowdSample is how many instances of a group are looked at.
	crowdSample = 16
)

// crowd is what the cores did until a moment, as far as calls that wait may be the
// cause.
type crowd struct {
	at          time.Time
	busy, total float64
	cpu         map[*instance]time.Duration
}

// watchCrowds decides, while calls wait, how many calls of each group run at once.
func (p *Pool) watchCrowds() {
	for {
		select {
		case <-p.crowded:
		case <-p.background.Done():
			return
		}
		tick := time.NewTicker(crowdWindow)
		var before crowd
		for {
			groups := p.crowds()
			if len(groups) == 0 {
				break
			}
			now := p.look(groups)
			if before.cpu != nil {
				p.limitCrowds(groups, before, now)
			}
			before = now
			select {
			case <-tick.C:
			case <-p.background.Done():
			}
			if p.background.Err() != nil {
				break
			}
		}
		tick.Stop()
	}
}

// crowds returns the groups that have calls waiting or a limit, each with some of
// its instances that have calls.
func (p *Pool) crowds() map[*group][]*instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	groups := map[*group][]*instance{}
	for _, g := range p.groups {
		if len(g.waiters) == 0 && g.parallel == 0 {
			continue
		}
		groups[g] = nil
		for _, inst := range g.all {
			if inst.calls > 0 && len(groups[g]) < crowdSample {
				groups[g] = append(groups[g], inst)
			}
		}
	}
	return groups
}

// look reads what the cores and the instances have done until now.
func (p *Pool) look(groups map[*group][]*instance) crowd {
	c := crowd{at: time.Now(), cpu: map[*instance]time.Duration{}}
	c.busy, c.total = p.cpuTimes()
	for _, inst := range slices.Concat(slices.Collect(maps.Values(groups))...) {
		if m, ok := inst.sandbox.(driver.Meter); ok {
			if used, ok := m.CPU(); ok {
				c.cpu[inst] = used
			}
		}
	}
	return c
}

// limitCrowds lets more or fewer calls of each group run at once, by what happened
// between two looks.
func (p *Pool) limitCrowds(groups map[*group][]*instance, before, now crowd) {
	cores := policy.Cores{All: float64(runtime.NumCPU()), Crowds: len(groups)}
	if now.total > before.total {
		cores.Busy = cores.All * (now.busy - before.busy) / (now.total - before.total)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for g, instances := range groups {
		var used time.Duration
		seen := 0
		for _, inst := range instances {
			a, known := before.cpu[inst]
			b, still := now.cpu[inst]
			if known && still {
				used += b - a
				seen++
			}
		}
		busy := (g.inFlight + g.per - 1) / g.per
		cores.Used = used.Seconds() / now.at.Sub(before.at).Seconds() * float64(busy) / float64(max(1, seen))
		g.parallel = policy.Parallel(g.parallel, busy, cores)
		if len(g.waiters) == 0 || g.parallel >= g.max() {
			g.parallel = 0
		}
		g.double()
		p.serveLocked(g, now.at)
		if p.groups[g.version.Incarnation] == g {
			p.scaleLocked(g)
		}
	}
}

// double lets the group have twice the instances it has, before the cores are looked
// at again: what a start takes is lost if they turn out to be busy.
func (g *group) double() { g.spurt = 2 * (g.total() - g.starting) }
