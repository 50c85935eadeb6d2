package build_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/build"
)

// TestArchive reads what Archive has written.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	for p, mode := range map[string]os.FileMode{"run.sh": 0o755, "lib/a": 0o644} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(p)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, p), []byte(p), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("lib/a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := build.Archive(t.Context(), dir, &b); err != nil {
		t.Fatal(err)
	}
	first := bytes.Clone(b.Bytes())
	out := t.TempDir()
	if _, err := build.Extract(t.Context(), &b, build.TarGz, out, build.Limits{}); err != nil {
		t.Fatal(err)
	}
	want, err := build.List(t.Context(), dir)
	if err != nil || len(want) != 3 {
		t.Fatalf("%+v, %v", want, err)
	}
	got, err := build.List(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(out, "empty")); err != nil {
		t.Error(err)
	}
	if err := build.Archive(t.Context(), out, &b); err != nil || !bytes.Equal(first, b.Bytes()) {
		t.Errorf("the same files give other bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := build.Archive(ctx, dir, &b); hearth.ErrorCode(err) != hearth.CodeCanceled {
		t.Errorf("canceled: %v", err)
	}
}
