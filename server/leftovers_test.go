package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth/driver"
)

// leavingDriver has sandboxes, of which some cannot be destroyed yet.
type leavingDriver struct {
	driver.Driver
	mu    sync.Mutex
	away  bool            // it cannot list or create
	there map[string]bool // by id; true for those that can be destroyed
	log   []string        // what was done
}

func leaving(ids ...string) *leavingDriver {
	d := &leavingDriver{there: map[string]bool{}}
	for _, id := range ids {
		d.there[id] = true
	}
	return d
}

type leftSandbox struct {
	driver.Sandbox
	d  *leavingDriver
	id string
}

func (s leftSandbox) ID() string { return s.id }

// destroyTakes is how long each Destroy takes.
const destroyTakes = 20 * time.Second

func (s leftSandbox) Destroy(context.Context) error {
	time.Sleep(destroyTakes) // of the bubble's clock
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if !s.d.there[s.id] {
		return errors.New("its processes do not end")
	}
	delete(s.d.there, s.id)
	s.d.log = append(s.d.log, "destroy "+s.id)
	return nil
}

var errAway = errors.New("the engine is away")

func (d *leavingDriver) List(context.Context) (list []driver.Sandbox, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return nil, errAway
	}
	for id := range d.there {
		list = append(list, leftSandbox{d: d, id: id})
	}
	return list, nil
}

func (d *leavingDriver) Create(_ context.Context, spec driver.Spec) (driver.Sandbox, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.there[spec.ID] = true
	d.log = append(d.log, "create "+spec.ID)
	return leftSandbox{d: d, id: spec.ID}, nil
}

func (d *leavingDriver) Probe(context.Context) (driver.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, "probe")
	return driver.Info{Works: !d.away}, nil
}

func (d *leavingDriver) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *leavingDriver) left() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.there)
}

func (d *leavingDriver) done(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.log, want) {
		t.Errorf("done: %q, want %q", d.log, want)
	}
}

var quiet = slog.New(slog.DiscardHandler)

// TestLeftovers: the server starts although one sandbox cannot be destroyed and
// one driver is away, and it tries again.
func TestLeftovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := leaving("stuck"), leaving("later")
		for i := range destroysAtATime - 1 {
			a.there["a-"+strconv.Itoa(i)] = true
		}
		a.there["stuck"], b.away = false, true
		_, all := cleaning(map[string]driver.Driver{"a": a, "b": b}, quiet)
		background, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		begun := time.Now()
		clean(t.Context(), background, all, &wg)
		if took := time.Since(begun); took != destroyTakes {
			t.Errorf("it took %v to destroy sandboxes that take %v each", took, destroyTakes)
		}
		if a.left() != 1 || b.left() != 1 {
			t.Errorf("%d and %d are left, want the one that is stuck and the one that cannot be listed", a.left(), b.left())
		}
		a.set(func() { a.there["stuck"] = true })
		b.set(func() { b.away = false })
		wg.Wait() // nothing is left to do
		cancel()
		if a.left() != 0 || b.left() != 0 {
			t.Errorf("%d and %d are left in the end", a.left(), b.left())
		}
	})
}

// TestLeftoversEnd: what is tried again ends with the server.
func TestLeftoversEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := leaving()
		d.away = true
		_, all := cleaning(map[string]driver.Driver{"d": d}, quiet)
		background, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		clean(t.Context(), background, all, &wg)
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

// TestLeftoversFirst: what is left goes before anything is made, as soon as the
// driver works, and what this process makes stays.
func TestLeftoversFirst(t *testing.T) {
	for _, first := range []string{"create", "probe"} {
		t.Run(first, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := leaving("old")
				d.away = true
				drivers, all := cleaning(map[string]driver.Driver{"d": d}, quiet)
				create := func(id string) {
					t.Helper()
					if _, err := drivers["d"].Create(t.Context(), driver.Spec{ID: id}); err != nil {
						t.Fatal(err)
					}
				}
				create("early") // some driver makes sandboxes all the same
				d.set(func() { d.away, d.log = false, nil })
				if first == "probe" {
					if _, err := drivers["d"].Probe(t.Context()); err != nil {
						t.Fatal(err)
					}
					d.done(t, "destroy old", "probe")
					return
				}
				create("new")
				d.done(t, "destroy old", "create new")
				var wg sync.WaitGroup
				clean(t.Context(), t.Context(), all, &wg)
				wg.Wait()
				create("newer")
				d.done(t, "destroy old", "create new", "create newer")
			})
		})
	}
}

// restorer is a driver that can restore.
type restorer struct{ *leavingDriver }

func (r restorer) Restore(ctx context.Context, spec driver.Spec, _ string) (driver.Sandbox, error) {
	return r.Create(ctx, spec)
}

// TestLeftoversRestore: drivers that can restore still can, no others.
func TestLeftoversRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := leaving("old")
		drivers, _ := cleaning(map[string]driver.Driver{"can": restorer{d}, "cannot": leaving()}, quiet)
		if _, ok := drivers["cannot"].(driver.Restorer); ok {
			t.Error("a driver that cannot restore says that it can")
		}
		r, ok := drivers["can"].(driver.Restorer)
		if !ok {
			t.Fatal("a driver that can restore does not say so")
		}
		if _, err := r.Restore(t.Context(), driver.Spec{ID: "new"}, ""); err != nil {
			t.Fatal(err)
		}
		d.done(t, "destroy old", "create new")
	})
}
