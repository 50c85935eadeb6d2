package bench

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The markers between which UpdateMarkdown writes.
const (
	costsBegin = "<!-- hearth cost compare: begin -->"
	costsEnd   = "<!-- hearth cost compare: end -->"
)

func (c Costs) warning() string { return Comparison{BusyAtRest: c.BusyAtRest}.warning() }

// price says what the machine is taken to cost.
func (c Costs) price() string {
	m := c.Prices.Machine
	text := fmt.Sprintf("%s %s a month for %g cores and %.1f GiB, %s%% of it for the cores",
		strconv.FormatFloat(m.PerMonth, 'f', -1, 64), c.Prices.Currency, m.Cores, float64(m.Memory)/(1<<30), figures(100*m.CPUShare))
	if m.PerMillionRequests > 0 {
		text += fmt.Sprintf("; %s %s for a million calls", money(m.PerMillionRequests), c.Prices.Currency)
	}
	return text
}

// notCounted is what every report says of its limits.
const notCounted = "Memory is that of an instance of the empty function: what a function loads itself comes on top under each driver alike. What functions send is not counted."

// Table returns the costs for people, as plain text that ends with a newline.
func (c Costs) Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hearth cost compare\n  %s\n  hearth %s, %s\n", c.Machine.line(), c.Version, c.Date.Format("2006-01-02 15:04 MST"))
	if c.Command != "" {
		fmt.Fprintf(&b, "  %s\n", c.Command)
	}
	fmt.Fprintf(&b, "  machine: %s\n", c.price())
	if w := c.warning(); w != "" {
		fmt.Fprintf(&b, "  %s\n", w)
	}
	b.WriteString("\nSHAPES\n")
	var rows []row
	for _, s := range c.Shapes {
		rows = append(rows, row{cells: []string{s.Name}, note: s.About})
	}
	b.WriteString(layout(rows))
	for _, r := range c.Runtimes {
		fmt.Fprintf(&b, "\n%s: WHAT TO TAKE\n%s", strings.ToUpper(languageTitle(r)), wrapped(adviceNote, "  ", 100))
		for _, a := range c.Advice {
			if a.Runtime == r {
				fmt.Fprintf(&b, "  %s\n%s", a.Shape, wrapped(a.Text, "    ", 96))
				for _, t := range a.Stronger {
					b.WriteString(wrapped(t, "    ", 96))
				}
			}
		}
		for _, s := range c.sections(r) {
			if s.detail {
				continue
			}
			fmt.Fprintf(&b, "\n%s  (%s)\n%s", strings.ToUpper(s.title), s.unit, layout(s.rows()))
			for _, n := range s.notes {
				b.WriteString(wrapped(n, "  ", 100))
			}
		}
	}
	b.WriteString("\n" + wrapped(notCounted+" Each function by itself: --html, --markdown or -o json.", "  ", 100))
	return b.String()
}

// wrapped breaks text into lines of at most width letters, each after indent.
func wrapped(text, indent string, width int) string {
	var b strings.Builder
	n := 0
	for _, word := range strings.Fields(text) {
		switch l := len([]rune(word)); {
		case n == 0:
			b.WriteString(indent + word)
			n = l
		case n+1+l > width:
			b.WriteString("\n" + indent + word)
			n = l
		default:
			b.WriteString(" " + word)
			n += 1 + l
		}
	}
	return b.String() + "\n"
}

// Markdown returns the costs as text and tables for a page.
func (c Costs) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s with Hearth %s on %s", c.Date.Format("2 January 2006"), c.Version, c.Machine.line())
	if c.Command != "" {
		fmt.Fprintf(&b, " by\n\n    %s\n", c.Command)
	} else {
		b.WriteString(".\n")
	}
	fmt.Fprintf(&b, "\nThe machine costs %s.\n", markdownText(c.price()))
	if w := c.warning(); w != "" {
		fmt.Fprintf(&b, "\n**%s**\n", w)
	}
	for _, r := range c.Runtimes {
		fmt.Fprintf(&b, "\n**%s: what to take.** %s\n\n", languageTitle(r), adviceNote)
		for _, a := range c.Advice {
			if a.Runtime == r {
				fmt.Fprintf(&b, "- *%s:* %s\n", a.Shape, markdownText(strings.Join(append([]string{a.Text}, a.Stronger...), " ")))
			}
		}
		for _, s := range c.sections(r) {
			s.markdown(&b)
		}
	}
	b.WriteString("\n" + notCounted + "\n")
	return b.String()
}

// UpdateMarkdown is that of Comparison, with markers of its own.
func (c Costs) UpdateMarkdown(file string) error {
	return updateMarkdown(file, costsBegin, costsEnd, c.Markdown())
}

// languageTitle is what a language is called.
func languageTitle(language string) string {
	if t := map[string]string{"python": "Python", "nodejs": "Node.js"}[language]; t != "" {
		return t
	}
	return language
}

// way is a shape in one of its modes, or in the cheapest if mode is empty.
type way struct {
	shape Shape
	mode  Mode
	name  string
}

func (c Costs) ways() []way {
	var out []way
	for _, s := range c.Shapes {
		for _, m := range s.Modes {
			w := way{s, m, s.Name}
			if len(s.Modes) > 1 {
				w.name += map[Mode]string{ModeCold: ", each call cold", ModeWarm: ", kept warm"}[m]
			}
			out = append(out, w)
		}
	}
	return out
}

// of returns the cost of a workload; nil without figures.
func (c Costs) of(w way, driver, runtime, workload string) *ShapeCost {
	for i, x := range c.Costs {
		if x.Shape == w.shape.Name && x.Mode == w.mode && x.Driver == driver && x.Runtime == runtime && x.Workload == workload && x.Problem == "" {
			return &c.Costs[i]
		}
	}
	return nil
}

// sections returns the tables of a language: means first, then each shape.
func (c Costs) sections(runtime string) []section {
	out := c.means(runtime)
	out = append(out, c.breakEvenSection(runtime), c.warmSection(runtime))
	for _, w := range c.ways() {
		out = append(out, c.waySection(runtime, w))
	}
	return slices.DeleteFunc(out, func(s section) bool { return len(s.lines) == 0 })
}

// add appends a line unless it is empty.
func (s *section) add(name, about string, values []sectionValue) {
	if slices.ContainsFunc(values, func(v sectionValue) bool { return v != none }) {
		s.lines = append(s.lines, sectionLine{name: name, about: about, values: values})
	}
}

// digits is a format with about three digits that say something.
func digits(v float64) string {
	switch {
	case v < 9.995:
		return "%.2f"
	case v < 99.95:
		return "%.1f"
	}
	return "%.0f"
}

func amount(v float64) sectionValue { return sectionValue{text: money(v), value: v} }

// means are the tables of shapes in rows, over the workloads that can be compared.
func (c Costs) means(runtime string) []section {
	title := languageTitle(runtime)
	cost := section{id: runtime + "-cost", title: title + ": a million calls", unit: c.Prices.Currency + ", mean of the functions", columns: c.Drivers}
	month := section{id: runtime + "-month", title: title + ": a month of such calls", unit: c.Prices.Currency + ", mean of the functions", columns: c.Drivers}
	wait := section{id: runtime + "-latency", title: title + ": what a caller waits", unit: "milliseconds, mean of the functions", columns: c.Drivers}
	clouds := section{id: runtime + "-clouds", title: title + ": a million calls, compared with clouds", unit: c.Prices.Currency + ", mean of the functions, each shape in its cheapest mode", columns: slices.Clone(c.Drivers)}
	for _, p := range c.Prices.Clouds {
		clouds.columns = append(clouds.columns, p.Name)
	}
	for _, w := range c.ways() {
		drivers, workloads := c.common(w.shape.Name, runtime)
		var costs, months, waits []sectionValue
		for _, d := range c.Drivers {
			var total, latency []float64
			for _, wl := range workloads {
				if x := c.of(w, d, runtime, wl); x != nil && slices.Contains(drivers, d) {
					total, latency = append(total, x.Cost.Total), append(latency, x.LatencyMS)
				}
			}
			if len(total) == 0 || len(total) < len(workloads) {
				costs, months, waits = append(costs, none), append(months, none), append(waits, none)
				continue
			}
			mean := geometricMean(total)
			costs = append(costs, amount(mean))
			waits = append(waits, figure(geometricMean(latency), true, digits(geometricMean(latency))))
			if n := w.shape.CallsPerMonth; n > 0 {
				months = append(months, amount(mean/million*n))
			} else {
				months = append(months, none)
			}
		}
		cost.add(w.name, w.shape.About, costs)
		month.add(w.name, w.shape.About, months)
		wait.add(w.name, w.shape.Latency, waits)
	}
	for _, a := range c.Advice {
		if a.Runtime == runtime {
			clouds.add(a.Shape, c.shape(a.Shape).About, c.cloudValues(a, clouds.columns))
		}
	}
	cost.notes = c.problems(runtime)
	clouds.notes = c.cloudNotes()
	if len(c.Prices.Clouds) == 0 {
		clouds.lines = nil // the same as cost
	}
	return []section{cost, month, wait, clouds}
}

func (c Costs) shape(name string) Shape {
	for _, s := range c.Shapes {
		if s.Name == name {
			return s
		}
	}
	return Shape{}
}

// cloudValues are the means of the drivers, and those of the clouds for the same
// functions.
func (c Costs) cloudValues(a Advice, columns []string) []sectionValue {
	var out []sectionValue
	for i, name := range columns {
		v := none
		if i < len(c.Drivers) {
			for _, m := range a.Drivers {
				if m.Driver == name {
					v = amount(m.PerMillion)
				}
			}
		} else {
			var all []float64
			for _, x := range c.Clouds {
				if x.Cloud == name && x.Shape == a.Shape && x.Runtime == a.Runtime && slices.Contains(a.Workloads, x.Workload) {
					all = append(all, x.PerMillion)
				}
			}
			if len(all) > 0 {
				v = amount(geometricMean(all))
			}
		}
		out = append(out, v)
	}
	return out
}

func (c Costs) cloudNotes() []string {
	return []string{fmt.Sprintf("Clouds: list prices for a function with %s and, where cores are sold by themselves, %g of them. Its calls are taken to need as long there as under the fastest driver here, and starting an instance as long as the function's code takes to load. What clouds give away is left out.",
		c.CloudMemory, c.CloudCores)}
}

func (c Costs) breakEvenSection(runtime string) section {
	s := section{
		id: runtime + "-break-even", title: languageTitle(runtime) + ": when keeping an instance warm costs less than starting it",
		unit: "calls an hour and more", columns: c.Drivers, drawn: true,
	}
	for _, w := range c.Workloads {
		values := make([]sectionValue, len(c.Drivers))
		for i, d := range c.Drivers {
			values[i] = none
			if e := c.breakEven(d, runtime, w); e != nil && e.CallsPerHour != nil {
				values[i] = figure(*e.CallsPerHour, true, digits(*e.CallsPerHour))
			}
		}
		s.add(w, about(w), values)
	}
	return s
}

func (c Costs) breakEven(driver, runtime, workload string) *BreakEven {
	for i, e := range c.BreakEvens {
		if e.Driver == driver && e.Runtime == runtime && e.Workload == workload && e.Problem == "" {
			return &c.BreakEvens[i]
		}
	}
	return nil
}

func (c Costs) warmSection(runtime string) section {
	s := section{id: runtime + "-warm", title: languageTitle(runtime) + ": what keeping an instance warm costs", unit: c.Prices.Currency + " a month", columns: slices.Clone(c.Drivers)}
	for _, x := range c.CloudsWarm {
		s.columns = append(s.columns, x.Cloud)
	}
	values := make([]sectionValue, 0, len(s.columns))
	room := make([]string, 0, len(c.Drivers))
	for _, x := range c.Instances {
		switch {
		case x.Runtime != runtime:
		case x.Problem != "":
			values = append(values, none)
			s.notes = append(s.notes, x.Driver+": "+x.Problem)
		default:
			values = append(values, amount(x.KeepWarmPerMonth))
			room = append(room, fmt.Sprintf("%.0f under %s", x.PerGiB, x.Driver))
		}
	}
	if len(room) == 0 {
		return s
	}
	for _, x := range c.CloudsWarm {
		values = append(values, amount(x.PerMonth))
	}
	s.add("one instance", "of the empty function; in a cloud with "+c.CloudMemory.String(), values)
	s.notes = append(s.notes, "Instances in a GiB: "+strings.Join(room, ", ")+".")
	return s
}

// waySection is a shape in one mode: functions in rows.
func (c Costs) waySection(runtime string, w way) section {
	s := section{
		id:    runtime + "-" + strings.NewReplacer(" ", "-", ",", "").Replace(w.name),
		title: fmt.Sprintf("%s: a million calls, %s", languageTitle(runtime), w.name), unit: c.Prices.Currency + "; " + w.shape.About, columns: c.Drivers, detail: true,
	}
	for _, wl := range c.Workloads {
		values := make([]sectionValue, len(c.Drivers))
		for i, d := range c.Drivers {
			values[i] = none
			if x := c.of(w, d, runtime, wl); x != nil {
				values[i] = amount(x.Cost.Total)
			}
		}
		s.add(wl, about(wl), values)
	}
	return s
}
