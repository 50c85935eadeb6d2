package bench

import (
	"fmt"
	"strings"
)

// Table returns the comparison for people, as plain text that ends with a
// newline.
func (c Comparison) Table() string {
	var b strings.Builder
	m := c.Machine
	b.WriteString("hearth bench compare\n")
	fmt.Fprintf(&b, "  %s\n  hearth %s, %s\n", m.line(), c.Version, c.Date.Format("2006-01-02 15:04 MST"))
	if c.Command != "" {
		fmt.Fprintf(&b, "  %s\n", c.Command)
	}
	if warning := c.warning(); warning != "" {
		fmt.Fprintf(&b, "  %s\n", warning)
	}
	var rows []row
	for _, d := range c.Drivers {
		note := d.Summary
		if d.Problem != "" {
			note = "not measured: " + d.Problem
		}
		rows = append(rows, row{cells: []string{d.Name}, note: note})
	}
	b.WriteString("\nDRIVERS\n" + layout(rows))
	for _, runtime := range c.runtimes() {
		for _, s := range c.sections(runtime) {
			fmt.Fprintf(&b, "\n%s  (%s)\n%s", strings.ToUpper(s.title), s.unit, layout(s.rows()))
			for _, n := range s.notes {
				fmt.Fprintf(&b, "  %s\n", n)
			}
		}
	}
	if len(c.Ratios) > 0 {
		b.WriteString("\nRATIOS  (of medians of this run)\n" + layout(Report{Checks: c.Ratios}.checkRows()))
	}
	return b.String()
}

// line describes the machine in one line.
func (m Machine) line() string {
	return fmt.Sprintf("%s, %d cores, %.1f GiB, %s %s, %s", m.CPU, m.Cores, float64(m.Memory)/(1<<30), m.Kernel, m.Arch, m.Go)
}

// warning says when the figures are worth little.
func (c Comparison) warning() string {
	if c.BusyAtRest <= maxBusyAtRest {
		return ""
	}
	return fmt.Sprintf("NOT RELIABLE: something else kept the machine %.0f%% busy; measure again when it is quiet", 100*c.BusyAtRest)
}

// section is one table of the comparison: workloads in rows, drivers in columns.
// All forms of the report are made from it.
type section struct {
	id      string
	title   string // with the language
	unit    string
	columns []string
	lines   []sectionLine
	notes   []string
	// For pages: a section that is drawn as lines, and one that is of interest to few.
	drawn, detail bool
}

type sectionLine struct {
	name   string
	about  string
	values []sectionValue // one for each column
}

// sectionValue is a figure; its text is "–" where there is none.
type sectionValue struct {
	text     string
	value    float64
	low, top float64 // of its spread; both 0 without one
	mark     float64 // what a plain command takes; 0 without one
	markName string
}

var none = sectionValue{text: "–"}

func (s section) rows() []row {
	rows := []row{{cells: append([]string{""}, s.columns...)}}
	for _, l := range s.lines {
		cells := []string{l.name}
		for _, v := range l.values {
			cells = append(cells, v.text)
		}
		rows = append(rows, row{cells: cells})
	}
	return rows
}

// sections returns the tables of a language.
func (c Comparison) sections(runtime string) []section {
	title := languageTitle(runtime)
	last := 1
	for _, n := range c.Connections {
		last = max(last, n)
	}
	out := []section{
		c.coldSection(runtime, "cold", title+": cold call"),
		c.restoredSection(runtime, title+": cold call from a snapshot"),
		c.phaseSection(runtime, title+": where the cold call of the empty function spends its time"),
		c.section(runtime, "p50", title+": warm call", "milliseconds, median, 1 connection", func(x ComparedCell) sectionValue {
			w, ok := x.at(1)
			return figure(w.P50MS, ok, "%.2f")
		}),
		c.section(runtime, "p99", title+": warm call, slowest hundredth", "milliseconds, 99th percentile, 1 connection", func(x ComparedCell) sectionValue {
			w, ok := x.at(1)
			return figure(w.P99MS, ok, "%.2f")
		}),
		c.section(runtime, "rate", title+": throughput", fmt.Sprintf("calls a second, %d connections, %d instances", last, c.Instances), func(x ComparedCell) sectionValue {
			w, ok := x.at(last)
			v := figure(w.Throughput, ok, "%.0f")
			v.low, v.top = w.Slowest, w.Fastest
			return v
		}),
		c.section(runtime, "cpu", title+": processor time of 1,000 warm calls", fmt.Sprintf("seconds, %d connections", last), func(x ComparedCell) sectionValue {
			w, ok := x.at(last)
			return figure(w.CPUPer1000, ok && w.CPUPer1000 > 0, "%.2f")
		}),
		c.section(runtime, "coldcpu", title+": processor time of 1,000 cold calls", "seconds, of the whole machine", func(x ComparedCell) sectionValue {
			calls := x.Cold
			if calls == nil {
				calls = x.Restored
			}
			if calls == nil {
				return none
			}
			return figure(calls.CPUPer1000, true, "%.0f")
		}),
		c.idleSection(runtime, title+": an idle instance"),
	}
	var full []section
	for _, s := range out {
		if len(s.lines) > 0 {
			full = append(full, s)
		}
	}
	return full
}

func figure(v float64, ok bool, format string) sectionValue {
	if !ok {
		return none
	}
	return sectionValue{text: fmt.Sprintf(format, v), value: v}
}

// section asks f for each workload and driver.
func (c Comparison) section(runtime, id, title, unit string, f func(ComparedCell) sectionValue) section {
	s := section{id: runtime + "-" + id, title: title, unit: unit, columns: c.working()}
	for _, w := range c.workloads() {
		l := sectionLine{name: w, about: about(w)}
		any := false
		for _, d := range s.columns {
			v := none
			if x := c.cell(d, runtime, w); x.Problem == "" {
				v = f(x)
			}
			any = any || v != none
			l.values = append(l.values, v)
		}
		if any {
			s.lines = append(s.lines, l)
		}
	}
	return s
}

func about(workload string) string {
	for _, w := range Workloads() {
		if w.Name == workload {
			return w.About
		}
	}
	return ""
}

func (c Comparison) coldSection(runtime, id, title string) section {
	starts := 0
	s := c.section(runtime, id, title, "", func(x ComparedCell) sectionValue {
		if x.Cold == nil {
			return none
		}
		starts = max(starts, x.Cold.Wall.Count)
		return c.coldValue(x, x.Cold.Wall)
	})
	s.unit = fmt.Sprintf("milliseconds, median of %d", starts)
	for _, x := range c.Cells {
		if language(x.Runtime) == runtime && x.Problem != "" {
			s.notes = append(s.notes, fmt.Sprintf("%s under %s: %s", x.Workload, x.Driver, x.Problem))
		}
	}
	for _, w := range c.workloads() {
		var parts []string
		for _, p := range c.Plain {
			switch {
			case p.Workload != w || language(p.Runtime) != runtime:
			case p.Problem != "":
				parts = append(parts, p.Name+" ("+p.Problem+")")
			default:
				parts = append(parts, fmt.Sprintf("%s %.0f", p.Name, p.Wall.P50MS))
			}
		}
		if len(parts) > 0 {
			s.notes = append(s.notes, "plain commands with the "+w+" function, to their first byte: "+strings.Join(parts, ", "))
		}
	}
	return s
}

// coldValue is a time with its spread, and with the plain command's.
func (c Comparison) coldValue(x ComparedCell, w Spread) sectionValue {
	v := sectionValue{text: fmt.Sprintf("%.0f", w.P50MS), value: w.P50MS, low: w.P25MS, top: w.P75MS}
	for _, p := range c.Plain {
		if p.Driver == x.Driver && p.Workload == x.Workload && language(p.Runtime) == language(x.Runtime) && p.Problem == "" {
			v.mark, v.markName = p.Wall.P50MS, p.Name
		}
	}
	return v
}

func (c Comparison) restoredSection(runtime, title string) section {
	s := c.section(runtime, "restored", title, "milliseconds, median", func(x ComparedCell) sectionValue {
		if x.Restored == nil {
			return none
		}
		return c.coldValue(x, x.Restored.Wall)
	})
	return s
}

func (c Comparison) phaseSection(runtime, title string) section {
	s := section{id: runtime + "-phases", title: title, unit: "milliseconds, medians of Server-Timing", columns: c.working()}
	for _, p := range []struct {
		name, about string
		of          func(ColdCalls) float64
	}{
		{"start", "the sandbox, and the interpreter in it", func(x ColdCalls) float64 { return x.StartMS }},
		{"init", "the function's code is loaded", func(x ColdCalls) float64 { return x.InitMS }},
		{"run", "the call itself", func(x ColdCalls) float64 { return x.RunMS }},
	} {
		l := sectionLine{name: p.name, about: p.about}
		any := false
		for _, d := range s.columns {
			x := c.cell(d, runtime, "empty")
			calls := x.Cold
			if calls == nil {
				calls = x.Restored
			}
			v := none
			if calls != nil {
				v, any = figure(p.of(*calls), true, "%.1f"), true
			}
			l.values = append(l.values, v)
		}
		if any {
			s.lines = append(s.lines, l)
		}
	}
	return s
}

func (c Comparison) idleSection(runtime, title string) section {
	s := section{id: runtime + "-idle", title: title, unit: "of the empty function", columns: c.working()}
	find := func(d string) (IdleInstances, bool) {
		for _, i := range c.Idle {
			if i.Driver == d && language(i.Runtime) == runtime {
				return i, i.Problem == ""
			}
		}
		return IdleInstances{}, false
	}
	for _, p := range []struct {
		name, about string
		of          func(IdleInstances) sectionValue
	}{
		{"memory, MB", "proportional set size of all its processes, also outside of the sandbox", func(i IdleInstances) sectionValue { return figure(float64(i.PSS)/1e6, true, "%.1f") }},
		{"available memory, MB", "by how much the host's available memory fell", func(i IdleInstances) sectionValue { return figure(float64(i.Available)/1e6, true, "%.1f") }},
		{"instances in a GiB", "by proportional set size", func(i IdleInstances) sectionValue { return figure(i.PerGiB, true, "%.0f") }},
		{"processes", "on the host, for each", func(i IdleInstances) sectionValue { return figure(i.Processes, true, "%.1f") }},
	} {
		l := sectionLine{name: p.name, about: p.about}
		any := false
		for _, d := range s.columns {
			v := none
			if i, ok := find(d); ok {
				v, any = p.of(i), true
			}
			l.values = append(l.values, v)
		}
		if any {
			s.lines = append(s.lines, l)
		}
	}
	for _, i := range c.Idle {
		if language(i.Runtime) == runtime && i.Problem != "" {
			s.notes = append(s.notes, i.Driver+": "+i.Problem)
		}
	}
	return s
}
