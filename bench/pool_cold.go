package bench

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// cold measures cold starts from stem cells under each driver and, by turns, the
// plain command that each is compared with.
func (p *pooling) cold(ctx context.Context) error {
	c, err := newComparing(CompareOptions{
		Server: p.o.Server, Drivers: slices.Clone(p.o.Drivers), Languages: []string{"python", "nodejs"}, Workloads: []string{"empty"},
		ImagesDir: p.o.ImagesDir, DockerHost: p.o.DockerHost,
	}.withDefaults(), p.progress)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	if err := c.findDrivers(ctx); err != nil {
		return err
	}
	if err := c.deployAll(ctx); err != nil {
		return err
	}
	c.findPlain(ctx)
	for _, cl := range c.cells {
		cold := PoolCold{Driver: cl.driver, Runtime: cl.runtime}
		if err := p.coldCell(ctx, c, cl, &cold); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			cold.Problem = oneLine(err)
		}
		p.report.Cold = append(p.report.Cold, cold)
		if cold.Problem != "" {
			p.logf("cold   %s %s: %s", cold.Driver, cold.Runtime, cold.Problem)
			continue
		}
		p.logf("cold   %s %s: %.1f ms, %s %.1f ms (medians of %d)",
			cold.Driver, cold.Runtime, cold.Wall.P50MS, cold.Reference, cold.Plain.P50MS, cold.Iterations)
	}
	for _, d := range c.report.Drivers {
		if d.Problem != "" {
			p.report.Cold = append(p.report.Cold, PoolCold{Driver: d.Name, Problem: d.Problem})
		}
	}
	return nil
}

// coldCell measures the cold starts of one function.
func (p *pooling) coldCell(ctx context.Context, c *comparing, cl *cell, out *PoolCold) error {
	if cl.problem != "" {
		return fmt.Errorf("%s", cl.problem)
	}
	reference, err := c.reference(ctx, cl)
	if err != nil {
		return err
	}
	out.Reference = reference.name
	// The first start of a command fills the page cache.
	if _, err := reference.start(ctx); err != nil {
		return err
	}
	var plain, wall []float64
	split := map[string][]float64{}
	for attempts := 0; len(wall) < p.o.ColdIterations; attempts++ {
		if attempts >= 3*p.o.ColdIterations {
			return fmt.Errorf("only %d of %d calls were cold", len(wall), attempts)
		}
		if err := evict(ctx, p.http, p.base, cl.function); err != nil {
			return err
		}
		if err := p.stocked(ctx, cl.driver); err != nil {
			return err
		}
		b, err := reference.start(ctx)
		if err != nil {
			return err
		}
		if err := pause(ctx, coldPause); err != nil {
			return err
		}
		d, resp, err := once(ctx, cl.target)
		if err != nil {
			return fmt.Errorf("a cold call failed: %s", describe(err, d))
		}
		if !resp.cold {
			continue
		}
		plain, wall = append(plain, millis(b)), append(wall, millis(d))
		for name, ms := range parseTiming(string(resp.timing)) {
			split[name] = append(split[name], ms)
		}
	}
	out.Iterations, out.Plain, out.Wall = len(wall), summarize(plain), summarize(wall)
	out.StartMS, out.InitMS = median(split["start"]), median(split["init"])
	return nil
}

// reference is what cold starts of a driver are compared with.
type reference struct {
	name  string
	start func(context.Context) (time.Duration, error)
}

// reference returns what the cold starts of a cell are compared with: the bare
// start of its interpreter, or the plain command that makes a container of its
// kind and calls the function in it.
func (c *comparing) reference(ctx context.Context, cl *cell) (reference, error) {
	if cl.driver == "native" {
		i, err := c.interpreter(ctx, cl)
		if err != nil {
			return reference{}, err
		}
		name := "python3 -c 1"
		if i.Language == "nodejs" {
			name = "node -e 1"
		}
		return reference{name, func(ctx context.Context) (time.Duration, error) { return bareStart(ctx, i) }}, nil
	}
	for _, plain := range c.plain {
		if plain.cell != cl {
			continue
		}
		return reference{plain.name, func(ctx context.Context) (time.Duration, error) {
			d, err := plain.start(ctx)
			if err == nil && plain.problem != "" {
				err = fmt.Errorf("%s", plain.problem)
			}
			return d, err
		}}, nil
	}
	return reference{}, fmt.Errorf("there is nothing to compare %s with", cl.driver)
}
