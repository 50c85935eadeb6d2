package server

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/native"
)

// probeTimeout bounds the probe of one driver.
const probeTimeout = 30 * time.Second

// newDrivers returns every driver this build has, by its name.
func newDrivers(dir, owner string, log *slog.Logger) (map[string]driver.Driver, error) {
	n, err := native.New(native.Config{Dir: filepath.Join(dir, "native"), Owner: owner, Logger: log})
	if err != nil {
		return nil, err
	}
	return map[string]driver.Driver{"native": n}, nil
}

// clean destroys what an earlier process of the same owner left.
func clean(ctx context.Context, drivers map[string]driver.Driver, log *slog.Logger) error {
	for name, d := range drivers {
		left, err := d.List(ctx)
		if err != nil {
			// A driver that does not work here has left nothing either.
			log.Warn("cannot list sandboxes", "driver", name, "err", err)
			continue
		}
		for _, sb := range left {
			if err := sb.Destroy(ctx); err != nil {
				return hearth.Errorf(hearth.CodeUnavailable, "a sandbox of an earlier run could not be destroyed: %s: %w", sb.ID(), err)
			}
		}
		if len(left) > 0 {
			log.Info("destroyed sandboxes of an earlier run", "driver", name, "count", len(left))
		}
	}
	return nil
}

// probes asks each driver once what it can do, in the background, and keeps
// the answers.
type probes struct {
	drivers map[string]driver.Driver
	log     *slog.Logger
	done    chan struct{}
	infos   []driver.Info // set before done is closed
}

func newProbes(drivers map[string]driver.Driver, log *slog.Logger) *probes {
	return &probes{drivers: drivers, log: log, done: make(chan struct{})}
}

func (p *probes) run(ctx context.Context) {
	p.infos = probe(ctx, p.drivers, p.log)
	close(p.done)
}

// Drivers waits for the probes and returns what they found, sorted by name;
// nothing if ctx ends before.
func (p *probes) Drivers(ctx context.Context) []driver.Info {
	select {
	case <-p.done:
		return p.infos
	case <-ctx.Done():
		return nil
	}
}

func probe(parent context.Context, drivers map[string]driver.Driver, log *slog.Logger) []driver.Info {
	infos := make([]driver.Info, len(drivers))
	var wg sync.WaitGroup
	for i, name := range slices.Sorted(maps.Keys(drivers)) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(parent, probeTimeout)
			defer cancel()
			info, err := drivers[name].Probe(ctx)
			if err != nil {
				if parent.Err() != nil {
					return // the server is closing
				}
				log.Error("probe failed", "driver", name, "err", err)
				info = driver.Info{Name: name, Missing: []driver.Problem{{What: "its probe failed: " + err.Error()}}}
			}
			infos[i] = info
		})
	}
	wg.Wait()
	return infos
}

// Probe tells what each driver can do on this host, without a server. dir is
// a directory it may use, such as a temporary one.
func Probe(ctx context.Context, dir string, log *slog.Logger) ([]driver.Info, error) {
	// A name of its own, as several may be asked at once; one that was killed
	// may have left something under the same name.
	drivers, err := newDrivers(dir, "probe-"+strconv.Itoa(os.Getpid()), log)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, d := range drivers {
			d.Close() //nolint:errcheck // nothing was created
		}
	}()
	if err := clean(ctx, drivers, log); err != nil {
		return nil, err
	}
	return probe(ctx, drivers, log), nil
}
