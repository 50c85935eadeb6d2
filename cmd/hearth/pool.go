package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) poolCmd() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "pool [FUNCTION]",
		Short: "Show what instances there are and why",
		Long: `Pool shows the instances of all functions, or of one: how much of the memory
budget they use, how many each function has and should have and how long it is
kept warm, what each instance does and why it is there, and the stem cells:
sandboxes with a runtime and without a function yet.

INSTANCES is how many there are / should be (between at least and at most);
SERVICE is how long a call has an instance on average, COLD how long a start
takes, MEMORY what an instance used when it was last weighed.

With --watch it goes on with each change of an instance, a line each, until
Ctrl-C or until the server ends; -o json then prints one object a line.`,
		Example: `  hearth pool
  hearth pool hello
  hearth pool --watch
  hearth pool why hello
  hearth pool simulate
  hearth pool -o json | jq '.instances[] | select(.state == "idle") | .id'`,
		Args:              oneFunctionAtMost,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			function := strings.Join(args, "")
			st, err := c.Pool(cmd.Context(), function)
			if err != nil {
				return err
			}
			switch {
			case watch:
				err := c.WatchPool(cmd.Context(), a.printNews(function))
				if cmd.Context().Err() != nil {
					return nil // Ctrl-C is how one leaves
				}
				return err
			case a.json():
				return a.printJSON(st)
			}
			return a.printPool(st, function)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "follow the changes as they happen")
	cmd.AddCommand(a.poolWhyCmd(), a.poolSimulateCmd())
	return a.talks(a.prints(cmd))
}

// printPool prints the status for people: of one function, if one is named.
func (a *app) printPool(st hearth.PoolStatus, function string) error {
	fmt.Fprintln(a.stdout, totals(st, function))
	if len(st.Functions) == 0 && len(st.Instances) == 0 {
		text := "No function has an instance or was called lately."
		if function != "" {
			text = function + " has no instance and was not called lately: the next call will be a cold start."
		}
		fmt.Fprintln(a.stderr, text)
	}
	for _, rows := range [][][]string{functionRows(st), instanceRows(st), stemRows(st)} {
		if len(rows) == 1 { // the heading
			continue
		}
		fmt.Fprintln(a.stdout)
		if err := a.printTable(rows); err != nil {
			return err
		}
	}
	return nil
}

// totals writes what the pool has in one line. The status of one function does
// not have the instances of the others.
func totals(st hearth.PoolStatus, function string) string {
	text := "memory " + memory(st)
	if function != "" {
		return text + fmt.Sprintf(" and %d queued in the whole pool", st.Queued)
	}
	stems := 0
	for _, i := range st.Instances {
		if i.Function == "" {
			stems++
		}
	}
	return text + fmt.Sprintf(", %s and %s of at most %d, %d queued",
		count(len(st.Instances)-stems, "instance"), count(stems, "stem cell"), st.MaxInstances, st.Queued)
}

// memory writes what is used of the budget.
func memory(st hearth.PoolStatus) string {
	if st.MemoryBudget == 0 {
		return size(st.MemoryUsed) + " (no budget)"
	}
	return size(st.MemoryUsed) + " of " + size(st.MemoryBudget)
}

func functionRows(st hearth.PoolStatus) [][]string {
	rows := [][]string{{"FUNCTION", "INSTANCES", "IN FLIGHT", "QUEUED", "CALLS", "COLD STARTS", "SERVICE", "COLD", "KEEP-ALIVE"}}
	for _, f := range st.Functions {
		name := at(f.Function, f.Version)
		if f.Retired {
			name += " (retired)"
		}
		rows = append(rows, []string{
			name, fmt.Sprintf("%d/%d (%d–%d)", f.Instances, f.Target, f.Min, f.Max),
			strconv.Itoa(f.InFlight), strconv.Itoa(f.Queued), strconv.FormatInt(f.Calls, 10),
			orDash(coldCounts(f.ColdStarts)), orDash(known(f.Service)), orDash(known(f.Cold)), orDash(f.KeepAlive),
		})
	}
	return rows
}

func instanceRows(st hearth.PoolStatus) [][]string {
	rows := [][]string{{"INSTANCE", "FUNCTION", "ISOLATION", "STATE", "MEMORY", "SERVED", "WHY"}}
	for _, i := range st.Instances {
		if i.Function == "" {
			continue // a stem cell
		}
		state := string(i.State) + " " + span(st.Time.Sub(i.Since))
		if i.InFlight > 1 {
			state += ", " + count(i.InFlight, "call")
		}
		weight := "-"
		if i.Memory > 0 {
			weight = size(i.Memory)
		}
		rows = append(rows, []string{i.ID, at(i.Function, i.Version), i.Isolation, state, weight, strconv.FormatInt(i.Served, 10), i.Why})
	}
	return rows
}

func stemRows(st hearth.PoolStatus) [][]string {
	rows := [][]string{{"STEM CELLS", "MEMORY", "EGRESS", "READY", "STARTING", "TARGET", "WHY"}}
	for _, s := range st.Stems {
		rows = append(rows, []string{
			s.Isolation + " " + s.Runtime, s.Memory.String(), orDash(string(s.Egress)),
			strconv.Itoa(s.Ready), strconv.Itoa(s.Starting), strconv.Itoa(s.Target), s.Why,
		})
	}
	return rows
}

// printNews returns what prints events of the pool: of one function, if one is
// named.
func (a *app) printNews(function string) func(client.PoolEvent) error {
	first := true
	return func(e client.PoolEvent) error {
		if function != "" {
			if e.Instance != nil && e.Instance.Instance.Function != function {
				return nil
			}
			if st := e.Status; st != nil {
				st.Functions = slices.DeleteFunc(st.Functions, func(f hearth.PoolFunction) bool { return f.Function != function })
				st.Instances = slices.DeleteFunc(st.Instances, func(i hearth.Instance) bool { return i.Function != function })
				st.Stems = []hearth.StemStock{}
			}
		}
		if a.json() {
			return json.NewEncoder(a.stdout).Encode(e)
		}
		if e.Instance != nil {
			return a.printChange(e.Instance.Time, string(e.Instance.From), e.Instance.Instance)
		}
		if !first {
			a.printWarning("changes were missed: there were too many; this is how it is now")
		}
		first = false
		if _, err := fmt.Fprintln(a.stdout, totals(*e.Status, function)); err != nil {
			return err
		}
		for _, i := range e.Status.Instances {
			if err := a.printChange(i.Since, "", i); err != nil {
				return err
			}
		}
		return nil
	}
}

// printChange prints in one line that an instance came into its state.
func (a *app) printChange(t time.Time, from string, i hearth.Instance) error {
	what := at(i.Function, i.Version)
	if i.Function == "" {
		what = i.Isolation + " " + i.Runtime
	}
	change := string(i.State)
	if from != "" {
		change = from + " → " + change
	}
	style := dim
	switch i.State {
	case hearth.InstanceStarting:
		style = yellow
	case hearth.InstanceIdle, hearth.InstanceBusy:
		style = green
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s  %-20s  %s  %s\n",
		a.colour(a.stdout, dim, stampMillis(t)), printable(i.ID), printable(what),
		a.colour(a.stdout, style, fmt.Sprintf("%-20s", printable(change))), printable(i.Why))
	return err
}

// coldCounts lists cold starts by reason, the most frequent first.
func coldCounts(counts map[hearth.ColdReason]int64) string {
	var list []string
	for _, r := range byCount(counts) {
		list = append(list, fmt.Sprintf("%s %d", r, counts[r]))
	}
	return strings.Join(list, ", ")
}

// at writes a version as function@number.
func at(function string, version int) string { return function + "@" + strconv.Itoa(version) }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// known writes a duration in milliseconds, nothing if it is 0.
func known(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return ms(d)
}
