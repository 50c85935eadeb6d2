package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) statsCmd() *cobra.Command {
	var span time.Duration
	cmd := &cobra.Command{
		Use:   "stats [FUNCTION]",
		Short: "Show what calls did: how many, how fast, what failed and why",
		Long: `Stats sums up the calls of all functions, or of one, that ended within a time until
now, and in the same time before that: how many there were, how many failed and
by whose fault, how many were cold starts and why, how long they took, and which
versions had them.

Counts are exact. Errors are those of the function (it raised, timed out or
answered with 5xx) and of Hearth; what callers did wrong and what met a limit is
told apart. Durations are from when a call came until it ended.`,
		Example: `  hearth stats
  hearth stats hello --range 24h
  hearth stats hello -o json | jq .duration.p99`,
		Args:              oneFunctionAtMost,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			st, err := c.Stats(ctx, strings.Join(args, ""), span)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(st)
			}
			return a.printStats(st)
		}),
	}
	durationVar(cmd.Flags(), &span, "range", time.Hour, "until now, such as 15m or 24h")
	return a.talks(a.prints(cmd))
}

func (a *app) printStats(st hearth.Stats) error {
	span := hearth.Duration(st.To.Sub(st.From).Round(time.Second))
	if st.Calls == 0 && st.Previous.Calls == 0 {
		fmt.Fprintf(a.stdout, "No call has ended in the last %s, nor in the %s before.\n", span, span)
		return nil
	}
	rows := [][]string{{"", "LAST " + span.String(), "BEFORE"}}
	add := func(name string, value func(n hearth.StatsNumbers) string) {
		rows = append(rows, []string{name, value(st.StatsNumbers), value(st.Previous)})
	}
	add("calls", func(n hearth.StatsNumbers) string { return fmt.Sprintf("%d (%.3g/s)", n.Calls, n.PerSecond) })
	add("errors", func(n hearth.StatsNumbers) string {
		return fmt.Sprintf("%d (%s)", n.Errors["function"]+n.Errors["hearth"], percent(n.ErrorRatio))
	})
	for _, fault := range []string{"function", "hearth", "caller", "limit"} {
		if st.Errors[fault]+st.Previous.Errors[fault] > 0 {
			add("  by "+fault, func(n hearth.StatsNumbers) string { return strconv.FormatInt(n.Errors[fault], 10) })
		}
	}
	for _, code := range slices.Sorted(maps.Keys(st.Codes)) {
		if code != "ok" {
			add("  "+code, func(n hearth.StatsNumbers) string { return strconv.FormatInt(n.Codes[code], 10) })
		}
	}
	add("cold starts", func(n hearth.StatsNumbers) string {
		s := fmt.Sprintf("%d (%s)", n.ColdStarts, percent(n.ColdRatio))
		for _, reason := range slices.Sorted(maps.Keys(n.Cold)) {
			s += fmt.Sprintf(" %s %d", reason, n.Cold[reason])
		}
		return s
	})
	if st.Cached+st.Previous.Cached > 0 {
		add("cached", func(n hearth.StatsNumbers) string { return strconv.FormatInt(n.Cached, 10) })
	}
	for _, p := range []struct {
		name string
		of   func(d hearth.Durations) float64
	}{
		{"duration p50", func(d hearth.Durations) float64 { return d.P50 }},
		{"duration p90", func(d hearth.Durations) float64 { return d.P90 }},
		{"duration p99", func(d hearth.Durations) float64 { return d.P99 }},
	} {
		add(p.name, func(n hearth.StatsNumbers) string { return seconds(p.of(n.Duration), n.Duration.Count) })
	}
	for _, u := range usageRows {
		if u.of(st.Usage, span) != "" || u.of(st.Previous.Usage, span) != "" {
			add(u.name, func(n hearth.StatsNumbers) string { return cmp.Or(u.of(n.Usage, span), "-") })
		}
	}
	if err := a.printTable(rows); err != nil || len(st.Versions) == 0 {
		return err
	}
	fmt.Fprintln(a.stdout)
	rows = [][]string{{"FUNCTION", "VERSION", "ISOLATION", "CALLS", "ERRORS", "COLD", "P50", "P99", "CPU", "MEMORY"}}
	for _, v := range st.Versions {
		rows = append(rows, []string{
			cmp.Or(v.Function, "(stem cells)"), strconv.Itoa(v.Version), v.Isolation, strconv.FormatInt(v.Calls, 10), percent(v.ErrorRatio), percent(v.ColdRatio),
			seconds(v.Duration.P50, v.Duration.Count), seconds(v.Duration.P99, v.Duration.Count),
			seconds(v.Usage.CPUSeconds, int64(math.Ceil(v.Usage.CPUSeconds))), meanMemory(v.Usage.Total()),
		})
	}
	return a.printTable(rows)
}

// usageRows tell what instances used in a span; empty for nothing.
var usageRows = []struct {
	name string
	of   func(u hearth.Usage, span hearth.Duration) string
}{
	{"CPU time", func(u hearth.Usage, span hearth.Duration) string {
		if u.CPUSeconds == 0 {
			return ""
		}
		return fmt.Sprintf("%s (%.3g cores)", seconds(u.CPUSeconds, 1), u.CPUSeconds/time.Duration(span).Seconds())
	}},
	{"instances", func(u hearth.Usage, span hearth.Duration) string {
		all := u.Total().Seconds
		if all == 0 {
			return ""
		}
		return fmt.Sprintf("%.3g (%s busy, %s idle, %s starting)", all/time.Duration(span).Seconds(),
			percent(u.Busy.Seconds/all), percent(u.Idle.Seconds/all), percent(u.Starting.Seconds/all))
	}},
	{"memory of one", func(u hearth.Usage, _ hearth.Duration) string { return meanMemory(u.Total()) }},
	{"network", func(u hearth.Usage, _ hearth.Duration) string { return traffic(u.NetworkIn, u.NetworkOut, "in", "out") }},
	{"disk", func(u hearth.Usage, _ hearth.Duration) string {
		return traffic(u.DiskRead, u.DiskWritten, "read", "written")
	}},
}

// meanMemory writes how much memory an instance had on average; empty if there was none.
func meanMemory(o hearth.Occupancy) string {
	if o.ByteSeconds == 0 {
		return ""
	}
	return size(int64(o.ByteSeconds / o.Seconds))
}

func traffic(a, b int64, to, from string) string {
	if a+b == 0 {
		return ""
	}
	return fmt.Sprintf("%s %s, %s %s", size(a), to, size(b), from)
}

// seconds writes how long something took that happened n times.
func seconds(s float64, n int64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case n == 0:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.3g ms", s*1000)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", s*1000)
	case d < 1000*time.Second:
		return fmt.Sprintf("%.3g s", s)
	}
	return span(d)
}
