package policy

import (
	"math/rand/v2"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestDecide(t *testing.T) {
	one := Limits{Max: 100, PerInstance: 1}
	ago := func(d time.Duration) time.Time { return epoch.Add(-d) }
	kept := Windows{KeepAlive: 10 * time.Minute}
	warmed := Windows{Linger: time.Minute, PreWarm: 8 * time.Minute, KeepAlive: 4 * time.Minute}
	for _, tt := range []struct {
		name string
		l    Limits
		o    Observed
		want int
	}{
		{"nothing ever happened", one, Observed{}, 0},
		{"minimum", Limits{Min: 2, Max: 5}, Observed{}, 2},
		{"maximum wins", Limits{Min: 7, Max: 5}, Observed{}, 5},
		{"stopped by its owner", Limits{}, Observed{Queued: 9}, 0},
		{"first call", one, Observed{Queued: 1}, 1},
		{"first calls", one, Observed{Queued: 5}, 5},
		{"first calls share", Limits{Max: 100, PerInstance: 4}, Observed{Queued: 9}, 3},
		{"maximum", Limits{Max: 3}, Observed{Queued: 50}, 3},
		{"more calls than places, times unknown", one, Observed{InFlight: 2, Queued: 3, Instances: 2}, 5},

		// 10 ms calls, 1 s cold starts: one instance serves 100 calls meanwhile.
		{"queue that is served soon", one, Observed{InFlight: 1, Queued: 100, Instances: 1, Service: 10 * time.Millisecond, Cold: time.Second}, 1},
		{"queue that is not", one, Observed{InFlight: 1, Queued: 101, Instances: 1, Service: 10 * time.Millisecond, Cold: time.Second}, 2},
		{"long queue", one, Observed{InFlight: 1, Queued: 1000, Instances: 1, Service: 10 * time.Millisecond, Cold: time.Second}, 10},
		{"queue of instances that share", Limits{Max: 100, PerInstance: 10}, Observed{InFlight: 10, Queued: 1000, Instances: 1, Service: 10 * time.Millisecond, Cold: time.Second}, 1},
		// 1 s calls, 10 ms cold starts: nobody gains from waiting.
		{"slow calls", one, Observed{InFlight: 3, Queued: 4, Instances: 3, Service: time.Second, Cold: 10 * time.Millisecond}, 7},

		{"one caller, one call after the other", one, Observed{InFlight: 1, Instances: 1, Average: 1, Peak: 1}, 1},
		{"sustained load", one, Observed{InFlight: 7, Instances: 7, Average: 7, Peak: 7}, 10},
		{"sustained load, shared", Limits{Max: 100, PerInstance: 10}, Observed{InFlight: 21, Instances: 2, Average: 21, Peak: 21}, 3},
		{"a connection leaves no place", one, Observed{InFlight: 1, Held: 1, Queued: 1, Instances: 1, Service: time.Millisecond, Cold: time.Second}, 2},
		{"connections leave a place", Limits{Max: 100, PerInstance: 100}, Observed{InFlight: 51, Held: 50, Instances: 1, Average: 1, Peak: 1}, 1},
		{"connections need no spare places", one, Observed{InFlight: 20, Held: 20, Instances: 20}, 20},
		{"calls beside connections", one, Observed{InFlight: 27, Held: 20, Instances: 27, Average: 7, Peak: 7}, 30},

		{"after a peak", one, Observed{InFlight: 1, Instances: 10, Average: 1, Peak: 7}, 10},
		{"a peak does not grow again", one, Observed{InFlight: 1, Instances: 2, Average: 1, Peak: 7}, 2},
		{"after the peak was forgotten", one, Observed{InFlight: 1, Instances: 10, Average: 1, Peak: 1}, 1},

		{"idle, kept", one, Observed{Instances: 1, IdleSince: ago(9 * time.Minute), Windows: kept}, 1},
		{"idle, peak", one, Observed{Instances: 5, Peak: 2.1, IdleSince: ago(9 * time.Second), Windows: kept}, 3},
		{"idle, kept, but it is gone", one, Observed{IdleSince: ago(9 * time.Minute), Windows: kept}, 0},
		{"idle, no longer kept", one, Observed{Instances: 1, IdleSince: ago(10 * time.Minute), Windows: kept}, 0},
		{"idle, not kept, peak", one, Observed{Instances: 5, Peak: 5, IdleSince: ago(time.Second)}, 0},
		{"idle, minimum", Limits{Min: 1, Max: 5}, Observed{Instances: 1, IdleSince: ago(time.Hour), Windows: kept}, 1},
		{"idle, before pre-warming", one, Observed{IdleSince: ago(7 * time.Minute), Windows: warmed}, 0},
		{"idle, pre-warming", one, Observed{IdleSince: ago(8 * time.Minute), Windows: warmed}, 1},
		{"idle, pre-warmed in vain", one, Observed{Instances: 1, IdleSince: ago(12 * time.Minute), Windows: warmed}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Decide(epoch, tt.l, tt.o); got != tt.want {
				t.Errorf("Decide = %d, want %d", got, tt.want)
			}
		})
	}
}

// TestDecideProperties checks for many states what must hold for all.
func TestDecideProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	duration := func(max time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(max))) }
	for range 20000 {
		l := Limits{Min: rng.IntN(4), Max: rng.IntN(40), PerInstance: rng.IntN(20)}
		o := Observed{
			InFlight: rng.IntN(30), Queued: rng.IntN(300), Instances: rng.IntN(40),
			Service: duration(time.Second), Cold: duration(time.Second),
			Average: 20 * rng.Float64(), IdleSince: epoch.Add(-duration(time.Hour)),
			Windows: Windows{Linger: duration(time.Minute), PreWarm: duration(time.Hour), KeepAlive: duration(time.Hour)},
		}
		o.Peak = o.Average + 10*rng.Float64()
		n := Decide(epoch, l, o)
		if n > l.Max || n < min(l.Min, l.Max) {
			t.Fatalf("%d is out of bounds: %+v %+v", n, l, o)
		}
		if n == 0 && o.InFlight+o.Queued > 0 && l.Max > 0 {
			t.Fatalf("nothing for calls: %+v %+v", l, o)
		}
		more := o
		more.Queued += 1 + rng.IntN(50)
		if m := Decide(epoch, l, more); m < n {
			t.Fatalf("%d, but %d with a longer queue: %+v %+v", n, m, l, o)
		}
		o.InFlight, o.Queued = 0, 0
		if n := Decide(epoch, l, o); n > max(1, l.Min, o.Instances) {
			t.Fatalf("%d when idle: %+v %+v", n, l, o)
		}
	}
}

// TestConstantLoad lets Decide steer a version under a load that does not
// change, in steps of 100 ms: it must not flap.
func TestConstantLoad(t *testing.T) {
	for _, calls := range []int{1, 2, 7, 39} {
		var load Load
		l := Limits{Max: 100, PerInstance: 1}
		n, changes := 0, 0
		for now := epoch; now.Before(epoch.Add(10 * time.Minute)); now = now.Add(100 * time.Millisecond) {
			// Each call ends and its caller makes the next at once; now and then one is
			// between the two.
			inFlight := calls
			if now.UnixMilli()%700 == 0 {
				inFlight--
			}
			load.Set(now, inFlight)
			o := Observed{
				InFlight: min(inFlight, n), Queued: max(0, inFlight-n), Instances: n,
				Service: 50 * time.Millisecond, Cold: 100 * time.Millisecond,
				Windows: Windows{KeepAlive: time.Minute},
			}
			o.Average, o.Peak, o.IdleSince = load.At(now)
			m := Decide(now, l, o)
			if m != n && now.After(epoch.Add(20*time.Second)) {
				changes++
			}
			n = m
		}
		if want := l.forLoad(0, float64(calls)); n != want || changes > 0 {
			t.Errorf("%d calls: %d instances, want %d; changed %d times after it had settled", calls, n, want, changes)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	var load Load
	l := Limits{Max: 100, PerInstance: 4}
	now := epoch
	for b.Loop() {
		now = now.Add(time.Millisecond)
		load.Set(now, 20)
		o := Observed{InFlight: 8, Queued: 12, Instances: 2, Service: time.Millisecond, Cold: time.Second}
		o.Average, o.Peak, o.IdleSince = load.At(now)
		Decide(now, l, o)
	}
}
