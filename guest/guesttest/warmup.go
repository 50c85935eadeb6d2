package guesttest

import (
	"strings"
	"testing"
)

// load starts a guest with a handler.
func (s *suite) load(t *testing.T, handler string) (*peer, loaded) {
	t.Helper()
	p := s.start(t)
	p.hello()
	f := p.init(s.code, handler)
	if f.typ != ready {
		t.Fatalf("INIT of %s was answered with %s", handler, f)
	}
	return p, loadedOf(f)
}

// warmup checks calls of the kind "warmup".
func (s *suite) warmup(t *testing.T) {
	n := []byte(`{"n":1}`)
	for _, c := range []struct {
		handler string
		event   []byte
		stdout  string
	}{
		{"conformance.text", nil, ""},
		{"conformance.text", n, ""},
		{"conformance.throw", nil, ""},
		{"conformance.unserialisable", n, ""},
		{"conformance.large", n, ""},
		{"conformance.stream_empty", n, ""},
		{"warm.handler", nil, "warming\n"},
		{"warm.handler", n, "warming\nhandling 1 call-1 True\n"},
		{"warm.stream", n, "warming\nbegun\nended\n"},
		{"warm.read", n, "warming\nread 1 nothing\n"},
		{"warm.warmup", nil, ""}, // it is the handler
		{"warms.handler", nil, "warming\nwarm\n"},
		{"warms.handler", n, "warming\nwarm\nhandling 1\n"},
		{"warms.handler_async", n, "warming\nwarm\nhandling 1\n"},
		{"warms.awaitable", n, "warming\nwarm\nhandling 1\n"},
		{"warms.stream", n, "warming\nwarm\nbegun\nended\n"},
	} {
		t.Run(c.handler, func(t *testing.T) {
			p, _ := s.load(t, c.handler)
			r := p.wait(p.invoke("warmup", nil, c.event))
			if r.err != nil || r.body() != "" || r.head.Status != 0 || r.stdout() != c.stdout {
				t.Errorf("with the event %q it was answered with %v and printed %q", c.event, r, r.stdout())
			}
			p.stop()
		})
	}

	// It comes with HELLO and INIT, and others follow.
	p := s.start(t)
	p.buffer(hello, 0, helloHead(p.secret))
	p.buffer(initialize, 0, initHead(s.code, "warm.read"))
	id := p.bufferInvoke("warmup", nil, n)
	p.flush()
	if r := p.wait(id); r.err != nil || r.stdout() != "warming\nread 1 nothing\n" {
		t.Errorf("the early warm-up was answered with %v and printed %q", r, r.stdout())
	}
	if r := p.wait(p.invoke("http", map[string]any{"n": 2}, []byte("this"))); r.stdout() != "read 2 this\n" {
		t.Errorf("the call after it was answered with %v and printed %q", r, r.stdout())
	}
	p.stop()
	p, _ = s.load(t, "warm.handler")
	p.wait(p.invoke("warmup", nil, n))
	p.wait(p.invoke("warmup", nil, nil))
	if r := p.wait(p.invoke("event", nil, []byte(`{"n":0}`))); !jsonEqual(r.body(), `{"done":["warmup","handler","warmup","handler"]}`) {
		t.Errorf("the call after two warm-ups was answered with %v", r)
	}
	p.stop()

	for _, c := range []struct{ handler, event, typ string }{
		{"warm_fails.handler", "", "ValueError"},
		{"warm_fails.handler", `{"n":1}`, "ValueError"},
		{"conformance.throw", `{}`, "ValueError"},
		{"conformance.throw_async", `{}`, "ValueError"},
		{"conformance.throw_late", `{}`, "ValueError"},
		{"warm.handler", `{"n":`, "Runtime.InvalidEvent"},
		{"warms.handler_async", `{"n":`, "Runtime.InvalidEvent"},
	} {
		p, _ := s.load(t, c.handler)
		var event []byte
		if c.event != "" {
			event = []byte(c.event)
		}
		for range 2 {
			r := p.wait(p.invoke("warmup", nil, event))
			if r.err == nil || r.err.Kind != "handler" || r.err.Type != c.typ || strings.Contains(r.stdout(), "never") {
				t.Errorf("%s: the warm-up was answered with %v and printed %q", c.handler, r, r.stdout())
				continue
			}
			s.checkStack(t, r.err.Stack)
			if c.typ == "ValueError" && !strings.Contains(strings.Join(r.err.Stack, "\n"), "inner") {
				t.Errorf("%s: the stack lacks the function that raised: %q", c.handler, r.err.Stack)
			}
		}
		p.stop()
	}

	for _, handler := range []string{"warms.patient", "conformance.endless", "conformance.endless_async"} {
		p, _ := s.load(t, handler)
		id := p.invoke("warmup", nil, n)
		for handler == "warms.patient" && !strings.HasSuffix(p.calls[id].stdout(), "waiting\n") {
			p.recv()
		}
		p.send(cancel, id, []byte(`{"reason":"deadline"}`))
		if r := p.wait(id); r.err == nil || r.err.Kind != "canceled" {
			t.Errorf("%s: CANCEL was answered with %v", handler, r)
		}
		p.stop()
	}
}

// concurrent checks what READY says of handlers that overlap.
func (s *suite) concurrent(t *testing.T) {
	always := s.Language == "nodejs"
	for handler, want := range map[string]bool{
		"text": always, "stream": always, "upload": always, "instance": always,
		"overlap": true, "stream_async": true, "upload_async": true,
	} {
		if handler == "instance" && s.Language != "python" {
			continue
		}
		p, l := s.load(t, "conformance."+handler)
		if l.Concurrent != want {
			t.Errorf("%s: concurrent is %v", handler, l.Concurrent)
		}
		p.stop()
	}
}
