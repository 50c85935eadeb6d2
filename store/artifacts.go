package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
)

const (
	artifactsDir = "artifacts"
	// Directories that start with a dot are not artifacts: stages being filled,
	// and artifacts being deleted. They lie beside the artifacts, so that a
	// rename moves them, atomically.
	stagePrefix = ".stage-"
	trashPrefix = ".trash-"
)

var digestRE = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// digestName returns the name of an artifact's directory. Errors: CodeInvalid.
func digestName(digest string) (string, error) {
	if !digestRE.MatchString(digest) {
		return "", hearth.Errorf(hearth.CodeInvalid, "%q is not the digest of an artifact", cut(digest, 80)).
			WithHint("a digest is sha256: and 64 hexadecimal digits")
	}
	return strings.TrimPrefix(digest, "sha256:"), nil
}

func (s *Store) artifacts(name string) string { return filepath.Join(s.dir, artifactsDir, name) }

// openArtifacts makes the directory and removes what a killed server left.
func (s *Store) openArtifacts() error {
	dir := s.artifacts("")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return dirError(err, dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return dirError(err, dir)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), stagePrefix) || strings.HasPrefix(e.Name(), trashPrefix) {
			if err := removeAll(s.artifacts(e.Name())); err != nil {
				return dirError(err, s.artifacts(e.Name()))
			}
		}
	}
	return nil
}

// ArtifactDir returns the directory of an artifact: its files are read-only, and
// it is complete as soon as it exists. It stays while a version refers to it.
// Errors: CodeInvalid, CodeNotFound.
func (s *Store) ArtifactDir(digest string) (string, error) {
	name, err := digestName(digest)
	if err != nil {
		return "", err
	}
	dir := s.artifacts(name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", hearth.Errorf(hearth.CodeNotFound, "artifact %s is not in the data directory", digest).
			WithHint("deploy the function again")
	} else if err != nil {
		return "", dirError(err, dir)
	}
	return dir, nil
}

// hold keeps an existing artifact from being pruned until release.
func (s *Store) hold(digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.ArtifactDir(digest); err != nil {
		return err
	}
	s.holds[digest]++
	return nil
}

func (s *Store) release(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[digest]--; s.holds[digest] <= 0 {
		delete(s.holds, digest)
	}
}

// touchArtifacts makes artifacts count as used now.
func (s *Store) touchArtifacts(digests []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range digests {
		if dir, err := s.ArtifactDir(d); err == nil {
			s.touch(dir)
		}
	}
}

func (s *Store) touch(dir string) {
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		s.log.Warn("cannot set the time of an artifact; it may be pruned early", "dir", dir, "error", err)
	}
}

// Stage is a directory in which an artifact is put together. Use it as
//
//	stage, err := s.Stage(ctx)
//	defer stage.Discard()
//	// … fill stage.Dir() …
//	dir, err := stage.Commit(ctx, digest)
//	// … create the version …
type Stage struct {
	store *Store
	dir   string

	mu      sync.Mutex
	held    string // the digest it was committed as
	removed bool   // dir is gone
}

// Stage makes an empty directory, writable only by this user, on the file
// system of the artifacts. The caller must Discard it.
func (s *Store) Stage(ctx context.Context) (*Stage, error) {
	if err := ctx.Err(); err != nil {
		return nil, dbError(ctx, err, "make a directory for an artifact")
	}
	dir := s.artifacts(stagePrefix + randomID())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, dirError(err, dir)
	}
	return &Stage{store: s, dir: dir}, nil
}

// Dir is the directory to fill, until Commit or Discard.
func (g *Stage) Dir() string { return g.dir }

// Commit makes the directory's content the artifact with the digest, which the
// caller has computed, and returns where it is. Files become read-only (0444,
// or 0555 if executable), directories 0755, and when Commit returns they are on the disk. If the
// artifact exists already, the stage's content is dropped in favour of it. The
// artifact is not pruned before Discard. On an error, the stage can only be
// discarded. Errors: CodeInvalid for a bad digest or a file that is neither a
// regular file, a directory nor a symbolic link; CodeConflict when called twice.
func (g *Stage) Commit(ctx context.Context, digest string) (string, error) {
	name, err := digestName(digest)
	if err != nil {
		return "", err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed || g.held != "" {
		return "", hearth.Errorf(hearth.CodeConflict, "the artifact was committed or discarded before")
	}
	s, dir := g.store, g.store.artifacts(name)
	// Held first, so that one that exists already is not pruned meanwhile.
	if err := s.hold(digest); err == nil {
		g.held = digest
		s.touchArtifacts([]string{digest})
		return dir, nil
	} else if hearth.ErrorCode(err) != hearth.CodeNotFound {
		return "", err
	}
	if err := seal(ctx, g.dir); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch err := unix.Renameat2(unix.AT_FDCWD, g.dir, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE); {
	case err == nil:
		g.removed = true
		if err := syncPath(s.artifacts("")); err != nil {
			return "", dirError(err, dir)
		}
	case !errors.Is(err, fs.ErrExist): // another stage may have been faster
		return "", dirError(err, dir)
	}
	s.touch(dir)
	s.holds[digest]++
	g.held = digest
	return dir, nil
}

// Discard removes what was not committed and lets go of what was: from then on
// the artifact lasts as long as a version refers to it, and a grace beyond
// that. It may be called again.
func (g *Stage) Discard() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held != "" {
		g.store.release(g.held)
		g.held = ""
	}
	if !g.removed {
		if err := removeAll(g.dir); err != nil {
			g.store.log.Warn("an unfinished artifact stays until the next start", "dir", g.dir, "error", err)
		}
	}
	g.removed = true
}

// syncEach is up to how many files are synced one by one; beyond it, one sync
// of the whole file system is cheaper.
const syncEach = 256

// seal makes a tree read-only and brings it to the disk.
func seal(ctx context.Context, root string) error {
	var files, dirs []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			dirs = append(dirs, path)
			return nil // once its content is done
		case mode&fs.ModeSymlink != 0:
			return nil
		case !mode.IsRegular():
			rel, _ := filepath.Rel(root, path)
			return hearth.Errorf(hearth.CodeInvalid, "%s is a %s, which an artifact cannot hold", rel, kindOf(mode)).
				WithHint("remove it from the function's code")
		case mode.Perm()&0o111 != 0:
			err = os.Chmod(path, 0o555)
		default:
			err = os.Chmod(path, 0o444)
		}
		files = append(files, path)
		return err
	})
	// Directories stay writable for their owner, so that rm -r of a data
	// directory works without root; sandboxes mount them read-only anyway.
	for _, d := range dirs {
		if err == nil {
			err = os.Chmod(d, 0o755)
		}
	}
	if err == nil && len(files)+len(dirs) > syncEach {
		err = syncFS(root)
	} else {
		for _, p := range append(files, dirs...) {
			if err == nil {
				err = syncPath(p)
			}
		}
	}
	var coded *hearth.Error
	if err == nil || errors.As(err, &coded) {
		return err
	}
	if ctx.Err() != nil {
		return dbError(ctx, err, "store an artifact")
	}
	return dirError(err, root)
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// removeAll removes a tree whose directories may be read-only.
func removeAll(root string) error {
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() && err == nil {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(root)
}

// PruneArtifacts deletes the artifacts to which no version refers and which
// were last committed, or last referred to by a deleted function, before
// olderThan; leave a grace of some hours, since calls in progress may still
// use them. It returns how many it deleted, also beside an error.
func (s *Store) PruneArtifacts(ctx context.Context, olderThan time.Time) (int, error) {
	entries, err := os.ReadDir(s.artifacts(""))
	if err != nil {
		return 0, dirError(err, s.artifacts(""))
	}
	n := 0
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		trash, err := s.pruneArtifact(ctx, e.Name(), olderThan)
		if err != nil {
			return n, err
		}
		if trash == "" {
			continue
		}
		if err := removeAll(trash); err != nil {
			return n, dirError(err, trash)
		}
		n++
	}
	return n, nil
}

// pruneArtifact moves one artifact out of sight if it may be deleted, and
// returns where to, else "".
func (s *Store) pruneArtifact(ctx context.Context, name string, olderThan time.Time) (string, error) {
	// A new version holds its artifact, under the same mutex, until its row is
	// committed: so between this check and the rename none can appear.
	s.mu.Lock()
	defer s.mu.Unlock()
	digest, dir := "sha256:"+name, s.artifacts(name)
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.ModTime().Before(olderThan) || s.holds[digest] > 0 {
		return "", nil
	} else if err != nil {
		return "", dirError(err, dir)
	}
	var used bool
	err = s.catalog.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM versions WHERE artifact = ?1)
		OR EXISTS (SELECT 1 FROM versions WHERE source = ?1 AND source <> '')`, digest).Scan(&used)
	if err != nil {
		return "", dbError(ctx, err, "look for uses of an artifact")
	}
	if used {
		return "", nil
	}
	trash := s.artifacts(trashPrefix + randomID())
	if err := os.Rename(dir, trash); err != nil {
		return "", dirError(err, dir)
	}
	return trash, nil
}
