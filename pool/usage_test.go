package pool

import (
	"context"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// What instances use is told, by what they did, also that of an instance which has ended.
func TestUsage(t *testing.T) {
	const memory = 10 << 20
	d := &fakeDriver{memory: memory, cpu: 0.5}
	d.beforeCreate = func(context.Context) error { time.Sleep(time.Second); return nil }
	d.script = func(*fakeGuest, []byte) []frame { time.Sleep(3 * time.Second); return answer("") }
	var mu sync.Mutex
	var all hearth.Usage
	cfg := func(c *Config) {
		c.MaxStems = -1
		c.Used = func(function string, version int, isolation string, u hearth.Usage) {
			if function != "f" || version != 1 || isolation != "fake" {
				t.Errorf("usage of %q %d %q", function, version, isolation)
			}
			mu.Lock()
			defer mu.Unlock()
			all.CPUSeconds += u.CPUSeconds
			for to, o := range map[*hearth.Occupancy]hearth.Occupancy{&all.Starting: u.Starting, &all.Busy: u.Busy, &all.Idle: u.Idle} {
				to.Seconds += o.Seconds
				to.ByteSeconds += o.ByteSeconds
			}
		}
	}
	run(t, d, cfg, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		p.SetLive([]hearth.Version{*v})
		for range 2 {
			if _, _, err := do(t.Context(), p, v, "call"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		if i := p.Status().Instances; len(i) != 1 || i[0].Memory != memory || i[0].CPU < 15*time.Second {
			t.Errorf("instances: %+v", i)
		}
		p.Evict(v.Incarnation)
		for d.count() > 0 {
			time.Sleep(time.Millisecond)
		}
	})
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 0.02*want {
			t.Errorf("%s is %g, want %g", what, got, want)
		}
	}
	near("time busy", all.Busy.Seconds, 6)
	near("time idle", all.Idle.Seconds, 40)
	near("time starting", all.Starting.Seconds, 1)
	near("memory busy", all.Busy.ByteSeconds, 6*memory)
	near("memory idle", all.Idle.ByteSeconds, 40*memory)
	near("CPU", all.CPUSeconds, 0.5*46)
}

// The time of a stem cell is nobody's, that of the instance it becomes is its function's.
func TestUsageOfStemCells(t *testing.T) {
	d := &fakeDriver{memory: 1 << 20}
	var mu sync.Mutex
	idle := map[string]float64{}
	cfg := func(c *Config) {
		c.Used = func(function string, _ int, _ string, u hearth.Usage) {
			mu.Lock()
			defer mu.Unlock()
			idle[function] += u.Idle.Seconds
		}
	}
	runStems(t, d, cfg, func(t *testing.T, p *Pool, v *hearth.Version) {
		time.Sleep(7 * time.Second) // 8 with that before
		if _, l, err := do(t.Context(), p, v, "call"); err != nil || l.Timings.Start != 0 {
			t.Fatalf("%v, %+v; there was no stem cell", err, l.Timings)
		}
		p.endStems() // no other
		time.Sleep(20 * time.Second)
	})
	if f, none := idle["f"], idle[""]; f < 19 || f > 21 || none < 7 || none > 30 {
		t.Errorf("idle for %v seconds; want 20 of f, and those of stem cells apart", idle)
	}
}

// What only takes long to find out is asked for seldom, one at a time, and at the end; an
// instance that could not be created existed, too.
func TestUsageThatIsSlow(t *testing.T) {
	d := &fakeDriver{memory: 1 << 20, cpu: 1, slow: true}
	fails := false
	d.beforeCreate = func(context.Context) error {
		if fails {
			time.Sleep(10 * time.Second)
			return hearth.Errorf(hearth.CodeUnavailable, "no")
		}
		return nil
	}
	d.script = func(*fakeGuest, []byte) []frame { time.Sleep(47 * time.Second); return answer("") }
	var mu sync.Mutex
	var all hearth.Usage
	cfg := func(c *Config) {
		c.MaxStems = -1
		c.Used = func(_ string, _ int, _ string, u hearth.Usage) {
			mu.Lock()
			defer mu.Unlock()
			all.CPUSeconds += u.CPUSeconds
			all.Busy.Seconds += u.Busy.Seconds
			all.Starting.Seconds += u.Starting.Seconds
		}
	}
	run(t, d, cfg, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		p.SetLive([]hearth.Version{*v})
		if _, _, err := do(t.Context(), p, v, "call"); err != nil {
			t.Fatal(err)
		}
		if n := d.asked.Load(); n > 4 {
			t.Errorf("it was asked %d times in 47 s", n)
		}
		p.Evict(v.Incarnation)
		for d.count() > 0 {
			time.Sleep(time.Millisecond)
		}
		fails = true
		if _, _, err := do(t.Context(), p, v, "call"); err == nil {
			t.Error("there is an instance")
		}
	})
	if all.CPUSeconds < 46.9 || all.Busy.Seconds < 46.9 || all.Starting.Seconds < 9.9 {
		t.Errorf("%+v; want 47 s of computing and of a call, and 10 s of a start", all)
	}
}
