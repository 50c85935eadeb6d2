package api_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
)

// sourceOf lists files as a client does.
func sourceOf(files map[string]string) []hearth.SourceFile {
	list := []hearth.SourceFile{}
	for p, text := range files {
		sum := sha256.Sum256([]byte(text))
		list = append(list, hearth.SourceFile{Path: p, SHA256: hex.EncodeToString(sum[:])})
	}
	return list
}

func TestPlan(t *testing.T) {
	h := newHost(t)
	files := map[string]string{"main.py": python, "requirements.txt": "six\n", "hearth.yaml": "# as it was"}
	put := func(config map[string]any) {
		body := map[string]any{"code": map[string]any{"files": files}}
		for k, v := range config {
			body[k] = v
		}
		if a := h.do("PUT", "/v1/functions/hello", body); a.Code >= 300 {
			t.Fatalf("deploy: %s", a.Body)
		}
	}
	plan := func(files map[string]string, config map[string]any) hearth.Plan {
		t.Helper()
		body := map[string]any{}
		if files != nil {
			body["files"] = sourceOf(files)
		}
		for k, v := range config {
			body[k] = v
		}
		var p hearth.Plan
		h.do("POST", "/v1/functions/hello/plan", body).json(200, &p)
		return p
	}
	config := map[string]any{
		"runtime": "python", "env": map[string]string{"A": "1", "B": "2"}, "routes": []string{"/a"}, "timeout": "5s",
		"labels": map[string]string{hearth.SetLabel: "mine"},
	}
	p := plan(files, config)
	if p.Action != hearth.PlanCreate || p.Generation != 0 || p.Config.Runtime != "python3.13" || p.Config.Egress != hearth.EgressInternet {
		t.Errorf("a new function: %+v", p)
	}
	put(config)
	if p = plan(files, config); p.Action != hearth.PlanUnchanged || p.Generation != 1 || p.Settings != nil || p.Files != nil {
		t.Errorf("the same: %+v", p)
	}
	// Hearth's own labels stay when they are not mentioned; what hearth.yaml says is
	// in the configuration.
	delete(config, "labels")
	changed := map[string]string{"main.py": python, "requirements.txt": "six\n", "hearth.yaml": "# changed"}
	if p = plan(changed, config); p.Action != hearth.PlanUnchanged {
		t.Errorf("the same but for its text: %+v", p)
	}
	// Without files the code stays.
	if p = plan(nil, config); p.Action != hearth.PlanUnchanged {
		t.Errorf("without files: %+v", p)
	}
	var f function
	h.do("PUT", "/v1/functions/hello", map[string]any{"runtime": "python", "env": map[string]string{"A": "1"}}).json(200, &f)
	if f.Config.Labels[hearth.SetLabel] != "mine" {
		t.Errorf("a deploy without the label leaves %v", f.Config.Labels)
	}
	h.do("PUT", "/v1/functions/hello", map[string]any{"runtime": "python", "labels": map[string]string{hearth.SetLabel: "other"}}).json(200, &f)
	if f.Config.Labels[hearth.SetLabel] != "other" {
		t.Errorf("a deploy with another label leaves %v", f.Config.Labels)
	}
	put(config)

	changed = map[string]string{"main.py": python + "#", "new/x": ""}
	p = plan(changed, map[string]any{
		"runtime": "python3.11", "env": map[string]string{"A": "3", "C": ""}, "memory": "64MiB",
		"routes": []string{"/a", "/b"}, "warm": map[string]any{"call": map[string]any{"x": 1}},
	})
	want := hearth.Plan{
		Function: "hello", Action: hearth.PlanUpdate, Generation: 4,
		Settings: []hearth.SettingChange{
			{Setting: "runtime", From: "python3.13", To: "python3.11"},
			{Setting: "timeout", From: "5s", To: "30s"},
			{Setting: "memory", From: "128MiB", To: "64MiB"},
			{Setting: "warm.call", To: `{"x":1}`},
			{Setting: "env.A", From: "1", To: "3"},
			{Setting: "env.B", From: "2"},
			{Setting: "env.C", To: `""`},
			{Setting: "routes", From: `["/a"]`, To: `["/a","/b"]`},
		},
		Files: []hearth.FileChange{
			{Path: "main.py", Change: "changed"}, {Path: "new/x", Change: "added"}, {Path: "requirements.txt", Change: "removed"},
		},
	}
	p.Config = hearth.Config{}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}

	// A plan says what is wrong as a deploy would.
	h.do("POST", "/v1/functions/hello/plan", map[string]any{"runtime": "python9"}).problem(400, hearth.CodeInvalid, "python9")
	h.do("POST", "/v1/functions/hello/plan", map[string]any{"runtime": "python", "isolation": "docker"}).problem(501, hearth.CodeUnsupported)
	h.do("POST", "/v1/functions/Hello/plan", map[string]any{"runtime": "python"}).problem(400, hearth.CodeInvalid, "Hello")
	h.routes = func(string, []hearth.Route) error { return hearth.Errorf(hearth.CodeConflict, "taken by x") }
	if p = plan(nil, config); len(p.Warnings) != 1 || p.Warnings[0] != "taken by x" {
		t.Errorf("a route that is taken: %+v", p)
	}
	var versions struct{ Versions []hearth.Version }
	h.do("GET", "/v1/functions/hello/versions", nil).json(200, &versions)
	if len(versions.Versions) != 4 {
		t.Errorf("plans made versions: %d", len(versions.Versions))
	}
}

// TestSource uploads what was downloaded, and gets the same.
func TestSource(t *testing.T) {
	h := newHost(t)
	h.do("POST", "/v1/functions", hello(set("code", map[string]any{"files": map[string]string{
		"main.py": python, "requirements.txt": "six\n",
	}}))).json(201, &function{})
	v, err := h.store.Version(t.Context(), "hello", 1)
	if err != nil || v.Source == "" {
		t.Fatalf("version %+v, %v", v, err)
	}
	a := h.do("GET", "/v1/functions/hello/versions/1/source", nil)
	if a.Code != 200 || a.Header().Get("Content-Type") != "application/gzip" || a.Header().Get("Content-Disposition") != `attachment; filename="hello-1.tar.gz"` {
		t.Fatalf("%d %v %s", a.Code, a.Header(), a.Body)
	}
	var up struct{ Digest string }
	h.do("POST", "/v1/artifacts", a.Body.Bytes(), "Content-Type", "application/gzip").json(201, &up)
	if up.Digest != v.Source {
		t.Errorf("uploaded again it is %s, not %s", up.Digest, v.Source)
	}
	for path, want := range map[string]struct {
		status int
		code   hearth.Code
	}{
		"/v1/functions/hello/versions/2/source":     {404, hearth.CodeNotFound},
		"/v1/functions/nobody/versions/1/source":    {404, hearth.CodeNotFound},
		"/v1/functions/hello/versions/0/source":     {400, hearth.CodeInvalid},
		"/v1/functions/hello/versions/x/source":     {400, hearth.CodeInvalid},
		"/v1/functions/hello/versions/1/source?a=b": {400, hearth.CodeInvalid},
	} {
		h.do("GET", path, nil).problem(want.status, want.code)
	}
}
