package hearth

import (
	"fmt"
	"math"
	"time"
)

// This file is the model of what functions cost. docs/cost.md explains it.

// Month is what clouds call one: 730 hours.
const Month = 730 * time.Hour

// Prices say what the machine costs, and clouds with which that is compared.
type Prices struct {
	Currency string       `json:"currency" doc:"Of all prices" example:"USD"`
	Machine  MachinePrice `json:"machine" doc:"What this machine costs"`
	Clouds   []CloudPrice `json:"clouds" doc:"With what that is compared"`
}

// MachinePrice is what a machine costs. Its price is split between its cores and its
// memory, and each function pays for what it used of them.
type MachinePrice struct {
	PerMonth float64 `json:"per_month" doc:"Price of the machine for a month of 730 hours" example:"20"`
	Cores    float64 `json:"cores" doc:"Its cores" example:"2"`
	Memory   Bytes   `json:"memory" doc:"Its memory"`
	// CPUShare is the part of the price that is for the cores, from 0 to 1.
	CPUShare float64 `json:"cpu_share" doc:"Part of the price that is for the cores; the rest is for the memory" example:"0.5"`
	// PerMillionRequests and PerGBOut are what each costs besides; in 2^30 bytes.
	PerMillionRequests float64 `json:"per_million_requests" doc:"What a million calls cost besides"`
	PerGBOut           float64 `json:"per_gb_out" doc:"What a GiB costs that functions send, in responses too"`
}

// CloudPrice is what a cloud asks for calls.
type CloudPrice struct {
	Name   string `json:"name" doc:"Of the cloud's product" example:"aws-lambda"`
	Source string `json:"source,omitempty" doc:"Where the prices come from, and of when they are"`
	// PerMillionRequests is for calls, PerGBSecond and PerCoreSecond are for the memory
	// (in 2^30 bytes) and the cores that a function is given, for as long as a call runs.
	PerMillionRequests float64 `json:"per_million_requests" doc:"For a million calls"`
	PerGBSecond        float64 `json:"per_gb_second" doc:"For a second with a GiB of memory, as much as the function is given"`
	PerCoreSecond      float64 `json:"per_core_second,omitempty" doc:"For a second with a core, as many as the function is given"`
	// Granularity is what the duration of a call is rounded up to, MinDuration and
	// MinMemory are the least that is charged.
	Granularity Duration `json:"granularity,omitempty" doc:"What the duration of a call is rounded up to a multiple of"`
	MinDuration Duration `json:"min_duration,omitempty" doc:"The least duration that is charged"`
	MinMemory   Bytes    `json:"min_memory,omitempty" doc:"The least memory that is charged"`
	// WarmPerGBSecond is for an instance that is kept warm.
	WarmPerGBSecond float64 `json:"warm_per_gb_second,omitempty" doc:"For a second with a GiB of an instance that is kept warm; 0 where that cannot be bought"`
	PerGBOut        float64 `json:"per_gb_out,omitempty" doc:"For a GiB that functions send, in responses too"`
}

// DefaultPrices returns prices of a machine for which nobody said what it costs, and the
// list prices of clouds for small users, without what they give away.
func DefaultPrices(cores float64, memory Bytes) Prices {
	return Prices{
		Currency: "USD",
		// What a small rented server costs, roughly: 10 USD for a core with its memory.
		Machine: MachinePrice{PerMonth: 10 * cores, Cores: cores, Memory: memory, CPUShare: 0.5},
		Clouds: []CloudPrice{
			{
				Name: "aws-lambda", Source: "aws.amazon.com/lambda/pricing, x86, us-east-1, 2026",
				PerMillionRequests: 0.20, PerGBSecond: 0.0000166667, Granularity: Duration(time.Millisecond), MinMemory: 128 << 20,
				WarmPerGBSecond: 0.0000041667, PerGBOut: 0.09,
			},
			{
				Name: "aws-lambda-arm", Source: "aws.amazon.com/lambda/pricing, arm64, us-east-1, 2026",
				PerMillionRequests: 0.20, PerGBSecond: 0.0000133334, Granularity: Duration(time.Millisecond), MinMemory: 128 << 20,
				WarmPerGBSecond: 0.0000033334, PerGBOut: 0.09,
			},
			{
				Name: "google-cloud-run", Source: "cloud.google.com/run/pricing, billed by request, us-central1, 2026",
				PerMillionRequests: 0.40, PerGBSecond: 0.0000025, PerCoreSecond: 0.000024, Granularity: Duration(100 * time.Millisecond),
				MinDuration: Duration(100 * time.Millisecond), MinMemory: 128 << 20, PerGBOut: 0.12,
			},
			{
				Name: "azure-functions", Source: "azure.microsoft.com/pricing/details/functions, consumption, 2026",
				PerMillionRequests: 0.20, PerGBSecond: 0.000016, Granularity: Duration(time.Millisecond),
				MinDuration: Duration(100 * time.Millisecond), MinMemory: 128 << 20, PerGBOut: 0.087,
			},
		},
	}
}

// maxClouds bounds a list of prices.
const maxClouds = 50

// Validate checks p. Errors: CodeInvalid.
func (p Prices) Validate() error {
	bad := func(hint, format string, args ...any) error {
		return Errorf(CodeInvalid, format, args...).WithHint("%s", hint)
	}
	numbers := map[string]float64{
		"machine.per_month": p.Machine.PerMonth, "machine.per_million_requests": p.Machine.PerMillionRequests,
		"machine.per_gb_out": p.Machine.PerGBOut,
	}
	seen := map[string]bool{}
	for i, c := range p.Clouds {
		at := fmt.Sprintf("clouds[%d].", i)
		for name, n := range map[string]float64{
			"per_million_requests": c.PerMillionRequests, "per_gb_second": c.PerGBSecond, "per_core_second": c.PerCoreSecond,
			"warm_per_gb_second": c.WarmPerGBSecond, "per_gb_out": c.PerGBOut, "granularity": float64(c.Granularity),
			"min_duration": float64(c.MinDuration), "min_memory": float64(c.MinMemory),
		} {
			numbers[at+name] = n
		}
		if c.Name == "" || len(c.Name) > 63 || seen[c.Name] {
			return bad("give each cloud a name of its own, of at most 63 characters", "%sname: %q is not possible", at, c.Name)
		}
		seen[c.Name] = true
	}
	for name, n := range numbers {
		if n < 0 || math.IsNaN(n) || math.IsInf(n, 0) {
			return bad("write a price of 0 or more", "%s: %v is not possible", name, n)
		}
	}
	m := p.Machine
	switch {
	case p.Currency == "" || len(p.Currency) > 8:
		return bad("write for example EUR", "currency: %q is not possible", p.Currency)
	case !(m.Cores > 0) || math.IsInf(m.Cores, 0):
		return bad("write how many cores the machine has", "machine.cores: %v is not possible", m.Cores)
	case m.Memory <= 0:
		return bad("write how much memory the machine has, such as 8GiB", "machine.memory: %d is not possible", m.Memory)
	case !(m.CPUShare >= 0 && m.CPUShare <= 1):
		return bad("write a number from 0 to 1", "machine.cpu_share: %v is not possible", m.CPUShare)
	case len(p.Clouds) > maxClouds:
		return bad(fmt.Sprintf("list at most %d", maxClouds), "there are %d clouds", len(p.Clouds))
	}
	return nil
}

// CoreSecond and GBSecond are what the machine costs by what it has: a second of a core
// and a second of 2^30 bytes.
func (m MachinePrice) CoreSecond() float64 {
	return m.PerMonth * m.CPUShare / m.Cores / Month.Seconds()
}

// GBSecond: see CoreSecond.
func (m MachinePrice) GBSecond() float64 {
	return m.PerMonth * (1 - m.CPUShare) / (float64(m.Memory) / gb) / Month.Seconds()
}

const gb = 1 << 30

// Cost is what calls and their instances cost, in the currency of the prices.
type Cost struct {
	// Calls are those that an instance had: not what was refused or answered from the
	// cache.
	Calls int64 `json:"calls" doc:"Calls that an instance had"`
	// CPU is for computing, Busy, Starting and KeepWarm are for memory while there were
	// calls, until instances were ready, and while there were none.
	CPU      float64 `json:"cpu" doc:"For computing"`
	Busy     float64 `json:"busy" doc:"For the memory of instances while they had calls"`
	Starting float64 `json:"starting" doc:"For the memory of instances until they were ready"`
	KeepWarm float64 `json:"keep_warm" doc:"For the memory of instances that were kept warm without a call"`
	Requests float64 `json:"requests" doc:"For the number of calls"`
	Network  float64 `json:"network" doc:"For what functions sent"`
	Total    float64 `json:"total" doc:"All of that"`
	// PerMillion is Total for a million calls at the same rate; 0 without calls.
	PerMillion float64 `json:"per_million" doc:"All of that for a million calls at the same rate; 0 without calls"`
	// KeepWarmPerMonth is KeepWarm for a month that is like the time looked at.
	KeepWarmPerMonth float64 `json:"keep_warm_per_month" doc:"What keeping it warm costs in a month that is like the time looked at"`
}

// Cost returns what calls and their instances cost in a span of time.
func (m MachinePrice) Cost(n StatsNumbers, span time.Duration) Cost {
	u, calls := n.Usage, n.Phases["run"].Count
	c := Cost{
		Calls: calls, CPU: u.CPUSeconds * m.CoreSecond(),
		Busy: u.Busy.ByteSeconds / gb * m.GBSecond(), Starting: u.Starting.ByteSeconds / gb * m.GBSecond(),
		KeepWarm: u.Idle.ByteSeconds / gb * m.GBSecond(),
		Requests: float64(calls) / 1e6 * m.PerMillionRequests, Network: float64(n.sent()) / gb * m.PerGBOut,
	}
	c.Total = c.CPU + c.Busy + c.Starting + c.KeepWarm + c.Requests + c.Network
	if calls > 0 {
		c.PerMillion = c.Total / float64(calls) * 1e6
	}
	if span > 0 {
		c.KeepWarmPerMonth = c.KeepWarm * float64(Month) / float64(span)
	}
	return c
}

// Add returns the sum of both.
func (c Cost) Add(d Cost) Cost {
	c.Calls += d.Calls
	c.CPU += d.CPU
	c.Busy += d.Busy
	c.Starting += d.Starting
	c.KeepWarm += d.KeepWarm
	c.Requests += d.Requests
	c.Network += d.Network
	c.Total += d.Total
	c.KeepWarmPerMonth += d.KeepWarmPerMonth
	if c.PerMillion = 0; c.Calls > 0 {
		c.PerMillion = c.Total / float64(c.Calls) * 1e6
	}
	return c
}

// Cost returns what the cloud would ask for the same calls of a function that is given so
// much memory and so many cores. Rounding up adds half of Granularity to a call on average.
// The loading of a function counts as its calls do. Nothing is kept warm.
func (c CloudPrice) Cost(n StatsNumbers, memory Bytes, cores float64) float64 {
	run, load := n.Phases["run"], n.Phases["init"]
	each := max(run.Mean+time.Duration(c.Granularity).Seconds()/2, time.Duration(max(c.MinDuration, c.Granularity)).Seconds())
	seconds := each*float64(run.Count) + load.Mean*float64(load.Count)
	perSecond := float64(max(memory, c.MinMemory))/gb*c.PerGBSecond + cores*c.PerCoreSecond
	return float64(run.Count)/1e6*c.PerMillionRequests + seconds*perSecond + float64(n.sent())/gb*c.PerGBOut
}

// sent returns how many bytes functions sent: in responses, and on connections of theirs.
func (n StatsNumbers) sent() int64 { return n.BytesOut + n.Usage.NetworkOut }

// Warm returns what the cloud asks for an instance with so much memory that is kept warm
// for a month; 0 where that cannot be bought.
func (c CloudPrice) Warm(memory Bytes) float64 {
	return float64(max(memory, c.MinMemory)) / gb * c.WarmPerGBSecond * Month.Seconds()
}

// CostReport is what functions cost in a span of time.
type CostReport struct {
	From time.Time `json:"from" doc:"Beginning of the span"`
	To   time.Time `json:"to" doc:"End of the span"`
	// Prices are those that it was computed with.
	Prices Prices `json:"prices" doc:"The prices that it was computed with"`
	// Assumed is true if nobody said what the machine costs.
	Assumed bool `json:"assumed,omitempty" doc:"Whether nobody said what the machine costs"`
	// Machine is what the machine cost in that time, whatever used it.
	Machine float64 `json:"machine" doc:"What the machine cost in that time, whatever used it"`
	// Cost is that of all functions together, with stem cells.
	Cost
	// Clouds is what the same calls would have cost, by the names of the clouds.
	Clouds map[string]float64 `json:"clouds" doc:"What the same calls would have cost elsewhere, by the names of the clouds in prices"`
	// Isolations and Functions are the parts, the most expensive first.
	Isolations []IsolationCost `json:"isolations" doc:"The part of each isolation technology, the most expensive first"`
	Functions  []FunctionCost  `json:"functions" doc:"The part of each function, the most expensive first"`
}

// IsolationCost is what all functions under one isolation technology cost.
type IsolationCost struct {
	Isolation string `json:"isolation" doc:"Isolation technology" example:"native"`
	// StemCells is the part for sandboxes that had no function yet.
	StemCells float64 `json:"stem_cells" doc:"The part for sandboxes that had no function yet"`
	Cost
}

// FunctionCost is what a function costs.
type FunctionCost struct {
	Function  string `json:"function" doc:"Name of the function" example:"hello"`
	Isolation string `json:"isolation" doc:"Isolation technology it ran under" example:"native"`
	Cost
	Clouds map[string]float64 `json:"clouds" doc:"What the same calls would have cost elsewhere, by the names of the clouds in prices"`
}
