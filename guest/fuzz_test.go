package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

func FuzzParseHeader(f *testing.F) {
	for _, t := range []frameType{0, typeHello, typeData, typeEnd, typeWindow, typeReady, typeInitError, typeResponse, typeError, typeLog, 0x16, 255} {
		f.Add(appendHeader(nil, t, 0, 0))
		f.Add(appendHeader(nil, t, 1, 4))
		f.Add(appendHeader(nil, t, 1<<32-1, maxPayload+1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		h, err := parseHeader(b)
		if err != nil {
			var pe *protocolError
			if !errors.As(err, &pe) {
				t.Fatalf("%v is no protocol error", err)
			}
			return
		}
		if h.length > maxPayload {
			t.Fatalf("%d bytes accepted", h.length)
		}
		if got := appendHeader(nil, h.typ, h.stream, int(h.length)); !bytes.Equal(got, b[:headerSize]) {
			t.Fatalf("%x read as %x", b[:headerSize], got)
		}
	})
}

// fuzzConn is a connection whose guest greets as it should, then sends
// arbitrary bytes, in reads of a given size, and ends.
type fuzzConn struct {
	net.Conn // nil; only the methods below are used
	greeting chan []byte
	invoked  chan struct{} // closed when the call was sent
	closed   chan struct{}
	close    sync.Once
	b        []byte
	piece    int
}

func (c *fuzzConn) Read(p []byte) (int, error) {
	select {
	case g := <-c.greeting:
		return copy(p, g), nil
	case <-c.closed:
		return 0, net.ErrClosed
	case <-c.invoked:
		n := copy(p, c.b[:min(len(c.b), c.piece)])
		c.b = c.b[n:]
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
}

func (c *fuzzConn) Write(p []byte) (int, error) {
	switch frameType(p[4]) {
	case typeHello, typeInit:
		c.greeting <- appendFrame(nil, typeReady, 0, []byte(`{"protocol":1}`))
	case typeInvoke:
		close(c.invoked)
	}
	return len(p), nil
}

func (c *fuzzConn) Close() error {
	c.close.Do(func() { close(c.closed) })
	return nil
}

// FuzzReader: whatever a guest sends during a call, Invoke returns, with a
// whole response or with an error that blames the guest; and what was kept of
// it is bounded.
func FuzzReader(f *testing.F) {
	frame := func(typ frameType, stream uint32, payload string) []byte {
		return appendFrame(nil, typ, stream, []byte(payload))
	}
	head := frame(typeResponse, 1, `{"status":200,"headers":[["a","b"]]}`)
	end := frame(typeEnd, 1, "")
	for _, frames := range [][][]byte{
		{},
		{head, end},
		{head, frame(typeData, 1, "hello"), end},
		{head, frame(typeData, 1, ""), frame(typeData, 1, strings.Repeat("x", 9000)), end, frame(typeLog, 1, "\x01x")},
		{frame(typeError, 1, `{"kind":"handler","type":"T","message":"m","stack":["s"]}`)},
		{head, frame(typeError, 1, `{}`), end},
		{frame(typeLog, 1, "\x01a\n"), frame(typeLog, 0, "\x02b"), head, frame(typeWindow, 1, "\x00\x10\x00\x00"), end},
		{frame(typeReady, 0, `{}`)},
		{frame(typeResponse, 1, `{"status":[]}`)},
		{head, bytes.Repeat(frame(typeData, 1, ""), 100), bytes.Repeat(frame(typeWindow, 1, "\x20\x00\x00\x00"), 3)},
	} {
		f.Add(bytes.Join(frames, nil), uint16(1), false)
		f.Add(bytes.Join(frames, nil), uint16(1<<15), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, piece uint16, upload bool) {
		nc := &fuzzConn{
			greeting: make(chan []byte, 2), invoked: make(chan struct{}), closed: make(chan struct{}),
			b: b, piece: int(piece) + 1,
		}
		c, _, err := Connect(t.Context(), nc, Options{OnLog: func(id string, stream int, text []byte) {
			if id != "" && id != "id" || stream != 1 && stream != 2 || len(text) == 0 {
				t.Errorf("LOG %q %d %q", id, stream, text)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Init(t.Context(), Init{}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		call := httpCall("id")
		if upload {
			call.Rest = strings.NewReader(strings.Repeat("u", 3*chunkSize))
		}
		var r recorder
		switch err := c.Invoke(ctx, call, &r); {
		case err == nil:
			if r.head == nil || r.last != 1 {
				t.Fatalf("a response that is not whole: %+v", r)
			}
		case hearth.ErrorCode(err) != hearth.CodeFunction:
			t.Fatalf("%v", err)
		case r.last != 0:
			t.Fatalf("a broken response that looked complete: %v", err)
		}
		if len(r.body) > len(b) {
			t.Fatalf("%d bytes of %d", len(r.body), len(b))
		}
		if x := c.spare.Load(); x != nil && max(cap(x.call.buf), cap(x.batch.buf)) > maxSpare {
			t.Fatal("a large buffer is kept")
		}
		<-c.Done()
	})
}
