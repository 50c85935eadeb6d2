package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// releasePoll is how often --wait asks the server.
const releasePoll = time.Second

func (a *app) releaseCmd() *cobra.Command {
	var version, minCalls int
	var canary, rollbackOn string
	var step time.Duration
	var wait, abort, finish bool
	cmd := &cobra.Command{
		Use:   "release [NAME]",
		Short: "Make a version live, at once or by steps",
		Long: `Release makes the newest version of a function live, or the one that --version
names. Without NAME it is the function of the hearth.yaml in the current
directory.

With --canary the version first gets a share of the calls: --canary 10% means 10,
20, 30 … percent, one step after the other, --canary 10%,50% exactly these. A step
lasts --step, and longer if the new version had fewer than --min-calls calls. In
the meantime Hearth compares it with the old version; when a condition of
--rollback-on holds, the old version gets all calls again. The conditions are
joined by |, each is METRIC>VALUE or METRIC>FACTORx, which compares with the old
version. Metrics are error_rate and p50, p90, p95 and p99 of the time that the
function ran. An error rate counts only while it is above that of the old version,
p99 once there were 100 calls (p95: 20, p90: 10), a factor of durations if the
difference is above 10 ms.

--wait stays until the release has ended, and fails if it was rolled back.`,
		Example: `  hearth deploy . --preview && hearth release --canary 10% --step 5m --wait
  hearth release hello --canary 5%,25%,50% --rollback-on 'error_rate>1%|p99>1.5x|p50>200ms'
  hearth release hello --version 7
  hearth release hello --abort`,
		Args:              oneFunctionAtMost,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if ends := abort || finish; abort && finish || ends && (version != 0 || canary != "") {
				return &usageError{errors.New("--abort and --finish go with neither each other nor a version or canary\n\nsay one of them")}
			}
			name, err := functionName(args)
			if err != nil {
				return err
			}
			var steps *hearth.Canary
			if canary != "" {
				shares, err := hearth.ParseShares(canary)
				if err != nil {
					return err
				}
				steps = &hearth.Canary{Shares: shares, Step: hearth.Duration(step), RollbackOn: rollbackOn, MinCalls: minCalls}
				if err := steps.WithDefaults().Validate(); err != nil {
					return err
				}
			} else if f := cmd.Flags(); f.Changed("step") || f.Changed("rollback-on") || f.Changed("min-calls") {
				return &usageError{errors.New("--step, --rollback-on and --min-calls belong to a canary\n\nsay for example --canary 10%")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			var r client.Release
			switch {
			case abort || finish:
				r, err = endRelease(cmd.Context(), c, name, finish)
			default:
				if version == 0 {
					if live, err := newestIsLive(cmd.Context(), c, name); err != nil || live > 0 {
						if live > 0 {
							fmt.Fprintf(a.stderr, "Nothing to release: version %d of %s, the newest, is live.\n", live, name)
						}
						return err
					}
				}
				r, err = c.StartRelease(cmd.Context(), name, version, steps)
			}
			if err != nil {
				return err
			}
			if wait {
				if r, err = a.follow(cmd.Context(), c, r); err != nil {
					return err
				}
			}
			return a.printRelease(r)
		},
	}
	f := cmd.Flags()
	f.IntVar(&version, "version", 0, "version to make live (default the newest)")
	f.StringVar(&canary, "canary", "", "`SHARE` of calls in each step, such as 10% or 10%,50%")
	durationVar(f, &step, "step", hearth.DefaultCanaryStep, "how long a step lasts at least")
	f.StringVar(&rollbackOn, "rollback-on", hearth.DefaultRollbackOn, "conditions under which the old version gets all calls again")
	f.IntVar(&minCalls, "min-calls", hearth.DefaultCanaryMinCalls, "how many calls of the new version a step needs")
	f.BoolVar(&wait, "wait", false, "stay until the release has ended")
	f.BoolVar(&abort, "abort", false, "end the release that runs: the old version gets all calls again")
	f.BoolVar(&finish, "finish", false, "end the release that runs: the new version gets all calls now")
	return a.talks(a.prints(cmd))
}

// newestIsLive returns the number of the newest version if it has all calls, else 0.
func newestIsLive(ctx context.Context, c *client.Client, name string) (int, error) {
	list, err := c.Versions(ctx, name, 1, 0)
	if err != nil || len(list) == 0 || list[0].Aliases[hearth.Live] < 100 {
		return 0, err
	}
	return list[0].Number, nil
}

// endRelease ends the release of a function that runs.
func endRelease(ctx context.Context, c *client.Client, name string, finish bool) (client.Release, error) {
	list, err := c.Releases(ctx, name, 1, 0)
	if err != nil {
		return client.Release{}, err
	}
	if len(list) == 0 || list[0].State != hearth.ReleaseRunning {
		return client.Release{}, hearth.Errorf(hearth.CodeConflict, "no release of function %s runs", name).
			WithHint("hearth releases %s shows the last ones", name)
	}
	if finish {
		return c.FinishRelease(ctx, name, list[0].ID)
	}
	return c.AbortRelease(ctx, name, list[0].ID)
}

// follow waits for the end of a release and tells of its steps.
func (a *app) follow(ctx context.Context, c *client.Client, r client.Release) (client.Release, error) {
	tick := time.NewTicker(releasePoll)
	defer tick.Stop()
	for said := -1; r.State == hearth.ReleaseRunning; {
		if r.Step != said && !a.json() {
			said = r.Step
			fmt.Fprintln(a.stderr, a.colour(a.stderr, dim, "•"), printable(releaseProgress(r)))
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-tick.C:
		}
		list, err := c.Releases(ctx, r.Function, 1, r.ID+1)
		if err != nil {
			return r, err
		}
		if len(list) == 0 || list[0].ID != r.ID {
			return r, hearth.Errorf(hearth.CodeNotFound, "release %d of function %s is gone", r.ID, r.Function).
				WithHint("the function was deleted meanwhile")
		}
		r = list[0]
	}
	if r.State != hearth.ReleaseDone {
		e := hearth.Errorf(hearth.CodeConflict, "version %d did not become live: the release was %s: %s", r.To, words(r.State), r.Reason)
		return r, e.WithHint("version %d goes on answering; hearth logs %s tells what version %d did", r.From, r.Function, r.To)
	}
	return r, nil
}

// words writes a state for people.
func words(s hearth.ReleaseState) string { return strings.ReplaceAll(string(s), "_", " ") }

// releaseProgress says in one line how far a release is.
func releaseProgress(r client.Release) string {
	switch {
	case r.State != hearth.ReleaseRunning || r.Canary == nil:
		text := fmt.Sprintf("version %d → %d: %s", r.From, r.To, words(r.State))
		if r.Reason != "" {
			text += " (" + r.Reason + ")"
		}
		return text
	default:
		text := fmt.Sprintf("version %d has %d%% of the calls, step %d of %d", r.To, r.Canary.Shares[r.Step], r.Step+1, len(r.Canary.Shares))
		if r.Fresh != nil {
			text += fmt.Sprintf(", %d calls, %d failed", r.Fresh.Calls, r.Fresh.Errors)
		}
		if r.Reason != "" {
			text += "; " + r.Reason
		}
		return text
	}
}

func (a *app) printRelease(r client.Release) error {
	if a.json() {
		return a.printJSON(r)
	}
	_, err := fmt.Fprintln(a.stdout, printable(releaseProgress(r)))
	return err
}

func (a *app) releasesCmd() *cobra.Command {
	return a.talks(a.prints(&cobra.Command{
		Use:   "releases NAME",
		Short: "List how versions of a function became live",
		Long: `Releases lists the releases of a function, newest first: deploys, releases and
rollbacks, and how those by steps went.`,
		Example:           `  hearth releases hello`,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.Releases(ctx, args[0], 0, 0)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"RELEASE", "KIND", "FROM", "TO", "STARTED", "STATE"}}
			for _, r := range list {
				state := words(r.State)
				if r.State == hearth.ReleaseRunning {
					state = releaseProgress(r)
				} else if r.Reason != "" {
					state += ": " + r.Reason
				}
				from := "-"
				if r.From > 0 {
					from = strconv.Itoa(r.From)
				}
				rows = append(rows, []string{strconv.FormatInt(r.ID, 10), string(r.Kind), from, strconv.Itoa(r.To), ago(r.StartedAt, time.Now()), state})
			}
			return a.printTable(rows)
		}),
	}))
}

func (a *app) rollbackCmd() *cobra.Command {
	var version int
	cmd := &cobra.Command{
		Use:   "rollback [NAME]",
		Short: "Go back to the version that was live before",
		Long: `Rollback makes the version live that was so before, or the one that --version
names. A release by steps that runs is ended instead. Going back again goes
further back. Without NAME it is the function of the hearth.yaml in the current
directory.`,
		Example: `  hearth rollback hello
  hearth rollback hello --version 5`,
		Args:              oneFunctionAtMost,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := functionName(args)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Rollback(cmd.Context(), name, version)
			if err != nil {
				return err
			}
			return a.printRelease(r)
		},
	}
	cmd.Flags().IntVar(&version, "version", 0, "version to go back to (default the one that was live before)")
	return a.talks(a.prints(cmd))
}

// functionName returns the name in args, or that of the hearth.yaml in the
// current directory.
func functionName(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	m, err := client.LoadManifest(".")
	if err != nil {
		return "", &usageError{fmt.Errorf("which function? There is no %s here that could be read: %w\n\nname the function; hearth list shows the names", client.ManifestName, err)}
	}
	return m.Name, nil
}
