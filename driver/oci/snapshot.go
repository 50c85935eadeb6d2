package oci

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// saver is a sandbox that can be saved: one of gVisor. Its descriptors 0 to 2
// are all that the host has given it, and a restored one gets new files for
// them; see init/main.go. Its network, if it has one, is set up anew: the device of
// the new network namespace takes the place of the saved one.
type saver struct{ *sandbox }

var (
	_ driver.Snapshotter = saver{}
	_ driver.Restorer    = (*Driver)(nil)
)

// offer returns s with all that its dialect can do.
func (d *Driver) offer(s *sandbox) driver.Sandbox {
	if d.dialect == GVisor {
		return saver{s}
	}
	return s
}

// imageFile names, in a snapshot's directory, the root file system it was taken
// on: memory that has begun with one must not go on with another.
const imageFile = "image"

// Snapshot implements driver.Snapshotter.
func (s saver) Snapshot(ctx context.Context, dir string) error {
	if s.isDestroying() {
		return errDestroyed(s.id)
	}
	args := append(s.driver.global(s.id, plan{}), "checkpoint", "--image-path="+dir, "--compression=none", s.id)
	if out, err := exec.CommandContext(ctx, s.driver.binary, args...).CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return hearth.Errorf(hearth.CodeUnavailable, "save sandbox %s: %w: %.1000s", s.id, err, strings.TrimSpace(string(out)))
	}
	err := os.WriteFile(filepath.Join(dir, imageFile), []byte(s.image), 0o600)
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "save sandbox %s: %w", s.id, err)
	}
	// gVisor makes its files readable for everybody; only dir is not.
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		return hearth.Errorf(hearth.CodeUnavailable, "save sandbox %s: %w", s.id, err)
	}
	select { // the runtime has ended it
	case <-s.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Restore implements driver.Restorer.
func (d *Driver) Restore(ctx context.Context, spec driver.Spec, dir string) (driver.Sandbox, error) {
	if d.dialect != GVisor {
		return nil, hearth.Errorf(hearth.CodeUnsupported, "only sandboxes of gVisor can be restored").
			WithHint("create one instead")
	}
	_, err := os.Stat(filepath.Join(dir, "checkpoint.img"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "restore sandbox %s: %s holds no snapshot", spec.ID, dir)
	}
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "restore sandbox %s: %w", spec.ID, err)
	}
	image, err := os.ReadFile(filepath.Join(dir, imageFile))
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeUnavailable, "restore sandbox %s: %w", spec.ID, err)
	}
	return d.make(ctx, spec, begin{verb: []string{"restore", "--image-path=" + dir}, running: true, image: string(image)})
}
