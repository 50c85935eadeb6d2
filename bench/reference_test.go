package bench

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/client"
	"github.com/hearthrun/hearth/telemetry"
)

// installed finds the interpreter or skips.
func installed(t *testing.T, runtime string) interpreter {
	t.Helper()
	i, err := findInterpreter(t.Context(), runtime, "")
	if err != nil {
		t.Skipf("%s is not installed: %v", runtime, err)
	}
	return i
}

func post(t *testing.T, url, body string) (string, http.Header) {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("status %d, %v", resp.StatusCode, err)
	}
	return string(b), resp.Header
}

// alive tells whether a process exists, also as a zombie.
func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func TestReferences(t *testing.T) {
	for _, runtime := range []string{"python", "nodejs"} {
		t.Run(runtime, func(t *testing.T) {
			i := installed(t, runtime)
			plain, err := startPlain(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			defer plain.close()
			proxy, err := startProxy(t.Context(), plain.url)
			if err != nil {
				t.Fatal(err)
			}
			defer proxy.close()
			for _, url := range []string{plain.url, proxy.url} {
				if got, h := post(t, url, echoBody); got != echoBody || h.Get("Content-Type") != "text/plain; charset=utf-8" {
					t.Errorf("%s answers %q, %v", url, got, h)
				}
				tg, err := newTarget(t.Context(), "x", url, []byte(echoBody), []byte(echoBody))
				if err != nil {
					t.Fatal(err)
				}
				if s := load(t, tg, 8, 0, 100*time.Millisecond); s.problem != "" || s.reconnects != 0 {
					t.Errorf("%s: %d requests, %d reconnects, problem %q", url, s.requests, s.reconnects, s.problem)
				}
			}
			for _, p := range []*process{proxy, plain} {
				p.close()
				p.close()
				if alive(p.cmd.Process.Pid) {
					t.Errorf("process %d is left", p.cmd.Process.Pid)
				}
			}
		})
	}
}

func TestNoop(t *testing.T) {
	p, err := startNoop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.cmd.Process.Pid == os.Getpid() {
		t.Error("it is no process of its own")
	}
	if got, _ := post(t, p.url, echoBody); got != noopAnswer {
		t.Errorf("got %q", got)
	}
}

// TestReferenceDiesWithParent: when the other end of stdin goes away, as it
// does when this process is killed, every reference ends by itself.
func TestReferenceDiesWithParent(t *testing.T) {
	start := map[string]func() (*process, error){
		"noop":  func() (*process, error) { return startNoop(t.Context()) },
		"proxy": func() (*process, error) { return startProxy(t.Context(), "http://127.0.0.1:1/") },
	}
	for _, lang := range []string{"python", "nodejs"} {
		if i, err := findInterpreter(t.Context(), lang, ""); err == nil {
			start[lang] = func() (*process, error) { return startPlain(t.Context(), i) }
		}
	}
	for name, f := range start {
		t.Run(name, func(t *testing.T) {
			p, err := f()
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			p.stdin.Close()
			select {
			case <-p.exited:
			case <-time.After(10 * time.Second):
				t.Error("it goes on without its parent")
			}
			if code := p.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d: %v", code, p.cmd.Stderr)
			}
		})
	}
}

func TestStartProcessFails(t *testing.T) {
	_, err := startProcess(t.Context(), "/bin/sh", nil, "-c", "echo kaputt >&2; exit 3")
	if hearth.ErrorCode(err) != hearth.CodeUnavailable || !strings.Contains(err.Error(), "kaputt") {
		t.Errorf("got %v", err)
	}
	_, err = startProcess(t.Context(), "/does/not/exist", nil)
	if hearth.ErrorCode(err) != hearth.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = startProcess(ctx, "/bin/sh", nil, "-c", "exec cat"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

func TestServeReferenceRefuses(t *testing.T) {
	var out bytes.Buffer
	for _, args := range [][]string{{"what"}, {"noop", "more"}, {"proxy"}, {"proxy", "http://[::1"}} {
		if err := serveReference(args, strings.NewReader(""), &out); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
	if out.Len() > 0 {
		t.Errorf("it says %q", out.String())
	}
}

func TestFindInterpreter(t *testing.T) {
	for _, runtime := range []string{"python", "nodejs"} {
		i := installed(t, runtime)
		b, err := os.ReadFile(i.Path)
		if err != nil || !bytes.HasPrefix(b, []byte("\x7fELF")) {
			t.Errorf("%s is found at %s, which is no program but perhaps a shim: %v", runtime, i.Path, err)
		}
		if d, err := bareStart(t.Context(), i); err != nil || d <= 0 {
			t.Errorf("bare start: %v, %v", d, err)
		}
		// By its own path too, and by the prefix it lies in.
		if j, err := findInterpreter(t.Context(), runtime, i.Path); err != nil || j != i {
			t.Errorf("by path: %v, %v", j, err)
		}
	}
	for _, tt := range []struct {
		runtime, source string
		want            hearth.Code
	}{
		{"ruby3", "", hearth.CodeUnsupported},
		{"python3.11", "/does/not/exist", hearth.CodeNotFound},
		{"python3.11", t.TempDir(), hearth.CodeNotFound},
		{"python3.11", "/bin/false", hearth.CodeNotFound},
		{"python3.11", "/etc/passwd", hearth.CodeNotFound},
	} {
		if i, err := findInterpreter(t.Context(), tt.runtime, tt.source); hearth.ErrorCode(err) != tt.want {
			t.Errorf("%s in %q: got %v, %v, want %s", tt.runtime, tt.source, i, err, tt.want)
		}
	}
}

func TestPickRuntime(t *testing.T) {
	list := []client.Runtime{
		{Name: "nodejs20", Language: "nodejs"}, {Name: "python3.13", Language: "python"}, {Name: "python3.11", Language: "python"},
	}
	for in, want := range map[string]string{"python": "python3.13", "python3.11": "python3.11", "nodejs": "nodejs20", "python3": ""} {
		if got, _ := pickRuntime(list, in); got.Name != want {
			t.Errorf("%s gets %q, want %q", in, got.Name, want)
		}
	}
}

func TestMachine(t *testing.T) {
	m := describeMachine()
	if m.CPU == "" || m.Cores < 1 || m.Memory < 1<<20 || !strings.HasPrefix(m.Kernel, "Linux ") || m.Go == "" || m.Arch == "" {
		t.Errorf("%+v", m)
	}
	if n, err := rss(os.Getpid()); err != nil || n < 1<<20 {
		t.Errorf("own resident set: %d, %v", n, err)
	}
	busy, total := telemetry.CPUTimes()
	if busy <= 0 || total < busy {
		t.Errorf("busy %v of %v", busy, total)
	}
	var stop atomic.Bool
	var spinning sync.WaitGroup
	for range m.Cores {
		spinning.Go(func() {
			for !stop.Load() { // spin
			}
		})
	}
	if share, err := busyShare(t.Context(), 200*time.Millisecond); err != nil || share < 0.3 {
		t.Errorf("a busy machine is %v busy, %v", share, err)
	}
	stop.Store(true)
	spinning.Wait()
	if _, err := rss(1 << 30); hearth.ErrorCode(err) != hearth.CodeNotFound {
		t.Errorf("nobody's resident set: %v", err)
	}
}

func TestDescendants(t *testing.T) {
	// A shell with a child: both are below us.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 1000 & echo $!; wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // killed
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	buf := make([]byte, 16)
	n, err := stdout.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	found := descendants(os.Getpid())
	if !found[cmd.Process.Pid] || found[os.Getpid()] || found[1] {
		t.Errorf("found %v, want %d", found, cmd.Process.Pid)
	}
	if len(descendants(cmd.Process.Pid)) != 1 {
		t.Errorf("below the shell: %v, want %s", descendants(cmd.Process.Pid), buf[:n])
	}
	for pid := range found {
		if b, err := pss(pid); err != nil || b < 4096 {
			t.Errorf("process %d has %d bytes, %v", pid, b, err)
		}
	}
	if b, err := pss(1 << 30); b != 0 || err != nil {
		t.Errorf("nobody's memory: %d, %v", b, err)
	}
}
