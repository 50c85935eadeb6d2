package bench

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
)

// burst measures many calls at once of a function that has no instance: of one
// that computes, and of one that waits.
func (p *pooling) burst(ctx context.Context) error {
	for _, handler := range []string{"work", "sleep"} {
		b := Burst{Handler: handler, Calls: p.o.Burst}
		t, err := p.deploy(ctx, handler, p.o.Burst)
		if err != nil {
			return err
		}
		if err := p.burstOf(ctx, t, &b); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b.Problem = oneLine(err)
		}
		if b.Problem != "" {
			p.logf("burst  %s: %s", handler, b.Problem)
		} else {
			p.logf("burst  %s: %d failures, p99 %.0f ms of %.0f ms, %d instances, %.0f MB",
				handler, b.Failures, b.P99MS, b.BoundMS, b.Instances, float64(b.Memory)/1e6)
		}
		p.report.Bursts = append(p.report.Bursts, b)
		if err := p.drop(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func (p *pooling) burstOf(ctx context.Context, t target, b *Burst) error {
	// How long a call takes a machine that does nothing else, and a cold start: the
	// bound is made of these.
	var cold, service []float64
	for range p.o.Bursts {
		if err := p.emptied(ctx, t); err != nil {
			return err
		}
		d, r, err := once(ctx, t)
		if err != nil {
			return fmt.Errorf("a cold call failed: %s", describe(err, d))
		}
		if r.cold {
			cold = append(cold, millis(d))
		}
		for range 5 {
			d, _, err := once(ctx, t)
			if err != nil {
				return fmt.Errorf("a warm call failed: %s", describe(err, d))
			}
			service = append(service, millis(d))
		}
	}
	if len(cold) == 0 {
		return fmt.Errorf("no call was cold")
	}
	b.ColdMS, b.ServiceMS = median(cold), median(service)
	// No order of the calls is done earlier on these cores.
	b.BoundMS = b.ServiceMS*float64(b.Calls)/float64(p.report.Machine.Cores) + b.ColdMS
	var p50, p99, most []float64
	for range p.o.Bursts {
		if err := p.emptied(ctx, t); err != nil {
			return err
		}
		s, err := p.oneBurst(ctx, t, b)
		if err != nil {
			return err
		}
		b.Failures += s.failures
		if s.problem != "" {
			b.First = s.problem
		}
		r := newRound(s)
		p50, p99, most = append(p50, r.P50MS), append(p99, r.P99MS), append(most, r.MaxMS)
	}
	b.P50MS, b.P99MS, b.MaxMS = median(p50), median(p99), median(most)
	return nil
}

// emptied ends the instances of t's function and waits for the stem cells.
func (p *pooling) emptied(ctx context.Context, t target) error {
	if err := evict(ctx, p.http, p.base, t.name); err != nil {
		return err
	}
	if err := p.stocked(ctx, p.o.Drivers[0]); err != nil {
		return err
	}
	return pause(ctx, coldPause)
}

// oneBurst makes the calls, and watches the pool meanwhile.
func (p *pooling) oneBurst(ctx context.Context, t target, b *Burst) (sample, error) {
	workers, problem, err := connect(ctx, t, b.Calls)
	defer hangUp(workers)
	if err != nil || problem != "" {
		return sample{failures: 1, problem: problem}, err
	}
	watched, stop := context.WithCancel(ctx)
	defer stop()
	seen := make(chan burstPool, 1)
	go func() { seen <- p.watchBurst(watched, t.name) }()
	var wg sync.WaitGroup
	begin := time.Now()
	for _, w := range workers {
		w.expect(begin.Add(answerGrace))
		wg.Go(func() {
			end, outcome := w.step(ctx, begin)
			w.record(outcome, end.Sub(begin))
		})
	}
	wg.Wait()
	took := time.Since(begin)
	stop()
	pool := <-seen
	if ctx.Err() != nil {
		return sample{}, ctx.Err()
	}
	b.Instances = max(b.Instances, len(pool.instances))
	b.Charged, b.Budget = max(b.Charged, pool.charged), pool.budget
	b.Memory = max(b.Memory, pool.memory)
	return collect(workers, took), nil
}

// burstPool is what was seen of the pool during a burst.
type burstPool struct {
	instances map[string]bool // that served the function
	charged   int64           // the most the pool counted, in bytes
	budget    int64
	memory    int64 // by how much the memory available on the machine shrank
}

// burstPoll is the time between two looks at the pool: rare enough not to be part
// of the load.
const burstPoll = 50 * time.Millisecond

func (p *pooling) watchBurst(ctx context.Context, function string) burstPool {
	out := burstPool{instances: map[string]bool{}}
	before := available()
	look := func(ctx context.Context) {
		out.memory = max(out.memory, before-available())
		st, err := p.client.Pool(ctx, "")
		if err != nil {
			return
		}
		out.charged, out.budget = max(out.charged, st.MemoryUsed), st.MemoryBudget
		maps.Copy(out.instances, instancesOf(st, function))
	}
	for pause(ctx, burstPoll) == nil {
		look(ctx)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	look(last)
	return out
}

func instancesOf(st hearth.PoolStatus, function string) map[string]bool {
	ids := map[string]bool{}
	for _, i := range st.Instances {
		if i.Function == function {
			ids[i.ID] = true
		}
	}
	return ids
}
