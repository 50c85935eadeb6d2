package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/docker"
	"github.com/hearthrun/hearth/driver/native"
	"github.com/hearthrun/hearth/driver/oci"
	"github.com/hearthrun/hearth/images"
)

// probeTimeout bounds the probe of one driver.
const probeTimeout = 30 * time.Second

// buildImages is what drivers advise that have no image.
const buildImages = "hearth images build"

// probeInterval is how long the result of a probe is not asked for again.
const probeInterval = 2 * time.Second

// driverConfig is what drivers are made with.
type driverConfig struct {
	// dir is where each keeps a directory of its own.
	dir string
	// owner marks what they create.
	owner string
	// images is the directory of base images.
	images string
	// probe tells that nothing is to be created, not even that directory.
	probe bool
	// dockerHost and dockerRuntime are those of Config.
	dockerHost, dockerRuntime string
	log                       *slog.Logger
}

// newDrivers returns every driver this build has, by its name. One without an
// engine or images is no error: its probe tells.
func newDrivers(c driverConfig) (map[string]driver.Driver, error) {
	n, err := native.New(native.Config{Dir: filepath.Join(c.dir, "native"), Owner: c.owner, Logger: c.log})
	if err != nil {
		return nil, err
	}
	store := images.At(c.images)
	if !c.probe {
		if s, err := images.Open(c.images); err != nil {
			c.log.Error("functions can use no base images", "err", err)
		} else {
			store = s
		}
	}
	d, err := docker.New(docker.Config{
		Dir: filepath.Join(c.dir, "docker"), Owner: c.owner, Images: store,
		Host: c.dockerHost, OCIRuntime: c.dockerRuntime, Logger: c.log,
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	drivers := map[string]driver.Driver{"native": n, "docker": d}
	for _, dialect := range []oci.Dialect{oci.Runc, oci.GVisor} {
		o, err := oci.New(oci.Config{
			Dialect: dialect, Dir: filepath.Join(c.dir, string(dialect)), Owner: c.owner, Images: store, Logger: c.log,
		})
		if err != nil {
			for _, made := range drivers {
				err = errors.Join(err, made.Close())
			}
			return nil, err
		}
		drivers[string(dialect)] = o
	}
	return drivers, nil
}

// probes asks drivers what they can do and keeps the answers. Its methods may be
// called from many goroutines.
type probes struct {
	log     *slog.Logger
	drivers map[string]*probed
	names   []string // sorted
}

// probed is one driver and what its latest probe found.
type probed struct {
	driver driver.Driver
	name   string

	// turn is held by the one probe that runs.
	turn chan struct{}

	mu   sync.Mutex
	info *driver.Info // guarded by mu; nil before the first probe
	at   time.Time    // guarded by mu; the end of the probe
}

func newProbes(drivers map[string]driver.Driver, log *slog.Logger) *probes {
	p := &probes{log: log, drivers: map[string]*probed{}, names: slices.Sorted(maps.Keys(drivers))}
	for name, d := range drivers {
		p.drivers[name] = &probed{driver: d, name: name, turn: make(chan struct{}, 1)}
	}
	return p
}

// Drivers returns what the latest probe of each driver found, sorted by name,
// and probes those that were not yet. A driver that is not probed when ctx ends
// is left out.
func (p *probes) Drivers(ctx context.Context) []driver.Info {
	return p.collect(ctx, p.names, func(d *probed) bool { return d.known() == nil })
}

// Refresh probes the named driver again, or all if the name is empty, except
// those probed in the last probeInterval. Then it returns the same as Drivers.
func (p *probes) Refresh(ctx context.Context, name string) []driver.Info {
	return p.collect(ctx, p.names, func(d *probed) bool {
		return d.known() == nil || (name == "" || d.name == name) && d.old()
	})
}

// collect returns what is known of the drivers after probing those that are due.
func (p *probes) collect(ctx context.Context, names []string, due func(*probed) bool) []driver.Info {
	var wg sync.WaitGroup
	for _, name := range names {
		if d := p.drivers[name]; due(d) {
			wg.Go(func() { d.refresh(ctx, p.log, due) })
		}
	}
	wg.Wait()
	infos := []driver.Info{}
	for _, name := range names {
		if info := p.drivers[name].known(); info != nil {
			infos = append(infos, *info)
		}
	}
	return infos
}

func (d *probed) known() *driver.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info
}

func (d *probed) old() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.at) >= probeInterval
}

// refresh probes the driver, unless another does so meanwhile and it is not due
// any more.
func (d *probed) refresh(ctx context.Context, log *slog.Logger, due func(*probed) bool) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return
	}
	if !due(d) {
		return
	}
	info, ok := probe(ctx, d.name, d.driver, log)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.info != nil && d.info.Works != info.Works {
		log.Info("a driver changed", "driver", d.name, "works", info.Works)
	}
	d.info, d.at = &info, time.Now()
}

// probe asks one driver. It returns false if ctx ended first.
func probe(parent context.Context, name string, d driver.Driver, log *slog.Logger) (driver.Info, bool) {
	ctx, cancel := context.WithTimeout(parent, probeTimeout)
	defer cancel()
	info, err := d.Probe(ctx)
	if parent.Err() != nil {
		return info, false // what it found may be for lack of time
	}
	if err != nil {
		log.Error("probe failed", "driver", name, "err", err)
		info = driver.Info{Name: name, Missing: []driver.Problem{{What: "its probe failed: " + err.Error()}}}
	}
	if info.Runtimes == nil {
		info.Runtimes = []driver.Runtime{}
	}
	if info.Works {
		info.Limitations = append(slices.Clone(info.Limitations), absent(info)...)
	}
	return info, true
}

// absent tells which languages a driver that works has no runtime for, and how
// to get one, unless the driver has said that it has no image at all.
func absent(info driver.Info) (problems []driver.Problem) {
	if len(info.Runtimes) == 0 && slices.ContainsFunc(info.Limitations, func(p driver.Problem) bool { return p.Remedy == buildImages }) {
		return nil
	}
	for _, l := range []struct{ language, program, pkg string }{
		{"python", "python3", "python3"}, {"nodejs", "node", "nodejs"},
	} {
		if slices.ContainsFunc(info.Runtimes, func(r driver.Runtime) bool { return r.Language == l.language }) {
			continue
		}
		remedy := buildImages + " " + l.language
		if info.Name == "native" {
			remedy = "put " + l.program + " on the PATH of hearth, for example with apt-get install " + l.pkg
		}
		problems = append(problems, driver.Problem{What: "no runtime for " + l.language, Remedy: remedy})
	}
	return problems
}

// Probe tells what each driver can do on this host, without a server. Of cfg it
// uses the fields that drivers are made with; nothing but the base images of
// cfg.DataDir is looked at. What drivers need to write goes to dir, such as a
// temporary directory.
func Probe(ctx context.Context, cfg Config, dir string) ([]driver.Info, error) {
	// A name of its own, as several may be asked at once; one that was killed
	// may have left something under the same name.
	c := cfg.drivers(dir, "probe-"+strconv.Itoa(os.Getpid()))
	c.probe = true
	drivers, err := newDrivers(c)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, d := range drivers {
			d.Close() //nolint:errcheck // nothing was created
		}
	}()
	drivers, _ = cleaning(drivers, cfg.Logger)
	return newProbes(drivers, cfg.Logger).Drivers(ctx), nil
}
