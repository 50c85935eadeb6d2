package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) queueCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Show the calls that run later, and what became of them",
		Long: `Queue shows how many asynchronous calls each function has: those that wait for an
attempt (of which some are not due yet), that run, that succeeded and are kept, and
the dead letters: calls that failed for good, whose state is "dead" here and
"failed" in the API and in -o json. LATE is for how long the next one of
those that wait has been due.

Messages of a queue are shown as queue:NAME, as which list, redrive and purge take
them; hearth send puts them there.

A call is made asynchronous by hearth invoke --async, or by the HTTP header
Hearth-Invocation-Type: async. How it is retried is configured in hearth.yaml.`,
		Example: `  hearth queue
  hearth queue list hello --state dead
  hearth queue show 01a2189c-91b3-754e-a042-f286c28ce53a
  hearth queue redrive hello`,
		Args: noOther,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			st, err := c.Queue(ctx)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(st)
			}
			return a.printQueue(st)
		}),
	}
	cmd.AddCommand(a.queueListCmd(), a.queueShowCmd(), a.queueCancelCmd(), a.queueRedriveCmd(), a.queuePurgeCmd(), a.queueSecretCmd())
	return a.talks(a.prints(cmd))
}

// withClient makes a command's function of one that gets a client.
func (a *app) withClient(run func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return run(cmd.Context(), c, args)
	}
}

func (a *app) printQueue(st hearth.QueueStatus) error {
	fmt.Fprintf(a.stdout, "%d calls with %s, at most %s\n", st.Calls, size(st.Bytes), size(st.MaxBytes))
	if len(st.Functions) == 0 {
		fmt.Fprintln(a.stderr, "No function has asynchronous calls.")
		return nil
	}
	rows := [][]string{append([]string{"FUNCTION"}, countColumns...)}
	for _, f := range st.Functions {
		rows = append(rows, append([]string{f.Function}, countRow(f.QueueCounts, st.Time)...))
	}
	fmt.Fprintln(a.stdout)
	return a.printTable(rows)
}

func (a *app) queueListCmd() *cobra.Command {
	var state string
	var limit int
	states := []string{"queued", "running", "succeeded", "dead", "canceled"}
	cmd := &cobra.Command{
		Use:   "list NAME",
		Short: "List the asynchronous calls of a function, newest first",
		Long: `List shows the calls of a function that wait, run or have ended and are kept, with the
deliveries to its webhooks: what is called, the state, and why the latest attempt
failed.`,
		Example: `  hearth queue list hello
  hearth queue list hello --state dead -n 10
  hearth queue list queue:orders
  hearth queue list hello -o json | jq -r '.[].id'`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if state != "" && !slices.Contains(states, state) && state != string(hearth.AsyncFailed) {
				return &usageError{fmt.Errorf("--state %q does not exist\n\nchoose queued, running, succeeded, dead or canceled", state)}
			}
			if limit < 1 {
				return &usageError{fmt.Errorf("-n %d is not positive", limit)}
			}
			calls := []hearth.AsyncCall{}
			for before := ""; len(calls) < limit; {
				list, next, err := c.QueueCalls(ctx, args[0], hearth.AsyncState(state), min(limit-len(calls), 500), before)
				if err != nil {
					return err
				}
				calls = append(calls, list...)
				if before = next; before == "" {
					break
				}
			}
			if a.json() {
				return a.printJSON(calls)
			}
			if len(calls) == 0 {
				fmt.Fprintln(a.stderr, "There are none.")
				return nil
			}
			now := time.Now()
			rows := [][]string{{"ID", "TARGET", "STATE", "ATTEMPTS", "ACCEPTED", "WHY"}}
			for _, call := range calls {
				rows = append(rows, []string{call.ID, call.Target, callState(call, now), strconv.Itoa(call.Attempts), ago(call.AcceptedAt, now), orDash(lastFailure(call))})
			}
			return a.printTable(rows)
		}),
	}
	cmd.Flags().StringVar(&state, "state", "", "only those in this state: queued, running, succeeded, dead or canceled")
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "how many to show at most")
	return a.talks(a.prints(cmd))
}

// callState says in words what a call is doing.
func callState(c hearth.AsyncCall, now time.Time) string {
	switch {
	case c.State == hearth.AsyncQueued && c.DueAt.After(now):
		return "queued, due in " + span(c.DueAt.Sub(now))
	case c.State == hearth.AsyncFailed:
		return "dead"
	}
	return string(c.State)
}

// lastFailure says in a line why the latest attempt failed.
func lastFailure(c hearth.AsyncCall) string {
	n := len(c.Failures)
	if n == 0 {
		return ""
	}
	f := c.Failures[n-1]
	text := string(f.Code)
	if f.Type != "" {
		text = f.Type
	}
	text += ": " + f.Message
	for i, r := range text {
		if r == '\n' || i > 100 {
			return text[:i] + "…"
		}
	}
	return text
}

func (a *app) queueShowCmd() *cobra.Command {
	var payload bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show an asynchronous call: its attempts and its result",
		Long: `Show prints what is known of an asynchronous call from the moment of its acceptance:
its state, each attempt that failed, and the response once it has succeeded.

With --payload it writes, and only that, what the call passes: the event, the message
or the body of the request. It is kept until the call has succeeded or was canceled,
and with dead letters.`,
		Example: `  hearth queue show 01a2189c-91b3-754e-a042-f286c28ce53a
  hearth queue show 01a2189c-91b3-754e-a042-f286c28ce53a --payload > order.json`,
		Args: oneID,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if payload {
				p, err := c.AsyncPayload(ctx, args[0])
				if err != nil {
					return err
				}
				return a.printResult(&client.AsyncResult{Base64: p})
			}
			call, err := c.AsyncCall(ctx, args[0], 0)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(call)
			}
			return a.printCallLong(call)
		}),
	}
	cmd.Flags().BoolVar(&payload, "payload", false, "write what the call passes, and only that")
	return a.talks(a.prints(cmd))
}

func (a *app) printCallLong(c client.AsyncCall) error {
	pairs := [][2]string{
		{"id", c.ID},
		{"function", orDash(c.Function)},
		{"target", c.Target},
		{"kind", string(c.Kind)},
		{"state", callState(c.AsyncCall, time.Now())},
		{"attempts", strconv.Itoa(c.Attempts)},
		{"accepted", stampMillis(c.AcceptedAt)},
	}
	if c.State.Ended() {
		pairs = append(pairs, [2]string{"ended", stampMillis(c.FinishedAt)})
	} else {
		pairs = append(pairs, [2]string{"due", stampMillis(c.DueAt)}, [2]string{"expires", stampMillis(c.ExpiresAt)})
	}
	if c.DeduplicationKey != "" {
		pairs = append(pairs, [2]string{"deduplication key", c.DeduplicationKey})
	}
	if c.Source != "" {
		pairs = append(pairs, [2]string{"destination of", c.Source})
	}
	for _, f := range c.Failures {
		text := string(f.Code)
		if f.Type != "" {
			text += " " + f.Type
		}
		text += ": " + f.Message
		if f.Invocation != "" {
			text += " (invocation " + f.Invocation + ")"
		}
		when := "attempt " + strconv.Itoa(f.Attempt)
		switch {
		case f.Attempt == 0 && c.Attempts == 0:
			when = "before it ran"
		case f.Attempt == 0:
			when = "when canceled"
		}
		pairs = append(pairs, [2]string{when, fmt.Sprintf("%s after %s: %s", stampMillis(f.EndedAt), ms(f.EndedAt.Sub(f.StartedAt)), text)})
	}
	if err := a.printPairs(pairs); err != nil || c.Result == nil {
		return err
	}
	fmt.Fprintf(a.stdout, "\nresponse with status %d", c.Result.Status)
	if c.Result.Cut {
		fmt.Fprint(a.stdout, ", cut to")
	}
	_, err := fmt.Fprintf(a.stdout, ":\n%s\n", printable(strings.TrimSuffix(string(resultBody(c.Result)), "\n")))
	return err
}

func resultBody(r *client.AsyncResult) []byte {
	return slices.Concat(r.Value, []byte(r.Text), r.Base64)
}

// printResult writes the body of a stored response as it is.
func (a *app) printResult(r *client.AsyncResult) error {
	out := &lastByte{w: a.stdout}
	if _, err := out.Write(resultBody(r)); err != nil {
		return err
	}
	if out.last != '\n' && out.last != 0 && isTerminal(a.stdout) {
		fmt.Fprintln(a.stdout)
	}
	return nil
}

func (a *app) queueCancelCmd() *cobra.Command {
	return a.talks(&cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel an asynchronous call that has not ended",
		Long: `Cancel takes a call out of the queue. One that runs is broken off, but for
a message, which has others in its batch: it does not come again.`,
		Example: `  hearth queue cancel 01a2189c-91b3-754e-a042-f286c28ce53a`,
		Args:    oneID,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			_, err := c.CancelAsync(ctx, args[0])
			if err == nil {
				fmt.Fprintln(a.stderr, "canceled")
			}
			return err
		}),
	})
}

// idRE tells the id of a call from the name of a function.
var idRE = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (a *app) queueRedriveCmd() *cobra.Command {
	return a.talks(&cobra.Command{
		Use:   "redrive NAME|ID",
		Short: "Queue dead letters anew: all of a function, or one",
		Long: `Redrive runs calls again that failed for good, with the payload and the id that they
had, as if they were accepted now.`,
		Example: `  hearth queue redrive hello
  hearth queue redrive 01a2189c-91b3-754e-a042-f286c28ce53a`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			name, ids := args[0], []string(nil)
			if idRE.MatchString(name) {
				call, err := c.AsyncCall(ctx, name, 0)
				if err != nil {
					return err
				}
				if call.State != hearth.AsyncFailed {
					return hearth.Errorf(hearth.CodeConflict, "the call is no dead letter: it is %s", callState(call.AsyncCall, time.Now()))
				}
				name, ids = call.Function, []string{call.ID}
			}
			n, err := c.Redrive(ctx, name, ids...)
			if err == nil {
				fmt.Fprintf(a.stderr, "queued %s of %s anew\n", count(int(n), "dead letter"), name)
			}
			return err
		}),
	})
}

func (a *app) queuePurgeCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "purge NAME",
		Short: "Delete the dead letters of a function",
		Long: `Purge deletes the calls that failed for good, with their payloads. On a terminal
it asks first; otherwise it needs --yes.`,
		Example:           `  hearth queue purge hello --yes`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if !yes {
				if err := a.confirm(ctx, "Delete all dead letters of the function "+args[0]+"?"); err != nil {
					return err
				}
			}
			n, err := c.PurgeDead(ctx, args[0])
			if err == nil {
				fmt.Fprintf(a.stderr, "deleted %s of %s\n", count(int(n), "dead letter"), args[0])
			}
			return err
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return a.talks(cmd)
}

func (a *app) queueSecretCmd() *cobra.Command {
	return a.talks(&cobra.Command{
		Use:   "secret",
		Short: "Print the secret with which webhooks are signed",
		Long: `Secret prints what receivers of webhooks need to verify that they come from this
server, as the libraries of Standard Webhooks take it.`,
		Example: `  hearth queue secret`,
		Args:    cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			secret, err := c.WebhookSecret(ctx)
			if err == nil {
				fmt.Fprintln(a.stdout, printable(secret))
			}
			return err
		}),
	})
}

// oneID accepts exactly one argument, the id of a call.
func oneID(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("which call?\n\nwrite %s ID; hearth queue list NAME shows the ids", cmd.CommandPath())
	}
	return nil
}

// invokeLater stores a call and prints its id or, if it is to wait, its result.
func (a *app) invokeLater(ctx context.Context, c *client.Client, name string, event io.Reader, o client.AsyncOptions, wait bool) error {
	call, first, err := c.InvokeAsync(ctx, name, event, o)
	if err != nil {
		return err
	}
	if !first {
		fmt.Fprintln(a.stderr, "it was accepted before, under the same key")
	}
	if !wait {
		_, err := fmt.Fprintln(a.stdout, printable(call.ID))
		return err
	}
	for !call.State.Ended() {
		id := call.ID
		if call, err = c.AsyncCall(ctx, id, time.Minute); err != nil {
			fmt.Fprintf(a.stderr, "The call goes on without you: hearth queue show %s, or cancel in place of show.\n", id)
			return err
		}
	}
	if call.State != hearth.AsyncSucceeded {
		code := hearth.CodeCanceled
		if n := len(call.Failures); n > 0 {
			code = call.Failures[n-1].Code
		}
		after := "after " + count(call.Attempts, "attempt")
		if call.Attempts == 0 {
			after = "before it ran"
		}
		return hearth.Errorf(code, "the call %s is %s %s: %s", call.ID, callState(call.AsyncCall, time.Now()), after, lastFailure(call.AsyncCall)).
			WithHint("hearth queue show %s has all attempts, hearth logs %s what was written", call.ID, name)
	}
	return a.printResult(call.Result)
}
