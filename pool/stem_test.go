package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// code is an artifact of a few bytes.
type code string

func (c code) ArtifactDir(string) (string, error) { return string(c), nil }

// runStems is run with stem cells, and a version that is live.
func runStems(t *testing.T, d *fakeDriver, change func(*Config), test func(t *testing.T, p *Pool, v *hearth.Version)) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte("def handler"), 0o600); err != nil {
		t.Fatal(err)
	}
	withStems := func(c *Config) {
		c.MaxStems, c.Artifacts = 2, code(dir)
		if change != nil {
			change(c)
		}
	}
	run(t, d, withStems, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		v.Config.CPU = driver.DefaultCPU
		p.SetLive([]hearth.Version{*v})
		time.Sleep(time.Second)
		synctest.Wait()
		test(t, p, v)
	})
}

// stems counts the stem cells that are ready.
func stems(p *Pool) (n int) {
	for _, s := range p.Status().Stems {
		n += s.Ready
	}
	return n
}

// slowStart is a driver whose sandboxes take a while, and functions a moment.
func slowStart() *fakeDriver {
	return &fakeDriver{
		beforeCreate: func(context.Context) error { time.Sleep(coldStart); return nil },
		onInit:       func() frame { time.Sleep(10 * time.Millisecond); return frame{fReady, `{}`} },
	}
}

func TestStemCellServesFirstCall(t *testing.T) {
	d := slowStart()
	runStems(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version) {
		if n := stems(p); n != 1 {
			t.Fatalf("%d stem cells after a deploy, want 1", n)
		}
		_, l, err := do(t.Context(), p, v, "a")
		if err != nil {
			t.Fatal(err)
		}
		if want := (hearth.Timings{Init: 10 * time.Millisecond}); l.Timings != want || !l.Cold || l.ColdReason != hearth.ColdFirst {
			t.Errorf("%+v, cold %v because %q", l.Timings, l.Cold, l.ColdReason)
		}
		time.Sleep(time.Second)
		if n := stems(p); n != 1 {
			t.Errorf("%d stem cells after one was used, want another", n)
		}
		other := version("g", 4)
		if _, l, err := do(t.Context(), p, other, "b"); err != nil || l.Timings.Start != 0 {
			t.Errorf("another function: %v, %+v", err, l)
		}
		for _, sb := range d.sandboxes() {
			if f := sb.function(); f != "" && sb.mounted == "" {
				t.Errorf("%s has no code", f)
			}
		}
	})
}

// The stock follows how many are wanted at once, and ends when none is wanted.
func TestStockFollowsDemand(t *testing.T) {
	d := slowStart()
	d.script = func(*fakeGuest, []byte) []frame { time.Sleep(time.Second); return answer("") }
	runStems(t, d, func(c *Config) { c.MaxStems = 3; c.Learner = keep(time.Minute) }, func(t *testing.T, p *Pool, v *hearth.Version) {
		done := make(chan error, 2)
		for range 2 {
			go func() {
				_, _, err := do(t.Context(), p, v, "a")
				done <- err
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if n := stems(p); n != 2 {
			t.Errorf("%d stem cells after two were wanted at once", n)
		}
		time.Sleep(6 * time.Minute)
		if n := stems(p); n != 1 {
			t.Errorf("%d stem cells when nothing was started for a while", n)
		}
		time.Sleep(demandKept)
		synctest.Wait()
		if n := d.count(); n != 0 {
			t.Errorf("%d sandboxes are left of a class that is not used", n)
		}
	})
}

func TestStemCellGetsTheLimitsOfItsFunction(t *testing.T) {
	d := slowStart()
	runStems(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version) {
		small := version("small", 4)
		small.Config.Memory, small.Config.CPU = 100<<20, 0.5 // of the same class
		if _, l, err := do(t.Context(), p, small, "a"); err != nil || l.Timings.Start != 0 {
			t.Fatalf("%v, %+v", err, l)
		}
		for _, sb := range d.sandboxes() {
			if sb.function() == "small" && (sb.limits.Memory != 100<<20 || sb.limits.CPU != 0.5) {
				t.Errorf("its limits are %+v", sb.limits)
			}
		}
	})
}

// Where a stem cell cannot be used the function starts without it.
func TestStemCellThatDoesNotFit(t *testing.T) {
	broken := errors.New("not today")
	for name, c := range map[string]struct {
		change func(d *fakeDriver)
		cpu    float64
		start  time.Duration
	}{
		"cannot be mounted": {change: func(d *fakeDriver) { d.onMount = func(driver.Mount) error { return broken } }, start: coldStart},
		"cannot be resized": {change: func(d *fakeDriver) { d.onResize = func(driver.Limits) error { return broken } }, cpu: 2, start: coldStart},
		"is rigid":          {change: func(d *fakeDriver) { d.rigid, d.noSlots = true, true }, cpu: 2, start: coldStart},
		"is sent its files": {change: func(d *fakeDriver) { d.rigid, d.noSlots = true, true }},
		"has died": {change: func(d *fakeDriver) {
			d.onMount = func(driver.Mount) error {
				for _, sb := range d.sandboxes() {
					if sb.mounted == "" {
						sb.end(driver.Exit{Code: 1})
					}
				}
				return broken
			}
		}, start: coldStart},
		"has died unnoticed": {change: func(d *fakeDriver) {
			d.onMount = func(driver.Mount) error { // which needs no living process
				for _, sb := range d.sandboxes() {
					if sb.mounted == "" {
						sb.end(driver.Exit{Signal: 9})
					}
				}
				time.Sleep(time.Millisecond)
				return nil
			}
		}, start: coldStart + time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			d := slowStart()
			c.change(d)
			runStems(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version) {
				if stems(p) != 1 {
					t.Fatal("there is no stem cell")
				}
				if c.cpu != 0 {
					v.Config.CPU = c.cpu
				}
				body, l, err := do(t.Context(), p, v, "a")
				if err != nil || body != "a" || l.Timings.Start != c.start {
					t.Fatalf("%q, %v, %+v", body, err, l)
				}
				for _, sb := range d.sandboxes() {
					if sb.function() == "f" && (sb.mounted == "") != sb.archive {
						t.Errorf("mounted %q, archive %v", sb.mounted, sb.archive)
					}
				}
			})
		})
	}
}

// A function whose files take long to reach a stem cell starts without one.
func TestStemCellThatIsSlower(t *testing.T) {
	d := slowStart()
	d.onMount = func(driver.Mount) error { time.Sleep(2 * coldStart); return nil }
	runStems(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version) {
		for _, want := range []time.Duration{2 * coldStart, coldStart, coldStart} {
			if _, l, err := do(t.Context(), p, v, "a"); err != nil || l.Timings.Start != want {
				t.Fatalf("%v, %+v, want %v", err, l.Timings, want)
			}
			p.Evict(v.Incarnation)
			time.Sleep(time.Second)
		}
	})
}

// A driver whose sandboxes cannot be resized gets stem cells of the very limits.
func TestRigidDriverGetsExactStemCells(t *testing.T) {
	d := slowStart()
	d.rigid, d.noSlots = true, true
	runStems(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version) {
		v.Config.CPU = 2
		for _, want := range []time.Duration{coldStart, 0} {
			if _, l, err := do(t.Context(), p, v, "a"); err != nil || l.Timings.Start != want {
				t.Fatalf("%v, %+v, want %v", err, l, want)
			}
			p.Evict(v.Incarnation)
			time.Sleep(time.Second)
		}
	})
}

func TestBrokenFunctionInAStemCell(t *testing.T) {
	d := slowStart()
	var loads atomic.Int64
	d.onInit = func() frame { loads.Add(1); return frame{fInitError, `{"type":"ImportError","message":"m"}`} }
	runStems(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version) {
		_, _, err := do(t.Context(), p, v, "a")
		if e := hearth.AsError(err); e.Function == nil || e.Function.Type != "ImportError" {
			t.Errorf("%v", err)
		}
		if n := loads.Load(); n != 1 {
			t.Errorf("a broken function was loaded %d times", n)
		}
	})
}

// Stem cells give way to instances, and never take the room of one.
func TestStemCellsGiveWay(t *testing.T) {
	d := slowStart()
	d.script = func(*fakeGuest, []byte) []frame { time.Sleep(time.Second); return answer("") }
	runStems(t, d, func(c *Config) { c.MaxInstances = 2; c.Learner = keep(time.Hour) }, func(t *testing.T, p *Pool, v *hearth.Version) {
		if stems(p) != 1 {
			t.Fatal("there is no stem cell")
		}
		other := version("g", 4)
		other.Config.Memory = 512 << 20 // of another class
		done := make(chan error, 2)
		for range 2 {
			go func() {
				_, _, err := do(t.Context(), p, other, "a")
				done <- err
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := len(p.Status().Instances); n != 2 || stems(p) != 0 {
			t.Errorf("%d instances, %d stem cells", n, stems(p))
		}
	})
}

func TestStemCellsHaveAShareOfTheMemory(t *testing.T) {
	d := slowStart()
	runStems(t, d, func(c *Config) { c.Memory = stemShare*stemMemory - 1 }, func(t *testing.T, p *Pool, _ *hearth.Version) {
		if n := stems(p); n != 0 {
			t.Errorf("%d stem cells without room for one", n)
		}
	})
}

func TestStemCellThatCannotStart(t *testing.T) {
	var tries atomic.Int64
	d := &fakeDriver{beforeCreate: func(context.Context) error { tries.Add(1); return errors.New("no space left") }}
	runStems(t, d, nil, func(t *testing.T, _ *Pool, _ *hearth.Version) {
		time.Sleep(10 * time.Minute)
		if n := tries.Load(); n < 5 || n > 30 {
			t.Errorf("%d tries in 10 minutes", n)
		}
	})
}

// A stem cell that dies is replaced, and no call notices.
func TestStemCellThatDies(t *testing.T) {
	d := slowStart()
	runStems(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version) {
		time.Sleep(calm)
		for _, sb := range d.sandboxes() {
			sb.end(driver.Exit{Code: 1})
		}
		time.Sleep(time.Second)
		if n := stems(p); n != 1 {
			t.Fatalf("%d stem cells", n)
		}
		if _, _, err := do(t.Context(), p, v, fmt.Sprint("a")); err != nil {
			t.Error(err)
		}
	})
}
