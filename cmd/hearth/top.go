package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
)

// minInterval bounds how often the server is looked at, minTopRange and maxTopRange of
// how long a time the numbers are.
const (
	minInterval = 500 * time.Millisecond
	minTopRange = time.Second
	maxTopRange = time.Hour
)

func (a *app) topCmd() *cobra.Command {
	var interval, span time.Duration
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch live what functions do",
		Long: `Top shows what a server does now and renews it every 2 seconds: calls, errors and
durations of the last minute, instances, memory and queues, together and for each
function that was called since the server's start or has instances.

In a terminal:
  up, down, j, k     choose a function        s  sort by the next column
  enter              its versions and errors  /  show only names with a text
  p                  pause                    ?  help
  q, Ctrl-C          leave

FLIGHT is calls that have an instance, WAIT those that wait for one, INST how many
instances are busy / there are, CPU% the cores and MEM the memory they use, ERR%
the part of calls that failed by the fault of the function or of Hearth. The
bars are calls a second between two looks, the newest on the right.

Without a terminal, with --once or -o json it looks once, prints that and ends. A
server that is not there any more is asked again until it is.`,
		Example: `  hearth top
  hearth top --interval 1s --range 10s
  hearth top --once
  hearth top -o json | jq '.functions[] | {function, per_second, p95: .duration.p95}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < minInterval {
				return &usageError{fmt.Errorf("--interval %s is too short\n\nuse %s or more", interval, minInterval)}
			}
			if span < minTopRange || span > maxTopRange {
				return &usageError{fmt.Errorf("--range %s is not possible\n\nchoose between %s and %s; hearth stats knows longer ones", span, minTopRange, hearth.Duration(maxTopRange))}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			w := &topWatch{client: c, span: span}
			if once || a.json() || !isTerminal(a.stdout) {
				return a.topOnce(cmd.Context(), w)
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			m := &topModel{ctx: ctx, server: w, url: c.URL(), interval: interval}
			return a.runTop(ctx, m)
		},
	}
	durationVar(cmd.Flags(), &interval, "interval", 2*time.Second, "between two looks at the server, at least 500ms")
	durationVar(cmd.Flags(), &span, "range", time.Minute, "until now, what numbers are of, at most 1h")
	cmd.Flags().BoolVar(&once, "once", false, "look once, print it and end")
	return a.talks(a.prints(cmd))
}

// runTop shows m in the terminal until the user leaves or ctx ends.
func (a *app) runTop(ctx context.Context, m *topModel) error {
	_, err := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(a.stdin), tea.WithOutput(a.stdout), tea.WithoutSignalHandler()).Run()
	switch {
	case ctx.Err() != nil:
		return nil // a signal is how one leaves, too
	case errors.Is(err, tea.ErrProgramPanic):
		return hearth.Errorf(hearth.CodeInternal, "hearth top broke").WithHint("please report this with the text above; meanwhile use: hearth top --once")
	}
	return err
}

// topOnce looks once and prints it.
func (a *app) topOnce(ctx context.Context, w *topWatch) error {
	st, err := w.look(ctx)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(st)
	}
	fmt.Fprintf(a.stdout, "%-9s %s\n", "time", st.when())
	for _, pair := range st.summary() {
		fmt.Fprintf(a.stdout, "%-9s %s\n", pair[0], pair[1])
	}
	if len(st.Functions) == 0 {
		fmt.Fprintln(a.stderr, noFunctions)
		return nil
	}
	fmt.Fprintln(a.stdout)
	columns := withoutBars()
	rows := [][]string{{}}
	for _, c := range columns {
		rows[0] = append(rows[0], c.title)
	}
	for _, f := range st.sorted(topOrders[0], "") {
		var row []string
		for _, c := range columns {
			row = append(row, c.cell(&st, &f))
		}
		rows = append(rows, row)
	}
	return a.printTable(rows)
}

const noFunctions = "No function was called since the server's start, and none has an instance."

// when is of which time this is.
func (st *topStatus) when() string {
	now := st.Time.Local().Format(time.TimeOnly)
	if st.Seconds <= 0 {
		return now
	}
	return fmt.Sprintf("%s, the last %s", now, hearth.Duration(time.Duration(st.Seconds+0.5)*time.Second))
}

// summary is the totals as pairs of a name and a text.
func (st *topStatus) summary() [][2]string {
	calls := "known after the next look"
	if st.Seconds > 0 {
		d := st.Duration
		calls = fmt.Sprintf("%s/s   errors %s   cold %s/s   p50 %s   p95 %s   p99 %s",
			short(st.PerSecond), percent(st.ErrorRatio), short(st.coldPerSecond(st.Seconds)), brief(d.P50, d.Count), brief(d.P95, d.Count), brief(d.P99, d.Count))
	}
	instances := strconv.Itoa(st.total())
	var states []string
	for _, s := range byCount(st.Instances) {
		states = append(states, fmt.Sprintf("%d %s", st.Instances[s], s))
	}
	if len(states) > 0 {
		instances += ": " + strings.Join(states, ", ")
	}
	instances += fmt.Sprintf("   %s   %d in flight, %d waiting", count(st.StemCells, "stem cell"), st.InFlight, st.Waiting)
	queue := fmt.Sprintf("%d waiting, %d running, %d dead", st.Queue.Queued, st.Queue.Running, st.Queue.Dead)
	if st.Queue.LagSeconds > 0 {
		queue += ", the oldest is due since " + span(time.Duration(st.Queue.LagSeconds*float64(time.Second)))
	}
	return [][2]string{
		{"calls", calls},
		{"instances", instances},
		{"memory", memory(hearth.PoolStatus{MemoryUsed: st.MemoryUsed, MemoryBudget: st.MemoryBudget})},
		{"queue", queue},
		{"server", fmt.Sprintf("%s, %.1f %% of a core", size(st.ServerMemory), 100*st.ServerCPU)},
	}
}
