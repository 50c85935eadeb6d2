package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth/bench"
	"github.com/hearthrun/hearth/server"
)

func (a *app) benchCmd() *cobra.Command {
	o := bench.Options{Version: version}
	var check bool
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure an isolation technology on this machine",
		Long: `Bench measures cold starts, warm latency and throughput, and memory of a
function, and in the same run what they are judged by: a Go no-op server, plain
servers in the function's language, and a bare start of its interpreter.

Without --url (or HEARTH_URL) it starts a server of its own with an empty data
directory and ends it afterwards. It deploys functions named bench-… and deletes
them again. A run takes about three minutes; let nothing else run meanwhile.`,
		Example: `  hearth bench
  hearth bench --runtime nodejs --url http://127.0.0.1:8080
  hearth bench --rounds 1 --duration 1s -o json > report.json`,
		Args: noOther,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.BaseURL = ""
			if cmd.Flags().Changed("url") {
				o.BaseURL = a.url
			}
			o.Command = "hearth " + strings.Join(os.Args[1:], " ")
			report, err := a.bench(cmd.Context(), o)
			if err != nil {
				return err
			}
			if a.json() {
				err = a.printJSON(report)
			} else {
				_, err = fmt.Fprint(a.stdout, report.Table())
			}
			if err == nil && check && report.Missed() {
				err = errors.New("a target was missed")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Driver, "isolation", "native", "isolation technology to measure")
	f.StringVar(&o.Runtime, "runtime", "python", "language: python or nodejs")
	f.IntSliceVar(&o.Concurrencies, "concurrency", []int{1, 8, 64}, "numbers of connections")
	f.IntVar(&o.Rounds, "rounds", 3, "how often each cell is measured")
	durationVar(f, &o.Warmup, "warmup", time.Second, "time before each measurement")
	durationVar(f, &o.Duration, "duration", 3*time.Second, "time of each measurement")
	f.IntVar(&o.ColdIterations, "cold", 20, "number of cold starts; -1 for none")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed")
	cmd.AddCommand(a.benchCompareCmd(), a.benchPoolCmd(), a.benchStreamCmd(), a.benchQueueCmd(), a.benchTelemetryCmd())
	return a.talks(a.prints(cmd))
}

// bench measures the server at o.BaseURL, or one of its own if that is empty.
func (a *app) bench(ctx context.Context, o bench.Options) (bench.Report, error) {
	if o.BaseURL != "" {
		return bench.Run(ctx, o, a.stderr)
	}
	return withServer(ctx, nil, func(s *bench.Server, _ string) (bench.Report, error) {
		o.BaseURL, o.ServerPID, o.ReadyTime = s.URL, s.PID, s.ReadyTime
		return bench.Run(ctx, o, a.stderr)
	})
}

// withServer starts a server for fn and ends it. binary is this program.
func withServer[R any](ctx context.Context, args []string, fn func(s *bench.Server, binary string) (R, error)) (r R, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	s, err := bench.StartServer(ctx, self, args...)
	if err != nil {
		return r, err
	}
	defer func() {
		// The server ends also when the run was interrupted.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if stopErr := s.Stop(stop); err == nil {
			err = stopErr
		}
	}()
	return fn(s, self)
}

// hostArgs are the arguments by which a server finds what cfg says of the host.
func hostArgs(cfg server.Config) []string {
	args := []string{"--images-dir", cfg.ImagesDir}
	if cfg.DockerHost != "" {
		args = append(args, "--docker-host", cfg.DockerHost)
	}
	if cfg.DockerRuntime != "" {
		args = append(args, "--docker-runtime", cfg.DockerRuntime)
	}
	return args
}
