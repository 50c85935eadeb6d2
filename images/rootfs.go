package images

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// RootFS is the unpacked root file system of an image.
type RootFS struct {
	// Dir is the directory. It is shared by everything that uses the image and
	// must not be changed: mount it read-only. Its content comes from
	// somewhere else, so links in it lead to anywhere on the host: never open
	// something in it by its path without os.Root or RESOLVE_IN_ROOT. The
	// places that are mounted on (/proc, /sys, /dev, /tmp, /run, /var/tmp,
	// /function, /hearth/guest; /etc/resolv.conf, /etc/hosts, /etc/hostname)
	// and the directories above them are no links.
	Dir string

	lock *lock
}

// Release lets Prune remove the directory. It may be called more than once.
func (r RootFS) Release() {
	if r.lock != nil {
		r.lock.release()
	}
}

// RootFS returns the image's root file system, which the first call unpacks:
// others wait for it, also those of other processes. The caller releases it.
// Errors: CodeNotFound for an image that was pruned, CodeUnavailable for one
// that is damaged and for failures of the host, such as a full disk.
func (s *Store) RootFS(ctx context.Context, img Image) (RootFS, error) {
	dir := filepath.Join(s.dir, "rootfs", img.id())
	for {
		if err := s.recorded(img); err != nil {
			return RootFS{}, err
		}
		l, err := s.lock(ctx, img.id(), false)
		if err != nil {
			return RootFS{}, err
		}
		if err := s.recorded(img); err != nil { // pruned while we waited
			l.release()
			return RootFS{}, err
		}
		if _, err := os.Stat(dir); err == nil {
			return RootFS{Dir: dir, lock: l}, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			l.release()
			return RootFS{}, hostError("the image cannot be read", err)
		}
		l.release()
		if l, err = s.lock(ctx, img.id(), true); err != nil {
			return RootFS{}, err
		}
		if _, err = os.Stat(dir); err != nil {
			err = s.unpack(ctx, img, dir)
		}
		l.release()
		if err != nil {
			return RootFS{}, err
		}
	}
}

// unpack makes dir; the image's lock is held exclusively.
func (s *Store) unpack(ctx context.Context, img Image, dir string) (err error) {
	image, err := s.image(img.Digest)
	if err != nil {
		return err
	}
	m, err := image.Manifest()
	if err != nil {
		return err
	}
	cfg, err := image.ConfigFile()
	if err != nil {
		return err
	}
	if len(m.Layers) != len(cfg.RootFS.DiffIDs) {
		return damagedBlob(m.Config.Digest, errors.New("it disagrees with the manifest on the number of layers"))
	}
	tmp := filepath.Join(s.dir, "tmp", "rootfs-"+img.id())
	u, err := newUnpacker(tmp, s.limits)
	if err != nil {
		return err
	}
	defer func() {
		_ = u.root.Close()
		if err != nil {
			_ = os.RemoveAll(tmp)
		}
	}()
	for i, d := range m.Layers {
		r, err := s.openLayer(d)
		if err != nil {
			return err
		}
		if err := u.verified(ctx, r, cfg.RootFS.DiffIDs[i]); err != nil {
			return err
		}
	}
	if err := u.finish(); err != nil {
		return err
	}
	return publishDir(u.root, tmp, dir)
}

// newUnpacker starts with an empty dir, whatever a killed process left there.
func newUnpacker(dir string, l limits) (*unpacker, error) {
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
		return nil, hostError("the image cannot be unpacked", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, hostError("the image cannot be unpacked", err)
	}
	return &unpacker{root: root, limits: l}, nil
}

// verified applies a layer whose uncompressed content has the given digest, and
// closes r.
func (u *unpacker) verified(ctx context.Context, r io.ReadCloser, diff v1.Hash) error {
	v := newVerifier(r, diff)
	defer v.Close()
	if err := u.layer(ctx, v); err != nil {
		return err
	}
	// What follows the end of the archive belongs to the digest too.
	n, err := io.Copy(io.Discard, &source{ctx: ctx, r: io.LimitReader(v, u.limits.bytes+1)})
	if err != nil {
		return damaged(err)
	}
	if u.limits.bytes -= n; u.limits.bytes < 0 {
		return tooLarge()
	}
	return nil
}

// publishDir gives a finished directory its name. It is on the disk before.
func publishDir(root *os.Root, tmp, dir string) error {
	d, err := root.Open(".")
	if err != nil {
		return hostError("the image cannot be unpacked", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return hostError("the image cannot be unpacked", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return hostError("the image cannot be unpacked", err)
	}
	return nil
}

// Archive writes the image as docker load reads it, with the name img.Ref.
// Errors: those of RootFS, and those of w.
func (s *Store) Archive(ctx context.Context, img Image, w io.Writer) error {
	if err := s.recorded(img); err != nil {
		return err
	}
	l, err := s.lock(ctx, img.id(), false) // Prune leaves its layers
	if err != nil {
		return err
	}
	defer l.release()
	if err := s.recorded(img); err != nil {
		return err
	}
	image, err := s.image(img.Digest)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(img.Ref)
	if err != nil {
		return err
	}
	return tarball.Write(tag, image, &sink{ctx, w})
}

// sink ends with ctx.
type sink struct {
	ctx context.Context
	w   io.Writer
}

func (s *sink) Write(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.w.Write(b)
}
