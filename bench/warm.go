package bench

import (
	"context"
	"slices"
)

// warm measures every target at every concurrency, round after round. Within a
// round the targets take turns, and every other round goes backwards, so that a
// machine that becomes slower or faster meanwhile does so for all of them.
func (r *run) warm(ctx context.Context, function string) error {
	targets, err := r.targets(ctx, function)
	if err != nil {
		return err
	}
	samples := map[string]map[int][]sample{}
	for _, t := range targets {
		samples[t.name] = map[int][]sample{}
	}
	for round := range r.o.Rounds {
		for _, c := range r.o.Concurrencies {
			order := slices.Clone(targets)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, t := range order {
				s, err := generate(ctx, t, c, r.o.Warmup, r.o.Duration)
				if err != nil {
					return err
				}
				samples[t.name][c] = append(samples[t.name][c], s)
				line := newRound(s)
				if s.problem != "" {
					r.logf("round %d/%d  %-10s @%-3d  %s", round+1, r.o.Rounds, t.name, c, s.problem)
				} else {
					r.logf("round %d/%d  %-10s @%-3d  %8.0f requests/s  p50 %.3f ms  p99 %.3f ms",
						round+1, r.o.Rounds, t.name, c, line.Throughput, line.P50MS, line.P99MS)
				}
			}
		}
	}
	for _, t := range targets {
		for _, c := range r.o.Concurrencies {
			r.report.Cells = append(r.report.Cells, newCell(t.name, c, samples[t.name][c]))
		}
	}
	return r.halfLoad(ctx, targets[len(targets)-1])
}

// halfLoad measures Hearth, t, at half of its throughput: there, unlike in a
// closed loop, a late answer has others wait behind it.
func (r *run) halfLoad(ctx context.Context, t target) error {
	n := r.report.saturation()
	i := slices.IndexFunc(r.report.Cells, func(c Cell) bool { return c.Target == TargetHearth && c.Concurrency == n })
	if i < 0 || !r.report.Cells[i].Valid() {
		return nil
	}
	half := &Paced{Rate: r.report.Cells[i].Throughput / 2}
	var samples []sample
	for range r.o.Rounds {
		s, err := paced(ctx, t, half.Rate, n, r.o.Warmup, r.o.Duration)
		if err != nil {
			return err
		}
		samples = append(samples, s)
	}
	half.Cell = newCell(TargetHearth, n, samples)
	r.report.Half = half
	r.logf("half load   %.0f requests/s  p50 %.3f ms  p99 %.3f ms", half.Rate, half.P50MS, half.P99MS)
	return nil
}

// targets starts the references. A reference server that does not start fails
// the run: figures without it say nothing.
func (r *run) targets(ctx context.Context, function string) ([]target, error) {
	noop, err := r.keep(startNoop(ctx))
	if err != nil {
		return nil, err
	}
	plain, err := r.keep(startPlain(ctx, r.interp))
	if err != nil {
		return nil, err
	}
	proxy, err := r.keep(startProxy(ctx, plain.url))
	if err != nil {
		return nil, err
	}
	body := []byte(echoBody)
	var targets []target
	for _, t := range []struct {
		name, url string
		answer    []byte
	}{
		{TargetNoop, noop.url, []byte(noopAnswer)},
		{TargetPlain, plain.url, body},
		{TargetProxy, proxy.url, body},
	} {
		t, err := newTarget(ctx, t.name, t.url, body, t.answer)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	t, err := r.target(ctx, function)
	if err != nil {
		return nil, err
	}
	return append(targets, t), nil
}

// keep remembers a process for close.
func (r *run) keep(p *process, err error) (*process, error) {
	if err == nil {
		r.processes = append(r.processes, p)
	}
	return p, err
}
