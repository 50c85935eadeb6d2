package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/hearthrun/hearth"
)

// Names with a meaning in layers.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	auxFiles = ".wh..wh." // besides opaque: of a union file system that made the layer
)

// unpacker applies layers to a directory. Layers are hostile: nothing they
// name leads outside of the directory, device nodes, pipes, set-user-ID bits
// and extended attributes are left out, and everything belongs to the user who
// unpacks, who alone can write it and whom everybody can read.
type unpacker struct {
	root   *os.Root
	limits limits // what is left of them
}

// layer applies one layer, an uncompressed tar. Errors: CodeInvalid for one
// that is damaged or hostile, CodeUnavailable for failures of the host.
func (u *unpacker) layer(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	own := map[string]bool{} // what this layer has made
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return damaged(err)
		}
		if u.limits.entries--; u.limits.entries < 0 {
			return tooLarge()
		}
		if err := u.entry(ctx, h, tr, own); err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header, r io.Reader, own map[string]bool) error {
	p, err := u.place(h.Name)
	if err != nil {
		return entryError(h.Name, err)
	}
	if p == "." {
		return nil
	}
	dir, name := path.Split(p)
	switch {
	case name == opaque:
		return entryError(h.Name, u.empty(path.Clean(dir), own))
	case strings.HasPrefix(name, auxFiles):
		return nil
	case strings.HasPrefix(name, whiteout):
		name = name[len(whiteout):]
		if name == "" || name == "." || name == ".." {
			return hostile(h.Name)
		}
		if p = path.Join(dir, name); own[p] {
			return nil // it is about lower layers only
		}
		return entryError(h.Name, u.root.RemoveAll(p))
	}

	switch h.Typeflag {
	case tar.TypeDir, tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
	default:
		return nil // devices, pipes and what else may come
	}
	var source string
	if h.Typeflag == tar.TypeLink {
		if source, err = u.linkSource(h.Linkname); err != nil {
			return entryError(h.Name, err)
		}
		if source == p {
			return nil
		}
	}
	info, err := u.root.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return entryError(h.Name, err)
	case info.IsDir() && h.Typeflag == tar.TypeDir:
		own[p] = true
		return nil
	default:
		if err := u.root.RemoveAll(p); err != nil {
			return entryError(h.Name, err)
		}
	}
	own[p] = true
	switch h.Typeflag {
	case tar.TypeDir:
		err = errors.Join(u.root.Mkdir(p, 0o755), u.root.Chmod(p, 0o755)) // whatever the umask
	case tar.TypeSymlink:
		err = u.root.Symlink(h.Linkname, p)
	case tar.TypeLink:
		err = u.root.Link(source, p)
	default:
		return u.file(ctx, p, h, r)
	}
	return entryError(h.Name, err)
}

// place returns where an entry goes, and makes the directories above it.
func (u *unpacker) place(name string) (string, error) {
	for e := range strings.SplitSeq(name, "/") {
		if e == ".." {
			return "", errEscape
		}
	}
	p, err := resolve(u.root, path.Clean(name), false)
	if err != nil || p == "." {
		return p, err
	}
	// The umask of the process may be a strict one.
	for i, c := range p {
		if c != '/' {
			continue
		}
		err := u.root.Mkdir(p[:i], 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return "", err
		}
		if err := u.root.Chmod(p[:i], 0o755); err != nil {
			return "", err
		}
	}
	return p, nil
}

var errEscape = errors.New("it leads outside")

// linkSource returns the file a hard link is made of.
func (u *unpacker) linkSource(name string) (string, error) {
	for e := range strings.SplitSeq(name, "/") {
		if e == ".." {
			return "", errEscape
		}
	}
	p, err := resolve(u.root, path.Clean(name), false)
	if err != nil {
		return "", err
	}
	info, err := u.root.Lstat(p)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0 {
		return "", errors.New("a hard link to what is no file")
	}
	return p, nil
}

// file writes a regular file. Its time stays: compiled Python is valid for one
// time of its source.
func (u *unpacker) file(ctx context.Context, p string, h *tar.Header, r io.Reader) error {
	if u.limits.bytes -= h.Size; h.Size < 0 || u.limits.bytes < 0 {
		return tooLarge()
	}
	f, err := u.root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return entryError(h.Name, err)
	}
	mode := fs.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755
	}
	src := &source{ctx: ctx, r: r}
	_, err = io.Copy(f, src)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	switch {
	case src.err != nil && !errors.Is(src.err, context.Canceled) && !errors.Is(src.err, context.DeadlineExceeded):
		return damaged(src.err)
	case err != nil:
		return entryError(h.Name, err)
	}
	if t := h.ModTime.Unix(); t < 0 || t > 1<<32 {
		h.ModTime = time.Unix(0, 0)
	}
	return entryError(h.Name, u.root.Chtimes(p, h.ModTime, h.ModTime))
}

// source tells errors of reading from those of writing, and ends with ctx.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// empty removes what lower layers have put into dir.
func (u *unpacker) empty(dir string, own map[string]bool) error {
	info, err := u.root.Lstat(dir)
	if err != nil || !info.IsDir() {
		return err
	}
	d, err := u.root.Open(dir)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	_ = d.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		p := path.Join(dir, name)
		if !own[p] {
			if err := u.root.RemoveAll(p); err != nil {
				return err
			}
		} else if err := u.empty(p, own); err != nil {
			return err
		}
	}
	return nil
}

// mountPoints are what every root file system has for drivers to mount on:
// real directories and files, no links.
func mountPoints() (dirs, files []string) {
	return []string{"proc", "sys", "dev", "tmp", "run", "var", "var/tmp", "etc", "function", "hearth", "hearth/guest"},
		[]string{"etc/resolv.conf", "etc/hosts", "etc/hostname"}
}

// finish makes the places to mount on.
func (u *unpacker) finish() error {
	dirs, files := mountPoints()
	for _, p := range dirs {
		info, err := u.root.Lstat(p)
		if err == nil && info.IsDir() {
			continue
		}
		if err == nil {
			err = u.root.RemoveAll(p)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return entryError(p, err)
		}
		if err := errors.Join(u.root.Mkdir(p, 0o755), u.root.Chmod(p, 0o755)); err != nil {
			return entryError(p, err)
		}
	}
	for _, p := range files {
		info, err := u.root.Lstat(p)
		if err == nil && info.Mode().IsRegular() {
			continue
		}
		if err == nil {
			err = u.root.RemoveAll(p)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return entryError(p, err)
		}
		if err := errors.Join(u.root.WriteFile(p, nil, 0o644), u.root.Chmod(p, 0o644)); err != nil {
			return entryError(p, err)
		}
	}
	return nil
}

// entryError tells what failed with an entry: the host, or what the entry asks.
func entryError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errEscape), errors.Is(err, errLinks):
		return hostile(name)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL),
		errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EMLINK), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist),
		hostCause(err) == nil: // a hard link to a directory; what os.Root refuses
		return hearth.Errorf(hearth.CodeInvalid, "a layer of the image has an entry that cannot be unpacked: %q: %w", name, err)
	}
	return hostError("the image cannot be unpacked", err)
}

func hostile(name string) error {
	return hearth.Errorf(hearth.CodeInvalid, "a layer of the image has an entry that leads outside of it: %q", name)
}

func damaged(err error) error {
	var e *hearth.Error
	if errors.As(err, &e) {
		return err
	}
	if hostCause(err) != nil {
		return hostError("the layers of the image cannot be read", err)
	}
	return hearth.Errorf(hearth.CodeInvalid, "a layer of the image is damaged: %w", err)
}

// hostCause returns err if it comes from the system, not from the data.
func hostCause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func tooLarge() error {
	return hearth.Errorf(hearth.CodeInvalid, "the image unpacks to more than Hearth allows (8 GiB, a million files)")
}
