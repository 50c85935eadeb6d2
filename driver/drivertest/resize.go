package drivertest

import (
	"math"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func resizeCases() []testCase {
	return []testCase{
		{"Resize/refused", resizeRefusals},
		{"Resize/memory", resizeMemory},
		{"Resize/memory in use", resizeBelowUse},
		{"Resize/cpu", resizeCPU},
	}
}

// resizable creates a sandbox and connects to it. It skips the case if limits
// cannot change.
func (e *env) resizable(t *testing.T, limits driver.Limits) (*guest, driver.Resizer) {
	t.Helper()
	g := e.create(t, func(s *driver.Spec) { s.Limits = limits })
	r, ok := g.Sandbox.(driver.Resizer)
	if !ok {
		t.Skipf("limits of the driver %s cannot change", e.info.Name)
	}
	g.echo(t)
	return g, r
}

// resize changes limits and fails the case if that fails.
func (e *env) resize(t *testing.T, r driver.Resizer, to driver.Limits) {
	t.Helper()
	if err := r.Resize(e.context(t), to); err != nil {
		t.Fatalf("Resize to %+v: %v (hint: %s)", to, err, hearth.AsError(err).Hint)
	}
}

func resizeRefusals(t *testing.T, e *env) {
	has := driver.Limits{Memory: 96 << 20, CPU: 1, PIDs: 40, Disk: 8 << 20}
	g, r := e.resizable(t, has)
	for name, change := range map[string]func(*driver.Limits){
		"other processes": func(l *driver.Limits) { l.PIDs++ },
		"other disk":      func(l *driver.Limits) { l.Disk++ },
		"negative memory": func(l *driver.Limits) { l.Memory = -1 },
		"little memory":   func(l *driver.Limits) { l.Memory = 1 << 20 },
		"negative cpu":    func(l *driver.Limits) { l.CPU = -1 },
		"no number":       func(l *driver.Limits) { l.CPU = math.NaN() },
	} {
		to := has
		change(&to)
		wantCode(t, "Resize to "+name, r.Resize(e.context(t), to), hearth.CodeInvalid)
	}
	e.resize(t, r, has)
	e.resize(t, r, driver.Limits{Memory: 128 << 20, CPU: 0.5})
	e.resize(t, r, driver.Limits{})
	g.echo(t)
	destroy(t, g)
	wantCode(t, "Resize after Destroy", r.Resize(e.context(t), has), hearth.CodeNotFound)
}

// resizeMemory takes more than was allowed at first, and then no more than is
// allowed at last.
func resizeMemory(t *testing.T, e *env) {
	e.skipUnless(t, e.info.MemoryLimit, "memory limit")
	g, r := e.resizable(t, driver.Limits{Memory: 96 << 20})
	g.do(t, request{Op: "allocate", N: 32 << 20})
	e.resize(t, r, driver.Limits{Memory: 320 << 20})
	if a, err := g.try(request{Op: "allocate", N: 128 << 20}); err != nil || a.Err != "" {
		t.Fatalf("with 320 MiB, the guest could not take 160 MiB: %v, %s", err, a.Err)
	}
	e.resize(t, r, driver.Limits{Memory: 256 << 20})
	g.echo(t)
	a, err := g.try(request{Op: "allocate", N: 256 << 20})
	if err == nil && a.Err == "" {
		t.Errorf("the guest took more than 400 MiB after its limit was lowered to 256 MiB")
	}
	if s, err := g.Stats(e.context(t)); err == nil && s.Memory > 260<<20 {
		t.Errorf("Stats tell of %d bytes with a limit of 256 MiB", s.Memory)
	}
	if err != nil { // it was killed, not refused
		if x := g.wait(t); !x.OOM || x.Destroyed {
			t.Errorf("Exit is %+v, want OOM", x)
		}
	}
}

// resizeBelowUse: a limit lower than what is in use is refused, or holds.
func resizeBelowUse(t *testing.T, e *env) {
	e.skipUnless(t, e.info.MemoryLimit, "memory limit")
	g, r := e.resizable(t, driver.Limits{Memory: 256 << 20})
	g.do(t, request{Op: "allocate", N: 128 << 20})
	err := r.Resize(e.context(t), driver.Limits{Memory: 64 << 20})
	if err == nil {
		if s, err := g.Stats(e.context(t)); err != nil || s.Memory > 68<<20 {
			t.Errorf("with a limit of 64 MiB, which was accepted, Stats tell of %d, %v", s.Memory, err)
		}
		g.echo(t)
		return
	}
	wantCode(t, "Resize below what is in use", err, hearth.CodeUnavailable)
	// The old limit, and not a mixture of both.
	if a, err := g.try(request{Op: "allocate", N: 48 << 20}); err != nil || a.Err != "" {
		t.Fatalf("after a Resize that was refused, the guest could not take what it may: %v, %s", err, a.Err)
	}
	if a, err := g.try(request{Op: "allocate", N: 256 << 20}); err == nil && a.Err == "" {
		t.Error("after a Resize that was refused, the guest has no limit")
	}
}

// resizeCPU compares what two busy threads get before and after.
func resizeCPU(t *testing.T, e *env) {
	e.skipUnless(t, e.info.CPULimit, "CPU limit")
	g, r := e.resizable(t, driver.Limits{CPU: 1.5})
	// share is how many cores the host charged for.
	share := func() float64 {
		used := func() time.Duration {
			s, err := g.Stats(e.context(t))
			if err != nil {
				t.Fatalf("Stats: %v", err)
			}
			return s.CPU
		}
		before, start := used(), time.Now()
		g.do(t, request{Op: "spin", N: 2, Timeout: time.Second})
		return float64(used()-before) / float64(time.Since(start))
	}
	full := share()
	e.resize(t, r, driver.Limits{CPU: 0.1})
	little := share()
	e.resize(t, r, driver.Limits{CPU: 1.5})
	again := share()
	// Other programs take their part of full, not of so little as little is.
	if little > 0.1*1.8 {
		t.Errorf("two busy threads got %.2f cores after their limit was lowered to 0.1", little)
	}
	if full > 0.5 && again < 2*little {
		t.Errorf("two busy threads got %.2f cores, %.2f with a limit of 0.1, and %.2f after it was raised", full, little, again)
	}
}
