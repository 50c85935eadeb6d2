package bench

import (
	"context"
	"fmt"
	"time"
)

const (
	// quietRate is how often the quiet function is called, each second.
	quietRate = 50
	// quietConnections are more than it needs: a late call does not hold up the next.
	quietConnections = 16
)

// flood measures a quiet function alone and while another one is flooded by
// callers who do not wait: with calls that compute, and with calls that wait.
func (p *pooling) flood(ctx context.Context) error {
	quiet, err := p.deploy(ctx, "echo", 4)
	if err != nil {
		return err
	}
	alone, err := paced(ctx, quiet, quietRate, quietConnections, p.o.Duration/5, p.o.Duration)
	if err != nil {
		return err
	}
	p.report.Quiet = &Paced{Rate: quietRate, Cell: newCell(quiet.name, quietConnections, []sample{alone})}
	p.logf("flood  none: p50 %.2f ms, p99 %.2f ms", p.report.Quiet.P50MS, p.report.Quiet.P99MS)
	for _, handler := range []string{"work", "sleep"} {
		flooded, err := p.deploy(ctx, handler, p.o.FloodConcurrency)
		if err != nil {
			return err
		}
		flooded.sheds = true
		for _, callers := range p.o.FloodCallers {
			f := Flood{Handler: handler, Callers: callers, Concurrency: p.o.FloodConcurrency}
			if err := p.floodWith(ctx, quiet, flooded, &f); err != nil {
				return err
			}
			p.logf("flood  %s, %d callers: p50 %.2f ms, p99 %.2f ms; %.0f calls/s, %.0f/s refused",
				handler, callers, f.Quiet.P50MS, f.Quiet.P99MS, f.Throughput, f.Refused)
			p.report.Floods = append(p.report.Floods, f)
		}
		if err := p.drop(ctx, flooded); err != nil {
			return err
		}
	}
	return p.drop(ctx, quiet)
}

func (p *pooling) floodWith(ctx context.Context, quiet, flooded target, f *Flood) error {
	warm, d := p.o.Duration/5, p.o.Duration
	type result struct {
		s   sample
		err error
	}
	// The flood begins before what is measured and ends with it.
	load := make(chan result, 1)
	go func() {
		s, err := generate(ctx, flooded, f.Callers, warm, d)
		load <- result{s, err}
	}()
	s, err := paced(ctx, quiet, quietRate, quietConnections, warm, d)
	r := <-load
	if err != nil {
		return err
	}
	if r.err != nil {
		return r.err
	}
	f.Quiet = newCell(quiet.name, quietConnections, []sample{s})
	f.Throughput, f.Refused = r.s.throughput, float64(r.s.refused)/d.Seconds()
	if f.Problem = r.s.problem; f.Problem != "" {
		f.Problem = fmt.Sprintf("the flood: %s", f.Problem)
	}
	// Those who still wait are answered before the next flood.
	return pause(ctx, min(d/5, time.Second))
}
