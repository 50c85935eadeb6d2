package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

const (
	coldStart = 50 * time.Millisecond
	coldInit  = 100 * time.Millisecond
	restoring = 60 * time.Millisecond
)

// savingDriver is a driver whose guests can be saved, which takes no time.
func savingDriver() *fakeDriver {
	return &fakeDriver{
		onSnapshot:    `{"snapshot":true}`,
		beforeCreate:  func(context.Context) error { time.Sleep(coldStart); return nil },
		onInit:        func() frame { time.Sleep(coldInit); return frame{fReady, `{"snapshot":true,"request_stream":true}`} },
		beforeRestore: func(context.Context, driver.Spec, string) error { time.Sleep(restoring); return nil },
	}
}

// snapshots returns the directories of snapshots, after what goes on has ended.
func snapshots(t *testing.T, dir string) []string {
	t.Helper()
	synctest.Wait()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// runSaving is run with snapshots on and a version that was verified.
func runSaving(t *testing.T, d *fakeDriver, change func(*Config), test func(t *testing.T, p *Pool, v *hearth.Version, dir string)) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "snapshots")
	if err := os.MkdirAll(filepath.Join(dir, "of an earlier process"), 0o755); err != nil {
		t.Fatal(err)
	}
	withDir := func(c *Config) {
		c.SnapshotDir = dir
		if change != nil {
			change(c)
		}
	}
	run(t, d, withDir, func(t *testing.T, p *Pool) {
		if left := snapshots(t, dir); len(left) != 0 {
			t.Errorf("New left %v", left)
		}
		v := version("f", 4)
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		test(t, p, v, dir)
	})
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("Close left %v", left)
	}
}

func TestRestoredInstanceServesFirstCall(t *testing.T) {
	d := savingDriver()
	runSaving(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version, dir string) {
		body, lease, err := do(t.Context(), p, v, "a")
		if err != nil || body != "a" || lease.Cold || !v.RequestStream || !lease.Ready.RequestStream {
			t.Errorf("the first call: %q, %+v, %v", body, lease, err)
		}
		if d.created != 1 || d.restored != 1 {
			t.Errorf("%d sandboxes were created and %d restored, want 1 and 1", d.created, d.restored)
		}
		p.Evict(v.Incarnation)
		_, lease, err = do(t.Context(), p, v, "b")
		if want := (hearth.Timings{Start: restoring}); err != nil || !lease.Cold || lease.Timings != want {
			t.Errorf("a cold call: %+v, %v; want timings %+v", lease, err, want)
		}
		if d.created != 1 || d.restored != 2 {
			t.Errorf("%d sandboxes were created and %d restored, want 1 and 2", d.created, d.restored)
		}
		found := snapshots(t, dir)
		if len(found) != 1 {
			t.Fatalf("the snapshots are %v, want one", found)
		}
		for path, want := range map[string]os.FileMode{dir: 0o700, found[0]: 0o700, filepath.Join(found[0], "memory"): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want mode %v", path, info.Mode(), err, want)
			}
		}
		p.Retire(v.Incarnation)
		if left := snapshots(t, dir); len(left) != 0 {
			t.Errorf("Retire left %v", left)
		}
	})
}

func TestNoSnapshot(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(d *fakeDriver, c *Config)
		created int // sandboxes that Verify needs
	}{
		"a guest that cannot": {func(d *fakeDriver, _ *Config) {
			d.onInit = func() frame { return frame{fReady, `{"request_stream":true}`} }
		}, 1},
		"a guest that refuses": {func(d *fakeDriver, _ *Config) { d.onSnapshot = `{"snapshot":false,"reason":"threads"}` }, 1},
		"a guest that breaks":  {func(d *fakeDriver, _ *Config) { d.onSnapshot = `nonsense` }, 2},
		"a full disk": {func(d *fakeDriver, _ *Config) {
			d.whileSaving = func(dir string) error {
				return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), errors.New("no space left"))
			}
		}, 2},
		"larger than its memory": {func(d *fakeDriver, c *Config) { c.MaxSnapshotBytes, d.memory = 1, 1 }, 2},
		"no room for its memory": {func(d *fakeDriver, c *Config) {
			c.MaxSnapshotBytes, d.memory = 1<<20, 2<<20
			d.whileSaving = func(string) error { panic("it is written all the same") }
		}, 1},
		"no room for what its memory may be": {func(d *fakeDriver, c *Config) {
			c.MaxSnapshotBytes = hearth.DefaultMemory - 1
			d.whileSaving = func(string) error { panic("it is written all the same") }
		}, 1},
		"slower than a cold start": {func(d *fakeDriver, _ *Config) {
			d.beforeRestore = func(context.Context, driver.Spec, string) error { time.Sleep(time.Second); return nil }
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := savingDriver()
			runSaving(t, d, func(cfg *Config) { c.change(d, cfg) }, func(t *testing.T, p *Pool, v *hearth.Version, dir string) {
				if left := snapshots(t, dir); len(left) != 0 {
					t.Errorf("snapshots are left: %v", left)
				}
				if d.created != c.created {
					t.Errorf("%d sandboxes were created, want %d", d.created, c.created)
				}
				if _, l, err := do(t.Context(), p, v, "first"); err != nil || l.Cold {
					t.Errorf("the first call: %+v, %v", l, err)
				}
				p.Evict(v.Incarnation)
				restored := d.restored
				_, l, err := do(t.Context(), p, v, "cold")
				if err != nil || !l.Cold || d.restored != restored {
					t.Errorf("a cold call: %+v, %v; restored %d times", l, err, d.restored-restored)
				}
			})
		})
	}
}

func TestUnusableSnapshotFallsBack(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(d *fakeDriver, memory string) error
		start time.Duration // with the attempt
	}{
		"corrupt": {func(_ *fakeDriver, memory string) error {
			return os.WriteFile(memory, []byte("rot"), 0o600)
		}, restoring + coldStart},
		"gone": {func(_ *fakeDriver, memory string) error { return os.Remove(memory) }, restoring + coldStart},
		"guest dies": {func(d *fakeDriver, _ string) error {
			d.onRestored = func(*fakeSandbox) *frame { return nil }
			return nil
		}, restoring + coldStart},
		"guest hangs": {func(d *fakeDriver, _ string) error {
			d.onRestored = func(s *fakeSandbox) *frame { <-s.exited; return nil }
			return nil
		}, 30*time.Second + coldStart},
	} {
		t.Run(name, func(t *testing.T) {
			d := savingDriver()
			runSaving(t, d, nil, func(t *testing.T, p *Pool, v *hearth.Version, dir string) {
				p.Evict(v.Incarnation)
				if err := c.spoil(d, filepath.Join(snapshots(t, dir)[0], "memory")); err != nil {
					t.Fatal(err)
				}
				body, l, err := do(t.Context(), p, v, "a")
				if err != nil || body != "a" || !l.Cold {
					t.Fatalf("%q, %+v, %v", body, l, err)
				}
				if want := (hearth.Timings{Start: c.start, Init: coldInit}); l.Timings != want {
					t.Errorf("timings %+v, want %+v", l.Timings, want)
				}
				if left := snapshots(t, dir); len(left) != 0 || d.created != 2 {
					t.Errorf("%v is left, %d sandboxes were created", left, d.created)
				}
				p.Evict(v.Incarnation)
				if _, _, err := do(t.Context(), p, v, "b"); err != nil || d.created != 3 {
					t.Errorf("the next: %v, %d sandboxes were created", err, d.created)
				}
			})
		})
	}
}

// Snapshots that are written at the same time do not get the same room.
func TestRoomForSnapshots(t *testing.T) {
	d := savingDriver()
	d.memory = 600 << 10
	dir := t.TempDir()
	run(t, d, func(c *Config) { c.SnapshotDir, c.MaxSnapshotBytes = dir, 1<<20 }, func(t *testing.T, p *Pool) {
		writing := 0
		d.whileSaving = func(string) error {
			writing++
			if err := p.Verify(t.Context(), version(fmt.Sprint("g", writing), 1)); err != nil {
				t.Error(err)
			}
			return nil
		}
		if err := p.Verify(t.Context(), version("f", 1)); err != nil {
			t.Fatal(err)
		}
		if n := len(snapshots(t, dir)); writing != 1 || n != 1 {
			t.Fatalf("%d snapshots were begun, %d kept; want one", writing, n)
		}
		// What was written is small: there is room for the next.
		d.whileSaving = nil
		if err := p.Verify(t.Context(), version("h", 1)); err != nil {
			t.Fatal(err)
		}
		if n := len(snapshots(t, dir)); n != 2 {
			t.Errorf("there are %d snapshots, want 2", n)
		}
	})
}

// A version that is retired while it is verified leaves no snapshot.
func TestRetiredWhileSaved(t *testing.T) {
	d := savingDriver()
	dir := t.TempDir()
	run(t, d, func(c *Config) { c.SnapshotDir = dir }, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		d.whileSaving = func(string) error { p.Retire(v.Incarnation); return nil }
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if left := snapshots(t, dir); len(left) != 0 {
			t.Errorf("snapshots are left: %v", left)
		}
	})
}

// What a call has left in memory is none of the next instance's business.
func TestUsedInstanceIsNotSaved(t *testing.T) {
	d := savingDriver()
	dir := t.TempDir()
	run(t, d, func(c *Config) { c.SnapshotDir = dir }, func(t *testing.T, p *Pool) {
		v := version("f", 1)
		if _, _, err := do(t.Context(), p, v, "a"); err != nil {
			t.Fatal(err)
		}
		if err := p.Verify(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if left := snapshots(t, dir); len(left) != 0 || d.created != 1 {
			t.Errorf("%v was saved, %d sandboxes were created", left, d.created)
		}
	})
}
