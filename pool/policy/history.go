package policy

import (
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// Price is how much idle time of one instance a cold start is worth.
	Price = 20 * time.Minute
	// linger is how long an instance stays after every call: people who try a
	// function call it again within a minute or two, and so do bursts. Only idle
	// times above it tell something about when the next burst comes.
	linger = time.Minute
	// fallback is the window of a function that is not known yet. It is that of
	// the fixed policies of the big providers (Shahrad et al., section 1).
	fallback = 10 * time.Minute
	// startCost is what a start itself takes, in idle time of an instance, also
	// when no call waits for it. It keeps instances from being stopped and started
	// again for the few seconds that this saves.
	startCost = time.Minute
	// enough is how many idle times make a pattern.
	enough = 4
	// remembered is how many idle times a History has: what was before is
	// forgotten, so it follows a function that changes.
	remembered = 64
)

// History learns when a function is called: it remembers the last idle times
// that were long enough for the question to arise, and finds the windows that
// would have cost least with them. A cold start costs what Price says, a warm
// instance without a call the time it waits. The zero value knows nothing yet.
// It is not safe for use by several goroutines at once.
type History struct {
	// Price of a cold start in idle time; 0 means the constant Price.
	Price time.Duration

	seconds [remembered]float32 // a ring
	count   uint32              // of all that were ever observed
	known   bool                // windows are those of the ring
	windows Windows
}

// Observe tells that a call came after this long without any in flight.
func (h *History) Observe(idle time.Duration) {
	if idle <= linger {
		return
	}
	h.seconds[h.count%remembered] = float32(idle.Seconds())
	h.count++
	h.known = false
}

// Windows are those after a call that ends now. It is cheap to call after every
// call: it thinks only when an idle time above a minute was observed before.
func (h *History) Windows() Windows {
	if !h.known {
		h.windows, h.known = h.decide(), true
	}
	return h.windows
}

func (h *History) decide() Windows {
	idle := h.idle()
	if len(idle) < enough {
		w := Windows{KeepAlive: fallback}
		if len(idle) == 0 {
			w.Reason = "no idle time above " + human(linger) + " yet: kept " + human(fallback) + " after each call"
		} else {
			w.Reason = fmt.Sprintf("only %d of %d idle times known yet: kept %s after each call", len(idle), enough, human(fallback))
		}
		return w
	}
	price := h.Price
	if price == 0 {
		price = Price
	}
	return cheapest(idle, price.Seconds())
}

// idle returns the remembered idle times in seconds, the shortest first.
func (h *History) idle() []float64 {
	n := min(h.count, remembered)
	idle := make([]float64, n)
	for i, s := range h.seconds[:n] {
		idle[i] = float64(s)
	}
	slices.Sort(idle)
	return idle
}

// cheapest finds the windows that cost least with the sorted idle times, in
// seconds. Those that end or begin anywhere but at one of the idle times, give
// or take the margin, cannot be better.
func cheapest(idle []float64, price float64) Windows {
	n := float64(len(idle))
	sums := make([]float64, len(idle)+1)
	for i, x := range idle {
		sums[i+1] = sums[i] + x
	}
	// Without any window but linger every call is cold.
	best := n * (price + startCost.Seconds())
	from, to := -1, -1 // the idle times that are warm, from 0 if kept
	for j := range idle {
		until := idle[j] + margin(idle[j])
		// Those that are above until wait for all of the window in vain.
		k := j + 1
		for k < len(idle) && idle[k] <= until {
			k++
		}
		late := float64(len(idle) - k)
		kept := sums[k] - float64(k)*linger.Seconds() + late*(until-linger.Seconds()) + late*(price+startCost.Seconds())
		if kept < best {
			best, from, to = kept, -1, j
		}
		for i := 0; i <= j; i++ {
			start := idle[i] - margin(idle[i])
			if start <= linger.Seconds() {
				continue
			}
			early := i // those that come before start are cold
			for early > 0 && idle[early-1] >= start {
				early--
			}
			cost := sums[k] - sums[early] - float64(k-early)*start + late*(until-start) + // waiting
				(float64(early)+late)*price + // cold
				n*startCost.Seconds() + late*startCost.Seconds()
			if cost < best {
				best, from, to = cost, i, j
			}
		}
	}
	return describe(idle, from, to)
}

// describe makes the windows for the idle times from to to; to < 0 if none is
// worth waiting for, from < 0 if the instance is kept till then.
func describe(idle []float64, from, to int) Windows {
	usual := span(seconds(idle[len(idle)/20]), seconds(idle[len(idle)-1-len(idle)/20]))
	w := Windows{Linger: linger}
	if to < 0 {
		w.Reason = "calls come after " + usual + ", too far apart to wait for: kept " + human(linger)
		return w
	}
	until := seconds(idle[to] + margin(idle[to]))
	if from < 0 {
		w.KeepAlive = until
		w.Reason = "calls come after " + usual + ": kept " + human(w.KeepAlive) + " after each"
		return w
	}
	w.PreWarm = seconds(idle[from] - margin(idle[from]))
	w.KeepAlive = until - w.PreWarm
	w.Reason = "calls come every " + span(seconds(idle[from]), seconds(idle[to])) + ": stopped after each, started again " + human(w.PreWarm) + " later"
	return w
}

// margin is how much earlier or later than any before, in seconds, a call may
// come: the paper takes 10 %.
func margin(idle float64) float64 { return 0.1 * idle }

func seconds(s float64) time.Duration {
	return time.Duration(math.Round(s)) * time.Second
}
