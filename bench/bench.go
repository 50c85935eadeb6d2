// Package bench is what hearth bench runs: it measures a running Hearth server
// over its own HTTP front door and, in the same run with the same load
// generator, the references it is to be judged by: a Go net/http no-op, one
// reverse-proxy hop to a plain HTTP server in the function's language, and a
// bare start of the interpreter. docs/benchmarks.md tells how to read it.
package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

var (
	//go:embed scripts/main.py
	pythonFunction string
	//go:embed scripts/main.mjs
	nodeFunction string
)

// echoBody is what warm and cold calls send, and what the echo answers.
const echoBody = `{"hello":"hearth"}`

// cleanupTime is how long deleting the functions may take after a cancel.
const cleanupTime = 30 * time.Second

// Options say what to measure. Zero fields but BaseURL get the defaults that
// their comments name.
type Options struct {
	// BaseURL is a running server on a loopback address.
	BaseURL string
	// Driver is the isolation technology, hearth.DefaultIsolation by default.
	Driver string
	// Runtime is that of the functions, "python" by default.
	Runtime string
	// Concurrencies are the numbers of connections, 1, 8 and 64 by default.
	Concurrencies []int
	// FunctionConcurrency is the function's own limit of instances, by default
	// two for each core: an echo is bound by the CPU, and more instances would
	// only add context switches.
	FunctionConcurrency int
	// Rounds is how often each warm cell is measured, 3 by default.
	Rounds int
	// Warmup precedes each measured Duration, 1 s and 3 s by default.
	Warmup, Duration time.Duration
	// ColdIterations is the number of cold starts, 20 by default; below 0 none.
	ColdIterations int
	// Interpreter is the program the references use; by default the one that
	// the driver's runtime comes from, else the one on PATH.
	Interpreter string
	// ServerPID is the server's process; by default the one that listens on the
	// port of BaseURL, if it can be seen.
	ServerPID int
	// ReadyTime is how long the server took to become ready, when the caller
	// knows it from StartServer; 0 leaves that check out.
	ReadyTime time.Duration
	// Version is Hearth's, and Command the command line, for the report.
	Version, Command string

	// rest is how long the machine is watched doing nothing, before and after.
	rest time.Duration
}

func (o Options) withDefaults() Options {
	o.Driver = cmp.Or(o.Driver, hearth.DefaultIsolation)
	o.Runtime = cmp.Or(o.Runtime, "python")
	if len(o.Concurrencies) == 0 {
		o.Concurrencies = []int{1, 8, 64}
	}
	o.Concurrencies = slices.Clone(o.Concurrencies)
	slices.Sort(o.Concurrencies)
	o.Concurrencies = slices.Compact(o.Concurrencies)
	o.FunctionConcurrency = cmp.Or(o.FunctionConcurrency, 2*runtime.NumCPU())
	o.Rounds = cmp.Or(o.Rounds, 3)
	o.Warmup = cmp.Or(o.Warmup, time.Second)
	o.Duration = cmp.Or(o.Duration, 3*time.Second)
	o.ColdIterations = cmp.Or(o.ColdIterations, 20)
	o.Version = cmp.Or(o.Version, "unknown")
	o.rest = cmp.Or(o.rest, time.Second)
	return o
}

// validate checks o with its defaults. Errors: CodeInvalid.
func (o Options) validate() error {
	bad := func(hint, format string, args ...any) error {
		return hearth.Errorf(hearth.CodeInvalid, format, args...).WithHint("%s", hint)
	}
	switch l := language(o.Runtime); {
	case o.BaseURL == "":
		return bad("write for example http://127.0.0.1:8080", "the benchmark has no server's URL")
	case l != "python" && l != "nodejs":
		return bad("choose python or nodejs, or a pinned one such as python3.11", "there is no benchmark function for runtime %q", o.Runtime)
	case o.Rounds < 1 || o.Rounds > 100:
		return bad("choose between 1 and 100", "%d rounds are out of range", o.Rounds)
	case o.Duration < 10*time.Millisecond || o.Duration > 10*time.Minute:
		return bad("choose between 10ms and 10m", "a duration of %s is out of range", o.Duration)
	case o.Warmup < 0 || o.Warmup > 10*time.Minute:
		return bad("choose at most 10m", "a warm-up of %s is out of range", o.Warmup)
	case o.ColdIterations > 10000:
		return bad("choose at most 10000", "%d cold starts are too many", o.ColdIterations)
	}
	for _, c := range o.Concurrencies {
		if c < 1 || c > 1024 {
			return bad("choose between 1 and 1024", "concurrency %d is out of range", c)
		}
	}
	return nil
}

// Run measures the server and returns what it found. It writes one line for
// each step to progress. It deploys functions named bench-echo-… and
// bench-idle-… and deletes them again, also when ctx ends; then the error is
// CodeCanceled or CodeTimeout and the Report is incomplete. A cell that could
// not be measured is no error: the Report says why. Other errors: CodeInvalid
// for bad options, CodeUnavailable when no server answers, and what deploying
// may return.
func Run(ctx context.Context, o Options, progress io.Writer) (Report, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Report{}, err
	}
	r, err := newRun(ctx, o, progress)
	if err != nil {
		return Report{}, wrapContext(ctx, err)
	}
	err = r.measure(ctx)
	r.close(ctx)
	if err != nil {
		return r.report, wrapContext(ctx, err)
	}
	r.report.judge()
	return r.report, nil
}

// wrapContext gives the end of ctx its code.
func wrapContext(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return hearth.Errorf(hearth.CodeTimeout, "the benchmark was out of time: %w", err)
	case ctx.Err() != nil:
		return hearth.Errorf(hearth.CodeCanceled, "the benchmark was interrupted: %w", err)
	}
	return err
}

// run is one benchmark in progress.
type run struct {
	o        Options
	progress io.Writer
	client   *client.Client
	http     *http.Client
	base     *url.URL
	pid      int // of the server, 0 if it cannot be seen
	interp   interpreter
	report   Report

	functions []string // deployed, to delete
	processes []*process
}

func newRun(ctx context.Context, o Options, progress io.Writer) (*run, error) {
	base, err := url.Parse(o.BaseURL)
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%q is not a URL", o.BaseURL).WithHint("write for example http://127.0.0.1:8080")
	}
	addr, err := loopback(ctx, base)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableCompression: true}
	r := &run{o: o, progress: progress, base: base, http: &http.Client{Transport: transport}}
	if r.client, err = client.New(o.BaseURL, client.WithHTTPClient(r.http), client.WithUserAgent("hearth-bench")); err != nil {
		return nil, err
	}
	if err := r.client.Ready(ctx); err != nil {
		return nil, err
	}
	name, source := o.Runtime, ""
	if rt, ok := r.runtime(ctx); ok {
		name, source = rt.Name, rt.Source
	}
	if r.interp, err = r.interpreter(ctx, name, source); err != nil {
		return nil, err
	}
	if r.pid = o.ServerPID; r.pid == 0 {
		_, port, _ := net.SplitHostPort(addr)
		n, _ := strconv.Atoi(port)
		r.pid, _ = listener(n)
	}
	r.report = Report{
		Date: time.Now().UTC().Truncate(time.Second), Version: o.Version, Command: o.Command,
		Machine: describeMachine(), Driver: o.Driver, Runtime: name, Interpreter: r.interp.Path,
		Rounds: o.Rounds, WarmupSeconds: o.Warmup.Seconds(), DurationSeconds: o.Duration.Seconds(),
		FunctionConcurrency: o.FunctionConcurrency, RequestBytes: len(echoBody),
	}
	return r, nil
}

// runtime asks the server which runtime the functions will get.
func (r *run) runtime(ctx context.Context) (client.Runtime, bool) {
	drivers, err := r.client.Drivers(ctx)
	if err != nil {
		return client.Runtime{}, false
	}
	for _, d := range drivers {
		if d.Name == r.o.Driver {
			return pickRuntime(d.Runtimes, r.o.Runtime)
		}
	}
	return client.Runtime{}, false
}

// interpreter finds the program for the references. A driver with images has
// its interpreter inside them; then the host's own is used.
func (r *run) interpreter(ctx context.Context, name, source string) (interpreter, error) {
	if r.o.Interpreter != "" {
		return findInterpreter(ctx, name, r.o.Interpreter)
	}
	i, err := findInterpreter(ctx, name, source)
	if source != "" && hearth.ErrorCode(err) == hearth.CodeNotFound {
		return findInterpreter(ctx, name, "")
	}
	return i, err
}

func (r *run) logf(format string, args ...any) {
	fmt.Fprintf(r.progress, format+"\n", args...)
}

// measure takes everything in order, from what needs an idle server on.
func (r *run) measure(ctx context.Context) error {
	r.logf("measuring %s on %s at %s", r.report.Runtime, r.o.Driver, r.o.BaseURL)
	if r.o.ReadyTime > 0 {
		ms := millis(r.o.ReadyTime)
		r.report.ReadyMS = &ms
	}
	if err := r.rest(ctx); err != nil {
		return err
	}
	r.idleServer()
	echo, err := r.deploy(ctx, "bench-echo", "main.handler")
	if err != nil {
		return err
	}
	if err := r.coldStarts(ctx, echo); err != nil {
		return err
	}
	if err := r.idleInstances(ctx); err != nil {
		return err
	}
	if err := r.warm(ctx, echo); err != nil {
		return err
	}
	for _, p := range r.processes {
		p.close()
	}
	return r.rest(ctx)
}

// rest looks how busy the machine is while the benchmark does nothing.
func (r *run) rest(ctx context.Context) error {
	if err := pause(ctx, r.o.rest/4); err != nil { // what has just been done ends
		return err
	}
	share, err := busyShare(ctx, r.o.rest)
	if r.report.BusyAtRest = max(r.report.BusyAtRest, share); share > maxBusyAtRest {
		r.logf("the machine is %.0f%% busy with something else", 100*share)
	}
	return err
}

// deploy makes a function of the run's driver and runtime and returns its name.
func (r *run) deploy(ctx context.Context, prefix, handler string) (string, error) {
	var random [4]byte
	_, _ = rand.Read(random[:])
	name := prefix + "-" + hex.EncodeToString(random[:])
	code := client.Code{Files: map[string]string{"main.py": pythonFunction}}
	if language(r.o.Runtime) == "nodejs" {
		code.Files = map[string]string{"main.mjs": nodeFunction}
	}
	// Also a deploy that fails half-way may have made the function.
	r.functions = append(r.functions, name)
	_, _, err := r.client.PutFunction(ctx, name, hearth.Config{
		Runtime: r.o.Runtime, Handler: handler, Isolation: r.o.Driver,
		Concurrency: r.o.FunctionConcurrency,
	}, code, 0)
	if err != nil {
		return "", err
	}
	r.logf("deployed %s", name)
	return name, nil
}

// evict ends the idle instances of a function. Errors: CodeUnsupported when the
// server cannot.
func (r *run) evict(ctx context.Context, name string) error {
	return evict(ctx, r.http, r.base, name)
}

func evict(ctx context.Context, h *http.Client, base *url.URL, name string) error {
	u := base.JoinPath("v1", "functions", name, "instances")
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, u.String(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := h.Do(req)
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "evict the instances of %s: %w", name, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return hearth.Errorf(hearth.CodeUnsupported, "the server did not evict the instances of %s: %s", name, resp.Status)
	}
	return nil
}

// target is the function's own URL.
func (r *run) target(ctx context.Context, name string) (target, error) {
	u := r.base.JoinPath("fn", name) // JoinPath would drop the slash
	return newTarget(ctx, TargetHearth, u.String()+"/", []byte(echoBody), []byte(echoBody))
}

// close removes what Run made, also after ctx has ended.
func (r *run) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for _, p := range r.processes {
		p.close()
	}
	for _, name := range r.functions {
		if err := r.client.DeleteFunction(ctx, name, 0); err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound {
			r.logf("cannot delete %s: %v; delete it with: hearth delete %s", name, err, name)
		}
	}
	r.http.CloseIdleConnections()
}

// pause waits for d or the end of ctx, whose error it returns.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
