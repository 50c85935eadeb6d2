package drivertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func slotCases() []testCase {
	return []testCase{
		{"Slot/bad", badSlots},
		{"Slot/files", slotShowsFiles},
		{"Slot/read-only", slotIsReadOnly},
		{"Slot/undialed", slotIsFilledBeforeDial},
		{"Slot/refused", slotRefusals},
		{"Slot/apart", slotsAreApart},
		{"Slot/destroyed", slotOfTheDestroyed},
		{"Slot/destroy meanwhile", slotDestroyedMeanwhile},
		{"Slot/restart", slotsAfterRestart},
	}
}

// slotted returns the description of a sandbox with two slots, and where they
// are. It skips the case if the driver has none.
func (e *env) slotted(t *testing.T) (spec driver.Spec, one, two string) {
	t.Helper()
	one, two = e.cfg.slots+"/one", e.cfg.slots+"/deep/two"
	spec = e.spec()
	spec.Slots = []string{one, two}
	s, err := e.driver.Create(e.context(t), spec)
	if hearth.ErrorCode(err) == hearth.CodeUnsupported {
		t.Skipf("the driver %s has no slots: %v", e.info.Name, err)
	}
	if err != nil {
		t.Fatalf("Create with slots: %v", err)
	}
	if _, ok := s.(driver.Mounter); !ok {
		t.Errorf("the driver made slots that cannot be filled")
	}
	destroy(t, s)
	return spec, one, two
}

// mount fills a slot and fails the case if that fails.
func (e *env) mount(t *testing.T, s driver.Sandbox, source, target string) {
	t.Helper()
	if err := e.tryMount(t, s, source, target); err != nil {
		t.Fatalf("Mount: %v (hint: %s)", err, hearth.AsError(err).Hint)
	}
}

func (e *env) tryMount(t *testing.T, s driver.Sandbox, source, target string) error {
	t.Helper()
	if g, ok := s.(*guest); ok {
		s = g.Sandbox
	}
	return s.(driver.Mounter).Mount(e.context(t), driver.Mount{Source: source, Target: target})
}

// source makes a directory of the files of a function.
func (e *env) source(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program, err := os.ReadFile(filepath.Join(e.binary, "testguest"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"data": "from the host", "sub/deep/data": "further down", "program": string(program), "text": string(program),
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chmod(filepath.Join(dir, "program"), 0o555),
		os.Mkdir(filepath.Join(dir, "empty"), 0o755),
		os.Symlink("sub/deep/data", filepath.Join(dir, "link")),
		os.Symlink("/no/such/file", filepath.Join(dir, "dangling")),
		os.Symlink("..", filepath.Join(dir, "sub", "up")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// linksOf counts the names that the files of a source have, on the whole host.
func linksOf(t *testing.T, source string) (n uint64) {
	t.Helper()
	for _, name := range []string{"data", "sub/deep/data", "program"} {
		info, err := os.Stat(filepath.Join(source, name))
		if err != nil {
			t.Fatalf("a file of the host is gone: %v", err)
		}
		n += uint64(info.Sys().(*syscall.Stat_t).Nlink) //nolint:unconvert // not of this type everywhere
	}
	return n
}

func badSlots(t *testing.T, e *env) {
	_, one, _ := e.slotted(t)
	for name, slots := range map[string][]string{
		"relative": {"slot"}, "root": {"/"}, "with ..": {"/slot/../etc"}, "twice": {one, one}, "nested": {one, one + "/sub"},
		"over the system": {"/usr/slot"}, "over a mount": {"/testguest/sub"}, "with NUL": {one + "\x00"},
	} {
		spec := e.spec()
		spec.Slots = slots
		s, err := e.driver.Create(e.context(t), spec)
		if err == nil {
			destroy(t, s)
		}
		wantCode(t, "Create with a slot "+name, err, hearth.CodeInvalid)
	}
}

func slotShowsFiles(t *testing.T, e *env) {
	spec, one, two := e.slotted(t)
	source := e.source(t)
	g := e.dial(t, e.start(t, spec))
	// What is not there yet must not be remembered as missing.
	for range 2 {
		for _, f := range []string{"data", "sub", "sub/deep/data", "link"} {
			if a := g.ask(t, request{Op: "stat", Path: one + "/" + f}); syscall.Errno(a.Errno) != syscall.ENOENT {
				t.Errorf("before Mount, stat of %s: %q, want that it does not exist", f, a.Err)
			}
		}
		for _, dir := range []string{one, two} {
			if a := g.do(t, request{Op: "list", Path: dir}); len(a.List) > 0 {
				t.Errorf("the slot %s has %q before Mount", dir, a.List)
			}
		}
	}
	e.mount(t, g, source, one)
	if a := g.do(t, request{Op: "list", Path: one}); !slices.Equal(a.List, []string{"dangling", "data", "empty", "link", "program", "sub", "text"}) {
		t.Errorf("the slot has %q", a.List)
	}
	for f, want := range map[string]string{
		"data": "from the host", "sub/deep/data": "further down", "link": "further down", "sub/up/data": "from the host",
	} {
		if a := g.do(t, request{Op: "read", Path: one + "/" + f}); a.Text != want {
			t.Errorf("%s is %q, want %q", f, a.Text, want)
		}
	}
	for f, want := range map[string]string{"link": "sub/deep/data", "dangling": "/no/such/file", "sub/up": ".."} {
		if a := g.ask(t, request{Op: "readlink", Path: one + "/" + f}); a.Text != want {
			t.Errorf("%s is a link to %q, want %q (%s)", f, a.Text, want, a.Err)
		}
	}
	if a := g.ask(t, request{Op: "run", Path: one + "/program", Text: "id"}); a.Err != "" {
		t.Errorf("an executable file does not run: %s", a.Err)
	}
	if a := g.ask(t, request{Op: "run", Path: one + "/text", Text: "id"}); a.Err == "" {
		t.Errorf("a file that is not executable runs")
	}
	for _, dir := range []string{two, one + "/empty"} {
		if a := g.do(t, request{Op: "list", Path: dir}); len(a.List) > 0 {
			t.Errorf("%s has %q", dir, a.List)
		}
	}
	// The other slot, later.
	e.mount(t, g, source, two)
	if a := g.do(t, request{Op: "read", Path: two + "/sub/deep/data"}); a.Text != "further down" {
		t.Errorf("the second slot's file is %q", a.Text)
	}
}

func slotIsReadOnly(t *testing.T, e *env) {
	spec, one, two := e.slotted(t)
	source := e.source(t)
	suid := filepath.Join(source, "program")
	if err := os.Chmod(suid, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(source, "data"), 0o666); err != nil { // the permissions do not protect it
		t.Fatal(err)
	}
	g := e.dial(t, e.start(t, spec))
	refused := func(files ...string) {
		t.Helper()
		for _, f := range files {
			if a := g.ask(t, request{Op: "write", Path: f, Text: "x"}); a.Err == "" {
				t.Errorf("the guest could write %s", f)
			}
		}
	}
	refused(one+"/new", two+"/new")
	e.mount(t, g, source, one)
	refused(one+"/data", one+"/new", one+"/sub/new", one+"/link", two+"/new")
	if b, err := os.ReadFile(filepath.Join(source, "data")); err != nil || string(b) != "from the host" {
		t.Errorf("the host's file is now %q, %v", b, err)
	}
	uid := strings.Fields(g.do(t, request{Op: "status"}).Map["Uid"])
	if a := g.ask(t, request{Op: "run", Path: one + "/program", Text: "id"}); a.Err == "" && a.Text != uid[0]+" "+uid[0] {
		t.Errorf("a set-user-ID program of a slot ran with real and effective user %s, want %s", a.Text, uid[0])
	}
	mounts := g.do(t, request{Op: "mounts"}).Map
	for _, target := range []string{one, two} {
		for _, o := range []string{"ro", "nosuid", "nodev"} {
			if !slices.Contains(strings.Split(mounts[target], ","), o) {
				t.Errorf("slot %s has the options %q, want %s among them", target, mounts[target], o)
			}
		}
	}
}

func slotIsFilledBeforeDial(t *testing.T, e *env) {
	spec, one, _ := e.slotted(t)
	s := e.start(t, spec)
	e.mount(t, s, e.source(t), one)
	if a := e.dial(t, s).do(t, request{Op: "read", Path: one + "/sub/deep/data"}); a.Text != "further down" {
		t.Errorf("the slot's file is %q", a.Text)
	}
}

func slotRefusals(t *testing.T, e *env) {
	spec, one, two := e.slotted(t)
	source := e.source(t)
	s := e.start(t, spec)
	for _, target := range []string{"/elsewhere", one + "/sub", "/testguest", ""} {
		wantCode(t, fmt.Sprintf("Mount on %q, which is no slot,", target), e.tryMount(t, s, source, target), hearth.CodeInvalid)
	}
	for _, bad := range []string{"relative", source + "/data", source + "/missing"} {
		wantCode(t, "Mount of "+bad, e.tryMount(t, s, bad, one), hearth.CodeInvalid)
	}
	e.mount(t, s, source, one)
	wantCode(t, "a second Mount", e.tryMount(t, s, source, one), hearth.CodeConflict)
	if err := syscall.Mkfifo(filepath.Join(source, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "Mount of a named pipe", e.tryMount(t, s, source, two), hearth.CodeInvalid)
	e.dial(t, s).echo(t)
}

func slotsAreApart(t *testing.T, e *env) {
	spec, one, _ := e.slotted(t)
	other, _, _ := e.slotted(t)
	a, b := e.dial(t, e.start(t, spec)), e.dial(t, e.start(t, other))
	e.mount(t, a, e.source(t), one)
	if x := b.do(t, request{Op: "list", Path: one}); len(x.List) > 0 {
		t.Errorf("a sandbox sees %q in another's slot", x.List)
	}
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "data"), []byte("another function's"), 0o444); err != nil {
		t.Fatal(err)
	}
	e.mount(t, b, source, one)
	for g, want := range map[*guest]string{a: "from the host", b: "another function's"} {
		if x := g.do(t, request{Op: "read", Path: one + "/data"}); x.Text != want {
			t.Errorf("the file is %q, want %q", x.Text, want)
		}
	}
	if x := b.do(t, request{Op: "list", Path: one}); !slices.Equal(x.List, []string{"data"}) {
		t.Errorf("the other sandbox's slot has %q", x.List)
	}
}

func slotOfTheDestroyed(t *testing.T, e *env) {
	spec, one, two := e.slotted(t)
	source := e.source(t)
	links := linksOf(t, source)
	s := e.start(t, spec)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.(driver.Mounter).Mount(ctx, driver.Mount{Source: source, Target: two}); err == nil {
		t.Error("Mount succeeds although its context has ended")
	}
	e.mount(t, s, source, one)
	destroy(t, s)
	wantCode(t, "Mount after Destroy", e.tryMount(t, s, source, two), hearth.CodeNotFound)
	if n := linksOf(t, source); n != links {
		t.Errorf("after Destroy the host's files have %d links, before %d", n, links)
	}
}

// slotDestroyedMeanwhile looks for what Mount leaves when Destroy is first; that
// is found at the end of the case.
func slotDestroyedMeanwhile(t *testing.T, e *env) {
	spec, one, _ := e.slotted(t)
	source := e.source(t)
	links := linksOf(t, source)
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(source, fmt.Sprintf("file%d", i)), nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		s := e.start(t, spec)
		var wg sync.WaitGroup
		wg.Go(func() {
			err := e.tryMount(t, s, source, one)
			if err != nil && hearth.ErrorCode(err) != hearth.CodeNotFound && !errors.Is(err, context.Canceled) {
				t.Errorf("Mount while Destroy is under way: %v", err)
			}
		})
		pause(time.Duration(i) * 4 * time.Millisecond) // before, amid and after
		destroy(t, s)
		wg.Wait()
	}
	if n := linksOf(t, source); n != links {
		t.Errorf("after Destroy the host's files have %d links, before %d", n, links)
	}
}

func slotsAfterRestart(t *testing.T, e *env) {
	spec, one, _ := e.slotted(t)
	source := e.source(t)
	links := linksOf(t, source)
	s := e.start(t, spec)
	e.mount(t, s, source, one)
	if err := e.driver.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	e.open(t)
	list, err := e.driver.List(e.context(t))
	if err != nil || !ids(list)[s.ID()] {
		t.Errorf("after the restart List has %v, %v", ids(list), err)
	}
	for _, s := range list {
		destroy(t, s)
	}
	if n := linksOf(t, source); n != links {
		t.Errorf("after Destroy the host's files have %d links, before %d", n, links)
	}
}
