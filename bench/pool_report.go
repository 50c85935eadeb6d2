package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// PoolReport is what Pool found. Times are in milliseconds, memory in bytes.
type PoolReport struct {
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	// Command is the command line, if the caller told it.
	Command string  `json:"command,omitempty"`
	Machine Machine `json:"machine"`
	// Driver is that of all parts but PartCold.
	Driver string `json:"driver"`
	// BusyAtRest is as in Report.
	BusyAtRest float64 `json:"busy_at_rest"`

	Cold   []PoolCold `json:"cold,omitempty"`
	Bursts []Burst    `json:"bursts,omitempty"`
	// Quiet is the quiet function of Floods, alone.
	Quiet  *Paced  `json:"quiet,omitempty"`
	Floods []Flood `json:"floods,omitempty"`
	Many   *Many   `json:"many,omitempty"`
}

// PoolCold compares calls that got a stem cell with a plain command.
type PoolCold struct {
	Driver     string  `json:"driver"`
	Runtime    string  `json:"runtime"`
	Iterations int     `json:"iterations"`
	Wall       Summary `json:"wall"`
	// Reference is the plain command, Plain its times.
	Reference string  `json:"reference"`
	Plain     Summary `json:"plain"`
	// The medians of what Server-Timing says of the calls.
	StartMS float64 `json:"start_ms"`
	InitMS  float64 `json:"init_ms"`
	Problem string  `json:"problem,omitempty"`
}

// Burst is many calls at once of a function that has no instance. Its times are
// medians over several bursts, its memory and instances the most of all.
type Burst struct {
	Handler string  `json:"handler"`
	Calls   int     `json:"calls"`
	P50MS   float64 `json:"p50_ms"`
	P99MS   float64 `json:"p99_ms"`
	MaxMS   float64 `json:"max_ms"`
	// ServiceMS is a warm call on a machine at rest, ColdMS a cold one.
	ServiceMS float64 `json:"service_ms"`
	ColdMS    float64 `json:"cold_ms"`
	// BoundMS is when cores that never idle are done: the service time of all calls
	// divided among them, and one cold start before.
	BoundMS float64 `json:"bound_ms"`
	// Instances is how many were seen to serve the function.
	Instances int `json:"instances"`
	// Charged is the most that the pool counted against Budget; Memory by how much
	// the machine's available memory shrank.
	Charged int64 `json:"charged_bytes"`
	Budget  int64 `json:"budget_bytes"`
	Memory  int64 `json:"memory_bytes"`
	// Failures counts what was no right answer, of all bursts; First is one.
	Failures int64  `json:"failures"`
	First    string `json:"first_failure,omitempty"`
	Problem  string `json:"problem,omitempty"`
}

// Flood is a quiet function while another one is flooded.
type Flood struct {
	// Handler is that of the flooded function, Concurrency how many instances it
	// may have, Callers how many call it and do not wait between two calls.
	Handler     string `json:"handler"`
	Concurrency int    `json:"concurrency"`
	Callers     int    `json:"callers"`
	// Throughput and Refused are its calls a second that were answered and that
	// were refused because too many waited.
	Throughput float64 `json:"throughput"`
	Refused    float64 `json:"refused"`
	// Quiet is the quiet function meanwhile.
	Quiet   Cell   `json:"quiet"`
	Problem string `json:"problem,omitempty"`
}

// Many compares a server that has Functions, of which Active are called, with one
// that has only the Active ones.
type Many struct {
	Functions int `json:"functions"`
	Active    int `json:"active"`
	// FewPSS and ManyPSS are the proportional set sizes of the two server
	// processes after a garbage collection.
	FewPSS  int64 `json:"few_pss_bytes"`
	ManyPSS int64 `json:"many_pss_bytes"`
	// PerFunction is what a function without calls adds to it, HeapPerFunction
	// what it adds to the objects in use.
	PerFunction     int64 `json:"per_function_bytes"`
	HeapPerFunction int64 `json:"heap_per_function_bytes"`
	// The time from the start of each process until it was ready.
	FewReadyMS  float64 `json:"few_ready_ms"`
	ManyReadyMS float64 `json:"many_ready_ms"`
	// Few and Many are warm calls of one function of each.
	Few     ManyCells `json:"few"`
	Many    ManyCells `json:"many"`
	Problem string    `json:"problem,omitempty"`
}

// ManyCells are warm calls of a function: found by its name and by its route, one
// at a time, and as many as a machine can do.
type ManyCells struct {
	ByName  Cell `json:"by_name"`
	ByRoute Cell `json:"by_route"`
	Full    Cell `json:"full"`
}

// The targets.
const (
	targetBurst    = 1.0
	targetFlood    = 3.0
	targetFunction = 4096.0 // bytes
)

// targetStem is the target of cold starts from stem cells, by the driver.
func targetStem(driver string) float64 {
	return map[string]float64{"native": 0.5, "docker": 0.05, "gvisor": 0.1}[driver]
}

// Missed tells whether a check that could be made failed its target.
func (r PoolReport) Missed() bool {
	return slices.ContainsFunc(r.Checks(), func(c Check) bool { return c.Verdict == Missed })
}

// Checks compares what was measured with its targets.
func (r PoolReport) Checks() []Check {
	var checks []Check
	for _, c := range r.Cold {
		if check, ok := c.check(); ok {
			checks = append(checks, check)
		}
	}
	for _, b := range r.Bursts {
		checks = append(checks, b.checks()...)
	}
	for _, f := range r.Floods {
		checks = append(checks, f.check(r.Quiet))
	}
	if m := r.Many; m != nil {
		check := Check{Name: fmt.Sprintf("memory per function without calls, of %d", m.Functions), Unit: "B", Op: "≤", Target: targetFunction}
		if m.Problem == "" {
			check.Raw = fmt.Sprintf("%d B of PSS, %d B of objects in use", m.PerFunction, m.HeapPerFunction)
		}
		// What is in use is below the set size by what a process had to spare, which
		// hides a few functions.
		checks = append(checks, check.of(float64(max(m.PerFunction, m.HeapPerFunction)), m.Problem))
	}
	return checks
}

// check has a target for Python only: what other runtimes have to load is theirs.
func (c PoolCold) check() (Check, bool) {
	target := targetStem(c.Driver)
	if target == 0 || language(c.Runtime) == "nodejs" {
		return Check{}, false
	}
	name := fmt.Sprintf("cold from a stem cell, %s %s", c.Driver, c.Runtime)
	check := Check{Name: strings.TrimSpace(name), Op: "≤", Target: target}
	if c.Reference != "" {
		check.Name += " ÷ " + c.Reference
	}
	if c.Problem == "" {
		check.Raw = fmt.Sprintf("%.1f ms ÷ %.1f ms", c.Wall.P50MS, c.Plain.P50MS)
	}
	return check.of(c.Wall.P50MS/c.Plain.P50MS, c.Problem), true
}

func (b Burst) checks() []Check {
	failures := Check{Name: fmt.Sprintf("burst of %d (%s), failures", b.Calls, b.Handler), Op: "≤", Target: 0, Raw: b.First}
	p99 := Check{Name: fmt.Sprintf("burst of %d (%s), p99 ÷ busy cores", b.Calls, b.Handler), Op: "≤", Target: targetBurst}
	memory := Check{Name: fmt.Sprintf("burst of %d (%s), memory ÷ budget", b.Calls, b.Handler), Op: "≤", Target: 1}
	if b.Problem == "" {
		p99.Raw = fmt.Sprintf("%.0f ms ÷ (%d × %.1f ms ÷ cores + %.1f ms)", b.P99MS, b.Calls, b.ServiceMS, b.ColdMS)
		memory.Raw = fmt.Sprintf("%.0f MB ÷ %.0f MB", float64(b.Memory)/1e6, float64(b.Budget)/1e6)
	}
	why := b.Problem
	if why == "" && b.Budget == 0 {
		why = "there is no budget"
	}
	return []Check{
		failures.of(float64(b.Failures), b.Problem),
		p99.of(b.P99MS/b.BoundMS, b.Problem),
		memory.of(float64(max(b.Memory, b.Charged))/float64(b.Budget), why),
	}
}

func (f Flood) check(quiet *Paced) Check {
	check := Check{Name: fmt.Sprintf("p99 beside %d callers (%s) ÷ alone", f.Callers, f.Handler), Op: "≤", Target: targetFlood}
	why := f.Problem
	switch {
	case why != "":
	case !f.Quiet.Valid():
		why = f.Quiet.Problem
	case quiet == nil || !quiet.Valid():
		why = "the quiet function could not be measured alone"
	default:
		check.Raw = fmt.Sprintf("%.2f ms ÷ %.2f ms", f.Quiet.P99MS, quiet.P99MS)
		return check.of(f.Quiet.P99MS/quiet.P99MS, "")
	}
	return check.of(0, why)
}

// Table returns the report for people, as plain text that ends with a newline.
func (r PoolReport) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hearth bench pool: %s\n  %s\n  hearth %s, %s\n", r.Driver, r.Machine.line(), r.Version, r.Date.Format("2006-01-02 15:04 MST"))
	if r.Command != "" {
		fmt.Fprintf(&b, "  %s\n", r.Command)
	}
	if r.BusyAtRest > maxBusyAtRest {
		fmt.Fprintf(&b, "  NOT RELIABLE: something else kept the machine %.0f%% busy; measure again when it is quiet\n", 100*r.BusyAtRest)
	}
	if len(r.Cold) > 0 {
		b.WriteString("\nCOLD FROM A STEM CELL  (first call of an evicted function as its caller sees it, in turns with a plain command)\n" + layout(r.coldRows()))
	}
	if len(r.Bursts) > 0 {
		b.WriteString("\nBURST  (all calls at once, of a function without instances)\n" + layout(r.burstRows()))
	}
	if r.Quiet != nil {
		fmt.Fprintf(&b, "\nFLOOD  (a quiet function, %.0f calls/s in an open loop, beside another with up to N instances)\n", r.Quiet.Rate)
		b.WriteString(layout(r.floodRows()))
	}
	if r.Many != nil && r.Many.Problem == "" {
		fmt.Fprintf(&b, "\nMANY FUNCTIONS  (%d of them called)\n", r.Many.Active)
		b.WriteString(layout(r.Many.rows()))
	}
	if checks := r.Checks(); len(checks) > 0 {
		b.WriteString("\nTARGETS\n" + layout(Report{Checks: checks}.checkRows()))
	}
	return b.String()
}

func (r PoolReport) coldRows() []row {
	rows := []row{{cells: []string{"", "calls", "p50 ms", "p99 ms", "start", "init", "plain p50 ms", "ratio"}}}
	for _, c := range r.Cold {
		name := strings.TrimSpace(c.Driver + " " + c.Runtime)
		if c.Problem != "" {
			rows = append(rows, row{[]string{name}, "not measured: " + c.Problem})
			continue
		}
		rows = append(rows, row{[]string{
			name, fmt.Sprint(c.Iterations), fmt.Sprintf("%.1f", c.Wall.P50MS), fmt.Sprintf("%.1f", c.Wall.P99MS),
			fmt.Sprintf("%.1f", c.StartMS), fmt.Sprintf("%.1f", c.InitMS),
			fmt.Sprintf("%.1f", c.Plain.P50MS), fmt.Sprintf("%.3f", c.Wall.P50MS/c.Plain.P50MS),
		}, c.Reference})
	}
	return rows
}

func (r PoolReport) burstRows() []row {
	rows := []row{{cells: []string{"", "calls", "failed", "p50 ms", "p99 ms", "max ms", "busy cores", "instances", "charged MB", "memory MB", "budget MB"}}}
	for _, b := range r.Bursts {
		if b.Problem != "" {
			rows = append(rows, row{[]string{b.Handler}, "not measured: " + b.Problem})
			continue
		}
		mb := func(n int64) string { return fmt.Sprintf("%.0f", float64(n)/1e6) }
		rows = append(rows, row{cells: []string{
			handlerLabel(b.Handler), fmt.Sprint(b.Calls), fmt.Sprint(b.Failures), fmt.Sprintf("%.0f", b.P50MS), fmt.Sprintf("%.0f", b.P99MS),
			fmt.Sprintf("%.0f", b.MaxMS), fmt.Sprintf("%.0f", b.BoundMS), fmt.Sprint(b.Instances), mb(b.Charged), mb(b.Memory), mb(b.Budget),
		}})
	}
	return rows
}

// handlerLabel says what a handler does.
func handlerLabel(handler string) string {
	if about := map[string]string{"work": "computes 5 ms", "sleep": "waits 20 ms"}[handler]; about != "" {
		return about
	}
	return handler
}

func (r PoolReport) floodRows() []row {
	rows := []row{
		{cells: []string{"the other", "N", "callers", "answered/s", "refused/s", "quiet p50 ms", "p99 ms"}},
	}
	quiet := func(cells []string, c Cell, problem string) row {
		if problem == "" {
			problem = c.Problem
		}
		if problem != "" {
			return row{cells, "INVALID: " + problem}
		}
		return row{cells: append(cells, fmt.Sprintf("%.2f", c.P50MS), fmt.Sprintf("%.2f", c.P99MS))}
	}
	rows = append(rows, quiet([]string{"none", "-", "-", "-", "-"}, r.Quiet.Cell, ""))
	for _, f := range r.Floods {
		rows = append(rows, quiet([]string{
			handlerLabel(f.Handler), fmt.Sprint(f.Concurrency), fmt.Sprint(f.Callers), fmt.Sprintf("%.0f", f.Throughput), fmt.Sprintf("%.0f", f.Refused),
		}, f.Quiet, f.Problem))
	}
	return rows
}

func (m *Many) rows() []row {
	line := func(functions int, pss int64, ready float64, c ManyCells) row {
		return row{cells: []string{
			fmt.Sprintf("%d functions", functions), fmt.Sprintf("%.0f", ready), fmt.Sprintf("%.1f", float64(pss)/1e6),
			fmt.Sprintf("%.3f", c.ByName.P50MS), fmt.Sprintf("%.3f", c.ByRoute.P50MS), fmt.Sprintf("%.0f", c.Full.Throughput),
		}}
	}
	ratio := func(a, b float64) string { return fmt.Sprintf("%.2f", a/b) }
	rows := []row{
		{cells: []string{"", "ready ms", "server MB", "p50 @1 ms", "by route", fmt.Sprintf("calls/s @%d", manyConnections)}},
		line(m.Active, m.FewPSS, m.FewReadyMS, m.Few),
		line(m.Functions, m.ManyPSS, m.ManyReadyMS, m.Many),
		{cells: []string{
			"ratio", ratio(m.ManyReadyMS, m.FewReadyMS), ratio(float64(m.ManyPSS), float64(m.FewPSS)),
			ratio(m.Many.ByName.P50MS, m.Few.ByName.P50MS), ratio(m.Many.ByRoute.P50MS, m.Few.ByRoute.P50MS),
			ratio(m.Many.Full.Throughput, m.Few.Full.Throughput),
		}},
	}
	for _, c := range []Cell{m.Few.ByName, m.Few.ByRoute, m.Few.Full, m.Many.ByName, m.Many.ByRoute, m.Many.Full} {
		if !c.Valid() {
			rows = append(rows, row{[]string{"INVALID"}, c.Problem})
			break
		}
	}
	return rows
}
