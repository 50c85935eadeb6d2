package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

func (a *app) exportCmd() *cobra.Command {
	var dir string
	var force bool
	cmd := &cobra.Command{
		Use:   "export [NAME...] -f DIR",
		Short: "Write functions as files",
		Long: `Export writes the named functions, or all, into DIR: for each a directory of its
name with its code as it was uploaded and a hearth.yaml with what differs from the
defaults. "hearth apply -f DIR" makes the same functions of them on another server,
and changes nothing on this one.

DIR must be empty or not exist yet. With --force, the files of functions that are
there are replaced; what a deploy leaves out, such as .git, stays.

The values of environment variables are written as they are. Of secrets there are
only the names: set them on the other server before you apply.`,
		Example: `  hearth export -f functions
  hearth export hello greeter -f functions --force`,
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
			return a.completeName(cmd, nil, typed)
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			if dir == "" {
				return &usageError{errors.New("where to?\n\nsay -f DIR, a directory for the functions")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			var functions []client.Function
			if len(names) == 0 {
				if functions, err = c.AllFunctions(cmd.Context()); err != nil {
					return err
				}
			}
			for _, n := range names {
				f, err := c.Function(cmd.Context(), n)
				if err != nil {
					return err
				}
				functions = append(functions, f)
			}
			if err := emptyDir(dir, force); err != nil {
				return err
			}
			began := time.Now()
			for _, f := range functions {
				leftOut, err := c.Export(cmd.Context(), f, dir)
				if err != nil {
					return fmt.Errorf("export %s: %w", f.Name, err)
				}
				for _, l := range leftOut {
					a.printWarning(f.Name + ": these files do not bring back " + l)
				}
				if !a.json() {
					fmt.Fprintln(a.stdout, printable(filepath.Join(dir, f.Name)))
				}
			}
			if a.json() {
				paths := []string{}
				for _, f := range functions {
					paths = append(paths, filepath.Join(dir, f.Name))
				}
				return a.printJSON(paths)
			}
			fmt.Fprintf(a.stderr, "Exported %s in %s\n", count(len(functions), "function"), time.Since(began).Round(time.Millisecond))
			return nil
		},
	}
	cmd.Flags().StringVarP(&dir, "file", "f", "", "directory to write to")
	cmd.Flags().BoolVar(&force, "force", false, "write also into a directory that is not empty")
	if err := cmd.MarkFlagDirname("file"); err != nil {
		panic(err) // the flag exists: it was just made
	}
	return a.talks(a.prints(cmd))
}

// emptyDir makes a directory, and refuses one with something in it unless that is
// meant.
func emptyDir(dir string, force bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cannotWrite(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return cannotWrite(err)
	}
	defer f.Close()
	switch _, err := f.Readdirnames(1); {
	case errors.Is(err, io.EOF) || err == nil && force:
		return nil
	case err != nil:
		return cannotWrite(err)
	}
	return hearth.Errorf(hearth.CodeConflict, "%s is not empty", dir).
		WithHint("choose another directory, or replace the functions in it with --force")
}
