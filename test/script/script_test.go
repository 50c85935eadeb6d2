// Package script tests the command line: each script in testdata starts the
// real binary, most with a real server on a port and data directory of its own.
package script

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// readyTimeout is how long a server may take on a busy machine.
const readyTimeout = 60 * time.Second

func TestScripts(t *testing.T) { testscript.Run(t, params(t)) }

// params are those of every run; the binary is built for each.
func params(t *testing.T) testscript.Params {
	bin := build(t)
	cmds := map[string]func(*testscript.TestScript, bool, []string){
		"serve": serve,
		"stop":  stop,
		"exits": exits,
	}
	maps.Copy(cmds, terminalCmds)
	return testscript.Params{
		Files:               scripts(t),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("NO_COLOR", "1")
			return nil
		},
		Cmds: cmds,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "npm":
				return reachable("https://registry.npmjs.org/ms/2.1.3"), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	}
}

// reachable tells whether a page of a registry can be read.
func reachable(url string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

func scripts(t *testing.T) []string {
	files, err := filepath.Glob("*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	return files
}

// build makes the binary as it is shipped, and returns its directory.
func build(t *testing.T) string {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", dir, "github.com/hearthrun/hearth/cmd/hearth")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// server is a hearth serve of one script.
type server struct {
	cmd    *exec.Cmd
	output *output
	exited chan error
}

// running holds the server of each script between commands.
var running sync.Map // of *testscript.TestScript → *server

// serve starts a server on a free port, waits until it is ready and puts its
// URL into HEARTH_URL. Arguments are added to its command line.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("unsupported: ! serve")
	}
	bin := filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "hearth")
	args = append([]string{"serve", "--listen", "127.0.0.1:0", "--data-dir", ts.MkAbs("data")}, args...)
	s := &server{output: &output{url: make(chan string, 1)}, exited: make(chan error, 1)}
	s.cmd = exec.CommandContext(context.Background(), bin, args...) // ended by end, however the script ends
	s.cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME")}
	s.cmd.Dir = ts.MkAbs(".")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Stderr = s.output
	s.cmd.Stdout = s.output
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is one of the thread that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.exited <- s.cmd.Wait()
			close(s.exited)
		}
	}()
	ts.Check(<-started)
	running.Store(ts, s)
	ts.Defer(func() { s.end(ts) })
	ts.Setenv("HEARTH_URL", s.url(ts))
}

// url waits until the server is ready and returns where it is.
func (s *server) url(ts *testscript.TestScript) string {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	var url string
	select {
	case <-s.exited:
		ts.Fatalf("the server ended at once\n%s", s.output)
	case <-ctx.Done():
		ts.Fatalf("the server was not ready in %s\n%s", readyTimeout, s.output)
	case url = <-s.output.url:
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	ts.Check(err)
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	ts.Check(resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("/readyz answers %s", resp.Status)
	}
	return url
}

// stop ends the server with SIGTERM and checks that it ends with 0.
func stop(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: stop")
	}
	v, ok := running.LoadAndDelete(ts)
	if !ok {
		ts.Fatalf("no server runs")
	}
	s := v.(*server)
	ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-s.exited:
		if err != nil {
			ts.Fatalf("the server ended with %v\n%s", err, s.output)
		}
	case <-time.After(readyTimeout):
		ts.Fatalf("the server did not end\n%s", s.output)
	}
	ts.Logf("server:\n%s", s.output)
}

// end stops the server at the end of a script that did not.
func (s *server) end(ts *testscript.TestScript) {
	if _, ok := running.LoadAndDelete(ts); !ok {
		return
	}
	s.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may be gone
	select {
	case <-s.exited:
	case <-time.After(readyTimeout):
		s.cmd.Process.Kill() //nolint:errcheck // it may be gone
		<-s.exited
	}
	ts.Logf("server:\n%s", s.output)
}

// exits runs hearth with the arguments after the first and checks its exit
// code. Its output can be matched with stdout and stderr as after exec.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if err != nil {
		// testscript only tells the error's text.
		if _, serr := fmt.Sscanf(err.Error(), "exit status %d", &code); serr != nil {
			ts.Fatalf("%s: %v", strings.Join(args[1:], " "), err)
		}
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// output keeps what the server writes and finds its URL in it.
type output struct {
	url  chan string
	mu   sync.Mutex
	text strings.Builder
	told bool
}

var urlRE = regexp.MustCompile(`msg=serving url=(\S+) `)

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	if m := urlRE.FindStringSubmatch(o.text.String()); m != nil && !o.told {
		o.told = true
		o.url <- m[1]
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
