package oci

import (
	"context"
	"os/exec"
	"testing"
	"time"
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
