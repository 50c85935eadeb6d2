package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hearthrun/hearth"
)

// errDamaged tells that installed dependencies are not what was recorded.
var errDamaged = errors.New("installed dependencies are damaged")

// assemble makes the tree at out from the source and what it depends on, if
// there is any, by hard links where possible. Errors: errDamaged.
func assemble(ctx context.Context, source string, dep *held, out string) (Summary, error) {
	nodes, err := readTree(ctx, source)
	if err != nil {
		return Summary{}, err
	}
	from := map[string]string{} // directory that holds a file of dep
	if dep != nil {
		for p, n := range dep.nodes {
			if old := nodes[p]; old != nil && (old.kind != kindDir || n.kind != kindDir) {
				return Summary{}, badEntry(p, "is part of the code and of its dependencies", "remove it from the code")
			}
			nodes[p] = n
			from[p] = dep.dir
		}
	}
	root, err := os.OpenRoot(out)
	if err != nil {
		return Summary{}, hostError(err)
	}
	defer root.Close()
	paths := slices.Sorted(maps.Keys(nodes)) // directories before what is in them
	var dirs, links []string
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return Summary{}, stopped(err)
		}
		switch n := nodes[p]; n.kind {
		case kindDir:
			if err := os.Mkdir(filepath.Join(out, p), 0o755); err != nil {
				return Summary{}, hostError(err)
			}
			dirs = append(dirs, p)
		case kindLink:
			links = append(links, p)
		case kindFile:
			dir, cached := from[p]
			if !cached {
				dir = source
			}
			err := place(filepath.Join(dir, p), filepath.Join(out, p), n)
			if cached && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged)) {
				return Summary{}, fmt.Errorf("%s: %w", p, errDamaged)
			}
			if err != nil {
				return Summary{}, hostError(err)
			}
		}
	}
	for _, p := range links {
		if err := root.Symlink(nodes[p].target, p); err != nil {
			return Summary{}, hostError(err)
		}
	}
	for _, p := range links {
		if err := checkLink(nodes, p); err != nil {
			return Summary{}, err
		}
	}
	for _, p := range slices.Backward(dirs) {
		if err := errors.Join(root.Chmod(p, 0o755), root.Chtimes(p, mtime(), mtime())); err != nil {
			return Summary{}, hostError(err)
		}
	}
	return summarize(nodes), nil
}

// place makes to the same file as from, or a copy of it where that cannot be.
func place(from, to string, n *node) error {
	err := os.Link(from, to)
	for _, e := range []error{syscall.EXDEV, syscall.EPERM, syscall.EMLINK, syscall.ENOTSUP} {
		if errors.Is(err, e) {
			return copyFile(from, to, n)
		}
	}
	if err != nil {
		return err
	}
	info, err := os.Lstat(to)
	if err == nil && (!info.Mode().IsRegular() || info.Size() != n.size) {
		return errDamaged
	}
	return err
}

func copyFile(from, to string, n *node) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	size, err := io.Copy(w, r)
	mode := fs.FileMode(0o444)
	if n.exec {
		mode = 0o555
	}
	if err := errors.Join(err, w.Chmod(mode), w.Close(), os.Chtimes(to, mtime(), mtime())); err != nil {
		return err
	}
	if size != n.size {
		return errDamaged
	}
	return nil
}

// readTree reads what is in a directory of plain files and hashes it.
func readTree(ctx context.Context, dir string) (map[string]*node, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, sourceError(err)
	}
	defer root.Close()
	nodes := map[string]*node{}
	buf := make([]byte, 256<<10)
	err = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || p == "." {
			return err
		}
		if parent := path.Dir(p); parent != "." {
			nodes[parent].child = true
		}
		switch e.Type() {
		case fs.ModeDir:
			nodes[p] = &node{kind: kindDir}
		case fs.ModeSymlink:
			target, err := root.Readlink(p)
			if err != nil {
				return err
			}
			nodes[p] = &node{kind: kindLink, target: target}
		case 0:
			n, err := hashFile(root, p, buf)
			if err != nil {
				return err
			}
			nodes[p] = n
		default:
			return badEntry(p, "is neither a file, a directory nor a link", "leave it out")
		}
		return nil
	})
	var coded *hearth.Error
	switch {
	case ctx.Err() != nil:
		return nil, stopped(ctx.Err())
	case errors.As(err, &coded):
		return nil, coded
	case err != nil:
		return nil, sourceError(err)
	}
	return nodes, nil
}

func hashFile(root *os.Root, p string, buf []byte) (*node, error) {
	f, err := root.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := &node{kind: kindFile, exec: info.Mode()&0o111 != 0}
	sum := sha256.New()
	// Only its Write: its ReadFrom would not use the buffer.
	n.size, err = io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, buf)
	sum.Sum(n.hash[:0])
	return n, err
}

// parseListing reads what writeListing has written. Directories above entries
// are filled in.
func parseListing(b []byte) (map[string]*node, error) {
	nodes := map[string]*node{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 64<<10)
	for sc.Scan() {
		line := sc.Text()
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			return nil, fmt.Errorf("listing: %q: %w", line, err)
		}
		p, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, fmt.Errorf("listing: %q: %w", line, err)
		}
		n := &node{}
		kindOf, rest, _ := strings.Cut(strings.TrimPrefix(line[len(quoted):], " "), " ")
		switch n.kind = kind(kindOf); n.kind {
		case kindDir:
		case kindLink:
			if n.target, err = strconv.Unquote(rest); err != nil {
				return nil, fmt.Errorf("listing: %q: %w", line, err)
			}
		case kindFile:
			f := strings.Fields(rest)
			if len(f) != 3 {
				return nil, fmt.Errorf("listing: %q", line)
			}
			n.exec = f[0] == "0755"
			if n.size, err = strconv.ParseInt(f[1], 10, 64); err != nil {
				return nil, fmt.Errorf("listing: %q: %w", line, err)
			}
			if k, err := hex.Decode(n.hash[:], []byte(f[2])[:min(len(f[2]), 2*len(n.hash))]); err != nil || k != len(n.hash) {
				return nil, fmt.Errorf("listing: %q: bad hash", line)
			}
		default:
			return nil, fmt.Errorf("listing: %q", line)
		}
		nodes[p] = n
		for dir := path.Dir(p); dir != "." && dir != "/"; dir = path.Dir(dir) {
			if d := nodes[dir]; d != nil {
				d.child = true
				break
			}
			nodes[dir] = &node{kind: kindDir, child: true}
		}
	}
	return nodes, sc.Err()
}

// empty removes what is in a directory.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
