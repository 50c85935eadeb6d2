package pool

import (
	"time"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/pool/policy"
)

const (
	// crowdWindow is how long the cores are watched before the next decision about
	// how many instances have calls at once: five of the kernel's ticks.
	crowdWindow = 50 * time.Millisecond
	// crowdSample is how many instances of all groups together are looked at, but at
	// least one of each group.
	crowdSample = 64
)

// crowd is what the cores did until a moment.
type crowd struct {
	at          time.Time
	busy, total float64 // ticks, see telemetry.CPUTimes
	used        map[*instance]meterReading
}

// meterReading is what an instance had used of the cores at a moment.
type meterReading struct {
	at  time.Time
	cpu time.Duration
}

// crowdMember is a group that has calls waiting, or a limit.
type crowdMember struct {
	busy   int // instances with calls
	sample []*instance
}

// watchCrowds decides, while calls wait, how many instances of each group have
// calls at once.
func (p *Pool) watchCrowds() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.crowded:
		case <-p.background.Done():
			return
		}
		var before crowd
		for {
			groups := p.crowds()
			if len(groups) == 0 {
				break
			}
			now := p.look(groups)
			switch {
			case before.at.IsZero():
				before = now
			case now.total > before.total:
				p.limitCrowds(groups, before, now)
				before = now
			}
			timer.Reset(crowdWindow)
			select {
			case <-timer.C:
			case <-p.background.Done():
				return
			}
		}
	}
}

// crowds returns the groups that have calls waiting or a limit. Those that are
// retired have none: nobody comes after those who wait.
func (p *Pool) crowds() map[*group]*crowdMember {
	p.mu.Lock()
	defer p.mu.Unlock()
	members := map[*group]*crowdMember{}
	for _, g := range p.groups {
		if !g.retired && (len(g.waiters) > 0 || g.parallel > 0) {
			members[g] = &crowdMember{}
		}
	}
	for g, m := range members {
		for _, inst := range g.all {
			if inst.calls == inst.held { // connections do little
				continue
			}
			m.busy++
			if len(m.sample) < max(1, crowdSample/len(members)) {
				m.sample = append(m.sample, inst)
			}
		}
	}
	return members
}

// look reads what the cores and the instances have done until now.
func (p *Pool) look(groups map[*group]*crowdMember) crowd {
	c := crowd{at: time.Now(), used: map[*instance]meterReading{}}
	c.busy, c.total = p.cpuTimes()
	for _, m := range groups {
		for _, inst := range m.sample {
			if meter, ok := inst.sandbox.(driver.Meter); ok {
				if cpu := meter.CPU(); cpu > 0 {
					c.used[inst] = meterReading{time.Now(), cpu}
				}
			}
		}
	}
	return c
}

// limitCrowds gives more or fewer instances of each group calls at once, by what
// happened between two looks.
func (p *Pool) limitCrowds(groups map[*group]*crowdMember, before, now crowd) {
	all := float64(p.cores)
	busy := all * (now.busy - before.busy) / (now.total - before.total)
	p.mu.Lock()
	defer p.mu.Unlock()
	for g, m := range groups {
		if g.retired || p.groups[g.version.Incarnation] != g {
			continue
		}
		used, seen := 0.0, 0
		for _, inst := range m.sample {
			a, known := before.used[inst]
			b, still := now.used[inst]
			if known && still && b.at.After(a.at) {
				used += float64(b.cpu-a.cpu) / float64(b.at.Sub(a.at))
				seen++
			}
		}
		g.double()
		p.hungry[g] = struct{}{} // it may want more now
		switch {
		case !g.active():
			g.parallel = 0
		case seen > 0 || m.busy == 0:
			used *= float64(m.busy) / float64(max(1, seen))
			g.parallel = policy.Parallel(g.parallel, m.busy, policy.Cores{All: all, Busy: busy, Used: used, Crowds: len(groups)})
			if g.parallel >= g.max() {
				g.parallel = 0
			}
		}
		p.serveLocked(g, now.at)
	}
	p.feedLocked()
}

// double lets the group have twice the instances it has, before the cores are looked
// at again: what a start takes is lost if they turn out to be busy.
func (g *group) double() { g.spurt = 2 * (g.total() - g.starting) }
