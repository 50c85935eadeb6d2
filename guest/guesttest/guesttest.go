// Package guesttest is docs/guest-protocol.md as an executable specification
// for guests: Run starts a guest again and again, speaks raw frames with it and
// checks every frame that comes back. It shares no code with the host side in
// package guest, so that the two are tested against the specification and not
// against each other's mistakes.
//
// The functions it calls lie in testdata, one directory a language, with the
// same handlers in each. A new runtime needs such a directory and a call of Run;
// docs/adding-a-runtime.md tells more.
package guesttest

import (
	"bytes"
	"embed"
	"encoding/json"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

//go:embed all:testdata
var testdata embed.FS

// Guest is a guest to test.
type Guest struct {
	// Language selects the fixtures: a directory of testdata.
	Language string
	// Command starts the guest; it finds its stream at descriptor 3.
	Command []string
	// Start, if set, starts it instead, where the host's directory code is /function
	// and HEARTH_SECRET is secret. It returns the host's end of the stream and a
	// function that waits for the guest's exit status, at most until the test ends.
	// What the guest writes to descriptors 1 and 2 goes to output.
	Start func(t testing.TB, code, secret string, output io.Writer) (*net.UnixConn, func() int)
}

// Run checks that the guest does what the protocol says. It needs Linux.
func Run(t *testing.T, g Guest) {
	code := t.TempDir()
	sub, err := fs.Sub(testdata, "testdata/"+g.Language)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(code, sub); err != nil {
		t.Fatalf("no fixtures for language %q: %v", g.Language, err)
	}
	s := &suite{Guest: g, files: code, code: code}
	if g.Start != nil {
		s.code = "/function"
	}
	for _, c := range []struct {
		name string
		run  func(*suite, *testing.T)
	}{
		{"hello", (*suite).hello},
		{"init errors", (*suite).initErrors},
		{"handler files", (*suite).handlerFiles},
		{"archive", (*suite).archive},
		{"streamed function", (*suite).streamed},
		{"responses", (*suite).responses},
		{"events", (*suite).events},
		{"errors", (*suite).errors},
		{"output", (*suite).output},
		{"context and environment", (*suite).environment},
		{"files of INIT", (*suite).initFiles},
		{"bodies", (*suite).bodies},
		{"request streams", (*suite).requestStreams},
		{"flow control", (*suite).flowControl},
		{"overlapping calls", (*suite).overlap},
		{"concurrent", (*suite).concurrent},
		{"cancel", (*suite).cancel},
		{"warm-up", (*suite).warmup},
		{"WebSockets", (*suite).webSockets},
		{"ping and shutdown", (*suite).shutdown},
		{"vandals", (*suite).vandals},
		{"snapshots", (*suite).snapshots},
		{"language", (*suite).language},
		{"protocol errors", (*suite).protocolErrors},
		{"mutated streams", (*suite).mutated},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(s, t) })
	}
}

type suite struct {
	Guest
	files string // the directory of the fixtures
	code  string // what the guest calls it
}

// function starts a guest with a handler of the conformance module.
func (s *suite) function(t *testing.T, handler string) *peer {
	t.Helper()
	p := s.start(t)
	p.hello()
	if f := p.init(s.code, "conformance."+handler); f.typ != ready {
		t.Fatalf("INIT of %s was answered with %s", handler, f)
	}
	return p
}

// call makes one HTTP call to a handler in a fresh guest.
func (s *suite) call(t *testing.T, handler string) result {
	t.Helper()
	p := s.function(t, handler)
	r := p.wait(p.invoke("http", map[string]any{"rawPath": "/"}, nil))
	p.stop()
	return r
}

func (s *suite) hello(t *testing.T) {
	p := s.start(t)
	h := p.hello()
	if h.Protocol != 1 || !strings.HasPrefix(h.Runtime, s.Language) || h.PID <= 0 {
		t.Errorf("READY says %+v", h)
	}
	p.send(ping, 0, []byte("stem cell"))
	if f := p.recv(); f.typ != pong || string(f.payload) != "stem cell" {
		t.Errorf("PING was answered with %s", f)
	}
	p.init(s.code, "conformance.text")
	if r := p.wait(p.invoke("http", map[string]any{}, nil)); r.body() != "héllo" {
		t.Errorf("the call was answered with %v", r)
	}
	p.close(0)

	// Everything at once, without waiting for an answer.
	p = s.start(t)
	p.buffer(hello, 0, helloHead(p.secret))
	p.buffer(initialize, 0, initHead(s.code, "conformance.echo"))
	id := p.bufferInvoke("event", nil, []byte(`{"a":1}`))
	p.flush()
	if r := p.wait(id); !jsonEqual(r.body(), `{"a":1}`) {
		t.Errorf("the call was answered with %v", r)
	}
	p.stop()

	// A stem cell that waited before its function came.
	p = s.start(t)
	p.hello()
	<-time.After(300 * time.Millisecond) // long enough for a guest to prepare itself, if it does so
	p.init(s.code, "conformance.stream_async")
	if r := p.wait(p.invoke("event", nil, nil)); r.body() != "one two" {
		t.Errorf("the call was answered with %v", r)
	}
	p.stop()
}

func (s *suite) initErrors(t *testing.T) {
	for _, c := range []struct{ handler, typ, message string }{
		{"nowhere.handler", "Runtime.ImportModuleError", "nowhere"},
		{"imports.handler", "Runtime.ImportModuleError", "surely_not_there"},
		{"conformance.nothing", "Runtime.HandlerNotFound", "nothing"},
		{"conformance.number", "Runtime.HandlerNotFound", "number"},
		{"syntax.handler", "Runtime.UserCodeSyntaxError", ""},
		{"raises.handler", "KeyError", "no such setting"},
	} {
		t.Run(c.handler, func(t *testing.T) {
			p := s.start(t)
			p.hello()
			f := p.init(s.code, c.handler)
			var e failure
			if f.typ != initError || json.Unmarshal(f.payload, &e) != nil {
				t.Fatalf("INIT was answered with %s", f)
			}
			if e.Type != c.typ || !strings.Contains(e.Message, c.message) {
				t.Errorf("got %+v, want type %s and %q in the message", e, c.typ, c.message)
			}
			if c.handler == "raises.handler" && !strings.Contains(strings.Join(e.Stack, "\n"), "load") {
				t.Errorf("the stack lacks the function that raised: %q", e.Stack)
			}
			s.checkStack(t, e.Stack)
			p.close(0)
		})
	}
	t.Run("no directory", func(t *testing.T) {
		p := s.start(t)
		p.hello()
		if f := p.init(filepath.Join(s.code, "missing"), "main.handler"); f.typ != initError {
			t.Errorf("INIT was answered with %s", f)
		}
		p.close(0)
	})
}

// checkStack checks that a stack shows nothing of the guest itself.
func (s *suite) checkStack(t *testing.T, stack []string) {
	t.Helper()
	for _, line := range stack {
		if strings.Contains(line, "hearth_guest") || strings.Contains(line, "node:internal") || strings.Contains(line, "<frozen") {
			t.Errorf("the stack has a frame that is not the function's: %q", line)
		}
	}
}

func (s *suite) handlerFiles(t *testing.T) {
	handlers := map[string]string{"pkg/mod.handler": "pkg.mod", "pkg.mod.handler": "pkg.mod", "conformance.instance": "called"}
	if s.Language == "nodejs" {
		handlers = map[string]string{
			"pkg/mod.handler": "pkg", "pkg.mod.handler": "pkg",
			"common.handler": "cjs", "plain.handler": "js", "waits.handler": "awaited",
		}
	}
	for handler, want := range handlers {
		p := s.start(t)
		p.hello()
		if f := p.init(s.code, handler); f.typ != ready {
			t.Errorf("%s: INIT was answered with %s", handler, f)
			continue
		}
		if r := p.wait(p.invoke("http", map[string]any{}, nil)); r.body() != want {
			t.Errorf("%s: the call was answered with %v, want %q", handler, r, want)
		}
		p.stop()
	}
}

func (s *suite) responses(t *testing.T) {
	json200 := [][2]string{{"content-type", "application/json"}}
	text200 := [][2]string{{"content-type", "text/plain; charset=utf-8"}}
	bytes200 := [][2]string{{"content-type", "application/octet-stream"}}
	large := make([]byte, 3<<20)
	for i := range large {
		large[i] = byte(i)
	}
	for _, c := range []struct {
		handler string
		status  int
		headers [][2]string
		body    string
	}{
		{"hello", 201, [][2]string{
			{"x-test", "yes"},
			{"x-number", "7"},
			{"x-many", "a"},
			{"x-many", "b"},
			{"set-cookie", "a=1"},
			{"set-cookie", "b=2"},
			{"content-type", "application/json"},
		}, "héllo"},
		{"empty", 204, nil, ""},
		{"text", 200, text200, "héllo"},
		{"octets", 200, bytes200, "\x00\xff\x80"},
		{"none", 200, json200, "null"},
		{"stream", 200, text200, "one two three"},
		{"stream_async", 200, bytes200, "one two"},
		{"stream_head", 202, [][2]string{{"content-type", "text/event-stream"}}, "one two three"},
		{"stream_empty", 200, bytes200, ""},
		{"large", 200, bytes200, string(large)},
		{"large_async", 200, bytes200, string(large)},
	} {
		t.Run(c.handler, func(t *testing.T) {
			r := s.call(t, c.handler)
			if r.err != nil || r.head.Status != c.status || r.body() != c.body {
				t.Errorf("got %v, want status %d and body %.80q", r, c.status, c.body)
			}
			if !slices.Equal(r.head.Headers, c.headers) {
				t.Errorf("got headers %v, want %v", r.head.Headers, c.headers)
			}
		})
	}
}

func (s *suite) events(t *testing.T) {
	p := s.function(t, "echo")
	for _, event := range []string{`{"a":[1,2.5,"é\u0000\ud83d\ude00",null,true,{}]}`, `5`, `"x"`, `null`, ` [1] `, `[]`, "\"" + strings.Repeat("y", 2<<20) + "\""} {
		if r := p.wait(p.invoke("event", nil, []byte(event))); r.err != nil || !jsonEqual(r.body(), event) {
			t.Errorf("the event %.80q came back as %v", event, r)
		}
	}
	if r := p.wait(p.invoke("event", nil, nil)); r.body() != "null" {
		t.Errorf("a call without an event was answered with %v", r)
	}
	for _, event := range []string{`{"a":`, `nonsense`, `{} {}`, ``, "\"\xff", strings.Repeat("[", 200_000)} {
		r := p.wait(p.invoke("event", nil, []byte(event)))
		if r.err == nil || r.err.Type != "Runtime.InvalidEvent" || r.err.Kind != "handler" {
			t.Errorf("the event %.80q was answered with %v", event, r)
		}
	}
	if r := p.wait(p.invoke("http", map[string]any{"rawPath": "/x"}, nil)); !jsonEqual(r.body(), `{"rawPath":"/x"}`) {
		t.Errorf("the call was answered with %v", r)
	}
	p.stop()
	p = s.function(t, "stream_async")
	if r := p.wait(p.invoke("event", nil, nil)); r.body() != "one two" || r.head.Status != 0 {
		t.Errorf("the call was answered with %v", r)
	}
	p.stop()
	p = s.function(t, "large_value")
	if r := p.wait(p.invoke("event", nil, nil)); len(r.body()) != 3<<20+2 {
		t.Errorf("the call was answered with %d bytes", len(r.body()))
	}
	p.stop()
}

func (s *suite) errors(t *testing.T) {
	for _, c := range []struct{ handler, kind, typ, message string }{
		{"throw", "handler", "ValueError", "bad thing"},
		{"throw_async", "handler", "ValueError", "bad thing"},
		{"throw_late", "handler", "ValueError", "bad thing"},
		{"unserialisable", "response", "Runtime.MarshalError", ""},
		{"circular", "response", "Runtime.MarshalError", ""},
		{"bad_status", "response", "Runtime.InvalidResponse", "statusCode"},
		{"bad_headers", "response", "Runtime.InvalidResponse", "headers"},
		{"bad_header", "response", "Runtime.InvalidResponse", "line break"},
		{"bad_body", "response", "Runtime.InvalidResponse", "body"},
		{"bad_item", "response", "Runtime.InvalidResponse", "yield"},
	} {
		t.Run(c.handler, func(t *testing.T) {
			p := s.function(t, c.handler)
			for range 2 { // the guest goes on serving
				r := p.wait(p.invoke("http", map[string]any{}, nil))
				if r.err == nil {
					t.Fatalf("the call was answered with %v", r)
				}
				if r.err.Kind != c.kind || r.err.Type != c.typ || !strings.Contains(r.err.Message, c.message) {
					t.Errorf("got %+v, want kind %s, type %s and %q in the message", *r.err, c.kind, c.typ, c.message)
				}
				if c.kind == "handler" && !strings.Contains(strings.Join(r.err.Stack, "\n"), "inner") {
					t.Errorf("the stack lacks the function that raised: %q", r.err.Stack)
				}
				s.checkStack(t, r.err.Stack)
				if c.handler == "throw_late" && r.body() != "begun" {
					t.Errorf("the response began with %q", r.body())
				}
			}
			p.stop()
		})
	}
}

func (s *suite) output(t *testing.T) {
	p := s.function(t, "output")
	if p.initLog != "1:loading\n" {
		t.Errorf("INIT logged %q", p.initLog)
	}
	for range 2 {
		r := p.wait(p.invoke("http", map[string]any{}, nil))
		if want := "line one\nline two\nbytes é\nunfinished"; r.stdout() != want || r.stderr() != "error line\n" {
			t.Errorf("got stdout %q and stderr %q", r.stdout(), r.stderr())
		}
	}
	p.stop()
	r := s.call(t, "big_output")
	if r.stdout() != strings.Repeat("x", 200_000)+"\n" {
		t.Errorf("got %d bytes of output", len(r.stdout()))
	}
	r = s.call(t, "throw")
	if r.stdout() != "before\n" {
		t.Errorf("got %q", r.stdout())
	}
}

func (s *suite) environment(t *testing.T) {
	r := s.call(t, "environment")
	var env struct {
		Greeting string
		Hearth   []string
		Cwd      string
	}
	if err := json.Unmarshal([]byte(r.body()), &env); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	if env.Greeting != "hello" || len(env.Hearth) != 0 || env.Cwd != s.code {
		t.Errorf("got %+v", env)
	}
	r = s.call(t, "context")
	var ctx struct {
		ID, Function string
		Version      any
		Memory       int
		Remaining    int
		Trace        []any
	}
	if err := json.Unmarshal([]byte(r.body()), &ctx); err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	if ctx.ID != "call-1" || ctx.Function != "fixture" || ctx.Version != "7" || ctx.Memory != 128 || ctx.Remaining < 30_000 || ctx.Remaining > 60_000 {
		t.Errorf("got %+v", ctx)
	}
	if !slices.Equal(ctx.Trace, []any{nil, nil}) {
		t.Errorf("without a trace the context has %v", ctx.Trace)
	}
	p := s.function(t, "context")
	p.trace = [2]string{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", `a="b\c"`}
	for _, kind := range []string{"http", "event"} {
		r = p.wait(p.invoke(kind, map[string]any{}, nil))
		if err := json.Unmarshal([]byte(r.body()), &ctx); err != nil || !slices.Equal(ctx.Trace, []any{p.trace[0], p.trace[1]}) {
			t.Errorf("with the trace %q the context has %v: %v", p.trace, ctx.Trace, err)
		}
	}
	p.stop()
}

func (s *suite) bodies(t *testing.T) {
	p := s.function(t, "mirror")
	big := bytes.Repeat([]byte("0123456789abcdef"), 5<<16) // 5 MiB, beyond the window
	binary := append(bytes.Clone(big), 0xff)
	for _, body := range [][]byte{[]byte("héllo"), {}, {0xff, 0x00, 0x80}, big, binary} {
		r := p.wait(p.invoke("http", map[string]any{"rawPath": "/"}, body))
		if r.err != nil || r.body() != string(body) {
			t.Errorf("a body of %d bytes came back as %v", len(body), r)
		}
	}
	// Text that is declared binary arrives as base64.
	r := p.wait(p.invoke("http", map[string]any{"isBase64Encoded": true}, []byte("text")))
	if r.body() != "text" {
		t.Errorf("the call was answered with %v", r)
	}
	p.stop()
	p = s.function(t, "echo")
	r = p.wait(p.invoke("http", map[string]any{"isBase64Encoded": true}, []byte("text")))
	if !jsonEqual(r.body(), `{"isBase64Encoded":true,"body":"dGV4dA=="}`) {
		t.Errorf("the event was %v", r)
	}
	p.stop()
}

func jsonEqual(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	p, _ := json.Marshal(x)
	q, _ := json.Marshal(y)
	return bytes.Equal(p, q)
}
