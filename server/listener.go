package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hearthrun/hearth"
)

// idleGrace is how long a connection without a request stays open when the
// server drains: a request may be on its way, and a client that is busy sends its
// next one within that time, and learns from the answer to connect anew.
const idleGrace = time.Second

// listener accepts connections and knows on which of them something is under way,
// so that a server can stop without losing a request. http.Server.Shutdown does
// not do: it closes idle connections at once, while the client may be sending on
// one of them, and no client can know then whether its request was executed.
type listener struct {
	*net.TCPListener

	mu     sync.Mutex
	open   map[*conn]struct{} // guarded by mu
	closed chan struct{}      // a connection was closed; capacity 1
}

func newListener(l *net.TCPListener) *listener {
	return &listener{TCPListener: l, open: map[*conn]struct{}{}, closed: make(chan struct{}, 1)}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	tc, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := &conn{TCPConn: tc, listener: l}
	c.quiet.Store(time.Now().UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c] = struct{}{}
	return c, nil
}

// drain closes connections once they have had no request for idleGrace, and
// returns when all are closed. Nothing may be accepted any more. Errors:
// CodeTimeout if a request was still under way when ctx ended.
func (l *listener) drain(ctx context.Context) error {
	tick := time.NewTicker(idleGrace / 20)
	defer tick.Stop()
	for {
		open, busy := l.closeQuiet(time.Now().Add(-idleGrace))
		if open == 0 {
			return nil
		}
		select {
		case <-l.closed:
		case <-tick.C:
		case <-ctx.Done():
			if busy == 0 {
				return nil
			}
			return hearth.Errorf(hearth.CodeTimeout, "%d connections were still in use at the end of the drain: %w", busy, ctx.Err())
		}
	}
}

// connections returns how many are open, and on how many of them something is under way.
func (l *listener) connections() (open, busy int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		if c.quiet.Load() == 0 {
			busy++
		}
	}
	return len(l.open), busy
}

// closeQuiet closes the connections that have been quiet since then. It returns
// how many are open, and on how many of them something is under way.
func (l *listener) closeQuiet(since time.Time) (open, busy int) {
	l.mu.Lock()
	var quiet []*conn
	for c := range l.open {
		switch at := c.quiet.Load(); {
		case at == 0:
			busy++
		case at <= since.UnixNano() && !c.unread() && c.quiet.CompareAndSwap(at, 0):
			quiet = append(quiet, c)
		}
	}
	open = len(l.open) - len(quiet)
	l.mu.Unlock()
	for _, c := range quiet {
		c.Close() //nolint:errcheck // the client may have done so
	}
	return open, busy
}

// conn is an accepted connection.
type conn struct {
	*net.TCPConn
	listener *listener
	// quiet is since when no request has been arriving or being answered, in
	// nanoseconds since 1970; 0 while there is one.
	quiet atomic.Int64
}

// Read implements net.Conn. The state that http.Server tells would not do: it
// becomes active only when the head of a request is complete.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		c.quiet.Store(0)
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.TCPConn.Close()
	l := c.listener
	l.mu.Lock()
	delete(l.open, c)
	l.mu.Unlock()
	select {
	case l.closed <- struct{}{}:
	default:
	}
	return err
}

// unread tells whether something has arrived that nobody has read yet.
func (c *conn) unread() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return err == nil && n > 0
}

// connState follows an http.Server that serves connections of a listener.
func connState(nc net.Conn, to http.ConnState) {
	if to == http.StateIdle {
		nc.(*conn).quiet.Store(time.Now().UnixNano())
	}
}

// lastAnswers makes answers that begin while the server drains the last ones of
// their connections, and tells the clients so.
func lastAnswers(h http.Handler, draining <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&lastAnswer{w, draining}, r)
	})
}

// lingering is how long a request may still take to arrive when it was answered
// before, and its connection is to be closed.
const lingering = time.Second

// readOut reads what h left of the body of a request that is the last one of its
// connection. For others net/http does that; but such a connection it closes at
// once, which resets it while the client is sending, and with that the answer may
// be lost that is on its way: that there is no such function, for example.
func readOut(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		if !r.Close || r.ContentLength == 0 || r.Header.Get("Expect") != "" { // such a client waits for the answer
			return
		}
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(lingering)); err == nil {
			io.Copy(io.Discard, r.Body) //nolint:errcheck // the client is free to leave
		}
	})
}

type lastAnswer struct {
	http.ResponseWriter
	draining <-chan struct{}
}

// WriteHeader implements http.ResponseWriter.
func (w *lastAnswer) WriteHeader(status int) {
	w.mark()
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter. After WriteHeader the mark has no effect.
func (w *lastAnswer) Write(p []byte) (int, error) {
	w.mark()
	return w.ResponseWriter.Write(p)
}

func (w *lastAnswer) mark() {
	select {
	case <-w.draining:
		w.Header().Set("Connection", "close")
	default:
	}
}

// Unwrap is for http.ResponseController.
func (w *lastAnswer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
