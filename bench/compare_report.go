package bench

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// comparisonSchema is the version of Comparison's JSON. It grows when a field
// changes its meaning or goes; new fields do not change it.
const comparisonSchema = 1

// Comparison is what Compare found. Times are in milliseconds, sizes in bytes.
type Comparison struct {
	Schema  int       `json:"schema"`
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	Command string    `json:"command,omitempty"`
	Machine Machine   `json:"machine"`
	// Seconds is how long everything took.
	Seconds float64 `json:"seconds"`
	// BusyAtRest is the share of the cores, 0 to 1, that something else kept busy
	// while nothing was measured, before or after; the greater one.
	BusyAtRest float64 `json:"busy_at_rest"`
	// Connections are the numbers of connections of warm calls, and Instances how
	// many instances a function may have for them.
	Connections []int `json:"connections"`
	Instances   int   `json:"instances"`

	Drivers []ComparedDriver `json:"drivers"`
	Cells   []ComparedCell   `json:"cells"`
	Idle    []IdleInstances  `json:"idle"`
	Plain   []PlainCommand   `json:"plain"`
	Ratios  []Check          `json:"ratios"`
}

// ComparedDriver is an isolation technology.
type ComparedDriver struct {
	Name    string `json:"name"`
	Summary string `json:"summary"`
	Works   bool   `json:"works"`
	// Problem says why it was not measured.
	Problem string `json:"problem,omitempty"`
}

// ComparedCell is one workload in one language under one driver.
type ComparedCell struct {
	Driver   string `json:"driver"`
	Runtime  string `json:"runtime"`
	Workload string `json:"workload"`
	// Problem says why there are no figures, or not all.
	Problem string `json:"problem,omitempty"`
	// Cold are starts of a new sandbox; Restored are cold calls whose instance
	// came from a snapshot. Either is nil if there were none.
	Cold     *ColdCalls  `json:"cold,omitempty"`
	Restored *ColdCalls  `json:"restored,omitempty"`
	Warm     []WarmCalls `json:"warm,omitempty"`
}

// ColdCalls are calls of a function that had no instance, as their caller sees
// them.
type ColdCalls struct {
	Wall Spread `json:"wall"`
	// The medians of what Server-Timing says of them.
	QueueMS float64 `json:"queue_ms"`
	StartMS float64 `json:"start_ms"`
	InitMS  float64 `json:"init_ms"`
	RunMS   float64 `json:"run_ms"`
	// CPUPer1000 is the processor time, in seconds, in which the whole machine was
	// busy for 1,000 of them and for the ends of as many instances, without what
	// the load generator used.
	CPUPer1000 float64 `json:"cpu_seconds_per_1000"`
}

// WarmCalls are calls that an instance was waiting for. The figures are over all
// windows; throughput is the median of them.
type WarmCalls struct {
	Connections int     `json:"connections"`
	Requests    int64   `json:"requests"`
	Throughput  float64 `json:"throughput"` // right answers per second
	Slowest     float64 `json:"throughput_min"`
	Fastest     float64 `json:"throughput_max"`
	P50MS       float64 `json:"p50_ms"`
	P90MS       float64 `json:"p90_ms"`
	P99MS       float64 `json:"p99_ms"`
	// CPUPer1000 is the processor time, in seconds, that the server, its sandboxes
	// and the daemons that serve them used for 1,000 of them.
	CPUPer1000 float64 `json:"cpu_seconds_per_1000"`
	// Cold is how many of them started an instance all the same.
	Cold    int64  `json:"cold"`
	Problem string `json:"problem,omitempty"`
}

// IdleInstances is what instances of the empty function need that wait.
type IdleInstances struct {
	Driver    string `json:"driver"`
	Runtime   string `json:"runtime"`
	Instances int    `json:"instances"`
	// Processes is how many each adds to the host.
	Processes float64 `json:"processes"`
	// PSS is what each adds, as the sum of the proportional set sizes of all
	// processes that are there for it, also outside of its sandbox.
	PSS int64 `json:"pss_bytes"`
	// Available is by how much each lowered the memory that the kernel says is
	// available: it counts the kernel's own too, and whatever else happened.
	Available int64 `json:"available_bytes"`
	// PerGiB is how many fit into one GiB, by PSS.
	PerGiB  float64 `json:"per_gib"`
	Problem string  `json:"problem,omitempty"`
}

// PlainCommand is what one would run without a platform: the same image, code
// and interpreter, which loads the function, calls it once and prints the answer.
// The time is from the start of the command to the first byte of that.
type PlainCommand struct {
	Name     string `json:"name"` // "docker run"
	Driver   string `json:"driver"`
	Runtime  string `json:"runtime"`
	Workload string `json:"workload"`
	Command  string `json:"command,omitempty"`
	Wall     Spread `json:"wall"`
	Problem  string `json:"problem,omitempty"`
}

// Spread describes a set of times in milliseconds.
type Spread struct {
	Count int     `json:"count"`
	MinMS float64 `json:"min_ms"`
	P25MS float64 `json:"p25_ms"`
	P50MS float64 `json:"p50_ms"`
	P75MS float64 `json:"p75_ms"`
	P99MS float64 `json:"p99_ms"` // the greatest, for fewer than 100 values
	MaxMS float64 `json:"max_ms"`
}

// spread describes v.
func spread(v []float64) Spread {
	if len(v) == 0 {
		return Spread{}
	}
	v = slices.Sorted(slices.Values(v))
	at := func(percent int) float64 { return v[max((len(v)*percent+99)/100-1, 0)] }
	return Spread{
		Count: len(v), MinMS: v[0], P25MS: at(25), P50MS: median(v), P75MS: at(75), P99MS: at(99), MaxMS: v[len(v)-1],
	}
}

// Reported is the verdict of a ratio without a target.
const Reported Verdict = "reported"

// The targets of a comparison.
const (
	targetColdPlain = 1.15
	targetRestored  = 0.7
	targetWarm      = 1.15
	targetWarmRate  = 0.85
)

// Missed tells whether a ratio that could be taken failed its target.
func (c Comparison) Missed() bool {
	return slices.ContainsFunc(c.Ratios, func(r Check) bool { return r.Verdict == Missed })
}

// judge takes the ratios.
func (c *Comparison) judge() {
	c.Ratios = nil
	for _, p := range c.Plain {
		c.Ratios = append(c.Ratios, c.coldRatios(p)...)
	}
	for _, d := range c.Drivers {
		if d.Works && d.Name != "native" {
			c.Ratios = append(c.Ratios, c.warmRatios(d.Name)...)
		}
	}
}

// coldRatios compares cold calls with the plain command of the same driver.
func (c *Comparison) coldRatios(p PlainCommand) []Check {
	cell := c.cell(p.Driver, p.Runtime, p.Workload)
	one := func(how string, calls *ColdCalls, target float64) Check {
		r := Check{Name: fmt.Sprintf("%s %s %s: %s ÷ %s", p.Driver, p.Runtime, p.Workload, how, p.Name), Op: "≤", Target: target}
		why := p.Problem
		switch {
		case why != "":
			why = p.Name + ": " + why
		case cell.Problem != "":
			why = cell.Problem
		case calls == nil:
			why = "there was none"
		default:
			r.Raw = fmt.Sprintf("%.1f ms ÷ %.1f ms", calls.Wall.P50MS, p.Wall.P50MS)
			return r.of(calls.Wall.P50MS/p.Wall.P50MS, "")
		}
		return r.of(0, why)
	}
	var out []Check
	switch {
	case p.Driver == "native":
		r := one("cold", cell.Cold, 0)
		out = append(out, r.reported())
	case cell.Cold != nil || cell.Restored == nil:
		out = append(out, one("cold", cell.Cold, targetColdPlain))
	}
	if cell.Restored != nil {
		r := one("restored", cell.Restored, targetRestored)
		if p.Workload != "imports" {
			r = r.reported()
		}
		out = append(out, r)
	}
	return out
}

// reported takes the target away.
func (c Check) reported() Check {
	c.Op, c.Target = "", 0
	if c.Verdict != NotMeasured {
		c.Verdict = Reported
	}
	return c
}

// warmRatios compares warm calls under a driver with those under native: of the
// empty function, which shows the way of a call best, and of all workloads by
// their geometric mean.
func (c *Comparison) warmRatios(driver string) []Check {
	var out []Check
	for _, runtime := range c.runtimes() {
		for _, n := range c.Connections {
			latency, rate := map[string]float64{}, map[string]float64{}
			var raw [2]string
			for _, w := range c.workloads() {
				ours, ok1 := c.cell(driver, runtime, w).at(n)
				theirs, ok2 := c.cell("native", runtime, w).at(n)
				if !ok1 || !ok2 {
					continue
				}
				latency[w], rate[w] = ours.P50MS/theirs.P50MS, ours.Throughput/theirs.Throughput
				if w == "empty" {
					raw[0] = fmt.Sprintf("%.3f ms ÷ %.3f ms", ours.P50MS, theirs.P50MS)
					raw[1] = fmt.Sprintf("%.0f/s ÷ %.0f/s", ours.Throughput, theirs.Throughput)
				}
			}
			for i, kind := range []struct {
				name   string
				values map[string]float64
				op     string
				target float64
			}{{"p50", latency, "≤", targetWarm}, {"throughput", rate, "≥", targetWarmRate}} {
				for _, scope := range []string{"empty", "all workloads"} {
					r := Check{Name: fmt.Sprintf("%s %s %s: warm %s @%d ÷ native", driver, runtime, scope, kind.name, n), Op: kind.op, Target: kind.target}
					value, why := kind.values["empty"], ""
					if scope == "empty" {
						r.Raw = raw[i]
					} else {
						value = geometricMean(slices.Collect(maps.Values(kind.values)))
						r.Raw = fmt.Sprintf("geometric mean of %d", len(kind.values))
					}
					if value == 0 {
						r.Raw, why = "", "it was not measured under both drivers"
					}
					if r = r.of(value, why); driver != "docker" {
						r = r.reported()
					}
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// geometricMean is 0 if there is no value, or one is 0.
func geometricMean(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sum := 0.0
	for _, x := range v {
		sum += math.Log(x)
	}
	return math.Exp(sum / float64(len(v)))
}

// cell returns the cell, or one that says that there is none.
func (c *Comparison) cell(driver, runtime, workload string) ComparedCell {
	for _, x := range c.Cells {
		// A runtime's version differs between a host's interpreter and an image's.
		if x.Driver == driver && language(x.Runtime) == language(runtime) && x.Workload == workload {
			return x
		}
	}
	return ComparedCell{Problem: "it was not measured"}
}

// at returns the warm calls with n connections if they are valid.
func (c ComparedCell) at(n int) (WarmCalls, bool) {
	for _, w := range c.Warm {
		if w.Connections == n && w.Problem == "" && w.P50MS > 0 {
			return w, true
		}
	}
	return WarmCalls{}, false
}

// runtimes returns the languages that were measured, in order.
func (c *Comparison) runtimes() []string {
	return distinct(c.Cells, func(x ComparedCell) string { return language(x.Runtime) })
}

// workloads returns the workloads that were measured, in order.
func (c *Comparison) workloads() []string {
	return distinct(c.Cells, func(x ComparedCell) string { return x.Workload })
}

// working returns the names of the drivers that were measured.
func (c *Comparison) working() []string {
	return distinct(c.Cells, func(x ComparedCell) string { return x.Driver })
}

func distinct[T any](list []T, key func(T) string) []string {
	var out []string
	for _, x := range list {
		if k := key(x); !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}
