package drivertest

import (
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func ownerCases() []testCase {
	return []testCase{
		{"Owner/list", listFindsOwn},
		{"Owner/others", othersAreInvisible},
		{"Owner/restart", restartFindsAndDestroys},
	}
}

func ids(list []driver.Sandbox) map[string]bool {
	m := map[string]bool{}
	for _, s := range list {
		m[s.ID()] = true
	}
	return m
}

func listFindsOwn(t *testing.T, e *env) {
	a, b := e.create(t), e.create(t)
	list, err := e.driver.List(e.context(t))
	if found := ids(list); err != nil || len(list) != 2 || !found[a.ID()] || !found[b.ID()] {
		t.Errorf("List has %v, %v; want %s and %s", found, err, a.ID(), b.ID())
	}
	// A sandbox whose guest has exited exists until it is destroyed.
	a.say(t, request{Op: "exit"})
	a.wait(t)
	if list, err := e.driver.List(e.context(t)); err != nil || !ids(list)[a.ID()] {
		t.Errorf("List has lost a sandbox whose guest has exited: %v, %v", ids(list), err)
	}
	destroy(t, a)
	list, err = e.driver.List(e.context(t))
	if found := ids(list); err != nil || len(list) != 1 || !found[b.ID()] {
		t.Errorf("List has %v, %v; want %s", found, err, b.ID())
	}
	// Destroy by way of List is the same Destroy.
	for _, s := range list {
		destroy(t, s)
	}
	if x := b.wait(t); !x.Destroyed {
		t.Errorf("Exit is %+v, want Destroyed", x)
	}
}

func othersAreInvisible(t *testing.T, e *env) {
	ours := e.create(t)
	other := &env{cfg: e.cfg, info: e.info, binary: e.binary, dir: t.TempDir(), owner: "owner-" + randomName()}
	other.open(t)
	if list, err := other.driver.List(e.context(t)); err != nil || len(list) > 0 {
		t.Errorf("another owner sees %d of our sandboxes, %v", len(list), err)
	}
	spec := other.spec()
	spec.ID = ours.ID() // unique for an owner only
	s, err := other.driver.Create(e.context(t), spec)
	if err != nil {
		t.Errorf("another owner cannot use the ID that is ours: %v", err)
	} else {
		other.dial(t, s).echo(t)
		list, err := e.driver.List(e.context(t))
		if err != nil || len(list) != 1 {
			t.Errorf("we see %d sandboxes, %v; want only our own", len(list), err)
		}
		destroy(t, s)
	}
	other.close(t)
	ours.echo(t)
}

func restartFindsAndDestroys(t *testing.T, e *env) {
	alive, dead, empty := e.create(t), e.create(t), e.start(t, e.spec())
	alive.echo(t)
	alive.do(t, request{Op: "spawn", N: 2})
	alive.do(t, request{Op: "write", Path: "/tmp/file", N: 1 << 20})
	dead.say(t, request{Op: "exit", N: 3})
	dead.wait(t)
	if err := e.driver.Close(); err != nil {
		t.Fatalf("Close with sandboxes alive: %v", err)
	}
	e.open(t)
	list, err := e.driver.List(e.context(t))
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	found := ids(list)
	for _, s := range []driver.Sandbox{alive, empty} {
		if !found[s.ID()] {
			t.Errorf("after the restart List does not have %s: %v", s.ID(), found)
		}
	}
	for _, s := range list {
		_, err := s.Dial(e.context(t))
		wantCode(t, "Dial of a sandbox that came from List", err, hearth.CodeConflict)
		destroy(t, s)
		destroy(t, s)
		if x, err := s.Wait(e.context(t)); err != nil || s.ID() != dead.ID() && !x.Destroyed {
			t.Errorf("Wait of a sandbox that came from List: %+v, %v", x, err)
		}
	}
	if list, err := e.driver.List(e.context(t)); err != nil || len(list) > 0 {
		t.Errorf("after all were destroyed List has %d, %v", len(list), err)
	}
	e.create(t).echo(t)
}
