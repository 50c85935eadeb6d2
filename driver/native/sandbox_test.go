package native

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver/cgroup"

	"github.com/hearthrun/hearth/driver"
)

// stuck is a group whose processes do not freeze.
type stuck struct {
	cgroup.Group
	freezing chan struct{} // gets a value when Freeze begins
}

func (g *stuck) Freeze(ctx context.Context, _ bool) error {
	g.freezing <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

// TestFreezeEnds bounds how long Pause waits, and has Destroy end it.
func TestFreezeEnds(t *testing.T) {
	d, err := New(Config{Dir: t.TempDir(), Owner: "freeze"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	newSandbox := func() (*sandbox, *stuck) {
		s, g := d.orphan("freeze"), &stuck{Group: cgroup.None{}.Open(""), freezing: make(chan struct{}, 1)}
		s.group = g
		return s, g
	}
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSandbox()
		if err := s.Pause(t.Context()); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("Pause: %v", err)
		}
	})
	s, g := newSandbox()
	paused := make(chan error, 1)
	go func() { paused <- s.Pause(context.WithoutCancel(t.Context())) }()
	<-g.freezing
	if err := s.Destroy(t.Context()); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	if err := <-paused; hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("Pause: %v", err)
	}
}

// TestStatsOfManyMappings: a function cannot keep the server busy with adding up
// what it has mapped.
func TestStatsOfManyMappings(t *testing.T) {
	d := newDriver(t)
	if memory, _, _, _ := d.cgroups.Enforces(); !memory {
		t.Skip("nothing else tells the memory of a sandbox here")
	}
	runtime := pythons(t, d)[0]
	it, _ := d.interpreterFor(t.Context(), runtime)
	script := `
import ctypes, os, time
c = ctypes.CDLL(None)
c.mmap.restype = ctypes.c_void_p
at = c.mmap(None, ctypes.c_size_t(8192 * 20000), 3, 0x22, -1, ctypes.c_long(0))
for i in range(20000):
    c.mprotect(ctypes.c_void_p(at + 8192 * i), ctypes.c_size_t(4096), 1)
for i in range(30):
    if os.fork() == 0:
        break
else:
    print("ready", flush=True)
time.sleep(600)
`
	var out buffer
	s, err := d.Create(t.Context(), driver.Spec{
		ID: "many", Runtime: runtime, Command: []string{it.Exe, "-c", script}, Stdout: &out,
		Limits: driver.Limits{Memory: 2 << 30},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy(context.Background()) //nolint:errcheck // newDriver looks for what is left
	for end := time.Now().Add(time.Minute); !strings.Contains(out.String(), "ready"); <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not get ready")
		}
	}
	began := time.Now()
	st, err := s.Stats(t.Context())
	if err != nil || st.PSS != 0 || st.Memory == 0 || st.PIDs < 30 {
		t.Errorf("%+v, %v after %s", st, err, time.Since(began))
	}
}
