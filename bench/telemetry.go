package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// The targets of telemetry.
const (
	// targetRecorded is the throughput of a server as it is by default, as a part of that
	// of one that records and counts nothing.
	targetRecorded = 0.95
	// targetRecorderMB is by how much a process may grow that records calls for a minute.
	targetRecorderMB = 100.0
)

// TelemetryOptions say how to measure telemetry. Zero fields but Binary get the defaults
// that their comments name.
type TelemetryOptions struct {
	// Binary is the hearth that servers are started with, and Args what is added to
	// their command lines.
	Binary string
	Args   []string
	// Driver is the isolation technology of the function, native by default.
	Driver string
	// Rounds is how often all servers are measured by turns, 5 by default, for
	// RoundTime each, 3 s by default, with so many Connections, 8 by default.
	Rounds, Connections int
	RoundTime           time.Duration
	// Rate is how many calls are recorded each second, 5,000 by default, for Duration,
	// one minute by default.
	Rate     int
	Duration time.Duration
	// Version is Hearth's, and Command the command line, for the report.
	Version, Command string
}

func (o TelemetryOptions) withDefaults() TelemetryOptions {
	o.Driver = cmp.Or(o.Driver, hearth.DefaultIsolation)
	o.Rounds, o.Connections, o.RoundTime = cmp.Or(o.Rounds, 5), cmp.Or(o.Connections, 8), cmp.Or(o.RoundTime, 3*time.Second)
	o.Rate, o.Duration = cmp.Or(o.Rate, 5000), cmp.Or(o.Duration, time.Minute)
	o.Version = cmp.Or(o.Version, "unknown")
	return o
}

// Validate checks o. Errors: CodeInvalid.
func (o TelemetryOptions) Validate() error {
	o = o.withDefaults()
	for _, n := range []struct {
		what        string
		value, most int
	}{{"rounds", o.Rounds, 100}, {"connections", o.Connections, 1000}, {"calls a second", o.Rate, 100_000}} {
		if n.value < 1 || n.value > n.most {
			return hearth.Errorf(hearth.CodeInvalid, "%d %s are out of range", n.value, n.what).WithHint("choose between 1 and %d", n.most)
		}
	}
	for _, d := range []time.Duration{o.RoundTime, o.Duration} {
		if d < 100*time.Millisecond || d > time.Hour {
			return hearth.Errorf(hearth.CodeInvalid, "a duration of %s is out of range", d).WithHint("choose between 100ms and 1h")
		}
	}
	return nil
}

// TelemetryReport is what Telemetry found. Times are in milliseconds.
type TelemetryReport struct {
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	// Command is the command line, if the caller told it.
	Command string  `json:"command,omitempty"`
	Machine Machine `json:"machine"`
	// Servers are one as it is by default, one that records all calls, and one without
	// telemetry.
	Servers   []TelemetryServer `json:"servers"`
	Recording Recording         `json:"recording"`
}

// TelemetryServer is how a server does that records calls in one way.
type TelemetryServer struct {
	Name string `json:"name"`
	Cell
	// Ratio is the median, over the rounds, of its throughput as a part of that of the
	// server without telemetry.
	Ratio float64 `json:"ratio"`
	// CPU is how much processor time its process used for each call, in microseconds,
	// the median of the rounds. Other load on the machine does not matter much to it.
	CPU float64 `json:"cpu_us"`
}

// recorders are the ways of recording, and the flag for each.
var recorders = []struct{ name, flag string }{
	{"by default: 200 successes/s recorded", "--record-successes=200"},
	{"every call recorded", "--record-successes=-1"},
	{"without telemetry", "--telemetry=false"},
}

// Missed tells whether a check failed its target.
func (r TelemetryReport) Missed() bool {
	for _, c := range r.Checks() {
		if c.Verdict == Missed {
			return true
		}
	}
	return false
}

// Checks compares what was measured with its targets.
func (r TelemetryReport) Checks() []Check {
	rec := r.Recording
	usual, none := r.Servers[0], r.Servers[len(r.Servers)-1]
	throughput := Check{Name: "throughput with telemetry, of that without", Op: "≥", Target: targetRecorded, Raw: fmt.Sprintf("%.0f/s of %.0f/s", usual.Throughput, none.Throughput)}
	counted := Check{Name: "calls that were not counted", Op: "≤", Raw: fmt.Sprintf("%d of %d", rec.Calls-rec.Counted, rec.Calls)}
	stored := Check{Name: "calls without a record", Op: "≤", Raw: fmt.Sprintf("%d records, %d dropped, %d skipped", rec.Stored, rec.Dropped, rec.Skipped)}
	memory := Check{Name: "growth of memory, peak", Unit: "MB", Op: "≤", Target: targetRecorderMB, Raw: fmt.Sprintf("heap %.1f MB more at the end", float64(rec.HeapAfter-rec.HeapBefore)/1e6)}
	return []Check{
		throughput.of(usual.Ratio, cmp.Or(usual.Problem, none.Problem)),
		counted.of(float64(max(rec.Calls-rec.Counted, rec.Counted-rec.Calls)), ""),
		stored.of(float64(rec.Calls-rec.Stored), ""),
		memory.of(float64(rec.PeakMemory-rec.Memory)/1e6, ""),
	}
}

// Table returns the report for people, as plain text that ends with a newline.
func (r TelemetryReport) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hearth bench telemetry\n  %s\n  hearth %s, %s\n", r.Machine.line(), r.Version, r.Date.Format("2006-01-02 15:04 MST"))
	if r.Command != "" {
		fmt.Fprintf(&b, "  %s\n", r.Command)
	}
	rows := []row{{cells: []string{"", "calls/s", "p50 ms", "p99 ms", "ratio", "CPU µs"}}}
	for _, s := range r.Servers {
		rows = append(rows, row{cells: []string{s.Name, fmt.Sprintf("%.0f", s.Throughput), fmt.Sprintf("%.3f", s.P50MS), fmt.Sprintf("%.3f", s.P99MS), fmt.Sprintf("%.3f", s.Ratio), fmt.Sprintf("%.1f", s.CPU)}})
	}
	b.WriteString("\nWARM CALLS\n" + layout(rows))
	rec := r.Recording
	line := func(name, format string, args ...any) row {
		return row{cells: []string{name, fmt.Sprintf(format, args...)}}
	}
	b.WriteString("\nRECORDING\n" + layout([]row{
		line("calls", "%d in %.0f s, %.0f/s", rec.Calls, rec.Seconds, float64(rec.Calls)/rec.Seconds),
		line("counted", "%d", rec.Counted),
		line("records", "%d stored, %d dropped, %d skipped", rec.Stored, rec.Dropped, rec.Skipped),
		line("time of a call for it", "p50 %.1f µs, p99 %.1f µs, max %.1f ms", rec.RecordP50US, rec.RecordP99US, rec.RecordMaxUS/1000),
		line("disk", "%.0f bytes for each record, %.2f MB of metrics", rec.DiskPerCall, float64(rec.MetricsDisk)/1e6),
		line("memory", "%.1f MB before, %.1f MB at most", float64(rec.Memory)/1e6, float64(rec.PeakMemory)/1e6),
		line("heap in use", "%.1f MB before, %.1f MB after", float64(rec.HeapBefore)/1e6, float64(rec.HeapAfter)/1e6),
	}))
	b.WriteString("\nTARGETS\n" + layout(Report{Checks: r.Checks()}.checkRows()))
	return b.String()
}

// Telemetry measures what it costs to record and count calls: how much fewer calls a
// server serves, and what many of them a second need of memory and disk. It writes one
// line for each step to progress. It starts servers of its own and ends them. Errors:
// CodeInvalid for bad options, CodeCanceled or CodeTimeout when ctx ends, and what
// StartServer and deploying may return.
func Telemetry(ctx context.Context, o TelemetryOptions, progress io.Writer) (TelemetryReport, error) {
	o = o.withDefaults()
	r := TelemetryReport{Date: time.Now().UTC().Truncate(time.Second), Version: o.Version, Command: o.Command, Machine: describeMachine()}
	if err := o.Validate(); err != nil {
		return r, err
	}
	err := r.compare(ctx, o, progress)
	if err == nil {
		r.Recording, err = record(ctx, o.Rate, o.Duration, progress)
	}
	return r, wrapContext(ctx, err)
}

// compare measures servers that record calls in several ways by turns.
func (r *TelemetryReport) compare(ctx context.Context, o TelemetryOptions, progress io.Writer) (err error) {
	var targets []target
	var pids []int
	for _, way := range recorders {
		s, err := StartServer(ctx, o.Binary, append([]string{way.flag}, o.Args...)...)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Stop(ctx)) }()
		t, err := deployEcho(ctx, s, o.Driver)
		if err != nil {
			return err
		}
		if _, err := generate(ctx, t, o.Connections, o.RoundTime/2, o.RoundTime/2); err != nil { // instances start
			return err
		}
		targets, pids = append(targets, t), append(pids, s.PID)
	}
	samples, cpu := make([][]sample, len(targets)), make([][]float64, len(targets))
	for round := range o.Rounds {
		for i := range targets {
			i = (i + round) % len(targets)
			before := cpuTime(pids[i])
			s, err := generate(ctx, targets[i], o.Connections, 0, o.RoundTime)
			if err != nil {
				return err
			}
			if s.requests > 0 {
				cpu[i] = append(cpu[i], float64((cpuTime(pids[i])-before)/time.Microsecond)/float64(s.requests))
			}
			samples[i] = append(samples[i], s)
			fmt.Fprintf(progress, "round %d/%d  %-36s %.0f calls/s %s\n", round+1, o.Rounds, recorders[i].name, s.throughput, s.problem)
		}
	}
	none := samples[len(samples)-1]
	for i, list := range samples {
		var ratios []float64
		for round, of := range list {
			if n := none[round].throughput; n > 0 {
				ratios = append(ratios, of.throughput/n)
			}
		}
		r.Servers = append(r.Servers, TelemetryServer{Name: recorders[i].name, Cell: newCell(TargetHearth, o.Connections, list), Ratio: middle(ratios), CPU: middle(cpu[i])})
	}
	return nil
}

// cpuTime returns how much processor time a process has used, 0 if that is not known.
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	s, _ := parseStat(b)
	return s.cpu
}

// middle returns the median, 0 of nothing.
func middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return median(slices.Sorted(slices.Values(v)))
}

// deployEcho deploys the echo to a server, which is not used for anything else.
func deployEcho(ctx context.Context, s *Server, isolation string) (target, error) {
	c, err := client.New(s.URL, client.WithUserAgent("hearth-bench"))
	if err != nil {
		return target{}, err
	}
	defer c.Close()
	base, err := url.Parse(s.URL)
	if err != nil {
		return target{}, err
	}
	const name = "bench-telemetry"
	cfg := hearth.Config{Runtime: "python", Handler: "main.echo", Isolation: isolation, Concurrency: 2 * runtime.NumCPU()}
	if _, _, err := c.PutFunction(ctx, name, cfg, client.Code{Files: map[string]string{"main.py": poolFunction}}, 0); err != nil {
		return target{}, err
	}
	return echoTarget(ctx, base, name)
}
