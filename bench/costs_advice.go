package bench

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// closeCost is what costs practically the same: the strongest of those within it of
// the cheapest is recommended.
const closeCost = 1.05

// strength ranks what stands between a function and the host, for the code of
// strangers: 1 is the host's kernel behind filters, 2 the same with the root and the
// profiles of a container, 3 a kernel of its own before that; 0 is not known. See
// docs/isolation.md.
func strength(driver string) int {
	return map[string]int{"native": 1, "runc": 2, "docker": 2, "gvisor": 3}[driver]
}

// adviceNote says how to read advice.
const adviceNote = "The first is for code that you trust: the cheapest, or one that is stronger and costs at most 5% more. For the code of strangers take a stronger one."

// Advice is what to take for a shape of calls in a language.
type Advice struct {
	Shape   string `json:"shape"`
	Runtime string `json:"runtime"`
	// Text says it for people, and Stronger what each stronger technology costs more.
	Text     string   `json:"text"`
	Stronger []string `json:"stronger,omitempty"`
	// Recommended is the strongest of the drivers whose cost is within 5 % of that of
	// the cheapest. All are empty if nothing was measured.
	Recommended string `json:"recommended,omitempty"`
	Cheapest    string `json:"cheapest,omitempty"`
	Fastest     string `json:"fastest,omitempty"`
	// Workloads are those that all drivers have figures for: means are over them.
	// Left are the others.
	Workloads []string     `json:"workloads"`
	Left      []string     `json:"workloads_left_out,omitempty"`
	Drivers   []DriverMean `json:"drivers"` // the cheapest first
}

// DriverMean is what a driver costs over workloads; means are geometric.
type DriverMean struct {
	Driver     string  `json:"driver"`
	Strength   int     `json:"strength"`
	PerMillion float64 `json:"per_million"`
	PerMonth   float64 `json:"per_month,omitempty"`
	LatencyMS  float64 `json:"latency_ms"`
	// Warm is for how many of the workloads keeping instances is the cheapest mode.
	Warm int `json:"warm"`
}

// best returns the cost of a shape in its cheapest mode; nil without figures.
func (c Costs) best(shape, driver, runtime, workload string) *ShapeCost {
	for i, x := range c.Costs {
		if x.Cheapest && x.Shape == shape && x.Driver == driver && x.Runtime == runtime && x.Workload == workload {
			return &c.Costs[i]
		}
	}
	return nil
}

// common returns the drivers that can be compared for a shape in a language, and the
// workloads that all of them have figures for. Without one the driver with the
// fewest is left out.
func (c Costs) common(shape, runtime string) (drivers, workloads []string) {
	has := map[string][]string{}
	for _, d := range c.Drivers {
		for _, w := range c.Workloads {
			if c.best(shape, d, runtime, w) != nil {
				has[d] = append(has[d], w)
			}
		}
		if len(has[d]) > 0 {
			drivers = append(drivers, d)
		}
	}
	for len(drivers) > 0 {
		for _, w := range c.Workloads {
			if !slices.ContainsFunc(drivers, func(d string) bool { return !slices.Contains(has[d], w) }) {
				workloads = append(workloads, w)
			}
		}
		if len(workloads) > 0 {
			return drivers, workloads
		}
		fewest := slices.MinFunc(drivers, func(a, b string) int { return len(has[a]) - len(has[b]) })
		drivers = slices.DeleteFunc(drivers, func(d string) bool { return d == fewest })
	}
	return nil, nil
}

// advise says what to take for a shape in a language.
func (c Costs) advise(s Shape, runtime string) Advice {
	a := Advice{Shape: s.Name, Runtime: runtime, Workloads: []string{}, Drivers: []DriverMean{}}
	drivers, workloads := c.common(s.Name, runtime)
	if len(drivers) == 0 {
		a.Text = "Nothing can be said: " + strings.Join(append(c.problems(runtime), "nothing else was measured"), "; ") + "."
		return a
	}
	a.Workloads = workloads
	for _, w := range c.Workloads {
		if !slices.Contains(workloads, w) {
			a.Left = append(a.Left, w)
		}
	}
	for _, d := range drivers {
		m := DriverMean{Driver: d, Strength: strength(d)}
		var cost, latency []float64
		for _, w := range workloads {
			x := c.best(s.Name, d, runtime, w)
			cost, latency = append(cost, x.Cost.Total), append(latency, x.LatencyMS)
			if x.Mode == ModeWarm {
				m.Warm++
			}
		}
		m.PerMillion, m.LatencyMS = geometricMean(cost), geometricMean(latency)
		m.PerMonth = m.PerMillion / million * s.CallsPerMonth
		a.Drivers = append(a.Drivers, m)
	}
	slices.SortStableFunc(a.Drivers, func(x, y DriverMean) int { return cmp.Compare(x.PerMillion, y.PerMillion) })
	fastest := slices.MinFunc(a.Drivers, func(x, y DriverMean) int { return cmp.Compare(x.LatencyMS, y.LatencyMS) })
	take := a.Drivers[0]
	for _, m := range a.Drivers {
		if m.Strength > take.Strength && m.PerMillion <= a.Drivers[0].PerMillion*closeCost {
			take = m
		}
	}
	a.Recommended, a.Cheapest, a.Fastest = take.Driver, a.Drivers[0].Driver, fastest.Driver
	if take.Strength > 0 {
		a.Stronger = c.stronger(s, a, take)
	}
	a.Text = c.say(s, a, take, fastest)
	return a
}

// problems tells for a language what has no figures, and why: each reason once.
func (c Costs) problems(runtime string) []string {
	var out []string
	for _, d := range c.Drivers {
		var reasons []string
		has := map[string][]string{}
		for _, x := range c.Costs {
			if x.Runtime == runtime && x.Driver == d && x.Problem != "" && !slices.Contains(has[x.Problem], x.Workload) {
				if has[x.Problem] == nil {
					reasons = append(reasons, x.Problem)
				}
				has[x.Problem] = append(has[x.Problem], x.Workload)
			}
		}
		for _, r := range reasons {
			out = append(out, fmt.Sprintf("%s under %s: %s", strings.Join(has[r], ", "), d, r))
		}
	}
	return out
}

// say puts an advice into words.
func (c Costs) say(s Shape, a Advice, take, fastest DriverMean) string {
	var b strings.Builder
	price := func(v float64) string { return money(v) + " " + c.Prices.Currency }
	fmt.Fprintf(&b, "Take %s: %s for a million calls", take.Driver, price(take.PerMillion))
	if take.PerMonth > 0 {
		fmt.Fprintf(&b, ", %s for a month of them", price(take.PerMonth))
	}
	fmt.Fprintf(&b, ", %s.", duration(take.LatencyMS))
	if len(s.Modes) > 1 {
		switch take.Warm {
		case len(a.Workloads):
			b.WriteString(" Keeping an instance warm costs less than starting one for each call.")
		case 0:
			b.WriteString(" Starting an instance for each call costs less than keeping one warm.")
		default:
			fmt.Fprintf(&b, " Keeping an instance warm costs less for %d of %d functions.", take.Warm, len(a.Workloads))
		}
	}
	cheapest := a.Drivers[0]
	switch {
	case len(a.Drivers) == 1:
		b.WriteString(" No other has figures.")
	case take.Driver != cheapest.Driver:
		fmt.Fprintf(&b, " %s costs %s and is the weaker wall.", cheapest.Driver, difference(take.PerMillion, cheapest.PerMillion))
	default:
		b.WriteString(" It is the cheapest")
		if take.Driver == fastest.Driver {
			b.WriteString(" and the fastest")
		}
		b.WriteString(".")
	}
	if take.Driver != fastest.Driver {
		fmt.Fprintf(&b, " %s is the fastest: %s.", fastest.Driver, duration(fastest.LatencyMS))
	}
	if len(a.Drivers) > 1 && take.Strength > 0 && len(a.Stronger) == 0 {
		b.WriteString(" None that was measured is stronger.")
	}
	if len(a.Left) > 0 {
		fmt.Fprintf(&b, " Without %s: not all have figures for that.", strings.Join(a.Left, ", "))
	}
	return b.String()
}

// stronger says of the cheapest of each stronger kind what it costs more.
func (c Costs) stronger(s Shape, a Advice, take DriverMean) []string {
	var out []string
	told := take.Strength
	by := slices.Clone(a.Drivers)
	slices.SortStableFunc(by, func(x, y DriverMean) int { return x.Strength - y.Strength })
	for _, m := range by {
		if m.Strength > told {
			told = m.Strength
			out = append(out, c.more(s, a, take, m))
		}
	}
	return out
}

// more says what m costs more than take, in the mean and at the extremes.
func (c Costs) more(s Shape, a Advice, take, m DriverMean) string {
	text := fmt.Sprintf("Stronger: %s, for %s (%s %s for a million calls) and %s",
		m.Driver, difference(take.PerMillion, m.PerMillion), signed(m.PerMillion-take.PerMillion), c.Prices.Currency, duration(m.LatencyMS))
	type extreme struct {
		workload string
		from, to float64
	}
	var all []extreme
	for _, w := range a.Workloads {
		e := extreme{w, c.best(s.Name, take.Driver, a.Runtime, w).Cost.Total, c.best(s.Name, m.Driver, a.Runtime, w).Cost.Total}
		if e.from > 0 {
			all = append(all, e)
		}
	}
	if len(all) > 1 {
		slices.SortStableFunc(all, func(x, y extreme) int { return cmp.Compare(x.to/x.from, y.to/y.from) })
		low, high := all[0], all[len(all)-1]
		if from, to := difference(low.from, low.to), difference(high.from, high.to); from != to {
			text += fmt.Sprintf("; from %s for %s to %s for %s", from, low.workload, to, high.workload)
		}
	}
	return text + "."
}

// money writes an amount with three digits that say something.
func money(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a < 1e-9:
		return "almost 0"
	case a >= 1e15:
		return fmt.Sprintf("%.3g", v)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.*f", 2-int(math.Floor(math.Log10(a))), v)
	}
}

// signed is money with its sign.
func signed(v float64) string {
	if v < 0 {
		return "−" + money(-v)
	}
	return "+" + money(v)
}

// difference says how much more or less b is than a.
func difference(a, b float64) string {
	switch {
	case a == b:
		return "the same"
	case a == 0:
		return "more than nothing"
	case b >= 3*a:
		return fmt.Sprintf("%s times as much", figures(b/a))
	case b > a:
		return percent(a, b) + " more"
	default:
		return percent(a, b) + " less"
	}
}

// percent is how far b is from a, of a.
func percent(a, b float64) string {
	return figures(100*math.Abs(b-a)/a) + "%"
}

// figures writes a ratio with two digits, or as a whole number.
func figures(v float64) string {
	if v < 9.95 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// duration writes milliseconds for people.
func duration(ms float64) string {
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f s", ms/1000)
	}
}
