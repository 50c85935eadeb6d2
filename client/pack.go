package client

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hearthrun/hearth"
)

// Limits of Pack unless PackOptions says otherwise. They are those of the
// server, so that it need not receive what it would refuse.
const (
	DefaultMaxBytes = 250 << 20
	DefaultMaxFiles = 20000
)

// PackOptions changes what Pack accepts. The zero value is ready to use.
type PackOptions struct {
	// MaxBytes limits the files' sizes together; 0 means DefaultMaxBytes.
	MaxBytes int64
	// MaxFiles limits their number; 0 means DefaultMaxFiles.
	MaxFiles int
}

// entry is one file or link that is packed.
type entry struct {
	name   string // slash-separated, relative
	size   int64
	mode   fs.FileMode
	target string // of a symbolic link
}

// Pack writes the files of dir as a tar.gz to w and returns their number. The
// same files always give the same bytes: owner, times and all permissions but
// the executable bit are left out. It leaves out what .hearthignore lists, and
// always .git, .hg, .svn, .venv, __pycache__, .DS_Store and what editors keep beside
// a file, such as main.py~ or .main.py.swp. Symbolic links are
// kept if they stay inside dir. Errors: CodeInvalid for a link that leaves dir,
// a file that is neither file nor directory nor link, or too much data.
func Pack(dir string, w io.Writer, opts PackOptions) (int, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, unreadable(err)
	}
	defer root.Close()
	entries, err := collect(root)
	if err != nil {
		return 0, err
	}
	if err := checkSize(dir, entries, opts); err != nil {
		return 0, err
	}
	gz := gzip.NewWriter(w)
	tw := tar.NewWriter(gz)
	for _, e := range entries {
		if err := writeEntry(tw, root, e); err != nil {
			return 0, err
		}
	}
	return len(entries), errors.Join(tw.Close(), gz.Close())
}

// collect lists what is to be packed, sorted by name.
func collect(root *os.Root) ([]entry, error) {
	patterns, err := loadIgnore(root)
	if err != nil {
		return nil, err
	}
	var entries []entry
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return unreadable(err)
		}
		if name == "." {
			return nil
		}
		if ignored(patterns, name, d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return unreadable(err)
		}
		e := entry{name: name, size: info.Size(), mode: info.Mode()}
		switch {
		case info.Mode().IsRegular():
		case info.Mode()&fs.ModeSymlink != 0:
			if e.target, err = linkTarget(root, name); err != nil {
				return err
			}
			e.size = 0
		default:
			return hearth.Errorf(hearth.CodeInvalid, "%s is not a file, directory or symbolic link", name).
				WithHint("remove it or list it in %s", IgnoreName)
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// loadIgnore returns the patterns of the ignore file and those that always hold.
func loadIgnore(root *os.Root) ([]pattern, error) {
	always, err := parseIgnore("", alwaysIgnored)
	if err != nil {
		return nil, err
	}
	f, err := openFile(root, IgnoreName)
	if errors.Is(err, fs.ErrNotExist) {
		return always, nil
	} else if err != nil {
		return nil, unreadable(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIgnore+1))
	if err != nil {
		return nil, unreadable(err)
	}
	if len(b) > maxIgnore {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%s is larger than %s", IgnoreName, hearth.Bytes(maxIgnore)).
			WithHint("ignore whole directories instead of single files")
	}
	own, err := parseIgnore(IgnoreName, string(b))
	if err != nil {
		return nil, err
	}
	return append(own, always...), nil
}

// openFile opens a file of a directory of the user's. A symbolic link is followed if it
// stays inside. Anything but a file is refused unopened: a named pipe would wait for
// its other end, a device do what it does when it is opened. Errors: fs.ErrNotExist,
// CodeInvalid.
func openFile(root *os.Root, name string) (*os.File, error) {
	info, err := root.Lstat(name)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if _, err := linkTarget(root, name); err != nil {
			return nil, hearth.AsError(err).WithHint("put a file in its place")
		}
		info, err = root.Stat(name)
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, hearth.Errorf(hearth.CodeInvalid, "%s is not a file", filepath.Join(root.Name(), name)).
			WithHint("put a file in its place")
	}
	var f *os.File
	if err == nil {
		f, err = root.Open(name)
	}
	var in *fs.PathError
	if errors.As(err, &in) {
		err = &fs.PathError{Op: "open", Path: filepath.Join(root.Name(), name), Err: in.Err}
	}
	return f, err
}

// linkTarget returns where a symbolic link points, if that is inside.
func linkTarget(root *os.Root, name string) (string, error) {
	target, err := root.Readlink(name)
	if err != nil {
		return "", unreadable(err)
	}
	outside := filepath.IsAbs(target) || !filepath.IsLocal(path.Join(path.Dir(name), target))
	if !outside {
		// The root follows the whole chain of links and refuses to leave.
		switch _, err = root.Stat(name); {
		case errors.Is(err, fs.ErrNotExist):
			return "", hearth.Errorf(hearth.CodeInvalid, "the symbolic link %s points to %s, which does not exist", name, target).
				WithHint("remove it or list it in %s", IgnoreName)
		case errors.Is(err, syscall.ELOOP):
			return "", hearth.Errorf(hearth.CodeInvalid, "the symbolic link %s leads through too many other links, or in a circle", name).
				WithHint("let it point to where it leads in the end, or list it in %s", IgnoreName)
		}
	}
	if outside || err != nil {
		return "", hearth.Errorf(hearth.CodeInvalid, "the symbolic link %s points to %s, outside of the function's directory", name, target).
			WithHint("copy what it points to, or list it in %s", IgnoreName)
	}
	return target, nil
}

// checkSize applies the limits.
func checkSize(dir string, entries []entry, opts PackOptions) error {
	maxBytes, maxFiles := cmp.Or(opts.MaxBytes, DefaultMaxBytes), cmp.Or(opts.MaxFiles, DefaultMaxFiles)
	if len(entries) == 0 {
		return hearth.Errorf(hearth.CodeInvalid, "%s has no files", dir).WithHint("hearth init %s makes a first function", dir)
	}
	var total int64
	for _, e := range entries {
		total += e.size
	}
	switch {
	case len(entries) > maxFiles:
		return hearth.Errorf(hearth.CodeInvalid, "%s has %d files, more than %d", dir, len(entries), maxFiles).
			WithHint("list what the function does not need in %s; the most are in %s", IgnoreName, largest(entries, func(entry) int64 { return 1 }, func(n int64) string { return fmt.Sprint(n) }))
	case total > maxBytes:
		return hearth.Errorf(hearth.CodeInvalid, "%s has %s of files, more than %s", dir, size10(total), hearth.Bytes(maxBytes)).
			WithHint("list what the function does not need in %s; the largest are %s", IgnoreName, largest(entries, func(e entry) int64 { return e.size }, size10))
	}
	return nil
}

// largest names the up to three top-level entries that weigh most.
func largest(entries []entry, weight func(entry) int64, text func(int64) string) string {
	sums := map[string]int64{}
	for _, e := range entries {
		top, _, _ := strings.Cut(e.name, "/")
		sums[top] += weight(e)
	}
	names := make([]string, 0, len(sums))
	for n := range sums {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(sums[b], sums[a]), strings.Compare(a, b))
	})
	names = names[:min(3, len(names))]
	for i, n := range names {
		names[i] = n + " (" + text(sums[n]) + ")"
	}
	return strings.Join(names, ", ")
}

// size10 writes a size with one decimal.
func size10(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}

// writeEntry adds one file or link to the archive.
func writeEntry(tw *tar.Writer, root *os.Root, e entry) error {
	h := &tar.Header{Name: e.name, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if e.target != "" {
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.target, 0o777
		return tw.WriteHeader(h)
	}
	h.Typeflag, h.Size = tar.TypeReg, e.size
	if e.mode&0o111 != 0 {
		h.Mode = 0o755
	}
	f, err := openFile(root, e.name)
	if err != nil {
		return unreadable(err)
	}
	defer f.Close()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(tw, f, e.size)
	if err == nil {
		if n, _ := f.Read(make([]byte, 1)); n == 0 {
			return nil
		}
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return hearth.Errorf(hearth.CodeConflict, "%s changed while it was packed", e.name).WithHint("try again when nothing writes to it")
}
