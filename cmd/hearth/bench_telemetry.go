package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth/bench"
	"github.com/hearthrun/hearth/server"
)

func (a *app) benchTelemetryCmd() *cobra.Command {
	o := bench.TelemetryOptions{Version: version}
	var cfg server.Config
	var check bool
	cmd := &cobra.Command{
		Use:   "telemetry",
		Short: "Measure what it costs to record and count calls",
		Long: `Telemetry measures how many warm calls a server serves that counts them and records
some, as it does by default, and one that records all, beside one that does neither,
by turns; and what it needs of time, memory and disk to record --rate calls a second
for --duration, and whether all were counted. The latter is done in this process, with the recorder, the database of records and
the one of metrics that a server has, and without functions, which could not be
called so often on a small machine.

It starts servers of its own with empty data directories, on the file system for
temporary files (TMPDIR), and ends them afterwards. A run takes about two minutes; let
nothing else run meanwhile.`,
		Example: `  hearth bench telemetry
  hearth bench telemetry --rounds 20 --connections 64 --check
  hearth bench telemetry --rate 10000 --duration 10s -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return err
			}
			err := a.hostDefaults(&cfg)
			if err != nil {
				return err
			}
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			o.Args, o.Command = hostArgs(cfg), "hearth "+strings.Join(os.Args[1:], " ")
			r, err := bench.Telemetry(cmd.Context(), o, a.stderr)
			if err != nil {
				return err
			}
			if a.json() {
				err = a.printJSON(r)
			} else {
				_, err = fmt.Fprint(a.stdout, r.Table())
			}
			if err == nil && check && r.Missed() {
				err = errors.New("a target was missed")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Driver, "isolation", "native", "isolation technology of the function that is called")
	f.IntVar(&o.Rounds, "rounds", 5, "how often all servers are measured")
	durationVar(f, &o.RoundTime, "round", 3*time.Second, "time of each measurement")
	f.IntVar(&o.Connections, "connections", 8, "how many call at once")
	f.IntVar(&o.Rate, "rate", 5000, "how many calls are recorded each second")
	durationVar(f, &o.Duration, "duration", time.Minute, "for how long")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed")
	hostFlags(f, &cfg)
	return a.prints(cmd)
}
