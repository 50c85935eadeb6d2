package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hearthrun/hearth"
)

// parallel is how many functions are compared or deployed at the same time: a
// server has few cores, and a deploy starts an interpreter.
const parallel = 4

// Found is a directory with a function.
type Found struct {
	Dir      string
	Manifest Manifest
	// Err says why the manifest cannot be used.
	Err error
}

// FindFunctions looks for functions at the paths: in each that has no hearth.yaml,
// it goes on in the directories below. What is below a function belongs to it.
// Hidden directories, node_modules, and symbolic links are not looked into. Errors:
// CodeNotFound if a path has no function, CodeInvalid if it cannot be read or two
// have the same name. What is wrong with a manifest is in Found.
func FindFunctions(paths ...string) ([]Found, error) {
	var all []Found
	seen := map[string]bool{}
	for _, p := range paths {
		if filepath.Base(p) == ManifestName {
			p = filepath.Dir(p)
		}
		dirs, err := functionDirs(p)
		if err != nil {
			return nil, err
		}
		for _, d := range dirs {
			abs, err := filepath.Abs(d)
			if err != nil {
				return nil, unreadable(err)
			}
			if seen[abs] {
				continue
			}
			seen[abs] = true
			m, err := LoadManifest(d)
			all = append(all, Found{Dir: d, Manifest: m, Err: err})
		}
	}
	byName := map[string]string{}
	for _, f := range all {
		if f.Err != nil {
			continue
		}
		if first, ok := byName[f.Manifest.Name]; ok {
			return nil, hearth.Errorf(hearth.CodeInvalid, "%s and %s are both the function %s", first, f.Dir, f.Manifest.Name).
				WithHint("give one of them another name in its %s", ManifestName)
		}
		byName[f.Manifest.Name] = f.Dir
	}
	return all, nil
}

// functionDirs lists the directories at or below top that have a manifest.
func functionDirs(top string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return unreadable(err)
		}
		if !d.IsDir() {
			return nil
		}
		name := d.Name()
		if p != top && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "__pycache__") {
			return fs.SkipDir
		}
		if _, err := os.Lstat(filepath.Join(p, ManifestName)); err == nil {
			dirs = append(dirs, p)
			return fs.SkipDir
		} else if !errors.Is(err, fs.ErrNotExist) {
			return unreadable(err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(dirs) == 0 {
		return nil, hearth.Errorf(hearth.CodeNotFound, "there is no %s in or below %s", ManifestName, top).
			WithHint("hearth init makes a first function, hearth export writes those of a server")
	}
	return dirs, nil
}

// ApplyAction is what Apply does with a function.
type ApplyAction string

// The actions of a Change.
const (
	ApplyCreate    ApplyAction = "create"
	ApplyUpdate    ApplyAction = "update"
	ApplyUnchanged ApplyAction = "unchanged"
	ApplyDelete    ApplyAction = "delete"
	// ApplyKeep is what happens to functions that are not in the files, but which
	// no apply of the set has made or changed.
	ApplyKeep ApplyAction = "keep"
	// ApplyFail: it cannot be told; Err says why.
	ApplyFail ApplyAction = "fail"
)

// Change is what applying files does with one function.
type Change struct {
	// Function is its name, empty if its manifest cannot be read.
	Function string
	// Dir is where its files are, empty for one that is not in the files.
	Dir    string
	Action ApplyAction
	// Files is how many files its source has.
	Files int
	// Plan has the details of ApplyCreate and ApplyUpdate.
	Plan hearth.Plan
	// Extra are aliases of the function that are not in its hearth.yaml. They stay,
	// or are removed with ApplyOptions.Prune.
	Extra []string
	// Err says why the function cannot be compared or, after Apply, was not
	// changed.
	Err error
	// Live is the function after Apply has created or updated it.
	Live Function
	// Deleted is what its deletion ended or left behind.
	Deleted hearth.Deleted
}

// ApplyOptions changes PlanApply and Apply.
type ApplyOptions struct {
	// Set is the name of the set that the functions belong to; required. Those that
	// Apply makes or changes are marked with it, and those of other sets are left
	// alone.
	Set string
	// Prune deletes functions of the set that are not in the files, and aliases that
	// are not in the hearth.yaml of their function.
	Prune bool
}

// PlanApply compares functions in files with those of the server. Nothing is
// changed. What is wrong with one function is in its Change. Errors: CodeInvalid,
// CodeUnavailable.
func (c *Client) PlanApply(ctx context.Context, found []Found, opts ApplyOptions) ([]Change, error) {
	if hearth.ValidateName(opts.Set) != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the name of a set %q is not valid", clip(opts.Set)).
			WithHint("use lower-case letters, digits and hyphens")
	}
	existing, err := c.AllFunctions(ctx)
	if err != nil {
		return nil, err
	}
	have := map[string]Function{}
	for _, f := range existing {
		have[f.Name] = f
	}
	changes := make([]Change, len(found))
	each(len(found), func(i int) { changes[i] = c.planOne(ctx, found[i], have, opts) })
	if err := ctx.Err(); err != nil {
		return nil, c.transportError(err)
	}
	if opts.Prune {
		changes = append(changes, prune(existing, found, opts.Set)...)
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Dir, b.Dir))
	})
	return changes, nil
}

func (c *Client) planOne(ctx context.Context, f Found, have map[string]Function, opts ApplyOptions) Change {
	set := opts.Set
	ch := Change{Function: f.Manifest.Name, Dir: f.Dir, Action: ApplyFail, Err: f.Err}
	if f.Err != nil {
		return ch
	}
	owner := have[ch.Function].Config.Labels[hearth.SetLabel]
	if owner != "" && owner != set {
		ch.Err = hearth.Errorf(hearth.CodeConflict, "the function %s belongs to the set %s", ch.Function, owner).
			WithHint("apply it with --set %s, or give it another name here", owner)
		return ch
	}
	files, err := SourceFiles(f.Dir, PackOptions{})
	if err != nil {
		ch.Err = err
		return ch
	}
	ch.Files = len(files)
	if ch.Plan, ch.Err = c.plan(ctx, f.Manifest, files); ch.Err != nil {
		return ch
	}
	ch.Action = ApplyAction(ch.Plan.Action)
	if old, ok := have[ch.Function]; ok {
		aliases, err := c.planAliases(ctx, f.Manifest, old.Live, ch.Action == ApplyUpdate)
		if err != nil {
			ch.Action, ch.Err = ApplyFail, err
			return ch
		}
		if ch.Plan.Settings = append(ch.Plan.Settings, aliases...); len(aliases) > 0 {
			ch.Action = ApplyUpdate
		}
		extra, err := c.extraAliases(ctx, f.Manifest)
		if err != nil {
			ch.Action, ch.Err = ApplyFail, err
			return ch
		}
		for _, x := range extra {
			ch.Extra = append(ch.Extra, x.Name)
			if opts.Prune {
				ch.Action = ApplyUpdate
				ch.Plan.Settings = append(ch.Plan.Settings, hearth.SettingChange{Setting: "aliases." + x.Name, From: x.Versions.String()})
			}
		}
	}
	if ch.Action == ApplyUpdate && owner == "" {
		ch.Plan.Settings = append(ch.Plan.Settings, hearth.SettingChange{Setting: "labels." + hearth.SetLabel, To: set})
	}
	return ch
}

// prune tells what becomes of functions that are not in the files.
func prune(existing []Function, found []Found, set string) []Change {
	named := map[string]bool{}
	var unreadable error
	for _, f := range found {
		if f.Err != nil {
			unreadable = f.Err
		}
		named[f.Manifest.Name] = true
	}
	var changes []Change
	for _, f := range existing {
		if named[f.Name] {
			continue
		}
		ch := Change{Function: f.Name, Action: ApplyDelete, Plan: hearth.Plan{Function: f.Name, Generation: f.Generation, Config: f.Config}}
		switch owner := f.Config.Labels[hearth.SetLabel]; {
		case owner == "":
			ch.Action = ApplyKeep
		case owner != set:
			continue
		case unreadable != nil:
			// It may be the one whose manifest cannot be read.
			ch.Action = ApplyFail
			ch.Err = hearth.Errorf(hearth.CodeInvalid, "the function %s is not deleted, as not all files can be read", f.Name).
				WithHint("correct the others first")
		}
		changes = append(changes, ch)
	}
	return changes
}

// Apply makes the changes of PlanApply, some at the same time. done is called, one
// call after the other, with each change that was made or failed; its Err is in
// changes too. One that conflicts with another, as when a route moves between two
// functions, is tried again after the others. Errors: of the first change that
// failed, also those that PlanApply found; the others are made all the same.
func (c *Client) Apply(ctx context.Context, changes []Change, opts ApplyOptions, done func(Change)) error {
	var mu sync.Mutex
	run := func(pending []int) (again []int) {
		each(len(pending), func(i int) {
			ch := &changes[pending[i]]
			ch.Err = c.applyOne(ctx, ch, opts)
			mu.Lock()
			defer mu.Unlock()
			if hearth.ErrorCode(ch.Err) == hearth.CodeConflict {
				again = append(again, pending[i])
				return
			}
			done(*ch)
		})
		return again
	}
	var deploys, deletes []int
	for i, ch := range changes {
		switch ch.Action {
		case ApplyCreate, ApplyUpdate:
			deploys = append(deploys, i)
		case ApplyDelete:
			deletes = append(deletes, i)
		}
	}
	again := run(deploys)
	failed := run(deletes)
	for len(again) > 0 && ctx.Err() == nil {
		next := run(again)
		if len(next) == len(again) {
			break
		}
		again = next
	}
	slices.Sort(again)
	for _, i := range append(again, failed...) {
		if changes[i].Err != nil {
			done(changes[i])
		}
	}
	for _, ch := range changes {
		if ch.Err != nil {
			return ch.Err
		}
	}
	return nil
}

func (c *Client) applyOne(ctx context.Context, ch *Change, opts ApplyOptions) (err error) {
	if ch.Action == ApplyDelete {
		ch.Deleted, err = c.Delete(ctx, ch.Function, ch.Plan.Generation)
		return err
	}
	ch.Live, err = c.Deploy(ctx, ch.Dir, DeployOptions{
		New: ch.Action == ApplyCreate, Generation: ch.Plan.Generation,
		Override: func(m *Manifest) {
			m.Labels = maps.Clone(m.Labels)
			if m.Labels == nil {
				m.Labels = map[string]string{}
			}
			m.Labels[hearth.SetLabel] = opts.Set
		},
	})
	if err != nil || !opts.Prune {
		return err
	}
	for _, name := range ch.Extra {
		if err := c.DeleteAlias(ctx, ch.Function, name); err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound {
			return fmt.Errorf("version %d is live, but the alias %s was not removed: %w", ch.Live.Live, name, err)
		}
	}
	return nil
}

// each calls fn with the numbers below n, some at the same time, and returns when
// all calls have returned.
func each(n int, fn func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			fn(i)
		})
	}
	wg.Wait()
}
