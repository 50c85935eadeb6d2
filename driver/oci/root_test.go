package oci

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hearthrun/hearth"
)

// TestLayerIsSynced gives a layer its name when its files are on the disk, and
// removes those that were not finished.
func TestLayerIsSynced(t *testing.T) {
	l := layers{dir: t.TempDir()}
	noPower := errors.New("no power")
	var synced []string
	l.sync = func(dir string) error {
		synced = append(synced, dir)
		if info, err := os.Stat(filepath.Join(dir, helperPath)); err != nil || info.Size() != int64(len(helperBinary)) {
			t.Errorf("synced before it was written: %v", err)
		}
		return noPower
	}
	if layer, err := l.get(hearth.EgressNone, nil); !errors.Is(err, noPower) {
		t.Fatalf("a layer that is not on the disk: %s, %v", layer, err)
	}
	l.sync = syncFS
	layer, err := l.get(hearth.EgressNone, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(synced) != 1 || synced[0] == layer {
		t.Errorf("synced %q, and then named %s", synced, layer)
	}
}

// TestUnfinishedLayers removes what a process that ended has left.
func TestUnfinishedLayers(t *testing.T) {
	dir := t.TempDir()
	d := newDriver(t, Runc, dir, "unfinished")
	left := filepath.Join(d.layers.dir, newLayer+"left")
	if err := os.MkdirAll(filepath.Join(left, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	newDriver(t, Runc, dir, "unfinished")
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
