package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
)

// cache keeps what was installed, below one directory:
//
//	keys/KEY           the digest of what was installed for KEY; used last at its mtime
//	trees/DIGEST/files what was installed
//	trees/DIGEST/list  its canonical listing, whose hash is DIGEST
//	temp/              what is being made or removed
//
// Several keys may name one tree.
type cache struct {
	dir string // constant
	log *slog.Logger

	mu    sync.Mutex
	holds map[string]int // guarded by mu; trees in use
	last  int            // guarded by mu; number of the last temporary directory
}

const (
	keysDir  = "keys"
	treesDir = "trees"
	tempDir  = "temp"
	treeDir  = "tree"
	filesDir = "files"
	listFile = "list"
)

// openCache makes the directories and removes what an earlier process left
// unfinished.
func openCache(dir string, log *slog.Logger) (*cache, error) {
	c := &cache{dir: dir, log: log, holds: map[string]int{}}
	err := os.RemoveAll(c.path(tempDir))
	for _, d := range []string{keysDir, treesDir, tempDir} {
		if err == nil {
			err = os.MkdirAll(c.path(d), 0o711)
		}
	}
	if err != nil {
		return nil, &hearth.Error{
			Code: hearth.CodeUnavailable, Message: "the directory of installed dependencies cannot be used",
			Hint: "make " + dir + " writable for the user that runs hearth", Err: err,
		}
	}
	return c, nil
}

func (c *cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// temp makes a new temporary directory.
func (c *cache) temp() (string, error) {
	c.mu.Lock()
	c.last++
	dir := c.path(tempDir, fmt.Sprint(c.last))
	c.mu.Unlock()
	if err := os.Mkdir(dir, 0o711); err != nil {
		return "", hostError(err)
	}
	return dir, nil
}

// remove deletes a temporary directory.
func (c *cache) remove(dir string) {
	if err := os.RemoveAll(dir); err != nil {
		c.log.Warn("build: a temporary directory stays until the next start", "dir", dir, "err", err)
	}
}

// held is a tree that is not pruned until release.
type held struct {
	Summary
	nodes map[string]*node
	dir   string
	cache *cache
}

func (h *held) release() {
	h.cache.mu.Lock()
	defer h.cache.mu.Unlock()
	name := treeName(h.Digest)
	if h.cache.holds[name]--; h.cache.holds[name] == 0 {
		delete(h.cache.holds, name)
	}
}

func treeName(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

var treeRE = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// find returns what was installed for a key, nil if there is none. Errors:
// CodeUnavailable.
func (c *cache) find(key string) (*held, error) {
	digest, err := os.ReadFile(c.path(keysDir, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(err)
	}
	h, err := c.hold(string(digest))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if h == nil { // it names what is not there or damaged
		_ = os.Remove(c.path(keysDir, key))
		c.drop(string(digest))
	} else if err := os.Chtimes(c.path(keysDir, key), now, now); err != nil {
		c.log.Warn("build: when dependencies were used last is not kept", "err", err)
	}
	return h, nil
}

// unreadable says that the host could not read what is there: which tells
// nothing about what it is.
func unreadable(err error) error {
	return &hearth.Error{
		Code: hearth.CodeUnavailable, Message: "the installed dependencies cannot be read",
		Hint: "look at the kernel's log for errors of the disk, and at the server's limit of open files", Err: err,
	}
}

// hold returns a tree, nil if there is none or it is damaged. Errors:
// CodeUnavailable.
func (c *cache) hold(digest string) (*held, error) {
	if !treeRE.MatchString(digest) {
		return nil, nil
	}
	name := treeName(digest)
	c.mu.Lock()
	defer c.mu.Unlock()
	list, err := os.ReadFile(c.path(treesDir, name, listFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(err)
	}
	if sum := sha256.Sum256(list); hex.EncodeToString(sum[:]) != name {
		return nil, nil
	}
	nodes, err := parseListing(list)
	if err != nil {
		c.log.Warn("build: what was installed is not known any more", "digest", digest, "err", err)
		return nil, nil
	}
	c.holds[name]++
	return &held{Summary: summarize(nodes), nodes: nodes, dir: c.path(treesDir, name, filesDir), cache: c}, nil
}

// publish adds the tree in work/tree/files, below a directory from temp, under a
// key.
func (c *cache) publish(key, work string, nodes map[string]*node) (digest string, err error) {
	for p, n := range nodes {
		if n.kind != kindFile {
			continue
		}
		mode := fs.FileMode(0o444)
		if n.exec {
			mode = 0o555
		}
		if err := os.Chmod(filepath.Join(work, treeDir, filesDir, p), mode); err != nil {
			return "", hostError(err)
		}
	}
	digest = summarize(nodes).Digest
	list, err := os.OpenFile(filepath.Join(work, treeDir, listFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", hostError(err)
	}
	if err := errors.Join(writeListing(list, nodes), unix.Syncfs(int(list.Fd())), list.Close()); err != nil {
		return "", hostError(err)
	}
	keyTemp := filepath.Join(work, "key")
	if err := os.WriteFile(keyTemp, []byte(digest), 0o644); err != nil {
		return "", hostError(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// One that is there already is the same.
	err = unix.Renameat2(unix.AT_FDCWD, filepath.Join(work, treeDir), unix.AT_FDCWD, c.path(treesDir, treeName(digest)), unix.RENAME_NOREPLACE)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", hostError(err)
	}
	if err := os.Rename(keyTemp, c.path(keysDir, key)); err != nil {
		return "", hostError(err)
	}
	return digest, nil
}

// drop removes a tree that is damaged, also while it is in use.
func (c *cache) drop(digest string) {
	if !treeRE.MatchString(digest) {
		return
	}
	if trash := c.unlink(treeName(digest), true); trash != "" {
		c.remove(trash)
	}
}

// unlink takes a tree out of the cache and returns what is to be removed, ""
// if it is in use.
func (c *cache) unlink(name string, force bool) string {
	trash, err := c.temp()
	if err != nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds[name] == 0 || force {
		err = os.Rename(c.path(treesDir, name), filepath.Join(trash, treeDir))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("build: installed dependencies cannot be removed", "err", err)
	}
	return trash
}

// prune removes the trees used least recently until the others have no more
// than size bytes together, and the keys of what is gone.
func (c *cache) prune(ctx context.Context, size int64) (int, error) {
	type tree struct {
		name  string
		bytes int64
		used  time.Time
		keys  []string
	}
	entries, err := os.ReadDir(c.path(treesDir))
	if err != nil {
		return 0, hostError(err)
	}
	trees := map[string]*tree{}
	for _, e := range entries {
		list, err := os.ReadFile(c.path(treesDir, e.Name(), listFile))
		info, err2 := e.Info()
		if err2 != nil {
			continue // it is gone
		}
		t := &tree{name: e.Name()}
		trees[e.Name()] = t
		if nodes, perr := parseListing(list); err == nil && perr == nil {
			t.bytes, t.used = summarize(nodes).Bytes, info.ModTime()
		} // else it is the first to go
	}
	keys, err := os.ReadDir(c.path(keysDir))
	if err != nil {
		return 0, hostError(err)
	}
	for _, e := range keys {
		digest, err := os.ReadFile(c.path(keysDir, e.Name()))
		info, err2 := e.Info()
		if err != nil || err2 != nil {
			continue
		}
		t := trees[treeName(string(digest))]
		if t == nil {
			_ = os.Remove(c.path(keysDir, e.Name()))
			continue
		}
		t.keys = append(t.keys, e.Name())
		if info.ModTime().After(t.used) {
			t.used = info.ModTime()
		}
	}
	order := make([]*tree, 0, len(trees))
	for _, t := range trees {
		order = append(order, t)
	}
	slices.SortFunc(order, func(a, b *tree) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.name, b.name)) })
	n := 0
	for _, t := range order {
		if err := ctx.Err(); err != nil {
			return n, stopped(err)
		}
		c.mu.Lock()
		inUse := c.holds[t.name] > 0
		c.mu.Unlock()
		if inUse {
			continue
		}
		if size -= t.bytes; size >= 0 && !t.used.IsZero() {
			continue
		}
		trash := c.unlink(t.name, false)
		if trash == "" {
			continue
		}
		if _, err := os.Lstat(filepath.Join(trash, treeDir)); err == nil {
			n++
			for _, k := range t.keys {
				_ = os.Remove(c.path(keysDir, k))
			}
		}
		c.remove(trash)
	}
	return n, nil
}
