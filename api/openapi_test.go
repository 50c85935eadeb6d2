package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/google/go-cmp/cmp"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
)

var update = flag.Bool("update", false, "write docs/openapi.json")

const golden = "../docs/openapi.json"

// TestOpenAPI compares the document with the one in docs/.
func TestOpenAPI(t *testing.T) {
	h := newHost(t, func(d *api.Deps) { d.Version = "v1" })
	a := h.do("GET", "/openapi.json", nil)
	if a.Code != 200 || a.Header().Get("Content-Type") != "application/openapi+json" {
		t.Fatalf("%d %v", a.Code, a.Header())
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, a.Body.Bytes(), "", "  "); err != nil {
		t.Fatal(err)
	}
	pretty.WriteByte('\n')
	if *update {
		if err := os.WriteFile(golden, pretty.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), pretty.String()); d != "" {
		t.Errorf("docs/openapi.json is old; run go test ./api -update (-want +got):\n%s", d)
	}
	var fromJSON, fromYAML any
	y := h.do("GET", "/openapi.yaml", nil)
	if err := yaml.Unmarshal(y.Body.Bytes(), &fromYAML); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(want, &fromJSON); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fromJSON, fromYAML); d != "" {
		t.Errorf("YAML and JSON differ:\n%s", d)
	}
}

// schema is what the checks below need of a JSON schema.
type schema struct {
	Ref        string            `json:"$ref"`
	Type       any               `json:"type"`
	Properties map[string]schema `json:"properties"`
	Pattern    string            `json:"pattern"`
	Examples   []any             `json:"examples"`
	Additional any               `json:"additionalProperties"`
}

type operation struct {
	OperationID string   `json:"operationId"`
	Summary     string   `json:"summary"`
	Tags        []string `json:"tags"`
	Parameters  []struct{ Name, In, Description string }
	RequestBody *struct {
		Content map[string]struct{ Schema schema }
	} `json:"requestBody"`
	Responses map[string]struct {
		Description string
		Content     map[string]struct{ Schema schema }
	}
}

// TestOpenAPIStructure checks what makes the document useful and valid.
func TestOpenAPIStructure(t *testing.T) {
	h := newHost(t)
	raw := h.do("GET", "/openapi.json", nil).Body.Bytes()
	var doc struct {
		OpenAPI    string
		Info       struct{ Title, Version string }
		Tags       []struct{ Name string }
		Paths      map[string]map[string]operation
		Components struct{ Schemas map[string]schema }
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Info.Version != "1.2.3" {
		t.Errorf("openapi %q, info %+v", doc.OpenAPI, doc.Info)
	}
	for _, ref := range regexp.MustCompile(`"\$ref":"([^"]*)"`).FindAllStringSubmatch(string(raw), -1) {
		name := strings.TrimPrefix(ref[1], "#/components/schemas/")
		if _, ok := doc.Components.Schemas[name]; !ok {
			t.Errorf("%s leads nowhere", ref[1])
		}
	}
	var ops, ids []string
	for path, item := range doc.Paths {
		for method, op := range item {
			ops = append(ops, strings.ToUpper(method)+" "+path)
			if op.Summary == "" || len(op.Tags) != 1 || op.OperationID == "" || slices.Contains(ids, op.OperationID) {
				t.Errorf("%s %s: %+v", method, path, op)
			}
			ids = append(ids, op.OperationID)
			if !slices.ContainsFunc(doc.Tags, func(g struct{ Name string }) bool { return g.Name == op.Tags[0] }) {
				t.Errorf("%s %s has the unknown tag %s", method, path, op.Tags[0])
			}
			if e := op.Responses["default"].Content["application/problem+json"].Schema.Ref; e != "#/components/schemas/Problem" {
				t.Errorf("%s %s: errors have the schema %q", method, path, e)
			}
			if !slices.ContainsFunc([]string{"200", "201", "202", "204"}, func(s string) bool { _, ok := op.Responses[s]; return ok }) {
				t.Errorf("%s %s never succeeds", method, path)
			}
			for _, p := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
				if !slices.ContainsFunc(op.Parameters, func(q struct{ Name, In, Description string }) bool {
					return q.Name == p[1] && q.In == "path"
				}) {
					t.Errorf("%s %s does not declare {%s}", method, path, p[1])
				}
			}
			for _, p := range op.Parameters {
				if p.Description == "" {
					t.Errorf("%s %s: parameter %s has no description", method, path, p.Name)
				}
			}
		}
	}
	slices.Sort(ops)
	want := []string{
		"DELETE /v1/functions/{name}",
		"DELETE /v1/functions/{name}/aliases/{alias}",
		"DELETE /v1/functions/{name}/instances",
		"DELETE /v1/functions/{name}/queue/dead",
		"DELETE /v1/functions/{name}/versions/{number}",
		"DELETE /v1/invocations/{id}",
		"DELETE /v1/queues/{queue}/dead",
		"DELETE /v1/secrets/{secret}",
		"GET /healthz",
		"GET /readyz",
		"GET /v1/cost",
		"GET /v1/drivers",
		"GET /v1/examples",
		"GET /v1/functions",
		"GET /v1/functions/{name}",
		"GET /v1/functions/{name}/aliases",
		"GET /v1/functions/{name}/cost",
		"GET /v1/functions/{name}/instances",
		"GET /v1/functions/{name}/invocations",
		"GET /v1/functions/{name}/logs",
		"GET /v1/functions/{name}/queue",
		"GET /v1/functions/{name}/releases",
		"GET /v1/functions/{name}/schedules",
		"GET /v1/functions/{name}/stats",
		"GET /v1/functions/{name}/versions",
		"GET /v1/functions/{name}/versions/{number}",
		"GET /v1/functions/{name}/versions/{number}/source",
		"GET /v1/invocations",
		"GET /v1/invocations/{id}",
		"GET /v1/invocations/{id}/payload",
		"GET /v1/invocations/{id}/trace",
		"GET /v1/pool",
		"GET /v1/pool/events",
		"GET /v1/queue",
		"GET /v1/queue/webhook-secret",
		"GET /v1/queues",
		"GET /v1/queues/{queue}/messages",
		"GET /v1/schedules",
		"GET /v1/secrets",
		"GET /v1/stats",
		"POST /v1/artifacts",
		"POST /v1/functions",
		"POST /v1/functions/{name}/invocations",
		"POST /v1/functions/{name}/plan",
		"POST /v1/functions/{name}/queue/redrive",
		"POST /v1/functions/{name}/releases",
		"POST /v1/functions/{name}/releases/{id}/abort",
		"POST /v1/functions/{name}/releases/{id}/finish",
		"POST /v1/functions/{name}/rollback",
		"POST /v1/functions/{name}/schedules/{schedule}/run",
		"POST /v1/queues/{queue}/messages",
		"POST /v1/queues/{queue}/redrive",
		"POST /v1/secrets/rekey",
		"POST /v1/secrets/{secret}/rollback",
		"PUT /v1/functions/{name}",
		"PUT /v1/functions/{name}/aliases/{alias}",
		"PUT /v1/functions/{name}/schedules/{schedule}/paused",
		"PUT /v1/secrets/{secret}",
	}
	if d := cmp.Diff(want, ops); d != "" {
		t.Errorf("operations (-want +got):\n%s", d)
	}

	input := doc.Components.Schemas["NewFunction"]
	if input.Additional != false {
		t.Error("unknown fields are not declared as errors")
	}
	for field, good := range map[string][]string{
		"timeout": {"30s", "1m30s", "500ms", "2", "1.5h"}, "memory": {"128MiB", "1.5GiB", "64 MB", "0B"},
	} {
		p := input.Properties[field]
		if p.Type != "string" || p.Pattern == "" {
			t.Errorf("%s: %+v", field, p)
			continue
		}
		re := regexp.MustCompile(p.Pattern)
		for _, g := range good {
			if !re.MatchString(g) {
				t.Errorf("%s: %q does not match the pattern", field, g)
			}
		}
	}
	if _, ok := doc.Components.Schemas["ErrorModel"]; ok {
		t.Error("the document has an error model that is never sent")
	}
	var codes struct {
		Components struct {
			Schemas struct {
				Problem struct {
					Properties struct{ Code struct{ Enum []string } }
				}
			}
		}
	}
	if err := json.Unmarshal(raw, &codes); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, c := range hearth.Codes() {
		all = append(all, string(c.Code))
	}
	if d := cmp.Diff(all, codes.Components.Schemas.Problem.Properties.Code.Enum); d != "" {
		t.Errorf("codes (-want +got):\n%s", d)
	}
}

// TestDocs checks that the pages load nothing from elsewhere.
func TestDocs(t *testing.T) {
	h := newHost(t)
	for path, ct := range map[string]string{"/docs": "text/html", "/docs/docs.js": "text/javascript", "/docs/docs.css": "text/css"} {
		a := h.do("GET", path, nil)
		if a.Code != 200 || !strings.HasPrefix(a.Header().Get("Content-Type"), ct) || a.Body.Len() < 500 {
			t.Errorf("%s: %d %v, %d bytes", path, a.Code, a.Header(), a.Body.Len())
		}
		csp := a.Header().Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "script-src 'self'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: %s", path, csp)
		}
		if m := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9.-]+\.[a-z]{2,}|\son\w+=|style="|innerHTML`).FindString(a.Body.String()); m != "" {
			t.Errorf("%s contains %q", path, m)
		}
	}
}

// FuzzFunctionBody sends arbitrary bodies: whatever comes, the answer is a
// function or a complete problem that is not our fault.
func FuzzFunctionBody(f *testing.F) {
	for _, c := range []map[string]any{
		hello(), hello(set("timeout", "1m", "memory", "64MiB", "cpu", 0.5, "env", map[string]string{"A": "b"})),
		hello(set("routes", []string{"GET /a/{b}"}, "labels", map[string]string{"x.y/z": "1"})),
		hello(set("code", map[string]any{"artifact": "sha256:" + strings.Repeat("a", 64)})),
	} {
		b, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"name":null,"runtime":{},"code":[]}`))
	f.Add([]byte(`{"NAME":"x","name":"y","code":{"files":{"../a":"","a.b":1}}}`))
	h := newHost(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		h.t = t
		a := h.do("POST", "/v1/functions", body)
		if a.Code == 201 {
			var fn function
			a.json(201, &fn)
			if err := fn.Config.Validate(); err != nil || hearth.ValidateName(fn.Name) != nil {
				t.Errorf("accepted %+v: %v", fn, err)
			}
			return
		}
		if a.Code >= 500 && a.Code != 501 {
			t.Errorf("status %d: %s", a.Code, a.Body)
		}
		a.problem(a.Code, hearth.Code(a.Header().Get("Hearth-Error")))
	})
}
