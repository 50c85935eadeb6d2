package native

import (
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
	"github.com/hearthrun/hearth/guest"
	"github.com/hearthrun/hearth/guest/guesttest"
)

// pythons returns the runtimes whose guests the driver forks.
func (d *Driver) pythons(t testing.TB) []string {
	t.Helper()
	info, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range info.Runtimes {
		if it, _ := d.interpreterFor(t.Context(), r.Name); r.Language == "python" && d.forkable(it.Exe) && d.landlock > 0 {
			names = append(names, r.Name)
		}
	}
	return names
}

// pythons skips the test if there are none.
func pythons(t testing.TB, d *Driver) []string {
	t.Helper()
	names := d.pythons(t)
	if len(names) == 0 {
		t.Skip("no Python here whose guests can be forked")
	}
	return names
}

// warmUp waits until the runtime has a fork server.
func warmUp(t testing.TB, d *Driver, runtime string) *zygote {
	t.Helper()
	var z *zygote
	for end := time.Now().Add(30 * time.Second); z == nil; {
		if time.Now().After(end) {
			t.Fatal("no fork server")
		}
		if z = d.forks.warm(t.Context(), driver.Spec{Runtime: runtime, Limits: driver.Limits{}.WithDefaults()}); z == nil {
			<-time.After(5 * time.Millisecond)
		}
	}
	return z
}

// current returns the runtime's fork server, or nil.
func current(d *Driver, runtime string) *zygote {
	d.forks.mu.Lock()
	defer d.forks.mu.Unlock()
	for _, s := range d.forks.servers {
		if s.current != nil && s.current.runtime == runtime {
			return s.current
		}
	}
	return nil
}

// body is a guest.Sink that keeps the body.
type body struct{ b []byte }

func (b *body) Head(*guest.Head) error { return nil }
func (b *body) Data(p []byte, _ bool) error {
	b.b = append(b.b, p...)
	return nil
}
func (b *body) Flush() error { return nil }

//go:embed testdata/facts.py
var factsPy []byte

// facts returns the spec of a sandbox with testdata/facts.py.
func facts(t *testing.T, id, runtime string) driver.Spec {
	t.Helper()
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "facts.py"), factsPy, 0o644); err != nil {
		t.Fatal(err)
	}
	return driver.Spec{
		ID: id, Runtime: runtime, Env: map[string]string{"HEARTH_SECRET": "s3cret", "GREETING": "hé"},
		Mounts: []driver.Mount{{Source: code, Target: "/function"}},
	}
}

// askNew calls a handler of testdata/facts.py in a new sandbox and decodes the answer.
func askNew(t *testing.T, d *Driver, spec driver.Spec, handler, event string, answer any) {
	t.Helper()
	var out buffer
	spec.Stderr = &out
	s, err := d.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	defer askIn(t, s, spec.Env["HEARTH_SECRET"], handler, event, answer).Close()
	if out.String() != "" {
		t.Errorf("stderr: %s", out.String())
	}
}

// askIn calls a handler in a sandbox, which lives on until the connection ends.
func askIn(t *testing.T, s driver.Sandbox, secret, handler, event string, answer any) *guest.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	nc, err := s.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := guest.Connect(ctx, nc, guest.Options{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Init(ctx, guest.Init{Function: "f", Version: 1, Handler: "facts." + handler, Code: "/function", MemoryMB: 128}); err != nil {
		t.Fatal(err)
	}
	var b body
	call := &guest.Call{ID: "1", Deadline: time.Now().Add(time.Minute), Kind: hearth.KindEvent, Body: []byte(event)}
	if err := c.Invoke(ctx, call, &b); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b.b, answer); err != nil {
		t.Fatalf("%v: %s", err, b.b)
	}
	return c
}

// TestForkedEqualsExecuted compares all that a guest can know of itself.
func TestForkedEqualsExecuted(t *testing.T) {
	d := newDriver(t)
	for _, runtime := range pythons(t, d) {
		t.Run(runtime, func(t *testing.T) {
			var executed, forked map[string]any
			askNew(t, d, facts(t, "executed", runtime), "facts", "{}", &executed)
			z := warmUp(t, d, runtime)
			askNew(t, d, facts(t, "forked", runtime), "facts", "{}", &forked)
			if current(d, runtime) != z {
				t.Fatal("the guest was not forked")
			}
			for k, want := range executed {
				if !reflect.DeepEqual(forked[k], want) {
					t.Errorf("%s of a forked guest\n%v\nof an executed one\n%v", k, forked[k], want)
				}
			}
		})
	}
}

// TestForkedSiblings: what is made of chance differs, and so do the namespaces.
func TestForkedSiblings(t *testing.T) {
	d := newDriver(t)
	for _, runtime := range pythons(t, d) {
		z := warmUp(t, d, runtime)
		var a, b map[string]any
		askNew(t, d, facts(t, "a", runtime), "chance", "{}", &a)
		askNew(t, d, facts(t, "b", runtime), "chance", "{}", &b)
		if current(d, runtime) != z {
			t.Fatal("the guests were not forked")
		}
		for k, v := range a {
			if k != "namespaces" && reflect.DeepEqual(b[k], v) {
				t.Errorf("%s: two siblings have %s = %v", runtime, k, v)
			}
		}
		for k, v := range a["namespaces"].(map[string]any) {
			host, _ := os.Readlink("/proc/self/ns/" + k)
			if v == host {
				t.Errorf("%s: namespace %s is the host's", runtime, k)
			}
		}
	}
}

// TestForkedTogether: living siblings share no namespace.
func TestForkedTogether(t *testing.T) {
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	z := warmUp(t, d, runtime)
	_, _, limited, _ := d.cgroups.Enforces()
	seen := map[string]string{}
	for i := range 4 {
		id := fmt.Sprintf("s%d", i)
		s, err := d.Create(t.Context(), facts(t, id, runtime))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Destroy(context.Background()) }()
		var a map[string]any
		defer askIn(t, s, "s3cret", "chance", "{}", &a).Close()
		for k, v := range a["namespaces"].(map[string]any) {
			if other, ok := seen[v.(string)]; ok && other != id {
				t.Errorf("%s and %s share %s %v", other, id, k, v)
			}
			seen[v.(string)] = id
		}
		eventually(t, func() bool { // what forked it takes a moment to end
			st, err := s.Stats(t.Context())
			if err != nil || st.PSS == 0 {
				t.Fatalf("stats %+v, %v", st, err)
			}
			return !limited || st.PIDs == 1
		})
	}
	if current(d, runtime) != z {
		t.Error("the guests were not forked")
	}
}

// TestForkedV2 forks into groups of version 2, which a host with version 1 has as
// well.
func TestForkedV2(t *testing.T) {
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	z := warmUp(t, d, runtime)
	old := d.cgroups
	defer func() { d.cgroups = old }()
	groups, ok := cgroup.InV2("/sys/fs/cgroup/unified", fmt.Sprintf("hearth-test-%d", time.Now().UnixNano()))
	if !ok {
		t.Skip("no second hierarchy here")
	}
	defer groups.Close()
	d.cgroups = groups
	s, err := d.Create(t.Context(), facts(t, "a", runtime))
	if err != nil {
		t.Fatal(err)
	}
	var a map[string]any
	c := askIn(t, s, "s3cret", "facts", "{}", &a)
	if n := len(s.(*sandbox).group.Procs()); n != 2 {
		t.Errorf("%d processes are in the group", n)
	}
	if text := a["cgroup"].(string); !strings.Contains(text, "0::/\n") {
		t.Errorf("the guest sees %q", text)
	}
	_ = c.Close()
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if current(d, runtime) != z {
		t.Error("the guest was not forked")
	}
}

// TestForkedHostile looks for the fork server from the inside of its child, and
// for what belongs to a sibling.
func TestForkedHostile(t *testing.T) {
	d := newDriver(t)
	for _, runtime := range pythons(t, d) {
		z := warmUp(t, d, runtime)
		var got, want map[string]any
		askNew(t, d, facts(t, "a", runtime), "hostile", "{}", &got)
		_ = json.Unmarshal([]byte(`{"seen":[1],"everybody":"No such process","memory":"Permission denied","abstract sockets":0,"shared":0,"names":[]}`), &want)
		seen, _ := got["seen"].([]any)
		for _, p := range seen {
			if p.(float64) != 1 && p.(float64) != -1 && p.(float64) != 2 {
				t.Errorf("%s: it sees process %v", runtime, p)
			}
		}
		delete(got, "seen")
		delete(want, "seen")
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", runtime, got, want)
		}
		// What one sandbox was given is not in the memory of the next.
		needle := []byte("Kq7\x11zW\x02p-Rv;5mX/")
		mask := slices.Clone(needle)
		for i := range mask {
			mask[i] ^= 0x55
		}
		spec := facts(t, "b", runtime)
		spec.Env["HEARTH_SECRET"], spec.Env["TOKEN"] = string(needle), string(needle)
		event := fmt.Sprintf("%q", hex.EncodeToString(mask))
		var found int
		askNew(t, d, spec, "secret", event, &found)
		if found == 0 {
			t.Errorf("%s: the search does not find what is there", runtime)
		}
		askNew(t, d, facts(t, "c", runtime), "secret", event, &found)
		if found != 0 {
			t.Errorf("%s: a sandbox knows what another was given", runtime)
		}
		if current(d, runtime) != z {
			t.Errorf("%s: the guests were not forked", runtime)
		}
	}
}

// TestForkedConformance runs the guests' specification with forked guests.
func TestForkedConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	warmUp(t, d, runtime)
	n := 0
	guesttest.Run(t, guesttest.Guest{Language: "python", Start: func(t testing.TB, code, secret string, output io.Writer) (*net.UnixConn, func() int) {
		t.Helper()
		warmUp(t, d, runtime) // none is executed while one is being replaced
		if err := publish(code); err != nil {
			t.Fatal(err)
		}
		n++
		s, err := d.Create(t.Context(), driver.Spec{
			ID: fmt.Sprintf("guest-%d", n), Runtime: runtime, Stdout: output, Stderr: output,
			Env:    map[string]string{"HEARTH_SECRET": secret},
			Mounts: []driver.Mount{{Source: code, Target: "/function"}},
			Limits: driver.Limits{Memory: 512 << 20},
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		return c.(*net.UnixConn), func() int {
			exit, err := s.Wait(ctx)
			if derr := s.Destroy(context.Background()); derr != nil || err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%v, %v", err, derr)
			}
			return exit.Code
		}
	}})
}

// TestForkServerFails: guests start all the same when a fork server has died, has
// stopped or answers nonsense, and the next one comes.
func TestForkServerFails(t *testing.T) {
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	for name, hurt := range map[string]func(*zygote){
		"killed":  func(z *zygote) { _ = z.process.Kill() },
		"stopped": func(z *zygote) { _ = z.process.Signal(unix.SIGSTOP) },
		"gone":    func(z *zygote) { _ = z.process.Kill(); <-z.gone },
		"closed":  func(z *zygote) { _ = z.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			z := warmUp(t, d, runtime)
			hurt(z)
			var a map[string]any
			askNew(t, d, facts(t, "a", runtime), "chance", "{}", &a)
			<-z.gone
			d.forks.mu.Lock()
			for _, s := range d.forks.servers {
				s.retry = time.Time{}
			}
			d.forks.mu.Unlock()
			if next := warmUp(t, d, runtime); next == z {
				t.Error("it is still in use")
			}
		})
	}
	t.Run("in the middle", func(t *testing.T) {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(i%17) * time.Millisecond):
				}
				if z := current(d, runtime); z != nil {
					_ = z.process.Kill()
				}
				d.forks.mu.Lock()
				for _, s := range d.forks.servers {
					s.retry = time.Time{}
				}
				d.forks.mu.Unlock()
			}
		})
		for i := range 15 {
			var a map[string]any
			askNew(t, d, facts(t, fmt.Sprintf("m%d", i), runtime), "chance", "{}", &a)
		}
		close(stop)
		wg.Wait()
	})
}

// TestForkServerOutlivesGivenUpStarts: a sandbox that ended, and whose start was
// given up, before the fork server came to it, concerns no other sandbox.
func TestForkServerOutlivesGivenUpStarts(t *testing.T) {
	d := newDriver(t)
	z := warmUp(t, d, pythons(t, d)[0])
	ended := exec.CommandContext(t.Context(), "/bin/true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	defer ended.Wait() //nolint:errcheck // it is /bin/true
	if err := unix.Waitid(unix.P_PID, ended.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	s := &sandbox{process: ended.Process, group: cgroup.None{}.Open("")}
	ask := func() *forked {
		t.Helper()
		f, err := z.fork(s, []*os.File{null, null, null, null}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for range 2 {
		if err := z.process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ask().conn.Close()
		if err := z.process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	f := ask()
	defer f.conn.Close()
	if _, err := f.hear('P', 4); err == nil || !strings.Contains(err.Error(), "enter the sandbox") {
		t.Errorf("the fork server answers %v; it says %s", err, z.errors.String())
	}
	if current(d, z.runtime) != z {
		t.Error("the fork server was given up")
	}
}

// TestForkServerSharesNoMemory: memory that a fork does not copy, such as a library
// may have, would let guests write into each other.
func TestForkServerSharesNoMemory(t *testing.T) {
	d := newDriver(t)
	for _, runtime := range pythons(t, d) {
		it, _ := d.interpreterFor(t.Context(), runtime)
		for _, c := range []struct{ before, says string }{
			{"", ""},
			{"sys.kept = __import__('mmap').mmap(-1, 4096)", "guests would share memory"},
		} {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			host, inside := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "inside")
			script := "import sys\n" + c.before + `
zygote = type(sys)("hearth_zygote")
zygote.__file__ = sys.argv[1]
exec(compile(open(sys.argv[1], "rb").read(), "hearth_zygote.py", "exec"), zygote.__dict__)
zygote.run(globals())
`
			var says strings.Builder
			cmd := exec.CommandContext(t.Context(), it.Exe, "-I", "-S", "-B", "-X", "utf8", "-c", script,
				filepath.Join(d.shims, "python", "hearth_zygote.py"))
			cmd.Stderr, cmd.ExtraFiles, cmd.Env = &says, []*os.File{inside}, []string{}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = inside.Close()
			ready := make([]byte, 1)
			n, _ := host.Read(ready)
			_ = host.Close() // and so it ends
			_ = cmd.Wait()
			if (n == 1) != (c.says == "") || !strings.Contains(says.String(), c.says) {
				t.Errorf("%s after %q: ready %t, %s", runtime, c.before, n == 1, lastLine(says.String()))
			}
		}
	}
}

// TestForkedImports: a function's own modules hide those of the standard library
// that the fork server has loaded, as they do otherwise.
func TestForkedImports(t *testing.T) {
	d := newDriver(t)
	for _, runtime := range pythons(t, d) {
		z := warmUp(t, d, runtime)
		spec := facts(t, "a", runtime)
		for name, text := range map[string]string{
			"facts.py": `
import json, logging, os, secrets, email, queue
from email import own
def handler(event, context):
    return [secrets.__file__, email.__file__, own.__file__, queue.__file__.startswith("/function"), json.dumps(1), logging.root.name]
`,
			"secrets.py": "", "email/__init__.py": "", "email/own.py": "", "logging/note.txt": "", "queue.txt": "",
		} {
			path := filepath.Join(spec.Mounts[0].Source, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		var got []any
		askNew(t, d, spec, "handler", "{}", &got)
		want := []any{"/function/secrets.py", "/function/email/__init__.py", "/function/email/own.py", false, "1", "root"}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", runtime, got, want)
		}
		if current(d, runtime) != z {
			t.Errorf("%s: the guest was not forked", runtime)
		}
	}
}

// TestForkServerRotates: after so many forks another takes its place.
func TestForkServerRotates(t *testing.T) {
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	for _, age := range []func(*zygote){
		func(z *zygote) { z.forks = forksEach },
		func(z *zygote) { z.began = z.began.Add(-forkMaxAge) },
	} {
		z := warmUp(t, d, runtime)
		d.forks.mu.Lock()
		age(z)
		d.forks.mu.Unlock()
		var a map[string]any
		askNew(t, d, facts(t, "a", runtime), "chance", "{}", &a)
		eventually(t, func() bool { n := current(d, runtime); return n != nil && n != z })
		<-z.gone
	}
	z := current(d, runtime)
	z.idle.Reset(0)
	<-z.gone
	if current(d, runtime) != nil {
		t.Error("an idle one stays")
	}
}

// TestForkServerHolds: a fork server has nothing that a guest could inherit.
func TestForkServerHolds(t *testing.T) {
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	t.Setenv("HEARTH_TEST_SECRET", "open sesame")
	z := warmUp(t, d, runtime)
	var a map[string]any
	askNew(t, d, facts(t, "a", runtime), "chance", "{}", &a)
	proc := fmt.Sprintf("/proc/%d/", z.process.Pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{"Threads:\t1\n", "NoNewPrivs:\t1\n", "CapInh:\t" + none, "CapPrm:\t" + none, "CapEff:\t" + none, "CapAmb:\t" + none}
	if d.root {
		lines = append(lines, "CapBnd:\t"+none)
	}
	for _, line := range lines {
		if !strings.Contains(string(status), line) {
			t.Errorf("its status lacks %q:\n%s", line, status)
		}
	}
	if !d.root {
		return // after its first fork nobody but root may look at it
	}
	var open []string
	entries, _ := os.ReadDir(proc + "fd")
	for _, e := range entries {
		open = append(open, e.Name())
	}
	if !slices.Equal(open, []string{"0", "1", "2", "3"}) {
		t.Errorf("its descriptors are %v", open)
	}
	if env, err := os.ReadFile(proc + "environ"); err != nil || len(env) > 0 {
		t.Errorf("its environment is %q, %v", env, err)
	}
	maps, _ := os.ReadFile(proc + "maps")
	if strings.Contains(string(maps), "rw-s") || strings.Contains(string(maps), "rwxp") {
		t.Errorf("it shares memory, or can write code:\n%s", maps)
	}
}

const none = "0000000000000000\n"

// TestForkServerCloses: nothing remains after Close, and nothing starts.
func TestForkServerCloses(t *testing.T) {
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	z := warmUp(t, d, runtime)
	d.forks.close()
	select {
	case <-z.gone:
	default:
		t.Error("it outlives Close")
	}
	if d.forks.warm(t.Context(), driver.Spec{Runtime: runtime, Limits: driver.Limits{}.WithDefaults()}) != nil {
		t.Error("there is one after Close")
	}
	var a map[string]any
	askNew(t, d, facts(t, "a", runtime), "chance", "{}", &a)
}

// TestForkedEnds: the end of a forked guest is told like that of another.
func TestForkedEnds(t *testing.T) {
	d := newDriver(t)
	runtime := pythons(t, d)[0]
	memory, _, _, _ := d.cgroups.Enforces()
	for code, want := range map[string]driver.Exit{
		"posix._exit(7)":                           {Code: 7},
		"posix.kill(posix.getpid(), 15)":           {Code: -1, Signal: 15},
		"posix.kill(posix.getpid(), 9)":            {Code: -1, Signal: 9},
		"(posix.fork(), posix._exit(3))":           {Code: 3},
		"[bytearray(1 << 20) for i in range(999)]": {Code: -1, Signal: 9, OOM: true},
	} {
		if want.OOM && !memory {
			continue
		}
		z := warmUp(t, d, runtime)
		spec := facts(t, "end", runtime)
		if err := os.WriteFile(filepath.Join(spec.Mounts[0].Source, "end.py"), []byte("import posix\nkept = "+code+"\nimport time\ntime.sleep(99)\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		spec.Limits.Memory = 64 << 20
		s, err := d.Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		nc, _ := s.Dial(t.Context())
		c, _, err := guest.Connect(t.Context(), nc, guest.Options{Secret: "s3cret"})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Init(t.Context(), guest.Init{Function: "f", Version: 1, Handler: "end.handler", Code: "/function"})
		exit, err := s.Wait(t.Context())
		if err != nil || exit != want {
			t.Errorf("%s: exit %+v, %v; want %+v", code, exit, err, want)
		}
		_ = c.Close()
		if err := s.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
		if current(d, runtime) != z {
			t.Errorf("%s: the guest was not forked", code)
		}
	}
}
