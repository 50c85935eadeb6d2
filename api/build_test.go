package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
	"github.com/hearthrun/hearth/driver"
)

// dependent is the body of a function with dependencies.
func dependent(change ...func(map[string]any)) map[string]any {
	files := map[string]string{"main.py": python, "requirements.txt": "idna\n"}
	return nameless(append([]func(map[string]any){set("code", map[string]any{"files": files})}, change...)...)
}

func TestDeployBuilds(t *testing.T) {
	h := newHost(t)
	var f function
	put := func(query string, body any) answer { return h.do("PUT", "/v1/functions/hello"+query, body) }
	live := func() hearth.Version {
		t.Helper()
		v, err := h.store.Version(t.Context(), "hello", f.Live)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	installed := func(v hearth.Version) string {
		t.Helper()
		dir, err := h.store.ArtifactDir(v.Artifact)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "installed.txt"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}

	put("", dependent()).json(201, &f)
	first := live()
	if first.Source == "" || first.Source == first.Artifact || installed(first) != "native python3.13" {
		t.Errorf("built %+v", first)
	}
	if len(h.verified) != 1 || h.verified[0].Artifact != first.Artifact {
		t.Errorf("started %+v", h.verified)
	}
	if r := h.built[0]; r.Isolation != "native" || r.Runtime.Name != "python3.13" || r.Fresh {
		t.Errorf("asked for %+v", r)
	}
	// The same again, and another configuration, install nothing.
	put("", dependent()).json(200, &f)
	if f.Live != 1 {
		t.Errorf("the same made version %d", f.Live)
	}
	put("", nameless(set("code", nil, "memory", "64MiB"))).json(200, &f)
	if v := live(); v.Number != 2 || v.Artifact != first.Artifact || v.Source != first.Source || len(h.built) != 1 {
		t.Errorf("a new configuration made %+v with %d builds", v, len(h.built))
	}
	// Another isolation or runtime installs for it, from the source.
	put("", nameless(set("code", nil, "isolation", "weak"))).json(200, &f)
	if v := live(); v.Source != first.Source || installed(v) != "weak python3.11" {
		t.Errorf("a new isolation made %+v", v)
	}
	put("", nameless(set("code", nil, "runtime", "python3.11"))).json(200, &f)
	if v := live(); v.Source != first.Source || installed(v) != "native python3.11" || v.Number != 4 {
		t.Errorf("a new runtime made %+v", v)
	}
	// Anew on demand; if that gives the same, nothing changes.
	n := len(h.built)
	put("?fresh=true", nameless(set("code", nil, "runtime", "python3.11"))).json(200, &f)
	if len(h.built) != n+1 || !h.built[n].Fresh || f.Live != 4 {
		t.Errorf("%d builds, version %d", len(h.built), f.Live)
	}
	// Without dependencies there is nothing to remember.
	put("", nameless()).json(200, &f)
	if v := live(); v.Source != "" || len(h.built) != n+1 {
		t.Errorf("without dependencies: %+v", v)
	}

	// A build that fails changes nothing and says what the installer said.
	h.build = func(context.Context, api.BuildRequest) (api.BuildResult, error) {
		return api.BuildResult{}, hearth.Errorf(hearth.CodeInvalid, "no matching distribution").WithHint("check it")
	}
	started := len(h.verified)
	put("", dependent()).problem(400, hearth.CodeInvalid, "no matching distribution", "check it")
	h.do("PUT", "/v1/functions/other", dependent()).problem(400, hearth.CodeInvalid, "no matching distribution")
	h.do("GET", "/v1/functions/other", nil).problem(404, hearth.CodeNotFound)
	live1 := f.Live
	if h.do("GET", "/v1/functions/hello", nil).json(200, &f); f.Live != live1 || len(h.verified) != started {
		t.Errorf("the failed build changed %+v", f)
	}
	if log := h.log.String(); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "no matching distribution") {
		t.Errorf("the server's log does not tell of it:\n%s", log)
	}
	// What is wrong without any installing is found before it.
	n = len(h.built)
	put("", dependent(set("handler", "nofile.handler"))).problem(400, hearth.CodeInvalid, "nofile")
	if len(h.built) != n {
		t.Error("dependencies were installed for a handler that does not exist")
	}
	wantNoStages(t, h)
}

// wantNoStages checks that no half-made artifact is left.
func wantNoStages(t *testing.T, h *host) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(h.store.Dir(), "artifacts", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// event is one line of a deploy that tells how it goes.
type event struct {
	Type, Step, Text string
	Cached           bool
	Status           int
	Function         *function
	Error            *problem
}

func events(t *testing.T, a answer) (list []event) {
	t.Helper()
	if a.Code != 200 || a.Header().Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("status %d, headers %v: %s", a.Code, a.Header(), a.Body)
	}
	for line := range bytes.Lines(a.Body.Bytes()) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		list = append(list, e)
	}
	return list
}

func TestDeployEvents(t *testing.T) {
	h := newHost(t)
	accept := []string{"Accept", "application/x-ndjson, application/json;q=0.5"}
	put := func(body any) answer { return h.do("PUT", "/v1/functions/hello", body, accept...) }
	got := func(list []event) (out []string) {
		for _, e := range list {
			s := e.Type
			if e.Step != "" {
				s += " " + e.Step
			}
			if e.Text != "" && e.Step != "built" {
				s += ": " + e.Text
			}
			out = append(out, s)
		}
		return out
	}

	list := events(t, put(dependent()))
	want := []string{
		"step build: installing the dependencies of requirements.txt for python3.13 on native",
		"log: collecting", "log: unpack\uFFFDed", "step built",
		"step start: starting version 1 with python3.13 on native", "result",
	}
	if d := cmp.Diff(want, got(list)); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if r := list[len(list)-1]; r.Status != 201 || r.Function == nil || r.Function.URL != "/fn/hello/" || r.Function.Live != 1 {
		t.Errorf("result %+v", r)
	}
	list = events(t, put(dependent(set("memory", "64MiB"))))
	if b := list[3]; b.Step != "built" || !b.Cached || b.Text != "dependencies: cached" {
		t.Errorf("built %+v", b)
	}
	if d := cmp.Diff([]string{"step unchanged: nothing has changed: version 2 stays live", "result"}, got(events(t, put(dependent(set("memory", "64MiB")))))); d != "" {
		t.Errorf("unchanged (-want +got):\n%s", d)
	}
	// Where it runs otherwise than before is said first.
	want = []string{
		"step change: isolation changes from native to weak, runtime from python3.13 to python3.11",
		"step start: starting version 3 with python3.11 on weak", "result",
	}
	if d := cmp.Diff(want, got(events(t, put(nameless(set("isolation", "weak")))))); d != "" {
		t.Errorf("elsewhere (-want +got):\n%s", d)
	}
	want = []string{"step change: isolation changes from weak to native", "step start: starting version 4 with python3.11 on native", "result"}
	if d := cmp.Diff(want, got(events(t, put(nameless(set("runtime", "python3.11")))))); d != "" {
		t.Errorf("back (-want +got):\n%s", d)
	}
	// What goes wrong later is the last event.
	h.verify = func(context.Context, *hearth.Version) error {
		return &hearth.Error{Code: hearth.CodeFunction, Message: "it raised", Function: &hearth.FunctionError{Type: "ValueError", Message: "it raised"}}
	}
	list = events(t, put(nameless()))
	last := list[len(list)-1]
	if last.Type != "error" || last.Status != 502 || last.Error == nil || last.Error.Code != hearth.CodeFunction || last.Error.Function == nil || last.Error.Hint == "" {
		t.Errorf("error %+v", last)
	}
	if len(list) != 3 { // the runtime changes
		t.Errorf("events %+v", list)
	}
	// What is refused at once has its status.
	put(nameless(set("runtime", "cobol"))).problem(400, hearth.CodeInvalid, "cobol")
	put(nameless(set("memory", 1))).problem(400, hearth.CodeInvalid, "memory")
	h.do("POST", "/v1/functions", hello(), accept...).problem(409, hearth.CodeConflict)
	// Those who do not ask get one answer.
	for _, a := range []string{"", "*/*", "application/json", "application/x-ndjson;q=0"} {
		var f function
		h.verify = nil
		h.do("PUT", "/v1/functions/hello", dependent(), "Accept", a).json(200, &f)
	}
}

// TestDeployGivenUp: a client that goes away ends its build, and nothing remains.
func TestDeployGivenUp(t *testing.T) {
	h := newHost(t)
	building, ended := make(chan struct{}), make(chan error, 1)
	h.build = func(ctx context.Context, r api.BuildRequest) (api.BuildResult, error) {
		if err := os.WriteFile(filepath.Join(r.Out, "half"), nil, 0o600); err != nil {
			t.Error(err)
		}
		close(building)
		<-ctx.Done()
		ended <- ctx.Err()
		return api.BuildResult{}, &hearth.Error{Code: hearth.CodeCanceled, Message: "the build was canceled", Err: ctx.Err()}
	}
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.handler.ServeHTTP(w, r)
		close(done)
	}))
	defer srv.Close()
	body, err := json.Marshal(dependent())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, srv.URL+"/v1/functions/hello", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	// The first event arrives while the build goes on.
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(line, `"build"`) {
		t.Errorf("first event %q, %v", line, err)
	}
	<-building
	cancel()
	<-ended
	<-done
	h.do("GET", "/v1/functions/hello", nil).problem(404, hearth.CodeNotFound)
	wantNoStages(t, h)
}

// TestNoImage: who deploys to an isolation without a base image is told the
// command that builds it.
func TestNoImage(t *testing.T) {
	h := newHost(t)
	image := []driver.Problem{{What: "there is no image", Remedy: "hearth images build"}}
	h.drivers = append(h.drivers, driver.Info{Name: "runc", Works: true, Limitations: image}, driver.Info{
		Name: "gvisor", Works: true, Runtimes: []driver.Runtime{{Name: "nodejs24", Language: "nodejs"}},
		Limitations: []driver.Problem{{What: "no runtime for python", Remedy: "hearth images build python"}},
	})
	h.drivers[2] = driver.Info{Name: "docker", Missing: image}
	for isolation, status := range map[string]int{"runc": 400, "gvisor": 400, "docker": 501} {
		code := hearth.CodeInvalid
		if status == 501 {
			code = hearth.CodeUnsupported
		}
		for _, runtime := range []string{"python", "python3.12"} {
			p := h.do("POST", "/v1/functions", hello(set("isolation", isolation, "runtime", runtime))).problem(status, code)
			if p.Hint != "hearth images build python" {
				t.Errorf("%s, %s: %+v", isolation, runtime, p)
			}
		}
	}
}

// TestProbesAgain: what was installed beside a running server is found when a
// deploy needs it.
func TestProbesAgain(t *testing.T) {
	h := newHost(t)
	h.do("POST", "/v1/functions", hello(set("isolation", "docker"))).problem(501, hearth.CodeUnsupported, "no daemon")
	h.do("POST", "/v1/functions", hello(set("runtime", "python3.99"))).problem(400, hearth.CodeInvalid, "python3.11")
	if d := cmp.Diff([]string{"docker", "native"}, h.refreshed); d != "" {
		t.Errorf("probed again (-want +got):\n%s", d)
	}
	h.refresh = func() {
		h.drivers[2] = driver.Info{Name: "docker", Works: true, Internet: true, Runtimes: []driver.Runtime{{Name: "python3.13", Language: "python"}}}
	}
	var f function
	h.do("POST", "/v1/functions", hello(set("isolation", "docker"))).json(201, &f)
	if f.Config.Isolation != "docker" || f.Config.Runtime != "python3.13" {
		t.Errorf("got %+v", f.Config)
	}
	n := len(h.refreshed)
	h.do("PUT", "/v1/functions/hello", nameless(set("isolation", "docker", "cpu", 2))).json(200, &f)
	h.do("GET", "/v1/drivers", nil).json(200, &struct{}{})
	if len(h.refreshed) != n {
		t.Errorf("what works was probed again: %v", h.refreshed)
	}
	h.do("GET", "/v1/drivers?refresh=true", nil).json(200, &struct{}{})
	if d := cmp.Diff([]string{""}, h.refreshed[n:]); d != "" {
		t.Errorf("probed on demand (-want +got):\n%s", d)
	}
}
