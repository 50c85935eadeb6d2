package oci

import (
	"bytes"
	"context"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
)

// watched returns a sandbox that watch can serve, and a function that has its
// first process send a message.
func watched(t *testing.T, d *Driver) (s *sandbox, send func(kind byte, v byte), hangUp func()) {
	t.Helper()
	control, inside, err := socketPair("control")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s = d.newSandbox("watched")
	s.control, s.runtime = control, supervise(cmd)
	t.Cleanup(func() { _ = control.Close() })
	send = func(kind, v byte) {
		t.Helper()
		if _, err := inside.Write([]byte{kind, v, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	return s, send, func() { _ = inside.Close() }
}

// TestStartedAgain has a first process that was taken over say many times that
// the guest was started, or was not.
func TestStartedAgain(t *testing.T) {
	s, send, hangUp := watched(t, newDriver(t, Runc, t.TempDir(), "again"))
	for range 8 {
		send(msgStarted, 0)
		send(msgError, 2)
	}
	hangUp()
	go s.watch()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.Wait(ctx); err != nil {
		t.Fatalf("the sandbox does not end: %v", err)
	}
	if err := <-s.started; err != nil {
		t.Errorf("the first message does not count: %v", err)
	}
}

// TestImageEnvironment checks that what an image sets reaches the guest.
func TestImageEnvironment(t *testing.T) {
	img, ok := testImage(t, "python")
	if !ok {
		t.Skip("HEARTH_TEST_IMAGES names no images")
	}
	if !slices.ContainsFunc(img.env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		t.Errorf("the store's image sets %q, without PATH", img.env)
	}
	d := newDriver(t, Runc, t.TempDir(), "environment")
	t.Cleanup(func() { _ = d.Close() })
	if err := d.usable(); err != nil {
		t.Skip(err)
	}
	img.env = append(slices.Clone(img.env), "GREETING=of the image", "NAME=of the image", "HEARTH_FD=7")
	img.release = func() {} // the test's cleanup does
	d.find = func(context.Context, string) (image, error) { return img, nil }
	var out bytes.Buffer
	s, err := d.Create(t.Context(), driver.Spec{
		ID: "environment", Runtime: "python", Command: []string{"/bin/sh", "-c", "env"},
		Env: map[string]string{"NAME": "of the spec"}, Stdout: &out,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Destroy(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	if _, err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(out.String(), "\n")
	for _, want := range []string{"GREETING=of the image", "NAME=of the spec", "HEARTH_FD=3"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not among %q", want, got)
		}
	}
}

// stuck is a group whose processes do not freeze, and do not die before a time.
type stuck struct {
	cgroup.Group
	freezing chan struct{} // gets a value when Freeze begins
	until    time.Time
	kills    int
}

func (g *stuck) Freeze(ctx context.Context, _ bool) error {
	g.freezing <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func (g *stuck) Procs() []int {
	if time.Now().Before(g.until) {
		return []int{1}
	}
	return nil
}

func (g *stuck) Kill() { g.kills++ }

func newStuck() *stuck {
	return &stuck{Group: cgroup.None{}.Open(""), freezing: make(chan struct{}, 1)}
}

// TestKillRest kills less and less often what does not die.
func TestKillRest(t *testing.T) {
	d := newDriver(t, Runc, t.TempDir(), "rest")
	var log bytes.Buffer
	d.log = slog.New(slog.NewTextHandler(&log, nil))
	synctest.Test(t, func(t *testing.T) {
		s, g := d.newSandbox("rest"), newStuck()
		g.until = time.Now().Add(time.Hour)
		s.group = g
		s.killRest()
		if late := time.Since(g.until); late > killPause || g.kills < 3600 || g.kills > 3700 {
			t.Errorf("%d attempts, %s late", g.kills, late)
		}
	})
	if n := strings.Count(log.String(), "do not die"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &log)
	}
}

// TestFreezeEnds bounds how long Pause waits, and has Destroy end it.
func TestFreezeEnds(t *testing.T) {
	d := newDriver(t, Runc, t.TempDir(), "freeze")
	synctest.Test(t, func(t *testing.T) {
		s := d.newSandbox("freeze")
		s.group = newStuck()
		if err := s.Pause(t.Context()); hearth.ErrorCode(err) != hearth.CodeUnavailable {
			t.Errorf("Pause: %v", err)
		}
	})
	s, g := d.newSandbox("freeze"), newStuck()
	s.group = g
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
