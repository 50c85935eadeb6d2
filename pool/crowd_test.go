package pool

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// keepBusy gives the pool a machine with so many cores, all busy but for the ticks
// that are added to idle.
func keepBusy(p *Pool, cores int) (idle *atomic.Int64) {
	begun := time.Now()
	idle = new(atomic.Int64)
	p.cores = cores
	p.cpuTimes = func() (busy, total float64) {
		total = time.Since(begun).Seconds() * 100 * float64(cores)
		return total - float64(idle.Load()), total
	}
	return idle
}

// Calls that wait while the others use all cores run a few at a time, whatever
// instances there are; once a core is idle again, more do.
func TestCrowdSharesTheCores(t *testing.T) {
	var now, most atomic.Int64
	d := &fakeDriver{script: func(g *fakeGuest, invoke []byte) []frame {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); m < n && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return lasting(10*time.Millisecond)(g, invoke)
	}}
	const cores = 4
	few, many := 2*cores, 8*cores
	d.meter = func(s *fakeSandbox) time.Duration { return time.Since(s.born) } // it computes all the time
	run(t, d, nil, func(t *testing.T, p *Pool) {
		idle := keepBusy(p, cores)
		begun := time.Now()
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
			idle.Add(cores)
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
		keepBusy(p, 4)
		begun := time.Now()
		v := version("f", 1000)
		const n = 128
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

// A version that is replaced under load needs no more instances for those who wait
// than it would else, and each of them serves many.
func TestRetiredCrowdIsServed(t *testing.T) {
	for name, retire := range map[string]func(p *Pool, incarnation string){
		"retired": func(p *Pool, incarnation string) { p.Retire(incarnation) },
		"closed":  func(p *Pool, _ string) { go p.Close(context.Background()) }, //nolint:errcheck // it has no deadline
	} {
		t.Run(name, func(t *testing.T) {
			d := slowStart()
			d.script = lasting(2 * time.Second)
			d.meter = func(s *fakeSandbox) time.Duration { return time.Since(s.born) }
			run(t, d, nil, func(t *testing.T, p *Pool) {
				keepBusy(p, 2)
				v := version("f", 60)
				var wg sync.WaitGroup
				for range 60 {
					wg.Go(func() {
						if _, _, err := do(t.Context(), p, v, "a"); err != nil {
							t.Error(err)
						}
					})
				}
				time.Sleep(10 * time.Second)
				before := d.made()
				retire(p, v.Incarnation)
				wg.Wait()
				if made := d.made(); made > 60 {
					t.Errorf("%d sandboxes for 60 calls, %d of them before", made, before)
				}
			})
		})
	}
}
