package native

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver/cgroup"
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
