package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
)

func (a *app) eventsCmd() *cobra.Command {
	var o hearth.ExampleOptions
	cmd := &cobra.Command{
		Use:   "events [NAME]",
		Short: "List typical events, or print one",
		Long: `Events lists events to try a function with, or prints the one with that NAME as
JSON. "hearth invoke --event example:NAME" calls a function with it; printed to a
file, it can be changed first. It needs no server.`,
		Example: `  hearth events
  hearth events http --method POST --path '/orders?dry=1'
  hearth events queue > event.json && hearth invoke hello --event event.json`,
		Args: oneAtMost,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return exampleNames(""), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			o.Time = time.Now()
			if len(args) > 0 {
				e, err := example(args[0], o)
				if err != nil {
					return err
				}
				return a.printJSON(e.Event)
			}
			list, err := hearth.Examples(o)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"NAME", "EVENT"}}
			for _, e := range list {
				rows = append(rows, []string{e.Name, e.Summary})
			}
			return a.printTable(rows)
		},
	}
	requestFlags(cmd, &o)
	return a.prints(cmd)
}

// requestFlags are the flags that say what the example of an HTTP request is like.
func requestFlags(cmd *cobra.Command, o *hearth.ExampleOptions) {
	cmd.Flags().StringVar(&o.Method, "method", "", "method of an example of an HTTP request (default GET, or POST with a body)")
	cmd.Flags().StringVar(&o.Path, "path", "", "path and query of an example of an HTTP request, below /fn/NAME (default /)")
}

// examplePrefix marks the name of an example where it could be that of a file.
const examplePrefix = "example:"

// example returns the example with that name. Errors: CodeNotFound, CodeInvalid.
func example(name string, o hearth.ExampleOptions) (hearth.Example, error) {
	list, err := hearth.Examples(o)
	if err != nil {
		return hearth.Example{}, err
	}
	var names []string
	for _, e := range list {
		if e.Name == name {
			if _, ok := e.Event.(hearth.HTTPEvent); !ok && (o.Method != "" || o.Path != "" || o.Body != nil) {
				return e, &usageError{fmt.Errorf("the example %s is no HTTP request\n\nleave out --method, --path and --data", name)}
			}
			return e, nil
		}
		names = append(names, e.Name)
	}
	return hearth.Example{}, hearth.Errorf(hearth.CodeNotFound, "there is no example %q", name).
		WithHint("there are %s", strings.Join(names, ", "))
}

// exampleNames lists the names of the examples, with a prefix before each.
func exampleNames(prefix string) []string {
	list, err := hearth.Examples(hearth.ExampleOptions{})
	if err != nil {
		return nil // without options there is none
	}
	var names []string
	for _, e := range list {
		names = append(names, prefix+e.Name+"\t"+e.Summary)
	}
	return names
}

// completeEvent completes the value of --event: examples, else files.
func completeEvent(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	if typed == "" || strings.HasPrefix(examplePrefix, typed) || strings.HasPrefix(typed, examplePrefix) {
		return exampleNames(examplePrefix), cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// namedEvent opens the event of --event. The data is the body of an HTTP request.
func (a *app) namedEvent(ctx context.Context, name string, data io.Reader, o hearth.ExampleOptions) (io.Reader, error) {
	key, ok := strings.CutPrefix(name, examplePrefix)
	if !ok {
		if data != nil || o.Method != "" || o.Path != "" {
			return nil, &usageError{fmt.Errorf("--data, --method and --path belong to an example, not to a file\n\nwrite for example --event example:http --path /hello")}
		}
		examples := exampleNames(examplePrefix)
		for i, e := range examples {
			examples[i], _, _ = strings.Cut(e, "\t")
		}
		return a.openInput(ctx, name, "give a file with JSON, - for standard input, or a typical event: "+strings.Join(examples, ", "))
	}
	if data != nil {
		body, err := io.ReadAll(io.LimitReader(data, maxExampleBody+1))
		if err != nil {
			return nil, fmt.Errorf("--data: %w", err)
		}
		if len(body) > maxExampleBody {
			return nil, hearth.Errorf(hearth.CodeInvalid, "the body is larger than %s", hearth.Bytes(maxExampleBody)).
				WithHint("send it to the function's URL; hearth get shows it")
		}
		o.Body = body
	}
	e, err := example(key, o)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(e.Event)
	return bytes.NewReader(b), err
}

// maxExampleBody bounds the body of an example; with it the event still fits.
const maxExampleBody = 4 << 20
