package pool

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// hold opens connections of v and returns what ends them; they have their places.
func hold(t *testing.T, p *Pool, v *hearth.Version, n int) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var ended, begun sync.WaitGroup
	begun.Add(n)
	for range n {
		ended.Go(func() {
			err := p.Hold(ctx, v, func(context.Context, *Lease) error {
				begun.Done()
				<-ctx.Done()
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	begun.Wait()
	return func() {
		cancel()
		ended.Wait()
	}
}

// TestHoldTeachesNothing: connections that last for hours change neither what is
// expected of calls nor how many instances they have.
func TestHoldTeachesNothing(t *testing.T) {
	d := slowStart()
	d.script = lasting(time.Millisecond)
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 16)
		for range 20 {
			if _, _, err := do(t.Context(), p, v, "a"); err != nil {
				t.Fatal(err)
			}
		}
		end := hold(t, p, v, 5)
		if n := count(p, v.Incarnation); n > 6 { // one may be for calls, which came a moment ago
			t.Errorf("%d instances were started for 5 connections", n)
		}
		time.Sleep(time.Hour)
		if n := count(p, v.Incarnation); n != 5 {
			t.Errorf("%d instances for 5 connections", n)
		}
		// A call finds no place, and waits for a start and not for what served calls
		// until now.
		start := time.Now()
		if _, l, err := do(t.Context(), p, v, "a"); err != nil || !l.Cold {
			t.Errorf("%+v, %v", l, err)
		}
		if took := time.Since(start); took > 3*coldStart {
			t.Errorf("a call beside connections took %s", took)
		}
		end()
		p.mu.Lock()
		g := p.groups[v.Incarnation]
		if g == nil || g.service.Value() > 100*time.Millisecond || g.held != 0 || g.inFlight != 0 {
			t.Errorf("calls take %s, %d held", g.service.Value(), g.held)
		}
		p.mu.Unlock()
	})
}

// TestHeldInstancesDrain: a version that is replaced keeps its connections, and
// ends with the last of them.
func TestHeldInstancesDrain(t *testing.T) {
	d := slowStart()
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 16)
		p.SetLive([]hearth.Version{*v})
		end := hold(t, p, v, 3)
		next := version("f", 16)
		next.Number, next.Incarnation = 2, "next"
		p.SetLive([]hearth.Version{*next})
		time.Sleep(time.Hour)
		if n := count(p, v.Incarnation); n != 3 {
			t.Errorf("%d instances of 3 connections are left", n)
		}
		end()
		time.Sleep(time.Minute)
		if n := count(p, v.Incarnation); n != 0 {
			t.Errorf("%d instances are left without a connection", n)
		}
	})
}

// count returns how many instances a version has.
func count(p *Pool, incarnation string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for inst := range p.instances {
		if v := inst.version.Load(); v != nil && v.Incarnation == incarnation {
			n++
		}
	}
	return n
}
