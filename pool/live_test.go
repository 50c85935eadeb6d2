package pool

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
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
