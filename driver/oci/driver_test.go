package oci

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/drivertest"
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

// testRunsc is the runsc that scripts/runsc.sh has built; empty, which means
// one of the machine's, without it.
func testRunsc() string {
	p, err := filepath.Abs("../../bin/tools/runsc")
	if err != nil {
		return ""
	}
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
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
