package drivertest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func lifecycleCases() []testCase {
	return []testCase{
		{"Lifecycle/probe", probeIsTruthful},
		{"Lifecycle/echo", createDialEcho},
		{"Lifecycle/one stream", secondDialConflicts},
		{"Lifecycle/stream carries much", streamCarriesMuch},
		{"Lifecycle/guest closes its stream", guestClosesStream},
		{"Lifecycle/host closes its stream", hostClosesStream},
		{"Lifecycle/dial canceled", dialCanceled},
		{"Lifecycle/create canceled", createCanceled},
		{"Lifecycle/duplicate id", duplicateID},
		{"Lifecycle/id again", idAgainAfterDestroy},
		{"Lifecycle/destroy idempotent", destroyIdempotent},
		{"Lifecycle/destroy concurrent", destroyConcurrent},
		{"Lifecycle/destroy canceled", destroyCanceled},
		{"Lifecycle/destroy during dial", destroyDuringDial},
		{"Lifecycle/destroy undialed", destroyUndialed},
		{"Lifecycle/destroy deaf guest", destroyDeafGuest},
		{"Lifecycle/destroy with orphans", destroyWithOrphans},
		{"Lifecycle/pause", pauseStopsCPU},
		{"Lifecycle/destroy paused", destroyPaused},
		{"Lifecycle/stats", statsArePlausible},
		{"Lifecycle/many at once", manyAtOnce},
	}
}

func probeIsTruthful(t *testing.T, e *env) {
	info, err := e.driver.Probe(e.context(t))
	if err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if info.Name == "" || info.Summary == "" {
		t.Errorf("Probe gives no name or summary: %+v", info)
	}
	if !info.Works {
		t.Fatalf("Probe said that the driver works, and now that it does not: %v", info.Missing)
	}
	for _, p := range slices.Concat(info.Missing, info.Limitations) {
		if p.What == "" {
			t.Error("Probe names a problem without saying what it is")
		}
	}
	for i, r := range info.Runtimes {
		if r.Name == "" || r.Language == "" || r.Version == "" {
			t.Errorf("runtime %d is incomplete: %+v", i, r)
		}
		if i > 0 && r.Language < info.Runtimes[i-1].Language {
			t.Errorf("runtimes are not sorted by language: %q after %q", r.Language, info.Runtimes[i-1].Language)
		}
	}
	if list, err := e.driver.List(e.context(t)); err != nil || len(list) > 0 {
		t.Errorf("Probe left sandboxes behind: %v, %v", list, err)
	}
	e.create(t).echo(t)
}

func createDialEcho(t *testing.T, e *env) {
	g := e.create(t)
	for range 100 {
		g.echo(t)
	}
}

func secondDialConflicts(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	_, err := g.Dial(e.context(t))
	wantCode(t, "second Dial", err, hearth.CodeConflict)
	g.echo(t)
	g.conn.Close()
	_, err = g.Dial(e.context(t))
	wantCode(t, "Dial after the stream was closed", err, hearth.CodeConflict)
}

func streamCarriesMuch(t *testing.T, e *env) {
	g := e.create(t)
	text := make([]byte, 4<<20)
	for i := range text {
		text[i] = 'a' + byte(i%26)
	}
	// Encoded at once while nobody reads: the stream must hold it back and lose
	// nothing.
	if a := g.do(t, request{Op: "echo", Text: string(text)}); a.Text != string(text) {
		t.Errorf("%d bytes came back changed, as %d", len(text), len(a.Text))
	}
}

func guestClosesStream(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	g.say(t, request{Op: "close-stream"})
	g.ended(t)
}

func hostClosesStream(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	g.conn.Close()
	if x := g.wait(t); x.Code != 0 || x.Signal != 0 || x.Destroyed {
		t.Errorf("a guest whose stream was closed should exit by itself, but: %+v", x)
	}
}

func dialCanceled(t *testing.T, e *env) {
	s := e.start(t, e.spec())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// It may succeed all the same: then it was quicker than the cancellation.
	if c, err := s.Dial(ctx); err == nil {
		c.Close()
	}
}

func createCanceled(t *testing.T, e *env) {
	// Once without a hurry, to know how long it takes.
	start := time.Now()
	g := e.create(t)
	g.echo(t)
	destroy(t, g)
	whole := time.Since(start)
	const steps = 12
	for i := range steps {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(whole*time.Duration(i)/steps, cancel)
		if i == 0 {
			cancel()
		}
		s, err := e.driver.Create(ctx, e.spec())
		timer.Stop()
		if err == nil {
			cancel()
			if i == 0 {
				t.Error("Create succeeded though its context had ended before")
			}
			// Else it was created before the end of ctx, which then means nothing.
			e.dial(t, s).echo(t)
			destroy(t, s)
			continue
		}
		cancel()
		if s != nil {
			t.Error("Create returned a sandbox and an error")
		}
		if c := hearth.ErrorCode(err); !errors.Is(err, context.Canceled) && c != hearth.CodeCanceled {
			t.Errorf("error of a canceled Create is %v (code %q), want one that is context.Canceled", err, c)
		}
	}
	list, err := e.driver.List(e.context(t))
	if err != nil || len(list) != 0 {
		t.Errorf("after canceled Creates List has %d sandboxes, %v", len(list), err)
	}
	var ids []string
	e.mu.Lock()
	ids = append(ids, e.ids...)
	e.mu.Unlock()
	if left := pathsOf(e.dir, ids); len(left) > 0 {
		t.Errorf("files left of canceled Creates: %v", left)
	}
}

func duplicateID(t *testing.T, e *env) {
	g := e.create(t)
	spec := e.spec()
	spec.ID = g.ID()
	s, err := e.driver.Create(e.context(t), spec)
	wantCode(t, "Create with an ID in use", err, hearth.CodeConflict)
	if err == nil {
		destroy(t, s)
		return
	}
	g.echo(t) // the first one is unharmed
}

func idAgainAfterDestroy(t *testing.T, e *env) {
	spec := e.spec()
	for range 3 {
		s := e.start(t, spec)
		e.dial(t, s).echo(t)
		destroy(t, s)
	}
}

func destroyIdempotent(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	for range 3 {
		destroy(t, g)
	}
	g.ended(t)
	if _, err := g.Dial(e.context(t)); err == nil {
		t.Error("Dial succeeded after Destroy")
	}
	_, err := g.Stats(e.context(t))
	wantCode(t, "Stats after Destroy", err, hearth.CodeNotFound)
	if list, err := e.driver.List(e.context(t)); err != nil || len(list) > 0 {
		t.Errorf("List after Destroy: %d sandboxes, %v", len(list), err)
	}
}

func destroyConcurrent(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { destroy(t, g) })
	}
	wg.Wait()
}

func destroyCanceled(t *testing.T, e *env) {
	g := e.create(t)
	g.echo(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// It may report the cancellation, but must free everything all the same.
	_ = g.Destroy(ctx)
	eventually(t, 10*time.Second, func() string {
		list, err := e.driver.List(context.Background())
		if err != nil || len(list) > 0 {
			return "Destroy with a canceled context did not go on freeing"
		}
		return ""
	})
}

func destroyDuringDial(t *testing.T, e *env) {
	for range 5 {
		s := e.start(t, e.spec())
		var wg sync.WaitGroup
		wg.Go(func() {
			if c, err := s.Dial(t.Context()); err == nil {
				c.Close()
			}
		})
		destroy(t, s)
		wg.Wait()
	}
}

// destroyUndialed: the stream that nobody asked for is the driver's to close.
func destroyUndialed(t *testing.T, e *env) {
	for range 3 {
		destroy(t, e.start(t, e.spec()))
	}
}

func destroyDeafGuest(t *testing.T, e *env) {
	g := e.create(t)
	g.say(t, request{Op: "deaf"})
	start := time.Now()
	destroy(t, g)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("Destroy of a guest that ignores all signals took %v", d)
	}
	if x := g.wait(t); !x.Destroyed {
		t.Errorf("Exit is %+v, want Destroyed", x)
	}
}

func destroyWithOrphans(t *testing.T, e *env) {
	g := e.create(t)
	for range 5 {
		g.do(t, request{Op: "orphan"})
	}
	g.do(t, request{Op: "spawn", N: 5})
	// The guest's end must not hide its descendants from Destroy.
	g.say(t, request{Op: "exit", N: 0})
	g.wait(t)
}

func pauseStopsCPU(t *testing.T, e *env) {
	g := e.create(t)
	p, ok := g.Sandbox.(driver.Pauser)
	if !ok {
		t.Skip("the driver cannot pause sandboxes")
	}
	g.do(t, request{Op: "count"})
	used := func() time.Duration {
		s, err := g.Stats(e.context(t))
		if err != nil {
			t.Fatalf("Stats: %v", err)
		}
		return s.CPU
	}
	for range 2 { // twice: Pause of a paused sandbox is no error
		if err := p.Pause(e.context(t)); err != nil {
			t.Fatalf("Pause: %v", err)
		}
	}
	first := used()
	pause(500 * time.Millisecond)
	if second := used(); second-first > 20*time.Millisecond {
		t.Errorf("a paused sandbox used %v of CPU in 500 ms", second-first)
	}
	g.say(t, request{Op: "echo", Text: "while paused"})
	_ = g.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := g.conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("a paused sandbox answered")
	}
	for range 2 {
		if err := p.Resume(e.context(t)); err != nil {
			t.Fatalf("Resume: %v", err)
		}
	}
	_ = g.conn.SetReadDeadline(time.Now().Add(e.cfg.Start))
	var a answer
	if err := g.dec.Decode(&a); err != nil || a.Text != "while paused" {
		t.Fatalf("after Resume the guest answered %q, %v", a.Text, err)
	}
	a1 := g.do(t, request{Op: "count"})
	eventually(t, 5*time.Second, func() string {
		if g.do(t, request{Op: "count"}).N > a1.N {
			return ""
		}
		return "the guest does not run on after Resume"
	})
}

func destroyPaused(t *testing.T, e *env) {
	g := e.create(t)
	p, ok := g.Sandbox.(driver.Pauser)
	if !ok {
		t.Skip("the driver cannot pause sandboxes")
	}
	g.echo(t)
	if err := p.Pause(e.context(t)); err != nil {
		t.Fatalf("Pause: %v", err)
	}
	destroy(t, g)
}

func statsArePlausible(t *testing.T, e *env) {
	g := e.create(t, func(s *driver.Spec) { s.Limits.Memory = 256 << 20 })
	g.echo(t)
	stats := func() driver.Stats {
		s, err := g.Stats(e.context(t))
		if err != nil {
			t.Fatalf("Stats: %v", err)
		}
		return s
	}
	first := stats()
	if first.Memory <= 0 || first.Memory > 256<<20 {
		t.Errorf("Memory of an idle guest is %d", first.Memory)
	}
	if first.PIDs < 1 || first.PIDs > 100 {
		t.Errorf("PIDs of an idle guest is %d", first.PIDs)
	}
	g.do(t, request{Op: "allocate", N: 64 << 20})
	g.do(t, request{Op: "spin", N: 1, Timeout: 300 * time.Millisecond})
	second := stats()
	if d := second.Memory - first.Memory; d < 48<<20 || d > 128<<20 {
		t.Errorf("Memory grew by %d after an allocation of 64 MiB", d)
	}
	if second.MemoryPeak != 0 && second.MemoryPeak < second.Memory/2 {
		t.Errorf("MemoryPeak %d is far below Memory %d", second.MemoryPeak, second.Memory)
	}
	if second.CPU <= first.CPU {
		t.Errorf("CPU did not grow: %v, then %v", first.CPU, second.CPU)
	}
	if m, ok := g.Sandbox.(driver.Meter); ok {
		// Where it is not known, Stats may be.
		if u, known := m.Usage(); known && (u.CPU < second.CPU || u.Memory < second.Memory/2 || u.MemoryPeak < second.MemoryPeak) {
			t.Errorf("Usage is %+v, after Stats were %+v", u, second.Usage)
		}
	}
	// It is added up over processes that come and go meanwhile.
	for end := time.Now().Add(5 * time.Second); second.PSS != 0 && second.PSS < 48<<20 && time.Now().Before(end); {
		second = stats()
	}
	if second.PSS != 0 && second.PSS < 48<<20 {
		t.Errorf("PSS is %d after an allocation of 64 MiB", second.PSS)
	}
}

func manyAtOnce(t *testing.T, e *env) {
	const n = 8
	sandboxes := make([]driver.Sandbox, n)
	var wg sync.WaitGroup
	for i := range sandboxes {
		wg.Go(func() {
			s, err := e.driver.Create(e.context(t), e.spec())
			if err != nil {
				t.Errorf("Create: %v", err)
				return
			}
			t.Cleanup(func() { destroy(t, s) })
			sandboxes[i] = s
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, s := range sandboxes {
		e.dial(t, s).echo(t)
	}
	list, err := e.driver.List(e.context(t))
	if err != nil || len(list) != n {
		t.Errorf("List has %d sandboxes, %v; want %d", len(list), err, n)
	}
}
