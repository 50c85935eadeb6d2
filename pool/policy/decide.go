// Package policy decides how many instances a version of a function should
// have: how a queue makes them grow, how calm makes them fewer, and how long
// one is kept warm for calls that have not come yet. All of it is arithmetic on
// what the pool observed, with the time as a parameter: the pool acts on it,
// and Simulate replays traces of calls against it. docs/keep-alive.md tells how
// the constants were chosen.
package policy

import (
	"math"
	"time"
)

// utilisation is how much of what its instances can carry a version uses under
// sustained load. The rest absorbs calls that come together: at 70 % (Knative's
// default, too) few of them find every instance busy.
const utilisation = 0.7

// Limits are what the owner of a function allows.
type Limits struct {
	// Min is kept even without any call; Max is never exceeded. Max wins.
	Min, Max int
	// PerInstance is how many calls one instance serves at the same time; less
	// than 1 means 1.
	PerInstance int
}

// Observed is what the pool knows about a version at one moment.
type Observed struct {
	// InFlight is the calls that have an instance, Queued those that wait for one.
	InFlight, Queued int
	// Held is those in flight that are connections: each keeps a place, for as long
	// as somebody likes, and neither Service nor Average and Peak count them.
	Held int
	// Instances is how many there are, ready or starting.
	Instances int
	// Service and Cold are how long a call and a start take on average (see
	// Mean); 0 while unknown.
	Service, Cold time.Duration
	// Average and Peak are the load, in calls, as Load.At tells it: lately, and
	// at its highest in the last PeakWindow.
	Average, Peak float64
	// IdleSince is when the last call ended; zero if there never was one. It
	// counts only while no call is in flight or queued.
	IdleSince time.Time
	// Windows are when the version is kept warm without calls.
	Windows Windows
}

// Decide returns how many instances, ready or starting, a version should have
// at now. The pool starts what is missing; of a surplus it ends only those that
// are idle, the longest unused first.
func Decide(now time.Time, l Limits, o Observed) int {
	l.PerInstance = max(1, l.PerInstance)
	var n int
	if o.InFlight+o.Queued > 0 {
		// A peak that is over keeps what it needed, but starts nothing.
		n = max(1, l.forQueue(o), l.forLoad(o.Held, o.Average), min(o.Instances, l.forLoad(o.Held, o.Peak)))
	} else if idle := now.Sub(o.IdleSince); !o.IdleSince.IsZero() && o.Windows.Warm(idle) {
		// Calm makes nothing grow, except that one is started ahead of a call.
		n = min(o.Instances, max(1, l.forLoad(0, o.Peak)))
		if o.Windows.PreWarm > 0 && idle >= o.Windows.PreWarm {
			n = max(1, n)
		}
	}
	return min(max(n, l.Min), l.Max)
}

// forQueue is the number of instances that serve the queue soon enough. A call
// that waits can be served by a new instance after one cold start at the
// earliest; so it gains nothing from one if those that exist come to it before.
func (l Limits) forQueue(o Observed) int {
	if o.Queued == 0 {
		return 0 // whoever is in flight has an instance
	}
	// One place for each call: more would be idle at once.
	every := ceil(float64(o.InFlight+o.Queued) / float64(l.PerInstance))
	if o.Service <= 0 || o.Cold <= 0 {
		return every
	}
	served := float64(l.PerInstance) * float64(o.Cold) / float64(o.Service) // by one instance, in one cold start
	held := float64(o.Held) / float64(l.PerInstance)                        // places that serve no queue
	return min(every, ceil(held+float64(o.Queued)/served))
}

// forLoad is the number of instances that carry a sustained load besides what is
// held. A caller that makes one call after the other is a load of 1 and needs one
// place; held connections need one each.
func (l Limits) forLoad(held int, load float64) int {
	places := load / utilisation
	if load <= 1 {
		places = float64(ceil(load))
	}
	return ceil((float64(held) + places) / float64(l.PerInstance))
}

// ceil rounds up, but for what floating point added to a whole number.
func ceil(x float64) int {
	return int(min(math.Ceil(x-1e-9), math.MaxInt32))
}
