package native_test

import (
	"path/filepath"
	"testing"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/drivertest"
	"github.com/hearthrun/hearth/driver/native"
)

func TestDriver(t *testing.T) {
	drivertest.Run(t, drivertest.Config{New: func(t testing.TB, dir, owner string) driver.Driver {
		d, err := native.New(native.Config{Dir: filepath.Join(dir, "native"), Owner: owner})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}})
}
