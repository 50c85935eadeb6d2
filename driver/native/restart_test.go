package native

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/cgroup"
)

// serverDir is set in the process that plays a server to be killed.
const serverDir = "HEARTH_TEST_SERVER_DIR"

// TestServer is not a test: it is that process. It makes three sandboxes, one
// of them paused where that is possible, and waits for its end.
func TestServer(t *testing.T) {
	dir := os.Getenv(serverDir)
	if dir == "" {
		t.Skip("run by TestOutlivesServer")
	}
	d, err := New(Config{Dir: dir, Owner: filepath.Base(filepath.Dir(dir))})
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(filepath.Dir(dir), "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "file"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for i, id := range []string{"one", "two", "paused"} {
		s, err := d.Create(context.Background(), driver.Spec{
			ID: id, Runtime: "provided",
			Command: []string{"/bin/sh", "-c", "setsid sleep $1 & exec sleep $1", "sh", mark(dir, i)},
			Slots:   []string{"/slot"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.(driver.Mounter).Mount(context.Background(), driver.Mount{Source: source, Target: "/slot"}); err != nil {
			t.Fatal(err)
		}
		if _, none := d.cgroups.(cgroup.None); id == "paused" && !none {
			if err := s.(driver.Pauser).Pause(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if names := d.pythons(t); len(names) > 0 {
		warmUp(t, d, names[0])
	}
	fmt.Println("ready")
	select {}
}

// mark is an argument by which to recognise a sandbox's processes.
func mark(dir string, i int) string {
	return fmt.Sprintf("99999.%s%d", strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, dir), i)
}

// marked returns the processes with a mark.
func marked(m string) []string {
	var pids []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && slices.Contains(strings.Split(string(b), "\x00"), m) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// forkServersIn returns the fork servers of a driver's directory.
func forkServersIn(dir string) []string {
	var pids []string
	files, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, dir+"/guest-") {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// TestOutlivesServer kills a server with SIGKILL: its sandboxes die, and the
// next server finds and frees what remains, but nothing of a stranger.
func TestOutlivesServer(t *testing.T) {
	newDriver(t) // skips where sandboxes do not work
	owner := fmt.Sprintf("killed-%d", time.Now().UnixNano())
	dir := filepath.Join(t.TempDir(), owner, "native")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestServer$", "-test.v")
	cmd.Env = append(os.Environ(), serverDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ok := false
	for s := bufio.NewScanner(out); !ok && s.Scan(); {
		ok = strings.Contains(s.Text(), "ready")
	}
	if !ok {
		t.Fatal("the server did not start")
	}
	for i := range 3 {
		if n := len(marked(mark(dir, i))); n == 0 {
			t.Fatalf("sandbox %d has no processes", i)
		}
	}
	t.Logf("fork servers: %v", forkServersIn(dir))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for i := range 2 {
		eventually(t, func() bool { return len(marked(mark(dir, i))) == 0 })
	}
	eventually(t, func() bool { return len(forkServersIn(dir)) == 0 })

	// A state file that names a process which is not a sandbox's any more.
	stranger := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	}()
	record := fmt.Sprintf("%d %s %s\n", stranger.Process.Pid, "12345", bootID())
	if err := os.WriteFile(filepath.Join(dir, runDir, "reused"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	// A slot is all that is there of a sandbox.
	if err := os.MkdirAll(filepath.Join(dir, slotDir, "begun", "0"), 0o755); err != nil {
		t.Fatal(err)
	}

	d, err := New(Config{Dir: dir, Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Create(t.Context(), sleeper("begun")); hearth.ErrorCode(err) != hearth.CodeConflict {
		t.Errorf("Create of what is left: %v", err)
	}
	list, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, s := range list {
		ids = append(ids, s.ID())
		if err := s.Destroy(t.Context()); err != nil {
			t.Errorf("Destroy %s: %v", s.ID(), err)
		}
		if exit, err := s.Wait(t.Context()); err != nil || !exit.Destroyed {
			t.Errorf("Wait: %+v, %v", exit, err)
		}
	}
	slices.Sort(ids)
	if want := []string{"begun", "one", "paused", "reused", "two"}; !slices.Equal(ids, want) {
		t.Errorf("List found %v, want %v", ids, want)
	}
	if left, err := os.ReadDir(filepath.Join(dir, slotDir)); err != nil || len(left) > 0 {
		t.Errorf("slots are left: %v, %v", left, err)
	}
	if list, err := d.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("after Destroy: %v, %v", list, err)
	}
	eventually(t, func() bool { return len(marked(mark(dir, 2))) == 0 })
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a stranger's process was hit: %v", err)
	}
}

// eventually waits up to ten seconds for ok.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("it did not happen within ten seconds")
		}
		<-time.After(5 * time.Millisecond)
	}
}
