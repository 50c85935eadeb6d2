package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hearthrun/hearth"
)

func TestInvoke(t *testing.T) {
	eachStream(t, func(t *testing.T, host, far net.Conn) {
		c := start(t, host, far, Options{Secret: "s"}, func(g *script) {
			for i := range 3 {
				f := g.expect(typeInvoke)
				if want := uint32(2*i + 1); f.stream != want {
					t.Errorf("stream %d, want %d", f.stream, want)
				}
				if want := fmt.Sprintf(`{"id":"id%d","deadline_ms":4102444800000,"kind":"http","event":{"x":1}}`, i); f.payload != want {
					t.Errorf("INVOKE %s, want %s", f.payload, want)
				}
				g.respond(f.stream, "hello")
			}
		})
		for i := range 3 {
			var r recorder
			if err := c.Invoke(t.Context(), httpCall(fmt.Sprintf("id%d", i)), &r); err != nil {
				t.Fatal(err)
			}
			if r.head.Status != 200 || r.head.Headers[0] != [2]string{"a", "b"} || string(r.body) != "hello" || r.last != 1 {
				t.Errorf("response %+v", r)
			}
			if underWay(c) != 0 {
				t.Error("it is under way after its end")
			}
		}
	})
}

// TestRequestBody sends bodies of many sizes, in memory and as streams.
func TestRequestBody(t *testing.T) {
	for _, n := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, windowSize, windowSize + 1, 20 << 20} {
		body := pattern(n)
		for name, call := range map[string]Call{
			"memory": {Body: body},
			"rest":   {Rest: bytes.NewReader(body)},
			"both":   {Body: body[:n/3], Rest: bytes.NewReader(body[n/3:])},
			"pieces": {Rest: &pieces{body, 1 + n/100}},
		} {
			if n > 2*windowSize && name != "both" {
				continue // one is enough
			}
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				host, far := socketpair(t)
				var got []byte
				c := start(t, host, far, Options{}, func(g *script) {
					f := g.expect(typeInvoke)
					m := decodeInvoke(t, f)
					if _, ok := m["event"]; ok || m["kind"] != "event" {
						t.Errorf("INVOKE %s", f.payload)
					}
					if m["body"] == true {
						got = g.body(f.stream)
					} else if n > 0 || call.Rest != nil {
						t.Errorf("INVOKE without a body: %s", f.payload)
					}
					g.respond(f.stream, "")
				})
				call.Kind = hearth.KindEvent
				var r recorder
				if err := c.Invoke(t.Context(), &call, &r); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, body) {
					t.Errorf("the guest got %d bytes, want %d, or others", len(got), n)
				}
				if len(r.body) != 0 || r.last != 1 {
					t.Errorf("an empty response came as %d bytes, last %d times", len(r.body), r.last)
				}
			})
		}
	}
}

// pieces is a reader that gives at most n bytes at a time, and its last ones
// together with io.EOF.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b[:min(len(b), p.n)], p.b)
	p.b = p.b[n:]
	if len(p.b) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// sendBody sends a body as a guest does: within the window.
func (g *script) sendBody(stream uint32, body []byte, piece int) {
	window := windowSize
	for len(body) > 0 {
		for window == 0 {
			f := g.expect(typeWindow)
			if f.typ != typeWindow {
				return
			}
			for _, b := range []byte(f.payload) {
				window = window<<8 | int(b)
			}
			if window > windowSize {
				g.tb.Errorf("the host granted %d bytes", window)
			}
		}
		n := min(len(body), piece, window)
		g.raw(appendFrame(nil, typeData, stream, body[:n]))
		body, window = body[n:], window-n
	}
}

func TestResponseBody(t *testing.T) {
	for _, tt := range []struct{ size, piece int }{
		{1, 1},
		{5000, 1},
		{chunkSize, chunkSize},
		{100_000, 999},
		{windowSize, windowSize},
		{windowSize + 1, chunkSize},
		{3 * windowSize, 8 << 10},
		{20 << 20, chunkSize},
		{20 << 20, windowSize},
	} {
		t.Run(fmt.Sprintf("%d/%d", tt.size, tt.piece), func(t *testing.T) {
			host, far := socketpair(t)
			body := pattern(tt.size)
			c := start(t, host, far, Options{}, func(g *script) {
				f := g.expect(typeInvoke)
				g.send(typeResponse, f.stream, `{"status":201}`)
				g.sendBody(f.stream, body, tt.piece)
				g.send(typeEnd, f.stream, "")
			})
			var r recorder
			if err := c.Invoke(t.Context(), httpCall("a"), &r); err != nil {
				t.Fatal(err)
			}
			if r.head.Status != 201 || !bytes.Equal(r.body, body) || r.last != 1 {
				t.Errorf("status %d, %d bytes of %d or others, last %d", r.head.Status, len(r.body), len(body), r.last)
			}
		})
	}
}

// TestEndBeforeResponseIsPassedOn: what the guest had sent of a response when it
// ended is not begun with.
func TestEndBeforeResponseIsPassedOn(t *testing.T) {
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(*script) {})
	x := c.newExchange()
	for _, f := range []struct {
		typ     frameType
		payload string
	}{{typeResponse, `{"status":200}`}, {typeData, "some"}} {
		if err := x.call.receive(header{length: uint32(len(f.payload)), typ: f.typ, stream: 1}, []byte(f.payload)); err != nil {
			t.Fatal(err)
		}
	}
	x.call.finish(brokenError(io.EOF))
	var r recorder
	err := c.receive(t.Context(), x, nil, &r)
	if hearth.ErrorCode(err) != hearth.CodeFunction || r.head != nil || len(r.body) != 0 {
		t.Errorf("%v, after %v and %q", err, r.head, r.body)
	}
}

// TestEcho streams both ways at a time, and the response is flushed as it comes.
func TestEcho(t *testing.T) {
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(g *script) {
		f := g.expect(typeInvoke)
		g.send(typeResponse, f.stream, `{"status":200}`)
		for {
			d, err := g.next()
			if err != nil || d.typ == typeEnd {
				break
			}
			if d.typ == typeData {
				g.send(typeData, d.stream, d.payload)
				g.window(d.stream, len(d.payload))
			}
		}
		g.send(typeEnd, f.stream, "")
	})
	// The next piece of the request is given only once the last was answered.
	answered := make(chan struct{}, 1)
	r := recorder{onData: func() error { answered <- struct{}{}; return nil }}
	pr, pw := io.Pipe()
	var want []byte
	go func() {
		for i := range 100 {
			p := pattern(1 + i*300)
			want = append(want, p...)
			pw.Write(p)
			<-answered
		}
		pw.Close()
	}()
	call := httpCall("a")
	call.Rest = pr
	if err := c.Invoke(t.Context(), call, &r); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.body, want) || r.flushes < 100 {
		t.Errorf("%d bytes, want %d; %d flushes", len(r.body), len(want), r.flushes)
	}
}

// TestUploadFlowsWhileClientIsSlow: the guest's WINDOW reaches the upload even
// while the sink blocks.
func TestUploadFlowsWhileClientIsSlow(t *testing.T) {
	host, far := socketpair(t)
	received := make(chan struct{})
	c := start(t, host, far, Options{}, func(g *script) {
		f := g.expect(typeInvoke)
		g.send(typeResponse, f.stream, `{"status":200}`)
		if n := len(g.body(f.stream)); n != 5<<20 {
			t.Errorf("got %d bytes", n)
		}
		close(received)
		g.send(typeEnd, f.stream, "")
	})
	call := httpCall("a")
	call.Rest = bytes.NewReader(pattern(5 << 20))
	if err := c.Invoke(t.Context(), call, &recorder{onHead: func() { <-received }}); err != nil {
		t.Fatal(err)
	}
}

// TestAnswerBeforeBody: a guest need not read everything before it answers, and
// the connection serves on.
func TestAnswerBeforeBody(t *testing.T) {
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(g *script) {
		f := g.expect(typeInvoke)
		g.expect(typeData)
		g.respond(f.stream, "early")
		for f.typ != typeInvoke || f.stream == 1 { // what crossed the answer
			var err error
			if f, err = g.next(); err != nil {
				return
			}
		}
		g.respond(f.stream, "second")
	})
	pr, pw := io.Pipe()
	go func() {
		for {
			if _, err := pw.Write(make([]byte, 10_000)); err != nil {
				return
			}
		}
	}()
	call := httpCall("a")
	call.Rest = pr
	var r recorder
	if err := c.Invoke(t.Context(), call, &r); err != nil || string(r.body) != "early" {
		t.Fatalf("%q, %v", r.body, err)
	}
	pr.Close() // as a server does with the request's body
	r = recorder{}
	if err := c.Invoke(t.Context(), httpCall("b"), &r); err != nil || string(r.body) != "second" {
		t.Fatalf("%q, %v", r.body, err)
	}
}

func TestRestFails(t *testing.T) {
	host, far := socketpair(t)
	settled := make(chan struct{})
	c := start(t, host, far, Options{OnSettled: func() { close(settled) }}, func(g *script) {
		f := g.expect(typeInvoke)
		g.expect(typeData)
		if f := g.expect(typeCancel); f.payload != `{"reason":"client"}` {
			t.Errorf("CANCEL %s", f.payload)
		}
		g.send(typeError, f.stream, `{"kind":"canceled"}`)
	})
	broken := errors.New("broken")
	call := httpCall("a")
	call.Rest = io.MultiReader(strings.NewReader("x"), failing{broken})
	if err := c.Invoke(t.Context(), call, &recorder{}); !errors.Is(err, broken) {
		t.Fatalf("%v", err)
	}
	<-settled
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestHandlerError: before anything of the response was passed on the call
// fails, afterwards its response breaks off.
func TestHandlerError(t *testing.T) {
	const frame = `{"kind":"handler","type":"ValueError","message":"no","stack":["a","b"]}`
	for _, when := range []string{"at once", "with the head", "after it"} {
		t.Run(when, func(t *testing.T) {
			host, far := socketpair(t)
			passed := make(chan struct{})
			c := start(t, host, far, Options{}, func(g *script) {
				f := g.expect(typeInvoke)
				var b []byte
				if when != "at once" {
					b = appendFrame(b, typeResponse, f.stream, []byte(`{"status":200}`))
					b = appendFrame(b, typeData, f.stream, []byte("half"))
				}
				if when == "after it" {
					g.raw(b)
					b = nil
					<-passed
				}
				g.raw(appendFrame(b, typeError, f.stream, []byte(frame)))
				g.respond(g.expect(typeInvoke).stream, "fine")
			})
			r := recorder{onData: func() error { close(passed); return nil }}
			e := wantError(t, c.Invoke(t.Context(), httpCall("a"), &r), hearth.CodeFunction, "ValueError")
			if e.Message != "ValueError: no" || len(e.Function.Stack) != 2 {
				t.Errorf("%+v", e)
			}
			if after := when == "after it"; (r.head != nil) != after || r.last != 0 || after && string(r.body) != "half" {
				t.Errorf("the sink got %+v", r)
			}
			r = recorder{}
			if err := c.Invoke(t.Context(), httpCall("b"), &r); err != nil || string(r.body) != "fine" {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

// TestErrorIsClipped: what a guest calls its error is kept in records.
func TestErrorIsClipped(t *testing.T) {
	host, far := socketpair(t)
	big := strings.Repeat("é", 60_000)
	c := start(t, host, far, Options{}, func(g *script) {
		f := g.expect(typeInvoke)
		g.send(typeError, f.stream, fmt.Sprintf(`{"type":%q,"message":%q,"stack":["top",%q,"x"]}`, big, big, big))
	})
	e := wantError(t, c.Invoke(t.Context(), httpCall("a"), &recorder{}), hearth.CodeFunction, "")
	if len(e.Message) > 10<<10 || len(e.Function.Stack) != 2 || e.Function.Stack[0] != "top" {
		t.Errorf("%d bytes, stack of %d", len(e.Message), len(e.Function.Stack))
	}
}

// TestDeadline: the caller leaves at once, the guest learns why, and the
// connection serves on.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, far := net.Pipe()
		var asked time.Time
		settled := make(chan struct{})
		c := start(t, host, far, Options{OnSettled: func() { close(settled) }}, func(g *script) {
			f := g.expect(typeInvoke)
			if f := g.expect(typeCancel); f.payload != `{"reason":"deadline"}` {
				t.Errorf("CANCEL %s", f.payload)
			}
			asked = time.Now()
			time.Sleep(time.Second)
			g.send(typeError, f.stream, `{"kind":"canceled"}`)
			g.respond(g.expect(typeInvoke).stream, "next")
		})
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err := c.Invoke(ctx, httpCall("a"), &recorder{})
		wantError(t, err, hearth.CodeTimeout, "")
		if d := time.Since(begin); d != 3*time.Second || c.Abandoned() != 1 {
			t.Errorf("returned after %s, %d abandoned", d, c.Abandoned())
		}
		<-settled
		if d := time.Since(begin); d != 4*time.Second || asked.Sub(begin) != 3*time.Second {
			t.Errorf("settled after %s, asked after %s", d, asked.Sub(begin))
		}
		if err := c.Invoke(t.Context(), httpCall("b"), &recorder{}); err != nil {
			t.Error(err)
		}
		wantError(t, c.Invoke(ctx, httpCall("c"), &recorder{}), hearth.CodeTimeout, "")
		c.Close()
	})
}

func TestClientLeaves(t *testing.T) {
	host, far := socketpair(t)
	release, settled := make(chan struct{}), make(chan struct{})
	l := &logs{more: make(chan struct{}, 10)}
	ctx, cancel := context.WithCancel(t.Context())
	c := start(t, host, far, Options{OnLog: l.add, Grace: time.Minute, OnSettled: func() { close(settled) }}, func(g *script) {
		f := g.expect(typeInvoke)
		g.send(typeLog, f.stream, "\x01before")
		g.send(typeResponse, f.stream, `{"status":200}`)
		if f := g.expect(typeCancel); f.payload != `{"reason":"client"}` {
			t.Errorf("CANCEL %s", f.payload)
		}
		g.send(typeData, f.stream, "nobody reads this")
		g.send(typeLog, f.stream, "\x02late")
		<-release
		g.send(typeEnd, f.stream, "")
		g.send(typeLog, f.stream, "\x01later")
		g.send(typeLog, 0, "\x01outside")
	})
	err := c.Invoke(ctx, httpCall("a"), &recorder{onHead: cancel})
	wantError(t, err, hearth.CodeCanceled, "")
	for range 2 {
		<-l.more
	}
	if c.Abandoned() != 1 {
		t.Errorf("%d abandoned before the guest ended the call", c.Abandoned())
	}
	close(release)
	<-settled
	for range 2 {
		<-l.more
	}
	want := []logged{{"a", 1, "before"}, {"a", 2, "late"}, {"", 1, "later"}, {"", 1, "outside"}}
	if fmt.Sprint(l.all) != fmt.Sprint(want) {
		t.Errorf("logs %v, want %v", l.all, want)
	}
}

func TestSinkFails(t *testing.T) {
	broken := errors.New("broken")
	for name, r := range map[string]*recorder{
		"head": {headErr: broken},
		"data": {onData: func() error { return broken }},
	} {
		t.Run(name, func(t *testing.T) {
			host, far := socketpair(t)
			settled := make(chan struct{})
			c := start(t, host, far, Options{OnSettled: func() { close(settled) }}, func(g *script) {
				f := g.expect(typeInvoke)
				g.send(typeResponse, f.stream, `{"status":200}`)
				g.send(typeData, f.stream, "x")
				g.expect(typeCancel)
				g.send(typeEnd, f.stream, "")
			})
			if err := c.Invoke(t.Context(), httpCall("a"), r); !errors.Is(err, broken) {
				t.Fatal(err)
			}
			<-settled
		})
	}
}

// TestDeafGuest: nobody waits longer than its context for a guest that does not
// read, whatever else it does.
func TestDeafGuest(t *testing.T) {
	eachStream(t, func(t *testing.T, host, far net.Conn) {
		c := start(t, host, far, Options{}, func(g *script) {
			f := g.expect(typeInvoke)
			// It sends more than fits into the grants it can be sent, without
			// reading one; the rest of the window is its own to keep.
			g.send(typeResponse, f.stream, `{"status":200}`)
			for range 15 {
				g.send(typeData, f.stream, strings.Repeat("x", chunkSize))
			}
			<-t.Context().Done()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		call := httpCall("a")
		call.Deadline = time.Time{}
		call.Rest = endless{}
		wantError(t, c.Invoke(ctx, call, &recorder{}), hearth.CodeTimeout, "")
		ctx2, cancel2 := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel2()
		wantError(t, c.Invoke(ctx2, httpCall("b"), &recorder{}), hearth.CodeTimeout, "")
		if err := c.Shutdown(time.Second); err != nil {
			t.Error(err)
		}
		<-c.Done() // as the first call does not end
		wantError(t, c.Err(), hearth.CodeFunction, "Runtime.ExitError")
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestConcurrent: a call whose client does not read holds up only itself.
func TestConcurrent(t *testing.T) {
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(g *script) {
		slow := g.expect(typeInvoke)
		g.send(typeResponse, slow.stream, `{"status":200}`)
		for range windowSize / chunkSize {
			g.send(typeData, slow.stream, strings.Repeat("s", chunkSize))
		}
		last := slow.stream
		for range 200 {
			f := g.expect(typeInvoke)
			if f.stream <= last {
				t.Errorf("stream %d after %d", f.stream, last)
			}
			last = f.stream
			g.respond(f.stream, decodeInvoke(t, f)["id"].(string))
		}
		g.send(typeEnd, slow.stream, "")
	})
	begun, others := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		r := &recorder{onHead: func() { close(begun); <-others }}
		if err := c.Invoke(t.Context(), httpCall("slow"), r); err != nil || len(r.body) != windowSize {
			t.Errorf("slow: %d bytes, %v", len(r.body), err)
		}
	})
	<-begun
	var fast sync.WaitGroup
	for i := range 20 {
		fast.Go(func() {
			for j := range 10 {
				id := fmt.Sprintf("%d-%d", i, j)
				var r recorder
				if err := c.Invoke(t.Context(), httpCall(id), &r); err != nil || string(r.body) != id {
					t.Errorf("%s: %q, %v", id, r.body, err)
				}
			}
		})
	}
	fast.Wait()
	close(others)
	wg.Wait()
	if underWay(c) != 0 {
		t.Error("a call is under way")
	}
}

// TestTinyFrames: the queue of a call that is not read stays as small as its
// window, even of frames without content.
func TestTinyFrames(t *testing.T) {
	call := &call{notify: make(chan struct{}, 1)}
	if err := call.receive(header{typ: typeResponse, stream: 1}, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	for i := range 200_000 {
		p := []byte("x")[:i%2]
		if err := call.receive(header{typ: typeData, stream: 1, length: uint32(len(p))}, p); err != nil {
			t.Fatal(err)
		}
	}
	if len(call.frames) != 2 || cap(call.buf) > 200_000 {
		t.Errorf("%d frames, %d bytes", len(call.frames), cap(call.buf))
	}
}

func TestEventTooLarge(t *testing.T) {
	host, far := socketpair(t)
	c := start(t, host, far, Options{}, func(g *script) { g.respond(g.expect(typeInvoke).stream, "") })
	call := httpCall("a")
	call.Event = make([]byte, maxPayload)
	e := wantError(t, c.Invoke(t.Context(), call, &recorder{}), hearth.CodeInvalid, "")
	if e.Hint == "" || underWay(c) != 0 {
		t.Errorf("%+v, %d calls under way", e, underWay(c))
	}
	if err := c.Invoke(t.Context(), httpCall("b"), &recorder{}); err != nil {
		t.Error(err)
	}
}

// TestUploadWindow: the host sends exactly what the guest is ready for.
func TestUploadWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, far := net.Pipe()
		c := start(t, host, far, Options{}, func(g *script) {
			f := g.expect(typeInvoke)
			for n := 0; n < windowSize; {
				n += len(g.expect(typeData).payload)
				if n > windowSize {
					t.Errorf("%d bytes came", n)
				}
			}
			for _, n := range []int{0, 10, 1} {
				if n > 0 {
					g.window(f.stream, n)
					if got := len(g.expect(typeData).payload); got != n {
						t.Errorf("%d bytes came, %d were granted", got, n)
					}
				}
				g.nc.SetReadDeadline(time.Now().Add(time.Hour))
				if f, err := g.next(); err == nil {
					t.Errorf("frame %#x of %d bytes beyond the window", f.typ, len(f.payload))
				}
				g.nc.SetReadDeadline(time.Time{})
			}
			g.respond(f.stream, "")
		})
		call := httpCall("a")
		call.Rest = io.LimitReader(endless{}, 2*windowSize)
		if err := c.Invoke(t.Context(), call, &recorder{}); err != nil {
			t.Error(err)
		}
		c.Close()
	})
}

// TestUploadStops: nothing of a body is sent after the call has ended.
func TestUploadStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, far := net.Pipe()
		c := start(t, host, far, Options{}, func(g *script) {
			f := g.expect(typeInvoke)
			g.expect(typeData)
			g.respond(f.stream, "")
			if f, err := g.next(); err == nil {
				t.Errorf("frame %#x came after the end of the call", f.typ)
			}
		})
		call := httpCall("a")
		pr, pw := io.Pipe()
		call.Rest = pr
		go pw.Write([]byte("first")) //nolint:errcheck // the guest counts
		if err := c.Invoke(t.Context(), call, &recorder{}); err != nil {
			t.Error(err)
		}
		synctest.Wait()          // the first piece is written and done with
		pw.Write([]byte("late")) //nolint:errcheck // as above
		pw.Close()
		synctest.Wait()
		c.Close()
	})
}

// TestHeadsInOneRead: frames of several calls that come together wake each.
func TestHeadsInOneRead(t *testing.T) {
	host, far := socketpair(t)
	var heads sync.WaitGroup
	heads.Add(2)
	c := start(t, host, far, Options{}, func(g *script) {
		g.expect(typeInvoke)
		g.expect(typeInvoke)
		head := []byte(`{"status":200}`)
		g.raw(appendFrame(appendFrame(nil, typeResponse, 1, head), typeResponse, 3, head))
		heads.Wait()
		g.raw(appendFrame(appendFrame(nil, typeEnd, 3, nil), typeEnd, 1, nil))
	})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			r := &recorder{onHead: heads.Done}
			if err := c.Invoke(ctx, httpCall("a"), r); err != nil {
				t.Error(err)
			}
			if r.head == nil {
				heads.Done()
			}
		})
	}
	wg.Wait()
}

// TestAbandonedKeepsNothing: what comes for a caller that has left is counted,
// not kept.
func TestAbandonedKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, far := net.Pipe()
		c := start(t, host, far, Options{}, func(g *script) {
			f := g.expect(typeInvoke)
			g.expect(typeCancel)
			g.send(typeResponse, f.stream, `{}`)
			for range windowSize / chunkSize {
				g.send(typeData, f.stream, strings.Repeat("x", chunkSize))
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantError(t, c.Invoke(ctx, httpCall("a"), &recorder{}), hearth.CodeTimeout, "")
		synctest.Wait()
		c.mu.Lock()
		call := c.calls[1]
		c.mu.Unlock()
		if call.received != windowSize || cap(call.buf)+cap(call.frames) != 0 {
			t.Errorf("%d received, %d bytes and %d frames kept", call.received, cap(call.buf), cap(call.frames))
		}
		c.Close()
	})
}
