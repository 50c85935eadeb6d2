package native

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/driver/slots"
	"github.com/hearthrun/hearth/guest"
)

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	spec.Limits = spec.Limits.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	views, argv, bin, err := d.runtime(ctx, spec)
	if err != nil {
		return nil, err
	}
	return d.create(ctx, spec, views, argv, bin)
}

// create makes a sandbox with the given views of the host and command.
func (d *Driver) create(ctx context.Context, spec driver.Spec, views []view, argv []string, bin string) (driver.Sandbox, error) {
	s := &sandbox{
		driver: d, id: spec.ID, allow: spec.Allow, argv0: argv[0], limits: spec.Limits, group: cgroup.None{}.Open(""),
		stdout: spec.Stdout, stderr: spec.Stderr, slots: slots.New(d.slotPath(spec.ID), spec.Slots),
		zygote: d.forks.warm(ctx, spec), assembled: make(chan struct{}, 1),
		started: make(chan error, 2), done: make(chan struct{}), output: output{ended: make(chan struct{})},
	}
	if err := d.reserve(s); err != nil {
		return nil, err
	}
	defer func() {
		d.mu.Lock()
		s.creating = false
		d.mu.Unlock()
	}()
	spec.Mounts = append(slices.Clone(spec.Mounts), s.slots.Mounts()...)
	compose := func() *plan {
		return d.compose(spec, views, argv, driver.GuestEnvironment(nil, spec.Env, bin), "/tmp")
	}
	if err := d.bring(ctx, s, spec.Limits, compose); err != nil {
		if derr := s.Destroy(ctx); derr != nil {
			d.log.Error("native: a sandbox that failed to start remains", "sandbox", s.id, "err", derr)
		}
		return nil, err
	}
	return s, nil
}

// bring starts the reserved sandbox. After an error the caller destroys it.
func (d *Driver) bring(ctx context.Context, s *sandbox, limits driver.Limits, compose func() *plan) error {
	g, err := d.cgroups.Create(s.id, limits)
	if errors.Is(err, fs.ErrExist) {
		return errLeft(s.id)
	}
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "make the control group of sandbox %s: %w", s.id, err)
	}
	s.group = g
	if err := s.slots.Make(); err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "make the slots of sandbox %s: %w", s.id, err)
	}
	if err := d.spawn(s); err != nil {
		s.closeInside()
		return hearth.AsError(err)
	}
	if s.zygote != nil {
		return s.startForked(ctx, compose())
	}
	return s.start(ctx, compose())
}

// runtime returns what the spec's runtime needs: views of the host, command,
// and the directory of its programs.
func (d *Driver) runtime(ctx context.Context, spec driver.Spec) (views []view, argv []string, bin string, err error) {
	if spec.Runtime == driver.Provided {
		return d.system, spec.Command, "", nil
	}
	it, ok := d.interpreterFor(ctx, spec.Runtime)
	if !ok {
		return nil, nil, "", hearth.Errorf(hearth.CodeNotFound, "this host has no runtime %q", spec.Runtime).
			WithHint("hearth doctor lists those it has; install another with your package manager and restart hearth")
	}
	argv = spec.Command
	if len(argv) == 0 {
		argv = guest.CommandFor(spec.Build, it.Language, it.Exe, driver.GuestDir)
	}
	views = append(it.views(d.system), view{source: d.shims, target: driver.GuestDir})
	for _, v := range it.Views {
		for _, target := range spec.Targets() {
			if driver.Overlap(target, v) {
				return nil, nil, "", hearth.Errorf(hearth.CodeInvalid, "mount target %s overlaps the runtime's %s", target, v).
					WithHint("choose another place, for example below /mnt")
			}
		}
	}
	return views, argv, filepath.Dir(it.Exe), nil
}
