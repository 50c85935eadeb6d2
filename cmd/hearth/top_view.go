package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/hearthrun/hearth"
)

// topColumn is one of the table of functions.
type topColumn struct {
	title string
	width int // of the narrowest; the first and the bars get more if there is room
	left  bool
	bars  bool
	// drop orders what is left out if there is no room: the greatest first, 0 never.
	drop int
	cell func(st *topStatus, f *topFunction) string
}

var topColumns = []topColumn{
	{title: "FUNCTION", width: 13, left: true, cell: func(_ *topStatus, f *topFunction) string { return f.Function }},
	{title: "ISOLATION", width: 11, left: true, drop: 3, cell: func(_ *topStatus, f *topFunction) string { return orDash(f.Isolation) }},
	{title: "CALLS/S", width: 7, cell: rate(func(f *topFunction, _ float64) string { return short(f.PerSecond) })},
	{width: 8, left: true, bars: true, drop: 2, cell: func(_ *topStatus, f *topFunction) string { return bars(f.Recent) }},
	{title: "ERR%", width: 5, cell: rate(func(f *topFunction, _ float64) string { return short(100 * f.ErrorRatio) })},
	{title: "P50", width: 5, drop: 1, cell: rate(func(f *topFunction, _ float64) string { return brief(f.Duration.P50, f.Duration.Count) })},
	{title: "P95", width: 5, cell: rate(func(f *topFunction, _ float64) string { return brief(f.Duration.P95, f.Duration.Count) })},
	{title: "COLD/S", width: 6, cell: rate(func(f *topFunction, seconds float64) string { return short(f.coldPerSecond(seconds)) })},
	{title: "FLIGHT", width: 6, cell: func(_ *topStatus, f *topFunction) string { return strconv.Itoa(f.InFlight) }},
	{title: "WAIT", width: 4, cell: func(_ *topStatus, f *topFunction) string { return strconv.Itoa(f.Waiting) }},
	{title: "INST", width: 6, cell: func(_ *topStatus, f *topFunction) string {
		return fmt.Sprintf("%d/%d", f.Instances[hearth.InstanceBusy]+f.Instances[hearth.InstanceSettling], f.total())
	}},
	{title: "CPU%", width: 5, drop: 4, cell: rate(func(f *topFunction, seconds float64) string { return short(100 * f.Usage.CPUSeconds / seconds) })},
	{title: "MEM", width: 5, cell: func(_ *topStatus, f *topFunction) string { return compact(f.Memory) }},
}

// rate makes a cell of what is known after two looks only.
func rate(cell func(f *topFunction, seconds float64) string) func(*topStatus, *topFunction) string {
	return func(st *topStatus, f *topFunction) string {
		if st.Seconds <= 0 {
			return "-"
		}
		return cell(f, st.Seconds)
	}
}

// topOrder is by what functions can be sorted, the greatest first.
type topOrder struct {
	name string
	by   func(f *topFunction) float64
}

var topOrders = []topOrder{
	{"calls/s", func(f *topFunction) float64 { return f.PerSecond }},
	{"errors", func(f *topFunction) float64 { return float64(f.failed()) }},
	{"p95", func(f *topFunction) float64 { return f.Duration.P95 }},
	{"cold starts", func(f *topFunction) float64 { return float64(f.ColdStarts) }},
	{"CPU", func(f *topFunction) float64 { return f.Usage.CPUSeconds }},
	{"memory", func(f *topFunction) float64 { return float64(f.Memory) }},
}

// sorted returns the functions whose names have a text.
func (st *topStatus) sorted(order topOrder, filter string) []topFunction {
	var list []topFunction
	for _, f := range st.Functions {
		if strings.Contains(f.Function, filter) {
			list = append(list, f)
		}
	}
	slices.SortStableFunc(list, func(a, b topFunction) int { return cmp.Compare(order.by(&b), order.by(&a)) })
	return list
}

func (n *topNumbers) failed() int64 { return n.Errors["function"] + n.Errors["hearth"] }

// total is how many instances there are.
func (n *topNumbers) total() (sum int) {
	for _, k := range n.Instances {
		sum += k
	}
	return sum
}

func (n *topNumbers) coldPerSecond(seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(n.ColdStarts) / seconds
}

// short writes a number in at most five characters.
func short(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 0.01:
		return "<0.01"
	case n < 9.995:
		return fmt.Sprintf("%.2f", n)
	case n < 99.95:
		return fmt.Sprintf("%.1f", n)
	case n < 9999.5:
		return fmt.Sprintf("%.0f", n)
	case n < 99_950:
		return fmt.Sprintf("%.1fk", n/1000)
	case n < 999_500:
		return fmt.Sprintf("%.0fk", n/1000)
	}
	return fmt.Sprintf("%.1fM", n/1e6)
}

// brief writes seconds in at most five characters; n is of how many calls.
func brief(s float64, n int64) string {
	switch {
	case n == 0:
		return "-"
	case s < 0.9995e-3:
		return fmt.Sprintf("%.0fµs", s*1e6)
	case s < 9.95e-3:
		return fmt.Sprintf("%.1fms", s*1e3)
	case s < 0.9995:
		return fmt.Sprintf("%.0fms", s*1e3)
	case s < 99.95:
		return fmt.Sprintf("%.1fs", s)
	}
	return span(time.Duration(s * float64(time.Second)))
}

// compact writes bytes in at most five characters.
func compact(n int64) string {
	if n == 0 {
		return "-"
	}
	return strings.NewReplacer(" ", "", "iB", "").Replace(size(n))
}

// bars draws values from 0, a character each, as high as the greatest of them allows.
func bars(values []float64) string {
	const blocks = "▁▂▃▄▅▆▇█"
	top := slices.Max(append([]float64{0}, values...))
	var b strings.Builder
	for _, v := range values {
		if v <= 0 {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune([]rune(blocks)[min(7, int(v/top*7.999))])
	}
	return b.String()
}

// meter draws a share of 1 in so many characters.
func meter(share float64, width int) string {
	n := int(min(max(share, 0), 1)*float64(width) + 0.5)
	return "[" + strings.Repeat("█", n) + strings.Repeat("░", width-n) + "]"
}

var (
	headStyle     = lipgloss.NewStyle().Bold(true)
	dimStyle      = lipgloss.NewStyle().Faint(true)
	badStyle      = lipgloss.NewStyle().Foreground(lipgloss.Red)
	warnStyle     = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
	selectedStyle = lipgloss.NewStyle().Reverse(true)
)

// View implements tea.Model.
func (m *topModel) View() tea.View {
	lines := m.head()
	foot := m.foot()
	room := max(1, m.height-len(lines)-1)
	var body []string
	switch {
	case m.help:
		body = strings.Split(topHelp, "\n")
	case m.detail != "":
		body = m.details()
	default:
		body = m.table(room)
	}
	body = body[:min(len(body), room)]
	lines = append(lines, body...)
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines, foot)
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, m.width, "…")
	}
	v := tea.NewView(strings.Join(lines[:min(len(lines), max(m.height, 1))], "\n"))
	v.AltScreen = true
	v.WindowTitle = "hearth top"
	return v
}

const topHelp = `up, down, j, k     choose a function
enter              show its versions, how calls ended and the last errors
s                  sort by the next of calls/s, errors, p95, cold starts, CPU, memory
/                  show only functions whose names have a text
p                  pause, or go on
?                  this help
q, Ctrl-C          leave

CALLS/S  calls that ended, a second; the bars show it from look to look
ERR%     part that failed by the fault of the function or of Hearth
P50 P95  how long calls took from when they came
COLD/S   calls that waited for an instance that was made for them, a second
FLIGHT   calls that have an instance     WAIT  calls that wait for one
INST     instances that are busy / all   MEM   what they use
CPU%     what they compute, of a core`

// head is the totals.
func (m *topModel) head() []string {
	title := headStyle.Render("hearth top") + "  " + oneLine(m.url)
	switch {
	case !m.at.IsZero():
		title += dimStyle.Render("  " + m.status.when())
	case m.err == nil:
		title += dimStyle.Render("  asking the server …")
	}
	if m.paused {
		title += warnStyle.Render("  paused")
	}
	if m.err != nil && !m.at.IsZero() {
		title += badStyle.Render("  stale: no answer for " + span(m.now.Sub(m.at)))
	}
	lines := []string{title}
	if !m.at.IsZero() {
		for _, p := range m.status.summary() {
			line := fmt.Sprintf("%-9s ", p[0])
			switch p[0] {
			case "memory":
				if b := m.status.MemoryBudget; b > 0 {
					line += meter(float64(m.status.MemoryUsed)/float64(b), 20) + " "
				}
			case "calls":
				if room := m.width - len(line) - ansi.StringWidth(p[1]) - 3; room >= 8 {
					p[1] += "   " + dimStyle.Render(bars(lastOf(m.status.Recent, room)))
				}
			}
			lines = append(lines, dimStyle.Render(line[:10])+line[10:]+p[1])
		}
	}
	if m.err != nil {
		text, hint := failureText(m.err)
		lines = append(lines, badStyle.Render("error: "+text))
		if hint != "" {
			lines = append(lines, warnStyle.Render("hint: "+hint))
		}
	}
	return append(lines, "")
}

// foot says what one can do.
func (m *topModel) foot() string {
	switch {
	case m.typing:
		return "/" + m.filter + "█" + dimStyle.Render("  enter: keep, esc: show all")
	case m.help, m.detail != "":
		return dimStyle.Render("esc back  p pause  q quit")
	}
	text := fmt.Sprintf("q quit  s sort (%s)  / filter  enter details  p pause  ? help", topOrders[m.order].name)
	if m.filter != "" {
		text = "filter: " + m.filter + "  " + text
	}
	return dimStyle.Render(text)
}

// withoutBars are the columns that are text.
func withoutBars() []topColumn {
	return slices.DeleteFunc(slices.Clone(topColumns), func(c topColumn) bool { return c.bars })
}

// fit returns those of the columns that fit in a width, and how wide they are then.
func fit(list []topColumn, width int) ([]topColumn, []int) {
	list = slices.Clone(list)
	need := func() int {
		n := len(list) - 1
		for _, c := range list {
			n += c.width
		}
		return n
	}
	for need() > width {
		last := slices.MaxFunc(list, func(a, b topColumn) int { return cmp.Compare(a.drop, b.drop) })
		if last.drop == 0 {
			break
		}
		list = slices.DeleteFunc(list, func(c topColumn) bool { return c.drop == last.drop })
	}
	more := max(0, width-need())
	widths := make([]int, len(list))
	for i, c := range list {
		widths[i] = c.width
		if i == 0 {
			widths[i] += min(more, 26) // the longest names there are have 63 letters
			more -= min(more, 26)
		}
	}
	for i, c := range list {
		if c.bars {
			widths[i] += min(more, 40)
		}
	}
	return list, widths
}

// row writes cells into the columns.
func row(list []topColumn, widths []int, cell func(c topColumn) string) string {
	var b strings.Builder
	for i, c := range list {
		text := oneLine(cell(c))
		if c.bars {
			text = string(lastOf([]rune(text), widths[i]))
		}
		text = ansi.Truncate(text, widths[i], "…")
		pad := strings.Repeat(" ", widths[i]-ansi.StringWidth(text))
		if i > 0 {
			b.WriteByte(' ')
		}
		if c.left && !c.bars {
			b.WriteString(text + pad)
		} else {
			b.WriteString(pad + text)
		}
	}
	return b.String()
}

// lastOf returns the last n of a list.
func lastOf[T any](list []T, n int) []T { return list[max(0, len(list)-n):] }

// table shows the functions, so many lines of them that the chosen one is seen.
func (m *topModel) table(room int) []string {
	if m.at.IsZero() {
		return nil
	}
	list := m.functions()
	if len(list) == 0 {
		if m.filter != "" {
			return []string{"No function has “" + m.filter + "” in its name."}
		}
		return []string{noFunctions}
	}
	cols, widths := fit(topColumns, m.width)
	lines := []string{headStyle.Render(row(cols, widths, func(c topColumn) string { return c.title }))}
	at := m.index(list)
	first := max(0, at-max(1, room-1)+1)
	for i := first; i < len(list); i++ {
		f := &list[i]
		line := row(cols, widths, func(c topColumn) string { return c.cell(&m.status, f) })
		switch {
		case i == at:
			line = selectedStyle.Render(line)
		case f.ErrorRatio >= 0.05:
			line = badStyle.Render(line)
		case f.Waiting > 0 || f.failed() > 0:
			line = warnStyle.Render(line)
		case f.Calls == 0 && f.InFlight == 0:
			line = dimStyle.Render(line)
		}
		lines = append(lines, line)
	}
	return lines
}

// details shows one function.
func (m *topModel) details() []string {
	i := slices.IndexFunc(m.status.Functions, func(f topFunction) bool { return f.Function == m.detail })
	if i < 0 {
		return []string{oneLine(m.detail) + " has no instance and was not called since the server's start."}
	}
	f, st := &m.status.Functions[i], &m.status
	lines := []string{headStyle.Render(oneLine(f.Function)) + "  " + f.Isolation, ""}
	cols, widths := fit(withoutBars(), m.width)
	lines = append(lines, headStyle.Render(row(cols, widths, func(c topColumn) string {
		if c.title == "FUNCTION" {
			return "VERSION"
		}
		return c.title
	})))
	for _, v := range f.Versions {
		one := topFunction{Function: strconv.Itoa(v.Version), Isolation: v.Isolation, topNumbers: v.topNumbers}
		lines = append(lines, row(cols, widths, func(c topColumn) string { return c.cell(st, &one) }))
	}
	lines = append(lines, "", dimStyle.Render("outcomes    ")+orDash(counts(f.Codes)), dimStyle.Render("cold starts ")+orDash(counts(f.Cold)),
		dimStyle.Render("instances   ")+orDash(counts(f.Instances)))
	if q := f.Queue; q != (topQueue{}) {
		lines = append(lines, dimStyle.Render("queue       ")+fmt.Sprintf("%d waiting, %d running, %d dead", q.Queued, q.Running, q.Dead))
	}
	lines = append(lines, "", headStyle.Render("LAST ERRORS"))
	switch {
	case m.failedErr != nil:
		text, _ := failureText(m.failedErr)
		return append(lines, badStyle.Render(text))
	case !m.failedKnown:
		return append(lines, dimStyle.Render("asking the server …"))
	case len(m.failed) == 0:
		return append(lines, "None of the last 100 calls failed.")
	}
	for _, v := range m.failed {
		text := cmp.Or(v.ErrorMessage, "status "+strconv.Itoa(v.Status))
		lines = append(lines, fmt.Sprintf("%s  @%d  %s  %s", v.StartedAt.Local().Format(time.TimeOnly), v.Version, badStyle.Render(oneLine(cmp.Or(string(v.ErrorCode), "http_5xx"))), oneLine(text)))
	}
	return lines
}

// counts lists how often there was what, the most frequent first.
func counts[K ~string, N int | int64](m map[K]N) string {
	var list []string
	for _, k := range byCount(m) {
		list = append(list, fmt.Sprintf("%s %d", k, m[k]))
	}
	return oneLine(strings.Join(list, ", "))
}
