package build

import (
	"bufio"
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
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

// maxLink is the greatest length of a symbolic link's target in bytes.
const maxLink = 1024

// mtime is the modification time of everything in an artifact. It is the oldest
// one that a zip archive can express.
func mtime() time.Time { return time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) }

// kind is the type of a node, as it stands in the canonical listing.
type kind string

const (
	kindFile kind = "file"
	kindDir  kind = "dir"
	kindLink kind = "link"
)

// node is one entry of an artifact.
type node struct {
	kind   kind
	exec   bool
	size   int64
	hash   [sha256.Size]byte // of the content
	target string            // of a link
	child  bool              // a directory with something in it
}

// tree writes an artifact into a directory and remembers what is in it.
// Symbolic links are made last of all, so that no write can follow one.
type tree struct {
	ctx     context.Context
	root    *os.Root
	limits  Limits
	nodes   map[string]*node
	entries int   // seen so far, replaced ones included
	written int64 // so far, replaced files included
	buf     []byte
}

func openTree(ctx context.Context, dir string, limits Limits) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, hostError(err)
	}
	return &tree{ctx: ctx, root: root, limits: limits, nodes: map[string]*node{}, buf: make([]byte, 64<<10)}, nil
}

func (t *tree) close() { _ = t.root.Close() }

// enter checks an entry's name against rules and limits, and returns it in its
// canonical form: "." for the top itself.
func (t *tree) enter(name string) (string, error) {
	if err := t.ctx.Err(); err != nil {
		return "", canceled(err)
	}
	if t.entries++; t.entries > t.limits.Files {
		return "", t.tooMany()
	}
	p, err := cleanPath(name)
	if err != nil {
		return "", err
	}
	switch {
	case len(p) > t.limits.PathLength:
		return "", badEntry(name, fmt.Sprintf("has a path longer than %d bytes", t.limits.PathLength), "use shorter names")
	case strings.Count(p, "/")+1 > t.limits.Depth:
		return "", badEntry(name, fmt.Sprintf("is more than %d directories deep", t.limits.Depth), "use fewer directories")
	}
	for s := range strings.SplitSeq(p, "/") {
		if len(s) > 255 {
			return "", badEntry(name, "has a file name longer than 255 bytes", "use a shorter name")
		}
	}
	return p, nil
}

// cleanPath refuses every name that could mean a place outside of the tree, or
// different places to different readers.
func cleanPath(name string) (string, error) {
	const remake = "make the archive from inside of the function's directory, for example: tar czf code.tar.gz ."
	switch {
	case name == "":
		return "", badEntry(name, "has no name", remake)
	case strings.ContainsRune(name, 0):
		return "", badEntry(name, "has a NUL byte in its name", "rename the file")
	case !utf8.ValidString(name):
		return "", badEntry(name, "has a name that is not UTF-8", "rename the file")
	case strings.ContainsFunc(name, unicode.IsControl):
		return "", badEntry(name, "has a control character in its name", "rename the file")
	case strings.Contains(name, `\`):
		return "", badEntry(name, "has a backslash in its name", "separate directories with /; some Windows tools write \\ instead")
	case strings.HasPrefix(name, "/"):
		return "", badEntry(name, "has an absolute path", remake)
	case len(name) > 2 && name[1] == ':' && name[2] == '/':
		return "", badEntry(name, "has a drive letter", remake)
	}
	for s := range strings.SplitSeq(name, "/") {
		if s == ".." {
			return "", badEntry(name, "has .. in its path", remake)
		}
	}
	return path.Clean(name), nil
}

// parents makes the directories above p.
func (t *tree) parents(name, p string) error {
	for i, c := range p {
		if c == '/' {
			if err := t.mkdir(name, p[:i]); err != nil {
				return err
			}
		}
	}
	if dir := path.Dir(p); dir != "." {
		t.nodes[dir].child = true
	}
	return nil
}

func (t *tree) mkdir(name, p string) error {
	if n := t.nodes[p]; n != nil {
		if n.kind != kindDir {
			return badEntry(name, fmt.Sprintf("needs %q to be a directory, which is a %s as well", p, n.kind), "rename one of them")
		}
		return nil
	}
	if len(t.nodes) >= 2*t.limits.Files {
		return hearth.Errorf(hearth.CodeInvalid, "there are more than %d files and directories", 2*t.limits.Files).
			WithHint("use fewer directories")
	}
	if err := t.root.Mkdir(p, 0o755); err != nil {
		return hostError(err)
	}
	t.nodes[p] = &node{kind: kindDir}
	if dir := path.Dir(p); dir != "." {
		t.nodes[dir].child = true
	}
	return nil
}

// dir adds a directory.
func (t *tree) dir(name string) error {
	p, err := t.enter(name)
	if err != nil || p == "." {
		return err
	}
	if err := t.parents(name, p); err != nil {
		return err
	}
	return t.mkdir(name, p)
}

// place prepares p for a file or link. The last of several entries with one
// name wins, as with tar.
func (t *tree) place(name, p string) error {
	if p == "." || strings.HasSuffix(name, "/") {
		return badEntry(name, "is a file with the name of a directory", "make the archive again")
	}
	if err := t.parents(name, p); err != nil {
		return err
	}
	switch old := t.nodes[p]; {
	case old == nil:
	case old.kind == kindDir:
		return badEntry(name, "is both a directory and a file", "rename one of them")
	case old.kind == kindFile:
		if err := t.root.Remove(p); err != nil {
			return hostError(err)
		}
	}
	delete(t.nodes, p)
	return nil
}

// file adds a regular file with the content of r. size is what the archive
// claims, -1 when unknown; what counts is what r has.
func (t *tree) file(name string, exec bool, size int64, r io.Reader) error {
	p, err := t.enter(name)
	if err != nil {
		return err
	}
	if size > t.limits.File {
		return t.fileTooLarge(name)
	}
	if size > t.limits.Unpacked-t.written {
		return t.tooMuch()
	}
	if err := t.place(name, p); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if exec {
		mode = 0o755
	}
	f, err := t.root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return hostError(err)
	}
	n := &node{kind: kindFile, exec: exec}
	err = t.copy(name, f, r, n)
	// The mode is set again because of the umask.
	if err2 := f.Chmod(mode); err == nil && err2 != nil {
		err = hostError(err2)
	}
	if err2 := f.Close(); err == nil && err2 != nil {
		err = hostError(err2)
	}
	if err != nil {
		return err
	}
	t.nodes[p] = n
	return nil
}

func (t *tree) copy(name string, w io.Writer, r io.Reader, n *node) error {
	sum := sha256.New()
	for {
		if err := t.ctx.Err(); err != nil {
			return canceled(err)
		}
		k, err := r.Read(t.buf)
		n.size += int64(k)
		t.written += int64(k)
		switch {
		case n.size > t.limits.File:
			return t.fileTooLarge(name)
		case t.written > t.limits.Unpacked:
			return t.tooMuch()
		}
		sum.Write(t.buf[:k])
		if _, err := w.Write(t.buf[:k]); err != nil {
			return hostError(err)
		}
		if errors.Is(err, io.EOF) {
			sum.Sum(n.hash[:0])
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func (t *tree) tooMany() error {
	return hearth.Errorf(hearth.CodeInvalid, "there are more than %d entries", t.limits.Files).
		WithHint("leave out what the function does not need at run time (tests, caches, .git)")
}

func (t *tree) fileTooLarge(name string) error {
	return badEntry(name, "is larger than "+hearth.Bytes(t.limits.File).String(), "leave it out")
}

func (t *tree) tooMuch() error {
	return hearth.Errorf(hearth.CodeInvalid, "the unpacked files are larger than %s together", hearth.Bytes(t.limits.Unpacked)).
		WithHint("leave out what the function does not need at run time")
}

// symlink adds a symbolic link; finish makes it.
func (t *tree) symlink(name, target string) error {
	p, err := t.enter(name)
	if err != nil {
		return err
	}
	if err := t.place(name, p); err != nil {
		return err
	}
	switch {
	case target == "" || len(target) > maxLink || strings.ContainsRune(target, 0) || !utf8.ValidString(target):
		return badEntry(name, "is a symbolic link with an invalid target", "replace the link by what it points to")
	case path.IsAbs(target), strings.Contains(target, `\`), !within(path.Join(path.Dir(p), target)):
		return leavesTree(name, target)
	}
	t.nodes[p] = &node{kind: kindLink, target: target}
	return nil
}

func within(p string) bool { return p != ".." && !strings.HasPrefix(p, "../") }

func leavesTree(name, target string) error {
	if len(target) > 80 {
		target = target[:80] + "…"
	}
	return badEntry(name, fmt.Sprintf("is a link to %q, outside of the archive", target),
		"replace the link by what it points to, for example with tar --dereference")
}

// hardlink adds a copy of an earlier file.
func (t *tree) hardlink(name, target string) error {
	from, err := cleanPath(target)
	if err != nil {
		return leavesTree(name, target)
	}
	n := t.nodes[from]
	if n == nil || n.kind != kindFile {
		return badEntry(name, "is a hard link to something that is not an earlier file of the archive", "make the archive with tar --hard-dereference")
	}
	if p, err := cleanPath(name); err == nil && p == from {
		return nil
	}
	f, err := t.root.Open(from)
	if err != nil {
		return hostError(err)
	}
	defer f.Close()
	return t.file(name, n.exec, n.size, f)
}

// finish makes the links, fixes times and returns the summary.
func (t *tree) finish() (Summary, error) {
	paths := slices.Sorted(maps.Keys(t.nodes))
	for _, p := range paths {
		if n := t.nodes[p]; n.kind == kindLink {
			if err := t.root.Symlink(n.target, p); err != nil {
				return Summary{}, hostError(err)
			}
		}
	}
	files := 0
	for _, p := range slices.Backward(paths) { // children before directories: for their times
		n := t.nodes[p]
		if n.kind == kindLink {
			files++
			if err := checkLink(t.nodes, p); err != nil {
				return Summary{}, err
			}
			continue
		}
		if n.kind == kindFile {
			files++
		}
		if n.kind == kindDir {
			if err := t.root.Chmod(p, 0o755); err != nil {
				return Summary{}, hostError(err)
			}
		}
		if err := t.root.Chtimes(p, mtime(), mtime()); err != nil {
			return Summary{}, hostError(err)
		}
	}
	if files == 0 {
		return Summary{}, hearth.Errorf(hearth.CodeInvalid, "there are no files in it").
			WithHint("put at least the handler's file in, for example main.py")
	}
	return summarize(t.nodes), nil
}

// maxLinks is how many symbolic links kernels follow in one path.
const maxLinks = 40

// checkLink checks where the symbolic link p leads. Its target lies inside by
// its text, but links on the way to it may lead elsewhere: this walks as a
// kernel does. A link may lead nowhere: real code has such that dangle inside of
// the tree or run in a circle (in node_modules/.bin and caches).
func checkLink(nodes map[string]*node, p string) error {
	type state struct{ at, rest string }
	seen := map[state]bool{}
	dir, rest := path.Dir(p), path.Base(p)
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if dir == "." {
				return leavesTree(p, nodes[p].target)
			}
			dir = path.Dir(dir)
			continue
		}
		at := path.Join(dir, name)
		n := nodes[at]
		switch {
		case n == nil, n.kind == kindFile:
			return nil // the end, or as far as one comes
		case n.kind == kindDir:
			dir = at
			continue
		case path.IsAbs(n.target):
			return leavesTree(p, nodes[p].target)
		}
		here := state{at, rest}
		if seen[here] {
			return nil // a circle
		}
		if len(seen) == maxLinks {
			return badEntry(p, fmt.Sprintf("is a link that leads through too many symbolic links, more than %d", maxLinks),
				"let it point to where it leads in the end")
		}
		seen[here] = true
		rest = n.target + "/" + rest
	}
	return nil
}

// summarize returns the summary of a tree.
func summarize(nodes map[string]*node) Summary {
	var s Summary
	for _, n := range nodes {
		if n.kind != kindDir {
			s.Files++
			s.Bytes += n.size
		}
	}
	sum := sha256.New()
	_ = writeListing(sum, nodes) // a hash takes everything
	s.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return s
}

// writeListing writes the canonical listing of a tree, one line an entry.
func writeListing(w io.Writer, nodes map[string]*node) error {
	b := bufio.NewWriterSize(w, 64<<10)
	for _, p := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[p]
		switch n.kind {
		case kindFile:
			mode := "0644"
			if n.exec {
				mode = "0755"
			}
			fmt.Fprintf(b, "%q file %s %d %x\n", p, mode, n.size, n.hash)
		case kindLink:
			fmt.Fprintf(b, "%q link %q\n", p, n.target)
		case kindDir:
			// Others follow from the files in them; archives may leave them out.
			if !n.child {
				fmt.Fprintf(b, "%q dir 0755\n", p)
			}
		}
	}
	return b.Flush()
}

func hostError(err error) error {
	return &hearth.Error{
		Code: hearth.CodeUnavailable, Message: "the code cannot be written on the host",
		Hint: "check the free space and the permissions of the data directory", Err: err,
	}
}
