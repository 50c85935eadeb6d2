package policy

import (
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// Price is how much idle time of one instance a cold start is worth.
	Price = time.Hour
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
	enough = 3
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
	if h.count < remembered || h.count%(remembered/8) == 0 {
		h.known = false // of many, one more or less changes little
	}
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
	var found window
	for j := range idle {
		for i := -1; i <= j; i++ {
			w := newWindow(idle, i, j)
			if w.from > 0 && w.from <= linger.Seconds() {
				continue // it is there still
			}
			early, _ := slices.BinarySearch(idle, w.from)
			late, _ := slices.BinarySearch(idle, w.until)
			missed := float64(early + len(idle) - late) // calls that are cold
			ready := max(w.from, linger.Seconds())
			cost := sums[late] - sums[early] - float64(late-early)*ready + // waited for those that came
				float64(len(idle)-late)*(w.until-ready) + // and for those that did not
				missed*(price+startCost.Seconds())
			if w.from > 0 {
				cost += (n - float64(early)) * startCost.Seconds()
			}
			if cost < best {
				best, found = cost, w
			}
		}
	}
	if found.until > idle[len(idle)-1] {
		// No idle time tells what comes after the longest. What is kept for it costs
		// little, since it is rarely waited for: as much again, if a cold start is
		// worth it.
		found.until += min(found.until-max(found.from, linger.Seconds()), price/2)
	}
	return found.windows(idle)
}

// window is when a function is kept warm after linger, in seconds since its
// last call. If from is 0 it is not stopped before; if until is 0, there is none.
type window struct{ from, until float64 }

// newWindow is that for the sorted idle times i to j, or for all up to j if i
// is negative.
func newWindow(idle []float64, i, j int) window {
	first := max(0, i)
	// The next may come a little earlier or later than any before: by as much as
	// there is between two of them, or by a share of all.
	m := 0.1 * idle[j]
	if j > first {
		m = max((idle[j]-idle[first])/float64(j-first), 0.01*idle[j], 5)
	}
	w := window{until: idle[j] + m}
	if i >= 0 {
		w.from = max(0, idle[i]-m)
	}
	return w
}

// windows are the window after linger, with the reason for it.
func (w window) windows(idle []float64) Windows {
	// The rarest of both ends would make the range say little.
	few := len(idle) / 20
	usual := span(seconds(idle[few]), seconds(idle[len(idle)-1-few]))
	switch {
	case w.until == 0:
		return Windows{Linger: linger, Reason: "calls come every " + usual + ", too far apart to wait for: kept " + human(linger) + " after each"}
	case w.from == 0:
		kept := seconds(w.until)
		return Windows{Linger: linger, KeepAlive: kept, Reason: "calls come every " + usual + ": kept " + human(kept) + " after each"}
	}
	from, until := seconds(w.from), seconds(w.until)
	return Windows{
		Linger: linger, PreWarm: from, KeepAlive: until - from,
		Reason: "calls come every " + usual + ": stopped after each, started again " + human(from) + " later",
	}
}

func seconds(s float64) time.Duration {
	return time.Duration(math.Round(s)) * time.Second
}
