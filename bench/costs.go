package bench

import (
	"fmt"
	"math"
	"time"

	"github.com/hearthrun/hearth"
)

// costsSchema is the version of Costs' JSON. It grows when a field changes its
// meaning or goes; new fields do not change it.
const costsSchema = 1

// million is for how many calls costs are given.
const million = 1_000_000

// Figures of the shapes of a workload.
const (
	// A burst is burstCalls calls within burstTime, burstCallers at once, and then
	// nothing for burstPause.
	burstCalls   = 1000
	burstCallers = 100
	burstTime    = time.Minute
	burstPause   = time.Hour
	// alwaysWarm is the shape for which one buys an instance in a cloud.
	alwaysWarm = "always warm"
	// cloudCores is what a cloud gives a function that sells cores by themselves.
	cloudCores = 1
)

// Mode says what becomes of instances between calls.
type Mode string

// The modes.
const (
	ModeCold Mode = "cold" // an instance ends after its call, and each call starts one
	ModeWarm Mode = "warm" // instances are kept for the next call
	ModeBoth Mode = "both" // those of a burst are kept until it ends
)

// Shape is a way in which calls come.
type Shape struct {
	Name string `json:"name"`
	// About says how calls come, and Latency which time its LatencyMS is.
	About   string `json:"about"`
	Latency string `json:"latency"`
	// Modes are those that it is computed for; the cheapest of them counts.
	Modes []Mode `json:"modes"`
	// Every is the time from one call to the next, in seconds; 0 where calls do not
	// come evenly.
	Every float64 `json:"every_seconds,omitempty"`
	// CallsPerMonth is 0 where calls come as fast as they are served.
	CallsPerMonth float64 `json:"calls_per_month,omitempty"`
}

// Shapes returns the shapes that costs are computed for.
func Shapes() []Shape {
	month := hearth.Month.Seconds()
	even := func(name, about, latency string, every time.Duration, modes ...Mode) Shape {
		return Shape{Name: name, About: about, Latency: latency, Modes: modes, Every: every.Seconds(), CallsPerMonth: month / every.Seconds()}
	}
	const cold, warm = "median of a cold call", "median of a warm call"
	return []Shape{
		even("rare", "a call an hour, and nothing is kept warm", cold, time.Hour, ModeCold),
		even(alwaysWarm, "a call an hour, and an instance is kept warm for it", warm, time.Hour, ModeWarm),
		even("occasional", "a call a minute", "median of a cold or a warm call", time.Minute, ModeCold, ModeWarm),
		even("steady", "10 calls a second, evenly", warm, 100*time.Millisecond, ModeWarm),
		{
			Name: "busy", About: "a million calls, as fast as the machine serves them",
			Latency: "median of a warm call among as many as the machine serves", Modes: []Mode{ModeWarm},
		},
		{
			Name:    "bursty",
			About:   fmt.Sprintf("%d calls within a minute, %d at once, then nothing for an hour", burstCalls, burstCallers),
			Latency: fmt.Sprintf("until the last of %d instances has started", burstCallers),
			Modes:   []Mode{ModeBoth}, CallsPerMonth: burstCalls * month / (burstTime + burstPause).Seconds(),
		},
	}
}

// Costs is what the functions of a comparison cost under each isolation
// technology, by how calls come.
type Costs struct {
	Schema int `json:"schema"`
	// What was measured, when and where: see Comparison.
	Date       time.Time `json:"date"`
	Version    string    `json:"version"`
	Command    string    `json:"command,omitempty"`
	Machine    Machine   `json:"machine"`
	BusyAtRest float64   `json:"busy_at_rest"`

	Prices hearth.Prices `json:"prices"`
	// CloudMemory and CloudCores are what a function is given in a cloud.
	CloudMemory hearth.Bytes `json:"cloud_memory"`
	CloudCores  float64      `json:"cloud_cores"`

	Drivers    []string         `json:"drivers"`
	Runtimes   []string         `json:"runtimes"` // languages
	Workloads  []string         `json:"workloads"`
	Shapes     []Shape          `json:"shapes"`
	Advice     []Advice         `json:"advice"`
	Costs      []ShapeCost      `json:"costs"`
	Instances  []InstanceCost   `json:"instances"`
	BreakEvens []BreakEven      `json:"break_evens"`
	Clouds     []CloudShapeCost `json:"clouds"`
	CloudsWarm []CloudWarm      `json:"clouds_warm"`
}

// ShapeCost is what a workload costs under a driver if calls come in a shape.
type ShapeCost struct {
	Shape    string `json:"shape"`
	Mode     Mode   `json:"mode"`
	Driver   string `json:"driver"`
	Runtime  string `json:"runtime"`
	Workload string `json:"workload"`
	// Cheapest says that no other mode of the shape costs less. None is if one of
	// them has no figures.
	Cheapest bool `json:"cheapest"`
	// Cost is that of a million calls, PerMonth that of a month in which calls come
	// like this; 0 for a shape that has no number of calls in a month.
	Cost     hearth.Cost `json:"cost"`
	PerMonth float64     `json:"per_month,omitempty"`
	// LatencyMS is the time that the shape says.
	LatencyMS float64 `json:"latency_ms"`
	// Problem says why there are no figures.
	Problem string `json:"problem,omitempty"`
}

// InstanceCost is what it costs to keep an instance of the empty function warm.
type InstanceCost struct {
	Driver           string  `json:"driver"`
	Runtime          string  `json:"runtime"`
	PSS              int64   `json:"pss_bytes"`
	PerGiB           float64 `json:"per_gib"`
	KeepWarmPerMonth float64 `json:"keep_warm_per_month"`
	Problem          string  `json:"problem,omitempty"`
}

// BreakEven is how often calls must come, evenly, for keeping an instance warm to
// cost less than starting one for each.
type BreakEven struct {
	Driver   string `json:"driver"`
	Runtime  string `json:"runtime"`
	Workload string `json:"workload"`
	// Cold and Warm are what a million calls cost, the latter without keeping warm.
	Cold float64 `json:"cold_per_million"`
	Warm float64 `json:"warm_per_million"`
	// KeepWarmPerHour is for one instance without a call.
	KeepWarmPerHour float64 `json:"keep_warm_per_hour"`
	// WarmMS is how long a warm call takes.
	WarmMS float64 `json:"warm_ms"`
	// CallsPerHour is 0 if keeping warm costs nothing, and nil if a cold call costs no
	// more than a warm one or there are no figures.
	CallsPerHour *float64 `json:"calls_per_hour,omitempty"`
	Problem      string   `json:"problem,omitempty"`
}

// CloudShapeCost is what a cloud asks for the same calls, if they take as long there
// as under the fastest driver.
type CloudShapeCost struct {
	Cloud    string `json:"cloud"`
	Shape    string `json:"shape"`
	Runtime  string `json:"runtime"`
	Workload string `json:"workload"`
	// Driver is the one that is fastest, RunMS and InitMS are its figures: of a warm
	// call, and of the loading of the function for a cold one.
	Driver     string  `json:"driver"`
	RunMS      float64 `json:"run_ms"`
	InitMS     float64 `json:"init_ms"`
	PerMillion float64 `json:"per_million"`
}

// CloudWarm is what a cloud asks for an instance that is kept warm for a month.
type CloudWarm struct {
	Cloud    string  `json:"cloud"`
	PerMonth float64 `json:"per_month"`
}

// Costs computes what the comparison's functions cost with prices. Errors:
// CodeInvalid.
func (c Comparison) Costs(p hearth.Prices) (Costs, error) {
	if err := p.Validate(); err != nil {
		return Costs{}, err
	}
	out := Costs{
		Schema: costsSchema, Date: c.Date, Version: c.Version, Command: c.Command, Machine: c.Machine, BusyAtRest: c.BusyAtRest,
		Prices: p, CloudMemory: compareMemory, CloudCores: cloudCores,
		Drivers: c.working(), Runtimes: c.runtimes(), Workloads: c.workloads(), Shapes: Shapes(),
	}
	for _, r := range out.Runtimes {
		for _, d := range out.Drivers {
			out.Instances = append(out.Instances, c.instanceCost(d, r, p.Machine))
		}
		for _, w := range out.Workloads {
			for _, d := range out.Drivers {
				m := c.measured(d, r, w)
				out.BreakEvens = append(out.BreakEvens, m.breakEven(p.Machine))
				for _, s := range out.Shapes {
					out.Costs = append(out.Costs, m.costs(s, p.Machine)...)
				}
			}
			out.Clouds = append(out.Clouds, c.cloudCosts(r, w, p.Clouds)...)
		}
	}
	for _, cloud := range p.Clouds {
		if v := cloud.Warm(compareMemory); v > 0 {
			out.CloudsWarm = append(out.CloudsWarm, CloudWarm{cloud.Name, v})
		}
	}
	if !out.finite() {
		return Costs{}, hearth.Errorf(hearth.CodeInvalid, "the costs are too large to be computed").WithHint("check the prices")
	}
	for _, r := range out.Runtimes {
		for _, s := range out.Shapes {
			out.Advice = append(out.Advice, out.advise(s, r))
		}
	}
	return out, nil
}

// finite tells whether all money is a number: prices and figures may be as large as
// they like, but their products may not.
func (c Costs) finite() bool {
	sum := 0.0
	for _, x := range c.Costs {
		sum += x.Cost.Total + x.PerMonth + x.LatencyMS
	}
	for _, x := range c.Clouds {
		sum += x.PerMillion
	}
	for _, x := range c.CloudsWarm {
		sum += x.PerMonth
	}
	for _, x := range c.BreakEvens {
		sum += x.Cold + x.Warm + x.KeepWarmPerHour
	}
	for _, x := range c.Instances {
		sum += x.KeepWarmPerMonth
	}
	return !math.IsInf(sum, 0) && !math.IsNaN(sum)
}

// measured are the figures of a cell that costs are made of.
type measured struct {
	driver, runtime, workload string
	problem                   string // of all of them
	cold                      *ColdCalls
	one, many                 *WarmCalls // with one connection, and with the most
	instances                 int        // for many
	cores                     int
	pss                       float64 // bytes of an idle instance
	unweighed                 string  // why pss is not known
}

func (c Comparison) measured(driver, runtime, workload string) measured {
	m := measured{driver: driver, runtime: runtime, workload: workload, instances: max(c.Instances, 1), cores: max(c.Machine.Cores, 1)}
	x := c.cell(driver, runtime, workload)
	// A snapshot is taken once: later starts are all from it.
	if m.cold = x.Restored; m.cold == nil {
		m.cold = x.Cold
	}
	if m.cold != nil && (m.cold.Wall.P50MS <= 0 || m.cold.CPUPer1000 <= 0) {
		m.cold = nil
	}
	most := 1
	for _, n := range c.Connections {
		most = max(most, n)
	}
	at := func(n int) *WarmCalls {
		if w, ok := x.at(n); ok && w.CPUPer1000 > 0 && w.Throughput > 0 {
			return &w
		}
		return nil
	}
	m.one, m.many, m.problem = at(1), at(most), x.Problem
	if i := c.idleOf(driver, runtime); i.Problem != "" {
		m.unweighed = "its idle instances were not weighed: " + i.Problem
	} else {
		m.pss = float64(i.PSS)
	}
	return m
}

// idleOf returns what an idle instance needs, or why that is not known.
func (c Comparison) idleOf(driver, runtime string) IdleInstances {
	for _, i := range c.Idle {
		if i.Driver == driver && language(i.Runtime) == runtime {
			if i.Problem == "" && i.PSS <= 0 {
				i.Problem = "they added no memory that can be seen"
			}
			return i
		}
	}
	return IdleInstances{Problem: "it was not measured"}
}

// lacks says which of the figures that are needed is not there.
func (m measured) lacks(cold, one, many bool) string {
	switch {
	case m.problem != "":
		return m.problem
	case m.unweighed != "":
		return m.unweighed
	case cold && m.cold == nil:
		return "its cold calls have no figures"
	case one && m.one == nil || many && m.many == nil:
		return "its warm calls have no figures"
	}
	return ""
}

// use is what a call uses, in the mean: seconds of processor time, and memory over
// time in byte-seconds, as hearth.Usage divides it.
type use struct{ cpu, starting, busy, idle float64 }

func (u use) times(n float64) use { return use{u.cpu * n, u.starting * n, u.busy * n, u.idle * n} }

func (u use) plus(v use) use {
	return use{u.cpu + v.cpu, u.starting + v.starting, u.busy + v.busy, u.idle + v.idle}
}

// cost returns that of a million such calls.
func (u use) cost(p hearth.MachinePrice) hearth.Cost {
	u = u.times(million)
	return p.Cost(hearth.StatsNumbers{Phases: map[string]hearth.Durations{"run": {Count: million}}, Usage: hearth.Usage{
		CPUSeconds: u.cpu,
		Starting:   hearth.Occupancy{ByteSeconds: u.starting},
		Busy:       hearth.Occupancy{ByteSeconds: u.busy},
		Idle:       hearth.Occupancy{ByteSeconds: u.idle},
	}}, 0)
}

// starts is for a call whose instance starts for it and ends after it.
func (m measured) starts() use {
	run := min(m.cold.RunMS, m.cold.Wall.P50MS) / 1000
	return use{cpu: m.cold.CPUPer1000 / 1000, starting: m.pss * (m.cold.Wall.P50MS/1000 - run), busy: m.pss * run}
}

// finds is for a call that finds an instance, by itself.
func (m measured) finds() use {
	return use{cpu: m.one.CPUPer1000 / 1000, busy: m.pss * m.one.P50MS / 1000}
}

// of computes what a call of a shape uses, and the latency of the shape in
// milliseconds; or says why it cannot.
func (m measured) of(s Shape, mode Mode) (u use, latency float64, problem string) {
	switch {
	case mode == ModeCold:
		if problem = m.lacks(true, false, false); problem != "" {
			return use{}, 0, problem
		}
		return m.starts(), m.cold.Wall.P50MS, ""
	case mode == ModeBoth:
		if problem = m.lacks(true, true, false); problem != "" {
			return use{}, 0, problem
		}
		const share = float64(burstCallers) / burstCalls
		u = m.starts().times(share).plus(m.finds().times(1 - share))
		held := m.pss * burstTime.Seconds() * share
		u.idle = max(held-u.starting-u.busy, 0)
		// The instances start together, and share the cores.
		all := burstCallers * m.cold.CPUPer1000 / float64(m.cores)
		return u, max(m.cold.Wall.P50MS, all), ""
	case s.Every > 0:
		if problem = m.lacks(false, true, false); problem != "" {
			return use{}, 0, problem
		}
		u = m.finds()
		// Calls that take longer than it is to the next need more than one instance.
		held := m.pss * math.Ceil(m.one.P50MS/1000/s.Every) * s.Every
		u.idle = max(held-u.busy, 0)
		return u, m.one.P50MS, ""
	default:
		if problem = m.lacks(false, false, true); problem != "" {
			return use{}, 0, problem
		}
		return use{cpu: m.many.CPUPer1000 / 1000, busy: m.pss * float64(m.instances) / m.many.Throughput}, m.many.P50MS, ""
	}
}

// costs returns the cost of a shape in each of its modes.
func (m measured) costs(s Shape, p hearth.MachinePrice) []ShapeCost {
	var out []ShapeCost
	best, complete := 0, true
	for i, mode := range s.Modes {
		x := ShapeCost{Shape: s.Name, Mode: mode, Driver: m.driver, Runtime: m.runtime, Workload: m.workload}
		u, latency, problem := m.of(s, mode)
		if x.Problem = problem; problem == "" {
			x.Cost, x.LatencyMS = u.cost(p), latency
			x.PerMonth = x.Cost.Total / million * s.CallsPerMonth
		}
		complete = complete && problem == ""
		if out = append(out, x); x.Cost.Total < out[best].Cost.Total {
			best = i
		}
	}
	out[best].Cheapest = complete
	return out
}

func (c Comparison) instanceCost(driver, runtime string, p hearth.MachinePrice) InstanceCost {
	i := c.idleOf(driver, runtime)
	out := InstanceCost{Driver: driver, Runtime: runtime, Problem: i.Problem}
	if i.Problem == "" {
		out.PSS, out.PerGiB = i.PSS, float64(1<<30)/float64(i.PSS)
		out.KeepWarmPerMonth = perByteSecond(p) * float64(i.PSS) * hearth.Month.Seconds()
	}
	return out
}

func perByteSecond(p hearth.MachinePrice) float64 { return p.GBSecond() / (1 << 30) }

func (m measured) breakEven(p hearth.MachinePrice) BreakEven {
	out := BreakEven{Driver: m.driver, Runtime: m.runtime, Workload: m.workload, Problem: m.lacks(true, true, false)}
	if out.Problem != "" {
		return out
	}
	out.Cold, out.Warm, out.WarmMS = m.starts().cost(p).Total, m.finds().cost(p).Total, m.one.P50MS
	out.KeepWarmPerHour = perByteSecond(p) * m.pss * time.Hour.Seconds()
	if more := (out.Cold - out.Warm) / million; more > 0 {
		// An instance waits from the end of a call to the next: with t hours between
		// calls, keeping warm costs KeepWarmPerHour × (t − run), and starting more.
		t := m.one.P50MS/1000/time.Hour.Seconds() + more/out.KeepWarmPerHour
		n := 1 / t // 0 if keeping warm costs nothing
		out.CallsPerHour = &n
	}
	return out
}

// at is what a million calls cost with so many an hour that an instance is kept
// warm for, the calls one after the other.
func (b BreakEven) at(callsPerHour float64) float64 {
	idle := max(1/callsPerHour-b.WarmMS/1000/time.Hour.Seconds(), 0)
	return b.Warm + idle*b.KeepWarmPerHour*million
}

// cloudCosts returns what clouds ask for the calls of a workload.
func (c Comparison) cloudCosts(runtime, workload string, clouds []hearth.CloudPrice) []CloudShapeCost {
	var fastest *measured
	for _, d := range c.working() {
		if m := c.measured(d, runtime, workload); m.problem == "" && m.one != nil && (fastest == nil || m.one.P50MS < fastest.one.P50MS) {
			fastest = &m
		}
	}
	if fastest == nil {
		return nil
	}
	run, load := fastest.one.P50MS/1000, 0.0
	if fastest.cold != nil {
		load = fastest.cold.InitMS / 1000
	}
	var out []CloudShapeCost
	for _, cloud := range clouds {
		for _, s := range Shapes() {
			cold := map[Mode]int64{ModeCold: million, ModeBoth: million * burstCallers / burstCalls}[s.Modes[0]]
			if len(s.Modes) > 1 {
				cold = 0 // between calls a minute apart clouds keep instances, for nothing
			}
			v := cloud.Cost(hearth.StatsNumbers{Phases: map[string]hearth.Durations{
				"run": {Count: million, Mean: run}, "init": {Count: cold, Mean: load},
			}}, compareMemory, cloudCores)
			if s.Name == alwaysWarm {
				warm := cloud.Warm(compareMemory)
				if warm == 0 {
					continue // cannot be bought
				}
				v += warm / s.CallsPerMonth * million
			}
			out = append(out, CloudShapeCost{
				Cloud: cloud.Name, Shape: s.Name, Runtime: runtime, Workload: workload,
				Driver: fastest.driver, RunMS: run * 1000, InitMS: load * 1000, PerMillion: v,
			})
		}
	}
	return out
}
