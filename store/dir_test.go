package store_test

import (
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/store"
)

func openError(t *testing.T, dir string) *hearth.Error {
	t.Helper()
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err == nil {
		_ = s.Close()
		t.Fatalf("%s was opened", dir)
	}
	e := hearth.AsError(err)
	if e.Hint == "" {
		t.Errorf("no hint in %v", e)
	}
	return e
}

func TestOnlyOneServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "for us")
	s := open(t, dir)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v %v", info, err)
	}
	wantCode(t, openError(t, dir), hearth.CodeConflict, dir, "in use by another hearth server (pid "+strconv.Itoa(os.Getpid())+")")
	// The refused server has not disturbed the first.
	create(t, s, version("f", artifact(t, s, "x")))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestRefusesANewerSchema(t *testing.T) {
	for _, file := range []string{"hearth.db", "invocations.db"} {
		dir := t.TempDir()
		s := open(t, dir)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("sqlite", filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		wantCode(t, openError(t, dir), hearth.CodeInvalid, file, "schema 999")
	}
}

func TestUnusableDirectories(t *testing.T) {
	wantCode(t, openError(t, ""), hearth.CodeInvalid)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantCode(t, openError(t, file), hearth.CodeInvalid, file)
	wantCode(t, openError(t, filepath.Join(file, "below")), hearth.CodeInvalid, file)
	wantCode(t, openError(t, "/proc/hearth"), hearth.CodeUnavailable, "/proc/hearth")

	// Somebody's home is not closed to them.
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "letter"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o755); err != nil {
		t.Fatal(err)
	}
	wantCode(t, openError(t, home), hearth.CodeInvalid, home)
	if info, err := os.Stat(home); err != nil || info.Mode().Perm() != 0o755 {
		t.Fatalf("%v %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(home, "lock")); err == nil {
		t.Fatal("a refused directory was written to")
	}

	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "hearth.db"), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantCode(t, openError(t, damaged), hearth.CodeUnavailable, "hearth.db")

	if os.Getuid() != 0 {
		closed := t.TempDir()
		if err := os.Chmod(closed, 0o500); err != nil {
			t.Fatal(err)
		}
		wantCode(t, openError(t, closed), hearth.CodeUnavailable, closed)
	}
}

// TestImagesCameFirst starts a server after somebody built base images.
func TestImagesCameFirst(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Somebody's photographs.
	if e := openError(t, dir); !strings.Contains(e.Hint, "chmod 700 "+dir) || !strings.Contains(e.Hint, "HEARTH_DATA_DIR") {
		t.Errorf("hint %q", e.Hint)
	}
	for _, sub := range []string{"blobs/sha256", "rootfs", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, "images", sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v %v", info, err)
	}
}

func TestDirectoryNames(t *testing.T) {
	for _, name := range []string{"a?b=c", "per%20cent", "ha#sh", "spa ce", "ünï"} {
		dir := filepath.Join(t.TempDir(), name)
		s := open(t, dir)
		create(t, s, version("f", artifact(t, s, "x")))
		for _, file := range []string{"hearth.db", "invocations.db", "artifacts", "lock"} {
			if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestDatabaseFiles checks the mode and the journal of the databases.
func TestDatabaseFiles(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	for _, file := range []string{"hearth.db", "invocations.db"} {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info, err)
		}
		if _, err := os.Stat(filepath.Join(dir, file+"-wal")); err != nil {
			t.Errorf("%s has no write-ahead log: %v", file, err)
		}
	}
}
