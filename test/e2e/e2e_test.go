// Package e2e tests a whole server with real sandboxes and interpreters, as its
// users see it: over HTTP.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth/server"
)

// installation is a running server of a test.
type installation struct {
	t   *testing.T
	dir string
	url string
	// stop ends the server in an orderly way and waits for it.
	stop func()
}

// languages are the runtimes that every case runs with, and the file in which
// their handlers are.
var languages = []struct{ runtime, file string }{
	{"python", "main.py"},
	{"nodejs", "main.mjs"},
}

// start runs a server with a data directory of its own, or the given one, and a
// configuration that may be changed.
func start(t *testing.T, dir string, change ...func(*server.Config)) *installation {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level}))
	ctx, cancel := context.WithCancel(context.Background())
	cfg := server.Config{
		DataDir: dir, Listen: "127.0.0.1:0", Logger: log, DrainTimeout: 10 * time.Second,
		ImagesDir: testImages(t), DockerHost: testDocker(dir),
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := server.New(ctx, cfg)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	in := &installation{t: t, dir: dir, url: "http://" + s.Addr()}
	stopped := false
	in.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
	}
	t.Cleanup(in.stop)
	select {
	case <-s.Ready():
	case err := <-ended:
		stopped = true
		t.Fatalf("the server did not start: %v", err)
	}
	in.needDriver()
	return in
}

// testImages returns the directory with the base images that tests use; it may
// not exist.
func testImages(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("HEARTH_TEST_IMAGES")
	if dir == "" {
		dir = "../../.cache/images"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// testDocker returns where the Docker Engine of the tests listens. Without one
// it names a socket that does not exist, so that no test uses the machine's.
func testDocker(dir string) string {
	if host := os.Getenv("HEARTH_TEST_DOCKER"); host != "" {
		return host
	}
	return "unix://" + filepath.Join(dir, "no-docker.sock")
}

// needDriver skips the test where no sandbox can be made.
func (in *installation) needDriver() {
	in.t.Helper()
	var v struct {
		Drivers []struct {
			Name    string
			Works   bool
			Missing []struct{ What string }
		}
	}
	decode(in.t, in.do("GET", "/v1/drivers", nil), &v)
	for _, d := range v.Drivers {
		if d.Name == "native" && !d.Works {
			in.t.Skipf("the native driver does not work on this machine: %v", d.Missing)
		}
	}
}

// testWriter shows the server's log in the test's output.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// answer is an HTTP response read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // the body broke off
}

func (a answer) String() string {
	body := a.body
	if len(body) > 500 {
		body = body[:500]
	}
	return fmt.Sprintf("%d %v %s (%v)", a.status, a.header, body, a.err)
}

// json decodes the body.
func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("the answer is no JSON object: %v: %v", err, a)
	}
	return v
}

func decode(t *testing.T, a answer, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v: %v", err, a)
	}
}

// do sends a request; body may be nil, a string, bytes, a reader or a value
// that becomes JSON.
func (in *installation) do(method, path string, body any, header ...string) answer {
	in.t.Helper()
	return in.doContext(in.t.Context(), method, path, body, header...)
}

func (in *installation) doContext(ctx context.Context, method, path string, body any, header ...string) answer {
	in.t.Helper()
	var r io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	case io.Reader:
		r = b
	default:
		data, err := json.Marshal(b)
		if err != nil {
			in.t.Fatal(err)
		}
		r, kind = bytes.NewReader(data), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, method, in.url+path, r)
	if err != nil {
		in.t.Fatal(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, data, err}
}

type fields = map[string]any

// try deploys a function of one file and returns the server's answer.
func (in *installation) try(name, runtime, code string, config fields) answer {
	in.t.Helper()
	body := fields{"runtime": runtime}
	for _, l := range languages {
		if strings.HasPrefix(runtime, l.runtime) {
			body["code"] = fields{"files": fields{l.file: code}}
		}
	}
	for k, v := range config {
		body[k] = v
	}
	return in.do("PUT", "/v1/functions/"+name, body)
}

// deploy deploys a function of one file that must work.
func (in *installation) deploy(name, runtime, code string, config fields) {
	in.t.Helper()
	a := in.try(name, runtime, code, config)
	if a.status == 400 && strings.Contains(string(a.body), "runtime") && strings.Contains(string(a.body), "available") {
		in.t.Skipf("no runtime %s on this machine", runtime)
	}
	if a.status != 200 && a.status != 201 {
		in.t.Fatalf("deploy of %s: %v", name, a)
	}
}

// invoke calls a function with an event.
func (in *installation) invoke(name string, event any) answer {
	in.t.Helper()
	data, err := json.Marshal(event)
	if err != nil {
		in.t.Fatal(err)
	}
	return in.do("POST", "/v1/functions/"+name+"/invocations", data, "Content-Type", "application/json")
}

// logs returns the text of a function's log lines.
func (in *installation) logs(name string) []fields {
	in.t.Helper()
	a := in.do("GET", "/v1/functions/"+name+"/logs?tail=1000", nil)
	var v struct{ Lines []fields }
	if err := json.Unmarshal(a.body, &v); err != nil {
		in.t.Fatalf("logs: %v", a)
	}
	return v.Lines
}

// want fails the test unless the answer has the status and Hearth-Error code.
func want(t *testing.T, a answer, status int, code string) {
	t.Helper()
	if a.status != status || a.header.Get("Hearth-Error") != code {
		t.Errorf("want %d %q, got %v", status, code, a)
	}
}

// each runs a case in every language; source has the code by runtime.
func each(t *testing.T, source map[string]string, test func(t *testing.T, runtime, code string)) {
	for _, l := range languages {
		if code, ok := source[l.runtime]; ok {
			t.Run(l.runtime, func(t *testing.T) { test(t, l.runtime, code) })
		}
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		os.Exit(serveChild(dir))
	}
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 100
	os.Exit(m.Run())
}
