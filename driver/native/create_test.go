package native

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
)

func sleeper(id string) driver.Spec {
	return driver.Spec{ID: id, Runtime: "provided", Command: []string{"/bin/sleep", "1000"}}
}

// TestListDuringCreate destroys whatever List returns while sandboxes are made:
// neither those half made nor this process, whose thread is in their group for
// a moment, may suffer.
func TestListDuringCreate(t *testing.T) {
	d := newDriver(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			list, err := d.List(t.Context())
			if err != nil {
				t.Error(err)
			}
			for _, s := range list {
				if err := s.Destroy(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for i := range 20 {
		s, err := d.Create(t.Context(), sleeper(fmt.Sprintf("s-%d", i)))
		if err != nil {
			t.Error(err)
			continue
		}
		if err := s.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
	}
	stop()
	wg.Wait()
}

// TestCreateLeftOver: Create of an id that an earlier process left fails at
// once, and what was left can still be found and destroyed.
func TestCreateLeftOver(t *testing.T) {
	d := newDriver(t)
	s, err := d.Create(t.Context(), sleeper("same"))
	if err != nil {
		t.Fatal(err)
	}
	next := &Driver{ // the next server: it knows nothing of the sandbox
		dir: d.dir, log: d.log, cgroups: d.cgroups, helper: d.helper, helperPath: d.helperPath, filter: d.filter,
		root: d.root, system: d.system, etc: d.etc, users: d.users, sandboxes: map[string]*sandbox{}, taken: map[uint32]bool{},
	}
	for _, what := range []string{"state file", "control group"} {
		if _, none := d.cgroups.(cgroup.None); none && what == "control group" {
			continue
		}
		start := time.Now()
		if _, err := next.Create(t.Context(), sleeper("same")); hearth.ErrorCode(err) != hearth.CodeConflict {
			t.Errorf("%s left: got %v, want a conflict", what, err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s left: the error took %v", what, d)
		}
		if list, err := next.List(t.Context()); err != nil || len(list) != 1 {
			t.Errorf("%s left: List returned %v, %v", what, list, err)
		}
		if err := d.forget("same"); err != nil {
			t.Error(err)
		}
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}
