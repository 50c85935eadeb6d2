package bench

import (
	"context"
	"sync"
	"time"
)

// paced puts an open-loop load on t: rate calls a second over n connections,
// whether those before are answered or not. It calls for warm first, then
// measures for d. A call for which no connection is free waits, and its latency
// counts from when it was due, as its caller would count. Errors and failures: as
// generate.
func paced(ctx context.Context, t target, rate float64, n int, warm, d time.Duration) (sample, error) {
	workers, problem, err := connect(ctx, t, n)
	defer hangUp(workers)
	if err != nil || problem != "" {
		return sample{failures: 1, problem: problem}, err
	}
	begin := time.Now()
	from, until := begin.Add(warm), begin.Add(warm+d)
	// All of them fit, so that nothing but the clock holds up the next call.
	due := make(chan time.Time, int(rate*(warm+d).Seconds())+1)
	var wg sync.WaitGroup
	for _, w := range workers {
		w.expect(until.Add(answerGrace))
		wg.Go(func() { w.follow(ctx, due, from) })
	}
	err = schedule(ctx, due, rate, begin, until)
	close(due)
	wg.Wait()
	if err != nil || ctx.Err() != nil {
		return sample{}, ctx.Err()
	}
	return collect(workers, d), nil
}

// schedule sends the time of each call when it has come. A clock that ticks late
// on a machine that sleeps is not the target's fault: the time is that of the
// tick, and what is overdue comes with it.
func schedule(ctx context.Context, due chan<- time.Time, rate float64, begin, until time.Time) error {
	interval := float64(time.Second) / rate
	for i := 0; ; i++ {
		at := begin.Add(time.Duration(float64(i) * interval))
		if !at.Before(until) {
			return nil
		}
		if wait := time.Until(at); wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return err
			}
		}
		select {
		case due <- time.Now():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow makes the calls that are due.
func (w *worker) follow(ctx context.Context, due <-chan time.Time, from time.Time) {
	defer w.hangUp()
	for start := range due {
		end, outcome := w.step(ctx, start)
		if outcome == stopped {
			return
		}
		if !start.Before(from) {
			w.record(outcome, end.Sub(start))
		}
		if w.conn == nil && !w.redial(ctx) {
			return
		}
	}
}
