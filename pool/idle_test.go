package pool

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/pool/policy"
)

// regular expects calls every ten minutes.
type regular struct{ seen []time.Duration }

func (r *regular) Observe(d time.Duration) { r.seen = append(r.seen, d) }
func (r *regular) Windows() policy.Windows {
	return policy.Windows{Linger: 5 * time.Second, PreWarm: 9 * time.Minute, KeepAlive: 2 * time.Minute, Reason: "every 10 min"}
}

func TestStartedAheadOfTheExpectedCall(t *testing.T) {
	d := &fakeDriver{}
	learner := &regular{}
	run(t, d, func(c *Config) { c.Learner = func() policy.Learner { return learner } }, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		p.SetLive([]hearth.Version{*v})
		for i := range 3 {
			_, l, err := do(t.Context(), p, v, "a")
			if err != nil || l.Cold != (i == 0) {
				t.Fatalf("call %d: %v, cold %v", i, err, l.Cold)
			}
			for _, c := range []struct {
				after time.Duration
				want  int
			}{{4 * time.Second, 1}, {10 * time.Second, 0}, {8*time.Minute + 50*time.Second, 0}, {9*time.Minute + 5*time.Second, 1}, {10 * time.Minute, 1}} {
				time.Sleep(time.Until(p.lastEnd("f").Add(c.after)))
				synctest.Wait()
				if n := d.count(); n != c.want {
					t.Errorf("%d instances %s after call %d, want %d", n, c.after, i, c.want)
				}
			}
		}
		time.Sleep(2 * time.Minute)
		if n := d.count(); n != 0 {
			t.Errorf("%d instances when the call did not come", n)
		}
		if _, l, err := do(t.Context(), p, v, "a"); err != nil || l.ColdReason != hearth.ColdExpired {
			t.Errorf("%v, cold because %q", err, l.ColdReason)
		}
		if len(learner.seen) != 3 || learner.seen[0] != 10*time.Minute {
			t.Errorf("it learned %v", learner.seen)
		}
	})
}

// The instance that a deploy was verified with waits for the first call, whenever
// the calls of the function are expected.
func TestDeployedInstanceIsKept(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.Learner = keep(time.Second) }, func(t *testing.T, p *Pool) {
		old := version("f", 4)
		p.SetLive([]hearth.Version{*old})
		if _, _, err := do(t.Context(), p, old, "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		v := version("f", 4)
		v.Number, v.Incarnation = 2, "f2"
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		p.SetLive([]hearth.Version{*v})
		time.Sleep(deployKept - time.Minute)
		if _, l, err := do(t.Context(), p, v, "b"); err != nil || l.Cold {
			t.Errorf("%v, cold %v", err, l.Cold)
		}
		time.Sleep(5 * time.Second)
		if n := d.count(); n != 0 {
			t.Errorf("%d instances are kept after the first call", n)
		}
	})
}

func (p *Pool) lastEnd(name string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.functions[name].lastEnd
}

func TestBusyIdlerIsPaused(t *testing.T) {
	d := &fakeDriver{cpu: 0.5}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			time.Sleep(10 * time.Second)
			if st := p.Status().Instances; len(st) != 1 || st[0].State != hearth.InstancePaused || !d.sandboxes()[0].isFrozen() {
				t.Fatalf("%+v", st)
			}
			if _, l, err := do(t.Context(), p, v, "b"); err != nil || l.Cold || d.sandboxes()[0].isFrozen() {
				t.Fatalf("%v, cold %v", err, l.Cold)
			}
		}
	})
}

func TestQuietIdlerIsNotPaused(t *testing.T) {
	d := &fakeDriver{cpu: 0.001}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		if _, _, err := do(t.Context(), p, version("f", 4), "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if st := p.Status().Instances; len(st) != 1 || st[0].State != hearth.InstanceIdle {
			t.Errorf("%+v", st)
		}
	})
}

// A call that comes while its instance is being paused waits for that, no more.
func TestCallDuringPause(t *testing.T) {
	d := &fakeDriver{cpu: 1, onPause: func() error { time.Sleep(3 * time.Second); return nil }}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		for p.Status().Instances[0].State != hearth.InstancePaused {
			time.Sleep(100 * time.Millisecond)
		}
		if _, l, err := do(t.Context(), p, v, "b"); err != nil || l.Cold || d.sandboxes()[0].isFrozen() {
			t.Errorf("%v, cold %v", err, l.Cold)
		}
	})
}

// One that cannot be resumed is replaced.
func TestPausedForEver(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	d := &fakeDriver{cpu: 1, onResume: func() error {
		if broken.Swap(false) {
			return errors.New("frozen solid")
		}
		return nil
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if body, l, err := do(t.Context(), p, v, "b"); err != nil || body != "b" || !l.Cold {
			t.Errorf("%q, %v", body, err)
		}
	})
}

// Events tell every change, and only such as can be.
func TestWatch(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		_, events := p.Watch(t.Context())
		v := version("f", 1)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		p.Evict(v.Incarnation)
		want := []hearth.InstanceState{
			hearth.InstanceStarting, hearth.InstanceBusy, hearth.InstanceIdle, hearth.InstanceStopping, hearth.InstanceStopped,
		}
		from := hearth.InstanceState("")
		for _, w := range want {
			e := <-events
			if e.From != from || e.Instance.State != w || e.Instance.Function != "f" || e.Instance.Why == "" {
				t.Errorf("%+v, want %s", e, w)
			}
			from = w
		}
	})
}

func TestSlowWatcherIsDismissed(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		_, events := p.Watch(t.Context())
		v := version("f", 1)
		for range watcherBuffer {
			if _, _, err := do(t.Context(), p, v, "a"); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for range events {
			n++
		}
		if n != watcherBuffer {
			t.Errorf("%d events", n)
		}
	})
}

// What is known of a function outlives its instances.
func TestStatusOfAFunctionWithoutInstances(t *testing.T) {
	run(t, &fakeDriver{}, func(c *Config) { c.Learner = keep(time.Minute) }, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		p.SetLive([]hearth.Version{*v})
		if f := p.Status().Functions; len(f) != 1 || len(f[0].ColdStarts) != 0 || f[0].LastCold != nil || f[0].Calls != 0 {
			t.Errorf("after a deploy: %+v", f)
		}
		time.Sleep(2 * time.Minute)
		for range 2 {
			if _, _, err := do(t.Context(), p, v, "a"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
		}
		f := p.Status().Functions
		if len(f) != 1 || f[0].Calls != 2 || f[0].Version != 1 || f[0].Instances != 0 || f[0].ColdStarts[hearth.ColdExpired] != 1 || f[0].LastCold == nil {
			t.Errorf("%+v", f)
		}
	})
}
