package drivertest

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hearthrun/hearth/driver"
)

func outputCases() []testCase {
	return []testCase{
		{"Output/complete and in order", outputComplete},
		{"Output/slow writer", outputSlowWriter},
		{"Output/flood", outputFlood},
		{"Output/none after destroy", outputNoneAfterDestroy},
		{"Output/discarded", outputDiscarded},
	}
}

func outputComplete(t *testing.T, e *env) {
	const lines = 20000
	var out, errs lockedBuffer
	g := e.create(t, func(s *driver.Spec) { s.Stdout, s.Stderr = &out, &errs })
	g.do(t, request{Op: "print", Text: "1", N: lines})
	g.do(t, request{Op: "print", Text: "2", N: lines})
	g.say(t, request{Op: "exit", N: 0})
	g.wait(t)
	destroy(t, g)
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	for name, got := range map[string]string{"stdout": out.String(), "stderr": errs.String()} {
		if got != want.String() {
			t.Errorf("%s: %d bytes arrived, want %d in order", name, len(got), want.Len())
		}
	}
}

// gate is a writer that waits until it is opened.
type gate struct {
	open    chan struct{}
	written atomic.Int64
	calls   atomic.Int64
}

func (g *gate) Write(p []byte) (int, error) {
	g.calls.Add(1)
	<-g.open
	g.written.Add(int64(len(p)))
	return len(p), nil
}

func outputSlowWriter(t *testing.T, e *env) {
	slow := &gate{open: make(chan struct{})}
	g := e.create(t, func(s *driver.Spec) { s.Stdout = slow })
	other := e.create(t)
	g.say(t, request{Op: "print", Text: "1", N: 100000})
	for range 20 {
		other.echo(t)
	}
	close(slow.open)
	// The answer comes once everything was taken.
	var a answer
	_ = g.conn.SetDeadline(time.Now().Add(e.cfg.Start))
	if err := g.dec.Decode(&a); err != nil || a.Err != "" {
		t.Errorf("the guest did not go on after its writer did: %v %s", err, a.Err)
	}
}

func outputFlood(t *testing.T, e *env) {
	var n, m counter
	g := e.create(t, func(s *driver.Spec) { s.Stdout, s.Stderr = &n, &m })
	other := e.create(t)
	before := heap()
	g.do(t, request{Op: "flood"})
	eventually(t, 20*time.Second, func() string {
		if n.Load() < 8<<20 || m.Load() < 8<<20 {
			return "the flood does not arrive"
		}
		return ""
	})
	for range 20 {
		other.echo(t)
		g.echo(t)
	}
	if after := heap(); after > before+64<<20 {
		t.Errorf("the heap grew from %d to %d while a guest flooded its output", before, after)
	}
	start := time.Now()
	destroy(t, g)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("Destroy of a flooding sandbox took %v", d)
	}
}

type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}

func outputNoneAfterDestroy(t *testing.T, e *env) {
	var destroyed atomic.Bool
	var late atomic.Int64
	w := writerFunc(func(p []byte) (int, error) {
		if destroyed.Load() {
			late.Add(1)
		}
		return len(p), nil
	})
	for range 3 {
		destroyed.Store(false)
		g := e.create(t, func(s *driver.Spec) { s.Stdout, s.Stderr = w, w })
		g.do(t, request{Op: "flood"})
		destroy(t, g)
		destroyed.Store(true)
		pause(50 * time.Millisecond)
	}
	if n := late.Load(); n > 0 {
		t.Errorf("%d writes came after Destroy had returned", n)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func outputDiscarded(t *testing.T, e *env) {
	g := e.create(t)
	g.do(t, request{Op: "print", Text: "1", N: 50000})
	g.do(t, request{Op: "print", Text: "2", N: 50000})
	g.echo(t)
}
