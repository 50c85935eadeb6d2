package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth/server"
)

// serveEnv makes this test binary a server with that data directory.
const serveEnv = "HEARTH_E2E_SERVE"

// serveChild is the server that TestKill kills.
func serveChild(dir string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := server.New(context.Background(), server.Config{DataDir: dir, Listen: "127.0.0.1:0", Logger: log, RecordSuccesses: -1})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		<-s.Ready()
		fmt.Println(s.Addr())
	}()
	if err := s.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// spawn starts a server in a process of its own.
func spawn(t *testing.T, dir string) (*installation, *exec.Cmd) {
	t.Helper()
	return spawnAs(t, dir, os.Args[0], os.Getuid())
}

// spawnAs does so with the given copy of this test binary and user.
func spawnAs(t *testing.T, dir, bin string, uid int) (*installation, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command(bin) //nolint:noctx // it is killed below
	cmd.Env = append(os.Environ(), serveEnv+"="+dir)
	cmd.Stderr = testWriter{t}
	if uid != os.Getuid() {
		cmd.Dir = "/"
		cmd.Env = append(cmd.Env, "HOME=/nonexistent")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // killed
	})
	var addr string
	if _, err := fmt.Fscanln(out, &addr); err != nil {
		t.Fatalf("the server did not start: %v", err)
	}
	return &installation{t: t, dir: dir, url: "http://" + addr}, cmd
}

// sandboxProcesses returns the processes that have something of the data
// directory mounted.
func sandboxProcesses(dir string) []string {
	var found []string
	paths, _ := filepath.Glob("/proc/[0-9]*/mountinfo") //nolint:errcheck // the pattern is fine
	for _, p := range paths {
		info, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(info), dir+"/") {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline")) //nolint:errcheck // it may have ended
		found = append(found, p+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
	return found
}

// TestKill kills the server under load, again and again. After each restart
// every acknowledged deploy is there and answers, and nothing of the old server
// is left; a process that is not ours lives on.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	canary := exec.Command("/bin/sleep", "600") //nolint:noctx // it is killed below
	if err := canary.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		canary.Process.Kill() //nolint:errcheck // the test's end
		canary.Wait()         //nolint:errcheck // killed
	}()
	runtimes := []string{"python", "nodejs"}
	code := map[string]string{
		"python": "import time\ndef handler(event, context):\n    time.sleep(0.002)\n    return %d\n",
		"nodejs": "export const handler = async () => { await new Promise((r) => setTimeout(r, 2)); return %d; };\n",
	}
	acknowledged := map[string]int{}
	for round := range 5 {
		in, cmd := spawn(t, dir)
		waitFor(t, "the sandboxes of the killed server to end", func() bool { return len(sandboxProcesses(dir)) == 0 })
		for name, number := range acknowledged {
			a := in.invoke(name, nil)
			if got := strings.TrimSpace(string(a.body)); a.status != 200 || got < fmt.Sprint(number) {
				t.Errorf("round %d: %s answers %v, want at least %d", round, name, a, number)
			}
		}
		var calls atomic.Int64
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for _, rt := range runtimes {
			name := "kill-" + rt
			number := acknowledged[name] + 1
			in.deploy(name, rt, fmt.Sprintf(code[rt], number+1000), nil)
			acknowledged[name] = number + 1000
			for range 4 {
				wg.Go(func() {
					for ctx.Err() == nil {
						if in.doContext(ctx, "GET", "/fn/"+name+"/", nil).status == 200 {
							calls.Add(1)
						}
					}
				})
			}
		}
		// One more function is being deployed all the time.
		var newest atomic.Int64
		wg.Go(func() {
			for n := round*1000 + 1; ctx.Err() == nil; n++ {
				a := in.try("kill-busy", "python", fmt.Sprintf(code["python"], n+10000), nil)
				if a.status == 200 || a.status == 201 {
					newest.Store(int64(n + 10000))
				}
			}
		})
		waitFor(t, "load", func() bool { return calls.Load() > 200 && newest.Load() > 0 })
		if len(sandboxProcesses(dir)) == 0 {
			t.Fatal("the test cannot see the sandboxes")
		}
		select { // at another moment each time
		case <-time.After(time.Duration(round*37) * time.Millisecond):
		case <-t.Context().Done():
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() //nolint:errcheck // killed
		cancel()
		wg.Wait()
		acknowledged["kill-busy"] = int(newest.Load())
	}
	if err := canary.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a foreign process was killed: %v", err)
	}
	waitFor(t, "the sandboxes of the killed server to end", func() bool { return len(sandboxProcesses(dir)) == 0 })
}

// TestDataDirInUse: a second server on one data directory is refused.
func TestDataDirInUse(t *testing.T) {
	in := start(t, "")
	_, err := server.New(t.Context(), server.Config{DataDir: in.dir, Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server: %v", err)
	}
	want(t, in.do("GET", "/readyz", nil), 200, "")
}
