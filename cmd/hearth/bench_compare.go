package main

import (
	"bytes"
	"context"
	"encoding/json"
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

// reports are the files that a comparison is written to besides the terminal.
type reports struct{ json, html, markdown string }

func (a *app) benchCompareCmd() *cobra.Command {
	o := bench.CompareOptions{Version: version}
	var cfg server.Config
	var files reports
	var quick, check bool
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Compare the isolation technologies of this machine",
		Long: `Compare runs the same functions under every driver that works on this machine:
cold and warm calls, throughput, memory of idle instances and processor time. In
the same run it starts the plain commands that they are judged by: docker run,
runc run, runsc run and the bare interpreter.

It starts a server of its own with an empty data directory and ends it
afterwards. Base images are those of the data directory or of --images-dir;
hearth images build makes them. Dependencies are installed from PyPI and npm.
Let nothing else run meanwhile. hearth cost compare computes what the functions
cost from what --json writes.`,
		Example: `  hearth bench compare
  hearth bench compare --isolation native,docker --runtimes python --duration 1m
  hearth bench compare --duration 10m --json compare.json --html compare.html`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if quick {
				o.Duration, o.Instances = 10*time.Second, 3
			}
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
			c, err := a.compare(cmd.Context(), o, cfg)
			if err != nil {
				return err
			}
			if err := files.write(c); err != nil {
				return err
			}
			if a.json() {
				err = a.printJSON(c)
			} else {
				_, err = fmt.Fprint(a.stdout, c.Table(), costsHint(files.json))
			}
			if err == nil && check && c.Missed() {
				err = errors.New("a target was missed")
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Drivers, "isolation", nil, "isolation technologies (default all that work here)")
	f.StringSliceVar(&o.Languages, "runtimes", []string{"python", "nodejs"}, "languages: python, nodejs")
	f.StringSliceVar(&o.Workloads, "workloads", nil, "functions (default all): empty, cpu, response, files, imports, syscalls")
	durationVar(f, &o.Duration, "duration", 3*time.Minute, "how long to measure in all, without deploying")
	f.IntVar(&o.Instances, "instances", 20, "idle instances to weigh for each driver and language")
	f.BoolVar(&quick, "quick", false, "a short run that shows that all works, with rough figures")
	f.StringVar(&files.json, "json", "", "write the figures to this `FILE`")
	f.StringVar(&files.html, "html", "", "write a page with plots to this `FILE`")
	f.StringVar(&files.markdown, "markdown", "", "write tables between the markers in this `FILE`")
	f.BoolVar(&check, "check", false, "exit with 1 if a target is missed")
	hostFlags(f, &cfg)
	cmd.MarkFlagsMutuallyExclusive("quick", "duration")
	return a.prints(cmd)
}

// costsHint says how to see what it all costs; file is that of --json.
func costsHint(file string) string {
	if file == "" {
		return "\nWhat it costs: hearth bench compare --json FILE, then hearth cost compare FILE\n"
	}
	return "\nWhat it costs: hearth cost compare " + file + "\n"
}

// compare starts a server for the comparison and ends it.
func (a *app) compare(ctx context.Context, o bench.CompareOptions, cfg server.Config) (bench.Comparison, error) {
	return withServer(ctx, hostArgs(cfg), func(s *bench.Server, _ string) (bench.Comparison, error) {
		o.Server = s
		return bench.Compare(ctx, o, a.stderr)
	})
}

// write makes the files that were asked for.
func (r reports) write(c bench.Comparison) error {
	if r.json != "" {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(c); err != nil {
			return err
		}
		if err := bench.WriteReport(r.json, b.Bytes()); err != nil {
			return err
		}
	}
	if r.html != "" {
		page, err := c.HTML()
		if err != nil {
			return err
		}
		if err := bench.WriteReport(r.html, page); err != nil {
			return err
		}
	}
	if r.markdown != "" {
		return c.UpdateMarkdown(r.markdown)
	}
	return nil
}
