package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// exitDifferent is the exit code of apply --dry-run --exit-code if anything would
// change. 2, which other programs use for this, is wrong usage here.
const exitDifferent = 20

// errDifferent makes the exit code exitDifferent, without a message.
var errDifferent = errors.New("there are differences")

func (a *app) applyCmd() *cobra.Command {
	var paths []string
	var dryRun, exitCode, yes bool
	var opts client.ApplyOptions
	cmd := &cobra.Command{
		Use:   "apply -f PATH",
		Short: "Make the server have what is in files",
		Long: `Apply looks for functions in PATH and the directories below it (each directory
with a hearth.yaml is one), compares their code and configuration with the live
versions, shows what differs, and deploys that. Applied again, nothing changes.

With --dry-run it only shows. With --prune it also deletes functions that are not
in the files, but only those that an apply has made or changed: these have the
label hearth/set; and it removes aliases but live that are not in the hearth.yaml
of their function. Without, they stay, and it says so. Who keeps functions of one server in several places gives each
a --set of its own; functions of another set are never touched.

What is wrong with one function does not keep the others from being deployed, but
the exit code tells. Code is compared file by file as "hearth deploy" would pack
it; the text of hearth.yaml does not count, only what it says.`,
		Example: `  hearth apply -f functions --dry-run
  hearth apply -f functions --prune --yes
  hearth apply -f shop -f blog --set web
  hearth apply -f functions --dry-run --exit-code   # 20 if anything differs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(paths) == 0 {
				return &usageError{errors.New("which files?\n\nsay -f PATH, a directory with functions in it")}
			}
			if exitCode && !dryRun {
				return &usageError{errors.New("--exit-code belongs to --dry-run\n\nwithout it, what differs is deployed")}
			}
			found, err := client.FindFunctions(paths...)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			changes, err := c.PlanApply(cmd.Context(), found, opts)
			if err != nil {
				return err
			}
			if !a.json() {
				a.printChanges(changes, opts.Prune)
			}
			if dryRun {
				return a.dryRun(changes, exitCode)
			}
			if what := deletions(changes, opts.Prune); what != "" && !yes {
				if err := a.confirm(cmd.Context(), "Delete "+what+", and make the other changes?"); err != nil {
					return err
				}
			}
			err = c.Apply(cmd.Context(), changes, opts, a.applied)
			if a.json() {
				if err := a.printJSON(changeItems(changes)); err != nil {
					return err
				}
			}
			if err != nil {
				// What is wrong was said with each function.
				return &hearth.Error{Code: hearth.ErrorCode(err), Message: "not everything could be applied"}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&paths, "file", "f", nil, "directory with functions, in itself or below it (repeatable)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would change")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "with --dry-run, exit with 20 if anything would change")
	cmd.Flags().BoolVar(&opts.Prune, "prune", false, "delete functions of the set and aliases that are not in the files")
	cmd.Flags().StringVar(&opts.Set, "set", "default", "name of the set that the functions belong to")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before functions or aliases are deleted")
	if err := cmd.MarkFlagDirname("file"); err != nil {
		panic(err) // the flag exists: it was just made
	}
	return a.talks(a.prints(cmd))
}

// dryRun ends an apply that only shows.
func (a *app) dryRun(changes []client.Change, exitCode bool) error {
	if a.json() {
		if err := a.printJSON(changeItems(changes)); err != nil {
			return err
		}
	}
	for _, ch := range changes {
		if ch.Err != nil {
			return &hearth.Error{Code: hearth.ErrorCode(ch.Err), Message: "not everything could be compared"}
		}
	}
	n := countChanges(changes)
	if exitCode && n[client.ApplyCreate]+n[client.ApplyUpdate]+n[client.ApplyDelete] > 0 {
		return errDifferent
	}
	return nil
}

func countChanges(changes []client.Change) map[client.ApplyAction]int {
	n := map[client.ApplyAction]int{}
	for _, ch := range changes {
		n[ch.Action]++
	}
	return n
}

// deletions says what the changes delete, "" if nothing.
func deletions(changes []client.Change, prune bool) string {
	var what []string
	if n := countChanges(changes)[client.ApplyDelete]; n > 0 {
		what = append(what, count(n, "function")+" with all versions")
	}
	aliases := 0
	for _, ch := range changes {
		aliases += len(ch.Extra)
	}
	switch {
	case !prune || aliases == 0:
	case aliases == 1:
		what = append(what, "1 alias")
	default:
		what = append(what, strconv.Itoa(aliases)+" aliases")
	}
	return strings.Join(what, " and ")
}

// printChanges shows what would change.
func (a *app) printChanges(changes []client.Change, prune bool) {
	out := a.stdout
	for _, ch := range changes {
		sign, style, text := "=", dim, "unchanged"
		switch ch.Action {
		case client.ApplyCreate:
			sign, style = "+", green
			text = fmt.Sprintf("create: %s on %s, %s", ch.Plan.Config.Runtime, ch.Plan.Config.Isolation, count(ch.Files, "file"))
		case client.ApplyUpdate:
			sign, style, text = "~", yellow, "update"
		case client.ApplyDelete:
			sign, style, text = "-", red, "delete"
		case client.ApplyKeep:
			text = "kept: it is not in the files, but no apply has made or changed it"
		case client.ApplyFail:
			name := ch.Function
			if name == "" {
				name = ch.Dir
			}
			fmt.Fprintln(out, a.colour(out, red, "! "+printable(name)), "cannot be applied")
			a.printFailed(ch)
			continue
		}
		fmt.Fprintln(out, a.colour(out, style, sign+" "+printable(ch.Function)), text)
		for _, s := range ch.Plan.Settings {
			fmt.Fprintf(out, "    %s: %s → %s\n", printable(s.Setting), setting(s.From), setting(s.To))
		}
		for _, f := range ch.Plan.Files {
			sign := map[string]string{"added": "+", "removed": "-"}[f.Change]
			if sign == "" {
				sign = "~"
			}
			fmt.Fprintln(out, "    "+sign, printable(f.Path))
		}
		for _, name := range ch.Extra {
			if !prune {
				fmt.Fprintf(out, "    alias %s is not in %s and stays; to remove it: hearth alias delete %s %s, or --prune\n",
					printable(name), client.ManifestName, printable(ch.Function), printable(name))
			}
		}
		if ch.Action == client.ApplyCreate || ch.Action == client.ApplyUpdate {
			for _, w := range ch.Plan.Warnings {
				a.printWarning(ch.Function + ": " + w)
			}
		}
	}
	n := countChanges(changes)
	fmt.Fprintf(out, "%d to create, %d to update, %d to delete, %d unchanged\n",
		n[client.ApplyCreate], n[client.ApplyUpdate], n[client.ApplyDelete], n[client.ApplyUnchanged])
}

// setting writes a value on one line.
func setting(s string) string {
	if s == "" {
		return "(none)"
	}
	return oneLine(s)
}

// applied tells of a change that was made, or was not.
func (a *app) applied(ch client.Change) {
	if a.json() {
		return
	}
	switch {
	case ch.Err != nil:
		a.printFailed(ch)
	case ch.Action == client.ApplyDelete:
		fmt.Fprintln(a.stderr, a.colour(a.stderr, dim, "•"), "deleted", printable(ch.Function)+canceled(ch.Deleted))
		a.printWarnings(ch.Deleted.Warnings)
	default:
		for _, w := range ch.Live.Warnings {
			if !slices.Contains(ch.Plan.Warnings, w) { // which were printed with the plan
				a.printWarning(ch.Function + ": " + w)
			}
		}
		fmt.Fprintf(a.stderr, "%s version %d of %s is live → %s\n", a.colour(a.stderr, dim, "•"), ch.Live.Live, printable(ch.Function), printable(ch.Live.URL))
	}
}

// printFailed says what is wrong with one function.
func (a *app) printFailed(ch client.Change) {
	h := hearth.AsError(ch.Err)
	name := ch.Function
	if name == "" {
		name = ch.Dir
	}
	text := ch.Err.Error()
	if f := h.Function; f != nil {
		text = f.Type + ": " + f.Message + "\n" + strings.Join(f.Stack, "\n")
	}
	// It may begin with the path of the file, or name the function.
	if !strings.HasPrefix(text, name) && !strings.HasPrefix(text, "the function "+name) {
		text = name + ": " + text
	}
	a.printError(strings.TrimRight(text, "\n"), h.Hint)
}

// changeItem is one change in JSON.
type changeItem struct {
	Function string                 `json:"function,omitempty"`
	Dir      string                 `json:"dir,omitempty"`
	Action   client.ApplyAction     `json:"action"`
	Settings []hearth.SettingChange `json:"settings,omitempty"`
	Files    []hearth.FileChange    `json:"files,omitempty"`
	// Aliases are those that are not in hearth.yaml.
	Aliases  []string    `json:"extra_aliases,omitempty"`
	Warnings []string    `json:"warnings,omitempty"`
	Version  int         `json:"version,omitempty"`
	URL      string      `json:"url,omitempty"`
	Code     hearth.Code `json:"code,omitempty"`
	Error    string      `json:"error,omitempty"`
	Hint     string      `json:"hint,omitempty"`
}

func changeItems(changes []client.Change) []changeItem {
	items := []changeItem{}
	for _, ch := range changes {
		i := changeItem{
			Function: ch.Function, Dir: ch.Dir, Action: ch.Action, Settings: ch.Plan.Settings, Files: ch.Plan.Files,
			Aliases: ch.Extra, Warnings: ch.Plan.Warnings, Version: ch.Live.Live, URL: ch.Live.URL,
		}
		if ch.Err != nil {
			h := hearth.AsError(ch.Err)
			i.Code, i.Error, i.Hint = h.Code, ch.Err.Error(), h.Hint
		}
		items = append(items, i)
	}
	return items
}
