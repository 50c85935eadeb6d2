package oci

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/drivertest"
	"github.com/hearthrun/hearth/images"
)

// newDriver returns a driver whose runtime "provided" is an empty root file
// system: the test guest needs nothing of it.
func newDriver(t testing.TB, dialect Dialect, dir, owner string) *Driver {
	t.Helper()
	cfg := Config{Dialect: dialect, Dir: filepath.Join(dir, string(dialect)), Owner: owner}
	if dialect == GVisor {
		cfg.Binary = testRunsc()
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.find = func(ctx context.Context, name string) (image, error) {
		if name != driver.Provided {
			return d.storedImage(ctx, name)
		}
		return image{dir: filepath.Join(d.dir, emptyDir), release: func() {}}, nil
	}
	return d
}

// testRunsc is the runsc that the tests use; empty, which means one of the
// machine's, if scripts/runsc.sh has built none.
func testRunsc() string {
	if p := os.Getenv("HEARTH_TEST_RUNSC"); p != "" {
		return p
	}
	p, err := filepath.Abs("../../bin/tools/runsc")
	if err != nil {
		return ""
	}
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
}

// testImage returns an image for a language from the store that
// HEARTH_TEST_IMAGES names, until the end of the test.
func testImage(t testing.TB, language string) (image, bool) {
	t.Helper()
	dir := os.Getenv("HEARTH_TEST_IMAGES")
	if dir == "" {
		return image{}, false
	}
	store, err := images.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Language == language {
			d := &Driver{images: store}
			img, err := d.storedImage(t.Context(), i.Runtime)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(img.release)
			return img, true
		}
	}
	return image{}, false
}

func TestRunc(t *testing.T) {
	drivertest.Run(t, drivertest.Config{New: func(t testing.TB, dir, owner string) driver.Driver {
		return newDriver(t, Runc, dir, owner)
	}})
}

func TestGVisor(t *testing.T) {
	drivertest.Run(t, drivertest.Config{New: func(t testing.TB, dir, owner string) driver.Driver {
		return newDriver(t, GVisor, dir, owner)
	}})
}
