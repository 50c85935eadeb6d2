package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// devTimeout is how long anything may take on a busy machine.
const devTimeout = 60 * time.Second

// TestDev runs hearth dev on directories that change.
func TestDev(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "hearth")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", bin, "github.com/hearthrun/hearth/cmd/hearth")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	in := start(t, "")
	for _, l := range languages {
		t.Run(l.runtime, func(t *testing.T) { testDevSaves(t, in, bin, l.runtime, l.file) })
	}
	t.Run("tree", func(t *testing.T) { testDevTree(t, in, bin) })
	t.Run("existing", func(t *testing.T) { testDevExisting(t, in, bin) })
	t.Run("unread", func(t *testing.T) { testDevUnread(t, in, bin) })
	t.Run("own server", func(t *testing.T) { testDevOwnServer(t, bin) })
	t.Run("wrong", func(t *testing.T) { testDevWrong(t, bin) })
}

// devEvent is a line of hearth dev -o json.
type devEvent struct {
	Type, Text, URL, Function string
	Version                   int
	MS                        int64
	Error                     struct{ Type, Message string } `json:"function_error"`
}

// devRun is a running hearth dev.
type devRun struct {
	t      *testing.T
	cmd    *exec.Cmd
	events chan devEvent // closed when it has ended
	temp   string        // its TMPDIR
	out    io.Closer     // its standard output, as read here
	url    string        // of the function
}

// dev runs hearth dev -o json on a directory.
func dev(t *testing.T, bin, dir string, args ...string) *devRun {
	t.Helper()
	r := &devRun{t: t, events: make(chan devEvent, 1<<16), temp: t.TempDir()}
	r.cmd = exec.Command(bin, append([]string{"dev", dir, "-o", "json"}, args...)...) //nolint:noctx // it is ended below
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.temp, "HEARTH_URL=")
	r.cmd.Stderr = testWriter{t}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.out = out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e devEvent
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				e = devEvent{Type: "not JSON", Text: lines.Text()}
			}
			r.events <- e
		}
	}()
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			r.cmd.Process.Kill() //nolint:errcheck // it may be gone
			r.cmd.Wait()         //nolint:errcheck // killed
		}
	})
	return r
}

// next waits for an event of a type, and skips others.
func (r *devRun) next(kind string) devEvent {
	r.t.Helper()
	late := time.After(devTimeout)
	for {
		select {
		case e, ok := <-r.events:
			if !ok {
				r.t.Fatalf("hearth dev ended before an event %q", kind)
			}
			r.t.Logf("%+v", e)
			if e.Type == kind {
				if e.URL != "" {
					r.url = e.URL
				}
				return e
			}
		case <-late:
			r.t.Fatalf("no event %q came", kind)
		}
	}
}

// interrupt is Ctrl-C.
func (r *devRun) interrupt() { r.signal(os.Interrupt) }

// signal sends a signal and checks the end.
func (r *devRun) signal(s os.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
	r.ended()
}

// ended checks that hearth dev ends with 0, and that nothing remains of it.
func (r *devRun) ended() {
	r.t.Helper()
	for e := range r.events {
		r.t.Logf("%+v", e)
	}
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("hearth dev ended with %v", err)
	}
	if left, err := os.ReadDir(r.temp); err != nil || len(left) > 0 {
		r.t.Errorf("in its temporary directory remain %v, %v", left, err)
	}
	mounts, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range mounts {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), r.temp) {
			r.t.Errorf("a process of it goes on: %s", f)
		}
	}
}

// text returns what the function answers now.
func (r *devRun) text() string {
	r.t.Helper()
	resp, err := http.Get(r.url) //nolint:noctx // it has a deadline of its own
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b [200]byte
	n, _ := resp.Body.Read(b[:]) //nolint:errcheck // what came is compared
	return string(b[:n])
}

// until calls the function until it answers so, and returns after how long it did.
func (r *devRun) until(want string) time.Duration {
	r.t.Helper()
	began := time.Now()
	for {
		got := r.text()
		if got == want {
			return time.Since(began)
		}
		if time.Since(began) > devTimeout {
			r.t.Fatalf("it goes on answering %q, want %q", got, want)
		}
	}
}

// write writes files into a directory, as an editor that writes in place.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// answering is code whose handler answers with a text.
var answering = map[string]string{
	"python": "def handler(event, context):\n    print('called')\n    return {'statusCode': 200, 'body': '%s'}\n",
	"nodejs": "export const handler = async () => { console.log('called'); return {statusCode: 200, body: '%s'} }\n",
}

// testDevSaves saves code that works and code that does not.
func testDevSaves(t *testing.T, in *installation, bin, runtime, file string) {
	code := func(text string) string { return fmt.Sprintf(answering[runtime], text) }
	dir := t.TempDir()
	write(t, dir, map[string]string{"hearth.yaml": "name: dev-" + runtime + "\nruntime: " + runtime + "\n", file: code("0")})
	r := dev(t, bin, dir, "--url", in.url)
	r.next("reload")
	r.until("0")
	if got := r.next("log").Text; got != "called" {
		t.Errorf("the log has %q", got)
	}

	// From the save to the first answer of what was saved.
	var took []time.Duration
	for i := range 20 {
		text := fmt.Sprint(i + 1)
		write(t, dir, map[string]string{file: code(text)})
		took = append(took, r.until(text))
	}
	slices.Sort(took)
	t.Logf("save to answer: median %s, longest %s", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > time.Second {
		t.Errorf("save to answer: median %s is more than a second", took[len(took)/2])
	}

	// An editor that writes beside the file and renames.
	write(t, dir, map[string]string{file + "~": code("renamed")})
	if err := os.Rename(filepath.Join(dir, file+"~"), filepath.Join(dir, file)); err != nil {
		t.Fatal(err)
	}
	r.until("renamed")

	// What cannot be loaded changes nothing but the terminal.
	write(t, dir, map[string]string{file: "def broken( {{{"})
	if e := r.next("error"); e.Error.Type == "" || e.Function != "dev-"+runtime {
		t.Errorf("the error is %+v", e)
	}
	if got := r.text(); got != "renamed" {
		t.Errorf("with broken code it answers %q", got)
	}
	write(t, dir, map[string]string{"hearth.yaml": "name: dev-" + runtime + "\nruntime: " + runtime + "\ntimeuot: 3s\n", file: code("mended")})
	if e := r.next("error"); !strings.Contains(e.Text, "timeuot") {
		t.Errorf("the error is %+v", e)
	}
	write(t, dir, map[string]string{"hearth.yaml": "name: dev-" + runtime + "\nruntime: " + runtime + "\ntimeout: 3s\n"})
	r.until("mended")

	r.interrupt()
	want(t, in.do("GET", "/v1/functions/dev-"+runtime, nil), 404, "not_found")
}

// testDevTree changes directories, what is ignored, and the function's name.
func testDevTree(t *testing.T, in *installation, bin string) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"hearth.yaml": "name: one\nruntime: python\n", ".hearthignore": "*.tmp\nignored/\n", "ignored/x": "",
		"main.py": "import os\ndef handler(e, c):\n    names = [f for d in os.walk(os.path.dirname(__file__)) for f in d[2]]\n" +
			"    return ' '.join(sorted(n for n in names if n.endswith('.txt')))\n",
	})
	r := dev(t, bin, dir, "--url", in.url, "--name", "tree")
	r.next("reload")
	r.until("")
	// A new directory, then what comes into it later.
	write(t, dir, map[string]string{"new/deep/a.txt": ""})
	r.until("a.txt")
	write(t, dir, map[string]string{"new/deep/b.txt": ""})
	r.until("a.txt b.txt")
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "ignored/new")); err != nil {
		t.Fatal(err)
	}
	r.until("")
	// What is ignored is not there, also where it was not ignored before.
	write(t, dir, map[string]string{"ignored/new/deep/c.txt": "", "x.tmp": "", ".main.py.swp": "", "ignored/y": ""})
	write(t, dir, map[string]string{"d.txt": ""})
	r.until("d.txt")
	write(t, dir, map[string]string{".hearthignore": "*.tmp\n"})
	r.until("a.txt b.txt c.txt d.txt")
	write(t, dir, map[string]string{"ignored/new/deep/e.txt": ""})
	r.until("a.txt b.txt c.txt d.txt e.txt")
	if err := os.RemoveAll(filepath.Join(dir, "ignored")); err != nil {
		t.Fatal(err)
	}
	r.until("d.txt")
	r.interrupt()
	want(t, in.do("GET", "/v1/functions/tree", nil), 404, "not_found")
}

// testDevExisting keeps what dev has not made.
func testDevExisting(t *testing.T, in *installation, bin string) {
	in.deploy("mine", "python", "def handler(e, c):\n    return 'old'\n", nil)
	dir := t.TempDir()
	write(t, dir, map[string]string{"hearth.yaml": "name: mine\nruntime: python\n", "main.py": "def handler(e, c):\n    return 'new'\n"})
	r := dev(t, bin, dir, "--url", in.url)
	r.next("reload")
	r.until("new")
	// Under another name, dev makes one, and deletes it for the next name.
	write(t, dir, map[string]string{"hearth.yaml": "name: second\nruntime: python\nroutes: [/here]\n"})
	r.next("reload")
	write(t, dir, map[string]string{"hearth.yaml": "name: third\nruntime: python\nroutes: [/here]\n"})
	r.next("reload")
	want(t, in.do("GET", "/v1/functions/second", nil), 404, "not_found")
	// Somebody else changes what dev has made.
	in.deploy("third", "python", "def handler(e, c):\n    return 'theirs'\n", nil)
	r.interrupt()
	for name, text := range map[string]string{"mine": "new", "third": "theirs"} {
		if a := in.do("GET", "/fn/"+name+"/", nil); string(a.body) != text {
			t.Errorf("%s answers %v", name, a)
		}
	}
}

// testDevOwnServer starts dev where no Hearth runs, but something else does.
func testDevOwnServer(t *testing.T, bin string) {
	start(t, "").stop()                           // skips where no sandbox can be made
	l, err := net.Listen("tcp", "127.0.0.1:8080") //nolint:noctx // it does not wait
	if err != nil {
		t.Skipf("the default address is in use: %v", err)
	}
	other := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: devTimeout}
	go other.Serve(l) //nolint:errcheck // it ends with Close
	defer other.Close()
	dir := t.TempDir()
	write(t, dir, map[string]string{"hearth.yaml": "name: own\nruntime: python\n", "main.py": "def handler(e, c):\n    return 1\n"})
	r := dev(t, bin, dir)
	r.next("reload")
	r.until("1")
	write(t, dir, map[string]string{"main.py": "def handler(e, c):\n    return 2\n"})
	r.until("2")
	// A second one beside it has its own.
	if left, err := os.ReadDir(r.temp); err != nil || len(left) != 1 {
		t.Errorf("its temporary directory has %v, %v", left, err)
	}
	r.signal(syscall.SIGHUP)                                                                                         // the terminal was closed
	if c, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(r.url, "http://"), "/fn/own/")); err == nil { //nolint:noctx // loopback
		c.Close()
		t.Error("its server goes on")
	}
}

// testDevUnread ends dev when nobody reads it any more.
func testDevUnread(t *testing.T, in *installation, bin string) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"hearth.yaml": "name: unread\nruntime: python\n", "main.py": "def handler(e, c):\n    return 1\n"})
	r := dev(t, bin, dir, "--url", in.url)
	r.next("reload")
	if err := r.out.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"main.py": "def handler(e, c):\n    return 2\n"})
	r.ended()
	want(t, in.do("GET", "/v1/functions/unread", nil), 404, "not_found")
}

// testDevWrong refuses to start where nothing can come of it.
func testDevWrong(t *testing.T, bin string) {
	function := t.TempDir()
	write(t, function, map[string]string{"hearth.yaml": "name: own\nruntime: python\n", "main.py": ""})
	for _, c := range []struct {
		name, text string
		code       int
		args       []string
	}{
		{"no function", "there is no", 5, []string{t.TempDir()}},
		{"no server", "no hearth server answers", 10, []string{function, "--url", "http://127.0.0.1:1"}},
	} {
		cmd := exec.Command(bin, append([]string{"dev"}, c.args...)...) //nolint:noctx // it ends at once
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != c.code || !strings.Contains(string(out), c.text) {
			t.Errorf("%s: %v: %s", c.name, err, out)
		}
	}
}
