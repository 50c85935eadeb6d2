package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// lasting is a script whose calls last that long.
func lasting(d time.Duration) func(*fakeGuest, []byte) []frame {
	return func(g *fakeGuest, invoke []byte) []frame {
		select {
		case <-time.After(d):
		case <-g.sb.exited:
			return nil
		}
		return answer(invocationID(invoke))
	}
}

// Calls that the instances there are will serve before another could start
// make none start.
func TestShortQueueStartsNothing(t *testing.T) {
	d := slowStart()
	d.script = lasting(time.Millisecond)
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 16)
		for range 20 { // it learns how long starts and calls take
			if _, _, err := do(t.Context(), p, v, "a"); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, v, "a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if d.created != 1 {
			t.Errorf("%d instances for 16 calls of a millisecond", d.created)
		}
		// Calls that suddenly last do not wait for what was expected of them.
		d.script = lasting(time.Minute)
		start := time.Now()
		for range 3 {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, v, "a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > time.Minute+time.Second {
			t.Errorf("3 calls of a minute took %s", took)
		}
	})
}

func TestStartsAreBounded(t *testing.T) {
	var now, most atomic.Int64
	d := &fakeDriver{script: lasting(time.Second), beforeCreate: func(context.Context) error {
		most.Store(max(most.Load(), now.Add(1)))
		time.Sleep(50 * time.Millisecond)
		now.Add(-1)
		return nil
	}}
	run(t, d, func(c *Config) { c.MaxStarts = 3 }, func(t *testing.T, p *Pool) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, version(fmt.Sprint("f", i%2), 16), "a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := most.Load(); n != 3 {
			t.Errorf("%d starts at once, want 3", n)
		}
	})
}

// A function whose code takes long to load keeps nobody else from starting.
func TestSlowLoadsHoldUpNobody(t *testing.T) {
	d := &fakeDriver{beforeInit: func(function string) {
		if function == "slow" {
			time.Sleep(30 * time.Second)
		}
	}}
	run(t, d, func(c *Config) { c.MaxStarts = 2 }, func(t *testing.T, p *Pool) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, version("slow", 8), "a"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if _, _, err := do(t.Context(), p, version("quick", 8), "a"); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		wg.Wait()
		time.Sleep(time.Minute) // guests end what they do
	})
}

// A function whose calls last leaves room for those which have no instance.
func TestLongCallsLeaveAReserve(t *testing.T) {
	for name, set := range map[string]func(*Config){
		"places": func(c *Config) { c.MaxInstances = 2 * reserve },
		"memory": func(c *Config) { c.Memory = 2 * reserve * unknownMemory },
	} {
		t.Run(name, func(t *testing.T) {
			d := &fakeDriver{script: func(g *fakeGuest, invoke []byte) []frame {
				if g.sb.function() == "long" {
					return lasting(time.Hour)(g, invoke)
				}
				return echo(g, invoke)
			}}
			run(t, d, set, func(t *testing.T, p *Pool) {
				var wg sync.WaitGroup
				for range 3 * reserve {
					wg.Go(func() {
						if _, _, err := do(t.Context(), p, version("long", 3*reserve), "a"); err != nil {
							t.Error(err)
						}
					})
				}
				time.Sleep(time.Minute)
				if n := len(p.Status().Instances); n != 2*reserve-2 {
					t.Errorf("%d instances", n)
				}
				for i := range 5 {
					start := time.Now()
					if _, _, err := do(t.Context(), p, version(fmt.Sprint("quiet", i), 1), "a"); err != nil || time.Since(start) > time.Second {
						t.Errorf("quiet function %d: %v after %s", i, err, time.Since(start))
					}
				}
				wg.Wait()
			})
		})
	}
}

func TestMemoryBudget(t *testing.T) {
	d := &fakeDriver{script: lasting(100 * time.Millisecond), memory: 40 << 20}
	run(t, d, func(c *Config) { c.Memory = 210 << 20 }, func(t *testing.T, p *Pool) {
		burst := func(name string) {
			t.Helper()
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if _, _, err := do(t.Context(), p, version(name, 8), "a"); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		burst("a")
		if d.peak() != 3 { // each is expected to use 64 MiB
			t.Errorf("%d instances before one was weighed, want 3", d.peak())
		}
		time.Sleep(3 * time.Second) // 40 MiB, and a quarter more
		burst("a")
		if d.peak() != 4 {
			t.Errorf("%d instances after they were weighed, want 4", d.peak())
		}
		burst("b") // those of a give way
		if d.peak() != 4 {
			t.Errorf("%d instances at once, want 4", d.peak())
		}
		if st := p.Status(); st.MemoryUsed > st.MemoryBudget {
			t.Errorf("%d bytes of %d", st.MemoryUsed, st.MemoryBudget)
		}
	})
}

// One that is larger than the budget runs alone.
func TestInstanceLargerThanTheBudget(t *testing.T) {
	run(t, &fakeDriver{}, func(c *Config) { c.Memory = 1 << 20 }, func(t *testing.T, p *Pool) {
		for _, name := range []string{"a", "b", "a"} {
			if _, _, err := do(t.Context(), p, version(name, 1), "x"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A full pool ends what is worth least, and nothing that is to be kept ready.
func TestLeastValuableIsEvicted(t *testing.T) {
	var slow atomic.Bool
	d := &fakeDriver{beforeCreate: func(context.Context) error {
		if slow.Load() {
			time.Sleep(time.Second)
		}
		return nil
	}}
	run(t, d, func(c *Config) { c.MaxInstances = 3; c.Learner = keep(24 * time.Hour) }, func(t *testing.T, p *Pool) {
		kept := version("kept", 4)
		kept.Config.Warm.Min = 1
		p.SetLive([]hearth.Version{*kept, *version("quick", 1)})
		time.Sleep(time.Hour) // the longest idle by far
		for _, name := range []string{"slow", "quick"} {
			slow.Store(name == "slow")
			if _, _, err := do(t.Context(), p, version(name, 1), "x"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		if _, _, err := do(t.Context(), p, version("new", 1), "x"); err != nil {
			t.Fatal(err)
		}
		left := map[string]bool{}
		for _, inst := range p.Status().Instances {
			left[inst.Function] = true
		}
		if !left["kept"] || !left["slow"] || left["quick"] {
			t.Errorf("left are %v", left)
		}
		if _, l, err := do(t.Context(), p, version("quick", 1), "x"); err != nil || l.ColdReason != hearth.ColdEvicted {
			t.Errorf("%v, cold because %q", err, l.ColdReason)
		}
	})
}

// Instances that were just of use are not ended at once.
func TestShrinksCalmly(t *testing.T) {
	d := slowStart()
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 16)
		d.script = lasting(20 * time.Millisecond)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, v, "a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		time.Sleep(calm / 2)
		synctest.Wait()
		if d.count() != d.made() {
			t.Errorf("%d instances of %d were ended within %s", d.made()-d.count(), d.made(), calm)
		}
	})
}

// What a deploy does with an instance tells nothing about how long calls take.
func TestVerificationIsNoCall(t *testing.T) {
	d := &fakeDriver{script: lasting(2 * time.Second)}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		st := p.Status()
		if got := st.Functions[0].Service; time.Duration(got) != 2*time.Second || st.Instances[0].Served != 1 {
			t.Errorf("a call takes %s after one of 2 s; the instance served %d", time.Duration(got), st.Instances[0].Served)
		}
	})
}

// Two functions that both flood a full pool have the same number of calls done.
func TestFloodsShareFairly(t *testing.T) {
	d := &fakeDriver{script: lasting(100 * time.Millisecond)}
	run(t, d, func(c *Config) { c.MaxInstances = 8 }, func(t *testing.T, p *Pool) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var done [2]atomic.Int64
		var wg sync.WaitGroup
		for i, callers := range []int{100, 10} {
			for range callers {
				wg.Go(func() {
					for ctx.Err() == nil {
						if _, _, err := do(ctx, p, version(fmt.Sprint("f", i), 100), "a"); err == nil {
							done[i].Add(1)
						} else {
							time.Sleep(time.Millisecond) // it could not start before the end
						}
					}
				})
			}
			time.Sleep(time.Second)
		}
		wg.Wait()
		many, few := done[0].Load(), done[1].Load()
		if few*3 < many*2 {
			t.Errorf("the flood had %d calls done, the other function %d", many, few)
		}
		time.Sleep(time.Second)
	})
}

// A call that a flood keeps out of the queue takes a place of the flood's.
func TestFloodPaysForTheQueue(t *testing.T) {
	d := &fakeDriver{script: lasting(time.Second)}
	run(t, d, func(c *Config) { c.MaxQueued = 10 }, func(t *testing.T, p *Pool) {
		var refused atomic.Int64
		var wg sync.WaitGroup
		for range 12 { // one runs
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, version("flood", 1), "a"); hearth.ErrorCode(err) == hearth.CodeExhausted {
					refused.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for range 2 {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, version("quiet", 1), "a"); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if n := refused.Load(); n != 2 { // the twelfth, and one that made room for the second of the quiet
			t.Errorf("%d calls of the flood were refused", n)
		}
	})
}

// A call that would wait past its deadline is refused at once, and told when to
// come again.
func TestHopelessCallIsRefused(t *testing.T) {
	d := &fakeDriver{script: lasting(time.Second)}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 2)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 10 { // two run, eight wait for four seconds
			wg.Go(func() { do(t.Context(), p, v, "a") }) //nolint:errcheck // they end
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		_, _, err := do(ctx, p, v, "late")
		if e := hearth.AsError(err); e.Code != hearth.CodeExhausted || time.Since(start) != 0 || e.RetryAfter != 4*time.Second {
			t.Errorf("after %s: %v, retry after %s", time.Since(start), err, e.RetryAfter)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		if _, _, err := do(ctx, p, v, "in time"); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func TestInstanceRunsSeveralCalls(t *testing.T) {
	d := &fakeDriver{concurrent: true, script: lasting(time.Second)}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 10)
		v.Config.InstanceConcurrency = 4
		var wg sync.WaitGroup
		var cold atomic.Int64
		for i := range 20 {
			wg.Go(func() {
				body, l, err := do(t.Context(), p, v, fmt.Sprint(i))
				if err != nil || body != fmt.Sprint(i) {
					t.Errorf("call %d: %q, %v", i, body, err)
				} else if l.Cold {
					cold.Add(1)
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		var inFlight int
		for _, inst := range p.Status().Instances {
			if inst.InFlight > 4 {
				t.Errorf("an instance has %d calls", inst.InFlight)
			}
			inFlight += inst.InFlight
		}
		if inFlight != 10 || d.peak() != 3 {
			t.Errorf("%d calls at once on %d instances", inFlight, d.peak())
		}
		wg.Wait()
	})
}

// A handler that is not async gets one call at a time whatever is configured.
func TestSyncHandlerRunsOneCall(t *testing.T) {
	d := &fakeDriver{script: lasting(time.Second)}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		v.Config.InstanceConcurrency = 4
		if err := p.Verify(t.Context(), v); err != nil || len(v.Warnings) != 1 {
			t.Errorf("%v, warnings %q", err, v.Warnings)
		}
		start := time.Now()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { do(t.Context(), p, v, "a") }) //nolint:errcheck // the time tells
		}
		wg.Wait()
		if took := time.Since(start); took > 1100*time.Millisecond || d.peak() != 4 {
			t.Errorf("4 calls took %s on %d instances", took, d.peak())
		}
	})
}

// A call that its caller left keeps its place until it ends; the others on the
// instance go on.
func TestAbandonedCallKeepsItsPlace(t *testing.T) {
	d := &fakeDriver{concurrent: true, script: lasting(3 * time.Second)}
	run(t, d, func(c *Config) { c.Grace = time.Minute }, func(t *testing.T, p *Pool) {
		v := version("f", 2)
		v.Config.InstanceConcurrency = 2
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, _, err := do(ctx, p, v, "left"); hearth.ErrorCode(err) != hearth.CodeTimeout {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if st := p.Status().Instances; len(st) != 1 || st[0].State != hearth.InstanceSettling {
			t.Errorf("%+v", st)
		}
		start := time.Now()
		if _, _, err := do(t.Context(), p, v, "next"); err != nil || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %s; the place was free after 2 s", err, time.Since(start))
		}
	})
}

func TestMinimumIsKept(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.Learner = keep(time.Minute) }, func(t *testing.T, p *Pool) {
		v := version("f", 8)
		v.Config.Warm.Min = 2
		p.SetLive([]hearth.Version{*v})
		time.Sleep(time.Hour)
		if n := d.count(); n != 2 {
			t.Fatalf("%d instances, want the 2 of warm.min", n)
		}
		if _, l, err := do(t.Context(), p, v, "a"); err != nil || l.Cold {
			t.Errorf("%v, cold %v", err, l.Cold)
		}
		for _, sb := range d.sandboxes() {
			sb.end(driver.Exit{Code: 1})
		}
		time.Sleep(time.Second)
		if n := d.count(); n != 2 {
			t.Errorf("%d instances after both died", n)
		}
		p.SetLive(nil)
		synctest.Wait()
		if n := d.count(); n != 0 {
			t.Errorf("%d instances of a deleted function", n)
		}
	})
}

// What is to be kept ready takes no room that calls need.
func TestMinimumGivesWayToCalls(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.MaxInstances = 2; c.Learner = keep(time.Minute) }, func(t *testing.T, p *Pool) {
		kept := version("kept", 8)
		kept.Config.Warm.Min = 2
		p.SetLive([]hearth.Version{*kept})
		time.Sleep(time.Second)
		if _, _, err := do(t.Context(), p, version("f", 1), "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		for _, inst := range p.Status().Instances {
			if inst.Function != "kept" {
				t.Errorf("%+v", inst)
			}
		}
		if n := d.count(); n != 2 {
			t.Errorf("%d instances once there is room again", n)
		}
	})
}

func TestScheduledMinimum(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.Learner = keep(time.Second) }, func(t *testing.T, p *Pool) {
		v := version("f", 8)
		v.Config.Warm = hearth.Warm{Min: 1, Schedule: "CRON_TZ=UTC 10-19 * * * *"}
		p.SetLive([]hearth.Version{*v})
		begin := time.Now().Truncate(time.Hour)
		for _, c := range []struct {
			minute float64
			want   int
		}{{5, 0}, {10.5, 1}, {19.5, 1}, {21, 0}, {70.5, 1}} {
			time.Sleep(time.Until(begin.Add(time.Duration(c.minute * float64(time.Minute)))))
			synctest.Wait()
			if n := d.count(); n != c.want {
				t.Errorf("%d instances %v minutes past the hour, want %d", n, c.minute, c.want)
			}
		}
	})
	bad := version("g", 1)
	bad.Config.Warm = hearth.Warm{Min: 1, Schedule: "whenever"}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		if err := p.Verify(t.Context(), bad); hearth.ErrorCode(err) != hearth.CodeInvalid {
			t.Error(err)
		}
	})
}

// An update under load is not noticed: the new version has as many instances,
// and the old one ends its calls.
func TestRollingUpdate(t *testing.T) {
	d := slowStart()
	d.script = lasting(100 * time.Millisecond)
	run(t, d, nil, func(t *testing.T, p *Pool) {
		number := func(n int) *hearth.Version {
			v := version("f", 16)
			v.Number, v.Incarnation = n, fmt.Sprint("f", n)
			return v
		}
		var live atomic.Pointer[hearth.Version]
		deploy := func(n int) {
			v := number(n)
			if err := p.Verify(t.Context(), v); err != nil {
				t.Error(err)
			}
			live.Store(v)
			p.SetLive([]hearth.Version{*v})
		}
		deploy(1)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					body, _, err := do(t.Context(), p, live.Load(), fmt.Sprint(i))
					if err != nil || body != fmt.Sprint(i) {
						t.Errorf("call of %d: %q, %v", i, body, err)
					}
				}
			})
		}
		for n := 2; n <= 5; n++ {
			time.Sleep(3 * time.Second)
			deploy(n)
		}
		time.Sleep(time.Second)
		cancel()
		wg.Wait()
		for _, f := range p.Status().Functions {
			if f.Version != 5 {
				t.Errorf("version %d has %d instances", f.Version, f.Instances)
			}
		}
	})
}

// The function's warm-up runs in instances that are started ahead, and never
// while a call waits.
func TestWarmUp(t *testing.T) {
	var warmed, served atomic.Int64
	d := &fakeDriver{
		onWarmup: func(*fakeGuest, []byte) []frame { warmed.Add(1); time.Sleep(time.Second); return answer("") },
		script:   func(_ *fakeGuest, invoke []byte) []frame { served.Add(1); return answer(invocationID(invoke)) },
	}
	run(t, d, func(c *Config) { c.Learner = keep(time.Minute) }, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		v.Config.Warm = hearth.Warm{Min: 1, Call: map[string]any{"warm": true}}
		if err := p.Verify(t.Context(), v); err != nil || warmed.Load() != 1 {
			t.Fatalf("%v, %d warm-ups", err, warmed.Load())
		}
		if _, l, err := do(t.Context(), p, v, "a"); err != nil || l.Cold {
			t.Fatalf("%v, cold %v", err, l.Cold)
		}
		p.Evict(v.Incarnation)
		start := time.Now()
		if _, _, err := do(t.Context(), p, v, "b"); err != nil || time.Since(start) != 0 {
			t.Errorf("a call waited %s for a warm-up: %v", time.Since(start), err)
		}
		if warmed.Load() != 1 || served.Load() != 2 {
			t.Errorf("%d warm-ups, %d calls", warmed.Load(), served.Load())
		}
		p.Evict(v.Incarnation)
		p.SetLive([]hearth.Version{*v})
		time.Sleep(2 * time.Second)
		if warmed.Load() != 2 {
			t.Errorf("%d warm-ups after an instance was started ahead", warmed.Load())
		}
	})
}

// logged gets lines.
type logged chan hearth.LogLine

func (c logged) Append(l hearth.LogLine) { c <- l }

func TestWarmUpThatFails(t *testing.T) {
	d := &fakeDriver{onWarmup: func(*fakeGuest, []byte) []frame {
		return []frame{{fErrorFr, `{"kind":"handler","type":"KeyError","message":"MODEL"}`}}
	}}
	logs := make(logged, 10)
	run(t, d, func(c *Config) { c.Logs = logs }, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		err := p.Verify(t.Context(), v)
		if l := <-logs; l.Stream != "hearth" || l.Level != hearth.LevelError {
			t.Errorf("line %+v", l)
		}
		e := hearth.AsError(err)
		if e.Code != hearth.CodeFunction || e.Function == nil || e.Function.Type != "KeyError" {
			t.Errorf("%v", err)
		}
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Errorf("a call failed because of the warm-up: %v", err)
		}
	})
}

// A start ahead of calls that fails is tried again, more and more seldom.
func TestMinimumThatCannotStart(t *testing.T) {
	var tries atomic.Int64
	d := &fakeDriver{beforeCreate: func(context.Context) error { tries.Add(1); return errors.New("no space left") }}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		v.Config.Warm.Min = 1
		p.SetLive([]hearth.Version{*v})
		time.Sleep(10 * time.Minute)
		if n := tries.Load(); n < 5 || n > 30 {
			t.Errorf("%d tries in 10 minutes", n)
		}
	})
}
