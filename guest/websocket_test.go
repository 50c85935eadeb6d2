package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hearthrun/hearth"
)

// heard is a SocketSink that writes down what it gets.
type heard struct {
	recorder
	socket   *Socket
	accepted chan struct{} // closed by Accept
	messages []string      // "kind payload"
	inside   bool          // of a message
	close    string
}

func newHeard() *heard { return &heard{accepted: make(chan struct{})} }

func (h *heard) Accept(_ *Head, s *Socket) error {
	h.socket = s
	close(h.accepted)
	return nil
}

func (h *heard) Message(kind MessageKind, p []byte, first, last bool) error {
	if first == h.inside {
		return errors.New("a message begins inside of another, or none has begun")
	}
	if first {
		h.messages = append(h.messages, fmt.Sprint(kind, " "))
	}
	h.messages[len(h.messages)-1] += string(p)
	h.inside = !last
	return nil
}

func (h *heard) Close(code uint16, reason string) error {
	h.close = fmt.Sprint(code, " ", reason)
	return nil
}

func encodeMessage(kind MessageKind, payload string) string {
	return string(appendMessageHead(nil, kind, len(payload))) + payload
}

func encodeClose(code uint16, reason string) string {
	return encodeMessage(messageClose, string(binary.BigEndian.AppendUint16(nil, code))+reason)
}

func socketCall() *SocketCall {
	return &SocketCall{ID: "id", Deadline: time.Now().Add(time.Hour), Event: []byte(`{}`), MaxMessage: 1000, Leave: time.Minute}
}

const accepted = `{"status":101,"headers":[]}`

// dialSocket invokes a WebSocket on a scripted guest.
func dialSocket(t *testing.T, ctx context.Context, h *heard, play func(g *script)) error {
	t.Helper()
	c, _, err := connect(t, func(g *script) {
		g.greet()
		if f := g.expect(typeInvoke); !strings.Contains(f.payload, `"kind":"websocket","body":true,"max_message":1000`) {
			t.Errorf("INVOKE %s", f.payload)
		}
		play(g)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Init(ctx, Init{}); err != nil {
		t.Fatal(err)
	}
	return c.InvokeSocket(ctx, socketCall(), h)
}

func TestSocket(t *testing.T) {
	h := newHeard()
	long := strings.Repeat("y", 900)
	go func() {
		<-h.accepted
		ctx := t.Context()
		if err := errors.Join(h.socket.Send(ctx, MessageText, []byte("héllo")), h.socket.Send(ctx, MessageBinary, bytes.Repeat([]byte("x"), 3<<20)), h.socket.Send(ctx, MessageText, nil)); err != nil {
			t.Error(err)
		}
		h.socket.Close(ctx, 4000, "bye")
	}()
	err := dialSocket(t, t.Context(), h, func(g *script) {
		g.send(typeResponse, 1, accepted)
		want := encodeMessage(MessageText, "héllo") + encodeMessage(MessageBinary, strings.Repeat("x", 3<<20)) + encodeMessage(MessageText, "") + encodeClose(4000, "bye")
		if got := string(g.body(1)); got != want {
			t.Errorf("the guest got %d bytes, want %d", len(got), len(want))
		}
		all := encodeMessage(MessageText, "one") + encodeMessage(MessageBinary, "") + encodeMessage(MessageBinary, long) + encodeClose(1001, "enough")
		for _, b := range []byte(all) { // frames know nothing of messages
			g.send(typeData, 1, string([]byte{b}))
		}
		g.send(typeEnd, 1, "")
	})
	if err != nil || fmt.Sprint(h.messages) != fmt.Sprint([]string{"1 one", "2 ", "2 " + long}) || h.close != "1001 enough" {
		t.Errorf("%v %.100q %q", err, h.messages, h.close)
	}
}

func TestSocketRefused(t *testing.T) {
	h := newHeard()
	err := dialSocket(t, t.Context(), h, func(g *script) { g.respond(1, "no") })
	if err != nil || h.head.Status != 200 || string(h.body) != "no" || h.last != 1 {
		t.Errorf("%v %+v", err, h)
	}
}

// TestSocketViolations: what a guest must not send ends the connection to it.
func TestSocketViolations(t *testing.T) {
	for name, c := range map[string]struct{ data, want string }{
		"unknown kind":         {encodeMessage(3, "x"), "Runtime.ProtocolError"},
		"too long":             {string(appendMessageHead(nil, MessageText, 1001)), "Runtime.ProtocolError"},
		"after close":          {encodeClose(1000, "") + "x", "Runtime.ProtocolError"},
		"close without a code": {encodeMessage(messageClose, "x"), "Runtime.ProtocolError"},
		"code not to be sent":  {encodeClose(1006, ""), "Runtime.ProtocolError"},
		"reason no UTF-8":      {encodeClose(1000, "\xff"), "Runtime.ProtocolError"},
		"long reason":          {encodeClose(1000, strings.Repeat("x", 124)), "Runtime.ProtocolError"},
		"half a message":       {encodeMessage(MessageText, "x")[:5], "Runtime.InvalidResponse"},
		"half a head":          {encodeMessage(MessageText, "x")[:4], "Runtime.InvalidResponse"},
	} {
		t.Run(name, func(t *testing.T) {
			err := dialSocket(t, t.Context(), newHeard(), func(g *script) {
				g.send(typeResponse, 1, accepted)
				g.send(typeData, 1, c.data)
				g.send(typeEnd, 1, "")
			})
			wantError(t, err, hearth.CodeFunction, c.want)
		})
	}
}

// TestSocketFailsAfterAccept: unlike with a response, what came before the error
// is passed on, so that the client learns of both.
func TestSocketFailsAfterAccept(t *testing.T) {
	h := newHeard()
	err := dialSocket(t, t.Context(), h, func(g *script) {
		g.raw(bytes.Join([][]byte{
			appendFrame(nil, typeResponse, 1, []byte(accepted)),
			appendFrame(nil, typeData, 1, []byte(encodeMessage(MessageText, "so far"))),
			appendFrame(nil, typeError, 1, []byte(`{"kind":"handler","type":"E","message":"m","stack":[]}`)),
		}, nil))
	})
	wantError(t, err, hearth.CodeFunction, "E")
	if len(h.messages) != 1 || h.socket == nil {
		t.Errorf("%+v", h)
	}
}

// TestSocketLeft: a handler that does not end when its client has left is stopped
// after SocketCall.Leave, long before its deadline.
func TestSocketLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := newHeard()
	go func() {
		<-h.accepted
		cancel()
	}()
	var c *Conn
	c, _, err := connect(t, func(g *script) {
		g.greet()
		g.expect(typeInvoke)
		g.send(typeResponse, 1, accepted)
		if f := g.expect(typeCancel); f.payload != `{"reason":"client"}` {
			t.Errorf("CANCEL %s", f.payload)
		}
		g.next() //nolint:errcheck // the end of the stream
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Init(t.Context(), Init{}); err != nil {
		t.Fatal(err)
	}
	call := socketCall()
	call.Leave = 10 * time.Millisecond
	if err := c.InvokeSocket(ctx, call, h); hearth.ErrorCode(err) != hearth.CodeCanceled {
		t.Error(err)
	}
	if c.Abandoned() != 1 {
		t.Error("the call is not under way any more")
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Error("the guest may go on for its whole deadline")
	}
}

// FuzzMessages: whatever a guest sends as messages, what is passed on is whole and
// within the limits, or an error blames the guest.
func FuzzMessages(f *testing.F) {
	for _, s := range []string{
		"", encodeMessage(MessageText, "a") + encodeMessage(MessageBinary, strings.Repeat("b", 999)),
		encodeMessage(MessageText, "") + encodeClose(1000, "bye"), encodeClose(4999, "") + "x", encodeMessage(9, "x"), "\x01\xff\xff\xff\xff",
	} {
		f.Add([]byte(s), uint8(1))
		f.Add([]byte(s), uint8(255))
	}
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		var c Conn
		c.nc, _ = net.Pipe() // a violation closes it
		h := newHeard()
		m := &messages{SocketSink: h, conn: &c, max: 1000}
		if err := m.Head(&Head{Status: 101}); err != nil {
			t.Fatal(err)
		}
		var err error
		size := 0
		for rest := b; err == nil; {
			n := min(len(rest), int(piece)+1)
			err = m.Data(rest[:n], n == len(rest))
			if rest = rest[n:]; len(rest) == 0 {
				break
			}
		}
		if err != nil && hearth.ErrorCode(err) != hearth.CodeFunction {
			t.Fatal(err)
		}
		for _, s := range h.messages {
			if size += len(s) + 3; len(s) > 1002 {
				t.Fatalf("a message of %d bytes", len(s))
			}
		}
		if size > len(b) && err == nil || err == nil && h.inside {
			t.Fatalf("%d bytes of messages in %d; inside of one: %v", size, len(b), h.inside)
		}
		if h.close != "" && !utf8.ValidString(h.close) {
			t.Fatalf("%q", h.close)
		}
	})
}
