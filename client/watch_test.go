package client_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
)

// watch watches a directory until the test ends.
func watch(t *testing.T, dir string) *client.Watcher {
	t.Helper()
	w, err := client.Watch(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// change waits for the next change.
func change(t *testing.T, w *client.Watcher) {
	t.Helper()
	select {
	case _, ok := <-w.Changes():
		if !ok {
			t.Fatalf("the watch ended: %v", w.Err())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no change was told")
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestWatchLeavesOutWhatPackDoes(t *testing.T) {
	dir := tree(t, map[string]string{
		"main.py": "1", "lib/a.py": "a", "build/x": "x", "deep/build/x": "x", "app.log": "",
		".hearthignore": "/build/\n*.log\n!keep.log\n",
	})
	w := watch(t, dir)
	for _, name := range []string{"app.log", "new.log", "build/x", "build/y", ".main.py.swp", "main.py~", "#main.py#"} {
		put(t, filepath.Join(dir, name), "2")
	}
	if err := os.Symlink("nobody@host:1", filepath.Join(dir, ".#main.py")); err != nil {
		t.Fatal(err)
	}
	// A change would be told after some fifty milliseconds.
	select {
	case <-w.Changes():
		t.Error("what is ignored counts as a change")
	case <-time.After(500 * time.Millisecond):
	}
	put(t, filepath.Join(dir, "keep.log"), "2")
	change(t, w)
	for _, name := range []string{"main.py", "lib/a.py", "lib/b.py", "deep/build/x"} {
		put(t, filepath.Join(dir, name), "2")
		change(t, w)
	}
	for _, step := range []func() error{
		func() error { return os.Chmod(filepath.Join(dir, "main.py"), 0o755) },
		func() error { return os.Remove(filepath.Join(dir, "lib/b.py")) },
		func() error { return os.Rename(filepath.Join(dir, "lib"), filepath.Join(dir, "moved")) },
		func() error { return os.WriteFile(filepath.Join(dir, "moved/a.py"), nil, 0o644) },
		func() error { return os.Remove(filepath.Join(dir, ".hearthignore")) },
		func() error { return os.WriteFile(filepath.Join(dir, "build/x"), nil, 0o644) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		change(t, w)
	}
}

// TestWatchCloses closes a watch for whose changes nobody waits.
func TestWatchCloses(t *testing.T) {
	dir := tree(t, map[string]string{"main.py": "1"})
	w := watch(t, dir)
	for range 1000 {
		put(t, filepath.Join(dir, "main.py"), "2")
	}
	change(t, w)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := <-w.Changes(); ok || w.Err() != nil {
		t.Errorf("after Close: %v", w.Err())
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestWatchEndsWithTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "f")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w := watch(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	for range w.Changes() { //nolint:revive // until it is closed
	}
	if hearth.ErrorCode(w.Err()) != hearth.CodeNotFound {
		t.Errorf("it ended with %v", w.Err())
	}
	if _, err := client.Watch(dir); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("a directory that does not exist: %v", err)
	}
}
