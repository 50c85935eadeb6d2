package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/pool/policy"
)

// simulation is what hearth pool simulate was asked for.
type simulation struct {
	trace    string // file
	generate policy.GenerateOptions
	hours    float64
	write    string // file
	policies []string
}

func (a *app) poolSimulateCmd() *cobra.Command {
	var s simulation
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Compare ways to keep functions warm",
		Long: `Simulate replays a trace of calls against policies that say how long a function
without calls is kept warm, and tells how many calls would have been cold and
what memory the instances would have taken. No server is needed, nothing runs.

The trace is a CSV file with one call a line, in the order in which they came:
  function,start_s,duration_s,memory_mb
  hello,0.5,0.120,64
  hello,61.25,0.090,64
Without --trace one is made up; the same --seed makes the same one.

The policies are
  none            ends the instances of a function that has no calls
  fixed           keeps them for 10 minutes; fixed:20m for any other time
  hybrid          learns when calls come, as "Serverless in the Wild" describes it
  hybrid-4h       the same, keeping for 4 hours those it cannot predict
  history         remembers when calls came and weighs cold starts against idle
                  time: one is worth an hour of an idle instance, with
                  history:20m twenty minutes. Hearth's own

COLD are the calls that waited for a start. MEDIAN and P75 are of the functions'
own shares of cold calls, so a rare function counts as much as a busy one. MEMORY
is that of all instances times how long they were there, compared with fixed.
WASTED are the instances started ahead of a call that did not come.`,
		Example: `  hearth pool simulate
  hearth pool simulate --generate rare --hours 168 --policy fixed,history,history:2h
  hearth pool simulate --generate bursty --write-trace calls.csv
  hearth pool simulate --trace calls.csv -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, made := range []string{"generate", "functions", "hours", "seed", "write-trace"} {
				if s.trace != "" && cmd.Flags().Changed(made) {
					return &usageError{fmt.Errorf("--%s is for calls that are made up\n\nleave it out, or --trace", made)}
				}
			}
			return a.simulate(cmd.Context(), s)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.trace, "trace", "", "replay the calls of this `FILE`; - is standard input")
	f.StringVar(&s.generate.Pattern, "generate", "mix", "make up calls: "+strings.Join(policy.Patterns(), ", "))
	f.IntVar(&s.generate.Functions, "functions", 100, "how many functions are called")
	f.Float64Var(&s.hours, "hours", 72, "for how long they are called")
	f.Uint64Var(&s.generate.Seed, "seed", 1, "another number makes other calls of the same kind")
	f.StringVar(&s.write, "write-trace", "", "write the calls that were made up to this `FILE`")
	f.StringSliceVar(&s.policies, "policy", []string{"all"}, "policies to compare")
	return a.prints(cmd)
}

// simulate runs the simulation and prints what came out.
func (a *app) simulate(ctx context.Context, s simulation) (err error) {
	policies, err := s.chosen()
	if err != nil {
		return &usageError{err}
	}
	var trace policy.Trace
	if s.trace != "" {
		in, err := a.openInput(ctx, s.trace, "--trace takes a file with calls, or - for standard input")
		if err != nil {
			return err
		}
		defer in.Close() //nolint:errcheck // it was only read
		trace = policy.ReadTrace(bufio.NewReader(in))
	} else {
		s.generate.Duration = time.Duration(min(s.hours, maxHours) * float64(time.Hour))
		if trace, err = policy.Generate(s.generate); err != nil {
			return &usageError{err}
		}
	}
	trace = until(ctx, trace)
	if s.write != "" {
		if err := writeTrace(s.write, trace); err != nil {
			return err
		}
	}
	results, err := policy.Simulate(trace, policies, policy.SimOptions{})
	if ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return hearth.Errorf(hearth.CodeInvalid, "%w", err)
	}
	if results[0].Calls == 0 {
		return hearth.Errorf(hearth.CodeInvalid, "the trace has no calls").WithHint("simulate more --hours or --functions")
	}
	return a.printSimulation(results, s.policies)
}

// maxHours bounds the length of made-up traces: a century.
const maxHours = 100 * 365 * 24

// chosen returns the policies to simulate: the one that others are compared
// with is always the first.
func (s *simulation) chosen() ([]policy.Policy, error) {
	names := []string{policy.Baseline}
	for _, name := range s.policies {
		more := []string{name}
		if name == "all" {
			more = policy.PolicyNames()
		}
		for _, n := range more {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	policies := make([]policy.Policy, len(names))
	for i, name := range names {
		p, err := policy.PolicyNamed(name)
		if err != nil {
			return nil, err
		}
		policies[i] = p
	}
	return policies, nil
}

// until ends a trace when ctx ends.
func until(ctx context.Context, trace policy.Trace) policy.Trace {
	return func(yield func(policy.Call, error) bool) {
		for call, err := range trace {
			if err == nil {
				err = ctx.Err()
			}
			if !yield(call, err) || err != nil {
				return
			}
		}
	}
}

func writeTrace(path string, trace policy.Trace) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("cannot write the trace: %w", err)
	}
	return errors.Join(policy.WriteTrace(file, trace), file.Close())
}

// simulated is a result as programs see it.
type simulated struct {
	policy.Result
	// Memory is compared with that of the baseline.
	Memory float64 `json:"memory_vs_fixed"`
}

func (a *app) printSimulation(results []policy.Result, asked []string) error {
	base := results[0]
	if !slices.Contains(asked, "all") && !slices.Contains(asked, policy.Baseline) {
		results = results[1:]
	}
	shown := make([]simulated, len(results))
	rows := [][]string{{"POLICY", "COLD STARTS", "COLD", "MEDIAN", "P75", "MEMORY", "PRE-WARMED", "WASTED"}}
	for i, r := range results {
		shown[i] = simulated{r, (r.BusyMBs + r.IdleMBs) / (base.BusyMBs + base.IdleMBs)}
		rows = append(rows, []string{
			r.Policy, fmt.Sprint(r.Cold), percent(r.ColdShare), percent(r.ColdP50), percent(r.ColdP75),
			fmt.Sprintf("×%.2f", shown[i].Memory), fmt.Sprint(r.PreWarms), fmt.Sprint(r.Wasted),
		})
	}
	if a.json() {
		return a.printJSON(shown)
	}
	fmt.Fprintf(a.stdout, "%d calls of %d functions\n\n", base.Calls, base.Functions)
	return a.printTable(rows)
}

// percent writes a share with what matters of it.
func percent(share float64) string {
	if share < 0.1 {
		return fmt.Sprintf("%.2f %%", 100*share)
	}
	return fmt.Sprintf("%.1f %%", 100*share)
}
