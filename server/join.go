package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/gateway"
	"github.com/hearthrun/hearth/pool"
	"github.com/hearthrun/hearth/store"
	"github.com/hearthrun/hearth/telemetry"
)

// The types below fit one part's methods to what another asks for.

// lender is the pool as the gateway sees it.
type lender struct{ *pool.Pool }

func (l lender) Do(ctx context.Context, v *hearth.Version, fn func(context.Context, gateway.Instance) error) error {
	return l.Pool.Do(ctx, v, lent(fn))
}

func (l lender) Hold(ctx context.Context, v *hearth.Version, fn func(context.Context, gateway.Instance) error) error {
	return l.Pool.Hold(ctx, v, lent(fn))
}

func lent(fn func(context.Context, gateway.Instance) error) func(context.Context, *pool.Lease) error {
	return func(ctx context.Context, lease *pool.Lease) error {
		return fn(ctx, gateway.Instance{Conn: lease.Conn, ID: lease.Instance, Cold: lease.Cold, ColdReason: lease.ColdReason, Timings: lease.Timings})
	}
}

// instances is the pool by function name.
type instances struct {
	gateway *gateway.Gateway
	pool    *pool.Pool
}

func (i instances) Evict(function string) (int, error) {
	incarnations, err := i.gateway.Incarnations(function)
	n := 0
	for _, incarnation := range incarnations {
		n += i.pool.Evict(incarnation)
	}
	return n, err
}

// artifacts is the store as the API sees it.
type artifacts struct{ *store.Store }

func (a artifacts) Put(ctx context.Context, fill func(dir string) (string, error)) error {
	stage, err := a.Stage(ctx)
	if err != nil {
		return err
	}
	defer stage.Discard()
	digest, err := fill(stage.Dir())
	if err != nil {
		return err
	}
	_, err = stage.Commit(ctx, digest)
	return err
}

// builds is the builder as the API sees it.
type builds struct {
	builder *build.Builder
	drivers map[string]driver.Driver
	took    *prometheus.HistogramVec // by runtime and result
}

func (b builds) Manifest(dir, language string) (string, error) { return build.Manifest(dir, language) }

func (b builds) Build(ctx context.Context, r api.BuildRequest) (api.BuildResult, error) {
	d, ok := b.drivers[r.Isolation]
	if !ok {
		return api.BuildResult{}, hearth.Errorf(hearth.CodeInvalid, "isolation %q is unknown", r.Isolation)
	}
	began := time.Now()
	res, err := b.builder.Build(ctx, build.Request{
		Driver: d, Isolation: r.Isolation, Runtime: r.Runtime,
		Source: r.Source, Out: r.Out, Log: r.Log, Fresh: r.Fresh,
	})
	result := "installed"
	switch {
	case err != nil:
		result = "failed"
	case res.Cached:
		result = "cached"
	}
	b.took.WithLabelValues(r.Runtime.Name, result).Observe(time.Since(began).Seconds())
	return api.BuildResult{Summary: res.Summary, Cached: res.Cached}, err
}

// recorded reads invocation records, the newest included.
type recorded struct {
	*store.Store
	recorder *telemetry.Recorder
}

func (r recorded) Invocation(ctx context.Context, id string) (hearth.Invocation, error) {
	if err := r.recorder.Flush(ctx); err != nil {
		return hearth.Invocation{}, err
	}
	return r.Store.Invocation(ctx, id)
}

func (r recorded) Invocations(ctx context.Context, f hearth.InvocationFilter, before string, limit int) ([]hearth.Invocation, string, error) {
	if err := r.recorder.Flush(ctx); err != nil {
		return nil, "", err
	}
	return r.Store.Invocations(ctx, f, before, limit)
}

func (r recorded) TraceInvocations(ctx context.Context, of hearth.TraceID, limit int) ([]hearth.Invocation, error) {
	if err := r.recorder.Flush(ctx); err != nil {
		return nil, err
	}
	return r.Store.TraceInvocations(ctx, of, limit)
}

// counters count calls one after the other.
type counters []telemetry.Counter

func (c counters) Count(v *hearth.Invocation) {
	for _, counter := range c {
		counter.Count(v)
	}
}

// health is the server as the API sees it.
type health struct{ *Server }

func (h health) Ready() error { return h.readiness() }
