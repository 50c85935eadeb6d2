package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hearthrun/hearth"
)

// drained is an HTTP server that is going to drain.
type drained struct {
	t        *testing.T
	listener *listener
	draining chan struct{}
	served   chan error
	// A call of /slow tells begun, and answers after proceed.
	begun, proceed chan struct{}
}

func newDrained(t *testing.T) *drained {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &drained{t, l, make(chan struct{}), make(chan error, 1), make(chan struct{}), make(chan struct{})}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.URL.Path == "/slow" {
			d.begun <- struct{}{}
			<-d.proceed
		}
		w.Write(body)
	})
	s := &http.Server{Handler: lastAnswers(handler, d.draining), ConnState: connState, ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { s.Close() })
	go func() { d.served <- s.Serve(l) }()
	return d
}

// drain begins to drain; the result comes when that is done.
func (d *drained) drain(ctx context.Context) <-chan error {
	close(d.draining)
	d.listener.Close()
	<-d.served
	done := make(chan error, 1)
	go func() { done <- d.listener.drain(ctx) }()
	return done
}

// client is one connection.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (d *drained) connect() *client {
	d.t.Helper()
	nc, err := net.Dial("tcp", d.listener.Addr().String())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{d.t, nc, bufio.NewReader(nc)}
}

// post is the bytes of a request.
func post(path, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: test\r\nContent-Length: " + string(rune('0'+len(body))) + "\r\n\r\n" + body
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// answered reads an answer; last tells whether it says to be the last one.
func (c *client) answered(body string, last bool) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != body || resp.Close != last {
		c.t.Fatalf("answer %q, %v, last %v; want %q, last %v", got, err, resp.Close, body, last)
	}
}

func (c *client) ended() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		c.t.Fatalf("the connection did not end: %q, %v", b, err)
	}
}

// TestDrainConnections: no request that a client sends before it can know that
// the server stops is lost, whatever its connection is doing.
func TestDrainConnections(t *testing.T) {
	d := newDrained(t)
	idle, fresh, half, busy, quiet := d.connect(), d.connect(), d.connect(), d.connect(), d.connect()
	for _, c := range []*client{idle, half, quiet} {
		c.send(post("/", "first"))
		c.answered("first", false)
	}
	request := post("/", "slow")
	half.send(request[:20])
	busy.send(post("/slow", "long"))
	<-d.begun
	fresh.send("P") // so that it was accepted before the next one is looked at
	waitUntil(t, func() bool {
		open, busy := d.listener.closeQuiet(time.Unix(0, 0))
		return open == 5 && busy == 3
	})
	begin := time.Now()
	done := d.drain(t.Context())

	idle.send(post("/", "again"))
	idle.answered("again", true)
	idle.ended()
	fresh.send(post("/", "new")[1:])
	fresh.answered("new", true)
	fresh.ended()
	quiet.ended()
	if took := time.Since(begin); took < idleGrace {
		t.Errorf("an idle connection was closed after %s", took)
	}
	half.send(request[20:])
	half.answered("slow", true)
	half.ended()
	select {
	case err := <-done:
		t.Fatalf("drained while a call is running: %v", err)
	default:
	}
	close(d.proceed)
	busy.answered("long", true) // it began before
	busy.ended()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

// TestDrainEnds: at its end only requests count that are under way.
func TestDrainEnds(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	d := newDrained(t)
	c := d.connect()
	c.send(post("/", "first"))
	c.answered("first", false)
	waitUntil(t, func() bool { // the client has its answer a moment before
		_, busy := d.listener.closeQuiet(time.Unix(0, 0))
		return busy == 0
	})
	if err := <-d.drain(ended); err != nil {
		t.Errorf("with an idle connection: %v", err)
	}

	d = newDrained(t)
	defer close(d.proceed)
	d.connect().send(post("/slow", "long"))
	<-d.begun
	err := <-d.drain(ended)
	if hearth.ErrorCode(err) != hearth.CodeTimeout || !strings.Contains(err.Error(), "1 connections") {
		t.Errorf("with a call: %v", err)
	}
}

// TestUnread: what has arrived counts though nobody has read it.
func TestUnread(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	if near.(*conn).unread() {
		t.Error("something has arrived")
	}
	io.WriteString(far, "GET")
	waitUntil(t, near.(*conn).unread)
	if open, _ := l.closeQuiet(time.Now().Add(time.Hour)); open != 1 {
		t.Error("it was closed")
	}
}

// TestReadOut: an answer that comes before its request has arrived is not lost when
// the connection ends with it.
func TestReadOut(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: readOut(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no such function", http.StatusNotFound)
		answered <- struct{}{}
	}))}
	defer s.Close()
	go s.Serve(l) //nolint:errcheck // it ends with Close
	for _, length := range []int{100_000, 2_000_000} {
		nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_, err = fmt.Fprintf(nc, "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\nbegin", length)
		if err != nil {
			t.Fatal(err)
		}
		<-answered
		for rest := length - len("begin"); rest > 0 && err == nil; rest -= 1000 {
			_, err = nc.Write(make([]byte, min(rest, 1000)))
		}
		answer, readErr := io.ReadAll(nc)
		if err != nil || readErr != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 404 ") || !strings.Contains(string(answer), "no such function") {
			t.Errorf("%d bytes: %v, %v; the answer is %q", length, err, readErr, answer)
		}
	}
}
