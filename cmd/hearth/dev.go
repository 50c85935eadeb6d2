package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) devCmd() *cobra.Command {
	var o overrides
	var keep bool
	var dataDir string
	cmd := &cobra.Command{
		Use:   "dev [DIR]",
		Short: "Deploy a function again after each save, and show its logs",
		Long: `Dev deploys the function in DIR (default: the current directory), follows its
logs, and deploys it again whenever something in DIR is saved, until Ctrl-C. It
is the same deploy as that of "hearth deploy": what runs here runs there. While
code cannot be loaded, its error is shown and the last good version answers.

The server is the one at --url. If none is named and none runs at the default
address, dev starts one of its own for as long as it lasts; --data-dir keeps what
that one has, such as installed dependencies, for the next time.

In the end, a function that exists only because dev made it is deleted, unless
--keep is given or somebody else has changed it meanwhile; one that existed keeps
its last version. To leave a function alone that others use, give a --name of its
own.

Reloads and errors go to standard error, logs to standard output; with -o json
both are objects on standard output, one a line: their type is "reload", "error",
"build", "log" or "end".`,
		Example: `  hearth dev hello
  hearth dev --name hello-dev --env STAGE=dev
  hearth dev hello -o json | jq -r 'select(.type == "log").text'`,
		Args:              oneAtMost,
		ValidArgsFunction: completeDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			env, err := parseEnv("--env", o.env)
			if err != nil {
				return err
			}
			// Whoever closes the terminal or the pipe wants an end as clean as after
			// Ctrl-C.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
			defer stop()
			signal.Ignore(syscall.SIGPIPE)
			ctx, unread := context.WithCancel(ctx)
			defer unread()
			d := &dev{
				app: a, dir: dir, keep: keep, made: map[string]int64{}, out: &devOutput{app: a, unread: unread},
				override: func(m *client.Manifest) { o.apply(m, env) },
			}
			return d.run(ctx, cmd.Flags().Changed("url"), dataDir)
		},
	}
	cmd.Flags().StringVar(&o.name, "name", "", "name of the function instead of that in hearth.yaml")
	cmd.Flags().StringVar(&o.isolation, "isolation", "", "isolation technology instead of that in hearth.yaml")
	cmd.Flags().StringArrayVar(&o.env, "env", nil, "environment variable `NAME=VALUE` besides those in hearth.yaml (repeatable)")
	cmd.Flags().BoolVar(&keep, "keep", false, "do not delete in the end a function that dev has made")
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "where dev's own server keeps everything, if it starts one (default a temporary directory, removed in the end)")
	return a.talks(a.prints(cmd))
}

// cleanupTime bounds the deletion of what dev has made.
const cleanupTime = 30 * time.Second

// dev is one run of hearth dev.
type dev struct {
	*app
	dir      string
	keep     bool
	override func(*client.Manifest)
	client   *client.Client
	out      *devOutput

	// name is that of the function at the last deploy, "" before the first.
	name string
	// made has the functions that exist only because of dev, with the generation
	// that they have; 0 if a deploy was broken off and it is not known.
	made map[string]int64
	// broken is true after a deploy that failed.
	broken bool
	// warned are the warnings that were shown last.
	warned string
	// logs follows the log of the function name; nil before there is one.
	logs *follower
}

// run deploys and watches until ctx ends.
func (d *dev) run(ctx context.Context, named bool, dataDir string) (err error) {
	if _, err := client.LoadManifest(d.dir); hearth.ErrorCode(err) == hearth.CodeNotFound {
		return err // it is the wrong directory rather than one in the making
	}
	w, err := client.Watch(d.dir)
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // it only ends
	if d.client, err = d.app.client(); err != nil {
		return err
	}
	defer func() { d.client.Close() }()
	var own *ownServer
	if err := d.client.Ready(ctx); err != nil {
		if named || ctx.Err() != nil || hearth.ErrorCode(err) == hearth.CodeUnavailable && d.client.Healthy(ctx) == nil {
			return err
		}
		if own, err = d.startServer(ctx, dataDir); err != nil {
			return err
		}
		defer own.stop() //nolint:errcheck // its log says it
		if d.client, err = client.New(own.url, client.WithUserAgent("hearth/"+version)); err != nil {
			return err
		}
		d.out.say("started a server at " + own.url)
	} else if dataDir != "" {
		d.out.say("--data-dir is not used: a server runs at " + d.client.URL())
	}
	if own == nil || dataDir != "" {
		defer d.cleanUp(ctx)
	}
	defer func() { d.logs.stop() }()
	saved := time.Time{}
	for {
		d.deploy(ctx, saved, w)
		var ok bool
		select {
		case <-ctx.Done():
			return nil // Ctrl-C is how one leaves
		case err := <-own.ended():
			return err
		case saved, ok = <-w.Changes():
			if !ok {
				return w.Err()
			}
		}
	}
}

// deploy deploys the directory as it is and shows what became of it. saved is
// when the change began, zero at the first deploy.
func (d *dev) deploy(ctx context.Context, saved time.Time, w *client.Watcher) {
	began := saved
	if began.IsZero() {
		began = time.Now()
	}
	unchanged, name, fresh := false, "", false
	opts := client.DeployOptions{Override: d.override, OnEvent: func(e client.Event) {
		switch e.Stage {
		case client.StageUpload: // now its name is known and its code packed
			name = e.Manifest.Name
			fresh = d.prepare(ctx, name)
		case client.StageUnchanged:
			unchanged = true
		case client.StageChange, client.StageBuild, client.StageBuilt, client.StageLog:
			d.out.build(e)
		}
	}}
	f, err := d.client.Deploy(ctx, d.dir, opts)
	if _, made := d.made[name]; made || fresh {
		switch {
		case err == nil:
			d.made[name] = f.Generation
		case ctx.Err() != nil:
			d.made[name] = 0 // it may have been made all the same
		}
	}
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		if len(w.Changes()) == 0 { // else it may be about half a save, and the next deploy says
			d.broken = true
			d.out.failed(err, d.name)
		}
		return
	}
	first := d.name == ""
	d.name = f.Name
	d.warn(f.Warnings)
	if !unchanged || first || d.broken { // a save that changes nothing is no news
		d.out.reloaded(f, time.Since(began), first, unchanged)
	}
	d.broken = false
	if d.logs == nil {
		d.logs = d.follow(ctx, f.Name, f.Live)
	}
}

// prepare makes ready for a deploy of the function. It tells whether there is none
// yet.
func (d *dev) prepare(ctx context.Context, name string) bool {
	if d.name != "" && d.name != name {
		// Its name was changed. What dev made under the old one would stand in the
		// way: of its routes, there can only be one function.
		d.logs.stop()
		d.logs = nil
		d.remove(ctx, d.name)
		d.name = ""
	}
	if _, ok := d.made[name]; ok {
		return false
	}
	if _, err := d.client.Function(ctx, name); err != nil {
		if hearth.ErrorCode(err) == hearth.CodeNotFound {
			return true
		}
		return false // the deploy says what is wrong
	}
	if d.logs == nil {
		d.logs = d.follow(ctx, name, 0)
	}
	return false
}

// warn shows warnings that are not those of the last deploy.
func (d *dev) warn(warnings []string) {
	text := fmt.Sprint(warnings)
	if text == d.warned {
		return
	}
	d.warned = text
	for _, w := range warnings {
		d.out.say("warning: " + w)
	}
}

// cleanUp deletes what dev has made.
func (d *dev) cleanUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	for name := range d.made {
		d.remove(ctx, name)
	}
}

// remove deletes a function if dev has made it.
func (d *dev) remove(ctx context.Context, name string) {
	generation, ok := d.made[name]
	if !ok {
		return
	}
	delete(d.made, name)
	if d.keep {
		return
	}
	err := d.client.DeleteFunction(ctx, name, generation)
	switch hearth.ErrorCode(err) {
	case "":
		d.out.end(name, "deleted "+name+", which only dev has made")
	case hearth.CodeNotFound:
	case hearth.CodeConflict:
		d.out.end(name, "kept "+name+": somebody else has changed it")
	default:
		d.out.failed(fmt.Errorf("delete %s: %w", name, err), "")
	}
}
