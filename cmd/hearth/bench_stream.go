package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth/bench"
	"github.com/hearthrun/hearth/server"
)

func (a *app) benchStreamCmd() *cobra.Command {
	o := bench.StreamOptions{Version: version}
	var cfg server.Config
	var check bool
	cmd := &cobra.Command{
		Use:   "stream",
		Short: "Measure streamed bodies and WebSockets",
		Long: `Stream measures how streams pass a server: how long an event takes from the
function's write to the client, how fast and in how much memory a gigabyte passes
each way, what 1,000 idle WebSockets cost in the server and in the guest, and
whether a deploy drops any of them.

It starts a server of its own with an empty data directory and ends it afterwards.
Base images are those of the data directory or of --images-dir. A run takes about
half a minute; let nothing else run meanwhile.`,
		Example: `  hearth bench stream
  hearth bench stream --driver gvisor --sockets 100
  hearth bench stream --check -o json`,
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
			o.Command = "hearth " + strings.Join(os.Args[1:], " ")
			r, err := a.benchStream(cmd.Context(), o, cfg)
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
	f.StringVar(&o.Driver, "driver", "native", "isolation technology")
	f.IntVar(&o.Streams, "streams", 100, "number of streams of ten events each")
	f.IntVar(&o.Megabytes, "megabytes", 1000, "size of the bodies, in 1,000,000 bytes")
	f.IntVar(&o.Sockets, "sockets", 1000, "number of WebSockets")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed")
	hostFlags(f, &cfg)
	return a.prints(cmd)
}

func (a *app) benchStream(ctx context.Context, o bench.StreamOptions, cfg server.Config) (bench.StreamReport, error) {
	// Nobody else learns of this port before the server has it.
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return bench.StreamReport{}, err
	}
	debug := l.Addr().String()
	l.Close() //nolint:errcheck // it is free again
	o.Debug = "http://" + debug
	return withServer(ctx, append(hostArgs(cfg), "--debug-listen", debug, "--stem-cells", "-1"), func(s *bench.Server, _ string) (bench.StreamReport, error) {
		o.Server = s
		return bench.Stream(ctx, o, a.stderr)
	})
}
