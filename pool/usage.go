package pool

import (
	"cmp"
	"context"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

const (
	// meterEvery is how often instances are looked at that had a call or were
	// started since they were last, restEvery how often the others: those may compute
	// without a call, and their memory may change. It is also how often those are
	// whose driver tells only what takes long to find out.
	meterEvery = time.Second
	restEvery  = 15 * time.Second
	// lastReading bounds how long the end of a sandbox waits for what it used.
	lastReading = time.Second
)

// activity is what the time of an instance is spent on.
type activity int

const (
	starting activity = iota
	busy
	idle
	stem
	activities int = iota
)

// activityIn returns what an instance in a state does; ok is false once it is over.
func activityIn(s hearth.InstanceState) (a activity, ok bool) {
	switch s {
	case hearth.InstanceStarting:
		return starting, true
	case hearth.InstanceBusy, hearth.InstanceSettling, hearth.InstanceDraining:
		return busy, true
	case hearth.InstanceIdle, hearth.InstancePaused:
		return idle, true
	case hearth.InstanceStem:
		return stem, true
	}
	return 0, false
}

// usageMeter is what an instance used that nobody was told of yet. Pool.mu guards it.
type usageMeter struct {
	spent   [activities]time.Duration
	since   time.Time    // the time before is in spent
	moved   bool         // its state changed since it was read
	readAt  time.Time    // zero if its sandbox was never
	reading driver.Usage // of its sandbox, when it was last
	// sandboxes is how many it had before this one.
	sandboxes int
	slow      bool // what this one uses takes long to find out
	asked     bool // somebody is finding it out
}

// pass adds the time until now, in which the instance was in a state.
func (m *usageMeter) pass(in hearth.InstanceState, now time.Time) {
	if a, ok := activityIn(in); ok {
		m.spent[a] += now.Sub(m.since)
	}
	m.since, m.moved = now, true
}

// take returns what was used since the last call, now that the instance has used so much;
// shared is what it used as a stem cell.
func (m *usageMeter) take(now driver.Usage) (used, shared hearth.Usage) {
	grown := func(of func(u *driver.Usage) int64) int64 { return max(0, of(&now)-of(&m.reading)) }
	used.CPUSeconds = time.Duration(grown(func(u *driver.Usage) int64 { return int64(u.CPU) })).Seconds()
	used.NetworkIn = grown(func(u *driver.Usage) int64 { return u.NetworkIn })
	used.NetworkOut = grown(func(u *driver.Usage) int64 { return u.NetworkOut })
	used.DiskRead = grown(func(u *driver.Usage) int64 { return u.DiskRead })
	used.DiskWritten = grown(func(u *driver.Usage) int64 { return u.DiskWritten })
	now.Memory = cmp.Or(now.Memory, m.reading.Memory) // it may be gone from where that is told
	memory := float64(now.Memory+cmp.Or(m.reading.Memory, now.Memory)) / 2
	for a, to := range []*hearth.Occupancy{starting: &used.Starting, busy: &used.Busy, idle: &used.Idle, stem: &shared.Idle} {
		to.Seconds = m.spent[a].Seconds()
		to.ByteSeconds = to.Seconds * memory
	}
	m.spent = [activities]time.Duration{}
	// Two readings may come in another order than they were made.
	now.CPU, now.MemoryPeak = max(now.CPU, m.reading.CPU), max(now.MemoryPeak, m.reading.MemoryPeak)
	now.NetworkIn, now.NetworkOut = max(now.NetworkIn, m.reading.NetworkIn), max(now.NetworkOut, m.reading.NetworkOut)
	now.DiskRead, now.DiskWritten = max(now.DiskRead, m.reading.DiskRead), max(now.DiskWritten, m.reading.DiskWritten)
	m.reading = now
	return used, shared
}

// meterAll reads what instances use, again and again, and tells Config.Used.
func (p *Pool) meterAll() {
	tick := time.NewTicker(meterEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.background.Done():
			return
		}
		for _, m := range p.unmetered(time.Now()) {
			if p.background.Err() != nil {
				return
			}
			if u, known := cheapUsage(m.sandbox); known {
				p.note(m, u, true, true)
			} else {
				// Others do not wait for it.
				p.wg.Go(func() {
					u, known := slowUsage(p.background, m.sandbox, weighTimeout)
					p.note(m, u, known, false)
				})
			}
		}
	}
}

// metered is an instance that is to be read, and the sandbox that it has.
type metered struct {
	*instance
	sandbox   driver.Sandbox
	sandboxes int
}

// unmetered returns the instances that are to be read now.
func (p *Pool) unmetered(now time.Time) (list []metered) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for inst := range p.instances {
		if inst.state == hearth.InstanceStarting || inst.gone() || inst.meter.asked {
			continue // its sandbox is not there yet, or is read at its end
		}
		every := restEvery
		if !inst.meter.slow && (inst.meter.moved || inst.state == hearth.InstanceBusy) {
			every = meterEvery
		}
		if now.Sub(inst.meter.readAt) >= every-meterEvery/2 {
			inst.meter.asked = true
			list = append(list, metered{inst, inst.sandbox, inst.meter.sandboxes})
		}
	}
	return list
}

// note tells what was read of an instance.
func (p *Pool) note(m metered, u driver.Usage, known, cheap bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.meter.sandboxes == m.sandboxes { // else it did not fit, and has another
		m.meter.asked, m.meter.slow = false, !cheap
		m.usedLocked(u, known)
	}
}

// cheapUsage returns what a sandbox uses, if that takes no time.
func cheapUsage(s driver.Sandbox) (u driver.Usage, known bool) {
	if m, ok := s.(driver.Meter); ok {
		return m.Usage()
	}
	return u, false
}

// slowUsage asks for it.
func slowUsage(ctx context.Context, s driver.Sandbox, timeout time.Duration) (u driver.Usage, known bool) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stats, err := s.Stats(ctx)
	return stats.Usage, err == nil
}

// meterLast reads what the instance has used before its sandbox is destroyed, if there is
// one; it may get another.
func (i *instance) meterLast(ctx context.Context) {
	var u driver.Usage
	known := false
	if i.sandbox != nil {
		if u, known = cheapUsage(i.sandbox); !known {
			u, known = slowUsage(ctx, i.sandbox, lastReading)
		}
	}
	i.pool.mu.Lock()
	defer i.pool.mu.Unlock()
	i.usedLocked(u, known)
	i.meter.reading, i.meter.asked = driver.Usage{}, false
	i.meter.sandboxes++
}

// usedLocked tells what is new of what the instance used; where that is not known, for how
// long it existed.
func (i *instance) usedLocked(u driver.Usage, known bool) {
	m, now := &i.meter, time.Now()
	if !known {
		u = m.reading
	}
	m.pass(i.state, now)
	m.moved, m.readAt = false, now
	used, shared := m.take(u)
	tell := i.pool.cfg.Used
	switch v := i.version.Load(); {
	case v == nil:
		used.Idle = shared.Idle
		tell("", 0, i.isolation(), used)
	default:
		tell(v.Function, v.Number, i.isolation(), used)
		if shared != (hearth.Usage{}) {
			tell("", 0, i.isolation(), shared)
		}
	}
}

// isolation is the technology of the instance.
func (i *instance) isolation() string {
	if v := i.version.Load(); v != nil {
		return v.Config.Isolation
	}
	if i.stock != nil {
		return i.stock.class.isolation
	}
	return ""
}
