package native

import (
	"context"

	"github.com/hearthrun/hearth/driver"
)

func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	return driver.Info{Name: "native"}, nil
}
