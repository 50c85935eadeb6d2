package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// Bounds of a comparison.
const (
	minCompare = 5 * time.Second
	maxCompare = 2 * time.Hour
	// minColdRounds are measured whatever the time says: fewer have no median.
	minColdRounds = 3
	// maxColdRounds end the phase early on a fast machine.
	maxColdRounds = 50
	// compareMemory is what each instance may use: the large dependencies need
	// more than the default.
	compareMemory = 256 << 20
	// deployTimeout bounds one deploy with its dependency build.
	deployTimeout = 5 * time.Minute
)

// CompareOptions say what to compare. Zero fields but Server get the defaults
// that their comments name.
type CompareOptions struct {
	// Server was started for the comparison, by StartServer.
	Server *Server
	// Drivers are the isolation technologies; by default all that the server has.
	Drivers []string
	// Languages are those of the functions; python and nodejs by default.
	Languages []string
	// Workloads are the names of Workloads; by default all.
	Workloads []string
	// Duration is how long it shall take in all, without deploying; 3 minutes by
	// default. It decides how often each cell is measured.
	Duration time.Duration
	// Instances is how many idle instances are held to weigh one; 20 by default.
	Instances int
	// ImagesDir is where the server's base images are, for the plain commands;
	// without it only the bare interpreter is started.
	ImagesDir string
	// DockerHost is the engine the server uses; the standard socket by default.
	DockerHost string
	// Version is Hearth's, and Command the command line, for the report.
	Version, Command string

	// rest is how long the machine is watched doing nothing, before and after.
	rest time.Duration
}

func (o CompareOptions) withDefaults() CompareOptions {
	if len(o.Languages) == 0 {
		o.Languages = []string{"python", "nodejs"}
	}
	if len(o.Workloads) == 0 {
		for _, w := range Workloads() {
			o.Workloads = append(o.Workloads, w.Name)
		}
	}
	o.Duration = cmp.Or(o.Duration, 3*time.Minute)
	o.Instances = cmp.Or(o.Instances, 20)
	o.DockerHost = cmp.Or(o.DockerHost, "unix:///var/run/docker.sock")
	o.Version = cmp.Or(o.Version, "unknown")
	o.rest = cmp.Or(o.rest, time.Second)
	return o
}

// Validate checks o. Errors: CodeInvalid.
func (o CompareOptions) Validate() error {
	o = o.withDefaults()
	bad := func(hint, format string, args ...any) error {
		return hearth.Errorf(hearth.CodeInvalid, format, args...).WithHint("%s", hint)
	}
	for _, l := range o.Languages {
		if l := language(l); l != "python" && l != "nodejs" {
			return bad("choose python, nodejs or both", "there are no workloads for runtime %q", l)
		}
	}
	for _, w := range o.Workloads {
		if !knownWorkload(w) {
			return bad("choose from "+workloadNames(), "there is no workload %q", w)
		}
	}
	switch {
	case o.Duration < minCompare || o.Duration > maxCompare:
		return bad(fmt.Sprintf("choose between %s and %s", minCompare, maxCompare), "a duration of %s is out of range", o.Duration)
	case o.Instances < 1 || o.Instances > 200:
		return bad("choose between 1 and 200", "%d idle instances are out of range", o.Instances)
	}
	return nil
}

// Compare measures the same functions under each driver of a server and returns
// what it found. It writes one line for each step to progress. What does not
// work, be it a driver, a function or a plain command, is no error: the
// Comparison says why. Errors: CodeInvalid for bad options, CodeUnsupported if
// no driver works, CodeCanceled or CodeTimeout when ctx ends, CodeUnavailable
// when the server does not answer. What was deployed is deleted again.
func Compare(ctx context.Context, o CompareOptions, progress io.Writer) (Comparison, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return Comparison{}, err
	}
	c, err := newComparing(o, progress)
	if err != nil {
		return Comparison{}, err
	}
	err = c.measure(ctx)
	c.close(ctx)
	if err != nil {
		return c.report, wrapContext(ctx, err)
	}
	c.report.judge()
	return c.report, nil
}

// comparing is one comparison in progress.
type comparing struct {
	o        CompareOptions
	progress io.Writer
	client   *client.Client
	http     *http.Client
	base     *url.URL
	family   *family
	cells    []*cell
	plain    []*plainStart
	drivers  []client.Driver // those that work, of those asked for
	report   Comparison
}

// cell is one deployed function.
type cell struct {
	driver, runtime string // the runtime by its full name
	workload        string
	function        string
	artifact        string
	target          target
	problem         string

	cold coldSamples
	warm map[int]*warmSamples // by connections
}

// runs tells whether the function can be measured.
func (c *cell) runs() bool { return c.problem == "" }

func (c *cell) fail(format string, args ...any) {
	if c.problem == "" {
		c.problem = fmt.Sprintf(format, args...)
	}
}

func newComparing(o CompareOptions, progress io.Writer) (*comparing, error) {
	base, err := url.Parse(o.Server.URL)
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%q is not a URL", o.Server.URL).WithHint("take what StartServer returned")
	}
	c := &comparing{
		o: o, progress: progress, base: base,
		http:   &http.Client{Transport: &http.Transport{DisableCompression: true}},
		family: newFamily(o.Server.PID, o.Server.DataDir),
		report: Comparison{
			Schema: comparisonSchema, Date: time.Now().UTC().Truncate(time.Second), Version: o.Version, Command: o.Command,
			Machine: describeMachine(), Connections: []int{1, 4 * runtime.NumCPU()}, Instances: runtime.NumCPU(),
		},
	}
	c.client, err = client.New(o.Server.URL, client.WithHTTPClient(c.http), client.WithUserAgent("hearth-bench"))
	return c, err
}

func (c *comparing) logf(format string, args ...any) {
	fmt.Fprintf(c.progress, format+"\n", args...)
}

// measure takes everything in order.
func (c *comparing) measure(ctx context.Context) error {
	begin := time.Now()
	if err := c.findDrivers(ctx); err != nil {
		return err
	}
	if err := c.deployAll(ctx); err != nil {
		return err
	}
	c.findPlain(ctx)
	if err := c.watch(ctx); err != nil {
		return err
	}
	// Cold starts are the fewest and the noisiest: they get the most time.
	if err := c.coldRounds(ctx, c.o.Duration*45/100); err != nil {
		return err
	}
	if err := c.idleAll(ctx); err != nil {
		return err
	}
	if err := c.warmAll(ctx, c.o.Duration*35/100); err != nil {
		return err
	}
	if err := c.watch(ctx); err != nil {
		return err
	}
	for _, cell := range c.cells {
		c.report.Cells = append(c.report.Cells, cell.report())
	}
	for _, p := range c.plain {
		c.report.Plain = append(c.report.Plain, p.report())
	}
	c.report.Seconds = time.Since(begin).Round(time.Second).Seconds()
	return nil
}

// watch looks how busy the machine is while the comparison does nothing.
func (c *comparing) watch(ctx context.Context) error {
	for _, cell := range c.cells {
		if err := c.evict(ctx, cell); err != nil {
			return err
		}
	}
	if err := pause(ctx, c.o.rest); err != nil { // what has just been done ends
		return err
	}
	share, err := busyShare(ctx, c.o.rest)
	if c.report.BusyAtRest = max(c.report.BusyAtRest, share); share > maxBusyAtRest {
		c.logf("the machine is %.0f%% busy with something else", 100*share)
	}
	return err
}

// findDrivers asks the server what it has.
func (c *comparing) findDrivers(ctx context.Context) error {
	all, err := c.client.Drivers(ctx)
	if err != nil {
		return err
	}
	known := map[string]client.Driver{}
	for _, d := range all {
		known[d.Name] = d
	}
	names := c.o.Drivers
	if len(names) == 0 {
		for _, d := range all {
			names = append(names, d.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(driverOrder(a), driverOrder(b)), cmp.Compare(a, b)) })
	for _, name := range slices.Compact(names) {
		d, ok := known[name]
		r := ComparedDriver{Name: name, Summary: d.Summary, Works: d.Works}
		switch {
		case !ok:
			r.Problem = "this hearth has no such driver"
		case !d.Works:
			var missing []string
			for _, p := range d.Missing {
				missing = append(missing, p.What)
			}
			r.Problem = strings.Join(missing, "; ")
		default:
			c.drivers = append(c.drivers, d)
		}
		if r.Problem != "" {
			c.logf("%-8s does not work: %s", name, r.Problem)
		}
		c.report.Drivers = append(c.report.Drivers, r)
	}
	if len(c.drivers) == 0 {
		return hearth.Errorf(hearth.CodeUnsupported, "none of the drivers works on this host").
			WithHint("hearth doctor says what is missing")
	}
	return nil
}

// driverOrder sorts the built-in sandbox first and the strongest wall last.
func driverOrder(name string) int {
	i := slices.Index([]string{"native", "runc", "docker", "gvisor"}, name)
	if i < 0 {
		return 100
	}
	return i
}

// deployAll deploys every function under every driver. A deploy that fails
// leaves a cell with its reason.
func (c *comparing) deployAll(ctx context.Context) error {
	var random [3]byte
	_, _ = rand.Read(random[:])
	for _, lang := range c.o.Languages {
		for _, w := range c.o.Workloads {
			var answer []byte
			for _, d := range c.drivers {
				cl := &cell{driver: d.Name, runtime: lang, workload: w, warm: map[int]*warmSamples{}}
				c.cells = append(c.cells, cl)
				rt, ok := pickRuntime(d.Runtimes, lang)
				if !ok {
					cl.fail("the driver %s has no runtime %s here", d.Name, lang)
					continue
				}
				cl.runtime = rt.Name
				name := fmt.Sprintf("bench-%s-%s-%s-%s", w, language(lang), d.Name, hex.EncodeToString(random[:]))
				if err := c.deployCell(ctx, cl, name, "main.handler", c.report.Instances); err != nil {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					cl.fail("it cannot be deployed: %s", oneLine(err))
					c.logf("%s, %s on %s: %s", w, lang, d.Name, cl.problem)
					continue
				}
				// The first driver says what is right: a function that does something
				// else under another one is not comparable.
				got, err := c.answerOf(ctx, cl)
				switch {
				case ctx.Err() != nil:
					return ctx.Err()
				case err != nil:
					cl.fail("its first call failed: %s", oneLine(err))
				case answer == nil:
					answer = got
				case string(answer) != string(got):
					cl.fail("it answers %q here and %q under the first driver", clip(got), clip(answer))
				}
				cl.target.answer = answer
				if cl.problem != "" {
					c.logf("%s, %s on %s: %s", w, lang, d.Name, cl.problem)
				}
			}
		}
		c.logf("deployed the functions in %s", lang)
	}
	return nil
}

// oneLine is an error's text without its further lines.
func oneLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// deployCell makes the function of a cell and its target.
func (c *comparing) deployCell(ctx context.Context, cl *cell, name, handler string, concurrency int) error {
	ctx, cancel := context.WithTimeout(ctx, deployTimeout)
	defer cancel()
	cl.function = name // also a deploy that fails half-way may have made it
	f, _, err := c.client.PutFunction(ctx, name, hearth.Config{
		Runtime: cl.runtime, Handler: handler, Isolation: cl.driver, Concurrency: concurrency,
		Memory: compareMemory, Egress: hearth.EgressNone, Timeout: hearth.Duration(2 * time.Minute),
	}, workloadCode(cl.workload, language(cl.runtime)), 0)
	if err != nil {
		return err
	}
	cl.artifact = f.Artifact
	u := c.base.JoinPath("fn", name)
	cl.target, err = newTarget(ctx, name, u.String()+"/", []byte(echoBody), nil)
	return err
}

// answerOf calls a function once and returns its answer.
func (c *comparing) answerOf(ctx context.Context, cl *cell) ([]byte, error) {
	_, r, err := exchange(ctx, cl.target)
	if err != nil {
		return nil, err
	}
	if r.status != http.StatusOK {
		return nil, fmt.Errorf("status %d: %s", r.status, strings.TrimSpace(string(clip(r.body))))
	}
	return slices.Clone(r.body), nil
}

// evict ends the idle instances of a cell's function.
func (c *comparing) evict(ctx context.Context, cl *cell) error {
	if cl.function == "" || !cl.runs() {
		return nil
	}
	err := evict(ctx, c.http, c.base, cl.function)
	if err != nil && ctx.Err() == nil {
		cl.fail("%s", oneLine(err))
		return nil
	}
	return err
}

// close deletes what was deployed, also after ctx has ended.
func (c *comparing) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*cleanupTime)
	defer cancel()
	for _, p := range c.plain {
		p.close()
	}
	for _, cl := range c.cells {
		if cl.function == "" {
			continue
		}
		if err := c.client.DeleteFunction(ctx, cl.function, 0); err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound {
			if errors.Is(err, context.DeadlineExceeded) {
				break // the server ends next, and takes them along
			}
			c.logf("cannot delete %s: %v", cl.function, err)
		}
	}
	c.http.CloseIdleConnections()
}
