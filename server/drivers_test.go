package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/images"
)

// probeDriver is a driver that can only be probed.
type probeDriver struct {
	driver.Driver
	mu     sync.Mutex
	probes int
	info   driver.Info
	err    error
	takes  time.Duration
}

func (d *probeDriver) Probe(ctx context.Context) (driver.Info, error) {
	d.mu.Lock()
	d.probes++
	info, err := d.info, d.err
	d.mu.Unlock()
	select {
	case <-time.After(d.takes):
		return info, err
	case <-ctx.Done():
		return driver.Info{Name: info.Name}, ctx.Err()
	}
}

func (d *probeDriver) change(info driver.Info) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info = info
}

func (d *probeDriver) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.probes
}

func works(infos []driver.Info) string {
	var names []string
	for _, i := range infos {
		if i.Works {
			names = append(names, i.Name)
		}
	}
	return strings.Join(names, " ")
}

func TestProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &probeDriver{info: driver.Info{Name: "a", Works: true}, takes: time.Second}
		b := &probeDriver{info: driver.Info{Name: "b", Missing: []driver.Problem{{What: "a daemon"}}}, takes: time.Second}
		p := newProbes(map[string]driver.Driver{"b": b, "a": a}, slog.New(slog.DiscardHandler))

		// Who asks first may go away; all others get one probe.
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if infos := p.Drivers(gone); len(infos) != 0 {
			t.Errorf("asked in vain, got %+v", infos)
		}
		before := a.count()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if infos := p.Drivers(t.Context()); len(infos) != 2 || works(infos) != "a" {
					t.Errorf("got %+v", infos)
				}
			})
		}
		wg.Wait()
		if n := a.count() - before; n != 1 {
			t.Errorf("%d probes for ten questions at once", n)
		}

		// Again on demand, but only the one that was named, and not too often.
		b.change(driver.Info{Name: "b", Works: true})
		n := b.count()
		if p.Refresh(t.Context(), "b"); b.count() != n {
			t.Error("probed again at once")
		}
		time.Sleep(probeInterval) // of the bubble's clock
		na := a.count()
		for range 10 {
			wg.Go(func() {
				if got := works(p.Refresh(t.Context(), "b")); got != "a b" {
					t.Errorf("after the change %q work", got)
				}
			})
		}
		wg.Wait()
		if b.count() != n+1 || a.count() != na {
			t.Errorf("%d probes of b, %d of a", b.count()-n, a.count()-na)
		}
		if got := works(p.Drivers(t.Context())); got != "a b" || b.count() != n+1 {
			t.Errorf("%q work, %d probes", got, b.count()-n)
		}
		time.Sleep(probeInterval)
		if p.Refresh(t.Context(), ""); b.count() != n+2 || a.count() != na+1 {
			t.Errorf("all again: %d probes of b, %d of a", b.count()-n, a.count()-na)
		}
		if infos := p.Refresh(t.Context(), "nosuch"); len(infos) != 2 {
			t.Errorf("got %+v", infos)
		}
	})
}

// TestProbeResults: a probe that fails is a driver that does not work; languages
// without a runtime are told with their remedy.
func TestProbeResults(t *testing.T) {
	python := []driver.Runtime{{Name: "python3.11", Language: "python"}}
	p := newProbes(map[string]driver.Driver{
		"broken": &probeDriver{info: driver.Info{Name: "broken"}, err: errors.New("no kernel")},
		"docker": &probeDriver{info: driver.Info{Name: "docker", Works: true, Runtimes: python}},
		"native": &probeDriver{info: driver.Info{Name: "native", Works: true}},
		"runc": &probeDriver{info: driver.Info{
			Name: "runc", Works: true,
			Limitations: []driver.Problem{{What: "there is no image", Remedy: "hearth images build"}},
		}},
	}, slog.New(slog.DiscardHandler))
	got := map[string][]string{}
	for _, i := range p.Drivers(t.Context()) {
		for _, list := range [][]driver.Problem{i.Missing, i.Limitations} {
			for _, l := range list {
				got[i.Name] = append(got[i.Name], l.What+"; "+l.Remedy)
			}
		}
		if i.Runtimes == nil {
			t.Errorf("%s: its runtimes become null in JSON", i.Name)
		}
	}
	want := map[string][]string{
		"broken": {"its probe failed: no kernel; "},
		"docker": {"no runtime for nodejs; hearth images build nodejs"},
		"runc":   {"there is no image; hearth images build"},
		"native": {
			"no runtime for python; put python3 on the PATH of hearth, for example with apt-get install python3",
			"no runtime for nodejs; put node on the PATH of hearth, for example with apt-get install nodejs",
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
}

// TestNewDrivers: neither an address that is none nor a directory of images that
// cannot be used keeps other drivers from working.
func TestNewDrivers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	drivers, err := newDrivers(driverConfig{
		dir: t.TempDir(), owner: "test", images: filepath.Join(file, "images"), dockerHost: "localhost:2375", log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range drivers {
		if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%s: List: %v, %v", name, list, err)
		}
		if err := d.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
	_, err = images.At(filepath.Join(file, "images")).List(t.Context())
	if hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Errorf("the images of a directory that cannot be used: %v", err)
	}
}
