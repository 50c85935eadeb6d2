package bench

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

//go:embed scripts/pool.py
var poolFunction string

// The parts of a measurement of the pool.
const (
	// PartCold is cold starts from stem cells.
	PartCold = "cold"
	// PartBurst is many calls at once of a function without instances.
	PartBurst = "burst"
	// PartFlood is a quiet function while another one is flooded.
	PartFlood = "flood"
	// PartMany is a server with many functions.
	PartMany = "many"
)

// PoolParts returns the parts in the order they are measured.
func PoolParts() []string { return []string{PartCold, PartBurst, PartFlood, PartMany} }

// PoolOptions say what of the pool to measure. Zero fields but Server and Binary
// get the defaults that their comments name.
type PoolOptions struct {
	// Server was started for this, by StartServer.
	Server *Server
	// Binary is the hearth that PartMany starts servers of its own with.
	Binary string
	// Parts are what is measured, of PoolParts; by default all.
	Parts []string
	// Drivers are the isolation technologies of cold starts. The first one is that
	// of all other parts. hearth.DefaultIsolation by default.
	Drivers []string
	// Duration is that of each measurement under load, 10 s by default.
	Duration time.Duration
	// ColdIterations is the number of cold starts of each kind, 20 by default.
	ColdIterations int
	// Burst is the number of calls at once, 200 by default; Bursts how often they
	// are made, 5 by default.
	Burst, Bursts int
	// FloodConcurrency is the most instances that the flooded function may have, 16
	// by default; FloodCallers is how many call it: by default 64, and 1,200, which
	// is more than may wait.
	FloodConcurrency int
	FloodCallers     []int
	// Functions is how many functions PartMany deploys, 10,000 by default. One of
	// a hundred is called.
	Functions int
	// ImagesDir and DockerHost are as in CompareOptions.
	ImagesDir, DockerHost string
	// Version is Hearth's, and Command the command line, for the report.
	Version, Command string

	// rest is how long the machine is watched doing nothing, before and after.
	rest time.Duration
}

func (o PoolOptions) withDefaults() PoolOptions {
	if len(o.Parts) == 0 {
		o.Parts = PoolParts()
	}
	if len(o.Drivers) == 0 {
		o.Drivers = []string{hearth.DefaultIsolation}
	}
	o.Duration = cmp.Or(o.Duration, 10*time.Second)
	o.ColdIterations = cmp.Or(o.ColdIterations, 20)
	o.Burst = cmp.Or(o.Burst, 200)
	o.Bursts = cmp.Or(o.Bursts, 5)
	o.FloodConcurrency = cmp.Or(o.FloodConcurrency, 16)
	if len(o.FloodCallers) == 0 {
		o.FloodCallers = []int{64, 1200}
	}
	o.Functions = cmp.Or(o.Functions, 10_000)
	o.DockerHost = cmp.Or(o.DockerHost, "unix:///var/run/docker.sock")
	o.Version = cmp.Or(o.Version, "unknown")
	o.rest = cmp.Or(o.rest, time.Second)
	return o
}

// Validate checks o. Errors: CodeInvalid.
func (o PoolOptions) Validate() error {
	o = o.withDefaults()
	bad := func(hint, format string, args ...any) error {
		return hearth.Errorf(hearth.CodeInvalid, format, args...).WithHint("%s", hint)
	}
	for _, p := range o.Parts {
		if !slices.Contains(PoolParts(), p) {
			return bad("choose from "+strings.Join(PoolParts(), ", "), "there is no part %q", p)
		}
	}
	for _, n := range o.FloodCallers {
		if n < 1 || n > 5000 {
			return bad("choose between 1 and 5000", "%d callers are out of range", n)
		}
	}
	for _, n := range []struct {
		what         string
		value, least int
		most         int
	}{
		{"cold starts", o.ColdIterations, 1, 1000},
		{"calls at once", o.Burst, 1, 1000},
		{"bursts", o.Bursts, 1, 100},
		{"instances of the flooded function", o.FloodConcurrency, 1, 1000},
		{"functions", o.Functions, 100, 100_000},
	} {
		if n.value < n.least || n.value > n.most {
			return bad(fmt.Sprintf("choose between %d and %d", n.least, n.most), "%d %s are out of range", n.value, n.what)
		}
	}
	if o.Duration < 10*time.Millisecond || o.Duration > 10*time.Minute {
		return bad("choose between 10ms and 10m", "a duration of %s is out of range", o.Duration)
	}
	return nil
}

// Pool measures what the pool of a server promises, each figure as a ratio to a
// reference of the same run. It writes one line for each step to progress. What
// cannot be measured is no error: the report says why. Functions that were
// deployed are deleted again. Errors: CodeInvalid for bad options, CodeCanceled
// or CodeTimeout when ctx ends, CodeUnavailable when the server does not answer,
// and what deploying may return.
func Pool(ctx context.Context, o PoolOptions, progress io.Writer) (PoolReport, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return PoolReport{}, err
	}
	p, err := newPooling(o, progress)
	if err != nil {
		return PoolReport{}, err
	}
	err = p.measure(ctx)
	p.close(ctx)
	if err != nil {
		return p.report, wrapContext(ctx, err)
	}
	return p.report, nil
}

// pooling is one measurement of a pool in progress.
type pooling struct {
	o        PoolOptions
	progress io.Writer
	client   *client.Client
	http     *http.Client
	base     *url.URL
	report   PoolReport

	deployed  int
	functions []string // deployed, to delete
}

func newPooling(o PoolOptions, progress io.Writer) (*pooling, error) {
	base, err := url.Parse(o.Server.URL)
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%q is not a URL", o.Server.URL).WithHint("take what StartServer returned")
	}
	p := &pooling{
		o: o, progress: progress, base: base,
		http: &http.Client{Transport: &http.Transport{DisableCompression: true}},
		report: PoolReport{
			Date: time.Now().UTC().Truncate(time.Second), Version: o.Version, Command: o.Command,
			Machine: describeMachine(), Driver: o.Drivers[0],
		},
	}
	p.client, err = client.New(o.Server.URL, client.WithHTTPClient(p.http), client.WithUserAgent("hearth-bench"))
	return p, err
}

func (p *pooling) logf(format string, args ...any) {
	fmt.Fprintf(p.progress, format+"\n", args...)
}

func (p *pooling) measure(ctx context.Context) error {
	if err := p.watch(ctx); err != nil {
		return err
	}
	for _, part := range PoolParts() {
		if !slices.Contains(p.o.Parts, part) {
			continue
		}
		measure := map[string]func(context.Context) error{
			PartCold: p.cold, PartBurst: p.burst, PartFlood: p.flood, PartMany: p.many,
		}[part]
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return p.watch(ctx)
}

// watch looks how busy the machine is while the benchmark does nothing.
func (p *pooling) watch(ctx context.Context) error {
	if err := pause(ctx, p.o.rest); err != nil { // what has just been done ends
		return err
	}
	share, err := busyShare(ctx, p.o.rest)
	if p.report.BusyAtRest = max(p.report.BusyAtRest, share); share > maxBusyAtRest {
		p.logf("the machine is %.0f%% busy with something else", 100*share)
	}
	return err
}

// deploy makes the function whose handler is of scripts/pool.py and returns its
// target.
func (p *pooling) deploy(ctx context.Context, handler string, concurrency int) (target, error) {
	name := fmt.Sprintf("bench-pool-%s-%d", handler, p.deployed)
	p.deployed++
	p.functions = append(p.functions, name)
	_, _, err := p.client.PutFunction(ctx, name, hearth.Config{
		Runtime: "python", Handler: "main." + handler, Isolation: p.o.Drivers[0], Concurrency: concurrency,
		Timeout: hearth.Duration(time.Minute),
	}, client.Code{Files: map[string]string{"main.py": poolFunction}}, 0)
	if err != nil {
		return target{}, err
	}
	return echoTarget(ctx, p.base, name)
}

// echoTarget is a function that returns what it gets.
func echoTarget(ctx context.Context, base *url.URL, function string) (target, error) {
	u := base.JoinPath("fn", function) // JoinPath would drop the slash
	return newTarget(ctx, function, u.String()+"/", []byte(echoBody), []byte(echoBody))
}

// drop deletes a function before the end, so that its instances take no part in
// what follows.
func (p *pooling) drop(ctx context.Context, t target) error {
	if err := p.client.DeleteFunction(ctx, t.name, 0); err != nil {
		return err
	}
	p.functions = slices.DeleteFunc(p.functions, func(name string) bool { return name == t.name })
	return nil
}

// stockTimeout bounds the wait for stem cells.
const stockTimeout = time.Minute

// stocked waits until the pool has all the stem cells it wants of an isolation,
// nothing starts and nothing stops. Errors: CodeTimeout if that takes too long.
func (p *pooling) stocked(ctx context.Context, isolation string) error {
	ctx, cancel := context.WithTimeout(ctx, stockTimeout)
	defer cancel()
	for {
		st, err := p.client.Pool(ctx, "")
		if err == nil && settledStock(st, isolation) {
			return nil
		}
		if err == nil {
			err = pause(ctx, 20*time.Millisecond)
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return hearth.Errorf(hearth.CodeTimeout, "the stock of stem cells of %s was not full within %s", isolation, stockTimeout)
		}
		if err != nil {
			return err
		}
	}
}

func settledStock(st hearth.PoolStatus, isolation string) bool {
	for _, i := range st.Instances {
		if i.State == hearth.InstanceStarting || i.State == hearth.InstanceStopping {
			return false
		}
	}
	stocks := 0
	for _, s := range st.Stems {
		if s.Isolation != isolation {
			continue
		}
		stocks++
		if s.Starting > 0 || s.Ready < s.Target {
			return false
		}
	}
	return stocks > 0
}

// close deletes what was deployed, also after ctx has ended.
func (p *pooling) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for _, name := range p.functions {
		if err := p.client.DeleteFunction(ctx, name, 0); err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound {
			p.logf("cannot delete %s: %v", name, err)
		}
	}
	p.http.CloseIdleConnections()
}
