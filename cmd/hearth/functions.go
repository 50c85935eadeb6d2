package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) listCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:        "list",
		Aliases:    []string{"ls"},
		SuggestFor: []string{"function", "functions"},
		Short:      "List the functions",
		Long:       `List shows every function with its live version, runtime, isolation and URL.`,
		Example: `  hearth list
  hearth list -o json | jq -r '.[].name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			fs, err := c.AllFunctions(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(fs)
			}
			if len(fs) == 0 {
				fmt.Fprintln(a.stderr, "There are no functions yet. Make one: hearth init hello && hearth deploy hello")
				return nil
			}
			rows := [][]string{{"NAME", "VERSION", "RUNTIME", "ISOLATION", "UPDATED", "URL"}}
			for _, f := range fs {
				rows = append(rows, []string{f.Name, liveVersions(f), f.Config.Runtime, f.Config.Isolation, ago(f.UpdatedAt, time.Now()), f.URL})
			}
			return a.printTable(rows)
		},
	}))
}

func (a *app) getCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "get NAME",
		Short: "Show a function",
		Long:  `Get shows a function with the configuration of its live version.`,
		Example: `  hearth get hello
  hearth get hello -o json | jq .config`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			f, err := c.Function(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(f)
			}
			pairs := [][2]string{
				{"name", f.Name},
				{"url", f.URL},
				{"version", liveVersions(f)},
				{"artifact", f.Artifact},
				{"created", stamp(f.CreatedAt)},
				{"updated", stamp(f.UpdatedAt)},
			}
			pairs = append(pairs, configPairs(f.Config)...)
			for _, w := range f.Warnings {
				pairs = append(pairs, [2]string{"warning", w})
			}
			return a.printPairs(pairs)
		},
	}))
}

func (a *app) deleteCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "delete NAME[@VERSION]",
		Aliases: []string{"rm"},
		Short:   "Delete a function, or one version of it",
		Long: `Delete removes a function with all its versions, or, as NAME@VERSION, one version
to which no alias leads. Calls that are running end normally; asynchronous ones that
have not ended are canceled with their function, and it says how many. Messages of
queues stay. On a terminal it asks first; otherwise it needs --yes.`,
		Example: `  hearth delete hello
  hearth delete hello --yes
  hearth delete hello@3 --yes`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, number, err := versionOf(args[0])
			if err != nil {
				return err
			}
			if !yes {
				question := "Delete the function " + name + " with all its versions?"
				if number > 0 {
					question = fmt.Sprintf("Delete version %d of the function %s?", number, name)
				}
				if err := a.confirm(cmd.Context(), question); err != nil {
					return err
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			var d hearth.Deleted
			if number > 0 {
				err = c.DeleteVersion(cmd.Context(), name, number)
			} else {
				d, err = c.Delete(cmd.Context(), name, 0)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Deleted %s%s\n", args[0], canceled(d))
			a.printWarnings(d.Warnings)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return a.talks(cmd)
}

// canceled says which calls a deletion ended, as the end of a line.
func canceled(d hearth.Deleted) string {
	if d.Canceled == 0 {
		return ""
	}
	return " and canceled " + count(int(d.Canceled), "asynchronous call")
}

// versionOf reads NAME or NAME@VERSION; the number of the former is 0.
func versionOf(arg string) (name string, number int, err error) {
	name, alias, number, err := hearth.Target(arg).Parts()
	if err != nil {
		return "", 0, err
	}
	if alias != "" || number == 0 && name != arg {
		return "", 0, &usageError{fmt.Errorf("%q is no version\n\nremove an alias with hearth alias delete %s %s", arg, name, alias)}
	}
	return name, number, nil
}

// confirm asks a question on the terminal; nil means yes.
func (a *app) confirm(ctx context.Context, question string) error {
	in, ok := a.stdin.(io.Writer)
	if !ok || !isTerminal(in) || !isTerminal(a.stderr) {
		return &usageError{errors.New("this needs a confirmation\n\nsay --yes")}
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	line, err := bufio.NewReader(a.input(ctx)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if s := strings.ToLower(strings.TrimSpace(line)); s != "y" && s != "yes" {
		return hearth.Errorf(hearth.CodeCanceled, "nothing was deleted")
	}
	return nil
}

// liveVersions writes which versions answer calls.
func liveVersions(f client.Function) string {
	if f.Split == nil {
		return strconv.Itoa(f.Live)
	}
	return f.Split.String()
}

// configPairs lists a configuration for people.
func configPairs(c hearth.Config) [][2]string {
	pairs := [][2]string{
		{"runtime", c.Runtime},
		{"handler", c.Handler},
		{"isolation", c.Isolation},
		{"timeout", c.Timeout.String()},
		{"memory", c.Memory.String()},
		{"cpu", strconv.FormatFloat(c.CPU, 'g', -1, 64)},
		{"concurrency", strconv.Itoa(c.Concurrency)},
	}
	if c.InstanceConcurrency > 1 {
		pairs = append(pairs, [2]string{"instance_concurrency", strconv.Itoa(c.InstanceConcurrency)})
	}
	if c.Warm.Min > 0 {
		pairs = append(pairs, [2]string{"warm.min", strconv.Itoa(c.Warm.Min)})
	}
	if c.Warm.Schedule != "" {
		pairs = append(pairs, [2]string{"warm.schedule", c.Warm.Schedule})
	}
	if c.Warm.Call != nil {
		pairs = append(pairs, [2]string{"warm.call", "set"})
	}
	if c.Cache != nil {
		pairs = append(pairs, [2]string{"cache", "on"})
		if c.Cache.Authorized {
			pairs = append(pairs, [2]string{"cache.authorized", "true"})
		}
		for _, r := range slices.Sorted(maps.Keys(c.Cache.TTL)) {
			pairs = append(pairs, [2]string{"cache.ttl", string(r) + " " + c.Cache.TTL[r].String()})
		}
	}
	if w := c.Websocket; w != nil {
		pairs = append(pairs, [2]string{"websocket.idle_timeout", w.IdleTimeout.String()},
			[2]string{"websocket.max_duration", w.MaxDuration.String()}, [2]string{"websocket.max_message", w.MaxMessage.String()})
	}
	for _, r := range slices.Sorted(maps.Keys(c.CORS)) {
		pairs = append(pairs, [2]string{"cors", string(r) + " " + strings.Join(c.CORS[r].Origins, " ")})
	}
	if l := c.Limits; l != (hearth.Limits{}) {
		for _, p := range [][2]string{{"limits.request", l.Request.String()}, {"limits.response", l.Response.String()}, {"limits.rate", l.Rate.String()}, {"limits.burst", strconv.Itoa(l.Burst)}} {
			if !strings.HasPrefix(p[1], "0") {
				pairs = append(pairs, p)
			}
		}
	}
	if s := c.Async; s != nil {
		pairs = append(pairs, [2]string{"async", fmt.Sprintf("%d attempts within %s, pauses of %s to %s, kept %s", s.MaxAttempts, s.MaxAge, s.MinBackoff, s.MaxBackoff, s.KeepResult)})
		for _, d := range s.OnSuccess {
			pairs = append(pairs, [2]string{"async.on_success", string(d)})
		}
		for _, d := range s.OnFailure {
			pairs = append(pairs, [2]string{"async.on_failure", string(d)})
		}
	}
	if c.CloudEvents {
		pairs = append(pairs, [2]string{"cloudevents", "true"})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Schedules)) {
		s := c.Schedules[name]
		pairs = append(pairs, [2]string{"schedule", name + " " + scheduleTime(s)})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Queues)) {
		q := c.Queues[name]
		pairs = append(pairs, [2]string{"queue", fmt.Sprintf("%s batches of up to %d within %s", name, cmp.Or(q.BatchSize, hearth.DefaultBatch), q.BatchWindow)})
	}
	if c.Egress != "" {
		pairs = append(pairs, [2]string{"egress", string(c.Egress)})
	}
	for _, r := range c.Routes {
		pairs = append(pairs, [2]string{"route", string(r)})
	}
	for _, m := range []struct {
		word   string
		values map[string]string
	}{{"env", c.Env}, {"secret", c.Secrets}, {"secret file", c.SecretFiles}, {"label", c.Labels}} {
		for _, k := range slices.Sorted(maps.Keys(m.values)) {
			pairs = append(pairs, [2]string{m.word, k + "=" + m.values[k]})
		}
	}
	return pairs
}

// printPairs prints names and values in two columns.
func (a *app) printPairs(pairs [][2]string) error {
	rows := make([][]string, len(pairs))
	for i, p := range pairs {
		rows[i] = []string{p[0], p[1]}
	}
	return a.printTable(rows)
}

// keys lists the keys of hearth.yaml from the vocabulary itself.
func keys() string {
	rows := [][3]string{{"name", "Name of the function: lower-case letters, digits, hyphens"}}
	var list func(t reflect.Type, prefix string)
	list = func(t reflect.Type, prefix string) {
		for i := range t.NumField() {
			f := t.Field(i)
			key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			rows = append(rows, [3]string{prefix + key, f.Tag.Get("doc"), f.Tag.Get("example")})
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				list(inner, prefix+key+".")
			}
		}
	}
	list(reflect.TypeFor[hearth.Config](), "")
	aliases, _ := reflect.TypeFor[client.Manifest]().FieldByName("Aliases")
	rows = append(rows, [3]string{"aliases", aliases.Tag.Get("doc"), "{beta: {env: {STAGE: beta}, routes: [beta.example.com/]}}"})
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "  %-*s %s", width, r[0], r[1])
		if r[2] != "" {
			fmt.Fprintf(&b, "; for example %s", r[2])
		}
		b.WriteByte('\n')
	}
	return strings.TrimRight(b.String(), "\n")
}
