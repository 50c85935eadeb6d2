package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/api"
	"github.com/hearthrun/hearth/build"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/queue"
	"github.com/hearthrun/hearth/store"
	"github.com/hearthrun/hearth/telemetry"
)

// host is an API on a real store and real logs. Faked is only what would need
// sandboxes: the pool, the gateway and the drivers.
type host struct {
	t       testing.TB
	store   *store.Store
	logs    *telemetry.Logs
	handler http.Handler
	log     *bytes.Buffer

	mu       sync.Mutex
	verify   func(context.Context, *hearth.Version) error
	verified []hearth.Version
	retired  []string
	routes   func(function string, routes []hearth.Route) error
	queues   map[string]string
	reloads  int
	reload   error
	invoke   func(ctx context.Context, r hearth.EventRequest, w io.Writer, started func(hearth.Invocation)) (hearth.Invocation, error)
	drivers  []driver.Info
	// refresh changes drivers, as installing something does; refreshed has the
	// names that were asked for.
	refresh   func()
	refreshed []string
	// build takes the place of installing; built has what was asked for.
	build func(context.Context, api.BuildRequest) (api.BuildResult, error)
	built []api.BuildRequest
	// status is that of the pool; changes is what its watchers read, closed when
	// they are too slow, and left gets one for each that left.
	status   hearth.PoolStatus
	changes  chan hearth.InstanceEvent
	left     chan struct{}
	ready    error
	draining chan struct{}
	traffic  telemetry.Traffic
}

func newHost(t testing.TB, change ...func(*api.Deps)) *host {
	t.Helper()
	h := &host{t: t, log: &bytes.Buffer{}, draining: make(chan struct{}), left: make(chan struct{}, 10)}
	logger := slog.New(slog.NewTextHandler(&syncWriter{w: h.log}, nil))
	var err error
	if h.store, err = store.Open(t.Context(), t.TempDir(), logger); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	if h.logs, err = telemetry.OpenLogs(t.TempDir(), telemetry.LogOptions{Logger: logger}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.logs.Close(); err != nil {
			t.Error(err)
		}
	})
	h.drivers = []driver.Info{
		{
			Name: "native", Summary: "Linux namespaces", Works: true, Internet: true, MemoryLimit: true, CPULimit: true, PIDLimit: true,
			Runtimes: []driver.Runtime{
				{Name: "nodejs20", Language: "nodejs", Version: "20.1.0"},
				{Name: "python3.13", Language: "python", Version: "3.13.1"},
				{Name: "python3.11", Language: "python", Version: "3.11.2"},
			},
		},
		{
			Name: "weak", Works: true,
			Limitations: []driver.Problem{{What: "memory cannot be limited", Remedy: "mount cgroups"}},
			Runtimes:    []driver.Runtime{{Name: "python3.11", Language: "python"}},
		},
		{Name: "docker", Missing: []driver.Problem{{What: "no daemon", Remedy: "apt-get install docker.io"}}},
	}
	calls := queue.New(queue.Config{Store: h.store.Queue(store.QueueLimits{}), Logger: logger})
	d := api.Deps{
		Catalog: h.store, Aliases: h.store, Versions: h.store, Traffic: &h.traffic, Metrics: http.NotFoundHandler(), Query: http.NotFoundHandler(), Artifacts: artifacts{h.store}, Builder: (*builder)(h), Invocations: h.store, Logs: h.logs,
		Verifier: (*pool)(h), Instances: (*pool)(h), Pool: (*pool)(h), Router: (*gateway)(h), Invoker: (*gateway)(h), Drivers: (*drivers)(h), Health: (*health)(h),
		Secrets: h.store.Secrets(filepath.Join(t.TempDir(), "secrets.key")),
		Queue:   calls, Schedules: calls, Webhooks: webhooks{},
		Logger: logger, Version: "1.2.3", Draining: h.draining,
	}
	for _, c := range change {
		c(&d)
	}
	h.handler = api.New(d)
	return h
}

type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// webhooks refuses one address.
type webhooks struct{}

func (webhooks) CheckURL(url string) error {
	if strings.Contains(url, "10.0.0.1") {
		return hearth.Errorf(hearth.CodeDenied, "it is not public").WithHint("allow it")
	}
	return nil
}

// artifacts joins the store's stages with the API, as package server does.
type artifacts struct{ *store.Store }

func (a artifacts) Put(ctx context.Context, fill func(dir string) (string, error)) error {
	stage, err := a.Stage(ctx)
	if err != nil {
		return err
	}
	defer stage.Discard()
	digest, err := fill(stage.Dir())
	if err != nil {
		return err
	}
	_, err = stage.Commit(ctx, digest)
	return err
}

type (
	pool    host
	gateway host
	drivers host
	builder host
	health  host
)

func (p *pool) Verify(ctx context.Context, v *hearth.Version) error {
	p.mu.Lock()
	p.verified = append(p.verified, *v)
	verify := p.verify
	p.mu.Unlock()
	if verify == nil {
		return nil
	}
	return verify(ctx, v)
}

func (p *pool) Admit(string) {}

func (p *pool) Retire(incarnation string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired = append(p.retired, incarnation)
}

func (p *pool) Evict(function string) (int, error) {
	if function != "hello" {
		return 0, hearth.Errorf(hearth.CodeNotFound, "there is no function %s", function)
	}
	return 2, nil
}

func (p *pool) Status() hearth.PoolStatus {
	st := p.status
	st.Instances, st.Functions, st.Stems = slices.Clone(st.Instances), slices.Clone(st.Functions), slices.Clone(st.Stems)
	return st
}

func (p *pool) Watch(ctx context.Context) (hearth.PoolStatus, <-chan hearth.InstanceEvent) {
	context.AfterFunc(ctx, func() { p.left <- struct{}{} })
	return p.Status(), p.changes
}

func (g *gateway) CheckRoutes(function, _ string, routes []hearth.Route) error {
	if g.routes == nil {
		return nil
	}
	return g.routes(function, routes)
}

func (g *gateway) Queues() map[string]string { return g.queues }

func (g *gateway) Reload(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reloads++
	return g.reload
}

func (g *gateway) InvokeEvent(ctx context.Context, r hearth.EventRequest, w io.Writer, started func(hearth.Invocation)) (hearth.Invocation, error) {
	return g.invoke(ctx, r, w, started)
}

func (d *drivers) Drivers(context.Context) []driver.Info { return d.drivers }

func (d *drivers) Refresh(_ context.Context, name string) []driver.Info {
	d.refreshed = append(d.refreshed, name)
	if d.refresh != nil {
		d.refresh()
	}
	return d.drivers
}

// Manifest finds requirements.txt in whatever language.
func (b *builder) Manifest(dir, _ string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "requirements.txt")); err != nil {
		return "", nil
	}
	return "requirements.txt", nil
}

// Build copies the source and adds a file that tells what it was built for.
func (b *builder) Build(ctx context.Context, r api.BuildRequest) (api.BuildResult, error) {
	b.mu.Lock()
	b.built = append(b.built, r)
	b.mu.Unlock()
	if b.build != nil {
		return b.build(ctx, r)
	}
	fmt.Fprint(r.Log, "collecting\r\nunpack\xffed") // as installers write
	files := map[string]string{"installed.txt": r.Isolation + " " + r.Runtime.Name}
	entries, err := os.ReadDir(r.Source)
	if err != nil {
		return api.BuildResult{}, err
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(r.Source, e.Name()))
		if err != nil {
			return api.BuildResult{}, err
		}
		files[e.Name()] = string(content)
	}
	sum, err := build.WriteFiles(ctx, files, r.Out, build.Limits{})
	return api.BuildResult{Summary: sum, Cached: !r.Fresh && len(b.built) > 1}, err
}

func (h *health) Ready() error { return h.ready }

// answer is what a test looks at.
type answer struct {
	t testing.TB
	*httptest.ResponseRecorder
}

// do sends a request as a client on the same machine does. body is a string,
// bytes, or something to send as JSON. headers are names and values.
func (h *host) do(method, target string, body any, headers ...string) answer {
	h.t.Helper()
	var r io.Reader
	ct := "application/json"
	switch b := body.(type) {
	case nil:
		ct = ""
	case string:
		r = strings.NewReader(b)
	case []byte:
		r = bytes.NewReader(b)
	default:
		j, err := json.Marshal(body)
		if err != nil {
			h.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req := httptest.NewRequestWithContext(h.t.Context(), method, target, r)
	req.RemoteAddr, req.Host = "127.0.0.1:4711", "127.0.0.1:8080"
	if ct != "" {
		req.Header.Set("Content-Type", ct)
	}
	for i := 0; i < len(headers); i += 2 {
		switch headers[i] {
		case "Host":
			req.Host = headers[i+1]
		case "RemoteAddr":
			req.RemoteAddr = headers[i+1]
		case "Proto":
			req.Proto = headers[i+1]
			req.ProtoMajor, req.ProtoMinor, _ = http.ParseHTTPVersion(headers[i+1])
		default:
			req.Header.Set(headers[i], headers[i+1])
			if headers[i+1] == "" {
				req.Header.Del(headers[i])
			}
		}
	}
	w := httptest.NewRecorder()
	h.handler.ServeHTTP(w, req)
	return answer{h.t, w}
}

// json decodes the body after checking the status.
func (a answer) json(status int, v any) answer {
	a.t.Helper()
	if a.Code != status {
		a.t.Fatalf("status %d, want %d: %s", a.Code, status, a.Body)
	}
	if ct := a.Header().Get("Content-Type"); ct != "application/json" {
		a.t.Errorf("content type %q", ct)
	}
	if err := json.Unmarshal(a.Body.Bytes(), v); err != nil {
		a.t.Fatalf("%v in %s", err, a.Body)
	}
	return a
}

// problem is an error as clients see it.
type problem struct {
	Type, Title, Detail, Hint, Instance string
	Status                              int
	Code                                hearth.Code
	RetryAfter                          int64                 `json:"retry_after_s"`
	Function                            *hearth.FunctionError `json:"function_error"`
	Errors                              []struct{ Location, Message string }
}

// problem checks that the answer is a complete problem and says what it should.
func (a answer) problem(status int, code hearth.Code, says ...string) problem {
	a.t.Helper()
	var p problem
	dec := json.NewDecoder(a.Body)
	dec.DisallowUnknownFields()
	text := a.Body.String()
	if err := dec.Decode(&p); err != nil {
		a.t.Fatalf("status %d, no problem but %q: %v", a.Code, text, err)
	}
	if a.Code != status || p.Status != status || p.Code != code {
		a.t.Errorf("status %d, code %s; want %d, %s: %s", a.Code, p.Code, status, code, text)
	}
	if a.Header().Get("Hearth-Error") != string(code) || a.Header().Get("Content-Type") != "application/problem+json" {
		a.t.Errorf("headers %v", a.Header())
	}
	retry := ""
	if p.RetryAfter > 0 {
		retry = strconv.FormatInt(p.RetryAfter, 10)
	}
	if got := a.Header().Get("Retry-After"); got != retry {
		a.t.Errorf("Retry-After %q beside %s", got, text)
	}
	if p.Type != "about:blank" || p.Title == "" || p.Detail == "" {
		a.t.Errorf("incomplete: %s", text)
	}
	for _, s := range says {
		if !strings.Contains(p.Detail+" | "+p.Hint, s) {
			a.t.Errorf("%q does not say %q", p.Detail+" | "+p.Hint, s)
		}
	}
	return p
}

var errBoom = errors.New("boom: /secret/path")

// function is a function as clients see it.
type function struct {
	hearth.Function
	URL      string
	Warnings []string
}

const python = "def handler(event, context):\n    return event\n"

// hello is the body of a simple function.
func hello(change ...func(map[string]any)) map[string]any {
	m := map[string]any{"name": "hello", "runtime": "python", "code": map[string]any{"files": map[string]string{"main.py": python}}}
	for _, c := range change {
		c(m)
	}
	return m
}

// set changes fields; the value nil removes one.
func set(kv ...any) func(map[string]any) {
	return func(m map[string]any) {
		for i := 0; i < len(kv); i += 2 {
			if kv[i+1] == nil {
				delete(m, kv[i].(string))
				continue
			}
			m[kv[i].(string)] = kv[i+1]
		}
	}
}

// nameless is hello without its name, for PUT.
func nameless(change ...func(map[string]any)) map[string]any {
	return hello(append(change, set("name", nil))...)
}
