package policy

import (
	"fmt"
	"time"
)

// Windows say when a function without calls is kept warm, counted from the end
// of its last call: for Linger, and then for KeepAlive from PreWarm on. The
// zero value keeps nothing.
type Windows struct {
	// Linger is how long an instance stays after a call whatever comes next.
	Linger time.Duration
	// PreWarm is when an instance is started ahead of the call that is expected;
	// 0 if none is stopped in between.
	PreWarm time.Duration
	// KeepAlive is how long the function is kept warm from PreWarm on.
	KeepAlive time.Duration
	// Reason says in one line, for people, why these.
	Reason string
}

// Warm tells whether a function that has been idle this long should have an
// instance.
func (w Windows) Warm(idle time.Duration) bool {
	return idle < w.Linger || idle >= w.PreWarm && idle < w.PreWarm+w.KeepAlive
}

// Next returns the idle time, later than the given one, at which Warm changes
// next; 0 if it does not change any more.
func (w Windows) Next(idle time.Duration) time.Duration {
	for _, edge := range []time.Duration{w.Linger, w.PreWarm, w.PreWarm + w.KeepAlive} {
		if edge > idle && w.Warm(edge) != w.Warm(edge-1) {
			return edge
		}
	}
	return 0
}

// Learner learns one function's idle times and says when to keep it warm.
type Learner interface {
	// Observe tells that a call came after this long without any in flight.
	Observe(idle time.Duration)
	// Windows are those after a call that ends now.
	Windows() Windows
}

// Fixed keeps a function warm for the same time after each call.
type Fixed time.Duration

// NoKeepAlive ends an instance as soon as it has nothing to do.
const NoKeepAlive Fixed = 0

// Observe learns nothing.
func (f Fixed) Observe(time.Duration) {}

// Windows are always the same.
func (f Fixed) Windows() Windows {
	d := time.Duration(f)
	if d <= 0 {
		return Windows{Reason: "not kept"}
	}
	return Windows{KeepAlive: d, Reason: "kept " + human(d) + " after each call, as configured"}
}

// human writes a duration with the precision that people plan with.
func human(d time.Duration) string {
	value, unit := scale(d)
	return value + " " + unit
}

// span writes a range, with the unit only once if it is the same.
func span(from, to time.Duration) string {
	a, unit := scale(from)
	b, unitB := scale(to)
	switch {
	case unit != unitB:
		return a + " " + unit + "–" + b + " " + unitB
	case a == b:
		return a + " " + unit
	}
	return a + "–" + b + " " + unit
}

func scale(d time.Duration) (value, unit string) {
	n, unit := d.Seconds(), "s"
	switch {
	case d >= 100*time.Minute:
		n, unit = d.Hours(), "h"
	case d >= 100*time.Second:
		n, unit = d.Minutes(), "min"
	}
	if n < 10 && unit != "s" {
		// One decimal, unless it is a zero.
		return fmt.Sprintf("%.3g", float64(int(n*10+0.5))/10), unit
	}
	return fmt.Sprintf("%.0f", n), unit
}
