package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// defaultURL is where `hearth serve` listens unless told otherwise.
const defaultURL = "http://127.0.0.1:8080"

// exitUsage is the exit code of wrong usage; the others come from hearth.Codes.
const exitUsage = 2

// usageError marks an error in how the command was written.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// run executes the command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)

	// Whatever cobra refuses before the command itself starts is wrong usage.
	started := false
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.flagsFromEnv(cmd); err != nil {
			return err
		}
		started = true
		return nil
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !started {
		err = &usageError{err}
	}
	return a.report(cmd, err)
}

// root returns the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "hearth",
		Short: "A self-hosted serverless function platform",
		Long: `Hearth runs functions on your own machine: give it source code, and it
answers HTTP requests with it, inside an isolation technology chosen per
function.

Exit codes: 0 success, 1 other errors, 2 wrong usage` + exitCodes() + `.`,
		Example: `  hearth serve                     # in one terminal
  hearth init hello --runtime python
  hearth deploy hello
  hearth invoke hello --data '{"name":"you"}'`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SetVersionTemplate("hearth {{.Version}}\n")
	root.AddGroup(
		&cobra.Group{ID: "functions", Title: "Functions:"},
		&cobra.Group{ID: "server", Title: "Server and host:"},
	)
	for _, c := range []*cobra.Command{
		a.initCmd(), a.deployCmd(), a.devCmd(), a.invokeCmd(), a.eventsCmd(), a.listCmd(), a.getCmd(),
		a.versionsCmd(), a.aliasCmd(), a.releaseCmd(), a.releasesCmd(), a.rollbackCmd(),
		a.deleteCmd(), a.logsCmd(), a.statsCmd(), a.queueCmd(), a.queuesCmd(), a.sendCmd(), a.schedulesCmd(), a.scheduleCmd(), a.secretCmd(), a.applyCmd(), a.exportCmd(), a.configCmd(),
	} {
		c.GroupID = "functions"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.serveCmd(), a.poolCmd(), a.doctorCmd(), a.imagesCmd(), a.benchCmd(), a.costCmd(), a.versionCmd()} {
		c.GroupID = "server"
		root.AddCommand(c)
	}
	return root
}

func (a *app) costCmd() *cobra.Command {
	return group(&cobra.Command{
		Use:     "cost",
		Short:   "Show what functions cost",
		Long:    "Cost computes what functions cost on this machine, and what they would in clouds.",
		Example: "  hearth cost compare compare.json",
	}, a.costCompareCmd())
}

// group makes cmd one that only has others: alone it prints its help.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.Args = noOther
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(commands...)
	return cmd
}

// noOther accepts no argument: it would be a command that does not exist.
func noOther(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	return fmt.Errorf("unknown command %q for %q\n\nit has %s", args[0], cmd.CommandPath(), strings.Join(names, ", "))
}

// exitCodes lists the exit codes for the help text.
func exitCodes() string {
	var b strings.Builder
	for i, c := range hearth.Codes() {
		sep := ", "
		if i%4 == 0 {
			sep = ",\n"
		}
		fmt.Fprintf(&b, "%s%d %s", sep, c.ExitCode, c.Code)
	}
	return b.String()
}

// report prints err the way people and programs expect and returns the exit
// code.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if errors.Is(err, errDifferent) {
		return exitDifferent
	}
	var usage *usageError
	if errors.As(err, &usage) {
		message, hint, _ := strings.Cut(usage.Error(), "\n\n")
		a.printError(message, strings.TrimSpace(hint))
		fmt.Fprintf(a.stderr, "Try '%s --help'.\n", cmd.CommandPath())
		return exitUsage
	}
	var e *hearth.Error
	if !errors.As(err, &e) {
		code, text := hearth.Code(""), err.Error()
		if errors.Is(err, context.Canceled) {
			code, text = hearth.CodeCanceled, "interrupted"
		}
		a.printError(text, "")
		return code.ExitCode()
	}
	if f := e.Function; f != nil {
		a.printFunctionError(f)
	} else if e.Code == hearth.CodeCanceled {
		a.printError(e.Message, "") // the cause is only how Go says it
	} else {
		// The outermost text says what was being done; the hint stays.
		a.printError(err.Error(), "")
	}
	if e.Hint != "" {
		a.printHint(e.Hint)
	}
	return e.Code.ExitCode()
}

// annotationEnv marks a flag that is also read from the environment.
const annotationEnv = "hearth_env"

// fromEnv lets the flag be set by HEARTH_<NAME> too and says so in its usage.
func fromEnv(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		env := "HEARTH_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		f := flags.Lookup(name)
		f.Usage += " [$" + env + "]"
		if err := flags.SetAnnotation(name, annotationEnv, []string{env}); err != nil {
			panic(err) // the flag exists: it was just looked up
		}
	}
}

// flagsFromEnv sets the flags that were not given from the environment.
func (a *app) flagsFromEnv(cmd *cobra.Command) error {
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		env := f.Annotations[annotationEnv]
		if f.Changed || len(env) == 0 {
			return
		}
		if v := a.getenv(env[0]); v != "" {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", env[0], err))
			}
		}
	})
	return errors.Join(errs...)
}

// talks gives cmd the flag that finds the server.
func (a *app) talks(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.url, "url", defaultURL, "where the server is")
	fromEnv(cmd.Flags(), "url")
	return cmd
}

// prints gives cmd the flag that chooses between a table and JSON.
func (a *app) prints(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().VarP(&outputValue{&a.output}, "output", "o", "json for programs, table for people")
	return cmd
}

// client returns the client for --url.
func (a *app) client() (*client.Client, error) {
	return client.New(a.url, client.WithUserAgent("hearth/"+version))
}
