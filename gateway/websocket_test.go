package gateway

import (
	"context"

	"github.com/hearthrun/hearth"
)

func (f *fakePool) Hold(ctx context.Context, v *hearth.Version, fn func(context.Context, Instance) error) error {
	return f.Do(ctx, v, fn)
}

func (o *origin) Hold(ctx context.Context, v *hearth.Version, fn func(context.Context, Instance) error) error {
	return o.Do(ctx, v, fn)
}
