package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) schedulesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedules [NAME]",
		Short: "List the schedules of a function, or of all",
		Long: `Schedules shows when functions are called by themselves: the next time, the latest
call and what became of it, and the latest time for which there was no call. They are
configured below schedules in hearth.yaml, and those of the live version count.`,
		Example: `  hearth schedules
  hearth schedules hello
  hearth schedules hello -o json | jq -r '.[].next[0]'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("%s takes one function at a time, not %d\n\nhearth schedule show %s %s shows one of its schedules", cmd.CommandPath(), len(args), args[0], args[1])
			}
			return nil
		},
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			list, err := c.Schedules(ctx, name)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			if len(list) == 0 {
				fmt.Fprintln(a.stderr, "There are no schedules.")
				return nil
			}
			rows := [][]string{{"FUNCTION", "SCHEDULE", "WHEN", "NEXT", "LAST", "CALL", "STATE", "SKIPPED"}}
			for _, s := range list {
				rows = append(rows, scheduleRow(s))
			}
			return a.printTable(rows)
		}),
	}
	return a.talks(a.prints(cmd))
}

// scheduleListCmd is schedulesCmd in the place where one looks for it.
func (a *app) scheduleListCmd() *cobra.Command {
	cmd := a.schedulesCmd()
	cmd.Use, cmd.Aliases = "list [NAME]", []string{"ls"}
	cmd.Long = "List is the same as hearth schedules."
	cmd.Example = "  hearth schedule list hello"
	return cmd
}

func (a *app) scheduleShowCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "show NAME SCHEDULE",
		Short: "Show a schedule: its next times, and what became of the latest",
		Long: `Show prints how a schedule is configured, its next times, its latest call, and the
latest time for which there was no call, with the reason.`,
		Example:           `  hearth schedule show hello nightly`,
		Args:              oneSchedule,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.Schedules(ctx, args[0])
			if err != nil {
				return err
			}
			i := slices.IndexFunc(list, func(s hearth.ScheduleStatus) bool { return s.Name == args[1] })
			switch {
			case i < 0:
				return hearth.Errorf(hearth.CodeNotFound, "function %s has no schedule %q", args[0], args[1]).WithHint("hearth schedules %s shows them", args[0])
			case a.json():
				return a.printJSON(list[i])
			}
			return a.printPairs(schedulePairs(list[i]))
		}),
	}))
}

// schedulePairs is all that is known of a schedule.
func schedulePairs(s hearth.ScheduleStatus) [][2]string {
	pairs := [][2]string{
		{"function", s.Function},
		{"schedule", s.Name},
		{"when", scheduleTime(s.Schedule)},
		{"missed", s.Missed},
		{"overlap", s.Overlap},
		{"alias", s.Alias},
	}
	if s.Paused {
		pairs = append(pairs, [2]string{"next", "paused: hearth schedule resume " + s.Function + " " + s.Name})
	} else if len(s.Next) == 0 {
		pairs = append(pairs, [2]string{"next", "never again"})
	}
	for _, t := range s.Next {
		pairs = append(pairs, [2]string{"next", stamp(t)})
	}
	if !s.Waiting.IsZero() {
		pairs = append(pairs, [2]string{"waiting", stamp(s.Waiting) + ": it is called when the call before has ended"})
	}
	if l := s.Last; l != nil {
		pairs = append(pairs, [2]string{"last", fmt.Sprintf("%s: call %s, %s", stamp(l.Due), l.Invocation, lastState(*l))})
	}
	if k := s.Skipped; k != nil {
		pairs = append(pairs, [2]string{"skipped", "no call at " + stamp(k.Due) + ": " + k.Reason})
	}
	return pairs
}

// lastState is the state of the latest call of a schedule.
func lastState(l hearth.ScheduleLast) string {
	switch l.State {
	case "":
		return "not kept any more"
	case hearth.AsyncFailed:
		return "dead"
	}
	return string(l.State)
}

func scheduleRow(s hearth.ScheduleStatus) []string {
	next, last, call, state, skipped := "-", "-", "-", "-", "-"
	switch {
	case s.Paused:
		next = "paused"
	case len(s.Next) > 0:
		next = stamp(s.Next[0])
	}
	if l := s.Last; l != nil {
		last, call, state = stamp(l.Due), l.Invocation, lastState(*l)
	}
	if k := s.Skipped; k != nil {
		skipped = stamp(k.Due) + ": " + k.Reason
	}
	return []string{s.Function, s.Name, scheduleTime(s.Schedule), next, last, call, state, skipped}
}

// scheduleTime says when a schedule calls.
func scheduleTime(s hearth.Schedule) string {
	if s.TimeZone != "" && s.TimeZone != "UTC" {
		return s.Cron + " " + s.TimeZone
	}
	return s.Cron + s.At // it has one of them
}

func (a *app) scheduleCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schedule",
		Short: "Show, run, pause or resume a schedule",
		Long: `Schedule shows a schedule, makes its call now, or pauses it until it is resumed.
hearth schedules lists them.`,
		Example: `  hearth schedule show hello nightly
  hearth schedule run hello nightly
  hearth schedule pause hello nightly`,
	}
	return group(cmd, a.scheduleListCmd(), a.scheduleShowCmd(), a.scheduleRunCmd(), a.schedulePauseCmd(true), a.schedulePauseCmd(false))
}

func (a *app) scheduleRunCmd() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "run NAME SCHEDULE",
		Short: "Make the call of a schedule now",
		Long: `Run makes the call of a schedule now and prints its id. It does so whatever else runs
and even if the schedule is paused; its times stay as they are.`,
		Example:           `  hearth schedule run hello nightly`,
		Args:              oneSchedule,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.RunScheduleOnce(ctx, args[0], args[1], key)
			switch {
			case err != nil:
				return err
			case a.json():
				return a.printJSON(s)
			}
			fmt.Fprintln(a.stdout, s.Last.Invocation)
			return nil
		}),
	}
	cmd.Flags().StringVar(&key, "dedup", "", "`KEY` under which the call is made once only")
	return a.talks(a.prints(cmd))
}

func (a *app) schedulePauseCmd(pause bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pause NAME SCHEDULE",
		Short: "Pause a schedule",
		Long: `Pause makes a schedule call its function no more until it is resumed, whatever is
deployed meanwhile. Times that pass are not made up for.`,
		Example: `  hearth schedule pause hello nightly`,
	}
	done := "paused"
	if !pause {
		done = "resumed"
		cmd.Use, cmd.Short = "resume NAME SCHEDULE", "Resume a schedule that was paused"
		cmd.Long = `Resume makes a schedule call its function again, from its next time on.`
		cmd.Example = `  hearth schedule resume hello nightly`
	}
	cmd.Args, cmd.ValidArgsFunction = oneSchedule, a.completeName
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		s, err := c.PauseSchedule(ctx, args[0], args[1], pause)
		switch {
		case err != nil:
			return err
		case a.json():
			return a.printJSON(s)
		}
		fmt.Fprintf(a.stderr, "%s schedule %s of %s\n", done, s.Name, s.Function)
		return nil
	})
	return a.talks(a.prints(cmd))
}

// oneSchedule accepts the names of a function and of one of its schedules.
func oneSchedule(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return &usageError{fmt.Errorf("name a function and one of its schedules\n\nfor example: %s hello nightly", cmd.CommandPath())}
	}
	return nil
}
