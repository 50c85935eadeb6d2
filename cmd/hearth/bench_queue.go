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

func (a *app) benchQueueCmd() *cobra.Command {
	o := bench.QueueOptions{Version: version}
	var cfg server.Config
	var check bool
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Measure how fast asynchronous calls are accepted and begin",
		Long: `Queue measures how many asynchronous calls a server accepts each second, when each
has reached the disk before it is acknowledged, beside how often the same disk can do
that for one after the other; how many it accepts and runs; and how soon a call begins
for which there is an idle instance.

It starts a server of its own with an empty data directory, on the file system for
temporary files (TMPDIR), and ends it afterwards. A run takes about half a minute.`,
		Example: `  hearth bench queue
  TMPDIR=/var/lib hearth bench queue --callers 256 --check
  hearth bench queue -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return err
			}
			if err := a.hostDefaults(&cfg); err != nil {
				return err
			}
			o.Command = "hearth " + strings.Join(os.Args[1:], " ")
			r, err := withServer(cmd.Context(), hostArgs(cfg), func(s *bench.Server, _ string) (bench.QueueReport, error) {
				o.Server = s
				return bench.Queue(cmd.Context(), o, a.stderr)
			})
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
	durationVar(f, &o.Duration, "duration", 10*time.Second, "time of each measurement under load, at most 30s")
	f.IntVar(&o.Callers, "callers", 64, "how many make calls at once")
	f.IntVar(&o.Starts, "starts", 200, "how many calls are made one after the other")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed")
	hostFlags(f, &cfg)
	return a.prints(cmd)
}
