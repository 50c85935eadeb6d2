package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/guest"
	"github.com/hearthrun/hearth/pool/policy"
)

func (s *sink) Head(*guest.Head) error { return nil }

func newPool(d driver.Driver, change func(*Config)) *Pool {
	cfg := Config{
		Drivers: map[string]driver.Driver{"fake": d}, Artifacts: nowhere{}, Logs: nowhere{},
		Logger: slog.New(slog.DiscardHandler), MaxStems: -1,
	}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

func version(name string, concurrency int) *hearth.Version {
	return &hearth.Version{
		Function: name, Number: 1, Incarnation: name,
		Config: hearth.Config{Isolation: "fake", Concurrency: concurrency}.WithDefaults(),
	}
}

// do calls v through the pool and returns the answer.
func do(ctx context.Context, p *Pool, v *hearth.Version, id string) (string, *Lease, error) {
	var s sink
	var lease *Lease
	err := p.Do(ctx, v, func(ctx context.Context, l *Lease) error {
		lease = l
		return l.Conn.Invoke(ctx, &guest.Call{ID: id, Kind: hearth.KindEvent, Deadline: time.Now()}, &s)
	})
	return string(s.body), lease, err
}

// keep keeps every function warm for that long.
func keep(d time.Duration) func() policy.Learner {
	return func() policy.Learner { return policy.Fixed(d) }
}

func echo(_ *fakeGuest, invoke []byte) []frame { return answer(invocationID(invoke)) }

// run runs test in a bubble and closes the pool and checks that no sandbox is left.
func run(t *testing.T, d *fakeDriver, change func(*Config), test func(t *testing.T, p *Pool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if d.script == nil {
			d.script = echo
		}
		p := newPool(d, change)
		test(t, p)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		if n := d.count(); n != 0 {
			t.Errorf("%d sandboxes are left", n)
		}
	})
}

// A call that its instance did not get to see goes to another.
func TestUnreadCallIsRepeated(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		var had []string
		err := p.Do(t.Context(), v, func(ctx context.Context, l *Lease) error {
			if had = append(had, l.Instance); len(had) < 3 {
				d.sandboxes()[0].end(driver.Exit{Signal: 9})
				<-l.Conn.Done()
			}
			return l.Conn.Invoke(ctx, &guest.Call{ID: "a", Kind: hearth.KindEvent, Deadline: time.Now()}, &sink{})
		})
		if err != nil || len(had) != 3 || had[0] == had[1] || had[1] == had[2] {
			t.Errorf("%v, with instances %v", err, had)
		}
		// But not for ever.
		tries := 0
		err = p.Do(t.Context(), v, func(ctx context.Context, l *Lease) error {
			tries++
			d.sandboxes()[0].end(driver.Exit{Signal: 9})
			<-l.Conn.Done()
			return l.Conn.Invoke(ctx, &guest.Call{ID: "a", Kind: hearth.KindEvent, Deadline: time.Now()}, &sink{})
		})
		if hearth.ErrorCode(err) != hearth.CodeFunction || tries != 1+maxUnread {
			t.Errorf("%v after %d tries", err, tries)
		}
		made := d.made()
		// One that it read, does not.
		d.script = func(*fakeGuest, []byte) []frame { return nil }
		if _, _, err := do(t.Context(), p, v, "b"); hearth.ErrorCode(err) != hearth.CodeFunction || d.made() != made+1 {
			t.Errorf("%v, %d sandboxes after %d", err, d.made(), made)
		}
	})
}

func TestWarmReuse(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 4)
		for i := range 5 {
			body, lease, err := do(t.Context(), p, v, fmt.Sprint(i))
			if err != nil || body != fmt.Sprint(i) {
				t.Fatalf("call %d: %q, %v", i, body, err)
			}
			if cold := i == 0; lease.Cold != cold {
				t.Errorf("call %d: cold = %v", i, lease.Cold)
			}
		}
		if d.created != 1 {
			t.Errorf("%d sandboxes for calls one after the other, want 1", d.created)
		}
	})
}

func TestColdTimings(t *testing.T) {
	d := &fakeDriver{
		beforeCreate: func(context.Context) error { time.Sleep(30 * time.Millisecond); return nil },
		onInit:       func() frame { time.Sleep(20 * time.Millisecond); return frame{fReady, `{}`} },
	}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		_, lease, err := do(t.Context(), p, version("f", 1), "a")
		if err != nil {
			t.Fatal(err)
		}
		want := hearth.Timings{Start: 30 * time.Millisecond, Init: 20 * time.Millisecond}
		if lease.Timings != want || !lease.Cold {
			t.Errorf("timings %+v, want %+v; cold %v", lease.Timings, want, lease.Cold)
		}
	})
}

// A call that gives up in the moment it is served hands its instance on: the
// next one has waited for it to be made all the same.
func TestHandedOnInstanceIsCold(t *testing.T) {
	d := &fakeDriver{beforeCreate: func(context.Context) error { time.Sleep(time.Second); return nil }}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		first := &waiter{ready: make(chan struct{}), asked: time.Now()}
		p.mu.Lock()
		g := p.groupLocked(v)
		g.waiters = []*waiter{first}
		p.queued++
		p.scaleLocked(g)
		p.mu.Unlock()
		second := make(chan *Lease, 1)
		go func() {
			_, lease, err := do(t.Context(), p, v, "second")
			if err != nil {
				t.Error(err)
			}
			second <- lease
		}()
		<-first.ready
		p.release(&Lease{inst: first.inst})
		if l := <-second; !l.Cold || l.Timings.Start != time.Second || l.Timings.Queue != 0 {
			t.Errorf("cold %v, %+v", l.Cold, l.Timings)
		}
		if _, l, err := do(t.Context(), p, v, "third"); err != nil || l.Cold {
			t.Errorf("the next call: %v, cold %v", err, l.Cold)
		}
	})
}

func TestConcurrencyLimitAndQueue(t *testing.T) {
	d := &fakeDriver{script: func(_ *fakeGuest, invoke []byte) []frame {
		time.Sleep(10 * time.Millisecond)
		return answer(invocationID(invoke))
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 3)
		var wg sync.WaitGroup
		start := time.Now()
		for i := range 12 {
			wg.Go(func() {
				if body, _, err := do(t.Context(), p, v, fmt.Sprint(i)); err != nil || body != fmt.Sprint(i) {
					t.Errorf("call %d: %q, %v", i, body, err)
				}
			})
		}
		wg.Wait()
		if d.peak() != 3 {
			t.Errorf("%d instances at once, want 3", d.peak())
		}
		if took := time.Since(start); took != 40*time.Millisecond {
			t.Errorf("12 calls of 10 ms on 3 instances took %v", took)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	block := make(chan struct{})
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.MaxQueue = 2 }, func(t *testing.T, p *Pool) {
		block = make(chan struct{}) // made inside the bubble
		d.script = func(*fakeGuest, []byte) []frame { <-block; return answer("x") }
		v := version("f", 1)
		var wg sync.WaitGroup
		for range 3 { // one runs, two wait
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, v, "a"); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		_, _, err := do(t.Context(), p, v, "b")
		if hearth.ErrorCode(err) != hearth.CodeExhausted {
			t.Errorf("a call over the queue's limit: %v", err)
		}
		close(block)
		wg.Wait()
	})
}

func TestWaitIsCancellable(t *testing.T) {
	d := &fakeDriver{beforeCreate: func(context.Context) error { time.Sleep(time.Second); return nil }}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, _, err := do(ctx, p, v, "a")
		if hearth.ErrorCode(err) != hearth.CodeTimeout || time.Since(start) != 100*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		// The start goes on for the next call.
		time.Sleep(950 * time.Millisecond)
		if _, lease, err := do(t.Context(), p, v, "b"); err != nil || lease.Cold || d.created != 1 {
			t.Errorf("next call: %v, %d created", err, d.created)
		}
	})
}

func TestIdleInstancesExpire(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.Learner = keep(time.Minute) }, func(t *testing.T, p *Pool) {
		if _, _, err := do(t.Context(), p, version("f", 1), "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		if d.count() != 1 {
			t.Error("the instance was destroyed too early")
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if d.count() != 0 {
			t.Error("the idle instance was kept")
		}
	})
}

func TestCrashIsToldAndReplaced(t *testing.T) {
	var crash atomic.Bool
	d := &fakeDriver{script: func(g *fakeGuest, invoke []byte) []frame {
		if crash.Load() {
			return nil
		}
		return echo(g, invoke)
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		crash.Store(true)
		_, _, err := do(t.Context(), p, v, "a")
		var e *hearth.Error
		if !errors.As(err, &e) || e.Code != hearth.CodeFunction || e.Function.Type != "Runtime.ExitError" {
			t.Fatalf("crash: %v", err)
		}
		if want := "the function's process exited with status 3 before it answered"; e.Message != want {
			t.Errorf("message %q, want %q", e.Message, want)
		}
		crash.Store(false)
		if _, lease, err := do(t.Context(), p, v, "b"); err != nil || !lease.Cold {
			t.Errorf("after the crash: %v", err)
		}
	})
}

func TestOutOfMemoryIsTold(t *testing.T) {
	d := &fakeDriver{script: func(g *fakeGuest, _ []byte) []frame {
		g.sb.end(driver.Exit{Code: -1, Signal: 9, OOM: true})
		return nil
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		_, _, err := do(t.Context(), p, version("f", 1), "a")
		if e := hearth.AsError(err); e.Function == nil || e.Function.Type != "Runtime.OutOfMemory" {
			t.Errorf("%v", err)
		}
	})
}

func TestDeathWhileIdleIsNoticed(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		for _, sb := range d.live {
			sb.end(driver.Exit{Code: 1})
		}
		d.mu.Unlock()
		synctest.Wait()
		if d.count() != 0 {
			t.Error("the dead instance was kept")
		}
		if _, lease, err := do(t.Context(), p, v, "b"); err != nil || !lease.Cold {
			t.Errorf("next call: %v", err)
		}
	})
}

func TestInitErrorIsTheFunctions(t *testing.T) {
	d := &fakeDriver{onInit: func() frame {
		return frame{fInitError, `{"type":"ImportError","message":"no module named x","stack":["a"]}`}
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		err := p.Verify(t.Context(), version("f", 1))
		e := hearth.AsError(err)
		if e.Code != hearth.CodeFunction || e.Function == nil || e.Function.Type != "ImportError" {
			t.Errorf("%v", err)
		}
	})
}

func TestInitThatNeverEnds(t *testing.T) {
	d := &fakeDriver{onInit: func() frame { time.Sleep(20 * time.Second); return frame{fReady, `{}`} }}
	synctest.Test(t, func(t *testing.T) {
		p := newPool(d, func(c *Config) { c.InitTimeout = 10 * time.Second })
		start := time.Now()
		err := p.Verify(t.Context(), version("f", 1))
		if hearth.ErrorCode(err) != hearth.CodeFunction || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		p.Close(t.Context()) //nolint:errcheck // the next line looks at the result
		if d.count() != 0 {
			t.Error("a sandbox is left")
		}
		time.Sleep(20 * time.Second) // the guest's goroutine ends
	})
}

func TestStartErrorIsTheHosts(t *testing.T) {
	d := &fakeDriver{beforeCreate: func(context.Context) error { return errors.New("no space left on device") }}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		if err := p.Verify(t.Context(), version("f", 1)); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("%v", err)
		}
	})
}

func TestTimeoutAsksThenKills(t *testing.T) {
	var obeys atomic.Bool
	d := &fakeDriver{script: func(g *fakeGuest, _ []byte) []frame {
		if obeys.Load() {
			<-g.canceled
			return []frame{{fErrorFr, `{"kind":"canceled","type":"CancelledError","message":""}`}}
		}
		select {
		case <-g.sb.exited:
		case <-time.After(time.Hour):
		}
		return nil
	}}
	for _, obey := range []bool{true, false} {
		t.Run(fmt.Sprint("obeys=", obey), func(t *testing.T) {
			obeys.Store(obey)
			d.created = 0
			run(t, d, func(c *Config) { c.Grace = time.Second }, func(t *testing.T, p *Pool) {
				v := version("f", 1)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				start := time.Now()
				_, _, err := do(ctx, p, v, "a")
				if hearth.ErrorCode(err) != hearth.CodeTimeout || time.Since(start) != 3*time.Second {
					t.Fatalf("after %v: %v", time.Since(start), err)
				}
				time.Sleep(2 * time.Second)
				want := 0
				if obey {
					want = 1
				}
				if d.count() != want {
					t.Errorf("%d instances after the grace, want %d", d.count(), want)
				}
			})
		})
	}
}

func TestRetireServesWhatWaits(t *testing.T) {
	d := &fakeDriver{script: func(_ *fakeGuest, invoke []byte) []frame {
		time.Sleep(time.Second)
		return answer(invocationID(invoke))
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, _, err := do(t.Context(), p, v, "a"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		p.Retire(v.Incarnation)
		wg.Wait()
		synctest.Wait()
		if d.count() != 0 {
			t.Error("a retired instance was kept")
		}
	})
}

// TestStartNobodyNeeds: when its caller has left and the version is retired, or
// the pool closes, a start is given up at once.
func TestStartNobodyNeeds(t *testing.T) {
	for _, how := range []string{"retire", "close"} {
		t.Run(how, func(t *testing.T) {
			d := &fakeDriver{beforeCreate: func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(20 * time.Second):
					return nil
				}
			}}
			synctest.Test(t, func(t *testing.T) {
				d.script = echo
				p := newPool(d, nil)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				v := version("f", 1)
				if err := p.Verify(ctx, v); hearth.ErrorCode(err) != hearth.CodeTimeout {
					t.Fatal(err)
				}
				if how == "retire" {
					p.Retire(v.Incarnation)
					synctest.Wait()
					p.mu.Lock()
					if n := len(p.instances); n != 0 {
						t.Errorf("%d instances are still starting", n)
					}
					p.mu.Unlock()
				}
				begin := time.Now()
				if err := p.Close(t.Context()); err != nil || time.Since(begin) != 0 {
					t.Errorf("Close after %v: %v", time.Since(begin), err)
				}
			})
		})
	}
}

// TestCallAfterStartWasGivenUp: a call that comes while a start that nobody
// needed is being ended gets an instance of its own.
func TestCallAfterStartWasGivenUp(t *testing.T) {
	var starts atomic.Int64
	d := &fakeDriver{beforeCreate: func(ctx context.Context) error {
		if starts.Add(1) > 1 {
			return nil
		}
		<-ctx.Done()
		time.Sleep(time.Second) // a host that is slow to give up
		return ctx.Err()
	}}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Verify(ctx, v); hearth.ErrorCode(err) != hearth.CodeTimeout {
			t.Fatal(err)
		}
		p.Retire(v.Incarnation)
		if body, _, err := do(t.Context(), p, v, "late"); err != nil || body != "late" {
			t.Errorf("%q, %v", body, err)
		}
	})
}

// TestCallAfterRetire: a call that comes late is served, but leaves nothing.
func TestCallAfterRetire(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		p.Retire(v.Incarnation)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if d.count() != 0 {
			t.Error("an instance of a retired version was kept")
		}
	})
}

func TestEvict(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, nil, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		for range 3 {
			_, lease, err := do(t.Context(), p, v, "a")
			if err != nil || !lease.Cold {
				t.Fatalf("cold %v, %v", lease.Cold, err)
			}
			if n := p.Evict(v.Incarnation); n != 1 {
				t.Fatalf("evicted %d", n)
			}
			synctest.Wait()
		}
	})
}

func TestFullPoolMakesRoom(t *testing.T) {
	d := &fakeDriver{}
	run(t, d, func(c *Config) { c.MaxInstances = 2 }, func(t *testing.T, p *Pool) {
		for _, name := range []string{"a", "b", "c", "d", "a"} {
			if _, _, err := do(t.Context(), p, version(name, 4), "x"); err != nil {
				t.Fatal(err)
			}
		}
		if d.peak() > 2 {
			t.Errorf("%d instances at once, want at most 2", d.peak())
		}
	})
}

// Queues that never end must not keep a full pool to themselves.
func TestFullPoolIsShared(t *testing.T) {
	for _, places := range []int{2, 3} {
		d := &fakeDriver{script: func(_ *fakeGuest, invoke []byte) []frame {
			time.Sleep(time.Second)
			return answer(invocationID(invoke))
		}}
		run(t, d, func(c *Config) { c.MaxInstances = places }, func(t *testing.T, p *Pool) {
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for range 6 {
				wg.Go(func() {
					for ctx.Err() == nil {
						do(ctx, p, version("busy", 10), "busy") //nolint:errcheck // ends with ctx
					}
				})
			}
			time.Sleep(500 * time.Millisecond)
			for range 3 {
				began := time.Now()
				if _, _, err := do(t.Context(), p, version("other", 1), "other"); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("%d places: it waited for %s", places, took)
				}
			}
			if d.peak() > places {
				t.Errorf("%d instances at once, want at most %d", d.peak(), places)
			}
			cancel()
			wg.Wait()
			time.Sleep(time.Second) // guests end what they do
		})
	}
}

func TestCloseBreaksWhatOutlivesTheDrain(t *testing.T) {
	d := &fakeDriver{script: func(g *fakeGuest, _ []byte) []frame { <-g.sb.exited; return nil }}
	synctest.Test(t, func(t *testing.T) {
		p := newPool(d, nil)
		v := version("f", 1)
		failed := make(chan error, 2)
		for range 2 { // one runs, one waits
			go func() {
				_, _, err := do(t.Context(), p, v, "a")
				failed <- err
			}()
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		if err := p.Close(ctx); err == nil || time.Since(start) != 5*time.Second {
			t.Errorf("Close after %v: %v", time.Since(start), err)
		}
		for range 2 {
			if err := <-failed; err == nil {
				t.Error("a call broken off got no error")
			}
		}
		if d.count() != 0 {
			t.Error("a sandbox is left")
		}
		if _, _, err := do(t.Context(), p, v, "b"); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("a call after Close: %v", err)
		}
	})
}
