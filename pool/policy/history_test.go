package policy

import (
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

// learn shows idle times to a learner and returns its windows.
func learn(l Learner, idle ...time.Duration) Windows {
	for _, d := range idle {
		l.Observe(d)
	}
	return l.Windows()
}

// around returns n idle times that spread evenly from d-spread to d+spread.
func around(d, spread time.Duration, n int) []time.Duration {
	rng := rand.New(rand.NewPCG(5, 6))
	idle := make([]time.Duration, n)
	for i := range idle {
		idle[i] = d + time.Duration((2*rng.Float64()-1)*float64(spread))
	}
	return idle
}

// exponential returns n idle times of calls that come independently.
func exponential(mean time.Duration, n int) []time.Duration {
	rng := rand.New(rand.NewPCG(7, 8))
	idle := make([]time.Duration, n)
	for i := range idle {
		idle[i] = time.Duration(rng.ExpFloat64() * float64(mean))
	}
	return idle
}

type windowsTest struct {
	name   string
	idle   []time.Duration
	warm   []time.Duration // idle times at which there must be an instance
	not    []time.Duration // and at which there must be none
	reason string          // if not empty
}

func testWindows(t *testing.T, l func() Learner, tests []windowsTest) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := learn(l(), tt.idle...)
			for _, d := range tt.warm {
				if !w.Warm(d) {
					t.Errorf("not warm after %v: %+v", d, w)
				}
			}
			for _, d := range tt.not {
				if w.Warm(d) {
					t.Errorf("warm after %v: %+v", d, w)
				}
			}
			if tt.reason != "" && w.Reason != tt.reason {
				t.Errorf("reason %q, want %q", w.Reason, tt.reason)
			}
		})
	}
}

const m, h = time.Minute, time.Hour

func TestHistory(t *testing.T) {
	testWindows(t, func() Learner { return new(History) }, []windowsTest{
		{
			name: "unknown", warm: []time.Duration{0, 9 * m}, not: []time.Duration{10 * m},
			reason: "no idle time above 60 s yet: kept 10 min after each call",
		},
		{
			name: "few", idle: []time.Duration{h}, warm: []time.Duration{0, 9 * m}, not: []time.Duration{10 * m},
			reason: "only 1 of 3 idle times known yet: kept 10 min after each call",
		},
		{
			name: "busy", idle: around(10*time.Second, 9*time.Second, 1000), warm: []time.Duration{0, 9 * m}, not: []time.Duration{10 * m},
			reason: "no idle time above 60 s yet: kept 10 min after each call",
		},
		{
			name: "every ten minutes", idle: around(10*m, m, 50),
			warm: []time.Duration{0, 50 * time.Second, 9 * m, 659 * time.Second}, not: []time.Duration{2 * m, 8 * m, 14 * m},
			reason: "calls come every 9.2–11 min: stopped after each, started again 9 min later",
		},
		{
			name: "each day, to the second", idle: around(24*h, time.Second, 5),
			warm: []time.Duration{0, 24*h - m, 24*h + m}, not: []time.Duration{2 * m, 23 * h, 25 * h},
		},
		{
			name: "every few minutes", idle: exponential(5*m, 500), warm: []time.Duration{0, 5 * m, 15 * m}, not: []time.Duration{h},
		},
		{
			name: "every few days, any time", idle: exponential(100*h, 500), warm: []time.Duration{0, 50 * time.Second}, not: []time.Duration{2 * m},
		},
		{
			name: "bursts, half an hour apart", // the idle times within them tell nothing
			idle: append(append(around(30*m, m, 5), around(time.Second, time.Second, 5000)...), around(30*m, m, 5)...),
			warm: []time.Duration{0, 30 * m}, not: []time.Duration{10 * m, 40 * m},
		},
		{
			name: "change", idle: append(around(30*m, m, 500), around(5*m, 10*time.Second, remembered)...),
			warm: []time.Duration{0, 5 * m}, not: []time.Duration{10 * m, 30 * m},
		},
	})
	if size := unsafe.Sizeof(History{}); size > 600 {
		t.Errorf("a History takes %d bytes", size)
	}
}

// TestHistoryCost checks that no other window would have cost less with what
// was observed, by trying many.
func TestHistoryCost(t *testing.T) {
	cost := func(idle []time.Duration, w Windows) (c float64) {
		for _, d := range idle {
			if !w.Warm(d) {
				c += (Price + startCost).Seconds()
			}
			if w.PreWarm == 0 {
				c += max(0, min(d, w.KeepAlive)-linger).Seconds()
			} else if d >= w.PreWarm {
				c += startCost.Seconds() + (min(d, w.PreWarm+w.KeepAlive) - w.PreWarm).Seconds()
			}
		}
		return c
	}
	for i, idle := range [][]time.Duration{
		around(20*m, 5*m, 40), around(h, 50*m, 40), around(6*h, m, 40), exponential(h, 50), exponential(10*h, 50),
		append(around(5*m, 3*m, 20), around(2*h, m, 20)...),
	} {
		kept := idle[:0]
		for _, d := range idle {
			if d > linger {
				kept = append(kept, d)
			}
		}
		w := learn(new(History), kept...)
		got := cost(kept, w)
		for from := 0 * m; from < 8*h; from += 3 * m {
			for until := from; until < 9*h; until += 3 * m {
				other := Windows{Linger: linger, PreWarm: from, KeepAlive: until - from}
				// What it keeps more, for calls that come a little later, may cost a tenth.
				if c := cost(kept, other); c < 0.9*got-60*float64(len(kept)) {
					t.Fatalf("case %d: %+v costs %.0f, but %+v costs %.0f", i, w, got, other, c)
				}
			}
		}
	}
}

func TestHistoryPrice(t *testing.T) {
	idle := exponential(30*m, 60)
	if w := learn(&History{Price: 5 * m}, idle...); w.Warm(20 * m) {
		t.Errorf("a cheap cold start: %+v", w)
	}
	if w := learn(&History{Price: 5 * h}, idle...); !w.Warm(20 * m) {
		t.Errorf("a dear cold start: %+v", w)
	}
}

// TestHistoryAnything checks windows of arbitrary idle times.
func TestHistoryAnything(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for range 60 {
		var hist History
		for range rng.IntN(100) {
			hist.Observe(time.Duration(rng.ExpFloat64() * float64(time.Minute) * float64(int(1)<<rng.IntN(15))))
			w := hist.Windows()
			if !w.Warm(0) || w.Reason == "" || w.PreWarm < 0 || w.KeepAlive < 0 || w.PreWarm > 0 && w.PreWarm < linger {
				t.Fatalf("%+v", w)
			}
		}
	}
	var hist History
	for range 10 {
		hist.Observe(0)
		hist.Observe(-time.Hour)
		hist.Observe(1<<63 - 1)
	}
	if w := hist.Windows(); !w.Warm(0) {
		t.Errorf("%+v", w)
	}
}

func TestHybrid(t *testing.T) {
	var everyBin []time.Duration
	for i := range hybridBins {
		everyBin = append(everyBin, time.Duration(i)*hybridBin)
	}
	tests := []windowsTest{
		{
			name: "few", idle: around(10*m, m, 9), warm: []time.Duration{0, 9 * m}, not: []time.Duration{10 * m},
			reason: "only 9 of 10 idle times known yet: kept 10 min",
		},
		{
			name: "a pattern", idle: around(10*m, m, 50), warm: []time.Duration{9 * m, 11 * m}, not: []time.Duration{0, 8 * m, 13 * m},
			reason: "calls come every 9–11 min: stopped after each, started again 8.1 min later",
		},
		{
			name: "busy", idle: around(time.Second, time.Second, 5000), warm: []time.Duration{0, m}, not: []time.Duration{2 * m},
			reason: "calls come every 0–60 s: kept 66 s after each",
		},
		{
			name: "out of bounds", idle: around(10*h, m, 50), warm: []time.Duration{0, 9 * m}, not: []time.Duration{10 * m},
			reason: "most calls come after more than 4 h: kept 10 min",
		},
		{
			name: "change", idle: append(around(30*m, m, 2000), around(5*m, 0, 20000)...),
			warm: []time.Duration{5 * m}, not: []time.Duration{30 * m},
		},
	}
	testWindows(t, func() Learner { return new(Hybrid) }, append(tests, windowsTest{
		name: "no pattern", idle: everyBin, warm: []time.Duration{0, 9 * m}, not: []time.Duration{10 * m},
		reason: "calls come without a pattern: kept 10 min",
	}))
	testWindows(t, func() Learner { return &Hybrid{Wide: true} }, append(tests, windowsTest{
		name: "no pattern, wide", idle: everyBin, warm: []time.Duration{0, 239 * m}, not: []time.Duration{4 * h},
		reason: "calls come without a pattern: kept 4 h",
	}))
	if size := unsafe.Sizeof(Hybrid{}); size > 600 {
		t.Errorf("a Hybrid takes %d bytes", size)
	}
}

// TestWindowsNext checks Next against Warm, second by second.
func TestWindowsNext(t *testing.T) {
	for _, w := range []Windows{
		{},
		{KeepAlive: 10 * m},
		{Linger: m},
		{Linger: m, KeepAlive: 10 * m},
		{Linger: 10 * m, KeepAlive: m},
		{Linger: m, PreWarm: 8 * m, KeepAlive: 4 * m},
		{PreWarm: 8 * m, KeepAlive: 4 * m},
		{Linger: 9 * m, PreWarm: 8 * m, KeepAlive: 4 * m},
	} {
		for idle := time.Duration(0); idle < 15*m; idle += time.Second {
			want := time.Duration(0)
			for d := idle + time.Second; d < 20*m; d += time.Second {
				if w.Warm(d) != w.Warm(idle) {
					want = d
					break
				}
			}
			if got := w.Next(idle); got != want {
				t.Fatalf("%+v: Next(%v) = %v, want %v", w, idle, got, want)
			}
		}
	}
}

// BenchmarkHistory is what it takes to think again, with all it remembers.
func BenchmarkHistory(b *testing.B) {
	var hist History
	learn(&hist, exponential(h, 2*remembered)...)
	for b.Loop() {
		hist.known = false
		hist.Windows()
	}
}
