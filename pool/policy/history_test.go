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

func TestHistory(t *testing.T) {
	const minute = time.Minute
	for _, tt := range []struct {
		name string
		idle []time.Duration
		warm []time.Duration
		not  []time.Duration
		want string
	}{
		{
			name: "unknown", warm: []time.Duration{0, 9 * minute}, not: []time.Duration{10 * minute},
			want: "no idle time above 60 s yet: kept 10 min after each call",
		},
		{
			name: "few", idle: []time.Duration{time.Hour}, warm: []time.Duration{0, 9 * minute}, not: []time.Duration{10 * minute},
			want: "only 1 of 4 idle times known yet: kept 10 min after each call",
		},
		{
			name: "busy", idle: around(10*time.Second, 9*time.Second, 1000), warm: []time.Duration{0, 9 * minute}, not: []time.Duration{10 * minute},
			want: "no idle time above 60 s yet: kept 10 min after each call",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := learn(&History{}, tt.idle...)
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
			if w.Reason != tt.want {
				t.Errorf("reason %q, want %q", w.Reason, tt.want)
			}
		})
	}
	if size := unsafe.Sizeof(History{}); size > 600 {
		t.Errorf("a History takes %d bytes", size)
	}
	if size := unsafe.Sizeof(Hybrid{}); size > 600 {
		t.Errorf("a Hybrid takes %d bytes", size)
	}
}
