package pool

import (
	"context"
	"log/slog"
	"testing"

	"github.com/hearthrun/hearth/driver"
)

// BenchmarkDo is what the pool itself costs a warm call.
func BenchmarkDo(b *testing.B) {
	d := &fakeDriver{script: echo}
	p := New(Config{
		Drivers: map[string]driver.Driver{"fake": d}, Artifacts: nowhere{}, Logs: nowhere{}, Logger: slog.New(slog.DiscardHandler),
	})
	defer p.Close(b.Context()) //nolint:errcheck // nothing runs
	v := version("f", 16)
	nothing := func(context.Context, *Lease) error { return nil }
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Do(b.Context(), v, nothing); err != nil {
			b.Fatal(err)
		}
	}
}
