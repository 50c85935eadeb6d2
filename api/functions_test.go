package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

func TestCreateReadDelete(t *testing.T) {
	h := newHost(t)
	var f function
	a := h.do("POST", "/v1/functions", hello(set("env", map[string]string{"A": "1"}))).json(201, &f)
	if f.Name != "hello" || f.Live != 1 || f.Generation != 1 || f.URL != "/fn/hello/" || f.Warnings == nil || len(f.Warnings) != 0 {
		t.Errorf("got %+v", f)
	}
	if f.Config.Runtime != "python3.13" || f.Config.Egress != hearth.EgressInternet || f.Config.Memory != 128<<20 || f.Config.Env["A"] != "1" {
		t.Errorf("config %+v", f.Config)
	}
	if a.Header().Get("ETag") != `"1"` || a.Header().Get("Location") != "/v1/functions/hello" {
		t.Errorf("headers %v", a.Header())
	}
	v := h.verified[0]
	if len(h.verified) != 1 || v.Number != 1 || v.Function != "hello" || len(v.Incarnation) != 32 || v.Artifact != f.Artifact {
		t.Errorf("verified %+v", h.verified)
	}
	stored, err := h.store.Version(t.Context(), "hello", 1)
	if err != nil || stored.Incarnation != v.Incarnation {
		t.Errorf("stored %+v, %v; the verified instance would never be used", stored, err)
	}

	h.do("POST", "/v1/functions", hello()).problem(409, hearth.CodeConflict, "already", "PUT")
	var got function
	if a := h.do("GET", "/v1/functions/hello", nil).json(200, &got); a.Header().Get("ETag") != `"1"` || got.Artifact != f.Artifact || got.Warnings == nil {
		t.Errorf("got %+v", got)
	}
	h.logs.Append(hearth.LogLine{Function: "hello", Version: 1, Stream: "stdout", Text: "x"})
	if a := h.do("DELETE", "/v1/functions/hello", nil); a.Code != 204 || a.Body.Len() != 0 {
		t.Errorf("delete: %d %s", a.Code, a.Body)
	}
	h.do("GET", "/v1/functions/hello", nil).problem(404, hearth.CodeNotFound, "hello")
	h.do("DELETE", "/v1/functions/hello", nil).problem(404, hearth.CodeNotFound)
	if lines, err := h.logs.Tail(t.Context(), hearth.LogQuery{Function: "hello", Tail: 10}); err != nil || len(lines) != 0 {
		t.Errorf("logs remain: %v, %v", lines, err)
	}
	if h.reloads != 2 { // the router retires what is gone
		t.Errorf("%d reloads", h.reloads)
	}
	h.do("POST", "/v1/functions", hello()).json(201, &f)
	if f.Live != 2 {
		t.Errorf("a version number was used twice")
	}
}

func TestPut(t *testing.T) {
	h := newHost(t)
	var f function
	put := func(body any, headers ...string) answer { return h.do("PUT", "/v1/functions/hello", body, headers...) }

	put(nameless(set("code", nil))).problem(400, hearth.CodeInvalid, "needs code")
	put(nameless(), "If-Match", `"1"`).problem(412, hearth.CodeConflict)
	put(nameless(), "If-Match", `*`).problem(412, hearth.CodeConflict)
	a := put(nameless(), "If-None-Match", "*").json(201, &f)
	if a.Header().Get("Location") == "" || f.Live != 1 {
		t.Errorf("created %+v", f)
	}
	put(nameless(), "If-None-Match", "*").problem(412, hearth.CodeConflict, "already")
	put(nameless(), "If-None-Match", `"1"`).problem(400, hearth.CodeInvalid, "If-None-Match")

	// The same again changes nothing and starts nothing.
	if put(nameless()).json(200, &f); f.Live != 1 || f.Generation != 1 || len(h.verified) != 1 {
		t.Errorf("after the same again: %+v", f)
	}
	// Only the configuration changes.
	artifact := f.Artifact
	if put(nameless(set("code", nil, "memory", "64MiB"))).json(200, &f); f.Live != 2 || f.Artifact != artifact || f.Config.Memory != 64<<20 {
		t.Errorf("after a new configuration: %+v", f)
	}
	if h.reloads != 2 || len(h.retired) != 0 {
		t.Errorf("%d reloads, retired %v", h.reloads, h.retired)
	}
	// The configuration is replaced as a whole.
	if put(nameless(set("code", map[string]any{"files": map[string]string{"main.py": "handler = print"}}))).json(200, &f); f.Live != 3 || f.Artifact == artifact || f.Config.Memory != 128<<20 {
		t.Errorf("after new code: %+v", f)
	}
	for match, want := range map[string]int{`"2"`: 412, `W/"3"`: 400, `3`: 400, `"x"`: 400, `"1", "3"`: 200, `*`: 200} {
		a := put(nameless(set("timeout", "7s", "labels", map[string]string{"m": match})), "If-Match", match)
		if a.Code != want {
			t.Errorf("If-Match %s: %d %s", match, a.Code, a.Body)
		}
		if want == 200 {
			h.do("DELETE", "/v1/functions/hello", nil)
			put(nameless()).json(201, &f)
			put(nameless(set("cpu", 2))).json(200, &f)
			put(nameless(set("cpu", 3))).json(200, &f) // generation 3 again
		}
	}
	h.do("DELETE", "/v1/functions/hello", nil, "If-Match", `"1"`).problem(412, hearth.CodeConflict, "changed")
	if a := h.do("DELETE", "/v1/functions/hello", nil, "If-Match", fmt.Sprintf("%q", fmt.Sprint(f.Generation))); a.Code != 204 {
		t.Errorf("delete: %d %s", a.Code, a.Body)
	}
	h.do("DELETE", "/v1/functions/hello", nil, "If-Match", `"1"`).problem(412, hearth.CodeConflict)
}

func TestListFunctionsAndVersions(t *testing.T) {
	h := newHost(t)
	var list struct {
		Functions []function
		Next      string
	}
	if a := h.do("GET", "/v1/functions", nil).json(200, &list); !strings.Contains(a.Body.String(), `"functions":[]`) {
		t.Errorf("empty list: %s", a.Body)
	}
	for _, n := range []string{"c", "a", "b"} {
		h.do("POST", "/v1/functions", hello(set("name", n))).json(201, &function{})
	}
	var names []string
	for after := ""; ; after = list.Next {
		list.Next = ""
		h.do("GET", "/v1/functions?limit=2&after="+after, nil).json(200, &list)
		for _, f := range list.Functions {
			names = append(names, f.Name+f.URL)
		}
		if list.Next == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "a/fn/a/ b/fn/b/ c/fn/c/" {
		t.Errorf("got %s", got)
	}
	for _, q := range []string{"limit=0", "limit=501", "limit=x", "befor=2"} {
		h.do("GET", "/v1/functions?"+q, nil).problem(400, hearth.CodeInvalid, strings.Split(q, "=")[0])
	}

	for i := range 3 {
		h.do("PUT", "/v1/functions/a", nameless(set("cpu", i+2))).json(200, &function{})
	}
	var vs struct {
		Versions []hearth.Version
		Next     int
	}
	h.do("GET", "/v1/functions/a/versions?limit=2", nil).json(200, &vs)
	if len(vs.Versions) != 2 || vs.Versions[0].Number != 4 || vs.Next != 3 {
		t.Errorf("got %+v", vs)
	}
	vs.Next = 0
	h.do("GET", "/v1/functions/a/versions?limit=2&before=3", nil).json(200, &vs)
	if len(vs.Versions) != 2 || vs.Versions[0].Number != 2 || vs.Next != 0 {
		t.Errorf("got %+v", vs)
	}
	var v hearth.Version
	if h.do("GET", "/v1/functions/a/versions/2", nil).json(200, &v); v.Number != 2 || v.Config.CPU != 2 || v.Incarnation == "" {
		t.Errorf("got %+v", v)
	}
	h.do("GET", "/v1/functions/a/versions/9", nil).problem(404, hearth.CodeNotFound, "version 9")
	h.do("GET", "/v1/functions/a/versions/x", nil).problem(400, hearth.CodeInvalid, "number")
	h.do("GET", "/v1/functions/none/versions", nil).problem(404, hearth.CodeNotFound, "none")
}

func TestBadFunctions(t *testing.T) {
	h := newHost(t)
	files := func(kv ...string) map[string]any {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return map[string]any{"files": m}
	}
	none := "sha256:" + strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		body   any
		status int
		says   []string
	}{
		"no JSON":             {"{", 400, []string{"body"}},
		"nothing":             {"", 400, []string{"body"}},
		"an array":            {"[]", 400, []string{"expected object"}},
		"two values":          {"{}{}", 400, []string{"body"}},
		"unknown field":       {hello(set("memroy", "1GiB")), 400, []string{"body.memroy", "unknown field"}},
		"unknown in code":     {hello(set("code", map[string]any{"file": "x"})), 400, []string{"body.code.file"}},
		"no name":             {nameless(), 400, []string{"name is missing"}},
		"bad name":            {hello(set("name", "Hello World")), 400, []string{"Hello World", "lower-case"}},
		"no runtime":          {hello(set("runtime", nil)), 400, []string{"runtime is missing"}},
		"unknown runtime":     {hello(set("runtime", "cobol")), 400, []string{"cobol", "python3.13", "python3.11", "nodejs20"}},
		"runtime not here":    {hello(set("runtime", "python3.9")), 400, []string{"python3.13"}},
		"timeout as number":   {hello(set("timeout", 30)), 400, []string{"body.timeout", "expected string", `"30s"`}},
		"timeout not one":     {hello(set("timeout", "soon")), 400, []string{"body.timeout", "soon", `"30s"`}},
		"negative timeout":    {hello(set("timeout", "-1s")), 400, []string{"timeout", "-1s"}},
		"memory not one":      {hello(set("memory", "lots")), 400, []string{"body.memory", "lots", "128MiB"}},
		"memory too small":    {hello(set("memory", "1KiB")), 400, []string{"memory"}},
		"cpu negative":        {hello(set("cpu", -1)), 400, []string{"cpu"}},
		"cpu as string":       {hello(set("cpu", "1")), 400, []string{"body.cpu", "expected number"}},
		"concurrency":         {hello(set("concurrency", 1.5)), 400, []string{"body.concurrency", "integer"}},
		"env as number":       {hello(set("env", map[string]any{"A": 1})), 400, []string{"env", "expected string instead of number", "strings"}},
		"content as number":   {hello(set("code", map[string]any{"files": map[string]any{"main.py": 1}})), 400, []string{"code.files", "expected string"}},
		"env reserved":        {hello(set("env", map[string]any{"HEARTH_X": "1"})), 400, []string{"HEARTH_X"}},
		"egress":              {hello(set("egress", "all")), 400, []string{"egress"}},
		"route reserved":      {hello(set("routes", []string{"GET /v1/x"})), 400, []string{"/v1"}},
		"unknown isolation":   {hello(set("isolation", "xen")), 400, []string{"xen", "native, weak"}},
		"broken isolation":    {hello(set("isolation", "docker")), 501, []string{"no daemon", "apt-get install docker.io", "native"}},
		"egress impossible":   {hello(set("isolation", "weak", "egress", "internet")), 501, []string{"egress: none"}},
		"no code":             {hello(set("code", nil)), 400, []string{"needs code"}},
		"empty code":          {hello(set("code", map[string]any{})), 400, []string{"either files or an artifact"}},
		"both codes":          {hello(set("code", map[string]any{"files": map[string]string{"main.py": ""}, "artifact": none})), 400, []string{"either"}},
		"bad digest":          {hello(set("code", map[string]any{"artifact": "sha256:1"})), 400, []string{"body.code.artifact"}},
		"unknown artifact":    {hello(set("code", map[string]any{"artifact": none})), 404, []string{none, "/v1/artifacts"}},
		"missing handler":     {hello(set("code", files("app.py", ""))), 400, []string{"main.py", "app.py"}},
		"wrong handler":       {hello(set("handler", "app.run")), 400, []string{"app.py", "main.py"}},
		"file above":          {hello(set("code", files("../x.py", "", "main.py", ""))), 400, []string{"../x.py"}},
		"handler in node":     {hello(set("runtime", "nodejs")), 400, []string{"main.mjs"}},
		"inline far too long": {hello(set("code", files("main.py", strings.Repeat("#", 9<<20)))), 413, []string{"/v1/artifacts"}},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			code := hearth.CodeInvalid
			switch c.status {
			case 501:
				code = hearth.CodeUnsupported
			case 404:
				code = hearth.CodeNotFound
			}
			if p := h.do("POST", "/v1/functions", c.body).problem(c.status, code, c.says...); p.Hint == "" {
				t.Errorf("no hint: %+v", p)
			}
		})
	}
	h.t = t
	if fs, err := h.store.Functions(t.Context(), "", 10); err != nil || len(fs) != 0 || h.reloads != 0 || len(h.verified) != 0 {
		t.Errorf("bad input left %v, %v, %d reloads, %d verified", fs, err, h.reloads, len(h.verified))
	}
}

func TestFailedStartChangesNothing(t *testing.T) {
	h := newHost(t)
	fail := func(context.Context, *hearth.Version) error {
		return &hearth.Error{
			Code: hearth.CodeFunction, Message: "the code cannot be loaded: SyntaxError: invalid syntax",
			Function: &hearth.FunctionError{Type: "SyntaxError", Message: "invalid syntax", Stack: []string{"main.py, line 1"}},
		}
	}
	h.verify = fail
	p := h.do("POST", "/v1/functions", hello()).problem(502, hearth.CodeFunction, "SyntaxError", "deploy it again")
	if p.Function == nil || p.Function.Type != "SyntaxError" || len(p.Function.Stack) != 1 {
		t.Errorf("got %+v", p)
	}
	h.do("GET", "/v1/functions/hello", nil).problem(404, hearth.CodeNotFound)

	h.verify = nil
	var before, after function
	h.do("POST", "/v1/functions", hello()).json(201, &before)
	h.verify = fail
	h.do("PUT", "/v1/functions/hello", nameless(set("cpu", 2))).problem(502, hearth.CodeFunction)
	h.do("GET", "/v1/functions/hello", nil).json(200, &after)
	if after.Live != before.Live || after.Generation != before.Generation || h.reloads != 1 || slices.Contains(h.retired, h.verified[1].Incarnation) {
		t.Errorf("it changed: %+v", after)
	}
	// A failure of ours keeps its cause to itself.
	h.verify = func(context.Context, *hearth.Version) error { return errBoom }
	p = h.do("PUT", "/v1/functions/hello", nameless(set("cpu", 2))).problem(500, hearth.CodeInternal)
	if strings.Contains(p.Detail+p.Hint, "secret") || !strings.Contains(h.log.String(), "/secret/path") {
		t.Errorf("the cause is shown or not logged: %+v, log %s", p, h.log)
	}
	h.verify = func(context.Context, *hearth.Version) error { panic("oh no") }
	h.do("PUT", "/v1/functions/hello", nameless(set("cpu", 2))).problem(500, hearth.CodeInternal)
	if !strings.Contains(h.log.String(), "oh no") || !strings.Contains(h.log.String(), "deploy.go") {
		t.Errorf("the panic is not logged with its stack: %s", h.log)
	}
	// What may succeed later says when.
	h.verify = func(context.Context, *hearth.Version) error {
		return &hearth.Error{Code: hearth.CodeExhausted, Message: "no memory is free", RetryAfter: 1500 * time.Millisecond}
	}
	if p = h.do("PUT", "/v1/functions/hello", nameless(set("cpu", 2))).problem(429, hearth.CodeExhausted); p.RetryAfter != 2 {
		t.Errorf("retry_after_s %d, want 2", p.RetryAfter)
	}
	h.verify = nil
	h.do("PUT", "/v1/functions/hello", nameless(set("cpu", 2))).json(200, &after) // locks were freed
}

func TestRouteConflict(t *testing.T) {
	h := newHost(t)
	conflict := hearth.Errorf(hearth.CodeConflict, "route belongs to b").WithHint("take another")
	h.routes = func(f string, rs []hearth.Route) error {
		if len(rs) > 0 {
			return conflict
		}
		return nil
	}
	h.do("POST", "/v1/functions", hello(set("routes", []string{"GET /x"}))).problem(409, hearth.CodeConflict, "belongs to b")
	if len(h.verified) != 0 {
		t.Error("a version with a taken route was started")
	}
	// The route is taken while the version starts.
	h.routes = nil
	h.verify = func(context.Context, *hearth.Version) error {
		h.routes = func(string, []hearth.Route) error { return conflict }
		return nil
	}
	h.do("POST", "/v1/functions", hello(set("routes", []string{"GET /x"}))).problem(409, hearth.CodeConflict)
	if len(h.retired) != 1 || h.retired[0] != h.verified[0].Incarnation {
		t.Errorf("the instance of the refused version stays: %v", h.retired)
	}
	h.do("GET", "/v1/functions/hello", nil).problem(404, hearth.CodeNotFound)
}

// TestDestinationWarnings: they tell of what is so now, and are no part of the version.
func TestDestinationWarnings(t *testing.T) {
	h := newHost(t)
	async := set("async", map[string]any{"on_success": []string{"function:later", "function:hello"}, "on_failure": []string{"http://10.0.0.1/x", "https://example.com/"}})
	says := func(warnings []string) {
		t.Helper()
		if len(warnings) != 2 || !strings.Contains(warnings[0], "on_success: there is no function later") || !strings.Contains(warnings[1], "http://10.0.0.1/x: it is not public; allow it") {
			t.Errorf("warnings: %q", warnings)
		}
	}
	var f function
	h.do("POST", "/v1/functions", hello(async)).json(201, &f)
	says(f.Warnings)
	h.do("PUT", "/v1/functions/hello", nameless(async)).json(200, &f)
	says(f.Warnings)
	var plan hearth.Plan
	h.do("POST", "/v1/functions/hello/plan", map[string]any{"runtime": "python", "async": map[string]any{"on_success": []string{"function:later"}}}).json(200, &plan)
	if len(plan.Warnings) != 1 {
		t.Errorf("the plan warns of %q", plan.Warnings)
	}
	h.do("POST", "/v1/functions", hello(set("name", "later"))).json(201, &f)
	h.do("GET", "/v1/functions/hello", nil).json(200, &f)
	if len(f.Warnings) != 0 {
		t.Errorf("kept are %q", f.Warnings)
	}
	h.do("PUT", "/v1/functions/hello", nameless(async)).json(200, &f)
	if len(f.Warnings) != 1 || !strings.Contains(f.Warnings[0], "10.0.0.1") {
		t.Errorf("once it is there: %q", f.Warnings)
	}
}

// TestAliasWarnings: a schedule that calls an alias which is not there is told of, unless
// who deploys makes it after that.
func TestAliasWarnings(t *testing.T) {
	h := newHost(t)
	schedules := set("schedules", map[string]any{"nightly": map[string]any{"cron": "0 3 * * *", "alias": "beta"}, "hourly": map[string]any{"cron": "0 * * * *"}})
	plan := nameless(schedules, set("code", nil))
	const want = "schedules.nightly: there is no alias beta: its times are skipped until hearth alias set hello beta makes it"
	for _, c := range []struct {
		method, path string
		body         map[string]any
		warns        bool
	}{
		{"POST", "/v1/functions/hello/plan", plan, true},
		{"POST", "/v1/functions/hello/plan?aliases=beta,other", plan, false},
		{"POST", "/v1/functions", hello(schedules), true},
		{"PUT", "/v1/functions/hello", nameless(schedules), true},
		{"PUT", "/v1/functions/hello?aliases=beta", nameless(schedules), false},
		{"PUT", "/v1/functions/hello/aliases/beta", map[string]any{"versions": map[string]int{"1": 100}}, false},
		{"PUT", "/v1/functions/hello", nameless(schedules), false},
		{"POST", "/v1/functions/hello/plan", plan, false},
		{"POST", "/v1/functions?aliases=beta", hello(schedules, set("name", "other")), false},
	} {
		var out struct{ Warnings []string }
		a := h.do(c.method, c.path, c.body)
		if err := json.Unmarshal(a.Body.Bytes(), &out); err != nil || a.Code > 201 || slices.Contains(out.Warnings, want) != c.warns || !c.warns && len(out.Warnings) > 0 {
			t.Errorf("%s %s: %d, warnings %q, %v", c.method, c.path, a.Code, out.Warnings, err)
		}
	}
}

// TestPreviewAgain: a preview of what is there already makes no version.
func TestPreviewAgain(t *testing.T) {
	h := newHost(t)
	var f struct {
		function
		Deployed int
	}
	h.do("POST", "/v1/functions", hello()).json(201, &f)
	preview := func(want int, change ...func(map[string]any)) {
		t.Helper()
		f.Deployed = 0
		h.do("PUT", "/v1/functions/hello?preview=true", nameless(change...)).json(200, &f)
		if f.Deployed != want || f.Live != 1 {
			t.Errorf("the preview is version %d, live is %d; want %d", f.Deployed, f.Live, want)
		}
	}
	preview(2, set("timeout", "7s"))
	preview(2, set("timeout", "7s"))
	preview(3, set("timeout", "8s"))
	preview(2, set("timeout", "7s"))
	other := set("code", map[string]any{"files": map[string]string{"main.py": python + "\n"}})
	preview(4, other)
	preview(4, other)
	preview(0) // it is live
	if len(h.verified) != 4 {
		t.Errorf("%d versions were started", len(h.verified))
	}
}

func TestWarnings(t *testing.T) {
	h := newHost(t)
	var f function
	h.do("POST", "/v1/functions", hello(set("isolation", "weak"))).json(201, &f)
	all := strings.Join(f.Warnings, "\n")
	for _, want := range []string{"no network", "memory: 128MiB is not enforced", "mount cgroups", "cpu: 1 is not", "processes"} {
		if !strings.Contains(all, want) {
			t.Errorf("warnings do not say %q:\n%s", want, all)
		}
	}
	if f.Config.Egress != hearth.EgressNone || f.Config.Runtime != "python3.11" {
		t.Errorf("config %+v", f.Config)
	}
	var again, put function
	h.do("GET", "/v1/functions/hello", nil).json(200, &again)
	h.do("PUT", "/v1/functions/hello", nameless(set("isolation", "weak", "egress", "none"))).json(200, &put)
	if len(again.Warnings) != len(f.Warnings) || len(put.Warnings) != len(f.Warnings) || put.Live != 1 {
		t.Errorf("later: %v, %v", again.Warnings, put)
	}
}

// TestReloadFails checks that the client learns that its change is there.
func TestReloadFails(t *testing.T) {
	h := newHost(t)
	h.reload = errBoom
	h.do("POST", "/v1/functions", hello()).problem(503, hearth.CodeUnavailable, "stored", "restart")
	h.do("GET", "/v1/functions/hello", nil).json(200, &function{})
	if len(h.retired) != 0 {
		t.Error("the instance of a stored version was ended")
	}
	h.do("DELETE", "/v1/functions/hello", nil).problem(503, hearth.CodeUnavailable, "stored")
	h.do("GET", "/v1/functions/hello", nil).problem(404, hearth.CodeNotFound)
}

// TestDeploysAtOnce deploys one function many times at the same moment.
func TestDeploysAtOnce(t *testing.T) {
	h := newHost(t)
	var wg sync.WaitGroup
	const n = 8
	codes := make([]int, n)
	for i := range n {
		wg.Go(func() {
			codes[i] = h.do("PUT", "/v1/functions/hello", nameless(set("cpu", i+1))).Code
		})
	}
	wg.Wait()
	created := 0
	for _, c := range codes {
		switch c {
		case http.StatusCreated:
			created++
		case http.StatusOK:
		default:
			t.Errorf("status %d", c)
		}
	}
	vs, err := h.store.Versions(t.Context(), "hello", 0, 0)
	if err != nil || len(vs) != n || created != 1 {
		t.Fatalf("%d versions, %d created, %v", len(vs), created, err)
	}
	byID := map[string]int{}
	for _, v := range h.verified {
		byID[v.Incarnation] = v.Number
	}
	for _, v := range vs {
		if byID[v.Incarnation] != v.Number {
			t.Errorf("version %d was started as %d", v.Number, byID[v.Incarnation])
		}
	}
}

// TestClientLeavesDuringStart checks that a deploy whose client goes away
// before the commit changes nothing.
func TestClientLeavesDuringStart(t *testing.T) {
	h := newHost(t)
	h.verify = func(ctx context.Context, _ *hearth.Version) error {
		return &hearth.Error{Code: hearth.CodeCanceled, Message: "canceled", Err: context.Canceled}
	}
	h.do("POST", "/v1/functions", hello()).problem(499, hearth.CodeCanceled)
	if fs, err := h.store.Functions(t.Context(), "", 1); err != nil || len(fs) != 0 {
		t.Errorf("%v, %v", fs, err)
	}
	if len(h.retired) != 1 || h.retired[0] != h.verified[0].Incarnation {
		t.Errorf("the instance that was still starting stays: %v", h.retired)
	}
}
