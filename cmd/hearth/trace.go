package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) traceCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "trace INVOCATION|TRACE",
		Short: "Show where the time of a call went, with all that belongs to it",
		Long: `Trace draws the trace that a call belongs to as a waterfall: the call with its
parts (route, queue, start, init, run), the calls that led to it, and those that
came of it: what the function called with the trace context that it was passed,
the attempts of what was stored to run later, and destinations.

The id of a call is in the header Hearth-Invocation-Id of its response; ID.2 is its
second attempt. The id of a trace, 32 hex digits, shows all that is known of it: it is in
the header traceparent that somebody sent, and in hearth invocations show. It is drawn
from what the server itself keeps: no collector is needed.`,
		Example: `  hearth trace 01980f5e-8c1b-7d3a-9f27-5e1a4c0b2d61
  hearth trace 4bf92f3577b34da6a3ce929d0e0e4736
  hearth trace 01980f5e-8c1b-7d3a-9f27-5e1a4c0b2d61 -o json | jq '.spans[] | {name, duration_ns}'`,
		Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			v, err := c.Trace(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(v)
			}
			a.printTrace(v)
			return nil
		}),
	}))
}

const (
	// plainWidth is that of a trace where nothing says how wide the terminal is, and
	// plainReason that of why a call failed.
	plainWidth, plainReason = 100, 200
	// maxLabel and minBars bound the columns of a trace.
	maxLabel, minBars = 48, 20
	// minReason is how much of why a call failed is shown at least.
	minReason = 40
)

// printTrace draws a trace.
func (a *app) printTrace(v hearth.TraceView) {
	w := newWaterfall(v)
	calls := map[string]bool{}
	for _, s := range v.Spans {
		id, _, _ := strings.Cut(s.Invocation, ".") // attempts are one call
		calls[id] = true
	}
	fmt.Fprintf(a.stdout, "trace %s: %s, %s\n\n", v.TraceID, count(len(calls), "call"), seconds(w.end.Sub(w.begin).Seconds(), 1))
	label := 0
	for _, r := range w.rows {
		label = max(label, utf8.RuneCountInString(r.label))
	}
	label = min(label, maxLabel)
	width, reason := plainWidth, plainReason
	if f, ok := a.stdout.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil {
			width, reason = n, n
		}
	}
	bars := max(minBars, width-label-2*(timeWidth+1)-2)
	fmt.Fprintf(a.stdout, "%-*s %*s %*s\n", label, "SPAN", timeWidth, "AT", timeWidth, "TOOK")
	for _, r := range w.rows {
		style := dim
		switch {
		case r.span.Failed:
			style = red
		case r.span.Name == "start" || r.span.Name == "init":
			style = yellow
		case r.span.Kind != hearth.SpanInternal:
			style = bold
		case r.span.Name == "run":
			style = green
		}
		begin, cells := w.bar(r.span, bars)
		text := shorten(r.label, label)
		fmt.Fprintf(a.stdout, "%s%s %*s %*s %s%s\n", text, strings.Repeat(" ", label-utf8.RuneCountInString(text)),
			timeWidth, seconds(r.span.Start.Sub(w.begin).Seconds(), 1), timeWidth, seconds(r.span.Duration.Seconds(), 1), strings.Repeat(" ", begin), a.colour(a.stdout, style, cells))
		if r.span.Failed && r.span.Kind != hearth.SpanInternal {
			before := r.indent + "  ! "
			room := max(minReason, reason-utf8.RuneCountInString(before))
			fmt.Fprintln(a.stdout, a.colour(a.stdout, red, before+shorten(oneLine(why(r.span)), room)))
		}
	}
	if v.Truncated {
		fmt.Fprintln(a.stdout, "\nThere are more spans, which are not shown.")
	}
}

// shorten cuts a text to so many characters.
func shorten(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// why tells why a call failed.
func why(s hearth.Span) string {
	if s.ErrorCode != "" {
		return string(s.ErrorCode) + ": " + s.ErrorMessage
	}
	return fmt.Sprintf("it answered with %v", s.Attributes["http.response.status_code"])
}

// timeWidth is that of a column with times.
const timeWidth = 9

// waterfall is a trace as a tree.
type waterfall struct {
	begin, end time.Time
	rows       []traceRow
}

type traceRow struct {
	span          hearth.Span
	indent, label string
}

func newWaterfall(v hearth.TraceView) *waterfall {
	w := &waterfall{}
	known, parts := map[hearth.SpanID]bool{}, map[hearth.SpanID][]hearth.Span{}
	for i, s := range v.Spans {
		known[s.ID] = true
		if end := s.Start.Add(s.Duration); end.After(w.end) {
			w.end = end
		}
		if i == 0 {
			w.begin = s.Start
		}
	}
	var roots []hearth.Span
	for _, s := range v.Spans {
		if known[s.ParentID] && s.ParentID != s.ID {
			parts[s.ParentID] = append(parts[s.ParentID], s)
		} else {
			roots = append(roots, s) // of somebody else's span, or of none
		}
	}
	for _, s := range roots {
		w.add(s, "", "", parts)
	}
	return w
}

// add adds the row of a span, and those of what belongs to it. A span is taken out of
// parts when it has been added, as whoever calls chooses the ids.
func (w *waterfall) add(s hearth.Span, branch, indent string, parts map[hearth.SpanID][]hearth.Span) {
	label := oneLine(s.Name)
	if s.Version > 0 && s.Kind != hearth.SpanInternal {
		label += fmt.Sprintf(" v%d", s.Version)
	}
	if n, ok := s.Attributes["hearth.attempt"]; ok {
		label += fmt.Sprintf(" #%v", n)
	}
	if s.Attributes["faas.coldstart"] == true {
		label += " (cold)"
	}
	w.rows = append(w.rows, traceRow{s, indent, branch + label})
	below := parts[s.ID]
	delete(parts, s.ID)
	for i, p := range below {
		next, rest := "├ ", "│ "
		if i == len(below)-1 {
			next, rest = "└ ", "  "
		}
		w.add(p, indent+next, indent+rest, parts)
	}
}

// bar returns where the bar of a span begins in so many cells, and the bar. It has one
// cell at least.
func (w *waterfall) bar(s hearth.Span, cells int) (begin int, bar string) {
	whole := max(w.end.Sub(w.begin), 1)
	at := func(t time.Time) float64 { return float64(t.Sub(w.begin)) / float64(whole) * float64(cells) }
	begin = min(max(int(at(s.Start)), 0), cells-1)
	if s.Duration == 0 {
		return begin, "◆"
	}
	n := int(at(s.Start.Add(s.Duration))+0.5) - begin
	if n < 1 {
		return begin, "▏"
	}
	return begin, strings.Repeat("█", min(n, cells-begin))
}
