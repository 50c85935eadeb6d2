package bench

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Table returns the report for people, as plain text that ends with a newline.
func (r Report) Table() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "hearth bench: %s on %s\n", r.Runtime, r.Driver)
	fmt.Fprintf(&b, "  %s, %d cores, %.1f GiB, %s %s, %s\n", m.CPU, m.Cores, float64(m.Memory)/(1<<30), m.Kernel, m.Arch, m.Go)
	fmt.Fprintf(&b, "  hearth %s, %s, interpreter %s\n", r.Version, r.Date.Format("2006-01-02 15:04 MST"), r.Interpreter)
	if r.Command != "" {
		fmt.Fprintf(&b, "  %s\n", r.Command)
	}
	if r.BusyAtRest > maxBusyAtRest {
		fmt.Fprintf(&b, "  NOT RELIABLE: something else kept the machine %.0f%% busy; measure again when it is quiet\n", 100*r.BusyAtRest)
	}

	if len(r.Cells) > 0 {
		fmt.Fprintf(&b, "\nWARM CALLS  (POST of %d bytes, keep-alive, closed loop, half load open; median of %d × %gs after %gs warm-up; up to %d instances)\n",
			r.RequestBytes, r.Rounds, r.DurationSeconds, r.WarmupSeconds, r.FunctionConcurrency)
		b.WriteString(layout(r.warmRows()))
	}
	if r.Cold != nil {
		b.WriteString("\nCOLD START  (first call of an evicted function as its caller sees it, in turns with a bare start)\n")
		c := r.Cold
		if c.Iterations > 0 {
			b.WriteString(layout(r.coldRows()))
			fmt.Fprintf(&b, "  medians of Server-Timing: queue %.1f, start %.1f, init %.1f, run %.1f ms\n", c.QueueMS, c.StartMS, c.InitMS, c.RunMS)
		}
		if c.Warm > 0 {
			fmt.Fprintf(&b, "  %d calls were warm all the same and are left out\n", c.Warm)
		}
		if c.Problem != "" {
			fmt.Fprintf(&b, "  INVALID: %s\n", c.Problem)
		}
	}
	b.WriteString("\nAT REST\n")
	b.WriteString(layout(r.restRows()))
	if len(r.Checks) > 0 {
		b.WriteString("\nTARGETS\n")
		b.WriteString(layout(r.checkRows()))
	}
	return b.String()
}

// label names a target for people.
func (r Report) label(target string) string {
	plain := map[string]string{"python": "http.server", "nodejs": "node:http"}[language(r.Runtime)]
	switch target {
	case TargetHearth:
		return "Hearth, " + r.Runtime + " echo"
	case TargetNoop:
		return "Go net/http no-op"
	case TargetPlain:
		return plain + " echo"
	case TargetProxy:
		return "proxy hop to " + plain
	}
	return target
}

// row is one line of a table: cells below those of other rows, the first on the
// left and figures on the right of their column, then a note as long as it likes.
type row struct {
	cells []string
	note  string
}

func (r Report) warmRows() []row {
	rows := []row{{cells: []string{"", "connections", "requests/s", "p50 ms", "p99 ms", "cold"}}}
	for _, c := range r.Cells {
		rows = append(rows, r.warmRow(r.label(c.Target), c))
	}
	if r.Half != nil {
		rows = append(rows, r.warmRow(r.label(TargetHearth)+", half load", r.Half.Cell))
	}
	return rows
}

func (r Report) warmRow(name string, c Cell) row {
	cells := []string{name, fmt.Sprint(c.Concurrency)}
	if !c.Valid() {
		return row{cells, fmt.Sprintf("INVALID: %d failures, the first: %s", c.Failures, c.Problem)}
	}
	cold := "-"
	if c.Target == TargetHearth {
		var n int64
		for _, round := range c.Rounds {
			n += round.Cold
		}
		cold = fmt.Sprint(n)
	}
	cells = append(cells, fmt.Sprintf("%.0f", c.Throughput), fmt.Sprintf("%.3f", c.P50MS), fmt.Sprintf("%.3f", c.P99MS), cold)
	return row{cells: cells}
}

func (r Report) coldRows() []row {
	line := func(name string, s Summary) row {
		return row{cells: []string{
			name, fmt.Sprint(r.Cold.Iterations), fmt.Sprintf("%.1f", s.MinMS), fmt.Sprintf("%.1f", s.P50MS),
			fmt.Sprintf("%.1f", s.P99MS), fmt.Sprintf("%.1f", s.MaxMS),
		}}
	}
	bare := "python3 -c 1"
	if language(r.Runtime) == "nodejs" {
		bare = "node -e 1"
	}
	return []row{
		{cells: []string{"", "starts", "min ms", "p50 ms", "p99 ms", "max ms"}},
		line("Hearth, "+r.Runtime+" echo", r.Cold.Wall),
		line("bare "+bare, r.Cold.Bare),
	}
}

func (r Report) restRows() []row {
	m := r.Memory
	server := row{cells: []string{"server, resident", fmt.Sprintf("%.1f MB", float64(m.ServerRSS)/1e6)}}
	switch {
	case m.ServerProblem != "":
		server.cells[1], server.note = "-", "not measured: "+m.ServerProblem
	case m.ServerIsSelf:
		server.note = "with the load generator, which is in the same process"
	}
	instance := row{cells: []string{"one idle instance", fmt.Sprintf("%.1f MB", float64(m.InstancePSS)/1e6)}}
	switch {
	case m.InstanceProblem != "":
		instance.cells[1], instance.note = "-", "not measured: "+m.InstanceProblem
	case m.Instances > 0:
		instance.note = fmt.Sprintf("proportional set size, mean of %d", m.Instances)
	default:
		instance.cells[1] = "-"
	}
	return []row{server, instance}
}

func (r Report) checkRows() []row {
	var rows []row
	for _, c := range r.Checks {
		unit, value := "", fmt.Sprintf("%.3f", c.Value)
		if c.Unit != "" {
			unit = " " + c.Unit
			value = fmt.Sprintf("%.1f", c.Value) + unit
		}
		note := string(c.Verdict)
		switch {
		case c.Verdict == NotMeasured:
			value, note = "-", note+": "+c.Why
		case c.Raw != "":
			note += "  (" + c.Raw + ")"
		}
		word, target := "", ""
		if c.Op != "" {
			word, target = "target", fmt.Sprintf("%s %g%s", c.Op, c.Target, unit)
		}
		rows = append(rows, row{[]string{c.Name, value, word, target}, note})
	}
	return rows
}

func layout(rows []row) string {
	var widths []int
	for _, r := range rows {
		for i, cell := range r.cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for i, cell := range r.cells {
			fill := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				line.WriteString("  " + cell + fill)
			} else {
				line.WriteString("  " + fill + cell)
			}
		}
		if r.note != "" {
			line.WriteString("  " + r.note)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
