package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// check compares what the pool keeps count of with what there is.
func check(t *testing.T, p *Pool) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var used, leavingBytes int64
	var leaving, starts, queued int
	for inst := range p.instances {
		used += inst.charge
		if inst.state == hearth.InstanceStopping {
			leaving++
			leavingBytes += inst.charge
		}
		if inst.creating {
			starts++
		}
		if inst.state == hearth.InstanceStopped {
			t.Errorf("%s is stopped and still there", inst.id)
		}
		if inst.calls < 0 || inst.calls > max(inst.slots, 0) {
			t.Errorf("%s has %d calls and %d places", inst.id, inst.calls, inst.slots)
		}
	}
	active, resting := 0, 0
	for _, g := range p.groups {
		queued += len(g.waiters)
		if g.active() {
			active++
		}
		if _, ok := p.resting[g]; ok != (len(g.idle) > 0) {
			t.Errorf("%s has %d idle instances, rests: %v", g.version.Function, len(g.idle), ok)
		} else if ok {
			resting++
		}
		var starting, draining, idle int
		var calls int // without those whose instance has just ended under them
		for _, inst := range g.all {
			if inst.group != g || inst.gone() {
				t.Errorf("%s is %s in a group", inst.id, inst.state)
			}
			calls += inst.calls
			switch inst.state {
			case hearth.InstanceStarting:
				starting++
			case hearth.InstanceIdle, hearth.InstancePaused:
				idle++
			}
			if inst.draining {
				draining++
			}
		}
		if starting != g.starting || draining != g.draining || calls > g.inFlight || idle != len(g.idle) {
			t.Errorf("%s: starting %d, draining %d, in flight %d, idle %d; counted %d, %d, %d, %d",
				g.version.Function, starting, draining, calls, idle, g.starting, g.draining, g.inFlight, len(g.idle))
		}
		if starting > p.cfg.MaxStarts {
			t.Errorf("%s starts %d instances", g.version.Function, starting)
		}
		if n := g.total(); n > g.max() {
			t.Errorf("%s has %d instances, may have %d", g.version.Function, n, g.max())
		}
		if g.inFlight > g.version.Config.Concurrency {
			t.Errorf("%s has %d calls, may have %d", g.version.Function, g.inFlight, g.version.Config.Concurrency)
		}
		if len(g.waiters) > 0 && len(g.idle) > 0 && g.inFlight < g.places() {
			t.Errorf("%s: %d calls wait beside %d idle instances", g.version.Function, len(g.waiters), len(g.idle))
		}
	}
	if used != p.used || leaving != p.leaving.instances || leavingBytes != p.leaving.bytes || starts != p.starts || queued != p.queued {
		t.Errorf("bytes %d, leaving %d with %d, starts %d, queued %d; counted %d, %d, %d, %d, %d",
			used, leaving, leavingBytes, starts, queued, p.used, p.leaving.instances, p.leaving.bytes, p.starts, p.queued)
	}
	if active != p.active || resting != len(p.resting) {
		t.Errorf("%d groups are active, %d rest; counted %d, %d", active, resting, p.active, len(p.resting))
	}
	if len(p.instances) > p.cfg.MaxInstances || p.starts > p.cfg.MaxStarts {
		t.Errorf("%d instances, %d starts", len(p.instances), p.starts)
	}
}

// TestModel runs random calls, deploys, deletes and evictions against guests that
// answer, fail, crash, hang and are slow, and a host that fails at everything it
// is asked for. A simple model says what must hold at any time: each call ends
// once, with its own answer from its own version, or with an error that fits;
// what the pool counts is what there is; limits hold; nothing is left.
func TestModel(t *testing.T) {
	seeds, err := strconv.ParseUint(cmp.Or(os.Getenv("HEARTH_TEST_SEEDS"), "40"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { model(t, seed) })
	}
}

func model(t *testing.T, seed uint64) {
	const maxInstances = 6
	var rmu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 1))
	intn := func(n int) int { rmu.Lock(); defer rmu.Unlock(); return rnd.IntN(n) }
	pause := func(n int) { time.Sleep(time.Duration(intn(n)) * time.Millisecond) }
	sometimes := func(n int) error {
		if intn(n) == 0 {
			return errors.New("host failure")
		}
		return nil
	}
	var rest sync.WaitGroup // of guests
	d := &fakeDriver{concurrent: seed%2 == 0, memory: int64(10+intn(60)) << 20, cpu: float64(intn(2))}
	if seed%3 > 0 { // crowds are limited, or may be
		share := float64(seed % 3)
		d.meter = func(s *fakeSandbox) time.Duration { return time.Duration(share / 2 * float64(time.Since(s.born))) }
	}
	d.beforeCreate = func(context.Context) error { pause(200); return sometimes(10) }
	d.onMount = func(driver.Mount) error { pause(5); return sometimes(15) }
	d.onResize = func(driver.Limits) error { return sometimes(15) }
	d.onPause = func() error { pause(50); return sometimes(10) }
	d.onResume = func() error { pause(50); return sometimes(10) }
	d.onInit = func() frame {
		pause(50)
		if intn(20) == 0 {
			return frame{fInitError, `{"type":"E","message":"m"}`}
		}
		return frame{fReady, fmt.Sprintf(`{"concurrent":%t}`, d.concurrent)}
	}
	behave := func(g *fakeGuest, invoke []byte) []frame {
		rest.Add(1)
		defer rest.Done()
		select {
		case <-time.After(time.Duration(intn(100)) * time.Millisecond):
		case <-g.sb.exited:
		}
		switch intn(15) {
		case 0:
			return nil // crash
		case 1:
			return []frame{{fErrorFr, `{"kind":"handler","type":"E","message":"m"}`}}
		case 2:
			<-g.sb.exited // hang
			return nil
		}
		return answer(g.sb.function() + " " + invocationID(invoke))
	}
	d.script, d.onWarmup = behave, behave
	change := func(c *Config) {
		c.MaxInstances, c.MaxQueue, c.MaxQueued, c.MaxStarts, c.MaxStems = maxInstances, 20, 30, 3, 2
		c.Memory = int64(100+intn(400)) << 20
		c.Learner = keep(3 * time.Second)
		c.Artifacts = code(t.TempDir())
	}
	run(t, d, change, func(t *testing.T, p *Pool) {
		p.cores = 1
		begun := time.Now()
		p.cpuTimes = func() (busy, total float64) { // busy in every other second
			s := time.Since(begun).Seconds()
			return 100 * (math.Floor(s/2) + max(0, math.Mod(s, 2)-1)), 100 * s
		}
		_, events := p.Watch(t.Context())
		var wmu sync.Mutex
		states := map[string]hearth.InstanceState{}
		go func() {
			for e := range events {
				wmu.Lock()
				if states[e.Instance.ID] != e.From {
					t.Errorf("%s was %q before it became %s, not %q", e.Instance.ID, states[e.Instance.ID], e.Instance.State, e.From)
				}
				states[e.Instance.ID] = e.Instance.State
				wmu.Unlock()
			}
		}()
		number := 0
		make := func(name string) *hearth.Version {
			number++
			v := version(name, []int{1, 3, 10}[intn(3)])
			v.Number, v.Incarnation = number, fmt.Sprint(name, "-", number)
			v.Function = v.Incarnation // so that a guest can tell whose it is
			v.Config.InstanceConcurrency = min(v.Config.Concurrency, 1+intn(4))
			v.Config.Warm.Min = intn(2)
			v.Config.Memory = hearth.Bytes(64+intn(128)) << 20
			return v
		}
		versions := []*hearth.Version{make("a"), make("b"), make("c")}
		setLive := func() {
			var live []hearth.Version
			for _, v := range versions {
				live = append(live, *v)
			}
			p.SetLive(live)
		}
		setLive()
		var wg sync.WaitGroup
		for i := range 250 {
			v := versions[intn(len(versions))]
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+intn(2000))*time.Millisecond)
				defer cancel()
				if intn(10) == 0 {
					time.AfterFunc(time.Duration(intn(300))*time.Millisecond, cancel)
				}
				body, _, err := do(ctx, p, v, fmt.Sprint(i))
				switch code := hearth.ErrorCode(err); code {
				case "":
					if body != fmt.Sprint(v.Function, " ", i) {
						t.Errorf("call %d of %s got the answer %q", i, v.Function, body)
					}
				case hearth.CodeTimeout, hearth.CodeCanceled:
					if ctx.Err() == nil {
						t.Errorf("call %d: %v before its end", i, err)
					}
				case hearth.CodeFunction, hearth.CodeUnavailable, hearth.CodeExhausted:
				default:
					t.Errorf("call %d: %v", i, err)
				}
			})
			if intn(4) == 0 {
				pause(300)
				check(t, p)
			}
			switch intn(30) {
			case 0: // an update
				k := intn(len(versions))
				next := make(strings.Split(versions[k].Function, "-")[0])
				if err := p.Verify(t.Context(), next); err != nil {
					p.Retire(next.Incarnation)
					break
				}
				versions[k] = next
				setLive()
			case 1:
				p.Retire(v.Incarnation)
			case 2:
				p.Evict(v.Incarnation)
			case 3:
				p.Status()
			case 4:
				for _, sb := range d.sandboxes() {
					if intn(4) == 0 {
						sb.end(driver.Exit{Code: -1, Signal: 9})
					}
				}
			}
			check(t, p)
		}
		wg.Wait()
		check(t, p)
		p.SetLive(nil)
		time.Sleep(5 * time.Second) // idle instances expire
		time.Sleep(demandKept + time.Minute)
		synctest.Wait()
		check(t, p)
		if d.peak() > maxInstances {
			t.Errorf("%d sandboxes at once, want at most %d", d.peak(), maxInstances)
		}
		if n := d.count(); n != 0 {
			t.Errorf("%d sandboxes did not expire", n)
		}
		p.mu.Lock()
		if len(p.groups) != 0 || len(p.instances) != 0 || len(p.hungry) != 0 || len(p.stocks) != 0 || len(p.functions) != 0 || p.used != 0 {
			t.Errorf("left are %d groups, %d instances, %d hungry, %d stocks, %d functions, %d bytes",
				len(p.groups), len(p.instances), len(p.hungry), len(p.stocks), len(p.functions), p.used)
		}
		p.mu.Unlock()
		wmu.Lock()
		defer wmu.Unlock()
		for id, s := range states {
			if s != hearth.InstanceStopped {
				t.Errorf("the last that was told of %s is that it is %s", id, s)
			}
		}
		rest.Wait()
	})
}
