package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth/bench"
	"github.com/hearthrun/hearth/server"
)

func (a *app) benchPoolCmd() *cobra.Command {
	o := bench.PoolOptions{Version: version}
	var cfg server.Config
	var check bool
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Measure what the pool of instances promises",
		Long: `Pool measures what callers feel of the pool, each figure as a ratio to something
measured in the same run:

  cold   a call that gets a stem cell, and a plain command that starts the same:
         the bare interpreter, docker run or runsc run
  burst  200 calls at once of a function without instances, and the time that
         cores which never idle would need for them
  flood  a quiet function beside one that is flooded, and the quiet one alone
  many   a server with 10,000 functions of which 100 are called, and one with
         those 100 only

It starts servers of its own with empty data directories and ends them
afterwards. Base images are those of the data directory or of --images-dir. A
run takes about five minutes; let nothing else run meanwhile.`,
		Example: `  hearth bench pool
  hearth bench pool --only cold --driver native,docker,gvisor
  hearth bench pool --only burst,flood --duration 30s --check
  hearth bench pool --only many --functions 100000 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return err
			}
			if err := a.hostDefaults(&cfg); err != nil {
				return err
			}
			if cfg.ImagesDir == "" {
				cfg.ImagesDir = filepath.Join(cfg.DataDir, "images")
			}
			o.ImagesDir, o.DockerHost = cfg.ImagesDir, cfg.DockerHost
			o.Command = "hearth " + strings.Join(os.Args[1:], " ")
			r, err := a.benchPool(cmd.Context(), o, cfg)
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
	f.StringSliceVar(&o.Drivers, "driver", []string{"native"}, "isolation technologies of cold starts; the first one is that of all else")
	f.StringSliceVar(&o.Parts, "only", nil, "what to measure (default all): "+strings.Join(bench.PoolParts(), ", "))
	durationVar(f, &o.Duration, "duration", 10*time.Second, "time of each measurement under load")
	f.IntVar(&o.ColdIterations, "cold", 20, "number of cold starts of each kind")
	f.IntVar(&o.Burst, "burst", 200, "number of calls at once")
	f.IntVar(&o.Bursts, "bursts", 5, "how often they are made")
	f.IntVar(&o.FloodConcurrency, "flood-concurrency", 16, "most instances of the flooded function")
	f.IntSliceVar(&o.FloodCallers, "flood-callers", []int{64, 1200}, "how many call it; 1,000 may wait")
	f.IntVar(&o.Functions, "functions", 10_000, "number of functions of the server with many; 1 % are called")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed")
	hostFlags(f, &cfg)
	return a.prints(cmd)
}

func (a *app) benchPool(ctx context.Context, o bench.PoolOptions, cfg server.Config) (bench.PoolReport, error) {
	return withServer(ctx, hostArgs(cfg), func(s *bench.Server, binary string) (bench.PoolReport, error) {
		o.Server, o.Binary = s, binary
		return bench.Pool(ctx, o, a.stderr)
	})
}
