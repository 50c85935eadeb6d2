package bench

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth/client"
	"github.com/hearthrun/hearth/telemetry"
)

// Bounds of the phases.
const (
	// warmRounds is in how many windows each warm cell is measured, after one
	// that is not counted.
	warmRounds = 4
	minWindow  = 100 * time.Millisecond
	maxWindow  = 2 * time.Second
	// maxHold bounds how long idle instances are held while others start; it is
	// shorter than answerGrace.
	maxHold = 20 * time.Second
)

// coldSamples are the cold calls of a cell.
type coldSamples struct {
	fresh    startSamples
	restored startSamples // from a snapshot
	warm     int          // calls that were not cold all the same
}

// startSamples are cold calls whose instances started in the same way.
type startSamples struct {
	wall  []float64
	split map[string][]float64 // of Server-Timing, by its names
	cpu   time.Duration        // that all of them used
}

func (s *startSamples) add(wall, cpu time.Duration, timing map[string]float64) {
	s.wall = append(s.wall, millis(wall))
	s.cpu += cpu
	if s.split == nil {
		s.split = map[string][]float64{}
	}
	for name, ms := range timing {
		s.split[name] = append(s.split[name], ms)
	}
}

// report returns the figures, nil if there are none.
func (s *startSamples) report() *ColdCalls {
	if len(s.wall) == 0 {
		return nil
	}
	return &ColdCalls{
		Wall: spread(s.wall), QueueMS: median(s.split["queue"]), StartMS: median(s.split["start"]),
		InitMS: median(s.split["init"]), RunMS: median(s.split["run"]),
		CPUPer1000: s.cpu.Seconds() * 1000 / float64(len(s.wall)),
	}
}

// groups returns the cells that can be measured, those of one workload in one
// language together.
func (c *comparing) groups() [][]*cell {
	var keys []string
	by := map[string][]*cell{}
	for _, cl := range c.cells {
		if !cl.runs() {
			continue
		}
		k := cl.workload + " " + language(cl.runtime)
		if by[k] == nil {
			keys = append(keys, k)
		}
		by[k] = append(by[k], cl)
	}
	var out [][]*cell
	for _, k := range keys {
		out = append(out, by[k])
	}
	return out
}

// coldRounds measures cold calls and plain commands by turns, round after round,
// until the time is over.
func (c *comparing) coldRounds(ctx context.Context, budget time.Duration) error {
	// The first start of a command fills the page cache.
	for _, p := range c.plain {
		if _, err := p.start(ctx); err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		p.walls = nil
	}
	begin := time.Now()
	for round := range maxColdRounds {
		if round >= minColdRounds && time.Since(begin)*time.Duration(round+1)/time.Duration(round) > budget {
			break
		}
		for _, group := range c.groups() {
			for i := range group {
				// Each driver is first, second and so on equally often.
				cl := group[(i+round)%len(group)]
				for _, p := range c.plain {
					if p.cell != cl || p.problem != "" {
						continue
					}
					if err := pause(ctx, coldPause); err != nil {
						return err
					}
					if _, err := p.start(ctx); err != nil && ctx.Err() != nil {
						return ctx.Err()
					}
				}
				if err := c.coldCall(ctx, cl); err != nil {
					return err
				}
			}
		}
		c.logf("cold round %d after %s", round+1, time.Since(begin).Round(time.Second))
	}
	return nil
}

// coldCall measures one.
func (c *comparing) coldCall(ctx context.Context, cl *cell) error {
	busy, own := busyTime(), ownTime()
	if err := c.evict(ctx, cl); err != nil || !cl.runs() {
		return err
	}
	if err := pause(ctx, coldPause); err != nil {
		return err
	}
	d, resp, err := once(ctx, cl.target)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		cl.fail("a cold call failed: %s", describe(err, d))
		c.logf("%s: %s", cl.function, cl.problem)
		return nil
	case !resp.cold:
		cl.cold.warm++
		return nil
	}
	cl.cold.add(d, max(busyTime()-busy-(ownTime()-own), 0), parseTiming(string(resp.timing)))
	return nil
}

func (s *coldSamples) add(wall, cpu time.Duration, timing map[string]float64) {
	// An instance that goes on where a snapshot was taken loads nothing.
	if timing["init"] == 0 && timing["start"] > 0 {
		s.restored.add(wall, cpu, timing)
	} else {
		s.fresh.add(wall, cpu, timing)
	}
}

// busyTime is how long the cores that may be used were busy, all together, since
// the machine started.
func busyTime() time.Duration {
	busy, _ := telemetry.CPUTimes()
	return time.Duration(busy * float64(clockTick))
}

// ownTime is the processor time of this process.
func ownTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// warmSamples are the windows of a cell with one number of connections.
type warmSamples struct {
	requests, cold int64
	rates          []float64
	latencies      *hdrhistogram.Histogram
	cpu            time.Duration
	problem        string
}

// warmAll measures warm calls: the drivers take turns in short windows.
func (c *comparing) warmAll(ctx context.Context, budget time.Duration) error {
	groups := c.groups()
	windows := 0
	for _, g := range groups {
		windows += len(g) * len(c.report.Connections) * warmRounds
	}
	if windows == 0 {
		return nil
	}
	window := min(max(budget/time.Duration(windows), minWindow), maxWindow)
	for _, group := range groups {
		for _, n := range c.report.Connections {
			for round := range warmRounds + 1 {
				order := slices.Clone(group)
				if round%2 == 1 {
					slices.Reverse(order)
				}
				for _, cl := range order {
					// The first is not counted: it starts the instances.
					if err := c.warmWindow(ctx, cl, n, window, round > 0); err != nil {
						return err
					}
				}
			}
		}
		c.logf("warm calls  %-8s %s", group[0].workload, language(group[0].runtime))
		for _, cl := range group {
			if err := c.evict(ctx, cl); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparing) warmWindow(ctx context.Context, cl *cell, n int, d time.Duration, counts bool) error {
	if !cl.runs() {
		return nil
	}
	members := c.family.members()
	more := append([]int{c.o.Server.PID}, c.daemons(cl, members)...)
	before := with(members, more...)
	s, err := generate(ctx, cl.target, n, 0, d)
	if err != nil {
		return err
	}
	w := cl.warm[n]
	if w == nil {
		w = &warmSamples{latencies: hdrhistogram.New(minLatency, maxLatency, 3)}
		cl.warm[n] = w
	}
	if w.problem == "" && s.problem != "" && (counts || s.failures > 0) {
		w.problem = s.problem
	}
	if !counts {
		return nil
	}
	w.cpu += cpuBetween(before, with(c.family.members(), more...))
	// Each connection's last answer may have come after the window.
	w.requests += s.requests
	w.cold += s.cold
	w.rates = append(w.rates, s.throughput)
	if s.latencies != nil {
		w.latencies.Merge(s.latencies)
	}
	return nil
}

// daemons are those that work for a cell's driver.
func (c *comparing) daemons(cl *cell, members map[int]procStat) []int {
	if cl.driver != "docker" {
		return nil
	}
	return daemons(c.o.DockerHost, members)
}

// report returns the figures of a cell.
func (cl *cell) report() ComparedCell {
	r := ComparedCell{Driver: cl.driver, Runtime: cl.runtime, Workload: cl.workload, Problem: cl.problem}
	if r.Problem == "" && len(cl.cold.fresh.wall)+len(cl.cold.restored.wall) == 0 && cl.cold.warm > 0 {
		r.Problem = "no call was cold"
	}
	r.Cold, r.Restored = cl.cold.fresh.report(), cl.cold.restored.report()
	for _, n := range slices.Sorted(maps.Keys(cl.warm)) {
		s := cl.warm[n]
		w := WarmCalls{Connections: n, Problem: s.problem, Requests: s.requests, Cold: s.cold}
		if s.requests > 0 {
			w.Throughput, w.Slowest, w.Fastest = median(s.rates), slices.Min(s.rates), slices.Max(s.rates)
			at := func(q float64) float64 { return millis(time.Duration(s.latencies.ValueAtQuantile(q))) }
			w.P50MS, w.P90MS, w.P99MS = at(50), at(90), at(99)
			w.CPUPer1000 = s.cpu.Seconds() * 1000 / float64(s.requests)
		}
		r.Warm = append(r.Warm, w)
	}
	return r
}

// idleAll weighs idle instances of the empty function under each driver.
func (c *comparing) idleAll(ctx context.Context) error {
	for _, cl := range c.cells {
		if err := c.evict(ctx, cl); err != nil {
			return err
		}
	}
	for _, lang := range c.o.Languages {
		for _, d := range c.drivers {
			rt, ok := pickRuntime(d.Runtimes, lang)
			if !ok {
				continue
			}
			idle := IdleInstances{Driver: d.Name, Runtime: rt.Name}
			if err := c.idle(ctx, d, rt, &idle); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				idle.Problem = oneLine(err)
			}
			if idle.Problem != "" {
				c.logf("idle        %-8s %s: %s", d.Name, lang, idle.Problem)
			} else {
				c.logf("idle        %-8s %s: %.1f MB each (PSS, %d instances)", d.Name, lang, float64(idle.PSS)/1e6, idle.Instances)
			}
			c.report.Idle = append(c.report.Idle, idle)
		}
	}
	return nil
}

func (c *comparing) idle(ctx context.Context, d client.Driver, rt client.Runtime, out *IdleInstances) error {
	cl := &cell{driver: d.Name, runtime: rt.Name, workload: "empty"}
	c.cells = append(c.cells, cl) // for close
	defer func() { c.cells = slices.DeleteFunc(c.cells, func(x *cell) bool { return x == cl }) }()
	name := "bench-idle-" + d.Name + "-" + language(rt.Name)
	others := len(c.family.members())
	if err := c.deployCell(ctx, cl, name, "main.wait", c.o.Instances); err != nil {
		return err
	}
	defer func() {
		// Now, and not at the end: they would weigh on what follows.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if err := c.client.DeleteFunction(ctx, name, 0); err != nil {
			c.logf("cannot delete %s: %v", name, err)
		}
		// The sandboxes end after the function: those of gVisor, many at once,
		// would be counted for the next driver.
		for len(c.family.members()) > others {
			if pause(ctx, 100*time.Millisecond) != nil {
				break
			}
		}
	}()
	if err := c.evict(ctx, cl); err != nil || !cl.runs() {
		out.Problem = cl.problem
		return err
	}
	before, free, err := c.weigh(ctx)
	if err != nil {
		return err
	}
	n, err := c.hold(ctx, cl)
	if err != nil {
		return err
	}
	after, left, err := c.weigh(ctx)
	if err != nil {
		return err
	}
	out.Instances = n
	if n == 0 || after.processes < before.processes+n {
		out.Problem = fmt.Sprintf("%d instances added %d processes that can be seen", n, after.processes-before.processes)
		return nil
	}
	out.Processes = float64(after.processes-before.processes) / float64(n)
	out.PSS = (after.pss - before.pss) / int64(n)
	out.Available = (free - left) / int64(n)
	if out.PSS > 0 {
		out.PerGiB = float64(1<<30) / float64(out.PSS)
	}
	return nil
}

// hold makes calls that all last until the same moment, so that each needs an
// instance of its own, and returns how many were started.
func (c *comparing) hold(ctx context.Context, cl *cell) (int, error) {
	each := time.Second
	for _, x := range c.cells {
		if x.driver == cl.driver && x.workload == "empty" && len(x.cold.fresh.wall) > 0 {
			each = time.Duration(median(x.cold.fresh.wall) * float64(time.Millisecond))
		}
	}
	until := time.Now().Add(min(2*time.Second+each*time.Duration(c.o.Instances), maxHold))
	u := c.base.JoinPath("fn", cl.function)
	body := strconv.FormatFloat(float64(until.UnixMilli())/1000, 'f', 3, 64)
	t, err := newTarget(ctx, cl.function, u.String()+"/", []byte(body), []byte("ok"))
	if err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	cold, problem := 0, error(nil)
	for range c.o.Instances {
		wg.Go(func() {
			_, resp, err := once(ctx, t)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				problem = err
			case resp.status == http.StatusOK && resp.cold:
				cold++
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return cold, problem
}

// weigh waits until the processes stay the same and returns what they use, and
// how much memory is available.
func (c *comparing) weigh(ctx context.Context) (usage, int64, error) {
	keys := func(m map[int]procStat) []int { return slices.Sorted(maps.Keys(m)) }
	last, same := keys(c.family.members()), 0
	for range 80 {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return usage{}, 0, err
		}
		now := keys(c.family.members())
		if same++; !slices.Equal(now, last) {
			last, same = now, 0
		}
		if same >= 5 {
			break
		}
	}
	u, err := memoryOf(c.family.members())
	return u, available(), err
}
