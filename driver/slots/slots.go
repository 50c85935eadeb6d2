// Package slots fills directories of running sandboxes with files of the host.
//
// A slot is a read-only mount of a directory that belongs to one sandbox. It is
// empty when the sandbox starts, and filled with hard links: they show through the mount
// whatever the isolation technology is, need no privilege in the sandbox, and
// share the page cache with every other sandbox that has the same files. See
// docs/adr/0009-late-mounts-by-hard-links.md.
package slots

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

// Slots are those of one sandbox.
type Slots struct {
	dir     string // on the host
	targets []string

	mu      sync.Mutex // held while filling, so that Remove is last
	filled  []string   // guarded by mu
	removed bool       // guarded by mu
}

// New names the slots of a sandbox: targets inside, dir the directory on the
// host for all of them, which no other sandbox has, on the file system of what they
// will be filled with. What is below dir can be read by everybody who can pass
// its parents. A sandbox of an earlier process has no targets.
func New(dir string, targets []string) *Slots { return &Slots{dir: dir, targets: targets} }

// Make makes the empty directories. An error is fs.ErrExist if there is
// something already, which it leaves.
func (s *Slots) Make() error {
	if len(s.targets) == 0 {
		return nil
	}
	if err := makeDir(s.dir); err != nil {
		return err
	}
	for _, m := range s.Mounts() {
		if err := makeDir(m.Source); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes a directory that sandboxes can read, whatever the umask.
func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) //nolint:gosec // parents are closed
}

// Mounts are what the sandbox is to be started with, besides its own mounts.
func (s *Slots) Mounts() []driver.Mount {
	mounts := make([]driver.Mount, len(s.targets))
	for i, t := range s.targets {
		mounts[i] = driver.Mount{Source: filepath.Join(s.dir, strconv.Itoa(i)), Target: t}
	}
	return mounts
}

// Fill does what driver.Mounter says of Mount, but for CodeNotFound, which it
// returns after Remove.
func (s *Slots) Fill(ctx context.Context, m driver.Mount) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.targets, m.Target)
	switch {
	case s.removed:
		return hearth.Errorf(hearth.CodeNotFound, "the sandbox of slot %s was destroyed", m.Target)
	case i < 0:
		return hearth.Errorf(hearth.CodeInvalid, "%q is not a slot of the sandbox", m.Target).
			WithHint("name it in the slots that the sandbox is created with")
	case slices.Contains(s.filled, m.Target):
		return hearth.Errorf(hearth.CodeConflict, "slot %s was filled before", m.Target)
	case !filepath.IsAbs(m.Source):
		return hearth.Errorf(hearth.CodeInvalid, "mount source %q is not an absolute path", m.Source).
			WithHint("write the directory's path from the root")
	}
	if info, err := os.Stat(m.Source); err != nil || !info.IsDir() {
		return hearth.Errorf(hearth.CodeInvalid, "mount source %s is not a directory that hearth can see", m.Source).
			WithHint("make the directory first")
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	s.filled = append(s.filled, m.Target)
	return explain(linkTree(ctx, m.Source, s.Mounts()[i].Source), m)
}

// Remove frees everything once the sandbox has ended. It can be called again.
func (s *Slots) Remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = true
	return os.RemoveAll(s.dir)
}

// linkTree makes in the empty directory target what source has: its directories
// with their modes, its symbolic links as they are, and hard links to its
// regular files. Nothing outside of source is ever linked.
func linkTree(ctx context.Context, source, target string) error {
	from, err := os.OpenRoot(source)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenRoot(target)
	if err != nil {
		return err
	}
	defer to.Close()
	for dirs := []string{"."}; len(dirs) > 0; {
		last := len(dirs) - 1
		below, err := linkDir(ctx, from, to, dirs[last])
		if err != nil {
			return err
		}
		dirs = append(dirs[:last], below...)
	}
	return nil
}

// linkDir makes the entries of one directory, and returns those which are
// directories, still empty.
func linkDir(ctx context.Context, from, to *os.Root, dir string) (below []string, err error) {
	src, err := from.Open(dir)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dst, err := to.Open(dir)
	if err != nil {
		return nil, err
	}
	defer dst.Close()
	info, err := src.Stat()
	if err != nil {
		return nil, err
	}
	// Writable for this user, or what is in it could not be removed.
	if err := dst.Chmod(info.Mode().Perm() | 0o700); err != nil {
		return nil, err
	}
	entries, err := src.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		name := path.Join(dir, e.Name())
		switch e.Type() {
		case 0: // a regular file; the link is to what has the name, also if it is no file any more
			err = unix.Linkat(int(src.Fd()), e.Name(), int(dst.Fd()), e.Name(), 0)
			if err != nil {
				err = &os.LinkError{Op: "link", Old: name, New: name, Err: err}
			}
		case fs.ModeDir:
			err = to.Mkdir(name, 0o700)
			below = append(below, name)
		case fs.ModeSymlink:
			var link string
			if link, err = from.Readlink(name); err == nil {
				err = to.Symlink(link, name)
			}
		default:
			err = hearth.Errorf(hearth.CodeInvalid, "%s is neither a regular file, a directory nor a symbolic link", name).
				WithHint("remove it")
		}
		if err != nil {
			return nil, err
		}
	}
	return below, nil
}

// explain says what an error of linkTree means to the caller.
func explain(err error, m driver.Mount) error {
	var known *hearth.Error
	switch {
	case err == nil, errors.As(err, &known), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	code, hint := hearth.CodeUnavailable, ""
	for _, c := range []struct {
		errno  syscall.Errno
		remedy string
	}{
		{unix.EXDEV, "keep the whole data directory on one file system"},
		{unix.EMLINK, "the file system allows no more links to a file; ext4 allows 65,000, XFS more"},
		{unix.EPERM, "the file system must have hard links, and the files belong to the user that runs hearth, not immutable"},
		{unix.EOPNOTSUPP, "the file system must have hard links"},
		{unix.ENOSYS, "the file system must have hard links"},
	} {
		if errors.Is(err, c.errno) {
			code, hint = hearth.CodeUnsupported, c.remedy
		}
	}
	return hearth.Errorf(code, "fill slot %s from %s: %w", m.Target, m.Source, err).WithHint("%s", hint)
}
