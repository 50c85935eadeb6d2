package oci

import (
	"bytes"
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth/driver"
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
