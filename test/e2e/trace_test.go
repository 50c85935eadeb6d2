package e2e

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/server"
)

// collector is a receiver of OTLP.
type collector struct {
	*httptest.Server
	mu    sync.Mutex
	spans map[hearth.SpanID]*otlp.Span
}

func startCollector(t *testing.T) *collector {
	c := &collector{spans: map[hearth.SpanID]*otlp.Span{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(r.Body) //nolint:errcheck // its end is checked below
		}
		b, err := io.ReadAll(body)
		var req coltrace.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(b, &req) != nil {
			t.Errorf("the collector got what is no OTLP: %v", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					c.spans[hearth.SpanID(s.SpanId)] = s
				}
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// trace returns what the server shows of the trace of a call.
func (in *installation) trace(id string) hearth.TraceView {
	in.t.Helper()
	var v hearth.TraceView
	a := in.do("GET", "/v1/invocations/"+id+"/trace", nil)
	if a.status != 200 {
		in.t.Fatalf("the trace of %s: %v", id, a)
	}
	decode(in.t, a, &v)
	return v
}

// tree writes spans one a line: each with the names of those above it. Those that are
// there by chance are left out: how long something took may be too short to be measured.
func tree(v hearth.TraceView) string {
	byID := map[hearth.SpanID]hearth.Span{}
	for _, s := range v.Spans {
		byID[s.ID] = s
	}
	var lines []string
	for _, s := range v.Spans {
		switch s.Name {
		case "route", "queue", "start", "init":
			continue
		}
		line := string(s.Kind) + " " + s.Name
		for p, ok := byID[s.ParentID]; ok; p, ok = byID[p.ParentID] {
			line = p.Name + " > " + line
		}
		if s.Failed {
			line += " failed"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

const (
	givenTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	givenParent = "00f067aa0ba902b7"
)

// TestTraceOfCalls: the function sees a child of what the request has, in its event and
// in its context; what it calls belongs to it; the collector and the server itself have
// the same tree.
func TestTraceOfCalls(t *testing.T) {
	c := startCollector(t)
	in := start(t, "", func(cfg *server.Config) { cfg.ExportTraces = c.URL })
	for _, l := range languages {
		t.Run(l.runtime, func(t *testing.T) {
			code := "def handler(event, context):\n    return [event['headers'].get('traceparent'), event['headers'].get('tracestate'), context.traceparent, context.tracestate] if 'headers' in event else [context.traceparent, context.tracestate]\n"
			if l.runtime == "nodejs" {
				code = "export const handler = async (event, context) => event.headers ? [event.headers.traceparent, event.headers.tracestate, context.traceparent, context.tracestate] : [context.traceparent, context.tracestate]\n"
			}
			a, b := "a-"+l.runtime, "b-"+l.runtime
			in.deploy(a, l.runtime, code, nil)
			in.deploy(b, l.runtime, code, nil)
			call := in.do("GET", "/fn/"+a+"/x", nil, "Traceparent", "00-"+givenTrace+"-"+givenParent+"-01", "Tracestate", `v="1\2",w=2`)
			var seen []string
			decode(t, call, &seen)
			if len(seen) != 4 || seen[0] != seen[2] || seen[1] != `v="1\2",w=2` || seen[1] != seen[3] ||
				!strings.HasPrefix(seen[0], "00-"+givenTrace+"-") || !strings.HasSuffix(seen[0], "-01") || strings.Contains(seen[0], givenParent) {
				t.Fatalf("the function sees %q", seen)
			}
			id := call.header.Get("Hearth-Invocation-Id")
			var rec hearth.Invocation
			decode(t, in.do("GET", "/v1/invocations/"+id, nil), &rec)
			if rec.TraceID.String() != givenTrace || rec.ParentID.String() != givenParent || rec.Running().SpanID.String() != seen[0][36:52] {
				t.Errorf("the record has %+v, the function sees %s", rec.Trace, seen[0])
			}
			// The function calls another with what it was given.
			event := in.do("POST", "/v1/functions/"+b+"/invocations", fields{"n": 1}, "Traceparent", seen[0])
			var below []string
			if decode(t, event, &below); !strings.HasPrefix(below[0], "00-"+givenTrace) {
				t.Errorf("the function that was called sees %q", below)
			}
			want := "internal run"
			want = a + " > " + want + "\n" + a + " > run > " + b + " > " + want + "\n" + a + " > run > server " + b + "\nserver " + a
			var of hearth.TraceView
			waitFor(t, "both calls to be kept", func() bool {
				of = in.trace(id)
				of.Spans = slices.DeleteFunc(of.Spans, func(s hearth.Span) bool { return !strings.HasSuffix(s.Function, l.runtime) })
				return tree(of) == want
			})
			waitFor(t, "the collector to have it", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				for _, s := range of.Spans {
					got := c.spans[s.ID]
					if got == nil {
						return false
					}
					if got.Name != s.Name || hearth.SpanID(got.ParentSpanId) != s.ParentID || hearth.TraceID(got.TraceId) != of.TraceID {
						t.Fatalf("exported is %v, shown %+v", got, s)
					}
				}
				return true
			})
		})
	}
	// A request without a trace, or with what is none, begins one.
	for _, bad := range []string{"", "00-" + givenTrace + "-" + strings.ToUpper(givenParent) + "-01", "00-" + givenTrace + "-0000000000000000-01", "ff-" + givenTrace + "-" + givenParent + "-01"} {
		var seen []string
		decode(t, in.do("GET", "/fn/a-python/", nil, "Traceparent", bad, "Tracestate", "v=1"), &seen)
		if len(seen) != 4 || len(seen[0]) != 55 || strings.Contains(seen[0], givenTrace) || !strings.HasSuffix(seen[0], "-01") || seen[1] != "" {
			t.Errorf("with the traceparent %q the function sees %q", bad, seen)
		}
	}
	// Whoever began the trace says that it is not to be exported.
	call := in.do("GET", "/fn/a-python/", nil, "Traceparent", "00-a"+givenTrace[1:]+"-"+givenParent+"-00")
	var quiet hearth.Invocation
	decode(t, in.do("GET", "/v1/invocations/"+call.header.Get("Hearth-Invocation-Id"), nil), &quiet)
	if !strings.Contains(string(call.body), "-00\"") || len(in.trace(quiet.ID).Spans) < 2 {
		t.Errorf("a trace that is not sampled: %v", call)
	}
	in.stop()
	if c.spans[quiet.SpanID] != nil {
		t.Error("a trace that is not sampled was exported")
	}
}

// TestTraceOfAsyncCall: the attempts of a call, its destinations and the webhook are in the
// trace of the request that was accepted.
func TestTraceOfAsyncCall(t *testing.T) {
	c := startCollector(t)
	hooks := make(chan http.Header, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hooks <- r.Header }))
	defer receiver.Close()
	host := strings.TrimPrefix(receiver.URL, "http://")
	in := start(t, "", func(cfg *server.Config) { cfg.ExportTraces, cfg.WebhookAllow = c.URL, []string{host} })
	in.deploy("told", "python", "def handler(event, context):\n    return [event['traceparent'], context.traceparent]\n", nil)
	in.deploy("flaky", "python", "seen = []\ndef handler(event, context):\n    seen.append(context.traceparent)\n    if len(seen) == 1:\n        raise ValueError('not yet')\n    return [seen, event['headers']['traceparent']]\n", fields{
		"async": fields{"min_backoff": "1ms", "max_backoff": "1ms", "on_success": []string{"function:told", receiver.URL + "/secret/hook"}},
	})
	accepted := in.do("POST", "/fn/flaky/", "{}", "Hearth-Invocation-Type", "async", "Traceparent", "00-"+givenTrace+"-"+givenParent+"-01")
	id := accepted.header.Get("Hearth-Invocation-Id")
	if call := in.ended(id); call.State != "succeeded" || call.Attempts != 2 {
		t.Fatalf("%+v", call)
	}
	want := strings.Join([]string{
		"enqueue flaky > consumer flaky",
		"enqueue flaky > consumer flaky failed",
		"enqueue flaky > flaky > internal run",
		"enqueue flaky > flaky > internal run failed",
		"enqueue flaky > flaky > run > enqueue told > consumer told",
		"enqueue flaky > flaky > run > enqueue told > told > internal run",
		"enqueue flaky > flaky > run > enqueue webhook " + host + " > client webhook " + host,
		"enqueue flaky > flaky > run > producer enqueue told",
		"enqueue flaky > flaky > run > producer enqueue webhook " + host,
		"producer enqueue flaky",
	}, "\n")
	var of hearth.TraceView
	waitFor(t, "what comes of the call", func() bool {
		of = in.trace(id)
		return tree(of) == want
	})
	if of.TraceID.String() != givenTrace || of.Spans[0].ParentID.String() != givenParent {
		t.Errorf("%+v", of)
	}
	ids := map[string]bool{}
	for _, s := range of.Spans {
		ids[s.ID.String()] = true
	}
	// The attempts saw spans of theirs, in the event that was stored, too.
	var result struct {
		Async struct {
			Result struct {
				Value [2]any
			}
		}
	}
	decode(t, in.do("GET", "/v1/invocations/"+id, nil), &result)
	seen, _ := result.Async.Result.Value[0].([]any)
	if len(seen) != 2 || seen[0] == seen[1] || seen[1] != result.Async.Result.Value[1] {
		t.Errorf("the attempts saw %v", result.Async.Result.Value)
	}
	for _, s := range seen {
		if s, _ := s.(string); len(s) != 55 || !ids[s[36:52]] {
			t.Errorf("an attempt saw %q", s)
		}
	}
	hook := (<-hooks).Get("Traceparent")
	if !strings.HasPrefix(hook, "00-"+givenTrace+"-") || !ids[hook[36:52]] {
		t.Errorf("the webhook has %q", hook)
	}
	waitFor(t, "the collector to have it", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range of.Spans {
			got := c.spans[s.ID]
			if got == nil {
				return false
			}
			if got.Name != s.Name || hearth.SpanID(got.ParentSpanId) != s.ParentID {
				t.Fatalf("exported is %v, shown %+v", got, s)
			}
		}
		return true
	})
}
