package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// A call after one whose process ended is told so.
func TestCrashIsTheReason(t *testing.T) {
	d := &fakeDriver{script: func(_ *fakeGuest, invoke []byte) []frame {
		if invocationID(invoke) == "crash" {
			return nil
		}
		return answer("")
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		p.SetLive([]hearth.Version{*v})
		do(t.Context(), p, v, "crash") //nolint:errcheck // it fails
		_, l, err := do(t.Context(), p, v, "next")
		if err != nil || l.ColdReason != hearth.ColdDied {
			t.Errorf("%v; the reason is %q, want %q", err, l.ColdReason, hearth.ColdDied)
		}
	})
}

// An instance that still has a call whose caller left has its other places for
// new calls.
func TestFreePlacesBesideAnAbandonedCall(t *testing.T) {
	d := &fakeDriver{concurrent: true}
	d.beforeCreate = func(context.Context) error { time.Sleep(50 * time.Millisecond); return nil }
	d.script = func(_ *fakeGuest, invoke []byte) []frame {
		if invocationID(invoke) == "left" {
			time.Sleep(20 * time.Second)
		}
		return answer("")
	}
	run(t, d, func(c *Config) { c.Grace = time.Minute }, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		v.Config.InstanceConcurrency = 4
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, _, err := do(ctx, p, v, "left"); hearth.ErrorCode(err) != hearth.CodeTimeout {
			t.Fatal(err)
		}
		start := time.Now()
		if _, _, err := do(t.Context(), p, v, "next"); err != nil || time.Since(start) != 0 || d.created != 1 {
			t.Errorf("%v after %s with %d instances; three places are free", err, time.Since(start), d.created)
		}
	})
}

// Only the instance that Verify waits for is one of a verification.
func TestInstancesAfterVerify(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		v.Config.Warm.Min = 3
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		_, events := p.Watch(t.Context())
		p.SetLive([]hearth.Version{*v})
		for range 2 {
			if e := <-events; e.Instance.Why != "warm.min of the function" {
				t.Errorf("started because %s", e.Instance.Why)
			}
		}
		synctest.Wait()
	})
}

// A version that is live again, after another was, is kept warm.
func TestLiveAgain(t *testing.T) {
	d := &fakeDriver{script: lasting(time.Second)}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v1, v2 := version("f", 4), version("f", 4)
		v1.Incarnation, v2.Incarnation = "f1", "f2"
		p.SetLive([]hearth.Version{*v1})
		done := make(chan error)
		go func() { _, _, err := do(t.Context(), p, v1, "a"); done <- err }()
		synctest.Wait()
		p.SetLive([]hearth.Version{*v2})
		p.SetLive([]hearth.Version{*v1})
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, l, err := do(t.Context(), p, v1, "b"); err != nil || l.Cold {
			t.Errorf("%v, cold %v", err, l.Cold)
		}
		p.SetLive([]hearth.Version{*v2})
		p.SetLive([]hearth.Version{*v1})
		for i := range 2 {
			if _, l, err := do(t.Context(), p, v1, "c"); err != nil || l.Cold != (i == 0) {
				t.Errorf("call %d: %v, cold %v", i, err, l.Cold)
			}
		}
	})
}

// An instance that dies as soon as it is there is not started anew at once for
// ever.
func TestMinimumThatDies(t *testing.T) {
	d := &fakeDriver{beforeCreate: func(context.Context) error { time.Sleep(10 * time.Millisecond); return nil }}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		v.Config.Warm.Min = 1
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				for _, s := range d.sandboxes() {
					if time.Since(s.born) > 5*time.Millisecond {
						s.end(driver.Exit{Code: 1})
					}
				}
			}
		})
		p.SetLive([]hearth.Version{*v})
		time.Sleep(time.Minute)
		close(stop)
		wg.Wait()
		if n := d.made(); n < 4 || n > 12 {
			t.Errorf("%d instances in a minute", n)
		}
	})
}

// The same with stem cells.
func TestStemCellsThatDie(t *testing.T) {
	d := &fakeDriver{beforeCreate: func(context.Context) error { time.Sleep(10 * time.Millisecond); return nil }}
	run(t, d, func(c *Config) { c.MaxStems = 1 }, func(t *testing.T, p *Pool) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				for _, s := range d.sandboxes() {
					if time.Since(s.born) > 5*time.Millisecond {
						s.end(driver.Exit{Code: 1})
					}
				}
			}
		})
		p.SetLive([]hearth.Version{*version("f", 1)})
		time.Sleep(time.Minute)
		close(stop)
		wg.Wait()
		if n := d.made(); n > 12 {
			t.Errorf("%d stem cells in a minute", n)
		}
	})
}

// A function whose instances are large gets its turn among small ones whose
// queues never end.
func TestLargeAmongSmall(t *testing.T) {
	d := &fakeDriver{script: lasting(50 * time.Millisecond)}
	run(t, d, func(c *Config) { c.Memory = 256 << 20 }, func(t *testing.T, p *Pool) {
		small, large := version("small", 100), version("large", 1)
		small.Config.Memory, large.Config.Memory = 16<<20, 256<<20
		p.mu.Lock()
		p.groupLocked(large).function.memory = 100 << 20
		p.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, _, err := do(t.Context(), p, small, fmt.Sprint(i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(5 * time.Second)
		start := time.Now()
		lctx, lcancel := context.WithTimeout(t.Context(), time.Minute)
		defer lcancel()
		if _, _, err := do(lctx, p, large, "l"); err != nil || time.Since(start) > 5*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		cancel()
		wg.Wait()
	})
}

// A call does not wait for a frozen host longer than it may take.
func TestPauseThatHangs(t *testing.T) {
	d := &fakeDriver{cpu: 1}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		hang := make(chan struct{})
		d.onPause = func() error { <-hang; return errors.New("it hung") }
		v := version("f", 4)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pauseAfter + 3*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		time.AfterFunc(5*time.Second, func() { close(hang) })
		if _, _, err := do(ctx, p, v, "b"); hearth.ErrorCode(err) != hearth.CodeTimeout || time.Since(start) > time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if _, _, err := do(t.Context(), p, v, "c"); err != nil {
			t.Error(err)
		}
	})
}

// A call that ends long after its instance makes room for one that waits for the
// function's concurrency.
func TestCallOutlivesItsInstance(t *testing.T) {
	d := &fakeDriver{concurrent: true}
	d.script = func(_ *fakeGuest, invoke []byte) []frame {
		switch invocationID(invoke) {
		case "long":
			time.Sleep(20 * time.Second)
		case "crash":
			time.Sleep(time.Second)
			return nil
		}
		return answer("")
	}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 2)
		v.Config.InstanceConcurrency = 2
		var wg sync.WaitGroup
		wg.Go(func() {
			err := p.Do(t.Context(), v, func(context.Context, *Lease) error { time.Sleep(5 * time.Second); return nil })
			if err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { do(t.Context(), p, v, "crash") }) //nolint:errcheck // it fails
		time.Sleep(2 * time.Second)
		wg.Go(func() {
			if _, _, err := do(t.Context(), p, v, "long"); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		start := time.Now()
		if _, _, err := do(t.Context(), p, v, "next"); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %s, want 3 s", err, time.Since(start))
		}
		wg.Wait()
	})
}

// A version that becomes live while its instance ends for another one's call is
// not forgotten with that.
func TestLiveAndEvicted(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.MaxInstances, c.Learner = 1, keep(time.Millisecond) }, func(t *testing.T, p *Pool) {
		a, b := version("a", 1), version("b", 1)
		a.Config.Warm.Min, b.Config.Warm.Min = 1, 1
		if _, _, err := do(t.Context(), p, b, "b"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // it is to be ended, but was not looked at yet
		w := &waiter{ready: make(chan struct{}), asked: time.Now()}
		p.mu.Lock()
		g := p.groupLocked(a)
		g.waiters = []*waiter{w}
		p.queued++
		p.mu.Unlock()
		p.SetLive([]hearth.Version{*a, *b})
		<-w.ready
		p.release(&Lease{inst: w.inst})
		p.SetLive([]hearth.Version{*b})
		time.Sleep(time.Minute)
		if st := p.Status(); len(st.Instances) != 1 || len(st.Functions) != 1 || st.Functions[0].Instances != 1 {
			t.Errorf("%+v, want one instance of b", st)
		}
	})
}
