package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

func stages(t *testing.T, dir string) (n int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			n++
		}
	}
	return n
}

func TestCommittedFilesAreReadOnly(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	g, err := s.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Discard()
	outside := filepath.Join(dir, "outside")
	for path, mode := range map[string]fs.FileMode{outside: 0o600, g.Dir() + "/a/b/main.py": 0o600, g.Dir() + "/run": 0o4755} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Chmod(path, uint32(mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(g.Dir(), "link")); err != nil {
		t.Fatal(err)
	}
	d := digest("tree")
	if _, err := s.ArtifactDir(d); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Fatalf("visible before its commit: %v", err)
	}
	got, err := g.Commit(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	g.Discard()
	if at, err := s.ArtifactDir(d); err != nil || at != got {
		t.Fatalf("%s %v, want %s", at, err, got)
	}
	for path, want := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o755, "a": fs.ModeDir | 0o755, "a/b": fs.ModeDir | 0o755, "a/b/main.py": 0o444, "run": 0o555,
	} {
		info, err := os.Lstat(filepath.Join(got, path))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, want)
		}
	}
	if info, err := os.Stat(outside); err != nil || info.Mode() != 0o600 {
		t.Errorf("the target of a link was changed: %v %v", info.Mode(), err)
	}
	if _, err := g.Commit(t.Context(), d); hearth.ErrorCode(err) != hearth.CodeConflict {
		t.Errorf("second commit: %v", err)
	}
	artifact(t, s, "again")
	artifact(t, s, "again")
	if n := stages(t, dir); n != 0 {
		t.Errorf("%d stages left", n)
	}
}

func TestBadStages(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	g, err := s.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"", "sha256:", "../../x", digest("x") + "/..", "sha256:" + strings.Repeat("A", 64)} {
		_, err := g.Commit(t.Context(), d)
		wantCode(t, err, hearth.CodeInvalid, "digest")
	}
	if err := syscall.Mkfifo(filepath.Join(g.Dir(), "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = g.Commit(t.Context(), digest("x"))
	wantCode(t, err, hearth.CodeInvalid, "pipe is a named pipe")
	g.Discard()
	g.Discard()
	if n := stages(t, dir); n != 0 {
		t.Errorf("%d stages left", n)
	}
	if _, err := g.Commit(t.Context(), digest("x")); hearth.ErrorCode(err) != hearth.CodeConflict {
		t.Errorf("commit after discard: %v", err)
	}
	// A killed server leaves stages, perhaps already read-only.
	left := filepath.Join(dir, "artifacts", ".stage-left", "a")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(left, 0o555); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if n := stages(t, dir); n != 0 {
		t.Errorf("%d stages left by a killed server", n)
	}
}

func TestPruneArtifacts(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	prune := func(olderThan time.Time, want int) {
		t.Helper()
		if n, err := s.PruneArtifacts(ctx, olderThan); err != nil || n != want {
			t.Fatalf("pruned %d, %v; want %d", n, err, want)
		}
	}
	future := func() time.Time { return time.Now().Add(time.Minute) }
	used := artifact(t, s, "used")
	create(t, s, version("f", used))
	artifact(t, s, "unused")
	prune(time.Now().Add(-time.Hour), 0)
	prune(future(), 1)

	g, err := s.Stage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d := digest("held")
	if _, err := g.Commit(ctx, d); err != nil {
		t.Fatal(err)
	}
	prune(future(), 0)
	g.Discard()
	prune(future(), 1)
	if _, err := s.ArtifactDir(d); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Fatalf("got %v", err)
	}

	// The grace begins when the last function that used it is deleted.
	dir, err := s.ArtifactDir(used)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	prune(future(), 0)
	if err := s.DeleteFunction(ctx, "f", 0); err != nil {
		t.Fatal(err)
	}
	prune(time.Now().Add(-time.Hour), 0)
	prune(future(), 1)
}

// TestPruneRacesWithDeploys prunes without any grace while the same few
// artifacts are deployed and deleted again and again: a version's artifact is
// always there.
// TestSourceIsKept: what a version was built from stays as long as the version.
func TestSourceIsKept(t *testing.T) {
	s := open(t, t.TempDir())
	v := version("built", artifact(t, s, "with dependencies"))
	v.Source = digest("missing")
	if _, _, err := s.CreateFunction(t.Context(), v); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("a version of a source that is not there: %v", err)
	}
	v.Source = artifact(t, s, "source")
	f, _ := create(t, s, v)
	if got, err := s.Version(t.Context(), "built", f.Live); err != nil || got.Source != v.Source || got.Artifact != v.Artifact {
		t.Errorf("stored %+v, %v", got, err)
	}
	later := time.Now().Add(time.Hour)
	if n, err := s.PruneArtifacts(t.Context(), later); n != 0 || err != nil {
		t.Errorf("pruned %d, %v", n, err)
	}
	if err := s.DeleteFunction(t.Context(), "built", 0); err != nil {
		t.Fatal(err)
	}
	if n, err := s.PruneArtifacts(t.Context(), later); n != 2 || err != nil {
		t.Errorf("pruned %d, %v; want both", n, err)
	}
}

func TestPruneRacesWithDeploys(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	done := make(chan struct{})
	var pruner, deployers sync.WaitGroup
	pruned := 0
	pruner.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			n, err := s.PruneArtifacts(ctx, time.Now().Add(time.Hour))
			if err != nil {
				t.Error(err)
				return
			}
			pruned += n
		}
	})
	deploy := func(name, text string) error {
		g, err := s.Stage(ctx)
		if err != nil {
			return err
		}
		defer g.Discard()
		if err := os.WriteFile(filepath.Join(g.Dir(), "main.py"), []byte(text), 0o644); err != nil {
			return err
		}
		d := digest(text)
		if _, err := g.Commit(ctx, d); err != nil {
			return err
		}
		if _, _, err := s.CreateFunction(ctx, version(name, d)); err != nil {
			return err
		}
		g.Discard()
		at, err := s.ArtifactDir(d)
		if err != nil {
			return err
		}
		info, err := os.Stat(filepath.Join(at, "main.py"))
		if err != nil {
			return err
		}
		if info.Mode() != 0o444 {
			return errors.New("writable")
		}
		return s.DeleteFunction(ctx, name, 0)
	}
	for i := range 4 {
		deployers.Go(func() {
			for j := range 12 {
				if err := deploy(fmt.Sprint("f", i), fmt.Sprint("shared", j%2)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	deployers.Wait()
	close(done)
	pruner.Wait()
	if _, err := s.PruneArtifacts(ctx, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "artifacts")); err != nil || len(entries) != 0 {
		t.Errorf("left: %v %v", entries, err)
	}
	t.Logf("pruned %d artifacts meanwhile", pruned)
}

func FuzzDigest(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("0", 64))
	f.Add("sha256:../x")
	dir := f.TempDir()
	s := open(f, dir)
	f.Fuzz(func(t *testing.T, d string) {
		at, err := s.ArtifactDir(d)
		if err == nil {
			t.Fatalf("%q is at %s", d, at)
		}
		if c := hearth.ErrorCode(err); c != hearth.CodeInvalid && c != hearth.CodeNotFound {
			t.Fatal(err)
		}
	})
}
