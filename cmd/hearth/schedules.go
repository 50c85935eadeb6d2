package main

import (
	"context"
	"fmt"
	"time"

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
		Args:              cobra.MaximumNArgs(1),
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

func scheduleRow(s hearth.ScheduleStatus) []string {
	stamp := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
	next, last, call, state, skipped := "-", "-", "-", "-", "-"
	switch {
	case s.Paused:
		next = "paused"
	case len(s.Next) > 0:
		next = stamp(s.Next[0])
	}
	if l := s.Last; l != nil {
		last, call, state = stamp(l.Due), l.Invocation, orDash(string(l.State))
		if l.State == hearth.AsyncFailed {
			state = "dead"
		}
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
		Short: "Run, pause or resume a schedule",
		Long: `Schedule makes the call of a schedule now, or pauses it until it is resumed. hearth
schedules lists them.`,
		Example: `  hearth schedule run hello nightly
  hearth schedule pause hello nightly`,
	}
	cmd.AddCommand(a.scheduleRunCmd(), a.schedulePauseCmd(true), a.schedulePauseCmd(false))
	return cmd
}

func (a *app) scheduleRunCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run NAME SCHEDULE",
		Short: "Make the call of a schedule now",
		Long: `Run makes the call of a schedule now and prints its id. It does so whatever else runs
and even if the schedule is paused; its times stay as they are.`,
		Example:           `  hearth schedule run hello nightly`,
		Args:              oneSchedule,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.RunSchedule(ctx, args[0], args[1])
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
