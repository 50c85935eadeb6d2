package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
	"github.com/hearthrun/hearth/server"
)

func (a *app) doctorCmd() *cobra.Command {
	cfg := server.Config{Logger: slog.New(slog.DiscardHandler)}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell which isolation technologies work on this host",
		Long: `Doctor tries each isolation technology and says whether it works, what it
protects with, what it cannot enforce, and what is missing and how to get it.

It asks the server at --url or HEARTH_URL, whose host may be another one. If
neither is given and no server answers at the usual address, it tries them
itself, as the user it runs as; then --data-dir and the flags after it matter,
which are those of serve.`,
		Example: `  hearth doctor
  hearth doctor -o json | jq '.[] | select(.works) | .name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			drivers, err := a.drivers(cmd.Context(), cmd.Flags().Changed("url"), cfg)
			if err != nil {
				return err
			}
			if a.json() {
				err = a.printJSON(drivers)
			} else {
				a.printDrivers(drivers)
			}
			if err != nil {
				return err
			}
			for _, d := range drivers {
				if d.Works {
					return nil
				}
			}
			return hearth.Errorf(hearth.CodeUnsupported, "no isolation technology works on this host").
				WithHint("install what is missing above")
		},
	}
	hostFlags(cmd.Flags(), &cfg)
	return a.talks(a.prints(cmd))
}

// drivers asks the server what works on its host or, if none answers and none
// was named, finds out itself.
func (a *app) drivers(ctx context.Context, named bool, cfg server.Config) ([]client.Driver, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	drivers, err := c.RefreshDrivers(ctx)
	if named || hearth.ErrorCode(err) != hearth.CodeUnavailable {
		return drivers, err
	}
	if err := a.hostDefaults(&cfg); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hearth-doctor-")
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "cannot make a temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	infos, err := server.Probe(ctx, cfg, dir)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(a.stderr, "No server answers at "+c.URL()+"; this is what works for the user you are.")
	// The client's type is the JSON of the driver's: the command line knows
	// drivers only as a server shows them.
	b, err := json.Marshal(infos)
	if err != nil {
		return nil, err
	}
	return drivers, json.Unmarshal(b, &drivers)
}

func (a *app) printDrivers(drivers []client.Driver) {
	line := func(mark, style, text string) {
		fmt.Fprintf(a.stdout, "  %s %s\n", a.colour(a.stdout, style, mark), printable(text))
	}
	for _, d := range drivers {
		state := a.colour(a.stdout, green, "works")
		switch {
		case !d.Works:
			state = a.colour(a.stdout, red, "does not work")
		case len(d.Runtimes) == 0 && d.Name == "native":
			state = a.colour(a.stdout, yellow, "works, but has no runtime")
		case len(d.Runtimes) == 0:
			state = a.colour(a.stdout, yellow, "works, but has no base image")
		}
		fmt.Fprintf(a.stdout, "%s %s (%s)\n", a.colour(a.stdout, bold, printable(d.Name)), state, printable(d.Summary))
		for _, p := range d.Missing {
			line("✗", red, problemText(p))
		}
		for _, r := range d.Runtimes {
			line("•", dim, fmt.Sprintf("runtime %s: %s %s from %s", r.Name, r.Language, r.Version, r.Source))
		}
		for _, e := range d.Enforced {
			line("✓", green, e)
		}
		for _, p := range d.Limitations {
			line("!", yellow, problemText(p))
		}
	}
}

func problemText(p client.Problem) string {
	if p.Remedy == "" {
		return p.What
	}
	return strings.TrimRight(p.What, ".") + "; " + p.Remedy
}
