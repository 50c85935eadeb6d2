package guesttest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func (s *suite) requestStreams(t *testing.T) {
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	for _, handler := range []string{"upload", "upload_async"} {
		p := s.start(t)
		p.hello()
		if f := p.init(s.code, "conformance."+handler); !loadedOf(f).RequestStream {
			t.Fatalf("INIT was answered with %s", f)
		}
		for range 2 {
			id := p.begin("http", map[string]any{}, true)
			for range 40 { // beyond the window
				p.write(id, chunk)
			}
			p.buffer(end, id, nil)
			p.flush()
			r := p.wait(id)
			if handler == "upload" && r.body() != fmt.Sprint(40*len(chunk)) {
				t.Errorf("%s was answered with %v", handler, r)
			}
			if handler == "upload_async" && r.body() != strings.Repeat(string(chunk), 40) {
				t.Errorf("%s answered %d bytes", handler, len(r.body()))
			}
		}
		if r := p.wait(p.invoke("http", map[string]any{}, nil)); r.err != nil {
			t.Errorf("%s: a call without a body was answered with %v", handler, r)
		}
		p.stop()
	}

	// The guest answers piece by piece, while the body still arrives.
	p := s.function(t, "upload_async")
	id := p.begin("http", map[string]any{}, true)
	for i := range 5 {
		p.write(id, []byte{byte('a' + i)})
		p.flush()
		for p.calls[id].data.Len() <= i {
			p.recv()
		}
	}
	p.send(end, id, nil)
	if r := p.wait(id); r.body() != "abcde" {
		t.Errorf("the call was answered with %v", r)
	}
	p.stop()

	// A handler may answer without reading; what is still under way is ignored.
	p = s.function(t, "upload_ignored")
	id = p.begin("http", map[string]any{}, true)
	p.flush()
	if r := p.wait(id); r.body() != "no" {
		t.Errorf("the call was answered with %v", r)
	}
	p.buffer(data, id, chunk)
	p.buffer(end, id, nil)
	p.buffer(cancel, id, []byte(`{"reason":"client"}`))
	p.buffer(window, id, []byte{0, 0, 0, 1})
	p.flush()
	if r := p.wait(p.invoke("http", map[string]any{}, nil)); r.body() != "no" {
		t.Errorf("the call was answered with %v", r)
	}
	p.stop()
}

func (s *suite) flowControl(t *testing.T) {
	for _, handler := range []string{"endless", "endless_async", "large", "large_async"} {
		p := s.function(t, handler)
		p.hold = true
		id := p.invoke("http", map[string]any{}, nil)
		for p.room[id] > 0 {
			p.recv()
		}
		// Nothing more may come but the answer to a PING.
		p.send(ping, 0, nil)
		for f := p.recv(); f.typ != pong; f = p.recv() {
			t.Errorf("the guest sent %#x with its window used up", f.typ)
		}
		p.open(id, 10)
		for p.room[id] > 0 {
			p.recv()
		}
		if n := p.calls[id].data.Len(); n != windowSize+10 {
			t.Errorf("%s: got %d bytes", handler, n)
		}
		p.send(cancel, id, []byte(`{"reason":"client"}`))
		r := p.wait(id)
		if r.err == nil || r.err.Kind != "canceled" {
			t.Errorf("%s: CANCEL was answered with %v", handler, r)
		}
		if !strings.HasPrefix(handler, "large") {
			p.closed(id)
		}
		p.stop()
	}
}

// closed waits until the canceled generator of a call has printed that it was
// closed: before the call's end, or outside of calls after it.
func (p *peer) closed(id uint32) {
	p.t.Helper()
	for p.calls[id].stdout() != "closed\n" && !strings.Contains(p.initLog, "1:closed\n") {
		p.recv()
	}
}

func (s *suite) overlap(t *testing.T) {
	p := s.function(t, "overlap")
	const calls = 20
	ids := make([]uint32, calls)
	for i := range ids {
		ids[i] = p.bufferInvoke("event", nil, fmt.Appendf(nil, `{"n":%d,"ms":%d}`, i, 5*(calls-i)))
	}
	p.flush()
	for i, id := range ids {
		r := p.wait(id)
		if want := fmt.Sprintf("begin %d\nend %d\n", i, i); r.body() != fmt.Sprint(i) || r.stdout() != want {
			t.Errorf("call %d was answered with %v and printed %q", i, r, r.stdout())
		}
	}
	// One call that waits must not hold up others, nor lose its own output.
	slow := p.invoke("event", nil, []byte(`{"n":100,"ms":200}`))
	for i := range 5 {
		if r := p.wait(p.invoke("event", nil, fmt.Appendf(nil, `{"n":%d,"ms":1}`, i))); r.body() != fmt.Sprint(i) {
			t.Errorf("call %d was answered with %v", i, r)
		}
	}
	if p.calls[slow].ended {
		t.Error("the slow call ended first")
	}
	if r := p.wait(slow); r.body() != "100" || r.stdout() != "begin 100\nend 100\n" {
		t.Errorf("the slow call was answered with %v and printed %q", r, r.stdout())
	}
	p.stop()

	// Calls that come at once to a handler that cannot overlap are all answered.
	p = s.function(t, "output")
	for i := range ids {
		ids[i] = p.bufferInvoke("http", map[string]any{}, nil)
	}
	p.flush()
	for _, id := range ids {
		if r := p.wait(id); r.err != nil || !strings.HasSuffix(r.stdout(), "\nunfinished") {
			t.Errorf("a call was answered with %v and printed %q", r, r.stdout())
		}
	}
	p.stop()
}

func (s *suite) cancel(t *testing.T) {
	p := s.function(t, "patient")
	a, b := p.invoke("http", map[string]any{}, nil), p.invoke("http", map[string]any{}, nil)
	for p.calls[a].stdout() == "" || p.calls[b].stdout() == "" {
		p.recv()
	}
	p.send(cancel, a, []byte(`{"reason":"deadline"}`))
	if r := p.wait(a); r.err == nil || r.err.Kind != "canceled" {
		t.Errorf("CANCEL was answered with %v", r)
	}
	if p.calls[b].ended {
		t.Error("CANCEL of one call ended another")
	}
	p.send(cancel, b, []byte(`{"reason":"deadline"}`))
	p.wait(b)
	// In the same breath as its INVOKE, and before its body was there.
	c := p.bufferInvoke("http", map[string]any{}, nil)
	p.buffer(cancel, c, []byte(`{"reason":"client"}`))
	d := p.begin("http", map[string]any{}, true)
	p.buffer(data, d, []byte("x"))
	p.buffer(cancel, d, []byte(`{"reason":"client"}`))
	p.flush()
	for _, id := range []uint32{c, d} {
		if r := p.wait(id); r.err == nil || r.err.Kind != "canceled" {
			t.Errorf("CANCEL was answered with %v", r)
		}
	}
	p.send(end, d, nil)
	p.stop()

	p = s.function(t, "upload")
	id := p.begin("http", map[string]any{}, true)
	p.write(id, []byte("x"))
	p.buffer(cancel, id, []byte(`{"reason":"client"}`))
	p.flush()
	if r := p.wait(id); r.err == nil || r.err.Kind != "canceled" {
		t.Errorf("CANCEL was answered with %v", r)
	}
	p.stop()
}

func (s *suite) shutdown(t *testing.T) {
	p := s.function(t, "overlap")
	id := p.bufferInvoke("event", nil, []byte(`{"n":1,"ms":100}`))
	p.buffer(ping, 0, bytes.Repeat([]byte("p"), 64))
	p.buffer(shutdown, 0, []byte(`{"grace_ms":1000}`))
	p.flush()
	if r := p.wait(id); r.body() != "1" {
		t.Errorf("the running call was answered with %v", r)
	}
	p.ends(0)

	p = s.start(t)
	p.hello()
	p.stop() // a stem cell that is not needed

	p = s.function(t, "patient")
	id = p.invoke("http", map[string]any{}, nil)
	for p.calls[id].stdout() == "" {
		p.recv()
	}
	p.close(0) // the host has died
}

func (s *suite) vandals(t *testing.T) {
	p := s.function(t, "vandal")
	for i := range 2 {
		r := p.wait(p.invoke("http", map[string]any{}, nil))
		if r.body() != "done" {
			t.Errorf("the call was answered with %v", r)
		}
		if i == 0 && r.stdout() != "kept\n" {
			t.Errorf("it printed %q", r.stdout())
		}
		if s.Language == "python" {
			break // the second call prints to None
		}
	}
	p.stop()

	p = s.function(t, "descriptors")
	r := p.wait(p.invoke("event", nil, nil))
	if !strings.Contains(r.body(), " 2 -> ") || regexp.MustCompile(`([3-9]|\d\d) -> socket:`).MatchString(r.body()) {
		t.Errorf("a child process has the descriptors %v", r)
	}
	p.stop()

	p = s.function(t, "leave")
	id := p.invoke("http", map[string]any{}, nil)
	p.ends(3)
	if out := p.calls[id].stdout(); out != "bye\nunfinished" {
		t.Errorf("a function that exits printed %q", out)
	}
}

func (s *suite) language(t *testing.T) {
	type want struct{ body, stdout, stderr, err string }
	cases := map[string]want{
		"exit_soft": {err: "SystemExit"},
		"forked":    {body: "parent"},
		"logged":    {body: "null", stderr: "take care\n"},
		"awaitable": {body: "awaited"},
	}
	if s.Language == "nodejs" {
		cases = map[string]want{
			"callback":       {body: "called back"},
			"callback_error": {err: "RangeError"},
			"web_stream":     {body: "web"},
			"fetched":        {body: "fetched"},
		}
	}
	for handler, w := range cases {
		p := s.function(t, handler)
		for range 2 {
			r := p.wait(p.invoke("http", map[string]any{}, nil))
			typ := ""
			if r.err != nil {
				typ = r.err.Type
			}
			if r.body() != w.body || r.stdout() != w.stdout || r.stderr() != w.stderr || typ != w.err {
				t.Errorf("%s was answered with %v and printed %q and %q", handler, r, r.stdout(), r.stderr())
			}
			if handler == "fetched" && (r.head.Status != 203 || !slices.Contains(r.head.Headers, [2]string{"set-cookie", "b=2"}) ||
				!slices.Contains(r.head.Headers, [2]string{"set-cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"})) {
				t.Errorf("%s was answered with %v", handler, r)
			}
		}
		p.stop()
	}
	switch s.Language {
	case "python":
		r := s.call(t, "threads")
		if n := strings.Count(r.stdout(), "\n"); n != 400 {
			t.Errorf("four threads printed %d lines", n)
		}
	case "nodejs":
		p := s.function(t, "crash")
		p.invoke("http", map[string]any{}, nil)
		p.ends(1)
		if !strings.Contains(p.raw.String(), "in a timer") {
			t.Errorf("the crash was reported as %q", p.raw.String())
		}
	}
}

func (s *suite) protocolErrors(t *testing.T) {
	one := []byte{0, 0, 0, 1}
	empty := []byte(`{}`)
	call := func(p *peer, body bool) []byte {
		p.begin("http", map[string]any{}, body)
		b := bytes.Clone(p.out)
		p.out = p.out[:0]
		return b
	}
	for _, c := range []struct {
		name  string
		stage int // 0: nothing sent, 1: HELLO, 2: INIT, 3: a call waits for its body
		send  func(p *peer) []byte
	}{
		{"another secret", 0, func(*peer) []byte { return appendFrame(nil, hello, 0, helloHead("guess")) }},
		{"another protocol", 0, func(*peer) []byte {
			return appendFrame(nil, hello, 0, []byte(`{"protocol":2,"secret":"open sesame"}`))
		}},
		{"no HELLO", 0, func(*peer) []byte { return appendFrame(nil, ping, 0, nil) }},
		{"INIT first", 0, func(*peer) []byte { return appendFrame(nil, initialize, 0, initHead("/", "a.b")) }},
		{"garbage", 0, func(*peer) []byte { return []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n") }},
		{"second HELLO", 1, func(p *peer) []byte { return appendFrame(nil, hello, 0, helloHead(p.secret)) }},
		{"INVOKE before INIT", 1, func(p *peer) []byte { return call(p, false) }},
		{"INIT without fields", 1, func(*peer) []byte { return appendFrame(nil, initialize, 0, empty) }},
		{"INIT is no JSON", 1, func(*peer) []byte { return appendFrame(nil, initialize, 0, []byte("{")) }},
		{"second INIT", 2, func(*peer) []byte { return appendFrame(nil, initialize, 0, initHead("/", "a.b")) }},
		{"unknown type", 2, func(*peer) []byte { return appendFrame(nil, 0x55, 0, nil) }},
		{"a type of the guest", 2, func(*peer) []byte { return appendFrame(nil, response, 1, empty) }},
		{"too long", 2, func(*peer) []byte { return []byte{0, 0x10, 0, 1, data, 0, 0, 0, 1} }},
		{"even stream", 2, func(p *peer) []byte { b := call(p, false); b[8] = 2; return b }},
		{"INVOKE is no JSON", 2, func(*peer) []byte { return appendFrame(nil, invoke, 1, []byte("nonsense")) }},
		{"INVOKE is no object", 2, func(*peer) []byte { return appendFrame(nil, invoke, 1, []byte("[]")) }},
		{"INVOKE without fields", 2, func(*peer) []byte { return appendFrame(nil, invoke, 1, empty) }},
		{"DATA on stream 0", 2, func(*peer) []byte { return appendFrame(nil, data, 0, one) }},
		{"unknown stream", 2, func(*peer) []byte { return appendFrame(nil, data, 99, one) }},
		{"END of an unknown stream", 2, func(*peer) []byte { return appendFrame(nil, end, 99, nil) }},
		{"CANCEL of an unknown stream", 2, func(*peer) []byte { return appendFrame(nil, cancel, 99, empty) }},
		{"WINDOW of an unknown stream", 2, func(*peer) []byte { return appendFrame(nil, window, 99, one) }},
		{"long PING", 2, func(*peer) []byte { return appendFrame(nil, ping, 0, make([]byte, 65)) }},
		{"PING on a stream", 2, func(*peer) []byte { return appendFrame(nil, ping, 1, nil) }},
		{"INVOKE after SHUTDOWN", 3, func(p *peer) []byte {
			return append(appendFrame(nil, shutdown, 0, empty), call(p, false)...)
		}},
		{"a stream used twice", 3, func(p *peer) []byte { p.next = 1; return call(p, false) }},
		{"END with a payload", 3, func(*peer) []byte { return appendFrame(nil, end, 1, one) }},
		{"short WINDOW", 3, func(*peer) []byte { return appendFrame(nil, window, 1, one[:3]) }},
		{"CANCEL is no JSON", 3, func(*peer) []byte { return appendFrame(nil, cancel, 1, nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := s.start(t)
			if c.stage > 0 {
				p.hello()
			}
			if c.stage > 1 {
				p.init(s.code, "conformance.text")
			}
			if c.stage > 2 {
				p.begin("http", map[string]any{}, true)
			}
			p.out = append(p.out, c.send(p)...)
			p.flush()
			p.ends(70)
		})
	}
	for name, after := range map[string]func(*peer){
		"DATA beyond the window": func(p *peer) {
			id := p.begin("http", map[string]any{}, true)
			for range 17 { // one more than the window holds; the handler reads nothing
				p.buffer(data, id, make([]byte, 64<<10))
			}
		},
		"DATA after END": func(p *peer) {
			id := p.bufferInvoke("http", map[string]any{}, one)
			p.buffer(data, id, one)
		},
		"DATA of a call without a body": func(p *peer) {
			p.buffer(data, p.bufferInvoke("http", map[string]any{}, nil), one)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := s.function(t, "upload_patient")
			after(p)
			p.flush()
			p.ends(70)
		})
	}
}

// mutated feeds the guest valid streams with a defect at a random place. It
// must then exit with status 70, or 0 if it makes sense of what it got, within
// the time of read, and what it writes until then must be well-formed.
func (s *suite) mutated(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	s.mutate(t, seed, rounds)
}

func (s *suite) mutate(t *testing.T, seed uint64, rounds int) {
	random := newRandom(seed)
	for round := range rounds {
		p := s.start(t)
		p.buffer(hello, 0, helloHead(p.secret))
		p.buffer(initialize, 0, initHead(s.code, []string{"conformance.echo", "conformance.stream_async", "conformance.upload", "conformance.ws_echo", "conformance.ws_echo_async"}[round%5]))
		for i := range 6 {
			id := p.bufferInvoke([]string{"event", "http", "warmup"}[i%3], map[string]any{"rawPath": "/"}, []byte(`{"a":1}`))
			if i == 3 {
				p.buffer(cancel, id, []byte(`{"reason":"client"}`))
			}
			p.buffer(ping, 0, []byte("p"))
		}
		if round%5 > 2 { // else a handler has nothing to do with it, and fails
			id := p.begin("websocket", map[string]any{"rawPath": "/"}, true)
			p.buffer(data, id, message{text, "text"}.encode())
			p.buffer(data, id, append(message{octets, "octets"}.encode(), closing(1000, "").encode()...))
			p.buffer(end, id, nil)
		}
		p.buffer(shutdown, 0, []byte(`{"grace_ms":1}`))
		before := bytes.Clone(p.out)
		p.out = random.mutate(p.out)
		after := bytes.Clone(p.out)
		p.closeWrite()
		order := map[uint32]byte{}
		for {
			f, err := p.read()
			if err != nil {
				break
			}
			if err := wellFormed(f, order); err != nil {
				t.Errorf("round %d: %v: %s\nthe stream was %q\n     sent as %q", round, err, f, before, after)
				break
			}
		}
		select {
		case <-p.exit:
		case <-time.After(patience):
			t.Fatalf("round %d: the guest hangs\nthe stream was %q\n     sent as %q", round, before, after)
		}
		if p.status != 0 && p.status != 70 {
			t.Errorf("round %d: the guest exited with status %d: %s\nthe stream was %q\n     sent as %q", round, p.status, p.raw.String(), before, after)
		}
	}
}

// wellFormed checks a frame of a guest whose input is not known; order holds
// the type of each stream's last frame.
func wellFormed(f frame, order map[uint32]byte) error {
	last := order[f.stream]
	switch f.typ {
	case ready, initError, pong:
		if f.stream != 0 {
			return fmt.Errorf("it belongs on stream 0")
		}
		return nil
	case logged:
		if len(f.payload) < 2 || last == end || last == failed {
			return fmt.Errorf("LOG without text or after the end")
		}
		return nil
	case window:
		if len(f.payload) != 4 || binary.BigEndian.Uint32(f.payload) == 0 {
			return fmt.Errorf("WINDOW without a number")
		}
		return nil
	case response:
		if last != 0 {
			return fmt.Errorf("RESPONSE after %#x", last)
		}
	case data, end:
		if last != response && last != data {
			return fmt.Errorf("it follows %#x", last)
		}
	case failed:
		if last == end || last == failed {
			return fmt.Errorf("ERROR after the end")
		}
	default:
		return fmt.Errorf("unknown type")
	}
	if f.stream == 0 {
		return fmt.Errorf("it belongs to a call")
	}
	order[f.stream] = f.typ
	return nil
}
