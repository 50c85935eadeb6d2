package bench

import (
	"context"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"
)

// idleCount is how many instances are held to find out what one needs.
const idleCount = 4

// idleServer takes the memory of the server before it has anything to do.
func (r *run) idleServer() {
	m := &r.report.Memory
	if r.pid == 0 {
		m.ServerProblem = "the server's process cannot be seen"
		return
	}
	n, err := rss(r.pid)
	if err != nil {
		m.ServerProblem = err.Error()
		return
	}
	m.ServerRSS = n
	// Then the load generator is part of it.
	m.ServerIsSelf = r.pid == os.Getpid()
	r.logf("idle server %.1f MB resident (process %d)", float64(n)/1e6, r.pid)
}

// idleInstances measures the memory of idle instances: what all processes below
// the server need with idleCount of them, minus what they need without, by
// proportional set size, which divides shared pages among those who share them.
func (r *run) idleInstances(ctx context.Context) error {
	m := &r.report.Memory
	if r.pid == 0 {
		m.InstanceProblem = "the server's process cannot be seen"
		return nil
	}
	function, err := r.deploy(ctx, "bench-idle", "main.wait")
	if err != nil {
		return err
	}
	t, err := r.target(ctx, function)
	if err != nil {
		return err
	}
	before, beforeN, problem, err := r.settled(ctx, function, true)
	if err != nil || problem != "" {
		m.InstanceProblem = problem
		return err
	}
	count := min(idleCount, r.o.FunctionConcurrency)
	if problem := together(ctx, t, count); problem != "" {
		m.InstanceProblem = problem
		return ctx.Err()
	}
	after, afterN, problem, err := r.settled(ctx, function, false)
	switch {
	case err != nil:
		return err
	case problem != "":
		m.InstanceProblem = problem
	case afterN < beforeN+count:
		m.InstanceProblem = fmt.Sprintf("%d instances added %d processes below the server: they run elsewhere", count, afterN-beforeN)
	default:
		m.Instances = count
		m.InstancePSS = (after - before) / int64(count)
		r.logf("idle instance %.1f MB (PSS, mean of %d)", float64(m.InstancePSS)/1e6, count)
	}
	return nil
}

// together calls t from n connections at once, so that n instances are needed.
func together(ctx context.Context, t target, n int) (problem string) {
	problems := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if d, _, err := once(ctx, t); err != nil {
				problems[i] = describe(err, d)
			}
		})
	}
	wg.Wait()
	for _, p := range problems {
		if p != "" {
			return p
		}
	}
	return ""
}

// settled waits until the processes below the server stay the same and returns
// their memory and number.
func (r *run) settled(ctx context.Context, function string, evict bool) (bytes int64, n int, problem string, err error) {
	if evict {
		if err := r.evict(ctx, function); err != nil {
			return 0, 0, err.Error(), ctx.Err()
		}
	}
	last, same := descendants(r.pid), 0
	for range 50 {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return 0, 0, "", err
		}
		now := descendants(r.pid)
		if same++; !maps.Equal(now, last) {
			last, same = now, 0
		}
		if same >= 5 {
			break
		}
	}
	for pid := range last {
		b, err := pss(pid)
		if err != nil {
			return 0, 0, err.Error(), nil
		}
		bytes += b
	}
	return bytes, len(last), "", nil
}
