package guesttest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Kinds of messages.
const (
	text   = 1
	octets = 2
	closes = 8
)

// maxMessage is what calls of this suite allow.
const maxMessage = 1 << 20

// message is one of a WebSocket.
type message struct {
	kind    byte
	payload string
}

func (m message) String() string { return fmt.Sprintf("%d %.80q", m.kind, m.payload) }

func (m message) encode() []byte {
	b := binary.BigEndian.AppendUint32([]byte{m.kind}, uint32(len(m.payload)))
	return append(b, m.payload...)
}

func closing(code uint16, reason string) message {
	return message{closes, string(binary.BigEndian.AppendUint16(nil, code)) + reason}
}

// socket begins a call of a WebSocket.
func (p *peer) socket() uint32 {
	p.t.Helper()
	id := p.begin("websocket", map[string]any{"rawPath": "/ws", "headers": map[string]string{"sec-websocket-protocol": "one, two"}}, true)
	p.flush()
	return id
}

// say sends messages.
func (p *peer) say(id uint32, all ...message) {
	p.t.Helper()
	for _, m := range all {
		p.write(id, m.encode())
	}
	p.flush()
}

// bye closes the connection from the client's side.
func (p *peer) bye(id uint32, code uint16, reason string) {
	p.t.Helper()
	p.say(id, closing(code, reason))
	p.send(end, id, nil)
}

// messages takes apart what the handler has sent; what is not complete is left
// out.
func (r *result) messages() (all []message) {
	for b := r.data.Bytes(); len(b) >= 5; {
		n := int(binary.BigEndian.Uint32(b[1:]))
		if len(b) < 5+n {
			break
		}
		all = append(all, message{b[0], string(b[5 : 5+n])})
		b = b[5+n:]
	}
	return all
}

// hear reads until the handler has sent n messages.
func (p *peer) hear(id uint32, n int) []message {
	p.t.Helper()
	for len(p.calls[id].messages()) < n {
		if p.calls[id].ended {
			p.t.Fatalf("the call ended with %v", p.calls[id])
		}
		p.recv()
	}
	return p.calls[id].messages()
}

func (s *suite) webSockets(t *testing.T) {
	p := s.start(t)
	p.hello()
	if l := loadedOf(p.init(s.code, "conformance.text")); l.Websocket {
		t.Error("a handler that takes no WebSockets says it does")
	}
	p.stop()
	long := strings.Repeat("0123456789é", 90_000) // nearly the window
	for _, handler := range []string{"ws_echo", "ws_echo_async"} {
		t.Run(handler, func(t *testing.T) {
			p := s.start(t)
			p.hello()
			if l := loadedOf(p.init(s.code, "conformance."+handler)); !l.Websocket {
				t.Error("READY does not say that it takes WebSockets")
			}
			for range 2 {
				id := p.socket()
				for !p.calls[id].begun { // it accepts without having got anything
					p.recv()
				}
				if h := p.calls[id].head; h.Status != 101 {
					t.Fatalf("it was accepted with %+v", h)
				}
				want := []message{
					{text, "héllo"},
					{octets, "\x00\xff"},
					{text, ""},
					{octets, ""},
					{text, long[:maxMessage-1]},
					{octets, strings.Repeat("\xff", maxMessage)},
					{text, "last"},
				}
				for i, m := range want {
					p.say(id, m)
					if got := p.hear(id, i+1)[i]; got != m {
						t.Fatalf("%s came back as %s", m, got)
					}
				}
				// Many at once, in frames that know nothing of messages.
				var all []byte
				for i := range 1000 {
					m := message{text, fmt.Sprint("message ", i)}
					want = append(want, m)
					all = append(all, m.encode()...)
				}
				for piece := range slices.Chunk(all, 7) {
					p.write(id, piece)
				}
				p.flush()
				p.hear(id, len(want))
				p.bye(id, 4002, "byé")
				r := p.wait(id)
				if r.err != nil || !slices.Equal(r.messages(), want) || r.stdout() != "closed 4002 byé\n" {
					t.Errorf("it ended with %v, %d messages and %q", r.err, len(r.messages()), r.stdout())
				}
			}
			p.stop()
		})
	}
	t.Run("handshake", s.handshakes)
	t.Run("ends", s.socketEnds)
	t.Run("flow control", s.socketFlow)
	t.Run("protocol errors", s.socketErrors)
}

func (s *suite) handshakes(t *testing.T) {
	p := s.function(t, "ws_refuse")
	r := p.wait(p.socket())
	if r.err != nil || r.head.Status != 403 || r.body() != "not you" || !slices.Contains(r.head.Headers, [2]string{"x-why", "no"}) {
		t.Errorf("a refusal: %v", r)
	}
	p.stop()
	p = s.function(t, "ws_silent")
	if r := p.wait(p.socket()); r.err == nil || r.err.Kind != "response" || r.err.Type != "Runtime.InvalidResponse" || !strings.Contains(r.err.Message, "accept") {
		t.Errorf("neither accepted nor refused: %v", r)
	}
	p.stop()
	p = s.function(t, "ws_accept")
	r = p.wait(p.socket())
	if r.err != nil || r.head.Status != 101 || len(r.messages()) != 0 || !slices.Contains(r.head.Headers, [2]string{"sec-websocket-protocol", "two"}) ||
		!slices.Contains(r.head.Headers, [2]string{"x-extra", "yes"}) {
		t.Errorf("a subprotocol: %v", r)
	}
	p.stop()
	// What comes with the call, and its end, is delivered all the same.
	p = s.function(t, "ws_collect")
	id := p.begin("websocket", map[string]any{}, true)
	p.say(id, message{text, "a"}, message{octets, "b"}, closing(1005, ""))
	p.send(end, id, nil)
	if r := p.wait(id); r.err != nil || r.stdout() != "a b closed 1005\n" {
		t.Errorf("it ended with %v and %q", r.err, r.stdout())
	}
	p.stop()
	p = s.function(t, "ws_misuse")
	r = p.wait(p.socket())
	if got, want := r.messages(), "ValueError TypeError ValueError ValueError ValueError RuntimeError"; len(got) != 1 || got[0].payload != want {
		t.Errorf("misuse was answered with %v %v, want %s", r.err, got, want)
	}
	p.stop()
	p = s.function(t, "ws_yield")
	if r := p.wait(p.socket()); r.begun || r.err == nil || !strings.Contains(r.err.Message, "refused already") {
		t.Errorf("a handler that yields: %v", r)
	}
	p.stop()
}

func (s *suite) socketEnds(t *testing.T) {
	for _, async := range []string{"", "_async"} {
		p := s.function(t, "ws_throw"+async)
		for range 2 {
			r := p.wait(p.socket())
			if m := r.messages(); r.err == nil || r.err.Type != "ValueError" || len(m) != 1 || m[0].payload != "so far" {
				t.Errorf("an exception: %v %v", r, m)
			}
		}
		p.stop()

		p = s.function(t, "ws_close"+async)
		r := p.wait(p.socket())
		if m := r.messages(); r.err != nil || !slices.Equal(m, []message{closing(4001, "dône")}) || r.stdout() != "closed None\n" {
			t.Errorf("a close: %v %v %q", r.err, m, r.stdout())
		}
		p.stop()

		// Who sends although the client has left just ends.
		p = s.function(t, "ws_endless"+async)
		id := p.socket()
		p.hear(id, 3)
		p.bye(id, 1001, "")
		if r := p.wait(id); r.err != nil {
			t.Errorf("the client has left: %v", r)
		}
		// A client that disappears.
		id = p.socket()
		p.hear(id, 3)
		p.send(cancel, id, []byte(`{"reason":"client"}`))
		if r := p.wait(id); r.err == nil || r.err.Kind != "canceled" {
			t.Errorf("CANCEL of one that sends was answered with %v", r)
		}
		p.stop()
		p = s.function(t, "ws_echo"+async)
		id = p.socket()
		p.say(id, message{text, "x"})
		p.hear(id, 1)
		p.send(cancel, id, []byte(`{"reason":"client"}`))
		if r := p.wait(id); r.err == nil || r.err.Kind != "canceled" {
			t.Errorf("CANCEL of one that waits was answered with %v", r)
		}
		p.stop()
	}
}

func (s *suite) socketFlow(t *testing.T) {
	for _, async := range []string{"", "_async"} {
		p := s.function(t, "ws_endless"+async)
		p.hold = true
		id := p.socket()
		for p.room[id] > 0 {
			p.recv()
		}
		p.send(ping, 0, nil)
		for f := p.recv(); f.typ != pong; f = p.recv() {
			t.Errorf("the guest sent %#x with its window used up", f.typ)
		}
		p.open(id, 1000)
		for p.room[id] > 0 {
			p.recv()
		}
		p.send(cancel, id, []byte(`{"reason":"client"}`))
		p.wait(id)
		p.stop()

		// Who does not receive gets no more than the window.
		p = s.function(t, "ws_ignore"+async)
		id = p.socket()
		p.say(id, message{octets, strings.Repeat("x", windowSize-5)})
		if r := p.wait(id); r.err != nil || p.credit[id] != 0 {
			t.Errorf("%v, and %d bytes were granted", r, p.credit[id])
		}
		p.stop()
	}
	// Messages of several tasks do not mix, though none fits into the window with
	// the others.
	p := s.function(t, "ws_tasks")
	p.hold = true
	id := p.socket()
	for !p.calls[id].ended {
		if p.room[id] == 0 {
			p.open(id, 30_000)
		}
		p.recv()
	}
	large, small := "", 0
	for _, m := range p.calls[id].messages() {
		switch {
		case m.payload == "s":
			small++
		case len(m.payload) == 200_000 && m.payload == strings.Repeat(m.payload[:1], 200_000):
			large += m.payload[:1]
		default:
			t.Fatalf("a mixed message: %s", m)
		}
	}
	if err := p.calls[id].err; err != nil || large != "012345678" || small != 1000 {
		t.Errorf("%v, got %q and %d small ones", err, large, small)
	}
	p.stop()
}

func (s *suite) socketErrors(t *testing.T) {
	for name, send := range map[string]func(*peer, uint32){
		"unknown kind":      func(p *peer, id uint32) { p.say(id, message{3, "x"}) },
		"too long":          func(p *peer, id uint32) { p.write(id, []byte{octets, 0, 0x10, 0, 1}) },
		"END without close": func(p *peer, id uint32) { p.buffer(end, id, nil) },
		"half a message": func(p *peer, id uint32) {
			p.write(id, []byte{text, 0, 0, 0, 9, 'x'})
			p.buffer(end, id, nil)
		},
		"close without a code": func(p *peer, id uint32) { p.say(id, message{closes, "x"}) },
		"text is not UTF-8":    func(p *peer, id uint32) { p.say(id, message{text, "\xff"}) },
		"DATA after END": func(p *peer, id uint32) {
			p.bye(id, 1000, "")
			p.buffer(data, id, []byte("x"))
			p.buffer(data, id, []byte("x"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := s.function(t, "ws_echo_async")
			if name == "DATA after END" { // which the handler must not end before
				p.stop()
				p = s.function(t, "upload_patient")
			}
			id := p.socket()
			send(p, id)
			p.flush()
			p.ends(70)
		})
	}
	for name, head := range map[string]string{
		"no body":        `{"id":"a","deadline_ms":1,"kind":"websocket","event":{},"max_message":9}`,
		"no event":       `{"id":"a","deadline_ms":1,"kind":"websocket","body":true,"max_message":9}`,
		"no max_message": `{"id":"a","deadline_ms":1,"kind":"websocket","event":{},"body":true}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := s.function(t, "ws_echo")
			p.send(invoke, 1, []byte(head))
			p.ends(70)
		})
	}
}
