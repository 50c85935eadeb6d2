package main

import (
	"context"
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

func (a *app) invocationsCmd() *cobra.Command {
	q := &invocationQuery{}
	cmd := &cobra.Command{
		Use:   "invocations [NAME[@VERSION]]",
		Short: "Search the records of calls",
		Long: `Invocations lists the calls of a function, of one of its versions, or of all
functions, newest first, with how each ended and where its time went.

Failed calls and attempts of asynchronous ones are all there, as long as records are
kept; of successful calls, under load, some are (hearth serve --record-successes).
Counts are exact: hearth stats.

Times are RFC 3339 or how long ago something was. All that is asked for must be true.`,
		Example: `  hearth invocations
  hearth invocations hello --code error --since 1h
  hearth invocations hello@7 --status 5xx --min-duration 500ms -n 10
  hearth invocations --cold --since 2030-01-31T08:00:00Z --until 2030-01-31T09:00:00Z
  hearth invocations hello --async -o json | jq -r '.[].id'`,
		Args:              oneFunctionAtMost,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := q.filter(cmd.Flags(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			list, next, err := searchInvocations(cmd.Context(), c, f, q.limit, q.before)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return a.printInvocations(list, next)
		},
	}
	q.flags(cmd.Flags())
	cmd.AddCommand(a.invocationsShowCmd())
	return a.talks(a.prints(cmd))
}

// invocationQuery is what the flags of a search say.
type invocationQuery struct {
	hearth.InvocationFilter
	async, cold bool
	kind        string
	limit       int
	before      string
}

func (q *invocationQuery) flags(f *pflag.FlagSet) {
	f.StringVar(&q.Status, "status", "", "`STATUS` of the response such as 404, or a class of them such as 5xx")
	f.StringVar(&q.Code, "code", "", "`CODE` of the error; ok: none; error: any, or the function answered with 5xx; http_5xx: it did so")
	f.StringVar(&q.kind, "kind", "", "`KIND` of call: http, event, queue or websocket")
	f.BoolVar(&q.async, "async", false, "only attempts of asynchronous calls; =false for only others")
	f.BoolVar(&q.cold, "cold", false, "only cold starts; =false for only others")
	durationVar(f, &q.MinDuration, "min-duration", 0, "shortest time from when a call came until it ended")
	durationVar(f, &q.MaxDuration, "max-duration", 0, "longest time from when a call came until it ended")
	f.Var((*momentValue)(&q.Since), "since", "`TIME` when calls started at the earliest")
	f.Var((*momentValue)(&q.Until), "until", "`TIME` before which they started")
	f.StringVar(&q.ID, "id", "", "how the id begins, at least 8 letters")
	f.IntVarP(&q.limit, "limit", "n", 50, "how many to show at most")
	f.StringVar(&q.before, "before", "", "go on behind the call with this `ID`")
}

// filter returns what was asked for. Errors: of usage.
func (q *invocationQuery) filter(flags *pflag.FlagSet, target string) (hearth.InvocationFilter, error) {
	f := q.InvocationFilter
	f.Kind = hearth.Kind(q.kind)
	name, number, ok := strings.Cut(target, "@")
	if f.Function = name; ok {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || name == "" {
			return f, &usageError{fmt.Errorf("%q is no version\n\nwrite NAME@7; records do not tell through which alias calls came", target)}
		}
		f.Version = n
	}
	if flags.Changed("async") {
		f.Async = &q.async
	}
	if flags.Changed("cold") {
		f.Cold = &q.cold
	}
	if q.limit < 1 {
		return f, &usageError{fmt.Errorf("-n %d is not positive", q.limit)}
	}
	return f, f.Validate()
}

// searchInvocations returns the records of as many pages as are needed, and where it goes
// on behind them.
func searchInvocations(ctx context.Context, c *client.Client, f hearth.InvocationFilter, limit int, before string) ([]hearth.Invocation, string, error) {
	all := []hearth.Invocation{}
	for {
		list, next, err := c.Invocations(ctx, f, min(limit-len(all), 500), before)
		if err != nil {
			return nil, "", err
		}
		all = append(all, list...)
		if before = next; before == "" || len(all) >= limit {
			return all, next, nil
		}
	}
}

func (a *app) printInvocations(list []hearth.Invocation, next string) error {
	if len(list) == 0 {
		fmt.Fprintln(a.stderr, "There are none.")
		return nil
	}
	rows := [][]string{{"STARTED", "ID", "FUNCTION", "STATUS", "TIME", "QUEUE", "START", "INIT", "RUN", "COLD"}}
	for _, v := range list {
		rows = append(rows, []string{
			stampMillis(v.StartedAt), v.ID, fmt.Sprintf("%s@%d", v.Function, v.Version), statusOf(v), took(v.Timings.Sum()),
			took(v.Timings.Queue), took(v.Timings.Start), took(v.Timings.Init), took(v.Timings.Run), orDash(string(v.ColdReason)),
		})
	}
	if err := a.printTable(rows); err != nil || next == "" {
		return err
	}
	fmt.Fprintf(a.stderr, "There may be more: --before %s\n", printable(next))
	return nil
}

// statusOf says in words how a call ended.
func statusOf(v hearth.Invocation) string {
	status := strconv.Itoa(v.Status)
	if v.ErrorCode != "" {
		status += " " + string(v.ErrorCode)
	}
	return status
}

// took writes how long a part of a call took.
func took(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return seconds(d.Seconds(), 1)
}

func (a *app) invocationsShowCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "show ID",
		Short: "Show all that is recorded of a call",
		Long: `Show prints the record of a call: how it ended, what it was, and where its time went.
Of an asynchronous call, that is its latest attempt, and below is the call itself with
those that failed; ID.2 is the record of its second attempt.

hearth logs has what the function wrote.`,
		Example: `  hearth invocations show 01a2189c-91b3-754e-a042-f286c28ce53a
  hearth invocations show 01a2189c-91b3-754e-a042-f286c28ce53a -o json | jq .timings`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("which call?\n\nwrite hearth invocations show ID; hearth invocations shows the ids")
			}
			return nil
		},
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			v, err := c.Invocation(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(v)
			}
			if err := a.printInvocation(v.Invocation); err != nil || v.Async == nil {
				return err
			}
			fmt.Fprintln(a.stdout)
			return a.printCallLong(*v.Async)
		}),
	}))
}

func (a *app) printInvocation(v hearth.Invocation) error {
	var pairs [][2]string
	add := func(name, value string) {
		if value != "" {
			pairs = append(pairs, [2]string{name, value})
		}
	}
	add("id", v.ID)
	if v.TraceID != (hearth.TraceID{}) {
		add("trace", v.TraceID.String())
	}
	add("function", v.Function)
	if v.Version != 0 { // else no attempt has ended
		add("version", strconv.Itoa(v.Version))
	}
	add("kind", string(v.Kind))
	add("request", strings.TrimSpace(v.Method+" "+v.Path))
	add("started", stampMillis(v.StartedAt))
	if v.Status != 0 {
		add("status", statusOf(v))
	}
	add("error", v.ErrorMessage)
	if v.Attempt != 0 {
		add("attempt", strconv.Itoa(v.Attempt))
	}
	add("instance", v.Instance)
	if v.Cold {
		add("cold", orDash(string(v.ColdReason)))
	}
	if v.Cached {
		add("cached", "yes: a kept response answered")
	}
	add("time", took(v.Timings.Sum()))
	add("  queue", took(v.Timings.Queue))
	add("  start", took(v.Timings.Start))
	add("  init", took(v.Timings.Init))
	add("  run", took(v.Timings.Run))
	add("in", size(v.BytesIn))
	add("out", size(v.BytesOut))
	return a.printPairs(pairs)
}
