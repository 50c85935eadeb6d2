package main

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
)

// maxTail is how many lines the server gives at once.
const maxTail = 10000

func (a *app) logsCmd() *cobra.Command {
	var follow bool
	var tail int
	cmd := &cobra.Command{
		Use:   "logs NAME[@VERSION|@ALIAS]",
		Short: "Show what a function wrote",
		Long: `Logs shows the last lines a function wrote, and lines Hearth wrote about it.
With --follow it goes on with new lines until Ctrl-C or until the server ends.
NAME@7 shows the lines of version 7 only, NAME@beta those of the versions that the
alias beta leads to now.

Each line has its time, the last letters of the invocation's id (- for output
outside of any call), the stream and the text; -o json prints one object a line.`,
		Example: `  hearth logs hello
  hearth logs hello -f -n 10
  hearth logs hello@beta
  hearth logs hello -o json | jq -r .text`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if tail < 0 {
				return &usageError{fmt.Errorf("--tail %d is negative", tail)}
			}
			if tail > maxTail {
				return &usageError{fmt.Errorf("--tail %d is more than %d", tail, maxTail)}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if follow {
				err := c.FollowLogs(cmd.Context(), args[0], tail, a.printLine)
				if cmd.Context().Err() != nil {
					return nil // Ctrl-C is how one leaves
				}
				return err
			}
			lines, err := c.Logs(cmd.Context(), args[0], tail)
			if err != nil {
				return err
			}
			for _, l := range lines {
				if err := a.printLine(l); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	cmd.Flags().IntVarP(&tail, "tail", "n", 100, "how many of the last lines to show, at most "+strconv.Itoa(maxTail))
	return a.talks(a.prints(cmd))
}

func (a *app) printLine(l hearth.LogLine) error {
	if a.json() {
		return json.NewEncoder(a.stdout).Encode(l)
	}
	id := "-"
	if n := len(l.Invocation); n > 0 {
		id = l.Invocation[max(0, n-8):]
	}
	style := dim
	switch l.Stream {
	case "stderr":
		style = yellow
	case "hearth":
		style = bold
	}
	_, err := fmt.Fprintf(a.stdout, "%s %-8s %s %s\n",
		a.colour(a.stdout, dim, stampMillis(l.Time)), id,
		a.colour(a.stdout, style, fmt.Sprintf("%-6s", l.Stream)), oneLine(l.Text))
	return err
}
