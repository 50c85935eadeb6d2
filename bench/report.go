package bench

import (
	"fmt"
	"slices"
	"time"
)

// The targets of warm cells.
const (
	// TargetHearth is the echo function through Hearth's whole path.
	TargetHearth = "hearth"
	// TargetNoop is a Go net/http server that does nothing.
	TargetNoop = "go-noop"
	// TargetPlain is the plain HTTP server in the function's language.
	TargetPlain = "plain"
	// TargetProxy is TargetPlain behind one httputil.ReverseProxy hop.
	TargetProxy = "proxy-hop"
)

// Report is what Run found. It holds raw figures, the checks made of them, and
// what is needed to judge and repeat them. Times are in milliseconds.
type Report struct {
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	// Command is the command line, if the caller told it.
	Command string  `json:"command,omitempty"`
	Machine Machine `json:"machine"`
	Driver  string  `json:"driver"`
	// Runtime is the pinned one ("python3.11") if the server told it.
	Runtime string `json:"runtime"`
	// Interpreter is the program the references ran.
	Interpreter         string  `json:"interpreter"`
	Rounds              int     `json:"rounds"`
	WarmupSeconds       float64 `json:"warmup_seconds"`
	DurationSeconds     float64 `json:"duration_seconds"`
	FunctionConcurrency int     `json:"function_concurrency"`
	RequestBytes        int     `json:"request_bytes"`

	// BusyAtRest is the share of the cores, 0 to 1, that something else kept busy
	// while the benchmark itself did nothing, before or after; the greater one.
	BusyAtRest float64 `json:"busy_at_rest"`

	// ReadyMS is the time from the start of hearth serve until it was ready.
	ReadyMS *float64 `json:"ready_ms,omitempty"`
	// Cold is nil when no cold starts were asked for.
	Cold   *ColdStart `json:"cold,omitempty"`
	Memory Memory     `json:"memory"`
	Cells  []Cell     `json:"cells"`
	// Half is Hearth at half the throughput it has with the most connections; nil
	// if that is not known.
	Half   *Paced  `json:"half,omitempty"`
	Checks []Check `json:"checks"`
}

// Paced is an open-loop load: Rate calls a second, whether those before were
// answered or not.
type Paced struct {
	Rate float64 `json:"rate"`
	Cell
}

// Cell is one target at one concurrency. Its figures are medians over the
// rounds.
type Cell struct {
	Target      string  `json:"target"`
	Concurrency int     `json:"concurrency"`
	Throughput  float64 `json:"throughput"` // right answers per second
	P50MS       float64 `json:"p50_ms"`
	P99MS       float64 `json:"p99_ms"`
	// Failures counts what was no right answer, in all rounds, warm-ups included.
	// One is enough to make the cell invalid; Problem then tells the first.
	Failures int64   `json:"failures"`
	Problem  string  `json:"problem,omitempty"`
	Rounds   []Round `json:"rounds"`
}

// Valid tells whether the figures may be used.
func (c Cell) Valid() bool { return c.Problem == "" }

// Round is one measurement of a cell.
type Round struct {
	Requests   int64   `json:"requests"`
	Throughput float64 `json:"throughput"`
	P50MS      float64 `json:"p50_ms"`
	P99MS      float64 `json:"p99_ms"`
	MaxMS      float64 `json:"max_ms"`
	// Cold is how many of the requests started an instance.
	Cold int64 `json:"cold"`
	// Reconnects is how often the server closed a connection after an answer.
	Reconnects int64 `json:"reconnects"`
	Failures   int64 `json:"failures"`
}

// ColdStart compares the first call of an evicted function, as its caller sees
// it, with a bare start of the same interpreter.
type ColdStart struct {
	// Iterations is how many calls really were cold; Warm how many were not and
	// are left out.
	Iterations int     `json:"iterations"`
	Warm       int     `json:"warm"`
	Wall       Summary `json:"wall"`
	Bare       Summary `json:"bare_interpreter"`
	// The medians of what Server-Timing says of the cold calls.
	QueueMS float64 `json:"queue_ms"`
	StartMS float64 `json:"start_ms"`
	InitMS  float64 `json:"init_ms"`
	RunMS   float64 `json:"run_ms"`
	Problem string  `json:"problem,omitempty"`
}

// Summary describes a set of times.
type Summary struct {
	MinMS float64 `json:"min_ms"`
	P50MS float64 `json:"p50_ms"`
	P99MS float64 `json:"p99_ms"` // the greatest, for fewer than 100 values
	MaxMS float64 `json:"max_ms"`
}

// Memory is what is needed at rest, in bytes.
type Memory struct {
	// ServerRSS is the server's resident set before its first call.
	ServerRSS int64 `json:"server_rss_bytes,omitempty"`
	// ServerIsSelf is true when the load generator lives in the same process.
	ServerIsSelf  bool   `json:"server_is_self,omitempty"`
	ServerProblem string `json:"server_problem,omitempty"`
	// InstancePSS is the proportional set size that one more idle instance adds,
	// the mean of Instances of them, with all its processes.
	InstancePSS     int64  `json:"instance_pss_bytes,omitempty"`
	Instances       int    `json:"instances,omitempty"`
	InstanceProblem string `json:"instance_problem,omitempty"`
}

// Check compares a figure with its target.
type Check struct {
	Name string `json:"name"`
	// Value is a ratio, or the figure itself in Unit.
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	// Raw shows what Value was made of.
	Raw string `json:"raw,omitempty"`
	// Op is "≥" or "≤", the relation to Target that is wanted.
	Op      string  `json:"op"`
	Target  float64 `json:"target"`
	Verdict Verdict `json:"verdict"`
	// Why says why nothing was measured.
	Why string `json:"why,omitempty"`
}

// Verdict is the outcome of a Check.
type Verdict string

// The verdicts.
const (
	Met         Verdict = "met"
	Missed      Verdict = "MISSED"
	NotMeasured Verdict = "not measured"
)

// maxBusyAtRest is how busy a machine may be with something else before the
// figures lose their worth.
const maxBusyAtRest = 0.1

// Missed tells whether a check that could be made failed its target.
func (r Report) Missed() bool {
	return slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Verdict == Missed })
}

// The targets.
const (
	targetThroughput = 0.25
	targetLatency    = 1.0
	targetTail       = 10.0
	targetColdPython = 2.5
	targetColdNode   = 2.0
	targetServerMB   = 80.0
	targetReadyMS    = 1000.0
)

// judge fills in the checks.
func (r *Report) judge() {
	r.Checks = []Check{r.checkThroughput(), r.checkLatency(), r.checkTail()}
	if r.Cold != nil {
		r.Checks = append(r.Checks, r.checkCold())
	}
	server := Check{Name: "idle server, resident", Unit: "MB", Op: "≤", Target: targetServerMB}
	r.Checks = append(r.Checks, server.of(float64(r.Memory.ServerRSS)/1e6, r.Memory.ServerProblem))
	if r.ReadyMS != nil {
		ready := Check{Name: "hearth serve ready", Unit: "ms", Op: "≤", Target: targetReadyMS}
		r.Checks = append(r.Checks, ready.of(*r.ReadyMS, ""))
	}
}

// saturation is the concurrency that the throughput is taken from: the targets
// are meant for 64 connections; another greatest number is compared too, under
// its own name.
func (r *Report) saturation() int {
	n := 0
	for _, c := range r.Cells {
		if n = max(n, c.Concurrency); c.Concurrency == 64 {
			return 64
		}
	}
	return n
}

func (r *Report) checkThroughput() Check {
	n := r.saturation()
	check := Check{Name: fmt.Sprintf("throughput @%d ÷ Go no-op", n), Op: "≥", Target: targetThroughput}
	ours, reference, why := r.pair(TargetNoop, n)
	if why == "" {
		check.Raw = fmt.Sprintf("%.0f/s ÷ %.0f/s", ours.Throughput, reference.Throughput)
	}
	return check.of(ours.Throughput/reference.Throughput, why)
}

func (r *Report) checkLatency() Check {
	check := Check{Name: "p50 @1 ÷ proxy hop", Op: "≤", Target: targetLatency}
	ours, reference, why := r.pair(TargetProxy, 1)
	if why == "" {
		check.Raw = fmt.Sprintf("%.3f ms ÷ %.3f ms", ours.P50MS, reference.P50MS)
	}
	return check.of(ours.P50MS/reference.P50MS, why)
}

func (r *Report) checkTail() Check {
	check := Check{Name: "p99 ÷ p50 at half load", Op: "≤", Target: targetTail}
	if r.Half == nil {
		return check.of(0, "the throughput is not known")
	}
	if r.Half.Valid() {
		check.Raw = fmt.Sprintf("%.3f ms ÷ %.3f ms at %.0f/s", r.Half.P99MS, r.Half.P50MS, r.Half.Rate)
	}
	return check.of(r.Half.P99MS/r.Half.P50MS, r.Half.Problem)
}

func (r *Report) checkCold() Check {
	check := Check{Name: "cold start ÷ bare interpreter", Op: "≤", Target: targetColdPython}
	if language(r.Runtime) == "nodejs" {
		check.Target = targetColdNode
	}
	why := r.Cold.Problem
	if why == "" {
		check.Raw = fmt.Sprintf("%.1f ms ÷ %.1f ms", r.Cold.Wall.P50MS, r.Cold.Bare.P50MS)
	}
	return check.of(r.Cold.Wall.P50MS/r.Cold.Bare.P50MS, why)
}

// pair returns the cells of Hearth and of a reference at a concurrency, or why
// they cannot be compared.
func (r *Report) pair(reference string, concurrency int) (ours, theirs Cell, why string) {
	for _, p := range []struct {
		target string
		cell   *Cell
	}{{TargetHearth, &ours}, {reference, &theirs}} {
		i := slices.IndexFunc(r.Cells, func(c Cell) bool { return c.Target == p.target && c.Concurrency == concurrency })
		if i < 0 {
			return ours, theirs, fmt.Sprintf("%s was not measured at concurrency %d", p.target, concurrency)
		}
		if *p.cell = r.Cells[i]; !p.cell.Valid() {
			return ours, theirs, fmt.Sprintf("%s: %s", p.target, p.cell.Problem)
		}
	}
	return ours, theirs, ""
}

// of completes a check with its value, or with why there is none.
func (c Check) of(value float64, why string) Check {
	switch {
	case why != "":
		c.Verdict, c.Why = NotMeasured, why
		return c
	case c.Op == "≥" && value >= c.Target, c.Op == "≤" && value <= c.Target:
		c.Verdict = Met
	default:
		c.Verdict = Missed
	}
	c.Value = value
	return c
}

func newRound(s sample) Round {
	r := Round{Requests: s.requests, Throughput: s.throughput, Cold: s.cold, Reconnects: s.reconnects, Failures: s.failures}
	if s.requests > 0 {
		r.P50MS = millis(time.Duration(s.latencies.ValueAtQuantile(50)))
		r.P99MS = millis(time.Duration(s.latencies.ValueAtQuantile(99)))
		r.MaxMS = millis(time.Duration(s.latencies.Max()))
	}
	return r
}

func newCell(target string, concurrency int, samples []sample) Cell {
	c := Cell{Target: target, Concurrency: concurrency}
	var throughput, p50, p99 []float64
	for _, s := range samples {
		r := newRound(s)
		c.Rounds = append(c.Rounds, r)
		c.Failures += s.failures
		if c.Problem == "" {
			c.Problem = s.problem
		}
		throughput, p50, p99 = append(throughput, r.Throughput), append(p50, r.P50MS), append(p99, r.P99MS)
	}
	c.Throughput, c.P50MS, c.P99MS = median(throughput), median(p50), median(p99)
	return c
}

// median returns the middle of v, the mean of the two in the middle of an even
// number, 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m]
	}
	return (v[m-1] + v[m]) / 2
}

func summarize(v []float64) Summary {
	if len(v) == 0 {
		return Summary{}
	}
	v = slices.Sorted(slices.Values(v))
	return Summary{MinMS: v[0], P50MS: median(v), P99MS: v[(len(v)*99+99)/100-1], MaxMS: v[len(v)-1]}
}
