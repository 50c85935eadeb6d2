package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth/server"
)

// needRegistry skips the test where the registry of the runtime cannot be
// reached.
func needRegistry(t *testing.T, runtime string) {
	t.Helper()
	url := map[string]string{"python": "https://pypi.org/simple/idna/", "nodejs": "https://registry.npmjs.org/ms/2.1.3"}[runtime]
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Skipf("the registry cannot be reached: %v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Skipf("the registry does not answer: GET %s: %s", url, resp.Status)
	}
}

// event is one line of a deploy that tells how it goes.
type event struct {
	Type, Step, Text string
	Cached           bool
	Status           int
	Function         struct {
		Live     int
		Artifact string
	}
	Error struct{ Code, Detail, Hint string }
}

// follow deploys files and returns the events of the deploy.
func (in *installation) follow(name, runtime string, files map[string]string, config fields) []event {
	in.t.Helper()
	body := fields{"runtime": runtime, "code": fields{"files": files}}
	for k, v := range config {
		body[k] = v
	}
	a := in.do("PUT", "/v1/functions/"+name, body, "Accept", "application/x-ndjson")
	if a.status == 400 && strings.Contains(string(a.body), "runtime") && strings.Contains(string(a.body), "available") {
		in.t.Skipf("no runtime %s on this machine", runtime)
	}
	if a.status != 200 || a.header.Get("Content-Type") != "application/x-ndjson" || a.err != nil {
		in.t.Fatalf("deploy of %s: %v", name, a)
	}
	var list []event
	for line := range strings.Lines(string(a.body)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			in.t.Fatalf("%v in %s", err, line)
		}
		list = append(list, e)
	}
	if last := list[len(list)-1]; strings.Contains(last.Error.Hint, "python3-pip") || strings.Contains(last.Error.Hint, "npm") && last.Error.Code == "unsupported" {
		in.t.Skipf("no installer on this machine: %s; %s", last.Error.Detail, last.Error.Hint)
	}
	return list
}

// steps returns the steps of events and the type of the last one.
func steps(list []event) string {
	var out []string
	for _, e := range list {
		switch e.Type {
		case "step":
			out = append(out, e.Step)
		case "log":
			if len(out) == 0 || out[len(out)-1] != "log" {
				out = append(out, "log")
			}
		default:
			out = append(out, e.Type)
		}
	}
	return strings.Join(out, " ")
}

// dependent has, for each runtime, a function with dependencies.
var dependent = map[string]map[string]string{
	"python": {
		// A wheel with native code.
		"requirements.txt": "markupsafe==3.0.2\n",
		"main.py":          "from markupsafe import _speedups, escape\ndef handler(event, context):\n    return str(escape('<'))\n",
	},
	"nodejs": {
		"package.json": `{"name": "x", "private": true, "dependencies": {"ms": "2.1.3"}}`,
		"package-lock.json": `{
			"name": "x", "lockfileVersion": 3, "requires": true,
			"packages": {
				"": {"name": "x", "dependencies": {"ms": "2.1.3"}},
				"node_modules/ms": {
					"version": "2.1.3",
					"resolved": "https://registry.npmjs.org/ms/-/ms-2.1.3.tgz",
					"integrity": "sha512-6FlzubTLZG3J2a/NVCAleEhjzq5oxgHyaCU9yYXvcLsvoVaHJq/s5xXI6/XXP6tz7R9xAOtHnSO/tXtF3WRTlA=="
				}
			}
		}`,
		"main.mjs": "import ms from 'ms';\nexport const handler = async () => ms(60000);\n",
	},
}

// TestDependencies: what a function asks for is installed, once for the same
// lock file; if that fails, all stays as it was.
func TestDependencies(t *testing.T) {
	in := start(t, "")
	answers := map[string]string{"python": "&lt;", "nodejs": "1m"}
	missing := map[string]struct{ file, content, says string }{
		"python": {"requirements.txt", "hearth-no-such-package-exists==1.0\n", "No matching distribution found for hearth-no-such-package-exists==1.0"},
		"nodejs": {"package.json", `{"name": "x", "private": true, "dependencies": {"ms": "99.0.0"}}`, "No matching version found for ms@99.0.0"},
	}
	for _, l := range languages {
		t.Run(l.runtime, func(t *testing.T) {
			in.t = t
			needRegistry(t, l.runtime)
			name, files := "needs-"+l.runtime, dependent[l.runtime]
			list := in.follow(name, l.runtime, files, nil)
			if got := steps(list); got != "build log built start result" {
				t.Fatalf("the first deploy went %s: %+v", got, list)
			}
			check := func() {
				t.Helper()
				if a := in.do("GET", "/fn/"+name+"/", nil); a.status != 200 || string(a.body) != answers[l.runtime] {
					t.Errorf("the function answers %v", a)
				}
			}
			check()
			v := in.do("GET", "/v1/functions/"+name+"/versions/1", nil).json(t)
			if v["source"] == nil || v["source"] == v["artifact"] {
				t.Errorf("the version does not tell its source: %v", v)
			}

			// Other code with the same lock file.
			changed := map[string]string{}
			for k, c := range files {
				changed[k] = c
			}
			changed[l.file] += "\n"
			began := time.Now()
			list = in.follow(name, l.runtime, changed, nil)
			took := time.Since(began)
			i := slices.IndexFunc(list, func(e event) bool { return e.Step == "built" })
			if i < 0 || !list[i].Cached || list[i].Text != "dependencies: cached" || list[len(list)-1].Function.Live != 2 {
				t.Errorf("the second deploy: %+v", list)
			}
			t.Logf("deploy with cached dependencies: %s", took)
			check()

			// Another memory limit installs nothing.
			a := in.do("PUT", "/v1/functions/"+name, fields{"runtime": l.runtime, "memory": "256MiB"}, "Accept", "application/x-ndjson")
			if strings.Contains(string(a.body), `"build"`) || !strings.Contains(string(a.body), `"live":3`) {
				t.Errorf("a new memory limit: %v", a)
			}
			check()

			// A package that does not exist, on the function that works and as a
			// new function.
			bad := missing[l.runtime]
			delete(changed, "package-lock.json")
			changed[bad.file] = bad.content
			for _, n := range []string{name, "new-" + l.runtime} {
				list = in.follow(n, l.runtime, changed, nil)
				last := list[len(list)-1]
				if last.Type != "error" || last.Status != 400 || last.Error.Code != "invalid" || !strings.Contains(last.Error.Detail, bad.says) {
					t.Errorf("%s: the error does not have the installer's words: %+v", n, last)
				}
			}
			a = in.do("PUT", "/v1/functions/"+name, fields{"runtime": l.runtime, "code": fields{"files": changed}})
			want(t, a, 400, "invalid")
			if f := in.do("GET", "/v1/functions/"+name, nil).json(t); f["live"] != 3.0 {
				t.Errorf("the failed builds changed the function: %v", f)
			}
			want(t, in.do("GET", "/v1/functions/new-"+l.runtime, nil), 404, "not_found")
			check()
		})
	}
	in.t = t
	in.noBuildsLeft()
}

// noBuildsLeft checks that nothing of any build remains but its result.
func (in *installation) noBuildsLeft() {
	in.t.Helper()
	waitFor(in.t, "half-made artifacts to go", func() bool {
		left, err := filepath.Glob(filepath.Join(in.dir, "artifacts", ".*"))
		return err == nil && len(left) == 0
	})
	for _, p := range sandboxProcesses(in.dir) {
		if strings.Contains(p, "hearth_build") {
			in.t.Errorf("a build goes on: %s", p)
		}
	}
}

// endless is the source of a function of which a package is built without end.
var endless = fields{
	"main.py":             "def handler(event, context):\n    return 1\n",
	"requirements.txt":    "./slow\n",
	"slow/pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n",
	"slow/backend.py":     "import time\nwhile True:\n    time.sleep(1)\n",
}

// begin starts to deploy endless as the function slow and returns the rest of
// the answer once the build is under way.
func (in *installation) begin(ctx context.Context) *bufio.Scanner {
	t := in.t
	t.Helper()
	body, err := json.Marshal(fields{"runtime": "python", "code": fields{"files": endless}})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, in.url+"/v1/functions/slow", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	begun := false
	for !begun && lines.Scan() {
		if strings.Contains(lines.Text(), "python3-pip") {
			t.Skipf("no installer on this machine: %s", lines.Text())
		}
		begun = strings.Contains(lines.Text(), "Processing ./slow")
	}
	if !begun {
		t.Fatalf("the build did not begin: %v, last line %s", lines.Err(), lines.Text())
	}
	waitFor(t, "the sandbox of the build", func() bool { return len(sandboxProcesses(in.dir)) > 0 })
	return lines
}

// TestBuildGivenUp: the client goes away while a package of the source is being
// built.
func TestBuildGivenUp(t *testing.T) {
	in := start(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in.begin(ctx)
	cancel()
	waitFor(t, "the sandbox to go", func() bool { return len(sandboxProcesses(in.dir)) == 0 })
	in.noBuildsLeft()
	want(t, in.do("GET", "/v1/functions/slow", nil), 404, "not_found")
	// Another deploy of the same name does not wait for it.
	in.deploy("slow", "python", "def handler(event, context):\n    return 2\n", nil)
}

// TestStopDuringBuild: a server that ends breaks a build off, and nothing of it
// remains.
func TestStopDuringBuild(t *testing.T) {
	in := start(t, "", func(c *server.Config) { c.DrainTimeout = 100 * time.Millisecond })
	lines := in.begin(t.Context())
	in.stop()
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"result"`) {
			t.Errorf("the deploy claims to have ended well: %s", lines.Text())
		}
	}
	if left := sandboxProcesses(in.dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	in.noBuildsLeft()
}

// TestBuildTimeout: a build that never ends is ended, which is told as such.
func TestBuildTimeout(t *testing.T) {
	in := start(t, "", func(c *server.Config) { c.BuildTimeout = 5 * time.Second })
	lines := in.begin(t.Context())
	last := ""
	for lines.Scan() {
		last = lines.Text()
	}
	var e event
	if err := json.Unmarshal([]byte(last), &e); err != nil || e.Type != "error" || e.Error.Code != "timeout" || e.Status != 504 {
		t.Errorf("the last line is %s", last)
	}
	in.noBuildsLeft()
}

// TestExamplesWithDependencies deploys the examples as their users do, by an
// archive's files.
func TestExamplesWithDependencies(t *testing.T) {
	in := start(t, "")
	for _, c := range []struct{ dir, runtime, path, says string }{
		{"qrcode-python", "python", "/?text=hello", "<svg"},
		{"markdown-node", "nodejs", "/?text=%23%20Hi", "<h1>Hi</h1>"},
	} {
		t.Run(c.dir, func(t *testing.T) {
			in.t = t
			needRegistry(t, c.runtime)
			files := map[string]string{}
			entries, err := os.ReadDir(filepath.Join("../../examples", c.dir))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				b, err := os.ReadFile(filepath.Join("../../examples", c.dir, e.Name()))
				if err != nil {
					t.Fatal(err)
				}
				files[e.Name()] = string(b)
			}
			if list := in.follow(c.dir, c.runtime, files, nil); list[len(list)-1].Type != "result" {
				t.Fatalf("deploy: %+v", list)
			}
			if a := in.do("GET", "/fn/"+c.dir+c.path, nil); a.status != 200 || !strings.Contains(string(a.body), c.says) {
				t.Errorf("the example answers %v", a)
			}
		})
	}
}
