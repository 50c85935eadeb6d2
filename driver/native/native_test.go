package native

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func newDriver(t testing.TB) *Driver {
	t.Helper()
	d, err := New(Config{Dir: filepath.Join(t.TempDir(), "native"), Owner: "test-" + filepath.Base(t.TempDir()) + "-" + time.Now().Format("150405.000000")[7:], Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// run runs a command in a sandbox and returns what it wrote.
func run(t *testing.T, d *Driver, spec driver.Spec) (string, driver.Exit) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out buffer
	spec.Stdout, spec.Stderr = &out, &out
	if spec.Runtime == "" {
		spec.Runtime = "provided"
	}
	s, err := d.Create(ctx, spec)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	exit, err := s.Wait(ctx)
	if err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := s.Destroy(ctx); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	return out.String(), exit
}

func TestCommand(t *testing.T) {
	d := newDriver(t)
	out, exit := run(t, d, driver.Spec{ID: "a", Command: []string{"/bin/sh", "-c", "id; ls -la / /dev /tmp /etc; cat /proc/self/status /proc/mounts; ps aux; exit 3"}})
	t.Log(out)
	if exit.Code != 3 {
		t.Errorf("exit: %+v", exit)
	}
}

func TestProbe(t *testing.T) {
	d := newDriver(t)
	for range 2 {
		began := time.Now()
		info, err := d.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: %+v", time.Since(began), info)
	}
	e, err := New(Config{Dir: d.dir, Owner: "again"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	began := time.Now()
	_, _ = e.Probe(t.Context())
	t.Logf("cached: %v", time.Since(began))
}

func TestPhases(t *testing.T) {
	d := newDriver(t)
	for _, policy := range []string{"none", "internet"} {
		for i := range 6 {
			began := monotonic()
			s, err := d.Create(t.Context(), driver.Spec{ID: "a", Runtime: "provided", Command: []string{"/bin/sleep", "100"}, Egress: hearth.Egress(policy)})
			if err != nil {
				t.Fatal(err)
			}
			end := monotonic()
			p := s.(*sandbox).phases
			began2 := time.Now()
			if err := s.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Log(policy, i, "helper's main", p[0]-began, "assembled", p[1]-p[0], "guest started", p[2]-p[1], "Create returns", end-p[2], "total", end-began, "destroy", time.Since(began2))
		}
	}
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}
