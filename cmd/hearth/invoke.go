package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) invokeCmd() *cobra.Command {
	var data, named string
	var verbose, async, wait bool
	var example hearth.ExampleOptions
	var o client.AsyncOptions
	cmd := &cobra.Command{
		Use:   "invoke NAME",
		Short: "Call a function with a JSON event",
		Long: `Invoke calls a function with a JSON event and writes its answer, and only
that, to standard output as it comes. The event is what --data says, or what
--event names: a file, or a typical event such as that of an HTTP request, whose
--method, --path and body (--data) can be given. "hearth events" lists them.
Without either it is null.

When the function's own code fails, its error and stack go to standard error and
the exit code is 9; other exit codes mean that Hearth could not do the call.

With --async the call is stored on the server's disk and runs later: Invoke prints
its id, for hearth queue show, or with --wait its answer when it has succeeded.
It is tried again when it fails, and can run more than once.`,
		Example: `  hearth invoke hello --data '{"name":"you"}'
  hearth invoke hello --event event.json -v
  hearth invoke hello --event example:http --path '/hello?name=you'
  hearth invoke hello --event example:webhook --data '{"action":"closed"}'
  echo '[1,2]' | hearth invoke hello --data -
  hearth invoke hello --async --delay 30s --dedup order-7
  hearth invoke hello --async --wait`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !async && (wait || o != client.AsyncOptions{}) {
				return &usageError{errors.New("--wait, --delay and --dedup are for calls that run later\n\nadd --async")}
			}
			if o.Delay < 0 {
				return &usageError{fmt.Errorf("--delay %s is negative", o.Delay)}
			}
			event, err := a.event(cmd.Context(), data, cmd.Flags().Changed("event"))
			if err != nil {
				return err
			}
			if f, ok := event.(io.Closer); ok {
				defer f.Close()
			}
			if named != "" {
				example.Function, example.Time = args[0], time.Now()
				if event, err = a.namedEvent(cmd.Context(), named, event, example); err != nil {
					return err
				}
				if f, ok := event.(io.Closer); ok {
					defer f.Close()
				}
			} else if example.Method != "" || example.Path != "" {
				return &usageError{errors.New("--method and --path belong to an example of an HTTP request\n\nadd --event example:http")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if async {
				return a.invokeLater(cmd.Context(), c, args[0], event, o, wait)
			}
			out := &lastByte{w: a.stdout}
			call, err := c.Invoke(cmd.Context(), args[0], event, out)
			if out.last != '\n' && out.last != 0 && isTerminal(a.stdout) {
				fmt.Fprintln(a.stdout)
			}
			if verbose && call.InvocationID != "" {
				a.printCall(call)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&data, "data", "d", "", "the event: JSON, `@FILE`, or - for standard input; with --event example:http the body")
	cmd.Flags().StringVar(&named, "event", "", "the event: `FILE`, - for standard input, or example:NAME")
	requestFlags(cmd, &example)
	if err := cmd.RegisterFlagCompletionFunc("event", completeEvent); err != nil {
		panic(err) // the flag exists: it was just made
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print the invocation's id and timings on standard error")
	cmd.Flags().BoolVar(&async, "async", false, "store the call and run it later")
	cmd.Flags().BoolVar(&wait, "wait", false, "with --async: wait until it has ended, and write its answer")
	durationVar(cmd.Flags(), &o.Delay, "delay", 0, "with --async: how long it waits at least, such as 30s")
	cmd.Flags().StringVar(&o.DeduplicationKey, "dedup", "", "with --async: `KEY` under which it is accepted once only")
	return a.talks(cmd)
}

// event opens what --data means; nil is no event. Unless text will do, data on the
// command line must be JSON.
func (a *app) event(ctx context.Context, data string, text bool) (io.Reader, error) {
	switch {
	case data == "":
		return nil, nil
	case data == "-":
		return a.input(ctx), nil
	case strings.HasPrefix(data, "@"):
		return a.openInput(ctx, data[1:], "--data @FILE reads the event from a file")
	}
	var v any
	if err := json.Unmarshal([]byte(data), &v); err != nil && !text {
		return nil, hearth.Errorf(hearth.CodeInvalid, "--data is not JSON: %w", err).
			WithHint(`write for example --data '{"name":"you"}', or @FILE, or - for standard input`)
	}
	return bytes.NewReader([]byte(data)), nil
}

// printCall prints what is known of a call besides its answer.
func (a *app) printCall(call client.Call) {
	start := "warm"
	if call.Cold {
		start = "cold"
		if call.ColdReason != "" {
			start += " (" + printable(string(call.ColdReason)) + ")"
		}
	}
	t := call.Timings
	fmt.Fprintf(a.stderr, "invocation %s  %s  queue %s  start %s  init %s  run %s\n",
		printable(call.InvocationID), start, ms(t.Queue), ms(t.Start), ms(t.Init), ms(t.Run))
}

// lastByte remembers the last byte written.
type lastByte struct {
	w    io.Writer
	last byte
}

func (l *lastByte) Write(b []byte) (int, error) {
	if len(b) > 0 {
		l.last = b[len(b)-1]
	}
	return l.w.Write(b)
}
