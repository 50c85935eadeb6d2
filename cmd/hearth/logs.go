package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// maxTail is how many lines the server gives at once.
const maxTail = 10000

func (a *app) logsCmd() *cobra.Command {
	var follow bool
	var tail int
	var filter hearth.LogFilter
	cmd := &cobra.Command{
		Use:   "logs NAME[@VERSION|@ALIAS] | --invocation ID",
		Short: "Show and search what a function wrote",
		Long: `Logs shows the last lines a function wrote, and lines Hearth wrote about it.
With --follow it goes on with new lines until Ctrl-C or until the server ends.
NAME@7 shows the lines of version 7 only, NAME@beta those of the versions that the
alias beta leads to now.

--grep, --level, --invocation, --stream, --since and --until choose lines; those are
shown that meet all of them, the last 100, or with --since or --invocation all, up to
10000. With --invocation the name may be missing: the record of the call tells it. It
shows the lines of all attempts of an asynchronous call.

A line has a level if it is a JSON object, as logging libraries write them, with a
member such as level or severity. --level warn shows warn, error and fatal, and no
line without a level.

Each line has its time, the last letters of the invocation's id (- for output
outside of any call), the stream, the level if it has one, and the text; -o json
prints one object a line.`,
		Example: `  hearth logs hello
  hearth logs hello -f -n 10
  hearth logs hello@beta --level warn -f
  hearth logs hello --grep "connection refused" --since 24h
  hearth logs hello --since 2026-01-31T08:00:00Z --until 2026-01-31T09:00:00Z
  hearth logs --invocation 0196f0c2-5a0e-7cc4-b3a5-6f1d2c3b4a59
  hearth logs hello -o json | jq -r .text`,
		Args: func(cmd *cobra.Command, args []string) error {
			if filter.Invocation != "" && len(args) == 0 {
				return nil
			}
			return oneName(cmd, args)
		},
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if tail < 0 {
				return &usageError{fmt.Errorf("--tail %d is negative", tail)}
			}
			if tail > maxTail {
				return &usageError{fmt.Errorf("--tail %d is more than %d", tail, maxTail)}
			}
			name, err := logsOf(ctx, c, args, filter.Invocation)
			if err != nil {
				return err
			}
			if follow {
				err := c.FollowLogs(ctx, name, tail, filter, a.printLine)
				if ctx.Err() != nil {
					return nil // Ctrl-C is how one leaves
				}
				return err
			}
			lines, err := c.Logs(ctx, name, tail, filter)
			if err != nil {
				return err
			}
			for _, l := range lines {
				if err := a.printLine(l); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	f.IntVarP(&tail, "tail", "n", 100, "how many of the last lines to show, at most "+strconv.Itoa(maxTail))
	f.StringVar(&filter.Text, "grep", "", "only lines with this `TEXT` in them, whatever the case of its letters")
	f.Var((*levelValue)(&filter.Level), "level", "only lines of this `LEVEL` or a more severe one: trace, debug, info, warn, error or fatal")
	f.StringVar(&filter.Invocation, "invocation", "", "only lines of the call with this `ID`")
	f.StringVar(&filter.Stream, "stream", "", "only lines of this `STREAM`: stdout, stderr or hearth")
	f.Var((*momentValue)(&filter.Since), "since", "only lines from this `TIME` on: 2026-01-31T08:00:00Z, or how long ago, such as 15m")
	f.Var((*momentValue)(&filter.Until), "until", "only lines before this `TIME`")
	cmd.PreRun = func(*cobra.Command, []string) {
		if !f.Changed("tail") && (f.Changed("since") || f.Changed("invocation")) {
			tail = maxTail
		}
	}
	choices := map[string][]string{"level": {}, "stream": {"stdout", "stderr", "hearth"}}
	for _, l := range hearth.LogLevels() {
		choices["level"] = append(choices["level"], string(l))
	}
	for flag, values := range choices {
		if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // the flag exists: it was just made
		}
	}
	return a.talks(a.prints(cmd))
}

// logsOf returns whose lines are meant: what was named, or the function of the call.
func logsOf(ctx context.Context, c *client.Client, args []string, invocation string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	call, err := c.Invocation(ctx, invocation)
	if hearth.ErrorCode(err) == hearth.CodeNotFound {
		return "", hearth.Errorf(hearth.CodeNotFound, "%w", err).
			WithHint("its lines may be there nevertheless: name the function, too")
	}
	return call.Function, err
}

// levelValue is the value of a flag for a level.
type levelValue hearth.LogLevel

var _ pflag.Value = (*levelValue)(nil)

func (v *levelValue) String() string { return string(*v) }
func (v *levelValue) Type() string   { return "LEVEL" }

func (v *levelValue) Set(s string) error {
	l, err := hearth.ParseLogLevel(s)
	if err != nil {
		return errors.New("there is no such level\n\n" + hearth.AsError(err).Hint)
	}
	*v = levelValue(l)
	return nil
}

// momentValue is the value of a flag for a time.
type momentValue time.Time

var _ pflag.Value = (*momentValue)(nil)

func (v *momentValue) String() string {
	if t := time.Time(*v); !t.IsZero() {
		return stamp(t)
	}
	return ""
}

func (v *momentValue) Type() string { return "TIME" }

func (v *momentValue) Set(s string) error {
	t, err := hearth.ParseMoment(s, time.Now())
	if err != nil {
		return errors.New("it is no time\n\n" + hearth.AsError(err).Hint)
	}
	*v = momentValue(t)
	return nil
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
	level := ""
	if l.Level != "" {
		styles := map[hearth.LogLevel]string{
			hearth.LevelTrace: dim, hearth.LevelDebug: dim, hearth.LevelWarn: yellow, hearth.LevelError: red, hearth.LevelFatal: red,
		}
		text := fmt.Sprintf("%-5s", strings.ToUpper(oneLine(string(l.Level))))
		level = a.colour(a.stdout, cmp.Or(styles[l.Level], green), text) + " "
	}
	_, err := fmt.Fprintf(a.stdout, "%s %-8s %s %s%s\n",
		a.colour(a.stdout, dim, stampMillis(l.Time)), id,
		a.colour(a.stdout, style, fmt.Sprintf("%-6s", l.Stream)), level, oneLine(l.Text))
	return err
}
