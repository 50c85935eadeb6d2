package pool

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Calls that wait while the others use all cores run a few at a time, whatever
// instances there are; once a core is idle again, more do.
func TestCrowdSharesTheCores(t *testing.T) {
	var now, most atomic.Int64
	d := &fakeDriver{script: func(g *fakeGuest, invoke []byte) []frame {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		return lasting(10*time.Millisecond)(g, invoke)
	}}
	cores := runtime.NumCPU()
	few, many := 2*cores, 8*cores
	d.meter = func(s *fakeSandbox) time.Duration { return time.Since(s.born) } // it computes all the time
	run(t, d, nil, func(t *testing.T, p *Pool) {
		begun := time.Now()
		var idle atomic.Int64 // ticks
		p.cpuTimes = func() (busy, total float64) {
			total = time.Since(begun).Seconds() * 100 * float64(cores)
			return total - float64(idle.Load()), total
		}
		v := version("f", many)
		end := begun.Add(3 * time.Second)
		var wg sync.WaitGroup
		for range 2 * many {
			wg.Go(func() {
				for time.Now().Before(end) {
					if _, _, err := do(t.Context(), p, v, "a"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		most.Store(0)
		time.Sleep(500 * time.Millisecond)
		if got := int(most.Load()); got != few {
			t.Errorf("%d calls at once while all cores are busy, want %d", got, few)
		}
		for time.Now().Before(end) { // half of the cores have nothing to do
			idle.Add(int64(cores))
			time.Sleep(20 * time.Millisecond)
		}
		if got := int(most.Load()); got != many {
			t.Errorf("%d calls at once while cores are idle, want %d", got, many)
		}
		wg.Wait()
	})
}

// Calls that use no core are not limited, whoever keeps the cores busy.
func TestWaitingCallsAreNotLimited(t *testing.T) {
	d := &fakeDriver{script: lasting(time.Second), meter: func(s *fakeSandbox) time.Duration { return time.Since(s.born) / 1000 }}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		begun := time.Now()
		p.cpuTimes = func() (busy, total float64) {
			total = time.Since(begun).Seconds() * 100 * float64(runtime.NumCPU())
			return total, total
		}
		v := version("f", 1000)
		n := 32 * runtime.NumCPU()
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, v, "a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("%d calls of a second took %s", n, took)
		}
	})
}
