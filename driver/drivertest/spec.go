package drivertest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
)

func specCases() []testCase {
	return []testCase{
		{"Spec/bad", badSpecs},
		{"Spec/environment", environment},
		{"Spec/directories", directories},
		{"Spec/mounts", mountsAreReadOnly},
		{"Spec/command with arguments", commandArguments},
	}
}

func badSpecs(t *testing.T, e *env) {
	for _, c := range []struct {
		name   string
		change func(*driver.Spec)
		code   hearth.Code
	}{
		{"no id", func(s *driver.Spec) { s.ID = "" }, hearth.CodeInvalid},
		{"id with a slash", func(s *driver.Spec) { s.ID = "a/../../b" }, hearth.CodeInvalid},
		{"id with a dot", func(s *driver.Spec) { s.ID = ".." }, hearth.CodeInvalid},
		{"id in capitals", func(s *driver.Spec) { s.ID = "ABC" }, hearth.CodeInvalid},
		{"id too long", func(s *driver.Spec) { s.ID = strings.Repeat("a", 41) }, hearth.CodeInvalid},
		{"no command", func(s *driver.Spec) { s.Command = nil }, hearth.CodeInvalid},
		{"empty command", func(s *driver.Spec) { s.Command = []string{""} }, hearth.CodeInvalid},
		{"unknown runtime", func(s *driver.Spec) { s.Runtime = "cobol85" }, hearth.CodeNotFound},
		{"runtime with a path", func(s *driver.Spec) { s.Runtime = "../../etc" }, hearth.CodeNotFound},
		{"relative source", func(s *driver.Spec) { s.Mounts[0].Source = "testguest" }, hearth.CodeInvalid},
		{"relative target", func(s *driver.Spec) { s.Mounts[0].Target = "testguest" }, hearth.CodeInvalid},
		{"target with ..", func(s *driver.Spec) { s.Mounts[0].Target = "/testguest/../../etc" }, hearth.CodeInvalid},
		{"target is the root", func(s *driver.Spec) { s.Mounts[0].Target = "/" }, hearth.CodeInvalid},
		{"target twice", func(s *driver.Spec) { s.Mounts = append(s.Mounts, s.Mounts[0]) }, hearth.CodeInvalid},
		{"no such source", func(s *driver.Spec) { s.Mounts[0].Source = "/no/such/directory" }, hearth.CodeInvalid},
		{"source is a file", func(s *driver.Spec) { s.Mounts[0].Source = filepath.Join(e.binary, "testguest") }, hearth.CodeInvalid},
		{"negative memory", func(s *driver.Spec) { s.Limits.Memory = -1 }, hearth.CodeInvalid},
		{"negative cpu", func(s *driver.Spec) { s.Limits.CPU = -1 }, hearth.CodeInvalid},
		{"negative pids", func(s *driver.Spec) { s.Limits.PIDs = -1 }, hearth.CodeInvalid},
		{"negative disk", func(s *driver.Spec) { s.Limits.Disk = -1 }, hearth.CodeInvalid},
		{"unknown egress", func(s *driver.Spec) { s.Egress = "everything" }, hearth.CodeInvalid},
		{"variable with =", func(s *driver.Spec) { s.Env = map[string]string{"A=B": "c"} }, hearth.CodeInvalid},
		{"variable with NUL", func(s *driver.Spec) { s.Env = map[string]string{"A": "b\x00c"} }, hearth.CodeInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := e.spec()
			c.change(&spec)
			s, err := e.driver.Create(e.context(t), spec)
			if err == nil {
				destroy(t, s)
				t.Fatal("Create succeeded")
			}
			wantCode(t, "Create", err, c.code)
			if c.code == hearth.CodeNotFound && hearth.AsError(err).Hint == "" {
				t.Errorf("the error %q, which users see, has no hint what to do", err)
			}
			if list, err := e.driver.List(e.context(t)); err != nil || len(list) > 0 {
				t.Errorf("after a failed Create List has %d sandboxes, %v", len(list), err)
			}
		})
	}
	// A command that does not exist may fail in Create, or start and exit.
	spec := e.spec()
	spec.Command = []string{"/testguest/nothing"}
	s, err := e.driver.Create(e.context(t), spec)
	if err != nil {
		wantCode(t, "Create with a command that does not exist", err, hearth.CodeInvalid, hearth.CodeNotFound)
		return
	}
	if x, err := s.Wait(e.context(t)); err != nil || x.Code == 0 {
		t.Errorf("a command that does not exist: Exit %+v, %v", x, err)
	}
	destroy(t, s)
}

func environment(t *testing.T, e *env) {
	t.Setenv("HEARTH_TEST_CANARY", "of-the-host")
	given := map[string]string{"GREETING": "hello world", "EMPTY": "", "UMLAUT": "ä=ö\n", "LANG_X": "1"}
	g := e.create(t, func(s *driver.Spec) {
		s.Env = maps.Clone(given)
		s.Env["HEARTH_FD"] = "99" // the driver's alone: with another the guest would not answer
	})
	got := map[string]string{}
	for _, kv := range g.do(t, request{Op: "env"}).List {
		k, v, _ := strings.Cut(kv, "=")
		if _, ok := got[k]; ok {
			t.Errorf("variable %s is set twice", k)
		}
		got[k] = v
	}
	for k, v := range given {
		if w, ok := got[k]; !ok || w != v {
			t.Errorf("variable %s is %q, want %q", k, w, v)
		}
	}
	for _, k := range []string{"PATH", "HOME", "LANG", "TMPDIR"} {
		if got[k] == "" {
			t.Errorf("variable %s is not set", k)
		}
	}
	documented := []string{"PATH", "HOME", "LANG", "TMPDIR", "HEARTH_FD", "HEARTH_SECRET"}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := given[k]; !ok && !slices.Contains(documented, k) {
			t.Errorf("variable %s=%q came from nowhere", k, got[k])
		}
	}
}

func directories(t *testing.T, e *env) {
	g := e.create(t)
	vars := map[string]string{}
	for _, kv := range g.do(t, request{Op: "env"}).List {
		k, v, _ := strings.Cut(kv, "=")
		vars[k] = v
	}
	if d := g.do(t, request{Op: "cwd"}).Text; !filepath.IsAbs(d) {
		t.Errorf("the working directory is %q", d)
	}
	for _, d := range []string{vars["HOME"], vars["TMPDIR"], "/tmp"} {
		file := filepath.Join(d, "file-"+g.ID())
		g.do(t, request{Op: "write", Path: file, Text: "content"})
		if a := g.do(t, request{Op: "read", Path: file}); a.Text != "content" {
			t.Errorf("%s: read %q", file, a.Text)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s of the sandbox is that of the host", d)
		}
	}
	// What programs expect of a Unix system.
	for _, f := range []string{"/dev/null", "/dev/zero", "/dev/urandom"} {
		if a := g.ask(t, request{Op: "stat", Path: f}); a.Err != "" {
			t.Errorf("%s: %s", f, a.Err)
		}
	}
	g.do(t, request{Op: "write", Path: "/dev/null", Text: "x"})
}

func mountsAreReadOnly(t *testing.T, e *env) {
	source := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(source, 0o777)) // not even the host's permissions protect it
	must(os.WriteFile(filepath.Join(source, "data"), []byte("from the host"), 0o666))
	must(os.Mkdir(filepath.Join(source, "sub"), 0o777))
	program, err := os.ReadFile(filepath.Join(e.binary, "testguest"))
	must(err)
	suid := filepath.Join(source, "suid")
	must(os.WriteFile(suid, program, 0o755))
	must(os.Chmod(suid, 0o755|os.ModeSetuid|os.ModeSetgid))

	g := e.create(t, func(s *driver.Spec) {
		s.Mounts = append(s.Mounts, driver.Mount{Source: source, Target: "/data/deep"})
	})
	if a := g.do(t, request{Op: "read", Path: "/data/deep/data"}); a.Text != "from the host" {
		t.Errorf("read %q through a mount", a.Text)
	}
	for _, f := range []string{"/data/deep/data", "/data/deep/new", "/data/deep/sub/new", "/testguest/testguest", "/testguest/new"} {
		if a := g.ask(t, request{Op: "write", Path: f, Text: "x"}); a.Err == "" {
			t.Errorf("the guest could write %s", f)
		}
	}
	status := g.do(t, request{Op: "status"}).Map
	uid := strings.Fields(status["Uid"])
	if a := g.ask(t, request{Op: "run", Path: "/data/deep/suid", Text: "id"}); a.Err == "" && a.Text != uid[0]+" "+uid[0] {
		t.Errorf("a set-user-ID program of a mount ran with real and effective user %s, want %s", a.Text, uid[0])
	}
	for target, options := range g.do(t, request{Op: "mounts"}).Map {
		if target != "/data/deep" && target != "/testguest" {
			continue
		}
		for _, o := range []string{"ro", "nosuid", "nodev"} {
			if !slices.Contains(strings.Split(options, ","), o) {
				t.Errorf("mount %s has the options %s, want %s among them", target, options, o)
			}
		}
	}
	// Changes on the host show inside: it is a view, not a copy.
	if b, err := os.ReadFile(filepath.Join(source, "data")); err != nil || string(b) != "from the host" {
		t.Errorf("the host's file is now %q, %v", b, err)
	}
}

func commandArguments(t *testing.T, e *env) {
	var out lockedBuffer
	spec := e.spec()
	spec.Command = []string{"/testguest/testguest", "id"}
	spec.Stdout = &out
	s := e.start(t, spec)
	x, err := s.Wait(e.context(t))
	if err != nil || x.Code != 0 {
		t.Errorf("Exit %+v, %v", x, err)
	}
	destroy(t, s)
	if f := strings.Fields(out.String()); len(f) != 2 || f[0] != f[1] {
		t.Errorf("the command printed %q, want its real and effective user, the same", out.String())
	}
}
