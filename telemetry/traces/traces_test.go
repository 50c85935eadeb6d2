package traces_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/telemetry/traces"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector is a receiver of OTLP.
type collector struct {
	*httptest.Server
	mu     sync.Mutex
	status int // of its answers, 0 for 200
	answer *coltrace.ExportTraceServiceResponse
	asked  int
	spans  map[hearth.SpanID]*otlp.Span
}

func startCollector(t *testing.T) *collector {
	c := &collector{spans: map[hearth.SpanID]*otlp.Span{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			zip, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = zip
		}
		b, err := io.ReadAll(body)
		var req coltrace.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &req) != nil {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.asked++; c.status != 0 {
			w.WriteHeader(c.status)
			return
		}
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					c.spans[hearth.SpanID(s.SpanId)] = s
				}
			}
		}
		if c.answer != nil {
			b, err := proto.Marshal(c.answer)
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Type", "application/x-protobuf")
			w.Write(b)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

func newExporter(t *testing.T, url string) *traces.Exporter {
	t.Helper()
	e, err := traces.New(traces.Options{URL: url, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close(t.Context()) })
	return e
}

func coldCall() hearth.Invocation {
	return hearth.Invocation{
		ID: "i1", Function: "hello", Version: 3, Instance: "s1", Kind: hearth.KindHTTP, Method: "GET", Path: "/x", HTTPRoute: "/{p}", Status: 502,
		ErrorCode: hearth.CodeFunction, ErrorMessage: "it failed", Cold: true, ColdReason: hearth.ColdFirst,
		StartedAt: time.Unix(1000, 0), Trace: hearth.NewTrace(true).Child(),
		Timings: hearth.Timings{Route: 1 * time.Millisecond, Queue: 2 * time.Millisecond, Start: 3 * time.Millisecond, Init: 4 * time.Millisecond, Run: 5 * time.Millisecond},
	}
}

func TestExport(t *testing.T) {
	c := startCollector(t)
	e := newExporter(t, c.URL)
	call := coldCall()
	call.Links = []hearth.Trace{hearth.NewTrace(true)}
	call.Tracestate = "a=b"
	e.Count(&call)
	other := coldCall()
	other.Sampled = false
	e.Count(&other)
	e.Span(call.Trace, hearth.Span{ID: hearth.SpanID{7}, Name: "enqueue b", Kind: hearth.SpanProducer, Start: time.Unix(1000, 0), Duration: time.Second})
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.spans) != 7 || e.Dropped() != 0 {
		t.Fatalf("%d spans came, %d were dropped", len(c.spans), e.Dropped())
	}
	whole := c.spans[call.SpanID]
	if whole == nil || whole.Name != "hello" || hearth.TraceID(whole.TraceId) != call.TraceID || hearth.SpanID(whole.ParentSpanId) != call.ParentID ||
		whole.Kind != otlp.Span_SPAN_KIND_SERVER || whole.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || whole.TraceState != "a=b" ||
		whole.StartTimeUnixNano != 1000e9 || whole.EndTimeUnixNano != 1000e9+15e6 || len(whole.Links) != 1 {
		t.Errorf("the call is %v", whole)
	}
	attributes := map[string]string{}
	for _, kv := range whole.Attributes {
		attributes[kv.Key] = kv.Value.String()
	}
	for key, want := range map[string]string{
		"faas.name": `string_value:"hello"`, "faas.version": `string_value:"3"`, "faas.invocation_id": `string_value:"i1"`, "faas.coldstart": "bool_value:true",
		"faas.trigger": `string_value:"http"`, "http.request.method": `string_value:"GET"`, "http.response.status_code": "int_value:502",
		"url.path": `string_value:"/x"`, "http.route": `string_value:"/{p}"`, "error.type": `string_value:"function_error"`, "hearth.cold_reason": `string_value:"first"`,
	} {
		if attributes[key] != want {
			t.Errorf("%s is %s, want %s", key, attributes[key], want)
		}
	}
	at := uint64(1000e9)
	for i, name := range []string{"route", "queue", "start", "init", "run"} {
		found := false
		for _, s := range c.spans {
			if s.Name != name {
				continue
			}
			end := at + uint64(i+1)*1e6
			if found = true; s.StartTimeUnixNano != at || s.EndTimeUnixNano != end || hearth.SpanID(s.ParentSpanId) != call.SpanID {
				t.Errorf("%s is %v", name, s)
			}
			at = end
		}
		if !found {
			t.Errorf("there is no span %s", name)
		}
	}
	if c.spans[call.Running().SpanID].GetName() != "run" {
		t.Error("what the function sees is not the span of its run")
	}
}

func TestCollectorDoesNotAnswer(t *testing.T) {
	c := startCollector(t)
	c.Server.Close() // nobody listens there now
	e := newExporter(t, c.URL)
	call := coldCall()
	for range 10_000 { // more than have room: none of it blocks
		e.Count(&call)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
	if n := e.Dropped(); n != 60_000 {
		t.Errorf("%d spans of 60000 were dropped", n)
	}
	e.Count(&call) // after the end
}

func TestCollectorRefuses(t *testing.T) {
	c := startCollector(t)
	c.status = http.StatusBadRequest
	e := newExporter(t, c.URL+"/v1/traces")
	call := coldCall()
	e.Count(&call)
	e.Close(t.Context())
	if e.Dropped() != 6 || c.asked != 1 {
		t.Errorf("%d spans were dropped after %d requests", e.Dropped(), c.asked)
	}
}

// TestHostileTexts: what callers and functions choose neither ends other spans nor takes
// much memory.
func TestHostileTexts(t *testing.T) {
	c := startCollector(t)
	e := newExporter(t, c.URL)
	call, other := coldCall(), coldCall()
	call.Method, call.Path, call.ErrorMessage = "G\xffT", "/fn/\xff"+strings.Repeat("ä", 100<<10), "\xc3"
	e.Count(&call)
	e.Count(&other)
	e.Span(call.Trace, hearth.Span{ID: hearth.SpanID{7}, Name: "\xff", Failed: true, ErrorMessage: strings.Repeat("\xff", 100<<10), Attributes: map[string]any{"a": "\xff"}})
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.spans) != 13 || e.Dropped() != 0 {
		t.Fatalf("%d spans came, %d were dropped", len(c.spans), e.Dropped())
	}
	for _, kv := range c.spans[call.SpanID].Attributes {
		if v := kv.Value.GetStringValue(); len(v) > 2200 || kv.Key == "url.path" && !strings.HasPrefix(v, "/fn/\uFFFDä") {
			t.Errorf("%s is %q", kv.Key, v)
		}
	}
	if s := c.spans[hearth.SpanID{7}]; s.Name != "\uFFFD" || len(s.Status.Message) > 2200 {
		t.Errorf("the span is %v", s)
	}
}

// TestBound: texts are counted against the bound of what waits, as they were cut.
func TestBound(t *testing.T) {
	c := startCollector(t)
	c.Server.Close()
	e := newExporter(t, c.URL)
	call := coldCall()
	call.Path, call.ErrorMessage = strings.Repeat("a", 256<<10), strings.Repeat("b", 256<<10)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 10_000 {
		e.Count(&call)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 40<<20 {
		t.Errorf("%d MiB wait", grown>>20)
	}
	// 16 MiB are less than 4000 of them, of six spans each.
	if n := e.Dropped(); n < 6*(10_000-4000-2048) {
		t.Errorf("%d spans were dropped", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e.Close(ctx)
}

// TestRedirect: a header with a key goes to nobody else.
func TestRedirect(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "key=secret")
	other := startCollector(t)
	asked := 0
	c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, other.URL+"/v1/traces", http.StatusTemporaryRedirect)
	}))
	defer c.Close()
	e := newExporter(t, c.URL)
	call := coldCall()
	e.Count(&call)
	e.Close(t.Context())
	if other.asked != 0 || asked != 1 || e.Dropped() != 6 {
		t.Errorf("it was followed %d times after %d requests, %d spans were dropped", other.asked, asked, e.Dropped())
	}
}

func TestPartialSuccess(t *testing.T) {
	for _, c := range []struct {
		rejected, want int64
		message        string
	}{{0, 0, "a warning"}, {2, 2, "too old (7 spans rejected)"}, {100, 6, "all"}, {0, 0, ""}} {
		col := startCollector(t)
		col.answer = &coltrace.ExportTraceServiceResponse{PartialSuccess: &coltrace.ExportTracePartialSuccess{RejectedSpans: c.rejected, ErrorMessage: c.message}}
		e := newExporter(t, col.URL)
		call := coldCall()
		e.Count(&call)
		e.Close(t.Context())
		if e.Dropped() != c.want {
			t.Errorf("%d rejected: %d were dropped", c.rejected, e.Dropped())
		}
	}
}

// TestLongError: a collector does not fill the log.
func TestLongError(t *testing.T) {
	c := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, strings.Repeat("x", 100<<10), http.StatusBadRequest)
	}))
	defer c.Close()
	var b bytes.Buffer
	e, err := traces.New(traces.Options{URL: c.URL, Logger: slog.New(slog.NewTextHandler(&b, nil))})
	if err != nil {
		t.Fatal(err)
	}
	call := coldCall()
	e.Count(&call)
	e.Close(t.Context())
	if b.Len() < 500 || b.Len() > 1000 {
		t.Errorf("the log has %d bytes", b.Len())
	}
}

func TestURL(t *testing.T) {
	for _, url := range []string{"", "collector:4318", "ftp://collector", "http://", "http://user:secret@collector", "http://user:secret@collector:x", "http://collector?a=b"} {
		if _, err := traces.New(traces.Options{URL: url, Logger: slog.New(slog.DiscardHandler)}); hearth.ErrorCode(err) != hearth.CodeInvalid || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
