package main

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// overrides are the flags of deploy that win over hearth.yaml.
type overrides struct {
	name, isolation string
	env             []string
}

func (a *app) deployCmd() *cobra.Command {
	var o overrides
	var onlyNew, noCache, preview bool
	cmd := &cobra.Command{
		Use:   "deploy [DIR]",
		Short: "Deploy the function in a directory",
		Long: `Deploy uploads the code in DIR (default: the current directory) as a new
version of the function its hearth.yaml describes, waits until that version
answers calls, and prints its URL. If it fails, the version that was live stays
live; with --preview it does so in any case, and the new version answers at a URL
of its own.

--isolation and --env hold for this deploy only; the next one without them takes
what hearth.yaml says, so what is to stay belongs there. A runtime without a
number, such as python, is the newest that the isolation has.

What requirements.txt (Python) or package.json (JavaScript) ask for is installed
on the server, inside a sandbox of the function's isolation and runtime. The same
lock file is installed once; --no-cache does it again.

What .hearthignore lists is left out, by the rules of .gitignore; .git, .hg,
.svn, .venv, __pycache__ and what editors keep beside a file always are.`,
		Example: `  hearth deploy hello
  hearth deploy . --name hello-staging --env STAGE=staging
  hearth deploy . --isolation docker
  hearth deploy . --preview && hearth release hello --canary 10%
  hearth deploy . --no-cache -o json`,
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
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			f, err := c.Deploy(cmd.Context(), dir, client.DeployOptions{
				New:      onlyNew,
				NoCache:  noCache,
				Preview:  preview,
				OnEvent:  a.progress(preview),
				Override: func(m *client.Manifest) { o.apply(m, env) },
			})
			if err != nil {
				return err
			}
			a.printWarnings(f.Warnings)
			if a.json() {
				return a.printJSON(f)
			}
			url := f.URL
			if preview && f.Deployed > 0 && f.Deployed != f.Live {
				url = strings.TrimSuffix(url, "/") + "@" + strconv.Itoa(f.Deployed) + "/"
			}
			_, err = fmt.Fprintln(a.stdout, printable(url))
			return err
		},
	}
	cmd.Flags().StringVar(&o.name, "name", "", "name of the function instead of that in hearth.yaml")
	cmd.Flags().StringVar(&o.isolation, "isolation", "", "isolation technology instead of that in hearth.yaml")
	cmd.Flags().StringArrayVar(&o.env, "env", nil, "environment variable `NAME=VALUE` besides those in hearth.yaml (repeatable)")
	cmd.Flags().BoolVar(&onlyNew, "new", false, "fail if the function exists")
	cmd.Flags().BoolVar(&preview, "preview", false, "do not make the new version live: it answers at NAME@VERSION only, until hearth release")
	cmd.Flags().BoolVar(&noCache, "no-cache", false, "install dependencies anew, whatever was installed before")
	return a.talks(a.prints(cmd))
}

func (o overrides) apply(m *client.Manifest, env map[string]string) {
	if o.name != "" {
		m.Name = o.name
	}
	if o.isolation != "" {
		m.Isolation = o.isolation
	}
	if len(env) > 0 && m.Env == nil {
		m.Env = map[string]string{}
	}
	maps.Copy(m.Env, env)
}

// parseEnv reads the NAME=VALUE of a repeated flag.
func parseEnv(flag string, list []string) (map[string]string, error) {
	env := map[string]string{}
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, &usageError{fmt.Errorf("%s %q has no =\n\nwrite for example %s STAGE=test", flag, s, flag)}
		}
		env[k] = v
	}
	return env, nil
}

// progress prints how a deploy, or one of a preview, goes; if a program reads the result, only what an
// installer of dependencies says.
func (a *app) progress(preview bool) func(client.Event) {
	return func(e client.Event) {
		if a.json() && e.Stage != client.StageLog {
			return
		}
		text := e.Text
		switch e.Stage {
		case client.StagePack:
			text = "packing " + e.Manifest.Name
		case client.StageUpload:
			text = fmt.Sprintf("uploading %d files, %d bytes", e.Files, e.Bytes)
		case client.StageLog:
			fmt.Fprintln(a.stderr, a.colour(a.stderr, dim, "    "+printable(text)))
			return
		case client.StageDone:
			what := "live after "
			if preview {
				what = "answers after "
			}
			text = a.colour(a.stderr, green, what+e.Took.Round(time.Millisecond).String())
			fmt.Fprintln(a.stderr, a.colour(a.stderr, dim, "•"), text)
			return
		}
		fmt.Fprintln(a.stderr, a.colour(a.stderr, dim, "•"), printable(text))
	}
}

func (a *app) configCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Check a function's configuration",
		Long:    `Config has commands about hearth.yaml, the file that describes a function.`,
		Example: `  hearth config check hello`,
	}
	check := &cobra.Command{
		Use:   "check [DIR|FILE]",
		Short: "Check hearth.yaml and show it with its defaults",
		Long: `Check reads hearth.yaml in DIR (default: the current directory) or FILE as
deploy would, and shows the configuration with all defaults filled in. It needs
no server; what depends on the host, such as which runtimes there are and what
egress is by default, deploy settles. The keys are:

` + keys(),
		Example: `  hearth config check
  hearth config check hello/hearth.yaml -o json`,
		Args:              oneAtMost,
		ValidArgsFunction: completeDir,
		RunE: func(_ *cobra.Command, args []string) error {
			path := "."
			if len(args) > 0 {
				path = args[0]
			}
			m, err := client.LoadManifest(path)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(struct {
					Name string `json:"name"`
					hearth.Config
				}{m.Name, m.WithDefaults()})
			}
			return a.printPairs(append([][2]string{{"name", m.Name}}, configPairs(m.WithDefaults())...))
		},
	}
	return group(cmd, a.prints(check))
}
