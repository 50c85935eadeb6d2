package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

//go:embed templates
var templates embed.FS

func (a *app) initCmd() *cobra.Command {
	var runtime, name string
	cmd := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Make a first function",
		Long: `Init writes a small function into DIR (default: the current directory), ready
for "hearth deploy": hearth.yaml, its code, and .hearthignore. It never
overwrites a file.

The function is named after the directory unless --name says otherwise.`,
		Example: `  hearth init hello --runtime python
  hearth init --runtime nodejs --name greeter`,
		Args:              oneAtMost,
		ValidArgsFunction: completeDir,
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			return a.initFunction(dir, runtime, name)
		},
	}
	cmd.Flags().StringVar(&runtime, "runtime", "python", "language: python or nodejs")
	cmd.Flags().StringVar(&name, "name", "", "name of the function (default: the directory's)")
	languages := cobra.FixedCompletions([]string{"python", "nodejs"}, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("runtime", languages); err != nil {
		panic(err) // the flag exists: it was just made
	}
	return cmd
}

func (a *app) initFunction(dir, runtime, name string) error {
	language := strings.TrimRight(runtime, "0123456789.")
	files, err := fs.ReadDir(templates, "templates/"+language)
	if err != nil {
		return hearth.Errorf(hearth.CodeInvalid, "there is no template for the runtime %q", runtime).
			WithHint("choose python or nodejs")
	}
	if name == "" {
		if name, err = nameOf(dir); err != nil {
			return err
		}
	}
	if err := hearth.ValidateName(name); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cannotWrite(err)
	}
	type output struct{ path, text string }
	var outputs []output
	for _, f := range files {
		text, err := templates.ReadFile("templates/" + language + "/" + f.Name())
		if err != nil {
			return err
		}
		target := strings.Replace(f.Name(), "hearthignore", client.IgnoreName, 1)
		if target == client.ManifestName {
			text = []byte(strings.NewReplacer("NAME", name, "runtime: "+language, "runtime: "+runtime).Replace(string(text)))
		}
		path := filepath.Join(dir, target)
		if _, err := os.Lstat(path); err == nil {
			return hearth.Errorf(hearth.CodeConflict, "%s exists already", path).
				WithHint("choose another directory: hearth init NEWDIR")
		}
		outputs = append(outputs, output{path, string(text)})
	}
	for _, o := range outputs {
		if err := writeNew(o.path, o.text); err != nil {
			return cannotWrite(err)
		}
		fmt.Fprintln(a.stdout, o.path)
	}
	fmt.Fprintf(a.stderr, "Next: hearth deploy %s\n", dir)
	return nil
}

// writeNew writes a file that must not exist yet.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// nameOf makes a function's name of a directory's.
func nameOf(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", cannotWrite(err)
	}
	name := strings.Trim(notName.ReplaceAllString(strings.ToLower(filepath.Base(abs)), "-"), "-")
	if hearth.ValidateName(name) != nil {
		return "", hearth.Errorf(hearth.CodeInvalid, "the directory's name %q makes no name for a function", filepath.Base(abs)).
			WithHint("give one with --name")
	}
	return name, nil
}

func cannotWrite(err error) error {
	return (&hearth.Error{Code: hearth.CodeInvalid, Message: err.Error(), Err: err}).
		WithHint("choose a directory you can write to")
}
